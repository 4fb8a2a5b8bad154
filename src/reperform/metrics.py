"""Detection, calibration, cost and forecast metrics as pure functions on arrays, with block-bootstrap intervals.

Rows are scored units (transactions or filings). Scores are higher for the more anomalous; equal scores are treated as
drawn in random order and count by their mean, so no metric depends on the order of rows. A metric that is not defined
(no positives, no rows) is NaN here and null in outputs; it is never 0.

Intervals come from a bootstrap of whole blocks (days), because frauds of one day are alike. A ranking counts rows per
block once; a bootstrap round is then a matrix product with its block weights instead of another sort.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperform.errors import ReperformError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ROUNDS_AT_ONCE = 100
LOG_FLOOR = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval and the number of units that it was computed from."""

    estimate: float | None
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain numbers for JSON."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class Ranking:
    """How rows and positives lie above and at every score that a positive holds, highest first, counted per block.

    Args:
        above: rows with a higher score, shape (levels, blocks).
        level: rows with the same score, shape (levels, blocks).
        hits_above: positives with a higher score, shape (levels, blocks).
        hits: positives with the same score, shape (levels, blocks).
        rows: rows per block, shape (blocks,).
        positives: positives per block, shape (blocks,).
    """

    above: Floats
    level: Floats
    hits_above: Floats
    hits: Floats
    rows: Floats
    positives: Floats

    def weighted(self, weights: Floats) -> "Ranking":
        """Counts when block b is taken weights[r, b] times in round r; blocks become rounds."""
        parts = (self.above, self.level, self.hits_above, self.hits, self.rows, self.positives)
        return Ranking(*(part @ weights.T for part in parts))

    @property
    def totals(self) -> "Ranking":
        """Counts over all blocks together, as one round."""
        return self.weighted(np.ones((1, self.rows.size)))


Metric = Callable[[Ranking], Floats]


def ranking(y: ArrayLike, score: ArrayLike, block: ArrayLike | None = None) -> Ranking:
    """Sort rows by score once and count them per block.

    Args:
        y: 1 or True for an anomaly, shape (n,).
        score: higher is more anomalous, finite, shape (n,).
        block: block number from 0 without gaps, shape (n,); one block if not given.

    Raises:
        ReperformError: when lengths differ or a score is not finite.
    """
    truth, values, blocks = _aligned(y, score, block)
    n_blocks = int(blocks.max()) + 1 if blocks.size else 1
    order = np.argsort(-values, kind="stable")
    level_of_row = np.cumsum(np.diff(-values[order], prepend=-np.inf) > 0) - 1
    truth, blocks = truth[order], blocks[order]
    levels = np.unique(level_of_row[truth])  # only scores that a positive holds change recall
    slot = np.searchsorted(levels, level_of_row)
    inside = np.isin(level_of_row, levels)

    def count(rows: Bools) -> Floats:
        cell = slot[rows] * n_blocks + blocks[rows]
        return np.bincount(cell, minlength=(levels.size + 1) * n_blocks).reshape(-1, n_blocks).astype(np.float64)

    level, between, hits = count(inside)[:-1], count(~inside), count(truth)[:-1]
    above = np.cumsum(between, axis=0)[:-1] + np.cumsum(level, axis=0) - level
    rows = np.bincount(blocks, minlength=n_blocks).astype(np.float64)
    return Ranking(above, level, np.cumsum(hits, axis=0) - hits, hits, rows, hits.sum(axis=0))


def average_precision(ranked: Ranking) -> Floats:
    """Sum over thresholds of (R_n - R_{n-1}) P_n, one value for each block or round.

    The step function of scikit-learn's `average_precision_score`; a trapezoid would be optimistic (Davis & Goadrich,
    2006). A random order gives the prevalence.
    """
    found = ranked.hits_above + ranked.hits
    precision = ratio(found, ranked.above + ranked.level)
    return ratio((ranked.hits * np.nan_to_num(precision)).sum(axis=0), ranked.positives)


