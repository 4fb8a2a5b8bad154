"""Tables that report templates need and no stage writes as such: joins and selections of outputs, no new numbers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl

from reperform import __version__
from reperform.markup import formatted
from reperform.params import ReportParams, raw
from reperform.report.evidence import Evidence
from reperform.report.render import find_renderer
from reperform.stages import STAGES

METRICS = "evaluate/metrics"
FIT_COLUMNS = ("rows", "known_anomalies", "learns_from", "learns_until", "labels_known_by")
WIDE = 10  # from here on, decimals say nothing
CLAUSE_COLUMNS = {
    "sr_26_2": "SR 26-2, OCC 2026-13",
    "sr_11_7": "SR 11-7 (legacy)",
    "ss1_23": "PRA SS1/23",
    "annex_iv": "AI Act, Annex IV",
}


@lru_cache(maxsize=1)
def clauses() -> list[dict[str, Any]]:
    """The 17 evidence sections and the clauses that each is mapped to, from secondary sources."""
    return list(json.loads((files("reperform.report") / "clauses.json").read_text(encoding="utf-8")))


def clause_line(number: int) -> str:
    """The clauses of one evidence section, in words."""
    row = next(row for row in clauses() if row["number"] == number)
    return "; ".join(f"{name}: {row[key]}" for key, name in CLAUSE_COLUMNS.items() if row[key]) or "none"


def detector_table(e: Evidence, metrics: Mapping[str, str]) -> list[dict[str, str]]:
    """One row per detector, one column per metric, each with its interval.

    Args:
        e: the page's evidence.
        metrics: metric's name to column heading.
    """
    measured = e.get(METRICS)
    return [
        {"detector": name} | {heading: interval(of.get(key)) for key, heading in metrics.items()}
        for name, of in measured.items()
        if name != "filings"
    ]


def metric_table(e: Evidence, detector: str) -> list[dict[str, Any]]:
    """Every metric of one detector, with interval and the number of units behind it."""
    return [
        {"metric": key, "estimate": one["estimate"], "low": one["low"], "high": one["high"], "n": one["n"]}
        for key, one in sorted(e.get(METRICS, detector).items())
    ]


def interval(metric: Mapping[str, Any] | None) -> str:
    """`0.712 (0.65 to 0.765)`; `n/a` where nothing could be measured."""
    if metric is None or metric.get("estimate") is None:
        return "n/a"
    estimate, low, high = (metric.get(side) for side in ("estimate", "low", "high"))
    if low is None or high is None:
        return formatted(estimate)
    style = ".3f" if abs(high) < WIDE else ".1f"
    return f"{estimate:{style}} ({low:{style}} to {high:{style}})"


def only(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The rows whose columns have the wanted values."""
    return [dict(row) for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def picked(rows: Sequence[Mapping[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """Some columns of each row, in the order given."""
    return [{column: row.get(column) for column in columns} for row in rows]


def unlike(rows: Sequence[Mapping[str, Any]], column: str, *values: Any) -> list[dict[str, Any]]:
    """The rows whose column has none of the values."""
    return [dict(row) for row in rows if row.get(column) not in values]


def keyed(rows: Mapping[str, Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """A mapping of records as rows, its keys in a column of their own."""
    return [{name: key} | dict(row) for key, row in rows.items()]


def identity(params: ReportParams, root: Path, e: Evidence) -> list[dict[str, str]]:
    """Name, version, owner and what the model was made from."""
    renderer = find_renderer()
    lock = hashlib.sha256((root / "requirements.lock").read_bytes()).hexdigest()
    return [
        {"item": "model", "value": f"reperform ensemble of {', '.join(e.get('evaluate/tables', 'detectors'))}"},
        {"item": "version", "value": __version__},
        {"item": "owner", "value": params.owner},
        {"item": "tier", "value": params.tier},
        {"item": "environment", "value": f"requirements.lock, SHA-256 {lock}"},
        {"item": "rendered with", "value": f"{renderer.name} {renderer.version}"},
        {"item": "code, data, parameters, models", "value": "data/audit/manifest.json holds the hash of each file"},
    ]


def stage_table() -> list[dict[str, str]]:
    """The stages in order."""
    return [{"stage": stage.name, "what": stage.summary, "writes": stage.writes} for stage in STAGES]


def reconciliation(e: Evidence) -> list[dict[str, Any]]:
    """Rows in, out and refused, at ingest per source and at validate per table."""
    sources = e.get("ingest/receipt", "sources")
    ingested = [
        {
            "stage": "ingest",
            "table": name,
            "rows_in": one["rows_in"],
            "rows_out": one["rows_out"],
            "quarantined": sum(one["quarantined"].values()),
        }
        for name, one in sources.items()
    ]
    validated = [{"stage": "validate", "table": n} | dict(c) for n, c in e.get("validate/quality", "tables").items()]
    return [*ingested, *validated]


def inputs(e: Evidence) -> list[dict[str, Any]]:
    """Raw files per source, with one hash over the sorted hashes of the files."""
    rows = []
    for name, one in e.get("ingest/receipt", "sources").items():
        hashes = "\n".join(sorted(file["sha256"] for file in one["files"]))
        digest = hashlib.sha256(hashes.encode()).hexdigest()
        rows.append(
            {
                "source": name,
                "files": len(one["files"]),
                "rows_in": one["rows_in"],
                "rows_out": one["rows_out"],
                "sha256": f"`{digest}`",
            }
        )
    return rows


def exported(e: Evidence) -> list[dict[str, Any]]:
    """Tables in PostgreSQL with their rows."""
    return keyed(e.get("export/receipt", "tables"), "table")


def kpi_table(e: Evidence) -> list[dict[str, Any]]:
    """One row per KPI out of the feature dictionary."""
    rows: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for entry in e.get("featurize/dictionary"):
        rows.setdefault((entry["kpi_number"] or 0, entry["kpi"] or "no KPI"), []).append(entry)
    return [
        {
            "kpi_number": number or None,
            "kpi": name,
            "features": len(entries),
            "inputs_to_models": sum(entry["is_model_input"] for entry in entries),
            "key": ", ".join(sorted({entry["key"] for entry in entries})),
            "null_share": sum(entry["null_share"] or 0 for entry in entries) / len(entries),
            "source": "; ".join(dict.fromkeys(entry["source"] for entry in entries)),
        }
        for (number, name), entries in sorted(rows.items())
    ]


def calendar(e: Evidence) -> list[dict[str, Any]]:
    """What each of the two fits learns from, and which labels it may know."""
    return keyed(e.get("split/summary", "fits"), "fit")


def fits(e: Evidence) -> list[dict[str, Any]]:
    """Rows, anomalies and features of each detector's final fit."""
    rows = []
    for name in e.get("evaluate/tables", "detectors"):
        if not e.has(f"train/{name}/fit"):
            continue
        document = e.get(f"train/{name}/fit")
        final = document.get("fits", {}).get("final", {})
        rows.append(
            {
                "detector": name,
                "features": len(document["features"]),
                "seed": document.get("seed"),
                **{key: final.get(key) for key in FIT_COLUMNS},
            }
        )
    return rows


def segment_rows(e: Evidence, segment: str) -> list[dict[str, Any]]:
    """The ensemble in each group of a segment."""
    rows = only(e.get("evaluate/tables", f"per_{segment}"), detector="ensemble")
    return [
        row
        | {"too_small": row["too_small"] or "no"}
        | {name: _percent_with_interval(row, name) for name in ("recall", "precision", "false_positive_rate")}
        for row in rows
    ]


def _percent_with_interval(row: Mapping[str, Any], name: str) -> str:
    """`58.4 % (50.9 to 65.9)`; `n/a` where there is nothing to take a share of."""
    estimate, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if estimate is None:
        return "n/a"
    digits = 2 if name == "false_positive_rate" else 0
    told = f"{100 * estimate:.{digits}f} %"
    return told if low is None else f"{told} ({100 * low:.{digits}f} to {100 * high:.{digits}f})"


def heldout_table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Recall of every detector for each unseen typology: among all rows / with other typologies out of the way."""
    rows: dict[str, dict[str, Any]] = {}
    for record in found["records"]:
        name = record["typology"].replace("_", " ")
        row = rows.setdefault(name, {"typology": name, "anomalies": record["n"]})
        row[record["detector"].replace("_", " ")] = f"{record['recall']:.2f} / {record['recall_alone']:.2f}"
    return list(rows.values())


def stability_table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per detector that was fitted from several seeds."""
    return [
        {
            "detector": one["detector"],
            "seeds": one["seeds"],
            "jaccard": f"{one['jaccard']['mean']:.2f} ({one['jaccard']['low']:.2f})",
            "alerts_in_all_share": one["alerts_in_all_share"],
            "spearman": f"{one['spearman']['mean']:.3f} ({one['spearman']['low']:.3f})",
            "average_precision": f"{one['average_precision']['low']:.3f} to {one['average_precision']['high']:.3f}",
        }
        for one in found["detectors"]
    ]


def restated(e: Evidence) -> list[dict[str, Any]]:
    """Precision at other prevalences, with intervals as text."""
    return [
        row | {name: interval(row[name]) for name in ("average_precision", "precision")}
        for row in e.get("evaluate/tables", "restated")
    ]


def fairness_table(compared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per group of the attribute that is compared."""
    return [one | {"false_positive_rate": interval(one["false_positive_rate"])} for one in compared["groups"]]


def plan(root: Path) -> list[dict[str, Any]]:
    """The limits that monitoring uses, from params.yaml."""
    return [{"rule": key, "value": value} for key, value in raw(root / "params.yaml")["monitor"].items()]


def explainability(e: Evidence) -> list[dict[str, Any]]:
    """The components of KPI 15 on alerts."""
    quality = e.get("explain/quality")
    of = quality["populations"]["alerts"]
    return [
        {"component": name, "value": interval(of.get(name)), "meaning": quality["definitions"][name]}
        for name in ("index", "additivity", *quality["exponents"])
    ]


def alert_list(receipts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per alert."""
    return [
        {
            "rank": one["alert"]["rank"],
            "transaction": one["transaction"]["transaction_id"],
            "booked_at": str(one["transaction"]["booked_at"])[:19].replace("T", " "),
            "institution": one["transaction"]["entity_id"],
            "amount": one["transaction"]["amount_base"],
            "probability": one["alert"]["probability"],
        }
        for one in receipts
    ]


def certificate_text(e: Evidence) -> str:
    """What the leakage certificate of this run says, or how to make one."""
    if not e.has("featurize/certificate"):
        return (
            "`python -m reperform certify` changes all rows and labels after a random cut, computes all features "
            "again, and compares each earlier cell bit by bit; it also plants leaks and must catch each. "
            "The test suite runs its short form; this run holds no certificate of its own."
        )
    found = e.get("featurize/certificate")
    return (
        f"On whole histories of {found['rows']:,} of {found['rows_of']:,} transactions and on {found['filings']:,} of "
        f"{found['filings_of']:,} filings, {found['cells_compared']:,} cells before {len(found['cuts'])} random cuts "
        f"were compared after all that lies behind each cut had been changed; {found['cells_differing']:,} differ. "
        f"{found['leaks_caught']} of {found['leaks_planted']} planted leaks were caught. "
        f"{'The certificate holds.' if found['holds'] else 'THE CERTIFICATE DOES NOT HOLD.'}"
    )


def certificate_cuts(e: Evidence) -> list[dict[str, Any]]:
    """The comparisons of this run's certificate; none without one."""
    if not e.has("featurize/certificate"):
        return []
    return [cut | {"at": cut["at"][:16].replace("T", " ")} for cut in e.get("featurize/certificate", "cuts")]


def planted_leaks(e: Evidence) -> list[dict[str, Any]]:
    """The leaks that were planted to test the certificate; none without one."""
    return list(e.get("featurize/certificate", "leaks")) if e.has("featurize/certificate") else []


def fitted_kpis(e: Evidence) -> list[dict[str, Any]]:
    """Parameters of KPIs that were learned, with the end of what they were learned from and one hash per KPI."""
    until = e.get("split/summary", "fits.first.learns_until")
    rows = []
    for kpi, learned in sorted(e.get("featurize/fitted").items()):
        if learned:
            text = json.dumps(learned, sort_keys=True, ensure_ascii=False)
            digest = hashlib.sha256(text.encode()).hexdigest()
            rows.append({"kpi": kpi, "parameters": ", ".join(learned), "until": until, "sha256": f"`{digest}`"})
    return rows


def kpi_worth(found: Mapping[str, Any], period: str) -> list[dict[str, Any]]:
    """What each KPI finds alone in a window, and what a model loses without it."""
    return [
        record
        | {
            "column": f"`{record['column']}`",
            "fall": interval({"estimate": record["fall"], "low": record["fall_low"], "high": record["fall_high"]}),
        }
        for record in only(found["records"], period=period)
    ]


def filing_frame(e: Evidence) -> pl.DataFrame:
    """Filings with their scores and KPIs, highest score first."""
    scores = e.frame("ensemble/filing_scores").select("filing_id", "score", "is_alert")
    kpis = e.frame("featurize/filing_kpis")
    joined = kpis.join(scores, on="filing_id", how="inner", maintain_order="left")
    ranked = joined.sort(["score", "filing_id"], descending=[True, False])
    return ranked.with_row_index("rank", offset=1).with_columns(pl.col("rank").cast(pl.Int64))


def filings(e: Evidence) -> list[dict[str, Any]]:
    """Filings with their scores and KPIs as rows."""
    return filing_frame(e).to_dicts()


def filing_reasons(e: Evidence) -> list[dict[str, Any]]:
    """What the filings detector says of each flagged filing, highest score first."""
    reasons = e.frame("ensemble/filing_reasons").select("filing_id", "reasons")
    flagged = filing_frame(e).filter("is_alert").select("filing_id")
    return flagged.join(reasons, on="filing_id", how="left", maintain_order="left").to_dicts()


def bridge_table(e: Evidence) -> list[dict[str, Any]]:
    """The best explanation of every gap between a filing's total and its ledger; none where featurize made none."""
    if not (e.root / "data/featurize/filing_bridge.parquet").is_file():
        return []
    best = e.frame("featurize/filing_bridge").filter(pl.col("rank") == 1)
    line = pl.col("concept").str.split(":").list.last()
    part = pl.col("dimensions").str.extract(r':([A-Za-z]+)Member"')
    mends = pl.format("{} of {}", "lines_explained", "lines_failed")
    return best.with_columns(line=pl.concat_str(line, part, separator=" ", ignore_nulls=True), mends=mends).to_dicts()


def rule_table(e: Evidence) -> list[dict[str, Any]]:
    """Evaluated and broken rules by family."""
    checks = e.frame("featurize/filing_checks").filter("is_evaluable").sort("family", "filing_id", "rule")
    broken = ~pl.col("is_satisfied")
    return (
        checks.group_by("family", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("rules"),
            broken.sum().cast(pl.Int64).alias("failed"),
            pl.col("filing_id").filter(broken).n_unique().cast(pl.Int64).alias("filings"),
        )
        .to_dicts()
    )
