"""Look at xBRL-JSON and xBRL-CSV before Arelle does: strict JSON, and no file but the report's own.

Sources: xBRL-JSON 1.0, xBRL-CSV 1.0 (documentType, extends, tables, parameterURL), OIM Common 1.0 (taxonomy, baseURL).
"""

import csv
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from reperform.ingest.xbrl_precheck import (
    CHUNK_BYTES,
    MAX_BYTES,
    MAX_TEXT_BYTES,
    ON_THE_WEB,
    Head,
    Refusal,
    check_size,
    inspect_beside,
    is_safe_address,
    no_schema_ref,
)

MAX_JSON_BYTES = 64 << 20  # JSON is held in memory as a whole, and takes a multiple of its size there
MAX_JSON_DEPTH = 32  # a report needs 7: facts, fact, links, group, role, targets
DOCUMENT_TYPE = re.compile(r"https?://(www\.)?xbrl\.org/\S*/xbrl-(json|csv)\Z")
TEXT = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:\s*\{)?')  # every text is consumed once, whatever it holds
ENDS_OF_FIELDS = (b"\n", b"\r", b",")
ASK_AGAIN = "ask the sender for the report again"


def inspect_oim(path: Path, max_bytes: int = MAX_BYTES, within: Path | None = None) -> Head:
    """Read a report's JSON once, strictly, and look at every file that it would make a reader open.

    Args:
        path: an xBRL-JSON report, or the metadata of an xBRL-CSV report.
        max_bytes: a larger file is refused, and so is JSON of more than `MAX_JSON_BYTES`.
        within: as of `xbrl_precheck.inspect`; the report's own folder and those below it by default.

    Raises:
        Refusal: file_empty, file_too_large, file_malformed, file_duplicate_key, file_too_deep, file_text_too_long,
            file_wrong_root, file_schema_ref, file_no_schema_ref, file_part_missing.
    """
    head, seen = Head(), set[Path]()
    content = _inspect_json(path, max_bytes, within or path.parent, head, seen)
    inspect_beside([path.parent / name for name in head.beside], head, max_bytes, within or path.parent)
    if not head.schema_refs:
        raise no_schema_ref("documentInfo.taxonomy with an address")
    if content["documentInfo"]["documentType"].endswith("csv") and not content.get("tables") and len(seen) == 1:
        raise Refusal("file_no_facts", "the report has no tables.", expected="tables", got="none", fix=ASK_AGAIN)
    return head


def _inspect_json(path: Path, max_bytes: int, within: Path, head: Head, seen: set[Path]) -> dict[str, Any]:
    """One JSON file, and those that it extends."""
    check_size(path, min(max_bytes, MAX_JSON_BYTES))
    head.inspected.append(path)
    seen.add(path.resolve())
    content = read_strictly(path)
    info = content.get("documentInfo")
    kind = info.get("documentType") if isinstance(info, dict) else None
    if not isinstance(info, dict) or not DOCUMENT_TYPE.match(str(kind)):
        raise Refusal(
            "file_wrong_root",
            "the file is no XBRL report in JSON.",
            expected="documentInfo.documentType of xBRL-JSON or xBRL-CSV",
            got=repr(kind)[:200],
            place=path.name,
            fix="take it out of the files of this source in conf/ingest/, or ask the sender",
        )
    _base(info.get("baseURL"), path)
    folder = path.parent.relative_to(within).as_posix()
    for address in _texts(info.get("taxonomy"), "documentInfo.taxonomy", path):
        head.schema_refs.append(address)
        if _own_file(address, folder, path) is not None:
            head.beside.append(posixpath.join(path.parent.as_posix(), unquote(address).split("#")[0]))
    for address in _texts(info.get("extends"), "documentInfo.extends", path):
        other = _own_file(address, folder, path)
        if other is None or not other.is_file():
            raise _part_missing(address, path)
        if other.resolve() not in seen:
            _inspect_json(other, max_bytes, within, head, seen)
    for address, is_optional in _parts(content, path):
        _inspect_part(address, folder, path, max_bytes, head, is_optional=is_optional)
    return content


