"""Runs of anomalies (KPI 7) and multiples of the median (KPI 2), by hand and against their definitions."""

from datetime import timedelta
from statistics import fmean, median, pstdev
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform.errors import ReperformError
from reperform.featurize import engine, risk, spikes, streaks
from reperform.featurize.kpis import BY_NAME
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Kpi
from reperform.featurize.windows import DAY_US, HOUR_US
from tests.featurize_tables import accounts, column, features, labels, transactions, world

RATE = {"counterparty_streak": {"rate": 0.1}, "account_streak": {"rate": 0.1}}
MATURITY = timedelta(days=2)


def streak(*hours: float, labelled: pl.DataFrame) -> pl.DataFrame:
    rows = transactions(*({"hours": h} for h in hours))
    return features(rows, "counterparty_streak", labelled=labelled, fitted=RATE, streak={"latest": [2, 3]})


def test_a_run_is_the_anomalies_after_the_latest_normal_record() -> None:
    # Maturity is two days: rows 0 and 1 count as normal from hours 48 and 58. Rows 2 and 3 are confirmed at 30 and 60.
    got = streak(0, 10, 20, 24, 40, 60, 70, labelled=labels((2, True, 30), (3, True, 60)))
    assert column(got, "counterparty_anomaly_run") == [None, None, None, None, 1, 2, 2]
    days = column(got, "counterparty_anomaly_run_days")
    assert days[:4] == [None] * 4
    assert days[4:] == pytest.approx([20 / 24, 40 / 24, 50 / 24])
    assert column(got, "counterparty_resolved_n") == [0, 0, 0, 0, 1, 4, 4]
    assert column(got, "counterparty_anomaly_share_last_2") == [None] * 4 + [1, 1, 1]
    assert column(got, "counterparty_anomaly_share_last_3")[4:] == pytest.approx([1, 2 / 3, 2 / 3])
    assert column(got, "counterparty_normal_n_since_anomaly") == [None] * 4 + [0, 0, 0]


def test_a_normal_record_ends_a_run() -> None:
    got = streak(0, 10, 20, 100, labelled=labels((0, True, 1), (1, True, 11)))
    assert column(got, "counterparty_anomaly_run") == [None, 1, 2, 0]
    assert column(got, "counterparty_anomaly_run_days")[3] is None
    assert column(got, "counterparty_normal_n_since_anomaly") == [None, 0, 0, 1]
    assert column(got, "counterparty_days_since_first_anomaly_36d")[3] == pytest.approx(100 / 24)


def test_a_record_that_counted_as_normal_joins_a_run_when_its_label_arrives() -> None:
    got = streak(0, 60, 90, labelled=labels((0, True, 80)))
    assert column(got, "counterparty_anomaly_run") == [None, 0, 1]


def test_an_anomaly_older_than_the_span_is_not_its_first() -> None:
    got = streak(0, 24 * 30, 24 * 40, labelled=labels((0, True, 1), (1, True, 24 * 31)))
    since = column(got, "counterparty_days_since_first_anomaly_36d")
    assert since == [None, pytest.approx(30), pytest.approx(10)]


def test_records_of_one_moment_and_late_records_do_not_see_each_other() -> None:
    rows = transactions({"hours": 0, "late": 30}, {"hours": 20}, {"hours": 20}, {"hours": 31})
    got = features(rows, "account_streak", labelled=labels((0, True, 1), (1, True, 20)), fitted=RATE)
    # The first record is not there before hour 30, whatever its label says; of two at hour 20, neither sees the other.
    assert column(got, "account_anomaly_run") == [None, None, None, 2]


def test_without_labels_or_without_a_counterparty_nothing_is_known() -> None:
    rows = transactions({"hours": 0}, {"hours": 100}, {"hours": 200, "counterparty_id": None})
    blind = features(rows, "counterparty_streak")
    assert column(blind, "counterparty_anomaly_run") == [None, None, None]
    got = features(rows, "counterparty_streak", labelled=labels((0, True, 1)), fitted=RATE)
    assert column(got, "counterparty_anomaly_run") == [None, 1, None]
    assert column(got, "counterparty_resolved_n") == [0, 1, None]


