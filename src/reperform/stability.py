"""Do alerts depend on luck: fit the same detector on the same rows from several seeds, and compare what it flags."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from reperform import evaluate, metrics, params, rescore, schemas, split, studies, tables
from reperform.detectors.base import FloatArray
from reperform.errors import ReperformError, nearest
from reperform.metrics import Bools
from reperform.params import EvaluateParams, SplitParams, StudiesParams, TrainParams
from reperform.train import Rows, fitted, scored

NAME = "stability"


def agreement(scores: Sequence[FloatArray], y: Bools, share: float, seed: int) -> dict[str, Any]:
    """How alike the scores of several fits are.

    Args:
        scores: one array per fit, shape (n,).
        y: anomalies, shape (n,).
        share: of the rows that are looked at.
        seed: of the order within equal scores.

    Returns:
        jaccard (mean, lowest: of two fits' alerts, those that both raised over those that either raised),
        alerts_in_all_share (of the alerts that any fit raised), spearman (mean, lowest rank correlation), and average
        precision and recall over fits (mean, lowest, highest).
    """
    alerts = [metrics.top_rows(score, round(share * score.size), seed) for score in scores]
    pairs = [_jaccard(one, other) for one, other in combinations(alerts, 2)]
    ranks = [float(spearmanr(one, other).statistic) for one, other in combinations(scores, 2)]
    either, both = np.logical_or.reduce(alerts), np.logical_and.reduce(alerts)
    precision = [float(metrics.average_precision(metrics.ranking(y, score).totals)[0]) for score in scores]
    recall = [float(metrics.ratio((alert & y).sum(), y.sum())) for alert in alerts]
    return {
        "seeds": len(scores),
        "rows": int(y.size),
        "alert_share": share,
        "jaccard": _spread(pairs),
        "alerts_in_all_share": float(both.sum() / max(either.sum(), 1)),
        "spearman": _spread(ranks),
        "average_precision": _spread(precision),
        "recall": _spread(recall),
    }


def _jaccard(one: Bools, other: Bools) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    usable = [value for value in values if np.isfinite(value)]
    if not usable:
        return {"mean": None, "low": None, "high": None}
    return {"mean": float(np.mean(usable)), "low": min(usable), "high": max(usable)}


def refitted(name: str, rows: Rows, labels: pl.DataFrame, calendar: SplitParams, seed: int) -> pl.DataFrame:
    """Scores of the test by a final fit from another seed: transaction_id, score."""
    _, final = split.fits(calendar)
    parameters = tables.read_json(f"train/{name}", "fit")["parameters"]
    one = fitted(name, parameters, rows, labels, fit=final, maturity_days=calendar.label_maturity_days, seed=seed)
    if one.detector is None:
        raise ReperformError(f"Detector {name} has nothing to learn from.", fix="run it on data with transactions")
    wanted = rows.between(calendar.test_start, calendar.test_end)
    keys = rows.keys.filter(pl.Series(wanted))
    return keys.select("transaction_id", score=pl.Series(scored(one.detector, rows, wanted)))


def main(names: Sequence[str] = (), seeds: int | None = None) -> int:
    """Run the study on the project's own outputs, keep it in `reports/studies/stability.json`, and print it."""
    settings, calendar, training = params.load(StudiesParams), params.load(SplitParams), params.load(TrainParams)
    chosen = list(names) or [name for name in settings.seeded if name in training.detectors]
    for name in chosen:
        if name not in training.detectors:
            raise ReperformError(
                f"Detector {name!r} is not trained.",
                expected=f"some of {', '.join(training.detectors)}",
                got=name,
                fix=nearest(name, training.detectors),
            )
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    test, _ = evaluate.rows_of_test(params.load(EvaluateParams), calendar, labels)
    known = test.filter(pl.col("is_anomaly").is_not_null()).select("transaction_id", "is_anomaly")
    y = known["is_anomaly"].to_numpy().astype(np.bool_)
    found = []
    for name in chosen:
        features = tables.read_json(f"train/{name}", "fit")["features"]
        rows = rescore.rows_of(rescore.read_features(features), features)
        scores = [
            known.join(
                refitted(name, rows, labels, calendar, training.seed + number),
                on="transaction_id",
                how="left",
                maintain_order="left",
            )["score"].to_numpy()
            for number in range(seeds or settings.seeds)
        ]
        found.append({"detector": name} | agreement(scores, y, settings.alert_share, settings.seed))
        print(line(found[-1]), flush=True)
    studies.write(NAME, {"detectors": found}, chosen)
    return 0


def line(one: Mapping[str, Any]) -> str:
    """One detector's stability in a line."""
    ap, jaccard = one["average_precision"], one["jaccard"]
    return (
        f"{one['detector']}, {one['seeds']} seeds: alerts overlap by {jaccard['mean']:.2f} "
        f"(lowest pair {jaccard['low']:.2f}); {one['alerts_in_all_share']:.0%} of all alerts are raised by every fit; "
        f"average precision {ap['low']:.3f} to {ap['high']:.3f}"
    )
