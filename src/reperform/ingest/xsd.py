"""Validate messages against the official schema, where the user has it. The only module that imports lxml for schemas.

The schemas are ISO's and are not shipped: download them from https://www.iso20022.org (catalogue of messages).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lxml import etree

from reperform.errors import ReperformError
from reperform.ingest.camt_stream import Statement
from reperform.ingest.statement_checks import MOST_PER_CODE, SCHEMA_VIOLATED, Finding, finding

MOST_WHOLE_BYTES = (
    64_000_000  # larger files are validated as a stream, where lines and paths are those of their entries
)
_SAFE = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
_RECORDS = ("Ntry", "CdtTrfTxInf", "Bal", "GrpHdr")


class _NoImports(etree.Resolver):
    """Schemas of messages are one file each: nothing that one names is loaded."""

    def resolve(self, system_url: str, _: str, context: Any) -> Any:
        return self.resolve_empty(context) if "://" in (system_url or "") else None


def violations(path: Path, where: str, schema: str, statements: Sequence[Statement]) -> list[Finding]:
    """Where a file that could be read breaks the schema of its message.

    Args:
        path: the file.
        where: its name below the raw folder.
        schema: a schema, or a folder with one for each message, named like camt.053.001.08.xsd.
        statements: of the file; they say which message it is.

    Returns:
        Findings with line and path, at most `MOST_PER_CODE` and one that says that there are more.

    Raises:
        ReperformError: when there is no such schema, or it is none.
    """
    definition = statements[0].definition
    compiled = loaded(Path(schema), definition)
    errors = _whole(path, compiled) if path.stat().st_size <= MOST_WHOLE_BYTES else _streamed(path, compiled)
    found: list[Finding] = []
    for line, place, message in errors:
        if len(found) == MOST_PER_CODE:
            found.append(finding(where, SCHEMA_VIOLATED, "validation ends here: too many violations", severity="error"))
            break
        found.append(finding(where, SCHEMA_VIOLATED, f"{place}: {message}", line, "error"))
    return found


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
    """A path by names: libxml2 writes elements of a default namespace as stars."""
    try:
        found = document.getroottree().xpath(path) if path else []
    except etree.XPathError:
        found = []
    if not found:
        return path or "/"
    names = [etree.QName(one).localname for one in (*reversed(list(found[0].iterancestors())), found[0])]
    return "/" + "/".join(names)


def _streamed(path: Path, schema: Any) -> Iterator[tuple[int | None, str, str]]:
    """Violations by entry: the parser keeps neither lines nor paths once it forgets what it has read."""
    tags = tuple(f"{{*}}{name}" for name in _RECORDS)
    events = etree.iterparse(str(path), events=("end",), tag=tags, schema=schema, **_SAFE)
    told, n, last = 0, 0, (None, "/")
    try:
        for _, element in events:
            n += 1
            place = (element.sourceline, f"/…/{etree.QName(element).localname} ({n})")
            new = len(events.error_log)
            if new > told:
                yield from ((*place, error.message) for error in list(events.error_log)[told:])
                told, last = new, place
            element.clear(keep_tail=False)
            while (earlier := element.getprevious()) is not None and earlier.tag == element.tag:
                element.getparent().remove(earlier)
    except etree.XMLSyntaxError:
        # Raised at the end for a document that breaks its schema; what is well-formed was settled before.
        yield from ((last[0], "after the last entry", error.message) for error in list(events.error_log)[told:])
