"""Forecasts see nothing after their origin, beat nothing that they should not, and say how sure they are."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import forecast as stage
from reperform import metrics, schemas, tables
from reperform.errors import ReperformError
from reperform.forecast import account_risk as risk
from reperform.forecast import series as forecast
from reperform.forecast.series import BASELINE, Series
from reperform.params import ForecastParams

FIRST = date(2025, 1, 6)
SETTINGS = ForecastParams(
    horizon_days=7,
    origins=3,
    season_days=7,
    levels=[80, 95],
    models=["seasonal_naive", "auto_ets"],
    rate_models=["seasonal_naive", "negative_binomial"],
    risk_fit_days=7,
    risk_horizon_days=14,
    risk_shown_days=[7, 14],
    bootstrap_rounds=30,
    seed=1,
)
WEEK = np.array([100.0, 110, 120, 115, 130, 60, 50])


def weekly(weeks: int = 10, noise: float = 0.0, seed: int = 0) -> Series:
    y = np.tile(WEEK, weeks) + noise * np.random.default_rng(seed).normal(size=7 * weeks)
    return Series("volume", "transactions per day", FIRST, y)


def rate(days: int = 84, share: float = 0.01, rows: int = 2000, seed: int = 0) -> Series:
    exposure = np.full(days, float(rows))
    counts = np.random.default_rng(seed).binomial(rows, share, days)
    return Series("alert_rate", "alerts per transaction", FIRST, counts / exposure, exposure)


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2025, 1, 6, hour, tzinfo=UTC) + timedelta(days=day)


def booked(days: list[int], entity: str = "bank") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "transaction_id": [f"{entity}{i}" for i in range(len(days))],
            "booked_at": [at(day) for day in days],
            "entity_id": [entity] * len(days),
            "amount_base": [10.0] * len(days),
        },
        schema_overrides={"booked_at": schemas.UTC_US, "entity_id": pl.String, "transaction_id": pl.String},
    )


def no_alerts() -> pl.DataFrame:
    return pl.DataFrame(schema={"booked_at": schemas.UTC_US, "is_alert": pl.Boolean})


# --- series ----------------------------------------------------------------------------------------------------------


def test_days_without_rows_count_as_zero() -> None:
    got = forecast.daily_series(booked([0, 0, 2]), no_alerts(), schemas.empty(schemas.LABELS))
    by_name = {series.name: series for series in got}
    assert by_name["volume"].y.tolist() == [2, 0, 1]
    assert by_name["value"].y.tolist() == [20, 0, 10]
    assert sorted(by_name) == ["value", "volume"]  # one institution is the total


def test_institutions_sum_to_the_total() -> None:
    rows = pl.concat([booked([0, 1, 1, 3], "a"), booked([0, 2], "b")]).sort("booked_at")
    got = {s.name: s.y for s in forecast.daily_series(rows, no_alerts(), schemas.empty(schemas.LABELS))}
    assert (got["volume:a"] + got["volume:b"]).tolist() == got["volume"].tolist()


def test_an_anomaly_counts_on_the_day_of_its_confirmation() -> None:
    labels = pl.DataFrame(
        [("bank0", True, "cycle", at(2)), ("bank1", False, None, at(2)), ("bank2", True, None, at(90))],
        schema=schemas.polars_schema(schemas.LABELS),
        orient="row",
    )
    got = {s.name: s for s in forecast.daily_series(booked([0, 1, 2, 2, 3]), no_alerts(), labels)}["anomaly_rate"]
    assert got.first_day == FIRST + timedelta(days=2)  # before the first confirmation nobody was looking
    assert got.y.tolist() == [0.5, 0.0]


def test_alert_rate_is_alerts_over_scored_rows() -> None:
    alerts = pl.DataFrame({"booked_at": [at(0), at(0), at(1)], "is_alert": [True, False, False]})
    alerts = alerts.with_columns(pl.col("booked_at").cast(schemas.UTC_US))
    got = {s.name: s for s in forecast.daily_series(booked([0, 0, 1]), alerts, schemas.empty(schemas.LABELS))}
    assert got["alert_rate"].y.tolist() == [0.5, 0]
    assert got["alert_rate"].exposure is not None
    assert got["alert_rate"].exposure.tolist() == [2, 1]


def test_no_transactions_are_no_series() -> None:
    assert forecast.daily_series(booked([]), no_alerts(), schemas.empty(schemas.LABELS)) == []


# --- origins ---------------------------------------------------------------------------------------------------------


def test_origins_follow_one_another_up_to_the_last_day() -> None:
    assert forecast.origins(100, 7, 3, 7) == [79, 86, 93]


def test_origins_that_leave_too_little_to_learn_are_dropped() -> None:
    assert forecast.origins(30, 7, 3, 7) == [16, 23]
    assert forecast.origins(14, 7, 3, 7) == []


@pytest.mark.parametrize("model", ["seasonal_naive", "auto_ets", "auto_theta"])
def test_nothing_after_an_origin_changes_its_forecast(model: str) -> None:
    series = weekly(noise=5)
    changed = Series(series.name, series.unit, series.first_day, np.append(series.y[:63], series.y[63:] * 9))
    first = [forecast.forecast_frame(s, model, SETTINGS) for s in (series, changed)]
    early = [frame.filter(pl.col("origin") < FIRST + timedelta(days=63)).drop("actual") for frame in first]
    assert early[0].height == 14 * 1 + 7 * 1
    assert early[0].equals(early[1])


# --- models ----------------------------------------------------------------------------------------------------------


def test_on_a_clean_week_last_week_again_is_perfect_and_is_named_best() -> None:
    _, document = forecast.forecast_all([weekly()], SETTINGS)
    got = document["volume"]
    assert got["models"][BASELINE]["crps"] == pytest.approx(0, abs=1e-9)
    assert got["best"] == BASELINE or got["models"][got["best"]]["crps"] <= 1e-9
    assert not got["beats_baseline"]


def test_on_a_noisy_week_smoothing_beats_last_week_again() -> None:
    _, document = forecast.forecast_all([weekly(weeks=20, noise=8)], SETTINGS)
    got = document["volume"]
    assert got["best"] == "auto_ets"
    assert got["beats_baseline"]
    assert 0 < got["models"]["auto_ets"]["skill"] < 1
    assert got["models"][BASELINE]["skill"] == 0


def test_rate_model_recovers_the_rate_and_its_scatter() -> None:
    series = rate()
    probabilities = forecast.probabilities_for([80, 95])
    got = forecast.negative_binomial(series, 7, 7, probabilities)
    assert got.mean[0] == pytest.approx(0.01, rel=0.1)
    low, high = (got.quantiles[0, list(probabilities).index(p)] for p in (0.1, 0.9))
    # a binomial count of 20 has a standard deviation of 4.4: about 14 to 26 of 2,000
    assert low == pytest.approx(14.3 / 2000, rel=0.15)
    assert high == pytest.approx(25.7 / 2000, rel=0.15)


def test_intervals_of_rates_hold_what_comes() -> None:
    inside = []
    for seed in range(20):
        series = rate(days=70, seed=seed)
        frame = forecast.forecast_frame(series, "negative_binomial", SETTINGS).drop_nulls("actual")
        inside.append(
            frame.select((pl.col("actual") >= pl.col("q_0.1")) & (pl.col("actual") <= pl.col("q_0.9"))).mean()
        )
    assert 0.75 < float(np.mean([one.item() for one in inside])) < 0.95


def test_rate_model_refuses_a_volume() -> None:
    with pytest.raises(ReperformError, match="rate_models"):
        forecast.negative_binomial(weekly(), 7, 7, np.array([0.5]))


def test_an_unknown_model_is_refused_with_its_neighbours() -> None:
    wrong = ForecastParams(**{**SETTINGS.__dict__, "models": ["auto_est"]})
    with pytest.raises(ReperformError, match="auto_ets"):
        forecast.forecast_all([weekly()], wrong)


@given(st.lists(st.integers(0, 50), min_size=22, max_size=60), st.sampled_from(["seasonal_naive", "negative_binomial"]))
@settings(max_examples=30, deadline=None)
def test_quantiles_rise_and_nothing_is_negative(counts: list[int], model: str) -> None:
    exposure = np.full(len(counts), 1000.0)
    series = Series("alert_rate", "x", FIRST, np.array(counts) / 1000, exposure)
    got = forecast.MODELS[model](series, 7, 7, forecast.probabilities_for([80, 95]))
    assert (np.diff(got.quantiles, axis=1) >= 0).all()
    assert (got.quantiles >= 0).all()
    assert (got.mean >= 0).all()


# --- figures about forecasts -----------------------------------------------------------------------------------------


def test_published_table_has_intervals_and_leaves_the_future_open() -> None:
    frame, _ = forecast.forecast_all([weekly(noise=3)], SETTINGS)
    assert frame.columns == [
        "series", "model", "origin", "day", "low_95", "low_80", "mean", "high_80", "high_95", "actual",
    ]  # fmt: skip
    future = frame.filter(pl.col("day") > FIRST + timedelta(days=69))
    assert future["actual"].is_null().all()
    assert future.height == 2 * 7
    assert frame.filter(pl.col("actual").is_not_null()).height == 2 * 3 * 7


def test_coverage_counts_days_inside() -> None:
    frame = forecast.forecast_frame(weekly(noise=3), "auto_ets", SETTINGS)
    got = forecast.scored(frame, weekly(noise=3), SETTINGS)
    past = frame.drop_nulls("actual")
    inside = past.filter((pl.col("actual") >= pl.col("q_0.025")) & (pl.col("actual") <= pl.col("q_0.975"))).height
    assert got["coverage_95"]["estimate"] == pytest.approx(inside / 21)
    assert got["coverage_95"]["n"] == 21


def test_days_outside_the_interval_are_named() -> None:
    series = weekly(weeks=12, noise=2)
    series.y[-3] = 900
    _, document = forecast.forecast_all([series], SETTINGS)
    assert str(series.last_day - timedelta(days=2)) in [day["day"] for day in document["volume"]["surprises"]]


def test_equal_losses_show_no_difference_and_clear_ones_do() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(80)
    assert forecast.diebold_mariano(base, base, 7) is None
    alike = forecast.diebold_mariano(base + 0.01 * rng.normal(size=80), base, 7)
    worse = forecast.diebold_mariano(base + 1 + 0.1 * rng.random(80), base, 7)
    assert alike is not None
    assert worse is not None
    assert worse < 0.001
    assert alike > 0.05


def test_a_series_that_is_too_short_says_so() -> None:
    frame, document = forecast.forecast_all([weekly(weeks=2)], SETTINGS)
    assert frame.height == 0
    assert "14 days" in document["volume"]["reason"]


def test_a_series_without_origins_is_forecast_but_not_judged() -> None:
    frame, document = forecast.forecast_all([weekly(weeks=3)], SETTINGS)
    assert document["volume"]["origins"] == 0
    assert document["volume"]["models"]["auto_ets"]["crps"] is None
    assert frame["actual"].is_null().all()
    assert not any(row["is_best"] for row in forecast.leaderboard(document, [80, 95]))


# --- risk of accounts ------------------------------------------------------------------------------------------------


def features(records: list[tuple[str, int, float]]) -> pl.DataFrame:
    return pl.DataFrame(
        [(account, at(day), x) for account, day, x in records],
        schema={"account_id": pl.String, "known_at": schemas.UTC_US, "x": pl.Float32},
        orient="row",
    )


def anomalies(records: list[tuple[str, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        [(account, at(booked_on), at(confirmed_on)) for account, booked_on, confirmed_on in records],
        schema={"account_id": pl.String, "booked_at": schemas.UTC_US, "confirmed_at": schemas.UTC_US},
        orient="row",
    )


def test_a_snapshot_holds_what_was_known_strictly_before_it() -> None:
    rows = features([("a", 0, 1.0), ("a", 2, 2.0), ("b", 5, 3.0)])
    got = risk.snapshots(rows, anomalies([("a", 0, 1), ("a", 0, 3)]), [at(2), at(4)])
    assert got.select("account_id", "x", "days_since_last", "confirmed_n", "days_since_confirmed").rows() == [
        ("a", 1.0, 2.0, 1.0, 1.0),  # the record of day 2 arrived at that very moment
        ("a", 2.0, 2.0, 2.0, 1.0),
    ]


def test_outcomes_look_ahead_and_only_as_far_as_the_horizon() -> None:
    rows = pl.DataFrame(
        {"account_id": ["a", "a", "b", "c"], "at": [at(0), at(4), at(0), at(0)]},
        schema_overrides={"at": schemas.UTC_US},
    )
    known = anomalies([("a", 3, 5), ("b", 7, 9), ("c", 1, 20)])
    got = risk.outcomes(rows, known, horizon_days=7, known_by=at(15))
    # b's anomaly comes at the end of the horizon, c's is not confirmed yet
    assert got.tolist() == [True, False, False, False]


def test_label_delay_is_the_95th_percentile_in_whole_days() -> None:
    assert risk.label_delay_days(anomalies([("a", 0, d) for d in range(1, 21)]), at(99)) == 20
    assert risk.label_delay_days(anomalies([]), at(99)) == 0


def test_risk_does_not_fall_with_the_horizon_and_keeps_the_hazard() -> None:
    got = [risk.over_horizon(np.array([0.1]), 7, days)[0] for days in (1, 7, 14, 90)]
    assert got == sorted(got)
    assert got[1] == pytest.approx(0.1)
    assert got[2] == pytest.approx(1 - 0.9**2)


def risky_world(n_accounts: int = 200, n_days: int = 150) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Accounts with a high x have an anomaly with 20 % in any week, the others with 1 %; labels take five days."""
    rng = np.random.default_rng(0)
    high = rng.random(n_accounts) < 0.3
    names = [f"a{i:03d}" for i in range(n_accounts)]
    rows = [(n, d, h + 0.1 * rng.normal()) for d in range(0, n_days, 3) for n, h in zip(names, high, strict=True)]
    found = [
        (name, day, day + 5)
        for day in range(n_days)
        for name, is_high in zip(names, high, strict=True)
        if rng.random() < (0.2 if is_high else 0.01) / 7
    ]
    return features(rows), anomalies(found)


