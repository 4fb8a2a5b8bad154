"""What must hold for a canonical row: its contract, its own columns against each other, and other tables.

A rule says which rows fail. What then happens to them (warn, quarantine, stop) is written in conf/validate/.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from zoneinfo import available_timezones

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors

from reperform import iso_codes, schemas
from reperform.feeds.finding import FEED_RULES

Tables = Mapping[str, pl.DataFrame]
ORDER = (
    "accounts",
    "transactions",
    "labels",
    "filings",
    "facts",
    "messages",
    "checks",
)  # a table comes after its parents
BALANCE_TOLERANCE = 0.006  # a cent of rounding in either balance, in units of the account's currency
PART_OF_A_UNIT = 1e-3  # of the smallest unit: what binary fractions leave over is far less
ANY_CURRENCY, ANY_CHANNEL = "any", "default"
STATEMENT_CODES = "statement."  # messages about bank statements, which are no filings


@dataclass(frozen=True)
class Rule:
    """One thing that must hold.

    Args:
        name: unique over all tables; conf/validate/ and the quarantine call it so.
        table: whose rows it looks at.
        says: what must hold, in one sentence.
        column: the column to blame.
        failing: from the table and the clean tables before it (see `ORDER`) to one truth value per row; null, where a
            rule does not apply, is not failing.
    """

    name: str
    table: str
    says: str
    column: str
    failing: Callable[[pl.DataFrame, Tables], pl.Series]


def contract_failures(rows: pl.DataFrame, schema: pa.DataFrameSchema) -> pl.DataFrame:
    """Rows that break their table's contract: `index`, `column`, `value`, the first failure of each row.

    Uniqueness has a rule of its own, which keeps the first row; pandera would blame both.
    """
    kinds = {"index": pl.Int64, "column": pl.String, "value": pl.String}
    try:
        schemas.shaped(rows, schema)
        schema.validate(rows, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.filter(pl.col("check") != "field_uniqueness")
        if cases.get_column("index").null_count():
            schemas.checked(rows, schema)  # not about single rows: explained there
        value = pl.format("{} breaks {}", pl.col("failure_case").fill_null("null"), "check")
        named: pl.DataFrame = cases.select("index", "column", value=value).cast(kinds)
        return named.sort("index", maintain_order=True).unique("index", keep="first", maintain_order=True)
    return pl.DataFrame(schema=kinds)


def _of(condition: pl.Expr) -> Callable[[pl.DataFrame, Tables], pl.Series]:
    """A rule about the columns of one row."""
    return lambda rows, _: rows.select(condition.alias("failing")).to_series()


def _unique(column: str) -> Callable[[pl.DataFrame, Tables], pl.Series]:
    return _of(~pl.col(column).is_first_distinct())


def _refers(column: str, parent: str, key: str) -> Callable[[pl.DataFrame, Tables], pl.Series]:
    """A rule that a column's value is the key of a clean row of another table."""

    def failing(rows: pl.DataFrame, clean: Tables) -> pl.Series:
        return ~rows.get_column(column).is_in(clean[parent].get_column(key).implode())

    return failing


def _of_known_filing(rows: pl.DataFrame, clean: Tables) -> pl.Series:
    orphan = _refers("filing_id", "filings", "filing_id")(rows, clean)
    return orphan & ~rows.get_column("code").str.starts_with(STATEMENT_CODES) if "code" in rows.columns else orphan


def _joined(rows: pl.DataFrame, parent: pl.DataFrame, key: str, columns: list[str]) -> pl.DataFrame:
    """Columns of the parent beside each row, in the rows' order."""
    one_each = parent.select(key, *(pl.col(name).alias(f"{name}_of_parent") for name in columns))
    return rows.join(one_each, on=key, how="left", maintain_order="left")


def _booked_before_opening(rows: pl.DataFrame, clean: Tables) -> pl.Series:
    both = _joined(rows.select("account_id", "booked_at"), clean["accounts"], "account_id", ["opened_at"])
    return both.get_column("booked_at") < both.get_column("opened_at_of_parent")


def _other_entity(rows: pl.DataFrame, clean: Tables) -> pl.Series:
    both = _joined(rows.select("account_id", "entity_id"), clean["accounts"], "account_id", ["entity_id"])
    return both.get_column("entity_id") != both.get_column("entity_id_of_parent")


def _confirmed_before_booking(rows: pl.DataFrame, clean: Tables) -> pl.Series:
    keys = rows.select("transaction_id", "confirmed_at")
    both = _joined(keys, clean["transactions"], "transaction_id", ["booked_at"])
    return both.get_column("confirmed_at") < both.get_column("booked_at_of_parent")


def _balance_jumps(rows: pl.DataFrame, _: Tables) -> pl.Series:
    signed = pl.when(pl.col("direction") == "in").then(pl.col("amount")).otherwise(-pl.col("amount"))
    before = pl.col("balance_after").shift(1).over("account_id", order_by=["booked_at", "source_file", "source_record"])
    miss = (pl.col("balance_after") - before - signed).abs()
    return rows.select(failing=miss > BALANCE_TOLERANCE + 1e-9 * pl.col("balance_after").abs()).to_series()


