"""Sums of squared shares, and what shuffled weights would give: the kernel of KPI 11."""

# ruff: noqa: PLR0917  # compiled functions take arguments by position, and a walk over events is one loop

import numpy as np

from reperform.featurize.kernels import ASK, ENTER, F64, I64, KIND, LEAVE, NO_VARIATION, RESET, SHIFT, kernel

LEAST_FOR_VARIANCE = 4  # pairs of places that share none need four


@kernel
def null_moments(n: int, pairs: float, triples: float, powers: F64) -> tuple[float, float]:
    """Mean and variance of the sum of squared group totals when n weights of sum 1 are dealt to n places at random.

    That sum is the weights' own squares, and the products of weights whose places lie in one group: a Mantel statistic,
    whose moments over all permutations are known exactly. Source: Mantel (1967), Cancer Research 27, 209-220.

    Args:
        n: weights, at least 4.
        pairs: sum over groups of m (m - 1), m places each.
        triples: sum over groups of m (m - 1)^2.
        powers: sums of the weights' second, third and fourth powers.
    """
    second, third, fourth = powers
    products, squares, rows = 1 - second, second * second - fourth, second - 2 * third + fourth
    ordered = n * (n - 1.0)
    mean = pairs * products / ordered
    same = 2 * pairs * squares
    touching = 4 * (triples - pairs) * (rows - squares)
    apart = (pairs * pairs + 2 * pairs - 4 * triples) * (products * products + 2 * squares - 4 * rows)
    square = same / ordered + touching / (ordered * (n - 2)) + apart / (ordered * (n - 2) * (n - 3))
    return second + mean, square - mean * mean


@kernel
def _index(
    row: int, seen: I64, items: I64, weights: I64, weight: I64, places: I64, asked: I64
) -> tuple[int, float, float, float]:
    """Groups, sum of squared shares, the same without bias, and its distance from shuffled weights.

    Sums of fractions are taken anew for each row, in the order in which records arrived: they do not depend on what
    has left the window before.

    Args:
        row: the row that asks.
        seen: rows that count.
        items: item of each row.
        weights: of each row.
        weight: sum of weights of each item.
        places: rows of each item.
        asked: the row that last asked for each item.
    """
    total = 0
    for other in seen:
        total += weights[other]
    groups, h, pairs, triples, powers = 0, 0.0, 0.0, 0.0, np.zeros(3)
    for other in seen:
        share, item = weights[other] / total, items[other]
        powers[0] += share * share
        powers[1] += share * share * share
        powers[2] += share * share * share * share
        if asked[item] != row:
            asked[item] = row
            groups += 1
            h += (weight[item] / total) ** 2
            pairs += places[item] * (places[item] - 1.0)
            triples += places[item] * (places[item] - 1.0) ** 2
    unbiased = h - (1 - h) / (1 / powers[0] - 1) if powers[0] < 1 - NO_VARIATION else np.nan
    z = np.nan
    if len(seen) >= LEAST_FOR_VARIANCE:
        mean, variance = null_moments(len(seen), pairs, triples, powers)
        if variance > NO_VARIATION:
            z = (h - mean) / np.sqrt(variance)
    return groups, h, unbiased, z


@kernel
def shares(
    events: I64, items: I64, weights: I64, n_items: int, least_n: int, most_n: int, rows: int
) -> tuple[I64, I64, F64, F64, F64]:
    """Sum of squared shares of the items that are seen, its bias, and its distance from shuffled weights.

    Args:
        events: a tape.
        items: codes that no two keys share; rows with -1 are not counted.
        weights: positive whole numbers.
        n_items: number of codes.
        least_n: with fewer rows nothing but their number is known.
        most_n: of more rows, those that arrived first are put aside, so that a hub takes bounded time.
        rows: how many rows may ask.

    Returns:
        Rows that count; different items; sum of squared shares H; the same without its small-sample bias,
        H - (1 - H) / (e - 1), e = 1 / sum of the rows' own squared shares; standard deviations by which H lies above
        the mean over all ways to deal the rows' weights to the rows, NaN where every way gives the same.
    """
    counted, different = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    index, unbiased, above = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    weight, places, asked = np.zeros(n_items, np.int64), np.zeros(n_items, np.int64), np.full(n_items, -1)
    seen, inside, size = np.empty(most_n + 1, np.int64), np.zeros(rows, np.bool_), 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            size = 0  # codes are never shared between keys, so what is left of the last key is never read
        elif kind == ASK:
            counted[row] = size
            if size >= max(least_n, 1):
                different[row], index[row], unbiased[row], above[row] = _index(
                    row, seen[:size], items, weights, weight, places, asked
                )
        elif items[row] >= 0:
            leaving = row if kind == LEAVE and inside[row] else -1
            if kind == ENTER:
                seen[size], inside[row] = row, True
                size += 1
                weight[items[row]] += weights[row]
                places[items[row]] += 1
                leaving = seen[0] if size > most_n else -1
            if leaving >= 0:
                inside[leaving] = False
                weight[items[leaving]] -= weights[leaving]
                places[items[leaving]] -= 1
                at = 0
                while seen[at] != leaving:
                    at += 1
                seen[at : size - 1] = seen[at + 1 : size].copy()
                size -= 1
    return counted, different, index, unbiased, above
