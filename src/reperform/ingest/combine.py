"""The tables of all sources as one set: each identifier once, every amount in the base currency."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from reperform import schemas, tables
from reperform.ingest.column_map import TARGETS
from reperform.ingest.origins import origins
from reperform.ingest.rates import with_amount_base
from reperform.ingest.repeats import Places, repeated_rows
from reperform.ingest.source import (
    FILE,
    RECORD,
    SOURCE,
    WHOLE_FILE,
    SourceResult,
    quarantine_frame,
    quarantined,
    row_as_json,
    with_origin,
)

DUPLICATE_ID = "duplicate_id"
IDENTIFIERS = {"transactions": "transaction_id", "labels": "transaction_id", "accounts": "account_id"}
QUARANTINE, ORIGINS = schemas.QUARANTINE.name, schemas.ORIGINS.name
WRITTEN = (*schemas.CANONICAL, ORIGINS, QUARANTINE)  # the tables that `combine` writes, one file each
_ORIGIN = (FILE, RECORD, SOURCE)
Append = Callable[[pl.DataFrame], None]


@dataclass
class Combined:
    """All sources together, counted; the rows themselves are in the files.

    Args:
        rows: by table, how many rows there are.
        rows_out: by source and table, the rows that are left.
        refused: by source, file and rule, the refused records and files.
        paid: `source_file` and `source_record` of the transactions from sources that tell payment details.
    """

    rows: Counter[str] = field(default_factory=Counter)
    rows_out: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    paid: pl.DataFrame = field(default_factory=lambda: schemas.empty(schemas.TRANSACTIONS))


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
    combined = Combined(rows_out={name: Counter() for name in results})
    with ExitStack() as stack:
        refuse = _refusing(combined, _appending(stack, QUARANTINE, files))
        for name, result in results.items():
            for frame in _refused_by_readers(result):
                refuse(frame.with_columns(pl.lit(name).alias(SOURCE)))
        repeats = {table: _repeats(results, table) for table in IDENTIFIERS}
        for table in IDENTIFIERS:
            for number, chunk in enumerate(_chunks(results, table) if repeats[table] else ()):
                if number in repeats[table]:
                    refuse(_duplicates(chunk[repeats[table][number]], table))
        tell_origin = _appending(stack, ORIGINS, files)
        rates = pl.concat([_no_rows("rates"), *_chunks(results, "rates")])
        _count(combined, "rates", rates)
        for table in ("accounts", *(table for table in schemas.CANONICAL if table != "accounts")):
            with ExitStack() as one:
                append = _appending(one, table, files)
                for rows in _kept(results, table, repeats.get(table, {})):
                    kept = rows
                    if table == schemas.TRANSACTIONS.name:
                        kept, unpriced = with_amount_base(rows, rates, base_currency)
                        refuse(unpriced)
                        combined.paid = _paid(combined.paid, kept, results)
                    _count(combined, table, kept)
                    tell_origin(origins({"": SourceResult(tables={table: kept.drop(SOURCE)})}))
                    append(schemas.shaped(kept.drop(_ORIGIN), schemas.CANONICAL[table]))
    return combined


def _appending(stack: ExitStack, table: str, files: Mapping[str, Path] | None) -> Append:
    """A function that appends rows to the file of a table."""
    if files is None:
        return lambda _: None
    schema = {**schemas.CANONICAL, QUARANTINE: schemas.QUARANTINE, ORIGINS: schemas.ORIGINS}[table]
    return stack.enter_context(tables.appending(files[table], schemas.polars_schema(schema)))


def _refusing(combined: Combined, append: Append) -> Append:
    """A function that takes refused records, with `SOURCE`, counts them and puts them into quarantine."""

    def refuse(frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        counted = frame.group_by(SOURCE, "source_file", "rule", maintain_order=True).len()
        combined.refused.update({(source, file, rule): n for source, file, rule, n in counted.iter_rows()})
        append(schemas.checked(frame.drop(SOURCE), schemas.QUARANTINE))

    return refuse


def _refused_by_readers(result: SourceResult) -> Iterator[pl.DataFrame]:
    table = next(iter(result.tables), "")
    yield result.quarantine
    for part in result.refused_parts:
        yield pl.read_ipc(part)
    yield quarantine_frame(
        quarantined(table, error.path, WHOLE_FILE, error.rule, value=error.got or None, row=str(error))
        for error in result.unreadable
    )


def _chunks(results: Mapping[str, SourceResult], table: str) -> Iterator[pl.DataFrame]:
    """The rows of a table with their source, file and record, a frame or a part at a time."""
    columns = list(_no_rows(table).columns)
    for name, result in results.items():
        for frame in _frames(result, table):
            yield with_origin(frame).with_columns(pl.lit(name).alias(SOURCE)).select(columns)


def _frames(result: SourceResult, table: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    if table in result.tables:
        yield result.tables[table] if columns is None else result.tables[table].select(columns)
    for part in result.parts.get(table, ()):
        yield pl.read_ipc(part, columns=columns)


def _no_rows(table: str) -> pl.DataFrame:
    kinds = {**schemas.polars_schema(TARGETS[table]), FILE: pl.String, RECORD: pl.Int64, SOURCE: pl.String}
    return pl.DataFrame(schema=kinds)


def _repeats(results: Mapping[str, SourceResult], table: str) -> Places:
    identifier = IDENTIFIERS[table]

    def identifiers() -> Iterator[pl.Series]:
        for result in results.values():
            for frame in _frames(result, table, [identifier]):
                yield frame.get_column(identifier)

    return repeated_rows(identifiers)


def _kept(
    results: Mapping[str, SourceResult],
    table: str,
    repeats: Places,
) -> Iterator[pl.DataFrame]:
    """The rows of a table without those that repeat an identifier."""
    for number, chunk in enumerate(_chunks(results, table)):
        if number in repeats:
            keep = np.ones(chunk.height, dtype=bool)
            keep[repeats[number]] = False
            yield chunk.filter(keep)
        else:
            yield chunk


def _duplicates(again: pl.DataFrame, table: str) -> pl.DataFrame:
    return again.select(
        table=pl.lit(table),
        source_file=pl.col(FILE).fill_null(pl.col(SOURCE)),
        source_record=pl.col(RECORD).fill_null(WHOLE_FILE),
        rule=pl.lit(DUPLICATE_ID),
        column=pl.lit(IDENTIFIERS[table]),
        value=pl.col(IDENTIFIERS[table]),
        row=row_as_json([name for name in again.columns if name not in _ORIGIN]),
        **{SOURCE: pl.col(SOURCE)},
    )


def _paid(so_far: pl.DataFrame, kept: pl.DataFrame, results: Mapping[str, SourceResult]) -> pl.DataFrame:
    told = [name for name, result in results.items() if schemas.PAYMENT_DETAILS.name in result.tables]
    return pl.concat([so_far, kept.filter(pl.col(SOURCE).is_in(told)).select(so_far.columns)]) if told else so_far


def _count(combined: Combined, table: str, rows: pl.DataFrame) -> None:
    combined.rows[table] += rows.height
    for name, n in rows.get_column(SOURCE).value_counts().iter_rows():
        combined.rows_out[name][table] += n
