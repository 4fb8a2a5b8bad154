"""Misstatements to plant in returns: each takes an honest return and gives what was filed instead, and the truth."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform.simulate.bank_returns import END, MONTH, Key, Return, Value, thousands
from reperform.taxonomy import BY_NAME, RETURN, SUMS

Range = tuple[float, float]
Planted = tuple[Return, str, str]  # the filing as misstated, the line concerned, what was done
Kind = Literal[
    "calculation_inconsistency",
    "sign_error",
    "scale_error",
    "missing_required_fact",
    "late_filing",
    "restatement",
    "ledger_contradiction",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Misstatement:
    """How many filings are misstated in one way, and by how much; what a kind does not use stays unread.

    Args:
        filings: how many.
        share: least and largest size, as a share of the right value.
        factor: how many times too large or too small.
        days: fewest and most days late, or until the restatement.
    """

    filings: Annotated[int, Field(ge=0)] = 0
    share: Range = (0.05, 0.2)
    factor: Annotated[int, Field(ge=2)] = 1000
    days: tuple[int, int] = (5, 20)


def drawn_number(rng: np.random.Generator, between: tuple[int, int]) -> int:
    """A whole number between two limits, both included."""
    return int(rng.integers(between[0], between[1] + 1))


def office_hours(rng: np.random.Generator, day: datetime) -> datetime:
    """A minute between 8:00 and 18:00 UTC of a day."""
    return day.replace(hour=8, minute=0, second=0) + timedelta(minutes=int(rng.integers(0, 600)))


def _share(rng: np.random.Generator, how: Misstatement) -> float:
    return float(rng.uniform(*how.share))


def _one_of(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _where(name: str) -> Key:
    return name, END if BY_NAME[name].period == "instant" else MONTH


def _amount(each: Return, key: Key) -> int:
    value = each.values[key]
    return value if isinstance(value, int) else 0


def _calculation_inconsistency(each: Return, how: Misstatement, rng: np.random.Generator, _turn: int) -> list[Planted]:
    """A part grows, its total does not."""
    name = _one_of(rng, ("LoansAndAdvances", "DebtSecurities", "BorrowedFunds", "OperatingExpenses"))
    factor = 1 + _share(rng, how)
    key, step = _where(name), 10 ** -BY_NAME[name].decimals
    amount = round(_amount(each, key) * factor / step) * step
    return [(each.changed({key: amount}), name, f"reported {factor:.3f} times, total left as it was")]


def _sign_error(each: Return, _how: Misstatement, rng: np.random.Generator, _turn: int) -> list[Planted]:
    name = _one_of(rng, ("OperatingExpenses", "ImpairmentLosses", "RetainedEarnings", "OtherLiabilities"))
    key = _where(name)
    return [(each.changed({key: -_amount(each, key)}), name, "reported with the opposite sign")]


def _scale_error(each: Return, how: Misstatement, rng: np.random.Generator, turn: int) -> list[Planted]:
    """In turn: one line too large, the ledger schedule too small, the whole return too small."""
    scope = ("line", "ledger schedule", "whole return")[turn % 3]
    if scope == "line":
        name = _one_of(rng, ("LoansAndAdvances", "DebtSecurities", "NetInterestIncome"))
        key = _where(name)
        return [(each.changed({key: _amount(each, key) * how.factor}), name, f"one line {how.factor} times too large")]
    changes: dict[Key, Value] = {}
    for name, moment in each.values:
        concept = BY_NAME[name]
        if concept.kind == "monetary" and (scope == "whole return" or name.endswith("Value")):
            changes[name, moment] = round(_amount(each, (name, moment)) / how.factor)
    concerned = "TotalAssets" if scope == "whole return" else "OutgoingTransactionsValue"
    return [(each.changed(changes), concerned, f"{scope} {how.factor} times too small")]


def _missing_required_fact(each: Return, _how: Misstatement, rng: np.random.Generator, turn: int) -> list[Planted]:
    """Left out, or reported as nil."""
    totals = {total for schedule in SUMS.values() for total in schedule}
    names = [c.name for c in RETURN if c.required and c.kind in ("monetary", "count") and c.name not in totals]
    key = _where(_one_of(rng, names))
    if turn % 2:
        return [(each.changed({key: None}), key[0], "reported as nil")]
    kept = {other: value for other, value in each.values.items() if other != key}
    return [(replace(each, values=kept), key[0], "left out")]


def _late_filing(each: Return, how: Misstatement, rng: np.random.Generator, _turn: int) -> list[Planted]:
    late = drawn_number(rng, how.days)
    return [
        (replace(each, filed_at=office_hours(rng, each.due_at + timedelta(days=late))), "", f"filed {late} days late")
    ]


def _restatement(each: Return, how: Misstatement, rng: np.random.Generator, _turn: int) -> list[Planted]:
    """The first version flatters loans, equity and fees, and adds up; a second one corrects it."""
    share = _share(rng, how)
    loans = thousands(_amount(each, ("LoansAndAdvances", END)) * share)
    fees = round(_amount(each, ("NetFeeIncome", MONTH)) * share)
    stocks = ("LoansAndAdvances", "TotalAssets", "RetainedEarnings", "TotalEquity", "TotalLiabilitiesAndEquity")
    flattered: dict[Key, Value] = {(name, END): _amount(each, (name, END)) + loans for name in stocks}
    flattered |= {(name, MONTH): _amount(each, (name, MONTH)) + fees for name in ("NetFeeIncome", "ProfitBeforeTax")}
    corrected = replace(
        each.changed(
            {("IsRestatement", MONTH): True, ("RestatementReason", MONTH): "Loans and fee income were overstated."}
        ),
        filing_id=f"{each.filing_id}-r1",
        filed_at=office_hours(rng, each.filed_at + timedelta(days=drawn_number(rng, how.days))),
    )
    return [
        (
            each.changed(flattered),
            "LoansAndAdvances",
            f"first version, {share:.1%} too large; corrected by {corrected.filing_id}",
        ),
        (corrected, "LoansAndAdvances", f"corrects {each.filing_id}"),
    ]


def _ledger_contradiction(each: Return, how: Misstatement, rng: np.random.Generator, turn: int) -> list[Planted]:
    """In turn: flows in and out understated alike, so that the return still adds up; or cash deposits understated."""
    share = _share(rng, how)
    if turn % 2 and _amount(each, _where("CashDepositsValue")):
        names = ("CashDepositsValue", "CashDepositsNumber")
        changes: dict[Key, Value] = {_where(name): round(_amount(each, _where(name)) * (1 - share)) for name in names}
        return [(each.changed(changes), names[0], f"{share:.1%} less than the ledger holds")]
    flow = min(_amount(each, _where(f"{side}TransactionsValue")) for side in ("Incoming", "Outgoing"))
    cut = round(flow * share)
    names = ("IncomingTransactionsValue", "OutgoingTransactionsValue")
    changes = {_where(name): _amount(each, _where(name)) - cut for name in names}
    return [(each.changed(changes), names[0], f"{share:.1%} less than the ledger holds, on both sides")]


Planter = Callable[[Return, Misstatement, np.random.Generator, int], list[Planted]]
PLANTERS: dict[Kind, Planter] = {
    "calculation_inconsistency": _calculation_inconsistency,
    "sign_error": _sign_error,
    "scale_error": _scale_error,
    "missing_required_fact": _missing_required_fact,
    "late_filing": _late_filing,
    "restatement": _restatement,
    "ledger_contradiction": _ledger_contradiction,
}
