"""The forms that a filing comes in: XBRL 2.1, inline pages and sets, xBRL-JSON, xBRL-CSV, report packages."""

import json
from pathlib import Path
from typing import Any

import pytest

from reperform import schemas
from reperform.ingest import taxonomies, xbrl_sums
from reperform.ingest.source import SourceResult
from reperform.ingest.xbrl_rows import Fact, Footnote, without_duplicates
from reperform.simulate.bank_returns import END
from tests import filing_samples as sample

ANY: dict[str, Any] = {"files": "north/filings/*"}
META = "top/META-INF/reportPackage.json"


def read(project: Path, **more: Any) -> SourceResult:
    return sample.read(project, **{**ANY, **more})


def values(result: SourceResult) -> list[tuple[str, str, str]]:
    assert result.unreadable == ()
    schemas.checked(result.tables["facts"], schemas.FACTS)
    return result.tables["facts"].select("concept", "value", "decimals").rows()


def test_json_gives_values_lines_and_checks(project: Path) -> None:
    facts = {
        "equity": sample.json_fact("TotalEquity", "1234000"),
        "nothing": sample.json_fact("TotalAssets", None, None),
    }
    sample.write_one(project, "r.json", sample.json_report(facts))
    result = read(project)
    rows = {row["concept"]: row for row in result.tables["facts"].to_dicts()}
    assert (rows["brr:TotalEquity"]["value"], rows["brr:TotalEquity"]["unit"]) == ("1234000", "iso4217:EUR")
    assert str(rows["brr:TotalEquity"]["period_end"]) == "2025-01-31"
    assert rows["brr:TotalAssets"]["is_nil"]
    text = (project / "north" / "filings" / "r.json").read_text().splitlines()
    assert '"equity"' in text[rows["brr:TotalEquity"]["source_line"] - 1]
    assert result.tables["checks"].height > len(facts)


def test_footnotes_of_json_stand_with_their_fact(project: Path) -> None:
    noted = sample.json_fact("TotalEquity", "1000") | {"links": {"footnote": {"_": ["n"]}}}
    note = {"value": "Not audited.", "dimensions": {"concept": "xbrl:note", "noteId": "n", "language": "en"}}
    sample.write_one(project, "r.json", sample.json_report({"e": noted, "n": note}))
    result = read(project)
    assert result.quarantine.is_empty()
    assert json.loads(result.tables["facts"]["footnotes"][0]) == [{"language": "en", "text": "Not audited."}]


@pytest.mark.parametrize(
    "wrong",
    [
        sample.json_fact("Goodwill", "5"),
        sample.json_fact("TotalAssets", "5", unit="unknown:EUR"),
        sample.json_fact("TotalAssets", "5", period="yesterday"),
    ],
)
def test_a_fact_of_json_that_arelle_leaves_out_is_quarantined(project: Path, wrong: dict[str, Any]) -> None:
    sample.write_one(project, "r.json", sample.json_report({"e": sample.json_fact("TotalEquity", "1"), "w": wrong}))
    result = read(project)
    assert result.quarantine.select("rule", "value").rows() == [("fact_not_loaded", wrong["dimensions"]["concept"])]
    assert '"value": "5"' in result.quarantine["row"][0]
    assert result.files[0].records == result.tables["facts"].height + 1


def test_csv_gives_values_and_lines_of_its_table(project: Path) -> None:
    sample.write_one(project, "r.json", sample.json_report(sample.CSV_TABLES, "csv"))
    (project / "north" / "filings" / "lines.csv").write_text(sample.CSV_LINES)
    result = read(project, files="*/filings/*.json")
    assert values(result) == [("brr:TotalEquity", "1234000", "-3"), ("brr:TotalAssets", "5000000", "-3")]
    assert result.tables["facts"]["source_line"].to_list() == [2, 3]


def test_tables_of_csv_with_errors_are_refused_as_facts_would_be_lost(project: Path) -> None:
    sample.write_one(project, "r.json", sample.json_report(sample.CSV_TABLES, "csv"))
    (project / "north" / "filings" / "lines.csv").write_text(
        sample.CSV_LINES.replace("brr:TotalAssets", "brr:Goodwill")
    )
    result = read(project, files="*/filings/*.json")
    assert [error.rule for error in result.unreadable] == ["file_invalid_tables"]
    assert "Goodwill" in str(result.unreadable[0])


def test_pages_of_a_document_set_are_one_filing(project: Path) -> None:
    first = sample.write_one(project, "a.xhtml", sample.inline_page(sample.inline_fact("TotalEquity", "1,234")))
    second = sample.inline_page(sample.inline_fact("TotalAssets", "5,000"), header=False)
    first.with_name("b.xhtml").write_text(second)
    result = read(project, document_sets=True)
    assert values(result) == [("brr:TotalEquity", "1234000", "-3"), ("brr:TotalAssets", "5000000", "-3")]
    assert [(Path(file.path).name, file.records) for file in result.files] == [("a.xhtml", 2), ("b.xhtml", 0)]
    assert result.tables["filings"].height == 1


def test_facts_for_another_target_are_named(project: Path) -> None:
    facts = sample.inline_fact("TotalEquity", "1") + sample.inline_fact("TotalAssets", "2", ' target="other"')
    sample.write_one(project, "a.xhtml", sample.inline_page(facts))
    result = read(project)
    assert values(result) == [("brr:TotalEquity", "1000", "-3")]
    assert "other_target" in result.tables["messages"]["code"].to_list()


def about(kind: str = "/xbri") -> str:
    return json.dumps({"documentInfo": {"documentType": f"https://xbrl.org/report-package/2023{kind}"}})


