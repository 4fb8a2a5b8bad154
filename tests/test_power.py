"""What is injected has exactly the dials asked for, on accounts that can bear it; what is found is counted so."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reperform import power, schemas
from reperform.errors import ReperformError
from reperform.params import PatternParams, PowerParams
from reperform.power import injection
from reperform.power.patterns import PATTERNS, Cell

START = datetime(2025, 6, 1, tzinfo=UTC)
TEST_START, TEST_END = START + timedelta(days=40), START + timedelta(days=70)


def background(accounts: int = 6, seed: int = 0) -> injection.Background:
    """Accounts with a payment a day for 70 days; the last account stops after ten days and sleeps."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for account in range(accounts):
        balance = 5000.0
        for day in range(10 if account == accounts - 1 else 70):
            amount, is_in = round(float(rng.uniform(5, 50)), 2), bool(rng.random() < 0.5)
            balance = round(balance + (amount if is_in else -amount), 2)
            booked = START + timedelta(days=day, hours=9, seconds=account)
            rows.append(
                {
                    "transaction_id": f"t{account}-{day:03d}",
                    "booked_at": booked,
                    "known_at": booked + timedelta(hours=2),
                    "account_id": f"a{account}",
                    "counterparty_id": f"c{rng.integers(0, 40)}",
                    "entity_id": "bank",
                    "direction": "in" if is_in else "out",
                    "amount": amount,
                    "currency": "USD",
                    "amount_base": amount * 0.5,
                    "channel": "instant" if day % 2 else "online",
                    "country": "DE",
                    "latitude": None,
                    "longitude": None,
                    "balance_after": balance,
                    "source_file": "",
                    "source_record": 0,
                }
            )
    frame = pl.DataFrame(rows, schema=schemas.polars_schema(schemas.TRANSACTIONS)).sort("booked_at", "transaction_id")
    return injection.background_of(frame, TEST_START, TEST_END)


def events(cells: list[Cell], repeats: int = 2, seed: int = 1) -> tuple[injection.Background, list[injection.Event]]:
    world = background()
    return world, injection.events_of(world, cells, repeats, quiet_days=20, seed=seed)


# --- patterns --------------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(PATTERNS)),
    amount=st.floats(1, 20_000),
    gap=st.floats(0.02, 100),
    length=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_every_pattern_has_its_dials(name: str, amount: float, gap: float, length: int, seed: int) -> None:
    legs = PATTERNS[name].make(Cell(name, amount, gap, length), np.random.default_rng(seed))
    assert all(leg.amount > 0 and leg.at_s >= 0 for leg in legs)
    assert length <= len(legs) <= length + 1
    assert max(leg.at_s for leg in legs) <= (length + 0.3) * gap * 3600


def test_passed_on_money_is_nearly_what_came_in() -> None:
    first, *rest = PATTERNS["pass_through"].make(Cell("pass_through", 1000, 6, 4), np.random.default_rng(0))
    assert first.is_in
    assert 0.9 * first.amount < sum(leg.amount for leg in rest) < first.amount


def test_structured_cash_stays_below_the_amount() -> None:
    legs = PATTERNS["structuring"].make(Cell("structuring", 9500, 24, 20), np.random.default_rng(0))
    assert all(8800 <= leg.amount <= 9500 and leg.is_in and leg.role == "cash" for leg in legs)


# --- injection -------------------------------------------------------------------------------------------------------


def test_injected_rows_obey_the_contract_and_lie_in_the_test() -> None:
    world, made = events([Cell("account_takeover", 100, 2, 3), Cell("fan_in", 50, 6, 4)])
    transactions, owners = injection.injected(world, made[:1] + made[-1:], seed=1)
    schemas.checked(transactions, schemas.TRANSACTIONS)
    assert transactions["booked_at"].is_sorted()
    added = transactions.join(owners, on="transaction_id", how="inner")
    assert added.height == owners.height == 3 + 5
    assert added["booked_at"].is_between(TEST_START, TEST_END).all()
    assert (added["known_at"] - added["booked_at"]).unique().to_list() == [timedelta(hours=2)]
    assert added["amount_base"].to_list() == pytest.approx((added["amount"] * 0.5).to_list())


def test_an_account_meets_nobody_whom_it_knows() -> None:
    world, made = events([Cell("fan_out", 10, 1, 8)], repeats=1)
    transactions, owners = injection.injected(world, made, seed=1)
    account = world.accounts.identifier[made[0].account]
    known = set(world.transactions.filter(pl.col("account_id") == account)["counterparty_id"])
    new = transactions.join(owners, on="transaction_id", how="inner")["counterparty_id"]
    assert not known & set(new)
    assert new.n_unique() == new.len()


def test_balances_still_add_up() -> None:
    world, made = events([Cell("account_takeover", 100, 2, 3)], repeats=1)
    transactions, _ = injection.injected(world, made, seed=1)
    mine = transactions.filter(pl.col("account_id") == world.accounts.identifier[made[0].account])
    signed = pl.when(pl.col("direction") == "in").then("amount").otherwise(-pl.col("amount"))
    steps = mine.select(pl.col("balance_after").diff() - signed).to_series().drop_nulls()
    assert steps.abs().max() < 0.006
    rest = transactions.filter(pl.col("account_id") != mine["account_id"][0])
    assert rest.equals(world.transactions.filter(pl.col("account_id") != mine["account_id"][0]))


