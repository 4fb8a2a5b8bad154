"""What payment messages tell beyond the transaction itself: references, charges, exchange, batches."""

import polars as pl

from reperform import schemas
from reperform.ingest.source import FILE, RECORD

TABLE = schemas.PAYMENT_DETAILS.name
# Text columns that a reader gives for each transaction.
_TEXTS = {
    "transaction_id": "transaction_id",
    "message": "message",
    "message_id": "message_id",
    "statement_id": "statement_id",
    "entry_reference": "NtryRef",
    "servicer_reference": "servicer",
    "instruction_id": "instruction",
    "end_to_end_id": "end_to_end",
    "uetr": "uetr",
    "mandate_id": "mandate",
    "structured_reference": "reference",
    "remittance": "remittance",
    "debtor_name": "debtor_name",
    "creditor_name": "creditor_name",
    "charges_currency": "charges_currency",
    "instructed_currency": "instructed_currency",
}
_NUMBERS = {"charges": "charges", "instructed_amount": "instructed", "exchange_rate": "rate"}
WANTED = [*_TEXTS.values(), *_NUMBERS.values(), "value", "is_reversal", "n_details"]


def details_of(fields: pl.DataFrame) -> pl.DataFrame:
    """The details of transactions.

    Args:
        fields: text columns `WANTED` with `FILE` and `RECORD`.

    Returns:
        As `schemas.PAYMENT_DETAILS`. A number or a date that cannot be read is null; the transaction itself counts.
    """
    made = fields.select(
        *(pl.col(field).alias(name) for name, field in _TEXTS.items()),
        *(pl.col(field).cast(pl.Float64, strict=False).alias(name) for name, field in _NUMBERS.items()),
        pl.col("value").str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).alias("value_date"),
        pl.col("is_reversal"),
        pl.col("n_details").clip(lower_bound=1).alias("n_in_batch"),
        pl.col(FILE).alias("source_file"),
        pl.col(RECORD).alias("source_record"),
    )
    return made.select(list(schemas.PAYMENT_DETAILS.columns))
