"""Paths of the API: what each takes and gives, and which scope of a key opens it."""

import base64
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from reperform import params
from reperform.params import IngestParams
from reperform.service import answers, contracts, documents, door, jobs, openapi
from reperform.service.contracts import ID_PATTERN
from reperform.service.detect import Call, Reasons
from reperform.service.detect import Response as Written
from reperform.service.openapi import answer, json_body, links, problems
from reperform.service.process import Service
from reperform.service.refusals import Refusal

JSON = "application/json"
TEXT = {"type": "string"}
FILES = ("application/octet-stream", "text/csv", "application/xml", "text/xml", "application/vnd.apache.parquet")
MOST_ROWS, FARTHEST = 5000, 2**31 - 1

COMMON = problems(401, 403, 429, 500, 503)
BODY = problems(400, 408, 413, 415, 422, 409)

bearer = HTTPBearer(
    scheme_name="key", bearerFormat="rpf_<id>_<secret>", auto_error=False,
    description="An API key: python -m reperform keys create NAME --scopes score,read",
)  # fmt: skip
router = APIRouter(prefix="/api/v1", dependencies=[Depends(bearer)], responses=COMMON)
open_router = APIRouter(responses=problems(500))

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[!-~]+$",
        description="Name of this request; under the same name, the same request gets its first answer again.",
        examples=["2025-06-21-batch-17"],
    ),
]  # fmt: skip
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="As POST /api/v1/batch-process gave it.")]
Offset = Annotated[int, Query(ge=0, le=FARTHEST, description="Rows to leave out.")]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Rows at most.")]


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _admit(request: Request, scope: Literal["score", "read", "admin"]) -> str:
    """The id of the key that opens this."""
    known = {one.alias for one in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    key = _service(request).admitted(request.headers.get("authorization"), scope)
    request.scope["reperform"]["key_id"] = key.key_id
    if unknown:
        raise Refusal(
            422, "unknown-parameter", "There is no such parameter.", got=unknown[0], where=f"query, {unknown[0]}",
            expected=f"one of {', '.join(sorted(known))}" if known else "none", fix="see /openapi.json",
        )  # fmt: skip
    return key.key_id


def _expect(request: Request, *kinds: str) -> None:
    """Refuse a body of another type before any of it is read."""
    given = request.headers.get("content-type", "")
    kind, _, more = given.partition(";")
    charset = more.lower().partition("charset=")[2].strip().strip('"')
    if kind.strip().lower() not in kinds or charset not in ("", "utf-8", "utf8"):
        raise Refusal(
            415, "wrong-content-type", "This takes bodies of another type.", where="header Content-Type",
            expected=" or ".join(kinds) + ", in UTF-8 where it is text", got=given or "none", fix="set Content-Type",
        )  # fmt: skip
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(
            415, "wrong-content-encoding", "Bodies come as they are.", where="header Content-Encoding",
            expected="no Content-Encoding", got=request.headers["content-encoding"], fix="send the body as it is",
        )  # fmt: skip


def _call(request: Request, key_id: str, idempotency_key: str | None, reasons: Reasons = "alerts") -> Call:
    return Call(
        request_id=request.scope["reperform"]["request_id"],
        key_id=key_id,
        method=request.method,
        route=door.route_of(request.scope),
        request_sha256=door.request_hash(request.scope),
        idempotency_key=idempotency_key,
        reasons=reasons,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(type(value).__name__)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, default=_plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Response(body, status_code=status, media_type=JSON, headers=headers)


def _written(request: Request, written: Written) -> Response:
    """An answer that stands in the log of calls already."""
    request.scope["reperform"]["is_logged"] = True
    headers = {"Idempotency-Replayed": "true"} if written.is_repeated else {}
    return Response(written.body, status_code=written.status, media_type=JSON, headers=headers)


async def _posted(request: Request, work: Callable[[bytes], Response]) -> Response:
    _expect(request, JSON)
    most = _service(request).serve.largest_body_bytes
    body = await door.body_of(request.scope, request.receive, most)
    return await run_in_threadpool(work, body)


# Scores


@router.post(
    "/detect-anomalies", tags=["scores"], summary="Score transactions",
    responses={
        **answer(
            contracts.DetectAnswer, "Scores in the request's order, written down before they go.",
            anomaly_score={"transaction_id": "$response.body#/answers/0/transaction_id"},
            model_explanation={"id": "$response.body#/answers/0/transaction_id"},
        ),
        **BODY,
    },
    openapi_extra=json_body(contracts.DetectRequest),
)  # fmt: skip
async def detect_anomalies(
    request: Request,
    reasons: Annotated[
        Reasons | None, Query(description="For which transactions reasons are given; the service's default: alerts.")
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Score 1 to 1,000 transactions with the champion, write everything down, then answer.

    All of a request is scored, or nothing: one wrong transaction refuses it, and all problems are listed. Needs scope
    `score`.
    """

    def work(body: bytes) -> Response:
        service = _service(request)
        key_id = _admit(request, "score")
        transactions = contracts.read(contracts.DetectRequest, body).transactions
        most = service.serve.most_transactions
        if len(transactions) > most:
            raise Refusal(
                422, "too-many-transactions", "These are too many transactions for one request.", where="transactions",
                expected=f"at most {most}", got=str(len(transactions)), fix="send them in several requests, in order",
            )  # fmt: skip
        request.scope["reperform"]["n_transactions"] = len(transactions)
        call = _call(request, key_id, idempotency_key, reasons or service.serve.reasons)
        written = service.desk.answer([one.__dict__ for one in transactions], call)
        if not written.is_repeated:
            service.telemetry.scored(written.n, written.n_alerts, written.seconds)
        return _written(request, written)

    return await _posted(request, work)


@router.get(
    "/anomaly-score/{transaction_id:path}", tags=["scores"], summary="What was answered for a transaction",
    responses={**answer(contracts.ScoreAnswer, "The answer, with the versions of that moment."), **problems(404, 422)},
)  # fmt: skip
def anomaly_score(
    request: Request,
    transaction_id: Annotated[
        str, Path(min_length=1, max_length=200, pattern=ID_PATTERN, examples=["NB0D157A474C60A2"])
    ],
) -> Response:
    """The answer that was given, byte for byte the same numbers, and what a challenger would have said.

    Needs scope `read`.
    """
    _admit(request, "read")
    return _json(_score(request, transaction_id, "path, transaction_id"))


def _score(request: Request, transaction_id: str, where: str) -> dict[str, Any]:
    with _service(request).database.transaction(durable=False) as connection:
        rows = [row | {"reasons": row["reasons"] or []} for row in answers.answer_of(connection, transaction_id)]
    champion = [row for row in rows if row["role"] == "champion"]
    if not champion:
        raise documents.unknown_answer(transaction_id, where)
    others = [row for row in rows if row["role"] != "champion"]
    return {"transaction_id": transaction_id, "answer": champion[0], "shadow": others}


# Files


@router.post(
    "/batch-process", tags=["files"], summary="Score a file in the background", status_code=202,
    responses={
        202: {
            "description": "The job; Location says where its progress is.",
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/JobAnswer"}, "example": contracts.JOB}},
            "links": links(
                batch_progress={"job_id": "$response.body#/job_id"},
                batch_results={"job_id": "$response.body#/job_id"},
                batch_quarantine={"job_id": "$response.body#/job_id"},
            ),
        },
        **problems(400, 408, 413, 415, 422),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in FILES},
        }
    },
)  # fmt: skip
async def batch_process(
    request: Request,
    format: Annotated[  # noqa: A002  # the API's own name
        Literal["csv", "parquet", "camt.053"], Query(description="How the file is written.")
    ],
    source: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=60,
            pattern=ID_PATTERN,
            description="Source in conf/ingest/ whose description the file follows; Parquet needs none.",
        ),
    ] = None,
) -> Response:
    """Hand in a file: it is read as the pipeline reads it, scored in order, and what is refused goes to quarantine.

    The same file, to be read in the same way, is the same job. A restart loses nothing. Needs scope `score`.
    """
    service = _service(request)
    key_id = await run_in_threadpool(_admit, request, "score")
    _expect(request, *FILES)
    with tempfile.TemporaryFile() as file:
        await door.file_of(request.scope, request.receive, service.serve.largest_file_bytes, file)
        file.seek(0)
        job = await run_in_threadpool(_submitted, service, file, source, format, key_id)
    return _json(_job(job), 202, {"Location": f"/api/v1/batch-process/{job.job_id}"})


def _submitted(service: Service, file: Any, source: str | None, form: str, key_id: str) -> jobs.Job:
    version = service.documents().data_version
    with service.database.transaction() as connection:
        return jobs.submit(
            connection, file, source, form, given=params.load(IngestParams), data_version=version,
            largest_bytes=service.serve.largest_file_bytes, key_id=key_id,
        )  # fmt: skip


def _job(job: jobs.Job) -> dict[str, Any]:
    return {**asdict(job), "progress": job.progress}


def _found(request: Request, job_id: str, page: Callable[[Any], Sequence[Any]] | None = None) -> tuple[jobs.Job, Any]:
    with _service(request).database.transaction(durable=False) as connection:
        job = jobs.status(connection, job_id)
        if job is None:
            raise Refusal(
                404, "unknown-job", "There is no such job.", got=job_id, where="path, job_id",
                expected="an id that POST /api/v1/batch-process gave", fix="hand in the file again: it keeps its id",
            )  # fmt: skip
        return job, page(connection) if page else None


@router.get(
    "/batch-process/{job_id}", tags=["files"], summary="Progress of a file",
    responses={**answer(contracts.JobAnswer, "How far it is."), **problems(404, 422)},
)  # fmt: skip
def batch_progress(request: Request, job_id: JobId) -> Response:
    """How many records of a file are scored, known, refused. Needs scope `read`."""
    _admit(request, "read")
    return _json(_job(_found(request, job_id)[0]))


@router.get(
    "/batch-process/{job_id}/results", tags=["files"], summary="Scores of a file",
    responses={**answer(contracts.Page, "A page, in order of known_at."), **problems(404, 422)},
)  # fmt: skip
def batch_results(request: Request, job_id: JobId, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """Transactions of a file with what was answered, as far as it is. Needs scope `read`."""
    _admit(request, "read")
    _, rows = _found(request, job_id, lambda connection: jobs.results(connection, job_id, offset, limit))
    return _page(rows, offset, limit)


@router.get(
    "/batch-process/{job_id}/quarantine", tags=["files"], summary="Refused records of a file",
    responses={**answer(contracts.Page, "A page, each with rule and reason."), **problems(404, 422)},
)  # fmt: skip
def batch_quarantine(request: Request, job_id: JobId, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """Records that reading or rules refused, each with its place in the file. Needs scope `read`."""
    _admit(request, "read")
    _, rows = _found(request, job_id, lambda connection: jobs.quarantine(connection, job_id, offset, limit))
    return _page(rows, offset, limit)


def _page(rows: Sequence[Any], offset: int, limit: int) -> Response:
    following = offset + len(rows) if len(rows) == limit and offset + limit <= FARTHEST else None
    return _json({"rows": rows, "offset": offset, "next_offset": following})


# What comes in beside transactions


@router.post(
    "/feedback", tags=["state"], summary="Tell decisions of case handling",
    responses={**answer(contracts.FeedbackAnswer, "What was taken in."), **BODY},
    openapi_extra=json_body(contracts.FeedbackRequest),
)  # fmt: skip
async def feedback(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Decisions become labels: at once for every later score, and for the next training. Needs scope `score`."""

    def work(body: bytes) -> Response:
        key_id = _admit(request, "score")
        labels = contracts.read(contracts.FeedbackRequest, body).labels
        call = _call(request, key_id, idempotency_key)
        return _written(request, _service(request).desk.feedback([one.__dict__ for one in labels], call))

    return await _posted(request, work)


@router.post(
    "/accounts", tags=["state"], summary="Register accounts",
    responses={**answer(contracts.AccountsAnswer, "What was registered."), **BODY},
    openapi_extra=json_body(contracts.AccountsRequest),
)  # fmt: skip
async def accounts(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Make accounts known, so that their transactions can be scored. Needs scope `score`."""

    def work(body: bytes) -> Response:
        key_id = _admit(request, "score")
        given = contracts.read(contracts.AccountsRequest, body).accounts
        call = _call(request, key_id, idempotency_key)
        return _written(request, _service(request).desk.register([one.__dict__ for one in given], call))

    return await _posted(request, work)


# What the model is


@router.get(
    "/model-explanation", tags=["model"], summary="How the model decides",
    responses={
        200: {
            "description": "Of the champion as a whole, or with `id` of one answer.",
            "content": {
                JSON: {
                    "schema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/ModelExplanation"},
                            {"$ref": "#/components/schemas/AnswerExplanation"},
                        ]
                    }
                }
            },
        },
        **problems(404, 422),
    },
)  # fmt: skip
def model_explanation(
    request: Request,
    id: Annotated[  # noqa: A002  # the API's own name
        str | None,
        Query(min_length=1, max_length=200, pattern=ID_PATTERN, description="A transaction that was answered."),
    ] = None,
) -> Response:
    """Global importance by KPI, calibration, thresholds, metrics with intervals, feature dictionary; or one answer's
    reasons with formula and source of each feature. Needs scope `read`.
    """  # noqa: D205  # the first sentence is the document's
    _admit(request, "read")
    known = _service(request).documents()
    if id is None:
        return _json(known.explanation())
    return _json(known.explained(_score(request, id, "query, id")["answer"]))


@router.get(
    "/forecast", tags=["model"], summary="Forecasts with intervals",
    responses={**answer(contracts.ForecastAnswer, "Of the champion's run."), **problems(404, 422)},
)  # fmt: skip
def forecast(
    request: Request,
    series: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=200,
            pattern=ID_PATTERN,
            examples=["volume"],
            description="volume, value, anomaly_rate, alert_rate, or volume:<institution>; without it, all.",
        ),
    ] = None,
    account: Annotated[
        str | None,
        Query(min_length=1, max_length=200, pattern=ID_PATTERN, description="Account whose risk trajectory is told."),
    ] = None,
) -> Response:
    """Daily volumes and rates of anomalies beyond the data, and the risk of an account. Needs scope `read`."""
    _admit(request, "read")
    return _json(_service(request).documents().forecast(series, account))


# For operators; no key needed


@open_router.get(
    "/health", tags=["operation"], summary="Alive", responses=answer(contracts.Health, "The process answers."),
)  # fmt: skip
async def health() -> Response:
    """Whether the process lives; restart it when this does not answer."""
    return _json({"status": "alive"})


@open_router.get(
    "/ready", tags=["operation"], summary="Ready",
    responses={**answer(contracts.Ready, "Requests are answered."), **problems(503)},
)  # fmt: skip
async def ready(request: Request) -> Response:
    """Whether state is loaded and the database answers; send requests elsewhere when not."""
    service = _service(request)
    status = service.status()
    if status["ready"]:
        return _json(status)
    raise Refusal(
        503, "not-ready", "Requests are not answered now.", expected="state loaded, database reachable",
        got=f"state {status['state']}, database {status['database']}", fix="wait, or read the log",
        retry_after_s=service.serve.retry_after_s,
    )  # fmt: skip


@open_router.get(
    "/metrics", tags=["operation"], summary="Figures for Prometheus", response_class=Response,
    responses={200: {"description": "As Prometheus reads it.", "content": {"text/plain": {"schema": TEXT}}}},
)  # fmt: skip
def metrics(request: Request) -> Response:
    """Requests, latencies by part, queues, model version, sequence; of all processes of this service."""
    return Response(_service(request).metrics(), headers={"Content-Type": openapi_text()})


def openapi_text() -> str:
    """Content type of figures."""
    from reperform.service.telemetry import CONTENT_TYPE  # noqa: PLC0415  # one module knows Prometheus

    return CONTENT_TYPE


@open_router.get("/openapi.json", include_in_schema=False)
def document(request: Request) -> Response:
    """The OpenAPI document."""
    return _json(request.app.openapi())


@open_router.get("/docs", include_in_schema=False)
def docs(request: Request) -> Response:
    """The OpenAPI document for people; it loads nothing and runs nothing."""
    digest = base64.b64encode(hashlib.sha256(openapi.STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'; base-uri 'none'"
    page = openapi.page(request.app.openapi())
    return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})
