"""The tables of all sources as one set: each identifier once, every amount in the base currency."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
import pandera.polars as pa
import polars as pl

from reperform import schemas, tables
from reperform.ingest.column_map import TARGETS
from reperform.ingest.origins import origins
from reperform.ingest.rates import with_amount_base
from reperform.ingest.repeats import Places, repeated_rows
from reperform.ingest.source import (
    FILE,
    RECORD,
    WHOLE_FILE,
    SourceResult,
    quarantine_frame,
    quarantined,
    row_as_json,
    with_origin,
)

DUPLICATE_ID = "duplicate_id"
IDENTIFIERS = {"transactions": "transaction_id", "labels": "transaction_id", "accounts": "account_id"}
DETAILS = schemas.PAYMENT_DETAILS.name
WRITTEN = (*schemas.CANONICAL, schemas.ORIGINS.name, schemas.QUARANTINE.name, DETAILS)  # by `combine`, one file each
_IN_THIS_ORDER = ("accounts", *(table for table in schemas.CANONICAL if table != "accounts"))  # as `origins` has them
_PLACE = ["source_file", "source_record"]
Append = Callable[[pl.DataFrame], None]


@dataclass
class Combined:
    """All sources together, counted; the rows themselves are in the files.

    Args:
        rows: by table, how many rows there are.
        rows_out: by source and table, the rows that are left.
        refused: by source, file and rule, the refused records and files.
    """

    rows: Counter[str] = field(default_factory=Counter)
    rows_out: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)


def combine(
    results: Mapping[str, SourceResult], base_currency: str, files: Mapping[str, Path] | None = None
) -> Combined:
    """Unite the tables of all sources, in the order of sources, files and records, and write them chunk by chunk.

    Of two rows with one identifier the first that was read is kept: it is what was known first. The other is refused.

    Args:
        results: what each source gave.
        base_currency: of `amount_base`.
        files: for each of `WRITTEN`, the Parquet file to write; without them everything is counted only.
    """
    with ExitStack() as stack:
        union = _Union(results, base_currency, files, stack)
        union.refuse_what_readers_refused()
        union.refuse_duplicates()
        for table in _IN_THIS_ORDER:
            union.write(table)
    return union.combined


class _Union:
    """The files that are written, and the counts of what goes into them."""

    def __init__(
        self,
        results: Mapping[str, SourceResult],
        base_currency: str,
        files: Mapping[str, Path] | None,
        stack: ExitStack,
    ) -> None:
        self.results, self.base_currency, self.files = results, base_currency, files
        self.combined = Combined(rows_out={name: Counter() for name in results})
        self.rates = pl.concat([_no_rows("rates"), *(chunk for _, chunk in _chunks(results, "rates"))])
        for name, chunk in _chunks(results, "rates"):
            self.combined.rows_out[name]["rates"] += chunk.height
        self.repeats = {table: _repeats(results, table) for table in IDENTIFIERS}
        self.quarantine = self.appending(stack, schemas.QUARANTINE)
        self.origins = self.appending(stack, schemas.ORIGINS)
        self.details = self.appending(stack, schemas.PAYMENT_DETAILS)

    def appending(self, stack: ExitStack, schema: pa.DataFrameSchema) -> Append:
        """A function that appends rows to the file of a table."""
        if self.files is None:
            return lambda _: None
        return stack.enter_context(tables.appending(self.files[schema.name], schemas.polars_schema(schema)))

    def refuse(self, source: str, frame: pl.DataFrame) -> None:
        """Count refused records and put them into quarantine."""
        if frame.height:
            counted = frame.group_by("source_file", "rule", maintain_order=True).len()
            self.combined.refused.update({(source, file, rule): n for file, rule, n in counted.iter_rows()})
            self.quarantine(schemas.checked(frame, schemas.QUARANTINE))

    def refuse_what_readers_refused(self) -> None:
        for name, result in self.results.items():
            for frame in _refused_by_readers(result):
                self.refuse(name, frame)

    def refuse_duplicates(self) -> None:
        for table, repeats in self.repeats.items():
            for number, (name, chunk) in enumerate(_chunks(self.results, table) if repeats else ()):
                if number in repeats:
                    self.refuse(name, _duplicates(chunk[repeats[number]], table, name))

    def write(self, table: str) -> None:
        """Write a table without the rows that repeat an identifier; refuse transactions without a known rate."""
        is_transactions = table == schemas.TRANSACTIONS.name
        details = {name: _details(result) for name, result in self.results.items()} if is_transactions else {}
        with ExitStack() as stack:
            append = self.appending(stack, schemas.CANONICAL[table])
            for name, rows in _kept(self.results, table, self.repeats.get(table, {})):
                kept = rows
                if is_transactions:
                    kept, unpriced = with_amount_base(rows, self.rates, self.base_currency)
                    self.refuse(name, unpriced)
                if name in details:
                    self.keep_details(next(details[name]), kept)
                self.combined.rows[table] += kept.height
                self.combined.rows_out[name][table] += kept.height
                self.origins(origins({name: SourceResult(tables={table: kept})}))
                append(schemas.shaped(kept.drop(FILE, RECORD), schemas.CANONICAL[table]))

    def keep_details(self, details: pl.DataFrame, kept: pl.DataFrame) -> None:
        """Write the details of those transactions that are kept."""
        if details.height:
            of_kept = details.join(kept.select(_PLACE), on=_PLACE, how="semi", maintain_order="left")
            self.details(schemas.checked(of_kept, schemas.PAYMENT_DETAILS))


def _refused_by_readers(result: SourceResult) -> Iterator[pl.DataFrame]:
    table = next(iter(result.tables), "")
    yield result.quarantine
    for part in result.refused_parts:
        yield part.rows().cast(result.quarantine.schema)
    yield quarantine_frame(
        quarantined(table, error.path, WHOLE_FILE, error.rule, value=error.got or None, row=str(error))
        for error in result.unreadable
    )


def _chunks(results: Mapping[str, SourceResult], table: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of a table with their file and record, a frame or a part at a time, and the source of each."""
    kinds = _no_rows(table).schema
    for name, result in results.items():
        for frame in _frames(result, table):
            yield name, with_origin(frame).select(pl.col(column).cast(kind) for column, kind in kinds.items())


