"""Contracts between stages refuse what they should, and say why."""

import polars as pl
import pytest

from reperform import schemas
from reperform.errors import ReperformError

ALL = [value for value in vars(schemas).values() if isinstance(value, type(schemas.TRANSACTIONS))]
SCORE = {
    "transaction_id": ["T1"],
    "filing_id": [None],
    "split": ["test"],
    "detector": ["rules"],
    "score": [1.0],
    "probability": [0.5],
    "is_alert": [True],
}


def scores(**changed: object) -> pl.DataFrame:
    return pl.DataFrame(SCORE | changed, schema=schemas.polars_schema(schemas.SCORES))


@pytest.mark.parametrize("schema", ALL, ids=lambda schema: schema.name)
def test_an_empty_table_meets_every_contract(schema: object) -> None:
    frame = schemas.empty(schema)
    assert schemas.checked(frame, schema).equals(frame)
    assert schemas.shaped(frame, schema).equals(frame)


def test_names_are_unique_and_canonical_tables_are_what_ingest_hands_on() -> None:
    assert len({schema.name for schema in ALL}) == len(ALL)
    tables = ["transactions", "labels", "accounts", "filings", "facts", "messages", "checks"]
    assert list(schemas.CANONICAL) == tables


def test_a_good_row_passes() -> None:
    assert schemas.checked(scores(), schemas.SCORES).height == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"split": ["tset"]}, "split"),
        ({"probability": [1.5]}, "probability"),
        ({"detector": [None]}, "detector"),
        ({"score": [None]}, "score"),
    ],
)
def test_a_bad_value_is_named(changed: dict[str, object], says: str) -> None:
    with pytest.raises(ReperformError, match=rf"scores breaks its contract[\s\S]*{says}"):
        schemas.checked(scores(**changed), schemas.SCORES)


@pytest.mark.parametrize(
    "frame",
    [
        scores().drop("score"),
        scores().with_columns(extra=1),
        scores().select(reversed(scores().columns)),
        scores().cast({"score": pl.Float32}),
    ],
)
def test_missing_extra_misplaced_and_mistyped_columns_are_refused(frame: pl.DataFrame) -> None:
    with pytest.raises(ReperformError, match="scores"):
        schemas.checked(frame, schemas.SCORES)
    with pytest.raises(ReperformError, match="has not the columns of its contract"):
        schemas.shaped(frame, schemas.SCORES)


def test_identifiers_are_unique() -> None:
    two = pl.concat(
        [schemas.empty(schemas.SPLIT_ROWS), pl.DataFrame({"transaction_id": ["T", "T"], "split": ["test"] * 2})]
    )
    with pytest.raises(ReperformError, match="transaction_id"):
        schemas.checked(two, schemas.SPLIT_ROWS)


def test_times_are_utc_and_microseconds_in_every_contract() -> None:
    times = [
        kind
        for schema in ALL
        for kind in schemas.polars_schema(schema).values()
        if isinstance(kind, pl.Datetime) or kind is pl.Datetime
    ]
    assert len(times) > 5
    assert set(times) == {schemas.UTC_US}
