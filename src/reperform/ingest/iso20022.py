"""ISO 20022 statements, reports and notifications as transactions; balances are checked against the entries."""

from collections.abc import Iterator, Mapping
from dataclasses import field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic.dataclasses import dataclass

from reperform import params, schemas
from reperform.ingest.camt_stream import FIELDS, Row, Statement, stream
from reperform.ingest.column_map import STRICT, Amounts, Column, TableSource, Times, check_time_zone
from reperform.ingest.delimited import ROW
from reperform.ingest.source import FILE, RECORD, SourceResult, quarantine_frame, read_files, row_as_json
from reperform.ingest.table import canonical, no_rows
from reperform.ingest.values import with_point

NOT_BOOKED = "entry_not_booked"
BALANCE_BROKEN = "statement.balance"
DETAILS_BROKEN = "statement.details"
_ROWS_PER_PART = 20_000
_PLACES = 5  # ISO 20022 amounts have at most five decimals: whole numbers of such units add up exactly
_UNITS = 10**_PLACES
_KINDS = {name: pl.Int64 if name == "statement" else pl.String for name in FIELDS}


@dataclass(frozen=True, config=STRICT)
class Iso20022Source:
    """One source of ISO 20022 files.

    Args:
        kind: `iso20022`.
        files: globs below the raw folder.
        entity_id: the institution.
        identifiers: which reference of an entry is its transaction's id: the first that it has. An entry without any
            is named by its message, statement and number.
        time_zone: of dates, and of times that carry no offset. A date alone is its midnight.
        gives_accounts: the statements' accounts are the source's accounts; for institutions without an account file.
        namespaces: further namespaces whose documents have this structure, such as national variants.
    """

    kind: Literal["iso20022"]
    files: list[str]
    entity_id: str
    identifiers: list[Literal["NtryRef", "AcctSvcrRef"]] = field(default_factory=lambda: ["NtryRef", "AcctSvcrRef"])
    time_zone: str = "UTC"
    gives_accounts: bool = False
    namespaces: list[str] = field(default_factory=list)


class _Gathered:
    """Entries of many small files, typed together once there are enough of them."""

    def __init__(self, columns: TableSource) -> None:
        self.columns = columns
        self.waiting: list[pl.DataFrame] = []
        self.rows = [no_rows("transactions")]
        self.refused = [quarantine_frame([])]
        self.messages = [schemas.empty(schemas.MESSAGES)]
        self.statements: list[Statement] = []

    def add(self, entries: pl.DataFrame) -> None:
        self.waiting.append(entries)
        if sum(part.height for part in self.waiting) >= _ROWS_PER_PART:
            self.type_waiting()

    def type_waiting(self) -> None:
        if self.waiting:
            rows, refused = canonical(pl.concat(self.waiting), self.columns, (_not_booked(),))
            self.rows.append(rows)
            self.refused.append(refused)
            self.waiting = []


def read(name: str, source: Mapping[str, Any], raw: Path, *, processes: int) -> SourceResult:
    """Read one source of camt messages.

    Args:
        name: the source.
        source: its description, as in conf/ingest/; see `Iso20022Source`.
        raw: the raw folder.
        processes: not needed: one process reads tens of thousands of entries a second.

    Raises:
        ReperformError: for a wrong description or a source without files.
    """
    del processes
    spec = iso20022_source(name, source)
    gathered = _Gathered(column_map(spec))

    def reader(path: Path, where: str) -> tuple[int, None]:
        entries, statements = entries_of(path, where, spec)
        checked, messages = with_balances(entries, statements, where)
        gathered.add(checked)
        gathered.messages.append(messages)
        gathered.statements += statements
        return entries.height, None

    got = read_files(name, spec.files, raw, schemas.TRANSACTIONS.name, reader)
    gathered.type_waiting()
    tables = {"transactions": pl.concat(gathered.rows), "messages": pl.concat(gathered.messages)}
    if spec.gives_accounts:
        tables["accounts"] = _accounts(tables["transactions"])
    return SourceResult(
        tables=tables,
        quarantine=pl.concat([got.duplicates, *gathered.refused]),
        files=got.files,
        counts=_counts(gathered.statements, tables["messages"]),
        unreadable=got.unreadable,
    )


def iso20022_source(name: str, source: Mapping[str, Any]) -> Iso20022Source:
    """A source's description, checked.

    Raises:
        ReperformError: for an unknown key (naming the nearest) or a wrong value.
    """
    where = f"ingest.sources.{name}"
    plain = dict(source)
    if isinstance(plain.get("files"), str):
        plain["files"] = [plain["files"]]
    spec: Iso20022Source = params.build(Iso20022Source, plain, where)
    check_time_zone(spec.time_zone, where)
    return spec


def column_map(spec: Iso20022Source) -> TableSource:
    """How the fields of an entry become canonical columns: the same way as the columns of a table do."""
    return TableSource(
        kind="table",
        target="transactions",
        files=spec.files,
        times=Times(time_zone=spec.time_zone),
        columns={
            "transaction_id": Column(column="transaction_id"),
            "booked_at": Column(column="booked"),
            "known_at": Column(column="known"),
            "account_id": Column(column="account"),
            "counterparty_id": Column(column="counterparty"),
            "entity_id": Column(constant=spec.entity_id),
            "currency": Column(column="currency"),
            "channel": Column(column="channel"),
            "country": Column(column="country"),
            "balance_after": Column(column="balance"),
        },
        amounts=Amounts(column="amount", direction_column="indicator", in_values=["CRDT"], out_values=["DBIT"]),
    )


