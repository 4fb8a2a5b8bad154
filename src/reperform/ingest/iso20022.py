"""ISO 20022 statements, reports, notifications and payments as transactions; what they say of themselves is checked."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic.dataclasses import dataclass

from reperform import params, paths, schemas
from reperform.ingest import statement_checks as checks
from reperform.ingest import xsd
from reperform.ingest.camt_stream import PLACES, Statement, stream
from reperform.ingest.column_map import STRICT, Amounts, Column, TableSource, Times, check_time_zone
from reperform.ingest.delimited import ROW
from reperform.ingest.parts import Store
from reperform.ingest.payment_details import TABLE as DETAILS
from reperform.ingest.payment_details import WANTED, details_of
from reperform.ingest.source import (
    FILE,
    RECORD,
    Part,
    SourceResult,
    UnreadableFileError,
    located,
    matching,
    read_files,
    row_as_json,
)
from reperform.ingest.statement_checks import BALANCE_BROKEN, DETAILS_BROKEN
from reperform.ingest.statement_parts import Pack, StatementFile, Typed, found, packed, united, unpacked
from reperform.ingest.table import canonical, in_memory, no_rows, read_part
from reperform.ingest.values import with_point

NOT_BOOKED = "entry_not_booked"
_ROWS_PER_PART = 20_000
_PLACES = 5  # ISO 20022 amounts have at most five decimals: whole numbers of such units add up exactly
_UNITS = 10**_PLACES
_TRUE = ("true", "1")
# What the quarantine tells of a refused entry.
_TOLD = (
    "transaction_id", "status", "amount", "currency", "indicator", "booked", "known", "account", "counterparty",
    "country", "channel",
)  # fmt: skip
_KEPT = [*dict.fromkeys(["statement", *_TOLD, *WANTED, FILE, RECORD])]


@dataclass(frozen=True, config=STRICT)
class Iso20022Source:
    """One source of ISO 20022 files: camt.052, camt.053, camt.054, pain.001, pacs.008.

    Args:
        kind: `iso20022`.
        files: globs below the raw folder.
        entity_id: the institution.
        identifiers: which reference of an entry is its transaction's id: the first that it has. An entry without any
            is named by its message, statement and number.
        payment_identifiers: the same for payments. EndToEndId is given by the debtor and need not be unique.
        side: whose account the payments of pacs.008 are booked on: for the debtor they go out, for the creditor in.
        time_zone: of dates, and of times that carry no offset. A date alone is its midnight.
        gives_accounts: the statements' accounts are the source's accounts; for institutions without an account file.
        namespaces: further namespaces whose documents have this structure, such as national variants.
        schema: the official schema of the messages, or a folder of them named like camt.053.001.08.xsd. Files are
            validated where it is given; violations are told, and the file is read all the same. A relative path
            begins at the project.
    """

    kind: Literal["iso20022"]
    files: list[str]
    entity_id: str
    identifiers: list[Literal["NtryRef", "AcctSvcrRef"]] = field(default_factory=lambda: ["NtryRef", "AcctSvcrRef"])
    payment_identifiers: list[Literal["TxId", "UETR", "InstrId", "EndToEndId"]] = field(
        default_factory=lambda: ["TxId", "UETR"]
    )
    side: Literal["debtor", "creditor"] = "debtor"
    time_zone: str = "UTC"
    gives_accounts: bool = False
    namespaces: list[str] = field(default_factory=list)
    schema: str | None = None


class Ledger:
    """What the statements of a source tell, and what their entries add up to.

    Args:
        statements: of all files so far; the number of a statement is its place here.
        sums: moved by booked entries, in units of 10⁻⁵, by statement.
        totals: of all amounts whatever their side, in the same units, by statement.
    """

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.sums: dict[int, int] = {}
        self.totals: dict[int, int] = {}

    def forget(self, first: int) -> None:
        """Drop the statements from a number on: their file cannot be read."""
        for number in range(first, len(self.statements)):
            self.sums.pop(number, None)
            self.totals.pop(number, None)
        del self.statements[first:]

    def add(self, statements: Iterable[tuple[Statement, int, int]]) -> None:
        """Add the statements of a file that was read before, each with what it moved and the total of its amounts."""
        for statement, moved, total in statements:
            self.statements.append(statement)
            self.sums[statement.number], self.totals[statement.number] = moved, total

    def start(self, number: int) -> int | None:
        """The balance in units before the entries that come next; None where the statement tells no opening balance."""
        opening = checks.ends(self.statements[number])[0]
        if len(opening) != 1:
            return None
        return int(next(iter(opening.values())) * _UNITS) + self.sums.get(number, 0)

    def gap(self, statement: Statement) -> Decimal | None:
        """By how much a statement's balances miss its entries; None where it does not tell both."""
        return checks.balance_gap(statement, Decimal(self.sums.get(statement.number, 0)) / _UNITS)

    def is_proven(self, number: int) -> bool:
        """Whether a statement's opening balance and entries lead to its closing balance."""
        return self.gap(self.statements[number]) == 0

    def findings(self) -> list[checks.Finding]:
        """What the files say of themselves and do not hold."""
        totals = {number: Decimal(units) / _UNITS for number, units in self.totals.items()}
        every = self.statements
        return [
            *(one for statement in every for one in checks.of_statement(statement, self.gap(statement))),
            *checks.of_messages(every),
            *checks.of_payments(every, totals),
            *checks.of_pages(every),
            *checks.of_sequences(every),
        ]


