"""Whatever was answered comes out once more from base and journal; whoever changes one of them is found."""

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from reperform import params, tables, tracking
from reperform.params import ServeParams
from reperform.service import bundle, journal, replay
from reperform.service.bundle import Base, Bundle
from reperform.service.champion import Champions, Rule
from reperform.service.database import Database
from reperform.service.detect import Call, Desk
from reperform.service.exchange import Rates
from reperform.service.scoring import Scorer
from tests import service_project

SERVE = ServeParams(history_until="test_start", champion_poll_s=60)
OURS = ("source_file", "source_record")


@pytest.fixture(scope="module")
def versions(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Bundle]]:
    """Two registered versions, in a project that is the current folder of the whole module."""
    folder = tmp_path_factory.mktemp("replays") / "project"
    shutil.copytree(trained_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        service_project.another_version(alert_share=0.05)
        yield {number: bundle.load(tracking.version(str(number))) for number in (1, 2)}


class Process:
    """One process of the service, with a clock that tests set."""

    def __init__(self, database: Database, versions: dict[int, Bundle], rule: Rule) -> None:
        self.rule = rule
        made = Champions(database, SERVE, registry=lambda: self.rule, load=versions.__getitem__)
        self.champions = cast("Any", made)
        self.champions.start()
        self.champions.tick()
        self.now = params.load(params.SplitParams).test_start
        self.desk = Desk(database, self.champions, SERVE, Rates("EUR"), now=lambda: self.now)
        self.n = 0

    def call(self, reasons: Any = "alerts") -> Call:
        self.n += 1
        return Call(f"r-{id(self)}-{self.n}", "k", "POST", "/r", f"{self.n}", reasons=reasons)

    def score(self, rows: pl.DataFrame, reasons: Any = "alerts") -> None:
        self.now = max(self.now, *rows["known_at"])
        self.desk.answer(rows.drop(OURS).to_dicts(), self.call(reasons))

    def label(self, rows: pl.DataFrame, **said: Any) -> None:
        self.now = max(self.now, *rows["known_at"])
        told = [{"transaction_id": one} | {"is_anomaly": True, **said} for one in rows["transaction_id"]]
        self.desk.feedback(told, self.call())

    def stop(self) -> None:
        self.champions.stop()


@pytest.fixture
def process(database: Database, versions: dict[int, Bundle]) -> Iterator[Callable[..., Process]]:
    every: list[Process] = []

    def new() -> Process:
        every.append(Process(database, versions, Rule(1)))
        return every[-1]

    yield new
    for one in every:
        one.stop()


@pytest.fixture
def answered(process: Callable[..., Process]) -> Process:
    """Requests of all kinds, by two processes in turns, with a promotion in the middle."""
    one, other = process(), process()
    rows = service_project.arrivals()
    one.score(rows[:1], "all")
    other.score(rows[1:30])
    one.label(rows[:3])
    other.desk.register([{"account_id": "new", "entity_id": "northbank"}], other.call())
    other.score(rows[30:31], "none")
    for which in (one, other):
        which.rule = Rule(2, 1)
        which.champions.tick()
    one.champions.tick()
    one.score(rows[31:90][::-1], "all")
    one.label(rows[1:2], is_anomaly=False)
    other.score(rows[90:95])
    return one


def replayed(database: Database, versions: dict[int, Bundle], until: int | None = None) -> replay.Replayed:
    return replay.replay(database, SERVE, until=until, load=versions.__getitem__)


@pytest.mark.usefixtures("answered")
def test_every_answer_comes_out_again(database: Database, versions: dict[int, Bundle]) -> None:
    got = replayed(database, versions)
    assert got.differences == []
    assert got.versions == [1, 2]
    assert got.answers == {"champion": 95, "challenger": 64}
    assert (got.events, got.kpis, got.bodies) == (8, 95, 5)
    assert "bit for bit" in replay.lines(got)[-1]
    assert replayed(database, versions, until=1).answers == {"champion": 1}


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE service.answers SET score = score + 1e-9 WHERE sequence = 2", "score"),
        ("UPDATE service.answers SET is_alert = NOT is_alert WHERE sequence = 8", "is_alert"),
        ("UPDATE service.answers SET amount_base = 1 WHERE sequence = 1", "amount_base"),
        ("UPDATE service.answers SET members = jsonb_set(members, '{intercept}', '0') WHERE sequence = 5", "members"),
        ("UPDATE service.answers SET reasons = reasons - 0 WHERE sequence = 1", "reasons"),
        ("UPDATE service.answers SET model_version = 1 WHERE sequence = 8 AND role = 'champion'", "event"),
        ("DELETE FROM service.answers WHERE sequence = 5 AND role = 'champion'", "event"),
        ("UPDATE service.answers SET sequence = 4 WHERE sequence = 1", "answers"),
        ("DELETE FROM service.journal WHERE sequence = 3", "journal"),
        ("UPDATE service.journal j SET rows = k.rows FROM service.journal k WHERE j.sequence = 5 AND k.n = 59", ""),
        ("UPDATE service.control SET champion = 2, challenger = NULL WHERE change = 1", "event"),
    ],
)  # fmt: skip
def test_whatever_is_changed_is_found(
    database: Database, versions: dict[int, Bundle], statement: str, what: str
) -> None:
    with database.transaction() as connection:
        assert connection.execute(statement.encode()).rowcount
    got = replayed(database, versions)
    assert got.n_differences
    assert any(what in (one.what, one.subject, "") for one in got.differences)
    assert replay.lines(got)[-1] == f"{got.n_differences} differences"


