"""Stack the detectors on validation scores; calibrate; set the alert threshold; score filings beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import average_precision_score

from reperform import detectors, params, schemas, split, tables
from reperform.detectors import filings
from reperform.errors import ReperformError
from reperform.params import EnsembleParams, SplitParams

Floats = NDArray[np.float64]
LEAST_ANOMALIES = 10
ISOTONIC_FROM = 1000  # anomalies; with fewer, the steps of an isotonic curve follow single labels
SMOOTHED_BELOW = 100  # anomalies
RIDGE = 1e-3
TAIL_KNOTS = 256
BEYOND_KNOTS = 11  # the last one is a thousand times as far from the median as the highest validation score
ANY_RULE = 1.0
FIRST, FINAL = "first", "final"


@dataclass(frozen=True)
class Scale:
    """Puts a detector's scores on a scale that members share; rising, so that it keeps a detector's order.

    Between knots the scale is linear, and beyond the outer ones it goes on with their slope, so that no two scores
    become equal.

    Args:
        scores: knots, strictly rising.
        values: their places on the common scale, strictly rising.
    """

    scores: Floats
    values: Floats

    def __call__(self, scores: Floats) -> Floats:
        """Places on the common scale: same shape."""
        inner = np.interp(scores, self.scores, self.values)
        low, high = self._slopes()
        below, above = np.minimum(scores - self.scores[0], 0), np.maximum(scores - self.scores[-1], 0)
        return np.asarray(inner + low * below + high * above)

    def told(self) -> dict[str, list[float]]:
        """The knots, for JSON."""
        return {"scores": self.scores.tolist(), "values": self.values.tolist()}

    def _slopes(self) -> tuple[float, float]:
        if len(self.scores) == 1:
            return 1.0, 1.0
        rise, run = np.diff(self.values), np.diff(self.scores)
        return float(rise[0] / run[0]), float(rise[-1] / run[-1])


def rarity_scale(scores: Floats) -> Scale:
    """-log10 of the share of validation rows with such a score or a higher one, for scores without a unit.

    Above the highest validation score it rises by log10(1 + excess / range), range from the median to that score: the
    final fit now and then gives an error ten times as large as any before, and going on with the last slope such a row
    outweighed every other member (on the demo world this cost the ensemble its lead over its best member).

    Args:
        scores: of the validation rows, shape (n,), n at least 1.
    """
    ordered = np.sort(scores)
    n = len(ordered)
    tail = np.unique(np.round(np.geomspace(1, n, TAIL_KNOTS)).astype(np.int64))
    at = np.unique(np.concatenate([n - tail, np.linspace(0, n - 1, min(n, TAIL_KNOTS)).astype(np.int64)]))
    knots = np.unique(ordered[at])
    above = n - np.searchsorted(ordered, knots, side="left")
    excess = (knots[-1] - np.median(ordered)) * (2.0 ** np.arange(1, BEYOND_KNOTS) - 1)
    beyond = np.arange(1, BEYOND_KNOTS) * np.log10(2)
    rising = np.diff(knots[-1] + excess, prepend=knots[-1]) > 0
    values = -np.log10(above / (n + 1))
    return Scale(np.append(knots, knots[-1] + excess[rising]), np.append(values, values[-1] + beyond[rising]))


def linear_scale(scores: Floats) -> Scale:
    """Standard deviations from the mean of the validation rows, for scores that are log odds already.

    Their rarity would squash them: among the rarest rows nearly all are anomalies, and the order there matters most.
    """
    mean, spread = float(np.mean(scores)), float(np.std(scores)) or 1.0
    return Scale(np.array([mean - spread, mean + spread]), np.array([-1.0, 1.0]))


def stacked(values: Floats, y: NDArray[Any]) -> tuple[Floats, float]:
    """Weights, none negative, and intercept of a logistic regression of y on the members' common scale.

    A member that ranks higher can only raise the margin; so the margin is a sum that people can read.

    Args:
        values: shape (n, members).
        y: shape (n,), 1 or 0.
    """
    rate = float(np.mean(y))

    def loss(theta: Floats) -> tuple[float, Floats]:
        margin = values @ theta[:-1] + theta[-1]
        cost = -np.mean(np.where(y == 1, log_expit(margin), log_expit(-margin))) + RIDGE * np.sum(theta[:-1] ** 2)
        slope = (expit(margin) - y) / len(y)
        return float(cost), np.append(values.T @ slope + 2 * RIDGE * theta[:-1], slope.sum())

    start = np.append(np.full(values.shape[1], 0.1), np.log(rate / (1 - rate)))
    bounds = [(0, None)] * values.shape[1] + [(None, None)]
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(found.x[:-1]), float(found.x[-1])


def crossed(values: Floats, y: NDArray[Any]) -> Floats:
    """Margins of each half of the validation, in time, from a stack that was fitted on the other half: shape (n,)."""
    margins = np.zeros(len(y))
    later = np.arange(len(y)) >= len(y) // 2
    for half in (later, ~later):
        if 0 < y[~half].sum() < (~half).sum():
            weights, intercept = stacked(values[~half], y[~half])
            margins[half] = values[half] @ weights + intercept
    return margins


def weighed(values: Floats, y: NDArray[Any], members: Sequence[str]) -> dict[str, Any]:
    """How the members are weighed, and why: a stack, its best member alone, or all alike.

    The stack has to rank the validation rows at least as well as its best member, both as fitted and when each half of
    the validation is judged by a stack from the other half.

    Args:
        values: shape (n, members): validation rows with a known label, in time order.
        y: shape (n,), 1 or 0.
        members: their names.
    """
    anomalies = int(y.sum())
    if not LEAST_ANOMALIES <= anomalies < len(y):
        why = f"{anomalies} known anomalies in validation, fewer than {LEAST_ANOMALIES}: all members weigh alike"
        equal = np.full(len(members), 1 / len(members))
        return {"method": "equal_weights", "why": why, "weights": equal, "intercept": 0.0, "average_precision": {}}
    single = [float(average_precision_score(y, column)) for column in values.T]
    best = int(np.argmax(single))
    weights, intercept = stacked(values, y)
    together = float(average_precision_score(y, values @ weights + intercept))
    honest = float(average_precision_score(y, crossed(values, y)))
    reached = dict(zip(members, single, strict=True)) | {"stack": together, "stack_crossed": honest}
    if min(together, honest) >= single[best]:
        why = f"the stack ranks validation at least as well as its best member, {members[best]}"
        return {"method": "stack", "why": why, "weights": weights, "intercept": intercept, "average_precision": reached}
    alone, start = stacked(values[:, [best]], y)
    weights = np.zeros(len(members))
    weights[best] = alone[0] or 1.0
    why = f"the stack ranks validation worse than {members[best]} alone: that member is used"
    return {"method": "best_member", "why": why, "weights": weights, "intercept": start, "average_precision": reached}


@dataclass(frozen=True)
class Calibration:
    """From margin to probability: a sigmoid's slope and intercept, or the knots of an isotonic curve.

    Args:
        method: `sigmoid` or `isotonic`.
        first: slope, or margins at the knots.
        second: intercept, or probabilities there.
    """

    method: str
    first: Floats
    second: Floats

    def __call__(self, margins: Floats) -> Floats:
        """Probabilities in [0, 1]: same shape."""
        if self.method == "isotonic":
            return np.asarray(np.interp(margins, self.first, self.second))
        return np.asarray(expit(self.first[0] * margins + self.second[0]))


def calibrated(margins: Floats, y: NDArray[Any], method: str) -> Calibration | None:
    """A calibration fitted on rows that have the true prevalence, or None with too few anomalies.

    Args:
        margins: shape (n,).
        y: shape (n,), 1 or 0.
        method: `isotonic`, `sigmoid`, or `auto`: isotonic from 1,000 anomalies.

    Source: Platt (1999), below 100 anomalies with his smoothed targets; Zadrozny and Elkan (2002).
    """
    anomalies = int(y.sum())
    if not LEAST_ANOMALIES <= anomalies < len(y):
        return None
    if method == "isotonic" or (method == "auto" and anomalies >= ISOTONIC_FROM):
        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(margins, y)
        return Calibration("isotonic", np.asarray(curve.X_thresholds_), np.asarray(curve.y_thresholds_))
    normal = len(y) - anomalies
    # Few labels may be told apart perfectly by chance: Platt moves them inwards. With many, it only flattens the curve.
    smoothed = np.where(y == 1, (anomalies + 1) / (anomalies + 2), 1 / (normal + 2))
    target = smoothed if anomalies < SMOOTHED_BELOW else y.astype(np.float64)

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = theta[0] * margins + theta[1]
        cost = -np.mean(target * log_expit(z) + (1 - target) * log_expit(-z))
        slope = (expit(z) - target) / len(y)
        return float(cost), np.array([slope @ margins, slope.sum()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(1e-6, None), (None, None)], method="L-BFGS-B")
    return Calibration("sigmoid", found.x[:1], found.x[1:])


def threshold_at(scores: Floats, share: float) -> float:
    """The lowest score that no more than this share of the rows reach; the highest if that is too many already."""
    ordered = np.sort(scores)[::-1]
    allowed = max(int(np.floor(share * len(ordered))), 1)
    candidate = ordered[allowed - 1]
    if (ordered >= candidate).sum() <= allowed:
        return float(candidate)
    higher = ordered[ordered > candidate]
    return float(higher[-1]) if higher.size else float(candidate)


def contributions(model: Mapping[str, Any], scores: Mapping[str, Floats], fit: str = FINAL) -> dict[str, Floats]:
    """What each member adds to the margin; with the intercept they sum to it.

    Args:
        model: as in `data/ensemble/model.json`.
        scores: each member's scores, shape (n,).
        fit: the members' fit that gave the scores: `final` from the end of training on, `first` before.
    """
    return {one["detector"]: one["weight"] * scale_in(one, fit)(scores[one["detector"]]) for one in model["members"]}


def scale_in(member: Mapping[str, Any], fit: str = FINAL) -> Scale:
    """The scale of a member, as in `data/ensemble/model.json`."""
    said = member["scale"] if fit == FINAL else member.get("first_scale", member["scale"])
    return Scale(np.array(said["scores"]), np.array(said["values"]))


def margins(model: Mapping[str, Any], scores: Mapping[str, Floats], fit: str = FINAL) -> Floats:
    """The ensemble's score, additive over members: shape (n,). Arguments as for `contributions`."""
    return np.asarray(sum(contributions(model, scores, fit).values()) + model["intercept"])


