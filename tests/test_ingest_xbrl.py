"""Reading filings: strict before Arelle, offline, every fact and every rule accounted for."""

import json
import re
import stat
import zipfile
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import schemas
from reperform.errors import ReperformError
from reperform.facts import interval
from reperform.ingest import filing_log, taxonomies, xbrl
from reperform.ingest.filing_log import DueDate
from reperform.ingest.source import SourceResult, UnreadableFileError
from reperform.ingest.xbrl_precheck import Refusal, inspect
from reperform.ingest.xbrl_rows import Fact, Task, condition, is_called_for, presence, without_duplicates
from reperform.simulate.bank_returns import END, MONTH, Return
from reperform.simulate.filings import file_name
from tests import filing_samples as sample

HOSTILE = {
    "camt_xxe.xml": "file_doctype",
    "deep.xml": "file_wrong_root",
    "empty.xbrl": "file_empty",
    "intent.xbrl": "file_doctype",
    "lol.html": "file_doctype",
    "lol.xbrl": "file_doctype",
    "malformed.xbrl": "file_malformed",
    "missingtax.xbrl": "file_taxonomy_missing",
    "quad.xbrl": "file_doctype",
    "text.xbrl": "file_malformed",
    "truncated.xbrl": "file_malformed",
    "wrongns.xbrl": "file_undefined_facts",
    "wrongroot.xml": "file_wrong_root",
    "wrongxbrlns.xbrl": "file_wrong_root",
    "xxe.xbrl": "file_doctype",
    "xxe.xsd.xbrl": "file_schema_ref",
}
SEEN_ONLY_WITH_TAXONOMY = ("missingtax.xbrl", "wrongns.xbrl")
BEGIN = '<xbrli:xbrl xmlns:xbrli="http://www.xbrl.org/2003/instance" xmlns:link="http://www.xbrl.org/2003/linkbase" '
XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


def read_one(project: Path, each: Return) -> SourceResult:
    sample.write([each], project)
    return sample.read(project)


# --- before Arelle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in SEEN_ONLY_WITH_TAXONOMY])
def test_a_hostile_file_is_refused_by_name_before_arelle_sees_it(name: str, shared: Path) -> None:
    with pytest.raises(Refusal) as caught:
        inspect(shared / "xbrl" / "hostile" / name)
    assert caught.value.rule == HOSTILE[name]
    assert caught.value.problem
    assert caught.value.got


def test_the_list_of_hostile_files_is_complete(shared: Path) -> None:
    present = {path.name for path in (shared / "xbrl" / "hostile").iterdir()}
    assert present == {*HOSTILE, "ok.xbrl"}


def test_a_plain_filing_passes(shared: Path) -> None:
    head = inspect(shared / "xbrl" / "hostile" / "ok.xbrl")
    assert head.schema_refs == [
        "https://eCollection.ferc.gov/taxonomy/form60/2022-04-01/form/form60/form-60_2022-04-01.xsd"
    ]


@pytest.mark.parametrize(
    ("inside", "rule"),
    [
        ('<link:schemaRef xlink:href="../../etc/x.xsd"/>', "file_schema_ref"),
        ('<link:schemaRef xlink:href="/etc/x.xsd"/>', "file_schema_ref"),
        ('<link:schemaRef xlink:href="ftp://x/y.xsd"/>', "file_schema_ref"),
        ('<link:linkbaseRef xlink:href="file:///etc/passwd"/>', "file_schema_ref"),
        ("<a/>", "file_no_schema_ref"),
        ("<a>" * 300 + "</a>" * 300, "file_too_deep"),
        ("<a>&undefined;</a>", "file_malformed"),
    ],
)
def test_references_and_nesting_are_checked(tmp_path: Path, inside: str, rule: str) -> None:
    path = tmp_path / "f.xbrl"
    path.write_text(f"{BEGIN}{XLINK}>{inside}</xbrli:xbrl>")
    with pytest.raises(Refusal) as caught:
        inspect(path)
    assert caught.value.rule == rule


