"""A column map: how the columns of one institution's files become canonical columns. Read from conf/ingest/."""

import codecs
import re
from collections.abc import Mapping
from dataclasses import field, fields, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandera.polars as pa
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform import params, schemas
from reperform.errors import ReperformError, nearest

STRICT = ConfigDict(extra="forbid")
AUTOMATIC = ("source_file", "source_record")  # filled by the reader itself
FROM_AMOUNTS = ("amount", "direction")  # described under `amounts`, because the two belong together
FROM_RATES = ("amount_base",)  # filled from exchange rates where no column gives it
STEPS = "steps"  # a time format: numbers that count steps from a start
RULE_OF_CODES = {"currency": "unknown_currency"}  # canonical columns whose values are looked up in a list of codes
TARGETS: dict[str, pa.DataFrameSchema] = {**schemas.CANONICAL, schemas.RATES.name: schemas.RATES}


@dataclass(frozen=True, config=STRICT)
class Format:
    """How the text of a file is written.

    Args:
        delimiter: one character between fields.
        quote: the character around fields that hold a delimiter; empty where a source never quotes.
        encoding: a Python codec such as utf-8, latin-1, utf-16; a byte order mark is taken off by itself.
        compression: gzip, zstd, zip, none, or auto (by the end of the name: .gz, .zst, .zip).
        decimal: the decimal mark.
        thousands: the thousands mark, if numbers carry one.
        final_newline: every row ends with a line break, so that a file without the last one was cut off.
        missing: texts that mean "no value", beside the empty field.
        names: the columns by position, for files without a header line.
        repeated_names: what a header means that names a column twice. `number` calls the second `Account` by the name
            `Account 2`; `refuse` takes it for a damaged file.
        sheet: the sheet of an Excel file; the first one if not given.
        max_record_bytes: a longer record is no record: a quote that is never closed, or an attack on the memory.
        max_unpack_ratio: an archive that unpacks to more than this many times its size is refused.
        max_unpacked_bytes: a file that holds more than this is refused.
    """

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    quote: Annotated[str, Field(max_length=1)] = '"'
    encoding: str = "utf-8"
    compression: Literal["auto", "gzip", "zstd", "zip", "none"] = "auto"
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ".", ",", " ", "'", "_"] = ""
    final_newline: bool = True
    missing: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    repeated_names: Literal["refuse", "number"] = "refuse"
    sheet: str | None = None
    max_record_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20
    max_unpack_ratio: Annotated[int, Field(ge=1)] = 250
    max_unpacked_bytes: Annotated[int, Field(ge=1)] = 200 * 2**30


@dataclass(frozen=True, config=STRICT)
class Times:
    """How moments are written.

    Args:
        format: `iso` (ISO 8601, with or without offset), `epoch_ms`, `epoch_s`, `steps` (numbers that count steps
            from `start`), or a strftime pattern such as `%d.%m.%Y %H:%M:%S`.
        time_zone: IANA name of the zone that texts without an offset are in, daylight saving included. Without it
            a text must carry its offset.
        ambiguous: what a local time means that the clock shows twice when daylight saving ends. `refuse` sends it to
            quarantine; nothing in the text can tell which of the two is meant.
        start: the moment of step 0, in ISO 8601; UTC unless it says an offset.
        step: how long a step is. Months are calendar months, counted in whole ones.
    """

    format: str = "iso"
    time_zone: str | None = None
    ambiguous: Literal["refuse", "earliest", "latest"] = "refuse"
    start: str | None = None
    step: Literal["second", "minute", "hour", "day", "month"] = "hour"

    @property
    def start_utc(self) -> datetime:
        """The moment of step 0."""
        moment = datetime.fromisoformat(str(self.start))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


@dataclass(frozen=True, config=STRICT)
class Amounts:
    """Where amount and direction come from: one of four ways.

    Args:
        column: the amount; then say `direction`, `direction_column` or `negative`.
        direction: every row has this direction.
        direction_column: the column that tells the direction, by `in_values` and `out_values`.
        in_values: texts of `direction_column` for money that comes in.
        out_values: texts of `direction_column` for money that goes out.
        negative: the sign tells: a negative amount has this direction, a positive one the other.
        debit: the column with amounts that go out, while `credit` is empty.
        credit: the column with amounts that come in, while `debit` is empty.
        minor_units: decimal places of amounts and balances written as whole minor units (2 for cents).
    """

    column: str | None = None
    direction: Literal["in", "out"] | None = None
    direction_column: str | None = None
    in_values: list[str] = field(default_factory=list)
    out_values: list[str] = field(default_factory=list)
    negative: Literal["in", "out"] | None = None
    debit: str | None = None
    credit: str | None = None
    minor_units: Annotated[int, Field(ge=0, le=6)] = 0

    def raw_columns(self) -> list[str]:
        """The raw columns that it names."""
        named = (self.column, self.direction_column, self.debit, self.credit)
        return [name for name in named if name is not None]

    def ways(self) -> int:
        """In how many ways it tells the direction; exactly one is right."""
        by_column = (self.direction, self.direction_column, self.negative)
        two_columns = self.debit is not None and self.credit is not None and self.column is None
        return sum(way is not None for way in by_column if self.column is not None) + two_columns


