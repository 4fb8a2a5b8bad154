"""The KPIs by their definitions: bounds, nulls, chance, versions, and that each keeps to its key."""

import itertools
import math
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reperform import certify, featurize
from reperform.featurize import benford, bunching, geography, opening, rhythm, shares, synchrony, timing
from reperform.featurize.kpis import KPIS
from reperform.featurize.ledger import Ledger
from tests.featurize_tables import RULES, accounts, at, calendar, column, features, labels, stage, transactions, world

ROUNDS = settings(max_examples=40, deadline=None)
ALL: dict[str, dict[str, Any]] = {
    "thresholds": {"rules": RULES},
    "benford": {"least_n": 5},
    "concentration": {"least_n": 4},
    "correlation": {"days": 14, "reference_days": 30, "least_reference_days": 14, "refresh_days": 1},
    "synchrony": {"minutes": 480},
}


# 1 velocity


def test_the_current_row_counts_only_where_it_is_asked_for() -> None:
    rows = transactions({"hours": 0, "amount": 4, "counterparty_id": "x"}, {"hours": 1, "counterparty_id": "y"})
    of = accounts({"account_id": "a", "opened_at": datetime(2020, 1, 1, tzinfo=UTC)})
    plain = features(rows, "velocity", of=of)
    with_own = features(rows, "velocity", of=of, velocity={"include_current": True})
    assert column(plain, "velocity_n_24h") == [0, 1]
    assert column(with_own, "velocity_n_24h") == [1, 2]
    assert column(with_own, "velocity_amount_1h") == [4, 14]
    assert [v * 24 for v in column(with_own, "velocity_counterparties_24h")] == [1, 2]


# 2 first digits


@pytest.mark.parametrize(
    ("amount", "digit"),
    [(0.01, 1), (0.09, 9), (1.0, 1), (9.99, 9), (10.0, 1), (123456.78, 1), (999999.99, 9), (0.2, 2)],
)
def test_first_digits(amount: float, digit: int) -> None:
    assert benford.first_digits(np.array([amount])).tolist() == [digit]


def test_an_amount_that_is_rounded_to_nothing_has_no_first_digit() -> None:
    assert benford.first_digits(np.array([0.001])).tolist() == [0]


@ROUNDS
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=20), st.integers(0, 4))
def test_first_digits_do_not_change_with_powers_of_ten(cents: list[int], power: int) -> None:
    amounts = np.array(cents) / 100
    expected = [int(str(c)[0]) for c in cents]
    assert benford.first_digits(amounts).tolist() == expected
    assert benford.first_digits(amounts * 10**power).tolist() == expected


def test_deviation_from_benfords_law_by_hand() -> None:
    rows = transactions(*({"hours": k, "amount": a} for k, a in enumerate([1.5, 19, 200, 9, 5])))
    got = features(rows, "benford", benford={"least_n": 4})
    expected = np.log10(1 + 1 / np.arange(1, 10))
    observed = np.array([2, 1, 0, 0, 0, 0, 0, 0, 1]) / 4
    assert column(got, "benford_mad_180d") == [None] * 4 + [pytest.approx(np.abs(observed - expected).mean())]
    assert column(got, "benford_band_180d") == [None] * 4 + [3]
    assert column(got, "benford_n_180d") == [0, 1, 2, 3, 4]


def test_three_hundred_amounts_that_follow_the_law_conform() -> None:
    digits = np.repeat(np.arange(1, 10), np.rint(300 * benford.EXPECTED).astype(int))
    rows = transactions(*({"hours": k / 10, "amount": float(d)} for k, d in enumerate(digits)), {"hours": 100})
    got = features(rows, "benford", benford={"least_n": len(digits)})
    assert column(got, "benford_band_180d")[-2:] == [None, 0]
    assert column(features(rows, "benford"), "benford_n_180d")[-1] == len(digits)


def test_another_base_currency_changes_no_first_digit() -> None:
    rows = transactions(*({"hours": k, "amount": 7.0 * (k + 1)} for k in range(9)))
    converted = rows.with_columns(pl.col("amount_base") * 1.0837)
    left, right = (features(r, "benford", benford={"least_n": 5}) for r in (rows, converted))
    assert left.equals(right)


