"""Facts of filings: how accurate a reported number is, and how text stands in canonical tables."""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation

# As the columns of schemas.FACTS, MESSAGES and CHECKS.
FactRow = tuple[
    str, str, date | None, date | None, str | None, str | None, str | None, bool, str, int | None, str | None
]
MessageRow = tuple[str, str, str, str, int | None]
CheckRow = tuple[str, str, str, bool, bool | None, float | None, float | None, float | None, str | None]
NO_DIMENSIONS = "{}"


def as_json(content: Mapping[str, object]) -> str:
    """Canonical JSON: keys in order, no spaces."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def as_json_list(content: Sequence[Mapping[str, object]]) -> str:
    """Canonical JSON of several objects, in their order."""
    return f"[{','.join(map(as_json, content))}]"


def number(text: str | None) -> Decimal | None:
    """The value of a numeric fact, None where it is no finite number."""
    try:
        value = Decimal(str(text).strip())
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def interval(value: Decimal, decimals: str | None) -> tuple[Decimal, Decimal]:
    """What a reported number can stand for: half a unit of its last accurate digit on both sides.

    Source: XBRL Calculations 1.1, section 3 (round to nearest). A number without accuracy counts as exact.
    """
    try:
        half = Decimal(5).scaleb(-int(str(decimals)) - 1)
    except ValueError:
        return value, value
    return value - half, value + half
