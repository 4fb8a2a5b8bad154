"""Executed notebooks as pages: text, code and outputs in the markdown that reports are made of. Nothing is run."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from reperform import tables
from reperform.errors import ReperformError

PARAMETER_TAGS = {"parameters", "injected-parameters"}  # how papermill hands values over says nothing to a reader


def as_markdown(executed: Path, folder: Path) -> str:
    """An executed notebook as Quarto-flavoured markdown.

    Args:
        executed: the notebook, with outputs.
        folder: where its pictures are written; the markdown refers to it by its last name.

    Raises:
        ReperformError: when a cell holds an error instead of an output.
    """
    notebook = json.loads(executed.read_text(encoding="utf-8"))
    parts: list[str] = []
    for number, cell in enumerate(notebook["cells"]):
        source = _text(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and not PARAMETER_TAGS & set(cell["metadata"].get("tags", [])):
            parts.append(f"```python\n{source}\n```")
            parts += [_output(o, number, folder, executed) for o in cell["outputs"]]
    title, body = _title_and_body(parts, executed.stem)
    return f'---\ntitle: "{title}"\n---\n\n' + "\n\n".join(part for part in body if part) + "\n"


def _title_and_body(parts: list[str], fallback: str) -> tuple[str, list[str]]:
    if parts and (heading := re.match(r"#\s+(.+)", parts[0])):
        return heading[1].replace('"', "'"), [parts[0][heading.end() :].strip(), *parts[1:]]
    return fallback, parts


def _output(output: dict[str, Any], number: int, folder: Path, executed: Path) -> str:
    if output["output_type"] == "error":
        raise ReperformError(
            "A notebook holds an error.", got=str(output.get("evalue")), where=f"{executed.name}, cell {number}"
        )
    if output["output_type"] == "stream":
        return f"```text\n{_text(output['text']).rstrip()}\n```" if output["name"] == "stdout" else ""
    data = output["data"]
    if "image/png" in data:
        return _picture(base64.b64decode(_text(data["image/png"])), number, folder, "png")
    if "image/svg+xml" in data:
        return _picture(_text(data["image/svg+xml"]).encode(), number, folder, "svg")
    if "text/markdown" in data:
        return _text(data["text/markdown"])
    return f"```text\n{_text(data.get('text/plain', ''))}\n```"


def _picture(content: bytes, number: int, folder: Path, kind: str) -> str:
    serial = len(list(folder.glob(f"cell-{number:02d}-*"))) if folder.is_dir() else 0
    path = tables.write_bytes(content, folder / f"cell-{number:02d}-{serial}.{kind}")
    return f'![]({folder.name}/{path.name}){{fig-alt="Output of cell {number}"}}'


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
