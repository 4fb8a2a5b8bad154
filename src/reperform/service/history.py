"""What scores look back on: KPIs' own state, and each account's newest rows in order of arrival.

Models whose features and histories are the same share one of these, so that each row is taken in once.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import schemas
from reperform.featurize import engine, incremental
from reperform.featurize.incremental.rows import SCHEMA
from reperform.featurize.kernels import F64, I64
from reperform.service.bundle import Base, Bundle
from reperform.service.journal import Event

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]
Key = tuple[int, int, str]
SPARE = 8  # rows kept beyond what a sequence needs, for those that come a little out of order
ROWS_AT_ONCE = 2_000


@dataclass
class Newest:
    """An account's newest rows, in order of arrival.

    Args:
        keys: known_at and booked_at in microseconds, transaction_id.
        vectors: of features, float32, shape (len(keys), width).
    """

    keys: list[Key]
    vectors: F32


@dataclass(frozen=True)
class Sequences:
    """New rows behind those of their accounts that arrived before, each account in order of arrival.

    Args:
        x: shape (m, width), the features that sequences are made of.
        groups: shape (m,), a number for each account.
        wanted: shape (m,), the new rows.
        place: shape (new rows,), where each of them stood among the rows given.
    """

    x: F32
    groups: I64
    wanted: Bools
    place: I64


class Recent:
    """The newest rows of every account.

    Args:
        depth: how many earlier rows a score may depend on; 0 keeps none.
        width: features.
    """

    def __init__(self, depth: int, width: int) -> None:
        self.depth = depth
        self._most = depth + SPARE if depth else 0
        self._nothing = np.zeros((0, width), np.float32)
        self._of: dict[str, Newest] = {}

    def chosen(self, rows: pl.DataFrame) -> I64:
        """Numbers of the rows that are worth keeping: the newest of each account, in order of arrival."""
        order = rows.select("account_id", "known_at", "booked_at", "transaction_id").with_row_index("row")
        order = order.sort("known_at", "booked_at", "transaction_id")
        newest = order.group_by("account_id", maintain_order=True).tail(self._most)
        return newest["row"].cast(pl.Int64).to_numpy()

    def add(self, accounts: Sequence[str], keys: Sequence[Key], x: F32) -> Sequences | None:
        """Take in rows, and give them together with those that arrived before; None where none are kept.

        Args:
            accounts: of each row.
            keys: of each row.
            x: features, shape (n, width).
        """
        if not self.depth:
            return None
        of_account: dict[str, list[int]] = {}
        for at in sorted(range(len(keys)), key=keys.__getitem__):
            of_account.setdefault(accounts[at], []).append(at)
        parts = [self._merged(name, mine, keys, x) for name, mine in of_account.items()]
        sizes = [len(wanted) for _, wanted in parts]
        return Sequences(
            x=np.concatenate([vectors for vectors, _ in parts]),
            groups=np.repeat(np.arange(len(parts)), sizes),
            wanted=np.concatenate([wanted for _, wanted in parts]),
            place=np.array([at for mine in of_account.values() for at in mine], np.int64),
        )

    def _merged(self, account: str, mine: list[int], keys: Sequence[Key], x: F32) -> tuple[F32, Bools]:
        old = self._of.get(account) or Newest([], self._nothing)
        new_keys = [keys[at] for at in mine]
        if old.keys and old.keys[-1] >= new_keys[0]:
            return self._told_late(account, old, new_keys, x[mine])
        context = min(len(old.keys), self.depth)
        vectors = np.concatenate([old.vectors[len(old.keys) - context :], x[mine]])
        kept = vectors if context == len(old.keys) else np.concatenate([old.vectors, x[mine]])
        self._of[account] = self._newest(old.keys + new_keys, kept)
        return vectors, np.repeat([False, True], [context, len(mine)])

    def _told_late(self, account: str, old: Newest, new_keys: list[Key], x: F32) -> tuple[F32, Bools]:
        """Rows that arrived before others that are known already, or are scored once more."""
        known = set(new_keys)
        kept = [at for at, key in enumerate(old.keys) if key not in known]
        every = [old.keys[at] for at in kept] + new_keys
        order = sorted(range(len(every)), key=every.__getitem__)
        vectors = np.concatenate([old.vectors[kept], x])[order]
        wanted = np.repeat([False, True], [len(kept), len(new_keys)])[order]
        self._of[account] = self._newest([every[at] for at in order], vectors)
        return vectors, wanted

    def _newest(self, keys: list[Key], vectors: F32) -> Newest:
        if len(keys) <= self._most:
            return Newest(keys, vectors)
        return Newest(keys[-self._most :], vectors[-self._most :].copy())  # a view would hold all of it

    @property
    def bytes(self) -> int:
        """Memory of the vectors."""
        return sum(one.vectors.nbytes for one in self._of.values())


@dataclass(frozen=True)
class Computed:
    """Features of rows.

    Args:
        ids: of the rows.
        values: shape (n, features), NaN for unknown.
        x: the same as detectors take them.
        sequences: the same behind what arrived before; None where no detector asks for it.
        seconds: time of each part.
    """

    ids: tuple[str, ...]
    values: F64
    x: F32
    sequences: Sequences | None
    seconds: Mapping[str, float]


class History:
    """Rows, labels and accounts that are known in this process.

    Args:
        bundle: says which features are computed, and what they have learned.
        base: what is known from the beginning.
    """

    def __init__(self, bundle: Bundle, base: Base) -> None:
        self.fingerprint = fingerprint(bundle, base)
        self.names = list(bundle.dictionary)
        self.sequence = 0
        """Of the newest event that was taken in."""
        rows, accounts = base.transactions(), base.accounts()
        labels, labelled = base.labels()
        self.state = incremental.state_of(
            rows, accounts, labels, bundle.featurize, bundle.split,
            fitted=bundle.fitted, features=base.features(rows, _needed(bundle)), labelled=labelled,
        )  # fmt: skip
        self.accounts: dict[str, str] = dict(accounts.select("account_id", "entity_id").iter_rows())
        """Institution of each account."""
        self._known_until_us = max((key[0] for key in keys_of(rows)), default=None)
        self.columns = bundle.sequence_columns
        """Positions of the features that sequences are made of."""
        self.recent = Recent(bundle.context_rows, len(self.columns))
        self._labels = _said(labels)
        self._of_pipeline = dict(self._labels)
        """Labels of the base that the service has not overtaken yet."""
        self._last: Computed | None = None
        self._remember(base, rows)

    def _remember(self, base: Base, rows: pl.DataFrame) -> None:
        if not self.recent.depth:
            return
        chosen = self.recent.chosen(rows)
        newest, names = rows[chosen], [self.names[column] for column in self.columns]
        self.recent.add(newest["account_id"].to_list(), keys_of(newest), base.vectors(rows, chosen, names))

    def serves(self, bundle: Bundle, base: Base) -> bool:
        """Whether another version can look back on this history."""
        return (
            self.fingerprint == fingerprint(bundle, base)
            and self.recent.depth >= bundle.context_rows
            and bool(np.isin(bundle.sequence_columns, self.columns).all())
        )

    @property
    def known_until(self) -> datetime | None:
        """Newest known_at of all rows."""
        return None if self._known_until_us is None else EPOCH + timedelta(microseconds=self._known_until_us)

    def holds(self, ids: Sequence[str]) -> set[str]:
        """Which of these transactions are known already."""
        held = self.state.table.slot_of
        return {name for name in ids if name in held}

    # What was written elsewhere

    def take(self, events: Sequence[Event]) -> None:
        """Take in events, in their order; what is known already is left as it is."""
        new = [event for event in events if event.sequence > self.sequence]
        self._last = None if new else self._last
        for kind, group in groupby(new, key=lambda event: event.kind):
            same = list(group)
            if kind == "transactions":
                for run in _runs(same):
                    self._take_rows(run)
            elif kind == "labels":
                self._take_labels(pl.concat([event.rows for event in same]))
            else:
                self._take_accounts(pl.concat([event.rows for event in same]))
            self.sequence = same[-1].sequence

    def _take_rows(self, events: Sequence[Event]) -> None:
        parts = [self._unknown(event) for event in events]
        rows = pl.concat([part for part, _ in parts]).unique("transaction_id", keep="first", maintain_order=True)
        if not rows.height:
            return
        given = [values for part, values in parts if part.height]
        are_ours = rows.height == sum(part.height for part, _ in parts) and all(values is not None for values in given)
        if are_ours:
            self._enter(rows, np.concatenate([values for values in given if values is not None]))
        else:
            self._compute(rows, self.state.add(rows))
        self._see(keys_of(rows))

    def _unknown(self, event: Event) -> tuple[pl.DataFrame, F64 | None]:
        """Rows of an event that are not known yet, and their features if these are of our kind."""
        held = self.state.table.slot_of
        new = np.array([name not in held for name in event.rows["transaction_id"].to_list()], np.bool_)
        values = self._values_in(event.features)
        if new.all():
            return event.rows, values
        return event.rows.filter(pl.Series(new)), None if values is None else values[new]

    def _values_in(self, features: pl.DataFrame | None) -> F64 | None:
        if features is None or not features.height or features["fingerprint"][0] != self.fingerprint:
            return None
        return features["values"].to_numpy().reshape(features.height, len(self.names))

    def _enter(self, rows: pl.DataFrame, values: F64) -> None:
        """Rows with features that were computed elsewhere."""
        at = {name: place for place, name in enumerate(self.names)}
        kept = pl.DataFrame({name: values[:, at[name]] for name in self.state.maker})
        self.state.add(rows, features=kept if kept.width else None)
        if self.recent.depth:
            chosen = self.recent.chosen(rows)
            newest = rows[chosen]
            vectors = values[np.ix_(chosen, self.columns)].astype(np.float32)
            self.recent.add(newest["account_id"].to_list(), keys_of(newest), vectors)

    def _compute(self, rows: pl.DataFrame, slots: I64) -> None:
        """Of rows that a model with other features scored, what sequences will ask for; the state asks when it must."""
        if not self.recent.depth:
            return
        chosen = self.recent.chosen(rows)
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            part = chosen[start : start + ROWS_AT_ONCE]
            some = rows[part]
            vectors = self._matrix(slots[part])[:, self.columns].astype(np.float32)
            self.recent.add(some["account_id"].to_list(), keys_of(some), vectors)

    def _matrix(self, slots: I64) -> F64:
        made = self.state.values(slots)
        return np.stack([made[name] for name in self.names], axis=1)

    def _see(self, keys: Sequence[Key]) -> None:
        newest = max(key[0] for key in keys)
        self._known_until_us = newest if self._known_until_us is None else max(self._known_until_us, newest)

    def _take_labels(self, labels: pl.DataFrame) -> None:
        """A label that says what is known already would only make KPIs forget what they have computed."""
        every = schemas.shaped(labels, schemas.LABELS)
        columns = every.select("transaction_id", "confirmed_at").iter_rows()
        heard = every.filter(pl.Series([self._counts(*one) for one in columns], dtype=pl.Boolean))
        rows = heard.unique("transaction_id", keep="last", maintain_order=True)
        said = _said(rows)
        new = [self._labels.get(name) != told for name, told in said.items()]
        self._labels |= said
        if any(new):
            self.state.confirm(rows.filter(pl.Series(new)))

    def _counts(self, name: str, confirmed_at: datetime) -> bool:
        """The last word that the service was told counts, unless another source of the pipeline had a later one."""
        if name in self._of_pipeline and confirmed_at < self._of_pipeline[name][1]:
            return False
        self._of_pipeline.pop(name, None)
        return True

    def _take_accounts(self, accounts: pl.DataFrame) -> None:
        rows = accounts.unique("account_id", keep="first", maintain_order=True)
        new = rows.filter(pl.Series([name not in self.accounts for name in rows["account_id"]], dtype=pl.Boolean))
        if new.height:
            self.state.add(pl.DataFrame(schema=schemas.polars_schema(schemas.TRANSACTIONS)), accounts=new)
            self.accounts |= dict(new.select("account_id", "entity_id").iter_rows())

    # What is to be scored

    def prepare(self, moment: datetime) -> None:
        """Look up what rows of a moment's day share, so that the first of them need not wait for it."""
        self.state.prepare(moment)

    def newest(self) -> pl.DataFrame:
        """The row that was taken in last, as `schemas.TRANSACTIONS`; no row where none is known."""
        table = self.state.table
        return table.frame(np.arange(max(len(table), 1), len(table) + 1), tuple(SCHEMA))

    def computed(self, rows: pl.DataFrame) -> Computed:
        """Take in rows, and give their features.

        Args:
            rows: as `schemas.TRANSACTIONS`; none twice.
        """
        ids = tuple(rows["transaction_id"].to_list())
        if self._last is not None and self._last.ids == ids:  # a challenger looks at what the champion has just scored
            return self._last
        began = time.perf_counter()
        slots = self.state.add(rows)
        added = time.perf_counter()
        values = self._matrix(slots)
        x = values.astype(np.float32)
        computed = time.perf_counter()
        keys = keys_of(rows)
        sequences = self.recent.add(rows["account_id"].to_list(), keys, x[:, self.columns])
        self._see(keys)
        done = time.perf_counter()
        seconds = {"history": added - began + done - computed, "features": computed - added}
        self._last = Computed(ids, values, x, sequences, seconds)
        return self._last

    def packed(self, found: Computed) -> pl.DataFrame:
        """Features as other processes take them: a column of numbers and one that says whose they are."""
        values = pl.Series("values", found.values, dtype=pl.Array(pl.Float64, len(self.names)))
        return pl.DataFrame([repeated("fingerprint", self.fingerprint, len(found.ids)), values])


