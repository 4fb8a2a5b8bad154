"""What the documents say is so."""

import re
from pathlib import Path

import pytest

from reperform.__main__ import parser
from reperform.stages import STAGES
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS = set(re.findall(r"^    ([a-z][a-z-]*)(?= |$)", parser().format_help(), flags=re.MULTILINE))


def read(path: Path) -> str:
    return path.read_text()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_readme_describes_every_stage_as_the_code_does(stage: object) -> None:
    assert f"| {stage.name} | {stage.summary} |" in README  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_inside_the_project_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", read(path))
    broken = [t for t in targets if not t.startswith("http") and not (path.parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_documents_exist(path: Path) -> None:
    targets = set(re.findall(r"^(?:.*`)?make ([a-z][a-z-]*)", read(path), flags=re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    assert set(re.findall(r"python -m reperform ([a-z][a-z-]*)", read(path))) <= COMMANDS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_experiments_and_groups_in_documents_exist(path: Path) -> None:
    for experiment in re.findall(r"EXPERIMENT=(\w+)", read(path)):
        assert (ROOT / "conf" / "experiment" / f"{experiment}.yaml").is_file()


def test_readme_has_no_placeholder() -> None:
    assert re.findall(r"@[A-Z]+@", README) == []


def test_help_of_make_names_every_target() -> None:
    for target in ("repro", "test", "params", "lab", "mlflow", "psql", "serve", "reports", "clean"):
        assert re.search(rf"^{target}:.*## ", MAKEFILE, flags=re.MULTILINE)
