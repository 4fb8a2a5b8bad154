"""The door around stand-ins for models and a real database, asked as clients ask it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.testclient import TestClient

from reperform import params
from reperform.params import ServeParams
from reperform.service import app, keys
from reperform.service.database import Database
from reperform.service.process import Service
from tests.service_fakes import PATH, RATES, FakeChampions, transaction

__all__ = ["PATH", "Client", "running", "transaction"]


@dataclass
class Client:
    """A client with a key for everything."""

    http: TestClient
    service: Service
    champions: FakeChampions
    secret: str

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}", **more}

    def get(self, path: str, **more: Any) -> Any:
        return self.http.get(path, headers=self.headers(), **more)

    def post(self, path: str, body: Any, **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **headers}
        return self.http.post(path, content=content, headers=self.headers(**given))

    def score(self, *transactions: dict[str, Any], key: str | None = None, query: str = "") -> Any:
        more = {"Idempotency-Key": key} if key else {}
        return self.post(PATH + query, {"transactions": list(transactions)}, **more)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.service.database.transaction() as connection:
            return connection.execute(statement.encode(), list(values)).fetchall()


@contextmanager
def running(database: Database, **changed: Any) -> Iterator[Client]:
    """A process of the service."""
    serve = params.build(ServeParams, changed, "tests")
    champions = FakeChampions()
    service = Service(
        serve,
        make_champions=lambda *_: champions,
        make_rates=lambda: RATES,
        make_database=lambda: Database(database.address, connections=8),
    )
    with TestClient(app.build(service)) as http:
        assert service.wait_until_ready(30), service.state
        _, secret = keys.create(service.database, "tests", ["score", "read"], requests_per_minute=60_000)
        yield Client(http, service, champions, secret)
