"""SHAP and LIME on models whose contributions are known."""

import numpy as np
import pytest

from reperform import detectors
from reperform.explain import attributions, quality

RNG = np.random.default_rng(5)
BACKGROUND = RNG.normal(size=(60, 4))
X = RNG.normal(size=(8, 4)) + 1
SLOPES = np.array([2.0, -1.0, 0.5, 0.0])


def linear(x: np.ndarray) -> np.ndarray:
    return 3 + x @ SLOPES


@pytest.fixture(scope="module")
def boosted() -> detectors.Detector:
    """Stumps, so that the margin is a sum of one function per feature."""
    x = RNG.normal(size=(800, 3)).astype(np.float32)
    x[RNG.random(x.shape) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, 0]) + 0.5 * np.nan_to_num(x[:, 1]) > 1).astype(np.int8)
    names = ("a", "b", "c")
    return detectors.build("xgboost", {"max_depth": 1, "n_estimators": 40}, features=names, seed=1).fit(x, y)


def test_shap_of_a_linear_score_is_slope_times_distance_from_the_mean() -> None:
    found, base = attributions.permutation_shap(linear, BACKGROUND, seed=1)(X)
    assert found == pytest.approx(SLOPES * (X - BACKGROUND.mean(axis=0)))
    assert base == pytest.approx(np.full(8, linear(BACKGROUND).mean()))


def test_a_rows_sampled_shap_does_not_depend_on_the_rows_beside_it() -> None:
    attribute = attributions.permutation_shap(lambda x: x[:, 0] * x[:, 1], BACKGROUND, seed=1)
    assert (attribute(X)[0][3] == attribute(X[3:4])[0][0]).all()


def test_tree_shap_adds_up_to_the_detectors_own_score(boosted: detectors.Detector) -> None:
    x = np.array([[2.0, 1.0, 0.0], [-1.0, np.nan, 3.0], [np.nan] * 3])
    found, base = attributions.tree_shap(boosted.booster_)(x)
    assert quality.additivity_residual(boosted.score(x), found, base).max() < quality.ADDITIVITY_TOLERANCE


def test_tree_shap_of_an_additive_model_moves_with_its_own_feature_alone(boosted: detectors.Detector) -> None:
    here, there = np.array([[2.0, 1.0, 0.0]]), np.array([[-2.0, 1.0, 0.0]])
    attribute = attributions.tree_shap(boosted.booster_)
    change = attribute(here)[0] - attribute(there)[0]
    assert change[0, 0] == pytest.approx((boosted.score(here) - boosted.score(there))[0], abs=1e-4)
    assert change[0, 1:] == pytest.approx([0, 0], abs=1e-5)


def test_the_margin_on_one_thread_is_the_detectors_score(boosted: detectors.Detector) -> None:
    x = RNG.normal(size=(50, 3))
    assert (attributions.boosted_margin(boosted.booster_)(x) == boosted.score(x)).all()


def test_trees_that_learned_nothing_contribute_nothing() -> None:
    x = np.ones((20, 2), np.float32)
    detector = detectors.build("xgboost", {}, features=("a", "b"), seed=1).fit(x, np.zeros(20, np.int8))
    found, base = attributions.tree_shap(detector.booster_)(x[:3].astype(float))
    assert not found.any()
    assert base == pytest.approx(detector.score(x[:3]))


def test_lime_finds_the_slopes_of_a_linear_score() -> None:
    found = attributions.lime(linear, X[:2], BACKGROUND, seeds=[1, 2], samples=3000)
    assert found.contributions == pytest.approx(SLOPES * (X[:2] - BACKGROUND.mean(axis=0)), abs=0.4)
    assert (np.abs(found.contributions[:, 3]) < 0.3).all()


def test_lime_is_the_same_from_the_same_seed_and_alone() -> None:
    together = attributions.lime(linear, X, BACKGROUND, seeds=list(range(8)), samples=200)
    alone = attributions.lime(linear, X[5:6], BACKGROUND, seeds=[5], samples=200)
    other = attributions.lime(linear, X[5:6], BACKGROUND, seeds=[6], samples=200)
    assert (together.contributions[5] == alone.contributions[0]).all()
    assert (other.contributions != alone.contributions).any()


def test_lime_keeps_unknown_values_unknown(boosted: detectors.Detector) -> None:
    background = np.where(RNG.random((50, 3)) < 0.3, np.nan, RNG.normal(size=(50, 3)))
    x = np.array([[3.0, np.nan, 0.0]])
    found = attributions.lime(boosted.score, x, background, seeds=[1], samples=500)
    assert np.isfinite(found.contributions).all()
    assert np.abs(found.contributions[0]).argmax() == 0


def test_no_rows_give_no_contributions() -> None:
    assert attributions.lime(linear, X[:0], BACKGROUND, seeds=[], samples=100).contributions.shape == (0, 4)
