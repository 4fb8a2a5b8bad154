"""The bridge from ledger to filing (KPI 10): which transactions, or which habit, would explain that totals differ.

For every ledger line of a return that does not agree with its transactions, hypotheses are tried in turn: records that
arrived too late, a cut-off that is not midnight, a day or a channel left out, a payment left out or counted twice,
duplicates in the ledger, a wrong unit or sign. Each is judged by what would be left of the gap, and by how many of the
filing's failed lines it would mend at once. It is a reading aid for a case, and no feature: it may use records that
became known only after the filing, and says so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import schemas, taxonomy
from reperform.facts import NO_DIMENSIONS
from reperform.featurize import filing_rules
from reperform.featurize.filing_rules import Amount, Filed, Measure, What

CENTS = Decimal(100)
EDGE = timedelta(days=2)  # how far around the period records are looked at
SHIFT_HOURS = tuple(h for h in range(-12, 15) if h)  # offsets of time zones
UNITS = (1000, 100, 1_000_000)
MOST_IDS = 5
MOST_SET = 3  # payments that are looked for together
MOST_PAYMENTS = 60  # of a day, among which sets are looked for
MOST_ALIKE = 3  # payments of the same amount: more prove nothing
NONE: NDArray[np.int64] = np.zeros(0, np.int64)
FLOWS = frozenset(taxonomy.qname(f"{side}TransactionsValue") for side in ("Incoming", "Outgoing"))
MOST_EXPLANATIONS = 3
LEFT_AT_MOST = Decimal("0.95")  # of a gap by what explains a part of it

Mask: TypeAlias = NDArray[np.bool_]
I64: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Near:
    """Records of the entity in and around the period, in order of time.

    Args:
        rows: canonical transactions.
        counted: those that the ledger's totals count: of the period, and known when the filing came in.
        in_period: those of the period.
        known: those that were known when the filing came in.
        day: date of each.
        account: code of each account.
    """

    rows: pl.DataFrame
    counted: Mask
    in_period: Mask
    known: Mask
    day: NDArray[np.datetime64]
    account: I64

    def of_day(self, day: date) -> Mask:
        """Records of a day that were known."""
        return np.asarray((self.day == np.datetime64(day)) & self.known)


@dataclass(frozen=True)
class Line:
    """A stated total that differs from the ledger.

    Args:
        what: what is stated.
        reported: the number, with its accuracy.
        measure: how it is counted.
        covers: the records that it is about.
        cents: their amounts in the line's unit, hundredths.
        ledger: what the ledger says.
    """

    what: What
    reported: Amount
    measure: Measure
    covers: Mask
    cents: I64
    ledger: Decimal

    @property
    def gap(self) -> Decimal:
        """Filed less ledger."""
        return self.reported.value - self.ledger

    @property
    def leeway(self) -> Decimal:
        """What a value may be off where it was made of rounded parts: half a unit of its accuracy more."""
        return (self.reported.high - self.reported.low) / 2 if self.measure == "value" else Decimal(0)

    def changed(self, near: Near, rows: I64, signs: I64) -> Decimal:
        """The ledger's total if some records counted once more, or not at all."""
        hit = self.covers[rows]
        if self.measure == "number":
            return self.ledger + int(signs[hit].sum())
        if self.measure == "value":
            return self.ledger + Decimal(int((signs * self.cents[rows])[hit].sum())) / CENTS
        weight = near.counted.astype(np.int64)
        weight[rows] += signs
        return Decimal(len(np.unique(near.account[self.covers & (weight > 0)])))


