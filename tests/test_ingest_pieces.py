"""Reading in pieces gives what reading at once gives; what was read before is not read again, and it never shows."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import ingest, params, tables
from reperform.errors import ReperformError
from reperform.ingest import delimited, repeats, table, values
from reperform.ingest.column_map import Format, Times, table_source
from reperform.ingest.parts import Store
from reperform.ingest.source import UnreadableFileError
from tests.test_ingest import outputs, the_receipt, write_params
from tests.test_ingest import world as world  # noqa: PLC0414  # a fixture that this module uses too
from tests.test_ingest_table import DEMO, HEADERS, ROWS, delivered, read, with_row

HANDBOOK_LINES = [
    "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD,TX_FRAUD_SCENARIO",
    "0,2018-04-01T00:00:31.000000,596,3156,57.16,0,0",
    "1,2018-04-01T00:02:10.000000,596,3412,281.51,1,1",
    "2,2018-04-02T00:02:10.000000,597,3412,much,1,1",
]


def records(content: bytes, form: Format, block: int) -> tuple[str, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """What a text gives in blocks of a size: the rule that refuses it, its fields with record numbers, and refusals."""
    blocks = [content[start : start + block] for start in range(0, len(content), block)]
    fields, refused = [], []
    try:
        for piece in delimited.pieces(blocks, form, lambda header: header, "a.csv"):
            texts = piece.texts(piece.fields["__record"]).to_list()
            fields += [(*row, text) for row, text in zip(piece.fields.rows(), texts, strict=True)]
            refused += piece.refused.rows()
    except UnreadableFileError as error:
        return error.rule, [], []
    return "", fields, refused


LINES = st.lists(
    st.one_of(
        st.text(alphabet='a", é\r', max_size=8),
        st.sampled_from(
            ["1,2", '"1","2"', '"1","a\nb"', '"x,y",2', '"a""b",c', "1,2\r", "1,2,3", "1", '"open', " 1 , 2 "]
        ),
    ),
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(lines=LINES, block=st.integers(1, 40), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_the_size_of_pieces_changes_nothing(lines: list[str], block: int, end: str, last: bool) -> None:
    content = (end.join(["x,y", *lines]) + (end if last else "")).encode()
    assert records(content, Format(), block) == records(content, Format(), len(content))


@settings(max_examples=150, deadline=None)
@given(lines=LINES)
def test_the_quick_ways_give_what_the_careful_way_gives(lines: list[str]) -> None:
    content = "\n".join(["x,y", *lines, ""]).encode()
    quick = records(content, Format(), len(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_regular_records", lambda *_: None)
        between = records(content, Format(), len(content))
        patch.setattr(delimited, "_divided", lambda *_: None)
        assert quick == between == records(content, Format(), len(content))


@settings(max_examples=50, deadline=None)
@given(lines=LINES, few=st.integers(1, 4))
def test_a_few_odd_records_leave_the_others_to_the_quick_way(lines: list[str], few: int) -> None:
    many = [one for n in range(30) for one in ("1,2", '"1", 2', "\"a\nb\",''", *lines[n : n + 1][:few])]
    content = "\n".join(["x,y", *many, ""]).encode()
    quick = records(content, Format(), len(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_regular_records", lambda *_: None)
        patch.setattr(delimited, "_divided", lambda *_: None)
        assert quick == records(content, Format(), len(content))


def test_only_odd_records_leave_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{n},{n}" for n in range(1, 101)]
    lines[41], lines[77] = "42", "78,78,78"
    monkeypatch.setattr(delimited, "_joined", None)  # the careful way would fail
    text, fields, refused = records("\n".join(["x,y", *lines, ""]).encode(), Format(), 10_000)
    assert (text, len(fields)) == ("", 98)
    assert fields[41] == (43, "43", "43", "43,43")
    expected = [(42, "42", "wrong_number_of_fields", "1 instead of 2")]
    assert refused == [*expected, (78, "78,78,78", "wrong_number_of_fields", "3 instead of 2")]


def test_a_short_record_and_a_long_one_do_not_make_up_for_each_other() -> None:
    for bad in (["1,2,3", "1"], ["1", "1,2,3"], ["1,2", "1", "1,2,3"]):
        content = "\n".join(["x,y", *bad, ""]).encode()
        assert len(records(content, Format(), 1000)[2]) == 2


@pytest.mark.parametrize("name", HEADERS)
def test_tiny_pieces_give_the_same_tables(name: str, tmp_path: Path) -> None:
    bad = ["a,b;c\td|e", "", ROWS[name][0].replace("T1", "", 1)]
    delivered(tmp_path / "raw", name, [*ROWS[name], *bad, *ROWS[name]])
    specs = {name: table_source(name, DEMO[name])}
    whole, *others = [
        table.in_memory(table.read_all(specs, tmp_path / "raw", Store(tmp_path / str(size), size))[name])
        for size in (2**26, 1, 7, 100, 333)
    ]
    assert whole.quarantine.height == 2
    for other in others:
        assert other.quarantine.equals(whole.quarantine)
        assert other.tables["transactions"].equals(whole.tables["transactions"])
        assert (other.files, other.left_out) == (whole.files, whole.left_out)


def test_one_row_per_value_holds_over_pieces_and_files(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"t{day}.csv").write_text("\n".join([HANDBOOK_LINES[0], *HANDBOOK_LINES[1:] * day, ""]))
    source = yaml.safe_load((Path(__file__).parent.parent / "conf/ingest/handbook.yaml").read_text())["sources"]
    spec = table_source("accounts", source["accounts"] | {"files": "t*.csv"})
    got = [table.read_all({"a": spec}, tmp_path, Store(tmp_path / str(n), n))["a"] for n in (2**20, 10)]
    assert [one.tables["accounts"]["account_id"].to_list() for one in got] == [["C596", "C597"]] * 2
    assert [dict(one.left_out) for one in got] == [{table.REPEATED: 7}] * 2


def test_several_sources_of_one_file_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "transactions.csv.gz").write_bytes(b"")
    path = tmp_path / "transactions.csv"
    path.write_text("\n".join([*HANDBOOK_LINES, ""]))
    source = yaml.safe_load((Path(__file__).parent.parent / "conf/ingest/handbook.yaml").read_text())["sources"]
    specs = {name: table_source(name, one | {"files": "transactions.csv"}) for name, one in source.items()}
    opened = counted_readings(monkeypatch)
    together = table.read_all(specs, tmp_path, Store(tmp_path / "parts"))
    assert opened == ["transactions.csv"]
    for name, result in together.items():
        alone = table.read(name, source[name] | {"files": "transactions.csv"}, tmp_path, processes=1)
        for target, rows in table.in_memory(result).tables.items():
            assert rows.equals(alone.tables[target])
    assert together["transactions"].refused_parts
    assert table.in_memory(together["transactions"]).quarantine["rule"].to_list() == [values.BAD_NUMBER]


def test_a_source_whose_column_is_missing_leaves_the_others_of_its_file_alone(tmp_path: Path) -> None:
    delivered(tmp_path, "northbank", ROWS["northbank"])
    wants_more = DEMO["northbank"] | {"columns": DEMO["northbank"]["columns"] | {"channel": "chanel"}}
    specs = {"good": table_source("good", DEMO["northbank"]), "bad": table_source("bad", wants_more)}
    got = table.read_all(specs, tmp_path, Store(tmp_path / "parts"))
    assert [error.rule for error in got["bad"].unreadable] == ["file_missing_column"]
    assert got["good"].unreadable == ()
    assert table.in_memory(got["good"]).tables["transactions"].height == 2


def counted_readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are parsed from now on."""
    opened: list[str] = []
    original = table.file_pieces

    def counting(path: Path, *rest: Any) -> Any:
        if rest[-1] != table._BEGINNING_BYTES:
            opened.append(path.name)
        return original(path, *rest)

    monkeypatch.setattr(table, "file_pieces", counting)
    return opened