def test_a_schema_location_hint_is_a_reference_too(tmp_path: Path) -> None:
    path = tmp_path / "f.xbrl"
    hint = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="urn:x file:///etc/passwd"'
    path.write_text(f'{BEGIN}{XLINK} {hint}><link:schemaRef xlink:href="http://x/y.xsd"/></xbrli:xbrl>')
    with pytest.raises(Refusal, match="refers to a place"):
        inspect(path)


def test_an_extension_schema_beside_the_filing_is_inspected_as_well(tmp_path: Path) -> None:
    path = tmp_path / "f.xbrl"
    path.write_text(f'{BEGIN}{XLINK}><link:schemaRef xlink:href="own.xsd"/></xbrli:xbrl>')
    schema = '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:import schemaLocation="{}"/></xs:schema>'
    (tmp_path / "own.xsd").write_text(schema.format("http://x/y.xsd"))
    assert inspect(path).schema_refs == ["own.xsd"]
    (tmp_path / "own.xsd").write_text(schema.format("file:///etc/passwd"))
    with pytest.raises(Refusal) as caught:
        inspect(path)
    assert caught.value.place.startswith("own.xsd")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.xbrl"
    path.write_text("x" * 100)
    with pytest.raises(Refusal) as caught:
        inspect(path, max_bytes=99)
    assert caught.value.rule == "file_too_large"


# --- taxonomies ------------------------------------------------------------------------------------------------------


def zipped(path: Path, *names: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, "content")
    return path


@pytest.mark.parametrize("name", ["../outside.xsd", "/etc/x.xsd", "a/../../x.xsd", "..\\x.xsd", "c:/x.xsd"])
def test_a_zip_that_would_write_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReperformError, match="outside its folder"):
        taxonomies.unpack(zipped(tmp_path / "t.zip", "fine.xsd", name), tmp_path / "out")
    assert not (tmp_path / "outside.xsd").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReperformError, match="outside its folder"):
        taxonomies.unpack(zipped(tmp_path / "t.zip", "link", mode=stat.S_IFLNK | 0o777), tmp_path / "out")


def test_a_broken_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.zip").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ReperformError, match="no readable zip"):
        taxonomies.unpack(tmp_path / "t.zip", tmp_path / "out")


def test_packages_and_cached_folders_land_where_arelle_looks(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "t.zip", "taxonomy/a.xsd")
    cached = tmp_path / "cache" / "http" / "b.example"
    cached.mkdir(parents=True)
    (cached / "b.xsd").write_text("b")
    package = taxonomies.Package(archive, "https/a.example")
    folder = taxonomies.gather([package], [tmp_path / "cache"], tmp_path / "below")
    assert (folder / "https" / "a.example" / "taxonomy" / "a.xsd").read_text() == "content"
    assert (folder / "http" / "b.example" / "b.xsd").read_text() == "b"
    assert (folder / "http" / "reperform.example" / "taxonomy" / "brr" / "2025" / "brr.xsd").is_file()
    assert taxonomies.gather([package], [tmp_path / "cache"], tmp_path / "below") == folder
    (cached / "b.xsd").write_text("changed")
    assert taxonomies.gather([package], [tmp_path / "cache"], tmp_path / "below") != folder


def test_a_missing_taxonomy_is_refused_and_the_user_told_what_to_bring(tmp_path: Path) -> None:
    href = "https://taxonomies.example/form/2099/f.xsd"
    with pytest.raises(Refusal) as caught:
        taxonomies.check_available([href], tmp_path, tmp_path)
    assert caught.value.rule == "file_taxonomy_missing"
    assert href in caught.value.expected
    assert "https/taxonomies.example" in caught.value.fix


# --- facts -----------------------------------------------------------------------------------------------------------


