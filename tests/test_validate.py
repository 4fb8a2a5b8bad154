"""Stage validate: every rule catches what it is for, nothing is lost, and quality.json says what the data are like."""

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from reperform import figures, params, quality, quality_changes, schemas, severity, spreadsheet, validate, validity
from reperform.errors import ReperformError
from reperform.figures import validate as draw
from reperform.markup import literal, pipe_table
from tests.conftest import ROOT
from tests.test_ingest import command

NOON = datetime(2025, 4, 1, 12, tzinfo=UTC)
SECTION = yaml.safe_load((ROOT / "conf" / "validate" / "default.yaml").read_text())
SEVERITY = SECTION["rules"]
LIMITS = validity.amount_limits(SECTION["amount_limits"])
MORE = ("quarantine", "quality_days", "quality_mixes", "findings")
Raw = dict[str, pl.DataFrame]


def frame(table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schemas.polars_schema(schemas.CANONICAL[table]))


def transaction(number: int, **changed: Any) -> dict[str, Any]:
    """A row of account A: 10 units come in every hour, on a balance of 100."""
    moment = NOON + timedelta(hours=number)
    return {
        "transaction_id": f"T{number}",
        "booked_at": moment,
        "known_at": moment + timedelta(hours=1 + 24 * (number == 3)),
        "account_id": "A",
        "counterparty_id": "X",
        "entity_id": "bank",
        "direction": "in",
        "amount": 10.0,
        "currency": "EUR",
        "amount_base": 10.0,
        "channel": "card",
        "country": "DE",
        "latitude": 1.0,
        "longitude": 2.0,
        "balance_after": 100.0 + 10 * number,
        "source_file": "bank/a.csv",
        "source_record": number,
    } | changed


def good() -> Raw:
    """Tables that meet every rule."""
    account = {"entity_id": "bank", "opened_at": NOON - timedelta(days=9), "timezone": "Europe/Berlin"}
    filing = {"filing_id": "F1", "entity_id": "bank", "form": "brr", "period_start": date(2025, 1, 1)}
    filing |= {"period_end": date(2025, 1, 31), "due_at": NOON, "filed_at": NOON, "source_file": "bank/f.xbrl"}
    fact = {"filing_id": "F1", "concept": "c", "period_start": date(2025, 1, 1), "period_end": date(2025, 1, 31)}
    check = {"filing_id": "F1", "family": "calculation", "rule": "r", "is_evaluable": True, "is_satisfied": True}
    rows: dict[str, list[dict[str, Any]]] = {
        "accounts": [{"account_id": name, "segment": "retail", "home_country": "DE"} | account for name in "AB"],
        "transactions": [transaction(number) for number in range(1, 6)],
        "labels": [
            {"transaction_id": "T1", "is_anomaly": True, "typology": "cycle", "confirmed_at": NOON + timedelta(days=4)},
            {"transaction_id": "T2", "is_anomaly": False, "typology": None, "confirmed_at": NOON + timedelta(days=99)},
        ],
        "filings": [filing],
        "facts": [fact | {"value": "1", "is_nil": False, "dimensions": "{}"}],
        "messages": [{"filing_id": "F1", "code": "x", "severity": "info", "text": "t"}],
        "checks": [check],
    }
    return {name: frame(name, rows[name]) for name in validity.ORDER}


def changed(table: str, row: int = 0, **values: Any) -> Raw:
    """The good tables with some values of one row changed."""
    raw = good()
    kinds = raw[table].schema
    here = pl.int_range(pl.len()) == row
    new = [
        pl.when(here).then(pl.lit(value, kinds[name])).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    ]
    return raw | {table: raw[table].with_columns(new)}


def doubled(table: str) -> Raw:
    raw = good()
    return raw | {table: pl.concat([raw[table], raw[table].head(1)])}


