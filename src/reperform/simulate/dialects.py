"""How institutions deliver: five dialects of delimited text, each with its own ideas of number, time and encoding."""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import polars as pl

from reperform.simulate.draws import CENTS

AMERICAN_ZONE, BRITISH_ZONE, GERMAN_ZONE = "America/New_York", "Europe/London", "Europe/Berlin"


@dataclass(frozen=True)
class Dialect:
    """One way to write transactions.

    Args:
        columns: canonical rows to text columns under the dialect's own names, nulls as they shall appear.
        separator: between fields.
        encoding: of the text.
        suffix: of the file's name.
        start: bytes before the text (a byte order mark).
        quotes: which fields stand in quotes.
        is_compressed: with gzip.
    """

    columns: Callable[[pl.DataFrame], pl.DataFrame]
    separator: str
    encoding: str = "utf-8"
    suffix: str = ".csv"
    start: bytes = b""
    quotes: Literal["necessary", "always"] = "necessary"
    is_compressed: bool = False

    def encoded(self, rows: pl.DataFrame) -> bytes:
        """The whole file."""
        text = self.columns(rows).write_csv(separator=self.separator, quote_style=self.quotes)
        content = self.start + text.encode(self.encoding)
        return gzip.compress(content, compresslevel=6, mtime=0) if self.is_compressed else content


def monthly_files(rows: pl.DataFrame, dialect: Dialect) -> Iterator[tuple[str, bytes]]:
    """File names and contents: one file for each month in which rows arrived, in order of arrival.

    Args:
        rows: one institution's rows, as in `schemas.TRANSACTIONS`.
        dialect: of the institution.
    """
    arrived = rows.sort("known_at", "transaction_id").with_columns(month=pl.col("known_at").dt.strftime("%Y-%m"))
    for (month,), part in arrived.group_by("month", maintain_order=True):
        yield f"transactions-{month}{dialect.suffix}", dialect.encoded(part)


def cents(column: str) -> pl.Expr:
    """Whole cents of an amount in units."""
    return (pl.col(column) * CENTS).round().cast(pl.Int64)


def decimal(column: str, *, point: str = ".", group: str = "") -> pl.Expr:
    """An amount as text with two decimals, digits grouped by thousands where `group` says how."""

    def write(values: pl.Series) -> pl.Series:
        return pl.Series(values.name, [_decimal(v, point, group) for v in values.to_list()], dtype=pl.String)

    return cents(column).map_batches(write, return_dtype=pl.String)


def _decimal(value: int | None, point: str, group: str) -> str | None:
    if value is None:
        return None
    whole, rest = divmod(abs(value), CENTS)
    grouped = f"{whole:,}".replace(",", group) if group != "," else f"{whole:,}"
    return f"{'-' if value < 0 else ''}{grouped}{point}{rest:02d}"


def _degrees(column: str, point: str = ".") -> pl.Expr:
    return pl.col(column).cast(pl.String).str.replace(".", point, literal=True)


def _signed(column: str) -> pl.Expr:
    return pl.when(pl.col("direction") == "out").then(-pl.col(column)).otherwise(pl.col(column)).alias(column)


def _local(column: str, zone: str, style: str) -> pl.Expr:
    return pl.col(column).dt.convert_time_zone(zone).dt.strftime(style)


def comma_utc(rows: pl.DataFrame) -> pl.DataFrame:
    """The plain one: ISO 8601 in UTC, a decimal point, a column for the direction."""
    utc = "%Y-%m-%dT%H:%M:%SZ"
    return rows.select(
        id="transaction_id",
        account="account_id",
        counterparty="counterparty_id",
        direction="direction",
        amount=decimal("amount"),
        currency="currency",
        booked_at=pl.col("booked_at").dt.strftime(utc),
        received_at=pl.col("known_at").dt.strftime(utc),
        channel="channel",
        country="country",
        latitude=_degrees("latitude"),
        longitude=_degrees("longitude"),
        balance=decimal("balance_after"),
    )


