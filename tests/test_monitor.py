"""Equal samples do not drift, changed ones do, and every broken limit says what to do."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import monitor, schemas, tables
from reperform.params import MonitorParams, SplitParams

SETTINGS = MonitorParams(
    current_days=10,
    bins=10,
    warn_above=0.1,
    act_above=0.25,
    missing_warn_above=0.05,
    missing_act_above=0.2,
    alerts_warn_ratio=1.5,
    alerts_act_ratio=2.0,
    performance_warn_drop=0.2,
    performance_act_drop=0.4,
    min_anomalies=5,
    silent_warn_days=1,
    silent_act_days=3,
    bootstrap_rounds=50,
    seed=1,
)
CALENDAR = SplitParams(
    train_days=30,
    train_until=date(2025, 5, 31),
    label_delay_days=3,
    label_maturity_days=5,
    validation_days=10,
    test_from=date(2025, 6, 5),
    test_days=20,
    drop_known_compromised=False,
)
TRAIN_END = datetime(2025, 6, 1, tzinfo=UTC)


def span(last: datetime = TRAIN_END + timedelta(days=19, hours=5)) -> monitor.Windows:
    return monitor.windows(last, CALENDAR, SETTINGS.current_days)


def statuses(frame: pl.DataFrame) -> dict[str, str]:
    return dict(frame.select("name", "status").iter_rows())


# --- windows and bins ------------------------------------------------------------------------------------------------


def test_current_window_is_the_last_days_up_to_midnight() -> None:
    assert span().as_dict() == {
        "reference_first_day": "2025-05-02",
        "reference_last_day": "2025-05-31",
        "current_first_day": "2025-06-11",
        "current_last_day": "2025-06-20",
    }


def test_current_window_never_reaches_back_into_training() -> None:
    got = span(TRAIN_END + timedelta(days=3))
    assert got.current_from == TRAIN_END
    assert got.current_days == 4


def test_bins_are_quantiles_of_the_reference_with_one_for_missing_values() -> None:
    reference = np.arange(100.0)
    current = np.array([5.0, 5, 95, np.nan])
    before, now = monitor.binned(reference, current, 10)
    assert before.tolist() == [10] * 10 + [0]
    assert now.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_repeated_values_give_fewer_bins() -> None:
    before, now = monitor.binned(np.array([0.0] * 95 + [1] * 5), np.array([0.0, 1]), 10)
    assert before.tolist() == [95, 5]
    assert now.tolist() == [1, 1]


# --- data ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=30, max_size=80))
@settings(max_examples=40, deadline=None)
def test_identical_samples_have_no_drift(values: list[int | None]) -> None:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64})
    got = monitor.feature_drift(frame, frame, SETTINGS)
    assert got["value"][0] == pytest.approx(0)
    assert set(got["status"]) == {"stable"}


def test_two_draws_from_one_distribution_are_stable_also_when_small() -> None:
    rng = np.random.default_rng(0)
    reference = pl.DataFrame({"x": rng.normal(size=5000)})
    found = [monitor.feature_drift(reference, pl.DataFrame({"x": rng.normal(size=60)}), SETTINGS)[0] for _ in range(60)]
    raw = [frame["value"][0] > SETTINGS.warn_above for frame in found]
    less_null = [frame["status"][0] != "stable" for frame in found]
    assert np.mean(raw) > 0.5  # the index alone would warn without reason
    assert np.mean(less_null) < 0.2


def test_a_shift_of_one_standard_deviation_calls_for_action() -> None:
    rng = np.random.default_rng(0)
    reference, current = (pl.DataFrame({"x": rng.normal(m, 1, 4000)}) for m in (0, 1))
    assert statuses(monitor.feature_drift(reference, current, SETTINGS))["x"] == "act"


def test_a_feature_that_stops_coming_is_noticed() -> None:
    reference = pl.DataFrame({"x": np.arange(100.0)})
    current = reference.with_columns(x=pl.when(pl.col("x") < 90).then("x"))
    got = monitor.feature_drift(reference, current, SETTINGS).filter(pl.col("name") == "missing:x").to_dicts()[0]
    assert got == {"kind": "data", "name": "missing:x", "value": 0.1, "null_value": 0.0, "status": "warn"}


def feed(silent: set[int]) -> pl.DataFrame:
    days = [day for day in range(-30, 20) if day not in silent]
    return pl.DataFrame({"booked_at": [TRAIN_END + timedelta(days=d) for d in days], "entity_id": ["bank"] * len(days)})


@pytest.mark.parametrize(("silent", "status"), [(set(), "stable"), ({15}, "warn"), ({12, 15, 16}, "act")])
def test_silent_days_of_an_institution_are_counted(silent: set[int], status: str) -> None:
    got = monitor.feed_drift(feed(silent), span(), SETTINGS)
    assert statuses(got) == {"silent_days:bank": status}
    assert got["value"][0] == len(silent)


def test_an_institution_that_never_reports_on_some_days_is_not_silent_on_them() -> None:
    weekends = {day for day in range(-30, 20) if (TRAIN_END + timedelta(days=day)).weekday() >= 5}
    assert statuses(monitor.feed_drift(feed(weekends), span(), SETTINGS)) == {"silent_days:bank": "stable"}


# --- scores and alerts -----------------------------------------------------------------------------------------------


def scores(shift: float = 0.0, alerts: float = 0.05) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    n = 2000
    split = np.repeat(["validation", "test"], n)
    when = [TRAIN_END - timedelta(days=5)] * n + [TRAIN_END + timedelta(days=12)] * n
    value = rng.normal(size=2 * n) + shift * (split == "test")
    flag = rng.random(2 * n) < np.where(split == "test", alerts, 0.05)
    return pl.DataFrame(
        {
            "transaction_id": [f"t{i}" for i in range(2 * n)],
            "booked_at": when,
            "split": split,
            "score": value,
            "is_alert": flag,
        },
        schema_overrides={"booked_at": schemas.UTC_US},
    )


def test_scores_that_moved_since_validation_are_noticed() -> None:
    got = monitor.score_drift({"same": scores(), "moved": scores(shift=1)}, span(), SETTINGS)
    assert statuses(got) == {"same": "stable", "moved": "act"}


@pytest.mark.parametrize(("share", "status"), [(0.05, "stable"), (0.085, "warn"), (0.15, "act"), (0.0, "act")])
def test_alert_volume_is_compared_with_what_the_threshold_was_set_for(share: float, status: str) -> None:
    got = monitor.alert_volume(scores(alerts=share), span(), SETTINGS)
    assert statuses(got) == {"alerts_per_day": status}


# --- performance -----------------------------------------------------------------------------------------------------


def judged_scores(later_signal: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(2)
    rows, y = [], []
    for day in range(-10, 14):
        for i in range(60):
            anomaly = i < 4
            signal = 3.0 if day < 0 else later_signal
            rows.append(
                (f"t{day}-{i}", TRAIN_END + timedelta(days=day), "validation" if day < 0 else "test",
                 rng.normal() + signal * anomaly, anomaly)
            )  # fmt: skip
            y.append(int(anomaly))
    frame = pl.DataFrame(rows, schema=["transaction_id", "booked_at", "split", "score", "is_alert"], orient="row")
    frame = frame.with_columns(pl.col("booked_at").cast(schemas.UTC_US))
    return frame, frame.select("transaction_id", y=pl.Series(y, dtype=pl.Int8))


def test_a_detector_that_stops_working_is_noticed_by_week() -> None:
    good, known = judged_scores(later_signal=3.0)
    bad, _ = judged_scores(later_signal=0.0)
    got = statuses(monitor.performance_drift({"good": good, "bad": bad}, known, TRAIN_END, SETTINGS))
    assert got["good.average_precision:2025-06-02"] == "stable"
    assert got["bad.average_precision:2025-06-02"] == "act"


def test_a_week_with_too_few_known_anomalies_is_unknown() -> None:
    good, known = judged_scores(later_signal=3.0)
    few = known.with_columns(y=pl.when(pl.col("transaction_id").str.starts_with("t-")).then("y").otherwise(0))
    got = monitor.performance_drift({"good": good}, few, TRAIN_END, SETTINGS)
    assert set(got["status"]) == {"unknown"}
    assert got["null_value"].null_count() == 0


def test_reviewed_alerts_are_compared_with_those_of_validation() -> None:
    good, _ = judged_scores(later_signal=3.0)
    labels = good.filter("is_alert").select(
        "transaction_id", is_anomaly=(pl.col("split") == "validation") | pl.col("transaction_id").str.ends_with("-0")
    )
    got = monitor.reviewed_precision(good, labels, TRAIN_END, SETTINGS)
    week = got.filter(pl.col("name").str.ends_with("2025-06-02")).to_dicts()[0]
    assert (week["value"], week["null_value"], week["status"]) == (0.25, 1.0, "act")


# --- triggers --------------------------------------------------------------------------------------------------------


def test_a_broken_limit_names_what_broke_it_and_says_what_to_do() -> None:
    drift = monitor.drift_frame(
        [
            {"kind": "data", "name": "a", "value": 0.5, "null_value": 0.01, "status": "act"},
            {"kind": "data", "name": "b", "value": 0.9, "null_value": 0.01, "status": "act"},
            {"kind": "data", "name": "missing:a", "value": 0.0, "null_value": 0.0, "status": "stable"},
        ]
    )
    got = {one["rule"]: one for one in monitor.triggers(drift, ["b"], SETTINGS)}
    assert got["data_drift"]["status"] == "act"
    assert got["data_drift"]["names"] == ["a"]  # no detector uses b
    assert got["data_drift"]["value"] == pytest.approx(0.49)
    assert "Read the feature's history" in got["data_drift"]["what_to_do"]
    assert got["missing_values"]["what_to_do"] == "Nothing."
    assert got["performance"]["status"] == "unknown"


# --- the stage -------------------------------------------------------------------------------------------------------


def write_inputs(n: int) -> None:
    rng = np.random.default_rng(0)
    hours = np.sort(rng.integers(0, 24 * 179, n))
    start = datetime(2025, 1, 1, tzinfo=UTC)
    when = pl.Series([start + timedelta(hours=int(h)) for h in hours], dtype=schemas.UTC_US)
    ids = pl.Series([f"t{i}" for i in range(n)], dtype=pl.String)
    rows = pl.DataFrame({"transaction_id": ids, "booked_at": when, "known_at": when}).with_columns(
        entity_id=pl.lit("b")
    )
    tables.write_table(rows, "validate", "transactions")
    tables.write_table(schemas.empty(schemas.LABELS), "validate", "labels")
    features = rows.select(
        "transaction_id", "booked_at", x=pl.Series(rng.normal(size=n), dtype=pl.Float64), y=pl.lit(1.0)
    )
    tables.write_table(features, "featurize", "features")
    dictionary = [{"name": "x", "is_model_input": True}, {"name": "y", "is_model_input": False}]
    tables.write_json(dictionary, "featurize", "dictionary")
    value = pl.Series(rng.normal(size=n), dtype=pl.Float64)
    split = pl.when(pl.col("booked_at") < pl.lit(datetime(2025, 5, 17, tzinfo=UTC), schemas.UTC_US))
    scored = rows.select(
        "transaction_id",
        split=split.then(pl.lit("validation")).otherwise(pl.lit("test")),
        score=value,
        is_alert=value > 2,
    )
    for place in [*(f"train/{d}" for d in DETECTORS), "ensemble"]:
        tables.write_table(scored, place, "scores")


DETECTORS = ("rules", "isolation_forest", "one_class_svm", "xgboost", "random_forest", "lstm_autoencoder")


@pytest.mark.parametrize(("n", "reason"), [(5000, None), (0, "no transactions")])
def test_a_run_writes_the_same_bytes_twice_and_works_without_transactions(
    project: Path, n: int, reason: str | None
) -> None:
    write_inputs(n)
    got = monitor.run(SETTINGS)
    folder = project / "data" / "monitor"
    first = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    monitor.run(SETTINGS)
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == first
    assert sorted(first) == ["drift.parquet", "triggers.json"]
    assert got["triggers"]["reason"] == reason
    assert got["ignored"] == ["y"]
    assert got["drift"].columns == ["kind", "name", "value", "null_value", "status"]
