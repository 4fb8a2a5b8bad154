"""How far an explanation can be trusted: the components of KPI 15, its index, and checks beside it.

Everything here takes arrays and functions and knows no library of explanations. Rows are explained transactions,
columns are features; `contributions` plus `base` should give the model's score.

No standard for an explainability index exists. The components are published apart, because they disagree with each
other; the index is a gated geometric mean of them (definition: KPI 15).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperform.metrics import bootstrap_weights

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]
Attribute = Callable[[Floats], tuple[Floats, Floats]]

ADDITIVITY_TOLERANCE = 1e-3
TOP = 5
FLOOR = 0.01
EXPONENTS = {
    "faithfulness": 0.30,
    "stability": 0.25,
    "agreement": 0.15,
    "sparsity": 0.10,
    "confidence": 0.10,
    "documented": 0.10,
}
MOST_STEPS = 16
ROWS_AT_ONCE = 200_000
CANDIDATES = 10


@dataclass(frozen=True)
class Deletion:
    """What is left of a prediction while features are deleted.

    Args:
        by_importance: shape (n,), area under the curve when the most important features go first.
        at_random: shape (n, orders), the same areas in random orders.
        correlation: shape (n,), correlation between the contributions deleted at random and the score's change.
    """

    by_importance: Floats
    at_random: Floats
    correlation: Floats

    @property
    def skill(self) -> Floats:
        """Shape (n,): 1 when one deletion undoes the prediction at once, 0 when no better than a random order."""
        return deletion_skill(self.by_importance, self.at_random.mean(axis=1))


@dataclass(frozen=True)
class Stability:
    """How the explanation changes when the input hardly does.

    Args:
        jaccard: shape (n, perturbations), overlap of the top features; NaN where no perturbation kept the prediction.
        lipschitz: shape (n,), largest change of contributions per change of input, both Euclidean, the input in
            median absolute deviations.
    """

    jaccard: Floats
    lipschitz: Floats

    @property
    def mean(self) -> Floats:
        """Shape (n,): mean overlap; NaN where no perturbation kept the prediction."""
        return row_means(self.jaccard)


def additivity_residual(score: Floats, contributions: Floats, base: Floats) -> Floats:
    """Shape (n,): |score - (base + sum of contributions)|, on the score's own scale."""
    return np.asarray(np.abs(score - base - contributions.sum(axis=1)), dtype=np.float64)


def top_features(contributions: Floats, top: int = TOP) -> NDArray[np.bool_]:
    """Shape (n, p): whether a feature is among the `top` largest by absolute contribution.

    Ties go to the earlier column. A feature that contributes nothing is never among them.
    """
    size = np.abs(contributions)
    order = np.argsort(-size, axis=1, kind="stable")[:, :top]
    chosen = np.zeros(size.shape, dtype=bool)
    np.put_along_axis(chosen, order, values=True, axis=1)
    return chosen & (size > 0)


