"""Order statistics of everything that a row may see, by counting in binary indexed trees; compiled, see kernels.py.

A key's records have fixed places: their order in time, or their order by size. A tree of counts over places says in
O(log n) how many seen records lie before a place, and which one is the k-th (Fenwick 1994, "A new data structure for
cumulative frequency tables"). Counts are whole numbers, so that results do not depend on how the work is cut.
"""

# ruff: noqa: C901, PLR0912, PLR0917  # compiled functions take arguments by position; a walk is one loop

import numpy as np

from reperform.featurize.kernels import ASK, ENTER, F64, I64, KIND, RESET, SHIFT, Mask, kernel

HALF_WORD = 32  # bits; squares are summed in two halves, each of which stays exact


@kernel
def _add(tree: I64, size: int, place: int, change: int) -> None:
    """Count a record at a place in or out; tree[1 … size] is in use."""
    at = place + 1
    while at <= size:
        tree[at] += change
        at += at & -at


@kernel
def _before(tree: I64, place: int) -> int:
    """How many counted records lie before a place."""
    total = 0
    at = place
    while at > 0:
        total += tree[at]
        at -= at & -at
    return total


@kernel
def _select(tree: I64, size: int, nth: int) -> int:
    """Place of the nth counted record, n from 1; there are as many."""
    step = 1
    while 2 * step <= size:
        step *= 2
    at, left = 0, nth
    while step:
        if at + step <= size and tree[at + step] < left:
            at += step
            left -= tree[at]
        step //= 2
    return at


@kernel
def streaks(
    events: I64,
    starts: I64,
    by_time: I64,
    place: I64,
    time: I64,
    is_anomaly_at_once: Mask,
    lengths: I64,
    span_us: int,
    rows: int,
) -> tuple[I64, I64]:
    """What each row sees of its key's resolved records, in order of their time.

    Args:
        events: a tape that lets nothing leave. Source i < rows: row i is resolved. Source rows + i: row i, which was
            resolved as normal, is found to be an anomaly.
        starts: where each key's rows begin in `by_time`.
        by_time: rows per key in order of time.
        place: by row, its place in that order, from 0 in each key.
        time: by row, microseconds.
        is_anomaly_at_once: by row, whether it was resolved as an anomaly.
        lengths: numbers of latest resolved records among which anomalies are counted.
        span_us: how far back the oldest anomaly may lie.
        rows: how many rows may ask.

    Returns:
        Shape (rows, 5): resolved records, anomalies in a row that end with the latest of them, row of the first of
        these, normal ones since the latest anomaly, row of the oldest anomaly in the span; -1 where there is none.
        Shape (rows, lengths): anomalies among the latest resolved records.
    """
    out = np.full((rows, 5), -1, np.int64)
    among = np.zeros((rows, len(lengths)), np.int64)
    largest = 0
    for k in range(len(starts) - 1):
        largest = max(largest, starts[k + 1] - starts[k])
    normal, bad = np.zeros(largest + 1, np.int64), np.zeros(largest + 1, np.int64)
    settled = np.zeros(largest + 1, np.int64)  # of either kind
    key, size, start, low, n_normal, n_bad = -1, 0, 0, 0, 0, 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            key += 1
            start, size = starts[key], starts[key + 1] - starts[key]
            normal[: size + 1] = 0
            bad[: size + 1] = 0
            settled[: size + 1] = 0
            low, n_normal, n_bad = 0, 0, 0
        elif kind == ENTER:
            if row >= rows:
                _add(normal, size, place[row - rows], -1)
                _add(bad, size, place[row - rows], 1)
                n_normal -= 1
                n_bad += 1
            else:
                _add(settled, size, place[row], 1)
                _add(bad if is_anomaly_at_once[row] else normal, size, place[row], 1)
                n_bad += is_anomaly_at_once[row]
                n_normal += not is_anomaly_at_once[row]
        elif kind == ASK:
            resolved = n_normal + n_bad
            out[row, 0] = resolved
            while low < size and time[by_time[start + low]] < time[row] - span_us:
                low += 1
            if resolved == 0:
                continue
            earlier = 0  # anomalies before the latest normal record
            if n_normal:
                earlier = _before(bad, _select(normal, size, n_normal))
            out[row, 1] = n_bad - earlier
            if n_bad > earlier:
                out[row, 2] = by_time[start + _select(bad, size, earlier + 1)]
            if n_bad:
                out[row, 3] = n_normal - _before(normal, _select(bad, size, n_bad))
            old = _before(bad, low)
            if n_bad > old:
                out[row, 4] = by_time[start + _select(bad, size, old + 1)]
            for column in range(len(lengths)):
                first = _select(settled, size, max(resolved - lengths[column], 0) + 1)
                among[row, column] = n_bad - _before(bad, first)
    return out, among


