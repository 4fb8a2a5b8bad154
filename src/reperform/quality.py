"""What the data are like, in numbers: completeness, lateness, delay of labels, what was refused and why."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import polars as pl

from reperform import schemas, validity
from reperform.feeds import sources_of
from reperform.feeds.finding import FEED_RULES, FeedFinding, as_frame, as_rows

Tables = Mapping[str, pl.DataFrame]
LATENESS_QUANTILES = (0.5, 0.9, 0.99, 1.0)
AMOUNT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LATE_AFTER_HOURS = 24
MUCH_LATE = 0.05  # a feed of which more than this share comes late deserves a look
DELAY_EDGES_DAYS = (0, 1, 2, 3, 5, 7, 10, 14, 21, 30, 45, 60, 90)
ALL = "all"
_ISO = "%Y-%m-%dT%H:%M:%SZ"
_ORIGIN = ("source_file", "source_record")


def as_finding(finding: Any, table: str) -> dict[str, Any]:
    """A rule's finding with what the rule means."""
    return {**asdict(finding), "table": table, "says": validity.meaning(finding.name)}


def findings(
    feed: Sequence[FeedFinding], failing: Tables, severity: Mapping[str, str], receipt: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Everything that a data owner should look at, by source and file: feeds first checked, then rows.

    Args:
        feed: what feed checks have found.
        failing: by table, rows that break a rule by rule and file, as in `validate.Checked`.
        severity: by row rule.
        receipt: of ingest; it says which file belongs to which source.
    """
    source_of = {table: sources_of(receipt, table) for table in failing}
    rows = [
        FeedFinding(
            source=source_of[table].get(row["source_file"], row["source_file"].split("/")[0]),
            rule=row["rule"],
            file=row["source_file"],
            rows=row["n"],
            observed=_observed(row),
            expected=validity.meaning(row["rule"]),
            day=row["first_day"] if row["n_days"] == 1 else None,
            table=table,
            severity=severity[row["rule"]],
        )
        for table, one in failing.items()
        for row in one.iter_rows(named=True)
    ]
    advice = validity.FIXES | {rule: fix for rule, (_, fix) in FEED_RULES.items()}
    return as_rows([*feed, *rows], advice)


def _observed(row: Mapping[str, Any]) -> str:
    days = f" on {row['n_days']} days from {row['first_day']}" if row["first_day"] and row["n_days"] > 1 else ""
    value = "nothing" if row["value"] is None else repr(row["value"])
    return f"{row['n']:,} rows{days}; first at record {row['record']}: {row['column']} {value}"


def findings_frame(document: Mapping[str, Any]) -> pl.DataFrame:
    """The findings as `schemas.FINDINGS`."""
    return as_frame(document["findings"])


def by_source(
    receipt: Mapping[str, Any], clean: Tables, quarantine: pl.DataFrame, origins: pl.DataFrame
) -> list[dict[str, Any]]:
    """Per source and table: records in, kept out by rule in ingest and in validate, rows out (None where unknown).

    Args:
        receipt: of ingest.
        clean: tables that passed.
        quarantine: of validate.
        origins: as `schemas.ORIGINS`.
    """
    out = {
        table: _per_source(_files(clean[table], table, origins), sources_of(receipt, table))
        for table in ("transactions", *_KEYED)
    }
    known = {table: table not in _KEYED or not origins.filter(pl.col("table") == table).is_empty() for table in out}
    told = []
    for name, one in receipt["sources"].items():
        for table, passed in one.get("tables", {}).items():
            if table not in out:
                continue
            mine = quarantine.filter(
                (pl.col("table") == table) & pl.col("source_file").is_in([f["path"] for f in one["files"]])
            )
            told.append(
                {
                    "source": name,
                    "table": table,
                    "records": one["rows_in"],
                    "left_out": sum(one["left_out"].values()),
                    "refused_by_ingest": dict(one.get("quarantined", {})),
                    "ingested": passed,
                    "refused_by_validate": dict(mine.group_by("rule").len().sort("rule").iter_rows()),
                    "rows_out": out[table].get(name, 0) if known[table] else None,
                }
            )
    return told


_KEYED = {"accounts": "account_id", "labels": "transaction_id"}


def _files(rows: pl.DataFrame, table: str, origins: pl.DataFrame) -> pl.Series:
    if table not in _KEYED:
        return rows.get_column("source_file")
    known = origins.filter(pl.col("table") == table).select(pl.col("key").alias(_KEYED[table]), "source_file")
    return rows.join(known, on=_KEYED[table], how="left", maintain_order="left").get_column("source_file")


def _per_source(files: pl.Series, source_of: Mapping[str, str]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for file, n in files.value_counts().iter_rows():
        source = source_of.get(file, "unknown")
        counted[source] = counted.get(source, 0) + n
    return counted


def mixes(transactions: pl.DataFrame) -> pl.DataFrame:
    """How rows spread, month by month, as `schemas.QUALITY_MIXES`: a feed that changes shows here first."""
    rows = transactions.select(
        "entity_id", "channel", "currency", "country", "amount_base",
        month=pl.col("booked_at").dt.strftime("%Y-%m"),
        hour=pl.col("booked_at").dt.strftime("%H"),
        weekday=pl.col("booked_at").dt.weekday().cast(pl.String),
    )  # fmt: skip
    parts = [_shares(rows, kind) for kind in ("hour", "weekday", "channel", "currency", "country")]
    wanted = schemas.polars_schema(schemas.QUALITY_MIXES)
    both = pl.concat([*parts, _amount_quantiles(rows)])
    return both.select(pl.col(name).cast(kind) for name, kind in wanted.items()).sort(
        "entity_id", "kind", "month", "value"
    )


def _shares(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    counted = rows.group_by("entity_id", "month", value=pl.col(kind).fill_null("none")).agg(n=pl.len().cast(pl.Int64))
    return counted.select(
        "entity_id",
        "month",
        pl.lit(kind).alias("kind"),
        "value",
        "n",
        share=pl.col("n") / pl.col("n").sum().over("entity_id", "month"),
        amount=pl.lit(None, pl.Float64),
    )


def _amount_quantiles(rows: pl.DataFrame) -> pl.DataFrame:
    grouped = rows.group_by("entity_id", "month").agg(
        n=pl.len().cast(pl.Int64),
        **{_quantile_name(q): pl.col("amount_base").quantile(q, "nearest") for q in AMOUNT_QUANTILES},
    )
    long = grouped.unpivot(index=["entity_id", "month", "n"], variable_name="value", value_name="amount")
    return long.select(
        "entity_id",
        "month",
        pl.lit("amount_quantile").alias("kind"),
        "value",
        "n",
        pl.lit(None, pl.Float64).alias("share"),
        "amount",
    )


def document(
    raw: Tables,
    clean: Tables,
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    refused_before: pl.DataFrame,
    receipt: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that quality.json says.

    Args:
        raw: tables as they were ingested.
        clean: tables that passed.
        found: findings by table, as from `as_finding`.
        refused_before: the quarantine of stage ingest.
        receipt: the receipt of stage ingest.
    """
    transactions = clean["transactions"]
    return {
        "tables": {name: _counts(raw[name], clean[name], found[name]) for name in raw},
        "rules": [dict(finding) for name in validity.ORDER for finding in found[name]],
        "ingest": _of_ingest(receipt, refused_before),
        "completeness": {name: completeness(clean[name]) for name in raw if clean[name].height},
        "sources": sources(transactions),
        "lateness_hours": lateness(transactions),
        "labels": labels(clean["labels"], transactions),
        "filings": filings(clean["filings"], clean["messages"]),
        "duplicates": duplicates(refused_before, found),
    }


def _counts(raw: pl.DataFrame, clean: pl.DataFrame, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "rows_in": raw.height,
        "rows_out": clean.height,
        "quarantined": raw.height - clean.height,
        "by_rule": {finding["name"]: finding["quarantined"] for finding in found if finding["quarantined"]},
    }


def _of_ingest(receipt: Mapping[str, Any], refused: pl.DataFrame) -> dict[str, Any]:
    given = receipt["sources"].values()
    return {
        "files": sum(len(source["files"]) for source in given),
        "rows_in": sum(source["rows_in"] for source in given),
        "quarantined": refused.height,
        "by_rule": dict(refused.group_by("rule", maintain_order=True).len().sort("rule").iter_rows()),
        "left_out": {name: source["left_out"] for name, source in receipt["sources"].items() if source["left_out"]},
        "counts": {name: source["counts"] for name, source in receipt["sources"].items() if source["counts"]},
    }


def completeness(rows: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Share of values that are present, by entity (and for all rows together) and column."""
    columns = [name for name in rows.columns if name not in _ORIGIN]
    present = [pl.col(name).is_not_null().mean().alias(name) for name in columns if name != "entity_id"]
    shares = {ALL: rows.select(present).to_dicts()[0]}
    if "entity_id" in columns:
        grouped = rows.sort("entity_id", maintain_order=True).group_by("entity_id", maintain_order=True).agg(present)
        shares |= {str(row.pop("entity_id")): row for row in grouped.to_dicts()}
    return {entity: {name: round(value, 6) for name, value in row.items()} for entity, row in shares.items()}


def sources(transactions: pl.DataFrame) -> dict[str, Any]:
    """Totals and date range of each reporting institution, and days of its range without a row."""
    signed = pl.when(pl.col("direction") == "in").then("amount_base")
    day = pl.col("booked_at").dt.date()
    grouped = (
        transactions.sort("entity_id", maintain_order=True)
        .group_by("entity_id", maintain_order=True)
        .agg(
            n_transactions=pl.len(),
            n_accounts=pl.col("account_id").n_unique(),
            n_counterparties=pl.col("counterparty_id").drop_nulls().n_unique(),
            currencies=pl.col("currency").unique().sort(),
            first_booked_at=pl.col("booked_at").min().dt.to_string(_ISO),
            last_booked_at=pl.col("booked_at").max().dt.to_string(_ISO),
            last_known_at=pl.col("known_at").max().dt.to_string(_ISO),
            amount_base_in=signed.sum().round(2),
            amount_base_out=pl.col("amount_base").sum().round(2),
            days=(day.max() - day.min()).dt.total_days() + 1,
            days_with_rows=day.n_unique(),
        )
    )
    told = {}
    for row in grouped.sort("entity_id").to_dicts():
        row["amount_base_out"] = round(row["amount_base_out"] - row["amount_base_in"], 2)
        row["days_without_rows"] = row.pop("days") - row.pop("days_with_rows")
        told[str(row.pop("entity_id"))] = row
    return told


def lateness(transactions: pl.DataFrame) -> dict[str, Any]:
    """Hours from booking until a transaction could be known: quantiles by entity, and the share above a day."""
    hours = transactions.select(
        "entity_id", hours=(pl.col("known_at") - pl.col("booked_at")).dt.total_microseconds() / 3.6e9
    )
    grouped = hours.sort("entity_id", maintain_order=True).group_by("entity_id", maintain_order=True)
    rows = grouped.agg(
        n=pl.len(),
        late=(pl.col("hours") > LATE_AFTER_HOURS).mean().round(6),
        **{_quantile_name(q): pl.col("hours").quantile(q, "nearest").round(4) for q in LATENESS_QUANTILES},
    ).to_dicts()
    return {
        str(row["entity_id"]): {
            "n": row["n"],
            "share_after_24_hours": row["late"],
            "quantiles": {name: row[name] for name in map(_quantile_name, LATENESS_QUANTILES)},
        }
        for row in rows
    }


def _quantile_name(q: float) -> str:
    return f"{q:g}"


def labels(rows: pl.DataFrame, transactions: pl.DataFrame) -> dict[str, Any]:
    """How many labels there are, of what, and how long after its transaction each was confirmed."""
    booked = rows.join(
        transactions.select("transaction_id", "booked_at"), on="transaction_id", how="left", maintain_order="left"
    )
    days = booked.select(
        "is_anomaly", days=(pl.col("confirmed_at") - pl.col("booked_at")).dt.total_microseconds() / 86_400e6
    )
    delay = days.get_column("days")
    return {
        "n": rows.height,
        "n_anomalies": int(rows.get_column("is_anomaly").sum()),
        "n_normal": int((~rows.get_column("is_anomaly")).sum()),
        "share_of_transactions": round(rows.height / transactions.height, 6) if transactions.height else None,
        "by_typology": _by_typology(rows),
        "delay_days": {
            _quantile_name(q): round(float(value), 4) if (value := delay.quantile(q, "nearest")) is not None else None
            for q in (0.05, 0.5, 0.9, 0.95, 1.0)
        },
        "delay_histogram": _histogram(days),
    }


def _by_typology(rows: pl.DataFrame) -> dict[str, int]:
    named = rows.filter(pl.col("is_anomaly")).select(typology=pl.col("typology").fill_null("unnamed"))
    return dict(named.group_by("typology", maintain_order=True).len().sort("typology").iter_rows())


def _histogram(days: pl.DataFrame) -> list[dict[str, Any]]:
    """Labels by days from booking to confirmation; the last bin is open."""
    bins = []
    for low, high in zip(DELAY_EDGES_DAYS, [*DELAY_EDGES_DAYS[1:], None], strict=True):
        inside = days.filter(
            (pl.col("days") >= low) & (pl.lit(high is None) | (pl.col("days") < pl.lit(high, pl.Int64)))
        )
        anomalies = int(inside.get_column("is_anomaly").sum())
        bins.append({"from_days": low, "to_days": high, "anomalies": anomalies, "normal": inside.height - anomalies})
    return bins


def filings(rows: pl.DataFrame, messages: pl.DataFrame) -> dict[str, Any]:
    """How many filings there are by form, how many came late, and what readers said of them."""
    late = rows.filter(pl.col("filed_at") > pl.col("due_at"))
    by_form = rows.group_by("form", maintain_order=True).agg(
        n=pl.len(),
        first_period_end=pl.col("period_end").min().cast(pl.String),
        last_period_end=pl.col("period_end").max().cast(pl.String),
        n_entities=pl.col("entity_id").n_unique(),
        late=(pl.col("filed_at") > pl.col("due_at")).sum(),
        without_due_date=pl.col("due_at").is_null().sum(),
    )
    severity = messages.group_by("severity", maintain_order=True).len().sort("severity")
    return {
        "n": rows.height,
        "late": late.height,
        "by_form": {str(row.pop("form")): row for row in by_form.sort("form").to_dicts()},
        "messages": dict(severity.iter_rows()),
    }


def duplicates(refused_before: pl.DataFrame, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, int]:
    """What came twice: files and ids that were refused, and rows under two ids that tell the same."""
    repeated = sum(f["failing"] for findings in found.values() for f in findings if f["name"] == "content_unrepeated")
    return {
        "files": refused_before.filter(pl.col("rule") == "file_duplicate").height,
        "ids": refused_before.filter(pl.col("rule") == "duplicate_id").height,
        "same_content_under_two_ids": repeated,
    }


def days(transactions: pl.DataFrame) -> pl.DataFrame:
    """Rows per entity and UTC day of booking, as `schemas.QUALITY_DAYS`."""
    wanted = schemas.polars_schema(schemas.QUALITY_DAYS)
    lateness_hours = (pl.col("known_at") - pl.col("booked_at")).dt.total_microseconds() / 3.6e9
    grouped = (
        transactions.with_columns(day=pl.col("booked_at").dt.date())
        .sort("entity_id", "day", maintain_order=True)
        .group_by("entity_id", "day", maintain_order=True)
        .agg(
            n_transactions=pl.len(),
            n_accounts=pl.col("account_id").n_unique(),
            amount_base=pl.col("amount_base").sum(),
            median_lateness_hours=lateness_hours.median(),
        )
    )
    return grouped.select(pl.col(name).cast(kind) for name, kind in wanted.items())


def late_days(filings_frame: pl.DataFrame) -> pl.DataFrame:
    """Days from the due date to the filing; negative where it came early."""
    late = (pl.col("filed_at") - pl.col("due_at")) / timedelta(days=1)
    return filings_frame.filter(pl.col("due_at").is_not_null()).select("filing_id", "form", days=late)


def worst(document: Mapping[str, Any], most: int = 40) -> list[dict[str, Any]]:
    """The first findings; they are in order of severity."""
    return list(document["findings"][:most])


def by_source_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts per source with the rules as text, to be shown."""

    def told(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{rule} {n:,}" for rule, n in counts.items()) or "none"

    return [
        one | {name: told(one[name]) for name in ("refused_by_ingest", "refused_by_validate")}
        for one in document["by_source"]
    ]


def completeness_frame(document: Mapping[str, Any], table: str = "transactions") -> pl.DataFrame:
    """Entity, column, share of values present: all entities together first, columns in the order of the contract."""
    entities = document["completeness"].get(table, {})
    rows = [
        {"entity_id": entity, "column": column, "share": entities[entity][column]}
        for entity in sorted(entities, key=lambda name: (name != ALL, name))
        for column in schemas.CANONICAL[table].columns
        if column in entities[entity]
    ]
    return pl.DataFrame(rows, schema={"entity_id": pl.String, "column": pl.String, "share": pl.Float64})


def incomplete(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of every table that are not filled in each row, the emptiest first."""
    found = [
        {"table": table, "column": column, "present": f"{100 * share:.1f} %", "share": share}
        for table, entities in document["completeness"].items()
        for column, share in entities[ALL].items()
        if share < 1
    ]
    return sorted(found, key=lambda row: (row["share"], row["table"], row["column"]))


def lateness_frame(document: Mapping[str, Any]) -> pl.DataFrame:
    """Entity and its quantiles of lateness in hours: `median`, `q90`, `q99`, `longest`."""
    names = dict(zip(("median", "q90", "q99", "longest"), map(_quantile_name, LATENESS_QUANTILES), strict=True))
    rows = [
        {"entity_id": entity, **{name: one["quantiles"][key] for name, key in names.items()}}
        for entity, one in document["lateness_hours"].items()
    ]
    return pl.DataFrame(rows, schema={"entity_id": pl.String, **dict.fromkeys(names, pl.Float64)})


def delay_frame(document: Mapping[str, Any]) -> pl.DataFrame:
    """Labels by days until they were confirmed: `days` as text, `anomalies`, `normal`."""
    rows = [
        {
            "days": f"{one['from_days']} to {one['to_days']}"
            if one["to_days"] is not None
            else f"{one['from_days']} on",
            "anomalies": one["anomalies"],
            "normal": one["normal"],
        }
        for one in document["labels"]["delay_histogram"]
    ]
    return pl.DataFrame(rows, schema={"days": pl.String, "anomalies": pl.Int64, "normal": pl.Int64})


def refused_frame(document: Mapping[str, Any]) -> pl.DataFrame:
    """Rows that break a rule, the most frequent first: `stage`, `rule`, `n`, `severity`."""
    before = [
        {"stage": "ingest", "rule": rule, "n": n, "severity": "quarantine"}
        for rule, n in document["ingest"]["by_rule"].items()
    ]
    here = [
        {"stage": "validate", "rule": one["name"], "n": one["failing"], "severity": one["severity"]}
        for one in document["rules"]
        if one["failing"]
    ]
    schema = {"stage": pl.String, "rule": pl.String, "n": pl.Int64, "severity": pl.String}
    return pl.DataFrame([*before, *here], schema=schema).sort("n", "rule", descending=[True, False])


def fitness(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """The questions that decide whether the data are fit for use, each with its answer and whether to look closer."""
    return [*_about_records(document), *_about_feeds(document), *_about_labels_and_filings(document)]


def _about_records(document: Mapping[str, Any]) -> list[dict[str, str]]:
    came = document["ingest"]["rows_in"]
    kept_out = document["ingest"]["quarantined"] + sum(table["quarantined"] for table in document["tables"].values())
    twice = {name: n for name, n in document["duplicates"].items() if n}
    jumps = next(rule["failing"] for rule in document["rules"] if rule["name"] == "balance_rolls")
    counts = document["ingest"]["counts"].values()
    broken, told = (
        sum(one.get(f"statements_with_{what}", 0) for one in counts) for what in ("broken_balance", "both_balances")
    )
    findings = document.get("findings", [])
    files = sorted({one["file"] or one["source"] for one in findings})
    return [
        _answer(
            "What should somebody look at?",
            f"{len(findings):,} findings, about {len(files):,} files or sources" if findings else "nothing",
            look=bool(findings),
            applies=came > 0,
        ),
        _answer("How much is kept out?", f"{kept_out:,} of {came:,} records", look=kept_out > 0, applies=came > 0),
        _answer("Is anything told twice?", _listed(twice, "{}", "no"), look=bool(twice), applies=came > 0),
        _answer(
            "Do balances follow from amounts?",
            f"{jumps:,} rows do not" if jumps else "yes, in every row",
            look=jumps > 0,
            applies=_has_balances(document),
        ),
        _answer("Do statements add up?", f"{told - broken:,} of {told:,} do", look=broken > 0, applies=told > 0),
    ]


def _about_feeds(document: Mapping[str, Any]) -> list[dict[str, str]]:
    gaps = {name: one["days_without_rows"] for name, one in document["sources"].items() if one["days_without_rows"]}
    late = max((one["share_after_24_hours"] for one in document["lateness_hours"].values()), default=0.0)
    applies = bool(document["sources"])
    return [
        _answer(
            "Does every feed arrive each day?",
            _listed(gaps, "{} days without a row", "yes, each of them"),
            look=bool(gaps),
            applies=applies,
        ),
        _answer(
            "How much comes later than a day after booking?",
            f"at most {100 * late:.1f} % of a feed",
            look=late > MUCH_LATE,
            applies=applies,
        ),
    ]


def _about_labels_and_filings(document: Mapping[str, Any]) -> list[dict[str, str]]:
    labelled, filed = document["labels"], document["filings"]
    return [
        _answer(
            "When are 95 % of labels known?",
            f"{labelled['delay_days']['0.95'] or 0:.1f} days after booking",
            look=False,
            applies=labelled["n"] > 0,
        ),
        _answer(
            "Do filings come in time?",
            f"{filed['late']:,} of {filed['n']:,} came late",
            look=filed["late"] > 0,
            applies=filed["n"] > 0,
        ),
    ]


def _answer(question: str, answer: str, *, look: bool, applies: bool) -> dict[str, str]:
    if not applies:
        return {"question": question, "answer": "does not apply", "look": "no"}
    return {"question": question, "answer": answer, "look": "yes" if look else "no"}


def _has_balances(document: Mapping[str, Any]) -> bool:
    return bool(document["completeness"].get("transactions", {}).get(ALL, {}).get("balance_after", 0) > 0)


def _listed(counts: Mapping[str, int], pattern: str, otherwise: str) -> str:
    return "; ".join(f"{name.replace('_', ' ')}: {pattern.format(n)}" for name, n in counts.items()) or otherwise
