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
from typing import Any

import polars as pl

from reperform import iso_codes, schemas
from reperform.ingest.column_map import TableSource
from reperform.ingest.source import Part, sha256_of

PIECE_BYTES = 8 * 2**20
UNUSED_BYTES = 4 * 2**30
_DONE = "done.json"
_STATE = "state.json"
Written = tuple[str, list[str], dict[str, str | None]]  # the name of a part, its columns, and what stands in every row
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
    refused: tuple[Part, ...]
    left_out: Mapping[str, int]


@dataclass
class Store:
    """A folder of parts.

    Args:
        folder: where they are; everything in it can be deleted at any time.
        piece_bytes: about how much of a file is read at once. It shows in no output.
        unused_bytes: how much to keep of parts that the last run did not use: another experiment may.
    """

    folder: Path
    piece_bytes: int = PIECE_BYTES
    unused_bytes: int = UNUSED_BYTES
    used: set[str] = field(default_factory=set)
    seen: dict[str, list[int | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Remember which files were hashed before, and which parts were used when."""
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            self.before, self.last_used, self.run = dict(state["hashed"]), dict(state["used"]), int(state["runs"]) + 1
        except (OSError, ValueError, KeyError, TypeError):
            self.before, self.last_used, self.run = {}, {}, 1

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
        name = self.name(digest, where, spec)
        done = self.told(name, use=use)
        if done is None:
            return None
        rows, refused = (
            tuple(Part(self.folder / name / part, tuple(columns), one) for part, columns, one in done[kind])
            for kind in ("rows", "refused")
        )
        return Entry(done["records"], rows, refused, done["left_out"])

    def told(self, name: str, *, use: bool = True) -> dict[str, Any] | None:
        """What is written about the parts of a name, if they are there; `use` keeps them for the next run."""
        try:
            done: dict[str, Any] = json.loads((self.folder / name / _DONE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if use:
            self.used.add(name)
        return done

    @contextmanager
    def writing(self, digest: str, where: str, spec: TableSource) -> Iterator["Writing"]:
        """Parts of one file for one source; they count only when the block ends well."""
        with self.making(self.name(digest, where, spec)) as folder:
            entry = Writing(folder)
            yield entry
            if entry.abandoned:
                shutil.rmtree(folder)
            else:
                entry.finish()

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A folder for what goes by a name; it counts when the block ends well and has not taken it away."""
        partial = self.folder / f"{name}.{os.getpid()}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if partial.is_dir():
                shutil.rmtree(self.folder / name, ignore_errors=True)
                partial.rename(self.folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def tell(self, name: str, document: Mapping[str, Any]) -> None:
        """Write what `told` gives, in a folder of its own."""
        with self.making(name) as folder:
            (folder / _DONE).write_text(json.dumps(document), encoding="utf-8")

    def close(self) -> None:
        """Forget parts that were not used lately, and remember what was hashed."""
        code = code_digest()
        self.last_used |= {name: [self.run, code] for name in self.used}
        # Parts of other code are never used again. Of the others the latest stay, as far as there is room for them.
        room = self.unused_bytes
        unused = [path for path in self._folders() if path.name not in self.used]
        for path in sorted(unused, key=lambda one: (-self._last_run(one.name, code), one.name)):
            room -= _size_of(path) if self._last_run(path.name, code) else 0
            if room < 0 or not self._last_run(path.name, code):
                shutil.rmtree(path, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in self._folders()}
        state = {
            "runs": self.run,
            "used": {name: one for name, one in self.last_used.items() if name in there},
            "hashed": {path: mark for path, mark in (self.before | self.seen).items() if Path(path).is_file()},
        }
        partial = self.folder / f".{_STATE}.{os.getpid()}"
        partial.write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
        partial.replace(self.folder / _STATE)

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []

    def _last_run(self, name: str, code: str) -> int:
        run, of = self.last_used.get(name, (0, ""))
        return int(run) if of == code else 0

    def name(self, digest: str, where: str, spec: Any, *more: str) -> str:
        """The name of what the code of today makes of a file's content by a source's description."""
        made_from = json.dumps([digest, where, asdict(spec), code_digest(), *more], sort_keys=True)
        return hashlib.sha256(made_from.encode()).hexdigest()[:32]


class Writing:
    """The parts of one file for one source, while they are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Written] = []
        self.refused: list[Written] = []
        self.records = 0
        self.left_out = Counter[str]()
        self.abandoned = False

    def add(self, records: int, rows: pl.DataFrame, refused: pl.DataFrame, left_out: Mapping[str, int]) -> None:
        """Write the rows and the refused records of one piece."""
        self.records += records
        self.left_out.update(left_out)
        if rows.height:
            self.rows.append(write_part(self.folder, f"rows-{len(self.rows):05}.arrow", rows))
        if refused.height:
            self.refused.append(write_part(self.folder, f"refused-{len(self.refused):05}.arrow", refused))

    def abandon(self) -> None:
        """The file does not suit the source after all."""
        self.abandoned = True

    def finish(self) -> None:
        """Say that the parts are whole."""
        left_out = {reason: n for reason, n in self.left_out.items() if n}
        done = {"rows": self.rows, "refused": self.refused, "records": self.records, "left_out": left_out}
        (self.folder / _DONE).write_text(json.dumps(done), encoding="utf-8")


def write_part(folder: Path, name: str, rows: pl.DataFrame) -> Written:
    """Write rows without the columns that hold one text or nothing; gives what a `Part` needs."""
    constant = constants(rows)
    rows.drop(constant).write_ipc(folder / name, compression="uncompressed")
    return name, rows.columns, constant


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


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
