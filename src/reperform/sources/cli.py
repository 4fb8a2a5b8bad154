"""What `python -m reperform sources` prints."""

import os
from pathlib import Path
from typing import Any

from reperform import params, paths, tables
from reperform.errors import ReperformError
from reperform.sources import draft, report, trial
from reperform.sources.terminal import paragraphs, shown


def check(name: str, file: str | None, only: list[str], rows: int) -> int:
    """Print what a map makes of a sample. Returns 1 if a file could not be read at all."""
    if rows < 1:
        raise ReperformError("No rows are asked for.", expected="--rows of 1 or more", got=str(rows), where="--rows")
    try:
        tried = trial.run(name, file=Path(file) if file else None, only=only, rows=rows)
    except ReperformError as error:
        raise _harmless(error) from error
    print("\n".join(report.lines(tried)))
    return 1 if tried.files_refused else 0


def suggest(file: str, write: str | None, *, force: bool) -> int:
    """Print a draft of a map, or write it to a file that is not there yet."""
    path = Path(file)
    try:
        target = _target(write, force=force) if write else None
        text = draft.of_file(path, paths.project_root(), name=target.stem if target else None)
    except ReperformError as error:
        raise _harmless(error) from error
    if target is None:
        print(text, end="")
        return 0
    tables.write_text(text, target)
    questions = trial.open_questions(text)
    print(f"wrote {shown(os.path.relpath(target, paths.project_root()), 200)}; questions in it: {len(questions)}")
    print("\n".join(f"  {shown(question, 160)}" for question in questions))
    print(f"next: {'answer them, then ' if questions else ''}python -m reperform sources check {target.stem}")
    return 0


def _target(write: str, *, force: bool) -> Path:
    target = Path(write)
    if target.suffix not in (".yaml", ".yml") or not trial.NAME.fullmatch(target.stem):
        raise ReperformError(
            "A map needs a name that Hydra can read.",
            expected="--write conf/ingest/NAME.yaml, of letters, digits, - and _",
            got=write,
            where="--write",
            fix="choose another name",
        )
    if target.exists() and not force:
        raise ReperformError(
            "There is a file of this name already.",
            expected="a new file",
            got="one that may hold your work",
            where=str(target),
            fix="choose another name, or say --force to replace it",
        )
    return target


def listing() -> int:
    """Print every map with its sources and files."""
    folder = paths.project_root() / "conf" / "ingest"
    print("\n".join(report.listed({path.stem: _sources(path) for path in sorted(folder.glob("*.yaml"))})))
    print("\nnext: python -m reperform sources check MAP, or for a file of your own: sources suggest FILE")
    return 0


def _sources(path: Path) -> list[tuple[str, str, str, str]]:
    try:
        content = params.raw(path)
        raw = paths.project_root() / str(content.get("raw", ""))
        sources: dict[str, Any] = dict(content.get("sources") or {})
        rows = [_described(name, dict(source or {}), raw) for name, source in sources.items()]
    except (ReperformError, TypeError, ValueError) as error:
        return [("", "", "", f"cannot be read: {error}")]
    return rows or [("", "", "", "no sources")]


def _described(name: str, source: dict[str, Any], raw: Path) -> tuple[str, str, str, str]:
    given = source.get("files") or []
    patterns = [given] if isinstance(given, str) else list(given)
    found = {one for pattern in patterns for one in raw.glob(pattern)} if raw.is_dir() else set()
    shown_files = ", ".join(patterns)
    kind = str(source.get("kind"))
    gives = str(source.get("target") or {"iso20022": "transactions", "xbrl": "filings, facts"}.get(kind, "?"))
    there = f"{len(found):,} found" if found else "missing"
    return name, kind, gives, f"{there}: {shown_files}"


def _harmless(error: ReperformError) -> ReperformError:
    """The same refusal, with control characters of foreign file names and fields written out."""
    return ReperformError(paragraphs(str(error)))
