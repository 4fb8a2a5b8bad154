"""The demo world adds up, and its planted anomalies have the properties that define them."""

from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from reperform import simulate
from reperform.errors import ReperformError
from reperform.simulate import Simulated
from reperform.simulate.clock import calendar, epoch_s
from reperform.simulate.identifiers import iban
from reperform.simulate.places import ZONES
from reperform.simulate.rates import rate_at
from reperform.simulate.typologies import TYPOLOGIES
from tests.demo_world import SMALL, demo_settings, world_params


@pytest.fixture(scope="module")
def made() -> Simulated:
    return simulate.simulate(world_params())


@pytest.fixture(scope="module")
def planted(made: Simulated) -> pl.DataFrame:
    """Planted rows with their event, by time."""
    return made.transactions.join(made.truth, on="transaction_id", how="inner").sort("booked_at", "transaction_id")


def cents(column: str) -> pl.Expr:
    return (pl.col(column) * 100).round().cast(pl.Int64)


def events(planted: pl.DataFrame, typology: str) -> list[pl.DataFrame]:
    own = planted.filter(pl.col("typology") == typology)
    return own.partition_by("event_id", maintain_order=True)


def test_every_row_reaches_the_next_balance_to_the_cent(made: Simulated) -> None:
    rows = made.transactions.sort("account_id", "booked_at", "transaction_id").with_columns(
        move=pl.when(pl.col("direction") == "in").then(cents("amount")).otherwise(-cents("amount")),
        before=cents("balance_after").shift(1).over("account_id"),
    )
    rows = rows.filter(pl.col("before").is_not_null())
    assert rows.height > 30_000
    assert rows.filter(pl.col("before") + pl.col("move") != cents("balance_after")).is_empty()


def test_no_account_has_two_rows_in_the_same_second(made: Simulated) -> None:
    assert not made.transactions.select("account_id", "booked_at").is_duplicated().any()


def test_every_transfer_between_two_accounts_shows_on_both_sides(made: Simulated) -> None:
    """The k-th payment from one account to another is the k-th arrival there, not before it left."""
    own = made.accounts["account_id"].implode()
    rows = made.transactions.filter(pl.col("counterparty_id").is_in(own))
    out = rows.filter(pl.col("direction") == "out").select(
        "account_id", "counterparty_id", "booked_at", "currency", "amount"
    )
    into = rows.filter(pl.col("direction") == "in").select(
        pl.col("counterparty_id").alias("account_id"),
        pl.col("account_id").alias("counterparty_id"),
        pl.col("booked_at").alias("arrived_at"),
        pl.col("currency").alias("arrived_currency"),
        pl.col("amount").alias("arrived"),
    )
    pair = ["account_id", "counterparty_id"]
    sent, received = (f.group_by(pair).len().sort(pair) for f in (out, into))
    assert sent.equals(received)
    assert out.height > 1_000
    same = out.join(into, on=pair).filter(pl.col("currency") == pl.col("arrived_currency"))
    matched = same.filter((pl.col("amount") == pl.col("arrived")) & (pl.col("arrived_at") > pl.col("booked_at")))
    alone = out.join(into.select(*pair, "arrived_currency").unique(maintain_order=True), on=pair, maintain_order="left")
    alone = alone.filter(pl.col("currency") == pl.col("arrived_currency"))
    assert alone.join(matched, on=[*pair, "booked_at"], how="anti").is_empty()


def test_nothing_happens_before_an_account_opens_or_outside_the_period(made: Simulated) -> None:
    rows = made.transactions.join(made.accounts, on="account_id")
    assert rows.filter(pl.col("booked_at") < pl.col("opened_at")).is_empty()
    start_s, end_s = made.world.calendar.start_s, made.world.calendar.end_s
    seconds = rows["booked_at"].dt.epoch("s")
    assert start_s <= seconds.min() <= seconds.max() < end_s  # type: ignore[operator]
    assert (made.accounts["opened_at"].dt.epoch("s") > start_s).any()