def fit(
    scores: pl.DataFrame, labels: pl.DataFrame, members: Sequence[str], calendar: SplitParams, calibration: str
) -> dict[str, Any]:
    """The model document: members with their scales and weights, intercept, calibration, and what it was fitted on.

    Args:
        scores: transaction_id, booked_at, split and one column for each member; one row or more.
        labels: as `schemas.LABELS`.
        members: names of the score columns.
        calendar: the windows; labels confirmed before the test are known.
        calibration: see `calibrated`.
    """
    reference = scores.filter(pl.col("split") == "validation")
    reference = reference if reference.height else scores
    scales = {name: _scale_of(name, reference[name].to_numpy()) for name in members}
    final = {name: _final_scale(name, scores, scales[name], calendar) for name in members}
    rows, y = _known(reference, labels, calendar, calendar.label_delay_days)
    values = np.stack([scales[name](rows[name].to_numpy()) for name in members], axis=1)
    chosen = weighed(values, y, members)
    model = {
        "method": chosen["method"],
        "why": chosen["why"],
        "intercept": chosen["intercept"],
        "final_from": f"{calendar.train_end:%Y-%m-%d}",
        "members": [
            {
                "detector": name,
                "weight": float(weight),
                "first_scale": scales[name].told(),
                "scale": final[name].told(),
            }
            for name, weight in zip(members, chosen["weights"], strict=True)
        ],
        "validation": {
            "rows": len(y),
            "anomalies": int(y.sum()),
            "average_precision": chosen["average_precision"],
            "labels": f"confirmed before {calendar.test_start:%Y-%m-%d}; unlabelled rows count as normal after "
            f"{calendar.label_delay_days} days",
        },
    }
    return model | {"calibration": _calibration(model, reference, labels, calendar, calibration)}


