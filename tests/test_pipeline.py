"""The whole graph, as a stranger runs it: twice for the same bytes, and once killed half-way."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from reperform.stages import STAGES
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipeline")]

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONHASHSEED": "0",
    "REPERFORM_RENDERER": "pandoc",
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}
ENVIRONMENT.pop("REPERFORM_DATABASE_URL", None)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    got = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert got.returncode == 0, f"{' '.join(command)}\n{got.stdout[-3000:]}\n{got.stderr[-3000:]}"
    return got


def clone(folder: Path) -> Path:
    """A checkout as git would make it, with the smoke experiment's parameters."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "checkout")
    run(folder, "python", "-m", "reperform", "params", "--experiment", "smoke")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("first"))
    run(folder, "dvc", "repro")
    return folder


def outputs(folder: Path) -> dict[str, object]:
    """Every stage's outputs with their hashes, as DVC recorded them."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {name: stage.get("outs") for name, stage in stages.items()}


def test_every_stage_ran_and_the_report_is_there(finished: Path) -> None:
    ran = {name.split("@")[0] for name in outputs(finished)}
    assert ran == {stage.name for stage in STAGES}
    pages = sorted(path.stem for path in (finished / "reports" / "site").glob("*.html"))
    assert {"index", "model", "data_quality", "filings", "monitoring", "audit", "00_tour"} <= set(pages)


def test_reports_ask_for_nothing_from_the_network(finished: Path) -> None:
    for page in (finished / "reports" / "site").glob("*.html"):
        text = page.read_text()
        assert 'src="http' not in text
        assert "<link" not in text.replace('<link rel="stylesheet" href="data:', "")


def test_nothing_changed_means_nothing_to_do(finished: Path) -> None:
    assert "Data and pipelines are up to date" in run(finished, "dvc", "repro").stdout


def test_the_manifest_verifies_with_the_standard_library_alone(finished: Path) -> None:
    got = run(finished, sys.executable, "-I", "tools/verify.py")
    assert got.stdout.strip().splitlines()[-1].endswith("changed: 0, missing: 0")


def test_a_second_clean_run_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    second = clone(tmp_path)
    run(second, "dvc", "repro")
    expected, got = outputs(finished), outputs(second)
    assert [name for name in expected if expected[name] != got.get(name)] == []
    assert (second / "dvc.lock").read_bytes() == (finished / "dvc.lock").read_bytes()


def test_killed_half_way_and_run_again_gives_the_same_result(finished: Path, tmp_path: Path) -> None:
    folder = clone(tmp_path)
    started = subprocess.Popen(
        ["dvc", "repro"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(folder / "data" / "featurize" / "features.parquet")
    os.kill(started.pid, signal.SIGKILL)  # DVC alone: the stage that it started lives on, and may write late
    started.wait()
    run(folder, "dvc", "repro")
    assert outputs(folder) == outputs(finished)


def wait_for(path: Path, patience_s: float = 300) -> None:
    deadline = time.monotonic() + patience_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.2)
