"""How to score payments, as docs/how-to/serve.md says it, holds; docs/api.md is what the code says."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reperform.params import ServeParams
from reperform.service import api_docs
from tests import balancer
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "how-to" / "serve.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
STATUSES = {"400", "401", "403", "404", "408", "409", "413", "415", "422", "429", "500", "503"}


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name != "REPERFORM_DATABASE_URL"}
    return {**kept, "PATH": path, "PYTHONHASHSEED": "0", "OMP_WAIT_POLICY": "passive"}


@pytest.fixture
def port(service_project: Path) -> Iterator[int]:
    """A real server on a small trained project."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    command = [sys.executable, "-m", "reperform", "serve", "--port", str(number)]
    with (
        (service_project / "server.log").open("wb") as log,
        balancer.started(command, env=environment(), cwd=service_project, stdout=log, stderr=log),
    ):
        balancer.wait_for("127.0.0.1", number, seconds=60)
        yield number


def shape(value: Any) -> Any:
    """Names and kinds of a document, without its values."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items() if name not in {"members", "errors"}}
    if isinstance(value, list):
        return [shape(one) for one in value[:1]]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number or nothing" if is_number or value is None else type(value).__name__


def commands_and_answers() -> tuple[str, list[tuple[int, Any]]]:
    """All commands as one script that says where each begins, and what the guide shows after which of them."""
    script, shown, number = ["set -eu -o pipefail"], [], -1
    for kind, text in BLOCK.findall(GUIDE):
        if kind == "bash":
            number += 1
            script += [f"echo; echo '### {number}'", text]
        elif kind == "json":
            shown.append((number, json.loads(text)))
    return "\n".join(script), shown


@pytest.mark.slow
def test_every_command_of_the_guide_works_and_answers_as_it_shows(port: int, service_project: Path) -> None:
    script, shown = commands_and_answers()
    got = subprocess.run(
        ["bash", "-c", script.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
        cwd=service_project, env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    log = (service_project / "server.log").read_text()
    assert got.returncode == 0, got.stdout[-2000:] + got.stderr + log[-2000:]
    said = {
        int(number): text.strip()
        for number, text in re.findall(r"### (\d+)\n(.*?)(?=\n### |\Z)", got.stdout, re.DOTALL)
    }
    assert len(shown) >= 5
    for number, answer in shown:
        assert shape(json.loads(said[number])) == shape(answer), said[number]
    results, quarantine = _two(said[max(said) - 1])
    assert [row["transaction_id"] for row in json.loads(results)["rows"]] == ["PAY-3"]
    assert "PAY-4" in quarantine
    assert json.loads(_two(said[max(said)])[0])["transaction_id"] == "PAY-1"
    assert "PAY-1" not in log  # no personal data, no ids of transactions


def _two(text: str) -> tuple[str, str]:
    """Two JSON documents that stand one after the other."""
    _, end = json.JSONDecoder().raw_decode(text)
    return text[:end], text[end:]


@pytest.mark.slow
def test_client_of_the_guide_repeats_until_it_is_answered(port: int, service_project: Path) -> None:
    code = next(text for kind, text in BLOCK.findall(GUIDE) if kind == "python")
    made: dict[str, Any] = {}
    exec(compile(code, "serve.md", "exec"), made)
    created = subprocess.run(
        [sys.executable, "-m", "reperform", "keys", "create", "till"],
        cwd=service_project, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    key, url = created.stdout.split()[-1], f"http://127.0.0.1:{port}"
    account = _account(service_project)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    payment = {"transaction_id": "P1", "account_id": account, "booked_at": now, "direction": "out", "amount": 5.0}
    # From the first moment on: the service says 503 until its models are loaded.
    first = made["score"]([{**payment, "currency": "EUR"}], key, "P1", url, tries=12)
    assert made["score"]([{**payment, "currency": "EUR"}], key, "P1", url) == first
    with pytest.raises(ValueError, match="unknown-currency"):
        made["score"]([{**payment, "currency": "XXQ"}], key, "P2", url)


def _account(project: Path) -> str:
    import polars as pl  # noqa: PLC0415  # only here

    return str(pl.read_parquet(project / "data" / "validate" / "accounts.parquet")["account_id"][0])


def test_guide_names_every_status_that_a_client_can_meet() -> None:
    table = GUIDE.split("| status | when |", 1)[1].split("\n\n", 1)[0]
    named = set(re.findall(r"\b[45]\d\d\b", table))
    told = {
        status
        for path in api_docs.document()["paths"].values()
        for operation in path.values()
        for status in operation["responses"]
        if status[0] in "45"
    }
    assert named == STATUSES
    assert told <= named


def test_reference_of_the_api_is_what_the_code_says() -> None:
    expected = api_docs.page(api_docs.document())
    assert (ROOT / "docs" / "api.md").read_text() == expected, "run `python -m reperform api-docs`"


def test_reference_names_every_member_and_every_link_leads_somewhere() -> None:
    text, document = (ROOT / "docs" / "api.md").read_text(), api_docs.document()
    for name in document["components"]["schemas"]:
        assert f"\n### {name}\n" in text
    anchors = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line[:2] == "##"
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_parameters_that_the_guides_name_exist() -> None:
    names = {one.name for one in fields(ServeParams)}
    for text in (GUIDE, RUNBOOK):
        assert set(re.findall(r"`serve\.(\w+)", text)) <= names


# --- the runbook ---------------------------------------------------------------------------------------------------

RUNBOOK = (ROOT / "docs" / "how-to" / "operate.md").read_text()
RUN_HERE = re.compile(
    r"^python (?:-m reperform (?:keys|database|deliveries|calls|feedback)|tools/verify\.py)\b.*$", re.MULTILINE
)
PREPARED = """
from contextlib import closing
from reperform.service import database
with closing(database.Database()) as opened:
    database.prepare(opened)
