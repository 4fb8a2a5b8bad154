"""KPI 15: the components of the explainability index, worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reperform.explain import quality


def floats(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def linear(x: np.ndarray) -> np.ndarray:
    """2 x0 - x1; x2 and x3 play no part."""
    return 2 * x[:, 0] - x[:, 1]


def linear_contributions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([2 * x[:, 0], -x[:, 1], 0 * x[:, 2:]]), np.zeros(len(x))


def test_contributions_that_add_up_leave_nothing() -> None:
    x = floats([1, 2, 3, 4], [0.5, -1, 0, 0])
    contributions, base = linear_contributions(x)
    assert quality.additivity_residual(linear(x), contributions, base) == pytest.approx([0, 0])


def test_a_tampered_contribution_shows_in_the_residual() -> None:
    x = floats([1, 2, 3, 4])
    contributions, base = linear_contributions(x)
    contributions[0, 2] += 0.25
    assert quality.additivity_residual(linear(x), contributions, base) == pytest.approx([0.25])


def test_top_features_are_the_largest_by_size_and_never_zero() -> None:
    chosen = quality.top_features(floats([1, -5, 0, 3], [0, 0, 0, 2]), top=2)
    assert chosen.tolist() == [[False, True, False, True], [False, False, False, True]]


def test_equal_contributions_go_to_the_earlier_column() -> None:
    assert quality.top_features(floats([1, 1, 1]), top=2).tolist() == [[True, True, False]]


def test_overlap_and_jaccard_by_hand() -> None:
    one, other = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    assert quality.jaccard(one, other) == pytest.approx([1 / 3])
    assert quality.overlap(one, other) == pytest.approx([1 / 2])


def test_overlap_of_nothing_with_nothing_is_unknown() -> None:
    none = np.zeros((1, 3), bool)
    assert np.isnan(quality.overlap(none, none)).all()
    assert np.isnan(quality.jaccard(none, none)).all()


def test_signs_are_compared_on_shared_features_alone() -> None:
    shap, lime = floats([3, -2, 0, 1]), floats([3, 2, 5, 0])
    # Both sets of two hold column 0 (SHAP: 0 and 1; LIME: 2 and 0).
    assert quality.sign_agreement(shap, lime, top=2) == pytest.approx([1.0])
    assert quality.sign_agreement(shap, lime, top=3) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("contributions", "expected"),
    [([4, 1, 0, 0], 1.0), ([1, 1, 1, 1], 0.0), ([6, -2, 1, 1], 0.5)],
)
def test_sparsity_by_hand(contributions: list[float], expected: float) -> None:
    # 4 of 5 is 80 %: one feature; four alike: all four; 6 + 2 of 10: two of four.
    assert quality.sparsity(floats(contributions)) == pytest.approx([expected])


def test_confidence_is_one_minus_entropy_in_bits() -> None:
    got = quality.confidence(np.array([0.5, 0.0, 1.0, 0.25, np.nan]))
    assert got[:4] == pytest.approx([0, 1, 1, 1 - 0.8112781], abs=1e-6)
    assert np.isnan(got[4])


def test_documented_share_counts_sizes() -> None:
    formula = np.array([True, False, True])
    assert quality.documented_share(floats([1, -2, 1], [0, 0, 0]), formula) == pytest.approx([0.5, 1.0])


def perfect(n: int = 1) -> dict[str, np.ndarray]:
    return {name: np.ones(n) for name in quality.EXPONENTS}


def test_the_exponents_sum_to_one() -> None:
    assert sum(quality.EXPONENTS.values()) == pytest.approx(1.0)


def test_a_perfect_explanation_has_index_100() -> None:
    assert quality.explainability_index(np.array([True]), perfect()) == pytest.approx([100])


def test_an_explanation_that_does_not_add_up_has_index_0() -> None:
    assert quality.explainability_index(np.array([False]), perfect()).tolist() == [0]


def test_a_component_of_zero_is_floored() -> None:
    parts = perfect() | {"stability": np.zeros(1)}
    assert quality.explainability_index(np.array([True]), parts) == pytest.approx([100 * 0.01**0.25])


def test_the_index_by_hand() -> None:
    parts = {
        "faithfulness": np.array([0.5]),
        "stability": np.array([0.8]),
        "agreement": np.array([0.6]),
        "sparsity": np.array([0.4]),
        "confidence": np.array([0.3]),
        "documented": np.array([1.0]),
    }
    expected = 100 * 0.5**0.3 * 0.8**0.25 * 0.6**0.15 * 0.4**0.1 * 0.3**0.1
    assert quality.explainability_index(np.array([True]), parts) == pytest.approx([expected])


def test_an_unknown_component_leaves_the_index_unknown() -> None:
    parts = perfect() | {"confidence": np.array([np.nan])}
    assert np.isnan(quality.explainability_index(np.array([True]), parts)).all()


def test_deleting_the_only_feature_that_matters_first_undoes_the_prediction_at_once() -> None:
    # One training row, so that a conditional sample is that row. What is left: 1, then 0 from the first deletion on:
    # a triangle of a quarter's width. At random the feature goes first, second, third or last.
    x, background = floats([1, 0, 0, 0]), floats([0, 0, 0, 0])
    found = quality.deletion(
        lambda rows: rows[:, 0], x, floats([1, 0, 0, 0]), background, seeds=[3], orders=6, neighbours=5
    )
    assert found.by_importance == pytest.approx([0.125])
    assert set(np.round(found.at_random[0], 3)) <= {0.125, 0.375, 0.625, 0.875}
    mean = found.at_random.mean()
    assert found.skill == pytest.approx([(mean - 0.125) / mean])


def test_a_wrong_order_of_importance_has_less_skill_than_the_right_one() -> None:
    rng = np.random.default_rng(0)
    background, x = rng.normal(size=(200, 4)), rng.normal(size=(20, 4)) + 3

    def skill(contributions: np.ndarray) -> float:
        found = quality.deletion(linear, x, contributions, background, seeds=list(range(20)), orders=5, neighbours=5)
        return float(found.skill.mean())

    right, _ = linear_contributions(x)
    wrong = right[:, ::-1].copy()
    assert skill(right) > 0.3
    assert skill(wrong) < 0


def test_deleted_values_come_from_rows_alike_in_the_features_kept() -> None:
    # Both features always move together in training. Replacing x0 given x1 = 9 must keep it near 9, not near the mean.
    line = np.linspace(0, 10, 101)
    background = np.column_stack([line, line])
    seen: list[np.ndarray] = []

    def score(rows: np.ndarray) -> np.ndarray:
        seen.append(rows)
        return rows[:, 0]

    quality.deletion(score, floats([9, 9]), floats([1, 0.5]), background, seeds=[0], orders=1, neighbours=3)
    replaced = seen[-1]
    assert np.abs(replaced - 9).max() <= 0.2


def test_deletion_takes_unknown_values_as_they_are() -> None:
    background = np.array([[np.nan, 1.0], [0.0, np.nan], [1.0, 2.0]])

    def score(rows: np.ndarray) -> np.ndarray:
        return np.nan_to_num(rows).sum(axis=1)

    x = np.array([[np.nan, 5.0]])
    found = quality.deletion(score, x, floats([0.1, 5]), background, seeds=[1], orders=2, neighbours=2)
    assert np.isfinite(found.by_importance).all()


def test_deletion_of_one_feature_and_of_no_rows_works() -> None:
    one = quality.deletion(
        lambda rows: rows[:, 0], floats([2]), floats([2]), floats([0], [1]), seeds=[0], orders=2, neighbours=5
    )
    assert one.by_importance == pytest.approx([0.5])
    none = quality.deletion(
        lambda rows: rows[:, 0], np.empty((0, 2)), np.empty((0, 2)), floats([0, 0]), seeds=[], orders=2, neighbours=5
    )
    assert none.skill.shape == (0,)


def steady(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.tile([3.0, 2.0, 1.0], (len(x), 1)), np.zeros(len(x))


def stability_of(attribute: quality.Attribute, score: quality.Score, within: float = 0.01) -> quality.Stability:
    x = floats([1, 2, 3], [3, 2, 1])
    background = np.random.default_rng(0).normal(size=(50, 3))
    contributions, _ = attribute(x)
    return quality.stability(
        score,
        attribute,
        lambda scores: scores,
        x,
        contributions=contributions,
        background=background,
        seeds=[1, 2],
        perturbations=4,
        noise=0.1,
        within=within,
        top=2,
    )


def test_an_explanation_that_never_changes_is_stable() -> None:
    found = stability_of(steady, lambda x: np.zeros(len(x)))
    assert found.mean.tolist() == [1, 1]
    assert found.lipschitz.tolist() == [0, 0]


def test_an_explanation_that_jumps_is_unstable() -> None:
    calls = iter(range(10))

    def fickle(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = next(calls) == 0
        return np.tile([9.0, 5.0, 0.0] if first else [0.0, 5.0, 9.0], (len(x), 1)), np.zeros(len(x))

    # Two features each, one of them shared: a third.
    assert stability_of(fickle, lambda x: np.zeros(len(x))).mean == pytest.approx([1 / 3, 1 / 3])


def test_perturbations_that_change_the_prediction_do_not_count() -> None:
    found = stability_of(steady, lambda x: 1e6 * x[:, 0])
    assert np.isnan(found.jaccard).all()
    assert np.isnan(found.mean).all()


def test_median_absolute_deviation_leaves_unknown_values_out() -> None:
    values = np.array([[1.0, np.nan], [2.0, np.nan], [4.0, np.nan], [np.nan, np.nan]])
    assert quality.median_absolute_deviation(values).tolist() == [1, 0]


def test_rank_correlation_looks_at_sizes() -> None:
    got = quality.rank_correlation(floats([1, -2, 3], [1, 2, 3]), floats([10, 20, -30], [3, 2, 1]))
    assert got == pytest.approx([1, -1])


def test_repeats_that_agree_overlap_fully() -> None:
    assert quality.pairwise_overlap(np.tile([3.0, 2.0, 1.0], (4, 1)), top=2) == 1.0
    assert quality.pairwise_overlap(floats([3, 2, 0], [0, 2, 3]), top=2) == 0.5


def test_an_account_is_drawn_as_a_whole() -> None:
    draws = quality.bootstrap_means(np.array([0.0, 0.0, 1.0, 1.0]), ["a", "a", "b", "b"], rounds=200, seed=1)
    assert set(draws) == {0.0, 0.5, 1.0}
    alone = quality.bootstrap_means(np.array([0.0, 1.0]), ["a", "a"], rounds=20, seed=1)
    assert set(alone) == {0.5}


def test_the_interval_of_one_row_holds_its_index() -> None:
    found = quality.Deletion(np.array([0.1]), np.array([[0.4, 0.5, 0.6]]), np.array([0.9]))
    stable = quality.Stability(np.array([[1.0, 0.5, np.nan]]), np.array([0.0]))
    parts = perfect() | {"faithfulness": np.clip(found.skill, 0, 1), "stability": stable.mean}
    index = quality.explainability_index(np.array([True]), parts)[0]
    draws = quality.bootstrap_index(np.array([True]), parts, found, stable, rounds=200, seeds=[5])
    assert draws.min() < index < draws.max()


contributions = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.floats(-100, 100))


@given(contributions)
@settings(max_examples=50, deadline=None)
def test_components_lie_between_0_and_1(values: np.ndarray) -> None:
    shares = [
        quality.sparsity(values),
        quality.documented_share(values, np.arange(values.shape[1]) % 2 == 0),
        quality.overlap(quality.top_features(values), quality.top_features(values[:, ::-1])),
    ]
    for share in shares:
        known = share[np.isfinite(share)]
        assert ((known >= -1e-12) & (known <= 1 + 1e-12)).all()


@given(contributions, st.floats(0.001, 1000))
@settings(max_examples=50, deadline=None)
def test_the_unit_of_contributions_does_not_matter(values: np.ndarray, factor: float) -> None:
    assert (quality.top_features(values) == quality.top_features(values * factor)).all() or (values != 0).sum() == 0
