"""KPI 7: counterparties on lists, as the lists were known on the day of the row."""

from datetime import date

import pytest

from tests.featurize_tables import column, features, transactions

FIRST = {"party": "c", "effective_from": date(2025, 3, 5), "citation": "test, version 1"}


def listed(*lists: dict[str, object], days: tuple[float, ...] = (1.99, 2, 4, 6, 8)) -> list[float | None]:
    """Rows so many days after March 3."""
    rows = transactions(*({"hours": 24 * day} for day in days), {"hours": 24 * 9, "counterparty_id": "other"})
    got = features(rows, "counterparty_risk", risk={"lists": list(lists)})
    return column(got, "counterparty_listed")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, [0, 1, 1, 1, 1, 0]),
        ({"published": date(2025, 3, 8)}, [0, 0, 0, 1, 1, 0]),  # in force earlier, but nobody knew
        ({"effective_to": date(2025, 3, 8)}, [0, 1, 1, 0, 0, 0]),
        ({"effective_to": date(2025, 3, 8), "end_published": date(2025, 3, 10)}, [0, 1, 1, 1, 0, 0]),
    ],
)
def test_a_listing_counts_while_it_is_in_force_and_known(entry: dict[str, object], expected: list[int]) -> None:
    assert listed(FIRST | entry) == expected


def test_without_lists_nobody_is_known_to_be_off_them() -> None:
    assert listed() == [None] * 6


def test_a_row_without_counterparty_is_on_no_list() -> None:
    got = features(transactions({"hours": 72, "counterparty_id": None}), "counterparty_risk", risk={"lists": [FIRST]})
    assert column(got, "counterparty_listed") == [None]
