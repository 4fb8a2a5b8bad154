"""Do amounts of a population bunch just below a limit? A jump in their density at the limit, for KPI 8."""

from typing import Any

import numpy as np

from reperform.featurize.kernels import F64, I64, Mask

BINS = 10  # per bandwidth
LEAST_N = 30  # amounts within a bandwidth of either side; fewer say nothing of a density
VARIANCE = 24 / 5  # of a local linear density estimate at a boundary, triangular kernel


def density_jump(cents: I64, limit: int, broken: Mask, bandwidth: float = 0.2) -> dict[str, Any]:
    """McCrary's test: histogram, local lines on both sides of the limit, and the difference of their ends in logs.

    The test wants a density that is smooth but for the limit. Round amounts heap, limits are round, and an amount at
    the limit counts to the side to which it belongs: for a limit that is broken by reaching it, heaps hide bunching.

    Args:
        cents: amounts, in hundredths.
        limit: in hundredths.
        broken: amounts that break the limit.
        bandwidth: in natural logs of amount / limit, so that other units of money change nothing.

    Returns:
        `z`: standard errors by which the density drops at the limit, negative where it rises; `drop`: log of the ratio
        of densities below and above; `n_below` and `n_above`: amounts within a bandwidth. z and drop are None where
        either is below 30.

    Source: McCrary (2008), doi:10.1016/j.jeconom.2007.05.005.
    """
    if not len(cents):
        return {"z": None, "drop": None, "n_below": 0, "n_above": 0}
    # Bins are counted from the limit outwards, so that none holds amounts of both sides.
    out = np.floor(np.abs(np.log(np.maximum(cents, 1) / limit)) / bandwidth * BINS).astype(np.int64)
    near = out < BINS
    below = np.bincount(out[near & ~broken], minlength=BINS)
    above = np.bincount(out[near & broken], minlength=BINS)
    found = {"n_below": int(below.sum()), "n_above": int(above.sum())}
    if min(found.values()) < LEAST_N:
        return {"z": None, "drop": None} | found
    least = 1 / (len(cents) * bandwidth)  # one amount in a bandwidth: a line may end below zero
    left, right = (max(_end(counts / (len(cents) * bandwidth / BINS)), least) for counts in (below, above))
    error = np.sqrt(VARIANCE * (1 / left + 1 / right) / (len(cents) * bandwidth))
    drop = float(np.log(left / right))
    return {"z": float(drop / error), "drop": drop} | found


def _end(heights: F64) -> float:
    """Height at the limit of a line through bins, which weigh less the farther they lie (triangular kernel)."""
    middle = (np.arange(BINS) + 0.5) / BINS
    weight = 1 - middle
    mean = np.average(middle, weights=weight)
    slope = np.average((middle - mean) * heights, weights=weight) / np.average((middle - mean) ** 2, weights=weight)
    return float(np.average(heights, weights=weight) - slope * mean)
