"""Figures of stage monitor: which features and scores moved, and how performance went from week to week."""

from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, DayLocator
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reperform import figures
from reperform.figures import BLUE, DETECTOR_COLOURS, ORANGE, VERMILION

GREY = "#8C8C8C"
STATUS_COLOURS = {"stable": BLUE, "warn": ORANGE, "act": VERMILION, "unknown": GREY}
NO_FEATURE = ("missing:", "silent_days:")


def drift_bars(drift: pl.DataFrame, ignored: Sequence[str], limits: tuple[float, float], top: int = 25) -> Figure:
    """The features that moved most: stability index above its null mean, with the limits.

    Args:
        drift: `data/monitor/drift.parquet`.
        ignored: features that no detector uses; they are left out.
        limits: from where to warn, and from where to act.
        top: how many.
    """
    is_feature = ~pl.any_horizontal(pl.col("name").str.starts_with(prefix) for prefix in NO_FEATURE)
    rows = (
        drift.filter((pl.col("kind") == "data") & is_feature & ~pl.col("name").is_in(list(ignored)))
        .with_columns(excess=pl.col("value") - pl.col("null_value"))
        .drop_nulls("excess")
        .sort(["excess", "name"], descending=[True, False])
        .head(top)
    )
    return _bars(rows, limits, "population stability index, less its mean without change")


def score_bars(drift: pl.DataFrame, limits: tuple[float, float]) -> Figure:
    """How far every detector's scores moved from the validation's.

    Args:
        drift: `data/monitor/drift.parquet`.
        limits: from where to warn, and from where to act.
    """
    rows = (
        drift.filter((pl.col("kind") == "score") & (pl.col("name") != "alerts_per_day"))
        .with_columns(excess=pl.col("value") - pl.col("null_value"))
        .drop_nulls("excess")
    )
    return _bars(rows, limits, "population stability index, less its mean without change")


def performance_by_week(drift: pl.DataFrame) -> Figure:
    """Average precision of each week after training, by labels known, beside the validation's (dotted).

    Args:
        drift: `data/monitor/drift.parquet`.
    """
    parts = pl.col("name").str.extract_groups(r"^(?<detector>\w+)\.average_precision:(?<week>.+)$")
    rows = (
        drift.filter(pl.col("kind") == "performance")
        .with_columns(parts.alias("parts"))
        .unnest("parts")
        .drop_nulls("week")
        .with_columns(pl.col("week").str.to_date())
    )
    figure, (axes,) = figures.new(8.0, 3.6)
    if not rows["value"].drop_nulls().len():
        return _nothing(figure, axes, "no week with enough known anomalies")
    for detector in [name for name in DETECTOR_COLOURS if name in set(rows["detector"])]:
        part = rows.filter(pl.col("detector") == detector)
        colour = DETECTOR_COLOURS[detector]
        axes.plot(part["week"].to_numpy(), part["value"], marker="o", color=colour, label=detector.replace("_", " "))
        base = part["null_value"].drop_nulls()
        if base.len():
            axes.axhline(base[0], color=colour, linewidth=0.9, linestyle=":")
    locator = DayLocator(interval=7)
    axes.set_xticks(rows["week"].unique().sort().to_numpy())
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set(xlabel="week from Monday", ylabel="average precision", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _bars(rows: pl.DataFrame, limits: tuple[float, float], label: str) -> Figure:
    figure, (axes,) = figures.new(7.5, 1.2 + 0.22 * max(rows.height, 3))
    if not rows.height:
        return _nothing(figure, axes, "nothing was compared")
    colours = [STATUS_COLOURS[status] for status in rows["status"]]
    axes.barh(rows["name"].to_list(), rows["excess"].clip(lower_bound=0).to_numpy(), color=colours, height=0.7)
    axes.invert_yaxis()
    for limit, status in zip(limits, ("warn", "act"), strict=True):
        axes.axvline(limit, color=STATUS_COLOURS[status], linewidth=1, linestyle="--")
    # one bar far away must not hide the others
    axes.set_xscale("symlog", linthresh=limits[1])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlim(0, max(float(rows["excess"].to_numpy().max()) * 1.1, limits[1] * 1.3))
    axes.set_xticks([0, *limits, *[one for one in (1, 5) if one < axes.get_xlim()[1]]])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    used = [name for name in STATUS_COLOURS if name in set(rows["status"])]
    handles = [Patch(color=STATUS_COLOURS[name], label=name) for name in used]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4)
    return figure


def _nothing(figure: Figure, axes: Axes, reason: str) -> Figure:
    axes.text(0.5, 0.5, f"Nothing to draw: {reason}.", ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_axis_off()
    return figure
