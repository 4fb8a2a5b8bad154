"""Compare the current window with the reference: data, scores, performance; say what to do where a limit is broken."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform import metrics, params, schemas, split, tables
from reperform.metrics import Floats
from reperform.params import MonitorParams, SplitParams, TrainParams

ENSEMBLE = "ensemble"
STABLE, WARN, ACT, UNKNOWN = "stable", "warn", "act", "unknown"
SEVERITY = (UNKNOWN, STABLE, WARN, ACT)
COLUMNS_AT_ONCE = 24
DRIFT_TYPES = {
    "kind": pl.String,
    "name": pl.String,
    "value": pl.Float64,
    "null_value": pl.Float64,
    "status": pl.String,
}
ACTIONS = {
    "data_drift": "Read the feature's history and its source. If the change is real, retrain on a window that holds "
    "it; if it is an error of the feed, have it corrected and run the pipeline again.",
    "missing_values": "Ask the source why values stopped coming; until then, alerts rest on fewer features.",
    "silent_feeds": "Ask the institution for the missing days, ingest them, and run the pipeline again: an account "
    "that sends nothing raises no alerts.",
    "score_drift": "Compare with data drift: scores that moved without their features point to the model or the "
    "pipeline. Set the threshold again on recent scores.",
    "alert_volume": "Check that reviewers can keep up. Set the threshold again if no real event explains the change.",
    "performance": "Retrain with the labels of the last weeks; compare champion and challenger before alerts are used.",
}


@dataclass(frozen=True)
class Windows:
    """Reference and current window; ends are exclusive. The reference is what the final fit learned from."""

    reference_from: datetime
    reference_until: datetime
    current_from: datetime
    current_until: datetime

    @property
    def current_days(self) -> int:
        """Whole days of the current window."""
        return (self.current_until - self.current_from).days

    def as_dict(self) -> dict[str, str]:
        """Days as text; the last one of each window is inside of it."""
        day = timedelta(days=1)
        return {
            "reference_first_day": str(self.reference_from.date()),
            "reference_last_day": str((self.reference_until - day).date()),
            "current_first_day": str(self.current_from.date()),
            "current_last_day": str((self.current_until - day).date()),
        }


def windows(last_booked_at: datetime, calendar: SplitParams, current_days: int) -> Windows:
    """The last days of the data, as far as they lie after training, against the training window."""
    until = datetime.combine(
        last_booked_at.date() + timedelta(days=1), datetime.min.time(), tzinfo=last_booked_at.tzinfo
    )
    start = max(until - timedelta(days=current_days), calendar.train_end)
    return Windows(calendar.train_start, calendar.train_end, min(start, until), until)


def binned(reference: Floats, current: Floats, bins: int) -> tuple[Floats, Floats]:
    """Rows of two samples in bins whose edges are the reference's quantiles; missing values are a bin of their own.

    Args:
        reference: shape (n,), NaN where missing.
        current: shape (m,), NaN where missing.
        bins: quantile bins; fewer where values repeat.

    Returns:
        Rows per bin of either sample. Both count a bin of missing values only if one of them has some.
    """
    known = reference[~np.isnan(reference)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1])) if known.size else np.empty(0)
    counts = []
    for sample in (reference, current):
        missing = np.isnan(sample)
        inside = np.bincount(np.searchsorted(edges, sample[~missing], side="left"), minlength=edges.size + 1)
        counts.append(np.append(inside, missing.sum()).astype(np.float64))
    keep = slice(None) if counts[0][-1] or counts[1][-1] else slice(-1)
    return counts[0][keep], counts[1][keep]


def stability(reference: Floats, current: Floats, settings: MonitorParams) -> tuple[float, float, str]:
    """Population stability index of two samples, its mean when nothing changed, and what the difference means."""
    before, now = binned(reference, current, settings.bins)
    value = metrics.psi(before, now)
    null = metrics.psi_null(before.size, before.sum(), now.sum())
    return value, null, judged(value - null, settings.warn_above, settings.act_above)


def judged(value: float | None, warn: float, act: float) -> str:
    """stable, warn or act: by how far a value lies above its limits; unknown where there is none."""
    if value is None or not np.isfinite(value):
        return UNKNOWN
    if value > act:
        return ACT
    return WARN if value > warn else STABLE


def feature_drift(reference: pl.DataFrame, current: pl.DataFrame, settings: MonitorParams) -> pl.DataFrame:
    """Drift of every column: its stability index, and the share of missing values under `missing:<name>`.

    Args:
        reference: numeric columns; null where unknown.
        current: the same columns.
        settings: bins and limits.
    """
    records = []
    for name in reference.columns:
        before, now = _floats(reference[name]), _floats(current[name])
        records.append(_record("data", name, *stability(before, now, settings)))
        now_missing, before_missing = (
            float(np.isnan(sample).mean()) if sample.size else np.nan for sample in (now, before)
        )
        rise = judged(now_missing - before_missing, settings.missing_warn_above, settings.missing_act_above)
        records.append(_record("data", f"missing:{name}", now_missing, before_missing, rise))
    return drift_frame(records)


def feed_drift(transactions: pl.DataFrame, span: Windows, settings: MonitorParams) -> pl.DataFrame:
    """Days of the current window without a record, per institution (`silent_days:<institution>`), against the usual.

    Args:
        transactions: booked_at, entity_id.
        span: both windows.
        settings: limits.
    """
    days = transactions.select("entity_id", day=pl.col("booked_at").dt.date()).unique(maintain_order=True)
    records = []
    for entity in days["entity_id"].unique().sort():
        seen = days.filter(pl.col("entity_id") == entity)["day"]
        usual = _silent(seen, span.reference_from, span.reference_until)
        now = _silent(seen, span.current_from, span.current_until)
        n_usual = (span.reference_until - span.reference_from).days
        expected = usual / n_usual * span.current_days
        # a limit of one day is broken by one silent day
        status = judged(now - expected, settings.silent_warn_days - 0.5, settings.silent_act_days - 0.5)
        records.append(_record("data", f"silent_days:{entity}", now, expected, status))
    return drift_frame(records)


def score_drift(scores: Mapping[str, pl.DataFrame], span: Windows, settings: MonitorParams) -> pl.DataFrame:
    """Drift of every detector's scores against the validation's, on which thresholds and calibration were set.

    Args:
        scores: by detector: split, booked_at, score.
        span: the current window.
        settings: bins and limits.
    """
    records = []
    for detector, frame in scores.items():
        reference = frame.filter(pl.col("split") == "validation")["score"]
        current = frame.filter(_within("booked_at", span.current_from, span.current_until))["score"]
        records.append(_record("score", detector, *stability(_floats(reference), _floats(current), settings)))
    return drift_frame(records)


def alert_volume(ensemble: pl.DataFrame, span: Windows, settings: MonitorParams) -> pl.DataFrame:
    """Alerts per day in the current window against the share of rows that exceeded the threshold in validation.

    Args:
        ensemble: split, booked_at, is_alert.
        span: the current window.
        settings: limits.
    """
    current = ensemble.filter(_within("booked_at", span.current_from, span.current_until))
    before = ensemble.filter(pl.col("split") == "validation")["is_alert"]
    if not current.height or not before.len() or not span.current_days:
        return drift_frame([])
    share: Any = before.mean()
    expected = share * current.height / span.current_days
    now = float(current["is_alert"].sum()) / span.current_days
    ratio = max(now / expected, expected / now) if now and expected else np.nan
    status = judged(ratio, settings.alerts_warn_ratio, settings.alerts_act_ratio)
    if not now and expected * span.current_days >= settings.min_anomalies:
        status = ACT  # alerts stopped altogether
    return drift_frame([_record("score", "alerts_per_day", now, expected, status)])


def performance_drift(
    scores: Mapping[str, pl.DataFrame], known: pl.DataFrame, trained_until: datetime, settings: MonitorParams
) -> pl.DataFrame:
    """Average precision of each week (from Monday) after training, by labels known, against the validation's.

    Only rows old enough for their label count: among younger ones, known labels are nearly all anomalies. A week with
    too few known anomalies is unknown.

    Args:
        scores: by detector: transaction_id, split, booked_at, score.
        known: transaction_id, y (1 or 0) of mature rows.
        trained_until: end of the training window.
        settings: limits, bootstrap rounds, seed.

    Returns:
        Names are `<detector>.average_precision:<Monday>`; null_value is the validation's.
    """
    records: list[dict[str, Any]] = []
    for detector, frame in scores.items():
        rows = frame.join(known, on="transaction_id", how="inner", maintain_order="left")
        base = _average_precision(rows.filter(pl.col("split") == "validation"), settings)
        later = _by_week(rows, trained_until)
        for week in later["week"].unique().sort():
            now = _average_precision(later.filter(pl.col("week") == week), settings)
            status = _performance_status(now, base, settings)
            name = f"{detector}.average_precision:{week}"
            records.append(_record("performance", name, now.estimate, base.estimate, status))
    return drift_frame(records)


def reviewed_precision(
    ensemble: pl.DataFrame, labels: pl.DataFrame, trained_until: datetime, settings: MonitorParams
) -> pl.DataFrame:
    """Share of anomalies among the ensemble's alerts of each week whose label is known already, however young.

    It says what reviewers found among what they reviewed, which is not a sample of all alerts.

    Args:
        ensemble: transaction_id, split, booked_at, is_alert.
        labels: known ones: transaction_id, is_anomaly.
        trained_until: end of the training window.
        settings: limits.

    Returns:
        Names are `ensemble.reviewed_alert_precision:<Monday>`; null_value is the validation's.
    """
    alerts = ensemble.filter(pl.col("is_alert").fill_null(value=False)).join(
        labels.select("transaction_id", "is_anomaly"), on="transaction_id", how="inner", maintain_order="left"
    )
    base = alerts.filter(pl.col("split") == "validation")["is_anomaly"]
    expected: Any = base.mean() if base.len() >= settings.min_anomalies else None
    later = _by_week(alerts, trained_until)
    records = []
    for week in later["week"].unique().sort():
        hits = later.filter(pl.col("week") == week)["is_anomaly"]
        value: Any = hits.mean()
        _, high = metrics.wilson(int(hits.sum()), hits.len())
        enough = expected is not None and hits.len() >= settings.min_anomalies
        drop = 1 - value / expected if enough and expected else None
        status = UNKNOWN if drop is None else _dropped(drop, high >= expected, settings)
        records.append(_record("performance", f"{ENSEMBLE}.reviewed_alert_precision:{week}", value, expected, status))
    return drift_frame(records)


def triggers(drift: pl.DataFrame, ignored: Sequence[str], settings: MonitorParams) -> list[dict[str, Any]]:
    """One entry for each rule: its worst value, its limits, its status, what broke it, and what to do.

    Args:
        drift: every comparison, as this module returns them.
        ignored: features that no detector uses; they are compared, but call for nothing.
        settings: limits.
    """
    name = pl.col("name")
    is_data = (pl.col("kind") == "data") & ~name.str.strip_prefix("missing:").is_in(list(ignored))
    is_missing, is_silent = name.str.starts_with("missing:"), name.str.starts_with("silent_days:")
    is_volume = name == "alerts_per_day"
    excess = pl.col("value") - pl.col("null_value")
    ratio = pl.max_horizontal(pl.col("value") / pl.col("null_value"), pl.col("null_value") / pl.col("value"))
    psi_limits = (settings.warn_above, settings.act_above)
    rules = (
        ("data_drift", is_data & ~is_missing & ~is_silent, excess, psi_limits, "stability index above its null mean"),
        (
            "missing_values",
            is_data & is_missing,
            excess,
            (settings.missing_warn_above, settings.missing_act_above),
            "rise in the share of missing values",
        ),
        (
            "silent_feeds",
            is_data & is_silent,
            excess,
            (settings.silent_warn_days, settings.silent_act_days),
            "days without a record, beyond the usual",
        ),
        (
            "score_drift",
            (pl.col("kind") == "score") & ~is_volume,
            excess,
            psi_limits,
            "stability index above its null mean",
        ),
        (
            "alert_volume",
            is_volume,
            ratio,
            (settings.alerts_warn_ratio, settings.alerts_act_ratio),
            "alerts per day over the expected, or the inverse",
        ),
        (
            "performance",
            pl.col("kind") == "performance",
            1 - pl.col("value") / pl.col("null_value"),
            (settings.performance_warn_drop, settings.performance_act_drop),
            "share of the validation's figure that is lost",
        ),
    )
    return [_trigger(drift.filter(rows), rule, measure, limits, words) for rule, rows, measure, limits, words in rules]


def drift_frame(records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Comparisons as a table: kind, name, value, null_value (what was to be expected), status."""
    return pl.DataFrame(list(records), schema=DRIFT_TYPES)


