"""Figures of stage evaluate: what the detectors found, what it took, and how far their scores can be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reperform import figures
from reperform.figures import BLACK, BLUE, DETECTOR_COLOURS, ORANGE, SKY, VERMILION

GREY = "#8C8C8C"
PALE = "#C9D3DC"
ENSEMBLE = "ensemble"


def score_timeline(outcomes: pl.DataFrame) -> Figure:
    """Every transaction of the test by time and ensemble score, with what the alerts caught and missed.

    Args:
        outcomes: `data/evaluate/outcomes.parquet`.
    """
    figure, (axes,) = figures.new(9.6, 4.8)
    if not outcomes.height:
        return _nothing(figure, axes, "no transactions in the test period")
    quiet = outcomes.filter(pl.col("outcome").is_null() | (pl.col("outcome") == "quiet"))
    _points(axes, quiet, marker=".", s=3, color=PALE, linewidths=0, rasterized=True, zorder=1)
    styles = {
        "caught": {"marker": "o", "s": 30, "color": BLUE, "edgecolors": "white", "linewidths": 0.6, "zorder": 4},
        "missed": {"marker": "x", "s": 24, "color": BLACK, "linewidths": 1.0, "zorder": 3},
        "false alarm": {
            "marker": "o",
            "s": 22,
            "facecolors": "none",
            "edgecolors": ORANGE,
            "linewidths": 0.9,
            "zorder": 2,
        },
    }
    words = {"caught": "anomaly, alerted", "missed": "anomaly, missed", "false alarm": "alert, no anomaly"}
    for outcome, style in styles.items():
        part = outcomes.filter(pl.col("outcome") == outcome)
        _points(axes, part, label=f"{words[outcome]} ({part.height:,})", **style)
    axes.set_ylim(float(outcomes["score"].quantile(0.002) or 0), None)
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], marker="o", markersize=4, color=PALE, linestyle="none"))
    labels.append(f"other transactions ({quiet.height:,})")
    alerts = outcomes.filter("is_alert")
    if alerts.height:
        handles.append(axes.axhline(alerts["score"].to_numpy().min(), color=VERMILION, linewidth=1, linestyle="--"))
        labels.append("alert threshold")
    axes.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, handletextpad=0.3, columnspacing=1.3
    )
    _dates(axes)
    axes.set_ylabel("ensemble score")
    axes.margins(x=0.01)
    axes.grid(visible=False)
    return figure


def precision_recall(curves: pl.DataFrame, metrics: Mapping[str, Any]) -> Figure:
    """Precision against recall of every detector, and the prevalence that a random order would give.

    Args:
        curves: `data/evaluate/curves.parquet`.
        metrics: `data/evaluate/metrics.json`.
    """
    figure, (axes,) = figures.new(7.0, 4.2)
    lines = curves.filter(pl.col("curve") == "precision_recall")
    if not lines.height:
        return _nothing(figure, axes, "no anomaly whose truth is known")
    for detector in _ordered(lines["detector"].unique(maintain_order=True).to_list()):
        part = lines.filter(pl.col("detector") == detector)
        found = metrics[detector]["average_precision"]
        axes.plot(
            part["x"],
            part["y"],
            drawstyle="steps-pre",
            color=DETECTOR_COLOURS.get(detector, GREY),
            linewidth=2.4 if detector == ENSEMBLE else 1.3,
            linestyle="--" if detector == "rules" else "-",
            zorder=3 if detector == ENSEMBLE else 2,
            label=f"{_words(detector)}  {_interval(found)}",
        )
    prevalence = next(iter(metrics.values()))["prevalence"]["estimate"]
    axes.axhline(prevalence, color=GREY, linewidth=1.2, linestyle=":", label=f"random order  {prevalence:.4f}")
    axes.set(xlabel="recall (share of anomalies found)", ylabel="precision (share of alerts that are anomalies)")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(title="average precision (95 % interval)", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def recall_by_alert_share(curves: pl.DataFrame, counts: Mapping[str, int]) -> Figure:
    """Share of anomalies found against the share of transactions that are looked at."""
    figure, (axes,) = figures.new(7.0, 3.8)
    lines = curves.filter((pl.col("curve") == "recall_by_alert_share") & (pl.col("x") > 0))
    if not lines.height:
        return _nothing(figure, axes, "no anomaly whose truth is known")
    for detector in _ordered(lines["detector"].unique(maintain_order=True).to_list()):
        part = lines.filter(pl.col("detector") == detector)
        axes.plot(
            part["x"],
            part["y"],
            color=DETECTOR_COLOURS.get(detector, GREY),
            linewidth=2.4 if detector == ENSEMBLE else 1.3,
            linestyle="--" if detector == "rules" else "-",
            label=_words(detector),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
    axes.set(ylim=(0, 1.02), xlabel=f"share of the {counts['measured']:,} test transactions that are looked at")
    axes.set_ylabel("share of anomalies found")
    axes.legend(loc="upper left")
    return figure


def recall_by_typology(per_typology: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of each typology's transactions among the rows that each detector would have had looked at.

    Args:
        per_typology: `per_typology` of `data/evaluate/tables.json`.
    """
    names = sorted({row["typology"] for row in per_typology})
    detectors = _ordered(list(dict.fromkeys(row["detector"] for row in per_typology)))
    figure, (axes,) = figures.new(1.2 + 0.95 * max(len(detectors), 4), 1.1 + 0.36 * max(len(names), 2))
    if not names:
        return _nothing(figure, axes, "no anomaly whose truth is known")
    found = {(row["typology"], row["detector"]): row for row in per_typology}
    recall = np.array([[found[name, detector]["recall"] for detector in detectors] for name in names])
    order = np.argsort(-recall[:, -1], kind="stable")
    names, recall = [names[i] for i in order], recall[order]
    image = axes.imshow(recall, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, column in np.ndindex(recall.shape):
        cell = found[names[row], detectors[column]]
        colour = "black" if recall[row, column] > 0.55 else "white"  # noqa: PLR2004  # legible on either end of the map
        axes.text(column, row, f"{cell['recall']:.0%}", ha="center", va="center", color=colour, fontsize=8)
    first = [found[name, detectors[0]] for name in names]
    labels = [f"{_words(one['typology'])} (n={one['n']}){'' if one['labels_before_test'] else ' *'}" for one in first]
    axes.set_xticks(range(len(detectors)), [_words(d).replace(" ", "\n", 1) for d in detectors])
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="recall at equal effort", format=lambda x, _: f"{x:.0%}", pad=0.02)
    if any(not one["labels_before_test"] for one in first):
        axes.set_xlabel("* no label of this typology was known before the test", loc="left")
    return figure


