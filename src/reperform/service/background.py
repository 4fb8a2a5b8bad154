"""Threads beside a process's requests: files that are scored, alerts that go out, new champions that are loaded."""

from dataclasses import dataclass
from typing import Any

from reperform import params
from reperform.params import IngestParams, ServeParams, ValidateParams
from reperform.service import jobs, webhooks
from reperform.service.database import Database
from reperform.service.detect import Desk

PATIENCE_S = 5.0


@dataclass(frozen=True)
class Background:
    """What runs; `stop` ends it, and whatever it leaves half done another process goes on with."""

    champions: Any
    runner: jobs.Runner
    dispatcher: webhooks.Dispatcher

    def stop(self, patience_s: float) -> None:
        """End every thread, after what it has in hand."""
        self.champions.stop()
        self.dispatcher.stop(min(patience_s, PATIENCE_S))
        self.runner.stop(patience_s)


def start(database: Database, desk: Desk, champions: Any, serve: ServeParams) -> Background:
    """Begin all of it.

    Raises:
        ReperformError: when a receiver of alerts cannot be served.
    """
    webhooks.check(serve.webhooks.receivers)
    champions.watch()
    dispatcher = webhooks.start(database, serve.webhooks)
    runner = jobs.start(database, desk, serve.jobs, params.load(IngestParams), params.load(ValidateParams))
    return Background(champions, runner, dispatcher)
