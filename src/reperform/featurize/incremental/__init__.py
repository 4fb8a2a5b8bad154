"""KPIs of new transactions alone, to the last bit as if all were computed anew: scoring in real time.

A `State` is made once from the tables, and takes in rows and labels as they come. What it gives is exactly what
`featurize.compute` gives over all that it knows by then: rows of one call are all taken in first, and each is then
scored as of its own moment.

What it costs: rows of a batch go through each KPI together (`quick`), and each walks back over its account's and its
counterparty's rows as far as windows reach (`asof`): some nanoseconds for each of them, and about four milliseconds of
Python for a call. What describes a population, such as the graph of the day, is taken when the first row of a day asks
for it, or before by `State.prepare`, from what was known when the day began. A KPI that is not known here costs more
time and gives the same bits: it runs over all rows of each key, or over all rows.
"""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize, schemas
from reperform.errors import ReperformError
from reperform.featurize import engine, graph, matched
from reperform.featurize.engine import Phase, Task
from reperform.featurize.incremental import asof, population
from reperform.featurize.incremental.past import Cells, Some
from reperform.featurize.incremental.quick import QUICK, SCORES, Asking, daily_of, daily_series, read_of, rhythms_of
from reperform.featurize.incremental.rows import SCHEMA, Columns, Lists, Register, Table
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import UNKNOWN_TIME_US, Ledger, wall_clock
from reperform.featurize.registry import Values
from reperform.featurize.synchrony import MINUTE_US
from reperform.featurize.windows import DAY_US, FOREVER_US, length_us
from reperform.params import EngineParams, FeaturizeParams, SplitParams

# Rows may arrive days late. On the demo one of the graph takes 4 MB, one of propagated risk 9: what is older is
# taken anew when a row asks for it, in a tenth of a second.
MOST_SNAPSHOTS = {"rates": 9, "peers": 4, "propagated": 3, "structured": 9}  # of rates, in each timezone
NAMES = tuple(SCHEMA)
REQUIRED = tuple(name for name, column in schemas.TRANSACTIONS.columns.items() if not column.nullable)
NOBODY = np.zeros(0, np.bool_)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONDAY = 4  # 1970-01-05
SCORED_BEFORE: dict[str, Callable[[Any], Sequence[str]]] = {
    # Windows over which a KPI of an account reads what earlier rows were scored themselves.
    "velocity": lambda _: (),
    "amount_deviation": lambda s: s.score_windows,
    "amount_spike": lambda _: (),
    "benford": lambda _: (),
    "time_pattern": lambda s: (*s.score_windows, s.pair_window),
    "frequency": lambda _: (),
    "balance": lambda _: (),
    "geography": lambda s: s.score_windows,
    "counterparty_risk": lambda _: (),
    "account_risk": lambda _: (),
    "counterparty_streak": lambda _: (),
    "account_streak": lambda _: (),
    "thresholds": lambda _: (),
    "thresholds_counterparty": lambda _: (),
    "payment_information": lambda _: (),
    "concentration": lambda s: (s.window, s.window),
    "correlation": lambda _: (),
    "network": lambda s: (s.pass_through_window, *s.new_windows),
    "network_counterparty": lambda _: (),
}


@dataclass
class Marks:
    """Numbers by party that kernels write to and nobody reads afterwards.

    Args:
        stamp: the turn in which each party was met last.
        turn: the last one.
    """

    stamp: I64 = field(default_factory=lambda: np.zeros(1024, np.int64))
    turn: int = 0
    zeros: list[I64] = field(default_factory=lambda: [np.zeros(1024, np.int64) for _ in range(2)])

    def make_room(self, parties: int) -> None:
        """For so many parties."""
        if parties > len(self.stamp):
            self.stamp = np.zeros(2 * parties, np.int64)

    def noughts(self, n: int, which: int) -> I64:
        """At least so many noughts; who writes to them puts them back."""
        if n > len(self.zeros[which]):
            self.zeros[which] = np.zeros(2 * n, np.int64)
        return self.zeros[which]


