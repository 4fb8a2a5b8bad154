"""Metrics of a detector over the test rows, each with its day-block interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from reperform import metrics
from reperform.errors import ReperformError
from reperform.metrics import Bools, Estimate, Floats, Ints, Ranking
from reperform.params import EvaluateParams

ENSEMBLE, RULES = "ensemble", "rules"
RULE_FIRED_FROM = 1.0  # a score of the rules below 1 only ranks rows on which none fired
RECALLS = (0.5, 0.8, 0.9)
NEVER = Estimate(None, None, None, 0)
TIMES_TO_DETECT = {"hours_to_detect_median": 0.5, "hours_to_detect_p90": 0.9}
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)
DEFAULT_ALERT_SHARE = 0.005


@dataclass(frozen=True)
class Period:
    """The rows that are measured, in order of time, and how they are drawn in bootstrap rounds.

    Args:
        rows: transactions with is_anomaly, typology, event_id and segment; none of unknown truth.
        y: anomalies, shape (n,).
        day: day number from 0 without gaps, shape (n,).
        account: account number, shape (n,).
        amount: in base currency, shape (n,).
        weights: how often each day is drawn in each round, shape (rounds, days); the same for every detector.
        level: of the intervals, such as 0.95.
    """

    rows: pl.DataFrame
    y: Bools
    day: Ints
    account: Ints
    amount: Floats
    weights: Floats
    level: float

    @property
    def n_days(self) -> int:
        """Days with rows."""
        return int(self.day.max()) + 1 if self.day.size else 0

    def per_day(self, values: Any) -> Floats:
        """Sum of a value on each day, shape (days,); one zero where there are no rows."""
        times = np.asarray(values, dtype=np.float64)
        return np.bincount(self.day, weights=times, minlength=max(self.n_days, 1)).astype(np.float64)

    def ratio(self, top: Any, bottom: Any, n: int | None = None) -> Estimate:
        """A ratio of sums over rows with its day-block interval."""
        count = self.y.size if n is None else n
        return metrics.ratio_with_interval(self.per_day(top), self.per_day(bottom), self.weights, self.level, count)


@dataclass(frozen=True)
class Scored:
    """What one detector said of the test rows.

    Args:
        detector: its name.
        score: higher is more anomalous, shape (n,).
        alert: the rows that are looked at: the ensemble's own decision; for the others as many rows as the ensemble
            flags, so that all are compared at the same effort. Shape (n,).
        ranked: rows counted by score and day.
        precision_rounds: average precision in every bootstrap round, shape (rounds,).
        probability: calibrated, shape (n,); None where the detector gives none.
    """

    detector: str
    score: Floats
    alert: Bools
    ranked: Ranking
    precision_rounds: Floats
    probability: Floats | None = None


def period_of(rows: pl.DataFrame, settings: EvaluateParams) -> Period:
    """The rows with known truth, ready to be measured.

    Args:
        rows: transactions with is_anomaly, typology, event_id, segment, in order of time.
        settings: bootstrap rounds, seed, level.
    """
    known = rows.filter(pl.col("is_anomaly").is_not_null())
    day = known["booked_at"].dt.date().rank("dense").cast(pl.Int64).to_numpy() - 1
    account = known["account_id"].rank("dense").cast(pl.Int64).to_numpy() - 1
    blocks = int(day.max()) + 1 if day.size else 1
    return Period(
        rows=known,
        y=known["is_anomaly"].to_numpy().astype(np.bool_),
        day=day,
        account=account,
        amount=known["amount_base"].to_numpy(),
        weights=metrics.bootstrap_weights(blocks, settings.bootstrap_rounds, settings.seed),
        level=settings.interval,
    )


def scored_rows(
    period: Period, scores: Mapping[str, pl.DataFrame], seed: int, *, negatives_kept: float = 1.0
) -> list[Scored]:
    """Every detector's scores on exactly the test rows, with the rows that each one would have looked at.

    Args:
        period: the rows.
        scores: by detector, as `schemas.SCORES`.
        seed: of the order within equal scores.
        negatives_kept: share of normal rows in what probabilities were calibrated on; they are corrected for it.

    Raises:
        ReperformError: when a detector left a test row without a score.
    """
    aligned = {name: _aligned(period, frame, name) for name, frame in scores.items()}
    own = aligned[ENSEMBLE]["is_alert"].fill_null(value=False).to_numpy() if ENSEMBLE in aligned else None
    budget = int(own.sum()) if own is not None and own.any() else round(DEFAULT_ALERT_SHARE * period.y.size)
    result = []
    for name, frame in aligned.items():
        score = frame["score"].to_numpy()
        decided = name == ENSEMBLE and own is not None
        alert = own.astype(np.bool_) if decided and own is not None else metrics.top_rows(score, budget, seed)
        has_probability = frame.height > 0 and frame["probability"].null_count() == 0
        probability = frame["probability"].to_numpy() if has_probability else None
        if probability is not None and negatives_kept < 1:
            probability = metrics.prior_corrected(probability, negatives_kept)
        ranked = metrics.ranking(period.y, score, period.day)
        rounds = metrics.bootstrapped(metrics.average_precision, ranked, period.weights)
        result.append(Scored(name, score, alert, ranked, rounds, probability))
    return result


def measured(period: Period, every: Sequence[Scored], settings: EvaluateParams) -> dict[str, dict[str, Estimate]]:
    """All metrics of all detectors: detector, metric, estimate."""
    rules = next((scored for scored in every if scored.detector == RULES), None)
    result = {}
    for scored in every:
        result[scored.detector] = (
            detection(period, scored, settings)
            | per_day_precision(period, scored, settings)
            | decisions(period, scored)
            | against_rules(period, scored, rules)
        )
        if scored.detector == ENSEMBLE:
            result[scored.detector] |= calibration(period, scored.probability)
    return result


def detection(period: Period, scored: Scored, settings: EvaluateParams) -> dict[str, Estimate]:
    """How well a ranking of the test rows finds anomalies, over all its thresholds.

    Returns:
        prevalence, average_precision and its lift, roc_auc, recall_at_alert_share_<s>,
        recall_at_false_positive_rate_<r>, alert_share_at_recall_<r>.
    """
    wanted: dict[str, metrics.Metric] = {
        "prevalence": metrics.prevalence,
        "average_precision": metrics.average_precision,
        "average_precision_lift": metrics.average_precision_lift,
        "roc_auc": metrics.roc_auc,
    }
    wanted |= {f"recall_at_alert_share_{s:g}": metrics.recall_at_alert_share(s) for s in settings.alert_shares}
    wanted |= {
        f"recall_at_false_positive_rate_{r:g}": metrics.recall_at_false_positive_rate(r) for r in FALSE_POSITIVE_RATES
    }
    wanted |= {f"alert_share_at_recall_{r:g}": metrics.alert_share_at_recall(r) for r in RECALLS}
    return metrics.with_intervals(wanted, scored.ranked, period.weights, period.level)


def per_day_precision(period: Period, scored: Scored, settings: EvaluateParams) -> dict[str, Estimate]:
    """Precision among the k highest scores of each day, by transaction and by account (card), mean over days.

    Returns:
        precision_at_<k>_per_day, attainable_precision_at_<k>_per_day, attained_share_at_<k>_per_day (their ratio),
        card_precision_at_<k>.
    """
    result = {}
    for k in settings.precision_at:
        found, attainable = metrics.daily_precision_at(period.y, scored.score, period.day, k)
        cards = metrics.daily_card_precision_at(period.y, scored.score, period.account, period.day, k)
        for name, daily in (
            (f"precision_at_{k}_per_day", found),
            (f"attainable_precision_at_{k}_per_day", attainable),
            (f"card_precision_at_{k}", cards),
        ):
            result[name] = _mean_over_days(period, daily)
        result[f"attained_share_at_{k}_per_day"] = (
            metrics.ratio_with_interval(found, attainable, period.weights, period.level, period.n_days)
            if period.n_days
            else NEVER
        )
    return result


def decisions(period: Period, scored: Scored) -> dict[str, Estimate]:
    """What reviewers got out of the rows that were flagged.

    Returns:
        alerts_per_day, precision, recall, false_positive_rate, false_accounts_per_true_account, value_detection_rate,
        event_recall, events_never_found, hours_to_detect_median, hours_to_detect_p90,
        value_lost_before_detection_share.
    """
    alert, y = scored.alert, period.y
    hits = alert & y
    stopped = period.amount * (y & after_detection(period, alert))
    value = period.amount * y
    return {
        "alerts_per_day": _mean_over_days(period, period.per_day(alert)),
        "precision": period.ratio(hits, alert),
        "recall": period.ratio(hits, y),
        "false_positive_rate": period.ratio(alert & ~y, ~y),
        "false_accounts_per_true_account": _false_accounts(period, alert),
        "value_detection_rate": period.ratio(stopped, value),
        **_time_to_detect(period, event_table(period, alert)),
    }


def _false_accounts(period: Period, alert: Bools) -> Estimate:
    """Accounts that were flagged and hold no anomaly, for each account with an anomaly that was flagged."""
    innocent = ~np.isin(period.account, period.account[period.y])
    false, true = (_accounts_drawn(period, alert & kind) for kind in (innocent, period.y))
    rounds = metrics.ratio(false[1:], true[1:])
    return metrics.estimate(
        float(metrics.ratio(false[0], true[0])), rounds, period.level, int(np.unique(period.account).size)
    )


def _accounts_drawn(period: Period, rows: Bools) -> Floats:
    """Accounts with such a row: on all days first, then on the days that each bootstrap round draws."""
    pairs = np.unique(np.stack([period.account[rows], period.day[rows]], axis=1), axis=0)
    if not pairs.size:
        return np.zeros(len(period.weights) + 1)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1) != 0)
    drawn = np.concatenate([np.ones((1, period.weights.shape[1])), period.weights])[:, pairs[:, 1]] > 0
    return np.asarray(np.logical_or.reduceat(drawn, starts, axis=1).sum(axis=1), dtype=np.float64)


def after_detection(period: Period, alert: Bools) -> Bools:
    """Rows at or after the first alert that hit an anomaly on their account: what a blocked account no longer loses.

    Rows are in order of time, so the first hit of an account is its earliest.
    """
    n_accounts = int(period.account.max()) + 1 if period.account.size else 0
    first = np.full(n_accounts, period.y.size, dtype=np.int64)
    hits = np.flatnonzero(alert & period.y)
    np.minimum.at(first, period.account[hits], hits)
    return np.asarray(np.arange(period.y.size) >= first[period.account])


def event_table(period: Period, alert: Bools) -> pl.DataFrame:
    """One row for each event whose first transaction lies in the test.

    Returns:
        event_id, typology, n, started_at, found_at (when the first alert on it became known; null if none), amount,
        amount_before (booked before it was found).
    """
    rows = period.rows.with_columns(alert=pl.Series(alert, dtype=pl.Boolean)).filter("is_anomaly")
    begun_here = pl.col("event_started_at") >= pl.col("booked_at").min()
    found = pl.col("known_at").filter("alert").min()
    before = (pl.col("booked_at") < found).fill_null(value=True)
    return (
        rows.filter(begun_here)
        .sort("event_id", "booked_at", "transaction_id")
        .group_by("event_id", maintain_order=True)
        .agg(
            pl.col("typology").first(),
            pl.len().cast(pl.Int64).alias("n"),
            pl.col("booked_at").min().alias("started_at"),
            found.alias("found_at"),
            pl.col("amount_base").sum().alias("amount"),
            pl.col("amount_base").filter(before).sum().alias("amount_before"),
        )
    )


def against_rules(period: Period, scored: Scored, rules: Scored | None) -> dict[str, Estimate]:
    """A detector beside the rules baseline; both drawn together in each bootstrap round.

    Returns:
        alert_reduction_at_rules_recall: 1 - (alerts that the detector needs for the rules' recall) / (alerts that the
        rules raise); average_precision_gain_over_rules.
    """
    names = ("alert_reduction_at_rules_recall", "average_precision_gain_over_rules")
    if rules is None:
        return {name: Estimate(None, None, None, period.y.size) for name in names}
    fired = rules.score >= RULE_FIRED_FROM
    raised, found, all_found = period.per_day(fired), period.per_day(fired & period.y), period.per_day(period.y)

    def reduction(times: Floats) -> Floats:
        recall = metrics.ratio(times @ found, times @ all_found)
        return 1 - metrics.ratio(metrics.alerts_at_recall(scored.ranked.weighted(times), recall), times @ raised)

    whole = np.ones((1, raised.size))
    rounds = np.concatenate([reduction(part) for part in np.array_split(period.weights, 5)])
    saved = metrics.estimate(float(reduction(whole)[0]), rounds, period.level, period.y.size)
    return dict(zip(names, (saved, average_precision_difference(period, scored, rules)), strict=True))


def average_precision_difference(period: Period, one: Scored, other: Scored) -> Estimate:
    """Average precision of one detector minus the other's, from the same days in every bootstrap round."""
    value = float(metrics.average_precision(one.ranked.totals)[0] - metrics.average_precision(other.ranked.totals)[0])
    return metrics.estimate(value, one.precision_rounds - other.precision_rounds, period.level, period.y.size)


