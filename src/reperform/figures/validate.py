"""Figures on the quality of data: what arrived, how complete it is, how late, and what was refused."""

from datetime import timedelta

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from reperform import figures

MOST_ENTITIES = 12
PALE_FROM = 0.45  # shares above it are drawn so light that dark text reads better
MINUTE_HOURS = 1 / 60
TICKS_HOURS = {1 / 60: "1 min", 1 / 6: "10 min", 1: "1 h", 6: "6 h", 24: "1 day", 168: "1 week"}


def rows_per_day(days: pl.DataFrame) -> Figure:
    """Transactions per UTC day of booking, one panel per institution: gaps and jumps of a feed.

    Args:
        days: as `schemas.QUALITY_DAYS`.
    """
    entities = _largest(days)
    if not entities:
        return nothing("No transactions")
    figure, axes = figures.new(7.0, 0.6 + 0.75 * len(entities), rows=len(entities))
    span = _span(days)
    for entity, axis in zip(entities, axes, strict=True):
        own = span.join(days.filter(pl.col("entity_id") == entity), on="day", how="left", maintain_order="left")
        counts = own.get_column("n_transactions").fill_null(0).to_numpy()
        axis.fill_between(
            own.get_column("day").to_numpy(), counts, step="mid", color=figures.SKY, alpha=0.6, linewidth=0
        )
        axis.plot(own.get_column("day").to_numpy(), counts, drawstyle="steps-mid", color=figures.BLUE, linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.set_title(entity, fontsize=8, pad=2)
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="y", nbins=3)
        axis.sharex(axes[0])
        axis.label_outer()
    figure.supylabel("transactions per day", fontsize=8)
    first, last = span.get_column("day")[0], span.get_column("day")[-1]
    axes[0].set_xlim(first - timedelta(days=1), last + timedelta(days=1))
    locator = AutoDateLocator(maxticks=8)
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes[-1].set_xlabel("day of booking (UTC)")
    return figure