def test_dormant_patterns_take_quiet_accounts_and_the_others_those_in_use() -> None:
    world = background()
    assert [world.accounts.identifier[i] for i in injection.able(world, "dormant_activation", 20)] == ["a5"]
    assert "a5" not in [world.accounts.identifier[i] for i in injection.able(world, "fan_in", 20)]


def test_an_event_that_is_too_long_for_the_test_is_not_placed() -> None:
    _, made = events([Cell("slow_drain", 100, 24, 40)])
    assert made == []


def test_rounds_hold_one_event_per_account_and_lose_none() -> None:
    world, made = events([Cell("card_testing", 5, 0.1, 3)], repeats=20)
    rounds = list(injection.rounds_of(made, most_rows=9, seed=1))
    assert sorted(event.number for one in rounds for event in one) == [event.number for event in made]
    for one in rounds:
        assert len({event.account for event in one}) == len(one)
        assert sum(len(event.legs) for event in one) <= 9
    assert world.accounts.rows_before.size == 6


def test_the_same_seed_injects_the_same_rows() -> None:
    cells = [Cell("pass_through", 500, 3, 3), Cell("dormant_activation", 80, 5, 2)]
    first, other = (injection.injected(*events(cells), seed=1)[0] for _ in range(2))
    assert first.equals(other)
    assert not first.equals(injection.injected(*events(cells, seed=2), seed=2)[0])


# --- what is found ---------------------------------------------------------------------------------------------------


def told(pattern: str, amount: float, found: int, rows: int = 2) -> dict[str, Any]:
    hours = 1.5 if found else None
    return {
        "pattern": pattern, "amount": amount, "gap_hours": 1.0, "length": rows,
        "rows": rows, "rows_found": found, "hours": hours,
    }  # fmt: skip


def test_an_event_is_found_by_one_row_above_the_threshold() -> None:
    world, made = events([Cell("account_takeover", 100, 2, 2)], repeats=2)
    chosen = next(injection.rounds_of(made, 100, seed=1))
    transactions, owners = injection.injected(world, chosen, seed=1)
    first = owners.filter(pl.col("event") == chosen[0].number)["transaction_id"].sort()
    score = np.where((transactions["transaction_id"] == first[1]).to_numpy(), 9.0, 0.0)
    got = power.outcomes(chosen, owners, transactions, score, threshold=5.0)
    mine = next(one for one in got if one["rows_found"])
    assert sum(one["rows_found"] for one in got) == 1
    assert mine["rows"] == 2
    assert 2 <= mine["hours"] <= 5  # two hours after the first payment, known two hours later


def test_tallies_and_blind_spots_by_hand() -> None:
    outcomes = [told("fan_in", 50, 0), told("fan_in", 50, 1), told("fan_in", 50, 0), told("fan_in", 900, 2)]
    cells = power.tallied(outcomes, ("pattern", "length", "gap_hours", "amount"))
    assert [(one["amount"], one["events"], one["found"]) for one in cells] == [(50, 3, 1), (900, 1, 1)]
    assert cells[0]["share_of_rows"] == pytest.approx(1 / 6)
    assert cells[0]["hours_to_detect"] == 1.5
    (blind,) = power.blind_spots(cells, found_from=0.5)
    assert (blind["amount"], blind["unseen_settings"], blind["settings"]) == (50, 1, 1)
    assert blind["at"] == "2 payments 1 h apart"
    assert power.blind_spots(cells, found_from=0.3) == []


def test_the_threshold_is_the_budget_of_untouched_rows() -> None:
    score = np.arange(1000.0)
    untouched = score < 900
    assert power.threshold_of(score, untouched, 0.01) == 891
    assert (score[untouched] >= 891).sum() == 9


def test_a_misspelt_pattern_is_named() -> None:
    dials = PatternParams(amounts=[1], gaps_hours=[1], lengths=[1])
    with pytest.raises(ReperformError, match="did you mean fan_in"):
        power.cells_of(PowerParams(patterns={"fan_inn": dials}))


def test_a_large_background_is_cut_to_whole_accounts() -> None:
    frame = background().transactions
    cut = power.sampled(frame, 200, seed=1)
    assert cut.height <= 200
    sizes = dict(frame["account_id"].value_counts().iter_rows())
    assert all(sizes[name] == n for name, n in cut["account_id"].value_counts().iter_rows())
    assert power.sampled(frame, frame.height, seed=1) is frame


def test_the_document_names_patterns_that_could_not_be_placed() -> None:
    cells = [Cell("fan_in", 50, 1, 2), Cell("slow_drain", 50, 24, 99)]
    document = power.document_of([told("fan_in", 50, 0)], cells, PowerParams())
    assert document["not_placed"] == ["slow_drain"]
    text = "\n".join(power.lines(document))
    assert "what this system cannot see" in text
    assert "slow_drain: no account could bear it" in text
