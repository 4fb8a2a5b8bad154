"""Held-out typologies see no label of theirs anywhere; alerts of several fits are compared; results know their age."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from reperform import heldout, stability, studies
from reperform.featurize.engine import selected
from reperform.figures import evaluate as draw
from reperform.params import StudiesParams
from reperform.report import pages
from reperform.report.evidence import Evidence
from tests import featurize_tables as given

SETTINGS = StudiesParams(alert_share=0.5, found_from=0.3)


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_other_kpi_depends_on_labels() -> None:
    """Without any label, the columns of every KPI that is not named as reading labels stay the same."""
    transactions, labels, accounts = given.world(300)
    stage = given.stage()
    with_labels = given.features(transactions, labelled=labels, of=accounts)
    without = given.features(transactions, labelled=labels.clear(), of=accounts)
    touched = heldout.label_kpis(stage)
    assert {"account_risk", "counterparty_risk", "propagated_risk"} <= set(touched)
    changed = {name for name in with_labels.columns if not with_labels[name].equals(without[name])}
    own = {column.name for kpi in selected(touched) for column in kpi.columns(kpi.settings_of(stage.settings))}
    assert changed
    assert changed <= own


def test_kpis_come_with_what_they_need() -> None:
    stage = given.stage()
    named = heldout.with_needs(["network_graph"], stage)
    assert "network_graph" in named
    assert named == [name for name in heldout.with_needs(heldout.label_kpis(stage), stage) if name in named]


def test_labels_of_a_typology_are_left_out_and_no_others() -> None:
    frame = pl.DataFrame(
        {
            "transaction_id": ["a", "b", "c"],
            "is_anomaly": [True, True, False],
            "typology": ["cycle", "fan_out", None],
        }
    )
    assert heldout.without_labels_of("cycle", frame)["transaction_id"].to_list() == ["b", "c"]


def test_replaced_columns_say_which_rows_changed() -> None:
    features = pl.DataFrame({"transaction_id": ["a", "b", "c"], "x": [1.0, None, 3.0], "y": [1.0, 2.0, 3.0]})
    other = pl.DataFrame({"transaction_id": ["a", "b", "c"], "x": [1.0, None, 4.0], "z": [0.0, 0.0, 0.0]})
    got, changed = heldout.replaced(features, other)
    assert changed.tolist() == [False, False, True]
    assert got["x"].to_list() == [1.0, None, 4.0]
    assert got.columns == ["transaction_id", "x", "y"]


# --- what is found unseen --------------------------------------------------------------------------------------------


def rows() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "is_anomaly": [True, True, True, True, False, False, False, False],
            "typology": ["cycle", "cycle", "fan_out", "fan_out", None, None, None, None],
            "event_id": ["1", "2", "3", "3", None, None, None, None],
        }
    )


def test_recall_of_a_typology_by_hand() -> None:
    score = np.array([5.0, 1.0, 9.0, 8.0, 7.0, 2.0, 0.5, 0.1])  # half of the rows: fan_out, a normal one, one cycle
    got = heldout.outcome(rows(), score, "cycle", share=0.5, seed=0)
    assert (got["n"], got["found"], got["recall"], got["events"], got["events_found"]) == (2, 1, 0.5, 2, 1)
    # without fan_out, three of six rows: the normal one, a cycle, the other normal one
    assert got["recall_alone"] == 0.5
    assert got["low"] < 0.5 < got["high"]


def record(detector: str, typology: str, recall: float) -> dict[str, object]:
    return {"detector": detector, "typology": typology, "recall": recall, "recall_alone": 1.0, "found": 1, "n": 2}


def test_what_is_not_found_is_said() -> None:
    records = [record("ensemble", "cycle", 0.3), record("ensemble", "fan_out", 0.29), record("rules", "cycle", 0.9)]
    got = heldout.summarised(records, SETTINGS)
    assert got["found"] == {"ensemble": ["cycle"], "rules": ["cycle"]}
    assert got["not_found_by_the_ensemble"] == ["fan_out"]
    assert heldout.lines(got)[-1] == "not found by the ensemble: fan_out"


# --- stability -------------------------------------------------------------------------------------------------------


def test_equal_fits_agree_wholly() -> None:
    score = np.arange(10.0)
    got = stability.agreement([score, score, score], score > 7, 0.2, seed=0)
    assert got["jaccard"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert got["alerts_in_all_share"] == 1
    assert got["average_precision"]["mean"] == 1
    assert got["recall"]["low"] == 1


def test_overlap_of_alerts_by_hand() -> None:
    one, other = np.array([4.0, 3, 2, 1]), np.array([4.0, 1, 3, 2])
    got = stability.agreement([one, other], np.array([True, False, False, False]), 0.5, seed=0)
    assert got["jaccard"]["mean"] == pytest.approx(1 / 3)  # {0, 1} and {0, 2}
    assert got["alerts_in_all_share"] == pytest.approx(1 / 3)
    assert got["spearman"]["mean"] == pytest.approx(0.4)
    assert "lowest pair 0.33" in stability.line({"detector": "xgboost"} | got)


# --- results that know what they were made from ----------------------------------------------------------------------


def test_a_result_says_whether_its_models_are_still_the_same(project: Path) -> None:
    model = project / "data" / "ensemble" / "model.json"
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    studies.write("power", {"events": 3}, ["xgboost"])
    document = studies.read("power")
    assert document is not None
    assert document["events"] == 3
    assert studies.standing(document) == "Made from the models of this run."
    model.write_text("{ }")
    assert "data/ensemble/model.json changed since" in studies.standing(document)
    assert studies.read("heldout") is None


def test_a_result_is_the_same_bytes_again(project: Path) -> None:
    path = studies.write("power", {"b": 1, "a": [1.5]}, [])
    first = path.read_bytes()
    assert studies.write("power", {"a": [1.5], "b": 1}, []).read_bytes() == first
    assert json.loads(first) == {"a": [1.5], "b": 1, "made_from": {}}
    assert path.parent == project / "reports" / "studies"


def test_a_run_without_models_is_refused_by_name(project: Path) -> None:
    from reperform import rescore  # noqa: PLC0415  # pulls in the detectors
    from reperform.errors import ReperformError  # noqa: PLC0415

    folder = project / "data" / "train" / "xgboost"
    folder.mkdir(parents=True)
    (folder / "fit.json").write_text(json.dumps({"features": [], "parameters": {}, "seed": 1}))
    with pytest.raises(ReperformError, match="xgboost is not trained"):
        rescore.members(["xgboost"])


# --- what readers see ------------------------------------------------------------------------------------------------


def test_held_out_recall_is_shown_per_typology_and_detector() -> None:
    records = [record("ensemble", "fan_out", 0.3), record("rules", "fan_out", 0.0)]
    assert pages.heldout_table({"records": records}) == [
        {"typology": "fan out", "anomalies": 2, "ensemble": "0.30 / 1.00", "rules": "0.00 / 1.00"}
    ]


def test_stability_is_shown_with_its_lowest_pair() -> None:
    one, other = np.array([4.0, 3, 2, 1]), np.array([4.0, 1, 3, 2])
    agreed = stability.agreement([one, other], np.array([True, False, False, False]), 0.5, seed=0)
    (row,) = pages.stability_table({"detectors": [{"detector": "xgboost"} | agreed]})
    assert row["jaccard"] == "0.33 (0.33)"
    assert row["average_precision"] == "1.000 to 1.000"


def test_a_groups_share_is_shown_with_its_interval_or_as_unknown() -> None:
    row = {"recall": 0.5, "recall_low": 0.25, "recall_high": 0.75}
    assert pages._percent_with_interval(row, "recall") == "50 % (25 to 75)"
    assert pages._percent_with_interval(dict.fromkeys(row), "recall") == "n/a"


def test_evidence_notes_a_study_as_a_source(project: Path) -> None:
    evidence = Evidence(project, project / "figures")
    assert evidence.study("power") is None
    studies.write("power", {"events": 3}, [])
    found = evidence.study("power")
    assert found is not None
    assert found["standing"] == "Made from the models of this run."
    assert [one["output"] for one in evidence.sources()] == ["`reports/studies/power.json`"]


def test_power_maps_count_events_in_every_cell() -> None:
    cells = [
        {
            "pattern": name,
            "amount": amount,
            "gap_hours": gap,
            "length": 3,
            "events": 4,
            "found": found,
            "share": found / 4,
        }
        for name in ("fan_in", "fan_out")
        for gap in (0.5, 72.0)
        for amount, found in ((50.0, 1), (800.0, 4))
    ]
    axes = draw.power_maps(cells).axes[0]
    assert axes.get_title(loc="left") == "fan in, 3 payments"
    assert sorted(text.get_text() for text in axes.texts) == ["1/4", "1/4", "4/4", "4/4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["30 min", "3 d"]
    assert "Nothing to draw" in draw.power_maps([]).axes[0].texts[0].get_text()


def test_figures_of_nothing_say_so() -> None:
    assert "Nothing to draw" in draw.heldout_recall([], 0.3).axes[0].texts[0].get_text()
    assert "Nothing to draw" in draw.segment_rates([], "channel").axes[0].texts[0].get_text()


def test_a_held_out_figure_marks_unseen_and_shown_recall() -> None:
    shown = [record("ensemble", "cycle", 0.4) | {"low": 0.2, "high": 0.6, "recall_with_labels": 0.8, "n": 20}]
    axes = draw.heldout_recall(shown, 0.3).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cycle (n=20)"]
    assert any(np.array_equal(line.get_xdata(), [0.8]) for line in axes.lines)
    ring = next(line for line in axes.lines if line.get_markerfacecolor() == "none")
    assert ring.get_xdata().tolist() == [1.0]  # with other typologies out of the way
