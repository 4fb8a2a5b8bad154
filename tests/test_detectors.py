"""One contract for all detectors."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM
from sklearn.metrics import average_precision_score

from reperform import detectors, params
from reperform.detectors import Detector, inputs, kernels, trees
from reperform.detectors.autoencoder import LstmAutoencoderDetector, _steps, sequence_rows
from reperform.detectors.boosting import BoostingDetector, classes_of
from reperform.detectors.isolation_forest import IsolationForestDetector
from reperform.detectors.kernels import LEVELS_ABREAST
from reperform.detectors.random_forest import RandomForestDetector
from reperform.detectors.scaling import RobustScaler
from reperform.detectors.sequence_network import SequenceAutoencoder
from reperform.errors import ReperformError
from tests.conftest import ROOT

FEATURES = ("amount", "speed", "hour", "share")
RULES = {"high": {"when": {"amount": {"at_least": 6}}}, "fast": {"when": {"speed": {"at_least": 6}}, "weight": 2}}
SMALL: dict[str, dict[str, Any]] = {
    "rules": {"rules": RULES},
    "isolation_forest": {"n_estimators": 20, "max_samples": 128},
    "one_class_svm": {"n_components": 30},
    "xgboost": {"n_estimators": 20, "max_depth": 2},
    "lstm_autoencoder": {"length": 4, "hidden_size": 8, "code_size": 2, "epochs": 2},
    "random_forest": {"n_estimators": 20},
}
OUTLIER = 417
every = pytest.mark.parametrize("name", list(detectors.DETECTORS))


def world(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """600 rows of 20 accounts, one value in 20 unknown, and one row far outside."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, len(FEATURES))).astype(np.float32)
    x[rng.random(x.shape) < 0.05] = np.nan
    x[OUTLIER] = [9, 9, 9, 9]
    y = np.zeros(600, np.int8)
    y[[50, 150, 250, 350]] = 1  # what labels show is high and fast, as the outlier is
    x[y == 1] += [8, 8, 0, 0]
    return x, y, rng.integers(0, 20, 600)


def fitted(name: str, seed: int = 1) -> Detector:
    x, y, groups = world()
    return detectors.build(name, SMALL[name], features=FEATURES, seed=seed).fit(x, y, groups=groups)


def test_every_detector_of_the_configuration_exists() -> None:
    assert set(SMALL) == set(detectors.DETECTORS)
    for name in params.load(params.TrainParams, ROOT / "params.yaml").detectors:
        detectors.build(name, params.model(name, ROOT / "params.yaml"))


@every
def test_scores_are_finite_and_one_for_each_row(name: str) -> None:
    x, _, groups = world()
    got = fitted(name).score(x, groups=groups)
    assert got.shape == (len(x),)
    assert got.dtype == np.float64
    assert np.isfinite(got).all()


@every
def test_obvious_outlier_ranks_first(name: str) -> None:
    x, y, groups = world()
    got = fitted(name).score(x, groups=groups)
    normal = y == 0
    assert got[OUTLIER] == got[normal].max()


@every
def test_same_seed_gives_the_same_scores(name: str) -> None:
    x, _, groups = world()
    assert np.array_equal(fitted(name).score(x, groups=groups), fitted(name).score(x, groups=groups))


@pytest.mark.parametrize("name", ["isolation_forest", "one_class_svm", "lstm_autoencoder"])
def test_another_seed_gives_other_scores(name: str) -> None:
    x, _, groups = world()
    assert not np.array_equal(fitted(name, 1).score(x, groups=groups), fitted(name, 2).score(x, groups=groups))


@every
def test_a_saved_detector_scores_the_same_and_saves_the_same_bytes(name: str, tmp_path: Path) -> None:
    x, _, groups = world()
    one = fitted(name)
    detectors.save(one, tmp_path / "a")
    again = detectors.load(tmp_path / "a")
    assert np.array_equal(one.score(x, groups=groups), again.score(x, groups=groups))
    assert tuple(again.features) == FEATURES
    detectors.save(again, tmp_path / "b")
    detectors.save(fitted(name), tmp_path / "c")
    for other in ("b", "c"):
        assert contents(tmp_path / "a") == contents(tmp_path / other)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@every