def jaccard(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Floats:
    """Shape (n,): features in both sets over features in either; NaN where both are empty."""
    return _ratio((one & other).sum(axis=-1), (one | other).sum(axis=-1))


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Floats:
    """Shape (n,): shared features over the size of the larger set; NaN where both are empty.

    Source: Krishna et al. (2022), "The Disagreement Problem in Explainable Machine Learning", feature agreement.
    """
    return _ratio((one & other).sum(axis=-1), np.maximum(one.sum(axis=-1), other.sum(axis=-1)))


def sign_agreement(one: Floats, other: Floats, top: int = TOP) -> Floats:
    """Shape (n,): among the features in both top sets, the share with the same sign; NaN where none is shared."""
    shared = top_features(one, top) & top_features(other, top)
    return _ratio((shared & (np.sign(one) == np.sign(other))).sum(axis=1), shared.sum(axis=1))


def features_to_reach(contributions: Floats, share: float = 0.8) -> NDArray[np.int64]:
    """Shape (n,): the smallest number of features that holds `share` of all absolute contributions; at least 1."""
    size = -np.sort(-np.abs(contributions), axis=1)
    held = np.cumsum(size, axis=1)
    # A share that is reached exactly must count as reached, whatever the sum's last bit says.
    short = held < share * held[:, -1:] * (1 - 1e-12)
    return np.asarray(np.minimum(short.sum(axis=1) + 1, contributions.shape[1]), dtype=np.int64)


def sparsity(contributions: Floats) -> Floats:
    """Shape (n,): 1 - ln(k80) / ln(p); 1 when a single feature explains it, 0 when all are needed alike."""
    n_features = contributions.shape[1]
    if n_features <= 1:
        return np.ones(len(contributions))
    return np.asarray(1 - np.log(features_to_reach(contributions)) / np.log(n_features), dtype=np.float64)


def confidence(probability: Floats) -> Floats:
    """Shape (n,): 1 - binary entropy in bits of a calibrated probability. How sure the model is, not how clear."""
    p = np.clip(probability, 0.0, 1.0)
    inside = (p > 0) & (p < 1)
    safe = np.where(inside, p, 0.5)
    entropy_bits = -(safe * np.log2(safe) + (1 - safe) * np.log2(1 - safe))
    return np.where(np.isnan(probability), np.nan, np.where(inside, 1 - entropy_bits, 1.0))


def documented_share(contributions: Floats, documented: NDArray[np.bool_]) -> Floats:
    """Shape (n,): share of absolute contributions on features that have a written formula; 1 where all are zero."""
    size = np.abs(contributions)
    total = size.sum(axis=1)
    return np.where(total > 0, (size * documented).sum(axis=1) / np.where(total > 0, total, 1.0), 1.0)


def explainability_index(passed: NDArray[np.bool_], components: Mapping[str, Floats]) -> Floats:
    """Shape (n,): 100 · G · ∏ component^exponent, each component in [0.01, 1]; NaN where a component is unknown.

    Args:
        passed: the additivity gate; a row that fails has index 0 whatever else it has.
        components: the six of `EXPONENTS`, each of shape (n,) and already within [0, 1].
    """
    logs = [EXPONENTS[name] * np.log(np.clip(components[name], FLOOR, 1.0)) for name in EXPONENTS]
    return np.where(passed, 100 * np.exp(np.sum(logs, axis=0)), 0.0)


def deletion(
    score: Score,
    x: Floats,
    contributions: Floats,
    background: Floats,
    *,
    seeds: Sequence[int],
    orders: int,
    neighbours: int,
) -> Deletion:
    """Delete features one after the other, most important first and in random orders, and watch the prediction.

    A deleted feature takes the values that it has in the training rows most alike in the features still kept: a
    conditional sample, not the mean, which may be a value that no transaction has together with the rest. What is left
    of a prediction is 1 - min(1, E|change| / E|change when every feature is replaced|), so that it runs from 1 to 0
    for alerts and for normal transactions alike.

    Args:
        score: rows to scores.
        x: shape (n, p), NaN for unknown.
        contributions: shape (n, p).
        background: shape (b, p), training rows to sample from.
        seeds: n seeds of the random orders.
        orders: random orders per row.
        neighbours: training rows per conditional sample.

    Source: Petsiuk et al. (2018), "RISE", deletion; Bhatt et al. (2020), "Evaluating and Aggregating Feature-based
    Model Explanations", faithfulness correlation.
    """
    n, p = x.shape
    steps = deletion_steps(p)
    if not n:
        return Deletion(np.empty(0), np.empty((0, orders)), np.empty(0))
    neighbours = min(neighbours, len(background))
    scores, background_scores = score(x), score(background)
    ranks, background_ranks = _as_ranks(x, background), _as_ranks(background, background)
    areas, correlations = np.empty((n, orders + 1)), np.empty(n)
    per_row = (orders + 1) * (len(steps) - 1) * neighbours
    rows_at_once = max(1, ROWS_AT_ONCE // max(1, per_row))
    for start in range(0, n, rows_at_once):
        part = range(start, min(start + rows_at_once, n))
        every_order = [_orders(contributions[i], orders, seeds[i]) for i in part]
        changed = [
            _replaced(x[i], ranks[i], background, background_ranks, orders=every, steps=steps, neighbours=neighbours)
            for i, every in zip(part, every_order, strict=True)
        ]
        new = score(np.concatenate(changed)).reshape(len(part), orders + 1, len(steps) - 1, neighbours)
        for i, every, got in zip(part, every_order, new, strict=True):
            change = scores[i] - got
            full = np.abs(scores[i] - background_scores).mean()
            areas[i] = [_area_left(np.abs(one).mean(axis=1), full, steps, p) for one in change]
            correlations[i] = _correlation(contributions[i], every[1:], change[1:].mean(axis=2), steps)
    return Deletion(areas[:, 0], areas[:, 1:], correlations)


def deletion_steps(n_features: int) -> NDArray[np.int64]:
    """How many features are deleted at each point of the curve: 1, 2, 3, ... and then ever wider apart, up to all."""
    spaced = np.round(np.geomspace(1, n_features, min(n_features, MOST_STEPS))).astype(np.int64)
    return np.unique(spaced)


def deletion_skill(by_importance: Floats, at_random: Floats) -> Floats:
    """(AUC_random - AUC_deletion) / AUC_random; 0 where a random order leaves nothing to gain."""
    known = at_random > 0
    return np.where(known, (at_random - by_importance) / np.where(known, at_random, 1.0), 0.0)


def stability(
    score: Score,
    attribute: Attribute,
    prediction: Score,
    x: Floats,
    *,
    contributions: Floats,
    background: Floats,
    seeds: Sequence[int],
    perturbations: int,
    noise: float,
    within: float,
    top: int = TOP,
) -> Stability:
    """Explain slightly different inputs that get the same prediction, and compare the top features.

    Noise is normal with standard deviation `noise` times each feature's median absolute deviation in training; unknown
    values stay unknown. Of ten times as many candidates the first `perturbations` are taken whose prediction stays
    within `within`.

    Args:
        score: rows to scores.
        attribute: rows to contributions (n, p) and base (n,).
        prediction: scores to predictions in [0, 1].
        x: shape (n, p), NaN for unknown.
        contributions: shape (n, p), of the rows as they are.
        background: shape (b, p), training rows.
        seeds: n seeds.
        perturbations: wanted per row.
        noise: in median absolute deviations.
        within: largest change of the prediction.
        top: features compared.

    Source: Alvarez-Melis and Jaakkola (2018), "On the Robustness of Interpretability Methods".
    """
    n, p = x.shape
    if not n:
        return Stability(np.empty((0, perturbations)), np.empty(0))
    mad = median_absolute_deviation(background)
    draws = np.stack([np.random.default_rng(seed).normal(size=(CANDIDATES * perturbations, p)) for seed in seeds])
    candidates = x[:, None, :] + noise * mad * draws
    moved = prediction(score(candidates.reshape(-1, p))).reshape(n, -1)
    same = np.abs(moved - prediction(score(x))[:, None]) <= within
    taken = same & (np.cumsum(same, axis=1) <= perturbations)
    row, _ = np.nonzero(taken)
    place = (np.cumsum(taken, axis=1) - 1)[taken]
    new, _ = attribute(candidates[taken]) if len(row) else (np.empty((0, p)), np.empty(0))
    overlaps = np.full((n, perturbations), np.nan)
    overlaps[row, place] = jaccard(top_features(contributions, top)[row], top_features(new, top))
    return Stability(overlaps, _lipschitz(x, contributions, candidates[taken], new, row=row, mad=mad))


def median_absolute_deviation(values: Floats) -> Floats:
    """Shape (p,): the median distance from the median, unknown values left out; 0 where nothing is known."""
    deviation = np.zeros(values.shape[1])
    for column in range(values.shape[1]):
        known = values[:, column][np.isfinite(values[:, column])]
        if len(known):
            deviation[column] = np.median(np.abs(known - np.median(known)))
    return deviation


def rank_correlation(one: Floats, other: Floats) -> Floats:
    """Shape (n,): Spearman's correlation of absolute contributions, row by row; NaN where either is constant."""
    from scipy.stats import rankdata  # noqa: PLC0415  # keeps the command line quick

    a, b = (rankdata(np.abs(part), axis=1) for part in (one, other))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return _ratio((a * b).sum(axis=1), np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def pairwise_overlap(repeats: Floats, top: int = TOP) -> float:
    """Mean overlap of the top features over all pairs of repeats.

    Args:
        repeats: shape (repeats, p), contributions of one row from several seeds.
        top: features compared.

    Source: Visani et al. (2020), "Statistical stability indices for LIME", the variables stability index.
    """
    chosen = top_features(repeats, top)
    pairs = [overlap(chosen[i : i + 1], chosen[j : j + 1])[0] for i in range(len(chosen)) for j in range(i)]
    return float(np.mean(pairs))


def row_means(values: Floats) -> Floats:
    """Shape (n,): the mean of what is known in each row; NaN where nothing is."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))


def bootstrap_means(values: Floats, clusters: Sequence[str], *, rounds: int, seed: int) -> Floats:
    """Shape (rounds,): the mean of `values` in samples of whole clusters, drawn with replacement.

    Transactions of one account are explained alike, so an account is drawn as a whole.

    Args:
        values: shape (n,), NaN is left out.
        clusters: n names.
        rounds: samples.
        seed: of the draws.
    """
    _, code = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    known = np.isfinite(values)
    sums = np.bincount(code, np.where(known, values, 0.0))
    counts = np.bincount(code, known)
    weights = bootstrap_weights(len(sums), rounds, seed)
    return _ratio(weights @ sums, weights @ counts)


def bootstrap_index(
    passed: NDArray[np.bool_],
    components: Mapping[str, Floats],
    found: Deletion,
    stable: Stability,
    *,
    rounds: int,
    seeds: Sequence[int],
) -> Floats:
    """Shape (n, rounds): each row's index with its random orders and its perturbations drawn again.

    What this interval holds is the noise of measuring one row's explanation, not how rows differ.
    """
    n = len(passed)
    result = np.full((n, rounds), np.nan)
    for i in range(n):
        draw = np.random.default_rng(seeds[i])
        at_random = found.at_random[i]
        areas = at_random[draw.integers(0, len(at_random), (rounds, len(at_random)))].mean(axis=1)
        overlaps = stable.jaccard[i][np.isfinite(stable.jaccard[i])]
        if not len(overlaps):
            continue
        means = overlaps[draw.integers(0, len(overlaps), (rounds, len(overlaps)))].mean(axis=1)
        drawn = {name: np.full(rounds, values[i]) for name, values in components.items()}
        drawn["faithfulness"] = np.clip(deletion_skill(np.full(rounds, found.by_importance[i]), areas), 0, 1)
        drawn["stability"] = means
        result[i] = explainability_index(np.full(rounds, passed[i]), drawn)
    return result


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    safe = np.where(whole > 0, whole, 1).astype(np.float64)
    return np.asarray(np.where(whole > 0, part / safe, np.nan), dtype=np.float64)


def _as_ranks(values: Floats, reference: Floats) -> Floats:
    """Each value as its share of training values below it (half of the equal ones): one scale for all units."""
    ranks = np.full(values.shape, np.nan)
    for column in range(values.shape[1]):
        known = np.sort(reference[:, column][np.isfinite(reference[:, column])])
        have = np.isfinite(values[:, column])
        if len(known):
            below = np.searchsorted(known, values[have, column], side="left")
            upto = np.searchsorted(known, values[have, column], side="right")
            ranks[have, column] = (below + upto) / (2 * len(known))
        else:
            ranks[have, column] = 0.5
    return ranks


def _orders(contributions: Floats, orders: int, seed: int) -> NDArray[np.int64]:
    """Shape (1 + orders, p): by absolute contribution, then at random."""
    draw = np.random.default_rng(seed)
    by_size = np.argsort(-np.abs(contributions), kind="stable")
    return np.stack([by_size, *(draw.permutation(len(contributions)) for _ in range(orders))])


def _replaced(
    row: Floats,
    ranks: Floats,
    background: Floats,
    background_ranks: Floats,
    *,
    orders: NDArray[np.int64],
    steps: NDArray[np.int64],
    neighbours: int,
) -> Floats:
    """The row with its first features of each order taken from alike training rows.

    The last step, all features, is left out: what it gives is known.

    Returns:
        Shape (orders * (steps - 1) * neighbours, p).
    """
    distance = (ranks - background_ranks) ** 2
    unknown, unknown_there = np.isnan(ranks), np.isnan(background_ranks)
    distance = np.where(unknown != unknown_there, 1.0, np.where(unknown & unknown_there, 0.0, distance))
    place = np.argsort(orders, axis=1)
    deleted = (place[:, None, :] < steps[:-1, None]).reshape(-1, len(row))
    to_kept = distance @ (~deleted).T.astype(np.float64)
    near = np.argpartition(to_kept, neighbours - 1, axis=0)[:neighbours].T
    return np.where(deleted[:, None, :], background[near], row).reshape(-1, len(row))


def _area_left(change: Floats, full: float, steps: NDArray[np.int64], n_features: int) -> float:
    """Area under what is left of the prediction, over the share of features deleted."""
    if full <= 0:
        return 0.0
    left = np.concatenate([[1.0], 1 - np.minimum(1.0, change / full), [0.0]])
    share = np.concatenate([[0.0], steps / n_features])
    return float(np.trapezoid(left, share))


def _correlation(contributions: Floats, orders: NDArray[np.int64], change: Floats, steps: NDArray[np.int64]) -> float:
    gone = np.cumsum(contributions[orders], axis=1)[:, steps[:-1] - 1].ravel()
    got = change.ravel()
    if len(gone) < 2 or np.ptp(gone) == 0 or np.ptp(got) == 0:  # noqa: PLR2004  # two points make a line
        return float("nan")
    return float(np.corrcoef(gone, got)[0, 1])


def _lipschitz(
    x: Floats, contributions: Floats, moved: Floats, new: Floats, *, row: NDArray[np.int64], mad: Floats
) -> Floats:
    largest = np.full(len(x), np.nan)
    if not len(row):
        return largest
    scale = np.where(mad > 0, mad, 1.0)
    far = np.sqrt(np.nansum(((moved - x[row]) / scale) ** 2, axis=1))
    change = np.sqrt(((new - contributions[row]) ** 2).sum(axis=1))
    slope = _ratio(change, far)
    for i, value in zip(row, slope, strict=True):
        largest[i] = np.fmax(largest[i], value)
    return largest
