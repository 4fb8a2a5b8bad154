"""Sums of the calculation linkbase, in both modes. With `xbrl`, the only module that imports Arelle."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from reperform.facts import as_json

MODES = {"1.1": "ROUND_TO_NEAREST", "2.1": "XBRL_v2_1_DEDUPLICATE"}
ACCURACY = re.compile(r"INF|[+-]?\d{1,9}")
EXCESS_DIGITS = "calc11e:excessDigits"
Remark = tuple[str, str, str, int | None]  # code, severity, text, line


@dataclass
class Sums:
    """What the calculation linkbase says of a filing.

    Args:
        rows: of the table checks, without filing and family.
        remarks: what could not be evaluated, and why.
        inconsistent: by mode, how many sums do not hold.
        stopped: sums of Calculations 1.1 that stop before they are compared, as a number has more digits than its
            accuracy allows. Lists of inconsistencies elsewhere count these, too.
    """

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    inconsistent: dict[str, int] = field(default_factory=dict)
    stopped: int = 0

    def summary(self) -> list[Remark]:
        """The numbers in words, where there is something to say."""
        bad, rounded = self.inconsistent["2.1"], self.inconsistent["1.1"]
        if not (bad or rounded or self.stopped):
            return []
        text = f"inconsistent sums: {bad} by XBRL 2.1, {rounded + self.stopped} by Calculations 1.1"
        if self.stopped:
            text += f" ({rounded} that do not add up, {self.stopped} stopped for digits beyond the stated accuracy)"
        return [("calculation_counts", "info", text, None)]


def sums_of(model: Any) -> Sums:
    """Every sum of the calculation linkbase in both modes.

    A sum of which nothing is reported does not apply; one of which only the total or only parts are reported cannot be
    evaluated. Source: XBRL Calculations 1.1 (round to nearest); XBRL 2.1 section 5.2.5.2 with duplicates resolved.
    """
    sums = Sums(remarks=_leave_out_what_cannot_be_added(model))
    for label, mode in MODES.items():
        validator, bad, others = _validated(model, mode)
        sums.remarks += others
        sums.inconsistent[label] = len(bad)
        sums.stopped += sum(code == EXCESS_DIGITS for code, *_ in others)
        keys = set(bad)
        for role, total, links in _sums(model):
            found = list(_evaluated(validator, label, total, links))
            for key, reported, computed, gap, about in found:
                ok = None if gap is None else (str(total.qname), role, *key) not in keys
                detail = as_json({"role": _role_name(model, role)} | about)
                row = (f"{label} {total.qname}", ok is not None, ok, reported, computed, gap if not ok else 0.0, detail)
                sums.rows.append(row if ok is not None else (*row[:5], None, detail))
            if not found and label == "1.1":
                sums.rows += _one_sided(validator, total, links, _role_name(model, role))
    return sums


def _leave_out_what_cannot_be_added(model: Any) -> list[Remark]:
    """Facts without context, or with an accuracy that is no number: Arelle's sums would break at them."""
    from arelle.XmlValidateConst import INVALID  # noqa: PLC0415

    found: list[Remark] = []
    for fact in sorted(model.factsInInstance, key=lambda each: each.objectIndex):
        if fact.isTuple or not fact.isNumeric:
            continue
        accuracy = fact.decimals if fact.decimals is not None else fact.precision
        if fact.context is None:
            why = "names no context of the filing"
        elif accuracy is not None and not ACCURACY.fullmatch(str(accuracy).strip()):
            why = f"states an accuracy that is no number: {str(accuracy)[:40]}"
        else:
            continue
        fact.xValid = INVALID
        found.append(("not_in_sums", "error", f"{fact.qname} {why}", fact.sourceline))
    return found


def _validated(model: Any, mode: str) -> tuple[Any, list[tuple[str, ...]], list[Remark]]:
    """Arelle's validator with its index of facts, keys of inconsistent sums, and remarks of other kinds."""
    from arelle.ValidateXbrlCalcs import ValidateCalcsMode, ValidateXbrlCalcs  # noqa: PLC0415

    validator = ValidateXbrlCalcs(model, getattr(ValidateCalcsMode, mode))
    bad: list[tuple[str, ...]] = []
    others: list[Remark] = []
    for result in validator.validate():
        code = result.codes if isinstance(result.codes, str) else result.codes[0]
        arguments = result.args
        if "alcInconsistency" in code or "inconsistentCalculation" in code:
            bad.append((str(arguments["concept"]), arguments["linkrole"], arguments["contextID"], arguments["unitID"]))
        else:
            plain = {key: str(value) for key, value in arguments.items() if key != "modelObject"}
            lines = [getattr(each, "sourceline", None) for each in arguments.get("modelObject") or []]
            others.append((code, "inconsistency", result.msg % _Missing(plain), next((n for n in lines if n), None)))
    return validator, bad, others


class _Missing(dict[str, str]):
    """Arguments of a message; one that is not given shows as a question mark."""

    def __missing__(self, key: str) -> str:
        return "?"


def _sums(model: Any) -> Iterator[tuple[str, Any, list[Any]]]:
    from arelle import XbrlConst  # noqa: PLC0415

    wanted = (XbrlConst.summationItem, XbrlConst.summationItem11)
    keys = [key for key in model.baseSets if key[0] in wanted and all(key[1:])]
    for arcrole, role, link, arc in sorted(keys, key=lambda key: [str(part) for part in key]):
        totals = model.relationshipSet(arcrole, role, link, arc).fromModelObjects()
        for total in sorted(totals, key=lambda concept: str(concept.qname)):
            yield role, total, [each for each in totals[total] if each.toModelObject is not None]


