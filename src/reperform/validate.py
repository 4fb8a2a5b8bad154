"""Check every row against its contract and its neighbours; quarantine what fails; say what the data are like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from reperform import feeds, paths, quality, quality_changes, schemas, severity, tables, validity
from reperform.errors import ReperformError
from reperform.feeds import FeedFinding
from reperform.params import ValidateParams
from reperform.validity import RULES, Rule, Tables

SORTED_BY = {
    "transactions": ["booked_at", "transaction_id"],
    "labels": ["transaction_id"],
    "accounts": ["account_id"],
    "filings": ["filed_at", "filing_id"],
}
MOST_EXAMPLES = 5
MOST_TOLD = 5  # findings in an error message
# Beside a table's own columns, of which one may well be called `rule`.
PLACE, RULE, COLUMN, VALUE = "__place", "__rule", "__column", "__value"
AT_FILE, AT_RECORD = "__at_file", "__at_record"
OWN_KEY = {"accounts": "account_id", "labels": "transaction_id", "filings": "filing_id"}


@dataclass(frozen=True)
class Finding:
    """What one rule found in one table.

    Args:
        name: of the rule.
        severity: what happens to rows that fail it.
        failing: how many rows fail.
        quarantined: how many of them it sent to quarantine; a row goes there once, by the first rule that it fails.
        examples: some of the values that fail.
    """

    name: str
    severity: str
    failing: int
    quarantined: int
    examples: list[str]


FAILING = {
    "rule": pl.String, "source_file": pl.String, "first_day": pl.Date, "n_days": pl.Int64, "n": pl.Int64,
    "record": pl.Int64, "column": pl.String, "value": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """One table after its rules.

    Args:
        clean: rows that may go on.
        refused: the others, as `schemas.QUARANTINE`.
        findings: one for each rule.
        failing: rows that break a rule by rule and file, refused or not: `rule`, `source_file`, `first_day`, `n_days`,
            `n`, `record`, `column`, `value` of the first.
    """

    clean: pl.DataFrame
    refused: pl.DataFrame
    findings: list[Finding]
    failing: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=FAILING))


@dataclass(frozen=True)
class Validated:
    """All tables after their rules, and what there is to say of them.

    Args:
        document: as in quality.json.
        days: as `schemas.QUALITY_DAYS`.
        findings: as `schemas.FINDINGS`.
        mixes: as `schemas.QUALITY_MIXES`.
        tables: the clean tables.
        quarantine: refused rows.
    """

    document: dict[str, Any]
    days: pl.DataFrame
    findings: pl.DataFrame
    mixes: pl.DataFrame
    tables: dict[str, pl.DataFrame] = field(repr=False)
    quarantine: pl.DataFrame = field(repr=False)


def check_table(
    name: str,
    rows: pl.DataFrame,
    clean: Tables,
    severity: Mapping[str, str],
    *,
    found: Sequence[FeedFinding] = (),
    origins: pl.DataFrame | None = None,
) -> Checked:
    """Apply a table's contract and rules, then keep out what feed checks blame.

    Args:
        name: of the table.
        rows: as they were ingested.
        clean: the clean tables that come before it in `validity.ORDER`, and `amount_limits`.
        severity: by rule.
        found: what feed checks have found.
        origins: as `schemas.ORIGINS`; where rows of other tables than transactions were read.

    Raises:
        ReperformError: when a rule with severity `stop` fails.
    """
    numbered = _located(rows.with_row_index(PLACE).cast({PLACE: pl.Int64}), name, origins)
    contract = f"{name}_contract"
    broken = validity.contract_failures(rows, schemas.CANONICAL[name])
    taken = pl.DataFrame(schema={PLACE: pl.Int64, RULE: pl.String, COLUMN: pl.String, VALUE: pl.String})
    contract_cases = broken.select(
        pl.col("index").alias(PLACE),
        pl.lit(contract).alias(RULE),
        pl.col("column").alias(COLUMN),
        pl.col("value").alias(VALUE),
    )
    cases = [(contract, contract_cases), *((r.name, _failures(r, rows, clean)) for r in RULES if r.table == name)]
    findings = []
    for rule, failing in cases:
        taken, finding = _taken(taken, failing, rule, severity[rule], numbered)
        findings.append(finding)
    for rule in sorted({one.rule for one in found if one.table == name and one.severity == "quarantine"}):
        blamed = _blamed(found, name, numbered, rule)
        taken, finding = _taken(taken, blamed, rule, "quarantine", numbered)
        findings.append(finding)
    refused = numbered.join(taken.sort(PLACE), on=PLACE, how="inner", maintain_order="left")
    kept = rows.with_row_index(PLACE).cast({PLACE: pl.Int64})
    kept = kept.join(taken, on=PLACE, how="anti", maintain_order="left").drop(PLACE)
    failing = pl.concat([failing for _, failing in cases])
    told = _failing_by_file(failing, numbered)
    return Checked(_sorted(kept, name), _as_quarantine(refused, name, rows.columns), findings, told)


def _located(numbered: pl.DataFrame, table: str, origins: pl.DataFrame | None) -> pl.DataFrame:
    """The rows with the raw file and record behind each; without that, the ingested table and the row in it."""
    columns = numbered.columns
    at_file, at_record = pl.lit(None, pl.String), pl.lit(None, pl.Int64)
    if {"source_file", "source_record"} <= set(columns):
        at_file, at_record = pl.col("source_file"), pl.col("source_record")
    elif origins is not None and ("filing_id" in columns or table in OWN_KEY):
        key = OWN_KEY.get(table, "filing_id")
        of = "filings" if key == "filing_id" else table
        known = origins.filter(pl.col("table") == of).select(
            pl.col("key").alias(key), pl.col("source_file").alias(AT_FILE), pl.col("source_record").alias(AT_RECORD)
        )
        numbered = numbered.join(known, on=key, how="left", maintain_order="left")
        at_file, at_record = pl.col(AT_FILE), pl.col(AT_RECORD)
        if "source_line" in columns:
            at_record = pl.coalesce("source_line", AT_RECORD)
    nowhere = at_file.is_null()
    return numbered.with_columns(
        pl.when(nowhere).then(pl.lit(f"data/ingest/{table}.parquet")).otherwise(at_file).alias(AT_FILE),
        pl.when(nowhere).then(pl.col(PLACE) + 1).otherwise(at_record.fill_null(0)).alias(AT_RECORD),
    )


def _blamed(found: Sequence[FeedFinding], table: str, numbered: pl.DataFrame, rule: str) -> pl.DataFrame:
    rows = numbered.with_columns(source_file=pl.col(AT_FILE))
    return numbered.filter(feeds.rows_of(found, table, rows, rule)).select(
        PLACE, pl.lit(rule).alias(RULE), pl.lit(None, pl.String).alias(COLUMN), pl.lit(None, pl.String).alias(VALUE)
    )


def _failing_by_file(failing: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
    """Rows that break rules, by rule and raw file."""
    day = pl.col("booked_at").dt.date() if "booked_at" in numbered.columns else pl.lit(None, pl.Date)
    places = numbered.select(PLACE, AT_FILE, AT_RECORD, day.alias("day"))
    grouped = (
        failing.join(places, on=PLACE, how="left", maintain_order="left")
        .group_by(RULE, AT_FILE, maintain_order=True)
        .agg(
            first_day=pl.col("day").min(),
            n_days=pl.col("day").n_unique(),
            n=pl.len(),
            record=pl.col(AT_RECORD).first(),
            column=pl.col(COLUMN).first(),
            value=pl.col(VALUE).first(),
        )
    )
    told = grouped.select(pl.col(RULE).alias("rule"), pl.col(AT_FILE).alias("source_file"), *list(FAILING)[2:])
    return told.select(pl.col(name).cast(kind) for name, kind in FAILING.items())


def _failures(rule: Rule, rows: pl.DataFrame, clean: Tables) -> pl.DataFrame:
    failing = rule.failing(rows, clean).fill_null(value=False)
    return (
        rows.with_row_index(PLACE)
        .filter(failing)
        .select(
            pl.col(PLACE).cast(pl.Int64),
            pl.lit(rule.name).alias(RULE),
            pl.lit(rule.column).alias(COLUMN),
            pl.col(rule.column).cast(pl.String).alias(VALUE),
        )
    )


def _taken(
    taken: pl.DataFrame, found: pl.DataFrame, name: str, severity: str, numbered: pl.DataFrame
) -> tuple[pl.DataFrame, Finding]:
    """The rows to refuse so far with those of one more rule, and what that rule found."""
    if severity == "stop" and found.height:
        first = numbered.filter(pl.col(PLACE).is_in(found.get_column(PLACE).head(MOST_EXAMPLES).implode()))
        places = [f"{file} record {record}" for file, record in first.select(AT_FILE, AT_RECORD).iter_rows()]
        raise ReperformError(
            f"{found.height} rows break rule {name}.",
            expected=validity.meaning(name),
            got=", ".join(_examples(found)),
            where=f"table {validity.table_of(name)}: {', '.join(places)}",
            fix=f"mend the source, or set `validate.rules.{name}` to quarantine or warn in conf/validate/",
        )
    new = found.join(taken, on=PLACE, how="anti", maintain_order="left") if severity == "quarantine" else found.clear()
    return pl.concat([taken, new]), Finding(name, severity, found.height, new.height, _examples(found))


def _examples(found: pl.DataFrame) -> list[str]:
    values = found.get_column(VALUE).fill_null("nothing").unique(maintain_order=True)
    return [str(value) for value in values.head(MOST_EXAMPLES)]


def _as_quarantine(refused: pl.DataFrame, table: str, columns: list[str]) -> pl.DataFrame:
    return refused.select(
        table=pl.lit(table),
        source_file=AT_FILE,
        source_record=AT_RECORD,
        rule=RULE,
        column=COLUMN,
        value=VALUE,
        row=pl.struct(columns).struct.json_encode(),
    )


def _sorted(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    return rows.sort(SORTED_BY[name], maintain_order=True) if name in SORTED_BY else rows


def check_all(
    raw: Tables,
    severity: Mapping[str, str],
    *,
    limits: pl.DataFrame | None = None,
    found: Sequence[FeedFinding] = (),
    origins: pl.DataFrame | None = None,
) -> dict[str, Checked]:
    """Every table, parents first, so that a row that refers to a refused row is refused as well."""
    checked: dict[str, Checked] = {}
    reference = {} if limits is None else {"amount_limits": limits}
    for name in validity.ORDER:
        clean = reference | {table: one.clean for table, one in checked.items()}
        checked[name] = check_table(name, raw[name], clean, severity, found=found, origins=origins)
    return checked


def stop_for_feeds(found: Sequence[FeedFinding]) -> None:
    """Stop when a feed check whose severity is `stop` has found something.

    Raises:
        ReperformError: with the first finding in full, and the others by name.
    """
    stopping = [one for one in found if one.severity == "stop"]
    if not stopping:
        return
    first = stopping[0]
    others = sorted({f"{one.rule} ({one.file or one.source})" for one in stopping[1:]})[:MOST_TOLD]
    raise ReperformError(
        f"Feed {first.source} breaks rule {first.rule}." + (f" Also: {'; '.join(others)}." if others else ""),
        expected=first.expected,
        got=first.observed,
        where=", ".join(filter(None, (first.file, first.day.isoformat() if first.day else ""))) or first.source,
        fix=f"{feeds.FEED_RULES[first.rule][1]}; or set `validate.feeds.{first.rule}` to warn in conf/validate/",
    )


def reconciled(raw: Tables, checked: Mapping[str, Checked]) -> None:
    """Refuse to go on unless each row that came in either goes on or is in quarantine.

    Raises:
        ReperformError: that is an error of the program, never of the data.
    """
    for name, one in checked.items():
        by_rule = sum(finding.quarantined for finding in one.findings)
        if raw[name].height != one.clean.height + one.refused.height or one.refused.height != by_rule:
            raise ReperformError(
                f"The counts of table {name} do not add up.",
                expected=f"{raw[name].height} rows",
                got=f"{one.clean.height} clean + {one.refused.height} refused, {by_rule} by rule",
                where=f"stage validate, table {name}",
                fix="report this; nothing was saved",
            )


def reconciled_by_source(by_source: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on unless the rows of each source go on or are in quarantine by a rule.

    Raises:
        ReperformError: that is an error of the program, never of the data.
    """
    for one in by_source:
        refused = sum(one["refused_by_validate"].values())
        if one["rows_out"] is not None and one["ingested"] != one["rows_out"] + refused:
            raise ReperformError(
                f"The counts of source {one['source']} do not add up.",
                expected=f"{one['ingested']} rows of {one['table']}",
                got=f"{one['rows_out']} clean + {refused} refused",
                where=f"stage validate, source {one['source']}",
                fix="report this; nothing was saved",
            )


