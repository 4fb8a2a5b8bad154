"""Files that are scored in the background, chunk by chunk, by whichever process has time.

A chunk's answers and the job's progress are written in one transaction: a process may be killed at any moment, and
whoever takes the job over goes on after the last chunk, without a row lost or scored twice. A job is claimed with a
lease that its worker renews; when the worker is gone, the lease lapses.
"""

import csv
import hashlib
import io
import logging
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, Self

import polars as pl
import psycopg
import pyarrow.parquet as pq
from polars.exceptions import PanicException
from psycopg import rows as row_factories

from reperform.errors import ReperformError
from reperform.params import IngestParams, JobsParams, ValidateParams
from reperform.service import intake, job_files, journal
from reperform.service.database import Connection, Database, Unavailable
from reperform.service.job_files import FileFormat
from reperform.service.refusals import Refusal

logger = logging.getLogger(__name__)

PART_BYTES = 2**20
LONGEST_PROBLEM = 2000
PAGE_ROWS = 5_000  # of downloads
BEATS = 3  # within a lease
OURS = 500  # HTTP statuses from here on are no fault of the rows
KNOWN = ("answered-already", "scored-by-pipeline")  # what `intake.problems` says of rows whose first answer stands
# Files come late by nature: the second institution's file of a day begins before the first one's has ended. Such a row
# is scored by what was known at its time; answers that were given before it came did not know of it.
LATE = "out-of-order"
Table = Literal["results", "quarantine"]

