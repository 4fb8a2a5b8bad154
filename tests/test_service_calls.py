"""Any call that was changed, removed, swapped, inserted or cut off is found, with the standard library alone."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import audit
from reperform.__main__ import main
from reperform.errors import ReperformError
from reperform.export import server
from reperform.service import calls
from reperform.service.database import Database
from tests.conftest import ROOT
from tests.service_rows import undone

FACTS: dict[str, str | int | None] = {
    "key_id": "0123456789ab",
    "method": "POST",
    "route": "/api/v1/detect-anomalies",
    "status": 200,
    "request_sha256": "a" * 64,
    "response_sha256": "b" * 64,
    "n_transactions": 3,
    "model_version": 7,
    "request_id": "r-1",
}


def call(database: Database, **changed: str | int | None) -> None:
    with database.transaction() as connection:
        calls.append(connection, {**FACTS, **changed})


def verify(root: Path, file: Path, *options: str) -> tuple[int, list[str], str]:
    command = [sys.executable, "-I", "-S", str(ROOT / "tools" / "verify.py"), "--root", str(root), "--calls", str(file)]
    got = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert "Traceback" not in got.stderr
    return got.returncode, got.stdout.splitlines(), got.stderr


@pytest.fixture
def five(database: Database, tmp_path: Path) -> Path:
    """The log of five calls."""
    for number in range(5):
        call(database, request_id=f"r-{number}")
    calls.export(database, tmp_path / "calls.jsonl")
    return tmp_path / "calls.jsonl"


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def write(file: Path, changed: list[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in changed), encoding="utf-8")


# --- the log ---


def test_an_empty_log_ends_where_a_chain_begins(database: Database, tmp_path: Path) -> None:
    with database.transaction() as connection:
        assert calls.end(connection) == (0, audit.FIRST)
    assert calls.export(database, tmp_path / "calls.jsonl") == (0, audit.FIRST)
    code, out, _ = verify(tmp_path, tmp_path / "calls.jsonl")
    assert (code, out[-1]) == (0, f"calls: 0 entries, last hash {audit.FIRST}")


def test_entries_have_the_form_of_the_run_log(database: Database, five: Path) -> None:
    read = audit.read_log(five)  # which follows the chain itself
    assert [entry["sequence"] for entry in read] == [0, 1, 2, 3, 4]
    assert {name: read[1][name] for name in FACTS} == {**FACTS, "request_id": "r-1"}
    assert read[1]["event"] == "call"
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(read[1]["time"]) < timedelta(minutes=5)
    with database.transaction() as connection:
        assert calls.end(connection) == (5, read[-1]["hash"])


def test_columns_show_the_same(database: Database, five: Path) -> None:
    with database.transaction() as connection:
        row = connection.execute(
            "SELECT key_id, method, route, status, n_transactions, model_version, request_id, request_sha256,"
            " response_sha256 FROM service.v_service_calls WHERE sequence = 2"
        ).fetchone()
    assert row == ("0123456789ab", "POST", "/api/v1/detect-anomalies", 200, 3, 7, "r-2", "a" * 64, "b" * 64)


def test_facts_that_are_not_known_are_null(database: Database, tmp_path: Path) -> None:
    with database.transaction() as connection:
        calls.append(connection, {"method": "GET", "route": "/health", "status": 401, "key_id": None})
    calls.export(database, tmp_path / "calls.jsonl")
    (entry,) = audit.read_log(tmp_path / "calls.jsonl")
    assert (entry["status"], entry["key_id"], entry["model_version"]) == (401, None, None)


def test_nothing_else_can_be_logged(database: Database) -> None:
    with pytest.raises(ReperformError, match=r"no such facts[\s\S]*account_id"):
        call(database, account_id="A1")


def test_what_fails_is_not_logged(database: Database, tmp_path: Path) -> None:
    call(database)
    with undone(database) as connection:
        calls.append(connection, FACTS)
    call(database)
    assert calls.export(database, tmp_path / "calls.jsonl")[0] == 2
    assert verify(tmp_path, tmp_path / "calls.jsonl")[0] == 0


def test_many_threads_make_one_chain(database: Database, tmp_path: Path) -> None:
    def some(name: str) -> None:
        for number in range(10):
            call(database, request_id=f"{name}-{number}")

    threads = [threading.Thread(target=some, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls.export(database, tmp_path / "calls.jsonl")
    assert verify(tmp_path, tmp_path / "calls.jsonl")[0] == 0
    names = {entry["request_id"] for entry in audit.read_log(tmp_path / "calls.jsonl")}
    assert names == {f"{name}-{number}" for name in "abcd" for number in range(10)}


@given(text=st.text(max_size=300), number=st.integers(-(2**60), 2**60))
@settings(max_examples=50)
def test_whatever_a_client_calls_itself_the_entry_is_what_the_run_log_would_seal(text: str, number: int) -> None:
    now = datetime(2025, 4, 1, 12, tzinfo=UTC)
    head, middle, tail = calls._around({"request_id": text, "n_transactions": number}, now)
    written = f"{head}{'0' * 64}{middle}41{tail}"
    entry = json.loads(written)
    assert (entry["sequence"], entry["previous"], entry["n_transactions"]) == (41, "0" * 64, number)
    assert entry["request_id"] == text[: calls.LONGEST].encode("utf-8", "replace").decode()
    assert written == json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_a_strange_name_survives_the_database_and_the_verifier(database: Database, tmp_path: Path) -> None:
    for text in ("\x00\x1f\u2028 ünï", '"}\\', "\ud800", "😀" * 300):
        call(database, request_id=text)
    calls.export(database, tmp_path / "calls.jsonl")
    assert verify(tmp_path, tmp_path / "calls.jsonl")[0] == 0


def test_a_file_that_cannot_be_written_is_explained(database: Database, tmp_path: Path) -> None:
    with pytest.raises(ReperformError, match="cannot be written"):
        calls.export(database, tmp_path / "nowhere" / "calls.jsonl")


# --- whoever meddles with it ---


def status_changed(log: list[str]) -> list[str]:
    return [log[0], log[1].replace('"status": 200', '"status": 500'), *log[2:]]


def hash_changed(log: list[str]) -> list[str]:
    entry = json.loads(log[4])
    return [*log[:4], json.dumps({**entry, "hash": "0" * 64}, sort_keys=True)]


def sealed_anew(log: list[str]) -> list[str]:
    entry = json.loads(log[2])
    del entry["hash"]
    return [*log[:2], json.dumps(audit.sealed({**entry, "status": 500}), sort_keys=True), *log[3:]]


def name_twice(log: list[str]) -> list[str]:
    return [log[0].replace('"status": 200', '"status": 500, "status": 200'), *log[1:]]


MEDDLING: list[Callable[[list[str]], list[str]]] = [
    status_changed,
    hash_changed,
    sealed_anew,
    name_twice,
    lambda log: log[1:],
    lambda log: [*log[:2], *log[3:]],
    lambda log: [log[0], log[2], log[1], *log[3:]],
    lambda log: [*log[:2], log[1], *log[2:]],
    lambda log: [*log[:2], "", *log[2:]],
    lambda log: [*log, "{}"],
    lambda log: [*log, "["],
    lambda log: [*log, "[" * 100_000],
    lambda log: [*log, log[-1]],
]


@pytest.mark.parametrize("meddle", MEDDLING)
def test_a_log_that_was_changed_is_found(tmp_path: Path, five: Path, meddle: Callable[[list[str]], list[str]]) -> None:
    assert verify(tmp_path, five)[0] == 0
    changed = meddle(lines(five))
    assert changed != lines(five)
    write(five, changed)
    code, _, errors = verify(tmp_path, five)
    assert code == 1
    assert "chain of calls is broken at line" in errors


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE service.calls SET entry = replace(entry, '200', '500') WHERE sequence = 2",
        "DELETE FROM service.calls WHERE sequence = 0",
        "DELETE FROM service.calls WHERE sequence = 3",
        "UPDATE service.calls SET hash = repeat('0', 64) WHERE sequence = 4",
        "UPDATE service.calls SET sequence = CASE sequence WHEN 1 THEN 102 ELSE 101 END WHERE sequence IN (1, 2)",
    ],
)
def test_a_change_in_the_database_is_found(database: Database, tmp_path: Path, five: Path, statement: str) -> None:
    with database.transaction() as connection:
        connection.execute(statement.encode())
    calls.export(database, five)
    assert verify(tmp_path, five)[0] == 1


def rewritten(log: list[str]) -> list[str]:
    """The whole log as somebody would write it who knows how."""
    made: list[str] = []
    for line in log:
        entry = {name: value for name, value in json.loads(line).items() if name != "hash"}
        previous = json.loads(made[-1])["hash"] if made else audit.FIRST
        made.append(json.dumps(audit.sealed({**entry, "status": 500, "previous": previous}), sort_keys=True))
    return made


@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (lambda log: log[:-1], "is missing"),
        (lambda log: [], "is missing"),
        (rewritten, "written anew"),
    ],
)
def test_a_missing_end_is_found_by_the_end_that_was_kept(
    tmp_path: Path, five: Path, meddle: Callable[[list[str]], list[str]], said: str
) -> None:
    last = json.loads(lines(five)[-1])["hash"]
    calls.keep(tmp_path / "data" / "audit" / "log.jsonl", 5, last, now=datetime.now(UTC))
    assert verify(tmp_path, five, "--last", last)[0] == 0
    write(five, meddle(lines(five)))
    code, _, errors = verify(tmp_path, five)
    assert code == 1
    assert said in errors
    code, _, errors = verify(tmp_path, five, "--without-log", "--last", last)
    assert code == 1
    assert f"does not know {last}" in errors
    code, out, _ = verify(tmp_path, five, "--without-log")
    assert code == 0
    assert "no earlier end is known here" in out[0]


def test_an_earlier_end_still_counts_in_a_longer_log(database: Database, tmp_path: Path, five: Path) -> None:
    calls.keep(tmp_path / "data" / "audit" / "log.jsonl", 5, json.loads(lines(five)[-1])["hash"], now=datetime.now(UTC))
    call(database)
    calls.export(database, five)
    code, out, errors = verify(tmp_path, five)
    assert (code, errors) == (0, "")
    assert out[-1].startswith("calls: 6 entries, last hash ")


def test_a_run_log_that_was_changed_cannot_vouch(tmp_path: Path, five: Path) -> None:
    log = tmp_path / "data" / "audit" / "log.jsonl"
    calls.keep(log, 5, json.loads(lines(five)[-1])["hash"], now=datetime.now(UTC))
    log.write_text(log.read_text().replace('"n_calls": 5', '"n_calls": 4'))
    code, _, errors = verify(tmp_path, five)
    assert code == 1
    assert "log's chain is broken at line 1" in errors


def test_a_file_that_is_not_there_or_not_text_is_explained(tmp_path: Path) -> None:
    assert "cannot be read" in verify(tmp_path, tmp_path / "none.jsonl")[2]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in verify(tmp_path, tmp_path / "binary")[2]


# --- on the command line ---


def test_the_command_exports_keeps_the_end_and_shows_it_in_the_log(
    database: Database, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = database.address.parameters
    url = " ".join(f"{name}={value}" for name, value in parameters.items() if name != "connect_timeout")
    monkeypatch.setenv(server.ADDRESS_VARIABLE, url)
    assert main(["calls"]) == 0
    assert not (project / "data" / "audit" / "log.jsonl").exists()
    call(database)
    call(database)
    assert main(["calls", "--to", "calls.jsonl"]) == 0
    call(database)
    assert main(["calls"]) == 0
    assert "3 entries" in capsys.readouterr().out
    assert main(["log"]) == 0
    assert "2 calls  last" in capsys.readouterr().out
    code, _, errors = verify(project, project / "calls.jsonl")
    assert code == 1  # the file is older than the end that was kept
    assert "it had 3 entries" in errors
    assert main(["calls", "--to", "calls.jsonl"]) == 0
    assert verify(project, project / "calls.jsonl")[0] == 0
