"""What the values of one column could be: numbers, moments, codes. Each finding says what speaks for it."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from reperform import iso_codes

ALMOST_ALL = 0.95
MARKS = (
    (".", ""),
    (",", ""),
    (".", ","),
    (",", "."),
    (".", " "),
    (",", " "),
    (".", "'"),
    (",", "'"),
)  # decimal and thousands mark; the plainer reading first, which wins where two fit equally
MISSING = frozenset({"null", "(null)", "n/a", "na", "nan", "none", "nil", "\\n", "-", "--", "?"})
TRUTH = frozenset({"0", "1", "true", "false", "yes", "no", "y", "n"})
DIRECTIONS = (
    ("in", "out"),
    ("c", "d"),
    ("cr", "dr"),
    ("crdt", "dbit"),
    ("credit", "debit"),
    ("h", "s"),
    ("haben", "soll"),
    ("gutschrift", "lastschrift"),
    ("+", "-"),
    ("incoming", "outgoing"),
    ("received", "sent"),
)  # texts for money in and out
MOST_CATEGORIES = 50
_LOOKS_NUMERIC = re.compile(r"[+-]?[\d.,' \u00a0\u202f_]*\d[\d.,' \u00a0\u202f_]*(?:[eE][+-]?\d{1,3})?")
_EPOCH_YEARS = (1990, 2060)
_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?P<second>:\d{2})?(?P<fraction>\.\d+)?(?P<half> ?[AaPp][Mm])?"
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}:\d{2}(?:\.\d+)?(?P<offset>Z|z|[+-]\d{2}:?\d{2})?)?")
_DATED = re.compile(
    rf"(?P<a>\d{{1,4}})(?P<mark>[./-])(?P<b>\d{{1,2}})(?P=mark)(?P<c>\d{{2,4}})(?:(?P<gap>[T ]+){_CLOCK})?"
)
_NAMED_MONTH = re.compile(rf"\d{{1,2}}(?P<mark>[ -])[A-Za-z]{{3}}(?P=mark)\d{{4}}(?:(?P<gap>[T ]+){_CLOCK})?")
_TIME_ALONE = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
_COMPACT = {6: "%y%m%d", 8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}
_PAIR = re.compile(r"[+-]?\d{1,3}\.\d+\s*(?P<mark>[,;])\s*[+-]?\d{1,3}\.\d+")
MONTHS, DAYS = 12, 31


@dataclass(frozen=True, eq=False)  # each column is itself, whatever another one holds
class Column:
    """One raw column of a sample.

    Args:
        name: as the header has it.
        values: its texts, without those that mean "no value".
        rows: how many records the sample has.
        cells: one text for each record, empty where there is no value.
    """

    name: str
    values: Sequence[str]
    rows: int
    cells: Sequence[str] = ()

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each text occurs."""
        return Counter(self.values)

    @property
    def distinct(self) -> int:
        """How many texts there are."""
        return len(self.counts)

    @property
    def is_unique(self) -> bool:
        """Whether each record has a text of its own."""
        return self.distinct == self.rows > 0

    @property
    def looks_numeric(self) -> bool:
        """Whether nearly all texts are digits and the marks that stand between them."""
        return share(_LOOKS_NUMERIC.fullmatch(v) is not None for v in self.values) >= ALMOST_ALL

    @property
    def is_category(self) -> bool:
        """Whether few texts repeat."""
        return 0 < self.distinct <= min(MOST_CATEGORIES, max(2, len(self.values) // 3))


@dataclass(frozen=True)
class Part:
    """A raw column in its part.

    Args:
        column: the raw column.
        why: what speaks for it.
    """

    column: Column
    why: str


@dataclass(frozen=True)
class Moments:
    """How the moments of a column are written.

    Args:
        format: as a map says it; empty for an ambiguous one.
        why: what speaks for it.
        needs_zone: whether the texts carry no offset.
        readings: the formats that fit equally well, where nothing decides.
        is_day: whether there is no time of day.
    """

    format: str
    why: str
    needs_zone: bool = True
    readings: tuple[str, ...] = ()
    is_day: bool = False


@dataclass(frozen=True)
class Marks:
    """Decimal and thousands marks.

    Args:
        decimal: one of `.` and `,`.
        thousands: the mark between groups of three digits, or none.
        why: what speaks for it.
        is_ambiguous: whether the other reading fits as well.
        grouped: a number with a thousands mark, or one that reads both ways.
        numeric: the columns that hold numbers by these marks.
    """

    decimal: str = "."
    thousands: str = ""
    why: str = "no number has a mark that says otherwise"
    is_ambiguous: bool = False
    grouped: str = ""
    numeric: frozenset[str] = field(default_factory=frozenset)


def share(truths: Iterable[bool]) -> float:
    """The share of truths among truths and falsehoods; 0 of none."""
    found = list(truths)
    return sum(found) / len(found) if found else 0.0


def number(text: str, decimal: str, thousands: str) -> float | None:
    """A text as a number by its marks, as strictly as ingest reads it; None if it is none."""
    plain = text.replace("\u00a0", " ").replace("\u202f", " ") if thousands == " " else text
    if thousands:
        mark, point = re.escape(thousands), re.escape(decimal)
        if re.fullmatch(rf"[+-]?\d{{1,3}}(?:{mark}\d{{3}})+(?:{point}\d*)?", plain):
            plain = plain.replace(thousands, "")
    if decimal != ".":
        if "." in plain:
            return None
        plain = plain.replace(decimal, ".", 1)
    return float(plain) if re.fullmatch(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", plain) else None


def marks(columns: Sequence[Column]) -> Marks:
    """The marks that make numbers of most columns; of two that do equally well, the plainer."""
    numeric = [column for column in columns if column.values and column.looks_numeric]
    if not numeric:
        return Marks()
    read = {pair: {c.name for c in numeric if _reads(c, pair)} for pair in MARKS}
    best = max(read, key=lambda pair: len(read[pair]))  # the first of the largest
    names = frozenset(read[best])
    decided = [v for c in numeric if c.name in names for v in c.values if _decides(v, best)]
    other = {pair for pair in MARKS if pair[0] != best[0] and len(read[pair]) == len(names)}
    marked = [v for c in numeric if c.name in names for v in c.values if re.search(r"\d[.,' \u00a0\u202f]\d", v)]
    is_ambiguous = bool(marked) and bool(other) and not decided
    if not marked and not decided:
        return Marks(numeric=names)
    said = f"{len(decided):,} values such as {decided[0]!r} read in no other way" if decided else "no value decides"
    grouped = next((v for v in marked if best[1] and best[1] in v), marked[0] if marked else "")
    return Marks(*best, said, is_ambiguous, grouped, names)


def _reads(column: Column, pair: tuple[str, str]) -> bool:
    return share([number(v, *pair) is not None for v in column.counts]) >= ALMOST_ALL


def _decides(text: str, pair: tuple[str, str]) -> bool:
    """Whether a text is a number by these marks, and by none with the other decimal mark."""
    if not re.search(r"[.,]", text) or number(text, *pair) is None:
        return False
    return all(number(text, *other) is None for other in MARKS if other[0] != pair[0])


def moments(column: Column) -> Moments | None:
    """How a column's moments are written; None if it holds none."""
    values = list(column.counts)
    if not values:
        return None
    for look in (_iso, _dated, _named_month, _epoch, _compact):
        found = look(values)
        if found is not None:
            return found
    return None


def _iso(values: Sequence[str]) -> Moments | None:
    matches = [_ISO.fullmatch(v) for v in values]
    if share([m is not None for m in matches]) < ALMOST_ALL:
        return None
    offsets = sum(m is not None and m["offset"] is not None for m in matches)
    is_day = all(len(v) == len("2025-01-31") for v in values)
    if offsets == len(values):
        return Moments("iso", f"ISO 8601 with an offset, such as {values[0]}", needs_zone=False)
    return Moments("iso", f"ISO 8601 without an offset, such as {values[0]}", is_day=is_day)


def _dated(values: Sequence[str]) -> Moments | None:
    matches = [m for m in (_DATED.fullmatch(v) for v in values) if m is not None]
    if len(matches) < ALMOST_ALL * len(values):
        return None
    mark, clock = matches[0]["mark"], _clock(matches)
    if len(matches[0]["a"]) == 4:  # noqa: PLR2004  # a year of four digits
        why = f"year, month, day, such as {values[0]}"
        return Moments(f"%Y{mark}%m{mark}%d{clock}", why, is_day=not clock)
    year = "%Y" if len(matches[0]["c"]) == 4 else "%y"  # noqa: PLR2004  # a year of four digits
    first, second = ([int(m[group]) for m in matches] for group in ("a", "b"))
    if max(*first, *second) > DAYS or min(max(first), max(second)) > MONTHS:
        return None
    day_first, month_first = (f"{one}{mark}{year}{clock}" for one in (f"%d{mark}%m", f"%m{mark}%d"))
    if max(first) > MONTHS:
        why = f"day first, because {sum(n > MONTHS for n in first):,} values have a first number above 12"
        return Moments(day_first, why, is_day=not clock)
    if max(second) > MONTHS:
        why = f"month first, because {sum(n > MONTHS for n in second):,} values have a second number above 12"
        return Moments(month_first, why, is_day=not clock)
    why = f"ambiguous: no value such as {values[0]} has a number above 12 in its first two places"
    return Moments("", why, readings=(day_first, month_first), is_day=not clock)


def _clock(matches: Sequence[re.Match[str]]) -> str:
    """The pattern of the time of day."""
    one = matches[0]
    if one["hour"] is None:
        return ""
    hour = "%I" if one["half"] else "%H"
    fraction = "%.f" if any(m["fraction"] for m in matches) else ""
    half = (" %p" if one["half"].startswith(" ") else "%p") if one["half"] else ""
    return f"{one['gap']}{hour}:%M{':%S' if one['second'] else ''}{fraction}{half}"


def _named_month(values: Sequence[str]) -> Moments | None:
    matches = [m for m in (_NAMED_MONTH.fullmatch(v) for v in values) if m is not None]
    if len(matches) < ALMOST_ALL * len(values):
        return None
    mark, clock = matches[0]["mark"], _clock(matches)
    return Moments(f"%d{mark}%b{mark}%Y{clock}", f"months by name, such as {values[0]}", is_day=not clock)


def _epoch(values: Sequence[str]) -> Moments | None:
    for name, digits, per_second in (("epoch_ms", 13, 1000), ("epoch_s", 10, 1)):
        if all(len(v) == digits and v.isdigit() for v in values):
            years = [datetime.fromtimestamp(int(v) / per_second, UTC).year for v in (min(values), max(values))]
            if _EPOCH_YEARS[0] <= years[0] and years[1] <= _EPOCH_YEARS[1]:
                unit = "milliseconds" if per_second > 1 else "seconds"
                why = f"{digits} digits: {unit} since 1970, from {years[0]} to {years[1]}"
                return Moments(name, why, needs_zone=False)
    return None


def _compact(values: Sequence[str]) -> Moments | None:
    lengths = {len(v) for v in values}
    pattern = _COMPACT.get(lengths.pop()) if len(lengths) == 1 else None
    if pattern is None or not all(_is_date(v, pattern) for v in values):
        return None
    return Moments(pattern, f"digits alone, such as {values[0]}, are dates", is_day=len(values[0]) <= len("20250131"))


def _is_date(text: str, pattern: str) -> bool:
    if not text.isdigit():
        return False
    try:
        year = datetime.strptime(text, pattern).replace(tzinfo=UTC).year
    except ValueError:
        return False
    return _EPOCH_YEARS[0] <= year <= _EPOCH_YEARS[1]


def is_time_of_day(column: Column) -> bool:
    """Whether a column holds times of day without a day."""
    return bool(column.values) and all(_TIME_ALONE.fullmatch(v) for v in column.counts)


def currency_share(column: Column) -> float:
    """The share of values that are codes of ISO 4217."""
    return share([v in iso_codes.CURRENCIES for v in column.values])


def country_share(column: Column) -> float:
    """The share of values that are codes of ISO 3166-1."""
    return share([v in iso_codes.COUNTRIES for v in column.values])


def direction_words(column: Column) -> tuple[list[str], list[str]] | None:
    """The texts of a column for money in and out; None if its texts are no such pair."""
    texts = list(column.counts)
    for into, out in DIRECTIONS:
        if texts and {t.lower() for t in texts} <= {into, out}:
            return [t for t in texts if t.lower() == into] or [into], [t for t in texts if t.lower() == out] or [out]
    return None


def coordinate_mark(column: Column) -> str | None:
    """The mark between latitude and longitude, where each text holds both."""
    matches = [_PAIR.fullmatch(v) for v in column.counts]
    found = {m["mark"] for m in matches if m is not None}
    return found.pop() if all(matches) and len(found) == 1 else None


def is_truth(column: Column) -> bool:
    """Whether each text is a truth value, and both occur or could."""
    return bool(column.values) and {v.lower() for v in column.counts} <= TRUTH
