"""One word per stage, everywhere."""

import subprocess
import sys

import pytest
import yaml

from reperform.__main__ import parser
from reperform.params import SECTIONS
from reperform.stages import STAGES
from tests.conftest import ROOT

NAMES = [stage.name for stage in STAGES]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", NAMES)
def test_stage_is_in_the_graph_and_the_parameters(name: str) -> None:
    assert name in PIPELINE
    assert name in SECTIONS


@pytest.mark.parametrize("name", [n for n in NAMES if n != "compose"])
def test_stage_has_a_conf_group(name: str) -> None:
    assert list((ROOT / "conf" / name).glob("*.yaml"))


def test_graph_has_no_stage_that_the_catalogue_lacks() -> None:
    assert set(PIPELINE) == set(NAMES)


def test_graph_runs_each_stage_by_its_name() -> None:
    for name, stage in PIPELINE.items():
        assert stage["cmd"].startswith(f"python -m reperform {name}")


def test_help_explains_every_stage() -> None:
    text = parser().format_help()
    for stage in STAGES:
        assert stage.name in text
        assert stage.summary.split()[0] in text


def test_explained_errors_end_with_exit_code_1_and_no_stack_trace() -> None:
    got = subprocess.run(
        [sys.executable, "-m", "reperform", "params", "+split.tst=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert got.returncode == 1
    assert "Unknown parameter 'tst'" in got.stderr
    assert "Traceback" not in got.stderr
