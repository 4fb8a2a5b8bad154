"""What a receipt says, in words that do not say more than the numbers."""

import json
import math
from typing import Any

import numpy as np
import pytest

from reperform.explain import receipts
from reperform.explain.receipts import Place

FEATURES = ("pass_through_72h", "velocity_n_24h", "time_is_night")
DICTIONARY: dict[str, dict[str, Any]] = {
    "pass_through_72h": {
        "kpi": "Network effect indicators",
        "kpi_number": 13,
        "family": "network",
        "formula": "min(in, out) / max(in, out)",
        "unit": "share",
        "null_rule": "no payment in the window",
    },
    "velocity_n_24h": {
        "kpi": "Transaction velocity",
        "kpi_number": 1,
        "family": "velocity",
        "formula": "transactions in 24 h",
        "unit": "transactions",
    },
    "time_is_night": {"kpi": "Time-based patterns", "kpi_number": 3, "formula": "1 from 0 to 6", "unit": "0 or 1"},
}
TRAINING = np.column_stack([np.arange(1000) / 1000, np.tile(np.arange(10.0), 100), np.tile([0.0] * 9 + [1.0], 100)])


def case(**changes: Any) -> receipts.Case:
    given: dict[str, Any] = {
        "transaction": {"transaction_id": "t1", "source_file": "bank/a.csv", "source_record": 7},
        "alert": {"score": 2.0, "probability": 0.9, "threshold": 1.0, "rank": 1, "alerts": 3},
        "members": [
            {"member": "rules", "score": 1.0, "contribution": 0.5, "share": 0.25},
            {"member": "xgboost", "score": 3.0, "contribution": 1.5, "share": 0.75},
        ],
        "intercept": 0.0,
        "detector": "xgboost",
        "unit": receipts.LOG_ODDS,
        "score": 3.0,
        "base": -4.0,
        "residual": 0.0,
        "is_additive": True,
        "values": np.array([0.9985, 3.0, np.nan]),
        "shap": np.array([6.0, -0.5, 1.5]),
        "lime": np.array([5.0, 0.5, 0.0]),
        "shift": np.array([0.1, 0.0, -0.2]),
        "fidelity": 0.6,
        "trust": {"index": 70.0},
    }
    return receipts.Case(**(given | changes))


def made(**changes: Any) -> dict[str, Any]:
    return receipts.receipt(case(**changes), FEATURES, DICTIONARY, receipts.Reference.of(TRAINING), top=5)


def test_a_value_is_told_with_its_place_in_training() -> None:
    sentence = made()["features"][0]["sentence"]
    assert sentence.startswith(
        "pass through 72 h 0.9985, higher than 99.9 % of transactions in training (median 0.4995)"
    )
    assert "raises the score by 6 log-odds (multiplies the odds by 403.4)" in sentence


def test_shares_are_rounded_down() -> None:
    assert "99.9 %" in receipts.placed("x", 1.0, Place(0.99999, 0.0, 0.5, 0.0))


@pytest.mark.parametrize(
    ("value", "place", "unit", "expected"),
    [
        (9.0, Place(1.0, 0.0, 2.0, 0.0), "days", "x 9 days, higher than all transactions in training (median 2)"),
        (0.0, Place(0.0, 0.0, 2.0, 0.0), "x", "x 0, lower than all transactions in training (median 2)"),
        (0.0, Place(0.0, 0.9, 0.0, 0.0), "x", "x 0, as for 90.0 % of transactions in training (median 0)"),
        (1.0, Place(0.3, 0.3, 1.0, 0.0), "x", "x 1, within the usual range of transactions in training (median 1)"),
        (1.0, Place(0.97, 0.03, 0.0, 0.0), "0 or 1", "x: yes, as for 3.0 % of transactions in training"),
        (
            4.0,
            Place(0.02, 0.0, 39.0, 0.94),
            "days",
            "x 4 days, lower than 98.0 % of those 6.0 % of transactions in training that have it (median 39)",
        ),
        (2.0, Place(math.nan, math.nan, None, 1.0), "x", "x 2, known for no transaction in training"),
    ],
)
def test_sentences(value: float, place: Place, unit: str, expected: str) -> None:
    assert receipts.placed("x", value, place, unit=unit) == expected


