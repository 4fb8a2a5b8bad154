"""Raw files as tables of text, to spoil some of it and write the file back as its sender would."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

MONTH = "2025-03"  # the last whole month of the world: two months before it are the past that checks compare with
Change = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True)
class Dialect:
    """How an institution writes its tables."""

    separator: str
    encoding: str = "utf-8"
    gzipped: bool = False


DIALECTS = {
    "northbank": Dialect(","),
    "lakeside": Dialect(";", "latin-1"),
    "harbour": Dialect("\t", "utf-8-sig", gzipped=True),
    "summit": Dialect("|", "utf-16"),
}
PLAIN = Dialect(",")


@dataclass(frozen=True)
class World:
    """A raw folder that may be spoiled.

    Args:
        raw: the folder.
        draw: what is random about a defect.
    """

    raw: Path
    draw: np.random.Generator

    def file(self, bank: str, month: str = MONTH) -> str:
        """The file of one month, relative to the raw folder."""
        return f"{bank}/transactions-{month}.csv" + (".gz" if DIALECTS[bank].gzipped else "")

    def read(self, file: str) -> pl.DataFrame:
        """A file as columns of text."""
        return _parsed(self.text(file), _dialect(file))

    def text(self, file: str) -> str:
        """A file's text."""
        dialect, content = _dialect(file), (self.raw / file).read_bytes()
        return (gzip.decompress(content) if dialect.gzipped else content).decode(dialect.encoding)

    def write_text(self, file: str, text: str, encoding: str | None = None) -> None:
        """Replace a file; others may share the bytes of the old one through a hard link."""
        dialect = _dialect(file)
        content = text.encode(encoding or dialect.encoding)
        self.write_bytes(file, gzip.compress(content, mtime=0) if dialect.gzipped else content)

    def write_bytes(self, file: str, content: bytes) -> None:
        """Replace a file's bytes."""
        (self.raw / file).unlink(missing_ok=True)
        (self.raw / file).write_bytes(content)

    def write(self, file: str, rows: pl.DataFrame) -> None:
        """Replace a file by rows."""
        self.write_text(file, rows.write_csv(separator=_dialect(file).separator, quote_style="necessary"))

    def change(self, file: str, *columns: pl.Expr) -> None:
        """Replace columns of a file, in every row."""
        self.write(file, self.read(file).with_columns(*columns))

    def some(self, rows: int, share: float) -> pl.Series:
        """Which rows are hit: a share of them, at least three."""
        hit = np.zeros(rows, dtype=bool)
        hit[self.draw.choice(rows, max(3, round(share * rows)), replace=False)] = True
        return pl.Series("hit", hit)

    def change_some(self, file: str, share: float, *columns: pl.Expr) -> None:
        """Replace columns in a share of rows."""
        rows = self.read(file)
        hit = rows.with_columns(self.some(rows.height, share))
        changed = [
            pl.when(pl.col("hit")).then(expr).otherwise(pl.col(expr.meta.output_name())).alias(expr.meta.output_name())
            for expr in columns
        ]
        self.write(file, hit.with_columns(changed).drop("hit"))


def _dialect(file: str) -> Dialect:
    return DIALECTS.get(file.split("/", maxsplit=1)[0], PLAIN) if "/transactions-" in file else PLAIN


def _parsed(text: str, dialect: Dialect) -> pl.DataFrame:
    return pl.read_csv(text.encode(), separator=dialect.separator, infer_schema=False)


def new_ids(column: str, mark: str) -> pl.Expr:
    """Identifiers that no other row has."""
    return (pl.col(column) + pl.lit(mark)).alias(column)


def moved(columns: Sequence[str], form: str, **by: int) -> list[pl.Expr]:
    """Columns of time moved by hours or days, in the form that they are written in."""
    return [
        (pl.col(name).str.to_datetime(form) + pl.duration(**by)).dt.strftime(form).alias(name)  # type: ignore[arg-type]
        for name in columns
    ]


def scaled(column: str, factor: float) -> pl.Expr:
    """A plain number times a factor, with two places."""
    return (pl.col(column).cast(pl.Float64) * factor).map_elements(lambda x: f"{x:.2f}", pl.String).alias(column)
