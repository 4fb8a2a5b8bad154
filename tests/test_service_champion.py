"""The same version answers in every process, from one event to another; a promotion loses nothing."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from reperform import tables, tracking
from reperform.errors import ReperformError
from reperform.params import ServeParams
from reperform.service import answers, bundle, champion, journal
from reperform.service.bundle import Bundle
from reperform.service.champion import Champions, Rule
from reperform.service.database import Database
from reperform.service.refusals import Refusal
from tests import service_project as made

SERVE = ServeParams(history_until="test_start", champion_poll_s=0.05)


@dataclass
class Registry:
    """What the registry would say, without its cost."""

    rule: Rule | None = None
    is_down: bool = False

    def __call__(self) -> Rule | None:
        if self.is_down:
            raise ReperformError("The registry of models cannot be used.")
        return self.rule


@pytest.fixture(scope="module")
def versions(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Bundle]]:
    """Two registered versions, in a project that is the current folder of the whole module."""
    folder = tmp_path_factory.mktemp("champions") / "project"
    shutil.copytree(trained_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made.another_version(alert_share=0.05)
        yield {number: bundle.load(tracking.version(str(number))) for number in (1, 2)}


@pytest.fixture
def registry() -> Registry:
    return Registry(Rule(1))


@pytest.fixture
def process(database: Database, versions: dict[int, Bundle], registry: Registry) -> Iterator[Callable[..., Champions]]:
    """Makes what one process holds."""
    every: list[Champions] = []

    def new(load: Callable[[int], Bundle] = versions.__getitem__, serve: ServeParams = SERVE) -> Champions:
        every.append(Champions(database, serve, registry=registry, load=load))
        return every[-1]

    yield new
    for one in every:
        one.stop()


def turn(database: Database, who: Champions, rows: pl.DataFrame) -> pl.DataFrame:
    """What a request does, with no more than it must."""
    with database.transaction() as connection:
        journal.locked(connection)
        scorer = who.champion(connection)
        while events := journal.since(connection, scorer.sequence):
            scorer.take(events)
        got = scorer.score(rows)
        sequence = journal.append(connection, "transactions", rows, got.features)
        answers.write_answers(connection, got.answers, sequence=sequence, request_id="r")
        other = who.shadow(connection)
        if other is not None:
            while events := [e for e in journal.since(connection, other.sequence) if e.sequence < sequence]:
                other.take(events)
            told = other.score(rows, reasons="none").answers
            answers.write_answers(connection, told, sequence=sequence, request_id="r", role="challenger")
            other.taken(sequence)
        scorer.taken(sequence)
    return got.answers


def written(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with database.transaction() as connection:
        return connection.execute(statement.encode()).fetchall()


def control(database: Database) -> list[tuple[Any, ...]]:
    return written(database, "SELECT from_sequence, champion, challenger FROM service.control ORDER BY change")


def test_the_registry_names_champion_and_challenger(versions: dict[int, Bundle]) -> None:
    assert set(versions) == {1, 2}
    assert champion.registered() == Rule(1, 2)


def test_the_registrys_champion_begins(database: Database, process: Callable[..., Champions]) -> None:
    one = process()
    assert not one.is_ready
    one.start()
    assert one.is_ready
    assert control(database) == [(1, 1, None)]
    got = turn(database, one, made.arrivals().head(3))
    assert got["model_version"].to_list() == [1, 1, 1]
    expected = tables.read_table("ensemble", "scores")  # both versions differ in their thresholds alone
    assert got.join(expected, on="transaction_id", how="left")["score"].equals(got["score"])


def test_without_a_champion_nothing_starts(process: Callable[..., Champions], registry: Registry) -> None:
    registry.rule = None
    with pytest.raises(ReperformError, match=r"no model to answer with[\s\S]*make repro"):
        process().start()


def test_a_champion_whose_files_are_gone_stops_the_start(database: Database, process: Callable[..., Champions]) -> None:
    def gone(_: int) -> Bundle:
        raise ReperformError("A file of version 1 is not here any more.")

    with pytest.raises(ReperformError, match="not here any more"):
        process(load=gone).start()
    assert control(database) == []


def test_a_process_that_has_not_loaded_the_champion_says_when_to_come_again(
    database: Database, process: Callable[..., Champions]
) -> None:
    process().start()
    late = process()
    with database.transaction() as connection, pytest.raises(Refusal, match="being loaded") as refused:
        late.champion(connection)
    assert (refused.value.status, refused.value.retry_after_s) == (503, SERVE.retry_after_s)


def test_a_challenger_scores_in_shadow_with_the_champions_history(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    one = process()
    one.start()
    registry.rule = Rule(1, 2)
    one.tick()
    assert control(database) == [(1, 1, None), (1, 1, 2)]
    assert one.shadowing is not None
    assert one.answering is not None
    assert one.shadowing.history is one.answering.history
    turn(database, one, made.arrivals().head(20))
    told = written(
        database,
        "SELECT role, model_version, count(*), count(DISTINCT score) FROM service.answers GROUP BY 1, 2 ORDER BY 1",
    )
    assert [row[:3] for row in told] == [("challenger", 2, 20), ("champion", 1, 20)]
    assert told[0][3] == told[1][3]


def test_a_promotion_waits_for_every_process_that_answers(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    one, other = process(), process()
    one.start()
    other.start()
    registry.rule = Rule(2)
    one.tick()
    one.tick()
    assert control(database) == [(1, 1, None)]
    turn(database, one, made.arrivals().head(2))
    other.tick()
    assert control(database)[-1] == (2, 2, None)
    rows = made.arrivals()
    assert [turn(database, who, rows.slice(at, 1))["model_version"].item() for at, who in ((2, one), (3, other))] == [
        2,
        2,
    ]
    for who in (one, other):
        who.tick()
        who.tick()
        assert who.answering is not None
        assert sorted(who._scorers) == [2]


def test_a_process_that_is_gone_is_not_waited_for(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    one, killed, ended = process(), process(), process()
    for who in (one, killed, ended):
        who.start()
    registry.rule = Rule(2)
    ended.stop()
    with database.transaction() as connection:
        connection.execute(
            "UPDATE service.processes SET seen_at = seen_at - interval '20 seconds' WHERE process_id = %s",
            [killed.process_id],
        )
    one.tick()
    assert control(database)[-1][1] == 2
    with database.transaction() as connection, pytest.raises(Refusal, match="being loaded"):
        killed.champion(connection)  # it was only slow: it loads who answers now, and goes on
    killed.tick()
    assert turn(database, killed, made.arrivals().head(1))["model_version"].item() == 2


def test_a_promotion_in_the_middle_loses_no_answer(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    """Two processes answer at the same time, in turns, with all their threads running."""
    both = [process(), process()]
    for who in both:
        who.start()
        who.watch()
    rows, lock = made.arrivals().head(160), threading.Lock()
    waiting = [rows.slice(at, 4) for at in range(0, rows.height, 4)]
    errors: list[BaseException] = []
    got: list[pl.DataFrame] = []

    def answer(who: Champions) -> None:
        while waiting and not errors:
            with lock:  # clients send in order
                part = waiting.pop(0) if waiting else None
                if part is None:
                    return
                try:
                    got.append(turn(database, who, part))
                except BaseException as error:  # noqa: BLE001  # told by the test
                    errors.append(error)
                if len(got) == 10:
                    registry.rule = Rule(2)
            changed.wait(0.05 if len(got) > 10 else 0)  # leaves the watchers time

    changed = threading.Event()
    threads = [threading.Thread(target=answer, args=(who,)) for who in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert pl.concat(got)["transaction_id"].to_list() == rows["transaction_id"].to_list()
    first = dict(written(database, "SELECT from_sequence, champion FROM service.control ORDER BY change"))
    assert first[1] == 1
    changed_at = next(sequence for sequence, version in first.items() if version == 2)
    told = written(database, "SELECT sequence, model_version FROM service.answers WHERE role = 'champion'")
    assert len(told) == rows.height
    assert {version for sequence, version in told if sequence < changed_at} == {1}
    assert {version for sequence, version in told if sequence >= changed_at} == {2}
    expected = tables.read_table("ensemble", "scores")
    known = pl.concat(got).join(expected, on="transaction_id", how="left", maintain_order="left")
    assert all(who.answering is not None and who.answering.sequence <= 40 for who in both)
    assert known.head(40)["score"].equals(known.head(40)["score_right"].rename("score"))


def test_after_a_failed_write_histories_are_made_anew_from_the_journal(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    registry.rule = Rule(1, 2)
    one = process()
    one.start()
    one.tick()
    rows = made.arrivals()
    turn(database, one, rows.head(10))
    assert one.answering is not None
    one.answering.score(rows.slice(10, 5))  # was not written
    one.broken()
    assert not one.is_ready
    with database.transaction() as connection, pytest.raises(Refusal, match="being loaded"):
        one.champion(connection)
    one.tick()
    scorer, other = one.answering, one.shadowing
    assert scorer is not None
    assert other is not None
    assert scorer.holds(rows["transaction_id"].head(15).to_list()) == set(rows["transaction_id"].head(10))
    assert scorer.sequence == 1
    assert other.history is scorer.history


def test_a_history_that_becomes_wrong_while_a_challenger_is_loaded_is_not_shared_with_it(
    process: Callable[..., Champions], registry: Registry, versions: dict[int, Bundle]
) -> None:
    def load(version: int) -> Bundle:
        if version == 2 and one._repairs == 0:
            one.broken()
        return versions[version]

    one = process(load=load)
    one.start()
    old = one.answering
    registry.rule = Rule(1, 2)
    one.tick()
    one.tick()
    assert one.answering is not None
    assert one.shadowing is not None
    assert old is not None
    assert one.answering.history is not old.history
    assert one.shadowing.history is one.answering.history


def test_a_challenger_that_cannot_be_loaded_or_cannot_score_leaves_the_champion_alone(
    database: Database, process: Callable[..., Champions], registry: Registry, versions: dict[int, Bundle]
) -> None:
    asked: list[int] = []

    def load(version: int) -> Bundle:
        asked.append(version)
        if version == 2:
            raise ReperformError("A file of version 2 is not here any more.")
        return versions[version]

    registry.rule = Rule(1, 2)
    one, other = process(load=load), process()
    one.start()
    one.tick()
    one.tick()
    assert asked == [1, 2]  # and not again at once
    assert control(database) == [(1, 1, None)]
    one.stop()
    other.start()
    other.tick()
    assert control(database)[-1] == (1, 1, 2)
    assert other.shadowing is not None
    other.withdraw(other.shadowing, ValueError("no"))
    assert other.shadowing is None
    other.tick()
    assert control(database)[-1] == (1, 1, None)
    assert turn(database, other, made.arrivals().head(1)).height == 1


def test_while_the_registry_cannot_be_reached_whoever_answers_goes_on(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    one = process()
    one.start()
    registry.is_down = True
    one.tick()
    assert turn(database, one, made.arrivals().head(1))["model_version"].item() == 1
    assert control(database) == [(1, 1, None)]


def test_a_new_process_answers_as_the_others_do_whatever_the_registry_says(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    one = process()
    one.start()
    turn(database, one, made.arrivals().head(30))
    registry.is_down = True
    late = process()
    late.start()
    assert late.answering is not None
    assert late.answering.sequence == 1
    rows = made.arrivals().slice(30, 8)
    got = turn(database, late, rows)
    expected = one.answering
    assert expected is not None
    assert expected.score(rows).answers.equals(got)


def test_without_shadow_no_challenger_is_loaded(
    database: Database, process: Callable[..., Champions], registry: Registry
) -> None:
    registry.rule = Rule(1, 2)
    one = process(serve=replace(SERVE, shadow=False))
    one.start()
    one.tick()
    assert control(database) == [(1, 1, None)]
    assert sorted(one._scorers) == [1]
