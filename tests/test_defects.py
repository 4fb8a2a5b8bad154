"""The defect harness: what feeds get wrong is caught by the check that names it, and clean data raise no alarm."""

from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from reperform import defects, feeds, params, schemas
from reperform.defects.kinds import DEFECTS
from reperform.feeds import refusals, shifts, volume
from reperform.feeds.batches import feed
from reperform.feeds.finding import FEED_RULES, WITHOUT_ROWS, FeedFinding, named
from reperform.params import ValidateParams
from tests.conftest import ROOT

SECTION = yaml.safe_load((ROOT / "conf" / "validate" / "default.yaml").read_text(encoding="utf-8"))
GIVEN = params.build(ValidateParams, SECTION, "validate")
START = date(2025, 1, 6)  # a Monday
QUICK = (
    "_zone_three_hours",
    "_missing_day",
    "_mojibake",
    "_sign_flip",
    "_total_row",
    "_truncated",
    "_label_flood",
    "_stale_file",
)


def daily(counts: list[int], source: str = "bank") -> pl.DataFrame:
    """Rows of a source: as many as wanted on each day, spread over the hours from eight on."""
    rows = []
    for place, n in enumerate(counts):
        for number in range(n):
            moment = datetime.combine(START + timedelta(days=place), datetime.min.time()) + timedelta(
                hours=8 + number % 12, minutes=number * 7 % 60, seconds=(place * 13 + number) % 60
            )
            rows.append(
                {
                    "transaction_id": f"{source}-{place}-{number}", "booked_at": moment, "known_at": moment,
                    "account_id": f"A{number % 9}", "counterparty_id": f"X{(place * 31 + number) % 97}",
                    "entity_id": source,
                    "direction": "in" if number % 5 == 0 else "out", "amount": 5.0 + (place * 7 + number * 11) % 90,
                    "currency": "EUR", "amount_base": 1.0, "channel": ("card", "transfer")[number % 5 == 0],
                    "country": "DE",
                    "balance_after": 1.0, "source_file": f"{source}/{place:03}.csv", "source_record": number + 1,
                }
            )  # fmt: skip
    kinds = schemas.polars_schema(schemas.TRANSACTIONS)
    naive = {name: pl.Datetime("us") if kind == schemas.UTC_US else kind for name, kind in kinds.items()}
    times = [pl.col(name).dt.replace_time_zone("UTC") for name in ("booked_at", "known_at")]
    return pl.DataFrame(rows, schema=naive).with_columns(times)


def rules(rows: pl.DataFrame, **raw: pl.DataFrame) -> list[tuple[str, date | None]]:
    tables = {name: schemas.empty(schemas.CANONICAL[name]) for name in ("accounts", "labels", "messages")} | raw
    nothing, receipt = schemas.empty(schemas.QUARANTINE), {"sources": {}}
    found = feeds.check(tables | {"transactions": rows}, nothing, receipt, GIVEN.feeds, GIVEN.feed_limits)
    return [(one.rule, one.day) for one in found]


def test_a_steady_feed_raises_nothing_and_so_does_no_feed() -> None:
    assert rules(daily([40] * 42)) == []
    assert rules(daily([])) == []


def test_a_missing_day_is_told_once_and_by_its_date() -> None:
    counts = [40] * 42
    counts[30] = 0
    assert rules(daily(counts)) == [("missing_day", START + timedelta(days=30))]
    counts[31] = 0
    assert rules(daily(counts)) == [("missing_day", START + timedelta(days=30))]


def test_quiet_sundays_are_missed_by_nobody() -> None:
    assert rules(daily([40, 40, 40, 40, 40, 30, 0] * 6)) == []


def test_the_day_that_falls_short_is_a_drop_and_the_one_that_overflows_a_surge() -> None:
    counts = [60] * 42
    counts[30], counts[36] = 6, 400
    assert rules(daily(counts)) == [
        ("volume_drop", START + timedelta(days=30)),
        ("volume_surge", START + timedelta(days=36)),
    ]


def test_a_holiday_of_all_sources_is_no_drop() -> None:
    counts = [60] * 42
    counts[30] = 12
    rows = pl.concat([daily(counts, name) for name in ("north", "south", "west")])
    assert not [rule for rule, _ in rules(rows) if rule == "volume_drop"]


def test_later_rows_never_decide_about_earlier_ones() -> None:
    counts = [60] * 60
    counts[30] = 6
    late = daily(counts).with_columns(
        amount=pl.when(pl.col("booked_at").dt.date() >= START + timedelta(days=45))
        .then(pl.col("amount") * 1000)
        .otherwise("amount")
    )
    early = late.filter(pl.col("booked_at").dt.date() < START + timedelta(days=40))
    whole = [one for one in rules(late) if one[1] and one[1] < START + timedelta(days=40)]
    assert whole == rules(early) == [("volume_drop", START + timedelta(days=30))]
    assert "amount_scale" in {rule for rule, _ in rules(late)}


def test_expected_counts_are_medians_of_the_same_weekday() -> None:
    assert volume.expected_count([10, 30, 20, None]) == 20
    assert volume.expected_count([10, None, 20]) is None