# 3 calendars


def test_a_holiday_counts_from_the_day_on_which_it_was_published() -> None:
    first = timing.Calendar(name="x", published=date(2025, 1, 1), citation="t", yearly=["03-04", "03-05"])
    second = timing.Calendar(name="x", published=date(2025, 3, 5), citation="t", dates=[date(2025, 3, 6)])
    assert [c.published for c in timing.in_force([second, first], date(2025, 3, 4))] == [date(2025, 1, 1)]
    rows = transactions(*({"hours": 24 * d + 12} for d in range(4)))
    calendars = [
        {"name": c.name, "published": c.published, "citation": "t", "yearly": c.yearly, "dates": c.dates}
        for c in (second, first)
    ]
    got = features(rows, "time_pattern", time_pattern={"calendars": calendars})
    # Monday the 3rd: none. Tuesday: yearly. Wednesday: the new version no longer has it. Thursday: the new version's.
    assert column(got, "time_is_holiday") == [0, 1, 0, 1]


def test_a_calendar_holds_for_its_countries_and_says_nothing_of_others() -> None:
    calendars = [
        {"name": "us", "published": date(2025, 1, 1), "citation": "t", "countries": ["US"], "yearly": ["03-03"]}
    ]
    rows = transactions(
        {"hours": 1, "account_id": "a"}, {"hours": 2, "account_id": "b"}, {"hours": 3, "account_id": "c"}
    )
    of = accounts({"account_id": "a", "home_country": "US"}, {"account_id": "b", "home_country": "DE"})
    got = features(rows, "time_pattern", of=of, time_pattern={"calendars": calendars})
    assert column(got, "time_is_holiday") == [1, None, None]


def test_a_day_may_be_taken_back() -> None:
    calendar_ = timing.Calendar(
        name="x", published=date(2025, 1, 1), citation="t", easter=[1], dropped=[date(2025, 4, 21)]
    )
    assert not calendar_.holds(date(2025, 4, 21))
    assert calendar_.holds(date(2026, 4, 6))


# 4 frequency


def test_silence_counts_from_the_opening_once_the_beginning_of_the_data_is_known() -> None:
    rows = transactions({"hours": 24 * 5 + 1}, {"hours": 24 * 6 + 1})
    of = accounts({"account_id": "a", "opened_at": datetime(2020, 1, 1, tzinfo=UTC)})
    learned = {"prior": {}, "all": [2.0, 4.0]}
    begin = (at(0).date() - date(1970, 1, 1)).days
    got = features(rows, "frequency", of=of, fitted={"frequency": learned | {"begin": begin}})
    assert column(got, "frequency_days_n") == [4, 5]  # the last complete day is predicted from those before it
    assert column(got, "frequency_n") == [0, 1]
    unknown = features(rows, "frequency", of=of, fitted={"frequency": learned})
    assert column(unknown, "frequency_days_n") == [None, 0]


def test_the_correction_goes_over_the_accounts_of_one_entity() -> None:
    rows = [
        {"hours": 24 * d + k / 10, "account_id": a, "entity_id": e}
        for a, e, n in (("a", "e", 9), ("b", "e", 1), ("c", "f", 1)) for d in (0, 1) for k in range(n if d else 1)
    ]  # fmt: skip
    last = [{"hours": 50, "account_id": a, "entity_id": e} for a, e in (("a", "e"), ("b", "e"), ("c", "f"))]
    fitted = {"frequency": {"prior": {}, "all": [2.0, 4.0]}, "frequency_rate": {"prior": {}, "all": [2.0, 4.0]}}
    of = accounts(*({"account_id": a, "entity_id": e} for a, e in (("a", "e"), ("b", "e"), ("c", "f"))))
    got = features(transactions(*rows, *last), "frequency", "frequency_rate", of=of, fitted=fitted).tail(3)
    p = [10 ** -abs(v) for v in column(got, "frequency_surprise") if v is not None]
    assert p[0] < 0.01
    expected = [*stats.false_discovery_control(p[:2]), p[2]]
    assert column(got, "frequency_q") == [pytest.approx(q) for q in expected]
    assert column(got, "frequency_q_n") == [2, 2, 1]


# 5 balance


