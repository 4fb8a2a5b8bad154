"""Windows by every key, against a reference that looks at every pair of rows."""

import math
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform.errors import ReperformError
from reperform.featurize import kernels
from reperform.featurize.ledger import pair_codes
from reperform.featurize.shares import shares
from reperform.featurize.windows import FOREVER_US, History, Rows, length_us, ratio

row = st.tuples(
    st.integers(-1, 2),  # key
    st.integers(0, 12),  # time
    st.integers(0, 8),  # delay
    st.integers(0, 3),  # item
    st.integers(1, 5),  # amount
)
tables = st.lists(row, max_size=25).map(lambda rows: sorted(rows, key=lambda r: r[1]))
windows = st.integers(1, 9)


def make(rows: Any) -> Any:
    key, time, delay, item, amount = (np.array([r[k] for r in rows], np.int64) for k in range(5))
    return History.of(key, int(key.max(initial=-1)) + 1, time, time + delay), item, amount, time + delay


def seen(history: History, known: Any, i: int, window: int) -> Any:
    """Rows of H(t, W) for row i, by the definition."""
    t = history.time[i]
    return [
        j
        for j in range(len(history))
        if history.codes[i] >= 0
        and history.codes[j] == history.codes[i]
        and t - window <= history.time[j] < t
        and known[j] <= t
    ]


@settings(max_examples=50, deadline=None)
@given(tables, windows)
def test_sums_and_counts_are_those_of_the_definition(rows: Any, window: int) -> None:
    history, _, amount, known = make(rows)
    ones = np.ones(len(rows), np.int64)
    n, total = history.sums(history.tape(window), ones, amount)
    at_once = history.window_sums(window, ones, amount)
    for i in range(len(rows)):
        expected = seen(history, known, i, window)
        assert (n[i], total[i]) == (len(expected), sum(amount[j] for j in expected))
        assert (at_once[0][i], at_once[1][i]) == (n[i], total[i])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 9)), max_size=40), st.integers(0, 60))
def test_rows_are_ordered_by_key_and_time_however_many_must_be_moved(rows: Any, most_moves: int) -> None:
    codes, time = (np.array([r[k] for r in rows], np.int64) for k in range(2))
    expected = [k for k in np.lexsort((time, codes)) if codes[k] >= 0]
    starts, got, done = kernels.ordered(codes, time, 4, most_moves)
    assert not done or got.tolist() == expected
    of = Rows.ordered(codes, time, 4)
    assert of.rows.tolist() == expected
    assert of.starts.tolist() == [sum(0 <= c < key for c in codes) for key in range(5)]
    assert not done or starts.tolist() == of.starts.tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-2, 5) | st.integers(2**40, 2**40 + 3), max_size=30))
def test_codes_are_those_of_first_appearance(values: list[int]) -> None:
    codes, first = kernels.dense(np.array(values, np.int64))
    seen_so_far = list(dict.fromkeys(v for v in values if v >= 0))
    assert codes.tolist() == [seen_so_far.index(v) if v >= 0 else -1 for v in values]
    assert [values[row] for row in first] == seen_so_far


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_median_is_that_of_the_sorted_values(values: list[float]) -> None:
    array = np.array(values)
    assert kernels._median(array) == median(values)
    assert array.tolist() == values


@settings(max_examples=50, deadline=None)
@given(tables, windows)
def test_distinct_items_are_those_of_the_definition(rows: Any, window: int) -> None:
    history, item, _, known = make(rows)
    pairs = pair_codes(history.codes, item)
    events = history.tape(window)
    got = history.distinct(events, pairs, 100)
    with_own = kernels.distinct_with_own(events, pairs, 100, len(rows))
    own = kernels.times_seen(events, pairs, pairs, 100, len(rows))
    for i in range(len(rows)):
        items = [item[j] for j in seen(history, known, i, window)]
        assert got[i] == len(set(items))
        assert own[i] == items.count(item[i])
        if history.codes[i] >= 0:
            assert with_own[i] == len({*items, item[i]})


@settings(max_examples=50, deadline=None)
@given(tables, windows)
def test_order_statistics_are_those_of_the_definition(rows: Any, window: int) -> None:
    history, _, amount, known = make(rows)
    n, middle, deviation, largest, rank = kernels.order_statistics(
        history.tape(window), amount.astype(float), len(rows)
    )
    for i in range(len(rows)):
        values = [float(amount[j]) for j in seen(history, known, i, window)]
        assert n[i] == len(values)
        if not values:
            assert all(math.isnan(x[i]) for x in (middle, deviation, largest, rank))
            continue
        assert middle[i] == median(values)
        assert deviation[i] == median(abs(v - median(values)) for v in values)
        assert largest[i] == max(values)
        below, equal = sum(v < amount[i] for v in values), values.count(amount[i])
        assert rank[i] == (below + 0.5 * equal) / len(values)


@settings(max_examples=50, deadline=None)
@given(tables, windows)
def test_gaps_are_those_between_records_in_order_of_time(rows: Any, window: int) -> None:
    history, _, _, known = make(rows)
    n, mean, deviation, middle = kernels.gap_statistics(history.tape(window), history.time, len(rows))
    for i in range(len(rows)):
        times = sorted(history.time[j] for j in seen(history, known, i, window))
        assert n[i] == len(times)
        if len(times) > 1:
            gaps = np.diff(times) / 1e6
            assert mean[i] == pytest.approx(gaps.mean())
            assert deviation[i] == pytest.approx(gaps.std(), abs=1e-15)
            assert middle[i] == pytest.approx(float(np.median(gaps)))
        else:
            assert math.isnan(mean[i])


