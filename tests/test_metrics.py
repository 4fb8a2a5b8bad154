"""Every metric by hand on a tiny frame, against scikit-learn where it has it, and what must hold for any ranking."""

import math
from random import Random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from reperform import metrics
from reperform.errors import ReperformError

Y = np.array([1, 0, 1, 0, 0], dtype=bool)
Rows = tuple[Any, Any]
SCORE = np.array([0.9, 0.8, 0.7, 0.3, 0.1])


def ap(y: Any, score: Any) -> float:
    return float(metrics.average_precision(metrics.ranking(y, score).totals)[0])


def auc(y: Any, score: Any) -> float:
    return float(metrics.roc_auc(metrics.ranking(y, score).totals)[0])


def recall_at(y: Any, score: Any, alerts: float) -> float:
    return float(metrics.recall_at_alerts(metrics.ranking(y, score).totals, alerts)[0])


def alerts_for(y: Any, score: Any, recall: float) -> float:
    return float(metrics.alerts_at_recall(metrics.ranking(y, score).totals, recall)[0])


@st.composite
def ranked_rows(draw: Any) -> Rows:
    n = draw(st.integers(2, 60))
    y = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    # few distinct scores: ties are where rankings go wrong
    score = np.array(draw(st.lists(st.integers(0, 8), min_size=n, max_size=n)), dtype=float)
    return y, score


# --- ranking ---------------------------------------------------------------------------------------------------------


def test_average_precision_by_hand() -> None:
    assert ap(Y, SCORE) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_a_perfect_order_has_average_precision_one() -> None:
    assert ap([0, 1, 1], [0.1, 0.8, 0.9]) == 1


def test_one_score_for_all_rows_gives_the_prevalence_and_half_the_area() -> None:
    assert ap(Y, np.ones(5)) == pytest.approx(0.4)
    assert auc(Y, np.ones(5)) == pytest.approx(0.5)


def test_roc_auc_by_hand() -> None:
    # the first anomaly beats 3 of 3 normal rows, the second 2 of 3
    assert auc(Y, SCORE) == pytest.approx(5 / 6)


def test_metrics_of_no_anomalies_are_undefined_not_zero() -> None:
    ranked = metrics.ranking(np.zeros(4), np.arange(4)).totals
    for metric in (metrics.average_precision, metrics.roc_auc, metrics.recall_at_alert_share(0.5)):
        assert math.isnan(metric(ranked)[0])
    assert math.isnan(metrics.alert_share_at_recall(0.5)(ranked)[0])


def test_no_rows_at_all_are_undefined_too() -> None:
    got = metrics.with_interval(metrics.average_precision, metrics.ranking([], []), np.ones((3, 1)), 0.95)
    assert got == metrics.Estimate(None, None, None, 0)


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ReperformError, match="1 of 2 rows"):
        metrics.ranking([0, 1], [0.1, np.nan])


def test_recall_grows_with_alerts() -> None:
    assert [recall_at(Y, SCORE, k) for k in (0, 1, 2, 3, 5)] == [0, 0.5, 0.5, 1, 1]


def test_recall_within_equal_scores_is_the_expected_share() -> None:
    # two alerts among four equal rows find half of the anomalies on average
    assert recall_at([1, 1, 0, 0], np.ones(4), 2) == pytest.approx(0.5)


def test_alerts_needed_for_a_recall() -> None:
    assert alerts_for(Y, SCORE, 0.5) == 1
    assert alerts_for(Y, SCORE, 0.6) == 3
    assert alerts_for(Y, SCORE, 1.0) == 3
    assert alerts_for(Y, SCORE, 0.0) == 0


def test_alerts_needed_within_equal_scores_are_the_mean_over_orders() -> None:
    # one anomaly among three equal rows is drawn first, second or third: 2 draws on average
    assert alerts_for([1, 0, 0], np.ones(3), 1.0) == pytest.approx(2)


def test_recall_at_false_positive_rate_by_hand() -> None:
    def metric(rate: float) -> float:
        return float(metrics.recall_at_false_positive_rate(rate)(metrics.ranking(Y, SCORE).totals)[0])

    assert metric(0.0) == 0.5
    assert metric(1 / 3) == 1.0


