"""KPIs of a table that does not fit into memory: cut into files of whole keys, computed one by one, put back in order.

Everything lies below one folder. `keys/` holds input rows by bucket, `values/` what was computed of them: a file per
phase and bucket, in the table's order, so that a range of its rows can be read from all files.
"""

import json
import mmap
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform.featurize import engine
from reperform.featurize.engine import Phase, Task
from reperform.featurize.kernels import F64, I64, spread, spread_small, take, take_small
from reperform.featurize.ledger import Ledger, day_span
from reperform.featurize.registry import Kpi, Values
from reperform.params import EngineParams, FeaturizeParams

ROW, BUCKET = "__row", "__bucket"
SHARED_ROWS = 8_000_000  # up to so many, all KPIs learn from one table in memory; of more, each reads its own columns


@dataclass(frozen=True)
class Source:
    """Transactions that are read piece by piece, and what is known of their accounts and labels.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order.
        rows: their number.
        about: a ledger without rows that holds accounts, labels and the span of days.
    """

    transactions: pl.LazyFrame
    rows: int
    about: Ledger

    def read(self, columns: Sequence[str], start: int = 0, rows: int | None = None) -> pl.DataFrame:
        """Some columns of consecutive rows."""
        return self.transactions.select(columns).slice(start, rows).collect()

    @property
    def columns(self) -> list[str]:
        """Names of columns of transactions."""
        return self.about.transactions.columns


@dataclass(frozen=True)
class Block:
    """What one file holds, mapped into memory: values of some rows, by column.

    Args:
        rows: numbers in the table, ascending.
        wide: names of columns of any values.
        wide_values: shape (columns, rows).
        small: names of columns of whole numbers that fit into a byte.
        small_values: shape (columns, rows).
        content: the file, which the arrays are views of.
    """

    rows: I64
    wide: list[str]
    wide_values: F64
    small: list[str]
    small_values: NDArray[np.int8]
    content: mmap.mmap

    @classmethod
    def write(cls, path: Path, rows: I64, values: Mapping[str, F64]) -> None:
        """Write columns of some rows, which are given in any order. Half of all columns are counts: one byte each."""
        order = np.argsort(rows)
        wide, small = list[str](), dict[str, NDArray[np.int8]]()
        buffer = np.empty(len(rows))
        with path.open("wb") as file:
            file.write(rows[order].tobytes())
            for name, column in values.items():
                narrow = np.empty(len(rows), np.int8)
                if take_small(column, order, narrow):
                    small[name] = narrow
                    continue
                take(column, order, buffer)
                file.write(buffer.data)
                wide.append(name)
            for narrow in small.values():
                file.write(narrow.data)
        header = {"rows": len(rows), "wide": wide, "small": list(small)}
        # The header comes last, and at once: another thread may read meanwhile, and a file without one is not whole.
        partly = path.with_suffix(".partial")
        partly.write_text(json.dumps(header), encoding="utf-8")
        partly.rename(path.with_suffix(".json"))

    @classmethod
    def open(cls, path: Path) -> "Block":
        """Map a file by its header's path."""
        header = json.loads(path.read_text(encoding="utf-8"))
        n, wide, small = header["rows"], header["wide"], header["small"]
        with path.with_suffix(".bin").open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        edges = np.cumsum([8 * n, 8 * n * len(wide)])
        return cls(
            np.frombuffer(content, np.int64, n),
            wide,
            np.frombuffer(content, np.float64, n * len(wide), int(edges[0])).reshape(len(wide), n),
            small,
            np.frombuffer(content, np.int8, n * len(small), int(edges[1])).reshape(len(small), n),
            content,
        )

    def put(self, start: int, end: int, place: Mapping[str, int], out: F64) -> None:
        """Write the values of a range of the table's rows to their places; shape (columns, rows of the range)."""
        first, last = np.searchsorted(self.rows, [start, end])
        rows = self.rows[first:last] - start
        wide, small = (np.array([place.get(name, -1) for name in names], np.int64) for names in (self.wide, self.small))
        if (wide >= 0).any():
            spread(self.wide_values, int(first), rows, wide, out)
        if (small >= 0).any():
            spread_small(self.small_values, int(first), rows, small, out)
        # Else all files that were ever read would count as this process's memory.
        self.content.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Store:
    """What was computed, in files, by ranges of the table's rows.

    Args:
        folder: where the files are; nothing else may be there.
        rows: of the table.
        range_rows: rows of a range.
        opened: files that were read before, by name.
    """

    folder: Path
    rows: int
    range_rows: int
    opened: dict[str, Block] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First row and row after the last of each range."""
        return [(at, min(at + self.range_rows, self.rows)) for at in range(0, self.rows, self.range_rows)]

    def write(self, name: str, rows: I64, values: Mapping[str, F64]) -> None:
        """Write columns of some rows, which are given in any order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        Block.write(self.folder / f"{name}.bin", rows, values)

    def read(self, number: int, names: Sequence[str]) -> Values:
        """Columns of one range, in the table's order."""
        return self._rows(*self.ranges[number], names)

    def column(self, name: str) -> F64:
        """A column of all rows."""
        return self._rows(0, self.rows, [name])[name]

    def _rows(self, start: int, end: int, names: Sequence[str]) -> Values:
        out = np.empty((len(names), end - start))
        place = {name: number for number, name in enumerate(names)}
        for block in self._blocks() if place else []:
            block.put(start, end, place, out)
        return dict(zip(names, out, strict=True))

    def _blocks(self) -> list[Block]:
        for path in self.folder.glob("*.json"):
            if path.stem not in self.opened:
                self.opened[path.stem] = Block.open(path)
        return [self.opened[name] for name in sorted(self.opened)]

    @property
    def names(self) -> list[str]:
        """Columns that are there."""
        return sorted({name for block in self._blocks() for name in (*block.wide, *block.small)})


