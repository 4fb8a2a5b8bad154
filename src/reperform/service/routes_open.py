"""Paths for operators and for whoever reads the API's description; they need no key and tell of no person."""

import base64
import hashlib

from fastapi import APIRouter, Request, Response

from reperform.service import contracts, openapi
from reperform.service.openapi import answer, problems
from reperform.service.refusals import Refusal
from reperform.service.routes import as_answer, service_of
from reperform.service.telemetry import CONTENT_TYPE

TEXT = {"type": "string"}
router = APIRouter(responses=problems(500))


@router.get(
    "/health", tags=["operation"], summary="Alive", responses=answer(contracts.Health, "The process answers."),
)  # fmt: skip
async def health() -> Response:
    """Whether the process lives; restart it when this does not answer."""
    return as_answer({"status": "alive"})


@router.get(
    "/ready", tags=["operation"], summary="Ready",
    responses={**answer(contracts.Ready, "Requests are answered."), **problems(503)},
)  # fmt: skip
async def ready(request: Request) -> Response:
    """Whether state is loaded and the database answers; send requests elsewhere when not."""
    service = service_of(request)
    status = service.status()
    if status["ready"]:
        return as_answer(status)
    raise Refusal(
        503, "not-ready", "Requests are not answered now.", expected="state loaded, database reachable",
        got=f"state {status['state']}, database {status['database']}", fix="wait, or read the log",
        retry_after_s=service.serve.retry_after_s,
    )  # fmt: skip


@router.get(
    "/metrics", tags=["operation"], summary="Figures for Prometheus", response_class=Response,
    responses={200: {"description": "As Prometheus reads it.", "content": {"text/plain": {"schema": TEXT}}}},
)  # fmt: skip
def metrics(request: Request) -> Response:
    """Requests, latencies by part, queues, model version, sequence; of all processes of this service."""
    return Response(service_of(request).metrics(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/openapi.json", include_in_schema=False)
def document(request: Request) -> Response:
    """The OpenAPI document."""
    return as_answer(request.app.openapi())


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> Response:
    """The OpenAPI document for people; it loads nothing and runs nothing."""
    digest = base64.b64encode(hashlib.sha256(openapi.STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'; base-uri 'none'"
    page = openapi.page(request.app.openapi())
    return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})