def _runs(events: Sequence[Event]) -> list[list[Event]]:
    """Events that may be taken in at once.

    A row that comes late makes KPIs of rows before it be forgotten, which then must be there: as it was where they were
    scored, one event after the other.
    """
    runs: list[list[Event]] = []
    newest: datetime | None = None
    for event in events:
        known_at = event.rows["known_at"]
        if newest is None or cast("datetime", known_at.min()) <= newest:
            runs.append([])
            newest = None
        runs[-1].append(event)
        last = cast("datetime", known_at.max())
        newest = last if newest is None else max(newest, last)
    return runs


def repeated(name: str, value: Any, n: int) -> pl.Series:
    """A column that says the same in every row."""
    return pl.Series(name, [value]).new_from_index(0, n)


def fingerprint(bundle: Bundle, base: Base) -> str:
    """Equal where two models look back on the same: features, learned values, rows and the length of sequences."""
    return f"{bundle.fingerprint}:{base.until:%Y-%m-%dT%H:%M}" if base.until else bundle.fingerprint


def keys_of(rows: pl.DataFrame) -> list[Key]:
    """What orders rows by arrival."""
    names = ("known_at", "booked_at")
    known, booked = (rows[name].to_numpy().astype("datetime64[us]").view(np.int64).tolist() for name in names)
    return list(zip(known, booked, rows["transaction_id"].to_list(), strict=True))


def _said(labels: pl.DataFrame) -> dict[str, tuple[bool, datetime]]:
    """What labels say, and when they were confirmed, by transaction."""
    columns = labels.select("transaction_id", "is_anomaly", "confirmed_at").iter_rows()
    return {name: (is_anomaly, confirmed_at) for name, is_anomaly, confirmed_at in columns}


def _needed(bundle: Bundle) -> list[str]:
    """Features of earlier rows that later rows' features are made from."""
    tasks = engine.tasks(engine.selected(bundle.featurize.kpis), bundle.featurize, bundle.fitted)
    return incremental.kept_columns(tasks)
