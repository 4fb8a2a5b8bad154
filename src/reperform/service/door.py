"""What every request passes on its way in and every answer on its way out. Plain ASGI; nothing of FastAPI is here.

An answer is held until its entry stands in the log of calls, so nothing leaves that is not written down.
"""

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Protocol

import anyio
import anyio.to_thread

from reperform.errors import ReperformError
from reperform.service.contracts import Problem, ProblemPart
from reperform.service.refusals import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBLEM = "application/problem+json"
PROBLEM_TYPE = "https://reperform.example/problems/"
API = "/api/"
HIDDEN = (b"server", b"x-powered-by")
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
}
HSTS = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")
LOG = logging.getLogger("reperform.service")
UNMATCHED = "unmatched"
PATIENCE_S = 20.0  # for the next part of a body
SLOWEST = 8_192  # bytes a second that a body must come with, beyond the first moments
SMALL = 65_536  # bytes of a body that may be read before it is known who sends it


class Watcher(Protocol):
    """Who is told of every request."""

    behind_tls: bool
    request_log: bool

    def logged(self, facts: dict[str, Any]) -> None:
        """Write a request into the log of calls."""

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""


def problem_of(error: Refusal, request_id: str) -> bytes:
    """A refusal as RFC 9457 has it."""
    many = [_part(one) for one in error.more] or None
    document = Problem(
        type=PROBLEM_TYPE + error.code,
        title=error.code.replace("-", " ").capitalize(),
        status=error.status,
        detail=error.problem,
        expected=error.expected or None,
        got=error.got or None,
        where=error.where or None,
        fix=error.fix or None,
        request_id=request_id,
        errors=many,
    )
    return document.model_dump_json(exclude_none=True).encode()


def _part(one: Refusal) -> ProblemPart:
    return ProblemPart(
        code=one.code,
        detail=one.problem,
        expected=one.expected or None,
        got=one.got or None,
        where=one.where or None,
        fix=one.fix or None,
    )


def headers_of(error: Refusal) -> dict[str, str]:
    """Headers that belong to a refusal."""
    found = dict(error.headers)
    if error.retry_after_s is not None:
        found["Retry-After"] = str(max(1, round(error.retry_after_s + 0.5)))
    if error.status == 401:  # noqa: PLR2004  # Unauthorized
        found["WWW-Authenticate"] = 'Bearer realm="reperform"'
    return found


def internal() -> Refusal:
    """What clients are told of a fault of ours."""
    return Refusal(
        500, "internal", "The service made a mistake; nothing was answered.",
        fix="send the request again with the same idempotency key; if it stays so, tell us the request_id",
    )  # fmt: skip


def is_small(scope: Scope) -> bool:
    """Whether a body says that it is small: it may be read before anything is known of its sender."""
    declared = dict(scope["headers"]).get(b"content-length", b"")
    return declared.isdigit() and int(declared) <= SMALL


async def body_of(scope: Scope, receive: Receive, most: int) -> bytes:
    """The body of a request, refused before more than `most` bytes of it were read.

    Raises:
        Refusal: 413; 408 or 400 when the body does not come.
    """
    parts: list[bytes] = []
    await _received(scope, receive, most, parts.append)
    return b"".join(parts)


async def file_of(scope: Scope, receive: Receive, most: int, target: Any) -> None:
    """The same into a file, for bodies that are too large for memory."""
    await _received(scope, receive, most, target.write)


async def _received(scope: Scope, receive: Receive, most: int, take: Callable[[bytes], Any]) -> None:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > most:
        raise _too_large(most, declared.decode("ascii", "replace"))
    hasher = _begun_hash(scope)
    size, more, began = 0, True, time.monotonic()
    while more:
        message: Message = {"type": "late"}
        left_s = began + PATIENCE_S + size / SLOWEST - time.monotonic()
        with anyio.move_on_after(min(PATIENCE_S, left_s)):
            message = await receive()
        if message["type"] != "http.request":
            raise _cut_short(message["type"])
        part = message.get("body", b"")
        size, more = size + len(part), message.get("more_body", False)
        if size > most:
            raise _too_large(most, f"more than {most}")
        hasher.update(part)
        take(part)


def _cut_short(kind: str) -> Refusal:
    late = kind == "late"
    return Refusal(
        408 if late else 400, "body-too-slow" if late else "cut-short", "The body of the request does not come.",
        expected=f"a part at least every {PATIENCE_S:g} seconds, and {SLOWEST} bytes a second", where="body",
        fix="send the request again",
    )  # fmt: skip


def _too_large(most: int, got: str) -> Refusal:
    return Refusal(
        413, "body-too-large", "This body is too large.", expected=f"at most {most} bytes", got=f"{got} bytes",
        where="body", fix="send fewer transactions at once, or a file to POST /api/v1/batch-process",
    )  # fmt: skip


