"""Which raw column plays which part in a transaction: by what it is called, and by what its values are."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from reperform.sources import balances
from reperform.sources.layout import Layout
from reperform.sources.values import (
    ALMOST_ALL,
    Column,
    Marks,
    Moments,
    Part,
    coordinate_mark,
    country_share,
    currency_share,
    direction_words,
    is_time_of_day,
    is_truth,
    marks,
    moments,
    number,
    share,
)

# What columns are called, in English, German, French and Spanish; patterns over the parts of a name, best first.
CALLED: dict[str, tuple[str, ...]] = {
    "transaction_id": (
        r"(?:trans(?:action)?|tx|txn|payment|booking|entry|ntry)_(?:id|ref|reference|num|number|no|key)",
        r"id|ref|reference|uetr|buchungsnummer|belegnummer|referenz|referencia|row_id|uuid|end_to_end_id",
        r".*(?:_id|_ref|reference|nummer)",
    ),
    "account_id": (
        r"account|acct|account_(?:id|number|no)|konto|kontonummer|konto_nr|iban|compte|cuenta|acc|account_key",
        r"cc_num|card|card_(?:id|number|no)|pan|karte|kartennummer",
        r"(?:sender|from|orig|payer|debtor|name_orig|originator|source)(?:_.*)?",
        r"customer|customer_id|client|client_id|kunde|kundennummer|user|user_id",
    ),
    "counterparty_id": (
        r"account_2|iban_2",
        r"(?:counter|gegen|other|contra).*|peer|partner(?:_.*)?",
        r"(?:receiver|recipient|to|dest|target|payee|creditor|beneficiary|empfaenger|empfanger|name_dest|beneficiaire)(?:_.*)?",
        r"merchant(?:_id|_name)?|terminal(?:_id)?|shop|haendler|handler|commerce",
    ),
    "known_at": (
        r"(?:received|receipt|known|got|rcv|arriv|eingang|eingegangen|import|load|ingest|recorded|erfasst).*",
    ),
    "booked_at": (
        r"(?:booked|booking|posted|posting|buchung|buchungstag|comptabilisation).*",
        r".*(?:datetime|date_time|timestamp)|when|ts(?:_.*)?",
        r".*(?:date|datum|fecha|time|zeit|step|day|month|hour)",
    ),
    "balance_after": (r".*(?:new|after).*bal.*|.*bal.*(?:new|after).*", r"(?:balance|saldo|solde|bal)(?:_.*)?"),
    "debit": (r"debit(?:_.*)?|soll|belastung|withdrawal.*|paid_out|money_out|cargo|.*_debit",),
    "credit": (r"credit(?:_.*)?|haben|gutschrift|deposit.*|paid_in|money_in|abono|.*_credit",),
    "amount": (
        r"amount|amt|betrag|montant|importe|umsatz",
        r".*(?:amount|amt|betrag).*paid|amount_paid",
        r".*(?:amount|amt|betrag|minor_units|cents)|(?:amount|amt|betrag)_.*|minor_units",
        r"value|wert|sum|total|price|valor",
    ),
    "direction": (r"direction|dc|d_c|cr_dr|dr_cr|debit_credit|soll_haben|sign|side|cdt_dbt_ind|type|in_out|sh",),
    "currency": (r".*(?:currency|curr|ccy|cur|wahrung|waehrung|devise|divisa|moneda).*",),
    "channel": (
        r"channel|kanal|chan|via|canal|(?:payment|transaction|tx|txn)_(?:format|type|method|channel)",
        r"type|category|method|mcc|zahlungsart|art|kind",
    ),
    "country": (r".*(?:country|land|ctry|pays|pais)",),
    "latitude": (r"(?:merch|merchant|terminal|shop|pos)_(?:lat|latitude)", r"lat|latitude|breite|breitengrad"),
    "longitude": (
        r"(?:merch|merchant|terminal|shop|pos)_(?:lon|long|lng|longitude)",
        r"lon|long|lng|longitude|lange|laenge|langengrad",
    ),
    "label": (
        r"is_fraud|is_laundering|is_anomaly|fraud|fraud_bool|tx_fraud|class|label|target|laundering|sar|suspicious|betrug|fraude",
    ),
    "typology": (r".*(?:scenario|typology)|(?:laundering|fraud|anomaly|aml)_type|typologie",),
}
PERSONAL = re.compile(r"(?:.*_)?(?:dob|birth.*|geburt.*)")
OLD_BALANCE = re.compile(r".*(?:old|before|opening).*")


@dataclass
class Parts:
    """Which column plays which part.

    Args:
        layout: of the file.
        marks: of its numbers.
        times: columns of moments, with how they are written.
        found: canonical column to raw column.
        direction_words: texts of the direction column for in and out.
        coordinates: the mark in a column that holds latitude and longitude.
        day_and_time: a column of days and one of times of day that belong together.
        negative: what a negative amount means.
        balances: what the balances say about the direction.
    """

    layout: Layout
    marks: Marks
    times: dict[str, Moments]
    found: dict[str, Part] = field(default_factory=dict)
    direction_words: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    coordinates: str = ""
    day_and_time: tuple[Column, Column] | None = None
    negative: str = "out"
    balances: str = ""

    def numbers(self, column: Column) -> list[float]:
        """A column's values as numbers, by the file's marks."""
        read = (number(v, self.marks.decimal, self.marks.thousands) for v in column.values)
        return [value for value in read if value is not None]

    @property
    def used(self) -> set[str]:
        """Names of the raw columns that have a part."""
        more = {column.name for column in self.day_and_time} if self.day_and_time else set()
        return {part.column.name for part in self.found.values()} | more


def called(name: str) -> str:
    """A column's name in plain parts: `Währung` is `wahrung`, `nameOrig` is `name_orig`."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    plain = unicodedata.normalize("NFKD", split).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def rank(column: Column, part: str) -> int | None:
    """How well a column's name fits a part: 0 is best, None is not at all."""
    name = called(column.name)
    return next((place for place, pattern in enumerate(CALLED[part]) if re.fullmatch(pattern, name)), None)


