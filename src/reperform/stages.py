"""The pipeline's table of contents: every stage, in order, with the one word that names it everywhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Args:
        name: DVC stage, module, conf group, data folder and test share it.
        summary: what it does, in one line.
        writes: what appears in `data/<name>/` (or where else).
        notebook: the notebook that runs and discusses it, if it is narrated.
        per_detector: True where the stage runs once for each detector.
    """

    name: str
    summary: str
    writes: str
    notebook: str | None = None
    per_detector: bool = False


STAGES = (
    Stage("compose", "check that params.yaml is what conf/ composes to", "agreed.txt"),
    Stage(
        "simulate",
        "make the demo world: accounts, transactions, filings, planted anomalies",
        "raw files of every format, truth",
    ),
    Stage(
        "ingest",
        "read CSV, ISO 20022 and XBRL into canonical tables",
        "transactions, accounts, labels, filings, facts, messages",
    ),
    Stage(
        "validate",
        "check every row against its contract; quarantine what fails",
        "the same tables, clean; quarantine; quality.json",
        "02_validate",
    ),
    Stage(
        "featurize",
        "compute the KPIs as known at each moment",
        "features, account_days, filing_kpis, dictionary",
    ),
    Stage("split", "divide by time: train, label delay, validation, test", "splits"),
    Stage(
        "tune",
        "search a detector's parameters on time-ordered folds",
        "best parameters, all trials",
        per_detector=True,
    ),
    Stage("train", "fit one detector and score every split", "model, scores", per_detector=True),
    Stage(
        "ensemble",
        "stack the detectors on validation scores; calibrate; set thresholds",
        "model, scores, thresholds",
    ),
    Stage(
        "evaluate",
        "measure detection at true prevalence, with intervals, against the rules",
        "metrics, curves, alerts",
        "04_evaluate",
    ),
    Stage(
        "explain",
        "say why each alert was raised: SHAP, LIME, and how far to trust them",
        "attributions, receipts",
        "05_explain",
    ),
    Stage(
        "forecast",
        "forecast volumes and anomaly rates; risk per account",
        "forecasts, metrics",
        "06_forecast",
    ),
    Stage(
        "monitor",
        "compare the current window with the reference: data, scores, performance",
        "drift, triggers",
        "07_monitor",
    ),
    Stage("export", "load everything a reviewer queries into PostgreSQL", "export receipt"),
    Stage("report", "render the reports from the outputs alone", "reports/site"),
    Stage("audit", "write the manifest of all of it, and chain the run log", "manifest, log"),
)
BY_NAME = {stage.name: stage for stage in STAGES}
