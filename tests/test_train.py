"""Every detector is fitted twice, and neither fit sees a row or a label from its future."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reperform import detectors, params, schemas, split, tables, train, tune
from reperform.errors import ReperformError
from tests.test_detectors import SMALL
from tests.test_split import CALENDAR, day, labels

TRAINING = params.build(params.TrainParams, {"detectors": list(SMALL), "seed": 1, "exclude_features": []}, "train")
FEATURES = ["amount", "speed"]
SMALL_HERE = {
    name: {k: v for k, v in given.items() if k not in ("n_components", "max_samples")} for name, given in SMALL.items()
} | {"one_class_svm": {"n_components": 10}}


def world(n: int = 520) -> tuple[train.Rows, pl.DataFrame]:
    """Rows over 26 days, one in ten an anomaly (high amount) that is confirmed two days later."""
    rng = np.random.default_rng(5)
    booked = [day(1) + timedelta(hours=26 * 24 / n * i) for i in range(n)]
    is_anomaly = rng.random(n) < 0.1
    x = rng.normal(size=(n, 2)).astype(np.float32)
    x[is_anomaly, 0] += 6
    accounts = rng.integers(0, 15, n)
    keys = pl.DataFrame(
        {"transaction_id": [f"t{i}" for i in range(n)], "account_id": [f"a{a}" for a in accounts], "booked_at": booked},
        schema_overrides={"booked_at": schemas.UTC_US},
    ).with_columns(known_at="booked_at")
    confirmed = labels(*((f"t{i}", True, booked[i] + timedelta(days=2)) for i in np.flatnonzero(is_anomaly)))
    return train.Rows(keys, x, accounts, FEATURES), confirmed


def late_world() -> tuple[train.Rows, pl.DataFrame]:
    """The same rows, every seventh of which arrives up to three days late."""
    rows, given = world()
    hours = np.where(np.arange(len(rows.x)) % 7 == 0, np.random.default_rng(2).integers(1, 72, len(rows.x)), 0)
    late = pl.col("booked_at") + pl.duration(hours=pl.Series(hours))
    return replace(rows, keys=rows.keys.with_columns(known_at=late)), given


def fit_of(name: str, rows: train.Rows, given: pl.DataFrame, which: int) -> train.Fitted:
    return train.fitted(name, SMALL_HERE[name], rows, given, fit=split.fits(CALENDAR)[which], maturity_days=5, seed=1)


def shuffled_after(rows: train.Rows, moment: datetime) -> train.Rows:
    later = np.flatnonzero((rows.keys["booked_at"] >= moment).to_numpy())
    x = rows.x.copy()
    x[later] = x[np.random.default_rng(0).permutation(later)] * 3
    return replace(rows, x=x)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", list(SMALL))
def test_a_fit_learns_nothing_from_later_rows_and_labels(name: str, which: int) -> None:
    rows, given = world()
    fit = split.fits(CALENDAR)[which]
    early = given.filter(pl.col("confirmed_at") < fit.known_by)
    assert 0 < early.height < given.height
    one = fit_of(name, rows, given, which)
    other = fit_of(name, shuffled_after(rows, fit.learns_until), early, which)
    assert one.detector is not None
    assert other.detector is not None
    assert np.array_equal(one.detector.score(rows.x), other.detector.score(rows.x))
    assert one.document == other.document


def test_a_label_learner_leaves_out_days_that_are_not_mature() -> None:
    rows, given = world()
    one = fit_of("xgboost", rows, given, 0)
    # Known by the 17th, mature after 5 days: rows up to the 12th, of a window that ends before the 14th.
    ripe = rows.keys.filter(pl.col("booked_at") <= day(12)).height
    window = rows.keys.filter(pl.col("booked_at") < day(14)).height
    assert one.document["rows"] == ripe
    assert one.document["left_out"]["younger than 5 days when labels were last known"] == window - ripe


def test_other_detectors_leave_out_known_anomalies() -> None:
    rows, given = world()
    document = fit_of("isolation_forest", rows, given, 0).document
    assert document["rows"] == document["rows_in_window"]
    assert document["left_out"] == {"known anomaly": document["known_anomalies"]}
    assert document["known_anomalies"] > 0


def test_nothing_to_learn_from_is_said() -> None:
    rows, given = world()
    late = rows.only((rows.keys["booked_at"] >= day(22)).to_numpy())
    got = fit_of("isolation_forest", late, given, 0)
    assert got.detector is None
    assert got.document["notes"] == ["nothing to learn from: not fitted"]


def test_rows_that_arrived_too_late_are_not_learned_from_and_are_told() -> None:
    rows, given = world()
    never = pl.when(pl.col("transaction_id") == "t3").then(pl.lit(day(25), schemas.UTC_US)).otherwise("known_at")
    late = replace(rows, keys=rows.keys.with_columns(known_at=never))
    one, other = fit_of("rules", late, given, 1).document, fit_of("rules", rows, given, 1).document
    assert one["rows"] == other["rows"] - 1
    assert one["left_out"] == {"not arrived when labels were last known": 1}


def changed_by_late_rows(rows: train.Rows, detector: Any) -> tuple[int, int]:
    """Rows whose score a row that arrived after them changes, and rows whose score one before them changes."""
    known = rows.keys["known_at"].to_physical().to_numpy()
    every = np.ones(len(rows.x), bool)
    before, early, later = train.scored(detector, rows, every), 0, 0
    for row in np.flatnonzero(rows.keys["known_at"] > rows.keys["booked_at"]):
        x = rows.x.copy()
        x[row] = 50
        changed = before != train.scored(detector, replace(rows, x=x), every)
        early += int((changed & (known < known[row])).sum())
        later += int((changed & (known > known[row])).sum())
    return early, later


def test_a_late_row_changes_no_score_of_a_row_that_arrived_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, given = late_world()
    one = fit_of("lstm_autoencoder", rows, given, 0).detector
    early, later = changed_by_late_rows(rows, one)
    assert early == 0
    assert later > 100
    # Planted leak: sequences in order of booking, which no service could have seen.
    monkeypatch.setattr(train.Rows, "by_arrival", lambda self, numbers: np.arange(len(numbers)))
    assert changed_by_late_rows(rows, one)[0] > 100


def test_scores_row_by_row_on_arrival_are_those_of_the_batch() -> None:
    rows, given = late_world()
    one = fit_of("lstm_autoencoder", rows, given, 0).detector
    assert one is not None
    order = rows.by_arrival(np.arange(len(rows.x)))
    got = np.zeros(len(rows.x))
    for at, row in enumerate(order):
        same = order[:at][rows.groups[order[:at]] == rows.groups[row]][-one.context_rows :]
        got[row] = one.score_arrivals(
            rows.x[[row]], groups=rows.groups[[row]], past=rows.x[same], past_groups=rows.groups[same]
        )[0]
    np.testing.assert_allclose(got, train.scored(one, rows, np.ones(len(rows.x), bool)), rtol=1e-5)


@pytest.mark.parametrize("name", list(SMALL))
def test_new_rows_are_scored_beside_those_that_came_before(name: str) -> None:
    rows, given = late_world()
    one = fit_of(name, rows, given, 0).detector
    assert one is not None
    order = rows.by_arrival(np.arange(len(rows.x)))
    past, new = order[:400], order[400:]
    got = one.score_arrivals(rows.x[new], groups=rows.groups[new], past=rows.x[past], past_groups=rows.groups[past])
    np.testing.assert_allclose(got, train.scored(one, rows, np.ones(len(rows.x), bool))[new], rtol=1e-5)


def test_context_is_the_last_rows_of_wanted_accounts() -> None:
    groups = np.array([1, 2, 1, 1, 3, 2, 1, 3])
    wanted = np.array([0, 0, 0, 0, 0, 0, 1, 0], bool)
    assert np.flatnonzero(train.context(groups, wanted, 2)).tolist() == [2, 3]
    assert np.flatnonzero(train.context(groups, wanted, 9)).tolist() == [0, 2, 3]
    assert not train.context(groups, np.zeros(8, bool), 2).any()
    assert np.flatnonzero(train.context(groups, wanted | (np.arange(8) == 2), 1)).tolist() == [0, 3]


@pytest.mark.parametrize("made", [world, late_world])
def test_context_makes_scores_what_they_are_among_all_rows(made: Callable[[], Any]) -> None:
    rows, given = made()
    one = fit_of("lstm_autoencoder", rows, given, 0).detector
    assert one is not None
    wanted = rows.between(day(17), day(21))
    whole = train.scored(one, rows, np.ones(len(rows.x), bool))[wanted]
    np.testing.assert_allclose(train.scored(one, rows, wanted), whole, rtol=1e-4)


def write_features(rows: train.Rows, given: pl.DataFrame, project: Path) -> None:
    columns = {name: pl.Series(column, dtype=pl.Float64) for name, column in zip(FEATURES, rows.x.T, strict=True)}
    frame = rows.keys.with_columns(**columns)
    tables.write_table(frame.drop("known_at"), "featurize", "features")
    tables.write_json(
        [{"name": n, "is_model_input": True, "null_share": 0.0} for n in FEATURES], "featurize", "dictionary"
    )
    tables.write_table(rows.keys, "validate", "transactions")
    tables.write_table(given, "validate", "labels")
    content = params.raw(project / "params.yaml")
    content["split"] = {name: getattr(CALENDAR, name) for name in type(CALENDAR).__dataclass_fields__}
    content["split"] |= {name: str(content["split"][name]) for name in ("train_until", "test_from")}
    content["model"] = {name: dict(given_) for name, given_ in SMALL_HERE.items()}
    (project / "params.yaml").write_text(json.dumps(content))


@pytest.fixture
def prepared(project: Path) -> Callable[[train.Rows, pl.DataFrame], Path]:
    def prepare(rows: train.Rows, given: pl.DataFrame) -> Path:
        write_features(rows, given, project)
        split.run(CALENDAR)
        return project

    return prepare


def run_once(name: str) -> dict[str, Any]:
    tune.run(params.build(params.TuneParams, TUNING, "tune"), name)
    return train.run(TRAINING, name)


TUNING = {"seed": 1, "trials": {}, "folds": 1, "fold_days": 3, "max_rows": 1000}


@pytest.mark.parametrize("name", list(SMALL))
def test_the_stage_scores_every_row_after_history_once(name: str, prepared: Callable[..., Path]) -> None:
    rows, given = world()
    prepared(rows, given)
    document = run_once(name)
    scores = tables.read_table(f"train/{name}", "scores")
    assert scores["transaction_id"].to_list() == rows.keys["transaction_id"].to_list()
    counts = dict(scores["split"].value_counts().iter_rows())
    assert document["scored"] == dict.fromkeys(schemas.SPLITS, 0) | counts
    again = detectors.load(Path("data/train") / name / "model")
    wanted = rows.between(day(21), None)
    expected = scores.filter(pl.Series(wanted))["score"].to_numpy()
    np.testing.assert_array_equal(train.scored(again, rows, wanted), expected)


def test_the_stage_gives_the_same_bytes_twice(prepared: Callable[..., Path]) -> None:
    folder = prepared(*world()) / "data" / "train" / "lstm_autoencoder"
    contents = []
    for _ in range(2):
        run_once("lstm_autoencoder")
        contents.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 6


def test_the_stage_works_without_transactions(prepared: Callable[..., Path]) -> None:
    rows, given = world()
    prepared(rows.only(np.zeros(len(rows.x), bool)), given.clear())
    for name in SMALL:
        document = run_once(name)
        assert document["fits"]["final"]["rows"] == 0
        assert tables.read_table(f"train/{name}", "scores").equals(schemas.empty(schemas.SCORES))


def test_features_that_lost_test_rows_are_refused(prepared: Callable[..., Path]) -> None:
    rows, given = world()
    prepared(rows, given)
    thinned = tables.read_table("featurize", "features").filter(pl.col("transaction_id") != "t470")
    tables.write_table(thinned, "featurize", "features")
    tune.run(params.build(params.TuneParams, TUNING, "tune"), "rules")
    with pytest.raises(ReperformError, match=r"resampled[\s\S]*t470"):
        train.run(TRAINING, "rules")
