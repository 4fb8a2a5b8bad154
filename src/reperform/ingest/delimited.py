"""Delimited text as records of text fields. Every record is either returned or refused with its number and its text.

Polars alone fills short rows with nulls and can cut long ones, so the shape of each record is checked before it parses.
"""

import csv
import gzip
import re
import zlib
from dataclasses import dataclass
from io import BytesIO

import polars as pl

from reperform.errors import nearest
from reperform.ingest.column_map import Format
from reperform.ingest.source import RECORD, UnreadableFileError

ROW = "__row"  # the record's text as it was delivered
WRONG_FIELDS = "wrong_number_of_fields"
BAD_QUOTES = "malformed_quotes"
_GZIP_MAGIC = b"\x1f\x8b"


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


def parse(content: bytes, form: Format, needed: list[str], path: str) -> Records:
    """The records of a delimited file with a header.

    Args:
        content: the file's bytes.
        form: how the text is written.
        needed: raw columns that must be there.
        path: the file's name, for messages.

    Raises:
        UnreadableFileError: for an empty file, wrong encoding, a missing column, a file that was cut off.
    """
    text = decoded(content, form, path)
    records = _records(text, form, path)
    header = form.names or _header(str(records[0]), form, path)
    check_header(header, needed, path)
    rows = records if form.names else records[1:]
    body = pl.DataFrame({ROW: rows}).with_row_index(RECORD, offset=1).cast({RECORD: pl.Int64})
    body = body.filter(pl.col(ROW) != "")
    shaped = _with_shape(body, form)
    fits = pl.col("rule").is_null() & (pl.col("n_fields") == len(header))
    good = shaped.filter(fits).select(RECORD, ROW)
    refused = _refused(shaped.filter(~fits), len(header))
    return Records(_split_fields(good, header, form, path), refused)