@given(ranked_rows())
@settings(max_examples=50, deadline=None)
def test_ranking_metrics_agree_with_scikit_learn(rows: Rows) -> None:
    y, score = rows
    if y.all() or not y.any():
        return
    assert ap(y, score) == pytest.approx(average_precision_score(y, score))
    assert auc(y, score) == pytest.approx(roc_auc_score(y, score))


@given(ranked_rows(), st.randoms(use_true_random=False), st.floats(-100, 100))
@settings(max_examples=50, deadline=None)
def test_neither_row_order_nor_a_constant_changes_a_ranking(rows: Rows, random: Random, constant: float) -> None:
    y, score = rows
    order = np.array(random.sample(range(y.size), y.size))
    for metric in (ap, auc, lambda a, b: recall_at(a, b, 3), lambda a, b: alerts_for(a, b, 0.5)):
        assert metric(y[order], score[order]) == pytest.approx(metric(y, score), nan_ok=True)
        assert metric(y, score + round(constant)) == pytest.approx(metric(y, score), nan_ok=True)


@given(ranked_rows())
@settings(max_examples=50, deadline=None)
def test_shares_stay_between_zero_and_one(rows: Rows) -> None:
    y, score = rows
    for value in (ap(y, score), auc(y, score), recall_at(y, score, 2.5)):
        assert math.isnan(value) or 0 <= value <= 1 + 1e-12
    assert math.isnan(alerts_for(y, score, 0.9)) or 0 < alerts_for(y, score, 0.9) <= y.size


# --- bootstrap -------------------------------------------------------------------------------------------------------


def test_a_bootstrap_round_equals_repeating_its_blocks() -> None:
    rng = np.random.default_rng(3)
    y, score, block = rng.random(300) < 0.1, rng.integers(0, 20, 300), rng.integers(0, 6, 300)
    weights = metrics.bootstrap_weights(6, 5, seed=1)
    ranked = metrics.ranking(y, score, block)
    for metric in (metrics.average_precision, metrics.roc_auc, metrics.recall_at_alert_share(0.1)):
        got = metrics.bootstrapped(metric, ranked, weights)
        for round_number, times in enumerate(weights.astype(int)):
            rows = np.repeat(np.arange(300), times[block])
            expected = metric(metrics.ranking(y[rows], score[rows]).totals)[0]
            assert got[round_number] == pytest.approx(expected)


def test_bootstrap_interval_covers_the_true_area() -> None:
    # anomalies at N(1, 1), normal rows at N(0, 1): the true area is Phi(1 / sqrt 2)
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(11)
    covered = 0
    for repeat in range(100):
        y = rng.random(2000) < 0.1
        ranked = metrics.ranking(y, rng.normal(y.astype(float)), rng.integers(0, 40, 2000))
        got = metrics.with_interval(metrics.roc_auc, ranked, metrics.bootstrap_weights(40, 200, repeat), 0.9)
        covered += got.low <= truth <= got.high
    assert 80 <= covered <= 98


def test_the_same_weights_pair_two_detectors() -> None:
    rng = np.random.default_rng(5)
    y, block = rng.random(1000) < 0.1, rng.integers(0, 10, 1000)
    score = rng.normal(y.astype(float))
    weights = metrics.bootstrap_weights(10, 50, seed=2)
    one = metrics.bootstrapped(metrics.average_precision, metrics.ranking(y, score, block), weights)
    same = metrics.bootstrapped(metrics.average_precision, metrics.ranking(y, score * 2, block), weights)
    assert np.ptp(one) > 0
    assert np.array_equal(one, same)


def test_a_ratio_has_an_interval_around_it() -> None:
    weights = metrics.bootstrap_weights(4, 200, seed=0)
    got = metrics.ratio_with_interval([1, 2, 3, 4], [10, 10, 10, 10], weights, 0.95, 40)
    assert got.estimate == pytest.approx(0.25)
    assert got.low < 0.25 < got.high


# --- per day ---------------------------------------------------------------------------------------------------------


