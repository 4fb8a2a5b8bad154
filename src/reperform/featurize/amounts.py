"""KPI 2: how far an amount lies from what the account usually moves in the same direction."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, order_statistics
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import length_us, ratio, where_enough

MAD_TO_SD = 1.4826  # of a normal distribution
LARGEST_Z = 20.0  # in means, so that one amount does not hide all others
FLOOR = 0.05  # keeps the score finite for accounts that always move the same amount


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and limits of KPI 2.

    Args:
        window: history that the amount is compared with.
        least_n: fewer records give no score.
        backoff_weight: weight of the group's median, in records.
        flag_above: robust standard deviations from which an amount is flagged.
        score_windows: lengths over which scores are averaged.
        mean_windows: windows whose mean amount the row's amount is divided by.
    """

    window: str = "90d"
    least_n: int = 5
    backoff_weight: float = 10.0
    flag_above: float = 3.5
    score_windows: list[str] = field(default_factory=lambda: ["24h", "7d"])
    mean_windows: list[str] = field(default_factory=lambda: ["24h", "7d", "30d"])


def columns(settings: Settings) -> tuple[Column, ...]:
    """The score, its number of records, the ranks beside it, and ratios to recent means."""
    w, least = settings.window, settings.least_n
    rule = f"fewer than {least} known records of the account in this direction in {w}"
    means = [
        Column(
            f"amount_to_mean_{window}",
            f"amount / mean amount of the account's known records in this direction in [t - {window}, t)",
            "x",
            window,
            null_rule=f"no known record of the account in this direction in {window}",
        )
        for window in settings.mean_windows
    ]
    return (
        Column("amount_log", "ln(1 + amount in base currency) of the row itself", "natural log", null_rule="never"),
        Column("amount_is_incoming", "1 for money in, 0 for money out", "0 or 1", null_rule="never"),
        Column(
            f"amount_deviation_z_{w}",
            "(ln(1+x) - backed-off median) / (1.4826 MAD + 0.05)",
            "robust SD",
            w,
            null_rule=rule,
        ),
        Column(
            f"amount_deviation_n_{w}",
            "records behind the score",
            "transactions",
            w,
            is_model_input=False,
            null_rule="never",
        ),
        Column(
            f"amount_deviation_flag_{w}",
            f"1 if |z| > {settings.flag_above}",
            "0 or 1",
            w,
            is_model_input=False,
            null_rule=rule,
        ),
        Column(f"amount_to_max_{w}", "amount / largest past amount", "x", w, null_rule=rule),
        Column(f"amount_rank_{w}", "(past amounts below + half of the equal ones) / n", "share", w, null_rule=rule),
        *means,
        *(
            Column(
                f"amount_deviation_mean_{window}",
                "mean z of the account's rows, as scored then (at most 20 either way), the row included",
                "robust SD",
                window,
                null_rule="no row with a score in the window",
            )
            for window in settings.score_windows
        ),
    )


def groups(ledger: Ledger) -> pl.Series:
    """Group of each row that medians are backed off to: segment, channel and direction."""
    return pl.select(
        pl.concat_str(
            ledger.segment,
            ledger.transactions["channel"].fill_null("unknown"),
            ledger.transactions["direction"],
            separator="|",
        )
    ).to_series()


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """Median of ln(1 + amount) per group and per direction, over the rows that may be learned from."""
    rows = pl.DataFrame(
        {"group": groups(ledger), "direction": ledger.transactions["direction"], "log": np.log1p(ledger.amount)}
    ).filter(ledger.known_before(end_us))
    return {key: _medians(rows, key) for key in ("group", "direction")}


def _medians(rows: pl.DataFrame, key: str) -> dict[str, float]:
    medians = rows.sort(key).group_by(key, maintain_order=True).agg(pl.col("log").median())
    return dict(zip(medians[key].to_list(), medians["log"].to_list(), strict=True))


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Robust scores of the row's own amount against the account's past in the same direction."""
    history, w = ledger.by_account_direction, settings.window
    log_amount = np.log1p(ledger.amount)
    events = history.tape(length_us(w))
    n, median, deviation, largest, rank = order_statistics(events, log_amount, len(ledger))
    centre = backed_off(median, n, group_median(ledger, fitted), settings.backoff_weight)
    z = where_enough((log_amount - centre) / (MAD_TO_SD * deviation + FLOOR), n, settings.least_n)
    out: Values = {
        "amount_log": log_amount,
        "amount_is_incoming": ledger.incoming.astype(float),
        f"amount_deviation_z_{w}": z,
        f"amount_deviation_n_{w}": n.astype(float),
        f"amount_deviation_flag_{w}": np.where(np.isnan(z), np.nan, np.abs(z) > settings.flag_above),
        f"amount_to_max_{w}": where_enough(ratio(ledger.amount, np.expm1(largest)), n, settings.least_n),
        f"amount_rank_{w}": where_enough(rank, n, settings.least_n),
    }
    ones = np.ones(len(ledger), np.int64)
    for window in settings.mean_windows:
        count, cents = history.sums(history.tape(length_us(window)), ones, ledger.cents)
        out[f"amount_to_mean_{window}"] = ratio(ledger.amount * count, cents / 100)
    for window in settings.score_windows:
        clipped = np.clip(z, -LARGEST_Z, LARGEST_Z)
        out[f"amount_deviation_mean_{window}"] = ledger.by_account.mean_scores(window, clipped)
    return out


def group_median(ledger: Ledger, fitted: dict[str, Any]) -> F64:
    """The group's training median; the direction's where the group is new; NaN where nothing was learned."""

    def median(segment: str, channel: str | None, direction: str) -> float:
        group = f"{segment}|{'unknown' if channel is None else channel}|{direction}"
        return float(fitted["group"].get(group, fitted["direction"].get(direction, np.nan)))

    return ledger.looked_up(["segment", "channel", "direction"], median)


def backed_off(own: F64, n: Any, of_group: F64, weight: float) -> F64:
    """Medians drawn towards those of groups, the more the fewer records are behind them."""
    mixed = (n * own + weight * of_group) / (n + weight)
    return np.where(np.isnan(of_group), own, mixed)


KPI = Kpi(
    name="amount_deviation",
    number=2,
    title="Amount deviation",
    family="amount",
    formula="z = (ln(1+x) - med*) / (1.4826 MAD + 0.05) over the account's past in the same direction; "
    "med* = (n med_account + k med_group) / (n + k), group = segment, channel and direction on the training window",
    unit="robust standard deviations",
    inputs=("account_id", "booked_at", "known_at", "direction", "amount_base", "segment", "channel"),
    key="account",
    null_rule="too few known records in the window",
    source="Iglewicz and Hoaglin (1993), How to Detect and Handle Outliers",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
