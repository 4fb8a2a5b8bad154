"""KPI 2, over many amounts: do an account's first digits follow Benford's law?

Amounts are taken as written, in the account's own currency: another base currency changes nothing.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import ASK, ENTER, F64, I64, KIND, RESET, SHIFT, kernel
from reperform.featurize.ledger import Ledger, hundredths
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import length_us, where_enough

DIGITS = 9
EXPECTED = np.log10(1 + 1 / np.arange(1, DIGITS + 1))
POWERS = 10 ** np.arange(19, dtype=np.int64)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Window and limits of the first-digit test.

    Args:
        window: history whose digits are counted.
        least_n: fewer amounts give no deviation.
        bands: largest mean deviations of close, acceptable and marginally acceptable conformity.
    """

    window: str = "180d"
    least_n: int = 300
    bands: list[float] = field(default_factory=lambda: [0.006, 0.012, 0.015])


def columns(settings: Settings) -> tuple[Column, ...]:
    """Mean deviation of the digits' shares, its band, and the amounts behind it."""
    w = settings.window
    rule = f"fewer than {settings.least_n} known amounts of the account in {w}"
    close, acceptable, marginal = settings.bands
    return (
        Column(
            f"benford_mad_{w}",
            "mean over digits d = 1 to 9 of |share of amounts whose first digit is d - log10(1 + 1/d)|",
            "share",
            w,
            null_rule=rule,
        ),
        Column(
            f"benford_band_{w}",
            f"0 close (at most {close}), 1 acceptable ({acceptable}), 2 marginal ({marginal}), 3 nonconformity",
            "0 to 3",
            w,
            is_model_input=False,
            null_rule=rule,
        ),
        Column(
            f"benford_n_{w}",
            "known amounts of the account in its own currency, of 0.01 or more",
            "transactions",
            w,
            is_model_input=False,
            null_rule="never",
        ),
    )


@kernel
def digit_deviation(events: I64, digit: I64, expected: F64, least_n: int, rows: int) -> tuple[I64, F64]:
    """Mean absolute deviation of digits' shares from expected ones, over what is seen.

    Args:
        events: a tape.
        digit: first digit of each row, 1 to 9; 0 where there is none.
        expected: shares of the digits 1 to 9.
        least_n: fewer amounts give no deviation.
        rows: how many rows may ask.

    Returns:
        Amounts; their deviation, NaN where they are too few.
    """
    n_out, deviation = np.zeros(rows, np.int64), np.full(rows, np.nan)
    seen, n = np.zeros(10, np.int64), 0
    for event in events:
        row, kind = event >> SHIFT, event & KIND
        if kind == RESET:
            seen[:] = 0
            n = 0
        elif kind == ASK:
            n_out[row] = n
            if n >= max(least_n, 1):
                total = 0.0
                for position in range(9):
                    total += abs(seen[position + 1] / n - expected[position])
                deviation[row] = total / 9
        elif digit[row] > 0:
            sign = 1 if kind == ENTER else -1
            seen[digit[row]] += sign
            n += sign
    return n_out, deviation


def first_digits(amount: F64) -> I64:
    """First digit that is not zero, of amounts in hundredths; 0 for amounts that are rounded to nothing."""
    cents = hundredths(amount)
    magnitude = np.searchsorted(POWERS, cents, side="right") - 1
    return np.where(cents > 0, cents // POWERS[np.maximum(magnitude, 0)], 0)


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Conformity of the account's amounts before the row."""
    w = settings.window
    digit = first_digits(ledger.transactions["amount"].to_numpy())
    events = ledger.by_account.tape(length_us(w))
    n, deviation = digit_deviation(events, digit, EXPECTED, settings.least_n, len(ledger))
    band = np.searchsorted(settings.bands, deviation, side="left")
    return {
        f"benford_mad_{w}": deviation,
        f"benford_band_{w}": where_enough(band.astype(float), n, settings.least_n),
        f"benford_n_{w}": n.astype(float),
    }


KPI = Kpi(
    name="benford",
    number=2,
    title="Amount deviation: first digits",
    family="amount",
    formula="mean absolute deviation (MAD) of the nine first digits' shares from log10(1 + 1/d), per account; "
    "conformity bands of Nigrini",
    unit="share",
    inputs=("account_id", "booked_at", "known_at", "amount"),
    key="account",
    null_rule="too few known amounts in the window",
    source="Benford (1938); Nigrini (2012), Benford's Law, table 7.1: first digits, bands .006, .012 and .015",
    settings=Settings,
    columns=columns,
    compute=compute,
)
