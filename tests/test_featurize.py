"""Each KPI on tables whose answer can be worked out by hand."""

import json
import math
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from reperform import featurize, params, schemas, tables
from reperform.errors import ReperformError
from reperform.featurize import correlation, frequency, opening, risk, timing
from reperform.featurize.kpis import KPIS
from reperform.featurize.rhythm import peer_decoupling
from tests.featurize_tables import RULES, accounts, calendar, column, features, labels, stage, transactions, world

H = 24.0  # hours in a day

World = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


# 1 velocity


def test_velocity_counts_the_past_hour_and_divides_by_it() -> None:
    rows = transactions({"hours": 100}, {"hours": 100.5}, {"hours": 100.9, "amount": 5}, {"hours": 101.2})
    got = features(rows, "velocity", of=accounts({"account_id": "a", "opened_at": datetime(2020, 1, 1, tzinfo=UTC)}))
    assert column(got, "velocity_n_1h") == [0, 1, 2, 2]
    assert column(got, "velocity_1h") == [0, 1, 2, 2]
    assert column(got, "velocity_amount_1h") == [0, 10, 20, 15]
    assert column(got, "velocity_24h")[3] == 3 / 24


def test_a_window_is_closed_at_its_far_end_and_open_at_the_row() -> None:
    got = features(transactions({"hours": 0}, {"hours": 1}, {"hours": 1}), "velocity")
    assert column(got, "velocity_n_1h") == [0, 1, 1]  # exactly one hour old counts; rows of one moment do not


def test_a_young_account_is_not_diluted() -> None:
    of = accounts({"account_id": "a", "opened_at": datetime(2025, 3, 3, tzinfo=UTC)})
    got = features(transactions({"hours": 8}, {"hours": 10}), "velocity", of=of)
    assert column(got, "velocity_24h")[1] == 1 / 10
    assert column(got, "velocity_30d")[1] == 1 / 10


def test_without_an_opening_date_age_counts_from_the_first_known_record() -> None:
    got = features(transactions({"hours": 0, "late": 5}, {"hours": 4}, {"hours": 6}), "velocity")
    assert column(got, "velocity_24h") == [0, 0, 2 / 6]


def test_a_late_record_is_not_seen_before_it_arrives_and_is_seen_afterwards() -> None:
    rows = transactions({"hours": 0, "late": 3}, {"hours": 2}, {"hours": 3}, {"hours": 4})
    assert column(features(rows, "velocity"), "velocity_n_24h") == [0, 0, 2, 3]


def test_acceleration_is_zero_at_a_steady_rate() -> None:
    rows = transactions(*({"hours": h} for h in range(800)))
    got = column(features(rows, "velocity"), "velocity_acceleration")
    assert got[-1] == pytest.approx(0)


def test_velocity_counts_different_counterparties() -> None:
    parties = ["x", "x", "y", None, "z"]
    rows = transactions(*({"hours": 24 * 40 + k, "counterparty_id": c} for k, c in enumerate(parties)))
    of = accounts({"account_id": "a", "opened_at": datetime(2020, 1, 1, tzinfo=UTC)})
    got = column(features(rows, "velocity", of=of), "velocity_counterparties_24h")
    assert [round(v * 24) for v in got] == [0, 1, 1, 2, 2]


def test_rare_channels_cost_bits() -> None:
    learned = [{"hours": k, "channel": "card"} for k in range(7)]
    rows = transactions(*learned, {"hours": 500, "channel": "card"}, {"hours": 501, "channel": "wire"})
    got = column(features(rows, "velocity"), "velocity_channel_rarity")
    # 7 rows of one channel, one added to it and one for all unseen channels.
    assert got[-2:] == [pytest.approx(-math.log2(8 / 9)), pytest.approx(-math.log2(1 / 9))]


def test_rows_of_the_same_channel_are_counted() -> None:
    rows = transactions(*({"hours": k / 10, "channel": c} for k, c in enumerate(["card", "wire", "card", "card"])))
    got = features(rows, "velocity")
    assert column(got, "velocity_channel_n_1h") == [0, 0, 1, 2]
    assert column(got, "velocity_channel_share_180d") == [1 / 2, 1 / 3, 2 / 4, 3 / 5]


# 2 amount deviation


def test_amount_deviation_by_hand() -> None:
    past = [10, 20, 30, 40, 50]
    rows = transactions(*({"hours": 24 * 20 + k, "amount": a} for k, a in enumerate([*past, 1000])))
    got = features(rows, "amount_deviation")
    logs = np.log1p(past)
    middle = np.median(logs)  # nothing happened before fit_end, so there is no group to back off to
    expected = (math.log(1001) - middle) / (1.4826 * np.median(abs(logs - middle)) + 0.05)
    assert column(got, "amount_deviation_z_90d") == [None] * 5 + [pytest.approx(expected)]
    assert column(got, "amount_deviation_n_90d") == [0, 1, 2, 3, 4, 5]
    assert column(got, "amount_to_max_90d")[5] == pytest.approx(20)
    assert column(got, "amount_rank_90d")[5] == 1
    assert column(got, "amount_deviation_flag_90d")[5] == 1


def test_the_median_is_backed_off_to_the_group_learned_before_fit_end() -> None:
    others = [{"hours": k, "account_id": "b", "amount": 99.0} for k in range(3)]
    own = [{"hours": 24 * 20 + k, "amount": 9.0} for k in range(6)]
    got = column(features(transactions(*others, *own), "amount_deviation"), "amount_deviation_z_90d")
    centre = (5 * math.log(10) + 10 * math.log(100)) / 15
    assert got[-1] == pytest.approx((math.log(10) - centre) / 0.05)


