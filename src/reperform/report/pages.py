"""Tables that report templates need and no stage writes as such: joins and selections of outputs, no new numbers."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from reperform.report.evidence import Evidence, formatted

METRICS = "evaluate/metrics"
CLAUSE_COLUMNS = {
    "sr_26_2": "SR 26-2, OCC 2026-13",
    "sr_11_7": "SR 11-7 (legacy)",
    "ss1_23": "PRA SS1/23",
    "annex_iv": "AI Act, Annex IV",
}


@lru_cache(maxsize=1)
def clauses() -> list[dict[str, Any]]:
    """The 17 evidence sections and the clauses that each is mapped to, from secondary sources."""
    return list(json.loads((files("reperform.report") / "clauses.json").read_text(encoding="utf-8")))


def clause_line(number: int) -> str:
    """The clauses of one evidence section, in words."""
    row = next(row for row in clauses() if row["number"] == number)
    return "; ".join(f"{name}: {row[key]}" for key, name in CLAUSE_COLUMNS.items() if row[key]) or "none"


def detector_table(e: Evidence, metrics: Mapping[str, str]) -> list[dict[str, str]]:
    """One row per detector, one column per metric, each with its interval.

    Args:
        e: the page's evidence.
        metrics: metric's name to column heading.
    """
    measured = e.get(METRICS)
    return [
        {"detector": name} | {heading: interval(of.get(key)) for key, heading in metrics.items()}
        for name, of in measured.items()
        if name != "filings"
    ]


def metric_table(e: Evidence, detector: str) -> list[dict[str, Any]]:
    """Every metric of one detector, with interval and the number of units behind it."""
    return [
        {"metric": key, "estimate": one["estimate"], "low": one["low"], "high": one["high"], "n": one["n"]}
        for key, one in sorted(e.get(METRICS, detector).items())
    ]


def interval(metric: Mapping[str, Any] | None) -> str:
    """`0.712 (0.65 to 0.765)`; `n/a` where nothing could be measured."""
    if metric is None or metric.get("estimate") is None:
        return "n/a"
    if metric.get("low") is None or metric.get("high") is None:
        return formatted(metric["estimate"])
    return f"{formatted(metric['estimate'])} ({formatted(metric['low'])} to {formatted(metric['high'])})"


def only(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The rows whose columns have the wanted values."""
    return [dict(row) for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def picked(rows: Sequence[Mapping[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """Some columns of each row, in the order given."""
    return [{column: row.get(column) for column in columns} for row in rows]