def alerts_per_day(per_day: Sequence[Mapping[str, Any]], detector: str = ENSEMBLE) -> Figure:
    """Alerts on each day of the test, split into hits and false alarms, with the day's anomalies.

    Args:
        per_day: `per_day` of `data/evaluate/tables.json`.
        detector: whose alerts.
    """
    figure, (axes,) = figures.new(9.0, 3.2)
    rows = pl.DataFrame([row for row in per_day if row["detector"] == detector])
    if not rows.height:
        return _nothing(figure, axes, "no transactions in the test period")
    day = rows["day"].str.to_date().to_numpy()
    axes.bar(day, rows["hits"], width=0.8, color=BLUE, label="alerts on anomalies")
    axes.bar(day, rows["alerts"] - rows["hits"], width=0.8, bottom=rows["hits"], color=PALE, label="other alerts")
    axes.plot(
        day, rows["anomalies"], marker="_", markersize=11, mew=1.6, color=BLACK, linestyle="none", label="anomalies"
    )
    _dates(axes)
    axes.set_ylabel("transactions per day")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
    return figure


def reliability(bins: Sequence[Mapping[str, float]]) -> Figure:
    """Observed share of anomalies against the predicted probability, in bins of about as many rows.

    Args:
        bins: `reliability` of `data/evaluate/tables.json`.
    """
    figure, (axes,) = figures.new(4.6, 4.2)
    if not bins:
        return _nothing(figure, axes, "no calibrated probabilities")
    predicted, observed, low, high = (np.array([b[k] for b in bins]) for k in ("predicted", "observed", "low", "high"))
    floor = 0.3 * max(min(predicted[predicted > 0].min(initial=1), observed[observed > 0].min(initial=1)), 1e-6)
    shown = np.maximum(observed, floor)
    axes.plot([floor, 1], [floor, 1], color=GREY, linewidth=1, linestyle=":", label="perfectly calibrated")
    axes.errorbar(
        np.maximum(predicted, floor),
        shown,
        yerr=[shown - np.maximum(low, floor), np.maximum(high - shown, 0)],
        fmt="none",
        ecolor=SKY,
        elinewidth=1.4,
        label="95 % interval",
    )
    some = observed > 0
    axes.plot(predicted[some], observed[some], "o", color=BLUE, markersize=5, label="bin with anomalies")
    if not some.all():
        empty = np.maximum(predicted[~some], floor)
        axes.plot(empty, np.full(empty.size, floor), "v", color=BLUE, mfc="white", label="bin without")
    axes.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="observed share of anomalies")
    axes.set(xlim=(floor, 1.1), ylim=(floor * 0.8, 1.1))
    axes.legend(loc="upper left")
    return figure