def test_the_floor_is_learned_for_each_currency() -> None:
    rows = transactions(
        *({"hours": 24 * d, "account_id": a, "currency": c, "balance_after": b}
          for d in range(3) for a, c, b in (("a", "EUR", 10.0), ("b", "JPY", 1600.0), ("c", "EUR", 0.0)))
    )  # fmt: skip
    learned = featurize.featurize(rows, accounts(), labels(), stage("balance"), calendar(10)).fitted["balance"]
    assert learned["floor"] == {"EUR": pytest.approx(0.5), "JPY": 1600.0}  # fifth percentile of 0 and 10


def test_accounts_that_are_always_empty_leave_volatility_known() -> None:
    rows = transactions(*({"hours": 24 * d, "balance_after": 0.0} for d in range(40)))
    got = features(rows, "balance", split=calendar(30))
    assert column(got, "balance_volatility_30d")[-1] == 0


def test_without_anything_learned_volatility_is_unknown_and_drawdown_is_not() -> None:
    rows = transactions(*({"hours": 24 * (20 + d), "balance_after": 100.0 - d} for d in range(40)))
    last = features(rows, "balance", split=calendar(2)).row(-1, named=True)
    assert last["balance_volatility_30d"] is None
    assert last["balance_drawdown_90d"] == pytest.approx(38 / 100)
    assert last["balance_n_30d"] == 30


def test_the_last_move_in_exponentially_weighted_deviations() -> None:
    balances = [0.0, 10.0, 30.0, 35.0, 95.0, 0.0]
    rows = transactions(*({"hours": 24 * d + 1, "balance_after": b} for d, b in enumerate(balances)))
    got = column(features(rows, "balance"), "balance_move")[-1]
    variance = 10.0**2
    for change in (20, 5):
        variance = 0.94 * variance + 0.06 * change**2
    assert got == pytest.approx(60 / math.sqrt(variance))


@ROUNDS
@given(st.sampled_from([3.0, 8.0, 1024.0]), st.integers(0, 3))
def test_another_currency_changes_no_ratio(scale: float, seed: int) -> None:
    rows, labelled, of = world(n=150, seed=seed)
    scaled = rows.with_columns(pl.col("balance_after") * scale, pl.col("amount_base") * scale)
    names = ("balance", "concentration", "benford")
    kept = [
        name for name in features(rows.head(1), *names, benford={"least_n": 5}).columns
        if name not in featurize.IDENTITY and "drain" not in name
    ]  # fmt: skip
    left, right = (
        features(r, *names, labelled=labelled, of=of, split=calendar(20), concentration={"least_n": 4},
                 benford={"least_n": 5}).select(kept)
        for r in (rows, scaled)
    )  # fmt: skip
    for name in kept:
        assert left[name].is_null().equals(right[name].is_null()), name
        assert left[name].drop_nulls().to_list() == pytest.approx(right[name].drop_nulls().to_list(), abs=1e-9), name


# 6 geography


def listed(**more: Any) -> list[float | None]:
    entry = {"country": "XX", "effective_from": "2025-03-04", "citation": "test"} | more
    rows = transactions(*({"hours": 24 * d + 12, "country": "XX"} for d in range(5)))
    return column(features(rows, "geography", geography={"high_risk": [entry]}), "geo_is_high_risk")


def test_a_listing_counts_once_it_is_in_force_and_published() -> None:
    assert listed() == [0, 1, 1, 1, 1]
    assert listed(published="2025-03-06") == [0, 0, 0, 1, 1]
    assert listed(published="2025-01-01") == [0, 1, 1, 1, 1]


def test_the_end_of_a_listing_counts_once_it_is_published() -> None:
    assert listed(effective_to="2025-03-04") == [0, 1, 0, 0, 0]
    assert listed(effective_to="2025-03-04", end_published="2025-03-06") == [0, 1, 1, 0, 0]


