"""Read XBRL filings with Arelle, offline and strictly. The only module that imports it.

Arelle keeps global state and holds on to models: each file gets a new session, and a process reads one file at a time.
"""

import gc
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from reperform import params, paths, taxonomy
from reperform.facts import CheckRow, as_json
from reperform.ingest import taxonomies
from reperform.ingest.source import SourceResult, located
from reperform.ingest.xbrl_precheck import Refusal, inspect
from reperform.ingest.xbrl_rows import (
    Fact,
    Filing,
    RefusedFact,
    Task,
    condition,
    is_called_for,
    presence,
    required_row,
    without_duplicates,
)
from reperform.ingest.xbrl_source import (
    XbrlSource,
    chosen_files,
    no_receipt,
    packages,
    receipts_by_file,
    source_result,
    task_for,
    unreadable,
)

# A second process costs about 2 s before its first file: the demo's small filings are read faster without.
WORTH_A_PROCESS_BYTES = 4 << 20
MODES = {"1.1": "ROUND_TO_NEAREST", "2.1": "XBRL_v2_1_DEDUPLICATE"}
SEVERITIES = {"WARNING": "warning", "ERROR": "error", "CRITICAL": "error", "INCONSISTENCY": "inconsistency"}
NOT_FOUND = ("IOerror", "FileNotLoadable")
REQUIRED_PREFIX = "required_"
MOST_NAMED = 5
LONGEST_ROW = 2000


def read(name: str, source: Mapping[str, Any], raw: Path, *, processes: int) -> SourceResult:
    """Read one source of filings.

    Args:
        name: the source.
        source: its description; see `XbrlSource`.
        raw: the raw folder.
        processes: how many files may be read at once.

    Returns:
        Tables filings, facts, messages and checks. The records of a file are its facts, repeated ones included.

    Raises:
        ReperformError: for a wrong description, missing files or receipts; and for the first file that cannot be read
            where the source says `on_unreadable_file: stop`.
    """
    spec: XbrlSource = params.build(XbrlSource, source, where=f"ingest.sources.{name}")
    files = chosen_files(name, spec, raw)
    known = receipts_by_file(name, spec, raw)
    below = paths.project_root() / ".cache" / "taxonomies"
    cache = taxonomies.gather(packages(name, spec, raw), [raw / folder for folder in spec.cache], below)
    tasks = {
        path: task_for(path, known[located(path, raw)], spec, cache) for path in files if located(path, raw) in known
    }
    answers = _progress(name, _read_all(list(tasks.values()), processes), len(tasks))
    outcomes: dict[Path, Filing | Refusal] = {}
    for path in files:
        outcome = next(answers) if path in tasks else no_receipt()
        if isinstance(outcome, Refusal) and spec.on_unreadable_file == "stop":
            raise unreadable(located(path, raw), outcome)
        outcomes[path] = outcome
    return source_result(outcomes, known, spec, raw)


def _read_all(tasks: Sequence[Task], processes: int) -> Iterator[Filing | Refusal]:
    size = sum(task.path.stat().st_size for task in tasks)
    if processes == 1 or len(tasks) <= 1 or size < WORTH_A_PROCESS_BYTES:
        yield from map(read_filing, tasks)
        return
    # Spawned, as Arelle's locks and caches do not survive a fork; renewed after ten files, as it hoards memory.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=10) as pool:
        yield from pool.imap(read_filing, tasks, chunksize=1)


