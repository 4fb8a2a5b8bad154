"""What a version of the model consists of: every file with its hash, so that a service finds them again later."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reperform import params, paths, tables, tracking

FORMAT = 1
FEATURES = ("data/featurize/dictionary.json", "data/featurize/fitted.json")
ENSEMBLE = ("data/ensemble/model.json", "data/ensemble/thresholds.json")
HISTORY = (
    "data/featurize/features.parquet",
    "data/validate/accounts.parquet",
    "data/validate/labels.parquet",
    "data/validate/transactions.parquet",
)
SECTIONS = ("featurize", "split")


def described(members: Sequence[str]) -> dict[str, Any]:
    """Files of the model at hand and of the history that it looks back on, each with its MD5, as DVC's cache knows it.

    Args:
        members: detectors of the ensemble; none where no transaction was scored.

    Returns:
        format, members, files and history by path, data_version, and the parameters that features were made with.
    """
    history = {name: _md5(name) for name in HISTORY if (paths.project_root() / name).is_file()}
    files = [*FEATURES, *ENSEMBLE, *(name for member in members for name in _of_member(member))]
    given = params.raw(paths.params_file())
    return {
        "format": FORMAT,
        "members": list(members),
        "files": {name: _md5(name) for name in files} if members else {},
        "history": history,
        "data_version": data_version(history),
        "params": {name: given[name] for name in SECTIONS},
    }


def data_version(history: dict[str, str]) -> str:
    """One short name for the content of several files."""
    text = json.dumps(history, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write() -> Path:
    """Write `data/evaluate/bundle.json`."""
    model = tables.read_json("ensemble", "model")
    return tables.write_json(described([one["detector"] for one in model["members"]]), "evaluate", "bundle")


def _of_member(name: str) -> list[str]:
    folder = paths.data("train") / name
    found = sorted(path for path in (folder / "model").rglob("*") if path.is_file())
    root = paths.project_root()
    return [path.relative_to(root).as_posix() for path in (folder / "fit.json", *found)]


def _md5(name: str) -> str:
    return tracking.file_digest(paths.project_root() / name, "md5")
