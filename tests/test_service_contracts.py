"""Requests are read strictly, and what is wrong with them is said with its place."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform.service import contracts, intake
from reperform.service.exchange import Rates
from reperform.service.refusals import LONGEST_ECHO, Refusal, echo
from tests.service_fakes import ACCOUNTS, BEGAN, RATES

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


def body(**changed: Any) -> bytes:
    return json.dumps({"transactions": [contracts.TRANSACTION | changed]}).encode()


def refused(text: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        contracts.read(contracts.DetectRequest, text)
    return caught.value


def test_the_documented_example_is_read() -> None:
    (one,) = contracts.read(contracts.DetectRequest, body()).transactions
    assert one.booked_at == datetime(2025, 6, 21, 16, 23, 12, tzinfo=UTC)
    assert one.amount == 1900.0
    assert one.latitude is None


def test_times_are_read_with_their_offset() -> None:
    (one,) = contracts.read(contracts.DetectRequest, body(booked_at="2025-06-21T18:23:12.5+02:00")).transactions
    assert one.booked_at == datetime(2025, 6, 21, 16, 23, 12, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"", "line 1 column 0"),
        (b"{", "line 1 column 1"),
        (b'{"transactions":\n [1, }', "line 2 column 6"),
        (b"[" * 100_000, "line 1 column"),
        (b'{"a": "\xff"}', "line 1 column 8"),
        (b'{"a": "\\ud800"}', "line 1 column"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text: bytes, place: str) -> None:
    error = refused(text)
    assert (error.status, error.code) == (400, "malformed-json")
    assert place in error.where


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"amount": "1900"}, "amount"),
        ({"amount": float("nan")}, "amount"),
        ({"amount": float("-inf")}, "amount"),
        ({"amount": 10**400}, "amount"),
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount_base": 1e16}, "amount_base"),
        ({"balance_after": float("inf")}, "balance_after"),
        ({"latitude": 91}, "latitude"),
        ({"booked_at": 1_750_000_000}, "booked_at"),
        ({"booked_at": "1750000000"}, "booked_at"),
        ({"booked_at": "2025-06-21"}, "booked_at"),
        ({"booked_at": "2025-06-21T16:23:12"}, "booked_at"),
        ({"booked_at": "2025-02-30T16:23:12Z"}, "booked_at"),
        ({"booked_at": "0001-01-01T00:00:00+14:00"}, "booked_at"),
        ({"transaction_id": ""}, "transaction_id"),
        ({"transaction_id": "a\x00b"}, "transaction_id"),
        ({"account_id": "a\nb"}, "account_id"),
        ({"account_id": " a"}, "account_id"),
        ({"account_id": "a" * 201}, "account_id"),
        ({"direction": "sideways"}, "direction"),
        ({"currency": "eur"}, "currency"),
        ({"country": "DEU"}, "country"),
        ({"surprise": 1}, "surprise"),
        ({"counterparty_id": 7}, "counterparty_id"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(changed: dict[str, Any], where: str) -> None:
    error = refused(body(**changed))
    assert error.status == 422
    assert error.where == f"transactions[0].{where}"
    assert error.expected
    assert error.fix


def test_every_problem_is_told() -> None:
    error = refused(body(amount="x", currency="?", direction=None))
    assert {one.where for one in error.more} == {
        f"transactions[0].{name}" for name in ("amount", "currency", "direction")
    }


@pytest.mark.parametrize("n", [0, 1001])
def test_a_request_holds_1_to_1000_transactions(n: int) -> None:
    error = refused(json.dumps({"transactions": [contracts.TRANSACTION] * n}).encode())
    assert error.where == "transactions"
    assert error.got == f"a list of {n}"


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_no_bytes_break_the_reader(text: bytes) -> None:
    assert refused(text).status in (400, 422)


@given(st.text(max_size=400))
@settings(max_examples=50)
def test_what_is_repeated_to_a_client_is_printable_and_short(text: str) -> None:
    assert echo(text).isprintable()
    assert len(echo(text)) <= LONGEST_ECHO


# What must hold beyond the form


def known(**changed: Any) -> intake.Known:
    values: dict[str, Any] = {
        "accounts": ACCOUNTS, "rates": RATES, "now": NOW, "clock": None, "clock_skew": timedelta(minutes=5),
        "latest_arrival": timedelta(days=60), "answered": lambda ids: set(), "in_pipeline": lambda ids: set(),
    }  # fmt: skip
    return intake.Known(**(values | changed))


def record(**changed: Any) -> dict[str, Any]:
    plain = {
        "transaction_id": "t1", "booked_at": NOW - timedelta(hours=1), "account_id": "acc-1", "direction": "out",
        "amount": 10.0, "currency": "EUR",
    }  # fmt: skip
    return plain | changed


def codes(*records: dict[str, Any], held: intake.Known | None = None) -> list[str]:
    held = held or known()
    rows = intake.completed(records, held)
    found = intake.problems(rows, held)
    return [one.code for place in sorted(found) for one in found[place]]


def test_what_may_be_missing_is_filled_in() -> None:
    (row,) = intake.completed([record(currency="USD")], known())
    assert (row["known_at"], row["entity_id"], row["amount_base"]) == (NOW, "northbank", 9.0)
    assert (row["source_file"], row["source_record"]) == ("api", 0)
    assert intake.frame([row]).height == 1
    assert codes(record(currency="USD")) == []


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"account_id": "acc-9"}, "unknown-account"),
        ({"entity_id": "lakeside"}, "other-institution"),
        ({"currency": "QQQ"}, "unknown-currency"),
        ({"currency": "JPY"}, "unknown-currency"),
        ({"currency": "QQQ", "amount_base": 1.0}, "unknown-currency"),
        ({"amount": 5e-324, "currency": "USD"}, "amount-out-of-range"),
        ({"amount": 1e10}, None),
        ({"amount": 1e11, "currency": "USD"}, "amount-out-of-range"),
        ({"country": "XX"}, "unknown-country"),
        ({"latitude": 1.0}, "half-a-place"),
        ({"known_at": NOW + timedelta(minutes=6)}, "clock-skew"),
        ({"known_at": NOW + timedelta(minutes=4)}, None),
        ({"booked_at": NOW + timedelta(minutes=6)}, "clock-skew"),
        ({"known_at": NOW - timedelta(hours=2)}, "known-before-booking"),
        ({"booked_at": NOW - timedelta(days=61)}, "too-old"),
    ],
)
def test_each_rule_has_its_own_code(changed: dict[str, Any], code: str | None) -> None:
    assert codes(record(**changed)) == ([code] if code else [])


def test_an_amount_counts_at_the_rate_of_its_time() -> None:
    later = BEGAN + timedelta(days=30)
    rates = Rates("EUR", {"USD": [BEGAN, later]}, {"USD": [0.9, 0.8]})
    assert rates.at("USD", later - timedelta(seconds=1)) == 0.9
    assert rates.at("USD", later) == 0.8
    assert rates.at("USD", BEGAN - timedelta(seconds=1)) is None
    assert rates.at("EUR", BEGAN) == 1.0


def test_nothing_is_answered_out_of_order() -> None:
    held = known(clock=NOW - timedelta(minutes=10))
    assert codes(record(known_at=NOW - timedelta(minutes=14)), held=held) == []
    assert codes(record(known_at=NOW - timedelta(minutes=16)), held=held) == ["out-of-order"]
    (problem,) = intake.problems(intake.completed([record(known_at=NOW - timedelta(minutes=16))], held), held)[0]
    assert problem.status == 409


def test_nothing_is_answered_twice() -> None:
    assert codes(record(), record()) == ["duplicate-in-request"]
    assert codes(record(), held=known(answered=set)) == ["answered-already"]
    assert codes(record(), held=known(in_pipeline=set)) == ["scored-by-pipeline"]
