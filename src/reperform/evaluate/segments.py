"""Who is served worse: detection and false alarms by institution, channel, country, age of account, or an attribute."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from reperform import metrics
from reperform.errors import ReperformError, nearest
from reperform.evaluate.detection import ENSEMBLE, Period, Scored
from reperform.metrics import Bools, Estimate, Floats
from reperform.params import EvaluateParams

MOST_GROUPS = 12
OTHER, UNKNOWN = "all others", "unknown"
WARN_BELOW = 0.8  # the four-fifths rule (US 29 CFR 1607.4), used for false positive rates as in predictive equality
SEGMENTS = {
    "institution": "entity_id",
    "segment": "segment",
    "channel": "channel",
    "country": "country",
    "account_age": "account_age",
}
ATTRIBUTES = ("segment", "country", "account_age", "entity_id", "home_country", "timezone")


def with_account_age(rows: pl.DataFrame, new_account_days: int) -> pl.DataFrame:
    """Rows with account_age: whether their account was younger than so many days when they were booked.

    Args:
        rows: with booked_at and opened_at (null = unknown).
        new_account_days: age from which an account is no longer new.
    """
    age = pl.col("booked_at") - pl.col("opened_at")
    return rows.with_columns(
        account_age=pl.when(age.is_null())
        .then(None)
        .when(age < pl.duration(days=new_account_days))
        .then(pl.lit(f"new, under {new_account_days} days"))
        .otherwise(pl.lit(f"{new_account_days} days or older"))
    )


def segment_table(
    period: Period, every: Sequence[Scored], segment: str, settings: EvaluateParams
) -> list[dict[str, Any]]:
    """How detection and false alarms differ between the groups of one segment.

    Args:
        period: the rows.
        every: detectors.
        segment: a key of `SEGMENTS`; its largest groups are shown, the others together.
        settings: how many anomalies a group needs.

    Returns:
        One record per group and detector; recall, precision and false_positive_rate have `_low` and `_high` from the
        same days as all intervals. `too_small` says why a group's figures mean little, and is null where they do not.
    """
    groups = _largest(period.rows[SEGMENTS[segment]].fill_null(UNKNOWN))
    return [
        _record(period, scored, inside, settings) | {"group": name}
        for name in _in_order(groups)
        for inside in [(groups == name).to_numpy()]
        for scored in every
    ]


def _record(period: Period, scored: Scored, inside: Bools, settings: EvaluateParams) -> dict[str, Any]:
    y, alert = period.y & inside, scored.alert & inside
    anomalies = int(y.sum())
    ranked = metrics.ranking(period.y[inside], scored.score[inside], period.day[inside])
    ap = metrics.with_interval(metrics.average_precision, ranked, period.weights[:, : ranked.rows.size], period.level)
    shares = {
        "precision": period.ratio(alert & y, alert),
        "recall": period.ratio(alert & y, y),
        "false_positive_rate": period.ratio(alert & ~period.y, inside & ~period.y),
    }
    return {
        "detector": scored.detector,
        "n": int(inside.sum()),
        "anomalies": anomalies,
        "alerts": int(alert.sum()),
        "average_precision": ap.estimate,
        "low": ap.low,
        "high": ap.high,
        **{f"{name}{end}": value for name, one in shares.items() for end, value in _ends(one)},
        "too_small": too_small(anomalies, settings.least_anomalies),
    }


def _ends(one: Estimate) -> Iterable[tuple[str, float | None]]:
    return ("", one.estimate), ("_low", one.low), ("_high", one.high)


def too_small(anomalies: int, least: int) -> str | None:
    """Why figures of so few anomalies mean little; None from `least` on."""
    return None if anomalies >= least else f"{anomalies} anomalies, fewer than {least}: too few to judge by"


def _largest(groups: pl.Series) -> pl.Series:
    sizes = groups.value_counts().sort(["count", groups.name], descending=[True, False])
    if sizes.height <= MOST_GROUPS:
        return groups
    kept = sizes[groups.name].head(MOST_GROUPS - 1)
    return pl.select(pl.when(groups.is_in(kept.implode())).then(groups).otherwise(pl.lit(OTHER))).to_series()


def _in_order(groups: pl.Series) -> list[str]:
    names = groups.unique().sort().to_list()
    return [name for name in names if name != OTHER] + [OTHER] * (OTHER in names)


def fairness_of(period: Period, every: Sequence[Scored], settings: EvaluateParams) -> dict[str, Any] | None:
    """Whether false alarms fall on the groups of a configured attribute alike; None when none is configured.

    Returns:
        attribute, groups (n, false alarms, false_positive_rate with low and high), and ratio: the lowest false
        positive rate over the highest (predictive equality, 1 = equal), with its interval, and whether it is below 0.8.

    Raises:
        ReperformError: for an attribute that accounts do not have.
    """
    attribute = settings.fairness_attribute
    if attribute is None:
        return None
    if attribute not in period.rows.columns:
        raise ReperformError(
            f"Accounts have no attribute {attribute!r} to compare.",
            expected=f"one of {', '.join(ATTRIBUTES)}",
            got=attribute,
            where="params.yaml:evaluate.fairness_attribute",
            fix=nearest(attribute, ATTRIBUTES),
        )
    ensemble = next(scored for scored in every if scored.detector == ENSEMBLE)
    groups = _largest(period.rows[attribute].fill_null(UNKNOWN))
    names = _in_order(groups)
    false = ensemble.alert & ~period.y
    parts = [((groups == name).to_numpy() & ~period.y) for name in names]
    rates = [period.ratio(false & part, part, int(part.sum())) for part in parts]
    return {
        "attribute": attribute,
        "groups": [
            {"group": name, "n": one.n, "false_alarms": int((false & part).sum()), "false_positive_rate": one.as_dict()}
            for name, part, one in zip(names, parts, rates, strict=True)
        ],
        "ratio": _equality(period, false, parts).as_dict(),
        "warn_below": WARN_BELOW,
        "is_unequal": _is_unequal(_equality(period, false, parts)),
    }


def _equality(period: Period, false: Bools, parts: Sequence[Bools]) -> Estimate:
    times = np.concatenate([np.ones((1, max(period.n_days, 1))), period.weights])
    rates = (
        np.stack([_rate(times, period, false & part, part) for part in parts]) if parts else np.empty((0, len(times)))
    )
    if not len(rates):
        return Estimate(None, None, None, 0)
    values = metrics.ratio(rates.min(axis=0), rates.max(axis=0))
    return metrics.estimate(float(values[0]), values[1:], period.level, period.y.size)


def _rate(times: Floats, period: Period, top: Bools, bottom: Bools) -> Floats:
    return metrics.ratio(times @ period.per_day(top), times @ period.per_day(bottom))


def _is_unequal(ratio: Estimate) -> bool | None:
    return None if ratio.estimate is None else ratio.estimate < WARN_BELOW


def all_segments(
    period: Period, every: Sequence[Scored], settings: EvaluateParams
) -> Mapping[str, list[dict[str, Any]]]:
    """Every segment's table, by `per_<segment>`."""
    return {f"per_{name}": segment_table(period, every, name, settings) for name in SEGMENTS}