def test_amounts_are_compared_with_the_same_direction_alone() -> None:
    rows = transactions(*({"hours": k, "direction": "in", "amount": 500.0} for k in range(5)), {"hours": 9})
    got = features(rows, "amount_deviation")
    assert column(got, "amount_deviation_n_90d")[-1] == 0
    assert column(got, "amount_to_mean_7d")[-1] is None
    assert column(got, "amount_is_incoming") == [1] * 5 + [0]


def test_amount_to_mean_by_hand() -> None:
    got = features(transactions({"hours": 0, "amount": 10}, {"hours": 1, "amount": 30}, {"hours": 2, "amount": 60}))
    assert column(got, "amount_to_mean_24h") == [None, 3, 3]


# 3 time patterns


def test_hour_surprisal_by_hand() -> None:
    rows = transactions({"hours": 24 * 20 + 10}, {"hours": 24 * 27 + 10}, {"hours": 24 * 28 + 3}, {"hours": 2})
    got = column(features(rows, "time_pattern"), "time_surprisal_180d")
    learned = {
        10: 1 / 169,
        3: 1 / 169,
        2: 2 / 169,
    }  # one row before fit_end, at hour 2 of Monday, plus one for every hour
    assert got[0] == pytest.approx(-math.log2(learned[2]))
    assert got[1] == pytest.approx(-math.log2((0 + 24 * learned[10]) / (1 + 24)))
    assert got[2] == pytest.approx(-math.log2((1 + 24 * learned[10]) / (2 + 24)))
    assert got[3] == pytest.approx(-math.log2((0 + 24 * learned[3]) / (3 + 24)))


def test_hours_are_those_of_the_account_and_observe_summer_time() -> None:
    # 30 March 2025: in Berlin the clock goes from 02:00 to 03:00 at 01:00 UTC. 2 days 23 h after Monday the 27th.
    sunday = 24 * 27 - 1
    of = accounts({"account_id": "a", "timezone": "Europe/Berlin"})
    rows = transactions({"hours": sunday - 24}, {"hours": sunday + 1}, {"hours": sunday + 2}, {"hours": sunday + 24})
    got = features(rows, "time_pattern", of=of)
    assert column(got, "time_hour_local") == [0, 1, 3, 1]
    assert column(got, "time_is_weekend") == [1, 1, 1, 0]
    assert column(got, "time_is_night") == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("year", "day"), [(2024, date(2024, 3, 31)), (2025, date(2025, 4, 20)), (2018, date(2018, 4, 1))]
)
def test_easter(year: int, day: date) -> None:
    assert timing.easter(year) == day


def test_target_holidays() -> None:
    days = [date(2025, 4, 18), date(2025, 4, 21), date(2025, 5, 1), date(2025, 12, 26)]
    hours = [24.0 * (d - date(2025, 3, 3)).days for d in [*days, date(2025, 4, 19), date(2025, 12, 24)]]
    got = column(features(transactions(*({"hours": h} for h in hours)), "time_pattern"), "time_is_holiday")
    assert got == [1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("day", "distance"),
    [
        (date(2025, 3, 31), 0),
        (date(2025, 4, 2), 2),
        (date(2025, 4, 28), -2),
        (date(2025, 8, 30), 1),
        (date(2025, 8, 31), 2),
    ],
)
def test_payday_is_the_last_working_day_of_a_month(day: date, distance: int) -> None:
    assert timing.payday_distance(day) == distance


def test_an_unknown_timezone_is_named() -> None:
    of = accounts({"account_id": "a", "timezone": "Europe/Atlantis"})
    with pytest.raises(ReperformError, match="Europe/Atlantis"):
        features(transactions({"hours": 0}), "time_pattern", of=of)


def test_mean_surprisal_takes_earlier_rows_as_they_were_scored() -> None:
    parties = ["x", "y", "x", None]
    rows = transactions(
        *({"hours": 1000 + 10 * k, "counterparty_id": c} for k, c in enumerate(parties)),
        {"hours": 1000, "account_id": "b"},
    )
    got = features(rows, "time_pattern", fitted={"time_pattern": {"rows_per_hour": {}, "all": [1] * 168}})
    own = got.filter(pl.col("account_id") == "a")
    s = column(own, "time_surprisal_180d")
    assert column(own, "time_surprisal_mean_24h") == pytest.approx(
        [s[0], (s[0] + s[1]) / 2, sum(s[:3]) / 3, sum(s[1:]) / 3], abs=1e-6
    )
    assert column(own, "time_surprisal_pair_30d") == [
        pytest.approx(v, abs=1e-6) if v is not None else None for v in (s[0], s[1], (s[0] + s[2]) / 2, None)
    ]


# 4 frequency


def test_dormancy_and_burstiness_by_hand() -> None:
    rows = transactions(*({"hours": h} for h in [*range(0, 24, 2), 122]))
    got = features(rows, "frequency")
    assert column(got, "frequency_dormancy_180d")[-1] == 50
    assert column(got, "frequency_burstiness_180d")[-1] == -1  # perfectly even
    assert column(got, "frequency_hours_since_last")[:2] == [None, 2]
    assert column(got, "frequency_burstiness_180d")[9] is None


