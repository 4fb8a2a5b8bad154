"""Unpack zips from outside: nothing lands beyond the target folder, and nothing unpacks to more than allowed."""

import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_UNPACKED_BYTES = 1 << 30
MAX_MEMBERS = 50_000
# Deflate reaches 1,000 to 1 on repetition; XML with all its repetition stays below 60 to 1. Small members may do more.
MAX_RATIO = 200
RATIO_COUNTS_FROM_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
IS_ENCRYPTED = 0x1


@dataclass
class UnsafeZipError(Exception):
    """Why a zip is not unpacked.

    Args:
        problem: what is wrong.
        got: the member or the number that shows it.
    """

    problem: str
    got: str


def unpack(archive: Path, target: Path, max_bytes: int = MAX_UNPACKED_BYTES) -> list[PurePosixPath]:
    """Unpack a zip below `target`. Everything that its directory says is checked before the first byte is written.

    Returns:
        The names of its files, in the order of the zip.

    Raises:
        UnsafeZipError: for a broken or encrypted zip, a member with an absolute path, `..`, a link or a name that
            stands twice, or too much content.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            names = _checked(members, max_bytes)
            for member, name in zip(members, names, strict=True):
                place = target / name
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy(content, member, place)
            return names
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, ValueError) as error:
        raise UnsafeZipError("it is no readable zip", str(error)) from error
    except OSError as error:  # such as a file where a folder of the same name is needed
        raise UnsafeZipError("its members cannot be written", error.strerror or type(error).__name__) from error


def _checked(members: Sequence[zipfile.ZipInfo], max_bytes: int) -> list[PurePosixPath]:
    size = sum(member.file_size for member in members)
    if size > max_bytes or len(members) > MAX_MEMBERS:
        raise UnsafeZipError("it unpacks to too much", f"{size} bytes in {len(members)} files")
    for member in members:
        if member.flag_bits & IS_ENCRYPTED:
            raise UnsafeZipError("a member is encrypted", member.filename)
        if member.file_size > max(RATIO_COUNTS_FROM_BYTES, MAX_RATIO * member.compress_size):
            ratio = f"{member.filename}: {member.file_size} bytes from {member.compress_size}"
            raise UnsafeZipError("a member unpacks to far more than it holds", ratio)
    names = [_safe(member) for member in members]
    seen: set[str] = set()
    for name in names:  # readers differ in which of two they see, and file systems in what they call the same name
        if name.as_posix().casefold() in seen:
            raise UnsafeZipError("a name stands twice", name.as_posix())
        seen.add(name.as_posix().casefold())
    return names


def _safe(member: zipfile.ZipInfo) -> PurePosixPath:
    # ZipFile cuts a name at its first NUL and mends backslashes on Windows; the name as it was written is what counts.
    written = member.orig_filename
    name = PurePosixPath(written)
    mode = member.external_attr >> 16
    is_special = stat.S_IFMT(mode) not in (0, stat.S_IFREG)
    odd = any(character in written for character in ("\\", ":", "\0"))
    if is_special or odd or name.is_absolute() or ".." in name.parts or not name.parts:
        raise UnsafeZipError("a member would be written outside its folder", written)
    return name


def _copy(content: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path) -> None:
    """Copy what the directory of the zip announced, and not a byte more."""
    left = member.file_size
    with content.open(member) as source, place.open("xb") as out:
        while piece := source.read(CHUNK_BYTES):
            left -= len(piece)
            if left < 0:
                raise UnsafeZipError("a member is longer than announced", f"{member.filename}: {member.file_size}")
            out.write(piece)