def _above_limit(rows: pl.DataFrame, clean: Tables) -> pl.Series:
    """Amounts above the limit of their currency and channel: the most specific limit that is set counts."""
    limits = clean.get("amount_limits")
    if limits is None or limits.is_empty():
        return pl.Series([False]).new_from_index(0, rows.height)
    keyed = rows.select("amount", "currency", channel=pl.col("channel").fill_null(ANY_CHANNEL))
    found = []
    for place, (currency, channel) in enumerate(
        (("currency", "channel"), ("currency", ANY_CHANNEL), (ANY_CURRENCY, "channel"), (ANY_CURRENCY, ANY_CHANNEL))
    ):
        keys = keyed.with_columns(
            currency=pl.col("currency") if currency == "currency" else pl.lit(currency),
            channel=pl.col("channel") if channel == "channel" else pl.lit(channel),
        )
        joined = keys.join(limits, on=["currency", "channel"], how="left", maintain_order="left")
        found.append(joined.get_column("limit").alias(f"limit_{place}"))
    beside = keyed.with_columns(found).with_columns(limit=pl.coalesce(series.name for series in found))
    return beside.select(pl.col("amount") > pl.col("limit")).to_series()


def _too_many_places() -> pl.Expr:
    """Amounts with a fraction of the smallest unit of their currency."""
    places = pl.col("currency").replace_strict(iso_codes.MINOR_UNITS, default=None, return_dtype=pl.Int64)
    units = pl.col("amount") * pl.lit(10.0).pow(places)
    return (units - units.round()).abs() > PART_OF_A_UNIT + 1e-9 * units.abs()


def amount_limits(limits: Mapping[str, Mapping[str, float]]) -> pl.DataFrame:
    """Limits as a table that the rule about amounts looks up: `currency`, `channel`, `limit`."""
    rows = [(currency, channel, float(limit)) for currency, one in limits.items() for channel, limit in one.items()]
    return pl.DataFrame(rows, schema={"currency": pl.String, "channel": pl.String, "limit": pl.Float64}, orient="row")


_NUMBERS = ("amount", "amount_base", "latitude", "longitude", "balance_after")
_CONTENT = ("account_id", "counterparty_id", "direction", "amount", "currency", "booked_at")
_KNOWN_COUNTRY = sorted(iso_codes.COUNTRIES)

RULES: tuple[Rule, ...] = (
    Rule(
        "account_id_unique", "accounts", "an account is described once; the first description counts",
        "account_id", _unique("account_id"),
    ),
    Rule(
        "account_country_known", "accounts", "the home country is an ISO 3166-1 code",
        "home_country", _of(~pl.col("home_country").is_in(_KNOWN_COUNTRY)),
    ),
    Rule(
        "account_timezone_known", "accounts", "the time zone is in the IANA database",
        "timezone", _of(~pl.col("timezone").is_in(sorted(available_timezones()))),
    ),
    Rule(
        "transaction_id_unique", "transactions", "a transaction is told once; the first telling counts",
        "transaction_id", _unique("transaction_id"),
    ),
    Rule(
        "numbers_finite", "transactions", "amounts, balances and coordinates are finite numbers",
        "amount", _of(pl.any_horizontal(~pl.col(name).is_finite() for name in _NUMBERS)),
    ),
    Rule(
        "known_after_booking", "transactions", "nothing is known before it is booked",
        "known_at", _of(pl.col("known_at") < pl.col("booked_at")),
    ),
    Rule(
        "currency_known", "transactions", "the currency is an ISO 4217 code",
        "currency", _of(~pl.col("currency").is_in(sorted(iso_codes.CURRENCIES))),
    ),
    Rule(
        "country_known", "transactions", "the country is an ISO 3166-1 code",
        "country", _of(~pl.col("country").is_in(_KNOWN_COUNTRY)),
    ),
    Rule(
        "account_known", "transactions", "the account is in the table of accounts",
        "account_id", _refers("account_id", "accounts", "account_id"),
    ),
    Rule(
        "account_of_entity", "transactions", "the account is held at the reporting institution",
        "entity_id", _other_entity,
    ),
    Rule(
        "booked_after_opening", "transactions", "nothing is booked before the account was opened",
        "booked_at", _booked_before_opening,
    ),
    Rule(
        "coordinates_paired", "transactions", "latitude and longitude come together",
        "latitude", _of(pl.col("latitude").is_null() != pl.col("longitude").is_null()),
    ),
    Rule(
        "balance_rolls", "transactions", "a balance is the account's balance before, plus or minus the amount",
        "balance_after", _balance_jumps,
    ),
    Rule(
        "content_unrepeated", "transactions", "no two ids tell the same account, counterparty, amount and second",
        "transaction_id", _of(~pl.struct(_CONTENT).is_first_distinct()),
    ),
    Rule(
        "not_to_itself", "transactions", "an account does not pay itself",
        "counterparty_id", _of(pl.col("account_id") == pl.col("counterparty_id")),
    ),
    Rule(
        "amount_in_minor_units", "transactions", "an amount has no more places than its currency (ISO 4217)",
        "amount", _of(_too_many_places()),
    ),
    Rule(
        "amount_within_limit", "transactions", "an amount is at most validate.amount_limits of currency and channel",
        "amount", _above_limit,
    ),
    Rule(
        "label_unique", "labels", "a transaction has one label; the first counts",
        "transaction_id", _unique("transaction_id"),
    ),
    Rule(
        "label_of_known_transaction", "labels", "a label is about a clean transaction",
        "transaction_id", _refers("transaction_id", "transactions", "transaction_id"),
    ),
    Rule(
        "confirmed_after_booking", "labels", "a label is confirmed after its transaction was booked",
        "confirmed_at", _confirmed_before_booking,
    ),
    Rule(
        "filing_id_unique", "filings", "a filing is received once",
        "filing_id", _unique("filing_id"),
    ),
    Rule(
        "period_in_order", "filings", "a period begins before it ends",
        "period_start", _of(pl.col("period_start") > pl.col("period_end")),
    ),
    Rule(
        "filed_after_period", "filings", "a period is reported after its last day has begun",
        "filed_at", _of(pl.col("filed_at").dt.date() < pl.col("period_end")),
    ),
    Rule(
        "fact_of_known_filing", "facts", "a fact belongs to a clean filing",
        "filing_id", _of_known_filing,
    ),
    Rule(
        "fact_period_in_order", "facts", "a fact's period begins before it ends",
        "period_start", _of(pl.col("period_start") > pl.col("period_end")),
    ),
    Rule(
        "message_of_known_filing", "messages", "a message is about a clean filing or a bank statement",
        "filing_id", _of_known_filing,
    ),
    Rule(
        "check_of_known_filing", "checks", "a check is about a clean filing",
        "filing_id", _of_known_filing,
    ),
)  # fmt: skip
CONTRACTS = {f"{table}_contract": table for table in ORDER}


