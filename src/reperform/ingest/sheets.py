"""Parquet and Excel files as frames, a batch of rows at a time. The only module that imports fastexcel.

fastexcel is the reader that Polars itself uses for Excel: calamine in Rust, which reads values, and neither formulas,
macros nor external links. openpyxl reads the same ten to thirty times slower.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from reperform.ingest import archives
from reperform.ingest.column_map import Format
from reperform.ingest.source import UnreadableFileError

ROWS_PER_BATCH = 262_144
_LARGEST_WHOLE = 2**53


def parquet_frames(path: Path, where: str) -> Iterator[pl.DataFrame]:
    """The rows of a Parquet file; at least one frame, which may be empty.

    Raises:
        UnreadableFileError: for a file that is no whole Parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield _frame(file.schema_arrow.empty_table())
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                yield _frame(pa.Table.from_batches([batch]))
    except (pa.ArrowException, OSError) as error:
        raise _malformed(where, "Parquet", error) from error


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # a table gives a frame
    return frame


def excel_frames(path: Path, where: str, form: Format) -> Iterator[pl.DataFrame]:
    """The rows of one sheet of an Excel file (.xlsx), which is read whole: it holds at most a million.

    Raises:
        UnreadableFileError: for a file that is no Excel file, lacks the sheet, or unpacks to too much.
    """
    import fastexcel  # noqa: PLC0415  # only sources of Excel files need it

    try:
        with zipfile.ZipFile(path) as archive:
            archives.check_zip(where, archive.infolist(), form)
        reader = fastexcel.read_excel(path)
        sheet = reader.load_sheet(0 if form.sheet is None else form.sheet, schema_sample_rows=None)
        yield sheet.to_polars().with_columns(_as_shown(pl.col(pl.Float64)))
    except (zipfile.BadZipFile, fastexcel.FastExcelError, OSError) as error:
        raise _malformed(where, "Excel", error) from error


def _as_shown(number: pl.Expr) -> pl.Expr:
    """Numbers as text: Excel knows no whole numbers, and shows 4711.0 as 4711."""
    whole = (number == number.round()) & (number.abs() < _LARGEST_WHOLE)
    return pl.when(whole).then(number.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(number.cast(pl.String))


def _malformed(where: str, kind: str, error: BaseException) -> UnreadableFileError:
    return UnreadableFileError(
        where, "file_malformed", f"the file is no readable {kind}.",
        expected=f"a whole {kind} file", got=str(error)[:300], fix="ask the sender for the file again",
    )  # fmt: skip
