"""Balances know which way the money went: each step of an account's balance is compared with the amount."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from reperform.sources.values import ALMOST_ALL, Column, Part, number, share

if TYPE_CHECKING:
    from reperform.sources.roles import Parts

LEAST_STEPS = 20
LEAST_PER_TEXT = 3
TOLERANCE = 0.006  # a cent of rounding
OTHER = {"in": "out", "out": "in"}


def weigh(parts: "Parts") -> None:
    """Let balances confirm or turn round a direction, or find the column that tells it.

    Args:
        parts: changed in place: `balances` gets a remark, and `negative`, the words of the direction or the two
            columns change places where balances say so.
    """
    steps = ways_of_balances(parts)
    if len(steps) < LEAST_STEPS:
        return
    told = _ways_of_map(parts)
    if not told:
        _find_column(parts, steps)
        return
    agreeing = share(told.get(record) == way for record, way in steps.items())
    if agreeing <= 1 - ALMOST_ALL:
        _turn_round(parts)
        agreeing = 1 - agreeing
    doubt = "" if agreeing >= ALMOST_ALL else ", so look twice"
    parts.balances = f"balances move that way in {agreeing:.0%} of {len(steps):,} steps{doubt}"


def ways_of_balances(parts: "Parts") -> dict[int, str]:
    """Record to `in` or `out`, where the step from the account's last balance is the amount, up or down."""
    needed = [parts.found.get(name) for name in ("account_id", "balance_after")]
    amounts = _amounts(parts)
    if None in needed or not amounts:
        return {}
    accounts, balances = (part.column.cells for part in needed if part is not None)
    last: dict[str, float] = {}
    ways: dict[int, str] = {}
    for record, (account, text) in enumerate(zip(accounts, balances, strict=True)):
        balance, amount = _number(text, parts), amounts.get(record)
        if balance is None or amount is None or not account:
            continue
        step = balance - last.get(account, float("nan"))
        last[account] = balance
        if abs(abs(step) - amount) <= TOLERANCE + 1e-9 * abs(balance) and amount > TOLERANCE:
            ways[record] = "in" if step > 0 else "out"
    return ways


def _number(text: str, parts: "Parts") -> float | None:
    return number(text, parts.marks.decimal, parts.marks.thousands) if text else None


def _amounts(parts: "Parts") -> dict[int, float]:
    """Record to amount, without its sign."""
    found: dict[int, float] = {}
    for name in ("amount", "debit", "credit"):
        part = parts.found.get(name)
        for record, text in enumerate(part.column.cells if part else ()):
            value = _number(text, parts)
            if value is not None:
                found[record] = abs(value)
    return found


def _ways_of_map(parts: "Parts") -> dict[int, str]:
    """Record to `in` or `out` as the draft has it so far; empty where nothing tells the direction."""
    if "debit" in parts.found:
        sides = {"in": parts.found["credit"].column.cells, "out": parts.found["debit"].column.cells}
        return {record: way for way, cells in sides.items() for record, text in enumerate(cells) if text}
    if "direction" in parts.found:
        into, out = parts.direction_words
        words = dict.fromkeys(into, "in") | dict.fromkeys(out, "out")
        cells = parts.found["direction"].column.cells
        return {record: words[text] for record, text in enumerate(cells) if text in words}
    amount = parts.found.get("amount")
    values = {r: _number(text, parts) for r, text in enumerate(amount.column.cells)} if amount else {}
    if not any(value is not None and value < 0 for value in values.values()):
        return {}
    return {r: parts.negative if v < 0 else OTHER[parts.negative] for r, v in values.items() if v is not None}


def _turn_round(parts: "Parts") -> None:
    parts.negative = OTHER[parts.negative]
    parts.direction_words = (parts.direction_words[1], parts.direction_words[0])
    if "debit" in parts.found:
        parts.found["debit"], parts.found["credit"] = parts.found["credit"], parts.found["debit"]


def _find_column(parts: "Parts", steps: Mapping[int, str]) -> None:
    """The first column of few texts each of which goes one way alone."""
    for column in parts.layout.columns:
        words = _one_way_texts(column, steps) if column.is_category and column.distinct > 1 else {}
        if set(words.values()) == {"in", "out"}:
            into, out = ([text for text in words if words[text] == way] for way in ("in", "out"))
            parts.direction_words = (into, out)
            parts.found["direction"] = Part(column, f"each of its {len(words)} texts goes one way")
            parts.balances = f"balances say so in {len(steps):,} steps"
            return


def _one_way_texts(column: Column, steps: Mapping[int, str]) -> dict[str, str]:
    """Text to its way; empty where a text goes both ways, or is seen too rarely to tell."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for record, way in steps.items():
        seen[column.cells[record]][way] += 1
    words: dict[str, str] = {}
    for text in column.counts:
        (way, n), total = (seen[text].most_common(1) or [("", 0)])[0], seen[text].total()
        if total < LEAST_PER_TEXT or n < ALMOST_ALL * total:
            return {}
        words[text] = way
    return words
