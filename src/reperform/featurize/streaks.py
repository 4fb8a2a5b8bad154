"""KPI 7, in order of time: is the counterparty, or the account, in the middle of a run of anomalies?

Shares over windows of days (`risk`) forget the order. A terminal that was taken over yesterday and one that was cleared
yesterday have the same share of anomalies in a month; the run that ends with the latest resolved record differs.
"""

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform.featurize import rank_kernels, risk
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import UNKNOWN_TIME_US, Ledger
from reperform.featurize.registry import Column, Key, Kpi, Values
from reperform.featurize.windows import DAY_US, FOREVER_US, History, length_us


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """How far runs and shares look.

    Args:
        latest: numbers of latest resolved records over which the share of anomalies is taken.
        span: how far back the oldest known anomaly may lie.
    """

    latest: list[Annotated[int, Field(ge=1)]] = field(default_factory=lambda: [5, 15])
    span: str = "36d"


def columns_of(who: Key) -> Callable[[Settings], tuple[Column, ...]]:
    """Columns for accounts or counterparties."""

    def columns(settings: Settings) -> tuple[Column, ...]:
        never = f"no anomaly of the {who} is known by t"
        return (
            Column(
                f"{who}_anomaly_run",
                "anomalies in a row that end with the latest resolved record",
                "transactions",
            ),
            Column(
                f"{who}_anomaly_run_days",
                "days since the first anomaly of this run happened",
                "days",
                null_rule=f"the latest resolved record of the {who} is normal, or there is none",
            ),
            *(
                Column(f"{who}_anomaly_share_last_{n}", f"anomalies among the latest {n} resolved records", "share")
                for n in settings.latest
            ),
            Column(
                f"{who}_resolved_n",
                "resolved records behind runs and shares",
                "transactions",
                is_model_input=False,
            ),
            Column(
                f"{who}_normal_n_since_anomaly",
                "normal records since the latest anomaly, resolved ones alone",
                "transactions",
                null_rule=never,
            ),
            Column(
                f"{who}_days_since_first_anomaly_{settings.span}",
                f"days since the oldest anomaly in [t - {settings.span}, t) happened",
                "days",
                settings.span,
                null_rule=f"no anomaly of the {who} in {settings.span} is known by t",
            ),
        )

    return columns


def compute_of(who: Key) -> Callable[[Ledger, dict[str, Any], Any, Mapping[str, F64]], Values]:
    """Runs and shares for accounts or counterparties."""

    def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
        history = ledger.by_account if who == "account" else ledger.by_counterparty
        found, among = _resolved(ledger, history, settings)
        unknown = (history.codes < 0) | (fitted["rate"] is None)
        n = np.maximum(found[:, 0], 0)
        out: Values = {
            f"{who}_anomaly_run": np.where(n > 0, found[:, 1], np.nan),
            f"{who}_anomaly_run_days": _days_since(ledger, found[:, 2]),
            f"{who}_resolved_n": n.astype(float),
            f"{who}_normal_n_since_anomaly": np.where(found[:, 3] >= 0, found[:, 3], np.nan),
            f"{who}_days_since_first_anomaly_{settings.span}": _days_since(ledger, found[:, 4]),
        }
        for column, latest in enumerate(settings.latest):
            share = among[:, column] / np.maximum(np.minimum(n, latest), 1)
            out[f"{who}_anomaly_share_last_{latest}"] = np.where(n > 0, share, np.nan)
        return {name: np.where(unknown, np.nan, values) for name, values in out.items()}

    return compute


def _resolved(ledger: Ledger, history: History, settings: Settings) -> tuple[I64, I64]:
    """What each row sees of its key's records, as they were resolved by then."""
    rows, positive, resolved = len(ledger), risk.positive_known(ledger), risk.resolved_known(ledger)
    # First it counts as normal, being old enough; then its anomaly is confirmed after all.
    later = np.where((positive < UNKNOWN_TIME_US) & (resolved < positive), positive, UNKNOWN_TIME_US)
    enter = np.concatenate([resolved, later])
    codes = np.where(enter < UNKNOWN_TIME_US, np.concatenate([history.codes, history.codes]), -1)
    events = history.tape_of(codes, enter, np.full(2 * rows, FOREVER_US))
    ordered = history.by_time
    return rank_kernels.streaks(
        events, ordered.starts, ordered.rows, places(ordered.starts, ordered.rows, rows), history.time,
        positive <= resolved, np.array(settings.latest, np.int64), length_us(settings.span), rows,
    )  # fmt: skip


def places(starts: I64, rows: I64, n: int) -> I64:
    """Each row's place among its key's rows, from 0; -1 for rows without a key."""
    out = np.full(n, -1, np.int64)
    out[rows] = np.arange(len(rows)) - np.repeat(starts[:-1], np.diff(starts))
    return out


def _days_since(ledger: Ledger, row: I64) -> F64:
    return np.where(row >= 0, (ledger.time - ledger.time[row]) / DAY_US, np.nan)


def _kpi(who: Key) -> Kpi:
    return Kpi(
        name=f"{who}_streak",
        number=7,
        title=f"Runs of anomalies of the {who}",
        family="risk",
        formula=f"over the {who}'s records resolved by t, in order of time: anomalies in a row that end with the "
        "latest; resolved = confirmed, or old enough to count as normal",
        unit="transactions",
        inputs=(f"{who}_id", "booked_at", "known_at", "is_anomaly", "confirmed_at"),
        key=who,
        null_rule=("the row names no counterparty, " if who == "counterparty" else "")
        + f"no record of the {who} is resolved by t, or there are no labels",
        source="Wald and Wolfowitz (1940), On a test whether two samples are from the same population (runs); label "
        "delay as in Le Borgne et al. (2022), Fraud Detection Handbook",
        settings=Settings,
        columns=columns_of(who),
        compute=compute_of(who),
        fit=_fit,
        settings_key="streak",
    )


def _fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """As for the score of risk: without labels nothing is known of anomalies."""
    return risk.fit(ledger, end_us, risk.Settings())


COUNTERPARTY_KPI = _kpi("counterparty")
ACCOUNT_KPI = _kpi("account")