def read(name: str, source: Mapping[str, Any], raw: Path, *, processes: int) -> SourceResult:
    """Read one source of ISO 20022 messages into memory.

    Args:
        name: the source.
        source: its description, as in conf/ingest/; see `Iso20022Source`.
        raw: the raw folder.
        processes: not needed: one process reads some fifty thousand entries a second.

    Raises:
        ReperformError: for a wrong description or a source without files.
    """
    del processes
    with tempfile.TemporaryDirectory() as folder:
        return in_memory(read_into(Store(Path(folder)), name, source, raw))


def read_into(store: Store, name: str, source: Mapping[str, Any], raw: Path) -> SourceResult:
    """Read one source of ISO 20022 messages. Rows, details and refused entries go to the store, part by part.

    Args:
        store: where parts go; files that it knows are not parsed again.
        name: the source.
        source: its description.
        raw: the raw folder.

    Raises:
        ReperformError: for a wrong description or a source without files.
    """
    spec = iso20022_source(name, source)
    reading = _Reading(spec, store)
    files = [(path, located(path, raw)) for path in matching(name, spec.files, raw)]
    got = read_files(files, schemas.TRANSACTIONS.name, store.digest, reading.file)
    entries = reading.files()
    messages = reading.messages(entries)
    rows = tuple(part for entry in entries for part in entry.parts["rows"])
    tables = {
        "transactions": no_rows("transactions"),
        "messages": messages,
        DETAILS: schemas.empty(schemas.PAYMENT_DETAILS),
    }
    return SourceResult(
        tables={**tables, "accounts": _accounts(rows)} if spec.gives_accounts else tables,
        quarantine=got.duplicates,
        files=got.files,
        counts=_counts(reading.ledger.statements, messages),
        unreadable=got.unreadable,
        parts={"transactions": united(rows), DETAILS: united(part for one in entries for part in one.parts["details"])},
        refused_parts=united(part for entry in entries for part in entry.parts["refused"]),
    )


@plain_dataclass(frozen=True)
class _ReadFile:
    """A file that was read to its end, and what it gave beside its rows.

    Args:
        name: how the store names what is made of it.
        where: its name below the raw folder.
        raw: its transactions as texts, or the first of them.
        first: the number of its first statement.
        end: one more than the number of its last.
        violations: of the official schema.
    """

    name: str
    where: str
    raw: pl.DataFrame
    first: int
    end: int = 0
    violations: tuple[checks.Finding, ...] = ()


