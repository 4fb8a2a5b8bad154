"""Values, tables and figures for a report's template, each with the output that it came from.

A template can print nothing that no stage produced: an unknown file or key is an error. Values carry their source.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from html import escape
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure

from reperform import figures, studies
from reperform.errors import ReperformError
from reperform.markup import NOT_AVAILABLE, formatted, literal, pipe_table

Cell = str | int | float | bool | date | datetime | None


class Evidence:
    """What one page says, and where it says it from.

    Args:
        root: the project's folder; sources are named relative to it.
        folder: where the page's figures are written.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.used: dict[str, set[str]] = {}

    def get(self, source: str, key: str = "") -> Any:
        """The plain value under a dotted key of a JSON output, such as `evaluate/metrics` and `ensemble.roc_auc`."""
        value = self._json(source)
        for part in [p for p in key.split(".") if p] if key else []:
            value = _step(value, part, source, key)
        self._note(f"data/{source}.json", key)
        return value

    def has(self, source: str, key: str = "") -> bool:
        """Whether an output and a key in it exist: for parts of a page that only some runs can fill."""
        try:
            return self.get(source, key) is not None
        except ReperformError:
            return False

    def study(self, name: str) -> dict[str, Any] | None:
        """The result of a study that was run by hand, with its `standing` in words; None where it was never run."""
        found = studies.read(name, self.root)
        if found is None:
            return None
        self._note(f"{studies.FOLDER}/{name}.json", "")
        return {**found, "standing": studies.standing(found, self.root)}

    def value(self, source: str, key: str, style: str = "auto") -> str:
        """A value as marked-up text whose source shows when the pointer rests on it.

        A metric with `estimate`, `low` and `high` is printed with its interval.
        """
        got = self.get(source, key)
        text = _interval(got, style) if isinstance(got, Mapping) and "estimate" in got else formatted(got, style)
        return f'[{literal(text)}]{{.value title="{escape(f"data/{source}.json: {key}")}"}}'

    def frame(self, source: str) -> pl.DataFrame:
        """A Parquet output as a frame."""
        path = self.root / "data" / f"{source}.parquet"
        if not path.is_file():
            raise _missing(path)
        self._note(f"data/{source}.parquet", "")
        return pl.read_parquet(path)

    def table(
        self,
        rows: pl.DataFrame | Sequence[Mapping[str, Any]],
        caption: str,
        label: str,
        columns: Mapping[str, str] | None = None,
    ) -> str:
        """A pipe table with a caption and a label that text can refer to.

        Args:
            rows: a frame or a list of records.
            caption: one sentence; says what a row is.
            label: `tbl-...`.
            columns: column name to heading; all columns as they are if not given.
        """
        records = rows.to_dicts() if isinstance(rows, pl.DataFrame) else [dict(row) for row in rows]
        names = dict(columns) if columns else {name: name for name in (records[0] if records else {})}
        body = pipe_table(records, names) if records else "*None.*"
        return f"::: {{#{label}}}\n{body}\n\n{caption}\n:::"

    def figure(self, draw: Callable[..., Figure], caption: str, label: str, alt: str, *inputs: Any) -> str:
        """Draw a figure into a file beside the page, and refer to it."""
        path = figures.save(draw(*inputs), self.folder / f"{label}.png")
        return f'![{caption}]({self.folder.name}/{path.name}){{#{label} fig-alt="{escape(alt)}"}}'

    def sources(self) -> list[dict[str, str]]:
        """Every output that the page used, with its SHA-256 and the keys that were read."""
        return [
            {
                "output": f"`{name}`",
                "sha256": f"`{_sha256(self.root / name)}`",
                "read": ", ".join(sorted(k for k in keys if k)) or "whole",
            }
            for name, keys in sorted(self.used.items())
        ]

    def _json(self, source: str) -> Any:
        path = self.root / "data" / f"{source}.json"
        if not path.is_file():
            raise _missing(path)
        return json.loads(path.read_text(encoding="utf-8"))

    def _note(self, name: str, key: str) -> None:
        self.used.setdefault(name, set()).add(key)


def _interval(metric: Mapping[str, Any], style: str) -> str:
    if metric["estimate"] is None:
        return NOT_AVAILABLE
    if metric.get("low") is None or metric.get("high") is None:
        return formatted(metric["estimate"], style)
    low, high = (formatted(metric[side], style) for side in ("low", "high"))
    return f"{formatted(metric['estimate'], style)} ({low} to {high})"


def _step(value: Any, part: str, source: str, key: str) -> Any:
    if isinstance(value, Mapping) and part in value:
        return value[part]
    if isinstance(value, list) and part.isdigit() and int(part) < len(value):
        return value[int(part)]
    known = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"{type(value).__name__}"
    raise ReperformError(
        f"A report asks for a number that no stage produced: {key}.",
        expected=f"one of {known[:300]}",
        got=part,
        where=f"data/{source}.json",
        fix="mend the key in reports/templates/, or the stage that should write it",
    )


def _missing(path: Path) -> ReperformError:
    return ReperformError(
        "A report asks for an output that does not exist.",
        expected=path.name,
        got="no such file",
        where=str(path.parent),
        fix=f"run `dvc repro {path.parent.name}`",
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
