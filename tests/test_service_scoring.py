"""Scores in real time are the pipeline's own: replayed in order of arrival, labels when they are confirmed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from reperform import schemas, tables, tracking
from reperform.service import bundle
from reperform.service.bundle import Base, Bundle
from reperform.service.history import History, Recent, fingerprint, keys_of
from reperform.service.journal import Event, packed, unpacked
from reperform.service.scoring import Scored, Scorer

ARRIVAL = ("known_at", "booked_at", "transaction_id")


def begun() -> tuple[Bundle, Base]:
    """The champion, and the history up to the test."""
    found = bundle.load(tracking.version("champion"))
    return found, Base(found.folder, found.split.test_start)


def stream(base: Base) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and labels that come after the base, in order of arrival."""
    rows = tables.read_table("validate", "transactions").filter(pl.col("known_at") >= base.until)
    labels = tables.read_table("validate", "labels").filter(pl.col("confirmed_at") >= base.until)
    return rows.sort(*ARRIVAL), labels.sort("confirmed_at", "transaction_id")


def replayed(scorer: Scorer, base: Base, sizes: Sequence[int], **asked: Any) -> list[Scored]:
    """Answers to all that comes after the base, in batches of such sizes, each label as soon as it is confirmed."""
    rows, labels = stream(base)
    out: list[Scored] = []
    at = 0
    while at < rows.height:
        part = rows.slice(at, sizes[len(out) % len(sizes)])
        known = labels.filter(pl.col("confirmed_at") <= part["known_at"].max())
        labels = labels.slice(known.height)
        if known.height:
            scorer.take([Event(scorer.sequence + 1, "labels", known, None)])
        out.append(scorer.score(part, **asked))
        scorer.taken(scorer.sequence + 1)
        at += part.height
    return out


def of_pipeline(name: str, answers: pl.DataFrame) -> pl.DataFrame:
    scores = tables.read_table(name, "scores").filter(pl.col("split").is_in(["test", "later", "delay"]))
    return answers.select("transaction_id").join(scores, on="transaction_id", how="left", maintain_order="left")


