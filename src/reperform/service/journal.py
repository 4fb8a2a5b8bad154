"""The one order of events: what every process takes in, from the first to the last, to give the same answers.

A request takes the lock, takes in what others wrote, scores, appends and commits; PostgreSQL gives the lock up only
after the commit can be seen. So sequences have no gaps, and nobody ever sees a later event before an earlier one.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, cast

import polars as pl
import psycopg
import pyarrow as pa

from reperform.errors import ReperformError

Connection = psycopg.Connection[tuple[Any, ...]]
Kind = Literal["transactions", "labels", "accounts"]

VALUES = "__values"
FEW_ROWS, MANY_COLUMNS = 16, 40  # where names weigh more than values
EVENTS_AT_ONCE = 1_000
ROWS_AT_ONCE = 50_000

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('reperform.service.order', 0))"
APPEND = """
INSERT INTO service.journal (sequence, kind, rows, features, shape, n, newest_known_at, clock)
SELECT coalesce(last.sequence, 0) + 1, %(kind)s, %(rows)b, %(features)b, %(shape)s, %(n)s, %(known_at)s,
    greatest(last.clock, %(known_at)s::timestamptz)
FROM (VALUES (1)) AS one LEFT JOIN (
    SELECT sequence, clock FROM service.journal ORDER BY sequence DESC LIMIT 1
) AS last ON true
RETURNING sequence
"""
# Single transactions are many and batches are large: both numbers have a limit.
SINCE = """
SELECT sequence, kind, n, rows, features, shape FROM service.journal WHERE sequence IN (
    SELECT sequence FROM (
        SELECT sequence, sum(n) OVER (ORDER BY sequence) - n AS before FROM (
            SELECT sequence, n FROM service.journal WHERE sequence > %s ORDER BY sequence LIMIT %s
        ) AS near
    ) AS counted WHERE before < %s
) ORDER BY sequence
"""


@dataclass(frozen=True)
class Event:
    """Something that changes what is answered afterwards.

    Args:
        sequence: its place in the order, from 1.
        kind: what its rows are.
        rows: of the table that `kind` names, in the order in which they were written.
        features: KPIs of the transactions, row by row, if they were computed.
    """

    sequence: int
    kind: Kind
    rows: pl.DataFrame
    features: pl.DataFrame | None


def locked(connection: Connection) -> None:
    """Wait for this process's turn in the order of events; it ends with the transaction.

    Raises:
        psycopg.errors.LockNotAvailable: when it takes too long; `Database.transaction` makes it `Unavailable`.
    """
    connection.execute(LOCK)


def since(
    connection: Connection, sequence: int, *, rows: int = ROWS_AT_ONCE, events: int = EVENTS_AT_ONCE
) -> list[Event]:
    """The next events after `sequence`, in order; none when there are no more.

    Args:
        connection: with an open transaction; with the lock, if nothing may come after the last one.
        sequence: of the newest event that is known already; 0 for all.
        rows: give no further event once they hold so many rows.
        events: give no more than so many.
    """
    got = connection.execute(SINCE, [sequence, events, rows], binary=True).fetchall()
    read: list[Event] = []
    for at, kind, n, packed_rows, packed_features, shape in got:
        features = unpacked(packed_features) if packed_features is not None else None
        if features is not None and shape is not None:
            features = widened(features, n, _read_shape(connection, shape))
        read.append(Event(at, cast("Kind", kind), unpacked(packed_rows), features))
    return read


def append(connection: Connection, kind: Kind, rows: pl.DataFrame, features: pl.DataFrame | None = None) -> int:
    """Write the next event, under the lock that `locked` took.

    Args:
        connection: with an open transaction that holds the lock.
        kind: what the rows are.
        rows: at least one.
        features: as many rows, for transactions whose KPIs were computed.

    Returns:
        Its sequence.

    Raises:
        ReperformError: when there are no rows, or features of other rows.
    """
    if not rows.height or (features is not None and features.height != rows.height):
        raise ReperformError(
            "This is no event.",
            expected="at least one row, and features for all rows or none",
            got=f"{rows.height} rows, features of {'none' if features is None else features.height}",
            where=f"an event of {kind}",
            fix="report it; nothing was written",
        )
    known_at = rows["known_at"].max() if kind == "transactions" else None
    shape = None
    if features is not None and features.height <= FEW_ROWS and features.dtypes.count(pl.Float64()) >= MANY_COLUMNS:
        shape = _written_shape(connection, features)
        features = narrowed(features)
    values = {
        "kind": kind,
        "rows": packed(rows),
        "features": packed(features) if features is not None else None,
        "shape": shape,
        "n": rows.height,
        "known_at": known_at,
    }
    row = connection.execute(APPEND, values).fetchone()
    return int(row[0]) if row else 0


def clock(connection: Connection) -> datetime | None:
    """The newest known_at of all transactions in the journal; None before the first."""
    row = connection.execute("SELECT clock FROM service.journal ORDER BY sequence DESC LIMIT 1").fetchone()
    return cast("datetime | None", row[0]) if row else None


def newest(connection: Connection) -> int:
    """Sequence of the newest event; 0 before the first."""
    row = connection.execute("SELECT max(sequence) FROM service.journal").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def narrowed(frame: pl.DataFrame) -> pl.DataFrame:
    """The same values with all floats in one column, one original column after the other; the rest beside them."""
    floats = _shape_of(tuple(frame.columns), tuple(frame.dtypes)).floats
    rest = frame.drop(floats)
    longer = rest.vstack(rest.clear(frame.height * (len(floats) - 1)))  # with rows of nulls
    return longer.hstack([frame.unpivot(on=floats)["value"].rename(VALUES)])


def widened(narrow: pl.DataFrame, n: int, empty: pl.DataFrame) -> pl.DataFrame:
    """The frame that `narrowed` made narrow.

    Args:
        narrow: what it gave.
        n: rows of the original.
        empty: with the columns of the original.
    """
    values, starts = narrow[VALUES], {name: at * n for at, name in enumerate(_floats(empty.columns, empty.dtypes))}
    return pl.DataFrame(
        [
            values.slice(starts[name], n).rename(name) if name in starts else narrow[name].head(n)
            for name in empty.columns
        ]
    )


def _floats(names: Iterable[str], kinds: Iterable[pl.DataType]) -> list[str]:
    return [name for name, kind in zip(names, kinds, strict=True) if kind == pl.Float64]


def _written_shape(connection: Connection, frame: pl.DataFrame) -> str:
    """The name under which the database knows these columns."""
    shape = _shape_of(tuple(frame.columns), tuple(frame.dtypes))
    if not connection.execute("SELECT FROM service.shapes WHERE shape = %s", [shape.name]).rowcount:
        connection.execute(
            "INSERT INTO service.shapes (shape, empty) VALUES (%s, %b) ON CONFLICT DO NOTHING",
            [shape.name, packed(frame.clear())],
        )
    return shape.name


@dataclass(frozen=True)
class _Shape:
    name: str
    floats: list[str]


@lru_cache(maxsize=16)
def _shape_of(names: tuple[str, ...], kinds: tuple[pl.DataType, ...]) -> _Shape:
    told = json.dumps([[name, str(kind)] for name, kind in zip(names, kinds, strict=True)])
    return _Shape(hashlib.sha256(told.encode()).hexdigest(), _floats(names, kinds))


_SHAPES: dict[str, pl.DataFrame] = {}  # by hash, so they are the same in every database


def _read_shape(connection: Connection, shape: str) -> pl.DataFrame:
    if shape not in _SHAPES:
        row = connection.execute("SELECT empty FROM service.shapes WHERE shape = %s", [shape], binary=True).fetchone()
        if row is None:
            raise ReperformError(
                "The journal lacks the names of an event's columns.",
                expected=f"shape {shape[:16]}…",
                got="none",
                where="table service.shapes",
                fix="restore the last backup: somebody has removed rows from this table",
            )
        _SHAPES[shape] = unpacked(row[0])
    return _SHAPES[shape]


def packed(frame: pl.DataFrame) -> bytes:
    """A frame as an Arrow IPC stream, compressed as a whole: the names of 240 columns weigh more than one row."""
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer, compression="uncompressed")
    return compressed(buffer.getbuffer())


def unpacked(data: bytes) -> pl.DataFrame:
    """The frame that `packed` packed, with the same types."""
    return pl.read_ipc_stream(decompressed(data))


def compressed(data: bytes | memoryview) -> bytes:
    """Bytes as one zstd frame."""
    return cast("bytes", pa.compress(pa.py_buffer(data), codec="zstd", asbytes=True))


def decompressed(data: bytes) -> bytes:
    """Bytes of a zstd frame."""
    return cast("bytes", pa.input_stream(pa.py_buffer(data), compression="zstd").read())
