"""Parameters are typed, and a wrong one is explained."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from reperform import params
from reperform.errors import ReperformError
from tests.conftest import ROOT

HANDBOOK = {
    "train_days": 60,
    "train_until": "2018-07-31",
    "label_delay_days": 7,
    "label_maturity_days": 7,
    "validation_days": 7,
    "test_from": "2018-08-08",
    "test_days": 7,
    "drop_known_compromised": True,
}


def test_every_section_of_params_yaml_loads() -> None:
    content = params.raw(ROOT / "params.yaml")
    params.check_all(content, where="params.yaml")
    assert set(params.SECTIONS) - set(params.DEFAULT_SECTIONS) <= set(content)


def test_the_engine_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}\n")
    assert params.load(params.EngineParams, tmp_path / "params.yaml").name == "local"


def test_handbook_calendar_is_the_published_protocol() -> None:
    got = params.build(params.SplitParams, HANDBOOK, "split")
    assert got.train_end == datetime(2018, 8, 1, tzinfo=UTC)
    assert got.validation_start == datetime(2018, 7, 25, tzinfo=UTC)
    assert got.fit_end == datetime(2018, 7, 18, tzinfo=UTC)
    assert (got.test_start, got.test_end) == (datetime(2018, 8, 8, tzinfo=UTC), datetime(2018, 8, 15, tzinfo=UTC))


def test_unknown_key_is_refused_with_its_nearest_neighbours() -> None:
    with pytest.raises(ReperformError, match="did you mean train_until"):
        params.build(params.SplitParams, HANDBOOK | {"train_untill": 3}, "split")


def test_missing_key_is_named() -> None:
    with pytest.raises(ReperformError, match="'test_days' is missing"):
        params.build(params.SplitParams, {k: v for k, v in HANDBOOK.items() if k != "test_days"}, "split")


def test_wrong_value_says_expected_and_got() -> None:
    with pytest.raises(ReperformError, match=r"greater than or equal to 1[\s\S]*got: 0"):
        params.build(params.SplitParams, HANDBOOK | {"test_days": 0}, "split")


def test_unknown_section_is_refused() -> None:
    content = params.raw(ROOT / "params.yaml") | {"splt": {}}
    with pytest.raises(ReperformError, match="did you mean split"):
        params.check_all(content, where="params.yaml")


def test_unknown_detector_names_the_nearest() -> None:
    with pytest.raises(ReperformError, match="did you mean xgboost"):
        params.model("xgbost", ROOT / "params.yaml")


def test_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ReperformError, match="make params"):
        params.raw(tmp_path / "params.yaml")


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("model:\n  a:\n    rate: 1e-3\n")
    assert params.model("a", tmp_path / "params.yaml") == {"rate": 0.001}
