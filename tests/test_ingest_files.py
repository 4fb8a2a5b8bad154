"""Archives, Excel and hostile files: read, or refused with the reason and within bounded memory."""

import gzip
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reperform.ingest import delimited, table
from reperform.ingest.column_map import Format
from reperform.ingest.parts import Store
from reperform.ingest.source import SourceResult, UnreadableFileError
from tests.test_ingest_table import DEMO, HEADERS, ROWS, read, with_row

TEXT = "\n".join([HEADERS["northbank"], *ROWS["northbank"], ""]).encode()


def of(folder: Path, files: str, **form: Any) -> SourceResult:
    return read(folder, "northbank", files=files, format=form)


def ids(result: SourceResult) -> list[str]:
    return result.tables["transactions"]["transaction_id"].to_list()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# --- archives ---


def test_every_packing_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TEXT)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TEXT))
    (tmp_path / "a.csv.zst").write_bytes(pa.compress(TEXT, codec="zstd", asbytes=True))
    zipped(tmp_path / "a.zip", {"a.csv": TEXT})
    expected = of(tmp_path, "a.csv").tables["transactions"].drop("source_file", "__file")
    for name in ("a.csv.gz", "a.csv.zst", "a.zip"):
        got = of(tmp_path, name)
        assert got.unreadable == ()
        assert got.tables["transactions"].drop("source_file", "__file").equals(expected)


def test_the_members_of_a_zip_are_files_of_their_own(tmp_path: Path) -> None:
    second = "\n".join([HEADERS["northbank"], "cut,short", with_row("northbank", id="T9"), ""]).encode()
    zipped(tmp_path / "month.zip", {"b/2.csv": second, "b/1.csv": TEXT, "b/": b""})
    got = of(tmp_path, "month.zip")
    rows = got.tables["transactions"]
    assert rows.select("transaction_id", "source_file", "source_record").rows() == [
        ("T1", "month.zip/b/1.csv", 1),
        ("T2", "month.zip/b/1.csv", 2),
        ("T9", "month.zip/b/2.csv", 2),
    ]
    assert got.quarantine.select("source_file", "source_record").rows() == [("month.zip/b/2.csv", 1)]
    assert [(file.path, file.records) for file in got.files] == [("month.zip", 4)]


def test_one_bad_member_refuses_the_whole_zip(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"1.csv": TEXT, "2.csv": TEXT[:-9]})
    got = of(tmp_path, "a.zip")
    assert [(error.path, error.rule) for error in got.unreadable] == [("a.zip/2.csv", "file_cut_off")]
    assert ids(got) == []


@pytest.mark.parametrize("name", ["../evil.csv", "/etc/evil.csv", "a/../../evil.csv", "..\\evil.csv", "C:evil.csv"])
def test_a_member_that_leads_out_of_its_archive_is_refused(name: str, tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"1.csv": TEXT, name: TEXT})
    (error,) = of(tmp_path, "a.zip").unreadable
    assert error.rule == "file_unsafe_archive"
    assert "evil.csv" in str(error)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"1.csv": TEXT})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag in the member's and the archive's header
        content[content.index(mark) + offset] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert [error.rule for error in of(tmp_path, "a.zip").unreadable] == ["file_encrypted"]


@pytest.mark.parametrize("packing", ["gz", "zst", "zip"])
def test_an_archive_bomb_is_refused_by_its_ratio_and_by_its_size(packing: str, tmp_path: Path) -> None:
    bomb = TEXT + (ROWS["northbank"][1] + "\n").encode() * 50_000  # 4 MB that shrink to some kB
    path = tmp_path / f"a.{packing}"
    if packing == "zip":
        zipped(path, {"1.csv": bomb})
    else:
        path.write_bytes(gzip.compress(bomb) if packing == "gz" else pa.compress(bomb, codec="zstd", asbytes=True))
    for limit in ({"max_unpack_ratio": 50}, {"max_unpack_ratio": 10**6, "max_unpacked_bytes": 1_000_000}):
        (error,) = of(tmp_path, path.name, **limit).unreadable
        assert error.rule == "file_archive_bomb"
        assert "format.max_unpack_ratio" in str(error)
    assert len(ids(of(tmp_path, path.name, max_unpack_ratio=10**6))) == 50_002


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.zip"])
@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:40], lambda c: c[:30] + b"\xff" * 9 + c[39:]])
def test_a_damaged_archive_is_refused(name: str, damage: Any, tmp_path: Path) -> None:
    if name.endswith("zip"):
        zipped(tmp_path / name, {"a.csv": TEXT})
        content = (tmp_path / name).read_bytes()
    else:
        content = gzip.compress(TEXT) if name.endswith("gz") else pa.compress(TEXT, codec="zstd", asbytes=True)
    (tmp_path / name).write_bytes(damage(content))
    (error,) = of(tmp_path, name).unreadable
    assert error.rule in ("file_cut_off", "file_unsafe_archive", "file_unreadable")
    assert "what to do" in str(error)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst", "a.zip"])