def test_the_asked_number_of_rows_and_accounts_is_there(made: Simulated) -> None:
    assert made.accounts.height == SMALL["accounts"]
    background = made.transactions.height - made.truth.height
    assert background == round(SMALL["transactions"] * (1 - simulate.PLANTED_SHARE))


def test_half_a_percent_of_the_demos_rows_is_planted_in_every_period() -> None:
    made = simulate.simulate(world_params(accounts=2_000, transactions=300_000))
    assert 0.0045 < made.truth.height / made.transactions.height < 0.0055
    booked = made.transactions.join(made.truth, on="transaction_id")
    for name, (first, last) in {"train": (31, 94), "validation": (109, 137), "test": (150, 180)}.items():
        day = (pl.col("booked_at").dt.epoch("s") - made.world.calendar.start_s) // 86_400
        inside = booked.filter((day >= first) & (day < last)).group_by("typology").agg(pl.col("event_id").n_unique())
        assert inside.height == len(TYPOLOGIES), name
        assert inside["event_id"].min() >= 2, name  # type: ignore[operator]


def test_institutions_have_their_shares_of_accounts(made: Simulated) -> None:
    counts = dict(made.accounts.group_by("entity_id").len().iter_rows())
    shares = {name: block["share"] for name, block in demo_settings("institutions").items()}
    assert counts.keys() == shares.keys()
    assert all(abs(counts[name] - shares[name] * SMALL["accounts"]) <= 1 for name in shares)


def test_all_ten_typologies_are_planted_several_times(made: Simulated) -> None:
    per = made.truth.group_by("typology").agg(pl.col("event_id").n_unique())
    assert set(per["typology"]) == set(TYPOLOGIES)
    assert len(TYPOLOGIES) == 10
    assert per["event_id"].min() >= 3  # type: ignore[operator]


def test_structured_deposits_are_each_below_the_limit_and_together_above_it(planted: pl.DataFrame) -> None:
    limit = demo_settings("typologies")["structuring"]["limit"]
    for event in events(planted, "structuring"):
        deposits = event.filter(pl.col("direction") == "in")
        assert deposits["account_id"].n_unique() == 1
        assert set(deposits["channel"]) == {"cash"}
        assert deposits["amount"].max() < limit  # type: ignore[operator]
        assert deposits["amount_base"].max() < limit  # type: ignore[operator]
        assert deposits["amount_base"].sum() > limit
        assert deposits["booked_at"].dt.date().is_unique().all()
        assert (deposits["booked_at"].max() - deposits["booked_at"].min()).days < 10  # type: ignore[operator]


def test_smurfs_pay_one_collector_from_many_sides(planted: pl.DataFrame) -> None:
    senders_at_least = demo_settings("typologies")["smurfing"]["senders"][0]
    for event in events(planted, "smurfing"):
        into = event.filter(pl.col("direction") == "in")
        collector = into.group_by("account_id").len().sort("len")["account_id"][-1]
        senders = into.filter(pl.col("account_id") == collector)["counterparty_id"]
        assert senders.n_unique() >= senders_at_least - 1


def test_fanned_out_money_comes_in_before_it_leaves_to_many(planted: pl.DataFrame) -> None:
    for event in events(planted, "fan_out"):
        first = event.row(0, named=True)
        out = event.filter((pl.col("direction") == "out") & (pl.col("account_id") == first["account_id"]))
        assert first["direction"] == "in"
        assert out["counterparty_id"].n_unique() >= 3
        assert out["amount"].sum() <= first["amount"] + 0.02


def test_mules_pass_on_less_than_they_receive(planted: pl.DataFrame) -> None:
    for event in events(planted, "mule_pass_through"):
        moved = {d: event.filter(pl.col("direction") == d)["amount"].sum() for d in ("in", "out")}
        assert event["account_id"].n_unique() == 1
        assert event["direction"][0] == "in"
        assert 0.3 * moved["in"] < moved["out"] < moved["in"]


