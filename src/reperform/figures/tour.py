"""Figures of the tour: one account's story."""

from typing import Any

import polars as pl
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reperform import figures


def account_story(transactions: pl.DataFrame, alerts: pl.DataFrame) -> Figure:
    """An account's money in and out over time, with what was flagged.

    Args:
        transactions: `booked_at`, `direction`, `amount_base` of one account.
        alerts: `booked_at`, `amount_base` of its alerts.
    """
    figure, (axes,) = figures.new(8.4, 3.4)
    for direction, sign, colour in (("in", 1, figures.GREEN), ("out", -1, figures.BLUE)):
        rows = transactions.filter(pl.col("direction") == direction)
        axes.vlines(_naive(rows["booked_at"]), 0, (rows["amount_base"] * sign).to_list(), color=colour, linewidth=1.2)
        axes.plot([], [], color=colour, label=f"{direction} ({rows.height})")
    signs = alerts.join(transactions.select("transaction_id", "direction"), on="transaction_id", maintain_order="left")
    heights = (signs["amount_base"] * signs["direction"].replace_strict({"in": 1, "out": -1})).to_list()
    axes.scatter(
        _naive(signs["booked_at"]),
        heights,
        s=46,
        facecolors="none",
        edgecolors=figures.VERMILION,
        linewidths=1.6,
        label=f"alert ({signs.height})",
        zorder=4,
    )
    axes.axhline(0, color=figures.BLACK, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel("booked at (UTC)")
    axes.set_ylabel("amount (base currency, out below zero)")
    locator = AutoDateLocator(minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.legend(loc="upper left", ncols=3)
    return figure


def _naive(moments: pl.Series) -> NDArray[Any]:
    # naive UTC: matplotlib would import a time zone database for the rest
    return moments.dt.replace_time_zone(None).to_numpy()
