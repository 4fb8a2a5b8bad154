"""MLflow is an index: the same state is recorded once, and refers to outputs by hash."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reperform import tracking
from reperform.errors import ReperformError
from tests.conftest import ROOT

METRICS = {
    "ensemble": {"average_precision": {"estimate": 0.5, "low": 0.4, "high": 0.6, "n": 100}},
    "xgboost": {"average_precision": {"estimate": 0.45, "low": None, "high": None, "n": 100}},
}
PARAMETERS = {"split": {"train_days": 20, "test_from": "2025-03-24"}, "train": {"detectors": ["xgboost"]}}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "dvc.yaml").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.record({}, {}, {})
    return folder / tracking.DATABASE


@pytest.fixture
def tracked(project: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(template, project / tracking.DATABASE)
    write(project, "data/ensemble/model.json", "{}")
    write(project, "data/train/xgboost/fit.json", json.dumps({"parameters": {"max_depth": 4}, "seed": 7}))
    return project


def write(project: Path, name: str, text: str) -> None:
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text(text)


def record(metrics: Any = METRICS) -> str:
    return tracking.record(metrics, PARAMETERS, tracking.outputs(["xgboost"]))


def client() -> Any:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415  # costs a second

    return MlflowClient(tracking_uri=tracking._uri(), registry_uri=tracking._uri())


def runs_of(key: str | None = None) -> list[Any]:
    found = client().get_experiment_by_name(tracking.EXPERIMENT)
    every = client().search_runs([found.experiment_id])
    return [run for run in every if key is None or run.data.tags.get(tracking.KEY_TAG) == key]


def aliases() -> dict[str, int]:
    found = client().get_registered_model(tracking.MODEL).aliases
    return {name: int(version) for name, version in found.items()}  # text or numbers, by MLflow's version


def test_recording_the_same_state_twice_gives_one_run(tracked: Path) -> None:
    before = len(runs_of())
    first = record()
    assert record() == first
    assert len(runs_of()) == before + 3  # the run, and one for each detector
    assert aliases() == {"champion": 1}


def test_a_changed_metric_or_output_is_another_run(tracked: Path) -> None:
    first = record()
    second = record({**METRICS, "ensemble": {"average_precision": {"estimate": 0.51}}})
    write(tracked, "data/ensemble/model.json", "{ }")
    third = record()
    assert len({first, second, third}) == 3
    assert aliases() == {"champion": 1, "challenger": 3}


def test_a_run_holds_parameters_metrics_and_hashes(tracked: Path) -> None:
    run = client().get_run(record())
    assert run.data.params["split.train_days"] == "20"
    assert run.data.params["train.detectors"] == '["xgboost"]'
    assert run.data.metrics["ensemble.average_precision.estimate"] == 0.5
    assert run.data.tags["data.data/ensemble/model.json"] == "sha256:" + tracking.file_digest(
        tracked / "data/ensemble/model.json", "sha256"
    )
    assert run.info.status == "FINISHED"


def test_each_detector_has_a_nested_run_with_what_it_was_fitted_with(tracked: Path) -> None:
    parent = record()
    children = {
        run.data.tags["reperform.detector"]: run
        for run in runs_of()
        if run.data.tags.get("mlflow.parentRunId") == parent
    }
    assert set(children) == {"ensemble", "xgboost"}
    assert children["xgboost"].data.params["max_depth"] == "4"
    assert children["xgboost"].data.metrics == {"average_precision.estimate": 0.45, "average_precision.n": 100}


def test_nothing_but_the_database_is_written(tracked: Path) -> None:
    before = {p for p in tracked.rglob("*") if p.is_file()}
    record()
    new = {p.name for p in tracked.rglob("*") if p.is_file() and p not in before}
    assert all(name.startswith(tracking.DATABASE) for name in new)


def test_nothing_is_printed(tracked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tracked / tracking.DATABASE).unlink()
    tracking.record({}, {}, {})
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_recording_is_repeated(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_register", stopped)
        with pytest.raises(KeyboardInterrupt):
            record()
    run = client().get_run(record())
    assert run.info.status == "FINISHED"


def test_a_hash_is_that_of_dvc_where_the_file_is_still_the_same(tracked: Path) -> None:
    path = tracked / "data/ensemble/model.json"
    md5 = tracking.file_digest(path, "md5")
    write(tracked, "dvc.lock", f"stages: {{e: {{outs: [{{path: data/ensemble/model.json, md5: {md5}}}]}}}}")
    assert tracking.file_hash(path) == f"md5:{md5}"
    path.write_text("changed after DVC ran")
    assert tracking.file_hash(path).startswith("sha256:")


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path, tracked: Path) -> None:
    write(tmp_path, "one/a.txt", "1")
    write(tmp_path, "two/a.txt", "1")
    assert tracking.file_hash(tmp_path / "one") == tracking.file_hash(tmp_path / "two")
    (tmp_path / "two/a.txt").rename(tmp_path / "two/b.txt")
    assert tracking.file_hash(tmp_path / "one") != tracking.file_hash(tmp_path / "two")


def test_the_commit_and_the_environment_are_told(tracked: Path) -> None:
    shutil.copy(ROOT / "requirements.lock", tracked)
    for command in (
        ["init", "-q"],
        ["-c", "user.name=T", "-c", "user.email=t@e.org", "commit", "-qm", "m", "--allow-empty"],
    ):
        subprocess.run(["git", *command], cwd=tracked, check=True)
    tags = client().get_run(record()).data.tags
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tracked, capture_output=True, text=True, check=True)
    assert tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert tags["environment.lock"].startswith("sha256:")


def test_a_database_that_cannot_be_used_is_explained(tracked: Path) -> None:
    (tracked / tracking.DATABASE).write_text("no database at all")
    with pytest.raises(ReperformError, match=r"could not be recorded[\s\S]*delete mlflow.db"):
        record()


def test_nested_values_are_flattened() -> None:
    assert dict(tracking.flat({"a": {"b": 1, "c": {}}, "d": [1, 2]})) == {"a.b": 1, "d": [1, 2]}


def test_aliases_are_told_and_nothing_is_registered_at_first(tracked: Path) -> None:
    assert tracking.aliases() == {}
    record()
    record({**METRICS, "ensemble": {"average_precision": {"estimate": 0.51}}})
    assert tracking.aliases() == {"champion": 1, "challenger": 2}


def test_a_registry_that_cannot_be_asked_is_explained_at_once(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for name in tracking.HASTY:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ReperformError, match="registry of models cannot be used"):
        tracking.aliases()
    assert tracked.is_dir()
