"""Canonical rows on disk, by what they were made from: an old file that has not changed is not read again.

A part is named by the content of its file, the description of its source and the code that made it. Whether parts were
there before a run never shows in its outputs. Parts are Arrow files without compression: they are written and read at
the speed of memory, and 100 million rows take about 15 GB.
"""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import polars as pl

from reperform import iso_codes, schemas
from reperform.ingest.column_map import TableSource
from reperform.ingest.source import Part, sha256_of

PIECE_BYTES = 64 * 2**20
_DONE = "done.json"
_STATE = "state.json"
_SETTLED_NS = 2_000_000_000  # a file that changed this lately may change again without a new time


@dataclass(frozen=True)
class Entry:
    """What one file gave for one source.

    Args:
        records: how many records the file holds.
        rows: parts with canonical rows.
        refused: parts with refused records, as `schemas.QUARANTINE`.
        left_out: records that the source's description leaves out, by reason.
    """

    records: int
    rows: tuple[Part, ...]
    refused: tuple[Path, ...]
    left_out: Mapping[str, int]


@dataclass
class Store:
    """A folder of parts.

    Args:
        folder: where they are; everything in it can be deleted at any time.
        piece_bytes: about how much of a file is read at once. It shows in no output.
    """

    folder: Path
    piece_bytes: int = PIECE_BYTES
    used: set[str] = field(default_factory=set)
    seen: dict[str, list[int | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Remember which files were hashed before."""
        try:
            self.before = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.before = {}

    def digest(self, path: Path) -> str:
        """The SHA-256 of a file; not computed again for a file of the same size and time as before."""
        name, stat = str(path.absolute()), path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self.seen.get(name) or self.before.get(name)
        digest = str(known[-1]) if known and known[:-1] == mark else sha256_of(path)
        if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
            self.seen[name] = [*mark, digest]
        return digest

    def find(self, digest: str, where: str, spec: TableSource, *, use: bool = True) -> Entry | None:
        """The parts of a file for a source, if they are there; `use` keeps them for the next run."""
        name = self._name(digest, where, spec)
        try:
            done = json.loads((self.folder / name / _DONE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if use:
            self.used.add(name)
        rows = (Part(self.folder / name / part, tuple(columns), one) for part, columns, one in done["rows"])
        refused = (self.folder / name / part for part in done["refused"])
        return Entry(done["records"], tuple(rows), tuple(refused), done["left_out"])

    @contextmanager
    def writing(self, digest: str, where: str, spec: TableSource) -> Iterator["Writing"]:
        """Parts of one file for one source; they count only when the block ends well."""
        name = self._name(digest, where, spec)
        partial = self.folder / f"{name}.{os.getpid()}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            entry = Writing(partial)
            yield entry
            if not entry.abandoned:
                entry.finish()
                shutil.rmtree(self.folder / name, ignore_errors=True)
                partial.rename(self.folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def close(self) -> None:
        """Forget the parts that this run did not use, and remember what was hashed."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and path.name not in self.used:
                shutil.rmtree(path, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{_STATE}.{os.getpid()}"
        partial.write_text(json.dumps(self.seen, indent=1, sort_keys=True), encoding="utf-8")
        partial.replace(self.folder / _STATE)

    def _name(self, digest: str, where: str, spec: TableSource) -> str:
        made_from = json.dumps([digest, where, asdict(spec), code_digest()], sort_keys=True)
        return hashlib.sha256(made_from.encode()).hexdigest()[:32]


class Writing:
    """The parts of one file for one source, while they are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[tuple[str, list[str], dict[str, str | None]]] = []
        self.refused: list[str] = []
        self.records = 0
        self.left_out = Counter[str]()
        self.abandoned = False

    def add(self, records: int, rows: pl.DataFrame, refused: pl.DataFrame, left_out: Mapping[str, int]) -> None:
        """Write the rows and the refused records of one piece."""
        self.records += records
        self.left_out.update(left_out)
        if rows.height:
            constant = constants(rows)
            name = self._write(f"rows-{len(self.rows):05}.arrow", rows.drop(constant))
            self.rows.append((name, rows.columns, constant))
        if refused.height:
            self.refused.append(self._write(f"refused-{len(self.refused):05}.arrow", refused))

    def _write(self, name: str, frame: pl.DataFrame) -> str:
        frame.write_ipc(self.folder / name, compression="uncompressed")
        return name

    def abandon(self) -> None:
        """The file does not suit the source after all."""
        self.abandoned = True

    def finish(self) -> None:
        """Say that the parts are whole."""
        left_out = {reason: n for reason, n in self.left_out.items() if n}
        done = {"rows": self.rows, "refused": self.refused, "records": self.records, "left_out": left_out}
        (self.folder / _DONE).write_text(json.dumps(done), encoding="utf-8")


def constants(rows: pl.DataFrame) -> dict[str, str | None]:
    """The columns that hold one text in every row, or no value in any; the last column is never one of them."""
    found: dict[str, str | None] = {}
    for column in rows.get_columns()[:-1]:
        if column.null_count() == rows.height:
            found[column.name] = None
        elif column.dtype == pl.String and _is_one_text(column):
            found[column.name] = column[0]
    return found


def _is_one_text(column: pl.Series) -> bool:
    first = column[0]
    return first is not None and first == column[-1] and (column == first).all(ignore_nulls=False) is True


@cache
def code_digest() -> str:
    """A digest of the code that makes parts: with other code, old parts count no longer."""
    here = Path(__file__).parent
    modules = [*sorted(here.glob("*.py")), Path(schemas.__file__), Path(iso_codes.__file__)]
    content = b"".join(path.read_bytes() for path in modules)
    return hashlib.sha256(content + pl.__version__.encode()).hexdigest()
