"""The draft for ISO 20022 messages and XBRL filings: the namespace decides."""

import re
from collections import Counter
from pathlib import Path

from reperform.errors import ReperformError
from reperform.sources import sample
from reperform.sources.lines import TODO, files_alike, said, scalar

ISO_20022 = re.compile(r"urn:iso:std:iso:20022:tech:xsd:([a-z]{4}\.\d{3}\.\d{3}\.\d{2})")
XBRL = ("http://www.xbrl.org/2003/instance", "http://www.xbrl.org/2013/inlineXBRL")
_MOMENT = re.compile(r"<(?:\w+:)?(?:DtTm|CreDtTm)>([^<]{1,40})<")
_OFFSET = re.compile(r"(?:Z|[+-]\d{2}:\d{2})$")
_CURRENCY = re.compile(r"""\bCcy=["']([A-Z]{3})["']""")
_DAY = re.compile(r"<(?:\w+:)?Dt>\d{4}-\d{2}-\d{2}<")


def currency(start: sample.Head) -> str | None:
    """The currency that most amounts of a message are in."""
    found = Counter(_CURRENCY.findall(sample.decoded(start).content))
    return found.most_common(1)[0][0] if found else None


def source(path: Path, start: sample.Head) -> list[str]:
    """A source for a message or a filing, as lines of a map.

    Raises:
        ReperformError: for any other XML.
    """
    text = sample.decoded(start).content
    message = ISO_20022.search(text)
    pattern, why = files_alike(path)
    files = [*(said(why, 4) if why else []), f"    files: {scalar(pattern)}"]
    folder = re.sub(r"[^A-Za-z0-9_-]+", "-", path.resolve().parent.name).strip("-") or "mine"
    if message is not None:
        references = [name for name in ("NtryRef", "AcctSvcrRef") if re.search(rf"<(?:\w+:)?{name}>", text)]
        lines = [
            *said(f"{message[1]}: the root's namespace says so", 2),
            "  statements:",
            "    kind: iso20022",
            *files,
            *said("the institution that reports; taken from the folder's name, change it at will", 4),
            f"    entity_id: {scalar(folder)}",
        ]
        if references:
            lines += said(f"references that entries of the sample carry: {', '.join(references)}", 4)
            lines.append(f"    identifiers: {scalar(references)}")
        if _DAY.search(text) or not all(_OFFSET.search(moment) for moment in _MOMENT.findall(text)):
            asks = "some days and times carry no offset: in which zone do these clocks run? such as Europe/Paris"
            lines += [*said(asks, 4), f"    time_zone: {TODO}"]
        accounts = "the statements' accounts are the accounts; take this out if there is a list of them"
        return [*lines, *said(accounts, 4), "    gives_accounts: true"]
    if any(namespace in text for namespace in XBRL):
        asks = "the log that says when each filing was received: conf/ingest/demo.yaml shows one, ferc.yaml another"
        return [
            *said("an XBRL instance: the root's namespace says so", 2),
            "  filings:",
            "    kind: xbrl",
            *files,
            *said(asks, 4),
            f"    receipts: {{csv: {TODO}}}",
        ]
    raise ReperformError(
        "The XML is of no kind that is read here.",
        expected="an ISO 20022 message or an XBRL instance, by its namespace",
        got=f"a document that begins {text[:80]!r}",
        where=str(path),
        fix="convert it to delimited text, or name its namespace in a source of kind iso20022 (`namespaces`)",
    )
