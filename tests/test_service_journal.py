"""There is one order of events without gaps, and what was answered once is answered again, byte for byte."""

import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from psycopg import conninfo

from reperform.errors import ReperformError
from reperform.service import answers, journal
from reperform.service.answers import Conflict
from reperform.service.database import Database
from tests import service_rows
from tests.conftest import ROOT
from tests.service_rows import NOON, transactions, undone

APPENDER = """
import sys
from pathlib import Path
from psycopg import conninfo
from reperform.export.server import Address
from reperform.service import database, journal
from tests.service_rows import transactions
name, n = sys.argv[1], int(sys.argv[2])
database_ = database.Database(Address(conninfo.conninfo_to_dict(sys.argv[3]), "the test's server", True))
print("ready", flush=True)
sys.stdin.readline()
for i in range(n):
    with database_.transaction() as connection:
        journal.locked(connection)
        sequence = journal.append(connection, "transactions", transactions(f"{name}-{i}"))
    print(sequence, flush=True)
if n == 0:
    with database_.transaction() as connection:
        journal.locked(connection)
        journal.append(connection, "transactions", transactions(f"{name}-lost"))
        print("locked", flush=True)
        sys.stdin.readline()
"""


def appender(database: Database, name: str, n: int) -> "subprocess.Popen[str]":
    where = conninfo.make_conninfo("", **database.address.parameters)
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDER, name, str(n), where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def append(database: Database, *ids: str, known_at: datetime = NOON) -> int:
    with database.transaction() as connection:
        journal.locked(connection)
        return journal.append(connection, "transactions", transactions(*ids, known_at=known_at))


def sequences(database: Database) -> list[int]:
    with database.transaction() as connection:
        return [event.sequence for event in journal.since(connection, 0)]


# --- events ---


def test_an_empty_journal_has_no_events_and_no_clock(database: Database) -> None:
    with database.transaction() as connection:
        assert journal.since(connection, 0) == []
        assert journal.clock(connection) is None
        assert journal.newest(connection) == 0


def test_an_event_comes_back_as_it_was_written(database: Database) -> None:
    rows = transactions("t1", "t2")
    features = pl.DataFrame({"transaction_id": ["t1", "t2"], "a": [1.5, None], "b": [float("nan"), -0.0]})
    labels = pl.DataFrame({"transaction_id": ["t1"], "is_anomaly": [True], "confirmed_at": [NOON]})
    with database.transaction() as connection:
        journal.locked(connection)
        assert journal.append(connection, "transactions", rows, features) == 1
        assert journal.append(connection, "labels", labels) == 2
    with database.transaction() as connection:
        first, second = journal.since(connection, 0)
    assert (first.sequence, first.kind, second.sequence, second.kind) == (1, "transactions", 2, "labels")
    assert_frame_equal(first.rows, rows, check_exact=True)
    assert first.features is not None
    assert_frame_equal(first.features, features, check_exact=True)
    assert_frame_equal(second.rows, labels)
    assert second.features is None


def test_only_what_came_after_is_given_and_in_portions(database: Database) -> None:
    for size in (1, 3, 2, 1):
        append(database, *[f"{size}-{i}" for i in range(size)])
    with database.transaction() as connection:
        assert [e.sequence for e in journal.since(connection, 2)] == [3, 4]
        assert [e.sequence for e in journal.since(connection, 0, rows=2)] == [1, 2]  # the second reaches the limit
        assert [e.sequence for e in journal.since(connection, 1, rows=1)] == [2]  # one event at least
        assert [e.sequence for e in journal.since(connection, 0, events=3)] == [1, 2, 3]
        assert journal.since(connection, 4) == []


def test_the_clock_never_goes_back(database: Database) -> None:
    append(database, "t1", known_at=NOON)
    append(database, "t2", known_at=NOON - timedelta(hours=1))
    with database.transaction() as connection:
        journal.locked(connection)
        journal.append(connection, "labels", pl.DataFrame({"transaction_id": ["t1"]}))
    with database.transaction() as connection:
        assert journal.clock(connection) == NOON


def test_an_event_that_was_undone_leaves_no_gap(database: Database) -> None:
    append(database, "t1")
    with undone(database) as connection:
        journal.locked(connection)
        assert journal.append(connection, "transactions", transactions("t2")) == 2
    assert append(database, "t3") == 2
    assert sequences(database) == [1, 2]


@pytest.mark.parametrize("features", [None, pl.DataFrame({"a": [1.0, 2.0]})])
def test_an_event_without_rows_or_with_features_of_others_is_refused(
    database: Database, features: pl.DataFrame | None
) -> None:
    rows = transactions() if features is None else transactions("t1")
    with pytest.raises(ReperformError, match="no event"), database.transaction() as connection:
        journal.append(connection, "transactions", rows, features)
    assert sequences(database) == []