def test_a_place_says_whose_it_is_and_how_exact() -> None:
    rows = transactions(
        {"hours": 0, "latitude": 52.5, "longitude": 13.405}, {"hours": 1, "latitude": 52.0, "longitude": 13.0},
        {"hours": 2, "latitude": 52.0, "longitude": 13.1, "channel": "online"}, {"hours": 3},
    )  # fmt: skip
    got = features(rows, "geography")
    assert column(got, "geo_source") == [1, 1, 0, None]
    km = geography.KM_PER_DEGREE
    assert column(got, "geo_precision") == [
        pytest.approx(0.0005 * km),
        pytest.approx(km / 2),
        pytest.approx(km / 20),
        None,
    ]


# 8 limits


def limits(rows: pl.DataFrame, *rules: Any, of: Any = None, split: Any = None) -> pl.DataFrame:
    return features(rows, "thresholds", of=of, split=split, thresholds={"rules": list(rules)})


def test_a_business_day_ends_at_the_cut_off() -> None:
    rows = transactions(*({"hours": h, "amount": 400} for h in (16, 18, 41, 42.5)))
    assert column(limits(rows, {**RULES[0], "cut_off_hour": 18}), "limit_ratio") == [0.4, 0.4, 0.8, 0.4]
    assert column(limits(rows, RULES[0]), "limit_ratio") == [0.4, 0.8, 0.4, 0.8]


def test_a_business_day_observes_summer_time() -> None:
    # 30 March 2025 is 23 hours long in Berlin: from 23:00 UTC on the 29th to 22:00 UTC on the 30th.
    begin = 24.0 * 27 - 1
    of = accounts({"account_id": "a", "timezone": "Europe/Berlin"})
    rows = transactions(*({"hours": begin + h, "amount": 300} for h in (-0.5, 0, 22.9, 23)))
    assert column(limits(rows, RULES[0], of=of), "limit_ratio") == [0.3, 0.3, 0.6, 0.3]


def test_a_limit_on_transactions_adds_nothing_up() -> None:
    rows = transactions({"hours": 1, "amount": 600}, {"hours": 2, "amount": 700}, {"hours": 3, "amount": 1000})
    got = limits(rows, {**RULES[0], "window": "transaction"})
    assert column(got, "limit_ratio") == [0.6, 0.7, 1.0]
    assert column(got, "limit_broken_n") == [0, 0, 1]


def test_the_amounts_behind_the_binomial_test_are_counted() -> None:
    rows = transactions(*({"hours": 24.0 * d, "amount": 10} for d in (0, 1, 20)))
    assert column(limits(rows, RULES[0]), "structuring_of_n_10d") == [1, 2, 1]


def amounts_without_a_jump(seed: int, n: int = 20_000) -> Any:
    return np.rint(np.random.default_rng(seed).lognormal(6.5, 1.2, n) * 100).astype(np.int64)


def test_a_smooth_density_has_no_jump_more_often_than_chance() -> None:
    z = [bunching.density_jump(c, 100_000, c >= 100_000)["z"] for c in map(amounts_without_a_jump, range(100))]
    assert abs(np.mean(z)) < 0.4
    assert 0.8 < np.std(z) < 1.2


def test_amounts_moved_below_a_limit_are_a_drop_there() -> None:
    cents = amounts_without_a_jump(1)
    over = np.flatnonzero((cents >= 100_000) & (cents < 110_000))[::2]
    moved = cents.copy()
    moved[over] = (moved[over] * 0.9).astype(np.int64)
    found = bunching.density_jump(moved, 100_000, moved >= 100_000)
    assert found["z"] > 5
    assert found["n_below"] > found["n_above"]
    mirrored = bunching.density_jump((1e10 / cents).astype(np.int64), 100_000, cents < 100_000)
    assert mirrored["drop"] == pytest.approx(-bunching.density_jump(cents, 100_000, cents >= 100_000)["drop"], abs=0.05)


def test_a_jump_does_not_depend_on_the_unit_of_money_and_needs_amounts_on_both_sides() -> None:
    cents = amounts_without_a_jump(2)
    one, other = (bunching.density_jump(cents * k, 100_000 * k, cents >= 100_000) for k in (1, 8))
    assert one == other
    assert bunching.density_jump(cents[cents < 100_000], 100_000, np.zeros((cents < 100_000).sum(), bool))["z"] is None
    assert bunching.density_jump(cents[:0], 100_000, cents[:0] > 0)["z"] is None