def test_yesterdays_count_against_its_gamma_poisson_prediction() -> None:
    fitted = {"frequency": {"prior": {}, "all": [2.0, 4.0]}}
    rows = transactions(*({"hours": 24 * d + k} for d, n in enumerate([1, 0, 5, 1]) for k in range(n)))
    got = features(rows, "frequency", fitted=fitted)
    shape, rate = 2 + 0.25 * 1, 4 + 0.25 * 2  # days 0 and 1 before day 2, none on its weekday
    high = stats.nbinom.sf(4, shape, rate / (rate + 1))
    assert column(got, "frequency_surprise")[-1] == pytest.approx(-math.log10(2 * high))
    assert column(got, "frequency_n")[-1] == 5
    assert column(got, "frequency_days_n")[-1] == 2


def test_a_silent_yesterday_of_a_busy_account_is_negative() -> None:
    fitted = {"frequency": {"prior": {}, "all": [100.0, 10.0]}}
    rows = transactions({"hours": 0}, {"hours": 72})
    got = column(features(rows, "frequency", fitted=fitted), "frequency_surprise")
    assert got[0] is None
    assert got[1] < -2


def test_late_records_join_the_day_on_which_they_were_known() -> None:
    rows = transactions({"hours": 1}, {"hours": 2, "late": 23}, {"hours": 25}, {"hours": 49})
    # On day 1 (from hour 24) only the first record of day 0 is known; on day 2 the last complete day has one record.
    assert column(features(rows, "frequency"), "frequency_n") == [None, None, 1, 1]


def test_false_discovery_rates_as_in_scipy() -> None:
    p = np.random.default_rng(0).uniform(0, 1, 20) ** 3
    got = frequency.benjamini_hochberg(p, np.zeros(20, np.int64), np.ones(20, bool))
    assert got == pytest.approx(stats.false_discovery_control(p))


# 5 balance


def balances(values: Any, **more: Any) -> pl.DataFrame:
    return transactions(*({"hours": 24 * d + 12, "balance_after": b, **more} for d, b in enumerate(values)))


def test_balance_volatility_by_hand() -> None:
    values = [100.0 + 10 * (d % 3) for d in range(40)]
    got = features(balances(values), "balance", fitted={"balance": {"floor": {"EUR": 7.0}, "all": 7.0}})
    b = np.array(values[8:38])
    changes = b - np.array(values[7:37])
    expected = 1.4826 * np.median(abs(changes - np.median(changes))) / (np.median(b) + 7)
    assert column(got, "balance_volatility_30d")[38] == pytest.approx(expected)
    assert column(got, "balance_n_30d")[38] == 30
    assert column(got, "balance_volatility_30d")[14] is None
    assert column(got, "balance_volatility_30d")[15] is not None


def test_drawdown_and_days_below_zero() -> None:
    got = features(
        balances([100.0, 200.0, -50.0, 50.0]), "balance", fitted={"balance": {"floor": {"EUR": 1.0}, "all": 1.0}}
    )
    assert column(got, "balance_drawdown_90d") == [None, 0, 0, 1.25]
    assert column(got, "balance_negative_30d") == [None, 0, 0, 1]


def test_the_last_move_is_measured_in_earlier_deviations() -> None:
    got = features(
        balances([0.0, 10.0, 20.0, 50.0, 0.0]), "balance", fitted={"balance": {"floor": {"EUR": 1.0}, "all": 1.0}}
    )
    assert column(got, "balance_move")[3] == pytest.approx(1)  # 10 after a change of 10
    assert column(got, "balance_move")[4] == pytest.approx(3)  # 30 after changes of 10 and 10


def test_drain_is_the_share_of_what_was_there() -> None:
    rows = balances([25.0, 0.0, -10.0], amount=75.0)
    assert column(features(rows, "balance"), "balance_drain") == [0.75, 1.0, 75 / 65]


def test_drain_over_a_day_adds_what_was_paid_out_before() -> None:
    rows = transactions(
        {"hours": 0, "amount": 20, "balance_after": 80.0},
        {"hours": 5, "amount": 50, "balance_after": 30.0},
        {"hours": 6, "amount": 10, "balance_after": 40.0, "direction": "in"},
        {"hours": 40, "amount": 40, "balance_after": 0.0},
    )
    got = features(rows, "balance")
    assert column(got, "balance_drain_24h") == [0.2, 0.7, 70 / 110, 1]
    assert column(got, "balance_drain_7d")[-1] == 1


def test_without_balances_the_dictionary_says_why() -> None:
    made = featurize.featurize(
        transactions({"hours": 0}, {"hours": 24}), accounts(), labels(), stage("balance"), calendar()
    )
    entry = next(e for e in made.dictionary if e["name"] == "balance_volatility_30d")
    assert entry["null_share"] == 1
    assert entry["null_reason"].endswith("; the source gives no balance_after")
    assert not entry["is_model_input"]


# 6 geography

BERLIN, NEW_YORK = {"latitude": 52.52, "longitude": 13.405}, {"latitude": 40.7128, "longitude": -74.006}


def test_implied_speed_between_two_cities() -> None:
    rows = transactions({"hours": 0, **BERLIN}, {"hours": 2, **NEW_YORK}, {"hours": 30, **BERLIN})
    got = features(rows, "geography")
    assert column(got, "geo_distance")[1] == pytest.approx(6385, rel=0.002)
    assert column(got, "geo_speed")[1] == pytest.approx(6385 / 2, rel=0.002)
    assert column(got, "geo_speed_flag") == [None, 1, None]  # the third comes 28 h later