def test_a_file_that_is_no_archive_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TEXT)
    assert [error.rule for error in of(tmp_path, name).unreadable] == ["file_compression"]


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_bytes(TEXT)
    opened = Path.open

    def forbidden(path: Path, *rest: Any, **named: Any) -> Any:
        if path.name == "a.csv" and not named and rest == ("rb",):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **named)

    monkeypatch.setattr("reperform.ingest.parts.sha256_of", lambda _: "digest")
    monkeypatch.setattr(Path, "open", forbidden)
    (error,) = of(tmp_path, "a.csv").unreadable
    assert (error.rule, error.got) == ("file_unreadable", "[Errno 13] Permission denied")


# --- encodings ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
@pytest.mark.parametrize("piece_bytes", [1, 3, 2**20])
def test_every_encoding_is_read_in_pieces_of_any_size(encoding: str, piece_bytes: int, tmp_path: Path) -> None:
    text = "\n".join([HEADERS["northbank"], with_row("northbank", channel="Überweisung é"), ""])
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "a.csv").write_bytes((mark + text).encode(encoding))
    spec = table.table_source("n", DEMO["northbank"] | {"files": "a.csv", "format": {"encoding": encoding}})
    got = table.in_memory(table.read_all({"n": spec}, tmp_path, Store(tmp_path / "parts", piece_bytes))["n"])
    assert got.tables["transactions"]["channel"].to_list() == ["Überweisung é"]


def test_a_wrong_byte_is_told_with_its_place(tmp_path: Path) -> None:
    content = TEXT.replace(b"card", b"caf\xe9")
    (tmp_path / "a.csv").write_bytes(content)
    (error,) = of(tmp_path, "a.csv").unreadable
    assert error.got.startswith(f"byte {content.index(0xE9)} (e9")


# --- Excel ---


def excel(path: Path, sheets: dict[str, list[list[Any]]]) -> None:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)


def test_excel_is_read_by_the_same_map(tmp_path: Path) -> None:
    texts = [line.split(",") for line in (HEADERS["northbank"], *ROWS["northbank"])]
    typed = [[float(f) if f.replace(".", "").lstrip("-").isdigit() else f or None for f in row] for row in texts]
    bad = [*typed[1][:4], "much", *typed[1][5:]]
    excel(tmp_path / "a.xlsx", {"notes": [["nothing"]], "rows": [*typed, bad]})
    (tmp_path / "a.csv").write_bytes(TEXT)
    got = of(tmp_path, "a.xlsx", sheet="rows")
    expected = of(tmp_path, "a.csv").tables["transactions"]
    assert got.tables["transactions"].drop("source_file", "__file").equals(expected.drop("source_file", "__file"))
    assert got.quarantine.select("rule", "column", "value", "source_record").rows() == [
        ("bad_number", "amount", "much", 3)
    ]


def test_numbers_of_excel_that_are_identifiers_carry_no_decimals(tmp_path: Path) -> None:
    rows = [HEADERS["northbank"].split(","), [4711, 12, *ROWS["northbank"][0].split(",")[2:]]]
    excel(tmp_path / "a.xlsx", {"rows": rows})
    assert of(tmp_path, "a.xlsx").tables["transactions"].select("transaction_id", "account_id").rows() == [
        ("4711", "12")
    ]


def test_an_excel_file_that_is_none_or_lacks_the_sheet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK and then nothing")
    excel(tmp_path / "b.xlsx", {"rows": [["id"]]})
    zipped(tmp_path / "c.xlsx", {"bomb.xml": b" " * 5_000_000})
    got = of(tmp_path, "*.xlsx", sheet="other")
    assert [error.rule for error in got.unreadable] == ["file_malformed", "file_malformed", "file_archive_bomb"]


# --- hostile files ---


