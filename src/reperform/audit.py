"""Write down what a run consists of, so that anyone can tell later whether a single byte has changed.

The manifest lists every file with its SHA-256 and binds them in one Merkle root (RFC 6962, section 2.1): a leaf is the
hash of 0x00 and `<sha256> <size> <path>`, a node the hash of 0x01 and its two halves, the left half being the largest
power of two below the number of leaves. Leaves stand in the order of their paths' bytes.

The run log tells when: one JSON line per run of this stage, each with the hash of the line before it. It holds times,
so DVC does not version it. `tools/verify.py` checks both, with the standard library alone and with code of its own.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from reperform import params, paths, tables
from reperform.errors import ReperformError
from reperform.params import AuditParams, IngestParams

FORMAT = 1
MANIFEST, LOG = "manifest.json", "log.jsonl"
LOCK = "dvc.lock"
FIRST = "0" * 64  # what the first entry of a log names as the one before it
LEAF, NODE = b"\x00", b"\x01"
# What a file is, by the first pattern that its path meets.
KINDS = (
    ("parameter", ("params.yaml", "conf/*")),
    ("model", ("data/train/*/model/*", "data/train/*/first_model/*", "data/ensemble/model*", "data/tune/*")),
    ("notebook", ("notebooks/*", "reports/notebooks/*")),
    ("report", ("reports/site/*", "reports/build/*")),
    ("environment", ("requirements.lock", "environment.yml", "pyproject.toml")),
    ("data", ("data/*",)),
    ("code", ("*",)),
)


@dataclass(frozen=True)
class Entry:
    """One file of the manifest.

    Args:
        path: below the project's root, with `/`.
        kind: what it is, as in `KINDS`.
        sha256: of its content; of `dvc.lock`, of what `stable_lock` keeps of it.
        size: in bytes, of the same.
    """

    path: str
    kind: str
    sha256: str
    size: int

    @property
    def leaf(self) -> bytes:
        """What its leaf of the Merkle tree is the hash of."""
        return f"{self.sha256} {self.size} {self.path}".encode()


def files(root: Path, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Paths below the project's root of every file that the manifest covers, in the order of their bytes.

    Args:
        root: the project's folder.
        include: files and folders, relative to it; those that do not exist are named in the manifest as absent.
        exclude: patterns of paths, or of the name of any folder or file on the way.
    """
    found = {path for name in include for path in _below(root, name, exclude)}
    return sorted(found, key=os.fsencode)


def _below(root: Path, name: str, exclude: Sequence[str]) -> Iterator[str]:
    place = root / name
    if place.is_file():
        yield Path(name).as_posix()
    if not place.is_dir():
        return
    for folder, folders, names in os.walk(place, followlinks=True, onerror=_unreadable):
        at = Path(os.path.relpath(folder, root))
        folders[:] = sorted(one for one in folders if not is_excluded((at / one).as_posix(), exclude))
        for one in names:
            path = (at / one).as_posix()
            if not is_excluded(path, exclude):
                yield path


def _unreadable(error: OSError) -> None:
    raise ReperformError(
        "A folder cannot be read, so the manifest would not be whole.",
        expected="folders and files that can be read",
        got=error.strerror or str(error),
        where=str(error.filename),
        fix="check its owner and rights, then run `dvc repro audit`",
    ) from error


def is_excluded(path: str, exclude: Sequence[str]) -> bool:
    """Whether a path, or the name of a folder or file on it, meets one of the patterns."""
    parts = path.split("/")
    heads = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    return any(fnmatch(text, pattern) for pattern in exclude for text in (*heads, *parts))


def kind_of(path: str, raw: str) -> str:
    """What a file is; everything in the raw folder is input."""
    if path.startswith(f"{raw}/"):
        return "input"
    return next(kind for kind, patterns in KINDS if any(fnmatch(path, pattern) for pattern in patterns))


