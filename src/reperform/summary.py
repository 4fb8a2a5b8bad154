"""What a run ends with: a few lines for people, and where to look next."""

import json
import os
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADLINES = (
    ("average_precision", "average precision"),
    ("alert_reduction_at_rules_recall", "fewer alerts than the rules at their recall"),
    ("card_precision_at_100", "card precision@100"),
)


def lines(root: Path) -> list[str]:
    """The summary of the run whose outputs lie below `root`; what does not exist is left out."""
    quality = _document(root, "validate/quality")
    metrics = _document(root, "evaluate/metrics")
    receipt = _document(root, "export/receipt")
    found = [*_rows(quality), *_detection(metrics), *_exported(receipt)]
    site = root / "reports" / "site" / "index.html"
    if site.is_file():
        found.append(f"report    {site.relative_to(root)}  (make reports shows it at http://localhost:8001)")
    return found or ["nothing has run yet; next: make repro"]


def _document(root: Path, name: str) -> Mapping[str, Any]:
    path = root / "data" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _rows(quality: Mapping[str, Any]) -> list[str]:
    counts = quality.get("tables", {})
    named = [f"{c['rows_out']:,} {name}" for name, c in counts.items() if name in ("transactions", "filings") and c]
    refused = sum(c.get("quarantined", 0) for c in counts.values())
    return [f"data      {', '.join(named)}; {refused:,} rows in quarantine"] if named else []


def _detection(metrics: Mapping[str, Any]) -> list[str]:
    ensemble = metrics.get("ensemble", {})
    parts = [f"{words} {_interval(ensemble[key])}" for key, words in HEADLINES if _known(ensemble.get(key))]
    return [f"ensemble  {'; '.join(parts)}"] if parts else []


def _known(metric: Any) -> bool:
    return isinstance(metric, Mapping) and metric.get("estimate") is not None


def _interval(metric: Mapping[str, Any]) -> str:
    estimate, low, high = (metric.get(key) for key in ("estimate", "low", "high"))
    return f"{estimate:.3f}" if low is None or high is None else f"{estimate:.3f} ({low:.3f} to {high:.3f})"


def _exported(receipt: Mapping[str, Any]) -> list[str]:
    counts = receipt.get("tables", {})
    if not counts:
        return []
    rows = sum(c["rows"] if isinstance(c, Mapping) else int(c) for c in counts.values())
    return [f"database  {rows:,} rows in {len(counts)} tables  (make psql opens it)"]


def open_report(root: Path) -> None:
    """Open the report in the browser of a person who sits at this machine; do nothing in a pipe or without a screen."""
    site = root / "reports" / "site" / "index.html"
    has_screen = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if site.is_file() and sys.stdout.isatty() and has_screen and os.environ.get("REPERFORM_OPEN", "1") != "0":
        webbrowser.open(site.as_uri())
