"""Run KPIs, each over buckets of its own key. The same functions run over any bucket, and over the whole table.

KPIs that share a key make a phase. Phases follow each other, so that a KPI finds what it needs of other keys.
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from reperform.errors import ReperformError, nearest
from reperform.featurize import buckets
from reperform.featurize.kernels import F64, I64, put
from reperform.featurize.kpis import BY_NAME, KPIS
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Key, Kpi, Values
from reperform.params import EngineParams, FeaturizeParams

KEYS: tuple[Key, ...] = ("counterparty", "account", "entity")
ALWAYS_READ = ("transaction_id", "booked_at", "known_at", "account_id")


@dataclass(frozen=True)
class Task:
    """One KPI with its settings, the columns that they make, and what was learned for it.

    Args:
        kpi: its declaration.
        given: its settings as parameters give them.
        settings: the same, checked and completed.
        columns: that they make.
        fitted: what was learned.
    """

    kpi: Kpi
    given: dict[str, Any]
    settings: Any
    columns: tuple[Column, ...]
    fitted: dict[str, Any]

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of earlier KPIs that it reads."""
        return self.kpi.needs_of(self.settings)


@dataclass(frozen=True)
class Phase:
    """KPIs of one key, in order."""

    key: Key
    tasks: tuple[Task, ...]

    @property
    def names(self) -> list[str]:
        """Columns that it makes."""
        return [column.name for task in self.tasks for column in task.columns]

    @property
    def needs(self) -> list[str]:
        """Columns of earlier phases that it reads."""
        own = set(self.names)
        return sorted({name for task in self.tasks for name in task.needs} - own)

    @property
    def inputs(self) -> frozenset[str]:
        """Canonical columns that it reads."""
        return frozenset({*ALWAYS_READ, *(name for task in self.tasks for name in task.kpi.inputs)})

    def inputs_of(self, columns: Sequence[str]) -> list[str]:
        """Of the columns of a table, those that it reads."""
        return [name for name in columns if name in self.inputs]


class Needed(Mapping[str, F64]):
    """The columns made so far, as far as a KPI declares that it reads them."""

    def __init__(self, task: Task, made: Mapping[str, F64]) -> None:
        self._task, self._made = task, made

    def __getitem__(self, name: str) -> F64:
        if name not in self._task.needs:
            raise ReperformError(
                f"KPI {self._task.kpi.name} reads {name} without saying so.",
                expected=f"only what it needs: {', '.join(self._task.needs) or 'nothing'}",
                got=name,
                where=f"needs of {self._task.kpi.name}",
                fix="add the column to `needs` in its declaration: work is ordered and split by it",
            )
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._task.needs if name in self._made)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def tasks(kpis: Sequence[Kpi], stage: FeaturizeParams, fitted: Mapping[str, dict[str, Any]]) -> list[Task]:
    """KPIs with their settings, in order."""
    out = []
    for kpi in kpis:
        settings = kpi.settings_of(stage.settings)
        given = dict(stage.settings.get(kpi.settings_key or kpi.name, {}))
        out.append(Task(kpi, given, settings, kpi.columns(settings), fitted.get(kpi.name, {})))
    return out


def phases(todo: Sequence[Task]) -> list[Phase]:
    """Tasks by key, such that everything a task needs is made in an earlier phase, or before it in its own."""
    maker = {column.name: task.kpi.name for task in todo for column in task.columns}
    waiting, done, out = list(todo), set[str](), list[Phase]()
    while waiting:
        before = len(waiting)
        for key in KEYS:
            now: list[Task] = []
            for task in [task for task in waiting if task.kpi.key == key]:
                makers = {maker[name] for name in task.needs if name in maker}
                if makers <= done | {earlier.kpi.name for earlier in now}:
                    now.append(task)
            if now:
                out.append(Phase(key, tuple(now)))
                done |= {task.kpi.name for task in now}
                waiting = [task for task in waiting if task not in now]
        if len(waiting) == before:
            names = ", ".join(task.kpi.name for task in waiting)
            raise ReperformError(
                "KPIs wait for each other.",
                expected="needs that lead to a first KPI",
                got=names,
                where="src/reperform/featurize/kpis.py",
                fix="take a column out of their `needs`",
            )
    return out


def values_of(ledger: Ledger, phase: Phase, made: Mapping[str, F64]) -> Values:
    """Every column of a phase for every row of a ledger, which holds all rows of its keys.

    Args:
        ledger: a bucket, or the whole table.
        phase: KPIs of one key.
        made: the columns of earlier phases that it needs, for the same rows.
    """
    out: Values = {}
    for task in phase.tasks:
        values = task.kpi.compute(ledger, task.fitted, task.settings, Needed(task, ChainMap(out, made)))  # type: ignore[arg-type]  # only read
        out |= {column.name: _finite(task.kpi, column.name, values[column.name]) for column in task.columns}
    return out


