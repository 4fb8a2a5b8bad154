"""Sweeps over time-ordered events, compiled. Of the features, the only module that imports numba.

Every as-of window is one idea: a record can be seen from the moment it *enters* (it happened earlier and its record has
arrived) until it *leaves* (it became older than the window). `tape` writes down, per key and in time order, which rows
enter, leave and ask; a consumer walks the tape once and keeps its answer up to date. Rows that ask never see rows of
the same moment, because a row enters one microsecond after it happened.

Integers are summed as integers, and floats are never summed across rows, so results do not depend on how the work is
cut. numba compiles without `fastmath` and without threads: the same input gives the same bits.
"""

# ruff: noqa: C901, PLR0917  # compiled functions take arguments by position, and a walk over events is one loop

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
F = TypeVar("F", bound=Callable[..., Any])

ENTER, LEAVE, ASK, RESET = 0, 1, 2, 3
SHIFT = 2  # an event is row << 2 | kind
KIND = 3
UNKNOWN_SMALL = -128  # stands for NaN where values are kept in one byte
NO_VARIATION = 1e-12  # a sum of squares below it is rounding

if TYPE_CHECKING:

    def kernel(function: F) -> F:
        """Compile; typed as the plain function."""
        return function
else:
    kernel = njit(cache=True, nogil=True)


