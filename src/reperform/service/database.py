"""Where the service keeps its state: a pool of connections to PostgreSQL, and transactions that end or never were.

A transaction that `Database.transaction` has left without an error stands on the disk. Whatever stops one half way (a
killed server, a full disk, a lost network) ends in `Unavailable`, and nothing of it stays. The one doubtful moment is a
connection that is lost during COMMIT: then nobody knows, so the client asks again with the same idempotency key.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from reperform import paths
from reperform.errors import ReperformError
from reperform.export import server
from reperform.export.server import Address
from reperform.service import migrations

if TYPE_CHECKING:
    import subprocess

Connection = psycopg.Connection[tuple[Any, ...]]

RETRY_AFTER_S = 2.0
PATIENCE_S = 10.0  # how long a transaction waits for a free connection, or for a server that comes back
LOCK_WAIT_S = 30  # for the one order of events, behind other processes' requests
IDLE_S = 60  # a process that was stopped inside a transaction holds its locks no longer than this
# A network that swallows packets must not hold a request for the two hours that TCP allows.
NETWORK = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
SESSION = f"""
SET timezone = 'UTC';
SET client_min_messages = warning;
SET lock_timeout = '{LOCK_WAIT_S}s';
SET idle_in_transaction_session_timeout = '{IDLE_S}s';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
# The order of events relies on every statement seeing what was committed before it, whatever the server's default is.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
HASTY = f"{BEGIN}; SET LOCAL synchronous_commit = off"


class Unavailable(ReperformError):  # noqa: N818  # read as a word where it is raised
    """The database cannot be used now; nothing of the request was written, and the same request may be sent again.

    Args:
        problem: one sentence that says what is wrong.
        retry_after_s: when it is worth while to try again.
        more: `expected`, `got`, `where` and `fix` as in `ReperformError`.
    """

    def __init__(self, problem: str, *, retry_after_s: float = RETRY_AFTER_S, **more: str) -> None:
        super().__init__(problem, **more)
        self.retry_after_s = retry_after_s


class Database:
    """The service's database: one object per process, shared by its threads.

    Args:
        address: where it is. None: what `REPERFORM_DATABASE_URL` names, else the project's embedded server, which
            then runs at least as long as this object is open.
        connections: how many transactions may be open at once.

    Raises:
        ReperformError: when the database cannot be reached.
    """

    def __init__(self, address: Address | None = None, *, connections: int = 8) -> None:
        self._stack = ExitStack()
        self._free = threading.BoundedSemaphore(connections)
        self._idle: list[Connection] = []  # the last one used is the first to be used again
        self._mutex = threading.Lock()
        self._revival: Future[None] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self.address = address or self._stack.enter_context(server.reached(paths.project_root()))
        try:
            self._idle.append(self._connected())
        except BaseException:
            self.close()
            raise

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction: committed when the block ends, undone when it raises.

        Args:
            durable: wait until the disk has it. Without, the last moments before a crash of the server may be lost,
                as is right for counters.

        Yields:
            A connection with an open transaction, for this block alone.

        Raises:
            Unavailable: when the database is lost, full or too busy. Nothing of the block stays, except that a commit
                whose confirmation was lost may have happened.
        """
        if not self._free.acquire(timeout=PATIENCE_S):
            raise Unavailable("All connections to the database are in use.", where=self.address.shown, fix=AGAIN)
        connection: Connection | None = None
        try:
            connection = self._begun(durable=durable)
            yield connection
            _commit(connection)
        except psycopg.Error as error:
            if _is_passing(error, connection):
                raise self._unavailable(error) from error
            raise
        finally:
            if connection is not None:
                self._returned(connection)
            self._free.release()

    def close(self) -> None:
        """Close every connection, and leave the embedded server to its other users."""
        with self._mutex:
            self._closed = True
        if self._revival is not None:  # a server that comes up later would be nobody's
            futures.wait([self._revival])
        self._drop_idle()
        self._stack.close()
        for child in self._children:
            child.poll()

    def _begun(self, *, durable: bool) -> Connection:
        """A connection whose transaction is open. A dead one has done nothing yet, so another takes its place."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            connection = self._taken()
            try:
                connection.execute(BEGIN if durable else HASTY, prepare=False)
            except psycopg.Error as error:
                connection.close()
                self._drop_idle()
                if time.monotonic() > deadline or not _is_passing(error, connection):
                    raise
            else:
                return connection

    def _taken(self) -> Connection:
        with self._mutex:
            if self._closed:
                raise Unavailable("The service is ending.", where=self.address.shown, fix=AGAIN)
            if self._idle:
                return self._idle.pop()
        address = self.address
        try:
            return self._connected()
        except ReperformError as error:
            if self.address.home is None:
                raise _unreachable(error, self.address) from error
            self._revive(address)
        try:
            return self._connected()
        except ReperformError as error:
            raise _unreachable(error, self.address) from error

    def _connected(self) -> Connection:
        network = {} if self.address.home else {k: v for k, v in NETWORK.items() if k not in self.address.parameters}
        connection = server.connect(self.address, **network)
        try:
            connection.autocommit = True  # transactions are begun and ended here, in words
            connection.prepare_threshold = 2
            connection.execute(SESSION)
        except psycopg.Error as error:
            connection.close()
            raise ReperformError(
                "The database does not take the service's settings.", got=_said(error), where=self.address.shown
            ) from error
        return connection

    def _revive(self, tried: Address) -> None:
        """Bring back the embedded server after it was killed; one thread does it, and the others wait for it."""
        with self._mutex:
            if self.address is not tried or self._closed:
                return
            if self._revival is None or self._revival.done():
                self._revival = Future()
                threading.Thread(target=self._bring_back, args=[tried, self._revival], daemon=True).start()
            revival = self._revival
        try:
            revival.result(timeout=PATIENCE_S)
        except TimeoutError:
            where = self.address.shown
            raise Unavailable("The database is recovering from a crash.", where=where, fix=AGAIN) from None
        except ReperformError as error:
            raise _unreachable(error, self.address) from error

    def _bring_back(self, tried: Address, revival: "Future[None]") -> None:
        try:
            if tried.home is not None:
                found, child = server.revived(tried.home)
                self._children = [one for one in self._children if one.poll() is None] + ([child] if child else [])
                self.address = replace(found, parameters={**tried.parameters, "host": found.parameters["host"]})
        except BaseException as error:  # noqa: BLE001  # whoever waits gets it
            revival.set_exception(error)
        else:
            revival.set_result(None)

    def _returned(self, connection: Connection) -> None:
        """Undo what is still open, and keep the connection if it is sound."""
        with contextlib.suppress(psycopg.Error):
            if connection.info.transaction_status != TransactionStatus.IDLE:
                connection.execute("ROLLBACK", prepare=False)
        with self._mutex:
            if not self._closed and connection.info.transaction_status == TransactionStatus.IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _drop_idle(self) -> None:
        with self._mutex:
            dropped, self._idle = self._idle, []
        for connection in dropped:
            connection.close()

    def _unavailable(self, error: psycopg.Error) -> Unavailable:
        problem, fix = next(
            (words for kind, words in EXPLAINED.items() if isinstance(error, kind)),
            ("The database was lost on the way; nothing was answered.", AGAIN),
        )
        return Unavailable(problem, got=_said(error), where=self.address.shown, fix=fix)


