"""Alerts go out: written with the answer they belong to, posted by threads of their own. The only user of httpx.

A message is written in the transaction of its answer, so there is never one without the other. Afterwards any process
may send it: it claims the message, posts it, and says how that went. A process that is killed in between leaves a claim
that lapses, and the message is sent again: at least once, with the same id, by which receivers know it.
"""

import fnmatch
import hashlib
import hmac
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import polars as pl
import psycopg

from reperform import __version__
from reperform.errors import ReperformError
from reperform.params import ReceiverParams, WebhooksParams
from reperform.service.database import Connection, Database, Unavailable

logger = logging.getLogger(__name__)

SIGNATURE, TIMESTAMP, DELIVERY = "X-Reperform-Signature", "X-Reperform-Timestamp", "X-Reperform-Delivery"
SHORTEST_SECRET = 32  # characters
CLAIM_S = 30.0  # beyond the timeout, before others take a message over
LONGEST_ERROR = 300
LONGEST_LISTING = 1000
ALWAYS = ("transaction_id", "model_version", "score", "probability")
_ALERTS = (
    "transaction_id", "model_version", "account_id", "counterparty_id", "entity_id", "booked_at", "known_at",
    "amount_base", "score", "probability", "reasons", "data_version",
)  # fmt: skip

ADD_ALERT = f"""
INSERT INTO service.alerts ({", ".join(_ALERTS)}) VALUES ({", ".join(["%s"] * len(_ALERTS))})
ON CONFLICT (transaction_id, model_version) DO NOTHING RETURNING alert_id, raised_at
"""  # noqa: S608  # names of ours
ADD_DELIVERY = """
INSERT INTO service.deliveries (delivery_id, alert_id, receiver, body) VALUES (%s, %s, %s, %s)
ON CONFLICT (alert_id, receiver) DO NOTHING
"""
CLAIM = """
UPDATE service.deliveries SET attempts = attempts + 1, worker = %(worker)s,
    next_at = clock_timestamp() + make_interval(secs => %(claim_s)s)
WHERE delivery_id = (
    SELECT delivery_id FROM service.deliveries
    WHERE receiver = %(receiver)s AND status = 'open' AND next_at <= clock_timestamp()
    ORDER BY next_at, alert_id LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING delivery_id, body, attempts
"""
DELIVERED = """
UPDATE service.deliveries SET status = 'delivered', ended_at = clock_timestamp(), worker = NULL, last_error = NULL
WHERE delivery_id = %s AND status <> 'delivered'
"""
# A late word of a worker whose claim has lapsed must not undo what another one has done since.
FAILED = """
UPDATE service.deliveries SET status = %(status)s, worker = NULL, last_error = %(error)s,
    next_at = clock_timestamp() + make_interval(secs => %(wait_s)s),
    ended_at = CASE WHEN %(status)s = 'dead' THEN clock_timestamp() END
WHERE delivery_id = %(id)s AND status = 'open' AND attempts = %(attempts)s
"""
RETRY = """
UPDATE service.deliveries SET status = 'open', attempts = 0, next_at = clock_timestamp(), ended_at = NULL
WHERE status = 'dead' AND (%(all)s OR delivery_id = ANY (%(ids)s) OR receiver = %(receiver)s)
"""


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended.

    Args:
        error: why it failed; empty when the receiver has the message.
        wait_s: what the receiver asked for before the next attempt.
    """

    error: str = ""
    wait_s: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A message that this worker has under way.

    Args:
        delivery_id: the same in every attempt.
        body: as it is sent.
        attempts: this one included.
    """

    delivery_id: str
    body: bytes
    attempts: int


