"""Patterns of abuse with three dials, amount, gap and length, as payments of one account: nothing else is assumed.

The demo world plants its own typologies among its own people (`reperform.simulate.typologies`); these here need no
world, only accounts as they are in anybody's data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["cash", "online", "transfer"]
Start = Literal["day", "night"]
HOUR_S = 3600
ONLINE_SHARE = 0.4
ROUNDED_FROM = 200
ROLE_CHANNELS: dict[Role, tuple[str, ...]] = {
    "cash": ("cash", "atm"),
    "online": ("online", "card"),
    "transfer": ("instant", "transfer", "wire"),
}


@dataclass(frozen=True)
class Cell:
    """One setting of the dials.

    Args:
        pattern: a name in `PATTERNS`.
        amount: of one payment, in base currency.
        gap_hours: between payments.
        length: payments of the main kind.
    """

    pattern: str
    amount: float
    gap_hours: float
    length: int


@dataclass(frozen=True)
class Leg:
    """One payment of an event, as the account at its centre sees it.

    Args:
        at_s: seconds since the event began.
        is_in: whether the account receives it.
        amount: in base currency.
        role: what kind of channel it takes.
        party: number of the other side within the event.
    """

    at_s: int
    is_in: bool
    amount: float
    role: Role
    party: int


Legs = list[Leg]
Make = Callable[[Cell, np.random.Generator], Legs]


@dataclass(frozen=True)
class Pattern:
    """How an event is made, on which accounts, and at what time of day it begins.

    Args:
        make: its payments.
        dormant: True where the account must have been quiet; else it must be in use.
        start: by day, or at night.
        told: what it is, in a sentence.
    """

    make: Make
    told: str
    dormant: bool = False
    start: Start = "day"


def _about(amount: float, rng: np.random.Generator) -> float:
    """An amount as people choose them: near the given one, to the cent."""
    return max(round(float(amount * np.exp(rng.normal(0, 0.12))), 2), 0.01)


def _at(cell: Cell, i: int, rng: np.random.Generator) -> int:
    """When the i-th payment is made: about so many gaps after the first."""
    return int((i + (rng.uniform(-0.2, 0.2) if i else 0.0)) * cell.gap_hours * HOUR_S)


def structuring(cell: Cell, rng: np.random.Generator) -> Legs:
    """Cash paid in again and again, each sum just below the given one."""
    return [
        Leg(
            _at(cell, i, rng),
            True,
            max(round(cell.amount * rng.uniform(0.93, 0.999), -1 if cell.amount >= ROUNDED_FROM else 2), 0.01),
            "cash",
            0,
        )
        for i in range(cell.length)
    ]


def pass_through(cell: Cell, rng: np.random.Generator) -> Legs:
    """One sum comes in; nearly all of it leaves in parts, a gap after another."""
    into = _about(cell.amount, rng)
    parts = rng.dirichlet(np.full(cell.length, 6.0)) * into * rng.uniform(0.92, 0.98)
    return [
        Leg(0, True, into, "transfer", 0),
        *(Leg(_at(cell, i + 1, rng), False, max(round(float(part), 2), 0.01), "transfer", i + 1)
          for i, part in enumerate(parts)),
    ]  # fmt: skip


def fan_in(cell: Cell, rng: np.random.Generator) -> Legs:
    """Many strangers pay in, and the sum moves on."""
    into = [Leg(_at(cell, i, rng), True, _about(cell.amount, rng), "transfer", i) for i in range(cell.length)]
    onward = round(sum(leg.amount for leg in into) * rng.uniform(0.8, 0.95), 2)
    return [*into, Leg(_at(cell, cell.length, rng), False, onward, "transfer", cell.length)]


def fan_out(cell: Cell, rng: np.random.Generator) -> Legs:
    """One sum comes in and is scattered over many strangers."""
    out = [Leg(_at(cell, i + 1, rng), False, _about(cell.amount, rng), "transfer", i + 1) for i in range(cell.length)]
    return [Leg(0, True, round(sum(leg.amount for leg in out) * 1.05, 2), "transfer", 0), *out]


def card_testing(cell: Cell, rng: np.random.Generator) -> Legs:
    """A card number is tried at one shop with like sums."""
    return [Leg(_at(cell, i, rng), False, _about(cell.amount, rng), "online", 0) for i in range(cell.length)]


def account_takeover(cell: Cell, rng: np.random.Generator) -> Legs:
    """A thief pays himself and his shops, each another stranger."""
    return [
        Leg(
            _at(cell, i, rng),
            False,
            _about(cell.amount, rng),
            "online" if rng.random() < ONLINE_SHARE else "transfer",
            i,
        )
        for i in range(cell.length)
    ]


def dormant_activation(cell: Cell, rng: np.random.Generator) -> Legs:
    """An account in which nothing happened for long is emptied towards strangers."""
    return [Leg(_at(cell, i, rng), False, _about(cell.amount, rng), "transfer", i) for i in range(cell.length)]


def slow_drain(cell: Cell, rng: np.random.Generator) -> Legs:
    """The same new payee is paid at night, with days between."""
    return [Leg(_at(cell, i, rng), False, _about(cell.amount, rng), "transfer", 0) for i in range(cell.length)]


PATTERNS: dict[str, Pattern] = {
    "structuring": Pattern(structuring, "cash paid in again and again, below a limit"),
    "pass_through": Pattern(pass_through, "a sum comes in and leaves in parts"),
    "fan_in": Pattern(fan_in, "many strangers pay in, the sum moves on"),
    "fan_out": Pattern(fan_out, "a sum comes in and is scattered over strangers"),
    "card_testing": Pattern(card_testing, "a card number is tried at one shop"),
    "account_takeover": Pattern(account_takeover, "strangers are paid out of an account in use"),
    "dormant_activation": Pattern(dormant_activation, "a quiet account is emptied towards strangers", dormant=True),
    "slow_drain": Pattern(slow_drain, "one new payee is paid at night, with days between", start="night"),
}