def test_a_single_row_and_an_unknown_row_are_scored(name: str) -> None:
    one = fitted(name)
    assert one.score(world()[0][:1], groups=np.zeros(1, np.int64)).shape == (1,)
    assert np.isfinite(one.score(np.full((1, len(FEATURES)), np.nan, np.float32))).all()


@every
def test_a_row_scores_the_same_bits_alone_and_among_thousands(name: str) -> None:
    x, _, _ = world()
    many = np.tile(x, (5, 1))  # enough for two threads
    one = fitted(name)
    whole = one.score(many)
    assert np.array_equal(whole[:600], np.concatenate([one.score(x[[row]]) for row in range(600)]))
    assert np.array_equal(whole, np.concatenate([one.score(part) for part in np.array_split(many, 7)]))


@every
def test_rows_that_may_not_be_written_or_lie_in_columns_are_scored(name: str) -> None:
    x, _, groups = world()
    one, frozen = fitted(name), np.asfortranarray(x)
    frozen.flags.writeable = False
    assert np.array_equal(one.score(frozen, groups=groups), one.score(x, groups=groups))


@every
def test_a_column_without_any_value_is_no_obstacle(name: str) -> None:
    x, y, groups = world()
    x[:, 3] = np.nan
    got = detectors.build(name, SMALL[name], features=FEATURES, seed=1).fit(x, y, groups=groups)
    assert np.isfinite(got.score(x, groups=groups)).all()


@every
def test_an_empty_frame_is_refused(name: str) -> None:
    with pytest.raises(ReperformError, match=r"nothing to learn from[\s\S]*got: 0 rows"):
        detectors.build(name, SMALL[name], features=FEATURES).fit(np.zeros((0, 4), np.float32))
    with pytest.raises(ReperformError, match="nothing to learn from"):
        fitted(name).score(np.zeros((0, 4), np.float32))


@every
def test_infinite_values_are_refused_by_column(name: str) -> None:
    x, y, _ = world()
    x[7, 1] = np.inf
    with pytest.raises(ReperformError, match=r"infinite[\s\S]*got: speed"):
        detectors.build(name, SMALL[name], features=FEATURES).fit(x, y)


@every
def test_a_wrong_number_of_columns_is_refused(name: str) -> None:
    with pytest.raises(ReperformError, match=r"expected: 4 columns[\s\S]*got: 3"):
        fitted(name).score(np.zeros((2, 3), np.float32))


@every
def test_scoring_before_fitting_is_refused(name: str) -> None:
    with pytest.raises(ReperformError, match="was not fitted"):
        detectors.build(name, SMALL[name], features=FEATURES).score(world()[0])


@every
def test_a_detector_is_a_scikit_learn_estimator(name: str) -> None:
    one = detectors.build(name, SMALL[name], features=FEATURES, seed=5)
    assert clone(one).get_params(deep=False) == one.get_params(deep=False)


@every
def test_a_misspelt_parameter_names_the_nearest(name: str) -> None:
    known = next(iter(SMALL[name]))
    with pytest.raises(ReperformError, match=rf"no parameter '{known}x'[\s\S]*did you mean [\w, ]*{known}"):
        detectors.build(name, {f"{known}x": 1})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("isolation_forest", {"max_features": 1.5}),
        ("one_class_svm", {"nu": 0}),
        ("xgboost", {"max_depth": True}),
        ("lstm_autoencoder", {"length": "16"}),
    ],
)
def test_a_value_outside_its_limits_is_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ReperformError, match=r"has a wrong value[\s\S]*a number from"):
        detectors.build(name, wrong)


def test_an_unknown_detector_names_the_nearest() -> None:
    with pytest.raises(ReperformError, match="did you mean isolation_forest"):
        detectors.build("isolation_forst", {})


def test_loading_from_an_empty_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ReperformError, match="no detector"):
        detectors.load(tmp_path)


@pytest.mark.parametrize("name", ["isolation_forest", "one_class_svm", "lstm_autoencoder"])
def test_known_anomalies_are_not_learned_as_normal(name: str) -> None:
    x, y, groups = world()
    without = detectors.build(name, SMALL[name], features=FEATURES, seed=1)
    without.fit(x[y == 0], None, groups=groups[y == 0])
    assert np.array_equal(fitted(name).score(x, groups=groups), without.score(x, groups=groups))


