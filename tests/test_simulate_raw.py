"""Raw files: each dialect decodes to the true rows, statements add up, nothing gives the truth away."""

import csv
import gzip
import hashlib
import io
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from lxml import etree

from reperform import compose, params, schemas, simulate, tables
from reperform.errors import ReperformError
from reperform.simulate import Simulated, deliveries
from reperform.simulate.dialects import DIALECTS
from tests.demo_world import demo_settings, world_params

Row = dict[str, str]
NEW_YORK, LONDON, BERLIN = (ZoneInfo(z) for z in ("America/New_York", "Europe/London", "Europe/Berlin"))


@pytest.fixture(scope="module")
def made() -> Simulated:
    return simulate.simulate(world_params())


@pytest.fixture(scope="module")
def raw(made: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    simulate.deliver(made, world_params(), folder)
    return folder


def read(path: Path, encoding: str, delimiter: str) -> list[Row]:
    """A file's records, by a reader that shares nothing with the writer."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.DictReader(io.StringIO(content.decode(encoding)), delimiter=delimiter))


def moment(text: str, pattern: str, zone: Any) -> datetime:
    return datetime.strptime(text, pattern).replace(tzinfo=zone).astimezone(UTC)


def northbank(row: Row) -> tuple[Any, ...]:
    signed = Decimal(row["amount"]) * (1 if row["direction"] == "in" else -1)
    booked, known = (moment(row[c], "%Y-%m-%dT%H:%M:%SZ", UTC) for c in ("booked_at", "received_at"))
    place = (row["latitude"], row["longitude"])
    return (row["id"], row["account"], row["counterparty"], signed, booked, known, row["channel"], row["country"],
            place, Decimal(row["balance"]))  # fmt: skip


def german(number: str) -> Decimal:
    return Decimal(number.replace(".", "").replace(",", "."))


def lakeside(row: Row) -> tuple[Any, ...]:
    assert (row["Soll"] == "") != (row["Haben"] == "")
    signed = -german(row["Soll"]) if row["Soll"] else german(row["Haben"])
    booked, known = (moment(row[c], "%d.%m.%Y %H:%M:%S", BERLIN) for c in ("Buchung", "Eingang"))
    place = (row["Breite"].replace(",", "."), row["Länge"].replace(",", "."))
    assert row["Währung"] == "EUR"
    return (row["Buchungsnummer"], row["Konto"], row["Gegenkonto"], signed, booked, known, row["Kanal"], row["Land"],
            place, german(row["Saldo"]))  # fmt: skip


def harbour(row: Row) -> tuple[Any, ...]:
    booked, known = (datetime.fromtimestamp(int(row[c]) / 1000, UTC) for c in ("ts_ms", "rcv_ms"))
    signed, balance = (Decimal(int(row[c])) / 100 for c in ("minor_units", "bal_minor"))
    return (row["tx_id"], row["acct"], row["peer"], signed, booked, known, row["chan"], row["ctry"],
            (row["lat"], row["lon"]), balance)  # fmt: skip


def summit(row: Row) -> tuple[Any, ...]:
    signed = Decimal(row["Amount"].replace(",", "")) * {"D": -1, "C": 1}[row["DC"]]
    booked, known = (moment(row[c], "%m/%d/%Y %I:%M:%S %p", NEW_YORK) for c in ("Posted", "Received"))
    return (row["Reference"], row["Account"], row["Other Party"], signed, booked, known, row["Channel"], row["Country"],
            (row["Lat"], row["Long"]), Decimal(row["Balance"].replace(",", "")))  # fmt: skip


def meadow(row: Row) -> tuple[Any, ...]:
    signed, balance = (Decimal(row[c].replace(" ", "")) for c in ("value", "balance"))
    times = [datetime.fromisoformat(row[c]) for c in ("when", "got")]
    for each in times:
        assert each.utcoffset() == each.astimezone(LONDON).utcoffset()
    place = tuple(row["geo"].split(",")) if row["geo"] else ("", "")
    assert row["cur"] == "GBP"
    return (row["ref"], row["iban"], row["counter_iban"], signed, *(t.astimezone(UTC) for t in times), row["via"],
            row["where"], place, balance)  # fmt: skip


READERS: dict[str, tuple[Callable[[Row], tuple[Any, ...]], str, str]] = {
    "northbank": (northbank, "utf-8", ","),
    "lakeside": (lakeside, "latin-1", ";"),
    "harbour": (harbour, "utf-8-sig", "\t"),
    "summit": (summit, "utf-16", "|"),
    "meadow": (meadow, "utf-8", ","),
}


def expected(row: dict[str, Any]) -> tuple[Any, ...]:
    sign = 1 if row["direction"] == "in" else -1
    money = [Decimal(str(round(row[c], 2))) for c in ("amount", "balance_after")]
    place = tuple("" if row[c] is None else row[c] for c in ("latitude", "longitude"))
    return (row["transaction_id"], row["account_id"], row["counterparty_id"] or "", sign * money[0], row["booked_at"],
            row["known_at"], row["channel"], row["country"] or "", place, money[1])  # fmt: skip


def numeric(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row[:8], tuple(float(d) if d != "" else "" for d in row[8]), row[9])


@pytest.mark.parametrize("name", READERS)
def test_each_dialect_decodes_to_the_true_rows(name: str, raw: Path, made: Simulated) -> None:
    reader, encoding, delimiter = READERS[name]
    files = sorted((raw / name).glob("transactions-*"))
    got = {row[0]: numeric(row) for path in files for row in map(reader, read(path, encoding, delimiter))}
    rows = made.transactions.filter(pl.col("entity_id") == name).to_dicts()
    assert got == {row["transaction_id"]: numeric(expected(row)) for row in rows}
    assert len(rows) > 1_000


def test_files_begin_and_are_quoted_as_their_dialect_says(raw: Path) -> None:
    assert (raw / "summit" / "transactions-2025-03.csv").read_bytes().startswith(b"\xff\xfe")
    packed = (raw / "harbour" / "transactions-2025-03.csv.gz").read_bytes()
    assert packed[4:8] == b"\x00\x00\x00\x00"
    assert gzip.decompress(packed).startswith(b"\xef\xbb\xbftx_id\tacct\t")
    lines = (raw / "meadow" / "transactions-2025-03.csv").read_text().splitlines()
    assert all(line.startswith('"') and line.endswith('"') for line in lines)
    assert lines[0].count('","') == lines[1].count('","')
    header = (raw / "lakeside" / "transactions-2025-03.csv").read_bytes().split(b"\n")[0]
    assert header.decode("latin-1").split(";")[5] == "Währung"


def test_a_file_holds_what_arrived_in_its_month_in_order_of_arrival(raw: Path) -> None:
    rows = read(raw / "northbank" / "transactions-2025-02.csv", "utf-8", ",")
    received = [row["received_at"] for row in rows]
    assert received == sorted(received)
    assert {text[:7] for text in received} == {"2025-02"}


def statements(raw: Path, name: str) -> list[Path]:
    return sorted((raw / name).glob("statement-*.xml"))


@pytest.mark.parametrize("name", ["castle", "valley"])
def test_statements_add_up_and_hold_the_true_rows(name: str, raw: Path, made: Simulated) -> None:
    true = {r["transaction_id"]: r for r in made.transactions.filter(pl.col("entity_id") == name).to_dicts()}
    closing: dict[str, Decimal] = {}
    seen = 0
    for path in statements(raw, name):
        document = etree.parse(path)
        made_at = datetime.fromisoformat(document.findtext("{*}BkToCstmrStmt/{*}GrpHdr/{*}CreDtTm"))
        for statement in document.iter("{*}Stmt"):
            account = statement.findtext("{*}Acct/{*}Id/{*}IBAN")
            opened, closed = (signed(balance) for balance in statement.findall("{*}Bal"))
            entries = statement.findall("{*}Ntry")
            assert opened + sum(map(signed, entries)) == closed
            assert closing.get(account, opened) == opened
            closing[account] = closed
            for entry in entries:
                same_row(entry, true[entry.findtext("{*}NtryRef")], account, made_at)
            seen += len(entries)
    assert seen == len(true) > 500


def signed(element: Any) -> Decimal:
    return Decimal(element.findtext("{*}Amt")) * {"CRDT": 1, "DBIT": -1}[element.findtext("{*}CdtDbtInd")]


def same_row(entry: Any, true: dict[str, Any], account: str, made_at: datetime) -> None:
    booked = datetime.fromisoformat(entry.findtext("{*}BookgDt/{*}DtTm"))
    assert (account, booked, made_at) == (true["account_id"], true["booked_at"], true["known_at"])
    assert entry.findtext("{*}BkTxCd/{*}Prtry/{*}Cd") == true["channel"]
    assert signed(entry) == Decimal(str(true["amount"])) * (1 if true["direction"] == "in" else -1)
    role = "Dbtr" if true["direction"] == "in" else "Cdtr"
    parties = entry.find("{*}NtryDtls/{*}TxDtls/{*}RltdPties")
    other = None if parties is None else parties.find(f"{{*}}{role}Acct/{{*}}Id")
    assert (None if other is None else "".join(other.itertext())) == true["counterparty_id"]
    country = None if parties is None else next(parties.iter("{*}Ctry")).text
    assert country == true["country"]


@pytest.mark.parametrize(("name", "message"), [("castle", "camt.053.001.08"), ("valley", "camt.053.001.02")])
def test_statements_meet_the_official_schema(name: str, message: str, raw: Path, shared: Path) -> None:
    schema = etree.XMLSchema(etree.parse(shared / "iso20022" / "genkgo-camt" / "assets" / f"{message}.xsd"))
    for path in statements(raw, name)[::7]:
        document = etree.parse(path)
        assert document.getroot().nsmap[None].endswith(message)
        schema.assertValid(document)


def test_accounts_of_all_institutions_are_listed_with_their_ids_as_text(raw: Path, made: Simulated) -> None:
    frames = [pl.read_csv(p, infer_schema=False) for p in sorted(raw.glob("*/accounts.csv"))]
    listed = pl.concat(frames).sort("account_id")
    expected_accounts = made.accounts.sort("account_id")
    assert listed["account_id"].equals(expected_accounts["account_id"])
    assert listed["opened_at"].str.to_date().equals(expected_accounts["opened_at"].dt.date())
    assert listed.columns == ["account_id", "opened_at", "timezone", "segment", "home_country"]


def test_labels_and_rates_are_written_as_they_are(raw: Path, made: Simulated) -> None:
    labels = pl.read_csv(raw / "labels.csv", schema_overrides={"transaction_id": pl.String})
    assert labels.columns == list(schemas.LABELS.columns)
    assert set(labels["transaction_id"]) == set(made.labels["transaction_id"])
    rates = pl.read_csv(raw / "rates.csv")
    assert rates.columns == ["currency", "rate_to_base", "published_at"]
    assert rates["published_at"].str.ends_with("T16:00:00Z").all()
    assert rates["published_at"].min() < "2024-12-28"  # type: ignore[operator]
    assert rates.height == made.rates.height


def test_nothing_in_the_raw_folder_gives_the_truth_away(raw: Path, made: Simulated) -> None:
    """No file but the labels names a typology or an event, and references of planted rows look like all others."""
    words = [name.encode() for name in {*made.truth["typology"], *made.truth["event_id"], "lookalike", "anomal"}]
    for path in sorted(p for p in raw.rglob("*") if p.is_file() and p.name != "labels.csv"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content = content.replace(b"\x00", b"")
        assert not [word for word in words if word in content], path.name
    rows = made.transactions.join(made.truth, on="transaction_id", how="left")
    rows = rows.filter(pl.col("entity_id") == "northbank").with_columns(
        number=pl.col("transaction_id").str.slice(2).str.to_integer(base=16)
    )
    is_planted = pl.col("event_id").is_not_null()
    halves = rows.filter(is_planted)["number"] > rows["number"].median()
    assert 0.25 < halves.mean() < 0.75  # type: ignore[operator]


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def tiny() -> dict[str, Any]:
    return {"accounts": 100, "transactions": 12_000}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(project: Path, tiny: dict[str, Any]) -> None:
    seen = []
    for seed in (1, 1, 2):
        simulate.run(world_params(**tiny, seed=seed))
        seen.append(digest(project / "data" / "simulate"))
    assert seen[0] == seen[1]
    changed = [name for name in seen[0] if seen[2].get(name) != seen[0][name]]
    assert "truth.parquet" in changed
    assert "raw/northbank/transactions-2025-03.csv" in changed


def test_a_run_leaves_no_file_of_an_earlier_one_behind(project: Path, tiny: dict[str, Any]) -> None:
    stale = project / "data" / "simulate" / "raw" / "northbank" / "transactions-1999-01.csv"
    tables.write_text("id\n", stale)
    summary = simulate.run(world_params(**tiny))
    assert not stale.exists()
    assert summary.planted == tables.read_table("simulate", "truth").height > 0
    assert summary.transactions > 12_000


def test_no_world_is_an_empty_folder_that_says_why_and_empty_truth(project: Path) -> None:
    summary = simulate.run(world_params(world="none"))
    raw = project / "data" / "simulate" / "raw"
    assert [p.name for p in raw.iterdir()] == ["README.txt"]
    assert "simulate.world: none" in (raw / "README.txt").read_text()
    assert tables.read_table("simulate", "truth").columns == ["transaction_id", "typology", "event_id", "is_anomaly"]
    assert tables.read_table("simulate", "filing_truth").height == 0
    assert summary == simulate.Summary()


def test_the_smoke_experiment_plants_every_typology(project: Path) -> None:
    compose.write("smoke", ())
    smoke = params.load(params.SimulateParams)
    assert (smoke.accounts, smoke.transactions) == (200, 20_000)
    assert simulate.simulate(smoke).truth["typology"].n_unique() == 10


def test_an_unknown_format_names_the_known_ones(tmp_path: Path, made: Simulated) -> None:
    institutions = demo_settings("institutions")
    institutions["northbank"] = institutions["northbank"] | {"format": "comma_utd"}
    world = simulate.simulate(world_params(accounts=100, transactions=12_000, institutions=institutions)).world
    with pytest.raises(ReperformError, match="did you mean comma_utc"):
        deliveries.write_institution(world.institutions[0], made.transactions, made.accounts, tmp_path)
    assert set(DIALECTS) == {"comma_utc", "semicolon_german", "tab_minor_units", "pipe_american", "comma_quoted"}