class State:
    """Everything that KPIs of new rows look back on.

    Args:
        ledger: the tables as they are known so far.
        todo: KPIs with what was learned for them.
        features: columns of the ledger's rows that are computed already; those that KPIs read of earlier rows are taken
            from here, and computed when they are asked for otherwise.
        labelled: whether case handling gives labels at all, if none may be known yet: else distances to known
            anomalies are unknown until the first one comes.
    """

    def __init__(
        self, ledger: Ledger, todo: Sequence[Task], features: pl.DataFrame | None = None, *, labelled: bool = False
    ) -> None:
        self.tasks = list(todo)
        self.phases = engine.phases(todo)
        self.accounts = ledger.accounts
        self._registered = set(ledger.accounts["account_id"])
        self.labels = ledger.labels.head(0)  # what they say stands with their rows
        self.labelled = labelled
        self.about = replace(ledger, transactions=ledger.transactions.head(0))
        self.maturity_us = int(ledger.maturity.total_seconds() * 1e6)
        self.table = Table(self.about)
        self.register = Register(
            self.table.parties, self.table.zones, self.table.names["entity_id"], ledger.default_timezone
        )
        self.register.add(ledger.accounts)
        self.table.append(ledger.transactions, *self._zones(ledger.transactions["account_id"]))
        self.waiting: dict[str, tuple[int, int]] = {}  # labels of rows that have not come yet
        self.bad: dict[str, dict[int, list[int]]] = {"account": {}, "counterparty": {}}
        self.bad_from: dict[str, I64] = {key: np.zeros(0, np.int64) for key in self.bad}
        self.snapshots: dict[str, dict[tuple[int, int], Any]] = {}
        self.rhythms: dict[int, dict[int, tuple[float, float, float]]] = {}
        """KPI 12 of accounts by the day on which it is taken anew."""
        self.intervals: dict[tuple[float, float, float], dict[tuple[int, int], tuple[float, float]]] = {}
        self.marks = Marks()
        self._groups: dict[str, dict[Any, Any]] = {}
        self._frames: dict[int, pl.DataFrame] = {}
        self._index()
        self.maker: dict[str, Task] = {}
        """KPIs whose columns are kept, by column."""
        self._say(ledger.labels)  # first: what is given was computed with these labels
        self._keep(features)

    def __contains__(self, transaction_id: object) -> bool:
        return transaction_id in self.table.slot_of

    def __len__(self) -> int:
        return len(self.table)

    def _index(self) -> None:
        table, parties = self.table, len(self.table.parties)
        order = table.in_order(np.arange(1, len(table) + 1))
        self.by_account = Lists(table["account_id"], order, parties)
        self.by_counterparty = Lists(table["counterparty_id"], order, parties)
        self.by_entity = Lists(table["entity_id"], order, len(table.names["entity_id"]))
        self.edges = Lists(self._edge_codes(np.arange(len(table) + 1)), order, parties)
        self.first_day = int(table["day"].min())
        self.marks.make_room(parties)

    def _edge_codes(self, slots: I64) -> I64:
        """Payee of each slot that is an edge, as in `graph.is_edge`; -1 for the others."""
        table = self.table
        incoming = table["direction"][slots] == table.names["direction"].code.get("in", -2)
        other = table["counterparty_id"][slots]
        told = incoming & (other >= 0) & (self.register["registered"][other] > 0 if len(table.parties) else False)
        return np.where(told, -1, table["payee"][slots])

    # What earlier rows were scored, as far as KPIs need it

    def _keep(self, features: pl.DataFrame | None) -> None:
        maker = {column.name: task for task in self.tasks for column in task.columns}
        self.maker = {name: maker[name] for name in kept_columns(self.tasks)}
        self.kept = Columns(
            dict.fromkeys(self.maker, np.float64) | {f"{name} is known": np.bool_ for name in self.maker}
        )
        given = set(features.columns) if features is not None else set()
        values: dict[str, Any] = {}
        for name in self.maker:
            held = name in given and features is not None
            made = features[name].to_numpy() if held and features is not None else np.full(len(self.table), np.nan)
            values[name] = np.concatenate([[np.nan], made])
            values[f"{name} is known"] = np.concatenate([[False], np.full(len(self.table), held)])
        if values:
            self.kept.append(values)

    def kept_of(self, name: str, slots: I64) -> F64:
        """What rows were scored in a column that later rows read; made now where it was not made or is outdated."""
        unknown = slots[~self.kept[f"{name} is known"][slots]]
        if len(unknown):
            task = self.maker[name]
            unknown = np.unique(unknown)
            if name in read_of(task):
                self._note(SCORES[task.kpi.name](Asking(self, unknown, task.kpi.key), task), unknown)
            else:
                needed = {need: self.kept_of(need, unknown) for need in task.needs if need in self.maker}
                self._note(self._made_by((task,), task.kpi.key, unknown, needed), unknown)
        values: F64 = self.kept[name][slots]
        return values

    def _made_by(self, tasks: tuple[Task, ...], key: str, slots: I64, made: Mapping[str, F64]) -> Values:
        if key == "entity":
            return self._across_keys(tasks[0], slots, made)
        return self._by_key(Phase("account" if key == "account" else "counterparty", tasks), slots, made)

    def _note(self, made: Mapping[str, Any], slots: I64) -> None:
        for name in self.maker:
            if name in made:
                self.kept[name][slots] = made[name]
                self.kept[f"{name} is known"][slots] = True

    def _forget(self, slots: I64, moments_us: I64, *, labels: bool = False) -> None:
        """What rows were scored that could have seen records which are told only now.

        Args:
            slots: of the records.
            moments_us: since when each can be seen.
            labels: whether what is new is their labels alone.
        """
        of_key: dict[str, I64] = {}
        for name, task in self.maker.items():
            key = "entity" if task.needs else task.kpi.key
            if labels and key != "entity" and "is_anomaly" not in task.kpi.inputs:
                continue
            if key not in of_key:
                of_key[key] = self._later(key, slots, moments_us)
            self.kept[f"{name} is known"][of_key[key]] = False

    def _later(self, key: str, slots: I64, moments_us: I64) -> I64:
        time = self.table["time"]
        if key == "entity":
            return np.flatnonzero(time[: len(self.table) + 1] >= moments_us.min(initial=FOREVER_US))
        lists = self.by_account if key == "account" else self.by_counterparty
        return lists.later(self.table[f"{key}_id"][slots], time, moments_us)

    # What comes in

    def add(
        self, rows: pl.DataFrame, accounts: pl.DataFrame | None = None, *, features: pl.DataFrame | None = None
    ) -> I64:
        """Take in rows, in any order; those that are held already are left as they are. All of them, or none.

        Args:
            rows: as `schemas.TRANSACTIONS`.
            accounts: accounts that were not registered before, as `schemas.ACCOUNTS`.
            features: columns that somebody else has computed for these rows, in their order: what later rows read of
                them is taken from here. They count for rows that are new.

        Returns:
            The slot of each row.

        Raises:
            ReperformError: before anything is changed.
        """
        ids = self._checked(rows, features)
        entering = None if accounts is None else self._new_accounts(accounts)
        if entering is not None:
            self._enter(entering)
        held = self.table.slot_of
        new = np.array([name not in held for name in ids], np.bool_)
        if new.any():
            coming = rows if new.all() else rows.filter(pl.Series(new))
            slots = self._append(coming)
            if features is not None:
                given = {n: features[n].to_numpy()[new] for n in self.maker if n in features.columns}
                self._note(given, slots)
        return np.array([held[name] for name in ids], np.int64)

    @staticmethod
    def _checked(rows: pl.DataFrame, features: pl.DataFrame | None) -> list[str]:
        """Ids of rows that can be taken in."""
        schemas.shaped(rows, schemas.TRANSACTIONS)
        ids: list[str] = rows["transaction_id"].to_list()
        wrong = [name for name in REQUIRED if rows[name].null_count()]
        problem = f"nothing in {', '.join(wrong)}" if wrong else ""
        if len(set(ids)) < len(ids):
            problem = "a transaction twice"
        if not problem and rows.height:
            for name in ("amount", "amount_base"):
                amount = rows[name].to_numpy()
                if not (np.isfinite(amount) & (amount > 0)).all():
                    problem = f"{name} that is no amount above 0"
            if not set(rows["direction"].to_list()) <= set(schemas.DIRECTIONS):
                problem = "a direction that is none"
        if features is not None and features.height != rows.height:
            problem = f"{features.height} rows of features for {rows.height} rows"
        if problem:
            raise ReperformError(
                "Rows cannot be taken in.",
                expected="rows as schemas.TRANSACTIONS, each once, with all that a row must tell",
                got=problem,
                where="incremental.State.add",
                fix="check rows before they are taken in; nothing was changed",
            )
        return ids

    def _append(self, rows: pl.DataFrame) -> I64:
        table = self.table
        slots = table.append(rows, *self._zones(rows["account_id"]))
        self.kept.append({name: np.zeros(len(slots)) for name in self.kept.names})
        order, time = table.in_order(slots), table["time"]
        for lists, name in (
            (self.by_account, "account_id"),
            (self.by_counterparty, "counterparty_id"),
            (self.by_entity, "entity_id"),
        ):
            lists.extend(table[name][order], order, time, table.ids)
        self.edges.extend(self._edge_codes(order), order, time, table.ids)
        self.edges.make_room(len(table.parties))
        self.marks.make_room(len(table.parties))
        self._forget(slots, table["enter"][slots])
        if self.waiting:
            for slot in slots.tolist():
                if table.ids[slot] in self.waiting:
                    self._confirm(slot, *self.waiting.pop(table.ids[slot]))
        self.first_day = min(self.first_day, int(table["day"][slots].min()))
        for account, day in zip(table["account_id"][slots].tolist(), table["day"][slots].tolist(), strict=True):
            held = self.rhythms.get(account)
            if held and max(held) > day:
                self.rhythms[account] = {at: value for at, value in held.items() if at <= day}
        self._drop_snapshots(slots)
        return slots

    def _zones(self, accounts: pl.Series) -> tuple[I64, I64]:
        """Codes of the accounts, and of their timezones."""
        party = self.table.parties.encode(accounts)
        return party, self.register["zone"][party]

    def _new_accounts(self, accounts: pl.DataFrame) -> pl.DataFrame:
        new = schemas.shaped(accounts, schemas.ACCOUNTS).filter(
            ~pl.col("account_id").is_in(self._registered)
        ) if accounts.height else accounts  # fmt: skip
        for zone in new["timezone"].drop_nulls().unique():
            wall_clock(pl.Series([0]).cast(schemas.UTC_US), zone)
        if new["account_id"].null_count() or new["account_id"].n_unique() < new.height:
            raise ReperformError(
                "Accounts cannot be registered.",
                expected="accounts with names, each once",
                got="an account twice or without a name",
                where="incremental.State.add",
                fix="check accounts before they are registered; nothing was changed",
            )
        return new

    def _enter(self, new: pl.DataFrame) -> None:
        if not new.height:
            return
        self.accounts = pl.concat([self.accounts, new])
        self._registered |= set(new["account_id"])
        party = self.register.add(new)
        self._frames = {}
        self.snapshots.clear()
        rows = [lists.of(int(code)) for code in party for lists in (self.by_account, self.by_counterparty)]
        for code in party.tolist():
            self.rhythms.pop(code, None)
        if any(len(slots) for slots in rows):
            # Payments with them may be told twice, and their clock and segment are known now.
            slots = np.unique(np.concatenate(rows))
            self.table.set_clock(slots, self.register["zone"][self.table["account_id"][slots]])
            self._index()
            for name, task in self.maker.items():
                every = task.needs or task.kpi.key == "entity"
                self.kept[f"{name} is known"][np.arange(1, len(self.table) + 1) if every else slots] = False

    def confirm(self, labels: pl.DataFrame) -> None:
        """Take in labels, as `schemas.LABELS`; a label of a row that has not come yet waits for it. All, or none.

        Raises:
            ReperformError: before anything is changed.
        """
        rows = schemas.shaped(labels, schemas.LABELS)
        wrong = [name for name in ("transaction_id", "is_anomaly", "confirmed_at") if rows[name].null_count()]
        if wrong:
            raise ReperformError(
                "Labels cannot be taken in.",
                expected="labels as schemas.LABELS",
                got=f"nothing in {', '.join(wrong)}",
                where="incremental.State.confirm",
                fix="check labels before they are taken in; nothing was changed",
            )
        self._say(rows)

    def _say(self, labels: pl.DataFrame) -> None:
        self.labelled = self.labelled or labels.height > 0
        said, moments = labels["is_anomaly"].cast(pl.Int64), labels["confirmed_at"].dt.epoch("us")
        for name, y, moment in zip(labels["transaction_id"], said, moments, strict=True):
            slot = self.table.slot_of.get(name)
            if slot is None:
                self.waiting[name] = (y, moment)
            else:
                self._confirm(slot, y, moment)

    def _confirm(self, slot: int, said: int, moment_us: int) -> None:
        table = self.table
        first = max(moment_us, int(table["enter"][slot]))
        changes = table["said"][slot] >= 0
        table["said"][slot], table["confirmed"][slot] = said, moment_us
        for key, bad in self.bad.items():
            party = int(table[f"{key}_id"][slot])
            if party < 0:
                continue
            mine = bad.setdefault(party, [])
            if said == 1 and slot not in mine:
                mine.append(slot)
            known = [max(int(table["confirmed"][x]), int(table["enter"][x])) for x in mine if table["said"][x] == 1]
            self._bad_from(key)[party] = min(known, default=UNKNOWN_TIME_US)
        if changes:
            first = int(table["enter"][slot])  # what was said before is not true any more
        self._forget(np.array([slot]), np.array([first]), labels=True)
        for kind in ("propagated", "structured"):
            held = self.snapshots.get(kind, {})
            self.snapshots[kind] = {key: value for key, value in held.items() if key[1] * DAY_US < first}

    def _bad_from(self, key: str) -> I64:
        """When the first anomaly of each party was known."""
        held, parties = self.bad_from[key], len(self.table.parties)
        if parties > len(held):
            more = np.full(parties + parties // 4 + 16 - len(held), UNKNOWN_TIME_US)
            held = self.bad_from[key] = np.concatenate([held, more])
        return held

    def _drop_snapshots(self, slots: I64) -> None:
        """Forget what would have held rows that came too late for it."""
        of = {name: self.table[name][slots] for name in ("time", "known", "day", "known_day")}
        earliest = {name: int(values.min()) for name, values in of.items()}
        zone = self.register["zone"][self.table["account_id"][slots]]

        def may_be_stale(kind: str, day: int) -> bool:
            if kind == "rates":
                return earliest["known_day"] <= day
            return earliest["day"] <= day - 2 if kind == "peers" else earliest["time"] < day * DAY_US

        def stale(kind: str, part: int, day: int) -> bool:
            if kind == "rates":
                late = (zone == part) & (of["known_day"] <= day)
            elif kind == "peers":
                late = (of["day"] <= day - 2) & (of["known_day"] == of["day"] + 1)
            else:
                late = (of["time"] < day * DAY_US) & (of["known"] <= day * DAY_US)
            return bool(late.any())

        for kind, held in self.snapshots.items():
            for key in [key for key in held if may_be_stale(kind, key[1]) and stale(kind, *key)]:
                del held[key]

    # Ledgers

    def extract(self, slots: I64, columns: Sequence[str], asks: Any = None, *, account: int = -1) -> Some:
        """Rows as a ledger.

        Args:
            slots: in the order of a table of transactions.
            columns: canonical columns.
            asks: mask of rows whose values will be read; all of them if not given.
            account: the only account, by party; -1 for all accounts.
        """
        about, day = self.about, self.table["day"][slots]
        return Some(
            Cells(self.table, slots, [name for name in SCHEMA if name in columns]),  # type: ignore[arg-type]  # as a frame
            self._frame(account), self.labels, about.maturity,
            about.default_timezone, (self.first_day, int(day.max())) if len(slots) else None,
            table=self.table, register=self.register, slots=slots,
            asks=np.ones(len(slots), np.bool_) if asks is None else asks,
        )  # fmt: skip

    def some(self, slots: I64) -> Some:
        """Rows of which single columns are read, in any order."""
        about = self.about
        return Some(
            Cells(self.table, slots, NAMES), self.accounts, self.labels, about.maturity,  # type: ignore[arg-type]
            about.default_timezone, None, table=self.table, register=self.register, slots=slots, asks=NOBODY,
        )  # fmt: skip

    def _frame(self, account: int) -> pl.DataFrame:
        """What the table of accounts says of one account, or of all."""
        if account < 0:
            return self.accounts
        if account not in self._frames:
            name = self.table.parties.text[account + 1]
            self._frames[account] = self.accounts.filter(pl.col("account_id") == name)
        return self._frames[account]

    # KPIs by key

    def _by_key(self, phase: Phase, slots: I64, made: Mapping[str, F64]) -> Values:
        """Columns of a phase for some rows."""
        out: Values = {}
        asking = Asking(self, slots, phase.key)
        for task in phase.tasks:
            found = self._quick(task, asking)
            if found is None:
                found = self._key_by_key(Phase(phase.key, (task,)), slots, ChainMap(out, dict(made)))
            out |= {column.name: np.asarray(found[column.name], np.float64) for column in task.columns}
        return out

    def _quick(self, task: Task, asking: Asking) -> Values | None:
        compute = QUICK.get(task.kpi.name)
        if compute is None or (asking.key == "account" and (asking.keys < 0).any()):
            return None
        scores = SCORES[task.kpi.name](asking, task) if task.kpi.name in SCORES else {}
        self._note(scores, asking.slots)
        return compute(asking, task, scores)

    def _key_by_key(self, phase: Phase, slots: I64, made: Mapping[str, F64]) -> Values:
        """The same by the KPIs' own functions, over a ledger for each key."""
        key, lists = f"{phase.key}_id", self.by_account if phase.key == "account" else self.by_counterparty
        codes = self.table[key][slots]
        out = {name: np.empty(len(slots)) for name in phase.names}
        needs = {name for task in phase.tasks for name in task.needs if name in made}
        for code in dict.fromkeys(codes.tolist()):
            places = np.flatnonzero(codes == code)
            asked = slots[places]
            rows = lists.of(code) if code >= 0 else self.table.in_order(asked)
            values = self._of_key(phase, rows, asked, {name: made[name][places] for name in needs})
            for name, column in out.items():
                column[places] = values[name]
        return out

    def _of_key(self, phase: Phase, rows: I64, asked: I64, made: Mapping[str, F64]) -> Values:
        """Columns of a phase for some rows of one key.

        Args:
            phase: KPIs.
            rows: all slots of the key.
            asked: those that are wanted.
            made: what they need, by row that is asked.
        """
        order = np.argsort(rows)
        place = order[np.searchsorted(rows, asked, sorter=order)]
        time, now = self.table["time"][rows], np.zeros(len(rows), np.bool_)
        now[place] = True
        account = int(self.table["account_id"][rows[0]]) if phase.key == "account" else -1
        base = self.extract(rows, sorted(phase.inputs - {"transaction_id"}), account=account)  # no KPI reads names
        ledgers: dict[int, Some] = {}
        out: Values = {}
        for task in phase.tasks:
            reach = self._reach(task)
            if reach not in ledgers:
                asks = now if reach == 0 else now | (time >= time[place].min() - reach)
                ledgers[reach] = replace(base, asks=asks)
            needed = {need: self._needed(need, rows, place, made, out) for need in task.needs}
            found = engine.values_of(ledgers[reach], Phase(phase.key, (task,)), needed)
            out |= {name: values[place] for name, values in found.items()}
        return out

    def _needed(self, need: str, rows: I64, place: I64, made: Mapping[str, F64], out: Values) -> F64:
        """A column that a KPI needs, for all rows of a key: as scored earlier, and as scored now."""
        own = out.get(need, made.get(need))
        values = np.full(len(rows), np.nan)
        others = np.ones(len(rows), np.bool_)
        if own is not None:
            values[place], others[place] = own, False
        values[others] = self.kept_of(need, rows[others])
        return values

    def _reach(self, task: Task) -> int:
        """How far back rows ask for themselves because later ones read what they were scored."""
        declared = SCORED_BEFORE.get(task.kpi.name)
        if declared is None:
            return FOREVER_US
        return max((length_us(window) for window in declared(task.settings)), default=0)

    # KPIs across keys

    def _snapshot(self, kind: str, part: int, day: int, make: Callable[[], Any]) -> Any:
        held = self.snapshots.setdefault(kind, {})
        if (part, day) in held:
            return held[part, day]
        made = held[part, day] = make()
        parts = max(len(self.register.names["zone"]), 1) if kind == "rates" else 1
        while len(held) > MOST_SNAPSHOTS[kind] * parts:
            del held[min(held, key=lambda key: key[1])]  # it may be the new one: a row that comes very late
        return made

    def prepare(self, moment: datetime) -> None:
        """Take what rows of a moment's day will look up: the first row of the day need not wait for it.

        To be called when a day has begun, in a background moment; what is there already costs nothing. Rows that come
        too late for what was taken make it to be taken anew, by the next call or the next row.

        Args:
            moment: on which a row might be booked.
        """
        now = np.array([int((moment - EPOCH) / timedelta(microseconds=1))])
        names = self.register.names["zone"]
        days = {code: int(self.table.clock.local(now, np.array([code]))[0] // DAY_US) for code in names.code.values()}
        for task in self.tasks:
            if task.kpi.name == "frequency_rate":
                for zone, day in days.items():
                    self._rates_of(task, zone, day)
            elif task.kpi.name == "correlation_peers":
                for day in sorted(set(days.values())):
                    self._peers_of(task, day - day % task.settings.refresh_days)
            elif task.kpi.name == "correlation":
                self._prepare_rhythms(task, days)
            elif task.kpi.name == "propagated_risk" and self.labelled:
                self._propagated_of(task, self._step(task, int(now[0])))
            elif task.kpi.name == "network_structure":
                self._structured_of(task, int(now[0]) // DAY_US)

    def _prepare_rhythms(self, task: Task, days: Mapping[int, int]) -> None:
        accounts = np.flatnonzero(self.by_account.used > 0)
        zones = self.register["zone"][accounts]
        day = np.array([days[zone] for zone in zones.tolist()], np.int64)
        rhythms_of(self, task, accounts, day - day % task.settings.refresh_days)

    def _clients(self) -> I64:
        """Accounts that are registered or have rows."""
        held = self.register["registered"] > 0
        held[np.flatnonzero(self.by_account.used[: len(held)] > 0)] = True
        return np.flatnonzero(held)

    def _entities(self, accounts: I64) -> I64:
        """Entity of each account: the register says so; of an account that it does not name, the first row does."""
        out = self.register["entity"][accounts]
        for place in np.flatnonzero(self.register["registered"][accounts] == 0).tolist():
            out[place] = self.table["entity_id"][self.by_account.of(int(accounts[place]))[0]]
        return np.asarray(out)

    def _rates_of(self, task: Task, zone: int, day: int) -> population.ByParty:
        def make() -> Any:
            accounts = self._clients()
            mine = accounts[self.register["zone"][accounts] == zone]
            days = np.full(len(mine), day)
            p = daily_of(self, task, mine, days, days * DAY_US + 2 * DAY_US)["p"]
            return population.rates(p, self._entities(mine), mine, len(self.table.parties))

        found: population.ByParty = self._snapshot("rates", zone, day, make)
        return found

    def _rates(self, task: Task, slots: I64, _made: Mapping[str, F64]) -> F64:
        party, day = self.table["account_id"][slots], self.table["day"][slots]
        zone, out = self.register["zone"][party], np.empty((len(task.columns), len(slots)))
        for part, at in dict.fromkeys(zip(zone.tolist(), day.tolist(), strict=True)):
            here = (zone == part) & (day == at)
            out[:, here] = self._rates_of(task, part, at).of_many(party[here])
        return out

    def _peers_of(self, task: Task, day: int) -> population.ByParty:
        def make() -> Any:
            accounts, settings = self._clients(), task.settings
            span = settings.days + settings.reference_days + 1
            x, alive = daily_series(self, task, accounts, np.full(len(accounts), day), span)
            segment = self.register["segment"][accounts]
            group = self._entities(accounts) * (int(segment.max(initial=0)) + 1) + segment
            return population.peers(x, alive, day - span, group, accounts, len(self.table.parties), settings)

        found: population.ByParty = self._snapshot("peers", 0, day, make)
        return found

    def _peers(self, task: Task, slots: I64, _made: Mapping[str, F64]) -> F64:
        party, day = self.table["account_id"][slots], self.table["day"][slots]
        day = day - day % task.settings.refresh_days
        out = np.empty((len(task.columns), len(slots)))
        for at in dict.fromkeys(day.tolist()):
            out[:, day == at] = self._peers_of(task, at).of_many(party[day == at])
        return out

    def _payments(self, task: Task, day: int, window_us: int) -> Some:
        """Payments of a window before a day, and every anomaly."""
        time, end = self.table["time"], day * DAY_US
        held = ((time >= end - window_us) & (time < end)) | (self.table["said"] == 1)
        return self.extract(self.table.in_order(np.flatnonzero(held)), task.kpi.inputs)

    @staticmethod
    def _step(task: Task, moment_us: int) -> int:
        step = task.settings.every_days
        return int((moment_us // DAY_US - MONDAY) // step * step + MONDAY)

    def _propagated_of(self, task: Task, day: int) -> Any:
        def make() -> Any:
            ledger = self._payments(task, day, length_us(task.settings.window))
            return population.propagated(ledger, self.table.parties, task, day)

        return self._snapshot("propagated", 0, day, make)

    def _propagated(self, task: Task, slots: I64, _made: Mapping[str, F64]) -> F64:
        out = np.full((len(task.columns), len(slots)), np.nan)
        if not self.labelled:
            return out
        account, other = self.table["account_id"][slots], self.table["counterparty_id"][slots]
        days = [self._step(task, moment) for moment in self.table["time"][slots].tolist()]
        for day in dict.fromkeys(days):
            here = np.array([one == day for one in days])
            out[:, here] = self._propagated_of(task, day)(account[here], other[here])
        return out

    def _structured_of(self, task: Task, day: int) -> Any:
        def make() -> Any:
            window = length_us(task.settings.window) + task.settings.rank_days * DAY_US
            return population.structured(self._payments(task, day, window), self.table.parties, task, day)

        return self._snapshot("structured", 0, day, make)

    def _structured(self, task: Task, slots: I64, _made: Mapping[str, F64]) -> F64:
        out = np.full((len(task.columns), len(slots)), np.nan)
        account, other = self.table["account_id"][slots], self.table["counterparty_id"][slots]
        days = self.table["time"][slots] // DAY_US
        for day in dict.fromkeys(days.tolist()):
            here = days == day
            found = self._structured_of(task, day)(account[here], other[here], self.labelled)
            for row, column in zip(out, task.columns, strict=True):
                if column.name in found:
                    row[here] = found[column.name]
        return out

    def _synchrony(self, task: Task, slots: I64, _made: Mapping[str, F64]) -> F64:
        table, s, entities, lists = self.table, task.settings, self.by_entity, self.by_account
        return asof.synchrony(
            entities.starts, entities.used, entities.slots, lists.starts, lists.used, lists.slots,
            table["entity_id"], table["account_id"], table["time"], table["enter"], slots,
            s.minutes * MINUTE_US, length_us(s.window), s.most_partners, s.most_nearby, s.most_records,
        )  # fmt: skip

    def _graph(self, task: Task, slots: I64, _made: Mapping[str, F64]) -> F64:
        table = self.table
        found = graph.paths_to(
            self.edges.rows, table["time"], table["enter"], table["cents"], table["payer"], table["payee"],
            task.settings, slots,
        )  # fmt: skip
        found |= self._bad_neighbours(task, slots)
        return np.stack([found[column.name] for column in task.columns])

    def _bad_neighbours(self, task: Task, slots: I64) -> Values:
        window, marks, counts = task.settings.window, self.marks, {}
        for key, other in (("counterparty", "account"), ("account", "counterparty")):
            asking = Asking(self, slots, key)
            past = asking.past(length_us(window))
            own = asking["account_id"] if key == "counterparty" else np.full(len(slots), -1)
            counts[key], marks.turn = asof.bad_items(
                *past.walk, length_us(window), past[f"{other}_id"], own, self._bad_from(other), marks.stamp, marks.turn
            )
        unnamed = self.table["counterparty_id"][slots] < 0
        return {
            f"network_bad_accounts_{window}": np.where(unnamed, np.nan, counts["counterparty"]),
            f"network_bad_counterparties_{window}": counts["account"].astype(float),
        }

    def _matched(self, task: Task, slots: I64, made: Mapping[str, F64]) -> F64:
        segment, names = self.register["segment"][self.table["account_id"][slots]], self.register.names["segment"]
        bins, held = matched.degree_bins(made), self._groups.setdefault(task.kpi.name, {})
        known = np.empty((len(slots), len(task.settings.indicators), 3))
        for place, (code, size) in enumerate(zip(segment.tolist(), bins.tolist(), strict=True)):
            if (code, size) not in held:
                held[code, size] = matched.groups_of(task.fitted, str(names.text[code + 1]), size, task.settings)
            known[place] = held[code, size]
        found = matched.compared(made, known, np.arange(len(slots)), task.settings)
        return np.stack([found[column.name] for column in task.columns])

    def _across_keys(self, task: Task, slots: I64, made: Mapping[str, F64]) -> Values:
        """A KPI across keys for some rows."""
        of_rows = {
            "frequency_rate": self._rates, "correlation_peers": self._peers, "propagated_risk": self._propagated,
            "network_structure": self._structured, "synchrony": self._synchrony, "network_graph": self._graph,
            "network_matched": self._matched,
        }.get(task.kpi.name)  # fmt: skip
        if of_rows is None:
            return self.from_all(task, slots)
        return dict(zip([column.name for column in task.columns], of_rows(task, slots, made), strict=True))

    def from_all(self, task: Task, slots: I64) -> Values:
        """A KPI that is not known here: from all rows, exact and slow."""
        order = self.table.in_order(np.arange(1, len(self.table) + 1))
        made = engine.run(self._whole(order), self.tasks, EngineParams())
        place = np.argsort(order)[slots - 1]
        return {column.name: made[column.name][place] for column in task.columns}

    def _whole(self, slots: I64) -> Ledger:
        """Rows as a ledger like any other."""
        said = slots[self.table["said"][slots] >= 0]
        labels = self.table.frame(said, ("transaction_id",)).with_columns(
            is_anomaly=pl.Series(self.table["said"][said] == 1),
            typology=pl.lit(None, pl.String),
            confirmed_at=pl.Series(self.table["confirmed"][said]).cast(schemas.UTC_US),
        )
        rows = self.table.frame(slots, tuple(SCHEMA))
        return replace(self.about, transactions=rows, accounts=self.accounts, labels=labels, span=None)

    def values(self, slots: I64) -> Values:
        """Every column of every KPI for some rows, in the columns' order."""
        made: Values = {}
        if not len(slots):
            return {column.name: np.zeros(0) for task in self.tasks for column in task.columns}
        for phase in self.phases:
            if phase.key == "entity":
                for task in phase.tasks:
                    made |= self._across_keys(task, slots, made)
            else:
                made |= self._by_key(phase, slots, {name: made[name] for name in phase.needs if name in made})
            self._note(made, slots)
        for task in self.tasks:
            together = np.concatenate([made[column.name] for column in task.columns])
            if np.isinf(together).any():
                engine.finite(task, made)
        return {column.name: made[column.name] for task in self.tasks for column in task.columns}

    @property
    def bytes(self) -> int:
        """Memory of rows and indexes."""
        lists = (self.by_account, self.by_counterparty, self.by_entity, self.edges)
        return self.table.bytes + self.kept.bytes + sum(each.bytes for each in lists)


def kept_columns(todo: Sequence[Task]) -> list[str]:
    """Columns of earlier rows that KPIs of later rows read, sorted. Where they are given, none is made again."""
    made = {column.name for task in todo for column in task.columns}
    needed = {name for task in todo if task.kpi.key != "entity" for name in task.needs if name in made}
    return sorted(needed | {name for task in todo for name in read_of(task)})


def state_of(
    transactions: pl.DataFrame,
    accounts: pl.DataFrame,
    labels: pl.DataFrame,
    stage: FeaturizeParams,
    split: SplitParams,
    *,
    fitted: Mapping[str, dict[str, Any]],
    features: pl.DataFrame | None = None,
    labelled: bool = False,
) -> State:
    """A state from the tables of a pipeline's run.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order of (booked_at, transaction_id).
        accounts: as `schemas.ACCOUNTS`.
        labels: as `schemas.LABELS`.
        stage: KPIs and settings.
        split: the calendar.
        fitted: what was learned, as in `fitted.json`.
        features: `features.parquet` of these transactions, or of it what `kept_columns` names, if there is one; it
            saves time.
        labelled: whether case handling gives labels at all, where none is known yet.
    """
    featurize.check_settings(stage)
    ledger = featurize.ledger_of(transactions, accounts, labels, stage, split)
    return State(ledger, engine.tasks(engine.selected(stage.kpis), stage, fitted), features, labelled=labelled)


def features_of(state: State, rows: pl.DataFrame) -> pl.DataFrame:
    """The features of rows, as `featurize.compute` would give them over all that the state knows by now.

    Rows that the state does not hold yet are taken in first.

    Args:
        state: what is known.
        rows: as `schemas.TRANSACTIONS`.

    Returns:
        Identity columns and one column per KPI value, rows in the order given.
    """
    slots = state.add(rows)
    made = state.values(slots)
    table = np.stack(list(made.values()), axis=1).tolist()
    known = [tuple(None if value != value else value for value in row) for row in table]  # noqa: PLR0124  # NaN
    # Rows of plain numbers: for one row that takes a quarter of the time that a column after the other does.
    return rows.select(featurize.IDENTITY).hstack(
        pl.DataFrame(known, schema=dict.fromkeys(made, pl.Float64), orient="row")
    )
