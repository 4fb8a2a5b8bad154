"""What the KPIs say in hindsight, and its figures: on a small world, and on a run without transactions or labels."""

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from reperform import featurize, figures, schemas
from reperform.featurize import insight
from reperform.figures import featurize as draw
from tests.featurize_tables import RULES, START, accounts, calendar, labels, stage, world


@pytest.fixture(scope="module")
def made() -> featurize.Features:
    rows, labelled, of = world()
    return featurize.featurize(rows, of, labelled, stage(thresholds={"rules": RULES}), calendar(20))


@pytest.fixture(scope="module")
def empty() -> featurize.Features:
    return featurize.featurize(
        schemas.empty(schemas.TRANSACTIONS), accounts(), labels(), stage(thresholds={"rules": RULES}), calendar()
    )


def rows_of(values: list[float | None], flags: list[bool]) -> pl.DataFrame:
    return pl.DataFrame({"x": values, "is_anomaly": flags}, schema={"x": pl.Float64, "is_anomaly": pl.Boolean})


ENTRY: dict[str, Any] = {
    "name": "x", "kpi_number": 1, "kpi": "k", "unit": "u", "null_share": 0.0, "is_model_input": True,
}  # fmt: skip


def test_separation_is_the_area_under_the_roc_curve_of_one_column() -> None:
    got = insight.separation(rows_of([1, 2, 3, 4, 5, 5, 6, 7], [False] * 3 + [True] * 5), [ENTRY])
    assert got["auc"].to_list() == [1.0]
    half = insight.separation(rows_of([1] * 10, [False, True] * 5), [ENTRY])
    assert half["auc"].to_list() == [0.5]


def test_too_few_anomalies_or_unknown_values_give_no_separation() -> None:
    assert insight.separation(rows_of([1, 2, 3], [True, False, False]), [ENTRY]).is_empty()
    mostly_unknown = rows_of([1.0] * 10 + [None] * 90, [True] * 5 + [False] * 95)
    assert insight.separation(mostly_unknown, [ENTRY]).is_empty()


def test_labels_mark_confirmed_anomalies_alone(made: featurize.Features) -> None:
    labelled = insight.with_labels(made.table, labels((0, True, 5), (1, False, 5)))
    ids = labelled.filter(pl.col("is_anomaly"))["transaction_id"].to_list()
    assert ids == ["t0000"]
    assert labelled.height == made.table.height


def test_a_sample_keeps_every_anomaly() -> None:
    rows = rows_of([float(k) for k in range(100)], [k % 10 == 0 for k in range(100)])
    got = insight.sampled(rows, most=30)
    assert got["is_anomaly"].sum() == 10
    assert got.height == 40


def test_the_accounts_to_contrast_are_the_worst_and_one_of_its_size() -> None:
    rows = pl.DataFrame(
        {
            "account_id": ["bad"] * 3 + ["small"] + ["same"] * 3 + ["large"] * 9,
            "is_anomaly": [True] + [False] * 15,
        }
    )
    assert insight.contrast(rows) == {"suspicious": "bad", "normal": "same"}
    assert insight.contrast(rows.filter(pl.col("account_id") == "bad")) == {}


def test_the_overview_counts_columns_per_kpi(made: featurize.Features) -> None:
    got = insight.overview(made.dictionary)
    assert sum(record["columns"] for record in got) == len(made.dictionary)
    assert [record["kpi_number"] for record in got] == sorted(record["kpi_number"] for record in got)