def average_precision_lift(ranked: Ranking) -> Floats:
    """Average precision over the prevalence: how many times better than a random order."""
    return ratio(average_precision(ranked), prevalence(ranked))


def average_precision_at_prevalence(share: float) -> Metric:
    """Average precision where anomalies are that share of all rows, and rank against normal rows as they do here.

    Each threshold keeps its recall R and its false positive rate F; its precision becomes R s / (R s + F (1 - s)).

    Source: Siblini et al. (2020), "Master your metrics with calibration".
    """

    def metric(ranked: Ranking) -> Floats:
        found = ranked.hits_above + ranked.hits
        recall = ratio(found, ranked.positives)
        flagged_normal = ratio(ranked.above + ranked.level - found, ranked.rows - ranked.positives)
        precision = precision_at_prevalence(recall, flagged_normal, share)
        return ratio((ranked.hits * np.nan_to_num(precision)).sum(axis=0), ranked.positives)

    return metric


def precision_at_prevalence(recall: Any, false_positive_rate: Any, share: float) -> Floats:
    """Precision of a decision with this recall and false positive rate where anomalies are that share of all rows."""
    hits = np.asarray(recall, dtype=np.float64) * share
    return ratio(hits, hits + np.asarray(false_positive_rate, dtype=np.float64) * (1 - share))


def prevalence(ranked: Ranking) -> Floats:
    """Share of anomalies among all rows."""
    return ratio(ranked.positives, ranked.rows)


def roc_auc(ranked: Ranking) -> Floats:
    """Probability that a random anomaly scores higher than a random normal row; ties count half."""
    false_above = ranked.above - ranked.hits_above
    false_level = ranked.level - ranked.hits
    lost = (ranked.hits * (false_above + 0.5 * false_level)).sum(axis=0)
    negatives = ranked.rows - ranked.positives
    return 1 - ratio(lost, ranked.positives * negatives)


def recall_at_alerts(ranked: Ranking, alerts: Floats | float) -> Floats:
    """Share of anomalies among the `alerts` rows with the highest scores; within equal scores, the expected share."""
    taken = np.clip(ratio(alerts - ranked.above, ranked.level), 0, 1)
    return ratio((ranked.hits * np.nan_to_num(taken)).sum(axis=0), ranked.positives)


def recall_at_alert_share(share: float) -> Metric:
    """Recall when that share of all rows is looked at."""
    return lambda ranked: recall_at_alerts(ranked, share * ranked.rows)


def recall_at_false_positive_rate(rate: float) -> Metric:
    """Recall where that share of normal rows is flagged (BAF reports 5 %; payments need 0.1 %)."""

    def metric(ranked: Ranking) -> Floats:
        allowed = rate * (ranked.rows - ranked.positives)
        false_above, false_level = ranked.above - ranked.hits_above, ranked.level - ranked.hits
        # A level without normal rows costs nothing: it is taken as soon as what lies above it fits.
        share = np.where(false_level > 0, (allowed - false_above) / np.maximum(false_level, 1), allowed >= false_above)
        return ratio((ranked.hits * np.clip(share, 0, 1)).sum(axis=0), ranked.positives)

    return metric


def alerts_at_recall(ranked: Ranking, recall: Floats | float) -> Floats:
    """Fewest top-scored rows that hold that share of anomalies; NaN without anomalies.

    Within a level of M rows with K anomalies, m of them take m (M + 1) / (K + 1) draws on average (the mean of the
    negative hypergeometric distribution).
    """
    wanted = np.ceil(np.broadcast_to(recall, ranked.positives.shape) * ranked.positives - 1e-9)
    if not ranked.hits.shape[0]:
        return np.full(ranked.positives.shape, np.nan)
    found = ranked.hits_above + ranked.hits
    at = (found >= wanted).argmax(axis=0)
    column = np.arange(at.size)
    missing = np.maximum(wanted - ranked.hits_above[at, column], 0)
    drawn = missing * (ranked.level[at, column] + 1) / (ranked.hits[at, column] + 1)
    return np.where(ranked.positives > 0, np.where(wanted > 0, ranked.above[at, column] + drawn, 0), np.nan)


