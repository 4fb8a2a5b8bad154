"""Check every row against its contract and its neighbours; quarantine what fails; say what the data are like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from reperform import quality, schemas, tables, validity
from reperform.errors import ReperformError, nearest
from reperform.params import ValidateParams
from reperform.validity import RULES, Rule, Tables

SORTED_BY = {
    "transactions": ["booked_at", "transaction_id"],
    "labels": ["transaction_id"],
    "accounts": ["account_id"],
    "filings": ["filed_at", "filing_id"],
}
MOST_EXAMPLES = 5
MUST_HOLD = ("_contract", "_unique")  # rules whose breaking no later stage could live with
# Beside a table's own columns, of which one may well be called `rule`.
PLACE, RULE, COLUMN, VALUE = "__place", "__rule", "__column", "__value"


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


@dataclass(frozen=True)
class Checked:
    """One table after its rules.

    Args:
        clean: rows that may go on.
        refused: the others, as `schemas.QUARANTINE`.
        findings: one for each rule.
    """

    clean: pl.DataFrame
    refused: pl.DataFrame
    findings: list[Finding]


@dataclass(frozen=True)
class Validated:
    """All tables after their rules, and what there is to say of them.

    Args:
        document: as in quality.json.
        days: as `schemas.QUALITY_DAYS`.
        tables: the clean tables.
        quarantine: refused rows.
    """

    document: dict[str, Any]
    days: pl.DataFrame
    tables: dict[str, pl.DataFrame] = field(repr=False)
    quarantine: pl.DataFrame = field(repr=False)


def severities(rules: Mapping[str, str]) -> dict[str, str]:
    """A severity for each rule, as conf/validate/ says.

    Raises:
        ReperformError: for a rule that does not exist (naming the nearest), one without a severity, or a contract that
            would only warn: no later stage could read the rows.
    """
    known = validity.names()
    unknown = [name for name in rules if name not in known]
    missing = [name for name in known if name not in rules]
    if unknown or missing:
        raise ReperformError(
            f"Unknown rule {unknown[0]!r}." if unknown else f"Rule {missing[0]!r} has no severity.",
            expected="warn, quarantine or stop for every rule, and for no other",
            got=", ".join(unknown) if unknown else f"nothing for {', '.join(missing)}",
            where="validate.rules",
            fix=f"{nearest(unknown[0], known) if unknown else 'add it'} in conf/validate/; then run `make params`",
        )
    too_mild = [name for name in known if rules[name] == "warn" and name.endswith(MUST_HOLD)]
    if too_mild:
        raise ReperformError(
            f"Rule {too_mild[0]!r} cannot only warn.",
            expected="quarantine or stop: later stages rely on contracts and on unique ids",
            got=f"warn for {', '.join(too_mild)}",
            where="validate.rules",
            fix="change it in conf/validate/ and run `make params`",
        )
    return dict(rules)


def check_table(name: str, rows: pl.DataFrame, clean: Tables, severity: Mapping[str, str]) -> Checked:
    """Apply a table's contract and rules.

    Args:
        name: of the table.
        rows: as they were ingested.
        clean: the clean tables that come before it in `validity.ORDER`.
        severity: by rule.

    Raises:
        ReperformError: when a rule with severity `stop` fails.
    """
    numbered = rows.with_row_index(PLACE).cast({PLACE: pl.Int64})
    contract = f"{name}_contract"
    broken = validity.contract_failures(rows, schemas.CANONICAL[name])
    taken = pl.DataFrame(schema={PLACE: pl.Int64, RULE: pl.String, COLUMN: pl.String, VALUE: pl.String})
    found = broken.select(
        pl.col("index").alias(PLACE),
        pl.lit(contract).alias(RULE),
        pl.col("column").alias(COLUMN),
        pl.col("value").alias(VALUE),
    )
    findings = []
    taken, finding = _taken(taken, found, contract, severity[contract])
    findings.append(finding)
    for rule in (rule for rule in RULES if rule.table == name):
        taken, finding = _taken(taken, _failures(rule, rows, clean), rule.name, severity[rule.name])
        findings.append(finding)
    refused = numbered.join(taken.sort(PLACE), on=PLACE, how="inner", maintain_order="left")
    kept = numbered.join(taken, on=PLACE, how="anti", maintain_order="left").drop(PLACE)
    return Checked(_sorted(kept, name), _as_quarantine(refused, name, rows.columns), findings)


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


def _taken(taken: pl.DataFrame, found: pl.DataFrame, name: str, severity: str) -> tuple[pl.DataFrame, Finding]:
    """The rows to refuse so far with those of one more rule, and what that rule found."""
    if severity == "stop" and found.height:
        raise ReperformError(
            f"{found.height} rows break rule {name}.",
            expected=validity.meaning(name),
            got=", ".join(_examples(found)),
            where=f"table {validity.table_of(name)}, rows {', '.join(str(p + 1) for p in found[PLACE].head(5))}",
            fix=f"mend the source, or set `validate.rules.{name}` to quarantine or warn in conf/validate/",
        )
    new = found.join(taken, on=PLACE, how="anti", maintain_order="left") if severity == "quarantine" else found.clear()
    return pl.concat([taken, new]), Finding(name, severity, found.height, new.height, _examples(found))


def _examples(found: pl.DataFrame) -> list[str]:
    values = found.get_column(VALUE).fill_null("nothing").unique(maintain_order=True)
    return [str(value) for value in values.head(MOST_EXAMPLES)]


def _as_quarantine(refused: pl.DataFrame, table: str, columns: list[str]) -> pl.DataFrame:
    """Refused rows with where they came from: the raw file where the table says it, else the ingested table."""
    knows = {"source_file", "source_record"} <= set(columns)
    return refused.select(
        table=pl.lit(table),
        source_file=pl.col("source_file") if knows else pl.lit(f"data/ingest/{table}.parquet"),
        source_record=pl.col("source_record") if knows else pl.col(PLACE) + 1,
        rule=RULE,
        column=COLUMN,
        value=VALUE,
        row=pl.struct(columns).struct.json_encode(),
    )


def _sorted(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    return rows.sort(SORTED_BY[name], maintain_order=True) if name in SORTED_BY else rows


def check_all(raw: Tables, severity: Mapping[str, str]) -> dict[str, Checked]:
    """Every table, parents first, so that a row that refers to a refused row is refused as well."""
    checked: dict[str, Checked] = {}
    for name in validity.ORDER:
        clean = {table: one.clean for table, one in checked.items()}
        checked[name] = check_table(name, raw[name], clean, severity)
    return checked


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


def stop_above(raw: Tables, checked: Mapping[str, Checked], share: float) -> None:
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
                got=f"{one.refused.height} of {raw[name].height} rows: {rules}",
                where=f"data/ingest/{name}.parquet",
                fix="mend the column map or the source; or raise the share, or set the rule to warn, in conf/validate/",
            )


def run(params: ValidateParams) -> Validated:
    """Check the ingested tables, save the clean ones, quarantine and quality.json; return what the notebook shows."""
    severity = severities(params.rules)
    raw = {name: tables.read_table("ingest", name) for name in validity.ORDER}
    checked = check_all(raw, severity)
    reconciled(raw, checked)
    stop_above(raw, checked, params.stop_above_share)
    clean = {name: schemas.checked(one.clean, schemas.CANONICAL[name]) for name, one in checked.items()}
    quarantine = pl.concat([schemas.empty(schemas.QUARANTINE), *(one.refused for one in checked.values())])
    days = schemas.checked(quality.days(clean["transactions"]), schemas.QUALITY_DAYS)
    found = {name: [quality.as_finding(finding) for finding in one.findings] for name, one in checked.items()}
    refused_before = tables.read_table("ingest", "quarantine")
    document = quality.document(raw, clean, found, refused_before, tables.read_json("ingest", "receipt"))
    for name, frame in clean.items():
        tables.write_table(frame.rechunk(), "validate", name)
    tables.write_table(schemas.checked(quarantine, schemas.QUARANTINE).rechunk(), "validate", "quarantine")
    tables.write_table(days, "validate", "quality_days")
    tables.write_json(document, "validate", "quality")
    return Validated(document, days, clean, quarantine)