def _trigger(
    rows: pl.DataFrame, rule: str, measure: pl.Expr, limits: tuple[float, float], words: str
) -> dict[str, Any]:
    ranked = rows.with_columns(measure.alias("measure")).with_columns(
        pl.when(pl.col("measure").is_finite()).then("measure").alias("measure")
    )
    broken = ranked.filter(pl.col("status").is_in([WARN, ACT])).sort(["measure", "name"], descending=[True, False])
    known = [s for s in SEVERITY if s in set(ranked["status"])]
    worst: Any = ranked["measure"].max()
    return {
        "rule": rule,
        "measures": words,
        "value": worst,
        "limit": limits[0],
        "act_limit": limits[1],
        "status": known[-1] if known else UNKNOWN,
        "compared": ranked.filter(pl.col("status") != UNKNOWN).height,
        "warned": ranked.filter(pl.col("status") == WARN).height,
        "acted": ranked.filter(pl.col("status") == ACT).height,
        "names": broken["name"].to_list(),
        "what_to_do": ACTIONS[rule] if broken.height else "Nothing.",
    }


def _record(kind: str, name: str, value: Any, null_value: Any, status: str) -> dict[str, Any]:
    numbers = [None if v is None or not np.isfinite(v) else float(v) for v in (value, null_value)]
    return {"kind": kind, "name": name, "value": numbers[0], "null_value": numbers[1], "status": status}