def alert_share_at_recall(recall: float) -> Metric:
    """Share of all rows that must be looked at for that recall."""
    return lambda ranked: ratio(alerts_at_recall(ranked, recall), ranked.rows)


def bootstrap_weights(blocks: int, rounds: int, seed: int) -> Floats:
    """How often each block is drawn in each round, shape (rounds, blocks). Use one for all detectors: it pairs them."""
    draws = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / max(blocks, 1)), size=rounds)
    return np.asarray(draws, dtype=np.float64)


def bootstrapped(metric: Metric, ranked: Ranking, weights: Floats) -> Floats:
    """The metric in every round, shape (rounds,)."""
    parts = [metric(ranked.weighted(part)) for part in _some_at_once(weights)]
    return np.concatenate([*parts, np.empty(0)])


def with_interval(metric: Metric, ranked: Ranking, weights: Floats, level: float) -> Estimate:
    """One metric as `with_intervals` gives it."""
    return with_intervals({"it": metric}, ranked, weights, level)["it"]


def with_intervals(wanted: Mapping[str, Metric], ranked: Ranking, weights: Floats, level: float) -> dict[str, Estimate]:
    """Metrics of a ranking with their percentile intervals over block-bootstrap rounds.

    Args:
        wanted: functions of a ranking, by name.
        ranked: rows counted per block.
        weights: from `bootstrap_weights`.
        level: such as 0.95.
    """
    whole, n = ranked.totals, int(ranked.rows.sum())
    rounds: dict[str, list[Floats]] = {name: [] for name in wanted}
    for part in _some_at_once(weights):
        drawn = ranked.weighted(part)  # shared by all metrics: it is what costs
        for name, metric in wanted.items():
            rounds[name].append(metric(drawn))
    return {
        name: estimate(float(metric(whole)[0]), np.concatenate([*rounds[name], np.empty(0)]), level, n)
        for name, metric in wanted.items()
    }


def _some_at_once(weights: Floats) -> Iterator[Floats]:
    for start in range(0, weights.shape[0], ROUNDS_AT_ONCE):
        yield weights[start : start + ROUNDS_AT_ONCE]


def estimate(value: float, rounds: Floats, level: float, n: int) -> Estimate:
    """A value with the percentile interval of its bootstrap rounds; null where it is not defined."""
    if not math.isfinite(value):
        return Estimate(None, None, None, n)
    usable = rounds[np.isfinite(rounds)]
    if usable.size < 2 or n == 0:  # noqa: PLR2004  # no spread in one round
        return Estimate(value, None, None, n)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def ratio_with_interval(top: ArrayLike, bottom: ArrayLike, weights: Floats, level: float, n: int) -> Estimate:
    """A ratio of sums over blocks, such as precision or a mean per day, with its block-bootstrap interval.

    Args:
        top: sum of the numerator in each block, shape (blocks,).
        bottom: sum of the denominator in each block, shape (blocks,).
        weights: from `bootstrap_weights`; none gives no interval.
        level: such as 0.95.
        n: units behind it.
    """
    over, under = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    value = float(ratio(over.sum(), under.sum()))
    rounds = ratio(weights @ over, weights @ under) if weights.size else np.empty(0)
    return estimate(value, rounds, level, n)


def quantile_with_interval(
    values: ArrayLike, block: ArrayLike, probability: float, weights: Floats, level: float
) -> Estimate:
    """A quantile with its block-bootstrap interval; the linear one of `numpy.quantile`.

    Args:
        values: shape (n,).
        block: of each value, shape (n,).
        probability: between 0 and 1.
        weights: from `bootstrap_weights`.
        level: such as 0.95.
    """
    given, blocks = np.asarray(values, dtype=np.float64), np.asarray(block, dtype=np.int64)
    if not given.size:
        return Estimate(None, None, None, 0)
    order = np.argsort(given, kind="stable")
    ordered, times = given[order], weights[:, blocks[order]]
    until = np.cumsum(times, axis=1)
    place = probability * np.maximum(until[:, -1] - 1, 0)
    low, high = (
        ordered[(until > np.asarray(edge)[:, None]).argmax(axis=1)] for edge in (np.floor(place), np.ceil(place))
    )
    rounds = np.where(until[:, -1] > 0, low + (place - np.floor(place)) * (high - low), np.nan)
    return estimate(float(np.quantile(given, probability)), rounds, level, given.size)