def test_thinning_is_told() -> None:
    x, y, groups = world()
    one = detectors.build("one_class_svm", {"max_rows": 100}, features=FEATURES).fit(x, y)
    two = detectors.build("lstm_autoencoder", SMALL["lstm_autoencoder"] | {"max_sequences": 100}, features=FEATURES)
    assert one.facts()["notes"] == ["learned from 100 of 596 rows, drawn by seed"]
    assert two.fit(x, y, groups=groups).facts()["notes"] == ["trained on 100 of 596 sequences, drawn by seed"]


class TestRules:
    def rules(self, rules: dict[str, Any], features: tuple[str, ...] = FEATURES) -> Detector:
        return detectors.build("rules", {"rules": rules}, features=features).fit(np.zeros((1, len(features))))

    def test_score_counts_weights_and_the_tie_breaker_stays_below_one(self) -> None:
        got = fitted("rules").score(np.array([[0, 0, 0, 0], [7, 0, 0, 0], [0, 7, 0, 0], [7, 7, 0, 0]], np.float32))
        assert np.floor(got).tolist() == [0, 1, 2, 3]

    def test_closer_to_a_limit_ranks_higher(self) -> None:
        got = fitted("rules").score(np.array([[1, 0, 0, 0], [5, 0, 0, 0], [7, 0, 0, 0], [70, 0, 0, 0]], np.float32))
        assert (np.diff(got) > 0).all()

    def test_an_unknown_value_meets_no_condition(self) -> None:
        one = self.rules({"low": {"when": {"amount": {"at_most": 5}}}})
        assert one.fired(np.array([[np.nan, 0, 0, 0], [4, 0, 0, 0]])).tolist() == [[False], [True]]  # type: ignore[attr-defined]

    def test_all_conditions_must_hold(self) -> None:
        one = self.rules({"both": {"when": {"amount": {"at_least": 5}, "hour": {"at_most": 6}}}})
        assert one.fired(np.array([[6, 0, 3, 0], [6, 0, 9, 0], [4, 0, 3, 0]])).ravel().tolist() == [True, False, False]  # type: ignore[attr-defined]

    def test_a_rule_without_its_column_is_reported_and_the_others_work(self) -> None:
        one = self.rules(RULES, features=("amount",))
        assert one.facts()["not_evaluable"] == {"fast": ["speed"]}
        assert one.facts()["notes"] == ["rule fast cannot be evaluated: no column speed"]
        assert np.floor(one.score(np.array([[7.0]]))).tolist() == [1]

    def test_flags_are_read_though_no_model_reads_them(self) -> None:
        kind = detectors.kind_of("rules")
        assert kind.columns({"rules": RULES}, ["amount"], ["amount", "speed", "hour"]) == ["amount", "speed"]

    @pytest.mark.parametrize(
        ("rule", "told"),
        [
            ({"wen": {"amount": {"at_least": 1}}}, "did you mean when"),
            ({"when": {}}, "no condition"),
            ({"when": {"amount": {"at_least": 1}}, "weight": 0.5}, "weighs too little"),
            ({"when": {"amount": {"atleast": 1}}}, "did you mean at_least"),
        ],
    )
    def test_a_rule_that_nobody_can_read_is_refused(self, rule: dict[str, Any], told: str) -> None:
        with pytest.raises(ReperformError, match=told):
            self.rules({"one": rule})

    @given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), st.floats(0, 1e6, width=32))
    @settings(max_examples=40, deadline=None)
    def test_more_of_anything_never_lowers_the_score(self, row: list[float], more: float) -> None:
        one = self.rules(RULES)
        low, high = one.score(np.array([row, [row[0] + more, *row[1:]]], np.float32))
        assert high >= low


class TestIsolationForest:
    def test_scores_are_those_of_scikit_learn(self) -> None:
        x, y, _ = world()
        one = fitted("isolation_forest")
        assert isinstance(one, IsolationForestDetector)
        scaled = RobustScaler().fit(x[y == 0]).transform(x)
        peer = IsolationForest(n_estimators=20, max_samples=128, random_state=1).fit(scaled[y == 0])
        np.testing.assert_allclose(one.score(x), -peer.score_samples(scaled), rtol=1e-10)

    def test_trees_that_see_some_columns_are_those_of_scikit_learn(self) -> None:
        x, y, _ = world()
        given_ = {"n_estimators": 20, "max_samples": 128, "max_features": 0.5}
        one = detectors.build("isolation_forest", given_, features=FEATURES, seed=1).fit(x, y)
        scaled = RobustScaler().fit(x[y == 0]).transform(x)
        peer = IsolationForest(**given_, random_state=1).fit(scaled[y == 0])
        np.testing.assert_allclose(one.score(x), -peer.score_samples(scaled), rtol=1e-10)