@given(
    st.lists(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), min_size=3, max_size=3), min_size=1, max_size=5)
)
@settings(max_examples=50)
def test_packing_keeps_every_bit(table: list[list[float | None]]) -> None:
    frame = pl.DataFrame(table, schema=dict.fromkeys("abc", pl.Float64), orient="row")
    assert_frame_equal(journal.unpacked(journal.packed(frame)), frame, check_exact=True)


def wide(n: int) -> pl.DataFrame:
    """KPIs as a scorer gives them: text, times, and many numbers of which some are unknown."""
    numbers = {f"kpi_{i}": [None if (i + k) % 5 == 0 else (i - 30) / (k + 3) for k in range(n)] for i in range(60)}
    ids = transactions(*[f"t{k}" for k in range(n)]).select("transaction_id", "counterparty_id", "booked_at")
    frame = ids.hstack(pl.DataFrame(numbers, schema_overrides=dict.fromkeys(numbers, pl.Float64)))
    odd = pl.Series("odd", [float("nan"), -0.0, float("inf"), 5e-324][:n] + [1.5] * (n - 4), dtype=pl.Float64)
    return frame.select(
        "transaction_id",
        "kpi_7",
        "booked_at",
        pl.lit(odd),
        pl.lit(3).alias("count"),
        pl.exclude("kpi_7", "transaction_id", "booked_at"),
    )


@pytest.mark.parametrize("n", [1, 2, journal.FEW_ROWS, journal.FEW_ROWS + 1])
def test_wide_events_come_back_bit_by_bit_in_the_same_order_of_columns(database: Database, n: int) -> None:
    for frame in (wide(n), wide(n), wide(n).select(pl.all().reverse()).rename({"kpi_3": "other"})):
        with database.transaction() as connection:
            journal.locked(connection)
            rows = transactions(*frame["transaction_id"])
            sequence = journal.append(connection, "transactions", rows, frame)
        with database.transaction() as connection:
            (event,) = journal.since(connection, sequence - 1)
        assert event.features is not None
        assert event.features.schema == frame.schema
        assert event.features.equals(frame, null_equal=True)
        bits = [one.select(pl.col(pl.Float64)).to_numpy().tobytes() for one in (event.features, frame)]
        assert bits[0] == bits[1]
    with database.transaction() as connection:
        shapes = connection.execute("SELECT count(*) FROM service.shapes").fetchone()
    assert shapes == ((2,) if n <= journal.FEW_ROWS else (0,))


def test_a_wide_event_without_numbers_comes_back_too(database: Database) -> None:
    texts = pl.DataFrame({f"c{i}": ["a"] for i in range(100)})
    with database.transaction() as connection:
        journal.append(connection, "transactions", transactions("t0"), texts)
        (event,) = journal.since(connection, 0)
    assert event.features is not None
    assert_frame_equal(event.features, texts)


def test_a_single_wide_row_takes_little_room(database: Database) -> None:
    with database.transaction() as connection:
        journal.append(connection, "transactions", transactions("t0"), wide(1))
        row = connection.execute("SELECT octet_length(features) FROM service.journal").fetchone()
    assert row is not None
    assert row[0] < len(journal.packed(wide(1))) / 2


# --- several processes ---


def test_two_processes_append_at_once_without_gaps_and_nobody_sees_a_later_event_first(database: Database) -> None:
    each = 40
    processes = [appender(database, name, each) for name in ("a", "b")]
    seen: list[list[int]] = []
    for process in processes:
        begin(process)
    while any(process.poll() is None for process in processes):
        seen.append(sequences(database))
    given = [sorted(int(line) for line in process.communicate()[0].split()) for process in processes]
    assert sorted(given[0] + given[1]) == sequences(database) == list(range(1, 2 * each + 1))
    assert all(found == list(range(1, len(found) + 1)) for found in seen)
    assert any(0 < len(found) < 2 * each for found in seen)  # it was looked at while they were at it
    with database.transaction() as connection:
        events = journal.since(connection, 0)
    order = [event.rows["transaction_id"][0] for event in events]
    assert [i for i in order if i.startswith("a")] == [f"a-{i}" for i in range(each)]


