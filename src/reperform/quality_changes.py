"""What changed in the data since the run before: kept beside the outputs, never in them.

An output that told of an earlier run would differ between two clean runs of the same data. So quality.json is told from
its inputs alone; copies of the last two different ones lie in `.cache/quality/`, and `python -m reperform
changes` compares them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reperform import paths
from reperform.markup import pipe_table
from reperform.tables import write_text

LAST, BEFORE = "last.json", "before.json"
REPORT = "quality_changes.md"
NAMES = {"what": "what", "before": "before", "now": "now"}
NOTICEABLE_SHARE = 0.01  # of completeness
Changes = list[dict[str, Any]]


def folder() -> Path:
    """Where the documents of the last two different runs are."""
    return paths.project_root() / ".cache" / "quality"


def remember(document: Mapping[str, Any]) -> None:
    """Keep a document; the last one that differed becomes the one before."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False) + "\n"
    last = folder() / LAST
    if last.is_file():
        old = last.read_text(encoding="utf-8")
        if old == text:
            return
        write_text(old, folder() / BEFORE)
    write_text(text, last)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """What differs between two documents as in quality.json: `what`, `before`, `now`."""
    return [*_counts(before, now), *_sources(before, now), *_filled(before, now), *_findings(before, now)]


def _counts(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    rows = []
    for table in sorted({*before["tables"], *now["tables"]}):
        for count in ("rows_in", "rows_out", "quarantined"):
            old, new = (one["tables"].get(table, {}).get(count, 0) for one in (before, now))
            rows.append({"what": f"{table}: {count.replace('_', ' ')}", "before": old, "now": new})
    return [row for row in rows if row["before"] != row["now"]]


def _sources(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    rows = []
    for source in sorted({*before["sources"], *now["sources"]}):
        for what in ("n_transactions", "n_accounts", "currencies", "last_booked_at", "days_without_rows"):
            old, new = (_text(one["sources"].get(source, {}).get(what)) for one in (before, now))
            rows.append({"what": f"{source}: {what.replace('_', ' ')}", "before": old, "now": new})
    return [row for row in rows if row["before"] != row["now"]]


def _filled(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    rows = []
    for table, entities in now["completeness"].items():
        for entity, columns in entities.items():
            for column, new in columns.items():
                old = before["completeness"].get(table, {}).get(entity, {}).get(column)
                if old is not None and new is not None and abs(new - old) >= NOTICEABLE_SHARE:
                    rows.append(
                        {"what": f"{table}.{column} filled, {entity}", "before": f"{old:.1%}", "now": f"{new:.1%}"}
                    )
    return rows


def _findings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    def keyed(document: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
        return {
            (one["rule"], one["file"] or one["source"], one["day"] or ""): one["observed"]
            for one in document.get("findings", [])
        }

    old, new = keyed(before), keyed(now)
    return [
        {"what": " ".join(filter(None, key)), "before": old.get(key, "no finding"), "now": new.get(key, "gone")}
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def told() -> str:
    """What changed, as markdown; also written to reports/quality_changes.md."""
    before, last = folder() / BEFORE, folder() / LAST
    if not (before.is_file() and last.is_file()):
        return "There is no earlier run with other data to compare with."
    found = changes(json.loads(before.read_text(encoding="utf-8")), json.loads(last.read_text(encoding="utf-8")))
    text = f"# What changed in the data\n\n{pipe_table(found, NAMES)}\n" if found else "Only details changed.\n"
    write_text(text, paths.reports() / REPORT)
    return text
