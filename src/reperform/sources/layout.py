"""How a file is laid out: delimiter, quotes, header, and the columns of its first records."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from reperform.errors import ReperformError
from reperform.ingest import sheets
from reperform.ingest.column_map import Format
from reperform.ingest.delimited import numbered
from reperform.sources import sample
from reperform.sources.values import MISSING, Column, moments, number, share

MOST_RECORDS = 5_000
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_FIT = 0.9  # of the records; some may be damaged
_LEAST_MISSING = 2


@dataclass(frozen=True)
class Layout:
    """The columns of a sample, and how the file is written.

    Args:
        columns: in the order of the file.
        rows: records in the sample.
        is_whole: whether these are all.
        format: settings of `format` in a map, each with what speaks for it; settings that need not be said are absent.
        names_invented: whether the names stand for a header that is not there.
    """

    columns: tuple[Column, ...]
    rows: int
    is_whole: bool
    format: dict[str, tuple[Any, str]] = field(default_factory=dict)
    names_invented: bool = False


def of_file(path: Path, start: sample.Head) -> Layout:
    """The layout of delimited text, Parquet or Excel.

    Raises:
        ReperformError: where no table is found.
    """
    if start.kind in (sample.PARQUET, sample.EXCEL):
        return _of_frame(path, start.kind)
    return _of_text(path, start)


def _of_frame(path: Path, kind: str) -> Layout:
    frame = _frame(path, kind)
    texts = {name: [value or "" for value in _texts(frame.get_column(name))] for name in frame.columns}
    missing = _missing(texts.values())
    columns = tuple(_column(name, values, missing) for name, values in texts.items())
    return Layout(columns, frame.height, is_whole=frame.height < MOST_RECORDS, format=_missing_setting(missing))


def _frame(path: Path, kind: str) -> pl.DataFrame:
    """The first rows, by the readers of ingest, which refuse damaged files and archives that unpack to too much."""
    if kind == sample.EXCEL and path.stat().st_size > sample.MOST_BYTES * 16:
        raise ReperformError(
            "Such a large workbook is read whole or not at all.",
            expected=f"at most {sample.MOST_BYTES * 16:,} bytes",
            got=f"{path.stat().st_size:,} bytes",
            where=str(path),
            fix="save some of its rows as another file",
        )
    frames = (
        sheets.parquet_frames(path, path.name)
        if kind == sample.PARQUET
        else sheets.excel_frames(path, path.name, Format())
    )
    taken: list[pl.DataFrame] = []
    for frame in frames:
        taken.append(frame)
        if sum(one.height for one in taken) >= MOST_RECORDS:
            break
    return pl.concat(taken).head(MOST_RECORDS)


def _texts(column: pl.Series) -> list[str | None]:
    """Typed values as the texts that ingest makes of them."""
    if isinstance(column.dtype, pl.Datetime):
        return column.dt.to_string("%Y-%m-%dT%H:%M:%S%.6f" + ("%z" if column.dtype.time_zone else "")).to_list()
    return column.cast(pl.String, strict=False).to_list()


def _of_text(path: Path, start: sample.Head) -> Layout:
    text = sample.decoded(start)
    delimiter, quote, why = _delimiter(text.content, start, path)
    used, is_whole = sample.first_records(text.content, quote, MOST_RECORDS + 1, whole=start.is_whole)
    records = _records(used, delimiter, quote)
    if _in_single_quotes(records):
        quote = "'"
        records = _records(used, delimiter, quote)
    if len(records) < 2 and not start.is_whole:  # noqa: PLR2004  # a header and a row
        raise ReperformError(
            "No row ends in the beginning of the file.",
            expected=f"a line break within {sample.MOST_BYTES:,} bytes",
            got="none after the first line: a field is that long, or a quote is never closed",
            where=str(path),
            fix="ask the sender for the file again, or cut a few whole rows out of it",
        )
    n_fields = Counter(map(len, records)).most_common(1)[0][0]
    records = [record for record in records if len(record) == n_fields]
    header, rows = (records[0], records[1:]) if _is_header(records) else (None, records)
    names = numbered([name.strip() for name in header]) if header else [f"column_{n + 1}" for n in range(n_fields)]
    by_column = [[record[place].strip() for record in rows] for place in range(n_fields)]
    missing = _missing(by_column)
    columns = tuple(_column(name, values, missing) for name, values in zip(names, by_column, strict=True))
    form = {"delimiter": (delimiter, why), **_quote(quote), "encoding": (text.encoding, text.why)}
    form |= _last_line(text, start) | _names(names, header) | _missing_setting(missing)
    return Layout(columns, len(rows), is_whole, form, names_invented=header is None)


def _delimiter(text: str, start: sample.Head, path: Path) -> tuple[str, str, str]:
    """Delimiter and quotation mark: the pair that gives most records the same number of fields, more than one."""
    best = (0.0, 0, "", "")
    for quote in ('"', ""):
        used, _ = sample.first_records(text, quote, 1_000, whole=start.is_whole)
        for delimiter in DELIMITERS:
            counts = Counter(len(record) for record in _records(used, delimiter, quote))
            if not counts:
                continue
            fields, fitting = counts.most_common(1)[0]
            fit = round(fitting / counts.total(), 2)
            if fields > 1 and (fit, fields) > best[:2]:
                best = (fit, fields, delimiter, quote)
    fit, fields, delimiter, quote = best
    if fit < _FIT:
        raise ReperformError(
            "No table is found in the file.",
            expected=f"records of equally many fields, between {', '.join(DELIMITERS.values())}",
            got=f"at best {fit:.0%} of the records have as many fields" if fields else "no record of several fields",
            where=str(path),
            fix="is it delimited text at all? fixed widths and reports for reading must be converted first",
        )
    return delimiter, quote, f"{DELIMITERS[delimiter]}: {fit:.0%} of the records have {fields} fields"


def _records(text: str, delimiter: str, quote: str) -> list[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    lines = io.StringIO(text, newline="")
    if quote:
        reader = csv.reader(lines, delimiter=delimiter, quotechar=quote)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    try:
        return [record for record in reader if record]
    except csv.Error:
        return []


def _in_single_quotes(records: Sequence[Sequence[str]]) -> bool:
    """Whether a column's texts all stand in single quotes."""
    body = records[1:]
    return any(
        all(len(v) > 1 and v.startswith("'") and v.endswith("'") for v in column) for column in zip(*body, strict=False)
    )