def _scale_of(name: str, scores: Floats) -> Scale:
    return linear_scale(scores) if detectors.kind_of(name).needs_labels else rarity_scale(scores)


def _final_scale(name: str, scores: pl.DataFrame, first: Scale, calendar: SplitParams) -> Scale:
    """The scale of the final fit: for scores without a unit, their rarity among the days between training and test.

    The same detector fitted on more rows gives other scores: on the first fit's scale a thousandth of the rows may
    become a hundredth. No label is needed, and all of these rows are there before the test.
    """
    between = (pl.col("booked_at") >= calendar.train_end) & (pl.col("booked_at") < calendar.test_start)
    rows = scores.filter(between)[name].to_numpy()
    return first if detectors.kind_of(name).needs_labels or not rows.size else rarity_scale(rows)


def _calibration(
    model: Mapping[str, Any], reference: pl.DataFrame, labels: pl.DataFrame, calendar: SplitParams, method: str
) -> dict[str, Any]:
    # Only days on which every label had time to arrive have the true prevalence.
    ripe = pl.lit(calendar.test_start, schemas.UTC_US) - pl.duration(days=calendar.label_maturity_days)
    rows, y = _known(reference.filter(pl.col("booked_at") <= ripe), labels, calendar, calendar.label_maturity_days)
    document: dict[str, Any] = {"rows": len(y), "anomalies": int(y.sum()), "method": "none"}
    curve = calibrated(_margins_of(model, rows), y, method) if len(y) else None
    if curve is None:
        return document | {"why": f"fewer than {LEAST_ANOMALIES} known anomalies on mature validation days"}
    names = ("margins", "probabilities") if curve.method == "isotonic" else ("slope", "intercept")
    return document | {"method": curve.method, names[0]: curve.first.tolist(), names[1]: curve.second.tolist()}