class Stored(Mapping[str, F64]):
    """Columns of the whole table, each read when it is asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, name: str) -> F64:
        if name not in self._store.names:
            raise KeyError(name)
        return self._store.column(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.names)

    def __len__(self) -> int:
        return len(self._store.names)


def source_of(transactions: pl.LazyFrame, about: Ledger) -> Source:
    """A table, with the span of its days.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order.
        about: a ledger without rows, with accounts and labels.
    """
    rows = transactions.select(pl.len()).collect().item()
    return Source(
        transactions, rows, replace(about, span=day_span(transactions, about.accounts, about.default_timezone))
    )


def fit(source: Source, kpis: Sequence[Kpi], stage: FeaturizeParams, fit_end: datetime) -> dict[str, dict[str, Any]]:
    """Parameters of KPIs, each learned from the columns that it reads of rows before a moment."""
    end_us = int(fit_end.timestamp()) * 1_000_000
    before = source.transactions.filter(pl.col("booked_at") < fit_end)
    learning = [kpi for kpi in kpis if kpi.learns]
    few = before.select(pl.len()).collect().item() <= SHARED_ROWS
    shared = _read_for(source, before, learning) if few else None
    out: dict[str, dict[str, Any]] = {}
    for kpi in kpis:
        ledger = source.about
        if kpi.learns:
            ledger = shared if shared is not None else _read_for(source, before, [kpi])
        out[kpi.name] = kpi.fit(ledger, end_us, kpi.settings_of(stage.settings))
    return out


def _read_for(source: Source, rows: pl.LazyFrame, kpis: Sequence[Kpi]) -> Ledger:
    names = {*engine.ALWAYS_READ, *(name for kpi in kpis for name in kpi.inputs)}
    table = rows.select(name for name in source.columns if name in names).collect()
    return replace(source.about, transactions=table)


def run(
    source: Source,
    todo: Sequence[Task],
    how: EngineParams,
    folder: Path,
    also: Callable[[Ledger], None] | None = None,
) -> Store:
    """Every column of every task.

    Args:
        source: the table.
        todo: KPIs.
        how: rows of a file, and of the buckets in it.
        folder: for files; what is in it is lost.
        also: called once with each bucket of accounts, in order of their names; one without records is in one, too.
    """
    shutil.rmtree(folder, ignore_errors=True)
    store = Store(folder / "values", source.rows, how.row_group_rows)
    plan = engine.phases(todo) if source.rows else []
    if not any(phase.key == "account" for phase in plan):
        plan.append(Phase("account", ()))
    first = next(phase for phase in plan if phase.key == "account")
    for phase in plan:
        if phase.key == "entity":
            _whole_phase(source, phase, store, how)
            continue
        key, extra = f"{phase.key}_id", (also if phase is first else None) or _nothing
        columns = source.columns if phase is first else phase.inputs_of(source.columns)
        buckets = key_buckets(source, key, how.part_rows)
        cut = Cut(source, key, tuple(columns), tuple(phase.needs), buckets, folder / "keys")
        _keyed_phase(phase, cut, store, how, extra)
    return store


def _nothing(_ledger: Ledger) -> None:
    pass


def _whole_phase(source: Source, phase: Phase, store: Store, how: EngineParams) -> None:
    ledger = replace(source.about, transactions=source.read(phase.inputs_of(source.columns)))
    every = np.arange(source.rows)
    # Each KPI's columns leave memory before the next ones come.
    engine.across_keys(
        ledger, phase, Stored(store), how.threads, lambda task, values: store.write(task.kpi.name, every, values)
    )


@dataclass(frozen=True)
class Cut:
    """A table in files of whole keys.

    Args:
        source: the table.
        key: column.
        columns: of the table, that the files hold.
        needs: computed columns that stand beside them.
        bucket_of: key, and number of its file.
        folder: of the files.
    """

    source: Source
    key: str
    columns: tuple[str, ...]
    needs: tuple[str, ...]
    bucket_of: pl.DataFrame
    folder: Path

    @property
    def buckets(self) -> range:
        """Numbers of buckets."""
        return range(int(self.bucket_of[BUCKET].max() or 0) + 1)  # type: ignore[arg-type]  # whole numbers

    def write(self, store: Store) -> None:
        """Write every row to its bucket; rows without a key to any."""
        for number, (start, end) in enumerate(store.ranges):
            rows = self.source.read(self.columns, start, end - start).with_columns(
                pl.int_range(start, end).alias(ROW),
                *(pl.Series(name, values) for name, values in store.read(number, self.needs).items()),
            )
            rows = rows.join(self.bucket_of, on=self.key, how="left", maintain_order="left")
            rows = rows.with_columns(pl.col(BUCKET).fill_null(number % len(self.buckets)))
            for (bucket,), part in rows.partition_by(BUCKET, as_dict=True, include_key=False).items():
                (self.folder / f"{bucket}").mkdir(parents=True, exist_ok=True)
                part.write_ipc(self.folder / f"{bucket}" / f"{number:06d}.arrow", compression="lz4")

    def read(self, bucket: int) -> pl.DataFrame:
        """Rows of a bucket, in order; none where it holds accounts without records."""
        files = sorted((self.folder / f"{bucket}").glob("*.arrow"))
        if files:
            return pl.concat([pl.read_ipc(file) for file in files])
        empty = self.source.about.transactions.select(self.columns)
        return empty.with_columns(pl.lit(0, pl.Int64).alias(ROW), *(pl.lit(0.0).alias(need) for need in self.needs))

    def ledger(self, rows: pl.DataFrame, bucket: int) -> Ledger:
        """Rows of a bucket as a ledger; one of accounts has those without records, too."""
        held = self.source.about.holding(rows.select(self.columns))
        if self.key != "account_id":
            return held
        mine = self.bucket_of.filter(pl.col(BUCKET) == bucket)
        return replace(
            held, accounts=self.source.about.accounts.join(mine, on=self.key, how="semi", maintain_order="left")
        )


def _keyed_phase(phase: Phase, cut: Cut, store: Store, how: EngineParams, also: Callable[[Ledger], None]) -> None:
    cut.write(store)
    for bucket in cut.buckets:
        rows = cut.read(bucket)
        ledger = cut.ledger(rows, bucket)
        also(ledger)
        if phase.tasks and len(ledger):
            made, numbers = {need: rows[need].to_numpy() for need in phase.needs}, rows[ROW].to_numpy()
            keep = partial(_store, store, f"{phase.tasks[0].kpi.name}-{bucket:05d}", numbers)
            engine.by_bucket(ledger, phase, made, how, keep)
    shutil.rmtree(cut.folder, ignore_errors=True)


def _store(store: Store, name: str, numbers: I64, at: I64, values: Values) -> None:
    """Write values of some rows of a file, given the numbers of all its rows in the table."""
    store.write(f"{name}-{at[0]:09d}", numbers[at], values)


def key_buckets(source: Source, key: str, part_rows: int) -> pl.DataFrame:
    """Keys in buckets of consecutive names with about equally many rows.

    Returns:
        The key, and its bucket.
    """
    counts = source.transactions.group_by(key).len().drop_nulls(key).collect(engine="streaming")
    if key == "account_id":
        unseen = source.about.accounts.select(key).join(counts, on=key, how="anti")
        counts = pl.concat([counts, unseen.with_columns(len=pl.lit(0, counts.schema["len"]))])
    before = pl.col("len").cum_sum() - pl.col("len")
    return counts.sort(key).select(key, (before // part_rows).cast(pl.Int64).alias(BUCKET))


def in_order(source: Source, store: Store, identity: Sequence[str], names: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The feature table, range by range: identity columns and computed ones; NaN becomes null."""
    for number, (start, end) in enumerate(store.ranges):
        values = store.read(number, names)
        columns = [pl.Series(name, values[name], dtype=pl.Float64, nan_to_null=True) for name in names]
        yield source.read(identity, start, end - start).with_columns(columns)
