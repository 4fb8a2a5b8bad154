"""Curves for figures and tables for people: by threshold, budget, cost, typology, day and case."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from reperform import metrics
from reperform.evaluate.detection import (
    ENSEMBLE,
    RECALLS,
    Period,
    Scored,
    average_precision_difference,
    event_table,
    finite,
)
from reperform.metrics import Bools, Estimate, Floats
from reperform.params import EvaluateParams

CURVE_POINTS = 400
CASES = 10
BANDS = ((0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), (2.0, 4.0))


def cost_table(period: Period, every: Sequence[Scored], costs: Iterable[float]) -> list[dict[str, Any]]:
    """Cost and savings of every detector for every cost of one review.

    `attainable` takes the best threshold with the truth in hand; `decided` the rows that were flagged;
    `by_probability` flags a row where its probability times its amount exceeds the cost of looking at it. Savings have
    day-block intervals (low, high).
    """
    result = []
    for scored in every if period.y.any() else ():
        for cost in costs:
            least, alerts = metrics.least_cost(period.y, scored.score, period.amount, cost)
            chosen = {"attainable": _top(scored.score, alerts), "decided": scored.alert}
            if scored.probability is not None:
                chosen["by_probability"] = scored.probability * period.amount > cost
            for name, mask in chosen.items():
                spent = least if name == "attainable" else metrics.review_costs(period.y, mask, period.amount, cost)
                saved = _savings(period, mask, spent, cost)
                result.append(
                    {
                        "detector": scored.detector,
                        "review_cost": float(cost),
                        "policy": name,
                        "alerts": int(mask.sum()),
                        "cost": spent,
                        "savings": saved.estimate,
                        "low": saved.low,
                        "high": saved.high,
                    }
                )
    return result


def _top(score: Floats, alerts: int) -> Bools:
    """The rows at or above a threshold that this number of rows reach."""
    return score >= np.sort(score)[-alerts] if alerts else np.zeros(score.size, dtype=np.bool_)


def _savings(period: Period, alert: Bools, spent: float, cost: float) -> Estimate:
    """Savings of a decision with their day-block interval; the decision, also its threshold, is kept in every round."""
    missed, lost = (period.per_day(period.amount * rows) for rows in (period.y & ~alert, period.y))
    reviews, rows = period.per_day(alert), period.per_day(np.ones(period.y.size))
    spent_rounds = period.weights @ (missed + cost * reviews)
    baseline = np.minimum(period.weights @ lost, cost * (period.weights @ rows))
    rounds = metrics.ratio(baseline - spent_rounds, baseline)
    value = metrics.savings(spent, period.y, period.amount, cost)
    return metrics.estimate(value, rounds, period.level, period.y.size)


def curves(period: Period, every: Sequence[Scored], costs: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Curves for figures, at most 400 points each: detector, curve, x, y.

    `precision_recall` (recall, precision), `recall_by_alert_share`, `roc` (false positive rate, recall),
    `savings_<policy>` (cost of one review, savings), `reliability` (predicted, observed).
    """
    parts = [_empty_curves()]
    for scored in every if period.y.any() else ():
        totals = scored.ranked.totals
        found = (totals.hits_above + totals.hits)[:, 0]
        flagged = (totals.above + totals.level)[:, 0]
        positives, n = float(period.y.sum()), float(period.y.size)
        points = {
            "precision_recall": (found / positives, found / flagged),
            "recall_by_alert_share": (flagged / n, found / positives),
            "roc": ((flagged - found) / max(n - positives, 1), found / positives),
        }
        if scored.probability is not None:
            bins = metrics.reliability(period.y, scored.probability)
            points["reliability"] = tuple(np.array([b[key] for b in bins]) for key in ("predicted", "observed"))  # type: ignore[assignment]
        parts += [_curve(scored.detector, name, x, y) for name, (x, y) in points.items()]
    for record in costs:
        parts.append(
            _curve(
                record["detector"],
                f"savings_{record['policy']}",
                np.array([record["review_cost"]]),
                np.array([record["savings"] if record["savings"] is not None else np.nan]),
            )
        )
    return pl.concat(parts).drop_nans("y")