def test_daily_precision_and_what_was_attainable() -> None:
    y = [1, 0, 0, 1, 1, 0]
    score = [0.9, 0.5, 0.1, 0.2, 0.9, 0.5]
    day = [0, 0, 0, 1, 1, 1]
    got, attainable = metrics.daily_precision_at(y, score, day, k=2)
    assert got.tolist() == [0.5, 0.5]
    assert attainable.tolist() == [0.5, 1.0]


def test_daily_precision_within_equal_scores_is_the_expected_one() -> None:
    got, _ = metrics.daily_precision_at([1, 0, 0, 0], np.ones(4), [0, 0, 0, 0], k=2)
    assert got.tolist() == [0.25]


def test_card_precision_counts_an_account_once_and_leaves_found_ones_out() -> None:
    #          day 0: A is found; B, compromised too, comes third and is missed
    #          day 1: A scores highest again but is left out, so B is found beside D
    account = np.array([0, 0, 1, 2, 0, 1, 3])
    day = np.array([0, 0, 0, 0, 1, 1, 1])
    score = np.array([0.9, 0.8, 0.2, 0.5, 0.9, 0.6, 0.4])
    y = np.array([0, 1, 1, 0, 1, 1, 0])
    assert metrics.daily_card_precision_at(y, score, account, day, k=2).tolist() == [0.5, 0.5]
    assert metrics.daily_card_precision_at(y, score, account, day, k=1).tolist() == [1.0, 1.0]


def handbook_card_precision(y: Any, score: Any, account: Any, day: Any, k: int) -> list[float]:
    """The handbook's own procedure, in plain Python: the oracle for the fast one."""
    found, per_day = set(), []
    for one in range(day.max() + 1):
        best: dict[int, list[float]] = {}
        for i in np.flatnonzero(day == one):
            if account[i] not in found:
                top, hit = best.get(account[i], [-np.inf, 0])
                best[account[i]] = [max(top, score[i]), max(hit, y[i])]
        order = sorted(best, key=lambda a: (-best[a][0], a))[:k]
        hits = [a for a in order if best[a][1]]
        per_day.append(len(hits) / k)
        found |= set(hits)
    return per_day


def test_card_precision_equals_the_handbooks_procedure() -> None:
    rng = np.random.default_rng(8)
    y, account, day = rng.random(800) < 0.15, rng.integers(0, 60, 800), rng.integers(0, 5, 800)
    score = rng.integers(0, 30, 800) + 5.0 * y
    got = metrics.daily_card_precision_at(y, score, account, day, k=10)
    assert got.tolist() == pytest.approx(handbook_card_precision(y, score, account, day, 10))


def test_top_rows_are_exactly_so_many_and_contain_the_highest() -> None:
    score = np.array([1.0, 3.0, 2.0, 2.0, 2.0])
    chosen = metrics.top_rows(score, 3, seed=0)
    assert chosen.sum() == 3
    assert chosen[1]
    assert not chosen[0]


# --- cost ------------------------------------------------------------------------------------------------------------


def test_cost_of_a_decision_by_hand() -> None:
    y, amount = [1, 1, 0], [100.0, 40.0, 7.0]
    assert metrics.review_costs(y, [1, 0, 1], amount, 5) == 40 + 2 * 5
    # doing nothing loses 140, reviewing all three costs 15
    assert metrics.savings(15, y, amount, 5) == 0
    assert metrics.savings(0, y, amount, 5) == 1


def test_least_cost_stops_where_reviews_no_longer_pay() -> None:
    cost, alerts = metrics.least_cost([1, 0, 1, 0], [4, 3, 2, 1], [100, 1, 10, 1], review_cost=8)
    # one alert: 10 missed + 8; three alerts: 24
    assert (cost, alerts) == (18, 1)
    assert metrics.least_cost([1, 0], [1, 0], [3, 3], review_cost=8) == (3, 0)


@given(ranked_rows(), st.floats(0.5, 50))
@settings(max_examples=30, deadline=None)
def test_least_cost_is_never_above_doing_nothing_or_reviewing_all(rows: Rows, review_cost: float) -> None:
    y, score = rows
    amount = np.arange(1, y.size + 1, dtype=float)
    cost, _ = metrics.least_cost(y, score, amount, review_cost)
    assert cost <= min(amount[y].sum(), review_cost * y.size) + 1e-6


# --- calibration -----------------------------------------------------------------------------------------------------


