"""Exchange rates at the moment of a transaction, as the pipeline applies them."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from reperform import ingest, paths, schemas, tables
from reperform.params import IngestParams


@dataclass(frozen=True)
class Rates:
    """What one unit of each currency is worth in the base currency, since when.

    Args:
        base: the base currency.
        published: by currency, when each rate was published, in order.
        values: the rates.
    """

    base: str
    published: Mapping[str, list[datetime]] = field(default_factory=dict)
    values: Mapping[str, list[float]] = field(default_factory=dict)

    def known(self) -> list[str]:
        """Currencies that amounts can be given in."""
        return sorted({self.base, *self.published})

    def at(self, currency: str, time: datetime) -> float | None:
        """The last rate that was published until then; None where there was none yet."""
        if currency == self.base:
            return 1.0
        place = bisect_right(self.published.get(currency, []), time)
        return self.values[currency][place - 1] if place else None


def of_table(rates: pl.DataFrame, base: str) -> Rates:
    """Rates from a table as `schemas.RATES`; of two of the same moment the one that was delivered last counts."""
    ordered = rates.sort("currency", "published_at", maintain_order=True)
    latest = ordered.unique(["currency", "published_at"], keep="last", maintain_order=True)
    parts = {str(key[0]): part for key, part in latest.partition_by("currency", as_dict=True).items()}
    return Rates(
        base,
        {currency: part["published_at"].to_list() for currency, part in parts.items()},
        {currency: part["rate_to_base"].to_list() for currency, part in parts.items()},
    )


def load(given: IngestParams) -> Rates:
    """Rates of the project: from the sources of rates where they are there, else from clean transactions.

    Transactions say what their currency was worth up to the last digit or two of a float.
    """
    raw = paths.project_root() / given.raw
    found = list(_sources(given.sources, raw))
    if found:
        return of_table(pl.concat(found), given.base_currency)
    rows = tables.read_table("validate", "transactions", ["currency", "amount", "amount_base", "known_at"])
    foreign = rows.filter(pl.col("currency") != given.base_currency)
    told = foreign.select(
        "currency", rate_to_base=pl.col("amount_base") / pl.col("amount"), published_at=pl.col("known_at")
    )
    return of_table(told, given.base_currency)


def _sources(sources: Mapping[str, Mapping[str, Any]], raw: Path) -> Iterable[pl.DataFrame]:
    kinds = schemas.polars_schema(schemas.RATES)
    for name, source in sources.items():
        if source.get("target") != schemas.RATES.name or not any(raw.glob(str(source.get("files", "")))):
            continue
        got = ingest.read_source(name, source, raw, 1)
        tables_of = [got.tables[schemas.RATES.name]] if schemas.RATES.name in got.tables else []
        parts = [part.rows() for part in got.parts.get(schemas.RATES.name, ())]
        for rows in (*tables_of, *parts):
            yield rows.select(pl.col(column).cast(kind) for column, kind in kinds.items())
