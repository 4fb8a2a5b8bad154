"""Look at an XBRL file before Arelle does, and refuse what is unsafe or no XBRL.

Arelle's parser mends malformed XML, drops entities silently and opens any `schemaRef`, so this comes first: a strict
parser (expat) that stops at the first document type declaration, and opens only files in the filing's folder.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

INSTANCE_ROOT = "http://www.xbrl.org/2003/instance xbrl"
XHTML = "http://www.w3.org/1999/xhtml "
INLINE_ROOT = XHTML + "html"
INLINE_NAMESPACES = ("http://www.xbrl.org/2013/inlineXBRL", "http://www.xbrl.org/2008/inlineXBRL")
XINCLUDE = "http://www.w3.org/2001/XInclude "
# What a formula linkbase is made of. Its expressions may open files (fn:doc) and run for hours: a publisher of a
# taxonomy may say such things, a filer may not.
RULES = re.compile(r"http://xbrl\.org/20\d\d/(formula|variable|assertion|filter|custom-function|instance)[/ ]")
LINK = "http://www.xbrl.org/2003/linkbase "
HREF = "http://www.w3.org/1999/xlink href"
XML_BASE = "http://www.w3.org/XML/1998/namespace base"
SCHEMA_LOCATION = "http://www.w3.org/2001/XMLSchema-instance schemaLocation"
NO_NAMESPACE = "http://www.w3.org/2001/XMLSchema-instance noNamespaceSchemaLocation"
REFERENCES = tuple(LINK + name for name in ("schemaRef", "linkbaseRef", "roleRef", "arcroleRef"))
ON_THE_WEB = re.compile(r"https?://[^\s\\]+\Z")
BESIDE_THE_FILE = re.compile(r"[\w.+-]+(#\S*)?\Z")
MAX_BYTES = 200 << 20
MAX_DEPTH = 200
# From one tag to the next. Longer texts are no disclosures; libxml2's own limit for one text is 10 MB, too.
MAX_TEXT_BYTES = 10 << 20
CHUNK_BYTES = 1 << 20


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
    """What a file says about itself: the schemas that it starts from.

    Args:
        schema_refs: their addresses, in order.
        root: namespace and name of the outermost element; empty for JSON.
        has_inline_facts: an XHTML page with Inline XBRL.
        beside: other files in the filing's folder that are read with it, relative to the file that names them.
        inspected: every file that was looked at, the filing itself first.
        targets: reports other than the default one that inline facts belong to.
    """

    schema_refs: list[str] = field(default_factory=list)
    root: str = ""
    has_inline_facts: bool = False
    beside: list[str] = field(default_factory=list)
    inspected: list[Path] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)


def inspect(path: Path, max_bytes: int = MAX_BYTES, within: Path | None = None, *, is_first: bool = True) -> Head:
    """Read a file once, strictly.

    Args:
        path: the file.
        max_bytes: a larger file is refused.
        within: a folder of its own that holds the filing and what belongs to it, as a report package has; without
            one, only files that stand beside the filing may be referred to by a relative address.
        is_first: False for a further document of an inline set, which need not name the taxonomy again.

    Returns:
        The schema references, in order.

    Raises:
        Refusal: file_empty, file_too_large, file_malformed, file_doctype, file_too_deep, file_text_too_long,
            file_wrong_root, file_include, file_own_rules, file_schema_ref, file_no_schema_ref.
    """
    check_size(path, max_bytes)
    head = _parsed(path, within, is_instance=True)
    head.inspected.append(path)
    inspect_beside([path.parent / name for name in head.beside], head, max_bytes, within)
    if head.root == INLINE_ROOT and not head.has_inline_facts:
        raise Refusal(
            "file_wrong_root",
            "the page holds no Inline XBRL.",
            expected="an ix:header",
            got="plain XHTML",
            fix="take it out of the files of this source in conf/ingest/, or ask the sender for the tagged page",
        )
    if is_first and not head.schema_refs:
        raise no_schema_ref("a link:schemaRef")
    return head


def check_size(path: Path, max_bytes: int) -> None:
    """Refuse an empty file, and one that is too large to be opened at all.

    Raises:
        Refusal: file_empty, file_too_large.
    """
    size = path.stat().st_size
    if size == 0:
        again = "ask the sender for the file again"
        raise Refusal("file_empty", "the file is empty.", expected="an XBRL report", got="0 bytes", fix=again)
    if size > max_bytes:
        raise Refusal(
            "file_too_large",
            "the file is too large.",
            expected=f"at most {max_bytes} bytes",
            got=f"{size} bytes",
            fix="ask the sender; or raise `max_bytes` of this source in conf/ingest/ if such files are normal",
        )


def no_schema_ref(expected: str) -> Refusal:
    """Why a filing without a taxonomy is refused."""
    return Refusal(
        "file_no_schema_ref",
        "the filing does not say which taxonomy it uses.",
        expected=expected,
        got="none",
        fix="ask the filer for a complete report",
    )


def inspect_beside(files: list[Path], head: Head, max_bytes: int, within: Path | None) -> None:
    """Schemas and linkbases that come with the filing are opened as well: what they refer to is checked, too."""
    waiting, seen = list(files), {path.resolve() for path in head.inspected}
    while waiting:
        other = waiting.pop()
        if other.resolve() in seen or not other.is_file():
            continue
        seen.add(other.resolve())
        head.inspected.append(other)
        try:
            check_size(other, max_bytes)
            waiting += [other.parent / name for name in _parsed(other, within, is_instance=False).beside]
        except Refusal as refusal:
            refusal.place = f"{other.name} {refusal.place}".strip()
            raise


def _parsed(path: Path, within: Path | None, *, is_instance: bool) -> Head:
    head, parser = Head(), expat.ParserCreate(namespace_separator=" ")
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    folder = None if within is None else path.parent.relative_to(within).as_posix()
    watcher = _Watcher(head, parser, folder, is_instance=is_instance)
    parser.StartDoctypeDeclHandler = watcher.doctype
    parser.StartElementHandler = watcher.start
    parser.EndElementHandler = watcher.end
    try:
        with path.open("rb") as stream:
            _feed(parser, stream, watcher)
    except expat.ExpatError as error:
        raise Refusal(
            "file_malformed",
            "the file is not well-formed XML.",
            expected="XML 1.0",
            got=expat.ErrorString(error.code),
            place=f"line {error.lineno}",
            fix="ask the sender for the file again",
        ) from error
    except (ValueError, LookupError) as error:  # an encoding that Python does not know, or knows and cannot map
        raise Refusal(
            "file_malformed",
            "the file's encoding cannot be read.",
            expected="UTF-8, UTF-16 or Latin-1",
            got=str(error)[:200],
            fix="ask the sender for the file in UTF-8",
        ) from error
    return head


def _feed(parser: expat.XMLParserType, stream: BinaryIO, watcher: "_Watcher") -> None:
    """Piece by piece, and never holding more than one text or tag of the allowed length."""
    fed = 0
    while piece := stream.read(CHUNK_BYTES):
        parser.Parse(piece, False)  # expat's own signature
        fed += len(piece)
        watcher.check_text(fed)
    parser.Parse(b"", True)


def _places(name: str, attributes: dict[str, str], *, is_instance: bool) -> Iterator[str]:
    """Every other file that an element makes a reader open."""
    yield from attributes.get(SCHEMA_LOCATION, "").split()[1::2]
    if NO_NAMESPACE in attributes:
        yield attributes[NO_NAMESPACE]
    if name in REFERENCES:
        yield attributes.get(HREF, "")
        return
    found = (attributes.get(HREF, ""), "" if is_instance else attributes.get("schemaLocation", ""))
    yield from (place for place in found if place and not place.startswith("#"))


def is_safe_address(address: str, folder: str | None = None) -> bool:
    """Whether an address leads to the web (and so to its local copy), or to a file that belongs to the filing.

    Args:
        address: as it stands in the file.
        folder: where that file lies within the folder that it may not leave; None if it may name neighbours only.
    """
    plain = unquote(address)
    if plain != unquote(plain) or any(ord(character) < ord(" ") for character in plain):
        return False
    if ON_THE_WEB.match(plain):
        parts = urlsplit(plain)
        return bool(parts.hostname) and ".." not in parts.netloc and ".." not in parts.path.split("/")
    name = plain.split("#")[0]
    if folder is None:
        return bool(BESIDE_THE_FILE.match(plain)) and name not in (".", "..")
    if not name or ":" in name or "\\" in name or name.startswith("/"):
        return False
    return not posixpath.normpath(posixpath.join(folder, name)).startswith("..")


class _Watcher:
    """Handlers of one parse."""

    def __init__(self, head: Head, parser: expat.XMLParserType, folder: str | None, *, is_instance: bool) -> None:
        self.head, self.parser, self.folder, self.is_instance = head, parser, folder, is_instance
        self.depth, self.last_tag = 0, 0
        self.seen: set[str] = set()

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
        """Check the root, the depth, the text before it and every reference to another file."""
        self.check_text(self.parser.CurrentByteIndex)
        self.last_tag = self.parser.CurrentByteIndex
        self.depth += 1
        if not self.head.root:
            self._root(name)
        if self.depth > MAX_DEPTH:
            raise self._refusal(
                "file_too_deep", "elements are nested too deep.", expected=f"at most {MAX_DEPTH}", got="more"
            )
        self._namespace(name)
        if not attributes:
            return
        if "target" in attributes and name.startswith(INLINE_NAMESPACES):
            self.head.targets.add(attributes["target"])
        for place in _places(name, attributes, is_instance=self.is_instance):
            self._reference(place)
        if XML_BASE in attributes or name == XHTML + "base":
            self._base(attributes.get(XML_BASE) or attributes.get("href", ""))
        if name == REFERENCES[0]:
            self.head.schema_refs.append(attributes.get(HREF, "").strip())

    def end(self, _name: str) -> None:
        """Leave an element."""
        self.check_text(self.parser.CurrentByteIndex)
        self.last_tag = self.parser.CurrentByteIndex
        self.depth -= 1

    def check_text(self, at: int) -> None:
        """Refuse what is longer between two tags, or within one, than any honest text."""
        if at - self.last_tag > MAX_TEXT_BYTES:
            raise self._refusal(
                "file_text_too_long",
                "one text or tag is too long.",
                expected=f"at most {MAX_TEXT_BYTES} bytes from tag to tag",
                got="more",
            )

    def _namespace(self, name: str) -> None:
        if name.startswith(INLINE_NAMESPACES):
            self.head.has_inline_facts = True
        elif name.startswith(XINCLUDE):
            raise self._refusal(
                "file_include", "the file wants to include others.", expected="no XInclude", got=name.split(" ")[1]
            )
        elif RULES.match(name):
            raise self._refusal(
                "file_own_rules",
                "the filing brings formulas of its own, which could open any file.",
                expected="formulas in the publisher's taxonomy only",
                got=" in ".join(reversed(name.split(" "))),
                fix="do not trust this file; where the rules are the publisher's, name the taxonomy's package under "
                "`taxonomies` of this source in conf/ingest/, and take its files away from beside the filing",
            )

    def _root(self, name: str) -> None:
        self.head.root = name
        if self.is_instance and name not in (INSTANCE_ROOT, INLINE_ROOT):
            raise self._refusal(
                "file_wrong_root",
                "the file is no XBRL instance.",
                expected="the root element xbrl of http://www.xbrl.org/2003/instance, or an XHTML page",
                got=" in ".join(reversed(name.split(" "))),
            )

    def _base(self, address: str) -> None:
        """Relative references start from here; from somewhere on the web they lead to local copies only."""
        if not (ON_THE_WEB.match(address) and is_safe_address(address)):
            raise self._refusal(
                "file_schema_ref",
                "the file moves its base to a place that it may not.",
                expected="an http(s) address",
                got=address[:200] or "nothing",
            )

    def _reference(self, href: str) -> None:
        href = href.strip()
        place = href.partition("#")[0]
        if place in self.seen:
            return
        if not is_safe_address(href, self.folder):
            raise self._refusal(
                "file_schema_ref",
                "the file refers to a place that it may not.",
                expected="an http(s) address, or the name of a file beside it",
                got=href[:200] or "nothing",
            )
        self.seen.add(place)  # the locators of a linkbase name few files again and again
        if not ON_THE_WEB.match(unquote(href)):
            self.head.beside.append(unquote(href).split("#")[0])

    def _refusal(
        self, rule: str, problem: str, *, expected: str, got: str, fix: str = "do not trust this file; ask the sender"
    ) -> Refusal:
        place = f"line {self.parser.CurrentLineNumber}"
        return Refusal(rule, problem, expected=expected, got=got, place=place, fix=fix)
