"""Two versions on the same rows and days; a champion only by the written rule; decisions are kept."""

import hashlib
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reperform import audit, compare, params, promote, schemas, tracking
from reperform.errors import ReperformError
from reperform.params import PromotionParams
from tests.conftest import ROOT

START = datetime(2025, 6, 1, tzinfo=UTC)
RULE = PromotionParams(confidence=0.95, largest_typology_loss=0.1, least_anomalies=5, bootstrap_rounds=200)


def outcomes(quality: float, *, seed: int = 0, n: int = 2000, days: int = 20) -> pl.DataFrame:
    """Scores that tell anomalies from the rest the better, the higher `quality` is."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 20 == 0
    noise = np.random.default_rng(99).normal(size=n)
    score = noise + quality * truth + 0.01 * rng.normal(size=n)
    return pl.DataFrame(
        {
            "transaction_id": [f"t{i:05d}" for i in range(n)],
            "booked_at": [START + timedelta(days=i % days, seconds=i) for i in range(n)],
            "amount_base": np.full(n, 10.0),
            "score": score,
            "is_alert": score >= np.sort(score)[-100],
            "is_anomaly": truth,
            "typology": [("cycle" if i % 40 == 0 else "fan_out") if truth[i] else None for i in range(n)],
        },
        schema_overrides={"booked_at": schemas.UTC_US},
    )


def comparison(before: pl.DataFrame, after: pl.DataFrame) -> compare.Comparison:
    rows = compare.paired(before, after, rounds=200, level=0.9, seed=1)
    sides = (compare.Side("a", "a", before), compare.Side("b", "b", after))
    return compare.Comparison(*sides, rows, compare.differences(rows, [0.05]), compare.by_typology(rows, 1))


# --- compare ---------------------------------------------------------------------------------------------------------


def test_a_version_does_not_differ_from_itself() -> None:
    found = comparison(outcomes(2), outcomes(2))
    for one in found.metrics:
        assert (one.change.estimate, one.change.low, one.change.high, one.share_above) == (0, 0, 0, 0)
    assert all(record["gained"] == record["lost"] == 0 for record in found.typologies)


def test_a_better_version_is_above_in_every_metric() -> None:
    found = comparison(outcomes(1), outcomes(3))
    gain = found.metric("average_precision")
    assert gain.change.low is not None
    assert gain.change.low > 0
    assert gain.share_above == 1
    assert found.metric("recall").after > found.metric("recall").before
    assert found.metric("alerts_per_day").after == 5


def test_the_difference_is_taken_on_the_same_days() -> None:
    """Two nearly equal versions: each alone has a wide interval, their difference a narrow one."""
    found = comparison(outcomes(1, seed=1), outcomes(1, seed=2))
    change = found.metric("average_precision").change
    alone = found.rows
    ranked = compare.metrics.ranking(alone.y, alone.scores[0], alone.day)
    wide = compare.metrics.with_interval(compare.metrics.average_precision, ranked, alone.weights, 0.9)
    assert change.high - change.low < 0.2 * (wide.high - wide.low)


def small(score: list[float], alert: list[bool]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "transaction_id": list("abcd"),
            "booked_at": [START + timedelta(days=d) for d in (0, 0, 1, 1)],
            "amount_base": [100.0, 1.0, 300.0, 1.0],
            "score": score,
            "is_alert": alert,
            "is_anomaly": [True, False, True, False],
            "typology": ["cycle", None, "fan_out", None],
        },
        schema_overrides={"booked_at": schemas.UTC_US},
    )


def test_alerts_gained_and_lost_by_hand() -> None:
    before = small([4, 3, 2, 1], [True, True, False, False])
    after = small([1, 2, 4, 3], [False, False, True, True])
    found = comparison(before, after)
    cycle, fan_out, none = found.typologies
    assert (cycle["typology"], cycle["gained"], cycle["lost"]) == ("cycle", 0, 1)
    assert (cycle["recall_before"], cycle["recall_after"], cycle["change"]) == (1, 0, -1)
    assert (fan_out["gained"], fan_out["lost"], fan_out["change"]) == (1, 0, 1)
    assert (none["typology"], none["gained"], none["lost"]) == ("no anomaly", 1, 1)
    assert found.metric("value_stopped").before == pytest.approx(0.25)
    assert found.metric("value_stopped").after == pytest.approx(0.75)


def test_rows_of_one_side_alone_are_left_out_and_counted() -> None:
    before, after = small([4, 3, 2, 1], [True] * 4).head(3), small([4, 3, 2, 1], [True] * 4).tail(3)
    changed = after.with_columns(is_anomaly=pl.Series([True, True, False]))
    rows = compare.paired(before, changed, rounds=50, level=0.9, seed=1)
    assert (rows.y.size, rows.only_before, rows.only_after, rows.other_truth) == (2, 1, 1, 1)


def test_versions_without_a_common_row_are_refused() -> None:
    other = small([4, 3, 2, 1], [True] * 4).with_columns(pl.col("transaction_id") + "x")
    with pytest.raises(ReperformError, match="no test row of known truth in common"):
        compare.paired(small([4, 3, 2, 1], [True] * 4), other, rounds=50, level=0.9, seed=1)


def test_the_tables_name_both_versions() -> None:
    text = "\n".join(compare.lines(comparison(outcomes(1), outcomes(3))))
    assert "before: a" in text
    assert "average precision" in text
    assert "cycle" in text


# --- where versions come from ----------------------------------------------------------------------------------------


def put(frame: pl.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)
    return path


def cached(frame: pl.DataFrame, project: Path) -> str:
    """A file as DVC's cache keeps it; gives its MD5."""
    path = put(frame, project / "tmp.parquet")
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    target = project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    return md5


