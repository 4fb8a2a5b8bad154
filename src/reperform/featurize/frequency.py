"""KPI 4: too many or too few transactions on the last day, uneven gaps between them, and silence before them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy.special import betainc

from reperform.featurize.days import Days
from reperform.featurize.kernels import F64, I64, Mask, daily_counts, extreme_times, gap_statistics
from reperform.featurize.ledger import Ledger
from reperform.featurize.opening import data_begin, entities, open_days
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import DAY_US, FOREVER_US, HOUR_US, length_us, ratio, where_enough

LEAST_P = 1e-300
LEAST_GAP_S = 60.0  # records of one moment must not make every silence look endless
YOUNG = "the account has no complete day yet, or there was nothing to learn the segment's rate from"
LEAST_RELATIVE_VARIANCE = 0.01  # accounts of a segment are never all alike


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and limits of KPI 4.

    Args:
        window: history of gaps.
        least_n: fewer records give no burstiness.
        least_n_dormancy: fewer records give no typical gap.
        history_days: complete days before the last one that its count is compared with.
        other_weekday_weight: weight of days on another day of the week than the last one; the same day weighs 1.
    """

    window: str = "180d"
    least_n: int = 10
    least_n_dormancy: int = 3
    history_days: int = 56
    other_weekday_weight: float = 0.25


def columns(settings: Settings) -> tuple[Column, ...]:
    """The last complete day's count against its prediction; gaps."""
    w, h = settings.window, f"{settings.history_days}d"
    young = YOUNG
    few = f"fewer than {settings.least_n} known records in {w}"
    return (
        Column(
            "frequency_surprise",
            "-log10(2 min(0.5, P(N >= n), P(N <= n))) of yesterday's count n; negative when too few",
            "signed -log10 p",
            h,
            null_rule=young,
        ),
        Column(
            "frequency_n",
            "transactions on the last complete day",
            "transactions",
            "24h",
            null_rule="the account has no complete day yet",
        ),
        Column(
            "frequency_days_n",
            "complete days behind the prediction",
            "days",
            h,
            is_model_input=False,
            null_rule="the account has no complete day yet",
        ),
        Column(
            f"frequency_burstiness_{w}",
            "(sd - mean) / (sd + mean) of gaps between records",
            "-1 to 1",
            w,
            null_rule=few,
        ),
        Column(
            f"frequency_gaps_n_{w}",
            "known records behind the gaps",
            "transactions",
            w,
            is_model_input=False,
            null_rule="never",
        ),
        Column(
            f"frequency_dormancy_{w}",
            "time since the latest record / median gap",
            "x",
            w,
            null_rule=f"fewer than {settings.least_n_dormancy} known records in {w}",
        ),
        Column(
            "frequency_hours_since_last",
            "time since the latest known record of the account",
            "hours",
            null_rule="no known record of the account",
        ),
    )


def rate_columns(settings: Settings) -> tuple[Column, ...]:
    """The same surprise among those of all accounts."""
    h = f"{settings.history_days}d"
    return (
        Column(
            "frequency_q",
            "p-value of yesterday's count after Benjamini and Hochberg over the entity's accounts of that day and "
            "timezone",
            "q-value",
            h,
            is_model_input=False,
            null_rule=YOUNG,
        ),
        Column(
            "frequency_q_n",
            "accounts that the correction goes over",
            "accounts",
            h,
            is_model_input=False,
            null_rule=YOUNG,
        ),
    )


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """Gamma prior of daily counts per segment, by the moments of accounts' mean rates before a moment.

    The variance of mean rates is that between accounts plus Poisson noise m / T, which is taken off.
    """
    days, begin = ledger.days, data_begin(ledger, end_us)
    learn, end_day = ledger.known_before(end_us), end_us // DAY_US
    counted = learn & (days.day < end_day)
    n = np.bincount(days.account_of_row[counted], minlength=len(days.accounts))
    first = open_days(ledger, begin)
    np.minimum.at(first, days.account_of_row[counted], days.day[counted])
    length = np.maximum(end_day - first, 0)
    segments = days.segment.to_numpy()
    usable = length >= 7  # noqa: PLR2004  # a week, so that a rate is no accident of a weekday
    priors = {
        str(s): _gamma(n[usable & (segments == s)], length[usable & (segments == s)]) for s in sorted(set(segments))
    }
    return {"prior": priors, "all": _gamma(n[usable], length[usable]), "begin": begin}


