"""What a transaction has committed survives every accident; what it has not, never was; the service goes on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import psycopg
import pytest
from psycopg import errors

from reperform.errors import ReperformError
from reperform.export import server
from reperform.service import answers, calls, journal, keys, migrations
from reperform.service import database as storage
from reperform.service.database import Connection, Database, Unavailable
from tests import service_rows
from tests.conftest import ROOT
from tests.service_rows import transactions, undone

COMMENTS = """
SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'service'::regnamespace AND c.relkind IN ('r', 'v', 'p', 'm') AND NOT attisdropped
    AND attnum > 0 AND coalesce(col_description(c.oid, attnum), '') = ''
UNION ALL
SELECT relname, '' FROM pg_class WHERE relnamespace = 'service'::regnamespace AND relkind IN ('r', 'v', 'p', 'm')
    AND coalesce(obj_description(oid, 'pg_class'), '') = ''
"""


@pytest.fixture(scope="module")
def own_home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rp-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def own(own_home: Path) -> Iterator[Database]:
    """A database on a server that a test may kill."""
    with server.embedded(own_home) as address:
        made = Database(address)
        storage.prepare(made)
        yield made
        made.close()


def postmaster(database: Database) -> int:
    assert database.address.home is not None
    return int((database.address.home / "cluster" / "postmaster.pid").read_text().split()[0])


def kill_and_wait(database: Database) -> None:
    """Kill the server, and wait until its processes have noticed."""
    processes = psutil.Process(postmaster(database)).children()
    os.kill(postmaster(database), signal.SIGKILL)
    psutil.wait_procs(processes, timeout=20)


def append(database: Database, *ids: str) -> int:
    with database.transaction() as connection:
        journal.locked(connection)
        return journal.append(connection, "transactions", transactions(*ids))


def written(database: Database) -> list[str]:
    with database.transaction() as connection:
        events = journal.since(connection, 0)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [one for event in events for one in event.rows["transaction_id"]]


# --- transactions ---


def test_what_is_committed_is_there_and_what_fails_is_not(database: Database) -> None:
    append(database, "t1")
    with undone(database) as connection:
        journal.append(connection, "transactions", transactions("t2"))
    assert written(database) == ["t1"]


def test_a_commit_waits_for_the_disk_even_where_the_server_does_not_ask_for_it(new_database: Database) -> None:
    with new_database.transaction() as connection:
        connection.execute(
            "ALTER DATABASE " + new_database.address.parameters["dbname"] + " SET synchronous_commit = off"
        )  # type: ignore[call-overload]
    again = Database(new_database.address)
    with again.transaction() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    with again.transaction(durable=False) as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
    with again.transaction() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    again.close()


def test_each_statement_sees_what_was_committed_before_it_whatever_the_default_is(new_database: Database) -> None:
    with new_database.transaction() as connection:
        name = new_database.address.parameters["dbname"]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")  # type: ignore[call-overload]
    again = Database(new_database.address)
    with again.transaction() as connection:
        assert journal.newest(connection) == 0
        append(new_database, "t1")
        assert journal.newest(connection) == 1
    again.close()


def test_an_error_that_was_swallowed_is_not_taken_for_a_commit(database: Database) -> None:
    def careless() -> None:
        with database.transaction() as connection:
            journal.append(connection, "transactions", transactions("t1"))
            with pytest.raises(errors.UndefinedTable):
                connection.execute("SELECT * FROM nowhere")

    with pytest.raises(ReperformError, match="a statement had failed"):
        careless()
    assert written(database) == []


def test_a_mistake_in_a_statement_is_no_unavailability(database: Database) -> None:
    with pytest.raises(errors.UndefinedTable), database.transaction() as connection:
        connection.execute("SELECT * FROM nowhere")
    assert written(database) == []


def test_many_threads_share_few_connections(database: Database) -> None:
    few = Database(database.address, connections=2)
    threads = [threading.Thread(target=append, args=[few, f"t{i}"]) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written(few)) == sorted(f"t{i}" for i in range(12))
    assert len(few._idle) <= 2
    few.close()


def test_who_finds_no_free_connection_is_told_to_come_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_S", 0.05)
    one = Database(database.address, connections=1)
    with one.transaction():
        with pytest.raises(Unavailable, match="in use") as caught, one.transaction():
            pass
        assert caught.value.retry_after_s > 0
    assert written(one) == []
    one.close()


def test_who_waits_too_long_for_the_others_is_told_to_come_again(database: Database) -> None:
    def impatient() -> None:
        with database.transaction() as connection:
            connection.execute("SET LOCAL lock_timeout = '50ms'")
            journal.locked(connection)

    with database.transaction() as first:
        journal.locked(first)
        with pytest.raises(Unavailable, match="busy for too long"):
            impatient()
    assert append(database, "t1") == 1


def test_who_waits_too_long_for_the_log_of_calls_is_told_to_come_again(database: Database) -> None:
    def impatient() -> None:
        with database.transaction() as connection:
            connection.execute("SET LOCAL lock_timeout = '50ms'")
            calls.append(connection, {"route": "/x"})

    with database.transaction() as first:
        calls.append(first, {"route": "/y"})
        with pytest.raises(Unavailable, match="busy for too long"):
            impatient()
    with database.transaction() as connection:
        assert calls.end(connection)[0] == 1


def test_who_stands_still_inside_a_transaction_loses_it(database: Database) -> None:
    def sleepy() -> None:
        with database.transaction() as connection:
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
            journal.append(connection, "transactions", transactions("t1"))
            time.sleep(0.5)

    with pytest.raises(Unavailable, match="lost"):
        sleepy()
    assert append(database, "t2") == 1


def test_a_closed_database_says_so(database: Database) -> None:
    closed = Database(database.address)
    closed.close()
    with pytest.raises(Unavailable, match="ending"), closed.transaction():
        pass


def test_a_server_that_nobody_runs_is_told_at_once_and_a_lost_one_at_the_next_request(database: Database) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = server.configured(f"postgresql://ann:s3cret@127.0.0.1:{port}/risk")
    with pytest.raises(ReperformError, match="cannot be reached") as caught:
        Database(nowhere)
    assert "s3cret" not in str(caught.value)
    made = Database(database.address)
    made.address = nowhere
    made._drop_idle()
    with pytest.raises(Unavailable, match="cannot be reached") as lost, made.transaction():
        pass
    assert "s3cret" not in str(lost.value)
    made.close()


# --- migrations ---


def test_migrations_run_once_and_are_recorded(database: Database) -> None:
    storage.prepare(database)
    with database.transaction() as connection:
        assert migrations.apply(connection) == []
        rows = connection.execute("SELECT name FROM service.migrations ORDER BY name").fetchall()
    assert [row[0] for row in rows] == list(migrations.known())
    assert len(rows) >= 2


def test_two_processes_that_prepare_at_once_do_not_meet(new_database: Database) -> None:
    with new_database.transaction() as connection:
        connection.execute("DROP SCHEMA service CASCADE")
    done: list[list[str]] = []

    def prepare() -> None:
        with new_database.transaction() as connection:
            done.append(migrations.apply(connection))

    threads = [threading.Thread(target=prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done, key=len) == [[], [], list(migrations.known())]


def test_a_migration_that_was_changed_afterwards_is_refused(database: Database) -> None:
    name = next(iter(migrations.known()))
    changed = {**migrations.known(), name: migrations.known()[name] + "\n-- a word more\n"}
    with pytest.raises(ReperformError, match=rf"changed after it had been run[\s\S]*{name}"):  # noqa: SIM117
        with database.transaction() as connection:
            migrations.apply(connection, changed)


def test_a_database_of_newer_code_is_refused(database: Database) -> None:
    older = dict(list(migrations.known().items())[:-1])
    with pytest.raises(ReperformError, match="newer than this code"), database.transaction() as connection:
        migrations.apply(connection, older)


def test_a_migration_that_fails_leaves_nothing(new_database: Database) -> None:
    new = {
        **migrations.known(),
        "990_good.sql": "CREATE TABLE service.good (a int)",
        "991_bad.sql": "CREATE TABLE service.bad (a int); SELECT nothing",
    }
    with pytest.raises(errors.UndefinedColumn), new_database.transaction() as connection:
        migrations.apply(connection, new)
    with new_database.transaction() as connection:
        assert connection.execute("SELECT to_regclass('service.good')").fetchone() == (None,)
        assert migrations.apply(connection) == []


def test_every_table_and_column_says_what_it_is(new_database: Database) -> None:
    with new_database.transaction() as connection:
        assert connection.execute(COMMENTS).fetchall() == []
        connection.execute("CREATE TABLE service.mute (a int)")
        assert sorted(connection.execute(COMMENTS).fetchall()) == [("mute", ""), ("mute", "a")]


def test_a_server_that_forgets_in_a_power_cut_is_refused(own_home: Path) -> None:
    with server.embedded(own_home) as address, server.connect(address) as connection:
        connection.autocommit = True
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")
        made = Database(address)
        try:
            with pytest.raises(ReperformError, match="full_page_writes = off"):
                eventually_prepared(made)
        finally:
            connection.execute("ALTER SYSTEM RESET full_page_writes")
            connection.execute("SELECT pg_reload_conf()")
            made.close()


def eventually_prepared(database: Database) -> None:
    for _ in range(20):  # the server takes new settings in a moment
        storage.prepare(database)
        time.sleep(0.1)


# --- accidents ---


def test_a_server_killed_between_transactions_is_back_with_everything(own: Database) -> None:
    before = written(own)
    append(own, "kill-1")
    kill_and_wait(own)
    append(own, "kill-2")
    assert written(own) == [*before, "kill-1", "kill-2"]


def test_a_server_killed_during_a_transaction_takes_only_that_one(own: Database) -> None:
    before = written(own)
    append(own, "kept")

    def struck() -> None:
        with own.transaction() as connection:
            journal.locked(connection)
            journal.append(connection, "transactions", transactions("lost"))
            os.kill(postmaster(own), signal.SIGKILL)
            time.sleep(0.3)

    with pytest.raises(Unavailable, match="lost on the way"):
        struck()
    assert append(own, "again") == len(before) + 2
    assert written(own) == [*before, "kept", "again"]


def test_a_server_process_killed_alone_takes_all_connections_and_the_service_goes_on(own: Database) -> None:
    before = written(own)
    with own.transaction() as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGKILL)
    append(own, "kill-3")
    assert written(own) == [*before, "kill-3"]


def test_no_acknowledged_event_is_lost_however_often_the_server_is_killed(own: Database) -> None:
    before = written(own)
    acknowledged: list[str] = []
    doubtful: list[str] = []
    ends = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not ends.is_set():
            number += 1
            one = f"{name}-{number}"
            try:
                append(own, one)
                acknowledged.append(one)
            except Unavailable:
                doubtful.append(one)

    threads = [threading.Thread(target=write, args=[name]) for name in ("x", "y")]
    for thread in threads:
        thread.start()
    for _ in range(3):
        reached = len(acknowledged) + 20
        wait_until(lambda at=reached: len(acknowledged) >= at)  # type: ignore[misc]
        os.kill(postmaster(own), signal.SIGKILL)
    reached = len(acknowledged) + 20
    wait_until(lambda: len(acknowledged) >= reached)
    ends.set()
    for thread in threads:
        thread.join()
    got = written(own)[len(before) :]
    assert len(set(got)) == len(got)
    assert set(acknowledged) <= set(got)
    assert set(got) - set(acknowledged) <= set(doubtful)
    assert doubtful


def wait_until(condition: Any, patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_takes_long_to_recover_does_not_hold_the_clients(
    own: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    revived, goes_on = server.revived, threading.Event()

    def slowly(home: Path) -> Any:
        goes_on.wait(60)
        return revived(home)

    monkeypatch.setattr(server, "revived", slowly)
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    before = written(own)
    kill_and_wait(own)
    for _ in range(2):
        with pytest.raises(Unavailable, match="recovering"):
            append(own, "too early")
    goes_on.set()
    monkeypatch.setattr(storage, "PATIENCE_S", 60.0)
    append(own, "back")
    assert written(own) == [*before, "back"]


def test_a_server_of_ones_own_that_comes_back_is_used_again(own: Database) -> None:
    configured = Database(replace(own.address, home=None))
    append(configured, "configured-1")
    kill_and_wait(own)
    with pytest.raises(Unavailable, match="cannot be reached"):
        append(configured, "lost")
    append(own, "restarted")  # this one starts it
    configured.address = replace(own.address, home=None)
    append(configured, "configured-2")
    assert written(configured)[-3:] == ["configured-1", "restarted", "configured-2"]
    configured.close()


def test_what_was_hurried_is_on_the_disk_once_the_end_of_the_log_is_known(own: Database) -> None:
    with own.transaction() as connection:
        n_before = calls.end(connection)[0]
    for _ in range(3):
        with own.transaction(durable=False) as connection:
            calls.append(connection, {"route": "/health"})
    with own.transaction() as connection:
        told = calls.end(connection)
    kill_and_wait(own)
    with own.transaction() as connection:
        assert calls.end(connection) == told
    assert told[0] == n_before + 3


def test_a_full_disk_is_told_and_writes_nothing(database: Database) -> None:
    def full() -> None:
        with database.transaction() as connection:
            journal.append(connection, "transactions", transactions("t1"))
            raise errors.DiskFull('could not extend file "base/1/2": No space left on device')

    with pytest.raises(Unavailable, match=r"disk is full[\s\S]*free some space"):
        full()
    assert written(database) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 150 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def more_rows(connection: Connection) -> None:
    """A megabyte of rows, which need room in a table."""
    noise = pl.DataFrame({f"k{i}": [os.urandom(4000)] * 4 for i in range(60)})
    journal.append(connection, "transactions", transactions(*["noise"] * 4), noise)


def more_log(connection: Connection) -> None:
    """A megabyte in the server's write-ahead log alone: without room for that, the server itself ends."""
    connection.execute("SELECT pg_logical_emit_message(true, 'noise', repeat('x', 1000000))")


