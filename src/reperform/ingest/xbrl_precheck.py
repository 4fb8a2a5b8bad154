"""Look at an XBRL file before Arelle does, and refuse what is unsafe or no XBRL.

Arelle's parser mends malformed XML, drops entities silently and opens any `schemaRef`, so this comes first: a strict
parser (expat) that stops at the first document type declaration, and opens only files in the filing's folder.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

INSTANCE_ROOT = "http://www.xbrl.org/2003/instance xbrl"
INLINE_ROOT = "http://www.w3.org/1999/xhtml html"
INLINE_NAMESPACES = ("http://www.xbrl.org/2013/inlineXBRL", "http://www.xbrl.org/2008/inlineXBRL")
LINK = "http://www.xbrl.org/2003/linkbase "
HREF = "http://www.w3.org/1999/xlink href"
SCHEMA_LOCATION = "http://www.w3.org/2001/XMLSchema-instance schemaLocation"
REFERENCES = tuple(LINK + name for name in ("schemaRef", "linkbaseRef", "roleRef", "arcroleRef"))
ON_THE_WEB = re.compile(r"https?://[^\s\\]+\Z")
BESIDE_THE_FILE = re.compile(r"[\w.+-]+(#\S*)?\Z")
MAX_BYTES = 200 << 20
MAX_DEPTH = 200


@dataclass
class Refusal(Exception):  # noqa: N818  # it names a decision, and becomes an UnreadableFileError
    """Why a file is not read; plain values, so that it travels between processes."""

    rule: str
    problem: str
    expected: str = ""
    got: str = ""
    place: str = ""
    fix: str = ""

    def __reduce__(self) -> tuple[type["Refusal"], tuple[str, ...]]:
        return Refusal, (self.rule, self.problem, self.expected, self.got, self.place, self.fix)


@dataclass
class Head:
    """What a file says about itself: the schemas that it starts from."""

    schema_refs: list[str] = field(default_factory=list)
    root: str = ""
    has_inline_facts: bool = False
    beside: list[str] = field(default_factory=list)


def inspect(path: Path, max_bytes: int = MAX_BYTES) -> Head:
    """Read a file once, strictly.

    Returns:
        The schema references, in order.

    Raises:
        Refusal: file_empty, file_too_large, file_malformed, file_doctype, file_too_deep, file_wrong_root,
            file_schema_ref, file_no_schema_ref.
    """
    size = path.stat().st_size
    if size == 0:
        raise Refusal("file_empty", "the file is empty.", expected="an XBRL instance", got="0 bytes")
    if size > max_bytes:
        raise Refusal(
            "file_too_large", "the file is too large.", expected=f"at most {max_bytes} bytes", got=f"{size} bytes"
        )
    head = _parsed(path, is_instance=True)
    _inspect_beside(path, head)
    if head.root == INLINE_ROOT and not head.has_inline_facts:
        raise Refusal("file_wrong_root", "the page holds no Inline XBRL.", expected="an ix:header", got="plain XHTML")
    if not head.schema_refs:
        raise Refusal(
            "file_no_schema_ref",
            "the filing does not say which taxonomy it uses.",
            expected="a link:schemaRef",
            got="none",
            fix="ask the filer for a complete instance",
        )
    return head


def _inspect_beside(path: Path, head: Head) -> None:
    """Schemas and linkbases in the filing's own folder are opened as well: what they refer to is checked, too."""
    waiting, seen = list(head.beside), {path.name}
    while waiting:
        name = waiting.pop()
        other = path.parent / name
        if name in seen or not other.is_file():
            continue
        seen.add(name)
        try:
            waiting += _parsed(other, is_instance=False).beside
        except Refusal as refusal:
            refusal.place = f"{name} {refusal.place}"
            raise


def _parsed(path: Path, *, is_instance: bool) -> Head:
    head, parser = Head(), expat.ParserCreate(namespace_separator=" ")
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    watcher = _Watcher(head, parser, is_instance=is_instance)
    parser.StartDoctypeDeclHandler = watcher.doctype
    parser.StartElementHandler = watcher.start
    parser.EndElementHandler = watcher.end
    try:
        with path.open("rb") as stream:
            parser.ParseFile(stream)
    except expat.ExpatError as error:
        raise Refusal(
            "file_malformed",
            "the file is not well-formed XML.",
            expected="XML 1.0",
            got=expat.ErrorString(error.code),
            place=f"line {error.lineno}",
            fix="ask the sender for the file again",
        ) from error
    return head


def _places(name: str, attributes: dict[str, str], *, is_instance: bool) -> list[str]:
    """Every other file that an element makes a reader open."""
    places = attributes.get(SCHEMA_LOCATION, "").split()[1::2]
    if name in REFERENCES:
        places.append(attributes.get(HREF, ""))
    elif not is_instance:
        found = (attributes.get(HREF, ""), attributes.get("schemaLocation", ""))
        places += [place for place in found if place and not place.startswith("#")]
    return places


class _Watcher:
    """Handlers of one parse."""

    def __init__(self, head: Head, parser: expat.XMLParserType, *, is_instance: bool) -> None:
        self.head, self.parser, self.is_instance, self.depth = head, parser, is_instance, 0

    def doctype(self, name: str, system: str | None, _public: str | None, has_subset: int) -> None:
        """XBRL instances have no document type; an XHTML page may name one, without declarations of its own."""
        if name.lower() == "html" and not has_subset:
            return
        declared = " with declarations of its own" if has_subset else ""
        raise self._refusal(
            "file_doctype",
            "the file declares a document type, which could define entities.",
            expected="no <!DOCTYPE",
            got=f"<!DOCTYPE {name}{declared}{f' from {system}' if system else ''}",
        )

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Check the root, the depth and every reference to another file."""
        self.depth += 1
        if not self.head.root:
            self._root(name)
        if self.depth > MAX_DEPTH:
            raise self._refusal(
                "file_too_deep", "elements are nested too deep.", expected=f"at most {MAX_DEPTH}", got="more"
            )
        if name.startswith(INLINE_NAMESPACES):
            self.head.has_inline_facts = True
        for place in _places(name, attributes, is_instance=self.is_instance):
            self._reference(place)
        if name == REFERENCES[0]:
            self.head.schema_refs.append(attributes.get(HREF, "").strip())

    def end(self, _name: str) -> None:
        """Leave an element."""
        self.depth -= 1

    def _root(self, name: str) -> None:
        self.head.root = name
        if self.is_instance and name not in (INSTANCE_ROOT, INLINE_ROOT):
            raise self._refusal(
                "file_wrong_root",
                "the file is no XBRL instance.",
                expected="the root element xbrl of http://www.xbrl.org/2003/instance, or an XHTML page",
                got=" in ".join(reversed(name.split(" "))),
            )

    def _reference(self, href: str) -> None:
        href = href.strip()
        if BESIDE_THE_FILE.match(href):
            self.head.beside.append(href.split("#")[0])
            return
        if ON_THE_WEB.match(href):
            return
        raise self._refusal(
            "file_schema_ref",
            "the file refers to a place that it may not.",
            expected="an http(s) address, or the name of a file beside it",
            got=href[:200] or "nothing",
        )

    def _refusal(self, rule: str, problem: str, *, expected: str, got: str) -> Refusal:
        place = f"line {self.parser.CurrentLineNumber}"
        return Refusal(
            rule, problem, expected=expected, got=got, place=place, fix="do not trust this file; ask the sender"
        )
