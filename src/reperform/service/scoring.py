"""The models in memory: features, scores and reasons of new transactions. Nothing of SQL or HTTP is here."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import polars as pl

from reperform import ensemble
from reperform.detectors.boosting import BoostingDetector
from reperform.featurize.kernels import F64, I64
from reperform.service.bundle import Base, Bundle, Member
from reperform.service.history import Computed, History, repeated
from reperform.service.journal import Event

Reasons = Literal["all", "alerts", "none"]
ABOUT = ("transaction_id", "account_id", "counterparty_id", "entity_id", "booked_at", "known_at", "amount_base")
NO_FEATURES = "What this detector adds to the score. No member of this model can be told feature by feature."


@dataclass(frozen=True)
class Scored:
    """Answers to rows, in the order of the rows.

    Args:
        answers: transaction_id, account_id, counterparty_id, entity_id, booked_at, known_at, amount_base, score,
            probability, is_alert, members, reasons, model_version, data_version. `members` is JSON: what each detector
            adds to the score, and the intercept; together they are the score. `reasons` is JSON: a list, largest
            contribution first, null where no reasons were asked for.
        features: what other processes need so as not to compute features again.
        seconds: time of `history`, `features`, `models` and `explanation`.
    """

    answers: pl.DataFrame
    features: pl.DataFrame
    seconds: Mapping[str, float]


class Scorer:
    """A version of the model, with the history that it looks back on.

    Args:
        bundle: the version.
        history: that it begins with, or one that another version with the same features holds already.
    """

    def __init__(self, bundle: Bundle, history: Base | History) -> None:
        self.bundle = bundle
        self.history = history if isinstance(history, History) else History(bundle, history)
        self._names = self.history.names
        self._explained = next((one for one in bundle.members if one.name == bundle.explained), None)
        self._within = {one.name: _within(one, self.history.columns) for one in bundle.members if one.reads_sequences}
        self._words = [_words(name, bundle.dictionary[name], bundle.explained) for name in self._names]

    @property
    def version(self) -> int:
        """Number of the model in the registry."""
        return self.bundle.version

    @property
    def data_version(self) -> str:
        """Of the history that the model came with."""
        return self.bundle.data_version

    @property
    def threshold(self) -> float:
        """Score from which on a transaction is an alert."""
        return self.bundle.threshold

    @property
    def accounts(self) -> Mapping[str, str]:
        """Institution of each account."""
        return self.history.accounts

    @property
    def known_until(self) -> datetime | None:
        """Newest known_at of all rows."""
        return self.history.known_until

    @property
    def sequence(self) -> int:
        """Of the newest event that was taken in."""
        return self.history.sequence

    def holds(self, ids: Sequence[str]) -> set[str]:
        """Which of these transactions are among the rows known already."""
        return self.history.holds(ids)

    def take(self, events: Sequence[Event]) -> None:
        """Take in what was written elsewhere: rows with their features, labels, accounts. Nothing is taken in twice."""
        self.history.take(events)

    def taken(self, sequence: int) -> None:
        """The rows that were scored last stand in the journal under this number."""
        self.history.sequence = max(self.history.sequence, sequence)

    def score(self, rows: pl.DataFrame, *, reasons: Reasons = "alerts", n_reasons: int = 5) -> Scored:
        """Take in rows and score them.

        Args:
            rows: as `schemas.TRANSACTIONS`, one or more, none twice, each account registered or not.
            reasons: for which rows.
            n_reasons: at most, for each row.
        """
        found = self.history.computed(rows)
        began = time.perf_counter()
        added = self.contributions(self.member_scores(found))
        score = np.asarray(sum(added.values()) + self.bundle.intercept)
        probability = ensemble.probabilities(self.bundle.model, score)
        is_alert = score >= self.threshold
        scored = time.perf_counter()
        told = self._reasons(found, added, is_alert, reasons, n_reasons)
        explained = time.perf_counter()
        given = [
            pl.Series("score", score),
            pl.Series("probability", [None] * len(score) if probability is None else probability, pl.Float64),
            pl.Series("is_alert", is_alert),
            pl.Series("members", self._members(added), pl.String),
            pl.Series("reasons", told, pl.String),
            repeated("model_version", self.version, len(score)),
            repeated("data_version", self.data_version, len(score)),
        ]
        # From whole columns: for one row, expressions take more time than all models.
        answers = pl.DataFrame([*(rows.get_column(name) for name in ABOUT), *given])
        features = self.history.packed(found)
        written = time.perf_counter()
        seconds = {**found.seconds, "models": scored - began + written - explained, "explanation": explained - scored}
        return Scored(answers, features, seconds)

    def prepare(self, moment: datetime) -> None:
        """Look up what rows of a moment's day share; a repeated call costs about a millisecond."""
        self.history.prepare(moment)

    def warm_up(self) -> None:
        """Score the newest row once more, so that the first request need not wait for what is loaded on first use."""
        row = self.history.newest()
        if row.height:
            self.score(row, reasons="all")

    def member_scores(self, found: Computed) -> dict[str, F64]:
        """Each member's own score of rows."""
        return {one.name: self._score(one, found) for one in self.bundle.members}

    def _score(self, one: Member, found: Computed) -> F64:
        beside = found.sequences
        if not one.reads_sequences or beside is None:
            return one.detector.score(found.x[:, one.columns])
        within = self._within[one.name]
        x = beside.x if within is None else beside.x[:, within]
        scores = np.empty(len(found.ids))
        scores[beside.place] = one.detector.score(x, groups=beside.groups, wanted=beside.wanted)
        return scores

    def contributions(self, scores: Mapping[str, F64]) -> dict[str, F64]:
        """What each member adds to the score; with the intercept they sum to it."""
        return {one.name: one.weight * one.scale(scores[one.name]) for one in self.bundle.members}

    def _members(self, added: Mapping[str, F64]) -> list[str]:
        names, intercept = list(added), self.bundle.intercept
        table = np.stack(list(added.values()), axis=1).tolist()
        return [json.dumps(dict(zip(names, row, strict=True)) | {"intercept": intercept}) for row in table]

    def _reasons(
        self, found: Computed, added: Mapping[str, F64], is_alert: Any, reasons: Reasons, n_reasons: int
    ) -> list[str | None]:
        told: list[str | None] = [None] * len(is_alert)
        chosen = np.flatnonzero(np.full(len(is_alert), reasons == "all") | (is_alert & (reasons == "alerts")))
        if len(chosen):
            one = self._explained
            lines = self._by_member(added, chosen) if one is None else self._by_feature(found, one, chosen, n_reasons)
            for row, line in zip(chosen.tolist(), lines, strict=True):
                told[row] = json.dumps(line[:n_reasons], ensure_ascii=False)
        return told

    def _by_feature(self, found: Computed, one: Member, chosen: I64, most: int) -> list[list[dict[str, Any]]]:
        """Exact SHAP values of the explained member, largest first."""
        assert isinstance(one.detector, BoostingDetector)  # `bundle` explains no other
        shap = one.detector.contributions(found.x[chosen][:, one.columns])[:, :-1]
        order = np.argsort(-np.abs(shap), axis=1, kind="stable")
        told = []
        for row, by_size, values in zip(chosen.tolist(), order, shap, strict=True):
            largest = [at for at in by_size[:most].tolist() if values[at] != 0]
            columns = [int(one.columns[at]) for at in largest]
            told.append(
                [
                    self._words[column]
                    | {"value": _plain(found.values[row, column]), "contribution": float(values[at])}
                    for at, column in zip(largest, columns, strict=True)
                ]
            )
        return told

    def _by_member(self, added: Mapping[str, F64], chosen: I64) -> list[list[dict[str, Any]]]:
        """Where no member can be told feature by feature: what the members add, and that this is all there is."""
        told = []
        for row in chosen.tolist():
            lines = [
                {"feature": name, "detector": name, "contribution": float(values[row]), "words": NO_FEATURES}
                for name, values in added.items()
            ]
            told.append(sorted(lines, key=lambda line: -abs(float(str(line["contribution"])))))
        return told


def _within(one: Member, columns: I64) -> I64 | None:
    """Where a member's features are among those that sequences are made of; None where they are all of these."""
    return None if np.array_equal(one.columns, columns) else np.searchsorted(columns, one.columns)


def _words(name: str, entry: Mapping[str, Any], detector: str | None) -> dict[str, Any]:
    return {
        "feature": name,
        "kpi": entry["kpi"],
        "kpi_number": entry["kpi_number"],
        "unit": entry["unit"],
        "words": entry["formula"],
        "detector": detector,
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
