"""KPI 9 for transactions: which rows a travel rule covers, and what they lack."""

from datetime import date

import pytest

from reperform.errors import ReperformError
from tests.featurize_tables import accounts, column, features, transactions

EU, US = {"home_country": "DE"}, {"home_country": "US"}
OURS = accounts({"account_id": "a", **EU}, {"account_id": "u", **US}, {"account_id": "x"})
SHARE = "information_incomplete_share_30d"


def test_a_european_transfer_has_to_name_both_sides() -> None:
    rows = transactions(
        {"hours": 0, "channel": "transfer"},
        {"hours": 1, "channel": "transfer", "counterparty_id": None},
        {"hours": 2, "channel": "card", "counterparty_id": None},
        {"hours": 3, "channel": "wire"},
    )
    got = features(rows, "payment_information", of=OURS)
    assert column(got, "information_required_n") == [2, 2, 0, 2]
    assert column(got, "information_completeness") == [1.0, 0.5, None, 1.0]
    assert column(got, "information_covered_n_30d") == [0, 1, 2, 2]
    assert column(got, SHARE) == [None, 0.0, 0.5, 0.5]


def test_the_american_rule_begins_at_3000_dollars() -> None:
    wire = {"account_id": "u", "channel": "wire", "currency": "USD", "amount_base": 1.0}
    rows = transactions(
        {"hours": 0, **wire, "amount": 2_999.99}, {"hours": 1, **wire, "amount": 3_000.0},
        {"hours": 2, **wire, "amount": 9_000.0, "currency": "EUR"},
    )  # fmt: skip
    assert column(features(rows, "payment_information", of=OURS), "information_required_n") == [0, 2, 0]


def test_an_account_without_a_country_is_under_no_countrys_rule() -> None:
    rows = transactions({"hours": 0, "account_id": "x", "channel": "wire"})
    assert column(features(rows, "payment_information", of=OURS), "information_completeness") == [None]


def test_a_rule_holds_from_its_first_day_to_its_last() -> None:
    rule = {"name": "r", "citation": "test", "effective_from": date(2025, 3, 4), "effective_to": date(2025, 3, 5)}
    rows = transactions(*({"hours": hours, "channel": "wire"} for hours in (23.9, 24, 71.9, 72)))
    got = features(rows, "payment_information", of=OURS, payment_information={"rules": [rule]})
    assert column(got, "information_required_n") == [0, 2, 2, 0]


def test_what_two_rules_ask_is_asked_once() -> None:
    rule = {"name": "r", "citation": "test", "effective_from": date(2025, 1, 1), "threshold": 10, "operator": ">"}
    more = rule | {"name": "s", "fields": ["counterparty_id", "country"], "threshold": 0}
    rows = transactions(
        {"hours": 0, "channel": "wire", "amount": 10.0}, {"hours": 1, "channel": "wire", "amount": 11.0}
    )
    got = features(rows, "payment_information", of=OURS, payment_information={"rules": [rule, more]})
    assert column(got, "information_required_n") == [2, 3]
    assert column(got, "information_completeness") == [0.5, pytest.approx(2 / 3)]  # the country is not given


def test_a_late_record_counts_from_when_it_arrived() -> None:
    rows = transactions(
        {"hours": 0, "channel": "wire", "counterparty_id": None, "late": 3},
        {"hours": 1, "channel": "wire"}, {"hours": 4, "channel": "wire"},
    )  # fmt: skip
    assert column(features(rows, "payment_information", of=OURS), SHARE) == [None, None, 0.5]


def test_a_field_that_does_not_exist_is_answered_with_its_neighbour() -> None:
    rule = {"name": "r", "citation": "t", "effective_from": date(2025, 1, 1), "fields": ["counterparty"]}
    with pytest.raises(ReperformError, match="counterparty_id"):
        features(transactions({"hours": 0}), "payment_information", of=OURS, payment_information={"rules": [rule]})
