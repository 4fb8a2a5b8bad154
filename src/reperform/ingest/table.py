"""Delimited text and Parquet by a column map: a new bank needs one description in conf/ingest/, and no code."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandera.polars as pa
import polars as pl

from reperform import iso_codes, schemas
from reperform.ingest import archives, delimited, sheets, values
from reperform.ingest.column_map import FROM_RATES, TARGETS, Amounts, Column, Format, TableSource, Times, table_source
from reperform.ingest.delimited import ROW, Piece
from reperform.ingest.parts import Entry, Store
from reperform.ingest.source import (
    DUPLICATE_FILE,
    FILE,
    RECORD,
    WHOLE_FILE,
    Part,
    SourceFile,
    SourceResult,
    UnreadableFileError,
    located,
    matching,
    quarantine_frame,
    quarantined,
    with_origin,
)
from reperform.ingest.values import Parsed

MISSING = "missing_value"
BOTH_SIDES = "debit_and_credit"
UNKNOWN_CURRENCY = "unknown_currency"
NOT_SELECTED = "not meant for this table (only_when)"
_RECORD_DIGITS = 9
_BEGINNING_BYTES = 2**16
_WHY = "__why"  # a struct of what refuses a record
_REASON = pl.Struct({"rule": pl.String, "column": pl.String, "value": pl.String})
REPEATED = "repeats an earlier record (one_row_per)"


def read(name: str, source: Mapping[str, Any], raw: Path, *, processes: int) -> SourceResult:
    """Read one source of tables into memory.

    Args:
        name: the source.
        source: its description, as in conf/ingest/; see `column_map.TableSource`.
        raw: the raw folder.
        processes: not needed here; Polars uses threads.

    Raises:
        ReperformError: for a wrong description or a source without files.
    """
    del processes
    with tempfile.TemporaryDirectory() as folder:
        (result,) = read_all({name: table_source(name, source)}, raw, Store(Path(folder))).values()
        return in_memory(result)


def read_all(specs: Mapping[str, TableSource], raw: Path, store: Store) -> dict[str, SourceResult]:
    """Read sources of tables, each file once: several sources of one file share its raw columns.

    Rows and refused records go to the store piece by piece; what the store has already is not read again.

    Args:
        specs: the sources.
        raw: the raw folder.
        store: where parts go.

    Raises:
        ReperformError: for a source without files.
    """
    reader = _Reader(specs, raw, store)
    return {name: reader.source(name) for name in specs}


def bad_beginnings(name: str, spec: TableSource, raw: Path) -> list[UnreadableFileError]:
    """The files of a source that cannot be opened, are empty, or whose header lacks a column; no rows are read."""
    found = []
    for path in matching(name, spec.files, raw):
        where = located(path, raw)
        try:
            if path.suffix.lower() != ".xlsx":  # is read whole, or not at all
                next(file_pieces(path, spec.format, _keep({name: spec}, where, {}), where, _BEGINNING_BYTES))
        except UnreadableFileError as error:
            found.append(error)
    return found


def in_memory(result: SourceResult) -> SourceResult:
    """The same result with all its rows and refused records as frames."""
    tables = {
        table: pl.concat([frame, *(read_part(part, frame) for part in result.parts.get(table, ()))])
        for table, frame in result.tables.items()
    }
    quarantine = pl.concat([result.quarantine, *(read_part(part, result.quarantine) for part in result.refused_parts)])
    return replace(result, tables=tables, quarantine=quarantine, parts={}, refused_parts=())


def read_part(part: Part, like: pl.DataFrame) -> pl.DataFrame:
    """The rows of a part with the columns of another frame."""
    return with_origin(part.rows()).select(pl.col(name).cast(kind) for name, kind in like.schema.items())


class _Reader:
    """Reads the files of sources in the order in which they are asked for."""

    def __init__(self, specs: Mapping[str, TableSource], raw: Path, store: Store) -> None:
        self.specs, self.raw, self.store = specs, raw, store
        self.paths = {name: matching(name, spec.files, raw) for name, spec in specs.items()}
        self.unreadable: dict[tuple[str, Path], UnreadableFileError] = {}

    def source(self, name: str) -> SourceResult:
        spec = self.specs[name]
        entries: list[Entry] = []
        files: list[SourceFile] = []
        first_with: dict[str, str] = {}
        duplicates: list[dict[str, object]] = []
        for path in self.paths[name]:
            where, digest, records = located(path, self.raw), self.store.digest(path), 0
            if digest in first_with:
                same = f"the same bytes as {first_with[digest]}"
                row = quarantined(spec.target, where, WHOLE_FILE, DUPLICATE_FILE, value=digest, row=same)
                duplicates.append(row)
            elif (entry := self._entry(name, path, where, digest)) is not None:
                entries.append(entry)
                records = entry.records
            if records:  # two months without a row may well be the same bytes
                first_with[digest] = where
            files.append(SourceFile(where, digest, records))
        unreadable = [error for (of, _), error in self.unreadable.items() if of == name]
        return _result(spec, entries, tuple(files), quarantine_frame(duplicates), tuple(unreadable))

    def _entry(self, name: str, path: Path, where: str, digest: str) -> Entry | None:
        if (name, path) in self.unreadable:
            return None
        found = self.store.find(digest, where, self.specs[name])
        if found is not None:
            return found
        together = {
            other: spec
            for other, spec in self.specs.items()
            if spec.format == self.specs[name].format and path in self.paths[other]
        }
        lacking = {other: s for other, s in together.items() if self.store.find(digest, where, s, use=False) is None}
        try:
            self.unreadable |= {(other, path): e for other, e in self._read(lacking, path, where, digest).items()}
        except UnreadableFileError as error:
            self.unreadable |= {(other, path): error for other in lacking}
        return self.store.find(digest, where, self.specs[name]) if (name, path) not in self.unreadable else None

    def _read(
        self, specs: Mapping[str, TableSource], path: Path, where: str, digest: str
    ) -> dict[str, UnreadableFileError]:
        """Write the parts of one file for several sources; gives the sources whose columns it does not have."""
        failed: dict[str, UnreadableFileError] = {}
        form = next(iter(specs.values())).format
        with ExitStack() as stack:
            entries = {n: stack.enter_context(self.store.writing(digest, where, spec)) for n, spec in specs.items()}
            for piece in file_pieces(path, form, _keep(specs, where, failed), where, self.store.piece_bytes):
                for name, spec in specs.items():
                    if name not in failed:
                        entries[name].add(piece.count, *of_piece(piece, spec))
            for name in failed:
                entries[name].abandon()
        return failed


def _keep(
    specs: Mapping[str, TableSource], where: str, failed: dict[str, UnreadableFileError]
) -> Callable[[list[str]], list[str]]:
    """From a header to the raw columns that sources need; a source whose columns are not there fails by itself."""

    def keep(header: list[str]) -> list[str]:
        for name, spec in specs.items():
            try:
                delimited.check_header(header, spec.raw_columns(), where)
            except UnreadableFileError as error:
                failed.setdefault(name, error)
        if len(failed) == len(specs):
            raise next(iter(failed.values()))
        needed = {column for name, spec in specs.items() if name not in failed for column in spec.raw_columns()}
        return [column for column in header if column in needed]

    return keep


def of_piece(piece: Piece, spec: TableSource) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Canonical rows of a piece, its refused records, and how many records the description leaves out, by reason."""
    selected = piece.fields.filter(meant_for_this_table(spec)) if spec.only_when else piece.fields
    rows, wrong = canonical(selected.with_columns(pl.lit(piece.where).alias(FILE)), spec, texts=piece.texts)
    left_out = {NOT_SELECTED: piece.fields.height - selected.height}
    if spec.one_row_per is not None:
        once = rows.unique(spec.one_row_per, keep="first", maintain_order=True)
        left_out[REPEATED] = rows.height - once.height
        rows = once
    if "source_file" in rows.columns:
        rows = rows.drop(FILE, RECORD)  # they say the same, and a part is written and read again
    refused = pl.concat([shape_refusals(piece.refused, spec.target, piece.where), wrong])
    return rows, refused, left_out


