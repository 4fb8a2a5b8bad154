"""The API over HTTP, with a real database and stand-ins for models."""

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from reperform.errors import ReperformError
from reperform.params import ServeParams
from reperform.service import door, keys
from reperform.service.database import Database
from reperform.service.process import Service
from tests.service_client import PATH, Client, running, transaction

OPEN = ("/health", "/ready", "/metrics", "/openapi.json", "/docs")
pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def client(database: Database, project: Path) -> Iterator[Client]:
    with running(database) as one:
        yield one


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert told["type"].endswith(f"/{code}")
    assert told["status"] == status
    assert told["request_id"] == response.headers["x-request-id"]
    assert told["detail"]
    assert "Traceback" not in response.text
    return told


# Scores


def test_scores_come_in_the_order_of_the_request(client: Client) -> None:
    now = datetime.now(UTC)
    late = transaction(amount=1500.0, known_at=now.isoformat(), booked_at=(now - timedelta(hours=1)).isoformat())
    early = transaction(amount=20.0, booked_at=(now - timedelta(hours=2)).isoformat(), known_at=late["booked_at"])
    got = client.score(late, early)
    assert got.status_code == 200, got.text
    told = got.json()
    assert [one["transaction_id"] for one in told["answers"]] == [late["transaction_id"], early["transaction_id"]]
    assert [one["score"] for one in told["answers"]] == [1.5, 0.02]
    assert [one["is_alert"] for one in told["answers"]] == [True, False]
    assert [len(one["reasons"]) for one in told["answers"]] == [1, 0]
    assert (told["model_version"], told["sequence"]) == (1, 1)
    assert told["request_id"] == got.headers["x-request-id"]


@pytest.mark.parametrize(("asked", "n"), [("all", 1), ("none", 0), ("alerts", 0)])
def test_reasons_are_given_as_asked(client: Client, asked: str, n: int) -> None:
    (one,) = client.score(transaction(), query=f"?reasons={asked}").json()["answers"]
    assert len(one["reasons"]) == n


def test_what_was_answered_can_be_read_again(client: Client) -> None:
    sent = transaction(amount=1900.0, transaction_id="a/b c?ü")
    given = client.score(sent).json()["answers"][0]
    got = client.get("/api/v1/anomaly-score/a%2Fb%20c%3F%C3%BC").json()
    assert got["answer"] | given == got["answer"]
    assert (got["answer"]["role"], got["answer"]["model_version"], got["shadow"]) == ("champion", 1, [])


def test_what_a_day_shares_is_looked_up_before_its_first_transaction(client: Client) -> None:
    scorer = client.champions.answering
    assert scorer is not None
    assert scorer.prepared is not None
    first = scorer.prepared
    client.service.desk.prepare()
    assert scorer.prepared > first
    with client.service.desk._turn:  # a request is being answered: nobody waits
        before = scorer.prepared
        client.service.desk.prepare()
        assert scorer.prepared == before


def test_an_unknown_answer_is_404(client: Client) -> None:
    problem(client.get("/api/v1/anomaly-score/nobody"), 404, "unknown-transaction")


def test_an_answer_without_reasons_has_an_empty_list_of_them(client: Client) -> None:
    sent = transaction()
    assert client.score(sent, query="?reasons=none").json()["answers"][0]["reasons"] == []
    assert client.get(f"/api/v1/anomaly-score/{sent['transaction_id']}").json()["answer"]["reasons"] == []


def test_a_challenger_scores_in_shadow(client: Client) -> None:
    from tests.service_fakes import FakeScorer  # noqa: PLC0415  # only here

    client.champions.shadowing = FakeScorer(2)
    sent = transaction(amount=100.0)
    assert client.score(sent).json()["answers"][0]["score"] == 0.1
    got = client.get(f"/api/v1/anomaly-score/{sent['transaction_id']}").json()
    assert [(one["model_version"], one["score"]) for one in got["shadow"]] == [(2, 0.2)]
    client.champions.shadowing.breaks = True
    assert client.score(transaction()).status_code == 200
    assert client.champions.withdrawn == 1
    assert client.champions.shadowing is None


# Idempotency


def test_a_repeated_request_gets_the_first_answer_byte_for_byte(client: Client) -> None:
    sent = transaction()
    first, second = client.score(sent, key="k1"), client.score(sent, key="k1")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert client.rows("SELECT count(*) FROM service.answers") == [(1,)]


def test_another_request_under_the_same_key_is_refused(client: Client) -> None:
    client.score(transaction(), key="k1")
    told = problem(client.score(transaction(), key="k1"), 409, "idempotency-conflict")
    assert "new key" in told["fix"]