class _Reading:
    """The files of a source: those that the store knows, and those that are parsed now.

    The transactions of many small files are made together, those of large ones in parts; only a file that was read to
    its end gives rows.
    """

    def __init__(self, spec: Iso20022Source, store: Store) -> None:
        self.spec, self.store = spec, store
        self.columns = column_map(spec)
        self.ledger = Ledger()
        self.schema = _schema_path(spec)
        self._files: list[str | StatementFile] = []
        self._waiting: list[_ReadFile] = []

    def file(self, path: Path, where: str, digest: str) -> int:
        """Read one file, or find what was made of it before; gives the number of its transactions.

        Raises:
            UnreadableFileError: when the file cannot be read at all.
        """
        of_schema = [xsd.digest(self.schema)] if self.schema is not None else []
        name = self.store.name(digest, where, self.spec, *of_schema)
        known = found(self.store, name)
        if known is None:
            records = self._parse(path, where, name)
        else:
            records = known.records
            self.ledger.add(unpacked(known.statements, len(self.ledger.statements), where))
        self._files.append(known or name)
        return records

    def files(self) -> list[StatementFile]:
        """What every file gave, in their order."""
        self._make_waiting()
        every = (found(self.store, one) if isinstance(one, str) else one for one in self._files)
        return [one for one in every if one is not None]

    def messages(self, files: list[StatementFile]) -> pl.DataFrame:
        """What all files say of themselves and do not hold, as `schemas.MESSAGES`."""
        told = [
            *self.ledger.findings(),
            *(one for file in files for one in file.violations),
            *(one for file in files for one in file.references),
        ]
        return checks.finding_frame(told, [(file.where, file.further_references) for file in files])

    def _parse(self, path: Path, where: str, name: str) -> int:
        first = len(self.ledger.statements)
        waiting: list[pl.DataFrame] = []
        try:
            parts = raw_parts(path, where, self.spec, self.ledger)
            for part in parts:
                waiting.append(part)
                if sum(one.height for one in waiting) >= _ROWS_PER_PART:
                    return self._write_large(path, _ReadFile(name, where, pl.concat(waiting), first), parts)
        except UnreadableFileError:
            self.ledger.forget(first)
            raise
        one = self._whole(path, _ReadFile(name, where, pl.concat(waiting), first))
        n_waiting = sum(other.raw.height for other in self._waiting)
        # Two files may have one name in outputs: odd characters are escaped.
        if n_waiting + one.raw.height > _ROWS_PER_PART or where in {other.where for other in self._waiting}:
            self._make_waiting()
        self._waiting.append(one)
        return one.raw.height

    def _whole(self, path: Path, one: _ReadFile) -> _ReadFile:
        violations: list[checks.Finding] = []
        if self.schema is not None:
            definition = self.ledger.statements[one.first].definition
            violations = xsd.violations(path, one.where, self.schema, definition)
        return replace(one, end=len(self.ledger.statements), violations=tuple(violations))

    def _write_large(self, path: Path, one: _ReadFile, rest: Iterator[pl.DataFrame]) -> int:
        """Write the transactions of a large file while it is read."""
        pack, records, runs = Pack([one.name]), 0, []
        with self.store.making(pack.name) as folder:
            for raw in chain([one.raw], rest):
                piece = self._made([raw])
                pack.add(folder, piece)
                runs += [piece.statement.rle()] if piece.rows.height else []
                records += raw.height
            pack.take_balances_back(folder, [self._unproven(each) for each in runs])
        self._tell(self._whole(path, one), records, pack)
        return records

    def _make_waiting(self) -> None:
        """Make the transactions of the small files that wait, all at once."""
        if not self._waiting:
            return
        piece, pack = self._made([one.raw for one in self._waiting]), Pack([one.name for one in self._waiting])
        with self.store.making(pack.name) as folder:
            pack.add(folder, piece)
            runs = [piece.statement.rle()] if piece.rows.height else []
            pack.take_balances_back(folder, [self._unproven(each) for each in runs])
        for one in self._waiting:
            self._tell(one, one.raw.height, pack)
        self._waiting = []

    def _tell(self, one: _ReadFile, records: int, pack: Pack) -> None:
        statements = self.ledger.statements[one.first : one.end]
        document = {
            "pack": pack.name,
            "where": one.where,
            "records": records,
            **pack.of(one.where),
            "violations": one.violations,
            "references": pack.references.get(one.where, []),
            "further_references": pack.further[one.where],
            "statements": packed(statements, self.ledger.sums, self.ledger.totals),
        }
        self.store.tell(one.name, document)

    def _made(self, parts: list[pl.DataFrame]) -> Typed:
        return typed(with_balances(prepared(pl.concat(parts), self.ledger, self.spec), self.ledger), self.columns)

    def _unproven(self, runs: pl.Series) -> pl.Series | None:
        """Which rows are of statements whose entries do not lead to the closing balance; None where no row is."""
        wrong = [not self.ledger.is_proven(run["value"]) for run in runs]
        if not any(wrong):
            return None
        return pl.Series(np.repeat(wrong, runs.struct.field("len").to_numpy()))


