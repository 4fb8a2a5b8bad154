"""A search is honest about time, reproducible, and tells of every trial."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import params, train, tune
from reperform.errors import ReperformError
from reperform.export import server
from tests.test_split import CALENDAR, day
from tests.test_train import TUNING, world
from tests.test_train import prepared as prepared  # noqa: PLC0414  # a fixture

PLAIN = {"n_estimators": 5, "learning_rate": 0.3, "max_depth": 2}
RANGES = {"learning_rate": {"low": 0.05, "high": 0.5, "log": True}, "max_depth": {"low": 1, "high": 4}}


def test_folds_lie_before_the_end_of_the_first_fit_with_a_label_delay() -> None:
    got = tune.windows(CALENDAR, folds=2, fold_days=3)
    assert [(w.learns_until, w.judged_from, w.judged_until) for w in got] == [
        (day(5), day(8), day(11)),
        (day(8), day(11), day(14)),
    ]
    assert {w.learns_from for w in got} == {day(1)}


def test_folds_without_days_to_learn_from_are_left_out() -> None:
    assert len(tune.windows(CALENDAR, folds=5, fold_days=3)) == 3


def fold() -> tune.Fold:
    rows, labels = world()
    got = tune.prepared(rows, labels, tune.windows(CALENDAR, folds=1, fold_days=3)[0], CALENDAR, max_rows=50, seed=1)
    assert got is not None
    return got


def test_a_fold_is_judged_on_every_row_of_its_days() -> None:
    rows, _ = world()
    got = fold()
    assert np.array_equal(got.judged, rows.between(day(11), day(14)))
    assert len(got.truth) == got.judged.sum()


def test_a_fold_learns_only_labels_known_when_its_judged_days_begin() -> None:
    rows, labels = world()
    window = tune.windows(CALENDAR, folds=1, fold_days=3)[0]
    early = labels.filter(pl.col("confirmed_at") < day(11))
    judged = rows.keys.filter(pl.Series(fold().judged))["transaction_id"]
    fewer = pl.concat([early, labels.filter(pl.col("transaction_id").is_in(judged.implode()))])
    got = tune.prepared(rows, fewer.unique(maintain_order=True), window, CALENDAR, max_rows=50, seed=1)
    assert got is not None
    assert np.array_equal(got.y, fold().y)
    assert np.array_equal(got.learned, fold().learned)


def test_a_fold_without_known_anomalies_is_left_out() -> None:
    rows, labels = world()
    window = tune.windows(CALENDAR, folds=1, fold_days=3)[0]
    assert tune.prepared(rows, labels.clear(), window, CALENDAR, max_rows=50, seed=1) is None


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(1, 100), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_thinning_keeps_all_anomalies_and_the_prevalence(y: list[bool], max_rows: int, seed: int) -> None:
    labels = np.array(y, int)
    chosen, weight = tune.thinned(labels, max_rows=max_rows, seed=seed)
    assert set(np.flatnonzero(labels == 1)) <= set(chosen)
    assert len(chosen) <= max(max_rows, labels.sum() + 1)
    assert (np.diff(chosen) > 0).all()
    assert weight.sum() == pytest.approx(len(y) if (labels != 1).any() else labels.sum())
    assert weight[labels[chosen] == 1].tolist() == [1] * labels.sum()


def peak(parameters: Any, fold: int) -> float:
    return float(1 - abs(parameters["learning_rate"] - 0.1) - 0.01 * fold)


def searched(objective: Any = peak, trials: int = 12, seed: int = 3) -> list[dict[str, Any]]:
    return tune.search(objective, PLAIN, RANGES, folds=2, trials=trials, seed=seed)


def test_the_same_seed_finds_the_same_trials() -> None:
    assert searched() == searched()
    assert searched() != searched(seed=4)


def test_the_plain_values_are_the_first_trial() -> None:
    assert searched()[0]["parameters"] == PLAIN


def test_every_trial_is_told_also_pruned_and_failed_ones() -> None:
    def failing(parameters: Any, fold: int) -> float:
        if parameters["max_depth"] == 4:
            raise ValueError("too deep")
        return peak(parameters, fold)

    got = searched(failing, trials=20, seed=0)
    assert [t["number"] for t in got] == list(range(20))
    states = {t["state"] for t in got}
    assert states == {"complete", "pruned", "failed"}
    for trial in got:
        assert len(trial["values"]) == {"complete": 2, "pruned": 1, "failed": 0}[trial["state"]]
        assert (trial["reason"] == "ValueError: too deep") == (trial["state"] == "failed")
        assert (trial["value"] is None) == (trial["state"] != "complete")


def test_the_best_is_the_highest_and_the_earliest_of_equals() -> None:
    told = [
        {"number": n, "state": state, "value": value, "parameters": {"n": n}}
        for n, state, value in [(0, "complete", 0.1), (1, "pruned", None), (2, "complete", 0.3), (3, "complete", 0.3)]
    ]
    got = tune.best_of(told, PLAIN)
    assert (got["parameters"], got["chosen_from"]) == ({"n": 2}, "trial 2")
    assert got["trials"] == {"complete": 3, "pruned": 1, "failed": 0}


def test_without_a_complete_trial_the_plain_values_are_kept() -> None:
    def broken(*_: Any) -> float:
        raise ValueError("no")

    got = tune.best_of(searched(broken, trials=3), PLAIN)
    assert got["parameters"] == PLAIN
    assert got["chosen_from"] == "plain values: no trial was completed"


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(parameters: Any, fold: int) -> float:
        calls.append(fold)
        return peak(parameters, fold)

    def killed(parameters: Any, fold: int) -> float:
        if len(calls) == 7:
            raise KeyboardInterrupt
        return counted(parameters, fold)

    memo = tune.Memo(tmp_path / "memo.jsonl")
    with pytest.raises(KeyboardInterrupt):
        searched(memo(killed))
    with memo.path.open("a") as file:
        file.write('{"half a line')
    done = len(calls)
    again = tune.Memo(tmp_path / "memo.jsonl")
    assert searched(again(counted)) == searched()
    assert done == 7
    again.forget()
    assert list(tmp_path.iterdir()) == []


KILLED = """
import json, os, signal, sys
from pathlib import Path
from reperform import tune