def test_cycles_return_to_their_origin_with_increasing_times(planted: pl.DataFrame) -> None:
    for event in events(planted, "cycle"):
        hops = event.filter(pl.col("direction") == "out")
        assert hops["counterparty_id"].to_list() == [*hops["account_id"].to_list()[1:], hops["account_id"][0]]
        assert hops["account_id"].is_unique().all()
        arrivals = event.filter(pl.col("direction") == "in")
        assert arrivals.height == hops.height
        assert (arrivals["booked_at"][:-1] < hops["booked_at"][1:]).all()
        assert (hops["amount_base"].diff().drop_nulls() <= 0.02).all()


def test_what_is_scattered_is_gathered_by_one(planted: pl.DataFrame) -> None:
    for event in events(planted, "scatter_gather"):
        out = event.filter(pl.col("direction") == "out")
        source = out["account_id"][0]
        middle = set(out.filter(pl.col("account_id") == source)["counterparty_id"])
        second = out.filter(pl.col("account_id") != source)
        assert set(second["account_id"]) == middle
        assert second["counterparty_id"].n_unique() == 1
        assert second["counterparty_id"][0] not in {source, *middle}


def test_a_takeover_empties_one_account_within_two_days(planted: pl.DataFrame) -> None:
    for event in events(planted, "account_takeover"):
        assert event.filter(pl.col("direction") == "out")["account_id"].n_unique() == 1
        assert (event["booked_at"].max() - event["booked_at"].min()).total_seconds() < 48 * 3600  # type: ignore[operator]


def test_cards_are_tried_small_before_they_are_used(planted: pl.DataFrame) -> None:
    settings = demo_settings("typologies")["card_testing"]
    for event in events(planted, "card_testing"):
        trials = event.head(settings["trials"][0])
        assert set(event["channel"]) == {"online"}
        assert trials["amount"].max() < settings["limit"]  # type: ignore[operator]
        assert trials["counterparty_id"].n_unique() <= 2
        assert event["amount"][-1] > trials["amount"].max()


def test_awakened_accounts_slept_before(made: Simulated, planted: pl.DataFrame) -> None:
    for event in events(planted, "dormant_awakened"):
        account, first = event["account_id"][0], event["booked_at"][0]
        earlier = made.transactions.filter((pl.col("account_id") == account) & (pl.col("booked_at") < first))
        assert set(earlier["channel"]) <= {"fee", "instant", "transfer", "wire"}
        assert earlier.join(made.truth, on="transaction_id", how="anti").filter(pl.col("channel") != "fee").is_empty()


def test_insiders_stay_below_the_second_signature_and_mostly_work_at_night(
    made: Simulated, planted: pl.DataFrame
) -> None:
    own = planted.filter((pl.col("typology") == "off_hours_insider") & (pl.col("direction") == "out"))
    assert own["amount"].max() < demo_settings("typologies")["off_hours_insider"]["approval_limit"]  # type: ignore[operator]
    zones = dict(made.accounts.select("account_id", "timezone").iter_rows())
    moments = [t.astimezone(ZoneInfo(zones[a])) for a, t in own.select("account_id", "booked_at").iter_rows()]
    odd = [t.hour >= 19 or t.hour < 7 or t.weekday() >= 5 for t in moments]
    assert np.mean(odd) > 0.7
    segments = made.accounts.filter(pl.col("account_id").is_in(own["account_id"].implode()))["segment"]
    assert set(segments) == {"business"}


def test_planted_payments_leave_few_accounts_in_the_red(made: Simulated, planted: pl.DataFrame) -> None:
    assert (planted["balance_after"] < 0).mean() < 0.03  # type: ignore[operator]


def test_nobody_shops_in_two_countries_within_hours(made: Simulated) -> None:
    planted = made.truth["transaction_id"].implode()
    cards = made.transactions.filter((pl.col("channel") == "card") & ~pl.col("transaction_id").is_in(planted))
    steps = cards.sort("account_id", "booked_at").with_columns(
        hours=(pl.col("booked_at").diff().over("account_id")).dt.total_seconds() / 3600,
        moved=(pl.col("latitude").diff().abs() + pl.col("longitude").diff().abs()).over("account_id"),
    )
    assert steps.filter((pl.col("moved") > 5) & (pl.col("hours") < 9)).is_empty()
    assert steps.filter(pl.col("moved") > 5).height > 50