def stop_above(raw: Tables, checked: Mapping[str, Checked], share: float, found: Sequence[FeedFinding] = ()) -> None:
    """Stop when too much of a table is refused: then the feed is wrong, and not some rows of it.

    Raises:
        ReperformError: naming the table, its share and the rules.
    """
    for name, one in checked.items():
        if one.refused.height > share * raw[name].height:
            rules = ", ".join(f"{f.name} {f.quarantined}" for f in one.findings if f.quarantined)
            raise ReperformError(
                f"Too many rows of table {name} fail.",
                expected=f"at most {share:.2%} in quarantine (validate.stop_above_share)",
                got=f"{one.refused.height} of {raw[name].height} rows: {rules}{_suspects(found, name)}",
                where=_files_of(one.refused),
                fix="mend the column map or the source; or raise the share, or set the rule to warn, in conf/validate/",
            )


def _suspects(found: Sequence[FeedFinding], table: str) -> str:
    """What feed checks say, for the one who has to find out why so much fails: a refused row takes others with it."""
    first = sorted(found, key=lambda one: (one.table != table, -one.rows, one.rule, one.file))
    told = [f"{one.rule} in {one.file or one.source} ({one.observed})" for one in first]
    return f"; feed checks say: {'; '.join(told[:MOST_TOLD])}" if told else ""