def calibrated(n: int = 20_000, seed: int = 1) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 8, n)
    return rng.random(n) < p, p, rng.integers(0, 30, n)


def test_brier_and_log_loss_agree_with_scikit_learn() -> None:
    y, p, _ = calibrated(500)
    assert metrics.brier(y, p).mean() == pytest.approx(brier_score_loss(y, p))
    assert metrics.log_loss(y, p).mean() == pytest.approx(sklearn_log_loss(y, p))


def test_a_certain_and_wrong_probability_costs_much_but_not_infinity() -> None:
    assert 20 < metrics.log_loss([1], [0.0])[0] < 30


def test_calibration_error_by_hand() -> None:
    y, p = [0, 0, 1, 1], [0.1, 0.1, 0.8, 0.8]
    got = metrics.calibration_error(y, p, np.zeros(4, dtype=int), np.empty((0, 1)), level=0.95, bins=2)
    assert got.estimate == pytest.approx((0.1 + 0.2) / 2)


def test_reliability_agrees_with_scikit_learn() -> None:
    y, p, _ = calibrated(5000)
    got = metrics.reliability(y, p, bins=10)
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    assert [r["observed"] for r in got] == pytest.approx(observed, abs=5e-3)
    assert [r["predicted"] for r in got] == pytest.approx(predicted, abs=5e-3)
    assert sum(r["n"] for r in got) == 5000


def test_equal_probabilities_share_a_bin() -> None:
    number = metrics.equal_mass_bins([0.0] * 90 + [0.5] * 10, 15)
    assert set(number[:90].tolist()) == {0}
    assert set(number[90:].tolist()) == {1}


def test_calibration_line_of_true_probabilities_is_the_diagonal() -> None:
    y, p, block = calibrated()
    slope, intercept = metrics.calibration_line(y, p, block, 0.99)
    assert slope.low < 1 < slope.high
    assert intercept.low < 0 < intercept.high


def test_calibration_line_agrees_with_scikit_learn_on_overconfident_probabilities() -> None:
    y, p, block = calibrated()
    logit = 2 * np.log(p / (1 - p))
    slope, intercept = metrics.calibration_line(y, 1 / (1 + np.exp(-logit)), block, 0.95)
    reference = LogisticRegression(C=np.inf, tol=1e-8).fit(logit[:, None], y)
    assert slope.estimate == pytest.approx(reference.coef_[0, 0], abs=1e-3)
    assert intercept.estimate == pytest.approx(reference.intercept_[0], abs=1e-3)
    assert slope.high < 1


def test_calibration_line_of_one_outcome_is_undefined() -> None:
    slope, _ = metrics.calibration_line([0, 0], [0.1, 0.2], [0, 0], 0.95)
    assert slope.estimate is None


def test_wilson_interval_of_a_known_case() -> None:
    # Newcombe (1998), table I: 15 of 148
    low, high = metrics.wilson(15, 148)
    assert (low, high) == pytest.approx((0.0624, 0.1605), abs=1e-4)


# --- drift -----------------------------------------------------------------------------------------------------------


def test_stability_index_of_equal_samples_is_zero() -> None:
    assert metrics.psi(np.array([10.0, 20, 70]), np.array([1.0, 2, 7])) == pytest.approx(0)


def test_stability_index_by_hand() -> None:
    expected = (0.6 - 0.5) * math.log(0.6 / 0.5) + (0.4 - 0.5) * math.log(0.4 / 0.5)
    assert metrics.psi(np.array([5.0, 5]), np.array([6.0, 4])) == pytest.approx(expected)


def test_an_empty_bin_does_not_make_the_index_infinite() -> None:
    assert 0 < metrics.psi(np.array([10.0, 0]), np.array([0.0, 10])) < 20


