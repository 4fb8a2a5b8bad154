"""The embedded server starts wherever the project lies, and outlives neither its users nor their accidents."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from reperform.errors import ReperformError
from reperform.export import server

HOLD = """
import sys, time
from pathlib import Path
from reperform.export import server
with server.embedded(Path(sys.argv[1])) as address:
    server.connect(address).close()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rp-"))
    yield folder
    shutil.rmtree(folder)


def answers(address: server.Address) -> bool:
    with server.connect(address) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def postmaster(home: Path) -> int:
    return int((home / "cluster" / "postmaster.pid").read_text().split()[0])


def is_running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends(number: int, patience_s: float = 20) -> bool:
    """Whether a process ends: its files are gone a moment before itself."""
    deadline = time.monotonic() + patience_s
    while is_running(number) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(number)


def holder(home: Path) -> "subprocess.Popen[str]":
    """Another process that uses the server."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_server_runs_while_it_is_used_and_not_longer(home: Path) -> None:
    with server.embedded(home) as address:
        assert answers(address)
        number = postmaster(home)
    assert ends(number)


def test_a_server_that_a_killed_process_left_behind_is_used_and_then_stopped(home: Path) -> None:
    process = holder(home)
    left_behind = postmaster(home)
    process.kill()
    process.wait()
    assert is_running(left_behind)
    with server.embedded(home) as address:
        assert answers(address)
        assert postmaster(home) == left_behind
    assert ends(left_behind)


def test_a_server_that_was_killed_itself_is_started_again(home: Path) -> None:
    with server.embedded(home):
        os.kill(postmaster(home), signal.SIGKILL)
        with server.embedded(home) as address:
            assert answers(address)


def test_a_stale_lock_whose_number_belongs_to_another_process_is_not_trusted(home: Path) -> None:
    with server.embedded(home):
        lines = (home / "cluster" / "postmaster.pid").read_text().split("\n")
    stale = "\n".join([str(os.getpid()), *lines[1:]])
    for text in (stale, "", "no number\n"):
        (home / "cluster" / "postmaster.pid").write_text(text)
        with server.embedded(home) as address:
            assert answers(address)


def test_the_last_of_two_users_stops_the_server(home: Path) -> None:
    process = holder(home)
    number = postmaster(home)
    with server.embedded(home) as address:
        process.kill()
        process.wait()
        assert answers(address)
    assert ends(number)
    with server.embedded(home) as address:
        with server.embedded(home) as second:
            assert answers(second)
        assert answers(address)


def test_a_folder_too_deep_for_a_socket_and_full_of_odd_characters_will_do(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30) / "it's, a b" / ".pgdata"
    with server.embedded(deep) as address:
        assert answers(address)
        folder = Path(address.parameters["host"])
        assert deep not in folder.parents
    assert not folder.exists()


def test_nobody_else_may_enter_the_folder_of_the_socket(home: Path) -> None:
    with server.embedded(home) as address:
        assert Path(address.parameters["host"]).stat().st_mode & 0o077 == 0


def test_a_start_that_was_killed_half_way_is_begun_anew(tmp_path: Path) -> None:
    home = tmp_path / ".pgdata"
    (home / "cluster.new" / "base").mkdir(parents=True)
    with server.embedded(home) as address:
        assert answers(address)


def test_data_of_another_version_are_explained(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ReperformError, match=r"another version[\s\S]*remove .pgdata"), server.embedded(tmp_path):
        pass


def test_a_server_that_cannot_start_says_why(home: Path, tmp_path: Path) -> None:
    with server.embedded(home):
        pass
    broken = tmp_path / "broken"
    shutil.copytree(home, broken, ignore=shutil.ignore_patterns("socket"))
    if os.geteuid() == 0:
        owner = (home / "cluster").stat()
        for path in (broken / "cluster", *(broken / "cluster").rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
    (broken / "cluster" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(ReperformError, match=r"did not start[\s\S]*no_such_setting"), server.embedded(broken):
        pass


# --- what the scoring service keeps there ---


def test_a_folder_that_holds_answers_is_not_to_be_removed(tmp_path: Path) -> None:
    server.keep(tmp_path)
    server.keep(tmp_path)
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ReperformError, match=r"another version[\s\S]*do not remove .pgdata"), server.embedded(tmp_path):
        pass


def test_a_database_that_is_gone_is_not_silently_made_anew_where_answers_were_kept(home: Path, tmp_path: Path) -> None:
    kept = tmp_path / ".pgdata"
    with server.embedded(kept):
        server.keep(kept)
    (kept / "cluster").rename(kept / "elsewhere")
    with pytest.raises(ReperformError, match=r"gone or damaged[\s\S]*restore the last backup"), server.embedded(kept):
        pass
    (kept / "elsewhere").rename(kept / "cluster")
    with server.embedded(kept) as address:
        assert answers(address)


def test_a_server_that_was_killed_comes_back_for_who_holds_it(home: Path) -> None:
    with server.embedded(home) as address:
        os.kill(postmaster(home), signal.SIGKILL)
        again, child = server.revived(home)
        assert child is not None
        assert answers(again)
        assert server.revived(home)[1] is None  # it runs
        assert again.home == address.home == home
    assert ends(child.pid)


# --- a server of one's own ---


def test_an_address_that_nobody_listens_on_is_explained_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = server.configured(f"postgresql://ann:s3cret@127.0.0.1:{port}/risk")
    with pytest.raises(ReperformError, match=r"cannot be reached[\s\S]*ann@127.0.0.1") as caught:
        server.connect(address)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_given_up_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = server.configured(f"postgresql://ann@127.0.0.1:{silent.getsockname()[1]}/risk?connect_timeout=2")
        result: list[str] = []
        thread = threading.Thread(target=lambda: result.append(refusal(address)))
        thread.start()
        thread.join(timeout=30)
    assert "cannot be reached" in result[0]


def refusal(address: server.Address) -> str:
    with pytest.raises(ReperformError) as caught:
        server.connect(address)
    return str(caught.value)


@pytest.mark.parametrize("url", ["s3cret", "postgresql://ann:s3cret@host:port:1/x", "mysql://ann:s3cret@host/x"])
def test_an_address_that_is_none_is_not_repeated(url: str) -> None:
    with pytest.raises(ReperformError, match="REPERFORM_DATABASE_URL") as caught:
        server.connect(server.configured(url))
    assert "s3cret" not in str(caught.value)


def test_a_password_is_not_shown() -> None:
    shown = server.configured("postgresql://ann:s3cret@db.example:6543/risk").shown
    assert shown == "ann@db.example:6543/risk"
    assert server.configured("host=db.example password=s3cret").shown == "db.example:5432/"
