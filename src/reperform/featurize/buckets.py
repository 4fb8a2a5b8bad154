"""Cut rows into buckets of whole keys that fit a processor's cache, and work on several of them at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from reperform.featurize.kernels import I64
from reperform.featurize.windows import Rows

T = TypeVar("T")


def cut(codes: I64, rows: int) -> list[I64]:
    """Positions of all rows in buckets; all rows of a key are in one bucket, in their order.

    Args:
        codes: each row's key as 0 … n - 1; rows with -1 have none, and may lie in any bucket.
        rows: of a bucket, at least, if there are as many; the last key may bring more.
    """
    if not len(codes):
        return []
    keyed = Rows.ordered(codes, np.zeros(len(codes), np.int64), int(codes.max()) + 1)
    keyless = np.flatnonzero(codes < 0)
    begin = np.concatenate(
        [np.repeat(keyed.starts[:-1], np.diff(keyed.starts)), len(keyed.rows) + np.arange(len(keyless))]
    )
    order = np.concatenate([keyed.rows, keyless])
    return np.split(order, np.flatnonzero(np.diff(begin // rows)) + 1)


def each(work: Callable[[T], None], items: Iterable[T], threads: int) -> None:
    """Do work on every item, on some at the same time; what it writes must not depend on which comes first."""
    if threads == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, items):
            pass