@pytest.mark.parametrize("hours", [0, 1, -5, 12])
def test_hours_of_the_day_that_moved_are_counted(hours: int) -> None:
    before = np.array([np.exp(-((np.arange(24) - 14) ** 2) / 18) * 5000]).round()
    moved, gain = shifts.shift(np.roll(before, hours, axis=1) / 10, before)
    assert moved == hours
    assert (gain > 0) == (hours != 0)


def test_batches_hold_whole_files_in_order_of_time() -> None:
    rows = daily([100] * 20)
    whole = feed(rows, schemas.empty(schemas.ACCOUNTS), {}, GIVEN.feed_limits)
    assert whole.rows.height == rows.height
    assert whole.batches["n"].to_list() == [700, 700, 600]
    assert [files[0] for files in whole.batches["files"].to_list()] == [f"bank/{n:03}.csv" for n in (0, 7, 14)]


@pytest.mark.parametrize(
    ("record", "row", "rule", "says"),
    [
        (5, "Total,,,99.50", "missing_value", "total_row"),
        (5, "id,account,amount", "bad_number", "header_repeated"),
        (9, "T9,A1", "wrong_number_of_fields", "truncated_file"),
        (5, "T9,A1", "wrong_number_of_fields", "records_refused"),
        (0, "the same bytes as a.csv", "file_duplicate", "file_delivered_twice"),
        (0, "", "file_empty", "file_unreadable"),
        (5, "{}", "duplicate_id", "rows_delivered_twice"),
    ],
)
def test_refused_records_say_what_is_wrong_with_their_file(record: int, row: str, rule: str, says: str) -> None:
    one = {"table": "transactions", "source_file": "f.csv", "source_record": record, "rule": rule, "row": row}
    refused = pl.DataFrame([one], schema=schemas.polars_schema(schemas.QUARANTINE))
    receipt = {"sources": {"bank": {"files": [{"path": "f.csv", "records": 9}]}}}
    (found,) = refusals.findings(refusals.with_source(refused, {"f.csv": "bank"}), receipt)
    assert (found.rule, found.source, found.file) == (says, "bank", "f.csv")


def test_quarantine_of_a_finding_takes_the_rows_of_its_file_and_day_alone() -> None:
    rows = daily([3, 3])
    of_file = FeedFinding("bank", "mojibake", "bank/001.csv", 3, "", "", severity="quarantine", files=("bank/001.csv",))
    assert feeds.rows_of([of_file], "transactions", rows, "mojibake").to_list() == [False] * 3 + [True] * 3
    other = FeedFinding("bank", "mojibake", "", 0, "", "", START, severity="quarantine", files=("bank/001.csv",))
    assert not feeds.rows_of([other], "transactions", rows, "mojibake").any()
    warned = FeedFinding("bank", "mojibake", "", 0, "", "", severity="warn", files=("bank/001.csv",))
    assert not feeds.rows_of([warned], "transactions", rows, "mojibake").any()


def test_many_files_are_named_by_the_first_and_the_last() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named(["a", "b", "c", "d"]) == "a to d (4 files)"


def test_every_feed_rule_has_a_severity_a_meaning_and_a_remedy() -> None:
    assert set(SECTION["feeds"]) == set(FEED_RULES)
    assert set(WITHOUT_ROWS) <= set(FEED_RULES)
    assert all(says and fix for says, fix in FEED_RULES.values())


def test_only_a_check_that_names_the_right_thing_and_file_counts_as_caught() -> None:
    defect = next(one for one in DEFECTS if one.rules == ("mojibake",))
    right = {"rule": "mojibake", "file": "north/a.csv", "source": "north", "observed": ""}
    assert defects.outcome(defect, "north/a.csv", defects.Verdict([right])).caught
    assert not defects.outcome(defect, "north/b.csv", defects.Verdict([right])).caught
    assert not defects.outcome(defect, "north/a.csv", defects.Verdict([right | {"rule": "null_words"}])).caught
    assert not defects.outcome(defect, "north/a.csv", defects.Verdict([], "mojibake in another file")).caught
    assert defects.outcome(defect, "north/a.csv", defects.Verdict([], "mojibake in north/a.csv")).caught


def test_there_are_many_kinds_and_each_has_its_own_name() -> None:
    assert len({one.name for one in DEFECTS}) == len(DEFECTS) >= 30


def test_some_kinds_are_caught_in_raw_files(tmp_path: Path) -> None:
    chosen = [one for one in DEFECTS if one.name in {name.removeprefix("_") for name in QUICK}]
    outcomes = list(defects.planted(ROOT, tmp_path, GIVEN, 1, chosen))
    assert len(outcomes) == len(QUICK)
    assert [one.defect.name for one in outcomes if not one.caught] == []


def test_a_clean_world_raises_no_alarm(tmp_path: Path) -> None:
    world, sources = defects.settings(ROOT, 2)
    defects.clean_world(world, tmp_path / "world")
    assert defects.judge(tmp_path / "world", sources, GIVEN) == defects.Verdict([])


@pytest.mark.slow
def test_the_whole_harness_catches_nearly_everything_and_never_cries_wolf(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8")) | {"validate": SECTION}
    (project / "params.yaml").write_text(yaml.safe_dump(section), encoding="utf-8")
    assert defects.main(seed=1) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"planted: {len(DEFECTS)}, caught: ")
    assert last.endswith("; false alarms on clean data: 0")
