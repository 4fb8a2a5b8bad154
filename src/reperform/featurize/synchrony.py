"""KPI 12, between accounts: do two accounts of an entity act within minutes of each other more often than chance?"""

# ruff: noqa: C901, PLR0917  # compiled functions take arguments by position, and a walk over events is one loop

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, kernel
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import DAY_US, Rows, length_us

MINUTE_US = 60_000_000
MOST_DIGITS = 300.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and bounds of the synchrony of accounts.

    Args:
        minutes: two records so close act together.
        window: history of the two accounts.
        most_partners: accounts that are looked at per row, the latest ones first.
        most_nearby: earlier records of the entity in which they are looked for.
        most_records: latest records of each account that count.
    """

    minutes: int = 10
    window: str = "28d"
    most_partners: int = 3
    most_nearby: int = 50
    most_records: int = 100


def columns(settings: Settings) -> tuple[Column, ...]:
    """Excess co-activity with a partner, and what is behind it."""
    w, m = settings.window, settings.minutes
    alone = f"no other account of the entity is known to have acted in the last {m} minutes"
    return (
        Column(
            f"synchrony_surprise_{w}",
            "-log10(partners x P(N >= n)), at least 0, for the partner with most n per record, of accounts active in "
            f"the last {m} minutes; n days on which both acted together, N Poisson with the number expected when the "
            "partner's active days change places",
            "-log10 p",
            w,
            null_rule=alone,
        ),
        Column(
            f"synchrony_n_{w}",
            f"earlier days on which a record of the account lies within {m} minutes of one of that partner's",
            "days",
            w,
            is_model_input=False,
            null_rule=alone,
        ),
        Column(
            f"synchrony_expected_{w}",
            "the number of such days expected",
            "days",
            w,
            is_model_input=False,
            null_rule=alone,
        ),
        Column(
            "synchrony_partners_n",
            f"accounts looked at: active in the last {m} minutes, at most {settings.most_partners}",
            "accounts",
            f"{settings.minutes}m",
            is_model_input=False,
            null_rule="never",
        ),
    )


@kernel
def poisson_tail(n: int, mean: float) -> float:
    """-log10 P(N >= n), N Poisson: the sum of the tail's terms, all positive, so that tiny values stay exact."""
    if n <= 0:
        return 0.0
    if mean <= 0:
        return MOST_DIGITS
    log_term = -mean + n * math.log(mean) - math.lgamma(n + 1.0)
    total, term, k = 1.0, 1.0, n
    while term > 1e-17 * total:
        k += 1
        term *= mean / k
        total += term
    return min(max(-(log_term + math.log(total)) / math.log(10.0), 0.0), MOST_DIGITS)


@kernel
def _latest(time: I64, enter: I64, begin: int, end: int, now: int, oldest: int, out: I64) -> int:
    """Places of an account's latest records before a moment that are known at it, latest first; returns their number.

    Args:
        time: of records, in order within each account.
        enter: first moment at which others can see each.
        begin: where the account's records begin.
        end: where they end.
        now: the moment.
        oldest: earlier records do not count.
        out: where the places go; its length bounds them.
    """
    low, high = begin, end
    while low < high:
        middle = (low + high) // 2
        if time[middle] < now:
            low = middle + 1
        else:
            high = middle
    size = 0
    for place in range(low - 1, begin - 1, -1):
        if time[place] < oldest or size == len(out):
            break
        if enter[place] <= now:
            out[size] = place
            size += 1
    return size


@kernel
def together_days(own: I64, other: I64, time: I64, day: I64, reach: int) -> int:
    """On how many of one's days a record has one of the other's within reach.

    Args:
        own: places of one account's records, latest first.
        other: places of the other's.
        time: by place.
        day: by place.
        reach: microseconds between two records that act together.
    """
    n, at, counted = 0, 0, -1
    for place in own:
        while at < len(other) and time[other[at]] > time[place] + reach:
            at += 1
        if at < len(other) and time[other[at]] >= time[place] - reach and day[place] != counted:
            counted = day[place]
            n += 1
    return n


@kernel
def expected_days(own: I64, other: I64, time: I64, day: I64, part: I64, reach: int, first: I64) -> float:
    """What `together_days` gives on average when the other's active days change places at random.

    A day of the own account without the other meets nothing; any other meets one of the other's active days, each as
    likely as the next. The clock is a circle: 23:59 and 00:01 are near.

    Args:
        own: places of one account's records, latest first.
        other: places of the other's.
        time: by place.
        day: by place.
        part: by place, in which of the equal parts of a day it lies; none is shorter than `reach`.
        reach: microseconds between two records that act together.
        first: -1 for each part; left as it was.
    """
    parts, size = len(first), len(other)
    day_of, following, active = np.empty(size, np.int64), np.empty(size, np.int64), 0
    for at in range(size):
        active += at == 0 or day[other[at]] != day[other[at - 1]]
        day_of[at] = active - 1
        following[at], first[part[other[at]]] = first[part[other[at]]], at
    meets = np.full(active, -1, np.int64)
    total, shared, number, at, today = 0.0, False, 0, 0, -1
    for place in own:
        if day[place] != today:
            total += number / active if shared else 0.0
            shared, number, today = False, 0, day[place]
        while at < size and time[other[at]] > time[place] + reach and day[other[at]] > today:
            at += 1
        shared = shared or (at < size and (day[other[at]] >= today or time[other[at]] >= time[place] - reach))
        for step in range(-1, 2):
            near = part[place] + step
            near += parts if near < 0 else (-parts if near >= parts else 0)
            candidate = first[near]
            while candidate >= 0:
                apart = abs(time[other[candidate]] - time[place] - DAY_US * (day[other[candidate]] - today))
                if min(apart, DAY_US - apart) <= reach and meets[day_of[candidate]] != today:
                    meets[day_of[candidate]] = today
                    number += 1
                candidate = following[candidate]
    for at in range(size):
        first[part[other[at]]] = -1
    return total + (number / active if shared else 0.0)