def _schema_path(spec: Iso20022Source) -> Path | None:
    return paths.project_root() / spec.schema if spec.schema is not None else None  # an absolute path stays as it is


def typed(fields: pl.DataFrame, columns: TableSource) -> Typed:
    """Text columns as canonical rows, refused records, and details of the transactions that were not refused."""
    rows, refused = canonical(fields.with_columns(pl.lit(None, pl.String).alias(ROW)), columns, (_not_booked(),))
    if refused.height:
        keys = refused.select(pl.col("source_file").alias(FILE), pl.col("source_record").alias(RECORD))
        on = [FILE, RECORD]
        texts = fields.join(keys, on=on, how="semi", maintain_order="left").select(row_as_json(_TOLD))
        refused = refused.with_columns(texts.to_series().alias("row"))
        fields = fields.join(keys, on=on, how="anti", maintain_order="left")
    # What was not refused stands in the same order in both.
    return Typed(rows.drop(FILE, RECORD), fields["statement"], refused, details_of(fields))


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


def raw_parts(path: Path, where: str, spec: Iso20022Source, ledger: Ledger) -> Iterator[pl.DataFrame]:
    """The texts of a file's transactions with `FILE` and `RECORD`, part by part.

    Args:
        path: the file.
        where: its name below the raw folder.
        spec: the source.
        ledger: gets the statements of the file.

    Raises:
        UnreadableFileError: when the file cannot be read at all. Parts before that count for nothing.
    """

    def begun(statement: Statement) -> None:
        statement.where, statement.number = where, len(ledger.statements)
        ledger.statements.append(statement)

    n = 0
    for part in stream(path, where, spec.namespaces, begun):
        record = pl.int_range(n + 1, n + part.height + 1, dtype=pl.Int64).alias(RECORD)
        yield part.with_columns(pl.lit(where).alias(FILE), record)
        n += part.height


def prepared(raw: pl.DataFrame, ledger: Ledger, spec: Iso20022Source) -> pl.DataFrame:
    """Texts as they stand in files, as text columns for `canonical` and `details_of`."""
    return _meaning(_trimmed(raw), ledger, spec)


def _trimmed(raw: pl.DataFrame) -> pl.DataFrame:
    """Texts without blanks around them; no text is null."""
    given = [
        name for name in raw.columns if name not in (*PLACES, FILE, RECORD) and raw[name].null_count() < raw.height
    ]
    text = pl.col(given).str.strip_chars()
    return raw.with_columns(pl.when(text.str.len_bytes() > 0).then(text).name.keep()) if given else raw


