"""Whatever is killed or fails: nothing acknowledged is lost, and the service comes back by itself."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import psutil
import pytest
from psycopg import errors

from reperform.service import app, calls
from reperform.service.database import Database
from tests.service_client import Client, running, transaction
from tests.service_project import another_version
from tests.service_served import Served, serving


@pytest.fixture
def client(database: Database, project: Path) -> Iterator[Client]:
    with running(database) as one:
        yield one


def broken_once(monkeypatch: pytest.MonkeyPatch, fail: Any) -> None:
    """The last thing before a commit fails, once."""
    real, failed = calls.append, []

    def append(connection: Any, facts: Any) -> None:
        if facts["status"] == 200 and not failed:
            failed.append(facts)
            fail(connection)
        real(connection, facts)

    monkeypatch.setattr(calls, "append", append)


def disk_full(_: Any) -> None:
    raise errors.DiskFull("could not extend file: No space left on device, account acc-1")


def lost(connection: Any) -> None:
    connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize("fail", [disk_full, lost])
def test_a_commit_that_fails_is_503_and_the_same_request_works_then(
    client: Client, monkeypatch: pytest.MonkeyPatch, fail: Any
) -> None:
    broken_once(monkeypatch, fail)
    sent = transaction()
    got = client.score(sent, key="k")
    assert got.status_code == 503, got.text
    assert int(got.headers["retry-after"]) >= 1
    assert got.json()["fix"]
    assert "acc-1" not in got.text
    assert client.champions.n_broken == 1
    assert client.rows("SELECT count(*) FROM service.journal") == [(0,)]
    again = client.score(sent, key="k")
    assert again.status_code == 200
    assert client.champions.champion(None).rows == {"in-pipeline", sent["transaction_id"]}
    assert "reperform_scorer_rebuilds_total 1.0" in client.http.get("/metrics").text


def test_a_mistake_of_ours_is_told_without_a_trace_and_undone(client: Client) -> None:
    client.champions.champion(None).breaks = True
    got = client.score(transaction())
    assert got.status_code == 500
    assert "acc-1" not in got.text
    assert "RuntimeError" not in got.text
    assert client.champions.n_broken == 1
    assert client.score(transaction()).status_code == 200


def test_what_cannot_be_written_into_the_log_of_calls_is_not_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(_: Any, __: Any) -> None:
        raise errors.DiskFull

    monkeypatch.setattr(calls, "append", append)
    got = client.get("/api/v1/anomaly-score/nobody")
    assert (got.status_code, got.json()["title"]) == (503, "Not logged")
    assert client.http.get("/health").status_code == 200


def acknowledged(served: Served, n: int, got: list[str], sent: list[tuple[str, str]]) -> None:
    """Score until `n` answers are there, repeating what was not answered under its own key."""
    for number in range(n):
        name = f"{threading.get_ident()}-{number}"
        for _ in range(60):
            try:
                response = served.score(key=name, transaction_id=name)
            except httpx.HTTPError:
                time.sleep(0.1)
                continue
            if response.status_code == 200:
                got.append(name)
                break
            # Times are made anew, so a request whose answer was lost on the way is another one under its key.
            if response.status_code == 409:
                sent.append((name, response.text))
                break
            time.sleep(0.1)


@pytest.mark.slow
def test_killed_workers_lose_no_answer_and_come_back(project: Path) -> None:
    with serving(project, workers=2, delay_s=0.01) as served:
        got: list[str] = []
        conflicts: list[tuple[str, str]] = []
        threads = [threading.Thread(target=acknowledged, args=(served, 40, got, conflicts)) for _ in range(3)]
        for thread in threads:
            thread.start()
        killed = set()
        for _ in range(3):
            time.sleep(1)
            victim = served.workers()[0]
            victim.send_signal(signal.SIGKILL)
            killed.add(victim.pid)
        for thread in threads:
            thread.join()
        assert len(got) + len(conflicts) == 120
        assert all(served.get(f"/api/v1/anomaly-score/{name}").status_code == 200 for name in got)
        assert all(served.get(f"/api/v1/anomaly-score/{name}").status_code == 200 for name, _ in conflicts)
        deadline = time.monotonic() + 60
        while len(served.workers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(killed - {one.pid for one in served.workers()}) == 3
        assert len(served.workers()) == 2
        served.wait_until(200)


@pytest.mark.slow
def test_a_killed_database_comes_back(project: Path) -> None:
    with serving(project) as served:
        assert served.score(transaction_id="before").status_code == 200
        number = int((project / ".pgdata/cluster/postmaster.pid").read_text().split()[0])
        psutil.Process(number).send_signal(signal.SIGKILL)
        served.wait_until(200, "/health")
        deadline, status = time.monotonic() + 60, 0
        while status != 200 and time.monotonic() < deadline:
            status = served.score().status_code
            assert status in (200, 503)
        assert status == 200
        assert served.get("/api/v1/anomaly-score/before").status_code == 200


@pytest.mark.slow
def test_told_to_end_it_finishes_what_runs(project: Path) -> None:
    with serving(project, delay_s=1.5) as served:
        got: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: got.append(served.score(transaction_id="last")))
        thread.start()
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        thread.join()
        assert [one.status_code for one in got] == [200]
        assert served.process.wait(30) in (0, -signal.SIGTERM)
        told = served.lines()
        assert [one["status"] for one in told if one.get("route") == "/api/v1/detect-anomalies"] == [200]
        assert "Traceback" not in served.log.read_text()


@pytest.mark.slow
def test_figures_of_all_workers_add_up(project: Path) -> None:
    with serving(project, workers=2) as served:
        for _ in range(20):
            assert served.score().status_code == 200
        text = served.get("/metrics").text
        assert "reperform_transactions_total 20.0" in text
        assert 'reperform_requests_total{method="POST",route="/api/v1/detect-anomalies",status="200"} 20.0' in text
        raw = httpx.get(served.base + "/health").headers
        assert "server" not in raw
        assert json.loads(served.log.read_text().splitlines()[-1])["event"]


@pytest.mark.slow
def test_a_promotion_drops_no_request(service_project: Path) -> None:
    from reperform import tracking  # noqa: PLC0415  # pulls in MLflow

    account = pl.read_parquet("data/validate/accounts.parquet")["account_id"][0]
    got: list[httpx.Response] = []
    ended = threading.Event()

    def ask(served: Served) -> None:
        while not ended.is_set():
            got.append(served.score(account_id=account))
            time.sleep(0.05)

    with serving(service_project, application=app.APPLICATION) as served:
        thread = threading.Thread(target=ask, args=(served,))
        thread.start()
        number = another_version()
        deadline = time.monotonic() + 90
        while served.get("/ready").json().get("shadow_version") != number and time.monotonic() < deadline:
            time.sleep(0.2)
        tracking.make_champion(tracking.version(tracking.NEXT_ALIAS), {})
        while served.get("/ready").json().get("model_version") != number and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        ended.set()
        thread.join()
        assert {one.status_code for one in got} == {200}
        versions = [one.json()["model_version"] for one in got]
        assert versions == sorted(versions)
        assert set(versions) == {1, number}
        stored = served.get(f"/api/v1/anomaly-score/{_in_shadow(got)}").json()
        assert (stored["answer"]["model_version"], stored["shadow"][0]["model_version"]) == (1, number)


def _in_shadow(got: list[httpx.Response]) -> str:
    """The last transaction that version 1 answered, while the other scored beside it."""
    return str([one.json()["answers"][0]["transaction_id"] for one in got if one.json()["model_version"] == 1][-1])
