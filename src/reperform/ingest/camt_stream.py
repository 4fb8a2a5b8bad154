"""Stream ISO 20022 messages (camt.052, 053, 054, pain.001, pacs.008) into text columns, in flat memory.

The namespace decides the message and its version. A Document may stand in an envelope, beside its business application
header (head.001). Document type definitions are refused; entities and the network stay untouched.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import polars as pl

from reperform.ingest.iso20022_plan import (
    APPLICATION_HEADER,
    DETAIL_FIELDS,
    ENTRY_FIELDS,
    RECORDS,
    TEXT_FIELDS,
    VERSIONS,
    Node,
    compiled,
    document_plan,
    supported,
)  # fmt: skip
from reperform.ingest.iso20022_shapes import Shapes, texts_of, without_texts
from reperform.ingest.source import UnreadableFileError
from reperform.ingest.xml_guard import MOST_DEPTH, MOST_TEXT_CHARS, MOST_TOKEN_BYTES, Guarded, utf8_pieces

ISO = "urn:iso:std:iso:20022:tech:xsd:"
OPENING = ("OPBD", "PRCD")  # opening booked, or previously closed booked
CLOSING = ("CLBD",)
INTERIM = "ITBD"
PLACES = ("statement", "ordinal", "part", "n_details")  # whole numbers before the texts of a row
FIELDS = (*PLACES, *TEXT_FIELDS)
ROWS_PER_PART = 20_000
_MOST_ENTRY_CHARS = 64_000_000  # of one entry with all its details: about 200,000 transactions
_MOST_ENVELOPES = 10
_NO_DETAIL = (None,) * len(DETAIL_FIELDS)
_SCHEMA: dict[str, Any] = {name: pl.Int64 if name in PLACES else pl.String for name in FIELDS}
_SPACE = re.compile(rb"[ \t\r\n]*")
_DOCUMENT = re.compile(rb"<([A-Za-z_][\w.-]*:)?Document[\s>]")
_END = re.compile(rb"</(?:[A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)>[ \t\r\n]*")
_CONTROLS = bytes({*range(0x20)} - {0x9, 0xA, 0xD})  # what XML forbids in texts
_OTHER_REFERENCE = re.compile("&(?!(?:amp|lt|gt|quot|apos);)")
_REFERENCES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&"))  # the ampersand last
_CODE_OF_CURRENCY = 3
_UNREAD = Node()

Row = tuple[int | str | None, ...]  # in the order of FIELDS
Fields = dict[str, Any]


@dataclass
class Statement:
    """A statement, report, notification, or group of payments, as it is read.

    Args:
        number: its place in the file, from 0.
        definition: the message, such as camt.053.001.08.
        header: fields of its message's header.
        fields: its own fields.
        application: fields of the business application header, if there is one.
        where: its file.
        line: where it begins.
        opening: booked balance before its entries, by currency.
        closing: booked balance after them, by currency.
        interim: booked balances between, by currency in the order of the file: the ends of a page.
        entries: how many it holds.
        split: entries that several transactions make up.
        unsplit: lines of entries whose details do not add up to them.
    """

    number: int
    definition: str = ""
    header: Fields = field(default_factory=dict)
    fields: Fields = field(default_factory=dict)
    application: Fields = field(default_factory=dict)
    where: str = ""
    line: int = 0
    opening: dict[str, Decimal] = field(default_factory=dict)
    closing: dict[str, Decimal] = field(default_factory=dict)
    interim: dict[str, list[Decimal]] = field(default_factory=dict)
    entries: int = 0
    split: int = 0
    unsplit: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its identification."""
        return str(self.fields.get("name") or "").strip()

    @property
    def message(self) -> str:
        """Identification of its message."""
        return str(self.header.get("message") or "").strip()

    @property
    def account(self) -> str | None:
        """The account that it is of."""
        return str(self.fields.get("account") or "").strip() or None

    @property
    def family(self) -> str:
        """Such as camt.053."""
        return self.definition[:8]