def test_null_mean_is_what_unchanged_samples_show() -> None:
    rng = np.random.default_rng(4)
    shares = np.full(10, 0.1)
    drawn = [metrics.psi(rng.multinomial(2000, shares), rng.multinomial(500, shares)) for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(metrics.psi_null(10, 2000, 500), rel=0.1)


# --- forecasts -------------------------------------------------------------------------------------------------------


def test_scaled_errors_by_hand() -> None:
    train = np.array([1.0, 3, 2, 5])  # steps of one season of length 2: 1 and 2
    actual, predicted = np.array([4.0, 6]), np.array([5.0, 3])
    assert metrics.mase(actual, predicted, train, 2) == pytest.approx(2 / 1.5)
    assert metrics.rmsse(actual, predicted, train, 2) == pytest.approx(math.sqrt(5 / 2.5))


def test_scaled_error_of_a_series_without_change_is_undefined() -> None:
    assert math.isnan(metrics.mase(np.ones(2), np.ones(2), np.ones(10), 7))


def test_crps_of_a_point_forecast_is_its_absolute_error() -> None:
    levels = np.arange(1, 20) / 20
    assert metrics.crps(np.array([3.0]), np.full((1, 19), 5.0), levels)[0] == pytest.approx(2)


def test_crps_of_a_normal_forecast_is_near_its_closed_form() -> None:
    levels = np.arange(1, 100) / 100
    quantiles = np.array([[NormalDist().inv_cdf(p) for p in levels]])
    expected = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)  # at the mean
    assert metrics.crps(np.array([0.0]), quantiles, levels)[0] == pytest.approx(expected, abs=5e-3)


def test_interval_score_adds_forty_times_the_miss_at_95_percent() -> None:
    got = metrics.interval_score(np.array([5.0, 12]), np.array([0.0, 0]), np.array([10.0, 10]), 0.95)
    assert got.tolist() == pytest.approx([10, 10 + 40 * 2])


# --- other prevalences, quantiles, corrected probabilities -----------------------------------------------------------


def test_at_its_own_prevalence_average_precision_is_itself() -> None:
    rng = np.random.default_rng(3)
    y, score = rng.random(500) < 0.1, rng.normal(size=500)
    ranked = metrics.ranking(y, score).totals
    share = float(metrics.prevalence(ranked)[0])
    restated = metrics.average_precision_at_prevalence(share)(ranked)
    assert restated == pytest.approx(metrics.average_precision(ranked))


def test_average_precision_at_a_prevalence_is_that_of_repeated_normal_rows() -> None:
    rng = np.random.default_rng(4)
    y, score = rng.random(200) < 0.2, rng.normal(size=200)
    times = np.where(y, 1, 9)
    longer = metrics.ranking(np.repeat(y, times), np.repeat(score, times)).totals
    share = float(metrics.prevalence(longer)[0])
    restated = metrics.average_precision_at_prevalence(share)(metrics.ranking(y, score).totals)
    assert restated == pytest.approx(metrics.average_precision(longer))


def test_precision_at_a_prevalence_by_hand() -> None:
    # of 10,000 rows 10 are anomalies: 8 of them and 1 % of 9,990 are flagged
    assert metrics.precision_at_prevalence(0.8, 0.01, 0.001) == pytest.approx(8 / (8 + 99.9))


def test_a_quantile_is_numpys_and_so_is_each_round() -> None:
    rng = np.random.default_rng(5)
    values, block = rng.exponential(size=40), np.arange(40) % 7
    weights = metrics.bootstrap_weights(7, 60, seed=1)
    got = metrics.quantile_with_interval(values, block, 0.9, weights, 0.9)
    rounds = [np.quantile(np.repeat(values, weights[r, block].astype(int)), 0.9) for r in range(60)]
    assert got.estimate == pytest.approx(np.quantile(values, 0.9))
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(rounds, [0.05, 0.95])))


def test_a_quantile_of_nothing_is_unknown() -> None:
    assert metrics.quantile_with_interval([], [], 0.5, np.ones((5, 1)), 0.9).estimate is None


def test_probabilities_after_undersampling_come_back_to_the_truth() -> None:
    # 100 anomalies and 9,900 normal rows; a tenth of the normal ones is kept: 100 / 1,090 is seen, 1 % is true
    assert metrics.prior_corrected([100 / 1090], 0.1) == pytest.approx([0.01])
    assert metrics.prior_corrected([0.0, 0.3, 1.0], 1.0) == pytest.approx([0.0, 0.3, 1.0])
    assert metrics.prior_corrected([0.0, 1.0], 0.2) == pytest.approx([0.0, 1.0])