def run(project: Path) -> dict[str, Any]:
    got = ingest.run(params.load(params.IngestParams))
    assert got == the_receipt(project)
    return got


def test_outputs_do_not_depend_on_pieces_or_on_what_was_read_before(world: Path) -> None:
    raw = world / "data" / "simulate" / "raw"
    more = [with_row("northbank", id=f"T{n}") for n in range(3, 40)]
    delivered(raw, "northbank", [*ROWS["northbank"], "short", *more, ROWS["northbank"][0]])
    run(world)
    expected = outputs(world)
    run(world)
    assert outputs(world) == expected
    for piece_bytes in (64, 1000):
        write_params(world, piece_bytes=piece_bytes)
        for path in sorted((world / ".cache").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        run(world)
        assert outputs(world) == expected


def test_a_new_file_is_read_without_reading_the_old_ones(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world)
    raw = world / "data" / "simulate" / "raw"
    path = raw / "northbank" / "transactions-2025-05.csv"
    path.write_text("\n".join([HEADERS["northbank"], with_row("northbank", id="T9"), ""]))
    opened = counted_readings(monkeypatch)
    got = run(world)
    assert opened == ["transactions-2025-05.csv"]
    assert got["sources"]["northbank"]["rows_out"] == 3


def test_other_content_under_an_old_name_is_read_again(world: Path) -> None:
    run(world)
    delivered(world / "data" / "simulate" / "raw", "northbank", [with_row("northbank", id="T8")])
    assert run(world)["sources"]["northbank"]["rows_out"] == 1


def folders(world: Path) -> set[str]:
    return {path.name for path in (world / ".cache" / "ingest" / "tables").iterdir() if path.is_dir()}


def test_parts_of_another_experiment_are_kept_as_far_as_there_is_room(world: Path) -> None:
    run(world)
    before = folders(world)
    raw = world / "data" / "simulate" / "raw"
    path = raw / "northbank" / "transactions-2025-04.csv"
    first = path.read_bytes()
    delivered(raw, "northbank", [with_row("northbank", id="T8")])
    run(world)
    assert before < folders(world)
    path.write_bytes(first)
    write_params(world, unused_cache_bytes=0)
    run(world)
    assert folders(world) == before


def test_switching_between_experiments_reads_no_file_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world)
    (world / "other").mkdir()
    sources = {"northbank": DEMO["northbank"]}
    delivered(world / "other", "northbank", [with_row("northbank", id="T8")])
    other = params.build(
        params.IngestParams,
        {"raw": "other", "sources": sources, "on_unreadable_file": "stop", "processes": 1},
        where="other",
    )
    ingest.run(other)
    opened = counted_readings(monkeypatch)
    run(world)
    ingest.run(other)
    assert opened == []


