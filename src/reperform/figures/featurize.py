"""Figures on KPIs: when accounts act, how anomalies differ, and what one account looks like beside another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from reperform import figures

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
WIDE = 50.0  # a range of values whose ends differ by this factor is drawn on a logarithmic axis
STORY = ("velocity_n_24h", "amount_deviation_z_90d", "network_new_n_7d")
MOST_BARS = 20


def nothing(text: str) -> Figure:
    """A figure that says why it is empty."""
    figure, (axis,) = figures.new(7.0, 1.0)
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()
    return figure


def hours_of_week(rows_per_hour: Sequence[int]) -> Figure:
    """Share of transactions in each hour of the week, by the accounts' own clocks.

    Args:
        rows_per_hour: 168 counts, from Monday 00:00.
    """
    counts = np.asarray(rows_per_hour, float)
    if counts.sum() == 0:
        return nothing("No transactions to learn hours from")
    figure, (axis,) = figures.new(7.2, 2.6)
    shares = 100 * counts.reshape(7, 24) / counts.sum()
    image = axis.imshow(shares, aspect="auto", cmap="Blues", vmin=0)
    axis.set_yticks(range(7), WEEKDAYS)
    axis.set_xticks(range(0, 24, 3), [f"{hour:02d}:00" for hour in range(0, 24, 3)])
    axis.set_xlabel("hour of the day (the account's clock)")
    axis.set_ylabel("day of the week")
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="share of rows (%)")
    return figure


def separation(ranked: pl.DataFrame) -> Figure:
    """How well single columns tell confirmed anomalies from other rows.

    Args:
        ranked: see `featurize.insight.separation`.
    """
    if ranked.is_empty():
        return nothing("No confirmed anomalies to compare with")
    top = ranked.head(MOST_BARS).reverse()
    figure, (axis,) = figures.new(7.2, 0.9 + 0.22 * top.height)
    above = (top["auc"] > 0.5).to_numpy()  # noqa: PLR2004  # chance
    colours = np.where(above, figures.VERMILION, figures.BLUE)
    axis.barh(np.arange(top.height), top["auc"].to_numpy() - 0.5, left=0.5, color=colours, height=0.7)
    names = [f"{row['name']}  (KPI {row['kpi_number']})" for row in top.iter_rows(named=True)]
    axis.set_yticks(np.arange(top.height), names, fontsize=7)
    axis.axvline(0.5, color=figures.BLACK, linewidth=0.8)
    axis.set_xlim(min(0.45, float(top["auc"].min()) - 0.02), max(0.55, float(top["auc"].max()) + 0.02))  # type: ignore[arg-type]
    axis.set_xlabel("probability that an anomaly has the higher value (0.5 = the column tells nothing)")
    axis.grid(visible=False, axis="y")
    return figure


def distributions(labelled: pl.DataFrame, dictionary: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Cumulative distributions of some columns, confirmed anomalies against all other rows.

    Args:
        labelled: features with `is_anomaly`.
        dictionary: the feature dictionary, for units.
        names: columns to draw.
    """
    if not names:
        return nothing("No confirmed anomalies to compare with")
    units = {entry["name"]: entry["unit"] for entry in dictionary}
    across = 2
    down = -(-len(names) // across)
    figure, axes = figures.new(7.4, 2.1 * down, rows=down, columns=across)
    for axis, name in zip(axes, names, strict=False):
        _cumulative(axis, labelled, name)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel(units[name], fontsize=8)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.supylabel("share of rows up to the value", fontsize=8)
    axes[0].legend(fontsize=7, loc="lower right")
    return figure


def _cumulative(axis: Axes, labelled: pl.DataFrame, name: str) -> None:
    known = labelled.select("is_anomaly", value=name).drop_nulls()
    lines = ((False, "other rows", figures.BLUE), (True, "confirmed anomalies", figures.VERMILION))
    for flag, label, colour in lines:
        values = np.sort(known.filter(pl.col("is_anomaly") == flag)["value"].to_numpy())
        at = np.unique(np.linspace(0, len(values) - 1, 400).astype(int)) if len(values) else np.zeros(0, int)
        axis.step(values[at], (at + 1) / max(len(values), 1), where="post", color=colour, label=label)
    low, high = (float(known["value"].quantile(q) or 0) for q in (0.001, 0.999))
    if low >= 0 and high > WIDE * max(float(known["value"].median() or 0), 1e-9):  # type: ignore[arg-type]
        axis.set_xscale("symlog", linthresh=max(high / 1000, 1e-6))
    axis.set_xlim(low, high if high > low else low + 1)
    axis.set_ylim(0, 1.02)


def by_typology(spread: pl.DataFrame, dictionary: Sequence[Mapping[str, Any]]) -> Figure:
    """What each typology does to each KPI: the middle half and the middle nine tenths of its values.

    Args:
        spread: see `featurize.insight.spread`.
        dictionary: the feature dictionary, for units and KPIs.
    """
    names = spread["name"].unique(maintain_order=True).to_list()
    if not names:
        return nothing("No confirmed anomalies to compare with")
    about = {entry["name"]: entry for entry in dictionary}
    kinds = spread["typology"].unique(maintain_order=True).to_list()
    across = 3
    down = -(-len(names) // across)
    figure, axes = figures.new(8.4, down * (0.75 + 0.16 * len(kinds)), rows=down, columns=across)
    for number, (axis, name) in enumerate(zip(axes, names, strict=False)):
        _ranges(axis, spread.filter(pl.col("name") == name), kinds)
        axis.set_title(f"KPI {about[name]['kpi_number']}: {name}", fontsize=7)
        axis.set_xlabel(about[name]["unit"], fontsize=7)
        shown = [kind.replace("_", " ") for kind in kinds] if number % across == 0 else [""] * len(kinds)
        axis.set_yticks(range(len(kinds)), shown, fontsize=7)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    return figure


def _ranges(axis: Axes, spread: pl.DataFrame, kinds: Sequence[str]) -> None:
    """One line per typology, first kind on top, and a band where the middle nine tenths of normal rows lie."""
    for row in spread.iter_rows(named=True):
        at = kinds.index(row["typology"])
        colour = figures.BLUE if at == 0 else figures.VERMILION
        axis.plot([row["q5"], row["q95"]], [at, at], color=colour, linewidth=1.0)
        axis.plot([row["q25"], row["q75"]], [at, at], color=colour, linewidth=3.5, solid_capstyle="butt")
        axis.plot(row["q50"], at, "o", color="white", markeredgecolor=colour, markersize=4, markeredgewidth=1.2)
        if at == 0:
            axis.axvspan(row["q5"], row["q95"], color=figures.BLUE, alpha=0.08, linewidth=0)
    low, high = float(spread["q5"].min() or 0), float(spread["q95"].max() or 0)  # type: ignore[arg-type]
    typical = float(spread["q75"].median() or 0)  # type: ignore[arg-type]
    if low >= 0 and high > WIDE * max(typical, 1e-9):
        axis.set_xscale("symlog", linthresh=max(high / 1000, 1e-6))
    axis.set_ylim(len(kinds) - 0.4, -0.6)
    axis.tick_params(labelsize=7)
    axis.grid(visible=False, axis="y")


def typology_cases(typed: pl.DataFrame, cases: Sequence[Mapping[str, Any]]) -> Figure:
    """One account of each typology over time, in the column that tells most of the typology.

    Args:
        typed: features with `is_anomaly` and `typology`.
        cases: see `featurize.insight.cases`.
    """
    if not cases:
        return nothing("No confirmed anomalies, so no cases")
    across = 2
    down = -(-len(cases) // across)
    figure, axes = figures.new(8.4, 1.7 * down, rows=down, columns=across)
    for axis, case in zip(axes, cases, strict=False):
        own = typed.filter(pl.col("account_id") == case["account_id"])
        normal = typed.filter(~pl.col("is_anomaly"))[case["column"]].drop_nulls()
        axis.axhspan(
            float(normal.quantile(0.05) or 0), float(normal.quantile(0.95) or 0), color=figures.BLUE, alpha=0.08,
            linewidth=0,
        )  # fmt: skip
        _points(axis, own, case["column"])
        axis.set_title(f"{case['typology'].replace('_', ' ')}: account {case['account_id']}", fontsize=8)
        axis.set_ylabel(_wrapped(case["column"]), fontsize=7)
        axis.tick_params(labelsize=7)
        locator = AutoDateLocator(maxticks=5)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    for axis in axes[len(cases) :]:
        axis.set_axis_off()
    figure.supxlabel("time of the transaction (UTC)", fontsize=8)
    return figure


def accounts_side_by_side(labelled: pl.DataFrame, accounts: Mapping[str, str]) -> Figure:
    """Amounts and three KPIs over time for two accounts; confirmed anomalies are crosses.

    Args:
        labelled: features with `is_anomaly`.
        accounts: heading to account id, see `featurize.insight.contrast`.
    """
    names = [name for name in STORY if name in labelled.columns]
    if not accounts or "amount_log" not in labelled.columns:
        return nothing("No confirmed anomalies, so no account to put beside another")
    figure, axes = figures.new(7.6, 1.7 * (1 + len(names)), rows=1 + len(names), columns=len(accounts))
    for column, (heading, account) in enumerate(accounts.items()):
        own = labelled.filter(pl.col("account_id") == account)
        column_axes = axes[column :: len(accounts)]
        column_axes[0].set_title(f"{heading}: {account}", fontsize=8)
        _amounts(column_axes[0], own)
        for axis, name in zip(column_axes[1:], names, strict=True):
            _points(axis, own, name)
        for axis in column_axes:
            axis.sharex(column_axes[0])
            axis.tick_params(labelsize=7)
        locator = AutoDateLocator(maxticks=5)
        column_axes[-1].xaxis.set_major_locator(locator)
        column_axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
        column_axes[-1].set_xlabel("time of the transaction (UTC)", fontsize=8)
    for row, name in enumerate(["amount (base currency)", *names]):
        pair = axes[row * len(accounts) : (row + 1) * len(accounts)]
        pair[0].set_ylabel(_wrapped(name), fontsize=7)
        limits = [axis.get_ylim() for axis in pair]
        for axis in pair:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            axis.tick_params(labelbottom=row == len(names))
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _wrapped(name: str) -> str:
    words = name.split("_")
    return "_".join(words[:2]) + ("_\n" + "_".join(words[2:]) if len(words) > 2 else "")  # noqa: PLR2004  # two lines


def _amounts(axis: Axes, own: pl.DataFrame) -> None:
    kinds = (
        (pl.col("amount_is_incoming") == 1, "money in", figures.GREEN, "o", 12),
        (pl.col("amount_is_incoming") == 0, "money out", figures.SKY, "o", 12),
        (pl.col("is_anomaly"), "confirmed anomaly", figures.VERMILION, "x", 30),
    )
    for chosen, label, colour, marker, size in kinds:
        part = own.filter(chosen)
        axis.scatter(
            part["booked_at"].to_numpy(), np.expm1(part["amount_log"].to_numpy()), s=size, color=colour, marker=marker,
            linewidths=1.2 if marker == "x" else 0, label=label,
        )  # fmt: skip
    axis.set_yscale("log")


def _points(axis: Axes, own: pl.DataFrame, name: str) -> None:
    for flag, colour, marker, size in ((False, figures.BLUE, "o", 8), (True, figures.VERMILION, "x", 30)):
        part = own.filter(pl.col("is_anomaly") == flag)
        axis.scatter(
            part["booked_at"].to_numpy(), part[name].to_numpy(), s=size, color=colour, marker=marker,
            linewidths=1.2 if marker == "x" else 0,
        )  # fmt: skip


def activity(account_days: pl.DataFrame) -> Figure:
    """Transactions and amounts per day over all accounts, by their own calendars.

    Args:
        account_days: `data/featurize/account_days.parquet`.
    """
    if account_days.is_empty():
        return nothing("No transactions")
    days = (
        account_days.sort("day", "account_id")
        .group_by("day", maintain_order=True)
        .agg(
            pl.col("n_transactions", "amount_in", "amount_out").sum(),
            active=(pl.col("n_transactions") > 0).mean(),
        )
    )
    figure, axes = figures.new(7.2, 4.0, rows=2)
    day = days["day"].to_numpy()
    axes[0].plot(day, days["n_transactions"].to_numpy(), color=figures.BLUE)
    axes[0].set_ylabel("transactions")
    axes[0].set_ylim(0, 1.08 * float(days["n_transactions"].max() or 1))  # type: ignore[arg-type]
    axes[1].plot(day, days["amount_in"].to_numpy() / 1e6, color=figures.GREEN, label="in")
    axes[1].plot(day, days["amount_out"].to_numpy() / 1e6, color=figures.SKY, label="out")
    axes[1].set_ylabel("millions of\nbase currency")
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("day (the accounts' calendars)")
    axes[1].legend(ncols=2, fontsize=8)
    axes[0].sharex(axes[1])
    axes[0].label_outer()
    locator = AutoDateLocator(maxticks=8)
    axes[1].xaxis.set_major_locator(locator)
    axes[1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return figure