@kernel
def _place(ordered: Any, size: int, value: Any) -> int:
    """How many of the first `size` sorted values are below a value (numpy's searchsorted takes seconds to compile)."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _insert(ordered: Any, size: int, value: Any) -> None:
    at = _place(ordered, size, value)
    for position in range(size, at, -1):
        ordered[position] = ordered[position - 1]
    ordered[at] = value


@kernel
def _remove(ordered: Any, size: int, value: Any) -> None:
    for position in range(_place(ordered, size, value), size - 1):
        ordered[position] = ordered[position + 1]


@kernel
def _nth(values: F64, wanted: int) -> float:
    """The value that would stand at a place if values were sorted; moves smaller ones before it (Hoare 1961)."""
    first, last = 0, len(values) - 1
    while first < last:
        pivot = values[(first + last) // 2]
        left, right = first, last
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if wanted <= right:
            last = right
        elif wanted >= left:
            first = left
        else:
            break
    return float(values[wanted])


@kernel
def _median(values: F64) -> float:
    """Median; NaN if one of the values is."""
    half = len(values) // 2
    for value in values:
        if np.isnan(value):
            return np.nan
    moved = values.copy()
    upper = _nth(moved, half)
    if len(moved) % 2:
        return upper
    lower = moved[0]
    for position in range(1, half):
        lower = max(lower, moved[position])
    return float(0.5 * (lower + upper))


@kernel
def _middle(ordered: Any, size: int) -> float:
    half = size // 2
    return float(ordered[half]) if size % 2 else 0.5 * (ordered[half - 1] + ordered[half])


@kernel
def ordered(codes: I64, time: I64, keys: int, most_moves: int) -> tuple[I64, I64, bool]:
    """Rows in order of key, then time, then place in the table: counted into keys, then moved within them.

    Args:
        codes: each row's key as 0 … keys - 1; rows with -1 have none and are left out.
        time: by row.
        keys: number of keys.
        most_moves: rows are moved one place at a time, which pays while most of them are in order already.

    Returns:
        Where each key's rows begin, shape (keys + 1,); the rows; False if they would have to be moved more often.
    """
    starts = np.zeros(keys + 1, np.int64)
    for code in codes:
        if code >= 0:
            starts[code + 1] += 1
    for key in range(keys):
        starts[key + 1] += starts[key]
    rows, filled = np.empty(starts[keys], np.int64), starts[:keys].copy()
    moves = 0
    for row in range(len(codes)):
        code = codes[row]
        if code < 0:
            continue
        at = filled[code]
        filled[code] += 1
        while at > starts[code] and time[rows[at - 1]] > time[row]:
            rows[at] = rows[at - 1]
            at -= 1
            moves += 1
        rows[at] = row
        if moves > most_moves:
            return starts, rows, False
    return starts, rows, True


@kernel
def dense(values: I64) -> tuple[I64, I64]:
    """Codes of values in order of first appearance, by a table of hashes with open addresses.

    Returns:
        Each row's code as 0 … n - 1, -1 for values below zero; shape (n,), the first row with each code.
    """
    size = 16
    while size < 2 * len(values):
        size *= 2
    table = np.full(size, -1, np.int64)  # code at each address
    codes, first = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    n = 0
    for row in range(len(values)):
        value = values[row]
        if value < 0:
            codes[row] = -1
            continue
        mixed = np.uint64(value) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth 1998, section 6.4)
        at = np.int64((mixed >> np.uint64(32)) & np.uint64(size - 1))
        while table[at] >= 0 and values[first[table[at]]] != value:
            at = (at + 1) & (size - 1)
        if table[at] < 0:
            table[at], first[n] = n, row
            n += 1
        codes[row] = table[at]
    return codes, first[:n].copy()


@kernel
def put(values: F64, rows: I64, out: F64) -> None:
    """Write each value to its row."""
    for position in range(len(rows)):
        out[rows[position]] = values[position]


@kernel
def take(values: F64, rows: I64, out: F64) -> None:
    """Write the values of some rows, one after the other."""
    for position in range(len(rows)):
        out[position] = values[rows[position]]


@kernel
def take_small(values: F64, rows: I64, out: NDArray[np.int8]) -> bool:
    """As `take`, into one byte each: whole numbers from -127 to 127, and -128 for NaN.

    Returns:
        False if another value was met; minus zero is one.
    """
    for position in range(len(rows)):
        value = values[rows[position]]
        if np.isnan(value):
            out[position] = UNKNOWN_SMALL
            continue
        if not UNKNOWN_SMALL < value < -UNKNOWN_SMALL:
            return False
        small = np.int8(value)
        if small != value or (small == 0 and np.signbit(value)):
            return False
        out[position] = small
    return True


@kernel
def spread(columns: F64, first: int, rows: I64, which: I64, out: F64) -> None:
    """Write each column's values to their rows of a table.

    Args:
        columns: shape (columns, values).
        first: value at which to begin.
        rows: of the table, for this and the following values.
        which: place of each column in the table, or -1 for none.
        out: shape (columns of the table, rows).
    """
    for column in range(len(which)):
        if which[column] >= 0:
            target = out[which[column]]
            for position in range(len(rows)):
                target[rows[position]] = columns[column, first + position]


@kernel
def spread_small(columns: NDArray[np.int8], first: int, rows: I64, which: I64, out: F64) -> None:
    """As `spread`, of what `take_small` has written."""
    for column in range(len(which)):
        if which[column] >= 0:
            target = out[which[column]]
            for position in range(len(rows)):
                small = columns[column, first + position]
                target[rows[position]] = np.nan if small == UNKNOWN_SMALL else np.float64(small)


@kernel
def tape(
    ask_starts: I64,
    ask_rows: I64,
    ask_time: I64,
    enter_starts: I64,
    enter_rows: I64,
    enter_time: I64,
    leave_starts: I64,
    leave_rows: I64,
    leave_time: I64,
) -> I64:
    """Order the events of every key: RESET, then entries up to a moment, what left before it, and who asks then.

    Args:
        ask_starts: shape (keys + 1,), where each key's rows begin in `ask_rows`.
        ask_rows: rows that ask, per key in time order.
        ask_time: microseconds, by row.
        enter_starts: the same for `enter_rows`.
        enter_rows: rows per key in order of `enter_time`.
        enter_time: first microsecond at which a row is seen.
        leave_starts: the same for `leave_rows`.
        leave_rows: rows per key in order of `leave_time`.
        leave_time: last microsecond at which a row is seen. A row that leaves before it enters is never seen.

    Returns:
        Events `row << 2 | kind`.
    """
    keys = len(ask_starts) - 1
    events = np.empty(len(ask_rows) + 2 * len(enter_rows) + keys, np.int64)
    at = 0
    for key in range(keys):
        events[at] = RESET
        at += 1
        entering, entered = enter_starts[key], enter_starts[key + 1]
        leaving, left = leave_starts[key], leave_starts[key + 1]
        for position in range(ask_starts[key], ask_starts[key + 1]):
            row = ask_rows[position]
            now = ask_time[row]
            while entering < entered and enter_time[enter_rows[entering]] <= now:
                other = enter_rows[entering]
                entering += 1
                if leave_time[other] >= enter_time[other]:
                    events[at] = other << SHIFT | ENTER
                    at += 1
            while leaving < left and leave_time[leave_rows[leaving]] < now:
                other = leave_rows[leaving]
                leaving += 1
                if leave_time[other] >= enter_time[other]:
                    events[at] = other << SHIFT | LEAVE
                    at += 1
            events[at] = row << SHIFT | ASK
            at += 1
    return events[:at]


@kernel
def sums(events: I64, values: I64, rows: int) -> I64:
    """Sums of integer columns over the rows that are seen.

    Args:
        events: a tape.
        values: shape (sources, columns).
        rows: how many rows may ask.

    Returns:
        Shape (rows, columns); zero for rows that never ask.
    """
    columns = values.shape[1]
    out = np.zeros((rows, columns), np.int64)
    running = np.zeros(columns, np.int64)
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            running[:] = 0
        elif kind == ASK:
            for column in range(columns):
                out[row, column] = running[column]
        else:
            sign = 1 if kind == ENTER else -1
            for column in range(columns):
                running[column] += sign * values[row, column]
    return out


@kernel
def window_sums(starts: I64, rows: I64, time: I64, enter_rows: I64, enter: I64, window_us: int, values: I64) -> I64:
    """As `sums` over a `tape` of one window, without writing the tape down.

    Args:
        starts: where each key's rows begin in `rows` and in `enter_rows`.
        rows: rows per key in order of time.
        time: microseconds, by row.
        enter_rows: rows per key in order of `enter`.
        enter: first microsecond at which a row is seen.
        window_us: age up to which a row is seen.
        values: shape (rows, columns).
    """
    columns = values.shape[1]
    out = np.zeros((len(time), columns), np.int64)
    running = np.zeros(columns, np.int64)
    for key in range(len(starts) - 1):
        entering, leaving, end = starts[key], starts[key], starts[key + 1]
        running[:] = 0
        for position in range(starts[key], end):
            row = rows[position]
            now = time[row]
            while entering < end and enter[enter_rows[entering]] <= now:
                other = enter_rows[entering]
                entering += 1
                if time[other] + window_us >= enter[other]:
                    for column in range(columns):
                        running[column] += values[other, column]
            while time[rows[leaving]] + window_us < now:  # ends at the row itself
                other = rows[leaving]
                leaving += 1
                if time[other] + window_us >= enter[other]:
                    for column in range(columns):
                        running[column] -= values[other, column]
            for column in range(columns):
                out[row, column] = running[column]
    return out


@kernel
def distinct(events: I64, items: I64, n_items: int, rows: int) -> I64:
    """How many different items are seen.

    Args:
        events: a tape.
        items: the source rows' item, as a code that no other key shares; -1 is not counted.
        n_items: number of codes.
        rows: how many rows may ask.
    """
    out = np.zeros(rows, np.int64)
    times_seen = np.zeros(n_items, np.int64)
    different = 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == ASK:
            out[row] = different
        elif kind == RESET:
            different = 0  # codes are never shared between keys, so what is left of the last key is never read
        elif items[row] >= 0:
            if kind == ENTER:
                times_seen[items[row]] += 1
                different += times_seen[items[row]] == 1
            else:
                times_seen[items[row]] -= 1
                different -= times_seen[items[row]] == 0
    return out


@kernel
def times_seen(events: I64, source_items: I64, asked_items: I64, n_items: int, rows: int) -> I64:
    """How often the asking row's own item is seen; arguments as in `distinct`."""
    out = np.zeros(rows, np.int64)
    seen = np.zeros(n_items, np.int64)
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == ASK:
            if asked_items[row] >= 0:
                out[row] = seen[asked_items[row]]
        elif kind != RESET and source_items[row] >= 0:
            seen[source_items[row]] += 1 if kind == ENTER else -1
    return out


