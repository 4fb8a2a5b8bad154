"""KPI 2, beside the robust score: amounts as multiples of the account's median, also those of the last days."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize import rank_kernels
from reperform.featurize.kernels import F64
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.streaks import places
from reperform.featurize.windows import length_us, ratio

MOST_CENTS = 3_000_000_000
CENTS = 100


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and limit.

    Args:
        window: history behind median, mean and standard deviation.
        recent: last days in which amounts that stand out are counted.
        factor: medians from which an amount stands out.
    """

    window: str = "180d"
    recent: str = "14d"
    factor: float = 3.0


def columns(settings: Settings) -> tuple[Column, ...]:
    """Multiples of the median, amounts that stood out lately, and the classical score."""
    w, recent, many = settings.window, settings.recent, f"{settings.factor:g}"
    lately = f"no known record of the account in this direction in {recent}"
    return (
        Column(f"amount_to_median_{w}", "amount / median of past amounts", "x", w),
        Column(f"amount_sd_score_{w}", "(amount - mean of past amounts) / (their standard deviation + 1)", "SD", w),
        Column(f"amount_median_{w}", "ln(1 + median of past amounts)", "natural log", w),
        Column(
            f"amount_history_n_{w}", "records behind them", "transactions", w, is_model_input=False, null_rule="never"
        ),
        Column(
            f"amount_spike_max_{recent}",
            f"largest amount in [t - {recent}, t) / median of past amounts",
            "x",
            recent,
            null_rule=lately,
        ),
        Column(
            f"amount_spike_n_{recent}", f"amounts above {many} medians in [t - {recent}, t)", "transactions", recent
        ),
        Column(
            f"amount_spike_share_{recent}",
            f"of the amounts in [t - {recent}, t), those above {many} medians",
            "share",
            recent,
            null_rule=lately,
        ),
    )


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """The row's and recent amounts against the account's past in the same direction."""
    history, w, recent = ledger.by_account_direction, settings.window, settings.recent
    by_size = np.lexsort((ledger.cents, history.codes))
    starts = np.searchsorted(history.codes[by_size], np.arange(history.keys + 1))
    counts, values = rank_kernels.spikes(
        history.tape(length_us(w)), history.tape(length_us(recent)),
        starts, by_size, places(starts, by_size, len(ledger)),
        ledger.cents, settings.factor, MOST_CENTS, len(ledger),
    )  # fmt: skip
    n, n_recent, n_above = counts.T
    median, largest, mean, deviation = values.T / CENTS
    return {
        f"amount_to_median_{w}": ratio(ledger.amount, median),
        f"amount_sd_score_{w}": (ledger.amount - mean) / (deviation + 1),
        f"amount_median_{w}": np.log1p(median),
        f"amount_history_n_{w}": n.astype(float),
        f"amount_spike_max_{recent}": ratio(largest, median),
        f"amount_spike_n_{recent}": np.where(n > 0, n_above, np.nan),
        f"amount_spike_share_{recent}": ratio(n_above, n_recent),
    }


KPI = Kpi(
    name="amount_spike",
    number=2,
    title="Amounts as multiples of the account's median",
    family="amount",
    formula="x / med(past x) over the account's past in the same direction; the largest such multiple, and how many "
    "lie above the limit, in the last days",
    unit="x",
    inputs=("account_id", "booked_at", "known_at", "direction", "amount_base"),
    key="account",
    null_rule="no known record of the account in this direction in the window",
    source="Iglewicz and Hoaglin (1993), How to Detect and Handle Outliers; Fenwick (1994), A new data structure for "
    "cumulative frequency tables",
    settings=Settings,
    columns=columns,
    compute=compute,
)