def test_facts_of_an_honest_return(project: Path) -> None:
    result = read_one(project, sample.bank_return())
    facts = result.tables["facts"]
    assert facts.height == len(sample.HONEST) == result.files[0].records
    rows = {(row["concept"], row["period_end"], row["dimensions"]): row for row in facts.to_dicts()}
    loans = rows["brr:LoansAndAdvances", date(2025, 1, 31), "{}"]
    assert (loans["value"], loans["unit"], loans["decimals"]) == ("700000", "iso4217:EUR", "-3")
    assert loans["period_start"] is None
    assert rows["brr:CustomerDeposits", date(2024, 12, 31), "{}"]["value"] == "800000"
    card = rows["brr:OutgoingTransactionsValue", date(2025, 1, 31), '{"brr:ChannelAxis":"brr:CardMember"}']
    assert (card["period_start"], card["value"], card["is_nil"]) == (date(2025, 1, 1), "50", False)
    assert facts["source_line"].null_count() == 0
    for name in ("filings", "facts", "messages", "checks"):
        schemas.checked(result.tables[name], schemas.CANONICAL[name])


def test_a_filing_takes_its_times_from_the_receipt_log(project: Path) -> None:
    row = read_one(project, sample.bank_return()).tables["filings"].row(0, named=True)
    assert row["filing_id"] == "north-2025-01"
    assert (row["entity_id"], row["form"]) == ("north", "brr")
    assert row["due_at"] == datetime(2025, 2, 15, 23, 59, 59, tzinfo=UTC)
    assert row["filed_at"] == datetime(2025, 2, 10, 23, 59, 59, tzinfo=UTC)
    assert row["source_file"] == "north/filings/north-2025-01.xbrl"


def test_footnotes_are_kept_as_messages(project: Path) -> None:
    notes = read_one(project, sample.bank_return()).tables["messages"]
    assert notes.select("code", "severity", "text").rows() == [
        ("footnote", "info", "brr:CustomerDeposits: Days end at midnight UTC.")
    ]


def numeric(value: str, decimals: str = "0", **more: Any) -> Fact:
    return Fact("brr:X", None, date(2025, 1, 31), "iso4217:EUR", decimals, value, **more)


def test_of_duplicates_the_most_precise_wins() -> None:
    rough, fine = numeric("1000", "-3", line=1), numeric("1234", "0", line=2)
    kept, messages = without_duplicates([rough, fine])
    assert kept == [fine]
    assert messages == []
    assert without_duplicates([replace(fine, decimals="INF"), fine])[0] == [replace(fine, decimals="INF")]


def test_duplicates_that_cannot_all_be_true_are_said() -> None:
    kept, messages = without_duplicates([numeric("1000", "-3", line=1), numeric("1600", "0", line=2)])
    assert kept == [numeric("1600", "0", line=2)]
    assert [(code, severity, line) for code, severity, _, line in messages] == [
        ("contradicting_duplicates", "inconsistency", 1)
    ]
    assert "1000 (line 1), 1600 (line 2)" in messages[0][2]


def test_facts_that_differ_in_unit_period_dimension_or_language_are_no_duplicates() -> None:
    fact = numeric("1")
    others = [
        fact,
        replace(fact, unit="iso4217:USD"),
        replace(fact, period_end=date(2025, 2, 28)),
        replace(fact, dimensions='{"a":"b"}'),
        replace(fact, unit=None, language="de"),
        replace(fact, unit=None, language="en"),
    ]
    assert without_duplicates(others) == (others, [])


def test_nil_loses_against_a_value_and_contradicts_it() -> None:
    kept, messages = without_duplicates([numeric("5"), replace(numeric("5"), value=None)])
    assert [fact.value for fact in kept] == ["5"]
    assert len(messages) == 1