@kernel
def extreme_times(events: I64, time: I64, rows: int) -> tuple[I64, I64]:
    """First and last time of the rows that have entered so far; the tape must let nothing leave.

    Returns:
        Row with the earliest time and row with the latest time (of equals, the one that entered last); -1 if none.
    """
    first = np.full(rows, -1, np.int64)
    last = np.full(rows, -1, np.int64)
    earliest, latest = -1, -1
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            earliest, latest = -1, -1
        elif kind == ASK:
            first[row], last[row] = earliest, latest
        elif kind == ENTER:
            if earliest < 0 or time[row] < time[earliest]:
                earliest = row
            if latest < 0 or time[row] >= time[latest]:
                latest = row
    return first, last


@kernel
def _kth_deviation(ordered: F64, size: int, centre: float, rank: int) -> float:
    """The rank-th smallest |value - centre| (rank from 0) of sorted values, merging outwards from the centre."""
    right = _place(ordered, size, centre)
    left = right - 1
    found = 0.0
    for _ in range(rank + 1):
        below = centre - ordered[left] if left >= 0 else np.inf
        above = ordered[right] - centre if right < size else np.inf
        if below <= above:
            found = below
            left -= 1
        else:
            found = above
            right += 1
    return found


@kernel
def ranked(ordered: F64, size: int, own: float) -> tuple[float, float, float, float]:
    """Median, median absolute deviation from it and maximum of sorted values, and the rank of one's own among them."""
    half = size // 2
    centre = _middle(ordered, size)
    spread = _kth_deviation(ordered, size, centre, half)
    if size % 2 == 0:
        spread = 0.5 * (spread + _kth_deviation(ordered, size, centre, half - 1))
    below = _place(ordered, size, own)
    equal = 0
    while below + equal < size and ordered[below + equal] == own:
        equal += 1
    rank = (below + 0.5 * equal) / size if own == own else np.nan  # noqa: PLR0124  # NaN
    return centre, spread, ordered[size - 1], rank