@dataclass(frozen=True)
class Hypothesis:
    """What may have happened.

    Args:
        name: in a word or two.
        detail: in a sentence.
        rows: records concerned, as positions in `Near`.
        signs: for each, 1 where the filing would count it once more than the ledger does, -1 where it leaves it out.
        day: the day concerned.
        scale: factor by which filed numbers would have to be multiplied.
        concepts: lines that it is about, where it is about no records.
        may_leave: whether it says something although a part of the gap is left.
    """

    name: str
    detail: str
    rows: I64 = field(default_factory=lambda: NONE)
    signs: I64 = field(default_factory=lambda: NONE)
    day: date | None = None
    scale: Decimal | None = None
    concepts: frozenset[str] = frozenset()
    may_leave: bool = False

    @classmethod
    def of_rows(cls, name: str, detail: str, rows: I64, sign: int, **more: Any) -> "Hypothesis":
        """The same sign for all records."""
        return cls(name, detail, rows, np.full(len(rows), sign), **more)

    def left(self, line: Line, near: Near) -> tuple[Decimal, Decimal]:
        """What would be left of a line's gap beyond its accuracy, and the amount that is explained."""
        if self.concepts:
            return (Decimal(0), line.gap) if line.what[0] in self.concepts else (abs(line.gap), Decimal(0))
        if self.scale is None:
            total = line.changed(near, self.rows, self.signs)
            left = max(line.reported.gap(Amount.exact(total)) - line.leeway, Decimal(0))
            return left, total - line.ledger
        if self.scale > 0 and not line.what[3].startswith("iso4217:"):
            return abs(line.gap), Decimal(0)
        low, high = sorted((line.reported.low * self.scale, line.reported.high * self.scale))
        left = Amount(line.reported.value * self.scale, low, high).gap(Amount.exact(line.ledger))
        return left, line.gap if left == 0 else Decimal(0)


def filing_bridge(
    filings: pl.DataFrame, facts: pl.DataFrame, transactions: pl.DataFrame, *, base_currency: str, edge_days: int
) -> pl.DataFrame:
    """Explanations of every gap between a return and its ledger, the best first.

    Args:
        filings: as `schemas.FILINGS`.
        facts: as `schemas.FACTS`.
        transactions: as `schemas.TRANSACTIONS`.
        base_currency: of `amount_base`.
        edge_days: the ledger has to begin and end within so many days of the period.

    Returns:
        `schemas.FILING_BRIDGE`, in order of (filed_at, filing_id, concept, dimensions, rank). A line without
        explanation has one row that says so. `gap` and `amount_explained` are filed less ledger, in the line's unit.
    """
    ledgers = {str(key[0]): part for key, part in transactions.partition_by("entity_id", as_dict=True).items()}
    rows: list[dict[str, Any]] = []
    for filing in filing_rules.filed(filings, facts):
        own = ledgers.get(filing.entity_id, transactions.clear())
        if filing.form == taxonomy.FORM and filing.period_start is not None:
            rows += _explained(filing, own, base_currency, edge_days)
    return pl.DataFrame(rows, schema=schemas.FILING_BRIDGE, orient="row")


def _explained(filing: Filed, own: pl.DataFrame, base_currency: str, edge_days: int) -> Iterator[dict[str, Any]]:
    if filing_rules.why_not_comparable(filing, own, edge_days):
        return
    near = _near(filing, own)
    lines = _failed(filing, near, base_currency)
    hypotheses = [each for make in HYPOTHESES for each in make(filing, near, lines)] if lines else []
    judged = [_mended(each, near, lines) for each in hypotheses]
    kept = [(each, mends) for each, mends in zip(hypotheses, judged, strict=True) if mends or each.may_leave]
    for line in lines:
        found = _ranked(line, near, kept)
        stated = {
            "filing_id": filing.filing_id, "entity_id": filing.entity_id, "filed_at": filing.filed_at,
            "concept": line.what[0], "dimensions": line.what[4], "unit": line.what[3],
            "filed": float(line.reported.value), "ledger": float(line.ledger), "gap": float(line.gap),
            "lines_failed": len(lines),
        }  # fmt: skip
        if not found:
            yield stated | _unexplained()
        for rank, (each, amount, fixes) in enumerate(found[:MOST_EXPLANATIONS], start=1):
            yield stated | {"rank": rank, "lines_explained": fixes} | _told(each, near, line, amount)


