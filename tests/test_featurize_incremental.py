"""Scoring in real time: KPIs of new rows alone, to the last bit those of the whole table."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import featurize, schemas
from reperform.errors import ReperformError
from reperform.featurize import engine, incremental
from reperform.featurize.incremental.rows import Clock, Lists, Names
from reperform.featurize.kpis import KPIS
from tests.featurize_tables import RULES, accounts, at, calendar, labels, stage, transactions, world

SETTINGS: dict[str, Any] = {
    "thresholds": {"rules": RULES},
    "concentration": {"least_n": 3},
    "correlation": {"days": 10, "reference_days": 20, "least_reference_days": 10},
    "amount_deviation": {"least_n": 2},
    "benford": {"least_n": 10},
}
STAGE = stage(**SETTINGS)
Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


def learned(tables: Tables) -> dict[str, Any]:
    rows, labelled, of = tables
    return featurize.fit(featurize.ledger_of(rows, of, labelled, STAGE, calendar()), STAGE, calendar().fit_end)


def batch(tables: Tables, fitted: dict[str, Any]) -> pl.DataFrame:
    """Every KPI over the whole table at once."""
    rows, labelled, of = tables
    return featurize.compute(featurize.ledger_of(rows, of, labelled, STAGE, calendar()), STAGE, fitted)


def started(tables: Tables, fitted: dict[str, Any], rows: pl.DataFrame, labelled: pl.DataFrame) -> incremental.State:
    return incremental.state_of(
        rows, tables[2], labelled, STAGE, calendar(), fitted=fitted, labelled=tables[1].height > 0
    )


def assert_equal(got: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Bit by bit; of rows in any order."""
    wanted = got.select("transaction_id").join(expected, on="transaction_id", how="left", maintain_order="left")
    assert got.height
    assert got.columns == expected.columns
    assert [name for name in expected.columns if not got[name].equals(wanted[name])] == []


def replayed(
    tables: Tables, first: int, sizes: Sequence[int], by: str = "booked_at"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Features of the rows from `first` on, in batches of given sizes, each label when it arrives; and the table's."""
    rows, labelled, _ = tables
    fitted = learned(tables)
    stream = rows.sort(by, "booked_at", "transaction_id")
    moment = stream[first][by].item() if first < stream.height else None
    known = labelled.filter(pl.col("confirmed_at") < moment) if moment else labelled
    out, at_row, turn = list[pl.DataFrame](), first, 0
    state = started(tables, fitted, stream.head(first).sort("booked_at", "transaction_id"), known)
    waiting = labelled.join(known, on="transaction_id", how="anti").sort("confirmed_at")
    while at_row < stream.height:
        part = stream.slice(at_row, sizes[turn % len(sizes)])
        arrived = pl.col("confirmed_at") <= part["booked_at"].max()
        state.confirm(waiting.filter(arrived))
        waiting = waiting.filter(~arrived)
        out.append(incremental.features_of(state, part))
        at_row, turn = at_row + part.height, turn + 1
    return pl.concat(out), batch(tables, fitted)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return world(420, seed=11, days=60)


@pytest.mark.parametrize("sizes", [[1], [7, 1, 40], [1000]], ids=str)
def test_rows_one_by_one_or_in_batches_are_scored_as_in_the_whole_table(sizes: list[int], tables: Tables) -> None:
    assert_equal(*replayed(tables, 300, sizes))


def test_rows_in_the_order_in_which_they_arrive_are_scored_as_in_the_whole_table(tables: Tables) -> None:
    assert_equal(*replayed(tables, 330, [1, 5], by="known_at"))


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(60, 180), st.lists(st.integers(1, 60), min_size=1, max_size=4), st.booleans()
)
def test_any_small_world_gives_the_same_bits(seed: int, n: int, sizes: list[int], by_arrival: bool) -> None:
    made = world(n, seed=seed, days=12 + seed % 50)
    by = "known_at" if by_arrival else "booked_at"
    assert_equal(*replayed(made, n - 30, sizes, by=by))


