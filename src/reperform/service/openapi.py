"""The OpenAPI document, and the page that shows it: plain HTML, so nothing is loaded from anywhere."""

import html
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from reperform.service import contracts

REF = "#/components/schemas/{model}"
PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
MEANING = {
    400: "The request is no HTTP or JSON that can be read.",
    401: "No API key, or one that is unknown, expired or revoked.",
    403: "The key does not open this.",
    404: "There is no such thing.",
    405: "This path takes other methods.",
    408: "The body does not come.",
    409: "It contradicts what was answered before.",
    413: "The body is too large.",
    415: "The body has another type than this takes.",
    422: "The request is read, and something in it is wrong; all problems are listed.",
    429: "The key asks too often.",
    500: "A mistake of the service; nothing was answered.",
    503: "The service starts, is busy or lost its database; nothing was answered.",
}
EXAMPLES: dict[int, dict[str, Any]] = {
    422: {
        "type": "https://reperform.example/problems/unknown-account",
        "title": "Unknown account",
        "status": 422,
        "detail": "This account is not known.",
        "expected": "an account of the pipeline, or one that was registered here",
        "got": "NB-00000000",
        "where": "transactions[0].account_id",
        "fix": "register it with POST /api/v1/accounts, then send the transaction again",
        "request_id": "0197a1f0c3f67b6e8d2f4c1a9b7e5d30",
    },
    409: {
        "type": "https://reperform.example/problems/answered-already",
        "title": "Answered already",
        "status": 409,
        "detail": "This transaction was answered before.",
        "expected": "a transaction that is new",
        "got": "NB0D157A474C60A2",
        "where": "transactions[0].transaction_id",
        "fix": "read the answer at GET /api/v1/anomaly-score/{transaction_id}",
        "request_id": "0197a1f0c3f67b6e8d2f4c1a9b7e5d30",
    },
    429: {
        "type": "https://reperform.example/problems/too-many-requests",
        "title": "Too many requests",
        "status": 429,
        "detail": "This key asks too often.",
        "expected": "at most 6000 requests a minute",
        "got": "more",
        "where": "header Authorization",
        "fix": "wait as long as Retry-After says; several transactions fit into one request",
        "request_id": "0197a1f0c3f67b6e8d2f4c1a9b7e5d30",
    },
}
RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
REQUEST_ID = {"X-Request-Id": {"description": "Of this request.", "schema": {"type": "string"}}}
WAITING = (429, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that tell of a problem, as a route declares them."""
    told: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        content = dict(PROBLEM["application/problem+json"])
        if status in EXAMPLES:
            content = {**content, "example": EXAMPLES[status]}
        headers = REQUEST_ID | (RETRY_AFTER if status in WAITING else {})
        told[status] = {
            "description": MEANING[status], "content": {"application/problem+json": content}, "headers": headers,
        }  # fmt: skip
    return told


def answer(
    model: type[BaseModel], description: str, **followed_by: Mapping[str, str]
) -> dict[int | str, dict[str, Any]]:
    """The good answer of a route, and which routes its members lead to."""
    content: dict[str, Any] = {"schema": {"$ref": REF.format(model=model.__name__)}}
    if (example := _example(model)) is not None:
        content["example"] = example
    told: dict[str, Any] = {
        "description": description, "content": {"application/json": content}, "headers": REQUEST_ID,
    }  # fmt: skip
    return {200: told | ({"links": links(**followed_by)} if followed_by else {})}


def links(**followed_by: Mapping[str, str]) -> dict[str, Any]:
    """Operations that take members of an answer as their parameters."""
    return {name: {"operationId": name, "parameters": dict(taken)} for name, taken in followed_by.items()}


def _example(model: type[BaseModel]) -> Any:
    extra: Any = model.model_config.get("json_schema_extra") or {}
    return next(iter(extra.get("examples", [])), None)


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The body that a route takes, as JSON."""
    content = {"schema": {"$ref": REF.format(model=model.__name__)}, "example": _example(model)}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def with_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every model of `contracts` that it refers to, and without FastAPI's own notion of errors."""
    every = [
        one for one in vars(contracts).values()
        if isinstance(one, type) and issubclass(one, BaseModel) and not one.__name__.startswith("_")
        and one is not BaseModel
    ]  # fmt: skip
    _, schemas = models_json_schema([(one, "validation") for one in every], ref_template="#/components/schemas/{model}")
    components = document.setdefault("components", {})
    components["schemas"] = dict(sorted(schemas["$defs"].items()))
    for path in document["paths"].values():
        for operation in path.values():
            answers = operation.get("responses", {})
            if "HTTPValidationError" in json.dumps(answers.get("422", {})):
                del answers["422"]
    return document


# The page

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f2}pre{padding:.8rem;overflow-x:auto}"
    "h2{margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}table{border-collapse:collapse}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0}summary{cursor:pointer}"
)


def page(document: Mapping[str, Any]) -> str:
    """The OpenAPI document for people."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(document['info']['title'])}</title>",
        f"<style>{STYLE}</style><h1>{_text(document['info']['title'])}</h1>",
        f"<p>{_text(document['info'].get('description', ''))}</p>",
        "<p>For programs: <a href=/openapi.json>/openapi.json</a>.</p>",
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parts += _operation(path, method, operation)
    parts.append("<h2>Members</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<details id={_text(name)}><summary>{_text(name)}</summary>{_json(schema)}</details>")
    return "".join(parts)


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> list[str]:
    parts = [f"<h2><code>{method.upper()} {_text(path)}</code></h2><p><b>{_text(operation.get('summary', ''))}.</b> "]
    parts.append(f"{_text(operation.get('description', ''))}</p>")
    if operation.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{_text(one['name'])}</code><td>{_text(one['in'])}<td>{_text(one.get('description', ''))}"
            for one in operation["parameters"]
        )
        parts.append(f"<table><tr><th>Parameter<th>in<th>what{rows}</table>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body: <code>{_text(kind)}</code></p>")
        if content.get("example"):
            parts.append(_json(content["example"]))
    for status, said in operation.get("responses", {}).items():
        parts.append(f"<details><summary>{_text(status)}: {_text(said.get('description', ''))}</summary>")
        parts += [_json(content["example"]) for content in said.get("content", {}).values() if content.get("example")]
        parts.append("</details>")
    return parts


def _text(value: Any) -> str:
    return html.escape(str(value))


def _json(value: Any) -> str:
    return f"<pre>{_text(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