def restate_at_prevalence(period: Period, every: Sequence[Scored], shares: Sequence[float]) -> list[dict[str, Any]]:
    """What the metrics would be where anomalies are rarer or more frequent, and are told apart as well as here.

    Recall and false positive rate do not depend on the prevalence; precision does. A test set of another mixture, or
    a market of which only the prevalence is known, can be set beside this one so.

    Returns:
        One record per detector and prevalence: average_precision, its lift, precision (of the rows that were flagged)
        and alerts_per_hit, each with low and high.
    """
    result = []
    for scored in every if period.y.any() else ():
        rates = _rates_by_round(period, scored.alert)
        for share in shares:
            ap = metrics.with_interval(
                metrics.average_precision_at_prevalence(share), scored.ranked, period.weights, period.level
            )
            values = metrics.precision_at_prevalence(*rates, share)
            precision = metrics.estimate(float(values[0]), values[1:], period.level, period.y.size)
            result.append(
                {
                    "detector": scored.detector,
                    "prevalence": share,
                    "average_precision": ap.as_dict(),
                    "average_precision_lift": None if ap.estimate is None or not share else ap.estimate / share,
                    "precision": precision.as_dict(),
                    "alerts_per_hit": 1 / precision.estimate if precision.estimate else None,
                }
            )
    return result


