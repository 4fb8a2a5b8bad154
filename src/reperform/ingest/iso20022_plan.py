"""Which elements of an ISO 20022 message are read, and what each is called here. One plan serves every version.

Where versions differ, the plan names both structures: `Dbtr/Nm` and `Dbtr/Pty/Nm`, `Sts` and `Sts/Cd`, `ReqdExctnDt`
and `ReqdExctnDt/Dt`. Source: the message definitions of camt.052, 053, 054, pain.001 and pacs.008; element names as
there.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

# Of an entry (Ntry) or of a payment (CdtTrfTxInf).
ENTRY_FIELDS = (
    "NtryRef", "AcctSvcrRef", "status", "amount", "currency", "indicator", "reversal", "booked", "value",
    "proprietary", "domain", "family", "subfamily", "instructed", "instructed_currency", "rate", "charges",
    "charge_parts", "charges_currency",
)  # fmt: skip
# Of one transaction inside an entry (TxDtls), or of a payment. `part_…` may differ from what its entry says.
DETAIL_FIELDS = (
    "part_amount", "part_currency", "part_indicator", "part_proprietary", "part_domain", "part_family",
    "part_subfamily", "part_instructed", "part_instructed_currency", "part_rate", "part_charges", "part_charge_parts",
    "part_charges_currency", "part_servicer", "instruction", "end_to_end", "transaction", "uetr", "mandate",
    "debtor_name", "debtor_account", "debtor_country", "creditor_name", "creditor_account", "creditor_country",
    "reference", "remittance",
)  # fmt: skip
TEXT_FIELDS = (*ENTRY_FIELDS, *DETAIL_FIELDS)


@dataclass(frozen=True)
class Begin:
    """An element that is a thing of its own: a header, a statement, a balance, an entry, a detail."""

    kind: str
    plan: dict[Any, Any]


@dataclass(frozen=True)
class Every:
    """A field that may come several times: all texts count, joined by blanks. Of other fields the first one counts."""

    field: str


# Plans: local name to field. None stands for the element's own text, a pair for its text and its attribute Ccy.
_AMOUNT = ("amount", "currency")


def _code(prefix: str) -> dict[str, Any]:
    return {
        "Prtry": {"Cd": f"{prefix}proprietary"},
        "Domn": {
            "Cd": f"{prefix}domain",
            "Fmly": {"Cd": f"{prefix}family", "SubFmlyCd": f"{prefix}subfamily"},
        },
    }


def _party(role: str) -> dict[str, Any]:
    named = {"Nm": f"{role}_name", "PstlAdr": {"Ctry": f"{role}_country"}, "CtryOfRes": f"{role}_country"}
    return {**named, "Pty": named}  # from version 8 of camt on a Pty stands between


def _account(name: str) -> dict[str, Any]:
    # Version 1 knows BBAN, UPIC and PrtryAcct; later ones know Othr.
    return {"Id": {"IBAN": name, "BBAN": name, "UPIC": name, "PrtryAcct": {"Id": name}, "Othr": {"Id": name}}}


def _charges(prefix: str) -> dict[str, Any]:
    part = (Every(f"{prefix}charge_parts"), f"{prefix}charges_currency")
    # Up to version 3 each charge is a Chrgs of its own; later ones have one Chrgs with a Rcrd for each.
    total = (f"{prefix}charges", f"{prefix}charges_currency")
    return {"TtlChrgsAndTaxAmt": total, "Amt": part, "Rcrd": {"Amt": part}}


def _instructed(prefix: str) -> dict[str, Any]:
    rate = {"XchgRate": f"{prefix}rate"}
    return {"Amt": (f"{prefix}instructed", f"{prefix}instructed_currency"), "CcyXchg": rate}


_REMITTANCE = {
    "Ustrd": Every("remittance"),
    "Strd": {"CdtrRefInf": {"Ref": "reference", "CdtrRef": "reference"}},  # CdtrRef in version 1
}
_DETAIL = {
    "Amt": ("part_amount", "part_currency"),
    "CdtDbtInd": "part_indicator",
    "AmtDtls": {
        "InstdAmt": _instructed("part_"),
        "TxAmt": {"Amt": ("part_amount", "part_currency"), "CcyXchg": {"XchgRate": "part_rate"}},
        "CntrValAmt": {"CcyXchg": {"XchgRate": "part_rate"}},
    },
    "BkTxCd": _code("part_"),
    "Chrgs": _charges("part_"),
    "Refs": {
        "AcctSvcrRef": "part_servicer",
        "InstrId": "instruction",
        "EndToEndId": "end_to_end",
        "TxId": "transaction",
        "UETR": "uetr",
        "MndtId": "mandate",
    },
    "RltdPties": {
        "Dbtr": _party("debtor"),
        "DbtrAcct": _account("debtor_account"),
        "Cdtr": _party("creditor"),
        "CdtrAcct": _account("creditor_account"),
    },
    "RmtInf": _REMITTANCE,
}
_ENTRY = {
    "NtryRef": "NtryRef",
    "AcctSvcrRef": "AcctSvcrRef",
    "Amt": _AMOUNT,
    "CdtDbtInd": "indicator",
    "RvslInd": "reversal",
    "Sts": {None: "status", "Cd": "status", "Prtry": "status"},
    "BookgDt": {"DtTm": "booked", "Dt": "booked"},
    "ValDt": {"DtTm": "value", "Dt": "value"},
    "BkTxCd": _code(""),
    "AmtDtls": {
        "InstdAmt": _instructed(""),
        "TxAmt": {"CcyXchg": {"XchgRate": "rate"}},
        "CntrValAmt": {"CcyXchg": {"XchgRate": "rate"}},
    },
    "Chrgs": _charges(""),
    "NtryDtls": {"TxDtls": Begin("detail", _DETAIL)},
    "TxDtls": Begin("detail", _DETAIL),  # version 1 has no NtryDtls around them
}
_BALANCE = {
    "Tp": {"Cd": "code", "CdOrPrtry": {"Cd": "code"}},
    "Amt": _AMOUNT,
    "CdtDbtInd": "indicator",
}
_PAGES = {"PgNb": "page", "LastPgInd": "is_last_page"}
_STATEMENT = {
    "Id": "name",
    "StmtPgntn": _PAGES,
    "RptPgntn": _PAGES,
    "NtfctnPgntn": _PAGES,
    "ElctrncSeqNb": "electronic_number",
    "LglSeqNb": "legal_number",
    "CreDtTm": "created",
    "Acct": _account("account"),
    "Bal": Begin("balance", _BALANCE),
    "TxsSummry": {"TtlNtries": {"NbOfNtries": "told_entries"}},
    "Ntry": Begin("record", _ENTRY),
}
_HEADER = {
    "MsgId": "message",
    "CreDtTm": "known",
    "MsgPgntn": _PAGES,
    "NbOfTxs": "told_entries",
    "CtrlSum": "told_sum",
}
_KIND = {"SvcLvl": {"Cd": "domain", "Prtry": "domain"}, "LclInstrm": {"Cd": "family", "Prtry": "family"}}
_PAYMENT = {
    "PmtId": {
        "InstrId": "instruction",
        "EndToEndId": "end_to_end",
        "TxId": "transaction",
        "UETR": "uetr",
    },
    "PmtTpInf": _KIND,
    "Dbtr": _party("debtor"),
    "DbtrAcct": _account("debtor_account"),
    "Cdtr": _party("creditor"),
    "CdtrAcct": _account("creditor_account"),
    "RmtInf": _REMITTANCE,
}
_INITIATED = {
    **_PAYMENT,
    "Amt": {"InstdAmt": _AMOUNT, "EqvtAmt": {"Amt": _AMOUNT, "CcyOfTrf": "instructed_currency"}},
    "XchgRateInf": {"XchgRate": "rate"},
}
_SETTLED = {
    **_PAYMENT,
    "IntrBkSttlmAmt": _AMOUNT,
    "IntrBkSttlmDt": "booked",
    "InstdAmt": ("instructed", "instructed_currency"),
    "XchgRate": "rate",
    "ChrgsInf": {"Amt": (Every("charge_parts"), "charges_currency")},
    "MndtRltdInf": {"MndtId": "mandate"},
}
_INSTRUCTION = {
    "PmtInfId": "name",
    "NbOfTxs": "told_entries",
    "CtrlSum": "told_sum",
    "PmtTpInf": _KIND,
    "ReqdExctnDt": {None: "booked", "Dt": "booked", "DtTm": "booked"},  # a date alone up to version 7
    "Dbtr": _party("debtor"),
    "DbtrAcct": _account("account"),
    "CdtTrfTxInf": Begin("record", _INITIATED),
}
_SETTLED_HEADER = {
    **_HEADER,
    "IntrBkSttlmDt": "booked",
    "TtlIntrBkSttlmAmt": ("total", "total_currency"),
    "PmtTpInf": _KIND,
}
_HEADED = {"GrpHdr": Begin("header", _HEADER)}
_CAMT = {**_HEADED, **dict.fromkeys(("Stmt", "Rpt", "Ntfctn"), Begin("group", _STATEMENT))}
_PACS = Begin("group", {"GrpHdr": Begin("header", _SETTLED_HEADER), "CdtTrfTxInf": Begin("record", _SETTLED)})
_PAIN = {**_HEADED, "PmtInf": Begin("group", _INSTRUCTION)}
# By family: the record's element, and the plan of whatever stands in the Document.
RECORDS = {"camt": "Ntry", "pain": "CdtTrfTxInf", "pacs": "CdtTrfTxInf"}
_MESSAGES: dict[str, Any] = {"camt": _CAMT, "pain": _PAIN, "pacs": _PACS}
APPLICATION_HEADER = Begin(
    "application_header",
    {"BizMsgIdr": "business_message", "MsgDefIdr": "definition", "PssblDplct": "possible_duplicate"},
)
# What is allowed inside: messages in their versions. Up to version 1 of pain.001 and pacs.008 the content's element has
# another name and structure, and no bank sends them any more.
VERSIONS = {
    "camt.052.001": range(1, 15),
    "camt.053.001": range(1, 15),
    "camt.054.001": range(1, 15),
    "pain.001.001": range(3, 14),
    "pacs.008.001": range(2, 15),
}


@dataclass
class Node:
    """An element of a compiled plan.

    Args:
        children: by their expanded names, `namespace name`.
        local: the same by their local names.
        text: the field for the element's text.
        is_every: all texts of that field count.
        currency: the field for the attribute Ccy.
        begins: what begins here.
        name: the element's local name.
    """

    children: dict[str, "Node"] = field(default_factory=dict)
    local: dict[str, "Node"] = field(default_factory=dict)
    text: str | None = None
    is_every: bool = False
    currency: str | None = None
    begins: str | None = None
    name: str = ""


def compiled(step: Any, space: str, name: str = "") -> Node:
    """A plan as nodes, for elements of one namespace."""
    node = Node(name=name)
    if isinstance(step, Begin):
        node.begins, step = step.kind, step.plan
    if isinstance(step, dict):
        node.text = step.get(None)
        node.local = {tag: compiled(inner, space, tag) for tag, inner in step.items() if tag is not None}
        node.children = {f"{space} {tag}": child for tag, child in node.local.items()}
        return node
    text, node.currency = step if isinstance(step, tuple) else (step, None)
    node.is_every = isinstance(text, Every)
    node.text = text.field if isinstance(text, Every) else text
    return node


@lru_cache(maxsize=32)
def document_plan(family: str, space: str) -> Node:
    """The nodes below a Document: its one child, of whatever name, holds the message."""
    return compiled(_MESSAGES[family], space)


def supported() -> str:
    """The messages and versions that are read, in words."""
    return ", ".join(f"{name}.{versions[0]:02d} to .{versions[-1]:02d}" for name, versions in VERSIONS.items())
