"""The manifest binds every byte of a run, and the log takes no entry after one that was changed."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import audit, params
from reperform.errors import ReperformError
from reperform.params import AuditParams
from tests.conftest import ROOT

NOON = datetime(2025, 4, 1, 12, tzinfo=UTC)
FACTS = {"root": "r", "manifest_sha256": "m", "n_files": 1, "commit": None}
COVER = AuditParams(include=["conf", "data", "dvc.lock", "nowhere"], exclude=["data/audit", "__pycache__", "*.tmp"])
DVC_LOCK = """\
schema: '2.0'
stages:
  train@rules:
    cmd: python -m reperform train rules
    deps:
    - path: data/split
      md5: 1a
    outs:
    - path: data/train/rules
      md5: 2b
  compose:
    cmd: python -m reperform compose
"""
AUDIT_ENTRY = """\
  audit:
    cmd: python -m reperform audit
    outs:
    - path: data/audit/manifest.json
      md5: 3c
"""


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def fill(project: Path, **files: str) -> None:
    for name, text in files.items():
        path = project / "data" / name / "x.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- the tree ---


def test_the_root_of_no_leaves_is_the_hash_of_nothing() -> None:
    # RFC 6962, section 2.1: MTH({}) = SHA-256().
    assert audit.merkle_root([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_root_of_three_leaves_is_worked_out_by_hand() -> None:
    a, b, c = (sha(b"\x00" + leaf) for leaf in (b"a", b"b", b"c"))
    assert audit.merkle_root([b"a", b"b", b"c"]) == sha(b"\x01" + sha(b"\x01" + a + b) + c).hex()


def test_a_published_tree_is_met() -> None:
    # The test vectors of Google's certificate-transparency code for RFC 6962, eight leaves.
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    expected = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    assert audit.merkle_root([bytes.fromhex(leaf) for leaf in leaves]) == expected


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=20), st.data())
@settings(max_examples=50, deadline=None)
def test_a_change_anywhere_changes_the_root(leaves: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(leaves) - 1))
    changed = [*leaves[:at], leaves[at] + b"!", *leaves[at + 1 :]]
    assert audit.merkle_root(changed) != audit.merkle_root(leaves)
    assert audit.merkle_root([*leaves, b""]) != audit.merkle_root(leaves)


# --- what is covered ---


def test_files_are_found_in_order_and_excluded_ones_are_not(tmp_path: Path) -> None:
    fill(tmp_path, validate="v", audit="a", split="s")
    (tmp_path / "data" / "split" / "__pycache__").mkdir()
    (tmp_path / "data" / "split" / "__pycache__" / "m.pyc").write_text("")
    (tmp_path / "data" / "split" / ".y.tmp").write_text("")
    assert audit.files(tmp_path, COVER.include, COVER.exclude) == ["data/split/x.txt", "data/validate/x.txt"]


def test_a_file_is_listed_once_and_a_linked_folder_is_followed(tmp_path: Path) -> None:
    fill(tmp_path, split="s")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.txt").write_text("y")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert audit.files(tmp_path, ["data", "data/split"], []) == ["data/linked/y.txt", "data/split/x.txt"]


def test_a_link_that_points_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(ReperformError, match=r"cannot be read[\s\S]*data/gone"):
        audit.entries(tmp_path, audit.files(tmp_path, ["data"], []), "raw")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("params.yaml", "parameter"),
        ("conf/split/demo.yaml", "parameter"),
        ("data/simulate/raw/northbank/accounts.csv", "input"),
        ("data/validate/transactions.parquet", "data"),
        ("data/train/xgboost/model/model.ubj", "model"),
        ("data/train/xgboost/scores.parquet", "data"),
        ("data/ensemble/model.json", "model"),
        ("notebooks/02_validate.ipynb", "notebook"),
        ("reports/notebooks/02_validate.ipynb", "notebook"),
        ("reports/site/index.html", "report"),
        ("reports/templates/index.qmd", "code"),
        ("src/reperform/audit.py", "code"),
        ("requirements.lock", "environment"),
    ],
)
def test_files_are_told_apart(path: str, kind: str) -> None:
    assert audit.kind_of(path, "data/simulate/raw") == kind


def test_the_entry_of_the_audit_stage_and_the_order_of_stages_do_not_matter_in_the_lock_file() -> None:
    head, _, stages = DVC_LOCK.partition("stages:\n")
    train, compose = stages[: stages.index("  compose")], stages[stages.index("  compose") :]
    expected = audit.stable_lock(DVC_LOCK)
    assert audit.stable_lock(DVC_LOCK + AUDIT_ENTRY) == expected
    assert audit.stable_lock(f"{head}stages:\n{AUDIT_ENTRY}{compose}{train}") == expected
    assert audit.stable_lock(DVC_LOCK.replace("2b", "2c")) != expected
    assert "audit" not in expected


def test_the_graph_names_what_went_in_and_came_out() -> None:
    got = audit.graph(DVC_LOCK + AUDIT_ENTRY)
    assert list(got) == ["compose", "train@rules"]
    assert got["train@rules"] == {
        "cmd": "python -m reperform train rules",
        "deps": {"data/split": "1a"},
        "outs": {"data/train/rules": "2b"},
    }


def test_the_environment_names_what_is_not_as_locked() -> None:
    got = audit.environment("polars==0.0.1\nno-such-package==1.0\n# a comment\n")
    assert set(got["other_than_locked"]) == {"polars", "no-such-package"}
    assert got["packages"]["no-such-package"] is None


# --- a run ---


def test_the_same_files_give_the_same_bytes(project: Path) -> None:
    fill(project, split="s")
    audit.run(COVER)
    first = (project / "data" / "audit" / "manifest.json").read_bytes()
    audit.run(COVER)
    assert (project / "data" / "audit" / "manifest.json").read_bytes() == first
    fill(project, split="other")
    audit.run(COVER)
    assert (project / "data" / "audit" / "manifest.json").read_bytes() != first


def test_the_manifest_says_what_it_looked_for_and_did_not_find(project: Path) -> None:
    got = audit.run(COVER)
    assert {"nowhere", "data", "dvc.lock"} <= set(got["absent"])
    assert got["n_files"] == len(got["files"]) == got["n_files_by_kind"]["parameter"]


def test_the_raw_folder_is_covered_wherever_it_lies(project: Path) -> None:
    raw = project.parent / f"{project.name}-raw"
    raw.mkdir()
    (raw / "a.csv").write_text("1\n")
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("raw: data/simulate/raw", f"raw: {raw}"))
    got = [entry for entry in audit.run(COVER)["files"] if entry["kind"] == "input"]
    assert [entry["path"] for entry in got] == [f"../{raw.name}/a.csv"]


def test_no_absolute_path_stands_in_the_manifest(project: Path) -> None:
    fill(project, split="s")
    audit.run(COVER)
    assert str(project) not in (project / "data" / "audit" / "manifest.json").read_text()


# --- the log ---


def test_each_entry_names_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "log.jsonl"
    first = audit.append(path, "audit", FACTS, now=NOON)
    second = audit.append(path, "audit", FACTS, now=NOON)
    assert (first["sequence"], first["previous"]) == (0, "0" * 64)
    assert (second["sequence"], second["previous"]) == (1, first["hash"])
    assert audit.read_log(path) == [first, second]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [lines[0].replace("12:00", "13:00"), *lines[1:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [*lines, "{"],
        lambda lines: [*lines, "[]"],
        lambda lines: [*lines, ""],
    ],
    ids=["edited", "first removed", "middle removed", "swapped", "cut off", "no entry", "empty line"],
)
def test_a_log_that_was_changed_takes_no_more_entries(tmp_path: Path, spoil: object) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(3):
        audit.append(path, "audit", FACTS, now=NOON)
    lines = path.read_text().splitlines()
    spoilt = "\n".join(spoil(lines)) + "\n"  # type: ignore[operator]
    path.write_text(spoilt)
    with pytest.raises(ReperformError, match=r"log has been changed[\s\S]*line \d"):
        audit.append(path, "audit", FACTS, now=NOON)
    assert path.read_text() == spoilt


def test_a_changed_log_stops_the_run_before_the_manifest_is_written(project: Path) -> None:
    audit.run(COVER)
    log, written = (project / "data" / "audit" / name for name in ("log.jsonl", "manifest.json"))
    log.write_text(log.read_text().replace("audit", "other"))
    written.unlink()
    with pytest.raises(ReperformError, match="keep this file as evidence"):
        audit.run(COVER)
    assert not written.exists()


def test_the_log_is_shown_to_people(tmp_path: Path) -> None:
    assert audit.log_lines([]) == ["no run has been audited here yet; next: dvc repro"]
    entry = audit.append(tmp_path / "log.jsonl", "audit", FACTS, now=NOON)
    (line,) = audit.log_lines([entry])
    assert "2025-04-01T12:00:00+00:00" in line
    assert entry["hash"][:16] in line


def test_processes_that_write_to_the_log_at_once_make_one_chain(tmp_path: Path) -> None:
    code = (
        "import sys; from datetime import UTC, datetime; from pathlib import Path; from reperform import audit\n"
        "for _ in range(20): audit.append(Path(sys.argv[1]), 'calls', {'n_calls': 1}, now=datetime.now(UTC))"
    )
    path = tmp_path / "log.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(audit.read_log(path)) == 40


# --- inside DVC ---

PIPELINE = """\
stages:
  split:
    cmd: mkdir -p data/split && echo s > data/split/x.txt
    outs: [data/split]
  audit:
    cmd: python -m reperform audit
    deps: [data/split]
    outs: [data/audit/manifest.json]
"""


@pytest.mark.slow
def test_within_dvc_repro_two_clean_runs_agree_and_verify_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    manifests = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "dvc.yaml").write_text(PIPELINE)
        content = dict(params.raw(ROOT / "params.yaml"))
        content["audit"] = {"include": ["data", "dvc.yaml", "dvc.lock"], "exclude": ["data/audit", ".gitignore"]}
        (folder / "params.yaml").write_text(json.dumps(content, default=str))
        for command in (["dvc", "init", "--quiet", "--no-scm"], ["dvc", "repro"]):
            got = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert got.returncode == 0, got.stdout + got.stderr
        manifests.append((folder / "data" / "audit" / "manifest.json").read_bytes())
        assert "  audit:" in (folder / "dvc.lock").read_text()
        checked = subprocess.run(
            [sys.executable, "-I", str(ROOT / "tools" / "verify.py"), "--root", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert checked.stdout.splitlines()[-1] == "same: 3, changed: 0, missing: 0"
    assert manifests[0] == manifests[1]
