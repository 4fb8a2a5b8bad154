"""Answers that were given, computed once more: from the models' own history and the journal alone.

Every event is taken in its order by the version that answered it then. KPIs that the journal holds are not used but
compared, so what is proved is the whole way from a transaction to its answer, and not only that a table is consistent.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
from psycopg import rows as row_factories

from reperform.errors import ReperformError
from reperform.params import ServeParams
from reperform.service import champion, detect, intake, journal
from reperform.service.bundle import Base, Bundle
from reperform.service.database import Connection, Database
from reperform.service.scoring import Scored, Scorer

MOST_TOLD = 20
PLAIN = ("account_id", "counterparty_id", "entity_id", "booked_at", "known_at", "amount_base", "data_version")
NUMBERS = ("score", "probability", "is_alert")
STORED = f"""
SELECT transaction_id, role, model_version, request_id, members, reasons, {", ".join((*PLAIN, *NUMBERS))}
FROM service.answers WHERE sequence = %s
"""  # noqa: S608  # names of ours
VERSIONS = """
SELECT role, model_version, min(sequence), max(sequence) FROM service.answers WHERE sequence <= %s
GROUP BY role, model_version ORDER BY role DESC, model_version
"""
STRAY = """
SELECT count(*) FROM service.answers AS a WHERE NOT EXISTS (
    SELECT FROM service.journal AS j WHERE j.sequence = a.sequence AND j.kind = 'transactions'
)
"""
RULED = "SELECT from_sequence, champion FROM service.control WHERE from_sequence <= %s ORDER BY change"
SENT = """
SELECT entry::jsonb ->> 'request_id', entry::jsonb ->> 'response_sha256' FROM service.calls
WHERE (entry::jsonb ->> 'model_version') IS NOT NULL
"""


@dataclass(frozen=True)
class Difference:
    """Where an answer is not what comes out now.

    Args:
        sequence: event in the journal.
        subject: transaction or request.
        what: differs.
        stored: in the database.
        replayed: what came out now.
    """

    sequence: int
    subject: str
    what: str
    stored: str
    replayed: str


@dataclass
class Replayed:
    """What was replayed.

    Args:
        events: of the journal.
        answers: that were compared, by role.
        kpis: of transactions that were compared with those in the journal.
        bodies: of answers, made anew and compared with the hash in the log of calls.
        versions: of the model that answered.
        differences: the first ones.
        n_differences: all of them.
    """

    events: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    kpis: int = 0
    bodies: int = 0
    versions: list[int] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    n_differences: int = 0

    def differ(self, sequence: int, subject: str, what: str, stored: Any, replayed: Any) -> None:
        """Note a difference."""
        self.n_differences += 1
        if len(self.differences) < MOST_TOLD:
            self.differences.append(Difference(sequence, subject, what, _short(stored), _short(replayed)))


def _short(value: Any) -> str:
    return str(value)[:120]


def replay(
    database: Database,
    serve: ServeParams,
    *,
    until: int | None = None,
    load: Callable[[int], Bundle] = champion.loaded,
) -> Replayed:
    """Answer every event of the journal once more, and compare.

    Args:
        database: with journal, answers and the log of calls; nothing is written.
        serve: settings; `history_until` as it was when the answers were given.
        until: the last event that is replayed; None: the newest one of now.
        load: gives the models of a version.

    Raises:
        ReperformError: when files of a version that answered are gone.
    """
    return _Replay(database, serve, until, load).run()


class _Replay:
    def __init__(
        self, database: Database, serve: ServeParams, until: int | None, load: Callable[[int], Bundle]
    ) -> None:
        self.database, self.serve = database, serve
        with database.transaction(durable=False) as connection:
            newest = journal.newest(connection)
            self.until = newest if until is None else min(until, newest)
            told = connection.execute(VERSIONS, [self.until]).fetchall()
            self.ruled = connection.execute(RULED, [self.until]).fetchall()
            self.sent = dict(connection.execute(SENT).fetchall())
            stray = connection.execute(STRAY).fetchone()
        self.found = Replayed(versions=list(dict.fromkeys(int(row[1]) for row in told)))
        if stray and stray[0]:
            self.found.differ(0, "answers", "stand for no event of the journal", stray[0], 0)
        self.scorers: dict[int, Scorer] = {}
        for version in self.found.versions:
            self.scorers[version] = self._scorer(load(version))

    def _scorer(self, bundle: Bundle) -> Scorer:
        base = Base(bundle.folder, bundle.split.test_start if self.serve.history_until == "test_start" else None)
        shared = next((one.history for one in self.scorers.values() if one.history.serves(bundle, base)), None)
        return Scorer(bundle, base if shared is None else shared)

    def run(self) -> Replayed:
        for event, stored in self._events():
            self.found.events += 1
            bare = replace(event, features=None)  # nobody's KPIs but our own
            if event.kind == "transactions":
                self._transactions(event, stored)
            for one in self.scorers.values():
                one.take([bare])  # whoever has scored it has it already
        return self.found

    def _events(self) -> Iterator[tuple[journal.Event, list[dict[str, Any]]]]:
        """Events with the answers to them, both by portions: a journal does not fit into memory."""
        at = 0
        while at < self.until:
            with self.database.transaction(durable=False) as connection:
                events = [one for one in journal.since(connection, at, rows=5_000) if one.sequence <= self.until]
                told = [_stored(connection, one) for one in events]
            for event, stored in zip(events, told, strict=True):
                if event.sequence == at + 1:
                    yield event, stored
                    at += 1
            if not events or at != events[-1].sequence:
                self.found.differ(at + 1, "journal", "lacks this event, so no later one is replayed", "nothing", "it")
                return

    def _transactions(self, event: journal.Event, stored: Sequence[Mapping[str, Any]]) -> None:
        by_version: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
        for row in stored:
            by_version.setdefault((row["role"], row["model_version"]), {})[row["transaction_id"]] = row
        self._check_complete(event, by_version)
        for role, version in sorted(by_version, reverse=True):  # the champion first, as it was then
            got = self.scorers[version].score(event.rows, reasons="all", n_reasons=50)
            self.scorers[version].taken(event.sequence)
            self._compare(event, got.answers, by_version[role, version], role)
            if role == "champion":
                self._compare_kpis(event, got)
                self._compare_body(event, got, by_version[role, version])

    def _check_complete(self, event: journal.Event, by_version: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
        champions = [version for role, version in by_version if role == "champion"]
        due = [version for first, version in self.ruled if first <= event.sequence][-1:]
        if champions != due:
            self.found.differ(event.sequence, "event", "was answered by another version", champions, due)
        ids = set(event.rows["transaction_id"].to_list())
        for (role, version), rows in by_version.items():
            for name in sorted(ids ^ set(rows)):
                told = ("an answer", "no transaction") if name in rows else ("no answer", "a transaction")
                self.found.differ(event.sequence, name, f"{role} {version}", *told)

    def _compare(
        self, event: journal.Event, answers: pl.DataFrame, stored: Mapping[str, Mapping[str, Any]], role: str
    ) -> None:
        for row in answers.iter_rows(named=True):
            old = stored.get(row["transaction_id"])
            if old is None:
                continue
            self.found.answers[role] += 1
            told = {name: (old[name], row[name]) for name in (*PLAIN, *NUMBERS)}
            told["members"] = (old["members"], json.loads(row["members"]))
            if old["reasons"] is not None:  # where they were asked for; how many is a setting
                told["reasons"] = (old["reasons"], json.loads(row["reasons"])[: len(old["reasons"])])
            for name, (then, now) in told.items():
                if then != now:
                    self.found.differ(event.sequence, row["transaction_id"], name, then, now)

    def _compare_kpis(self, event: journal.Event, got: Scored) -> None:
        """KPIs in the journal are what other processes took in instead of computing them."""
        if event.features is None:
            return
        self.found.kpis += event.rows.height
        if not event.features.equals(got.features):
            self.found.differ(event.sequence, "event", "KPIs in the journal", "others", "see the transactions")

    def _compare_body(self, event: journal.Event, got: Scored, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """The answer as it was sent, byte by byte, by its hash in the log of calls; files have no such answer."""
        ids = {row["request_id"] for row in stored.values()}
        request_id = next(iter(ids), "")
        if len(ids) != 1 or request_id not in self.sent or set(event.rows["source_file"]) != {intake.SOURCE_FILE}:
            return
        told = [_as_sent(row, stored.get(row["transaction_id"])) for row in got.answers.iter_rows(named=True)]
        answers = got.answers.with_columns(pl.Series("reasons", told, pl.String)).with_columns(
            __place=event.rows["source_record"]
        )
        answered = detect.Answered(
            event.sequence, answers.sort("__place"), answers["model_version"][0], answers["data_version"][0],
            self.scorers[answers["model_version"][0]].threshold, {},
        )  # fmt: skip
        digest = hashlib.sha256(detect.body_of(answered, request_id)).hexdigest()
        self.found.bodies += 1
        if digest != self.sent[request_id]:
            self.found.differ(event.sequence, request_id, "the answer's SHA-256", self.sent[request_id], digest)


def _stored(connection: Connection, event: journal.Event) -> list[dict[str, Any]]:
    if event.kind != "transactions":
        return []
    with connection.cursor(row_factory=row_factories.dict_row) as cursor:
        return cursor.execute(STORED, [event.sequence]).fetchall()


def _as_sent(row: Mapping[str, Any], stored: Mapping[str, Any] | None) -> str | None:
    """Reasons as the answer told them: as many as are stored, or none."""
    if stored is None or stored["reasons"] is None:
        return None
    return json.dumps(json.loads(row["reasons"])[: len(stored["reasons"])], ensure_ascii=False)


def lines(found: Replayed) -> list[str]:
    """What came out, for people."""
    told = ", ".join(f"{n:,} of a {role}" for role, n in found.answers.items()) or "none"
    out = [
        f"replayed {found.events:,} events with versions {', '.join(map(str, found.versions)) or 'none'}",
        f"answers compared: {told}",
        f"KPIs of {found.kpis:,} transactions compared with those in the journal",
        f"{found.bodies:,} answers made anew as they were sent, compared with their hashes in the log of calls",
    ]
    out += [
        f"  event {one.sequence}, {one.subject}: {one.what}: stored {one.stored}, now {one.replayed}"
        for one in found.differences
    ]
    if found.n_differences > len(found.differences):
        out.append(f"  and {found.n_differences - len(found.differences):,} more")
    told = f"{found.n_differences:,} differences"
    return [*out, told if found.n_differences else "every answer came out again, bit for bit"]


def main(database: Database, serve: ServeParams, until: int | None) -> int:
    """What `python -m reperform replay-answers` does."""
    if until is not None and until < 1:
        raise ReperformError(
            "There is no such event.", expected="a number from 1", got=str(until), where="--until",
            fix="leave it out for the whole journal",
        )  # fmt: skip
    found = replay(database, serve, until=until)
    print("\n".join(lines(found)))
    return 1 if found.n_differences else 0
