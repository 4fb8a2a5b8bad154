"""Figures of the filings page."""

import polars as pl
from matplotlib.figure import Figure

from reperform import figures

MOST_FILERS = 30


def score_by_filer(filings: pl.DataFrame) -> Figure:
    """Score of every filing, by filer; what was flagged stands out.

    Args:
        filings: `entity_id`, `period_end`, `score`, `is_alert`; one row per filing.
    """
    worst = (
        filings.group_by("entity_id", maintain_order=True)
        .agg(pl.col("score").max())
        .sort(["score", "entity_id"], descending=[True, False])
        .head(MOST_FILERS)["entity_id"]
        .to_list()
    )
    shown = filings.filter(pl.col("entity_id").is_in(worst)).sort("entity_id", "period_end", "score")
    figure, (axes,) = figures.new(7.4, 1.3 + 0.24 * max(len(worst), 2))
    place = {name: len(worst) - 1 - i for i, name in enumerate(worst)}
    for is_alert, colour, words in ((False, figures.SKY, "not flagged"), (True, figures.VERMILION, "flagged")):
        rows = shown.filter(pl.col("is_alert").fill_null(value=False) == is_alert)
        axes.scatter(
            rows["score"].to_list(),
            [place[name] for name in rows["entity_id"]],
            s=34,
            color=colour,
            edgecolors="white",
            linewidths=0.6,
            label=f"{words} ({rows.height})",
            zorder=3,
        )
    axes.set_yticks(range(len(worst)), [_short(name) for name in reversed(worst)])
    axes.set_xlabel("score (sum of parts; higher departs further)")
    axes.set_ylabel("filer")
    axes.legend(loc="lower right")
    return figure


def _short(name: str, longest: int = 38) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
