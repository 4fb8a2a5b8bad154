"""What clients send and get: every request and answer of the API, with examples. Nothing of FastAPI is here.

Requests are read from the JSON text itself and strictly: a number in quotes is no number, an unknown member is refused
by name, NaN and Infinity are not finite, and a date is ISO 8601 with its offset from UTC.
"""

import json
import re
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)

from reperform.service.refusals import Refusal, together

MOST = 1000  # transactions, labels or accounts in one request
LARGEST_AMOUNT = 1e15
# No control characters, no separators of lines, and no space at either end.
_VISIBLE = r"[^\x00-\x20\x7f-\xa0\u2028\u2029]"
_INNER = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
ID_PATTERN = rf"^{_VISIBLE}(?:{_INNER}*{_VISIBLE})?$"
ISO_TIME = re.compile(
    r"(?:19|20|21)\d\d-\d\d-\d\d[Tt]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)
M = TypeVar("M", bound=BaseModel)


def _iso_time(value: Any) -> Any:
    """A time in UTC. What Pydantic would take as well is refused: seconds since 1970 in quotes, a day alone."""
    if not isinstance(value, str):
        return value
    if not ISO_TIME.fullmatch(value):
        raise ValueError("a time like 2025-06-21T16:23:12Z, from 1900 to 2199, with its offset from UTC")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except ValueError as error:
        raise ValueError(f"a time that exists ({error})") from None


Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=ID_PATTERN)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=60, pattern=ID_PATTERN)]
Time = Annotated[AwareDatetime, BeforeValidator(_iso_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Amount = Annotated[float, Field(gt=0, le=LARGEST_AMOUNT, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-LARGEST_AMOUNT, le=LARGEST_AMOUNT, allow_inf_nan=False)]
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$", min_length=2, max_length=2)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", min_length=3, max_length=3)]

TRANSACTION: dict[str, Any] = {
    "transaction_id": "NB0D157A474C60A2",
    "booked_at": "2025-06-21T16:23:12Z",
    "known_at": "2025-06-21T16:25:40Z",
    "account_id": "NB-04440910",
    "counterparty_id": "GB96000000007001975800",
    "entity_id": "northbank",
    "direction": "out",
    "amount": 1900.0,
    "currency": "EUR",
    "channel": "transfer",
    "country": "GB",
    "balance_after": 312.55,
}
REASON: dict[str, Any] = {
    "kpi": "Network effect indicators",
    "kpi_number": 13,
    "feature": "network_new_amount_24h",
    "value": 1900.0,
    "unit": "EUR",
    "contribution": 1.87,
    "words": "amount paid to counterparties never paid before, last 24 hours",
}
ANSWER: dict[str, Any] = {
    "transaction_id": "NB0D157A474C60A2",
    "score": 4.183383,
    "probability": 0.990977,
    "is_alert": True,
    "members": {"xgboost": 6.21, "random_forest": 3.4, "rules": 1.2},
    "reasons": [REASON],
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class Transaction(_Request):
    """A transaction as the pipeline's table of transactions has it, seen from the account."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [TRANSACTION]})

    transaction_id: Id = Field(description="Unique over all time; a transaction is answered once.")
    booked_at: Time = Field(description="When it was booked.")
    known_at: Time | None = Field(None, description="When the sender learned of it; without it, now.")
    account_id: Id = Field(description="A known account; new ones are registered at /api/v1/accounts.")
    counterparty_id: Id | None = Field(None, description="The other side, if known.")
    entity_id: Id | None = Field(None, description="Institution that holds the account; without it, the account's.")
    direction: Literal["in", "out"] = Field(description="Whether money comes to the account or leaves it.")
    amount: Amount = Field(description="In units of the currency, positive.")
    currency: Currency = Field(description="ISO 4217 code.")
    amount_base: Amount | None = Field(
        None, description="In the base currency; without it, at the last rate that was known at known_at."
    )
    channel: Word | None = Field(None, description="Such as card, transfer, atm.")
    country: Country | None = Field(None, description="ISO 3166-1 code of the counterparty or place.")
    latitude: Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)] | None = Field(None, description="Degrees.")
    longitude: Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)] | None = Field(
        None, description="Degrees."
    )
    balance_after: Number | None = Field(None, description="Balance of the account after it, in its currency.")


class DetectRequest(_Request):
    """Transactions to score."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [{"transactions": [TRANSACTION]}]}
    )

    transactions: Annotated[list[Transaction], Field(min_length=1, max_length=MOST)]


