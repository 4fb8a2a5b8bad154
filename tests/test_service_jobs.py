"""A file becomes a job: every record is scored once, known before, or refused with its reason, whatever is killed."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.exceptions import PanicException
from psycopg import conninfo

from reperform import params
from reperform.errors import ReperformError
from reperform.export import server
from reperform.params import (
    IngestParams,
    JobsParams,
    ReceiverParams,
    ServeParams,
    SplitParams,
    ValidateParams,
    WebhooksParams,
)
from reperform.service import database as storage
from reperform.service import exchange, job_files, jobs, webhooks
from reperform.service.champion import Champions
from reperform.service.database import Database, Unavailable
from reperform.service.detect import Desk
from reperform.service.refusals import Refusal
from tests.conftest import ROOT
from tests.service_desk import POISON, desk_of, runner_of, sections
from tests.test_ingest_iso20022 import balance, document, entry

INGEST, RULES = sections()
HEADER = (
    "id,account,counterparty,direction,amount,currency,booked_at,received_at,channel,country,latitude,longitude,balance"
)
START = datetime(2025, 7, 1, 8, tzinfo=UTC)
QUICK = JobsParams(chunk_rows=10, lease_s=1.0, poll_s=0.05, attempts=2, first_wait_s=0.01)


def line(name: str, minute: int, amount: float = 10.0, **changed: str) -> str:
    at = (START + timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = {
        "id": name, "account": "A1", "counterparty": "B1", "direction": "out", "amount": f"{amount:.2f}",
        "currency": "EUR", "booked_at": at, "received_at": at, "channel": "card", "country": "DE", "latitude": "",
        "longitude": "", "balance": "",
    }  # fmt: skip
    return ",".join((given | changed)[name] for name in HEADER.split(","))


def file_of(*lines: str) -> bytes:
    return ("\n".join([HEADER, *lines]) + "\n").encode()


def many(n: int) -> bytes:
    """Out of order in the file."""
    return file_of(*(line(f"T{k:04}", (k * 7) % n, 2000.0 if k % 10 == 0 else 10.0) for k in range(n)))


def submitted(database: Database, body: bytes | Path, source: str | None = "northbank", form: str = "csv") -> jobs.Job:
    with database.transaction() as connection:
        return jobs.submit(connection, body, source, form, given=INGEST, data_version="d1", largest_bytes=200_000)


def seen(database: Database, job: jobs.Job) -> jobs.Job:
    with database.transaction() as connection:
        found = jobs.status(connection, job.job_id)
    assert found is not None
    return found


def worked(database: Database, job: jobs.Job, limits: JobsParams = QUICK) -> jobs.Job:
    runner = runner_of(database, limits)
    while runner.run_one():
        pass
    return seen(database, job)


def all_of(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.transaction() as connection:
        return connection.execute(query.encode()).fetchall()


def quarantine(database: Database, job: jobs.Job) -> list[dict[str, Any]]:
    with database.transaction() as connection:
        return jobs.quarantine(connection, job.job_id)


def results(database: Database, job: jobs.Job) -> list[dict[str, Any]]:
    with database.transaction() as connection:
        return jobs.results(connection, job.job_id)


def test_every_record_is_scored_or_refused_with_its_reason(database: Database) -> None:
    body = file_of(
        line("T2", 2),
        line("T1", 1, 2000.0),
        line("X1", 3, account="nobody"),
        line("X2", 4, amount=-1.0),
        line("T2", 5),
        line("X3", 6, currency="XXQ"),
        line("X4", 7, booked_at="yesterday"),
        line("T3", 8, currency="USD"),
        line("X5", 9, currency="GBP"),  # no rate
        line("P1", 10),
        line("X6", 11, account="A3"),  # held at lakeside
    )
    job = worked(database, submitted(database, body))
    assert (job.status, job.problem) == ("done", None)
    assert (job.n_records, job.n_scored, job.n_known, job.n_refused, job.n_alerts) == (11, 3, 1, 7, 1)
    assert [(row["transaction_id"], row["outcome"], row["score"]) for row in results(database, job)] == [
        ("T1", "scored", 2000.0),
        ("T2", "scored", 10.0),
        ("T3", "scored", 5.0),
        ("P1", "known", None),
    ]
    told = {(row["source_record"], row["rule"]) for row in quarantine(database, job)}
    assert {record for record, _ in told} == {3, 4, 5, 6, 7, 9, 11}
    assert told >= {
        (3, "account_known"), (5, "transaction_id_unique"), (6, "unknown_currency"), (9, "unknown-currency"),
        (11, "account_of_entity"),
    }  # fmt: skip
    assert all(row["reason"] and row["row"] for row in quarantine(database, job))
    assert {row["source_file"] for row in quarantine(database, job)} == {
        f"northbank/transactions-{job.job_id[:12]}.csv"
    }


def test_rows_are_scored_in_order_of_known_at(database: Database) -> None:
    job = worked(database, submitted(database, many(35)))
    known_at = [row["known_at"] for row in results(database, job)]
    assert job.n_scored == 35
    assert known_at == sorted(known_at)
    assert all_of(database, "SELECT n FROM service.journal ORDER BY sequence") == [(10,), (10,), (10,), (5,)]


def test_the_same_file_twice_is_the_same_job(database: Database) -> None:
    first = worked(database, submitted(database, many(12)))
    again = submitted(database, many(12))
    assert (again.job_id, again.status, again.n_scored) == (first.job_id, "done", 12)
    assert not runner_of(database, QUICK).run_one()
    other = worked(database, submitted(database, many(13)))
    assert other.job_id != first.job_id
    assert (other.status, other.n_scored, other.n_known) == ("done", 1, 12)  # the same ids in another file


def test_a_file_of_earlier_rows_is_scored_and_says_that_it_came_late(database: Database) -> None:
    first = worked(database, submitted(database, file_of(line("T1", 1), line("T2", 600))))
    second = worked(database, submitted(database, file_of(line("U1", 2, account="A2"), line("U2", 599, account="A2"))))
    assert (first.n_scored, first.n_late) == (2, 0)
    assert (second.n_scored, second.n_late, second.n_refused) == (2, 1, 0)
    assert [row["is_late"] for row in results(database, second)] == [True, False]


def test_a_job_depends_on_how_and_on_top_of_what_it_is_read(database: Database) -> None:
    with database.transaction() as connection:
        ids = {
            jobs.submit(connection, many(3), source, "csv", given=INGEST, data_version=version).job_id
            for source in ("northbank", "meadow")
            for version in ("d1", "d2")
        }
    assert len(ids) == 4


def test_the_file_is_kept_no_longer_than_it_is_needed(database: Database) -> None:
    submitted(database, many(30))
    assert all_of(database, "SELECT count(*) FROM service.job_files") == [(1,)]
    runner_of(database, QUICK).run_one()
    assert all_of(database, "SELECT count(*) FROM service.job_files") == [(0,)]
    assert all_of(database, "SELECT count(*) FROM service.job_chunks WHERE rows IS NOT NULL") == [(0,)]


def test_a_file_may_be_handed_in_by_its_path(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(many(5))
    by_path = submitted(database, tmp_path / "file")
    assert by_path.job_id == submitted(database, many(5)).job_id
    assert worked(database, by_path).n_scored == 5


@pytest.mark.parametrize("packed", ["plain", "gzip", "zip"])
def test_packed_files_are_known_by_their_first_bytes(database: Database, packed: str) -> None:
    body = many(5)
    if packed == "gzip":
        body = gzip.compress(body)
    elif packed == "zip":
        body = zipped(a=body)
    assert worked(database, submitted(database, body)).n_scored == 5


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.csv", content)
    return stream.getvalue()


def test_a_source_of_packed_files_takes_plain_ones(database: Database) -> None:
    body = (
        "tx_id\tacct\tpeer\tminor_units\tccy\tts_ms\trcv_ms\tchan\tctry\tlat\tlon\tbal_minor\n"
        "H1\tA9\tB1\t-1250\tEUR\t1751356800000\t1751356800000\tcard\tDE\t\t\t\n"
    )
    job = worked(database, submitted(database, body.encode(), "harbour"))
    assert [row["rule"] for row in quarantine(database, job)] == ["account_known"]


def canonical(**changed: Any) -> pl.DataFrame:
    given = {
        "transaction_id": ["C2", "C1"], "booked_at": [START, START - timedelta(hours=1)],
        "known_at": [START, START - timedelta(hours=1)], "account_id": ["A1", "A2"], "entity_id": ["northbank"] * 2,
        "direction": ["in", "out"], "amount": [5.0, 1500.0], "currency": ["EUR", "EUR"],
    } | changed  # fmt: skip
    return pl.DataFrame(given)


def parquet(frame: pl.DataFrame) -> bytes:
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()


def test_parquet_with_canonical_columns_needs_no_source(database: Database) -> None:
    job = worked(database, submitted(database, parquet(canonical()), None, "parquet"))
    assert [(row["transaction_id"], row["is_alert"]) for row in results(database, job)] == [("C1", True), ("C2", False)]


def test_an_amount_in_the_base_currency_that_the_file_tells_counts(database: Database) -> None:
    body = parquet(canonical(currency=["JPY", "USD"], amount_base=[7.0, None]))
    job = worked(database, submitted(database, body, None, "parquet"))
    assert {row["transaction_id"]: row["amount_base"] for row in results(database, job)} == {"C1": 750.0, "C2": 7.0}


def test_parquet_without_a_needed_column_says_which(database: Database) -> None:
    job = worked(database, submitted(database, parquet(canonical().drop("booked_at")), None, "parquet"))
    assert job.status == "failed"
    assert "booked_at" in str(job.problem)


def test_a_text_that_no_database_can_hold_is_refused(database: Database) -> None:
    body = parquet(canonical(transaction_id=["bad\0id", "C1"]))
    job = worked(database, submitted(database, body, None, "parquet"))
    assert (job.status, job.n_scored, job.n_refused) == ("done", 1, 1)


def test_a_bank_statement_is_read_by_its_source(database: Database) -> None:
    body = document(balance("OPBD", "0.00"), balance("CLBD", "7.00"), entry("S1", "7.00")).encode()
    job = worked(database, submitted(database, body, "castle", "camt.053"))
    assert (job.status, job.n_records) == ("done", 1)
    assert [row["rule"] for row in quarantine(database, job)] == ["account_known"]


@pytest.mark.parametrize(
    ("body", "source", "form", "words"),
    [
        (b"\x00\x01garbage", "northbank", "csv", "cut off"),
        (b"<not-xml", "castle", "camt.053", "XML"),
        (b"PAR1 no", None, "parquet", "Parquet"),
        (zipped(a=many(3), b=many(4)), "northbank", "csv", "several files"),
        (gzip.compress(b"0" * 60_000_000, 9), "northbank", "csv", "unpacks to more"),
    ],
)
def test_a_file_that_cannot_be_read_fails_with_what_to_do(
    database: Database, body: bytes, source: str | None, form: str, words: str
) -> None:
    job = worked(database, submitted(database, body, source, form), JobsParams(most_unpacked_bytes=10_000_000))
    assert job.status == "failed"
    assert words in str(job.problem)
    assert "what to do" in str(job.problem)


def test_a_file_with_too_many_records_fails(database: Database) -> None:
    job = worked(database, submitted(database, many(9)), JobsParams(most_rows=8))
    assert job.status == "failed"
    assert "at most 8 records" in str(job.problem)


@pytest.mark.parametrize(
    ("body", "source", "form", "told"),
    [
        (b"", "northbank", "csv", "422 empty-file"),
        (b"x" * 200_001, "northbank", "csv", "413 file-too-large"),
        (b"x", "northbanc", "csv", "422 unknown-source"),
        (b"x", "labels", "csv", "422 unknown-source"),
        (b"x", "castle", "csv", "422 unknown-source"),
        (b"x", None, "csv", "422 unknown-source"),
        (b"x", "northbank", "pdf", "422 unknown-format"),
    ],
)
def test_what_cannot_be_a_job_is_refused_at_once(
    database: Database, body: bytes, source: str | None, form: str, told: str
) -> None:
    with pytest.raises(Refusal) as got:
        submitted(database, body, source, form)
    assert f"{got.value.status} {got.value.code}" == told
    assert all_of(database, "SELECT count(*) FROM service.jobs") == [(0,)]


def test_an_empty_table_is_done_at_once(database: Database) -> None:
    job = worked(database, submitted(database, file_of()))
    assert (job.status, job.n_records, job.progress) == ("done", 0, 1.0)


def test_a_poisoned_job_fails_with_its_reason_and_others_go_on(database: Database) -> None:
    bad = submitted(database, file_of(*(line(f"T{k}", k) for k in range(10)), line("T99", 99, POISON)))
    good = submitted(database, file_of(line("G1", 200)))
    runner = runner_of(database, QUICK)
    deadline = time.monotonic() + 30
    while seen(database, bad).status != "failed" and time.monotonic() < deadline:
        runner.run_one()
    job = seen(database, bad)
    assert (job.status, job.attempts, job.n_scored) == ("failed", 2, 10)  # what was scored before it stands
    assert "given up after 2 attempts" in str(job.problem)
    assert "ZeroDivisionError: the scorer broke" in str(job.problem)
    assert worked(database, good).n_scored == 1


def test_a_failed_job_is_tried_again_when_its_file_comes_again(database: Database) -> None:
    body = file_of(line("T1", 1, POISON))
    job = submitted(database, body)
    runner = runner_of(database, QUICK)
    while seen(database, job).status != "failed":
        runner.run_one()
    assert submitted(database, body).status == "waiting"


def test_a_worker_whose_lease_was_lost_writes_nothing(database: Database) -> None:
    job = submitted(database, many(20))
    slow = runner_of(database, QUICK)
    assert slow._claimed() == job.job_id
    all_of(database, "UPDATE service.jobs SET worker = 'another' RETURNING 1")
    with pytest.raises(jobs._LeaseLostError):
        slow._read(seen(database, job))
    assert all_of(database, "SELECT count(*) FROM service.job_chunks") == [(0,)]


def test_a_stopped_runner_leaves_the_job_to_the_next(database: Database) -> None:
    job = submitted(database, many(40))
    runner = runner_of(database, QUICK, delay_s=0.2)
    runner.start()
    deadline = time.monotonic() + 30
    while not seen(database, job).n_scored and time.monotonic() < deadline:
        time.sleep(0.02)
    runner.stop()
    left = seen(database, job)
    assert left.status == "waiting"
    assert 0 < left.n_scored < 40
    done = worked(database, job)
    assert (done.status, done.n_scored, done.problem) == ("done", 40, None)


def worker(database: Database, delay_s: float) -> "subprocess.Popen[str]":
    where = conninfo.make_conninfo("", **database.address.parameters)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service_desk", where, str(delay_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_after_kill_9_another_process_goes_on_without_loss_and_without_scoring_twice(database: Database) -> None:
    job = submitted(database, many(100))
    process = worker(database, 0.15)
    deadline = time.monotonic() + 60
    while seen(database, job).n_scored < 30 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    half = seen(database, job)
    assert 0 < half.n_scored < 100
    assert half.status == "running"  # nobody has noticed yet
    runner = runner_of(database, QUICK)
    while seen(database, job).status != "done" and time.monotonic() < deadline:
        runner.run_one()
        time.sleep(0.05)
    done = seen(database, job)
    assert (done.status, done.n_scored, done.n_known, done.n_refused) == ("done", 100, 0, 0)
    ids = [row[0] for row in all_of(database, "SELECT transaction_id FROM service.answers")]
    assert Counter(ids) == Counter(f"T{k:04}" for k in range(100))
    assert all_of(database, "SELECT sum(n)::int FROM service.journal") == [(100,)]


def test_a_file_that_kills_every_worker_is_given_up(database: Database) -> None:
    job = submitted(database, many(10))
    for _ in range(QUICK.attempts):
        assert runner_of(database, QUICK)._claimed() == job.job_id  # and is gone
        all_of(database, "UPDATE service.jobs SET lease_until = clock_timestamp() - interval '1 s' RETURNING 1")
    assert runner_of(database, QUICK)._claimed() is None
    assert seen(database, job).status == "failed"
    assert "ended 2 times" in str(seen(database, job).problem)


def test_two_runners_share_the_work(database: Database) -> None:
    mine = [submitted(database, file_of(line(f"T{k}", k))) for k in range(6)]
    runners = [runner_of(database, QUICK), runner_of(database, QUICK)]
    for runner in runners:
        runner.start()
    deadline = time.monotonic() + 60
    while any(seen(database, job).status != "done" for job in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
    for runner in runners:
        runner.stop()
    assert [seen(database, job).n_scored for job in mine] == [1] * 6


def test_a_job_that_does_not_add_up_cannot_be_done(database: Database) -> None:
    job = submitted(database, many(20))
    runner = runner_of(database, QUICK)
    assert runner._claimed() == job.job_id
    runner._read(seen(database, job))
    all_of(database, "DELETE FROM service.job_chunks WHERE chunk = 1 RETURNING 1")  # as if ten rows were lost
    all_of(database, "UPDATE service.jobs SET lease_until = clock_timestamp() - interval '1 s' RETURNING 1")
    failed = worked(database, job)
    assert failed.status == "failed"
    assert "do not add up" in str(failed.problem)


@pytest.mark.parametrize("which", ["results", "quarantine"])
def test_pages_and_downloads_hold_the_same(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: jobs.Table
) -> None:
    monkeypatch.setattr(jobs, "PAGE_ROWS", 4)
    body = file_of(*(line(f"T{k}", k, account="A1" if k % 2 else "nobody") for k in range(20)))
    job = worked(database, submitted(database, body))
    read = jobs.results if which == "results" else jobs.quarantine
    with database.transaction() as connection:
        paged = [row for offset in range(0, 20, 3) for row in read(connection, job.job_id, offset, 3)]
        jobs.download(connection, job.job_id, which, "parquet", tmp_path / "all.parquet")
        jobs.download(connection, job.job_id, which, "csv", tmp_path / "all.csv")
    places = [row["place"] for row in paged]
    assert len(places) == 10
    assert pl.read_parquet(tmp_path / "all.parquet")["place"].to_list() == places
    assert pl.read_csv(tmp_path / "all.csv")["place"].to_list() == places
    if which == "results":
        assert json.loads(pl.read_parquet(tmp_path / "all.parquet")["reasons"][0]) == paged[0]["reasons"]


def test_an_empty_download_has_its_columns(database: Database, tmp_path: Path) -> None:
    job = worked(database, submitted(database, file_of()))
    with database.transaction() as connection:
        jobs.download(connection, job.job_id, "quarantine", "csv", tmp_path / "all.csv")
        jobs.download(connection, job.job_id, "results", "parquet", tmp_path / "all.parquet")
    assert (tmp_path / "all.csv").read_text() == "place,rule,reason,source_file,source_record,column,value,row\n"
    assert pl.read_parquet(tmp_path / "all.parquet").columns == list(jobs.KINDS["results"])


@pytest.mark.parametrize(
    ("files", "beginning", "name"),
    [
        ("northbank/transactions-*.csv", b"id,a", "northbank/transactions-0123456789ab.csv"),
        ("harbour/transactions-*.csv.gz", b"tx_i", "harbour/transactions-0123456789ab.csv"),
        ("harbour/transactions-*.csv.gz", b"\x1f\x8b12", "harbour/transactions-0123456789ab.csv.gz"),
        ("../../etc/**/[ab]*.csv", b"id,a", "etc/0123456789abab0123456789ab.csv"),
        ("/abs/x.xlsx", b"id,a", "abs/x"),
    ],
)
def test_files_are_called_as_their_source_calls_them(files: str, beginning: bytes, name: str) -> None:
    assert job_files.file_name({"files": [files]}, "csv", "0123456789abcdef", beginning) == name


def test_a_reader_that_loses_a_record_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(many(3))
    whole = job_files._result

    def lossy(*given: Any) -> Any:
        got = whole(*given)
        got.tables["transactions"] = got.tables["transactions"].head(2)
        return got

    monkeypatch.setattr(job_files, "_result", lossy)
    source = INGEST.sources["northbank"]
    with pytest.raises(ReperformError, match="do not add up"):
        job_files.read(
            tmp_path / "f", source, "csv", job_id="0" * 64, accounts={"A1": "northbank"}, rules=RULES, limits=QUICK
        )


@pytest.mark.slow
@pytest.mark.xdist_group("service")
def test_with_real_models_files_of_two_institutions_get_the_scores_of_the_pipeline(
    database: Database, service_project: Path
) -> None:
    """The second institution's file comes when the first one's has been scored to its end."""
    serve = ServeParams(history_until="test_start")
    champions = Champions(database, serve)
    champions.start()
    described = params.load(IngestParams)
    desk = Desk(database, champions, serve, exchange.load(described))
    runner = jobs.Runner(database, desk, JobsParams(chunk_rows=200), described, params.load(ValidateParams))
    month = f"{params.load(SplitParams).test_from:%Y-%m}"
    offline = pl.read_parquet("data/ensemble/scores.parquet").select("transaction_id", offline="score")
    late = 0
    for name in ("northbank", "lakeside"):
        raw = Path(described.raw) / name / f"transactions-{month}.csv"
        with database.transaction() as connection:
            job = jobs.submit(connection, raw, name, "csv", given=described)
        runner.run_one()
        done = seen(database, job)
        assert done.status == "done", done.problem
        assert done.n_scored > 50
        assert done.n_known > 50  # the first half of the month is the pipeline's
        late += done.n_late
    assert late > 50
    online = pl.DataFrame(
        all_of(database, "SELECT transaction_id, score FROM service.answers WHERE role = 'champion'"),
        schema={"transaction_id": pl.String, "online": pl.Float64}, orient="row",
    )  # fmt: skip
    both = online.join(offline, on="transaction_id", how="inner")
    gap = (both["online"] - both["offline"]).abs()
    # Rows of other institutions are missing, so a few KPIs across accounts differ, and the scores made of them.
    assert both.height > 100
    assert gap.quantile(0.5) < 1e-9
    assert both.select(pl.corr("online", "offline", method="spearman")).item() > 0.8


@pytest.mark.slow
def test_after_kill_9_of_the_database_jobs_and_alerts_go_on_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(tempfile.mkdtemp(prefix="rp-"))
    monkeypatch.setenv("ALERTS_SECRET", "s" * 40)
    nobody = ReceiverParams(url="http://127.0.0.1:9/", secret_variable="ALERTS_SECRET", allow_plain=True)
    alerts = WebhooksParams(receivers={"nobody": nobody}, attempts=1, poll_s=0.05, timeout_s=1.0, break_after=1000)
    monkeypatch.setattr(webhooks, "CLAIM_S", 1.0)  # of messages that were under way when the database died
    with server.embedded(home) as address, closing(Database(address)) as opened:
        storage.prepare(opened)
        job = submitted(opened, many(200))
        desk = desk_of(opened, alerts, delay_s=0.05)
        runner, dispatcher = jobs.start(opened, desk, QUICK, INGEST, RULES), webhooks.start(opened, alerts)
        for least in (30, 110):  # twice
            assert soon(lambda at=least: seen(opened, job).n_scored >= at)  # type: ignore[misc]  # bound now
            os.kill(int((home / "cluster" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        assert soon(lambda: seen(opened, job).status == "done" and open_messages(opened) == 0)
        runner.stop()
        dispatcher.stop()
        done = seen(opened, job)
        assert (done.status, done.n_scored, done.n_refused) == ("done", 200, 0)
        assert all_of(opened, "SELECT sum(n)::int FROM service.journal") == [(200,)]
        assert all_of(opened, "SELECT count(*), count(DISTINCT transaction_id) FROM service.alerts") == [(20, 20)]
        assert all_of(opened, "SELECT DISTINCT status FROM service.deliveries") == [("dead",)]
    shutil.rmtree(home)


def soon(holds: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether something comes to hold, while the database may be away."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(Unavailable):
            if holds():
                return True
        time.sleep(0.02)
    return False


def open_messages(database: Database) -> int:
    return int(all_of(database, "SELECT count(*) FROM service.deliveries WHERE status = 'open'")[0][0])


SEEDS: tuple[tuple[bytes, str | None, job_files.FileFormat], ...] = (
    (many(20), "northbank", "csv"),
    (zipped(a=many(5)), "northbank", "csv"),
    (parquet(canonical()), None, "parquet"),
    (parquet(canonical(currency=[b"EUR", b"\xff"])), None, "parquet"),
    (document(balance("OPBD", "0.00"), balance("CLBD", "7.00"), entry("S1", "7.00")).encode(), "castle", "camt.053"),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 9), st.binary(max_size=6)), max_size=4
    ),
)
def test_whatever_bytes_come_each_record_is_accounted_for_or_the_file_is_refused_in_words(
    seed: tuple[bytes, str | None, job_files.FileFormat], changes: list[tuple[float, int, bytes]], tmp_path: Path
) -> None:
    body, source, form = seed
    content = bytearray(body)
    for at, removed, put in changes:
        place = int(at * len(content))
        content[place : place + removed] = put
    (tmp_path / "file").write_bytes(content)
    described, accounts = job_files.description(INGEST, source, form), {"A1": "northbank"}
    got, told = None, ""
    try:
        got = job_files.read(
            tmp_path / "file", described, form, job_id="ab" * 32, accounts=accounts, rules=RULES, limits=QUICK
        )
    except ReperformError as error:
        told = error.problem
    assert told or (got is not None and got.rows.height + got.refused.height + got.left_out == got.records)


def test_a_panic_of_a_library_ends_no_runner(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def panics(*_: object, **__: object) -> None:
        raise PanicException

    job = submitted(database, many(3))
    monkeypatch.setattr(job_files, "read", panics)
    runner = runner_of(database, QUICK)
    assert soon(lambda: not runner.run_one() and seen(database, job).status == "failed")
    assert "PanicException" in str(seen(database, job).problem)
