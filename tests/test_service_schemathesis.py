"""Schemathesis asks the service whatever its OpenAPI document allows, and what it does not; every check must hold."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from reperform.service import app
from tests.service_served import ROOT, Served, serving

EXAMPLES = int(os.environ.get("REPERFORM_SCHEMATHESIS_EXAMPLES", "8"))  # of each operation; more for a long search
# Rules that no schema can say refuse good data as well: what is unknown, out of order, or answered already.
CONFIG = """
hooks = "tests.service_hooks"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "409", "422"]
"""


@pytest.fixture
def served(service_project: Path) -> Iterator[Served]:
    with serving(service_project, application=app.APPLICATION) as one:
        yield one


def schemathesis(served: Served, project: Path, examples: int) -> str:
    (project / "schemathesis.toml").write_text(CONFIG)
    accounts = pl.read_parquet(project / "data/validate/accounts.parquet")["account_id"].head(5)
    got = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run",
            f"{served.base}/openapi.json", "--checks", "all", "--max-examples", str(examples), "--seed", "1",
            "--continue-on-failure", "--workers", "1", "--no-color",
            "--header", f"Authorization: {served.headers['Authorization']}",
        ],
        cwd=project, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TESTS_ACCOUNTS": ",".join(accounts)},
    )  # fmt: skip
    assert got.returncode == 0, got.stdout[-6000:] + got.stderr[-2000:]
    return got.stdout


def checked(served: Served, told: str, least: int) -> None:
    """Nothing was found, and not because nothing was asked: each path gave a good answer at least once."""
    assert re.search(r"13 selected / 13 total", told), told[:2000]
    cases = re.search(r"(\d+) generated", told)
    assert cases is not None
    assert int(cases[1]) >= least
    requests = [one for one in served.lines() if one["event"] == "request"]
    assert max(one["status"] for one in requests if one["route"] != "/ready") < 500
    fine = {one["route"] for one in requests if one["status"] < 300}
    assert {"/api/v1/detect-anomalies", "/api/v1/accounts", "/api/v1/forecast", "/api/v1/model-explanation"} <= fine


@pytest.mark.slow
def test_schemathesis_finds_nothing(served: Served, service_project: Path) -> None:
    checked(served, schemathesis(served, service_project, EXAMPLES), least=500)