def _meaning(raw: pl.DataFrame, ledger: Ledger, spec: Iso20022Source) -> pl.DataFrame:
    """What the texts mean for a transaction: whose it is, who is on the other side, and in what way it moved."""
    known = raw.join(_facts(raw, ledger, spec), on="statement", how="left", maintain_order="left")
    is_part = pl.col("part") > 0
    indicator = (
        pl.when(is_part)
        .then(pl.coalesce("part_indicator", "indicator"))
        .otherwise(pl.coalesce("indicator", "own_indicator"))
    )
    booked = pl.coalesce("booked", "own_booked")
    payment = pl.col("own_indicator").is_not_null()
    sided = known.with_columns(
        indicator=indicator,
        amount=pl.when(is_part).then("part_amount").otherwise("amount"),
        # A date may carry an offset (2025-01-02+01:00); the day is what counts.
        booked=pl.when(booked.str.contains("T", literal=True)).then(booked).otherwise(booked.str.slice(0, 10)),
        account=pl.when(payment).then(_own_account(spec)).otherwise("account"),
        transaction_id=_identifier(spec, payment),
        channel=_channel(),
        is_reversal=pl.col("reversal").is_in(_TRUE).fill_null(value=False),
        charges=pl.coalesce(
            "part_charges", _sum_of("part_charge_parts"), _whole("charges"), _whole("charge_parts", _sum_of)
        ),
        charges_currency=pl.coalesce("part_charges_currency", _whole("charges_currency")),
        instructed=pl.coalesce("part_instructed", _whole("instructed")),
        instructed_currency=pl.coalesce("part_instructed_currency", _whole("instructed_currency")),
        rate=pl.coalesce("part_rate", _whole("rate")),
        debtor_name=pl.coalesce("debtor_name", "own_debtor_name"),
        servicer=pl.coalesce("part_servicer", _whole("AcctSvcrRef")),
    )
    other = _other_side()
    return sided.with_columns(
        counterparty=pl.when(other == "debtor")
        .then(pl.coalesce("debtor_account", "debtor_name"))
        .when(other == "creditor")
        .then(pl.coalesce("creditor_account", "creditor_name")),
        country=pl.when(other == "debtor").then("debtor_country").when(other == "creditor").then("creditor_country"),
    ).select(_KEPT)


def _whole(name: str, made: Any = pl.col) -> pl.Expr:
    """What an entry says of itself holds for its only transaction, and not for each of several."""
    return pl.when(pl.col("part") == 0).then(made(name))


def _sum_of(name: str) -> pl.Expr:
    """The sum of amounts in one text, as text; null where there is none or one cannot be read."""
    numbers = pl.col(name).str.split(" ").list.eval(pl.element().cast(pl.Decimal(38, _PLACES), strict=False))
    complete = numbers.list.eval(pl.element().is_null().any()).list.first()
    return pl.when(~complete).then(numbers.list.sum()).cast(pl.String)


def _facts(raw: pl.DataFrame, ledger: Ledger, spec: Iso20022Source) -> pl.DataFrame:
    """What statements say that holds for all of their transactions."""
    numbers = raw["statement"].unique(maintain_order=True)
    sides = {"pain.001": "DBIT", "pacs.008": "DBIT" if spec.side == "debtor" else "CRDT"}
    rows = []
    for number in numbers:
        one = ledger.statements[number]
        fields = {**one.header, **one.fields}
        rows.append(
            (
                number, one.definition, one.message, one.name, fields.get("account"), one.header.get("known"),
                sides.get(one.family), fields.get("booked"), fields.get("debtor_name"), fields.get("domain"),
                fields.get("family"),
            )
        )  # fmt: skip
    names = (
        "message", "message_id", "statement_id", "account", "known", "own_indicator", "own_booked", "own_debtor_name",
        "own_domain", "own_family",
    )  # fmt: skip
    return _trimmed(pl.DataFrame(rows, schema={"statement": pl.Int64, **dict.fromkeys(names, pl.String)}, orient="row"))


def _own_account(spec: Iso20022Source) -> pl.Expr:
    if spec.side == "creditor":
        settled = pl.coalesce("creditor_account", "creditor_name")
        return pl.when(pl.col("message").str.starts_with("pacs")).then(settled).otherwise("account")
    return pl.coalesce("account", "debtor_account", "debtor_name", "own_debtor_name")


def _identifier(spec: Iso20022Source, payment: pl.Expr) -> pl.Expr:
    names = {"TxId": "transaction", "UETR": "uetr", "InstrId": "instruction", "EndToEndId": "end_to_end"}
    place = pl.concat_str(
        pl.col("message_id").fill_null(""), pl.col("statement_id").fill_null(""), "ordinal", separator="/"
    )
    entry = pl.coalesce(*spec.identifiers, place)
    of_payment = pl.coalesce(*(names[name] for name in spec.payment_identifiers), place)
    name = pl.when(payment).then(of_payment).otherwise(entry)
    return pl.when(pl.col("part") > 0).then(pl.concat_str(name, pl.lit("/"), "part")).otherwise(name)