def savings(costs: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of loss and effort saved against the cost of one review.

    Args:
        costs: `costs` of `data/evaluate/tables.json`.
    """
    figure, (axes,) = figures.new(7.0, 3.8)
    rows = [row for row in costs if row["savings"] is not None]
    if not rows:
        return _nothing(figure, axes, "no anomaly whose truth is known")
    for detector in _ordered(list(dict.fromkeys(row["detector"] for row in rows))):
        part = [r for r in rows if r["detector"] == detector and r["policy"] == "attainable"]
        axes.plot(
            [r["review_cost"] for r in part],
            [r["savings"] for r in part],
            color=DETECTOR_COLOURS.get(detector, GREY),
            linewidth=2.2 if detector == ENSEMBLE else 1.3,
            marker=".",
            label=_words(detector),
        )
    chosen = [r for r in rows if r["detector"] == ENSEMBLE and r["policy"] == "by_probability"]
    if chosen:
        axes.plot(
            [r["review_cost"] for r in chosen],
            [r["savings"] for r in chosen],
            color=VERMILION,
            linestyle="--",
            marker="o",
            mfc="white",
            label="ensemble, as it\nwould have decided",
        )
    axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.set(ylim=(max(axes.get_ylim()[0], -0.5), 1.02), xlabel="cost of one review (base currency)")
    axes.set_ylabel("savings at the best threshold")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def power_maps(cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of injected events found, by amount and gap between payments: one row per pattern, one map per length.

    Args:
        cells: `cells` of `reports/studies/power.json`.
    """
    patterns = list(dict.fromkeys(cell["pattern"] for cell in cells))
    if not patterns:
        figure, (axes,) = figures.new(7.0, 2.0)
        return _nothing(figure, axes, "no pattern was injected")
    lengths = {name: sorted({c["length"] for c in cells if c["pattern"] == name}) for name in patterns}
    columns = max(len(of) for of in lengths.values())
    wide = 2 if len(patterns) > 3 else 1  # noqa: PLR2004  # two patterns side by side, so that the page stays readable
    rows = -(-len(patterns) // wide)
    figure, every = figures.new(2.4 * columns * wide + 1.0, 1.55 * rows + 0.7, rows, columns * wide)
    image = None
    for place, axes in enumerate(every):
        row, column = divmod(place, columns * wide)
        number = row * wide + column // columns
        name = patterns[number] if number < len(patterns) else None
        of = lengths[name] if name else []
        if name is None or column % columns >= len(of):
            axes.set_axis_off()
            continue
        image = _power_map(axes, [c for c in cells if c["pattern"] == name and c["length"] == of[column % columns]])
        axes.set_title(f"{_words(name)}, {of[column % columns]} payments", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=every, label="share of events found", format=lambda x, _: f"{x:.0%}", shrink=0.6)
    figure.supxlabel("amount of one payment (base currency)", fontsize=9)
    figure.supylabel("time between payments", fontsize=9)
    return figure


def _power_map(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> Any:
    amounts, gaps = (sorted({cell[key] for cell in cells}) for key in ("amount", "gap_hours"))
    share = np.full((len(gaps), len(amounts)), np.nan)
    for cell in cells:
        at = gaps.index(cell["gap_hours"]), amounts.index(cell["amount"])
        share[at] = cell["share"]
        colour = "black" if cell["share"] > 0.55 else "white"  # noqa: PLR2004  # legible on either end of the map
        axes.text(at[1], at[0], f"{cell['found']}/{cell['events']}", ha="center", va="center", color=colour, fontsize=7)
    image = axes.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(amounts)), [f"{amount:,.0f}" for amount in amounts], fontsize=7)
    axes.set_yticks(range(len(gaps)), [_gap(gap) for gap in gaps], fontsize=7)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return image


def _gap(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:g} h" if hours < 48 else f"{hours / 24:g} d"  # noqa: PLR2004  # two days read better than 48 hours


def heldout_recall(records: Sequence[Mapping[str, Any]], found_from: float, detector: str = ENSEMBLE) -> Figure:
    """Recall of each typology when no label ever showed it, beside its recall when labels did.

    A ring says how much would be found were the other typologies' rows not there to use up the alerts.

    Args:
        records: `records` of `reports/studies/heldout.json`.
        found_from: recall from which a typology counts as found.
        detector: whose.
    """
    rows = sorted((r for r in records if r["detector"] == detector), key=lambda r: (r["recall"] or 0, r["typology"]))
    figure, (axes,) = figures.new(8.4, 1.0 + 0.32 * max(len(rows), 2))
    if not rows:
        return _nothing(figure, axes, "no typology was held out")
    place = np.arange(len(rows))
    recall, alone, low, high, seen = (
        np.array([row[key] or 0.0 for row in rows])
        for key in ("recall", "recall_alone", "low", "high", "recall_with_labels")
    )
    axes.hlines(place, recall, seen, color=PALE, linewidth=3, zorder=1)
    axes.errorbar(
        recall, place, xerr=[recall - low, high - recall], fmt="o", color=VERMILION, ecolor=ORANGE, elinewidth=1.2,
        markersize=6, zorder=3, label="never shown, with\n95 % interval",
    )  # fmt: skip
    axes.plot(
        alone, place, "o", color=VERMILION, markerfacecolor="none", markersize=9, zorder=2,
        label="never shown, other typologies\nout of the way",
    )  # fmt: skip
    axes.plot(seen, place, "D", color=BLUE, markersize=5, zorder=2, label="shown by labels")
    axes.axvline(found_from, color=GREY, linewidth=1, linestyle=":", label=f"counts as found\nfrom {found_from:.0%}")
    axes.set_yticks(place, [f"{_words(row['typology'])} (n={row['n']})" for row in rows])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set(xlim=(-0.02, 1.02), xlabel="share of its transactions among the alerts")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def segment_rates(rows: Sequence[Mapping[str, Any]], title: str, detector: str = ENSEMBLE) -> Figure:
    """Recall and false positive rate of each group of one segment, with intervals; hollow where a group is too small.

    Args:
        rows: one of the `per_<segment>` tables of `data/evaluate/tables.json`.
        title: what the groups are, for the axis.
        detector: whose.
    """
    chosen = [row for row in rows if row["detector"] == detector][::-1]
    figure, axes = figures.new(8.0, 1.1 + 0.27 * max(len(chosen), 3), 1, 2)
    if not chosen:
        axes[1].set_axis_off()
        return _nothing(figure, axes[0], "no transactions in the test period")
    place = np.arange(len(chosen))
    for one, key, label in zip(axes, ("recall", "false_positive_rate"), ("recall", "false positive rate"), strict=True):
        for at, row in zip(place, chosen, strict=True):
            if row[key] is None:
                continue
            low, high = (
                row[f"{key}{end}"] if row[f"{key}{end}"] is not None else row[key] for end in ("_low", "_high")
            )
            one.plot([low, high], [at, at], color=SKY, linewidth=1.6, zorder=1)
            small = bool(row["too_small"]) and key == "recall"
            one.plot(row[key], at, "o", color=BLUE, mfc="white" if small else BLUE, markersize=5, zorder=2)
        one.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
        one.set(xlabel=label, ylim=(-0.6, len(chosen) - 0.4))
        one.grid(visible=False, axis="y")
    axes[0].set_xlim(-0.03, 1.03)
    axes[1].set_xlim(left=-0.03 * axes[1].get_xlim()[1])
    axes[0].set_yticks(place, [f"{row['group']} ({row['anomalies']} of {row['n']:,})" for row in chosen])
    axes[0].set_ylabel(title)
    axes[1].set_yticks(place, [""] * len(chosen))
    return figure


def _points(axes: Axes, rows: pl.DataFrame, **style: Any) -> None:
    # naive UTC: matplotlib would import a time zone database for the rest
    when = rows["booked_at"].dt.replace_time_zone(None).to_numpy()
    axes.scatter(when, rows["score"].to_numpy(), **style)


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=4, maxticks=10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("booked at (UTC)")


def _nothing(figure: Figure, axes: Axes, reason: str) -> Figure:
    axes.text(0.5, 0.5, f"Nothing to draw: {reason}.", ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_axis_off()
    return figure


def _ordered(detectors: Sequence[str]) -> list[str]:
    known = [name for name in DETECTOR_COLOURS if name in detectors]
    return [*[name for name in detectors if name not in known], *known]


def _words(name: str) -> str:
    return name.replace("_", " ").replace("xgboost", "XGBoost").replace("lstm", "LSTM").replace("svm", "SVM")


def _interval(metric: Mapping[str, Any]) -> str:
    if metric["estimate"] is None:
        return "n/a"
    if metric["low"] is None:
        return f"{metric['estimate']:.3f}"
    return f"{metric['estimate']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"
