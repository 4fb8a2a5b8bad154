"""Some rows of a growing table as a ledger, of which only a few rows ask: their values alone are meant to be read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform.featurize import kernels
from reperform.featurize.days import NEVER, Days
from reperform.featurize.incremental.rows import Register, Table
from reperform.featurize.kernels import F64, I64, Mask, dense
from reperform.featurize.ledger import Ledger
from reperform.featurize.windows import History, Rows, Tape

NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class AskedHistory(History):
    """A history of which only some rows ask; what its tapes tell of other rows means nothing.

    Args:
        asks: rows that ask, per key in order of time.
    """

    asks: Rows = field(default_factory=lambda: Rows(NO_ROWS, NO_ROWS))

    def tape(self, window_us: int) -> Tape:
        """As of every history, asked by fewer rows."""
        if window_us not in self.tapes:
            self.tapes[window_us] = kernels.tape(
                self.asks.starts, self.asks.rows, self.time,
                self.by_enter.starts, self.by_enter.rows, self.enter,
                self.by_time.starts, self.by_time.rows, self.time + window_us,
            )  # fmt: skip
        return self.tapes[window_us]

    def tape_of(self, codes: I64, enter: I64, leave: I64) -> Tape:
        """As of every history, asked by fewer rows."""
        entering, leaving = Rows.ordered(codes, enter, self.keys), Rows.ordered(codes, leave, self.keys)
        return kernels.tape(
            self.asks.starts, self.asks.rows, self.time,
            entering.starts, entering.rows, enter,
            leaving.starts, leaving.rows, leave,
        )  # fmt: skip


@dataclass(frozen=True)
class Extract(Ledger):
    """A ledger whose arrays come from a table by slot.

    Args:
        table: all rows.
        register: what is known of accounts, by party.
        slots: rows of this ledger, in the order of a table of transactions.
        asks: rows whose values will be read.
    """

    table: Table | None = None
    register: Register | None = None
    slots: I64 = field(default_factory=lambda: NO_ROWS)
    asks: Mask = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def _table(self) -> Table:
        assert self.table is not None  # a dataclass wants a default behind those of its base
        return self.table

    @property
    def _register(self) -> Register:
        assert self.register is not None  # as above
        return self.register

    def _of(self, name: str) -> I64:
        values: I64 = self._table[name][self.slots]
        return values

    def _of_client(self, name: str) -> I64:
        values: I64 = self._register[name][self._of("account_id")]
        return values

    @cached_property
    def time(self) -> I64:
        """When each row happened."""
        return self._of("time")

    @cached_property
    def known(self) -> I64:
        """When each row's record arrived."""
        return self._of("known")

    @cached_property
    def amount(self) -> F64:
        """Amount in base currency."""
        return np.asarray(self._of("amount_base"), np.float64)

    @cached_property
    def cents(self) -> I64:
        """Amount in hundredths."""
        return self._of("cents")

    @cached_property
    def incoming(self) -> Mask:
        """Whether money comes into the account."""
        return np.asarray(self._of("direction") == self._table.names["direction"].code.get("in", -2))

    @cached_property
    def account(self) -> I64:
        """Account codes."""
        return dense(self._of("account_id"))[0]

    @cached_property
    def counterparty(self) -> I64:
        """Counterparty codes; -1 where none is named."""
        return dense(self._of("counterparty_id"))[0]

    @cached_property
    def opened(self) -> I64:
        """When each row's account was opened."""
        return self._of_client("opened")

    @cached_property
    def segment(self) -> pl.Series:
        """Segment of each row's account."""
        return self._text("segment")

    @cached_property
    def home_country(self) -> pl.Series:
        """Home country of each row's account."""
        return self._text("home")

    def codes_of(self, name: str) -> I64:
        """Different texts as numbers, without looking at the texts."""
        if name == "segment":
            return dense(self._of_client(name))[0]
        if name == "home_country":
            return dense(self._of_client("home"))[0]
        return dense(self._of(name))[0] if name in self._table.names else super().codes_of(name)

    def among(self, name: str, values: Sequence[str]) -> Mask:
        """Rows whose text is one of some, without looking at all texts."""
        if name == "home_country":
            held, names = self._of_client("home"), self._register.names["home"]
        else:
            held, names = self._of(name), self._table.names[name]
        out = np.zeros(len(held), np.bool_)
        for value in values:
            if value in names.code:
                out |= held == names.code[value]
        return out

    @cached_property
    def opening_days(self) -> I64:
        """Day on which each account was opened."""
        if self.accounts.height > 1 or not len(self) or int(self.account.max()) > 0:
            return super().opening_days
        return self._of_client("opened_day")[:1]

    @cached_property
    def local_us(self) -> I64:
        """When each row happened by the account's clock, as a number."""
        return self._of("local")

    def _text(self, name: str) -> pl.Series:
        codes, names = self._of_client(name), self._register.names[name]
        if len(codes) and (codes == codes[0]).all():
            return names.series(name, codes[:1]).new_from_index(0, len(codes))
        return names.series(name, codes)

    @cached_property
    def local(self) -> pl.Series:
        """When each row happened by the account's clock."""
        return pl.Series("local", self._of("local")).cast(pl.Datetime("us"))

    @cached_property
    def local_known(self) -> pl.Series:
        """When each row became known by the same clock."""
        return pl.Series("local", self._of("local_known")).cast(pl.Datetime("us"))

    @cached_property
    def local_day(self) -> I64:
        """Day number by the account's clock."""
        return self._of("day")

    @cached_property
    def label(self) -> tuple[NDArray[np.int8], I64]:
        """What case handling said of each row, and when."""
        return self._of("said").astype(np.int8), self._of("confirmed")

    @cached_property
    def days(self) -> Days:
        """The grid; of one account without asking who else there is."""
        if self.accounts.height > 1 or not len(self) or int(self.account.max()) > 0:
            return super().days
        begin, end = self.span or (NEVER, -NEVER)
        opened = max(int(self._of_client("opened_day")[0]), begin)
        first = min(opened, int(self.local_day.min()))
        return Days(
            accounts=self.transactions["account_id"].head(1),
            segment=self.segment.head(1),
            zone=np.zeros(1, np.int64),
            starts=np.array([0, max(end - first + 1, 0)]),
            first_day=np.array([first]),
            open_day=np.array([opened]),
            account_of_row=np.zeros(len(self), np.int64),
            day=self.local_day,
            known_day=self._of("known_day"),
        )

    def _history(self, key: I64) -> History:
        made = History.of(key, int(key.max(initial=-1)) + 1, self.time, self.known)
        if self.asks.all():
            return made
        asks = Rows.ordered(np.where(self.asks, key, -1), self.time, made.keys)
        return AskedHistory(made.codes, made.keys, made.time, made.enter, made.by_time, made.by_enter, asks=asks)
