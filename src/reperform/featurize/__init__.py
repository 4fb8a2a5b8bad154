"""Compute the KPIs as known at each moment: from what had happened, was known and confirmed by then, nothing later."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from reperform import params, paths, schemas, tables
from reperform.errors import ReperformError, nearest
from reperform.featurize import days, dictionary, engine, outofcore, provenance
from reperform.featurize.engine import selected
from reperform.featurize.filings import filing_bridge, filing_tables
from reperform.featurize.kpis import KPIS
from reperform.featurize.ledger import Ledger
from reperform.params import EngineParams, FeaturizeParams, SplitParams

FILINGS = "filings"  # settings of KPIs 9 and 10
IDENTITY = ("transaction_id", "account_id", "counterparty_id", "entity_id", "booked_at")


@dataclass(frozen=True)
class Features:
    """What the stage makes of transactions.

    Args:
        table: identity columns, then one Float64 column per KPI value; null is unknown.
        dictionary: one entry per KPI column, in their order.
        fitted: parameters per KPI, learned before `split.fit_end`.
        account_days: one row per account and day.
    """

    table: pl.DataFrame
    dictionary: list[dict[str, Any]]
    fitted: dict[str, dict[str, Any]]
    account_days: pl.DataFrame


@dataclass(frozen=True)
class Large:
    """What the stage makes of transactions that do not fit into memory: `features` and `account_days` are in files.

    Args:
        dictionary: one entry per KPI column, in their order.
        fitted: parameters per KPI, learned before `split.fit_end`.
    """

    dictionary: list[dict[str, Any]]
    fitted: dict[str, dict[str, Any]]


def fit(ledger: Ledger, stage: FeaturizeParams, fit_end: datetime) -> dict[str, dict[str, Any]]:
    """Parameters of every KPI from what had happened and was known before `fit_end`."""
    end_us = int(fit_end.timestamp()) * 1_000_000
    return {kpi.name: kpi.fit(ledger, end_us, kpi.settings_of(stage.settings)) for kpi in selected(stage.kpis)}


def compute(
    ledger: Ledger, stage: FeaturizeParams, fitted: Mapping[str, dict[str, Any]], how: EngineParams | None = None
) -> pl.DataFrame:
    """Every KPI column for every transaction, in the table's order."""
    todo = engine.tasks(selected(stage.kpis), stage, fitted)
    made = engine.run(ledger, todo, how or EngineParams())
    columns = [pl.Series(name, values, dtype=pl.Float64, nan_to_null=True) for name, values in made.items()]
    return ledger.transactions.select(IDENTITY).with_columns(columns)


def check_settings(stage: FeaturizeParams) -> None:
    """Refuse settings of a KPI that does not exist, and settings that a KPI does not know.

    Raises:
        ReperformError: naming the nearest one that exists.
    """
    known = {kpi.settings_key or kpi.name for kpi in KPIS.values()} | {FILINGS}
    for name in stage.settings:
        if name not in known:
            raise ReperformError(
                f"Settings of an unknown KPI, {name!r}.",
                expected=f"some of {', '.join(sorted(known))}",
                got=name,
                where="params.yaml:featurize.settings",
                fix=f"{nearest(name, known)}; then change it in conf/featurize/ and run `make params`",
            )
    for kpi in KPIS.values():
        kpi.settings_of(stage.settings)


def ledger_of(
    transactions: pl.DataFrame, accounts: pl.DataFrame, labels: pl.DataFrame, stage: FeaturizeParams, split: SplitParams
) -> Ledger:
    """The tables as KPIs read them."""
    clock = KPIS["time_pattern"].settings_of(stage.settings).default_timezone
    return Ledger(transactions, accounts, labels, timedelta(days=split.label_maturity_days), clock)


def featurize(
    transactions: pl.DataFrame,
    accounts: pl.DataFrame,
    labels: pl.DataFrame,
    stage: FeaturizeParams,
    split: SplitParams,
    *,
    fitted: Mapping[str, dict[str, Any]] | None = None,
    how: EngineParams | None = None,
) -> Features:
    """All KPIs of transactions.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order of (booked_at, transaction_id).
        accounts: as `schemas.ACCOUNTS`.
        labels: as `schemas.LABELS`.
        stage: KPIs and settings.
        split: the calendar; parameters are learned before its `fit_end`.
        fitted: parameters learned earlier, to be used instead of learning them anew.
        how: size and number of buckets; the features do not depend on it.
    """
    check_settings(stage)
    ledger = ledger_of(transactions, accounts, labels, stage, split)
    learned = dict(fitted) if fitted is not None else fit(ledger, stage, split.fit_end)
    table = compute(ledger, stage, learned, how)
    absent = _absent(transactions.lazy(), accounts.lazy(), labels.lazy())
    described = describe(table.__getitem__, absent, stage)
    return Features(table, described, learned, days.account_days(ledger, ledger.days))


def describe(
    column: Callable[[str], pl.Series], absent: frozenset[str], stage: FeaturizeParams
) -> list[dict[str, Any]]:
    """The dictionary of a feature table.

    Args:
        column: gives a column of the table by its name.
        absent: canonical columns that the source gives for no row.
        stage: KPIs and settings.
    """
    return [
        dictionary.entry(kpi, each, column(each.name), absent)
        for kpi in selected(stage.kpis)
        for each in kpi.columns(kpi.settings_of(stage.settings))
    ]


def _absent(*frames: pl.LazyFrame) -> frozenset[str]:
    """Canonical columns that no row of any table fills."""
    given = [
        frame.select(pl.all().is_not_null().any()).collect(engine="streaming").row(0, named=True) for frame in frames
    ]
    filled = {name for row in given for name, holds in row.items() if holds}
    return frozenset(name for row in given for name in row if name not in filled)


