"""Which detector sees what no label ever showed: train without one typology, test on it, for each.

Without means without: the typology's transactions are taken out of what detectors learn from, its labels out of every
KPI that reads labels, and out of the validation on which the ensemble is stacked. Detectors without labels are not
fitted again; they score rows anew whose KPIs changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from reperform import (
    detectors,
    ensemble,
    evaluate,
    featurize,
    metrics,
    params,
    rescore,
    schemas,
    split,
    studies,
    tables,
)
from reperform.detectors.base import FloatArray
from reperform.errors import ReperformError, nearest
from reperform.evaluate.detection import ENSEMBLE
from reperform.featurize.engine import selected
from reperform.metrics import Bools
from reperform.params import EnsembleParams, EvaluateParams, FeaturizeParams, SplitParams, StudiesParams, TrainParams
from reperform.train import fitted, scored

NAME = "heldout"
LABEL_INPUT = "is_anomaly"
ColumnsFrom = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True)
class Material:
    """What all typologies share.

    Args:
        features: identity and every column that a detector reads, in time order.
        members: the trained detectors.
        scores: each member's scores of all rows; NaN where it scored none.
        labels: as `schemas.LABELS`.
        typology: the true typology of each row as far as anything tells it, null for the others.
        calendar: the windows.
        calibration: of the ensemble.
    """

    features: pl.DataFrame
    members: list[rescore.Member]
    scores: dict[str, FloatArray]
    labels: pl.DataFrame
    typology: pl.Series
    calendar: SplitParams
    calibration: str


def label_kpis(stage: FeaturizeParams) -> list[str]:
    """KPIs of the stage whose values depend on labels, themselves or through a KPI that they need; in order."""
    maker: dict[str, str] = {}
    touched: list[str] = []
    for kpi in selected(stage.kpis):
        settings = kpi.settings_of(stage.settings)
        reads = {maker[column] for column in kpi.needs_of(settings) if column in maker}
        if LABEL_INPUT in kpi.inputs or reads & set(touched):
            touched.append(kpi.name)
        maker |= dict.fromkeys((column.name for column in kpi.columns(settings)), kpi.name)
    return touched


def with_needs(names: Sequence[str], stage: FeaturizeParams) -> list[str]:
    """These KPIs and all that they need, in order."""
    every = {kpi.name: kpi for kpi in selected(stage.kpis)}
    makers = {
        column.name: kpi.name for kpi in every.values() for column in kpi.columns(kpi.settings_of(stage.settings))
    }
    wanted, todo = set(names), list(names)
    while todo:
        kpi = every[todo.pop()]
        needed = {makers[column] for column in kpi.needs_of(kpi.settings_of(stage.settings)) if column in makers}
        todo += sorted(needed - wanted)
        wanted |= needed
    return [name for name in every if name in wanted]


def without_labels_of(typology: str, labels: pl.DataFrame) -> pl.DataFrame:
    """Labels, none of which is about this typology."""
    return labels.filter((pl.col("typology") != typology).fill_null(value=True))


def relabelled(
    stage: FeaturizeParams,
    calendar: SplitParams,
    transactions: pl.DataFrame,
    accounts: pl.DataFrame,
    labels: pl.DataFrame,
) -> pl.DataFrame:
    """Columns of every KPI that reads labels, computed again from these labels, with what is learned from them."""
    touched = label_kpis(stage)
    if not touched:
        return transactions.select("transaction_id")
    part = replace(stage, kpis=with_needs(touched, stage))
    ledger = featurize.ledger_of(transactions, accounts, labels, part, calendar)
    table = featurize.compute(ledger, part, featurize.fit(ledger, part, calendar.fit_end))
    own = [
        column.name
        for kpi in selected(part.kpis)
        if kpi.name in touched
        for column in kpi.columns(kpi.settings_of(stage.settings))
    ]
    return table.select("transaction_id", *(pl.col(name).cast(pl.Float32) for name in own))


def replaced(features: pl.DataFrame, other: pl.DataFrame) -> tuple[pl.DataFrame, Bools]:
    """Features with the other's columns in place of their own, and the rows on which any of them changed."""
    names = [name for name in other.columns if name in features.columns and name != "transaction_id"]
    changed = np.zeros(features.height, dtype=np.bool_)
    for name in names:
        changed |= ~features[name].eq_missing(other[name]).to_numpy()
    return features.with_columns(other[name] for name in names), changed


def rescored(material: Material, typology: str, features: pl.DataFrame, changed: Bools) -> pl.DataFrame:
    """Scores of all members without the typology: transaction_id, booked_at, split, one column each."""
    labels = without_labels_of(typology, material.labels)
    left = ~(material.typology == typology).fill_null(value=False).to_numpy()
    columns = {
        member.name: (
            _fitted_without(material, member, features, labels, left)
            if detectors.kind_of(member.name).needs_labels
            else _scored_again(material, member, features, changed)
        )
        for member in material.members
    }
    return features.select(
        "transaction_id",
        "booked_at",
        split=split.split_at("booked_at", material.calendar),
        **{name: pl.Series(values) for name, values in columns.items()},
    )


