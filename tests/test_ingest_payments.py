"""Batches, charges, exchange, references; pain.001 and pacs.008 as transactions; envelopes."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from reperform.ingest import statement_checks as checks
from tests.test_ingest_iso20022 import NAMESPACE, balance, document, entry, party, read

HEADER = (
    "<GrpHdr><MsgId>M7</MsgId><CreDtTm>2025-04-01T08:00:00Z</CreDtTm><NbOfTxs>{n}</NbOfTxs>"
    "<CtrlSum>{total}</CtrlSum>{more}</GrpHdr>"
)


def only(rows: Any) -> dict[str, Any]:
    (row,) = rows.to_dicts()
    return dict(row)


def initiation(version: int = 9, n: int = 2, total: str = "30.50", group: str = "") -> str:
    execution = "<Dt>2025-04-02</Dt>" if version >= 8 else "2025-04-02"
    payments = "".join(
        f"<CdtTrfTxInf><PmtId><InstrId>I{i}</InstrId><EndToEndId>NOTPROVIDED</EndToEndId></PmtId><Amt>"
        f'<InstdAmt Ccy="EUR">{amount}</InstdAmt></Amt><Cdtr><Nm>Ann</Nm><PstlAdr><Ctry>FR</Ctry></PstlAdr></Cdtr>'
        f"<CdtrAcct><Id><IBAN>FR{i}</IBAN></Id></CdtrAcct><RmtInf><Ustrd>rent</Ustrd></RmtInf></CdtTrfTxInf>"
        for i, amount in ((1, "10.00"), (2, "20.50"))
    )
    return (
        f'<Document xmlns="{NAMESPACE.format(f"pain.001.001.{version:02d}")}"><CstmrCdtTrfInitn>'
        f"{HEADER.format(n=n, total=total, more='')}<PmtInf><PmtInfId>B1</PmtInfId><PmtMtd>TRF</PmtMtd>{group}"
        f"<PmtTpInf><SvcLvl><Cd>SEPA</Cd></SvcLvl></PmtTpInf><ReqdExctnDt>{execution}</ReqdExctnDt>"
        f"<Dbtr><Nm>Jo</Nm></Dbtr><DbtrAcct><Id><IBAN>DE9</IBAN></Id></DbtrAcct>{payments}</PmtInf>"
        "</CstmrCdtTrfInitn></Document>"
    )


def settlement(version: int = 8, *, own_date: bool = True, more: str = "", total: str = "40.00") -> str:
    day = "<IntrBkSttlmDt>2025-04-03</IntrBkSttlmDt>"
    header = HEADER.format(n=1, total=total, more=more + ("" if own_date else day))
    return (
        f'<Document xmlns="{NAMESPACE.format(f"pacs.008.001.{version:02d}")}"><FIToFICstmrCdtTrf>{header}<CdtTrfTxInf>'
        "<PmtId><EndToEndId>E1</EndToEndId><TxId>X1</TxId><UETR>8a562c67-ca16-48ba-b074-65581be6f011</UETR></PmtId>"
        f'<IntrBkSttlmAmt Ccy="EUR">40.00</IntrBkSttlmAmt>{day if own_date else ""}<InstdAmt Ccy="USD">50.00</InstdAmt>'
        '<XchgRate>0.8</XchgRate><ChrgsInf><Amt Ccy="EUR">1.25</Amt></ChrgsInf><ChrgsInf><Amt Ccy="EUR">0.75</Amt>'
        "</ChrgsInf><Dbtr><Nm>Jo</Nm><PstlAdr><Ctry>US</Ctry></PstlAdr></Dbtr><DbtrAcct><Id><Othr><Id>US1</Id></Othr>"
        "</Id></DbtrAcct><Cdtr><Nm>Ann</Nm><PstlAdr><Ctry>FR</Ctry></PstlAdr></Cdtr><CdtrAcct><Id><IBAN>FR1</IBAN></Id>"
        "</CdtrAcct><RmtInf><Strd><CdtrRefInf><Ref>RF18539007547034</Ref></CdtrRefInf></Strd></RmtInf></CdtTrfTxInf>"
        "</FIToFICstmrCdtTrf></Document>"
    )


@pytest.mark.parametrize("version", [3, 5, 8, 9, 11, 13])
def test_payments_that_a_customer_orders_go_out_of_the_debtors_account(version: int, tmp_path: Path) -> None:
    got = read(tmp_path, initiation(version), entity_id="bank", time_zone="UTC")
    rows = got.tables["transactions"]
    assert rows["transaction_id"].to_list() == ["M7/B1/1", "M7/B1/2"]
    assert rows["booked_at"].to_list() == [datetime(2025, 4, 2, tzinfo=UTC)] * 2
    assert rows["known_at"].to_list() == [datetime(2025, 4, 1, 8, tzinfo=UTC)] * 2
    assert rows["account_id"].to_list() == ["DE9", "DE9"]
    assert rows["counterparty_id"].to_list() == ["FR1", "FR2"]
    assert rows["direction"].to_list() == ["out", "out"]
    assert rows["amount"].to_list() == [10.0, 20.5]
    assert rows["channel"].to_list() == ["SEPA", "SEPA"]
    assert rows["country"].to_list() == ["FR", "FR"]
    details = got.tables["payment_details"]
    assert details["message"].to_list() == [f"pain.001.001.{version:02d}"] * 2
    assert details["statement_id"].to_list() == ["B1", "B1"]
    assert details["debtor_name"].to_list() == ["Jo", "Jo"]
    assert got.tables["messages"].is_empty()


def test_a_reference_of_the_debtor_can_serve_as_identifier(tmp_path: Path) -> None:
    got = read(tmp_path, initiation(), payment_identifiers=["InstrId"])
    assert got.tables["transactions"]["transaction_id"].to_list() == ["I1", "I2"]


@pytest.mark.parametrize("version", [2, 6, 8, 10, 12])
def test_a_settled_payment_goes_out_of_the_debtors_account(version: int, tmp_path: Path) -> None:
    got = read(tmp_path, settlement(version), time_zone="UTC")
    row = only(got.tables["transactions"])
    assert (row["transaction_id"], row["account_id"], row["counterparty_id"]) == ("X1", "US1", "FR1")
    assert (row["direction"], row["amount"], row["currency"], row["country"]) == ("out", 40.0, "EUR", "FR")
    assert row["booked_at"] == datetime(2025, 4, 3, tzinfo=UTC)
    detail = only(got.tables["payment_details"])
    assert (detail["instructed_amount"], detail["instructed_currency"], detail["exchange_rate"]) == (50.0, "USD", 0.8)
    assert (detail["charges"], detail["charges_currency"]) == (2.0, "EUR")
    assert detail["uetr"] == "8a562c67-ca16-48ba-b074-65581be6f011"
    assert detail["structured_reference"] == "RF18539007547034"
    assert got.tables["messages"].is_empty()


def test_the_bank_of_the_creditor_books_a_settled_payment_in(tmp_path: Path) -> None:
    row = only(read(tmp_path, settlement(), side="creditor").tables["transactions"])
    assert (row["account_id"], row["counterparty_id"], row["direction"], row["country"]) == ("FR1", "US1", "in", "US")


def test_the_settlement_date_may_stand_in_the_header(tmp_path: Path) -> None:
    row = only(read(tmp_path, settlement(own_date=False), time_zone="UTC").tables["transactions"])
    assert row["booked_at"] == datetime(2025, 4, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (initiation(n=3), checks.PAYMENTS_COUNT, "3 transactions are announced, 2 are there"),
        (initiation(total="31.00"), checks.PAYMENTS_SUM, "31.00 is announced, the amounts add up to 30.5"),
        (initiation(group="<NbOfTxs>1</NbOfTxs>"), checks.PAYMENTS_COUNT, "1 transactions are announced, 2"),
        (initiation(group="<CtrlSum>1.5</CtrlSum>"), checks.PAYMENTS_SUM, "1.5 is announced, the amounts"),
        (settlement(total="41"), checks.PAYMENTS_SUM, "41 is announced, the amounts add up to 40"),
        (
            settlement(more='<TtlIntrBkSttlmAmt Ccy="EUR">39.99</TtlIntrBkSttlmAmt>'),
            checks.PAYMENTS_SUM,
            "39.99 is announced",
        ),
    ],
)
def test_numbers_and_sums_that_are_announced_are_checked(text: str, code: str, says: str, tmp_path: Path) -> None:
    got = read(tmp_path, text)
    message = only(got.tables["messages"])
    assert (message["code"], message["severity"]) == (code, "inconsistency")
    assert says in message["text"]
    assert message["source_line"] >= 1
    assert got.counts[f"findings {code}"] == 1
    assert not got.tables["transactions"].is_empty()


@pytest.mark.parametrize("wrapper", ["BizMsgEnvlp", "saa:DataPDU"])
@pytest.mark.parametrize("head", ["head.001.001.01", "head.001.001.02", "head.001.001.03"])
def test_a_document_may_stand_in_an_envelope_beside_its_header(wrapper: str, head: str, tmp_path: Path) -> None:
    plain = read(tmp_path, document(entry("T1", "1.00"), entry("T2", "1.00"))).tables["transactions"]
    inner = document(entry("T1", "1.00"), entry("T2", "1.00")).split("\n", 1)[1]
    header = (
        f'<h:AppHdr xmlns:h="{NAMESPACE.format(head)}"><h:BizMsgIdr>B</h:BizMsgIdr>'
        "<h:MsgDefIdr>camt.053.001.08</h:MsgDefIdr></h:AppHdr>"
    )
    text = f'<{wrapper} xmlns:saa="urn:swift:saa:xsd:saa.2.0"><Body>{header}{inner}</Body></{wrapper}>'
    got = read(tmp_path, text)
    assert got.tables["transactions"].equals(plain)
    assert got.tables["messages"].is_empty()


def test_a_header_that_announces_another_message_is_told(tmp_path: Path) -> None:
    inner = document(entry("T1", "1.00")).split("\n", 1)[1]
    header = (
        f'<AppHdr xmlns="{NAMESPACE.format("head.001.001.02")}"><MsgDefIdr>camt.054.001.08</MsgDefIdr>'
        "<PssblDplct>true</PssblDplct></AppHdr>"
    )
    got = read(tmp_path, f"<Envelope>{header}{inner}</Envelope>")
    assert got.tables["messages"]["code"].to_list() == [checks.DEFINITION_DIFFERS, checks.POSSIBLE_DUPLICATE]
    assert got.tables["transactions"].height == 1


@pytest.mark.parametrize("message", ["camt.053.001.15", "camt.053.001.00", "pain.001.001.02", "pacs.009.001.08"])
def test_an_unknown_version_is_refused_with_what_is_supported(message: str, tmp_path: Path) -> None:
    text = document(entry("T1", "1.00")).replace("camt.053.001.08", message)
    (error,) = read(tmp_path, text).unreadable
    assert error.rule == "file_unknown_message"
    for part in (message, "camt.053.001.01 to .14", "pain.001.001.03 to .13", "pacs.008.001.02 to .14"):
        assert part in str(error)


def detail(amount: str = "", more: str = "") -> str:
    amounts = f'<Amt Ccy="EUR">{amount}</Amt>' if amount else ""
    return f"<TxDtls>{amounts}{more}</TxDtls>"


def test_the_parts_of_a_batch_keep_their_own_references_and_charges(tmp_path: Path) -> None:
    def refs(i: int) -> str:
        return f"<Refs><EndToEndId>E{i}</EndToEndId><MndtId>D{i}</MndtId><UETR>u{i}</UETR></Refs>"

    charge = (
        '<Chrgs><TtlChrgsAndTaxAmt Ccy="EUR">0.10</TtlChrgsAndTaxAmt><Rcrd><Amt Ccy="EUR">0.10</Amt></Rcrd></Chrgs>'
    )
    whole = '<AcctSvcrRef>S1</AcctSvcrRef><Chrgs><TtlChrgsAndTaxAmt Ccy="EUR">9.00</TtlChrgsAndTaxAmt></Chrgs>'
    one = entry("T1", "3.00", details=detail("1.00", refs(1)) + detail("2.00", refs(2) + charge), more=whole)
    got = read(tmp_path, document(one)).tables
    assert got["transactions"]["amount"].to_list() == [1.0, 2.0]
    details = got["payment_details"]
    assert details["transaction_id"].to_list() == ["T1/1", "T1/2"]
    assert details["end_to_end_id"].to_list() == ["E1", "E2"]
    assert details["mandate_id"].to_list() == ["D1", "D2"]
    assert details["uetr"].to_list() == ["u1", "u2"]
    assert details["n_in_batch"].to_list() == [2, 2]
    assert details["charges"].to_list() == [None, 0.1]  # what the entry was charged is not charged to each part


def test_a_batch_in_older_versions_has_its_amounts_in_the_details(tmp_path: Path) -> None:
    parts = "".join(
        f'<TxDtls><AmtDtls><TxAmt><Amt Ccy="EUR">{amount}</Amt></TxAmt></AmtDtls></TxDtls>'
        for amount in ("1.00", "2.00")
    )
    got = read(tmp_path, document(entry("T1", "3.00", details=parts), message="camt.053.001.02"))
    assert got.tables["transactions"]["amount"].to_list() == [1.0, 2.0]


def test_a_part_on_the_other_side_counts_against_the_sum(tmp_path: Path) -> None:
    parts = detail("5.00") + detail("2.00", "<CdtDbtInd>DBIT</CdtDbtInd>")
    rows = read(tmp_path, document(entry("T1", "3.00", details=parts))).tables["transactions"]
    assert rows["direction"].to_list() == ["in", "out"]
    assert rows["amount"].to_list() == [5.0, 2.0]


def test_charges_are_the_total_or_the_sum_of_their_records(tmp_path: Path) -> None:
    record = '<Chrgs><Rcrd><Amt Ccy="EUR">1.10</Amt></Rcrd><Rcrd><Amt Ccy="EUR">2.20</Amt></Rcrd></Chrgs>'
    older = '<Chrgs><Amt Ccy="EUR">1.10</Amt></Chrgs><Chrgs><Amt Ccy="EUR">2.25</Amt></Chrgs>'
    total = '<Chrgs><TtlChrgsAndTaxAmt Ccy="CHF">7.00</TtlChrgsAndTaxAmt><Rcrd><Amt Ccy="CHF">1.00</Amt></Rcrd></Chrgs>'
    bad = '<Chrgs><Rcrd><Amt Ccy="EUR">one</Amt></Rcrd></Chrgs>'
    entries = [entry(f"T{i}", "1.00", more=more) for i, more in enumerate((record, older, total, bad))]
    details = read(tmp_path, document(*entries)).tables["payment_details"]
    assert details["charges"].to_list() == [3.3, 3.35, 7.0, None]
    assert details["charges_currency"].to_list() == ["EUR", "EUR", "CHF", "EUR"]


def test_an_exchange_keeps_what_was_instructed_and_the_rate(tmp_path: Path) -> None:
    exchange = (
        '<AmtDtls><InstdAmt><Amt Ccy="USD">110.00</Amt></InstdAmt><TxAmt><Amt Ccy="EUR">100.00</Amt><CcyXchg>'
        "<SrcCcy>USD</SrcCcy><TrgtCcy>EUR</TrgtCcy><XchgRate>1.1</XchgRate></CcyXchg></TxAmt></AmtDtls>"
    )
    for one in (
        entry("T1", "100.00", "DBIT", details=f"<TxDtls>{exchange}</TxDtls>"),
        entry("T1", "100.00", "DBIT", more=exchange),
    ):
        got = read(tmp_path, document(one)).tables
        row = only(got["payment_details"])
        assert (row["instructed_amount"], row["instructed_currency"], row["exchange_rate"]) == (110.0, "USD", 1.1)
        assert only(got["transactions"])["amount"] == 100.0


def test_a_reversal_is_marked_and_its_other_side_keeps_its_role(tmp_path: Path) -> None:
    # A debit that is taken back is booked as a credit; the parties are still those of the debit.
    both = f"<TxDtls><RltdPties>{party('Dbtr', 'OWN')}{party('Cdtr', 'SHOP')}</RltdPties></TxDtls>"
    one = entry("T1", "5.00", "CRDT", more="<RvslInd>true</RvslInd>", details=both)
    got = read(tmp_path, document(one, entry("T2", "1.00", details=both))).tables
    assert got["transactions"]["direction"].to_list() == ["in", "in"]
    assert got["transactions"]["counterparty_id"].to_list() == ["SHOP", "OWN"]
    assert got["payment_details"]["is_reversal"].to_list() == [True, False]


def test_value_date_servicer_reference_and_remittance_are_kept(tmp_path: Path) -> None:
    info = "<RmtInf><Ustrd>part one</Ustrd><Ustrd/><Ustrd>part two</Ustrd></RmtInf>"
    more = "<ValDt><Dt>2025-04-03+02:00</Dt></ValDt><AcctSvcrRef>S9</AcctSvcrRef>"
    one = entry("T1", "1.00", more=more, details=f"<TxDtls>{info}</TxDtls>")
    for text in (document(one), document(one).replace("part one", "part&#32;one")):
        row = only(read(tmp_path, text).tables["payment_details"])
        assert (row["value_date"], row["servicer_reference"]) == (date(2025, 4, 3), "S9")
        assert row["remittance"] == "part one part two"


def test_wrong_check_digits_of_a_creditor_reference_are_told(tmp_path: Path) -> None:
    def referring(name: str, text: str) -> str:
        info = f"<RmtInf><Strd><CdtrRefInf><Ref>{text}</Ref></CdtrRefInf></Strd></RmtInf>"
        return entry(name, "1.00", details=f"<TxDtls>{info}</TxDtls>")

    texts = [
        "RF18539007547034",
        "RF18 5390 0754 7034",
        "RF19539007547034",
        "rf18000000000539007547034",
        "120000000000234",
    ]
    got = read(tmp_path, document(*(referring(f"T{i}", text) for i, text in enumerate(texts))))
    message = only(got.tables["messages"])
    assert message["code"] == checks.REFERENCE_BROKEN
    assert "T2" in message["text"]
    assert got.tables["payment_details"]["structured_reference"].to_list() == texts


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [("RF18539007547034", True), ("RF712348231", True), ("RF18539007547035", False), ("RF81539007547034", False)],
)
def test_check_digits_of_iso_11649(text: str, *, is_valid: bool) -> None:
    assert checks.is_valid_reference(text) is is_valid


def test_findings_of_one_kind_are_listed_up_to_a_limit_and_counted_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MOST_PER_CODE", 3)
    found = checks.finding_frame(checks.finding(f"a.xml#{i}", "x", "text") for i in range(5))
    assert found["filing_id"].to_list() == ["a.xml#0", "a.xml#1", "a.xml#2", "a.xml"]
    assert found["text"][-1] == "2 more of these in this file"


def test_refused_entries_leave_no_details(tmp_path: Path) -> None:
    text = document(entry("T1", "x"), entry("T2", "1.00"), balance("OPBD", "1.00"))
    got = read(tmp_path, text)
    assert got.tables["payment_details"]["transaction_id"].to_list() == ["T2"]
    assert got.tables["payment_details"]["source_record"].to_list() == [2]
