"""Delimited text and Parquet become canonical rows by a column map; what cannot be read is refused with its reason."""

import csv
import gzip
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform.errors import ReperformError
from reperform.ingest import delimited, table, values
from reperform.ingest.column_map import Format, Times, table_source
from reperform.ingest.source import SourceResult, UnreadableFileError
from tests.conftest import ROOT

DEMO = yaml.safe_load((ROOT / "conf" / "ingest" / "demo.yaml").read_text(encoding="utf-8"))["sources"]
HANDBOOK = yaml.safe_load((ROOT / "conf" / "ingest" / "handbook.yaml").read_text(encoding="utf-8"))["sources"]
NOON = datetime(2025, 4, 1, 10, 0, tzinfo=UTC)  # noon in Berlin, 11 in London, 6 in New York

MEADOW_TIMES = '"2025-04-01T11:00:00+01:00","2025-04-01T11:05:00+01:00"'
# One row out and one row in of the same payment, as each of the five institutions writes it.
HEADERS = {
    "northbank": "id,account,counterparty,direction,amount,currency,booked_at,received_at,channel,country,"
    "latitude,longitude,balance",
    "lakeside": "Buchungsnummer;Konto;Gegenkonto;Soll;Haben;Währung;Buchung;Eingang;Kanal;Land;Breite;Länge;Saldo",
    "harbour": "tx_id\tacct\tpeer\tminor_units\tccy\tts_ms\trcv_ms\tchan\tctry\tlat\tlon\tbal_minor",
    "summit": "Reference|Account|Other Party|DC|Amount|Posted|Received|Channel|Country|Lat|Long|Balance",
    "meadow": "ref,iban,counter_iban,value,cur,when,got,via,where,geo,balance",
}
ROWS = {
    "northbank": [
        "T1,A,B,out,1234.56,EUR,2025-04-01T10:00:00Z,2025-04-01T10:05:00Z,card,FR,48.85,2.35,-10.00",
        "T2,B,A,in,1234.56,EUR,2025-04-01T10:00:00Z,2025-04-01T10:05:00Z,card,FR,,,2000.00",
    ],
    "lakeside": [
        "T1;A;B;1.234,56;;EUR;01.04.2025 12:00:00;01.04.2025 12:05:00;card;FR;48,85;2,35;-10,00",
        "T2;B;A;;1.234,56;EUR;01.04.2025 12:00:00;01.04.2025 12:05:00;card;FR;;;2.000,00",
    ],
    "harbour": [
        "T1\tA\tB\t-123456\tEUR\t1743501600000\t1743501900000\tcard\tFR\t48.85\t2.35\t-1000",
        "T2\tB\tA\t123456\tEUR\t1743501600000\t1743501900000\tcard\tFR\t\t\t200000",
    ],
    "summit": [
        "T1|A|B|D|1,234.56|04/01/2025 06:00:00 AM|04/01/2025 06:05:00 AM|card|FR|48.85|2.35|-10.00",
        "T2|B|A|C|1,234.56|04/01/2025 06:00:00 AM|04/01/2025 06:05:00 AM|card|FR|||2,000.00",
    ],
    "meadow": [
        '"T1","A","B","-1 234.56","GBP",' + MEADOW_TIMES + ',"card","FR","48.85,2.35","-10.00"',
        '"T2","B","A","1 234.56","GBP",' + MEADOW_TIMES + ',"card","FR","","2 000.00"',
    ],
}
ENCODINGS = {"lakeside": "latin-1", "summit": "utf-16", "harbour": "utf-8-sig"}


