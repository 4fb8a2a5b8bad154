"""Filings and taxonomies that want more than to be read: each is refused before Arelle opens it, and says why."""

import json
import os
import socket
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reperform.errors import ReperformError
from reperform.ingest import safe_zip, taxonomies
from reperform.ingest.source import UnreadableFileError
from reperform.ingest.xbrl_oim import inspect_oim
from reperform.ingest.xbrl_precheck import MAX_TEXT_BYTES, Refusal, inspect, is_safe_address
from reperform.simulate.filings import instance
from tests import filing_samples as sample

XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
BEGIN = f'<x:xbrl xmlns:x="http://www.xbrl.org/2003/instance" xmlns:link="http://www.xbrl.org/2003/linkbase" {XLINK}>'
INSTANCE = BEGIN + '<link:schemaRef xlink:href="{}"/>{}</x:xbrl>'
SCHEMA = '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">{}</xs:schema>'
LINKBASE = f'<link:linkbase xmlns:link="http://www.xbrl.org/2003/linkbase" {XLINK}>{{}}</link:linkbase>'
ENTITY = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
EXPANSION = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
INCLUDE = '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="/etc/passwd" parse="text"/>'
FORMULA = '<v:generalVariable xmlns:v="http://xbrl.org/2008/variable" select="doc(\'file:///etc/passwd\')"/>'


def refusal(path: Path, look: Callable[[Path], object] = inspect) -> Refusal:
    """Why a file is refused; every refusal says what, and what to do."""
    with pytest.raises(Refusal) as caught:
        look(path)
    assert caught.value.problem
    assert caught.value.got
    assert caught.value.fix
    return caught.value


# --- XML: instance, schema and linkbase ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "inside", "rule"),
    [
        (ENTITY, "", "file_doctype"),
        (EXPANSION, "", "file_doctype"),
        ("", INCLUDE, "file_include"),
        ("", FORMULA, "file_own_rules"),
    ],
)
@pytest.mark.parametrize("where", ["instance", "schema", "linkbase"])
def test_entities_includes_and_formulas_are_refused_wherever_they_stand(
    tmp_path: Path, where: str, before: str, inside: str, rule: str
) -> None:
    parts = dict.fromkeys(("instance", "schema", "linkbase"), ("", ""))
    parts[where] = (before, inside)
    (tmp_path / "f.xbrl").write_text(parts["instance"][0] + INSTANCE.format("own.xsd", parts["instance"][1]))
    link = f'<link:linkbaseRef xmlns:link="http://www.xbrl.org/2003/linkbase" {XLINK} xlink:href="l.xml"/>'
    (tmp_path / "own.xsd").write_text(parts["schema"][0] + SCHEMA.format(link + parts["schema"][1]))
    (tmp_path / "l.xml").write_text(parts["linkbase"][0] + LINKBASE.format(parts["linkbase"][1]))
    found = refusal(tmp_path / "f.xbrl")
    assert found.rule == rule
    assert found.place.startswith({"instance": "line", "schema": "own.xsd line", "linkbase": "l.xml line"}[where])


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/x.xsd",
        "/etc/x.xsd",
        "../x.xsd",
        "..",
        "a/../../x.xsd",
        "%2e%2e/x.xsd",
        "%252e%252e/x.xsd",
        "..\\x.xsd",
        "c:x.xsd",
        "ftp://a.example/x.xsd",
        "http://a.example/../../../etc/x.xsd",
        "http://a.example/%2e%2e/x.xsd",
        "http://../etc/x.xsd",
        "http:///etc/x.xsd",
        "http://a.example\\..\\x.xsd",
        "http://a.example/x.xsd\u0000",
        "",
    ],
)
def test_no_address_leads_out_of_the_allowed_folders(tmp_path: Path, address: str) -> None:
    assert not is_safe_address(address)
    assert not is_safe_address(address, "")
    if "\u0000" not in address:
        (tmp_path / "f.xbrl").write_text(INSTANCE.format(address, ""))
        assert refusal(tmp_path / "f.xbrl").rule == "file_schema_ref"


def test_addresses_on_the_web_and_beside_the_filing_are_fine() -> None:
    assert is_safe_address("https://a.example/t/x.xsd#id")
    assert is_safe_address("own-2025.xsd")
    assert not is_safe_address("below/own.xsd")
    assert is_safe_address("../schemas/own.xsd", "top/reports")
    assert not is_safe_address("../../../own.xsd", "top/reports")