class Account(_Request):
    """An account."""

    account_id: Id = Field(description="As transactions name it.")
    entity_id: Id = Field(description="Institution that holds it.")
    opened_at: Time | None = Field(None, description="When it was opened.")
    timezone: Word | None = Field(None, description="IANA name, such as Europe/Berlin.")
    segment: Word | None = Field(None, description="Such as senior, student, business.")
    home_country: Country | None = Field(None, description="ISO 3166-1 code.")


ACCOUNT: dict[str, Any] = {
    "account_id": "NB-99000001",
    "entity_id": "northbank",
    "opened_at": "2025-06-01T00:00:00Z",
    "timezone": "Europe/Dublin",
    "segment": "student",
    "home_country": "IE",
}


class AccountsRequest(_Request):
    """Accounts to register."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [{"accounts": [ACCOUNT]}]}
    )

    accounts: Annotated[list[Account], Field(min_length=1, max_length=MOST)]


class Label(_Request):
    """What case handling decided about a transaction."""

    transaction_id: Id = Field(description="A transaction that was answered, or that the pipeline knows.")
    is_anomaly: bool = Field(description="The decision.")
    typology: Word | None = Field(None, description="Kind of anomaly, such as mule_pass_through.")
    confirmed_at: Time | None = Field(None, description="When it was decided; without it, now.")


LABEL: dict[str, Any] = {
    "transaction_id": "NB0D157A474C60A2",
    "is_anomaly": True,
    "typology": "dormant_awakened",
    "confirmed_at": "2025-06-28T09:00:00Z",
}


class FeedbackRequest(_Request):
    """Decisions of case handling; they count for every later score, and for the next training."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [{"labels": [LABEL]}]}
    )

    labels: Annotated[list[Label], Field(min_length=1, max_length=MOST)]


# Answers. They are built as text where speed counts; these models are what the OpenAPI document says of them.


class ProblemPart(_Answer):
    """One of several problems of a request."""

    code: str
    detail: str
    expected: str | None = None
    got: str | None = None
    where: str | None = None
    fix: str | None = None


class Problem(_Answer):
    """What went wrong, as RFC 9457 has it, with what was expected, what was got, where, and what to do."""

    type: str = Field(description="Kind of problem; never changes.")
    title: str
    status: int
    detail: str
    expected: str | None = None
    got: str | None = None
    where: str | None = None
    fix: str | None = None
    request_id: str = Field(description="The same as in the header X-Request-Id and in our log.")
    errors: list[ProblemPart] | None = Field(None, description="All problems of the request, where there are several.")


class Reason(_Answer):
    """A KPI that moved the score of the explained detector."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [REASON]})

    feature: str
    kpi: str | None = None
    kpi_number: int | None = None
    value: float | None = Field(None, description="Null: unknown for this transaction.")
    unit: str | None = None
    contribution: float = Field(description="SHAP value, in log-odds of the explained detector.")
    words: str | None = None


class Answer(_Answer):
    """What the champion says of one transaction."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [ANSWER]})

    transaction_id: str
    score: float = Field(description="Margin of the ensemble, in log-odds; higher is more anomalous.")
    probability: float | None = Field(description="Calibrated.")
    is_alert: bool = Field(description="Whether the score reaches the alert threshold.")
    members: dict[str, float] | None = Field(None, description="What each detector adds to the score.")
    reasons: list[Reason] = Field(description="Largest contributions first; empty where none were asked for.")


