"""What one process of the service holds: database, models, desk, and the threads beside them. Nothing of HTTP is here.

Everything is loaded in a thread, so that a process is alive at once and ready later; what cannot be loaded is tried
again, because a database or a registry may come later than the service.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg

from reperform import params
from reperform.errors import ReperformError
from reperform.params import IngestParams, ServeParams
from reperform.service import background, calls, exchange, jobs, keys, limits
from reperform.service import database as storage
from reperform.service.database import Database
from reperform.service.detect import Desk
from reperform.service.documents import Documents
from reperform.service.door import place_of
from reperform.service.keys import Key, Scope
from reperform.service.refusals import Refusal
from reperform.service.telemetry import Telemetry

LOG = logging.getLogger("reperform.service")
PROBE_S = 2.0
STALE_S = 8.0  # after which what the database said counts no longer
AGAIN_S = 5.0
PREPARE_S = 20.0  # between looks at whether a new day has begun
CONNECTIONS = 12
STATEMENT_S = 2

FACTS = """
SELECT coalesce((SELECT max(sequence) FROM service.journal), 0),
    (SELECT extract(epoch FROM clock - clock_timestamp()) FROM service.journal ORDER BY sequence DESC LIMIT 1),
    (SELECT extract(epoch FROM clock_timestamp() - min(created_at)) FROM service.deliveries WHERE status = 'open'),
    (SELECT extract(epoch FROM min(expires_at) - clock_timestamp()) FROM service.api_keys
        WHERE revoked_at IS NULL AND expires_at > clock_timestamp()),
    pg_database_size(current_database()),
    coalesce((SELECT max(sequence) + 1 FROM service.calls), 0)
