"""The bridge from ledger to filing: each planted reason for a gap is found, on a small ledger that can be read."""

from datetime import date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform.featurize.bridge import filing_bridge
from reperform.schemas import FILING_BRIDGE
from tests import filing_samples as sample
from tests.filing_samples import JANUARY, at, fact, filing, transaction

FILED = at("2025-02-10", 0)
# Amounts that no few others add up to.
AMOUNTS = [1013.0, 2029.0, 4057.0, 8111.0, 16223.0, 32443.0, 64879.0, 129763.0]
DAYS = ["2025-01-01", "2025-01-02", "2025-01-09", "2025-01-15", "2025-01-15", "2025-01-22", "2025-01-31", "2025-01-31"]


def payment(number: int, day: str, amount: float, *, hour: int = 12, **more: Any) -> dict[str, Any]:
    return transaction(number, at(day, hour), more.pop("direction", "in"), amount, **more)


def base(**changes: Any) -> list[dict[str, Any]]:
    """Eight payments of January: one on most days named above, two on the 15th and on the last day."""
    rows = [payment(k, day, amount, hour=10 + k) for k, (day, amount) in enumerate(zip(DAYS, AMOUNTS, strict=True))]
    rows[3] |= {"channel": "cash"}
    return [row | changes for row in rows]


def value_of(rows: list[dict[str, Any]]) -> int:
    return int(sum(row["amount"] for row in rows))


def bridge(rows: list[dict[str, Any]], value: float, number: int | None = None, **more: Any) -> list[dict[str, Any]]:
    """Explanations of what was filed of January; each needs a ledger that covers the month."""
    facts = [fact("f", "IncomingTransactionsValue", value, start=JANUARY.first, **more)]
    if number is not None:
        facts.append(fact("f", "IncomingTransactionsNumber", number, start=JANUARY.first, unit="xbrli:pure"))
    made = filing_bridge(
        sample.filings(filing("f", filed_at=FILED)), sample.facts(*facts), sample.ledger(*rows),
        base_currency="EUR", edge_days=3,
    )  # fmt: skip
    assert dict(made.schema) == FILING_BRIDGE
    return made.to_dicts()


def best(found: list[dict[str, Any]]) -> tuple[str, date | None, str]:
    first = next(row for row in found if row["concept"] == "brr:IncomingTransactionsValue")
    assert first["rank"] == 1
    return first["explanation"], first["day"], first["transaction_ids"]


def test_where_filing_and_ledger_agree_nothing_is_explained() -> None:
    assert bridge(base(), value_of(base()), 8) == []


def test_a_gap_names_both_sides_and_what_it_is() -> None:
    (row,) = bridge(base(), value_of(base()) - 7)
    assert (row["filed"], row["ledger"], row["gap"]) == (258_511.0, 258_518.0, -7.0)
    assert (row["explanation"], row["amount_explained"], row["share_explained"]) == ("unexplained", 0.0, 0.0)
    assert (row["unit"], row["lines_failed"]) == ("iso4217:EUR", 1)


def test_records_that_arrived_after_the_filing() -> None:
    late = payment(20, "2025-01-20", 555.0, known_at=at("2025-02-11"))
    found = bridge([*base(), late], value_of(base()) + 555, 9)
    assert best(found) == ("late records", None, "north-20")
    assert found[0]["amount_explained"] == 1.0  # of the number
    assert not found[0]["is_known_at_filing"]


def test_records_that_arrived_after_the_period_and_are_not_in_the_filing() -> None:
    rows = base()
    rows[2] |= {"known_at": at("2025-02-03")}
    rows[5] |= {"known_at": at("2025-02-04")}
    found = bridge(rows, value_of(base()) - 4057 - 32443, 6)
    assert best(found) == ("late records", None, "north-2, north-5")
    assert found[0]["is_known_at_filing"]