class TestRandomForest:
    def test_scores_are_those_of_scikit_learn_also_where_values_are_unknown(self) -> None:
        x, y, _ = world()
        one = fitted("random_forest")
        peer = RandomForestClassifier(n_estimators=20, random_state=1).fit(x, y)
        assert np.isnan(x).any()
        total = np.zeros(len(x))
        for tree in peer.estimators_:
            total += tree.predict_proba(x)[:, 1]
        assert np.array_equal(one.score(x), np.log((total + 0.5) / (20 - total + 0.5)))

    def test_deep_trees_end_in_the_same_leaves(self) -> None:
        rng = np.random.default_rng(1)
        x = rng.normal(size=(3000, 4)).astype(np.float32)
        y = (rng.random(3000) < 0.5).astype(np.int8)
        one = detectors.build("random_forest", {"n_estimators": 5}, features=FEATURES, seed=1).fit(x, y)
        peer = RandomForestClassifier(n_estimators=5, random_state=1).fit(x, y)
        assert isinstance(one, RandomForestDetector)
        assert one.trees_.depths.tolist() == [tree.tree_.max_depth for tree in peer.estimators_]
        assert one.trees_.depths.min() > LEVELS_ABREAST
        total = np.sum([tree.predict_proba(x)[:, 1] for tree in peer.estimators_], axis=0)
        np.testing.assert_allclose(one.score(x), np.log((total + 0.5) / (5 - total + 0.5)), rtol=1e-12)

    @given(st.floats(-1e30, 1e30), st.floats(-(2.0**99), 2.0**99, width=32))
    @settings(max_examples=50, deadline=None)
    def test_rounding_a_threshold_down_sends_no_row_elsewhere(self, threshold: float, value: float) -> None:
        rounded = trees.rounded_down(np.array([threshold]))[0]
        for one in (np.float32(value), np.float32(threshold), rounded, np.nextafter(rounded, np.float32(np.inf))):
            assert (one <= rounded) == (float(one) <= threshold)