def _rates_by_round(period: Period, alert: Bools) -> tuple[Floats, Floats]:
    """Recall and false positive rate of a decision: on all days first, then in each bootstrap round."""
    times = np.concatenate([np.ones((1, max(period.n_days, 1))), period.weights])
    sums = [times @ period.per_day(rows) for rows in (alert & period.y, period.y, alert & ~period.y, ~period.y)]
    return metrics.ratio(sums[0], sums[1]), metrics.ratio(sums[2], sums[3])


def calibration(period: Period, probability: Floats | None) -> dict[str, Estimate]:
    """How far probabilities can be taken at their word.

    Returns:
        brier, brier_skill (against always saying the prevalence), log_loss, calibration_error, calibration_slope,
        calibration_intercept.
    """
    names = ("brier", "brier_skill", "log_loss", "calibration_error", "calibration_slope", "calibration_intercept")
    if probability is None or not period.y.size:
        return {name: Estimate(None, None, None, 0) for name in names}
    squared = metrics.brier(period.y, probability)
    slope, intercept = metrics.calibration_line(period.y, probability, period.day, period.level)
    return dict(
        zip(
            names,
            (
                period.ratio(squared, np.ones(period.y.size)),
                _brier_skill(period, squared),
                period.ratio(metrics.log_loss(period.y, probability), np.ones(period.y.size)),
                metrics.calibration_error(period.y, probability, period.day, period.weights, level=period.level),
                slope,
                intercept,
            ),
            strict=True,
        )
    )