@settings(max_examples=50)
@given(st.decimals(-(10**9), 10**9, places=4), st.integers(-6, 3))
def test_the_interval_of_a_rounded_number_holds_the_true_one(true: Decimal, decimals: int) -> None:
    reported = true.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN)
    low, high = interval(reported, str(decimals))
    assert low <= true <= high
    assert high - low == Decimal(1).scaleb(-decimals)
    assert interval(reported, "INF") == (reported, reported)


# --- rules -----------------------------------------------------------------------------------------------------------


def results(result: SourceResult, family: str) -> dict[str, tuple[bool, bool | None]]:
    rows = result.tables["checks"].filter(pl.col("family") == family)
    return {row["rule"]: (row["is_evaluable"], row["is_satisfied"]) for row in rows.to_dicts()}


def test_an_honest_return_meets_every_rule(project: Path) -> None:
    result = read_one(project, sample.bank_return())
    checks = result.tables["checks"]
    assert checks.filter(~pl.col("is_satisfied")).is_empty()
    assert checks.filter(~pl.col("is_evaluable"))["rule"].to_list() == [
        "brr:CashDepositsValue",
        "brr:LargeValueTransactionsValue",
        "brr:RestatementReason",
    ]
    sums = results(result, "calculation")
    assert len(sums) == 2 * 6
    assert sums["1.1 brr:TotalAssets"] == sums["2.1 brr:TotalAssets"] == (True, True)


def test_a_total_that_does_not_add_up_gives_both_gaps(project: Path) -> None:
    result = read_one(project, sample.bank_return({("LoansAndAdvances", END): 710_000}))
    wrong = result.tables["checks"].filter(~pl.col("is_satisfied")).sort("rule").to_dicts()
    assert [row["rule"] for row in wrong] == ["1.1 brr:TotalAssets", "2.1 brr:TotalAssets"]
    assert [(row["reported"], row["computed"]) for row in wrong] == [(1_000_000.0, 1_010_000.0)] * 2
    # Five numbers in thousands: half a thousand of accuracy each is taken off the gap of 10,000.
    assert [row["gap"] for row in wrong] == [7_500.0, 10_000.0]
    detail = json.loads(wrong[0]["detail"])
    assert (detail["period"], detail["unit"], detail["unreported"]) == ("2025-01-31", "iso4217:EUR", [])


def test_rounding_alone_is_no_inconsistency(project: Path) -> None:
    result = read_one(project, sample.bank_return({("TotalAssets", END): 1_001_000}))
    assert results(result, "calculation")["1.1 brr:TotalAssets"] == (True, True)
    assert results(result, "calculation")["2.1 brr:TotalAssets"] == (True, False)


def test_parts_without_their_total_cannot_be_evaluated(project: Path) -> None:
    result = read_one(project, sample.bank_return(without=[("TotalAssets", END)]))
    assert results(result, "calculation")["1.1 brr:TotalAssets"] == (False, None)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (sample.bank_return(without=[("TotalEquity", END)]), "missing"),
        (sample.bank_return({("TotalEquity", END): None}), "nil"),
    ],
)
def test_a_required_line_has_to_be_there_with_a_value(project: Path, changed: Return, reason: str) -> None:
    rows = read_one(project, changed).tables["checks"].filter(pl.col("family") == "required")
    missing = rows.filter(~pl.col("is_satisfied")).to_dicts()
    assert [(row["rule"], json.loads(row["detail"])["reason"]) for row in missing] == [("brr:TotalEquity", reason)]


def test_a_condition_calls_for_a_line(project: Path) -> None:
    restated = sample.bank_return({("IsRestatement", MONTH): True}, version="-r1")
    assert results(read_one(project, restated), "required")["brr:RestatementReason"] == (True, False)
    explained = restated.changed({("RestatementReason", MONTH): "A sum was wrong."})
    assert results(read_one(project, explained), "required")["brr:RestatementReason"] == (True, True)