def names() -> list[str]:
    """Every rule that conf/validate/ sets a severity for: the tables' contracts, then the others."""
    return [*CONTRACTS, *(rule.name for rule in RULES)]


def meaning(name: str) -> str:
    """What a rule says."""
    if name in FEED_RULES:
        return FEED_RULES[name][0]
    if name in CONTRACTS:
        return f"columns of {CONTRACTS[name]} have values that their contract allows"
    return next(rule.says for rule in RULES if rule.name == name)


def table_of(name: str) -> str:
    """The table that a rule looks at."""
    return CONTRACTS.get(name) or next(rule.table for rule in RULES if rule.name == name)


# What the owner of the data can do about rows that break a rule.
_FIX_CONTRACT = (
    "mend the column map, or ask the sender for the right value; the rows are in quarantine with file and record"
)
FIXES = {
    **dict.fromkeys(CONTRACTS, _FIX_CONTRACT),
    "account_id_unique": "ask the sender which description counts, and deliver accounts once",
    "account_country_known": "ask the sender for the ISO 3166-1 code",
    "account_timezone_known": "ask the sender for an IANA name such as Europe/Berlin",
    "transaction_id_unique": "ask the sender why an id comes twice; ids must be unique over all sources",
    "numbers_finite": "ask the sender for the number",
    "known_after_booking": "check time zones, and whether booked_at and known_at are exchanged in the column map",
    "currency_known": "ask the sender for the ISO 4217 code, or map it with `values` in the column map",
    "country_known": "ask the sender for the ISO 3166-1 code, or map it with `values` in the column map",
    "account_known": "ask the sender for the missing accounts; check whether account and counterparty are exchanged",
    "account_of_entity": "check which institution's folder the file belongs in",
    "booked_after_opening": "ask the sender for the true day of opening",
    "coordinates_paired": "ask the sender for the other coordinate",
    "balance_rolls": "rows are missing, out of order or wrong before this one: compare with the bank's statement",
    "content_unrepeated": "ask the sender whether it was one payment or two",
    "not_to_itself": "ask the sender; account and counterparty may come from the same field",
    "amount_in_minor_units": "check the unit and the decimal mark in the column map",
    "amount_within_limit": "check unit and decimal mark; if the amount is true, raise the limit in conf/validate/",
    "label_unique": "ask case handling which decision counts",
    "label_of_known_transaction": "bring the transaction, or ask case handling which one is meant",
    "confirmed_after_booking": "ask case handling for the time of the decision: no label is known before its row",
    "filing_id_unique": "name a second version of a filing differently",
    "period_in_order": "correct the period in the receipt log or the filing",
    "filed_after_period": "correct the time of receipt or the period in the receipt log",
    "fact_of_known_filing": "the filing itself was refused: mend that first",
    "fact_period_in_order": "the filer has exchanged start and end: ask for a corrected filing",
    "message_of_known_filing": "the filing itself was refused: mend that first",
    "check_of_known_filing": "the filing itself was refused: mend that first",
}


def fix_of(name: str) -> str:
    """What can be done about a broken rule."""
    return FIXES[name]
