"""Paths of the API: what each takes and gives, and which scope of a key opens it. Files have a module of their own."""

import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from reperform.service import answers, contracts, documents, door
from reperform.service.contracts import ID_PATTERN
from reperform.service.detect import Call, Reasons
from reperform.service.detect import Response as Written
from reperform.service.openapi import answer, json_body, problems
from reperform.service.process import Service
from reperform.service.refusals import Refusal

JSON = "application/json"

COMMON = problems(401, 403, 429, 500, 503)
BODY = problems(400, 408, 413, 415, 422, 409)

bearer = HTTPBearer(
    scheme_name="key", bearerFormat="rpf_<id>_<secret>", auto_error=False,
    description="An API key: python -m reperform keys create NAME --scopes score,read",
)  # fmt: skip


def keyed_router() -> APIRouter:
    """A router of paths that need a key."""
    return APIRouter(prefix="/api/v1", dependencies=[Depends(bearer)], responses=COMMON)


router = keyed_router()

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[!-~]+$",
        description="Name of this request; under the same name, the same request gets its first answer again.",
        examples=["2025-06-21-batch-17"],
    ),
]  # fmt: skip


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service


def admit(request: Request, scope: Literal["score", "read", "admin"]) -> str:
    """The id of the key that opens this."""
    known = {one.alias for one in request.scope["route"].dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    key = service_of(request).admitted(request.headers.get("authorization"), scope)
    request.scope["reperform"]["key_id"] = key.key_id
    if unknown:
        raise Refusal(
            422, "unknown-parameter", "There is no such parameter.", got=unknown[0], where=f"query, {unknown[0]}",
            expected=f"one of {', '.join(sorted(known))}" if known else "none", fix="see /openapi.json",
        )  # fmt: skip
    return key.key_id


def expect(request: Request, *kinds: str) -> None:
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


def as_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A document as a JSON answer."""
    body = json.dumps(value, default=_plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Response(body, status_code=status, media_type=JSON, headers=headers)


def _written(request: Request, written: Written) -> Response:
    """An answer that stands in the log of calls already."""
    request.scope["reperform"]["is_logged"] = True
    headers = {"Idempotency-Replayed": "true"} if written.is_repeated else {}
    return Response(written.body, status_code=written.status, media_type=JSON, headers=headers)


async def _posted(request: Request, work: Callable[[bytes], Response]) -> Response:
    expect(request, JSON)
    if not door.is_small(request.scope):  # nobody without a key fills the memory
        await run_in_threadpool(service_of(request).identified, request.headers.get("authorization"))
    most = service_of(request).serve.largest_body_bytes
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
        service = service_of(request)
        key_id = admit(request, "score")
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
    admit(request, "read")
    return as_answer(_score(request, transaction_id, "path, transaction_id"))


def _score(request: Request, transaction_id: str, where: str) -> dict[str, Any]:
    with service_of(request).database.transaction(durable=False) as connection:
        rows = [row | {"reasons": row["reasons"] or []} for row in answers.answer_of(connection, transaction_id)]
    champion = [row for row in rows if row["role"] == "champion"]
    if not champion:
        raise documents.unknown_answer(transaction_id, where)
    others = [row for row in rows if row["role"] != "champion"]
    return {"transaction_id": transaction_id, "answer": champion[0], "shadow": others}


# What comes in beside transactions


@router.post(
    "/feedback", tags=["state"], summary="Tell decisions of case handling",
    responses={**answer(contracts.FeedbackAnswer, "What was taken in."), **BODY},
    openapi_extra=json_body(contracts.FeedbackRequest),
)  # fmt: skip
async def feedback(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Decisions become labels: at once for every later score, and for the next training. Needs scope `score`."""

    def work(body: bytes) -> Response:
        key_id = admit(request, "score")
        labels = contracts.read(contracts.FeedbackRequest, body).labels
        call = _call(request, key_id, idempotency_key)
        return _written(request, service_of(request).desk.feedback([one.__dict__ for one in labels], call))

    return await _posted(request, work)


@router.post(
    "/accounts", tags=["state"], summary="Register accounts",
    responses={**answer(contracts.AccountsAnswer, "What was registered."), **BODY},
    openapi_extra=json_body(contracts.AccountsRequest),
)  # fmt: skip
async def accounts(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Make accounts known, so that their transactions can be scored. Needs scope `score`."""

    def work(body: bytes) -> Response:
        key_id = admit(request, "score")
        given = contracts.read(contracts.AccountsRequest, body).accounts
        call = _call(request, key_id, idempotency_key)
        return _written(request, service_of(request).desk.register([one.__dict__ for one in given], call))

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
    admit(request, "read")
    known = service_of(request).documents()
    if id is None:
        return as_answer(known.explanation())
    return as_answer(known.explained(_score(request, id, "query, id")["answer"]))


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
    admit(request, "read")
    return as_answer(service_of(request).documents().forecast(series, account))
