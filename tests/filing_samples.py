"""Small ledgers, returns and tables that the tests of filings share."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from reperform import schemas, taxonomy
from reperform.ingest import xbrl
from reperform.ingest.source import SourceResult
from reperform.simulate.bank_returns import END, MONTH, OPENING, Key, Month, Return, Value
from reperform.simulate.filings import file_name, instance, receipt_log

JANUARY = Month(date(2025, 1, 1), date(2025, 1, 31))
FEBRUARY = Month(date(2025, 2, 1), date(2025, 2, 28))
HONEST: dict[Key, Value] = {
    ("InstitutionName", MONTH): "north",
    ("IsRestatement", MONTH): False,
    ("CashAndCentralBankBalances", END): 150_000,
    ("LoansAndAdvances", END): 700_000,
    ("DebtSecurities", END): 100_000,
    ("OtherAssets", END): 50_000,
    ("TotalAssets", END): 1_000_000,
    ("CustomerDeposits", OPENING): 800_000,
    ("CustomerDeposits", END): 800_150,
    ("BorrowedFunds", END): 70_000,
    ("OtherLiabilities", END): 30_000,
    ("TotalLiabilities", END): 900_000,
    ("ShareCapital", END): 60_000,
    ("RetainedEarnings", END): 40_000,
    ("TotalEquity", END): 100_000,
    ("TotalLiabilitiesAndEquity", END): 1_000_000,
    ("NetInterestIncome", MONTH): 2_000,
    ("NetFeeIncome", MONTH): 500,
    ("OperatingExpenses", MONTH): 1_400,
    ("ImpairmentLosses", MONTH): 100,
    ("ProfitBeforeTax", MONTH): 1_000,
    ("OutgoingTransactionsNumber", MONTH): 1,
    ("IncomingTransactionsNumber", MONTH): 1,
    ("TransactionsNumber", MONTH): 2,
    ("OutgoingTransactionsValue", MONTH): 50,
    ("OutgoingTransactionsValue", "CardMember"): 50,
    ("IncomingTransactionsValue", MONTH): 200,
    ("CashDepositsNumber", MONTH): 0,
    ("CashDepositsValue", MONTH): 0,
    ("LargeValueTransactionsNumber", MONTH): 0,
    ("LargeValueTransactionsValue", MONTH): 0,
    ("ActiveAccountsNumber", MONTH): 1,
}


def at(day: str, hour: int = 12) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(day).replace(hour=hour, tzinfo=UTC)


def bank_return(
    changes: dict[Key, Value] | None = None,
    *,
    without: Sequence[Key] = (),
    month: Month = JANUARY,
    entity: str = "north",
    version: str = "",
    filed_at: datetime | None = None,
) -> Return:
    """An honest return, with changes."""
    values = {key: value for key, value in (HONEST | (changes or {})).items() if key not in without}
    due_at = datetime(month.last.year, month.last.month, month.last.day, 23, 59, 59, tzinfo=UTC) + timedelta(days=15)
    name = f"{entity}-{month.first:%Y-%m}{version}"
    return Return(name, entity, "EUR", month, due_at, filed_at or due_at - timedelta(days=5), values)


def write(returns: Sequence[Return], raw: Path) -> None:
    """Write returns and their receipt log below a raw folder."""
    for each in returns:
        (raw / file_name(each)).parent.mkdir(parents=True, exist_ok=True)
        (raw / file_name(each)).write_text(instance(each), encoding="utf-8")
    (raw / "filings.csv").write_text(receipt_log(returns).write_csv(), encoding="utf-8")


SOURCE: dict[str, Any] = {"kind": "xbrl", "files": "*/filings/*.xbrl", "receipts": {"csv": "filings.csv"}}


def read(raw: Path, processes: int = 1, **more: Any) -> SourceResult:
    """Read what `write` has written."""
    return xbrl.read("filings", SOURCE | more, raw, processes=processes)


def transaction(  # a row has many columns
    number: int,
    booked_at: datetime,
    direction: str,
    amount: float,
    *,
    balance: float | None = None,
    channel: str = "card",
    account: str = "a1",
    entity: str = "north",
    known_at: datetime | None = None,
    currency: str = "EUR",
) -> dict[str, Any]:
    """One canonical transaction."""
    return {
        "transaction_id": f"{entity}-{number}",
        "booked_at": booked_at,
        "known_at": known_at or booked_at,
        "account_id": account,
        "counterparty_id": None,
        "entity_id": entity,
        "direction": direction,
        "amount": amount,
        "currency": currency,
        "amount_base": amount,
        "channel": channel,
        "country": None,
        "latitude": None,
        "longitude": None,
        "balance_after": balance,
        "source_file": "t.csv",
        "source_record": number,
    }


def ledger(*rows: dict[str, Any]) -> pl.DataFrame:
    """Canonical transactions."""
    return pl.DataFrame(list(rows), schema=schemas.polars_schema(schemas.TRANSACTIONS))


def tiny_ledger() -> pl.DataFrame:
    """One account in January: 200 in on the first day, 50 out on the last; `HONEST` tells the same."""
    return ledger(
        transaction(1, at("2025-01-01"), "in", 200.0, balance=800_200.0),
        transaction(2, at("2025-01-31"), "out", 50.0, balance=800_150.0),
    )


def fact(  # a row has many columns
    filing_id: str,
    name: str,
    value: float | str | None,
    *,
    end: date = JANUARY.last,
    start: date | None = None,
    unit: str | None = "iso4217:EUR",
    decimals: str | None = "0",
    dimensions: str = "{}",
) -> dict[str, Any]:
    """One canonical fact of the bank return."""
    return {
        "filing_id": filing_id,
        "concept": taxonomy.qname(name),
        "period_start": start,
        "period_end": end,
        "unit": unit,
        "decimals": decimals,
        "value": None if value is None else str(value),
        "is_nil": value is None,
        "dimensions": dimensions,
        "source_line": 1,
    }


def facts(*rows: dict[str, Any]) -> pl.DataFrame:
    """Canonical facts."""
    return pl.DataFrame(list(rows), schema=schemas.polars_schema(schemas.FACTS))


def filing(
    filing_id: str,
    *,
    month: Month = JANUARY,
    entity: str = "north",
    filed_at: datetime | None = None,
    due_at: datetime | None = None,
    form: str = taxonomy.FORM,
) -> dict[str, Any]:
    """One canonical filing."""
    return {
        "filing_id": filing_id,
        "entity_id": entity,
        "form": form,
        "period_start": month.first,
        "period_end": month.last,
        "due_at": due_at,
        "filed_at": filed_at or datetime(month.last.year, month.last.month + 1, 10, tzinfo=UTC),
        "source_file": f"{filing_id}.xbrl",
    }


def filings(*rows: dict[str, Any]) -> pl.DataFrame:
    """Canonical filings."""
    return pl.DataFrame(list(rows), schema=schemas.polars_schema(schemas.FILINGS))


def check(
    filing_id: str, family: str, rule: str, *, ok: bool | None, gap: float | None = None, detail: str | None = None
) -> dict[str, Any]:
    """One rule's result; ok=None is a rule that could not be evaluated."""
    return {
        "filing_id": filing_id,
        "family": family,
        "rule": rule,
        "is_evaluable": ok is not None,
        "is_satisfied": ok,
        "reported": None if gap is None else 1_000.0,
        "computed": None if gap is None else 1_000.0 + gap,
        "gap": gap,
        "detail": detail,
    }


def checks(*rows: dict[str, Any]) -> pl.DataFrame:
    """Canonical checks."""
    return pl.DataFrame(list(rows), schema=schemas.polars_schema(schemas.CHECKS))