def _result(
    spec: TableSource,
    entries: list[Entry],
    files: tuple[SourceFile, ...],
    duplicates: pl.DataFrame,
    unreadable: tuple[UnreadableFileError, ...],
) -> SourceResult:
    left_out = Counter[str]()
    for entry in entries:
        left_out.update(entry.left_out)
    table, parts = no_rows(spec.target), tuple(part for entry in entries for part in entry.rows)
    if spec.one_row_per is not None:
        for part in parts:
            both = pl.concat([table, read_part(part, table)])
            table = both.unique(spec.one_row_per, keep="first", maintain_order=True)
            left_out[REPEATED] += both.height - table.height
        parts = ()
    return SourceResult(
        tables={spec.target: table},
        quarantine=duplicates,
        files=files,
        left_out={reason: n for reason, n in left_out.items() if n},
        unreadable=unreadable,
        parts={spec.target: parts},
        refused_parts=tuple(part for entry in entries for part in entry.refused),
    )


def no_rows(table: str) -> pl.DataFrame:
    """An empty canonical table with `FILE` and `RECORD`."""
    wanted = schemas.polars_schema(TARGETS[table])
    return pl.DataFrame(schema={**wanted, FILE: pl.String, RECORD: pl.Int64})


def file_pieces(path: Path, form: Format, keep: delimited.Keep, where: str, piece_bytes: int) -> Iterator[Piece]:
    """The records of one file as text, piece by piece, whatever its kind.

    Args:
        path: the file.
        form: how it is written.
        keep: from the header to the raw columns that are wanted.
        where: the file's name below the raw folder.
        piece_bytes: about how much is read at once.

    Raises:
        UnreadableFileError: when the file cannot be read at all.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _typed_pieces(sheets.parquet_frames(path, where), keep, where)
    elif kind == ".xlsx":
        yield from _typed_pieces(sheets.excel_frames(path, where, form), keep, where)
    else:
        for member in archives.members(path, where, form):
            blocks = archives.blocks(member, form, piece_bytes)
            yield from delimited.pieces(blocks, form, keep, member.where)


def _typed_pieces(frames: Iterator[pl.DataFrame], keep: delimited.Keep, where: str) -> Iterator[Piece]:
    before = 0
    for frame in frames:
        fields = frame.select(_text_of(column, frame.schema[column]) for column in keep(frame.columns))
        number = pl.int_range(before + 1, before + frame.height + 1, dtype=pl.Int64, eager=True).alias(RECORD)
        numbered = fields.insert_column(0, number)
        yield Piece(where, numbered, delimited.no_refusals(), _json_of(frame, before))
        before += frame.height


def _json_of(frame: pl.DataFrame, before: int) -> Callable[[pl.Series], pl.Series]:
    texts = frame.select(_text_of(column, kind) for column, kind in frame.schema.items())
    return lambda records: (
        texts[(records - before - 1).to_list()].select(pl.struct(texts.columns).struct.json_encode()).to_series()
    )


def _text_of(column: str, kind: pl.DataType) -> pl.Expr:
    """A typed column as the text that a file would hold; times keep their offset."""
    if isinstance(kind, pl.Datetime):
        return pl.col(column).dt.to_string("%Y-%m-%dT%H:%M:%S%.6f" + ("%z" if kind.time_zone else ""))
    return pl.col(column).cast(pl.String)


def meant_for_this_table(spec: TableSource) -> pl.Expr:
    """Whether a record belongs to the target: `only_when`."""
    chosen = [pl.col(column).is_in(texts).fill_null(value=False) for column, texts in spec.only_when.items()]
    return pl.all_horizontal(pl.lit(value=True), *chosen)


def canonical(
    fields: pl.DataFrame,
    spec: TableSource,
    problems: tuple[pl.Expr, ...] = (),
    texts: Callable[[pl.Series], pl.Series] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Canonical rows, and the records that cannot be read.

    Args:
        fields: text columns with `FILE`, `RECORD` and, without `texts`, `ROW`.
        spec: the column map.
        problems: further reasons to refuse a record: structs of `rule`, `column`, `value`, null where all is well.
        texts: from record numbers to the records' texts.

    Returns:
        Rows as the target's contract has its columns, then `FILE` and `RECORD`, which say where each came from; and
        refused records as `schemas.QUARANTINE`.
    """
    schema = TARGETS[spec.target]
    columns = parsed_columns(spec)
    quick = _quick_times(fields, spec)
    typed = fields.with_columns(
        *(quick.get(name, column.value).alias(_typed_name(name)) for name, column in columns.items()),
        *([pl.coalesce([*problems, pl.lit(None, _REASON)]).alias(_WHY)] if problems else []),
    )
    suspect = pl.any_horizontal(
        *([pl.col(_WHY).is_not_null()] if problems else []),
        *(_is_suspect(name, column, required=_is_required(name, schema)) for name, column in columns.items()),
    )
    suspects = typed.select(suspect).to_series()
    rows = (typed.filter(~suspects) if suspects.any() else typed).select(_canonical_columns(columns, schema))
    wrong = typed.filter(suspects)
    if texts is not None and wrong.is_empty():
        wrong = wrong.with_columns(pl.lit(None, pl.String).alias(ROW))  # to find texts takes a look at the whole piece
    elif texts is not None:
        wrong = wrong.with_columns(texts(wrong.get_column(RECORD)).alias(ROW))
    reasons = [*([pl.col(_WHY)] if problems else []), *(_reason(name, columns[name], schema) for name in columns)]
    told = wrong.select(FILE, RECORD, ROW, pl.coalesce(reasons).alias(_WHY)).unnest(_WHY)
    return rows, refusals(told, spec.target)