def test_speed_looks_at_card_present_rows_alone() -> None:
    rows = transactions({"hours": 0, **BERLIN, "channel": "online"}, {"hours": 1, **NEW_YORK}, {"hours": 2})
    assert column(features(rows, "geography"), "geo_speed") == [None, None, None]


def test_country_surprisal_by_hand() -> None:
    rows = transactions(*({"hours": 240 + k, "country": c} for k, c in enumerate(["DE", "DE", "FR", None])))
    got = column(features(rows, "geography", split=calendar(1)), "geo_country_surprisal_180d")
    # Nothing learned: every country has prior 1.
    assert got == [0, 0, pytest.approx(-math.log2(2 / 4)), None]


def test_high_risk_follows_the_list_of_the_day() -> None:
    listed = [{"country": "XX", "effective_from": "2025-03-04", "effective_to": "2025-03-04", "citation": "test"}]
    rows = transactions(*({"hours": 24 * d + 12, "country": "XX"} for d in range(3)), {"hours": 40, "country": "DE"})
    got = features(rows, "geography", geography={"high_risk": listed})
    assert column(got, "geo_is_high_risk") == [0, 1, 0, 0]


def test_distance_from_where_the_account_usually_is() -> None:
    rows = transactions(*({"hours": k, **BERLIN} for k in range(4)), {"hours": 9, **NEW_YORK})
    got = column(features(rows, "geography"), "geo_radius_z_180d")
    assert got[:4] == [None, None, None, pytest.approx(0, abs=1e-6)]
    assert got[4] == pytest.approx(6385 / 5, rel=0.002)


# 7 risk


def test_counterparty_risk_by_hand() -> None:
    rows = transactions(*({"hours": h} for h in [0, 1, 24, 72, 73]))
    got = features(
        rows, "counterparty_risk", labelled=labels((0, True, 30)), fitted={"counterparty_risk": {"rate": 0.1}}
    )
    # Maturity is two days. At hour 24 nothing is resolved; at 72 and 73 rows 0 (anomaly) and 1 and 2 are.
    assert column(got, "counterparty_risk_30d") == [0.1, 0.1, 0.1, 3 / 23, 3 / 23]
    assert column(got, "counterparty_risk_n_30d") == [0, 0, 0, 3, 3]
    assert column(got, "counterparty_confirmed_n_24h") == [0, 0, 0, 0, 0]
    assert column(got, "counterparty_confirmed_n_7d") == [0, 0, 0, 1, 1]
    assert column(got, "counterparty_days_since_anomaly")[3:] == [3, pytest.approx(73 / 24)]
    assert column(got, "counterparty_days_since_confirmation")[3] == pytest.approx(42 / 24)


def test_an_anomaly_counts_as_normal_until_its_late_confirmation() -> None:
    rows = transactions({"hours": 0}, {"hours": 60}, {"hours": 101})
    got = features(
        rows, "counterparty_risk", labelled=labels((0, True, 100)), fitted={"counterparty_risk": {"rate": 0.5}}
    )
    assert column(got, "counterparty_risk_180d") == [0.5, 10 / 21, 11 / 21]


def test_a_label_of_a_late_record_is_not_known_before_the_record() -> None:
    rows = transactions({"hours": 0, "late": 50}, {"hours": 20}, {"hours": 50})
    got = features(rows, "account_risk", labelled=labels((0, True, 10)), fitted={"account_risk": {"rate": 0.5}})
    assert column(got, "account_confirmed_n_30d") == [0, 0, 1]


def test_risk_interval_is_that_of_the_beta_distribution() -> None:
    low, high = risk.beta_interval(np.array([1]), np.array([3]), 2.0, 18.0, 0.9)
    assert (low[0], high[0]) == pytest.approx(stats.beta(3, 20).interval(0.9))


def test_the_rate_is_learned_from_what_was_resolved_before_fit_end() -> None:
    rows = transactions(*({"hours": 24.0 * d} for d in range(12)))
    labelled = labels((0, True, 48), (1, True, 24 * 15))
    made = featurize.featurize(rows, accounts(), labelled, stage("account_risk"), calendar(10))
    assert made.fitted["account_risk"] == {"rate": 1.5 / 9, "resolved": 8, "anomalies": 1}


def test_without_labels_risk_is_unknown_and_confirmations_are_none() -> None:
    got = features(transactions({"hours": 0}, {"hours": 100}), "account_risk")
    assert column(got, "account_risk_180d") == [None, None]
    assert column(got, "account_confirmed_n_30d") == [0, 0]


def test_a_row_without_counterparty_has_no_counterparty_risk() -> None:
    rows = transactions({"hours": 0, "counterparty_id": None}, {"hours": 1, "counterparty_id": None})
    got = features(rows, "counterparty_risk", labelled=labels((0, True, 0.5)))
    values = got.select(pl.exclude(featurize.IDENTITY))
    assert values.null_count().row(0) == tuple([2] * values.width)


# 8 thresholds


def limits(rows: Any, *rules: Any, of: Any = None, split: Any = None) -> pl.DataFrame:
    return features(
        rows, "thresholds", "thresholds_counterparty", of=of, split=split, thresholds={"rules": list(rules)}
    )


