"""Lines of a map: remarks, values as YAML, and globs for files that look alike."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from reperform.sources import sample

TODO = "TODO"
WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z_](?:[A-Za-z0-9_./*-]| (?=\S))*")
_RESERVED = {"true", "false", "yes", "no", "null", "on", "off", "y", "n", "todo", "none"}


def files_alike(path: Path) -> tuple[str, str]:
    """A glob for a file and those beside it whose names differ in digits alone, and what speaks for it."""
    literal = sample.literal(path.name)
    wide = re.sub(r"\d[\d._-]*\d|\d", "*", literal)
    alike = [one for one in path.parent.glob(wide) if one.is_file()]
    if len(alike) > 1 and "[" not in literal:
        return wide, f"{len(alike)} files in the folder have names that differ in digits alone"
    return literal, ""


def said(text: str, indent: int = 0) -> list[str]:
    """A remark, in lines that are not too long."""
    words, pad = text.split(" "), " " * indent + "# "
    lines = [pad]
    for word in words:
        if len(lines[-1]) + len(word) > WIDTH and lines[-1] != pad:
            lines.append(pad)
        lines[-1] += ("" if lines[-1] == pad else " ") + word
    return [line.rstrip() for line in lines]


def mapping(**settings: Any) -> str:
    """Settings as a YAML mapping in one line."""
    return "{" + ", ".join(f"{key}: {scalar(value)}" for key, value in settings.items()) + "}"


def scalar(value: Any) -> str:
    """A value as YAML that reads back as the same, whatever characters it has."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(scalar(one) for one in value)}]"
    text = str(value)
    if text == TODO or (_PLAIN.fullmatch(text) and text.lower() not in _RESERVED):
        return text
    return '"' + "".join(_quoted(text.replace("${", "\\${"))) + '"'


def _quoted(text: str) -> Iterable[str]:
    for one in text:
        if one in '"\\':
            yield f"\\{one}"
        elif one == "\t":
            yield "\\t"
        elif one.isprintable():
            yield one
        else:
            code = ord(one)
            yield f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004  # what YAML writes with two, four and eight digits
