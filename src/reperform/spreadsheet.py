"""Text for spreadsheets: a cell that would be run as a formula is made plain text.

Excel, LibreOffice and others take a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return as a formula
(OWASP, "CSV Injection"). A bank's text field may hold anything, so such cells get an apostrophe in front; numbers stay.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import TextIO

DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001  # full width is run as well
_NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def neutral(cell: str) -> str:
    """A cell that no spreadsheet runs; numbers and harmless text as they are."""
    bare = cell.lstrip(" \u00a0")
    if bare.startswith(DANGEROUS) and not _NUMBER.fullmatch(bare):
        return "'" + cell
    return cell


def neutral_csv(lines: Iterable[str], out: TextIO) -> None:
    """Copy CSV, row by row, with every cell neutral.

    Args:
        lines: of a CSV text, with their line ends.
        out: where to.
    """
    for row in csv.reader(lines):
        text = io.StringIO(newline="")
        csv.writer(text).writerow([neutral(cell) for cell in row])  # with its own line end it quotes a lone return, too
        out.write(text.getvalue().removesuffix("\r\n") + "\n")
