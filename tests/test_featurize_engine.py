"""One implementation: any bucket of whole keys, any number of threads, files or executors give the same bits."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import featurize
from reperform.errors import ReperformError
from reperform.featurize import buckets, dictionary, engine, outofcore
from reperform.featurize.kpis import KPIS
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Values
from reperform.params import EngineParams
from tests.featurize_tables import RULES, calendar, stage, world

SETTINGS: dict[str, Any] = {
    "thresholds": {"rules": RULES},
    "concentration": {"least_n": 3},
    "correlation": {"days": 10, "reference_days": 20, "least_reference_days": 10},
    "amount_deviation": {"least_n": 2},
}


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    rows, labelled, of = world(600, seed=5, days=60)
    return featurize.ledger_of(rows, of, labelled, stage(**SETTINGS), calendar())


@pytest.fixture(scope="module")
def todo(ledger: Ledger) -> list[engine.Task]:
    fitted = featurize.fit(ledger, stage(*KPIS, **SETTINGS), calendar().fit_end)
    return engine.tasks(engine.selected(list(KPIS)), stage(**SETTINGS), fitted)


@pytest.fixture(scope="module")
def whole(ledger: Ledger, todo: list[engine.Task]) -> Values:
    """Every KPI over the whole table at once, in the registry's order."""
    made: Values = {}
    for task in todo:
        values = task.kpi.compute(ledger, task.fitted, task.settings, made)
        made |= {column.name: np.asarray(values[column.name], np.float64) for column in task.columns}
    return made


def assert_same_bits(got: Mapping[str, Any], expected: Mapping[str, Any], rows: Any = slice(None)) -> None:
    assert list(got)
    different = [n for n in got if not np.array_equal(got[n], np.asarray(expected[n])[rows], equal_nan=True)]
    assert different == []


@pytest.mark.parametrize("name", [kpi.name for kpi in KPIS.values() if kpi.key != "entity"])
@pytest.mark.parametrize("keys", [1, 3])
def test_a_kpi_needs_nothing_beyond_its_key_and_its_inputs(
    name: str, keys: int, ledger: Ledger, todo: list[engine.Task], whole: Values
) -> None:
    task = next(task for task in todo if task.kpi.name == name)
    phase = engine.Phase(task.kpi.key, (task,))
    codes = engine.key_codes(ledger, task.kpi.key)
    for code in range(-1, codes.max() + 1, keys):
        rows = np.flatnonzero((codes >= code) & (codes < code + keys))
        if len(rows):
            needed = {n: whole[n][rows] for n in phase.needs}
            assert_same_bits(engine.values_of(ledger.part(rows, phase.inputs), phase, needed), whole, rows)


@pytest.mark.parametrize("name", [kpi.name for kpi in KPIS.values() if kpi.key == "entity"])
def test_a_kpi_across_keys_reads_no_more_than_its_inputs(
    name: str, ledger: Ledger, todo: list[engine.Task], whole: Values
) -> None:
    task = next(task for task in todo if task.kpi.name == name)
    phase = engine.Phase("entity", (task,))
    narrow = replace(ledger, transactions=ledger.transactions.select(phase.inputs_of(ledger.transactions.columns)))
    assert_same_bits(engine.values_of(narrow, phase, whole), whole)


@pytest.mark.parametrize("kpi", KPIS.values(), ids=lambda kpi: kpi.name)
def test_parameters_are_learned_from_the_inputs_alone(kpi: Any, ledger: Ledger) -> None:
    end_us = int(calendar().fit_end.timestamp()) * 1_000_000
    given_settings = kpi.settings_of(SETTINGS)
    inputs = [name for name in ledger.transactions.columns if name in {*engine.ALWAYS_READ, *kpi.inputs}]
    narrow = replace(ledger, transactions=ledger.transactions.select(inputs))
    assert kpi.fit(narrow, end_us, given_settings) == kpi.fit(ledger, end_us, given_settings)


