"""The bytes of a delivered file, block by block: plain, gzip, zstd, or each member of a zip. Nothing is put on disk.

An archive that is damaged, encrypted, names a file outside its folder, or unpacks to far more than it is, is refused.
"""

import codecs
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from reperform.ingest.column_map import Format
from reperform.ingest.source import UnreadableFileError

SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".zip": "zip"}
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "zip": b"PK"}
MOST_MEMBERS = 10_000
_ENCRYPTED = 0x1
_HARMLESS_BYTES = 2**20  # a few rows of equal text may well shrink a thousandfold
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True)
class Member:
    """One text inside a delivered file: the file itself, or a member of a zip.

    Args:
        where: the file's name below the raw folder, with the member's name behind it.
        packed_bytes: its size as delivered.
        open: gives its unpacked bytes as a stream.
    """

    where: str
    packed_bytes: int
    open: Callable[[], IO[bytes]]


def compression_of(path: str, form: Format) -> str:
    """How a file is packed: as its source says, or by the end of its name."""
    return SUFFIXES.get(Path(path).suffix.lower(), "none") if form.compression == "auto" else form.compression


def members(path: Path, where: str, form: Format) -> list[Member]:
    """The texts that a file holds, in order of their names.

    Raises:
        UnreadableFileError: for a file that is not what its name says, and for a zip that is not safe to read.
    """
    packing = compression_of(where, form)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            first = stream.read(4)
        if packing in MAGIC and first and not first.startswith(MAGIC[packing]):
            raise _no_archive(where, packing, first)
        if packing == "zip" and first:
            with zipfile.ZipFile(path) as archive:
                return zip_members(path, where, archive, form)
    except _DAMAGE as error:
        raise damaged(where, packing, error) from error
    return [Member(where, size, lambda: _opened(path, packing if first else "none"))]


def _opened(path: Path, packing: str) -> Any:
    if packing == "gzip":
        return gzip.open(path)
    if packing == "zstd":
        return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return path.open("rb")


def zip_members(path: Path, where: str, archive: zipfile.ZipFile, form: Format) -> list[Member]:
    """The members of a zip, after a look at what its directory says of each.

    Raises:
        UnreadableFileError: for an unsafe name, an encrypted member, two of one name, or too much to unpack.
    """
    infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    check_zip(where, infos, form)
    return [Member(f"{where}/{info.filename}", info.compress_size, _member(path, info.filename)) for info in infos]


def check_zip(where: str, infos: list[zipfile.ZipInfo], form: Format) -> None:
    """Refuse a zip by what its directory says.

    Raises:
        UnreadableFileError: for an unsafe name, an encrypted member, two of one name, or too much to unpack.
    """
    names = [info.filename for info in infos]
    outside = [name for name in names if _leads_outside(name)]
    if outside:
        raise _refused(where, "file_unsafe_archive", "a member's name leads out of the archive.", repr(outside[0]))
    if len(set(names)) < len(names) or len(names) > MOST_MEMBERS:
        problem = f"the archive has two members of one name, or more than {MOST_MEMBERS}."
        raise _refused(where, "file_unsafe_archive", problem, f"{len(names)} members")
    if any(info.flag_bits & _ENCRYPTED for info in infos):
        raise _refused(where, "file_encrypted", "the archive is encrypted.", "a member that asks for a password")
    for info in infos:
        check_size(where, info.compress_size, info.file_size, form)
    check_size(where, sum(info.compress_size for info in infos), sum(info.file_size for info in infos), form)


def _leads_outside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/"))
    return parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name


def _member(path: Path, name: str) -> Callable[[], IO[bytes]]:
    return lambda: zipfile.ZipFile(path).open(name)