def _files_of(refused: pl.DataFrame) -> str:
    counted = refused.group_by("source_file").len().sort(["len", "source_file"], descending=[True, False])
    listed = [f"{file} ({n} rows)" for file, n in counted.head(MOST_TOLD).iter_rows()]
    more = f" and {counted.height - MOST_TOLD} files more" if counted.height > MOST_TOLD else ""
    return ", ".join(listed) + more


def origins_of(raw: Tables) -> pl.DataFrame:
    """Where rows without columns for it were read: accounts and labels as ingest tells, filings in their files."""
    filings = raw["filings"].select(
        table=pl.lit("filings"), key="filing_id", source_file="source_file", source_record=pl.lit(0, pl.Int64)
    )
    parts = [schemas.empty(schemas.ORIGINS), filings.drop_nulls().unique("key", keep="first", maintain_order=True)]
    if (
        paths.data("ingest") / "origins.parquet"
    ).is_file():  # tables that were ingested by an earlier version have none
        parts.append(tables.read_table("ingest", "origins"))
    return pl.concat(parts)


def run(params: ValidateParams) -> Validated:
    """Check the ingested tables, save the clean ones, quarantine and quality.json; return what the notebook shows."""
    rules = severity.of_rules(params.rules)
    raw = {name: tables.read_table("ingest", name) for name in validity.ORDER}
    refused_before, receipt = tables.read_table("ingest", "quarantine"), tables.read_json("ingest", "receipt")
    found = feeds.check(raw, refused_before, receipt, params.feeds, params.feed_limits)
    stop_for_feeds(found)
    origins = origins_of(raw)
    limits = validity.amount_limits(params.amount_limits)
    checked = check_all(raw, rules, limits=limits, found=found, origins=origins)
    reconciled(raw, checked)
    stop_above(raw, checked, params.stop_above_share, found)
    clean = {name: schemas.checked(one.clean, schemas.CANONICAL[name]) for name, one in checked.items()}
    quarantine = pl.concat([schemas.empty(schemas.QUARANTINE), *(one.refused for one in checked.values())])
    told = {name: [quality.as_finding(finding, name) for finding in one.findings] for name, one in checked.items()}
    failing = {name: one.failing for name, one in checked.items()}
    listed = quality.findings(found, failing, rules, receipt)
    document = quality.document(raw, clean, told, refused_before, receipt)
    by_source = quality.by_source(receipt, clean, quarantine, origins)
    reconciled_by_source(by_source)
    document |= {"findings": listed, "by_source": by_source}
    return _saved(document, clean, quarantine)


def _saved(document: dict[str, Any], clean: dict[str, pl.DataFrame], quarantine: pl.DataFrame) -> Validated:
    days = schemas.checked(quality.days(clean["transactions"]), schemas.QUALITY_DAYS)
    mixes = schemas.checked(quality.mixes(clean["transactions"]), schemas.QUALITY_MIXES)
    findings = schemas.checked(quality.findings_frame(document), schemas.FINDINGS)
    for name, frame in clean.items():
        tables.write_table(frame.rechunk(), "validate", name)
    tables.write_table(schemas.checked(quarantine, schemas.QUARANTINE).rechunk(), "validate", "quarantine")
    for name, frame in {"quality_days": days, "quality_mixes": mixes, "findings": findings}.items():
        tables.write_table(frame, "validate", name)
    tables.write_json(document, "validate", "quality")
    quality_changes.remember(document)
    return Validated(document, days, findings, mixes, clean, quarantine)
