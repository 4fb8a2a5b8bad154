"""What conf/ingest/ says of a source of filings, the files that belong to it, and its tables once they are read."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform import schemas
from reperform.errors import ReperformError
from reperform.ingest import filing_log, taxonomies
from reperform.ingest.filing_log import DueDate, Receipt
from reperform.ingest.report_packages import INLINE
from reperform.ingest.source import (
    SourceFile,
    SourceResult,
    UnreadableFileError,
    located,
    matching,
    quarantine_frame,
    quarantined,
    sha256_of,
)
from reperform.ingest.xbrl_precheck import Refusal
from reperform.ingest.xbrl_rows import Filing, Task

Condition = Annotated[str, Field(pattern=r"^\S+( *> *\d+)?$")]
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class TaxonomyFiles:
    """Zips of taxonomies.

    Args:
        files: glob below the raw folder.
        host: what the addresses inside begin with, such as `https/eCollection.ferc.gov`; not needed for a taxonomy
            package with a catalog of its own (META-INF/catalog.xml).
    """

    files: str
    host: str = ""


@dataclass(frozen=True, config=STRICT)
class Receipts:
    """Where filing times are written down: one of two.

    Args:
        csv: a log with the columns of `filing_log.COLUMNS`, below the raw folder.
        ferc_feeds: glob of FERC's archived RSS feeds.
    """

    csv: str | None = None
    ferc_feeds: str | None = None


@dataclass(frozen=True, config=STRICT)
class XbrlSource:
    """A source of XBRL filings, as described in `conf/ingest/`.

    Args:
        files: one or several globs below the raw folder.
        receipts: see `Receipts`.
        exclude: globs of files to leave out; each has to match, so that none is forgotten.
        taxonomies: zips to unpack.
        cache: folders laid out as `http/<host>/...`.
        due: month and day, by form, by which an annual form of the year before is due.
        due_time_zone: where that day ends.
        required: concepts that every filing of a form has to report, beside those its taxonomy asserts.
        required_when: by form: concepts to be reported where another one is true or more than zero, or more than a
            limit, as in `ferc:OperatingRevenues > 500000`.
        document_sets: the inline pages of a folder are one filing; its receipt names the first of them.
        max_bytes: larger files are refused.
        kind: `xbrl`.
        on_unreadable_file: what the stage does with a file that is refused.
    """

    files: list[str] | str
    receipts: Receipts
    exclude: list[str] = field(default_factory=list)
    taxonomies: list[TaxonomyFiles] = field(default_factory=list)
    cache: list[str] = field(default_factory=list)
    due: dict[str, Annotated[str, Field(pattern=r"^\d\d-\d\d$")]] = field(default_factory=dict)
    due_time_zone: str = "UTC"
    required: dict[str, list[str]] = field(default_factory=dict)
    required_when: dict[str, dict[str, Condition]] = field(default_factory=dict)
    document_sets: bool = False
    max_bytes: Annotated[int, Field(gt=0)] = 200 << 20
    kind: str = "xbrl"
    on_unreadable_file: str = "quarantine"


def chosen_files(name: str, spec: XbrlSource, raw: Path) -> list[Path]:
    """Files that match, without those left out on purpose, in order of their names."""
    left_out: set[Path] = set()
    for pattern in spec.exclude:
        left_out.update(matching(f"{name} (exclude)", [pattern], raw))
    patterns = [spec.files] if isinstance(spec.files, str) else spec.files
    return [path for path in matching(name, patterns, raw) if path not in left_out]


def document_sets(files: Sequence[Path], spec: XbrlSource) -> dict[Path, tuple[Path, ...]]:
    """Each filing's first file, with the further pages of its inline document set."""
    if not spec.document_sets:
        return dict.fromkeys(files, ())
    found: dict[Path, tuple[Path, ...]] = {}
    first: dict[Path, Path] = {}
    for path in files:
        if path.suffix.lower() in INLINE and path.parent in first:
            found[first[path.parent]] += (path,)
            continue
        found[path] = ()
        if path.suffix.lower() in INLINE:
            first[path.parent] = path
    return found


def receipts_by_file(name: str, spec: XbrlSource, raw: Path) -> dict[str, Receipt]:
    """Receipts of a source by file name, from the log that its description names."""
    if (spec.receipts.csv is None) == (spec.receipts.ferc_feeds is None):
        raise ReperformError(
            "A source of filings needs exactly one kind of receipts.",
            expected="`csv` or `ferc_feeds`",
            got="both" if spec.receipts.csv else "none",
            where=f"ingest.sources.{name}.receipts",
            fix="keep one in conf/ingest/",
        )
    if spec.receipts.csv is not None:
        return filing_log.from_csv(raw / spec.receipts.csv, raw)
    due = {form: DueDate(day, spec.due_time_zone) for form, day in spec.due.items()}
    feeds = matching(f"{name} (receipts)", [str(spec.receipts.ferc_feeds)], raw)
    return filing_log.from_ferc_feeds(feeds, raw, due)