def _is_header(records: Sequence[Sequence[str]]) -> bool:
    """Whether the first record holds names: no number, no moment, and hardly an empty field."""
    first = [name.strip() for name in records[0]]
    values = [Column(name, [name], 1) for name in first if name]
    typed = [c for c in values if number(c.name, ".", "") is not None or moments(c) is not None]
    return not typed and len(values) >= len(first) - 1


def _missing(columns: Any) -> list[str]:
    """Texts such as NULL that stand for no value."""
    counts = Counter(value for values in columns for value in values if value.lower() in MISSING)
    return sorted(text for text, n in counts.items() if n >= _LEAST_MISSING and text not in ("-", "?"))


def _missing_setting(missing: Sequence[str]) -> dict[str, tuple[Any, str]]:
    return {"missing": (list(missing), "these texts stand for no value")} if missing else {}


def _column(name: str, values: Sequence[str], missing: Sequence[str]) -> Column:
    cells = ["" if value in missing else value for value in values]
    return Column(name, [cell for cell in cells if cell], len(cells), cells)


def _quote(quote: str) -> dict[str, tuple[Any, str]]:
    if quote == '"':
        return {}
    said = "a column's texts all stand in single quotes" if quote else "quotes here are letters like any other"
    return {"quote": (quote, said)}


def _last_line(text: sample.Text, start: sample.Head) -> dict[str, tuple[Any, str]]:
    if not start.is_whole or text.content.endswith("\n"):
        return {}
    return {"final_newline": (False, "the last row does not end with a line break: or was the file cut off?")}


def _names(names: Sequence[str], header: Sequence[str] | None) -> dict[str, tuple[Any, str]]:
    if header is None:
        return {"names": (list(names), "the first line looks like data, so names are by position: change them at will")}
    if share([name == given.strip() for name, given in zip(names, header, strict=True)]) < 1:
        return {"repeated_names": ("number", "the header names a column twice: the second is called by its name and 2")}
    return {}
