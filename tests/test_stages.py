"""One word per stage, everywhere."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reperform.__main__ import parser
from reperform.params import SECTIONS
from reperform.report import READING_NOTEBOOKS
from reperform.stages import BY_NAME, STAGES
from tests.conftest import ROOT

NAMES = [stage.name for stage in STAGES]
PACKAGE = ROOT / "src" / "reperform"
# What every stage uses to find, read, write and explain things; it decides no number.
PLUMBING = {"__init__", "commands", "compose", "errors", "notebooks", "params", "paths", "stages", "tables"}
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


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(cell) for cell in cells).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))


def imported_modules(path: Path) -> set[str]:
    """Modules and folders directly below the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(code_of(path))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "reperform":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return {name for name in found if not name.startswith("_")}


def files_of(module: str) -> list[Path]:
    folder = PACKAGE / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{module}.py"]


def all_imports(module: str, seen: set[str]) -> set[str]:
    if module in seen or module in PLUMBING:
        return seen
    seen.add(module)
    for path in files_of(module):
        for other in imported_modules(path):
            all_imports(other, seen)
    return seen


def modules_of(name: str) -> set[str]:
    """What a stage's module and its notebook import, and what that imports; figures are named file by file."""
    seen = all_imports(name, set())
    stage_notebook = BY_NAME[name].notebook
    narrated = list(READING_NOTEBOOKS) if name == "report" else [stage_notebook] if stage_notebook else []
    for notebook in narrated:
        for module in imported_modules(ROOT / "notebooks" / f"{notebook}.ipynb") - {"figures"}:
            all_imports(module, seen)
    return seen


@pytest.mark.parametrize("name", [n for n in NAMES if n != "compose"])
def test_stage_runs_again_when_code_that_it_imports_changes(name: str) -> None:
    deps = [Path(dep) for dep in PIPELINE[name]["deps"] if dep.startswith("src/")]
    needed = {path.relative_to(ROOT) for module in modules_of(name) for path in files_of(module)}
    missing = sorted(str(p) for p in needed if not any(p == dep or dep in p.parents for dep in deps))
    assert missing == []
