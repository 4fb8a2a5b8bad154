"""Do explanations depend on what the model learned, and LIME on its seed? Checks beside KPI 15."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import detectors, metrics
from reperform.explain import attributions, quality
from reperform.explain.explained import Explained, Member, member
from reperform.explain.quality import Floats
from reperform.params import ExplainParams

ROWS = 100
SHIFTS = 5
ROWS_IF_SAMPLED = 30
# Both fits are alike and small: what is compared is what they learned, not how well.
AT_MOST = {"n_estimators": 100, "max_bin": 256}


def permuted_labels(
    found: Explained,
    one: Member,
    fit: Mapping[str, Any],
    *,
    x: Floats,
    y: NDArray[np.int8],
    background: Floats,
    settings: ExplainParams,
) -> dict[str, Any]:
    """Fit the member again on permuted labels and on the true ones, and compare the explanations of the same rows.

    An explanation that stays the same when nothing was learned describes the data and not the model. The fit on true
    labels, from the same rows, says how much changes because of the rows alone.

    Args:
        found: what was explained.
        one: the explained member.
        fit: its `fit.json`: parameters, features, seed.
        x: shape (m, p), rows that the final fit may learn from.
        y: shape (m,), their labels.
        background: shape (b, p).
        settings: of the stage.

    Source: Adebayo et al. (2018), "Sanity Checks for Saliency Maps", data randomisation.
    """
    population = "alerts" if (found.rows.keys["population"] == "alerts").any() else "non_alerts"
    rows = np.flatnonzero((found.rows.keys["population"] == population).to_numpy())[:ROWS]
    if not one.is_exact or not len(rows) or not 0 < y.sum() < len(y):
        return {"reason": _why_not(one, len(rows)), "explanations_change": None}
    taken = _sample(y, settings)
    permuted = y[taken][np.random.default_rng(settings.seed).permutation(len(taken))]
    accounts = found.rows.keys["account_id"].gather(rows.tolist()).to_list()
    smaller = fit["parameters"] | {key: min(fit["parameters"].get(key, most), most) for key, most in AT_MOST.items()}
    result: dict[str, Any] = {}
    for name, labels in (("true_labels", y[taken]), ("permuted_labels", permuted)):
        detector = detectors.build(one.detector, smaller, features=fit["features"], seed=settings.seed)
        again = member(one.detector, detector.fit(x[taken], labels), background, settings)
        contributions, _ = again.attribute(found.rows.x[rows])
        result[name] = _estimate(quality.rank_correlation(found.shap[rows], contributions), accounts, settings)
    ends = result["permuted_labels"]["high"], result["true_labels"]["low"]
    return result | {
        "explanations_change": None if None in ends else bool(ends[0] < ends[1]),
        "population": population,
        "rows_explained": len(rows),
        "fitted_with": {key: smaller[key] for key in AT_MOST},
        "rows_fitted": len(taken),
        "anomalies_fitted": int(y[taken].sum()),
    }


def lime_seeds(found: Explained, one: Member, background: Floats, settings: ExplainParams) -> dict[str, Any]:
    """Repeat LIME from other seeds: how alike are its largest features, and all of its weights in rank?

    Source: Visani et al. (2020), "Statistical stability indices for LIME".
    """
    rows = np.arange(min(len(found.rows.x), settings.lime_repeat_rows))
    if not len(rows):
        return {"reason": "nothing was explained", "top_overlap": None, "rank_correlation": None}
    x = found.rows.x[rows]
    repeats = np.stack(
        [
            attributions.lime(
                one.score,
                x,
                background,
                seeds=[found.rows.seeds[row] + 1 + again for row in rows],
                samples=settings.lime_samples,
            ).contributions
            for again in range(settings.lime_repeat_seeds)
        ],
        axis=1,
    )
    accounts = found.rows.keys["account_id"].head(len(rows)).to_list()
    overlaps = np.array([quality.pairwise_overlap(one_row) for one_row in repeats])
    return {
        "rows": len(rows),
        "seeds": settings.lime_repeat_seeds,
        "top_overlap": _estimate(overlaps, accounts, settings),
        "rank_correlation": _estimate(np.array([_pairwise_rank(r) for r in repeats]), accounts, settings),
    }


def shifts(found: Explained, one: Member, background: Floats) -> Floats:
    """How much more a feature moves random transactions now than it moved training rows: shape (n, p).

    Contributions do not average to 0 over training: SHAP's base follows the paths of the trees, where anomalies weigh
    more than their number. So training rows are explained as well, and their mean is taken off.

    Args:
        found: what was explained; the rows without an alert are used.
        one: the explained member.
        background: shape (b, p), training rows.
    """
    quiet = found.shap[(found.rows.keys["population"] == "non_alerts").to_numpy()]
    then, _ = one.attribute(background if one.is_exact else background[:ROWS_IF_SAMPLED])
    return np.asarray(quiet - then.mean(axis=0), dtype=np.float64)


def shared_shift(
    found: Explained, moved: Floats, features: Sequence[str], settings: ExplainParams
) -> list[dict[str, Any]]:
    """Features that move all transactions alike, otherwise than in training: drift, or values that grow with time.

    Such a feature says little about any one transaction. The largest mean shifts are told; one counts where its
    interval leaves 0 out.

    Args:
        found: what was explained.
        moved: of `shifts`.
        features: names of the columns.
        settings: of the stage.

    Returns:
        feature, its mean shift as an estimate, and whether 0 lies outside of the interval; largest first.
    """
    if not len(moved):
        return []
    accounts = found.rows.keys.filter(pl.col("population") == "non_alerts")["account_id"].to_list()
    largest = np.argsort(-np.abs(moved.mean(axis=0)), kind="stable")[:SHIFTS]
    told = []
    for column in largest:
        estimate = _estimate(moved[:, column], accounts, settings)
        ends = estimate["low"], estimate["high"]
        is_shifted = None if None in ends else bool(ends[0] > 0 or ends[1] < 0)
        told.append({"feature": features[int(column)], "mean_shift": estimate, "is_shifted": is_shifted})
    return told


def _sample(y: NDArray[np.int8], settings: ExplainParams) -> NDArray[np.int64]:
    """All anomalies and as many normal rows as there is room for, in order of time."""
    draw = np.random.default_rng(settings.seed)
    normal = np.flatnonzero(y == 0)
    room = max(settings.sanity_rows - int((y == 1).sum()), 1)
    some = draw.choice(normal, size=min(room, len(normal)), replace=False)
    return np.sort(np.concatenate([np.flatnonzero(y == 1), some]))


def _pairwise_rank(repeats: Floats) -> float:
    pairs = [(i, j) for i in range(len(repeats)) for j in range(i)]
    first, second = (repeats[[pair[side] for pair in pairs]] for side in (0, 1))
    return float(np.nanmean(quality.rank_correlation(first, second)))


def _estimate(values: Floats, accounts: Sequence[str], settings: ExplainParams) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else float("nan")
    draws = quality.bootstrap_means(values, accounts, rounds=settings.bootstrap_rounds, seed=settings.seed)
    return metrics.estimate(mean, draws, settings.interval, len(known)).as_dict()


def _why_not(one: Member, rows: int) -> str:
    if not rows:
        return "nothing was explained"
    return "no known label of both kinds" if one.is_exact else f"{one.detector} does not learn from labels"


def empty() -> dict[str, Any]:
    """The document of a run in which nothing was explained."""
    nothing = {"reason": "nothing was explained"}
    return {
        "permuted_labels": nothing | {"explanations_change": None},
        "lime_seeds": nothing | {"top_overlap": None, "rank_correlation": None},
        "shared_shift": [],
    }
