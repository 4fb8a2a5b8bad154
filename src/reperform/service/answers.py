"""What was answered: a row for each transaction and model, and the response as it was sent.

Rows, response and event are written in one transaction, before anything is sent.
"""

from collections.abc import Sequence
from typing import Any, Literal

import polars as pl
import psycopg
from psycopg import rows as row_factories

from reperform.errors import ReperformError
from reperform.service import journal

Connection = psycopg.Connection[tuple[Any, ...]]
Role = Literal["champion", "challenger"]

# Columns that the scorer gives, in the table's order; the others are told here.
SCORED = (
    "transaction_id",
    "account_id",
    "counterparty_id",
    "entity_id",
    "booked_at",
    "known_at",
    "amount_base",
    "score",
    "probability",
    "is_alert",
    "members",
    "reasons",
    "model_version",
    "data_version",
)
COLUMNS = (*SCORED, "role", "sequence", "request_id")
FEW = 4  # rows that are sent faster one by one than by COPY
ROWS_PER_CHUNK = 10_000
RESPONSE_DAYS = 7
FORGOTTEN_AT_ONCE = 4  # more than one for each new one, so that a backlog melts
FORGET = """
DELETE FROM service.responses WHERE (key_id, idempotency_key) IN (
    SELECT key_id, idempotency_key FROM service.responses WHERE at < now() - make_interval(days => %s)
    ORDER BY at LIMIT %s FOR UPDATE SKIP LOCKED
)
"""
INSERT = f"INSERT INTO service.answers ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"  # noqa: S608  # names of ours
COPY = f"COPY service.answers ({', '.join(COLUMNS)}) FROM STDIN (FORMAT csv)"


class Conflict(ReperformError):  # noqa: N818  # read as a word where it is raised
    """An idempotency key that another request used before (HTTP 409)."""


def held(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Which of these transactions were answered already."""
    got = connection.execute(
        "SELECT transaction_id FROM service.answers WHERE transaction_id = ANY (%s) AND role = 'champion'", [list(ids)]
    )
    return {row[0] for row in got}


def write_answers(
    connection: Connection, answers: pl.DataFrame, *, sequence: int, request_id: str, role: Role = "champion"
) -> None:
    """Write answers.

    Args:
        connection: with an open transaction.
        answers: with the columns `SCORED`; members and reasons as JSON text.
        sequence: event in the journal that the transactions came with.
        request_id: request or job that they came with.
        role: whether these are the answers, or what a challenger would have said.
    """
    if not answers.height:
        return
    frame = answers.select(
        *SCORED,
        pl.lit(role).alias("role"),
        pl.lit(sequence, pl.Int64).alias("sequence"),
        pl.lit(request_id).alias("request_id"),
    )
    with connection.cursor() as cursor:
        if frame.height <= FEW:
            for row in frame.rows():
                cursor.execute(INSERT, row, prepare=True)
            return
        with cursor.copy(COPY) as copy:
            for start in range(0, frame.height, ROWS_PER_CHUNK):
                chunk = frame.slice(start, ROWS_PER_CHUNK)
                # Quoted text, bare nulls: so an empty text and no text stay apart.
                copy.write(chunk.write_csv(include_header=False, quote_style="non_numeric", line_terminator="\n"))


def answer_of(connection: Connection, transaction_id: str) -> list[dict[str, Any]]:
    """All answers for a transaction, the champion's first; none when there was none."""
    with connection.cursor(row_factory=row_factories.dict_row) as cursor:
        return cursor.execute(
            "SELECT * FROM service.answers WHERE transaction_id = %s ORDER BY role DESC, model_version DESC",
            [transaction_id],
        ).fetchall()


def first_response(
    connection: Connection, key_id: str, idempotency_key: str, request_sha256: str
) -> tuple[int, bytes] | None:
    """What was answered to the same request before, as status and body; None when this is the first.

    Until the transaction ends, a second request with the same key waits here. Call it before `journal.locked`, so that
    a repeated request need not wait for others.

    Args:
        connection: with an open transaction.
        key_id: API key of the client.
        idempotency_key: what the client called its request.
        request_sha256: of method, path and body.

    Raises:
        Conflict: when the key belongs to another request.
    """
    with connection.pipeline():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", [f"reperform.service.{key_id} {idempotency_key}"]
        )
        # A statement of its own: it sees what was committed while the one before was waiting.
        got = connection.execute(
            "SELECT request_sha256, status, body FROM service.responses WHERE key_id = %s AND idempotency_key = %s",
            [key_id, idempotency_key],
            binary=True,
        )
    row = got.fetchone()
    if row is None:
        return None
    if row[0] != request_sha256:
        raise Conflict(
            "This idempotency key belongs to another request.",
            expected="the same method, path and body under the same key, or a new key",
            got="another request under a key that was used before",
            where="header Idempotency-Key",
            fix="use a new key for a new request",
        )
    return int(row[1]), journal.decompressed(row[2])


def keep_response(  # noqa: PLR0917  # key, name and hash as in `first_response`, then what was answered
    connection: Connection, key_id: str, idempotency_key: str, request_sha256: str, status: int, body: bytes
) -> None:
    """Keep an answer for when it is asked for again, in the transaction that it tells of.

    It is kept for `RESPONSE_DAYS`: each new one takes some old ones away, so their number stays bounded by itself.
    """
    with connection.pipeline():
        connection.execute(
            "INSERT INTO service.responses (key_id, idempotency_key, request_sha256, status, body)"
            " VALUES (%s, %s, %s, %s, %b)",
            [key_id, idempotency_key, request_sha256, status, journal.compressed(body)],
        )
        connection.execute(FORGET, [RESPONSE_DAYS, FORGOTTEN_AT_ONCE])
