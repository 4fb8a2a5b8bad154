"""KPI 13 against like accounts: matched by segment and number of payments, learned from training alone."""

import numpy as np
import pytest

from reperform import featurize
from reperform.errors import ReperformError
from reperform.featurize.matched import INDICATORS, degree_bins
from tests.featurize_tables import accounts, calendar, column, labels, stage, transactions, world

KPIS = ("network", "network_graph", "network_structure", "network_matched")
NAME = "network_fan_out_30d"


def only(name: str, **more: object) -> dict[str, object]:
    return {"indicators": [name], "least_n": 3} | more


def test_degrees_are_matched_by_powers_of_two() -> None:
    degrees = np.array([0, 1, 2, 3, 6, 7, 14, 15.0])
    made = {"network_in_degree_30d": degrees, "network_out_degree_30d": np.zeros(8)}
    assert degree_bins(made).tolist() == [0, 1, 1, 2, 2, 3, 3, 4]


def test_distance_from_the_median_of_the_group_in_its_deviations() -> None:
    everything = {NAME: [1.0, 1.0, 40]}
    retail, few = {NAME: [2.0, 1.0, 30]}, {NAME: [3.0, 2.0, 20]}
    fitted = {"network_matched": {"": {"": everything}, "segment": {"retail": retail},
                                  "segment and degree": {"retail|2": few}}}  # fmt: skip
    of = accounts({"account_id": "a", "segment": "retail"}, {"account_id": "b"})
    rows = transactions(*({"hours": k, "counterparty_id": f"c{k}"} for k in range(5)), {"hours": 9, "account_id": "b"})
    made = featurize.featurize(
        rows, of, labels(), stage(*KPIS, network_matched=only(NAME)), calendar(),
        fitted={"network": {}, "network_graph": {}, "network_structure": {"slope": None}} | fitted,
    )  # fmt: skip
    fan_out = np.array([0, 1, 2, 3, 4, 0])
    assert column(made.table, NAME) == fan_out.tolist()
    retail_z = [(x - 2) / (1.4826 + 0.05) for x in (0, 1, 2)]
    few_z = [(x - 3) / (1.4826 * 2 + 0.05) for x in (3, 4)]  # three and four payments before the row
    assert column(made.table, f"{NAME}_z") == pytest.approx([*retail_z, *few_z, (0 - 1) / (1.4826 + 0.05)])
    assert column(made.table, "network_matched_n") == [30, 30, 30, 20, 20, 40]


def test_groups_are_learned_from_training_and_small_ones_fall_back() -> None:
    of = accounts({"account_id": "a", "segment": "retail"}, {"account_id": "b", "segment": "business"})
    early = [{"hours": k, "counterparty_id": f"c{k}"} for k in range(6)]
    later = [{"hours": 24 * 11 + k, "account_id": "b", "counterparty_id": "c"} for k in range(3)]
    made = featurize.featurize(
        transactions(*early, *later), of, labels(), stage(*KPIS, network_matched=only(NAME)), calendar(10)
    )
    learned = made.fitted["network_matched"]
    assert learned["segment"] == {"retail": {NAME: [2.5, 1.5, 6]}}  # fan-out 0 to 5
    assert learned["segment and degree"] == {"retail|0": {}, "retail|1": {}, "retail|2": {NAME: [4.0, 1.0, 3]}}
    assert column(made.table, f"{NAME}_z")[6] == pytest.approx((0 - 2.5) / (1.4826 * 1.5 + 0.05))
    assert column(made.table, "network_matched_n")[6:] == [6, 6, 6]


def test_without_training_rows_nothing_is_said() -> None:
    rows = transactions({"hours": 24 * 30})
    made = featurize.featurize(rows, accounts(), labels(), stage(*KPIS), calendar(10))
    assert all(column(made.table, f"{name}_z") == [None] for name in INDICATORS)
    assert column(made.table, "network_matched_n") == [0]


def test_training_values_are_those_of_the_whole_table() -> None:
    """Rows of training see nothing later, so that a table cut at the end of training teaches the same."""
    rows, labelled, of = world(n=300, seed=4)
    split = calendar(25)
    cut = rows.filter((rows["booked_at"] < split.fit_end) & (rows["known_at"] < split.fit_end))
    settings = stage(*KPIS, network_matched={"least_n": 5})
    whole, part = (featurize.featurize(r, of, labelled, settings, split).fitted["network_matched"] for r in (rows, cut))
    assert whole == part
    assert any(whole["segment and degree"].values())


def test_an_unknown_indicator_is_named() -> None:
    with pytest.raises(ReperformError, match="network_fan_out_30d"):
        featurize.featurize(
            transactions({"hours": 0}), accounts(), labels(),
            stage(*KPIS, network_matched={"indicators": ["network_fan_out_30"]}), calendar(),
        )  # fmt: skip