def _is_suspect(name: str, column: Parsed, *, required: bool) -> pl.Expr:
    """Whether a value is missing that must be there, or was given and cannot be read."""
    if required:
        return pl.col(_typed_name(name)).is_null()
    if column.value is column.given:  # a text, which is what was given
        return pl.lit(value=False)
    return pl.col(_typed_name(name)).is_null() & column.given.is_not_null()


def _quick_times(fields: pl.DataFrame, spec: TableSource) -> dict[str, pl.Series]:
    """Moments by a faster way, for the columns in which it reads every text."""
    kinds = schemas.polars_schema(TARGETS[spec.target])
    found: dict[str, tuple[str, pl.Expr]] = {}
    for name, column in spec.columns.items():
        if kinds[name] == schemas.UTC_US and column.column and column.split is None and column.values is None:
            quick = values.quick_time(fields.get_column(column.column), _times(column, spec), column.add_days)
            if quick is not None:
                found[name] = (column.column, quick.alias(name))
    read = fields.select(quick for _, quick in found.values())
    return {
        name: read.get_column(name)
        for name, (raw, _) in found.items()
        if read.get_column(name).null_count() == fields.get_column(raw).null_count()
    }


def _canonical_columns(columns: Mapping[str, Parsed], schema: pa.DataFrameSchema) -> list[pl.Expr]:
    automatic = {"source_file": pl.col(FILE), "source_record": pl.col(RECORD)}
    named = [
        (pl.col(_typed_name(name)) if name in columns else automatic.get(name, pl.lit(None))).cast(kind).alias(name)
        for name, kind in schemas.polars_schema(schema).items()
    ]
    return [*named, pl.col(FILE), pl.col(RECORD)]


