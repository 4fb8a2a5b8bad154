"""The calendar divides time once, and no fit knows a label from its future."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import params, schemas, split, tables
from reperform.errors import ReperformError

CALENDAR = params.build(
    params.SplitParams,
    {
        "train_days": 20,
        "train_until": "2025-03-20",
        "label_delay_days": 3,
        "label_maturity_days": 5,
        "validation_days": 4,
        "test_from": "2025-03-24",
        "test_days": 2,
        "drop_known_compromised": False,
    },
    "split",
)
MICROSECOND = timedelta(microseconds=1)


def day(number: int, hours: int = 0) -> datetime:
    return datetime(2025, 3, 1, tzinfo=UTC) + timedelta(days=number - 1, hours=hours)


def rows(*moments: datetime) -> pl.DataFrame:
    return pl.DataFrame(
        {"transaction_id": [str(i) for i in range(len(moments))], "booked_at": list(moments)},
        schema={"transaction_id": pl.String, "booked_at": schemas.UTC_US},
    ).with_columns(account_id=pl.lit("A"))


def labels(*given: tuple[str, bool, datetime]) -> pl.DataFrame:
    return pl.DataFrame(
        [(name, is_anomaly, None, when) for name, is_anomaly, when in given],
        schema=schemas.polars_schema(schemas.LABELS),
        orient="row",
    )


@pytest.mark.parametrize(
    ("boundary", "before", "after"),
    [
        (day(1), "history", "train"),
        (day(14), "train", "delay"),
        (day(17), "delay", "validation"),
        (day(21), "validation", "delay"),
        (day(24), "delay", "test"),
        (day(26), "test", "later"),
    ],
)
def test_windows_meet_to_the_microsecond(boundary: datetime, before: str, after: str) -> None:
    got = split.split_rows(rows(boundary - MICROSECOND, boundary), CALENDAR)
    assert got["split"].to_list() == [before, after]
    assert schemas.checked(got, schemas.SPLIT_ROWS).equals(got)


def test_fits_learn_and_score_where_the_decision_says() -> None:
    first, final = split.fits(CALENDAR)
    assert (first.learns_from, first.learns_until, first.known_by) == (day(1), day(14), day(17))
    assert (first.scores_from, first.scores_until) == (day(1), day(21))
    assert (final.learns_from, final.learns_until, final.known_by) == (day(1), day(21), day(24))
    assert (final.scores_from, final.scores_until) == (day(21), None)


def test_a_label_is_known_only_after_its_confirmation() -> None:
    frame = rows(day(2), day(2))
    given_labels = labels(("0", True, day(10) - MICROSECOND), ("1", True, day(10)))
    got = split.learning_labels(frame, given_labels, known_by=day(10), maturity_days=30)
    assert got["y"].to_list() == [1, None]


def test_a_late_confirmation_does_not_undo_what_was_presumed() -> None:
    got = split.learning_labels(rows(day(2)), labels(("0", True, day(12))), known_by=day(10), maturity_days=5)
    assert got["y"].to_list() == [0]


def test_an_unlabelled_row_is_normal_from_its_maturity_on() -> None:
    got = split.learning_labels(rows(day(5), day(5) + MICROSECOND), labels(), known_by=day(10), maturity_days=5)
    assert got["y"].to_list() == [0, None]


def test_a_reviewed_and_normal_row_is_normal_however_young() -> None:
    got = split.learning_labels(rows(day(9)), labels(("0", False, day(9, 5))), known_by=day(10), maturity_days=5)
    assert got["y"].to_list() == [0]


def test_labels_keep_the_order_of_the_rows() -> None:
    frame = rows(day(3), day(2), day(1))
    got = split.learning_labels(frame, labels(("2", True, day(4))), known_by=day(10), maturity_days=1)
    assert got["transaction_id"].to_list() == ["0", "1", "2"]
    assert got["y"].to_list() == [0, 0, 1]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 30), st.data())
@settings(max_examples=40, deadline=None)
def test_nothing_confirmed_later_changes_what_is_known(booked: list[int], cut: int, data: Any) -> None:
    frame = rows(*(day(1) + timedelta(days=b) for b in booked))
    confirmed = [day(1) + timedelta(days=b + data.draw(st.integers(0, 20))) for b in booked]
    whole = labels(*((str(i), True, when) for i, when in enumerate(confirmed)))
    known_by = day(1) + timedelta(days=cut)
    early = whole.filter(pl.col("confirmed_at") < known_by)
    got, expected = (split.learning_labels(frame, one, known_by=known_by, maturity_days=7) for one in (whole, early))
    assert got.equals(expected)


def test_a_thinned_test_is_refused() -> None:
    frame = rows(day(24), day(24, 1), day(25))
    splits = split.split_rows(frame, CALENDAR)
    split.refuse_resampled_test(splits, frame, CALENDAR)
    with pytest.raises(ReperformError, match=r"resampled[\s\S]*missing: \['1'\]"):
        split.refuse_resampled_test(splits.filter(pl.col("transaction_id") != "1"), frame, CALENDAR)


def test_a_repeated_or_added_test_row_is_refused() -> None:
    frame = rows(day(24), day(2))
    splits = split.split_rows(frame, CALENDAR)
    with pytest.raises(ReperformError, match=r"repeated: \['0'\]"):
        split.refuse_resampled_test(pl.concat([splits, splits]), frame, CALENDAR)
    with pytest.raises(ReperformError, match=r"added: \['1'\]"):
        split.refuse_resampled_test(splits.with_columns(split=pl.lit("test")), frame, CALENDAR)


def test_a_test_before_its_labels_could_arrive_is_refused() -> None:
    early = params.build(params.SplitParams, params_of(CALENDAR) | {"test_from": "2025-03-23"}, "split")
    with pytest.raises(ReperformError, match="2025-03-24 or later"):
        split.split_rows(rows(day(1)), early)


def test_a_calendar_without_days_to_learn_from_is_refused() -> None:
    short = params.build(params.SplitParams, params_of(CALENDAR) | {"train_days": 7}, "split")
    with pytest.raises(ReperformError, match="No day is left"):
        split.split_rows(rows(day(1)), short)


def params_of(calendar: params.SplitParams) -> dict[str, Any]:
    return {name: getattr(calendar, name) for name in type(calendar).__dataclass_fields__}


def write_validated(frame: pl.DataFrame, given_labels: pl.DataFrame) -> None:
    tables.write_table(frame, "validate", "transactions")
    tables.write_table(given_labels, "validate", "labels")


def test_the_stage_counts_what_each_fit_may_know(project: Path) -> None:
    write_validated(rows(day(1), day(12), day(18), day(24)), labels(("0", True, day(2)), ("2", True, day(19))))
    got = split.run(CALENDAR)
    assert {name: counts["rows"] for name, counts in got["splits"].items() if counts["rows"]} == {
        "train": 2, "validation": 1, "test": 1,
    }  # fmt: skip
    assert {k: got["fits"]["first"][k] for k in ("rows", "anomalies", "normal", "unknown")} == {
        "rows": 2, "anomalies": 1, "normal": 1, "unknown": 0,
    }  # fmt: skip
    assert got["fits"]["final"]["anomalies"] == 2
    assert tables.read_table("split", "splits").height == 4


def test_the_stage_works_without_transactions(project: Path) -> None:
    write_validated(rows(), labels())
    assert split.run(CALENDAR)["rows"] == 0
    assert tables.read_table("split", "splits").equals(schemas.empty(schemas.SPLIT_ROWS))
