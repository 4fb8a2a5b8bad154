"""As-of windows: which earlier records could be seen at a row's moment, by any key and over any length."""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

import numpy as np

from reperform.errors import ReperformError
from reperform.featurize import kernels
from reperform.featurize.kernels import F64, I64, Mask

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
MILLION = 1_000_000
MOST_MOVES = 16  # per row; sorting anew costs about as much
MOST_KEPT_ROWS = 1_000_000  # the events of a bucket are kept for the next KPI; those of a large table would fill memory
FOREVER_US = 1 << 61  # longer than any history, and safe to add to any time
_UNITS_US = {"h": HOUR_US, "d": DAY_US}
Tape: TypeAlias = I64


@cache
def length_us(window: str) -> int:
    """Microseconds in a window such as `24h` or `30d`.

    Raises:
        ReperformError: when it is not a whole number of hours or days.
    """
    match = re.fullmatch(r"([1-9]\d*)([hd])", window)
    if not match:
        raise ReperformError(
            f"{window!r} is not a window.",
            expected="a number of hours or days, such as 24h or 30d",
            got=window,
            where="featurize.settings",
            fix="change it in conf/featurize/ and run `make params`",
        )
    return int(match[1]) * _UNITS_US[match[2]]


@dataclass(frozen=True)
class Rows:
    """Rows of one key each, in order of one time: where each key's rows begin, and the rows."""

    starts: I64
    rows: I64

    @classmethod
    def ordered(cls, codes: I64, time: I64, keys: int) -> "Rows":
        """Order rows by key and time; of equal times, the row that comes first in the table comes first.

        Args:
            codes: each row's key as 0 … keys - 1; rows with -1 have none and are left out.
            time: microseconds.
            keys: number of keys.
        """
        starts, rows, done = kernels.ordered(codes, time, keys, MOST_MOVES * len(codes))
        if not done:
            rows = np.lexsort((time, codes))
            rows = rows[np.searchsorted(codes[rows], 0) :]
        return cls(starts if done else np.searchsorted(codes[rows], np.arange(keys + 1)), rows)


@dataclass(frozen=True)
class History:
    """Records of one key that can be asked for as of each of their own moments.

    Args:
        codes: each row's key as 0 … keys - 1, or -1.
        keys: number of keys.
        time: when each row happened, microseconds.
        enter: first moment at which others can see it.
        by_time: rows per key in order of time.
        by_enter: rows per key in order of `enter`.
        tapes: what `tape` made before, by window: most KPIs ask for the same few.
    """

    codes: I64
    keys: int
    time: I64
    enter: I64
    by_time: Rows
    by_enter: Rows
    tapes: dict[int, Tape] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, codes: I64, keys: int, time: I64, known: I64) -> "History":
        """Rows can be seen strictly after they happened, and not before they were known."""
        enter = np.maximum(known, time + 1)
        return cls(codes, keys, time, enter, Rows.ordered(codes, time, keys), Rows.ordered(codes, enter, keys))

    def __len__(self) -> int:
        return len(self.time)

    def tape(self, window_us: int) -> Tape:
        """Events of H(t, W) = {j: same key, t - W <= t_j < t, v_j <= t}, asked by every row."""
        if window_us in self.tapes:
            return self.tapes[window_us]
        ask = self.by_time
        made = kernels.tape(
            ask.starts, ask.rows, self.time,
            self.by_enter.starts, self.by_enter.rows, self.enter,
            ask.starts, ask.rows, self.time + window_us,
        )  # fmt: skip
        if len(self) <= MOST_KEPT_ROWS:
            self.tapes[window_us] = made
        return made

    def tape_of(self, codes: I64, enter: I64, leave: I64) -> Tape:
        """Events of other records, such as labels: each is seen from `enter` to `leave`, both ends included.

        Args:
            codes: each record's key, in this history's codes.
            enter: microseconds.
            leave: microseconds; a record that leaves before it enters is never seen.
        """
        ask = self.by_time
        entering, leaving = Rows.ordered(codes, enter, self.keys), Rows.ordered(codes, leave, self.keys)
        return kernels.tape(
            ask.starts, ask.rows, self.time,
            entering.starts, entering.rows, enter,
            leaving.starts, leaving.rows, leave,
        )  # fmt: skip

    def sums(self, events: Tape, *values: I64 | Mask) -> tuple[I64, ...]:
        """Exact sums of integer columns over what each row sees."""
        stacked = np.ascontiguousarray(np.stack([v.astype(np.int64) for v in values], axis=1))
        return tuple(kernels.sums(events, stacked, len(self)).T)

    def window_sums(self, window_us: int, *values: I64 | Mask) -> tuple[I64, ...]:
        """The same over H(t, W), faster where no other statistic needs the window's events."""
        stacked = np.ascontiguousarray(np.stack([v.astype(np.int64) for v in values], axis=1))
        ask = self.by_time
        out = kernels.window_sums(ask.starts, ask.rows, self.time, self.by_enter.rows, self.enter, window_us, stacked)
        return tuple(out.T)

    def mean_scores(self, window: str, scores: F64) -> F64:
        """Mean of earlier rows' scores, as scored then, and of the row's own; unknown scores are left out.

        Scores are rounded to millionths, so that their sums are exact and do not depend on an order.
        """
        known = ~np.isnan(scores)
        millionths = np.where(known, np.rint(np.nan_to_num(scores) * MILLION), 0).astype(np.int64)
        total, n = self.sums(self.tape(length_us(window)), millionths, known)
        mean = ratio((total + millionths) / MILLION, n + known)
        return np.where(self.codes < 0, np.nan, mean)

    def distinct(self, events: Tape, items: I64, n_items: int) -> I64:
        """Different items that each row sees; `items` are codes that no two keys share, -1 is not counted."""
        return kernels.distinct(events, items, n_items, len(self))


def ratio(above: F64 | I64, below: F64 | I64) -> F64:
    """Division that is NaN (unknown) where the denominator is zero or unknown."""
    out = np.full(len(above), np.nan)
    np.divide(above, below, out=out, where=np.asarray(below) != 0)
    return out


def where_enough(values: F64, n: I64, least: int) -> F64:
    """The values, unknown where fewer than `least` records are behind them."""
    return np.where(n >= least, values, np.nan)
