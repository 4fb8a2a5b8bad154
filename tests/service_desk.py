"""A real desk around a scorer that is quick to make: a transaction is an alert from 1,000 on, in the base currency."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from psycopg import conninfo

from reperform import compose
from reperform.export.server import Address
from reperform.params import SECTIONS, IngestParams, JobsParams, ServeParams, ValidateParams, WebhooksParams, build
from reperform.service import jobs
from reperform.service.database import Database
from reperform.service.detect import Desk
from reperform.service.exchange import Rates
from reperform.service.journal import Event
from tests.conftest import ROOT

ACCOUNTS = {"A1": "northbank", "A2": "northbank", "A3": "lakeside"}
POISON = 666.0  # an amount at which the scorer breaks
LEAST_ALERT = 1000.0


@dataclass(frozen=True)
class Scored:
    """What the scorer gives."""

    answers: pl.DataFrame
    features: pl.DataFrame
    seconds: Mapping[str, float] = field(default_factory=dict)


class Scorer:
    """Scores by the amount alone."""

    version, data_version, threshold = 3, "data-1", 0.5

    def __init__(self, delay_s: float = 0.0) -> None:
        self.sequence, self.delay_s = 0, delay_s
        self.accounts: dict[str, str] = dict(ACCOUNTS)
        self.known_until: datetime | None = None

    def holds(self, ids: Sequence[str]) -> set[str]:
        """Rows of the pipeline are those whose ids begin with P."""
        return {one for one in ids if one.startswith("P")}

    def take(self, events: Sequence[Event]) -> None:
        """Take in what was written elsewhere."""
        for event in events:
            self.sequence = event.sequence
            if event.kind == "transactions":
                self._seen(event.rows)

    def _seen(self, rows: pl.DataFrame) -> None:
        newest: Any = rows["known_at"].max()
        self.known_until = max(filter(None, (self.known_until, newest)), default=None)

    def score(self, rows: pl.DataFrame, *, reasons: str, n_reasons: int) -> Scored:
        """Score rows, and take them in."""
        del reasons, n_reasons
        if POISON in rows["amount"].to_list():
            raise ZeroDivisionError("the scorer broke")
        time.sleep(self.delay_s)
        self._seen(rows)
        amount = pl.col("amount_base")
        answers = rows.select(
            "transaction_id", "account_id", "counterparty_id", "entity_id", "booked_at", "known_at", "amount_base",
            score=amount, probability=(amount / 2000).clip(0, 1), is_alert=amount >= LEAST_ALERT,
            members=pl.lit("{}"), reasons=pl.lit('[{"kpi":"amount_z_30d","value":4.5,"contribution":1.2}]'),
            model_version=pl.lit(self.version, pl.Int64), data_version=pl.lit(self.data_version),
        )  # fmt: skip
        return Scored(answers, rows.select(pl.col("amount").alias("amount_z_30d")))

    def taken(self, sequence: int) -> None:
        """The rows that were scored last stand in the journal under this number."""
        self.sequence = sequence


class Champions:
    """One scorer, made anew when it is broken."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s, self.scorer, self.broke = delay_s, Scorer(delay_s), 0

    def champion(self, connection: object) -> Scorer:
        """The scorer that answers now."""
        del connection
        return self.scorer

    def shadow(self, connection: object) -> None:
        """None is in the shadow."""

    def withdraw(self, scorer: object, error: Exception) -> None:
        """None is in the shadow."""

    def broken(self) -> None:
        """Begin anew."""
        self.broke += 1
        self.scorer = Scorer(self.delay_s)


def desk_of(database: Database, webhooks: WebhooksParams | None = None, *, delay_s: float = 0.0) -> Desk:
    """A desk with a scorer of its own."""
    serve = ServeParams(webhooks=webhooks or WebhooksParams(), latest_arrival_days=3650)
    rates = Rates("EUR", {"USD": [datetime.fromisoformat("2025-01-01T00:00:00Z")]}, {"USD": [0.5]})
    return Desk(database, Champions(delay_s), serve, rates)


def sections() -> tuple[IngestParams, ValidateParams]:
    """What conf/ says of sources and rules."""
    content = compose.composed(ROOT / "conf")
    return tuple(build(SECTIONS[name], content[name], name) for name in ("ingest", "validate"))  # type: ignore[return-value]  # in this order


def runner_of(database: Database, limits: JobsParams, *, delay_s: float = 0.0) -> jobs.Runner:
    """A runner with a desk of its own, as a process has it."""
    return jobs.Runner(database, desk_of(database, delay_s=delay_s), limits, *sections())


def address_of(text: str) -> Address:
    """The address of a test's database, from another process."""
    parameters = {key: str(value) for key, value in conninfo.conninfo_to_dict(text).items()}
    return Address(parameters, "the test's server", is_embedded=True)


if __name__ == "__main__":  # a process that works on jobs until it is killed
    opened = Database(address_of(sys.argv[1]), connections=3)
    worker = runner_of(opened, JobsParams(chunk_rows=10, lease_s=1.5, poll_s=0.05), delay_s=float(sys.argv[2]))
    print("ready", flush=True)
    worker.start()
    Path("/dev/stdin").read_bytes()