def _known(
    rows: pl.DataFrame, labels: pl.DataFrame, calendar: SplitParams, maturity_days: int
) -> tuple[pl.DataFrame, NDArray[np.int8]]:
    y = split.learning_labels(rows, labels, known_by=calendar.test_start, maturity_days=maturity_days)["y"]
    return rows.filter(y.is_not_null()), y.drop_nulls().to_numpy().astype(np.int8)


def _margins_of(model: Mapping[str, Any], rows: pl.DataFrame) -> Floats:
    """Margins of rows that either fit scored, by the day on which they were booked."""
    given = {one["detector"]: rows[one["detector"]].to_numpy() for one in model["members"]}
    from_final = rows["booked_at"] >= datetime.fromisoformat(model["final_from"]).replace(tzinfo=UTC)
    return np.where(from_final.to_numpy(), margins(model, given, FINAL), margins(model, given, FIRST))


def probabilities(model: Mapping[str, Any], margin: Floats) -> Floats | None:
    """Calibrated probabilities, or None where there were too few labels to calibrate."""
    told = model["calibration"]
    if told["method"] == "none":
        return None
    names = ("margins", "probabilities") if told["method"] == "isotonic" else ("slope", "intercept")
    return Calibration(told["method"], np.array(told[names[0]]), np.array(told[names[1]]))(margin)


