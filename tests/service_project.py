"""A small trained project for tests of the service: made once per test session, copied for each test.

conftest knows both fixtures; stages are imported when they run, because every test imports this module.

- `trained_project`: the folder, shared by all tests and processes of the session. Read only.
- `service_project`: an own copy as the current folder; version 1 is champion in its `mlflow.db`.
- `another_version(alert_share=0.02)`: trains nothing, but stacks anew and registers the next version as challenger;
  what version 1 consists of is found in `.dvc/cache` alone from then on, wherever the two differ.
"""

import fcntl
import hashlib
import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import polars as pl

ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = (
    "simulate.seed=6",
    "simulate.accounts=100",
    "simulate.transactions=5000",
    "simulate.days=90",
    "split.train_days=55",
    "split.train_until=2025-03-07",
    "split.label_delay_days=7",
    "split.label_maturity_days=10",
    "split.validation_days=21",
    "split.test_from=2025-03-15",
    "split.test_days=15",
    "tune.trials={rules: 0, isolation_forest: 0, one_class_svm: 0, xgboost: 0, lstm_autoencoder: 0}",
    "model.isolation_forest.n_estimators=20",
    "model.random_forest.n_estimators=30",
    "model.xgboost.n_estimators=40",
    "model.lstm_autoencoder.epochs=1",
    "model.lstm_autoencoder.max_sequences=1000",
    "explain.max_alerts=5",
    "explain.non_alerts=5",
    "explain.background_rows=100",
    "explain.lime_samples=200",
    "explain.lime_repeat_rows=2",
    "explain.lime_repeat_seeds=2",
    "explain.sanity_rows=300",
    "explain.bootstrap_rounds=50",
    "forecast.bootstrap_rounds=20",
)
KEPT = ("featurize", "validate", "ensemble", "train", "evaluate")


def _made(folder: Path) -> None:
    """Run every stage that the service builds on, in this process."""
    from reperform import compose, params, train, tune  # noqa: PLC0415  # pulls in detectors

    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.copy(ROOT / "dvc.yaml", folder)
    with _inside(folder):
        compose.write("smoke", OVERRIDES)
        for stage in ("simulate", "ingest", "validate", "featurize", "split"):
            _run(stage)
        settings = params.load(params.TrainParams)
        for detector in settings.detectors:
            tune.run(params.load(params.TuneParams), detector)
            train.run(settings, detector)
        for stage in ("ensemble", "evaluate", "explain", "forecast"):
            _run(stage)
        keep_in_cache()


def _run(stage: str) -> None:
    from reperform import params  # noqa: PLC0415  # as above

    importlib.import_module(f"reperform.{stage}").run(params.load(params.SECTIONS[stage]))


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


def keep_in_cache() -> None:
    """Put outputs of the current project where DVC would keep them: each file below its MD5."""
    for stage in KEPT:
        for path in sorted(p for p in (Path("data") / stage).rglob("*") if p.is_file()):
            md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            kept = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                shutil.copy(path, kept)


def another_version(alert_share: float = 0.02) -> int:
    """Stack the current project anew with other settings, and register it: the number of the new challenger."""
    from reperform import compose, tracking  # noqa: PLC0415  # as above

    changed = [f"ensemble.alert_share={alert_share}"]
    compose.write("smoke", (*OVERRIDES, *changed))
    _run("ensemble")
    _run("evaluate")
    keep_in_cache()
    return tracking.version(tracking.NEXT_ALIAS).number


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained project, made by whichever worker asks first. Read only."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "trained-project"
    with (base / "trained-project.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            making = base / "trained-project.partial"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            _made(making)
            making.rename(folder)
    return folder


@pytest.fixture
def service_project(trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained project, as the current folder; what is changed in it concerns nobody else."""
    folder = tmp_path / "project"
    shutil.copytree(trained_project, folder, ignore=shutil.ignore_patterns(".cache"))  # what other tests brought
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def arrivals() -> "pl.DataFrame":
    """Transactions of the current project's test period, in order of arrival."""
    import polars as pl  # noqa: PLC0415  # as above

    from reperform import params, tables  # noqa: PLC0415  # as above

    start = params.load(params.SplitParams).test_start
    rows = tables.read_table("validate", "transactions").filter(pl.col("known_at") >= start)
    return rows.sort("known_at", "booked_at", "transaction_id")
