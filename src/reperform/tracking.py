"""Index of runs and models in MLflow, with hashes of what DVC keeps. The only module that imports MLflow.

MLflow holds no data and no model, and nothing that the pipeline writes depends on it: `mlflow.db` may be deleted, and
the current state recorded again.
"""

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from reperform import paths
from reperform.errors import ReperformError

EXPERIMENT = "reperform"
MODEL = "reperform-ensemble"
ENSEMBLE = "ensemble"
MODEL_FILE = "data/ensemble/model.json"
OUTCOMES = "data/evaluate/outcomes.parquet"
OUTCOMES_TAG = "dvc.md5.outcomes"  # under which DVC's cache keeps what two versions are compared by
BUNDLE = "data/evaluate/bundle.json"
BUNDLE_TAG = "reperform.bundle"  # MD5 of the list of files that a version consists of
SIGNATURE_TAG, SIGNATURE_PART = "signature", 4000  # MLflow takes no longer tags
DATABASE = "mlflow.db"
LOCK_FILE = "requirements.lock"
FIRST_ALIAS, NEXT_ALIAS = "champion", "challenger"
KEY_TAG = "reperform.key"
BATCH = 100  # MLflow takes no more parameters at once
LONGEST_VALUE = 500
HASTY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}  # else MLflow tries for minutes
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


def outputs(detectors: Sequence[str]) -> dict[str, Path]:
    """The outputs that a run is known by: those that exist among splits, fits, the ensemble and the metrics."""
    names = [
        "data/split/splits.parquet",
        "data/featurize/features.parquet",
        *(f"data/train/{name}/{file}" for name in detectors for file in ("fit.json", "scores.parquet")),
        MODEL_FILE,
        "data/ensemble/scores.parquet",
        "data/ensemble/thresholds.json",
        "data/evaluate/metrics.json",
        OUTCOMES,
        BUNDLE,
    ]
    found = {name: paths.project_root() / name for name in names}
    return {name: path for name, path in found.items() if path.exists()}


