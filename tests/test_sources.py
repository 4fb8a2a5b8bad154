"""Maps of public data sets read rows of their documented headers; drafts of unknown files say why, and are right."""

import csv
import gzip
import re
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from reperform import ingest, params, simulate, tables, validate
from reperform.__main__ import main
from reperform.errors import ReperformError
from reperform.params import IngestParams
from reperform.sources import draft, lines, sample, terminal, trial
from reperform.sources.values import Column, moments
from tests.conftest import ROOT
from tests.demo_world import world_params

Row = dict[str, Any]
MAPS = ("ulb", "paysim", "sparkov", "amlworld", "banksim", "saml_d", "baf")
BAF_HEADER = (
    "fraud_bool,income,name_email_similarity,prev_address_months_count,current_address_months_count,customer_age,"
    "days_since_request,intended_balcon_amount,payment_type,zip_count_4w,velocity_6h,velocity_24h,velocity_4w,"
    "bank_branch_count_8w,date_of_birth_distinct_emails_4w,employment_status,credit_risk_score,email_is_free,"
    "housing_status,phone_home_valid,phone_mobile_valid,bank_months_count,has_other_cards,proposed_credit_limit,"
    "foreign_request,source,session_length_in_minutes,device_os,keep_alive_session,device_distinct_emails_8w,"
    "device_fraud_count,month"
)
ULB_HEADER = f"Time,{','.join(f'V{n}' for n in range(1, 29))},Amount,Class"
COMPONENTS = ",".join(["0.1"] * 28)
SPARKOV_PERSON = "Ann,Lee,F,1 Main St,Troy,NY,12180,42.73,-73.69,50000,Nurse,1980-02-01"
# The documented header of each set, and rows that were made up for this test. The last one of each cannot be read.
FILES: dict[str, dict[str, str]] = {
    "ulb": {
        "creditcard.csv": f"{ULB_HEADER}\n0,{COMPONENTS},149.62,0\n1e+05,{COMPONENTS},2.69,1\n2,{COMPONENTS},much,0\n"
    },
    "paysim": {
        "PS_2017_log.csv": "step,type,amount,nameOrig,oldbalanceOrg,newbalanceOrig,nameDest,oldbalanceDest,"
        "newbalanceDest,isFraud,isFlaggedFraud\n"
        "1,CASH_IN,100.5,C1,10.0,110.5,C9,500.0,399.5,0,0\n"
        "26,TRANSFER,181.0,C2,181.0,0.0,C3,0.0,0.0,1,0\n"
        "3,LOAN,5.0,C1,110.5,105.5,M4,0.0,0.0,0,0\n"
    },
    "sparkov": {
        "fraudTrain.csv": ",trans_date_trans_time,cc_num,merchant,category,amt,first,last,gender,street,city,state,"
        "zip,lat,long,city_pop,job,dob,trans_num,unix_time,merch_lat,merch_long,is_fraud\n"
        f'0,2019-01-01 00:00:18,2703186189652095,"fraud_Rippin, Kub",misc_net,4.97,{SPARKOV_PERSON},0b24,1325376018,'
        "36.0113,-82.0483,0\n"
        f"1,2019-01-01 00:00:44,630423337322,fraud_Heller,grocery_pos,107.23,{SPARKOV_PERSON},1f76,1325376044,49.159,"
        "-118.1865,1\n"
        f"2,2019-02-30 00:00:44,630423337322,fraud_Heller,grocery_pos,1.0,{SPARKOV_PERSON},1f77,1325376044,49.1,"
        "-118.1,0\n"
    },
    "amlworld": {
        "rates.csv": "currency,rate_to_base,published_at\nEUR,1.25,2022-01-01T00:00:00Z\n",
        "HI-Small_Trans.csv": "Timestamp,From Bank,Account,To Bank,Account,Amount Received,Receiving Currency,"
        "Amount Paid,Payment Currency,Payment Format,Is Laundering\n"
        "2022/09/01 00:20,010,8000EBD30,012,8000F5030,3697.34,US Dollar,3697.34,US Dollar,Cheque,0\n"
        "2022/09/02 13:05,070,8000EBD30,010,8000EBD30,100.00,Euro,100.00,Euro,ACH,1\n"
        "2022/09/02 13:06,070,8000EBD30,010,8000EBD30,0.5,Bitcoin,0.5,Bitcoin,Bitcoin,0\n",
    },
    "banksim": {
        "bs140513_032310.csv": "step,customer,age,gender,zipcodeOri,merchant,zipMerchant,category,amount,fraud\n"
        "0,'C1093826151','4','M','28007','M348934600','28007','es_transportation',4.55,0\n"
        "179,'C352968107','2','F','28007','M348934600','28007','es_health',39.68,1\n"
        "x,'C352968107','2','F','28007','M348934600','28007','es_health',39.68,0\n"
    },
    "saml_d": {
        "SAML-D.csv": "Time,Date,Sender_account,Receiver_account,Amount,Payment_currency,Received_currency,"
        "Sender_bank_location,Receiver_bank_location,Payment_type,Is_laundering,Laundering_type\n"
        "10:35:19,2022-10-07,8724731955,2769355426,1459.15,UK pounds,UK pounds,UK,UK,Cash Deposit,0,Normal_Group\n"
        "10:35:20,2022-12-07,1491989064,8401255335,6019.64,UK pounds,Dirham,UK,UAE,Cross-border,1,Smurfing\n"
        "10:35:21,2022-12-07,1491989064,8401255335,6019.64,UK pounds,Dirham,UK,Atlantis,Cross-border,0,Normal_Fan_Out\n"
    },
    "baf": {
        "Base.csv": f"{BAF_HEADER}\n"
        "0,0.3,0.98,-1,25,40,0.006,102.4,AA,1059,13096.0,7850.9,6742.0,5,5,CB,163,1,BC,0,1,9,0,1500.0,0,INTERNET,16.2,"
        "linux,1,1,0,0\n"
        "1,0.8,0.61,-1,89,20,0.010,-0.8,AD,1658,9223.2,5745.2,5941.6,3,18,CA,154,1,BC,1,1,2,0,190.0,0,TELEAPP,3.3,other,1,"
        "1,0,7\n"
        "0,0.8,0.61,-1,89,20,0.010,-0.8,AD,1658,9223.2,5745.2,5941.6,3,18,CA,154,1,BC,1,1,2,0,190.0,0,INTERNET,3.3,other,1,"
        "1,0,late\n"
    },
}
FIRST: dict[str, Row] = {
    "ulb": {
        "transaction_id": "creditcard.csv:000000001",
        "account_id": "creditcard.csv:000000001",
        "booked_at": datetime(2013, 9, 1, tzinfo=UTC),
        "direction": "out",
        "amount": 149.62,
        "currency": "EUR",
        "counterparty_id": None,
    },
    "paysim": {
        "transaction_id": "PS_2017_log.csv:000000001",
        "account_id": "C1",
        "counterparty_id": "C9",
        "booked_at": datetime(2017, 1, 1, tzinfo=UTC),
        "direction": "in",
        "amount": 100.5,
        "channel": "CASH_IN",
        "balance_after": None,
    },
    "sparkov": {
        "transaction_id": "0b24",
        "account_id": "2703186189652095",
        "counterparty_id": "fraud_Rippin, Kub",
        "booked_at": datetime(2019, 1, 1, 0, 0, 18, tzinfo=UTC),
        "direction": "out",
        "amount": 4.97,
        "currency": "USD",
        "latitude": 36.0113,
        "longitude": -82.0483,
        "country": "US",
    },
    "amlworld": {
        "transaction_id": "HI-Small_Trans.csv:000000001",
        "account_id": "010-8000EBD30",
        "counterparty_id": "012-8000F5030",
        "entity_id": "bank-010",
        "booked_at": datetime(2022, 9, 1, 0, 20, tzinfo=UTC),
        "direction": "out",
        "amount": 3697.34,
        "amount_base": 3697.34,
        "currency": "USD",
        "channel": "Cheque",
    },
    "banksim": {
        "transaction_id": "bs140513_032310.csv:000000001",
        "account_id": "C1093826151",
        "counterparty_id": "M348934600",
        "booked_at": datetime(2012, 11, 1, tzinfo=UTC),
        "direction": "out",
        "amount": 4.55,
        "channel": "es_transportation",
    },
    "saml_d": {
        "transaction_id": "SAML-D.csv:000000001",
        "account_id": "8724731955",
        "counterparty_id": "2769355426",
        "booked_at": datetime(2022, 10, 7, 9, 35, 19, tzinfo=UTC),
        "direction": "out",
        "amount": 1459.15,
        "currency": "GBP",
        "country": "GB",
        "channel": "Cash Deposit",
    },
    "baf": {
        "transaction_id": "Base.csv:000000001",
        "account_id": "Base.csv:000000001",
        "booked_at": datetime(2020, 1, 1, tzinfo=UTC),
        "direction": "in",
        "amount": 1500.0,
        "channel": "INTERNET",
    },
}
LABEL: dict[str, tuple[str | None, datetime]] = {
    "ulb": (None, datetime(2013, 9, 9, 3, 46, 40, tzinfo=UTC)),
    "paysim": ("account_takeover", datetime(2017, 1, 4, 1, tzinfo=UTC)),
    "sparkov": (None, datetime(2019, 1, 8, 0, 0, 44, tzinfo=UTC)),
    "amlworld": ("laundering", datetime(2022, 9, 3, 13, 5, tzinfo=UTC)),
    "banksim": (None, datetime(2013, 5, 6, tzinfo=UTC)),
    "saml_d": ("Smurfing", datetime(2023, 1, 6, 10, 35, 20, tzinfo=UTC)),
    "baf": ("application_fraud", datetime(2020, 8, 1, tzinfo=UTC)),
}
REFUSED = {
    "ulb": ("bad_number", "amount", "much"),
    "paysim": ("unknown_value", "direction", "LOAN"),
    "sparkov": ("bad_time", "booked_at", "2019-02-30 00:00:44"),
    "amlworld": ("unknown_value", "currency", "Bitcoin"),
    "banksim": ("bad_time", "booked_at", "x"),
    "saml_d": ("unknown_value", "country", "Atlantis"),
    "baf": ("bad_time", "booked_at", "late"),
}