def of(layout: Layout) -> Parts:
    """The parts of all columns that have one."""
    times = {c.name: found for c in layout.columns if (found := moments(c)) is not None}
    timeless = [c for c in layout.columns if c.name not in times]
    parts = Parts(layout, marks(timeless), times)
    for find in (_label, _moments, _places, _amounts, _codes, _identifiers, _texts):
        find(parts)
    balances.weigh(parts)
    return parts


def _free(parts: Parts) -> list[Column]:
    return [c for c in parts.layout.columns if c.name not in parts.used and c.values]


def _best(
    parts: Parts, part: str, fits: Callable[[Column], bool], columns: Iterable[Column] | None = None
) -> Column | None:
    """The free column whose name fits a part best, among those whose values fit."""
    named = [(place, c) for c in (columns or _free(parts)) if (place := rank(c, part)) is not None and fits(c)]
    return min(named, key=lambda pair: pair[0])[1] if named else None


def _take(parts: Parts, part: str, column: Column | None, why: str) -> None:
    if column is not None:
        parts.found[part] = Part(column, why)


def _label(parts: Parts) -> None:
    label = _best(parts, "label", is_truth)
    if label is None:
        return
    positive = sum(v.lower() in {"1", "true", "yes", "y"} for v in label.values)
    _take(parts, "label", label, f"truth values, {positive:,} of {len(label.values):,} true")
    typology = _best(parts, "typology", lambda c: c.is_category)
    if typology is not None:
        _take(parts, "typology", typology, f"{typology.distinct} texts")


def _moments(parts: Parts) -> None:
    moving = [c for c in _free(parts) if c.name in parts.times and not PERSONAL.fullmatch(called(c.name))]
    clocks = [c for c in _free(parts) if is_time_of_day(c)]
    days = [c for c in moving if parts.times[c.name].is_day]
    if clocks and len(days) == len(moving) == 1:
        parts.day_and_time = (days[0], clocks[0])
        return
    known = _best(parts, "known_at", lambda c: c in moving)
    rest = [c for c in moving if c is not known]
    booked = _best(parts, "booked_at", lambda c: c in rest) or (rest[0] if rest else None)
    if booked is None:
        booked = known or _best(parts, "booked_at", lambda c: _counts_steps(parts, c))
        known = None
    for part, column in (("booked_at", booked), ("known_at", known)):
        if column is not None:
            found = parts.times.get(column.name)
            _take(parts, part, column, found.why if found else "whole numbers that count steps of time")


def _counts_steps(parts: Parts, column: Column) -> bool:
    numbers = parts.numbers(column)
    return len(numbers) == len(column.values) > 0 and all(n >= 0 and n == int(n) for n in numbers)


def _places(parts: Parts) -> None:
    for column in _free(parts):
        mark = coordinate_mark(column)
        if mark is not None and "latitude" not in parts.found:
            parts.coordinates = mark
            both = f"two numbers around {mark!r}, the first within 90, the second within 180"
            _take(parts, "latitude", column, both)
            _take(parts, "longitude", column, both)
    if parts.coordinates:
        return
    for part, limit in (("latitude", 90), ("longitude", 180)):
        placed = [c for c in _free(parts) if _within(parts, c, limit)]
        found = _best(parts, part, placed.__contains__)
        if found is not None:
            numbers = parts.numbers(found)
            _take(parts, part, found, f"numbers from {min(numbers):g} to {max(numbers):g}")


