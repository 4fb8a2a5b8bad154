"""What the stages hand over arrives in PostgreSQL whole, once, readable, and by nobody to be changed but the export."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
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

from reperform import schemas, tables
from reperform.errors import ReperformError
from reperform.export import catalog, loading, run, server, sources
from reperform.export.catalog import Table
from reperform.export.loading import Filled, Outcome
from reperform.params import ExportParams

NOON = datetime(2025, 4, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
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


# --- users of a server of one's own ---


@pytest.fixture
def loader(ask: Any, settings_: ExportParams) -> str:
    """A user without any rights of a superuser, who may make schemas."""
    name = f"{settings_.db_schema}_loader"
    ask(f"CREATE ROLE {name} LOGIN; GRANT CREATE, TEMPORARY ON DATABASE reperform TO {name}")
    return name


def load_as(user: str, address: server.Address, settings_: ExportParams, *filled: Filled) -> dict[str, Outcome]:
    return loading.load(server.connect(address, user=user), filled, (), settings_, where="test")


def test_a_user_who_may_make_roles_loads_and_can_take_on_the_readers_role(
    address: server.Address, settings_: ExportParams, loader: str, ask: Any
) -> None:
    ask(f"ALTER ROLE {loader} CREATEROLE")
    assert load_as(loader, address, settings_, table(things(1)))["things"].changed == 1
    assert load_as(loader, address, settings_, table(things(1)))["things"].changed == 0
    as_reader = f"-c role={settings_.reader_role}"
    assert ask("SELECT id FROM things", user=loader, also=as_reader) == [("0",)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask("DELETE FROM things", user=loader, also=as_reader)


def test_a_user_who_may_not_make_roles_is_told_so_and_can_use_one_that_exists(
    address: server.Address, settings_: ExportParams, loader: str, ask: Any
) -> None:
    with pytest.raises(ReperformError, match=r"permission denied[\s\S]*make the reader role beforehand"):
        load_as(loader, address, settings_, table(things(1)))
    ask(f"CREATE ROLE {settings_.reader_role} LOGIN")
    assert load_as(loader, address, settings_, table(things(1)))["things"].changed == 1
    assert ask("SELECT id FROM things", user=settings_.reader_role) == [("0",)]


def test_two_exports_at_once_take_turns(load: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda _: load(table(things(*range(2000))))["things"].changed, range(2)))
    assert sorted(got) == [0, 2000]


# --- a whole project ---

ROW = {
    "booked_at": NOON,
    "known_at": NOON,
    "account_id": "A1",
    "counterparty_id": "C'1",
    "entity_id": "north",
    "direction": "out",
    "amount": 10.0,
    "currency": "EUR",
    "amount_base": 10.0,
    "channel": None,
    "country": None,
    "latitude": None,
    "longitude": None,
    "balance_after": None,
    "source_file": "f.csv",
    "source_record": 1,
}


def saved(frame_schema: Any, stage: str, name: str, *rows: dict[str, Any]) -> None:
    tables.write_table(pl.DataFrame(list(rows), schema=dict(frame_schema), orient="row"), stage, name)


@pytest.fixture
def filled(project: Path, settings_: ExportParams, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three transactions, one alert with its reasons, one filing with a broken rule, one refused row, two triggers."""
    monkeypatch.setenv(server.ADDRESS_VARIABLE, url)
    rows = [{"transaction_id": f"T{i}", **ROW, "amount_base": 0.1 * i, "booked_at": NOON + i * DAY} for i in (1, 2, 3)]
    saved(schemas.polars_schema(schemas.TRANSACTIONS), "validate", "transactions", *rows)
    label = {"transaction_id": "T2", "is_anomaly": True, "typology": "structuring", "confirmed_at": NOON + 9 * DAY}
    saved(schemas.polars_schema(schemas.LABELS), "validate", "labels", label)
    filing = {"filing_id": "F1", "entity_id": "north", "form": "brr", "period_end": NOON.date(), "filed_at": NOON}
    saved(schemas.polars_schema(schemas.FILINGS), "validate", "filings", filing | {"source_file": "f.xbrl"})
    check = {"filing_id": "F1", "family": "balance", "rule": "r", "is_evaluable": True, "is_satisfied": False}
    broken = [check | {"gap": -3.5}, check | {"gap": 2.0}, check | {"is_satisfied": True, "gap": 0.0}]
    saved(schemas.polars_schema(schemas.CHECKS), "featurize", "filing_checks", *broken)
    refused = {"table": "transactions", "source_file": "f.csv", "rule": "amount > 0", "column": "amount", "row": "{}"}
    pair = [refused | {"source_record": 8, "value": "-1"}, refused | {"source_record": 5, "value": "0"}]
    saved(schemas.polars_schema(schemas.QUARANTINE), "validate", "quarantine", *pair)
    alert = {name: value for name, value in ROW.items() if name in sources.ALERTS}
    alert |= {"transaction_id": "T2", "score": 4.0, "probability": 0.9, "rank": 1}
    saved(sources.ALERTS, "evaluate", "alerts", alert)
    reason = {"transaction_id": "T2", "detector": "xgboost", "method": "shap"}
    told = [
        reason | {"feature": "b", "value": None, "contribution": -0.25, "rank": 2},
        reason | {"feature": "a", "value": 2.0, "contribution": 12345.5, "rank": 1},
        reason | {"method": "lime", "feature": "a", "value": 2.0, "contribution": 1.0, "rank": 1},
    ]
    saved(sources.ATTRIBUTIONS, "explain", "attributions", *told)
    tables.write_json([{"name": "a", "kpi": "Velocity", "kpi_number": 1, "unit": "per hour", "formula": "n / W"}],
                      "featurize", "dictionary")  # fmt: skip
    saved(sources.FEATURES | {"a": pl.Float64}, "featurize", "features", {"transaction_id": "T2", "a": 2.0})
    metric = {"estimate": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    metrics = {"rules": {"roc_auc": metric}, "xgboost": {"roc_auc": metric | {"estimate": 0.75, "low": None}}}
    tables.write_json(metrics, "evaluate", "metrics")
    trigger = {"rule": "data_drift", "status": "act", "limit": 0.1, "names": ["a"]}
    tables.write_json({"triggers": [trigger, {"rule": "volume", "status": "stable"}]}, "monitor", "triggers")
    tables.write_json(
        {"receipts": [{"transaction": {"transaction_id": "T2"}, "why": "Because."}]}, "explain", "receipts"
    )
    return project


@pytest.fixture
def url(address: server.Address) -> str:
    """The address of the tests' server, as a user would set it."""
    at = address.parameters
    return f"postgresql://{at['user']}@/{at['dbname']}?host={at['host']}&port={at['port']}"


def test_views_say_what_the_frames_say(filled: Path, settings_: ExportParams, ask: Any) -> None:
    run(settings_)
    reasons = "a = 2.0000 (+12345.500); b = unknown (-0.250)"
    columns = "alert_rank, counterparty_id, amount_base, top_reasons, confirmed_anomaly, source_record"
    assert ask(f"SELECT {columns} FROM v_alerts") == [(1, "C'1", Decimal("10.0"), reasons, True, 1)]
    assert ask("SELECT method, reason_rank, feature, kpi, unit, formula FROM v_alert_reasons") == [
        ("shap", 1, "a", "Velocity", "per hour", "n / W"),
        ("shap", 2, "b", None, None, None),
        ("lime", 1, "a", "Velocity", "per hour", "n / W"),
    ]
    assert ask("SELECT * FROM v_detector_metrics") == [
        ("rules", "roc_auc", 0.5, 0.4, 0.6, 3, 0.5, 0.0),
        ("xgboost", "roc_auc", 0.75, None, 0.6, 3, 0.5, 0.25),
    ]
    days = ask("SELECT day, n_transactions, n_out, amount_base, n_alerts, n_confirmed_anomalies FROM v_daily_volume")
    assert days[1] == (date(2025, 4, 3), 1, 1, Decimal("0.2"), 1, 1)
    assert [day[3] for day in days] == [Decimal("0.1"), Decimal("0.2"), Decimal("0.30000000000000004")]
    assert ask("SELECT filing_id, n_broken_rules, largest_gap, score FROM v_filing_scores") == [
        ("F1", 2, Decimal("3.5"), None)
    ]
    assert ask("SELECT rule, n_rows, first_record, first_value FROM v_quarantine_summary") == [
        ("amount > 0", 2, 5, "-1")
    ]
    assert ask("SELECT rule, warn_limit, names FROM v_open_triggers") == [("data_drift", 0.1, ["a"])]
    assert ask("SELECT why, receipt -> 'transaction' ->> 'transaction_id' FROM receipts") == [("Because.", "T2")]


def test_the_receipt_is_the_same_each_time_and_names_no_place(filled: Path, settings_: ExportParams) -> None:
    run(settings_)
    first = (filled / "data" / "export" / "receipt.json").read_bytes()
    run(settings_)
    assert (filled / "data" / "export" / "receipt.json").read_bytes() == first
    document = json.loads(first)
    assert document["tables"]["transactions"]["rows"] == 3
    assert document["tables"]["transactions"]["sums"]["amount_base"] == "0.60000000000000004"
    assert b"/tmp" not in first
    assert b"host" not in first


def test_the_receipt_tells_when_a_value_has_changed(filled: Path, settings_: ExportParams) -> None:
    before = run(settings_)["tables"]
    saved(sources.FEATURES | {"a": pl.Float64}, "featurize", "features", {"transaction_id": "T2", "a": 2.5})
    after = run(settings_)["tables"]
    assert [name for name in before if before[name] != after[name]] == ["features"]


def test_a_run_without_any_output_is_valid(
    project: Path, settings_: ExportParams, url: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server.ADDRESS_VARIABLE, url)
    document = run(settings_)
    assert {one["rows"] for one in document["tables"].values()} == {0}
    for view in catalog.VIEWS:
        assert ask(f"SELECT * FROM {view.name}") == []


@pytest.mark.parametrize(
    ("of", "expected"), [("none", []), ("alerts", ["T2"]), ("test", ["T3"]), ("all", ["T2", "T3"])]
)
def test_feature_rows_are_those_that_were_asked_for(
    filled: Path, settings_: ExportParams, ask: Any, of: str, expected: list[str]
) -> None:
    rows = [{"transaction_id": "T2", "a": 2.0}, {"transaction_id": "T3", "a": 3.0}]
    saved(sources.FEATURES | {"a": pl.Float64}, "featurize", "features", *rows)
    splits = [{"transaction_id": "T2", "split": "train"}, {"transaction_id": "T3", "split": "test"}]
    saved(schemas.polars_schema(schemas.SPLIT_ROWS), "split", "splits", *splits)
    run(ExportParams(db_schema=settings_.db_schema, reader_role=settings_.reader_role, features_of=of))  # type: ignore[arg-type]
    assert [row[0] for row in ask("SELECT transaction_id FROM features ORDER BY 1")] == expected


def test_every_table_view_and_column_is_explained(filled: Path, settings_: ExportParams, ask: Any) -> None:
    run(settings_)
    said = ask(
        "SELECT c.relname, a.attname, col_description(c.oid, a.attnum), obj_description(c.oid)"
        " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        f" WHERE c.relnamespace = '{settings_.db_schema}'::regnamespace AND c.relkind IN ('r', 'v')"
    )
    assert {row[0] for row in said} == {t.name for t in catalog.TABLES} | {view.name for view in catalog.VIEWS}
    assert [row[:2] for row in said if not row[2] or row[2].startswith("As in the output") or not row[3]] == []
    assert ("features", "a", "KPI 1: n / W [per hour]") in [row[:3] for row in said]


def test_an_output_without_the_columns_of_its_views_is_named(filled: Path, settings_: ExportParams) -> None:
    tables.write_table(pl.DataFrame({"transaction_id": ["T2"]}), "evaluate", "alerts")
    with pytest.raises(ReperformError, match=r"alerts lacks columns[\s\S]*rank"):
        run(settings_)


# --- commands ---


def command(folder: Path, *arguments: str, url: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "reperform", *arguments],
        cwd=folder,
        env={**os.environ, server.ADDRESS_VARIABLE: url},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def composed(project: Path) -> Path:
    """The project with the parameters that its conf/ composes to."""
    assert command(project, "params", url="").returncode == 0
    return project


def test_psql_reads_and_does_not_write(filled: Path, composed: Path, settings_: ExportParams, url: str) -> None:
    run(settings_)
    content = (composed / "params.yaml").read_text()
    for key in ("db_schema", "reader_role"):
        content = re.sub(rf"{key}: .*", f"{key}: {getattr(settings_, key)}", content)
    (composed / "params.yaml").write_text(content)
    got = command(composed, "psql", "--csv", "-c", "SELECT transaction_id, current_user FROM v_alerts", url=url)
    assert (got.returncode, got.stderr) == (0, "")
    assert got.stdout.splitlines() == ["transaction_id,current_user", f"T2,{settings_.reader_role}"]
    refused = command(composed, "psql", "-c", "DELETE FROM alerts", url=url)
    assert refused.returncode == 1
    assert "read-only transaction" in refused.stderr


def test_psql_says_when_nothing_was_exported(composed: Path, url: str) -> None:
    got = command(composed, "psql", "-c", "SELECT 1", url=url)
    assert got.returncode == 1
    assert "run `python -m reperform export`" in got.stderr
    assert "Traceback" not in got.stderr


def test_the_embedded_server_is_used_when_no_address_is_given(composed: Path) -> None:
    got = command(composed, "export", url="")
    assert got.returncode == 0, got.stderr
    assert "0 rows in" in got.stdout
    counted = command(composed, "psql", "--csv", "-c", "SELECT count(*) AS n FROM v_alerts", url="")
    assert counted.stdout.splitlines() == ["n", "0"]
    assert not (composed / ".pgdata" / "cluster" / "postmaster.pid").exists()