def test_a_days_sum_is_held_against_the_limit() -> None:
    rows = transactions(
        {"hours": 1, "amount": 600}, {"hours": 2, "amount": 400}, {"hours": 25, "amount": 999},
        {"hours": 26, "amount": 50, "direction": "in"},
    )  # fmt: skip
    got = limits(rows, RULES[0])
    assert column(got, "limit_ratio") == [0.6, 1.0, 0.999, 0.05]
    assert column(got, "limit_broken_n") == [0, 1, 0, 0]


def test_more_than_a_limit_is_not_the_same_as_at_least() -> None:
    rule = {**RULES[0], "operator": ">"}
    assert column(limits(transactions({"hours": 1, "amount": 1000}), rule), "limit_broken_n") == [0]


def test_a_limit_holds_for_its_channel_country_currency_and_days() -> None:
    rule = {
        **RULES[0], "channels": ["cash"], "jurisdictions": ["US"], "currency": "USD",
        "effective_from": "2025-03-04", "effective_to": "2025-03-05",
    }  # fmt: skip
    base = {"channel": "cash", "currency": "USD", "amount": 500.0, "amount_base": 450.0}
    rows = transactions(
        {"hours": 12, **base}, {"hours": 36, **base}, {"hours": 37, **base, "channel": "card"},
        {"hours": 38, **base, "currency": "EUR"}, {"hours": 39, **base, "account_id": "b"}, {"hours": 80, **base},
    )  # fmt: skip
    of = accounts({"account_id": "a", "home_country": "US"}, {"account_id": "b", "home_country": "DE"})
    assert column(limits(rows, rule, of=of), "limit_ratio") == [None, 0.5, None, None, None, None]


def test_a_limit_over_ten_days_adds_up() -> None:
    rows = transactions(*({"hours": 24.0 * d, "amount": 200, "channel": "cash"} for d in (0, 5, 9, 12)))
    got = limits(rows, *RULES)
    assert column(got, "limit_ratio_cash") == [0.4, 0.8, 1.2, 1.2]
    assert column(got, "limit_ratio_any") == [0.2] * 4


def test_structuring_is_flagged_at_the_third_amount_just_below() -> None:
    rows = transactions(*({"hours": 24.0 * d, "amount": a} for d, a in enumerate([900, 850, 100, 990])))
    got = limits(rows, RULES[0])
    assert column(got, "structuring_n_10d") == [1, 2, 2, 3]
    assert column(got, "structuring_days_10d") == [1, 2, 2, 3]
    assert column(got, "structuring_ratio_10d") == [0.9, 1.75, 1.75, 2.74]
    assert column(got, "structuring_flag_10d") == [0, 0, 0, 1]


def test_no_structuring_where_a_day_breaks_the_limit_anyway() -> None:
    rows = transactions(*({"hours": h, "amount": 900} for h in (0, 1, 24)))
    assert column(limits(rows, RULES[0]), "structuring_flag_10d") == [0, 0, 0]


def test_structuring_surprise_is_the_binomial_tail() -> None:
    learned = [{"hours": h, "amount": a, "account_id": "b"} for h, a in enumerate([900, 10, 10, 10])]
    rows = transactions(*learned, *({"hours": 24.0 * (20 + d), "amount": a} for d, a in enumerate([900, 50, 900])))
    got = column(limits(rows, RULES[0]), "structuring_surprise_10d")
    assert got[-1] == pytest.approx(-math.log10(stats.binom.sf(1, 3, 1.5 / 5)))


def test_smurfing_counts_senders_below_the_limit() -> None:
    senders = [("x", 400), ("y", 1500), ("x", 100), ("y", 300), ("z", 250)]
    rows = transactions(
        *({"hours": 24.0 * d, "amount": a, "counterparty_id": c, "direction": "in"} for d, (c, a) in enumerate(senders))
    )
    got = limits(rows, RULES[0])
    assert column(got, "smurfing_parties_7d") == [1, 1, 1, 2, 3]
    assert column(got, "smurfing_ratio_7d") == [0.4, 0.4, 0.5, 0.8, 1.05]
    assert column(got, "smurfing_flag_7d") == [0, 0, 0, 0, 1]


def test_smurfing_from_several_accounts_to_one_counterparty() -> None:
    rows = transactions(*({"hours": k, "amount": 400, "account_id": a} for k, a in enumerate("abbc")))
    got = limits(rows, RULES[0])
    assert column(got, "smurfing_accounts_7d") == [1, 2, 2, 3]
    assert column(got, "smurfing_accounts_flag_7d") == [0, 0, 0, 1]


def test_many_micro_amounts() -> None:
    rows = transactions(*({"hours": k / 10, "amount": 49.0} for k in range(22)))
    got = limits(rows, RULES[0])
    assert column(got, "smurfing_micro_n_7d")[-1] == 22
    assert column(got, "smurfing_micro_flag_7d") == [0] * 20 + [1, 1]


# 11 concentration


def test_concentration_by_hand() -> None:
    rows = transactions(*({"hours": k, "amount": 10, "counterparty_id": "xy"[k % 2]} for k in range(20)), {"hours": 30})
    got = features(rows, "concentration")
    assert column(got, "concentration_counterparty_30d") == [None] * 20 + [0]
    assert column(got, "concentration_counterparty_effective_30d")[-1] == 2


def test_one_counterparty_is_full_concentration() -> None:
    rows = transactions(*({"hours": k} for k in range(21)))
    assert column(features(rows, "concentration"), "concentration_counterparty_30d")[-1] == 1