def _floats(column: pl.Series) -> Floats:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _within(column: str, start: datetime, end: datetime) -> pl.Expr:
    return pl.col(column).is_between(pl.lit(start, schemas.UTC_US), pl.lit(end, schemas.UTC_US), closed="left")


def _by_week(rows: pl.DataFrame, start: datetime) -> pl.DataFrame:
    later = rows.filter(pl.col("booked_at") >= pl.lit(start, schemas.UTC_US))
    return later.with_columns(week=pl.col("booked_at").dt.truncate("1w").dt.date())


def _silent(seen: pl.Series, start: datetime, end: datetime) -> int:
    days: set[date] = set(seen.filter((seen >= start.date()) & (seen < end.date())))
    return (end - start).days - len(days)


def _average_precision(rows: pl.DataFrame, settings: MonitorParams) -> metrics.Estimate:
    y = rows["y"].to_numpy()
    if y.sum() < settings.min_anomalies:
        return metrics.Estimate(None, None, None, rows.height)
    day = rows["booked_at"].dt.date().rank("dense").cast(pl.Int64).to_numpy() - 1
    weights = metrics.bootstrap_weights(int(day.max()) + 1, settings.bootstrap_rounds, settings.seed)
    ranked = metrics.ranking(y, rows["score"].to_numpy(), day)
    return metrics.with_interval(metrics.average_precision, ranked, weights, 0.95)