def test_accounts_at_risk_rank_first_and_their_risk_is_calibrated() -> None:
    rows, known = risky_world()
    model = risk.fitted(rows, known, known_by=at(110, 0), horizon_days=7)
    assert isinstance(model, risk.RiskModel)
    later = risk.snapshots(rows, known, [at(110, 0), at(117, 0), at(124, 0)])
    y = risk.outcomes(later, known, 7, at(150, 0))
    p = model.probability(later)
    assert float(metrics.roc_auc(metrics.ranking(y, p).totals)[0]) > 0.75
    assert p.mean() == pytest.approx(y.mean(), rel=0.3)


def test_the_share_of_snapshots_with_mature_labels_is_told() -> None:
    rows, known = risky_world()  # from day 0 on, labels take five days
    model = risk.fitted(rows, known, known_by=at(110, 0), horizon_days=7)
    assert isinstance(model, risk.RiskModel)
    # Weekly from day 110 back to the first record plus 28 days: 110 to 33. From 110 - 7 - 5: 98 to 35.
    assert model.facts["maturity"] == {"snapshots": 12, "mature": 10, "share": 10 / 12}
    assert risk.maturity(0, 0)["share"] is None


def test_nothing_known_later_changes_a_fitted_risk() -> None:
    rows, known = risky_world(n_accounts=120)
    moment = at(110, 0)
    late = known.with_columns(
        account_id=pl.when(pl.col("confirmed_at") < moment).then("account_id").otherwise(pl.lit("a000"))
    )
    noisy = rows.with_columns(x=pl.when(pl.col("known_at") < moment).then("x").otherwise(-99.0))
    grid = risk.snapshots(rows, known.filter(pl.col("confirmed_at") < moment), [moment])
    first = risk.fitted(rows, known, known_by=moment, horizon_days=7)
    second = risk.fitted(noisy, late, known_by=moment, horizon_days=7)
    assert isinstance(first, risk.RiskModel)
    assert isinstance(second, risk.RiskModel)
    assert np.array_equal(first.probability(grid), second.probability(grid))