def test_assertions_of_the_taxonomy_are_evaluated(project: Path) -> None:
    changes = {("OperatingExpenses", MONTH): -1_400, ("IncomingTransactionsValue", MONTH): 9_000}
    result = read_one(project, sample.bank_return(changes))
    failed = {rule for rule, (_, ok) in results(result, "assertion").items() if ok is False}
    assert failed == {"not_negative_OperatingExpenses", "identity_deposits_roll_forward"}
    said = result.tables["messages"].filter(pl.col("severity") == "error")["text"].to_list()
    assert "OperatingExpenses is negative" in said


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('decimals="-3"', 'decimals="many"', "states an accuracy that is no number: many"),
        ('contextRef="end"', 'contextRef="nowhere"', "names no context of the filing"),
    ],
)
def test_one_broken_fact_is_said_and_the_others_are_still_added_up(project: Path, old: str, new: str, why: str) -> None:
    each = sample.bank_return()
    sample.write([each], project)
    path = project / file_name(each)
    before, name, after = path.read_text().partition("<brr:ShareCapital ")
    path.write_text(before + name + after.replace(old, new, 1))
    result = sample.read(project)
    assert result.tables["facts"].height == len(sample.HONEST)
    said = result.tables["messages"].filter(pl.col("code") == "not_in_sums")
    assert said["text"].to_list() == [f"brr:ShareCapital {why}"]
    assert said["source_line"].null_count() == 0
    assert results(result, "calculation")["1.1 brr:TotalAssets"] == (True, True)


TASK = Task(Path(), Path(), "f", "e", date(2025, 1, 1), date(2025, 1, 31))


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        (numeric("1"), (True, None)),
        (None, (False, "missing")),
        (replace(numeric("1"), period_start=date(2024, 12, 1)), (False, "wrong period")),
        (replace(numeric("1"), period_end=date(2024, 12, 31)), (False, "wrong period")),
        (replace(numeric("1"), dimensions='{"a":"b"}'), (False, "only by dimension")),
        (replace(numeric("1"), value=None), (False, "nil")),
        (replace(numeric("x"), is_valid=False), (False, "invalid value")),
    ],
)
def test_presence_says_what_is_wrong(fact: Fact | None, expected: tuple[bool, str | None]) -> None:
    assert presence([] if fact is None else [fact], TASK) == expected


def test_a_condition_may_have_a_limit() -> None:
    cause, limit = condition("ferc:Revenues > 500000")
    assert (cause, limit) == ("ferc:Revenues", Decimal(500_000))
    assert condition("ferc:Revenues") == ("ferc:Revenues", Decimal(0))
    assert not is_called_for([numeric("500000")], TASK, limit)
    assert is_called_for([numeric("500001")], TASK, limit)
    assert is_called_for([replace(numeric("true"), unit=None)], TASK)


# --- receipts and policy ---------------------------------------------------------------------------------------------


def test_a_filing_without_a_receipt_is_refused_and_the_rest_is_read(project: Path) -> None:
    sample.write([sample.bank_return()], project)
    stray = project / "north" / "filings" / "stray.xbrl"
    stray.write_text("<x/>")
    result = sample.read(project)
    assert [(error.path, error.rule) for error in result.unreadable] == [
        ("north/filings/stray.xbrl", "file_no_receipt")
    ]
    assert result.tables["filings"].height == 1
    assert len(result.files) == 2


def test_a_receipt_without_its_file_is_refused(project: Path) -> None:
    here, gone = sample.bank_return(), sample.bank_return(month=sample.FEBRUARY)
    sample.write([here, gone], project)
    (project / file_name(gone)).unlink()
    result = sample.read(project)
    assert [(error.path, error.rule) for error in result.unreadable] == [(file_name(gone), "file_missing")]


