"""Pages, sequences, chains of balances and schemas: what is missing or broken is told, and the entries are read."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from reperform.errors import ReperformError
from reperform.ingest import iso20022, xsd
from reperform.ingest import statement_checks as checks
from reperform.ingest.source import SourceResult
from tests.test_ingest_iso20022 import SOURCE, balance, document, entry, read


def page(number: int, *content: str, last: bool = True, name: str = "S1") -> str:
    pages = f"<StmtPgntn><PgNb>{number}</PgNb><LastPgInd>{str(last).lower()}</LastPgInd></StmtPgntn>"
    return document(*content).replace("<Id>S1</Id>", f"<Id>{name}</Id>{pages}")


def numbered(number: int | None, *content: str, name: str = "", tag: str = "ElctrncSeqNb") -> str:
    told = f"<{tag}>{number}</{tag}>" if number is not None else ""
    return document(*content).replace("<Id>S1</Id>", f"<Id>{name or f'S{number}'}</Id>{told}")


def read_all(folder: Path, *texts: str, **changed: Any) -> SourceResult:
    for i, text in enumerate(texts):
        # An identifier is unique among all files.
        (folder / f"{i:02d}.xml").write_text(text.replace("<NtryRef>T", f"<NtryRef>F{i}T"))
    got = iso20022.read("castle", SOURCE | changed, folder, processes=1)
    assert not got.unreadable
    return got


def codes(got: SourceResult) -> list[str]:
    return got.tables["messages"]["code"].to_list()


def both(first: str, last: str) -> str:
    return balance("OPBD", first) + balance("CLBD", last)


def test_pages_that_end_and_begin_with_interim_balances_are_checked(tmp_path: Path) -> None:
    first = page(1, balance("OPBD", "0.00"), balance("ITBD", "5.00"), entry("T1", "5.00"), last=False)
    second = page(2, balance("ITBD", "5.00"), balance("ITBD", "7.00"), entry("T1", "2.00"), last=False)
    third = page(3, balance("ITBD", "7.00"), balance("CLBD", "8.00"), entry("T1", "1.00"))
    got = read_all(tmp_path, first, second, third)
    assert got.tables["transactions"]["balance_after"].to_list() == [5.0, 7.0, 8.0]
    assert codes(got) == []
    assert got.counts["statements_with_both_balances"] == 3


def test_a_page_that_does_not_add_up_is_told(tmp_path: Path) -> None:
    first = page(1, balance("OPBD", "0.00"), balance("ITBD", "5.00"), entry("T1", "4.00"), last=False)
    second = page(2, balance("ITBD", "6.00"), balance("CLBD", "7.00"), entry("T1", "1.00"))
    got = read_all(tmp_path, first, second)
    assert codes(got) == [checks.BALANCE_BROKEN, checks.PAGE_BALANCE]
    assert "begins 1.00 above the end of page 1" in got.tables["messages"]["text"][1]
    assert got.tables["transactions"]["balance_after"].to_list() == [None, 7.0]


def test_missing_pages_are_told(tmp_path: Path) -> None:
    got = read_all(tmp_path, page(2, entry("T1", "1.00"), last=False), page(5, entry("T1", "1.00"), last=False))
    texts = got.tables["messages"].filter(pl.col("code") == checks.PAGE_MISSING)["text"].to_list()
    assert texts == [
        "page 1, 3, 4 of statement S1 of account FR76A is missing",
        "page 5 of statement S1 of account FR76A is not its last; none follows",
    ]
    assert got.tables["transactions"].height == 2


def test_interim_balances_of_a_report_prove_nothing(tmp_path: Path) -> None:
    text = document(balance("OPBD", "0.00"), balance("ITBD", "9.00"), entry("T1", "1.00"), message="camt.052.001.08")
    got = read(tmp_path, text)
    assert codes(got) == []
    assert got.tables["transactions"]["balance_after"].to_list() == [None]


def test_several_statements_in_a_file_have_their_own_balances(tmp_path: Path) -> None:
    one = document(both("0.00", "1.00"), entry("T1", "1.00"))
    other = document(both("5.00", "7.00"), entry("T2", "1.50"), account="<IBAN>FR76B</IBAN>").replace("S1<", "S2<")
    begin, end = other.index("<Stmt>"), other.index("</BkToCstmrStmt>")
    got = read(tmp_path, one.replace("</BkToCstmrStmt>", other[begin:end] + "</BkToCstmrStmt>"))
    assert got.tables["transactions"].select("account_id", "balance_after").rows() == [("FR76A", 1.0), ("FR76B", None)]
    assert got.tables["messages"]["filing_id"].to_list() == ["a.xml#S2"]
    assert got.counts["statements"] == 2


@pytest.mark.parametrize("tag", ["ElctrncSeqNb", "LglSeqNb"])
@pytest.mark.parametrize(
    ("numbers", "expected", "says"),
    [
        ([7, 8, 9], [], ""),
        ([7, 9], [checks.SEQUENCE_GAP], "statement 8 of account FR76A is missing"),
        ([7, 11], [checks.SEQUENCE_GAP], "statement 8 to 10 of account FR76A is missing"),
        ([365, 1, 2], [], ""),  # a new year
        ([7, 5], [checks.SEQUENCE_GAP], "statement 5 of account FR76A follows number 7"),
    ],
)
def test_numbers_of_statements_have_no_gap(
    tag: str, numbers: list[int], expected: list[str], says: str, tmp_path: Path
) -> None:
    got = read_all(tmp_path, *(numbered(n, entry("T1", "1.00"), tag=tag) for n in numbers))
    assert codes(got) == expected
    assert all(says in text for text in got.tables["messages"]["text"])
    assert got.tables["transactions"].height == len(numbers)


def test_two_statements_with_one_number_are_told(tmp_path: Path) -> None:
    got = read_all(tmp_path, numbered(7, entry("T1", "1.00"), name="A"), numbered(7, entry("T1", "1.00"), name="B"))
    assert codes(got) == [checks.SEQUENCE_REPEATED]


def test_a_statement_begins_where_the_one_before_ended(tmp_path: Path) -> None:
    texts = [
        numbered(None, both("0.00", "1.00"), entry("T1", "1.00"), name="A"),
        numbered(None, both("1.00", "3.00"), entry("T1", "2.00"), name="B"),
        numbered(None, both("2.50", "3.50"), entry("T1", "1.00"), name="C"),
    ]
    got = read_all(tmp_path, *texts)
    assert codes(got) == [checks.CHAIN_BROKEN]
    assert "begins -0.50 above the end of the one before, B" in got.tables["messages"]["text"][0]


def test_a_gap_in_the_numbers_explains_a_gap_in_the_balances(tmp_path: Path) -> None:
    texts = [
        numbered(1, both("0.00", "1.00"), entry("T1", "1.00")),
        numbered(3, both("9.00", "10.00"), entry("T1", "1.00")),
    ]
    assert codes(read_all(tmp_path, *texts)) == [checks.SEQUENCE_GAP]


def test_the_number_of_entries_is_checked(tmp_path: Path) -> None:
    told = "<TxsSummry><TtlNtries><NbOfNtries>3</NbOfNtries></TtlNtries></TxsSummry>"
    assert codes(read(tmp_path, document(told, entry("T1", "1.00")))) == [checks.COUNT_BROKEN]


def test_large_files_give_the_same_as_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        document(both("0.00", "10.00"), *(entry(f"T{i}", "1.00") for i in range(10))),
        document(both("0.00", "9.00"), *(entry(f"T{i}", "1.00") for i in range(10)), entry("T", "x")),
    ]
    plain = read_all(tmp_path, *texts)
    monkeypatch.setattr(iso20022, "_ROWS_PER_PART", 3)
    monkeypatch.setattr("reperform.ingest.camt_stream.ROWS_PER_PART", 2)
    monkeypatch.setattr("reperform.ingest.xml_guard.PIECE_BYTES", 500)
    pieces = read_all(tmp_path, *texts)
    for name, table in plain.tables.items():
        assert pieces.tables[name].equals(table), name
    assert pieces.quarantine.equals(plain.quarantine)
    assert plain.tables["transactions"]["balance_after"].to_list() == [float(i + 1) for i in range(10)] + [None] * 10


SCHEMA = """<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns="{space}" targetNamespace="{space}"
 elementFormDefault="qualified"><xs:element name="Document"><xs:complexType><xs:sequence><xs:element name="Message">
 <xs:complexType><xs:sequence><xs:element name="PmtInf" maxOccurs="unbounded"><xs:complexType><xs:sequence>
 <xs:element name="CdtTrfTxInf" maxOccurs="unbounded"><xs:complexType><xs:sequence><xs:element name="Amt">
 <xs:complexType><xs:sequence><xs:element name="InstdAmt"><xs:complexType><xs:simpleContent>
 <xs:extension base="xs:decimal"><xs:attribute name="Ccy" use="required"/></xs:extension></xs:simpleContent>
 </xs:complexType></xs:element></xs:sequence></xs:complexType></xs:element></xs:sequence></xs:complexType>
 </xs:element></xs:sequence></xs:complexType></xs:element></xs:sequence></xs:complexType></xs:element></xs:sequence>
 </xs:complexType></xs:element></xs:schema>"""
SPACE = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"


def orders(*amounts: str) -> str:
    payments = "\n".join(
        f'<CdtTrfTxInf><Amt><InstdAmt Ccy="EUR">{text}</InstdAmt></Amt></CdtTrfTxInf>' for text in amounts
    )
    return f'<Document xmlns="{SPACE}"><Message><PmtInf>\n{payments}</PmtInf></Message></Document>'


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "pain.001.001.09.xsd"
    path.write_text(SCHEMA.format(space=SPACE))
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_violations_of_the_schema_are_told_with_line_and_path(schema: Path, tmp_path: Path, *, wrapped: bool) -> None:
    text = orders("1.00", "much", "2.00")
    text = f"<Envelope>{text}</Envelope>" if wrapped else text
    got = read(tmp_path, text, schema=str(schema))
    (message,) = got.tables["messages"].to_dicts()
    assert (message["code"], message["severity"], message["source_line"]) == (checks.SCHEMA_VIOLATED, "error", 3)
    assert "/Document/Message/PmtInf/CdtTrfTxInf/Amt/InstdAmt: " in message["text"]
    assert "'much' is not a valid value" in message["text"]
    assert got.counts["findings message.schema"] == 1


def test_a_valid_file_has_no_violation(schema: Path, tmp_path: Path) -> None:
    assert codes(read(tmp_path, orders("1.00", "2.00"), schema=str(schema.parent))) == []


def test_a_large_file_is_validated_as_a_stream(schema: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xsd, "MOST_WHOLE_BYTES", 0)
    monkeypatch.setattr(xsd, "_FED_BYTES", 10)
    assert codes(read(tmp_path, orders("1.00"), schema=str(schema))) == []
    got = read(tmp_path, orders("1.00", "much", "2.00", "more"), schema=str(schema))
    lines = got.tables["messages"].filter(pl.col("code") == checks.SCHEMA_VIOLATED)
    assert lines["source_line"].to_list() == [3, 5]
    assert "lines 3 to 4, near entry 2: " in lines["text"][0]


def test_violations_are_listed_up_to_a_limit(schema: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xsd, "MOST_PER_CODE", 2)
    found = read(tmp_path, orders(*["much"] * 9), schema=str(schema)).tables["messages"]
    listed = found.filter(pl.col("code") == checks.SCHEMA_VIOLATED)
    assert listed.height == 3
    assert "too many" in listed["text"][2]


@pytest.mark.parametrize("content", ["missing", "no schema", "<a/>"])
def test_a_schema_that_cannot_be_used_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "schemas" / "pain.001.001.09.xsd"
    path.parent.mkdir()
    if content != "missing":
        path.write_text(content)
    with pytest.raises(ReperformError, match=r"pain\.001\.001\.09\.xsd") as caught:
        read(tmp_path, orders("1.00"), schema=str(path.parent))
    assert "iso20022.org" in str(caught.value)


def test_a_schema_loads_nothing_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "pain.001.001.09.xsd"
    secret = '<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    path.write_text(secret + SCHEMA.format(space=SPACE).replace('"Document"', '"Document" id="a&x;"'))
    with pytest.raises(ReperformError, match="cannot be used") as caught:
        read(tmp_path, orders("1.00"), schema=str(path))
    assert "root:" not in str(caught.value)
