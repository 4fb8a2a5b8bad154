"""Small ledgers, returns and tables that the tests of filings share."""

import io
import json
import zipfile
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

SCHEMA = f"{taxonomy.BASE_URL.rstrip('/')}/brr.xsd"
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


def inline_page(facts: str, *, header: bool = True) -> str:
    """A page of Inline XBRL; the first page of a set carries the header with taxonomy, context and unit."""
    hidden = (
        f"""<div style="display:none"><ix:header><ix:references>
<link:schemaRef xlink:type="simple" xlink:href="{SCHEMA}"/></ix:references><ix:resources>
<xbrli:context id="e"><xbrli:entity><xbrli:identifier scheme="{taxonomy.ENTITY_SCHEME}">north</xbrli:identifier>
</xbrli:entity><xbrli:period><xbrli:instant>2025-01-31</xbrli:instant></xbrli:period></xbrli:context>
<xbrli:unit id="EUR"><xbrli:measure>iso4217:EUR</xbrli:measure></xbrli:unit></ix:resources></ix:header></div>"""
        if header
        else ""
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:ix="http://www.xbrl.org/2013/inlineXBRL"
 xmlns:xbrli="http://www.xbrl.org/2003/instance" xmlns:link="http://www.xbrl.org/2003/linkbase"
 xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:iso4217="http://www.xbrl.org/2003/iso4217"
 xmlns:ixt="http://www.xbrl.org/inlineXBRL/transformation/2020-02-12" xmlns:brr="{taxonomy.NAMESPACE}">
<head><title>Return</title></head><body>{hidden}<p>{facts}</p></body></html>"""


def inline_fact(name: str, thousands: str, more: str = "") -> str:
    """A number in thousands at the end of January."""
    return (
        f'<ix:nonFraction name="brr:{name}" contextRef="e" unitRef="EUR" decimals="-3" scale="3" '
        f'format="ixt:num-dot-decimal"{more}>{thousands}</ix:nonFraction>'
    )


def json_fact(name: str, value: str | None, decimals: int | None = -3, **dimensions: str) -> dict[str, Any]:
    """A fact of xBRL-JSON at the end of January, in EUR."""
    known = {"concept": f"brr:{name}", "entity": "bank:north", "period": "2025-02-01T00:00:00", "unit": "iso4217:EUR"}
    fact: dict[str, Any] = {"value": value, "dimensions": known | dimensions}
    return fact if decimals is None else fact | {"decimals": decimals}


def json_report(facts: dict[str, Any], kind: str = "json", **info: Any) -> dict[str, Any]:
    """A report in xBRL-JSON, or with other members the metadata of one in xBRL-CSV."""
    about = {
        "documentType": f"https://xbrl.org/2021/xbrl-{kind}",
        "namespaces": {
            "brr": taxonomy.NAMESPACE,
            "iso4217": "http://www.xbrl.org/2003/iso4217",
            "bank": taxonomy.ENTITY_SCHEME,
            "xbrl": "https://xbrl.org/2021",
        },
        "linkTypes": {"footnote": "http://www.xbrl.org/2003/arcrole/fact-footnote"},
        "linkGroups": {"_": "http://www.xbrl.org/2003/role/link"},
        "taxonomy": [SCHEMA],
    }
    return {"documentInfo": about | info} | ({"facts": facts} if kind == "json" else facts)


CSV_TABLES: dict[str, Any] = {
    "tables": {"lines": {"url": "lines.csv"}},
    "tableTemplates": {
        "lines": {
            "rowIdColumn": "id",
            "dimensions": {"entity": "bank:north", "unit": "iso4217:EUR", "concept": "$concept", "period": "$period"},
            "columns": {"id": {}, "concept": {}, "period": {}, "amount": {"dimensions": {}, "decimals": -3}},
        }
    },
}
CSV_LINES = """id,concept,period,amount
equity,brr:TotalEquity,2025-02-01T00:00:00,1234000
assets,brr:TotalAssets,2025-02-01T00:00:00,5000000
"""


def write_one(project: Path, name: str, content: str | bytes | dict[str, Any]) -> Path:
    """Write one filing of any form, with its receipt in the log that `read` takes."""
    path = project / "north" / "filings" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content, indent=1)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    log = receipt_log([bank_return()]).with_columns(pl.lit(path.relative_to(project).as_posix()).alias("file"))
    (project / "filings.csv").write_text(log.write_csv(), encoding="utf-8")
    return path


def zip_of(members: dict[str, str | bytes]) -> bytes:
    """A zip with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


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
