"""The project's own taxonomy: generated from one list, complete, and valid to Arelle."""

import tomllib
from pathlib import Path

import pytest
from lxml import etree

from reperform import taxonomy
from reperform.taxonomy import BY_CHANNEL, BY_NAME, CHANNEL_MEMBERS, RETURN, SUMS, build
from tests import filing_samples as sample
from tests.conftest import ROOT


def test_xml_files_are_what_the_list_of_concepts_makes() -> None:
    for name, content in build.build().items():
        assert (taxonomy.folder() / name).read_text(encoding="utf-8") == content, (
            f"{name} is stale: run python -m reperform.taxonomy.build"
        )
    assert set(build.build()) == set(taxonomy.FILES)


def test_every_file_is_shipped_as_package_data() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["reperform"]
    package = taxonomy.folder().parent
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    assert {taxonomy.folder() / name for name in taxonomy.FILES} <= shipped


@pytest.mark.parametrize("name", [f for f in taxonomy.FILES if f.endswith(".xml")])
def test_locators_point_at_elements_of_the_schema(name: str) -> None:
    ids = set(etree.parse(taxonomy.folder() / "brr.xsd").xpath("//@id"))
    hrefs = etree.parse(taxonomy.folder() / name).xpath("//*[local-name()='loc']/@*[local-name()='href']")
    assert all(href.split("#")[1] in ids for href in hrefs)
    assert hrefs or name == "brr_for.xml"


def test_every_line_is_presented_and_labelled_once() -> None:
    shown = [name for names in build.schedule_lines().values() for name in names]
    assert sorted(shown) == sorted(BY_NAME)
    labels = (taxonomy.folder() / "brr_lab.xml").read_text(encoding="utf-8")
    assert all(f'xlink:label="{concept.name}_label"' in labels for concept in RETURN)


def test_totals_and_parts_are_lines_of_the_return() -> None:
    for totals in SUMS.values():
        for total, parts in totals.items():
            assert {total, *parts} <= set(BY_NAME)
            assert {BY_NAME[part].period for part in parts} == {BY_NAME[total].period}


def test_no_channel_belongs_to_two_members() -> None:
    channels = [channel for names in CHANNEL_MEMBERS.values() for channel in names]
    assert len(channels) == len(set(channels))
    assert list(CHANNEL_MEMBERS.values())[-1] == ()
    assert set(BY_CHANNEL) <= set(BY_NAME)


def test_conditions_are_lines_themselves() -> None:
    conditional = [concept for concept in RETURN if concept.required_when]
    assert {concept.name for concept in conditional} == {
        "RestatementReason",
        "CashDepositsValue",
        "LargeValueTransactionsValue",
    }
    assert all(concept.required_when in BY_NAME and not concept.required for concept in conditional)


def test_arelle_finds_no_fault_with_taxonomy_and_honest_return(project: Path) -> None:
    from arelle.api.Session import Session  # noqa: PLC0415  # costs 1.5 s
    from arelle.logging.handlers.StructuredMessageLogHandler import StructuredMessageLogHandler  # noqa: PLC0415
    from arelle.RuntimeOptions import RuntimeOptions  # noqa: PLC0415

    from reperform.ingest import taxonomies  # noqa: PLC0415

    sample.write([sample.bank_return()], project)
    cache = taxonomies.gather([], [], project / ".cache" / "taxonomies")
    handler = StructuredMessageLogHandler()
    options = RuntimeOptions(
        entrypointFile=str(project / "north" / "filings" / "north-2025-01.xbrl"),
        internetConnectivity="offline",
        keepOpen=True,
        disablePersistentConfig=True,
        cacheDirectory=str(cache),
        validate=True,
        calcs="c11r",
        formulaAction="run",
        formulaUnsatisfiedAsser=True,
    )
    with Session() as session:
        session.run(options, logHandler=handler)
        model = session.get_models()[0]
        results = {key: value for each in model.errors if isinstance(each, dict) for key, value in each.items()}
    faults = [m["msg"] for m in handler.messages if m["levelname"].startswith(("WARNING", "ERROR", "INCONSIST"))]
    assert faults == []
    # Every assertion is there, and none but the conditional ones is left without an evaluation.
    asserted = [c for c in RETURN if c.required or c.required_when] + [c for c in RETURN if c.never_negative]
    assert len(results) == len(asserted) + 2 + len(build.PARTS_OF_WHOLES)
    idle = {key for key, value in results.items() if value[0] + value[1] == 0}
    assert idle == {f"required_{c.name}" for c in RETURN if c.required_when}
