"""The certificate holds for the KPIs, and would not hold for features that look ahead."""

from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reperform import certify, featurize, schemas, tables
from reperform.certify import leaks
from reperform.featurize.kpis import KPIS
from tests import filing_samples as sample
from tests.featurize_tables import RULES, accounts, calendar, labels, stage, transactions, world
from tests.filing_samples import fact, filing

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
    assert str(got) == f"cells compared: {got.cells}, differing: 0; planted leaks: 21, caught: 21"
    assert got.cells > 6 * 50 * 100


@pytest.mark.parametrize("name", certify.LEAKS)
def test_a_planted_leak_is_caught(name: str, bench: certify.Tables) -> None:
    assert certify._caught(certify.LEAKS[name], bench, np.random.default_rng(1))


@pytest.mark.parametrize("name", certify.HONEST)
def test_the_honest_twin_of_a_leak_is_not(name: str, bench: certify.Tables) -> None:
    assert not certify._caught(certify.HONEST[name], bench, np.random.default_rng(1))


def test_no_kpi_raises_a_false_alarm_where_leaks_are_planted(bench: certify.Tables) -> None:
    before = leaks.calendar_before(bench)
    fitted = featurize.fit(leaks.ledger_of(bench, ALL, before), ALL, before.fit_end)
    make = partial(leaks.features, stage=ALL, split=before, learned=fitted)
    original = make(bench)
    at = bench.transactions["booked_at"][300]
    assert certify._compare(bench, original, at, make, np.random.default_rng(1)).columns == ()


def filed(small: World) -> tuple[World, dict[str, pl.DataFrame]]:
    """Two months of returns of the entity, with totals that differ from its ledger, and one filed again."""
    rows = small[0].with_columns(entity_id=pl.lit("north"))
    march, april = (sample.Month(date(2025, m, 1), date(2025, m, d)) for m, d in ((3, 31), (4, 30)))
    returns = sample.filings(
        filing("mar", month=march, filed_at=sample.at("2025-04-03")),
        filing("mar-r1", month=march, filed_at=sample.at("2025-04-08")),
        filing("apr", month=april, filed_at=sample.at("2025-05-10")),
    )
    said = [
        fact(name, f"{side}TransactionsValue", value, start=month.first, end=month.last)
        for name, month, value in (("mar", march, 40_000), ("mar-r1", march, 41_000), ("apr", april, 9_000))
        for side in ("Incoming", "Outgoing")
    ]
    others = {
        "filings": returns, "facts": sample.facts(*said),
        "messages": schemas.empty(schemas.MESSAGES), "checks": schemas.empty(schemas.CHECKS),
    }  # fmt: skip
    return (rows, small[1], small[2]), others


def test_kpis_of_filings_and_the_bridge_are_certified_too(small: World) -> None:
    (rows, labelled, of), others = filed(small)
    whole = certify.Tables(rows, labelled, of, **others)
    original = certify.Original.of(whole, stage("velocity"), calendar(15))
    assert original.filings["filing_bridge"].height > 0
    cuts = [original.compare(sample.at(day), np.random.default_rng(1)) for day in ("2025-04-05", "2025-04-12")]
    assert [cut.filings for cut in cuts] == [1, 2]
    assert [(cut.differing, cut.columns) for cut in cuts] == [(0, ()), (0, ())]


def test_a_filing_compared_with_later_filings_is_caught(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (rows, labelled, of), others = filed(small)
    honest = certify.filing_tables

    def leaky(filings: Any, facts: Any, *more: Any, **settings: Any) -> Any:
        kpis, rules = honest(filings, facts, *more, **settings)
        return kpis.with_columns(peer_gap=pl.lit(facts["value"].cast(pl.Float64).mean())), rules

    monkeypatch.setattr(certify, "filing_tables", leaky)
    got = certify.Original.of(certify.Tables(rows, labelled, of, **others), stage("velocity"), calendar(15))
    cut = got.compare(sample.at("2025-04-12"), np.random.default_rng(1))
    assert cut.columns == ("filing_kpis.peer_gap",)


def test_a_sample_keeps_whole_histories(small: World) -> None:
    whole = certify.Tables(*small)
    for key in certify.SAMPLED:
        drawn = certify.sample(whole, 100, key, np.random.default_rng(2)).transactions
        assert 100 <= drawn.height < whole.transactions.height
        for name in drawn[key].unique():
            assert whole.transactions.filter(pl.col(key) == name).equals(drawn.filter(pl.col(key) == name))


def test_an_interrupted_certificate_goes_on_where_it_was(small: World, tmp_path: Path) -> None:
    def run(cuts: int, said: list[str]) -> certify.Certificate:
        return certify.many(
            certify.Tables(*small), stage("velocity"), calendar(15), cuts=cuts, rows=150, seed=4,
            journal=tmp_path / "cuts.jsonl", key="k", say=said.append,
        )  # fmt: skip

    first: list[str] = []
    run(2, first)
    with (tmp_path / "cuts.jsonl").open("a") as file:
        file.write('{"number": 2, "cut off in the mid')
    second: list[str] = []
    resumed = run(4, second)
    assert sum("rows changed" in line for line in second) == 2
    (tmp_path / "cuts.jsonl").unlink()
    assert run(4, []) == resumed
    assert len(resumed.cuts) == 4
    assert resumed.holds


def test_the_short_certificate_is_a_document_with_the_same_bytes(small: World) -> None:
    whole = certify.Tables(*small)
    rows, others = whole.transactions.lazy(), replace(whole, transactions=whole.transactions.clear())
    once, twice = (certify.short(rows, others, ALL, calendar(15)) for _ in range(2))
    assert once == twice
    assert once["holds"]
    assert (once["leaks_planted"], once["leaks_caught"]) == (21, 21)
    assert all(leak["what"].endswith(".") for leak in once["leaks"])
    assert once["cells_compared"] == sum(cut["cells"] for cut in once["cuts"]) > 0


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


@pytest.mark.parametrize("name", certify.LEAKS)
def test_leaks_are_caught_where_money_goes_one_way_only(name: str, small: World) -> None:
    one_way = certify.Tables(small[0].with_columns(direction=pl.lit("out")), small[1], small[2])
    rng = np.random.default_rng(0)
    assert certify._caught(certify.LEAKS[name], certify.bench(one_way, rng), rng)


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
    frames = {"transactions": rows, "labels": labelled, "accounts": of}
    for name in ("filings", "facts", "messages", "checks"):
        frames[name] = schemas.empty(schemas.CANONICAL[name])
    for name, frame in frames.items():
        tables.write_table(frame, "validate", name)
    assert certify.main(cuts=1) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("differing: 0; planted leaks: 21, caught: 21")
    assert last.startswith("cells compared: ")