@pytest.fixture(scope="module")
def here(trained_project: Path) -> Iterator[Path]:
    """The trained project as the current folder of a whole module; tests only read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained_project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield trained_project


@pytest.fixture(scope="module")
def once(here: Path) -> tuple[Scorer, Base, list[Scored]]:
    """A whole replay in odd batches, and the scorer after it."""
    del here
    found, base = begun()
    scorer = Scorer(found, base)
    return scorer, base, replayed(scorer, base, [1, 7, 3, 64, 200, 2], reasons="all")


@pytest.fixture(scope="module")
def answers(once: tuple[Scorer, Base, list[Scored]]) -> pl.DataFrame:
    return pl.concat([one.answers for one in once[2]])


def test_a_replay_gives_the_pipelines_scores_to_the_last_bit(answers: pl.DataFrame) -> None:
    expected = of_pipeline("ensemble", answers)
    assert answers.height > 1000
    assert answers["score"].to_list() == expected["score"].to_list()
    assert answers["probability"].to_list() == expected["probability"].to_list()
    assert answers["is_alert"].to_list() == expected["is_alert"].to_list()
    assert answers["is_alert"].sum() > 2


def test_every_member_scores_as_in_the_pipeline_whatever_it_weighs(here: Path) -> None:
    del here
    found, base = begun()
    scorer = Scorer(found, base)
    rows, labels = stream(base)
    scorer.take([Event(1, "labels", labels, None)])  # features look at confirmed_at by themselves
    for start in range(0, 240, 80):
        part = rows.slice(start, 80)
        got = scorer.member_scores(scorer.history.computed(part))
        assert list(got) == [one.name for one in found.members]
        for name, scores in got.items():
            expected = of_pipeline(f"train/{name}", part)["score"]
            assert scores.tolist() == expected.to_list(), name


def test_features_are_those_of_the_pipeline(once: tuple[Scorer, Base, list[Scored]], answers: pl.DataFrame) -> None:
    scorer, _, got = once
    values = np.concatenate([one.features["values"].to_numpy() for one in got])
    table = tables.read_table("featurize", "features")
    expected = answers.select("transaction_id").join(table, on="transaction_id", how="left", maintain_order="left")
    assert np.array_equal(
        values, expected.select(scorer.history.names).with_columns(pl.all().fill_null(np.nan)).to_numpy(),
        equal_nan=True,
    )  # fmt: skip


def test_an_answer_says_who_gave_it_and_of_what(answers: pl.DataFrame) -> None:
    rows = tables.read_table("validate", "transactions").filter(
        pl.col("transaction_id") == answers["transaction_id"][0]
    )
    one = answers.row(0, named=True)
    for name in ("account_id", "counterparty_id", "entity_id", "booked_at", "known_at", "amount_base"):
        assert one[name] == rows[name].item()
    assert one["model_version"] == 1
    assert one["data_version"] == tables.read_json("evaluate", "bundle")["data_version"]


def test_members_and_intercept_add_up_to_the_score(answers: pl.DataFrame) -> None:
    names = {one["detector"] for one in tables.read_json("ensemble", "model")["members"]} | {"intercept"}
    for score, text in answers.select("score", "members").iter_rows():
        added = json.loads(text)
        assert set(added) == names
        assert sum(added.values()) == pytest.approx(score, abs=1e-12)


def test_reasons_are_the_shap_values_of_stage_explain(once: tuple[Scorer, Base, list[Scored]]) -> None:
    from reperform.explain import attributions  # noqa: PLC0415  # shap costs seconds

    scorer = once[0]
    member = next(one for one in scorer.bundle.members if one.name == "xgboost")
    x = np.concatenate([one.features["values"].to_numpy() for one in once[2]])[:200, member.columns].astype(np.float32)
    expected, base = attributions.tree_shap(member.detector.booster_)(x)
    got = member.detector.contributions(x)
    assert np.abs(got[:, :-1] - expected).max() < 1e-5
    assert np.abs(got[:, -1] - base).max() < 1e-5
    assert got.sum(axis=1) == pytest.approx(member.detector.score(x), abs=1e-5)


def test_a_reason_names_its_kpi_value_unit_and_contribution(
    once: tuple[Scorer, Base, list[Scored]], answers: pl.DataFrame
) -> None:
    dictionary = {entry["name"]: entry for entry in tables.read_json("featurize", "dictionary")}
    features = tables.read_table("featurize", "features")
    seen = 0
    for name, text in answers.select("transaction_id", "reasons").head(40).iter_rows():
        reasons = json.loads(text)
        row = features.row(by_predicate=pl.col("transaction_id") == name, named=True)
        assert 0 < len(reasons) <= 5
        sizes = [abs(reason["contribution"]) for reason in reasons]
        assert sizes == sorted(sizes, reverse=True)
        for reason in reasons:
            entry = dictionary[reason["feature"]]
            assert reason["value"] == row[reason["feature"]]
            assert (reason["kpi"], reason["kpi_number"], reason["unit"], reason["words"], reason["detector"]) == (
                entry["kpi"], entry["kpi_number"], entry["unit"], entry["formula"], "xgboost",
            )  # fmt: skip
            seen += 1
    assert seen > 100


def test_reasons_are_given_for_whom_they_were_asked_for(here: Path) -> None:
    del here
    found, base = begun()
    rows, _ = stream(base)
    middle = of_pipeline("ensemble", rows.head(60))["score"].median()
    scorer = Scorer(replace(found, threshold=float(str(middle))), base)
    by_alert = scorer.score(rows.head(60), n_reasons=2).answers
    assert 0 < by_alert["is_alert"].sum() < 60
    assert by_alert["reasons"].is_not_null().to_list() == by_alert["is_alert"].to_list()
    assert {len(json.loads(text)) for text in by_alert["reasons"].drop_nulls()} == {2}
    assert scorer.score(rows.slice(60, 5), reasons="none").answers["reasons"].null_count() == 5


def test_where_no_member_can_be_told_feature_by_feature_reasons_say_so(here: Path) -> None:
    del here
    found, base = begun()
    got = (
        Scorer(replace(found, explained=None), base).score(stream(base)[0].head(1), reasons="all", n_reasons=9).answers
    )
    reasons, added = json.loads(got["reasons"][0]), json.loads(got["members"][0])
    assert {reason["detector"]: reason["contribution"] for reason in reasons} == {
        name: value for name, value in added.items() if name != "intercept"
    }
    assert all("No member of this model can be told" in reason["words"] for reason in reasons)


def events_of(scorer: Scorer, base: Base, n: int, size: int) -> tuple[list[Event], list[Scored]]:
    """What a process writes into the journal while it scores the first n rows, as others read it from there."""
    rows, labels = stream(base)
    events: list[Event] = []
    got: list[Scored] = []
    for start in range(0, n, size):
        part = rows.slice(start, size)
        known = labels.filter(pl.col("confirmed_at") <= part["known_at"].max())
        labels = labels.slice(known.height)
        if known.height:
            events.append(Event(len(events) + 1, "labels", known, None))
            scorer.take(events[-1:])
        got.append(scorer.score(part))
        events.append(Event(len(events) + 1, "transactions", part, unpacked(packed(got[-1].features))))
        scorer.taken(events[-1].sequence)
    return events, got


def test_a_process_that_takes_in_what_another_scored_goes_on_as_that_one_would(here: Path) -> None:
    del here
    found, base = begun()
    first, second = Scorer(found, base), Scorer(found, base)
    events, _ = events_of(first, base, 150, 11)
    for start in range(0, len(events), 4):
        second.take(events[start : start + 4])
    second.take(events)  # nothing is taken in twice
    assert second.sequence == first.sequence == len(events)
    assert len(second.history.state.table) == len(first.history.state.table)
    assert second.known_until == first.known_until
    rows, labels = stream(base)
    for scorer in (first, second):
        scorer.take([Event(len(events) + 1, "labels", labels, None)])  # features look at confirmed_at by themselves
    one, other = (scorer.score(rows.slice(150, 60), reasons="all").answers for scorer in (first, second))
    assert one.equals(other)
    assert one["score"].to_list() == of_pipeline("ensemble", one)["score"].to_list()


def test_features_of_a_model_with_other_features_are_computed_anew(here: Path) -> None:
    del here
    found, base = begun()
    first, second = Scorer(found, base), Scorer(found, base)
    events, _ = events_of(first, base, 60, 20)
    others = []
    for event in events:
        features = None if event.features is None else event.features.with_columns(fingerprint=pl.lit("another"))
        others.append(replace(event, features=features))
    second.take(others)
    rows, _ = stream(base)
    one, other = (scorer.score(rows.slice(60, 40)).answers for scorer in (first, second))
    assert one.equals(other)


def test_a_row_that_comes_twice_is_taken_in_once(here: Path) -> None:
    del here
    found, base = begun()
    scorer = Scorer(found, base)
    rows, _ = stream(base)
    size = len(scorer.history.state.table)
    first = scorer.score(rows.head(30)).answers
    second = scorer.score(rows.slice(20, 20)).answers
    assert len(scorer.history.state.table) == size + 40
    assert second.head(10).select("transaction_id", "score").equals(first.tail(10).select("transaction_id", "score"))
    assert second["score"].to_list() == of_pipeline("ensemble", second)["score"].to_list()


def test_warming_up_changes_no_answer(here: Path) -> None:
    del here
    found, base = begun()
    cold, warm = Scorer(found, base), Scorer(found, base)
    size = len(warm.history.state.table)
    warm.warm_up()
    assert len(warm.history.state.table) == size
    account = warm.history.newest()["account_id"].item()
    rows = stream(base)[0].head(30).with_columns(account_id=pl.lit(account))
    assert cold.score(rows).answers.equals(warm.score(rows).answers)


def test_two_versions_with_the_same_features_share_one_history(here: Path) -> None:
    del here
    found, base = begun()
    champion = Scorer(found, base)
    challenger = Scorer(replace(found, version=2, threshold=-6.0), champion.history)
    rows, _ = stream(base)
    size = len(champion.history.state.table)
    one, other = champion.score(rows.head(25)), challenger.score(rows.head(25), reasons="none")
    assert len(champion.history.state.table) == size + 25
    assert one.answers["score"].equals(other.answers["score"])
    assert other.answers["model_version"].unique().to_list() == [2]
    assert other.answers["is_alert"].sum() > one.answers["is_alert"].sum()
    assert challenger.sequence == champion.sequence


def test_histories_that_begin_at_another_moment_are_not_the_same(here: Path) -> None:
    del here
    found, base = begun()
    assert fingerprint(found, base) != fingerprint(found, Base(base.folder))


def test_an_account_may_be_registered_and_then_pay(here: Path) -> None:
    del here
    found, base = begun()
    scorer = Scorer(found, base)
    account = base.accounts().head(1).with_columns(account_id=pl.lit("new"))
    scorer.take([Event(1, "accounts", account, None)])
    assert scorer.accounts["new"] == account["entity_id"].item()
    row = stream(base)[0].head(1).with_columns(transaction_id=pl.lit("first of new"), account_id=pl.lit("new"))
    assert np.isfinite(scorer.score(row).answers["score"].item())
    assert scorer.holds(["first of new", "unheard of"]) == {"first of new"}
    assert scorer.known_until == max(row["known_at"].item(), base.transactions()["known_at"].max())


def test_a_label_that_is_told_again_changes_nothing(here: Path) -> None:
    del here
    found, base = begun()
    history = History(found, base)
    labels = stream(base)[1].head(3)
    told = []
    confirm = history.state.confirm
    history.state.confirm = lambda rows: told.append(rows.height) or confirm(rows)  # type: ignore[method-assign,func-returns-value]  # counted
    history.take([Event(1, "labels", labels, None)])
    history.take([Event(2, "labels", labels, None)])
    history.take([Event(3, "labels", labels.head(1).with_columns(is_anomaly=~pl.col("is_anomaly")), None)])
    history.take([Event(4, "labels", base.labels()[0], None)])  # known from the beginning
    assert told == [3, 1]


# The newest rows of accounts


def rows_like(known: Sequence[int], accounts: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "transaction_id": [f"t{at}" for at in known],
            "account_id": list(accounts),
            "booked_at": known,
            "known_at": known,
        }
    ).with_columns(pl.col("booked_at", "known_at").cast(schemas.UTC_US))


def numbers(known: Sequence[int]) -> Any:
    return np.array([[at] for at in known], np.float32)


def added(recent: Recent, known: Sequence[int], accounts: str) -> list[tuple[list[float], list[bool]]]:
    got = recent.add(list(accounts), keys_of(rows_like(known, accounts)), numbers(known))
    assert got is not None
    assert got.x[got.wanted, 0].tolist() == [known[at] for at in got.place]
    return [
        (got.x[got.groups == one, 0].tolist(), got.wanted[got.groups == one].tolist())
        for one in range(int(got.groups.max()) + 1)
    ]


def test_new_rows_stand_behind_those_of_their_account_that_arrived_before() -> None:
    recent = Recent(2, 1)
    assert added(recent, [1, 2, 3], "aba") == [([1, 3], [True, True]), ([2], [True])]
    assert added(recent, [5, 4], "aa") == [([1, 3, 4, 5], [False, False, True, True])]
    assert added(recent, [6], "b") == [([2, 6], [False, True])]


def test_a_row_that_arrived_earlier_and_is_told_later_stands_where_it_belongs() -> None:
    recent = Recent(2, 1)
    added(recent, [1, 5, 9], "aaa")
    assert added(recent, [7], "a") == [([1, 5, 7, 9], [False, False, True, False])]


def test_a_row_that_is_scored_once_more_does_not_stand_before_itself() -> None:
    recent = Recent(3, 1)
    added(recent, [1, 2, 3], "aaa")
    assert added(recent, [2], "a") == [([1, 2, 3], [False, True, False])]


def test_no_more_rows_are_kept_than_sequences_need_and_a_few_to_spare() -> None:
    recent = Recent(2, 1)
    for at in range(100):
        added(recent, [at], "a")
    assert recent.bytes == 4 * (2 + 8)
    assert Recent(0, 1).add(["a"], [(1, 1, "t")], numbers([1])) is None


def test_the_newest_rows_of_each_account_are_chosen_in_order_of_arrival() -> None:
    recent = Recent(1, 1)
    rows = rows_like([5, 1, 9, 3], "aaba")
    assert recent.chosen(rows).tolist() == [1, 3, 0, 2]
    many = rows_like(list(range(30, 0, -1)), "a" * 30)
    assert many[recent.chosen(many)]["known_at"].to_physical().to_list() == list(range(22, 31))