def _channel() -> pl.Expr:
    def joined(prefix: str) -> pl.Expr:
        parts = pl.concat_str(
            f"{prefix}domain", f"{prefix}family", f"{prefix}subfamily", separator="-", ignore_nulls=True
        )
        return pl.coalesce(f"{prefix}proprietary", pl.when(parts.str.len_bytes() > 0).then(parts))

    own = pl.concat_str("own_domain", "own_family", separator="-", ignore_nulls=True)
    return pl.coalesce(joined(""), joined("part_"), pl.when(own.str.len_bytes() > 0).then(own))


def _other_side() -> pl.Expr:
    """Who is on the other side: of a credit who paid, of a debit who was paid.

    A reversal is booked on the other side, and its parties keep the roles of the payment that it takes back.
    """
    credit = pl.col("indicator") == "CRDT"
    paid = pl.when(credit != pl.col("is_reversal")).then(pl.lit("debtor")).otherwise(pl.lit("creditor"))
    return pl.when(pl.col("indicator").is_null()).then(pl.lit("creditor")).otherwise(paid)


def with_balances(entries: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Entries with the balance after each, as text: opening balance + booked entries so far, in the order of the file.

    Whether a statement's entries lead to its closing balance shows at its end; see `Ledger.is_proven`.

    Args:
        entries: some of the entries, in order.
        ledger: what was moved before this part; brought up to date.
    """
    amount = pl.col("amount").cast(pl.Float64, strict=False) * _UNITS
    sign = pl.when(pl.col("indicator") == "CRDT").then(1).when(pl.col("indicator") == "DBIT").then(-1)
    units = pl.when(amount.is_finite()).then(amount.round().cast(pl.Int64, strict=False)).fill_null(0)
    moved = entries.with_columns(__amount=units, __units=pl.when(_is_booked()).then(units * sign).fill_null(0))
    start = {number: ledger.start(number) for number in moved["statement"].unique(maintain_order=True)}
    begin = pl.col("statement").replace_strict(start, default=None, return_dtype=pl.Int64)
    balance = with_point((begin + pl.col("__units").cum_sum().over("statement")).cast(pl.String), _PLACES)
    sums = moved.group_by("statement", maintain_order=True).agg(pl.col("__units").sum(), pl.col("__amount").sum())
    for number, of_booked, of_all in sums.iter_rows():
        ledger.sums[number] = ledger.sums.get(number, 0) + of_booked
        ledger.totals[number] = ledger.totals.get(number, 0) + of_all
    return moved.with_columns(balance=pl.when(_is_booked()).then(balance)).drop("__units", "__amount")


def _is_booked() -> pl.Expr:
    return pl.col("status").fill_null("BOOK") == "BOOK"


def _not_booked() -> pl.Expr:
    """Pending and informative entries come again once they are booked: they are told, and kept out."""
    reason = pl.struct(rule=pl.lit(NOT_BOOKED), column=pl.lit("status"), value=pl.col("status"))
    return pl.when(~_is_booked()).then(reason)


def _accounts(transactions: Iterable[Part]) -> pl.DataFrame:
    wanted, like = schemas.polars_schema(schemas.ACCOUNTS), no_rows("transactions")

    def once(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.unique("account_id", keep="first", maintain_order=True)

    known = once(pl.concat([like, *(once(read_part(part, like)) for part in transactions)]))
    return known.select(
        (pl.col(name) if name in known.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in wanted.items()
    )


def _counts(statements: list[Statement], messages: pl.DataFrame) -> dict[str, int]:
    told = sum(bool(set(opening) & set(closing)) for opening, closing in map(checks.ends, statements))
    found = dict(messages["code"].value_counts().iter_rows())
    return {
        "statements": len(statements),
        "statements_with_both_balances": told,
        "statements_with_broken_balance": found.get(BALANCE_BROKEN, 0),
        "entries": sum(statement.entries for statement in statements),
        "entries_split_by_details": sum(statement.split for statement in statements),
        "entries_with_broken_details": sum(len(statement.unsplit) for statement in statements),
        **{f"findings {code}": n for code, n in sorted(found.items()) if code not in (BALANCE_BROKEN, DETAILS_BROKEN)},
    }
