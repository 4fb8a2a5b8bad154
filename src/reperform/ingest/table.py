"""Delimited text and Parquet by a column map: a new bank needs one description in conf/ingest/, and no code."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandera.polars as pa
import polars as pl
from polars.exceptions import PolarsError

from reperform import iso_codes, schemas
from reperform.ingest import delimited, values
from reperform.ingest.column_map import FROM_RATES, TARGETS, Amounts, Column, TableSource, Times, table_source
from reperform.ingest.delimited import ROW, Records
from reperform.ingest.source import FILE, RECORD, SourceResult, UnreadableFileError, read_files
from reperform.ingest.values import Parsed

MISSING = "missing_value"
BOTH_SIDES = "debit_and_credit"
UNKNOWN_CURRENCY = "unknown_currency"
NOT_SELECTED = "not meant for this table (only_when)"
_RECORD_DIGITS = 9
_WHY = "__why"  # a struct of what refuses a record
_REASON = pl.Struct({"rule": pl.String, "column": pl.String, "value": pl.String})
REPEATED = "repeats an earlier record (one_row_per)"


def read(name: str, source: Mapping[str, Any], raw: Path, *, processes: int) -> SourceResult:
    """Read one source of tables.

    Args:
        name: the source.
        source: its description, as in conf/ingest/; see `column_map.TableSource`.
        raw: the raw folder.
        processes: not needed here; Polars uses threads.

    Raises:
        ReperformError: for a wrong description or a source without files.
    """
    del processes
    spec = table_source(name, source)

    def reader(path: Path, where: str) -> tuple[int, tuple[int, pl.DataFrame, pl.DataFrame]]:
        records = file_records(path, spec, where)
        selected = records.fields.filter(meant_for_this_table(spec))
        rows, wrong = canonical(selected.with_columns(pl.lit(where).alias(FILE)), spec)
        refused = pl.concat([shape_refusals(records.refused, spec.target, where), wrong])
        return records.count, (records.fields.height - selected.height, rows, refused)

    got = read_files(name, spec.files, raw, spec.target, reader)
    table = pl.concat([no_rows(spec.target), *(rows for _, rows, _ in got.results)])
    left_out = {NOT_SELECTED: sum(skipped for skipped, _, _ in got.results)}
    if spec.one_row_per is not None:
        once = table.unique(spec.one_row_per, keep="first", maintain_order=True)
        left_out[REPEATED] = table.height - once.height
        table = once
    return SourceResult(
        tables={spec.target: table},
        quarantine=pl.concat([got.duplicates, *(refused for _, _, refused in got.results)]),
        files=got.files,
        left_out={reason: n for reason, n in left_out.items() if n},
        unreadable=got.unreadable,
    )


def no_rows(table: str) -> pl.DataFrame:
    """An empty canonical table with `FILE` and `RECORD`."""
    wanted = schemas.polars_schema(TARGETS[table])
    return pl.DataFrame(schema={**wanted, FILE: pl.String, RECORD: pl.Int64})


def file_records(path: Path, spec: TableSource, where: str) -> Records:
    """The records of one file as text, whatever its kind.

    Raises:
        UnreadableFileError: when the file cannot be read at all.
    """
    if path.suffix == ".parquet":
        return _parquet_records(path, spec, where)
    return delimited.parse(path.read_bytes(), spec.format, spec.raw_columns(), where)


def _parquet_records(path: Path, spec: TableSource, where: str) -> Records:
    try:
        frame = pl.read_parquet(path)
    except (PolarsError, OSError) as error:
        raise UnreadableFileError(
            where, "file_malformed", "the file is no readable Parquet.",
            expected="a whole Parquet file", got=str(error)[:300], fix="ask the sender for the file again",
        ) from error  # fmt: skip
    delimited.check_header(frame.columns, spec.raw_columns(), where)
    fields = frame.select(_text_of(column, kind) for column, kind in frame.schema.items())
    numbered = fields.with_row_index(RECORD, offset=1).with_columns(
        pl.col(RECORD).cast(pl.Int64), pl.struct(fields.columns).struct.json_encode().alias(ROW)
    )
    return Records(numbered, delimited.no_refusals())


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
    fields: pl.DataFrame, spec: TableSource, problems: tuple[pl.Expr, ...] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Canonical rows, and the records that cannot be read.

    Args:
        fields: text columns with `FILE`, `RECORD` and `ROW`.
        spec: the column map.
        problems: further reasons to refuse a record: structs of `rule`, `column`, `value`, null where all is well.

    Returns:
        Rows as the target's contract has its columns, then `FILE` and `RECORD`, which say where each came from; and
        refused records as `schemas.QUARANTINE`.
    """
    schema = TARGETS[spec.target]
    columns = parsed_columns(spec)
    typed = fields.with_columns(
        *(column.value.alias(_typed_name(name)) for name, column in columns.items()),
        pl.coalesce([*problems, pl.lit(None, _REASON)]).alias(_WHY),
    )
    suspect = pl.any_horizontal(
        pl.col(_WHY).is_not_null(),
        *(
            pl.col(_typed_name(name)).is_null() & (pl.lit(_is_required(name, schema)) | column.given.is_not_null())
            for name, column in columns.items()
        ),
    )
    rows = typed.filter(~suspect).select(_canonical_columns(columns, schema))
    reasons = [pl.col(_WHY), *(_reason(name, columns[name], schema) for name in columns)]
    wrong = typed.filter(suspect).select(FILE, RECORD, ROW, pl.coalesce(reasons).alias(_WHY)).unnest(_WHY)
    return rows, refusals(wrong, spec.target)


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
