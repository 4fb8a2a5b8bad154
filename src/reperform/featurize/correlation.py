"""KPI 12: does an account still follow its own rhythm and that of its peers?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.errors import ReperformError
from reperform.featurize.kernels import F64, I64, Mask
from reperform.featurize.ledger import Ledger
from reperform.featurize.opening import Series, data_begin, entities, series, stream_keys
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.rhythm import own_decoupling, peer_decoupling


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows of KPI 12, in days.

    Args:
        days: window whose correlation is judged.
        reference_days: days before it that it is compared with.
        least_reference_days: fewer give no score.
        lags: own earlier days that today is compared with; the best one counts.
        refresh_days: the score is taken anew every so many days, and kept in between: it moves slowly.
        shuffles: of the window's days for its p-value, at most.
        stop_at: shuffling stops once so many are as good as the days themselves.
        seed: of the shuffles.
    """

    days: int = 28
    reference_days: int = 90
    least_reference_days: int = 28
    lags: int = 7
    refresh_days: int = 7
    shuffles: int = 199
    stop_at: int = 10
    seed: int = 12


def columns(settings: Settings) -> tuple[Column, ...]:
    """Decoupling from the account's own past."""
    if settings.days <= settings.lags:
        raise ReperformError(
            "KPI 12's window is too short for its lags.",
            expected=f"more days than lags: at least {settings.lags + 1}",
            got=f"days: {settings.days}, lags: {settings.lags}",
            where="params.yaml:featurize.settings.correlation",
            fix="give more days or fewer lags in conf/featurize/ and run `make params`",
        )
    w = f"{settings.days}d"
    return (
        Column(
            f"correlation_self_{w}",
            f"{_z(settings)}; rho = largest Spearman with the account's own days 1 to {settings.lags} before",
            "z",
            w,
            null_rule=_rule(settings),
        ),
        Column(
            f"correlation_self_p_{w}",
            f"share of up to {settings.shuffles} shuffles of the window's days whose largest rank correlation over the "
            f"same lags reaches the observed one; shuffling stops at {settings.stop_at} of them",
            "p-value",
            w,
            is_model_input=False,
            null_rule=_rule(settings),
        ),
        Column(
            "correlation_reference_n",
            "days of the reference window",
            "days",
            w,
            is_model_input=False,
            null_rule="never",
        ),
    )


def peer_columns(settings: Settings) -> tuple[Column, ...]:
    """Decoupling from the accounts of the same entity and segment."""
    w = f"{settings.days}d"
    return (
        Column(
            f"correlation_peer_{w}",
            f"{_z(settings)}; rho = Spearman with the median of the other accounts of the entity's segment",
            "z",
            w,
            null_rule=f"{_rule(settings)}, or no peers on one of the days",
        ),
        Column(
            "correlation_peer_reference_n",
            "days of the reference window on which there were peers",
            "days",
            w,
            is_model_input=False,
            null_rule="never",
        ),
        Column(
            "correlation_peers_n",
            "other accounts of the entity's segment known on the last day of the window",
            "accounts",
            w,
            is_model_input=False,
            null_rule="never",
        ),
    )


def _z(settings: Settings) -> str:
    return (
        f"(atanh rho of up to {settings.reference_days} days before - atanh rho of {settings.days}d) / standard error"
    )


def _rule(settings: Settings) -> str:
    least = settings.days + settings.least_reference_days
    return f"fewer than {least} days, or no variation in one of the windows"


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """The day on which the data begin."""
    return {"begin": data_begin(ledger, end_us)}


def peer_medians(of: Series, group: I64) -> tuple[F64, I64]:
    """Median of the other accounts of the group on the same day, and their number.

    Args:
        of: the series.
        group: group of each account.

    Returns:
        Per slot: median, NaN without any or for accounts not yet known; number, 0 there.
    """
    out, number = np.full(len(of.x), np.nan), np.zeros(len(of.x), np.int64)
    slots = np.flatnonzero(of.day >= of.alive[of.account])
    if len(slots) == 0:
        return out, number
    key = of.day[slots] * (int(group.max()) + 1) + group[of.account[slots]]
    order = np.lexsort((of.x[slots], key))
    slots, key = slots[order], key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    size = np.diff(np.append(starts, len(key)))
    begin, n = np.repeat(starts, size), np.repeat(size, size)
    rank, others = np.arange(len(key)) - begin, n - 1
    upper, lower = others // 2, (others - 1) // 2
    at = [begin + np.where(k < rank, k, np.minimum(k + 1, n - 1)) for k in (lower, upper)]
    values = of.x[slots]
    out[slots] = np.where(others > 0, 0.5 * (values[at[0]] + values[at[1]]), np.nan)
    number[slots] = others
    return out, number