class TestOneClassSvm:
    def test_scores_are_those_of_scikit_learn(self) -> None:
        x, y, _ = world()
        one = fitted("one_class_svm")
        scaler = RobustScaler().fit(x[y == 0])
        kernel = Nystroem(gamma=0.5 / 4, n_components=30, random_state=1).fit(scaler.transform(x[y == 0]))
        machine = SGDOneClassSVM(nu=0.05, random_state=1).fit(kernel.transform(scaler.transform(x[y == 0])))
        expected = -machine.decision_function(kernel.transform(scaler.transform(x)))
        np.testing.assert_allclose(one.score(x), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    @given(st.floats(-90, 0, width=32))
    @settings(max_examples=50, deadline=None)
    def test_the_exponential_is_exact_to_a_few_units(self, exponent: float) -> None:
        total = np.zeros(1)
        row, landmark = np.array([[1.0]], np.float32), np.zeros((1, 1), np.float32)
        kernels.add_kernel_values(row, landmark, np.float32(-exponent), np.ones(1), total)
        np.testing.assert_allclose(total[0], np.exp(max(exponent, -87.0)), rtol=5e-7)


class TestBoosting:
    def test_scores_are_the_library_s_own_margins(self) -> None:
        x, _, _ = world()
        one = fitted("xgboost")
        data = xgboost.DMatrix(np.tile(x, (5, 1)), feature_names=list(FEATURES))
        expected = one.booster_.predict(data, output_margin=True)  # type: ignore[attr-defined]
        assert np.array_equal(one.score(np.tile(x, (5, 1))), expected)

    def test_score_is_the_log_odds_at_the_true_prevalence(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.integers(0, 2, (4000, 1)).astype(np.float32)
        y = (rng.random(4000) < np.where(x[:, 0] == 1, 0.3, 0.05)).astype(np.int8)
        one = detectors.build("xgboost", {"n_estimators": 300, "reg_lambda": 0}, features=("a",)).fit(x, y)
        got = 1 / (1 + np.exp(-one.score(np.array([[0.0], [1.0]], np.float32))))
        np.testing.assert_allclose(got, [y[x[:, 0] == 0].mean(), y[x[:, 0] == 1].mean()], atol=0.005)

    def test_a_weight_stands_for_so_many_rows(self) -> None:
        x, y, _ = world()
        weight = np.where(np.arange(len(x)) % 3 == 0, 2.0, 1.0)
        twice = np.repeat(np.arange(len(x)), weight.astype(int))
        settings_ = {"n_estimators": 5, "tree_method": "exact"}
        got = detectors.build("xgboost", settings_, features=FEATURES).fit(x, y, weight=weight)
        expected = detectors.build("xgboost", settings_, features=FEATURES).fit(x[twice], y[twice])
        np.testing.assert_allclose(got.score(x), expected.score(x), rtol=1e-5)

    def test_labels_of_one_kind_give_one_score_and_say_so(self) -> None:
        x, y, _ = world()
        one = detectors.build("xgboost", SMALL["xgboost"], features=FEATURES).fit(x, np.zeros_like(y))
        assert set(one.score(x).tolist()) == {0.0}
        assert "one kind only" in one.facts()["notes"][0]


class TestSpark:
    MASTER = "local-cluster[2,1,1024]"

    def test_exact_trees_are_refused(self) -> None:
        x, y, _ = world()
        given_ = {"spark_master": self.MASTER, "tree_method": "exact"}
        with pytest.raises(ReperformError, match=r"one machine only[\s\S]*hist"):
            detectors.build("xgboost", given_, features=FEATURES).fit(x, y)

    def test_without_java_spark_says_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("JAVA_HOME", raising=False)
        x, y, _ = world()
        with pytest.raises(ReperformError, match=r"Java 17|pyspark"):
            detectors.build("xgboost", {"spark_master": self.MASTER}, features=FEATURES).fit(x, y)

    @pytest.mark.slow
    @pytest.mark.parametrize("classes", ["binary", "typologies"])
    def test_two_executors_train_trees_that_rank_alike(self, classes: str, tmp_path: Path) -> None:
        pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'reperform[spark]'")
        if shutil.which("java") is None:
            pytest.skip("there is no Java")
        rng = np.random.default_rng(4)
        x = rng.normal(size=(6000, 4)).astype(np.float32)
        y = (rng.random(6000) < 1 / (1 + np.exp(5 - 2 * x[:, 0] - np.abs(x[:, 1])))).astype(np.int8)
        x[rng.random(x.shape) < 0.05] = np.nan
        kinds = [("high" if row % 2 else "fast") if one else None for row, one in enumerate(y)]
        given_ = {"n_estimators": 30, "max_depth": 3, "classes": classes}
        one = detectors.build("xgboost", given_, features=FEATURES, seed=1)
        one.fit(x[:4000], y[:4000], typologies=kinds[:4000])
        two = detectors.build("xgboost", given_ | {"spark_master": self.MASTER}, features=FEATURES, seed=1)
        two.fit(x[:4000], y[:4000], typologies=kinds[:4000])
        ap = [average_precision_score(y[4000:], each.score(x[4000:])) for each in (one, two)]
        assert ap[0] > 0.3
        assert abs(ap[0] - ap[1]) <= 0.01
        detectors.save(two, tmp_path)
        again = detectors.load(tmp_path)
        assert np.array_equal(again.score(x), two.score(x))
        assert two.booster_.feature_names == list(FEATURES)  # type: ignore[attr-defined]


class TestSequences:
    def test_rows_of_a_sequence_are_the_newest_of_the_account(self) -> None:
        got = sequence_rows(np.array([7, 3, 7, 7, 3]), 3)
        assert got.tolist() == [[-1, -1, 0], [-1, -1, 1], [-1, 0, 2], [0, 2, 3], [-1, 1, 4]]

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 6))
    @settings(max_examples=50, deadline=None)
    def test_no_sequence_reaches_into_the_future_or_another_account(self, accounts: list[int], length: int) -> None:
        groups = np.array(accounts)
        for row, steps in enumerate(sequence_rows(groups, length)):
            real = steps[steps >= 0]
            expected = [i for i in range(row + 1) if groups[i] == groups[row]][-length:]
            assert real.tolist() == expected

    def test_errors_are_those_of_the_network(self) -> None:
        x, _, groups = world()
        one = fitted("lstm_autoencoder")
        assert isinstance(one, LstmAutoencoderDetector)
        peer = SequenceAutoencoder(len(FEATURES), 8, 2, 0.005)
        peer.load_state_dict({name: torch.from_numpy(array) for name, array in one.weights_.items()})
        sequences = sequence_rows(groups, 4)
        scaled, known = one._scaled(x)
        steps, mask = (torch.from_numpy(part) for part in _steps(scaled, known, sequences))
        assert (sequences == -1).any()
        with torch.inference_mode():
            expected = ((peer(steps, mask, 1)[:, 0] - steps[:, -1]) ** 2 * mask[:, -1]).numpy()
        np.testing.assert_allclose(one.layers_.errors(scaled, known, sequences), expected, rtol=1e-4, atol=1e-5)

    def test_scores_of_some_rows_are_those_among_all(self) -> None:
        x, _, groups = world()
        one, wanted = fitted("lstm_autoencoder"), np.arange(600) % 5 == 0
        assert np.array_equal(one.score(x, groups=groups, wanted=wanted), one.score(x, groups=groups)[wanted])

    def test_contributions_sum_to_the_score(self) -> None:
        x, _, groups = world()
        one = fitted("lstm_autoencoder")
        assert isinstance(one, LstmAutoencoderDetector)
        parts = one.contributions(x, groups=groups)
        assert parts.shape == x.shape
        np.testing.assert_allclose(parts.sum(axis=1), one.score(x, groups=groups))
        assert (parts[np.isnan(x)] == 0).all()

    def test_only_the_context_of_a_row_decides_its_score(self) -> None:
        x, _, groups = world()
        one = fitted("lstm_autoencoder")
        row = 599
        own = np.flatnonzero(groups == groups[row])[-(one.context_rows + 1) :]
        alone = one.score(x[own], groups=groups[own])[-1]
        np.testing.assert_allclose(alone, one.score(x, groups=groups)[row], rtol=1e-4)


