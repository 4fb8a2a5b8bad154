"""Alerts go out signed, once, and in spite of receivers that hang, fail, reset and redirect."""

import hashlib
import hmac
import json
import re
import runpy
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from reperform import __main__
from reperform.errors import ReperformError
from reperform.export.server import ADDRESS_VARIABLE
from reperform.params import ReceiverParams, WebhooksParams
from reperform.service import webhooks
from reperform.service.database import Database
from tests import service_rows
from tests.conftest import ROOT
from tests.service_desk import desk_of
from tests.service_rows import NOON, undone

SECRET = "s" * 40
QUICK = {"first_wait_s": 0.05, "longest_wait_s": 0.2, "timeout_s": 0.5, "poll_s": 0.02, "break_s": 0.3}


class Receiver:
    """A receiver on a free port: it keeps what it gets, and behaves as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.behave: Callable[[BaseHTTPRequestHandler], None] = answering(200)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                receiver.behave(self)

            def do_GET(self) -> None:  # where redirects lead
                receiver.got.append(({"method": "GET"}, b""))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


def answering(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return behave


def hanging(handler: BaseHTTPRequestHandler) -> None:
    del handler
    time.sleep(30)


def resetting(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()


@pytest.fixture
def other() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERTS_SECRET", SECRET)


def to(receiver: Receiver, **changed: Any) -> ReceiverParams:
    return ReceiverParams(**{"url": receiver.url, "secret_variable": "ALERTS_SECRET", "allow_plain": True} | changed)


def params(attempts: int = 3, **receivers: ReceiverParams) -> WebhooksParams:
    return WebhooksParams(**{**QUICK, "receivers": receivers, "attempts": attempts})  # type: ignore[arg-type]  # by name


def raised(database: Database, given: WebhooksParams, *ids: str, **changed: Any) -> int:
    alerts = service_rows.answers(*ids).with_columns(pl.lit(value).alias(name) for name, value in changed.items())
    with database.transaction() as connection:
        return webhooks.enqueue(connection, alerts, given.receivers)


def states(database: Database) -> dict[str, tuple[str, int, str | None]]:
    query = "SELECT transaction_id, d.status, attempts, last_error FROM service.deliveries d JOIN service.alerts"
    with database.transaction() as connection:
        rows = connection.execute(f"{query} USING (alert_id)".encode()).fetchall()
    return {row[0]: row[1:] for row in rows}


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


@contextmanager
def sending(database: Database, given: WebhooksParams) -> Iterator[webhooks.Dispatcher]:
    dispatcher = webhooks.start(database, given)
    try:
        yield dispatcher
    finally:
        dispatcher.stop(1)


def test_an_alert_arrives_once_with_a_signature_over_time_and_body(database: Database, receiver: Receiver) -> None:
    given = params(one=to(receiver))
    assert raised(database, given, "T1") == 1
    with sending(database, given):
        assert within(10, lambda: states(database)["T1"][0] == "delivered")
    ((headers, body),) = receiver.got
    signed = headers["x-reperform-timestamp"].encode() + b"." + body
    assert headers["x-reperform-signature"] == f"v1={hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()}"
    assert abs(int(headers["x-reperform-timestamp"]) - time.time()) < 60
    assert headers["x-reperform-delivery"] == json.loads(body)["id"]


def test_a_message_holds_ids_and_what_its_receiver_may_know(database: Database, receiver: Receiver) -> None:
    given = params(
        plain=to(receiver),
        bare=to(receiver, fields=[], reasons="none"),
        full=to(receiver, fields=["counterparty_id", "amount_base"], reasons="values"),
    )
    raised(database, given, "T1")
    with database.transaction() as connection:
        told = dict(connection.execute("SELECT receiver, body FROM service.deliveries").fetchall())
    plain, bare, full = (json.loads(told[name])["alert"] for name in ("plain", "bare", "full"))
    always = {"transaction_id", "model_version", "score", "probability"}
    assert set(bare) == always
    assert set(plain) == always | {"entity_id", "account_id", "booked_at", "known_at", "reasons"}
    assert plain["reasons"] == ["velocity"]
    assert plain["known_at"] == "2025-04-01T12:00:00.000000Z"
    assert set(full) == always | {"counterparty_id", "amount_base", "reasons"}
    assert full["reasons"][0]["words"].startswith('a "quote"')
    assert {json.loads(body)["type"] for body in told.values()} == {"alert"}


@pytest.mark.parametrize(
    ("filters", "goes"),
    [
        ({}, True),
        ({"entities": ["E1"]}, True),
        ({"entities": ["E2"]}, False),
        ({"entities": []}, False),
        ({"least_probability": 0.7}, True),
        ({"least_probability": 0.71}, False),
        ({"kpis": ["velo*"]}, True),
        ({"kpis": ["structuring_*"]}, False),
    ],
)
def test_receivers_get_what_they_ask_for(
    database: Database, receiver: Receiver, filters: dict[str, Any], goes: bool
) -> None:
    assert raised(database, params(one=to(receiver, **filters)), "T1", probability=0.7) == 1
    assert ("T1" in states(database)) == goes


def test_an_alert_is_told_once_whatever_is_asked_again(database: Database, receiver: Receiver) -> None:
    given = params(one=to(receiver))
    assert [raised(database, given, "T1"), raised(database, given, "T1", score=0.9)] == [1, 0]
    assert raised(database, given, "T1", model_version=4) == 1  # another model, another alert
    with database.transaction() as connection:
        sequences = [row[0] for row in connection.execute("SELECT alert_id FROM service.alerts ORDER BY 1")]
    with sending(database, given):
        assert within(10, lambda: len(receiver.got) == 2)
        time.sleep(0.2)
    assert sorted(one["sequence"] for one in receiver.bodies()) == sequences
    assert len({one["id"] for one in receiver.bodies()}) == 2


def test_there_is_no_message_without_its_answer(database: Database, receiver: Receiver) -> None:
    with undone(database) as connection:
        webhooks.enqueue(connection, service_rows.answers("T1"), params(one=to(receiver)).receivers)
    assert states(database) == {}


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (answering(500), "status 500"),
        (answering(404), "status 404"),
        (answering(302, Location="/elsewhere"), "redirects are not followed: status 302"),
        (resetting, "ReadError|RemoteProtocolError|WriteError"),
        (hanging, "no answer in time"),
    ],
    ids=["500", "404", "redirect", "reset", "hang"],
)
def test_a_receiver_that_fails_is_tried_again_and_then_given_up(
    database: Database, receiver: Receiver, behave: Callable[[BaseHTTPRequestHandler], None], error: str
) -> None:
    receiver.behave = behave
    given = params(attempts=2, one=to(receiver))
    raised(database, given, "T1")
    with sending(database, given):
        assert within(15, lambda: states(database)["T1"][0] == "dead")
    status, attempts, last_error = states(database)["T1"]
    assert (status, attempts) == ("dead", 2)
    assert re.search(error, str(last_error))
    assert len(receiver.got) == 2
    assert receiver.got[0][1] == receiver.got[1][1]  # byte for byte the same
    assert all(headers.get("method") != "GET" for headers, _ in receiver.got)


def test_a_receiver_that_is_not_there_is_given_up_too(database: Database, receiver: Receiver) -> None:
    receiver.server.shutdown()
    receiver.server.server_close()
    given = params(attempts=1, one=to(receiver))
    raised(database, given, "T1")
    with sending(database, given):
        assert within(10, lambda: states(database)["T1"][0] == "dead")
    assert "ConnectError" in str(states(database)["T1"][2])


def test_a_receiver_that_recovers_gets_its_messages(database: Database, receiver: Receiver) -> None:
    receiver.behave = answering(503)
    given = params(attempts=50, one=to(receiver))
    raised(database, given, "T1", "T2")
    with sending(database, given):
        assert within(10, lambda: len(receiver.got) >= 3)
        receiver.behave = answering(204)
        assert within(10, lambda: {one[0] for one in states(database).values()} == {"delivered"})


def test_a_receiver_that_hangs_slows_neither_answers_nor_others(
    database: Database, receiver: Receiver, other: Receiver
) -> None:
    receiver.behave = hanging
    given = replace(params(attempts=50, slow=to(receiver), quick=to(other)), timeout_s=20.0)
    desk = desk_of(database, given)
    row = {
        "booked_at": NOON, "account_id": "A1", "direction": "out", "amount": 2000.0, "currency": "EUR",
    }  # fmt: skip
    with sending(database, given):
        for k in range(20):
            with desk.transaction() as connection:
                known = desk.known(connection, desk.current(connection))
                from reperform.service import intake  # noqa: PLC0415  # only here

                records = intake.completed([{**row, "transaction_id": f"T{k}"}], known)
                desk.scored(connection, records, "r", "alerts")
        assert within(10, lambda: len(other.got) == 20)
        assert len(receiver.got) == 1  # the first of its messages is still waiting for its answer


def test_a_broken_receiver_is_left_alone_for_a_while(receiver: Receiver) -> None:
    breaker = webhooks.Breaker(replace(params(one=to(receiver)), break_after=2, break_s=0.2))
    breaker.told(success=False)
    assert breaker.lets_pass()
    breaker.told(success=False)
    assert not breaker.lets_pass()
    time.sleep(0.25)
    assert breaker.lets_pass()  # one is tried
    assert not breaker.lets_pass()
    breaker.told(success=True)
    assert breaker.lets_pass()


def test_waits_double_up_to_a_limit_and_heed_the_receiver(receiver: Receiver) -> None:
    given = replace(params(one=to(receiver)), first_wait_s=1.0, longest_wait_s=60.0)
    assert [webhooks.wait_s(n, given) for n in (1, 2, 3, 6, 7, 500)] == [1, 2, 4, 32, 60, 60]
    assert [webhooks.wait_s(1, given, asked) for asked in (0.5, 30, 1e9)] == [1, 30, 60]


def test_several_processes_share_the_messages_and_send_each_once(database: Database, receiver: Receiver) -> None:
    given = params(one=to(receiver, at_once=2))
    raised(database, given, *(f"T{k}" for k in range(40)))
    with sending(database, given), sending(database, given):
        assert within(20, lambda: {one[0] for one in states(database).values()} == {"delivered"})
    assert sorted(one["alert"]["transaction_id"] for one in receiver.bodies()) == sorted(f"T{k}" for k in range(40))


def test_a_message_whose_sender_was_killed_is_sent_again(database: Database, receiver: Receiver) -> None:
    given = params(one=to(receiver))
    raised(database, given, "T1")
    gone = webhooks.Dispatcher(database, given)
    assert gone._claimed("one") is not None  # and then it was killed
    with sending(database, given):
        time.sleep(0.3)
        assert receiver.got == []  # it may still be under way
        with database.transaction() as connection:
            connection.execute("UPDATE service.deliveries SET next_at = clock_timestamp()")
        assert within(10, lambda: states(database)["T1"][0] == "delivered")


def test_dead_letters_are_listed_and_sent_again(
    database: Database, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.behave = answering(500)
    given = params(attempts=1, one=to(receiver))
    raised(database, given, "T1", "T2")
    with sending(database, given):
        assert within(10, lambda: [one[0] for one in states(database).values()] == ["dead", "dead"])
        assert webhooks.main(database, "list", [], None, every=False) == 0
        listed = capsys.readouterr().out
        assert "2 dead" in listed
        assert "status 500" in listed
        receiver.behave = answering(200)
        assert webhooks.main(database, "retry", [listed.split()[0]], None, every=False) == 0
        assert within(10, lambda: sorted(one[0] for one in states(database).values()) == ["dead", "delivered"])
        assert webhooks.main(database, "retry", [], "one", every=False) == 0
        assert within(10, lambda: {one[0] for one in states(database).values()} == {"delivered"})
    webhooks.main(database, "list", [], None, every=True)
    assert "0 not delivered" in capsys.readouterr().out
    with pytest.raises(ReperformError, match="no dead letter"):
        webhooks.main(database, "retry", ["nothing"], None, every=False)


def test_the_command_lists_deliveries(
    database: Database, receiver: Receiver, project: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    del project
    raised(database, params(one=to(receiver)), "T1")
    where = database.address.parameters
    monkeypatch.setenv(ADDRESS_VARIABLE, " ".join(f"{name}={value}" for name, value in where.items()))
    assert __main__.main(["deliveries", "list", "--all"]) == 0
    assert "one  open  attempts: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("plain", "secret", "words"),
    [
        (False, SECRET, "unencrypted"),
        (True, "weak-one", "no secret"),
        (True, "", "no secret"),
        (True, f"{SECRET} weak-one", "no secret"),
    ],
)
def test_a_receiver_that_cannot_be_served_safely_stops_the_start(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, plain: bool, secret: str, words: str
) -> None:
    monkeypatch.setenv("ALERTS_SECRET", secret)
    with pytest.raises(ReperformError, match=words) as got:
        webhooks.check({"one": to(receiver, allow_plain=plain)})
    assert secret == "" or secret not in str(got.value)


def test_two_secrets_sign_while_one_is_replaced(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    monkeypatch.setenv("ALERTS_SECRET", f"{SECRET} {'n' * 32}")
    secrets = webhooks.check({"one": to(receiver)})["one"]
    old, new = webhooks.signature(secrets, "1700000000", b"{}").split(",")
    assert old == webhooks.signature([SECRET], "1700000000", b"{}")
    assert new == webhooks.signature(["n" * 32], "1700000000", b"{}")


def test_a_receivers_answer_is_not_read(receiver: Receiver) -> None:
    """Whatever it sends beyond its status cannot fill our memory or keep us waiting."""

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            pass

    receiver.behave = endless
    with httpx.Client(timeout=5) as client:
        got = webhooks.post(client, receiver.url, [SECRET], webhooks.Claim("d", b"{}", 1))
    assert got == webhooks.Outcome()


# The receiver of docs/how-to/receive-alerts.md, as it stands there.


@pytest.fixture
def documented(tmp_path: Path) -> dict[str, Any]:
    text = (ROOT / "docs" / "how-to" / "receive-alerts.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "receiver.py").write_text("\n".join(code))
    return runpy.run_path(str(tmp_path / "receiver.py"))


def test_the_documented_check_takes_our_signatures_and_no_other(documented: dict[str, Any]) -> None:
    is_genuine, now = documented["is_genuine"], time.time()
    stamp, body = str(int(now)), b'{"id":"1"}'
    signature = webhooks.signature([SECRET], stamp, body)
    assert is_genuine(SECRET, stamp, signature, body, now)
    assert is_genuine(SECRET, stamp, webhooks.signature(["n" * 32, SECRET], stamp, body), body, now)
    assert not is_genuine(SECRET, stamp, signature, body + b" ", now)
    assert not is_genuine(SECRET, str(int(now) + 1), signature, body, now)
    assert not is_genuine("n" * 32, stamp, signature, body, now)
    assert not is_genuine(SECRET, stamp, signature, body, now + 3600)  # replayed an hour later
    for broken in ("", "v1=", "nonsense"):
        assert not is_genuine(SECRET, stamp, broken, body, now)
        assert not is_genuine(SECRET, broken, signature, body, now)


def test_the_documented_receiver_takes_each_alert_once(database: Database, documented: dict[str, Any]) -> None:
    taken: list[dict[str, Any]] = []
    server = documented["serve"](SECRET, taken.append, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    receiver = ReceiverParams(url=url, secret_variable="ALERTS_SECRET", allow_plain=True)
    given = params(one=receiver)
    raised(database, given, "T1", "T2")
    with sending(database, given):
        assert within(10, lambda: {one[0] for one in states(database).values()} == {"delivered"})
        with database.transaction() as connection:
            connection.execute("UPDATE service.deliveries SET status = 'open', next_at = clock_timestamp()")
        assert within(10, lambda: {one[0] for one in states(database).values()} == {"delivered"})
    assert sorted(one["alert"]["transaction_id"] for one in taken) == ["T1", "T2"]
    assert httpx.post(url, content=b"{}").status_code == 401
    server.shutdown()