def _within(parts: Parts, column: Column, limit: int) -> bool:
    numbers = parts.numbers(column)
    return len(numbers) == len(column.values) and all(abs(n) <= limit for n in numbers)


def _is_number(parts: Parts, column: Column) -> bool:
    return (
        share([number(v, parts.marks.decimal, parts.marks.thousands) is not None for v in column.values]) >= ALMOST_ALL
    )


def _amounts(parts: Parts) -> None:
    numeric = [c for c in _free(parts) if _is_number(parts, c)]
    balance = _best(parts, "balance_after", lambda c: c in numeric and not OLD_BALANCE.fullmatch(called(c.name)))
    if balance is not None:
        _take(parts, "balance_after", balance, "numbers, and its name says balance")
    debit, credit = (_best(parts, part, lambda c: c in numeric) for part in ("debit", "credit"))
    if debit and credit and len(debit.values) + len(credit.values) <= parts.layout.rows:
        for part, column, other in (("debit", debit, "credit"), ("credit", credit, "debit")):
            _take(
                parts,
                part,
                column,
                f"filled in {len(column.values):,} of {parts.layout.rows:,} records, {other} elsewhere",
            )
        return
    amount = _best(parts, "amount", lambda c: c in numeric)
    if amount is not None:
        negative = sum(n < 0 for n in parts.numbers(amount))
        _take(parts, "amount", amount, f"numbers, {negative:,} of {len(amount.values):,} negative")
        if not negative:
            _direction(parts)


def _direction(parts: Parts) -> None:
    pairs = [
        c for c in _free(parts) if direction_words(c) is not None and (c.distinct > 1 or rank(c, "direction") == 0)
    ]
    column = _best(parts, "direction", lambda c: c in pairs) or next((c for c in pairs if not is_truth(c)), None)
    words = direction_words(column) if column is not None else None
    if column is not None and words is not None:
        parts.direction_words = words
        _take(parts, "direction", column, f"every text is one of {', '.join(column.counts)}")


def _codes(parts: Parts) -> None:
    for part, fits, said in (
        ("currency", currency_share, "ISO 4217"),
        ("country", country_share, "ISO 3166-1"),
    ):
        coded = [c for c in _free(parts) if fits(c) >= ALMOST_ALL]
        column = _best(parts, part, coded.__contains__) or next(iter(coded), None)
        if column is not None:
            _take(
                parts, part, column, f"{fits(column):.0%} of the values are codes of {said}, such as {column.values[0]}"
            )


def _identifiers(parts: Parts) -> None:
    texts = [c for c in _free(parts) if not _has_fraction(parts, c) and c.name not in parts.times]
    unique = [c for c in texts if c.is_unique]
    column = _best(parts, "transaction_id", lambda c: c in unique) or next(
        (c for c in unique if not any(rank(c, part) is not None for part in ("account_id", "counterparty_id"))), None
    )
    if column is not None:
        _take(parts, "transaction_id", column, f"all {parts.layout.rows:,} values are different{_shape(column)}")
    for part in ("counterparty_id", "account_id"):
        fitting = [c for c in texts if c.distinct > 1 or rank(c, part) == 0]
        column = _best(parts, part, fitting.__contains__)
        if column is not None:
            given = f"{column.distinct:,} different in {len(column.values):,} values{_shape(column)}"
            _take(parts, part, column, given)


def _shape(column: Column) -> str:
    lengths = {len(v) for v in column.counts}
    kind = "digits" if all(v.isdigit() for v in column.counts) else "characters"
    return f", {lengths.pop()} {kind} each" if len(lengths) == 1 else ""


def _has_fraction(parts: Parts, column: Column) -> bool:
    return _is_number(parts, column) and any(n != int(n) for n in parts.numbers(column))


def _texts(parts: Parts) -> None:
    direction = parts.found.get("direction")
    candidates: Sequence[Column] = [c for c in _free(parts) if c.is_category and not _has_fraction(parts, c)]
    channel = _best(parts, "channel", lambda c: c in candidates)
    if channel is None and direction is not None and rank(direction.column, "channel") is not None:
        return
    if channel is not None:
        _take(parts, "channel", channel, f"{channel.distinct} texts, such as {', '.join(list(channel.counts)[:3])}")
