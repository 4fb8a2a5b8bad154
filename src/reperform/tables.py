"""Read and write what stages hand to each other: Parquet tables and JSON documents, whole or not at all."""

import errno
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from reperform import paths
from reperform.errors import ReperformError

ROWS_PER_GROUP = 2**19
ZSTD_LEVEL = 1  # level 3 makes features a tenth smaller, and takes a third more time to write them


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`, and rename it to `target` only when the block ends well.

    A killed or failing stage leaves the earlier output whole.

    Raises:
        ReperformError: when the disk is full or the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield partial
        os.replace(partial, target)  # noqa: PTH105  # the atomic rename is the point
    except OSError as error:
        raise _write_error(target, error) from error
    except pl.exceptions.ComputeError as error:
        # Polars wraps what the system said, and leaves only its number in the text.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise _write_error(target, OSError(int(number[1]), os.strerror(int(number[1])))) from error
    finally:
        partial.unlink(missing_ok=True)


def write_table(frame: pl.DataFrame, stage: str, name: str) -> Path:
    """Write a frame to `data/<stage>/<name>.parquet` and return the path."""
    target = paths.data(stage) / f"{name}.parquet"
    with replacing(target) as partial:
        frame.write_parquet(partial, compression="zstd", compression_level=ZSTD_LEVEL, statistics=True)
    return target


@contextmanager
def appending(target: Path, schema: Mapping[str, Any]) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Give a function that appends frames to a Parquet file, for tables that do not fit into memory.

    The file's bytes depend on the rows alone, never on how they came in frames: row groups are of one size.

    Args:
        target: the file; it is whole only when the block has ended well.
        schema: names and types of the columns.
    """
    waiting: queue.Queue[pl.DataFrame | None] = queue.Queue(maxsize=2)
    failed: list[BaseException] = []

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        while (frame := waiting.get()) is not None:
            yield frame

    def write() -> None:
        try:
            source = register_io_source(frames, schema=dict(schema), is_pure=True)
            source.sink_parquet(
                target,
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                statistics=True,
                row_group_size=ROWS_PER_GROUP,
            )
        except BaseException as error:  # noqa: BLE001  # it is raised again where the frames come from
            failed.append(error)
            while waiting.get() is not None:
                pass  # whoever appends shall not wait for a writer that is gone

    def append(frame: pl.DataFrame) -> None:
        if failed:
            raise failed[0]
        if frame.height:
            waiting.put(frame)

    writer = threading.Thread(target=write, name=f"write {target.name}")
    writer.start()
    try:
        yield append
    finally:
        waiting.put(None)
        writer.join()
    if failed:
        raise failed[0]


def scan_table(stage: str, name: str) -> pl.LazyFrame:
    """A lazy frame over `data/<stage>/<name>.parquet`, or over the parts in a folder `data/<stage>/<name>/`.

    Raises:
        ReperformError: when neither exists.
    """
    folder = paths.data(stage) / name
    if folder.is_dir():
        return pl.scan_parquet(sorted(folder.glob("*.parquet")))
    return pl.scan_parquet(_existing(stage, f"{name}.parquet"))


def read_table(stage: str, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """The whole table, or some of its columns."""
    lazy = scan_table(stage, name)
    return (lazy if columns is None else lazy.select(columns)).collect()


def write_json(document: Any, stage: str, name: str) -> Path:
    """Write a document to `data/<stage>/<name>.json` with sorted keys, so that equal content is equal bytes."""
    target = paths.data(stage) / f"{name}.json"
    write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", target)
    return target


def read_json(stage: str, name: str) -> Any:
    """The document at `data/<stage>/<name>.json`."""
    return json.loads(_existing(stage, f"{name}.json").read_text(encoding="utf-8"))


def write_text(text: str, target: Path) -> Path:
    """Write a text file whole or not at all."""
    with replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")
    return target


def write_bytes(content: bytes, target: Path) -> Path:
    """Write a binary file whole or not at all."""
    with replacing(target) as partial:
        partial.write_bytes(content)
    return target


def _existing(stage: str, filename: str) -> Path:
    path = paths.data(stage) / filename
    if path.is_file():
        return path
    raise ReperformError(
        f"The output of stage {stage} is missing.",
        expected=f"data/{stage}/{filename}",
        got="no such file",
        where=str(path.parent),
        fix=f"run `dvc repro {stage}` (or `dvc checkout` to restore a version that was made before)",
    )


def _write_error(target: Path, error: OSError) -> ReperformError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ReperformError(
        f"Could not write {target.name}.",
        expected="free space on the disk" if full else "a folder that can be written",
        got=error.strerror or str(error),
        where=str(target.parent),
        fix=("free some space" if full else "check the folder's owner and rights")
        + ", then run the same command again; the earlier output is still whole",
    )