def _performance_status(now: metrics.Estimate, base: metrics.Estimate, settings: MonitorParams) -> str:
    if now.estimate is None or not base.estimate:
        return UNKNOWN
    within_chance = now.high is not None and now.high >= base.estimate
    return _dropped(1 - now.estimate / base.estimate, within_chance, settings)


def _dropped(drop: float, within_chance: bool, settings: MonitorParams) -> str:
    status = judged(drop, settings.performance_warn_drop, settings.performance_act_drop)
    # A week has few anomalies: a drop that its interval allows for is no more than a warning.
    return WARN if status == ACT and within_chance else status


def _feature_windows(span: Windows, names: Sequence[str]) -> Iterable[tuple[pl.DataFrame, pl.DataFrame]]:
    """Both windows of some columns at a time: all of them at once would not fit beside a large table."""
    lazy = tables.scan_table("featurize", "features")
    for start in range(0, len(names), COLUMNS_AT_ONCE):
        some = names[start : start + COLUMNS_AT_ONCE]
        reference = lazy.filter(_within("booked_at", span.reference_from, span.reference_until)).select(some)
        current = lazy.filter(_within("booked_at", span.current_from, span.current_until)).select(some)
        yield reference.collect(), current.collect()


def _arrival(transactions: pl.DataFrame, span: Windows, settings: MonitorParams) -> pl.DataFrame:
    hours = transactions.select(
        "booked_at", arrival_delay_hours=(pl.col("known_at") - pl.col("booked_at")).dt.total_seconds() / 3600
    )
    reference = hours.filter(_within("booked_at", span.reference_from, span.reference_until))
    current = hours.filter(_within("booked_at", span.current_from, span.current_until))
    return feature_drift(reference.drop("booked_at"), current.drop("booked_at"), settings)


