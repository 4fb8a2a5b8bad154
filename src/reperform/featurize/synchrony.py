"""KPI 12, between accounts: do two accounts of an entity act within minutes of each other more often than chance?"""

# ruff: noqa: C901, PLR0917  # compiled functions take arguments by position, and a walk over events is one loop

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, kernel
from reperform.featurize.ledger import Ledger, codes
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
    most_partners: int = 5
    most_nearby: int = 50
    most_records: int = 100


def columns(settings: Settings) -> tuple[Column, ...]:
    """Excess co-activity with the partner that shows it most, and what is behind it."""
    w, m = settings.window, settings.minutes
    alone = f"no other account of the entity is known to have acted in the last {m} minutes"
    return (
        Column(
            f"synchrony_surprise_{w}",
            f"largest over accounts active in the last {m} minutes of -log10(partners x P(N >= n)), at least 0; n days "
            "on which both acted together, N Poisson with the number expected when the partner's active days change "
            "places",
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
def _latest(rows: I64, begin: int, end: int, time: I64, enter: I64, now: int, oldest: int, out: I64) -> int:
    """Times of an account's latest records before a moment that are known at it, latest first; returns their number."""
    low, high = begin, end
    while low < high:
        middle = (low + high) // 2
        if time[rows[middle]] < now:
            low = middle + 1
        else:
            high = middle
    size = 0
    for position in range(low - 1, begin - 1, -1):
        row = rows[position]
        if time[row] < oldest or size == len(out):
            break
        if enter[row] <= now:
            out[size] = time[row]
            size += 1
    return size


@kernel
def _together(own: I64, own_size: int, other: I64, other_size: int, reach: int) -> int:
    """On how many of one's days a record has one of the other's within reach; both in falling order."""
    n, at, counted = 0, 0, -1
    for position in range(own_size):
        while at < other_size and other[at] > own[position] + reach:
            at += 1
        if at < other_size and other[at] >= own[position] - reach and own[position] // DAY_US != counted:
            counted = own[position] // DAY_US
            n += 1
    return n


@kernel
def _expected(own: I64, own_size: int, other: I64, other_size: int, reach: int) -> float:
    """What `_together` gives on average when the other's active days change places at random.

    A day of the own account without the other meets nothing; any other meets one of the other's active days, each as
    likely as the next.
    """
    day_of, active = np.empty(other_size, np.int64), 0
    for at in range(other_size):
        active += at == 0 or other[at] // DAY_US != other[at - 1] // DAY_US
        day_of[at] = active - 1
    meets = np.zeros(active, np.int64)
    total, shared, number = 0.0, False, 0
    for position in range(own_size):
        day, clock = own[position] // DAY_US, own[position] % DAY_US
        if position == 0 or day != own[position - 1] // DAY_US:
            total += number / active if shared else 0.0
            shared, number = False, 0
        for at in range(other_size):
            shared = shared or other[at] // DAY_US == day or abs(other[at] - own[position]) <= reach
            apart = abs(other[at] % DAY_US - clock)
            if min(apart, DAY_US - apart) <= reach and meets[day_of[at]] != day:
                meets[day_of[at]] = day
                number += 1
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
    """For each row the partner with which its account acted together most beyond chance.

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
    own, other = np.empty(most_records, np.int64), np.empty(most_records, np.int64)
    partners = np.empty(most_partners, np.int64)
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
            mine, oldest = account[row], now - window
            own_size = _latest(
                account_rows, account_starts[mine], account_starts[mine + 1], time, enter, now, oldest, own
            )
            surprise[row], n[row], expected[row] = 0.0, 0.0, 0.0
            for position in range(size):
                partner = partners[position]
                other_size = _latest(
                    account_rows, account_starts[partner], account_starts[partner + 1], time, enter, now - reach,
                    oldest, other,
                )  # fmt: skip
                together = _together(own, own_size, other, other_size, reach)
                if together == 0:
                    continue
                by_chance = _expected(own, own_size, other, other_size, reach)
                value = poisson_tail(together, by_chance) - math.log10(size)
                if value > surprise[row] or n[row] == 0:
                    surprise[row], n[row], expected[row] = max(value, 0.0), together, by_chance
    return surprise, n, expected, found


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Synchrony with accounts that acted just before the row, as known then."""
    entity, history = codes(ledger.transactions["entity_id"]), ledger.by_account
    of_entity = Rows.ordered(entity, ledger.time, int(entity.max(initial=-1)) + 1)
    surprise, n, expected, partners = synchrony(
        of_entity.starts,
        of_entity.rows,
        history.by_time.starts,
        history.by_time.rows,
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
