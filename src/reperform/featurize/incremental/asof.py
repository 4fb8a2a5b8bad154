"""Statistics of what single rows see of their key's past, compiled: each row walks back over it, however many keys ask.

The past of all keys that are asked lies packed in arrays, key after key in order of time (`past.Past`). A row that asks
at `now` looks at places `begin` to `end` of them, the last one first; it sees a record if `enter <= now` and, for a
window, `now - time <= window`. Sums are sums of whole numbers, so that their order is nothing to see; where the batch's
kernels add up fractions, these here add them in the same order. Time goes with the rows that windows reach.
"""

# ruff: noqa: C901, PLR0912, PLR0917  # compiled functions take arguments by position, and a walk is one loop

import math
from typing import Any

import numpy as np

from reperform.featurize.days import NEVER
from reperform.featurize.kernels import F64, I64, Mask, _middle, kernel, ranked
from reperform.featurize.kernels import _volatility as volatility
from reperform.featurize.ledger import UNKNOWN_TIME_US
from reperform.featurize.shares import null_moments
from reperform.featurize.synchrony import _latest as latest_records
from reperform.featurize.synchrony import expected_days, poisson_tail, together_days

HALF_WORD = 32
NO_VARIATION = 1e-12


@kernel
def spans(starts: I64, used: I64, slots: I64, time: I64, keys: I64, first_us: I64, end_us: I64) -> tuple[I64, I64]:
    """Rows of some keys in [first, end), packed: where each key begins, and the slots."""
    low, high = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    packed = np.zeros(len(keys) + 1, np.int64)
    for k in range(len(keys)):
        key = keys[k]
        if 0 <= key < len(used):
            for side in range(2):
                bottom, top = starts[key], starts[key] + used[key]
                moment = first_us[k] if side == 0 else end_us[k]
                while bottom < top:
                    middle = (bottom + top) // 2
                    if time[slots[middle]] < moment:
                        bottom = middle + 1
                    else:
                        top = middle
                if side == 0:
                    low[k] = bottom
                else:
                    high[k] = max(bottom, low[k])
        packed[k + 1] = packed[k] + high[k] - low[k]
    out = np.empty(packed[-1], np.int64)
    for k in range(len(keys)):
        for at in range(high[k] - low[k]):
            out[packed[k] + at] = slots[low[k] + at]
    return packed, out


@kernel
def ends(starts: I64, time: I64, which: I64, now: I64) -> tuple[I64, I64]:
    """Where each asking row's past begins, and where it ends."""
    begin, end = np.zeros(len(which), np.int64), np.zeros(len(which), np.int64)
    for ask in range(len(which)):
        if which[ask] < 0:
            continue
        bottom, top = starts[which[ask]], starts[which[ask] + 1]
        begin[ask] = bottom
        while bottom < top:
            middle = (bottom + top) // 2
            if time[middle] < now[ask]:
                bottom = middle + 1
            else:
                top = middle
        end[ask] = bottom
    return begin, end


@kernel
def sums(begin: I64, end: I64, now: I64, time: I64, enter: I64, windows: I64, group: I64, own: I64, values: I64) -> I64:
    """Sums of columns over each window, of rows in the asking row's group; shape (asks, windows, columns)."""
    longest = windows.max()
    out = np.zeros((len(now), len(windows), values.shape[0]), np.int64)
    for ask in range(len(now)):
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            age = now[ask] - time[at]
            if age > longest:
                break
            if enter[at] > now[ask] or group[at] != own[ask]:
                continue
            for window in range(len(windows)):
                if age <= windows[window]:
                    for column in range(values.shape[0]):
                        out[ask, window, column] += values[column, at]
    return out


