"""Fuzzing: whatever arrives, a filing is read or refused with its reason, and nothing else happens.

Inputs tried in one run: 60 for the look before Arelle of each of XML, JSON, zips and addresses, 60 for duplicates, and
with `-m slow` 120 through Arelle; REPERFORM_FUZZED_FILINGS=500 tries as many (about a second each).
"""

import json
import os
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform.ingest import report_packages, taxonomies, xbrl
from reperform.ingest.xbrl_oim import inspect_oim
from reperform.ingest.xbrl_precheck import Refusal, inspect, is_safe_address
from reperform.ingest.xbrl_rows import Fact, Filing, Footnote, Task, agree, presence, without_duplicates
from reperform.simulate.filings import instance
from tests import filing_samples as sample

XML = instance(sample.bank_return()).encode()
PAGE = sample.inline_page(sample.inline_fact("TotalEquity", "1,234")).encode()
JSON = json.dumps(sample.json_report({"e": sample.json_fact("TotalEquity", "1")}), indent=1).encode()
METADATA = json.dumps(sample.json_report(sample.CSV_TABLES, "csv"), indent=1).encode()
PACKAGE = sample.zip_of({"top/reports/a.xhtml": PAGE, "top/META-INF/catalog.xml": "<catalog/>"})
SEEDS = {"f.xbrl": XML, "f.xhtml": PAGE, "f.json": JSON, "meta.json": METADATA, "f.zip": PACKAGE}
# Pieces that mean something to one of the parsers.
PIECES = (
    b"<!DOCTYPE a>",
    b"<![CDATA[",
    b"]]>",
    b"&#0;",
    b"&amp;",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"../",
    b"file:///etc/passwd",
    b"#",
    b"$",
    b"null",
    b"1e999",
    b"-0",
    b"INF",
    b'"',
    b"<",
    b">",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b' xsi:nil="true"',
    b' contextRef=""',
    b"2025-02-30",
    b"xbrli:",
    b"brr:TotalAssets",
    b"iso4217:",
)


def mutated(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The seed with stretches replaced; positions are taken modulo its length."""
    content = seed
    for at, length, piece in edits:
        place = at % (len(content) + 1)
        content = content[:place] + piece + content[place + length :]
    return content


WORD = re.compile(rb"(?<![</\w:.\-])[\w:.\-]+")  # names of elements stay, or most would be no XML


def reworded(seed: bytes, chance: random.Random) -> bytes:
    """The seed with some words replaced by others of its own or by odd ones; most markup stays whole."""
    words = list(WORD.finditer(seed))
    content = bytearray(seed)
    for word in sorted(chance.sample(words, chance.randrange(1, 4)), key=lambda each: -each.start()):
        other = chance.choice(words).group() if chance.random() < 0.7 else chance.choice(PIECES)
        content[word.start() : word.end()] = other
    return bytes(content)


EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 40), st.sampled_from(PIECES) | st.binary(max_size=8)),
    min_size=1,
    max_size=5,
)


def check_answer(look: Callable[[Path], object], name: str, content: bytes) -> None:
    """A look at a file gives a result, or a refusal that explains itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        refusal = None
        try:
            look(path)
        except Refusal as caught:
            refusal = caught
    if refusal is not None:
        assert refusal.rule.startswith("file_")
        assert refusal.problem
        assert refusal.fix


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([XML, PAGE]), EDITS)
def test_xml_is_accepted_or_refused(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    check_answer(inspect, "f.xbrl", mutated(seed, edits))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([JSON, METADATA]), EDITS)
def test_json_is_accepted_or_refused(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    check_answer(inspect_oim, "f.json", mutated(seed, edits))


def _opened(path: Path) -> int:
    with report_packages.opened(path, 1 << 20) as report:
        return len(report.documents)


@settings(max_examples=60, deadline=None)
@given(EDITS)
def test_zips_are_accepted_or_refused(edits: list[tuple[int, int, bytes]]) -> None:
    check_answer(_opened, "f.zip", mutated(PACKAGE, edits))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="./\\%2eE5cCfF:#?ahtp@", max_size=20), st.sampled_from(["", "top", "top/reports"]))
