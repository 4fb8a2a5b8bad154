"""Validate messages against the official schema, where the user has it. The only module that imports lxml for schemas.

The schemas are ISO's and are not shipped: download them from https://www.iso20022.org (catalogue of messages).
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from lxml import etree

from reperform.errors import ReperformError
from reperform.ingest.statement_checks import MOST_PER_CODE, SCHEMA_VIOLATED, Finding, finding

# A tree takes some ten times the bytes of its file: larger files are validated as a stream.
MOST_WHOLE_BYTES = 20_000_000
_SAFE = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
RECORDS = ("Ntry", "CdtTrfTxInf")
_FED_BYTES = 4096


class _NoImports(etree.Resolver):
    """Schemas of messages are one file each: nothing that one names is loaded."""

    def resolve(self, system_url: str, _: str, context: Any) -> Any:
        return self.resolve_empty(context) if "://" in (system_url or "") else None


def violations(path: Path, where: str, schema: Path, definition: str) -> list[Finding]:
    """Where a file that could be read breaks the schema of its message.

    Args:
        path: the file.
        where: its name below the raw folder.
        schema: a schema, or a folder with one for each message, named like camt.053.001.08.xsd.
        definition: the message, such as camt.053.001.08.

    Returns:
        Findings with line and path, at most `MOST_PER_CODE` and one that says that there are more.

    Raises:
        ReperformError: when there is no such schema, or it is none.
    """
    compiled = loaded(schema, definition)
    errors = _whole(path, compiled) if path.stat().st_size <= MOST_WHOLE_BYTES else _streamed(path, compiled)
    found: list[Finding] = []
    for line, place, message in errors:
        if len(found) == MOST_PER_CODE:
            found.append(finding(where, SCHEMA_VIOLATED, "validation ends here: too many violations", severity="error"))
            break
        found.append(finding(where, SCHEMA_VIOLATED, f"{place}: {message}", line, "error"))
    return found


def digest(schema: Path) -> str:
    """What the schemas hold, so that files are validated again when these change."""
    files = sorted(schema.glob("*.xsd")) if schema.is_dir() else [schema] if schema.is_file() else []
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def loaded(schema: Path, definition: str) -> Any:
    """A schema, compiled.

    Raises:
        ReperformError: when the file is missing, or no schema.
    """
    file = schema / f"{definition}.xsd" if schema.is_dir() else schema
    if not file.is_file():
        raise ReperformError(
            "The schema of a message is missing.",
            expected=f"{definition}.xsd", got="no such file", where=str(file),
            fix="download it from https://www.iso20022.org and put it there, or take `schema` out of conf/ingest/",
        )  # fmt: skip
    return _compiled(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _compiled(file: Path, _: int) -> Any:
    parser = etree.XMLParser(**_SAFE)
    parser.resolvers.add(_NoImports())
    try:
        return etree.XMLSchema(etree.parse(str(file), parser))
    except (etree.XMLSyntaxError, etree.XMLSchemaParseError) as error:
        raise ReperformError(
            "The schema of a message cannot be used.",
            expected="an XML schema (XSD 1.0)", got=str(error)[:300], where=str(file),
            fix="download it again from https://www.iso20022.org",
        ) from error  # fmt: skip


def _document(root: Any) -> Any:
    """The Document, in whatever envelope it stands."""
    return root if etree.QName(root).localname == "Document" else next(root.iter("{*}Document"))


def _whole(path: Path, schema: Any) -> Iterator[tuple[int | None, str, str]]:
    document = _document(etree.parse(str(path), etree.XMLParser(**_SAFE)).getroot())
    if schema.validate(document):
        return
    for error in schema.error_log:
        yield error.line, _readable(document, error.path), error.message


def _readable(document: Any, path: str | None) -> str:
    """A path by names: libxml2 writes elements of a default namespace as stars, and the Document as the root."""
    try:
        found = document.xpath("." + path[2:]) if path and path.startswith("/*") else []
    except etree.XPathError:
        found = []
    if not found:
        return path or "/"
    names = [etree.QName(one).localname for one in (*reversed(list(found[0].iterancestors())), found[0])]
    return "/" + "/".join(names)


def _streamed(path: Path, schema: Any) -> Iterator[tuple[int | None, str, str]]:
    """Violations by their lines: the parser keeps no paths once it forgets what it has read.

    It keeps no lines either, so it is fed some lines at a time.
    """
    tags = tuple(f"{{*}}{name}" for name in RECORDS)
    parser = etree.XMLPullParser(events=("end",), tag=tags, schema=schema, **_SAFE)
    told, entries, line = 0, 0, 1
    try:
        with path.open("rb") as stream:
            while piece := b"".join(stream.readlines(_FED_BYTES)):
                parser.feed(piece)
                last = line + piece.count(b"\n")
                log = parser.feed_error_log
                place = f"lines {line} to {last}, near entry {entries + 1}"
                yield from ((line, place, error.message) for error in list(log)[told:])
                told, line = len(log), last
                entries += _forget_read(parser)
        parser.close()
    except etree.XMLSyntaxError:
        # Raised for a document that breaks its schema; that it is well-formed was seen before.
        yield from ((line, "at the end", error.message) for error in list(parser.feed_error_log)[told:])


def _forget_read(parser: Any) -> int:
    """Cut off the entries that have been read, so that the tree stays small; how many they were."""
    n = 0
    for _, element in parser.read_events():
        n += 1
        element.clear(keep_tail=False)
        while (earlier := element.getprevious()) is not None and earlier.tag == element.tag:
            element.getparent().remove(earlier)
    return n