@kernel
def synchrony(
    entity_starts: I64,
    entity_rows: I64,
    account_starts: I64,
    account_rows: I64,
    account: I64,
    time: I64,
    enter: I64,
    reach: int,
    window: int,
    most_partners: int,
    most_nearby: int,
    most_records: int,
) -> tuple[F64, F64, F64, I64]:
    """For each row the partner that acted together with its account most, for what it does, and how far beyond chance.

    Args:
        entity_starts: where each entity's rows begin in `entity_rows`.
        entity_rows: rows per entity in order of time.
        account_starts: where each account's rows begin in `account_rows`.
        account_rows: rows per account in order of time.
        account: of each row.
        time: microseconds.
        enter: first moment at which others can see each row.
        reach: microseconds between two records that act together.
        window: microseconds of history.
        most_partners: partners looked at.
        most_nearby: known rows of the entity in which partners are looked for.
        most_records: records of each account that count.

    Returns:
        Per row: -log10 p, corrected for the number of partners; days acted together; days expected; partners.
    """
    rows = len(time)
    surprise, n, expected = np.full(rows, np.nan), np.full(rows, np.nan), np.full(rows, np.nan)
    found = np.zeros(rows, np.int64)
    own, other, chosen = np.empty((3, most_records), np.int64)
    partners, parts = np.empty(most_partners, np.int64), np.full(max(DAY_US // reach, 1), -1)
    # By place among the accounts' rows: a walk over one account's records then stays in one piece of memory.
    times, enters = time[account_rows], enter[account_rows]
    days = times // DAY_US
    part = (times - days * DAY_US) * len(parts) // DAY_US
    for code in range(len(entity_starts) - 1):
        for place in range(entity_starts[code], entity_starts[code + 1]):
            row = entity_rows[place]
            now, size, nearby, at = time[row], 0, 0, place - 1
            while at >= entity_starts[code] and size < most_partners and nearby < most_nearby:
                earlier = entity_rows[at]
                at -= 1
                if time[earlier] < now - reach:
                    break
                if enter[earlier] > now:
                    continue
                nearby += 1
                new = account[earlier] != account[row]
                for position in range(size):
                    new = new and partners[position] != account[earlier]
                if new:
                    partners[size] = account[earlier]
                    size += 1
            found[row] = size
            if size == 0:
                continue
            oldest, begin, end = now - window, account_starts[account[row]], account_starts[account[row] + 1]
            own_size = _latest(times, enters, begin, end, now, oldest, own)
            best, best_size = 0, 1
            for position in range(size):
                begin, end = account_starts[partners[position]], account_starts[partners[position] + 1]
                # What the partner did within reach of the row has picked it, and proves nothing.
                other_size = _latest(times, enters, begin, end, now - reach, oldest, other)
                together = together_days(own[:own_size], other[:other_size], times, days, reach)
                if together * best_size > best * other_size:
                    best, best_size = together, other_size
                    chosen[:other_size] = other[:other_size]
            surprise[row], n[row], expected[row] = 0.0, best, 0.0
            if best > 0:
                expected[row] = expected_days(own[:own_size], chosen[:best_size], times, days, part, reach, parts)
                surprise[row] = max(poisson_tail(best, expected[row]) - math.log10(size), 0.0)
    return surprise, n, expected, found


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Synchrony with accounts that acted just before the row, as known then."""
    entity, history = ledger.codes_of("entity_id"), ledger.by_account
    of_account = history.by_time
    of_entity = Rows.ordered(entity, ledger.time, int(entity.max(initial=-1)) + 1)
    surprise, n, expected, partners = synchrony(
        of_entity.starts,
        of_entity.rows,
        of_account.starts,
        of_account.rows,
        ledger.account,
        ledger.time,
        history.enter,
        settings.minutes * MINUTE_US,
        length_us(settings.window),
        settings.most_partners,
        settings.most_nearby,
        settings.most_records,
    )
    w = settings.window
    return {
        f"synchrony_surprise_{w}": surprise,
        f"synchrony_n_{w}": n,
        f"synchrony_expected_{w}": expected,
        "synchrony_partners_n": partners.astype(float),
    }


KPI = Kpi(
    name="synchrony",
    number=12,
    title="Temporal correlation score, synchrony of accounts",
    family="correlation",
    formula="co-activity of two accounts of an entity within 10 minutes over 28 days against a shuffled-day null: the "
    "partner's active days change places, hours stay; -log10 of a Poisson tail with the expected number, times the "
    "number of partners looked at (Bonferroni). The moment that picks the partner does not count",
    unit="-log10 p",
    inputs=("account_id", "entity_id", "booked_at", "known_at"),
    key="entity",
    null_rule="no other account of the entity acts within minutes of the row",
    source="Pacheco et al. (2021), Uncovering Coordinated Networks, arXiv:2001.05658 (synchronised action); "
    "Gruen (2009), J. Neurophysiol. 101, 1126-1140 (shuffled trials as the null of joint events)",
    settings=Settings,
    columns=columns,
    compute=compute,
)
