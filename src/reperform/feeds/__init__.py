"""What is wrong with a feed as a whole, and what no single row can show: each file against the earlier ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from reperform.feeds import labels, refusals, repeats, shifts, values, volume
from reperform.feeds.batches import feed
from reperform.feeds.finding import FEED_RULES, FeedFinding

LABELS = "labels"


def sources_of(receipt: Mapping[str, Any], table: str = "transactions") -> dict[str, str]:
    """From raw files to their sources, as the receipt of ingest tells them.

    Args:
        receipt: of ingest.
        table: of several sources that read one file, the one that makes rows of this table counts.
    """
    found: dict[str, str] = {}
    for name, source in receipt["sources"].items():
        makes_it = table in source.get("tables", {})
        for file in source["files"]:
            if "path" in file and (makes_it or file["path"] not in found):
                found[str(file["path"])] = name
    return found


def check(
    raw: Mapping[str, pl.DataFrame],
    refused: pl.DataFrame,
    receipt: Mapping[str, Any],
    severity: Mapping[str, str],
    limits: Mapping[str, float],
) -> list[FeedFinding]:
    """Every feed check.

    Each batch, file and day is compared with earlier ones of its source alone: what comes later never decides.

    Args:
        raw: tables as they were ingested, before any rule.
        refused: the quarantine of ingest.
        receipt: its receipt.
        severity: by feed rule.
        limits: as conf/validate/ gives them.
    """
    source_of = sources_of(receipt)
    told = refusals.with_source(refused, source_of)
    found = [*refusals.findings(told, receipt), *refusals.statements(raw["messages"], source_of)]
    if raw["transactions"].height:
        whole = feed(raw["transactions"], raw["accounts"], source_of, limits)
        found += volume.findings(whole)
        found += shifts.findings(whole)
        found += values.findings(whole, told)
        found += repeats.findings(whole)
    of_labels = sources_of(receipt, LABELS)
    file = next((path for path, source in of_labels.items() if source == LABELS), "")
    found += labels.findings(raw["labels"], raw["transactions"], limits, LABELS, file)
    return [replace(one, severity=severity[one.rule]) for one in found]


def rows_of(found: Sequence[FeedFinding], table: str, rows: pl.DataFrame, rule: str) -> pl.Series:
    """Which rows of a table belong to the findings of a rule with severity `quarantine`.

    Args:
        found: all findings.
        table: whose rows.
        rows: with `source_file` and, for findings about a day, `booked_at`.
        rule: whose findings.
    """
    chosen = [one for one in found if (one.table, one.rule, one.severity) == (table, rule, "quarantine") and one.files]
    here = pl.lit(value=False)
    for one in chosen:
        inside = pl.col("source_file").is_in(list(one.files))
        day = inside if one.day is None else inside & (pl.col("booked_at").dt.date() == one.day)
        here = here | day
    return rows.select(pl.repeat(value=False, n=pl.len()).alias("none") | here).to_series().fill_null(value=False)


__all__ = ["FEED_RULES", "FeedFinding", "check", "rows_of", "sources_of"]
