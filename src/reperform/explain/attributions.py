"""Contributions of features to a detector's score, by SHAP and by LIME. The only module that imports shap and lime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperform.explain.quality import Attribute, Floats, Score

LIME_KERNEL_WIDTH = 0.75


@dataclass(frozen=True)
class Lime:
    """Local linear surrogates.

    Args:
        contributions: shape (n, p), how far the score moves when the feature is kept and not replaced.
        fidelity: shape (n,), weighted R² of the surrogate among its own samples; low means that no line fits here.
    """

    contributions: Floats
    fidelity: Floats


def boosted_margin(booster: Any) -> Score:
    """The margin of an xgboost model as a function of rows, on one thread: most calls here are a few hundred rows."""
    booster.set_param({"nthread": 1})

    def margin(x: Floats) -> Floats:
        if not len(x):
            return np.zeros(0)
        return np.asarray(booster.inplace_predict(x.astype(np.float32), predict_type="margin"), dtype=np.float64)

    return margin


def tree_shap(booster: Any) -> Attribute:
    """Exact SHAP values of a tree ensemble's margin, conditioned on the paths that training rows took.

    Args:
        booster: an xgboost model with one output.

    Returns:
        A function from rows (n, p), NaN for unknown, to contributions (n, p) and base (n,), in log-odds.

    Source: Lundberg et al. (2020), "From local explanations to global understanding with explainable AI for trees".
    """
    import shap  # noqa: PLC0415  # costs a second

    if not booster.num_boosted_rounds():  # it was fitted on labels of one kind: one score for every row
        return lambda x: (np.zeros(x.shape), boosted_margin(booster)(x))
    explainer = shap.TreeExplainer(booster, feature_perturbation="tree_path_dependent")

    def attribute(x: Floats) -> tuple[Floats, Floats]:
        if not len(x):
            return np.zeros(x.shape), np.zeros(0)
        # Additivity is checked by the caller on every row, and failures are listed rather than raised.
        values = explainer.shap_values(x.astype(np.float32), check_additivity=False)
        # For xgboost the explainer learns the base from the model's first answer: it is not there any sooner.
        base = float(np.ravel(explainer.expected_value)[0])
        return np.asarray(values, dtype=np.float64), np.full(len(x), base)

    return attribute


def permutation_shap(score: Score, background: Floats, *, seed: int) -> Attribute:
    """Sampled SHAP values of any score: one random order of the features, forwards and backwards, for each row.

    Args:
        score: rows to scores.
        background: shape (b, p), few training rows that stand for a feature that is left out.
        seed: of the orders; a row's result does not depend on the rows beside it.

    Returns:
        A function from rows (n, p) to contributions (n, p) and base (n,), on the score's own scale.

    Source: Štrumbelj and Kononenko (2014), "Explaining prediction models and individual predictions".
    """
    import shap  # noqa: PLC0415  # costs a second

    masker = shap.maskers.Independent(background, max_samples=len(background))

    def attribute(x: Floats) -> tuple[Floats, Floats]:
        contributions, base = np.zeros(x.shape), np.zeros(len(x))
        for i, row in enumerate(x):
            explainer = shap.PermutationExplainer(score, masker, seed=seed)
            found = explainer(row[None, :], max_evals=2 * x.shape[1] + 1, silent=True)
            contributions[i], base[i] = found.values[0], float(np.ravel(found.base_values)[0])
        return contributions, base

    return attribute


def lime(score: Score, x: Floats, background: Floats, *, seeds: Sequence[int], samples: int) -> Lime:
    """Local linear surrogates of a score by LIME, a feature either kept or replaced by a training row's value.

    LIME's own quartiles are not used: they cannot hold an unknown value, and they put the 76th percentile and the
    largest value ever seen into one bin, where the tail is what an alert is about. Here LIME sees one yes-no column
    per feature (kept: the transaction's own value; not kept: the value of a training row drawn for the sample).

    Args:
        score: rows to scores.
        x: shape (n, p), NaN for unknown.
        background: shape (b, p), training rows to replace values from.
        seeds: n seeds, so that a row's result does not depend on the rows beside it.
        samples: neighbours per row.

    Source: Ribeiro et al. (2016), "Why Should I Trust You?", arXiv:1602.04938.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415  # of scikit-learn

    contributions, fidelity = np.zeros(x.shape), np.full(len(x), np.nan)
    if not len(x) or not x.shape[1]:
        return Lime(contributions, fidelity)
    explainer = _lime_explainer(x.shape[1])
    # Each surrogate is a few hundred rows: threads that wait for one another made this eight times slower on two cores.
    with threadpool_limits(1):
        for i, (row, seed) in enumerate(zip(x, seeds, strict=True)):
            contributions[i], fidelity[i] = _lime_row(explainer, score, row, background, seed=seed, samples=samples)
    return Lime(contributions, fidelity)


def _lime_explainer(n_features: int) -> Any:
    from lime.lime_tabular import LimeTabularExplainer  # noqa: PLC0415  # costs a second

    kept_or_not = np.repeat([[0.0], [1.0]], n_features, axis=1)
    return LimeTabularExplainer(
        kept_or_not,
        mode="regression",
        categorical_features=list(range(n_features)),
        discretize_continuous=False,
        feature_selection="none",
        kernel_width=LIME_KERNEL_WIDTH * np.sqrt(n_features),
        random_state=0,
    )


def _lime_row(
    explainer: Any, score: Score, row: Floats, background: Floats, *, seed: int, samples: int
) -> tuple[Floats, float]:
    donors = background[np.random.default_rng(seed).integers(0, len(background), samples)]

    def of_masks(kept: NDArray[np.float64]) -> Floats:
        return score(np.where(kept > 0, row, donors[: len(kept)]))

    explainer.random_state = np.random.RandomState(seed % 2**32)  # LIME takes the older generator only
    found = explainer.explain_instance(np.ones(len(row)), of_masks, num_features=len(row), num_samples=samples)
    weights = np.zeros(len(row))
    for column, weight in found.local_exp[1]:
        weights[column] = weight
    return weights, float(found.score)