def test_rows_are_known_after_they_are_booked_and_some_of_them_late(made: Simulated) -> None:
    rows = made.transactions.with_columns(delay_h=(pl.col("known_at") - pl.col("booked_at")).dt.total_seconds() / 3600)
    assert rows["delay_h"].min() > 0  # type: ignore[operator]
    by_text = rows.filter(~pl.col("entity_id").is_in(["castle", "valley"]))
    assert by_text["delay_h"].median() < 0.2  # type: ignore[operator]
    assert 0.02 < (by_text["delay_h"] > 1).mean() < 0.06  # type: ignore[operator]
    statements = rows.filter(pl.col("entity_id") == "castle")
    local = pl.col("booked_at").dt.convert_time_zone("Europe/Paris").dt.date()
    assert statements.group_by(local).agg(pl.col("known_at").n_unique())["known_at"].max() == 1


def test_amounts_in_base_use_the_last_rate_published_before_they_were_known(made: Simulated) -> None:
    rows = made.transactions.filter(pl.col("currency") == "USD")
    assert rows.height > 1_000
    for row in rows.gather_every(500).to_dicts():
        published = made.rates.filter(
            (pl.col("currency") == "USD") & (pl.col("published_s") <= int(row["known_at"].timestamp()))
        )
        assert row["amount_base"] == row["amount"] * published["rate_to_base"][-1]
    assert (
        (made.transactions.filter(pl.col("currency") == "EUR").select(pl.col("amount") == pl.col("amount_base")))
        .to_series()
        .all()
    )


def test_a_rate_counts_from_the_second_of_its_publication() -> None:
    rates = pl.DataFrame({"currency": ["USD", "USD"], "rate_to_base": [0.9, 0.8], "published_s": [100, 200]})
    assert rate_at(rates, "USD", np.array([100, 199, 200])).tolist() == [0.9, 0.9, 0.8]
    assert rate_at(rates, "EUR", np.array([150])).tolist() == [1.0]


def test_labels_come_after_the_row_and_some_never(made: Simulated) -> None:
    anomalous = made.labels.filter(pl.col("is_anomaly"))
    both = anomalous.join(made.transactions, on="transaction_id")
    assert both.height == anomalous.height
    assert (both["confirmed_at"] > both["known_at"]).all()
    assert 0.75 < anomalous.height / made.truth.height < 0.97
    delay_days = (both["confirmed_at"] - both["known_at"]).dt.total_seconds() / 86_400
    assert 3 < delay_days.median() < 11  # type: ignore[operator]
    assert delay_days.max() > 30  # type: ignore[operator]


def test_a_confirmed_anomaly_is_a_planted_one_and_a_reviewed_normal_row_is_not(made: Simulated) -> None:
    truth = made.labels.join(made.truth, on="transaction_id", how="left", suffix="_true")
    confirmed = truth.filter(pl.col("is_anomaly"))
    assert confirmed["event_id"].null_count() == 0
    assert confirmed.filter(pl.col("typology") != pl.col("typology_true")).is_empty()
    assert (
        truth.filter(~pl.col("is_anomaly"))["event_id"].null_count() == truth.filter(~pl.col("is_anomaly")).height > 30
    )


def test_cases_can_close_without_a_typology_or_with_one_side_of_a_transfer() -> None:
    always = {"event_never_share": 0, "row_missed_share": 0, "unnamed_share": 1, "one_leg_share": 1}
    labels = demo_settings("labels") | always
    made = simulate.simulate(world_params(accounts=100, transactions=12_000, labels=labels))
    confirmed = made.labels.filter(pl.col("is_anomaly"))
    assert confirmed["typology"].null_count() == confirmed.height > 0
    cycles = made.truth.filter(pl.col("typology") == "cycle")
    assert cycles.join(confirmed, on="transaction_id").height == cycles.height / 2