_FIELDS = (
    "job_id", "source", "format", "data_version", "size_bytes", "status", "n_records", "n_left_out", "n_to_score",
    "n_scored", "n_known", "n_refused", "n_alerts", "n_late", "problem", "attempts", "submitted_at", "read_at",
    "ended_at",
)  # fmt: skip
INTO_RESULTS = "COPY service.job_results (job_id, place, transaction_id, outcome, is_late) FROM STDIN"
_SELECT = f"SELECT {', '.join(_FIELDS)} FROM service.jobs WHERE job_id = %s"  # noqa: S608  # names of ours
ADD = """
INSERT INTO service.jobs (job_id, source, format, data_version, sha256, size_bytes, key_id)
VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (job_id) DO NOTHING
"""
AGAIN = """
UPDATE service.jobs SET status = 'waiting', attempts = 0, problem = NULL, ended_at = NULL,
    not_before = clock_timestamp()
WHERE job_id = %s AND status = 'failed'
"""
# Its worker is gone, and so were those before: this file kills processes.
GIVE_UP = """
UPDATE service.jobs SET status = 'failed', ended_at = clock_timestamp(), worker = NULL, lease_until = NULL,
    problem = 'The job was given up: its worker ended ' || attempts || ' times without getting any further.'
        || coalesce(' Before that: ' || problem, '')
WHERE status = 'running' AND lease_until < clock_timestamp() AND attempts >= %(most)s
"""
CLAIM = """
UPDATE service.jobs SET status = 'running', worker = %(worker)s, attempts = attempts + 1,
    lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE job_id = (
    SELECT job_id FROM service.jobs
    WHERE (status = 'waiting' AND not_before <= clock_timestamp())
        OR (status = 'running' AND lease_until < clock_timestamp())
    ORDER BY submitted_at, job_id LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING job_id
"""
BEAT = """
UPDATE service.jobs SET lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE job_id = %(job)s AND worker = %(worker)s AND status = 'running'
"""
OWNED = "SELECT 1 FROM service.jobs WHERE job_id = %s AND worker = %s AND status = 'running' FOR UPDATE"
READ = """
UPDATE service.jobs SET n_records = %(records)s, n_left_out = %(left_out)s, n_to_score = %(rows)s,
    n_refused = %(refused)s, read_at = clock_timestamp(), attempts = 0
WHERE job_id = %(job)s
"""
NEXT_CHUNK = """
SELECT chunk, first_place, rows FROM service.job_chunks WHERE job_id = %s AND rows IS NOT NULL ORDER BY chunk LIMIT 1
"""
FORWARD = """
UPDATE service.jobs SET n_scored = n_scored + %(scored)s, n_known = n_known + %(known)s,
    n_refused = n_refused + %(refused)s, n_alerts = n_alerts + %(alerts)s, n_late = n_late + %(late)s,
    attempts = 0, problem = NULL
WHERE job_id = %(job)s
"""
END = """
UPDATE service.jobs SET status = %(status)s, problem = %(problem)s, ended_at = clock_timestamp(), worker = NULL,
    lease_until = NULL
WHERE job_id = %(job)s AND worker = %(worker)s
"""
PUT_BACK = """
UPDATE service.jobs SET status = 'waiting', worker = NULL, lease_until = NULL, problem = %(problem)s,
    attempts = greatest(0, attempts - %(uncounted)s),
    not_before = clock_timestamp() + make_interval(secs => %(wait_s)s)
WHERE job_id = %(job)s AND worker = %(worker)s
"""
_ANSWER = (
    "account_id", "entity_id", "booked_at", "known_at", "amount_base", "score", "probability", "is_alert", "reasons",
    "model_version", "data_version", "answered_at",
)  # fmt: skip
RESULTS = f"""
SELECT r.place, r.transaction_id, r.outcome, r.is_late, {", ".join(f"a.{name}" for name in _ANSWER)}
FROM service.job_results AS r LEFT JOIN LATERAL (
    SELECT * FROM service.answers AS one WHERE one.transaction_id = r.transaction_id AND one.role = 'champion'
    ORDER BY one.sequence LIMIT 1
) AS a ON true
WHERE r.job_id = %(job)s AND r.place >= %(place)s ORDER BY r.place OFFSET %(offset)s LIMIT %(limit)s
"""  # noqa: S608  # names of ours
QUARANTINE = """
SELECT place, rule, reason, source_file, source_record, "column", value, "row" FROM service.job_quarantine
WHERE job_id = %(job)s AND place >= %(place)s ORDER BY place OFFSET %(offset)s LIMIT %(limit)s
"""
QUERIES: dict[Table, str] = {"results": RESULTS, "quarantine": QUARANTINE}
_US = pl.Datetime("us", "UTC")
KINDS: dict[Table, dict[str, Any]] = {
    "results": {
        "place": pl.Int64, "transaction_id": pl.String, "outcome": pl.String, "is_late": pl.Boolean,
        "account_id": pl.String, "entity_id": pl.String, "booked_at": _US, "known_at": _US, "amount_base": pl.Float64,
        "score": pl.Float64, "probability": pl.Float64, "is_alert": pl.Boolean, "reasons": pl.String,
        "model_version": pl.Int64, "data_version": pl.String, "answered_at": _US,
    },
    "quarantine": {
        "place": pl.Int64, "rule": pl.String, "reason": pl.String, "source_file": pl.String,
        "source_record": pl.Int64, "column": pl.String, "value": pl.String, "row": pl.String,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A file that was handed in, and how far it is; columns of table `service.jobs`."""

    job_id: str
    source: str | None
    format: FileFormat
    data_version: str
    size_bytes: int
    status: Literal["waiting", "running", "done", "failed"]
    n_records: int | None
    n_left_out: int
    n_to_score: int
    n_scored: int
    n_known: int
    n_refused: int
    n_alerts: int
    n_late: int
    problem: str | None
    attempts: int
    submitted_at: datetime
    read_at: datetime | None
    ended_at: datetime | None

    @property
    def n_settled(self) -> int:
        """Records that are scored, known before, refused or left out."""
        return self.n_scored + self.n_known + self.n_refused + self.n_left_out

    @property
    def progress(self) -> float:
        """Share of its records that are settled; 0 until the file was read."""
        if self.n_records is None:
            return 0.0
        return self.n_settled / self.n_records if self.n_records else 1.0


class Answered(Protocol):
    """What `detect.Desk.scored` gives."""

    @property
    def answers(self) -> pl.DataFrame:
        """One row for each transaction, with `is_alert`."""


class Desk(Protocol):
    """Who scores; see `detect.Desk`."""

    def transaction(self) -> AbstractContextManager[Any]:
        """A turn in the order of events."""

    def current(self, connection: Any) -> Any:
        """The scorer that answers now."""

    def known(self, connection: Any, scorer: Any) -> intake.Known:
        """What transactions are held against."""

    def scored(self, connection: Any, rows: Sequence[intake.Record], request_id: str, reasons: Any) -> Answered:
        """Score rows and write everything down, in a transaction that is still open."""


class _LeaseLostError(Exception):
    """Somebody else has the job now."""


# Handing in and looking


def submit(
    connection: Connection,
    body: bytes | Path | BinaryIO,
    source: str | None,
    form: str,
    *,
    given: IngestParams,
    data_version: str = "",
    largest_bytes: int = 256 * 2**20,
    key_id: str | None = None,
) -> Job:
    """Hand in a file. The same file, to be read in the same way, is the same job; one that failed is tried again.

    Args:
        connection: with an open transaction.
        body: content of the file.
        source: name in conf/ingest/ by whose description it is read; None for Parquet with canonical columns.
        form: `csv`, `parquet` or `camt.053`.
        given: sources.
        data_version: of the data that the service began with: the same file on top of other data is another job.
        largest_bytes: of a file.
        key_id: API key of who hands it in.

    Raises:
        Refusal: 413 for a file that is too large, 422 for an empty one or an unknown source or format.
    """
    described = job_files.description(given, source, form)
    with _opened(body) as stream:
        sha256, size = _measured(stream, largest_bytes)
        job_id = job_files.digest(sha256, source, form, described, data_version)
        values = [job_id, source, form, data_version, sha256, size, key_id]
        if connection.execute(ADD, values).rowcount:
            stream.seek(0)
            for part, content in enumerate(_parts(stream)):
                connection.execute("INSERT INTO service.job_files VALUES (%s, %s, %b)", [job_id, part, content])
        else:
            connection.execute(AGAIN, [job_id])
    job = status(connection, job_id)
    assert job is not None  # it was written in this transaction or before
    return job


@contextmanager
def _opened(body: bytes | Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(body, Path):
        with body.open("rb") as stream:
            yield stream
    else:
        yield io.BytesIO(body) if isinstance(body, bytes) else body


def _measured(stream: BinaryIO, largest_bytes: int) -> tuple[str, int]:
    """SHA-256 and size of a file that is neither empty nor too large."""
    known, size = hashlib.sha256(), 0
    for content in _parts(stream):
        known.update(content)
        size += len(content)
        if size > largest_bytes:
            raise Refusal(
                413, "file-too-large", "The file is too large.", expected=f"at most {largest_bytes} bytes",
                got="more", where="body", fix="send it in several files, or compressed",
            )  # fmt: skip
    if not size:
        raise Refusal(422, "empty-file", "The file is empty.", where="body", fix="send the file as the body")
    return known.hexdigest(), size


def _parts(stream: BinaryIO) -> Iterator[bytes]:
    while content := stream.read(PART_BYTES):
        yield content


def status(connection: Connection, job_id: str) -> Job | None:
    """How far a job is; None where there is no such job."""
    row = connection.execute(_SELECT, [job_id]).fetchone()
    return Job(**dict(zip(_FIELDS, row, strict=True))) if row else None


def counts(connection: Connection) -> dict[str, int]:
    """How many jobs there are in each status."""
    got = connection.execute("SELECT status, count(*) FROM service.jobs GROUP BY status").fetchall()
    return {name: sum(n for told, n in got if told == name) for name in ("waiting", "running", "done", "failed")}


def results(connection: Connection, job_id: str, offset: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """A page of a job's transactions, in order of known_at, with what was answered."""
    return _page(connection, "results", job_id, offset=offset, limit=limit)


def quarantine(connection: Connection, job_id: str, offset: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """A page of the records that a job has refused, each with its reason."""
    return _page(connection, "quarantine", job_id, offset=offset, limit=limit)


def _page(
    connection: Connection, which: Table, job_id: str, *, offset: int = 0, place: int = 0, limit: int
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=row_factories.dict_row) as cursor:
        values = {"job": job_id, "place": place, "offset": offset, "limit": limit}
        return cursor.execute(QUERIES[which], values).fetchall()


def pages(connection: Connection, job_id: str, which: Table) -> Iterator[pl.DataFrame]:
    """The whole of a job's results or quarantine as frames; reasons are JSON text. The first may be empty."""
    place, n = 0, PAGE_ROWS
    while n == PAGE_ROWS:
        with connection.cursor() as cursor:
            values = {"job": job_id, "place": place, "offset": 0, "limit": PAGE_ROWS}
            rows = cursor.execute(_as_text(QUERIES[which]), values).fetchall()
        frame = pl.DataFrame(rows, schema=KINDS[which], orient="row")
        n = frame.height
        yield frame
        place = int(frame["place"][-1]) + 1 if n else place


def _as_text(query: str) -> str:
    return query.replace("a.reasons", "a.reasons::text")


def download(connection: Connection, job_id: str, which: Table, form: Literal["csv", "parquet"], target: Path) -> None:
    """Write the whole of a job's results or quarantine to a file, page by page."""
    frames = pages(connection, job_id, which)
    if form == "csv":
        with target.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerow(KINDS[which])
            for frame in frames:
                frame.write_csv(stream, include_header=False, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")
        return
    schema = pl.DataFrame(schema=KINDS[which]).to_arrow().schema
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for frame in frames:
            writer.write_table(frame.to_arrow().cast(schema))


# Working


class _Lease:
    """Says again and again that a job's worker lives, until it ends."""

    def __init__(self, beat: Callable[[], bool], every_s: float) -> None:
        self.beat, self.every_s = beat, every_s
        self.is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.every_s):
            try:
                if not self.beat():
                    self.is_lost = True
                    return
            except (Unavailable, psycopg.Error):
                continue  # the database may be back before the lease lapses


@dataclass
class _Settled:
    """What became of a chunk's rows."""

    records: list[intake.Record] = field(default_factory=list)
    outcomes: list[tuple[int, str, str, bool]] = field(default_factory=list)  # place, id, outcome, whether it is late
    refused: list[tuple[intake.Record, Refusal]] = field(default_factory=list)

    @property
    def n_known(self) -> int:
        return sum(outcome == "known" for _, _, outcome, _ in self.outcomes)

    @property
    def n_late(self) -> int:
        return sum(is_late for *_, is_late in self.outcomes)


class Runner:
    """Works on jobs, one at a time. Several may work beside each other, in this process or in others.

    Args:
        database: where jobs stand.
        desk: who scores.
        limits: how jobs are worked on.
        ingest: sources.
        rules: validate's rules.
    """

    def __init__(
        self, database: Database, desk: Desk, limits: JobsParams, ingest: IngestParams, rules: ValidateParams
    ) -> None:
        self.database, self.desk, self.limits, self.ingest, self.rules = database, desk, limits, ingest, rules
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work, in a thread."""
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def stop(self, patience_s: float = 30.0) -> None:
        """End after the chunk that is being scored; somebody else goes on with the job."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(patience_s)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                busy = self.run_one()
            except (Unavailable, psycopg.Error):  # the database comes back by itself, and so does the lease
                busy = False
            except Exception as error:  # noqa: BLE001  # a thread that is gone would be missed by nobody
                logger.warning("jobs: %s in the runner; it goes on", type(error).__name__)
                busy = False
            if not busy:
                self._ending.wait(self.limits.poll_s)

    def run_one(self) -> bool:
        """Work on the next job until it ends; False when there is none."""
        job_id = self._claimed()
        if job_id is None:
            return False
        with _Lease(lambda: self._beat(job_id), self.limits.lease_s / BEATS) as lease:
            try:
                self._work(job_id, lease)
            except _LeaseLostError:
                pass
            except (Unavailable, psycopg.OperationalError) as error:
                self._put_back(job_id, error, is_counted=False)
            except Refusal as error:
                self._put_back(job_id, error, is_counted=error.status < OURS)
            except ReperformError as error:  # the file or its description: the same would happen again
                self._end(job_id, "failed", str(error))
            except (Exception, PanicException) as error:  # noqa: BLE001  # whatever it is, other jobs go on, and this one says so
                self._put_back(job_id, error, is_counted=True)
        return True

    def _claimed(self) -> str | None:
        values = {"worker": self.worker, "lease_s": self.limits.lease_s, "most": self.limits.attempts}
        with self.database.transaction() as connection:
            connection.execute(GIVE_UP, values)
            row = connection.execute(CLAIM, values).fetchone()
        return str(row[0]) if row else None

    def _beat(self, job_id: str) -> bool:
        values = {"job": job_id, "worker": self.worker, "lease_s": self.limits.lease_s}
        with self.database.transaction(durable=False) as connection:
            return bool(connection.execute(BEAT, values).rowcount)

    def _work(self, job_id: str, lease: _Lease) -> None:
        with self.database.transaction() as connection:
            job = status(connection, job_id)
        if job is not None and job.read_at is None:
            self._read(job)
        while not self._ending.is_set():
            if lease.is_lost:
                raise _LeaseLostError
            if not self._chunk(job_id):
                return
        self._release(job_id)

    def _read(self, job: Job) -> None:
        """Turn the file into chunks and quarantine, in one transaction."""
        described = job_files.description(self.ingest, job.source, job.format)
        with self.desk.transaction() as connection:
            accounts = dict(self.desk.known(connection, self.desk.current(connection)).accounts)
        with tempfile.TemporaryDirectory(prefix="reperform-job-") as folder:
            content = Path(folder) / "content"
            self._unloaded(job.job_id, content)
            got = job_files.read(
                content, described, job.format,
                job_id=job.job_id, accounts=accounts, rules=self.rules, limits=self.limits,
            )  # fmt: skip
        with self.database.transaction() as connection:
            self._check_owned(connection, job.job_id)
            self._write_read(connection, job.job_id, got)

    def _unloaded(self, job_id: str, content: Path) -> None:
        part = 0
        with content.open("wb") as stream:
            while True:
                with self.database.transaction(durable=False) as connection:
                    row = connection.execute(
                        "SELECT content FROM service.job_files WHERE job_id = %s AND part = %s", [job_id, part],
                        binary=True,
                    ).fetchone()  # fmt: skip
                if row is None:
                    return
                stream.write(row[0])
                part += 1

    def _write_read(self, connection: Connection, job_id: str, got: job_files.FileRead) -> None:
        size = self.limits.chunk_rows
        for chunk, first in enumerate(range(0, got.rows.height, size)):
            rows = got.rows.slice(first, size)
            connection.execute(
                "INSERT INTO service.job_chunks (job_id, chunk, first_place, n, rows) VALUES (%s, %s, %s, %s, %b)",
                [job_id, chunk, first, rows.height, journal.packed(rows)],
            )
        told = got.refused.select("rule", "source_file", "source_record", "column", "value", "row").iter_rows()
        _write_quarantine(connection, job_id, 0, ((rule, job_files.reason_of(rule), *place) for rule, *place in told))
        values = {"records": got.records, "left_out": got.left_out, "rows": got.rows.height}
        connection.execute(READ, {**values, "refused": got.refused.height, "job": job_id})

    def _check_owned(self, connection: Connection, job_id: str) -> None:
        """Nothing is written for a job that somebody else has by now; nobody takes it before this commits."""
        if connection.execute(OWNED, [job_id, self.worker]).fetchone() is None:
            raise _LeaseLostError

    def _chunk(self, job_id: str) -> bool:
        """Score the next chunk and say so, in one transaction; False when the job is done."""
        with self.desk.transaction() as connection:
            self._check_owned(connection, job_id)
            row = connection.execute(NEXT_CHUNK, [job_id], binary=True).fetchone()
            if row is None:
                self._done(connection, job_id)
                return False
            chunk, first, packed = row
            known = self.desk.known(connection, self.desk.current(connection))
            settled = _settled(journal.unpacked(packed), first, known)
            n_alerts = 0
            if settled.records:
                request_id = f"job-{job_id[:16]}-{chunk}"
                got = self.desk.scored(connection, settled.records, request_id, self.limits.reasons)
                n_alerts = int(got.answers["is_alert"].sum())
            self._write_settled(connection, job_id, chunk, settled, n_alerts)
        return True

    def _write_settled(self, connection: Connection, job_id: str, chunk: int, settled: _Settled, n_alerts: int) -> None:
        job = status(connection, job_id)
        with (
            connection.cursor() as cursor,
            cursor.copy(INTO_RESULTS) as copy,
        ):
            for outcome in settled.outcomes:
                copy.write_row((job_id, *outcome))
        told = ((refusal.code, _said(refusal), *_place(record)) for record, refusal in settled.refused)
        _write_quarantine(connection, job_id, job.n_refused if job else 0, told)
        connection.execute(
            "UPDATE service.job_chunks SET rows = NULL WHERE job_id = %s AND chunk = %s", [job_id, chunk]
        )
        values = {"scored": len(settled.records), "known": settled.n_known, "refused": len(settled.refused)}
        values |= {"late": settled.n_late}
        connection.execute(FORWARD, {**values, "alerts": n_alerts, "job": job_id})

    def _done(self, connection: Connection, job_id: str) -> None:
        """The end of a job whose records are all accounted for; its file is needed no longer.

        Raises:
            ReperformError: when they are not; that is an error of the program, never of the file.
        """
        job = status(connection, job_id)
        if job is None or job.n_settled != job.n_records:
            raise ReperformError(
                "The counts of the job do not add up.",
                expected=f"{job.n_records if job else 0} records",
                got=f"{job.n_settled if job else 0} scored, known, refused or left out",
                where=f"job {job_id}",
                fix="report this; its answers stand",
            )
        connection.execute("DELETE FROM service.job_files WHERE job_id = %s", [job_id])
        connection.execute(END, {"status": "done", "problem": None, "job": job_id, "worker": self.worker})

    def _end(self, job_id: str, how: str, problem: str) -> None:
        values = {"status": how, "problem": _storable(problem), "job": job_id, "worker": self.worker}
        with self.database.transaction() as connection:
            connection.execute(END, values)

    def _put_back(self, job_id: str, error: BaseException, *, is_counted: bool) -> None:
        """Leave a job to a later attempt, or give it up after too many that got no further."""
        with self.database.transaction() as connection:
            job = status(connection, job_id)
        attempts = job.attempts if job else 0
        problem = str(error) if isinstance(error, ReperformError) else f"{type(error).__name__}: {error}"
        if is_counted and attempts >= self.limits.attempts:
            self._end(job_id, "failed", f"The job was given up after {attempts} attempts. {problem}")
            return
        wait_s = self.limits.first_wait_s * 2.0 ** max(0, attempts - 1)
        self._wait(job_id, problem, wait_s, is_counted=is_counted)

    def _release(self, job_id: str) -> None:
        self._wait(job_id, None, 0.0, is_counted=False)

    def _wait(self, job_id: str, problem: str | None, wait_s: float, *, is_counted: bool) -> None:
        values = {"problem": _storable(problem) if problem else None, "uncounted": 0 if is_counted else 1}
        with self.database.transaction() as connection:
            connection.execute(PUT_BACK, {**values, "wait_s": wait_s, "job": job_id, "worker": self.worker})


def _settled(rows: pl.DataFrame, first: int, known: intake.Known) -> _Settled:
    """Which rows may be scored, which are known already, and which are refused now, with the reason."""
    records = intake.completed(rows.to_dicts(), known)
    problems = intake.problems(records, known)
    settled = _Settled()
    for place, record in enumerate(records):
        codes = {one.code for one in problems.get(place, [])}
        if codes & {*KNOWN}:
            settled.outcomes.append((first + place, record["transaction_id"], "known", False))
        elif codes - {LATE}:
            settled.refused.append((record, next(one for one in problems[place] if one.code != LATE)))
        else:
            settled.records.append(record)
            settled.outcomes.append((first + place, record["transaction_id"], "scored", LATE in codes))
    return settled


def _said(refusal: Refusal) -> str:
    told = {"expected": refusal.expected, "got": refusal.got, "what to do": refusal.fix}
    return "; ".join([refusal.problem, *(f"{name}: {text}" for name, text in told.items() if text)])


def _place(record: Mapping[str, Any]) -> tuple[str, int, None, None, str]:
    row = pl.DataFrame([record], schema=intake.COLUMNS).select(pl.struct(pl.all()).struct.json_encode()).item()
    return record["source_file"], record["source_record"], None, None, str(row)


def _write_quarantine(connection: Connection, job_id: str, first: int, rows: Iterator[tuple[Any, ...]]) -> None:
    columns = 'job_id, place, rule, reason, source_file, source_record, "column", value, "row"'
    statement = f"COPY service.job_quarantine ({columns}) FROM STDIN"
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for place, row in enumerate(rows, first):
            copy.write_row((job_id, place, *row))


def _storable(text: str) -> str:
    return text.replace("\0", "␀")[:LONGEST_PROBLEM]


def start(database: Database, desk: Desk, limits: JobsParams, ingest: IngestParams, rules: ValidateParams) -> Runner:
    """Begin to work on jobs, in a thread."""
    runner = Runner(database, desk, limits, ingest, rules)
    runner.start()
    return runner