def enqueue(connection: Connection, alerts: pl.DataFrame, receivers: Mapping[str, ReceiverParams]) -> int:
    """Write alerts and the messages about them, in the transaction of their answers.

    Args:
        connection: with an open transaction.
        alerts: answers that are alerts, with the columns of `answers.SCORED`; reasons as JSON text.
        receivers: by name, as conf/serve/ says.

    Returns:
        How many alerts are new; one that was raised before, by the same model, is told once.
    """
    rows = list(alerts.select(_ALERTS).iter_rows(named=True))
    if not rows:
        return 0
    with connection.cursor() as cursor:
        cursor.executemany(ADD_ALERT, [tuple(row.values()) for row in rows], returning=True)
        new = [(row, told) for row, one in zip(rows, cursor.results(), strict=True) if (told := one.fetchone())]
        messages = [one for row, told in new for one in _messages(row, told[0], told[1], receivers)]
        if messages:
            cursor.executemany(ADD_DELIVERY, messages)
    return len(new)


def _messages(
    alert: Mapping[str, Any], sequence: int, raised_at: datetime, receivers: Mapping[str, ReceiverParams]
) -> Iterator[tuple[str, int, str, str]]:
    """The messages about an alert: id, alert, receiver, body."""
    for name, receiver in receivers.items():
        if wants(receiver, alert):
            delivery_id = name_of(alert["transaction_id"], alert["model_version"], name)
            body = body_of(alert, receiver, delivery_id=delivery_id, sequence=sequence, raised_at=raised_at)
            yield delivery_id, sequence, name, body


def name_of(transaction_id: str, model_version: int, receiver: str) -> str:
    """The name of the one message to a receiver about an alert."""
    content = json.dumps([transaction_id, model_version, receiver])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def wants(receiver: ReceiverParams, alert: Mapping[str, Any]) -> bool:
    """Whether an alert goes to a receiver."""
    if receiver.entities is not None and alert["entity_id"] not in receiver.entities:
        return False
    if (alert["probability"] or 0.0) < receiver.least_probability:
        return False
    if receiver.kpis is None:
        return True
    found = [str(reason.get("kpi", "")) for reason in _reasons(alert)]
    return any(fnmatch.fnmatchcase(kpi, pattern) for kpi in found for pattern in receiver.kpis)