def delivered(folder: Path, name: str, rows: list[str], ending: str = "\n") -> Path:
    """A file as the institution writes it."""
    text = "\n".join([HEADERS[name], *rows]) + ending
    content = text.encode(ENCODINGS.get(name, "utf-8"))
    path = folder / name / ("transactions-2025-04.csv" + (".gz" if name == "harbour" else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name == "harbour" else content)
    return path


def read(folder: Path, name: str, **changed: Any) -> SourceResult:
    return table.read(name, DEMO[name] | changed, folder, processes=1)


def with_row(name: str, **changes: str) -> str:
    """The first row with some raw columns changed."""
    mark = DEMO[name].get("format", {}).get("delimiter", ",")
    columns = HEADERS[name].split(mark)
    fields = dict(zip(columns, ROWS[name][0].split(mark), strict=True)) | changes
    return mark.join(fields[column] for column in columns)


@pytest.mark.parametrize("name", HEADERS)
def test_every_dialect_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    delivered(tmp_path, name, ROWS[name])
    got = read(tmp_path, name)
    first, second = got.tables["transactions"].to_dicts()
    assert (first["transaction_id"], first["account_id"], first["counterparty_id"]) == ("T1", "A", "B")
    assert (first["direction"], second["direction"]) == ("out", "in")
    assert (first["amount"], first["balance_after"], second["balance_after"]) == (1234.56, -10.0, 2000.0)
    assert (first["booked_at"], first["known_at"]) == (NOON, NOON + timedelta(minutes=5))
    assert (first["latitude"], first["longitude"], second["latitude"]) == (48.85, 2.35, None)
    assert first["currency"] == {"summit": "USD", "meadow": "GBP"}.get(name, "EUR")
    assert (first["entity_id"], first["channel"], first["country"]) == (name, "card", "FR")
    assert (first["source_record"], second["source_record"]) == (1, 2)
    assert first["source_file"].startswith(f"{name}/transactions-2025-04.csv")
    assert got.quarantine.is_empty()
    assert [file.records for file in got.files] == [2]


@pytest.mark.parametrize(
    "case",
    [
        ("northbank", "amount", "12;50", values.BAD_NUMBER, "amount"),
        ("northbank", "amount", "nan", values.BAD_NUMBER, "amount"),
        ("northbank", "amount", "", table.MISSING, "amount"),
        ("northbank", "id", "", table.MISSING, "transaction_id"),
        ("northbank", "balance", "a lot", values.BAD_NUMBER, "balance_after"),
        ("northbank", "direction", "sideways", values.UNKNOWN_VALUE, "direction"),
        ("northbank", "currency", "EURO", table.UNKNOWN_CURRENCY, "currency"),
        ("northbank", "booked_at", "2025-02-30T10:00:00Z", values.BAD_TIME, "booked_at"),
        ("northbank", "booked_at", "2025-04-01T10:00:00", values.BAD_TIME, "booked_at"),
        ("lakeside", "Soll", "1,234.56", values.BAD_NUMBER, "amount"),
        ("lakeside", "Haben", "1,00", table.BOTH_SIDES, "amount"),
        ("lakeside", "Buchung", "30.03.2025 02:30:00", values.BAD_LOCAL_TIME, "booked_at"),
        ("lakeside", "Buchung", "26.10.2025 02:30:00", values.BAD_LOCAL_TIME, "booked_at"),
        ("harbour", "minor_units", "12.5", values.BAD_NUMBER, "amount"),
        ("harbour", "ts_ms", "yesterday", values.BAD_TIME, "booked_at"),
        ("summit", "Posted", "13/01/2025 06:00:00 AM", values.BAD_TIME, "booked_at"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_with_its_reason(case: tuple[str, ...], tmp_path: Path) -> None:
    name, raw, text, rule, column = case
    bad = with_row(name, **{raw: text})
    path = delivered(tmp_path, name, [bad, ROWS[name][1]])
    got = read(tmp_path, name)
    assert got.tables["transactions"]["transaction_id"].to_list() == ["T2"]
    assert got.quarantine.to_dicts() == [
        {
            "table": "transactions",
            "source_file": f"{name}/{path.name}",
            "source_record": 1,
            "rule": rule,
            "column": column,
            "value": got.quarantine["value"][0],
            "row": bad,
        }
    ]
    if text:
        assert text in (got.quarantine["value"][0], "1,00")


def test_wrong_number_of_fields_is_refused_and_says_how_many(tmp_path: Path) -> None:
    delivered(tmp_path, "northbank", ["T9,A", *ROWS["northbank"], ROWS["northbank"][0] + ",more"])
    got = read(tmp_path, "northbank")
    assert got.tables["transactions"].height == 2
    assert got.quarantine["rule"].to_list() == [delimited.WRONG_FIELDS] * 2
    assert got.quarantine["value"].to_list() == ["2 instead of 13", "14 instead of 13"]
    assert got.quarantine["source_record"].to_list() == [1, 4]
    assert got.quarantine["row"][0] == "T9,A"


def test_a_stray_quote_costs_its_own_record_only(tmp_path: Path) -> None:
    delivered(tmp_path, "northbank", [with_row("northbank", channel='5" tube'), *ROWS["northbank"]])
    got = read(tmp_path, "northbank")
    assert got.tables["transactions"].height == 2
    assert got.quarantine["rule"].to_list() == [delimited.BAD_QUOTES]


def test_line_breaks_and_marks_inside_quotes_belong_to_the_field(tmp_path: Path) -> None:
    delivered(tmp_path, "northbank", [with_row("northbank", channel='"a, ""b""\nc"'), ROWS["northbank"][1]])
    got = read(tmp_path, "northbank").tables["transactions"]
    assert got["channel"].to_list() == ['a, "b"\nc', "card"]
    assert got["source_record"].to_list() == [1, 2]


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    path = delivered(tmp_path, "northbank", ROWS["northbank"])
    expected = read(tmp_path, "northbank").tables["transactions"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read(tmp_path, "northbank").tables["transactions"].equals(expected)


def test_a_repeated_local_time_can_be_given_a_meaning(tmp_path: Path) -> None:
    delivered(tmp_path, "lakeside", [with_row("lakeside", Buchung="26.10.2025 02:30:00")])
    times = DEMO["lakeside"]["times"]
    got = [
        read(tmp_path, "lakeside", times=times | {"ambiguous": meant}).tables["transactions"]["booked_at"][0]
        for meant in ("earliest", "latest")
    ]
    assert got == [datetime(2025, 10, 26, 0, 30, tzinfo=UTC), datetime(2025, 10, 26, 1, 30, tzinfo=UTC)]


def test_the_day_before_and_after_the_clock_changes_differ_by_an_hour(tmp_path: Path) -> None:
    days = ["29.03.2025 12:00:00", "31.03.2025 12:00:00"]
    delivered(tmp_path, "lakeside", [with_row("lakeside", Buchung=day, Buchungsnummer=day) for day in days])
    before, after = read(tmp_path, "lakeside").tables["transactions"]["booked_at"].to_list()
    assert (before.hour, after.hour) == (11, 10)


@pytest.mark.parametrize(
    ("name", "damage", "rule", "says"),
    [
        ("northbank", lambda _: b"", "file_empty", "the file is empty"),
        ("northbank", lambda c: c.replace(b"amount", b"amonut"), "file_missing_column", "did you mean amonut"),
        ("northbank", lambda c: c[:-20], "file_cut_off", "cut off in the middle of a row"),
        ("northbank", lambda c: c[:-1], "file_cut_off", "line break after the last row"),
        ("northbank", lambda c: c.replace(b"id,", b"id,id,", 1), "file_header", "names a column twice"),
        ("meadow", lambda c: c[:-4] + b"\n", "file_cut_off", "a quoted field is never closed"),
        ("summit", lambda c: c[:-1], "file_encoding", "utf-16"),
        ("harbour", lambda c: c[:-30], "file_cut_off", "gzip archive is cut off"),
        ("harbour", lambda _: b"plain text\n", "file_compression", "not a gzip archive"),
        ("northbank", lambda c: c.replace(b"card", b"caf\xe9"), "file_encoding", "utf-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    name: str, damage: Any, rule: str, says: str, tmp_path: Path
) -> None:
    path = delivered(tmp_path, name, ROWS[name])
    path.write_bytes(damage(path.read_bytes()))
    got = read(tmp_path, name)
    (error,) = got.unreadable
    assert (error.path, error.rule) == (f"{name}/{path.name}", rule)
    assert says in str(error)
    assert "what to do" in str(error)
    assert got.tables["transactions"].is_empty()
    assert [file.records for file in got.files] == [0]


def test_a_source_that_never_ends_its_last_row_can_say_so(tmp_path: Path) -> None:
    delivered(tmp_path, "northbank", ROWS["northbank"], ending="")
    got = read(tmp_path, "northbank", format={"final_newline": False})
    assert got.tables["transactions"].height == 2


def test_a_header_alone_is_a_day_without_rows(tmp_path: Path) -> None:
    delivered(tmp_path, "northbank", [])
    got = read(tmp_path, "northbank")
    assert got.tables["transactions"].is_empty()
    assert got.unreadable == ()


def test_a_file_that_came_twice_is_read_once_and_told(tmp_path: Path) -> None:
    path = delivered(tmp_path, "northbank", ROWS["northbank"])
    path.with_name("transactions-2025-05.csv").write_bytes(path.read_bytes())
    got = read(tmp_path, "northbank")
    assert got.tables["transactions"].height == 2
    assert got.quarantine["rule"].to_list() == ["file_duplicate"]
    assert got.quarantine["row"].to_list() == ["the same bytes as northbank/transactions-2025-04.csv"]


def test_two_empty_months_are_not_duplicates(tmp_path: Path) -> None:
    path = delivered(tmp_path, "northbank", [])
    path.with_name("transactions-2025-05.csv").write_bytes(path.read_bytes())
    assert read(tmp_path, "northbank").quarantine.is_empty()


def test_a_missing_feed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "southbank").mkdir()
    with pytest.raises(ReperformError, match=r"northbank has no files[\s\S]*southbank"):
        read(tmp_path, "northbank")


def test_handbook_labels_are_positives_only_and_come_a_week_later(tmp_path: Path) -> None:
    lines = [
        "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD,TX_FRAUD_SCENARIO",
        "0,2018-04-01T00:00:31.000000,596,3156,57.16,0,0",
        "1,2018-04-01T00:02:10.000000,596,3412,281.51,1,1",
    ]
    (tmp_path / "transactions.csv.gz").write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    got = {name: table.read(name, source, tmp_path, processes=1) for name, source in HANDBOOK.items()}
    assert got["labels"].tables["labels"].to_dicts() == [
        {
            "transaction_id": "1",
            "is_anomaly": True,
            "typology": "scenario_1",
            "confirmed_at": datetime(2018, 4, 8, 0, 2, 10, tzinfo=UTC),
            "__file": "transactions.csv.gz",
            "__record": 2,
        }
    ]
    assert got["labels"].left_out == {table.NOT_SELECTED: 1}
    assert got["accounts"].tables["accounts"]["account_id"].to_list() == ["C596"]
    assert got["accounts"].left_out == {table.REPEATED: 1}
    transactions = got["transactions"].tables["transactions"]
    assert transactions["counterparty_id"].to_list() == ["T3156", "T3412"]
    assert transactions["booked_at"].to_list() == transactions["known_at"].to_list()


def test_accounts_take_their_institution_from_their_folder(tmp_path: Path) -> None:
    for name in ("northbank", "summit"):
        (tmp_path / name).mkdir()
        row = f"{name}-1,2020-01-31,Europe/Berlin,retail,DE"
        text = f"account_id,opened_at,timezone,segment,home_country\n{row}\n"
        (tmp_path / name / "accounts.csv").write_text(text)
    got = read(tmp_path, "accounts").tables["accounts"]
    assert got["entity_id"].to_list() == ["northbank", "summit"]
    assert got["opened_at"][0] == datetime(2020, 1, 31, tzinfo=UTC)


def test_parquet_is_read_by_the_same_map(tmp_path: Path) -> None:
    delivered(tmp_path, "northbank", ROWS["northbank"])
    expected = read(tmp_path, "northbank").tables["transactions"].drop("source_file", "__file")
    typed = pl.read_csv(tmp_path / "northbank" / "transactions-2025-04.csv", try_parse_dates=True)
    typed.write_parquet(tmp_path / "northbank" / "transactions.parquet")
    got = read(tmp_path, "northbank", files="northbank/*.parquet").tables["transactions"]
    assert got.drop("source_file", "__file").equals(expected)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    (error,) = read(tmp_path, "northbank", files="*.parquet").unreadable
    assert error.rule == "file_malformed"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"colums": {}}, "did you mean columns"),
        ({"format": {"delimitr": ";"}}, "did you mean delimiter"),
        ({"columns": DEMO["northbank"]["columns"] | {"chanel": "channel"}}, "did you mean channel"),
        ({"columns": {"transaction_id": "id"}}, "incomplete"),
        (
            {"columns": DEMO["northbank"]["columns"] | {"entity_id": {"constant": "a", "column": "b"}}},
            "exactly one origin",
        ),
        ({"columns": DEMO["northbank"]["columns"] | {"channel": {"colum": "b"}}}, "did you mean column"),
        ({"amounts": {"column": "amount"}}, "exactly one way"),
        ({"amounts": {"debit": "a", "credit": "b", "column": "c"}}, "exactly one way"),
        ({"amounts": None}, "transactions need them"),
        ({"target": "transaction"}, "did you mean transactions"),
        ({"times": {"time_zone": "Europe/Berlinn"}}, "IANA name"),
        ({"format": {"encoding": "utf-9"}}, "Unknown encoding"),
        ({"format": {"delimiter": "§"}}, "ASCII character"),
        ({"columns": DEMO["northbank"]["columns"] | {"entity_id": {"path": "no group"}}}, "needs a group"),
        ({"one_row_per": "chanel"}, "did you mean channel"),
    ],
)
def test_a_wrong_description_is_refused_with_a_hint(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ReperformError, match=says):
        table_source("northbank", DEMO["northbank"] | changed)


@settings(max_examples=50)
@given(
    units=st.integers(-(10**11), 10**11),
    marks=st.sampled_from([(".", ""), (".", ","), (",", "."), (".", " "), (",", " "), (".", "'")]),
)
def test_a_written_amount_is_read_back_exactly(units: int, marks: tuple[str, str]) -> None:
    point, group = marks
    text = f"{units / 100:,.2f}".replace(",", "\0").replace(".", point).replace("\0", group)
    frame = pl.DataFrame({"a": [text, str(units)]})
    form = Format(decimal=point, thousands=group)  # type: ignore[arg-type]
    got = frame.select(values.as_number(pl.col("a"), form).value).to_series()[0]
    minor = frame.select(values.as_number(pl.col("a"), Format(), 2).value).to_series()[1]
    assert got == minor == float(f"{units / 100:.2f}")


@pytest.mark.parametrize("text", ["1.23,45", "1,2345.6", "12,34", ",5", "1 000", "--1", "1e400", "0x10", "inf", "1,"])
def test_a_number_with_marks_in_the_wrong_place_is_not_guessed(text: str) -> None:
    form = Format(decimal=".", thousands=",")
    got = pl.DataFrame({"a": [text]}).select(values.as_number(pl.col("a"), form).value).to_series()
    assert got.to_list() == [None]


@settings(max_examples=50)
@given(moment=st.datetimes(datetime(1980, 1, 1), datetime(2060, 1, 1)), zone=st.sampled_from(["UTC", "Asia/Kolkata"]))  # noqa: DTZ001  # naive on purpose
def test_local_and_exact_writing_of_a_moment_agree(moment: datetime, zone: str) -> None:
    moment = moment.replace(microsecond=0)
    local = pl.Series([moment]).cast(pl.Datetime("us")).dt.replace_time_zone(zone)
    texts = pl.DataFrame(
        {
            "naive": [moment.isoformat()],
            "exact": local.dt.to_string("%Y-%m-%dT%H:%M:%S%:z"),
            "ms": local.dt.epoch("ms").cast(str),
        }
    )
    got = texts.select(
        naive=values.as_time(pl.col("naive"), Times(time_zone=zone)).value,
        exact=values.as_time(pl.col("exact"), Times()).value,
        ms=values.as_time(pl.col("ms"), Times(format="epoch_ms")).value,
    ).row(0)
    assert got[0] == got[1] == got[2] == local.dt.convert_time_zone("UTC")[0]


FIELD = st.text(alphabet='ab é",;\n', max_size=6)


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=6), mark=st.sampled_from([",", ";"]))
def test_what_a_csv_writer_wrote_is_read_back(rows: list[tuple[str, str, str]], mark: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter=mark, lineterminator="\n").writerows([("x", "y", "z"), *rows])
    got = delimited.parse(stream.getvalue().encode(), Format(delimiter=mark), ["x"], "a.csv")
    assert got.refused.is_empty()
    assert got.fields.select("x", "y", "z").rows() == [tuple(f.strip(" \n") or None for f in row) for row in rows]


@settings(max_examples=50)
@given(lines=st.lists(st.text(alphabet='a",', max_size=8), max_size=8))
def test_no_record_is_lost_whatever_the_lines_are(lines: list[str]) -> None:
    content = "\n".join(["x,y", *lines, ""]).encode()
    try:
        got = delimited.parse(content, Format(), ["x"], "a.csv")
    except UnreadableFileError as error:
        assert error.rule == "file_cut_off"  # noqa: PT017  # a quote that is never closed
        return
    kept = [*got.fields[delimited.ROW], *got.refused[delimited.ROW]]
    assert sorted(part for part in "\n".join(kept).split("\n") if part) == sorted(line for line in lines if line)
    assert got.count == len(set(got.fields["__record"]) | set(got.refused["__record"]))
