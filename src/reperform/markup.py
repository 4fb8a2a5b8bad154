"""Values and tables as people read them, in markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

NOT_AVAILABLE = "n/a"


def formatted(value: Any, style: str = "auto") -> str:
    """A value as people read it.

    Args:
        value: any JSON value.
        style: `auto`, `percent`, `count`, or a Python format specification such as `.3f`.
    """
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if style == "percent":
        return f"{100 * value:.1f} %"
    if isinstance(value, int) or style == "count":
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:{style}}" if style != "auto" else _rounded(value)
    return str(value)


def pipe_table(records: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Records as a markdown table; numbers to the right, text to the left."""
    right = {
        n: all(isinstance(r.get(n), int | float | None) and not isinstance(r.get(n), bool) for r in records)
        for n in names
    }
    cells = [{name: literal(formatted(record.get(name))) for name in names} for record in records]
    widths = {name: _width(names[name], [row[name] for row in cells]) for name in names}
    lines = [
        f"| {' | '.join(names.values())} |",
        "|" + "|".join(f"{'-' * widths[n]}:" if right[n] else f":{'-' * widths[n]}" for n in names) + "|",
    ]
    lines += ["| " + " | ".join(row[name] for name in names) + " |" for row in cells]
    return "\n".join(lines)


def literal(text: str) -> str:
    """Text that markdown takes literally inside a table cell or a span."""
    if len(text) > 2 and text.startswith("`") and text.endswith("`") and "`" not in text[1:-1]:  # noqa: PLR2004  # more than its quotes
        return " ".join(text.split()).replace("|", "\\|")
    cleaned = " ".join(text.splitlines()).replace("\\", "\\\\")
    for mark in "|*_[]<>$@#^~`":
        cleaned = cleaned.replace(mark, f"\\{mark}")
    return cleaned


def _width(heading: str, cells: Sequence[str]) -> int:
    """Dashes under a heading: renderers share a wide table's space out by them."""
    longest_word = max((len(word) for text in (heading, *cells) for word in text.split()), default=0)
    longest = max((len(text) for text in cells), default=0)
    return max(3, min(longest_word + 1, 24), min(longest, 48))


def _rounded(value: float) -> str:
    if value == 0 or abs(value) >= 1000:  # noqa: PLR2004  # thousands are read as counts
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
