"""What every kind of source gives back: canonical rows, refused records, and the files behind them."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from reperform import schemas
from reperform.errors import ReperformError

RULE_OF_FILES = "file_"  # a rule that starts with this refuses a whole file; others refuse one record
DUPLICATE_FILE = "file_duplicate"
WHOLE_FILE = 0  # source_record of a refused file; records count from 1


FILE = "__file"  # where a row came from, beside its canonical columns; ingest takes these off again
RECORD = "__record"
SOURCE = "__source"


class UnreadableFileError(ReperformError):
    """A raw file that cannot be read at all: empty, cut off, without a needed column, malformed.

    Readers collect these in `SourceResult.unreadable`; `on_unreadable_file` decides whether the run stops or goes on.

    Args:
        path: the file, relative to the raw folder.
        rule: a short name that starts with `file_`, such as `file_empty`.
        problem: one sentence without the file's name.
        expected: what would have been right.
        got: what was found instead.
        place: line, column or byte inside the file.
        fix: what the user can do.
    """

    def __init__(
        self, path: str, rule: str, problem: str, *, expected: str = "", got: str = "", place: str = "", fix: str = ""
    ) -> None:
        self.path = path
        self.rule = rule
        self.got = got
        where = f"{path}, {place}" if place else path
        super().__init__(f"{path}: {problem}", expected=expected, got=got, where=where, fix=fix)


@dataclass(frozen=True)
class SourceFile:
    """One raw file as it was read.

    Args:
        path: relative to the raw folder.
        sha256: of its bytes.
        records: how many records it held; 0 for a file that could not be read.
    """

    path: str
    sha256: str
    records: int


@dataclass(frozen=True)
class Part:
    """Rows of a table on disk.

    Args:
        path: an Arrow file with the columns that differ from row to row.
        columns: all columns, in order.
        constant: texts that stand in every row, and None for columns without any value.
        start: the first of its rows in the file.
        length: how many rows of the file they are; None for all that follow.
    """

    path: Path
    columns: tuple[str, ...]
    constant: Mapping[str, str | None]
    start: int = 0
    length: int | None = None

    def rows(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The rows, or some of their columns; a column without any value is of type Null."""
        wanted = self.columns if columns is None else columns
        # Mapped, not read: only what is looked at comes into memory, while Polars' own reader copies all of it.
        stored = pl.DataFrame(pa.ipc.open_file(pa.memory_map(str(self.path))).read_all())
        return (
            stored.slice(self.start, self.length)
            .with_columns(pl.lit(self.constant[name]).alias(name) for name in wanted if name in self.constant)
            .select(wanted)
        )


