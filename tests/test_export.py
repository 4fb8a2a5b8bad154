"""What the stages hand over arrives in PostgreSQL whole, once, readable, and by nobody to be changed but the export."""

import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import schemas
from reperform.errors import ReperformError
from reperform.export import catalog, loading, server
from reperform.export.catalog import Table
from reperform.export.loading import Filled, Outcome
from reperform.params import ExportParams

NOON = datetime(2025, 4, 1, 12, tzinfo=UTC)
ODD = ["O'Neil", 'say "hi"', "a,b;c\td", "line\nbreak\r\n", "", "\\N", "\\.", "NULL", "é😀\u02bb\u202e", "x\0y", " "]


@pytest.fixture(scope="session")
def address() -> Iterator[server.Address]:
    """A server for all of these tests, in a folder with a short name."""
    home = Path(tempfile.mkdtemp(prefix="rp-"))
    with server.embedded(home) as running:
        yield running
    shutil.rmtree(home)


@pytest.fixture
def settings_(address: server.Address) -> ExportParams:
    """A schema and a reader role of its own for every test."""
    name = f"t_{uuid4().hex[:12]}"
    return ExportParams(db_schema=name, reader_role=f"{name}_reader", features_of="all")


@pytest.fixture
def load(address: server.Address, settings_: ExportParams) -> Any:
    def loaded(*filled: Filled, views: tuple[catalog.View, ...] = ()) -> dict[str, Outcome]:
        return loading.load(server.connect(address), filled, views, settings_, where="test")

    return loaded


@pytest.fixture
def ask(address: server.Address, settings_: ExportParams) -> Any:
    def asked(statement: str, user: str = server.SUPERUSER, also: str = "") -> list[tuple[Any, ...]]:
        options = f"-c search_path={settings_.db_schema} {also}"
        with server.connect(address, options=options, user=user) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    return asked


def table(frame: pl.DataFrame, name: str = "things", key: tuple[str, ...] = ("id",)) -> Filled:
    one = Table(name, "data/x.parquet", "Things.", key, {}, lambda _: None)
    return Filled(one, catalog.prepared(one, frame))


def things(*values: float) -> pl.DataFrame:
    ids = [str(number) for number in range(len(values))]
    return pl.DataFrame({"id": ids, "amount": values}, schema={"id": pl.String, "amount": pl.Float64})


# --- one table ---


def test_rows_arrive_and_sums_are_exact(load: Any, ask: Any) -> None:
    got = load(table(things(0.1, 0.2, 1e9 + 0.01, 1 / 3)))
    (expected,) = ask("SELECT sum(amount) FROM things")[0]
    assert got["things"].sums["amount"] == str(expected) == "1000000000.6433333333333333"


def test_every_type_comes_back_as_it_was(load: Any, ask: Any) -> None:
    frame = pl.DataFrame(
        {
            "id": ["a", "b"],
            "x": [0.1 + 0.2, None],
            "i": [2**62, None],
            "flag": [True, None],
            "day": [date(2025, 4, 1), None],
            "at": pl.Series([NOON, None], dtype=schemas.UTC_US),
            "many": [["u", "v"], None],
        }
    )
    load(table(frame))
    first, second = ask("SELECT * FROM things ORDER BY id")
    assert first == ("a", 0.30000000000000004, 2**62, True, date(2025, 4, 1), NOON, '["u", "v"]')
    assert second == ("b", *[None] * 6)


def test_odd_text_survives(load: Any, ask: Any) -> None:
    load(table(pl.DataFrame({"id": [str(i) for i in range(len(ODD))], "name": ODD})))
    got = [row[0] for row in ask("SELECT name FROM things ORDER BY id::int")]
    assert got == [name.replace("\0", "\u2400") for name in ODD]


def test_empty_text_and_no_text_stay_apart(load: Any, ask: Any) -> None:
    load(table(pl.DataFrame({"id": ["a", "b"], "name": ["", None]})))
    assert ask("SELECT id FROM things WHERE name IS NULL") == [("b",)]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
@settings(max_examples=50, deadline=None)
def test_exact_sums_are_those_of_the_decimals_on_show(amounts: list[float]) -> None:
    got = loading.exact_sum(pl.Series(amounts, dtype=pl.Float64))
    assert Fraction(got) == sum(Fraction(repr(amount)) for amount in amounts)


def test_a_table_without_rows_is_valid(load: Any, ask: Any) -> None:
    got = load(table(things()))
    assert got["things"] == Outcome(0, 0, {"amount": "0"}, got["things"].checksum)
    assert ask("SELECT count(*) FROM things") == [(0,)]


# --- a second run ---


def test_a_second_run_changes_nothing(load: Any, ask: Any) -> None:
    load(table(things(1, 2, 3)))
    before = ask("SELECT xmin, ctid, id FROM things ORDER BY id")
    assert load(table(things(1, 2, 3)))["things"].changed == 0
    assert ask("SELECT xmin, ctid, id FROM things ORDER BY id") == before


def test_only_what_differs_is_touched(load: Any, ask: Any) -> None:
    load(table(things(1, 2, 3)))
    before = dict(ask("SELECT id, xmin::text FROM things"))
    changed = pl.DataFrame({"id": ["0", "1", "9"], "amount": [1.0, 2.5, 4.0]})
    assert load(table(changed))["things"].changed == 3  # one changed, one new, one gone
    after = dict(ask("SELECT id, xmin::text FROM things"))
    assert after["0"] == before["0"]
    assert after["1"] != before["1"]
    assert set(after) == {"0", "1", "9"}