def test_of_parts_that_were_not_used_the_latest_are_kept(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    for name in names:
        store = Store(tmp_path / "parts")
        with store.making(name) as folder:
            (folder / "part").write_bytes(b"0" * 100)
        store.used.add(name)
        store.close()
    store = Store(tmp_path / "parts", unused_bytes=150)
    store.used.add("a")
    store.close()
    assert {path.name for path in (tmp_path / "parts").iterdir() if path.is_dir()} == {"a", "c"}


def test_parts_that_other_code_made_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "parts")
    with store.making("a") as folder:
        (folder / "part").write_bytes(b"0")
    store.used.add("a")
    store.close()
    monkeypatch.setattr("reperform.ingest.parts.code_digest", lambda: "other")
    Store(tmp_path / "parts").close()
    assert not (tmp_path / "parts" / "a").exists()


def test_an_unchanged_file_is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = delivered(tmp_path, "northbank", ROWS["northbank"])
    os.utime(path, (1_700_000_000, 1_700_000_000))
    store = Store(tmp_path / "parts")
    first = store.digest(path)
    store.close()
    monkeypatch.setattr("reperform.ingest.parts.sha256_of", lambda _: "hashed")
    again = Store(tmp_path / "parts")
    assert again.digest(path) == first
    path.write_bytes(path.read_bytes() + b"\n")
    assert again.digest(path) == "hashed"


def test_the_same_file_and_the_same_rows_again_change_nothing_and_are_told(world: Path) -> None:
    run(world)
    before = tables.read_table("ingest", "transactions")
    path = world / "data" / "simulate" / "raw" / "northbank" / "transactions-2025-04.csv"
    path.with_name("transactions-2025-05.csv").write_bytes(path.read_bytes())
    path.with_name("transactions-2025-06.csv").write_bytes(path.read_bytes().replace(b"card", b"atm"))
    got = run(world)["sources"]["northbank"]
    assert tables.read_table("ingest", "transactions").equals(before)
    assert (got["files_seen_before"], got["quarantined"]) == (1, {"duplicate_id": 2})
    assert [file.get("duplicate_rows", 0) for file in got["files"]] == [0, 0, 2]