def test_an_empty_journal_has_nothing_to_replay(database: Database, versions: dict[int, Bundle]) -> None:
    got = replayed(database, versions)
    assert (got.events, got.versions, got.n_differences) == (0, [], 0)


def test_late_rows_leave_the_same_memory_however_events_are_taken_in(versions: dict[int, Bundle]) -> None:
    """A process that has scored them, one that took them in one by one, and one that begins with all of them."""
    base = Base(versions[1].folder, params.load(params.SplitParams).test_start)
    live, one_by_one, at_once = (Scorer(versions[1], base) for _ in range(3))
    rows, events = service_project.arrivals(), []
    for number, (start, end) in enumerate([(0, 300), (340, 341), (341, 500), (300, 340), (500, 501)], 1):
        part = rows[start:end]
        events.append(journal.Event(number, "transactions", part, live.score(part).features))
        live.taken(number)
        one_by_one.take(events[-1:])
    at_once.take(events)
    told = [one.score(rows[501:]).features for one in (live, one_by_one, at_once)]
    assert told[0].equals(told[1])
    assert told[0].equals(told[2])


def test_a_base_that_holds_the_journals_rows_and_labels_is_not_changed_by_the_journal(
    process: Callable[..., Process], versions: dict[int, Bundle], database: Database
) -> None:
    """The next run of the pipeline holds what the journal tells of; where other sources knew better, that stays."""
    start = params.load(params.SplitParams).test_start
    rows = service_project.arrivals()
    told = tables.read_table("validate", "labels").filter(pl.col("confirmed_at") >= start).sort("confirmed_at")
    told = told.filter(pl.col("transaction_id").is_in(rows["transaction_id"][:-20].implode()))
    live = process()
    live.score(rows[:-20])
    live.now = told["confirmed_at"][-1]
    before = told[:1].with_columns(pl.col("confirmed_at") - timedelta(microseconds=1), ~pl.col("is_anomaly"))
    live.desk.feedback(before.to_dicts(), live.call())  # the source of labels knew better afterwards
    live.desk.feedback(told[1:].to_dicts(), live.call())
    with database.transaction() as connection:
        events = journal.since(connection, 0)
    later = [Scorer(versions[1], Base(versions[1].folder)) for _ in range(2)]
    later[0].take(events)
    moved = (pl.col(name) + timedelta(days=30) for name in ("booked_at", "known_at"))
    new = rows.with_columns(pl.concat_str(pl.lit("new-"), "transaction_id").alias("transaction_id"), *moved)
    with_journal, without = (one.score(new.sort("known_at", "booked_at", "transaction_id")) for one in later)
    assert told.height > 1
    assert with_journal.answers.equals(without.answers)
    assert with_journal.features.equals(without.features)
