"""Random draws: one independent stream per named part, so that changing one part leaves every other alone."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]
CENTS = 100


def generator(seed: int, *names: str) -> np.random.Generator:
    """The random stream of one part of the world, by its name.

    Args:
        seed: the world's seed.
        names: what the stream is for, from the general to the particular.
    """
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def lognormal_cents(rng: np.random.Generator, median: Any, sigma: Any, size: int) -> Ints:
    """Amounts in cents around a median in currency units, with a heavy upper tail; at least one cent."""
    units = np.asarray(median, dtype=np.float64) * np.exp(rng.normal(0.0, 1.0, size) * sigma)
    return np.asarray(np.maximum(np.rint(units * CENTS).astype(np.int64), 1))


def rounded_cents(cents: Ints, step_units: Any) -> Ints:
    """Amounts rounded to whole steps (5, 50, 1,000 … units); never below one step."""
    step = np.asarray(np.asarray(step_units) * CENTS, dtype=np.int64)
    return np.maximum(np.rint(cents / step).astype(np.int64), 1) * step


def human_cents(rng: np.random.Generator, cents: Ints) -> Ints:
    """Amounts as people agree on them: some exact, most rounded to a step that grows with the amount."""
    step = np.array([1, 5, 10, 50])[np.digitize(cents, [3_000, 20_000, 200_000])]
    return np.where(happens(rng, 0.7, cents.size), rounded_cents(cents, step), cents)


def priced_cents(rng: np.random.Generator, cents: Ints) -> Ints:
    """Amounts as shops price them: a third ends in .99, .95, .50 or .00, the rest are sums of a basket."""
    ending = rng.choice(np.array([-1, -5, 50, 0]), cents.size)
    shelf = np.maximum(cents // CENTS, 1) * CENTS + ending
    return np.where(happens(rng, 1 / 3, cents.size), shelf, cents)


def happens(rng: np.random.Generator, share: Any, size: int) -> Bools:
    """True for about a share of all."""
    return np.asarray(rng.random(size) < share)


def by_weight(rng: np.random.Generator, weights: Any, size: int) -> Ints:
    """Indices drawn with the given weights."""
    edges = np.cumsum(np.asarray(weights, dtype=np.float64))
    return np.asarray(np.searchsorted(edges, rng.random(size) * edges[-1], side="right").astype(np.int64))


def per_owner(rng: np.random.Generator, rate: Any, owners: Ints) -> Ints:
    """Owners, each repeated a Poisson number of times."""
    return np.repeat(owners, rng.poisson(rate, owners.size))


def between(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """One number, uniform between two limits as written in the configuration."""
    return float(rng.uniform(limits[0], limits[1]))


def whole_between(rng: np.random.Generator, limits: Sequence[int]) -> int:
    """One whole number between two limits, both included."""
    return int(rng.integers(int(limits[0]), int(limits[1]) + 1))
