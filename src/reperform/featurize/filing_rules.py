"""Rules across facts, filings and the ledger (KPI 10): balance identities, what was filed before, and the ledger.

Every rule compares two intervals: what a reported number can stand for, given its accuracy, and the other side.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import polars as pl

from reperform import taxonomy
from reperform.facts import NO_DIMENSIONS, CheckRow, as_json, interval, number

CENTS = Decimal(100)
CURRENCY = "iso4217:"
What = tuple[str, date | None, date | None, str, str]  # concept, start, end, unit, dimensions


@dataclass(frozen=True)
class Amount:
    """A reported number and the interval that it stands for."""

    value: Decimal
    low: Decimal
    high: Decimal

    @classmethod
    def reported(cls, value: Decimal, decimals: str | None) -> "Amount":
        """A number with the accuracy that it was reported at."""
        return cls(value, *interval(value, decimals))

    @classmethod
    def exact(cls, value: Decimal) -> "Amount":
        """A number that stands for itself."""
        return cls(value, value, value)

    def times(self, weight: int) -> "Amount":
        """The number with a weight."""
        low, high = sorted((self.low * weight, self.high * weight))
        return Amount(self.value * weight, low, high)

    def plus(self, other: "Amount") -> "Amount":
        """Sum of two numbers; intervals add up."""
        return Amount(self.value + other.value, self.low + other.low, self.high + other.high)

    def gap(self, other: "Amount") -> Decimal:
        """Distance between two intervals, 0 where they share a value."""
        return max(self.low - other.high, other.low - self.high, Decimal(0))


Numbers = dict[What, Amount]


@dataclass(frozen=True)
class Filed:
    """One filing with its numbers.

    Args:
        filing_id: the filing.
        entity_id: who filed it.
        form: of which form.
        period_start: first day, if known.
        period_end: last day.
        filed_at: when it came in; everything that it is compared with was known before.
        numbers: its numeric facts.
        concepts: concepts reported with a value, numeric or not.
    """

    filing_id: str
    entity_id: str
    form: str
    period_start: date | None
    period_end: date
    filed_at: datetime
    numbers: Numbers
    concepts: frozenset[str]

    @property
    def opening(self) -> date | None:
        """The day before the period."""
        return None if self.period_start is None else self.period_start - timedelta(days=1)

    @cached_property
    def currency(self) -> str | None:
        """The unit of most of its amounts; None without amounts."""
        units = sorted(what[3] for what in self.numbers if what[3].startswith(CURRENCY))
        return max(units, key=units.count) if units else None

    def plain(self, concept: str, moment: str = "period") -> tuple[What, Amount] | None:
        """A number without dimensions, for the whole period or its end, or for the day before it ("start")."""
        for what in self.numbers:
            name, start, end, _, dimensions = what
            if name != concept or dimensions != NO_DIMENSIONS:
                continue
            at_start = start is None and end == self.opening
            at_end = end == self.period_end and (start is None or self.period_start in (None, start))
            if at_start if moment == "start" else at_end:
                return what, self.numbers[what]
        return None


def filed(filings: pl.DataFrame, facts: pl.DataFrame) -> list[Filed]:
    """Filings with their numbers, in order of filed_at and filing_id."""
    numbers: dict[str, Numbers] = {}
    concepts: dict[str, set[str]] = {}
    for row in facts.iter_rows(named=True):
        if row["is_nil"] or not row["value"]:
            continue
        concepts.setdefault(row["filing_id"], set()).add(row["concept"])
        value = None if row["unit"] is None else number(row["value"])
        if value is not None:
            what = (row["concept"], row["period_start"], row["period_end"], row["unit"], row["dimensions"])
            numbers.setdefault(row["filing_id"], {})[what] = Amount.reported(value, row["decimals"])
    return [
        Filed(
            row["filing_id"],
            row["entity_id"],
            row["form"],
            row["period_start"],
            row["period_end"],
            row["filed_at"],
            numbers.get(row["filing_id"], {}),
            frozenset(concepts.get(row["filing_id"], ())),
        )
        for row in filings.sort("filed_at", "filing_id").iter_rows(named=True)
    ]


@dataclass(frozen=True)
class Part:
    """One side's part of an identity.

    Args:
        concept: what is added.
        weight: 1 or -1.
        moment: `period` for the period or its end, `start` for the day before it.
    """

    concept: str
    weight: int = 1
    moment: Literal["period", "start"] = "period"


@dataclass(frozen=True)
class Identity:
    """A total that equals a weighted sum of other lines."""

    name: str
    total: Part
    parts: tuple[Part, ...]


def balance_rows(filing: Filed, identities: Iterable[Identity]) -> Iterator[CheckRow]:
    """Identities between lines of one filing; one that lacks a line cannot be evaluated."""
    for identity in identities:
        sides = [filing.plain(part.concept, part.moment) for part in (identity.total, *identity.parts)]
        absent = [
            part.concept for part, side in zip((identity.total, *identity.parts), sides, strict=True) if side is None
        ]
        if absent:
            yield _not_evaluable(filing, "balance", identity.name, f"not reported: {', '.join(absent)}")
            continue
        found = [side for side in sides if side is not None]
        computed = Amount.exact(Decimal(0))
        for part, (_, amount) in zip(identity.parts, found[1:], strict=True):
            computed = computed.plus(amount.times(part.weight))
        yield _compared(filing, "balance", identity.name, found[0], computed)


def prior_rows(filing: Filed, earlier: Sequence[Filed]) -> Iterator[CheckRow]:
    """Numbers that filings for earlier periods stated as well: opening balances and comparative figures.

    Args:
        filing: the filing.
        earlier: filings of the same entity and form, in order of filed_at. Only those filed before this one, for a
            period that ends before this one, are compared with; of several the last one filed, as known by then.
    """
    known: dict[What, tuple[Amount, str]] = {}
    for other in earlier:
        if other.filed_at < filing.filed_at and other.period_end < filing.period_end:
            known |= {what: (amount, other.filing_id) for what, amount in other.numbers.items()}
    for what in filing.numbers.keys() & known.keys():
        amount, source = known[what]
        yield _compared(filing, "prior", what[0], (what, filing.numbers[what]), amount, against=source)


def cross_rows(filing: Filed, others: Iterable[Filed]) -> Iterator[CheckRow]:
    """Numbers that the same entity stated on another form, for the same time, unit and dimensions.

    Args:
        filing: the filing.
        others: all filings, in order of filed_at; of each other form the last version filed before this one counts.
    """
    known: dict[What, tuple[Amount, str]] = {}
    for other in others:
        is_other = other.entity_id == filing.entity_id and other.form != filing.form
        if is_other and other.filed_at < filing.filed_at:
            known |= {what: (amount, other.filing_id) for what, amount in other.numbers.items()}
    for what in filing.numbers.keys() & known.keys():
        amount, source = known[what]
        yield _compared(
            filing, "prior", f"cross-report {what[0]}", (what, filing.numbers[what]), amount, against=source
        )


def duplicate_rows(filing: Filed, contradictions: Iterable[str]) -> Iterator[CheckRow]:
    """Facts that are reported more than once: values whose intervals share nothing cannot both be true.

    Of duplicates that agree the most precise one is kept, and nothing is left to compare; so one rule stands for all
    of them, and fails once for each contradiction.
    """
    said = list(contradictions)
    for text in said:
        yield filing.filing_id, "assertion", "duplicates agree", True, False, None, None, None, as_json({"text": text})
    if not said:
        is_evaluable = bool(filing.concepts)
        satisfied = True if is_evaluable else None
        yield filing.filing_id, "assertion", "duplicates agree", is_evaluable, satisfied, None, None, None, None


def is_in_wrong_unit(filing: Filed, concept: str) -> bool:
    """Whether a line is reported in no right unit: another currency than the filing's, or an amount for a number.

    Lines that hold no number have no unit to be wrong.
    """
    units = {
        unit
        for name, start, end, unit, dimensions in filing.numbers
        if name == concept
        and dimensions == NO_DIMENSIONS
        and end == filing.period_end
        and (start is None or filing.period_start in {None, start})
    }
    return bool(units) and not any(_is_right_unit(filing, concept, unit) for unit in units)


def _is_right_unit(filing: Filed, concept: str, unit: str) -> bool:
    line = taxonomy.BY_NAME.get(concept.removeprefix(f"{taxonomy.PREFIX}:")) if filing.form == taxonomy.FORM else None
    if not unit.startswith(CURRENCY):
        return line is None or line.kind != "monetary"
    return unit == filing.currency and (line is None or line.kind == "monetary")


# Lines of the bank return that its ledger has to tell, and the rows that they cover.
Measure = Literal["number", "value", "accounts"]
OUT, IN = pl.col("direction") == "out", pl.col("direction") == "in"
CASH = pl.col("channel").is_in(taxonomy.CASH_CHANNELS)
EVERY = pl.lit(value=True)
LEDGER_LINES: dict[str, tuple[Measure, pl.Expr]] = {
    "OutgoingTransactionsNumber": ("number", OUT),
    "IncomingTransactionsNumber": ("number", IN),
    "TransactionsNumber": ("number", EVERY),
    "OutgoingTransactionsValue": ("value", OUT),
    "IncomingTransactionsValue": ("value", IN),
    "CashDepositsNumber": ("number", IN & CASH),
    "CashDepositsValue": ("value", IN & CASH),
    "LargeValueTransactionsNumber": ("number", pl.col("own_amount") >= taxonomy.LARGE_VALUE_FROM),
    "LargeValueTransactionsValue": ("value", pl.col("own_amount") >= taxonomy.LARGE_VALUE_FROM),
    "ActiveAccountsNumber": ("accounts", EVERY),
}


def ledger_rows(filing: Filed, transactions: pl.DataFrame, *, base_currency: str, edge_days: int) -> Iterator[CheckRow]:
    """Ledger totals of a return against the transactions themselves, as known when it was filed.

    Args:
        filing: a return on this project's taxonomy; other forms have no such lines.
        transactions: canonical transactions of its entity.
        base_currency: of `amount_base`.
        edge_days: the ledger has to begin and end within so many days of the period, or nothing is compared.
    """
    if filing.form != taxonomy.FORM or filing.period_start is None:
        return
    rows = _known_rows(filing, transactions)
    reason = why_not_comparable(filing, transactions, edge_days)
    for concept, (measure, covers) in LEDGER_LINES.items():
        for what, reported in stated(filing, taxonomy.qname(concept)):
            own = None if reason else in_unit(rows, what[3], base_currency)
            if own is None:
                text = reason or f"the ledger holds other currencies than {what[3]}"
                yield _not_evaluable(filing, "ledger", _ledger_rule(what), text)
                continue
            covered = own.filter(covers & channel_of(what[4]))
            computed = Amount.exact(_measured(covered, measure))
            yield _compared(filing, "ledger", _ledger_rule(what), (what, reported), computed)


def _known_rows(filing: Filed, transactions: pl.DataFrame) -> pl.DataFrame:
    begin = datetime.combine(filing.period_start or filing.period_end, time(), UTC)
    end = datetime.combine(filing.period_end + timedelta(days=1), time(), UTC)
    in_period = pl.col("booked_at").is_between(begin, end, closed="left")
    return transactions.filter(in_period & (pl.col("known_at") <= filing.filed_at))


def why_not_comparable(filing: Filed, transactions: pl.DataFrame, edge_days: int) -> str | None:
    """A ledger that covers a part of the period proves nothing."""
    known = transactions.filter(pl.col("known_at") <= filing.filed_at)
    if known.is_empty():
        return "no ledger of this entity"
    booked = known["booked_at"]
    first, last = booked.min(), booked.max()
    edge = timedelta(days=edge_days)
    begin = datetime.combine(filing.period_start or filing.period_end, time(), UTC)
    end = datetime.combine(filing.period_end, time(), UTC)
    if not isinstance(first, datetime) or not isinstance(last, datetime) or first > begin + edge or last < end - edge:
        return "the ledger does not cover the period"
    return None


def stated(filing: Filed, concept: str) -> list[tuple[What, Amount]]:
    """Every statement of a line for the period, the total and those by channel."""
    return [
        (what, amount)
        for what, amount in filing.numbers.items()
        if what[0] == concept and what[1] == filing.period_start and what[2] == filing.period_end
    ]


def in_unit(rows: pl.DataFrame, unit: str, base_currency: str) -> pl.DataFrame | None:
    """Rows with `own_amount` in the unit of the statement; None where the ledger is kept in other currencies."""
    currencies = rows["currency"].unique().to_list()
    code = unit.removeprefix("iso4217:")
    # The limit of a large transaction is in the reporting currency, also where a number is stated.
    if "iso4217:" not in unit:
        column = "amount" if len(currencies) <= 1 else "amount_base"
    elif not set(currencies) - {code}:
        column = "amount"
    elif code == base_currency:
        column = "amount_base"
    else:
        return None
    return rows.with_columns(own_amount=pl.col(column))


def channel_of(dimensions: str) -> pl.Expr:
    """The rows that a member of the channel dimension stands for."""
    if dimensions == NO_DIMENSIONS:
        return pl.lit(value=True)
    for member, channels in taxonomy.CHANNEL_MEMBERS.items():
        if f":{member}" in dimensions:
            named = [name for names in taxonomy.CHANNEL_MEMBERS.values() for name in names]
            is_other = pl.col("channel").is_null() | ~pl.col("channel").is_in(named)
            return pl.col("channel").is_in(channels).fill_null(value=False) if channels else is_other
    return pl.lit(value=False)


def _measured(rows: pl.DataFrame, measure: Measure) -> Decimal:
    if measure == "number":
        return Decimal(rows.height)
    if measure == "accounts":
        return Decimal(rows["account_id"].n_unique())
    # Cents as integers: the sum does not depend on the order of rows.
    return Decimal(int((rows["own_amount"] * 100).round().cast(pl.Int64).sum())) / CENTS


def _ledger_rule(what: What) -> str:
    return what[0] if what[4] == NO_DIMENSIONS else f"{what[0]} {what[4]}"


def _compared(
    filing: Filed, family: str, rule: str, stated: tuple[What, Amount], computed: Amount, **more: Any
) -> CheckRow:
    what, reported = stated
    gap = reported.gap(computed)
    start, end = what[1], what[2]
    detail = as_json(
        {"period": f"{start}/{end}" if start else str(end), "unit": what[3], "dimensions": what[4]} | dict(more)
    )
    values = float(reported.value), float(computed.value), float(gap)
    return filing.filing_id, family, rule, True, gap == 0, *values, detail


def _not_evaluable(filing: Filed, family: str, rule: str, reason: str) -> CheckRow:
    return filing.filing_id, family, rule, False, None, None, None, None, as_json({"reason": reason})


def restated(filing: Filed, earlier: Sequence[Filed]) -> tuple[Filed, dict[What, tuple[Amount, Amount]]] | None:
    """The version that a filing replaces, and the numbers that changed beyond their accuracy: before and after."""
    versions = [
        other for other in earlier if other.filed_at < filing.filed_at and other.period_end == filing.period_end
    ]
    if not versions:
        return None
    before = versions[-1]
    shared = before.numbers.keys() & filing.numbers.keys()
    pairs = {what: (before.numbers[what], filing.numbers[what]) for what in shared}
    return before, {what: pair for what, pair in pairs.items() if pair[0].gap(pair[1]) > 0}


def expected_by_peers(filing: Filed, others: Iterable[Filed], *, share: float, least: int) -> frozenset[str] | None:
    """Concepts that nearly all peers reported for earlier periods, as known when this filing came in.

    Args:
        filing: the filing.
        others: all filings, in order of filed_at; of each peer the last one counts.
        share: of peers that report a concept, from which on it is expected.
        least: fewer peers say nothing.
    """
    latest: Mapping[str, Filed] = {
        other.entity_id: other
        for other in others
        if other.form == filing.form
        and other.entity_id != filing.entity_id
        and other.filed_at < filing.filed_at
        and other.period_end < filing.period_end
    }
    if len(latest) < least:
        return None
    counts: dict[str, int] = {}
    for other in latest.values():
        for concept in other.concepts:
            counts[concept] = counts.get(concept, 0) + 1
    return frozenset(concept for concept, count in counts.items() if count >= share * len(latest))
