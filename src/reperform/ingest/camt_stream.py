"""Stream ISO 20022 bank-to-customer messages (camt.052, 053, 054) into text fields, with the memory of one entry.

Any version is read by its namespace. Document type definitions are refused; entities and the network stay untouched.
Source: ISO 20022, Bank-to-Customer Cash Management, Message Definition Report; element names as there.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from lxml import etree

from reperform.ingest.source import UnreadableFileError

NAMESPACE = re.compile(r"urn:iso:std:iso:20022:tech:xsd:camt\.05[234]\.001\.\d\d")
OPENING = ("OPBD", "PRCD")  # opening booked, or previously closed booked
CLOSING = ("CLBD",)
FIELDS = (
    "statement", "transaction_id", "status", "amount", "currency", "indicator", "booked", "known", "account",
    "counterparty", "country", "channel",
)  # fmt: skip
Row = tuple[int | str | None, ...]  # in the order of FIELDS
Fields = dict[str, Any]
_PEEK_BYTES = 1024
_CONTAINERS = ("Stmt", "Rpt", "Ntfctn")
_SAFE = {
    "resolve_entities": False,
    "no_network": True,
    "load_dtd": False,
    "huge_tree": False,
    "remove_comments": True,
    "remove_pis": True,
}

# Plans: local name to field. None stands for the element's own text, a pair for its text and its currency, a list for
# parts that repeat.
_AMOUNT = ("amount", "currency")
_CODE = {"Prtry": {"Cd": "proprietary"}, "Domn": {"Cd": "domain", "Fmly": {"Cd": "family", "SubFmlyCd": "subfamily"}}}


def _party(role: str) -> dict[str, Any]:
    named = {"Nm": f"{role}_name", "PstlAdr": {"Ctry": f"{role}_country"}, "CtryOfRes": f"{role}_country"}
    return {**named, "Pty": named}  # from version 8 on a Pty stands between


def _account(role: str) -> dict[str, Any]:
    name = f"{role}_account"
    # Version 1 knows BBAN, UPIC and PrtryAcct; later ones know Othr.
    return {"Id": {"IBAN": name, "BBAN": name, "UPIC": name, "PrtryAcct": {"Id": name}, "Othr": {"Id": name}}}


_DETAILS: dict[Any, Any] = {
    "Amt": _AMOUNT,
    "AmtDtls": {"TxAmt": {"Amt": _AMOUNT}},
    "CdtDbtInd": "indicator",
    "BkTxCd": _CODE,
    "RltdPties": {
        "Dbtr": _party("debtor"),
        "DbtrAcct": _account("debtor"),
        "Cdtr": _party("creditor"),
        "CdtrAcct": _account("creditor"),
    },
}
_ENTRY: dict[Any, Any] = {
    "NtryRef": "NtryRef",
    "AcctSvcrRef": "AcctSvcrRef",
    "Amt": _AMOUNT,
    "CdtDbtInd": "indicator",
    "Sts": {None: "status", "Cd": "status", "Prtry": "status"},
    "BookgDt": {"DtTm": "booked", "Dt": "booked"},
    "BkTxCd": _CODE,
    "NtryDtls": {"TxDtls": [_DETAILS]},
    "TxDtls": [_DETAILS],  # version 1 has no NtryDtls around them
}
_BALANCE: dict[Any, Any] = {
    "Tp": {"Cd": "code", "CdOrPrtry": {"Cd": "code"}},
    "Amt": _AMOUNT,
    "CdtDbtInd": "indicator",
}


@dataclass
class Statement:
    """A statement (or report, or notification) as it is read.

    Args:
        number: its place in the file, from 0.
        message: identification of the message that it came in.
        known: when the message was made.
        name: its identification.
        account: whose it is.
        line: where it begins.
        opening: booked balance before its entries, by currency.
        closing: booked balance after them, by currency.
        entries: how many it holds.
        split: entries that several transactions make up.
        unsplit: lines of entries whose details do not add up to them.
    """

    number: int
    message: str = ""
    known: str | None = None
    name: str = ""
    account: str | None = None
    line: int = 0
    opening: dict[str, Decimal] = field(default_factory=dict)
    closing: dict[str, Decimal] = field(default_factory=dict)
    entries: int = 0
    split: int = 0
    unsplit: list[int] = field(default_factory=list)


def stream(
    path: Path, where: str, identifiers: list[str], namespaces: list[str], done: Callable[[Statement], None]
) -> Iterator[Row]:
    """The transactions of a file, one after the other.

    Args:
        path: the file.
        where: its name below the raw folder.
        identifiers: references of an entry in the order in which they serve as its transaction's id.
        namespaces: allowed beside the standard's own.
        done: called with each statement after its last entry.

    Raises:
        UnreadableFileError: for an empty or malformed file, a document type definition, or another kind of document.
    """
    space = _checked_namespace(path, where, namespaces)
    seen = 0

    def counted(statement: Statement) -> None:
        nonlocal seen
        seen += 1
        done(statement)

    try:
        yield from _transactions(path, space, identifiers, counted)
    except etree.XMLSyntaxError as error:
        raise _malformed(where, error) from error
    if not seen:
        raise UnreadableFileError(
            where, "file_no_statement", "the message holds no statement.",
            expected="at least one Stmt, Rpt or Ntfctn", got="none", fix="ask the sender for the file again",
        )  # fmt: skip


def _checked_namespace(path: Path, where: str, namespaces: list[str]) -> str:
    """The namespace of a file whose root is a camt document without a document type definition."""
    if not path.stat().st_size:
        raise UnreadableFileError(
            where, "file_empty", "the file is empty.",
            expected="an ISO 20022 document", got="0 bytes", fix="ask the sender for the file again",
        )  # fmt: skip
    root = _root(path, where)
    if root.getroottree().docinfo.doctype:
        raise UnreadableFileError(
            where, "file_doctype", "the file has a document type definition.",
            expected="a document without DOCTYPE, as ISO 20022 prescribes", got=root.getroottree().docinfo.doctype,
            fix="do not load it: entities can read files and fill the memory; ask the sender for a clean file",
        )  # fmt: skip
    name = etree.QName(root)
    if name.localname != "Document" or not (NAMESPACE.fullmatch(name.namespace or "") or name.namespace in namespaces):
        raise UnreadableFileError(
            where, "file_not_camt", "the file is no bank-to-customer message.",
            expected="Document in a namespace urn:iso:std:iso:20022:tech:xsd:camt.052, 053 or 054",
            got=f"{name.localname} in {name.namespace}",
            fix="take the file out of the source, or allow its namespace by `namespaces` in conf/ingest/",
        )  # fmt: skip
    return str(name.namespace)


def _root(path: Path, where: str) -> Any:
    """The first element, read from as few bytes as it takes."""
    parser = etree.XMLPullParser(events=("start",), **_SAFE)
    try:
        with path.open("rb") as stream_of_bytes:
            while piece := stream_of_bytes.read(_PEEK_BYTES):
                parser.feed(piece)
                for _, root in parser.read_events():
                    return root
        parser.close()
    except etree.XMLSyntaxError as error:
        raise _malformed(where, error) from error
    raise UnreadableFileError(where, "file_malformed", "the file holds no element.", expected="a Document", got="none")


def _malformed(where: str, error: etree.XMLSyntaxError) -> UnreadableFileError:
    return UnreadableFileError(
        where, "file_malformed", "the XML is malformed or cut off.",
        expected="well-formed XML to its last line", got=str(error.msg), place=f"line {error.lineno}",
        fix="ask the sender for the file again",
    )  # fmt: skip


def _transactions(path: Path, space: str, identifiers: list[str], done: Callable[[Statement], None]) -> Iterator[Row]:
    entry_plan, balance_plan, account_plan = (
        _in_namespace(plan, space) for plan in (_ENTRY, _BALANCE, _account("own"))
    )
    tag = {
        name: f"{{{space}}}{name}" for name in ("Ntry", "Bal", "Acct", "GrpHdr", "Id", "MsgId", "CreDtTm", *_CONTAINERS)
    }
    containers = {tag[name] for name in _CONTAINERS}
    wanted = (tag["Ntry"], tag["Bal"], tag["Acct"], tag["GrpHdr"], *containers)
    statement = Statement(0)
    for _, element in etree.iterparse(str(path), events=("end",), tag=wanted, **_SAFE):
        kind, parent = element.tag, element.getparent()
        if kind == tag["Ntry"]:
            statement.entries += 1
            yield from _rows(_collected(element, entry_plan), statement, identifiers, element.sourceline)
        elif kind == tag["Bal"]:
            _add_balance(statement, _collected(element, balance_plan))
        elif kind == tag["Acct"] and parent.tag in containers:
            statement.account = _collected(element, account_plan).get("own_account")
            statement.name, statement.line = parent.findtext(tag["Id"]) or "", parent.sourceline
        elif kind == tag["GrpHdr"]:
            statement.message, statement.known = element.findtext(tag["MsgId"]) or "", element.findtext(tag["CreDtTm"])
        elif kind in containers:
            done(statement)
            statement = Statement(statement.number + 1, statement.message, statement.known)
        if kind in (tag["Ntry"], *containers):
            _forget(element, parent)


def _forget(element: Any, parent: Any) -> None:
    """Cut off what has been read, so that the tree never grows beyond one entry."""
    element.clear(keep_tail=False)
    while (earlier := element.getprevious()) is not None and earlier.tag == element.tag:
        parent.remove(earlier)


def _in_namespace(plan: Mapping[Any, Any], space: str) -> dict[Any, Any]:
    return {tag if tag is None else f"{{{space}}}{tag}": _step_in(step, space) for tag, step in plan.items()}


def _step_in(step: Any, space: str) -> Any:
    if isinstance(step, dict):
        return _in_namespace(step, space)
    return [_in_namespace(step[0], space)] if isinstance(step, list) else step


def _collected(element: Any, plan: Mapping[Any, Any], fields: Fields | None = None) -> Fields:
    """The fields of an element by a plan: one walk over its children, the first text of each field counts."""
    fields = {} if fields is None else fields
    for child in element:
        step = plan.get(child.tag)
        if step is None:
            continue
        if isinstance(step, str):
            fields.setdefault(step, child.text)
        elif isinstance(step, tuple):
            fields.setdefault(step[0], child.text)
            fields.setdefault(step[1], child.get("Ccy"))
        elif isinstance(step, list):
            fields.setdefault("details", []).append(_collected(child, step[0]))
        else:
            _collected(child, step, fields)
            if None in step and child.text and child.text.strip():
                fields.setdefault(step[None], child.text)
    return fields


def _add_balance(statement: Statement, balance: Fields) -> None:
    amount, code, currency = _decimal(balance.get("amount")), balance.get("code"), balance.get("currency") or ""
    if amount is None:
        return
    signed = amount if balance.get("indicator") == "CRDT" else -amount
    if code == OPENING[0]:
        statement.opening[currency] = signed
    elif code in OPENING:
        statement.opening.setdefault(currency, signed)
    elif code in CLOSING:
        statement.closing[currency] = signed


def _rows(entry: Fields, statement: Statement, identifiers: list[str], line: int) -> Iterator[Row]:
    """An entry as one transaction; as several where its details add up to it (a batch that was booked in one sum)."""
    given = next((entry[name] for name in identifiers if entry.get(name)), None)
    name = (given or f"{statement.message}/{statement.name}/{statement.entries}").strip()
    details = entry.get("details", [])
    if len(details) <= 1:
        yield _row(name, entry, details[0] if details else {}, statement)
    elif _adds_up(entry, details):
        statement.split += 1
        for place, detail in enumerate(details, start=1):
            own = {**entry, "amount": detail["amount"], "indicator": detail.get("indicator") or entry.get("indicator")}
            yield _row(f"{name}/{place}", own, detail, statement)
    else:
        # Amounts of the parts are missing or differ: the booked sum is certain, its parts are not.
        statement.unsplit.append(line)
        yield _row(name, entry, {}, statement)


def _adds_up(entry: Fields, details: list[Fields]) -> bool:
    total = _decimal(entry.get("amount"))
    parts = [_decimal(detail.get("amount")) for detail in details]
    if total is None or any(part is None for part in parts):
        return False
    if any(detail.get("currency") != entry.get("currency") for detail in details):
        return False
    same = [detail.get("indicator") in (None, entry.get("indicator")) for detail in details]
    return (
        sum(part if is_same else -part for part, is_same in zip(parts, same, strict=True) if part is not None) == total
    )


def _row(name: str, entry: Fields, detail: Fields, statement: Statement) -> Row:
    indicator = entry.get("indicator")
    # The other side of a credit is who paid, of a debit who was paid. A reversal already shows its own side here.
    role = "debtor" if indicator == "CRDT" else "creditor"
    return (
        statement.number,
        name,
        entry.get("status"),
        entry.get("amount"),
        entry.get("currency"),
        indicator,
        entry.get("booked"),
        statement.known,
        statement.account,
        detail.get(f"{role}_account") or detail.get(f"{role}_name"),
        detail.get(f"{role}_country"),
        _channel(entry) or _channel(detail),
    )


def _channel(fields: Fields) -> str | None:
    if fields.get("proprietary"):
        return str(fields["proprietary"])
    parts = [fields[name] for name in ("domain", "family", "subfamily") if fields.get(name)]
    return "-".join(parts) or None


def _decimal(text: str | None) -> Decimal | None:
    try:
        number = Decimal((text or "").strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
