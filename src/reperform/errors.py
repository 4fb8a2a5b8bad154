"""Errors that a user can act on: expected, got, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class ReperformError(Exception):
    """A refusal that is explained to the user without a stack trace.

    Args:
        problem: one sentence that says what is wrong.
        expected: what would have been right.
        got: what was found instead.
        where: file, line, key or row.
        fix: what the user can do now.
    """

    def __init__(self, problem: str, *, expected: str = "", got: str = "", where: str = "", fix: str = "") -> None:
        self.problem, self.expected, self.got, self.where, self.fix = problem, expected, got, where, fix
        parts = {"expected": expected, "got": got, "where": where, "what to do": fix}
        lines = [f"  {name}: {text}" for name, text in parts.items() if text]
        super().__init__("\n".join([problem, *lines]))


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choices that look most like a misspelt name, as a phrase for an error message."""
    known = sorted(choices)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"choose from {', '.join(known)}"