def stream(path: Path, where: str, namespaces: list[str], begun: Callable[[Statement], None]) -> Iterator[pl.DataFrame]:
    """The transactions of a file in parts of some 20,000 rows.

    Args:
        path: the file.
        where: its name below the raw folder.
        namespaces: allowed beside the standard's own.
        begun: called with each statement as it begins; the statement fills up as the file is read.

    Yields:
        Columns `FIELDS`: `statement` is the statement's number, `ordinal` the entry's place in it from 1, `part` the
        detail's place in the entry from 1 or 0 for a whole entry, `n_details` how many details the entry has; then the
        texts as they stand in the file.

    Raises:
        UnreadableFileError: for an empty or malformed file, a document type definition, or another kind of document.
    """
    reader = _Reader(where, namespaces, begun)
    for piece in utf8_pieces(path, where):
        reader.take(piece)
        while len(reader.rows) >= ROWS_PER_PART:
            yield reader.part()
    reader.end()
    yield reader.part()


class _Reader(Guarded):
    """What has been read of one file. The parser sees all of it but the entries whose shape is known."""

    def __init__(self, where: str, namespaces: list[str], begun: Callable[[Statement], None]) -> None:
        super().__init__(where)
        self.rows: list[Row] = []
        self._namespaces = namespaces
        self._begun = begun
        self._buffer = b""
        self._is_plain = False
        self._is_between = False  # the parser stands where an entry may begin
        self._last_child = ("", 0)  # the last element that ended right below a statement, and where its end tag begins
        self._start_tag = self._end_tag = b""
        self._shapes: Shapes | None = None
        self._n_statements = 0
        self._root = ""
        self._n_outside = 0
        self._inside = ""  # what is being read: a document, an application header, or nothing that counts
        self._application: Fields = {}
        self._header: Fields = {}
        self._statement: Statement | None = None
        self._definition = ""
        self._has_inner_namespaces = False
        self._spaces: dict[str, str] = {}
        self._node = _UNREAD
        self._nodes: list[Node] = []
        self._fields: list[Fields] = []
        self._texts: list[str] = []
        self._is_leaf = False
        self._attributes: list[str] = []
        self._entry_line = 0
        self._entry_chars = 0
        self.parser.StartElementHandler = self._start_outside
        self.parser.EndElementHandler = self._end_outside
        self.parser.CharacterDataHandler = self.count_text
        self.parser.StartNamespaceDeclHandler = self._declare
        self.parser.EndNamespaceDeclHandler = self._undeclare

    def part(self) -> pl.DataFrame:
        """The rows so far, which are then forgotten."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(FIELDS)
        self.rows = []
        return pl.DataFrame(
            [pl.Series(name, column, _SCHEMA[name]) for name, column in zip(FIELDS, columns, strict=True)]
        )

    def take(self, piece: bytes) -> None:
        """Read one more piece of the file, as far as its last whole entry."""
        buffer = self._buffer + piece
        if not self._start_tag:
            self._guess_tags(buffer)
        at = 0
        self._is_plain = _is_plain(buffer)
        while True:
            if self._is_between:
                at = self._alike(buffer, at)
            end = buffer.find(self._end_tag, at) if self._end_tag else -1
            if end < 0:
                break
            begin = buffer.find(self._start_tag, at, end)
            # First up to the next entry, which may be alike; then that entry, when it is not.
            to = begin if begin > at else end + len(self._end_tag)
            self._parse(buffer[at:to])
            at = to
        if not self._end_tag or len(buffer) - at > MOST_TOKEN_BYTES:
            self._parse(buffer[at:])
            at = len(buffer)
        self._buffer = buffer[at:]

    def end(self) -> None:
        """Read what is left, and see that the file was whole."""
        self._parse(self._buffer)
        self.feed(b"", final=True)
        if not self._definition:
            raise self._unknown(self._root)
        if not self._n_statements:
            raise UnreadableFileError(
                self.where, "file_no_statement", "the message holds no statement and no payment.",
                expected="at least one Stmt, Rpt, Ntfctn, PmtInf or CdtTrfTxInf", got="none",
                fix="ask the sender for the file again",
            )  # fmt: skip

    def _parse(self, piece: bytes) -> None:
        self._last_child = ("", 0)
        first = self.fed_bytes
        self.feed(piece)
        name, end = self._last_child
        # The parser is sure to stand between two entries when it has seen the end of a thing in a statement, and only
        # blanks came after.
        tail = _END.fullmatch(piece, end - first) if end >= first and self._node.begins == "group" else None
        self._is_between = tail is not None and tail[1].decode("ascii") == name

    def _guess_tags(self, buffer: bytes) -> None:
        """Which tags entries seem to have. The parser decides; a wrong guess costs time and nothing else."""
        document = _DOCUMENT.search(buffer)
        if document:
            prefix = document[1] or b""
            record = RECORDS["camt" if b"camt.05" in buffer[: document.end() + 1000] else "pain"].encode()
            self._start_tag, self._end_tag = b"<" + prefix + record + b">", b"</" + prefix + record + b">"

    def _alike(self, buffer: bytes, at: int) -> int:
        """Read entries of known shape, and return where the first other thing begins."""
        if self._has_inner_namespaces or self._shapes is None or self._statement is None:
            return at
        first, statement, shapes = at, self._statement, self._shapes
        while True:
            begin = _SPACE.match(buffer, at).end()  # type: ignore[union-attr]  # it matches nothing as well
            end = buffer.find(self._end_tag, begin) + len(self._end_tag)
            if end < len(self._end_tag) or not buffer.startswith(self._start_tag, begin):
                break
            entry = _plain_text(buffer[begin:end], is_plain=self._is_plain)
            fields = shapes.fields(entry) if entry is not None else None
            if fields is not None and entry is not None:
                statement.entries += 1
                fields = tuple(_resolved(fields)) if "&" in entry else fields
                self.rows.append((statement.number, statement.entries, 0, 1, *fields))
                at = end
                continue
            shape = shapes.of(without_texts("><", entry)) if entry is not None else None
            if entry is None or shape is None:
                break
            texts = shape.gathered(_resolved(texts_of(entry)) if "&" in entry else texts_of(entry))
            statement.entries += 1
            if len(shape.details) <= 1:
                shapes.remember(shape)
                self.rows.append((statement.number, statement.entries, 0, 1, *shape.whole(texts)))
            else:
                self._entry_line = self.line() + buffer.count(b"\n", first, begin)
                self._add_batch(shape.entry(texts), [pick(texts) for pick in shape.details])
            at = end
        self.skipped_lines += buffer.count(b"\n", first, at)
        return at

    def _declare(self, prefix: str | None, space: str | None) -> None:
        self._spaces[prefix or ""] = space or ""
        if self._inside == "document":
            self._has_inner_namespaces = True

    def _undeclare(self, prefix: str | None) -> None:
        self._spaces.pop(prefix or "", None)

    # Outside of a Document: envelopes, of which only the application header counts.

    def _start_outside(self, name: str, attributes: list[str]) -> None:
        space, _, local = name.rpartition(" ")
        self._root = self._root or f"{local} in {space or 'no namespace'}"
        self._n_outside += 1
        self.check_element(self._n_outside, attributes)
        self.is_moving, self.text_chars = True, 0
        if local == "Document":
            self._enter("document", self._document_node(space, local))
        elif local == "AppHdr" and space.startswith(f"{ISO}head.001."):
            self._application = {}
            self._enter("application header", compiled(APPLICATION_HEADER, space))
            self._fields = [self._application]

    def _end_outside(self, _: str) -> None:
        self._n_outside -= 1
        self.is_moving, self.text_chars = True, 0

    def _enter(self, what: str, node: Node) -> None:
        self._inside, self._node, self._nodes = what, node, []
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _leave(self) -> None:
        self._inside, self._node, self._fields, self._n_outside = "", _UNREAD, [], self._n_outside - 1
        self.parser.StartElementHandler = self._start_outside
        self.parser.EndElementHandler = self._end_outside
        self.parser.CharacterDataHandler = self.count_text

    def _document_node(self, space: str, local: str) -> Node:
        """The plan of a Document, which its namespace decides.

        Raises:
            UnreadableFileError: for an unknown one.
        """
        definition = space.removeprefix(ISO)
        message, _, version = definition.rpartition(".")
        known = space.startswith(ISO) and message in VERSIONS and version.isdigit() and len(version) == 2  # noqa: PLR2004  # two digits
        if not (known and int(version) in VERSIONS[message]) and space not in self._namespaces:
            raise self._unknown(f"{local} in {space or 'no namespace'}")
        national = re.search(r"camt\.05[234]\.001\.\d\d|pain\.001\.001\.\d\d|pacs\.008\.001\.\d\d", space)
        self._definition = national[0] if national else "camt.053.001.08"
        family = self._definition[:4]
        node = document_plan(family, space)
        self._header, self._has_inner_namespaces = {}, False
        record = _record_node(node)
        prefix = self._start_tag[1 : -len(RECORDS[family]) - 1].decode("ascii", "replace")
        self._shapes = Shapes(record, prefix)
        is_right = self._spaces.get(prefix.rstrip(":")) == space and self._end_tag.endswith(
            b"%s>" % RECORDS[family].encode()
        )
        self._end_tag = self._end_tag if is_right else b""
        return node

    def _unknown(self, got: str) -> UnreadableFileError:
        return UnreadableFileError(
            self.where, "file_unknown_message", "the file is no message that can be read.",
            expected=f"a Document in a namespace {ISO}… of {supported()}", got=got[:300],
            fix="take the file out of the source, or allow its namespace by `namespaces` in conf/ingest/",
        )  # fmt: skip

    # Inside of a Document.

    def _start(self, name: str, attributes: list[str]) -> None:
        self._nodes.append(self._node)
        depth = len(self._nodes)
        # The one child of a Document has a name of its own in every message.
        is_message = depth == 1 and self._inside == "document"
        node = self._node if is_message else self._node.children.get(name, _UNREAD)
        self._node = node
        if attributes or depth > MOST_DEPTH:
            self.check_element(depth, attributes)
        self.is_moving, self.text_chars, self._is_leaf = True, 0, True
        self._texts.clear()
        self._attributes = attributes
        if node.begins and (depth > 1 or node.begins == "group"):
            self._begin(node.begins)

    def _text(self, text: str) -> None:
        self.count_text(text)
        if self._node.text:
            self._texts.append(text)

    def _end(self, name: str) -> None:
        node = self._node
        if not self._nodes:
            self._leave()
            return
        if self._is_leaf and node.text and self._fields:
            self._set(node, "".join(self._texts))
        if node.begins:
            self._finish(node.begins)
        self._node = self._nodes.pop()
        if self._node.begins == "group":
            self._last_child = (name.rpartition(" ")[2], self.parser.CurrentByteIndex)
        self._is_leaf, self.text_chars, self.is_moving = False, 0, True

    def _set(self, node: Node, text: str) -> None:
        fields = self._fields[-1]
        self._entry_chars += len(text)
        if self._entry_chars > _MOST_ENTRY_CHARS:
            limit = f"at most {_MOST_ENTRY_CHARS:,} characters"
            self.refuse("file_entry_too_large", "an entry with all its details is too large.", limit)
        if node.text is not None:
            if node.is_every:
                if text:
                    fields.setdefault(node.text, []).append(text)
            else:
                fields.setdefault(node.text, text)
        if node.currency and "Ccy" in self._attributes[::2]:
            fields.setdefault(node.currency, self._attributes[self._attributes.index("Ccy") + 1])

    def _begin(self, kind: str) -> None:
        fields: Fields = {}
        if kind == "group":
            self._statement = Statement(
                self._n_statements, self._definition, self._header, fields, self._application, self.where, self.line()
            )
            self._n_statements += 1
            self._begun(self._statement)
        elif kind == "record":
            self._entry_line = self.line()
        if kind != "detail":
            self._entry_chars = 0
        self._fields.append(fields)

    def _finish(self, kind: str) -> None:
        fields = self._fields.pop()
        if kind == "header":
            self._header = fields
            if self._statement is not None:  # the header of pacs.008 stands inside of the one group
                self._statement.header = fields
        elif kind == "detail":
            self._fields[-1].setdefault("details", []).append(_values(fields, DETAIL_FIELDS))
        elif kind == "balance" and self._statement is not None:
            _add_balance(self._statement, fields)
        elif kind == "record" and self._statement is not None:
            self._add(fields)
        elif kind == "group":
            self._statement = None

    def _add(self, fields: Fields) -> None:
        statement = self._statement
        if statement is None:
            return
        statement.entries += 1
        details = fields.get("details", [])
        own = _values(fields, ENTRY_FIELDS)
        if len(details) > 1:
            self._add_batch(own, details)
        else:
            detail = details[0] if details else _values(fields, DETAIL_FIELDS)
            self.rows.append((statement.number, statement.entries, 0, 1, *own, *detail))

    def _add_batch(self, own: tuple[str | None, ...], details: list[tuple[str | None, ...]]) -> None:
        """An entry as several transactions where its details add up to it (a batch that was booked in one sum)."""
        statement = self._statement
        if statement is None:
            return
        of = (statement.number, statement.entries)
        if _adds_up(own, details):
            statement.split += 1
            self.rows += [(*of, place, len(details), *own, *detail) for place, detail in enumerate(details, start=1)]
        else:
            # Amounts of the parts are missing or differ: the booked sum is certain, its parts are not.
            statement.unsplit.append(self._entry_line)
            self.rows.append((*of, 0, len(details), *own, *_NO_DETAIL))


def _is_plain(content: bytes) -> bool:
    """Without what XML forbids in texts."""
    return (
        len(content.translate(None, _CONTROLS)) == len(content)
        and b"\xef\xbf\xbe" not in content
        and b"\xef\xbf\xbf" not in content
    )


def _plain_text(raw: bytes, *, is_plain: bool) -> str | None:
    """An entry as text, with line ends as a parser gives them; None where it takes the parser."""
    if len(raw) > MOST_TEXT_CHARS or (not is_plain and not _is_plain(raw)):
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    if "&" in text and _OTHER_REFERENCE.search(text):
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _resolved(fields: Iterable[str | None]) -> list[str | None]:
    """Texts with the five references that every XML document knows."""
    made = []
    for text in fields:
        if text and "&" in text:
            for reference, character in _REFERENCES:
                text = text.replace(reference, character)  # noqa: PLW2901  # one after the other is the point
        made.append(text)
    return made


def _record_node(node: Node) -> Node:
    """The plan of an entry or payment, wherever it stands in the plan of its document."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one.begins == "record":
            return one
        waiting += one.local.values()
    raise AssertionError(node.name)