def _gamma(n: I64, length: I64) -> list[float] | None:
    """Shape and rate (per day); None where there is nothing to learn from."""
    if len(n) == 0 or n.sum() == 0:
        return None
    rates = n / length
    mean = float(np.mean(rates))
    between = float(np.var(rates)) - float(np.mean(mean / length))
    variance = max(between, LEAST_RELATIVE_VARIANCE * mean**2)
    return [mean**2 / variance, mean / variance]


def daily(ledger: Ledger, fitted: dict[str, Any], settings: Settings) -> Values:
    """Values per slot of the grid, as known at the start of its day: signed surprise, p-value, count and days."""
    last, weighted, weight, complete = _history(ledger, fitted.get("begin"), settings)
    return surprise_of(last, weighted, weight, complete, *_priors(ledger.days, fitted), settings)


def surprise_of(  # noqa: PLR0917  # four sums and a prior of two numbers, in their order
    last: F64, weighted: F64, weight: F64, complete: I64, shape: F64, rate: F64, settings: Settings
) -> Values:
    """As `daily`, of any days.

    Args:
        last: count of the last complete day.
        weighted: weighted sum of earlier counts.
        weight: sum of weights.
        complete: complete days.
        shape: of the prior.
        rate: of the prior.
        settings: of the KPI.
    """
    shape, rate = shape + weighted, rate + weight
    success = rate / (rate + 1)
    p_low = betainc(shape, last + 1.0, success)
    p_high = np.where(last > 0, betainc(np.maximum(last, 1.0), shape, 1 - success), 1.0)
    exists = complete > 0
    p = np.where(exists, np.minimum(2 * np.minimum(0.5, np.minimum(p_low, p_high)), 1.0), np.nan)
    surprise = np.where(p_high < p_low, 1.0, -1.0) * -np.log10(np.maximum(p, LEAST_P))
    return {
        "frequency_surprise": surprise + 0.0,
        "p": p,
        "frequency_n": np.where(exists, last, np.nan),
        "frequency_days_n": np.where(exists, np.minimum(complete - 1, settings.history_days), np.nan),
    }


def _history(ledger: Ledger, begin: int | None, settings: Settings) -> tuple[F64, F64, F64, I64]:
    """Count of the last complete day, weighted sum of earlier counts, sum of weights, complete days; per slot.

    The grid of a part of the accounts may begin after the data do. The days that it lacks are days without records:
    they add nothing to counts, and their weight is added here.
    """
    days, opened = ledger.days, open_days(ledger, begin)
    starts, rows = days.arrivals()
    last, weighted, _, complete = daily_counts(
        days.starts,
        days.first_day,
        np.maximum(opened, days.first_day),
        starts,
        rows,
        days.day,
        days.known_day,
        settings.history_days,
        settings.other_weekday_weight,
    )
    since_opening = days.slot_day - opened[days.slot_account]
    complete = np.where(opened[days.slot_account] < days.first_day[days.slot_account], since_opening, complete)
    back = np.arange(settings.history_days + 1)
    share = np.where(back % 7 == 0, 1.0, settings.other_weekday_weight)
    share[0] = 0.0
    return last, weighted, np.cumsum(share)[np.clip(complete - 1, 0, settings.history_days)], complete


def _priors(days: Days, fitted: dict[str, Any]) -> tuple[F64, F64]:
    default = fitted["all"] or [np.nan, np.nan]
    of_segment = {s: fitted["prior"].get(s) or default for s in sorted(set(days.segment.to_list()))}
    table = np.array([of_segment[s] for s in days.segment.to_list()], float).reshape(len(days.accounts), 2)
    by_slot = table[days.slot_account]
    return by_slot[:, 0], by_slot[:, 1]