@settings(max_examples=50, deadline=None)
@given(tables)
def test_first_and_last_record_of_the_whole_past(rows: Any) -> None:
    history, _, _, known = make(rows)
    first, last = kernels.extreme_times(history.tape(FOREVER_US), history.time, len(rows))
    for i in range(len(rows)):
        times = [history.time[j] for j in seen(history, known, i, 10**9)]
        assert (first[i] >= 0, last[i] >= 0) == (bool(times), bool(times))
        if times:
            assert (history.time[first[i]], history.time[last[i]]) == (min(times), max(times))


@settings(max_examples=50, deadline=None)
@given(tables, windows)
def test_concentration_is_the_sum_of_squared_shares(rows: Any, window: int) -> None:
    history, item, amount, known = make(rows)
    pairs = pair_codes(history.codes, item)
    n, groups, index, _, _ = shares(history.tape(window), pairs, amount, 100, 1, 100, len(rows))
    for i in range(len(rows)):
        past = seen(history, known, i, window)
        total = sum(amount[j] for j in past)
        by_item = {k: sum(amount[j] for j in past if item[j] == k) for k in {item[j] for j in past}}
        assert (n[i], groups[i]) == (len(past), len(by_item))
        if past:
            assert index[i] == pytest.approx(sum((v / total) ** 2 for v in by_item.values()))


@settings(max_examples=50, deadline=None)
@given(tables, st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15), st.integers(-3, 9)), max_size=15))
def test_other_records_are_seen_from_when_they_enter_until_they_leave(rows: Any, others: Any) -> None:
    history, _, _, _ = make(rows)
    others = [(min(k, history.keys - 1), e, e + d) for k, e, d in others] if history.keys else []
    n = max(len(others), len(rows))
    key, enter, leave = (np.array([o[k] for o in others] + [-1] * (n - len(others)), np.int64) for k in range(3))
    (got,) = history.sums(history.tape_of(key, enter, leave), np.ones(n, np.int64))
    for i in range(len(rows)):
        t, mine = history.time[i], history.codes[i]
        assert got[i] == sum(mine >= 0 and k == mine and e <= t <= leaves for k, e, leaves in others)


def brute_force_paths(rows: Any, window: int, longest: int, tolerance: float) -> Any:
    """Payments (time, known, payer, payee, cents) to circles and longest chain of each row."""

    def extend(i: int, path: Any) -> Any:
        yield path
        if len(path) == longest:
            return
        head = path[-1]
        nodes = [rows[k][2] for k in path]
        for j, (t, known, payer, payee, cents) in enumerate(rows):
            fits = payee == rows[head][2] and t < rows[head][0] and t >= rows[i][0] - window and known <= rows[i][0]
            near = (1 - tolerance) * rows[i][4] <= cents <= (1 + tolerance) * rows[i][4]
            if fits and near and payer not in nodes:
                if payer == rows[i][3]:
                    yield [*path, j, -1]
                else:
                    yield from extend(i, [*path, j])

    out = []
    for i in range(len(rows)):
        paths = list(extend(i, [i]))
        circles = [p[:-1] for p in paths if p[-1] == -1]
        longest_path = max(len([k for k in p if k >= 0]) for p in paths)
        out.append((len(circles), max((len(c) for c in circles), default=0), longest_path))
    return out


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(8, 13)),
        max_size=12,
    ).map(lambda rows: sorted(rows, key=lambda r: r[0]))
)
def test_circles_and_chains_are_those_of_an_exhaustive_search(given_rows: Any) -> None:
    rows = [(t, t + delay, payer, payee, cents) for t, delay, payer, payee, cents in given_rows if payer != payee]
    time, known, payer, payee, cents = (np.array([r[k] for r in rows], np.int64) for k in range(5))
    order = np.lexsort((time, payee))
    starts = np.searchsorted(payee[order], np.arange(5))
    got = kernels.returning_paths(
        starts, order, time, np.maximum(known, time + 1), cents, payer, payee, 6, 4, 0.2, 10_000
    )
    assert list(zip(*(x.tolist() for x in got[:3]), strict=True)) == brute_force_paths(rows, 6, 4, 0.2)
    assert not got[3].any()


def test_search_for_circles_stops_at_its_bound_and_says_so() -> None:
    n = 50
    time, one = np.arange(n, dtype=np.int64), np.ones(n, np.int64)
    payer, payee = np.where(np.arange(n) < n - 1, 2, 1), np.where(np.arange(n) < n - 1, 1, 0)
    order = np.lexsort((time, payee))
    starts = np.searchsorted(payee[order], np.arange(4))
    got = kernels.returning_paths(starts, order, time, time + 1, 100 * one, payer, payee, 100, 3, 0.2, 10)
    assert got[3].tolist() == [0] * (n - 1) + [1]


def test_windows_are_hours_or_days() -> None:
    assert length_us("72h") == length_us("3d") == 72 * 3600 * 10**6


@pytest.mark.parametrize("wrong", ["", "0h", "1w", "-1d", "1.5h", "24H"])
def test_other_windows_are_refused_with_what_to_write(wrong: str) -> None:
    with pytest.raises(ReperformError, match="24h or 30d"):
        length_us(wrong)


def test_division_by_nothing_is_unknown() -> None:
    got = ratio(np.array([1.0, 2.0, 3.0]), np.array([2, 0, 3]))
    assert got[[0, 2]].tolist() == [0.5, 1.0]
    assert math.isnan(got[1])