def daily_precision_at(y: ArrayLike, score: ArrayLike, day: ArrayLike, k: int) -> tuple[Floats, Floats]:
    """Precision among each day's k highest scores, and the highest precision that was attainable.

    Args:
        y: 1 or True for an anomaly, shape (n,).
        score: shape (n,).
        day: day number from 0 without gaps, shape (n,).
        k: alerts per day.

    Returns:
        Two arrays of shape (days,). Days with fewer than k anomalies cannot reach 1.
    """
    truth, values, days = _aligned(y, score, day)
    if not truth.size:
        return np.empty(0), np.empty(0)
    order = np.lexsort((-values, days))
    truth, values, days = truth[order], values[order], days[order]
    new_level = (np.diff(values, prepend=np.nan) != 0) | (np.diff(days, prepend=-1) != 0)
    level = np.cumsum(new_level) - 1
    size, hits = np.bincount(level), np.bincount(level, weights=truth)
    day_of_level, start = days[new_level], np.flatnonzero(new_level)
    above = start - np.searchsorted(days, day_of_level)
    found = hits * np.clip((k - above) / size, 0, 1)
    attainable = np.minimum(np.bincount(days, weights=truth), k) / k
    return np.bincount(day_of_level, weights=found) / k, attainable


def daily_card_precision_at(y: ArrayLike, score: ArrayLike, account: ArrayLike, day: ArrayLike, k: int) -> Floats:
    """Card precision at k of the Fraud Detection Handbook (Le Borgne et al., 2022, chapter 4), per day.

    Each day every account counts once, with its highest score; it is compromised if any of its transactions of that
    day is an anomaly. Among the k accounts with the highest scores the share of compromised ones is the day's
    precision. Accounts that were found are left out on later days.

    Args:
        y: 1 or True for an anomaly, shape (n,).
        score: shape (n,).
        account: account number, shape (n,); of equal scores the lower number comes first.
        day: day number from 0 without gaps, shape (n,).
        k: accounts looked at per day.

    Returns:
        Shape (days,). Mean it over days. Its ceiling lies below 1 where fewer than k accounts are compromised.
    """
    truth, values, days = _aligned(y, score, day)
    accounts = np.asarray(account, dtype=np.int64)
    found: set[int] = set()
    result = np.zeros(int(days.max()) + 1 if days.size else 0)
    order = np.lexsort((-values, accounts, days))
    truth, values, days, accounts = truth[order], values[order], days[order], accounts[order]
    first = np.flatnonzero((np.diff(accounts, prepend=-1) != 0) | (np.diff(days, prepend=-1) != 0))
    compromised = np.add.reduceat(truth, first) > 0 if first.size else np.empty(0, dtype=np.bool_)
    for number in range(result.size):
        of_day = np.flatnonzero(days[first] == number)
        left = of_day[[int(accounts[first[i]]) not in found for i in of_day]] if found else of_day
        top = left[np.lexsort((accounts[first[left]], -values[first[left]]))][:k]
        hit = top[compromised[top]]
        found.update(int(accounts[first[i]]) for i in hit)
        result[number] = hit.size / k
    return result


def top_rows(score: ArrayLike, n: int, seed: int) -> Bools:
    """Exactly the n rows with the highest scores; equal scores in an order that the seed fixes, not the rows' order.

    Args:
        score: shape (rows,), rows in a canonical order.
        n: how many.
        seed: of the order within equal scores.
    """
    values = np.asarray(score, dtype=np.float64)
    order = np.lexsort((np.random.default_rng(seed).random(values.size), -values))
    chosen = np.zeros(values.size, dtype=np.bool_)
    chosen[order[:n]] = True
    return chosen


