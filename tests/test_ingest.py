"""Stage ingest: all sources together, what happens to bad files, and counts that add up."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import ingest, params, schemas
from reperform.errors import ReperformError
from reperform.ingest.combine import combine
from reperform.ingest.rates import NO_RATE, with_amount_base
from reperform.ingest.receipt import receipt
from reperform.ingest.source import SourceFile, SourceResult, quarantine_frame, quarantined
from tests.conftest import ROOT
from tests.test_ingest_iso20022 import balance, document, entry
from tests.test_ingest_table import HEADERS, ROWS, delivered, with_row

DEMO = yaml.safe_load((ROOT / "conf" / "ingest" / "demo.yaml").read_text(encoding="utf-8"))
SAVED = {
    **schemas.CANONICAL,
    "payment_details": schemas.PAYMENT_DETAILS,
    "origins": schemas.ORIGINS,
    "quarantine": schemas.QUARANTINE,
}
NAMES = list(SAVED)
DAY = datetime(2025, 4, 1, tzinfo=UTC)


@pytest.fixture
def world(project: Path) -> Path:
    """A project with a few raw files of four sources, and parameters that read them."""
    raw = project / "data" / "simulate" / "raw"
    delivered(raw, "northbank", ROWS["northbank"])
    delivered(raw, "summit", [with_row("summit", Reference="S1")])
    (raw / "castle").mkdir()
    statement = document(balance("OPBD", "0.00"), balance("CLBD", "7.00"), entry("C1", "7.00"))
    (raw / "castle" / "statement-2025-04-01.xml").write_text(statement)
    (raw / "rates.csv").write_text(
        "currency,rate_to_base,published_at\nUSD,0.9,2025-03-31T15:00:00Z\nUSD,0.8,2025-04-01T15:00:00Z\n"
    )
    (raw / "labels.csv").write_text(
        "transaction_id,is_anomaly,typology,confirmed_at\nT1,true,structuring,2025-04-09T08:00:00Z\n"
    )
    write_params(project)
    return project


def write_params(project: Path, **changed: Any) -> None:
    sources = {name: DEMO["sources"][name] for name in ("rates", "northbank", "summit", "castle", "labels")}
    section = DEMO | {"sources": sources} | changed
    (project / "params.yaml").write_text(yaml.safe_dump({"ingest": section}, sort_keys=False))


def command(project: Path, *stage: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reperform", *stage], cwd=project, capture_output=True, text=True, check=False
    )


def outputs(project: Path) -> dict[str, str]:
    folder = project / "data" / "ingest"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def output(project: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(project / "data" / "ingest" / f"{name}.parquet")


def the_receipt(project: Path) -> dict[str, Any]:
    return json.loads((project / "data" / "ingest" / "receipt.json").read_text())


def test_every_source_ends_in_the_canonical_tables(world: Path) -> None:
    got = ingest.run(params.load(params.IngestParams))
    rows = output(world, "transactions")
    assert rows["transaction_id"].to_list() == ["T1", "T2", "S1", "C1"]
    assert rows["entity_id"].to_list() == ["northbank", "northbank", "summit", "castle"]
    assert output(world, "labels").rows() == [("T1", True, "structuring", datetime(2025, 4, 9, 8, tzinfo=UTC))]
    for name in NAMES:
        schemas.shaped(output(world, name), SAVED[name])
    assert got == the_receipt(world)
    assert got["sources"]["castle"]["counts"]["statements_with_both_balances"] == 1
    assert got["sources"]["northbank"]["files"][0]["records"] == 2


def test_foreign_amounts_take_the_rate_that_was_known(world: Path) -> None:
    ingest.run(params.load(params.IngestParams))
    rows = output(world, "transactions")
    base = dict(rows.select("transaction_id", "amount_base").iter_rows())
    # S1 was known at 10:05; the rate of 15:00 on the same day comes too late for it.
    assert base == {"T1": 1234.56, "T2": 1234.56, "S1": pytest.approx(1234.56 * 0.9), "C1": 7.0}


def test_a_missing_rate_is_told(world: Path) -> None:
    rates = world / "data" / "simulate" / "raw" / "rates.csv"
    rates.write_text("currency,rate_to_base,published_at\nUSD,0.8,2025-04-01T15:00:00Z\n")
    got = ingest.run(params.load(params.IngestParams))
    assert output(world, "transactions")["transaction_id"].to_list() == ["T1", "T2", "C1"]
    (row,) = output(world, "quarantine").to_dicts()
    assert (row["rule"], row["column"], row["value"]) == (NO_RATE, "amount_base", "USD at 2025-04-01T10:05:00Z")
    assert json.loads(row["row"])["transaction_id"] == "S1"
    assert got["sources"]["summit"]["quarantined"] == {NO_RATE: 1}


def test_an_id_that_came_twice_is_kept_once_and_told(world: Path) -> None:
    raw = world / "data" / "simulate" / "raw"
    delivered(raw, "summit", [with_row("summit", Reference="T2"), with_row("summit", Reference="S1")])
    got = ingest.run(params.load(params.IngestParams))
    rows = output(world, "transactions")
    assert rows.filter(pl.col("transaction_id") == "T2")["entity_id"].to_list() == ["northbank"]
    (row,) = output(world, "quarantine").to_dicts()
    assert (row["rule"], row["value"]) == ("duplicate_id", "T2")
    assert (row["source_file"], row["source_record"]) == ("summit/transactions-2025-04.csv", 1)
    assert got["sources"]["summit"]["rows_out"] == 1


def test_counts_add_up_for_every_source(world: Path) -> None:
    raw = world / "data" / "simulate" / "raw"
    bad = [with_row("northbank", amount="much"), "cut,short", *ROWS["northbank"], ROWS["northbank"][0]]
    delivered(raw, "northbank", bad)
    got = ingest.run(params.load(params.IngestParams))["sources"]["northbank"]
    assert got["quarantined"] == {"bad_number": 1, "duplicate_id": 1, "wrong_number_of_fields": 1}
    assert got["rows_in"] == got["rows_out"] + sum(got["quarantined"].values()) == 5
    assert output(world, "quarantine").height == 3


def test_a_lost_record_is_an_error_and_nothing_is_saved() -> None:
    frame = schemas.empty(schemas.LABELS)
    lost = {"labels": SourceResult(tables={"labels": frame}, files=(SourceFile("labels.csv", "", 1),))}
    with pytest.raises(ReperformError, match="do not add up"):
        receipt({"labels": {"kind": "table", "target": "labels"}}, lost, combine(lost, "EUR"))


def test_a_refused_record_counts_even_where_its_place_is_unknown() -> None:
    refused = quarantine_frame([quarantined("facts", "f.xbrl", 0, "undefined_concept", value="x:Y")])
    one = SourceResult(
        tables={"facts": schemas.empty(schemas.FACTS)}, quarantine=refused, files=(SourceFile("f.xbrl", "", 1),)
    )
    got = receipt({"f": {"kind": "xbrl"}}, {"f": one}, combine({"f": one}, "EUR"))["sources"]["f"]
    assert (got["rows_in"], got["quarantined"], got["files_refused"]) == (1, {"undefined_concept": 1}, {})


BROKEN: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty CSV": ("northbank/transactions-2025-04.csv", lambda _: b"", "the file is empty"),
    "missing column": (
        "northbank/transactions-2025-04.csv",
        lambda content: content.replace(b"received_at", b"recieved_at"),
        "did you mean recieved_at",
    ),
    "cut in a row": (
        "northbank/transactions-2025-04.csv",
        lambda content: content[:-25],
        "cut off in the middle of a row",
    ),
    "malformed XML": ("castle/statement-2025-04-01.xml", lambda content: content[:-40], "malformed or cut off"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_file_stops_the_command_with_an_explanation(case: str, world: Path) -> None:
    assert command(world, "ingest").returncode == 0
    before = outputs(world)
    name, damage, says = BROKEN[case]
    path = world / "data" / "simulate" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    got = command(world, "ingest")
    assert got.returncode == 1
    assert "Traceback" not in got.stderr
    assert says in got.stderr
    for part in (name, "expected:", "got:", "where:", "what to do:", "on_unreadable_file: quarantine"):
        assert part in got.stderr
    assert outputs(world) == before
    assert len(before) == len(NAMES) + 1


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_file_can_be_listed_while_the_rest_goes_on(case: str, world: Path) -> None:
    name, damage, says = BROKEN[case]
    path = world / "data" / "simulate" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    write_params(world, on_unreadable_file="quarantine")
    got = ingest.run(params.load(params.IngestParams))
    source = name.split("/")[0]
    assert sum(got["sources"][source]["files_refused"].values()) == 1
    assert got["sources"][source]["rows_in"] == got["sources"][source]["rows_out"] == 0
    (row,) = output(world, "quarantine").to_dicts()
    assert (row["source_file"], row["source_record"]) == (name, 0)
    assert says in row["row"]
    assert "S1" in output(world, "transactions")["transaction_id"]


def test_all_bad_files_are_named_at_once(world: Path) -> None:
    raw = world / "data" / "simulate" / "raw"
    for name in ("northbank/transactions-2025-04.csv", "castle/statement-2025-04-01.xml"):
        (raw / name).write_bytes(b"")
    with pytest.raises(ReperformError, match=r"northbank/[\s\S]*also unreadable: castle/statement-2025-04-01.xml"):
        ingest.run(params.load(params.IngestParams))


def test_an_unknown_kind_of_source_is_refused(world: Path) -> None:
    write_params(world, sources={"northbank": {"kind": "tabel"}})
    with pytest.raises(ReperformError, match="did you mean table"):
        ingest.run(params.load(params.IngestParams))


def test_a_misspelt_key_of_a_source_is_found_before_the_first_stage(project: Path) -> None:
    got = command(project, "params", "ingest.sources.northbank.columns.channel=chan", "+ingest.sources.castle.entity=x")
    assert got.returncode == 1
    assert "did you mean entity_id" in got.stderr
    assert "ingest.sources.castle" in got.stderr


def test_without_sources_every_table_is_there_and_empty(world: Path) -> None:
    write_params(world, sources={})
    assert ingest.run(params.load(params.IngestParams))["sources"] == {}
    assert {name: output(world, name).height for name in NAMES} == dict.fromkeys(NAMES, 0)


def test_two_runs_give_the_same_bytes(world: Path) -> None:
    ingest.run(params.load(params.IngestParams))
    before = outputs(world)
    ingest.run(params.load(params.IngestParams))
    assert outputs(world) == before


def test_demo_and_handbook_describe_sources_that_hold_together() -> None:
    for name in ("demo", "handbook"):
        conf = yaml.safe_load((ROOT / "conf" / "ingest" / f"{name}.yaml").read_text(encoding="utf-8"))
        got = params.build(params.IngestParams, conf, where="ingest")
        assert {source["kind"] for source in got.sources.values()} <= set(ingest.KINDS)
        assert set(HEADERS) <= set(got.sources) or name == "handbook"


def priced(known: list[tuple[str, int]]) -> pl.DataFrame:
    """Transactions of 100 units, known at an hour of a day, with only the columns that rates look at filled."""
    frame = pl.DataFrame(
        {
            "currency": [currency for currency, _ in known],
            "known_at": [DAY + timedelta(hours=hour) for _, hour in known],
            "amount": [100.0] * len(known),
            "source_file": ["f"] * len(known),
            "source_record": list(range(len(known))),
        },
        schema_overrides={"currency": pl.String, "known_at": schemas.UTC_US, "source_record": pl.Int64},
    )
    wanted = schemas.polars_schema(schemas.TRANSACTIONS)
    missing = [pl.lit(None).alias(name) for name in wanted if name not in frame.columns]
    return frame.with_columns(missing).select(pl.col(name).cast(kind) for name, kind in wanted.items())


@settings(max_examples=50, deadline=None)
@given(
    known=st.lists(st.tuples(st.sampled_from(["EUR", "USD", "GBP"]), st.integers(0, 20)), max_size=8),
    rates=st.lists(st.tuples(st.sampled_from(["USD", "GBP"]), st.integers(0, 20), st.integers(1, 9)), max_size=8),
)
def test_rates_are_the_last_ones_published_before(
    known: list[tuple[str, int]], rates: list[tuple[str, int, int]]
) -> None:
    table = pl.DataFrame(
        [(currency, rate / 4, DAY + timedelta(hours=hour)) for currency, hour, rate in rates],
        schema=schemas.polars_schema(schemas.RATES),
        orient="row",
    )
    got, refused = with_amount_base(priced(known), table, "EUR")
    expected = {}
    for number, (currency, hour) in enumerate(known):
        usable = [(at, place, rate) for place, (c, at, rate) in enumerate(rates) if c == currency and at <= hour]
        expected[number] = 100.0 if currency == "EUR" else (max(usable)[2] / 4 * 100.0 if usable else None)
    found = dict(got.select("source_record", "amount_base").iter_rows())
    assert found == {number: amount for number, amount in expected.items() if amount is not None}
    assert refused["source_record"].to_list() == [number for number, amount in expected.items() if amount is None]
