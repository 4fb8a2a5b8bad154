"""Executed notebooks are stored in one canonical form."""

import json

import pytest

from reperform import notebooks
from tests.conftest import ROOT


def executed(**cell: object) -> str:
    base = {"cell_type": "code", "id": "a", "metadata": {}, "source": "", "execution_count": 1, "outputs": []}
    return json.dumps(
        {"cells": [base | cell], "metadata": {"papermill": {"duration": 1.5}}, "nbformat": 4, "nbformat_minor": 5}
    )


def test_times_and_durations_are_removed() -> None:
    got = json.loads(notebooks.stable_text(executed(metadata={"papermill": {"duration": 0.2}, "execution": {}})))
    assert got["metadata"] == {}
    assert got["cells"][0]["metadata"] == {}


def test_addresses_in_outputs_are_replaced() -> None:
    output = {"output_type": "stream", "name": "stdout", "text": "<Figure at 0x7f0a1b2c3d4e>"}
    got = json.loads(notebooks.stable_text(executed(outputs=[output])))
    assert got["cells"][0]["outputs"][0]["text"] == "<Figure at 0x0>"


def test_a_stream_that_was_cut_in_two_reads_as_one() -> None:
    parts = [{"output_type": "stream", "name": "stdout", "text": t} for t in ("one ", "two")]
    got = json.loads(notebooks.stable_text(executed(outputs=parts)))
    assert [o["text"] for o in got["cells"][0]["outputs"]] == ["one two"]


def test_stable_text_is_stable() -> None:
    once = notebooks.stable_text(executed())
    assert notebooks.stable_text(once) == once


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_stored_without_outputs(path: object) -> None:
    cells = json.loads(path.read_text())["cells"]  # type: ignore[attr-defined]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