def _base(address: object, path: Path) -> None:
    if address is not None and not (
        isinstance(address, str) and ON_THE_WEB.match(address) and is_safe_address(address)
    ):
        raise _forbidden(str(address), path)


def _texts(value: object, where: str, path: Path) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Refusal(
            "file_malformed",
            f"{where} is not understood.",
            expected="a list of addresses",
            got=repr(value)[:200],
            place=path.name,
            fix=ASK_AGAIN,
        )
    return [str(each) for each in value]


def _parts(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, bool]]:
    """Tables of values and of parameters, with whether they may be absent."""
    if (parameters := content.get("parameterURL")) is not None:
        yield str(parameters), False
    tables = content.get("tables", {})
    if not isinstance(tables, dict) or not all(isinstance(each, dict) for each in tables.values()):
        raise Refusal(
            "file_malformed", "tables is not understood.", expected="an object", place=path.name, fix=ASK_AGAIN
        )
    for table in tables.values():
        yield str(table.get("url")), bool(table.get("optional"))


def _own_file(address: str, folder: str, path: Path) -> Path | None:
    """The report's own file that an address means; None for one on the web, which leads to a local copy."""
    if not is_safe_address(address, folder):
        raise _forbidden(address, path)
    plain = unquote(address)
    return None if ON_THE_WEB.match(plain) else path.parent / plain.split("#")[0]


def _inspect_part(address: str, folder: str, path: Path, max_bytes: int, head: Head, *, is_optional: bool) -> None:
    other = _own_file(address, folder, path)
    # Arelle would open a workbook, or a sheet of one, where the address says so.
    if other is None or other.suffix.lower() != ".csv" or "#" in address:
        raise _forbidden(address, path)
    if not other.is_file():
        if is_optional:
            return
        raise _part_missing(address, path)
    if other.stat().st_size > max_bytes:
        check_size(other, max_bytes)
    _check_fields(other)
    head.inspected.append(other)


def _part_missing(address: str, path: Path) -> Refusal:
    return Refusal(
        "file_part_missing",
        "a part of the report is not here.",
        expected=f"{address[:200]} beside it",
        got="no such file",
        place=path.name,
        fix="ask the sender for the complete report",
    )


def _forbidden(address: str, path: Path) -> Refusal:
    return Refusal(
        "file_schema_ref",
        "the file refers to a place that it may not.",
        expected="an http(s) address of a taxonomy, or a CSV, JSON or schema file in the report's own folder",
        got=address[:200] or "nothing",
        place=path.name,
        fix="do not trust this file; ask the sender",
    )


def _check_fields(path: Path) -> None:
    """Refuse a CSV with an endless field, in bounded memory."""
    since_last = 0
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            first = min((at for at in map(piece.find, ENDS_OF_FIELDS) if at >= 0), default=len(piece))
            if since_last + first > MAX_TEXT_BYTES:
                raise _too_long(path.name)
            last = max(map(piece.rfind, ENDS_OF_FIELDS))
            since_last = since_last + len(piece) if last < 0 else len(piece) - last - 1


def _too_long(place: str) -> Refusal:
    return Refusal(
        "file_text_too_long",
        "one text is too long.",
        expected=f"at most {MAX_TEXT_BYTES} bytes",
        got="more",
        place=place,
        fix="do not trust this file; ask the sender",
    )


