"""A version of the model on disk: which files it consists of, and how they come back."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from reperform import paths, tables, tracking
from reperform.errors import ReperformError
from reperform.params import SplitParams, load
from reperform.service import bundle
from tests import service_project as made


def test_a_version_lists_its_files_and_the_registry_knows_the_list(service_project: Path) -> None:
    document = tables.read_json("evaluate", "bundle")
    version = tracking.version("champion")
    assert version.tags[tracking.BUNDLE_TAG] == tracking.file_digest(service_project / tracking.BUNDLE, "md5")
    assert {"data/ensemble/model.json", "data/train/xgboost/fit.json"} <= set(document["files"])
    assert all(
        tracking.file_digest(service_project / name, "md5") == md5
        for name, md5 in {**document["files"], **document["history"]}.items()
    )


def test_what_is_loaded_is_what_was_trained(service_project: Path) -> None:
    found = bundle.load(tracking.version("champion"))
    model = tables.read_json("ensemble", "model")
    assert [(one.name, one.weight) for one in found.members] == [
        (one["detector"], one["weight"]) for one in model["members"]
    ]
    assert found.threshold == tables.read_json("ensemble", "thresholds")["detectors"]["ensemble"]["threshold"]
    assert found.split == load(SplitParams)
    assert found.explained == "xgboost"
    assert found.context_rows == 15
    names = list(found.dictionary)
    for one in found.members:
        fit = tables.read_json(f"train/{one.name}", "fit")
        assert [names[column] for column in one.columns] == fit["features"]


def test_a_later_run_leaves_an_earlier_version_as_it_was(service_project: Path) -> None:
    before = bundle.load(tracking.version("champion"))
    again = made.another_version(alert_share=0.05)
    after = bundle.load(tracking.version(str(again)))
    assert after.threshold < before.threshold
    assert bundle.load(tracking.version("1")).threshold == before.threshold
    assert after.fingerprint == before.fingerprint
    assert after.data_version == before.data_version
    assert after.folder != before.folder


def test_a_version_whose_files_are_no_longer_in_the_workspace_comes_from_dvcs_cache(service_project: Path) -> None:
    made.another_version(alert_share=0.05)
    version = tracking.version("1")
    loaded = bundle.load(version)
    kept = json.loads((loaded.folder / bundle.DOCUMENT).read_text())["files"]["data/ensemble/thresholds.json"]
    assert tracking.file_digest(service_project / "data/ensemble/thresholds.json", "md5") != kept
    assert tracking.file_digest(loaded.folder / "data/ensemble/thresholds.json", "md5") == kept


def test_a_file_that_is_nowhere_is_named_with_what_to_do(service_project: Path) -> None:
    document = tables.read_json("evaluate", "bundle")
    md5 = document["files"]["data/train/xgboost/fit.json"]
    (service_project / "data/train/xgboost/fit.json").unlink()
    (service_project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(ReperformError, match=r"data/train/xgboost/fit\.json[\s\S]*dvc fetch"):
        bundle.load(tracking.version("champion"))


def test_a_file_that_was_changed_in_the_cache_is_not_believed(service_project: Path) -> None:
    document = tables.read_json("evaluate", "bundle")
    md5 = document["files"]["data/ensemble/model.json"]
    (service_project / "data/ensemble/model.json").write_text("{}")
    (service_project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).write_text("{}")
    with pytest.raises(ReperformError, match="a damaged file"):
        bundle.load(tracking.version("champion"))


def test_what_was_brought_once_is_mended_when_it_was_changed(service_project: Path) -> None:
    folder = bundle.load(tracking.version("champion")).folder
    target = folder / "data/ensemble/thresholds.json"
    target.unlink()
    target.write_text("{}")
    assert bundle.load(tracking.version("champion")).threshold is not None
    assert target.read_bytes() == (service_project / "data/ensemble/thresholds.json").read_bytes()


def test_a_version_of_an_earlier_release_is_refused_with_what_to_do(service_project: Path) -> None:
    version = tracking.version("champion")
    old = tracking.Version(7, (), {}, {}, version.run_id)
    with pytest.raises(ReperformError, match=r"Version 7 does not say[\s\S]*dvc repro evaluate"):
        bundle.load(old)


def test_a_run_without_transactions_has_nothing_to_score_with(service_project: Path) -> None:
    tables.write_json({"members": [], "intercept": 0.0}, "ensemble", "model")
    from reperform.evaluate import bundle as described  # noqa: PLC0415  # pulls in the metrics

    path = described.write()
    made.keep_in_cache()
    with pytest.raises(ReperformError, match="nothing to score with"):
        bundle.materialised(tracking.file_digest(path, "md5"), "this version")


def test_the_base_ends_where_it_is_told_to(service_project: Path) -> None:
    folder = bundle.load(tracking.version("champion")).folder
    until = load(SplitParams).test_start
    every, some = bundle.Base(folder), bundle.Base(folder, until)
    rows = some.transactions()
    assert 0 < rows.height < every.transactions().height
    assert rows["known_at"].max() < until  # type: ignore[operator]  # a time
    labels, labelled = some.labels()
    assert labels.height < every.labels()[0].height
    assert labelled
    assert some.accounts().height == 100
    whole = tables.read_table("featurize", "features").filter(
        pl.col("transaction_id").is_in(rows["transaction_id"].implode())
    )
    names = whole.columns[5:90]
    assert some.features(rows, names).equals(whole.select(names))
    numbers = some.vectors(rows, np.array([3, 0]), names)
    assert np.array_equal(
        numbers, whole.select(names)[[3, 0]].cast(pl.Float32).to_numpy().astype(np.float32), equal_nan=True
    )


def test_features_of_another_run_are_refused(service_project: Path) -> None:
    base = bundle.Base(bundle.load(tracking.version("champion")).folder)
    rows = base.transactions().head(3).with_columns(transaction_id=pl.lit("unknown") + pl.int_range(3).cast(pl.String))
    with pytest.raises(ReperformError, match="3 transactions without features"):
        base.features(rows, ["velocity_n_24h"])
    assert paths.project_root() == service_project


def test_what_no_process_has_loaded_for_long_is_removed_and_comes_back_when_it_is_needed(service_project: Path) -> None:
    version = tracking.version("champion")
    folder = bundle.load(version).folder
    assert bundle.tidy() == []
    os.utime(folder, (0, 0))
    assert bundle.tidy() == [folder.name]
    assert not folder.exists()
    assert bundle.load(version).folder == folder
    assert bundle.tidy() == []