AGAIN = "send the same request again in a moment, with the same idempotency key"
EXPLAINED: dict[type[psycopg.Error], tuple[str, str]] = {
    errors.DiskFull: (
        "The database's disk is full; nothing was written.",
        "free some space on the database's disk; the service goes on by itself",
    ),
    errors.LockNotAvailable: ("Other requests have kept the database busy for too long.", AGAIN),
    errors.TooManyConnections: ("The database has no connection left.", AGAIN),
    errors.DeadlockDetected: ("Two requests got in each other's way, and this one gave way.", AGAIN),
    errors.ReadOnlySqlTransaction: (
        "The database takes no writes: it is a standby, or was set to be read only.",
        "name the primary in REPERFORM_DATABASE_URL",
    ),
}


def _commit(connection: Connection) -> None:
    """COMMIT, which PostgreSQL turns into a silent ROLLBACK when a statement had failed before."""
    said = connection.execute("COMMIT", prepare=False).statusmessage
    if said != "COMMIT":
        raise ReperformError(
            "A transaction was to be committed in which a statement had failed.",
            expected="errors that leave the block of `Database.transaction`",
            got=f"{said} for COMMIT",
            where="the database",
            fix="report it; nothing was written",
        )


def _is_passing(error: psycopg.Error, connection: Connection | None) -> bool:
    """Whether an error comes from the database's state and not from the statement: the same may work in a moment."""
    lost = connection is None or connection.closed or connection.info.transaction_status == TransactionStatus.UNKNOWN
    return lost or isinstance(error, (psycopg.OperationalError, errors.ReadOnlySqlTransaction))


def _unreachable(error: ReperformError, address: Address) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    problem, fix = "The database cannot be reached.", error.fix
    if "No space left on device" in str(error):  # a server that cannot write its log ends, and starts when it can
        problem, fix = EXPLAINED[errors.DiskFull]
    return Unavailable(problem, got=" ".join(str(error).split())[:400], where=address.shown, fix=fix)


def _said(error: psycopg.Error) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def prepare(database: Database) -> None:
    """Create schema `service`, or bring it up to date; safe to call from every process at its start.

    Raises:
        ReperformError: when the database would not keep what it is given, or has other migrations than this code.
    """
    try:
        with database.transaction() as connection:
            _check_settings(connection, database.address.shown)
            migrations.apply(connection, where=database.address.shown)
    except psycopg.Error as error:
        raise ReperformError(
            "The service's tables cannot be made; nothing in the database has changed.",
            expected="a user who may create a schema, or who owns schema service",
            got=_said(error),
            where=database.address.shown,
            fix="GRANT CREATE ON DATABASE to that user, or name another one in REPERFORM_DATABASE_URL",
        ) from error
    if database.address.home is not None:
        server.keep(database.address.home)


def _check_settings(connection: Connection, where: str) -> None:
    encoding = _setting(connection, "server_encoding")
    if encoding != "UTF8":
        raise ReperformError(
            "The database cannot store every name.",
            expected="a database with encoding UTF8",
            got=encoding,
            where=where,
            fix="CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and name it in REPERFORM_DATABASE_URL",
        )
    found = {name: _setting(connection, name) for name in ("fsync", "full_page_writes", "synchronous_commit")}
    lax = sorted(name for name, value in found.items() if value == "off")
    if lax:
        raise ReperformError(
            "The database would forget answers in a power cut.",
            expected="fsync, full_page_writes and synchronous_commit on",
            got=", ".join(f"{name} = off" for name in lax),
            where=where,
            fix="set them in postgresql.conf and restart the server",
        )


def _setting(connection: Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    return str(row[0]) if row else ""