def test_a_report_package_with_one_page(project: Path) -> None:
    page = sample.inline_page(sample.inline_fact("TotalEquity", "1,234"))
    sample.write_one(project, "r.xbri", sample.zip_of({META: about(), "top/reports/a.xhtml": page}))
    assert values(read(project)) == [("brr:TotalEquity", "1234000", "-3")]


def test_a_report_package_with_a_document_set_and_a_taxonomy_of_its_own(project: Path) -> None:
    own = "http://filer.example/own/"
    schema = f"""<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:xbrli="http://www.xbrl.org/2003/instance"
 xmlns:own="{own}" targetNamespace="{own}" elementFormDefault="qualified">
<xs:import namespace="http://www.xbrl.org/2003/instance"
 schemaLocation="http://www.xbrl.org/2003/xbrl-instance-2003-12-31.xsd"/>
<xs:element id="own_Ships" name="Ships" type="xbrli:monetaryItemType" substitutionGroup="xbrli:item" nillable="true"
 xbrli:periodType="instant"/></xs:schema>"""
    catalog = f"""<catalog xmlns="urn:oasis:names:tc:entity:xmlns:xml:catalog">
<rewriteURI uriStartString="{own}" rewritePrefix="../schemas/"/></catalog>"""
    page = sample.inline_page(sample.inline_fact("TotalEquity", "1,234")).replace(
        "</ix:references>",
        f'<link:schemaRef xlink:type="simple" xlink:href="{own}own.xsd"/></ix:references>',
    )
    ships = sample.inline_fact("TotalAssets", "7").replace("brr:TotalAssets", "own:Ships")
    second = sample.inline_page(ships, header=False).replace("<html ", f'<html xmlns:own="{own}" ')
    members = {
        META: about(),
        "top/META-INF/catalog.xml": catalog,
        "top/schemas/own.xsd": schema,
        "top/reports/set/a.xhtml": page,
        "top/reports/set/b.xhtml": second,
    }
    sample.write_one(project, "r.xbri", sample.zip_of(members))
    assert values(read(project)) == [("brr:TotalEquity", "1234000", "-3"), ("own:Ships", "7000", "-3")]
    result = read(project)
    assert "/tmp" not in "".join(result.tables["messages"]["text"])  # no folder of a run in its outputs


def test_a_report_package_with_json(project: Path) -> None:
    report = json.dumps(sample.json_report({"e": sample.json_fact("TotalEquity", "1")}))
    sample.write_one(project, "r.xbr", sample.zip_of({META: about("/xbr"), "top/reports/a.json": report}))
    assert values(read(project)) == [("brr:TotalEquity", "1", "-3")]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"top/reports/a.xhtml": "x"}, "does not say what it is"),
        ({META: about("/xbr"), "top/reports/a.xhtml": "x"}, "of another kind"),
        ({META: "[]", "top/reports/a.xhtml": "x"}, "does not say what it is"),
        ({META: about(), "top/reports/a.xhtml": "x", "top/reports/b.xhtml": "x"}, "not one report"),
        ({META: about(), "top/a.xhtml": "x"}, "not one report"),
        ({"other/x": "x"}, "not one top folder"),
        ({META: about(), "b/reports/a.xhtml": "x"}, "not one top folder"),
    ],
)
def test_a_report_package_has_its_layout(project: Path, members: dict[str, str | bytes], problem: str) -> None:
    sample.write_one(project, "r.xbri", sample.zip_of(members))
    (error,) = read(project).unreadable
    assert error.rule == "file_package_layout"
    assert problem in str(error)


def test_a_taxonomy_package_goes_where_its_catalog_says(tmp_path: Path) -> None:
    catalog = """<catalog xmlns="urn:oasis:names:tc:entity:xmlns:xml:catalog">
<rewriteURI uriStartString="https://a.example/tax/" rewritePrefix="../files/"/></catalog>"""
    package = tmp_path / "t.zip"
    package.write_bytes(sample.zip_of({"top/META-INF/catalog.xml": catalog, "top/files/deep/a.xsd": "<a/>"}))
    folder = taxonomies.gather([taxonomies.Package(package)], [], tmp_path / "below")
    assert (folder / "https" / "a.example" / "tax" / "deep" / "a.xsd").read_text() == "<a/>"


def test_footnotes_of_duplicates_come_together() -> None:
    first = Fact("a", None, None, None, "-3", "1000", footnotes=(Footnote("rough"),))
    second = Fact("a", None, None, None, "0", "1000", footnotes=(Footnote("fine", "en"),))
    (kept,), _ = without_duplicates([first, second])
    assert kept.decimals == "0"
    assert kept.row("f")[-1] == '[{"language":null,"text":"rough"},{"language":"en","text":"fine"}]'


def test_a_filing_says_how_many_sums_do_not_hold(project: Path) -> None:
    sample.write([sample.bank_return({("LoansAndAdvances", END): 710_000})], project)
    messages = sample.read(project).tables["messages"].to_dicts()
    said = [each["text"] for each in messages if each["code"] == "calculation_counts"]
    assert said == ["inconsistent sums: 1 by XBRL 2.1, 1 by Calculations 1.1"]


def test_sums_stopped_for_excess_digits_are_counted_apart() -> None:
    sums = xbrl_sums.Sums(inconsistent={"1.1": 2, "2.1": 1}, stopped=3)
    ((_, _, text, _),) = sums.summary()
    assert text == (
        "inconsistent sums: 1 by XBRL 2.1, 5 by Calculations 1.1 "
        "(2 that do not add up, 3 stopped for digits beyond the stated accuracy)"
    )
