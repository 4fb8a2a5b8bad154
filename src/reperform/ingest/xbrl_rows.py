"""Facts of a filing as plain rows: duplicates resolved, required lines looked for. Nothing here knows Arelle."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from pathlib import Path

from reperform.facts import NO_DIMENSIONS, CheckRow, FactRow, MessageRow, as_json, as_json_list, interval, number

EXACT = "INF"
UNDEFINED = "undefined_concept"
NOT_LOADED = "fact_not_loaded"
RefusedFact = tuple[int | None, str, str | None, str, str]  # line, concept, value, XML or JSON, rule


@dataclass(frozen=True)
class Task:
    """One file to read.

    Args:
        path: the file.
        cache: the folder of taxonomies.
        filing_id: of the receipt.
        entity_id: of the receipt.
        period_start: first day of the period, if the receipt tells it.
        period_end: last day of the period.
        required: concepts to be reported.
        required_when: pairs of a concept and the condition that calls for it; see `condition`.
        max_bytes: larger files are refused.
        more: further documents, of an inline set.
    """

    path: Path
    cache: Path
    filing_id: str
    entity_id: str
    period_start: date | None
    period_end: date
    required: tuple[str, ...] = ()
    required_when: tuple[tuple[str, str], ...] = ()
    max_bytes: int = 200 << 20
    more: tuple[Path, ...] = ()

    @property
    def documents(self) -> tuple[Path, ...]:
        """All documents of the filing."""
        return self.path, *self.more


@dataclass
class Filing:
    """What one file holds.

    Args:
        facts_read: facts in the file, before duplicates are resolved and undefined ones refused.
        refused: facts whose concept the taxonomy does not define, and those that Arelle leaves out as invalid.
        facts: rows of the table facts.
        messages: rows of the table messages.
        checks: rows of the table checks.
    """

    facts_read: int = 0
    refused: list[RefusedFact] = field(default_factory=list)
    facts: list[FactRow] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)
    checks: list[CheckRow] = field(default_factory=list)


@dataclass(frozen=True)
class Footnote:
    """What a filer adds to a fact.

    Args:
        text: on one line.
        language: of the text, as the filing says.
    """

    text: str
    language: str | None = None


@dataclass(frozen=True)
class Fact:
    """One fact as reported.

    Args:
        concept: prefixed name.
        period_start: None for an instant.
        period_end: the last day, or the day of an instant; None for "forever".
        unit: measures, such as `iso4217:EUR` or `iso4217:EUR/xbrli:shares`.
        decimals: accuracy, `INF` for exact.
        value: text as reported; None for nil.
        dimensions: canonical JSON.
        line: in the file.
        language: of a text.
        is_valid: its value is of the concept's type.
        footnotes: in the order of the filing.
    """

    concept: str
    period_start: date | None
    period_end: date | None
    unit: str | None
    decimals: str | None
    value: str | None
    dimensions: str = NO_DIMENSIONS
    line: int | None = None
    language: str | None = None
    is_valid: bool = True
    footnotes: tuple[Footnote, ...] = ()

    @property
    def what(self) -> tuple[object, ...]:
        """Facts that agree in this say the same thing, and have to agree in value."""
        return self.concept, self.period_start, self.period_end, self.unit, self.dimensions, self.language

    def row(self, filing_id: str) -> FactRow:
        """As a row of the canonical table."""
        return (
            filing_id,
            self.concept,
            self.period_start,
            self.period_end,
            self.unit,
            self.decimals,
            self.value,
            self.value is None,
            self.dimensions,
            self.line,
            as_json_list([vars(note) for note in self.footnotes]) if self.footnotes else None,
        )


def without_duplicates(facts: Iterable[Fact]) -> tuple[list[Fact], list[tuple[str, str, str, int | None]]]:
    """One fact for each thing said: the most precise one; and messages about those that contradict each other.

    Returns:
        Facts in their order, and messages as code, severity, text, line.
    """
    groups: dict[tuple[object, ...], list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.what, []).append(fact)
    messages = [_contradiction(group) for group in groups.values() if len(group) > 1 and not agree(group)]
    return [most_precise(group) for group in groups.values()], messages


def agree(group: Sequence[Fact]) -> bool:
    """Whether duplicates can all be true: numbers whose intervals share a value, texts that are equal."""
    values = {fact.value for fact in group}
    if len(values) == 1:
        return True
    numbers = [number(fact.value) for fact in group]
    if group[0].unit is None or any(value is None for value in numbers):
        return False
    ranges = [interval(value, fact.decimals) for value, fact in zip(numbers, group, strict=True) if value is not None]
    return max(low for low, _ in ranges) <= min(high for _, high in ranges)


def most_precise(group: Sequence[Fact]) -> Fact:
    """The fact with the most decimals, the first of equals; one with a value before nil. It takes all footnotes."""
    kept = max(group, key=lambda fact: (fact.value is not None, _decimals(fact.decimals)))
    notes = tuple(dict.fromkeys(note for fact in group for note in fact.footnotes))
    return kept if notes == kept.footnotes else replace(kept, footnotes=notes)


def _decimals(text: str | None) -> float:
    if text == EXACT:
        return float("inf")
    try:
        return int(str(text))
    except ValueError:
        return float("-inf")


def _contradiction(group: Sequence[Fact]) -> tuple[str, str, str, int | None]:
    values = ", ".join(
        f"{str(fact.value)[:60] if fact.value is not None else 'nil'} (line {fact.line})" for fact in group
    )
    first = group[0]
    return (
        "contradicting_duplicates",
        "inconsistency",
        f"{first.concept} is reported {len(group)} times with values that cannot all be true: {values}",
        first.line,
    )


def presence(facts: Iterable[Fact], task: Task) -> tuple[bool, str | None]:
    """Whether a required line is reported as it has to be, from all facts of its concept.

    A line counts when one of its facts, without dimensions and for the period of the filing, has a value of the
    right type.

    Returns:
        Yes or no, and what is wrong: missing, nil, wrong period, only by dimension, invalid value.
    """
    found = list(facts)
    plain = [fact for fact in found if fact.dimensions == NO_DIMENSIONS]
    timely = [fact for fact in plain if _is_for_period(fact, task)]
    given = [fact for fact in timely if fact.value is not None]
    steps = ((found, "missing"), (plain, "only by dimension"), (timely, "wrong period"), (given, "nil"))
    for step, reason in steps:
        if not step:
            return False, reason
    valid = any(fact.is_valid and fact.value for fact in given)
    return valid, None if valid else "invalid value"


def _is_for_period(fact: Fact, task: Task) -> bool:
    if fact.period_end != task.period_end:
        return False
    return fact.period_start is None or task.period_start is None or fact.period_start == task.period_start


def is_called_for(facts: Iterable[Fact], task: Task, above: Decimal = Decimal(0)) -> bool:
    """Whether the line that another one depends on is more than a limit, or true."""
    for fact in facts:
        if fact.dimensions == NO_DIMENSIONS and _is_for_period(fact, task) and fact.value is not None:
            amount = number(fact.value)
            if fact.value.strip() == "true" or (amount is not None and amount > above):
                return True
    return False


def condition(text: str) -> tuple[str, Decimal]:
    """Concept and limit of a condition such as `ferc:OperatingRevenues > 500000`; without a limit it is 0."""
    concept, _, limit = text.partition(">")
    return concept.strip(), Decimal(limit.strip() or 0)


def required_row(
    filing_id: str, concept: str, *, applies: bool = True, found: tuple[bool, str | None] = (True, None)
) -> CheckRow:
    """One required line as a row of the table checks."""
    if not applies:
        return filing_id, "required", concept, False, None, None, None, None, as_json({"reason": "not applicable"})
    is_there, reason = found
    return (
        filing_id,
        "required",
        concept,
        True,
        is_there,
        None,
        None,
        None,
        as_json({"reason": reason}) if reason else None,
    )