def _typed_name(name: str) -> str:
    return f"__typed_{name}"


def refusals(wrong: pl.DataFrame, table: str) -> pl.DataFrame:
    """Refused records as rows of the quarantine.

    Args:
        wrong: `FILE`, `RECORD`, `ROW`, `rule`, `column`, `value`.
        table: the canonical table that they were meant for.
    """
    return wrong.select(
        table=pl.lit(table),
        source_file=pl.col(FILE),
        source_record=pl.col(RECORD),
        rule="rule",
        column="column",
        value="value",
        row=pl.col(ROW),
    )


def shape_refusals(refused: pl.DataFrame, table: str, where: str) -> pl.DataFrame:
    """Records whose shape is wrong as rows of the quarantine: no single column is to blame."""
    return refusals(refused.with_columns(pl.lit(where).alias(FILE), column=pl.lit(None, pl.String)), table)


def parsed_columns(spec: TableSource) -> dict[str, Parsed]:
    """Every canonical column that the source gives, typed by the target's contract."""
    kinds = schemas.polars_schema(TARGETS[spec.target])
    parsed = {name: _parse(name, column, kinds[name], spec) for name, column in spec.columns.items()}
    if spec.amounts is not None:
        parsed |= amount_and_direction(spec.amounts, spec)
    if "currency" in parsed:
        parsed["currency"] = _known_code(parsed["currency"])
    return parsed


def _parse(name: str, column: Column, kind: Any, spec: TableSource) -> Parsed:
    given = _given(column)
    if column.values is None:
        return _typed(given, name, kind, spec)
    known = values.as_known(given, column.values)
    inner = _typed(known.value, name, kind, spec)
    return Parsed(inner.value, pl.coalesce(known.rule, inner.rule), given)


