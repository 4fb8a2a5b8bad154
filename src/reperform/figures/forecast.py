"""Figures of stage forecast: forecasts with intervals against what came, and how the models compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from reperform import figures
from reperform.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY

GREY = "#8C8C8C"
MODEL_COLOURS = {"seasonal_naive": BLACK, "auto_ets": BLUE, "auto_theta": ORANGE, "negative_binomial": GREEN}


def with_intervals(forecasts: pl.DataFrame, document: Mapping[str, Any], series: Sequence[str]) -> Figure:
    """The best model's forecasts of some series: from past origins against what came, and from the last day on.

    Args:
        forecasts: `data/forecast/forecasts.parquet`.
        document: `data/forecast/metrics.json`.
        series: names; one panel each.
    """
    known = [name for name in series if name in document["series"] and not document["series"][name]["reason"]]
    figure, axes = figures.new(9.0, 0.6 + 2.3 * max(len(known), 1), rows=max(len(known), 1))
    if not known:
        return _nothing(figure, axes[0])
    for panel, name in zip(axes, known, strict=True):
        _panel(panel, forecasts, document, name)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5)
    axes[-1].set_xlabel("day (UTC)")
    return figure


def skill(document: Mapping[str, Any]) -> Figure:
    """Skill of every model and series: how much smaller its score is than the seasonal naive forecast's.

    Args:
        document: `data/forecast/metrics.json`.
    """
    rows = [row for row in document["leaderboard"] if row["skill"] is not None and row["model"] != document["baseline"]]
    names = list(dict.fromkeys(row["series"] for row in rows))
    figure, (axes,) = figures.new(7.0, 1.1 + 0.34 * max(len(names), 2))
    if not rows:
        return _nothing(figure, axes)
    for model in dict.fromkeys(row["model"] for row in rows):
        part = [row for row in rows if row["model"] == model]
        axes.plot(
            [row["skill"] for row in part],
            [names.index(row["series"]) for row in part],
            "o",
            color=MODEL_COLOURS.get(model, PURPLE),
            label=model.replace("_", " "),
        )
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("skill against the seasonal naive forecast (right of 0 is better)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
    return figure


def coverage(document: Mapping[str, Any]) -> Figure:
    """How often intervals held what came, with binomial intervals, against how often they should.

    Args:
        document: `data/forecast/metrics.json`.
    """
    levels = document["levels"]
    best = {n: s["models"][s["best"]] for n, s in document["series"].items() if not s["reason"] and s["origins"]}
    figure, axes = figures.new(4.4 * max(len(levels), 1), 1.0 + 0.34 * max(len(best), 2), columns=max(len(levels), 1))
    if not best:
        return _nothing(figure, axes[0])
    for panel, level in zip(axes, levels, strict=True):
        values = [one[f"coverage_{level}"] for one in best.values()]
        middle, low, high = (np.array([v[key] for v in values]) for key in ("estimate", "low", "high"))
        panel.errorbar(
            middle,
            range(len(values)),
            xerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
            fmt="o",
            color=BLUE,
            ecolor=SKY,
        )
        panel.axvline(level / 100, color=GREY, linewidth=1, linestyle=":")
        panel.set_title(f"{level} % interval")
        panel.set(xlim=(0, 1.03), xlabel="share of days inside")
        panel.set_yticks(range(len(best)), list(best) if panel is axes[0] else [])
        panel.invert_yaxis()
    return figure


def account_risk(risks: pl.DataFrame, document: Mapping[str, Any], top: int = 7) -> Figure:
    """The risk of accounts: predicted against observed a horizon ago, and the course of those now at most risk.

    Args:
        risks: `data/forecast/account_risk.parquet`.
        document: `account_risk` of `data/forecast/metrics.json`.
        top: how many accounts.
    """
    figure, (left, right) = figures.new(9.4, 3.8, columns=2)
    judged, horizon = document.get("judged"), document.get("horizon_days")
    if judged:
        _deciles(left, judged["reliability"])
    else:
        _nothing(figure, left, "no horizon whose labels have matured")
    shown = risks.filter(pl.col("horizon_days") == horizon)
    names = [one["account_id"] for one in document.get("highest", [])[:top]]
    if not names:
        return _nothing(figure, right, "no account has a risk")
    for name in names:
        part = shown.filter(pl.col("account_id") == name).sort("snapshot")
        past, final = (part.filter(pl.col("model") == model) for model in ("past", "final"))
        (line,) = right.plot(past["snapshot"].to_numpy(), past["probability"], marker=".", label=name)
        # a second model, which knows more: a point of its own, so that a change of model does not look like a rise
        right.plot(final["snapshot"].to_numpy(), final["probability"], marker="D", color=line.get_color(), markersize=5)
    right.set_ylabel(f"probability within {horizon} days")
    right.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    right.set_ylim(bottom=0)
    _dates(right)
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="account")
    return figure


def _deciles(axes: Axes, bins: Sequence[Mapping[str, float]]) -> None:
    predicted, observed, low, high = (np.array([b[k] for b in bins]) for k in ("predicted", "observed", "low", "high"))
    axes.errorbar(
        predicted,
        observed,
        yerr=[np.maximum(observed - low, 0), np.maximum(high - observed, 0)],
        fmt="o",
        color=BLUE,
        ecolor=SKY,
        label="tenth of accounts, 95 % interval",
    )
    end = float(max(predicted.max(), high.max())) * 1.05
    axes.plot([0, end], [0, end], color=GREY, linewidth=1, linestyle=":", label="perfectly calibrated")
    axes.set(xlabel="predicted", ylabel="share of accounts with an anomaly", xlim=(0, end), ylim=(0, end))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.legend(loc="upper left")


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=4, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _panel(axes: Axes, forecasts: pl.DataFrame, document: Mapping[str, Any], name: str) -> None:
    summary = document["series"][name]
    rows = forecasts.filter((pl.col("series") == name) & (pl.col("model") == summary["best"]))
    colour = MODEL_COLOURS.get(summary["best"], PURPLE)
    wide, narrow = max(document["levels"]), min(document["levels"])
    for number, origin in enumerate(rows["origin"].unique(maintain_order=True)):
        part = rows.filter(pl.col("origin") == origin)
        day, first = part["day"].to_numpy(), number == 0
        for level, alpha in ((wide, 0.13), (narrow, 0.25)):
            axes.fill_between(
                day,
                part[f"low_{level}"],
                part[f"high_{level}"],
                color=colour,
                alpha=alpha,
                linewidth=0,
                label=f"{level} % interval" if first else None,
            )
        axes.plot(day, part["mean"], color=colour, linewidth=1.4, label="forecast" if first else None)
        axes.axvline(day[0] - np.timedelta64(12, "h"), color=GREY, linewidth=0.8, linestyle=":")
    past = rows.filter(pl.col("actual").is_not_null()).sort("day")
    axes.plot(past["day"].to_numpy(), past["actual"], "o", color=BLACK, markersize=3, label="what came")
    _dates(axes)
    axes.set_title(f"{name}: {summary['best'].replace('_', ' ')}")
    axes.set_ylabel(summary["unit"].replace(" per ", "\nper ", 1))
    axes.set_ylim(bottom=0 if rows[f"low_{wide}"].min() == 0 else None)


def _nothing(figure: Figure, axes: Axes, reason: str = "no series is long enough") -> Figure:
    axes.text(0.5, 0.5, f"Nothing to draw: {reason}.", ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_axis_off()
    return figure