def test_late_records_that_explain_a_part_say_how_much() -> None:
    late = payment(20, "2025-01-20", 600.0, known_at=at("2025-02-11"))
    (row,) = bridge([*base(), late], value_of(base()) + 1000)
    assert (row["explanation"], row["amount_explained"], row["share_explained"]) == ("late records", 600.0, 0.6)
    assert (row["lines_explained"], row["lines_failed"]) == (0, 1)


@pytest.mark.parametrize(
    ("row", "value", "number", "day", "ids"),
    [
        (None, -129763 - 64879, 6, date(2025, 1, 31), "north-6, north-7"),
        (None, -129763, 7, date(2025, 1, 31), "north-7"),
        (payment(20, "2025-02-01", 333.0), 333, 9, date(2025, 2, 1), "north-20"),
        (payment(20, "2024-12-31", 333.0), 333, 9, date(2024, 12, 31), "north-20"),
        (None, -1013, 7, date(2025, 1, 1), "north-0"),
    ],
)
def test_a_cut_off_that_is_not_midnight(
    row: dict[str, Any] | None, value: int, number: int, day: date, ids: str
) -> None:
    rows = base() if row is None else [*base(), row]
    found = bridge(rows, value_of(base()) + value, number)
    assert best(found) == ("cut-off", day, ids)
    assert {one["lines_explained"] for one in found if one["rank"] == 1} == {2}


def test_a_cut_off_need_not_take_the_very_last_payments() -> None:
    rows = [*base(), payment(20, "2025-01-31", 777.0, hour=20), payment(21, "2025-01-31", 888.0, hour=22)]
    found = bridge(rows, value_of(rows) - 777 - 129763, 8)
    assert best(found) == ("cut-off", date(2025, 1, 31), "north-7, north-20")


def test_a_whole_day_is_missing() -> None:
    found = bridge(base(), value_of(base()) - 8111 - 16223, 6)
    assert best(found) == ("missing day", date(2025, 1, 15), "north-3, north-4")
    twice = bridge(base(), value_of(base()) + 8111 + 16223, 10)
    assert best(twice) == ("day counted twice", date(2025, 1, 15), "north-3, north-4")


def test_a_channel_is_missing() -> None:
    rows = base()
    rows[5] |= {"channel": "cash"}
    assert best(bridge(rows, value_of(rows) - 8111 - 32443, 6)) == ("missing channel", None, "north-3, north-5")


def test_one_payment_is_missing_or_counted_twice() -> None:
    rows = [*base(), payment(20, "2025-01-15", 700.0)]
    assert best(bridge(rows, value_of(rows) - 16223, 8))[0::2] == ("missing payment", "north-4")
    assert best(bridge(rows, value_of(rows) + 16223, 10))[0::2] == ("payment counted twice", "north-4")


def test_duplicates_in_the_ledger() -> None:
    rows = [*base(), *(payment(k, "2025-01-09", 4057.0, hour=5) for k in (29, 30, 31))]
    found = bridge(rows, value_of(rows) - 2 * 4057, 9)
    assert best(found) == ("duplicates", None, "north-30, north-31")


def test_days_by_another_clock() -> None:
    rows = [
        *base(), payment(20, "2024-12-31", 300.0, hour=22), payment(21, "2024-12-31", 700.0, hour=23),
        payment(22, "2025-01-31", 90_001.0, hour=22), payment(23, "2025-01-31", 90_003.0, hour=23),
        payment(24, "2025-01-31", 90_005.0, hour=23),
    ]  # fmt: skip
    by_its_clock = value_of(base()) + 300 + 700
    found = bridge(rows, by_its_clock, 10)
    assert best(found)[0] == "other clock"
    assert found[0]["detail"] == "the filing's days begin -2 hours from midnight UTC"
    assert (found[0]["n_transactions"], found[0]["lines_explained"]) == (5, 2)


@pytest.mark.parametrize(("factor", "word"), [(1000, "small"), (100, "small"), (0.001, "large")])
def test_a_wrong_unit(factor: float, word: str) -> None:
    found = bridge(base(), round(value_of(base()) / factor))
    assert found[0]["explanation"] == "unit"
    assert word in found[0]["detail"]
    assert found[0]["amount_explained"] == found[0]["gap"]