def _fitted_without(
    material: Material, member: rescore.Member, features: pl.DataFrame, labels: pl.DataFrame, left: Bools
) -> FloatArray:
    rows = rescore.rows_of(features, member.features)
    learned = rows.only(left)
    values = np.full(features.height, np.nan)
    for fit in split.fits(material.calendar):
        one = fitted(
            member.name, member.parameters, learned, labels,
            fit=fit, maturity_days=material.calendar.label_maturity_days, seed=member.seed,
        )  # fmt: skip
        wanted = rows.between(*_scored_by(fit, material.calendar))
        if one.detector is not None and wanted.any():
            values[wanted] = scored(one.detector, rows, wanted)
    return values


def _scored_again(material: Material, member: rescore.Member, features: pl.DataFrame, changed: Bools) -> FloatArray:
    """A member without labels: its old scores, but for accounts on which a KPI changed."""
    values = material.scores[member.name].copy()
    accounts = features.filter(pl.Series(changed))["account_id"].unique().implode()
    some = features["account_id"].is_in(accounts).to_numpy()
    if not some.any():
        return values
    rows = rescore.rows_of(features.filter(pl.Series(some)), member.features)
    place = np.flatnonzero(some)
    for fit, model in zip(split.fits(material.calendar), (member.first, lambda: member.final), strict=True):
        wanted = rows.between(*_scored_by(fit, material.calendar))
        if wanted.any():
            values[place[wanted]] = scored(model(), rows, wanted)
    return values


def _scored_by(fit: split.Fit, calendar: SplitParams) -> tuple[Any, Any]:
    """Of what a fit scores: the validation, and from its end to that of the test."""
    if fit.name == "first":
        return calendar.validation_start, calendar.train_end
    return calendar.train_end, calendar.test_end


def stacked_without(material: Material, typology: str, wide: pl.DataFrame) -> FloatArray:
    """The ensemble's margins of all rows, from a stack whose validation holds nothing of the typology."""
    names = [member.name for member in material.members]
    is_it = (material.typology == typology).fill_null(value=False)
    before_test = pl.col("booked_at").is_between(
        pl.lit(material.calendar.validation_start, schemas.UTC_US),
        pl.lit(material.calendar.test_start, schemas.UTC_US),
        closed="left",
    )
    known = wide.filter(~is_it & before_test)
    labels = without_labels_of(typology, material.labels)
    model = ensemble.fit(known, labels, names, material.calendar, material.calibration)
    return ensemble.margins(model, {name: wide[name].to_numpy() for name in names})


def outcome(test: pl.DataFrame, score: FloatArray, typology: str, share: float, seed: int) -> dict[str, Any]:
    """How much of a typology is among the rows that are looked at.

    Args:
        test: rows of known truth, with typology and event_id.
        score: of these rows, shape (n,).
        typology: which.
        share: of the rows that are looked at.
        seed: of the order within equal scores.

    Returns:
        n, found, recall with Wilson interval, events, events_found; and recall_alone: where the other typologies' rows
        are out of the way and do not use up the alerts.
    """
    mine = (test["typology"] == typology).fill_null(value=False).to_numpy()
    alert = metrics.top_rows(score, round(share * score.size), seed)
    alone = mine | ~test["is_anomaly"].to_numpy()
    top_alone = metrics.top_rows(score[alone], round(share * int(alone.sum())), seed)
    found, n = int((alert & mine).sum()), int(mine.sum())
    low, high = metrics.wilson(found, n)
    events = test.filter(pl.Series(mine))["event_id"]
    return {
        "n": n,
        "found": found,
        "recall": found / n if n else None,
        "low": low,
        "high": high,
        "events": events.n_unique(),
        "events_found": test.filter(pl.Series(alert & mine))["event_id"].n_unique(),
        "recall_alone": int(top_alone[mine[alone]].sum()) / n if n else None,
    }


def study(
    material: Material, test: pl.DataFrame, names: Sequence[str], settings: StudiesParams, columns_from: ColumnsFrom
) -> Iterator[dict[str, Any]]:
    """One record per typology and detector, with its recall when labels of it were known beside it.

    Args:
        material: see there.
        test: rows of known truth.
        names: typologies to hold out, one after another.
        settings: alert share and seed.
        columns_from: gives the columns that depend on labels, from labels.
    """
    where = material.features.select("transaction_id").with_row_index("place")
    joined = test.select("transaction_id").join(where, on="transaction_id", how="left", maintain_order="left")
    at = joined["place"].to_numpy()
    before = {name: values[at] for name, values in material.scores.items()}
    before[ENSEMBLE] = rescore.margins(before)
    for typology in names:
        columns = columns_from(without_labels_of(typology, material.labels))
        wide = rescored(material, typology, *replaced(material.features, columns))
        now = {member.name: wide[member.name].to_numpy()[at] for member in material.members}
        now[ENSEMBLE] = stacked_without(material, typology, wide)[at]
        for name, score in now.items():
            shown = outcome(test, before[name], typology, settings.alert_share, settings.seed)
            unseen = outcome(test, score, typology, settings.alert_share, settings.seed)
            yield {"typology": typology, "detector": name, **unseen, "recall_with_labels": shown["recall"]}