@kernel
def order_statistics(events: I64, values: F64, rows: int) -> tuple[I64, F64, F64, F64, F64]:
    """Median, median absolute deviation and maximum of what is seen, and the rank of the asking row's own value in it.

    Returns:
        n; median; median absolute deviation from it; maximum; (count below + half the count equal) / n.
        Rows whose value is NaN are not seen. Where nothing is seen, n is 0 and the others are NaN.
    """
    n = np.zeros(rows, np.int64)
    median = np.full(rows, np.nan)
    deviation = np.full(rows, np.nan)
    maximum = np.full(rows, np.nan)
    rank = np.full(rows, np.nan)
    ordered = np.empty(64)
    size = 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            size = 0
            continue
        if np.isnan(values[row]) and kind != ASK:
            continue
        if kind == ENTER:
            if size == len(ordered):
                wider = np.empty(2 * size)
                wider[:size] = ordered
                ordered = wider
            _insert(ordered, size, values[row])
            size += 1
        elif kind == LEAVE:
            _remove(ordered, size, values[row])
            size -= 1
        else:
            n[row] = size
            if size:
                median[row], deviation[row], maximum[row], rank[row] = ranked(ordered, size, values[row])
    return n, median, deviation, maximum, rank


@kernel
def times_seen_sum(events: I64, items: I64, values: I64, n_items: int, rows: int) -> I64:
    """Sum of a column over what is seen of the asking row's own item, such as its day."""
    out = np.zeros(rows, np.int64)
    running = np.zeros(n_items, np.int64)
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET or items[row] < 0:
            continue
        if kind == ASK:
            out[row] = running[items[row]]
        else:
            running[items[row]] += values[row] if kind == ENTER else -values[row]
    return out