@dataclass(frozen=True, config=STRICT)
class Column:
    """Where one canonical column comes from.

    Args:
        column: a raw column.
        constant: the same text in every row, instead of a raw column.
        path: a regular expression over the file's name below the raw folder; its first group is the value.
        columns: raw columns whose texts are joined by `join`; missing where one of them is.
        record: the file's name and the record's number in it, such as `card.csv:000000012`: an identifier for rows
            that carry none. It is as stable as the file; digits are padded so that ids sort as the rows stand.
        split: the mark at which the raw text is divided; `part` counts from 0.
        part: which part to keep.
        prefix: text to put before the value.
        values: raw text to canonical text; any other text is refused.
        add_days: days to add to a moment, such as the time until a label is known.
        format: of moments and dates, where it differs from the source's `times`.
        time_zone: of moments, where it differs from the source's `times`.
    """

    column: str | None = None
    constant: str | None = None
    path: str | None = None
    columns: list[str] | None = None
    join: str = " "
    record: bool = False
    split: str | None = None
    part: Annotated[int, Field(ge=0)] = 0
    prefix: str = ""
    values: dict[str, str] | None = None
    add_days: float = 0.0
    format: str | None = None
    time_zone: str | None = None

    def raw_columns(self) -> list[str]:
        """The raw columns that it names."""
        return [*([self.column] if self.column is not None else []), *(self.columns or [])]

    def origins(self) -> list[str]:
        """Which origins it has; exactly one is right."""
        given = [key for key in ("column", "constant", "path") if getattr(self, key) is not None]
        return [*given, *(["columns"] if self.columns else []), *(["record"] if self.record else [])]


@dataclass(frozen=True, config=STRICT)
class TableSource:
    """One source of delimited text or Parquet files.

    Args:
        kind: `table`.
        target: the canonical table (or `rates`) that its rows belong to.
        files: globs below the raw folder.
        columns: canonical column to raw column, or to a `Column`.
        format: how the text is written.
        times: how moments are written.
        amounts: where amount and direction come from; for transactions.
        only_when: raw column to the texts that a record must hold to be meant for this table.
        one_row_per: a canonical column; the first record with each value stands for all of them.
    """

    kind: Literal["table"]
    target: str
    files: list[str]
    columns: dict[str, Column]
    format: Format = field(default_factory=Format)
    times: Times = field(default_factory=Times)
    amounts: Amounts | None = None
    only_when: dict[str, list[str]] = field(default_factory=dict)
    one_row_per: str | None = None

    def raw_columns(self) -> list[str]:
        """Every raw column that it needs, each once, in the order in which the description names them."""
        named = [name for column in self.columns.values() for name in column.raw_columns()]
        named += self.amounts.raw_columns() if self.amounts else []
        return list(dict.fromkeys([*named, *self.only_when]))


def table_source(name: str, source: Mapping[str, Any]) -> TableSource:
    """A source's description as a checked column map.

    Args:
        name: the source, for messages.
        source: plain values as in conf/ingest/; a bare text under `columns` is the name of a raw column, and a bare
            text under `files` is one glob.

    Raises:
        ReperformError: for an unknown key (naming the nearest), a wrong value, a canonical column that is missing or
            unknown, or amounts that are described in no way or in two.
    """
    where = f"ingest.sources.{name}"
    spec: TableSource = params.build(TableSource, _plain(source, where), where)
    if spec.target not in TARGETS:
        raise _unknown(spec.target, TARGETS, f"{where}.target", "a canonical table")
    _check_columns(spec, where)
    _check_amounts(spec, where)
    _check_formats(spec, where)
    return spec


