"""Filings that were read before are not read again, and nobody can tell from the tables."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from reperform.ingest import taxonomies, xbrl, xbrl_memory
from reperform.ingest.source import SourceResult
from reperform.ingest.xbrl_precheck import Refusal
from reperform.ingest.xbrl_rows import Filing, Task
from tests import filing_samples as sample

PLACE = Path(".cache", "ingest", "xbrl", "filings")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the filings that Arelle is asked to read."""
    asked: list[str] = []
    read_filing = xbrl.read_filing

    def noted(task: Task) -> Filing | Refusal:
        asked.append(task.path.name)
        return read_filing(task)

    monkeypatch.setattr(xbrl, "read_filing", noted)
    return asked


def same(first: SourceResult, second: SourceResult) -> bool:
    tables = all(first.tables[name].equals(second.tables[name]) for name in first.tables)
    return tables and first.quarantine.equals(second.quarantine) and first.files == second.files


def test_a_second_run_reads_nothing_and_gives_the_same(project: Path, reads: list[str]) -> None:
    sample.write([sample.bank_return(), sample.bank_return(month=sample.FEBRUARY)], project)
    first = sample.read(project)
    assert len(reads) == 2
    assert same(first, sample.read(project))
    assert len(reads) == 2
    assert len(list((project / PLACE).iterdir())) == 2


def test_what_was_kept_may_be_thrown_away_or_damaged(project: Path, reads: list[str]) -> None:
    sample.write([sample.bank_return()], project)
    first = sample.read(project)
    (kept,) = (project / PLACE).iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", b"text", whole[:-20], xbrl_memory.gzip.compress(b"0\n{}")):
        kept.write_bytes(damaged)
        assert same(first, sample.read(project))
        assert kept.read_bytes() == whole
    kept.unlink()
    assert same(first, sample.read(project))
    assert len(reads) == 6


def test_only_what_changed_is_read_again_and_what_is_gone_is_forgotten(project: Path, reads: list[str]) -> None:
    january, february = sample.bank_return(), sample.bank_return(month=sample.FEBRUARY)
    sample.write([january, february], project)
    sample.read(project)
    reads.clear()
    sample.write([january, february.changed({("IsRestatement", "month"): True})], project)
    path = project / "north" / "filings" / "north-2025-02.xbrl"
    path.write_text(path.read_text() + "<!-- sent again -->")
    sample.read(project)
    assert reads == ["north-2025-02.xbrl"]
    assert len(list((project / PLACE).iterdir())) == 2


def test_a_refused_filing_is_looked_at_each_time(project: Path) -> None:
    path = sample.write_one(project, "r.xbrl", "<broken")
    assert sample.read(project, files="north/filings/*").unreadable[0].rule == "file_malformed"
    assert not list((project / PLACE).glob("*"))
    path.unlink()
    sample.write([sample.bank_return()], project)
    assert sample.read(project).unreadable == ()


def test_the_key_changes_with_all_that_could_change_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "f.xbrl"
    file.write_text("a")
    task = Task(file, tmp_path / "digest", "f", "e", None, date(2025, 1, 31))
    others = [
        replace(task, cache=tmp_path / "other"),
        replace(task, filing_id="g"),
        replace(task, entity_id="x"),
        replace(task, period_end=date(2025, 2, 28)),
        replace(task, required=("a:B",)),
        replace(task, required_when=(("a:B", "a:C"),)),
    ]
    keys = {xbrl_memory.key_of(each, [file]) for each in (task, *others)}
    file.write_text("b")
    keys.add(xbrl_memory.key_of(task, [file]))
    assert len(keys) == len(others) + 2


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    filing = Filing(
        facts_read=3,
        refused=[(None, "a:B", None, "<a/>", "rule")],
        facts=[("f", "a:B", None, date(2025, 1, 31), None, None, "ü\n", False, "{}", 1, None)],
        messages=[("f", "code", "info", "text", None)],
        checks=[("f", "calculation", "a", True, False, 0.1 + 0.2, 1e300, -0.0, None)],
    )
    memory = xbrl_memory.Memory(tmp_path)
    assert memory.recall("k") is None
    memory.keep("k", filing)
    assert memory.recall("k") == filing
    memory.keep_only({"other"})
    assert memory.recall("k") is None


def test_taxonomies_that_no_source_uses_are_removed(tmp_path: Path) -> None:
    cached = tmp_path / "cached" / "http" / "a.example"
    cached.mkdir(parents=True)
    below = tmp_path / "below"
    folders = []
    for number in range(3):
        (cached / "a.xsd").write_text(f"<a n='{number}'/>")
        folders.append(taxonomies.gather([], [tmp_path / "cached"], below, "one"))
    other = taxonomies.gather([], [], below, "two")
    assert sorted(path for path in below.iterdir() if path.is_dir()) == sorted([folders[-1], other])
    (below / taxonomies.USED).write_text("damaged")
    assert taxonomies.gather([], [], below, "two") == other
    assert [path for path in below.iterdir() if path.is_dir()] == [other]
