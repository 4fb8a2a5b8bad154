"""The file and the record behind every row of the tables that do not tell it themselves: accounts and labels."""

from collections.abc import Mapping

import polars as pl

from reperform import schemas
from reperform.ingest.source import FILE, RECORD, SourceResult

KEYS = {"accounts": "account_id", "labels": "transaction_id"}
_KINDS = pl.Schema({FILE: pl.String, RECORD: pl.Int64})


def origins(results: Mapping[str, SourceResult]) -> pl.DataFrame:
    """Where each row of these tables was read, as `schemas.ORIGINS`, so that validate can name it when it refuses one.

    Of rows with one key the first is kept, as in the tables themselves.

    Args:
        results: what each source gave.
    """
    parts = [
        _of(result.tables[table], table, key)
        for table, key in KEYS.items()
        for result in results.values()
        if {FILE, RECORD} <= set(result.tables.get(table, pl.DataFrame()).columns)
    ]
    return pl.concat([schemas.empty(schemas.ORIGINS), *parts]).unique(
        ["table", "key"], keep="first", maintain_order=True
    )


def _of(rows: pl.DataFrame, table: str, key: str) -> pl.DataFrame:
    return rows.cast(_KINDS).select(table=pl.lit(table), key=key, source_file=FILE, source_record=RECORD).drop_nulls()
