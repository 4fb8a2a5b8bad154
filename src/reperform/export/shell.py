"""Open psql on the exported results, as the role that can only read."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reperform import spreadsheet
from reperform.errors import ReperformError
from reperform.export import server
from reperform.params import ExportParams


def psql(root: Path, params: ExportParams, arguments: Sequence[str] = ()) -> int:
    """Run psql with `arguments`; its exit code.

    On the embedded server the reader role logs in by itself. On a configured one, which knows no password for it, the
    configured user takes the role on.
    """
    program = server.psql_program()
    with server.reached(root) as address:
        _check(address, params)
        parameters = dict(address.parameters)
        options = [f"-c search_path={params.db_schema}", "-c default_transaction_read_only=on"]
        if address.is_embedded:
            parameters["user"] = params.reader_role
        else:
            options.append(f"-c role={params.reader_role}")
        environment = {**os.environ, **_variables(parameters), "PGOPTIONS": " ".join(options)}
        # Ctrl-C belongs to psql, which then cancels its query.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            return _called([program, *arguments], environment)
        finally:
            signal.signal(signal.SIGINT, before)


def with_address(root: Path, command: Sequence[str]) -> int:
    """Run any program of PostgreSQL, such as `pg_dump`, on the database; its exit code.

    The address is in libpq's variables, the embedded server runs while the program does, and programs of the embedded
    server's version come first on the PATH: `pg_dump` refuses a server that is newer than itself.

    Raises:
        ReperformError: when there is no such program, or the database cannot be reached.
    """
    path = os.pathsep.join([*server.program_folders(), os.environ.get("PATH", "")])
    program = shutil.which(command[0], path=path)
    if program is None:
        raise ReperformError(
            f"There is no program {command[0]!r}.",
            expected="a program of PostgreSQL, or one on the PATH",
            got="none",
            where="PATH",
            fix="`python -m reperform database -- pg_dump --version` shows the form",
        )
    with server.reached(root) as address:
        server.connect(address).close()  # what is wrong with an address is said in our words
        environment = {**os.environ, **_variables(dict(address.parameters)), "PATH": path}
        return subprocess.call([program, *command[1:]], env=environment)  # noqa: S603  # the user's own command


def _called(command: list[str], environment: dict[str, str]) -> int:
    """Run psql; what it prints as CSV for a file passes through `spreadsheet`, so that no cell is run as a formula."""
    asked = "-c" in command or not sys.stdin.isatty()
    if "--csv" not in command or not asked:
        return subprocess.call(command, env=environment)  # noqa: S603  # psql, with the user's own arguments
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:  # noqa: S603  # likewise
        if process.stdout is not None:
            spreadsheet.neutral_csv(io.TextIOWrapper(process.stdout, encoding="utf-8", newline=""), sys.stdout)
        return int(process.wait())


def _variables(parameters: dict[str, str]) -> dict[str, str]:
    """Parameters as libpq's variables: on a command line, every user of the machine could read a password."""
    names = {"dbname": "PGDATABASE", "host": "PGHOST", "hostaddr": "PGHOSTADDR"}
    return {
        names.get(key, f"PG{key.upper().replace('_', '')}"): value
        for key, value in parameters.items()
        if key not in ("connect_timeout", "options", "application_name")
    } | {"PGCONNECT_TIMEOUT": str(server.CONNECT_SECONDS)}


def _check(address: server.Address, params: ExportParams) -> None:
    """Say so when nothing has been loaded yet, before psql says it in other words."""
    with server.connect(address) as connection:
        found = connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [params.db_schema]).rowcount
        role = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [params.reader_role]).rowcount
    if not found or not role:
        raise ReperformError(
            "Nothing has been exported into this database yet.",
            expected=f"schema {params.db_schema} and role {params.reader_role}",
            got="neither" if not found and not role else "one of them",
            where=address.shown,
            fix="run `python -m reperform export`",
        )