def _frames(result: SourceResult, table: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    if table in result.tables:
        yield result.tables[table] if columns is None else result.tables[table].select(columns)
    for part in result.parts.get(table, ()):
        yield part.rows(columns)


def _details(result: SourceResult) -> Iterator[pl.DataFrame]:
    """Payment details, a chunk for each chunk of the transactions; without end, and empty, where there are none."""
    kinds = schemas.polars_schema(schemas.PAYMENT_DETAILS)
    for frame in _frames(result, DETAILS):
        yield frame.select(pl.col(column).cast(kind) for column, kind in kinds.items())
    yield from repeat(pl.DataFrame(schema=kinds))


def _no_rows(table: str) -> pl.DataFrame:
    kinds = {**schemas.polars_schema(TARGETS[table]), FILE: pl.String, RECORD: pl.Int64}
    return pl.DataFrame(schema=kinds)


def _repeats(results: Mapping[str, SourceResult], table: str) -> Places:
    identifier = IDENTIFIERS[table]

    def identifiers() -> Iterator[pl.Series]:
        for result in results.values():
            for frame in _frames(result, table, [identifier]):
                yield frame.get_column(identifier)

    return repeated_rows(identifiers)


def _kept(results: Mapping[str, SourceResult], table: str, repeats: Places) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of a table without those that repeat an identifier."""
    for number, (name, chunk) in enumerate(_chunks(results, table)):
        if number in repeats:
            keep = np.ones(chunk.height, dtype=bool)
            keep[repeats[number]] = False
            yield name, chunk.filter(keep)
        else:
            yield name, chunk


def _duplicates(again: pl.DataFrame, table: str, source: str) -> pl.DataFrame:
    return again.select(
        table=pl.lit(table),
        source_file=pl.col(FILE).fill_null(source),
        source_record=pl.col(RECORD).fill_null(WHOLE_FILE),
        rule=pl.lit(DUPLICATE_ID),
        column=pl.lit(IDENTIFIERS[table]),
        value=pl.col(IDENTIFIERS[table]),
        row=row_as_json([name for name in again.columns if name not in (FILE, RECORD)]),
    )
