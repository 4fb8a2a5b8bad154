"""The use case: take a turn in the one order of events, score, write everything down, and only then answer.

Nothing of HTTP is here: jobs that score files take their turn in the same way. Whatever goes wrong after rows entered
the models' memory and before the commit makes that memory differ from the journal, so it is made anew.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import polars as pl

from reperform import schemas
from reperform.params import ServeParams
from reperform.service import answers, calls, feedback, intake, journal, webhooks
from reperform.service.exchange import Rates
from reperform.service.refusals import Refusal, together

Reasons = Literal["all", "alerts", "none"]


class Scored(Protocol):
    """What a scorer gives; see `scoring.Scored`."""

    @property
    def answers(self) -> pl.DataFrame:
        """One row for each transaction."""

    @property
    def features(self) -> pl.DataFrame:
        """KPIs, which other processes need not compute again."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time of each part."""


class Scorer(Protocol):
    """Models and histories of one version in memory; see `scoring.Scorer`."""

    sequence: int

    @property
    def version(self) -> int:
        """Of the model."""

    @property
    def data_version(self) -> str:
        """Of the data that it learned from."""

    @property
    def threshold(self) -> float | None:
        """Score from which on a transaction is an alert."""

    @property
    def accounts(self) -> Mapping[str, str]:
        """Institution of each account."""

    @property
    def known_until(self) -> datetime | None:
        """Newest known_at of all rows."""

    def holds(self, ids: Sequence[str]) -> Collection[str]:
        """Which of these transactions are among its rows."""

    def take(self, events: Sequence[journal.Event]) -> None:
        """Take in what was written elsewhere."""

    def score(self, rows: pl.DataFrame, *, reasons: Reasons, n_reasons: int) -> Scored:
        """Score rows, and take them in."""

    def taken(self, sequence: int) -> None:
        """The rows that were scored last stand in the journal under this number."""

    def prepare(self, moment: datetime) -> None:
        """Look up what rows of a moment's day share."""


class Champions(Protocol):
    """Who answers; see `champion.Champions`."""

    @property
    def answering(self) -> Scorer | None:
        """The scorer that answered last, if any."""

    @property
    def shadowing(self) -> Scorer | None:
        """The scorer that was asked last for what is not sent, if any."""

    def champion(self, connection: Any) -> Scorer:
        """The scorer that answers now."""

    def shadow(self, connection: Any) -> Scorer | None:
        """The scorer whose answers are stored and not sent."""

    def withdraw(self, scorer: Scorer, error: Exception) -> None:
        """This challenger cannot score; it does not score in shadow any more."""

    def broken(self) -> None:
        """What is in memory is not what was written: make it anew before the next answer."""


class Database(Protocol):
    """Where everything is written; see `database.Database`."""

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[Any]:
        """One transaction."""


@dataclass(frozen=True)
class Call:
    """A request as the log of calls and the idempotency of clients need it.

    Args:
        request_id: of this request.
        key_id: of the client's API key.
        method: HTTP method.
        route: template of the path.
        request_sha256: of method, path and body.
        idempotency_key: what the client called it; None: it may not be repeated.
        reasons: for which transactions reasons are given.
    """

    request_id: str
    key_id: str
    method: str
    route: str
    request_sha256: str
    idempotency_key: str | None = None
    reasons: Reasons = "alerts"


@dataclass(frozen=True)
class Answered:
    """Transactions that were scored inside a transaction that is still open.

    Args:
        sequence: event in the journal.
        answers: of the champion, in the order of the rows given.
        model_version: who answered.
        data_version: likewise.
        threshold: likewise.
        seconds: time of each part.
    """

    sequence: int
    answers: pl.DataFrame
    model_version: int
    data_version: str
    threshold: float | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Response:
    """What is sent, after the commit.

    Args:
        status: HTTP status.
        body: as it was written down.
        is_repeated: whether it was answered before, under the same idempotency key.
        n: transactions.
        n_alerts: likewise.
        model_version: who answered.
        seconds: time of each part.
    """

    status: int
    body: bytes
    is_repeated: bool = False
    n: int = 0
    n_alerts: int = 0
    model_version: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def now_utc() -> datetime:
    """The service's clock."""
    return datetime.now(UTC)


