"""Rows that are asked for, and the packed past of their accounts or counterparties."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from reperform.featurize.incremental import asof
from reperform.featurize.incremental.extract import Extract
from reperform.featurize.incremental.rows import Lists, Names, Table
from reperform.featurize.kernels import F64, I64, Mask, dense
from reperform.featurize.windows import DAY_US, FOREVER_US

TIERS_US = (10 * DAY_US, 31 * DAY_US, 190 * DAY_US, FOREVER_US)
"""How far back a past is packed: the first that is far enough serves all who ask for less."""


class Cells:
    """Columns of some rows, each made when it is asked for; anything else is asked of the whole frame."""

    def __init__(self, table: Table, slots: I64, names: Sequence[str]) -> None:
        self._table, self._slots, self.columns = table, slots, list(names)
        self._made: dict[str, pl.Series] = {}

    @property
    def height(self) -> int:
        """Rows."""
        return len(self._slots)

    def __getitem__(self, name: Any) -> Any:
        if not isinstance(name, str) or name not in self.columns:
            return self._frame[name]
        if name not in self._made:
            self._made[name] = self._table.series(name, self._slots)
        return self._made[name]

    @cached_property
    def _frame(self) -> pl.DataFrame:
        return self._table.frame(self._slots, self.columns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frame, name)


@dataclass(frozen=True)
class Some(Extract):
    """Rows as a ledger of which single columns are read: texts stay numbers as long as nobody reads them."""

    def looked_up(self, names: Sequence[str], value_of: Callable[..., float]) -> F64:
        """As of every ledger."""
        texts, numbers = zip(*(self._named(name) for name in names), strict=True)
        keys = list(zip(*(codes.tolist() for codes in numbers), strict=True))
        found = {
            key: value_of(*(text[code + 1] for text, code in zip(texts, key, strict=True)))
            for key in dict.fromkeys(keys)
        }
        return np.array([found[key] for key in keys], np.float64)

    def _named(self, name: str) -> tuple[list[str | None], I64]:
        of_account = {"segment": "segment", "home_country": "home"}.get(name)
        if of_account:
            return self._register.names[of_account].text, self._of_client(of_account)
        names: Names = self._table.names[name]
        return names.text, self._of(name)

    def number(self, name: str) -> F64:
        """A column of numbers."""
        return np.asarray(self._of(name), np.float64)

    def code(self, name: str) -> I64:
        """A column's codes in the whole table."""
        return self._of(name)

    def filled(self, name: str) -> Mask:
        """Where a column says anything."""
        if name in self._table.names:
            return np.asarray(self._of(name) >= 0)
        values = self.transactions[name]
        return np.asarray(values.is_not_null().to_numpy())


class Past:
    """What rows that ask look back on, key after key in order of time.

    Args:
        table: all rows.
        lists: slots per key.
        keys: of each row that asks; -1 for none.
        now: when each asks, microseconds.
        reach_us: how far back.
    """

    def __init__(self, table: Table, lists: Lists, keys: I64, now: I64, reach_us: int) -> None:
        self.table, self.now, self.reach_us = table, now, reach_us
        which, first = dense(keys)
        earliest, latest = np.full(len(first), FOREVER_US), np.full(len(first), -FOREVER_US)
        named = which >= 0
        np.minimum.at(earliest, which[named], now[named])
        np.maximum.at(latest, which[named], now[named])
        self.starts, self.slots = asof.spans(
            lists.starts, lists.used, lists.slots, table["time"], keys[first], earliest - reach_us, latest
        )
        self.oldest = np.repeat(earliest - reach_us, np.diff(self.starts)) if reach_us < FOREVER_US else None
        self._columns: dict[str, Any] = {}
        self.time, self.enter = self["time"], self["enter"]
        self.begin, self.end = asof.ends(self.starts, self.time, which, now)

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            self._columns[name] = self.table[name][self.slots]
        return self._columns[name]

    @property
    def walk(self) -> tuple[I64, I64, I64, I64, I64]:
        """What every kernel takes first."""
        return self.begin, self.end, self.now, self.time, self.enter