@kernel
def distinct_with_own(events: I64, items: I64, n_items: int, rows: int) -> I64:
    """As `distinct`, and the asking row's own item counts as well."""
    out = np.zeros(rows, np.int64)
    seen = np.zeros(n_items, np.int64)
    different = 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            different = 0
            continue
        item = items[row]
        if kind == ASK:
            out[row] = different + (item >= 0 and seen[item] == 0)
        elif item >= 0:
            if kind == ENTER:
                seen[item] += 1
                different += seen[item] == 1
            else:
                seen[item] -= 1
                different -= seen[item] == 0
    return out


@kernel
def split_amounts(
    events: I64, applies: Any, near: Any, cents: I64, day: I64, n_days: int, least_broken: int
) -> tuple[I64, I64, I64, I64, I64]:
    """What a window holds of amounts just below a limit, the asking row included.

    Args:
        events: a tape.
        applies: rows that the limit holds for.
        near: rows just below it.
        cents: amounts; 0 where the limit does not hold.
        day: codes of (key, business day).
        n_days: number of these codes.
        least_broken: a day's sum from which the limit is broken.

    Returns:
        Rows that the limit holds for; rows just below; days with such rows; their sum; days whose sum breaks the limit.
    """
    rows = len(cents)
    out = np.zeros((5, rows), np.int64)
    day_near = np.zeros(n_days, np.int64)
    day_sum = np.zeros(n_days, np.int64)
    n, k, days, total, broken = 0, 0, 0, 0, 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            n, k, days, total, broken = 0, 0, 0, 0, 0
            continue
        if not applies[row]:
            continue
        today = day[row]
        sign = -1 if kind == LEAVE else 1
        before_near, before_sum = day_near[today], day_sum[today]
        after_sum = before_sum + sign * cents[row]
        after_near = before_near + sign * near[row]
        n_now = n + sign
        k_now = k + sign * near[row]
        total_now = total + sign * near[row] * cents[row]
        days_now = days + (after_near > 0) - (before_near > 0)
        broken_now = broken + (after_sum >= least_broken) - (before_sum >= least_broken)
        if kind == ASK:
            out[0, row], out[1, row], out[2, row] = n_now, k_now, days_now
            out[3, row], out[4, row] = total_now, broken_now
        else:
            n, k, days, total, broken = n_now, k_now, days_now, total_now, broken_now
            day_near[today], day_sum[today] = after_near, after_sum
    return out[0], out[1], out[2], out[3], out[4]


@kernel
def gap_statistics(events: I64, time: I64, rows: int) -> tuple[I64, F64, F64, F64]:
    """Gaps between the records that are seen, in order of the time at which they happened.

    Returns:
        Records; mean, standard deviation (population) and median of their gaps in seconds, NaN for fewer than two.
    """
    n = np.zeros(rows, np.int64)
    mean, deviation, median = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    times, gaps = np.empty(64, np.int64), np.empty(64, np.int64)
    size = 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            size = 0
        elif kind == ENTER:
            if size == len(times):
                wider = np.empty((2, 2 * size), np.int64)
                wider[0, :size], wider[1, :size] = times, gaps
                times, gaps = wider[0].copy(), wider[1].copy()
            moment = time[row]
            at = _place(times, size, moment)
            count = max(size - 1, 0)
            if 0 < at < size:
                _remove(gaps, count, times[at] - times[at - 1])
                count -= 1
            if at > 0:
                _insert(gaps, count, moment - times[at - 1])
                count += 1
            if at < size:
                _insert(gaps, count, times[at] - moment)
            _insert(times, size, moment)
            size += 1
        elif kind == LEAVE:
            # Rows leave in order of time, so it is the first one.
            if size > 1:
                _remove(gaps, size - 1, times[1] - times[0])
            _remove(times, size, times[0])
            size -= 1
        else:
            n[row] = size
            if size > 1:
                count = size - 1
                average = (times[size - 1] - times[0]) / count / 1e6
                squares = 0.0
                for position in range(count):
                    squares += (gaps[position] / 1e6 - average) ** 2
                mean[row], deviation[row] = average, np.sqrt(squares / count)
                median[row] = _middle(gaps, count) / 1e6
    return n, mean, deviation, median