@pytest.mark.parametrize(("bucket_rows", "threads"), [(1, 2), (40, 1), (97, 2), (10_000, 1)])
def test_size_and_number_of_buckets_change_no_bit(
    bucket_rows: int, threads: int, ledger: Ledger, todo: list[engine.Task], whole: Values
) -> None:
    got = engine.run(ledger, todo, EngineParams(bucket_rows=bucket_rows, threads=threads))
    assert list(got) == list(whole)
    assert_same_bits(got, whole)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=40), st.integers(1, 12))
def test_buckets_hold_every_row_once_and_keys_whole(codes: list[int], rows: int) -> None:
    array = np.array(codes, np.int64)
    parts = buckets.cut(array, rows)
    assert sorted(row for part in parts for row in part) == list(range(len(codes)))
    for code in set(codes) - {-1}:
        holding = [part for part in parts if (array[part] == code).any()]
        assert len(holding) == 1
        assert (np.diff(holding[0][array[holding[0]] == code]) > 0).all()
    assert all(len(part) >= 1 for part in parts)


def test_phases_give_every_kpi_what_it_needs_first(todo: list[engine.Task]) -> None:
    made: set[str] = set()
    for phase in engine.phases(todo):
        for task in phase.tasks:
            assert set(task.needs) <= made
            made |= {column.name for column in task.columns}
    assert made == {column.name for task in todo for column in task.columns}


def test_kpis_that_wait_for_each_other_are_refused(todo: list[engine.Task]) -> None:
    first, second = todo[0], todo[1]
    ring = [
        replace(first, kpi=replace(first.kpi, needs=(second.columns[0].name,))),
        replace(second, kpi=replace(second.kpi, needs=(first.columns[0].name,))),
    ]
    with pytest.raises(ReperformError, match="wait for each other"):
        engine.phases(ring)


def test_a_column_that_is_read_without_saying_so_is_refused(todo: list[engine.Task]) -> None:
    task = next(task for task in todo if task.kpi.name == "velocity")
    given_columns = engine.Needed(task, {"amount_log": np.zeros(1)})
    with pytest.raises(ReperformError, match="without saying so"):
        given_columns["amount_log"]


def test_work_in_threads_passes_errors_on() -> None:
    def work(n: int) -> None:
        if n == 3:
            raise ReperformError("three")

    with pytest.raises(ReperformError, match="three"):
        buckets.each(work, range(5), 2)


@pytest.mark.parametrize("kpi", KPIS.values(), ids=lambda kpi: kpi.name)
def test_parameters_do_not_depend_on_rows_after_the_window(kpi: Any, ledger: Ledger) -> None:
    end = calendar().fit_end
    before = replace(ledger, transactions=ledger.transactions.filter(pl.col("booked_at") < end), span=ledger.day_span)
    end_us = int(end.timestamp()) * 1_000_000
    assert kpi.fit(before, end_us, kpi.settings_of(SETTINGS)) == kpi.fit(ledger, end_us, kpi.settings_of(SETTINGS))


def in_files(tables: Any, folder: Path, how: EngineParams) -> tuple[featurize.Large, pl.DataFrame, pl.DataFrame]:
    rows, labelled, of = tables
    rows.write_parquet(folder / "transactions.parquet", row_group_size=100)
    made = featurize.featurize_files(
        pl.scan_parquet(folder / "transactions.parquet"), of, labelled, stage(**SETTINGS), calendar(),
        how=how, target=folder, scratch=folder / "scratch",
    )  # fmt: skip
    assert not (folder / "scratch").exists()
    return made, pl.read_parquet(folder / "features.parquet"), pl.read_parquet(folder / "account_days.parquet")


def assert_same_features(got: tuple[featurize.Large, pl.DataFrame, pl.DataFrame], expected: featurize.Features) -> None:
    made, table, account_days = got
    assert table.select(featurize.IDENTITY).equals(expected.table.select(featurize.IDENTITY))
    assert table.schema == expected.table.schema
    assert [name for name in table.columns if not table[name].equals(expected.table[name])] == []
    assert account_days.equals(expected.account_days)
    assert made.fitted == expected.fitted
    assert made.dictionary == expected.dictionary


