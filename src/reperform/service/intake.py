"""What must hold for a transaction that comes in: rows that the pipeline would keep, in the one order of events.

The same rules as in stage validate, and those that only a service needs: nothing is answered twice, nothing comes from
the future, and nothing comes so late that earlier answers would have been others.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import available_timezones

import polars as pl

from reperform import iso_codes, schemas
from reperform.service.exchange import Rates
from reperform.service.refusals import Refusal

SOURCE_FILE = "api"
MOST_NAMED = 12
TICK = timedelta(microseconds=1)
# In the base currency. Above, sums of hundredths of a cent over a year's rows would leave 64 bits.
SMALLEST_AMOUNT, LARGEST_AMOUNT = 1e-6, 1e10
COLUMNS = schemas.polars_schema(schemas.TRANSACTIONS)
Record = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What a transaction is held against.

    Args:
        accounts: institution of each known account.
        rates: exchange rates.
        now: the service's clock.
        clock: newest known_at of all that was taken in; None before the first.
        clock_skew: by which clocks may differ, and transactions come out of order.
        latest_arrival: after booking.
        answered: which of some transactions were answered already.
        in_pipeline: which of some transactions the pipeline scored already.
    """

    accounts: Mapping[str, str]
    rates: Rates
    now: datetime
    clock: datetime | None
    clock_skew: timedelta
    latest_arrival: timedelta
    answered: Callable[[Sequence[str]], Collection[str]]
    in_pipeline: Callable[[Sequence[str]], Collection[str]]


def completed(records: Sequence[Mapping[str, Any]], known: Known, source_file: str = SOURCE_FILE) -> list[Record]:
    """Records with what they may leave out: known_at, the institution, the amount in the base currency.

    Args:
        records: columns of `schemas.TRANSACTIONS`, times as datetimes with a zone; missing ones count as None.
        known: what they are held against.
        source_file: for rows that say of no file.
    """
    return [_completed(record, place, known, source_file) for place, record in enumerate(records)]


def _completed(record: Mapping[str, Any], place: int, known: Known, source_file: str) -> Record:
    row: Record = {name: record.get(name) for name in COLUMNS}
    row["known_at"] = row["known_at"] or max(_learned_now(known), row["booked_at"])
    row["entity_id"] = row["entity_id"] or known.accounts.get(row["account_id"])
    if row["amount_base"] is None:
        rate = known.rates.at(row["currency"], row["known_at"])
        row["amount_base"] = None if rate is None else row["amount"] * rate
    row["source_file"] = row["source_file"] or source_file
    row["source_record"] = place if row["source_record"] is None else row["source_record"]
    return row


def _learned_now(known: Known) -> datetime:
    """When something became known that nobody tells the time of: now, and where the journal is ahead, behind its end.

    So the service goes on after a wrong clock has been set right (a hybrid logical clock, Kulkarni et al. 2014).
    """
    if known.clock is None or known.now >= known.clock - known.clock_skew:
        return known.now
    return known.clock + TICK


def frame(rows: Sequence[Record]) -> pl.DataFrame:
    """Rows as `schemas.TRANSACTIONS`, in the order given."""
    return pl.DataFrame({name: [row[name] for row in rows] for name in COLUMNS}, schema=COLUMNS)


def problems(rows: Sequence[Record], known: Known) -> dict[int, list[Refusal]]:
    """What is wrong with which rows; nothing is said of those that may be scored."""
    ids = [row["transaction_id"] for row in rows]
    answered, in_pipeline = set(known.answered(ids)), set(known.in_pipeline(ids))
    first: dict[str, int] = {}
    found: dict[int, list[Refusal]] = {}
    for place, row in enumerate(rows):
        told = [*_about_row(row, place, known)]
        told += _about_id(row["transaction_id"], place, first, answered, in_pipeline)
        if told:
            found[place] = told
    return found


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def about_account(account: Mapping[str, Any], place: int) -> Iterator[Refusal]:
    """What is wrong with an account that is to be registered."""
    if account.get("timezone") is not None and account["timezone"] not in _zones():
        yield Refusal(
            422, "unknown-time-zone", "This time zone does not exist.", got=account["timezone"],
            expected="a name of the IANA database, such as Europe/Berlin", where=f"accounts[{place}].timezone",
            fix="send the name, or leave it out",
        )  # fmt: skip
    if account.get("home_country") is not None and account["home_country"] not in iso_codes.COUNTRIES:
        yield Refusal(
            422, "unknown-country", "This country does not exist.", got=account["home_country"],
            expected="an ISO 3166-1 code of two letters", where=f"accounts[{place}].home_country",
            fix="send the code, or leave it out",
        )  # fmt: skip


def _about_row(row: Record, place: int, known: Known) -> Iterator[Refusal]:
    yield from _about_account(row, place, known)
    yield from _about_money(row, place, known)
    yield from _about_times(row, place, known)
    if row["country"] is not None and row["country"] not in iso_codes.COUNTRIES:
        yield _refused(
            "unknown-country", "This country does not exist.", place, "country", row["country"],
            expected="an ISO 3166-1 code of two letters", fix="send the code, or leave the country out",
        )  # fmt: skip
    if (row["latitude"] is None) != (row["longitude"] is None):
        yield _refused(
            "half-a-place", "Latitude and longitude come together.", place,
            "longitude" if row["longitude"] is None else "latitude", "null",
            expected="both or none", fix="send the other one as well, or neither",
        )  # fmt: skip


