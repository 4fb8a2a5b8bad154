"""A report prints only what a stage produced, says where from, and renders to the same bytes."""

import base64
import json
from pathlib import Path

import polars as pl
import pypandoc
import pytest

from reperform import params, report
from reperform.errors import ReperformError
from reperform.markup import formatted, pipe_table
from reperform.report import narration, pages, render
from reperform.report.evidence import Evidence
from tests.conftest import ROOT

METRICS = {"ensemble": {"average_precision": {"estimate": 0.7123, "low": 0.65, "high": 0.7654, "n": 10}}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    (tmp_path / "data" / "evaluate").mkdir(parents=True)
    (tmp_path / "data" / "evaluate" / "metrics.json").write_text(json.dumps(METRICS))
    return Evidence(tmp_path, tmp_path / "build" / "figures")


def test_a_number_is_printed_with_its_interval_and_its_source(evidence: Evidence) -> None:
    got = evidence.value("evaluate/metrics", "ensemble.average_precision")
    assert "0.712 (0.65 to 0.765)" in got
    assert "data/evaluate/metrics.json: ensemble.average_precision" in got


def test_a_number_that_no_stage_produced_is_refused(evidence: Evidence) -> None:
    with pytest.raises(ReperformError, match=r"no stage produced[\s\S]*average_precision"):
        evidence.value("evaluate/metrics", "ensemble.average_precison")


def test_an_output_that_does_not_exist_is_refused(evidence: Evidence) -> None:
    with pytest.raises(ReperformError, match="dvc repro explain"):
        evidence.value("explain/quality", "index")


def test_sources_list_every_file_that_was_read(evidence: Evidence) -> None:
    evidence.value("evaluate/metrics", "ensemble.average_precision")
    (got,) = evidence.sources()
    assert got["output"] == "`data/evaluate/metrics.json`"
    assert got["read"] == "ensemble.average_precision"


@pytest.mark.parametrize(
    ("value", "style", "expected"),
    [
        (None, "auto", "n/a"),
        (True, "auto", "yes"),
        (1234567, "auto", "1,234,567"),
        (0.01234, "percent", "1.2 %"),
        (0.000123, "auto", "0.000123"),
        (12.3456, "auto", "12.35"),
        (12.3456, ".1f", "12.3"),
        ("a", "auto", "a"),
    ],
)
def test_values_are_formatted_for_people(value: object, style: str, expected: str) -> None:
    assert formatted(value, style) == expected


def test_numbers_stand_right_and_text_left() -> None:
    got = pipe_table([{"name": "a|b", "n": 3}], {"name": "name", "n": "rows"})
    assert got.splitlines() == ["| name | rows |", "|:-----|-----:|", "| a\\|b | 3 |"]


def test_the_bridge_shows_the_best_explanation_of_each_total(evidence: Evidence) -> None:
    assert pages.bridge_table(evidence) == []  # a run without the table has nothing to show
    channel = '{"brr:ChannelAxis":"brr:CashMember"}'
    told = {"filing_id": "f", "concept": "brr:CashDepositsValue", "lines_explained": 2, "lines_failed": 3}
    rows = [told | {"rank": rank, "dimensions": of} for of in ("{}", channel) for rank in (1, 2)]
    (evidence.root / "data/featurize").mkdir()
    pl.DataFrame(rows).write_parquet(evidence.root / "data/featurize/filing_bridge.parquet")
    got = pages.bridge_table(evidence)
    assert [(row["line"], row["mends"]) for row in got] == [
        ("CashDepositsValue", "2 of 3"),
        ("CashDepositsValue Cash", "2 of 3"),
    ]


def page(text: str, folder: Path) -> Path:
    path = folder / "page.qmd"
    path.write_text("---\ntitle: Page\n---\n\n" + text)
    return path


def pandoc() -> render.Renderer:
    return render.Renderer("pandoc", str(pypandoc.get_pandoc_version()), pypandoc.get_pandoc_path())


def test_tables_are_numbered_and_referred_to(evidence: Evidence, tmp_path: Path) -> None:
    table = evidence.table(pl.DataFrame({"detector": ["rules"], "alerts": [3]}), "Alerts.", "tbl-alerts")
    html = render.render(page(f"See @tbl-alerts.\n\n{table}\n", tmp_path), tmp_path / "page.html", pandoc()).read_text()
    assert "Table 1" in html
    assert 'href="#tbl-alerts"' in html


def test_rendering_twice_gives_the_same_bytes_and_no_outside_address(tmp_path: Path) -> None:
    source = page("# One {#sec-one}\n\nSee @sec-one. $$x^2$$\n", tmp_path)
    first = render.render(source, tmp_path / "a.html", pandoc()).read_bytes()
    assert render.render(source, tmp_path / "b.html", pandoc()).read_bytes() == first
    assert b'src="http' not in first


@pytest.mark.parametrize("text", ["See @fig-none.", "![a](missing.png)", "See [@nobody2020]."])
def test_broken_references_fail_the_build(text: str, tmp_path: Path) -> None:
    with pytest.raises(ReperformError, match="could not be rendered"):
        render.render(page(text, tmp_path), tmp_path / "page.html", pandoc())


def notebook(tmp_path: Path, *cells: dict[str, object]) -> Path:
    path = tmp_path / "02_validate.ipynb"
    path.write_text(json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_an_executed_notebook_becomes_a_page_with_its_pictures(tmp_path: Path) -> None:
    output = {"output_type": "display_data", "data": {"image/png": PIXEL}, "metadata": {}}
    path = notebook(
        tmp_path,
        {"cell_type": "markdown", "metadata": {}, "source": "# Is it clean?\n\nWe look."},
        {"cell_type": "code", "metadata": {}, "source": "draw()", "outputs": [output]},
    )
    got = narration.as_markdown(path, tmp_path / "figures")
    assert got.startswith('---\ntitle: "Is it clean?"\n---\n\nWe look.')
    assert (tmp_path / "figures" / "cell-01-0.png").read_bytes() == base64.b64decode(PIXEL)


def test_a_notebook_that_holds_an_error_is_refused(tmp_path: Path) -> None:
    output = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    path = notebook(tmp_path, {"cell_type": "code", "metadata": {}, "source": "x", "outputs": [output]})
    with pytest.raises(ReperformError, match="cell 0"):
        narration.as_markdown(path, tmp_path / "figures")


TEMPLATES = ROOT / "reports" / "templates"


def test_every_configured_page_has_a_template_and_a_title() -> None:
    for name in params.raw(ROOT / "params.yaml")["report"]["pages"]:
        assert (TEMPLATES / f"{name}.qmd").is_file()
        assert name in report.PAGE_TITLES


def test_an_unknown_page_names_the_nearest(evidence: Evidence) -> None:
    with pytest.raises(ReperformError, match="did you mean monitoring"):
        report.filled("monitring", TEMPLATES, evidence, {})


def test_a_template_that_asks_for_an_unknown_name_is_refused(evidence: Evidence, tmp_path: Path) -> None:
    (tmp_path / "page.qmd").write_text("{{ nobody }}")
    with pytest.raises(ReperformError, match="nobody"):
        report.filled("page", tmp_path, evidence, {})


def test_heading_attributes_are_no_comments(evidence: Evidence, tmp_path: Path) -> None:
    (tmp_path / "page.qmd").write_text("# One {#sec-one}\n\n{{ 1 + 1 }}")
    assert report.filled("page", tmp_path, evidence, {}) == "# One {#sec-one}\n\n2"


def test_navigation_links_every_page_and_notebook() -> None:
    got = report.navigation(["index", "audit"], ["00_tour"])
    assert "[Overview](index.html)" in got
    assert "[tour](00_tour.html)" in got


def test_intervals_are_printed_with_equal_decimals() -> None:
    assert pages.interval({"estimate": 0.5, "low": 0.25, "high": 0.75}) == "0.500 (0.250 to 0.750)"
    assert pages.interval({"estimate": 56.2, "low": 30.4, "high": 119.3}) == "56.2 (30.4 to 119.3)"
    assert pages.interval({"estimate": None}) == "n/a"


def test_evidence_sections_are_the_seventeen_of_a_model_report() -> None:
    assert [row["number"] for row in pages.clauses()] == list(range(1, 18))
    headings = [line for line in (TEMPLATES / "model.qmd").read_text().splitlines() if line.startswith("# ")]
    assert len(headings) == 17
    assert pages.clause_line(16).startswith("SR 26-2, OCC 2026-13: replicability")


def test_stages_that_say_no_number_leave_a_page_that_says_so(evidence: Evidence) -> None:
    assert "this run holds no certificate" in pages.certificate_text(evidence)


def test_the_certificate_of_a_run_is_shown_with_its_cuts_and_leaks(evidence: Evidence) -> None:
    assert (pages.certificate_cuts(evidence), pages.planted_leaks(evidence)) == ([], [])
    folder = evidence.root / "data" / "featurize"
    folder.mkdir()
    cut = {
        "at": "2025-01-02T03:04:05+00:00",
        "rows_changed": 5,
        "cells": 70,
        "differing": 0,
        "columns": [],
        "filings": 2,
    }
    leak = {"leak": "global scaler", "what": "Standardises.", "caught": True}
    document = {
        "holds": True, "rows": 1500, "rows_of": 300000, "filings": 4, "filings_of": 9, "cells_compared": 70,
        "cells_differing": 0, "cuts": [cut], "leaks_planted": 1, "leaks_caught": 1, "leaks": [leak],
    }  # fmt: skip
    (folder / "certificate.json").write_text(json.dumps(document))
    text = pages.certificate_text(evidence)
    assert "1,500 of 300,000 transactions" in text
    assert "1 of 1 planted leaks were caught. The certificate holds." in text
    assert pages.certificate_cuts(evidence)[0]["at"] == "2025-01-02 03:04"
    assert pages.planted_leaks(evidence) == [leak]
    (folder / "certificate.json").write_text(json.dumps(document | {"holds": False}))
    assert "THE CERTIFICATE DOES NOT HOLD" in pages.certificate_text(evidence)


def test_learned_parameters_have_their_window_and_a_hash_that_changes_with_them(evidence: Evidence) -> None:
    for name in ("featurize", "split"):
        (evidence.root / "data" / name).mkdir()
    (evidence.root / "data/split/summary.json").write_text('{"fits": {"first": {"learns_until": "2025-04-05"}}}')
    fitted = evidence.root / "data/featurize/fitted.json"
    fitted.write_text('{"velocity": {"rate": 1.5, "n": 3}, "benford": {}}')
    (row,) = pages.fitted_kpis(evidence)
    assert (row["kpi"], row["parameters"], row["until"]) == ("velocity", "rate, n", "2025-04-05")
    fitted.write_text('{"velocity": {"rate": 1.25, "n": 3}}')
    assert pages.fitted_kpis(Evidence(evidence.root, evidence.folder))[0]["sha256"] != row["sha256"]


def test_the_worth_of_kpis_is_shown_for_one_window() -> None:
    record = {"column": "low x", "fall": 0.1, "fall_low": -0.05, "fall_high": 0.2, "verdict": "nowhere"}
    found = {"records": [record | {"period": "validation"}, record | {"period": "test"}]}
    (row,) = pages.kpi_worth(found, "validation")
    assert (row["column"], row["fall"], row["verdict"]) == ("`low x`", "0.100 (-0.050 to 0.200)", "nowhere")
