"""What was read, and where every record of it went: counts that must add up before anything is saved."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from reperform import schemas
from reperform.errors import ReperformError
from reperform.ingest.column_map import TARGETS
from reperform.ingest.combine import DUPLICATE_ID, Combined
from reperform.ingest.source import DUPLICATE_FILE, RULE_OF_FILES, SourceFile, SourceResult

# The table that a source's records become rows of; a source of tables names its own.
MAIN_TABLE = {"iso20022": "transactions", "xbrl": "facts"}
# A fact that says the same as another one of its filing is counted by the reader, and kept once.
COUNTED_ONCE = ("duplicates of other facts",)


def receipt(sources: Mapping[str, Mapping[str, Any]], results: Mapping[str, SourceResult], combined: Combined) -> Any:
    """Per source: files with SHA-256, records in, rows out, records left out and refused by reason.

    Raises:
        ReperformError: when the counts of a source do not add up. That is an error of the program, never of the data.
    """
    return {
        "sources": {name: _of_source(name, sources[name], results[name], combined) for name in results},
        "tables": {table: {"rows_out": combined.rows[table]} for table in schemas.CANONICAL},
        "quarantined": _by_rule(combined),
    }


def _of_source(name: str, source: Mapping[str, Any], result: SourceResult, combined: Combined) -> dict[str, Any]:
    kind = str(source["kind"])
    rules = _by_rule(combined, source=name)
    main = MAIN_TABLE.get(kind, str(source.get("target", "")))
    one = {
        "kind": kind,
        "files": [_of_file(name, file, combined) for file in result.files],
        "rows_in": sum(file.records for file in result.files),
        "rows_out": combined.rows_out[name][main],
        "tables": {table: combined.rows_out[name][table] for table in result.tables if table in TARGETS},
        "left_out": {**result.left_out, **{name: n for name, n in result.counts.items() if n and name in COUNTED_ONCE}},
        "quarantined": {rule: n for rule, n in rules.items() if not rule.startswith(RULE_OF_FILES)},
        "files_refused": {rule: n for rule, n in rules.items() if rule.startswith(RULE_OF_FILES)},
        "files_seen_before": rules.get(DUPLICATE_FILE, 0),
        "counts": {name: n for name, n in result.counts.items() if name not in COUNTED_ONCE},
    }
    _check(name, one)
    return one


def _check(name: str, one: Mapping[str, Any]) -> None:
    out = {"rows out": one["rows_out"], **one["left_out"], **one["quarantined"]}
    if sum(out.values()) != one["rows_in"]:
        raise ReperformError(
            f"The counts of source {name} do not add up.",
            expected=f"{one['rows_in']} records",
            got=" + ".join(f"{n} {reason}" for reason, n in out.items()),
            where=f"data/ingest/receipt.json: {name}",
            fix="report this: a reader has lost or doubled a record; nothing was saved",
        )


def _of_file(source: str, file: SourceFile, combined: Combined) -> dict[str, Any]:
    """A file with its digest and records; `duplicate_rows` where rows of it came before, in another file or in it."""
    one: dict[str, Any] = {"path": file.path, "sha256": file.sha256, "records": file.records}
    again = combined.refused[source, file.path, DUPLICATE_ID]
    return {**one, "duplicate_rows": again} if again else one


def _by_rule(combined: Combined, source: str | None = None) -> dict[str, int]:
    counted = Counter[str]()
    for (name, _, rule), n in combined.refused.items():
        if source in (None, name):
            counted[rule] += n
    return dict(sorted(counted.items()))
