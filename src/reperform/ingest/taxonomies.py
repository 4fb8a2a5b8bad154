"""Taxonomies on disk: what filings refer to, gathered below `.cache/` and laid out as Arelle's offline cache."""

import hashlib
import html
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from reperform import taxonomy
from reperform.errors import ReperformError
from reperform.ingest import safe_zip
from reperform.ingest.source import sha256_of
from reperform.ingest.xbrl_precheck import Refusal, is_safe_address

CATALOG = PurePosixPath("META-INF/catalog.xml")
REWRITE = "urn:oasis:names:tc:entity:xmlns:xml:catalog rewriteURI"
USED = "used.json"  # which source uses which digest, so that what none uses can go
ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["']""")
DOCTYPE = re.compile(rb"<!DOCTYPE(?!\s+html\b[^\[>]*>)|<!ENTITY", re.IGNORECASE)
XINCLUDE = b"http://www.w3.org/2001/XInclude"
REFERENCE = re.compile(rb"""(:href|[:\s]schemaLocation|:noNamespaceSchemaLocation|xml:base)\s*=\s*("[^"]*"|'[^']*')""")
UTF_16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\x00": "utf-16-le", b"\x00<": "utf-16-be"}


@dataclass(frozen=True)
class Package:
    """A zip of taxonomy files.

    Args:
        path: the zip.
        host: where its content belongs, such as `https/eCollection.ferc.gov`; empty if its own catalog tells, as in
            taxonomy packages of the standard.
    """

    path: Path
    host: str = ""


def gather(packages: Sequence[Package], folders: Sequence[Path], below: Path, source: str = "") -> Path:
    """One folder with this project's taxonomy, all packages and all cached folders; kept for the next run.

    Args:
        packages: zips to unpack.
        folders: folders that already are laid out as `http/<host>/...` or `https/<host>/...`.
        below: where to put it; its name is a digest of everything in it.
        source: for whom; folders that no source uses any more are removed.

    Raises:
        ReperformError: for a zip that cannot be read, that would write outside its folder, or that unpacks to too
            much; for a file that declares entities, includes others, or refers to a place outside.
    """
    target = below / _digest(packages, folders)
    if not target.is_dir():
        _fill(packages, folders, target)
    _tidy(below, source, target.name)
    return target