def _mended(each: Hypothesis, near: Near, lines: Sequence[Line]) -> int:
    """Lines that a hypothesis mends; none if it mends numbers alone: one of hundreds of days has that many records."""
    mends = [line for line in lines if each.left(line, near)[0] == 0]
    values = [line for line in lines if line.measure == "value"]
    return len(mends) if not values or any(line.measure == "value" for line in mends) else 0


def _ranked(
    line: Line, near: Near, hypotheses: Sequence[tuple[Hypothesis, int]]
) -> list[tuple[Hypothesis, Decimal, int]]:
    """Hypotheses that explain a line's gap: those that leave nothing first, then by how many lines they mend."""
    judged = []
    for place, (each, mends) in enumerate(hypotheses):
        left, amount = each.left(line, near)
        smaller = abs(line.gap - amount) < LEFT_AT_MOST * abs(line.gap)
        if amount and (left == 0 or (each.may_leave and smaller)):
            judged.append(((left > 0, -mends, left, len(each.rows), place), each, amount, mends))
    return [(each, amount, mends) for _, each, amount, mends in sorted(judged, key=lambda one: one[0])]


def _told(each: Hypothesis, near: Near, line: Line, amount: Decimal) -> dict[str, Any]:
    rows = each.rows[line.covers[each.rows]]
    is_all = each.left(line, near)[0] == 0
    return {
        "explanation": each.name,
        "detail": each.detail,
        "day": each.day,
        "n_transactions": len(rows),
        "transaction_ids": ", ".join(near.rows["transaction_id"].gather(rows[:MOST_IDS])),
        "amount_explained": float(amount),
        "share_explained": 1.0 if is_all else 1 - float(abs(line.gap - amount) / abs(line.gap)),
        "is_known_at_filing": bool(near.known[rows].all()),
    }


def _unexplained() -> dict[str, Any]:
    return {
        "rank": 1, "explanation": "unexplained", "detail": "no explanation that was tried fits", "day": None,
        "n_transactions": 0, "transaction_ids": "", "amount_explained": 0.0, "share_explained": 0.0,
        "lines_explained": 0, "is_known_at_filing": True,
    }  # fmt: skip


