"""What is measured, on which rows, against which truth, and what a run without positives or rows says."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reperform import evaluate, metrics, schemas, tables
from reperform.errors import ReperformError
from reperform.evaluate import breakdowns, detection, segments, truth
from reperform.params import EvaluateParams, SplitParams

START = datetime(2025, 6, 1, tzinfo=UTC)
SETTINGS = EvaluateParams(
    truth="planted",
    bootstrap_rounds=50,
    interval=0.9,
    alert_shares=[0.1, 0.5],
    precision_at=[2],
    review_costs=[1, 10],
    known_compromised_days=7,
    seed=1,
)
CALENDAR = SplitParams(
    train_days=10,
    train_until=date(2025, 5, 25),
    label_delay_days=2,
    label_maturity_days=3,
    validation_days=3,
    test_from=date(2025, 6, 1),
    test_days=10,
    drop_known_compromised=False,
)


def transactions(n: int, days: int = 5, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    hour = np.sort(rng.integers(0, days * 24, n))
    booked = [START + timedelta(hours=int(h), seconds=i) for i, h in enumerate(hour)]
    return pl.DataFrame(
        {
            "transaction_id": [f"t{i:05d}" for i in range(n)],
            "booked_at": booked,
            "known_at": [moment + timedelta(hours=1) for moment in booked],
            "account_id": [f"a{i}" for i in rng.integers(0, max(n // 5, 1), n)],
            "counterparty_id": [f"c{i}" for i in rng.integers(0, 20, n)],
            "entity_id": [f"bank{i}" for i in rng.integers(0, 2, n)],
            "amount_base": rng.lognormal(4, 1, n).round(2),
        },
        schema_overrides={"booked_at": schemas.UTC_US, "known_at": schemas.UTC_US}
        | dict.fromkeys(("transaction_id", "account_id", "counterparty_id", "entity_id"), pl.String),
    )


def planted(rows: pl.DataFrame, every: int = 20) -> pl.DataFrame:
    chosen = rows.gather_every(every)
    return chosen.select(
        "transaction_id",
        typology=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("structuring")).otherwise(pl.lit("cycle")),
        event_id=pl.format("event-{}", pl.int_range(pl.len()) // 2),
        is_anomaly=pl.lit(value=True),
    )


def scores(rows: pl.DataFrame, values: Any, detector: str = "ensemble", alert: Any = None) -> pl.DataFrame:
    return rows.select(
        "transaction_id",
        pl.lit(None, pl.String).alias("filing_id"),
        pl.lit("test").alias("split"),
        pl.lit(detector).alias("detector"),
        pl.Series("score", values, dtype=pl.Float64),
        (pl.Series("probability", 1 / (1 + np.exp(-np.asarray(values))), dtype=pl.Float64)),
        pl.Series("is_alert", [None] * rows.height if alert is None else alert, dtype=pl.Boolean),
    )


def world(n: int = 400) -> tuple[detection.Period, list[detection.Scored]]:
    rows = transactions(n)
    known = truth.planted_truth(rows, planted(rows), rows).with_columns(segment=pl.lit("retail"))
    period = detection.period_of(known, SETTINGS)
    rng = np.random.default_rng(3)
    good = rng.normal(size=n) + 3 * period.y
    found = {
        "rules": scores(rows, np.where(rng.random(n) < 0.2, 1.5, 0.3), "rules"),
        "ensemble": scores(rows, good, alert=good > 2.5),
    }
    return period, detection.scored_rows(period, found, seed=1)


# --- truth -----------------------------------------------------------------------------------------------------------


def test_planted_truth_knows_every_row() -> None:
    rows = transactions(40)
    got = truth.planted_truth(rows, planted(rows), rows)
    assert got["is_anomaly"].null_count() == 0
    assert got["is_anomaly"].sum() == 2
    assert got["transaction_id"].equals(rows["transaction_id"])


def test_an_event_that_began_earlier_keeps_its_beginning() -> None:
    rows = transactions(40)
    got = truth.planted_truth(rows.tail(20), planted(rows), rows).filter("is_anomaly")
    assert got["event_started_at"].to_list() == [rows["booked_at"][0]]


def labels(*records: tuple[str, bool, datetime]) -> pl.DataFrame:
    return pl.DataFrame(
        [(i, a, "structuring" if a else None, c) for i, a, c in records],
        schema=schemas.polars_schema(schemas.LABELS),
        orient="row",
    )


def test_labels_are_the_truth_once_known_and_mature() -> None:
    rows = transactions(40, days=10)
    first, last = rows["transaction_id"][0], rows["transaction_id"][39]
    known_at = START + timedelta(days=8)
    got = truth.label_truth(
        rows,
        labels((first, True, START + timedelta(days=2)), (last, True, known_at + timedelta(days=1))),
        known_at=known_at,
        maturity_days=3,
    )
    mature = rows["booked_at"] <= known_at - timedelta(days=3)
    assert got["is_anomaly"][0] is True
    assert got["is_anomaly"][39] is None  # confirmed too late, and too young to count as normal
    assert got.filter(mature)["is_anomaly"].null_count() == 0
    assert got.filter(~mature)["is_anomaly"].is_null().all()


def test_a_label_of_normal_needs_no_maturity() -> None:
    rows = transactions(1)
    got = truth.label_truth(
        rows, labels(("t00000", False, START)), known_at=START + timedelta(hours=30), maturity_days=9
    )
    assert got["is_anomaly"].to_list() == [False]


def test_what_is_known_ends_at_the_midnight_after_the_data() -> None:
    rows = transactions(40, days=2)
    late = labels(("t00001", True, START + timedelta(days=20, hours=3)))
    assert truth.knowledge_end(rows, late, START) == START + timedelta(days=21)
    assert truth.knowledge_end(rows.clear(), late.clear(), START) == START


def test_accounts_found_before_a_day_are_left_out_from_that_day_on() -> None:
    day = timedelta(days=1)
    rows = pl.DataFrame(
        {
            "transaction_id": ["a", "b", "c", "d"],
            "account_id": ["x", "x", "x", "y"],
            "booked_at": [START + 8 * day, START + 9 * day, START + 10 * day, START + 10 * day],
        },
        schema_overrides={"booked_at": schemas.UTC_US},
    )
    early = pl.DataFrame(
        {"transaction_id": ["old"], "account_id": ["x"], "booked_at": [START]},
        schema_overrides={"booked_at": schemas.UTC_US},
    )
    confirmed = labels(("old", True, START + 8 * day + timedelta(hours=5)))
    everything = pl.concat([early, rows.select(early.columns)])
    got = truth.known_compromised(rows, confirmed, everything, since=START)
    assert got.tolist() == [False, True, True, False]
    assert not truth.known_compromised(rows, confirmed, everything, since=START + day).any()


def test_handbook_protocol_reproduces_its_row_counts(shared: Path) -> None:
    """Published: 67,240 rows with 598 frauds to train on, 58,264 rows with 385 frauds left in the test week."""
    raw = pl.read_csv(shared / "handbook" / "transactions.csv.gz")
    rows = raw.select(
        transaction_id=pl.col("TRANSACTION_ID").cast(pl.String),
        account_id=pl.col("CUSTOMER_ID").cast(pl.String),
        booked_at=pl.col("TX_DATETIME").str.to_datetime(time_unit="us").dt.replace_time_zone("UTC"),
        fraud=pl.col("TX_FRAUD") == 1,
        is_empty=pl.col("TX_AMOUNT") <= 0,
    )
    day = pl.col("booked_at").dt.date()
    train = rows.filter(day.is_between(date(2018, 7, 25), date(2018, 7, 31)))
    assert (train.height, int(train["fraud"].sum())) == (67_240, 598)
    known = rows.filter("fraud").select(
        "transaction_id",
        is_anomaly=pl.lit(value=True),
        typology=pl.lit("fraud"),
        confirmed_at=pl.col("booked_at") + pl.duration(days=7),
    )
    test = rows.filter(day.is_between(date(2018, 8, 8), date(2018, 8, 14)))
    dropped = truth.known_compromised(test, known, rows, since=datetime(2018, 7, 25, tzinfo=UTC))
    left = test.filter(~pl.Series(dropped))
    assert (left.height, int(left["fraud"].sum())) == (58_264, 385)
    assert left["is_empty"].sum() <= 32  # amounts of zero are quarantined before they get here


# --- detectors -------------------------------------------------------------------------------------------------------


def test_a_row_without_a_score_is_refused_by_name() -> None:
    rows = transactions(40)
    period = detection.period_of(
        truth.planted_truth(rows, planted(rows), rows).with_columns(segment=pl.lit("retail")), SETTINGS
    )
    with pytest.raises(ReperformError, match=r"rules left test rows without a score[\s\S]*2 without"):
        detection.scored_rows(period, {"rules": scores(rows.head(38), np.zeros(38), "rules")}, seed=0)


def test_every_detector_is_judged_at_the_ensembles_effort() -> None:
    _, every = world()
    assert len({int(scored.alert.sum()) for scored in every}) == 1


def test_metrics_are_what_the_pure_functions_say() -> None:
    period, every = world()
    got = detection.measured(period, every, SETTINGS)["ensemble"]
    ensemble = every[1]
    expected = metrics.average_precision(metrics.ranking(period.y, ensemble.score).totals)[0]
    assert got["average_precision"].estimate == pytest.approx(expected)
    assert got["precision"].estimate == pytest.approx((period.y & ensemble.alert).sum() / ensemble.alert.sum())
    assert got["alerts_per_day"].estimate == pytest.approx(ensemble.alert.sum() / 5)
    assert got["card_precision_at_2"].n == 5
    assert got["brier"].estimate == pytest.approx(metrics.brier(period.y, ensemble.probability).mean())
    for name in ("average_precision", "roc_auc", "recall", "alert_reduction_at_rules_recall"):
        assert got[name].low <= got[name].estimate <= got[name].high


def test_alert_reduction_compares_alerts_at_the_rules_recall() -> None:
    rows = transactions(100, days=2)
    known = truth.planted_truth(rows, planted(rows, 10), rows).with_columns(segment=pl.lit("retail"))
    period = detection.period_of(known, SETTINGS)
    fired = np.zeros(100)
    fired[np.flatnonzero(period.y)[:5]] = 1.0  # half of the ten anomalies
    fired[np.flatnonzero(~period.y)[:45]] = 1.0  # and 45 false alarms: 50 alerts
    perfect = period.y + np.arange(100) / 1000
    every = detection.scored_rows(
        period, {"rules": scores(rows, fired, "rules"), "ensemble": scores(rows, perfect, alert=perfect > 1)}, seed=0
    )
    got = detection.against_rules(period, every[1], every[0])["alert_reduction_at_rules_recall"]
    assert got.estimate == pytest.approx(1 - 5 / 50)


def event_world(alert: list[bool]) -> tuple[detection.Period, np.ndarray]:
    hours = [0, 10, 20, 30]
    rows = pl.DataFrame(
        {
            "transaction_id": list("abcd"),
            "booked_at": [START + timedelta(hours=h) for h in hours],
            "known_at": [START + timedelta(hours=h + 2) for h in hours],
            "account_id": ["x", "x", "x", "y"],
            "amount_base": [100.0, 50.0, 25.0, 400.0],
            "is_anomaly": [True, True, True, True],
            "typology": ["cycle", "cycle", "cycle", "fan_out"],
            "event_id": ["1", "1", "1", "2"],
            "event_started_at": [START, START, START, START + timedelta(hours=30)],
            "segment": ["retail"] * 4,
        },
        schema_overrides=dict.fromkeys(("booked_at", "known_at", "event_started_at"), schemas.UTC_US),
    )
    return detection.period_of(rows, SETTINGS), np.array(alert)


def test_time_and_value_lost_before_detection_by_hand() -> None:
    period, alert = event_world([False, True, False, False])
    (first, second) = detection.event_table(period, alert).to_dicts()
    assert first["found_at"] == START + timedelta(hours=12)  # when the alerted record was known
    assert first["amount_before"] == 150  # booked before that
    assert second["found_at"] is None
    scored = detection.Scored("d", np.zeros(4), alert, metrics.ranking(period.y, np.zeros(4), period.day), np.zeros(50))
    got = detection.decisions(period, scored)
    assert got["event_recall"].estimate == 0.5
    assert got["hours_to_detect_median"].estimate == 12
    assert got["value_lost_before_detection_share"].estimate == pytest.approx(550 / 575)
    # the alerted row and what followed on its account
    assert got["value_detection_rate"].estimate == pytest.approx(75 / 575)


def test_events_that_began_before_the_test_have_no_time_to_detect() -> None:
    period, alert = event_world([True] * 4)
    earlier = period.rows.with_columns(
        event_started_at=pl.when(pl.col("event_id") == "1")
        .then(pl.lit(START - timedelta(days=3), schemas.UTC_US))
        .otherwise("event_started_at")
    )
    got = detection.event_table(detection.period_of(earlier, SETTINGS), alert)
    assert got["event_id"].to_list() == ["2"]


def test_row_order_of_scores_does_not_matter() -> None:
    period, _ = world()
    frame = scores(period.rows, np.random.default_rng(0).integers(0, 5, 400))
    shuffled = frame.sample(fraction=1, shuffle=True, seed=4)
    one, other = (detection.scored_rows(period, {"d": f}, seed=0)[0] for f in (frame, shuffled))
    assert np.array_equal(one.alert, other.alert)
    assert detection.detection(period, one, SETTINGS) == detection.detection(period, other, SETTINGS)


# --- nothing to measure ----------------------------------------------------------------------------------------------


def test_no_anomalies_give_undefined_metrics_and_tables_that_say_so() -> None:
    rows = transactions(50)
    known = truth.planted_truth(rows, planted(rows).clear(), rows).with_columns(segment=pl.lit(None, pl.String))
    period = detection.period_of(known, SETTINGS)
    every = detection.scored_rows(
        period, {"rules": scores(rows, np.ones(50), "rules"), "ensemble": scores(rows, np.arange(50))}, seed=0
    )
    got = detection.measured(period, every, SETTINGS)["ensemble"]
    assert got["average_precision"].estimate is None
    assert got["prevalence"].estimate == 0
    assert got["calibration_slope"].estimate is None
    assert breakdowns.cost_table(period, every, [1.0]) == []
    assert breakdowns.curves(period, every, []).height == 0
    assert json.dumps(breakdowns.budget_table(period, every, SETTINGS), allow_nan=False)


def test_no_rows_give_undefined_metrics() -> None:
    rows = transactions(0)
    known = truth.planted_truth(rows, planted(rows), rows).with_columns(segment=pl.lit(None, pl.String))
    period = detection.period_of(known, SETTINGS)
    every = detection.scored_rows(
        period, {name: scores(rows, np.empty(0), name) for name in ("rules", "ensemble")}, seed=0
    )
    got = detection.measured(period, every, SETTINGS)
    assert all(one.estimate is None for of in got.values() for one in of.values())
    assert breakdowns.day_table(period, every) == []
    assert breakdowns.typology_table(period, every, labels()) == []


# --- tables ----------------------------------------------------------------------------------------------------------


def test_curves_are_short_and_end_at_full_recall() -> None:
    period, every = world(4000)
    got = breakdowns.curves(period, every, breakdowns.cost_table(period, every, [1.0]))
    assert got.group_by("detector", "curve").len()["len"].max() <= 400
    last = got.filter((pl.col("curve") == "precision_recall") & (pl.col("detector") == "ensemble")).tail(1)
    assert last["x"][0] == 1


def test_typologies_that_no_label_showed_are_marked() -> None:
    period, every = world()
    shown = labels(("t1", True, START))
    got = {row["typology"]: row for row in breakdowns.typology_table(period, every, shown)}
    assert got["structuring"]["labels_before_test"] == 1
    assert got["cycle"]["labels_before_test"] == 0
    assert sum(row["n"] for row in got.values()) == period.y.sum()


def test_alerts_are_ranked_and_carry_their_truth() -> None:
    rows = truth.planted_truth(transactions(40), planted(transactions(40)), transactions(40))
    got = breakdowns.alert_table(rows, scores(rows, np.arange(40), alert=np.arange(40) >= 35))
    assert got["rank"].to_list() == [1, 2, 3, 4, 5]
    assert got["score"].to_list() == [39, 38, 37, 36, 35]
    assert got["is_anomaly"].null_count() == 0


def test_outcomes_of_alerts_and_truth() -> None:
    rows = transactions(5).with_columns(
        is_anomaly=pl.Series([True, True, False, False, None]), typology=pl.lit(None, pl.String)
    )
    got = breakdowns.outcome_table(rows, scores(rows, np.arange(5), alert=[True, False, True, False, True]))
    assert got["outcome"].to_list() == ["caught", "missed", "false alarm", "quiet", None]


def test_filings_are_ranked_by_their_own_score() -> None:
    frame = pl.DataFrame(
        {
            "transaction_id": [None] * 4,
            "filing_id": ["a", "b", "c", "d"],
            "split": ["test"] * 4,
            "detector": ["filings"] * 4,
            "score": [0.9, 0.2, 0.8, 0.1],
            "probability": [None] * 4,
            "is_alert": [True, False, True, False],
        },
        schema=schemas.polars_schema(schemas.SCORES),
    )
    wrong = pl.DataFrame({"filing_id": ["a", "b", "b"], "misstatement": ["sum", "sign", "scale"], "concept": ["x"] * 3})
    got, tables_ = detection.filing_detection(frame, wrong, SETTINGS)
    assert got["recall"].estimate == 0.5
    assert got["precision"].estimate == 0.5
    assert got["average_precision"].estimate == pytest.approx((1 + 2 / 3) / 2)
    assert tables_["per_misstatement"][1]["misstatement"] == "scale, sign"
    assert tables_["per_misstatement"][1]["rank"] == 3


def test_no_filings_are_undefined() -> None:
    got, tables_ = detection.filing_detection(
        schemas.empty(schemas.SCORES),
        pl.DataFrame(schema={"filing_id": pl.String, "misstatement": pl.String, "concept": pl.String}),
        SETTINGS,
    )
    assert all(one.estimate is None for one in got.values())
    assert tables_["n"] == 0


def test_all_trials_are_listed_also_failed_ones() -> None:
    got = breakdowns.trial_table(
        {
            "xgboost": [
                {"number": 0, "value": 0.5, "state": "complete", "parameters": {"b": 2, "a": 1}},
                {"state": "failed"},
            ]
        }
    )
    assert [row["state"] for row in got] == ["complete", "failed"]
    assert got[0]["parameters"] == "a=1, b=2"


# --- the stage -------------------------------------------------------------------------------------------------------


def write_inputs(rows: pl.DataFrame) -> None:
    full = rows.with_columns(
        direction=pl.lit("out"),
        amount=pl.col("amount_base"),
        currency=pl.lit("EUR"),
        channel=pl.lit(None, pl.String),
        country=pl.lit(None, pl.String),
        **dict.fromkeys(("latitude", "longitude", "balance_after"), pl.lit(None, pl.Float64)),
        source_file=pl.lit("f.csv"),
        source_record=pl.int_range(pl.len()),
    ).select(*schemas.polars_schema(schemas.TRANSACTIONS))
    tables.write_table(full, "validate", "transactions")
    tables.write_table(schemas.empty(schemas.LABELS), "validate", "labels")
    tables.write_table(schemas.empty(schemas.ACCOUNTS), "validate", "accounts")
    tables.write_table(rows.select("transaction_id", split=pl.lit("test")), "split", "splits")
    tables.write_table(planted(rows), "simulate", "truth")
    filing_truth = pl.DataFrame(schema=dict.fromkeys(("filing_id", "misstatement", "concept", "detail"), pl.String))
    tables.write_table(filing_truth, "simulate", "filing_truth")
    tables.write_table(schemas.empty(schemas.SCORES), "ensemble", "filing_scores")
    value = np.random.default_rng(1).normal(size=rows.height)
    for name in ("rules", "isolation_forest", "one_class_svm", "xgboost", "random_forest", "lstm_autoencoder"):
        tables.write_table(scores(rows, value, name), f"train/{name}", "scores")
        tables.write_json([], f"tune/{name}", "trials")
    tables.write_table(scores(rows, value, alert=value > 2), "ensemble", "scores")
    tables.write_json({"members": []}, "ensemble", "model")


@pytest.mark.parametrize(
    ("n", "kind", "reason"),
    [
        (300, "planted", None),
        (300, "labels", "no anomaly among the test rows whose truth is known"),
        (0, "planted", "no transactions in the test period"),
        (0, "labels", "no transactions in the test period"),
    ],
)
def test_a_run_writes_the_same_bytes_twice_and_works_without_transactions_or_anomalies(
    project: Path, n: int, kind: str, reason: str | None
) -> None:
    write_inputs(transactions(n, days=40))
    given = EvaluateParams(**{**SETTINGS.__dict__, "truth": kind})
    result = evaluate.run(given)
    folder = project / "data" / "evaluate"
    first = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    evaluate.run(given)
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == first
    tables_and_documents = ("alerts.parquet", "bundle.json", "curves.parquet", "metrics.json", "outcomes.parquet")
    assert sorted(first) == [*tables_and_documents, "tables.json"]
    assert result["tables"]["reason"] == reason
    counts = result["tables"]["counts"]
    assert counts["measured"] + counts["unknown_truth"] == n
    assert result["metrics"]["ensemble"]["average_precision"]["n"] == counts["measured"]


# --- segments, fairness, other prevalences ---------------------------------------------------------------------------


def segmented() -> tuple[detection.Period, list[detection.Scored]]:
    """Two channels of four rows each over two days; the ensemble flags one false alarm in `card`, two in `wire`."""
    rows = pl.DataFrame(
        {
            "transaction_id": list("abcdefgh"),
            "booked_at": [START + timedelta(hours=h) for h in (0, 1, 2, 3, 24, 25, 26, 27)],
            "known_at": [START + timedelta(hours=h) for h in (0, 1, 2, 3, 24, 25, 26, 27)],
            "account_id": list("xxyyxxyy"),
            "amount_base": [1.0] * 8,
            "channel": ["card", "card", "wire", "wire"] * 2,
            "is_anomaly": [True, False, False, False, False, False, False, True],
            "typology": ["cycle", None, None, None, None, None, None, "cycle"],
            "event_id": ["1", None, None, None, None, None, None, "2"],
            "event_started_at": [START] + [None] * 6 + [START + timedelta(hours=27)],
        },
        schema_overrides=dict.fromkeys(("booked_at", "known_at", "event_started_at"), schemas.UTC_US),
    )
    period = detection.period_of(rows, SETTINGS)
    alert = [True, True, True, False, False, False, True, False]
    return period, detection.scored_rows(period, {"ensemble": scores(rows, np.arange(8.0), alert=alert)}, seed=0)


def test_segments_by_hand_and_small_ones_are_called_so() -> None:
    period, every = segmented()
    card, wire = segments.segment_table(period, every, "channel", SETTINGS)
    assert (card["group"], card["n"], card["anomalies"], card["alerts"]) == ("card", 4, 1, 2)
    assert (card["recall"], card["precision"], card["false_positive_rate"]) == (1.0, 0.5, pytest.approx(1 / 3))
    assert (wire["recall"], wire["false_positive_rate"]) == (0.0, pytest.approx(2 / 3))
    assert wire["false_positive_rate_low"] <= 2 / 3 <= wire["false_positive_rate_high"]
    assert "1 anomalies, fewer than 10" in card["too_small"]
    enough = replace(SETTINGS, least_anomalies=1)
    assert segments.segment_table(period, every, "channel", enough)[0]["too_small"] is None


def test_many_groups_are_cut_to_the_largest() -> None:
    sizes = {f"g{i:02d}": 20 - i for i in range(20)}
    groups = segments._largest(pl.Series("g", [name for name, n in sizes.items() for _ in range(n)]))
    names = segments._in_order(groups)
    assert len(names) == segments.MOST_GROUPS
    assert names[-1] == segments.OTHER
    assert (groups == segments.OTHER).sum() == sum(n for name, n in sizes.items() if name > "g10")


def test_accounts_are_new_until_they_are_old_enough() -> None:
    day = timedelta(days=1)
    rows = pl.DataFrame(
        {"booked_at": [START] * 3, "opened_at": [START - 89 * day, START - 90 * day, None]},
        schema=dict.fromkeys(("booked_at", "opened_at"), schemas.UTC_US),
    )
    got = segments.with_account_age(rows, 90)["account_age"].to_list()
    assert got == ["new, under 90 days", "90 days or older", None]


def test_fairness_is_the_lowest_false_positive_rate_over_the_highest() -> None:
    period, every = segmented()
    assert segments.fairness_of(period, every, SETTINGS) is None
    got = segments.fairness_of(period, every, replace(SETTINGS, fairness_attribute="channel"))
    assert got is not None
    assert got["ratio"]["estimate"] == pytest.approx(0.5)
    assert got["is_unequal"] is True
    assert [one["false_alarms"] for one in got["groups"]] == [1, 2]
    with pytest.raises(ReperformError, match="no attribute 'gender'"):
        segments.fairness_of(period, every, replace(SETTINGS, fairness_attribute="gender"))


def test_restated_precision_keeps_recall_and_false_positive_rate() -> None:
    period, every = segmented()
    (got,) = detection.restate_at_prevalence(period, every, [0.01])
    # recall 1/2, false positive rate 3/6
    assert got["precision"]["estimate"] == pytest.approx(0.005 / (0.005 + 0.5 * 0.99))
    assert got["alerts_per_hit"] == pytest.approx(1 / got["precision"]["estimate"])
    assert got["average_precision_lift"] == pytest.approx(got["average_precision"]["estimate"] / 0.01)


def test_probabilities_of_an_undersampled_source_are_corrected() -> None:
    period, every = segmented()
    frame = scores(period.rows, np.arange(8.0), alert=[False] * 8)
    (corrected,) = detection.scored_rows(period, {"ensemble": frame}, seed=0, negatives_kept=0.1)
    assert corrected.probability == pytest.approx(metrics.prior_corrected(every[0].probability, 0.1))


def test_accounts_falsely_flagged_have_an_interval_over_days() -> None:
    period, every = segmented()
    got = detection.decisions(period, every[0])["false_accounts_per_true_account"]
    assert got.estimate == 0  # both accounts hold an anomaly, so neither was flagged in vain
    innocent = detection.period_of(
        period.rows.with_columns(account_id=pl.Series(list("xxzyxxzy"))), SETTINGS
    )  # fmt: skip
    got = detection.decisions(innocent, every[0])["false_accounts_per_true_account"]
    assert (got.estimate, got.n) == (1.0, 3)
    assert got.low is not None


def test_events_never_found_complete_those_found() -> None:
    period, alert = event_world([False, True, False, False])
    scored = detection.Scored("d", np.zeros(4), alert, metrics.ranking(period.y, np.zeros(4), period.day), np.zeros(50))
    got = detection.decisions(period, scored)
    assert got["events_never_found"].estimate == 0.5
    assert got["events_never_found"].low == pytest.approx(1 - got["event_recall"].high)
    assert got["hours_to_detect_median"].n == 1


def test_savings_of_a_decision_have_an_interval_that_holds_them() -> None:
    period, every = world()
    for record in breakdowns.cost_table(period, every, [1.0, 10.0]):
        assert record["low"] <= record["savings"] <= record["high"]
        spent = record["cost"]
        assert record["savings"] == pytest.approx(
            metrics.savings(spent, period.y, period.amount, record["review_cost"])
        )