class TestInputs:
    DICTIONARY = (
        {"name": "a", "is_model_input": True, "null_share": 0.1},
        {"name": "n", "is_model_input": False, "null_share": 0.0},
        {"name": "b", "is_model_input": True, "null_share": 1.0},
        {"name": "c", "is_model_input": True, "null_share": None},
    )

    def test_columns_without_a_value_and_aids_are_left_out(self) -> None:
        assert inputs.model_inputs(self.DICTIONARY) == ["a", "c"]
        assert inputs.model_inputs(self.DICTIONARY, ["a"], aids=True) == ["n", "c"]

    def test_an_unknown_exclusion_names_the_nearest(self) -> None:
        dictionary = [{"name": "velocity_1h", "is_model_input": True}]
        with pytest.raises(ReperformError, match="did you mean velocity_1h"):
            inputs.model_inputs(dictionary, ["velocity_1"])


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_scaling_keeps_order_and_forgets_the_unit(scale: float) -> None:
    x = np.array([[1.0], [2.0], [3.0], [1000.0], [np.nan]]) * scale
    got = RobustScaler().fit(x).transform(x).ravel()
    assert (np.diff(got[:4]) > 0).all()
    assert got[4] == 0
    np.testing.assert_allclose(got, RobustScaler().fit(x / scale).transform(x / scale).ravel(), rtol=1e-5)


def test_the_detector_of_the_how_to_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "how-to" / "add-a-detector.md").read_text()
    module: dict[str, Any] = {"__name__": "farthest_value"}
    exec(text.split("```python\n")[1].split("```")[0], module)
    monkeypatch.setitem(detectors.DETECTORS, "farthest_value", module["FarthestValueDetector"])
    monkeypatch.setitem(SMALL, "farthest_value", {"largest": 2})
    for test in (
        test_scores_are_finite_and_one_for_each_row,
        test_obvious_outlier_ranks_first,
        test_same_seed_gives_the_same_scores,
        test_an_empty_frame_is_refused,
        test_a_misspelt_parameter_names_the_nearest,
    ):
        test("farthest_value")
    test_a_saved_detector_scores_the_same_and_saves_the_same_bytes("farthest_value", tmp_path)