# For every rule one table that breaks it, and the number of rows that do.
BREAKS: dict[str, Callable[[], Raw]] = {
    "accounts_contract": lambda: changed("accounts", 1, home_country="Germany"),
    "account_id_unique": lambda: doubled("accounts"),
    "account_country_known": lambda: changed("accounts", 1, home_country="ZZ"),
    "account_timezone_known": lambda: changed("accounts", 1, timezone="Europe/Berlinn"),
    "transactions_contract": lambda: changed("transactions", 4, amount=0.0),
    "transaction_id_unique": lambda: doubled("transactions"),
    "numbers_finite": lambda: changed("transactions", 4, amount=float("inf"), balance_after=None),
    "known_after_booking": lambda: changed("transactions", 4, known_at=NOON),
    "currency_known": lambda: changed("transactions", 4, currency="EUX"),
    "country_known": lambda: changed("transactions", 4, country="UK"),
    "account_known": lambda: changed("transactions", 4, account_id="C"),
    "account_of_entity": lambda: changed("transactions", 4, entity_id="other"),
    "booked_after_opening": lambda: changed("accounts", 0, opened_at=NOON + timedelta(hours=1.5)),
    "coordinates_paired": lambda: changed("transactions", 4, latitude=None),
    "balance_rolls": lambda: changed("transactions", 4, balance_after=150.01),
    "content_unrepeated": lambda: changed("transactions", 4, booked_at=NOON + timedelta(hours=4), balance_after=None),
    "not_to_itself": lambda: changed("transactions", 4, counterparty_id="A"),
    "amount_in_minor_units": lambda: changed("transactions", 4, amount=10.001, balance_after=None),
    "amount_within_limit": lambda: changed("transactions", 4, amount=100_001.0, balance_after=None),
    "labels_contract": lambda: changed("labels", 1, is_anomaly=None),
    "label_unique": lambda: doubled("labels"),
    "label_of_known_transaction": lambda: changed("labels", 1, transaction_id="T99"),
    "confirmed_after_booking": lambda: changed("labels", 1, confirmed_at=NOON),
    "filings_contract": lambda: changed("filings", form=None),
    "filing_id_unique": lambda: doubled("filings"),
    "period_in_order": lambda: changed("filings", period_start=date(2025, 2, 1)),
    "filed_after_period": lambda: changed("filings", filed_at=datetime(2025, 1, 30, tzinfo=UTC)),
    "facts_contract": lambda: changed("facts", concept=None),
    "fact_of_known_filing": lambda: changed("facts", filing_id="F9"),
    "fact_period_in_order": lambda: changed("facts", period_start=date(2025, 2, 1)),
    "messages_contract": lambda: changed("messages", severity="bad"),
    "message_of_known_filing": lambda: changed("messages", filing_id="F9"),
    "checks_contract": lambda: changed("checks", family="other"),
    "check_of_known_filing": lambda: changed("checks", filing_id="F9"),
}


def findings(checked: dict[str, validate.Checked]) -> dict[str, validate.Finding]:
    return {finding.name: finding for one in checked.values() for finding in one.findings}


def test_good_tables_pass_whole() -> None:
    raw = good()
    checked = validate.check_all(raw, SEVERITY)
    assert {name: one.clean.height for name, one in checked.items()} == {n: t.height for n, t in raw.items()}
    assert all(finding.failing == 0 for finding in findings(checked).values())


def test_every_rule_has_a_severity_and_a_table_that_breaks_it() -> None:
    assert set(SEVERITY) == set(validity.names()) == set(BREAKS)
    assert len(validity.names()) == len(set(validity.names()))


@pytest.mark.parametrize("name", BREAKS)
def test_every_rule_catches_what_it_is_for(name: str) -> None:
    raw = BREAKS[name]()
    table = validity.table_of(name)
    one = validate.check_all(raw, SEVERITY | {name: "quarantine"}, limits=LIMITS)[table]
    (found,) = [finding for finding in one.findings if finding.name == name]
    assert found.failing == found.quarantined == 1
    (row,) = one.refused.to_dicts()
    assert (row["table"], row["rule"]) == (table, name)
    assert row["column"] in raw[table].columns
    assert one.clean.height == raw[table].height - 1
    assert set(json.loads(row["row"])) == set(raw[table].columns)


