"""What was read from files of statements, on disk: large files need no memory, unchanged ones are not parsed again.

The transactions of a large file, or of many small ones, make a pack of parts. Beside its rows, each file keeps the few
facts about its statements that are held against those of other files: pages, numbers, balances, announced sums.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from reperform.ingest import statement_checks as checks
from reperform.ingest.camt_stream import Statement
from reperform.ingest.parts import Store, Written, write_part
from reperform.ingest.source import Part

KINDS = ("rows", "details", "refused")
_BALANCE = "balance_after"
Slice = tuple[str, list[str], dict[str, str | None], int, int]  # as `Written`, with the first row and their number


@dataclass(frozen=True)
class Typed:
    """Canonical rows, refused records and details of some transactions; `statement` is the number of each row's."""

    rows: pl.DataFrame
    statement: pl.Series
    refused: pl.DataFrame
    details: pl.DataFrame


@dataclass(frozen=True)
class StatementFile:
    """What one file gave.

    Args:
        where: its name below the raw folder.
        records: how many transactions it holds.
        parts: by kind of `KINDS`: canonical rows, the details of each, refused records.
        violations: of the official schema.
        references: wrong ones, at most `checks.MOST_PER_CODE`.
        further_references: how many more.
        statements: as `packed` gives them.
    """

    where: str
    records: int
    parts: Mapping[str, tuple[Part, ...]]
    violations: list[checks.Finding]
    references: list[checks.Finding]
    further_references: int
    statements: Mapping[str, Any]


@dataclass
class Pack:
    """Parts with the transactions of files that are read together.

    Args:
        names: the files, as the store names what is made of them.
        parts: kind, what was written, and the rows of each file in it: the first and their number.
        references: wrong ones by file.
        further: how many more of these.
    """

    names: Sequence[str]
    parts: list[tuple[str, Written, dict[str, tuple[int, int]]]] = field(default_factory=list)
    references: dict[str, list[checks.Finding]] = field(default_factory=dict)
    further: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """How the store names it."""
        return f"pack-{hashlib.sha256(''.join(self.names).encode()).hexdigest()[:32]}"

    def add(self, folder: Path, piece: Typed) -> None:
        """Write one piece; each file's rows in it stand together."""
        for kind, frame in zip(KINDS, (piece.rows, piece.details, piece.refused), strict=True):
            if frame.height:
                written = write_part(folder, f"{kind}-{len(self.parts):05}.arrow", frame)
                self.parts.append((kind, written, _bounds(frame.get_column("source_file"))))
        for one in checks.of_references(piece.details):
            known = self.references.setdefault(str(one["filing_id"]), [])
            if len(known) < checks.MOST_PER_CODE:
                known.append(one)
            else:
                self.further[str(one["filing_id"])] += 1

    def take_balances_back(self, folder: Path, unproven: Sequence[pl.Series | None]) -> None:
        """Write rows again without the balances of statements that turned out not to add up.

        Args:
            folder: where the parts are.
            unproven: for each part with rows, which of them; None for none.
        """
        places = [place for place, (kind, _, _) in enumerate(self.parts) if kind == "rows"]
        for place, wrong in zip(places, unproven, strict=True):
            kind, (name, columns, constant), bounds = self.parts[place]
            if wrong is not None:
                rows = Part(folder / name, tuple(columns), constant).rows()
                kept = rows.with_columns(pl.when(~wrong).then(_BALANCE).alias(_BALANCE))
                self.parts[place] = (kind, write_part(folder, f"settled-{name}", kept), bounds)
                (folder / name).unlink()

    def of(self, where: str) -> dict[str, list[Slice]]:
        """The rows of a file, by kind."""
        slices: dict[str, list[Slice]] = {kind: [] for kind in KINDS}
        for kind, written, bounds in self.parts:
            if where in bounds:
                slices[kind].append((*written, *bounds[where]))
        return slices


def _bounds(files: pl.Series) -> dict[str, tuple[int, int]]:
    bounds, start = {}, 0
    for run in files.rle():
        bounds[run["value"]] = (start, run["len"])
        start += run["len"]
    return bounds


def found(store: Store, name: str) -> StatementFile | None:
    """What a file gave when it was read before, if it is there."""
    told = store.told(name)
    folder = store.folder / str(told["pack"]) if told is not None else store.folder
    if told is None or not folder.is_dir():
        return None
    store.used.add(folder.name)
    parts = {
        kind: tuple(Part(folder / part, tuple(columns), one, *place) for part, columns, one, *place in told[kind])
        for kind in KINDS
    }
    names = ("where", "records", "violations", "references", "further_references", "statements")
    return StatementFile(parts=parts, **{key: told[key] for key in names})


def united(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same rows in fewer parts: those that follow each other in one file are one part."""
    made: list[Part] = []
    for part in parts:
        last = made[-1] if made else None
        if last is not None and last.path == part.path and last.start + (last.length or 0) == part.start:
            made[-1] = replace(last, length=(last.length or 0) + (part.length or 0))
        else:
            made.append(part)
    return tuple(made)


def packed(statements: Sequence[Statement], sums: Mapping[int, int], totals: Mapping[int, int]) -> dict[str, Any]:
    """The statements of one file with what their entries add up to, as JSON holds them.

    Statements of one message share its header, and show by that that they belong together.
    """
    headers = {id(one.header): one.header for one in statements}
    applications = {id(one.application): one.application for one in statements}
    places = {key: place for table in (headers, applications) for place, key in enumerate(table)}
    return {
        "headers": list(headers.values()),
        "applications": list(applications.values()),
        "statements": [
            {
                "definition": one.definition,
                "header": places[id(one.header)],
                "application": places[id(one.application)],
                "fields": one.fields,
                "line": one.line,
                "opening": {currency: str(amount) for currency, amount in one.opening.items()},
                "closing": {currency: str(amount) for currency, amount in one.closing.items()},
                "interim": {currency: [str(amount) for amount in ends] for currency, ends in one.interim.items()},
                "entries": one.entries,
                "split": one.split,
                "unsplit": one.unsplit,
                "sum": sums.get(one.number, 0),
                "total": totals.get(one.number, 0),
            }
            for one in statements
        ],
    }


def unpacked(told: Mapping[str, Any], first: int, where: str) -> Iterable[tuple[Statement, int, int]]:
    """The statements that were `packed`, each with its two sums; their numbers count from `first`."""
    for number, one in enumerate(told["statements"], start=first):
        statement = Statement(
            number,
            one["definition"],
            told["headers"][one["header"]],
            one["fields"],
            told["applications"][one["application"]],
            where,
            one["line"],
            {currency: Decimal(amount) for currency, amount in one["opening"].items()},
            {currency: Decimal(amount) for currency, amount in one["closing"].items()},
            {currency: [Decimal(amount) for amount in ends] for currency, ends in one["interim"].items()},
            one["entries"],
            one["split"],
            one["unsplit"],
        )
        yield statement, one["sum"], one["total"]
