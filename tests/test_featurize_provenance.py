"""Behind every value: how many records, and how new the newest of them is."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from reperform import featurize
from reperform.errors import ReperformError
from reperform.featurize import provenance
from reperform.featurize.kpis import KPIS
from tests.featurize_tables import RULES, accounts, at, calendar, labels, stage, transactions, world

ALL = stage(thresholds={"rules": RULES})
# The column that counts the records behind each KPI. Of KPIs about two parties or several sums, the first is named.
COUNTED = {
    "velocity": "velocity_n_30d",
    "amount_deviation": "amount_deviation_n_90d",
    "amount_spike": "amount_history_n_180d",
    "benford": "benford_n_180d",
    "time_pattern": "time_surprisal_n_180d",
    "frequency": "frequency_days_n",
    "frequency_rate": "frequency_q_n",
    "balance": "balance_n_30d",
    "geography": "geo_radius_n_180d",
    "counterparty_risk": "counterparty_risk_n_180d",
    "account_risk": "account_risk_n_180d",
    "counterparty_streak": "counterparty_resolved_n",
    "account_streak": "account_resolved_n",
    "propagated_risk": "propagated_risk_n_90d",
    "thresholds": "smurfing_of_n_7d",
    "thresholds_counterparty": "smurfing_accounts_of_n_7d",
    "payment_information": "information_covered_n_30d",
    "concentration": "concentration_counterparty_n_30d",
    "correlation": "correlation_reference_n",
    "correlation_peers": "correlation_peers_n",
    "synchrony": "synchrony_n_28d",
    "network": "network_in_degree_30d",
    "network_counterparty": "counterparty_n_30d",
    "network_graph": "network_structure_n_30d",
    "network_structure": "network_structure_n_30d",
    "network_matched": "network_matched_n",
}


def of(rows: pl.DataFrame, *kpis: str, labelled: pl.DataFrame | None = None) -> pl.DataFrame:
    given = stage(*kpis)
    rows = rows.select(provenance.READS)
    ledger = featurize.ledger_of(rows, accounts(), labels() if labelled is None else labelled, given, calendar())
    return provenance.provenance(ledger, featurize.selected(list(kpis)), given)


@pytest.mark.parametrize("name", KPIS)
def test_every_kpi_gives_the_number_of_records_behind_it(name: str) -> None:
    other = "network_structure" if name == "network_graph" else name  # both look at one graph
    (column,) = (c for c in KPIS[other].columns(KPIS[other].settings_of({})) if c.name == COUNTED[name])
    assert column.unit in {"accounts", "days", "payments", "transactions"}


def test_the_newest_record_is_the_one_that_arrived_last() -> None:
    rows = transactions({"hours": 0}, {"hours": 1, "late": 4}, {"hours": 3}, {"hours": 6}, {"hours": 6})
    got = of(rows, "velocity")["velocity_as_of"].to_list()
    assert got == [None, at(0), at(0), at(5), at(5)]


def test_a_record_outside_the_window_is_no_source() -> None:
    rows = transactions({"hours": 0}, {"hours": 24 * 179}, {"hours": 24 * 180 + 1}, {"hours": 24 * 400})
    got = of(rows, "benford")["benford_as_of"].to_list()
    assert got == [None, at(0), at(24 * 179), None]


def test_an_older_record_that_is_in_the_window_counts_where_a_later_arrival_is_not() -> None:
    rows = transactions({"hours": 0, "late": 24 * 100}, {"hours": 24 * 50}, {"hours": 24 * 190})
    got = of(rows, "benford")["benford_as_of"].to_list()
    assert got == [None, None, at(24 * 50)]


def test_a_label_counts_once_it_is_confirmed() -> None:
    rows = transactions({"hours": 0}, {"hours": 10}, {"hours": 30})
    got = of(rows, "account_risk", labelled=labels((0, True, 20)))["account_risk_as_of"].to_list()
    assert got == [None, at(0), at(20)]


def test_a_row_without_a_counterparty_has_no_source_there() -> None:
    rows = transactions({"hours": 0}, {"hours": 1, "counterparty_id": None}, {"hours": 2})
    assert of(rows, "network_counterparty")["network_counterparty_as_of"].to_list() == [None, None, at(0)]


def test_what_a_kpi_needs_counts_as_its_source() -> None:
    rows = transactions({"hours": 0, "account_id": "b"}, {"hours": 1, "account_id": "a"})
    got = of(rows, "counterparty_risk", "concentration")
    assert got["concentration_as_of"].to_list() == [None, at(0)]


def test_nothing_behind_a_value_is_newer_than_its_row() -> None:
    rows, labelled, who = world(seed=5)
    ledger = featurize.ledger_of(rows, who, labelled, ALL, calendar())
    table = provenance.provenance(ledger, list(KPIS.values()), ALL)
    assert table.columns == ["transaction_id", *(f"{name}_as_of" for name in KPIS)]
    assert provenance.checked(table, rows["booked_at"]) is table
    assert all((table[name] <= rows["known_at"]).all() for name in table.columns[1:])
    assert all(table[name].null_count() < rows.height / 2 for name in table.columns[1:])


def test_a_source_newer_than_its_row_is_refused() -> None:
    rows = transactions({"hours": 0}, {"hours": 1})
    table = of(rows, "velocity").with_columns(velocity_as_of=rows["booked_at"] + timedelta(hours=1))
    with pytest.raises(ReperformError, match="newer than the row"):
        provenance.checked(table, rows["booked_at"])


@pytest.mark.parametrize("number", [60, 150, 230, 310, 390])
def test_no_record_that_arrived_later_changes_a_value(number: int) -> None:
    rows, labelled, who = world(n=400, seed=6)
    split = calendar(12)
    ledger = featurize.ledger_of(rows, who, labelled, ALL, split)
    fitted = featurize.fit(ledger, ALL, split.fit_end)
    table = featurize.compute(ledger, ALL, fitted)
    newest = provenance.provenance(ledger, list(KPIS.values()), ALL)
    row = rows["transaction_id"][number]
    moments = newest.row(number, named=True)
    for moment in {value for name, value in moments.items() if name != "transaction_id"}:
        with_source = [k for k in KPIS if moments[f"{k}_as_of"] == moment]
        early = pl.lit(value=False) if moment is None else pl.col("known_at") <= moment
        fewer = rows.filter(early | (pl.col("transaction_id") == row))
        known = labelled.filter(pl.lit(value=False) if moment is None else pl.col("confirmed_at") <= moment)
        other = featurize.compute(featurize.ledger_of(fewer, who, known, ALL, split), ALL, fitted)
        left, right = (frame.filter(pl.col("transaction_id") == row) for frame in (table, other))
        for name in with_source:
            columns = [column.name for column in KPIS[name].columns(KPIS[name].settings_of(ALL.settings))]
            differing = [c for c in columns if not left[c].equals(right[c])]
            assert differing == [], (name, moment, known.height)


def test_no_rows_give_no_rows() -> None:
    empty = provenance.empty(list(KPIS.values()))
    rows = transactions({"hours": 0}).clear()
    assert of(rows, *KPIS).schema == empty.schema
    assert np.all(empty.height == 0)
