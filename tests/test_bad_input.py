"""What people get wrong, through the real command line: they are told what was expected, what came, and what to do."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from reperform import audit, params, schemas, tables
from reperform.params import AuditParams
from tests.conftest import ROOT

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "REPERFORM_DATABASE_URL"},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def command(folder: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, cwd=folder, env={**ENVIRONMENT, **variables}, capture_output=True, text=True, check=False
    )


def reperform(folder: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return command(folder, sys.executable, "-m", "reperform", *words, **variables)


def refusal(got: "subprocess.CompletedProcess[str]") -> str:
    """What a command said that was refused: in words, never as a stack trace."""
    assert got.returncode == 1, got.stdout + got.stderr
    assert "Traceback" not in got.stderr
    assert got.stderr.startswith("error: ")
    assert "what to do:" in got.stderr
    return got.stderr


def edited(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / "conf" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- parameters ---


def test_an_unknown_key_in_conf_names_its_nearest_neighbour(project: Path) -> None:
    edited(project, "export/default.yaml", "reader_role:", "reader_rol:")
    said = refusal(reperform(project, "params"))
    assert "Unknown parameter 'reader_rol'" in said
    assert "did you mean reader_role" in said


def test_an_unknown_key_in_conf_stops_the_pipeline_at_its_first_stage(project: Path) -> None:
    composed(project)
    edited(project, "split/demo.yaml", "test_days:", "test_dys:")
    assert "test_dys" in refusal(reperform(project, "compose"))


def test_an_unknown_override_is_refused(project: Path) -> None:
    assert "'tst_days'" in refusal(reperform(project, "params", "+split.tst_days=3"))


def test_a_value_out_of_its_range_is_refused(project: Path) -> None:
    assert "test_days" in refusal(reperform(project, "params", "split.test_days=-1"))


def test_an_unknown_detector_is_refused_before_anything_is_trained(project: Path) -> None:
    said = refusal(reperform(project, "params", "train.detectors=[rules,xgbost]"))
    assert "xgbost" in said
    assert "did you mean xgboost" in said


def test_an_unknown_detector_is_refused_by_a_stage_that_is_run_by_hand(project: Path) -> None:
    composed(project)
    assert "did you mean xgboost" in refusal(reperform(project, "tune", "xgbost"))


# --- the database ---


@pytest.mark.parametrize("stage", ["export", "psql"])
def test_a_database_that_nobody_serves_is_explained_without_its_password(project: Path, stage: str) -> None:
    composed(project)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://ann:s3cret@127.0.0.1:{free.getsockname()[1]}/risk"
    said = refusal(reperform(project, stage, REPERFORM_DATABASE_URL=url))
    assert "The database cannot be reached" in said
    assert "ann@127.0.0.1" in said
    assert "s3cret" not in said


def test_an_address_that_is_none_is_explained(project: Path) -> None:
    composed(project)
    said = refusal(reperform(project, "export", REPERFORM_DATABASE_URL="postgres//ann:s3cret@host/risk"))
    assert "REPERFORM_DATABASE_URL is no address" in said
    assert "s3cret" not in said


def composed(project: Path) -> None:
    got = reperform(project, "params")
    assert got.returncode == 0, got.stderr


# --- the disk ---


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder on a disk of one megabyte."""
    folder = Path(tempfile.mkdtemp(prefix="rp-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        folder.rmdir()
        pytest.skip("a small disk cannot be mounted here (that takes root and the right to mount)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


WRITE = """
import sys
import numpy, polars
from reperform import tables
from reperform.errors import ReperformError
rows = int(sys.argv[1])
frame = polars.DataFrame({"x": numpy.random.default_rng(1).random(rows)})
try:
    tables.write_table(frame, "split", "splits")
except ReperformError as error:
    sys.exit(f"error: {error}")
"""


def test_a_full_disk_is_explained_and_the_earlier_output_stays_whole(small_disk: Path) -> None:
    (small_disk / "dvc.yaml").write_text("stages: {}\n")
    assert command(small_disk, sys.executable, "-c", WRITE, "100").returncode == 0
    path = small_disk / "data" / "split" / "splits.parquet"
    before = path.read_bytes()
    said = refusal(command(small_disk, sys.executable, "-c", WRITE, "1000000"))
    assert "Could not write splits.parquet" in said
    assert "free some space" in said
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# --- data edited by hand ---

PIPELINE = """\
stages:
  split:
    cmd: python -c "raise SystemExit('stage split would run')"
    outs: [data/split]
"""


def test_an_edited_output_is_named_by_the_verifier_and_by_dvc(project: Path) -> None:
    shutil.copytree(ROOT / "tools", project / "tools")
    (project / "dvc.yaml").write_text(PIPELINE)
    tables.write_table(schemas.empty(schemas.SPLIT_ROWS), "split", "splits")
    for words in (["dvc", "init", "--quiet", "--no-scm"], ["dvc", "commit", "--quiet", "--force", "split"]):
        got = command(project, *words)
        assert got.returncode == 0, got.stderr
    audit.run(AuditParams(include=["data", "dvc.lock"], exclude=["data/audit"]))
    assert "up to date" in command(project, "dvc", "status").stdout

    row = {"transaction_id": ["T1"], "split": ["test"]}
    tables.write_table(pl.DataFrame(row), "split", "splits")

    verified = command(project, sys.executable, "tools/verify.py")
    assert verified.returncode == 1
    assert "changed: data/split/splits.parquet" in verified.stdout.splitlines()
    assert verified.stdout.splitlines()[-1] == "same: 1, changed: 1, missing: 0"
    status = command(project, "dvc", "status").stdout
    assert "changed outs" in status
    assert "modified:           data/split" in status


def test_params_edited_by_hand_stop_the_pipeline(project: Path) -> None:
    composed(project)
    text = (project / "params.yaml").read_text()
    days = params.load(params.SplitParams).test_days
    (project / "params.yaml").write_text(text.replace(f"test_days: {days}", f"test_days: {days + 1}"))
    said = refusal(reperform(project, "compose"))
    assert "params.yaml" in said
