"""Report packages: zips that hold a report, all documents of an inline set, and the filer's own taxonomy."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from reperform.errors import ReperformError
from reperform.ingest import safe_zip, taxonomies
from reperform.ingest.xbrl_precheck import Refusal

INLINE = (".xhtml", ".html", ".htm")
ALLOWED = {".xbri": INLINE, ".xbr": (".xbrl", ".json"), ".zip": (*INLINE, ".xbrl", ".json")}
DOCUMENT_TYPES = {  # what META-INF/reportPackage.json has to say, by the package's extension
    ".xbri": "https://xbrl.org/report-package/2023/xbri",
    ".xbr": "https://xbrl.org/report-package/2023/xbr",
    ".zip": "https://xbrl.org/report-package/2023",
}
REPORTS = "reports"
ASK_AGAIN = "ask the filer for a complete report package"
BESIDE_A_REPORT = 3  # top folder, reports, file
MAX_BYTES_TIMES = 4  # a package may unpack to so many times the size allowed for one file


@dataclass(frozen=True)
class Report:
    """The report of an unpacked package.

    Args:
        documents: the file to start from; of an inline set all of them, in order of their names.
        root: the folder that the package was unpacked to.
        places: files of the package's own taxonomy, each with its place in the cache.
    """

    documents: tuple[Path, ...]
    root: Path
    places: tuple[tuple[PurePosixPath, Path], ...]


def is_package(path: Path) -> bool:
    """Whether a file's name is that of a report package."""
    return path.suffix.lower() in ALLOWED


@contextmanager
def opened(path: Path, max_bytes: int) -> Iterator[Report]:
    """The report in a package, unpacked for as long as it is read.

    Source: Report Package 1.0, section 3 (layout, document types, report files).

    Raises:
        Refusal: file_package_unsafe, file_package_layout.
    """
    with tempfile.TemporaryDirectory(prefix="reperform-report-") as folder:
        root = Path(folder).resolve()
        try:
            names = safe_zip.unpack(path, root, max_bytes * MAX_BYTES_TIMES)
            places = tuple(taxonomies.mapped(root, names))
        except safe_zip.UnsafeZipError as error:
            raise _unsafe(error.problem, error.got) from error
        except ReperformError as error:
            raise _unsafe("its catalog is refused", str(error)) from error
        yield Report(tuple(root / name for name in _report(path, root, names)), root, places)


def _unsafe(problem: str, got: str) -> Refusal:
    return Refusal(
        "file_package_unsafe",
        f"the report package is refused: {problem}.",
        expected="a zip of plain files below one folder",
        got=got[:300],
        fix="do not trust this file; ask the sender",
    )


def _layout(problem: str, expected: str, got: str) -> Refusal:
    return Refusal("file_package_layout", problem, expected=expected, got=got[:300], fix=ASK_AGAIN)


def _report(path: Path, root: Path, names: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    tops = sorted({name.parts[0] for name in names if len(name.parts) > 1 and name.parts[1] in ("META-INF", REPORTS)})
    if len(tops) != 1:
        raise _layout(
            "the report package has not one top folder.", "one folder with reports/", ", ".join(tops) or "none"
        )
    kind = path.suffix.lower()
    _check_type(root / tops[0] / "META-INF" / "reportPackage.json", kind)
    found = _reports(tops[0], names, ALLOWED[kind])
    if len(found) != 1:
        named = ", ".join(files[0].as_posix() for files in found) or "none"
        raise _layout("the report package holds not one report.", f"one report in {tops[0]}/{REPORTS}/", named)
    return found[0]


def _check_type(about: Path, kind: str) -> None:
    if not about.is_file():
        if kind == ".zip":  # packages from before the standard have none
            return
        raise _layout("the report package does not say what it is.", "META-INF/reportPackage.json", "none")
    try:
        stated = json.loads(about.read_bytes())["documentInfo"]["documentType"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _layout("the report package does not say what it is.", DOCUMENT_TYPES[kind], str(error)) from error
    if stated != DOCUMENT_TYPES[kind]:
        raise _layout("the report package is of another kind than its name says.", DOCUMENT_TYPES[kind], str(stated))


def _reports(top: str, names: Sequence[PurePosixPath], allowed: Sequence[str]) -> list[list[PurePosixPath]]:
    """Each report's documents: a file in reports/, or a folder of inline documents there."""
    inside = sorted(name for name in names if name.parts[:2] == (top, REPORTS) and name.suffix.lower() in allowed)
    single = [[name] for name in inside if len(name.parts) == BESIDE_A_REPORT]
    folders: dict[str, list[PurePosixPath]] = defaultdict(list)
    for name in inside:
        if len(name.parts) == BESIDE_A_REPORT + 1:
            folders[name.parts[2]].append(name)
    for files in folders.values():
        is_set = all(file.suffix.lower() in INLINE for file in files)
        single += [files] if is_set else [[file] for file in files]
    return single
