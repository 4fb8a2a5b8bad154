"""What people decide becomes a label with its time: for later scores, and for the next run of the pipeline."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from reperform import __main__, ingest, params, schemas, tables, validate
from reperform.export.server import ADDRESS_VARIABLE
from reperform.ingest import feedback_file
from reperform.params import IngestParams, ValidateParams
from reperform.service import answers, feedback, journal
from reperform.service.database import Database
from reperform.service.refusals import Refusal
from tests import service_rows
from tests.conftest import ROOT
from tests.service_rows import NOON
from tests.test_ingest import DEMO
from tests.test_ingest_table import HEADERS, ROWS, delivered

LABELS = schemas.polars_schema(schemas.LABELS)
BOOKED = NOON - timedelta(minutes=1)
NOW = NOON + timedelta(days=30)


def labels(*rows: tuple[Any, ...]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=LABELS, orient="row")


def answered(database: Database, *ids: str) -> None:
    with database.transaction() as connection:
        answers.write_answers(connection, service_rows.answers(*ids), sequence=1, request_id="r")


def take(database: Database, *rows: tuple[Any, ...], now: datetime = NOW, **more: Any) -> feedback.Taken:
    more = {"booked": lambda _: {}} | more
    with database.transaction() as connection:
        return feedback.take(connection, labels(*rows), now=now, **more)


def that_count(database: Database) -> list[tuple[Any, ...]]:
    with database.transaction() as connection:
        return feedback.labels_that_count(connection).rows()


def events(database: Database) -> list[journal.Event]:
    with database.transaction() as connection:
        return journal.since(connection, 0)


def test_a_decision_becomes_a_label_and_an_event(database: Database) -> None:
    answered(database, "T1", "T2")
    taken = take(database, ("T1", True, "structuring", NOON), ("T2", False, None, None), key_id="k1")
    assert taken == feedback.Taken(sequence=1, new=2, corrected=0, repeated=0)
    assert that_count(database) == [("T1", True, "structuring", NOON), ("T2", False, None, NOW)]
    (event,) = events(database)
    assert event.kind == "labels"
    assert event.rows.rows() == that_count(database)
    assert schemas.checked(event.rows, schemas.LABELS).height == 2


def test_a_later_decision_counts_and_earlier_ones_are_kept(database: Database) -> None:
    answered(database, "T1")
    take(database, ("T1", True, "structuring", NOON))
    assert take(database, ("T1", False, None, NOON + timedelta(days=1))).corrected == 1
    assert that_count(database) == [("T1", False, None, NOON + timedelta(days=1))]
    with database.transaction() as connection:
        assert [row["is_anomaly"] for row in feedback.history(connection, "T1")] == [False, True]
    assert [event.rows["is_anomaly"][0] for event in events(database)] == [True, False]


def test_what_was_said_already_is_not_written_again(database: Database) -> None:
    answered(database, "T1")
    take(database, ("T1", True, None, None))
    assert take(database, ("T1", True, None, None), now=NOW + timedelta(days=1)) == feedback.Taken(None, 0, 0, 1)
    assert take(database, ("T1", True, None, NOW)).repeated == 1
    assert take(database, ("T1", True, "structuring", None)).corrected == 1  # now with its kind
    assert len(events(database)) == 2


def test_a_transaction_of_the_pipeline_may_be_labelled(database: Database) -> None:
    taken = take(database, ("P1", True, None, NOON), booked=lambda ids: dict.fromkeys(ids, BOOKED))
    assert taken.new == 1


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("T9", True, None, None)], ["unknown-transaction"]),
        ([("T1", True, None, NOW + timedelta(seconds=1))], ["future-label"]),
        ([("T1", True, None, BOOKED - timedelta(seconds=1))], ["label-before-booking"]),
        ([("T1", True, None, None), ("T1", False, None, None)], ["repeated-label"]),
        ([("T1", None, None, None)], ["incomplete-label"]),
        ([(None, True, None, None)], ["incomplete-label"]),
        ([("T1", True, "x" * 101, None)], ["long-typology"]),
        ([], ["no-labels"]),
        ([("T9", True, None, None), ("T1", True, None, NOON), ("T8", True, None, None)], ["unknown-transaction"] * 2),
    ],
)
def test_what_cannot_be_true_is_refused_whole_with_all_problems(
    database: Database, rows: list[tuple[Any, ...]], told: list[str]
) -> None:
    answered(database, "T1")
    with pytest.raises(Refusal) as got:
        take(database, *rows)
    assert got.value.status == 422
    assert [one.code for one in got.value.more or [got.value]] == told
    assert that_count(database) == []
    assert events(database) == []


def test_a_decision_at_the_moment_of_booking_and_one_of_now_are_taken(database: Database) -> None:
    answered(database, "T1", "T2")
    assert take(database, ("T1", True, None, BOOKED), ("T2", True, None, NOW)).new == 2


# The file for the pipeline.

texts = st.text(st.characters(exclude_characters="\r\n\x00", exclude_categories=("Cs", "Cc")), max_size=8)
rows = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9,;\"' -]*[A-Za-z0-9]", fullmatch=True),
        st.booleans(),
        st.none() | st.sampled_from(["structuring", 'a "b", c', "ü"]),
        st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda one: one.replace(tzinfo=UTC)),  # noqa: DTZ001  # hypothesis wants them bare
    ),
    min_size=1, unique_by=lambda row: row[0].strip(),
)  # fmt: skip


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=rows)
def test_the_file_gives_back_what_was_written(told: list[tuple[Any, ...]], tmp_path: Path) -> None:
    frame = labels(*((row[0].strip(), *row[1:]) for row in told)).sort("transaction_id")
    target = tmp_path / "labels.csv"
    target.unlink(missing_ok=True)
    assert feedback.write(frame, target) == frame.height
    assert_frame_equal(feedback_file.read(target).sort("transaction_id"), frame)


def test_the_file_is_the_same_whatever_the_order_and_keeps_what_the_database_lacks(tmp_path: Path) -> None:
    one, two = ("T1", True, "structuring", NOON), ("T2", False, None, NOON)
    target = tmp_path / "labels.csv"
    feedback.write(labels(two, one), target)
    written = target.read_bytes()
    feedback.write(labels(one, two), target)
    assert target.read_bytes() == written
    feedback.write(labels(("T2", True, None, NOW)), target)  # a new database knows less
    assert feedback_file.read(target).rows() == [one, ("T2", True, None, NOW)]


RAW_LABELS = "transaction_id,is_anomaly,typology,confirmed_at\n{}\n"


@pytest.fixture
def world(project: Path) -> Path:
    """A project with two transactions of one source, one of which case handling has labelled."""
    raw = project / "data" / "simulate" / "raw"
    first = dict(zip(HEADERS["northbank"].split(","), ROWS["northbank"][0].split(","), strict=True))
    second = first | {"id": "T2", "amount": "11.00"}
    delivered(raw, "northbank", [",".join(first.values()), ",".join(second.values())])
    (raw / "labels.csv").write_text(RAW_LABELS.format("T1,true,structuring,2025-04-09T08:00:00Z"))
    (raw / "accounts.csv").write_text(f"account_id,entity_id\n{first['account']},northbank\n")
    accounts = {
        "kind": "table", "target": "accounts", "files": "accounts.csv",
        "columns": {"account_id": "account_id", "entity_id": "entity_id"},
    }  # fmt: skip
    sources = {"accounts": accounts} | {name: DEMO["sources"][name] for name in ("northbank", "labels")}
    content = yaml.safe_load((project / "params.yaml").read_text()) | {"ingest": DEMO | {"sources": sources}}
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return project


def ingested() -> pl.DataFrame:
    ingest.run(params.load(IngestParams))
    return tables.read_table("ingest", "labels")


def outputs(project: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((project / "data" / "ingest").iterdir())}


def test_without_the_file_nothing_is_different(world: Path) -> None:
    ingested()
    before = outputs(world)
    (world / "data" / "feedback").mkdir(parents=True)
    (world / "data" / "feedback" / "README.md").write_text("what comes here")
    ingested()
    assert outputs(world) == before
    assert "service_feedback" not in tables.read_json("ingest", "receipt")["sources"]


def confirmed(day: int) -> datetime:
    return datetime(2025, 4, day, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("told", "counts", "refused"),
    [
        (("T2", True, None, confirmed(12)), [("T1", True), ("T2", True)], []),
        (("T1", False, None, confirmed(12)), [("T1", False)], ["duplicate_id"]),  # a correction
        (("T1", False, None, confirmed(8)), [("T1", True)], ["label_superseded"]),  # the other came later
        (("T9", True, None, confirmed(12)), [("T1", True)], ["label_ahead_of_transaction"]),
    ],
)
def test_of_two_labels_the_one_that_was_confirmed_later_counts(
    world: Path, told: tuple[Any, ...], counts: list[tuple[Any, ...]], refused: list[str]
) -> None:
    feedback.write(labels(told), feedback_file.path())
    got = ingested().sort("transaction_id")
    assert got.select("transaction_id", "is_anomaly").rows() == counts
    quarantine = tables.read_table("ingest", "quarantine")
    assert quarantine["rule"].to_list() == refused
    receipt = tables.read_json("ingest", "receipt")["sources"]["service_feedback"]
    assert receipt["rows_in"] == 1
    assert receipt["files"][0]["path"] == "feedback/labels.csv"
    assert (world / "data" / "ingest" / "labels.parquet").is_file()


def test_from_the_service_to_the_clean_labels_of_the_next_run(
    database: Database, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, " ".join(f"{k}={v}" for k, v in database.address.parameters.items()))
    assert __main__.main(["feedback"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    ingested()
    validate.run(params.load(ValidateParams))
    take(database, ("T2", True, "mule", confirmed(20)), booked=None, now=confirmed(21))  # T2 is the pipeline's
    assert __main__.main(["feedback"]) == 0
    assert "1 labels" in capsys.readouterr().out
    written = feedback_file.path().read_bytes()
    assert __main__.main(["feedback"]) == 0
    assert feedback_file.path().read_bytes() == written
    ingested()
    validate.run(params.load(ValidateParams))
    clean = tables.read_table("validate", "labels")
    assert clean.rows() == [("T1", True, "structuring", confirmed(9)), ("T2", True, "mule", confirmed(20))]


@pytest.mark.slow
def test_dvc_runs_ingest_again_when_the_file_comes_and_when_it_changes(tmp_path: Path) -> None:
    """With the real dependencies of stage ingest, and a command that costs nothing."""
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["ingest"]
    assert "data/feedback" in stage["deps"]
    stages = {"ingest": {"cmd": "python -c pass", "deps": ["data/feedback"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    folder = tmp_path / "data" / "feedback"
    folder.mkdir(parents=True)
    (folder / "README.md").write_bytes((ROOT / "data" / "feedback" / "README.md").read_bytes())

    def dvc(*words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    dvc("init", "--no-scm", "--quiet")
    assert "Running stage" in dvc("repro")
    assert "Running stage" not in dvc("repro")
    for row in (("T1", True, None, NOON), ("T1", False, None, NOW)):
        feedback.write(labels(row), folder / "labels.csv")
        assert "Running stage" in dvc("repro")
        assert "Running stage" not in dvc("repro")


def test_git_keeps_the_folder_and_not_the_decisions() -> None:
    def ignored(name: str) -> bool:
        return (
            subprocess.run(["git", "check-ignore", "-q", f"data/feedback/{name}"], cwd=ROOT, check=False).returncode
            == 0
        )

    assert ignored("labels.csv")
    assert not ignored("README.md")
