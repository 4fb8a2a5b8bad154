"""What the KPIs say in hindsight, and its figures: on a small world, and on a run without transactions or labels."""

from typing import Any

import polars as pl
import pytest

from reperform import featurize, figures, schemas
from reperform.featurize import insight
from reperform.figures import featurize as draw
from tests.featurize_tables import RULES, accounts, calendar, labels, stage, world


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
