"""Small tables for tests of the service's storage."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import polars as pl

from reperform.service.database import Connection, Database

NOON = datetime(2025, 4, 1, 12, tzinfo=UTC)


class _OnPurposeError(Exception):
    pass


@contextmanager
def undone(database: Database) -> Iterator[Connection]:
    """A transaction that fails at its end."""
    with suppress(_OnPurposeError), database.transaction() as connection:
        yield connection
        raise _OnPurposeError


def transactions(*ids: str, known_at: datetime = NOON) -> pl.DataFrame:
    """Transactions as the journal holds them; only the columns that storage looks at."""
    n = len(ids)
    return pl.DataFrame(
        {
            "transaction_id": list(ids),
            "booked_at": [known_at - timedelta(minutes=1)] * n,
            "known_at": [known_at] * n,
            "account_id": ["A1"] * n,
            "counterparty_id": [None] * n,
            "amount": [10.25] * n,
        },
        schema_overrides={"counterparty_id": pl.String},
    )


def answers(*ids: str, score: float = 0.1, model_version: int = 3) -> pl.DataFrame:
    """Answers as the scorer gives them."""
    return transactions(*ids).select(
        "transaction_id",
        "account_id",
        "counterparty_id",
        pl.lit("E1").alias("entity_id"),
        "booked_at",
        "known_at",
        pl.col("amount").alias("amount_base"),
        pl.lit(score).alias("score"),
        pl.lit(None, pl.Float64).alias("probability"),
        pl.lit(value=True).alias("is_alert"),
        pl.lit('{"xgboost": 0.1, "rules": 1e-300}').alias("members"),
        pl.lit('[{"kpi": "velocity", "words": "a \\"quote\\", a comma; ümlaut\\n"}]').alias("reasons"),
        pl.lit(model_version, pl.Int64).alias("model_version"),
        pl.lit("d41d8cd9").alias("data_version"),
    )