@pytest.mark.parametrize("wrong", [{"latest": [0]}, {"span": "many days"}, {"lastest": [5]}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ReperformError):
        features(transactions({"hours": 0}), "account_streak", labelled=labels((0, True, 1)), fitted=RATE, streak=wrong)


def expected_streak(ledger: Ledger, row: int, latest: int) -> list[float | None]:
    """The definition, by looking at every pair of rows."""
    resolved, positive = risk.resolved_known(ledger), risk.positive_known(ledger)
    t = ledger.time[row]
    seen = [j for j in range(len(ledger)) if ledger.counterparty[j] == ledger.counterparty[row] and resolved[j] <= t]
    if ledger.counterparty[row] < 0 or not seen:
        return [None] * 4
    said = [bool(positive[j] <= t) for j in seen]
    normal = [k for k, bad in enumerate(said) if not bad]
    run = len(said) - 1 - normal[-1] if normal else len(said)
    bad = [k for k, is_bad in enumerate(said) if is_bad]
    first = [seen[k] for k in bad if ledger.time[seen[k]] >= t - 20 * DAY_US]
    return [
        run,
        fmean(said[-latest:]),
        len(said) - 1 - bad[-1] if bad else None,
        (t - ledger.time[first[0]]) / DAY_US if first else None,
    ]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_runs_are_those_of_the_definition(seed: int) -> None:
    rows, _, _ = world(n=120, seed=seed, days=60)
    rng = np.random.default_rng(seed)
    labelled = labels(*((k, True, float(np.round(24 * k / 2 + rng.exponential(60)))) for k in range(0, 120, 3)))
    given_names = pl.Series([f"t{n:04d}" for n in range(120)])
    assert rows["transaction_id"].sort().equals(given_names)
    ledger = Ledger(rows, accounts(), labelled, MATURITY)
    chosen = streaks.Settings(latest=[3], span="20d")
    made = streaks.COUNTERPARTY_KPI.compute(ledger, {"rate": 0.1}, chosen, {})
    names = ["anomaly_run", "anomaly_share_last_3", "normal_n_since_anomaly", "days_since_first_anomaly_20d"]
    for row in range(len(ledger)):
        got = [made[f"counterparty_{name}"][row] for name in names]
        want = [np.nan if v is None else v for v in expected_streak(ledger, row, 3)]
        np.testing.assert_allclose(got, want)


def test_multiples_of_the_median_by_hand() -> None:
    given_rows = [(0, 10.0), (24, 30.0), (48, 20.0), (24 * 16, 80.0), (24 * 17, 40.0)]
    rows = transactions(*({"hours": h, "amount": x} for h, x in given_rows))
    got = features(rows, "amount_spike")
    # Medians of what came before: nothing, 10, 20, 20, 25.
    assert column(got, "amount_to_median_180d") == [None, 3, 1, 4, pytest.approx(1.6)]
    assert column(got, "amount_history_n_180d") == [0, 1, 2, 3, 4]
    # In the last 14 days: nothing; 10; 10 and 30; 20 lies just 14 days back; 80 alone, above three medians of 25.
    assert column(got, "amount_spike_max_14d") == [None, 1, 1.5, 1, pytest.approx(80 / 25)]
    assert column(got, "amount_spike_n_14d") == [None, 0, 0, 0, 1]
    assert column(got, "amount_spike_share_14d") == [None, 0, 0, 0, 1]
    deviation = pstdev([10, 30, 20, 80])
    assert column(got, "amount_sd_score_180d")[4] == pytest.approx((40 - 35) / (deviation + 1))
    assert column(got, "amount_median_180d")[4] == pytest.approx(np.log1p(25))


def test_money_in_and_money_out_have_medians_of_their_own() -> None:
    rows = transactions(
        {"hours": 0, "amount": 10.0},
        {"hours": 1, "amount": 500.0, "direction": "in"},
        {"hours": 2, "amount": 20.0},
        {"hours": 3, "amount": 250.0, "direction": "in"},
    )
    assert column(features(rows, "amount_spike"), "amount_to_median_180d") == [None, None, 2, 0.5]


def test_huge_amounts_stay_finite() -> None:
    rows = transactions({"hours": 0, "amount": 9e12}, {"hours": 1, "amount": 9e12}, {"hours": 2, "amount": 1.0})
    got = features(rows, "amount_spike")
    assert column(got, "amount_to_median_180d") == [None, 1, pytest.approx(1 / 9e12)]
    assert np.isfinite(column(got, "amount_sd_score_180d")[2] or np.nan)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_medians_and_spikes_are_those_of_the_definition(seed: int) -> None:
    rows, labelled, _ = world(n=150, seed=seed, days=60)
    ledger = Ledger(rows, accounts(), labelled, MATURITY)
    made = spikes.compute(ledger, {}, spikes.Settings(window="30d", recent="5d", factor=2.0), {})
    for row in range(len(ledger)):
        t, key = ledger.time[row], (ledger.account[row], ledger.incoming[row])
        past = [
            j
            for j in range(len(ledger))
            if (ledger.account[j], ledger.incoming[j]) == key
            and t - 30 * DAY_US <= ledger.time[j] < t
            and ledger.known[j] <= t
        ]
        amounts = [float(ledger.amount[j]) for j in past]
        late = [float(ledger.amount[j]) for j in past if ledger.time[j] >= t - 5 * DAY_US]
        middle = median(amounts) if amounts else np.nan
        got = [made[name][row] for name in ("amount_to_median_30d", "amount_spike_n_5d", "amount_spike_max_5d")]
        want = [
            ledger.amount[row] / middle,
            sum(x > 2 * middle for x in late) if amounts else np.nan,
            max(late) / middle if late else np.nan,
        ]
        np.testing.assert_allclose(got, want)
        if amounts:
            score = (ledger.amount[row] - fmean(amounts)) / (pstdev(amounts) + 1)
            assert made["amount_sd_score_30d"][row] == pytest.approx(score)


def test_an_hour_makes_no_day() -> None:
    got = streak(0, 1, labelled=labels((0, True, 0.5)))
    assert column(got, "counterparty_anomaly_run_days")[1] == pytest.approx(HOUR_US / DAY_US)


def test_the_handbooks_features_by_hand() -> None:
    # Hour 0 is a Monday midnight; hour 150 a Sunday, 6 o'clock.
    given_rows = [(0, 10.0), (20, 30.0), (150, 50.0), (24 * 8, 70.0)]
    rows = transactions(*({"hours": h, "amount": x} for h, x in given_rows))
    got = features(rows, "handbook_customer", "handbook_terminal", labelled=labels((1, True, 20 + 24 * 7)))
    assert column(got, "tx_amount") == [10, 30, 50, 70]
    assert column(got, "tx_during_weekend") == [0, 0, 1, 0]
    assert column(got, "tx_during_night") == [1, 0, 1, 1]
    assert column(got, "customer_nb_tx_1d") == [1, 2, 1, 1]
    assert column(got, "customer_nb_tx_7d") == [1, 2, 3, 2]  # hours 24 and before lie seven days back at the end
    assert column(got, "customer_avg_amount_7d") == [10, 20, 30, 60]
    assert column(got, "terminal_nb_tx_1d") == [0, 0, 0, 1]  # of hours 0 and 20, hour 20 alone is less than 8 days old
    assert column(got, "terminal_risk_1d") == [0, 0, 0, 1]
    assert column(got, "terminal_risk_7d") == [0, 0, 0, 0.5]


def test_features_of_the_handbook_are_made_only_where_they_are_named() -> None:
    names = [kpi.name for kpi in engine.selected([])]
    assert "amount_spike" in names
    assert "handbook_terminal" not in names
    assert [kpi.name for kpi in engine.selected(["handbook_terminal"])] == ["handbook_terminal"]


@pytest.mark.parametrize("kpi", BY_NAME.values(), ids=lambda kpi: kpi.name)
def test_features_that_are_named_depend_on_rows_of_their_key_alone(kpi: Kpi) -> None:
    rows, labelled, _ = world(n=200, seed=3, days=60)
    chosen = kpi.settings_of({"handbook": {"windows": ["5d"]}})
    whole = kpi.compute(Ledger(rows, accounts(), labelled, MATURITY), {}, chosen, {})
    assert list(whole) == [declared.name for declared in kpi.columns(chosen)]
    for key in rows[f"{kpi.key}_id"].drop_nulls().unique():
        held = (rows[f"{kpi.key}_id"] == key).fill_null(value=False)
        part = kpi.compute(Ledger(rows.filter(held), accounts(), labelled, MATURITY), {}, chosen, {})
        for name, values in part.items():
            np.testing.assert_array_equal(values, whole[name][held.to_numpy()])