@dataclass(frozen=True)
class SourceResult:
    """What one source gave.

    Args:
        tables: canonical tables by name, as in `schemas.CANONICAL` (and `rates`); they may carry `FILE` and `RECORD`.
        quarantine: refused records, as in `schemas.QUARANTINE`.
        files: every file that was read or refused.
        left_out: records that the source's own description leaves out, by reason; with rows and refused records they
            add up to the records of the files.
        counts: other counts for the receipt, such as statements whose balances were checked.
        unreadable: files that could not be read at all.
        parts: by table, further rows; they follow those in `tables`, and stay on disk until used.
        refused_parts: further refused records.
    """

    tables: dict[str, pl.DataFrame]
    quarantine: pl.DataFrame = field(default_factory=lambda: schemas.empty(schemas.QUARANTINE))
    files: tuple[SourceFile, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[UnreadableFileError, ...] = ()
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    refused_parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class FilesRead:
    """What reading the files of a source one after the other gave.

    Args:
        files: all of them, in order of their names.
        duplicates: files with the same bytes as an earlier one, as rows of the quarantine.
        unreadable: files that could not be read.
    """

    files: tuple[SourceFile, ...]
    duplicates: pl.DataFrame
    unreadable: tuple[UnreadableFileError, ...]


def read_files(
    located_paths: Iterable[tuple[Path, str]],
    table: str,
    digest_of: Callable[[Path], str],
    reader: Callable[[Path, str, str], int],
) -> FilesRead:
    """Read each file of a source once. A second file with the same bytes is told and left alone.

    Args:
        located_paths: the files and their names below the raw folder.
        table: the table that the files are meant for.
        digest_of: from a path to the SHA-256 of its bytes.
        reader: from a path, its name below the raw folder and its digest to the number of its records. It raises
            `UnreadableFileError` for a file that cannot be read.
    """
    files: list[SourceFile] = []
    duplicates: list[dict[str, object]] = []
    unreadable: list[UnreadableFileError] = []
    first_with: dict[str, str] = {}
    for path, where in located_paths:
        digest, records = digest_of(path), 0
        if digest in first_with:
            same = f"the same bytes as {first_with[digest]}"
            duplicates.append(quarantined(table, where, WHOLE_FILE, DUPLICATE_FILE, value=digest, row=same))
        else:
            try:
                records = reader(path, where, digest)
            except UnreadableFileError as error:
                unreadable.append(error)
            if records:  # two months without a row may well be the same bytes
                first_with[digest] = where
        files.append(SourceFile(where, digest, records))
    return FilesRead(tuple(files), quarantine_frame(duplicates), tuple(unreadable))


def located(path: Path, raw: Path) -> str:
    """A raw file's name as it stands in outputs: relative to the raw folder, with forward slashes.

    Control characters and bytes that are no UTF-8 are written as escapes: a name shall neither break a line of a
    message nor a table.
    """
    name = os.fsencode(path.relative_to(raw).as_posix()).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)


def matching(name: str, patterns: Sequence[str], raw: Path) -> list[Path]:
    """The files of a source, in order of their names.

    Args:
        name: the source, for the error message.
        patterns: globs relative to the raw folder.
        raw: the raw folder.

    Raises:
        ReperformError: when the folder is missing or a pattern matches no file. A missing feed must be seen.
    """
    if not raw.is_dir():
        raise ReperformError(
            "The folder of raw data is missing.",
            expected="a folder with the files of all sources",
            got="no such folder",
            where=f"ingest.raw: {raw}",
            fix="run `dvc repro simulate` for the demo world, or put the path of your data in conf/ingest/",
        )
    found: set[Path] = set()
    for pattern in patterns:
        files = [path for path in raw.glob(pattern) if path.is_file()]
        if not files:
            raise ReperformError(
                f"Source {name} has no files.",
                expected=f"at least one file that matches {pattern!r}",
                got=f"none; the raw folder holds {_contents(raw)}",
                where=str(raw),
                fix="bring the files, mend the pattern, or take the source out of conf/ingest/",
            )
        found.update(files)
    return sorted(found)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def with_origin(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with `FILE` and `RECORD`, from the columns of their own that say the same where they lack them."""
    known = {FILE: ("source_file", pl.String), RECORD: ("source_record", pl.Int64)}
    return frame.with_columns(
        (pl.col(column) if column in frame.columns else pl.lit(None)).cast(kind).alias(origin)
        for origin, (column, kind) in known.items()
        if origin not in frame.columns
    )


def quarantined(
    table: str,
    source_file: str,
    source_record: int,
    rule: str,
    *,
    column: str | None = None,
    value: str | None = None,
    row: str = "",
) -> dict[str, object]:
    """One row of the quarantine."""
    return {
        "table": table,
        "source_file": source_file,
        "source_record": source_record,
        "rule": rule,
        "column": column,
        "value": value,
        "row": row,
    }


def quarantine_frame(rows: Iterable[Mapping[str, object]]) -> pl.DataFrame:
    """Rows of the quarantine as a frame that meets its contract."""
    return pl.DataFrame(list(rows), schema=schemas.polars_schema(schemas.QUARANTINE))


def row_as_json(columns: Sequence[str]) -> pl.Expr:
    """Columns of a row as one JSON text, for the quarantine."""
    return pl.struct(columns).struct.json_encode()


def _contents(raw: Path, most: int = 8) -> str:
    names = sorted(path.name for path in raw.iterdir())
    listed = ", ".join(names[:most]) or "nothing"
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