class DetectAnswer(_Answer):
    """Answers in the order of the request."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "model_version": 3,
                    "data_version": "md5:5d41402abc4b2a76b9719d911017c592",
                    "threshold": -0.751703,
                    "sequence": 4711,
                    "request_id": "0197a1f0c3f67b6e8d2f4c1a9b7e5d30",
                    "answers": [ANSWER],
                }
            ]
        },
    )

    model_version: int = Field(description="Version of the model in the registry.")
    data_version: str = Field(description="Hash of the data that it learned from.")
    threshold: float | None = Field(description="Score from which on a transaction is an alert.")
    sequence: int = Field(description="Place of this request in the one order of events.")
    request_id: str
    answers: list[Answer]


class StoredAnswer(Answer):
    """An answer as it was given, with the versions of that moment."""

    role: Literal["champion", "challenger"]
    model_version: int
    data_version: str
    booked_at: datetime
    known_at: datetime
    answered_at: datetime
    sequence: int
    request_id: str


class ScoreAnswer(_Answer):
    """Everything that was answered for a transaction."""

    transaction_id: str
    answer: StoredAnswer = Field(description="The champion's; this was sent.")
    shadow: list[StoredAnswer] = Field(description="What challengers would have said; never sent.")


class AccountsAnswer(_Answer):
    """What was registered."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"registered": 1, "known_already": 0, "sequence": 4712}]}
    )

    registered: int
    known_already: int = Field(description="Accounts with this id and institution; they stay as they were.")
    sequence: int | None = Field(description="Place in the one order of events; null when nothing was new.")


class FeedbackAnswer(_Answer):
    """What was taken in."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"sequence": 4713, "new": 1, "corrected": 0, "repeated": 0}]},
    )

    sequence: int | None = Field(description="Place in the one order of events; null when all were known.")
    new: int = Field(description="Decisions that were not known yet.")
    corrected: int = Field(description="Those of them that replace an earlier one.")
    repeated: int = Field(description="Decisions that stood already.")


JOB: dict[str, Any] = {
    "job_id": "9f86d081884c7d659a2feaa0c55ad0159f86d081884c7d659a2feaa0c55ad015",
    "source": "northbank",
    "format": "csv",
    "status": "running",
    "progress": 0.4,
    "n_records": 5000,
    "n_to_score": 4997,
    "n_scored": 1997,
    "n_known": 0,
    "n_refused": 3,
    "n_alerts": 11,
    "problem": None,
}


class JobAnswer(_Answer):
    """A file that is scored in the background."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [JOB]})

    job_id: str
    source: str | None
    format: str
    status: Literal["waiting", "running", "done", "failed"]
    progress: float = Field(description="Share of the file's records that are settled.")
    n_records: int | None = Field(description="Null until the file was read.")
    n_scored: int
    n_known: int = Field(description="Answered before; the first answer stands.")
    n_refused: int = Field(description="In the job's quarantine.")
    n_alerts: int
    problem: str | None = Field(description="Why it failed, or waits.")


class Page(_Answer):
    """A page of rows."""

    rows: list[dict[str, Any]]
    offset: int
    next_offset: int | None = Field(description="Where the next page begins; null at the end.")


class KpiImportance(_Answer):
    """How much a KPI moves scores on the whole."""

    population: str = Field(description="alerts or non_alerts of the test.")
    kpi_number: int | None
    kpi: str | None
    features: int
    mean_abs_contribution: float
    share: float


class ModelExplanation(_Answer):
    """How the champion decides, and how well."""

    model_version: int
    data_version: str
    importance: list[KpiImportance] = Field(description="SHAP by KPI, largest first.")
    calibration: dict[str, Any]
    thresholds: dict[str, Any]
    metrics: dict[str, Any] = Field(description="Estimates with their intervals.")
    explanation_quality: dict[str, Any]
    dictionary: list[dict[str, Any]] = Field(description="Formula, unit, windows and source of every feature.")