def _about_account(row: Record, place: int, known: Known) -> Iterator[Refusal]:
    entity = known.accounts.get(row["account_id"])
    if entity is None:
        yield _refused(
            "unknown-account", "This account is not known.", place, "account_id", row["account_id"],
            expected="an account of the pipeline, or one that was registered here",
            fix="register it with POST /api/v1/accounts, then send the transaction again",
        )  # fmt: skip
    elif row["entity_id"] != entity:
        yield _refused(
            "other-institution", "Another institution holds this account.", place, "entity_id", row["entity_id"],
            expected="the institution that the account was registered with",
            fix="leave entity_id out, or send the account's own",
        )  # fmt: skip


def _about_money(row: Record, place: int, known: Known) -> Iterator[Refusal]:
    if row["currency"] not in iso_codes.CURRENCIES:
        yield _refused(
            "unknown-currency", "This currency does not exist.", place, "currency", row["currency"],
            expected="an ISO 4217 code of three letters", fix="send the code of the currency",
        )  # fmt: skip
    elif row["amount_base"] is None:
        named = ", ".join(known.rates.known()[:MOST_NAMED])
        yield _refused(
            "unknown-currency", "No exchange rate of this currency is known for that time.", place, "currency",
            row["currency"], expected=f"one of {named}, at a time for which a rate was published",
            fix=f"send amount_base, in {known.rates.base}, as well",
        )  # fmt: skip
    elif not SMALLEST_AMOUNT <= row["amount_base"] <= LARGEST_AMOUNT:
        yield _refused(
            "amount-out-of-range", "KPIs cannot count with such an amount.", place, "amount", row["amount"],
            expected=f"{SMALLEST_AMOUNT:g} to {LARGEST_AMOUNT:g} in {known.rates.base}",
            fix="check the unit and the decimal mark",
        )  # fmt: skip


def _about_times(row: Record, place: int, known: Known) -> Iterator[Refusal]:
    booked_at, known_at = row["booked_at"], row["known_at"]
    latest = known.now + known.clock_skew
    if known_at > max(latest, _learned_now(known)) or booked_at > latest:
        column = "booked_at" if booked_at > latest else "known_at"
        yield _refused(
            "clock-skew", "This lies in the future.", place, column, row[column],
            expected=f"at most {_words(known.clock_skew)} after {_text(known.now)}, the service's clock",
            fix="set the sender's clock, or check the offset from UTC",
        )  # fmt: skip
    elif known_at < booked_at:
        yield _refused(
            "known-before-booking", "Nothing is known before it is booked.", place, "known_at", known_at,
            expected=f"booked_at, {_text(booked_at)}, or later", fix="check time zones; the two may be exchanged",
        )  # fmt: skip
    elif booked_at < known_at - known.latest_arrival:
        yield _refused(
            "too-old", "This comes too long after booking.", place, "booked_at", booked_at,
            expected=f"at most {_words(known.latest_arrival)} before known_at, {_text(known_at)}",
            fix="deliver it to the pipeline as a file; `dvc repro` takes it in",
        )  # fmt: skip
    elif known.clock is not None and known_at < known.clock - known.clock_skew:
        yield _refused(
            "out-of-order", "Later transactions were answered already.", place, "known_at", known_at, status=409,
            expected=f"{_text(known.clock - known.clock_skew)} or later: the service is at {_text(known.clock)}",
            fix="send transactions in order of known_at; deliver this one to the pipeline as a file, or leave out "
            "known_at if it became known only now",
        )  # fmt: skip


def _about_id(
    name: str, place: int, first: dict[str, int], answered: Collection[str], in_pipeline: Collection[str]
) -> Iterator[Refusal]:
    if first.setdefault(name, place) != place:
        yield _refused(
            "duplicate-in-request", "This transaction stands in the request twice.", place, "transaction_id", name,
            expected=f"another id than in transactions[{first[name]}]", fix="send it once",
        )  # fmt: skip
    elif name in answered:
        yield _refused(
            "answered-already", "This transaction was answered before.", place, "transaction_id", name, status=409,
            expected="a transaction that is new", fix="read the answer at GET /api/v1/anomaly-score/{transaction_id}",
        )  # fmt: skip
    elif name in in_pipeline:
        yield _refused(
            "scored-by-pipeline", "The pipeline holds this transaction already.", place, "transaction_id", name,
            status=409, expected="a transaction that is new", fix="read its score in data/ensemble or the database",
        )  # fmt: skip


def _refused(
    code: str, problem: str, place: int, column: str, got: Any, *, expected: str, fix: str, status: int = 422
) -> Refusal:
    shown = _text(got) if isinstance(got, datetime) else str(got)
    return Refusal(
        status, code, problem, expected=expected, got=shown, where=f"transactions[{place}].{column}", fix=fix
    )


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _words(length: timedelta) -> str:
    return f"{length.days} days" if length.days else f"{length.total_seconds():g} seconds"