def check_size(where: str, packed: int, unpacked: int, form: Format) -> None:
    """Refuse an archive that unpacks to far more than it is.

    Raises:
        UnreadableFileError: when a limit of the source's format is passed.
    """
    bomb = unpacked > max(_HARMLESS_BYTES, packed * form.max_unpack_ratio)
    if bomb or unpacked > form.max_unpacked_bytes:
        raise UnreadableFileError(
            where, "file_archive_bomb", "the archive unpacks to more than is allowed.",
            expected=f"at most {form.max_unpack_ratio} times its size, and {form.max_unpacked_bytes} bytes",
            got=f"more than that from {packed} bytes",
            fix="ask the sender what this is; if it is right, raise `format.max_unpack_ratio` or "
            "`format.max_unpacked_bytes` of the source in conf/ingest/",
        )  # fmt: skip


def blocks(member: Member, form: Format, size: int) -> Iterator[bytes]:
    """The text of a member in UTF-8, in blocks of about `size` bytes.

    Bytes of a file that says it is UTF-8 are handed on as they are; who cuts them into records checks them.

    Raises:
        UnreadableFileError: for a damaged archive, a bomb, or bytes that are not in the encoding.
    """
    plain = _unpacked(member, form, size)
    return plain if is_utf8(form) else transcoded(plain, form, member.where)


def is_utf8(form: Format) -> bool:
    """Whether the text needs no conversion."""
    return codecs.lookup(form.encoding).name == "utf-8"


def _unpacked(member: Member, form: Format, size: int) -> Iterator[bytes]:
    packing, total = compression_of(member.where, form), 0
    packed = packing != "none" or not member.where.endswith(Path(member.where).name)
    try:
        with member.open() as stream:
            while block := stream.read(size):
                total += len(block)
                if packed or total > form.max_unpacked_bytes:
                    check_size(member.where, member.packed_bytes, total, form)
                yield block
    except UnreadableFileError:
        raise
    except _DAMAGE as error:
        raise damaged(member.where, packing, error) from error


def transcoded(plain: Iterator[bytes], form: Format, where: str) -> Iterator[bytes]:
    """Blocks of text as UTF-8.

    Raises:
        UnreadableFileError: for bytes that are not in the encoding.
    """
    decoder = codecs.getincrementaldecoder(form.encoding)()
    fed = 0
    try:
        for block in plain:
            fed += len(block)
            yield decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeDecodeError as error:
        raise wrong_encoding(where, form, error, fed - len(error.object)) from error
    except UnicodeError as error:
        raise _not_in_encoding(where, form, str(error)) from error


def wrong_encoding(where: str, form: Format, error: UnicodeDecodeError, before: int) -> UnreadableFileError:
    """The refusal of a file whose bytes are not in its encoding; `before` is where the decoder's bytes begin in it."""
    wrong = error.object[error.start : error.start + 4].hex(" ")
    return _not_in_encoding(where, form, f"byte {before + error.start} ({wrong}): {error.reason}")


def _not_in_encoding(where: str, form: Format, got: str) -> UnreadableFileError:
    return UnreadableFileError(
        where, "file_encoding", f"the text is not in {form.encoding}.",
        expected=f"text in {form.encoding}, whole to its last character", got=got,
        fix="mend `format.encoding` of the source in conf/ingest/; if it is right, the file is damaged or cut off",
    )  # fmt: skip


def damaged(where: str, packing: str, error: BaseException) -> UnreadableFileError:
    """The refusal of a file that cannot be opened, or whose archive breaks off."""
    if packing == "none":
        return _refused(where, "file_unreadable", "the file cannot be read.", str(error), "check its owner and rights")
    return _refused(
        where, "file_cut_off", f"the {packing} archive is cut off or damaged.", str(error) or type(error).__name__,
        "ask the sender for the file again",
    )  # fmt: skip


def _no_archive(where: str, packing: str, first: bytes) -> UnreadableFileError:
    return UnreadableFileError(
        where, "file_compression", f"the file is not a {packing} archive.",
        expected=packing, got=f"first bytes {first.hex(' ')}", fix="mend `format.compression` in conf/ingest/",
    )  # fmt: skip


def _refused(
    where: str, rule: str, problem: str, got: str, fix: str = "ask the sender for a plain archive"
) -> UnreadableFileError:
    return UnreadableFileError(where, rule, problem, expected="a whole and harmless file", got=got, fix=fix)