def review_costs(y: ArrayLike, alert: ArrayLike, amount: ArrayLike, review_cost: float) -> float:
    """Cost of a decision: the amount of every anomaly that was missed, and the cost of every alert that was reviewed.

    Source: Bahnsen et al. (2016), "Feature engineering strategies for credit card fraud detection", equation 8.
    """
    missed = np.asarray(y, dtype=np.bool_) & ~np.asarray(alert, dtype=np.bool_)
    return float(np.asarray(amount)[missed].sum() + review_cost * np.count_nonzero(alert))


def savings(cost: float, y: ArrayLike, amount: ArrayLike, review_cost: float) -> float:
    """Share of cost saved against the better of doing nothing and reviewing everything; 1 is perfect, below 0 harms."""
    truth = np.asarray(y, dtype=np.bool_)
    nothing = float(np.asarray(amount, dtype=np.float64)[truth].sum())
    baseline = min(nothing, review_cost * truth.size)
    return float(ratio(baseline - cost, baseline))


def least_cost(y: ArrayLike, score: ArrayLike, amount: ArrayLike, review_cost: float) -> tuple[float, int]:
    """The lowest cost that any threshold on the score attains, and its number of alerts.

    The threshold is chosen with the truth in hand, so this is what a score allows, not what a decision achieved.
    """
    truth, values, _ = _aligned(y, score, None)
    order = np.argsort(-values, kind="stable")
    stopped = np.cumsum(np.where(truth[order], np.asarray(amount, dtype=np.float64)[order], 0.0))
    ends = np.flatnonzero(np.diff(values[order], append=-np.inf) != 0)
    total = stopped[-1] if stopped.size else 0.0
    costs = np.concatenate([[total], total - stopped[ends] + review_cost * (ends + 1)])
    best = int(np.argmin(costs))
    return float(costs[best]), 0 if best == 0 else int(ends[best - 1] + 1)


def ratio(top: Any, bottom: Any) -> Floats:
    """Element by element; NaN where the divisor is zero."""
    over, under = np.broadcast_arrays(np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64))
    result: Floats = np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0)
    return result


def prior_corrected(probability: ArrayLike, negatives_kept: float) -> Floats:
    """Probabilities of a model that saw a share b of the normal rows, at the prevalence of all: b p / (b p - p + 1).

    Args:
        probability: shape (n,).
        negatives_kept: b, above 0; 1 changes nothing.

    Source: Dal Pozzolo et al. (2015), "Calibrating probability with undersampling for unbalanced classification".
    """
    p = np.asarray(probability, dtype=np.float64)
    return np.asarray(negatives_kept * p / (negatives_kept * p - p + 1))


def brier(y: ArrayLike, probability: ArrayLike) -> Floats:
    """Squared error of each probability, shape (n,). Its mean is the Brier score."""
    return np.square(np.asarray(probability, dtype=np.float64) - np.asarray(y, dtype=np.float64))


def log_loss(y: ArrayLike, probability: ArrayLike) -> Floats:
    """Negative log likelihood of each outcome in nats, shape (n,); probabilities stay LOG_FLOOR away from 0 and 1."""
    p = np.clip(np.asarray(probability, dtype=np.float64), LOG_FLOOR, 1 - LOG_FLOOR)
    return np.where(np.asarray(y, dtype=np.bool_), -np.log(p), -np.log1p(-p))


def equal_mass_bins(probability: ArrayLike, bins: int) -> Ints:
    """Bin number of each probability, with about as many rows in each bin; equal probabilities share a bin."""
    p = np.asarray(probability, dtype=np.float64)
    if not p.size:
        return np.empty(0, dtype=np.int64)
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, p, side="left"), return_inverse=True)[1].astype(np.int64)