@pytest.mark.parametrize("name", [name for name in BREAKS if not name.endswith(("_contract", "_unique"))])
def test_a_warning_is_counted_and_keeps_the_row(name: str) -> None:
    raw = BREAKS[name]()
    one = validate.check_all(raw, dict.fromkeys(SEVERITY, "warn"), limits=LIMITS)[validity.table_of(name)]
    assert one.clean.height == raw[validity.table_of(name)].height
    assert next(f for f in one.findings if f.name == name).failing == 1


@pytest.mark.parametrize("name", BREAKS)
def test_a_rule_can_stop_the_run(name: str) -> None:
    with pytest.raises(ReperformError, match=rf"break rule {name}[\s\S]*what to do"):
        validate.check_all(BREAKS[name](), SEVERITY | {name: "stop"}, limits=LIMITS)


def test_the_quarantine_says_where_a_row_came_from() -> None:
    (row,) = validate.check_all(BREAKS["country_known"](), SEVERITY)["transactions"].refused.to_dicts()
    assert (row["source_file"], row["source_record"], row["column"], row["value"]) == ("bank/a.csv", 5, "country", "UK")
    (label,) = validate.check_all(BREAKS["label_of_known_transaction"](), SEVERITY)["labels"].refused.to_dicts()
    assert (label["source_file"], label["source_record"]) == ("data/ingest/labels.parquet", 2)


def test_refused_rows_of_other_tables_name_the_raw_file_and_record_too() -> None:
    origin = {"table": "labels", "key": "T99", "source_file": "labels.csv", "source_record": 7}
    filed = {"table": "filings", "key": "F1", "source_file": "bank/f.xbrl", "source_record": 0}
    origins = pl.DataFrame([origin, filed], schema=schemas.polars_schema(schemas.ORIGINS))
    checked = validate.check_all(BREAKS["label_of_known_transaction"](), SEVERITY, origins=origins)
    (label,) = checked["labels"].refused.to_dicts()
    assert (label["source_file"], label["source_record"]) == ("labels.csv", 7)
    checked = validate.check_all(changed("facts", concept=None, source_line=12), SEVERITY, origins=origins)
    (fact,) = checked["facts"].refused.to_dicts()
    assert (fact["source_file"], fact["source_record"]) == ("bank/f.xbrl", 12)


def test_limits_of_amounts_are_looked_up_from_the_most_specific_to_any() -> None:
    limits = validity.amount_limits({"EUR": {"card": 10, "default": 50}, "any": {"wire": 70, "default": 20}})
    (rule,) = [rule for rule in validity.RULES if rule.name == "amount_within_limit"]
    told = [
        ("EUR", "card", 11.0),
        ("EUR", "wire", 51.0),
        ("EUR", None, 50.0),
        ("USD", "wire", 70.0),
        ("USD", None, 21.0),
    ]
    rows = frame("transactions", [transaction(n, currency=c, channel=h, amount=a) for n, (c, h, a) in enumerate(told)])
    assert rule.failing(rows, {"amount_limits": limits}).to_list() == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("currency", "amount", "fails"),
    [("EUR", 1.25, False), ("EUR", 1.255, True), ("JPY", 100.0, False), ("JPY", 100.5, True), ("BHD", 1.125, False),
     ("BHD", 1.1255, True), ("XAU", 0.12345, False), ("EUR", 123456789.01, False)],
)  # fmt: skip
def test_amounts_have_the_places_of_their_currency(currency: str, amount: float, *, fails: bool) -> None:
    rows = frame("transactions", [transaction(1, currency=currency, amount=amount)])
    (rule,) = [rule for rule in validity.RULES if rule.name == "amount_in_minor_units"]
    assert rule.failing(rows, {}).fill_null(value=False).to_list() == [fails]


