"""Whatever was changed after a run is named, with nothing but Python's standard library."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import audit
from reperform.params import AuditParams
from tests.conftest import ROOT
from tests.test_audit import AUDIT_ENTRY, DVC_LOCK, fill

TOOL = ROOT / "tools" / "verify.py"
COVER = AuditParams(include=["conf", "data", "dvc.lock"], exclude=["data/audit", "*.tmp"])


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VERIFY = load()


@pytest.fixture
def audited(project: Path) -> Path:
    fill(project, split="s", validate="v")
    (project / "dvc.lock").write_text(DVC_LOCK)
    audit.run(COVER)
    # DVC writes this entry when the stage has ended.
    (project / "dvc.lock").write_text(DVC_LOCK + AUDIT_ENTRY)
    return project


def verify(root: Path, *options: str) -> tuple[int, list[str], str]:
    # -I: neither this project's packages nor the folder at hand can be imported.
    command = [sys.executable, "-I", "-S", str(TOOL), "--root", str(root), *options]
    got = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in got.stderr
    return got.returncode, got.stdout.splitlines(), got.stderr


def test_an_untouched_run_is_the_same(audited: Path) -> None:
    code, lines, errors = verify(audited)
    n_files = json.loads((audited / "data" / "audit" / "manifest.json").read_text())["n_files"]
    assert (code, errors) == (0, "")
    assert lines[-1] == f"same: {n_files}, changed: 0, missing: 0"


def test_an_edited_file_is_named(audited: Path) -> None:
    (audited / "data" / "split" / "x.txt").write_text("t")
    code, lines, _ = verify(audited)
    assert code == 1
    assert lines[0] == "changed: data/split/x.txt"
    assert lines[-1].endswith("changed: 1, missing: 0")


def test_a_removed_file_is_missing(audited: Path) -> None:
    (audited / "data" / "split" / "x.txt").unlink()
    code, lines, _ = verify(audited)
    assert code == 1
    assert lines[0] == "missing: data/split/x.txt"
    assert lines[-1].endswith("changed: 0, missing: 1")


def test_a_stage_that_ran_again_shows_in_the_lock_file(audited: Path) -> None:
    (audited / "dvc.lock").write_text(DVC_LOCK.replace("2b", "9z") + AUDIT_ENTRY)
    code, lines, _ = verify(audited)
    assert code == 1
    assert "changed: dvc.lock" in lines


def test_a_file_that_came_later_is_told_and_does_not_count(audited: Path) -> None:
    (audited / "data" / "split" / "new.txt").write_text("n")
    code, lines, _ = verify(audited)
    assert code == 0
    assert "later: data/split/new.txt" in lines


def entry_forged(manifest: dict[str, object]) -> None:
    manifest["files"][0]["sha256"] = "0" * 64  # type: ignore[index]


def root_forged(manifest: dict[str, object]) -> None:
    manifest["root"] = "0" * 64


def file_dropped(manifest: dict[str, object]) -> None:
    manifest["files"].pop()  # type: ignore[attr-defined]


@pytest.mark.parametrize("forge", [entry_forged, root_forged, file_dropped])
def test_a_manifest_that_contradicts_itself_is_refused(
    audited: Path, forge: Callable[[dict[str, object]], None]
) -> None:
    path = audited / "data" / "audit" / "manifest.json"
    manifest = json.loads(path.read_text())
    forge(manifest)
    path.write_text(json.dumps(manifest))
    code, _, errors = verify(audited, "--without-log")
    assert code == 1
    assert "contradicts itself" in errors


def test_a_manifest_made_to_fit_a_changed_file_is_unknown_to_the_log(audited: Path) -> None:
    (audited / "data" / "split" / "x.txt").write_text("t")
    (audited / "dvc.lock").write_text(DVC_LOCK)
    log = (audited / "data" / "audit" / "log.jsonl").read_text()
    audit.run(COVER)
    (audited / "data" / "audit" / "log.jsonl").write_text(log)
    code, lines, errors = verify(audited)
    assert code == 1
    assert lines[-1].endswith("changed: 0, missing: 0")
    assert "the log does not know this manifest" in errors
    assert verify(audited, "--without-log")[0] == 0


@pytest.mark.parametrize("old", ["audit", "+00:00"])
def test_a_log_that_was_changed_is_caught(audited: Path, old: str) -> None:
    path = audited / "data" / "audit" / "log.jsonl"
    path.write_text(path.read_text().replace(old, "other", 1))
    code, _, errors = verify(audited)
    assert code == 1
    assert "chain is broken at line 1" in errors


def test_an_earlier_run_verifies_against_a_longer_log(audited: Path) -> None:
    manifest = (audited / "data" / "audit" / "manifest.json").read_bytes()
    fill(audited, split="later")
    audit.run(COVER)
    fill(audited, split="s")
    (audited / "data" / "audit" / "manifest.json").write_bytes(manifest)
    assert verify(audited)[0] == 0


def test_a_run_whose_log_stayed_elsewhere_verifies_and_says_so(audited: Path) -> None:
    (audited / "data" / "audit" / "log.jsonl").unlink()
    code, lines, _ = verify(audited)
    assert code == 0
    assert lines[0].startswith("log: none here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no manifest"),
        ("{", "cannot be read"),
        ("[]", "not a manifest"),
        ("{}", "not a manifest"),
        ('{"format": 1, "root": "r", "files": [{"path": "x"}]}', "not a manifest"),
        ('{"format": 1, "root": "r", "files": 3}', "not a manifest"),
        ('{"format": 99, "root": "r", "files": []}', "format 99"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_no_manifest_is_explained(tmp_path: Path, text: str | bytes | None, said: str) -> None:
    path = tmp_path / "data" / "audit" / "manifest.json"
    if text is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, _, errors = verify(tmp_path)
    assert code == 1
    assert said in errors


def test_it_imports_the_standard_library_alone_and_reads_as_python_3_9() -> None:
    tree = ast.parse(TOOL.read_text(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)


@given(st.lists(st.binary(max_size=8), max_size=40))
@settings(max_examples=50, deadline=None)
def test_both_ways_to_work_out_the_root_agree(leaves: list[bytes]) -> None:
    assert VERIFY.merkle_root(leaves) == audit.merkle_root(leaves)


@pytest.mark.parametrize("text", ["", "schema: '2.0'\n", DVC_LOCK, DVC_LOCK + AUDIT_ENTRY, AUDIT_ENTRY + DVC_LOCK])
def test_both_ways_to_read_the_lock_file_agree(text: str) -> None:
    assert VERIFY.without_audit(text) == audit.stable_lock(text)


@given(st.lists(st.sampled_from(["data", "audit", "a.tmp", "x"]), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_both_leave_the_same_files_out(parts: list[str]) -> None:
    path = "/".join(parts)
    assert VERIFY.is_excluded(path, COVER.exclude) == audit.is_excluded(path, COVER.exclude)
