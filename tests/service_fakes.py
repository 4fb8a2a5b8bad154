"""Small stand-ins for models, so that tests of the door need no training: what they say follows from a row alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl

from reperform.service.exchange import Rates
from reperform.service.journal import Event

ACCOUNTS = {"acc-1": "northbank", "acc-2": "northbank", "acc-3": "lakeside"}
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
RATES = Rates("EUR", {"USD": [BEGAN]}, {"USD": [0.9]})
ALERT_FROM = 1000.0  # amount
PATH = "/api/v1/detect-anomalies"
_NUMBERS = count()


def transaction(**changed: Any) -> dict[str, Any]:
    """A good transaction with an id of its own."""
    plain = {
        "transaction_id": f"t-{next(_NUMBERS)}", "booked_at": datetime.now(UTC).isoformat(), "account_id": "acc-1",
        "direction": "out", "amount": 10.0, "currency": "EUR",
    }  # fmt: skip
    return plain | changed


@dataclass(frozen=True)
class Scored:
    answers: pl.DataFrame
    features: pl.DataFrame
    seconds: Mapping[str, float]


class FakeScorer:
    """A score is the amount in thousands; the state is the set of ids, so that a lost one is seen."""

    def __init__(self, version: int = 1, folder: Path | None = None) -> None:
        self.version, self.data_version, self.threshold = version, f"data-{version}", 1.0
        self.accounts = dict(ACCOUNTS)
        self.known_until: datetime | None = None
        self.sequence = 0
        self.rows: set[str] = {"in-pipeline"}
        self.bundle = SimpleNamespace(folder=folder)
        self.breaks = False
        self.taken_in: list[str] = []
        self.prepared: datetime | None = None

    def holds(self, ids: Sequence[str]) -> set[str]:
        return {one for one in ids if one in self.rows}

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            self.taken_in.append(event.kind)
            if event.kind == "transactions":
                self._in(event.rows)
            elif event.kind == "accounts":
                self.accounts |= dict(event.rows.select("account_id", "entity_id").iter_rows())
            self.sequence = event.sequence

    def _in(self, rows: pl.DataFrame) -> None:
        self.rows |= set(rows["transaction_id"])
        newest: Any = rows["known_at"].max()
        self.known_until = newest if self.known_until is None else max(self.known_until, newest)

    def score(self, rows: pl.DataFrame, *, reasons: str = "alerts", n_reasons: int = 5) -> Scored:
        if self.breaks:
            raise RuntimeError("secret account acc-1")
        self._in(rows)
        is_alert = pl.col("amount_base") >= ALERT_FROM
        told = pl.lit(json.dumps([{"feature": "f", "value": None, "contribution": 1.0}]))
        wanted = {"all": pl.lit(value=True), "alerts": is_alert, "none": pl.lit(value=False)}[reasons]
        answers = rows.select(
            "transaction_id", "account_id", "counterparty_id", "entity_id", "booked_at", "known_at", "amount_base",
            score=pl.col("amount_base") / 1000 * self.version,
            probability=pl.lit(0.5),
            is_alert=is_alert,
            members=pl.lit('{"fake":1.0}'),
            reasons=pl.when(wanted).then(told),
            model_version=pl.lit(self.version, pl.Int64),
            data_version=pl.lit(self.data_version),
        )  # fmt: skip
        return Scored(answers, rows.select(f=pl.col("amount_base")), {"features": 0.001, "models": 0.001})

    def taken(self, sequence: int) -> None:
        self.sequence = max(self.sequence, sequence)

    def prepare(self, moment: datetime) -> None:
        self.prepared = moment


class FakeChampions:
    """Answers with what `version` says at the moment; begins anew when it was broken."""

    def __init__(self, database: Any = None, serve: Any = None, folder: Path | None = None) -> None:
        self.folder, self.is_ready = folder, False
        self.answering: FakeScorer | None = None
        self.shadowing: FakeScorer | None = None
        self.n_broken, self.withdrawn = 0, 0

    def start(self) -> None:
        self.answering, self.is_ready = FakeScorer(1, self.folder), True

    def watch(self) -> None:
        pass

    def stop(self) -> None:
        self.is_ready = False

    def champion(self, connection: Any) -> FakeScorer:
        assert self.answering is not None
        return self.answering

    def shadow(self, connection: Any) -> FakeScorer | None:
        return self.shadowing

    def broken(self) -> None:
        assert self.answering is not None
        self.n_broken += 1
        self.answering = FakeScorer(self.answering.version, self.folder)

    def withdraw(self, scorer: Any, error: Exception) -> None:
        self.withdrawn, self.shadowing = self.withdrawn + 1, None
