"""What was read, and where every record of it went: counts that must add up before anything is saved."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from reperform.errors import ReperformError
from reperform.ingest.combine import Combined
from reperform.ingest.source import RULE_OF_FILES, SOURCE, SourceResult

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
        "tables": {table: {"rows_out": frame.height} for table, frame in combined.tables.items()},
        "quarantined": _by_rule(combined.quarantine),
    }


def _of_source(name: str, source: Mapping[str, Any], result: SourceResult, combined: Combined) -> dict[str, Any]:
    kind = str(source["kind"])
    refused = combined.quarantine.filter(pl.col(SOURCE) == name)
    whole = pl.col("rule").str.starts_with(RULE_OF_FILES)
    main = MAIN_TABLE.get(kind, str(source.get("target", "")))
    one = {
        "kind": kind,
        "files": [{"path": f.path, "sha256": f.sha256, "records": f.records} for f in result.files],
        "rows_in": sum(file.records for file in result.files),
        "rows_out": combined.rows_out[name].get(main, 0),
        "tables": combined.rows_out[name],
        "left_out": {**result.left_out, **{name: n for name, n in result.counts.items() if n and name in COUNTED_ONCE}},
        "quarantined": _by_rule(refused.filter(~whole)),
        "files_refused": _by_rule(refused.filter(whole)),
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


def _by_rule(refused: pl.DataFrame) -> dict[str, int]:
    counted = refused.group_by("rule", maintain_order=True).len().sort("rule")
    return dict(counted.iter_rows())