def deliver(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def ingested(given: IngestParams) -> tuple[dict[str, Any], pl.DataFrame]:
    """Receipt and transactions of the real stage."""
    return ingest.run(given), tables.read_table("ingest", "transactions")


@pytest.mark.parametrize("name", MAPS)
def test_a_ready_made_map_reads_its_documented_header(name: str, project: Path) -> None:
    given = trial.load(name)
    deliver(project / given.raw, FILES[name])
    receipt, rows = ingested(given)
    one = receipt["sources"]["transactions"]
    assert (one["rows_in"], one["rows_out"], sum(one["quarantined"].values())) == (3, 2, 1)
    assert {key: rows.row(0, named=True)[key] for key in FIRST[name]} == FIRST[name]
    assert (rows["known_at"] == rows["booked_at"]).all()
    refused = tables.read_table("ingest", "quarantine").filter(pl.col("table") == "transactions").row(0, named=True)
    assert (refused["rule"], refused["column"], refused["value"]) == REFUSED[name]
    assert refused["source_record"] == 3


@pytest.mark.parametrize("name", MAPS)
def test_a_ready_made_map_labels_positives_alone_and_says_when_they_were_known(name: str, project: Path) -> None:
    given = trial.load(name)
    deliver(project / given.raw, FILES[name])
    receipt, rows = ingested(given)
    (label,) = tables.read_table("ingest", "labels").to_dicts()
    second = rows.row(1, named=True)
    assert label["transaction_id"] == second["transaction_id"]
    assert label["is_anomaly"] is True
    assert (label["typology"], label["confirmed_at"]) == LABEL[name]
    assert label["confirmed_at"] >= second["booked_at"]
    assert sum(receipt["sources"]["labels"]["left_out"].values()) == 2


@pytest.mark.parametrize("name", MAPS)
def test_a_ready_made_map_passes_every_rule_of_validate(name: str, project: Path) -> None:
    given = trial.load(name)
    deliver(project / given.raw, FILES[name])
    ingested(given)
    read = {table: tables.read_table("ingest", table) for table in validate.validity.ORDER}
    by_rule, limits = trial.rules()
    checked = validate.check_all(read, by_rule, limits=limits)
    assert {f.name: f.failing for one in checked.values() for f in one.findings if f.failing} == {}


@pytest.mark.parametrize("name", MAPS)
def test_a_ready_made_map_says_where_its_facts_come_from(name: str) -> None:
    text = (ROOT / "conf" / "ingest" / f"{name}.yaml").read_text()
    remarks = " ".join(line.removeprefix("#").strip() for line in text.split("\n") if line.startswith("#"))
    for word in ("https://", "licence" if name != "amlworld" else "CDLA", "Cite:" if name != "sparkov" else "MIT"):
        assert word in remarks
    assert "assumed" in text or "stands in" in text


def test_an_amount_in_another_currency_takes_the_rate_that_was_published_before(project: Path) -> None:
    given = trial.load("amlworld")
    deliver(project / given.raw, FILES["amlworld"])
    _, rows = ingested(given)
    assert rows.row(1, named=True)["amount_base"] == 125.0


# --- what column maps learned for them ---


def table_source(**changes: Any) -> dict[str, Any]:
    source: dict[str, Any] = {
        "kind": "table",
        "target": "transactions",
        "files": "*.csv",
        "times": {"format": "iso", "time_zone": "UTC"},
        "columns": {
            "transaction_id": {"record": True},
            "booked_at": "t",
            "known_at": "t",
            "account_id": "a",
            "entity_id": {"constant": "e"},
            "currency": {"constant": "EUR"},
        },
        "amounts": {"column": "x", "direction": "out"},
    }
    return {**source, **changes}


def transactions(project: Path, text: str, **changes: Any) -> pl.DataFrame:
    deliver(project / "raw", {"a.csv": text})
    given = params.build(
        IngestParams,
        {"raw": "raw", "sources": {"s": table_source(**changes)}, "on_unreadable_file": "quarantine", "processes": 1},
        "test",
    )
    return ingested(given)[1]


@pytest.mark.parametrize(
    ("step", "text", "moment"),
    [
        ("second", "1e+05", datetime(2020, 1, 2, 3, 46, 40, tzinfo=UTC)),
        ("minute", "90", datetime(2020, 1, 1, 1, 30, tzinfo=UTC)),
        ("hour", "25", datetime(2020, 1, 2, 1, tzinfo=UTC)),
        ("day", "59", datetime(2020, 2, 29, tzinfo=UTC)),
        ("month", "13", datetime(2021, 2, 1, tzinfo=UTC)),
    ],
)
def test_steps_count_from_a_start(step: str, text: str, moment: datetime, project: Path) -> None:
    times = {"format": "steps", "step": step, "start": "2020-01-01T00:00:00Z"}
    assert transactions(project, f"t,a,x\n{text},A,1\n", times=times)["booked_at"].to_list() == [moment]


def test_steps_that_are_no_numbers_or_leave_the_calendar_are_refused(project: Path) -> None:
    times = {"format": "steps", "step": "month", "start": "2020-01-01"}
    rows = transactions(project, "t,a,x\n1.5,A,1\nsoon,A,1\n999999999999,A,1\n0,A,1\n", times=times)
    assert rows["booked_at"].to_list() == [datetime(2020, 1, 1, tzinfo=UTC)]
    assert tables.read_table("ingest", "quarantine")["rule"].to_list() == ["bad_time"] * 3


def test_steps_without_a_start_are_explained() -> None:
    with pytest.raises(ReperformError, match="moment of step 0"):
        ingest.check_source("s", table_source(times={"format": "steps"}))


def test_joined_columns_are_missing_where_one_of_them_is(project: Path) -> None:
    columns = {**table_source()["columns"], "account_id": {"columns": ["a", "b"], "join": "-"}}
    rows = transactions(project, "t,a,b,x\n2020-01-01,A,1,5\n2020-01-01,A,,5\n", columns=columns)
    assert rows["account_id"].to_list() == ["A-1"]


def test_ids_of_records_keep_the_order_of_the_file(project: Path) -> None:
    rows = transactions(project, "t,a,x\n" + "2020-01-01,A,1\n" * 11)
    ids = rows["transaction_id"].to_list()
    assert ids == sorted(ids) == [f"a.csv:{n:09}" for n in range(1, 12)]


def test_a_file_without_a_header_is_named_by_position(project: Path) -> None:
    rows = transactions(project, "2020-01-01,A,5\n2020-01-01,B,6\n", format={"names": ["t", "a", "x"]})
    assert rows["account_id"].to_list() == ["A", "B"]


def test_a_name_that_repeats_is_refused_unless_the_map_expects_it(project: Path) -> None:
    text = "t,a,a,x\n2020-01-01,A,B,5\n"
    columns = {**table_source()["columns"], "counterparty_id": "a 2"}
    assert transactions(project, text).is_empty()
    rows = transactions(project, text, columns=columns, format={"repeated_names": "number"})
    assert rows.select("account_id", "counterparty_id").rows() == [("A", "B")]


# --- drafts ---

SMALL_WORLD = {"accounts": 60, "transactions": 4_000}
CSV_DIALECTS = ("northbank", "lakeside", "harbour", "summit", "meadow")
DIALECTS = (*CSV_DIALECTS, "castle", "valley")
# What no file can tell, and people must answer: in the order in which the draft asks.
ANSWERS = {
    "lakeside": {"time_zone": "Europe/Berlin"},
    "summit": {"base_currency": "USD", "time_zone": "America/New_York", "constant": "USD"},
    "castle": {"time_zone": "Europe/Paris"},
    "valley": {"time_zone": "Europe/Vienna"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "raw"
    given = world_params(**SMALL_WORLD)
    simulate.deliver(simulate.simulate(given), given, folder)
    return folder


def answered(text: str, answers: dict[str, str]) -> str:
    """A draft with an answer in place of every TODO."""
    for key, answer in answers.items():
        text, n = re.subn(rf"\b{key}: TODO\b", f"{key}: {answer}", text)
        assert n >= 1, f"the draft does not ask for {key}"
    assert trial.open_questions(text) == []
    return text


def written(project: Path, name: str, text: str) -> IngestParams:
    (project / "conf" / "ingest" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return trial.load(name)


def first_file(world: Path, name: str) -> Path:
    return next(path for path in sorted((world / name).iterdir()) if path.name.startswith(("trans", "statement")))


@pytest.mark.parametrize("name", DIALECTS)
def test_the_draft_of_a_dialect_gives_the_rows_that_the_demo_map_gives(name: str, world: Path, project: Path) -> None:
    text = answered(draft.of_file(first_file(world, name), project, name="mine"), ANSWERS.get(name, {}))
    mine = written(project, "mine", text)
    demo = trial.load("demo")
    known = {"rates": demo.sources["rates"]}
    _, expected = ingested(
        params.build(
            IngestParams,
            {"raw": str(world), "sources": known | {name: demo.sources[name]}, "on_unreadable_file": "stop",
             "processes": 1},
            "test",
        )
    )  # fmt: skip
    expected = expected.with_columns(pl.col("source_file").str.strip_prefix(f"{name}/"))
    receipt, got = ingested(mine)
    if mine.base_currency != "EUR":  # a file of its own needs no rates: its amounts are in its own currency
        expected = expected.with_columns(amount_base=pl.col("amount"))
    main_source = next(iter(receipt["sources"].values()))
    assert main_source["rows_in"] == main_source["rows_out"] == expected.height > 0
    assert got.equals(expected)


@pytest.mark.parametrize("name", CSV_DIALECTS)
def test_a_draft_says_why_above_every_line(name: str, world: Path, project: Path) -> None:
    lines = draft.of_file(first_file(world, name), project, name=None).split("\n")
    main_part = lines[lines.index("    columns:") + 1 : lines.index("    amounts:")]
    assert all(line.lstrip().startswith("#") for line in main_part[::2])
    assert not any(line.lstrip().startswith("#") for line in main_part[1::2])


def drafted(project: Path, text: str, name: str = "payments.csv") -> str:
    path = project / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return draft.of_file(path, project, name="mine")


def test_days_that_read_both_ways_are_asked_for_with_both_readings(project: Path) -> None:
    text = drafted(project, "id,account,amount,date\n1,A,-5.10,01/02/2024\n2,B,6.00,03/04/2024\n")
    remarks = re.sub(r"\n *# ", " ", text)
    assert '"%d/%m/%Y" or "%m/%d/%Y"' in remarks
    assert "ambiguous: no value such as 01/02/2024" in remarks
    assert any("format: TODO" in line for line in trial.open_questions(text))


@pytest.mark.parametrize(
    ("values", "form", "why"),
    [
        (["13.02.2024", "01.02.2024"], "%d.%m.%Y", "1 values have a first number above 12"),
        (["02/13/2024 09:00", "01/02/2024 10:00"], "%m/%d/%Y %H:%M", "a second number above 12"),
        (["2024-02-13T10:00:00+01:00"], "iso", "with an offset"),
        (["2024-02-13 10:00"], "%Y-%m-%d %H:%M", "year, month, day"),
        (["2024/02/13"], "%Y/%m/%d", "year, month, day"),
        (["20240213", "20240101"], "%Y%m%d", "dates"),
        (["1707818400", "1707818401"], "epoch_s", "seconds since 1970"),
        (["1707818400000"], "epoch_ms", "milliseconds since 1970"),
        (["13-Feb-2024"], "%d-%b-%Y", "months by name"),
    ],
)
def test_moments_are_told_by_their_values(values: list[str], form: str, why: str) -> None:
    found = moments(Column("t", values, len(values)))
    assert found is not None
    assert (found.format, found.readings) == (form, ())
    assert why in found.why


@pytest.mark.parametrize("values", [["12", "13"], ["C1", "C2"], ["1.5"], ["99.99.2024"], ["123456789"]])
def test_other_values_are_no_moments(values: list[str]) -> None:
    assert moments(Column("t", values, len(values))) is None


def test_numbers_that_read_both_ways_are_asked_for(project: Path) -> None:
    text = drafted(project, "id;account;amount;date\n1;A;1.234;2024-01-31\n2;B;-5.678;2024-01-30\n")
    assert "reads both ways" in text
    assert any("decimal: TODO" in line for line in trial.open_questions(text))


def test_a_missing_sign_is_asked_for_and_a_missing_id_is_a_record_number(project: Path) -> None:
    text = drafted(project, "account,amount,date,name\nA,5.10,2024-01-31,x\nA,6.00,2024-01-30,x\n")
    assert "direction: TODO" in text
    assert "transaction_id: {record: true}" in text
    assert "time_zone: TODO" in text


def test_a_label_becomes_a_source_of_its_own_that_asks_when_it_was_known(project: Path) -> None:
    rows = "".join(f"{n},A{n % 3},-5.10,2024-01-31T10:00:00Z,{int(n == 7)}\n" for n in range(20))
    text = drafted(project, "id,account,amount,time,isFraud\n" + rows)
    assert "isFraud: truth values, 1 of 20 true" in text
    assert "add_days: TODO" in text
    given = written(project, "mine", answered(text, {"base_currency": "EUR", "constant": "EUR", "add_days": "7"}))
    ingested(given)
    (label,) = tables.read_table("ingest", "labels").to_dicts()
    assert label["transaction_id"] == "7"
    assert label["confirmed_at"] == datetime(2024, 2, 7, 10, tzinfo=UTC)


@pytest.mark.parametrize("name", MAPS)
def test_the_draft_of_a_public_set_finds_time_amount_and_label(name: str, project: Path) -> None:
    file = next(one for one in FILES[name] if one != "rates.csv")
    whole_rows = "".join(FILES[name][file].splitlines(keepends=True)[:-1])  # the last one cannot be read
    text = drafted(project, whole_rows, file)
    source = yaml.safe_load(text)["sources"]["transactions"]
    ready = yaml.safe_load((ROOT / "conf" / "ingest" / f"{name}.yaml").read_text())["sources"]["transactions"]
    assert source["columns"]["booked_at"] == ready["columns"]["booked_at"]
    if name != "baf":  # its limits are no amounts by name
        assert source["amounts"]["column"] == ready["amounts"]["column"]
    assert source.get("format", {}).get("quote", '"') == ready.get("format", {}).get("quote", '"')
    assert source.get("format", {}).get("repeated_names") == ready.get("format", {}).get("repeated_names")


def test_a_headerless_file_gets_names_by_position(project: Path) -> None:
    text = drafted(project, "1,A,-5.10,2024-01-31\n2,B,6.00,2024-01-30\n")
    assert "names: [column_1, column_2, column_3, column_4]" in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_the_encoding_is_told_by_the_bytes(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        "id,Währung,name\n1,EUR,Müller\n".encode(encoding) + (b"2,EUR,\x80\n" if encoding == "cp1252" else b"")
    )
    text = sample.decoded(sample.head(path))
    assert text.encoding == {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    assert text.content.startswith("id,Währung,name\n")
    assert text.why


def test_parquet_and_archives_are_drafted_as_well(project: Path) -> None:
    rows = "id,account,amount,time\n1,A,-5.10,2024-01-31T10:00:00Z\n2,B,6.00,2024-01-31T10:00:00Z\n"
    folder = project / "in"
    folder.mkdir()
    (folder / "a.csv.gz").write_bytes(gzip.compress(rows.encode()))
    frame = pl.DataFrame({"id": ["1", "2"], "account": ["A", "B"], "amount": [-5.1, 6.0],
                          "time": [datetime(2024, 1, 31, 10, tzinfo=UTC)] * 2})  # fmt: skip
    frame.write_parquet(folder / "b.parquet")
    for name in ("a.csv.gz", "b.parquet"):
        text = draft.of_file(folder / name, project, name="mine")
        given = written(project, "mine", answered(text, {"base_currency": "EUR", "constant": "EUR"}))
        _, got = ingested(given)
        assert got["amount"].to_list() == [5.1, 6.0]
        assert got["direction"].to_list() == ["out", "in"]
        assert got["booked_at"].to_list() == [datetime(2024, 1, 31, 10, tzinfo=UTC)] * 2


def test_prose_empty_files_and_strange_xml_are_refused_with_advice(project: Path) -> None:
    for text in ("Dear Sir or Madam\nyour statement follows\n", "", "<html><body/></html>"):
        with pytest.raises(ReperformError, match="what to do"):
            drafted(project, text)
    with pytest.raises(ReperformError, match="cannot be read"):
        draft.of_file(project / "none.csv", project, name=None)


def test_only_the_beginning_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(64):
            stream.write(b"0" * 2**20)
    start = sample.head(path)
    assert (len(start.content), start.is_whole) == (sample.MOST_BYTES, False)


@pytest.mark.parametrize(
    "content", [b"\xd0\xcf\x11\xe0", b"PK\x03\x04", b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x00" * 9]
)
def test_damaged_archives_and_workbooks_are_refused_in_words(content: bytes, tmp_path: Path) -> None:
    for name in ("a.csv", "a.xlsx", "a.parquet", "a.zip"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ReperformError):
            draft.of_file(tmp_path / name, tmp_path, name=None)


# --- the command line ---


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["sources", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


ROWS = "id,account,amount,time,ccy\n1,A,-5.10,2024-01-31T10:00:00Z,EUR\n2,A,6.00,2024-01-31T11:00:00Z,EUR\n"


def test_suggest_writes_a_new_file_and_never_over_an_old_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(project / "in", {"a.csv": ROWS})
    words = ("suggest", "in/a.csv", "--write", "conf/ingest/mine.yaml")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "next: python -m reperform sources check mine" in out
    before = (project / "conf" / "ingest" / "mine.yaml").read_bytes()
    (project / "conf" / "ingest" / "mine.yaml").write_bytes(before + b"# by hand\n")
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "--force" in err
    assert (project / "conf" / "ingest" / "mine.yaml").read_bytes() == before + b"# by hand\n"
    assert run(capsys, *words, "--force")[0] == 0
    assert (project / "conf" / "ingest" / "mine.yaml").read_bytes() == before


@pytest.mark.parametrize("target", ["conf/ingest/a b.yaml", "conf/ingest/mine.py", "conf/ingest/$(x).yaml"])
def test_suggest_refuses_names_that_are_no_map(target: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(project / "in", {"a.csv": ROWS})
    code, _, err = run(capsys, "suggest", "in/a.csv", "--write", target)
    assert code == 1
    assert "needs a name" in err


def test_check_asks_for_answers_before_it_reads(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = drafted(project, ROWS.replace("Z", ""))
    (project / "conf" / "ingest" / "mine.yaml").write_text(text)
    code, _, err = run(capsys, "check", "mine")
    assert code == 1
    assert re.search(r"line \d+: time_zone: TODO", err)


def test_check_shows_rows_refusals_and_what_to_do(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "3,A,a lot,2024-01-31T12:00:00Z,EUR\n1,A,7.00,2024-01-31T12:00:00Z,EUR\n4,A,0,2024-01-31T12:00:00Z,EUR\n"
    written(project, "mine", drafted(project, ROWS + ROWS.split("\n", 1)[1].replace("1,", "8,").replace("2,", "9,")))
    (project / "in" / "payments.csv").write_text(ROWS + bad)
    code, out, _ = run(capsys, "check", "mine")
    assert code == 0
    assert re.search(r"transactions +5 +3 +2 +0 +payments.csv \(whole\)", out)
    assert re.search(r"1 +bad_number +amount +such as a lot +payments.csv, record 3", out)
    assert re.search(r"1 +duplicate_id +transaction_id +such as 1 +payments.csv, record 4", out)
    assert re.search(r"1 +quarantine +transactions_contract .* such as 0.0 breaks", out)
    assert re.search(r"direction +out +in", out)
    assert "Never given: counterparty_id, channel, country, latitude, longitude, balance_after." in out
    assert "mend conf/ingest/mine.yaml" in out
    assert not (project / "data" / "ingest").exists()


def test_check_reads_a_sample_and_counts_labels_beyond_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{n},A,-5.10,2024-01-31T10:00:00Z,EUR,{int(n == 900)}\n" for n in range(1_000))
    text = drafted(project, "id,account,amount,time,ccy,fraud\n" + rows)
    written(project, "mine", answered(text, {"add_days": "7"}))
    code, out, _ = run(capsys, "check", "mine", "--rows", "10")
    assert code == 0
    assert re.search(r"transactions +10 +10 +0 +0 +payments.csv \(beginning\)", out)


def test_check_takes_another_file_and_one_source(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(project / "else", {"other.csv": FILES["banksim"]["bs140513_032310.csv"]})
    code, out, _ = run(capsys, "check", "banksim", "--file", "else/other.csv")
    assert code == 0
    assert "other.csv:000000001" in out
    code, _, err = run(capsys, "check", "banksim", "--source", "acounts")
    assert code == 1
    assert "did you mean accounts" in err


@pytest.mark.parametrize("name", ["../../etc/passwd", "nothing", "a/b", ""])
def test_check_reads_maps_of_the_project_alone(name: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "check", name)
    assert code == 1
    assert "There is no map" in err


def test_an_unreadable_file_ends_with_1_and_says_what_to_mend(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(project, "mine", drafted(project, ROWS))
    (project / "in" / "payments.csv").write_text(ROWS.replace("account", "konto"))
    code, out, _ = run(capsys, "check", "mine")
    assert code == 1
    assert "file_missing_column" in out
    assert "mend `format`" in out


def test_list_shows_maps_with_files_found_and_missing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deliver(project / "data" / "raw" / "ulb", FILES["ulb"])
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert re.search(r"ulb +transactions +table +transactions +1 found: creditcard.csv", out)
    assert re.search(r"paysim +transactions +table +transactions +missing: PS_\*.csv", out)
    assert re.search(r"ferc +ferc +xbrl", out)


# --- security ---

HOSTILE = "a$(touch hacked);`id`\x1b[31m\u202e'\".csv"


def test_names_and_values_with_shell_and_escape_characters_do_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (
        "id,account,amount,time,ccy,${oc.env:PATH}\n"
        "\x1b]0;title\x07,A\x1b[2J,-5.10,2024-01-31T10:00:00Z,EUR,x\n"
        "2,B,\x1b[31mred,2024-01-31T10:00:00Z,EUR,y\n"
        "3,B,6.00,2024-01-31T10:00:00Z,EUR,\u202ez\n" * 1
    )
    rows += "".join(f"{n},B,6.00,2024-01-31T10:00:00Z,EUR,z\n" for n in range(4, 40))
    deliver(project / "in", {HOSTILE: rows})
    code, out, _ = run(capsys, "suggest", f"in/{HOSTILE}")
    assert code == 0
    assert only_harmless(out)
    written(project, "mine", out)
    code, out, _ = run(capsys, "check", "mine")
    assert code == 0
    assert only_harmless(out)
    assert re.search(r"bad_number +amount +such as \\x1b\[31mred", out)
    assert not (project / "hacked").exists()
    code, _, err = run(capsys, "suggest", "in/\x1b[31mnone.csv")
    assert code == 1
    assert only_harmless(err)


def only_harmless(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


def test_a_field_of_many_megabytes_is_refused_in_a_few_words(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(project, "mine", drafted(project, ROWS))
    huge = "id,account,amount,time,ccy\n" + "x" * (2 * sample.MOST_BYTES)
    (project / "in" / "payments.csv").write_text(huge)
    for words in (("suggest", "in/payments.csv"), ("check", "mine")):
        code, out, err = run(capsys, *words)
        assert len(out) + len(err) < 10_000
        assert code == 1


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        "true",
        "TODO ",
        "a: b",
        "x # y",
        "${oc.env:HOME}",
        "\x1b[0m",
        "\u202e",
        "Währung",
        "'\"\\",
        "\t",
        "💶",
    ],
)
def test_every_text_reads_back_from_the_draft_as_it_was(text: str) -> None:
    content = OmegaConf.create(f"key: {lines.scalar(text)}")
    assert OmegaConf.to_container(content, resolve=True) == {"key": text}


def test_shown_values_are_short_and_printable() -> None:
    assert terminal.shown("\x1b[31mred\n") == "\\x1b[31mred\\n"
    assert len(terminal.shown("x" * 1_000)) == terminal.MOST_SHOWN
    assert terminal.shown("\udcff") == "\\udcff"


TEXTS = ["", "1", "-2,50", "1.234,5", "EUR", "DE", "01.02.2024", "2024-01-31T10:00:00Z", "NULL", "in", "0", "'x'"]
FIELDS = st.one_of(st.sampled_from(TEXTS), st.text(max_size=8))


@given(content=st.binary(max_size=400))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_draft_or_a_refusal(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    with suppress(ReperformError):
        assert isinstance(yaml.safe_load(draft.of_file(path, tmp_path, name=None)), dict)


@given(rows=st.lists(st.lists(FIELDS, min_size=3, max_size=3), min_size=2, max_size=12), mark=st.sampled_from(",;\t|"))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_gives_a_draft_that_yaml_and_hydra_can_read(rows: list[list[str]], mark: str, tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as stream:
        csv.writer(stream, delimiter=mark).writerows([["id", "account", "amount"], *rows])
    try:
        text = draft.of_file(path, tmp_path, name=None)
    except ReperformError:
        return
    assert only_harmless(text)
    sources = OmegaConf.to_container(OmegaConf.create(text), resolve=True)["sources"]
    assert sources["transactions"]["kind"] == "table"


# --- the how-to ---

HOW_TO = (ROOT / "docs" / "how-to" / "add-a-source.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of the document in one language; commands have none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", HOW_TO, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands() -> list[list[str]]:
    """The project's own commands in the document, in its order."""
    lines = [line for text in blocks("") for line in text.split("\n")]
    return [line.split()[3:] for line in lines if line.startswith("python -m reperform ")]


def test_the_how_to_leads_from_an_unknown_file_to_clean_rows(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suggest, check, compose = commands()
    file = project / suggest[2]
    deliver(file.parent, {file.name: blocks("csv")[0]})
    assert main(suggest) == 0
    asked = capsys.readouterr().out
    assert main(check) == 1
    assert "still asks something" in capsys.readouterr().err
    target = project / suggest[-1]
    answers = [line.split(" -> ") for line in blocks("answers")[0].strip().split("\n")]
    assert {line.split(": ", 1)[1].strip() for line in asked.split("\n") if "TODO" in line} >= {"base_currency: TODO"}
    text = target.read_text(encoding="utf-8")
    for question, answer in answers:
        assert question in text
        text = text.replace(question, question.replace("TODO", answer))
    target.write_text(text, encoding="utf-8")
    assert main(check) == 0
    assert "bad_time" in capsys.readouterr().out
    shutil.copy(project / "conf" / "split" / "handbook.yaml", project / "conf" / "split" / "mine.yaml")
    assert main(compose) == 0
    assert main(["ingest"]) == 0
    rows = tables.read_table("ingest", "transactions")
    assert rows.select("transaction_id", "direction", "amount").rows()[:3] == [
        ("8001", "out", 12.5), ("8002", "in", 2100.0), ("8003", "out", 1980.0)
    ]  # fmt: skip
    assert rows["booked_at"][0] == datetime(2024, 1, 14, 7, 30, tzinfo=UTC)
    assert rows["counterparty_id"][0] == "Bäckerei"
    assert tables.read_table("ingest", "labels")["confirmed_at"].to_list() == [datetime(2024, 1, 23, 1, 14, tzinfo=UTC)]
    assert tables.read_table("ingest", "quarantine")["value"].to_list() == ["31.02.2024 18:40:00"]


@pytest.mark.parametrize("source", re.findall(r"\| `([^`]*\{[^`]*)`", HOW_TO))
def test_what_the_how_to_writes_in_yaml_is_understood(source: str) -> None:
    ((key, value),) = yaml.safe_load(source.replace(", …", "")).items()
    base = table_source()
    changed = {**base, key: value} if key in ("times", "format", "amounts", "only_when") else {
        **base, "columns": {**base["columns"], key: value}}  # fmt: skip
    ingest.check_source("s", changed)


@pytest.mark.parametrize(
    "day",
    ["31/01/2024", "2024/01/31", "20240131", "240131", "31-Jan-2024", "31.01.24", "2024-01-31", "31.01.2024 00:00"],
)
def test_a_drafted_format_of_days_is_read_by_ingest(day: str, project: Path) -> None:
    text = drafted(project, f"id,account,amount,date,ccy\n1,A,-5.10,{day},EUR\n2,B,6.00,{day},EUR\n")
    written(project, "mine", answered(text, {"time_zone": "UTC"}))
    _, rows = ingested(trial.load("mine"))
    assert rows["booked_at"].to_list() == [datetime(2024, 1, 31, tzinfo=UTC)] * 2


def walk(way_of: dict[str, int], sign: bool) -> str:
    """Rows of two accounts whose balances move as each kind says; with a sign in the amount, or without."""
    rows, balance = ["id,account,kind,amount,balance,time"], {"A": 100.0, "B": 50.0}
    for n in range(60):
        account, kind = "AB"[n % 2], list(way_of)[n % len(way_of)]
        amount = 1.25 + n / 4
        balance[account] += way_of[kind] * amount
        shown = -way_of[kind] * amount if sign else amount
        rows.append(f"{n},{account},{kind},{shown},{balance[account]},2024-01-31T10:00:{n:02}Z")
    return "\n".join(rows) + "\n"


def test_balances_find_the_column_that_tells_the_direction(project: Path) -> None:
    text = drafted(project, walk({"PRIJEM": 1, "VYDAJ": -1, "VYBER": -1}, sign=False))
    amounts = yaml.safe_load(text)["sources"]["transactions"]["amounts"]
    assert amounts["direction_column"] == "kind"
    assert (amounts["in_values"], sorted(amounts["out_values"])) == (["PRIJEM"], ["VYBER", "VYDAJ"])
    assert "balances say so in 58 steps" in text


def test_balances_turn_round_a_sign_that_means_the_opposite(project: Path) -> None:
    text = drafted(project, walk({"a": 1, "b": -1, "c": -1}, sign=True))
    assert yaml.safe_load(text)["sources"]["transactions"]["amounts"]["negative"] == "in"
    assert "balances move that way in 100% of 58 steps" in re.sub(r"\n *# ", " ", text)


def test_balances_that_do_not_roll_say_nothing(project: Path) -> None:
    rows = walk({"a": 1, "b": -1}, sign=False).replace(",2024", "9,2024")
    assert "direction: TODO" in drafted(project, rows)
