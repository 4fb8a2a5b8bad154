"""Fit one detector twice on the calendar of docs/decisions/0002, and score every split."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import detectors, params, paths, schemas, split, tables
from reperform.detectors import inputs
from reperform.detectors.base import Detector, FloatArray, GroupArray
from reperform.params import SplitParams, TrainParams

TYPOLOGY_SHARE = 0.01  # of a split's rows; alerts are far fewer


@dataclass(frozen=True)
class Rows:
    """Transactions as detectors take them, sorted by (booked_at, transaction_id).

    Windows go by when a row was booked, sequences by when it arrived: a row is scored on arrival, and what was booked
    before it but comes later is not there yet.

    Args:
        keys: transaction_id, account_id, booked_at, known_at.
        x: float32, shape (n, p).
        groups: shape (n,), a number for each row's account.
        features: names of the p columns.
    """

    keys: pl.DataFrame
    x: NDArray[np.float32]
    groups: GroupArray
    features: list[str]

    def between(self, start: Any, end: Any) -> NDArray[np.bool_]:
        """Which rows were booked from `start` to before `end`; None = to the end."""
        booked = self.keys["booked_at"]
        within = booked >= start
        return np.asarray((within if end is None else within & (booked < end)).to_numpy(), bool)

    def by_arrival(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions that put these rows, given in their order, into the order (known_at, booked_at, transaction_id)."""
        known = self.keys[inputs.ARRIVAL].to_physical().to_numpy()
        return np.argsort(known[numbers], kind="stable")

    def only(self, wanted: NDArray[np.bool_]) -> "Rows":
        """The wanted rows alone."""
        return Rows(self.keys.filter(pl.Series(wanted)), self.x[wanted], self.groups[wanted], self.features)


@dataclass(frozen=True)
class Fitted:
    """One fit: the detector (None where there was nothing to learn from) and the document about it."""

    detector: Detector | None
    document: dict[str, Any]


def fitted(
    name: str,
    parameters: Mapping[str, Any],
    rows: Rows,
    labels: pl.DataFrame,
    *,
    fit: split.Fit,
    maturity_days: int,
    seed: int,
) -> Fitted:
    """Fit a detector on the rows and labels that one fit may know.

    A detector that learns from labels leaves out rows that are not mature, also confirmed anomalies among them: with
    every normal row of these days unknown, it would learn to tell recent days from older ones (on the demo world this
    cost a quarter of the average precision). The others leave out known anomalies.
    """
    booked = rows.between(fit.learns_from, fit.learns_until)
    arrived = (rows.keys[inputs.ARRIVAL] < fit.known_by).to_numpy()
    within = np.flatnonzero(booked & arrived)
    known = split.learning_labels(rows.keys[within], labels, known_by=fit.known_by, maturity_days=maturity_days)["y"]
    y = known.fill_null(0).to_numpy().astype(np.int8)
    detector = detectors.build(name, parameters, features=rows.features, seed=seed)
    ripe = (rows.keys["booked_at"][within] <= fit.known_by - timedelta(days=maturity_days)).to_numpy()
    use = np.asarray(ripe if detector.needs_labels else np.ones(len(within), bool))
    document = {
        "learns_from": f"{fit.learns_from:%Y-%m-%d}",
        "learns_until": f"{fit.learns_until:%Y-%m-%d}",
        "labels_known_by": f"{fit.known_by:%Y-%m-%d}",
        "rows_in_window": len(within),
        "left_out": _left_out(detector, y, use, maturity_days)
        | ({"not arrived when labels were last known": late} if (late := int((booked & ~arrived).sum())) else {}),
    }
    if not use.any() or not rows.features:
        nothing = {"rows": 0, "known_anomalies": 0, "notes": ["nothing to learn from: not fitted"]}
        return Fitted(None, document | nothing)
    chosen, y = within[use], y[use]
    if detector.reads_sequences:
        order = rows.by_arrival(chosen)
        chosen, y = chosen[order], y[order]
    kinds = typologies(rows.keys[chosen], labels, known_by=fit.known_by)
    detector.fit(rows.x[chosen], y, groups=rows.groups[chosen], typologies=kinds)
    return Fitted(detector, document | detector.facts())