def body_of(
    alert: Mapping[str, Any], receiver: ReceiverParams, *, delivery_id: str, sequence: int, raised_at: datetime
) -> str:
    """What a receiver is told: ids, and of the rest what its description allows."""
    told = {name: _plain(alert[name]) for name in (*ALWAYS, *receiver.fields)}
    if receiver.reasons == "names":
        told["reasons"] = [reason.get("kpi") for reason in _reasons(alert)]
    elif receiver.reasons == "values":
        told["reasons"] = _reasons(alert)
    message = {"id": delivery_id, "sequence": sequence, "type": "alert", "raised_at": _plain(raised_at), "alert": told}
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _reasons(alert: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = json.loads(alert["reasons"]) if alert["reasons"] else []
    return [one for one in given if isinstance(one, dict)]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value


def signature(secrets: Sequence[str], timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over `timestamp.body`, once for each secret: while one is replaced by another there are two."""
    signed = timestamp.encode() + b"." + body
    return ",".join(f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}" for secret in secrets)


def secrets_of(name: str, receiver: ReceiverParams) -> tuple[str, ...]:
    """The secrets of a receiver: one, or two while they change.

    Raises:
        ReperformError: when its environment variable is missing, or holds something too easy to guess.
    """
    given = os.environ.get(receiver.secret_variable, "").split()
    if given and all(len(one) >= SHORTEST_SECRET for one in given):
        return tuple(given)
    raise ReperformError(
        f"Receiver {name} has no secret that its messages can be signed with.",
        expected=f"one secret of at least {SHORTEST_SECRET} characters, or two with a blank between while they change",
        got=f"{'a shorter one' if given else 'nothing'} in {receiver.secret_variable}",
        where=f"serve.webhooks.receivers.{name}.secret_variable",
        fix=f'set it: export {receiver.secret_variable}="$(openssl rand -hex 32)"; tell the receiver the same',
    )


def check(receivers: Mapping[str, ReceiverParams]) -> dict[str, tuple[str, ...]]:
    """The secrets of all receivers, once it is sure that every one can be served.

    Raises:
        ReperformError: for an address without TLS that was not allowed, and for a missing secret.
    """
    for name, receiver in receivers.items():
        address = urlsplit(receiver.url)
        if address.scheme != "https" and not receiver.allow_plain:
            raise ReperformError(
                f"Alerts to receiver {name} would go out unencrypted.",
                expected="an address that begins with https://",
                got=f"{address.scheme}://{address.hostname}",
                where=f"serve.webhooks.receivers.{name}.url",
                fix="use HTTPS; or say `allow_plain: true`, if the receiver is on this machine",
            )
    return {name: secrets_of(name, receiver) for name, receiver in receivers.items()}


def post(client: httpx.Client, url: str, secrets: Sequence[str], claim: Claim) -> Outcome:
    """Send a message once. Only a status 2xx says that it has arrived; no redirect is followed."""
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"reperform/{__version__}",
        DELIVERY: claim.delivery_id,
        TIMESTAMP: timestamp,
        SIGNATURE: signature(secrets, timestamp, claim.body),
    }
    try:
        with client.stream("POST", url, content=claim.body, headers=headers) as answer:  # its body is of no interest
            if answer.is_success:
                return Outcome()
            what = "redirects are not followed: status" if answer.has_redirect_location else "status"
            return Outcome(f"{what} {answer.status_code}", _asked_wait_s(answer.headers.get("Retry-After", "")))
    except httpx.TimeoutException:
        return Outcome("no answer in time")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Outcome(f"{type(error).__name__}: {error}"[:LONGEST_ERROR])


def _asked_wait_s(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0


def wait_s(attempts: int, given: WebhooksParams, asked_s: float = 0.0) -> float:
    """Seconds before the next attempt: doubling, unless the receiver asked for more; never above the limit.

    Args:
        attempts: so far.
        given: first and longest wait.
        asked_s: what the receiver asked for.
    """
    doubled = given.first_wait_s * 2.0 ** min(attempts - 1, 60)
    return min(max(doubled, asked_s), given.longest_wait_s)


class Breaker:
    """Leaves a receiver alone for a while after several failures in a row; then one message is tried."""

    def __init__(self, given: WebhooksParams) -> None:
        self.given, self.failures, self.until = given, 0, 0.0
        self._mutex = threading.Lock()

    def lets_pass(self) -> bool:
        """Whether a message may be tried now."""
        with self._mutex:
            if self.failures < self.given.break_after:
                return True
            now = time.monotonic()
            if now < self.until:
                return False
            self.until = now + self.given.break_s  # for the others, while this one is tried
            return True

    def told(self, *, success: bool) -> None:
        """Take notice of how an attempt ended."""
        with self._mutex:
            self.failures = 0 if success else self.failures + 1
            if self.failures >= self.given.break_after:
                self.until = time.monotonic() + self.given.break_s


class Dispatcher:
    """Threads that send messages, each for one receiver: a slow one keeps only its own messages waiting.

    Args:
        database: where messages stand; several processes may send from it.
        given: receivers, and how messages go out.

    Raises:
        ReperformError: when a receiver cannot be served; see `check`.
    """

    def __init__(self, database: Database, given: WebhooksParams) -> None:
        self.database, self.given = database, given
        self.secrets = check(given.receivers)
        self.worker = f"{socket.gethostname()}:{os.getpid()}"
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to send."""
        for name, receiver in self.given.receivers.items():
            breaker = Breaker(self.given)
            for number in range(receiver.at_once):
                thread = threading.Thread(
                    target=self._serve, args=(name, breaker), name=f"deliver {name} {number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def stop(self, patience_s: float | None = None) -> None:
        """End: messages that are under way are finished, or sent again later by whoever comes next."""
        self._ending.set()
        deadline = time.monotonic() + (self.given.timeout_s + 1 if patience_s is None else patience_s)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, name: str, breaker: Breaker) -> None:
        with httpx.Client(timeout=self.given.timeout_s, follow_redirects=False) as client:
            while not self._ending.is_set():
                try:
                    busy = breaker.lets_pass() and self.send_one(client, name, breaker)
                except (Unavailable, psycopg.Error):  # the database comes back by itself, and so does the claim
                    busy = False
                except Exception as error:  # noqa: BLE001  # a thread that is gone would be missed by nobody
                    logger.warning("webhooks: %s for receiver %s; it goes on", type(error).__name__, name)
                    busy = False
                if not busy:
                    self._ending.wait(self.given.poll_s)

    def send_one(self, client: httpx.Client, name: str, breaker: Breaker) -> bool:
        """Send the next message that is due to a receiver; False when none is."""
        claim = self._claimed(name)
        if claim is None:
            return False
        outcome = post(client, self.given.receivers[name].url, self.secrets[name], claim)
        breaker.told(success=not outcome.error)
        with self.database.transaction(durable=False) as connection:
            if not outcome.error:
                connection.execute(DELIVERED, [claim.delivery_id])
            else:
                self._failed(connection, claim, outcome)
        return True

    def _claimed(self, name: str) -> Claim | None:
        values = {"worker": self.worker, "receiver": name, "claim_s": self.given.timeout_s + CLAIM_S}
        with self.database.transaction(durable=False) as connection:
            row = connection.execute(CLAIM, values).fetchone()
        return Claim(row[0], row[1].encode(), row[2]) if row else None

    def _failed(self, connection: Connection, claim: Claim, outcome: Outcome) -> None:
        values = {
            "status": "dead" if claim.attempts >= self.given.attempts else "open",
            "error": outcome.error,
            "wait_s": wait_s(claim.attempts, self.given, outcome.wait_s),
            "id": claim.delivery_id,
            "attempts": claim.attempts,
        }
        connection.execute(FAILED, values)


def start(database: Database, given: WebhooksParams) -> Dispatcher:
    """Begin to send messages.

    Raises:
        ReperformError: when a receiver cannot be served; see `check`.
    """
    dispatcher = Dispatcher(database, given)
    dispatcher.start()
    return dispatcher


def undelivered(connection: Connection, *, only_dead: bool = True) -> pl.DataFrame:
    """Messages that have not arrived, oldest first: `delivery_id`, `receiver`, `status`, `attempts`, `last_error`."""
    rows = connection.execute(
        "SELECT delivery_id, receiver, status, attempts, coalesce(last_error, '') FROM service.v_open_deliveries"
        " WHERE status = 'dead' OR NOT %s ORDER BY created_at, delivery_id LIMIT %s",
        [only_dead, LONGEST_LISTING],
    ).fetchall()
    kinds = {"delivery_id": pl.String, "receiver": pl.String, "status": pl.String}
    return pl.DataFrame(rows, schema={**kinds, "attempts": pl.Int64, "last_error": pl.String}, orient="row")


def retry(connection: Connection, ids: Sequence[str] = (), receiver: str | None = None) -> int:
    """Open dead letters again; how many.

    Args:
        connection: with an open transaction.
        ids: these; or
        receiver: all of this one; or, without both, all there are.

    Raises:
        ReperformError: for an id that is no dead letter.
    """
    found = connection.execute("SELECT delivery_id FROM service.deliveries WHERE status = 'dead'").fetchall()
    dead = {row[0] for row in found}
    for one in ids:
        if one not in dead:
            raise ReperformError(
                f"There is no dead letter {one!r}.",
                expected="an id of `python -m reperform deliveries list`",
                got=one,
                where="ID",
                fix="list them with `python -m reperform deliveries list`",
            )
    everything = not ids and receiver is None
    return connection.execute(RETRY, {"all": everything, "ids": list(ids), "receiver": receiver}).rowcount


def main(database: Database, action: str, ids: Sequence[str], receiver: str | None, *, every: bool) -> int:
    """What `python -m reperform deliveries` does."""
    with database.transaction() as connection:
        if action == "retry":
            n = retry(connection, ids, receiver)
        else:
            found = undelivered(connection, only_dead=not every)
    if action == "retry":
        print(f"opened again: {n}; a running service sends them")
        return 0
    for delivery_id, to, status, attempts, error in found.iter_rows():
        print(f"{delivery_id}  {to}  {status}  attempts: {attempts}  {error}")
    more = ", or more" if found.height == LONGEST_LISTING else ""
    print(f"{found.height} {'not delivered' if every else 'dead'}{more}")
    return 0
