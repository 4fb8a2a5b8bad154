"""Fixtures that every test may use."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

# The same examples in every run, however busy the machine: a test that fails fails for everybody.
settings.register_profile("reperform", deadline=None, derandomize=True)
settings.load_profile("reperform")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with this project's configuration, as the current folder."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real and third-party data; tests that need it are skipped by name where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("third-party data are not beside this checkout")
    return SHARED