def test_bunching_is_learned_before_fit_end_and_shown_on_rows_that_the_limit_holds_for() -> None:
    rng = np.random.default_rng(3)
    amounts = np.round(rng.uniform(850, 1150, 400), 2)
    learned = [{"hours": h / 10, "amount": float(a), "channel": "card"} for h, a in enumerate(amounts)]
    rows = transactions(*learned, {"hours": 600}, {"hours": 601, "channel": "card"})
    rule = {**RULES[0], "channels": ["card"]}
    cents = np.rint(amounts * 100).astype(np.int64)
    expected = bunching.density_jump(cents, 100_000, cents >= 100_000)["z"]
    got = limits(rows.with_columns(channel=pl.lit("card")), rule, split=calendar(20))
    assert column(got, "limit_bunching")[-1] == pytest.approx(expected)
    assert column(limits(rows, {**rule, "channels": ["cash"]}, split=calendar(20)), "limit_bunching")[-1] is None


# 11 concentration


@ROUNDS
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), min_size=4, max_size=6))
def test_shuffled_weights_have_the_moments_of_all_permutations(rows: list[tuple[int, int]]) -> None:
    groups, weights = [g for g, _ in rows], np.array([w for _, w in rows], float)
    weights /= weights.sum()
    values = [
        sum(sum(w for g, w in zip(groups, order, strict=True) if g == k) ** 2 for k in range(3))
        for order in itertools.permutations(weights)
    ]
    m = np.array(list(Counter(groups).values()))
    powers = np.array([(weights**k).sum() for k in (2, 3, 4)])
    mean, variance = shares.null_moments(len(rows), float((m * (m - 1)).sum()), float((m * (m - 1) ** 2).sum()), powers)
    assert mean == pytest.approx(np.mean(values))
    assert variance == pytest.approx(np.var(values), abs=1e-12)


def test_concentration_without_bias_and_against_shuffled_weights_by_hand() -> None:
    amounts = [50.0, 40.0, 5.0, 3.0, 2.0]
    rows = transactions(
        *({"hours": k, "counterparty_id": "xxyyz"[k], "amount": m} for k, m in enumerate(amounts)),
        {"hours": 9},
    )  # fmt: skip
    last = features(rows, "concentration", concentration={"least_n": 5}).row(-1, named=True)
    h, own = 0.9**2 + 0.08**2 + 0.02**2, sum((m / 100) ** 2 for m in amounts)
    assert last["concentration_counterparty_unbiased_30d"] == pytest.approx(h - (1 - h) / (1 / own - 1))
    dealt = [
        (a + b) ** 2 + (c + d) ** 2 + e**2 for a, b, c, d, e in itertools.permutations(np.array(amounts) / 100)
    ]  # fmt: skip
    assert last["concentration_counterparty_z_30d"] == pytest.approx((h - np.mean(dealt)) / np.std(dealt))
    assert last["concentration_country_z_30d"] is None


def test_one_counterparty_gives_nothing_to_shuffle() -> None:
    last = features(transactions(*({"hours": k} for k in range(25))), "concentration").row(-1, named=True)
    assert last["concentration_counterparty_30d"] == 1
    assert last["concentration_counterparty_z_30d"] is None


def test_of_too_many_records_the_latest_count() -> None:
    rows = transactions(*({"hours": k, "counterparty_id": "x" if k < 20 else "y"} for k in range(31)))
    got = features(rows, "concentration", concentration={"least_n": 5, "most_n": 10})
    assert column(got, "concentration_counterparty_n_30d")[-1] == 10
    assert column(got, "concentration_counterparty_effective_30d")[-1] == 1
    assert column(got, "concentration_counterparty_effective_30d")[25] == 2


# 12 correlation


def test_shuffling_finds_a_rhythm_and_none_in_noise() -> None:
    weekly = np.tile(np.arange(7.0), 5)
    assert rhythm.permutation_p(weekly, 7, 199, 10, 5) == 1 / 200
    noise = [rhythm.permutation_p(np.random.default_rng(k).normal(size=35), 7, 199, 10, k) for k in range(300)]
    assert 0.02 < np.mean(np.array(noise) <= 0.05) < 0.09
    assert 0.4 < np.mean(noise) < 0.6