def test_a_refused_request_does_not_use_up_its_key(client: Client) -> None:
    sent = transaction(account_id="acc-9")
    problem(client.score(sent, key="k1"), 422, "unknown-account")
    account = {"account_id": "acc-9", "entity_id": "northbank"}
    assert client.post("/api/v1/accounts", {"accounts": [account]}).json()["registered"] == 1
    assert client.score(sent, key="k1").status_code == 200


@pytest.mark.parametrize("key", ["", "ä", "a b", "x" * 201])
def test_a_key_is_plain_text(client: Client, key: str) -> None:
    got = client.post(PATH, {"transactions": [transaction()]}, **{"Idempotency-Key": key.encode()})  # type: ignore[arg-type]
    problem(got, 422, "wrong-parameter")


# What is refused


def test_one_wrong_transaction_refuses_all_and_every_problem_is_told(client: Client) -> None:
    bad = [transaction(account_id="acc-9"), transaction(), transaction(currency="JPY", country="XX")]
    told = problem(client.score(*bad), 422, "unknown-account")
    assert [one["where"] for one in told["errors"]] == [
        "transactions[0].account_id", "transactions[2].currency", "transactions[2].country",
    ]  # fmt: skip
    assert all(one["fix"] and one["expected"] and one["got"] for one in told["errors"])
    assert client.rows("SELECT count(*) FROM service.journal") == [(0,)]


def test_answered_before_is_409_with_the_way_to_the_answer(client: Client) -> None:
    sent = transaction()
    client.score(sent)
    told = problem(client.score(sent), 409, "answered-already")
    assert "anomaly-score" in told["fix"]


def test_out_of_order_is_409(client: Client) -> None:
    now = datetime.now(UTC)
    client.score(transaction())
    old = (now - timedelta(hours=1)).isoformat()
    problem(client.score(transaction(booked_at=old, known_at=old)), 409, "out-of-order")
    assert client.score(transaction(booked_at=old)).status_code == 200


def known_until(client: Client) -> datetime:
    assert client.champions.answering is not None
    assert client.champions.answering.known_until is not None
    return client.champions.answering.known_until


def test_after_a_clock_was_wrong_the_service_goes_on_behind_the_end_of_the_journal(client: Client) -> None:
    client.score(transaction())
    end = known_until(client)
    now = end - timedelta(hours=2)  # the clock that was two hours ahead has been set right
    client.service.desk.now = lambda: now
    booked = (now - timedelta(hours=1)).isoformat()
    assert client.score(transaction(transaction_id="t", booked_at=booked)).status_code == 200
    assert known_until(client) == end + timedelta(microseconds=1)
    problem(client.score(transaction(booked_at=booked, known_at=booked)), 409, "out-of-order")
    ahead = (end + timedelta(minutes=1)).isoformat()  # and nobody can push it further ahead
    problem(client.score(transaction(booked_at=booked, known_at=ahead)), 422, "clock-skew")
    problem(client.score(transaction(booked_at=end.isoformat())), 422, "clock-skew")


def test_a_transaction_of_the_pipeline_is_409(client: Client) -> None:
    problem(client.score(transaction(transaction_id="in-pipeline")), 409, "scored-by-pipeline")


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 50_000, b'{"transactions": [NaN]}', b"\xff\xfe"])
def test_bodies_that_cannot_be_read(client: Client, text: bytes) -> None:
    told = client.post(PATH, text)
    assert told.status_code in (400, 422)
    assert told.headers["content-type"] == "application/problem+json"