@kernel
def items(
    begin: I64, end: I64, now: I64, time: I64, enter: I64, windows: I64, item: I64, own: I64, stamp: I64, turn: int
) -> tuple[I64, I64, int]:
    """Different items and how often the own one is seen, by window; -1 is not counted. `stamp` holds less than `turn`.

    Returns:
        Both of shape (asks, windows); the turn after the last.
    """
    longest = windows.max()
    different, seen = np.zeros((len(now), len(windows)), np.int64), np.zeros((len(now), len(windows)), np.int64)
    for ask in range(len(now)):
        turn += 1
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            age = now[ask] - time[at]
            if age > longest:
                break
            if enter[at] > now[ask] or item[at] < 0:
                continue
            new, same = stamp[item[at]] != turn, item[at] == own[ask]
            stamp[item[at]] = turn  # latest first: the first one met is in every window that holds any
            for window in range(len(windows)):
                if age <= windows[window]:
                    different[ask, window] += new
                    seen[ask, window] += same
    return different, seen, turn


@kernel
def same(begin: I64, end: I64, now: I64, time: I64, enter: I64, windows: I64, item: I64, own: I64) -> tuple[I64, I64]:
    """Rows, and those of the own item, by window."""
    longest = windows.max()
    n, here = np.zeros((len(now), len(windows)), np.int64), np.zeros((len(now), len(windows)), np.int64)
    for ask in range(len(now)):
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            age = now[ask] - time[at]
            if age > longest:
                break
            if enter[at] > now[ask]:
                continue
            for window in range(len(windows)):
                if age <= windows[window]:
                    n[ask, window] += 1
                    here[ask, window] += item[at] == own[ask]
    return n, here


@kernel
def order_statistics(
    begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int, group: I64, own: I64, values: F64, mine: F64
) -> tuple[I64, F64, F64, F64, F64]:
    """As `kernels.order_statistics`, over rows of the asking row's group."""
    rows = len(now)
    n, median, deviation = np.zeros(rows, np.int64), np.full(rows, np.nan), np.full(rows, np.nan)
    maximum, rank = np.full(rows, np.nan), np.full(rows, np.nan)
    for ask in range(rows):
        ordered, size = np.empty(end[ask] - begin[ask]), 0
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window:
                break
            if enter[at] <= now[ask] and group[at] == own[ask] and not np.isnan(values[at]):
                ordered[size] = values[at]
                size += 1
        n[ask] = size
        if size == 0:
            continue
        ordered = ordered[:size].copy()
        ordered.sort()
        median[ask], deviation[ask], maximum[ask], rank[ask] = ranked(ordered, size, mine[ask])
    return n, median, deviation, maximum, rank


