"""Texts to numbers, moments, dates and truth values, column by column. What cannot be read is null, and is told."""

import re
from dataclasses import dataclass

import polars as pl

from reperform import schemas
from reperform.ingest.column_map import STEPS, Format, Times

BAD_NUMBER = "bad_number"
BAD_TIME = "bad_time"
BAD_LOCAL_TIME = "skipped_or_repeated_local_time"
BAD_DATE = "bad_date"
BAD_TRUTH = "bad_truth_value"
UNKNOWN_VALUE = "unknown_value"
ISO = "iso"
SECONDS_PER_STEP = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
MOST_STEPS = 1e9  # no count of hours or days is larger; beyond it a moment would overflow
EPOCHS_PER_SECOND = {"epoch_s": 1, "epoch_ms": 1000}
TRUTH_VALUES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_MICROSECONDS = 1_000_000
_MOST_MONTHS = 12_000
_WITH_OFFSET = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
_WHOLE = r"^[+-]?\d+$"
_PLAIN_NUMBER = r"^[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?$"
# Plain forms of ISO 8601 that Polars reads several times faster than any text with an offset.
_QUICK_EXACT = ("%Y-%m-%dT%H:%M:%SZ",)
_QUICK_LOCAL = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%.f")


@dataclass(frozen=True)
class Parsed:
    """A column as typed values, with what went wrong.

    Args:
        value: the typed value; null where the text is missing or cannot be read.
        rule: the rule that a text which cannot be read breaks; null elsewhere.
        given: the text as delivered, for the quarantine.
    """

    value: pl.Expr
    rule: pl.Expr
    given: pl.Expr


def _parsed(given: pl.Expr, value: pl.Expr, rule: str) -> Parsed:
    return Parsed(value, pl.when(given.is_not_null() & value.is_null()).then(pl.lit(rule)), given)


def as_text(given: pl.Expr) -> Parsed:
    """The text itself; it always reads."""
    return Parsed(given, pl.lit(None, pl.String), given)


def as_number(given: pl.Expr, form: Format, minor_units: int = 0) -> Parsed:
    """A finite Float64, by the decimal and thousands marks of a format.

    Thousands marks must stand between groups of three digits: `1.234,56` read with the marks the other way round is
    refused, where a bare removal of commas would give 1.23456 without a word.

    Args:
        given: texts.
        form: says the marks.
        minor_units: decimal places of whole numbers in minor units (2: 1234 is 12.34).
    """
    text = given
    if form.decimal == "." and not form.thousands and not minor_units:
        plain = text.cast(pl.Float64, strict=False)  # takes what `_PLAIN_NUMBER` takes, NaN and infinity, no more
        return _parsed(given, pl.when(plain.is_finite()).then(plain), BAD_NUMBER)
    if form.thousands == " ":
        text = text.str.replace_all("[\u00a0\u202f]", " ")  # no-break spaces serve as thousands marks as well
    mark, point = re.escape(form.thousands), re.escape(form.decimal)
    if form.thousands:
        grouped = text.str.contains(rf"^[+-]?\d{{1,3}}(?:{mark}\d{{3}})+(?:{point}\d*)?$")
        text = pl.when(grouped).then(text.str.replace_all(form.thousands, "", literal=True)).otherwise(text)
    if form.decimal != ".":
        text = pl.when(~text.str.contains(".", literal=True)).then(text.str.replace(form.decimal, ".", literal=True))
    if minor_units:
        text = pl.when(text.str.contains(_WHOLE)).then(with_point(text, minor_units))
    number = pl.when(text.str.contains(_PLAIN_NUMBER)).then(text).cast(pl.Float64, strict=False)
    return _parsed(given, pl.when(number.is_finite()).then(number), BAD_NUMBER)


def with_point(whole: pl.Expr, places: int) -> pl.Expr:
    """Texts of whole numbers with a decimal point set: `-1234` with two places is `-12.34`.

    Polars divides by a constant by multiplying with its inverse: 41 / 100 becomes 0.41000000000000003. The text is
    exact, and its nearest float is the one that the text 0.41 has.
    """
    digits = whole.str.replace(r"^[+-]", "").str.zfill(places + 1)
    sign = pl.when(whole.str.starts_with("-")).then(pl.lit("-")).otherwise(pl.lit(""))
    return pl.concat_str(sign, digits.str.head(-places), pl.lit("."), digits.str.tail(places))


