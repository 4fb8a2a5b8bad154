"""The member whose score is explained, and what is said of rows: contributions, surrogates and their quality."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from reperform import detectors
from reperform.detectors import Detector
from reperform.explain import attributions, quality
from reperform.explain.attributions import Lime
from reperform.explain.quality import Attribute, Deletion, Floats, Score, Stability
from reperform.explain.receipts import LOG_ODDS
from reperform.params import ExplainParams

BOOSTED = "xgboost"
STABILITY_ROWS_IF_SAMPLED = 10  # a sampled SHAP value takes thousands of scores, so few rows are explained ten times


@dataclass(frozen=True)
class Member:
    """A detector as something to be explained.

    Args:
        detector: its name.
        unit: of its score and contributions.
        score: rows to scores.
        attribute: rows to contributions and base.
        prediction: scores to predictions in [0, 1], to tell whether a prediction stays the same.
        is_exact: contributions are exact and cheap; False where they are sampled.
        method: how they are computed, in words.
    """

    detector: str
    unit: str
    score: Score
    attribute: Attribute
    prediction: Score
    is_exact: bool
    method: str


@dataclass(frozen=True)
class Rows:
    """Transactions to be explained.

    Args:
        keys: transaction_id, account_id, population (alerts or non_alerts), probability (calibrated, of the ensemble).
        x: shape (n, p), NaN for unknown.
        published: shape (n,), the member's scores as stage train wrote them.
        seeds: one per row, from its transaction_id, so that a row's result does not depend on the rows beside it.
    """

    keys: pl.DataFrame
    x: Floats
    published: Floats
    seeds: list[int]


@dataclass(frozen=True)
class Explained:
    """What was found out about `Rows`; arrays are in their order."""

    rows: Rows
    shap: Floats
    base: Floats
    lime: Lime
    residual: Floats
    deletion: Deletion
    lime_deletion: Deletion
    stability: Stability

    @property
    def is_additive(self) -> Any:
        """Shape (n,): whether base and contributions add up to the score that stage train published."""
        return self.residual < quality.ADDITIVITY_TOLERANCE


def chosen(weights: Mapping[str, float]) -> str | None:
    """The member to explain: the boosted trees, whose contributions are exact; else the one that weighs most.

    A member without weight has no part in any alert. A detector that reads sequences comes last, because a row alone
    is not what it scores.
    """
    if weights.get(BOOSTED, 0) > 0:
        return BOOSTED
    order = sorted(weights, key=lambda name: (detectors.kind_of(name).reads_sequences, -abs(weights[name]), name))
    return order[0] if order else None


def member(name: str, detector: Detector, background: Floats, settings: ExplainParams) -> Member:
    """A fitted detector as something to be explained.

    Args:
        name: its name.
        detector: as `detectors.load` gives it.
        background: shape (b, p), training rows.
        settings: of the stage.
    """
    # With a class per typology the score is no margin of single trees, and TreeSHAP would not add up to it.
    if isinstance(detector, detectors.DETECTORS[BOOSTED]) and getattr(detector, "classes", "binary") == "binary":
        booster = detector.booster_
        score = attributions.boosted_margin(booster)
        words = "TreeSHAP, path dependent"
        return Member(name, LOG_ODDS, score, attributions.tree_shap(booster), _sigmoid, is_exact=True, method=words)
    few = background[: settings.sampled_shap_rows]

    def score_of(x: Floats) -> Floats:
        return detector.score(x) if len(x) else np.zeros(0)

    usual = np.sort(score_of(background))

    def place(scores: Floats) -> Floats:
        return np.asarray(np.searchsorted(usual, scores, side="right") / max(len(usual), 1), dtype=np.float64)

    attribute = attributions.permutation_shap(score_of, few, seed=settings.seed)
    words = f"permutation SHAP against {len(few)} training rows"
    return Member(name, "score", score_of, attribute, place, is_exact=False, method=words)


def explain(one: Member, rows: Rows, background: Floats, settings: ExplainParams) -> Explained:
    """SHAP, LIME and the measurements behind KPI 15 for every row.

    Args:
        one: the member.
        rows: what to explain.
        background: shape (b, p), training rows.
        settings: of the stage.
    """
    shap, base = one.attribute(rows.x)
    lime = attributions.lime(one.score, rows.x, background, seeds=rows.seeds, samples=settings.lime_samples)
    by_shap, by_lime = (
        quality.deletion(
            one.score,
            rows.x,
            contributions,
            background,
            seeds=rows.seeds,
            orders=settings.random_orders,
            neighbours=settings.neighbours,
        )
        for contributions in (shap, lime.contributions)
    )
    residual = quality.additivity_residual(rows.published, shap, base)
    stable = _stability(one, rows, shap, background, settings)
    return Explained(rows, shap, base, lime, residual, by_shap, by_lime, stable)


def seed_of(seed: int, transaction_id: str) -> int:
    """A seed of 63 bits for one transaction."""
    digest = hashlib.sha256(f"{seed}:{transaction_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _stability(one: Member, rows: Rows, shap: Floats, background: Floats, settings: ExplainParams) -> Stability:
    taken = np.ones(len(rows.x), dtype=bool)
    if not one.is_exact:
        place = rows.keys.select(pl.int_range(pl.len()).over("population")).to_series().to_numpy()
        taken = np.asarray(place < STABILITY_ROWS_IF_SAMPLED)
    some = quality.stability(
        one.score,
        one.attribute,
        one.prediction,
        rows.x[taken],
        contributions=shap[taken],
        background=background,
        seeds=[seed for seed, take in zip(rows.seeds, taken, strict=True) if take],
        perturbations=settings.perturbations,
        noise=settings.perturbation_noise,
        within=settings.same_prediction_within,
    )
    overlaps, slopes = np.full((len(taken), settings.perturbations), np.nan), np.full(len(taken), np.nan)
    overlaps[taken], slopes[taken] = some.jaccard, some.lipschitz
    return Stability(overlaps, slopes)


def _sigmoid(score: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(score, -500, 500))), dtype=np.float64)
