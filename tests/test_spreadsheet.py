"""What people are given as CSV runs no formula, whichever way it leaves the project."""

import os
import sys
from pathlib import Path

import pytest

from reperform.export import shell

CSV = 'id,note\nT1,"=HYPERLINK(""http://x"")"\nT2,-12.5\nT3,"a, b"\nT4,"@x\nsecond line"\n'
SAFE = 'id,note\nT1,"\'=HYPERLINK(""http://x"")"\nT2,-12.5\nT3,"a, b"\nT4,"\'@x\nsecond line"\n'


def program(folder: Path, text: str, code: int) -> list[str]:
    """A program that prints a text, in the place of psql."""
    script = folder / "printed.py"
    script.write_text(f"import sys\nsys.stdout.write({text!r})\nsys.exit({code})\n", encoding="utf-8")
    return [sys.executable, str(script)]


@pytest.mark.parametrize("code", [0, 3])
def test_csv_of_a_statement_is_made_neutral_and_the_exit_code_kept(
    code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [*program(tmp_path, CSV, code), "-c", "SELECT 1", "--csv"]
    assert shell._called(command, dict(os.environ)) == code
    sys.stdout.flush()
    assert capfd.readouterr().out == SAFE


def test_other_output_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert shell._called([*program(tmp_path, CSV, 0), "-c", "SELECT 1"], dict(os.environ)) == 0
    assert capfd.readouterr().out == CSV