def as_time(given: pl.Expr, times: Times, add_days: float = 0.0) -> Parsed:
    """A moment in UTC, microseconds.

    Args:
        given: texts, as `times.format` says.
        times: format and time zone. A local time that the clock skips (daylight saving begins) does not exist and is
            refused; one that it shows twice follows `times.ambiguous`.
        add_days: days to add.
    """
    if times.format == STEPS:
        return _parsed(given, _later(_stepped(given, times), add_days), BAD_TIME)
    if times.format in EPOCHS_PER_SECOND:
        ticks = pl.when(given.str.contains(r"^-?\d{1,15}$")).then(given).cast(pl.Int64, strict=False)
        moment = (ticks * (_MICROSECONDS // EPOCHS_PER_SECOND[times.format])).cast(schemas.UTC_US)
        return _parsed(given, _later(moment, add_days), BAD_TIME)
    naive = _naive(given, times.format)
    local = _localised(naive, times) if times.time_zone else pl.lit(None, schemas.UTC_US)
    exact = pl.lit(None, schemas.UTC_US)
    if times.format == ISO or "%z" in times.format:
        pattern = "%Y-%m-%dT%H:%M:%S%.f%#z" if times.format == ISO else times.format
        exact = _iso(given).str.to_datetime(pattern, time_unit="us", time_zone="UTC", strict=False)
    moment = _later(pl.coalesce(exact, local), add_days)
    rule = pl.when(naive.is_not_null() & pl.lit(times.time_zone is not None)).then(pl.lit(BAD_LOCAL_TIME))
    return Parsed(
        moment,
        pl.when(given.is_not_null() & moment.is_null()).then(pl.coalesce(rule, pl.lit(BAD_TIME))),
        given,
    )


def quick_time(given: pl.Series, times: Times, add_days: float = 0.0) -> pl.Expr | None:
    """A faster expression that may give the same moments as `as_time`: null where it cannot, never another moment.

    Args:
        given: texts; the first of them shows which form they are likely to have.
        times: format and time zone.
        add_days: days to add.

    Returns:
        An expression over the column of that name, or None where no quick form fits.
    """
    if times.format != ISO or (place := given.is_not_null().arg_max()) is None:
        return None
    first, text = given.slice(place, 1), pl.col(given.name)
    for pattern in (*_QUICK_EXACT, *(_QUICK_LOCAL if times.time_zone else ())):
        if first.str.to_datetime(pattern, time_unit="us", strict=False).null_count() == 0:
            naive = text.str.to_datetime(pattern, time_unit="us", strict=False, cache=False)
            is_utc = pattern in _QUICK_EXACT or times.time_zone == "UTC"
            return _later(naive.dt.replace_time_zone("UTC") if is_utc else _localised(naive, times), add_days)
    return None


def _stepped(given: pl.Expr, times: Times) -> pl.Expr:
    """Steps from a start; R writes the hundred-thousandth second as 1e+05, so numbers of any notation count."""
    start = pl.lit(times.start_utc, schemas.UTC_US)
    count = pl.when(given.str.contains(_PLAIN_NUMBER)).then(given).cast(pl.Float64, strict=False)
    steps = pl.when(count.abs() <= MOST_STEPS).then(count)
    if times.step == "month":
        months = pl.when((steps == steps.round()) & (steps.abs() <= _MOST_MONTHS)).then(steps).cast(pl.Int64)
        return start.dt.offset_by(pl.format("{}mo", months))
    return start + (steps * (SECONDS_PER_STEP[times.step] * _MICROSECONDS)).round().cast(pl.Int64).cast(
        pl.Duration("us")
    )


def _iso(given: pl.Expr) -> pl.Expr:
    """ISO 8601 with a `T`; a date alone is its midnight."""
    joined = given.str.replace(r"^(\d{4}-\d{2}-\d{2}) ", "${1}T")
    return pl.when(joined.str.contains(r"^\d{4}-\d{2}-\d{2}$")).then(joined + "T00:00:00").otherwise(joined)


def _naive(given: pl.Expr, pattern: str) -> pl.Expr:
    if "%z" in pattern:
        return pl.lit(None, pl.Datetime("us"))
    if pattern != ISO:
        return given.str.to_datetime(pattern, time_unit="us", strict=False)
    local = pl.when(~given.str.contains(_WITH_OFFSET)).then(_iso(given))
    return local.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)


def _localised(naive: pl.Expr, times: Times) -> pl.Expr:
    twice = "null" if times.ambiguous == "refuse" else times.ambiguous
    local = naive.dt.replace_time_zone(times.time_zone, ambiguous=twice, non_existent="null")
    return local.dt.convert_time_zone("UTC")


def _later(moment: pl.Expr, days: float) -> pl.Expr:
    return moment + pl.duration(microseconds=round(days * 86_400 * _MICROSECONDS)) if days else moment


def as_date(given: pl.Expr, pattern: str) -> Parsed:
    """A calendar day; `iso` is `%Y-%m-%d`."""
    return _parsed(given, given.str.to_date("%Y-%m-%d" if pattern == ISO else pattern, strict=False), BAD_DATE)


def as_truth(given: pl.Expr) -> Parsed:
    """A truth value from true/false, 1/0, yes/no in any case."""
    value = given.str.to_lowercase().replace_strict(TRUTH_VALUES, default=None, return_dtype=pl.Boolean)
    return _parsed(given, value, BAD_TRUTH)


def as_whole(given: pl.Expr) -> Parsed:
    """A whole number."""
    return _parsed(given, given.cast(pl.Int64, strict=False), BAD_NUMBER)


def as_known(given: pl.Expr, values: dict[str, str]) -> Parsed:
    """The canonical text for each raw text; any other raw text cannot be read."""
    return _parsed(given, given.replace_strict(values, default=None, return_dtype=pl.String), UNKNOWN_VALUE)