WRONG_SECTIONS = [
    ({"feeds": SECTION["feeds"] | {"missing_dya": "warn"}}, "missing_dya.*did you mean missing_day"),
    ({"feeds": SECTION["feeds"] | {"missing_day": "quarantine"}}, "no rows to keep out"),
    ({"feeds": SECTION["feeds"] | {"missing_day": "perhaps"}}, "missing_day"),
    ({"feed_limits": SECTION["feed_limits"] | {"volume_y": 3}}, "volume_y.*did you mean volume_z"),
    ({"amount_limits": {"EUD": {"default": 3}}}, "EUD"),
    ({"rules": SEVERITY | {"country_known": "ignore"}}, "country_known"),
    ({"rules": SEVERITY | {"country_knwon": "warn"}}, "country_knwon"),
]


@pytest.mark.parametrize(("wrong", "says"), WRONG_SECTIONS)
def test_a_wrong_setting_is_refused_when_parameters_are_composed(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ReperformError) as caught:
        params.build(params.ValidateParams, SECTION | wrong, "validate")
    assert re.search(says, str(caught.value).replace("\n", " "))


def test_every_rule_says_what_a_data_owner_can_do() -> None:
    assert set(validity.FIXES) == set(validity.names())


def test_findings_name_file_day_value_and_what_to_do(project: Path) -> None:
    result = validate.run(ingested(project, BREAKS["country_known"]()))
    (one,) = result.findings.to_dicts()
    assert (one["rule"], one["severity"], one["file"], one["day"]) == (
        "country_known",
        "quarantine",
        "bank/a.csv",
        NOON.date(),
    )
    assert "record 5" in one["observed"]
    assert "'UK'" in one["observed"]
    assert "ISO 3166-1" in one["fix"]


def test_counts_add_up_per_source_and_rule(project: Path) -> None:
    raw = BREAKS["country_known"]()
    given = ingested(project, raw)
    one = {"kind": "table", "files": [{"path": "bank/a.csv", "records": 7}], "rows_in": 7, "left_out": {"empty": 1}}
    one |= {"quarantined": {"bad_time": 1}, "counts": {}, "tables": {"transactions": 5}}
    (project / "data" / "ingest" / "receipt.json").write_text(json.dumps({"sources": {"north": one}}))
    (told,) = validate.run(given).document["by_source"]
    assert told == {
        "source": "north", "table": "transactions", "records": 7, "left_out": 1, "refused_by_ingest": {"bad_time": 1},
        "ingested": 5, "refused_by_validate": {"country_known": 1}, "rows_out": 4,
    }  # fmt: skip
    with pytest.raises(ReperformError, match="source north do not add up"):
        validate.reconciled_by_source([told | {"rows_out": 3}])


def test_sources_that_read_one_file_are_counted_each_for_its_own_table(project: Path) -> None:
    raw = good()
    given = ingested(project, raw)
    files = {
        "files": [{"path": "bank/a.csv", "records": 5}],
        "rows_in": 5,
        "left_out": {},
        "quarantined": {},
        "counts": {},
    }
    of = {"transactions": {"transactions": 5}, "accounts": {"accounts": 2}, "labels": {"labels": 2}}
    receipt = {"sources": {name: files | {"kind": "table", "tables": rows} for name, rows in of.items()}}
    (project / "data" / "ingest" / "receipt.json").write_text(json.dumps(receipt))
    keys = [("accounts", key) for key in "AB"] + [("labels", f"T{n}") for n in (1, 2)]
    origins = [
        {"table": t, "key": key, "source_file": "bank/a.csv", "source_record": n} for n, (t, key) in enumerate(keys)
    ]
    frame_of = pl.DataFrame(origins, schema=schemas.polars_schema(schemas.ORIGINS))
    frame_of.write_parquet(project / "data" / "ingest" / "origins.parquet")
    told = validate.run(given).document["by_source"]
    assert {one["source"]: one["rows_out"] for one in told} == {"transactions": 5, "accounts": 2, "labels": 2}


