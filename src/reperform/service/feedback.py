"""What people decide about transactions: labels for the scores that follow, and for the next run of the pipeline.

Every decision is kept; the last one about a transaction counts. `python -m reperform feedback` writes those that count
to data/feedback/labels.csv, which stage ingest reads beside the sources of conf/ingest/.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from reperform import paths, schemas, tables
from reperform.ingest import feedback_file
from reperform.service import journal
from reperform.service.database import Connection, Database
from reperform.service.refusals import Refusal, together

LONGEST_TYPOLOGY = 100  # characters
MOST_PROBLEMS = 20  # that one answer tells
COLUMNS = list(schemas.LABELS.columns)
_KINDS = schemas.polars_schema(schemas.LABELS)

ADD = """
INSERT INTO service.labels (transaction_id, is_anomaly, typology, confirmed_at, key_id, sequence)
VALUES (%s, %s, %s, %s, %s, %s)
"""
LAST = """
SELECT transaction_id, is_anomaly, typology, confirmed_at FROM service.v_labels WHERE transaction_id = ANY (%s)
"""

Booked = Callable[[Sequence[str]], Mapping[str, datetime]]


@dataclass(frozen=True)
class Taken:
    """What became of labels that were handed in.

    Args:
        sequence: event in the journal that tells of the new ones; None when there is none.
        new: decisions that were not known yet.
        corrected: those of them that replace an earlier one.
        repeated: decisions that only say again what the last one said; they are not written again.
    """

    sequence: int | None
    new: int
    corrected: int
    repeated: int


def take(
    connection: Connection,
    labels: pl.DataFrame,
    *,
    key_id: str | None = None,
    booked: Booked | None = None,
    now: datetime | None = None,
) -> Taken:
    """Write labels and the event that tells of them, in the caller's transaction. It takes the one order's lock.

    Args:
        connection: with an open transaction.
        labels: `transaction_id`, `is_anomaly`; `typology` and `confirmed_at` may be missing or null. Without
            `confirmed_at`, they are confirmed now.
        key_id: API key of who tells them.
        booked: when transactions were booked that the service has not answered; None: looks into data/validate.
        now: what counts as now; None: the clock.

    Raises:
        Refusal: 422, telling all problems: a transaction that nobody knows, one that is named twice, a decision in the
            future or before the transaction was booked. Nothing is written then.
    """
    journal.locked(connection)
    moment = now or datetime.now(UTC)
    given = _shaped(labels)
    known = _booked_at(connection, given["transaction_id"].to_list(), booked or booked_in_pipeline)
    problems = _problems(given, known, moment)
    if problems:
        raise together(problems[:MOST_PROBLEMS])
    before = {row[0]: row[1:] for row in connection.execute(LAST, [given["transaction_id"].to_list()])}
    new = given.filter([not _repeats(row, before.get(row["transaction_id"])) for row in given.iter_rows(named=True)])
    repeated = given.height - new.height
    if new.is_empty():
        return Taken(None, 0, 0, repeated)
    event = new.with_columns(pl.col("confirmed_at").fill_null(moment)).select(COLUMNS)
    sequence = journal.append(connection, "labels", event)
    with connection.cursor() as cursor:
        cursor.executemany(ADD, [(*row, key_id, sequence) for row in event.iter_rows()])
    return Taken(sequence, new.height, sum(one in before for one in new["transaction_id"]), repeated)


def _shaped(labels: pl.DataFrame) -> pl.DataFrame:
    """The labels' own columns, with no value where one is missing."""
    return labels.select(
        (pl.col(name) if name in labels.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in _KINDS.items()
    )


def _repeats(row: Mapping[str, object], last: tuple[object, ...] | None) -> bool:
    """Whether a decision says what the last one says; one without a time does not ask for another."""
    if last is None or (row["is_anomaly"], row["typology"]) != last[:2]:
        return False
    return row["confirmed_at"] is None or row["confirmed_at"] == last[2]


def _booked_at(connection: Connection, ids: list[str], booked: Booked) -> dict[str, datetime]:
    got = connection.execute(
        "SELECT DISTINCT transaction_id, booked_at FROM service.answers WHERE transaction_id = ANY (%s)", [ids]
    )
    found: dict[str, datetime] = {row[0]: row[1] for row in got}
    others = [one for one in ids if one not in found]
    return found | dict(booked(others)) if others else found


def booked_in_pipeline(ids: Sequence[str]) -> dict[str, datetime]:
    """When transactions were booked that the last run of the pipeline has; those it lacks are left out."""
    folder = paths.data("validate") / "transactions.parquet"
    if not folder.is_file():
        return {}
    rows = pl.scan_parquet(folder).select("transaction_id", "booked_at")
    found = rows.filter(pl.col("transaction_id").is_in(list(ids))).collect()
    return dict(found.iter_rows())


def _problems(given: pl.DataFrame, booked: Mapping[str, datetime], now: datetime) -> list[Refusal]:
    if given.is_empty():
        return [
            Refusal(422, "no-labels", "There is no label in this request.", where="labels", fix="send at least one")
        ]
    seen: set[str | None] = set()
    found = []
    for place, row in enumerate(given.iter_rows(named=True)):
        problem = _problem(row, f"labels[{place}]", booked, now, repeated=row["transaction_id"] in seen)
        seen.add(row["transaction_id"])
        found += [problem] if problem is not None else []
    return found


def _problem(
    row: Mapping[str, object], where: str, booked: Mapping[str, datetime], now: datetime, *, repeated: bool
) -> Refusal | None:
    one = row["transaction_id"]
    if not one or row["is_anomaly"] is None:
        return Refusal(
            422, "incomplete-label", "A label lacks its transaction or its decision.",
            expected="transaction_id and is_anomaly", where=where, fix="say both",
        )  # fmt: skip
    if repeated:
        return Refusal(
            422, "repeated-label", "A transaction has two labels in one request.", got=str(one),
            where=f"{where}.transaction_id", fix="send the one that counts; a correction comes in a later request",
        )  # fmt: skip
    if len(str(row["typology"] or "")) > LONGEST_TYPOLOGY:
        return Refusal(
            422, "long-typology", "A typology is a short name.", expected=f"at most {LONGEST_TYPOLOGY} characters",
            got=str(row["typology"]), where=f"{where}.typology", fix="use a name such as structuring",
        )  # fmt: skip
    if str(one) not in booked:
        return Refusal(
            422, "unknown-transaction", "Nobody knows this transaction.",
            expected="one that the service has answered, or that the pipeline has", got=str(one),
            where=f"{where}.transaction_id", fix="check the id; send the transaction before its label",
        )  # fmt: skip
    confirmed = row["confirmed_at"] if isinstance(row["confirmed_at"], datetime) else now
    return _out_of_time(confirmed, booked[str(one)], now, where)


def _out_of_time(confirmed: datetime, booked_at: datetime, now: datetime, where: str) -> Refusal | None:
    if confirmed > now:
        return Refusal(
            422, "future-label", "A label cannot be confirmed in the future.", expected=f"at most {now.isoformat()}",
            got=confirmed.isoformat(), where=f"{where}.confirmed_at", fix="check the clock and the time zone",
        )  # fmt: skip
    if confirmed < booked_at:
        return Refusal(
            422, "label-before-booking", "A label cannot be confirmed before its transaction was booked.",
            expected=f"at least {booked_at.isoformat()}", got=confirmed.isoformat(),
            where=f"{where}.confirmed_at", fix="check the id and the time zone",
        )  # fmt: skip
    return None


def history(connection: Connection, transaction_id: str) -> list[dict[str, object]]:
    """All decisions about a transaction, the last one first."""
    got = connection.execute(
        "SELECT is_anomaly, typology, confirmed_at, taken_at FROM service.labels"
        " WHERE transaction_id = %s ORDER BY label_id DESC",
        [transaction_id],
    )
    names = ("is_anomaly", "typology", "confirmed_at", "taken_at")
    return [dict(zip(names, row, strict=True)) for row in got]


def labels_that_count(connection: Connection) -> pl.DataFrame:
    """The last decision about each transaction, as `schemas.LABELS`, in order of their ids."""
    rows = connection.execute(
        "SELECT transaction_id, is_anomaly, typology, confirmed_at FROM service.v_labels"
    ).fetchall()
    return pl.DataFrame(rows, schema=_KINDS, orient="row").sort("transaction_id")


def write(latest: pl.DataFrame, target: Path) -> int:
    """Write labels to the file that ingest reads; what it holds beyond them stays. Gives the number of labels in it.

    A database that was made anew knows fewer decisions than the file: these must not be lost.
    """
    both = latest
    if target.is_file():
        earlier = feedback_file.read(target)
        both = pl.concat([latest, earlier.join(latest, on="transaction_id", how="anti", maintain_order="left")])
    tables.write_text(feedback_file.as_text(both.sort("transaction_id")), target)
    return both.height


def main(database: Database) -> int:
    """What `python -m reperform feedback` does."""
    with database.transaction() as connection:
        latest = labels_that_count(connection)
    target = feedback_file.path()
    if latest.is_empty() and not target.is_file():
        print("no feedback yet: nothing was written")
        return 0
    n = write(latest, target)
    shown = target.relative_to(paths.project_root()).as_posix()
    print(f"wrote {shown}: {n} labels, {latest.height} of them from the service; next: dvc repro")
    return 0