def test_too_little_to_learn_from_is_a_reason_not_a_model() -> None:
    rows, known = risky_world(n_accounts=20, n_days=60)
    assert "too short" in str(risk.fitted(rows, known, known_by=at(40, 0), horizon_days=7))
    assert "too few" in str(risk.fitted(rows, known.head(3), known_by=at(60, 0), horizon_days=3))


def paid(rows: pl.DataFrame) -> pl.DataFrame:
    booked_at = pl.col("known_at")
    return rows.select("account_id", "known_at", booked_at=booked_at, direction=pl.lit("out"), amount_base=pl.lit(10.0))


def test_risk_of_the_final_day_is_published_for_every_horizon_with_what_there_is_to_lose() -> None:
    rows, known = risky_world()
    table, document = risk.account_risk(rows, known, paid(rows), at(150, 0), SETTINGS)
    final = table.filter(pl.col("model") == "final")
    assert final.height == 200 * 2
    assert final["probability"].is_between(0, 1).all()
    ratio = final["expected_loss"] / final["probability"]
    assert ratio.min() == pytest.approx(100)  # ten payments of 10 in thirty days
    assert document["judged"]["n"] == 200
    assert document["judged"]["roc_auc"]["estimate"] > 0.7
    assert document["reason"] is None
    assert table.equals(risk.account_risk(rows, known, paid(rows), at(150, 0), SETTINGS)[0])