class TestTypologies:
    KINDS: ClassVar[list[str]] = ["high", "fast"]

    def told(self, unnamed: int = 0, seed: int = 1) -> tuple[Any, np.ndarray, np.ndarray]:
        """900 rows; every tenth is an anomaly, high or fast in turn, and the first of them are named by nobody."""
        rng = np.random.default_rng(8)
        x = rng.normal(size=(900, len(FEATURES))).astype(np.float32)
        y = (np.arange(900) % 10 == 0).astype(np.int8)
        kind = np.where(np.arange(900) % 20 == 0, 0, 1)
        x[np.flatnonzero(y), kind[y == 1]] += 8
        names: list[str | None] = [self.KINDS[k] if one else None for k, one in zip(kind, y, strict=True)]
        for row in np.flatnonzero(y)[:unnamed]:
            names[row] = None
        one = detectors.build("xgboost", {**SMALL["xgboost"], "classes": "typologies"}, features=FEATURES, seed=seed)
        return one.fit(x, y, typologies=names), x, y

    def test_score_is_the_log_odds_of_any_anomaly(self) -> None:
        one, x, y = self.told()
        kinds = one.typology_probabilities(x)
        assert list(kinds) == ["fast", "high", "other"]
        anomaly = np.sum(list(kinds.values()), axis=0)
        np.testing.assert_allclose(one.score(x), np.log(anomaly / (1 - anomaly)), rtol=1e-5)
        assert one.score(x)[y == 1].min() > one.score(x)[y == 0].max()

    def test_it_says_of_which_kind_an_anomaly_is(self) -> None:
        one, x, _ = self.told()
        kinds = one.typology_probabilities(x)
        assert kinds["high"][0] > 10 * kinds["fast"][0]
        assert kinds["fast"][10] > 10 * kinds["high"][10]

    def test_a_saved_model_knows_its_typologies(self, tmp_path: Path) -> None:
        one, x, _ = self.told(unnamed=30)
        detectors.save(one, tmp_path / "a")
        again = detectors.load(tmp_path / "a")
        assert isinstance(again, BoostingDetector)
        for name, probability in one.typology_probabilities(x).items():
            assert np.array_equal(again.typology_probabilities(x)[name], probability)
        assert np.array_equal(again.score(x), one.score(x))
        detectors.save(self.told(unnamed=30)[0], tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_rare_and_unnamed_typologies_are_one_class(self) -> None:
        y = np.array([1] * 12 + [0] * 3, np.int8)
        target, names = classes_of(y, ["b"] * 5 + ["a"] * 4 + [None] * 3 + ["b"] * 3)
        assert names == ["b", "other"]
        assert target.tolist() == [1] * 5 + [2] * 7 + [0] * 3
        assert classes_of(y, None)[1] == ["other"]

    def test_two_classes_tell_no_typologies(self) -> None:
        assert fitted("xgboost").typology_probabilities(world()[0]) == {}  # type: ignore[attr-defined]

    def test_other_classes_are_refused(self) -> None:
        x, y, _ = world()
        with pytest.raises(ReperformError, match=r"expected: binary or typologies[\s\S]*got: 'kinds'"):
            detectors.build("xgboost", {"classes": "kinds"}, features=FEATURES).fit(x, y)

    def test_labels_of_one_kind_give_every_row_the_same_score(self) -> None:
        x, _, _ = world()
        one = detectors.build("xgboost", {"classes": "typologies"}, features=FEATURES)
        assert np.ptp(one.fit(x, np.zeros(len(x), np.int8)).score(x)) == 0


def test_a_saved_autoencoder_scores_without_pytorch(tmp_path: Path) -> None:
    detectors.save(fitted("lstm_autoencoder"), tmp_path)
    code = (
        "import sys, numpy as np; from pathlib import Path; from reperform import detectors;"
        f"detectors.load(Path({str(tmp_path)!r})).score(np.zeros((3, 4), np.float32)); print('torch' in sys.modules)"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "False"


def test_importing_detectors_does_not_import_the_heavy_libraries() -> None:
    heavy = ("torch", "xgboost", "optuna", "numba")
    code = f"import sys, reperform.detectors; print([m for m in {heavy} if m in sys.modules])"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.strip() == "[]"