def _two_lengths() -> Refusal:
    """Where two of us could disagree on where a request ends, another one could be hidden in it (RFC 9112, 6.1)."""
    found = Refusal(
        400, "two-lengths", "The request says its length in two ways.", expected="Content-Length or Transfer-Encoding",
        got="both", where="headers", fix="send one of them",
    )  # fmt: skip
    found.headers["Connection"] = "close"
    return found


def _begun_hash(scope: Scope) -> Any:
    path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    head = b" ".join([scope["method"].encode(), path + b"?" + scope.get("query_string", b"")])
    scope["reperform"]["hash"] = hashlib.sha256(head + b"\n")
    return scope["reperform"]["hash"]


def request_hash(scope: Scope) -> str:
    """SHA-256 of method, path, query and what was read of the body."""
    return str((scope["reperform"].get("hash") or _begun_hash(scope)).hexdigest())


def route_of(scope: Scope) -> str:
    """Template of the path, so that no id stands in it."""
    return str(getattr(scope.get("route"), "path", UNMATCHED)).replace(":path}", "}")


class Door:
    """An application with everything that holds for every request.

    Args:
        app: the application.
        watcher: who is told of requests.
    """

    def __init__(self, app: App, watcher: Watcher) -> None:
        self.app, self.watcher = app, watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        about: dict[str, Any] = {"request_id": secrets.token_hex(16)}
        scope["reperform"] = about
        answer = _Answer()
        try:
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
                answer.replace(_two_lengths(), about)
            else:
                await self.app(scope, receive, answer.take)
        except Exception as error:  # noqa: BLE001  # whatever it was, the client gets no stack trace
            about["error"] = place_of(error)
            answer.replace(internal(), about)
        about["route"] = route_of(scope)
        if scope["path"].startswith(API) and not about.get("is_logged"):
            await self._log_call(scope, about, answer)
        answer.finish(self._headers(scope, about))
        await answer.send_on(send)
        self._tell(scope, about, answer.status, time.perf_counter() - began)

    async def _log_call(self, scope: Scope, about: dict[str, Any], answer: "_Answer") -> None:
        facts = {
            "request_id": about["request_id"],
            "key_id": about.get("key_id"),
            "method": scope["method"],
            "route": about["route"],
            "status": answer.status,
            "request_sha256": request_hash(scope),
            "response_sha256": hashlib.sha256(answer.body).hexdigest(),
            "n_transactions": 0,
        }
        try:
            await anyio.to_thread.run_sync(self.watcher.logged, facts)
        except ReperformError as error:
            about["error"] = place_of(error)
            answer.replace(
                Refusal(
                    503, "not-logged", "The log of calls cannot be written now, so nothing is answered.",
                    fix="send the same request again in a moment", retry_after_s=getattr(error, "retry_after_s", 2.0),
                ),
                about,
            )  # fmt: skip

    def _headers(self, scope: Scope, about: dict[str, Any]) -> Iterable[tuple[bytes, bytes]]:
        found = dict(HEADERS) | {b"x-request-id": about["request_id"].encode()}
        if self.watcher.behind_tls or scope.get("scheme") == "https":
            found[HSTS[0]] = HSTS[1]
        return found.items()

    def _tell(self, scope: Scope, about: dict[str, Any], status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.watcher.answered(about["route"], method, status, seconds)
        if not self.watcher.request_log:
            return
        told = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": "request",
            "request_id": about["request_id"],
            "method": method,
            "route": about["route"],
            "status": status,
            "ms": round(seconds * 1000, 2),
            **{name: about[name] for name in ("key_id", "n_transactions", "code", "error") if about.get(name)},
        }
        LOG.log(logging.ERROR if status >= 500 else logging.INFO, json.dumps(told))  # noqa: PLR2004  # our fault


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def place_of(error: BaseException) -> str:
    """What kind of error and where: never its text, which may tell of people."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    return f"{type(error).__name__} at {trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"


class _Answer:
    """An answer that is held until it may go."""

    def __init__(self) -> None:
        self.status, self.body = 500, b""
        self._headers: list[tuple[bytes, bytes]] = []

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = [(name.lower(), value) for name, value in message.get("headers", [])]
            self.body = b""
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    def replace(self, error: Refusal, about: dict[str, Any]) -> None:
        about["code"] = error.code
        self.status, self.body = error.status, problem_of(error, about["request_id"])
        given = {"Content-Type": PROBLEM, "Content-Length": str(len(self.body)), **headers_of(error)}
        self._headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]

    def finish(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        own = {name for name, _ in self._headers}
        self._headers = [pair for pair in self._headers if pair[0] not in HIDDEN]
        self._headers += [pair for pair in headers if pair[0] not in own]

    async def send_on(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self.body})
