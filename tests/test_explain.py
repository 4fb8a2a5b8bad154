"""Stage explain as a whole, on a small project: what it writes, from what, and what it never writes."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from reperform import detectors, ensemble, explain, figures, paths, schemas, tables
from reperform.explain import results
from reperform.figures import explain as draw
from reperform.params import ExplainParams

FEATURES = ["pass_through_72h", "velocity_n_24h", "amount_log", "time_is_night"]
START = datetime(2025, 1, 1, tzinfo=UTC)
CALENDAR = """
split:
  train_days: 40
  train_until: '2025-02-09'
  label_delay_days: 3
  label_maturity_days: 10
  validation_days: 10
  test_from: '2025-02-20'
  test_days: 30
  drop_known_compromised: false
"""
N, PER_DAY = 1400, 20
SETTINGS = ExplainParams(
    seed=7,
    max_alerts=50,
    non_alerts=10,
    background_rows=100,
    sampled_shap_rows=10,
    lime_samples=200,
    lime_repeat_rows=3,
    lime_repeat_seeds=3,
    top_features=3,
    perturbations=5,
    perturbation_noise=0.1,
    same_prediction_within=0.05,
    random_orders=3,
    neighbours=3,
    sanity_rows=600,
    bootstrap_rounds=50,
    interval=0.95,
)
TRUTH = {"is_anomaly", "typology", "event_id", "misstatement"}


def features() -> tuple[pl.DataFrame, np.ndarray]:
    """70 days of transactions; an anomaly passes money through at a high rate, at any amount."""
    draw_from = np.random.default_rng(0)
    x = np.column_stack(
        [
            draw_from.uniform(0, 1, N),
            draw_from.poisson(2, N).astype(float),
            draw_from.normal(4, 1, N),
            (draw_from.uniform(0, 1, N) < 0.2).astype(float),
        ]
    )
    y = (x[:, 0] > 0.8) & (x[:, 1] >= 4)
    x[draw_from.uniform(0, 1, N) < 0.05, 2] = np.nan
    booked = [START + timedelta(minutes=72 * i) for i in range(N)]
    keys = {
        "transaction_id": [f"t{i:04d}" for i in range(N)],
        "account_id": [f"a{i % 37:02d}" for i in range(N)],
        "counterparty_id": ["c"] * N,
        "entity_id": ["bank"] * N,
        "booked_at": booked,
    }
    frame = pl.DataFrame(keys).with_columns(pl.col("booked_at").cast(schemas.UTC_US))
    columns = [pl.Series(name, x[:, i]).fill_nan(None) for i, name in enumerate(FEATURES)]
    return frame.with_columns(columns), y


def transactions(frame: pl.DataFrame) -> pl.DataFrame:
    constant = {
        "direction": "out",
        "currency": "EUR",
        "channel": "transfer",
        "country": "DE",
        "source_file": "bank/january.csv",
    }
    filled = frame.with_columns(
        known_at="booked_at",
        amount=pl.lit(100.0),
        amount_base=pl.lit(100.0),
        latitude=pl.lit(None, pl.Float64),
        longitude=pl.lit(None, pl.Float64),
        balance_after=pl.lit(None, pl.Float64),
        source_record=pl.int_range(pl.len(), dtype=pl.Int64),
        **{name: pl.lit(value) for name, value in constant.items()},
    )
    return filled.select(pl.col(name).cast(kind) for name, kind in schemas.polars_schema(schemas.TRANSACTIONS).items())


def split_names(frame: pl.DataFrame) -> pl.Expr:
    test = pl.lit(datetime(2025, 2, 20, tzinfo=UTC), schemas.UTC_US)
    return pl.when(pl.col("booked_at") >= test).then(pl.lit("test")).otherwise(pl.lit("validation"))


def scores_of(name: str, frame: pl.DataFrame, values: np.ndarray) -> pl.DataFrame:
    return frame.select(
        "transaction_id",
        filing_id=pl.lit(None, pl.String),
        split=split_names(frame),
        detector=pl.lit(name),
        score=pl.Series(values),
        probability=pl.lit(None, pl.Float64),
        is_alert=pl.lit(None, pl.Boolean),
    )


def write_project(members: list[str], share: float) -> None:
    """Everything that stage explain reads, made by the project's own detectors and ensemble."""
    frame, y = features()
    x = np.column_stack([frame[name].fill_null(np.nan).to_numpy() for name in FEATURES])
    learns = (frame["booked_at"] < datetime(2025, 2, 10, tzinfo=UTC)).to_numpy()
    tables.write_table(frame, "featurize", "features")
    dictionary = [
        {"name": name, "kpi": f"KPI of {name}", "kpi_number": i + 1, "family": "f", "formula": name, "unit": "x"}
        for i, name in enumerate(FEATURES)
    ]
    tables.write_json(dictionary, "featurize", "dictionary")
    tables.write_table(transactions(frame), "validate", "transactions")
    labels = frame.filter(pl.Series(y)).select(
        "transaction_id",
        is_anomaly=pl.lit(value=True),
        typology=pl.lit("mule"),
        confirmed_at=pl.col("booked_at") + pl.duration(days=1),
    )
    tables.write_table(labels, "validate", "labels")
    wide = {}
    for name in members:
        plain = {"n_estimators": 15} | ({"max_bin": 64} if name == "xgboost" else {})
        detector = detectors.build(name, plain, features=FEATURES, seed=1)
        detector.fit(x[learns].astype(np.float32), y[learns].astype(np.int8))
        detectors.save(detector, paths.data("train") / name / "model")
        wide[name] = detector.score(x.astype(np.float32))
        tables.write_table(scores_of(name, frame, wide[name]), f"train/{name}", "scores")
        tables.write_json({"features": FEATURES, "parameters": plain, "seed": 1}, f"train/{name}", "fit")
    write_ensemble(frame, y, wide, share)