"""
RECORDED = """
import sys
from reperform import tracking
for n in (1, 2):
    tracking.record({"ensemble": {"n": n}}, {}, tracking.outputs([]))
tracking.make_champion(tracking.version("2"), {})
"""


@pytest.fixture
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("REPERFORM_DATABASE_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("conf", "tools", "dvc.yaml", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data" / "ensemble").mkdir(parents=True)
    (tmp_path / "data" / "ensemble" / "model.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(project: Path, *command: str) -> str:
    got = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=False)
    assert got.returncode == 0, f"{command}: {got.stdout}{got.stderr}"
    return got.stdout


@pytest.mark.slow
def test_commands_of_the_runbook_run(empty_project: Path) -> None:
    blocks = "\n".join(text for kind, text in BLOCK.findall(RUNBOOK) if not kind)
    found = [line.split("  # ")[0].strip() for line in RUN_HERE.findall(blocks)]
    assert len(found) > 10
    script = ["set -eu", f"python - <<'END'\n{PREPARED}END", "set -x"]
    script.append("ID=$(python -m reperform keys create first | head -1 | cut -d ' ' -f 2)")
    script += [re.sub(r"\bID\b", "$ID", line) for line in found]
    (empty_project / "runbook.sh").write_text("\n".join(script))
    said = ran(empty_project, sys.executable, "-m", "reperform", "database", "--", "bash", "runbook.sh")
    assert "revoked" in said
    assert (empty_project / "calls.jsonl").is_file()


@pytest.mark.slow
def test_rolling_back_moves_the_champion_and_is_written_down(empty_project: Path) -> None:
    code = next(text for kind, text in BLOCK.findall(RUNBOOK) if kind == "python")
    ran(empty_project, sys.executable, "-c", RECORDED)
    ran(empty_project, sys.executable, "-c", code)
    told = "from reperform import tracking; print(tracking.version('champion').number)"
    assert ran(empty_project, sys.executable, "-c", told) == "1\n"
    assert "rolled back" in ran(empty_project, sys.executable, "-m", "reperform", "log")
    entry = json.loads((empty_project / "data" / "audit" / "log.jsonl").read_text().splitlines()[-1])
    assert (entry["event"], entry["verdict"], entry["version"]) == ("promotion", "rolled back", 1)