def test_a_feed_rule_can_keep_the_rows_of_its_file_out_or_stop_the_run(project: Path) -> None:
    raw = changed("transactions", 4, counterparty_id="(null)")
    feeds = SECTION["feeds"] | {"null_words": "quarantine"}
    result = validate.run(ingested(project, raw, section={"feeds": feeds}))
    assert result.quarantine.filter(pl.col("table") == "transactions")["rule"].to_list() == ["null_words"] * 5
    assert result.tables["transactions"].is_empty()
    assert result.tables["labels"].is_empty()
    shutil.rmtree(project / "data" / "ingest")
    with pytest.raises(ReperformError, match=r"breaks rule null_words[\s\S]*bank/a.csv[\s\S]*format.missing"):
        validate.run(ingested(project, raw, section={"feeds": SECTION["feeds"] | {"null_words": "stop"}}))


def test_what_changed_is_kept_beside_the_outputs_and_never_in_them(project: Path) -> None:
    given = ingested(project, good())
    validate.run(given)
    assert "no earlier run" in quality_changes.told()
    first = written(project)
    validate.run(ingested_again(project, BREAKS["country_known"]()))
    told = quality_changes.told()
    assert "transactions: quarantined" in told.replace("\\", "")
    assert (project / "reports" / "quality_changes.md").read_text(encoding="utf-8") == told
    validate.run(ingested_again(project, good()))
    assert written(project) == first


def ingested_again(project: Path, raw: Raw) -> params.ValidateParams:
    shutil.rmtree(project / "data" / "ingest")
    return ingested(project, raw)


HOSTILE = "a|b<script>alert(1)</script>`x`;rm -rf $HOME.csv"


def test_a_hostile_file_name_goes_through_and_stays_text(project: Path) -> None:
    result = validate.run(ingested(project, changed("transactions", 4, country="UK", source_file=HOSTILE)))
    assert result.findings["file"].to_list() == [HOSTILE]
    assert result.quarantine["source_file"].to_list() == [HOSTILE]
    table = pipe_table(result.document["findings"], {"file": "file", "observed": "observed"})
    (row,) = table.splitlines()[2:]
    assert "<script>" not in row.replace("\\<", "")
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


@pytest.mark.parametrize("text", ["` `<script>`", "``", "`a`b`", "`", "a\r\nb", "`x\n\n<b>`"])
def test_no_text_closes_its_own_code_span_or_line(text: str) -> None:
    got = literal(text)
    assert "\n" not in got
    assert "\r" not in got
    plain = re.sub(r"\\[`<>]", "", got)
    assert plain.count("`") in (0, 2)
    assert plain.count("`") == 0 or (plain[0] == plain[-1] == "`")


@pytest.mark.parametrize(
    ("cell", "safe"),
    [("=1+1", "'=1+1"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("@SUM(A1)", "'@SUM(A1)"), ("-2+3", "'-2+3"),
     ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), (" =1", "' =1"),
     ("-12.50", "-12.50"), ("+1e5", "+1e5"), ("-1,234.5", "-1,234.5"),
     ("MER0061385", "MER0061385"), ("", "")],
)  # fmt: skip
def test_no_cell_is_run_by_a_spreadsheet(cell: str, safe: str) -> None:
    assert spreadsheet.neutral(cell) == safe
    out = io.StringIO()
    source = io.StringIO(newline="")
    csv.writer(source).writerow(["id", cell])
    spreadsheet.neutral_csv(io.StringIO(source.getvalue(), newline=""), out)
    (row,) = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert row == ["id", safe]


