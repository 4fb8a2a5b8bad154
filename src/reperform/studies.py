"""Results of studies that are run by hand: where they are kept, and whether they still belong to the models at hand."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reperform import paths, tables

FOLDER = "reports/studies"
MADE_FROM = "made_from"


def path_of(name: str, root: Path | None = None) -> Path:
    """The file of a study."""
    return (root or paths.project_root()) / FOLDER / f"{name}.json"


def inputs_of(detectors: Sequence[str], root: Path | None = None) -> dict[str, str]:
    """SHA-256 of what a study's result depends on: the features' dictionary, fits, the ensemble, the split."""
    base = root or paths.project_root()
    names = [
        "data/featurize/dictionary.json",
        "data/featurize/fitted.json",
        *(f"data/train/{name}/fit.json" for name in detectors),
        "data/ensemble/model.json",
        "data/split/splits.parquet",
    ]
    found = {name: base / name for name in names}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items() if path.is_file()}


def write(name: str, document: Mapping[str, Any], detectors: Sequence[str]) -> Path:
    """Keep a result, with the hashes of what it was made from; equal results give equal bytes."""
    whole = {**document, MADE_FROM: inputs_of(detectors)}
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    target = path_of(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    return tables.write_text(text, target)


def read(name: str, root: Path | None = None) -> dict[str, Any] | None:
    """A result that was kept; None when the study was never run here."""
    path = path_of(name, root)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def standing(document: Mapping[str, Any], root: Path | None = None) -> str:
    """What a reader must know of a result's age, as a sentence: of these models, or of earlier ones."""
    made_from: Mapping[str, str] = document.get(MADE_FROM, {})
    now = {name: (root or paths.project_root()) / name for name in made_from}
    changed = [
        name
        for name, path in now.items()
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != made_from[name]
    ]
    if not changed:
        return "Made from the models of this run."
    return f"Made from earlier models: {', '.join(changed)} changed since. Run the study again before relying on it."