@kernel
def spikes(
    begin: I64,
    end: I64,
    now: I64,
    time: I64,
    enter: I64,
    window: int,
    recent: int,
    group: I64,
    own: I64,
    cents: I64,
    factor: float,
    most_cents: int,
) -> tuple[I64, F64]:
    """As `rank_kernels.spikes`, over rows of the asking row's group."""
    rows, mask = len(now), (1 << HALF_WORD) - 1
    counts, values = np.zeros((rows, 3), np.int64), np.full((rows, 4), np.nan)
    for ask in range(rows):
        ordered = np.empty(end[ask] - begin[ask], np.int64)
        size, n, late, total, upper, lower, largest = 0, 0, 0, 0, 0, 0, 0
        first = end[ask]
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            age = now[ask] - time[at]
            if age > window and age > recent:
                break
            if enter[at] > now[ask] or group[at] != own[ask]:
                continue
            if age <= recent:
                late += 1
                largest = max(largest, cents[at])
                first = at
            if age <= window:
                ordered[size] = cents[at]
                size += 1
                amount = min(cents[at], most_cents)
                total += amount
                upper += (amount * amount) >> HALF_WORD
                lower += (amount * amount) & mask
        n = size
        counts[ask, 0], counts[ask, 1] = n, late
        if n == 0:
            continue
        ordered = ordered[:size].copy()
        ordered.sort()
        median = 0.5 * (ordered[(n + 1) // 2 - 1] + ordered[n // 2])
        for at in range(first, end[ask]):
            if (
                now[ask] - time[at] <= recent
                and enter[at] <= now[ask]
                and group[at] == own[ask]
                and cents[at] > factor * median
            ):
                counts[ask, 2] += 1
        mean = total / n
        square = (upper * 4294967296.0 + lower) / n
        values[ask, 0], values[ask, 2] = median, mean
        values[ask, 3] = np.sqrt(max(square - mean * mean, 0.0))
        if late:
            values[ask, 1] = largest
    return counts, values


@kernel
def digit_deviation(
    begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int, digit: I64, expected: F64, least_n: int
) -> tuple[I64, F64]:
    """As `benford.digit_deviation`."""
    n_out, deviation = np.zeros(len(now), np.int64), np.full(len(now), np.nan)
    seen = np.zeros(10, np.int64)
    for ask in range(len(now)):
        seen[:] = 0
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window:
                break
            if enter[at] <= now[ask]:
                seen[digit[at]] += 1
        n = 0
        for position in range(1, 10):
            n += seen[position]
        n_out[ask] = n
        if n >= max(least_n, 1):
            total = 0.0
            for position in range(9):
                total += abs(seen[position + 1] / n - expected[position])
            deviation[ask] = total / 9
    return n_out, deviation


@kernel
def places(
    begin: I64,
    end: I64,
    now: I64,
    time: I64,
    enter: I64,
    window: int,
    country: I64,
    own: I64,
    located: I64,
    y: I64,
    x: I64,
) -> I64:
    """Shape (asks, 7): rows of the own country, rows with one, rows with a place; sums of y, x, y y and x x."""
    out = np.zeros((len(now), 7), np.int64)
    for ask in range(len(now)):
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window:
                break
            if enter[at] > now[ask]:
                continue
            out[ask, 0] += country[at] == own[ask]
            out[ask, 1] += country[at] >= 0
            out[ask, 2] += located[at]
            out[ask, 3] += y[at]
            out[ask, 4] += x[at]
            out[ask, 5] += y[at] * y[at]
            out[ask, 6] += x[at] * x[at]
    return out


@kernel
def latest(begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int, counts: Mask) -> I64:
    """Place of the latest of the rows that count; of equal times the one that entered last; -1 if none."""
    out = np.full(len(now), -1, np.int64)
    for ask in range(len(now)):
        found = -1
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window or (found >= 0 and time[at] < time[found]):
                break
            if counts[at] and enter[at] <= now[ask] and (found < 0 or enter[at] > enter[found]):
                found = at
        out[ask] = found
    return out


@kernel
def gap_statistics(begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int) -> tuple[I64, F64, F64, F64]:
    """As `kernels.gap_statistics`."""
    rows = len(now)
    n = np.zeros(rows, np.int64)
    mean, deviation, median = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    for ask in range(rows):
        gaps = np.empty(max(end[ask] - begin[ask], 1), np.int64)
        size, earliest, newest = 0, 0, 0
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window:
                break
            if enter[at] > now[ask]:
                continue
            if size == 0:
                newest = time[at]
            else:
                gaps[size - 1] = earliest - time[at]
            earliest = time[at]
            size += 1
        n[ask] = size
        if size > 1:
            count = size - 1
            gaps = gaps[:count].copy()
            gaps.sort()
            average = (newest - earliest) / count / 1e6
            squares = 0.0
            for position in range(count):
                squares += (gaps[position] / 1e6 - average) ** 2
            mean[ask], deviation[ask] = average, np.sqrt(squares / count)
            median[ask] = _middle(gaps, count) / 1e6
    return n, mean, deviation, median


@kernel
def ends_known(starts: I64, used: I64, slots: I64, time: I64, enter: I64, keys: I64, now: I64) -> tuple[I64, I64]:
    """Earliest and latest time of each key's rows that are known; -1 where there is none."""
    first, last = np.full(len(now), -1, np.int64), np.full(len(now), -1, np.int64)
    for ask in range(len(now)):
        key = keys[ask]
        if key < 0 or key >= len(used):
            continue
        bottom, top = starts[key], starts[key] + used[key]
        for at in range(bottom, top):
            if time[slots[at]] >= now[ask]:
                break
            if enter[slots[at]] <= now[ask]:
                first[ask] = time[slots[at]]
                break
        if first[ask] < 0:
            continue
        while bottom < top:
            middle = (bottom + top) // 2
            if time[slots[middle]] < now[ask]:
                bottom = middle + 1
            else:
                top = middle
        for at in range(bottom - 1, starts[key] - 1, -1):
            if enter[slots[at]] <= now[ask]:
                last[ask] = time[slots[at]]
                break
    return first, last


@kernel
def pair_latest(
    starts: I64, used: I64, slots: I64, time: I64, enter: I64, keys: I64, now: I64, party: I64, own: I64
) -> I64:
    """Time of the latest known row of the key with the own party; -1 where there is none."""
    out = np.full(len(now), -1, np.int64)
    for ask in range(len(now)):
        key = keys[ask]
        if key < 0 or key >= len(used) or own[ask] < 0:
            continue
        bottom, top = starts[key], starts[key] + used[key]
        while bottom < top:
            middle = (bottom + top) // 2
            if time[slots[middle]] < now[ask]:
                bottom = middle + 1
            else:
                top = middle
        for at in range(bottom - 1, starts[key] - 1, -1):
            slot = slots[at]
            if party[slot] == own[ask] and enter[slot] <= now[ask]:
                out[ask] = time[slot]
                break
    return out


@kernel
def first_days(
    starts: I64, used: I64, slots: I64, time: I64, keys: I64, day: I64, known_day: I64, until: I64, prompt: bool
) -> I64:
    """First day of each key's rows that were known by a day, or (prompt) as it ended; `NEVER` for none.

    Days by a clock that is put back at midnight may step back by one: rows of a day more are looked at.
    """
    out = np.full(len(keys), NEVER, np.int64)
    for ask in range(len(keys)):
        key = keys[ask]
        if key < 0 or key >= len(used):
            continue
        found = np.int64(-1)
        for at in range(starts[key], starts[key] + used[key]):
            slot = slots[at]
            if found >= 0 and time[slot] > found + 86_400_000_000:
                break
            if (prompt and known_day[slot] == day[slot] + 1) or (not prompt and known_day[slot] <= until[ask]):
                if found < 0:
                    found = time[slot]
                out[ask] = min(out[ask], day[slot])
    return out


@kernel
def prompt_sums(
    starts: I64, used: I64, slots: I64, keys: I64, until: I64, span: int, day: I64, known_day: I64, cents: I64,
) -> I64:  # fmt: skip
    """Sums by day of what was known when the day ended, over so many days before `until`; shape (keys, span + 1)."""
    out = np.zeros((len(keys), span + 1), np.int64)
    for k in range(len(keys)):
        key = keys[k]
        if key < 0 or key >= len(used):
            continue
        for at in range(starts[key] + used[key] - 1, starts[key] - 1, -1):
            slot = slots[at]
            place = day[slot] - (until[k] - span)
            if place < -1:
                break
            if 0 <= place < span and known_day[slot] == day[slot] + 1:
                out[k, place] += cents[slot]
    return out


@kernel
def daily_counts(
    begin: I64, end: I64, today: I64, day: I64, known_day: I64, complete: I64, history_days: int, other_weight: float
) -> tuple[F64, F64]:
    """As `kernels.daily_counts`: count of the last complete day, weighted sum of counts before it.

    Args:
        begin: where each account's rows begin.
        end: and end; all rows of the account that happened before today's end, as far as days reach.
        today: day that begins.
        day: by row.
        known_day: by row.
        complete: complete days of the account.
        history_days: before the last one.
        other_weight: of days on another day of the week.
    """
    last, weighted = np.zeros(len(today)), np.zeros(len(today))
    counts = np.zeros(history_days + 2, np.int64)
    for ask in range(len(today)):
        if complete[ask] <= 0:
            continue
        counts[:] = 0
        for at in range(begin[ask], end[ask]):
            back = today[ask] - 1 - day[at]
            if 0 <= back <= history_days and known_day[at] <= today[ask]:
                counts[back] += 1
        last[ask] = counts[0]
        for back in range(1, min(history_days, complete[ask] - 1) + 1):
            share = 1.0 if back % 7 == 0 else other_weight
            weighted[ask] += share * counts[back]
    return last, weighted


@kernel
def daily_balances(
    begin: I64,
    end: I64,
    today: I64,
    first_day: I64,
    day: I64,
    known_day: I64,
    balance_after: F64,
    days: int,
    short_days: int,
    long_days: int,
    decay: float,
    longest_days: int,
) -> F64:
    """As `kernels.daily_balances` for one day; shape (asks, 7). Rows are those of the account from its beginning.

    Args:
        begin: where each account's rows begin.
        end: and end.
        today: day that begins.
        first_day: of each account.
        day: by row.
        known_day: by row.
        balance_after: in units of the floor.
        days: window of the volatility.
        short_days: of the short one.
        long_days: of the long one.
        decay: weight of yesterday's variance.
        longest_days: days of the variance.
    """
    out = np.full((len(today), 7), np.nan)
    lengths = np.array([days, short_days, long_days])
    span = max(lengths.max(), longest_days, 1) + 2
    latest_row, balance, change = np.empty(span, np.int64), np.empty(span), np.empty(span)
    changes, levels = np.empty(span), np.empty(span)
    for ask in range(len(today)):
        # Place `span - 1` is yesterday; the balance before the first place is carried forward from earlier rows.
        latest_row[:] = -1
        origin = today[ask] - span
        before, before_day = -1, np.int64(-(1 << 50))
        for at in range(begin[ask], end[ask]):
            if known_day[at] > today[ask] or np.isnan(balance_after[at]):
                continue
            place = day[at] - origin
            if place >= span:
                continue
            if place >= 0:
                latest_row[place] = max(latest_row[place], at)
            elif day[at] >= before_day:
                before, before_day = at, day[at]
        carried = balance_after[before] if before >= 0 else np.nan
        for place in range(span):
            earlier = carried if place == 0 else balance[place - 1]
            balance[place] = balance_after[latest_row[place]] if latest_row[place] >= 0 else earlier
            change[place] = balance[place] - earlier
        offset = today[ask] - first_day[ask]
        for window in range(3):
            n = 0
            for place in range(span - lengths[window], span):
                n += latest_row[place] >= 0
            if window == 0:
                out[ask, 1] = n
            if 2 * n >= lengths[window]:
                size = 0
                for place in range(span - lengths[window], span):
                    if not np.isnan(change[place]):
                        changes[size], levels[size] = change[place], np.abs(balance[place])
                        size += 1
                changes[:size].sort()
                levels[:size].sort()
                out[ask, 0 if window == 0 else window + 1] = volatility(changes, levels, size, 1.0)
        if offset <= 0 or np.isnan(balance[span - 1]):
            continue
        variance = np.nan
        for place in range(span - longest_days, span - 1):
            if not np.isnan(change[place]):
                square = change[place] ** 2
                variance = square if np.isnan(variance) else decay * variance + (1 - decay) * square
        if variance > 0:
            out[ask, 4] = np.abs(change[span - 1]) / np.sqrt(variance)
        highest = balance[span - 1]
        for place in range(span - min(long_days, offset), span):
            highest = max(highest, balance[place])
        if highest > 0:
            out[ask, 5] = 1 - balance[span - 1] / highest
        below = 0
        for place in range(span - days, span):
            below += balance[place] < 0
        out[ask, 6] = below
    return out


@kernel
def _resolved(time: int, enter: int, said: int, confirmed: int, maturity: int) -> tuple[int, int]:
    """When a row is known to be an anomaly, and when it counts as resolved."""
    positive = max(confirmed, enter) if said == 1 else UNKNOWN_TIME_US
    return positive, min(max(time + maturity, enter), positive)


@kernel
def risk(
    begin: I64,
    end: I64,
    now: I64,
    time: I64,
    enter: I64,
    said: I64,
    confirmed: I64,
    maturity: int,
    windows: I64,
    recent: I64,
) -> tuple[I64, I64, I64]:
    """Anomalies and resolved rows of each window; confirmations and settled rows of each recent window.

    Returns:
        Shape (asks, windows, 2); shape (asks, recent, 2); shape (asks, 2): time of the latest anomaly that is known,
        and of the newest confirmation, -1 for none.
    """
    counts = np.zeros((len(now), len(windows), 2), np.int64)
    lately = np.zeros((len(now), len(recent), 2), np.int64)
    newest = np.full((len(now), 2), -1, np.int64)
    for ask in range(len(now)):
        t = now[ask]
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if enter[at] > t:
                continue
            positive, resolved = _resolved(time[at], enter[at], said[at], confirmed[at], maturity)
            if resolved > t:
                continue
            for window in range(len(windows)):
                if t - time[at] <= windows[window]:
                    counts[ask, window, 0] += positive <= t
                    counts[ask, window, 1] += 1
            again = positive < UNKNOWN_TIME_US and resolved < positive <= t
            for window in range(len(recent)):
                lately[ask, window, 1] += (t - resolved <= recent[window]) + (again and t - positive <= recent[window])
                lately[ask, window, 0] += positive <= t and t - positive <= recent[window]
            if positive <= t:
                newest[ask, 0] = max(newest[ask, 0], time[at])
                newest[ask, 1] = max(newest[ask, 1], positive)
    return counts, lately, newest


@kernel
def streaks(
    begin: I64,
    end: I64,
    now: I64,
    time: I64,
    enter: I64,
    said: I64,
    confirmed: I64,
    maturity: int,
    lengths: I64,
    span: int,
) -> tuple[I64, I64]:
    """As `rank_kernels.streaks`; times instead of rows, -1 for none."""
    out, among = np.full((len(now), 5), -1, np.int64), np.zeros((len(now), len(lengths)), np.int64)
    for ask in range(len(now)):
        t = now[ask]
        n, bad, run, first, since, oldest, in_run = 0, 0, 0, -1, -1, -1, True
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if enter[at] > t:
                continue
            positive, resolved = _resolved(time[at], enter[at], said[at], confirmed[at], maturity)
            if resolved > t:
                continue
            n += 1
            if positive <= t:
                if bad == 0:
                    since = n - 1
                bad += 1
                if in_run:
                    run += 1
                    first = time[at]
                if t - time[at] <= span:
                    oldest = time[at]
                for column in range(len(lengths)):
                    among[ask, column] += n <= lengths[column]
            else:
                in_run = False
        out[ask, 0] = n
        if n:
            out[ask, 1], out[ask, 2], out[ask, 3], out[ask, 4] = run, first, since, oldest
    return out, among


@kernel
def day_sums(
    begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int, group: I64, own: I64, item: I64, mine: I64,
    values: I64,
) -> I64:  # fmt: skip
    """Sum over rows of the asking row's group and item in a window."""
    out = np.zeros(len(now), np.int64)
    for ask in range(len(now)):
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window:
                break
            if enter[at] <= now[ask] and group[at] == own[ask] and item[at] == mine[ask]:
                out[ask] += values[at]
    return out


@kernel
def split_amounts(
    begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int, group: I64, own: I64,
    applies: Mask, near: Mask, cents: I64, day: I64,
    own_applies: Mask, own_near: Mask, own_cents: I64, own_day: I64, least_broken: int,
) -> I64:  # fmt: skip
    """As `kernels.split_amounts`; shape (5, asks)."""
    out = np.zeros((5, len(now)), np.int64)
    longest = window // 86_400_000_000 + 6
    day_near, day_sum = np.zeros(longest, np.int64), np.zeros(longest, np.int64)
    for ask in range(len(now)):
        if not own_applies[ask]:
            continue
        day_near[:] = 0
        day_sum[:] = 0
        today = own_day[ask] + 2
        n, k, total = 1, np.int64(own_near[ask]), np.int64(0)
        if own_near[ask]:
            total = own_cents[ask]
        day_near[2] += k
        day_sum[2] += own_cents[ask]
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window:
                break
            if enter[at] > now[ask] or group[at] != own[ask] or not applies[at]:
                continue
            place = today - day[at]
            n += 1
            day_sum[place] += cents[at]
            if near[at]:
                k += 1
                total += cents[at]
                day_near[place] += 1
        days, broken = 0, 0
        for place in range(longest):
            days += day_near[place] > 0
            broken += day_sum[place] >= least_broken
        out[0, ask], out[1, ask], out[2, ask], out[3, ask], out[4, ask] = n, k, days, total, broken
    return out


@kernel
def shares(
    begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int, items: I64, weights: I64, least_n: int,
    most_n: int, weight: I64, members: I64,
) -> tuple[I64, I64, F64, F64, F64, Mask]:  # fmt: skip
    """As `shares.shares`; the last result marks rows whose window or the one before may hold more than `most_n`.

    `weight` and `members` hold noughts for each item, and are left so.
    """
    rows = len(now)
    counted, different = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    index, unbiased, above = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    many = np.zeros(rows, np.bool_)
    for ask in range(rows):
        seen, size, looked = np.empty(end[ask] - begin[ask], np.int64), 0, 0
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > 2 * window:
                break
            looked += items[at] >= 0
            if now[ask] - time[at] <= window and enter[at] <= now[ask] and items[at] >= 0:
                seen[size] = at
                size += 1
        many[ask] = looked > most_n
        counted[ask] = size
        if size < max(least_n, 1):
            continue
        for position in range(size // 2):
            seen[position], seen[size - 1 - position] = seen[size - 1 - position], seen[position]
        for position in range(1, size):  # in order of arrival; of equal ones by time
            moved, at = seen[position], position
            while at > 0 and enter[seen[at - 1]] > enter[moved]:
                seen[at] = seen[at - 1]
                at -= 1
            seen[at] = moved
        total = 0
        for position in range(size):
            other = seen[position]
            total += weights[other]
            weight[items[other]] += weights[other]
            members[items[other]] += 1
        groups, h, pairs, triples, powers = 0, 0.0, 0.0, 0.0, np.zeros(3)
        for position in range(size):
            other = seen[position]
            share, item = weights[other] / total, items[other]
            powers[0] += share * share
            powers[1] += share * share * share
            powers[2] += share * share * share * share
            if members[item] > 0:
                groups += 1
                h += (weight[item] / total) ** 2
                pairs += members[item] * (members[item] - 1.0)
                triples += members[item] * (members[item] - 1.0) ** 2
                members[item], weight[item] = 0, 0
        different[ask], index[ask] = groups, h
        if powers[0] < 1 - NO_VARIATION:
            unbiased[ask] = h - (1 - h) / (1 / powers[0] - 1)
        if size >= 4:  # noqa: PLR2004  # as `shares.LEAST_FOR_VARIANCE`
            mean, variance = null_moments(size, pairs, triples, powers)
            if variance > NO_VARIATION:
                above[ask] = (h - mean) / np.sqrt(variance)
    return counted, different, index, unbiased, above, many


@kernel
def bad_items(
    begin: I64, end: I64, now: I64, time: I64, enter: I64, window: int, item: I64, own: I64, bad_from: I64,
    stamp: I64, turn: int,
) -> tuple[I64, int]:  # fmt: skip
    """Different items, without the own one, that are seen and known as bad."""
    out = np.zeros(len(now), np.int64)
    for ask in range(len(now)):
        turn += 1
        for at in range(end[ask] - 1, begin[ask] - 1, -1):
            if now[ask] - time[at] > window:
                break
            party = item[at]
            if party < 0 or enter[at] > now[ask] or party == own[ask] or bad_from[party] > now[ask]:
                continue
            out[ask] += stamp[party] != turn
            stamp[party] = turn
    return out, turn


@kernel
def _copied(slots: I64, begin: int, end: int, time: I64, enter: I64, at: int, out: Any) -> int:
    for place in range(begin, end):
        out[0, at], out[1, at] = time[slots[place]], enter[slots[place]]
        at += 1
    return at


@kernel
def _span(starts: I64, used: I64, slots: I64, time: I64, key: int, oldest: int, now: int) -> tuple[int, int]:
    """Places of a key's rows in [oldest, now)."""
    low, high = starts[key], starts[key] + used[key]
    for side in range(2):
        bottom, top = starts[key], starts[key] + used[key]
        moment = oldest if side == 0 else now
        while bottom < top:
            middle = (bottom + top) // 2
            if time[slots[middle]] < moment:
                bottom = middle + 1
            else:
                top = middle
        if side == 0:
            low = bottom
        else:
            high = bottom
    return low, max(high, low)


@kernel
def synchrony(
    entity_starts: I64, entity_used: I64, entity_slots: I64, starts: I64, used: I64, slots: I64,
    entity: I64, account: I64, time: I64, enter: I64, asks: I64,
    reach: int, window: int, most_partners: int, most_nearby: int, most_records: int,
) -> F64:  # fmt: skip
    """As `synchrony.synchrony`, for some rows; shape (4, asks)."""
    out = np.full((4, len(asks)), np.nan)
    parts = np.full(max(86_400_000_000 // reach, 1), -1)
    partners = np.empty(most_partners, np.int64)
    own, other, chosen = np.empty((3, most_records), np.int64)
    for ask in range(len(asks)):
        row = asks[ask]
        now, size, nearby = time[row], 0, 0
        if entity[row] >= 0:
            low, high = _span(entity_starts, entity_used, entity_slots, time, entity[row], now - reach, now)
            # Rows of the same moment that stand before this one in the table are looked at, and are not known yet.
            at = high - 1
            while at >= low and size < most_partners and nearby < most_nearby:
                earlier = entity_slots[at]
                at -= 1
                if enter[earlier] > now:
                    continue
                nearby += 1
                new = account[earlier] != account[row]
                for position in range(size):
                    new = new and partners[position] != account[earlier]
                if new:
                    partners[size] = account[earlier]
                    size += 1
        out[3, ask] = size
        if size == 0:
            continue
        oldest = now - window
        bounds, total = np.empty((size + 1, 2), np.int64), 0
        for position in range(size + 1):
            key = account[row] if position == size else partners[position]
            bounds[position] = _span(starts, used, slots, time, key, oldest, now)
            total += bounds[position, 1] - bounds[position, 0]
        copied, begins, at = np.empty((2, total), np.int64), np.zeros(size + 2, np.int64), 0
        for position in range(size + 1):
            at = _copied(slots, bounds[position, 0], bounds[position, 1], time, enter, at, copied)
            begins[position + 1] = at
        times, enters = copied[0], copied[1]
        days = times // 86_400_000_000
        part = (times - days * 86_400_000_000) * len(parts) // 86_400_000_000
        own_size = latest_records(times, enters, begins[size], begins[size + 1], now, oldest, own)
        best, best_size = 0, 1
        for position in range(size):
            other_size = latest_records(
                times, enters, begins[position], begins[position + 1], now - reach, oldest, other
            )
            together = together_days(own[:own_size], other[:other_size], times, days, reach)
            if together * best_size > best * other_size:
                best, best_size = together, other_size
                chosen[:other_size] = other[:other_size]
        out[0, ask], out[1, ask], out[2, ask] = 0.0, best, 0.0
        if best > 0:
            out[2, ask] = expected_days(own[:own_size], chosen[:best_size], times, days, part, reach, parts)
            out[0, ask] = max(poisson_tail(best, out[2, ask]) - math.log10(size), 0.0)
    return out