def typology_table(period: Period, every: Sequence[Scored], known_labels: pl.DataFrame) -> list[dict[str, Any]]:
    """Recall of each typology among the rows looked at, by transaction and by event.

    Args:
        period: the rows.
        every: detectors.
        known_labels: labels confirmed before the test: a typology without one was never shown to any detector.
    """
    shown = known_labels.filter("is_anomaly")["typology"].value_counts()
    seen = dict(shown.select("typology", "count").iter_rows())
    names = period.rows.filter("is_anomaly")["typology"].fill_null("anomaly").unique().sort()
    of_row = period.rows["typology"].fill_null("anomaly")
    result = []
    for scored in every:
        events = event_table(period, scored.alert).with_columns(pl.col("typology").fill_null("anomaly"))
        for name in names:
            inside = (of_row == name).to_numpy() & period.y
            found, n = int((inside & scored.alert).sum()), int(inside.sum())
            low, high = metrics.wilson(found, n)
            of_type = events.filter(pl.col("typology") == name)
            result.append(
                {
                    "detector": scored.detector,
                    "typology": name,
                    "n": n,
                    "found": found,
                    "recall": found / n,
                    "low": low,
                    "high": high,
                    "events": of_type.height,
                    "events_found": of_type["found_at"].is_not_null().sum(),
                    "labels_before_test": int(seen.get(name, 0)),
                }
            )
    return result


def day_table(period: Period, every: Sequence[Scored]) -> list[dict[str, Any]]:
    """Alerts, hits and anomalies on each day, per detector."""
    days = period.rows["booked_at"].dt.date().unique().sort().to_list()
    rows, anomalies = period.per_day(np.ones(period.y.size)), period.per_day(period.y)
    return [
        {
            "detector": scored.detector,
            "day": str(day),
            "n": int(rows[i]),
            "anomalies": int(anomalies[i]),
            "alerts": int(alerts[i]),
            "hits": int(hits[i]),
        }
        for scored in every
        for alerts, hits in [(period.per_day(scored.alert), period.per_day(scored.alert & period.y))]
        for i, day in enumerate(days)
    ]


def budget_table(period: Period, every: Sequence[Scored], settings: EvaluateParams) -> list[dict[str, Any]]:
    """What each share of alerts finds, and how many alerts each recall takes."""
    result = []
    for scored in every:
        totals = scored.ranked.totals
        for share in settings.alert_shares:
            alerts = share * period.y.size
            recall = finite(metrics.recall_at_alerts(totals, alerts))
            hits = None if recall is None else recall * float(period.y.sum())
            result.append(
                {
                    "detector": scored.detector,
                    "given": f"{100 * share:g} % of rows",
                    "alerts": alerts,
                    "alert_share": share,
                    "recall": recall,
                    "precision": None if hits is None or not alerts else hits / alerts,
                }
            )
        for recall_wanted in RECALLS:
            needed = finite(metrics.alerts_at_recall(totals, recall_wanted))
            result.append(
                {
                    "detector": scored.detector,
                    "given": f"{100 * recall_wanted:g} % of anomalies",
                    "alerts": needed,
                    "alert_share": None if needed is None else needed / period.y.size,
                    "recall": None if needed is None else recall_wanted,
                    "precision": None if not needed else recall_wanted * float(period.y.sum()) / needed,
                }
            )
    return result


def comparison_table(period: Period, every: Sequence[Scored]) -> list[dict[str, Any]]:
    """Average precision of the ensemble minus each detector's, by paired block bootstrap."""
    ensemble = next((scored for scored in every if scored.detector == ENSEMBLE), None)
    if ensemble is None:
        return []
    return [
        {"better": ENSEMBLE, "than": other.detector} | average_precision_difference(period, ensemble, other).as_dict()
        for other in every
        if other is not ensemble
    ]


def threshold_bands(period: Period, scored: Scored) -> list[dict[str, Any]]:
    """How many anomalies lie just above and below the line: bands of rank, in multiples of the number of alerts."""
    budget = int(scored.alert.sum())
    order = np.argsort(-scored.score, kind="stable")
    result = []
    for start, end in BANDS if budget else ():
        rows = order[int(start * budget) : int(end * budget)]
        hits = int(period.y[rows].sum())
        low, high = metrics.wilson(hits, rows.size)
        result.append(
            {
                "from_rank": int(start * budget) + 1,
                "to_rank": int(start * budget) + rows.size,
                "is_alert": end <= 1,
                "n": int(rows.size),
                "anomalies": hits,
                "share": hits / rows.size if rows.size else None,
                "low": low,
                "high": high,
            }
        )
    return result


