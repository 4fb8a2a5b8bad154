"""Detectors: one small contract, and a plain dict of names.

To add one, write a module with a subclass of `Detector` and put it into `DETECTORS`; `docs/how-to/add-a-detector.md`
goes through it step by step.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reperform import tables
from reperform.detectors.autoencoder import LstmAutoencoderDetector
from reperform.detectors.base import Detector, TellsTypologies, check_parameters
from reperform.detectors.boosting import BoostingDetector
from reperform.detectors.isolation_forest import IsolationForestDetector
from reperform.detectors.one_class_svm import OneClassSvmDetector
from reperform.detectors.random_forest import RandomForestDetector
from reperform.detectors.rules import RulesDetector
from reperform.errors import ReperformError, nearest

DETECTORS: dict[str, type[Detector]] = {
    "rules": RulesDetector,
    "isolation_forest": IsolationForestDetector,
    "one_class_svm": OneClassSvmDetector,
    "xgboost": BoostingDetector,
    "lstm_autoencoder": LstmAutoencoderDetector,
    "random_forest": RandomForestDetector,
}
CARD_FILE = "detector.json"
FORMAT = 1


def kind_of(name: str) -> type[Detector]:
    """The class behind a name.

    Raises:
        ReperformError: for an unknown detector, naming the nearest.
    """
    if name not in DETECTORS:
        raise ReperformError(
            f"No detector {name!r}.",
            expected=f"one of {', '.join(DETECTORS)}",
            got=name,
            where="params.yaml:train.detectors",
            fix=nearest(name, DETECTORS),
        )
    return DETECTORS[name]


def build(name: str, parameters: Mapping[str, Any], *, features: Sequence[str] = (), seed: int = 0) -> Detector:
    """An unfitted detector.

    Args:
        name: a key of `DETECTORS`.
        parameters: as in `conf/model/<name>.yaml`; `search`, which tuning reads, is passed over.
        features: names of the columns that it will be fitted on, in order.
        seed: of everything that it draws.

    Raises:
        ReperformError: for an unknown detector or parameter (naming the nearest), or a value outside its limits.
    """
    kind = kind_of(name)
    plain = {key: value for key, value in parameters.items() if key != "search"}
    check_parameters(kind, name, plain)
    return kind(**plain, features=tuple(features), seed=seed)


def save(detector: Detector, folder: Path) -> None:
    """Write a fitted detector in formats that execute nothing when read; equal detectors give equal bytes."""
    card = {
        "format": FORMAT,
        "detector": name_of(detector),
        "parameters": {k: v for k, v in detector.get_params(deep=False).items() if k not in ("features", "seed")},
        "seed": detector.seed,
        "features": list(detector.features),
        "n_features": detector.n_features_in_,
    }
    detector.write(folder)
    tables.write_text(json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False) + "\n", folder / CARD_FILE)


def load(folder: Path) -> Detector:
    """The detector that `save` wrote; it gives the same scores.

    Raises:
        ReperformError: when the folder holds none.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise ReperformError(
            "There is no detector.",
            expected=f"{CARD_FILE} in the folder",
            got="no such file",
            where=str(folder),
            fix="run `dvc repro train`; a run without transactions trains none, and fit.json says so",
        )
    card = json.loads(path.read_text(encoding="utf-8"))
    detector = build(card["detector"], card["parameters"], features=card["features"], seed=card["seed"])
    detector.n_features_in_ = card["n_features"]
    detector.read(folder)
    return detector


def name_of(detector: Detector) -> str:
    """The name of a detector in `DETECTORS`."""
    return next(name for name, kind in DETECTORS.items() if type(detector) is kind)


__all__ = ["DETECTORS", "Detector", "TellsTypologies", "build", "kind_of", "load", "name_of", "save"]