@kernel
def daily_counts(
    slot_starts: I64,
    first_day: I64,
    open_day: I64,
    arrival_starts: I64,
    arrivals: I64,
    day: I64,
    known_day: I64,
    history_days: int,
    other_weight: float,
) -> tuple[F64, F64, F64, I64]:
    """Transactions on the last complete day and on days before it, as known at the start of each slot's day.

    Args:
        slot_starts: first slot of each account.
        first_day: day number of each account's first slot.
        open_day: day on which each account begins, whether or not a record of it is known.
        arrival_starts: where each account's rows begin in `arrivals`.
        arrivals: rows per account in order of `known_day`.
        day: day number of each row.
        known_day: first day at whose start each row was known.
        history_days: complete days before the last one.
        other_weight: weight of days on another day of the week than the last one.

    Returns:
        Per slot: count on the last complete day; weighted sum of earlier counts; sum of weights; complete days.
    """
    slots = slot_starts[-1]
    last, weighted, weight = np.zeros(slots), np.zeros(slots), np.zeros(slots)
    complete = np.zeros(slots, np.int64)
    for account in range(len(slot_starts) - 1):
        begin, length = slot_starts[account], slot_starts[account + 1] - slot_starts[account]
        counts = np.zeros(length, np.int64)
        at, end = arrival_starts[account], arrival_starts[account + 1]
        origin = open_day[account] - first_day[account]  # first day that is known to belong to the account
        for offset in range(length):
            while at < end and known_day[arrivals[at]] <= first_day[account] + offset:
                place = day[arrivals[at]] - first_day[account]
                counts[place] += 1
                origin = min(origin, place)
                at += 1
            if offset <= origin:
                continue
            complete[begin + offset] = offset - origin
            last[begin + offset] = counts[offset - 1]
            for back in range(1, min(history_days, offset - 1 - origin) + 1):
                share = 1.0 if back % 7 == 0 else other_weight
                weighted[begin + offset] += share * counts[offset - 1 - back]
                weight[begin + offset] += share
    return last, weighted, weight, complete


@kernel
def _change_window(
    changes: Any, levels: Any, sizes: Any, window: int, change: float, level: float, enters: bool
) -> None:
    """Put a day into the sorted changes and |balances| of a window, or take it out; none holds days without change."""
    if np.isnan(change):
        return
    if enters:
        _insert(changes[window], sizes[window], change)
        _insert(levels[window], sizes[window], level)
        sizes[window] += 1
    else:
        _remove(changes[window], sizes[window], change)
        _remove(levels[window], sizes[window], level)
        sizes[window] -= 1


@kernel
def _take_out(
    changes: Any, levels: Any, sizes: Any, lengths: Any, change: F64, balance: F64, changed: int, offset: int
) -> None:
    """Take out of every window the days before yesterday that are about to change."""
    for window in range(len(lengths)):
        for place in range(max(changed, offset - 1 - lengths[window]), offset - 1):
            _change_window(changes, levels, sizes, window, change[place], np.abs(balance[place]), False)


