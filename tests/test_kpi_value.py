"""What each KPI is worth: found by hand on rows where one column tells all, one a part, and one nothing."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from reperform import kpi_value
from reperform.kpi_value import World


def world(seed: int = 0, n: int = 3_000) -> World:
    """KPI 1 tells anomalies (its low end), KPI 2 tells one typology, KPI 3 is noise."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.05
    burst = y & (rng.random(n) < 0.5)
    strong = rng.normal(0, 1, n) - 3 * y
    part = rng.normal(0, 1, n) + 6 * burst
    noise = rng.normal(0, 1, n)
    x = np.stack([strong, noise, part, rng.normal(0, 1, n)], axis=1).astype(np.float32)
    x[rng.random(n) < 0.1, 3] = np.nan
    third = n // 3
    splits = ["train"] * third + ["validation"] * third + ["test"] * (n - 2 * third)
    rows = pl.DataFrame({
        "split": splits,
        "day": [date(2025, 1, 1) + timedelta(days=k * 60 // n) for k in range(n)],
        "is_anomaly": y,
        "typology": ["burst" if b else "drip" if a else None for a, b in zip(y, burst, strict=True)],
    })  # fmt: skip
    known = np.where(np.arange(n) < third, y, -1).astype(np.int8)
    return World(x, ["strong", "noise_1", "part", "noise_2"], [1, 1, 2, 3], known, rows)


@pytest.fixture(scope="module")
def table() -> list[dict]:  # type: ignore[type-arg]  # records
    return kpi_value.value_table(world())


def test_one_record_per_kpi_and_period(table: list[dict]) -> None:  # type: ignore[type-arg]
    assert [(r["kpi_number"], r["period"]) for r in table] == [
        (k, p) for k in (1, 2, 3) for p in ("validation", "test")
    ]


def test_the_best_column_is_chosen_with_its_sign(table: list[dict]) -> None:  # type: ignore[type-arg]
    assert [r["column"] for r in table[::2]][:2] == ["low strong", "part"]


def test_a_kpi_that_tells_helps_and_noise_helps_nowhere(table: list[dict]) -> None:  # type: ignore[type-arg]
    strong, part, noise = table[::2]
    assert strong["verdict"] == part["verdict"] == "alone and in the model"
    assert noise["verdict"] == "nowhere"
    assert strong["precision"] > 0.5 > noise["precision"]
    assert strong["fall_low"] > 0
    assert noise["fall_low"] <= 0


def test_a_typology_is_found_by_the_kpi_that_sees_it(table: list[dict]) -> None:  # type: ignore[type-arg]
    part = table[2]["typologies"]
    assert part["burst"]["recall"] > 0
    assert part["drip"]["recall"] == 0
    assert part["burst"]["n"] + part["drip"]["n"] == table[2]["anomalies"]


def test_without_training_anomalies_nothing_is_claimed() -> None:
    blind = world()
    blind.y[:] = np.minimum(blind.y, 0)
    assert kpi_value.value_table(blind) == []


def test_nothing_of_validation_or_test_is_learned_from() -> None:
    one, other = world(), world()
    other.x[1000:] = np.random.default_rng(9).normal(size=other.x[1000:].shape).astype(np.float32)
    train = kpi_value.training_rows(one.y, 0)
    assert train.max() < 1000
    at = np.arange(1000)
    scores = [kpi_value.boosted(w, [0, 1, 2, 3], train, 0)(at) for w in (one, other)]
    assert np.array_equal(*scores)


def test_unknown_values_are_the_lowest_scores() -> None:
    assert kpi_value.single(np.array([np.nan, 2.0, 1.0], np.float32), -1).tolist() == [-3.0, -2.0, -1.0]


def test_the_page_says_who_helps_nowhere(table: list[dict]) -> None:  # type: ignore[type-arg]
    stored = {"demo": {"command": "c", "date": "2025-01-01", "commit": "abc", "records": table}, "void": {
        "command": "c", "date": "2025-01-01", "commit": "abc", "records": []}}  # fmt: skip
    text = kpi_value.page(stored, {1: "One", 2: "Two", 3: "Three"})
    assert "Helps nowhere in this window: 3 Three." in text
    assert text.count("No anomalies are known in this window.") == 2
    assert "| burst (" in text
    assert "KPI 15: describes explanations" in text