def test_one_typology_more_or_less_leaves_ordinary_life_alone() -> None:
    size = {"accounts": 150, "transactions": 17_000}
    typologies = demo_settings("typologies")
    less = {name: block for name, block in typologies.items() if name != "structuring"}
    with_it, without = (simulate.simulate(world_params(**size, typologies=chosen)) for chosen in (typologies, less))
    facts = ["transaction_id", "booked_at", "account_id", "counterparty_id", "amount", "channel"]
    ordinary = [w.transactions.join(w.truth, on="transaction_id", how="anti").select(facts) for w in (with_it, without)]
    assert ordinary[0].equals(ordinary[1])
    assert "structuring" not in without.truth["typology"]


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    size = {"accounts": 100, "transactions": 12_000}
    first, again, other = (simulate.simulate(world_params(**size, seed=seed)) for seed in (1, 1, 2))
    assert first.transactions.equals(again.transactions)
    assert first.labels.equals(again.labels)
    assert first.truth.equals(again.truth)
    assert not first.transactions.equals(other.transactions)


def test_too_few_transactions_for_the_accounts_are_refused_with_a_number() -> None:
    with pytest.raises(ReperformError, match=r"Too few transactions[\s\S]*at least"):
        simulate.simulate(world_params(accounts=600, transactions=10_000))


@pytest.mark.parametrize(
    ("block", "change", "message"),
    [
        ("typologies", {"smurfng": {"events": 3}}, "smurfng"),
        ("labels", {"median_delay": 3}, "median_delay"),
        ("background", {"dormant_shares": 0.1}, "dormant_share"),
    ],
)
def test_a_misspelt_setting_is_named(block: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ReperformError, match=message):
        simulate.simulate(world_params(**{block: demo_settings(block) | change}))


def test_an_unknown_parameter_of_a_typology_is_refused() -> None:
    typologies = demo_settings("typologies")
    typologies["cycle"] = typologies["cycle"] | {"fees": [0, 1]}
    with pytest.raises(ReperformError, match="fees"):
        simulate.simulate(world_params(typologies=typologies))


@pytest.mark.parametrize("country", ["DE", "FR", "AT", "NL", "IE", "GB", "US"])
def test_invented_account_numbers_have_right_check_digits(country: str) -> None:
    number = iban(country, 4711)
    moved = number[4:] + number[:4]
    assert int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def test_local_time_follows_the_change_of_clocks() -> None:
    spring = calendar(date(2025, 3, 29), 3, [])
    noon = [int(spring.at(day, 12 * 3600, ZONES.index("Europe/Berlin"))) for day in (0, 1, 2)]
    assert noon == [epoch_s(date(2025, 3, 29 + d)) + h * 3600 for d, h in ((0, 11), (1, 10), (2, 10))]


def test_business_days_skip_weekends_and_holidays() -> None:
    easter = calendar(date(2025, 4, 17), 6, [date(2025, 4, 18), date(2025, 4, 21)])
    assert easter.next_business(np.arange(6)).tolist() == [0, 5, 5, 5, 5, 5]
    assert easter.previous_business(np.arange(6)).tolist() == [0, 0, 0, 0, 0, 5]


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_world_has_everything(seed: int) -> None:
    made = simulate.simulate(world_params(accounts=50, transactions=8_000, seed=seed))
    assert made.truth["typology"].n_unique() == 10
    assert made.transactions["entity_id"].n_unique() == 7


def test_lookalikes_can_be_switched_off() -> None:
    background = demo_settings("background")
    background["lookalikes"] = dict.fromkeys(background["lookalikes"], 0)
    with_them, without = (
        simulate.simulate(world_params(accounts=100, transactions=12_000, **change))
        for change in ({}, {"background": background})
    )
    assert with_them.transactions.height - with_them.truth.height == without.transactions.height - without.truth.height
    assert (without.transactions["channel"] == "card").sum() > (with_them.transactions["channel"] == "card").sum()