@kernel
def _put_in(
    changes: Any, levels: Any, sizes: Any, lengths: Any, change: F64, balance: F64, changed: int, offset: int
) -> None:
    """Put changed days and yesterday into every window, and take out the day that has become too old."""
    for window in range(len(lengths)):
        gone = offset - 1 - lengths[window]
        for place in range(max(changed, gone), offset):
            _change_window(changes, levels, sizes, window, change[place], np.abs(balance[place]), True)
        if gone >= 0:
            _change_window(changes, levels, sizes, window, change[gone], np.abs(balance[gone]), False)


@kernel
def _volatility(changes: F64, levels: F64, size: int, floor: float) -> float:
    """1.4826 MAD(change) / (median |balance| + floor) of sorted values."""
    if size == 0:
        return np.nan
    half, centre = size // 2, _middle(changes, size)
    spread = _kth_deviation(changes, size, centre, half)
    if size % 2 == 0:
        spread = 0.5 * (_kth_deviation(changes, size, centre, half - 1) + spread)
    return (1.4826 * spread + 0.0) / (_middle(levels, size) + floor)


@kernel
def _decayed_variance(variance: float, change: F64, start: int, end: int, decay: float) -> float:
    """Exponentially weighted mean of squared changes, carried on from an earlier day."""
    for place in range(start, end):
        if not np.isnan(change[place]):
            square = change[place] ** 2
            variance = square if np.isnan(variance) else decay * variance + (1 - decay) * square
    return variance


@kernel
def _highest(balance: F64, start: int, end: int) -> float:
    """Largest balance of some days, the last of which has one."""
    highest = balance[end - 1]
    for place in range(start, end):
        highest = max(highest, balance[place])
    return float(highest)


@kernel
def daily_balances(
    slot_starts: I64,
    first_day: I64,
    arrival_starts: I64,
    arrivals: I64,
    day: I64,
    known_day: I64,
    balance_after: F64,
    floor: float,
    days: int,
    short_days: int,
    long_days: int,
    decay: float,
    longest_days: int,
) -> tuple[F64, F64, F64, F64, F64, F64, F64]:
    """Movement of end-of-day balances, as known at the start of each slot's day; arguments as in `daily_counts`.

    Returns:
        Per slot: volatility; days that report a balance; volatility over the short and the long window; last change
        in standard deviations; drawdown; days below zero.
    """
    slots = slot_starts[-1]
    out = np.full((7, slots), np.nan)
    lengths = np.array([days, short_days, long_days])
    changes, levels = np.empty((3, max(lengths) + 1)), np.empty((3, max(lengths) + 1))
    sizes = np.zeros(3, np.int64)
    for account in range(len(slot_starts) - 1):
        begin, length = slot_starts[account], slot_starts[account + 1] - slot_starts[account]
        latest = np.full(length, -1, np.int64)  # row whose balance ends each day
        reported = np.zeros(length, np.int64)
        balance, change = np.full(length, np.nan), np.full(length, np.nan)
        at, end = arrival_starts[account], arrival_starts[account + 1]
        sizes[:] = 0
        variance, through = np.nan, -1  # last day that the variance holds
        for offset in range(length):
            changed = max(offset - 1, 0)
            while at < end and known_day[arrivals[at]] <= first_day[account] + offset:
                row = arrivals[at]
                at += 1
                place = day[row] - first_day[account]
                if not np.isnan(balance_after[row]) and row > latest[place]:
                    latest[place], reported[place] = row, 1
                    changed = min(changed, place)
            # A late record moves the balances of its own day and of the days after it.
            _take_out(changes, levels, sizes, lengths, change, balance, changed, offset)
            for place in range(changed, offset):
                before = balance[place - 1] if place > 0 else np.nan
                balance[place] = balance_after[latest[place]] if latest[place] >= 0 else before
                change[place] = balance[place] - before
            _put_in(changes, levels, sizes, lengths, change, balance, changed, offset)
            slot = begin + offset
            for window in range(3):
                n = np.sum(reported[max(offset - lengths[window], 0) : offset])
                if window == 0:
                    out[1, slot] = n
                if 2 * n >= lengths[window]:
                    volatility = _volatility(changes[window], levels[window], sizes[window], floor)
                    out[0 if window == 0 else window + 1, slot] = volatility
            if offset == 0 or np.isnan(balance[offset - 1]):
                continue
            if offset > longest_days or changed <= through:
                variance, through = np.nan, max(offset - longest_days, 0) - 1
            variance = _decayed_variance(variance, change, through + 1, offset - 1, decay)
            through = offset - 2
            if variance > 0:
                out[4, slot] = np.abs(change[offset - 1]) / np.sqrt(variance)
            highest = _highest(balance, max(offset - long_days, 0), offset)
            if highest > 0:
                out[5, slot] = 1 - balance[offset - 1] / highest
            out[6, slot] = np.sum(balance[max(offset - days, 0) : offset] < 0)
    return out[0], out[1], out[2], out[3], out[4], out[5], out[6]


