"""What was read from each filing, kept for the next run: the same bytes, taxonomy and code give the same rows."""

import gzip
import hashlib
import json
from collections.abc import Collection, Iterable
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reperform import facts, tables
from reperform.ingest.source import sha256_of
from reperform.ingest.xbrl_rows import Filing, Task

CODE = ("xbrl*.py", "report_packages.py", "taxonomies.py", "safe_zip.py")
DATES = (2, 3)  # of a row of facts: period_start and period_end


class Memory:
    """Filings that were read before, one file each, named by a digest of everything that could change its rows.

    Args:
        folder: of one source; what a run does not use is removed by `keep_only`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recall(self, key: str) -> Filing | None:
        """What was read; None if nothing was, or if the file was damaged since."""
        try:
            digest, _, body = gzip.decompress((self.folder / f"{key}.gz").read_bytes()).partition(b"\n")
        except (OSError, EOFError, ValueError):
            return None
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        return _filing(json.loads(body))

    def keep(self, key: str, filing: Filing) -> None:
        """Write down what was read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        body = json.dumps(vars(filing), default=date.isoformat, ensure_ascii=False).encode()
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        tables.write_bytes(gzip.compress(content, compresslevel=1, mtime=0), self.folder / f"{key}.gz")

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget every other filing."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.removesuffix(".gz") not in keys:
                    path.unlink()


def key_of(task: Task, files: Iterable[Path]) -> str:
    """Digest of a filing's files, of what is asked of it, of the taxonomies and of the code that reads it.

    Args:
        task: what to read; its cache folder is named by a digest of the taxonomies.
        files: every file that is read of the filing itself.
    """
    asked = [
        task.filing_id,
        task.entity_id,
        str(task.period_start),
        str(task.period_end),
        repr(task.required),
        repr(task.required_when),
        str(task.max_bytes),
        task.cache.name,
    ]
    parts = [*asked, *(f"{path.name} {sha256_of(path)}" for path in files), _code()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    folder = Path(__file__).parent
    sources = sorted({path for pattern in CODE for path in folder.glob(pattern)} | {Path(facts.__file__)})
    libraries = [f"{name} {version(name)}" for name in ("arelle-release", "lxml")]
    return "\n".join([*(f"{path.name} {sha256_of(path)}" for path in sources), *libraries])


def _filing(content: dict[str, Any]) -> Filing:
    rows = {name: [tuple(row) for row in content[name]] for name in ("refused", "messages", "checks")}
    return Filing(facts_read=content["facts_read"], facts=[_fact(row) for row in content["facts"]], **rows)


def _fact(row: list[Any]) -> Any:
    for place in DATES:
        row[place] = None if row[place] is None else date.fromisoformat(row[place])
    return tuple(row)