def packages(name: str, spec: XbrlSource, raw: Path) -> list[taxonomies.Package]:
    """Taxonomy zips that the description names."""
    return [
        taxonomies.Package(path, each.host)
        for each in spec.taxonomies
        for path in matching(f"{name} (taxonomies)", [each.files], raw)
    ]


def task_for(path: Path, more: tuple[Path, ...], receipt: Receipt, spec: XbrlSource, cache: Path) -> Task:
    """What to read, and what to look for in it."""
    return Task(
        path=path,
        cache=cache,
        filing_id=receipt.filing_id,
        entity_id=receipt.entity_id,
        period_start=receipt.period_start,
        period_end=receipt.period_end,
        required=tuple(spec.required.get(receipt.form, ())),
        required_when=tuple(sorted(spec.required_when.get(receipt.form, {}).items())),
        max_bytes=spec.max_bytes,
        more=more,
    )


def no_receipt() -> Refusal:
    """Why a file without a receipt is refused."""
    return Refusal(
        "file_no_receipt",
        "nothing says who filed it, for which period, and when.",
        expected="a row in the receipt log",
        got="none",
        fix="add it to the log, or leave the file out with `exclude` in conf/ingest/",
    )


def unreadable(where: str, refusal: Refusal) -> UnreadableFileError:
    """A refusal as the error that every kind of source gives."""
    return UnreadableFileError(
        where,
        refusal.rule,
        refusal.problem,
        expected=refusal.expected,
        got=refusal.got,
        place=refusal.place,
        fix=refusal.fix,
    )


def source_result(
    outcomes: Mapping[Path, Filing | Refusal],
    sets: Mapping[Path, tuple[Path, ...]],
    known: Mapping[str, Receipt],
    spec: XbrlSource,
    raw: Path,
) -> SourceResult:
    """Tables and receipts of all files, in order of their names; the facts of a set are counted with its first page."""
    content, read_files, refused = Filing(), [], []
    filings: list[tuple[Any, ...]] = []
    quarantine: list[dict[str, object]] = []
    for path in sorted(outcomes):
        outcome, where, digest = outcomes[path], located(path, raw), sha256_of(path)
        further = [SourceFile(located(page, raw), sha256_of(page), 0) for page in sets.get(path, ())]
        if isinstance(outcome, Refusal):
            refused.append(unreadable(where, outcome))
            read_files += [SourceFile(where, digest, 0), *further]
            continue
        filings.append(_filing_row(known[where]))
        read_files += [SourceFile(where, digest, outcome.facts_read), *further]
        content.facts_read += outcome.facts_read
        quarantine += [
            quarantined("facts", where, line or 0, rule, column="concept", value=concept, row=text)
            for line, concept, _, text, rule in outcome.refused
        ]
        content.facts += outcome.facts
        content.messages += outcome.messages
        content.checks += outcome.checks
    if spec.receipts.csv is not None:
        absent = [file for file in known if file not in {each.path for each in read_files}]
        refused += [unreadable(file, _not_there()) for file in absent]
        read_files += [SourceFile(file, "", 0) for file in absent]
    return SourceResult(
        tables={
            "filings": _frame(filings, schemas.FILINGS),
            "facts": _frame(content.facts, schemas.FACTS),
            "messages": _frame(content.messages, schemas.MESSAGES),
            "checks": _frame(content.checks, schemas.CHECKS),
        },
        quarantine=quarantine_frame(quarantine),
        files=tuple(read_files),
        counts={
            "facts read": content.facts_read,
            "facts kept": len(content.facts),
            "duplicates of other facts": content.facts_read - len(content.facts) - len(quarantine),
        },
        unreadable=tuple(refused),
    )


def _filing_row(receipt: Receipt) -> tuple[Any, ...]:
    return (
        receipt.filing_id,
        receipt.entity_id,
        receipt.form,
        receipt.period_start,
        receipt.period_end,
        receipt.due_at,
        receipt.filed_at,
        receipt.file,
    )


def _not_there() -> Refusal:
    return Refusal("file_missing", "the receipt log lists a filing that is not there.", expected="the file", got="none")


def _frame(rows: Sequence[tuple[Any, ...]], schema: Any) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schemas.polars_schema(schema), orient="row")
