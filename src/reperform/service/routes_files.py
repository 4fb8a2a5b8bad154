"""Paths for files that are scored in the background."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from reperform import params
from reperform.params import IngestParams
from reperform.service import contracts, door, jobs
from reperform.service.contracts import ID_PATTERN
from reperform.service.openapi import answer, links, problems
from reperform.service.process import Service
from reperform.service.refusals import Refusal
from reperform.service.routes import JSON, admit, as_answer, expect, keyed_router, service_of

FILES = ("application/octet-stream", "text/csv", "application/xml", "text/xml", "application/vnd.apache.parquet")
MOST_ROWS, FARTHEST = 5000, 2**31 - 1

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="As POST /api/v1/batch-process gave it.")]
Offset = Annotated[int, Query(ge=0, le=FARTHEST, description="Rows to leave out.")]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Rows at most.")]

router = keyed_router()


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
    service = service_of(request)
    key_id = await run_in_threadpool(admit, request, "score")
    expect(request, *FILES)
    with tempfile.TemporaryFile() as file:
        await door.file_of(request.scope, request.receive, service.serve.largest_file_bytes, file)
        file.seek(0)
        job = await run_in_threadpool(_submitted, service, file, source, format, key_id)
    return as_answer(_job(job), 202, {"Location": f"/api/v1/batch-process/{job.job_id}"})


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
    with service_of(request).database.transaction(durable=False) as connection:
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
    admit(request, "read")
    return as_answer(_job(_found(request, job_id)[0]))


@router.get(
    "/batch-process/{job_id}/results", tags=["files"], summary="Scores of a file",
    responses={**answer(contracts.Page, "A page, in order of known_at."), **problems(404, 422)},
)  # fmt: skip
def batch_results(request: Request, job_id: JobId, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """Transactions of a file with what was answered, as far as it is. Needs scope `read`."""
    admit(request, "read")
    _, rows = _found(request, job_id, lambda connection: jobs.results(connection, job_id, offset, limit))
    return _page(rows, offset, limit)


@router.get(
    "/batch-process/{job_id}/quarantine", tags=["files"], summary="Refused records of a file",
    responses={**answer(contracts.Page, "A page, each with rule and reason."), **problems(404, 422)},
)  # fmt: skip
def batch_quarantine(request: Request, job_id: JobId, offset: Offset = 0, limit: Limit = 1000) -> Response:
    """Records that reading or rules refused, each with its place in the file. Needs scope `read`."""
    admit(request, "read")
    _, rows = _found(request, job_id, lambda connection: jobs.quarantine(connection, job_id, offset, limit))
    return _page(rows, offset, limit)


def _page(rows: Sequence[Any], offset: int, limit: int) -> Response:
    following = offset + len(rows) if len(rows) == limit and offset + limit <= FARTHEST else None
    return as_answer({"rows": rows, "offset": offset, "next_offset": following})
