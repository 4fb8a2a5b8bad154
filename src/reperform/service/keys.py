"""API keys: who may ask. Only hashes are stored, so nobody can read a key out of the database or a backup.

A key is `rpf_<id>_<secret>`: the id is public and stands in the log of calls, the secret has 256 random bits, so plain
SHA-256 is enough (there is nothing to guess). Changes of keys reach every process within `CACHE_S` seconds.
"""

import argparse
import hashlib
import hmac
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from psycopg import rows as row_factories

from reperform.errors import ReperformError
from reperform.service.database import Connection, Database

Scope = Literal["score", "read", "admin"]
SCOPES: tuple[Scope, ...] = ("score", "read", "admin")
FORM = re.compile(r"rpf_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
CACHE_S = 5.0
CACHED = 1_000  # keys that are remembered at once, so that made-up ones cannot fill the memory
REQUESTS_PER_MINUTE = 6_000
GRACE = timedelta(hours=24)
LOOK_UP = "SELECT * FROM service.api_keys WHERE key_id = %s"


@dataclass(frozen=True)
class Key:
    """Who asks, and what they may.

    Args:
        key_id: public part of the key.
        name: whom it was given to.
        scopes: what it opens; `admin` opens everything.
        expires_at: when it ends; None: never.
        requests_per_minute: how often it may ask.
    """

    key_id: str
    name: str
    scopes: frozenset[Scope]
    expires_at: datetime | None
    requests_per_minute: int

    def opens(self, scope: Scope) -> bool:
        """Whether it may do this."""
        return scope in self.scopes or "admin" in self.scopes


class KeyRefused(ReperformError):  # noqa: N818  # read as a sentence where it is raised
    """A key that opens nothing (HTTP 401)."""


class KeyUnknown(KeyRefused):
    """A key that was never given out, or has been replaced."""


class KeyExpired(KeyRefused):
    """A key whose time is over."""


class KeyRevoked(KeyRefused):
    """A key that was withdrawn."""


class _Cache:
    """Rows of keys, and ids that do not exist, for a few seconds."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[float, dict[str, Any] | None]] = {}
        self._mutex = threading.Lock()

    def get(self, key_id: str) -> tuple[bool, dict[str, Any] | None]:
        with self._mutex:
            at, row = self._rows.get(key_id, (float("-inf"), None))
        return time.monotonic() - at < CACHE_S, row

    def put(self, key_id: str, row: dict[str, Any] | None) -> None:
        with self._mutex:
            if len(self._rows) >= CACHED:
                self._rows.clear()
            self._rows[key_id] = (time.monotonic(), row)


_MUTEX = threading.Lock()
_CACHES: WeakKeyDictionary[Database, _Cache] = WeakKeyDictionary()


def checked(database: Database, secret: str) -> Key:
    """Who holds this key.

    Args:
        database: where the keys are; what it said is used for `CACHE_S` seconds.
        secret: the whole key, as the client sent it.

    Raises:
        KeyUnknown: when there is no such key.
        KeyExpired: when its time is over.
        KeyRevoked: when it was withdrawn.
        Unavailable: when the database cannot be asked.
    """
    form = FORM.fullmatch(secret)
    if form is None:
        raise _unknown("text of another form")
    row = _row(database, form[1])
    now = datetime.now(UTC)
    if row is None or not _matches(row, secret, now):
        raise _unknown(f"key {form[1]} with a secret that is not, or no longer, its own")
    if row["revoked_at"] is not None:
        raise KeyRevoked(
            "This API key was revoked.", got=f"key {form[1]}", where="header Authorization", fix="ask for a new key"
        )
    if row["expires_at"] is not None and row["expires_at"] <= now:
        raise KeyExpired(
            "This API key has expired.",
            got=f"key {form[1]}, which ended at {row['expires_at']:%Y-%m-%dT%H:%M:%SZ}",
            where="header Authorization",
            fix="ask for a new key",
        )
    return _key(row)


def _row(database: Database, key_id: str) -> dict[str, Any] | None:
    with _MUTEX:
        cache = _CACHES.setdefault(database, _Cache())
    is_fresh, row = cache.get(key_id)
    if not is_fresh:
        row = _read(database, key_id)
        cache.put(key_id, row)
    return row


def _read(database: Database, key_id: str) -> dict[str, Any] | None:
    with database.transaction(durable=False) as connection:
        return connection.cursor(row_factory=row_factories.dict_row).execute(LOOK_UP, [key_id]).fetchone()


def _matches(row: dict[str, Any], secret: str, now: datetime) -> bool:
    """Whether the secret is the key's own, or was until its last rotation a short while ago."""
    given = _sha256(secret)
    if hmac.compare_digest(given, row["secret_sha256"]):
        return True
    before, until = row["previous_sha256"], row["previous_until"]
    return before is not None and until > now and hmac.compare_digest(given, before)


def _key(row: dict[str, Any]) -> Key:
    scopes = frozenset(cast("Iterable[Scope]", row["scopes"]))
    return Key(row["key_id"], row["name"], scopes, row["expires_at"], row["requests_per_minute"])


def _unknown(got: str) -> KeyUnknown:
    return KeyUnknown(
        "This API key is not known.",
        expected="a key of the form rpf_<id>_<secret> that was given out and not replaced",
        got=got,
        where="header Authorization",
        fix="check the key, or ask for a new one: python -m reperform keys create NAME",
    )


# --- for those who give them out ---


def create(
    database: Database,
    name: str,
    scopes: Iterable[str],
    *,
    days: float | None = 90,
    requests_per_minute: int = REQUESTS_PER_MINUTE,
) -> tuple[Key, str]:
    """Make a key.

    Args:
        database: where it is stored.
        name: whom it is for.
        scopes: what it opens, of `SCOPES`.
        days: how long it lives; None: until it is revoked.
        requests_per_minute: how often it may ask.

    Returns:
        The key, and its secret, which cannot be had again.

    Raises:
        ReperformError: when a value is not possible.
    """
    wanted = frozenset(scopes)
    _check(name, wanted, days, requests_per_minute)
    key_id = secrets.token_hex(6)
    secret = _new_secret(key_id)
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO service.api_keys (key_id, name, scopes, secret_sha256, requests_per_minute, expires_at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [key_id, name.strip(), sorted(wanted), _sha256(secret), requests_per_minute, expires_at],
        )
        made = _stored(connection, key_id)
    return _key(made), secret


def rotate(database: Database, key_id: str, *, grace: timedelta = GRACE) -> tuple[Key, str]:
    """Give a key a new secret; the one before is taken, too, until `grace` has passed.

    Raises:
        ReperformError: when there is no such key, or it was revoked or has expired, or the grace is negative.
    """
    if grace < timedelta(0):
        raise ReperformError(
            "A key cannot be rotated like this.",
            expected="a grace of 0 hours or more",
            got=f"{grace}",
            where="python -m reperform keys rotate",
            fix="correct it and run the command again",
        )
    secret = _new_secret(key_id)
    with database.transaction() as connection:
        row = _stored(connection, key_id, lock=True)
        if row["revoked_at"] is not None or (row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC)):
            raise ReperformError(
                "This key is over; a new secret would not bring it back.",
                got=f"key {key_id}, {state(row)}",
                where="table service.api_keys",
                fix="make a new key: python -m reperform keys create NAME",
            )
        connection.execute(
            "UPDATE service.api_keys SET secret_sha256 = %s, previous_sha256 = secret_sha256, rotated_at = now(),"
            " previous_until = now() + %s WHERE key_id = %s",
            [_sha256(secret), grace, key_id],
        )
    return _key(row), secret