def record(metrics: Mapping[str, Any], parameters: Mapping[str, Any], artifacts: Mapping[str, Path]) -> str:
    """Record the current state as one run with a nested run for each detector, and register the ensemble.

    The same state is recorded once: a second call returns the first run. The first registered version is `champion`,
    and each later one becomes `challenger`; people promote it.

    Args:
        metrics: by detector, then by name, as in `data/evaluate/metrics.json`: numbers, or mappings that hold them.
        parameters: nested, such as params.yaml.
        artifacts: outputs that the run refers to, by their name in the project.

    Returns:
        The run's id in MLflow.

    Raises:
        ReperformError: when the database cannot be used.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with _silent():  # a warning on import would put this machine's paths into the notebook
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  # costs a second
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    hashes = {name: file_hash(path) for name, path in sorted(artifacts.items())}
    try:
        with _silent():
            return _recorded(metrics, parameters, artifacts, hashes)
    except (MlflowException, SQLAlchemyError) as error:
        raise ReperformError(
            "The run could not be recorded in MLflow.",
            expected="a database that can be written",
            got=str(error).splitlines()[0],
            where=_uri(),
            fix=f"delete {DATABASE} (it is an index: nothing else is lost) and run `dvc repro -s -f evaluate`",
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """No log lines: MLflow tells of a new database, and a notebook's first run would differ from its second."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def run_key(metrics: Mapping[str, Any], parameters: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """One hash of what a run is: equal for equal metrics, parameters and outputs, whenever and wherever it ran."""
    text = json.dumps([metrics, parameters, hashes], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """The hash of a file, or of a folder's files and their names: `md5:…` where dvc.lock has the same, else sha256."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listed = "\n".join(f"{p.relative_to(path).as_posix()} {file_digest(p, 'sha256')}" for p in files)
        return "sha256:" + hashlib.sha256(listed.encode()).hexdigest()
    known = _dvc_hashes().get(_relative(path))
    if known and known == file_digest(path, "md5"):
        return f"md5:{known}"
    return "sha256:" + file_digest(path, "sha256")


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf under its dotted name; lists are leaves."""
    for key, value in nested.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        else:
            yield name, value


def _recorded(
    metrics: Mapping[str, Any], parameters: Mapping[str, Any], artifacts: Mapping[str, Path], hashes: Mapping[str, str]
) -> str:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    client = MlflowClient(tracking_uri=_uri(), registry_uri=_uri())
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    key = run_key(metrics, parameters, hashes)
    earlier = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'")
    if earlier:
        return str(earlier[0].info.run_id)
    tags = {
        KEY_TAG: key,
        **_environment(),
        **{f"data.{name}": value for name, value in hashes.items()},
        **_signature(artifacts),
        **_md5_tags(artifacts),
    }
    run = client.create_run(experiment, run_name=f"run-{key[:8]}", tags=tags)
    parent = str(run.info.run_id)
    _log(client, parent, parameters, {name: value for name, value in metrics.items() if name == ENSEMBLE})
    for name, values in metrics.items():
        nested = {"mlflow.parentRunId": parent, "reperform.detector": name, "reperform.parent_key": key}
        child = client.create_run(experiment, run_name=name, tags=nested).info.run_id
        _log(client, child, _parameters_of(name, artifacts), values)
        client.set_terminated(child)
    _register(client, parent, key, hashes)
    client.set_terminated(parent)  # last: a run that was cut short is recorded again
    return parent


def _log(client: Any, run: str, parameters: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, Param  # noqa: PLC0415

    numbers = {name: value for name, value in flat(metrics) if _is_number(value)}
    now_ms = int(time.time() * 1000)
    logged = [Metric(name, float(value), now_ms, 0) for name, value in numbers.items()]
    params = [Param(name, _short(value)) for name, value in flat(parameters)]
    client.log_batch(run, metrics=logged[:1000])
    for start in range(0, len(params), BATCH):
        client.log_batch(run, params=params[start : start + BATCH])


def _register(client: Any, run: str, key: str, hashes: Mapping[str, str]) -> None:
    if MODEL_FILE not in hashes:
        return
    first = not client.search_registered_models(f"name = '{MODEL}'")
    if first:
        client.create_registered_model(MODEL, description="The stacked detectors; DVC keeps them, by these hashes.")
    has_champion = not first and FIRST_ALIAS in client.get_registered_model(MODEL).aliases
    version = client.create_model_version(
        MODEL,
        source=f"dvc:/data/ensemble/model.json@{hashes['data/ensemble/model.json']}",
        run_id=run,
        tags={KEY_TAG: key},
    )
    client.set_registered_model_alias(MODEL, NEXT_ALIAS if has_champion else FIRST_ALIAS, version.version)


def signature(artifacts: Mapping[str, Path]) -> dict[str, Any]:
    """What the model takes and gives: names and types of its input columns, over all detectors, and of its outputs.

    The same content as MLflow's `ModelSignature`, without its repetition of the type for each of some hundred columns.
    """
    names: dict[str, None] = {}
    for name, path in sorted(artifacts.items()):
        if name.endswith("/fit.json"):
            names |= dict.fromkeys(json.loads(path.read_text(encoding="utf-8")).get("features", []))
    outputs = {"score": "double", "probability": "double", "is_alert": "boolean"}
    return {"inputs": {"type": "float", "optional": True, "names": list(names)}, "outputs": outputs}


def _signature(artifacts: Mapping[str, Path]) -> dict[str, str]:
    text = json.dumps(signature(artifacts), separators=(",", ":"))
    parts = [text[start : start + SIGNATURE_PART] for start in range(0, len(text), SIGNATURE_PART)]
    numbered = {f"{SIGNATURE_TAG}.{number}": part for number, part in enumerate(parts)}
    return {**numbered, f"{SIGNATURE_TAG}.sha256": hashlib.sha256(text.encode()).hexdigest()}


def _md5_tags(artifacts: Mapping[str, Path]) -> dict[str, str]:
    """Under what names DVC's cache keeps what is needed of a version later."""
    tags = {OUTCOMES_TAG: OUTCOMES, BUNDLE_TAG: BUNDLE}
    return {tag: file_digest(artifacts[name], "md5") for tag, name in tags.items() if name in artifacts}


@dataclass(frozen=True)
class Version:
    """A registered version of the model.

    Args:
        number: its number in the registry.
        aliases: such as `champion`.
        tags: of its run: data hashes, environment, signature.
        version_tags: of the version itself: decisions about it.
        run_id: its run.
    """

    number: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    version_tags: dict[str, str]
    run_id: str


def version(name: str) -> Version:
    """The version of that number (`3` or `v3`) or alias.

    Raises:
        ReperformError: when there is none, naming those that exist.
    """
    with _registry() as client:
        known = _versions(client)
        number = name.removeprefix("v")
        for one in known:
            if name in one.aliases or (number.isdigit() and int(number) == one.number):
                return one
    listed = ", ".join(" ".join([str(one.number), *one.aliases]) for one in known)
    raise ReperformError(
        f"There is no version {name!r} of the model.",
        expected=f"one of {listed}" if known else "a registered version",
        got=name,
        where=_uri(),
        fix="run `make repro` once to register a version" if not known else "choose one of them",
    )


def aliases() -> dict[str, int]:
    """Number of the version of each alias, such as `champion`; empty where nothing is registered.

    Light enough to be asked every few seconds, and it leaves the log of whoever asks alone.

    Raises:
        ReperformError: when the registry cannot be asked, within seconds.
    """
    for name, value in HASTY.items():
        os.environ.setdefault(name, value)
    client = _client(_uri())
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  # costs a second
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        found = client.get_registered_model(MODEL).aliases
    except (MlflowException, SQLAlchemyError) as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise _unusable(error) from error
    return {str(alias): int(number) for alias, number in found.items()}


@lru_cache(maxsize=4)
def _client(uri: str) -> Any:
    with _registry() as client:  # what a new client logs is not for our readers
        del uri
        return client


def make_champion(chosen: Version, tags: Mapping[str, str]) -> None:
    """Move `champion` to a version, take `challenger` from it, and write why into its tags."""
    with _registry() as client:
        client.set_registered_model_alias(MODEL, FIRST_ALIAS, str(chosen.number))
        if NEXT_ALIAS in chosen.aliases:
            client.delete_registered_model_alias(MODEL, NEXT_ALIAS)
        _tag(client, chosen, tags)


def tag_version(chosen: Version, tags: Mapping[str, str]) -> None:
    """Write a decision into the tags of a version, without moving anything."""
    with _registry() as client:
        _tag(client, chosen, tags)


def _tag(client: Any, chosen: Version, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_model_version_tag(MODEL, str(chosen.number), name, value)


def _versions(client: Any) -> list[Version]:
    if not client.search_registered_models(f"name = '{MODEL}'"):
        return []
    aliases: dict[int, list[str]] = {}
    for alias, number in client.get_registered_model(MODEL).aliases.items():
        aliases.setdefault(int(number), []).append(str(alias))
    found = [
        Version(
            number=int(one.version),
            aliases=tuple(sorted(aliases.get(int(one.version), []))),
            tags=dict(client.get_run(one.run_id).data.tags),
            version_tags=dict(one.tags),
            run_id=str(one.run_id),
        )
        for one in client.search_model_versions(f"name = '{MODEL}'")
    ]
    return sorted(found, key=lambda one: one.number)


@contextmanager
def _registry() -> Iterator[Any]:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  # costs a second
    from mlflow.tracking import MlflowClient  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        with _silent():
            yield MlflowClient(tracking_uri=_uri(), registry_uri=_uri())
    except (MlflowException, SQLAlchemyError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> ReperformError:
    return ReperformError(
        "The registry of models cannot be used.",
        expected="MLflow's database, which stage evaluate writes",
        got=str(error).splitlines()[0],
        where=_uri(),
        fix="run `make repro` once",
    )


def _parameters_of(detector: str, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
    """Parameters that a detector was fitted with, from its fit.json."""
    path = artifacts.get(f"data/train/{detector}/fit.json")
    if path is None:
        return {}
    fit = json.loads(path.read_text(encoding="utf-8"))
    return {**fit.get("parameters", {}), "seed": fit.get("seed"), "parameters_from": fit.get("parameters_from")}


def _environment() -> dict[str, str]:
    root = paths.project_root()
    tags = {
        "environment.python": platform.python_version(),
        "environment.platform": f"{platform.system()} {platform.machine()}",
    }
    lock = root / LOCK_FILE
    if lock.is_file():
        tags["environment.lock"] = "sha256:" + file_digest(lock, "sha256")
    if (root / "dvc.lock").is_file():
        tags["dvc.lock"] = "sha256:" + file_digest(root / "dvc.lock", "sha256")
    commit = _commit(root)
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def _commit(root: Path) -> str | None:
    try:
        got = subprocess.run(  # fixed words
            ["git", "rev-parse", "HEAD"],  # noqa: S607  # whichever git the user has
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return got.stdout.strip() if got.returncode == 0 else None


def _dvc_hashes() -> dict[str, str]:
    lock = paths.project_root() / "dvc.lock"
    if not lock.is_file():
        return {}
    stages = OmegaConf.to_container(OmegaConf.load(lock)).get("stages", {})  # type: ignore[union-attr]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def cached(md5: str, cache: Path | None = None) -> Path | None:
    """The file of that content in DVC's cache, which keeps each file below its MD5; None when it is not there."""
    path = (cache or cache_folder()) / "files" / "md5" / md5[:2] / md5[2:]
    return path if path.is_file() else None


def cache_folder() -> Path:
    """The folder of DVC's cache."""
    got = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"],
        cwd=paths.project_root(),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
    )
    return Path(got.stdout.strip()) if got.returncode == 0 else paths.project_root() / ".dvc" / "cache"


def _relative(path: Path) -> str:
    root = paths.project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def file_digest(path: Path, algorithm: str) -> str:
    """The hash of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _uri() -> str:
    # A server of one's own is used when MLflow's variable names it.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.project_root() / DATABASE}"
