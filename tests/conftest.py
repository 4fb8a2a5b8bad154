"""Fixtures that every test may use."""

import os
import shutil
import signal
import tempfile
from contextlib import closing
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
        # A clean end would first write every test's database to the disk.
        os.kill(int((home / "cluster" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    shutil.rmtree(home)


EMPTY = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
SET session_replication_role = replica;
DO $$ DECLARE one regclass; BEGIN
    FOR one IN SELECT oid FROM pg_class WHERE relnamespace = 'service'::regnamespace AND relkind = 'r'
        AND relname <> 'migrations' LOOP EXECUTE format('DELETE FROM %s', one); END LOOP;
    FOR one IN SELECT oid FROM pg_class WHERE relnamespace = 'service'::regnamespace AND relkind = 'S'
        LOOP EXECUTE format('ALTER SEQUENCE %s RESTART', one); END LOOP;
END $$;
"""


def _new_database(address: "Address") -> "Address":
    from reperform.export import server  # noqa: PLC0415  # psycopg is slow to import

    name = f"test_{uuid4().hex[:12]}"
    with server.connect(address) as connection:
        connection.autocommit = True
        connection.execute(f"CREATE DATABASE {name}".encode())
    return replace(address, parameters={**address.parameters, "dbname": name})


@pytest.fixture(scope="session")
def _service_tables(embedded_server: "Address") -> "Address":
    from reperform.service import database as storage  # noqa: PLC0415  # psycopg is slow to import

    address = _new_database(embedded_server)
    with closing(storage.Database(address)) as made:
        storage.prepare(made)
    return address


@pytest.fixture
def database(_service_tables: "Address") -> "Iterator[Database]":
    """The service's database with all its tables, empty. Tests that change the tables take `new_database`."""
    from reperform.export import server  # noqa: PLC0415  # psycopg is slow to import
    from reperform.service import database as storage  # noqa: PLC0415  # likewise

    with server.connect(_service_tables) as connection:
        connection.execute(EMPTY.encode())
    with closing(storage.Database(_service_tables)) as made:
        yield made


@pytest.fixture
def new_database(embedded_server: "Address") -> "Iterator[Database]":
    """A database of a test's own, with the service's tables. It takes a second."""
    from reperform.service import database as storage  # noqa: PLC0415  # psycopg is slow to import

    with closing(storage.Database(_new_database(embedded_server))) as made:
        storage.prepare(made)
        yield made
