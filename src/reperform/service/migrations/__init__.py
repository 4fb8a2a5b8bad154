"""Bring schema `service` up to date: numbered SQL files, each run once and never changed afterwards.

001 to 099 are storage's, 100 to 199 the models', 200 to 299 those of background work. The number is the order in which
a new database runs them; an older database runs those that it lacks. What has run is recorded with its SHA-256, so a
file that was edited later is refused: a database that exists needs a new file, not another past.
"""

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import psycopg

from reperform.errors import ReperformError

NAME = re.compile(r"\d{3}_\w+\.sql")
BOOKKEEPING = """
CREATE SCHEMA IF NOT EXISTS service;
COMMENT ON SCHEMA service IS
    'State of the scoring service: what it was told and what it answered. It stands nowhere else.';
CREATE TABLE IF NOT EXISTS service.migrations (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE service.migrations IS 'Changes of this schema that have been made, each once.';
COMMENT ON COLUMN service.migrations.name IS 'File in src/reperform/service/migrations/.';
COMMENT ON COLUMN service.migrations.sha256 IS 'Of the file as it was run.';
COMMENT ON COLUMN service.migrations.applied_at IS 'When it was run.';
REVOKE ALL ON SCHEMA service FROM PUBLIC;
"""


def known() -> dict[str, str]:
    """Name to SQL text of every migration of this code, in order."""
    found = {one.name: one for one in files(__name__).iterdir() if NAME.fullmatch(one.name)}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def apply(
    connection: psycopg.Connection[tuple[Any, ...]], given: Mapping[str, str] | None = None, *, where: str = ""
) -> list[str]:
    """Run what has not been run; all of it is committed with the caller's transaction, or none.

    Args:
        connection: with an open transaction.
        given: migrations by name. None: those of this code.
        where: how messages name the database.

    Returns:
        Names of those that were run now.

    Raises:
        ReperformError: when a migration was changed after it ran, or the database has one that this code lacks.
    """
    wanted = known() if given is None else given
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('reperform.service.migrations', 0))")
    if connection.execute("SELECT to_regclass('service.migrations') IS NOT NULL").fetchone() != (True,):
        connection.execute(BOOKKEEPING)
    done = dict(connection.execute("SELECT name, sha256 FROM service.migrations").fetchall())
    _check(done, wanted, where)
    new = [name for name in sorted(wanted) if name not in done]
    for name in new:
        connection.execute(wanted[name].encode())
        connection.execute("INSERT INTO service.migrations VALUES (%s, %s)", [name, _sha256(wanted[name])])
    return new


def _check(done: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
    unknown = sorted(set(done) - set(wanted))
    if unknown:
        raise ReperformError(
            "The service's tables are newer than this code.",
            expected=f"migrations up to {max(wanted, default='none')}",
            got=", ".join(unknown),
            where=where,
            fix="update this installation, or name another database",
        )
    changed = sorted(name for name, digest in done.items() if _sha256(wanted[name]) != digest)
    if changed:
        raise ReperformError(
            "A migration was changed after it had been run.",
            expected="each file as it was run; further changes stand in a new file",
            got=", ".join(changed),
            where=where,
            fix="restore the file (git log names its commits), and add a new one with the next number",
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