class Desk:
    """One per process: everything that changes the order of events goes over it, one request at a time.

    Args:
        database: where it is written.
        champions: who answers.
        serve: settings.
        rates: exchange rates.
        now: the clock.
    """

    def __init__(
        self,
        database: Database,
        champions: Champions,
        serve: ServeParams,
        rates: Rates,
        now: Callable[[], datetime] = now_utc,
    ) -> None:
        self.database, self.champions, self.serve, self.rates, self.now = database, champions, serve, rates, now
        self._turn, self._waiting = threading.Lock(), threading.BoundedSemaphore(serve.most_waiting)
        self._is_dirty = False

    # Turns

    @contextmanager
    def transaction(self, *, first: Callable[[Any], None] | None = None) -> Iterator[Any]:
        """A turn of this process in the order of events: a durable transaction that holds the lock.

        Args:
            first: called with the connection before the lock is waited for.

        Raises:
            Refusal: 503, when too many requests wait already.
        """
        if not self._waiting.acquire(blocking=False):
            raise busy(self.serve)
        try:
            with self._turn, self._clean_after(), self.database.transaction() as connection:
                if first:
                    first(connection)
                journal.locked(connection)
                yield connection
        finally:
            self._waiting.release()

    @contextmanager
    def _clean_after(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._is_dirty:
                self.champions.broken()
            raise
        finally:
            self._is_dirty = False

    def prepare(self) -> None:
        """Look up what rows of this day share. To be called in quiet moments: requests wait for it."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            for scorer in (self.champions.answering, self.champions.shadowing):
                if scorer is not None:
                    scorer.prepare(self.now())
        finally:
            self._turn.release()

    # Inside a transaction that holds the lock

    def current(self, connection: Any) -> Scorer:
        """The champion, which knows everything that was written so far."""
        return self._caught_up(connection, self.champions.champion(connection))

    def _caught_up(self, connection: Any, scorer: Scorer) -> Scorer:
        while events := journal.since(connection, scorer.sequence):
            scorer.take(events)
        return scorer

    def known(self, connection: Any, scorer: Scorer) -> intake.Known:
        """What transactions are held against."""
        return intake.Known(
            accounts=scorer.accounts,
            rates=self.rates,
            now=self.now(),
            clock=scorer.known_until,
            clock_skew=timedelta(seconds=self.serve.clock_skew_s),
            latest_arrival=timedelta(days=self.serve.latest_arrival_days),
            answered=lambda ids: answers.held(connection, ids),
            in_pipeline=scorer.holds,
        )

    def scored(
        self,
        connection: Any,
        rows: Sequence[intake.Record],
        request_id: str,
        reasons: Reasons,
        scorer: Scorer | None = None,
    ) -> Answered:
        """Score rows that were found to be right, and write event, answers and alerts.

        Args:
            connection: of `transaction`.
            rows: as `intake.completed` gives them.
            request_id: of the request or job.
            reasons: for which rows.
            scorer: who `current` said answers in this transaction, if it was asked already.
        """
        began = time.perf_counter()
        scorer = scorer or self.current(connection)
        events = intake.frame(rows).with_row_index("__place").sort("known_at", "booked_at", "transaction_id")
        ordered = events.drop("__place")
        caught_up = time.perf_counter()
        self._is_dirty = True
        got = scorer.score(ordered, reasons=reasons, n_reasons=self.serve.n_reasons)
        was_scored = time.perf_counter()
        sequence = journal.append(connection, "transactions", ordered, got.features)
        answers.write_answers(connection, got.answers, sequence=sequence, request_id=request_id)
        self._in_shadow(connection, ordered, sequence, request_id, scorer)
        scorer.taken(sequence)
        alerts = got.answers.filter("is_alert")
        if alerts.height:
            webhooks.enqueue(connection, alerts, self.serve.webhooks.receivers)
        given = got.answers.with_columns(events["__place"]).sort("__place").drop("__place")
        seconds = {"history": caught_up - began + got.seconds.get("history", 0.0)}
        seconds |= {name: took for name, took in got.seconds.items() if name != "history"}
        seconds["write"] = time.perf_counter() - was_scored
        return Answered(sequence, given, scorer.version, scorer.data_version, scorer.threshold, seconds)

    def _in_shadow(self, connection: Any, rows: pl.DataFrame, sequence: int, request_id: str, champion: Scorer) -> None:
        """What the challenger would have said is written beside the answer."""
        other = self.champions.shadow(connection) if self.serve.shadow else None
        if other is None or other is champion:
            return
        while events := [event for event in journal.since(connection, other.sequence) if event.sequence < sequence]:
            other.take(events)
        try:
            got = other.score(rows, reasons="none", n_reasons=self.serve.n_reasons)
        except Exception as error:  # noqa: BLE001  # whatever ails a challenger must not keep the champion from answering
            self.champions.withdraw(other, error)
            return
        answers.write_answers(connection, got.answers, sequence=sequence, request_id=request_id, role="challenger")
        other.taken(sequence)

    # Requests

    def answer(self, transactions: Sequence[Mapping[str, Any]], call: Call) -> Response:
        """Score the transactions of a request, or give the answer that it got before.

        Args:
            transactions: columns of `schemas.TRANSACTIONS`; see `intake.completed` for what may be missing.
            call: the request.

        Raises:
            Refusal: naming everything that is wrong.
        """

        def work(connection: Any) -> Response:
            began = time.perf_counter()
            scorer = self.current(connection)
            known = self.known(connection, scorer)
            rows = intake.completed(transactions, known)
            _refuse(intake.problems(rows, known))
            checked = time.perf_counter()
            got = self.scored(connection, rows, call.request_id, call.reasons, scorer)
            body = body_of(got, call.request_id)
            return Response(
                200,
                body,
                n=len(rows),
                n_alerts=int(got.answers["is_alert"].sum()),
                model_version=got.model_version,
                seconds={**got.seconds, "history": got.seconds["history"] + checked - began},
            )

        return self._written(call, work, n=len(transactions))

    def register(self, accounts: Sequence[Mapping[str, Any]], call: Call) -> Response:
        """Take in accounts that are new."""

        def work(connection: Any) -> Response:
            known = self.current(connection).accounts
            new = new_accounts(accounts, known)
            rows = pl.DataFrame(new, schema=schemas.polars_schema(schemas.ACCOUNTS), orient="row")
            sequence = journal.append(connection, "accounts", rows) if rows.height else None
            told = {"registered": rows.height, "known_already": len(accounts) - rows.height, "sequence": sequence}
            return Response(200, as_json(told))

        return self._written(call, work)

    def feedback(self, labels: Sequence[Mapping[str, Any]], call: Call) -> Response:
        """Take in what case handling decided."""

        def work(connection: Any) -> Response:
            rows = pl.DataFrame(list(labels), schema=schemas.polars_schema(schemas.LABELS))
            taken = feedback.take(connection, rows, key_id=call.key_id, now=self.now())
            return Response(200, as_json(asdict(taken)))

        return self._written(call, work)

    def _written(self, call: Call, work: Callable[[Any], Response], n: int = 0) -> Response:
        """Do a request's work in a turn of its own, with its answer and its entry in the log of calls."""
        earlier: list[tuple[int, bytes]] = []
        began = time.perf_counter()

        def first(connection: Any) -> None:
            if call.idempotency_key is not None:
                got = answers.first_response(connection, call.key_id, call.idempotency_key, call.request_sha256)
                if got is not None:
                    earlier.append(got)
                    raise _RepeatedError

        try:
            with self.transaction(first=first) as connection:
                locked = time.perf_counter()
                response = work(connection)
                if call.idempotency_key is not None:
                    answers.keep_response(
                        connection, call.key_id, call.idempotency_key, call.request_sha256,
                        response.status, response.body,
                    )  # fmt: skip
                calls.append(connection, entry(call, response, n))
                worked = time.perf_counter()
        except _RepeatedError:
            return self._repeated(call, *earlier[0], n)
        seconds = {"lock": locked - began, **response.seconds}
        seconds["write"] = seconds.get("write", 0.0) + time.perf_counter() - worked
        return replace(response, seconds=seconds)

    def _repeated(self, call: Call, status: int, body: bytes, n: int) -> Response:
        response = Response(status, body, is_repeated=True)
        with self.database.transaction() as connection:
            calls.append(connection, entry(call, response, n))
        return response


class _RepeatedError(Exception):
    """The request was answered before."""


def entry(call: Call, response: Response, n: int) -> dict[str, Any]:
    """What the log of calls keeps of a request; nothing of whom it is about."""
    return {
        "request_id": call.request_id,
        "key_id": call.key_id or None,
        "method": call.method,
        "route": call.route,
        "status": response.status,
        "request_sha256": call.request_sha256,
        "response_sha256": hashlib.sha256(response.body).hexdigest(),
        "n_transactions": n,
        "model_version": response.model_version,
    }


def busy(serve: ServeParams) -> Refusal:
    """Too many requests wait."""
    return Refusal(
        503,
        "busy",
        "Too many requests wait for their turn.",
        expected=f"at most {serve.most_waiting} in one process",
        fix="send the same request again later, with the same idempotency key",
        retry_after_s=serve.retry_after_s,
    )


def _refuse(found: Mapping[int, Sequence[Refusal]]) -> None:
    """One wrong transaction refuses the whole request; all problems are told, those that time can't mend first."""
    told = [one for place in sorted(found) for one in found[place]]
    if told:
        raise together(sorted(told, key=lambda one: -one.status))


def new_accounts(accounts: Sequence[Mapping[str, Any]], known: Mapping[str, str]) -> list[dict[str, Any]]:
    """Accounts that are not known yet.

    Raises:
        Refusal: for a time zone or country that does not exist, and for an account that another institution holds.
    """
    found: list[Refusal] = []
    new: dict[str, dict[str, Any]] = {}
    for place, one in enumerate(accounts):
        name, holder = one["account_id"], one["entity_id"]
        found += intake.about_account(one, place)
        told = known.get(name) or new.get(name, {}).get("entity_id")
        if told is None:
            new[name] = {column: one.get(column) for column in schemas.polars_schema(schemas.ACCOUNTS)}
        elif told != holder:
            found.append(_held_elsewhere(holder, place))
    if found:
        raise together(sorted(found, key=lambda one: -one.status))
    return list(new.values())


def _held_elsewhere(holder: str, place: int) -> Refusal:
    return Refusal(
        409, "account-of-another", "Another institution holds this account.", got=holder,
        expected="the institution that it was registered with, or another account_id",
        where=f"accounts[{place}].entity_id", fix="check which of the two is meant",
    )  # fmt: skip


def as_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def body_of(got: Answered, request_id: str) -> bytes:
    """The answer to a request for scores. Members and reasons are JSON already, and are put in as they are."""
    head = as_json(
        {
            "model_version": got.model_version,
            "data_version": got.data_version,
            "threshold": got.threshold,
            "sequence": got.sequence,
            "request_id": request_id,
        }
    )
    rows = got.answers.select("transaction_id", "score", "probability", "is_alert", "members", "reasons").iter_rows()
    told = ",".join(_answer(row) for row in rows)
    return b'%s,"answers":[%s]}' % (head[:-1], told.encode())


def _answer(row: tuple[Any, ...]) -> str:
    name, score, probability, is_alert, members, reasons = row
    return (
        f'{{"transaction_id":{json.dumps(name, ensure_ascii=False)},"score":{json.dumps(score)},'
        f'"probability":{json.dumps(probability)},"is_alert":{json.dumps(is_alert)},'
        f'"members":{members or "null"},"reasons":{reasons or "[]"}}}'
    )