"""
DELIVERIES = "SELECT status, count(*) FROM service.deliveries WHERE status <> 'delivered' GROUP BY status"


class Service:
    """One process.

    Args:
        serve: settings.
        make_champions: from database and settings to who answers.
        make_rates: exchange rates; None: the project's.
        make_database: None: the project's.
        now: the clock.
    """

    def __init__(
        self,
        serve: ServeParams,
        *,
        make_champions: Callable[[Database, ServeParams], Any],
        make_rates: Callable[[], exchange.Rates] | None = None,
        make_database: Callable[[], Database] | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self.serve, self.telemetry = serve, Telemetry()
        self.behind_tls, self.request_log = serve.behind_tls, serve.request_log
        self._make_champions, self._now = make_champions, now or (lambda: datetime.now(UTC))
        self._make_database = make_database or (lambda: Database(connections=CONNECTIONS))
        self._make_rates = make_rates or (lambda: exchange.load(params.load(IngestParams)))
        self._database: Database | None = None
        self._desk: Desk | None = None
        self._champions: Any = None
        self._background: background.Background | None = None
        self._documents: dict[int, Documents] = {}
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self.state = "starting"
        self._probed: tuple[float, dict[str, Any]] = (float("-inf"), {})

    # Life

    def start(self) -> None:
        """Begin to load, and come back at once."""
        for work in (self._load_until_done, self._probe_until_end, self._prepare_until_end):
            thread = threading.Thread(target=work, name=work.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End every thread, and leave the database."""
        self._ending.set()
        self.state = "ending"
        if self._background is not None:
            self._background.stop(self.serve.graceful_stop_s)
        for thread in self._threads:
            thread.join(self.serve.graceful_stop_s)
        if self._database is not None:
            self._database.close()

    def wait_until_ready(self, seconds: float) -> bool:
        """Wait for the end of loading."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._ending.is_set():
            if self.is_ready:
                return True
            time.sleep(0.02)
        return self.is_ready

    def _load_until_done(self) -> None:
        while not self._ending.is_set():
            try:
                self._load()
            except (ReperformError, psycopg.Error, OSError) as error:
                self.state = getattr(error, "problem", type(error).__name__)
                tell("not-loaded", problem=self.state, why=str(error)[:1000], level=logging.WARNING)
                self._ending.wait(AGAIN_S)
            else:
                return

    def _load(self) -> None:
        self.state = "waiting for the database"
        if self._database is None:
            self._database = self._make_database()
        storage.prepare(self._database)
        self.state = "loading the model"
        champions = self._make_champions(self._database, self.serve)
        try:
            champions.start()
            desk = Desk(self._database, _Counted(champions, self.telemetry), self.serve, self._make_rates(), self._now)
            desk.prepare()
            self._background = background.start(self._database, desk, champions, self.serve)
        except BaseException:
            champions.stop()
            raise
        self._probe()
        self._champions, self._desk, self.state = champions, desk, "loaded"
        tell("loaded", **{name: self.status()[name] for name in ("model_version", "data_version", "sequence")})

    # What requests need

    @property
    def database(self) -> Database:
        """The database; Refusal 503 while there is none."""
        if self._database is None:
            raise self._starting()
        return self._database

    @property
    def desk(self) -> Desk:
        """The desk; Refusal 503 while it is being loaded."""
        if self._desk is None:
            raise self._starting()
        return self._desk

    @property
    def is_ready(self) -> bool:
        """Whether requests for scores are answered."""
        return self._desk is not None and bool(self._champions.is_ready) and not self._ending.is_set()

    def _starting(self) -> Refusal:
        return Refusal(
            503, "starting", "The service is starting.", got=self.state, expected="/ready says ready",
            fix="send the same request again in a moment", retry_after_s=self.serve.retry_after_s,
        )  # fmt: skip

    def identified(self, authorization: str | None) -> Key:
        """Who asks.

        Raises:
            Refusal: 401 without a key.
            KeyRefused: without a good one.
        """
        if authorization is None:
            raise _unauthorized("no key", "send Authorization: Bearer rpf_…")
        kind, _, secret = authorization.partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise _unauthorized("another scheme", "send Authorization: Bearer rpf_…")
        return keys.checked(self.database, secret.strip())

    def admitted(self, authorization: str | None, scope: Scope) -> Key:
        """Who asks, when they may do so now.

        Raises:
            Refusal: 401 without a good key, 403 when it does not open this, 429 when it asks too often.
        """
        key = self.identified(authorization)
        with self.database.transaction(durable=False) as connection:
            may, wait_s = limits.within(connection, key)
        if not may:
            raise Refusal(
                429, "too-many-requests", "This key asks too often.", where="header Authorization",
                expected=f"at most {key.requests_per_minute} requests a minute", got="more",
                fix="wait as long as Retry-After says; several transactions fit into one request", retry_after_s=wait_s,
            )  # fmt: skip
        if not key.opens(scope):
            raise Refusal(
                403, "wrong-scope", "This key does not open this.", where="header Authorization",
                expected=f"a key with scope {scope}", got=f"scopes {', '.join(sorted(key.scopes))}",
                fix="ask for another key: python -m reperform keys create NAME --scopes …",
            )  # fmt: skip
        return key

    def documents(self) -> Documents:
        """What the champion's run says of it."""
        scorer = self._scorer()
        if scorer is None:
            raise self._starting()
        found = self._documents.get(scorer.version)
        if found is None:
            found = Documents(scorer.bundle.folder, scorer.version, scorer.data_version)
            self._documents[scorer.version] = found
        return found

    def _scorer(self) -> Any:
        return self._champions.answering if self._champions is not None else None

    # What the door tells

    def logged(self, facts: dict[str, Any]) -> None:
        """Write a request that is no request for scores into the log of calls."""
        with self.database.transaction(durable=facts["status"] < 400) as connection:  # noqa: PLR2004  # refused
            calls.append(connection, facts)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.telemetry.answered(route, method, status, seconds)

    # What operators ask

    def status(self) -> dict[str, Any]:
        """As /ready says."""
        scorer, facts = self._scorer(), self.facts()
        shadow = self._champions.shadowing if self._champions is not None else None
        up = bool(facts.get("reperform_database_up"))
        return {
            "ready": self.is_ready and up,
            "state": self.state if self._desk is None or self._ending.is_set() else "loaded",
            "database": "reachable" if up else "unreachable",
            "model_version": scorer.version if scorer else None,
            "shadow_version": shadow.version if shadow else None,
            "data_version": scorer.data_version if scorer else None,
            "sequence": scorer.sequence if scorer else None,
            "journal_sequence": facts.get("reperform_journal_sequence"),
        }

    def metrics(self) -> bytes:
        """As /metrics says."""
        self._show()
        return self.telemetry.page(self.facts())

    def _show(self) -> None:
        told = self.status()
        self.telemetry.state(
            ready=told["ready"], champion=told["model_version"], shadow=told["shadow_version"],
            sequence=told["sequence"],
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What the database said a moment ago."""
        at, found = self._probed
        return found if time.monotonic() - at < STALE_S else {"reperform_database_up": 0}

    def _probe_until_end(self) -> None:
        while not self._ending.is_set():
            if self._database is not None:
                self._probe()
            self._show()  # another worker of this service may be asked for the figures of all
            self._ending.wait(PROBE_S)

    def _prepare_until_end(self) -> None:
        while not self._ending.is_set():
            if self._desk is not None:
                try:
                    self._desk.prepare()
                except Exception as error:  # noqa: BLE001  # the first row of the day does it, and tells what is wrong
                    tell("not-prepared", kind=type(error).__name__, at=place_of(error), level=logging.WARNING)
            self._ending.wait(PREPARE_S if self._desk is not None else PROBE_S)

    def _probe(self) -> None:
        try:
            with self.database.transaction(durable=False) as connection:
                connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_S}s'")
                found = facts_of(connection)
        except psycopg.errors.UndefinedTable:  # it is there, and the tables are being made
            found = {"reperform_database_up": 1}
        except (ReperformError, psycopg.Error):
            found = {"reperform_database_up": 0}
        self._probed = (time.monotonic(), found)


class _Counted:
    """Champions whose repairs are counted."""

    def __init__(self, champions: Any, telemetry: Telemetry) -> None:
        self._champions, self._telemetry = champions, telemetry
        self.champion, self.shadow = champions.champion, champions.shadow

    @property
    def answering(self) -> Any:
        return self._champions.answering

    @property
    def shadowing(self) -> Any:
        return self._champions.shadowing

    def withdraw(self, scorer: Any, error: Exception) -> None:
        # The text of an error may tell of people; what kind it is and where is enough to find it.
        self._champions.withdraw(scorer, RuntimeError(place_of(error)))

    def broken(self) -> None:
        self._telemetry.rebuilds.inc()
        tell("scorer-rebuilt", level=logging.WARNING)
        self._champions.broken()


def _unauthorized(got: str, fix: str) -> Refusal:
    return Refusal(
        401, "no-key", "An API key is needed.", expected="header Authorization: Bearer rpf_<id>_<secret>", got=got,
        where="header Authorization", fix=fix,
    )  # fmt: skip


def tell(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Write a line of JSON into the log."""
    told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "process": os.getpid()}
    LOG.log(level, json.dumps(told | facts, default=str))


def facts_of(connection: Any) -> dict[str, Any]:
    """What the database knows of the service, as `telemetry.FACTS` names it."""
    row = connection.execute(FACTS).fetchone()
    open_or_dead = {"open": 0, "dead": 0} | dict(connection.execute(DELIVERIES).fetchall())
    return {
        "reperform_database_up": 1,
        "reperform_journal_sequence": row[0],
        "reperform_clock_ahead_seconds": row[1],
        "reperform_delivery_oldest_seconds": row[2] or 0,
        "reperform_key_expires_seconds": row[3],
        "reperform_database_bytes": row[4],
        "reperform_calls": row[5],
        "reperform_deliveries": open_or_dead,
        "reperform_jobs": jobs.counts(connection),
    }