def test_a_row_that_someone_changed_in_the_database_is_put_right(load: Any, ask: Any) -> None:
    load(table(things(1, 2)))
    ask("UPDATE things SET amount = 7 WHERE id = '0'")
    assert load(table(things(1, 2)))["things"].changed == 1
    assert ask("SELECT amount FROM things ORDER BY id") == [(Decimal("1.0"),), (Decimal("2.0"),)]


def test_null_becomes_a_value_and_a_value_null(load: Any, ask: Any) -> None:
    load(table(pl.DataFrame({"id": ["a", "b"], "amount": [None, 1.0]})))
    assert load(table(pl.DataFrame({"id": ["a", "b"], "amount": [2.0, None]})))["things"].changed == 2
    assert ask("SELECT amount FROM things ORDER BY id") == [(Decimal("2.0"),), (None,)]


def test_other_columns_make_the_table_anew(load: Any, ask: Any) -> None:
    load(table(things(1, 2)))
    load(table(things(1).with_columns(name=pl.lit("n"))))
    assert ask("SELECT id, name FROM things") == [("0", "n")]


def test_rows_in_another_order_give_the_same_figures(load: Any) -> None:
    first = load(table(things(0.1, 0.7, 5e-324, 3)))
    assert load(table(things(0.1, 0.7, 5e-324, 3).reverse())) == {
        "things": Outcome(4, 0, first["things"].sums, first["things"].checksum)
    }


# --- refusals ---


def test_a_failure_half_way_leaves_everything_as_it_was(load: Any, ask: Any) -> None:
    load(table(things(1, 2)), table(things(5), name="others"))
    before = [ask(f"SELECT *, xmin FROM {name} ORDER BY id") for name in ("things", "others")]
    ask("ALTER TABLE others ADD CHECK (amount < 10)")
    with pytest.raises(ReperformError, match="nothing in it has changed"):
        load(table(things(9, 9, 9)), table(things(11), name="others"))
    assert [ask(f"SELECT *, xmin FROM {name} ORDER BY id") for name in ("things", "others")] == before


def test_a_first_load_that_fails_leaves_no_schema(load: Any, ask: Any, settings_: ExportParams) -> None:
    with pytest.raises(ReperformError, match="does not exist"):
        load(table(things(1)), views=(catalog.View("v_alerts", "Needs tables that are not there."),))
    assert ask(f"SELECT FROM pg_namespace WHERE nspname = '{settings_.db_schema}'") == []


def test_sums_that_differ_are_refused(load: Any, ask: Any) -> None:
    load(table(things(1, 2)))
    ask("CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.amount := 0; RETURN NEW; END'")
    ask("CREATE TRIGGER spoil BEFORE INSERT ON things FOR EACH ROW EXECUTE FUNCTION spoil()")
    with pytest.raises(ReperformError, match=r"does not hold what was sent[\s\S]*amount: sum"):
        load(table(things(1, 2, 3)))
    assert ask("SELECT count(*) FROM things") == [(2,)]


@pytest.mark.parametrize("ids", [["a", "a"], ["a", None]])
def test_a_key_that_repeats_or_is_empty_is_named(load: Any, ids: list[str | None]) -> None:
    with pytest.raises(ReperformError, match="key does not tell apart"):
        load(table(pl.DataFrame({"id": ids, "amount": [1.0, 2.0]}, schema_overrides={"id": pl.String})))


def test_an_amount_that_is_no_number_is_refused() -> None:
    with pytest.raises(ReperformError, match="amount that is no number"):
        table(things(1, float("nan")))


def test_a_schema_of_someone_else_is_left_alone(load: Any, ask: Any, settings_: ExportParams) -> None:
    ask(f"CREATE SCHEMA {settings_.db_schema} CREATE TABLE things (mine text)")
    with pytest.raises(ReperformError, match="not Reperform's"):
        load(table(things(1)))
    assert ask("SELECT count(mine) FROM things") == [(0,)]


def test_a_view_that_someone_built_on_a_table_is_not_dropped(load: Any, ask: Any) -> None:
    load(table(things(1)))
    ask("CREATE VIEW mine AS SELECT amount FROM things")
    with pytest.raises(ReperformError, match="drop the view that depends on it"):
        load(table(things(1).with_columns(name=pl.lit("n"))))
    assert ask("SELECT * FROM mine") == [(Decimal("1.0"),)]


# --- the reader ---


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO things VALUES ('x', 1)",
        "UPDATE things SET amount = 0",
        "DELETE FROM things",
        "TRUNCATE things",
        "CREATE TABLE mine (a int)",
        "CREATE TEMPORARY TABLE mine (a int)",
        "DROP TABLE things",
        "SELECT lo_create(0)",
        "CREATE ROLE other",
        "COPY things TO PROGRAM 'cat'",
    ],
)
def test_the_reader_reads_and_nothing_else(load: Any, ask: Any, settings_: ExportParams, statement: str) -> None:
    load(table(things(1)))
    role = settings_.reader_role
    assert ask("SELECT id FROM things", user=role) == [("0",)]
    # Its own setting keeps the role from writing; its rights do so when it lifts that setting, too.
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(statement, user=role, also="-c default_transaction_read_only=off")


def test_rights_that_the_reader_was_given_are_taken_back(load: Any, ask: Any, settings_: ExportParams) -> None:
    load(table(things(1)))
    ask(f"GRANT ALL ON things TO {settings_.reader_role}")
    load(table(things(1)))
    (granted,) = ask(
        f"SELECT array_agg(privilege_type::text) FROM information_schema.role_table_grants"
        f" WHERE grantee = '{settings_.reader_role}'"
    )[0]
    assert granted == ["SELECT"]