def summarised(records: Sequence[Mapping[str, Any]], settings: StudiesParams) -> dict[str, Any]:
    """Which typologies each detector finds unseen, and which the ensemble does not."""
    by: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by.setdefault(record["detector"], []).append(record)
    found = {
        name: [one["typology"] for one in of if (one["recall"] or 0) >= settings.found_from] for name, of in by.items()
    }
    missed = [one for one in by.get(ENSEMBLE, []) if one["typology"] not in found.get(ENSEMBLE, [])]
    return {
        "alert_share": settings.alert_share,
        "found_from": settings.found_from,
        "typologies": sorted({record["typology"] for record in records}),
        "found": found,
        "found_alone": {
            name: [one["typology"] for one in of if (one["recall_alone"] or 0) >= settings.found_from]
            for name, of in by.items()
        },
        "not_found_by_the_ensemble": [one["typology"] for one in missed],
        "records": list(records),
    }


def _material() -> tuple[Material, pl.DataFrame]:
    calendar, training = params.load(SplitParams), params.load(TrainParams)
    stack = params.load(EnsembleParams)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    test, _ = evaluate.rows_of_test(params.load(EvaluateParams), calendar, labels)
    members = rescore.members([name for name in stack.members if name in training.detectors])
    features = rescore.read_features([name for member in members for name in member.features])
    scores = {member.name: _all_scores(member.name, features) for member in members}
    typology = _typology(features, labels, planted=params.load(EvaluateParams).truth == "planted")
    return (
        Material(features, members, scores, labels, typology, calendar, stack.calibration),
        test.filter(pl.col("is_anomaly").is_not_null()),
    )


def _all_scores(name: str, features: pl.DataFrame) -> FloatArray:
    frame = tables.read_table(f"train/{name}", "scores").select("transaction_id", "score")
    joined = features.select("transaction_id").join(frame, on="transaction_id", how="left", maintain_order="left")
    return joined["score"].fill_null(np.nan).to_numpy().copy()


def _typology(features: pl.DataFrame, labels: pl.DataFrame, *, planted: bool) -> pl.Series:
    known = labels.filter("is_anomaly").select("transaction_id", "typology")
    if planted:
        known = tables.read_table("simulate", "truth").select("transaction_id", "typology")
    return features.select("transaction_id").join(
        known.unique("transaction_id", maintain_order=True), on="transaction_id", how="left", maintain_order="left"
    )["typology"]


def main(only: Sequence[str] = ()) -> int:
    """Run the study on the project's own outputs, keep it in `reports/studies/heldout.json`, and print it."""
    settings, stage = params.load(StudiesParams), params.load(FeaturizeParams)
    material, test = _material()
    known = test.filter("is_anomaly")["typology"].drop_nulls().unique().sort().to_list()
    names = [name for name in known if not only or name in only]
    if not names:
        raise ReperformError(
            "There is no anomaly in the test whose typology could be held out.",
            expected=f"some of {', '.join(known)}" if known else "anomalies of a named typology",
            got=", ".join(only) or "none",
            fix=nearest(only[0], known) if only and known else "run it on data whose labels name typologies",
        )
    transactions, accounts = tables.read_table("validate", "transactions"), tables.read_table("validate", "accounts")

    def columns(labels: pl.DataFrame) -> pl.DataFrame:
        return relabelled(stage, material.calendar, transactions, accounts, labels)

    records = []
    for record in study(material, test, names, settings, columns):
        records.append(record)
        if record["detector"] == ENSEMBLE:
            print(_line(record), flush=True)
    document = summarised(records, settings)
    studies.write(NAME, document, [member.name for member in material.members])
    print("\n".join(lines(document)))
    return 0


def _line(record: Mapping[str, Any]) -> str:
    return (
        f"{record['typology']}: {record['found']} of {record['n']} rows found unseen "
        f"(recall {record['recall']:.2f}; with labels {record['recall_with_labels']:.2f}; "
        f"without other typologies in the way {record['recall_alone']:.2f})"
    )


def lines(document: Mapping[str, Any]) -> list[str]:
    """The study in a few lines."""
    total = len(document["typologies"])
    told = [
        f"{name}: {len(found)} of {total} typologies found unseen ({', '.join(found) or 'none'})"
        for name, found in document["found"].items()
    ]
    missed = document["not_found_by_the_ensemble"]
    return [*told, f"not found by the ensemble: {', '.join(missed) or 'none'}"]
