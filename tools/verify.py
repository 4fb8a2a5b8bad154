"""Check a run against its manifest, with Python's standard library alone (3.9 or newer).

    python tools/verify.py [--root DIR] [--without-log]
    python tools/verify.py --calls FILE [--last HASH] [--root DIR]

Reads data/audit/manifest.json, hashes every file that it lists, works out the Merkle root again (RFC 6962, section
2.1), and follows the chain of data/audit/log.jsonl, which must name this manifest. Prints each file that has changed or
is missing, and ends with `same: N, changed: C, missing: M`. The exit code is 0 only when nothing has changed, nothing
is missing, and manifest and log hold together.

With --calls it checks the scoring service's log of calls instead, as `python -m reperform calls --to FILE` writes it:
that each entry follows from the one before it, and that the log still has every end that data/audit/log.jsonl, or the
hash given with --last, says it once had.

This file shares no code with what writes the manifest or the logs, so that one mistake can't hide in both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MANIFEST = "data/audit/manifest.json"
LOG = "data/audit/log.jsonl"
FORMAT = 1
BLOCK_BYTES = 1 << 20
SHOWN = 20
FIRST = "0" * 64  # what the first entry of a log names as the one before it


class Unfit(Exception):  # noqa: N818  # read as a sentence where it is raised
    """A manifest or a log that cannot be relied on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, print the outcome, and return the exit code."""
    parser = argparse.ArgumentParser(description="Check a run against its manifest.")
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--root", type=Path, default=here, help="the project's folder")
    parser.add_argument("--without-log", action="store_true", help="for a run that was made elsewhere, without its log")
    parser.add_argument("--calls", type=Path, metavar="FILE", help="check this log of the service's calls, and no run")
    parser.add_argument("--last", metavar="HASH", help="the last hash that the log of calls had at some time")
    options = parser.parse_args(argv)
    if options.calls:
        return verify_calls(options.calls, options.root, options.last, without_log=options.without_log)
    if options.last:
        parser.error("--last belongs to --calls")
    try:
        manifest = read_manifest(options.root)
    except Unfit as unfit:
        print(f"verify: {unfit}", file=sys.stderr)
        return 1
    outcomes = {entry["path"]: compare(options.root, entry) for entry in manifest["files"]}
    for path, outcome in outcomes.items():
        if outcome != "same":
            print(f"{outcome}: {path}")
    faults = [*contradictions(manifest), *([] if options.without_log else log_faults(options.root))]
    for fault in faults:
        print(f"verify: {fault}", file=sys.stderr)
    tell_uncovered(options.root, manifest)
    counts = {word: list(outcomes.values()).count(word) for word in ("same", "changed", "missing")}
    print(", ".join(f"{word}: {count}" for word, count in counts.items()))
    return 1 if faults or counts["changed"] or counts["missing"] else 0


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest, when it can be read and has the form that is checked here."""
    path = root / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unfit(f"there is no manifest: {path}. Run `dvc repro`, or `dvc checkout` for an earlier run.") from None
    except (OSError, ValueError) as error:
        raise Unfit(f"the manifest cannot be read: {path}: {error}") from None
    try:
        if manifest["format"] != FORMAT:
            raise Unfit(f"the manifest has format {manifest['format']}, and this verifier knows {FORMAT}.")
        whole = isinstance(manifest["root"], str) and all(
            isinstance(entry["path"], str) and isinstance(entry["sha256"], str) and isinstance(entry["size"], int)
            for entry in manifest["files"]
        )
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise Unfit(f"this is not a manifest: {path} lacks its root or its list of files.")
    return manifest


def compare(root: Path, entry: dict[str, Any]) -> str:
    """Whether a listed file is the same, changed or missing."""
    path = root / entry["path"]
    if not path.is_file():
        return "missing"
    try:
        digest, size = hash_of(path, is_lock=entry["path"] == "dvc.lock")
    except (OSError, UnicodeError):
        return "changed"
    return "same" if (digest, size) == (entry["sha256"], entry["size"]) else "changed"


