"""Correlations of daily series, and what chance makes of them: kernels of KPI 12."""

# ruff: noqa: PLR0917  # compiled functions take arguments by position

from typing import Any

import numpy as np

from reperform.featurize.kernels import F64, I64, NO_VARIATION, _median, kernel

GOLDEN, FIRST_MIX, SECOND_MIX = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@kernel
def _mixed(state: Any) -> Any:
    """SplitMix64's output function (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195)."""
    z = np.uint64(state)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST_MIX)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND_MIX)
    return z ^ (z >> np.uint64(31))


@kernel
def _order(values: F64) -> I64:
    """Positions in order of value; of equal values the earlier first. For a few hundred values: sorted by insertion."""
    order = np.empty(len(values), np.int64)
    for size in range(len(values)):
        at = size
        while at > 0 and values[order[at - 1]] > values[size]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = size
    return order


@kernel
def _ranks(values: F64, order: I64, start: int, end: int) -> F64:
    """Ranks from 1 within values[start:end], given the order of all values; equal ones share their mean rank."""
    inside, size = np.empty(end - start, np.int64), 0
    for position in order:
        if start <= position < end:
            inside[size] = position
            size += 1
    ranks = np.empty(size)
    first = 0
    while first < size:
        last = first + 1
        while last < size and values[inside[last]] == values[inside[first]]:
            last += 1
        for position in range(first, last):
            ranks[inside[position] - start] = 0.5 * (first + last + 1)
        first = last
    return ranks


@kernel
def _pearson(x: F64, y: F64) -> float:
    x_sum, y_sum, xy, xx, yy = 0.0, 0.0, 0.0, 0.0, 0.0
    for position in range(len(x)):
        x_sum += x[position]
        y_sum += y[position]
    x_mean, y_mean = x_sum / len(x), y_sum / len(y)
    for position in range(len(x)):
        dx, dy = x[position] - x_mean, y[position] - y_mean
        xy += dx * dy
        xx += dx * dx
        yy += dy * dy
    return xy / np.sqrt(xx * yy) if min(xx, yy) > NO_VARIATION else np.nan


@kernel
def _without_weekdays(values: F64) -> F64:
    """Values of consecutive days, each less the median of its day of the week."""
    out = values.copy()
    for weekday in range(min(7, len(values))):
        out[weekday::7] -= _median(values[weekday::7].copy())
    return out


@kernel
def _effective_n(x: F64, y: F64) -> float:
    """N / (1 + 2 sum_k r_x(k) r_y(k)) over lags up to a week (Bartlett 1935), between 4 and n."""
    n = len(x)
    inflation = 1.0
    for lag in range(1, 8):
        r = _pearson(x[lag:], x[:-lag]) * _pearson(y[lag:], y[:-lag])
        if not np.isnan(r):
            inflation += 2 * r
    return min(max(n / inflation, 4.0), float(n)) if inflation > 0 else float(n)


@kernel
def _fisher_difference(reference: float, n_reference: float, now: float, n_now: float) -> float:
    """Difference of two Spearman correlations in standard errors (Fieller, Hartley and Pearson 1957)."""
    before, after = min(max(reference, -0.999), 0.999), min(max(now, -0.999), 0.999)
    error = np.sqrt(1.06 / (n_reference - 3) + 1.06 / (n_now - 3))
    return float((np.arctanh(before) - np.arctanh(after)) / error)


@kernel
def _best_own_correlation(x: F64, order: I64, start: int, end: int, lags: int) -> tuple[float, int]:
    """Largest Spearman correlation of x[start:end] with its own values 1 to `lags` days before, and that lag."""
    best, best_lag = np.nan, 0
    for lag in range(1, lags + 1):
        first = max(start, lag)
        r = _pearson(_ranks(x, order, first, end), _ranks(x, order, first - lag, end - lag))
        if not np.isnan(r) and (np.isnan(best) or r > best):
            best, best_lag = r, lag
    return best, best_lag


@kernel
def _largest_product(centred: F64, lags: int) -> float:
    """Largest sum over days of rank times earlier rank, over lags; the first `lags` values are earlier days alone."""
    best = -np.inf
    for lag in range(1, lags + 1):
        total = 0.0
        for position in range(lags, len(centred)):
            total += centred[position] * centred[position - lag]
        best = max(best, total)
    return best


@kernel
def permutation_p(values: F64, lags: int, shuffles: int, stop_at: int, stream: int) -> float:
    """How often shuffled days reach the largest autocorrelation of ranks over lags.

    Shuffling stops at `stop_at` successes: p is then stop_at / shuffles made, else (successes + 1) / (shuffles + 1).
    Source: Besag and Clifford (1991), doi:10.1093/biomet/78.2.301.

    Args:
        values: days in order; the first `lags` of them only serve as earlier days.
        lags: largest lag.
        shuffles: at most.
        stop_at: successes that are enough.
        stream: where the random numbers of this very test begin.
    """
    ranks = _ranks(values, _order(values), 0, len(values))
    # Twice the centred ranks are whole numbers: sums are exact, and a shuffle that changes nothing is a tie.
    centred = 2 * ranks - (len(values) + 1)
    observed = _largest_product(centred, lags)
    state, reached = np.uint64(stream), 0
    for made in range(1, shuffles + 1):
        for position in range(len(centred) - 1, 0, -1):
            state += np.uint64(GOLDEN)
            other = np.int64((_mixed(state) >> np.uint64(33)) % np.uint64(position + 1))
            centred[position], centred[other] = centred[other], centred[position]
        reached += _largest_product(centred, lags) >= observed
        if reached == stop_at:
            return reached / made
    return (reached + 1) / (shuffles + 1)