def test_days_that_are_all_alike_are_no_rhythm() -> None:
    assert rhythm.permutation_p(np.ones(35), 7, 199, 10, 5) == 1


def test_random_numbers_depend_on_seed_key_and_day_alone() -> None:
    streams = {rhythm.stream_of(s, k, d) for s in range(5) for k in range(20) for d in range(20)}
    assert len(streams) == 2000
    assert rhythm.stream_of(1, 2, 3) == rhythm.stream_of(1, 2, 3)
    assert (
        opening.stream_keys(pl.Series(["b", "a"])).tolist() == opening.stream_keys(pl.Series(["a", "b"])).tolist()[::-1]
    )


def rhythmic(seed: int = 0, days: int = 80) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return transactions(*(
        {"hours": 24 * d + int(rng.integers(0, 20)), "account_id": a, "amount": float(np.round(rng.lognormal(4, 1), 2))}
        for d in range(days) for a in "abc" if rng.random() < 0.8
    ))  # fmt: skip


def test_the_own_score_is_the_difference_of_the_best_lags() -> None:
    rows = rhythmic()
    got = features(rows, "correlation", correlation={"refresh_days": 1}).filter(pl.col("account_id") == "a")
    ledger = featurize.ledger_of(rows, accounts(), labels(), stage(), calendar())
    of = opening.series(ledger, None)
    row = got.row(-1, named=True)
    begin = (at(0).date() - date(1970, 1, 1)).days
    day = (row["booked_at"].date() - at(0).date()).days
    first = int(of.alive[0]) - begin
    x = of.x[: of.starts[1]][first - int(of.first_day[0] - begin) :][: day - first]
    flat = x - np.array([np.median(x[k % 7 :: 7]) for k in range(len(x))])
    n = len(x) - 28

    def best(start: int, end: int) -> float:
        lags = [(max(start, lag), lag) for lag in range(1, 8)]
        return max(stats.spearmanr(flat[s:end], flat[s - lag : end - lag]).statistic for s, lag in lags)

    def effective(v: Any) -> Any:
        r = [np.corrcoef(v[k:], v[:-k])[0, 1] for k in range(1, 8)]
        return min(max(len(v) / (1 + 2 * sum(c * c for c in r)), 4), len(v))

    error = math.sqrt(sum(1.06 / (effective(flat[a:b]) - 3) for a, b in ((0, n), (n, n + 28))))
    assert row["correlation_self_28d"] == pytest.approx((math.atanh(best(0, n)) - math.atanh(best(n, n + 28))) / error)
    assert row["correlation_reference_n"] == n
    assert 0 < row["correlation_self_p_28d"] <= 1


def test_p_values_are_the_same_for_one_account_alone_and_change_with_the_seed() -> None:
    rows = rhythmic()
    whole = features(rows, "correlation").filter(pl.col("account_id") == "b")
    assert features(rows.filter(pl.col("account_id") == "b"), "correlation").equals(whole)
    other = features(rows, "correlation", correlation={"seed": 13}).filter(pl.col("account_id") == "b")
    assert not other["correlation_self_p_28d"].equals(whole["correlation_self_p_28d"])
    assert other["correlation_self_28d"].equals(whole["correlation_self_28d"])


# 12 synchrony


def test_the_poisson_tail_as_in_scipy() -> None:
    for n, mean in ((1, 0.01), (3, 2.5), (10, 0.2), (40, 60.0)):
        assert synchrony.poisson_tail(n, mean) == pytest.approx(-stats.poisson.logsf(n - 1, mean) / math.log(10))
    assert synchrony.poisson_tail(0, 3.0) == 0
    assert synchrony.poisson_tail(2, 0.0) == synchrony.MOST_DIGITS


