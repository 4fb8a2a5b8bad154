"""What the benchmark of the service sends is what it says it sends."""

import importlib.util
import sys
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperform import schemas
from tests.conftest import ROOT

START = datetime(2025, 6, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_serve", ROOT / "benchmarks" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def rows(minutes: list[int], account: str = "A") -> pl.DataFrame:
    columns = schemas.polars_schema(schemas.TRANSACTIONS)
    at = [START + timedelta(minutes=one) for one in minutes]
    filled = {
        "transaction_id": [f"{account}{n}" for n in range(len(at))],
        "booked_at": at,
        "known_at": at,
        "account_id": [account] * len(at),
        "amount": [1.5] * len(at),
    }
    return pl.DataFrame({name: filled.get(name, [None] * len(at)) for name in columns}, schema=columns)


def labels(minutes: list[int]) -> pl.DataFrame:
    at = [START + timedelta(minutes=one) for one in sorted(minutes)]
    ids = [f"L{n}" for n in range(len(at))]
    return pl.DataFrame({"transaction_id": ids, "confirmed_at": at}, schema_overrides={"confirmed_at": TIME})


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.lists(st.integers(0, 60), max_size=10))
def test_labels_are_told_before_the_rows_that_became_known_after_them(
    serve: ModuleType, known: list[int], confirmed: list[int]
) -> None:
    parts = list(serve._in_order(rows(sorted(known)), labels(confirmed)))
    sent = [row for kind, part in parts if kind == "transactions" for row in part["transaction_id"]]
    told = [row for kind, part in parts if kind == "labels" for row in part["transaction_id"]]
    assert sent == rows(sorted(known))["transaction_id"].to_list()
    assert sorted(told) == sorted(labels(confirmed)["transaction_id"])
    newest_row, newest_label = START - timedelta(days=1), START - timedelta(days=1)
    for kind, part in parts:
        if kind == "transactions":
            assert part["known_at"].min() >= newest_label
            newest_row = part["known_at"].max()
        else:
            assert part["confirmed_at"].min() > newest_row
            newest_label = part["confirmed_at"].max()


def test_rows_are_cut_into_requests(serve: ModuleType) -> None:
    parts = list(serve._in_order(rows(list(range(2_500))), labels([])))
    assert [part.height for _, part in parts] == [1_000, 1_000, 500]


def test_accounts_are_filled_up_to_a_thousand_rows_before_the_measurement(serve: ModuleType) -> None:
    past, coming = rows(list(range(-600, 0))), rows(list(range(0, 40, 2)), "B")
    until = START + timedelta(minutes=20)
    made, accounts = serve.filled_up(past, coming, until)
    counts = dict(pl.concat([past, made]).group_by("account_id").len().iter_rows())
    assert accounts == ["A", "B"]
    assert (counts["A"], counts["B"]) == (1_000, 1_000)
    assert made["known_at"].is_sorted()
    assert made["known_at"].max() < until
    assert made["transaction_id"].is_unique().all()


def test_payload_holds_what_the_api_takes_and_nothing_empty(serve: ModuleType) -> None:
    (one,) = serve.payload(rows([1]))
    assert one == {
        "transaction_id": "A0",
        "booked_at": "2025-06-01T00:01:00.000000Z",
        "known_at": "2025-06-01T00:01:00.000000Z",
        "account_id": "A",
        "amount": 1.5,
    }


def test_rows_for_a_soak_never_repeat_and_never_go_back(serve: ModuleType) -> None:
    sent = list(islice(serve._for_ever(rows([0, 5, 9]), timedelta(days=1)), 9))
    assert len({one["transaction_id"] for one in sent}) == 9
    times = [one["known_at"] for one in sent]
    assert times == sorted(times)


def test_scores_are_compared_one_by_one(serve: ModuleType, tmp_path: Path) -> None:
    offline = pl.DataFrame(
        {
            "transaction_id": ["a", "b", "c"],
            "detector": ["ensemble", "ensemble", "rules"],
            "score": [1.0, 2.0, 3.0],
            "probability": [0.1, 0.2, 0.3],
            "is_alert": [False, True, True],
        }
    )
    (tmp_path / "data" / "ensemble").mkdir(parents=True)
    offline.write_parquet(tmp_path / "data" / "ensemble" / "scores.parquet")
    online = pl.DataFrame(
        {
            "transaction_id": ["a", "b", "c"],
            "score": [1.0, 2.5, 3.0],
            "probability": [0.1, 0.25, 0.3],
            "is_alert": [False, False, True],
        }
    )
    found = serve.compared(online, tmp_path)
    assert (found["answered"], found["compared"], found["equal_to_the_last_bit"]) == (3, 2, 1)
    assert found["largest_difference_of_scores"] == 0.5
    assert found["alerts_that_differ"] == 1
