"""conf/ is the source, params.yaml is made from it, and no stage goes on when the two differ."""

from pathlib import Path

import pytest

from reperform import compose, params
from reperform.errors import ReperformError
from tests.conftest import ROOT

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def test_committed_params_are_what_conf_composes_to() -> None:
    content = params.raw(ROOT / "params.yaml")
    origin = params.build(params.ComposeParams, content["compose"], "params.yaml:compose")
    expected = compose.composed(ROOT / "conf", origin.experiment, tuple(origin.overrides))
    assert compose.differences(expected, content) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_to_valid_parameters(experiment: str) -> None:
    content = compose.composed(ROOT / "conf", experiment)
    params.check_all(content, where=experiment)
    assert content["compose"]["experiment"] == experiment


def test_single_values_and_whole_groups_can_be_overridden() -> None:
    content = compose.composed(ROOT / "conf", None, ("split=handbook", "split.test_days=14"))
    assert str(content["split"]["test_from"]) == "2018-08-08"
    assert content["split"]["test_days"] == 14


def test_composing_twice_gives_the_same_text(project: Path) -> None:
    first = compose.write().read_bytes()
    assert compose.write().read_bytes() == first


def test_edited_conf_is_refused_until_params_are_composed_again(project: Path) -> None:
    compose.write()
    compose.run()
    split = project / "conf" / "split" / "demo.yaml"
    split.write_text(split.read_text().replace("test_days: 30", "test_days: 29"))
    with pytest.raises(ReperformError, match=r"split\.test_days: conf/ says 29, params\.yaml says 30"):
        compose.run()
    compose.write()
    compose.run()
    assert (project / "data" / "compose" / "agreed.txt").read_text() == compose.AGREED


def test_inside_an_experiment_dvc_has_composed_already(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compose.write(overrides=("split.test_days=12",))
    text = (
        params.paths.params_file()
        .read_text()
        .replace("- split.test_days=12", "")
        .replace("overrides:", "overrides: []")
    )
    params.paths.params_file().write_text(text)
    with pytest.raises(ReperformError, match="older than conf"):
        compose.run()
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    compose.run()
    assert (project / "data" / "compose" / "agreed.txt").is_file()


def test_unknown_experiment_names_those_that_exist() -> None:
    with pytest.raises(ReperformError, match="handbook"):
        compose.composed(ROOT / "conf", "hanbook")


def test_unknown_key_names_its_nearest_neighbour(project: Path) -> None:
    with pytest.raises(ReperformError, match="did you mean test_days"):
        compose.write(overrides=("+split.test_day=3",))


def test_differences_name_the_place() -> None:
    got = compose.differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    assert got == ["a.c: conf/ says 2, params.yaml says 3"]