def test_a_safe_address_stays_inside(address: str, folder: str) -> None:
    root = Path("/root/within")
    if is_safe_address(address, folder) and not address.startswith(("http://", "https://")):
        place = (root / folder / address.split("#", maxsplit=1)[0]).resolve()
        assert place.is_relative_to(root)


FACTS = st.builds(
    Fact,
    concept=st.sampled_from(["a:A", "a:B"]),
    period_start=st.none() | st.just(date(2025, 1, 1)),
    period_end=st.sampled_from([None, date(2025, 1, 31)]),
    unit=st.sampled_from([None, "iso4217:EUR"]),
    decimals=st.sampled_from([None, "INF", "0", "-3", "2", "many"]),
    value=st.none() | st.sampled_from(["", "0", "1", "1.004", "1000", "NaN", "inf", "x", "1e5"]),
    dimensions=st.sampled_from(["{}", '{"a:X":"a:M"}']),
    line=st.none() | st.integers(1, 9),
    footnotes=st.lists(st.builds(Footnote, text=st.text(max_size=3)), max_size=2).map(tuple),
)
TASK = Task(Path(), Path(), "f", "e", date(2025, 1, 1), date(2025, 1, 31))


@settings(max_examples=60, deadline=None)
@given(st.lists(FACTS, max_size=12))
def test_one_fact_is_left_of_each_thing_said(facts: list[Fact]) -> None:
    kept, messages = without_duplicates(facts)
    assert [fact.what for fact in kept] == list(dict.fromkeys(fact.what for fact in facts))
    assert {note for fact in kept for note in fact.footnotes} == {note for fact in facts for note in fact.footnotes}
    groups = [[fact for fact in facts if fact.what == each.what] for each in kept]
    assert len(messages) == sum(not agree(group) for group in groups)
    for each, group in zip(kept, groups, strict=True):
        assert replace(each, footnotes=()) in [replace(fact, footnotes=()) for fact in group]
        assert (each.value is None) == all(fact.value is None for fact in group)
    is_there, reason = presence(facts, TASK)
    assert is_there == (reason is None)


def any_mutation(seed: bytes, chance: random.Random) -> bytes:
    """Mostly other words, sometimes broken markup."""
    if chance.random() < 0.8:
        return reworded(seed, chance)
    edits = [(chance.randrange(1 << 20), chance.randrange(20), chance.choice(PIECES)) for _ in range(2)]
    return mutated(seed, edits)


FILINGS = int(os.environ.get("REPERFORM_FUZZED_FILINGS", "120"))


@pytest.mark.slow
def test_many_filings_through_arelle_in_one_process(tmp_path: Path) -> None:
    """Mutations of all five forms; each gives a filing or a refusal, and no folder of this machine shows."""
    chance = random.Random(7)
    cache = taxonomies.gather([], [], tmp_path / "cache")
    folder = tmp_path / "filings"
    folder.mkdir()
    answers: dict[str, int] = {}
    for number in range(FILINGS):
        name = chance.choice(list(SEEDS))
        content = any_mutation(SEEDS[name], chance)
        if name == "f.zip" and chance.random() < 0.8:  # the outside is fuzzed above
            content = sample.zip_of({"top/reports/a.xhtml": any_mutation(PAGE, chance)})
        path = folder / f"{number}-{name}"
        path.write_bytes(content)
        lines = sample.CSV_LINES.encode()
        (folder / "lines.csv").write_bytes(any_mutation(lines, chance) if number % 2 else lines)
        answer = xbrl.read_filing(Task(path, cache, "f", "north", None, date(2025, 1, 31)))
        assert isinstance(answer, Filing | Refusal)
        if isinstance(answer, Refusal):
            assert answer.rule.startswith("file_")
            assert answer.problem
            told = f"{answer.got} {answer.expected} {answer.place}"
        else:
            assert answer.facts
            told = " ".join(text for _, _, _, text, _ in answer.messages)
        assert "Traceback" not in told
        assert str(tmp_path) not in told
        rule = answer.rule if isinstance(answer, Refusal) else "read"
        answers[rule] = answers.get(rule, 0) + 1
        path.unlink()
    assert sum(answers.values()) == FILINGS
    assert answers["read"] > FILINGS // 10, answers  # the mutations reach beyond the first look
    assert len(answers) > 5, answers
