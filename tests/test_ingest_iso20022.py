"""ISO 20022 statements of any version become transactions, and their balances are held against their entries."""

import json
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform.errors import ReperformError
from reperform.ingest import iso20022
from reperform.ingest.camt_stream import Statement, stream
from reperform.ingest.source import SourceResult

NAMESPACE = "urn:iso:std:iso:20022:tech:xsd:{}"
SOURCE = {"kind": "iso20022", "files": "*.xml", "entity_id": "castle", "time_zone": "Europe/Paris"}


def entry(name: str, amount: str, sign: str = "CRDT", **parts: str) -> str:
    """One entry in the structure of version 8."""
    given = {
        "status": "<Sts><Cd>BOOK</Cd></Sts>",
        "booked": "<BookgDt><DtTm>2025-04-01T12:00:00+02:00</DtTm></BookgDt>",
        "more": "",
        "details": "",
    } | parts
    return (
        f'<Ntry><NtryRef>{name}</NtryRef><Amt Ccy="EUR">{amount}</Amt><CdtDbtInd>{sign}</CdtDbtInd>{given["status"]}'
        f"{given['booked']}{given['more']}<NtryDtls>{given['details']}</NtryDtls></Ntry>"
    )


def balance(code: str, amount: str, currency: str = "EUR") -> str:
    sign = "DBIT" if amount.startswith("-") else "CRDT"
    return (
        f'<Bal><Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp><Amt Ccy="{currency}">{amount.lstrip("-")}</Amt>'
        f"<CdtDbtInd>{sign}</CdtDbtInd><Dt><Dt>2025-04-01</Dt></Dt></Bal>"
    )


def document(*content: str, message: str = "camt.053.001.08", account: str = "<IBAN>FR76A</IBAN>") -> str:
    container, body = {
        "052": ("BkToCstmrAcctRpt", "Rpt"),
        "053": ("BkToCstmrStmt", "Stmt"),
        "054": ("BkToCstmrDbtCdtNtfctn", "Ntfctn"),
    }[message[5:8]]
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Document xmlns="{NAMESPACE.format(message)}"><{container}>'
        "<GrpHdr><MsgId>M1</MsgId><CreDtTm>2025-04-01T23:30:00+02:00</CreDtTm></GrpHdr>\n"
        f"<{body}><Id>S1</Id><Acct><Id>{account}</Id></Acct>{''.join(content)}</{body}></{container}></Document>"
    )


def read(folder: Path, text: str | bytes, **changed: Any) -> SourceResult:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "a.xml").write_bytes(content)
    return iso20022.read("castle", SOURCE | changed, folder, processes=1)


def party(role: str, account: str, version: int = 8) -> str:
    inner = "<Nm>Jo</Nm><PstlAdr><Ctry>DE</Ctry></PstlAdr>"
    name = f"<Pty>{inner}</Pty>" if version >= 8 else inner
    return f"<{role}>{name}</{role}><{role}Acct><Id><Othr><Id>{account}</Id></Othr></Id></{role}Acct>"


@pytest.mark.parametrize("version", [2, 3, 4, 6, 8, 10, 13])
def test_an_entry_is_read_whatever_the_version(version: int, tmp_path: Path) -> None:
    status = "<Sts><Cd>BOOK</Cd></Sts>" if version >= 4 else "<Sts>BOOK</Sts>"
    details = f"<TxDtls><RltdPties>{party('Cdtr', 'X9', version)}</RltdPties></TxDtls>"
    channel = "<BkTxCd><Prtry><Cd>card</Cd></Prtry></BkTxCd>"
    one = entry("T1", "12.50", "DBIT", status=status, details=details, more=channel)
    got = read(tmp_path, document(one, message=f"camt.053.001.{version:02d}"))
    (row,) = got.tables["transactions"].drop("__file", "__record").to_dicts()
    assert row == {
        "transaction_id": "T1",
        "booked_at": datetime(2025, 4, 1, 10, 0, tzinfo=UTC),
        "known_at": datetime(2025, 4, 1, 21, 30, tzinfo=UTC),
        "account_id": "FR76A",
        "counterparty_id": "X9",
        "entity_id": "castle",
        "direction": "out",
        "amount": 12.5,
        "currency": "EUR",
        "amount_base": None,
        "channel": "card",
        "country": "DE",
        "latitude": None,
        "longitude": None,
        "balance_after": None,
        "source_file": "a.xml",
        "source_record": 1,
    }


@pytest.mark.parametrize("message", ["camt.052.001.08", "camt.053.001.08", "camt.054.001.08"])
def test_reports_statements_and_notifications_are_read_alike(message: str, tmp_path: Path) -> None:
    got = read(tmp_path, document(entry("T1", "1.00"), message=message))
    assert got.tables["transactions"]["transaction_id"].to_list() == ["T1"]


