"""Fixtures that every test may use."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import settings

from tests.service_project import service_project, trained_project  # noqa: F401  # fixtures for every test

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reperform.export.server import Address
    from reperform.service.database import Database

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


@pytest.fixture(scope="session")
def embedded_server() -> "Iterator[Address]":
    """An embedded PostgreSQL for all tests of this process; no test may stop it."""
    from reperform.export import server  # noqa: PLC0415  # psycopg is slow to import

    home = Path(tempfile.mkdtemp(prefix="rp-"))
    with server.embedded(home) as address:
        yield address
    shutil.rmtree(home)


@pytest.fixture
def database(embedded_server: "Address") -> "Iterator[Database]":
    """A new database for one test, with the service's tables."""
    from reperform.export import server  # noqa: PLC0415  # psycopg is slow to import
    from reperform.service import database as storage  # noqa: PLC0415  # likewise

    name = f"test_{uuid4().hex[:12]}"
    with server.connect(embedded_server) as connection:
        connection.autocommit = True
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]  # a name of ours
    made = storage.Database(replace(embedded_server, parameters={**embedded_server.parameters, "dbname": name}))
    storage.prepare(made)
    yield made
    made.close()  # the database goes with the server's folder: to drop it takes half a second