def test_bad_beginnings_stop_before_anything_is_parsed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = world / "data" / "simulate" / "raw"
    (raw / "northbank" / "transactions-2025-05.csv").write_text("id,account\n")
    (raw / "summit" / "transactions-2025-04.csv").write_bytes(b"")
    opened = counted_readings(monkeypatch)
    with pytest.raises(ReperformError, match=r"no column[\s\S]*also unreadable: summit/transactions-2025-04.csv"):
        ingest.run(params.load(params.IngestParams))
    assert opened == []


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=6),
    at_once=st.integers(1, 8),
    collide=st.booleans(),
)
def test_repeated_identifiers_are_found_whatever_the_chunks_and_the_hashes(
    chunks: list[list[str]], at_once: int, collide: bool
) -> None:
    series = [pl.Series("id", chunk, dtype=pl.String) for chunk in chunks]
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # every identifier has one of two hashes: the texts must decide
            patch.setattr(
                repeats, "_hashes", lambda chunk: np.array([ord(text) % 2 for text in chunk], dtype=np.uint64)
            )
        got = repeats.repeated_rows(lambda: iter(series), at_once)
    seen: set[str] = set()
    expected: dict[int, list[int]] = {}
    for number, chunk in enumerate(chunks):
        for place, text in enumerate(chunk):
            if text in seen:
                expected.setdefault(number, []).append(place)
            seen.add(text)
    assert {number: places.tolist() for number, places in got.items()} == expected


MOMENTS = st.one_of(
    st.datetimes().map(lambda at: at.isoformat()),
    st.datetimes().map(lambda at: at.replace(microsecond=0).isoformat()),
    st.sampled_from(["2025-03-30T02:30:00", "2025-10-26T02:30:00", "2025-1-1T0:0:0", "2025-02-30T00:00:00", "", "x"]),
    st.text(alphabet="0123456789-T: .Z+", max_size=22),
)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.tuples(MOMENTS, st.sampled_from(["", "Z", "+01:00"])), min_size=1, max_size=4),
    zone=st.sampled_from([None, "UTC", "Europe/Berlin"]),
)
def test_quick_moments_are_never_other_moments(texts: list[tuple[str, str]], zone: str | None) -> None:
    frame = pl.DataFrame({"a": ["".join(text) for text in texts]})
    times = Times(time_zone=zone)
    quick = values.quick_time(frame["a"], times, 1.5)
    if quick is not None:
        both = frame.select(quick=quick, exact=values.as_time(pl.col("a"), times, 1.5).value)
        assert both.filter(pl.col("quick").is_not_null() & pl.col("quick").ne_missing(pl.col("exact"))).is_empty()


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(alphabet="0123456789.+-eE_ infaNx", max_size=9), st.text(max_size=5)))
def test_a_plain_number_is_what_its_pattern_says(text: str) -> None:
    frame = pl.DataFrame({"a": [text]})
    got = frame.select(values.as_number(pl.col("a"), Format()).value).item()
    matches = frame.select(pl.col("a").str.contains(values._PLAIN_NUMBER)).item()
    assert (got is not None) == (matches and np.isfinite(float(text)))


def test_appended_frames_give_the_same_bytes_however_they_are_cut(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": range(1000), "b": [str(n % 7) for n in range(1000)]})
    digests = set()
    for rows in (1000, 333, 1):
        target = tmp_path / f"{rows}.parquet"
        with tables.appending(target, frame.schema) as append:
            for start in range(0, frame.height, rows):
                append(frame[start : start + rows])
        assert pl.read_parquet(target).equals(frame)
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_writer_that_fails_says_so_where_the_frames_come_from(tmp_path: Path) -> None:
    def write() -> None:
        with tables.appending(tmp_path, {"a": pl.Int64}) as append:  # a folder is no file
            for _ in range(50):
                append(pl.DataFrame({"a": [1]}))

    with pytest.raises((OSError, pl.exceptions.PolarsError)):
        write()


def test_the_state_of_the_cache_is_read_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "state.json").write_text("{ broken")
    delivered(tmp_path, "northbank", ROWS["northbank"])
    store = Store(tmp_path / "parts")
    spec = table_source("northbank", DEMO["northbank"])
    assert table.in_memory(table.read_all({"n": spec}, tmp_path, store)["n"]).tables["transactions"].height == 2
    store.close()
    assert isinstance(json.loads((tmp_path / "parts" / "state.json").read_text()), dict)
    assert read(tmp_path, "northbank").tables["transactions"].height == 2