def _near(filing: Filed, own: pl.DataFrame) -> Near:
    begin, end = period_of(filing)
    rows = own.filter(pl.col("booked_at").is_between(begin - EDGE, end + EDGE, closed="left"))
    rows = rows.sort("booked_at", "transaction_id")
    in_period = rows["booked_at"].is_between(begin, end, closed="left").to_numpy()
    known = (rows["known_at"] <= filing.filed_at).to_numpy()
    account = (rows["account_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    return Near(rows, in_period & known, in_period, known, rows["booked_at"].dt.date().to_numpy(), account)


def period_of(filing: Filed) -> tuple[datetime, datetime]:
    """First moment of a filing's period, and the first one after it (UTC)."""
    first = filing.period_start or filing.period_end
    return tuple(datetime.combine(day, time(), UTC) for day in (first, filing.period_end + timedelta(days=1)))  # type: ignore[return-value]  # two of them


def _failed(filing: Filed, near: Near, base_currency: str) -> list[Line]:
    """Stated totals that differ from the ledger beyond their accuracy."""
    found = []
    for concept, (measure, covers) in filing_rules.LEDGER_LINES.items():
        for what, reported in filing_rules.stated(filing, taxonomy.qname(concept)):
            own = filing_rules.in_unit(near.rows, what[3], base_currency)
            if own is None:
                continue
            covered = covers & filing_rules.channel_of(what[4])
            hit = own.with_columns(mask=covered.fill_null(value=False))["mask"].to_numpy()
            cents = (own["own_amount"] * 100).round().cast(pl.Int64).to_numpy()
            counted = hit & near.counted
            ledger = _total(measure, cents[counted], near.account[counted])
            if reported.gap(Amount.exact(ledger)) > 0:
                found.append(Line(what, reported, measure, hit, cents, ledger))
    return sorted(found, key=lambda line: (line.what[0], line.what[4], line.what[3]))


def _total(measure: Measure, cents: I64, accounts: I64) -> Decimal:
    if measure == "number":
        return Decimal(len(cents))
    if measure == "accounts":
        return Decimal(len(np.unique(accounts)))
    return Decimal(int(cents.sum())) / CENTS


# Hypotheses, in order of how often each is the reason.


def late_records(filing: Filed, near: Near, _lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """The filer knew records that reached us later, or did not know those that came in after the period."""
    late = np.flatnonzero(near.in_period & ~near.known)
    if len(late):
        yield Hypothesis.of_rows(
            "late records", "the filing counts records of the period that arrived after it was filed", late, 1,
            may_leave=True,
        )  # fmt: skip
    after = (near.rows["known_at"] >= period_of(filing)[1]).to_numpy()
    tardy = np.flatnonzero(near.counted & after)
    if len(tardy):
        yield Hypothesis.of_rows(
            "late records", "the filing leaves out records of the period that arrived after its end", tardy, -1,
            may_leave=True,
        )  # fmt: skip


def cut_off(filing: Filed, near: Near, lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """Records of the days on either side of the period's ends that were counted in the neighbouring period."""
    first, last = period_of(filing)[0].date(), filing.period_end
    sides = (
        (last, -1, True, "counts the last payments of the period in the next one"),
        (last + timedelta(days=1), 1, False, "counts the first payments of the day after the period"),
        (first - timedelta(days=1), 1, True, "counts the last payments of the day before the period"),
        (first, -1, False, "counts the first payments of the period in the one before"),
    )
    for day, sign, from_the_end, text in sides:
        there = np.flatnonzero(near.of_day(day))
        for line in lines:
            rows = _those_that_fit(line, there, sign, from_the_end=from_the_end)
            if rows is not None:
                yield Hypothesis.of_rows("cut-off", f"the filing {text}", rows, sign, day=day)


def _those_that_fit(line: Line, there: I64, sign: int, *, from_the_end: bool) -> I64 | None:
    """The first or last payments of a day whose sum is the gap, or a few of its payments; None where none are."""
    rows = there[line.covers[there]]
    rows = rows[::-1] if from_the_end else rows
    if not len(rows) or line.measure != "value" or (line.gap > 0) != (sign > 0):
        return None
    sums = np.cumsum(line.cents[rows])
    fits = np.flatnonzero(_is_gap(line, sums))
    if len(fits):
        return np.sort(rows[: fits[0] + 1])
    few = rows[:MOST_PAYMENTS]
    for size in range(1, MOST_SET + 1):
        sets = np.array(list(combinations(range(len(few)), size)), np.int64).reshape(-1, size)
        hits = np.flatnonzero(_is_gap(line, line.cents[few][sets].sum(axis=1)))
        if len(hits):
            return np.sort(few[sets[hits[0]]])  # of several the one nearest to the end of the period
    return None


def _is_gap(line: Line, cents: I64) -> Mask:
    """Sums (hundredths) that would close the gap within the line's accuracy."""
    low, high = ((bound - line.ledger) * CENTS for bound in (line.reported.low, line.reported.high))
    size_low, size_high = (low, high) if line.gap > 0 else (-high, -low)
    leeway = line.leeway * CENTS
    return np.asarray((cents >= float(size_low - leeway)) & (cents <= float(size_high + leeway)))


def other_clock(filing: Filed, near: Near, _lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """The period by the clock of another time zone."""
    begin, end = period_of(filing)
    booked = near.rows["booked_at"]
    for hours in SHIFT_HOURS:
        shift = timedelta(hours=hours)
        inside = booked.is_between(begin - shift, end - shift, closed="left").to_numpy() & near.known
        rows = np.flatnonzero(inside != near.counted)
        if len(rows):
            text = f"the filing's days begin {-hours:+d} hours from midnight UTC"
            yield Hypothesis("other clock", text, rows, np.where(inside[rows], 1, -1))


def whole_days(filing: Filed, near: Near, lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """A day that is missing in the filing, or counted twice."""
    first, last = period_of(filing)[0].date(), filing.period_end
    signs = sorted({1 if line.gap > 0 else -1 for line in lines})
    for offset in range((last - first).days + 1):
        day = first + timedelta(days=offset)
        rows = np.flatnonzero(near.of_day(day) & near.counted)
        for sign in signs if len(rows) else ():
            name = "day counted twice" if sign > 0 else "missing day"
            yield Hypothesis.of_rows(name, f"all records of {day}", rows, sign, day=day)


def whole_channels(_filing: Filed, near: Near, _lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """A channel that the filing leaves out."""
    channels = near.rows["channel"].fill_null("none")
    for channel in sorted(channels.unique()):
        rows = np.flatnonzero((channels == channel).to_numpy() & near.counted)
        if 0 < len(rows) < near.counted.sum():
            yield Hypothesis.of_rows("missing channel", f"all records of channel {channel}", rows, -1)


def single_payments(_filing: Filed, near: Near, lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """One payment that is left out, or counted twice; nothing where many are of that amount."""
    for line in lines:
        if line.measure != "value":
            continue
        rows = np.flatnonzero(near.counted & line.covers)
        alike = rows[_is_gap(line, line.cents[rows])]
        name, sign = ("payment counted twice", 1) if line.gap > 0 else ("missing payment", -1)
        if 0 < len(alike) <= MOST_ALIKE:
            day = near.day[alike[0]].astype(date)
            text = f"a payment of {day} has the size of the gap" + (
                f", the first of {len(alike)} of this size" if len(alike) > 1 else ""
            )
            yield Hypothesis.of_rows(name, text, alike[:1], sign, day=day)


def duplicates(_filing: Filed, near: Near, _lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """Records of the ledger that look like another one: same account, other side, direction, amount and moment."""
    same = ["account_id", "counterparty_id", "direction", "amount", "currency", "booked_at"]
    again = (pl.int_range(pl.len()).over(same) > 0).alias("again")
    rows = np.flatnonzero(near.rows.select(again)["again"].to_numpy() & near.counted)
    if len(rows):
        yield Hypothesis.of_rows("duplicates", "the ledger holds payments twice that the filing counts once", rows, -1)


def wrong_unit(_filing: Filed, _near_rows: Near, _lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """Thousands for units, or the opposite; cents; millions."""
    for factor in UNITS:
        yield Hypothesis("unit", f"filed {factor:,} times too small", scale=Decimal(factor))
        yield Hypothesis("unit", f"filed {factor:,} times too large", scale=1 / Decimal(factor))


def wrong_sign(_filing: Filed, _near_rows: Near, _lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """The opposite sign."""
    yield Hypothesis("sign", "filed with the opposite sign", scale=Decimal(-1))


def both_sides_alike(_filing: Filed, _near_rows: Near, lines: Sequence[Line]) -> Iterator[Hypothesis]:
    """The same amount on either side, so that deposits still roll forward."""
    flows = {line.what[0]: line for line in lines if line.what[0] in FLOWS and line.what[4] == NO_DIMENSIONS}
    if len(flows) == len(FLOWS):
        one, other = flows.values()
        if abs(one.gap - other.gap) <= 1 + one.leeway + other.leeway:
            yield Hypothesis(
                "both sides alike",
                "incoming and outgoing value differ from the ledger by the same amount, so that deposits still roll "
                "forward: payments netted, or left out on both sides",
                concepts=FLOWS,
            )


HYPOTHESES: tuple[Callable[[Filed, Near, Sequence[Line]], Iterator[Hypothesis]], ...] = (
    wrong_unit,
    wrong_sign,
    late_records,
    cut_off,
    duplicates,
    other_clock,
    whole_days,
    whole_channels,
    single_payments,
    both_sides_alike,
)