def typologies(rows: pl.DataFrame, labels: pl.DataFrame, *, known_by: datetime) -> list[str | None]:
    """What case handling had said by then of the kind of each row; None where it said nothing."""
    known = labels.filter(pl.col("is_anomaly") & (pl.col("confirmed_at") < pl.lit(known_by, schemas.UTC_US)))
    told = rows.select("transaction_id").join(
        known.select("transaction_id", "typology"), on="transaction_id", how="left", maintain_order="left"
    )
    return told["typology"].to_list()


def _left_out(detector: Detector, y: NDArray[np.int8], use: NDArray[np.bool_], maturity_days: int) -> dict[str, int]:
    if detector.needs_labels:
        young = f"younger than {maturity_days} days when labels were last known"
        return {young: int((~use).sum()), f"{young}, yet confirmed": int((y[~use] == 1).sum())}
    return {"known anomaly": int((y == 1).sum())} if detector.leaves_out_anomalies else {}


def scored(detector: Detector, rows: Rows, wanted: NDArray[np.bool_]) -> FloatArray:
    """Scores of the wanted rows, in their order; a detector of sequences sees what arrived before them as well."""
    if not detector.reads_sequences or not wanted.any():
        return detector.score(rows.x[wanted])
    order = rows.by_arrival(np.arange(len(wanted)))
    before = context(rows.groups[order], wanted[order], detector.context_rows)
    passed = order[wanted[order] | before]
    scores = np.empty(len(wanted))
    scores[passed[wanted[passed]]] = detector.score(rows.x[passed], groups=rows.groups[passed], wanted=wanted[passed])
    return scores[wanted]


def context(groups: GroupArray, wanted: NDArray[np.bool_], n_rows: int) -> NDArray[np.bool_]:
    """Which rows, not wanted themselves, are among the last `n_rows` of their account before a wanted one.

    Args:
        groups: shape (n,), rows in order of arrival.
        wanted: shape (n,).
        n_rows: how many earlier rows of an account a score may depend on.
    """
    order = np.argsort(groups, kind="stable")
    of, asked, at = groups[order], wanted[order], np.arange(len(order))
    following = np.minimum.accumulate(np.where(asked, at, len(at))[::-1])[::-1]
    within = following < len(at)
    near = within & (following - at <= n_rows) & (of[np.where(within, following, 0)] == of)
    chosen = np.zeros(len(wanted), bool)
    chosen[order[near]] = True
    return chosen & ~wanted


def score_table(name: str, rows: Rows, fits: Sequence[tuple[split.Fit, Fitted]], calendar: SplitParams) -> pl.DataFrame:
    """Scores of every row that a fit answers for: as `schemas.SCORES`, in time order."""
    parts = [schemas.empty(schemas.SCORES)]
    for fit, one in fits:
        wanted = rows.between(fit.scores_from, fit.scores_until)
        if one.detector is None or not wanted.any():
            continue
        parts.append(
            rows.keys.filter(pl.Series(wanted)).select(
                "transaction_id",
                filing_id=pl.lit(None, pl.String),
                split=split.split_at("booked_at", calendar),
                detector=pl.lit(name),
                score=pl.Series(scored(one.detector, rows, wanted)),
                probability=pl.lit(None, pl.Float64),
                is_alert=pl.lit(None, pl.Boolean),
            )
        )
    return pl.concat(parts)