def case_table(period: Period, scored: Scored) -> list[dict[str, Any]]:
    """Cases to review: the false alarms with the highest scores, and the missed anomalies with the largest amounts."""
    rows = period.rows.with_columns(
        score=pl.Series(scored.score, dtype=pl.Float64), alert=pl.Series(scored.alert, dtype=pl.Boolean)
    )
    alarms = rows.filter(pl.col("alert") & ~pl.col("is_anomaly")).sort(
        ["score", "transaction_id"], descending=[True, False]
    )
    misses = rows.filter(~pl.col("alert") & pl.col("is_anomaly")).sort(
        ["amount_base", "transaction_id"], descending=[True, False]
    )
    columns = ("transaction_id", "account_id", "entity_id", "amount_base", "score", "typology")
    return [
        {"case": case, "day": str(row["booked_at"].date()), **{name: row[name] for name in columns}}
        for case, frame in (("false alarm", alarms), ("missed", misses))
        for row in frame.head(CASES).to_dicts()
    ]


def alert_table(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """The ensemble's alerts in the test period, highest score first, with their truth (null if unknown).

    Args:
        rows: every test row with is_anomaly and typology, also those of unknown truth.
        scores: the ensemble's, as `schemas.SCORES`.
    """
    chosen = scores.filter(pl.col("is_alert").fill_null(value=False)).select("transaction_id", "score", "probability")
    joined = rows.join(chosen, on="transaction_id", how="inner", maintain_order="left")
    ranked = joined.sort(["score", "booked_at", "transaction_id"], descending=[True, False, False])
    return ranked.with_columns(
        day=pl.col("booked_at").dt.date(), rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    ).select(
        "transaction_id",
        "booked_at",
        "day",
        "account_id",
        "counterparty_id",
        "entity_id",
        "amount_base",
        "score",
        "probability",
        "rank",
        "is_anomaly",
        "typology",
    )


def outcome_table(rows: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Every test row with the ensemble's score and what became of it.

    Returns:
        transaction_id, booked_at, entity_id, amount_base, score, probability, is_alert, is_anomaly, typology, outcome
        (caught, missed, false alarm, quiet; null where the truth is unknown).
    """
    joined = rows.join(
        scores.select("transaction_id", "score", "probability", "is_alert"),
        on="transaction_id",
        how="inner",
        maintain_order="left",
    ).with_columns(pl.col("is_alert").fill_null(value=False))
    flagged = pl.when("is_alert")
    outcome = (
        pl.when("is_anomaly")
        .then(flagged.then(pl.lit("caught")).otherwise(pl.lit("missed")))
        .when(~pl.col("is_anomaly"))
        .then(flagged.then(pl.lit("false alarm")).otherwise(pl.lit("quiet")))
    )
    return joined.select(
        "transaction_id",
        "booked_at",
        "entity_id",
        "amount_base",
        "score",
        "probability",
        "is_alert",
        "is_anomaly",
        "typology",
        outcome.alias("outcome"),
    )


def trial_table(documents: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every trial of every detector's search, also the poor ones.

    Args:
        documents: `trials.json` by detector: a list of trials, or a document that holds one under `trials`.
    """
    result = []
    for detector, document in sorted(documents.items()):
        trials = document.get("trials", []) if isinstance(document, Mapping) else document
        for number, trial in enumerate(trials):
            chosen = trial.get("parameters", trial.get("params", {}))
            result.append(
                {
                    "detector": detector,
                    "number": trial.get("number", number),
                    "value": trial.get("value"),
                    "state": trial.get("state"),
                    "parameters": ", ".join(f"{name}={chosen[name]}" for name in sorted(chosen)),
                }
            )
    return result


def _curve(detector: str, name: str, x: Floats, y: Floats) -> pl.DataFrame:
    keep = np.unique(np.linspace(0, max(x.size - 1, 0), min(x.size, CURVE_POINTS)).round().astype(np.int64))
    points = {"x": np.asarray(x)[keep], "y": np.asarray(y)[keep]}
    named = [pl.lit(detector).alias("detector"), pl.lit(name).alias("curve")]
    return pl.DataFrame(points).select(*named, "x", "y")


def _empty_curves() -> pl.DataFrame:
    return pl.DataFrame(schema={"detector": pl.String, "curve": pl.String, "x": pl.Float64, "y": pl.Float64})
