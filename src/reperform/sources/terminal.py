"""Foreign text on a terminal: what a file holds is shown, and never obeyed."""

from collections.abc import Iterable, Sequence

MOST_SHOWN = 60
ELLIPSIS = "…"


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """A value in one line: control, escape and direction characters are written out, and long texts are cut.

    Args:
        value: anything, such as a raw field or a file's name.
        most: characters to show.
    """
    text = str(value)
    cut = text if len(text) <= most else text[: most - 1] + ELLIPSIS
    return "".join(one if one.isprintable() else _written_out(one) for one in cut)


def _written_out(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")


def paragraphs(text: str) -> str:
    """A message of several lines, made harmless line by line."""
    return "\n".join(shown(line, most=2_000) for line in text.split("\n"))


def aligned(rows: Iterable[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows as columns of text, each as wide as its widest cell."""
    cells = [list(row) for row in rows]
    if not cells:
        return []
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in cells
    ]