def test_a_body_of_10_megabytes_is_refused_before_it_is_read(client: Client) -> None:
    told = problem(client.post(PATH, b" " * 10_000_000), 413, "body-too-large")
    assert "2097152" in told["expected"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(client: Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 65_536
            yield b" " * 65_536

    got = client.http.post(PATH, content=endless(), headers=client.headers(**{"Content-Type": "application/json"}))
    problem(got, 413, "body-too-large")


def asked(client: Client, receive: Any, **headers: str) -> list[Any]:
    """What comes back on one connection whose body comes as `receive` says."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"content-type": "application/json", **headers}
    scope = {
        "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    assert client.http.portal is not None
    client.http.portal.call(client.http.app, scope, receive, send)
    return sent


@pytest.mark.parametrize("headers", [{"content_length": "70000"}, {"transfer_encoding": "chunked"}])
def test_of_who_has_no_key_nothing_large_is_read(client: Client, headers: dict[str, str]) -> None:
    async def receive() -> Any:
        raise AssertionError("somebody reads it")

    assert asked(client, receive, **headers)[0]["status"] == 401
    assert asked(client, receive, authorization="Bearer rpf_x", **headers)[0]["status"] == 401


def test_a_body_that_trickles_in_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", 0.5)

    async def receive() -> Any:
        await anyio.sleep(0.1)
        return {"type": "http.request", "body": b" ", "more_body": True}

    key = f"Bearer {client.secret}"
    assert asked(client, receive, authorization=key, transfer_encoding="chunked")[0]["status"] == 408


def test_a_request_with_two_lengths_is_refused_and_its_connection_closed(client: Client) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    told = asked(client, receive, content_length="2", transfer_encoding="chunked")
    assert told[0]["status"] == 400
    assert (b"connection", b"close") in told[0]["headers"]
    assert json.loads(told[1]["body"])["type"].endswith("two-lengths")


@pytest.mark.parametrize("kind", ["text/plain", "", "application/json; charset=latin-1", "multipart/form-data"])
def test_another_content_type_is_415(client: Client, kind: str) -> None:
    problem(client.post(PATH, {"transactions": [transaction()]}, **{"Content-Type": kind}), 415, "wrong-content-type")


def test_compressed_bodies_are_415(client: Client) -> None:
    problem(client.post(PATH, b"x", **{"Content-Encoding": "gzip"}), 415, "wrong-content-encoding")


def test_misspelt_parameters_are_refused_by_name(client: Client) -> None:
    told = problem(client.score(transaction(), query="?reason=all"), 422, "unknown-parameter")
    assert told["where"] == "query, reason"
    problem(client.score(transaction(), query="?reasons=some"), 422, "wrong-parameter")


def test_wrong_paths_and_methods(client: Client) -> None:
    problem(client.get("/api/v1/nothing"), 404, "no-such-path")
    got = client.http.delete(PATH)
    problem(got, 405, "wrong-method")
    assert got.headers["allow"] == "POST"


# Keys


@pytest.mark.parametrize(
    "given", [None, "", "Basic abc", "Bearer", "Bearer ", "Bearer abc", f"Bearer rpf_{'0' * 12}_{'A' * 43}"]
)
def test_without_a_good_key_nothing_is_told(client: Client, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    got = client.http.get("/api/v1/forecast", headers=headers)
    assert got.status_code == 401
    assert got.headers["www-authenticate"].startswith("Bearer")
    assert got.headers["content-type"] == "application/problem+json"
    assert got.json()["fix"]


def test_scopes_open_what_they_name(client: Client) -> None:
    _, read = keys.create(client.service.database, "reader", ["read"])
    _, score = keys.create(client.service.database, "scorer", ["score"])
    told = problem(
        client.http.post(PATH, json={"transactions": [transaction()]}, headers={"Authorization": f"Bearer {read}"}),
        403, "wrong-scope",
    )  # fmt: skip
    assert told["expected"] == "a key with scope score"
    problem(client.http.get("/api/v1/forecast", headers={"Authorization": f"Bearer {score}"}), 403, "wrong-scope")


def test_expired_and_revoked_keys_are_refused(client: Client) -> None:
    expired, secret = keys.create(client.service.database, "old", ["read"], days=1)
    client.rows(
        "UPDATE service.api_keys SET expires_at = now() - interval '1 second' WHERE key_id = %s RETURNING 1",
        [expired.key_id],
    )
    told = client.http.get("/api/v1/forecast", headers={"Authorization": f"Bearer {secret}"})
    assert "expired" in problem(told, 401, "key-refused")["detail"]
    revoked, secret = keys.create(client.service.database, "gone", ["read"])
    keys.revoke(client.service.database, revoked.key_id)
    told = client.http.get("/api/v1/forecast", headers={"Authorization": f"Bearer {secret}"})
    assert "revoked" in problem(told, 401, "key-refused")["detail"]


def test_a_key_that_asks_too_often_is_told_when_to_come_back(client: Client) -> None:
    _, secret = keys.create(client.service.database, "often", ["score"], requests_per_minute=2)
    headers = {"Authorization": f"Bearer {secret}"}
    got = [client.http.post(PATH, json={"transactions": [transaction()]}, headers=headers) for _ in range(3)]
    assert [one.status_code for one in got] == [200, 200, 429]
    problem(got[2], 429, "too-many-requests")
    assert 1 <= int(got[2].headers["retry-after"]) <= 31


# What every answer has


@pytest.mark.parametrize("path", [*OPEN, "/api/v1/forecast", "/nothing"])
def test_every_answer_has_its_headers(client: Client, path: str) -> None:
    got = client.http.get(path)
    assert re.fullmatch("[0-9a-f]{32}", got.headers["x-request-id"])
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in got.headers["content-security-policy"]
    assert "server" not in got.headers
    assert "strict-transport-security" not in got.headers


def test_behind_tls_clients_are_told_to_stay_there(database: Database) -> None:
    with running(database, behind_tls=True) as client:
        assert "max-age=" in client.http.get("/health").headers["strict-transport-security"]


def test_the_page_of_documents_loads_nothing(client: Client) -> None:
    page = client.http.get("/docs")
    assert "<script" not in page.text
    assert "src=" not in page.text
    style = re.search("<style>(.*?)</style>", page.text)
    assert style
    import base64  # noqa: PLC0415  # only here

    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["content-security-policy"]
    for path in client.http.get("/openapi.json").json()["paths"]:
        assert path in page.text


def test_every_path_declares_its_problems_and_examples(client: Client) -> None:
    document = client.http.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], path
            assert operation["description"], path
            assert "500" in operation["responses"], path
            if path.startswith("/api/"):
                assert {"401", "403", "429", "503"} <= set(operation["responses"]), path
                assert operation["security"], path
            if method == "post" and path != "/api/v1/batch-process":
                assert operation["requestBody"]["content"]["application/json"]["example"]
    text = json.dumps(document)
    for name in re.findall(r"#/components/schemas/([A-Za-z]+)", text):
        assert name in document["components"]["schemas"]


def test_the_documented_example_is_answered_as_documented(client: Client) -> None:
    document = client.http.get("/openapi.json").json()
    content = document["paths"][PATH]["post"]
    example = content["requestBody"]["content"]["application/json"]["example"]
    told = problem(client.post(PATH, example), 422, "unknown-account")
    assert told["where"] == "transactions[0].account_id"


# What is written down


def test_every_call_is_in_the_chain_with_what_was_sent(client: Client) -> None:
    sent = transaction()
    good, bad, read = client.score(sent), client.score(sent), client.get("/api/v1/anomaly-score/nobody")
    client.http.get("/api/v1/forecast")
    client.http.get("/health")
    entries = [json.loads(entry) for (entry,) in client.rows("SELECT entry FROM service.calls ORDER BY sequence")]
    assert [(one["route"], one["status"], one["n_transactions"]) for one in entries] == [
        (PATH, 200, 1),
        (PATH, 409, 0),
        ("/api/v1/anomaly-score/{transaction_id}", 404, 0),
        ("/api/v1/forecast", 401, 0),
    ]
    for entry, response in zip(entries, (good, bad, read), strict=False):
        assert entry["response_sha256"] == hashlib.sha256(response.content).hexdigest()
        assert entry["request_id"] == response.headers["x-request-id"]
    assert entries[0]["model_version"] == 1
    assert entries[3]["key_id"] is None


def test_no_personal_data_in_log_lines_or_calls(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("reperform.service")
    logger.propagate = True
    with caplog.at_level(logging.INFO, logger="reperform.service"):
        client.score(transaction(transaction_id="SECRETID", amount=4711.25))
        client.score(transaction(account_id="SECRETACCOUNT"))
        client.get("/api/v1/anomaly-score/SECRETID")
        client.champions.champion(None).breaks = True
        problem(client.score(transaction()), 500, "internal")
    lines = [record.getMessage() for record in caplog.records if record.name == "reperform.service"]
    told = [json.loads(line) for line in lines]
    requests = [one for one in told if one["event"] == "request"]
    assert [one["status"] for one in requests] == [200, 422, 200, 500]
    assert all(re.fullmatch("[0-9a-f]{32}", one["request_id"]) for one in requests)
    calls = client.rows("SELECT entry FROM service.calls")
    for text in (*lines, *(entry for (entry,) in calls)):
        assert not re.search("SECRET|4711|acc-1|rpf_", text)
    assert "RuntimeError at" in requests[3]["error"]


# State


def test_accounts_are_registered_once(client: Client) -> None:
    one = {"account_id": "new-1", "entity_id": "northbank", "timezone": "Europe/Berlin"}
    first = client.post("/api/v1/accounts", {"accounts": [one]}).json()
    assert (first["registered"], first["known_already"], first["sequence"]) == (1, 0, 1)
    second = client.post("/api/v1/accounts", {"accounts": [one, one | {"account_id": "acc-2"}]}).json()
    assert (second["registered"], second["known_already"], second["sequence"]) == (0, 2, None)
    assert client.score(transaction(account_id="new-1")).status_code == 200
    told = client.post("/api/v1/accounts", {"accounts": [one | {"entity_id": "lakeside"}]})
    problem(told, 409, "account-of-another")
    told = client.post("/api/v1/accounts", {"accounts": [{**one, "account_id": "x", "timezone": "Mars/Olympus"}]})
    problem(told, 422, "unknown-time-zone")


def test_feedback_is_taken_in(client: Client) -> None:
    sent = transaction()
    client.score(sent)
    label = {"transaction_id": sent["transaction_id"], "is_anomaly": True, "typology": "mule"}
    got = client.post("/api/v1/feedback", {"labels": [label]})
    assert got.status_code == 200, got.text
    assert (got.json()["new"], got.json()["sequence"]) == (1, 2)
    assert client.score(transaction()).status_code == 200
    assert "labels" in client.champions.champion(None).taken_in
    assert client.post("/api/v1/feedback", {"labels": [label | {"transaction_id": "nobody"}]}).status_code == 422


def test_alerts_are_written_with_their_answers(client: Client) -> None:
    client.score(transaction(amount=5000.0), transaction())
    assert client.rows("SELECT count(*) FROM service.alerts") == [(1,)]


def test_a_process_takes_in_what_another_wrote(database: Database) -> None:
    with running(database) as one, running(database) as other:
        sent = transaction()
        assert one.score(sent).status_code == 200
        problem(other.score(sent), 409, "answered-already")
        assert other.champions.champion(None).sequence == 1
        assert other.score(transaction()).json()["sequence"] == 2
        assert one.score(transaction()).json()["sequence"] == 3


def test_requests_at_the_same_time_have_one_order(client: Client) -> None:
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(client.score(transaction()))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.json()["sequence"] for one in got) == list(range(1, 13))


def test_too_many_that_wait_are_sent_away(database: Database) -> None:
    with running(database, most_waiting=1) as client, client.service.desk.transaction():
        got = client.score(transaction())
        problem(got, 503, "busy")
        assert int(got.headers["retry-after"]) >= 1


def test_ready_tells_the_state(client: Client) -> None:
    client.score(transaction())
    got = client.http.get("/ready")
    assert got.status_code == 200, got.text
    told = got.json()
    assert (told["ready"], told["model_version"], told["data_version"], told["sequence"]) == (True, 1, "data-1", 1)


def test_not_ready_is_503_while_health_says_alive(database: Database) -> None:
    with running(database) as client:
        client.champions.is_ready = False
        problem(client.http.get("/ready"), 503, "not-ready")
        assert client.http.get("/health").json() == {"status": "alive"}


def test_while_a_model_is_loaded_the_database_is_reachable(database: Database) -> None:
    def none_yet(*_: Any) -> Any:
        raise ReperformError("There is no model to answer with.")

    service = Service(
        ServeParams(), make_champions=none_yet, make_database=lambda: Database(database.address, connections=2)
    )
    service.start()
    try:
        deadline = time.monotonic() + 20
        while service.status()["database"] != "reachable" and time.monotonic() < deadline:
            time.sleep(0.05)
        told = service.status()
        assert (told["ready"], told["database"]) == (False, "reachable")
    finally:
        service.stop()


def test_a_worker_whose_page_nobody_asks_for_shows_its_figures_all_the_same(client: Client) -> None:
    client.score(transaction())
    shown = client.service.telemetry.registry.get_sample_value
    deadline = time.monotonic() + 20
    while shown("reperform_scorer_sequence") != 1.0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (shown("reperform_scorer_sequence"), shown("reperform_ready")) == (1.0, 1.0)


def test_figures_for_prometheus(client: Client) -> None:
    client.score(transaction(amount=5000.0), transaction())
    client.score(transaction(account_id="acc-9"))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = client.http.get("/metrics").text
        if 'reperform_deliveries{state="open"}' in text and "reperform_journal_sequence 1.0" in text:
            break
        time.sleep(0.2)
    for line in (
        'reperform_requests_total{method="POST",route="/api/v1/detect-anomalies",status="200"} 1.0',
        'reperform_requests_total{method="POST",route="/api/v1/detect-anomalies",status="422"} 1.0',
        "reperform_transactions_total 2.0", "reperform_alerts_total 1.0", "reperform_database_up 1.0",
        'reperform_model_version{role="champion"} 1.0', "reperform_ready 1.0", "reperform_scorer_sequence 1.0",
        'reperform_jobs{state="waiting"} 0.0', "reperform_journal_sequence 1.0",
    ):  # fmt: skip
        assert line in text
    for part in ("lock", "history", "features", "models", "write"):
        assert f'reperform_part_seconds_count{{part="{part}"}} 1.0' in text