@kernel
def stream_of(seed: int, key: int, moment: int) -> int:
    """Where the random numbers of one key and moment begin: independent of all other keys, and of any order."""
    state = _mixed(np.uint64(seed) + np.uint64(GOLDEN))
    state = _mixed((state ^ np.uint64(key)) + np.uint64(GOLDEN))
    return int(_mixed((state ^ np.uint64(moment)) + np.uint64(GOLDEN)) >> np.uint64(1))


@kernel
def own_decoupling(
    starts: I64,
    x: F64,
    wanted: Any,
    first_alive: I64,
    first_day: I64,
    keys: I64,
    days: int,
    reference_days: int,
    least_reference_days: int,
    lags: int,
    shuffles: int,
    stop_at: int,
    seed: int,
) -> tuple[F64, F64, F64]:
    """How much less a series correlates with its own past than it did before.

    Args:
        starts: first slot of each account; slots are consecutive days.
        x: the account's series.
        wanted: slots to compute.
        first_alive: first offset of each account that counts.
        first_day: day number of each account's first slot.
        keys: number of each account for its random numbers.
        days: window that is judged.
        reference_days: window before it, at most.
        least_reference_days: and at least.
        lags: own earlier days to compare with.
        shuffles: of the window's days, at most.
        stop_at: shuffles as good as the observed days that are enough.
        seed: of the shuffles.

    Returns:
        Per slot: z, through yesterday; p of the window's largest correlation; days of the reference window.
    """
    slots = starts[-1]
    z, p, n_reference = np.full(slots, np.nan), np.full(slots, np.nan), np.zeros(slots)
    for account in range(len(starts) - 1):
        begin = starts[account]
        for offset in range(starts[account + 1] - begin):
            if not wanted[begin + offset]:
                continue
            start = max(begin + first_alive[account], begin + offset - days - reference_days)
            reference = begin + offset - days - start
            if reference < least_reference_days:
                continue
            n_reference[begin + offset] = reference
            own = _without_weekdays(x[start : begin + offset])
            order = _order(own)
            before, lag_before = _best_own_correlation(own, order, 0, reference, lags)
            now, lag_now = _best_own_correlation(own, order, reference, reference + days, lags)
            if lag_now > 0:
                stream = stream_of(seed, keys[account], first_day[account] + offset)
                p[begin + offset] = permutation_p(own[reference - lags :], lags, shuffles, stop_at, stream)
            if lag_before > 0 and lag_now > 0:
                n_before = _effective_n(own[:reference], own[:reference])
                n_now = _effective_n(own[reference:], own[reference:])
                z[begin + offset] = _fisher_difference(before, n_before, now, n_now)
    return z, p, n_reference


@kernel
def peer_decoupling(
    starts: I64,
    x: F64,
    peer: F64,
    wanted: Any,
    first_alive: I64,
    days: int,
    reference_days: int,
    least_reference_days: int,
) -> tuple[F64, F64]:
    """How much less a series correlates with its peers than it did before.

    Args:
        starts: first slot of each account; slots are consecutive days.
        x: the account's series.
        peer: series of its peers; NaN where there is none.
        wanted: slots to compute.
        first_alive: first offset of each account that counts.
        days: window that is judged.
        reference_days: window before it, at most.
        least_reference_days: and at least.

    Returns:
        Per slot: z, through the day before yesterday, when peers' days are over everywhere; days of the reference
        window.
    """
    slots = starts[-1]
    z, n_reference = np.full(slots, np.nan), np.zeros(slots)
    for account in range(len(starts) - 1):
        begin = starts[account]
        for offset in range(starts[account + 1] - begin):
            if not wanted[begin + offset]:
                continue
            end = begin + offset - 1
            start = max(begin + first_alive[account], end - days - reference_days)
            reference = end - days - start
            if reference < least_reference_days:
                continue
            others = peer[start:end]
            if np.isnan(others).any():
                continue
            n_reference[begin + offset] = reference
            own, others = _without_weekdays(x[start:end]), _without_weekdays(others)
            own_order, others_order = _order(own), _order(others)
            before = _pearson(_ranks(own, own_order, 0, reference), _ranks(others, others_order, 0, reference))
            now = _pearson(
                _ranks(own, own_order, reference, reference + days),
                _ranks(others, others_order, reference, reference + days),
            )
            if not (np.isnan(before) or np.isnan(now)):
                n_before = _effective_n(own[:reference], others[:reference])
                n_now = _effective_n(own[reference:], others[reference:])
                z[begin + offset] = _fisher_difference(before, n_before, now, n_now)
    return z, n_reference
