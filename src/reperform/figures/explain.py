"""Figures of stage explain: which features matter, why one alert was raised, how far the explanation can be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reperform import figures
from reperform.explain.receipts import labelled, number

KPI_COLOURS = (
    figures.BLUE,
    figures.ORANGE,
    figures.GREEN,
    figures.VERMILION,
    figures.PURPLE,
    figures.SKY,
    figures.YELLOW,
)
OTHER = "#999999"
POPULATION_COLOURS = {"alerts": figures.VERMILION, "non_alerts": figures.BLUE}
POPULATION_WORDS = {"alerts": "alerts", "non_alerts": "random non-alerts"}
BAR_INCH = 0.24


def importance(table: pl.DataFrame, top: int = 15) -> Figure:
    """Mean absolute SHAP contribution of the largest features on alerts, coloured by KPI.

    Args:
        table: `explain/importance.parquet`.
        top: features shown.
    """
    rows = table.filter(pl.col("population") == "alerts").sort("rank").head(top)
    if not rows.height:
        return _nothing("no alert was explained")
    colours = _kpi_colours(rows)
    figure, (axes,) = figures.new(7.0, 1.2 + BAR_INCH * rows.height)
    place = np.arange(rows.height)
    bars = [colours[number_of] for number_of in rows["kpi_number"]]
    axes.barh(place, rows["mean_abs_contribution"].to_numpy(), color=bars, height=0.72)
    axes.set_yticks(place, [labelled(name) for name in rows["feature"]])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"mean |SHAP| over alerts ({rows['unit'][0]})")
    handles = [Patch(color=colour, label=_kpi(rows, number_of)) for number_of, colour in colours.items()]
    axes.legend(handles=handles, title="KPI", loc="lower right")
    return figure


def waterfall(receipt: Mapping[str, Any]) -> Figure:
    """One alert: from the model's usual score, feature by feature, to the score that it got.

    Args:
        receipt: one of `explain/receipts.json`.
    """
    model = receipt["explained_member"]
    told = list(receipt["features"])
    rest = model["sum_of_contributions"] - sum(f["contribution"] for f in told)
    steps = [*((_with_value(f), f["contribution"]) for f in told), ("all other features", rest)]
    figure, (axes,) = figures.new(7.0, 1.3 + 1.3 * BAR_INCH * len(steps))
    at = model["base"]
    for place, (_, size) in enumerate(steps):
        colour = figures.VERMILION if size > 0 else figures.BLUE
        axes.barh(place, size, left=at, color=colour, height=0.66)
        if place + 1 < len(steps):
            axes.plot([at + size] * 2, [place - 0.33, place + 1.33], color=OTHER, linewidth=0.8)
        axes.annotate(
            f"{size:+.2f}",
            (max(at, at + size), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        at += size
    axes.axvline(model["base"], color=OTHER, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(steps)), [name for name, _ in steps])
    axes.set_ylim(len(steps) - 0.4, -0.6)
    axes.use_sticky_edges = False
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(
        f"score of {model['detector']} ({model['unit']}); usual {number(model['base'])}, here {number(model['score'])}"
    )
    return figure


def agreement(attributions: pl.DataFrame, explainability: pl.DataFrame) -> Figure:
    """How alike SHAP and LIME are: contributions against each other, and shared top features per transaction.

    Args:
        attributions: `explain/attributions.parquet`.
        explainability: `explain/explainability.parquet`.
    """
    if not attributions.height:
        return _nothing("nothing was explained")
    figure, (points, counts) = figures.new(7.0, 3.4, columns=2)
    _contributions(points, attributions)
    _overlaps(counts, explainability)
    return figure


def components(quality: Mapping[str, Any]) -> Figure:
    """The components of KPI 15 with their bootstrap intervals, on alerts and on random non-alerts.

    Args:
        quality: `explain/quality.json`.
    """
    weights = quality["exponents"]
    names = ["additivity", *sorted(weights, key=lambda name: (-weights[name], name))]
    figure, (axes,) = figures.new(7.0, 3.4)
    for offset, (population, colour) in zip((-0.13, 0.13), POPULATION_COLOURS.items(), strict=True):
        found = quality["populations"][population]
        known = [(i, found[name]) for i, name in enumerate(names) if found[name]["estimate"] is not None]
        if not known:
            continue
        middle = np.array([metric["estimate"] for _, metric in known])
        spread = np.array([[m["estimate"] - m["low"], m["high"] - m["estimate"]] for _, m in known]).T
        index = found["index"]["estimate"]
        label = f"{POPULATION_WORDS[population]}, index {index:.0f}" if index is not None else population
        place = np.array([i for i, _ in known]) + offset
        axes.errorbar(middle, place, xerr=np.maximum(spread, 0), fmt="o", color=colour, label=label, capsize=2.5)
    axes.set_yticks(range(len(names)), [_component_words(name, weights) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.05)
    axes.set_xlabel(f"component, 0 to 1, with {100 * quality['interval']:.0f} % bootstrap interval over accounts")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _contributions(axes: Axes, attributions: pl.DataFrame) -> None:
    wide = attributions.pivot(
        on="method", index=["transaction_id", "feature"], values="contribution", maintain_order=True
    )
    if {"shap", "lime"} <= set(wide.columns):
        axes.scatter(wide["shap"], wide["lime"], s=5, alpha=0.25, color=figures.BLUE, linewidths=0, rasterized=True)
    axes.axhline(0, color=OTHER, linewidth=0.8)
    axes.axvline(0, color=OTHER, linewidth=0.8)
    axes.set_xlabel("SHAP contribution")
    axes.set_ylabel("LIME weight")
    axes.set_title("one point: a feature of an alert", fontsize=9)


def _overlaps(axes: Axes, explainability: pl.DataFrame) -> None:
    levels = np.arange(0, 1.01, 0.2)
    for offset, (population, colour) in zip((-0.2, 0.2), POPULATION_COLOURS.items(), strict=True):
        rows = explainability.filter((pl.col("population") == population) & pl.col("agreement").is_not_null())
        if rows.height:
            nearest = np.abs(rows["agreement"].to_numpy()[:, None] - levels).argmin(axis=1)
            shares = np.bincount(nearest, minlength=len(levels)) / rows.height
            axes.bar(
                np.arange(len(levels)) + offset, shares, width=0.38, color=colour, label=POPULATION_WORDS[population]
            )
    axes.set_xticks(range(len(levels)), [f"{100 * level:.0f} %" for level in levels])
    axes.set_xlabel("share of top features in common")
    axes.set_ylabel("share of transactions")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _kpi(rows: pl.DataFrame, number_of: int | None) -> str:
    """Number and title; the shortest, where parts of a KPI have titles of their own."""
    if number_of is None:
        return "none"
    titles = rows.filter(pl.col("kpi_number") == number_of)["kpi"].to_list()
    return f"{number_of} {min(titles, key=len)}"


def _kpi_colours(rows: pl.DataFrame) -> dict[int | None, str]:
    """A colour for each KPI number, in order of its largest feature; those beyond the palette share grey."""
    keys = list(dict.fromkeys(rows["kpi_number"].to_list()))
    return {key: KPI_COLOURS[i] if i < len(KPI_COLOURS) else OTHER for i, key in enumerate(keys)}


def _with_value(feature: Mapping[str, Any]) -> str:
    value = "unknown" if feature["value"] is None else number(feature["value"])
    return f"{feature['label']} = {value}"


def _component_words(name: str, exponents: Mapping[str, float]) -> str:
    return f"{name} (gate)" if name == "additivity" else f"{name} (weight {exponents[name]:g})"


def _nothing(words: str) -> Figure:
    figure, axes = figures.new(7.0, 1.6)
    _write(axes, words)
    return figure


def _write(axes: Sequence[Axes], words: str) -> None:
    for one in axes:
        one.set_axis_off()
        one.text(0.5, 0.5, words, ha="center", va="center")