def write_ensemble(frame: pl.DataFrame, y: np.ndarray, wide: dict[str, np.ndarray], share: float) -> None:
    model = {
        "intercept": -1.0,
        "members": [
            {
                "detector": name,
                "weight": 1.0,
                "scale": {"scores": [float(values.min()), float(values.max())], "values": [0.0, 3.0]},
            }
            for name, values in wide.items()
        ],
    }
    margin = ensemble.margins(model, wide)
    threshold = float(np.quantile(margin, 1 - share))
    tables.write_json(model, "ensemble", "model")
    tables.write_json({"detectors": {"ensemble": {"threshold": threshold}}}, "ensemble", "thresholds")
    scores = scores_of("ensemble", frame, margin).with_columns(
        probability=pl.Series(1 / (1 + np.exp(-margin))), is_alert=pl.Series(margin >= threshold)
    )
    tables.write_table(scores, "ensemble", "scores")
    tables.write_table(alerts_of(frame, scores, y), "evaluate", "alerts")


def alerts_of(frame: pl.DataFrame, scores: pl.DataFrame, y: np.ndarray) -> pl.DataFrame:
    rows = frame.with_columns(is_anomaly=pl.Series(y), typology=pl.lit("mule"), amount_base=pl.lit(100.0))
    joined = rows.join(
        scores.filter((pl.col("split") == "test") & pl.col("is_alert")).select(
            "transaction_id", "score", "probability"
        ),
        on="transaction_id",
        how="inner",
        maintain_order="left",
    ).sort("score", "transaction_id", descending=[True, False])
    return joined.with_columns(day=pl.col("booked_at").dt.date(), rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))


def new_project(folder: Path) -> Path:
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text(CALENDAR)
    return folder


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(new_project(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, explain.Result]]:
    """A project whose alerts were explained, and what the stage returned; tests only read it."""
    folder = new_project(tmp_path_factory.mktemp("explained"))
    with contextlib.chdir(folder):
        write_project(["xgboost", "isolation_forest"], share=0.02)
        yield folder, explain.run(SETTINGS)