# --- the stage -------------------------------------------------------------------------------------------------------


def write_inputs(rows: pl.DataFrame) -> None:
    full = rows.with_columns(known_at="booked_at", account_id=pl.lit("a"), direction=pl.lit("out"))
    tables.write_table(full, "validate", "transactions")
    tables.write_table(schemas.empty(schemas.LABELS), "validate", "labels")
    tables.write_table(full.select("transaction_id", "account_id", x=pl.lit(1.0)), "featurize", "features")
    tables.write_json([{"name": "x", "is_model_input": True}], "featurize", "dictionary")
    scores: Any = rows.select(
        "transaction_id",
        pl.lit(None, pl.String).alias("filing_id"),
        pl.lit("test").alias("split"),
        pl.lit("ensemble").alias("detector"),
        pl.lit(0.1).alias("score"),
        pl.lit(0.1).alias("probability"),
        is_alert=pl.int_range(pl.len()) % 10 == 0,
    )
    tables.write_table(schemas.checked(scores, schemas.SCORES), "ensemble", "scores")


@pytest.mark.parametrize("n_days", [50, 0])
def test_a_run_writes_the_same_bytes_twice_and_works_without_transactions(project: Path, n_days: int) -> None:
    rng = np.random.default_rng(0)
    write_inputs(booked(sorted(rng.integers(0, n_days, 2000).tolist()) if n_days else []))
    stage.run(SETTINGS)
    folder = project / "data" / "forecast"
    first = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    got = stage.run(SETTINGS)
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == first
    assert sorted(first) == ["account_risk.parquet", "forecasts.parquet", "metrics.json"]
    assert got["metrics"]["n"] == (3 if n_days else 0)
    assert got["metrics"]["account_risk"]["reason"]