def decoded(content: bytes, form: Format, path: str) -> str:
    """The text of a file: decompressed, decoded, without a byte order mark.

    Raises:
        UnreadableFileError: for an empty file, a broken archive, or bytes that are not in the encoding.
    """
    plain = _decompressed(content, form, path)
    if not plain.strip():
        raise UnreadableFileError(
            path, "file_empty", "the file is empty.",
            expected="a header and rows", got=f"{len(content)} bytes without text",
            fix="ask the sender for the file again; a day without rows still has a header",
        )  # fmt: skip
    try:
        return plain.decode(form.encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        raise UnreadableFileError(
            path, "file_encoding", f"the text is not in {form.encoding}.",
            expected=f"text in {form.encoding}, whole to its last character", got=str(error),
            fix="mend `format.encoding` of the source in conf/ingest/; if it is right, the file is damaged or cut off",
        ) from error  # fmt: skip


def _decompressed(content: bytes, form: Format, path: str) -> bytes:
    zipped = form.compression == "gzip" or (form.compression == "auto" and path.endswith(".gz"))
    if not zipped:
        return content
    if content and not content.startswith(_GZIP_MAGIC):
        raise UnreadableFileError(
            path, "file_compression", "the file is not a gzip archive.",
            expected="gzip", got=f"first bytes {content[:4].hex(' ')}", fix="mend `format.compression` in conf/ingest/",
        )  # fmt: skip
    try:
        return gzip.decompress(content) if content else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableFileError(
            path, "file_cut_off", "the gzip archive is cut off or damaged.",
            expected="a whole archive", got=f"{len(content)} bytes: {error}", fix="ask the sender for the file again",
        ) from error  # fmt: skip


def _records(text: str, form: Format, path: str) -> pl.Series:
    """The file's records as text, the header first; a line break inside quotes belongs to its record."""
    ends_whole = text.endswith("\n")
    lines = pl.Series(ROW, text.removesuffix("\n").split("\n"), dtype=pl.String).str.strip_suffix("\r")
    if form.final_newline and not ends_whole:
        raise UnreadableFileError(
            path, "file_cut_off", "the file is cut off in the middle of a row.",
            expected="a line break after the last row", got=f"the end of the file after {lines[-1][:120]!r}",
            place=f"line {lines.len()}",
            fix="ask the sender for the file again; if this source never ends its last row, set `format.final_newline: "
            "false` in conf/ingest/",
        )  # fmt: skip
    return _joined(lines, form, path) if form.quote and form.quote in text else lines


def _joined(lines: pl.Series, form: Format, path: str) -> pl.Series:
    """Lines joined to records: a line that begins inside an open quote goes on with the record before it."""
    odd = (lines.str.count_matches(form.quote, literal=True) % 2 == 1).arg_true().to_list()
    opens = re.compile(_pattern("(?:{one}{mark})*{quote}(?:[^{quote}]|{quote}{quote})*", form))
    goes_on = [False] * lines.len()
    opened_at: int | None = None
    for number in odd:
        if opened_at is not None:
            goes_on[opened_at + 1 : number + 1] = [True] * (number - opened_at)
            opened_at = None
        elif opens.fullmatch(lines[number]):
            opened_at = number  # any other odd quote is a stray one: that record alone is refused
    if opened_at is not None:
        raise UnreadableFileError(
            path, "file_cut_off", "a quoted field is never closed: the file is cut off, or a quote is stray.",
            expected=f"a closing {form.quote}", got="the end of the file", place=f"from line {opened_at + 1} on",
            fix="ask the sender for the file again; if this source never quotes, set `format.quote: ''`",
        )  # fmt: skip
    if not any(goes_on):
        return lines
    starts = (~pl.Series(goes_on)).cast(pl.Int64).cum_sum()
    grouped = pl.DataFrame({"start": starts, ROW: lines}).group_by("start", maintain_order=True)
    return grouped.agg(pl.col(ROW).str.join("\n")).get_column(ROW)


def _pattern(template: str, form: Format) -> str:
    """A regular expression over `{mark}`, `{quote}` and `{one}`, one field that is quoted in whole or not at all."""
    mark, quote = re.escape(form.delimiter), re.escape(form.quote)
    one = f"(?:{quote}(?:[^{quote}]|{quote}{quote})*{quote}|[^{mark}{quote}]*)"
    return template.replace("{one}", one).replace("{mark}", mark).replace("{quote}", quote)


def _header(line: str, form: Format, path: str) -> list[str]:
    if form.quote:
        fields = next(csv.reader([line], delimiter=form.delimiter, quotechar=form.quote))
    else:
        fields = line.split(form.delimiter)
    names = [name.strip() for name in fields]
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


def numbered(names: list[str]) -> list[str]:
    """Column names with the second `Account` called `Account 2`, the third `Account 3`."""
    counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [name if count == 1 else f"{name} {count}" for name, count in zip(names, counts, strict=True)]


def no_refusals() -> pl.DataFrame:
    """Refused records of a file without any."""
    return pl.DataFrame(schema={RECORD: pl.Int64, ROW: pl.String, "rule": pl.String, "value": pl.String})


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
    """Adds `n_fields`, and `rule` for records whose quotes are malformed."""
    count = pl.col(ROW).str.count_matches(form.delimiter, literal=True)
    if not form.quote:
        return body.with_columns(n_fields=count + 1, rule=pl.lit(None, pl.String))
    has_quote = pl.col(ROW).str.contains(form.quote, literal=True)
    unquoted = pl.col(ROW).str.replace_all(_pattern("{quote}[^{quote}]*{quote}", form), "")
    well_quoted = pl.col(ROW).str.contains(_pattern("^(?s:{one}(?:{mark}{one})*)$", form))
    return body.with_columns(
        n_fields=pl.when(has_quote).then(unquoted.str.count_matches(form.delimiter, literal=True)).otherwise(count) + 1,
        rule=pl.when(has_quote & ~well_quoted).then(pl.lit(BAD_QUOTES)),
    )


def _refused(wrong: pl.DataFrame, expected: int) -> pl.DataFrame:
    return wrong.select(
        RECORD,
        ROW,
        rule=pl.col("rule").fill_null(WRONG_FIELDS),
        value=pl.when(pl.col("rule").is_null()).then(pl.format("{} instead of {}", "n_fields", pl.lit(expected))),
    )


def _split_fields(good: pl.DataFrame, header: list[str], form: Format, path: str) -> pl.DataFrame:
    if good.is_empty():
        return good.with_columns(pl.lit(None, pl.String).alias(name) for name in header)
    body = "\n".join(good.get_column(ROW).to_list()) + "\n"
    fields = pl.read_csv(
        BytesIO(body.encode()),
        has_header=False,
        separator=form.delimiter,
        quote_char=form.quote or None,
        schema=dict.fromkeys(header, pl.String),
        null_values=form.missing or None,
    )
    if fields.height != good.height:
        raise UnreadableFileError(
            path, "file_rows", "the file's rows cannot be told apart.",
            expected=f"{good.height} rows", got=f"{fields.height}", fix="check `format.quote` and `format.delimiter`",
        )  # fmt: skip
    trimmed = pl.all().str.strip_chars()
    return pl.concat(
        [good, fields.select(pl.when(trimmed.str.len_bytes() > 0).then(trimmed).name.keep())], how="horizontal"
    )