def test_an_unknown_value_says_why_and_how_common_that_is() -> None:
    got = receipts.placed("x", math.nan, Place(math.nan, math.nan, 1.0, 0.25), null_rule="no payment in the window")
    assert got == "x unknown (no payment in the window), as for 25.0 % of transactions in training"


def test_places_by_hand() -> None:
    reference = receipts.Reference.of(np.array([[1.0], [2.0], [2.0], [5.0], [np.nan]]))
    assert reference.place(0, 2.0) == Place(0.25, 0.5, 2.0, pytest.approx(0.2))
    assert reference.place(0, 2.0).percentile == 50
    assert reference.place(0, 9.0).is_beyond
    assert not reference.place(0, 5.0).is_beyond


def test_features_come_by_size_and_members_too() -> None:
    one = made()
    assert [f["feature"] for f in one["features"]] == ["pass_through_72h", "time_is_night", "velocity_n_24h"]
    assert [m["member"] for m in one["members"]] == ["xgboost", "rules"]
    assert one["explained_member"]["share_of_ensemble"] == 0.75


def test_what_speaks_against_the_alert_is_told_as_well() -> None:
    why = made()["why"]
    assert why.index("What raises xgboost") < why.index("Pass through") < why.index("What speaks against it: Velocity")
    assert "divides the odds by 1.65" in why


def test_the_receipt_says_what_the_alert_does_not_show() -> None:
    limits = " ".join(made()["does_not_show"])
    assert "neither intent nor a breach of law" in limits
    assert "xgboost alone, which makes 75.0 % of the members' contributions" in limits
    assert "1 of 3 features are unknown" in limits
    assert "do not add up" not in limits


def test_a_value_beyond_training_is_called_an_extrapolation() -> None:
    limits = " ".join(made(values=np.array([2.0, 3.0, np.nan]))["does_not_show"])
    assert "such a value of pass through 72 h: the model extrapolates" in limits


def test_a_feature_that_moves_everybody_is_said_to_tell_little() -> None:
    limits = " ".join(made(shift=np.array([4.0, 0.0, -0.2]))["does_not_show"])
    assert "Pass through 72 h moves random transactions without an alert as well, by +4.00 more than it did" in limits
    assert "without an alert as well" not in " ".join(made()["does_not_show"])
    assert "without an alert as well" not in " ".join(made(shift=np.full(3, np.nan))["does_not_show"])


def test_contributions_that_do_not_add_up_are_not_to_be_relied_on() -> None:
    limits = " ".join(made(is_additive=False, residual=0.5)["does_not_show"])
    assert "do not add up to the score (residual 0.5): do not rely on them" in limits


def test_disagreement_between_shap_and_lime_is_named() -> None:
    found = made()["disagreement"]
    assert found["only_shap"] == ["time_is_night"]
    assert found["opposite_sign"] == ["velocity_n_24h"]
    assert "Only SHAP names time is night" in found["sentence"]
    assert "direction of velocity n 24 h" in found["sentence"]


def test_sources_begin_with_the_raw_record() -> None:
    sources = made()["sources"]
    assert sources[0] == {"file": "bank/a.csv", "key": "record 7"}
    assert {"file": "data/ensemble/model.json", "key": "the members' weights"} in sources


def test_a_receipt_is_plain_json_and_a_page_holds_what_it_says() -> None:
    one = made()
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    page = receipts.page(one)
    for part in (one["why"], one["disagreement"]["sentence"], "bank/a.csv", "| xgboost |", "13 Network effect"):
        assert part in page
    assert "#" not in page


def test_the_document_says_how_many_alerts_are_left_out() -> None:
    got = receipts.document([made()], detector="xgboost", alerts=3)
    assert (got["alerts"], got["explained"], got["left_out"]) == (3, 1, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.97, "0.97"), (12345.678, "12,346"), (3.14159, "3.142"), (1e9, "1.000e+09"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert receipts.number(value) == expected