def _plain(source: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The description without its shorthands; YAML's numbers and booleans become the texts that files hold."""
    plain = dict(source)
    if isinstance(plain.get("files"), str):
        plain["files"] = [plain["files"]]
    if isinstance(plain.get("columns"), Mapping):
        plain["columns"] = {
            key: _plain_column(value, f"{where}.columns.{key}") for key, value in plain["columns"].items()
        }
    if isinstance(plain.get("only_when"), Mapping):
        plain["only_when"] = {
            key: [text(v) for v in (value if isinstance(value, list) else [value])]
            for key, value in plain["only_when"].items()
        }
    return plain


def _plain_column(value: Any, where: str) -> Column:
    if not isinstance(value, Mapping):
        return params.build(Column, {"column": text(value)}, where)
    plain = dict(value)
    if isinstance(plain.get("values"), Mapping):
        plain["values"] = {text(key): text(one) for key, one in plain["values"].items()}
    if "constant" in plain:
        plain["constant"] = text(plain["constant"])
    column: Column = params.build(Column, plain, where)
    given = column.origins()
    if len(given) != 1:
        raise ReperformError(
            "A canonical column needs exactly one origin.",
            expected="one of column, constant, path, columns, record",
            got=" and ".join(given) or "none",
            where=where,
            fix="change it in conf/ingest/ and run `make params`",
        )
    return column


def text(value: Any) -> str:
    """A YAML value as the text that stands in a file: `true`, not `True`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_columns(spec: TableSource, where: str) -> None:
    schema = TARGETS[spec.target]
    mappable = [name for name in schema.columns if name not in (*AUTOMATIC, *FROM_AMOUNTS)]
    for name in spec.columns:
        if name not in mappable:
            raise _unknown(name, mappable, f"{where}.columns", f"a column of {spec.target}")
    needed = [n for n in mappable if not schema.columns[n].nullable and n not in FROM_RATES]
    missing = [name for name in needed if name not in spec.columns]
    if missing:
        raise ReperformError(
            f"The column map of source {where.rsplit('.', 1)[-1]} is incomplete.",
            expected=f"an origin for each of {', '.join(needed)}",
            got=f"none for {', '.join(missing)}",
            where=f"{where}.columns",
            fix="name the raw column, or a constant, in conf/ingest/",
        )
    if spec.one_row_per is not None and spec.one_row_per not in spec.columns:
        raise _unknown(spec.one_row_per, spec.columns, f"{where}.one_row_per", "a mapped column")


def _check_amounts(spec: TableSource, where: str) -> None:
    if (spec.target == schemas.TRANSACTIONS.name) != (spec.amounts is not None):
        raise ReperformError(
            "Amounts belong to transactions, and transactions need them.",
            expected="`amounts` in a source of transactions, and in no other",
            got=f"target {spec.target}, {'with' if spec.amounts else 'without'} amounts",
            where=where,
            fix="mend the source in conf/ingest/",
        )
    if spec.amounts is not None and spec.amounts.ways() != 1:
        raise ReperformError(
            "Amount and direction must be described in exactly one way.",
            expected="`debit` and `credit`; or `column` with one of `direction`, `direction_column`, `negative`",
            got=", ".join(f.name for f in fields(Amounts) if getattr(spec.amounts, f.name)) or "nothing",
            where=f"{where}.amounts",
            fix="keep one of them in conf/ingest/",
        )


def _check_formats(spec: TableSource, where: str) -> None:
    try:
        codecs.lookup(spec.format.encoding)
    except LookupError:
        raise ReperformError(
            f"Unknown encoding {spec.format.encoding!r}.",
            expected="a Python codec such as utf-8, latin-1, utf-16",
            got=spec.format.encoding,
            where=f"{where}.format.encoding",
            fix="mend it in conf/ingest/",
        ) from None
    if not (spec.format.delimiter + spec.format.quote).isascii():
        raise ReperformError(
            "A mark between or around fields must be an ASCII character.",
            expected="a delimiter such as ',' or ';', and a quote such as '\"'",
            got=f"delimiter {spec.format.delimiter!r}, quote {spec.format.quote!r}",
            where=f"{where}.format",
            fix="mend it in conf/ingest/",
        )
    _check_steps(spec, where)
    zones = [spec.times.time_zone, *(column.time_zone for column in spec.columns.values())]
    for zone in zones:
        check_time_zone(zone, where)
    for name, column in spec.columns.items():
        _check_pattern(column.path, f"{where}.columns.{name}.path")


def _check_steps(spec: TableSource, where: str) -> None:
    formats = [spec.times.format, *(column.format for column in spec.columns.values())]
    if STEPS not in formats:
        return
    try:
        _ = spec.times.start_utc
    except ValueError:
        raise ReperformError(
            "Steps need the moment of step 0.",
            expected="`start` in ISO 8601, such as '2017-01-01T00:00:00Z'",
            got=repr(spec.times.start),
            where=f"{where}.times.start",
            fix="say in conf/ingest/ when step 0 was; where nobody knows, any day will do: say so in a comment",
        ) from None


def check_time_zone(zone: str | None, where: str) -> None:
    """Refuse a time zone that the IANA database does not know."""
    try:
        if zone is not None:
            ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise ReperformError(
            f"Unknown time zone {zone!r}.",
            expected="an IANA name such as Europe/Berlin",
            got=str(zone),
            where=where,
            fix="mend it in conf/ingest/",
        ) from None


def _check_pattern(pattern: str | None, where: str) -> None:
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        groups, problem = 0, str(error)
    else:
        problem = f"{groups} groups"
    if groups < 1:
        raise ReperformError(
            "A path pattern needs a group that gives the value.",
            expected=r"a regular expression such as ^([^/]+)/",
            got=f"{pattern!r}: {problem}",
            where=where,
            fix="mend it in conf/ingest/",
        )


def _unknown(name: str, known: Any, where: str, what: str) -> ReperformError:
    return ReperformError(
        f"Unknown name {name!r}.",
        expected=f"{what}: {', '.join(known)}",
        got=name,
        where=where,
        fix=f"{nearest(name, known)}; then run `make params`",
    )


def with_columns(spec: TableSource, **columns: Column) -> TableSource:
    """The same source with some canonical columns taken from elsewhere."""
    return replace(spec, columns={**spec.columns, **columns})
