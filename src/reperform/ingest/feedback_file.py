"""data/feedback/labels.csv: what people told the service, as one more source of labels.

Where the file is missing, everything is as if there were no such thing. A label of a transaction that no source has
delivered yet is set aside: it counts once the transaction has come. Of two labels of one transaction, the one that was
confirmed later counts, whichever way it came.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from reperform import paths, schemas
from reperform.ingest import table
from reperform.ingest.column_map import table_source
from reperform.ingest.parts import Store
from reperform.ingest.source import FILE, RECORD, SourceResult, row_as_json

NAME = "service_feedback"
FILE_NAME = "feedback/labels.csv"  # below data/, as it stands in outputs
AHEAD = "label_ahead_of_transaction"
SUPERSEDED = "label_superseded"
COLUMNS = list(schemas.LABELS.columns)
SOURCE: dict[str, Any] = {
    "kind": "table",
    "target": "labels",
    "files": FILE_NAME,
    "columns": {name: name for name in COLUMNS},
}
_TIME = "%Y-%m-%dT%H:%M:%S%.6fZ"


def path() -> Path:
    """Where the file is, whether it is there or not."""
    return paths.project_root() / "data" / FILE_NAME


def as_text(labels: pl.DataFrame) -> str:
    """Labels as the file holds them: the same labels, the same bytes."""
    return labels.select(
        "transaction_id", "is_anomaly", "typology", pl.col("confirmed_at").dt.to_string(_TIME)
    ).write_csv(line_terminator="\n")


def read(file: Path) -> pl.DataFrame:
    """The labels in a file that `as_text` wrote.

    Raises:
        ReperformError: when it is no such file.
    """
    result = table.read(NAME, {**SOURCE, "files": file.name}, file.parent, processes=1)
    for error in result.unreadable:
        raise error
    return schemas.shaped(result.tables["labels"].drop(FILE, RECORD), schemas.LABELS)


def sources() -> dict[str, dict[str, Any]]:
    """The file's description, by its name as a source; empty where there is no file."""
    return {NAME: dict(SOURCE)} if path().is_file() else {}


def read_with(results: Mapping[str, SourceResult], store: Store) -> dict[str, SourceResult]:
    """The results of all sources with the file's labels before them; unchanged where there is no file.

    It comes first because, of two labels of one transaction, the first that was read is kept: labels in the file that
    another source has confirmed later are refused here.
    """
    if not path().is_file():
        return dict(results)
    (got,) = table.read_all({NAME: table_source(NAME, SOURCE)}, paths.project_root() / "data", store).values()
    return {NAME: sifted(table.in_memory(got), results), **results}


def sifted(feedback: SourceResult, others: Mapping[str, SourceResult]) -> SourceResult:
    """The file's labels without those that do not count now; these are refused with their reason.

    Args:
        feedback: the file, in memory.
        others: what the other sources gave.
    """
    labels = feedback.tables["labels"].with_columns(_rule(feedback.tables["labels"], others).alias("rule"))
    kept, refused = labels.filter(pl.col("rule").is_null()).drop("rule"), labels.filter(pl.col("rule").is_not_null())
    told = refused.select(
        table=pl.lit("labels"),
        source_file=FILE,
        source_record=RECORD,
        rule="rule",
        column=pl.lit("transaction_id"),
        value="transaction_id",
        row=row_as_json(COLUMNS),
    )
    return replace(feedback, tables={"labels": kept}, quarantine=pl.concat([feedback.quarantine, told]))


def _rule(labels: pl.DataFrame, others: Mapping[str, SourceResult]) -> pl.Series:
    """Why a label does not count now; null where it does."""
    ids = labels.get_column("transaction_id")
    delivered = set[str]()
    later: dict[str, Any] = {}
    for frame in _frames(others, "transactions", ["transaction_id"]):
        delivered.update(frame.filter(pl.col("transaction_id").is_in(ids.implode())).to_series())
    for frame in _frames(others, "labels", ["transaction_id", "confirmed_at"]):
        for one, confirmed_at in frame.filter(pl.col("transaction_id").is_in(ids.implode())).iter_rows():
            later.setdefault(one, confirmed_at)  # the first that was read is the one that would be kept
    rules = [
        AHEAD if one not in delivered else SUPERSEDED if one in later and later[one] > confirmed_at else None
        for one, confirmed_at in labels.select("transaction_id", "confirmed_at").iter_rows()
    ]
    return pl.Series(rules, dtype=pl.String)


def _frames(results: Mapping[str, SourceResult], name: str, columns: list[str]) -> Iterator[pl.DataFrame]:
    for result in results.values():
        if name in result.tables:
            yield result.tables[name].select(columns)
        for part in result.parts.get(name, ()):
            yield part.rows(columns)