def entries(root: Path, found: Sequence[str], raw: str) -> list[Entry]:
    """The manifest's entries, hashed two files at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda path: Entry(path, kind_of(path, raw), *_hashed(root, path)), found))


def _hashed(root: Path, path: str) -> tuple[str, int]:
    try:
        if path == LOCK:
            content = stable_lock((root / path).read_text(encoding="utf-8")).encode()
            return hashlib.sha256(content).hexdigest(), len(content)
        with (root / path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise _unreadable_file(root / path, error) from error


def _unreadable_file(path: Path, error: OSError) -> ReperformError:
    return ReperformError(
        "A file cannot be read, so the manifest would not be whole.",
        expected="files that can be read",
        got=error.strerror or str(error),
        where=str(path),
        fix="check its owner and rights, or where its link points, then run `dvc repro audit`",
    )


def stable_lock(text: str) -> str:
    """What of `dvc.lock` stays the same while the audit stage runs inside `dvc repro`.

    DVC writes the entry of each stage when that stage has ended. So the entry of `audit` is still to come when the
    manifest is made, and names the manifest's own hash: it is left out. The other entries are put in order of their
    names, since DVC appends them in the order in which stages first ran.
    """
    head: list[str] = []
    blocks: dict[str, list[str]] = {}
    block = head
    for line in text.splitlines(keepends=True):
        name = re.match(r"  (\S.*):\s*$", line)
        if name:
            block = blocks.setdefault(name[1].strip("'\""), [])
        elif line[:1] not in (" ", "\n", ""):
            block = head
        block.append(line)
    kept = [line for name in sorted(blocks) if name != "audit" for line in blocks[name]]
    return "".join([*head, *kept])


def merkle_root(leaves: Sequence[bytes]) -> str:
    """The root of the tree over the leaves' contents, as hexadecimal text.

    Source: RFC 6962, section 2.1.
    """
    if not leaves:
        return hashlib.sha256(b"").hexdigest()
    return _tree([hashlib.sha256(LEAF + leaf).digest() for leaf in leaves]).hex()


def _tree(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    half = 1 << (len(hashes) - 1).bit_length() - 1
    return hashlib.sha256(NODE + _tree(hashes[:half]) + _tree(hashes[half:])).digest()


def graph(lock: str) -> dict[str, Any]:
    """The stages that `dvc.lock` tells of, without `audit`: command, and MD5 of what went in and came out."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {})
    return {
        name: {
            "cmd": stage["cmd"],
            **{side: {one["path"]: one.get("md5") for one in stage.get(side, [])} for side in ("deps", "outs")},
        }
        for name, stage in sorted(stages.items())
        if name != "audit"
    }