def test_the_policy_stop_raises_for_the_first_unreadable_file(project: Path) -> None:
    sample.write([sample.bank_return()], project)
    (project / "north" / "filings" / "north-2025-01.xbrl").write_text("<broken")
    with pytest.raises(UnreadableFileError, match="not well-formed"):
        sample.read(project, on_unreadable_file="stop")
    assert sample.read(project).unreadable[0].rule == "file_malformed"


def test_a_filing_for_another_entity_is_said(project: Path) -> None:
    each = sample.bank_return()
    sample.write([each], project)
    path = project / file_name(each)
    path.write_text(path.read_text().replace(">north</xbrli:identifier>", ">south</xbrli:identifier>"))
    codes = sample.read(project).tables["messages"].filter(pl.col("severity") == "error")["code"].to_list()
    assert codes == ["wrong_entity"]


def test_a_fact_that_the_taxonomy_does_not_define_is_quarantined(project: Path) -> None:
    each = sample.bank_return()
    sample.write([each], project)
    path = project / file_name(each)
    path.write_text(
        path.read_text().replace("</xbrli:xbrl>", '<brr:Goodwill contextRef="end">7</brr:Goodwill></xbrli:xbrl>')
    )
    result = sample.read(project)
    schemas.checked(result.quarantine, schemas.QUARANTINE)
    row = result.quarantine.row(0, named=True)
    assert (row["rule"], row["value"], row["source_file"]) == ("undefined_concept", "brr:Goodwill", file_name(each))
    assert ">7</brr:Goodwill>" in row["row"]
    assert result.files[0].records == result.tables["facts"].height + result.quarantine.height


def test_an_exclusion_that_matches_nothing_is_an_error(project: Path) -> None:
    sample.write([sample.bank_return()], project)
    with pytest.raises(ReperformError, match="has no files"):
        sample.read(project, exclude=["nothing/*.xbrl"])
    sample.write([sample.bank_return(), sample.bank_return(month=sample.FEBRUARY)], project)
    result = sample.read(project, exclude=["north/filings/*-02.xbrl"])
    assert result.tables["filings"]["filing_id"].to_list() == ["north-2025-01"]


def test_a_misspelt_setting_is_named(project: Path) -> None:
    with pytest.raises(ReperformError, match="taxonomies"):
        sample.read(project, taxonomy=[])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("2025-02-10T23:59:59Z", "2025-02-10 23:59", "cannot be read"),
        ("2025-02-10T23:59:59Z", "", "has no filed_at"),
        ("filed_at", "received", "lacks columns"),
    ],
)
def test_a_faulty_receipt_log_is_explained(project: Path, old: str, new: str, problem: str) -> None:
    sample.write([sample.bank_return()], project)
    log = project / "filings.csv"
    log.write_text(log.read_text().replace(old, new))
    with pytest.raises(ReperformError, match=problem):
        filing_log.from_csv(log, project)


def test_a_filing_listed_twice_is_refused(project: Path) -> None:
    sample.write([sample.bank_return()], project)
    log = project / "filings.csv"
    log.write_text(log.read_text() + log.read_text().splitlines()[1] + "\n")
    with pytest.raises(ReperformError, match="listed twice"):
        filing_log.from_csv(log, project)


def test_a_due_day_at_the_weekend_moves_to_monday() -> None:
    may_1 = DueDate("05-01", "America/New_York")
    assert may_1.after(date(2021, 12, 31)) == datetime(2022, 5, 3, 3, 59, 59, tzinfo=UTC)  # 2022-05-01 is a Sunday
    assert may_1.after(date(2022, 12, 31)) == datetime(2023, 5, 2, 3, 59, 59, tzinfo=UTC)


# --- other forms of XBRL, and the real filings -----------------------------------------------------------------------

