"""A Spark session on the loopback interface; started here alone, for features and for boosted trees."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reperform.errors import ReperformError

LEAST_JAVA = "Java 17 or newer"


@contextmanager
def session(master: str, *, executor_memory: str = "1g") -> Iterator[Any]:
    """A Spark session that listens on the loopback interface alone.

    Args:
        master: of the cluster, as Spark writes it.
        executor_memory: of each executor, as Spark writes it.

    Raises:
        ReperformError: without pyspark or Java.
    """
    try:
        import pyspark  # noqa: PLC0415  # an extra
        from pyspark.sql import SparkSession  # noqa: PLC0415
    except ImportError as error:
        raise _lacking("pyspark", "pip install 'reperform[spark]'") from error
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise _lacking(LEAST_JAVA, "install a Java runtime, or set JAVA_HOME")
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_HOME", str(Path(pyspark.__file__).parent))
    options = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.executor.memory": executor_memory,
        "spark.executorEnv.POLARS_MAX_THREADS": "1",
        "spark.executorEnv.PYTHONHASHSEED": "0",
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parents[1]),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(master).appName("reperform")
    for name, value in options.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def _lacking(what: str, fix: str) -> ReperformError:
    where = "engine.name: spark, or model.xgboost.spark_master"
    return ReperformError(
        "Spark cannot be started.", expected=what, got="none", where=where, fix=f"{fix}; or run on this machine"
    )
