"""The tables of all sources as one set: each identifier once, every amount in the base currency."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from reperform import schemas
from reperform.ingest.column_map import TARGETS
from reperform.ingest.rates import with_amount_base
from reperform.ingest.source import (
    FILE,
    RECORD,
    SOURCE,
    WHOLE_FILE,
    SourceResult,
    quarantine_frame,
    quarantined,
    row_as_json,
)

DUPLICATE_ID = "duplicate_id"
IDENTIFIERS = {"transactions": "transaction_id", "labels": "transaction_id", "accounts": "account_id"}
_ORIGIN = (FILE, RECORD, SOURCE)


@dataclass(frozen=True)
class Combined:
    """All sources together.

    Args:
        tables: the canonical tables, in the order of sources, files and records.
        quarantine: every refused record and file, as `schemas.QUARANTINE` with `SOURCE`.
        rows_out: per source and table, the rows that are left.
    """

    tables: dict[str, pl.DataFrame]
    quarantine: pl.DataFrame
    rows_out: dict[str, dict[str, int]]


def combine(results: Mapping[str, SourceResult], base_currency: str) -> Combined:
    """Unite the tables of all sources.

    Of two rows with one identifier the first that was read is kept: it is what was known first. The other is refused.

    Args:
        results: what each source gave.
        base_currency: of `amount_base`.
    """
    refused = [_refused_by_readers(name, result) for name, result in results.items()]
    united = {table: _united(table, results) for table in TARGETS}
    for table, identifier in IDENTIFIERS.items():
        united[table], again = _each_once(united[table], table, identifier)
        refused.append(again)
    united["transactions"], unpriced = with_amount_base(united["transactions"], united["rates"], base_currency)
    refused.append(unpriced)
    quarantine = pl.concat([quarantine_frame([]).with_columns(pl.lit(None, pl.String).alias(SOURCE)), *refused])
    return Combined(
        tables={
            table: schemas.shaped(united[table].drop(_ORIGIN), schemas.CANONICAL[table]) for table in schemas.CANONICAL
        },
        quarantine=quarantine,
        rows_out=_rows_per_source(united, results),
    )


def _refused_by_readers(name: str, result: SourceResult) -> pl.DataFrame:
    table = next(iter(result.tables), "")
    whole = [
        quarantined(table, error.path, WHOLE_FILE, error.rule, value=error.got or None, row=str(error))
        for error in result.unreadable
    ]
    return pl.concat([result.quarantine, quarantine_frame(whole)]).with_columns(pl.lit(name).alias(SOURCE))


def _united(table: str, results: Mapping[str, SourceResult]) -> pl.DataFrame:
    kinds = {**schemas.polars_schema(TARGETS[table]), FILE: pl.String, RECORD: pl.Int64, SOURCE: pl.String}
    parts = [pl.DataFrame(schema=kinds)]
    for name, result in results.items():
        frame = result.tables.get(table)
        if frame is not None:
            parts.append(_with_origin(frame, name).select(list(kinds)))
    return pl.concat(parts)


def _with_origin(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows with the source, file and record that they came from."""
    known = {FILE: "source_file", RECORD: "source_record"}
    missing = [
        (pl.col(column) if column in frame.columns else pl.lit(None)).alias(origin)
        for origin, column in known.items()
        if origin not in frame.columns
    ]
    kinds = {FILE: pl.String, RECORD: pl.Int64}
    return frame.with_columns(*missing, pl.lit(name).alias(SOURCE)).cast(kinds)  # type: ignore[arg-type]


def _each_once(rows: pl.DataFrame, table: str, identifier: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    first = pl.col(identifier).is_first_distinct()
    again = rows.filter(~first)
    refused = again.select(
        table=pl.lit(table),
        source_file=pl.col(FILE).fill_null(pl.col(SOURCE)),
        source_record=pl.col(RECORD).fill_null(WHOLE_FILE),
        rule=pl.lit(DUPLICATE_ID),
        column=pl.lit(identifier),
        value=pl.col(identifier),
        row=row_as_json([name for name in rows.columns if name not in _ORIGIN]),
        **{SOURCE: pl.col(SOURCE)},
    )
    return rows.filter(first), refused


def _rows_per_source(
    united: Mapping[str, pl.DataFrame], results: Mapping[str, SourceResult]
) -> dict[str, dict[str, int]]:
    counted = {table: dict(rows.get_column(SOURCE).value_counts().iter_rows()) for table, rows in united.items()}
    return {
        name: {table: int(counted[table].get(name, 0)) for table in result.tables if table in counted}
        for name, result in results.items()
    }