Evaluated = tuple[tuple[str, str], float | None, float | None, float | None, dict[str, Any]]


def _evaluated(validator: Any, label: str, total: Any, links: Sequence[Any]) -> Iterator[Evaluated]:
    """Sums of one total, one for each context and unit in which it and at least one part are reported."""
    parts = set().union(*(validator.itemConceptBindKeys.get(link.toModelObject, set()) for link in links))
    for key in parts & validator.sumConceptBindKeys.get(total, set()):
        facts = validator.sumFacts.get((total, *key), [])
        if not facts:
            continue
        absent = [
            str(each.toModelObject.qname) for each in links if (each.toModelObject, *key) not in validator.itemFacts
        ]
        first = facts[0]
        start, end, dimensions = context_of(first.context)
        about = {
            "period": f"{start}/{end}" if start else str(end),
            "dimensions": dimensions,
            "unit": unit_of(first.unit),
            "unreported": absent,
        }
        where = first.context.id, first.unit.id if first.unit is not None else "(none)"
        outcome = (
            _compared_intervals(validator, key, facts, links)
            if label == "1.1"
            else _compared_rounded(validator, key, facts, links)
        )
        if outcome is not None:
            yield where, *outcome, about


Outcome = tuple[float | None, float | None, float | None]


def _compared_intervals(validator: Any, key: Any, facts: Sequence[Any], links: Sequence[Any]) -> Outcome | None:
    """Middle of the total's interval and of the sum of intervals, and the distance between; None where all is nil."""
    low, high, any_part = Decimal(0), Decimal(0), False
    for link in links:
        items = validator.itemFacts.get((link.toModelObject, *key))
        if not items:
            continue
        _, (a, b, *_) = validator.consistentFactValueInterval(items, False)
        if a == "*inconsistent*":
            return None, None, None
        if a == "*nilFactSet*":
            continue
        ends = sorted((a * link.weightDecimal, b * link.weightDecimal))
        low, high, any_part = low + ends[0], high + ends[1], True
    _, (s, t, *_) = validator.consistentFactValueInterval(facts, False)
    if s == "*inconsistent*":
        return None, None, None
    if s == "*nilFactSet*" or not any_part:
        return None
    return float((s + t) / 2), float((low + high) / 2), float(max(s - high, low - t, Decimal(0)))


def _compared_rounded(validator: Any, key: Any, facts: Sequence[Any], links: Sequence[Any]) -> Outcome | None:
    """The total and the sum of its parts, each rounded to the accuracy reported, and their difference."""
    from arelle.ValidateXbrlCalcs import roundFact  # noqa: PLC0415

    kept = [fact for fact in facts if _counts(validator, fact)]
    if not kept:
        return None
    total, any_part = Decimal(0), False
    for link in links:
        items = validator.itemFacts.get((link.toModelObject, *key), ())
        if any(item in validator.duplicatedFacts for item in items):
            return None, None, None
        for item in items:
            if _counts(validator, item):
                total, any_part = total + roundFact(item, True) * link.weightDecimal, True
    if not any_part:
        return None
    reported, computed = roundFact(kept[0], True), roundFact(kept[0], True, vDecimal=total)
    if not (reported.is_finite() and computed.is_finite()):
        return None, None, None
    return float(reported), float(computed), float(abs(reported - computed))


def _counts(validator: Any, fact: Any) -> bool:
    return not fact.isNil and fact not in validator.duplicatedFacts and fact not in validator.consistentDupFacts


def _one_sided(validator: Any, total: Any, links: Sequence[Any], role: str) -> list[tuple[Any, ...]]:
    """A sum that cannot be evaluated anywhere, because only its total or only parts of it are reported."""
    has_total = bool(validator.sumConceptBindKeys.get(total))
    has_part = any(validator.itemConceptBindKeys.get(link.toModelObject) for link in links)
    if not (has_total or has_part):
        return []
    reason = "no part reported with it" if has_total else "total not reported"
    return [(f"1.1 {total.qname}", False, None, None, None, None, as_json({"reason": reason, "role": role}))]


def _role_name(model: Any, role: str) -> str:
    return str(model.roleTypeDefinition(role) or role)


def context_of(context: Any) -> tuple[date | None, date | None, str]:
    """Start, end and dimensions of a context. Arelle keeps ends and instants as midnight of the next day."""
    if context is None:
        return None, None, as_json({})
    dimensions = as_json(
        {
            str(axis): str(value.memberQname) if value.isExplicit else value.typedMember.stringValue.strip()
            for axis, value in context.qnameDims.items()
        }
    )
    if context.isInstantPeriod:
        return None, _last_day(context.instantDatetime), dimensions
    if context.isStartEndPeriod:
        return context.startDatetime and context.startDatetime.date(), _last_day(context.endDatetime), dimensions
    return None, None, dimensions


def _last_day(moment: datetime | None) -> date | None:
    if moment is None:  # the filing gives none that can be read; Arelle's message says so
        return None
    day = moment.date()
    return day - timedelta(days=1) if moment.time() == time(0) else day


def unit_of(unit: Any) -> str | None:
    """Measures, such as `iso4217:EUR` or `iso4217:EUR/xbrli:shares`."""
    if unit is None:
        return None
    return "/".join("*".join(str(measure) for measure in measures) for measures in unit.measures if measures)