@pytest.mark.parametrize("more", [more_rows, more_log])
def test_a_disk_that_runs_full_loses_nothing_and_the_service_goes_on_when_there_is_room(
    small_disk: Path, more: Callable[[Connection], None]
) -> None:
    kept: list[str] = []
    ballast = small_disk / "ballast"
    with server.embedded(small_disk / ".pgdata") as address, closing(Database(address)) as made:
        storage.prepare(made)

        def write(one: str) -> None:
            with made.transaction() as connection:
                journal.locked(connection)
                journal.append(connection, "transactions", transactions(one))
                more(connection)
            kept.append(one)

        def fill() -> None:
            for number in range(200):
                write(f"fill-{number}")

        write("first")
        ballast.write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - 6_000_000))
        said: list[str] = []
        while len(said) < 3 or "disk is full" not in said[-1]:  # at first the server may just be gone
            with pytest.raises(Unavailable) as caught:
                fill()
            said.append(str(caught.value))
            assert len(said) < 20, said
        assert "free some space" in said[-1]
        ballast.unlink()
        write("there is room again")
        assert [one for one in written(made) if one != "noise"] == kept
        assert len(kept) > 2


def test_the_servers_log_names_no_values(own: Database) -> None:
    with own.transaction() as connection:
        answers.write_answers(connection, service_rows.answers("secret-1"), sequence=1, request_id="r")
    for ids in (["secret-1"], [f"secret-{i}" for i in range(9)]):  # one by one, and by COPY
        with pytest.raises(errors.UniqueViolation), own.transaction() as connection:
            answers.write_answers(connection, service_rows.answers(*ids), sequence=1, request_id="r")
    assert own.address.home is not None
    log = (own.address.home / "log").read_text()
    assert log.count("duplicate key value") == 2
    assert "secret" not in log


