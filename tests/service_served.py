"""A service of several processes around stand-ins for models, for tests that kill them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from reperform import params
from reperform.params import ServeParams
from reperform.service import app, keys
from reperform.service import database as storage
from reperform.service.door import Door
from reperform.service.process import Service
from tests.service_fakes import PATH, RATES, FakeChampions, transaction

ROOT = Path(__file__).resolve().parent.parent
RUN = "from reperform.service import app; app.main('127.0.0.1', {port}, {workers}, None, '{application}')"
FAKES = "tests.service_served:create"


class SlowChampions(FakeChampions):
    """Takes as long to score as the environment says, so that tests can interrupt it."""

    def champion(self, connection: Any) -> Any:
        time.sleep(float(os.environ.get("TESTS_DELAY_S", "0")))
        return super().champion(connection)


def create() -> Door:
    """The application of one worker."""
    serve = params.load(ServeParams)
    return app.build(Service(serve, make_champions=SlowChampions, make_rates=lambda: RATES))


@dataclass
class Served:
    """A service that runs."""

    process: subprocess.Popen[bytes]
    base: str
    headers: dict[str, str]
    log: Path

    def score(self, key: str | None = None, **changed: Any) -> httpx.Response:
        more = {"Idempotency-Key": key} if key else {}
        body = {"transactions": [transaction(**changed)]}
        return httpx.post(self.base + PATH, json=body, headers=self.headers | more, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.base + path, headers=self.headers, timeout=60)

    def workers(self) -> list[psutil.Process]:
        """Processes that answer; the tracker of shared resources is not one of them."""
        return [one for one in psutil.Process(self.process.pid).children() if _answers(one)]

    def wait_until(self, status: int, path: str = "/ready", seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if self.get(path).status_code == status:
                    return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-3000:])

    def lines(self) -> list[dict[str, Any]]:
        """The log; every line of it is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def _answers(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:  # it has just ended
        return False


@contextmanager
def serving(project: Path, workers: int = 1, delay_s: float = 0.0, application: str = FAKES) -> Iterator[Served]:
    """A service in a project of its own, with its own embedded server."""
    with closing(storage.Database(connections=1)) as database:
        storage.prepare(database)
        _, secret = keys.create(database, "tests", ["score", "read"], requests_per_minute=10_000_000)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = project / "serve.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TESTS_DELAY_S": str(delay_s)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", RUN.format(port=port, workers=workers, application=application)],
                cwd=project, env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        served = Served(process, f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {secret}"}, log)
        try:
            served.wait_until(200)
            yield served
        finally:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children():
                    child.kill()
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(30)
