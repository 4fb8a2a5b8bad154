"""The beginning of a raw file, and no more: at most a few megabytes are read, whatever the file claims to be."""

import codecs
import glob
import gzip
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from reperform.errors import ReperformError

MOST_BYTES = 4 * 1024 * 1024
PARQUET, EXCEL, XML, TEXT = "parquet", "excel", "xml", "text"
_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_NUL_SHARE = 0.2  # of bytes; Western text in UTF-16 has a half
_C1 = range(0x80, 0xA0)  # control characters in Latin-1, letters and quotation marks in Windows-1252


@dataclass(frozen=True)
class Head:
    """The first bytes of a file, decompressed.

    Args:
        content: the bytes.
        is_whole: whether there are no more.
        compression: `none`, `gzip`, `zip` or `zstd`.
        kind: `parquet`, `excel`, `xml` or `text`.
    """

    content: bytes
    is_whole: bool
    compression: str
    kind: str


def head(path: Path, most: int = MOST_BYTES) -> Head:
    """The beginning of a file.

    Args:
        path: the file.
        most: how many bytes to read after decompression; an archive that unpacks to more is never unpacked further.

    Raises:
        ReperformError: for no file, an empty one, or a broken archive.
    """
    try:
        with path.open("rb") as stream:
            first = stream.read(8)
        compression = _compression(path, first)
        content = _unpacked(path, compression, most + 1)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ReperformError(
            "The file cannot be read.",
            expected="a readable file with rows, plain or as gzip, zip or zstd",
            got=str(error) or type(error).__name__,
            where=str(path),
            fix="check the path, the rights on the file, and whether it has arrived whole",
        ) from error
    if not content.strip(b"\x00\r\n\t ") or not content:
        raise ReperformError("The file is empty.", expected="rows", got="none", where=str(path), fix="ask the sender")
    return Head(content[:most], len(content) <= most, compression, _kind(content, first))


def _compression(path: Path, first: bytes) -> str:
    if first.startswith(_GZIP):
        return "gzip"
    if first.startswith(_ZSTD):
        return "zstd"
    return "zip" if first.startswith(_ZIP) and not is_excel(path) else "none"


def is_excel(path: Path) -> bool:
    """Whether a zip archive is an Excel workbook."""
    with path.open("rb") as stream:
        first = stream.read(4)
    if first != _ZIP:
        return first == _OLD_EXCEL
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("xl/") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _unpacked(path: Path, compression: str, most: int) -> bytes:
    if compression == "gzip":
        with gzip.open(path) as stream:
            return stream.read(most)
    if compression == "zstd":
        import pyarrow as pa  # noqa: PLC0415  # only for this kind of archive

        with pa.input_stream(str(path), compression="zstd") as stream:
            return bytes(stream.read(most))
    if compression == "zip":
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
            if not members:
                return b""
            with archive.open(members[0]) as member:
                return member.read(most)
    with path.open("rb") as stream:
        return stream.read(most)


def _kind(content: bytes, first: bytes) -> str:
    if first.startswith(b"PAR1"):
        return PARQUET
    if first.startswith((_ZIP, _OLD_EXCEL)) and content.startswith((_ZIP, _OLD_EXCEL)):
        return EXCEL
    start = content[:200].replace(b"\x00", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t")
    return XML if start.startswith(b"<") else TEXT


@dataclass(frozen=True)
class Text:
    """A decoded beginning.

    Args:
        content: the text, without a byte order mark.
        encoding: the codec's name, as a map would say it.
        why: what speaks for that encoding.
    """

    content: str
    encoding: str
    why: str


def decoded(start: Head) -> Text:
    """The text of a beginning, in the encoding that its bytes speak for."""
    for mark, encoding in _BOMS:
        if start.content.startswith(mark):
            text = partly_decoded(start.content, encoding, whole=start.is_whole, errors="replace")
            why = f"the file begins with the byte order mark of {encoding}"
            return Text(text.removeprefix("\ufeff"), encoding, why)
    if start.content.count(0) > _NUL_SHARE * len(start.content):
        wide = "utf-16-le" if start.content[1:2] == b"\x00" else "utf-16-be"
        text = partly_decoded(start.content, wide, whole=start.is_whole, errors="replace")
        return Text(text, wide, "every other byte is zero, and there is no byte order mark")
    beyond = sum(byte > 0x7F for byte in start.content)  # noqa: PLR2004  # ASCII ends there
    try:
        text = partly_decoded(start.content, "utf-8", whole=start.is_whole)
    except UnicodeDecodeError:
        return _one_byte(start)
    why = f"valid as UTF-8, with {beyond:,} bytes beyond ASCII" if beyond else "nothing but ASCII, which UTF-8 contains"
    return Text(text, "utf-8", why)


def _one_byte(start: Head) -> Text:
    if any(byte in _C1 for byte in start.content):
        text = start.content.decode("cp1252", errors="replace")
        return Text(text, "cp1252", "not valid as UTF-8; bytes 80 to 9F are letters and quotes in Windows-1252 alone")
    return Text(start.content.decode("latin-1"), "latin-1", "not valid as UTF-8; Latin-1 reads every byte")


def partly_decoded(content: bytes, encoding: str, *, whole: bool, errors: str = "strict") -> str:
    """Bytes as text; a character that is cut off at the end of a beginning is left out.

    Raises:
        UnicodeDecodeError: where the bytes are not in the encoding.
    """
    return codecs.getincrementaldecoder(encoding)(errors).decode(content, final=whole)


def first_records(text: str, quote: str, most: int, *, whole: bool) -> tuple[str, bool]:
    """The first records of delimited text, header included, and whether that is all of it.

    A line break inside quotes belongs to its record. The last line of a beginning is left out: it may be cut off.

    Args:
        text: the decoded beginning.
        quote: the quotation mark; empty for none.
        most: how many records.
        whole: whether `text` is the whole file.
    """
    lines = io.StringIO(text, newline="")
    records, is_open, kept = 0, False, []
    waiting: list[str] = []
    for line in lines:
        waiting.append(line)
        is_open ^= bool(quote) and line.count(quote) % 2 == 1
        if is_open:
            continue
        if not line.endswith("\n") and not whole:
            break
        kept += waiting
        waiting = []
        records += 1
        if records >= most:
            break
    if waiting and whole:  # an open quote to the end: the reader shall say so
        kept += waiting
    used = "".join(kept)
    return used, whole and len(used) == len(text)


def literal(name: str) -> str:
    """A glob that matches one file and no other, whatever characters its name has."""
    return glob.escape(name)
