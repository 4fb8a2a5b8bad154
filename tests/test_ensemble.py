"""The stack is additive, calibrated, and never worse on validation than its best member."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from reperform import ensemble, params, schemas, tables
from reperform.errors import ReperformError
from reperform.featurize.filings import FILING_KPIS
from tests.test_split import CALENDAR, day, labels

MEMBERS = ["xgboost", "isolation_forest"]


def validation(n: int = 4000, *, helpful: bool = True, anomalies: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Members' values and labels: the first member is good, the second adds something new, or only noise."""
    rng = np.random.default_rng(2)
    y = (rng.random(n) < anomalies).astype(np.int8)
    first = rng.normal(size=n) + 2 * y
    second = rng.normal(size=n) + (2 * y if helpful else 0)
    return np.stack([first, second], axis=1), y


def frame_of(values: np.ndarray, y: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores of the validation days (the 17th to the 20th), test rows after them, and labels a day later."""
    n = len(y)
    booked = [day(17) + (day(21) - day(17)) / n * i for i in range(n)]
    scores = pl.DataFrame(
        {"transaction_id": [f"v{i}" for i in range(n)], "split": "validation", "booked_at": booked},
        schema_overrides={"booked_at": schemas.UTC_US},
    ).with_columns(**{name: pl.Series(column) for name, column in zip(MEMBERS, values.T, strict=True)})
    test = scores.with_columns(
        pl.format("t{}", pl.int_range(pl.len())).alias("transaction_id"),
        split=pl.lit("test"),
        booked_at=pl.col("booked_at") + pl.duration(days=7),
    )
    confirmed = [(f"v{i}", True, booked[i] + (day(2) - day(1))) for i in np.flatnonzero(y)]
    return pl.concat([scores, test]), labels(*confirmed)


def model_of(calibration: str = "auto", **kind: Any) -> tuple[dict[str, Any], pl.DataFrame, np.ndarray]:
    values, y = validation(**kind)
    scores, known = frame_of(values, y)
    return ensemble.fit(scores, known, MEMBERS, CALENDAR, calibration), scores, y


def test_a_helpful_member_makes_the_stack_better_than_the_best_alone() -> None:
    model, *_ = model_of()
    reached = model["validation"]["average_precision"]
    assert model["method"] == "stack"
    assert min(reached["stack"], reached["stack_crossed"]) >= max(reached["xgboost"], reached["isolation_forest"])
    assert all(one["weight"] > 0 for one in model["members"])


def test_a_stack_that_ranks_worse_gives_way_to_its_best_member(monkeypatch: pytest.MonkeyPatch) -> None:
    values, y = validation(helpful=False)
    honest = ensemble.stacked
    # A stack that listens to noise alone, as an unlucky fit would; the best member by itself is fitted as it should be.
    noise = (np.array([0.0, 1.0]), 0.0)
    monkeypatch.setattr(ensemble, "stacked", lambda v, t: noise if v.shape[1] == 2 else honest(v, t))
    got = ensemble.weighed(values, y, MEMBERS)
    assert got["method"] == "best_member"
    assert "worse than xgboost alone" in got["why"]
    assert got["weights"][0] > 0
    assert got["weights"][1] == 0


@given(st.integers(0, 2**31), st.floats(0, 2), st.floats(0, 2))
@settings(max_examples=25, deadline=None)
def test_never_worse_than_the_best_member_on_validation(seed: int, first: float, second: float) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random(600) < 0.05).astype(np.int8)
    y[:10] = 1
    values = rng.normal(size=(600, 2)) + np.outer(y, [first, second])
    got = ensemble.weighed(values, y, MEMBERS)
    together = average_precision_score(y, values @ got["weights"] + got["intercept"])
    assert together >= max(average_precision_score(y, column) for column in values.T) - 1e-12
    assert (got["weights"] >= 0).all()


def test_with_few_known_anomalies_all_members_weigh_alike_and_there_is_no_probability() -> None:
    model, scores, _ = model_of(anomalies=0.001)
    assert model["method"] == "equal_weights"
    assert "fewer than 10" in model["why"]
    assert [one["weight"] for one in model["members"]] == [0.5, 0.5]
    assert model["calibration"]["method"] == "none"
    assert ensemble.score_table(model, scores, 0.0)["probability"].null_count() == scores.height


def test_the_margin_is_the_sum_of_its_members_contributions() -> None:
    model, scores, _ = model_of()
    given_scores = {name: scores[name].to_numpy() for name in MEMBERS}
    parts = ensemble.contributions(model, given_scores)
    margin = ensemble.margins(model, given_scores)  # without a day between training and test, both fits share a scale
    np.testing.assert_allclose(sum(parts.values()) + model["intercept"], margin)
    assert np.array_equal(ensemble.score_table(model, scores, 0.0)["score"].to_numpy(), margin)


@pytest.mark.parametrize("make", [ensemble.rarity_scale, ensemble.linear_scale])
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2),
)
@settings(max_examples=50, deadline=None)
def test_a_scale_keeps_every_order_also_beyond_what_it_was_fitted_on(
    make: Any, seen: list[float], new: list[float]
) -> None:
    ordered = np.sort(np.array(new, np.float64))
    got = make(np.array(seen, np.float64))(ordered)
    assert np.isfinite(got).all()
    assert (np.diff(got) >= -1e-12).all()


def test_rarity_is_the_share_of_rows_above() -> None:
    scale = ensemble.rarity_scale(np.arange(1, 1001, dtype=float))
    np.testing.assert_allclose(scale(np.array([1000.0, 991.0])), -np.log10([1 / 1001, 10 / 1001]))
    assert scale(np.array([2000.0]))[0] > scale(np.array([1000.0]))[0]


def test_a_member_whose_scores_shift_between_its_fits_keeps_its_say() -> None:
    """The final fit of the second member gives ten times the scores, and its order is what it was."""
    values, y = validation()
    scores, known = frame_of(values, y)
    between = scores.filter(pl.col("split") == "test").with_columns(
        pl.format("d{}", pl.int_range(pl.len())).alias("transaction_id"),
        split=pl.lit("delay"),
        booked_at=pl.lit(CALENDAR.train_end).cast(schemas.UTC_US),
    )
    scores = pl.concat([scores.filter(pl.col("split") == "validation"), between, scores.filter(split="test")])
    is_final = pl.col("split") != "validation"
    shifted = scores.with_columns(
        isolation_forest=pl.when(is_final).then(10 * pl.col("isolation_forest") + 5).otherwise("isolation_forest")
    )
    told = {}
    for name, frame in (("same", scores), ("shifted", shifted)):
        model = ensemble.fit(frame, known, MEMBERS, CALENDAR, "auto")
        table = ensemble.score_table(model, frame, 0.0)
        told[name] = table["score"].to_numpy()
        one, two = (table.filter(split=part)["score"].to_numpy() for part in ("validation", "test"))
        if name == "shifted":
            np.testing.assert_allclose(two, one, atol=0.05)
            given_scores = {m: frame.filter(split="test")[m].to_numpy() for m in MEMBERS}
            np.testing.assert_allclose(ensemble.margins(model, given_scores), two)
    np.testing.assert_allclose(told["shifted"], told["same"], atol=0.05)


def test_a_score_far_beyond_all_others_does_not_outweigh_every_member() -> None:
    scale = ensemble.rarity_scale(np.random.default_rng(0).lognormal(size=5000))
    highest = float(scale.scores[scale.values <= np.log10(5001)][-1])
    inside, tenfold, thousandfold = scale(np.array([highest, 10 * highest, 1000 * highest]))
    assert inside == pytest.approx(np.log10(5001))
    assert inside < tenfold < inside + 1.1
    assert tenfold < thousandfold < inside + 3.1


def test_probabilities_sum_to_the_known_anomalies() -> None:
    # Mature by the 24th after 5 days: the 17th and 18th.
    for method in ("sigmoid", "isotonic"):
        model, scores, y = model_of(method)
        ripe = (scores["split"] == "validation") & (scores["booked_at"] <= day(19))
        probability = ensemble.score_table(model, scores, 0.0).filter(ripe)["probability"]
        expected = y[: ripe.sum()].sum()
        assert model["calibration"]["method"] == method
        assert model["calibration"]["anomalies"] == expected
        assert probability.sum() == pytest.approx(expected, rel=0.02)
        assert probability.is_between(0, 1).all()


def test_calibration_is_isotonic_only_with_a_thousand_anomalies() -> None:
    rng = np.random.default_rng(1)
    for anomalies, expected in ((999, "sigmoid"), (1000, "isotonic")):
        y = np.r_[np.ones(anomalies, np.int8), np.zeros(5000, np.int8)]
        curve = ensemble.calibrated(rng.normal(size=len(y)) + y, y, "auto")
        assert curve is not None
        assert curve.method == expected


def test_labels_of_the_test_period_change_nothing() -> None:
    values, y = validation()
    scores, known = frame_of(values, y)
    late = labels(*((f"v{i}", True, day(24)) for i in range(0, len(y), 3)), ("t1", True, day(25)))
    late = late.filter(~pl.col("transaction_id").is_in(known["transaction_id"].implode()))
    one = ensemble.fit(scores, known, MEMBERS, CALENDAR, "auto")
    assert one == ensemble.fit(scores, pl.concat([known, late]), MEMBERS, CALENDAR, "auto")


@pytest.mark.parametrize(
    ("scores", "share", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.2, 9),  # the two highest
        ([1, 1, 1, 1, 1, 1, 1, 1, 5, 5], 0.1, 5),  # one is allowed, but two are alike: the highest score
        ([1, 2, 2, 3], 0.5, 3),  # two are allowed, but three reach 2
        ([4], 0.005, 4),
    ],
)
def test_threshold_is_reached_by_no_more_than_its_share(scores: list[float], share: float, expected: float) -> None:
    assert ensemble.threshold_at(np.array(scores, float), share) == expected


def test_alerts_on_validation_fill_their_share() -> None:
    model, scores, _ = model_of()
    limits = ensemble.thresholds(model, scores, MEMBERS, 0.01)
    got = ensemble.score_table(model, scores, limits["detectors"]["ensemble"]["threshold"])
    assert got.filter(pl.col("split") == "validation")["is_alert"].sum() == 40
    assert limits["detectors"]["isolation_forest"]["alerts"] == 40


def test_members_that_scored_different_rows_are_refused() -> None:
    values, y = validation(20)
    scores, _ = frame_of(values, y)
    booked = scores.select("transaction_id", "booked_at")
    with pytest.raises(ReperformError, match="scored different rows"):
        ensemble.side_by_side({"xgboost": scores, "isolation_forest": scores.reverse()}, booked)


def write(scores: pl.DataFrame, known: pl.DataFrame, project: Path) -> params.EnsembleParams:
    tables.write_table(scores.select("transaction_id", "booked_at"), "validate", "transactions")
    tables.write_table(known, "validate", "labels")
    tables.write_table(schemas.empty(schemas.FACTS), "validate", "facts")
    tables.write_table(pl.DataFrame(schema=FILING_KPIS), "featurize", "filing_kpis")
    for name in MEMBERS:
        part = scores.select(
            "transaction_id",
            pl.lit(None, pl.String).alias("filing_id"),
            "split",
            pl.lit(name).alias("detector"),
            pl.col(name).alias("score"),
            pl.lit(None, pl.Float64).alias("probability"),
            pl.lit(None, pl.Boolean).alias("is_alert"),
        )
        tables.write_table(schemas.checked(part, schemas.SCORES), f"train/{name}", "scores")
    content = params.raw(project / "params.yaml")["ensemble"] | {"members": MEMBERS}
    return params.build(params.EnsembleParams, content, "ensemble")


def test_the_stage_gives_the_same_bytes_twice(project: Path) -> None:
    settings_ = write(*frame_of(*validation(800)), project)
    contents = []
    for _ in range(2):
        ensemble.run(settings_)
        contents.append({p.name: p.read_bytes() for p in (project / "data" / "ensemble").iterdir()})
    assert contents[0] == contents[1]
    assert {"model.json", "scores.parquet", "thresholds.json", "filing_scores.parquet"} <= set(contents[0])
    assert tables.read_table("ensemble", "scores").height == 1600


def test_the_stage_works_without_transactions(project: Path) -> None:
    scores, known = frame_of(*validation(20))
    model = ensemble.run(write(scores.clear(), known.clear(), project))
    assert (model["method"], model["left_out"]) == ("none", MEMBERS)
    assert tables.read_table("ensemble", "scores").equals(schemas.empty(schemas.SCORES))