def filing_detection(
    scores: pl.DataFrame, truth: pl.DataFrame, settings: EvaluateParams
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """How well filing scores find planted misstatements; every filing is a block of its own.

    Args:
        scores: as `schemas.SCORES`, one row per filing.
        truth: filing_id, misstatement, concept of the planted ones.
        settings: bootstrap rounds, seed, level.

    Returns:
        Metrics (average_precision, roc_auc, prevalence, precision_at_misstated, recall, precision), and tables.
    """
    kinds = truth.sort("filing_id", "misstatement").group_by("filing_id", maintain_order=True)
    joined = scores.sort("filing_id").join(
        kinds.agg(pl.col("misstatement").unique(maintain_order=True).str.join(", ")),
        on="filing_id",
        how="left",
        maintain_order="left",
    )
    y = joined["misstatement"].is_not_null().to_numpy().astype(np.bool_)
    score, alert = joined["score"].to_numpy(), joined["is_alert"].fill_null(value=False).to_numpy().astype(np.bool_)
    weights = metrics.bootstrap_weights(max(y.size, 1), settings.bootstrap_rounds, settings.seed)
    ranked = metrics.ranking(y, score, np.arange(y.size))
    wanted = {
        "prevalence": metrics.prevalence,
        "average_precision": metrics.average_precision,
        "roc_auc": metrics.roc_auc,
        # Looking at as many filings as are misstated: precision and recall are the same there.
        "precision_at_misstated": lambda r: metrics.recall_at_alerts(r, r.positives),
    }
    found = metrics.with_intervals(wanted, ranked, weights, settings.interval)
    for name, bottom in (("precision", alert), ("recall", y)):
        found[name] = (
            metrics.ratio_with_interval(alert & y, bottom, weights, settings.interval, y.size)
            if y.size
            else Estimate(None, None, None, 0)
        )
    return found, {"n": int(y.size), "misstated": int(y.sum()), "per_misstatement": _misstatement_table(joined)}


def finite(value: Any) -> float | None:
    """The first number of an array, or the number itself; None where it is not defined."""
    number = float(np.asarray(value).ravel()[0])
    return number if np.isfinite(number) else None


def _aligned(period: Period, scores: pl.DataFrame, detector: str) -> pl.DataFrame:
    joined = period.rows.select("transaction_id").join(
        scores.select("transaction_id", "score", "probability", "is_alert"),
        on="transaction_id",
        how="left",
        maintain_order="left",
    )
    missing = joined.filter(pl.col("score").is_null())
    if missing.height:
        raise ReperformError(
            f"Detector {detector} left test rows without a score.",
            expected=f"a score for each of {joined.height} rows",
            got=f"{missing.height} without, such as {missing['transaction_id'].head(3).to_list()}",
            where=f"data/{'ensemble' if detector == ENSEMBLE else f'train/{detector}'}/scores.parquet",
            fix="run the stage again; a metric on fewer rows would not be comparable",
        )
    return joined


def _mean_over_days(period: Period, daily: Floats) -> Estimate:
    if not period.n_days:
        return Estimate(None, None, None, 0)
    return metrics.ratio_with_interval(daily, np.ones(period.n_days), period.weights, period.level, period.n_days)


def _brier_skill(period: Period, squared: Floats) -> Estimate:
    errors, hits, rows = period.per_day(squared), period.per_day(period.y), period.per_day(np.ones(period.y.size))

    def skill(times: Floats) -> Floats:
        share = metrics.ratio(times @ hits, times @ rows)
        return 1 - metrics.ratio(metrics.ratio(times @ errors, times @ rows), share * (1 - share))

    value = float(skill(np.ones((1, rows.size)))[0])
    return metrics.estimate(value, skill(period.weights), period.level, period.y.size)


def _time_to_detect(period: Period, events: pl.DataFrame) -> dict[str, Estimate]:
    n = events.height
    if not n:
        names = ("event_recall", "events_never_found", *TIMES_TO_DETECT, "value_lost_before_detection_share")
        return dict.fromkeys(names, NEVER)
    dates = period.rows["booked_at"].dt.date().unique().sort()
    day = dates.search_sorted(events["started_at"].dt.date()).to_numpy().astype(np.int64)
    is_found = events["found_at"].is_not_null().to_numpy()
    hours = ((events["found_at"] - events["started_at"]).dt.total_seconds() / 3600).to_numpy()[is_found]
    low, high = metrics.wilson(int(is_found.sum()), n, period.level)
    share = float(is_found.mean())
    lost, amount = (np.bincount(day, events[name].to_numpy(), period.n_days) for name in ("amount_before", "amount"))
    return {
        "event_recall": Estimate(share, low, high, n),
        "events_never_found": Estimate(1 - share, 1 - high, 1 - low, n),
        # of the events that were found
        **{
            name: metrics.quantile_with_interval(hours, day[is_found], at, period.weights, period.level)
            for name, at in TIMES_TO_DETECT.items()
        },
        "value_lost_before_detection_share": metrics.ratio_with_interval(lost, amount, period.weights, period.level, n),
    }


def _misstatement_table(joined: pl.DataFrame) -> list[dict[str, Any]]:
    ranked = joined.with_columns(rank=pl.col("score").rank("min", descending=True).cast(pl.Int64))
    return [
        {
            "filing_id": row["filing_id"],
            "misstatement": row["misstatement"],
            "split": row["split"],
            "score": row["score"],
            "rank": row["rank"],
            "is_alert": bool(row["is_alert"]),
        }
        for row in ranked.filter(pl.col("misstatement").is_not_null()).sort("rank", "filing_id").to_dicts()
    ]