def hash_of(path: Path, *, is_lock: bool) -> tuple[str, int]:
    """SHA-256 and size of a file; of dvc.lock, of its text without the audit stage and with stages in order of names.

    DVC adds the audit stage's entry after the manifest has been made, and that entry holds the manifest's own hash.
    """
    if is_lock:
        content = without_audit(path.read_text(encoding="utf-8")).encode("utf-8")
        return hashlib.sha256(content).hexdigest(), len(content)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK_BYTES)
            if not block:
                return digest.hexdigest(), size
            digest.update(block)
            size += len(block)


def without_audit(text: str) -> str:
    """Lines outside stages first, then each stage's lines in order of stage names."""
    outside: list[str] = []
    stages: dict[str, list[str]] = {}
    current = None
    for line in text.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip(" "))
        if indent == 0 and line.strip():
            current = None
        elif indent == 2 and line.rstrip().endswith(":") and not line.lstrip().startswith("-"):  # noqa: PLR2004  # a stage
            current = line.strip()[:-1].strip("'\"")
            stages.setdefault(current, [])
        (outside if current is None else stages[current]).append(line)
    return "".join(outside + [line for name in sorted(stages) if name != "audit" for line in stages[name]])


def contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    """What in the manifest does not fit together: its root, its order, its counts."""
    paths = [entry["path"] for entry in manifest["files"]]
    if paths != sorted(set(paths), key=os.fsencode):
        yield "the manifest lists a file twice, or not in order."
    leaves = [f"{entry['sha256']} {entry['size']} {entry['path']}".encode() for entry in manifest["files"]]
    root = merkle_root(leaves)
    if root != manifest["root"]:
        yield f"the manifest contradicts itself: its files give root {root}, and it says {manifest['root']}."


def merkle_root(leaves: Sequence[bytes]) -> str:
    """RFC 6962, section 2.1, worked out level by level from a stack of whole subtrees."""
    stack: list[tuple[bytes, int]] = []  # (hash, leaves below it), powers of two, falling
    for leaf in leaves:
        node = (hashlib.sha256(b"\x00" + leaf).digest(), 1)
        while stack and stack[-1][1] == node[1]:
            left = stack.pop()
            node = (hashlib.sha256(b"\x01" + left[0] + node[0]).digest(), left[1] + node[1])
        stack.append(node)
    if not stack:
        return hashlib.sha256(b"").hexdigest()
    right = stack.pop()[0]
    while stack:
        right = hashlib.sha256(b"\x01" + stack.pop()[0] + right).digest()
    return right.hex()


def log_faults(root: Path) -> Iterator[str]:
    """What is wrong with the log: a broken chain, or no entry for this manifest."""
    path = root / LOG
    if not path.is_file():
        print("log: none here (it is not versioned; it stays where the run was made)")
        return
    before = FIRST
    manifests: list[str | None] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        entry = chained(line, number, before)
        if entry is None:
            yield f"the log's chain is broken at line {number + 1} of {path}: it was changed there or before."
            return
        before = entry["hash"]
        manifests.append(entry.get("manifest_sha256"))
    print(f"log: {len(manifests)} entries, last hash {before}")
    if hash_of(root / MANIFEST, is_lock=False)[0] not in manifests:
        yield (
            "the log does not know this manifest: it was changed after it was made, or made elsewhere "
            "(then: --without-log)."
        )


