"""Why was this alert raised, and how far can the explanation be trusted? SHAP, LIME, receipts and KPI 15."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import detectors, paths, schemas, split, tables
from reperform import params as parameters
from reperform.explain import receipts, results, sanity
from reperform.explain.explained import Explained, Member, Rows, chosen, explain, member, seed_of
from reperform.explain.quality import Floats
from reperform.params import ExplainParams, SplitParams

# The truth stands beside the alerts for whoever measures detection. It is never read here.
ALERT_COLUMNS = ["transaction_id", "score", "probability", "rank"]
FACTS = [
    "transaction_id",
    "booked_at",
    "known_at",
    "account_id",
    "counterparty_id",
    "entity_id",
    "direction",
    "amount",
    "currency",
    "amount_base",
    "channel",
    "country",
    "source_file",
    "source_record",
]


@dataclass(frozen=True)
class Result:
    """What the notebook shows; every part is also a file in `data/explain/`."""

    receipts: dict[str, Any]
    quality: dict[str, Any]
    attributions: pl.DataFrame
    explainability: pl.DataFrame
    importance: pl.DataFrame
    members: pl.DataFrame


@dataclass(frozen=True)
class Training:
    """What the explained member's final fit may learn from.

    Args:
        x: shape (m, p), NaN for unknown.
        y: shape (m,), 1 anomaly, 0 normal, -1 unknown when the fit was made, or not mature.
    """

    x: Floats
    y: NDArray[np.int8]


def background_of(training: Floats, rows: int, seed: int) -> Floats:
    """Shape (b, p): training rows drawn at random, each at most once, in order of time."""
    draw = np.random.default_rng(seed)
    return training[np.sort(draw.choice(len(training), size=min(rows, len(training)), replace=False))]


def others_of(scores: pl.DataFrame, rows: int, seed: int) -> pl.DataFrame:
    """Random test transactions without an alert, sorted by id.

    Args:
        scores: the ensemble's, as `schemas.SCORES`.
        rows: how many are wanted.
        seed: of the draw.

    Returns:
        transaction_id, probability.
    """
    quiet = scores.filter((pl.col("split") == "test") & ~pl.col("is_alert") & pl.col("transaction_id").is_not_null())
    quiet = quiet.select("transaction_id", "probability").sort("transaction_id")
    picked = np.random.default_rng(seed).choice(quiet.height, size=min(rows, quiet.height), replace=False)
    return quiet.select(pl.all().gather(np.sort(picked).tolist()))


def cases(
    alerts: pl.DataFrame,
    found: Explained,
    one: Member,
    *,
    explainability: pl.DataFrame,
    members: pl.DataFrame,
    facts: pl.DataFrame,
    shift: Floats,
    intercept: float,
    threshold: float,
    n_alerts: int,
) -> list[receipts.Case]:
    """Everything that receipts say, alert by alert in order of rank.

    Args:
        alerts: transaction_id, score, probability, rank of those that are explained.
        found: contributions; alerts come first, in the same order.
        one: the explained member.
        explainability: KPI 15 per row, in the order of `found`.
        members: contributions of members.
        facts: transactions, at least those of the alerts.
        shift: shape (p,), how much more each feature moves random transactions than it did in training.
        intercept: of the ensemble.
        threshold: of the ensemble.
        n_alerts: of all alerts, also those that are left out.
    """
    fact_of = {row["transaction_id"]: _plain(row) for row in facts.iter_rows(named=True)}
    parts = {
        str(key[0]): part.drop("transaction_id").to_dicts()
        for key, part in members.group_by("transaction_id", maintain_order=True)
    }
    trust = explainability.select(*results.COMPONENTS, "index_low", "index_high", *results.BESIDE).to_dicts()
    return [
        receipts.Case(
            transaction=fact_of[alert["transaction_id"]],
            alert={key: alert[key] for key in ("score", "probability", "rank")}
            | {"threshold": threshold, "alerts": n_alerts},
            members=parts.get(alert["transaction_id"], []),
            intercept=intercept,
            detector=one.detector,
            unit=one.unit,
            score=float(found.rows.published[i]),
            base=float(found.base[i]),
            residual=float(found.residual[i]),
            is_additive=bool(found.is_additive[i]),
            values=found.rows.x[i],
            shap=found.shap[i],
            lime=found.lime.contributions[i],
            shift=shift,
            fidelity=float(found.lime.fidelity[i]),
            trust=trust[i],
        )
        for i, alert in enumerate(alerts.iter_rows(named=True))
    ]


def run(settings: ExplainParams) -> Result:
    """Explain every alert of the test period, and measure the explanations.

    Writes `data/explain/{attributions,explainability,importance,importance_by_kpi,members}.parquet` and
    `data/explain/{receipts,quality}.json`; returns what the notebook shows.
    """
    every = tables.read_table("evaluate", "alerts", ALERT_COLUMNS).sort("rank")
    alerts = every.head(settings.max_alerts)
    scores = schemas.checked(tables.read_table("ensemble", "scores"), schemas.SCORES)
    keys = _keys(alerts, others_of(scores, settings.non_alerts, settings.seed))
    model = tables.read_json("ensemble", "model")
    name = chosen({one["detector"]: one["weight"] for one in model["members"]})
    folder = paths.data("train") / str(name) / "model"
    if name is None or not keys.height or not folder.is_dir():
        return _saved(_nothing(every.height, settings))
    dictionary = {str(entry["name"]): entry for entry in tables.read_json("featurize", "dictionary")}
    fit = tables.read_json(f"train/{name}", "fit")
    features: list[str] = fit["features"]
    training = _training(features)
    background = background_of(training.x, settings.background_rows, settings.seed)
    one = member(name, detectors.load(folder), background, settings)
    found = explain(one, _rows(keys, name, features, settings), background, settings)
    explainability = results.explainability_table(found, one, results.documented(features, dictionary), settings)
    known = training.y >= 0
    moved = sanity.shifts(found, one, background)
    checks = {
        "permuted_labels": sanity.permuted_labels(
            found, one, fit, x=training.x[known], y=training.y[known], background=background, settings=settings
        ),
        "lime_seeds": sanity.lime_seeds(found, one, background, settings),
        "shared_shift": sanity.shared_shift(found, moved, features, settings),
    }
    members = results.member_table(model, _member_scores(model, alerts["transaction_id"]))
    told = cases(
        alerts,
        found,
        one,
        explainability=explainability,
        members=members,
        facts=_facts(alerts["transaction_id"]),
        shift=moved.mean(axis=0) if len(moved) else np.full(len(features), np.nan),
        intercept=float(model["intercept"]),
        threshold=float(tables.read_json("ensemble", "thresholds")["detectors"]["ensemble"]["threshold"]),
        n_alerts=every.height,
    )
    usual = receipts.Reference.of(training.x)
    written = [receipts.receipt(case, features, dictionary, usual, top=settings.top_features) for case in told]
    return _saved(
        Result(
            receipts=receipts.document(written, detector=name, alerts=every.height),
            quality=results.quality_document(explainability, one, sanity=checks, settings=settings),
            attributions=results.attribution_table(found, one, features),
            explainability=explainability,
            importance=results.importance_table(found, one, features, dictionary),
            members=members,
        )
    )


def _keys(alerts: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    columns = ["transaction_id", "population", "probability"]
    both = [alerts.with_columns(population=pl.lit("alerts")), others.with_columns(population=pl.lit("non_alerts"))]
    return pl.concat([part.select(columns) for part in both])


def _rows(keys: pl.DataFrame, name: str, features: list[str], settings: ExplainParams) -> Rows:
    """The rows to explain with their features and published scores, in the order of `keys`."""
    wanted = keys["transaction_id"]
    lazy = tables.scan_table("featurize", "features").filter(pl.col("transaction_id").is_in(wanted.implode()))
    frame = lazy.select("transaction_id", "account_id", *features).collect()
    scores = _scores_of(name, wanted)
    joined = keys.join(frame, on="transaction_id", how="left", maintain_order="left")
    published = keys.join(scores, on="transaction_id", how="left", maintain_order="left")["score"].to_numpy()
    seeds = [seed_of(settings.seed, transaction_id) for transaction_id in wanted]
    x = _matrix(joined, features)
    return Rows(joined.select("transaction_id", "account_id", "population", "probability"), x, published, seeds)


def _training(features: list[str]) -> Training:
    """Rows that the final fit may learn from, with what it may know of them."""
    calendar = parameters.load(SplitParams)
    _, final = split.fits(calendar)
    window = pl.col("booked_at").is_between(
        pl.lit(final.learns_from, schemas.UTC_US), pl.lit(final.learns_until, schemas.UTC_US), closed="left"
    )
    keys = ["transaction_id", "booked_at"]
    frame = tables.scan_table("featurize", "features").filter(window).select(*keys, *features).collect()
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    days = calendar.label_maturity_days
    known = split.learning_labels(frame.select(keys), labels, known_by=final.known_by, maturity_days=days)["y"]
    # As in stage train: on days that are not mature only anomalies are known, and dates would tell them from the rest.
    ripe = frame["booked_at"] <= final.known_by - timedelta(days=days)
    y = np.where(ripe.to_numpy(), known.fill_null(-1).to_numpy(), -1)
    return Training(_matrix(frame, features), y.astype(np.int8))


def _matrix(frame: pl.DataFrame, features: list[str]) -> Floats:
    columns = frame.select(pl.col(name).cast(pl.Float64) for name in features)
    return np.ascontiguousarray(columns.to_numpy().reshape(frame.height, len(features)), dtype=np.float64)


def _scores_of(name: str, wanted: pl.Series) -> pl.DataFrame:
    lazy = tables.scan_table(f"train/{name}", "scores").filter(pl.col("transaction_id").is_in(wanted.implode()))
    return lazy.select("transaction_id", "score").collect()


def _member_scores(model: Mapping[str, Any], wanted: pl.Series) -> pl.DataFrame:
    wide = wanted.to_frame()
    for one in model["members"]:
        scores = _scores_of(one["detector"], wanted).rename({"score": one["detector"]})
        wide = wide.join(scores, on="transaction_id", how="left", maintain_order="left")
    return wide


def _facts(wanted: pl.Series) -> pl.DataFrame:
    lazy = tables.scan_table("validate", "transactions").filter(pl.col("transaction_id").is_in(wanted.implode()))
    return lazy.select(FACTS).collect()


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _nothing(n_alerts: int, settings: ExplainParams) -> Result:
    empty = pl.DataFrame(schema=results.EXPLAINABILITY)
    return Result(
        receipts=receipts.document([], detector=None, alerts=n_alerts),
        quality=results.quality_document(empty, None, sanity=sanity.empty(), settings=settings),
        attributions=pl.DataFrame(schema=results.ATTRIBUTIONS),
        explainability=empty,
        importance=pl.DataFrame(schema=results.IMPORTANCE),
        members=pl.DataFrame(schema=results.MEMBERS),
    )


def _saved(result: Result) -> Result:
    tables.write_table(result.attributions, "explain", "attributions")
    tables.write_table(result.explainability, "explain", "explainability")
    tables.write_table(result.importance, "explain", "importance")
    tables.write_table(results.importance_by_kpi(result.importance), "explain", "importance_by_kpi")
    tables.write_table(result.members, "explain", "members")
    tables.write_json(result.receipts, "explain", "receipts")
    tables.write_json(result.quality, "explain", "quality")
    return result
