"""KPIs of new transactions alone, to the last bit as if all were computed anew: scoring in real time.

A `State` is made once from the tables, and takes in rows and labels as they come. For a new row it gathers the records
that its KPIs look at, and hands them to the very functions that compute whole tables. What describes a population, such
as the graph of the day, is taken when the first row of a day asks for it, from what was known when the day began.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize, schemas
from reperform.featurize import engine, graph
from reperform.featurize.engine import Phase, Task
from reperform.featurize.incremental import population
from reperform.featurize.incremental.extract import Extract
from reperform.featurize.incremental.rows import SCHEMA, Columns, Lists, Register, Table
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Values
from reperform.featurize.synchrony import MINUTE_US
from reperform.featurize.windows import DAY_US, FOREVER_US, length_us
from reperform.params import EngineParams, FeaturizeParams, SplitParams

MOST_SNAPSHOTS = 64  # of each kind: rows may arrive days late
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
    "concentration": lambda _: (),
    "correlation": lambda _: (),
    "network": lambda s: (s.pass_through_window, *s.new_windows),
    "network_counterparty": lambda _: (),
}


class State:
    """Everything that KPIs of new rows look back on.

    Args:
        ledger: the tables as they are known so far.
        todo: KPIs with what was learned for them.
        features: columns of the ledger's rows that are computed already; those that KPIs need are taken from here.
        labelled: whether case handling gives labels at all, if none may be known yet: else distances to known
            anomalies are unknown until the first one comes.
    """

    def __init__(
        self, ledger: Ledger, todo: Sequence[Task], features: pl.DataFrame | None = None, *, labelled: bool = False
    ) -> None:
        self.tasks = list(todo)
        self.phases = engine.phases(todo)
        self.accounts = ledger.accounts
        self.labels = ledger.labels.head(0)  # what they say stands with their rows
        self.labelled = labelled
        self.about = replace(ledger, transactions=ledger.transactions.head(0))
        self.table = Table(self.about)
        self.register = Register(self.table.parties, ledger.default_timezone)
        self.register.add(ledger.accounts)
        self.table.append(ledger.transactions, self._zones(ledger.transactions["account_id"]))
        self.waiting: dict[str, tuple[int, int]] = {}  # labels of rows that have not come yet
        self.bad_accounts: dict[int, list[int]] = {}
        self.bad_parties: dict[int, list[int]] = {}
        self.snapshots: dict[str, dict[tuple[int, int], Any]] = {}
        self._frames: dict[int, pl.DataFrame] = {}
        self._index()
        self._keep(ledger, features)
        self._say(ledger.labels)

    def _index(self) -> None:
        table, parties = self.table, len(self.table.parties)
        order = table.in_order(np.arange(1, len(table) + 1))
        self.by_account = Lists(table["account_id"], order, parties)
        self.by_counterparty = Lists(table["counterparty_id"], order, parties)
        self.by_entity = Lists(table["entity_id"], order, len(table.names["entity_id"]))
        self.edges = Lists(self._edge_codes(np.arange(len(table) + 1)), order, parties)
        self.first_day = int(table["day"].min())

    def _edge_codes(self, slots: I64) -> I64:
        """Payee of each slot that is an edge, as in `graph.is_edge`; -1 for the others."""
        table = self.table
        incoming = table["direction"][slots] == table.names["direction"].code.get("in", -2)
        other = table["counterparty_id"][slots]
        told = incoming & (other >= 0) & (self.register["registered"][other] > 0 if len(table.parties) else False)
        return np.where(told, -1, table["payee"][slots])

    # What earlier rows were scored, as far as KPIs need it

    def _keep(self, ledger: Ledger, features: pl.DataFrame | None) -> None:
        maker = {column.name: task for task in self.tasks for column in task.columns}
        needed = {name for task in self.tasks if task.kpi.key != "entity" for name in task.needs if name in maker}
        self.maker = {name: maker[name] for name in sorted(needed)}
        self.kept = Columns(
            dict.fromkeys(self.maker, np.float64) | {f"{name} is known": np.bool_ for name in self.maker}
        )
        given = set(features.columns) if features is not None else set()
        made: Mapping[str, Any] = {}
        if not set(self.maker) <= given:
            made = engine.run(ledger, self._makers(), EngineParams())
        elif features is not None:
            made = {name: features[name].to_numpy() for name in self.maker}
        rows = np.concatenate([[False], np.ones(len(self.table), np.bool_)])
        values = {name: np.concatenate([[np.nan], made[name]]) for name in self.maker}
        self.kept.append(values | {f"{name} is known": rows for name in self.maker})

    def _makers(self) -> list[Task]:
        """Tasks that make what is kept, and what these need in turn."""
        by_column = {column.name: task for task in self.tasks for column in task.columns}
        wanted = {task.kpi.name for task in self.maker.values()}
        for task in reversed(self.tasks):
            if task.kpi.name in wanted:
                wanted |= {by_column[name].kpi.name for name in task.needs if name in by_column}
        return [task for task in self.tasks if task.kpi.name in wanted]

    def _kept(self, name: str, slots: I64) -> F64:
        unknown = slots[~self.kept[f"{name} is known"][slots]]
        if len(unknown):
            task = self.maker[name]
            needed = {need: self._kept(need, unknown) for need in task.needs if need in self.maker}
            self._note(self._by_key(Phase(task.kpi.key, (task,)), unknown, needed), unknown)
        values: F64 = self.kept[name][slots]
        return values

    def _note(self, made: Mapping[str, F64], slots: I64) -> None:
        for name in self.maker:
            if name in made:
                self.kept[name][slots] = made[name]
                self.kept[f"{name} is known"][slots] = True

    def _forget(self, slot: int, moment_us: int) -> None:
        """What rows were scored that could have seen a record which is told only now."""
        time, every = self.table["time"], [task for task in self.maker.values() if task.needs]
        lists = (
            self.by_account.of(self.table["account_id"][slot]),
            self.by_counterparty.of(self.table["counterparty_id"][slot]),
        )
        for slots in (np.arange(1, len(self.table) + 1),) if every else lists:
            later = slots[time[slots] >= moment_us]
            for name in self.maker:
                self.kept[f"{name} is known"][later] = False

    # What comes in

    def add(self, rows: pl.DataFrame, accounts: pl.DataFrame | None = None) -> I64:
        """Take in rows, in any order; those that are held already are left as they are.

        Args:
            rows: as `schemas.TRANSACTIONS`.
            accounts: accounts that were not registered before, as `schemas.ACCOUNTS`.

        Returns:
            The slot of each row.
        """
        schemas.shaped(rows, schemas.TRANSACTIONS)
        if accounts is not None:
            self._enter(accounts)
        held, ids = self.table.slot_of, rows["transaction_id"].to_list()
        new = rows if not any(name in held for name in ids) else rows.filter(pl.Series([n not in held for n in ids]))
        if new.height:
            self._append(new)
        return np.array([held[name] for name in ids], np.int64)

    def _append(self, rows: pl.DataFrame) -> None:
        table = self.table
        slots = table.append(rows, self._zones(rows["account_id"]))
        self.kept.append({name: np.zeros(len(slots)) for name in self.kept.names})
        edges = self._edge_codes(slots)
        for place, slot in enumerate(slots.tolist()):
            for lists, key in (
                (self.by_account, table["account_id"][slot]),
                (self.by_counterparty, table["counterparty_id"][slot]),
                (self.by_entity, table["entity_id"][slot]),
                (self.edges, edges[place]),
            ):
                lists.insert(int(key), slot, table["time"], table.ids)
            self._forget(slot, int(table["enter"][slot]))
            if table.ids[slot] in self.waiting:
                self._confirm(slot, *self.waiting.pop(table.ids[slot]))
        self.edges.make_room(len(table.parties))
        self.first_day = min(self.first_day, int(table["day"][slots].min()))
        self._drop_snapshots(slots)

    def _zones(self, accounts: pl.Series) -> pl.Series:
        party = self.table.parties.encode(accounts)
        return self.register.names["zone"].series("timezone", self.register["zone"][party])

    def _enter(self, accounts: pl.DataFrame) -> None:
        known = set(self.accounts["account_id"])
        new = schemas.shaped(accounts, schemas.ACCOUNTS).filter(~pl.col("account_id").is_in(known))
        if not new.height:
            return
        self.accounts = pl.concat([self.accounts, new])
        party = self.register.add(new)
        self._frames = {}
        self.snapshots.clear()
        rows = [lists.of(int(code)) for code in party for lists in (self.by_account, self.by_counterparty)]
        if any(len(slots) for slots in rows):
            # Payments with them may be told twice, and their clock and segment are known now.
            slots = np.unique(np.concatenate(rows))
            self.table.set_clock(slots, self._zones(self.table.frame(slots, ("account_id",))["account_id"]))
            self._index()
            for name in self.maker:
                self.kept[f"{name} is known"][1:] = False

    def confirm(self, labels: pl.DataFrame) -> None:
        """Take in labels, as `schemas.LABELS`; a label of a row that has not come yet waits for it."""
        self._say(schemas.shaped(labels, schemas.LABELS))

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
        table["said"][slot], table["confirmed"][slot] = said, moment_us
        if said == 1:
            self.bad_accounts.setdefault(int(table["account_id"][slot]), []).append(slot)
            self.bad_parties.setdefault(int(table["counterparty_id"][slot]), []).append(slot)
        self._forget(slot, first)
        for kind in ("propagated", "structured"):
            held = self.snapshots.get(kind, {})
            self.snapshots[kind] = {key: value for key, value in held.items() if key[1] * DAY_US < first}

    def _drop_snapshots(self, slots: I64) -> None:
        """Forget what would have held rows that came too late for it."""
        of = {name: self.table[name][slots] for name in ("time", "known", "day", "known_day")}
        zone = self.register["zone"][self.table["account_id"][slots]]

        def stale(kind: str, part: int, day: int) -> bool:
            if kind == "rates":
                late = (zone == part) & (of["known_day"] <= day)
            elif kind == "peers":
                late = (of["day"] <= day - 2) & (of["known_day"] == of["day"] + 1)
            else:
                late = (of["time"] < day * DAY_US) & (of["known"] <= day * DAY_US)
            return bool(late.any())

        for kind, held in self.snapshots.items():
            for key in [key for key in held if stale(kind, *key)]:
                del held[key]

    # Ledgers

    def extract(self, slots: I64, columns: Sequence[str], asks: Any = None, *, account: int = -1) -> Extract:
        """Rows as a ledger.

        Args:
            slots: in the order of a table of transactions.
            columns: canonical columns.
            asks: mask of rows whose values will be read; all of them if not given.
            account: the only account, by party; -1 for all accounts.
        """
        about, day = self.about, self.table["day"][slots]
        return Extract(
            self.table.frame(slots, columns), self._frame(account), self.labels, about.maturity,
            about.default_timezone, (self.first_day, int(day.max())) if len(slots) else None,
            table=self.table, register=self.register, slots=slots,
            asks=np.ones(len(slots), np.bool_) if asks is None else asks,
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
        """Columns of a phase for some rows, key by key."""
        key, lists = f"{phase.key}_id", self.by_account if phase.key == "account" else self.by_counterparty
        codes = self.table[key][slots]
        out = {name: np.empty(len(slots)) for name in phase.names}
        for code in dict.fromkeys(codes.tolist()):
            places = np.flatnonzero(codes == code)
            asked = slots[places]
            rows = lists.of(code) if code >= 0 else self.table.in_order(asked)
            values = self._of_key(phase, rows, asked, {name: made[name][places] for name in made})
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
        ledgers: dict[int, Extract] = {}
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
        values[others] = self._kept(need, rows[others])
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
        if (part, day) not in held:
            held[part, day] = make()
            while len(held) > MOST_SNAPSHOTS:
                del held[min(held, key=lambda key: key[1])]
        return held[part, day]

    def _rates(self, task: Task, slot: int, _made: Mapping[str, float]) -> Sequence[float]:
        party, day = int(self.table["account_id"][slot]), int(self.table["day"][slot])
        zone = int(self.register["zone"][party])

        def make() -> Any:
            account = self.table["account_id"]
            mine = (self.register["zone"][account] == zone) & (account >= 0) & (self.table["day"] < day)
            ledger = self.extract(self.table.in_order(np.flatnonzero(mine)), task.kpi.inputs)
            name = self.register.names["zone"].text[zone + 1]
            clock = self.accounts["timezone"].fill_null(self.about.default_timezone)
            ledger = replace(ledger, accounts=self.accounts.filter(clock == name), span=(self.first_day, day))
            return population.rates(ledger, self.table.parties, task, day)

        return list(self._snapshot("rates", zone, day, make).at(party))

    def _peers(self, task: Task, slot: int, _made: Mapping[str, float]) -> Sequence[float]:
        day = int(self.table["day"][slot])
        day -= day % task.settings.refresh_days

        def make() -> Any:
            before = np.flatnonzero(self.table["day"] <= day - 2)
            ledger = self.extract(self.table.in_order(before), task.kpi.inputs)
            return population.peers(replace(ledger, span=(self.first_day, day)), self.table.parties, task, day)

        return list(self._snapshot("peers", 0, day, make).at(int(self.table["account_id"][slot])))

    def _payments(self, task: Task, day: int, window_us: int) -> Extract:
        """Payments of a window before a day, and every anomaly."""
        time, end = self.table["time"], day * DAY_US
        held = ((time >= end - window_us) & (time < end)) | (self.table["said"] == 1)
        return self.extract(self.table.in_order(np.flatnonzero(held)), task.kpi.inputs)

    def _sides(self, slot: int) -> tuple[int, int]:
        return int(self.table["account_id"][slot]), int(self.table["counterparty_id"][slot])

    def _propagated(self, task: Task, slot: int, _made: Mapping[str, float]) -> Sequence[float]:
        if not self.labelled:
            return [np.nan] * len(task.columns)
        step = task.settings.every_days
        day = (int(self.table["time"][slot]) // DAY_US - MONDAY) // step * step + MONDAY

        def make() -> Any:
            ledger = self._payments(task, day, length_us(task.settings.window))
            return population.propagated(ledger, self.table.parties, task, day)

        return list(self._snapshot("propagated", 0, day, make)(*self._sides(slot)))

    def _structured(self, task: Task, slot: int, _made: Mapping[str, float]) -> Sequence[float]:
        day = int(self.table["time"][slot]) // DAY_US

        def make() -> Any:
            window = length_us(task.settings.window) + task.settings.rank_days * DAY_US
            return population.structured(self._payments(task, day, window), self.table.parties, task, day)

        found = self._snapshot("structured", 0, day, make)(*self._sides(slot), self.labelled)
        return [float(found[column.name][0]) if column.name in found else np.nan for column in task.columns]

    def _synchrony(self, task: Task, slot: int, _made: Mapping[str, float]) -> Sequence[float]:
        table, s, now = self.table, task.settings, int(self.table["time"][slot])
        reach, window = s.minutes * MINUTE_US, length_us(s.window)
        near = self.by_entity.between(int(table["entity_id"][slot]), table["time"], now - reach, now)
        near = near[table["enter"][near] <= now][::-1][: s.most_nearby]
        own = int(table["account_id"][slot])
        partners = [party for party in dict.fromkeys(table["account_id"][near].tolist()) if party != own]
        rows = [np.array([slot])]
        for party in [own, *partners[: s.most_partners]] if partners else []:
            past = self.by_account.between(party, table["time"], now - window, now)
            past = past[table["enter"][past] <= now]
            recent = table["time"][past] >= now - reach
            rows += [past[~recent][-s.most_records :], past[recent]]
        return self._last(task, np.concatenate(rows), slot)

    def _last(self, task: Task, rows: I64, slot: int) -> Sequence[float]:
        """A KPI's columns for one of some rows."""
        slots = self.table.in_order(np.unique(rows))
        ledger = self.extract(slots, task.kpi.inputs, slots == slot)
        values = engine.values_of(ledger, Phase("entity", (task,)), {})
        return [float(values[column.name][ledger.asks][0]) for column in task.columns]

    def _graph(self, task: Task, slot: int, _made: Mapping[str, float]) -> Sequence[float]:
        table = self.table
        paths = graph.paths_to(
            self.edges.rows, table["time"], table["enter"], table["cents"], table["payer"], table["payee"],
            task.settings, np.array([slot]),
        )  # fmt: skip
        found = {name: values[0] for name, values in paths.items()}
        found |= self._bad_neighbours(task, slot)
        return [float(found[column.name]) for column in task.columns]

    def _bad_neighbours(self, task: Task, slot: int) -> dict[str, float]:
        table, (account, other) = self.table, self._sides(slot)
        now, window = int(table["time"][slot]), length_us(task.settings.window)
        of_account = self.by_account.between(account, table["time"], now - window, now)
        of_party = self.by_counterparty.between(other, table["time"], now - window, now)
        rows = [np.array([slot]), of_account, of_party]
        accounts = {account, *table["account_id"][of_party].tolist()} & self.bad_accounts.keys()
        parties = set(table["counterparty_id"][of_account].tolist()) & self.bad_parties.keys()
        rows += [np.array(self.bad_accounts[party]) for party in sorted(accounts)]
        rows += [np.array(self.bad_parties[party]) for party in sorted(parties)]
        slots = table.in_order(np.unique(np.concatenate(rows)))
        ledger = self.extract(slots, (), slots == slot)
        values = graph.bad_neighbours(ledger, task.settings.window)
        return {name: float(column[ledger.asks][0]) for name, column in values.items()}

    def _matched(self, task: Task, slot: int, made: Mapping[str, float]) -> Sequence[float]:
        ledger = self.extract(np.array([slot]), ("account_id",))
        values = engine.values_of(
            ledger, Phase("entity", (task,)), {name: np.array([made[name]]) for name in task.needs}
        )
        return [float(values[column.name][0]) for column in task.columns]

    def _across_keys(self, task: Task, slots: I64, made: Mapping[str, F64]) -> Values:
        """A KPI across keys for some rows."""
        of_row = {
            "frequency_rate": self._rates, "correlation_peers": self._peers, "propagated_risk": self._propagated,
            "network_structure": self._structured, "synchrony": self._synchrony, "network_graph": self._graph,
            "network_matched": self._matched,
        }.get(task.kpi.name)  # fmt: skip
        names = [column.name for column in task.columns]
        if of_row is None:
            return self.from_all(task, slots)
        found = np.empty((len(names), len(slots)))
        for place, slot in enumerate(slots.tolist()):
            found[:, place] = of_row(task, slot, {name: made[name][place] for name in task.needs})
        return dict(zip(names, found, strict=True))

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
        for phase in self.phases:
            if phase.key == "entity":
                for task in phase.tasks:
                    made |= self._across_keys(task, slots, made)
            else:
                made |= self._by_key(phase, slots, {name: made[name] for name in phase.needs if name in made})
            self._note(made, slots)
        return {column.name: made[column.name] for task in self.tasks for column in task.columns}

    @property
    def bytes(self) -> int:
        """Memory of rows and indexes."""
        lists = (self.by_account, self.by_counterparty, self.by_entity, self.edges)
        return self.table.bytes + self.kept.bytes + sum(each.bytes for each in lists)


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
        features: `features.parquet` of these transactions, if there is one; it saves time.
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
