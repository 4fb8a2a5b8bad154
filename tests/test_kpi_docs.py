"""The page of KPIs is what their declarations say."""

import pytest

from reperform import compose, kpi_docs, params
from reperform.featurize.kpis import KPIS
from reperform.params import FeaturizeParams
from tests.conftest import ROOT

PAGE = ROOT / "docs" / kpi_docs.PAGE


@pytest.fixture(scope="module")
def stage() -> FeaturizeParams:
    return params.build(FeaturizeParams, compose.composed(ROOT / "conf")["featurize"], where="conf")


def test_the_page_is_what_the_declarations_say(stage: FeaturizeParams) -> None:
    text = PAGE.read_text(encoding="utf-8")
    current = kpi_docs.page(stage, kpi_docs.from_page(text))
    assert text == current, "run `python -m reperform kpi-docs` after a change of declarations"


def test_a_changed_formula_is_noticed(stage: FeaturizeParams) -> None:
    text = PAGE.read_text(encoding="utf-8")
    changed = text.replace(KPIS["velocity"].formula, "something else")
    assert changed != text
    assert kpi_docs.page(stage, kpi_docs.from_page(changed)) != changed


def test_every_column_has_a_row_with_its_distribution(stage: FeaturizeParams) -> None:
    text = PAGE.read_text(encoding="utf-8")
    cells = kpi_docs.from_page(text)
    for kpi in KPIS.values():
        for column in kpi.columns(kpi.settings_of(stage.settings)):
            assert f"| `{column.name}` |" in text
            assert cells(column.name)[0].endswith("%"), column.name


def test_all_fifteen_kpis_are_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"\n## {n} " in text or f"\n| {n} " in text for n in range(1, 16))


def test_a_distribution_survives_reading_the_page_again() -> None:
    entry = {"name": "a", "null_share": 0.25, "quantiles": {"0.05": 1.0, "0.5": None, "0.95": 3.0}}
    cells = kpi_docs.from_dictionary([entry])("a")
    line = f"| `a` | f \\| g | u | 1d | | yes | {' | '.join(cells)} |"
    assert kpi_docs.from_page(line)("a") == cells
    assert kpi_docs.from_page("")("b") == ("",) * 4