def test_a_row_that_refers_to_a_refused_row_is_refused_as_well() -> None:
    checked = validate.check_all(changed("accounts", 0, timezone="nowhere"), SEVERITY)
    assert checked["transactions"].clean.is_empty()
    assert checked["labels"].clean.is_empty()
    assert findings(checked)["account_known"].quarantined == 5
    assert findings(checked)["label_of_known_transaction"].quarantined == 2


def test_messages_about_bank_statements_need_no_filing() -> None:
    raw = changed("messages", filing_id="castle/a.xml#S1", code="statement.balance")
    assert validate.check_all(raw, SEVERITY)["messages"].clean.height == 1


def test_one_row_is_refused_once_by_the_first_rule_that_it_breaks() -> None:
    checked = validate.check_all(changed("transactions", 4, amount=0.0, country="UK", account_id="C"), SEVERITY)
    assert checked["transactions"].refused["rule"].to_list() == ["transactions_contract"]
    found = findings(checked)
    assert (found["country_known"].failing, found["country_known"].quarantined) == (1, 0)


def test_clean_transactions_are_in_order_of_booking() -> None:
    raw = good()
    shuffled = raw | {"transactions": raw["transactions"].reverse()}
    clean = validate.check_all(shuffled, SEVERITY)["transactions"].clean
    assert clean["transaction_id"].to_list() == ["T1", "T2", "T3", "T4", "T5"]


def test_balances_are_followed_in_order_of_booking_whatever_the_order_of_rows() -> None:
    raw = good()
    shuffled = raw | {"transactions": raw["transactions"].sample(fraction=1, shuffle=True, seed=1)}
    assert findings(validate.check_all(shuffled, SEVERITY))["balance_rolls"].failing == 0


def test_too_many_refused_rows_stop_the_run() -> None:
    raw = BREAKS["country_known"]()
    checked = validate.check_all(raw, SEVERITY)
    validate.stop_above(raw, checked, 0.2)
    with pytest.raises(ReperformError, match=r"1 of 5 rows: country_known 1"):
        validate.stop_above(raw, checked, 0.19)


def test_counts_that_do_not_add_up_are_an_error() -> None:
    raw = good()
    checked = validate.check_all(raw, SEVERITY)
    validate.reconciled(raw, checked)
    lost = checked | {"labels": validate.Checked(raw["labels"].head(1), checked["labels"].refused, [])}
    with pytest.raises(ReperformError, match="labels do not add up"):
        validate.reconciled(raw, lost)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (SEVERITY | {"country_knwon": "warn"}, "did you mean country_known"),
        (SEVERITY | {"label_unique": "warn"}, "cannot only warn"),
        ({}, "has no severity"),
    ],
)
def test_severities_belong_to_rules_that_exist(rules: dict[str, str], says: str) -> None:
    with pytest.raises(ReperformError, match=says):
        severity.of_rules(rules)


DEFECTS = st.sampled_from(
    [
        {"amount": 0.0},
        {"amount": float("nan")},
        {"country": "UK"},
        {"account_id": "C"},
        {"transaction_id": "T1"},
        {"known_at": NOON - timedelta(days=1)},
        {"balance_after": 0.0},
        {"entity_id": None},
        {},
    ]
)


@settings(max_examples=30, deadline=None)
@given(defects=st.lists(DEFECTS, min_size=1, max_size=8))
def test_what_comes_in_goes_on_or_waits_in_quarantine(defects: list[dict[str, Any]]) -> None:
    rows = [transaction(number, **defect) for number, defect in enumerate(defects, start=1)]
    raw = good() | {"transactions": frame("transactions", rows)}
    checked = validate.check_all(raw, SEVERITY)
    validate.reconciled(raw, checked)
    one = checked["transactions"]
    there = [*one.clean["source_record"], *one.refused["source_record"]]
    assert sorted(there) == list(range(1, len(rows) + 1))
    schemas.checked(one.clean, schemas.TRANSACTIONS)


