"""Read CSV, ISO 20022 and XBRL into canonical tables. Each record comes out, or is refused with its reason."""

import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reperform import params, paths, tables
from reperform.errors import ReperformError, nearest
from reperform.ingest import feedback_file, iso20022, table
from reperform.ingest.column_map import table_source
from reperform.ingest.combine import WRITTEN, combine
from reperform.ingest.parts import Store
from reperform.ingest.receipt import receipt
from reperform.ingest.source import SourceResult, UnreadableFileError, located, matching
from reperform.ingest.xbrl_source import XbrlSource
from reperform.params import IngestParams

KINDS = ("table", "iso20022", "xbrl")  # each is a module beside this one with a function `read`


def check_source(name: str, source: Mapping[str, Any]) -> None:
    """Refuse a description that its kind would refuse, without looking at any file.

    Raises:
        ReperformError: for an unknown kind, an unknown key (naming the nearest) or a wrong value.
    """
    kind = _kind(name, source)
    if kind == "table":
        table_source(name, source)
    elif kind == "iso20022":
        iso20022.iso20022_source(name, source)
    else:
        params.build(XbrlSource, source, where=f"ingest.sources.{name}")


def read_source(name: str, source: Mapping[str, Any], raw: Path, processes: int) -> SourceResult:
    """Read one source with the module that its `kind` names.

    Raises:
        ReperformError: for an unknown kind, a wrong description, or a source without files.
    """
    module = importlib.import_module(f"reperform.ingest.{_kind(name, source)}")
    result: SourceResult = module.read(name, source, raw, processes=processes)
    return result


def _kind(name: str, source: Mapping[str, Any]) -> str:
    kind = source.get("kind")
    if kind not in KINDS:
        raise ReperformError(
            f"Source {name} is of an unknown kind.",
            expected=f"kind: one of {', '.join(KINDS)}",
            got=repr(kind),
            where=f"ingest.sources.{name}.kind",
            fix=f"{nearest(str(kind), KINDS)}; change it in conf/ingest/ and run `make params`",
        )
    return str(kind)


def stop_for_unreadable(results: Mapping[str, SourceResult]) -> None:
    """Stop when a file could not be read: the first is explained, the others are named.

    Raises:
        ReperformError: nothing has been saved by then, so earlier outputs are whole.
    """
    unreadable = [error for result in results.values() for error in result.unreadable]
    if not unreadable:
        return
    first, others = unreadable[0], [error.path for error in unreadable[1:]]
    more = f"\n  also unreadable: {', '.join(others[:10])}" if others else ""
    more += f" and {len(others) - 10} more" if len(others) > 10 else ""  # noqa: PLR2004  # enough to see a pattern
    raise ReperformError(
        f"{first}{more}\n  or: set `on_unreadable_file: quarantine` in conf/ingest/ to go on without "
        f"{'them' if others else 'it'}; earlier outputs are untouched"
    ) from first


def stop_for_bad_beginnings(sources: Mapping[str, Mapping[str, Any]], raw: Path) -> None:
    """Stop before anything is parsed when files are empty or begin wrongly: all of them are named.

    Raises:
        ReperformError: as `stop_for_unreadable`.
    """
    found: dict[str, SourceResult] = {}
    for name, source in sources.items():
        if _kind(name, source) == "table":
            errors = table.bad_beginnings(name, table_source(name, source), raw)
        else:
            errors = _empty_files(name, source, raw)
        found[name] = SourceResult(tables={}, unreadable=tuple(errors))
    stop_for_unreadable(found)


def _empty_files(name: str, source: Mapping[str, Any], raw: Path) -> list[UnreadableFileError]:
    given = source.get("files", [])
    patterns = [given] if isinstance(given, str) else given
    return [
        UnreadableFileError(
            located(path, raw), "file_empty", "the file is empty.", fix="ask the sender for the file again"
        )
        for path in matching(name, patterns, raw)
        if path.stat().st_size == 0
    ]


def read_sources(given: IngestParams, raw: Path, store: Store) -> dict[str, SourceResult]:
    """Read every source. Tables and statements go through the store, each file once whatever many sources it feeds."""
    kinds = {name: _kind(name, source) for name, source in given.sources.items()}
    specs = {name: table_source(name, given.sources[name]) for name, kind in kinds.items() if kind == "table"}
    read = table.read_all(specs, raw, store)
    for name, kind in kinds.items():
        source = given.sources[name]
        if kind == "iso20022":
            read[name] = iso20022.read_into(store, name, source, raw)
        elif kind != "table":
            read[name] = read_source(name, source, raw, given.processes)
    return {name: read[name] for name in given.sources}


def run(given: IngestParams) -> dict[str, Any]:
    """Read every source, unite them, and save the canonical tables with their receipt."""
    raw = paths.project_root() / given.raw
    cache = paths.project_root() / ".cache" / "ingest" / "tables"
    store = Store(cache, given.piece_bytes, given.unused_cache_bytes)
    if given.on_unreadable_file == "stop":
        stop_for_bad_beginnings(given.sources, raw)
    sources = {**feedback_file.sources(), **given.sources}
    results = feedback_file.read_with(read_sources(given, raw, store), store)
    if given.on_unreadable_file == "stop":
        stop_for_unreadable(results)
    with ExitStack() as stack:  # nothing replaces an earlier output before everything is written and adds up
        files = {n: stack.enter_context(tables.replacing(paths.data("ingest") / f"{n}.parquet")) for n in WRITTEN}
        combined = combine(results, given.base_currency, files)
        document = {"base_currency": given.base_currency, **receipt(sources, results, combined)}
    tables.write_json(document, "ingest", "receipt")
    store.close()
    return document
