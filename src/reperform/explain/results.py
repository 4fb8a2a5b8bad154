"""The tables and the quality document of stage explain, from what was found out about each row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from reperform import ensemble, metrics
from reperform.explain import quality
from reperform.explain.explained import Explained, Member
from reperform.explain.quality import Floats
from reperform.params import ExplainParams

POPULATIONS = ("alerts", "non_alerts")
COMPONENTS = ("index", "additivity", *quality.EXPONENTS)
BESIDE = (
    "faithfulness_unclipped",
    "faithfulness_correlation",
    "faithfulness_of_lime",
    "lipschitz",
    "sign_agreement",
    "lime_fidelity",
    "features_to_reach_80_percent",
    "perturbations_with_same_prediction",
)
ATTRIBUTIONS = {
    "transaction_id": pl.String,
    "detector": pl.String,
    "method": pl.String,
    "feature": pl.String,
    "value": pl.Float64,
    "contribution": pl.Float64,
    "rank": pl.Int64,
}
EXPLAINABILITY = {
    "transaction_id": pl.String,
    "account_id": pl.String,
    "population": pl.String,
    "detector": pl.String,
    "score": pl.Float64,
    "probability": pl.Float64,
    "additivity_residual": pl.Float64,
    **dict.fromkeys(COMPONENTS, pl.Float64),
    "index_low": pl.Float64,
    "index_high": pl.Float64,
    **dict.fromkeys(BESIDE, pl.Float64),
}
IMPORTANCE = {
    "population": pl.String,
    "detector": pl.String,
    "unit": pl.String,
    "feature": pl.String,
    "kpi_number": pl.Int64,
    "kpi": pl.String,
    "family": pl.String,
    "mean_abs_contribution": pl.Float64,
    "mean_contribution": pl.Float64,
    "share": pl.Float64,
    "rank": pl.Int64,
}
MEMBERS = {
    "transaction_id": pl.String,
    "member": pl.String,
    "score": pl.Float64,
    "contribution": pl.Float64,
    "share": pl.Float64,
}


def documented(features: Sequence[str], dictionary: Mapping[str, Mapping[str, Any]]) -> Any:
    """Shape (p,): whether the feature dictionary holds a formula for a feature."""
    return np.array([bool(str(dictionary.get(name, {}).get("formula") or "").strip()) for name in features], dtype=bool)


def attribution_table(found: Explained, one: Member, features: Sequence[str]) -> pl.DataFrame:
    """Every contribution to every alert: one row per transaction, method and feature, largest first.

    Args:
        found: alerts and non-alerts; only alerts are written.
        one: the explained member.
        features: names of the columns.
    """
    alerts = np.flatnonzero((found.rows.keys["population"] == "alerts").to_numpy())
    if not len(alerts) or not len(features):
        return pl.DataFrame(schema=ATTRIBUTIONS)
    ids = found.rows.keys["transaction_id"]
    parts = []
    for row in alerts:
        for method, values in (("shap", found.shap[row]), ("lime", found.lime.contributions[row])):
            order = np.argsort(-np.abs(values), kind="stable")
            parts.append(
                {
                    "transaction_id": [ids[int(row)]] * len(order),
                    "detector": [one.detector] * len(order),
                    "method": [method] * len(order),
                    "feature": [features[i] for i in order],
                    "value": found.rows.x[row][order],
                    "contribution": values[order],
                    "rank": np.arange(1, len(order) + 1),
                }
            )
    table = pl.concat([pl.DataFrame(part, schema=ATTRIBUTIONS) for part in parts])
    return table.with_columns(pl.col("value").fill_nan(None))


def components(found: Explained, formula: Any) -> dict[str, Floats]:
    """The six components of KPI 15 under its index's root, each of shape (n,) and within [0, 1]."""
    shap, lime = quality.top_features(found.shap), quality.top_features(found.lime.contributions)
    probability = found.rows.keys["probability"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return {
        "faithfulness": np.clip(found.deletion.skill, 0, 1),
        "stability": found.stability.mean,
        "agreement": quality.overlap(shap, lime),
        "sparsity": quality.sparsity(found.shap),
        "confidence": quality.confidence(probability),
        "documented": quality.documented_share(found.shap, formula),
    }


def explainability_table(found: Explained, one: Member, formula: Any, settings: ExplainParams) -> pl.DataFrame:
    """KPI 15 of every explained row: components, index with the interval of measuring it, and what stands beside."""
    if not found.rows.keys.height:
        return pl.DataFrame(schema=EXPLAINABILITY)
    parts = components(found, formula)
    drawn = quality.bootstrap_index(
        found.is_additive,
        parts,
        found.deletion,
        found.stability,
        rounds=settings.bootstrap_rounds,
        seeds=found.rows.seeds,
    )
    tail = (1 - settings.interval) / 2
    columns = {
        "score": found.rows.published,
        "additivity_residual": found.residual,
        "index": quality.explainability_index(found.is_additive, parts),
        "additivity": found.is_additive.astype(np.float64),
        **parts,
        "index_low": np.quantile(drawn, tail, axis=1),
        "index_high": np.quantile(drawn, 1 - tail, axis=1),
        "faithfulness_unclipped": found.deletion.skill,
        "faithfulness_correlation": found.deletion.correlation,
        "faithfulness_of_lime": found.lime_deletion.skill,
        "lipschitz": found.stability.lipschitz,
        "sign_agreement": quality.sign_agreement(found.shap, found.lime.contributions),
        "lime_fidelity": found.lime.fidelity,
        "features_to_reach_80_percent": quality.features_to_reach(found.shap).astype(np.float64),
        "perturbations_with_same_prediction": np.isfinite(found.stability.jaccard).sum(axis=1).astype(np.float64),
    }
    table = found.rows.keys.with_columns(
        pl.lit(one.detector).alias("detector"),
        *(pl.Series(name, values, dtype=pl.Float64).fill_nan(None) for name, values in columns.items()),
    )
    return table.select(pl.col(name).cast(kind) for name, kind in EXPLAINABILITY.items())


def member_table(model: Mapping[str, Any], scores: pl.DataFrame) -> pl.DataFrame:
    """What each member adds to the margin of each transaction; with the ensemble's intercept they sum to its score.

    Args:
        model: `ensemble/model.json`.
        scores: transaction_id, and one column of scores for each member.
    """
    if not scores.height or not model["members"]:
        return pl.DataFrame(schema=MEMBERS)
    names = [one["detector"] for one in model["members"]]
    given = {name: scores[name].to_numpy() for name in names}
    added = np.stack([ensemble.contributions(model, given)[name] for name in names], axis=1)
    total = np.abs(added).sum(axis=1, keepdims=True)
    shares = np.where(total > 0, np.abs(added) / np.where(total > 0, total, 1.0), np.nan)
    return pl.DataFrame(
        {
            "transaction_id": np.repeat(scores["transaction_id"].to_numpy(), len(names)),
            "member": names * scores.height,
            "score": np.stack([given[name] for name in names], axis=1).ravel(),
            "contribution": added.ravel(),
            "share": shares.ravel(),
        },
        schema=MEMBERS,
    ).with_columns(pl.col("share").fill_nan(None))


def importance_table(
    found: Explained, one: Member, features: Sequence[str], dictionary: Mapping[str, Mapping[str, Any]]
) -> pl.DataFrame:
    """How much each feature moves the score on the whole: mean absolute SHAP contribution by population."""
    parts = [pl.DataFrame(schema=IMPORTANCE)]
    for population in POPULATIONS:
        values = found.shap[(found.rows.keys["population"] == population).to_numpy()]
        if not values.size:
            continue
        size = np.abs(values).mean(axis=0)
        order = np.argsort(-size, kind="stable")
        entries = [dictionary.get(features[i], {}) for i in order]
        parts.append(
            pl.DataFrame(
                {
                    "population": [population] * len(order),
                    "detector": [one.detector] * len(order),
                    "unit": [one.unit] * len(order),
                    "feature": [features[i] for i in order],
                    "kpi_number": [entry.get("kpi_number") for entry in entries],
                    "kpi": [entry.get("kpi") for entry in entries],
                    "family": [entry.get("family") for entry in entries],
                    "mean_abs_contribution": size[order],
                    "mean_contribution": values.mean(axis=0)[order],
                    "share": size[order] / (size.sum() or 1.0),
                    "rank": np.arange(1, len(order) + 1),
                },
                schema=IMPORTANCE,
            )
        )
    return pl.concat(parts)


def importance_by_kpi(importance: pl.DataFrame) -> pl.DataFrame:
    """The same by number of KPI, as sums over its features.

    Returns:
        population, kpi_number, kpi (the shortest title, where parts of a KPI have their own), features,
        mean_abs_contribution, share; largest first.
    """
    return (
        importance.sort("population", "kpi_number", pl.col("kpi").str.len_chars(), "rank", nulls_last=True)
        .group_by("population", "kpi_number", maintain_order=True)
        .agg(
            pl.col("kpi").first(),
            pl.len().cast(pl.Int64).alias("features"),
            pl.col("mean_abs_contribution").sum(),
            pl.col("share").sum(),
        )
        .sort("population", "share", "kpi_number", descending=[False, True, False])
    )


def population_estimates(explainability: pl.DataFrame, settings: ExplainParams) -> dict[str, dict[str, Any]]:
    """Means of every component on alerts, on random non-alerts, and of both with equal weight, with intervals.

    Explanations are measured on both, because measures taken on alerts alone depend on the score that chose them.
    Intervals come from samples of whole accounts.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in (*POPULATIONS, "both")}
    for column in (*COMPONENTS, *BESIDE):
        pairs = {
            population: _mean_and_draws(explainability.filter(pl.col("population") == population), column, settings)
            for population in POPULATIONS
        }
        for population, (mean, draws, n) in pairs.items():
            found[population][column] = metrics.estimate(mean, draws, settings.interval, n).as_dict()
        means, draws_of, counts = zip(*pairs.values(), strict=True)
        half = metrics.estimate(float(np.mean(means)), np.mean(draws_of, axis=0), settings.interval, sum(counts))
        found["both"][column] = half.as_dict()
    return found


def quality_document(
    explainability: pl.DataFrame, one: Member | None, *, sanity: Mapping[str, Any], settings: ExplainParams
) -> dict[str, Any]:
    """`quality.json`: KPI 15 as estimates, what each means, which rows failed the gate, and the sanity checks."""
    failed = explainability.filter(pl.col("additivity") == 0)
    worst = explainability["additivity_residual"].max()
    return {
        "detector": one.detector if one else None,
        "method": one.method if one else None,
        "unit": one.unit if one else None,
        "interval": settings.interval,
        "exponents": dict(quality.EXPONENTS),
        "floor": quality.FLOOR,
        "additivity_tolerance": quality.ADDITIVITY_TOLERANCE,
        "additivity_failures": failed.sort("transaction_id")["transaction_id"].to_list(),
        "largest_additivity_residual": worst,
        "populations": population_estimates(explainability, settings),
        "sanity": dict(sanity),
        "definitions": definitions(settings),
    }


def definitions(settings: ExplainParams) -> dict[str, str]:
    """What each component is, in words, with the numbers that were used."""
    return {
        "index": "100 x additivity x product of component^exponent, components floored at "
        f"{quality.FLOOR}; the mean over rows",
        "additivity": "gate, 0 or 1: |published score - base - sum of SHAP contributions| < "
        f"{quality.ADDITIVITY_TOLERANCE:g}",
        "faithfulness": "area under what is left of the prediction while features are deleted, most important first, "
        f"against {settings.random_orders} random orders: (random - deletion) / random, clipped to [0, 1]; deleted "
        f"values come from the {settings.neighbours} training rows most alike in the features kept",
        "stability": f"mean Jaccard overlap of the {quality.TOP} largest features under {settings.perturbations} "
        f"perturbations of {settings.perturbation_noise:g} median absolute deviations whose prediction stays within "
        f"{settings.same_prediction_within:g}; a row without any such perturbation has none, and no index",
        "agreement": f"share of the {quality.TOP} largest features that SHAP and LIME have in common",
        "sparsity": "1 - ln(k) / ln(p), k of p features hold 80 % of all absolute contributions",
        "confidence": "1 - binary entropy of the ensemble's calibrated probability; not a measure of clarity",
        "documented": "share of absolute contributions on features with a written formula",
    }


def in_words(estimate: Mapping[str, Any]) -> str:
    """An estimate with its interval, such as `0.736 (0.713 to 0.758)`."""
    if estimate["estimate"] is None:
        return "n/a"
    if estimate["low"] is None:
        return f"{estimate['estimate']:.3f}"
    return "{estimate:.3f} ({low:.3f} to {high:.3f})".format(**estimate)


def _mean_and_draws(rows: pl.DataFrame, column: str, settings: ExplainParams) -> tuple[float, Floats, int]:
    known = rows.filter(pl.col(column).is_not_null())
    if not known.height:
        return float("nan"), np.full(settings.bootstrap_rounds, np.nan), 0
    values = known[column].to_numpy()
    draws = quality.bootstrap_means(
        values, known["account_id"].to_list(), rounds=settings.bootstrap_rounds, seed=settings.seed
    )
    return float(values.mean()), draws, known.height