def _typed(given: pl.Expr, name: str, kind: Any, spec: TableSource) -> Parsed:
    column = spec.columns[name]
    if kind == pl.Float64:
        minor = spec.amounts.minor_units if spec.amounts is not None and name == "balance_after" else 0
        return values.as_number(given, spec.format, minor)
    if kind == schemas.UTC_US:
        return values.as_time(given, _times(column, spec), column.add_days)
    if kind == pl.Date:
        return values.as_date(given, column.format or spec.times.format)
    if kind == pl.Boolean:
        return values.as_truth(given)
    if kind == pl.Int64:
        return values.as_whole(given)
    return values.as_text(pl.lit(column.prefix) + given if column.prefix else given)


def _times(column: Column, spec: TableSource) -> Times:
    return replace(
        spec.times,
        format=column.format or spec.times.format,
        time_zone=column.time_zone or spec.times.time_zone,
    )


def _given(column: Column) -> pl.Expr:
    """The text that a canonical column is made from."""
    if column.column is not None:
        text = pl.col(column.column)
        if column.split is not None:
            part = text.str.split(column.split).list.get(column.part, null_on_oob=True).str.strip_chars()
            return pl.when(part.str.len_bytes() > 0).then(part)
        return text
    if column.columns:
        return pl.concat_str(column.columns, separator=column.join)
    if column.record:
        return pl.format("{}:{}", FILE, pl.col(RECORD).cast(pl.String).str.zfill(_RECORD_DIGITS))
    if column.path is not None:
        return pl.col(FILE).str.extract(column.path, 1)
    return pl.lit(column.constant, pl.String)


def amount_and_direction(amounts: Amounts, spec: TableSource) -> dict[str, Parsed]:
    """Amount (never negative by its sign alone) and direction, from whichever way the source tells them."""
    if amounts.debit is not None and amounts.credit is not None:
        return _from_two_columns(amounts.debit, amounts.credit, amounts, spec)
    given = pl.col(str(amounts.column))
    number = values.as_number(given, spec.format, amounts.minor_units)
    if amounts.negative is not None:
        other = "out" if amounts.negative == "in" else "in"
        side = pl.when(number.value < 0).then(pl.lit(amounts.negative)).when(number.value >= 0).then(pl.lit(other))
        return {"amount": Parsed(number.value.abs(), number.rule, given), "direction": _unblamed(side)}
    if amounts.direction_column is not None:
        words = dict.fromkeys(amounts.in_values, "in") | dict.fromkeys(amounts.out_values, "out")
        return {"amount": number, "direction": values.as_known(pl.col(amounts.direction_column), words)}
    return {"amount": number, "direction": values.as_text(pl.lit(amounts.direction))}


def _from_two_columns(debit: str, credit: str, amounts: Amounts, spec: TableSource) -> dict[str, Parsed]:
    out, into = (values.as_number(pl.col(name), spec.format, amounts.minor_units) for name in (debit, credit))
    given = pl.coalesce(pl.col(debit), pl.col(credit))
    both = pl.when(pl.col(debit).is_not_null() & pl.col(credit).is_not_null()).then(pl.lit(BOTH_SIDES))
    one = pl.when(both.is_null()).then(pl.coalesce(out.value, into.value))
    amount = Parsed(one, pl.coalesce(both, out.rule, into.rule), given)
    side = (
        pl.when(pl.col(debit).is_not_null()).then(pl.lit("out")).when(pl.col(credit).is_not_null()).then(pl.lit("in"))
    )
    return {"amount": amount, "direction": _unblamed(side)}


def _unblamed(value: pl.Expr) -> Parsed:
    """A direction that follows from the amount: where it is unknown, the amount is to blame and told first."""
    return Parsed(value, pl.lit(None, pl.String), value)


def _known_code(currency: Parsed) -> Parsed:
    known = currency.value.is_in(sorted(iso_codes.CURRENCIES))
    rule = pl.coalesce(currency.rule, pl.when(currency.value.is_not_null() & ~known).then(pl.lit(UNKNOWN_CURRENCY)))
    return Parsed(pl.when(known).then(currency.value), rule, currency.given)


def _is_required(name: str, schema: pa.DataFrameSchema) -> bool:
    return not schema.columns[name].nullable and name not in FROM_RATES


def _reason(name: str, column: Parsed, schema: pa.DataFrameSchema) -> pl.Expr:
    """Why a record is refused for this column: a struct of rule, column and value; null where all is well."""
    rule = column.rule
    if _is_required(name, schema):
        rule = pl.coalesce(rule, pl.when(column.value.is_null()).then(pl.lit(MISSING)))
    return pl.when(rule.is_not_null()).then(
        pl.struct(rule=rule, column=pl.lit(name), value=column.given.cast(pl.String))
    )
