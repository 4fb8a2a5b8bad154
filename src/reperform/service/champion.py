"""Which version of the model answers: the same one in every process, from one event of the journal to another.

The registry says who shall be champion and challenger. Every process loads both in the background and says so; once all
that answer have them, one process writes the change under the lock of the journal. Each answer is given under that lock
by whom the last change names, so a promotion loses no request, and no two processes ever disagree.
"""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg

from reperform import tracking
from reperform.errors import ReperformError
from reperform.params import ServeParams
from reperform.service import bundle, journal
from reperform.service.bundle import Base, Bundle
from reperform.service.database import Connection, Database
from reperform.service.refusals import Refusal
from reperform.service.scoring import Scorer

LOG = logging.getLogger("reperform.service")
BEAT_S = 3.0
GONE_S = 15.0  # a process that has not been seen for so long is not waited for
FORGOTTEN_S = 3600.0
AGAIN_S = 60.0  # before a version that could not be loaded is tried once more
PASSING = (ReperformError, psycopg.Error, OSError)

RULED = "SELECT champion, challenger FROM service.control ORDER BY change DESC LIMIT 1"
CHANGE = "INSERT INTO service.control (from_sequence, champion, challenger, process_id) VALUES (%s, %s, %s, %s)"
BEAT = """
INSERT INTO service.processes (process_id, is_ready, loaded) VALUES (%s, %s, %s)
ON CONFLICT (process_id) DO UPDATE
SET is_ready = excluded.is_ready, loaded = excluded.loaded, seen_at = clock_timestamp()
"""
ALIVE = """
SELECT loaded FROM service.processes WHERE is_ready AND seen_at > clock_timestamp() - make_interval(secs => %s)
"""
FORGET = """
DELETE FROM service.processes WHERE process_id = %s OR seen_at < clock_timestamp() - make_interval(secs => %s)
"""


@dataclass(frozen=True)
class Rule:
    """Who answers, and who scores in shadow.

    Args:
        champion: version that answers.
        challenger: version that scores in shadow; None: none.
    """

    champion: int
    challenger: int | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        """Both, the champion first."""
        return (self.champion,) if self.challenger is None else (self.champion, self.challenger)


def registered() -> Rule | None:
    """What the registry says; None while it has no champion."""
    aliases = tracking.aliases()
    champion, challenger = aliases.get(tracking.FIRST_ALIAS), aliases.get(tracking.NEXT_ALIAS)
    return None if champion is None else Rule(champion, challenger if challenger != champion else None)


def loaded(version: int) -> Bundle:
    """A version's models, as `bundle.load` gives them."""
    return bundle.load(tracking.version(str(version)))