@kernel
def _first_not_before(time: I64, rows: I64, start: int, end: int, moment: int) -> int:
    """How many of the rows happened before a moment; they are in order of time."""
    low, high = start, end
    while low < high:
        middle = (low + high) // 2
        if time[rows[middle]] < moment:
            low = middle + 1
        else:
            high = middle
    return low - start


@kernel
def returning_paths(
    edge_starts: I64,
    edge_rows: I64,
    time: I64,
    enter: I64,
    cents: I64,
    payer: I64,
    payee: I64,
    window_us: int,
    longest: int,
    tolerance: float,
    most_edges: int,
    asks: I64 | None = None,
) -> tuple[I64, I64, I64, I64]:
    """Walk backwards from each row along payments of decreasing time, and see whether its payee paid at the beginning.

    Args:
        edge_starts: where each node's incoming payments begin in `edge_rows`.
        edge_rows: rows per payee in order of time.
        time: microseconds.
        enter: first moment at which others can see each row.
        cents: amounts.
        payer: node that pays; -1 where a side is not named.
        payee: node that is paid.
        window_us: age of the oldest payment.
        longest: payments on a path, the row included.
        tolerance: share by which amounts may differ from the row's.
        most_edges: payments that are looked at per row.
        asks: rows to compute; all of them if not given.

    Returns:
        Per row that asks: circles; payments in the longest circle; payments on the longest path; 1 if the search was
        cut short.
    """
    asking = np.arange(len(time)) if asks is None else asks
    rows = len(asking)
    cycles, farthest = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    chain, truncated = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    node, at = np.empty(longest + 1, np.int64), np.empty(longest + 1, np.int64)
    for asked in range(rows):
        row = asking[asked]
        if payer[row] < 0:
            continue
        low, high = (1 - tolerance) * cents[row], (1 + tolerance) * cents[row]
        oldest, looked, depth = time[row] - window_us, 0, 0
        node[0] = payer[row]
        start, end = edge_starts[node[0]], edge_starts[node[0] + 1]
        at[0] = start + _first_not_before(time, edge_rows, start, end, time[row]) - 1
        chain[asked] = 1
        while depth >= 0:
            position = at[depth]
            if position < edge_starts[node[depth]] or time[edge_rows[position]] < oldest:
                depth -= 1
                continue
            looked += 1
            if looked > most_edges:
                truncated[asked] = 1
                break
            at[depth] -= 1
            edge = edge_rows[position]
            if enter[edge] > time[row] or cents[edge] < low or cents[edge] > high:
                continue
            origin = payer[edge]
            visited = False
            for earlier in range(depth + 1):
                visited = visited or node[earlier] == origin
            if visited:
                continue
            length = depth + 2
            chain[asked] = max(chain[asked], length)
            if origin == payee[row]:
                cycles[asked] += 1
                farthest[asked] = max(farthest[asked], length)
            elif length < longest:
                depth += 1
                node[depth] = origin
                start, end = edge_starts[origin], edge_starts[origin + 1]
                at[depth] = start + _first_not_before(time, edge_rows, start, end, time[edge]) - 1
    return cycles, farthest, chain, truncated