def test_risk_weights_exposures_as_scored_when_they_happened() -> None:
    rows = transactions(
        *({"hours": k, "counterparty_id": "good"} for k in range(10)), {"hours": 10, "counterparty_id": "bad"},
        *({"hours": 24 * 4 + k, "counterparty_id": "good" if k % 2 else "bad"} for k in range(20)), {"hours": 24 * 5},
    )  # fmt: skip
    labelled = labels((10, True, 24))
    plain = features(rows, "concentration", labelled=labelled)
    fitted = {"counterparty_risk": {"rate": 0.01}, "concentration": {}}
    weighted = features(rows, "counterparty_risk", "concentration", labelled=labelled, fitted=fitted)
    name = "concentration_counterparty_30d"
    assert weighted[name][-1] > 3 * plain[name][-1]


# 12 correlation


def test_an_account_that_leaves_its_peers_is_decoupled() -> None:
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=118), rng.normal(size=118)
    follows = np.concatenate([common[:90] + 0.3 * own[:90], common[90:] + 0.3 * own[90:]])
    leaves = np.concatenate([follows[:90], own[90:]])
    pad = np.zeros(2)
    x, peer = np.concatenate([follows, pad, leaves, pad]), np.concatenate([common, pad, common, pad])
    wanted = np.zeros(240, bool)
    wanted[[119, 239]] = True
    z, n = peer_decoupling(np.array([0, 120, 240]), x, peer, wanted, np.zeros(2, np.int64), 28, 90, 28)
    assert abs(z[119]) < 2
    assert z[239] > 3
    assert n[119] == 90


def test_peer_score_is_the_difference_of_two_spearman_correlations() -> None:
    rng = np.random.default_rng(1)
    x, peer = rng.normal(size=64), rng.normal(size=64)
    wanted = np.zeros(64, bool)
    wanted[63] = True
    z, n = peer_decoupling(np.array([0, 64]), x, peer, wanted, np.zeros(1, np.int64), 28, 90, 28)

    def flat(values: Any) -> Any:
        return values - np.array([np.median(values[k % 7 :: 7]) for k in range(len(values))])

    def effective(a: Any, b: Any) -> Any:
        def r(v: Any, k: int) -> Any:
            return np.corrcoef(v[k:], v[:-k])[0, 1]

        return min(max(len(a) / (1 + 2 * sum(r(a, k) * r(b, k) for k in range(1, 8))), 4), len(a))

    a, b = flat(x[:62]), flat(peer[:62])  # days through the day before yesterday
    ref, now = slice(0, 34), slice(34, 62)
    rho = [stats.spearmanr(a[s], b[s]).statistic for s in (ref, now)]
    error = math.sqrt(sum(1.06 / (effective(a[s], b[s]) - 3) for s in (ref, now)))
    assert z[63] == pytest.approx((math.atanh(rho[0]) - math.atanh(rho[1])) / error)
    assert n[63] == 34


def test_peers_are_the_others_of_the_segment() -> None:
    rows = transactions(
        *({"hours": 1, "account_id": a, "amount": m} for a, m in zip("abcd", [1, 2, 4, 100], strict=True))
    )
    of = accounts(*({"account_id": a, "segment": "s" if a != "d" else "t"} for a in "abcd"))
    ledger = featurize.ledger_of(rows, of, labels(), stage(), calendar())
    got, number = correlation.peer_medians(opening.series(ledger, None), correlation.peer_groups(ledger))
    a, b, c = np.log1p([1, 2, 4])
    assert got[:3] == pytest.approx([(b + c) / 2, (a + c) / 2, (a + b) / 2])
    assert math.isnan(got[3])
    assert number.tolist() == [2, 2, 2, 0]


# 13 network


def test_degrees_and_reciprocity_by_hand() -> None:
    moves = [("x", "in"), ("y", "in"), ("x", "out"), ("z", "out"), ("z", "out"), ("q", "out")]
    rows = transactions(*({"hours": k, "counterparty_id": c, "direction": d} for k, (c, d) in enumerate(moves)))
    last = features(rows, "network").row(-1, named=True)
    assert (last["network_in_degree_30d"], last["network_out_degree_30d"]) == (2, 3)
    assert (last["network_fan_in_30d"], last["network_fan_out_30d"]) == (2, 2)
    assert last["network_reciprocity_30d"] == 1 / 3
    assert last["network_is_first_time"] == 1
    assert last["network_new_n_24h"] == 4


def test_money_that_passes_through() -> None:
    rows = transactions(
        {"hours": 0, "amount": 100, "direction": "in"},
        {"hours": 6, "amount": 90},
        {"hours": 8, "amount": 5},
        {"hours": 99},
    )
    got = features(rows, "network")
    assert column(got, "network_pass_through_72h") == [None, 0, 0.9, None]
    assert column(got, "network_pass_through_now_72h") == [0, 0.9, 0.95, 0]
    assert column(got, "network_since_incoming_72h") == [None, 6, 8, None]
    assert column(got, "network_dwell_72h") == [None, None, 6, None]


def test_history_of_the_pair_and_of_the_counterparty() -> None:
    rows = transactions({"hours": 0}, {"hours": 24, "account_id": "b"}, {"hours": 48}, {"hours": 60, "amount": 30})
    got = features(rows, "network", "network_counterparty")
    assert column(got, "network_is_first_time") == [1, 1, 0, 0]
    assert column(got, "network_days_since_pair") == [None, None, 2, 0.5]
    assert column(got, "counterparty_days_since_seen") == [None, 1, 1, 0.5]
    assert column(got, "counterparty_accounts_30d") == [0, 1, 2, 2]
    assert column(got, "counterparty_n_24h") == [0, 1, 1, 1]
    assert column(got, "counterparty_amount_to_mean_30d")[3] == 3