def environment(lock: str) -> dict[str, Any]:
    """Python and the packages that the lock file names, as they are installed."""
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", lock, flags=re.MULTILINE))
    installed = {name: _version(name) for name in sorted(pinned)}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": installed,
        "other_than_locked": {
            name: version for name, version in installed.items() if (version or "").split("+")[0] != pinned[name]
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def manifest(listed: Sequence[Entry], about: Mapping[str, Any]) -> dict[str, Any]:
    """The document that `tools/verify.py` checks.

    Args:
        listed: every file, in order of its path.
        about: what else is written down: what is covered, stages, renderer, environment.
    """
    counts = Counter(entry.kind for entry in listed)
    return {
        "format": FORMAT,
        "root": merkle_root([entry.leaf for entry in listed]),
        "n_files": len(listed),
        "n_bytes": sum(entry.size for entry in listed),
        "n_files_by_kind": dict(counts),
        "files": [asdict(entry) for entry in listed],
        **about,
    }


# --- the run log ---


def sealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the log with its own hash: the SHA-256 of its other fields as compact JSON with sorted keys."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**entry, "hash": hashlib.sha256(text.encode()).hexdigest()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log whose chain holds; none when there is no log.

    Raises:
        ReperformError: naming the first line that breaks the chain.
    """
    if not path.is_file():
        return []
    read: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            entry = json.loads(line)
            own = entry.pop("hash")
            whole = sealed(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _broken(path, number, "no entry") from None
        before = read[-1]["hash"] if read else FIRST
        if (entry.get("sequence"), entry.get("previous"), own) != (number, before, whole["hash"]):
            raise _broken(path, number, "an entry that does not follow from the one before it, or was changed")
        read.append(whole)
    return read


def _broken(path: Path, number: int, got: str) -> ReperformError:
    return ReperformError(
        "The run log has been changed; nothing is added to it.",
        expected="entries that each name the hash of the one before",
        got=got,
        where=f"{path}, line {number + 1}",
        fix="keep this file as evidence under another name and find out who changed it; the next run begins a new log",
    )


def append(path: Path, event: str, facts: Mapping[str, Any], *, now: datetime) -> dict[str, Any]:
    """Add one entry to the log, in one write, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        _alone(file)
        before = read_log(path)
        entry = sealed(
            {
                "sequence": len(before),
                "time": now.astimezone(UTC).isoformat(timespec="seconds"),
                "event": event,
                **facts,
                "previous": before[-1]["hash"] if before else FIRST,
            }
        )
        file.write((json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n").encode())
        os.fsync(file.fileno())
    return entry


def _alone(file: IO[bytes]) -> None:
    """Wait until no other process adds to the log; it ends when the file is closed."""
    import fcntl  # noqa: PLC0415  # not on every platform; the lock is a refinement there

    fcntl.flock(file, fcntl.LOCK_EX)


def log_lines(read: Iterable[Mapping[str, Any]]) -> list[str]:
    """The log for people, one line per run."""
    lines = [
        f"{entry['sequence']:>4}  {entry['time']}  {entry['event']}  {_told(entry)}  hash {entry['hash'][:16]}…"
        for entry in read
    ]
    return lines or ["no run has been audited here yet; next: dvc repro"]


def _told(entry: Mapping[str, Any]) -> str:
    """What an entry is about: a run's manifest, a decision about a model, or where the log of calls ended."""
    if "n_calls" in entry:
        return f"{entry['n_calls']} calls  last {entry['last_call'][:16]}…"
    if "root" in entry:
        return f"{entry['n_files']} files  root {entry['root'][:16]}…  commit {(entry['commit'] or 'none')[:10]}"
    return f"version {entry.get('version')} {entry.get('verdict')} by {entry.get('by')}"


def _commit(root: Path) -> str | None:
    """The commit that the project's folder is at, if git knows one."""
    try:
        got = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607  # the user's own git
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return got.stdout.strip() or None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def run(settings: AuditParams) -> dict[str, Any]:
    """Write `data/audit/manifest.json` and add a line to `data/audit/log.jsonl`; returns the manifest.

    What changes after this stage within the same `dvc repro` must not be covered: the folder of this stage itself, and
    its entry in `dvc.lock`. All else is an output of an earlier stage, or a source that no stage writes.
    """
    root, log = paths.project_root(), paths.data("audit") / LOG
    read_log(log)
    raw = Path(os.path.relpath(root / params.load(IngestParams).raw, root)).as_posix()
    include = [*settings.include, raw]
    renderer = _text(root / "reports" / "build" / "renderer.json")
    about = {
        "include": include,
        "exclude": settings.exclude,
        "absent": [name for name in include if not (root / name).exists()],
        "stages": graph(_text(root / LOCK)),
        "renderer": json.loads(renderer) if renderer else None,
        "environment": environment(_text(root / "requirements.lock")),
    }
    document = manifest(entries(root, files(root, include, settings.exclude), raw), about)
    written = tables.write_json(document, "audit", Path(MANIFEST).stem)
    facts = {
        "root": document["root"],
        "manifest_sha256": hashlib.sha256(written.read_bytes()).hexdigest(),
        "n_files": document["n_files"],
        "commit": _commit(root),
    }
    entry = append(log, "audit", facts, now=datetime.now(UTC))
    print(f"audit: {document['n_files']:,} files, root {document['root']}")
    print(f"audit: log entry {entry['sequence']}, hash {entry['hash']}")
    return document