def test_what_is_expected_is_the_mean_over_all_ways_to_shuffle_active_days() -> None:
    rng = np.random.default_rng(4)
    day, hour, reach = 86_400_000_000, 3_600_000_000, 3_600_000_000
    own = np.sort(rng.integers(0, 5, 8) * day + rng.integers(4, 20, 8) * hour)[::-1].copy()
    other = np.sort(np.repeat([0, 1, 3, 4], 2) * day + rng.integers(4, 20, 8) * hour)[::-1].copy()
    active = np.unique(other // day)
    counts = []
    for order in itertools.permutations(active):
        moved = {int(a): int(b) for a, b in zip(active, order, strict=True)}
        shuffled = np.array([moved[int(t // day)] * day + t % day for t in other])
        met = {int(t // day) for t in own if (np.abs(shuffled - t) <= reach).any()}
        counts.append(len(met))
    time, parts = np.concatenate([own, other]), np.full(24, -1)
    places = np.arange(8), np.arange(8, 16)
    expected = synchrony.expected_days(*places, time, time // day, time % day // hour, reach, parts)
    assert expected == pytest.approx(np.mean(counts))
    assert (parts == -1).all()


def together(days: int, minutes: float, *, spread: bool) -> pl.DataFrame:
    hours = np.random.default_rng(1).uniform(2, 20, days) if spread else np.full(days, 9.0)
    return transactions(*(
        {"hours": 24 * d + h + shift, "account_id": a}
        for d, h in enumerate(hours) for a, shift in (("a", 0.0), ("b", minutes / 60))
    ))  # fmt: skip


def test_accounts_that_act_together_at_changing_hours_are_synchronous() -> None:
    got = features(together(15, 5, spread=True), "synchrony").filter(pl.col("account_id") == "b")
    assert column(got, "synchrony_n_28d") == list(range(15))
    assert column(got, "synchrony_surprise_28d")[-1] > 10
    assert column(got, "synchrony_partners_n") == [1] * 15


def test_accounts_that_act_at_the_same_hour_every_day_are_not() -> None:
    got = features(together(15, 5, spread=False), "synchrony").filter(pl.col("account_id") == "b")
    assert column(got, "synchrony_n_28d")[-1] == 14
    assert column(got, "synchrony_expected_28d")[-1] == 14
    assert column(got, "synchrony_surprise_28d")[-1] < 0.5


def test_nobody_near_is_unknown_and_nothing_shared_before_is_no_surprise() -> None:
    rows = transactions({"hours": 0}, {"hours": 5, "account_id": "b"}, {"hours": 5.1})
    got = features(rows, "synchrony")
    assert column(got, "synchrony_surprise_28d") == [None, None, 0]
    assert column(got, "synchrony_partners_n") == [0, 0, 1]


def test_a_late_record_is_nobodys_partner_before_it_arrives_nor_is_one_of_the_same_moment() -> None:
    rows = transactions(
        {"hours": 0, "account_id": "b", "late": 1}, {"hours": 0.1}, {"hours": 9}, {"hours": 9, "account_id": "b"}
    )
    assert column(features(rows, "synchrony"), "synchrony_partners_n") == [0, 0, 0, 0]


def test_an_entity_looks_at_its_own_accounts_alone() -> None:
    rows = transactions({"hours": 0, "account_id": "b", "entity_id": "f"}, {"hours": 0.1})
    assert column(features(rows, "synchrony"), "synchrony_partners_n") == [0, 0]


# Every KPI


def two_entities() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    rows, labelled, of = world(n=900, seed=5, days=75)
    entity = pl.when(pl.col("account_id") < "a4").then(pl.lit("e")).otherwise(pl.lit("f")).alias("entity_id")
    return rows.with_columns(entity), labelled, of.with_columns(entity)


@pytest.fixture(scope="module")
def parted() -> tuple[Ledger, dict[str, dict[str, Any]], pl.DataFrame]:
    rows, labelled, of = two_entities()
    params, split = stage(**ALL), calendar(20)
    ledger = featurize.ledger_of(rows, of, labelled, params, split)
    made = featurize.featurize(rows, of, labelled, params, split)
    return ledger, made.fitted, made.table


ENTITY_KPIS = ("frequency_rate", "correlation_peers", "synchrony")
SPLIT_KPIS = [name for name, kpi in KPIS.items() if kpi.key != "entity" or name in ENTITY_KPIS]


@pytest.mark.parametrize("name", SPLIT_KPIS)
def test_rows_of_one_key_alone_give_the_same_bits(
    name: str, parted: tuple[Ledger, dict[str, dict[str, Any]], pl.DataFrame]
) -> None:
    ledger, fitted, table = parted
    kpi = KPIS[name]
    given_settings = kpi.settings_of(ALL)
    buckets = {
        "account": [["a1"], ["a2", "a6"], ["a3"]], "counterparty": [["c1"], ["c2", "a0"]], "entity": [["e"], ["f"]],
    }[kpi.key]  # fmt: skip
    for bucket in buckets:
        held = ledger.transactions[f"{kpi.key}_id"].is_in(bucket).fill_null(value=False)
        part = Ledger(
            ledger.transactions.filter(held), ledger.accounts, ledger.labels, ledger.maturity, ledger.default_timezone
        )
        before = {
            n: table[n].filter(held).fill_null(np.nan).to_numpy() for n in table.columns[len(featurize.IDENTITY) :]
        }
        got = kpi.compute(part, fitted[name], given_settings, before)
        for declared in kpi.columns(given_settings):
            assert np.array_equal(np.asarray(got[declared.name], float), before[declared.name], equal_nan=True), (
                declared.name
            )


def test_most_values_of_the_new_kpis_are_known(parted: tuple[Ledger, dict[str, dict[str, Any]], pl.DataFrame]) -> None:
    table = parted[2].tail(300)
    for name in (
        "correlation_self_14d",
        "correlation_peer_14d",
        "correlation_self_p_14d",
        "frequency_q",
        "synchrony_surprise_28d",
        "benford_mad_180d",
        "concentration_counterparty_z_30d",
    ):
        assert table[name].null_count() < 200, name
    assert (table["synchrony_surprise_28d"] > 0).sum() > 5


def test_none_of_them_looks_ahead() -> None:
    rows, labelled, of = two_entities()
    names = ("benford", "frequency", "frequency_rate", "balance", "geography", "thresholds", "thresholds_counterparty")
    chosen = stage(*names, "concentration", "correlation", "correlation_peers", "synchrony", **ALL)
    got = certify.certify(rows, labelled, of, chosen, calendar(20), cuts=8, seed=2)
    assert [cut.columns for cut in got.cuts] == [()] * 8


COUNTS = ("benford_n_180d", "concentration_counterparty_n_30d", "structuring_of_n_10d", "smurfing_accounts_of_n_7d")


@pytest.mark.parametrize("name", COUNTS)
def test_a_late_record_counts_from_its_arrival_and_rows_of_one_moment_do_not_see_each_other(name: str) -> None:
    rows = transactions({"hours": 0, "late": 3}, {"hours": 2}, {"hours": 2}, {"hours": 3}, {"hours": 4})
    got = column(features(rows, "benford", "concentration", "thresholds", "thresholds_counterparty", **ALL), name)
    own = int(name.startswith(("structuring", "smurfing")))  # these count the row itself
    assert got == [own, own, own, 3 + own, 4 + own]


def test_an_account_that_nobody_knew_before_its_late_first_record_has_no_days() -> None:
    rows = transactions({"hours": 1, "late": 48}, {"hours": 30}, {"hours": 60})
    got = features(rows, "frequency", fitted={"frequency": {"prior": {}, "all": [2.0, 4.0]}})
    # At the start of day 1 nothing is known, at that of day 2 the record of day 1.
    assert column(got, "frequency_n") == [None, None, 1]
    assert column(got, "frequency_days_n") == [None, None, 0]


@pytest.mark.parametrize("name", ["benford", "concentration", "correlation", "correlation_peers", "synchrony"])
def test_one_row_has_counts_of_nothing_and_no_value(name: str) -> None:
    got = features(transactions({"hours": 0}), name).row(0, named=True)
    for declared in KPIS[name].columns(KPIS[name].settings_of({})):
        counts = declared.name.endswith("_n") or "_n_" in declared.name
        if declared.name != "synchrony_n_28d":  # of a partner, and there is none
            assert got[declared.name] == (0 if counts else None), declared.name


@pytest.mark.parametrize("name", [n for n, k in KPIS.items() if k.number in {1, 2, 3, 4, 5, 6, 8, 11, 12}])
def test_every_kpi_says_how_many_records_are_behind_it(name: str) -> None:
    declared = KPIS[name].columns(KPIS[name].settings_of(ALL))
    assert any("_n" in c.name.removesuffix("_") for c in declared)