INLINE = """<?xml version="1.0" encoding="UTF-8"?>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:ix="http://www.xbrl.org/2013/inlineXBRL"
 xmlns:xbrli="http://www.xbrl.org/2003/instance" xmlns:link="http://www.xbrl.org/2003/linkbase"
 xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:iso4217="http://www.xbrl.org/2003/iso4217"
 xmlns:ixt="http://www.xbrl.org/inlineXBRL/transformation/2020-02-12" xmlns:brr="http://reperform.example/taxonomy/brr/2025">
<head><title>Return</title></head><body><div style="display:none"><ix:header><ix:references>
<link:schemaRef xlink:type="simple" xlink:href="http://reperform.example/taxonomy/brr/2025/brr.xsd"/></ix:references>
<ix:resources><xbrli:context id="e"><xbrli:entity>
<xbrli:identifier scheme="http://reperform.example/institution">north</xbrli:identifier></xbrli:entity>
<xbrli:period><xbrli:instant>2025-01-31</xbrli:instant></xbrli:period></xbrli:context>
<xbrli:unit id="EUR"><xbrli:measure>iso4217:EUR</xbrli:measure></xbrli:unit></ix:resources></ix:header></div>
<p>Equity: <ix:nonFraction name="brr:TotalEquity" contextRef="e" unitRef="EUR" decimals="-3" scale="3"
 format="ixt:num-dot-decimal">1,234</ix:nonFraction> thousand</p></body></html>"""


def test_inline_xbrl_gives_the_scaled_value(project: Path) -> None:
    each = sample.bank_return()
    sample.write([each], project)
    (project / file_name(each)).write_text(INLINE)
    facts = sample.read(project).tables["facts"]
    assert facts.select("concept", "value", "decimals").rows() == [("brr:TotalEquity", "1234000", "-3")]


def test_two_reads_give_the_same_tables(project: Path) -> None:
    sample.write([sample.bank_return(), sample.bank_return(month=sample.FEBRUARY)], project)
    first, second = sample.read(project), sample.read(project)
    assert all(first.tables[name].equals(second.tables[name]) for name in first.tables)


