"""Outputs are written whole or not at all."""

import errno
from pathlib import Path

import polars as pl
import pytest

from reperform import tables
from reperform.errors import ReperformError

FRAME = pl.DataFrame({"a": [1, 2, 3]})


def test_what_is_written_is_read_again(project: Path) -> None:
    tables.write_table(FRAME, "split", "splits")
    assert tables.read_table("split", "splits").equals(FRAME)
    assert tables.read_table("split", "splits", ["a"]).columns == ["a"]


def test_a_folder_of_parts_reads_as_one_table(project: Path) -> None:
    tables.write_table(FRAME, "ingest/transactions", "part-0")
    tables.write_table(FRAME, "ingest/transactions", "part-1")
    assert tables.read_table("ingest", "transactions").height == 6


def test_missing_output_names_its_stage(project: Path) -> None:
    with pytest.raises(ReperformError, match="dvc repro split"):
        tables.read_table("split", "splits")


def test_failure_while_writing_leaves_the_earlier_output_whole(project: Path) -> None:
    path = tables.write_table(FRAME, "split", "splits")
    before = path.read_bytes()

    def write_half() -> None:
        with tables.replacing(path) as partial:
            partial.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_full_disk_is_explained_and_the_earlier_output_is_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tables.write_table(FRAME, "split", "splits")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(ReperformError, match=r"free space[\s\S]*earlier output is still whole"):
        tables.write_table(FRAME.head(1), "split", "splits")
    assert path.read_bytes() == before


def test_equal_documents_are_equal_bytes(project: Path) -> None:
    first = tables.write_json({"b": 1, "a": 2}, "split", "summary").read_bytes()
    assert tables.write_json({"a": 2, "b": 1}, "split", "summary").read_bytes() == first


def test_nan_never_reaches_a_document(project: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        tables.write_json({"a": float("nan")}, "split", "summary")