def _scores(transactions: pl.DataFrame, detectors: Sequence[str]) -> dict[str, pl.DataFrame]:
    sources = {name: (f"train/{name}", "scores") for name in detectors} | {ENSEMBLE: ("ensemble", "scores")}
    columns = ["transaction_id", "split", "score", "is_alert"]
    when = transactions.select("transaction_id", "booked_at")
    return {
        name: when.join(tables.read_table(*place, columns), on="transaction_id", how="inner", maintain_order="left")
        for name, place in sources.items()
    }


def compared(
    transactions: pl.DataFrame,
    labels: pl.DataFrame,
    *,
    names: Sequence[str],
    detectors: Sequence[str],
    calendar: SplitParams,
    settings: MonitorParams,
) -> tuple[pl.DataFrame, dict[str, str]]:
    """Every comparison of the stage, and the days of both windows."""
    last: Any = transactions["booked_at"].max()
    span = windows(last, calendar, settings.current_days)
    scores = _scores(transactions, detectors)
    known_by = span.current_until
    mature = transactions.filter(
        pl.col("booked_at") + pl.duration(days=calendar.label_maturity_days) <= pl.lit(known_by, schemas.UTC_US)
    )
    known = split.learning_labels(mature, labels, known_by=known_by, maturity_days=calendar.label_maturity_days)
    confirmed = labels.filter(pl.col("confirmed_at") < pl.lit(known_by, schemas.UTC_US))
    parts = [feature_drift(before, now, settings) for before, now in _feature_windows(span, names)]
    parts += [
        _arrival(transactions, span, settings),
        feed_drift(transactions, span, settings),
        score_drift(scores, span, settings),
        alert_volume(scores[ENSEMBLE], span, settings),
        performance_drift(scores, known, calendar.train_end, settings),
        reviewed_precision(scores[ENSEMBLE], confirmed, calendar.train_end, settings),
    ]
    return pl.concat(parts), span.as_dict()


def run(settings: MonitorParams) -> dict[str, Any]:
    """Write `data/monitor/{drift.parquet,triggers.json}`; returns both, and the features that no detector uses."""
    calendar, training = params.load(SplitParams), params.load(TrainParams)
    columns = ["transaction_id", "booked_at", "known_at", "entity_id"]
    transactions = tables.read_table("validate", "transactions", columns)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    dictionary = tables.read_json("featurize", "dictionary")
    names = [entry["name"] for entry in dictionary]
    drift, days = drift_frame([]), dict[str, str]()
    if transactions.height:
        drift, days = compared(
            transactions, labels, names=names, detectors=training.detectors, calendar=calendar, settings=settings
        )
    ignored = [e["name"] for e in dictionary if not e["is_model_input"] or e["name"] in training.exclude_features]
    found = triggers(drift, ignored, settings)
    document = {
        "reason": None if transactions.height else "no transactions",
        "status": max((one["status"] for one in found), key=SEVERITY.index),
        "triggers": found,
        "windows": days,
    }
    tables.write_table(drift, "monitor", "drift")
    tables.write_json(document, "monitor", "triggers")
    return {"drift": drift, "triggers": document, "ignored": ignored}