def _progress(name: str, answers: Iterable[Filing | Refusal], total: int) -> Iterator[Filing | Refusal]:
    step = max(1, total // 4)
    for number, answer in enumerate(answers, start=1):
        if number % step == 0 or number == total:
            print(f"{name}: {number} of {total} filings read", file=sys.stderr, flush=True)
        yield answer


def read_filing(task: Task) -> Filing | Refusal:
    """Read one file: facts, messages, and what every rule of its taxonomy says.

    A refusal is returned, not raised, so that one bad file stops no others.
    """
    try:
        head = inspect(task.path, task.max_bytes)
        taxonomies.check_available(head.schema_refs, task.cache, task.path.parent)
        with _loaded(task) as (model, log):
            return _content(task, model, log)
    except Refusal as refusal:
        return refusal
    except Exception as error:  # noqa: BLE001  # whatever Arelle stumbles over belongs to this file, and is said of it
        return Refusal(
            "file_not_loaded", "Arelle cannot load the filing.", got=f"{type(error).__name__}: {error}"[:500]
        )
    finally:
        gc.collect()  # closed models stay in reference cycles


@contextmanager
def _loaded(task: Task) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """The loaded model with formulas run, and Arelle's log.

    Raises:
        Refusal: when the file is no report, or its concepts are unknown.
    """
    from arelle.api.Session import Session  # noqa: PLC0415  # costs 1.5 s
    from arelle.logging.handlers.StructuredMessageLogHandler import StructuredMessageLogHandler  # noqa: PLC0415
    from arelle.RuntimeOptions import RuntimeOptions  # noqa: PLC0415

    handler = StructuredMessageLogHandler()
    # Validation of the whole taxonomy costs 9 s a filing and says little; formulas and sums are evaluated without it.
    options = RuntimeOptions(
        entrypointFile=str(task.path.resolve()),
        internetConnectivity="offline",
        keepOpen=True,
        disablePersistentConfig=True,
        cacheDirectory=str(task.cache.resolve()),
        formulaAction="run",
        formulaUnsatisfiedAsser=True,
        validate=False,
    )
    with Session() as session:
        session.run(options, logHandler=handler)
        models = session.get_models()
        if not models:
            raise Refusal("file_not_loaded", "Arelle finds no report in the file.", got=_first_errors(handler.messages))
        _check_loaded(models[0], handler.messages)
        yield models[0], handler.messages


def _check_loaded(model: Any, log: list[dict[str, Any]]) -> None:
    from arelle.ModelDocumentType import ModelDocumentType  # noqa: PLC0415

    kinds = (ModelDocumentType.INSTANCE, ModelDocumentType.INLINEXBRL, ModelDocumentType.INLINEXBRLDOCUMENTSET)
    if model.modelDocument is None or model.modelDocument.type not in kinds:
        raise Refusal("file_not_loaded", "Arelle finds no report in the file.", got=_first_errors(log))
    if model.undefinedFacts:
        _refuse_undefined(model, log)
    if not model.factsInInstance:
        raise Refusal("file_no_facts", "the filing reports nothing.", expected="facts", got="none")


def _refuse_undefined(model: Any, log: list[dict[str, Any]]) -> None:
    """Refuse a filing on another taxonomy than the one here; a few unknown concepts are refused one by one instead."""
    absent = sorted({_address(entry) for entry in log if entry["messageCode"] in NOT_FOUND})
    undefined = _undefined(model)
    named = ", ".join(sorted(undefined)[:3])
    namespaces = sorted({str(fact.qname.namespaceURI) for facts in undefined.values() for fact in facts})
    got = f"{len(model.undefinedFacts)} facts without concept, such as {named} in {namespaces[0]}"
    if absent:
        more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
        raise Refusal(
            "file_taxonomy_missing",
            "a part of the filing's taxonomy is not here.",
            expected=f"local copies of {', '.join(absent[:MOST_NAMED])}{more}",
            got=got,
            fix="name their zip under `taxonomies` of this source in conf/ingest/, or put them in its `cache` folder",
        )
    if len(model.undefinedFacts) > len(model.factsInInstance):  # Arelle keeps the two apart
        raise Refusal(
            "file_undefined_facts",
            "the filing uses concepts that its taxonomy does not define.",
            expected="concepts of the taxonomy that the filing names",
            got=got,
            fix="ask the filer for a filing on the right taxonomy",
        )


def _undefined(model: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for fact in sorted(model.undefinedFacts, key=lambda each: each.objectIndex):
        found[str(fact.qname)].append(fact)
    return found


def _address(entry: Mapping[str, Any]) -> str:
    """The address that Arelle could not load stands at the end of its message."""
    return str(entry["msg"]).rsplit("file: ", 1)[-1].strip()


def _first_errors(log: list[dict[str, Any]]) -> str:
    return "; ".join(str(entry["msg"]) for entry in log if entry["levelname"] in SEVERITIES)[:300] or "no reason given"


def _content(task: Task, model: Any, log: list[dict[str, Any]]) -> Filing:
    read_facts = [
        _fact(fact) for fact in sorted(model.factsInInstance, key=lambda f: f.objectIndex) if not fact.isTuple
    ]
    facts, contradictions = without_duplicates(read_facts)
    sums, remarks = _calculations(model)
    checks = [*_required(task, model, read_facts), *_assertions(task, model)]
    checks += [(task.filing_id, "calculation", *row) for row in sums]
    messages = [
        *_log_messages(task, log),
        *contradictions,
        *remarks,
        *_footnotes(model),
        *_entity_messages(task, model),
    ]
    refused = _without_concept(model)
    return Filing(
        facts_read=len(read_facts) + len(refused),
        refused=refused,
        facts=[fact.row(task.filing_id) for fact in facts],
        messages=[(task.filing_id, *message) for message in sorted(set(messages), key=_message_order)],
        checks=sorted(checks, key=_check_order),
    )


Message = tuple[str, str, str, int | None]


def _message_order(message: Message) -> tuple[int, str, str]:
    return (message[3] or 0, message[0], message[2])


def _check_order(check: CheckRow) -> tuple[str, str, str, float]:
    return (check[1], check[2], check[8] or "", check[5] or 0.0)


def _fact(fact: Any) -> Fact:
    from arelle.XmlValidateConst import VALID  # noqa: PLC0415

    start, end, dimensions = _context(fact.context)
    value = None if fact.isNil else fact.value
    return Fact(
        concept=str(fact.qname),
        period_start=start,
        period_end=end,
        unit=_unit(fact.unit),
        decimals=None if value is None else _accuracy(fact),
        value=value.strip() if value is not None and fact.isNumeric else value,
        dimensions=dimensions,
        line=fact.sourceline,
        language=None if fact.isNumeric else fact.xmlLang,
        is_valid=fact.xValid >= VALID,
    )


def _accuracy(fact: Any) -> str | None:
    """Decimals as reported, or as they follow from `precision`."""
    if fact.decimals is not None or not fact.precision:
        return None if fact.decimals is None else str(fact.decimals)
    from arelle.ValidateXbrlCalcs import inferredDecimals  # noqa: PLC0415

    inferred = inferredDecimals(fact)
    return "INF" if inferred == float("inf") else None if inferred != inferred else str(int(inferred))  # noqa: PLR0124  # NaN


def _context(context: Any) -> tuple[date | None, date | None, str]:
    """Start, end and dimensions. Arelle keeps ends and instants as midnight of the next day."""
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
        return context.startDatetime.date(), _last_day(context.endDatetime), dimensions
    return None, None, dimensions


def _last_day(moment: datetime) -> date:
    day = moment.date()
    return day - timedelta(days=1) if moment.time() == time(0) else day


def _unit(unit: Any) -> str | None:
    if unit is None:
        return None
    return "/".join("*".join(str(measure) for measure in measures) for measures in unit.measures if measures)


def _log_messages(task: Task, log: list[dict[str, Any]]) -> list[Message]:
    """Warnings, errors and inconsistencies of Arelle's log, without the folders of this machine."""
    found = []
    for entry in log:
        severity = SEVERITIES.get(str(entry["levelname"]).split("-")[0])
        if severity is None:
            continue
        text = str(entry["msg"]).replace(f"{task.cache.resolve()}/", "").replace(f"{task.path.parent.resolve()}/", "")
        lines = [ref.get("sourceLine") for ref in entry["refs"] or [] if task.path.name in str(ref.get("href", ""))]
        found.append((str(entry["messageCode"]), severity, text, next((line for line in lines if line), None)))
    return found


def _footnotes(model: Any) -> list[Message]:
    found = []
    for link in model.relationshipSet("XBRL-footnotes").modelRelationships:
        note, fact = link.toModelObject, link.fromModelObject
        if note is None or not hasattr(fact, "qname"):
            continue
        text = " ".join("".join(note.itertext()).split())
        found.append(("footnote", "info", f"{fact.qname}: {text}", fact.sourceline))
    return found


def _entity_messages(task: Task, model: Any) -> list[Message]:
    """One filing speaks for one entity, and where it uses this project's names for that of the receipt."""
    named = {(scheme, name.strip()) for scheme, name in (each.entityIdentifier for each in model.contexts.values())}
    names = ", ".join(sorted(name for _, name in named)[:MOST_NAMED])
    if len(named) > 1:
        return [("several_entities", "error", f"contexts name several entities: {names}", None)]
    if any(scheme == taxonomy.ENTITY_SCHEME and name != task.entity_id for scheme, name in named):
        return [("wrong_entity", "error", f"the receipt is for {task.entity_id}, the filing for {names}", None)]
    return []


def _without_concept(model: Any) -> list[RefusedFact]:
    """Facts that the taxonomy does not define: line, name, value, and the XML as it stands."""
    from lxml import etree  # noqa: PLC0415  # loaded by Arelle anyway

    return [
        (fact.sourceline, name, fact.text, etree.tostring(fact, encoding="unicode", with_tail=False)[:LONGEST_ROW])
        for name, facts in sorted(_undefined(model).items())
        for fact in facts
    ]


def _calculations(model: Any) -> tuple[list[tuple[Any, ...]], list[Message]]:
    """Every sum of the calculation linkbase in both modes, as rows of checks without filing and family.

    A sum of which nothing is reported does not apply; one of which only the total or only parts are reported cannot be
    evaluated. Source: XBRL Calculations 1.1 (round to nearest); XBRL 2.1 section 5.2.5.2 with duplicates resolved.
    """
    rows: list[tuple[Any, ...]] = []
    remarks: list[Message] = []
    for label, mode in MODES.items():
        validator, bad, others = _validated(model, mode)
        remarks += others
        for role, total, links in _sums(model):
            found = list(_evaluated(validator, label, total, links))
            for key, reported, computed, gap, about in found:
                ok = None if gap is None else (str(total.qname), role, *key) not in bad
                detail = as_json({"role": _role_name(model, role)} | about)
                row = (f"{label} {total.qname}", ok is not None, ok, reported, computed, gap if not ok else 0.0, detail)
                rows.append(row if ok is not None else (*row[:5], None, detail))
            if not found and label == "1.1":
                rows += _one_sided(validator, total, links, _role_name(model, role))
    return rows, remarks


def _validated(model: Any, mode: str) -> tuple[Any, set[tuple[str, ...]], list[Message]]:
    """Arelle's validator with its index of facts, keys of inconsistent sums, and remarks of other kinds."""
    from arelle.ValidateXbrlCalcs import ValidateCalcsMode, ValidateXbrlCalcs  # noqa: PLC0415

    validator = ValidateXbrlCalcs(model, getattr(ValidateCalcsMode, mode))
    bad: set[tuple[str, ...]] = set()
    others: list[Message] = []
    for result in validator.validate():
        code = result.codes if isinstance(result.codes, str) else result.codes[0]
        arguments = result.args
        if "alcInconsistency" in code or "inconsistentCalculation" in code:
            bad.add((str(arguments["concept"]), arguments["linkrole"], arguments["contextID"], arguments["unitID"]))
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
        start, end, dimensions = _context(first.context)
        about = {
            "period": f"{start}/{end}" if start else str(end),
            "dimensions": dimensions,
            "unit": _unit(first.unit),
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


def _results(model: Any) -> dict[str, tuple[int, int]]:
    """Satisfied and unsatisfied evaluations by assertion."""
    found = [entry for entry in model.errors if isinstance(entry, dict)]
    return {str(key): (value[0], value[1]) for entry in found for key, value in entry.items()}


def _is_requirement(assertion: Any) -> bool:
    """Existence assertions, and value assertions that are named as requirements because they hold on a condition."""
    return assertion.localName == "existenceAssertion" or str(assertion.id).startswith(REQUIRED_PREFIX)


def _assertions(task: Task, model: Any) -> list[CheckRow]:
    results = _results(model)
    rows: list[CheckRow] = []
    for assertion in model.modelVariableSets:
        if _is_requirement(assertion) or str(assertion.id) not in results:
            continue
        held, failed = results[str(assertion.id)]
        is_evaluable = held + failed > 0
        detail = as_json({"satisfied": held, "unsatisfied": failed})
        verdict = failed == 0 if is_evaluable else None
        rows.append((task.filing_id, "assertion", str(assertion.id), is_evaluable, verdict, None, None, None, detail))
    return rows


def _required(task: Task, model: Any, facts: Sequence[Fact]) -> list[CheckRow]:
    """Lines that the taxonomy asserts to exist, and those that the source asks for."""
    by_concept: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_concept[fact.concept].append(fact)
    applies = _asserted(model) | dict.fromkeys(task.required, True)
    for concept, text in task.required_when:
        cause, limit = condition(text)
        applies[concept] = is_called_for(by_concept[cause], task, limit)
    return [
        required_row(task.filing_id, concept, applies=asked, found=presence(by_concept[concept], task))
        for concept, asked in sorted(applies.items())
    ]


def _asserted(model: Any) -> dict[str, bool]:
    """Concepts that assertions require, and whether the condition holds; a condition that fails evaluates nothing."""
    results = _results(model)
    found = {}
    for assertion in model.modelVariableSets:
        if not _is_requirement(assertion):
            continue
        is_conditional = assertion.localName != "existenceAssertion"
        for concept in _tested_concepts(model, assertion):
            found[concept] = not is_conditional or sum(results.get(str(assertion.id), (0, 0))) > 0
    return found


def _tested_concepts(model: Any, assertion: Any) -> list[str]:
    """Concepts that the variables of an assertion ask for by name; of a conditional one only what may be missing."""
    from arelle import XbrlConst  # noqa: PLC0415

    names = []
    for link in model.relationshipSet(XbrlConst.variableSet).fromModelObject(assertion):
        variable = link.toModelObject
        if assertion.localName != "existenceAssertion" and not variable.fallbackValue:
            continue
        for filtered in model.relationshipSet(XbrlConst.variableFilter).fromModelObject(variable):
            names += [str(name) for name in getattr(filtered.toModelObject, "conceptQnames", ())]
    return sorted(names)