def _values(fields: Fields, names: tuple[str, ...]) -> tuple[str | None, ...]:
    return tuple([" ".join(text) if isinstance(text := fields.get(name), list) else text for name in names])


def _add_balance(statement: Statement, balance: Fields) -> None:
    amount, code = decimal_of(balance.get("amount")), str(balance.get("code") or "").strip()
    currency = str(balance.get("currency") or "").strip()
    if amount is None or len(currency) != _CODE_OF_CURRENCY:
        return
    signed = amount if str(balance.get("indicator")).strip() == "CRDT" else -amount
    if code == OPENING[0]:
        statement.opening[currency] = signed
    elif code in OPENING:
        statement.opening.setdefault(currency, signed)
    elif code in CLOSING:
        statement.closing[currency] = signed
    elif code == INTERIM:
        ends = statement.interim.setdefault(currency, [])
        statement.interim[currency] = [*ends[:1], signed]


_AMOUNT, _CURRENCY, _INDICATOR = (ENTRY_FIELDS.index(name) for name in ("amount", "currency", "indicator"))
_PART_AMOUNT, _PART_CURRENCY, _PART_INDICATOR = (
    DETAIL_FIELDS.index(name) for name in ("part_amount", "part_currency", "part_indicator")
)


def _adds_up(own: tuple[str | None, ...], details: list[tuple[str | None, ...]]) -> bool:
    total = decimal_of(own[_AMOUNT])
    found = Decimal(0)
    for detail in details:
        part = decimal_of(detail[_PART_AMOUNT])
        if part is None or detail[_PART_CURRENCY] != own[_CURRENCY]:
            return False
        found += part if detail[_PART_INDICATOR] in (None, "", own[_INDICATOR]) else -part
    return found == total


def decimal_of(text: object) -> Decimal | None:
    """A finite number from a text; None for anything else."""
    try:
        number = Decimal(str(text).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
