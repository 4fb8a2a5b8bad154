"""Read XBRL filings with Arelle, offline and strictly. With `xbrl_sums`, the only module that imports it.

Four forms come in: XBRL 2.1 instances, Inline XBRL (single pages and document sets), xBRL-JSON and xBRL-CSV, each as
files or in a report package. Arelle loads all of them without plugins from elsewhere.

Arelle keeps global state and holds on to models: each file gets a new session, and a process reads one file at a time.
"""

import gc
import json
import multiprocessing
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reperform import params, paths, taxonomy
from reperform.facts import CheckRow, as_json
from reperform.ingest import report_packages, taxonomies, xbrl_memory
from reperform.ingest.source import SourceResult, located
from reperform.ingest.xbrl_memory import Memory
from reperform.ingest.xbrl_oim import fact_lines, inspect_oim, reported
from reperform.ingest.xbrl_precheck import Head, Refusal, inspect, no_schema_ref
from reperform.ingest.xbrl_rows import (
    NOT_LOADED,
    UNDEFINED,
    Fact,
    Filing,
    Footnote,
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
    document_sets,
    no_receipt,
    packages,
    receipts_by_file,
    source_result,
    task_for,
    unreadable,
)
from reperform.ingest.xbrl_sums import Remark, context_of, sums_of, unit_of

# A second process costs about 2 s before its first file: the demo's small filings are read faster without.
WORTH_A_PROCESS_BYTES = 4 << 20
SEVERITIES = {"WARNING": "warning", "ERROR": "error", "CRITICAL": "error", "INCONSISTENCY": "inconsistency"}
NOT_FOUND = ("IOerror", "FileNotLoadable")
REQUIRED_PREFIX = "required_"
TRACEBACK = re.compile(r"(?:\btraceback\s+)?Traceback \(most recent call last\)")
MOST_NAMED = 5
LONGEST_ROW = 2000
OIM_SUFFIX = ".json"
OIM_ERRORS = ("oime:", "oimce:", "xbrlce:")
DOCUMENT_SET = "inlineXbrlDocumentSet"  # ships with Arelle


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
    known = receipts_by_file(name, spec, raw)
    files = document_sets(chosen_files(name, spec, raw), spec)
    kept = paths.project_root() / ".cache"
    folders = [raw / folder for folder in spec.cache]
    cache = taxonomies.gather(packages(name, spec, raw), folders, kept / "taxonomies", name)
    tasks = {
        path: task_for(path, members, known[located(path, raw)], spec, cache)
        for path, members in files.items()
        if located(path, raw) in known
    }
    answers = _answers(name, tasks, Memory(kept / "ingest" / "xbrl" / name), processes)
    outcomes: dict[Path, Filing | Refusal] = {}
    for path in files:
        outcome = next(answers) if path in tasks else no_receipt()
        if isinstance(outcome, Refusal) and spec.on_unreadable_file == "stop":
            raise unreadable(located(path, raw), outcome)
        outcomes[path] = outcome
    return source_result(outcomes, files, known, spec, raw)


def _answers(name: str, tasks: Mapping[Path, Task], memory: Memory, processes: int) -> Iterator[Filing | Refusal]:
    """What each file holds, in order: from the run before where nothing changed since."""
    keys = {path: _key(task) for path, task in tasks.items()}
    memory.keep_only({key for key in keys.values() if isinstance(key, str)})
    recalled = {path: memory.recall(key) if isinstance(key, str) else key for path, key in keys.items()}
    waiting = [task for path, task in tasks.items() if recalled[path] is None]
    if len(waiting) < len(tasks):
        again = sum(isinstance(each, Filing) for each in recalled.values())
        print(f"{name}: {again} of {len(tasks)} filings as read before", file=sys.stderr, flush=True)
    answers = _progress(name, _read_all(waiting, processes), len(waiting))
    for path, key in keys.items():
        answer = recalled.pop(path)
        if answer is None:
            answer = next(answers)
            if isinstance(answer, Filing) and isinstance(key, str):
                memory.keep(key, answer)
        yield answer


def _key(task: Task) -> str | Refusal:
    """What names the filing in the memory of earlier runs; a refusal where the look before Arelle finds a reason."""
    try:
        if report_packages.is_package(task.path):
            return xbrl_memory.key_of(task, [task.path])
        return xbrl_memory.key_of(
            task, [path for head in _heads(task.documents, task, None) for path in head.inspected]
        )
    except Refusal as refusal:
        return refusal
    except OSError as error:
        return _cannot_open(error)


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


