"""A version of the model on disk: found by its hashes, wherever its files lie now, and loaded whole or not at all."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reperform import detectors, ensemble, params, paths, schemas, tracking
from reperform.detectors import Detector
from reperform.ensemble import Scale
from reperform.errors import ReperformError
from reperform.featurize.kernels import I64
from reperform.params import FeaturizeParams, SplitParams

FORMAT = 1
FOLDER = ".cache/service"
DOCUMENT = "bundle.json"
UNUSED_S = 7 * 86_400.0
COLUMNS_AT_ONCE = 32  # of a feature table: all of them at once would take a gigabyte for a moment


@dataclass(frozen=True)
class Member:
    """A detector of the ensemble.

    Args:
        name: its name.
        detector: its final fit.
        columns: positions of its features among all features.
        weight: in the ensemble.
        scale: its scores' common scale.
    """

    name: str
    detector: Detector
    columns: I64
    weight: float
    scale: Scale

    @property
    def reads_sequences(self) -> bool:
        """Whether its score depends on rows that arrived before."""
        return self.detector.reads_sequences


@dataclass(frozen=True)
class Bundle:
    """A version of the model in memory.

    Args:
        version: its number in the registry.
        md5: of the list of its files.
        folder: where they are.
        data_version: a short name for the history that it looks back on.
        featurize: parameters of features.
        split: the calendar that it was trained by.
        fitted: what features have learned.
        dictionary: what each feature means, by name, in the features' order.
        model: the ensemble, as in `data/ensemble/model.json`.
        threshold: score from which there is an alert.
        members: its detectors, in the ensemble's order.
        explained: the member whose contributions are told feature by feature; None where there is none such.
        fingerprint: equal for versions whose features, and the rows that they look back on, are the same.
    """

    version: int
    md5: str
    folder: Path
    data_version: str
    featurize: FeaturizeParams
    split: SplitParams
    fitted: Mapping[str, Any]
    dictionary: Mapping[str, Mapping[str, Any]]
    model: Mapping[str, Any]
    threshold: float
    members: tuple[Member, ...]
    explained: str | None
    fingerprint: str

    @property
    def intercept(self) -> float:
        """Of the margin."""
        return float(self.model["intercept"])

    @property
    def context_rows(self) -> int:
        """How many earlier rows of its account a row's score may depend on."""
        return max((one.detector.context_rows for one in self.members if one.reads_sequences), default=0)

    @property
    def sequence_columns(self) -> I64:
        """Positions of the features that such scores read of earlier rows, rising."""
        columns = [one.columns for one in self.members if one.reads_sequences]
        return np.unique(np.concatenate(columns)) if columns else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Base:
    """The history that a version begins with.

    Args:
        folder: of the version's files.
        until: rows and labels that were known before; None = all.
    """

    folder: Path
    until: datetime | None = None

    def transactions(self) -> pl.DataFrame:
        """As `schemas.TRANSACTIONS`, in order of (booked_at, transaction_id)."""
        rows = schemas.shaped(self._read("validate/transactions"), schemas.TRANSACTIONS)
        return rows if self.until is None else rows.filter(pl.col("known_at") < self.until)

    def accounts(self) -> pl.DataFrame:
        """As `schemas.ACCOUNTS`."""
        return schemas.shaped(self._read("validate/accounts"), schemas.ACCOUNTS)

    def labels(self) -> tuple[pl.DataFrame, bool]:
        """As `schemas.LABELS`, and whether there is any at all, also later."""
        rows = schemas.shaped(self._read("validate/labels"), schemas.LABELS)
        known = rows if self.until is None else rows.filter(pl.col("confirmed_at") < self.until)
        return known, rows.height > 0

    def features(self, transactions: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        """Features of these transactions, which `transactions` gave, in their order."""
        wanted = self._rows_of(transactions)
        return pl.concat([self._some(wanted, part, pl.Float64) for part in _parts(names)], how="horizontal")

    def vectors(self, transactions: pl.DataFrame, chosen: I64, names: Sequence[str]) -> Any:
        """Some rows' features as numbers, NaN for unknown: float32, shape (len(chosen), len(names)).

        Args:
            transactions: as `transactions` gave them.
            chosen: their numbers.
            names: of features.
        """
        wanted = self._rows_of(transactions)[chosen]
        parts = [self._some(wanted, part, pl.Float32).to_numpy() for part in _parts(names)]
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)

    def _rows_of(self, transactions: pl.DataFrame) -> I64:
        every = self._scan("featurize/features").select("transaction_id").with_row_index("row").collect()
        found = transactions.select("transaction_id").join(
            every, on="transaction_id", how="left", maintain_order="left"
        )["row"]
        if found.null_count():
            raise ReperformError(
                "Features of some transactions are missing.",
                expected="a feature table of the same run as the transactions",
                got=f"{found.null_count()} transactions without features",
                where=str(self.folder),
                fix="run `dvc repro evaluate`, which records a version whose files belong together",
            )
        return found.cast(pl.Int64).to_numpy()

    def _some(self, wanted: I64, names: Sequence[str], kind: Any) -> pl.DataFrame:
        frame = self._scan("featurize/features").select(pl.col(name).cast(kind) for name in names).collect()
        return frame.select(pl.all().gather(wanted))

    def _read(self, name: str) -> pl.DataFrame:
        return self._scan(name).collect()

    def _scan(self, name: str) -> pl.LazyFrame:
        return pl.scan_parquet(self.folder / f"data/{name}.parquet")


def _parts(names: Sequence[str]) -> list[list[str]]:
    every = list(names)
    return [every[start : start + COLUMNS_AT_ONCE] for start in range(0, len(every), COLUMNS_AT_ONCE)]