def ingested(
    project: Path,
    raw: Raw,
    quarantine: list[dict[str, Any]] | None = None,
    section: dict[str, Any] | None = None,
) -> params.ValidateParams:
    """A project in which ingest has written these tables, and the parameters of validate."""
    folder = project / "data" / "ingest"
    folder.mkdir(parents=True)
    for name, table in raw.items():
        table.write_parquet(folder / f"{name}.parquet")
    refused = pl.DataFrame(quarantine or [], schema=schemas.polars_schema(schemas.QUARANTINE))
    refused.write_parquet(folder / "quarantine.parquet")
    counts = {"files": [{}], "rows_in": sum(t.height for t in raw.values()), "left_out": {}, "counts": {}}
    (folder / "receipt.json").write_text(json.dumps({"sources": {"bank": counts}}))
    section = SECTION | {"stop_above_share": 1.0} | (section or {})
    (project / "params.yaml").write_text(yaml.safe_dump({"validate": section}))
    return params.load(params.ValidateParams)


def written(project: Path) -> dict[str, str]:
    folder = project / "data" / "validate"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_run_saves_tables_that_meet_their_contracts(project: Path) -> None:
    result = validate.run(ingested(project, BREAKS["country_known"]()))
    folder = project / "data" / "validate"
    for name, schema in (schemas.CANONICAL | {"quarantine": schemas.QUARANTINE}).items():
        schemas.checked(pl.read_parquet(folder / f"{name}.parquet"), schema)
    assert pl.read_parquet(folder / "transactions.parquet").equals(result.tables["transactions"])
    assert pl.read_parquet(folder / "quality_days.parquet").equals(result.days)
    document = json.loads((folder / "quality.json").read_text())
    assert document == json.loads(json.dumps(result.document))
    counts = {"rows_in": 5, "rows_out": 4, "quarantined": 1, "by_rule": {"country_known": 1}}
    assert document["tables"]["transactions"] == counts


def test_two_runs_give_the_same_bytes(project: Path) -> None:
    given = ingested(project, BREAKS["balance_rolls"]())
    validate.run(given)
    before = written(project)
    validate.run(given)
    assert written(project) == before


def test_quality_counts_by_hand(project: Path) -> None:
    twice = {"table": "transactions", "source_file": "f", "source_record": 1, "rule": "duplicate_id", "row": ""}
    document = validate.run(
        ingested(project, changed("transactions", 4, latitude=None, longitude=None), [twice])
    ).document
    assert document["completeness"]["transactions"]["bank"]["latitude"] == 0.8
    assert document["completeness"]["labels"]["all"]["typology"] == 0.5
    assert document["lateness_hours"]["bank"]["quantiles"] == {"0.5": 1.0, "0.9": 25.0, "0.99": 25.0, "1": 25.0}
    assert document["lateness_hours"]["bank"]["share_after_24_hours"] == 0.2
    assert document["sources"]["bank"]["amount_base_in"] == 50.0
    assert document["sources"]["bank"]["amount_base_out"] == 0.0
    assert document["sources"]["bank"]["first_booked_at"] == "2025-04-01T13:00:00Z"
    assert document["labels"]["n_anomalies"] == document["labels"]["n_normal"] == 1
    bins = {
        (one["from_days"], one["to_days"]): (one["anomalies"], one["normal"])
        for one in document["labels"]["delay_histogram"]
    }
    assert bins.pop((3, 5)) == (1, 0)
    assert bins.pop((90, None)) == (0, 1)
    assert set(bins.values()) == {(0, 0)}
    assert document["duplicates"] == {"files": 0, "ids": 1, "same_content_under_two_ids": 0}
    assert document["filings"]["by_form"]["brr"]["n"] == 1