def semicolon_german(rows: pl.DataFrame) -> pl.DataFrame:
    """Debit and credit in columns of their own, a decimal comma, local time without its offset."""
    local = "%d.%m.%Y %H:%M:%S"
    amount = decimal("amount", point=",", group=".")
    return rows.select(
        pl.col("transaction_id").alias("Buchungsnummer"),
        pl.col("account_id").alias("Konto"),
        pl.col("counterparty_id").alias("Gegenkonto"),
        pl.when(pl.col("direction") == "out").then(amount).alias("Soll"),
        pl.when(pl.col("direction") == "in").then(amount).alias("Haben"),
        pl.col("currency").alias("Währung"),
        _local("booked_at", GERMAN_ZONE, local).alias("Buchung"),
        _local("known_at", GERMAN_ZONE, local).alias("Eingang"),
        pl.col("channel").alias("Kanal"),
        pl.col("country").alias("Land"),
        _degrees("latitude", ",").alias("Breite"),
        _degrees("longitude", ",").alias("Länge"),
        decimal("balance_after", point=",", group=".").alias("Saldo"),
    )


def tab_minor_units(rows: pl.DataFrame) -> pl.DataFrame:
    """Signed whole cents and milliseconds since 1970."""
    return rows.select(
        tx_id="transaction_id",
        acct="account_id",
        peer="counterparty_id",
        minor_units=pl.when(pl.col("direction") == "out").then(-cents("amount")).otherwise(cents("amount")),
        ccy="currency",
        ts_ms=pl.col("booked_at").dt.epoch("ms"),
        rcv_ms=pl.col("known_at").dt.epoch("ms"),
        chan="channel",
        ctry="country",
        lat="latitude",
        lon="longitude",
        bal_minor=cents("balance_after"),
    )


def pipe_american(rows: pl.DataFrame) -> pl.DataFrame:
    """Debit or credit by a letter, month before day, a clock of twelve hours, no currency."""
    local = "%m/%d/%Y %I:%M:%S %p"
    return rows.select(
        pl.col("transaction_id").alias("Reference"),
        pl.col("account_id").alias("Account"),
        pl.col("counterparty_id").alias("Other Party"),
        pl.when(pl.col("direction") == "out").then(pl.lit("D")).otherwise(pl.lit("C")).alias("DC"),
        decimal("amount", group=",").alias("Amount"),
        _local("booked_at", AMERICAN_ZONE, local).alias("Posted"),
        _local("known_at", AMERICAN_ZONE, local).alias("Received"),
        pl.col("channel").alias("Channel"),
        pl.col("country").alias("Country"),
        _degrees("latitude").alias("Lat"),
        _degrees("longitude").alias("Long"),
        decimal("balance_after", group=",").alias("Balance"),
    )


def comma_quoted(rows: pl.DataFrame) -> pl.DataFrame:
    """Everything in quotes, signed values with spaces between thousands, local time with offset, one place field."""
    local = "%Y-%m-%dT%H:%M:%S%:z"
    place = pl.concat_str([_degrees("latitude"), _degrees("longitude")], separator=",", ignore_nulls=False)
    signed = rows.with_columns(_signed("amount"))
    return signed.select(
        pl.col("transaction_id").alias("ref"),
        pl.col("account_id").alias("iban"),
        pl.col("counterparty_id").alias("counter_iban"),
        decimal("amount", group=" ").alias("value"),
        pl.col("currency").alias("cur"),
        _local("booked_at", BRITISH_ZONE, local).alias("when"),
        _local("known_at", BRITISH_ZONE, local).alias("got"),
        pl.col("channel").alias("via"),
        pl.col("country").alias("where"),
        place.alias("geo"),
        decimal("balance_after", group=" ").alias("balance"),
    ).with_columns(pl.all().fill_null(""))


DIALECTS = {
    "comma_utc": Dialect(comma_utc, ","),
    "semicolon_german": Dialect(semicolon_german, ";", encoding="latin-1"),
    "tab_minor_units": Dialect(tab_minor_units, "\t", suffix=".csv.gz", start=b"\xef\xbb\xbf", is_compressed=True),
    "pipe_american": Dialect(pipe_american, "|", encoding="utf-16-le", start=b"\xff\xfe"),
    "comma_quoted": Dialect(comma_quoted, ",", quotes="always"),
}
