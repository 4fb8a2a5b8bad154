"""Taxonomies on disk: what filings refer to, gathered below `.cache/` and laid out as Arelle's offline cache."""

import hashlib
import shutil
import stat
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from reperform import taxonomy
from reperform.errors import ReperformError
from reperform.ingest.source import sha256_of
from reperform.ingest.xbrl_precheck import Refusal

MAX_UNPACKED_BYTES = 1 << 30
MAX_MEMBERS = 50_000


@dataclass(frozen=True)
class Package:
    """A zip of taxonomy files.

    Args:
        path: the zip.
        host: where its content belongs, such as `https/eCollection.ferc.gov`.
    """

    path: Path
    host: str


def gather(packages: Sequence[Package], folders: Sequence[Path], below: Path) -> Path:
    """One folder with this project's taxonomy, all packages and all cached folders; kept for the next run.

    Args:
        packages: zips to unpack.
        folders: folders that already are laid out as `http/<host>/...` or `https/<host>/...`.
        below: where to put it; its name is a digest of everything in it.

    Raises:
        ReperformError: for a zip that cannot be read, or that would write outside its folder.
    """
    target = below / _digest(packages, folders)
    if target.is_dir():
        return target
    below.mkdir(parents=True, exist_ok=True)
    partial = below / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for package in packages:
        unpack(package.path, partial / _host_folder(package.host))
    for folder in folders:
        shutil.copytree(folder, partial, dirs_exist_ok=True, copy_function=shutil.copyfile)
    own = partial / _as_path(taxonomy.BASE_URL)
    own.mkdir(parents=True, exist_ok=True)
    for name in taxonomy.FILES:
        shutil.copyfile(taxonomy.folder() / name, own / name)
    with suppress(OSError):  # another run of the same stage may have been faster
        partial.rename(target)
    return target


def _digest(packages: Sequence[Package], folders: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    parts = [f"{package.host} {sha256_of(package.path)}" for package in packages]
    cached = sorted((folder, path) for folder in folders for path in folder.rglob("*") if path.is_file())
    parts += [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for folder, path in cached]
    parts += [f"{name} {sha256_of(taxonomy.folder() / name)}" for name in taxonomy.FILES]
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:16]


def _host_folder(host: str) -> Path:
    parts = PurePosixPath(host).parts
    if len(parts) != 2 or parts[0] not in ("http", "https") or ".." in parts:  # noqa: PLR2004  # scheme and host
        raise ReperformError(
            "The host of a taxonomy package is not understood.",
            expected="scheme/host, such as https/eCollection.ferc.gov",
            got=host,
            where="conf/ingest/: taxonomies",
            fix="write where the addresses in the package's schemas begin",
        )
    return Path(*parts)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip, and write nothing outside `target`.

    Raises:
        ReperformError: for a broken zip, a member with an absolute path, `..` or a link, or too much content.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            _check_size(archive, members)
            for member in members:
                place = target / _safe(archive, member)
                place.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source, place.open("wb") as out:
                    _copy(source, out, member.file_size, archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _bad_package(archive, "it is no readable zip", str(error)) from error


def _check_size(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    size = sum(member.file_size for member in members)
    if size > MAX_UNPACKED_BYTES or len(members) > MAX_MEMBERS:
        raise _bad_package(archive, "it unpacks to too much", f"{size} bytes in {len(members)} files")


def _safe(archive: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    name = PurePosixPath(member.filename)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if is_link or name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
        raise _bad_package(archive, "a member would be written outside its folder", member.filename)
    return name


def _copy(source: IO[bytes], out: IO[bytes], size: int, archive: Path) -> None:
    """Copy what the directory of the zip announced, and not a byte more."""
    data = source.read(size + 1)
    if len(data) > size:
        raise _bad_package(archive, "a member is longer than announced", f"more than {size} bytes")
    out.write(data)


def _bad_package(archive: Path, problem: str, got: str) -> ReperformError:
    return ReperformError(
        f"Taxonomy package {archive.name} is refused: {problem}.",
        expected="a zip of taxonomy files with plain relative names",
        got=got,
        where=archive.name,
        fix="fetch the package again from its publisher",
    )


def _as_path(url: str) -> Path:
    parts = urlsplit(url)
    return Path(parts.scheme, parts.netloc, *PurePosixPath(parts.path).parts[1:])


def check_available(schema_refs: Sequence[str], cache: Path, beside: Path) -> None:
    """Refuse a filing whose taxonomy is not here; nothing is fetched from the network.

    Args:
        schema_refs: what the filing starts from.
        cache: the folder that `gather` made.
        beside: the filing's own folder, for extension schemas.

    Raises:
        Refusal: file_taxonomy_missing, with the address and what to put where.
    """
    for href in schema_refs:
        url = urlsplit(href)
        place = cache / _as_path(href) if url.scheme else beside / href.split("#")[0]
        if ".." in place.relative_to(cache if url.scheme else beside).parts or not place.is_file():
            raise Refusal(
                "file_taxonomy_missing",
                "the filing's taxonomy is not here.",
                expected=f"a local copy of {href}",
                got="none in the taxonomy packages and cached folders of this source" if url.scheme else "no such file",
                fix=_how_to_bring(href),
            )


def _how_to_bring(href: str) -> str:
    url = urlsplit(href)
    if not url.scheme:
        return f"put {href} beside the filing"
    folder = _as_path(href).parent.as_posix()
    return (
        f"download the taxonomy package of {url.netloc}, and name its zip under `taxonomies` of this source in "
        f"conf/ingest/ with host {url.scheme}/{url.netloc}; or put its files under {folder} in its `cache` folder"
    )