def test_a_killed_process_leaves_neither_its_lock_nor_its_event(database: Database) -> None:
    process = appender(database, "killed", 0)
    begin(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    process.kill()
    process.wait()
    assert append(database, "next") == 1
    with database.transaction() as connection:
        assert journal.since(connection, 0)[0].rows["transaction_id"].to_list() == ["next"]


# --- answers ---


def test_answers_of_champion_and_challenger_come_back(database: Database) -> None:
    many = [f"t{i}" for i in range(20)]
    with database.transaction() as connection:
        answers.write_answers(connection, service_rows.answers("t0"), sequence=7, request_id="r1")
        answers.write_answers(connection, service_rows.answers(*many[1:]), sequence=8, request_id="r2")
        shadow = service_rows.answers("t0", score=0.7, model_version=4)
        answers.write_answers(connection, shadow, sequence=7, request_id="r1", role="challenger")
    with database.transaction() as connection:
        assert answers.held(connection, ["t0", "t19", "x"]) == {"t0", "t19"}
        champion, challenger = answers.answer_of(connection, "t0")
        assert answers.answer_of(connection, "x") == []
        (one,) = answers.answer_of(connection, "t19")
    assert (champion["role"], champion["score"], champion["model_version"]) == ("champion", 0.1, 3)
    assert (challenger["role"], challenger["score"], challenger["model_version"]) == ("challenger", 0.7, 4)
    same = set(answers.SCORED) - {"transaction_id"}
    assert {name: one[name] for name in same} == {name: champion[name] for name in same}  # both ways to write agree
    assert champion["members"] == {"xgboost": 0.1, "rules": 1e-300}
    assert champion["reasons"] == [{"kpi": "velocity", "words": 'a "quote", a comma; ümlaut\n'}]
    assert (champion["counterparty_id"], champion["probability"], champion["known_at"]) == (None, None, NOON)


@given(score=st.floats(allow_nan=False))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_keep_every_bit_on_both_ways(database: Database, score: float) -> None:
    with undone(database) as connection:
        for n, start in ((1, 0), (answers.FEW + 1, 10)):
            ids = [f"t{start + i}" for i in range(n)]
            answers.write_answers(connection, service_rows.answers(*ids, score=score), sequence=1, request_id="r")
        got = [answers.answer_of(connection, one)[0]["score"] for one in ("t0", "t10")]
        assert [value.hex() for value in got] == [score.hex()] * 2


# --- repeated requests ---


def test_a_repeated_request_gets_the_first_answer(database: Database) -> None:
    body = b'{"answers": ["' + "ü".encode() * 1000 + b'"]}\n'
    with database.transaction() as connection:
        assert answers.first_response(connection, "k1", "i1", "h1") is None
        answers.keep_response(connection, "k1", "i1", "h1", 200, body)
        answers.keep_response(connection, "k1", "i0", "h1", 202, b"")
    with database.transaction() as connection:
        assert answers.first_response(connection, "k1", "i1", "h1") == (200, body)
        assert answers.first_response(connection, "k1", "i0", "h1") == (202, b"")
        assert answers.first_response(connection, "k2", "i1", "h1") is None  # another client's name for its own


def test_another_request_under_the_same_key_is_a_conflict(database: Database) -> None:
    with database.transaction() as connection:
        answers.keep_response(connection, "k1", "i1", "h1", 200, b"{}")
    with pytest.raises(Conflict, match="another request"), database.transaction() as connection:
        answers.first_response(connection, "k1", "i1", "h2")


def test_of_two_equal_requests_at_once_one_works_and_the_other_gets_its_answer(database: Database) -> None:
    worked: list[int] = []
    got: list[tuple[int, bytes]] = []
    together = threading.Barrier(4)

    def ask(number: int) -> None:
        together.wait()
        with database.transaction() as connection:
            first = answers.first_response(connection, "k1", "i1", "h1")
            if first is None:
                time.sleep(0.05)
                worked.append(number)
                first = (200, f"answer of {number}".encode())
                answers.keep_response(connection, "k1", "i1", "h1", *first)
        got.append(first)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worked) == 1
    assert got == [(200, f"answer of {worked[0]}".encode())] * 4


def test_a_request_that_failed_is_worked_on_again(database: Database) -> None:
    with undone(database) as connection:
        answers.keep_response(connection, "k1", "i1", "h1", 200, b"{}")
    with database.transaction() as connection:
        assert answers.first_response(connection, "k1", "i1", "h1") is None


def test_old_responses_make_room_for_new_ones(database: Database) -> None:
    def keep(name: str) -> None:
        with database.transaction() as connection:
            answers.keep_response(connection, "k1", name, "h1", 200, b"{}")

    for number in range(6):
        keep(f"old-{number}")
    with database.transaction() as connection:
        connection.execute("UPDATE service.responses SET at = at - interval '8 days'")
    keep("new-1")
    keep("new-2")
    with database.transaction() as connection:
        assert answers.first_response(connection, "k1", "new-1", "h1") == (200, b"{}")
        assert answers.first_response(connection, "k1", "old-5", "h1") is None
        assert connection.execute("SELECT count(*) FROM service.responses").fetchone() == (2,)