def completeness(shares: pl.DataFrame) -> Figure:
    """Share of values present, institutions down and columns across; what is complete stays blank: gaps stand out.

    Args:
        shares: `entity_id`, `column`, `share`.
    """
    entities = shares.get_column("entity_id").unique(maintain_order=True).to_list()[: MOST_ENTITIES + 1]
    columns = shares.get_column("column").unique(maintain_order=True).to_list()
    if not entities:
        return nothing("No transactions")
    lookup = {(row["entity_id"], row["column"]): row["share"] for row in shares.iter_rows(named=True)}
    grid = np.array([[lookup.get((entity, column), np.nan) for column in columns] for entity in entities])
    figure, (axis,) = figures.new(7.4, 1.5 + 0.3 * len(entities))
    axis.imshow(grid, vmin=0, vmax=1, aspect="auto", cmap="Blues_r")
    axis.set_xticks(range(len(columns)), columns, rotation=50, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(entities)), entities)
    axis.grid(visible=False)
    axis.set_xlabel("column of transactions")
    axis.set_ylabel("institution")
    for (row, column), share in np.ndenumerate(grid):
        if share < 1:
            colour = "black" if share > PALE_FROM else "white"
            axis.text(column, row, _percent(share), ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(np.arange(0.5, len(columns)), minor=True)
    axis.set_yticks(np.arange(0.5, len(entities)), minor=True)
    axis.grid(which="minor", color="0.85", linewidth=0.6)
    axis.tick_params(which="minor", length=0)
    axis.set_title("share of values present; an empty field is complete", fontsize=8)
    return figure


def amounts(mixes: pl.DataFrame) -> Figure:
    """Quantiles of amounts month by month, one panel per institution: a unit that changed moves all lines at once.

    Args:
        mixes: as `schemas.QUALITY_MIXES`.
    """
    rows = mixes.filter(pl.col("kind") == "amount_quantile")
    entities = _most_rows(rows)
    if not entities:
        return nothing("No transactions")
    figure, axes = _panels(entities)
    styles = {
        "0.05": (figures.SKY, ":"),
        "0.5": (figures.BLUE, "-"),
        "0.95": (figures.ORANGE, "--"),
        "0.99": (figures.VERMILION, ":"),
    }
    months = rows.get_column("month").unique().sort().to_list()
    drawn = rows.filter(pl.col("value").is_in(list(styles))).get_column("amount").to_numpy()
    drawn = drawn[drawn > 0] if (drawn > 0).any() else np.ones(1)
    for entity, axis in zip(entities, axes, strict=False):
        own = rows.filter(pl.col("entity_id") == entity)
        for name, (colour, line) in styles.items():
            at = dict(own.filter(pl.col("value") == name).select("month", "amount").iter_rows())
            axis.plot(
                months,
                [at.get(month, np.nan) for month in months],
                line,
                color=colour,
                label=f"{float(name):.0%} below",
                marker=".",
            )
        axis.set_yscale("log")
        axis.set_ylim(0.7 * float(drawn.min()), 1.4 * float(drawn.max()))
        axis.set_title(entity, fontsize=8, pad=2)
        axis.tick_params(labelsize=7)
        axis.tick_params(axis="x", rotation=45)
        axis.label_outer()
    figure.supylabel("amount (base currency, log scale)", fontsize=8)
    axes[-1].set_xlabel("month of booking (UTC)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)
    return figure


def hours(mixes: pl.DataFrame) -> Figure:
    """Share of rows per hour of the day (UTC), institutions down: people sleep at night, a wrong time zone does not.

    Args:
        mixes: as `schemas.QUALITY_MIXES`.
    """
    rows = mixes.filter(pl.col("kind") == "hour")
    entities = _most_rows(rows)
    if not entities:
        return nothing("No transactions")
    totals = rows.group_by("entity_id", "value").agg(pl.col("n").sum())
    lookup = {(entity, int(hour)): n for entity, hour, n in totals.iter_rows()}
    grid = np.array([[lookup.get((entity, hour), 0) for hour in range(24)] for entity in entities], dtype=float)
    grid /= grid.sum(axis=1, keepdims=True)
    figure, (axis,) = figures.new(7.0, 1.4 + 0.3 * len(entities))
    axis.imshow(grid, aspect="auto", cmap="Blues", vmin=0)
    axis.set_xticks(range(0, 24, 3))
    axis.set_yticks(range(len(entities)), entities)
    axis.grid(visible=False)
    axis.set_xlabel("hour of booking (UTC)")
    axis.set_ylabel("institution")
    axis.set_title(f"share of an institution's rows, from 0 (white) to {100 * grid.max():.0f} % (darkest)", fontsize=8)
    return figure


def mix(mixes: pl.DataFrame, kind: str) -> Figure:
    """Shares of the most frequent codes month by month, one panel per institution.

    Args:
        mixes: as `schemas.QUALITY_MIXES`.
        kind: `channel`, `currency` or `country`.
    """
    rows = mixes.filter(pl.col("kind") == kind)
    entities = _most_rows(rows)
    if not entities:
        return nothing("No transactions")
    frequent = rows.group_by("value").agg(pl.col("n").sum()).sort("n", "value", descending=[True, False])
    codes = frequent.get_column("value").head(6).to_list()
    months = rows.get_column("month").unique().sort().to_list()
    figure, axes = _panels(entities)
    colours = [figures.BLUE, figures.ORANGE, figures.GREEN, figures.PURPLE, figures.SKY, figures.VERMILION]
    for entity, axis in zip(entities, axes, strict=False):
        own = rows.filter(pl.col("entity_id") == entity)
        bottom = np.zeros(len(months))
        for code, colour in [*zip(codes, colours, strict=False), ("others", "0.75")]:
            part = (
                own.filter(~pl.col("value").is_in(codes)) if code == "others" else own.filter(pl.col("value") == code)
            )
            at = dict(part.group_by("month").agg(pl.col("share").sum()).iter_rows())
            height = np.array([100 * at.get(month, 0.0) for month in months])
            if code != "others" or height.any():
                axis.bar(months, height, bottom=bottom, color=colour, label=code)
            bottom += height
        axis.set_title(entity, fontsize=8, pad=2)
        axis.tick_params(labelsize=7)
        axis.tick_params(axis="x", rotation=45)
        axis.grid(visible=False)
        axis.label_outer()
    figure.supylabel(f"% of rows by {kind}", fontsize=8)
    axes[-1].set_xlabel("month of booking (UTC)")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=7, fontsize=8)
    return figure


def _panels(entities: list[str]) -> tuple[Figure, list[Axes]]:
    columns = min(3, len(entities))
    rows = -(-len(entities) // columns)
    figure, axes = figures.new(7.2, 1.0 + 1.5 * rows, rows=rows, columns=columns)
    for axis in axes[len(entities) :]:
        axis.set_axis_off()
    return figure, axes[: len(entities)]


def _most_rows(rows: pl.DataFrame) -> list[str]:
    totals = rows.group_by("entity_id").agg(pl.col("n").sum()).sort("n", "entity_id", descending=[True, False])
    return totals.head(MOST_ENTITIES).get_column("entity_id").to_list()


def lateness(quantiles: pl.DataFrame) -> Figure:
    """From booking until a transaction could be known, by institution, on a logarithmic scale.

    Args:
        quantiles: `entity_id`, `median`, `q90`, `q99`, `longest`, in hours.
    """
    shown = quantiles.head(MOST_ENTITIES)
    if shown.is_empty():
        return nothing("No transactions")
    figure, (axis,) = figures.new(7.0, 1.5 + 0.3 * shown.height)
    places = np.arange(shown.height)
    series = {name: np.maximum(shown.get_column(name).to_numpy(), MINUTE_HOURS) for name in shown.columns[1:]}
    axis.hlines(places, series["median"], series["longest"], color="0.7", linewidth=1)
    marks = {"median": ("o", figures.BLUE), "q90": ("s", figures.ORANGE), "q99": ("^", figures.VERMILION)}
    for name, (mark, colour) in marks.items():
        text = {"median": "half", "q90": "90 %", "q99": "99 %"}[name]
        axis.plot(series[name], places, mark, color=colour, label=f"{text} known", markersize=6)
    axis.plot(series["longest"], places, "|", color="0.3", label="all known", markersize=9)
    axis.set_yticks(places, shown.get_column("entity_id").to_list())
    axis.set_ylim(shown.height - 0.5, -0.5)
    _time_axis(axis, float(series["longest"].max()))
    axis.set_xlabel("time from booking until the row reached us (log scale; under a minute drawn as 1 min)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)
    return figure


def label_delay(delays: pl.DataFrame) -> Figure:
    """Days from a transaction to its confirmed label: how long a detector has to live without it.

    Args:
        delays: `days` as text, `anomalies`, `normal`.
    """
    anomalies, normal = (delays.get_column(name).to_numpy() for name in ("anomalies", "normal"))
    if not (anomalies.sum() + normal.sum()):
        return nothing("No labels")
    figure, (axis,) = figures.new(7.0, 3.0)
    places = np.arange(delays.height)
    axis.bar(places, anomalies, color=figures.VERMILION, label=f"anomaly ({anomalies.sum():,})")
    axis.bar(places, normal, bottom=anomalies, color=figures.SKY, label=f"reviewed, normal ({normal.sum():,})")
    axis.set_xticks(places, delays.get_column("days").to_list(), rotation=40, ha="right", rotation_mode="anchor")
    axis.grid(visible=False, axis="x")
    axis.set_xlabel("days from booking to confirmation")
    axis.set_ylabel("labels")
    axis.legend()
    return figure


def rows_by_rule(found: pl.DataFrame) -> Figure:
    """Rows that break a rule, by rule and by what happens to them, on a logarithmic scale.

    Args:
        found: `stage`, `rule`, `n`, `severity`.
    """
    if found.is_empty():
        return nothing("Every row passes every rule")
    shown = found.head(15)
    figure, (axis,) = figures.new(7.0, 1.2 + 0.28 * max(shown.height, 2))
    places = np.arange(shown.height)
    colours = {"quarantine": figures.VERMILION, "warn": figures.ORANGE}
    for severity, colour in colours.items():
        mask = (shown.get_column("severity") == severity).to_numpy()
        if mask.any():
            label = "kept out" if severity == "quarantine" else "counted, kept"
            axis.barh(places[mask], shown.get_column("n").to_numpy()[mask], color=colour, label=label)
    for place, n in zip(places, shown.get_column("n").to_list(), strict=True):
        axis.text(n, float(place), f" {n:,}", va="center", fontsize=8)
    names = [f"{row['rule']} ({row['stage']})" for row in shown.iter_rows(named=True)]
    axis.set_yticks(places, names)
    axis.set_ylim(max(shown.height, 2) - 0.5, -0.5)
    axis.set_xscale("log")
    axis.set_xlim(left=0.8, right=max(20, 4 * int(shown.get_column("n").max())))  # type: ignore[arg-type]  # not empty
    axis.set_xlabel("rows (log scale)")
    axis.legend(loc="lower right")
    return figure


def filing_delay(late: pl.DataFrame) -> Figure:
    """Days from the due date to the filing, by form; what lies right of zero came late.

    Args:
        late: `form`, `days`.
    """
    forms = late.get_column("form").unique().sort().to_list()
    if not forms:
        return nothing("No filings with a due date")
    figure, (axis,) = figures.new(7.0, 3.0)
    lists = [late.filter(pl.col("form") == form).get_column("days").to_numpy() for form in forms]
    everything = np.concatenate(lists)
    width_days = max(1, np.ceil(np.ptp(everything) / 30))
    # An edge at zero: no bar may mix filings in time with late ones.
    edges = width_days * np.arange(np.floor(everything.min() / width_days), everything.max() // width_days + 2)
    colours = [
        figures.BLUE,
        figures.ORANGE,
        figures.GREEN,
        figures.PURPLE,
        figures.SKY,
        figures.VERMILION,
        figures.BLACK,
    ]
    axis.hist(lists, bins=list(edges), stacked=True, label=forms, color=[colours[i % 7] for i in range(len(forms))])
    axis.axvline(0, color="black", linewidth=1)
    axis.annotate("due", (0, 1), xycoords=("data", "axes fraction"), xytext=(3, -10), textcoords="offset points")
    axis.set_xlabel("days from the due date to the filing (left of 0: early)")
    axis.set_ylabel("filings")
    axis.legend(title="form")
    return figure


def nothing(text: str) -> Figure:
    """A small picture that says that there is nothing to draw, so that every page has its figures in every run."""
    figure, (axis,) = figures.new(7.0, 0.8)
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color="0.35")
    return figure


def _largest(days: pl.DataFrame) -> list[str]:
    totals = days.group_by("entity_id", maintain_order=True).agg(pl.col("n_transactions").sum())
    return (
        totals.sort("n_transactions", "entity_id", descending=[True, False]).head(MOST_ENTITIES)["entity_id"].to_list()
    )


def _span(days: pl.DataFrame) -> pl.DataFrame:
    first, last = days.get_column("day").min(), days.get_column("day").max()
    return pl.DataFrame({"day": pl.date_range(first, last, eager=True)})  # type: ignore[arg-type]  # not empty


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or 0.005 <= share < 0.995 else f"{100 * share:.1f} %"  # noqa: PLR2004  # rounding would hide a gap


def _time_axis(axis: Axes, longest_hours: float) -> None:
    axis.set_xscale("log")
    right = max(1.5, 1.5 * longest_hours)
    ticks = [hours for hours in TICKS_HOURS if hours <= right]
    axis.set_xticks(ticks, [TICKS_HOURS[hours] for hours in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlim(MINUTE_HOURS / 1.5, right)