def load(version: tracking.Version) -> Bundle:
    """A registered version, from the workspace or from DVC's cache.

    Raises:
        ReperformError: when the version does not say what it consists of, or a file of it is gone.
    """
    md5 = version.tags.get(tracking.BUNDLE_TAG)
    if md5 is None:
        raise ReperformError(
            f"Version {version.number} does not say which files it consists of.",
            expected=f"a tag {tracking.BUNDLE_TAG}",
            got="none: it was recorded by an earlier release",
            fix="run `dvc repro evaluate` to record a version that does, and promote it",
        )
    return read(materialised(md5, f"version {version.number}"), version.number, md5)


def materialised(md5: str, whose: str) -> Path:
    """The folder below `.cache/service/` that holds every file of a version, each with the content it had then.

    Raises:
        ReperformError: when a file is neither in the workspace nor in DVC's cache.
    """
    source = _Source(whose)
    folder = paths.project_root() / FOLDER / md5
    source.bring(tracking.BUNDLE, md5, folder / DOCUMENT)
    document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    if document["format"] != FORMAT or not document["members"]:
        raise ReperformError(
            f"There is nothing to score with in {whose}.",
            expected=f"members, and a list of files in format {FORMAT}",
            got=f"{len(document['members'])} members, format {document['format']}",
            where=str(folder / DOCUMENT),
            fix="run `make repro` on data with transactions",
        )
    for name, digest in sorted({**document["files"], **document["history"]}.items()):
        source.bring(name, digest, folder / name)
    os.utime(folder)
    return folder


def tidy(unused_s: float = UNUSED_S) -> list[str]:
    """Remove versions from `.cache/service/` that no process has loaded for so long; returns their hashes.

    They are loaded again from where they came from. A process that holds one has it in memory, and its history is only
    read again after a failed write: then a missing file is brought again, too.
    """
    parent = paths.project_root() / FOLDER
    old = [one for one in sorted(parent.iterdir()) if time.time() - one.stat().st_mtime > unused_s]
    for one in old:
        shutil.rmtree(one, ignore_errors=True)
    return [one.name for one in old]


class _Source:
    """Where files of a version may be."""

    def __init__(self, whose: str) -> None:
        self.whose = whose
        self.root = paths.project_root()
        self._cache: Path | None = None

    def bring(self, name: str, md5: str, target: Path) -> None:
        if target.is_file() and tracking.file_digest(target, "md5") == md5:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            _linked(self._found(name, md5), partial)
            os.replace(partial, target)  # noqa: PTH105  # the atomic rename is the point
        finally:
            partial.unlink(missing_ok=True)

    def _found(self, name: str, md5: str) -> Path:
        here = self.root / name
        if here.is_file() and tracking.file_digest(here, "md5") == md5:
            return here
        self._cache = self._cache or tracking.cache_folder()
        kept = tracking.cached(md5, self._cache)
        if kept is not None and tracking.file_digest(kept, "md5") == md5:
            return kept
        raise ReperformError(
            f"A file of {self.whose} is not here any more.",
            expected=f"{name} with MD5 {md5} in the workspace or in DVC's cache",
            got="a damaged file" if kept else "none",
            where=str(self._cache / "files" / "md5"),
            fix="`dvc fetch --all-commits` brings it back from a remote; else check out the commit of that version "
            "and run `dvc repro evaluate`",
        )


def _linked(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where that cannot be; stages replace files and never change them in place."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read(folder: Path, version: int, md5: str) -> Bundle:
    """A version from its folder.

    Args:
        folder: with `bundle.json` and every file that it names.
        version: number in the registry.
        md5: of `bundle.json`.
    """
    document = _json(folder / DOCUMENT)
    model = _json(folder / "data/ensemble/model.json")
    dictionary = {entry["name"]: entry for entry in _json(folder / "data/featurize/dictionary.json")}
    position = {name: at for at, name in enumerate(dictionary)}
    members = tuple(_member(folder, said, position) for said in model["members"])
    fitted = _json(folder / "data/featurize/fitted.json")
    made_from = [document["params"], fitted, document["history"], list(dictionary)]
    return Bundle(
        version=version,
        md5=md5,
        folder=folder,
        data_version=document["data_version"],
        featurize=params.build(FeaturizeParams, document["params"]["featurize"], where=f"{DOCUMENT}:featurize"),
        split=params.build(SplitParams, document["params"]["split"], where=f"{DOCUMENT}:split"),
        fitted=fitted,
        dictionary=dictionary,
        model=model,
        threshold=_json(folder / "data/ensemble/thresholds.json")["detectors"][tracking.ENSEMBLE]["threshold"],
        members=members,
        explained=_explained(members),
        fingerprint=hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16],
    )


def _member(folder: Path, said: Mapping[str, Any], position: Mapping[str, int]) -> Member:
    name = said["detector"]
    fit = _json(folder / "data" / "train" / name / "fit.json")
    columns = np.array([position[feature] for feature in fit["features"]], np.int64)
    detector = detectors.load(folder / "data" / "train" / name / "model")
    return Member(name, detector, columns, float(said["weight"]), ensemble.scale_in(said))


def _explained(members: Sequence[Member]) -> str | None:
    """Boosted trees with two classes: their contributions are exact, and cheap enough for every answer."""
    from reperform.explain.explained import chosen  # noqa: PLC0415  # pulls in what explanations are measured with

    name = chosen({one.name: one.weight for one in members})
    found = next((one for one in members if one.name == name), None)
    is_exact = found is not None and getattr(found.detector, "classes", None) == "binary"
    return name if is_exact else None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