@pytest.mark.parametrize(
    "moved",
    [
        '<a xml:base="file:///etc/"/>',
        '<html:base xmlns:html="http://www.w3.org/1999/xhtml" href="/etc/"/>',
        '<link:footnoteLink><link:loc xlink:href="file:///etc/passwd#a"/></link:footnoteLink>',
        '<a xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="/etc/passwd"/>',
    ],
)
def test_no_other_attribute_moves_the_place(tmp_path: Path, moved: str) -> None:
    (tmp_path / "f.xbrl").write_text(INSTANCE.format("http://a.example/x.xsd", moved))
    assert refusal(tmp_path / "f.xbrl").rule == "file_schema_ref"


@pytest.mark.parametrize("encoding", ["utf-7", "cp037", "no-such"])
def test_an_encoding_that_hides_markup_is_refused(tmp_path: Path, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + INSTANCE.format("file:///etc/passwd", "")
    (tmp_path / "f.xbrl").write_bytes(text.encode("ascii" if encoding == "no-such" else encoding))
    assert refusal(tmp_path / "f.xbrl").rule in {"file_malformed", "file_schema_ref"}


@pytest.mark.parametrize("where", ["text", "attribute", "comment"])
def test_a_text_of_200_mb_is_refused_in_bounded_memory(tmp_path: Path, where: str) -> None:
    begin, end = {"text": ("<a>", "</a>"), "attribute": ('<a b="', '"/>'), "comment": ("<!--", "-->")}[where]
    path = tmp_path / "f.xbrl"
    with path.open("w") as out:
        out.write(INSTANCE.format("http://a.example/x.xsd", begin).removesuffix("</x:xbrl>"))
        for _ in range(200):
            out.write("x" * 1_000_000)
        out.write(f"{end}</x:xbrl>")
    tracemalloc.start()
    found = refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.rule == "file_text_too_long"
    assert peak < 10 * MAX_TEXT_BYTES


# --- JSON and CSV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[" * 100_000 + "]" * 100_000, "file_too_deep"),
        ('{"a":' * 50 + "1" + "}" * 50, "file_too_deep"),
        ('{"documentInfo": {}, "documentInfo": {}}', "file_duplicate_key"),
        ('{"documentInfo": {"documentType": NaN}}', "file_malformed"),
        ('{"n": ' + "1" * 5_000 + "}", "file_malformed"),
        ('{"documentInfo": ', "file_malformed"),
        ('{"documentInfo": {"documentType": "https://xbrl.org/2021/other"}}', "file_wrong_root"),
        ("[]", "file_wrong_root"),
        ("null", "file_wrong_root"),
        ('{"documentInfo": []}', "file_wrong_root"),
        ("", "file_empty"),
    ],
)
def test_json_bombs_and_other_json_are_refused(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert refusal(tmp_path / "r.json", inspect_oim).rule == rule


def test_a_duplicate_key_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{\n "a": 1,\n "a": 2\n}')
    found = refusal(tmp_path / "r.json", inspect_oim)
    assert (found.got, found.place) == ("a", "r.json line 3")


def test_json_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes('{"a": "ü"}'.encode("latin-1"))
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_malformed"


def test_a_long_text_in_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"a": {"b": ["x" * (MAX_TEXT_BYTES + 1)]}}))
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_text_too_long"


def test_json_of_200_mb_is_refused_unopened(tmp_path: Path) -> None:
    with (tmp_path / "r.json").open("wb") as out:
        out.truncate(200_000_000)
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_too_large"


@pytest.mark.parametrize(
    "address", ["/etc/x.csv", "../x.csv", "file:///x.csv", "http://a.example/x.csv", "x.xlsx", "x.csv#s"]
)
def test_tables_stand_in_the_folder_of_the_report(tmp_path: Path, address: str) -> None:
    for member in ({"tables": {"t": {"url": address}}}, {"parameterURL": address}):
        (tmp_path / "r.json").write_text(json.dumps(sample.json_report(sample.CSV_TABLES | member, "csv")))
        (tmp_path / "lines.csv").write_text(sample.CSV_LINES)
        assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_schema_ref"


@pytest.mark.parametrize(
    "info",
    [
        {"taxonomy": ["file:///etc/x.xsd"]},
        {"taxonomy": ["../x.xsd"]},
        {"extends": ["../x.json"]},
        {"extends": ["/etc/x.json"]},
        {"baseURL": "file:///etc/"},
        {"baseURL": "/etc/"},
    ],
)
def test_metadata_refer_to_nothing_outside(tmp_path: Path, info: dict[str, Any]) -> None:
    (tmp_path / "r.json").write_text(json.dumps(sample.json_report({}, "csv", **info)))
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_schema_ref"


