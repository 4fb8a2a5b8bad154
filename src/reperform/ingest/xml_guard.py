"""XML files as UTF-8 pieces and a parser that refuses what no payment message needs. Nothing here resolves anything.

A document type definition is refused before its first entity is declared, so there is nothing to expand or to load.
Elements, tags, texts and nesting have limits, so that memory stays bounded whatever a file holds.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat  # refuses what it must in the handlers below

from reperform.ingest.source import UnreadableFileError

PIECE_BYTES = 1 << 18
MOST_TOKEN_BYTES = 1 << 20  # a tag, a comment, a processing instruction
MOST_TEXT_CHARS = 1 << 20  # the longest text of the standard has 2,000 characters, an address line 70
MOST_DEPTH = 100  # real messages nest about 20 deep
MOST_ATTRIBUTES = 50
_PEEK_BYTES = 1024
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_UNMARKED = ((b"<\x00", "utf-16-le"), (b"\x00<", "utf-16-be"))
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_ENCODINGS = re.compile(r"utf-8|ascii|utf-16(-[lb]e)?|iso8859-\d+|cp125\d|cp850|cp437")
_INVALID_TOKEN = 4  # expat's number for bytes that cannot stand where they are


def utf8_pieces(path: Path, where: str) -> Iterator[bytes]:
    """A file's bytes as UTF-8 without a byte order mark, piece by piece.

    The mark decides about the encoding, then the declaration, then UTF-8.

    Raises:
        UnreadableFileError: for an empty file, an encoding that is unknown here, and bytes that it does not allow.
    """
    if not path.stat().st_size:
        raise UnreadableFileError(
            where, "file_empty", "the file is empty.",
            expected="an ISO 20022 document", got="0 bytes", fix="ask the sender for the file again",
        )  # fmt: skip
    with path.open("rb") as stream:
        head = stream.read(_PEEK_BYTES)
        encoding, mark = _encoding(head, where)
        stream.seek(mark)
        if encoding == "utf-8":
            while piece := stream.read(PIECE_BYTES):
                yield piece
            return
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        try:
            while piece := stream.read(PIECE_BYTES):
                yield decoder.decode(piece).encode()
            yield decoder.decode(b"", final=True).encode()
        except UnicodeError as error:
            raise wrong_encoding(where, encoding, str(error)) from error


def _encoding(head: bytes, where: str) -> tuple[str, int]:
    """The encoding, and the length of the byte order mark."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    for begin, encoding in _UNMARKED:
        if head.startswith(begin):
            return encoding, 0
    declared = _DECLARED.match(head)
    name = declared[1].decode("ascii") if declared else "utf-8"
    try:
        known = codecs.lookup(name).name
    except LookupError:
        known = ""
    if not _ENCODINGS.fullmatch(known) or known.startswith("utf-16"):  # UTF-16 shows itself in the first bytes
        raise wrong_encoding(where, name, f"the declaration names {name}")
    return known, 0


def wrong_encoding(where: str, encoding: str, got: str) -> UnreadableFileError:
    """The error for bytes that are not what a file says of them."""
    return UnreadableFileError(
        where, "file_encoding", f"the bytes of the file are no {encoding}.",
        expected="UTF-8, UTF-16, ISO 8859 or Windows-125x, as the first line of the file declares", got=got[:200],
        fix="ask the sender for the file as it was made; it may have been opened and saved in between",
    )  # fmt: skip


class Guarded:
    """An expat parser with limits. Subclasses add the handlers for what they read.

    Args:
        where: the file's name, for errors.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.parser = expat.ParserCreate("utf-8", " ")
        self.parser.buffer_text = True
        self.parser.ordered_attributes = True
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.fed_bytes = 0
        self.skipped_lines = 0  # lines of the file that the parser has not seen
        self.is_moving = False  # something was read since the last piece
        self._quiet_bytes = 0
        self._earlier = b""  # the last bytes before a piece
        self.text_chars = 0  # of the element that is being read

    def line(self) -> int:
        """The line of the file that is being read."""
        return int(self.parser.CurrentLineNumber) + self.skipped_lines

    def feed(self, piece: bytes, *, final: bool = False) -> None:
        """Parse one more piece.

        Raises:
            UnreadableFileError: for what is malformed, cut off, or beyond the limits.
        """
        self.is_moving = False
        self.fed_bytes += len(piece)
        try:
            self.parser.Parse(piece, final)
        except expat.ExpatError as error:
            raise self._malformed(error, piece) from error
        self._earlier = piece[-3:] if len(piece) >= 3 else (self._earlier + piece)[-3:]  # noqa: PLR2004  # a character has four bytes
        self._quiet_bytes = 0 if self.is_moving else self._quiet_bytes + len(piece)
        if self._quiet_bytes > MOST_TOKEN_BYTES:
            self.refuse("file_tag_too_long", "a tag or comment never ends.", f"at most {MOST_TOKEN_BYTES:,} bytes")

    def count_text(self, text: str) -> None:
        """Count the characters of an element's text."""
        self.is_moving = True
        self.text_chars += len(text)
        if self.text_chars > MOST_TEXT_CHARS:
            self.refuse("file_text_too_long", "a text is too long.", f"at most {MOST_TEXT_CHARS:,} characters")

    def check_element(self, depth: int, attributes: list[str]) -> None:
        """Check nesting and attributes of an element that begins."""
        if depth > MOST_DEPTH:
            self.refuse("file_too_deep", "elements are nested too deeply.", f"at most {MOST_DEPTH} levels")
        if len(attributes) > 2 * MOST_ATTRIBUTES:  # names and values
            limit = f"at most {MOST_ATTRIBUTES}"
            self.refuse("file_too_many_attributes", "an element has too many attributes.", limit)

    def refuse(self, rule: str, problem: str, expected: str, got: str = "more") -> NoReturn:
        """Raise the error for a file that is refused where the parser stands."""
        raise UnreadableFileError(
            self.where, rule, problem, expected=expected, got=got, place=f"line {self.line()}",
            fix="ask the sender for a clean file; no payment message needs this",
        )  # fmt: skip

    def _refuse_doctype(self, name: str, *_: Any) -> None:
        raise UnreadableFileError(
            self.where, "file_doctype", "the file has a document type definition.",
            expected="a document without DOCTYPE, as ISO 20022 prescribes", got=f"<!DOCTYPE {name[:80]}",
            fix="do not load it: entities can read files and fill the memory; ask the sender for a clean file",
        )  # fmt: skip

    def _malformed(self, error: expat.ExpatError, piece: bytes) -> UnreadableFileError:
        if error.code == _INVALID_TOKEN:
            # A piece may begin and end inside of a character.
            wrong = [_undecodable(self._earlier[len(self._earlier) - n :] + piece) for n in range(4)]
            if None not in wrong:
                return wrong_encoding(self.where, "UTF-8", str(wrong[0]))
        return UnreadableFileError(
            self.where, "file_malformed", "the XML is malformed or cut off.",
            expected="well-formed XML to its last line", got=expat.ErrorString(error.code) or str(error),
            place=f"line {error.lineno + self.skipped_lines}", fix="ask the sender for the file again",
        )  # fmt: skip


def _undecodable(content: bytes) -> str | None:
    """Why bytes are no UTF-8; an unfinished last character is none of it."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(content)
    except UnicodeDecodeError as error:
        return str(error)
    return None
