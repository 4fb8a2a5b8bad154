"""A run ends with a few lines that say what was found and where to look."""

import json
from pathlib import Path

from reperform import summary


def document(root: Path, name: str, content: object) -> None:
    path = root / "data" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_nothing_has_run_yet(tmp_path: Path) -> None:
    assert summary.lines(tmp_path) == ["nothing has run yet; next: make repro"]


def test_rows_detection_and_report_are_named(tmp_path: Path) -> None:
    document(tmp_path, "validate/quality", {"tables": {"transactions": {"rows_out": 1200, "quarantined": 3}}})
    metric = {"estimate": 0.71234, "low": 0.65, "high": 0.76, "n": 10}
    document(tmp_path, "evaluate/metrics", {"ensemble": {"average_precision": metric}})
    (tmp_path / "reports" / "site").mkdir(parents=True)
    (tmp_path / "reports" / "site" / "index.html").write_text("<p>")
    data, ensemble, report = summary.lines(tmp_path)
    assert data == "data      1,200 transactions; 3 rows in quarantine"
    assert ensemble == "ensemble  average precision 0.712 (0.650 to 0.760)"
    assert report.startswith("report    reports/site/index.html")


def test_an_unknown_figure_is_left_out_not_made_up(tmp_path: Path) -> None:
    metric = {"estimate": None, "low": None, "high": None, "n": 0}
    document(tmp_path, "evaluate/metrics", {"ensemble": {"average_precision": metric}})
    document(tmp_path, "export/receipt", {"tables": {"alerts": {"rows": 4}, "scores": {"rows": 6}}})
    assert summary.lines(tmp_path) == ["database  10 rows in 2 tables  (make psql opens it)"]


def test_no_browser_is_opened_in_a_pipe(tmp_path: Path, monkeypatch: object) -> None:
    opened: list[str] = []
    monkeypatch.setattr(summary.webbrowser, "open", opened.append)  # type: ignore[attr-defined]
    (tmp_path / "reports" / "site").mkdir(parents=True)
    (tmp_path / "reports" / "site" / "index.html").write_text("<p>")
    summary.open_report(tmp_path)
    assert opened == []