def test_metadata_that_are_extended_are_looked_at_as_well(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(sample.json_report({}, "csv", extends=["other.json"])))
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_part_missing"
    other = sample.json_report({"tables": {"t": {"url": "../x.csv"}}}, "csv", extends=["r.json"])
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_schema_ref"


def test_a_missing_table_and_an_endless_field_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(sample.json_report(sample.CSV_TABLES, "csv")))
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_part_missing"
    (tmp_path / "lines.csv").write_text(sample.CSV_LINES + "x" * (MAX_TEXT_BYTES + 1))
    assert refusal(tmp_path / "r.json", inspect_oim).rule == "file_text_too_long"
    (tmp_path / "lines.csv").write_text(sample.CSV_LINES)
    assert [path.name for path in inspect_oim(tmp_path / "r.json").inspected] == ["r.json", "lines.csv"]


# --- zips: taxonomy packages and report packages ---------------------------------------------------------------------


def hostile_zips() -> dict[str, tuple[bytes, str]]:
    """Zips and what is said of them."""
    link = zipfile.ZipInfo("top/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    encrypted = bytearray(sample.zip_of({"top/a.xml": "<a/>"}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = encrypted.index(mark) + at
        encrypted[place] |= 1
    longer = bytearray(sample.zip_of({"top/a.xml": "<a>" + "b" * 100 + "</a>"}))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = longer.index(mark) + at
        longer[place : place + 4] = struct.pack("<I", 10)
    return {
        "up": (sample.zip_of({"../outside.xml": "x"}), "outside its folder"),
        "root": (sample.zip_of({"/etc/outside.xml": "x"}), "outside its folder"),
        "back": (sample.zip_of({"top\\..\\..\\x": "x"}), "outside its folder"),
        "drive": (sample.zip_of({"c:/x": "x"}), "outside its folder"),
        "link": (sample.zip_of({link: "/etc"}), "outside its folder"),  # type: ignore[dict-item]
        "twice": (sample.zip_of({"top/a.xml": "x", "top/A.xml": "y"}), "stands twice"),
        "ratio": (sample.zip_of({"top/a.xml": "0" * (4 << 20)}), "far more than it holds"),
        "encrypted": (bytes(encrypted), "encrypted"),
        "longer": (bytes(longer), "no readable zip"),
        "nested": (sample.zip_of({"top/a": "x", "top/a/b": "y"}), "cannot be written"),
        "broken": (b"PK\x03\x04 broken", "no readable zip"),
        "text": (b"hello", "no readable zip"),
    }


@pytest.mark.parametrize("name", hostile_zips())
def test_a_hostile_zip_is_refused_as_taxonomy_and_as_report(project: Path, tmp_path: Path, name: str) -> None:
    content, problem = hostile_zips()[name]
    package = tmp_path / "t.zip"
    package.write_bytes(content)
    with pytest.raises(ReperformError, match=problem):
        taxonomies.gather([taxonomies.Package(package, "http/a.example")], [], tmp_path / "below")
    sample.write_one(project, "r.xbri", content)
    (error,) = sample.read(project, files="north/filings/*").unreadable
    assert error.rule == "file_package_unsafe"
    assert problem in str(error)
    assert not any(path.name.startswith("outside") for path in tmp_path.parent.rglob("outside*"))


def test_a_zip_has_an_absolute_limit(tmp_path: Path) -> None:
    (tmp_path / "t.zip").write_bytes(sample.zip_of({"a": os.urandom(2_000), "b": os.urandom(2_000)}))
    with pytest.raises(safe_zip.UnsafeZipError) as caught:
        safe_zip.unpack(tmp_path / "t.zip", tmp_path / "out", 3_999)
    assert caught.value.got == "4000 bytes in 2 files"
    assert len(safe_zip.unpack(tmp_path / "t.zip", tmp_path / "out", 4_000)) == 2


@pytest.mark.parametrize("place", ["META-INF/catalog.xml", "top/META-INF/catalog.xml"])
@pytest.mark.parametrize(("start", "prefix"), [("http://a.example/", "../../../x/"), ("file:///etc/", "../x/")])
def test_a_catalog_maps_within_its_package(tmp_path: Path, place: str, start: str, prefix: str) -> None:
    rule = f'<rewriteURI uriStartString="{start}" rewritePrefix="{prefix}"/>'
    catalog = f'<catalog xmlns="urn:oasis:names:tc:entity:xmlns:xml:catalog">{rule}</catalog>'
    (tmp_path / "t.zip").write_bytes(sample.zip_of({place: catalog}))
    with pytest.raises(ReperformError, match="outside its package"):
        taxonomies.gather([taxonomies.Package(tmp_path / "t.zip")], [], tmp_path / "below")


@pytest.mark.parametrize(
    "content",
    [
        ENTITY + SCHEMA.format(""),
        EXPANSION + SCHEMA.format(""),
        SCHEMA.format(INCLUDE),
        SCHEMA.format('<xs:import schemaLocation="file:///etc/passwd"/>'),
        SCHEMA.format("<xs:include schemaLocation='../../../../../etc/passwd'/>"),
        SCHEMA.format('<xs:import schemaLocation="&#x2e;&#x2e;/../../../../etc/passwd"/>'),
        SCHEMA.format(f'<a {XLINK} xlink:href="/etc/passwd"/>'),
        SCHEMA.format('<xs:appinfo xml:base="file:///etc/"/>'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_taxonomy_file_leads_nowhere_else(tmp_path: Path, content: str, encoding: str) -> None:
    package = tmp_path / "t.zip"
    package.write_bytes(sample.zip_of({"tax/fine.xsd": SCHEMA.format(""), "tax/own.xsd": content.encode(encoding)}))
    with pytest.raises(ReperformError, match=r"http/a\.example/tax/own\.xsd, line 1"):
        taxonomies.gather([taxonomies.Package(package, "http/a.example")], [], tmp_path / "below")


# --- no network ------------------------------------------------------------------------------------------------------


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach another machine."""
    made: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        made.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "gethostbyname", refuse)
    return made


def test_a_guard_that_sees_attempts(attempts: list[object]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("a.example", 80))
    assert attempts


def only_error(project: Path) -> UnreadableFileError:
    (error,) = sample.read(project, files="north/filings/r.*").unreadable
    return error


def test_a_taxonomy_that_is_not_here_is_named_and_not_fetched(project: Path, attempts: list[object]) -> None:
    address = "https://taxonomies.example/2099/f.xsd"
    forms: dict[str, Any] = {
        "r.xbrl": instance(sample.bank_return()).replace(sample.SCHEMA, address),
        "r.xhtml": sample.inline_page(sample.inline_fact("TotalEquity", "1")).replace(sample.SCHEMA, address),
        "r.json": sample.json_report({"e": sample.json_fact("TotalEquity", "1")}, taxonomy=[address]),
    }
    for name, content in forms.items():
        path = sample.write_one(project, name, content)
        error = only_error(project)
        assert error.rule == "file_taxonomy_missing"
        assert address in str(error)
        assert "https/taxonomies.example" in str(error)
        path.unlink()
    assert attempts == []


def test_references_to_the_web_beyond_the_first_are_not_fetched_either(project: Path, attempts: list[object]) -> None:
    whole = instance(sample.bank_return())
    own = SCHEMA.format(
        '<xs:import namespace="http://a.example" schemaLocation="http://a.example/a.xsd"/>'
        f'<xs:annotation><xs:appinfo><link:linkbaseRef xmlns:link="http://www.xbrl.org/2003/linkbase" {XLINK} '
        'xlink:type="simple" xlink:href="http://a.example/l.xml"/></xs:appinfo></xs:annotation>'
    )
    first = whole.index("<link:schemaRef")
    extra = (
        '<link:schemaRef xlink:type="simple" xlink:href="own.xsd"/>'
        '<link:linkbaseRef xlink:type="simple" xlink:href="http://a.example/labels.xml" '
        'xlink:arcrole="http://www.w3.org/1999/xlink/properties/linkbase"/>'
    )
    path = sample.write_one(project, "r.xbrl", whole[:first] + extra + whole[first:])
    path.with_name("own.xsd").write_text(own)
    result = sample.read(project, files="north/filings/r.xbrl")
    assert attempts == []
    told = str(result.unreadable) + " ".join(result.tables["messages"]["text"])
    assert "http://a.example/labels.xml" in told


def test_reading_runs_without_any_network(project: Path, attempts: list[object]) -> None:
    sample.write([sample.bank_return()], project)
    assert sample.read(project).tables["facts"].height == len(sample.HONEST)
    assert attempts == []
