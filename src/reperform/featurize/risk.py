"""KPI 7: risk of a counterparty, and of the account itself, from the labels that were confirmed by then."""

from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy.special import betaincinv

from reperform.featurize.kernels import F64, I64, dense, extreme_times
from reperform.featurize.ledger import UNKNOWN_TIME_US, Ledger
from reperform.featurize.registry import Column, Key, Kpi, Values
from reperform.featurize.windows import DAY_US, FOREVER_US, History, length_us, ratio


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Listed:
    """A counterparty on a list, such as of sanctions or of politically exposed persons, and when that was known.

    A listing counts from the day on which it was in force and published; an end counts once it is published, too.

    Args:
        party: counterparty, as transactions name it.
        effective_from: first day.
        citation: the list and its version.
        effective_to: last day, if it has ended.
        published: day on which the listing was published; the first day, if not given.
        end_published: day on which its end was published; the day after the last, if not given.
    """

    party: str
    effective_from: date
    citation: str
    effective_to: date | None = None
    published: date | None = None
    end_published: date | None = None

    @property
    def begin(self) -> date:
        """First day on which the listing was in force and known."""
        return max(self.effective_from, self.published or self.effective_from)

    @property
    def end(self) -> date | None:
        """First day on which it was over and known to be; None while it lasts."""
        if self.effective_to is None:
            return None
        after = self.effective_to + timedelta(days=1)
        return max(after, self.end_published or after)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and prior of KPI 7.

    Args:
        windows: lengths over which the score is taken, by the time at which transactions happened.
        confirmed_windows: lengths over which confirmations are counted, by the time at which they arrived.
        prior_weight: weight of the training rate, in resolved transactions.
        interval: probability that the interval holds.
        lists: counterparties on lists, each with the days on which the listing was in force and known.
    """

    windows: list[str] = field(default_factory=lambda: ["30d", "180d"])
    confirmed_windows: list[str] = field(default_factory=lambda: ["24h", "7d", "14d", "30d"])
    prior_weight: float = 20.0
    interval: float = 0.9
    lists: list[Listed] = field(default_factory=list)


def columns_of(who: Key) -> Callable[[Settings], tuple[Column, ...]]:
    """Columns of the score for accounts or counterparties."""

    def columns(settings: Settings) -> tuple[Column, ...]:
        out: list[Column] = []
        for w in settings.windows:
            out += [
                Column(
                    f"{who}_risk_{w}",
                    f"(anomalies known by t + k pi0) / (resolved by t + k) over [t - {w}, t)",
                    "probability",
                    w,
                ),
                Column(f"{who}_risk_n_{w}", "resolved transactions behind it", "transactions", w, is_model_input=False),
            ]
        w, percent = settings.windows[-1], f"{settings.interval:.0%}"
        out += [
            Column(
                f"{who}_risk_low_{w}",
                f"lower end of the {percent} Beta interval",
                "probability",
                w,
                is_model_input=False,
            ),
            Column(
                f"{who}_risk_high_{w}",
                f"upper end of the {percent} Beta interval",
                "probability",
                w,
                is_model_input=False,
            ),
        ]
        for w in settings.confirmed_windows:
            out += [
                Column(
                    f"{who}_confirmed_n_{w}",
                    f"anomalies whose label arrived in [t - {w}, t]",
                    "transactions",
                    w,
                    null_rule=f"the row names no {who}",
                ),
                Column(
                    f"{who}_confirmed_share_{w}",
                    f"of the transactions that were resolved in [t - {w}, t], the anomalies",
                    "share",
                    w,
                    null_rule=f"no transaction of the {who} was resolved in {w}",
                ),
            ]
        never = f"no anomaly of the {who} is known by t"
        out += [
            Column(
                f"{who}_days_since_anomaly",
                "days since the latest anomaly that is known by t happened",
                "days",
                null_rule=never,
            ),
            Column(
                f"{who}_days_since_confirmation",
                "days since the latest label of an anomaly arrived",
                "days",
                null_rule=never,
            ),
        ]
        if who == "counterparty":
            out.append(
                Column(
                    "counterparty_listed",
                    "1 if the counterparty stood on a list on the day of the row, as published by then",
                    "0 or 1",
                    null_rule="the row names no counterparty, or no list is given in featurize.settings.risk.lists",
                )
            )
        return tuple(out)

    return columns


def positive_known(ledger: Ledger) -> I64:
    """When each row is known to be an anomaly, microseconds; `UNKNOWN_TIME_US` for rows that never are."""
    said, confirmed = ledger.label
    moment = np.maximum(np.maximum(confirmed, ledger.known), ledger.time + 1)
    return np.where(said == 1, moment, UNKNOWN_TIME_US)


def resolved_known(ledger: Ledger) -> I64:
    """When each row counts as resolved: its anomaly is known, or it is old enough to count as normal.

    An anomaly that is confirmed only after that age counts as normal until then: nobody could know better.
    """
    mature = ledger.time + int(ledger.maturity.total_seconds() * 1e6)
    return np.minimum(np.maximum(np.maximum(mature, ledger.known), ledger.time + 1), positive_known(ledger))


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """The rate of anomalies among rows that were resolved before the training window ended.

    Half an anomaly is added (Jeffreys' prior), so that a window without any gives no impossible event.
    """
    resolved = ledger.known_before(end_us) & (resolved_known(ledger) < end_us)
    anomalies = resolved & (positive_known(ledger) < end_us)
    n, k = int(resolved.sum()), int(anomalies.sum())
    return {"rate": (k + 0.5) / (n + 1) if n and ledger.labels.height else None, "resolved": n, "anomalies": k}


def compute_of(who: Key) -> Callable[[Ledger, dict[str, Any], Any, Mapping[str, F64]], Values]:
    """The score for accounts or counterparties."""

    def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
        history = ledger.by_account if who == "account" else ledger.by_counterparty
        named = history.codes >= 0
        scores = _scores(ledger, history, who, fitted["rate"], settings)
        recent = _recent(ledger, history, who, settings)
        lists = {"counterparty_listed": listed(ledger, settings.lists)} if who == "counterparty" else {}
        return {name: np.where(named, values, np.nan) for name, values in {**scores, **recent, **lists}.items()}

    return compute


def listed(ledger: Ledger, lists: list[Listed]) -> F64:
    """1 where the counterparty stood on a list, as the list was known on that day."""
    out = np.full(len(ledger), 0.0 if lists else np.nan)
    for entry in lists:
        stands = ledger.among("counterparty_id", [entry.party])
        stands &= ledger.time >= _day_us(entry.begin)
        if entry.end:
            stands &= ledger.time < _day_us(entry.end)
        out[stands] = 1.0
    return out


def _day_us(day: date) -> int:
    return int(datetime.combine(day, time(), tzinfo=UTC).timestamp()) * 1_000_000


def _scores(ledger: Ledger, history: History, who: str, rate: float | None, settings: Settings) -> Values:
    out, pi0, weight = Values(), np.nan if rate is None else rate, settings.prior_weight
    for window in settings.windows:
        leave = ledger.time + length_us(window)
        anomalies = _seen(history, positive_known(ledger), leave)
        resolved = _seen(history, resolved_known(ledger), leave)
        out[f"{who}_risk_{window}"] = (anomalies + weight * pi0) / (resolved + weight)
        out[f"{who}_risk_n_{window}"] = resolved.astype(float)
        if window == settings.windows[-1]:
            low, high = beta_interval(anomalies, resolved, weight * pi0, weight * (1 - pi0), settings.interval)
            out[f"{who}_risk_low_{window}"], out[f"{who}_risk_high_{window}"] = low, high
    return out


def _recent(ledger: Ledger, history: History, who: str, settings: Settings) -> Values:
    out, positive, resolved = Values(), positive_known(ledger), resolved_known(ledger)
    for window in settings.confirmed_windows:
        confirmed = _seen(history, positive, positive + length_us(window))
        # A row that first counted as normal and is confirmed later counts as resolved again when its label arrives.
        settled = _seen(history, resolved, resolved + length_us(window))
        again = np.where((positive < UNKNOWN_TIME_US) & (resolved < positive), positive, UNKNOWN_TIME_US)
        settled += _seen(history, again, again + length_us(window))
        out[f"{who}_confirmed_n_{window}"] = confirmed.astype(float)
        out[f"{who}_confirmed_share_{window}"] = ratio(confirmed, settled)
    known = history.tape_of(_codes_of(history, positive), positive, np.full(len(ledger), FOREVER_US))
    _, latest = extreme_times(known, ledger.time, len(ledger))
    _, newest = extreme_times(known, positive, len(ledger))
    for name, row, since in (("anomaly", latest, ledger.time), ("confirmation", newest, positive)):
        out[f"{who}_days_since_{name}"] = np.where(row >= 0, (ledger.time - since[row]) / DAY_US, np.nan)
    return out


def _seen(history: History, enter: I64, leave: I64) -> I64:
    events = history.tape_of(_codes_of(history, enter), enter, leave)
    (n,) = history.sums(events, np.ones(len(history), np.int64))
    return n


def _codes_of(history: History, enter: I64) -> I64:
    return np.where(enter < UNKNOWN_TIME_US, history.codes, -1)


def beta_interval(anomalies: I64, resolved: I64, alpha: float, beta: float, share: float) -> tuple[F64, F64]:
    """Central interval of Beta(alpha + anomalies, beta + resolved - anomalies), once per pair of counts."""
    which, first = dense(anomalies * (resolved.max(initial=0) + 1) + resolved)
    a, b = alpha + anomalies[first], beta + resolved[first] - anomalies[first]
    tail = (1 - share) / 2
    return betaincinv(a, b, tail)[which], betaincinv(a, b, 1 - tail)[which]


def _kpi(who: Key, title: str) -> Kpi:
    return Kpi(
        name=f"{who}_risk",
        number=7,
        title=title,
        family="risk",
        formula=f"R(t) = (anomalies of the {who} in [t - W, t) confirmed by t + k pi0) / (resolved by t + k); "
        "resolved = confirmed, "
        "or old enough to count as normal; pi0 = training rate",
        unit="probability",
        inputs=(f"{who}_id", "booked_at", "known_at", "is_anomaly", "confirmed_at"),
        key=who,
        null_rule="the row names no counterparty, or there are no labels to learn the rate from"
        if who == "counterparty"
        else "there are no labels to learn the rate from",
        source="Gelman et al. (2013), Bayesian Data Analysis, section 2.4 (Beta-Binomial); label delay as in Le "
        "Borgne et al. (2022), Fraud Detection Handbook",
        settings=Settings,
        columns=columns_of(who),
        compute=compute_of(who),
        fit=fit,
        settings_key="risk",
    )


COUNTERPARTY_RISK = _kpi("counterparty", "Counterparty risk score")
ACCOUNT_RISK = _kpi("account", "Account risk history")