def calibration_error(
    y: ArrayLike, probability: ArrayLike, block: ArrayLike, weights: Floats, *, level: float, bins: int = 15
) -> Estimate:
    """Expected calibration error: the mean distance of predicted and observed share over equal-mass bins.

    Bins stay as they are through the bootstrap. A well-calibrated forecast does not reach 0 in a finite sample.

    Source: Nixon et al. (2019), "Measuring Calibration in Deep Learning" (adaptive bins).
    """
    truth, p, blocks = _aligned(y, probability, block)
    if not p.size:
        return Estimate(None, None, None, 0)
    number = equal_mass_bins(p, bins)
    shape = (int(number.max()) + 1, int(blocks.max()) + 1)
    cell = number * shape[1] + blocks
    size = shape[0] * shape[1]
    surplus = np.bincount(cell, weights=p - truth, minlength=size).reshape(shape)

    def error(times: Floats) -> Floats:
        rows = times @ np.bincount(blocks, minlength=shape[1])
        return ratio(np.abs(surplus @ times.T).sum(axis=0), rows)

    return estimate(float(error(np.ones((1, shape[1])))[0]), error(weights), level, p.size)


def reliability(y: ArrayLike, probability: ArrayLike, bins: int = 15) -> list[dict[str, float]]:
    """Observed share of anomalies in equal-mass bins of the predicted probability, with 95 % Wilson intervals."""
    truth, p, _ = _aligned(y, probability, None)
    number = equal_mass_bins(p, bins)
    rows = []
    for one in range(int(number.max()) + 1 if number.size else 0):
        inside = number == one
        low, high = wilson(int(truth[inside].sum()), int(inside.sum()))
        rows.append(
            {
                "predicted": float(p[inside].mean()),
                "observed": float(truth[inside].mean()),
                "low": low,
                "high": high,
                "n": int(inside.sum()),
            }
        )
    return rows


def calibration_line(y: ArrayLike, probability: ArrayLike, block: ArrayLike, level: float) -> tuple[Estimate, Estimate]:
    """Slope and intercept of the logistic regression of the outcome on the predicted log odds; ideal 1 and 0.

    Standard errors are robust to dependence within blocks.

    Source: Cox (1958), "Two further applications of a model for binary regression"; Liang & Zeger (1986).
    """
    truth, p, blocks = _aligned(y, probability, block)
    nothing = Estimate(None, None, None, int(truth.size))
    if truth.all() or not truth.any() or np.unique(p).size < 2:  # noqa: PLR2004  # a line needs two points
        return nothing, nothing
    p = np.clip(p, LOG_FLOOR, 1 - LOG_FLOOR)
    x = np.column_stack([np.log(p / (1 - p)), np.ones(p.size)])
    beta = _logistic(x, truth.astype(np.float64))
    if beta is None:
        return nothing, nothing
    fitted = _sigmoid(x @ beta)
    scores = np.stack([np.bincount(blocks, weights=column) for column in (x * (truth - fitted)[:, None]).T], axis=1)
    inverse = np.linalg.pinv((x * (fitted * (1 - fitted))[:, None]).T @ x)
    spread = _normal_quantile((1 + level) / 2) * np.sqrt(np.diag(inverse @ (scores.T @ scores) @ inverse))
    slope, intercept = (
        Estimate(float(b), float(b - s), float(b + s), p.size) for b, s in zip(beta, spread, strict=True)
    )
    return slope, intercept


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share. Source: Wilson (1927), "Probable inference, the law of succession"."""
    if n == 0:
        return 0.0, 1.0
    z = _normal_quantile((1 + level) / 2)
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half


def psi(reference: Floats, current: Floats, floor: float = 1e-4) -> float:
    """Population stability index of two binned samples: sum of (q - p) ln(q / p) over the shares of bins.

    Args:
        reference: rows per bin, shape (bins,).
        current: rows per bin, shape (bins,).
        floor: least share of a bin, so that an empty one does not make it infinite.
    """
    if not reference.sum() or not current.sum():
        return math.nan
    p = np.maximum(reference / reference.sum(), floor)
    q = np.maximum(current / current.sum(), floor)
    return float(np.sum((q - p) * np.log(q / p)))


def psi_null(bins: int, n: float, m: float) -> float:
    """Mean of the index when nothing has changed: (B - 1)(1/n + 1/m), for samples of n and m independent rows.

    Source: Yurdakul & Naranjo (2020), "Statistical properties of the population stability index".
    """
    return (bins - 1) * (1 / n + 1 / m) if n and m else math.nan


def mase(actual: Floats, predicted: Floats, train: Floats, season: int) -> float:
    """Mean absolute scaled error; below 1 beats the seasonal naive forecast within the training series.

    Source: Hyndman & Koehler (2006), "Another look at measures of forecast accuracy".
    """
    scale = np.abs(train[season:] - train[:-season]).mean() if train.size > season else math.nan
    return float(ratio(np.abs(actual - predicted).mean(), scale))


def rmsse(actual: Floats, predicted: Floats, train: Floats, season: int) -> float:
    """Root mean squared scaled error: the M5 competition's measure, with the seasonal step as its scale."""
    scale = np.square(train[season:] - train[:-season]).mean() if train.size > season else math.nan
    return float(np.sqrt(ratio(np.square(actual - predicted).mean(), scale)))