TABLES = world(600, seed=5, days=60)


@pytest.fixture(scope="module")
def local() -> featurize.Features:
    rows, labelled, of = TABLES
    return featurize.featurize(rows, of, labelled, stage(**SETTINGS), calendar())


@pytest.mark.parametrize(("part_rows", "row_group_rows"), [(1, 100), (150, 37), (250, 250), (10_000, 1000)])
def test_a_table_in_files_has_the_same_features(
    part_rows: int, row_group_rows: int, local: featurize.Features, tmp_path: Path
) -> None:
    how = EngineParams(name="bucketed", part_rows=part_rows, row_group_rows=row_group_rows, bucket_rows=64)
    assert_same_features(in_files(TABLES, tmp_path, how), local)


@pytest.mark.slow
def test_two_executors_of_spark_give_the_same_features(local: featurize.Features, tmp_path: Path) -> None:
    pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'reperform[spark]'")
    if shutil.which("java") is None:
        pytest.skip("there is no Java")
    how = EngineParams(name="spark", master="local-cluster[2,1,1024]", part_rows=100, row_group_rows=250, threads=1)
    assert_same_features(in_files(TABLES, tmp_path, how), local)


def test_without_java_spark_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ReperformError, match=r"Java 17|pyspark"):
        in_files(TABLES, tmp_path, EngineParams(name="spark"))


def test_an_empty_table_in_files_gives_empty_files(tmp_path: Path) -> None:
    rows, labelled, of = TABLES
    empty = (rows.clear(), labelled.clear(), of)
    expected = featurize.featurize(empty[0], of, empty[1], stage(**SETTINGS), calendar())
    assert_same_features(in_files(empty, tmp_path, EngineParams(name="bucketed")), expected)


def test_an_empty_table_gives_empty_columns() -> None:
    rows, labelled, of = world(10)
    made = featurize.featurize(rows.clear(), of, labelled.clear(), stage(**SETTINGS), calendar())
    assert made.table.is_empty()
    assert made.table.schema["velocity_1h"] == pl.Float64


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 9, 50, 51, 100, 101, 999])
def test_quantiles_are_those_of_polars(n: int) -> None:
    values = pl.Series([None, *np.random.default_rng(n).normal(size=n).round(1)], dtype=pl.Float64)
    expected = {f"{q:g}": values.quantile(q, "nearest") for q in dictionary.QUANTILES}
    assert dictionary.quantiles(values) == expected


def test_a_window_of_correlation_shorter_than_its_lags_is_refused() -> None:
    kpi = KPIS["correlation"]
    with pytest.raises(ReperformError, match="too short for its lags"):
        kpi.columns(kpi.settings_of({"correlation": {"days": 7}}))


def test_files_between_give_back_any_value_of_any_rows(tmp_path: Path) -> None:
    store = outofcore.Store(tmp_path, 6, 4)
    edge = np.array([np.nan, -0.0, 127.0])
    store.write("a", np.array([5, 0, 3]), {"counts": np.array([-127.0, np.nan, 0.0]), "edge": edge})
    store.write("b", np.array([1, 2, 4]), {"counts": np.array([-128.0, 0.5, 1e300]), "edge": edge})
    ranges = [store.read(number, ["edge", "counts"]) for number in range(2)]
    counts, edges = (np.concatenate([one[name] for one in ranges]) for name in ("counts", "edge"))
    assert_same_bits({"counts": counts}, {"counts": np.array([np.nan, -128.0, 0.5, 0.0, 1e300, -127.0])})
    assert_same_bits({"edge": edges}, {"edge": np.array([-0.0, np.nan, -0.0, 127.0, 127.0, np.nan])})
    assert np.signbit(edges[[0, 2]]).all()
    assert np.array_equal(store.column("counts"), counts, equal_nan=True)
