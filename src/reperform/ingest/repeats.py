"""Which rows repeat an identifier, over any number of parts, without all identifiers in memory at once."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

HASHES_AT_ONCE = 2**24  # 128 MB; identifiers beyond that are looked at in several rounds
_SEED = 20_250_401

Hashes = npt.NDArray[np.uint64]
Places = dict[int, npt.NDArray[np.int64]]  # by the number of a chunk


def repeated_rows(identifiers: Callable[[], Iterator[pl.Series]], at_once: int = HASHES_AT_ONCE) -> Places:
    """The rows whose identifier stands in an earlier row already.

    Hashes of 64 bits find the few rows that may repeat one; their texts then decide, so that two identifiers of one
    hash are never taken for the same.

    Args:
        identifiers: gives the identifiers, chunk by chunk, as often as it is called.
        at_once: how many hashes to hold at a time.

    Returns:
        By the number of the chunk, the places of its repeated rows in rising order; chunks without any are left out.
    """
    rows = sum(chunk.len() for chunk in identifiers())
    rounds = max(1, -(-rows // at_once))
    found: dict[int, list[Hashes]] = {}
    for turn in range(rounds):
        twice = _twice(identifiers(), turn, rounds)
        for number, places in _verified(identifiers(), twice) if twice.size else ():
            found.setdefault(number, []).append(places)
    return {number: np.sort(np.concatenate(places)).astype(np.int64) for number, places in sorted(found.items())}


def _hashes(chunk: pl.Series) -> Hashes:
    hashed: Hashes = chunk.hash(_SEED).to_numpy()
    return hashed


def _twice(chunks: Iterator[pl.Series], turn: int, rounds: int) -> Hashes:
    """The hashes of this round that come more than once."""
    every = (_hashes(chunk) for chunk in chunks)
    mine = [hashed if rounds == 1 else hashed[hashed % np.uint64(rounds) == turn] for hashed in every]
    ordered = np.concatenate([*mine, np.array([], dtype=np.uint64)])
    ordered.sort()
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _verified(chunks: Iterator[pl.Series], twice: Hashes) -> Iterator[tuple[int, Hashes]]:
    """Of the rows with such a hash, those whose text has come before."""
    suspects = [pl.DataFrame(schema={"chunk": pl.Int64, "place": pl.UInt64, "text": pl.String})]
    for number, chunk in enumerate(chunks):
        hashed = _hashes(chunk)
        nearest = np.minimum(np.searchsorted(twice, hashed), twice.size - 1)
        places = np.flatnonzero(twice[nearest] == hashed).astype(np.uint64)
        if places.size:
            text = chunk.gather(pl.Series(places))
            suspects.append(pl.DataFrame({"chunk": np.full(places.size, number), "place": places, "text": text}))
    again = pl.concat(suspects).filter(~pl.col("text").is_first_distinct())
    for (number,), rows in again.group_by("chunk", maintain_order=True):
        yield int(str(number)), rows.get_column("place").to_numpy()