@kernel
def spikes(
    events: I64,
    recent: I64,
    starts: I64,
    by_size: I64,
    place: I64,
    cents: I64,
    factor: float,
    most_cents: int,
    rows: int,
) -> tuple[I64, F64]:
    """Middle, mean and spread of what each row sees of its key's amounts, and how far recent ones stood out.

    Args:
        events: a tape.
        recent: a tape of the same history over a shorter window.
        starts: where each key's rows begin in `by_size`.
        by_size: rows per key in order of amount.
        place: by row, its place in that order, from 0 in each key.
        cents: by row, amounts.
        factor: recent amounts are counted above so many medians.
        most_cents: larger ones count as such in mean and spread, so that squares can be summed exactly.
        rows: how many rows may ask.

    Returns:
        Shape (rows, 3): records, recent ones, recent ones above the factor. Shape (rows, 4): median, largest recent
        amount, mean and standard deviation in cents; NaN where there is nothing.
    """
    counts, values = np.zeros((rows, 3), np.int64), np.full((rows, 4), np.nan)
    largest = 0
    for k in range(len(starts) - 1):
        largest = max(largest, starts[k + 1] - starts[k])
    every, late = np.zeros(largest + 1, np.int64), np.zeros(largest + 1, np.int64)
    key, size, start, n, n_late, total, upper, lower, other = -1, 0, 0, 0, 0, 0, 0, 0, 0
    mask = (1 << HALF_WORD) - 1
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            key += 1
            start, size = starts[key], starts[key + 1] - starts[key]
            every[: size + 1] = 0
            late[: size + 1] = 0
            n, n_late, total, upper, lower = 0, 0, 0, 0, 0
            other += 1
        elif kind != ASK:
            sign = 1 if kind == ENTER else -1
            _add(every, size, place[row], sign)
            amount = min(cents[row], most_cents)
            n += sign
            total += sign * amount
            upper += sign * ((amount * amount) >> HALF_WORD)
            lower += sign * ((amount * amount) & mask)
        else:
            while recent[other] & KIND != ASK:
                sign = 1 if recent[other] & KIND == ENTER else -1
                _add(late, size, place[recent[other] >> SHIFT], sign)
                n_late += sign
                other += 1
            other += 1
            counts[row, 0], counts[row, 1] = n, n_late
            if n == 0:
                continue
            median = 0.5 * (
                cents[by_size[start + _select(every, size, (n + 1) // 2)]]
                + cents[by_size[start + _select(every, size, n // 2 + 1)]]
            )
            first, last = 0, size  # place of the first amount above the limit
            while first < last:
                middle = (first + last) // 2
                if cents[by_size[start + middle]] > factor * median:
                    last = middle
                else:
                    first = middle + 1
            counts[row, 2] = n_late - _before(late, first)
            mean = total / n
            square = (upper * 4294967296.0 + lower) / n
            values[row, 0], values[row, 2] = median, mean
            values[row, 3] = np.sqrt(max(square - mean * mean, 0.0))
            if n_late:
                values[row, 1] = cents[by_size[start + _select(late, size, n_late)]]
    return counts, values
