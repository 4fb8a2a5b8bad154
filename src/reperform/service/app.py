"""The API: what comes over HTTP is handed to the desk. With `routes*`, the only place that imports FastAPI."""

import json
import logging
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from reperform import __version__, params, paths
from reperform.errors import ReperformError
from reperform.params import ServeParams
from reperform.service import door, openapi, routes, routes_files, routes_open
from reperform.service.answers import Conflict
from reperform.service.database import Unavailable
from reperform.service.door import Door
from reperform.service.keys import KeyRefused
from reperform.service.process import Service, tell
from reperform.service.refusals import Refusal, together
from reperform.service.telemetry import SHARED_FOLDER

HUNG_S = 20  # after which a worker that says nothing is replaced; one that is killed, mostly at once
APPLICATION = "reperform.service.app:create"

DESCRIPTION = (
    "Scores transactions as they come, with the features and models of the pipeline. Times are ISO 8601 with their "
    "offset from UTC. Every problem is answered as application/problem+json (RFC 9457) that says what was expected, "
    "what was got, where, and what to do. Send an Idempotency-Key with every POST: a request that is repeated under "
    "the same key gets its first answer, so it may be repeated whenever an answer did not arrive."
)


def create() -> Door:
    """The application of one process, with everything that params.yaml says; uvicorn calls this in each worker."""
    from reperform.service.champion import Champions  # noqa: PLC0415  # pulls in the models

    logging.captureWarnings(capture=True)
    return build(Service(params.load(ServeParams), make_champions=Champions))


def build(service: Service) -> Door:
    """The application around a service, which starts and ends with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="Reperform", version=__version__, summary="Anomalies in transactions, in real time",
        description=DESCRIPTION, lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None,
        redirect_slashes=False, generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    app.state.service = service
    for router in (routes_open.router, routes.router, routes_files.router):
        app.include_router(router)
    _explain_errors(app)
    document = app.openapi
    app.openapi = lambda: app.openapi_schema or openapi.with_schemas(document())  # type: ignore[method-assign]
    return Door(app, service)


def _explain_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        return answer_of(request, as_refusal(error))

    for kind in (ReperformError, psycopg.Error, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refused)


def answer_of(request: Request, error: Refusal) -> Response:
    """A refusal as an answer."""
    about = request.scope["reperform"]
    about["code"] = error.code
    body = door.problem_of(error, about["request_id"])
    return Response(body, status_code=error.status, media_type=door.PROBLEM, headers=door.headers_of(error))


def as_refusal(error: Exception) -> Refusal:
    """Any error as the answer that a client gets; what went wrong inside is not told."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestValidationError):
        return together([_about_parameter(dict(one)) for one in error.errors()])
    if isinstance(error, HTTPException):
        return _about_path(error)
    if isinstance(error, Unavailable):
        return Refusal(
            503, "database-unavailable", error.problem, fix=error.fix or "send the same request again in a moment",
            retry_after_s=error.retry_after_s,
        )  # fmt: skip
    known = {Conflict: (409, "idempotency-conflict"), KeyRefused: (401, "key-refused")}
    for kind, (status, code) in known.items():
        if isinstance(error, kind):
            return Refusal(
                status, code, error.problem, expected=error.expected, got=error.got, where=error.where, fix=error.fix
            )
    tell("mistake", error=type(error).__name__, place=door.place_of(error), level=logging.ERROR)
    return door.internal()


def _about_parameter(error: dict[str, Any]) -> Refusal:
    place = ", ".join(str(part) for part in error["loc"])
    return Refusal(
        422, "wrong-parameter", f"Parameter {error['loc'][-1]} is not what the API takes.",
        expected=str(error["msg"]), got=str(error.get("input")), where=place, fix="see /openapi.json",
    )  # fmt: skip


def _about_path(error: HTTPException) -> Refusal:
    if error.status_code == 405:  # noqa: PLR2004  # Method Not Allowed
        allowed = (error.headers or {}).get("Allow", "")
        found = Refusal(
            405, "wrong-method", "This path takes other methods.", expected=allowed, fix="see /openapi.json"
        )
        found.headers["Allow"] = allowed
        return found
    return Refusal(
        error.status_code, "no-such-path", "There is nothing at this path.", expected="a path of /openapi.json",
        fix="check the path; parts of it, such as ids, are percent-encoded",
    )  # fmt: skip


# Running


class JsonLines(logging.Formatter):
    """Log records of libraries as lines of JSON; ours are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; of an error its kind and place, never its text."""
        if record.name == door.LOG.name:
            return record.getMessage()
        told: dict[str, Any] = {"event": "library", "level": record.levelname, "logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            return json.dumps(told | {"error": door.place_of(record.exc_info[1])})
        return json.dumps(told | {"message": record.getMessage()[:500]})


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "reperform.service.app.JsonLines"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}},
    "root": {"handlers": ["out"], "level": "WARNING"},
    "loggers": {
        "reperform.service": {"handlers": ["out"], "level": "INFO", "propagate": False},
        "uvicorn": {"handlers": ["out"], "level": "INFO", "propagate": False},
    },
}


def serve(
    settings: ServeParams,
    *,
    host: str,
    port: int,
    workers: int,
    tls: tuple[str, str] | None = None,
    application: str = APPLICATION,
) -> int:
    """Serve until told to end (SIGTERM, Ctrl-C); a worker that is killed is started again.

    Args:
        settings: of the service.
        host: address to listen on.
        port: likewise.
        workers: processes.
        tls: files with certificate chain and private key, to speak HTTPS.
        application: what each worker calls for its application.
    """
    import uvicorn  # noqa: PLC0415  # only to run

    cert, private = tls or (None, None)
    uvicorn.run(
        application, factory=True, host=host, port=port, workers=workers, log_config=LOGGING,
        access_log=False, server_header=False, date_header=True, proxy_headers=False, ssl_certfile=cert,
        ssl_keyfile=private, timeout_graceful_shutdown=settings.graceful_stop_s, timeout_keep_alive=30,
        timeout_worker_healthcheck=HUNG_S, h11_max_incomplete_event_size=64 * 1024, ws="none", lifespan="on",
    )  # fmt: skip
    return 0


def main(
    host: str | None,
    port: int | None,
    workers: int | None,
    tls: tuple[str, str] | None,
    application: str = APPLICATION,
) -> int:
    """What `python -m reperform serve` does."""
    settings = params.load(ServeParams)
    n = workers or settings.workers
    folder = paths.project_root() / ".cache" / "service" / f"metrics-{os.getpid()}"
    if n > 1:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[SHARED_FOLDER] = str(folder)
    where = {"host": host or settings.host, "port": settings.port if port is None else port}
    try:
        return serve(settings, **where, workers=n, tls=tls, application=application)  # type: ignore[arg-type]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