@pytest.mark.slow
def test_two_processes_give_the_same_tables(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample.write([sample.bank_return(), sample.bank_return(month=sample.FEBRUARY)], project)
    alone = sample.read(project)
    monkeypatch.setattr(xbrl, "WORTH_A_PROCESS_BYTES", 0)
    together = sample.read(project, processes=2)
    assert all(alone.tables[name].equals(together.tables[name]) for name in alone.tables)


FERC: dict[str, Any] = {
    "kind": "xbrl",
    "receipts": {"ferc_feeds": "ferc/*/rssfeed"},
    "taxonomies": [{"files": "taxonomies/*.zip", "host": "https/eCollection.ferc.gov"}],
    "cache": ["cache"],
    "due": {"ferc1": "04-18", "ferc6": "04-18", "ferc60": "05-01"},
    "due_time_zone": "America/New_York",
}


@pytest.mark.slow
def test_hostile_files_that_only_their_taxonomy_betrays(project: Path, shared: Path) -> None:
    folder = shared / "xbrl"
    packages = [taxonomies.Package(folder / "taxonomies" / "form-60-2022-04-01.zip", "https/eCollection.ferc.gov")]
    cache = taxonomies.gather(packages, [folder / "cache"], project / ".cache")
    for name in (*SEEN_ONLY_WITH_TAXONOMY, "ok.xbrl"):
        task = Task(folder / "hostile" / name, cache, "f", "e", date(2021, 1, 1), date(2021, 12, 31))
        answer = xbrl.read_filing(task)
        if name == "ok.xbrl":
            assert not isinstance(answer, Refusal)
            assert answer.facts_read == 2
            assert [(concept, value) for _, concept, value, *_ in answer.refused] == [("ferc:TimeZone", "EST")]
        else:
            assert isinstance(answer, Refusal)
            assert answer.rule == HOSTILE[name]


SEC_PARTS = ("_cal.xml", "_def.xml", "_lab.xml", "_pre.xml")


@pytest.mark.slow
def test_filings_whose_standard_taxonomy_is_absent_are_refused_with_its_addresses(project: Path, shared: Path) -> None:
    cache = taxonomies.gather([], [], project / ".cache")
    paths = sorted(shared.glob("xbrl/sec/*/*.xml"))
    instances = [path for path in paths if not path.name.endswith(SEC_PARTS)]
    assert len(instances) == 8
    for path in instances:
        answer = xbrl.read_filing(Task(path, cache, "f", "e", date(2009, 1, 1), date(2009, 12, 31)))
        assert isinstance(answer, Refusal)
        assert answer.rule == "file_taxonomy_missing", path.name
        assert "http" in answer.expected or answer.expected.endswith(".xsd")
        assert "put" in answer.fix


LISTED = re.compile(r"^\| (ferc/.*?) \| \d+ \| (\d+) \| \d+ \| \d+ \| (\d+) \| (\d+) \|$", re.MULTILINE)
SAID = re.compile(r"inconsistent sums: (\d+) by XBRL 2.1, (\d+) by Calculations 1.1")
SMALL = [  # of each form and year, with every kind of count: none, only by 2.1, equal, and stopped for excess digits
    "ferc60-xbrl-2022/ATC_Management_Inc._form60_Q4_1682952743.xbrl",
    "ferc60-xbrl-2022/Onward_Energy_Management,_LLC_form60_Q4_1682610076.xbrl",
    "ferc60-xbrl-2023/Liberty_Energy_Utilities_(New_Hampshire)_Corp._form60_Q4_1714163340.xbrl",
    "ferc6-xbrl-2021/Alexander_Connector,_LLC_form6_Q4_1650052345.xbrl",
    "ferc6-xbrl-2021/Alpine_Transportation_Company_form6_Q4_1648663742.xbrl",
    "ferc6-xbrl-2021/Bayou_Bridge_Pipeline_LLC_form6_Q4_1649950416.xbrl",
    "ferc6-xbrl-2022/Arrowhead_South_Texas_Pipeline,_LLC_form6_Q4_1681764650.xbrl",
    "ferc6-xbrl-2023/JBBR_Pipeline_LLC_form6_Q4_1712586318.xbrl",
    "ferc1-xbrl-2021/Desertlink,_Llc_form1_Q4_1650052285.xbrl",
    "ferc1-xbrl-2023/Evergy_Generating,_Inc._form1_Q4_1713549569.xbrl",
]


@pytest.mark.slow
def test_real_filings_give_the_counts_that_are_known(project: Path, shared: Path) -> None:
    """Facts and inconsistent sums of FERC filings, as counted independently in FILINGS.md (all 80 agree)."""
    text = (shared / "xbrl" / "FILINGS.md").read_text(encoding="utf-8")
    listed = {file: tuple(map(int, counts)) for file, *counts in LISTED.findall(text)}
    files = [f"ferc/{name}" for name in SMALL]
    result = xbrl.read("ferc", FERC | {"files": files}, shared / "xbrl", processes=2)
    assert result.unreadable == ()
    counted = result.tables["messages"].filter(pl.col("code") == "calculation_counts")
    said = dict(counted.select("filing_id", "text").rows())
    bad = result.tables["checks"].filter(~pl.col("is_satisfied") & (pl.col("family") == "calculation"))
    excess = result.tables["messages"].filter(pl.col("code") == "calc11e:excessDigits")
    for file in result.files:
        filing_id = Path(file.path).stem
        told = SAID.match(said.get(filing_id, ""))
        got = (file.records, *(map(int, told.groups()) if told else (0, 0)))
        assert got == listed[file.path], file.path
        rules = bad.filter(pl.col("filing_id") == filing_id)["rule"]
        stopped = excess.filter(pl.col("filing_id") == filing_id).height
        by_mode = [int(rules.str.starts_with(mode).sum()) for mode in ("2.1", "1.1")]
        assert got[1:] == (by_mode[0], by_mode[1] + stopped), file.path