def test_a_number_has_no_unit_to_be_wrong() -> None:
    found = bridge(base() * 1, value_of(base()), 8000)
    assert [row["explanation"] for row in found] == ["unexplained"]


def test_the_opposite_sign() -> None:
    assert bridge(base(), -value_of(base()))[0]["explanation"] == "sign"


def test_the_same_amount_on_both_sides() -> None:
    rows = [*base(), payment(40, "2025-01-15", 50_000.0, direction="out", hour=1)]
    facts = sample.facts(
        fact("f", "IncomingTransactionsValue", value_of(base()) - 12_345, start=JANUARY.first),
        fact("f", "OutgoingTransactionsValue", 50_000 - 12_345, start=JANUARY.first),
    )
    made = filing_bridge(
        sample.filings(filing("f", filed_at=FILED)), facts, sample.ledger(*rows), base_currency="EUR", edge_days=3
    )
    assert made["explanation"].to_list() == ["both sides alike"] * 2
    assert made["lines_explained"].to_list() == [2, 2]


def test_rounded_parts_may_leave_half_a_unit_more() -> None:
    rows = base()
    rows[7] |= {"amount": 129_763.4, "amount_base": 129_763.4}
    whole = 258_518  # the ledger's 258,518.40 less the rounded 129,763: half a unit from the rest, and a little more
    assert best(bridge(rows, whole - 129_763 + 1, 7))[0::2] == ("cut-off", "north-7")
    assert bridge(rows, whole - 129_763 + 3, 7)[0]["explanation"] == "unexplained"


def test_a_ledger_that_does_not_cover_the_period_explains_nothing() -> None:
    assert bridge(base()[3:], 1.0) == []


def test_without_filings_or_ledger_the_table_is_empty() -> None:
    made = filing_bridge(sample.filings(), sample.facts(), sample.ledger(), base_currency="EUR", edge_days=3)
    assert (made.height, dict(made.schema)) == (0, FILING_BRIDGE)
    assert bridge([], 5.0) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 33), st.integers(1, 10**6), st.integers(0, 50)), min_size=1, max_size=12),
       st.integers(-(10**6), 10**6))  # fmt: skip
def test_what_is_explained_and_what_is_left_make_the_gap(drawn: list[tuple[int, int, int]], off: int) -> None:
    rows = base() + [
        transaction(100 + k, at("2024-12-30") + timedelta(days=day), "in", cents / 100,
                    known_at=at("2024-12-30") + timedelta(days=day + late))
        for k, (day, cents, late) in enumerate(drawn)
    ]  # fmt: skip
    for row in bridge(rows, value_of(base()) + off):
        assert 0 <= row["share_explained"] <= 1
        assert row["gap"] == pytest.approx(row["filed"] - row["ledger"])
        if row["share_explained"] == 1:
            assert row["amount_explained"] == pytest.approx(row["gap"], abs=1)
        assert row["lines_explained"] <= row["lines_failed"]
        assert (row["explanation"] == "unexplained") == (row["amount_explained"] == 0)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [*base(), payment(20, "2025-01-31", 777.0, hour=20)]
    assert bridge(rows, value_of(rows) - 777, 8) == bridge(rows[::-1], value_of(rows) - 777, 8)


def test_what_happens_after_the_period_does_not_change_the_ledgers_side() -> None:
    later = [payment(50 + k, "2025-03-05", 99.0) for k in range(3)]
    before, after = (bridge(rows, 1_000_001) for rows in (base(), [*base(), *later]))
    assert before == after


def test_moments_are_kept_in_utc() -> None:
    (row,) = bridge(base(), 1_000_001)
    assert row["filed_at"] == datetime.fromisoformat("2025-02-10T00:00:00+00:00")
    assert pl.DataFrame([row], schema=FILING_BRIDGE).height == 1
