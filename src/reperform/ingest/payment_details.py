"""What payment messages tell beyond the transaction itself: references, charges, exchange, batches."""

from collections.abc import Mapping

import polars as pl

from reperform import schemas
from reperform.ingest.source import SourceResult

TABLE = schemas.PAYMENT_DETAILS.name
_ORIGIN = ["source_file", "source_record"]


def united(results: Mapping[str, SourceResult], transactions: pl.DataFrame) -> pl.DataFrame:
    """The details of all sources, of those transactions that were kept.

    Args:
        results: what each source gave; sources of payment messages have a table `payment_details`.
        transactions: as `schemas.TRANSACTIONS`, each identifier once.

    Returns:
        As `schemas.PAYMENT_DETAILS`, in the order of sources, files and records; empty where no source has payments.
    """
    parts = [result.tables[TABLE] for result in results.values() if TABLE in result.tables]
    every = pl.concat([schemas.empty(schemas.PAYMENT_DETAILS), *parts])
    kept = transactions.select(_ORIGIN)
    return schemas.checked(every.join(kept, on=_ORIGIN, how="semi", maintain_order="left"), schemas.PAYMENT_DETAILS)