def score_table(model: Mapping[str, Any], scores: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """The ensemble's scores, probabilities and alerts: as `schemas.SCORES`, in the order given.

    Args:
        model: as in `data/ensemble/model.json`.
        scores: transaction_id, booked_at, split and one column for each member.
        threshold: of an alert.
    """
    margin = _margins_of(model, scores)
    probability = probabilities(model, margin)
    return scores.select(
        "transaction_id",
        filing_id=pl.lit(None, pl.String),
        split="split",
        detector=pl.lit("ensemble"),
        score=pl.Series(margin),
        probability=pl.lit(None, pl.Float64) if probability is None else pl.Series(probability),
        is_alert=pl.Series(margin >= threshold),
    )


def thresholds(model: Mapping[str, Any], scores: pl.DataFrame, members: Sequence[str], share: float) -> dict[str, Any]:
    """For the ensemble and each member, the score that this share of validation rows reaches."""
    reference = scores.filter(pl.col("split") == "validation")
    reference = reference if reference.height else scores
    columns = {"ensemble": _margins_of(model, reference)} | {name: reference[name].to_numpy() for name in members}
    found = {name: _threshold(column, share) for name, column in columns.items()}
    if "rules" in found:
        # Weights are 1 or more and the tie-breaker is less: from 1 on, a rule has fired.
        found["rules"]["any_rule"] = ANY_RULE
    return {"alert_share": share, "detectors": found}


def _threshold(scores: Floats, share: float) -> dict[str, Any]:
    value = threshold_at(scores, share)
    return {"threshold": value, "rows": len(scores), "alerts": int((scores >= value).sum())}


def side_by_side(parts: Mapping[str, pl.DataFrame], booked: pl.DataFrame) -> pl.DataFrame:
    """Members' scores as columns.

    Args:
        parts: by detector, as `schemas.SCORES`, in time order.
        booked: transaction_id, booked_at.

    Raises:
        ReperformError: when members scored different rows.
    """
    names = list(parts)
    first = parts[names[0]]
    for name, part in parts.items():
        if not part["transaction_id"].equals(first["transaction_id"]):
            raise ReperformError(
                f"Detectors {names[0]} and {name} scored different rows.",
                expected=f"{first.height} rows in the same order",
                got=f"{part.height} rows",
                where=f"data/train/{name}/scores.parquet",
                fix="run `dvc repro train`",
            )
    columns = first.select("transaction_id", "split", **{name: part["score"] for name, part in parts.items()})
    return columns.join(booked, on="transaction_id", how="left", maintain_order="left")


def run(settings: EnsembleParams) -> dict[str, Any]:
    """Write `data/ensemble/{model.json,scores.parquet,thresholds.json,filing_scores.parquet}`; returns the model."""
    calendar = params.load(SplitParams)
    parts = {name: tables.read_table(f"train/{name}", "scores") for name in settings.members}
    booked = tables.read_table("validate", "transactions", ["transaction_id", "booked_at"])
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    members = [name for name, part in parts.items() if part.height]
    model: dict[str, Any] = {"method": "none", "why": "no transaction was scored", "members": [], "intercept": 0.0}
    limits: dict[str, Any] = {"alert_share": settings.alert_share, "detectors": {}}
    scores = schemas.empty(schemas.SCORES)
    if members:
        wide = side_by_side({name: parts[name] for name in members}, booked)
        model = fit(wide, labels, members, calendar, settings.calibration)
        limits = thresholds(model, wide, members, settings.alert_share)
        scores = score_table(model, wide, limits["detectors"]["ensemble"]["threshold"])
    model["left_out"] = [name for name in settings.members if name not in members]
    tables.write_json(model, "ensemble", "model")
    tables.write_json(limits, "ensemble", "thresholds")
    tables.write_table(schemas.checked(scores, schemas.SCORES), "ensemble", "scores")
    _run_filings(settings, calendar)
    return model


def _run_filings(settings: EnsembleParams, calendar: SplitParams) -> None:
    kpis = tables.read_table("featurize", "filing_kpis")
    facts = schemas.checked(tables.read_table("validate", "facts"), schemas.FACTS)
    scored = filings.score_filings(kpis, facts, settings=settings.filings)
    scores = filings.as_scores(scored, kpis, calendar)
    tables.write_table(schemas.checked(scores, schemas.SCORES), "ensemble", "filing_scores")
    tables.write_table(scored, "ensemble", "filing_reasons")