class _DuplicateKeyError(Exception):
    """A key that stands twice in one object: readers differ in which they take."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def read_strictly(path: Path) -> dict[str, Any]:
    """A JSON object in UTF-8, without duplicate keys, NaN, or depth.

    Raises:
        Refusal: file_malformed, file_duplicate_key, file_too_deep, file_text_too_long.
    """
    text = ""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
        depth = _depth(content)
    except _DuplicateKeyError as error:
        key = str(error)
        line = text.count("\n", 0, text.rfind(json.dumps(key, ensure_ascii=False))) + 1
        raise Refusal(
            "file_duplicate_key",
            "a key stands twice in one JSON object.",
            expected="unique keys",
            got=key[:200],
            place=f"{path.name} line {line}",
            fix=ASK_AGAIN,
        ) from error
    except RecursionError:
        depth = MAX_JSON_DEPTH + 1
    except ValueError as error:  # includes what is no UTF-8, and JSONDecodeError
        at = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refusal(
            "file_malformed",
            "the file is not well-formed JSON in UTF-8.",
            expected="JSON",
            got=str(error)[:200],
            place=path.name + at,
            fix=ASK_AGAIN,
        ) from error
    if depth > MAX_JSON_DEPTH:
        raise Refusal(
            "file_too_deep",
            "the JSON is nested too deep.",
            expected=f"at most {MAX_JSON_DEPTH} levels",
            got="more",
            place=path.name,
            fix="do not trust this file; ask the sender",
        )
    if not isinstance(content, dict):
        raise Refusal(
            "file_wrong_root",
            "the file is no XBRL report in JSON.",
            expected="an object with documentInfo",
            got=type(content).__name__,
            place=path.name,
            fix=ASK_AGAIN,
        )
    return content


def _depth(content: object) -> int:
    """How deep lists and objects are nested; long texts are refused on the way."""
    level, depth = [content], 0
    while level and depth <= MAX_JSON_DEPTH:
        depth += 1
        below: list[object] = []
        for each in level:
            children = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
            for child in children:
                if isinstance(child, str):
                    if len(child) > MAX_TEXT_BYTES:
                        raise _too_long(child[:60])
                elif isinstance(child, dict | list):
                    below.append(child)
        level = below
    return depth


def fact_lines(path: Path) -> dict[str, int]:
    """Lines of facts by the identifiers that Arelle gives them.

    Of xBRL-JSON the line in the report; of xBRL-CSV the line in the table that the fact stands in, for all its facts
    under the key of the row, `table.r_row`.
    """
    content = read_strictly(path)
    if str(content["documentInfo"]["documentType"]).endswith("json"):
        text, lines, at, line = path.read_bytes().decode("utf-8-sig"), dict[str, int](), 0, 1
        for match in TEXT.finditer(text):
            if match.group(2) is None:
                continue
            line += text.count("\n", at, match.start())
            at = match.start()
            lines.setdefault(str(json.loads(f'"{match.group(1)}"')), line)
        return lines
    return dict(_row_lines(path, content))


def reported(path: Path) -> list[tuple[str, str, str | None, str]]:
    """Facts of an xBRL-JSON report, as identifier, concept, value and JSON; notes to facts are none of them."""
    facts = read_strictly(path).get("facts", {})
    found = []
    for name, fact in facts.items():
        dimensions = fact.get("dimensions", {}) if isinstance(fact, dict) else {}
        concept = str(dimensions.get("concept", "")) if isinstance(dimensions, dict) else ""
        if not concept.endswith(":note"):
            value = fact.get("value") if isinstance(fact, dict) else None
            text = json.dumps({name: fact}, ensure_ascii=False)
            found.append((name, concept, None if value is None else str(value), text))
    return found


def _row_lines(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    templates = content.get("tableTemplates", {})
    for name, table in content.get("tables", {}).items():
        template = templates.get(table.get("template", name), {})
        file = path.parent / unquote(str(table["url"]))
        if not file.is_file():
            continue
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            header = next(rows, [])
            key = template.get("rowIdColumn") if isinstance(template, dict) else None
            column = header.index(key) if key in header else None
            line = rows.line_num + 1
            for number, row in enumerate(rows, start=1):
                own = row[column] if column is not None and column < len(row) else ""
                yield f"{name}.r_{own or number}", line
                line = rows.line_num + 1