def _finite(kpi: Kpi, name: str, values: Any) -> F64:
    """The values as float64, NaN for unknown; an infinite one is a fault of the KPI."""
    out = np.asarray(values, np.float64)
    if np.isinf(out).any():
        raise ReperformError(
            f"KPI {kpi.name} gives infinite values.",
            expected="a number, or unknown",
            got=f"{int(np.isinf(out).sum())} infinite values",
            where=f"column {name}",
            fix="bound the quotient in its module below src/reperform/featurize/",
        )
    return out


def finite(task: Task, made: Mapping[str, Any]) -> None:
    """Refuse infinite values among a KPI's columns."""
    for column in task.columns:
        _finite(task.kpi, column.name, made[column.name])


def key_codes(ledger: Ledger, key: Key) -> I64:
    """Codes by which a ledger is cut for a key; -1 where a row has none."""
    return ledger.account if key == "account" else ledger.counterparty


def across_keys(
    ledger: Ledger, phase: Phase, made: Mapping[str, F64], threads: int, keep: Callable[[Task, Values], None]
) -> None:
    """A phase that is not split: several KPIs at once, as soon as what they need is made.

    Args:
        ledger: the whole table.
        phase: KPIs across keys.
        made: columns that they need; those of the phase itself are found here once they are kept.
        threads: KPIs at once.
        keep: takes over what a KPI has made, under a lock.
    """
    lock, waiting = Lock(), list(phase.tasks)

    def work(task: Task) -> None:
        values = values_of(ledger, Phase(phase.key, (task,)), made)
        with lock:
            keep(task, values)

    while waiting:
        unmade = {column.name for task in waiting for column in task.columns}
        ready = [task for task in waiting if not unmade & set(task.needs)]
        buckets.each(work, ready, threads)
        waiting = [task for task in waiting if task not in ready]


def run_phase(ledger: Ledger, phase: Phase, made: Mapping[str, F64], engine: EngineParams) -> Values:
    """A phase over all rows of a ledger, bucket by bucket, in the ledger's order.

    Args:
        ledger: all rows of the keys that it holds.
        phase: KPIs of one key.
        made: columns of earlier phases.
        engine: how many rows to a bucket, and how many buckets at once.
    """
    out: Values = {}
    if phase.key == "entity":
        across_keys(ledger, phase, ChainMap(out, dict(made)), engine.threads, lambda _, values: out.update(values))
        return {name: out[name] for name in phase.names}
    if not len(ledger):
        return values_of(ledger, phase, made)
    out = {name: np.empty(len(ledger)) for name in phase.names}

    def keep(rows: I64, values: Values) -> None:
        for name in phase.names:
            put(values[name], rows, out[name])

    by_bucket(ledger, phase, made, engine, keep)
    return out


def by_bucket(
    ledger: Ledger, phase: Phase, made: Mapping[str, F64], engine: EngineParams, keep: Callable[[I64, Values], None]
) -> None:
    """A phase of one key over all rows of a ledger, bucket by bucket.

    Args:
        ledger: all rows of the keys that it holds.
        phase: KPIs of an account or a counterparty.
        made: columns of earlier phases.
        engine: how many rows to a bucket, and how many buckets at once.
        keep: takes over positions of rows and their values; several threads may call it at the same time.
    """
    parts = buckets.cut(key_codes(ledger, phase.key), engine.bucket_rows)

    def work(rows: I64) -> None:
        needed = {name: made[name][rows] for name in phase.needs if name in made}
        keep(rows, values_of(ledger.part(rows, phase.inputs), phase, needed))

    _ = ledger.day_span  # before threads ask for it
    buckets.each(work, parts, engine.threads)


def run(ledger: Ledger, todo: Sequence[Task], engine: EngineParams) -> Values:
    """Every column of every task, in their order, over a table that is held in memory."""
    made: Values = {}
    for phase in phases(todo):
        made |= run_phase(ledger, phase, made, engine)
    return {column.name: made[column.name] for task in todo for column in task.columns}


def selected(names: Sequence[str]) -> list[Kpi]:
    """KPIs by name, in the registry's order; for an empty list all but those that want to be named.

    Raises:
        ReperformError: for an unknown name.
    """
    wanted, known = list(names) or list(KPIS), {**KPIS, **BY_NAME}
    for name in wanted:
        if name not in known:
            raise ReperformError(
                f"No KPI {name!r}.",
                expected=f"some of {', '.join(known)}",
                got=name,
                where="params.yaml:featurize.kpis",
                fix=nearest(name, known),
            )
    return [kpi for kpi in known.values() if kpi.name in wanted]