def test_a_state_can_begin_without_any_row(tables: Tables) -> None:
    rows, labelled, of = tables
    fitted = learned(tables)
    state = started(tables, fitted, rows.head(0), labelled)
    got = incremental.features_of(state, rows.head(25))
    assert_equal(got, batch((rows.head(25), labelled, of), fitted))


def test_a_record_that_is_told_late_counts_for_all_that_is_scored_after_it(tables: Tables) -> None:
    """Its own times say that others could have seen it: what is scored anew sees it, as the whole table does."""
    rows, labelled, _ = tables
    fitted = learned(tables)
    late = rows.slice(200, 60)
    rest = rows.join(late, on="transaction_id", how="anti", maintain_order="left")
    state = started(tables, fitted, rest, labelled)
    incremental.features_of(state, rest.tail(40))
    expected = batch(tables, fitted)
    assert_equal(incremental.features_of(state, late.sample(fraction=1.0, shuffle=True, seed=1)), expected)
    assert_equal(incremental.features_of(state, rows.tail(60)), expected)


def test_a_label_that_is_told_late_counts_for_all_that_is_scored_after_it(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    state = started(tables, fitted, rows, labelled.head(1))
    incremental.features_of(state, rows.tail(50))
    state.confirm(labelled)
    assert_equal(incremental.features_of(state, rows.tail(50)), batch(tables, fitted))


def test_a_label_may_come_before_its_row(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    state = started(tables, fitted, rows.head(380), labelled)
    assert state.waiting
    assert_equal(incremental.features_of(state, rows.tail(40)), batch(tables, fitted))


def test_an_account_may_be_registered_after_payments_with_it(tables: Tables) -> None:
    rows, labelled, of = tables
    fitted = learned(tables)
    state = incremental.state_of(rows.head(370), of.tail(6), labelled, STAGE, calendar(), fitted=fitted)
    incremental.features_of(state, rows.slice(370, 10))
    state.add(rows.slice(380, 10), accounts=of.head(2))
    known = rows.head(390), labelled, pl.concat([of.tail(6), of.head(2)])
    assert_equal(incremental.features_of(state, rows.slice(350, 40)), batch(known, fitted))
    new = transactions({"hours": 24 * 61, "account_id": "new", "counterparty_id": "never seen", "amount": 5.0})
    new = new.with_columns(transaction_id=pl.lit("later"))
    assert_equal(incremental.features_of(state, new), batch((pl.concat([known[0], new]), *known[1:]), fitted))


def test_rows_that_are_held_already_are_scored_and_not_taken_in_twice(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    state = started(tables, fitted, rows, labelled)
    first, again = (incremental.features_of(state, rows.tail(5)) for _ in range(2))
    assert len(state.table) == rows.height
    assert_equal(first, batch(tables, fitted))
    assert first.equals(again)


def test_features_made_before_are_taken_instead_of_being_made_anew(tables: Tables) -> None:
    rows, labelled, of = tables
    fitted = learned(tables)
    expected = batch(tables, fitted)
    state = incremental.state_of(
        rows.head(400), of, labelled, STAGE, calendar(), fitted=fitted, features=expected.head(400)
    )
    assert_equal(incremental.features_of(state, rows.tail(20)), expected)


def test_without_labels_what_they_tell_is_unknown(tables: Tables) -> None:
    rows, _, of = tables
    unlabelled = rows, labels(), of
    assert_equal(*replayed(unlabelled, 400, [9]))


def test_a_kpi_across_keys_that_is_not_known_here_is_made_from_all_rows(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    state = started(tables, fitted, rows, labelled)
    task = next(task for task in state.tasks if task.kpi.name == "network_structure")
    slots = state.add(rows.tail(4))
    fast = state.values(slots)
    slow = state.from_all(task, slots)
    assert all(np.array_equal(slow[name], fast[name], equal_nan=True) for name in slow)


@pytest.mark.parametrize("name", [kpi.name for kpi in KPIS.values() if kpi.key != "entity"])
def test_every_kpi_of_a_key_says_which_earlier_scores_it_reads(name: str) -> None:
    assert name in incremental.SCORED_BEFORE


def test_one_account_and_one_counterparty_by_hand() -> None:
    rows = transactions(
        {"hours": 0, "amount": 10.0}, {"hours": 1, "amount": 20.0, "late": 5}, {"hours": 2, "amount": 30.0},
        {"hours": 7, "amount": 40.0},
    )  # fmt: skip
    of = accounts({"account_id": "a", "opened_at": at(-1000)})
    chosen = stage("velocity", "network")
    split = calendar()
    fitted = featurize.fit(featurize.ledger_of(rows, of, labels(), chosen, split), chosen, split.fit_end)
    state = incremental.state_of(rows.head(2), of, labels(), chosen, split, fitted=fitted)
    got = incremental.features_of(state, rows.tail(2))
    assert got["velocity_n_24h"].to_list() == [1.0, 3.0]  # the second record arrived at hour 6
    assert got["network_pair_n_24h"].to_list() == [1.0, 3.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 6)), max_size=60), st.integers(0, 60))
def test_lists_keep_their_keys_in_order_of_time_and_id(rows: list[tuple[int, int]], first: int) -> None:
    codes = np.array([-1, *(code for code, _ in rows)], np.int64)
    time = np.array([1 << 61, *(moment for _, moment in rows)], np.int64)
    ids = ["", *(f"{(n * 7) % 61:03d}" for n in range(len(rows)))]
    begun = np.array(sorted(range(1, min(first, len(rows)) + 1), key=lambda n: (time[n], ids[n])), np.int64)
    lists = Lists(codes, begun, 2 if (codes[begun] < 2).all() else 6)
    for slot in range(len(begun) + 1, len(rows) + 1):
        lists.insert(int(codes[slot]), slot, time, ids)
    for key in range(6):
        mine = [n for n in range(1, len(rows) + 1) if codes[n] == key]
        assert lists.of(key).tolist() == sorted(mine, key=lambda n: (time[n], ids[n]))
        assert (np.diff(time[lists.rows.rows[lists.starts[key] : lists.starts[key + 1]]]) >= 0).all() if mine else True


def test_a_table_with_other_columns_is_refused(tables: Tables) -> None:
    rows, labelled, _ = tables
    state = started(tables, learned(tables), rows, labelled)
    with pytest.raises(Exception, match="transactions"):
        state.add(rows.drop("channel"))


def test_schema_of_what_is_returned_is_that_of_the_feature_table(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    got = incremental.features_of(started(tables, fitted, rows, labelled), rows.tail(1))
    assert got.schema == batch(tables, fitted).schema
    assert got.columns[:5] == list(featurize.IDENTITY)
    assert set(rows.columns) == set(schemas.polars_schema(schemas.TRANSACTIONS))
    assert len(got.columns) == 5 + sum(len(t.columns) for t in engine.tasks(engine.selected([]), STAGE, fitted))


SMALL = stage(
    **SETTINGS | {"concentration": {"least_n": 2, "most_n": 4, "window": "10d"}},
    streak={"latest": [2, 5]}, balance={"days": 6, "short_days": 2, "long_days": 10},
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_whatever_is_told_in_between_the_next_rows_are_scored_as_over_all_that_is_known(data: st.DataObject) -> None:
    """Batches of many accounts, late rows, rows told twice, labels told and told otherwise, accounts opened later."""
    seed = data.draw(st.integers(0, 10_000))
    rows, labelled, of = world(150, seed=seed, days=20 + seed % 30)
    ledger = featurize.ledger_of(rows, of, labelled, SMALL, calendar())
    fitted = featurize.fit(ledger, SMALL, calendar().fit_end)
    opened = data.draw(st.integers(0, 8))
    known, told, registered = rows.head(60), labelled.head(0), of.head(opened)
    state = incremental.state_of(
        known, registered, told, SMALL, calendar(), fitted=fitted, labelled=labelled.height > 0
    )
    waiting = rows.slice(60).sample(fraction=1.0, shuffle=True, seed=seed)
    for _ in range(3):
        part = waiting.head(data.draw(st.integers(1, 20)))
        waiting = waiting.slice(part.height)
        twice = known.sample(data.draw(st.integers(0, 4)), seed=seed)
        confirmed = labelled.sample(min(data.draw(st.integers(0, 9)), labelled.height), seed=seed + part.height)
        other = confirmed.with_columns(~pl.col("is_anomaly")) if data.draw(st.booleans()) else confirmed
        state.confirm(other)
        told = pl.concat([told.join(other, on="transaction_id", how="anti"), other])
        if data.draw(st.booleans()):
            state.add(rows.head(0), accounts=of)
            registered = pl.concat([registered, of.slice(opened)]) if registered.height == opened else registered
        known = pl.concat([known, part]).sort("booked_at", "transaction_id")
        got = incremental.features_of(state, pl.concat([part, twice]))
        about = featurize.ledger_of(known, registered, told, SMALL, calendar())
        labels_known = told.join(known, on="transaction_id", how="semi").height or labelled.height == 0
        expected = featurize.compute(about, SMALL, fitted)
        if not labels_known:  # whether labels are given at all is told to the state; a table without any cannot say so
            names = [name for name in got.columns if "bad_distance" not in name and "propagated" not in name]
            got, expected = got.select(names), expected.select(names)
        assert_equal(got, expected)


def test_one_batch_is_scored_as_its_rows_one_by_one_once_all_are_known(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    state, other = (started(tables, fitted, rows.head(360), labelled) for _ in range(2))
    together = incremental.features_of(state, rows.slice(360, 60))
    other.add(rows.slice(360, 60))
    alone = pl.concat([incremental.features_of(other, rows.slice(360 + n, 1)) for n in range(60)])
    assert together.equals(alone)


def test_a_day_may_be_prepared_before_its_first_row(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    state = started(tables, fitted, rows.head(400), labelled)
    moment = rows["booked_at"][400]
    state.prepare(moment)
    held = {kind: dict(made) for kind, made in state.snapshots.items()}
    assert {"rates", "peers", "propagated", "structured"} <= {kind for kind, made in held.items() if made}
    state.prepare(moment)
    assert all(state.snapshots[kind][key] is made for kind in held for key, made in held[kind].items())
    assert_equal(incremental.features_of(state, rows.tail(20)), batch(tables, fitted))


def test_a_row_of_a_day_that_is_long_forgotten_is_scored_all_the_same(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incremental, "MOST_SNAPSHOTS", dict.fromkeys(incremental.MOST_SNAPSHOTS, 1))
    rows, labelled, _ = tables
    fitted = learned(tables)
    state = started(tables, fitted, rows.head(390), labelled)
    late_first = rows.tail(30).sort("booked_at", descending=True)
    assert_equal(incremental.features_of(state, late_first).sort("booked_at", "transaction_id"), batch(tables, fitted))


def test_what_is_looked_up_for_a_day_is_kept_for_a_few_days(tables: Tables) -> None:
    rows, labelled, _ = tables
    state = started(tables, learned(tables), rows.head(400), labelled)
    first = rows["booked_at"][400]
    for day in range(12):
        state.prepare(first + timedelta(days=7 * day))
    held = {kind: len(made) for kind, made in state.snapshots.items()}
    zones = len(state.register.names["zone"])
    assert held == {"rates": 9 * zones, "peers": 4, "propagated": 3, "structured": 9}
    newest = max(day for _, day in state.snapshots["structured"])
    state.prepare(first + timedelta(days=77))
    assert max(day for _, day in state.snapshots["structured"]) == newest


def test_what_others_have_scored_is_taken_from_them(tables: Tables) -> None:
    rows, labelled, _ = tables
    fitted = learned(tables)
    expected = batch(tables, fitted)
    state = started(tables, fitted, rows.head(300), labelled)
    state.add(rows.slice(300, 100), features=expected.slice(300, 100))
    slots = state.add(rows.slice(300, 100))
    assert all(state.kept[f"{name} is known"][slots].all() for name in state.maker)
    assert_equal(incremental.features_of(state, rows.tail(20)), expected)


BAD_ROWS = {
    "twice": lambda rows: pl.concat([rows, rows.head(1)]),
    "amount": lambda rows: rows.with_columns(amount_base=pl.lit(float("nan"))),
    "account_id": lambda rows: rows.with_columns(account_id=pl.lit(None, pl.String)),
    "direction": lambda rows: rows.with_columns(direction=pl.lit("sideways")),
}


@pytest.mark.parametrize("problem", BAD_ROWS)
def test_bad_rows_change_nothing(problem: str, tables: Tables) -> None:
    rows, labelled, of = tables
    fitted = learned(tables)
    state = incremental.state_of(rows.head(380), of.head(6), labelled, STAGE, calendar(), fitted=fitted)
    with pytest.raises(ReperformError, match="Rows cannot be taken in"):
        state.add(BAD_ROWS[problem](rows.tail(40)), accounts=of)
    assert len(state) == 380
    assert rows["transaction_id"][379] in state
    assert rows["transaction_id"][380] not in state
    assert state.accounts.height == 6
    expected = batch((rows.head(380), labelled.filter(pl.col("transaction_id") <= "t0379"), of.head(6)), fitted)
    assert_equal(incremental.features_of(state, rows.slice(340, 40)), expected)


def test_bad_accounts_and_labels_change_nothing(tables: Tables) -> None:
    rows, labelled, of = tables
    state = incremental.state_of(rows.head(380), of.head(6), labelled, STAGE, calendar(), fitted=learned(tables))
    with pytest.raises(ReperformError, match="timezone"):
        state.add(rows.tail(40), accounts=of.with_columns(timezone=pl.lit("Nowhere/Town")))
    with pytest.raises(ReperformError, match="Labels"):
        state.confirm(labelled.with_columns(is_anomaly=pl.lit(None, pl.Boolean)))
    assert len(state) == 380
    assert state.accounts.height == 6


def test_clocks_show_what_polars_says_also_when_they_are_put_back() -> None:
    zones = Names()
    codes = zones.encode(["Europe/Berlin", "Australia/Lord_Howe", "America/Havana"])
    clock = Clock(zones)
    first = int(at(0).timestamp()) * 1_000_000
    time = first + np.arange(0, 400 * 86_400, 601 * 29, dtype=np.int64) * 1_000_000
    for code, name in zip(codes.tolist(), zones.code, strict=True):
        shown = pl.Series(time).cast(schemas.UTC_US).dt.convert_time_zone(name).dt.replace_time_zone(None)
        assert clock.local(time, np.full(len(time), code)).tolist() == shown.dt.epoch("us").to_list()
        assert clock.local(time[:7], np.full(7, code)).tolist() == shown.dt.epoch("us").to_list()[:7]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 6)), min_size=1, max_size=60), st.integers(1, 60))
def test_lists_take_many_rows_at_once_as_one_by_one(rows: list[tuple[int, int]], size: int) -> None:
    codes = np.array([-1, *(code for code, _ in rows)], np.int64)
    time = np.array([1 << 61, *(moment for _, moment in rows)], np.int64)
    ids = ["", *(f"{(n * 7) % 61:03d}" for n in range(len(rows)))]
    lists = Lists(codes, np.zeros(0, np.int64), 1)
    for start in range(1, len(rows) + 1, size):
        new = sorted(range(start, min(start + size, len(rows) + 1)), key=lambda n: (time[n], ids[n]))
        lists.extend(codes[new], np.array(new, np.int64), time, ids)
    for key in range(6):
        mine = [n for n in range(1, len(rows) + 1) if codes[n] == key]
        assert lists.of(key).tolist() == sorted(mine, key=lambda n: (time[n], ids[n]))


def test_with_the_kept_columns_given_nothing_of_the_past_is_made_again(tables: Tables) -> None:
    rows, labelled, of = tables
    fitted = learned(tables)
    tasks = started(tables, fitted, rows.head(1), labelled).tasks
    some = batch(tables, fitted).head(400).select(incremental.kept_columns(tasks))
    state = incremental.state_of(rows.head(400), of, labelled, STAGE, calendar(), fitted=fitted, features=some)
    assert list(state.maker) == some.columns
    assert all(state.kept[f"{name} is known"][1:].all() for name in state.maker)