def _fill(packages: Sequence[Package], folders: Sequence[Path], target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for package in packages:
        _add(package, partial)
    for folder in folders:
        shutil.copytree(folder, partial, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            _inspect(path, partial)
    own = partial / _as_path(taxonomy.BASE_URL)
    own.mkdir(parents=True, exist_ok=True)
    for name in taxonomy.FILES:
        shutil.copyfile(taxonomy.folder() / name, own / name)
    with suppress(OSError):  # another run of the same stage may have been faster
        partial.rename(target)


def _tidy(below: Path, source: str, digest: str) -> None:
    """Remember who uses what, and remove what nobody uses. A folder of another source stays."""
    try:
        used = dict(json.loads((below / USED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none yet, or not ours: the worst is that a folder is made again
        used = {}
    used[source] = digest
    for path in below.iterdir():
        if path.is_dir() and path.name not in used.values():
            shutil.rmtree(path, ignore_errors=True)
    (below / USED).write_text(json.dumps(used, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def _digest(packages: Sequence[Package], folders: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    parts = [f"{package.host} {sha256_of(package.path)}" for package in packages]
    cached = sorted((folder, path) for folder in folders for path in folder.rglob("*") if path.is_file())
    parts += [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for folder, path in cached]
    parts += [f"{name} {sha256_of(taxonomy.folder() / name)}" for name in taxonomy.FILES]
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:16]


def _add(package: Package, cache: Path) -> None:
    if package.host:
        unpack(package.path, cache / _host_folder(package.host))
        return
    opened = cache / ".package"
    names = unpack(package.path, opened)
    places = mapped(opened, names)
    if not places:
        raise _bad_package(
            package.path,
            "it does not say where its files belong",
            "no META-INF/catalog.xml with rewriteURI",
            fix="fetch the publisher's taxonomy package, or name its `host` under `taxonomies` in conf/ingest/",
        )
    place_files(opened, places, cache)
    shutil.rmtree(opened)


def mapped(folder: Path, names: Sequence[PurePosixPath]) -> list[tuple[PurePosixPath, Path]]:
    """Files of an unpacked taxonomy package, each with its place in the cache, from the package's own catalog.

    Source: Taxonomy Packages 1.0, sections 2.2 and 4 (`rewriteURI` is the only element that counts).
    """
    found = []
    for catalog in sorted(name for name in names if name.parts[-2:] == CATALOG.parts and len(name.parts) <= 3):  # noqa: PLR2004  # top folder, META-INF, file
        for start, prefix in _rewrites(folder, catalog):
            inside = _below(catalog, prefix)
            place = _as_path(start)
            found += [(name, place / name.relative_to(inside)) for name in names if name.is_relative_to(inside)]
    return found


def _below(catalog: PurePosixPath, prefix: str) -> PurePosixPath:
    """The folder that a rewritePrefix means, from where the catalog lies; `is_safe_address` has seen it."""
    parts: list[str] = list(catalog.parent.parts)
    for part in PurePosixPath(prefix).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return PurePosixPath(*parts)


def _rewrites(folder: Path, catalog: PurePosixPath) -> list[tuple[str, str]]:
    """Pairs of where addresses start and the folder in the package that stands for them; unsafe ones are an error."""
    inside = catalog.parent.as_posix()
    found: list[tuple[str, str]] = []

    def refuse(*_: object) -> None:
        raise ReperformError("A catalog declares a document type.", expected="no <!DOCTYPE", where=str(CATALOG))

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == REWRITE:
            begins, prefix = attributes.get("uriStartString", ""), attributes.get("rewritePrefix", "")
            if not (begins.startswith("http") and is_safe_address(begins) and is_safe_address(prefix or ".", inside)):
                raise ReperformError(
                    "A catalog maps addresses to a place outside its package.",
                    expected="rewriteURI from http(s) to a folder of the package",
                    got=f"{begins} to {prefix}"[:300],
                    where=f"{CATALOG}",
                    fix="fetch the package again from its publisher",
                )
            found.append((begins, prefix))

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    try:
        parser.Parse((folder / catalog).read_bytes(), True)  # expat's own signature
    except expat.ExpatError as error:
        raise ReperformError(
            "A catalog is not well-formed XML.", got=str(error), where=f"{CATALOG}", fix="fetch the package again"
        ) from error
    return found


def place_files(folder: Path, places: Sequence[tuple[PurePosixPath, Path]], cache: Path) -> None:
    """Copy files of a package to their places. What is there already stays: no package replaces another's schema."""
    for name, place in places:
        target = cache / place
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)


def overlay(cache: Path, folder: Path, places: Sequence[tuple[PurePosixPath, Path]], target: Path) -> Path:
    """The cache as it is, and beside it the files that a report package brings along."""
    for path in cache.rglob("*"):
        if path.is_file():
            link = target / path.relative_to(cache)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    place_files(folder, places, target)
    return target


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


def unpack(archive: Path, target: Path) -> list[PurePosixPath]:
    """Unpack a zip, and write nothing outside `target`; see `safe_zip.unpack`.

    Returns:
        The names of its files.

    Raises:
        ReperformError: for a zip that cannot be read or is not safe.
    """
    try:
        return safe_zip.unpack(archive, target)
    except safe_zip.UnsafeZipError as error:
        raise _bad_package(archive, error.problem, error.got) from error


def _bad_package(
    archive: Path, problem: str, got: str, fix: str = "fetch the package again from its publisher"
) -> ReperformError:
    return ReperformError(
        f"Taxonomy package {archive.name} is refused: {problem}.",
        expected="a zip of taxonomy files with plain relative names",
        got=got,
        where=archive.name,
        fix=fix,
    )


def _inspect(path: Path, cache: Path) -> None:
    """Refuse a taxonomy file that declares entities, includes others, or leads out of the cache.

    Publishers' files reach 100 MB together and some are not well-formed, so this looks for patterns in their bytes
    instead of parsing them: what Arelle's lenient parser would act on has to be spelt like this.
    """
    content = _as_ascii(path, cache)
    for pattern in (DOCTYPE, re.compile(re.escape(XINCLUDE))):
        if hit := pattern.search(content):
            line = content.count(b"\n", 0, hit.start()) + 1
            raise _bad_file(path, cache, line, hit.group().decode("latin-1"), "no DOCTYPE, no XInclude")
    folder = path.relative_to(cache).parent
    within = PurePosixPath(*folder.parts[1:]).as_posix()
    for kind, quoted in sorted(set(REFERENCE.findall(content))):
        for address in _addresses(kind, quoted):
            if not is_safe_address(address, within):
                expected = "an http(s) address, or a file of the same publisher"
                line = content.count(b"\n", 0, content.find(quoted)) + 1
                raise _bad_file(path, cache, line, address, expected)


def _addresses(kind: bytes, quoted: bytes) -> Iterator[str]:
    text = html.unescape(quoted[1:-1].decode("latin-1"))
    found = text.split()[1::2] if kind == b":schemaLocation" else [text.strip()]
    yield from (each for each in found if each and not each.startswith("#"))


def _as_ascii(path: Path, cache: Path) -> bytes:
    """The file's bytes in an encoding that writes markup as ASCII does."""
    content = path.read_bytes()
    encoding = UTF_16.get(content[:2])
    if encoding:
        return content.decode(encoding, "replace").encode()
    declared = ENCODING.match(content[:500].removeprefix(b"\xef\xbb\xbf"))
    if declared:
        with suppress(LookupError, UnicodeError):
            if "<!DOCTYPE href".encode(declared.group(1).decode()) == b"<!DOCTYPE href":
                return content
        raise _bad_file(path, cache, 1, declared.group(1).decode(), "UTF-8, UTF-16 or Latin-1")
    return content


def _bad_file(path: Path, cache: Path, line: int, got: str, expected: str) -> ReperformError:
    return ReperformError(
        "A taxonomy file is refused: it could make a reader open other files.",
        expected=expected,
        got=got[:200],
        where=f"{path.relative_to(cache).as_posix()}, line {line}",
        fix="fetch the taxonomy again from its publisher; of the schemas of W3C and XBRL International, Arelle brings "
        "its own copies",
    )


def _as_path(url: str) -> Path:
    parts = urlsplit(url)
    return Path(parts.scheme, parts.netloc, *PurePosixPath(unquote(parts.path)).parts[1:])


def check_available(schema_refs: Sequence[str], cache: Path, beside: Path) -> None:
    """Refuse a filing whose taxonomy is not here; nothing is fetched from the network.

    Args:
        schema_refs: what the filing starts from; `is_safe_address` has seen them.
        cache: the folder that `gather` made.
        beside: the filing's own folder, for extension schemas.

    Raises:
        Refusal: file_taxonomy_missing, with the address and what to put where.
    """
    for href in schema_refs:
        on_the_web = bool(urlsplit(href).scheme)
        place = cache / _as_path(href) if on_the_web else beside / unquote(href).split("#")[0]
        if not place.is_file():
            raise Refusal(
                "file_taxonomy_missing",
                "the filing's taxonomy is not here.",
                expected=f"a local copy of {href}",
                got="none in the taxonomy packages and cached folders of this source" if on_the_web else "no such file",
                fix=_how_to_bring(href),
            )


def _how_to_bring(href: str) -> str:
    url = urlsplit(href)
    if not url.scheme:
        return f"put {href} beside the filing"
    folder = _as_path(href).parent.as_posix()
    return (
        f"download the taxonomy package that holds {href} from {url.netloc}, and name its zip under `taxonomies` of "
        f"this source in conf/ingest/ (with host {url.scheme}/{url.netloc} if it has no catalog of its own); or put "
        f"its files under {folder} in a folder that `cache` names"
    )
