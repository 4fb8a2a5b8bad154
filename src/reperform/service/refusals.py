"""What the service refuses, with the HTTP status that says whose turn it is: the client's (4xx) or ours (503)."""

from collections.abc import Sequence

from reperform.errors import ReperformError

LONGEST_ECHO = 200  # characters of a client's own text that an answer repeats


class Refusal(ReperformError):  # noqa: N818  # it is what the service says, and no fault of ours
    """A request that is not answered, and why.

    Args:
        status: HTTP status.
        code: name of the kind of problem, in kebab case; it never changes, so programs may rely on it.
        problem: one sentence that says what is wrong.
        expected: what would have been right.
        got: what was found instead.
        where: place in the request, such as `transactions[3].amount`.
        fix: what the client can do now.
        retry_after_s: when it is worth while to try the same again.
        more: further problems of the same request.
    """

    def __init__(
        self,
        status: int,
        code: str,
        problem: str,
        *,
        expected: str = "",
        got: str = "",
        where: str = "",
        fix: str = "",
        retry_after_s: float | None = None,
        more: Sequence["Refusal"] = (),
    ) -> None:
        super().__init__(problem, expected=expected, got=echo(got), where=where, fix=fix)
        self.status, self.code, self.retry_after_s, self.more = status, code, retry_after_s, tuple(more)
        self.headers: dict[str, str] = {}  # of the answer, beside those that every answer has


def echo(text: object) -> str:
    """A client's own value as an answer may repeat it: printable, and not longer than it has to be."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))
    return shown if len(shown) <= LONGEST_ECHO else f"{shown[: LONGEST_ECHO - 1]}…"


def together(found: Sequence[Refusal]) -> Refusal:
    """Several problems of one request as one refusal: the first, with the others beside it."""
    first = found[0]
    if len(found) == 1:
        return first
    return Refusal(
        first.status,
        first.code,
        f"{first.problem} ({len(found) - 1} more {'problem' if len(found) == 2 else 'problems'} below.)",  # noqa: PLR2004  # plural
        expected=first.expected,
        got=first.got,
        where=first.where,
        fix=first.fix,
        retry_after_s=first.retry_after_s,
        more=found,
    )