def test_a_day_without_rows_is_a_gap(project: Path) -> None:
    late = {"booked_at": NOON + timedelta(days=4), "known_at": NOON + timedelta(days=4)}
    result = validate.run(ingested(project, changed("transactions", 4, **late)))
    assert result.document["sources"]["bank"]["days_without_rows"] == 3
    assert result.days.select("day", "n_transactions").rows() == [(date(2025, 4, 1), 4), (date(2025, 4, 5), 1)]
    answers = {row["question"]: row for row in quality.fitness(result.document)}
    assert answers["Does every feed arrive each day?"]["answer"] == "bank: 3 days without a row"
    assert answers["Does every feed arrive each day?"]["look"] == "yes"


FIGURES: dict[str, Callable[[validate.Validated], Figure]] = {
    "rows_per_day": lambda result: draw.rows_per_day(result.days),
    "amounts": lambda result: draw.amounts(result.mixes),
    "hours": lambda result: draw.hours(result.mixes),
    "mix": lambda result: draw.mix(result.mixes, "channel"),
    "completeness": lambda result: draw.completeness(quality.completeness_frame(result.document)),
    "lateness": lambda result: draw.lateness(quality.lateness_frame(result.document)),
    "label_delay": lambda result: draw.label_delay(quality.delay_frame(result.document)),
    "rows_by_rule": lambda result: draw.rows_by_rule(quality.refused_frame(result.document)),
    "filing_delay": lambda result: draw.filing_delay(quality.late_days(result.tables["filings"])),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_label_their_axes_and_are_the_same_each_time(name: str, project: Path) -> None:
    result = validate.run(ingested(project, BREAKS["balance_rolls"]()))
    figure = FIGURES[name](result)
    assert figure.axes[-1].get_xlabel()
    assert figure.axes[0].get_ylabel() or figure.get_supylabel() or len(figure.axes[0].get_yticklabels())
    first = figures.save(figure, project / "a.png").read_bytes()
    assert figures.save(FIGURES[name](result), project / "b.png").read_bytes() == first


@pytest.mark.parametrize("name", FIGURES)
def test_without_data_a_figure_says_so(name: str, project: Path) -> None:
    empty = {table: schemas.empty(schemas.CANONICAL[table]) for table in validity.ORDER}
    figure = FIGURES[name](validate.run(ingested(project, empty)))
    assert next(text.get_text() for text in figure.axes[0].texts)


def test_without_data_every_output_is_there(project: Path) -> None:
    empty = {table: schemas.empty(schemas.CANONICAL[table]) for table in validity.ORDER}
    result = validate.run(ingested(project, empty))
    assert result.document["labels"]["n"] == result.document["filings"]["n"] == 0
    assert result.document["labels"]["delay_days"]["0.95"] is None
    assert {row["answer"] for row in quality.fitness(result.document)} == {"does not apply"}
    assert set(written(project)) == {f"{n}.parquet" for n in (*validity.ORDER, *MORE)} | {"quality.json"}


def test_filings_alone_are_enough(project: Path) -> None:
    raw = good() | {name: schemas.empty(schemas.CANONICAL[name]) for name in ("accounts", "transactions", "labels")}
    result = validate.run(ingested(project, raw))
    assert result.document["filings"]["by_form"]["brr"]["n_entities"] == 1
    assert result.days.is_empty()


@pytest.mark.slow
def test_the_notebook_runs_the_stage_and_shows_what_it_found(project: Path) -> None:
    ingested(project, BREAKS["balance_rolls"]())
    (project / "notebooks").symlink_to(ROOT / "notebooks")
    got = command(project, "validate")
    assert got.returncode == 0, got.stderr
    executed = json.loads((project / "reports" / "notebooks" / "02_validate.ipynb").read_text())
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(FIGURES)
    assert not any("text/html" in output.get("data", {}) for output in outputs)
    assert "balance_rolls" in json.dumps(outputs).replace("\\\\_", "_")