def test_a_folder_and_the_workspace_are_versions(project: Path) -> None:
    put(outcomes(1), project / compare.OUTCOMES)
    put(outcomes(2), project / "old" / "evaluate" / "outcomes.parquet")
    assert compare.side("workspace").outcomes.equals(outcomes(1))
    assert compare.side(str(project / "old")).outcomes.equals(outcomes(2))


def test_a_git_revision_is_read_from_dvcs_cache(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "cache_folder", lambda: project / ".dvc" / "cache")
    md5 = cached(outcomes(2), project)
    (project / "dvc.lock").write_text(
        json.dumps({"stages": {"evaluate": {"outs": [{"path": compare.OUTCOMES, "md5": md5}]}}})
    )
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "dvc.lock"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=project, check=True)  # fixed words
    assert compare.side("HEAD").outcomes.equals(outcomes(2))
    (project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(ReperformError, match="not here any more"):
        compare.side("HEAD")


def test_an_unknown_name_is_refused(project: Path) -> None:
    with pytest.raises(ReperformError, match="There is no version 'nonsense'"):
        compare.side("nonsense")


# --- the rule --------------------------------------------------------------------------------------------------------


def test_a_surely_better_version_is_promoted() -> None:
    decision = promote.decide(comparison(outcomes(1), outcomes(3)), RULE)
    assert decision.is_promoted
    assert "above in 100.0% of rounds" in decision.reasons[0]


def test_an_equal_or_worse_version_is_refused_with_the_figures() -> None:
    for after in (outcomes(2), outcomes(1)):
        decision = promote.decide(comparison(outcomes(2), after), RULE)
        assert not decision.is_promoted
        assert "above in 0.0% of rounds, 95% are asked for" in decision.reasons[0]


def one_typology_lost(after: pl.DataFrame) -> pl.DataFrame:
    return after.with_columns(score=pl.when(pl.col("typology") == "cycle").then(-9.0).otherwise("score"))


def test_a_typology_that_is_given_up_refuses_a_better_version() -> None:
    before, after = outcomes(1.2), one_typology_lost(outcomes(6))
    found = comparison(before, after)
    assert found.metric("average_precision").share_above == 1
    decision = promote.decide(found, RULE)
    assert not decision.is_promoted
    assert "recall of cycle" in decision.reasons[0]
    assert "falls by more than 0.1" in decision.reasons[0]


def test_a_typology_with_few_anomalies_is_named_and_not_judged() -> None:
    found = comparison(outcomes(1.2), one_typology_lost(outcomes(6)))
    decision = promote.decide(found, PromotionParams(least_anomalies=51, bootstrap_rounds=200))
    assert decision.is_promoted
    assert decision.not_judged == ("cycle (50 anomalies)", "fan_out (50 anomalies)")


# --- the registry and the log ----------------------------------------------------------------------------------------


@pytest.fixture
def registry(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with version 1 (the champion) and version 2 (better), both recorded as stage evaluate records them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "cache_folder", lambda: project / ".dvc" / "cache")
    shutil.copy(ROOT / "params.yaml", project / "params.yaml")
    for number, quality in enumerate((1.0, 3.0)):
        model = project / tracking.MODEL_FILE
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_text(json.dumps({"number": number}))
        put(outcomes(quality), project / compare.OUTCOMES)
        fit = project / "data/train/xgboost/fit.json"
        fit.parent.mkdir(parents=True, exist_ok=True)
        fit.write_text(json.dumps({"features": [f"feature_{i:03d}" for i in range(400)], "seed": 7}))
        tracking.record({}, {}, tracking.outputs(["xgboost"]))
        cached(outcomes(quality), project)
    return project


def log_of(project: Path) -> list[dict[str, Any]]:
    return audit.read_log(project / "data" / "audit" / audit.LOG)


def test_a_better_version_becomes_champion_and_the_decision_is_kept(
    registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tracking.version("challenger").number == 2
    assert promote.main("challenger", by="A. Person") == 0
    champion = tracking.version("champion")
    assert (champion.number, champion.aliases) == (2, ("champion",))
    assert champion.version_tags["promotion.by"] == "A. Person"
    assert champion.version_tags["promotion.verdict"] == "promoted"
    assert "95% of" in champion.version_tags["promotion.rule"]
    assert json.loads(champion.version_tags["promotion.figures"])[0]["metric"] == "average_precision"
    (entry,) = log_of(registry)
    assert (entry["event"], entry["verdict"], entry["version"], entry["champion_before"]) == (
        "promotion",
        "promoted",
        2,
        1,
    )
    assert "promoted" in capsys.readouterr().out
    assert "version 2 promoted by A. Person" in audit.log_lines([entry])[0]
    # and back: the version that was champion is worse now
    assert promote.main("1", by="B. Person") == 1
    assert tracking.version("champion").number == 2
    assert tracking.version("1").version_tags["promotion.verdict"] == "refused"
    assert [one["verdict"] for one in log_of(registry)] == ["promoted", "refused"]
    with pytest.raises(ReperformError, match="is the champion already"):
        promote.main("champion")
    with pytest.raises(ReperformError, match="no version '9'"):
        promote.main("9")


def test_versions_hold_environment_and_signature(registry: Path) -> None:
    tags = tracking.version("2").tags
    assert tags["environment.python"].count(".") == 2
    assert tags["environment.platform"]
    parts = [tags[f"signature.{i}"] for i in range(sum(name.startswith("signature.") for name in tags) - 1)]
    signature = json.loads("".join(parts))
    assert len(parts) > 1
    assert signature["inputs"]["names"][399] == "feature_399"
    assert signature["outputs"]["score"] == "double"
    assert tags["signature.sha256"] == hashlib.sha256("".join(parts).encode()).hexdigest()
    assert params.load(params.StudiesParams).promotion.confidence == 0.95


def test_a_changed_log_stops_a_promotion_before_anything_moves(registry: Path) -> None:
    log = registry / "data" / "audit" / audit.LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("{}\n")
    with pytest.raises(ReperformError, match="run log has been changed"):
        promote.main("2", by="x")
    assert tracking.version("champion").number == 1