def _slots(ledger: Ledger, of: Series, settings: Settings) -> tuple[I64, Mask, Mask]:
    """Slot whose score each row takes, whether it has one, and the slots to compute.

    Scores change on fixed days of the calendar: days counted from an account's first record would move with late ones.
    """
    days = ledger.days
    offset = days.day - days.day % settings.refresh_days - of.first_day[days.account_of_row]
    holds = offset >= 0
    slots = of.starts[days.account_of_row] + np.maximum(offset, 0)
    wanted = np.zeros(len(of.x), np.bool_)
    wanted[slots[holds]] = True
    return slots, holds, wanted


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Decoupling from the own past on the row's day."""
    of, w = series(ledger, fitted.get("begin")), f"{settings.days}d"
    slots, holds, wanted = _slots(ledger, of, settings)
    z, p, n = own_decoupling(
        of.starts,
        of.x,
        wanted,
        of.alive - of.first_day,
        of.first_day,
        stream_keys(ledger.days.accounts),
        settings.days,
        settings.reference_days,
        settings.least_reference_days,
        settings.lags,
        settings.shuffles,
        settings.stop_at,
        settings.seed,
    )
    return {
        f"correlation_self_{w}": np.where(holds, z[slots], np.nan),
        f"correlation_self_p_{w}": np.where(holds, p[slots], np.nan),
        "correlation_reference_n": np.where(holds, n[slots], 0.0),
    }


def peer_groups(ledger: Ledger) -> I64:
    """Entity and segment of each account of `ledger.days`, as one code."""
    _, segment = np.unique(ledger.days.segment.to_numpy().astype(str), return_inverse=True)
    return entities(ledger) * (int(segment.max(initial=0)) + 1) + segment


def compute_peers(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Decoupling from peers on the row's day."""
    of, w = series(ledger, fitted.get("begin")), f"{settings.days}d"
    slots, holds, wanted = _slots(ledger, of, settings)
    medians, number = peer_medians(of, peer_groups(ledger))
    z, n = peer_decoupling(
        of.starts,
        of.x,
        medians,
        wanted,
        of.alive - of.first_day,
        settings.days,
        settings.reference_days,
        settings.least_reference_days,
    )
    last = slots - 2  # a day later than the account's own days, peers' days are over in every timezone
    earlier = holds & (last >= of.starts[ledger.days.account_of_row])
    return {
        f"correlation_peer_{w}": np.where(holds, z[slots], np.nan),
        "correlation_peer_reference_n": np.where(holds, n[slots], 0.0),
        "correlation_peers_n": np.where(earlier, number[np.maximum(last, 0)], 0.0),
    }


SOURCE = (
    "Fieller, Hartley and Pearson (1957), doi:10.1093/biomet/44.3-4.470; Bartlett (1935), doi:10.2307/2342284; "
    "Besag and Clifford (1991), doi:10.1093/biomet/78.2.301"
)
FORMULA = (
    "x = daily ln(1 + amount) less the median of its weekday; z = (atanh rho_ref - atanh rho_now) / "
    "sqrt(1.06/(n_ref - 3) + 1.06/(n_now - 3)); n effective: n / (1 + 2 sum_k r_x(k) r_y(k)). "
)
KPI = Kpi(
    name="correlation",
    number=12,
    title="Temporal correlation score",
    family="correlation",
    formula=FORMULA + "Own days through yesterday; the p-value of the largest of several lags by shuffling the days",
    unit="z",
    inputs=("account_id", "booked_at", "known_at", "opened_at", "amount_base", "timezone"),
    key="account",
    null_rule="the account is too young, or its days do not vary",
    source=SOURCE,
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
PEER_KPI = Kpi(
    name="correlation_peers",
    number=12,
    title="Temporal correlation score, with peers",
    family="correlation",
    formula=FORMULA + "Days through the day before yesterday, when they are over in every timezone",
    unit="z",
    inputs=("account_id", "entity_id", "booked_at", "known_at", "opened_at", "amount_base", "segment", "timezone"),
    key="entity",
    null_rule="the account is too young, has no peers, or its days do not vary",
    source=SOURCE,
    settings=Settings,
    columns=peer_columns,
    compute=compute_peers,
    fit=fit,
    settings_key="correlation",
)