def test_the_other_side_of_a_credit_is_who_paid(tmp_path: Path) -> None:
    both = f"<TxDtls><RltdPties>{party('Dbtr', 'PAYER')}{party('Cdtr', 'PAYEE')}</RltdPties></TxDtls>"
    text = document(entry("T1", "1.00", details=both), entry("T2", "1.00", "DBIT", details=both))
    assert read(tmp_path, text).tables["transactions"]["counterparty_id"].to_list() == ["PAYER", "PAYEE"]


def test_a_date_alone_is_its_midnight_in_the_sources_zone(tmp_path: Path) -> None:
    booked = ("<BookgDt><Dt>2025-04-01</Dt></BookgDt>", "<BookgDt><Dt>2025-04-01+02:00</Dt></BookgDt>")
    text = document(*(entry(f"T{i}", "1.00", booked=one) for i, one in enumerate(booked)))
    expected = datetime(2025, 3, 31, 22, 0, tzinfo=UTC)
    assert read(tmp_path, text).tables["transactions"]["booked_at"].to_list() == [expected, expected]


def test_balances_run_from_opening_to_closing(tmp_path: Path) -> None:
    entries = [entry("T1", "100.10"), entry("T2", "0.30", "DBIT"), entry("T3", "200.00", "DBIT")]
    got = read(tmp_path, document(balance("OPBD", "10.00"), balance("CLBD", "-90.20"), *entries))
    assert got.tables["transactions"]["balance_after"].to_list() == [110.1, 109.8, -90.2]
    assert got.tables["messages"].is_empty()
    assert got.counts["statements_with_both_balances"] == 1
    assert got.counts["statements_with_broken_balance"] == 0


def test_a_statement_that_does_not_add_up_is_told_and_gives_no_balances(tmp_path: Path) -> None:
    got = read(tmp_path, document(balance("OPBD", "10.00"), balance("CLBD", "20.00"), entry("T1", "9.99")))
    (message,) = got.tables["messages"].to_dicts()
    assert (message["code"], message["severity"]) == (iso20022.BALANCE_BROKEN, "inconsistency")
    assert message["filing_id"] == "a.xml#S1"
    assert "by 0.01" in message["text"]
    assert got.tables["transactions"]["balance_after"].to_list() == [None]
    assert got.counts["statements_with_broken_balance"] == 1


def test_balances_in_two_currencies_are_not_compared(tmp_path: Path) -> None:
    got = read(tmp_path, document(balance("OPBD", "10.00"), balance("CLBD", "99.00", "SEK"), entry("T1", "9.99")))
    assert got.tables["messages"].is_empty()
    assert got.counts["statements_with_both_balances"] == 0


def test_a_reversal_moves_the_balance_the_other_way(tmp_path: Path) -> None:
    # CdtDbtInd of a reversal is the side that it is booked on; RvslInd only says why.
    reversal = entry("T2", "5.00", "DBIT", more="<RvslInd>true</RvslInd>")
    text = document(balance("PRCD", "0.00"), balance("CLBD", "0.00"), entry("T1", "5.00"), reversal)
    got = read(tmp_path, text)
    assert got.tables["transactions"]["direction"].to_list() == ["in", "out"]
    assert got.tables["messages"].is_empty()


def test_a_batch_whose_details_add_up_is_several_transactions(tmp_path: Path) -> None:
    details = "".join(
        f'<TxDtls><Amt Ccy="EUR">{amount}</Amt><RltdPties>{party("Dbtr", account)}</RltdPties></TxDtls>'
        for amount, account in (("1.25", "P1"), ("2.50", "P2"))
    )
    text = document(balance("OPBD", "0.00"), balance("CLBD", "3.75"), entry("T1", "3.75", details=details))
    got = read(tmp_path, text).tables["transactions"]
    assert got["transaction_id"].to_list() == ["T1/1", "T1/2"]
    assert got["amount"].to_list() == [1.25, 2.5]
    assert got["counterparty_id"].to_list() == ["P1", "P2"]
    assert got["balance_after"].to_list() == [1.25, 3.75]


def test_a_batch_whose_details_do_not_add_up_is_one_transaction_and_told(tmp_path: Path) -> None:
    details = '<TxDtls><Amt Ccy="EUR">1.00</Amt></TxDtls><TxDtls><Amt Ccy="EUR">1.00</Amt></TxDtls>'
    got = read(tmp_path, document(entry("T1", "3.75", details=details)))
    assert got.tables["transactions"]["amount"].to_list() == [3.75]
    assert got.tables["messages"]["code"].to_list() == [iso20022.DETAILS_BROKEN]