@pytest.mark.parametrize("name", ["made", "empty"])
def test_every_figure_can_be_drawn(name: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    features: featurize.Features = request.getfixturevalue(name)
    given = world()[1] if name == "made" else labels()
    spared = (pl.col("account_id") != "a7") & pl.col("is_anomaly")  # one account stays without an anomaly
    labelled = insight.with_labels(features.table, given).with_columns(is_anomaly=spared)
    ranked = insight.separation(labelled, features.dictionary)
    drawn = {
        "hours": draw.hours_of_week(features.fitted["time_pattern"]["all"]),
        "activity": draw.activity(features.account_days),
        "separation": draw.separation(ranked),
        "distributions": draw.distributions(labelled, features.dictionary, insight.best_of_each(ranked, 6)),
        "accounts": draw.accounts_side_by_side(labelled, insight.contrast(labelled)),
    }
    for title, figure in drawn.items():
        first = figures.save(figure, tmp_path / f"{title}.png").read_bytes()
        assert len(first) > 1000
        titled = [axis for axis in figure.axes if axis.axison and axis.has_data()]
        if name == "made":
            assert titled
            assert any(axis.get_xlabel() for axis in titled)
        else:
            assert figure.axes[0].texts[0].get_text().startswith("No ")


def typed_rows() -> pl.DataFrame:
    rows = pl.DataFrame({
        "transaction_id": [f"t{k:03d}" for k in range(80)],
        "account_id": ["a"] * 40 + ["b"] * 40,
        "x": [float(k % 40) for k in range(80)],
        "r": [0.0] * 80,
        "booked_at": [START + timedelta(hours=k) for k in range(80)],
    })  # fmt: skip
    bad = labels(*((k, True, 100.0) for k in range(34, 40)), (79, False, 100.0)).with_columns(
        transaction_id=pl.format("t0{}", pl.col("transaction_id").str.tail(2)),
        typology=pl.when("is_anomaly").then(pl.lit("burst")),
    )
    return insight.with_typology(insight.with_labels(rows, bad), bad)


def test_every_row_is_normal_or_of_a_confirmed_kind() -> None:
    typed = typed_rows()
    assert typed["typology"].value_counts(sort=True).rows() == [(insight.NORMAL, 74), ("burst", 6)]
    unnamed = labels((0, True, 1.0)).with_columns(transaction_id=pl.lit("t000"))
    plain = insight.with_typology(insight.with_labels(typed.drop("is_anomaly", "typology"), unnamed), unnamed)
    assert plain["typology"][0] == insight.UNNAMED


def test_spread_gives_quantiles_of_normal_rows_first_and_leaves_small_groups_out() -> None:
    got = insight.spread(typed_rows(), ["x"])
    assert got.select("typology", "n", "q50").rows() == [(insight.NORMAL, 74, 18.0), ("burst", 6, 37.0)]
    assert insight.spread(typed_rows(), ["x"], least=7)["typology"].to_list() == [insight.NORMAL]


def test_a_case_is_an_account_of_the_typology_in_the_column_that_tells_it() -> None:
    about = [
        {"name": name, "kpi_number": number, "kpi": "K", "unit": "u", "null_share": 0.0, "is_model_input": True}
        for name, number in (("x", 1), ("r", 7))
    ]
    told = insight.telling(typed_rows(), about)
    assert told == {"burst": "x"}
    assert insight.cases(typed_rows(), told) == [{"typology": "burst", "column": "x", "account_id": "a"}]
    assert insight.telling(typed_rows().filter(~pl.col("is_anomaly")), about) == {}


def test_figures_of_typologies_have_a_panel_each_and_say_when_empty() -> None:
    about = [{"name": "x", "kpi_number": 1, "unit": "u"}]
    panels = draw.by_typology(insight.spread(typed_rows(), ["x"]), about).axes
    assert panels[0].get_title(loc="left") + panels[0].get_title() == "KPI 1: x"
    assert [text.get_text() for text in panels[0].get_yticklabels()] == [insight.NORMAL, "burst"]
    case = {"typology": "burst", "column": "x", "account_id": "a"}
    shown = draw.typology_cases(typed_rows(), [case]).axes
    assert "burst: account a" in [a.get_title(loc="left") + a.get_title() for a in shown]
    nobody = insight.spread(typed_rows().clear(), ["x"])
    assert [len(f.axes) for f in (draw.by_typology(nobody, about), draw.typology_cases(typed_rows(), []))] == [1, 1]