def chained(line: str, number: int, before: str) -> dict[str, Any] | None:
    """A log entry that follows from the one before it and carries its own right hash, else None."""
    try:
        entry = json.loads(line)
        content = {key: value for key, value in entry.items() if key != "hash"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        whole = entry["hash"] == hashlib.sha256(text.encode("utf-8")).hexdigest()
        return entry if whole and entry["previous"] == before and entry["sequence"] == number else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def verify_calls(path: Path, root: Path, last: str | None, *, without_log: bool) -> int:
    """Check a log of calls, print the outcome, and return the exit code."""
    try:
        hashes = call_hashes(path)
        kept = [] if without_log else kept_ends(root)
    except Unfit as unfit:
        print(f"verify: {unfit}", file=sys.stderr)
        return 1
    faults = [*missing_ends(hashes, kept), *([] if last is None else missing_hash(hashes, last))]
    for fault in faults:
        print(f"verify: {fault}", file=sys.stderr)
    if not kept and last is None:
        print("calls: no earlier end is known here, so entries that are missing at the end go unseen (see --last)")
    print(f"calls: {len(hashes)} entries, last hash {hashes[-1] if hashes else FIRST}")
    return 1 if faults else 0


def call_hashes(path: Path) -> list[str]:
    """The hash of each entry of a log of calls whose chain holds."""
    hashes: list[str] = []
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file):
                entry = chained(line, number, hashes[-1] if hashes else FIRST)
                # Written in one way only: a name given twice would show one value and be hashed with another.
                if entry is None or line != json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n":
                    raise Unfit(
                        f"the chain of calls is broken at line {number + 1} of {path}: changed there or before."
                    )
                hashes.append(entry["hash"])
    except (OSError, UnicodeError) as error:
        raise Unfit(f"the log of calls cannot be read: {path}: {error}") from None
    return hashes


def kept_ends(root: Path) -> list[dict[str, Any]]:
    """Entries of the run log that say where the log of calls ended at some time."""
    path = root / LOG
    if not path.is_file():
        return []
    before, ends = FIRST, []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        entry = chained(line, number, before)
        if entry is None:
            raise Unfit(f"the log's chain is broken at line {number + 1} of {path}: it was changed there or before.")
        before = entry["hash"]
        if entry.get("event") == "calls":
            ends.append(entry)
    return ends


def missing_ends(hashes: Sequence[str], kept: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the log of calls lacks of what it once had."""
    for entry in kept:
        n = entry["n_calls"]
        if n > len(hashes):
            yield f"the end of the log of calls is missing: it had {n} entries at {entry['time']}, now {len(hashes)}."
        elif n and hashes[n - 1] != entry["last_call"]:
            yield f"the log of calls was written anew: entry {n - 1} is not the one that it had at {entry['time']}."


def missing_hash(hashes: Sequence[str], last: str) -> Iterator[str]:
    """Whether a hash that somebody kept is gone from the log of calls."""
    if last not in hashes:
        yield f"the log of calls does not know {last}: its end is missing, or it was written anew."


def tell_uncovered(root: Path, manifest: dict[str, Any]) -> None:
    """Name files that lie where the manifest looks and that it does not list: they came later, and no run read them."""
    listed = {entry["path"] for entry in manifest["files"]}
    later = sorted(path for path in present(root, manifest) if path not in listed)
    for path in later[:SHOWN]:
        print(f"later: {path}")
    if len(later) > SHOWN:
        print(f"later: {len(later) - SHOWN} more")


def present(root: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Paths of all files that the manifest would cover if it were made now."""
    exclude = manifest.get("exclude", [])
    for name in manifest.get("include", []):
        if (root / name).is_file():
            yield name
        for folder, folders, names in os.walk(root / name, followlinks=True):
            at = Path(os.path.relpath(folder, root))
            folders[:] = [one for one in folders if not is_excluded((at / one).as_posix(), exclude)]
            for one in names:
                if not is_excluded((at / one).as_posix(), exclude):
                    yield (at / one).as_posix()


def is_excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path, or any name on it, meets a pattern."""
    parts = path.split("/")
    texts = parts + ["/".join(parts[: end + 1]) for end in range(len(parts))]
    return any(fnmatch(text, pattern) for pattern in patterns for text in texts)


if __name__ == "__main__":
    sys.exit(main())
