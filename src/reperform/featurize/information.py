"""KPI 9 for transactions: is the information on payer and payee there that the travel rule asks for?"""

from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform.errors import ReperformError, nearest
from reperform.featurize.kernels import F64, Mask
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import length_us, ratio

BASE = "base"
TRANSFERS = ["instant", "transfer", "wire"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Rule:
    """Information that has to go with a payment, in force for a time and a place.

    Args:
        name: short and unique.
        fields: canonical columns that have to be filled: the account is one side, the counterparty the other.
        channels: channels that it holds for; empty for all.
        jurisdictions: home countries of accounts that it holds for; empty for all.
        threshold: amounts from which on it holds.
        currency: of the threshold; `base` compares amounts in base currency, any other only the rows in that currency.
        operator: how an amount reaches it.
        effective_from: first day.
        effective_to: last day, if it has ended.
        citation: where it is written.
    """

    name: str
    effective_from: date
    citation: str
    effective_to: date | None = None
    fields: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["account_id", "counterparty_id"])
    channels: list[str] = field(default_factory=lambda: list(TRANSFERS))
    jurisdictions: list[str] = field(default_factory=list)
    threshold: float = 0.0
    currency: str = BASE
    operator: Literal[">", ">="] = ">="


EU_TRANSFERS = Rule(
    name="eu_transfer",
    jurisdictions=[
        "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU",
        "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
    ],
    effective_from=date(2024, 12, 30),
    citation="Regulation (EU) 2023/1113, Article 4",
)  # fmt: skip
US_TRAVEL_RULE = Rule(
    name="us_travel_rule",
    jurisdictions=["US"],
    threshold=3000,
    currency="USD",
    effective_from=date(1996, 5, 28),
    citation="31 CFR 1010.410(e) and (f)",
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Rules, and the window over which incomplete payments are counted."""

    rules: list[Rule] = field(default_factory=lambda: [EU_TRANSFERS, US_TRAVEL_RULE])
    window: str = "30d"


def columns(settings: Settings) -> tuple[Column, ...]:
    """Completeness of the row, and how often the account's payments lack something."""
    w = settings.window
    held = "payments of the account for which a rule on payer and payee holds"
    return (
        Column(
            "information_required_n", "fields that the rules in force ask for", "fields",
            is_model_input=False, null_rule="never",
        ),
        Column("information_completeness", "of these, the share that is filled", "share", is_model_input=False),
        Column(f"information_covered_n_{w}", held, "transactions", w, is_model_input=False, null_rule="never"),
        Column(
            f"information_incomplete_share_{w}", f"{held}: the share that lacks something, the row left out", "share",
            w, null_rule="no such payment is known in the window",
        ),
    )  # fmt: skip


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Fields asked for and filled, by row, and over the account's window."""
    asked, filled = np.zeros(len(ledger), np.int64), np.zeros(len(ledger), np.int64)
    for name, where in asked_by(ledger, settings).items():
        asked += where
        filled += where & ledger.transactions[name].is_not_null().to_numpy()
    history = ledger.by_account
    covered, lacking = history.sums(history.tape(length_us(settings.window)), asked > 0, filled < asked)
    w = settings.window
    return {
        "information_required_n": asked.astype(float),
        "information_completeness": ratio(filled, asked),
        f"information_covered_n_{w}": covered.astype(float),
        f"information_incomplete_share_{w}": ratio(lacking, covered),
    }


def asked_by(ledger: Ledger, settings: Settings) -> dict[str, Mask]:
    """By field, the rows of which some rule asks it; what two rules ask is asked once."""
    asked: dict[str, Mask] = {}
    for rule in settings.rules:
        holds = _holds(ledger, rule)
        for name in rule.fields:
            if name not in ledger.transactions.columns:
                raise ReperformError(
                    f"Rule {rule.name} asks for a field that transactions do not have.",
                    expected=f"some of {', '.join(ledger.transactions.columns)}",
                    got=name,
                    where="featurize.settings.payment_information.rules",
                    fix=nearest(name, ledger.transactions.columns),
                )
            asked[name] = asked.get(name, np.zeros(len(ledger), np.bool_)) | holds
    return asked


def _holds(ledger: Ledger, rule: Rule) -> Mask:
    rows, holds = ledger.transactions, np.ones(len(ledger), np.bool_)
    for name, values in (("home_country", rule.jurisdictions), ("channel", rule.channels)):
        if values:
            holds &= ledger.among(name, values)
    amount = rows["amount_base" if rule.currency == BASE else "amount"].to_numpy()
    if rule.currency != BASE:
        holds &= ledger.among("currency", [rule.currency])
    holds &= amount >= rule.threshold if rule.operator == ">=" else amount > rule.threshold
    holds &= ledger.time >= _midnight_us(rule.effective_from)
    if rule.effective_to is not None:
        holds &= ledger.time < _midnight_us(rule.effective_to) + 86_400_000_000
    return holds


def _midnight_us(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000


KPI = Kpi(
    name="payment_information",
    number=9,
    title="Completeness of payer and payee",
    family="reporting",
    formula="fields on payer and payee that are filled / fields that the travel rules in force ask for; share of "
    "incomplete payments of the account over 30 days",
    unit="share",
    inputs=("account_id", "counterparty_id", "booked_at", "known_at", "amount", "amount_base", "currency", "channel",
            "country", "home_country"),
    key="account",
    null_rule="no rule asks for information on the row",
    source="Regulation (EU) 2023/1113; 31 CFR 1010.410; FATF Recommendation 16",
    settings=Settings,
    columns=columns,
    compute=compute,
)  # fmt: skip