@dataclass(frozen=True)
class Opened:
    """A filing that has been looked at, ready for Arelle.

    Args:
        documents: the file to start from; of an inline set all of them.
        heads: what each says about itself.
        cache: the folder of taxonomies, with what the filing's package brings along.
        root: the folder that a package was unpacked to, which no output may name.
    """

    documents: tuple[Path, ...]
    heads: tuple[Head, ...]
    cache: Path
    root: Path | None = None

    @property
    def is_csv(self) -> bool:
        """Whether it is xBRL-CSV."""
        return any(path.suffix.lower() == ".csv" for path in self.heads[0].inspected)

    @property
    def is_oim(self) -> bool:
        """Whether it is xBRL-JSON or xBRL-CSV."""
        return self.documents[0].suffix.lower() == OIM_SUFFIX


def read_filing(task: Task) -> Filing | Refusal:
    """Read one file: facts, messages, and what every rule of its taxonomy says.

    A refusal is returned, not raised, so that one bad file stops no others.
    """
    gc.disable()  # a model is full of cycles that last until it is closed; searching them costs a fifth of the time
    try:
        with _opened(task) as opened, _loaded(opened) as (model, log):
            return _content(task, opened, model, log)
    except Refusal as refusal:
        return refusal
    except OSError as error:
        return _cannot_open(error)
    except Exception as error:  # noqa: BLE001  # whatever Arelle stumbles over belongs to this file, and is said of it
        return Refusal(
            "file_not_loaded",
            "Arelle cannot load the filing.",
            got=f"{type(error).__name__}: {error}"[:500],
            fix="ask the sender whether another reader loads it",
        )
    finally:
        gc.enable()
        gc.collect()  # closed models stay in reference cycles


def _cannot_open(error: OSError) -> Refusal:
    return Refusal(
        "file_not_loaded",
        "the file cannot be opened.",
        got=error.strerror or type(error).__name__,
        fix="see whether it is there and may be read",
    )


@contextmanager
def _opened(task: Task) -> Iterator[Opened]:
    """The filing, unpacked if need be, after the look before Arelle.

    Raises:
        Refusal: by any rule of `report_packages`, `xbrl_precheck`, `xbrl_oim` and `taxonomies`.
    """
    with ExitStack() as stack:
        documents, root, cache = task.documents, None, task.cache
        if report_packages.is_package(task.path):
            report = stack.enter_context(report_packages.opened(task.path, task.max_bytes))
            documents, root = report.documents, report.root
            if report.places:
                layers = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reperform-cache-"))).resolve()
                cache = taxonomies.overlay(task.cache, root, report.places, layers)
        heads = _heads(documents, task, root)
        for document, head in zip(documents, heads, strict=True):
            taxonomies.check_available(head.schema_refs, cache, document.parent)
        yield Opened(documents, heads, cache, root)


def _heads(documents: Sequence[Path], task: Task, root: Path | None) -> tuple[Head, ...]:
    """What each document says about itself; of a set, one of them names the taxonomy.

    Raises:
        Refusal: for what is unsafe or no XBRL.
    """
    if documents[0].suffix.lower() == OIM_SUFFIX:
        return (inspect_oim(documents[0], task.max_bytes, root),)
    heads = []
    for document in documents:
        try:
            heads.append(inspect(document, task.max_bytes, root, is_first=len(documents) == 1))
        except Refusal as refusal:
            if len(documents) > 1:
                refusal.place = f"{document.name} {refusal.place}".strip()
            raise
    if not any(head.schema_refs for head in heads):
        raise no_schema_ref("a link:schemaRef in one of the documents")
    return tuple(heads)


@contextmanager
def _loaded(opened: Opened) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
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
        entrypointFile=_entry_point(opened.documents),
        plugins=DOCUMENT_SET if len(opened.documents) > 1 else None,
        internetConnectivity="offline",
        keepOpen=True,
        disablePersistentConfig=True,
        cacheDirectory=str(opened.cache.resolve()),
        formulaAction="run",
        formulaUnsatisfiedAsser=True,
        validate=False,
    )
    with Session() as session:
        session.run(options, logHandler=handler)
        models = session.get_models()
        if not models:
            raise _no_report(handler.messages)
        _check_loaded(models[0], handler.messages)
        if opened.is_csv:
            _check_tables(handler.messages)
        yield models[0], handler.messages


def _entry_point(documents: Sequence[Path]) -> str:
    """A path; or the files of an inline document set as the plugin of that name takes them."""
    if len(documents) == 1:
        return str(documents[0].resolve())
    return json.dumps([{"ixds": [{"file": str(document.resolve())} for document in documents]}])