def _moment(ledger: Ledger) -> I64:
    """Code of the entity and of the moment at which each slot's day begins.

    A day begins later in New York than in Berlin: a correction over both would know in Berlin what is still to come
    in New York. (The certificate found this.)
    """
    days = ledger.days
    part = entities(ledger) * (int(days.zone.max(initial=0)) + 1) + days.zone
    return days.slot_day * (int(part.max(initial=0)) + 1) + part[days.slot_account]


def benjamini_hochberg(p: F64, group: I64, usable: Mask) -> F64:
    """Smallest false discovery rate at which each p-value is rejected, within its group; NaN where not usable.

    Source: Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57.
    """
    out = np.full(len(p), np.nan)
    rows = np.flatnonzero(usable)
    rows = rows[np.lexsort((p[rows], group[rows]))]
    for part in np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1):
        scaled = p[part] * len(part) / np.arange(1, len(part) + 1)
        out[part] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.asarray(np.minimum(out, 1.0))


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Daily values of the row's day, and the gaps before it."""
    w, history = settings.window, ledger.by_account
    slots = ledger.days.slot_of_row
    out = {name: values[slots] for name, values in daily(ledger, fitted, settings).items() if name != "p"}
    n, mean, sd, median = gap_statistics(history.tape(length_us(w)), ledger.time, len(ledger))
    _, latest = extreme_times(history.tape(FOREVER_US), ledger.time, len(ledger))
    since_us = np.where(latest >= 0, ledger.time - ledger.time[latest], np.nan)
    out[f"frequency_burstiness_{w}"] = where_enough(ratio(sd - mean, sd + mean), n, settings.least_n)
    out[f"frequency_gaps_n_{w}"] = n.astype(float)
    dormancy = since_us / 1e6 / np.maximum(median, LEAST_GAP_S)
    out[f"frequency_dormancy_{w}"] = where_enough(dormancy, n, settings.least_n_dormancy)
    out["frequency_hours_since_last"] = since_us / HOUR_US
    return out


def compute_rate(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """False discovery rate of the row's account among the accounts of its entity whose day begins with its own."""
    p, group, slots = daily(ledger, fitted, settings)["p"], _moment(ledger), ledger.days.slot_of_row
    usable = ~np.isnan(p)
    _, of_slot = np.unique(group, return_inverse=True)
    n = np.bincount(of_slot, weights=usable)[of_slot]
    return {
        "frequency_q": benjamini_hochberg(p, group, usable)[slots],
        "frequency_q_n": np.where(usable, n, np.nan)[slots],
    }


KPI = Kpi(
    name="frequency",
    number=4,
    title="Frequency anomalies",
    family="frequency",
    formula="Gamma-Poisson prediction of the last complete day's count: prior of the segment, posterior of the "
    "account's previous 56 days "
    "(same weekday weighs 1, others 0.25); F = -log10(2 min(0.5, P(N >= n), P(N <= n))), signed; burstiness and "
    "dormancy of gaps",
    unit="signed -log10 p",
    inputs=("account_id", "booked_at", "known_at", "opened_at", "segment", "timezone"),
    key="account",
    null_rule="the account is too young",
    source="Gelman et al. (2013), section 2.6 (Gamma-Poisson); Goh and Barabasi (2008), doi:10.1209/0295-5075/81/48002",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
RATE_KPI = Kpi(
    name="frequency_rate",
    number=4,
    title="Frequency anomalies among all accounts",
    family="frequency",
    formula="the smallest false discovery rate at which an account's day stands out among those of its entity: "
    "Benjamini and Hochberg over the p-values of KPI 4 of all accounts whose day begins at the same moment",
    unit="q-value",
    inputs=("account_id", "entity_id", "booked_at", "known_at", "opened_at", "segment", "timezone"),
    key="entity",
    null_rule="the account is too young",
    source="Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57, 289-300",
    settings=Settings,
    columns=rate_columns,
    compute=compute_rate,
    fit=fit,
    settings_key="frequency",
)
