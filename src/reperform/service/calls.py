"""The log of calls: every request that was answered, in a chain of hashes like that of data/audit/log.jsonl.

An entry holds the hash of the one before it and its own, over its text as compact JSON with sorted keys. Whoever
changes, removes, swaps or inserts an entry breaks the chain; whoever cuts off its end is found by an earlier last hash,
which `keep` writes to data/audit/log.jsonl. `tools/verify.py --calls FILE` checks both. No personal data stand in it:
no accounts, no amounts, no addresses; bodies only as hashes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reperform import audit
from reperform.errors import ReperformError
from reperform.service.database import Connection, Database

EVENT = "calls"  # of the entry in data/audit/log.jsonl that keeps the end of this log
FACTS = (
    "key_id",
    "method",
    "model_version",
    "n_transactions",
    "request_id",
    "request_sha256",
    "response_sha256",
    "route",
    "status",
)
LONGEST = 200  # characters of a fact
ROWS_AT_ONCE = 5_000

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('reperform.service.calls', 0))"
# Hashed by the database, so that nobody waits for the last hash to travel there and back.
APPEND = """
INSERT INTO service.calls (sequence, hash, entry)
SELECT sequence, encode(sha256(convert_to(entry, 'UTF8')), 'hex'), entry FROM (
    SELECT sequence, %(head)s::text || previous || %(middle)s::text || sequence::text || %(tail)s::text AS entry FROM (
        SELECT coalesce(last.sequence + 1, 0) AS sequence, coalesce(last.hash, repeat('0', 64)) AS previous
        FROM (VALUES (1)) AS one LEFT JOIN (
            SELECT sequence, hash FROM service.calls ORDER BY sequence DESC LIMIT 1
        ) AS last ON true
    ) AS place
) AS made
"""


def append(connection: Connection, facts: Mapping[str, str | int | None]) -> None:
    """Add one call to the log. The last thing to do in a transaction: others wait from here until it ends.

    Args:
        connection: with an open transaction.
        facts: of `FACTS`; those that are not given are null.

    Raises:
        ReperformError: when a fact is not one of these; that is how personal data would come in.
    """
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise ReperformError(
            "The log of calls takes no such facts.",
            expected=", ".join(FACTS),
            got=", ".join(unknown),
            where="an entry for the log of calls",
            fix="report it; nothing was written",
        )
    head, middle, tail = _around(facts, datetime.now(UTC))
    with connection.pipeline():
        connection.execute(LOCK)
        # A statement of its own: it sees what was committed while the one before was waiting.
        connection.execute(APPEND, {"head": head, "middle": middle, "tail": tail})


def _around(facts: Mapping[str, str | int | None], now: datetime) -> tuple[str, str, str]:
    """The entry's text before the previous hash, between it and the sequence, and after that."""
    entry = {name: _plain(facts.get(name)) for name in FACTS}
    whole = {**entry, "event": "call", "time": now.isoformat(timespec="milliseconds")}
    names = sorted(whole)
    parts = [
        [name for name in names if name < "previous"],
        [name for name in names if "previous" < name < "sequence"],
        [name for name in names if name > "sequence"],
    ]
    head, middle, tail = (",".join(f"{_json(name)}:{_json(whole[name])}" for name in part) for part in parts)
    return f'{{{head},"previous":"', f'",{middle},"sequence":', f",{tail}}}"


def _plain(value: str | int | None) -> str | int | None:
    """A value that every JSON reader reads alike: no text without end, no half characters."""
    return value[:LONGEST].encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _json(value: str | int | None) -> str:
    return json.dumps(value, ensure_ascii=False)


def end(connection: Connection) -> tuple[int, str]:
    """How many entries the log has, and the hash of the last one.

    In a durable transaction they are on the disk when it ends, even if they were written in hasty ones: to lock a row
    is to write.
    """
    row = connection.execute(
        "SELECT sequence, hash FROM service.calls ORDER BY sequence DESC LIMIT 1 FOR UPDATE"
    ).fetchone()
    return (int(row[0]) + 1, str(row[1])) if row else (0, audit.FIRST)


def export(database: Database, to: Path) -> tuple[int, str]:
    """Write the log to a file, a JSON object a line; the file is whole or as it was before.

    Returns:
        How many entries, and the hash of the last one.

    Raises:
        ReperformError: when the file cannot be written.
    """
    n, last = 0, audit.FIRST
    made = to.with_name(f".{to.name}.{os.getpid()}.new")
    try:
        with database.transaction() as connection, made.open("w", encoding="utf-8", newline="\n") as file:
            for last, line in _lines(connection):  # noqa: B007  # the last one is told
                file.write(line)
                n += 1
            end(connection)
            file.flush()
            os.fsync(file.fileno())
        made.replace(to)
    except OSError as error:
        made.unlink(missing_ok=True)
        raise ReperformError(
            "The log of calls cannot be written.",
            expected="a file in a folder that exists and has room",
            got=error.strerror or str(error),
            where=str(to),
            fix="name another file",
        ) from error
    return n, last


def _lines(connection: Connection) -> Iterator[tuple[str, str]]:
    with connection.cursor(name="calls") as cursor:
        cursor.itersize = ROWS_AT_ONCE
        cursor.execute("SELECT hash, entry FROM service.calls ORDER BY sequence")
        for own, entry in cursor:
            whole: dict[str, Any] = {**json.loads(entry), "hash": own}
            yield own, json.dumps(whole, sort_keys=True, ensure_ascii=False) + "\n"


def keep(log: Path, n: int, last: str, *, now: datetime) -> None:
    """Note in data/audit/log.jsonl where the log of calls ended, so that a missing end is found later."""
    audit.append(log, EVENT, {"n_calls": n, "last_call": last}, now=now)


def kept(database: Database, log: Path) -> tuple[int, str]:
    """Note in `log` where the log of calls ends now; how many entries it has, and the hash of the last one."""
    with database.transaction() as connection:
        n, last = end(connection)
    if n:
        keep(log, n, last, now=datetime.now(UTC))
    return n, last


def main(database: Database, log: Path, to: Path | None) -> int:
    """Command `calls`: say where the log of calls ends, keep that, and export the log if asked to."""
    if to is None:
        n, last = kept(database, log)
    else:
        n, last = export(database, to)
        if n:
            keep(log, n, last, now=datetime.now(UTC))
        print(f"calls: written to {to}; next: python tools/verify.py --calls {to}")
    print(f"calls: {n:,} entries, last hash {last}{', kept in ' + log.name if n else ''}")
    return 0
