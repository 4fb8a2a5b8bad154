"""Hostile and damaged XML is refused by name, in bounded memory, and never read in two ways."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reperform.ingest import camt_stream, iso20022, xml_guard
from reperform.ingest.source import SourceResult
from tests.test_ingest_iso20022 import NAMESPACE, SOURCE, balance, document, entry, party, read

WELL = document(balance("OPBD", "0.00"), balance("CLBD", "2.00"), entry("T1", "1.00"), entry("T2", "1.00"))
SPACE = NAMESPACE.format("camt.053.001.08")
LAUGHS = "<!DOCTYPE l [" + "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9)) + '<!ENTITY e0 "ha">]>'


def refused(folder: Path, text: str | bytes) -> str:
    """The rule by which a file is refused; such a file gives no row."""
    got = read(folder, text)
    assert got.tables["transactions"].is_empty()
    assert got.tables["payment_details"].is_empty()
    (error,) = got.unreadable
    assert error.path == "a.xml"
    assert "what to do" in str(error)
    return error.rule


def inside(extra: str) -> str:
    """A well-formed statement with something between its entries."""
    return WELL.replace("</Ntry><Ntry>", f"</Ntry>{extra}<Ntry>", 1)


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE d [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x.dtd"> %x;]>',
        '<!DOCTYPE Document SYSTEM "http://127.0.0.1:9/camt.dtd">',
        '<!DOCTYPE Document PUBLIC "-//x//y" "camt.dtd">',
        "<!DOCTYPE Document>",
        LAUGHS,
    ],
)
def test_a_document_type_definition_is_refused_before_anything_in_it_counts(doctype: str, tmp_path: Path) -> None:
    text = WELL.replace("<Document", f"{doctype}<Document", 1).replace("<NtryRef>T1", "<NtryRef>&e9;&x;")
    assert refused(tmp_path, text) == "file_doctype"


def test_an_entity_without_a_definition_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, WELL.replace("<NtryRef>T1", "<NtryRef>&x;")) == "file_malformed"


def test_an_inclusion_is_only_an_unknown_element(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("SECRET")
    xi = '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="secret.txt" parse="text"/>'
    got = read(tmp_path, WELL.replace("<NtryRef>T1</NtryRef>", f"<NtryRef>{xi}</NtryRef>"))
    assert "SECRET" not in str([frame.to_dicts() for frame in got.tables.values()])
    assert got.tables["transactions"]["transaction_id"].to_list() == ["M1/S1/1", "T2"]


def test_comments_and_processing_instructions_are_passed_over(tmp_path: Path) -> None:
    plain = read(tmp_path, WELL).tables["transactions"]
    extra = '<?xml-stylesheet href="http://127.0.0.1:9/x.xsl"?><!-- <Ntry><NtryRef>T9</NtryRef></Ntry> --><?a </Ntry>?>'
    assert read(tmp_path, inside(extra)).tables["transactions"].equals(plain)
    assert read(tmp_path, WELL.replace("<Ntry>", f"<Ntry>{extra}")).tables["transactions"].equals(plain)


def test_what_a_character_section_holds_is_text(tmp_path: Path) -> None:
    text = WELL.replace("<NtryRef>T1</NtryRef>", "<NtryRef><![CDATA[</Ntry>&amp;]]></NtryRef>")
    assert read(tmp_path, text).tables["transactions"]["transaction_id"].to_list() == ["</Ntry>&amp;", "T2"]


def test_references_to_characters_are_resolved(tmp_path: Path) -> None:
    got = read(tmp_path, WELL.replace("<NtryRef>T2", "<NtryRef>A&amp;B&#x2d;&#45;&lt;"))
    assert got.tables["transactions"]["transaction_id"].to_list() == ["T1", "A&B--<"]


@pytest.mark.parametrize("place", ["between entries", "inside of an entry", "around the document"])
def test_nesting_has_a_limit(place: str, tmp_path: Path) -> None:
    deep = "<a>" * 100_000 + "</a>" * 100_000
    text = {
        "between entries": inside(deep),
        "inside of an entry": WELL.replace("</Ntry>", f"{deep}</Ntry>", 1),
        "around the document": deep,
    }[place]
    assert refused(tmp_path, text) == "file_too_deep"


def test_attributes_have_a_limit(tmp_path: Path) -> None:
    many = " ".join(f'a{i}="{i}"' for i in range(20_000))
    assert refused(tmp_path, WELL.replace("<Amt ", f"<Amt {many} ")) == "file_too_many_attributes"
    endless = " ".join(f'a{i}="{i}"' for i in range(200_000))
    assert refused(tmp_path, WELL.replace("<Amt ", f"<Amt {endless} ")) in (
        "file_too_many_attributes",
        "file_tag_too_long",
    )


@pytest.mark.parametrize(
    ("before", "unit", "rule"),
    [
        ("<NtryRef>", "x", "file_text_too_long"),
        ("<Ntry>", " ", "file_text_too_long"),
        ("<Ntry><!--", "x", "file_tag_too_long"),
        ("<Ntry><?p ", "x", "file_tag_too_long"),
        ("<Ntry><NtryRef a='", "x", "file_tag_too_long"),
        ("<Ntry><", "x", "file_tag_too_long"),
    ],
)
def test_an_endless_text_or_tag_is_refused_in_bounded_memory(before: str, unit: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    begin = WELL[: WELL.index("<Ntry>")]
    with path.open("w") as stream:
        stream.write(begin + before)
        for _ in range(60):
            stream.write(unit * 1_000_000)
    program = (
        "import resource, sys; from pathlib import Path; from reperform.ingest.camt_stream import stream\n"
        "from reperform.ingest.source import UnreadableFileError\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used()\n"
        "try: list(stream(Path(sys.argv[1]), 'a', [], lambda s: None))\n"
        "except UnreadableFileError as error: print(error.rule, used() - before)"
    )
    command = [sys.executable, "-c", program, str(path)]
    found, grown_kib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found == rule
    assert int(grown_kib) < 20_000


def test_an_entry_with_endless_details_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camt_stream, "_MOST_ENTRY_CHARS", 10_000)
    details = f"<TxDtls><Refs><EndToEndId>{'x' * 30}</EndToEndId></Refs></TxDtls>" * 1000
    assert refused(tmp_path, document(entry("T1", "1.00", details=details))) == "file_entry_too_large"


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("UTF-8", "latin-1"),
        ("UTF-16", "utf-8"),
        ("UTF-8", "utf-16-le"),
        ("no-such-encoding", "utf-8"),
        ("utf-7", "utf-8"),
        ("unicode_escape", "utf-8"),
        ("zip", "utf-8"),
        ("ascii", "utf-8"),
    ],
)
def test_bytes_that_are_not_what_the_file_says_are_refused(declared: str, written: str, tmp_path: Path) -> None:
    text = WELL.replace('encoding="UTF-8"', f'encoding="{declared}"').replace(">T2<", ">Zürich<")
    if (declared, written) == ("UTF-8", "utf-16-le"):  # shows itself, so it is read as what it is
        assert read(tmp_path, text.encode(written)).tables["transactions"].height == 2
    else:
        assert refused(tmp_path, text.encode(written)) == "file_encoding"


@pytest.mark.parametrize("encoding", ["iso-8859-1", "windows-1252", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-8"])
def test_the_encodings_of_banks_are_read(encoding: str, tmp_path: Path) -> None:
    declared = {"utf-8-sig": "UTF-8", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}.get(encoding, encoding)
    text = WELL.replace('encoding="UTF-8"', f'encoding="{declared}"').replace(">T2<", ">Zürich<")
    got = read(tmp_path, text.encode(encoding)).tables["transactions"]
    assert got["transaction_id"].to_list() == ["T1", "Zürich"]


def test_forbidden_bytes_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    for bad in (b"\x01", b"\x00", b"\xff", b"\xc3\x28", b"\xef\xbf\xbf"):
        rule = refused(tmp_path, WELL.encode().replace(b"T2", b"T" + bad))
        assert rule in ("file_malformed", "file_encoding"), bad


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_truncated_file_gives_no_row(share: float, tmp_path: Path) -> None:
    assert refused(tmp_path, WELL[: int(len(WELL) * share)]) in ("file_malformed", "file_unknown_message")


def test_entries_of_another_namespace_are_no_entries(tmp_path: Path) -> None:
    foreign = '<x:Ntry xmlns:x="urn:other"><x:NtryRef>T9</x:NtryRef></x:Ntry>'
    foreign += '<Ntry xmlns="urn:other"><NtryRef>T8</NtryRef></Ntry>'
    got = read(tmp_path, inside(foreign))
    assert got.tables["transactions"]["transaction_id"].to_list() == ["T1", "T2"]
    assert got.tables["messages"].is_empty()


def test_a_prefix_makes_no_difference(tmp_path: Path) -> None:
    plain = read(tmp_path, WELL).tables["transactions"]
    prefixed = WELL.replace("</", "</n0:").replace("<", "<n0:").replace("<n0:/n0:", "</n0:").replace("<n0:?", "<?")
    prefixed = prefixed.replace("xmlns=", "xmlns:n0=")
    assert read(tmp_path, prefixed).tables["transactions"].equals(plain)
    # A guess at the prefix may be led astray by a comment; what is read may not.
    misled = prefixed.replace("<n0:Document", "<!-- <evil:Document > --><n0:Document", 1)
    assert read(tmp_path, misled).tables["transactions"].equals(plain)


BATCH = "".join(
    f'<TxDtls><Refs><EndToEndId>E{i}</EndToEndId></Refs><Amt Ccy="EUR">1.50</Amt><RltdPties>{party("Dbtr", f"P{i}")}'
    f"</RltdPties><RmtInf><Ustrd>one</Ustrd><Ustrd>two &amp; three</Ustrd></RmtInf></TxDtls>"
    for i in range(2)
)
PARTY = f"<RltdPties>{party('Dbtr', 'A')}</RltdPties>"
MANY = [
    entry(f"T{i}", f"{i}.25", "CRDT" if i % 2 else "DBIT", details=f"<TxDtls>{PARTY.replace('A', f'A{i}')}</TxDtls>")
    for i in range(1, 7)
]
PAIN = (
    f'<Document xmlns="{NAMESPACE.format("pain.001.001.09")}"><CstmrCdtTrfInitn><GrpHdr><MsgId>P1</MsgId>'
    "<CreDtTm>2025-04-01T08:00:00Z</CreDtTm><NbOfTxs>2</NbOfTxs></GrpHdr><PmtInf><PmtInfId>I1</PmtInfId>"
    "<ReqdExctnDt><Dt>2025-04-02</Dt></ReqdExctnDt><DbtrAcct><Id><IBAN>DE1</IBAN></Id></DbtrAcct>"
    + "".join(
        f'<CdtTrfTxInf><PmtId><EndToEndId>E{i}</EndToEndId></PmtId><Amt><InstdAmt Ccy="EUR">{i}.00</InstdAmt></Amt>'
        f"<CdtrAcct><Id><IBAN>FR{i}</IBAN></Id></CdtrAcct></CdtTrfTxInf>"
        for i in (1, 2)
    )
    + "</PmtInf></CstmrCdtTrfInitn></Document>"
)
SEEDS = [
    WELL,
    document(balance("OPBD", "0.00"), *MANY, entry("B1", "3.00", details=BATCH), entry("B2", "3.00", details=BATCH)),
    document(*MANY, message="camt.053.001.02").replace("><", ">\r\n  <"),
    PAIN,
]
TOKENS = [
    "<Ntry>", "</Ntry>", "<Stmt>", "</Stmt>", "<TxDtls>", "</TxDtls>", "<!--", "-->", "<![CDATA[", "]]>", "&amp;",
    "&#0;", "&x;", "<x/>", '<Amt Ccy="EUR">', '<Amt Ccy="USD">9</Amt>', "<?p ?>", " ", "\n", "\r\n", ">", "<", '"',
    "\x00", "\x1f", "é", "\ufffe", "-1", "1e5", "NaN", "99999999999999999999", ",", "CRDT", "<NtryRef/>",
    "<NtryRef></NtryRef>", "xmlns", ' xmlns="urn:x"',
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        n = draw(st.sampled_from([0, 1, 2, 5, 30, 300]))
        kind = draw(st.sampled_from(["cut", "put", "double", "swap"]))
        piece = text[at : at + n]
        if kind == "cut":
            text = text[:at] + text[at + n :]
        elif kind == "put":
            text = text[:at] + draw(st.sampled_from(TOKENS)) + text[at:]
        elif kind == "double":
            text = text[:at] + piece + text[at:]
        else:
            text = text[:at] + draw(st.sampled_from(TOKENS)) + text[at + n :]
    content = text.encode()
    if draw(st.booleans()):
        return content
    at = draw(st.integers(0, len(content)))
    return content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]


def outcome(got: SourceResult) -> Any:
    # Of two faults in one file, the piece in which the first one stands may show the other as well.
    told = [error.rule.replace("encoding", "malformed") for error in got.unreadable]
    tables = {name: frame.rows() for name, frame in got.tables.items()}
    return told, tables, got.quarantine.rows(), got.counts


def check_damaged(content: bytes, folder: Path) -> None:
    got = read(folder, content)
    refusals = got.quarantine.filter(got.quarantine["source_record"] > 0).height
    assert got.tables["transactions"].height + refusals == sum(file.records for file in got.files)
    assert got.tables["payment_details"].height == got.tables["transactions"].height
    if not got.unreadable and not got.counts["entries_split_by_details"]:
        assert got.counts["entries"] == got.files[0].records
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(camt_stream._Reader, "_alike", lambda _, __, at: at)  # by the parser alone
        assert outcome(read(folder, content)) == outcome(got)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xml_guard, "PIECE_BYTES", 97)  # however the file is cut into pieces
        assert outcome(read(folder, content)) == outcome(got)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=damaged())
@example(content=SEEDS[1].encode())
@example(content=SEEDS[2].encode())
def test_a_damaged_document_is_read_or_refused_and_nothing_is_lost(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_damaged(content, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=damaged())
def test_three_thousand_damaged_documents_are_read_or_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_damaged(content, tmp_path_factory.mktemp("fuzz"))


def test_shapes_see_what_the_parser_sees_in_the_samples(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = SOURCE | {"files": "**/*.xml"}
    fast = iso20022.read("samples", given, shared / "iso20022", processes=1)
    monkeypatch.setattr(camt_stream._Reader, "_alike", lambda _, __, at: at)
    assert outcome(iso20022.read("samples", given, shared / "iso20022", processes=1)) == outcome(fast)


def test_most_entries_of_a_statement_are_read_by_their_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = camt_stream._Reader._add

    def counted(self: Any, fields: Any) -> None:
        seen.append(1)
        plain(self, fields)

    monkeypatch.setattr(camt_stream._Reader, "_add", counted)
    got = read(tmp_path, document(*MANY * 20))
    assert got.counts["entries"] == 120
    assert not seen
