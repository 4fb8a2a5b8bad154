"""Measure detection at true prevalence in the test period, with intervals, against the rules that a bank has today."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform import metrics, params, paths, schemas, tables, tracking
from reperform.evaluate import breakdowns, bundle, segments
from reperform.evaluate.detection import (
    ENSEMBLE,
    filing_detection,
    measured,
    period_of,
    restate_at_prevalence,
    scored_rows,
)
from reperform.evaluate.truth import knowledge_end, known_compromised, label_truth, planted_truth
from reperform.metrics import Estimate
from reperform.params import EvaluateParams, SplitParams, TrainParams

FILINGS = "filings"
ROW_COLUMNS = (
    "transaction_id",
    "booked_at",
    "known_at",
    "account_id",
    "counterparty_id",
    "entity_id",
    "amount_base",
    "channel",
    "country",
)
ACCOUNT_COLUMNS = ("account_id", "segment", "opened_at", "home_country", "timezone")


def _as_plain(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {detector: {name: one.as_dict() for name, one in of.items()} for detector, of in found.items()}


def rows_of_test(settings: EvaluateParams, calendar: SplitParams, labels: pl.DataFrame) -> tuple[pl.DataFrame, Any]:
    """The test's rows with their truth, and what was left out of them and why.

    Returns:
        Rows with account attributes, is_anomaly (null = not known yet), typology, event_id, event_started_at; counts.
    """
    transactions = tables.read_table("validate", "transactions", list(ROW_COLUMNS))
    accounts = tables.read_table("validate", "accounts", list(ACCOUNT_COLUMNS))
    splits = tables.read_table("split", "splits").filter(pl.col("split") == "test").select("transaction_id")
    rows = transactions.join(splits, on="transaction_id", how="semi", maintain_order="left")
    rows = rows.join(accounts, on="account_id", how="left", maintain_order="left")
    rows = segments.with_account_age(rows, settings.new_account_days)
    compromised = np.zeros(rows.height, dtype=np.bool_)
    if calendar.drop_known_compromised:
        since = calendar.train_end - timedelta(days=settings.known_compromised_days)
        compromised = known_compromised(rows, labels, transactions, since)
    kept = rows.filter(~pl.Series(compromised, dtype=pl.Boolean))
    if settings.truth == "planted":
        kept = planted_truth(kept, tables.read_table("simulate", "truth"), transactions)
    else:
        known_at = knowledge_end(transactions, labels, calendar.test_end)
        kept = label_truth(kept, labels, known_at=known_at, maturity_days=calendar.label_maturity_days)
    return kept, {
        "test_rows": rows.height,
        "known_compromised": int(compromised.sum()),
        "unknown_truth": kept["is_anomaly"].null_count(),
        "measured": kept.height - kept["is_anomaly"].null_count(),
        "anomalies": int(kept["is_anomaly"].sum()),
    }


def _scores(detectors: Sequence[str]) -> dict[str, pl.DataFrame]:
    found = {name: tables.read_table(f"train/{name}", "scores") for name in detectors}
    found[ENSEMBLE] = tables.read_table("ensemble", "scores")
    return {name: schemas.checked(frame, schemas.SCORES) for name, frame in found.items()}


def _filings(settings: EvaluateParams) -> tuple[dict[str, Estimate], dict[str, Any]]:
    scores = schemas.checked(tables.read_table("ensemble", "filing_scores"), schemas.SCORES)
    if settings.truth != "planted":
        found, document = filing_detection(scores.clear(), _no_filing_truth(), settings)
        return found, document | {"reason": "no truth about filings: labels are about transactions"}
    truth = tables.read_table("simulate", "filing_truth")
    found, document = filing_detection(scores, truth, settings)
    return found, document | {"reason": None if scores.height else "no filings"}


def _no_filing_truth() -> pl.DataFrame:
    return pl.DataFrame(schema={"filing_id": pl.String, "misstatement": pl.String, "concept": pl.String})


def _reason(counts: Mapping[str, int]) -> str | None:
    if not counts["test_rows"]:
        return "no transactions in the test period"
    if not counts["measured"]:
        return "no test row whose truth is known yet"
    return None if counts["anomalies"] else "no anomaly among the test rows whose truth is known"


def run(settings: EvaluateParams) -> dict[str, Any]:
    """Write metrics, tables, curves, alerts, outcomes and bundle.json to `data/evaluate/`; record the run.

    Returns:
        metrics, tables, and the frames curves, alerts, outcomes: what the notebook shows.
    """
    calendar, training = params.load(SplitParams), params.load(TrainParams)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    rows, counts = rows_of_test(settings, calendar, labels)
    scores = _scores(training.detectors)
    period = period_of(rows, settings)
    every = scored_rows(period, scores, settings.seed, negatives_kept=settings.negatives_kept)
    costs = breakdowns.cost_table(period, every, settings.review_costs)
    filing_metrics, filing_tables = _filings(settings)
    document = _as_plain(measured(period, every, settings) | {FILINGS: filing_metrics})
    known = labels.filter(pl.col("confirmed_at") < pl.lit(calendar.test_start, schemas.UTC_US))
    ensemble = next(scored for scored in every if scored.detector == ENSEMBLE)
    trials = {name: tables.read_json(f"tune/{name}", "trials") for name in training.detectors}
    report = {
        "alert_budget": breakdowns.budget_table(period, every, settings),
        "cases": breakdowns.case_table(period, ensemble),
        "comparisons": breakdowns.comparison_table(period, every),
        "costs": costs,
        "counts": counts,
        "detectors": [scored.detector for scored in every],
        "fairness": segments.fairness_of(period, every, settings),
        "filings": filing_tables,
        "per_day": breakdowns.day_table(period, every),
        **segments.all_segments(period, every, settings),
        "per_typology": breakdowns.typology_table(period, every, known),
        "reason": _reason(counts),
        "restated": restate_at_prevalence(period, every, settings.restate_at_prevalence),
        "reliability": [] if ensemble.probability is None else metrics.reliability(period.y, ensemble.probability),
        "threshold_bands": breakdowns.threshold_bands(period, ensemble),
        "trials": breakdowns.trial_table(trials),
        "truth": settings.truth,
    }
    frames = {
        "alerts": breakdowns.alert_table(rows, scores[ENSEMBLE]),
        "curves": breakdowns.curves(period, every, costs),
        "outcomes": breakdowns.outcome_table(rows, scores[ENSEMBLE]),
    }
    tables.write_json(document, "evaluate", "metrics")
    tables.write_json(report, "evaluate", "tables")
    for name, frame in frames.items():
        tables.write_table(frame, "evaluate", name)
    bundle.write()
    tracking.record(document, params.raw(paths.params_file()), tracking.outputs(training.detectors))
    return {"metrics": document, "tables": report, **frames}
