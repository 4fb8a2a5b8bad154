"""What a trial found, as short lines of text, with what to do next."""

from collections.abc import Mapping

import polars as pl

from reperform import schemas, validity
from reperform.sources.terminal import aligned, shown
from reperform.sources.trial import Trial, Tried

ROWS_SHOWN = 3
RULES_SHOWN = 12
TABLES_SHOWN = ("transactions", "accounts", "labels")
AUTOMATIC = ("source_file", "source_record")


def lines(trial: Trial) -> list[str]:
    """Everything there is to say of a trial."""
    parts = [
        [f"Map {trial.name}, amounts in {trial.base_currency}", *_sources(trial)],
        *(_first_rows(name, trial) for name in TABLES_SHOWN),
        _refused(trial),
        _rules(trial),
        _remarks(trial),
        _next(trial),
    ]
    return [line for part in parts if part for line in [*part, ""]][:-1]


def _sources(trial: Trial) -> list[str]:
    rows: list[tuple[str, ...]] = [("source", "records", "rows", "refused", "left out", "files")]
    for name, one in trial.tried.items():
        if name not in trial.receipt:
            rows.append((shown(name), "", "", "", "", one.note))
            continue
        receipt = trial.receipt[name]
        refused = {**receipt["quarantined"], **receipt["files_refused"]}
        counts = (receipt["rows_in"], receipt["rows_out"], sum(refused.values()), sum(receipt["left_out"].values()))
        rows.append((shown(name), *(f"{count:,}" for count in counts), _files(one)))
    return aligned(rows)


def _files(one: Tried) -> str:
    named = ", ".join(shown(file) for file in one.files[:2])
    more = len(one.files) - 2 + one.others
    extent = "whole" if one.is_whole else "beginning"
    return f"{named}{f' and {more} more' if more > 0 else ''} ({extent})"


def _first_rows(name: str, trial: Trial) -> list[str]:
    table = trial.tables.get(name)
    if table is None or table.is_empty():
        return []
    rows = table.head(ROWS_SHOWN)
    cells = [
        (column, *(shown(value if value is not None else "-", 32) for value in rows.get_column(column).to_list()))
        for column in rows.columns
        if column not in AUTOMATIC
    ]
    return [f"First rows of {name}", *aligned(cells)]


def _refused(trial: Trial) -> list[str]:
    """What ingest refuses, by rule, with one example of each."""
    quarantine = trial.quarantine
    if quarantine.is_empty():
        return ["Ingest refuses nothing."]
    counted = (
        quarantine.group_by("table", "rule", "column", maintain_order=True)
        .agg(pl.len().alias("n"), pl.col("value", "source_file", "source_record").first())
        .sort("n", descending=True, maintain_order=True)
    )
    rows = [
        (
            f"{row['n']:,}",
            shown(row["rule"]),
            shown(row["column"] or ""),
            f"such as {shown(row['value'])}" if row["value"] is not None else "",
            _place(row["source_file"], row["source_record"]),
        )
        for row in counted.head(RULES_SHOWN).iter_rows(named=True)
    ]
    more = counted.height - len(rows)
    return [
        f"Ingest would quarantine {quarantine.height:,}",
        *aligned(rows),
        *([f"  and {more} more rules"] if more > 0 else []),
    ]


def _place(file: str, record: int) -> str:
    return f"{shown(file)}, record {record:,}" if record else f"{shown(file)}, the whole file"


def _rules(trial: Trial) -> list[str]:
    """Which rows fail which rule of validate."""
    rows = [
        (f"{f.failing:,}", f.severity, f.name, validity.meaning(f.name), f"such as {shown(', '.join(f.examples[:2]))}")
        for table in trial.checked.values()
        for f in table.findings
        if f.failing and f.name not in trial.not_judged
    ]
    if not rows:
        return ["Validate finds nothing to refuse."]
    return ["Validate would find", *aligned(rows)]


def _remarks(trial: Trial) -> list[str]:
    """What the map leaves open: columns without a value, and what a sample cannot tell."""
    transactions = trial.tables["transactions"]
    empty = [
        name
        for name, column in schemas.TRANSACTIONS.columns.items()
        if column.nullable and transactions.height and transactions.get_column(name).null_count() == transactions.height
    ]
    said = []
    if empty:
        said.append(f"Never given: {', '.join(empty)}. KPIs that need them stay unknown.")
    if transactions.height and transactions.filter(pl.col("known_at") > pl.col("booked_at")).is_empty():
        said.append("Everything is known the moment it is booked: the map has no time of arrival.")
    if trial.outside:
        said.append(f"{trial.outside:,} labels are about transactions that were not read here.")
    said += [f"Not judged: {rule}; {reason}." for rule, reason in trial.not_judged.items()]
    return said


def _next(trial: Trial) -> list[str]:
    if trial.files_refused:
        return [
            "Next:",
            f"  mend `format` in conf/ingest/{trial.name}.yaml, for a file cannot be read, or get it again.",
        ]
    wants = any("transactions" in one["tables"] for one in trial.receipt.values())
    if wants and trial.tables["transactions"].is_empty():
        return ["Next:", f"  mend conf/ingest/{trial.name}.yaml, for no transaction comes out; then run this again."]
    refused = trial.quarantine.height + sum(one.refused.height for one in trial.checked.values())
    first = (
        f"  mend conf/ingest/{trial.name}.yaml where a rule above is the map's fault, and run this again; then"
        if refused
        else "  compare the rows above with the file: sign, time, account. Where they agree,"
    )
    return [
        "Next:",
        first,
        "  choose the calendar in conf/split/ and run",
        f"  make repro SET='simulate=none ingest={trial.name} split=NAME evaluate=labels'",
    ]


def listed(maps: Mapping[str, list[tuple[str, str, str, str]]]) -> list[str]:
    """Maps with their sources: name, kind, target, and the files that are there or missing."""
    rows = [("map", "source", "kind", "gives", "files")]
    for name, sources in maps.items():
        for place, (source, kind, target, files) in enumerate(sources):
            rows.append((shown(name) if place == 0 else "", shown(source), shown(kind), shown(target), shown(files)))
    return aligned(rows, indent="")