BIG_FIELD = """
import resource, sys
from pathlib import Path
from reperform.ingest import table
from reperform.ingest.parts import Store
from tests.test_ingest_table import DEMO
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path(sys.argv[1])
spec = table.table_source("n", DEMO["northbank"] | {"files": "big.csv*"})
got = table.read_all({"n": spec}, folder, Store(folder / "parts"))["n"]
print(*[error.rule for error in got.unreadable], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_field_of_200_mb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "big.csv").open("wb") as plain, gzip.open(tmp_path / "big.csv.gz", "wb", 1) as packed:
        for stream in (plain, packed):
            stream.write(TEXT + b'T3,"')
            for _ in range(200):
                stream.write(b"a\n" * 2**19)
            stream.write(b'",rest\n')
    root = Path(__file__).parent.parent
    got = subprocess.run(
        [sys.executable, "-c", BIG_FIELD, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True
    )
    first, second, grown_mb = got.stdout.split()
    assert first == "file_record_too_long"
    assert second in ("file_record_too_long", "file_archive_bomb")
    assert int(grown_mb) < 800


def test_the_longest_record_is_the_same_whatever_the_pieces(tmp_path: Path) -> None:
    for length, refused in ((400, 0), (401, 1)):
        row = with_row("northbank", channel="x")
        row = row.replace(",x,", f",{'x' * (length - len(row) + 1)},")
        (tmp_path / "a.csv").write_text("\n".join([HEADERS["northbank"], *ROWS["northbank"], row, ""]))
        spec = table.table_source("n", DEMO["northbank"] | {"files": "a.csv", "format": {"max_record_bytes": 400}})
        for n in (16, 100, 2**20):
            got = table.read_all({"n": spec}, tmp_path, Store(tmp_path / f"{length}-{n}", n))["n"]
            assert len(got.unreadable) == refused
            assert all("record 3" in str(error) for error in got.unreadable)


@pytest.mark.parametrize(
    "name", ["$(touch x);'`.csv", "two\nlines.csv", "ümläut 文.csv", "-rf *.csv", b"no-\xff-utf8.csv"]
)
def test_any_file_name_is_only_a_name(name: str | bytes, tmp_path: Path) -> None:
    path = Path(os.fsdecode(name))
    (tmp_path / path).write_bytes(TEXT.replace(b"T2,", b"T2;"))
    got = of(tmp_path, "*.csv")
    assert ids(got) == ["T1"]
    (where,) = got.quarantine["source_file"].to_list()
    assert "\n" not in where
    assert where.encode()
    assert sorted(tmp_path.iterdir()) == [tmp_path / path]
    (tmp_path / path).write_bytes(b"")
    assert "\nlines" not in str(of(tmp_path, "*.csv").unreadable[0])


def test_records_with_nul_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(TEXT.replace(b"T1,", b"T\x001,"))
    got = of(tmp_path, "a.csv")
    assert ids(got) == ["T2"]
    assert got.quarantine["rule"].to_list() == [delimited.NUL_BYTE]
    assert got.quarantine["row"][0].startswith("T\u24001")


def fuzz(content: bytes, form: Format, block: int) -> str:
    """Read any bytes: they are refused as a file, or every record is told. Gives the rule, or nothing."""
    blocks = [content[start : start + block] for start in range(0, len(content), block)]
    numbers: list[int] = []
    try:
        for piece in delimited.pieces(blocks, form, lambda header: header, "a.csv"):
            numbers += [*piece.fields["__record"], *piece.refused["__record"]]
            assert piece.fields.height + piece.refused.height == piece.count
            assert piece.texts(piece.fields["__record"]).len() == piece.fields.height
    except UnreadableFileError as error:
        return error.rule if "what to do" in str(error) else "an error that says nothing"
    text = content.removeprefix(delimited.BYTE_ORDER_MARK).decode()
    assert len(numbers) == len(set(numbers))
    if not form.quote or form.quote not in text:  # without quotes a record is a line
        lines = text.removesuffix("\n").split("\n")[1:]
        assert sorted(numbers) == [n for n, line in enumerate(lines, 1) if line.removesuffix("\r")]
    return ""


FORMS = st.builds(
    Format,
    delimiter=st.sampled_from([",", ";", "\t", "|", " "]),
    quote=st.sampled_from(['"', "'", ""]),
    final_newline=st.booleans(),
    repeated_names=st.just("number"),
    max_record_bytes=st.sampled_from([30, 2**24]),
)
CONTENT = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet="ab1,;|\t \"'\n\r\0é\ufeff", max_size=80).map(str.encode),
    st.lists(
        st.sampled_from([b"a,b", b'"a","b"', b"1,2", b'"', b",", b"\n", b"\r\n", b"\xff", b"\0", b'""', b"a;b"])
    ).map(b"".join),
)


@settings(max_examples=200, deadline=None)
@given(content=CONTENT, form=FORMS, block=st.integers(1, 90))
def test_any_bytes_are_read_or_refused(content: bytes, form: Format, block: int) -> None:
    """200 inputs in every run of the suite: no stack trace, and every record comes out or is refused."""
    assert fuzz(content, form, block) != "an error that says nothing"


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=CONTENT, form=FORMS, block=st.integers(1, 90))
def test_any_bytes_are_read_or_refused_at_length(content: bytes, form: Format, block: int) -> None:
    """5,000 inputs: as above, and pieces of any size give what one piece gives."""
    assert bool(fuzz(content, form, block)) == bool(fuzz(content, form, len(content) or 1))
