"""The certificate holds for the KPIs, and would not hold for features that look ahead."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reperform import certify, schemas, tables
from reperform.featurize.kpis import KPIS
from tests.featurize_tables import RULES, accounts, calendar, labels, stage, transactions, world

ALL = stage(thresholds={"rules": RULES})

World = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


@pytest.fixture(scope="module")
def small() -> World:
    return world(n=500, seed=1)


@pytest.fixture(scope="module")
def bench(small: World) -> certify.Tables:
    return certify.bench(certify.Tables(*small), np.random.default_rng(0))


def test_no_kpi_looks_ahead(small: World) -> None:
    rows, labelled, of = small
    got = certify.certify(rows, labelled, of, ALL, calendar(15), cuts=6, seed=3)
    assert [cut.columns for cut in got.cuts] == [()] * 6
    assert got.holds
    assert str(got) == f"cells compared: {got.cells}, differing: 0; planted leaks: 9, caught: 9"
    assert got.cells > 6 * 50 * 100


@pytest.mark.parametrize("name", certify.LEAKS)
def test_a_planted_leak_is_caught(name: str, bench: certify.Tables) -> None:
    assert certify._caught(certify.LEAKS[name], bench, np.random.default_rng(1))


@pytest.mark.parametrize("name", certify.HONEST)
def test_the_honest_twin_of_a_leak_is_not(name: str, bench: certify.Tables) -> None:
    assert not certify._caught(certify.HONEST[name], bench, np.random.default_rng(1))


def test_a_kpi_that_looks_ahead_is_named(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labelled, of = small
    honest = KPIS["velocity"]

    def leaky(ledger: Any, fitted: Any, settings: Any, made: Any) -> Any:
        values = honest.compute(ledger, fitted, settings, made)
        return values | {"velocity_n_24h": values["velocity_n_24h"] + ledger.amount.mean()}

    monkeypatch.setitem(KPIS, "velocity", replace(honest, compute=leaky))
    got = certify.certify(rows, labelled, of, stage("velocity"), calendar(15), cuts=2)
    assert not got.holds
    assert got.cuts[0].columns == ("velocity_n_24h",)


def test_a_parameter_learned_from_everything_is_caught(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labelled, of = small
    honest = KPIS["amount_deviation"]
    monkeypatch.setitem(
        KPIS, "amount_deviation", replace(honest, fit=lambda ledger, _end, s: honest.fit(ledger, 1 << 60, s))
    )
    got = certify.certify(rows, labelled, of, stage("amount_deviation"), calendar(15), cuts=1)
    assert got.differing > 0


def test_everything_after_a_moment_is_changed_and_nothing_before(small: World) -> None:
    whole = certify.Tables(*small)
    moment = whole.transactions["booked_at"][250]
    kept = certify.kept_rows(whole.transactions, moment)
    changed = certify.changed_after(whole, kept, moment, np.random.default_rng(0))
    schemas.checked(changed.transactions, schemas.TRANSACTIONS)
    schemas.checked(changed.labels, schemas.LABELS)
    before = whole.transactions.filter(kept)
    assert changed.transactions.filter(pl.col("transaction_id").is_in(before["transaction_id"].implode())).equals(
        before
    )
    same = whole.transactions.filter(~kept).join(changed.transactions, on=whole.transactions.columns, nulls_equal=True)
    assert same.height < 0.02 * (~kept).sum()
    known = whole.labels.filter(pl.col("confirmed_at") <= moment)
    assert changed.labels.filter(pl.col("confirmed_at") <= moment).equals(known)
    assert changed.labels.filter(pl.col("confirmed_at") > moment).height > 10


def test_of_rows_at_one_moment_one_is_kept_and_late_rows_are_not() -> None:
    rows = transactions({"hours": 0}, {"hours": 1, "late": 9}, {"hours": 2}, {"hours": 2}, {"hours": 3})
    assert certify.kept_rows(rows, rows["booked_at"][2]).to_list() == [True, False, True, False, False]


def test_the_same_seed_gives_the_same_certificate(small: World) -> None:
    rows, labelled, of = small
    once, twice = (
        certify.certify(rows, labelled, of, stage("velocity"), calendar(15), cuts=2, seed=5) for _ in range(2)
    )
    assert once == twice


def test_without_transactions_nothing_is_claimed_but_leaks_are_still_caught() -> None:
    got = certify.certify(schemas.empty(schemas.TRANSACTIONS), labels(), accounts(), ALL, calendar(), cuts=2)
    assert (got.cells, got.differing) == (0, 0)
    assert all(got.leaks.values())
    assert not got.holds


def test_null_differs_from_a_number_and_minus_zero_from_zero() -> None:
    assert certify.different(pl.Series([None, 1.0, 0.0]), pl.Series([0.0, 1.0, -0.0])) == 2


def test_the_command_ends_with_the_count(project: Path, small: World, capsys: pytest.CaptureFixture[str]) -> None:
    rows, labelled, of = small
    for name, frame in (("transactions", rows), ("labels", labelled), ("accounts", of)):
        tables.write_table(frame, "validate", name)
    assert certify.main(cuts=1) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("differing: 0; planted leaks: 9, caught: 9")
    assert last.startswith("cells compared: ")