def test_first_payments_to_new_counterparties_add_up() -> None:
    parties = ["x", "x", "y", None, "z"]
    rows = transactions(*({"hours": 10.0 * k, "counterparty_id": c, "amount": 2**k} for k, c in enumerate(parties)))
    got = features(rows, "network")
    assert column(got, "network_new_n_24h") == [1, 1, 2, 1, 2]
    assert column(got, "network_new_amount_24h") == [1, 1, 5, 4, 20]
    assert column(got, "network_pair_n_24h") == [0, 1, 0, None, 0]
    assert column(got, "network_pair_amount_30d")[1] == pytest.approx((math.log(2) + math.log(3)) / 2, abs=1e-6)


def test_a_circle_is_seen_when_it_closes() -> None:
    steps = [("a", "b", 100), ("b", "c", 95), ("c", "a", 90)]
    rows = transactions(
        *({"hours": k, "account_id": a, "counterparty_id": b, "amount": m} for k, (a, b, m) in enumerate(steps)),
        *(
            {"hours": k + 0.1, "account_id": b, "counterparty_id": a, "amount": m, "direction": "in"}
            for k, (a, b, m) in enumerate(steps)
        ),
    )
    got = features(rows, "network_graph", of=accounts(*({"account_id": a} for a in "abc")))
    # Each side of the last payment closes the one circle.
    assert column(got, "network_cycle_n_30d") == [0, 0, 0, 0, 1, 1]
    assert column(got, "network_cycle_longest_30d")[-1] == 3
    assert column(got, "network_chain_30d") == [1, 1, 2, 2, 3, 3]


def test_a_circle_is_not_seen_before_its_payments_are_known() -> None:
    rows = transactions(
        {"hours": 0, "account_id": "a", "counterparty_id": "b", "late": 5},
        {"hours": 1, "account_id": "b", "counterparty_id": "a"},
        {"hours": 6, "account_id": "b", "counterparty_id": "a"},
    )
    assert column(features(rows, "network_graph"), "network_cycle_n_30d") == [0, 0, 1]


def test_links_to_known_anomalies_begin_when_they_are_known() -> None:
    rows = transactions(
        {"hours": 0, "account_id": "bad", "counterparty_id": "shop"},
        {"hours": 1, "account_id": "a", "counterparty_id": "shop"},
        {"hours": 60, "account_id": "a", "counterparty_id": "shop"},
        {"hours": 61, "account_id": "bad", "counterparty_id": "shop"},
    )
    got = features(rows, "network_graph", labelled=labels((0, True, 30)))
    assert column(got, "network_bad_accounts_30d") == [0, 0, 1, 0]  # oneself does not count
    assert column(got, "network_bad_counterparties_30d") == [0, 0, 1, 1]


# All KPIs


@pytest.fixture(scope="module")
def small() -> World:
    return world()


@pytest.fixture(scope="module")
def made(small: World) -> featurize.Features:
    rows, labelled, of = small
    return featurize.featurize(rows, of, labelled, stage(thresholds={"rules": RULES}), calendar(20))


@pytest.mark.parametrize("name", KPIS)
def test_a_kpi_makes_exactly_the_columns_that_it_declares(name: str, made: featurize.Features) -> None:
    kpi = KPIS[name]
    declared = kpi.columns(kpi.settings_of({"thresholds": {"rules": RULES}}))
    assert len({c.name for c in declared}) == len(declared)
    for declaration in declared:
        assert made.table[declaration.name].dtype == pl.Float64
        assert declaration.formula
        assert declaration.unit
    assert any(made.table[c.name].null_count() < made.table.height for c in declared)


def test_values_fit_into_32_bits_and_are_never_infinite(made: featurize.Features) -> None:
    values = made.table.select(pl.col(pl.Float64))
    assert np.isfinite(values.to_numpy().astype(np.float32)[~np.isnan(values.to_numpy())]).all()
    assert not any(values[c].is_nan().any() for c in values.columns)


def test_rows_keep_their_order_and_identity(small: World, made: featurize.Features) -> None:
    assert made.table.select(featurize.IDENTITY).equals(small[0].select(featurize.IDENTITY))


def test_every_column_is_in_the_dictionary_in_its_order(made: featurize.Features) -> None:
    assert [e["name"] for e in made.dictionary] == made.table.columns[len(featurize.IDENTITY) :]
    assert {e["kpi_number"] for e in made.dictionary} == {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13}
    for entry in made.dictionary:
        assert (entry["null_reason"] is None) == (entry["null_share"] == 0)
        assert all(entry[key] for key in ("kpi", "family", "formula", "unit", "inputs", "key", "null_rule", "source"))


def test_parameters_survive_json(small: World, made: featurize.Features) -> None:
    rows, labelled, of = small
    read = json.loads(json.dumps(made.fitted, allow_nan=False))
    again = featurize.featurize(rows, of, labelled, stage(thresholds={"rules": RULES}), calendar(20), fitted=read)
    assert again.table.equals(made.table)