def _no_report(log: list[dict[str, Any]]) -> Refusal:
    return Refusal(
        "file_not_loaded",
        "Arelle finds no report in the file.",
        expected="an XBRL report",
        got=_first_errors(log),
        fix="ask the filer for the report again",
    )


def _check_loaded(model: Any, log: list[dict[str, Any]]) -> None:
    from arelle.ModelDocumentType import ModelDocumentType  # noqa: PLC0415

    kinds = (ModelDocumentType.INSTANCE, ModelDocumentType.INLINEXBRL, ModelDocumentType.INLINEXBRLDOCUMENTSET)
    if model.modelDocument is None or model.modelDocument.type not in kinds:
        raise _no_report(log)
    if model.undefinedFacts:
        _refuse_undefined(model, log)
    if not model.factsInInstance:
        raise Refusal(
            "file_no_facts",
            "the filing reports nothing.",
            expected="facts",
            got=_first_errors(log, "none"),
            fix="ask the filer for a complete report",
        )


def _check_tables(log: list[dict[str, Any]]) -> None:
    """Refuse an xBRL-CSV report with errors: Arelle leaves out what it stumbles over, and does not say which facts."""
    errors = [entry for entry in log if str(entry["messageCode"]).startswith(OIM_ERRORS)]
    wrong = [entry for entry in errors if entry["levelname"] == "ERROR"]
    if wrong:
        raise Refusal(
            "file_invalid_tables",
            "the report's tables do not follow the standard.",
            expected="xBRL-CSV without errors",
            got=_first_errors(wrong),
            fix="ask the filer for a corrected report",
        )


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


def _first_errors(log: list[dict[str, Any]], otherwise: str = "no reason given") -> str:
    return "; ".join(_told(entry) for entry in log if entry["levelname"] in SEVERITIES)[:300] or otherwise


def _told(entry: Mapping[str, Any]) -> str:
    """A message of Arelle without the stack trace that it adds where something of its own breaks."""
    return TRACEBACK.split(str(entry["msg"]), maxsplit=1)[0].strip() or "Arelle stumbles over the file"


def _content(task: Task, opened: Opened, model: Any, log: list[dict[str, Any]]) -> Filing:
    notes, lines = _footnotes(model), fact_lines(opened.documents[0]) if opened.is_oim else None
    read_facts = [
        _fact(fact, notes.get(fact.objectIndex, ()), _line(fact, lines))
        for fact in sorted(model.factsInInstance, key=lambda f: f.objectIndex)
        if not fact.isTuple
    ]
    facts, contradictions = without_duplicates(read_facts)
    sums = sums_of(model)
    checks = [*_required(task, model, read_facts), *_assertions(task, model)]
    checks += [(task.filing_id, "calculation", *row) for row in sums.rows]
    messages = [
        *_log_messages(opened, log),
        *contradictions,
        *sums.remarks,
        *sums.summary(),
        *_footnote_messages(model, lines),
        *_entity_messages(task, model),
        *_other_targets(opened),
    ]
    refused = _without_concept(model, lines)
    if lines is not None and not opened.is_csv:
        loaded = {str(fact.id) for fact in (*model.factsInInstance, *model.undefinedFacts)}
        refused += [
            (lines.get(name), concept, value, text[:LONGEST_ROW], NOT_LOADED)
            for name, concept, value, text in reported(opened.documents[0])
            if name not in loaded
        ]
    return Filing(
        facts_read=len(read_facts) + len(refused),
        refused=refused,
        facts=[fact.row(task.filing_id) for fact in facts],
        messages=[(task.filing_id, *message) for message in sorted(set(messages), key=_message_order)],
        checks=sorted(checks, key=_check_order),
    )


def _message_order(message: Remark) -> tuple[int, str, str]:
    return (message[3] or 0, message[0], message[2])


def _check_order(check: CheckRow) -> tuple[str, str, str, float]:
    return (check[1], check[2], check[8] or "", check[5] or 0.0)


def _line(fact: Any, lines: Mapping[str, int] | None) -> int | None:
    """Where a fact stands. Of JSON and CSV Arelle keeps identifiers, not lines."""
    if lines is None:
        line: int | None = fact.sourceline
        return line
    name = str(fact.id)
    return lines.get(name, lines.get(name.rpartition(".")[0]))


