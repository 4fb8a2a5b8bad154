"""Statements go to disk part by part; what was read before is not read again, and it never shows."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from reperform import ingest, params
from reperform.ingest import iso20022, table
from reperform.ingest.parts import Store
from reperform.ingest.source import Part
from reperform.ingest.statement_parts import united
from tests.test_ingest import outputs
from tests.test_ingest_iso20022 import SOURCE, balance, document, entry

REFERENCE = "<TxDtls><RmtInf><Strd><CdtrRefInf><Ref>{}</Ref></CdtrRefInf></Strd></RmtInf></TxDtls>"
WRONG = entry("W1", "1.00", details=REFERENCE.format("RF00AB"))


def statement(day: int, *entries: str, first: str, last: str) -> str:
    """One statement of a chain: the second day begins where the first one ends."""
    number = f"<ElctrncSeqNb>{day}</ElctrncSeqNb>"
    text = document(number, balance("OPBD", first), balance("CLBD", last), *entries)
    return text.replace("<Id>S1</Id>", f"<Id>S{day}</Id>").replace("<MsgId>M1", f"<MsgId>M{day}")


DAYS = (
    statement(1, *(entry(f"A{n}", "1.00") for n in range(7)), first="0.00", last="7.00"),
    statement(2, entry("B1", "1.00"), entry("P", "9.00", status="<Sts><Cd>PDNG</Cd></Sts>"), first="7.00", last="9.00"),
    statement(3, WRONG, entry("A1", "2.00"), entry("bad", "x"), first="8.00", last="11.00"),
    statement(5, *(entry(f"D{n}", "1.00") for n in range(4)), first="11.00", last="15.00"),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "raw").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def deliver(project: Path, *days: int) -> None:
    for day in days:
        (project / "raw" / f"day-{day}.xml").write_text(DAYS[day])


def run(**changed: Any) -> Any:
    sources = {"castle": SOURCE | {"gives_accounts": True}}
    given = {"raw": "raw", "sources": sources, "on_unreadable_file": "quarantine", "processes": 1}
    return ingest.run(params.build(params.IngestParams, given | changed, where="test"))


def read_now(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are parsed from now on."""
    names: list[str] = []
    original = iso20022.raw_parts

    def counting(path: Path, *rest: Any) -> Any:
        names.append(path.name)
        return original(path, *rest)

    monkeypatch.setattr(iso20022, "raw_parts", counting)
    return names


def small_parts(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(iso20022, "_ROWS_PER_PART", rows)
    monkeypatch.setattr("reperform.ingest.camt_stream.ROWS_PER_PART", rows)


@pytest.mark.parametrize("rows", [1, 3, 20_000])
def test_outputs_do_not_depend_on_parts_or_on_what_was_read_before(
    project: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    deliver(project, 0, 1, 2, 3)
    run()
    expected = outputs(project)
    shutil.rmtree(project / ".cache")
    small_parts(monkeypatch, rows)
    for days in ([3], [0, 3], [0, 1, 2, 3], [0, 1, 2, 3]):
        shutil.rmtree(project / "raw")
        (project / "raw").mkdir()
        deliver(project, *days)
        run()
    assert outputs(project) == expected


def test_a_new_statement_is_read_without_reading_the_old_ones(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = read_now(monkeypatch)
    deliver(project, 0, 3)
    run()
    deliver(project, 1, 2)
    got = run()
    assert names == ["day-0.xml", "day-3.xml", "day-1.xml", "day-2.xml"]
    one = got["sources"]["castle"]
    assert one["rows_in"] == 16
    assert one["rows_out"] + sum(one["quarantined"].values()) == 16
    assert one["quarantined"] == {"duplicate_id": 1, "entry_not_booked": 1, "bad_number": 1}
    run()
    assert len(names) == 4


def test_checks_between_files_see_files_that_were_read_before(project: Path) -> None:
    deliver(project, 0, 1)
    run()
    deliver(project, 2, 3)
    counts = run()["sources"]["castle"]["counts"]
    assert counts["findings statement.chain"] == 1  # day 3 begins at 8, day 2 ended at 9
    assert counts["findings statement.sequence_gap"] == 1  # the fourth is missing
    assert counts["findings reference.check_digits"] == 1
    assert counts["statements_with_broken_balance"] == 1


def test_details_stand_beside_the_transactions_that_were_kept(project: Path) -> None:
    deliver(project, 0, 1, 2, 3)
    run()
    rows = pl.read_parquet(project / "data" / "ingest" / "transactions.parquet")
    details = pl.read_parquet(project / "data" / "ingest" / "payment_details.parquet")
    assert rows.height == 13
    place = ["transaction_id", "source_file", "source_record"]
    assert details.select(place).equals(rows.select(place))


def test_balances_of_a_large_statement_that_breaks_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, 2)
    for day in (0, 1):
        (tmp_path / f"day-{day}.xml").write_text(DAYS[day])
    store = Store(tmp_path / "parts")
    got = table.in_memory(iso20022.read_into(store, "castle", SOURCE, tmp_path)).tables["transactions"]
    assert got["balance_after"].to_list() == [*map(float, range(1, 8)), None]
    assert not list(tmp_path.glob("parts/*.tmp"))


def test_a_file_that_breaks_off_gives_nothing_and_disturbs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch, 2)
    (tmp_path / "a.xml").write_text(DAYS[0])
    (tmp_path / "b.xml").write_text(DAYS[3][:-20])
    (tmp_path / "c.xml").write_text(DAYS[2])
    store = Store(tmp_path / "parts")
    for _ in range(2):
        got = iso20022.read_into(store, "castle", SOURCE, tmp_path)
        assert [error.path for error in got.unreadable] == ["b.xml"]
        assert [file.records for file in got.files] == [7, 0, 3]
        assert table.in_memory(got).tables["transactions"].height == 9
    assert not list(tmp_path.glob("parts/*.tmp"))


def test_slices_that_follow_each_other_are_one_part() -> None:
    a, b = Path("a"), Path("b")
    parts = [Part(a, ("x",), {}, 0, 2), Part(a, ("x",), {}, 2, 3), Part(b, ("x",), {}, 0, 1), Part(a, ("x",), {}, 7, 1)]
    assert [(one.path, one.start, one.length) for one in united(parts)] == [(a, 0, 5), (b, 0, 1), (a, 7, 1)]
