"""The reference of the API, docs/api.md: written from the OpenAPI document.

Run by hand where a route or a member has changed: `python -m reperform api-docs`. A test says when that is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reperform.params import ServeParams

PAGE = "api.md"
INTRODUCTION = """# The API

Written by `python -m reperform api-docs` from the OpenAPI document, which a running service gives at `/openapi.json`
(for programs) and `/docs` (for people). [Score payments](how-to/serve.md) shows a client step by step.

- **Key.** Every path below `/api` asks for `Authorization: Bearer rpf_…`. A key opens what its scopes say:
  `score` what changes something, `read` every answer, whoever asked for it.
- **Times** are ISO 8601 with their offset from UTC.
- **Problems** are `application/problem+json` (RFC 9457): what was expected, what was got, where, and what to do. All
  problems of a request are listed; one wrong transaction refuses the request, and nothing of it is scored.
- **Repeating.** Send an `Idempotency-Key` with every POST. The same request under the same key gets its first answer,
  byte for byte, for seven days; another request under it is refused with 409. Names of other keys' requests do not
  matter.
- **Waiting.** 429 and 503 come with `Retry-After`; then the same request may be sent again.
"""
JSON = "application/json"
Schema = Mapping[str, Any]


def document() -> dict[str, Any]:
    """The OpenAPI document of this code. Nothing is started for it."""
    from reperform.service import app  # noqa: PLC0415  # pulls in FastAPI
    from reperform.service.process import Service  # noqa: PLC0415  # likewise

    door = app.build(Service(ServeParams(), make_champions=lambda *_: None))
    found: dict[str, Any] = door.app.openapi()  # type: ignore[attr-defined]
    return found


def page(openapi: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        openapi: the OpenAPI document.
    """
    parts = [INTRODUCTION, *_contents(openapi)]
    for path, method, operation in _operations(openapi):
        parts += _operation(path, method, operation)
    parts.append("## Members\n")
    parts.append("What requests and answers consist of. Members that are not marked may be missing.\n")
    for name, schema in openapi["components"]["schemas"].items():
        parts += _members(name, schema)
    return "\n".join(parts).rstrip() + "\n"


def main(folder: Path) -> int:
    """Write the page into `folder`."""
    (folder / PAGE).write_text(page(document()), encoding="utf-8")
    print(f"wrote {folder / PAGE}")
    return 0


def _operations(openapi: Mapping[str, Any]) -> Iterator[tuple[str, str, Schema]]:
    # Clients' paths first, those for operators after them.
    for path, item in sorted(openapi["paths"].items(), key=lambda one: not one[0].startswith("/api/")):
        for method, operation in item.items():
            yield path, method.upper(), operation


def _contents(openapi: Mapping[str, Any]) -> list[str]:
    rows = [
        (f"[`{method} {path}`](#{_anchor(method, path)})", operation["summary"])
        for path, method, operation in _operations(openapi)
    ]
    return _table(("path", "what it does"), rows)


def _anchor(method: str, path: str) -> str:
    """As Markdown's renderers make it of the heading."""
    heading = f"{method} {path}".lower().replace(" ", "-")
    return "".join(letter for letter in heading if letter.isalnum() or letter in "-_")


def _operation(path: str, method: str, operation: Schema) -> list[str]:
    parts = [f"## `{method} {path}`\n", operation["description"].strip() + "\n"]
    parameters = operation.get("parameters", [])
    if parameters:
        rows = [(f"`{one['name']}`", one["in"], _kind(one["schema"]), one.get("description", "")) for one in parameters]
        parts += _table(("parameter", "in", "type", "what"), rows)
    parts += _body(operation.get("requestBody", {}).get("content", {}))
    parts += _answers(operation["responses"])
    return parts


def _body(content: Schema) -> list[str]:
    if not content:
        return []
    if JSON not in content:
        return [f"Body: the file itself, as {', '.join(f'`{kind}`' for kind in content)}.\n"]
    told = content[JSON]
    return [f"Body: {_kind(told['schema'])}.\n", *_example(told.get("example"))]


def _answers(responses: Schema) -> list[str]:
    rows, examples = [], []
    for status, said in sorted(responses.items()):
        content: Schema = next(iter(said.get("content", {}).values()), {})
        rows.append((status, said["description"], _kind(content.get("schema", {}))))
        if status.startswith("2"):
            examples += _example(content.get("example"))
    return [*_table(("status", "meaning", "body"), rows), *examples]


def _example(example: Any) -> list[str]:
    if example is None:
        return []
    return [f"```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```\n"]


def _members(name: str, schema: Schema) -> list[str]:
    parts = [f"### {name}\n", schema.get("description", "").strip() + "\n"]
    required = set(schema.get("required", []))
    rows = [
        (f"`{member}`" + (" **required**" if member in required else ""), _kind(one), one.get("description", ""))
        for member, one in schema.get("properties", {}).items()
    ]
    return [*parts, *_table(("member", "type", "what"), rows)] if rows else parts


def _kind(schema: Schema) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}{_bounds(schema)}"
    return f"{schema.get('format') or schema.get('type') or ''}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    words = {
        "exclusiveMinimum": "above {}",
        "minimum": "from {}",
        "maximum": "to {}",
        "minItems": "at least {}",
        "maxItems": "at most {}",
        "maxLength": "at most {} characters",
    }
    told = [text.format(_number(schema[name])) for name, text in words.items() if name in schema]
    return f" ({', '.join(told)})" if told else ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join([':---'] * len(heads))}|"]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return ["\n".join(lines) + "\n"]


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