def _fact(fact: Any, notes: tuple[Footnote, ...], line: int | None) -> Fact:
    from arelle.XmlValidateConst import VALID  # noqa: PLC0415

    start, end, dimensions = context_of(fact.context)
    value = None if fact.isNil else fact.value
    return Fact(
        concept=str(fact.qname),
        period_start=start,
        period_end=end,
        unit=unit_of(fact.unit),
        decimals=None if value is None else _accuracy(fact),
        value=value.strip() if value is not None and fact.isNumeric else value,
        dimensions=dimensions,
        line=line,
        language=None if fact.isNumeric else fact.xmlLang,
        is_valid=fact.xValid >= VALID,
        footnotes=notes,
    )


def _accuracy(fact: Any) -> str | None:
    """Decimals as reported, or as they follow from `precision`."""
    if fact.decimals is not None or not fact.precision:
        return None if fact.decimals is None else str(fact.decimals)
    from arelle.ValidateXbrlCalcs import inferredDecimals  # noqa: PLC0415

    inferred = inferredDecimals(fact)
    return "INF" if inferred == float("inf") else None if inferred != inferred else str(int(inferred))  # noqa: PLR0124  # NaN


def _log_messages(opened: Opened, log: list[dict[str, Any]]) -> list[Remark]:
    """Warnings, errors and inconsistencies of Arelle's log, without the folders of this machine."""
    folders = [opened.cache.resolve(), *(document.parent.resolve() for document in opened.documents), opened.root]
    names = {document.name for document in opened.documents}
    found = []
    for entry in log:
        severity = SEVERITIES.get(str(entry["levelname"]).split("-")[0])
        if severity is None:
            continue
        text = _told(entry)
        for folder in folders:
            text = text if folder is None else text.replace(f"{folder}/", "")
        references = entry["refs"] or []
        lines = [ref.get("sourceLine") for ref in references if any(name in str(ref.get("href", "")) for name in names)]
        found.append((str(entry["messageCode"]), severity, text, next((line for line in lines if line), None)))
    return found


def _notes(model: Any) -> Iterator[tuple[Any, Footnote]]:
    """Each fact with a footnote, in the order of the linkbase; a note may itself be a fact."""
    for link in model.relationshipSet("XBRL-footnotes").modelRelationships:
        note, fact = link.toModelObject, link.fromModelObject
        if note is not None and hasattr(fact, "qname"):
            text = note.value if hasattr(note, "context") else "".join(note.itertext())
            yield fact, Footnote(" ".join(str(text).split()), getattr(note, "xmlLang", None))


def _footnotes(model: Any) -> dict[int, tuple[Footnote, ...]]:
    found: dict[int, tuple[Footnote, ...]] = defaultdict(tuple)
    for fact, note in _notes(model):
        found[fact.objectIndex] += (note,)
    return found


def _footnote_messages(model: Any, lines: Mapping[str, int] | None) -> list[Remark]:
    return [("footnote", "info", f"{fact.qname}: {note.text}", _line(fact, lines)) for fact, note in _notes(model)]


def _other_targets(opened: Opened) -> list[Remark]:
    """Inline pages may hold several reports; the default one is read, and the others are named."""
    targets = sorted(set().union(*(head.targets for head in opened.heads)))
    return [("other_target", "warning", f"facts for the target {target} are not read", None) for target in targets]


def _entity_messages(task: Task, model: Any) -> list[Remark]:
    """One filing speaks for one entity, and where it uses this project's names for that of the receipt."""
    named = {(scheme, name.strip()) for scheme, name in (each.entityIdentifier for each in model.contexts.values())}
    names = ", ".join(sorted(name for _, name in named)[:MOST_NAMED])
    if len(named) > 1:
        return [("several_entities", "error", f"contexts name several entities: {names}", None)]
    if any(scheme == taxonomy.ENTITY_SCHEME and name != task.entity_id for scheme, name in named):
        return [("wrong_entity", "error", f"the receipt is for {task.entity_id}, the filing for {names}", None)]
    return []


def _without_concept(model: Any, lines: Mapping[str, int] | None) -> list[RefusedFact]:
    """Facts that the taxonomy does not define: line, name, value, and the XML as it stands."""
    return [
        (_line(fact, lines), name, fact.text, _xml(fact), UNDEFINED)
        for name, facts in sorted(_undefined(model).items())
        for fact in facts
    ]


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


def _xml(fact: Any) -> str:
    from lxml import etree  # noqa: PLC0415  # loaded by Arelle anyway

    text: str = etree.tostring(fact, encoding="unicode", with_tail=False)
    return text[:LONGEST_ROW]


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
