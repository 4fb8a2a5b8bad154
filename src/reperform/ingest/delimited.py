"""Delimited text as records of text fields. Every record is either returned or refused with its number and its text.

Text is read in pieces that end where a record ends. Polars alone fills short rows with nulls and can cut long ones, so
the shape of a piece is looked at before it parses: where every record has its fields, Polars takes the piece as it is;
anything else is divided into lines, and each record is checked by itself.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from reperform.errors import nearest
from reperform.ingest import archives
from reperform.ingest.column_map import Format
from reperform.ingest.source import RECORD, UnreadableFileError

ROW = "__row"  # the record's text as it was delivered
WRONG_FIELDS = "wrong_number_of_fields"
BAD_QUOTES = "malformed_quotes"
NUL_BYTE = "nul_byte"
BYTE_ORDER_MARK = "\ufeff".encode()
_LINE_END, _RETURN = 10, 13
_NUL = "\0"
_SEEN_NUL = "\u2400"  # the picture of a NUL, which no database takes as text
_FEW = 10  # one record in so many may have another number of fields; with more, all are looked at one by one
_WHITE = (b" ", b"\t", b"\x0b", b"\x0c", b"\r")
Positions = npt.NDArray[np.int64]
Keep = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Records:
    """The records of one file.

    Args:
        fields: `RECORD` (Int64), `ROW` (String), and one String column per raw column; an empty field is null.
        refused: `RECORD`, `ROW`, `rule`, `value` of the records whose shape is wrong.
    """

    fields: pl.DataFrame
    refused: pl.DataFrame

    @property
    def count(self) -> int:
        """How many records the file held."""
        return self.fields.height + self.refused.height


@dataclass(frozen=True)
class Piece:
    """Some records of one file, one after the other.

    Args:
        where: the file, and its member in an archive.
        fields: `RECORD` (Int64) and one String column per raw column that is kept; an empty field is null.
        refused: `RECORD`, `ROW`, `rule`, `value` of the records whose shape is wrong.
        texts: from record numbers to the records' texts as delivered; they are needed for few of them.
    """

    where: str
    fields: pl.DataFrame
    refused: pl.DataFrame
    texts: Callable[[pl.Series], pl.Series]

    @property
    def count(self) -> int:
        """How many records it holds."""
        return self.fields.height + self.refused.height


def parse(content: bytes, form: Format, needed: list[str], path: str) -> Records:
    """The records of a delimited file with a header.

    Args:
        content: the file's bytes, unpacked.
        form: how the text is written.
        needed: raw columns that must be there.
        path: the file's name, for messages.

    Raises:
        UnreadableFileError: for an empty file, wrong encoding, a missing column, a file that was cut off.
    """

    def keep(header: list[str]) -> list[str]:
        check_header(header, needed, path)
        return header

    text = [content] if archives.is_utf8(form) else archives.transcoded(iter([content]), form, path)
    fields, refused = [], [no_refusals()]
    for piece in pieces(text, form, keep, path):
        fields.append(piece.fields.insert_column(1, piece.texts(piece.fields.get_column(RECORD)).alias(ROW)))
        refused.append(piece.refused)
    return Records(pl.concat(fields), pl.concat(refused))


def pieces(blocks: Iterable[bytes], form: Format, keep: Keep, where: str) -> Iterator[Piece]:
    """The records of a text, piece by piece; at least one piece, which may be empty.

    Args:
        blocks: the text in UTF-8, cut anywhere.
        form: how the text is written.
        keep: from the header to the raw columns that are wanted; it refuses a header without a needed one.
        where: the text's name, for messages.

    Raises:
        UnreadableFileError: for an empty file, wrong encoding, a missing column, a file that was cut off.
    """
    reader = _Reader(form, keep, where)
    for block in blocks:
        yield from reader.pieces_of(block)
    yield reader.last_piece()


class _Reader:
    """Cuts a text where records end, and parses the pieces; counts bytes, lines and records on its way."""

    def __init__(self, form: Format, keep: Keep, where: str) -> None:
        self.form, self.keep, self.where = form, keep, where
        self.header: list[str] | None = form.names or None
        self.kept = (keep(form.names) or form.names[:1]) if form.names else []
        self.rest = b""
        self.bytes = self.lines = self.records = 0
        self.begun = False

    def pieces_of(self, block: bytes) -> Iterator[Piece]:
        """The records that are complete with this block."""
        text = self.rest + block if self.rest else block
        if not self.begun:
            if len(text) < len(BYTE_ORDER_MARK) or not text.strip():
                self.rest = text
                return
            self.begun, text = True, self._without_mark(text)
        whole = text.rfind(b"\n") + 1
        lines = text if whole == len(text) else text[:whole]
        self._check_encoding(lines)
        end = _closed_length(lines, self.form) if whole else 0
        self.rest = text[end:]
        if end:
            yield from self._piece(lines if end == whole else text[:end])
        self._check_length(len(self.rest))

    def _without_mark(self, text: bytes) -> bytes:
        if text.startswith(BYTE_ORDER_MARK):
            self.bytes += len(BYTE_ORDER_MARK)
        return text.removeprefix(BYTE_ORDER_MARK)

    def last_piece(self) -> Piece:
        """What is left at the end of the text.

        Raises:
            UnreadableFileError: when the text ends within a record, or holds nothing.
        """
        if not self.begun:
            if not self.rest.removeprefix(BYTE_ORDER_MARK).strip():
                raise _empty(self.where, self.bytes + len(self.rest))
            self.rest = self._without_mark(self.rest)
        self._check_encoding(self.rest)
        text = self.rest
        if text and not text.endswith(b"\n"):
            if self.form.final_newline:
                raise self._cut_off(text)
            text += b"\n"
        end = _closed_length(text, self.form) if text else 0
        if end < len(text):
            raise self._never_closed(text[:end].count(b"\n"))
        for piece in self._piece(text) if text else ():
            return piece
        if self.header is None:
            raise _empty(self.where, self.bytes)
        return Piece(self.where, _no_fields(self.kept), no_refusals(), lambda _: pl.Series(ROW, [], pl.String))

    def _piece(self, text: bytes) -> Iterator[Piece]:
        self.bytes += len(text)
        if self.header is None:
            first, rest = _first_record(text, self.form)
            self._check_length(len(text) - len(rest) - 1)
            text = rest
            self.header = _header(first, self.form, self.where)
            self.kept = self.keep(self.header) or self.header[:1]  # a frame without columns has no rows
            self.lines += first.count("\n") + 1
        if not text:
            return
        n_lines = text.count(b"\n")
        n_records = _regular_records(text, n_lines, self.form, len(self.header))
        piece = self._regular(text, n_records) if n_records is not None else None
        yield piece or self._mostly_regular(text, n_lines) or self._irregular(text)
        self.lines += n_lines

    def _regular(self, text: bytes, n_records: int) -> Piece | None:
        """The records of a text in which nothing looks odd; None where Polars finds that something is."""
        try:
            fields = self._split(text, n_records)
        except UnreadableFileError:
            return None
        before = self.records
        self.records += n_records
        number = pl.int_range(before + 1, self.records + 1, dtype=pl.Int64, eager=True).alias(RECORD)

        def texts(records: pl.Series) -> pl.Series:
            ends = _record_ends(text, self.form)
            places = records.to_numpy() - before - 1
            starts = np.where(places > 0, ends[places - 1] + 1, 0)
            cut = [text[a:b].decode().removesuffix("\r") for a, b in zip(starts, ends[places], strict=True)]
            return pl.Series(ROW, cut, pl.String)

        return Piece(self.where, fields.insert_column(0, number), no_refusals(), texts)

    def _mostly_regular(self, text: bytes, n_lines: int) -> Piece | None:
        """The records of a text in which a few have too many or too few fields: only these are looked at one by one.

        None where that cannot be told, where there are many of them, or where Polars finds more.
        """
        divided = _divided(text, n_lines, self.form, len(self.header or []))
        if divided is None:
            return None
        ends, fits = divided
        starts, wrong = np.append(0, ends[:-1] + 1), np.flatnonzero(~fits)
        if wrong.size > fits.size // _FEW:
            return None

        def cut(places: Positions) -> list[str]:
            both = zip(starts[places].tolist(), ends[places].tolist(), strict=True)
            return [text[a:b].decode().removesuffix("\r") for a, b in both]

        before = self.records + 1
        body = pl.DataFrame({RECORD: before + wrong, ROW: pl.Series(cut(wrong), dtype=pl.String)})
        shaped = _with_shape(body.filter(pl.col(ROW) != ""), self.form)
        between = zip([0, *(ends[wrong] + 1).tolist()], [*starts[wrong].tolist(), len(text)], strict=True)
        try:
            fields = self._split(b"".join([text[a:b] for a, b in between]), fits.size - wrong.size)
        except UnreadableFileError:
            return None
        self.records += fits.size
        return Piece(
            self.where,
            fields.insert_column(0, pl.Series(RECORD, before + np.flatnonzero(fits), dtype=pl.Int64)),
            _refused(shaped, len(self.header or [])),
            lambda records: pl.Series(ROW, cut(records.to_numpy() - before), pl.String),
        )

    def _irregular(self, text: bytes) -> Piece:
        lines = _lines(text)
        starts = _starts(text, lines.len(), self.form)
        self._check_lengths(np.add.reduceat(lines.str.len_bytes().to_numpy(), np.flatnonzero(starts)) - 1)
        rows = _joined(lines.str.strip_suffix("\n").str.strip_suffix("\r"), starts)
        numbers = pl.int_range(self.records + 1, self.records + rows.len() + 1, dtype=pl.Int64, eager=True)
        self.records += rows.len()
        header = self.header or []
        body = pl.DataFrame({RECORD: numbers, ROW: rows}).filter(pl.col(ROW) != "")
        shaped = _with_shape(body, self.form)
        fits = pl.col("rule").is_null() & (pl.col("n_fields") == len(header))
        good = shaped.filter(fits).select(RECORD, ROW)
        refused = _refused(shaped.filter(~fits), len(header))
        if good.is_empty():
            fields = _no_fields(self.kept).drop(RECORD)
        else:
            fields = self._split(("\n".join(good.get_column(ROW)) + "\n").encode(), good.height)

        def texts(records: pl.Series) -> pl.Series:
            return good.get_column(ROW).gather(good.get_column(RECORD).search_sorted(records))

        return Piece(self.where, fields.insert_column(0, good.get_column(RECORD)), refused, texts)

    def _split(self, text: bytes, n_records: int) -> pl.DataFrame:
        header = self.header or []
        try:
            fields = pl.read_csv(
                text,
                has_header=False,
                separator=self.form.delimiter,
                quote_char=self.form.quote or None,
                schema=dict.fromkeys(header, pl.String),
                null_values=self.form.missing or None,
            ).select(self.kept)
        except pl.exceptions.PolarsError as error:  # a record with too many fields, for one
            raise self._not_told_apart(n_records, str(error)) from error
        if fields.height != n_records:
            raise self._not_told_apart(n_records, f"{fields.height} rows")
        if not _may_need_trimming(text, self.form, n_records):
            return fields
        trimmed = pl.all().str.strip_chars()
        return fields.select(pl.when(trimmed.str.len_bytes() > 0).then(trimmed).name.keep())

    def _not_told_apart(self, n_records: int, got: str) -> UnreadableFileError:
        return UnreadableFileError(
            self.where, "file_rows", "the file's rows cannot be told apart.",
            expected=f"{n_records} rows", got=got, place=f"from line {self.lines + 1} on",
            fix="check `format.quote` and `format.delimiter`",
        )  # fmt: skip

    def _check_encoding(self, text: bytes) -> None:
        if text.isascii():
            return
        offsets = pa.py_buffer(np.array([0, len(text)], dtype=np.int64))
        try:
            pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(text)).validate(full=True)
        except pa.ArrowInvalid:
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise archives.wrong_encoding(self.where, self.form, error, self.bytes) from error

    def _check_lengths(self, lengths: npt.NDArray[Any]) -> None:
        if lengths.size and lengths.max() > self.form.max_record_bytes:
            self.records += int(np.argmax(lengths > self.form.max_record_bytes))
            self._check_length(int(lengths.max()))

    def _check_length(self, length: int) -> None:
        if length <= self.form.max_record_bytes:
            return
        raise UnreadableFileError(
            self.where, "file_record_too_long", "a record is longer than any record may be.",
            expected=f"at most {self.form.max_record_bytes} bytes", got="more than that, without an end",
            place=f"record {self.records + 1}",
            fix="ask the sender: the quote of a field is never closed, or line breaks are missing; if such records "
            "are right, raise `format.max_record_bytes` of the source in conf/ingest/",
        )  # fmt: skip

    def _cut_off(self, text: bytes) -> UnreadableFileError:
        last = text[text.rfind(b"\n") + 1 :]
        return UnreadableFileError(
            self.where, "file_cut_off", "the file is cut off in the middle of a row.",
            expected="a line break after the last row",
            got=f"the end of the file after {last[:480].decode(errors='replace')[:120]!r}",
            place=f"line {self.lines + text.count(_LINE_END) + 1}",
            fix="ask the sender for the file again; if this source never ends its last row, set `format.final_newline: "
            "false` in conf/ingest/",
        )  # fmt: skip

    def _never_closed(self, lines_before: int) -> UnreadableFileError:
        return UnreadableFileError(
            self.where, "file_cut_off", "a quoted field is never closed: the file is cut off, or a quote is stray.",
            expected=f"a closing {self.form.quote}", got="the end of the file",
            place=f"from line {self.lines + lines_before + 1} on",
            fix="ask the sender for the file again; if this source never quotes, set `format.quote: ''`",
        )  # fmt: skip


def _empty(where: str, n_bytes: int) -> UnreadableFileError:
    return UnreadableFileError(
        where, "file_empty", "the file is empty.",
        expected="a header and rows", got=f"{n_bytes} bytes without text",
        fix="ask the sender for the file again; a day without rows still has a header",
    )  # fmt: skip


def _regular_records(text: bytes, n_lines: int, form: Format, n_columns: int) -> int | None:
    """How many records a text holds, if nothing in it looks odd: every quote in its place, as many marks as fields.

    A short record and a long one may still make up for each other; Polars refuses the long one, and so finds them. A
    file of one column, blank lines, NUL bytes, stray carriage returns and very long lines are left to the careful way.
    """
    mark, quote = form.delimiter.encode(), form.quote.encode()
    if not _is_plain(text, n_lines, form, n_columns):
        return None
    if not quote or quote not in text:
        return n_lines if text.count(mark) == n_lines * (n_columns - 1) else None
    content = np.frombuffer(text, dtype=np.uint8)
    outside = _outside_quotes(content, quote, mark)
    if outside is None:
        return None
    n_records = int(np.count_nonzero((content == _LINE_END) & outside))
    n_marks = int(np.count_nonzero((content == mark[0]) & outside))
    long = n_records < n_lines and np.diff(_record_ends(text, form), prepend=-1).max() > form.max_record_bytes
    return n_records if n_marks == n_records * (n_columns - 1) and not long else None


def _is_plain(text: bytes, n_lines: int, form: Format, n_columns: int) -> bool:
    """Whether nothing in a text but its quotes and the number of its fields can be odd."""
    mark, quote = form.delimiter.encode(), form.quote.encode()
    if n_columns == 1 or len(mark) != 1 or mark == b"\n" or b"\0" in text:
        return False
    quoted = bool(quote) and quote in text
    if b"\r" in text and (quoted or mark == b"\r" or text.count(b"\r") != text.count(b"\r\n")):
        return False
    return not _has_long_line(text, form.max_record_bytes) and not (quoted and n_lines == 0)


def _divided(text: bytes, n_lines: int, form: Format, n_columns: int) -> tuple[Positions, npt.NDArray[np.bool_]] | None:
    """Where each record of a text ends, and whether it has its fields; None where that takes the careful way."""
    mark, quote = form.delimiter.encode(), form.quote.encode()
    if not _is_plain(text, n_lines, form, n_columns) or not n_lines:
        return None
    content = np.frombuffer(text, dtype=np.uint8)
    is_end, is_mark = content == _LINE_END, content == mark[0]
    if quote and quote in text:
        outside = _outside_quotes(content, quote, mark)
        if outside is None:
            return None
        is_end, is_mark = is_end & outside, is_mark & outside
    ends = np.flatnonzero(is_end)
    if not ends.size or ends[-1] != content.size - 1 or np.diff(ends, prepend=-1).max() > form.max_record_bytes:
        return None
    marks_so_far = np.searchsorted(np.flatnonzero(is_mark), ends)
    return ends, np.diff(marks_so_far, prepend=0) == n_columns - 1


def _has_long_line(text: bytes, most: int) -> bool:
    """Whether a line may be longer than `most` bytes: such a line fills one of these windows."""
    window = max(1, most // 2)
    return any(text.find(b"\n", start, start + window) < 0 for start in range(0, len(text) - window, window))


def _record_ends(text: bytes, form: Format) -> Positions:
    """Where each record of a text ends that has its quotes in place."""
    content, quote = np.frombuffer(text, dtype=np.uint8), form.quote.encode()
    is_end = content == _LINE_END
    outside = _outside_quotes(content, quote, form.delimiter.encode()) if quote and quote in text else None
    return np.flatnonzero(is_end if outside is None else is_end & outside)


def _outside_quotes(content: npt.NDArray[np.uint8], quote: bytes, mark: bytes) -> npt.NDArray[np.bool_] | None:
    """Which bytes stand outside quotes, if each quoted field is quoted in whole; None otherwise."""
    if len(quote) != 1:
        return None
    is_quote = content == quote[0]
    places = np.flatnonzero(is_quote)
    if places.size % 2 or places[-1] == content.size - 1:
        return None
    borders = np.array([mark[0], _LINE_END, quote[0]], dtype=np.uint8)
    before = content[places[0::2] - 1] if places[0] else np.append(borders[1], content[places[2::2] - 1])
    if not (np.isin(before, borders).all() and np.isin(content[places[1::2] + 1], borders).all()):
        return None
    outside: npt.NDArray[np.bool_] = (np.cumsum(is_quote, dtype=np.uint8) & 1) == 0
    return outside


def _may_need_trimming(text: bytes, form: Format, n_records: int) -> bool:
    """Whether a field may be empty in quotes, or begin or end with white space."""
    if not text.isascii() or not form.delimiter.isascii():
        return True
    mark, quote = form.delimiter.encode(), form.quote.encode()
    if quote and quote in text and (quote * 2 in text or text.count(b"\n") != n_records):
        return True
    borders = [border for border in (mark, b"\n", quote if quote in text else b"") if border]
    return any(
        text.startswith(white) or any(border + white in text or white + border in text for border in borders)
        for white in _WHITE
        if white != mark and white in text
    )


def _closed_length(text: bytes, form: Format) -> int:
    """How many bytes of whole lines end with a record: a quote that is still open goes on in what follows."""
    quote, mark = form.quote.encode(), form.delimiter.encode()
    if not quote or quote not in text:
        return len(text)
    if len(mark) == 1 and text.count(quote) % 2 == 0:
        outside = _outside_quotes(np.frombuffer(text, dtype=np.uint8), quote, mark)
        if outside is not None:
            return len(text)
    opened = _open_lines(text, form)[1]
    return len(text) if opened is None else opened[1]


def _lines(text: bytes) -> pl.Series:
    """The lines of a text that ends with a line break, with their ends."""
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == _LINE_END)
    offsets = pa.py_buffer(np.append(np.int64(0), ends + 1))
    array = pa.LargeStringArray.from_buffers(ends.size, offsets, pa.py_buffer(text))
    return pl.Series(ROW, pl.from_arrow(array), dtype=pl.String)


def _open_lines(text: bytes, form: Format) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
    """Which lines of a text that ends with a line break are one record, by their quotes.

    Returns:
        First and last line of each record of several lines; and the line whose quote is still open at the end, with
        the place where it begins.
    """
    content = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(content == _LINE_END)
    quotes = np.flatnonzero(content == form.quote.encode()[0]) if form.quote else np.empty(0, np.int64)
    lines, counts = np.unique(np.searchsorted(ends, quotes), return_counts=True)
    opens = re.compile(_pattern("(?:{one}{mark})*{quote}(?:[^{quote}]|{quote}{quote})*", form)) if lines.size else None
    runs: list[tuple[int, int]] = []
    opened: tuple[int, int] | None = None
    for line in lines[counts % 2 == 1].tolist():
        begin = int(ends[line - 1]) + 1 if line else 0
        if opened is not None:
            runs.append((opened[0], line))
            opened = None
        elif opens is not None and opens.fullmatch(text[begin : int(ends[line])].removesuffix(b"\r").decode()):
            opened = (line, begin)  # any other odd quote is a stray one: that record alone is refused
    return runs, opened


def _starts(text: bytes, n_lines: int, form: Format) -> npt.NDArray[np.bool_]:
    """Which lines begin a record: one that begins inside an open quote goes on with the record before it."""
    starts = np.ones(n_lines, dtype=np.bool_)
    for first, last in _open_lines(text, form)[0] if form.quote and form.quote.encode() in text else ():
        starts[first + 1 : last + 1] = False
    return starts


def _joined(lines: pl.Series, starts: npt.NDArray[np.bool_]) -> pl.Series:
    """Lines joined to records."""
    if starts.all():
        return lines
    grouped = pl.DataFrame({"start": starts.cumsum(), ROW: lines}).group_by("start", maintain_order=True)
    return grouped.agg(pl.col(ROW).str.join("\n")).get_column(ROW)


def _first_record(text: bytes, form: Format) -> tuple[str, bytes]:
    """The first record of a text, and what follows; a header may have line breaks inside quotes."""
    end = text.index(b"\n") + 1
    quote = form.quote.encode()
    if quote and text.count(quote, 0, end) % 2:
        runs = _open_lines(text, form)[0]
        for _ in range(runs[0][1] if runs and runs[0][0] == 0 else 0):
            end = text.index(b"\n", end) + 1
    return "\n".join(line.removesuffix("\r") for line in text[: end - 1].decode().split("\n")), text[end:]


def _pattern(template: str, form: Format) -> str:
    """A regular expression over `{mark}`, `{quote}` and `{one}`, one field that is quoted in whole or not at all."""
    mark, quote = re.escape(form.delimiter), re.escape(form.quote)
    one = f"(?:{quote}(?:[^{quote}]|{quote}{quote})*{quote}|[^{mark}{quote}]*)"
    return template.replace("{one}", one).replace("{mark}", mark).replace("{quote}", quote)


def _header(line: str, form: Format, path: str) -> list[str]:
    names = [name.strip() for name in _header_fields(line, form, path)]
    if form.repeated_names == "number":
        names = numbered(names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UnreadableFileError(
            path, "file_header", "the header names a column twice.",
            expected="each column once", got=", ".join(twice), place="line 1",
            fix="ask the sender for a right file; if this source always does so, set `format.repeated_names: number`, "
            "and call the second one by its name and 2",
        )  # fmt: skip
    return names


def _header_fields(line: str, form: Format, path: str) -> list[str]:
    if not form.quote:
        return line.split(form.delimiter)
    try:
        return next(csv.reader([line], delimiter=form.delimiter, quotechar=form.quote), [])
    except csv.Error as error:
        raise UnreadableFileError(
            path, "file_header", "the header cannot be read.",
            expected="names of columns", got=str(error), place="line 1",
            fix="check `format.delimiter` and `format.quote` of the source in conf/ingest/",
        ) from error  # fmt: skip


def numbered(names: list[str]) -> list[str]:
    """Column names with the second `Account` called `Account 2`, the third `Account 3`."""
    counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [name if count == 1 else f"{name} {count}" for name, count in zip(names, counts, strict=True)]


def no_refusals() -> pl.DataFrame:
    """Refused records of a file without any."""
    return pl.DataFrame(schema={RECORD: pl.Int64, ROW: pl.String, "rule": pl.String, "value": pl.String})


def _no_fields(names: list[str]) -> pl.DataFrame:
    return pl.DataFrame(schema={RECORD: pl.Int64, **dict.fromkeys(names, pl.String)})


def check_header(header: list[str], needed: list[str], path: str) -> None:
    """Refuse a file without a needed column.

    Raises:
        UnreadableFileError: naming the missing columns, and the nearest that are there.
    """
    missing = [name for name in needed if name not in header]
    if missing:
        raise UnreadableFileError(
            path, "file_missing_column", f"the file has no column {', '.join(repr(name) for name in missing)}.",
            expected=f"the columns {', '.join(needed)}", got=", ".join(header)[:400], place="line 1",
            fix=f"{nearest(missing[0], header)}; mend the column map or `format` in conf/ingest/, or ask the sender",
        )  # fmt: skip


def _with_shape(body: pl.DataFrame, form: Format) -> pl.DataFrame:
    """Adds `n_fields`, and `rule` for records whose quotes are malformed or that hold a NUL."""
    count = pl.col(ROW).str.count_matches(form.delimiter, literal=True)
    nul = pl.when(pl.col(ROW).str.contains(_NUL, literal=True)).then(pl.lit(NUL_BYTE))
    if not form.quote:
        return body.with_columns(n_fields=count + 1, rule=nul)
    has_quote = pl.col(ROW).str.contains(form.quote, literal=True)
    unquoted = pl.col(ROW).str.replace_all(_pattern("{quote}[^{quote}]*{quote}", form), "")
    well_quoted = pl.col(ROW).str.contains(_pattern("^(?s:{one}(?:{mark}{one})*)$", form))
    return body.with_columns(
        n_fields=pl.when(has_quote).then(unquoted.str.count_matches(form.delimiter, literal=True)).otherwise(count) + 1,
        rule=pl.when(has_quote & ~well_quoted).then(pl.lit(BAD_QUOTES)).otherwise(nul),
    )


def _refused(wrong: pl.DataFrame, expected: int) -> pl.DataFrame:
    return wrong.select(
        RECORD,
        pl.col(ROW).str.replace_all(_NUL, _SEEN_NUL, literal=True),
        rule=pl.col("rule").fill_null(WRONG_FIELDS),
        value=pl.when(pl.col("rule").is_null()).then(pl.format("{} instead of {}", "n_fields", pl.lit(expected))),
    )