def revoke(database: Database, key_id: str) -> None:
    """Withdraw a key for good; every process knows within `CACHE_S` seconds.

    Raises:
        ReperformError: when there is no such key.
    """
    with database.transaction() as connection:
        _stored(connection, key_id, lock=True)
        connection.execute(
            "UPDATE service.api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = %s", [key_id]
        )


def listed(database: Database) -> list[dict[str, Any]]:
    """All keys with their `state`, oldest first; without any hash."""
    with database.transaction(durable=False) as connection:
        cursor = connection.cursor(row_factory=row_factories.dict_row)
        got = cursor.execute("SELECT * FROM service.api_keys ORDER BY created_at, key_id").fetchall()
    hidden = ("secret_sha256", "previous_sha256")
    return [{**{name: row[name] for name in row if name not in hidden}, "state": state(row)} for row in got]


def state(row: dict[str, Any]) -> str:
    """What has become of a key: valid, expired or revoked."""
    if row["revoked_at"] is not None:
        return "revoked"
    over = row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC)
    return "expired" if over else "valid"


def main(database: Database, arguments: argparse.Namespace) -> int:
    """Command `keys`: create, list, rotate or revoke."""
    if arguments.action == "list":
        print("\n".join(lines(listed(database))))
        return 0
    if arguments.action == "revoke":
        revoke(database, arguments.id)
        print(f"revoked {arguments.id}; every process knows within {CACHE_S:.0f} seconds")
        return 0
    if arguments.action == "rotate":
        key, secret = rotate(database, arguments.id, grace=timedelta(hours=arguments.grace_hours))
        print(f"key {key.key_id} ({key.name}) has a new secret; the old one ends in {arguments.grace_hours:g} hours")
    else:
        key, secret = create(
            database,
            arguments.name,
            [scope.strip() for scope in arguments.scopes.split(",")],
            days=arguments.days or None,
            requests_per_minute=arguments.per_minute,
        )
        print(f"key {key.key_id} for {key.name}: {', '.join(sorted(key.scopes))}; until {_day(key.expires_at)}")
    print("its secret, shown this once:", file=sys.stderr)
    print(secret)
    return 0


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Keys for people, one a line."""
    if not rows:
        return ["no keys yet; next: python -m reperform keys create NAME"]
    return [
        f"{row['key_id']}  {row['state']:<8}{_day(row['expires_at']):<12}{','.join(row['scopes']):<18}"
        f"{row['requests_per_minute']:>7}/min  {row['name']}"
        for row in rows
    ]


def _day(moment: datetime | None) -> str:
    return "no end" if moment is None else f"{moment:%Y-%m-%d}"


def _stored(connection: Connection, key_id: str, *, lock: bool = False) -> dict[str, Any]:
    cursor = connection.cursor(row_factory=row_factories.dict_row)
    row = cursor.execute(LOOK_UP + (" FOR UPDATE" if lock else ""), [key_id]).fetchone()
    if row is None:
        raise ReperformError(
            "There is no such key.",
            expected="the id of a key, 12 hexadecimal digits",
            got=key_id[:80],
            where="table service.api_keys",
            fix="python -m reperform keys list shows them",
        )
    return row


def _check(name: str, scopes: frozenset[str], days: float | None, requests_per_minute: int) -> None:
    wrong = [
        *([] if name.strip() and name.isprintable() else [f"name {name!r}"]),
        *[f"scope {scope!r}" for scope in sorted(scopes - set(SCOPES))],
        *([] if scopes else ["no scope"]),
        *([] if days is None or 0 < days <= 36_500 else [f"{days} days"]),  # noqa: PLR2004  # a century
        *([] if requests_per_minute > 0 else [f"{requests_per_minute} requests per minute"]),
    ]
    if wrong:
        raise ReperformError(
            "A key cannot be made like this.",
            expected=f"a name, scopes of {', '.join(SCOPES)}, days and requests per minute above 0",
            got=", ".join(wrong),
            where="python -m reperform keys create",
            fix="correct it and run the command again",
        )


def _new_secret(key_id: str) -> str:
    return f"rpf_{key_id}_{secrets.token_urlsafe(32)}"


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