def entries_of(path: Path, where: str, spec: Iso20022Source) -> tuple[pl.DataFrame, list[Statement]]:
    """The transactions of a file as text columns with `FILE`, `RECORD` and `ROW`, and its statements.

    Raises:
        UnreadableFileError: when the file cannot be read at all.
    """
    statements: list[Statement] = []
    rows = stream(path, where, list(spec.identifiers), spec.namespaces, statements.append)
    entries = pl.concat([pl.DataFrame(schema=_KINDS), *_parts(rows)])
    text = pl.col(pl.String).str.strip_chars()
    trimmed = entries.with_columns(pl.when(text.str.len_bytes() > 0).then(text).name.keep())
    # A date may carry an offset (2025-01-02+01:00); the day is what counts.
    day = pl.when(pl.col("booked").str.contains("T")).then("booked").otherwise(pl.col("booked").str.slice(0, 10))
    numbered = trimmed.with_columns(booked=day).with_row_index(RECORD, offset=1)
    origin = (pl.lit(where).alias(FILE), pl.col(RECORD).cast(pl.Int64), row_as_json(FIELDS[1:]).alias(ROW))
    return numbered.with_columns(origin), statements


def _parts(rows: Iterator[Row]) -> Iterator[pl.DataFrame]:
    while part := list(islice(rows, _ROWS_PER_PART)):
        yield pl.DataFrame(part, schema=_KINDS, orient="row")


def with_balances(entries: pl.DataFrame, statements: list[Statement], where: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Entries with the balance after each, and what is wrong with the statements.

    A balance is opening + entries so far, in the order of the file, and it is given only where a statement's opening
    balance and all its booked entries lead to its closing balance.

    Args:
        entries: as from `entries_of`.
        statements: of the same file.
        where: the file.

    Returns:
        The entries with `balance` as text, and rows as `schemas.MESSAGES`.
    """
    amount = pl.col("amount").cast(pl.Float64, strict=False) * _UNITS
    sign = pl.when(pl.col("indicator") == "CRDT").then(1).when(pl.col("indicator") == "DBIT").then(-1)
    counts = _is_booked()
    moved = entries.with_columns(
        __units=pl.when(counts & amount.is_finite())
        .then(amount.round().cast(pl.Int64, strict=False) * sign)
        .fill_null(0)
    )
    sums = dict(moved.group_by("statement", maintain_order=True).agg(pl.col("__units").sum()).iter_rows())
    opening = {}
    found = []
    for statement in statements:
        gap = balance_gap(statement, Decimal(sums.get(statement.number, 0)) / _UNITS)
        if gap == 0:
            opening[statement.number] = int(next(iter(statement.opening.values())) * _UNITS)
        found += _findings(statement, gap, where)
    start = pl.col("statement").replace_strict(opening, default=None, return_dtype=pl.Int64)
    balance = with_point((start + pl.col("__units").cum_sum().over("statement")).cast(pl.String), _PLACES)
    messages = pl.DataFrame(found, schema=schemas.polars_schema(schemas.MESSAGES))
    return moved.with_columns(balance=pl.when(counts).then(balance)).drop("__units"), messages


def balance_gap(statement: Statement, moved: Decimal) -> Decimal | None:
    """Closing balance less opening balance and entries; None where the statement does not tell both in one currency."""
    currencies = set(statement.opening) & set(statement.closing)
    if len(currencies) != 1 or len(statement.opening) != 1:
        return None
    currency = currencies.pop()
    return statement.closing[currency] - statement.opening[currency] - moved


def _findings(statement: Statement, gap: Decimal | None, where: str) -> list[dict[str, object]]:
    of = {"filing_id": f"{where}#{statement.name}", "severity": "inconsistency"}
    found: list[dict[str, object]] = []
    if gap:
        text = f"opening balance and entries miss the closing balance of account {statement.account} by {gap:f}"
        found.append({**of, "code": BALANCE_BROKEN, "text": text, "source_line": statement.line})
    for line in statement.unsplit:
        text = f"the details of an entry of account {statement.account} do not add up to it; read as one transaction"
        found.append({**of, "code": DETAILS_BROKEN, "severity": "warning", "text": text, "source_line": line})
    return found


def _is_booked() -> pl.Expr:
    return pl.col("status").fill_null("BOOK") == "BOOK"


def _not_booked() -> pl.Expr:
    """Pending and informative entries come again once they are booked: they are told, and kept out."""
    reason = pl.struct(rule=pl.lit(NOT_BOOKED), column=pl.lit("status"), value=pl.col("status"))
    return pl.when(~_is_booked()).then(reason)


def _accounts(transactions: pl.DataFrame) -> pl.DataFrame:
    wanted = schemas.polars_schema(schemas.ACCOUNTS)
    known = transactions.unique("account_id", keep="first", maintain_order=True)
    return known.select(
        (pl.col(name) if name in known.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in wanted.items()
    )


def _counts(statements: list[Statement], messages: pl.DataFrame) -> dict[str, int]:
    told = sum(bool(set(statement.opening) & set(statement.closing)) for statement in statements)
    broken = messages.filter(pl.col("code") == BALANCE_BROKEN).height
    return {
        "statements": len(statements),
        "statements_with_both_balances": told,
        "statements_with_broken_balance": broken,
        "entries": sum(statement.entries for statement in statements),
        "entries_split_by_details": sum(statement.split for statement in statements),
        "entries_with_broken_details": messages.filter(pl.col("code") == DETAILS_BROKEN).height,
    }