memo, plain, ranges, calls = tune.Memo(Path(sys.argv[1])), *map(json.loads, sys.argv[2:4]), []

def objective(parameters, fold):
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)  # as when memory is out: nothing is tidied up
    calls.append(fold)
    return float(1 - abs(parameters["learning_rate"] - 0.1) - 0.01 * fold)

tune.search(memo(objective), plain, ranges, folds=2, trials=12, seed=3)
"""


def test_a_search_whose_process_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    memo = tmp_path / "memo.jsonl"
    command = [sys.executable, "-c", KILLED, str(memo), json.dumps(PLAIN), json.dumps(RANGES)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(memo.read_text().splitlines()) == 9
    calls: list[int] = []

    def counted(parameters: Any, fold: int) -> float:
        calls.append(fold)
        return peak(parameters, fold)

    expected = searched()
    assert searched(tune.Memo(memo)(counted)) == expected
    assert len(calls) == sum(len(trial["values"]) for trial in expected) - 9


def shared_search(study: tune.Study, objective: Any = peak, trials: int = 6) -> list[dict[str, Any]]:
    return tune.search(objective, PLAIN, RANGES, folds=2, trials=trials, seed=3, shared=study)


def test_a_study_in_a_database_is_shared_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    study = tune.Study(f"sqlite:///{tmp_path / 'study.db'}", "xgboost-1")
    calls: list[int] = []

    def killed(parameters: Any, fold: int) -> float:
        calls.append(fold)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return peak(parameters, fold)

    with pytest.raises(KeyboardInterrupt):
        shared_search(study, killed)
    first = shared_search(study, trials=2)  # what was finished is there, for this machine and for others
    assert first[0]["parameters"] == PLAIN
    every = shared_search(study)
    assert every[:2] == first
    assert [trial["number"] for trial in every] == list(range(6))
    assert all(trial["state"] in {"complete", "pruned"} for trial in every)
    assert shared_search(tune.Study(study.url, "xgboost-2"), trials=1)[0]["parameters"] == PLAIN


def test_a_study_can_live_in_postgresql() -> None:
    folder = Path(tempfile.mkdtemp(prefix="rp-"))
    try:
        with server.embedded(folder) as address:
            where = address.parameters
            url = f"postgresql+psycopg://{where['user']}@/{where['dbname']}?host={where['host']}&port={where['port']}"
            done = shared_search(tune.Study(url, "xgboost"), trials=3)
            again = shared_search(tune.Study(url, "xgboost"), trials=4)
    finally:
        shutil.rmtree(folder)
    assert (len(done), len(again)) == (3, 4)
    assert again[:3] == done


def test_an_unreachable_study_is_explained_without_its_password() -> None:
    with pytest.raises(ReperformError, match=r"study cannot be reached[\s\S]*REPERFORM_STUDY_URL") as caught:
        shared_search(tune.Study("postgresql+psycopg://ann:secret@127.0.0.1:1/x", "xgboost"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranges", "told"),
    [
        ({"max_depht": {"low": 1, "high": 3}}, "no plain value"),
        ({"max_depth": {"low": 1}}, "cannot be searched"),
        ({"max_depth": {"low": 1, "hihg": 3}}, "remove hihg"),
        ({"max_depth": {"low": 1, "high": 99}}, "a number from 1 to 16"),
        ({"max_depth": {"low": 3, "high": 6}}, "outside of its range"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(ranges: dict[str, Any], told: str) -> None:
    with pytest.raises(ReperformError, match=told):
        tune.check_ranges("xgboost", PLAIN, ranges)


def with_search(folder: Path, trials: int) -> params.TuneParams:
    content = params.raw(folder / "params.yaml")
    content["model"]["xgboost"] = PLAIN | {"search": RANGES}
    (folder / "params.yaml").write_text(json.dumps(content))
    return params.build(params.TuneParams, TUNING | {"trials": {"xgboost": trials}}, "tune")


def test_the_stage_gives_the_same_bytes_twice_and_leaves_no_memo(prepared: Callable[..., Path]) -> None:
    folder = prepared(*world())
    settings_ = with_search(folder, trials=4)
    contents = []
    for _ in range(2):
        best = tune.run(settings_, "xgboost")
        contents.append([(folder / "data/tune/xgboost" / name).read_bytes() for name in ("best.json", "trials.json")])
    assert contents[0] == contents[1]
    assert best["value"] > 0.5
    assert best["trials"]["complete"] + best["trials"]["pruned"] == 4
    assert list((folder / ".cache" / "tune").iterdir()) == []


def test_no_trials_keep_the_plain_values(prepared: Callable[..., Path]) -> None:
    folder = prepared(*world())
    best = tune.run(with_search(folder, trials=0), "xgboost")
    assert (best["parameters"], best["chosen_from"]) == (PLAIN, "plain values: nothing to search")


def test_the_stage_works_without_labels_and_without_transactions(prepared: Callable[..., Path]) -> None:
    rows, labels = world()
    for frame in (rows, rows.only(np.zeros(len(rows.x), bool))):
        best = tune.run(with_search(prepared(frame, labels.clear()), trials=2), "xgboost")
        assert best["parameters"] == PLAIN
        assert "no fold has known anomalies" in best["chosen_from"]


def test_rows_know_their_window() -> None:
    rows, _ = world()
    assert isinstance(rows, train.Rows)
    assert rows.between(day(1), None).all()
    assert not rows.between(day(27), None).any()