def featurize_files(
    transactions: pl.LazyFrame,
    accounts: pl.DataFrame,
    labels: pl.DataFrame,
    stage: FeaturizeParams,
    split: SplitParams,
    *,
    how: EngineParams,
    target: Path,
    scratch: Path,
    fitted: Mapping[str, dict[str, Any]] | None = None,
) -> Large:
    """All KPIs of transactions that are read piece by piece, in bounded memory: `featurize` to the last bit.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order of (booked_at, transaction_id).
        accounts: as `schemas.ACCOUNTS`.
        labels: as `schemas.LABELS`.
        stage: KPIs and settings.
        split: the calendar; parameters are learned before its `fit_end`.
        how: whether buckets are computed here or by Spark, and their size.
        target: folder of `features.parquet` and `account_days.parquet`.
        scratch: folder for files in between; what is in it is lost.
        fitted: parameters learned earlier, to be used instead of learning them anew.
    """
    check_settings(stage)
    source = outofcore.source_of(
        transactions, ledger_of(transactions.head(0).collect(), accounts, labels, stage, split)
    )
    learned = dict(fitted) if fitted is not None else outofcore.fit(source, selected(stage.kpis), stage, split.fit_end)
    todo, run_on = engine.tasks(selected(stage.kpis), stage, learned), outofcore.run
    if how.name == "spark":
        from reperform.featurize.spark import run as run_on_spark  # noqa: PLC0415  # pyspark is optional

        run_on = run_on_spark
    daily = target / "account_days.parquet"
    with tables.replacing(daily) as partial, tables.appending(partial, days.ACCOUNT_DAYS) as append:
        store = run_on(source, todo, how, scratch, lambda part: append(days.account_days(part, part.days)))
    names = [column.name for task in todo for column in task.columns]
    schema = {**{name: source.about.transactions.schema[name] for name in IDENTITY}, **dict.fromkeys(names, pl.Float64)}
    with tables.replacing(target / "features.parquet") as partial, tables.appending(partial, schema) as append:
        for rows in outofcore.in_order(source, store, IDENTITY, names):
            append(rows)
    shutil.rmtree(scratch, ignore_errors=True)
    absent = _absent(transactions, accounts.lazy(), labels.lazy())
    file = pl.scan_parquet(target / "features.parquet")
    return Large(describe(lambda name: file.select(name).collect()[name], absent, stage), learned)


def _filings(transactions: pl.DataFrame, stage: FeaturizeParams) -> dict[str, pl.DataFrame]:
    """KPIs 9 and 10 of the validated filings, the rules behind them, and what would explain gaps to the ledger."""
    filings = schemas.checked(tables.read_table("validate", "filings"), schemas.FILINGS)
    facts = schemas.checked(tables.read_table("validate", "facts"), schemas.FACTS)
    checks = schemas.checked(tables.read_table("validate", "checks"), schemas.CHECKS)
    messages = schemas.checked(tables.read_table("validate", "messages"), schemas.MESSAGES)
    settings = stage.settings.get(FILINGS, {})
    kpis, rules = filing_tables(filings, facts, checks, transactions, settings=settings, messages=messages)
    explained = filing_bridge(filings, facts, transactions, settings=settings)
    return {"filing_kpis": kpis, "filing_checks": rules, "filing_bridge": explained}


def _prove(accounts: pl.DataFrame, labels: pl.DataFrame, stage: FeaturizeParams, split: SplitParams) -> None:
    """Write how new each KPI's sources are, and a short certificate that nothing looks ahead."""
    from reperform import certify  # noqa: PLC0415  # the certificate computes features itself

    rows = tables.scan_table("validate", "transactions")
    sources = provenance.of_files(
        rows, lambda some: ledger_of(some, accounts, labels, stage, split), selected(stage.kpis), stage
    )
    tables.write_table(sources, "featurize", "provenance")
    others = {name: tables.read_table("validate", name) for name in certify.FILING_TABLES}
    world = certify.Tables(rows.head(0).collect(), labels, accounts, **others)
    tables.write_json(certify.short(rows, world, stage, split), "featurize", "certificate")


def run(stage: FeaturizeParams) -> Features | Large:
    """Compute the KPIs of the validated tables and save them."""
    split, how = params.load(SplitParams), params.load(EngineParams)
    accounts = schemas.checked(tables.read_table("validate", "accounts"), schemas.ACCOUNTS)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    made: Features | Large
    if how.name == "local":
        transactions = schemas.checked(tables.read_table("validate", "transactions"), schemas.TRANSACTIONS)
        made = featurize(transactions, accounts, labels, stage, split, how=how)
        tables.write_table(made.table, "featurize", "features")
        tables.write_table(made.account_days, "featurize", "account_days")
    else:
        rows = tables.scan_table("validate", "transactions")
        made = featurize_files(
            rows, accounts, labels, stage, split,
            how=how, target=paths.data("featurize"), scratch=paths.project_root() / ".cache" / "featurize",
        )  # fmt: skip
        # Only the ledger-to-filing bridge reads whole transactions.
        transactions = rows.collect() if tables.read_table("validate", "filings").height else rows.head(0).collect()
    for name, table in _filings(transactions, stage).items():
        tables.write_table(table, "featurize", name)
    _prove(accounts, labels, stage, split)
    tables.write_json(made.dictionary, "featurize", "dictionary")
    tables.write_json(made.fitted, "featurize", "fitted")
    return made
