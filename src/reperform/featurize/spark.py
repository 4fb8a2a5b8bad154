"""KPIs on Spark: the same functions over buckets of whole keys, on executors.

Executors get plain data: names of KPIs, their settings and what was learned. Rows carry their number in the table, so
that values find back to it, whatever order executors finish in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from reperform import spark as cluster
from reperform.featurize import engine, outofcore
from reperform.featurize.engine import Phase, Task
from reperform.featurize.ledger import Ledger
from reperform.featurize.outofcore import BUCKET, ROW, Source, Store
from reperform.params import EngineParams, FeaturizeParams


@dataclass(frozen=True)
class Work:
    """What an executor needs to compute a phase over one bucket; plain data, so that it can be sent.

    Args:
        names: KPIs.
        settings: by KPI, as parameters give them.
        fitted: parameters by KPI.
        about: accounts, labels and the span of days.
        how: size of buckets within a bucket, and threads.
    """

    names: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    fitted: dict[str, dict[str, Any]]
    about: Ledger
    how: EngineParams

    def __call__(self, given: pa.Table) -> pa.Table:
        """Values of a bucket's rows, in no order."""
        rows = pl.DataFrame(pl.from_arrow(given)).sort(ROW)
        types = {name: kind for name, kind in self.about.transactions.schema.items() if name in rows.columns}
        stage = FeaturizeParams(kpis=list(self.names), settings=self.settings)
        tasks = engine.tasks(engine.selected(self.names), stage, self.fitted)
        phase = Phase(tasks[0].kpi.key, tuple(tasks))
        ledger = self.about.holding(rows.select(list(types)).cast(types))  # type: ignore[arg-type]  # types of columns
        values = engine.run_phase(ledger, phase, {need: rows[need].to_numpy() for need in phase.needs}, self.how)
        return pa.table({ROW: rows[ROW].to_numpy(), **values})


def run(
    source: Source,
    todo: Sequence[Task],
    how: EngineParams,
    folder: Path,
    also: Callable[[Ledger], None] | None = None,
) -> Store:
    """Every column of every task; arguments and result as in `outofcore.run`."""
    outofcore.run(source, (), how, folder, also)
    store = Store(folder / "values", source.rows, how.row_group_rows)
    if not source.rows:
        return outofcore.run(source, todo, how, folder)
    _write_rows(source, store, folder / "rows")
    with cluster.session(how.master, executor_memory=how.executor_memory) as spark:
        made: dict[str, Path] = {}
        for phase in engine.phases(todo):
            target = folder / f"phase-{phase.tasks[0].kpi.name}"
            _run_phase(spark, source, phase, how, {"rows": folder / "rows", "target": target} | made)
            made |= dict.fromkeys(phase.names, target)
            _keep(store, target, phase)
    return store


def _write_rows(source: Source, store: Store, folder: Path) -> None:
    """The table once more, in files of one range, with the number of each row."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (start, end) in enumerate(store.ranges):
        rows = source.read(source.columns, start, end - start).with_columns(pl.int_range(start, end).alias(ROW))
        rows.write_parquet(folder / f"{number:06d}.parquet")


def _run_phase(spark: Any, source: Source, phase: Phase, how: EngineParams, files: dict[str, Path]) -> None:
    from pyspark.sql import functions as f  # noqa: PLC0415  # an extra

    rows = spark.read.parquet(str(files["rows"])).select(*phase.inputs_of([*source.columns]), ROW)
    for folder in sorted({files[need] for need in phase.needs if need in files}):
        held = [need for need in phase.needs if files.get(need) == folder]
        rows = rows.join(spark.read.parquet(str(folder)).select(ROW, *held), on=ROW)
    if phase.key == "entity":
        bucket = f.lit(0)
    else:
        key = f.coalesce(f.col(f"{phase.key}_id"), f.col("transaction_id"))
        bucket = f.pmod(f.xxhash64(key), f.lit(-(-source.rows // how.part_rows)))
    names = tuple(task.kpi.name for task in phase.tasks)
    settings = {task.kpi.settings_key or task.kpi.name: task.given for task in phase.tasks}
    work = Work(names, settings, {task.kpi.name: task.fitted for task in phase.tasks}, source.about, how)
    schema = ", ".join([f"`{ROW}` bigint", *(f"`{name}` double" for name in phase.names)])

    def compute(given: pa.Table) -> pa.Table:  # Spark counts the arguments of a plain function
        return work(given)

    values = rows.withColumn(BUCKET, bucket).groupBy(BUCKET).applyInArrow(compute, schema)
    values.write.parquet(str(files["target"]))


def _keep(store: Store, folder: Path, phase: Phase) -> None:
    """Take over what executors have written."""
    for number, file in enumerate(sorted(folder.glob("*.parquet"))):
        values = pl.read_parquet(file).sort(ROW)
        if values.height:
            columns = {name: values[name].to_numpy() for name in phase.names}
            store.write(f"{phase.tasks[0].kpi.name}-{number:05d}", values[ROW].to_numpy().astype(np.int64), columns)
