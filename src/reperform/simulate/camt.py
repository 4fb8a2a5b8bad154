"""How institutions deliver: ISO 20022 bank-to-customer statements (camt.053), one file a day."""

import re
from collections.abc import Iterator
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

import polars as pl

from reperform.simulate.dialects import cents

_IBAN = re.compile(r"^[A-Z]{2}\d{2}[A-Z0-9]{11,30}$")
_SIGN = {"in": "CRDT", "out": "DBIT"}
_ROLE = {"in": "Dbtr", "out": "Cdtr"}


def daily_files(rows: pl.DataFrame, entity: str, message: str, zone: str) -> Iterator[tuple[str, bytes]]:
    """File names and contents: one statement file per local day, one statement per account that had entries.

    Args:
        rows: one institution's rows, as in `schemas.TRANSACTIONS`; `known_at` is when the day's statement was made.
        entity: the institution's name, part of message and statement ids.
        message: camt.053.001.02 or camt.053.001.08.
        zone: the institution's local time.
    """
    local = pl.col("booked_at").dt.convert_time_zone(zone)
    dated = rows.with_columns(
        day=local.dt.strftime("%Y-%m-%d"),
        booked=local.dt.strftime("%Y-%m-%dT%H:%M:%S%:z"),
        cents=cents("amount"),
        balance=cents("balance_after"),
    ).sort("day", "account_id", "booked_at", "transaction_id")
    for (day,), part in dated.group_by("day", maintain_order=True):
        yield f"statement-{day}.xml", _document(part, entity, message, zone, str(day)).encode("utf-8")


def _document(rows: pl.DataFrame, entity: str, message: str, zone: str, day: str) -> str:
    made = rows["known_at"][0].astimezone(ZoneInfo(zone)).isoformat()
    statements = [
        _statement(part.to_dicts(), entity, message, day, made)
        for _, part in rows.group_by("account_id", maintain_order=True)
    ]
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Document xmlns="urn:iso:std:iso:20022:tech:xsd:{message}">\n<BkToCstmrStmt>\n'
        f"<GrpHdr><MsgId>{entity}-{day}</MsgId><CreDtTm>{made}</CreDtTm></GrpHdr>\n"
        + "".join(statements)
        + "</BkToCstmrStmt>\n</Document>\n"
    )


def _statement(entries: list[dict[str, object]], entity: str, message: str, day: str, made: str) -> str:
    first, last = entries[0], entries[-1]
    account, currency = str(first["account_id"]), str(first["currency"])
    opening = _number(first["balance"]) - _signed(first)
    return (
        f"<Stmt><Id>{entity}-{day}-{account[-8:]}</Id><CreDtTm>{made}</CreDtTm>"
        f"<Acct>{_account(account)}<Ccy>{currency}</Ccy></Acct>\n"
        + _balance("OPBD", opening, currency, day)
        + _balance("CLBD", _number(last["balance"]), currency, day)
        + "".join(_entry(entry, message, day) for entry in entries)
        + "</Stmt>\n"
    )


def _balance(kind: str, balance: int, currency: str, day: str) -> str:
    sign = "CRDT" if balance >= 0 else "DBIT"
    return (
        f"<Bal><Tp><CdOrPrtry><Cd>{kind}</Cd></CdOrPrtry></Tp>{_amount(abs(balance), currency)}"
        f"<CdtDbtInd>{sign}</CdtDbtInd><Dt><Dt>{day}</Dt></Dt></Bal>\n"
    )


def _entry(entry: dict[str, object], message: str, day: str) -> str:
    direction = str(entry["direction"])
    is_old = message.endswith(".02")
    status = "<Sts>BOOK</Sts>" if is_old else "<Sts><Cd>BOOK</Cd></Sts>"
    return (
        f"<Ntry><NtryRef>{entry['transaction_id']}</NtryRef>"
        f"{_amount(_number(entry['cents']), str(entry['currency']))}<CdtDbtInd>{_SIGN[direction]}</CdtDbtInd>{status}"
        f"<BookgDt><DtTm>{entry['booked']}</DtTm></BookgDt><ValDt><Dt>{day}</Dt></ValDt>"
        f"<BkTxCd><Prtry><Cd>{entry['channel']}</Cd></Prtry></BkTxCd>"
        f"{_other_side(entry, _ROLE[direction], is_old=is_old)}</Ntry>\n"
    )


def _other_side(entry: dict[str, object], role: str, *, is_old: bool) -> str:
    """The counterparty; none for what the bank itself charges."""
    if entry["counterparty_id"] is None:
        return ""
    name = escape(str(entry["counterparty_id"]))
    party = f"<Nm>{name}</Nm><PstlAdr><Ctry>{entry['country']}</Ctry></PstlAdr>"
    party = party if is_old else f"<Pty>{party}</Pty>"
    return (
        f"<NtryDtls><TxDtls><RltdPties><{role}>{party}</{role}>"
        f"<{role}Acct>{_account(name)}</{role}Acct></RltdPties></TxDtls></NtryDtls>"
    )


def _account(identifier: str) -> str:
    inner = f"<IBAN>{identifier}</IBAN>" if _IBAN.match(identifier) else f"<Othr><Id>{identifier}</Id></Othr>"
    return f"<Id>{inner}</Id>"


def _amount(value_cents: int, currency: str) -> str:
    return f'<Amt Ccy="{currency}">{value_cents // 100}.{value_cents % 100:02d}</Amt>'


def _signed(entry: dict[str, object]) -> int:
    return _number(entry["cents"]) * (1 if entry["direction"] == "in" else -1)


def _number(value: object) -> int:
    return int(str(value))