def test_pending_entries_are_kept_out_and_told(tmp_path: Path) -> None:
    pending = entry("T1", "5.00", status="<Sts><Cd>PDNG</Cd></Sts>")
    text = document(balance("OPBD", "0.00"), balance("CLBD", "1.00"), pending, entry("T2", "1.00"))
    got = read(tmp_path, text)
    assert got.tables["transactions"]["transaction_id"].to_list() == ["T2"]
    assert got.quarantine.select("rule", "value", "source_record").rows() == [(iso20022.NOT_BOOKED, "PDNG", 1)]
    assert got.tables["messages"].is_empty()


@pytest.mark.parametrize(
    ("bad", "rule", "column"),
    [
        (entry("T1", "12,50"), "bad_number", "amount"),
        (entry("T1", "1.00", "BOTH"), "unknown_value", "direction"),
        (entry("T1", "1.00", booked="<BookgDt><DtTm>yesterday</DtTm></BookgDt>"), "bad_time", "booked_at"),
        (entry("T1", "1.00", booked=""), "missing_value", "booked_at"),
        (entry("T1", "1.00").replace("EUR", "EURO"), "unknown_currency", "currency"),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_with_its_reason(
    bad: str, rule: str, column: str, tmp_path: Path
) -> None:
    got = read(tmp_path, document(bad, entry("T2", "1.00")))
    assert got.tables["transactions"]["transaction_id"].to_list() == ["T2"]
    assert got.quarantine.select("rule", "column", "source_record").rows() == [(rule, column, 1)]
    assert json.loads(got.quarantine["row"][0])["transaction_id"] == "T1"


def test_an_entry_without_reference_is_named_by_its_place(tmp_path: Path) -> None:
    text = document(entry("T1", "1.00").replace("<NtryRef>T1</NtryRef>", ""), entry("T2", "1.00"))
    assert read(tmp_path, text).tables["transactions"]["transaction_id"].to_list() == ["M1/S1/1", "T2"]


def test_the_servicers_reference_can_be_the_identifier(tmp_path: Path) -> None:
    one = entry("T1", "1.00", more="<AcctSvcrRef>R7</AcctSvcrRef>")
    got = read(tmp_path, document(one), identifiers=["AcctSvcrRef", "NtryRef"])
    assert got.tables["transactions"]["transaction_id"].to_list() == ["R7"]


def test_statements_can_stand_for_the_table_of_accounts(tmp_path: Path) -> None:
    got = read(tmp_path, document(entry("T1", "1.00"), entry("T2", "1.00")), gives_accounts=True)
    assert got.tables["accounts"].select("account_id", "entity_id").rows() == [("FR76A", "castle")]


WELL = document(entry("T1", "1.00"))
BOMB = '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "file_empty"),
        ("no xml", "file_malformed"),
        (WELL[:-30], "file_malformed"),
        (WELL.replace("</Ntry>", "</Entry>"), "file_malformed"),
        (WELL.replace("<Document", BOMB + "<Document"), "file_doctype"),
        (WELL.replace("<Document", '<!DOCTYPE d SYSTEM "file:///etc/passwd"><Document'), "file_doctype"),
        (WELL.replace("camt.053.001.08", "camt.053.001.99"), "file_unknown_message"),
        (WELL.replace("camt.053.001.08", "pain.008.001.02"), "file_unknown_message"),
        (WELL.replace("Document", "Dokument"), "file_unknown_message"),
        (WELL[: WELL.index("<Stmt>")] + "</BkToCstmrStmt></Document>", "file_no_statement"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(text: str, rule: str, tmp_path: Path) -> None:
    got = read(tmp_path, text)
    (error,) = got.unreadable
    assert (error.path, error.rule) == ("a.xml", rule)
    assert "what to do" in str(error)
    assert got.tables["transactions"].is_empty()
    assert [file.records for file in got.files] == [0]


def test_malformed_xml_names_its_line(tmp_path: Path) -> None:
    (error,) = read(tmp_path, WELL.replace("</Ntry>", "\n</Entry>")).unreadable
    assert "line 4" in str(error)


def test_an_entity_is_never_resolved(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("SECRET")
    text = WELL.replace("<Document", f'<!DOCTYPE d [<!ENTITY x SYSTEM "{tmp_path}/secret">]><Document')
    got = read(tmp_path, text.replace("<NtryRef>T1", "<NtryRef>&x;"))
    assert "SECRET" not in str(got)
    assert got.unreadable[0].rule == "file_doctype"


def test_a_national_namespace_needs_an_allowance(tmp_path: Path) -> None:
    space = "http://www.six-interbank-clearing.com/de/camt.053.001.04.ch.02.xsd"
    text = WELL.replace(NAMESPACE.format("camt.053.001.08"), space)
    assert read(tmp_path, text).unreadable[0].rule == "file_unknown_message"
    assert read(tmp_path, text, namespaces=[space]).tables["transactions"].height == 1


def test_other_encodings_are_read(tmp_path: Path) -> None:
    text = WELL.replace("T1", "Ü1").replace('encoding="UTF-8"', 'encoding="UTF-16"')
    got = read(tmp_path, text.encode("utf-16"))
    assert got.tables["transactions"]["transaction_id"].to_list() == ["Ü1"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"entity": "x"}, "did you mean entity_id"),
        ({"identifiers": ["TxId"]}, "NtryRef"),
        ({"time_zone": "Europe/Pari"}, "IANA name"),
    ],
)
def test_a_wrong_description_is_refused_with_a_hint(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ReperformError, match=says):
        iso20022.iso20022_source("castle", SOURCE | changed)


@settings(max_examples=30, deadline=None)
@given(cents=st.lists(st.integers(-(10**9), 10**9).filter(bool), min_size=1, max_size=8), start=st.integers(-999, 999))
def test_balances_of_a_right_statement_always_add_up(
    cents: list[int], start: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    entries = [
        entry(f"T{i}", f"{abs(c) // 100}.{abs(c) % 100:02d}", "CRDT" if c > 0 else "DBIT") for i, c in enumerate(cents)
    ]
    ends = [f"{'-' if c < 0 else ''}{abs(c) // 100}.{abs(c) % 100:02d}" for c in (start, start + sum(cents))]
    text = document(balance("OPBD", ends[0]), balance("CLBD", ends[1]), *entries)
    got = read(tmp_path_factory.mktemp("camt"), text)
    assert got.tables["messages"].is_empty()
    assert got.tables["transactions"]["balance_after"][-1] == float(ends[1])


def test_the_tree_never_holds_more_than_an_entry(tmp_path: Path) -> None:
    many = "".join(
        entry(f"T{i}", "1.00", details="<TxDtls><Refs><TxId>x</TxId></Refs></TxDtls>") for i in range(40_000)
    )
    (tmp_path / "a.xml").write_text(document(many))
    program = (
        "import resource, sys; from pathlib import Path; from reperform.ingest.camt_stream import stream\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used(); n = sum(part.height for part in stream(Path(sys.argv[1]), 'a', [], lambda s: None))\n"
        "print(n, used() - before)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.xml")]
    rows, grown_kib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    size_kib = (tmp_path / "a.xml").stat().st_size / resource.getpagesize() * 4
    assert int(rows) == 40_000
    assert int(grown_kib) < min(8_000, size_kib / 2)  # the file has 10 MB, and its tree would take several times that


def test_samples_of_other_parsers_agree(shared: Path) -> None:
    folder = shared / "iso20022" / "genkgo-camt" / "test" / "data"
    compared = 0
    for path in sorted(folder.glob("*.xml")):
        expected = path.with_suffix(".json")
        if not expected.is_file():
            continue
        entries = json.loads(expected.read_text())["getEntries"]
        statements: list[Statement] = []
        rows = pl.concat(stream(path, path.name, [], statements.append)).to_dicts()
        if len(statements) > 1:
            continue  # theirs lists the entries of one statement only
        assert statements[0].entries == len(entries), path.name
        for row, theirs in zip(rows, entries, strict=False):
            digits = row["amount"].replace(".", "").rstrip("0").lstrip("0")
            assert digits == theirs["getAmount"]["getAmount"].lstrip("-").rstrip("0"), path.name
            assert row["currency"] == theirs["getAmount"]["getCurrency"]["getCode"], path.name
            assert row["indicator"] == theirs["getCreditDebitIndicator"], path.name
            assert statements[0].account == theirs["getRecord"]["getAccount"]["getIdentification"], path.name
            compared += 1
    assert compared >= 20


def test_every_sample_is_read_or_refused_by_name(shared: Path) -> None:
    folder = shared / "iso20022"
    got = iso20022.read("samples", SOURCE | {"files": "**/*.xml"}, folder, processes=1)
    assert {error.rule for error in got.unreadable} == {"file_unknown_message", "file_no_statement"}
    read_rows = got.tables["transactions"].height + got.quarantine.filter(got.quarantine["source_record"] > 0).height
    assert read_rows == sum(file.records for file in got.files) > 70
    # A bank's own sample closes its statement by value date, and leaves out an entry of the next day.
    assert any("-1537.00" in text for text in got.tables["messages"]["text"])