class AnswerExplanation(_Answer):
    """Why one transaction was answered as it was."""

    transaction_id: str
    model_version: int
    data_version: str
    score: float
    probability: float | None
    is_alert: bool
    members: dict[str, float] | None
    reasons: list[dict[str, Any]] = Field(description="With formula and source of each feature.")


class ForecastPoint(_Answer):
    """A day of a series, with intervals `low_80`, `high_80` and so on."""

    day: date
    mean: float | None


class ForecastSeries(_Answer):
    """One series."""

    series: str
    model: str
    unit: str | None
    origin: date
    points: list[ForecastPoint]


class RiskPoint(_Answer):
    """Risk of an account at a day."""

    snapshot: date
    horizon_days: int
    probability: float
    expected_loss: float | None


class AccountRisk(_Answer):
    """Risk trajectory of an account."""

    account_id: str
    points: list[RiskPoint]


class ForecastAnswer(_Answer):
    """Forecasts of the champion's run."""

    model_version: int
    levels: list[float] = Field(description="Coverage of the intervals, in percent.")
    series: list[ForecastSeries]
    account: AccountRisk | None


class Health(_Answer):
    """Alive."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"]


class Ready(_Answer):
    """Whether requests can be answered now, and from which state."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "ready": True,
                    "state": "loaded",
                    "database": "reachable",
                    "model_version": 3,
                    "shadow_version": None,
                    "data_version": "md5:5d41402abc4b2a76b9719d911017c592",
                    "sequence": 4711,
                    "journal_sequence": 4711,
                }
            ]
        },
    )

    ready: bool
    state: str
    database: str
    model_version: int | None
    data_version: str | None
    sequence: int | None


# Reading.

_WORDS = {
    "finite_number": "a finite number; NaN and Infinity are no amounts",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "extra_forbidden": "only members that the API knows",
    "missing": "this member",
    "datetime_type": "a time such as 2025-06-21T16:23:12Z",
    "timezone_aware": "a time with its offset from UTC, such as 2025-06-21T16:23:12Z",
    "list_type": "a list",
    "model_type": "an object",
    "string_pattern_mismatch": "text as in the OpenAPI document: no control characters, no space at either end",
}
MOST_TOLD = 20


def read(model: type[M], body: bytes) -> M:
    """A request from its JSON text.

    Raises:
        Refusal: 400 when it is no JSON, 422 when it is another request than `model` says; every problem with its place.
    """
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        if found[0]["type"] == "json_invalid":
            raise malformed(found[0]["msg"], body) from None
        raise together([_wrong(dict(one), model) for one in found[:MOST_TOLD]]) from None


def malformed(said: str, body: bytes) -> Refusal:
    """What is wrong with a text that is no JSON, and where."""
    told = said.removeprefix("Invalid JSON: ")
    line = re.search(r"at (line \d+ column \d+)$", told)
    return Refusal(
        400,
        "malformed-json",
        "The body is no JSON.",
        expected="one JSON object in UTF-8",
        got=told if body else "an empty body",
        where=f"body, {line[1]}" if line else "body",
        fix="send what the OpenAPI document describes: /openapi.json has examples",
    )


def place(location: tuple[Any, ...]) -> str:
    """`transactions[3].amount` for a path of names and numbers."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".") or "body"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {len(value)} members"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | None) else str(value)[:400]


def _wrong(error: dict[str, Any], model: type[BaseModel]) -> Refusal:
    kind = str(error["type"])
    where = place(tuple(error["loc"]))
    missing = kind == "missing"
    return Refusal(
        422,
        {"missing": "missing-member", "extra_forbidden": "unknown-member"}.get(kind, "wrong-value"),
        f"{where.rsplit('.', 1)[-1]} is missing." if missing else f"{where} is not what the API takes.",
        expected=_WORDS.get(kind, str(error["msg"]).removeprefix("Value error, ")),
        got="nothing" if missing else _shown(error.get("input")),
        where=where,
        fix=f"see {model.__name__} in /openapi.json",
    )