def typology_table(detector: Detector, rows: Rows, scores: pl.DataFrame) -> pl.DataFrame | None:
    """Of which kind the highest-scored rows of each split would be, where a detector tells kinds apart.

    Args:
        detector: the final fit.
        rows: all rows.
        scores: its scores of the test and later rows, as `schemas.SCORES`.

    Returns:
        transaction_id, split, typology, probability: the `TYPOLOGY_SHARE` of rows with the highest scores, in time
        order, one line for each typology; None for a detector that knows only anomalies as such.
    """
    if not isinstance(detector, detectors.TellsTypologies) or not scores.height:
        return None
    rank = pl.col("score").rank("ordinal", descending=True).over("split")
    highest = scores.filter(rank <= (pl.len().over("split") * TYPOLOGY_SHARE).ceil())
    wanted = rows.keys["transaction_id"].is_in(highest["transaction_id"].implode()).to_numpy()
    found = detector.typology_probabilities(rows.x[wanted])
    if not found:
        return None
    keys = rows.keys.filter(pl.Series(wanted)).select("transaction_id")
    keys = keys.join(highest.select("transaction_id", "split"), on="transaction_id", maintain_order="left")
    return pl.concat(
        [keys.with_columns(typology=pl.lit(name), probability=pl.Series(p)) for name, p in found.items()]
    ).sort("transaction_id", "typology")


def read_rows(detector: str, parameters: Mapping[str, Any], exclude: Sequence[str]) -> Rows:
    """What a detector reads of every transaction, from `data/featurize`."""
    dictionary = tables.read_json("featurize", "dictionary")
    every = inputs.model_inputs(dictionary, exclude, aids=True)
    features = detectors.kind_of(detector).columns(parameters, inputs.model_inputs(dictionary, exclude), every)
    lazy = tables.scan_table("featurize", "features")
    frame = lazy.select(*inputs.KEY_COLUMNS, *(pl.col(name).cast(pl.Float32) for name in features)).collect()
    arrivals = tables.scan_table("validate", "transactions").select("transaction_id", inputs.ARRIVAL).collect()
    keys = inputs.with_arrival(frame.select(inputs.KEY_COLUMNS), arrivals)
    return Rows(keys, inputs.matrix(frame, features), inputs.account_codes(frame), features)


def run(settings: TrainParams, detector: str) -> dict[str, Any]:
    """Write `data/train/<detector>/{model/,first_model/,scores.parquet,fit.json}`; returns what fit.json says."""
    calendar = params.load(SplitParams)
    chosen = tables.read_json(f"tune/{detector}", "best")
    rows = read_rows(detector, chosen["parameters"], settings.exclude_features)
    split.refuse_resampled_test(tables.read_table("split", "splits"), rows.keys, calendar)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    fits = [
        (fit, fitted(detector, chosen["parameters"], rows, labels,
                     fit=fit, maturity_days=calendar.label_maturity_days, seed=settings.seed))
        for fit in split.fits(calendar)
    ]  # fmt: skip
    scores = schemas.checked(score_table(detector, rows, fits, calendar), schemas.SCORES)
    folder = paths.data("train") / detector
    for name, (_, one) in zip(("first_model", "model"), fits, strict=True):
        _save(one.detector, folder / name)
    tables.write_table(scores, f"train/{detector}", "scores")
    later = scores.filter(pl.col("split").is_in(["test", "later"]))
    kinds = None if fits[1][1].detector is None else typology_table(fits[1][1].detector, rows, later)
    if kinds is not None:
        tables.write_table(kinds, f"train/{detector}", "typologies")
    document = {
        "detector": detector,
        "features": rows.features,
        "parameters": chosen["parameters"],
        "parameters_from": chosen["chosen_from"],
        "seed": settings.seed,
        "fits": {fit.name: one.document for fit, one in fits},
        "scored": {name: scores.filter(pl.col("split") == name).height for name in schemas.SPLITS},
    }
    tables.write_json(document, f"train/{detector}", "fit")
    return document


def _save(detector: Detector | None, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if detector is not None:
        detectors.save(detector, folder)