class Champions:
    """The models of one process.

    Args:
        database: with tables `control`, `processes` and the journal.
        serve: settings.
        registry: says who shall answer.
        load: gives the models of a version.
    """

    def __init__(
        self,
        database: Database,
        serve: ServeParams,
        *,
        registry: Callable[[], Rule | None] = registered,
        load: Callable[[int], Bundle] = loaded,
    ) -> None:
        self.database, self.serve = database, serve
        self.process_id = f"{platform.node()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._registry, self._load = registry, load
        self._bundles: dict[int, Bundle] = {}
        self._scorers: dict[int, Scorer] = {}
        self._failed: dict[int, float] = {}  # when to try once more
        self._rule: Rule | None = None
        self._asked: Rule | None = None  # in the turn that is under way; only requests change it
        self._repairs = 0
        self._mutex, self._working = threading.Lock(), threading.Lock()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    # What a turn asks, under the lock of the journal

    def champion(self, connection: Connection) -> Scorer:
        """The scorer that answers now.

        Raises:
            Refusal: 503 while it is not in memory here.
        """
        self._asked = self._rule = ruled(connection)
        found = self._scorers.get(self._asked.champion) if self._asked else None
        if found is None:
            self._wake.set()
            raise Refusal(
                503, "loading-model", "The model that answers is being loaded.", expected="/ready says ready",
                got=f"version {self._asked.champion} is not in memory yet" if self._asked else "no version is champion",
                fix="send the same request again in a moment, with the same idempotency key",
                retry_after_s=self.serve.retry_after_s,
            )  # fmt: skip
        return found

    def shadow(self, _connection: Connection) -> Scorer | None:
        """The scorer whose answers are stored and not sent, as of the last `champion`; None: there is none."""
        return self._in_shadow(self._asked)

    def withdraw(self, scorer: Scorer, error: Exception) -> None:
        """A challenger that cannot score does so no more until this process ends."""
        self._say("challenger-withdrawn", logging.WARNING, version=scorer.version, error=repr(error)[:400])
        self._failed[scorer.version] = float("inf")
        with self._mutex:
            self._scorers = {version: one for version, one in self._scorers.items() if one is not scorer}
        self._wake.set()

    def broken(self) -> None:
        """What is in memory is not what was written: histories are made anew before anything is answered."""
        with self._mutex:
            self._repairs += 1
            self._scorers = {}
        self._wake.set()

    # What operators ask

    @property
    def answering(self) -> Scorer | None:
        """The scorer that answers, as far as is known here."""
        return self._scorers.get(self._rule.champion) if self._rule else None

    @property
    def shadowing(self) -> Scorer | None:
        """The scorer that scores in shadow, as far as is known here."""
        return self._in_shadow(self._rule)

    def _in_shadow(self, rule: Rule | None) -> Scorer | None:
        if not self.serve.shadow or rule is None or rule.challenger is None:
            return None
        return self._scorers.get(rule.challenger)

    @property
    def is_ready(self) -> bool:
        """Whether the model that answers is in memory."""
        return self.answering is not None

    # Life

    def start(self) -> None:
        """Load who answers now, and come back when this process can answer.

        Raises:
            ReperformError: when there is no champion, or its files are gone.
        """
        self._beat()
        rule = self._now() or self._first()
        while True:
            self._have(rule)
            self._rule = rule
            now = self._now() or rule
            if now == rule:
                break
            rule = now
        self._beat()
        with suppress(OSError):
            bundle.tidy()

    def watch(self) -> None:
        """Look after new champions in the background, until `stop`."""
        for work, pause in ((self._beat, lambda: self._ending.wait(BEAT_S)), (self.tick, self._pause)):
            thread = threading.Thread(target=self._again, args=(work, pause), name=f"champion {work.__name__}")
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the threads, and be waited for no more."""
        self._ending.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(BEAT_S)
        with suppress(*PASSING), self.database.transaction(durable=False) as connection:
            connection.execute(FORGET, [self.process_id, FORGOTTEN_S])

    def _pause(self) -> None:
        self._wake.wait(self.serve.champion_poll_s)
        self._wake.clear()

    def _again(self, work: Callable[[], None], pause: Callable[[], object]) -> None:
        while not self._ending.is_set():
            try:
                work()
            except PASSING as error:
                self._say(f"champions-{work.__name__.strip('_')}", logging.WARNING, problem=str(error)[:1000])
                self._ending.wait(1)  # what is broken stays so for a moment
                self._wake.set()
            pause()

    def tick(self) -> None:
        """Load what shall answer, and let it answer once every process can."""
        with self._working:
            rule = self._now()
            if rule is None:
                return
            self._have(rule)
            self._rule = rule
            wanted = self._wanted(rule)
            self._have(wanted, may_fail=True)
            self._beat()
            self._change(rule, wanted)
            self._drop({*rule.versions, *wanted.versions, *(self._rule.versions if self._rule else ())})

    def _wanted(self, rule: Rule) -> Rule:
        try:
            wanted = self._registry() or rule
        except ReperformError as error:  # whoever answers goes on without it
            self._say("registry-unreachable", logging.WARNING, problem=str(error)[:1000])
            return rule
        return wanted if self.serve.shadow else Rule(wanted.champion)

    # The database

    def _now(self) -> Rule | None:
        with self.database.transaction(durable=False) as connection:
            return ruled(connection)

    def _beat(self) -> None:
        versions = sorted(self._scorers)
        with self.database.transaction(durable=False) as connection:
            connection.execute(BEAT, [self.process_id, self.is_ready, versions])

    def _first(self) -> Rule:
        """The registry's champion begins, unless another process was faster."""
        wanted = self._registry()
        if wanted is None:
            raise ReperformError(
                "There is no model to answer with.",
                expected="a champion in the registry",
                got="none",
                where="MLflow",
                fix="run `make repro` once",
            )
        self._have(Rule(wanted.champion))
        with self.database.transaction() as connection:
            journal.locked(connection)
            rule = ruled(connection)
            if rule is None:
                rule = self._write(connection, Rule(wanted.champion))
        return rule

    def _change(self, rule: Rule, wanted: Rule) -> None:
        """Write down what every process that answers is able to do, if that is not what they do already."""
        with self.database.transaction() as connection:
            everywhere = _everywhere(connection)
            champion = wanted.champion if wanted.champion in everywhere else rule.champion
            challenger = wanted.challenger if wanted.challenger in everywhere else None
            new = Rule(champion, challenger if challenger != champion else None)
            if new == rule:
                return
            journal.locked(connection)
            if ruled(connection) == rule:  # else another process was faster
                self._rule = self._write(connection, new)

    def _write(self, connection: Connection, rule: Rule) -> Rule:
        first = journal.newest(connection) + 1
        connection.execute(CHANGE, [first, rule.champion, rule.challenger, self.process_id])
        self._say("champion", champion=rule.champion, challenger=rule.challenger, from_sequence=first)
        return rule

    # Memory

    def _have(self, rule: Rule, *, may_fail: bool = False) -> None:
        """Load what is not in memory yet, and show all of it at once.

        Args:
            rule: who is needed.
            may_fail: also the champion may be missing: another one answers.
        """
        while True:
            repairs, held = self._repairs, self._scorers
            new: dict[int, Scorer] = {}
            for version in rule.versions:
                may = may_fail or version != rule.champion
                if version not in held and not (may and time.monotonic() < self._failed.get(version, 0)):
                    self._build(version, new, held, may_fail=may)
            with self._mutex:
                if repairs == self._repairs:  # else histories that were shared have become wrong in the meantime
                    self._scorers = self._scorers | new
                    return

    def _build(self, version: int, new: dict[int, Scorer], held: dict[int, Scorer], *, may_fail: bool) -> None:
        try:
            new[version] = self._scorer(version, [*held.values(), *new.values()])
        except PASSING as error:
            if not may_fail:
                raise
            self._failed[version] = time.monotonic() + AGAIN_S
            self._say("version-not-loaded", logging.WARNING, version=version, problem=str(error)[:1000])

    def _scorer(self, version: int, others: Iterable[Scorer]) -> Scorer:
        began = time.monotonic()
        found = self._bundles.get(version)
        if found is None or not found.folder.is_dir():
            found = self._bundles[version] = self._load(version)
        base = Base(found.folder, found.split.test_start if self.serve.history_until == "test_start" else None)
        for other in others:
            if other.history.serves(found, base):
                return Scorer(found, other.history)
        scorer = Scorer(found, base)
        self._catch_up(scorer)
        scorer.warm_up()
        self._say("version-loaded", version=version, seconds=round(time.monotonic() - began, 2))
        return scorer

    def _catch_up(self, scorer: Scorer) -> None:
        while not self._ending.is_set():
            with self.database.transaction(durable=False) as connection:
                events = journal.since(connection, scorer.sequence)
            if not events:
                return
            scorer.take(events)

    def _drop(self, needed: Collection[int]) -> None:
        with self._mutex:
            self._scorers = {version: one for version, one in self._scorers.items() if version in needed}
        self._bundles = {version: one for version, one in self._bundles.items() if version in needed}

    def _say(self, event: str, level: int = logging.INFO, **facts: Any) -> None:
        LOG.log(level, json.dumps({"event": event, "process": self.process_id, **facts}))


def ruled(connection: Connection) -> Rule | None:
    """Who answers, by the last change; None before the first."""
    row = connection.execute(RULED).fetchone()
    return Rule(*row) if row else None


def _everywhere(connection: Connection) -> set[int]:
    """Versions that every process which answers has in memory."""
    every = [set(row[0]) for row in connection.execute(ALIVE, [GONE_S])]
    return set.intersection(*every) if every else set()