@pytest.mark.parametrize("name", [k for k, kpi in KPIS.items() if kpi.key != "entity"])
def test_work_splits_by_key(name: str, small: World, made: featurize.Features) -> None:
    rows, labelled, of = small
    kpi = KPIS[name]
    key = f"{kpi.key}_id"
    needs = set(kpi.needs_of(kpi.settings_of({})))
    names = [name, *(k for k in KPIS if needs & {c.name for c in KPIS[k].columns(KPIS[k].settings_of({}))})]
    part = rows.filter(pl.col(key).is_in(["a1", "a2", "c1", "c2"]))
    got = featurize.featurize(
        part, of, labelled, stage(*names, thresholds={"rules": RULES}), calendar(20), fitted=made.fitted
    )
    whole = part.select("transaction_id").join(made.table, on="transaction_id", how="left", maintain_order="left")
    for declaration in kpi.columns(kpi.settings_of({"thresholds": {"rules": RULES}})):
        if declaration.name == "frequency_q" or (needs and kpi.key == "account"):
            continue  # a correction over all accounts; a weight that another key made
        assert got.table[declaration.name].equals(whole[declaration.name]), declaration.name


def test_other_units_of_money_change_no_ratio(small: World, made: featurize.Features) -> None:
    rows, labelled, of = small
    doubled = rows.with_columns(pl.col("amount", "amount_base", "balance_after") * 8)
    got = featurize.featurize(doubled, of, labelled, stage(thresholds={"rules": RULES}), calendar(20)).table
    for name in ("concentration_counterparty_30d", "balance_volatility_30d", "balance_drawdown_90d", "amount_rank_90d"):
        left, right = (t[name].fill_null(float("nan")).to_numpy() for t in (got, made.table))
        assert left == pytest.approx(right, rel=1e-6, nan_ok=True), name
    large = made.table["amount_log"] > 3  # ln(1 + x) is ln x for amounts that are not tiny
    for name in ("amount_deviation_z_90d", "amount_to_max_90d", "amount_to_mean_7d"):
        both = pl.DataFrame({"a": made.table[name], "b": got[name]}).filter(large).drop_nulls()
        assert ((both["a"] - both["b"]).abs() < 0.35).all(), name


def test_a_table_with_duplicate_rows_is_refused(small: World) -> None:
    rows = small[0]
    with pytest.raises(ReperformError, match="transactions"):
        schemas.checked(pl.concat([rows, rows.head(1)]).sort("booked_at"), schemas.TRANSACTIONS)


def test_a_single_row_has_no_history_and_no_invented_values() -> None:
    got = features(transactions({"hours": 0})).row(0, named=True)
    assert got["velocity_n_30d"] == 0
    assert got["amount_deviation_z_90d"] is None
    assert got["frequency_dormancy_180d"] is None
    assert got["network_is_first_time"] == 1


def test_no_transactions_give_an_empty_table_and_a_full_dictionary() -> None:
    made = featurize.featurize(
        schemas.empty(schemas.TRANSACTIONS), accounts(), labels(), stage(thresholds={"rules": RULES}), calendar()
    )
    assert made.table.height == made.account_days.height == 0
    assert len(made.dictionary) == made.table.width - len(featurize.IDENTITY)
    assert {e["null_reason"] for e in made.dictionary} == {"there are no transactions"}


def test_an_account_day_holds_what_happened_on_it() -> None:
    rows = transactions(
        {"hours": 1, "amount": 5, "balance_after": 50.0},
        {"hours": 2, "amount": 7, "direction": "in", "balance_after": 57.0},
        {"hours": 60, "amount": 1, "balance_after": None},
    )  # fmt: skip
    made = featurize.featurize(rows, accounts(), labels(), stage("velocity"), calendar())
    assert made.account_days.rows() == [
        ("a", date(2025, 3, 3), 2, 1, 1, 7.0, 5.0, 57.0),
        ("a", date(2025, 3, 4), 0, 0, 0, 0.0, 0.0, 57.0),
        ("a", date(2025, 3, 5), 1, 0, 1, 0.0, 1.0, 57.0),
    ]


def test_an_unknown_kpi_is_answered_with_its_neighbours() -> None:
    with pytest.raises(ReperformError, match="velocity"):
        featurize.selected(["velocitee"])


def test_an_unknown_setting_is_answered_with_what_exists() -> None:
    with pytest.raises(ReperformError, match="least_age_hours"):
        KPIS["velocity"].settings_of({"velocity": {"least_age": 2}})


def test_settings_of_an_unknown_kpi_are_answered_with_its_neighbours() -> None:
    with pytest.raises(ReperformError, match="did you mean thresholds"):
        features(transactions({"hours": 0}), treshold={"rules": []})


def test_the_stage_writes_all_its_tables(project: Path, small: World) -> None:
    rows, labelled, of = small
    for name, frame in (("transactions", rows), ("labels", labelled), ("accounts", of)):
        tables.write_table(frame, "validate", name)
    for schema in (schemas.FILINGS, schemas.FACTS, schemas.CHECKS, schemas.MESSAGES):
        tables.write_table(schemas.empty(schema), "validate", str(schema.name))
    featurize.run(params.load(params.FeaturizeParams))
    first = {p.name: p.read_bytes() for p in (project / "data/featurize").iterdir()}
    assert {"features.parquet", "account_days.parquet", "dictionary.json", "fitted.json"} <= set(first)
    assert {"filing_kpis.parquet", "filing_checks.parquet", "filing_bridge.parquet"} <= set(first)
    featurize.run(params.load(params.FeaturizeParams))
    assert first == {p.name: p.read_bytes() for p in (project / "data/featurize").iterdir()}
