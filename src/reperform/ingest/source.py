"""What every kind of source gives back: canonical rows, refused records, and the files behind them."""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from reperform import schemas


@dataclass(frozen=True)
class SourceFile:
    """One raw file as it was read.

    Args:
        path: relative to the raw folder.
        sha256: of its bytes.
        records: how many records it held.
    """

    path: str
    sha256: str
    records: int


@dataclass(frozen=True)
class SourceResult:
    """What one source gave.

    Args:
        tables: canonical tables by name, as in `schemas.CANONICAL`.
        quarantine: refused records, as in `schemas.QUARANTINE`.
        files: every file that was read or refused.
    """

    tables: dict[str, pl.DataFrame]
    quarantine: pl.DataFrame = field(default_factory=lambda: schemas.empty(schemas.QUARANTINE))
    files: tuple[SourceFile, ...] = ()


def located(path: Path, raw: Path) -> str:
    """A raw file's name as it stands in outputs: relative to the raw folder, with forward slashes."""
    return path.relative_to(raw).as_posix()