@pytest.fixture
def boosted(explained: tuple[Path, explain.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same project to change and to explain again."""
    shutil.copytree(explained[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**changes: Any) -> ExplainParams:
    return ExplainParams(**({name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__} | changes))


def keys_in(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield str(key)
            yield from keys_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from keys_in(value)


def hashes(root: Path) -> dict[str, str]:
    files = sorted((root / "data" / "explain").iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_every_alert_gets_shap_lime_and_a_receipt(explained: tuple[Path, explain.Result]) -> None:
    _, result = explained
    alerts = pl.read_parquet(explained[0] / "data/evaluate/alerts.parquet")
    assert alerts.height > 3
    assert [r["transaction"]["transaction_id"] for r in result.receipts["receipts"]] == alerts[
        "transaction_id"
    ].to_list()
    counts = result.attributions.group_by("transaction_id", "method", maintain_order=True).len()["len"]
    assert counts.to_list() == [len(FEATURES)] * 2 * alerts.height
    assert dict(result.attributions.schema) == results.ATTRIBUTIONS
    # What makes an anomaly here leads every alert's explanation.
    first = result.attributions.filter((pl.col("rank") == 1) & (pl.col("method") == "shap"))["feature"]
    assert set(first) <= {"pass_through_72h", "velocity_n_24h"}


def test_contributions_and_members_add_up_to_the_published_scores(explained: tuple[Path, explain.Result]) -> None:
    _, result = explained
    scores = pl.read_parquet(explained[0] / "data/train/xgboost/scores.parquet")
    published = dict(scores.select("transaction_id", "score").iter_rows())
    for one in result.receipts["receipts"]:
        model, name = one["explained_member"], one["transaction"]["transaction_id"]
        assert model["score"] == published[name]
        assert model["base"] + model["sum_of_contributions"] == pytest.approx(published[name], abs=1e-3)
        margin = one["intercept"] + sum(m["contribution"] for m in one["members"])
        assert margin == pytest.approx(one["alert"]["score"])
    assert result.quality["additivity_failures"] == []
    assert result.quality["populations"]["both"]["additivity"]["estimate"] == 1.0


def test_a_score_that_was_tampered_with_fails_the_gate_and_is_named(boosted: Path) -> None:
    alerts = tables.read_table("evaluate", "alerts")
    victim = alerts["transaction_id"][0]
    scores = tables.read_table("train/xgboost", "scores")
    moved = pl.when(pl.col("transaction_id") == victim).then(pl.col("score") + 0.01).otherwise(pl.col("score"))
    tables.write_table(scores.with_columns(moved.alias("score")), "train/xgboost", "scores")
    result = explain.run(SETTINGS)
    assert result.quality["additivity_failures"] == [victim]
    row = result.explainability.row(by_predicate=pl.col("transaction_id") == victim, named=True)
    assert (row["additivity"], row["index"]) == (0.0, 0.0)
    limits = " ".join(result.receipts["receipts"][0]["does_not_show"])
    assert "do not add up" in limits


def test_receipts_hold_no_truth(explained: tuple[Path, explain.Result]) -> None:
    document = json.loads((explained[0] / "data/explain/receipts.json").read_text())
    assert document["receipts"]
    assert not TRUTH & set(keys_in(document))
    assert "mule" not in json.dumps(document)
    for file in (explained[0] / "data" / "explain").glob("*.parquet"):
        assert not TRUTH & set(pl.read_parquet_schema(file))


def test_another_truth_beside_the_alerts_changes_nothing(boosted: Path) -> None:
    before = hashes(boosted)
    alerts = tables.read_table("evaluate", "alerts")
    tables.write_table(alerts.with_columns(is_anomaly=~pl.col("is_anomaly"), typology=None), "evaluate", "alerts")
    explain.run(SETTINGS)
    assert hashes(boosted) == before


def test_the_same_inputs_give_the_same_bytes(boosted: Path) -> None:
    before = hashes(boosted)
    shutil.rmtree(boosted / "data" / "explain")
    explain.run(SETTINGS)
    assert hashes(boosted) == before
    assert set(before) == {
        "attributions.parquet",
        "explainability.parquet",
        "importance.parquet",
        "importance_by_kpi.parquet",
        "members.parquet",
        "quality.json",
        "receipts.json",
    }


def test_a_cut_is_said_and_does_not_change_what_is_left(explained: tuple[Path, explain.Result], boosted: Path) -> None:
    _, whole = explained
    cut = explain.run(settings(max_alerts=2))
    assert cut.receipts["left_out"] == whole.receipts["alerts"] - 2 > 0
    assert cut.receipts["receipts"][1]["features"] == whole.receipts["receipts"][1]["features"]
    ids = cut.attributions["transaction_id"].unique(maintain_order=True).to_list()
    assert cut.attributions.equals(whole.attributions.filter(pl.col("transaction_id").is_in(ids)))


def test_alerts_and_random_non_alerts_are_measured(explained: tuple[Path, explain.Result]) -> None:
    _, result = explained
    table = result.explainability
    assert table.filter(pl.col("population") == "non_alerts").height == SETTINGS.non_alerts
    alerts = set(pl.read_parquet(explained[0] / "data/evaluate/alerts.parquet")["transaction_id"])
    assert not alerts & set(table.filter(pl.col("population") == "non_alerts")["transaction_id"])
    for population in ("alerts", "non_alerts", "both"):
        found = result.quality["populations"][population]
        for name in ("index", "faithfulness", "stability", "agreement", "sparsity", "confidence", "documented"):
            assert found[name]["low"] <= found[name]["estimate"] <= found[name]["high"]
    mean = table.filter(pl.col("population") == "alerts")["index"].mean()
    assert result.quality["populations"]["alerts"]["index"]["estimate"] == pytest.approx(mean)


def test_explanations_follow_what_was_learned(explained: tuple[Path, explain.Result]) -> None:
    _, result = explained
    found = result.quality["sanity"]["permuted_labels"]
    assert found["permuted_labels"]["estimate"] < found["true_labels"]["estimate"]
    assert found["anomalies_fitted"] > 0


def test_a_feature_that_moved_since_training_shows_on_random_transactions(boosted: Path) -> None:
    frame = tables.read_table("featurize", "features")
    later = pl.col("booked_at") >= pl.lit(datetime(2025, 2, 20, tzinfo=UTC), schemas.UTC_US)
    high = pl.when(later).then(0.9).otherwise(pl.col("pass_through_72h"))
    tables.write_table(frame.with_columns(high.alias("pass_through_72h")), "featurize", "features")
    first = explain.run(SETTINGS).quality["sanity"]["shared_shift"][0]
    assert first["feature"] == "pass_through_72h"
    assert first["is_shifted"]
    assert first["mean_shift"]["estimate"] > 0.25


def test_without_drift_no_feature_moves_random_transactions_far(explained: tuple[Path, explain.Result]) -> None:
    _, result = explained
    shifts = [one["mean_shift"]["estimate"] for one in result.quality["sanity"]["shared_shift"]]
    assert max(np.abs(shifts)) < 0.2


def test_a_feature_without_a_formula_counts_as_undocumented(boosted: Path) -> None:
    dictionary = tables.read_json("featurize", "dictionary")
    dictionary[0]["formula"] = ""
    tables.write_json(dictionary, "featurize", "dictionary")
    found = explain.run(SETTINGS).quality["populations"]["alerts"]["documented"]["estimate"]
    assert 0 < found < 1


def test_importance_sums_to_one_by_population_and_by_kpi(explained: tuple[Path, explain.Result]) -> None:
    _, result = explained
    importance = result.importance
    by_kpi = results.importance_by_kpi(importance)
    for table in (importance, by_kpi):
        shares = table.sort("population").group_by("population", maintain_order=True).agg(pl.col("share").sum())
        assert shares["share"].to_list() == pytest.approx([1.0, 1.0])
    assert by_kpi["features"].to_list() == [1] * 8


def test_without_boosted_trees_the_heaviest_member_is_explained_by_sampling(small: Path) -> None:
    write_project(["isolation_forest"], share=0.005)
    result = explain.run(settings(non_alerts=3))
    assert result.receipts["detector"] == "isolation_forest"
    assert "permutation" in result.quality["method"]
    assert result.quality["additivity_failures"] == []
    assert result.quality["sanity"]["permuted_labels"]["reason"] == "isolation_forest does not learn from labels"


def test_a_member_without_weight_is_not_explained(boosted: Path) -> None:
    model = tables.read_json("ensemble", "model")
    model["members"][0]["weight"] = 0.0
    tables.write_json(model, "ensemble", "model")
    assert explain.run(settings(max_alerts=1, non_alerts=1)).receipts["detector"] == "isolation_forest"


def test_a_run_without_alerts_measures_other_rows(boosted: Path) -> None:
    tables.write_table(tables.read_table("evaluate", "alerts").clear(), "evaluate", "alerts")
    result = explain.run(SETTINGS)
    assert result.receipts["receipts"] == []
    assert result.attributions.is_empty()
    assert result.quality["populations"]["alerts"]["index"] == {"estimate": None, "low": None, "high": None, "n": 0}
    assert result.quality["populations"]["non_alerts"]["index"]["estimate"] > 0
    assert result.quality["populations"]["both"]["index"]["estimate"] is None


def empty_project() -> None:
    tables.write_table(tables_of_no_alerts(), "evaluate", "alerts")
    tables.write_table(schemas.empty(schemas.SCORES), "ensemble", "scores")
    tables.write_json({"members": [], "intercept": 0.0}, "ensemble", "model")


def tables_of_no_alerts() -> pl.DataFrame:
    frame, y = features()
    return alerts_of(frame, scores_of("ensemble", frame, np.zeros(N)).with_columns(is_alert=pl.lit(value=False)), y)


def test_a_run_without_transactions_writes_empty_tables_that_say_so(small: Path) -> None:
    empty_project()
    result = explain.run(SETTINGS)
    assert result.receipts == {"alerts": 0, "detector": None, "explained": 0, "left_out": 0, "receipts": []}
    assert tables.read_table("explain", "attributions").schema == pl.Schema(results.ATTRIBUTIONS)
    assert tables.read_json("explain", "quality")["populations"]["both"]["index"]["n"] == 0


@pytest.mark.parametrize("make", [empty_project, lambda: write_project(["xgboost"], share=0.02)], ids=["empty", "full"])
def test_figures_draw_whatever_there_is(small: Path, make: Callable[[], None]) -> None:
    make()
    result = explain.run(settings(max_alerts=3))
    drawn = [
        draw.importance(result.importance),
        draw.agreement(result.attributions, result.explainability),
        draw.components(result.quality),
        *(draw.waterfall(one) for one in result.receipts["receipts"][:1]),
    ]
    for i, figure in enumerate(drawn):
        assert isinstance(figure, Figure)
        assert figures.save(figure, small / f"{i}.png").stat().st_size > 1000