def crps(actual: Floats, quantiles: Floats, probabilities: Floats) -> Floats:
    """Continuous ranked probability score of each point, approximated by twice the mean pinball loss.

    Args:
        actual: shape (n,).
        quantiles: predicted quantiles, shape (n, q).
        probabilities: their levels between 0 and 1, evenly spaced, shape (q,).

    Source: Gneiting & Ranjan (2011), "Comparing density forecasts using threshold- and quantile-weighted scoring".
    """
    error = actual[:, None] - quantiles
    return np.asarray(2 * np.maximum(probabilities * error, (probabilities - 1) * error).mean(axis=1))


def interval_score(actual: Floats, low: Floats, high: Floats, level: float) -> Floats:
    """Width of each interval plus 2/alpha times by how much it was missed (Gneiting & Raftery, 2007)."""
    alpha = 1 - level
    miss = np.maximum(low - actual, 0) + np.maximum(actual - high, 0)
    return np.asarray(high - low + 2 / alpha * miss)


def _aligned(y: ArrayLike, score: ArrayLike, block: ArrayLike | None) -> tuple[Bools, Floats, Ints]:
    truth = np.asarray(y, dtype=np.bool_)
    values = np.asarray(score, dtype=np.float64)
    blocks = np.zeros(truth.size, dtype=np.int64) if block is None else np.asarray(block, dtype=np.int64)
    if not truth.shape == values.shape == blocks.shape:
        raise ReperformError(
            "Truth, scores and blocks do not belong to the same rows.",
            expected=f"{truth.shape} scores and blocks",
            got=f"{values.shape} scores, {blocks.shape} blocks",
        )
    if not np.isfinite(values).all():
        raise ReperformError(
            "A score is not a finite number.",
            expected="finite scores; higher is more anomalous",
            got=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} rows",
            fix="mend the detector that gave them",
        )
    return truth, values, blocks


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _logistic(x: Floats, y: Floats, rounds: int = 100) -> Floats | None:
    """Newton's method with halved steps, from the base rate; None where it does not settle (separated outcomes)."""
    beta = np.array([0.0, math.log(y.mean() / (1 - y.mean()))])
    loss = _logistic_loss(x, y, beta)
    for _ in range(rounds):
        p = _sigmoid(x @ beta)
        step = np.linalg.pinv((x * (p * (1 - p))[:, None]).T @ x) @ (x.T @ (y - p))
        size = 1.0
        while size > 1e-6 and not _logistic_loss(x, y, beta + size * step) <= loss:  # noqa: PLR2004  # give up halving
            size /= 2
        beta = beta + size * step
        loss = _logistic_loss(x, y, beta)
        if np.abs(step).max() < 1e-6:  # noqa: PLR2004  # far below what is printed
            return beta
    return None


def _logistic_loss(x: Floats, y: Floats, beta: Floats) -> float:
    margin = x @ beta
    return float(np.logaddexp(0, margin).sum() - y @ margin)


def _normal_quantile(probability: float) -> float:
    return NormalDist().inv_cdf(probability)