WRITER = """
import sys
from contextlib import closing
from pathlib import Path
from reperform.export import server
from reperform.service import journal
from reperform.service.database import Database, Unavailable
from tests.service_rows import transactions
name = sys.argv[1]
with server.embedded(Path(sys.argv[2])) as address, closing(Database(address)) as database:
    for number in range(1_000_000):
        try:
            with database.transaction() as connection:
                journal.locked(connection)
                journal.append(connection, "transactions", transactions(f"{name}-{number}"))
        except Unavailable:
            continue
        print(f"{name}-{number}", flush=True)
"""


def test_processes_and_server_are_killed_in_turn_and_nothing_acknowledged_is_lost(own: Database) -> None:
    assert own.address.home is not None
    before = written(own)
    acknowledged: dict[str, list[str]] = {}

    def writer(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", WRITER, name, str(own.address.home)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        acknowledged[name] = []
        thread = threading.Thread(target=read, args=[name, process])
        thread.start()
        readers.append(thread)
        return process

    def read(name: str, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or []:
            acknowledged[name].append(line.strip())

    def more(name: str) -> None:
        reached = len(acknowledged[name]) + 10
        wait_until(lambda: len(acknowledged[name]) >= reached)

    readers: list[threading.Thread] = []
    first, second = writer("p"), writer("q")
    more("p")
    more("q")
    first.kill()  # its connection may hold the order of events at this moment
    more("q")
    os.kill(postmaster(own), signal.SIGKILL)
    more("q")
    third = writer("r")
    more("r")
    os.kill(postmaster(own), signal.SIGKILL)
    more("r")
    more("q")
    for process in (second, third):
        process.kill()
    for process in (first, second, third):
        process.wait()
    for thread in readers:
        thread.join()
    got = written(own)[len(before) :]
    assert len(set(got)) == len(got)
    for name, told in acknowledged.items():
        assert [one for one in got if one in set(told)] == told, name


# --- with few rights ---


def test_a_user_who_owns_nothing_but_the_database_may_run_the_service(own: Database) -> None:
    with psycopg.connect(**own.address.parameters, autocommit=True) as connection:  # type: ignore[arg-type]
        connection.execute("CREATE ROLE clerk LOGIN")
        connection.execute("CREATE DATABASE clerks OWNER clerk")
        connection.execute("CREATE ROLE guest LOGIN")
    parameters = {**own.address.parameters, "user": "clerk", "dbname": "clerks"}
    with closing(Database(server.Address(parameters, "the clerk's", is_embedded=False))) as clerk:
        storage.prepare(clerk)
        assert append(clerk, "t1") == 1
        with clerk.transaction() as connection:
            calls.append(connection, {"route": "/x"})
            assert calls.end(connection)[0] == 1
        assert keys.create(clerk, "bank", ["read"])[0].name == "bank"
    with closing(Database(server.Address({**parameters, "user": "guest"}, "the guest's", is_embedded=False))) as guest:
        with pytest.raises(ReperformError, match=r"cannot be made[\s\S]*permission denied[\s\S]*GRANT"):
            storage.prepare(guest)
        with pytest.raises(errors.InsufficientPrivilege), guest.transaction() as connection:
            connection.execute("SELECT * FROM service.calls")


# --- beside the results ---


def test_a_new_export_leaves_the_service_alone_and_a_backup_holds_both(own: Database, tmp_path: Path) -> None:
    append(own, "kept")
    before = written(own)
    for amount in (1.5, 2.5):
        export(own, amount)
    assert written(own) == before
    with pytest.raises(errors.InsufficientPrivilege), own.transaction() as connection:
        connection.execute("SET LOCAL ROLE reader; SELECT * FROM service.api_keys")
    restored = restored_copy(own, tmp_path / "backup.dump")
    with server.connect(restored) as connection:
        assert connection.execute("SELECT amount_base FROM results.transactions").fetchone() == (2.5,)
    copy = Database(restored)
    storage.prepare(copy)
    assert written(copy) == before
    assert append(copy, "goes on") == len(before) + 1
    copy.close()


def export(database: Database, amount: float) -> None:
    from reperform.export import loading  # noqa: PLC0415  # only here
    from reperform.export.catalog import Table  # noqa: PLC0415  # only here
    from reperform.params import ExportParams  # noqa: PLC0415  # only here

    frame = pl.DataFrame({"transaction_id": ["p1"], "amount_base": [amount]})
    table = Table("transactions", "data/x", "Transactions.", ("transaction_id",), dict(frame.schema), lambda: frame)
    filled = loading.Filled(table, frame)
    with server.connect(database.address) as connection:
        settings = ExportParams(db_schema="results", reader_role="reader", features_of="none")
        loading.load(connection, [filled], [], settings, where="the test's database")


def restored_copy(database: Database, dump: Path) -> server.Address:
    """A new database that holds a backup of this one."""
    reach = ["--host", database.address.parameters["host"], "--username", "postgres"]
    programs = server._programs()
    subprocess.run(
        [programs / "pg_dump", *reach, "--format=custom", "--file", dump, database.address.parameters["dbname"]],
        check=True,
    )
    with database.transaction() as connection:
        connection.execute("SELECT 1")
    with psycopg.connect(**database.address.parameters, autocommit=True) as connection:  # type: ignore[arg-type]
        connection.execute("DROP DATABASE IF EXISTS restored")
        connection.execute("CREATE DATABASE restored")
    subprocess.run([programs / "pg_restore", *reach, "--dbname", "restored", dump], check=True)
    return server.Address({**database.address.parameters, "dbname": "restored"}, "the copy", is_embedded=True)
