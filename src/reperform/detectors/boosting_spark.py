"""Boosted trees that are trained on Spark's executors, each on its share of the rows."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import spark
from reperform.detectors.base import FloatArray, FloatMatrix
from reperform.errors import ReperformError

LABEL, WEIGHT = "label", "weight"
SET_BY_SPARK = ("nthread", "seed")
ROWS_PER_FILE = 250_000


def trained(
    x: FloatMatrix,
    target: NDArray[Any],
    weight: FloatArray | None,
    *,
    rounds: int,
    settings: Mapping[str, Any],
    features: Sequence[str],
    master: str,
) -> Any:
    """A booster as `xgboost.train` gives it: the same trees but for cuts of columns, which executors estimate together.

    Args:
        x: shape (n, p); NaN = unknown.
        target: class of each row from 0 on, shape (n,).
        weight: shape (n,), or None.
        rounds: of boosting.
        settings: of XGBoost.
        features: names of the columns, or none.
        master: of the Spark cluster.

    Raises:
        ReperformError: without pyspark or Java, or for trees that only one machine can grow.
    """
    if settings["tree_method"] == "exact":
        raise ReperformError(
            "Exact trees are grown on one machine only.",
            expected="tree_method hist or approx where spark_master is set",
            got="exact",
            where="conf/model/xgboost.yaml:tree_method",
            fix="set it to hist with max_bin 4096, which ranks as exact does",
        )
    with tempfile.TemporaryDirectory() as folder, spark.session(master) as session:
        _write(x, target, weight, Path(folder))
        booster = fitted(
            session, session.read.parquet(folder), [f"f{number}" for number in range(x.shape[1])],
            rounds=rounds, settings=settings, weighted=weight is not None,
        )  # fmt: skip
    booster.feature_names = list(features) or None
    return booster


def fitted(
    session: Any, rows: Any, columns: Sequence[str], *, rounds: int, settings: Mapping[str, Any], weighted: bool
) -> Any:
    """A booster from a table of Spark's, which no machine needs to hold as a whole.

    Args:
        session: of Spark.
        rows: columns, `label` (class from 0 on) and, where weighted, `weight`.
        columns: names of what the trees read; NaN = unknown.
        rounds: of boosting.
        settings: of XGBoost.
        weighted: whether rows carry weights.
    """
    from xgboost.collective import Config  # noqa: PLC0415  # costs a second
    from xgboost.spark import SparkXGBRegressor  # noqa: PLC0415  # needs pyspark, which is an extra

    kept = {name: value for name, value in settings.items() if name not in SET_BY_SPARK}
    # The classifier would count the classes itself, and not know of one that no row is in; the objective is the same.
    learner = SparkXGBRegressor(
        features_col=list(columns),
        label_col=LABEL,
        weight_col=WEIGHT if weighted else None,
        num_workers=max(session.sparkContext.defaultParallelism, 1),
        missing=float("nan"),
        n_estimators=rounds,
        random_state=settings["seed"],
        verbose=False,
        coll_cfg=Config(tracker_host_ip=session.conf.get("spark.driver.host")),
        **kept,
    )
    return learner.fit(rows).get_booster()


def _write(x: FloatMatrix, target: NDArray[Any], weight: FloatArray | None, folder: Path) -> None:
    for number, start in enumerate(range(0, len(x), ROWS_PER_FILE)):
        part = slice(start, start + ROWS_PER_FILE)
        columns = {f"f{column}": np.ascontiguousarray(x[part, column]) for column in range(x.shape[1])}
        more = {} if weight is None else {WEIGHT: np.asarray(weight[part], np.float64)}
        frame = pl.DataFrame(columns | {LABEL: np.asarray(target[part], np.int32)} | more)
        frame.write_parquet(folder / f"{number:06d}.parquet")
