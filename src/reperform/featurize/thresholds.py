"""KPI 8: amounts over legal and internal limits, and patterns consistent with splitting them (structuring, smurfing).

A pattern says what happened, not why: no intent is inferred.
"""

from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy.special import betainc

from reperform.featurize.bunching import density_jump
from reperform.featurize.kernels import F64, I64, Mask, distinct_with_own, split_amounts, times_seen_sum
from reperform.featurize.ledger import Ledger, hundredths, pair_codes
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.timing import hours
from reperform.featurize.windows import DAY_US, History, length_us

BASE = "base"
NOTHING_LEARNED: dict[str, Any] = {"share": {}, "bunching": {"z": None}}
NO_LENGTH = ("day", "transaction")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Rule:
    """One limit, in force for a time and a place.

    Args:
        name: short and unique.
        jurisdictions: home countries of accounts that it holds for; empty for all.
        channels: channels that it holds for; empty for all.
        threshold: the limit.
        currency: of the limit; `base` compares amounts in base currency, any other only the rows in that currency.
        operator: how an amount breaks it.
        window: `day` adds up a business day by the account's clock; a length such as `24h` adds up that time;
            `transaction` looks at each amount alone.
        cut_off_hour: hour of the account's clock at which a business day ends; what comes later belongs to the next.
        effective_from: first day.
        effective_to: last day, if it has ended.
        citation: where it is written.
    """

    name: str
    threshold: float
    citation: str
    effective_from: date
    effective_to: date | None = None
    jurisdictions: list[str] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    currency: str = BASE
    operator: Literal[">", ">="] = ">"
    window: str = "day"
    cut_off_hour: Annotated[int, Field(ge=1, le=24)] = 24


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Limits and patterns of KPI 8.

    Args:
        rules: limits.
        near_share: an amount in [(1 - near_share) T, T) lies just below a limit.
        structuring_window: time over which amounts just below a limit are counted.
        structuring_least_n: from this many on.
        smurfing_window: time over which parties are counted.
        smurfing_least_parties: from this many different ones on.
        micro_share: amounts below this share of the limit are micro amounts.
        micro_least_n: from this many on.
    """

    rules: list[Rule] = field(default_factory=list)
    near_share: float = 0.2
    structuring_window: str = "10d"
    structuring_least_n: int = 3
    smurfing_window: str = "7d"
    smurfing_least_parties: int = 3
    micro_share: float = 0.05
    micro_least_n: int = 10


def columns(settings: Settings) -> tuple[Column, ...]:
    """Ratios to the limits, and the patterns; of several limits the one that is nearest to being broken."""
    s, m = settings.structuring_window, settings.smurfing_window
    near = f"amounts in [{1 - settings.near_share:.2g} T, T) in the row's direction, the row included"
    return (
        Column(
            "limit_ratio",
            "sum over the limit's window in the row's direction, the row included, / limit; largest over limits",
            "x",
        ),
        *(
            Column(
                f"limit_ratio_{rule.name}",
                f"the same for one limit: {rule.operator} {rule.threshold:,.0f} {rule.currency} per {rule.window}, "
                f"{rule.citation}",
                "x",
                rule.window if rule.window not in NO_LENGTH else "",
                null_rule="the limit does not hold for the row",
            )
            for rule in settings.rules
        ),
        Column("limit_broken_n", "limits that this sum breaks", "limits"),
        Column(f"structuring_n_{s}", near, "transactions", s),
        Column(f"structuring_days_{s}", "different days with such amounts", "days", s),
        Column(f"structuring_ratio_{s}", "sum of such amounts / limit", "x", s),
        Column(
            f"structuring_flag_{s}",
            f"1 if at least {settings.structuring_least_n} such amounts sum to the limit or more while no day's sum "
            "breaks it",
            "0 or 1",
            s,
            is_model_input=False,
        ),
        Column(
            f"structuring_surprise_{s}",
            "-log10 P(at least so many of n | share of the segment's training amounts just below the limit)",
            "-log10 p",
            s,
        ),
        Column(
            f"structuring_of_n_{s}",
            "amounts that the limit holds for in the row's direction, the row included: n of that probability",
            "transactions",
            s,
            is_model_input=False,
        ),
        Column(
            "limit_bunching",
            "standard errors by which the density of all training amounts drops at the limit (McCrary)",
            "z",
            is_model_input=False,
            null_rule="no limit holds for the row, or fewer than 30 training amounts close to it on either side",
        ),
        Column(
            f"smurfing_parties_{m}",
            "different counterparties with amounts below the limit in the row's direction, the row included",
            "counterparties",
            m,
        ),
        Column(f"smurfing_ratio_{m}", "their amounts / limit", "x", m),
        Column(
            f"smurfing_flag_{m}",
            f"1 if at least {settings.smurfing_least_parties} parties and a ratio of 1 or more",
            "0 or 1",
            m,
            is_model_input=False,
        ),
        Column(
            f"smurfing_of_n_{m}",
            "these amounts, of records that name a counterparty",
            "transactions",
            m,
            is_model_input=False,
        ),
        Column(
            f"smurfing_micro_n_{m}",
            f"amounts below {settings.micro_share:.0%} of the limit in the row's direction, the row included",
            "transactions",
            m,
        ),
        Column(f"smurfing_micro_ratio_{m}", "their sum / limit", "x", m),
        Column(
            f"smurfing_micro_flag_{m}",
            f"1 if at least {settings.micro_least_n} of them and a ratio of 1 or more",
            "0 or 1",
            m,
            is_model_input=False,
        ),
    )


def counterparty_columns(settings: Settings) -> tuple[Column, ...]:
    """The same pattern seen from the counterparty: several accounts pay one beneficiary, or are paid by one sender."""
    m = settings.smurfing_window
    return (
        Column(
            f"smurfing_accounts_{m}",
            "different accounts that deal with the counterparty in the row's direction below the limit, the row "
            "included",
            "accounts",
            m,
        ),
        Column(f"smurfing_accounts_ratio_{m}", "their amounts / limit", "x", m),
        Column(
            f"smurfing_accounts_flag_{m}",
            f"1 if at least {settings.smurfing_least_parties} accounts and a ratio of 1 or more",
            "0 or 1",
            m,
            is_model_input=False,
        ),
        Column(f"smurfing_accounts_of_n_{m}", "these amounts", "transactions", m, is_model_input=False),
    )


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class Scope:
    """The rows that a rule holds for, with amounts in the rule's currency.

    Args:
        applies: rows that it holds for.
        cents: hundredths of the rule's currency; 0 where it does not hold.
        limit: the threshold in hundredths.
    """

    applies: Mask
    cents: I64
    limit: int

    @property
    def below(self) -> Mask:
        """Rows whose amount alone is below the limit."""
        return self.applies & (self.cents < self.limit)

    def near(self, share: float) -> Mask:
        """Rows in [(1 - share) T, T)."""
        return self.below & (self.cents >= round((1 - share) * self.limit))

    def broken_by(self, sums: I64, operator: str) -> Mask:
        """Where sums break the limit."""
        return sums > self.limit if operator == ">" else sums >= self.limit


def scope(ledger: Ledger, rule: Rule) -> Scope:
    """Rows and amounts that a rule holds for."""
    rows = ledger.transactions
    own_currency = rule.currency != BASE
    applies = ledger.time >= _day_us(rule.effective_from)
    if own_currency:
        applies &= ledger.among("currency", [rule.currency])
    if rule.channels:
        applies &= ledger.among("channel", rule.channels)
    if rule.jurisdictions:
        applies &= ledger.among("home_country", rule.jurisdictions)
    if rule.effective_to:
        applies = applies & (ledger.time < _day_us(rule.effective_to) + DAY_US)
    cents = hundredths(rows["amount"].to_numpy()) if own_currency else ledger.cents
    return Scope(applies, np.where(applies, cents, 0), round(rule.threshold * 100))


def _day_us(day: date) -> int:
    return int(datetime.combine(day, time(), tzinfo=UTC).timestamp()) * 1_000_000


def fit(ledger: Ledger, end_us: int, settings: Settings) -> dict[str, Any]:
    """Per limit: share of amounts just below it, by segment, and how the density of all amounts drops at it."""
    learn, segments = ledger.known_before(end_us), ledger.segment
    out: dict[str, Any] = {}
    for rule in settings.rules:
        at = scope(ledger, rule)
        rows = learn & at.applies
        near = at.near(settings.near_share)
        by_segment = {str(s): rows & (segments == s).to_numpy() for s in sorted(segments.unique())}
        shares = {s: _share(near[mask].sum(), mask.sum()) for s, mask in by_segment.items()}
        amounts = at.cents[rows]
        out[rule.name] = {
            "share": shares | {"": _share(near[rows].sum(), rows.sum())},
            "bunching": density_jump(amounts, at.limit, at.broken_by(amounts, rule.operator)),
        }
    return out


def _share(k: Any, n: Any) -> float:
    """Jeffreys' estimate: never 0, so that one such amount is not an impossible event."""
    return (int(k) + 0.5) / (int(n) + 1)


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Every column for every rule; of several rules the largest value, unknown where none holds."""
    found = [_of_rule(ledger, rule, fitted.get(rule.name, NOTHING_LEARNED), settings) for rule in settings.rules]
    broken = [f.pop("limit_broken_n") for f in found]
    own = {f"limit_ratio_{rule.name}": f["limit_ratio"] for rule, f in zip(settings.rules, found, strict=True)}
    names = [c.name for c in columns(settings) if c.name != "limit_broken_n" and c.name not in own]
    out = own | {name: largest([f[name] for f in found], len(ledger)) for name in names}
    unknown = np.isnan(out["limit_ratio"])
    out["limit_broken_n"] = np.where(
        unknown, np.nan, np.nansum(np.array(broken).reshape(len(found), len(ledger)), axis=0)
    )
    return out


def compute_counterparty(
    ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]
) -> Values:
    """Smurfing seen from the counterparty."""
    key = np.where(ledger.counterparty < 0, -1, 2 * ledger.counterparty + ledger.incoming)
    history = History.of(key, int(key.max(initial=-1)) + 1, ledger.time, ledger.known)
    party = pair_codes(key, ledger.account)
    m, names = settings.smurfing_window, ("smurfing_accounts", "smurfing_accounts")
    found = []
    for rule in settings.rules:
        at = scope(ledger, rule)
        holds = at.applies & (key >= 0)
        if not holds.any():
            found.append({c.name: np.full(len(ledger), np.nan) for c in counterparty_columns(settings)})
            continue
        found.append(party_values(_parties(history, party, at, m), names, at.limit, holds, settings))
    return {c.name: largest([f[c.name] for f in found], len(ledger)) for c in counterparty_columns(settings)}


def _of_rule(ledger: Ledger, rule: Rule, learned: dict[str, Any], settings: Settings) -> Values:
    at, history = scope(ledger, rule), ledger.by_account_direction
    if not at.applies.any():
        return {c.name: np.full(len(ledger), np.nan) for c in columns(settings)}
    z = learned["bunching"]["z"]
    out = _hard(ledger, history, rule, at)
    out |= _structuring(ledger, rule, at, learned["share"], settings)
    out |= _smurfing(ledger, history, at, settings)
    return out | {"limit_bunching": np.where(at.applies, np.nan if z is None else z, np.nan)}


def _hard(ledger: Ledger, history: History, rule: Rule, at: Scope) -> Values:
    """Sum over the limit's window, the row included, against the limit."""
    past = np.zeros(len(ledger), np.int64)
    if rule.window == "day":
        day = pair_codes(history.codes, business_day(ledger, rule))
        # A business day is at most 25 hours long (end of summer time).
        past = times_seen_sum(
            history.tape(25 * 3_600_000_000), day, at.cents, int(day.max(initial=-1)) + 1, len(ledger)
        )
    elif rule.window != "transaction":
        (past,) = history.sums(history.tape(length_us(rule.window)), at.cents)
    total = past + at.cents
    return {
        "limit_ratio": np.where(at.applies, total / at.limit, np.nan),
        "limit_broken_n": np.where(at.applies, at.broken_by(total, rule.operator), np.nan),
    }


def business_day(ledger: Ledger, rule: Rule) -> I64:
    """Day number of each row's business day by the account's clock; after the cut-off the next one has begun."""
    late = hours(ledger) >= rule.cut_off_hour
    return ledger.local_day + late


def _structuring(ledger: Ledger, rule: Rule, at: Scope, shares: dict[str, float], settings: Settings) -> Values:
    w, history = settings.structuring_window, ledger.by_account_direction
    near = at.near(settings.near_share)
    day = pair_codes(history.codes, business_day(ledger, rule))
    least_broken = at.limit + (rule.operator == ">")
    n, k, days, cents, broken_days = split_amounts(
        history.tape(length_us(w)), at.applies, near, at.cents, day, int(day.max(initial=-1)) + 1, least_broken
    )
    flag = (k >= settings.structuring_least_n) & (cents >= at.limit) & (broken_days == 0)
    share = ledger.looked_up(["segment"], lambda segment: shares.get(segment, shares.get("", 0.5)))
    values = {
        f"structuring_n_{w}": k,
        f"structuring_days_{w}": days,
        f"structuring_ratio_{w}": cents / at.limit,
        f"structuring_flag_{w}": flag,
        f"structuring_surprise_{w}": binomial_surprise(k, n, share),
        f"structuring_of_n_{w}": n,
    }
    return {name: np.where(at.applies, v, np.nan) for name, v in values.items()}


def binomial_surprise(k: I64, n: I64, share: F64) -> F64:
    """-log10 P(K >= k) for K ~ Binomial(n, share); 0 for k = 0, at most 300."""
    p = np.where(k > 0, betainc(np.maximum(k, 1), np.maximum(n - k + 1, 1), share), 1.0)
    return -np.log10(np.maximum(p, 1e-300)) + 0.0


def _smurfing(ledger: Ledger, history: History, at: Scope, settings: Settings) -> Values:
    m = settings.smurfing_window
    party = pair_codes(history.codes, ledger.counterparty)
    names = ("smurfing_parties", "smurfing")
    out = party_values(_parties(history, party, at, m), names, at.limit, at.applies, settings)
    micro = at.below & (at.cents < round(settings.micro_share * at.limit))
    past_n, past_cents = history.sums(history.tape(length_us(m)), micro, np.where(micro, at.cents, 0))
    count, total = past_n + micro, past_cents + np.where(micro, at.cents, 0)
    flag = (count >= settings.micro_least_n) & (total >= at.limit)
    for name, values in (("micro_n", count), ("micro_ratio", total / at.limit), ("micro_flag", flag)):
        out[f"smurfing_{name}_{m}"] = np.where(at.applies, values, np.nan)
    return out


def _parties(history: History, party: I64, at: Scope, window: str) -> tuple[I64, I64, I64]:
    """Different parties with amounts below the limit, these amounts, and their sum; the row's own included."""
    events, counts = history.tape(length_us(window)), at.below & (party >= 0)
    n = distinct_with_own(events, np.where(counts, party, -1), int(party.max(initial=-1)) + 1, len(party))
    below = np.where(counts, at.cents, 0)
    past_n, past = history.sums(events, counts, below)
    return n, past_n + counts, past + below


def party_values(
    found: tuple[I64, I64, I64], names: tuple[str, str], limit: int, holds: Mask, settings: Settings
) -> Values:
    """Columns of what `_parties` found, under the name of the parties and that of everything else."""
    (parties, of_n, cents), (name_of_parties, name), m = found, names, settings.smurfing_window
    flag = (parties >= settings.smurfing_least_parties) & (cents >= limit)
    values = {name_of_parties: parties, f"{name}_ratio": cents / limit, f"{name}_flag": flag, f"{name}_of_n": of_n}
    return {f"{column}_{m}": np.where(holds, v, np.nan) for column, v in values.items()}


def largest(candidates: list[F64], rows: int) -> F64:
    """Element-wise maximum that ignores the unknown."""
    if not candidates:
        return np.full(rows, np.nan)
    return np.asarray(np.fmax.reduce(candidates))


KPI = Kpi(
    name="thresholds",
    number=8,
    title="Compliance threshold violations",
    family="compliance",
    formula="sums per account, direction and business day against limits; amounts just below a limit over 10 days "
    "(structuring), their binomial probability, and the drop of the population's density at the limit; many parties "
    "(payers of money in, payees of money out) or many small amounts over 7 days (smurfing). Patterns, not intent",
    unit="x of the limit, and counts",
    inputs=(
        "account_id",
        "booked_at",
        "known_at",
        "direction",
        "amount",
        "amount_base",
        "currency",
        "channel",
        "counterparty_id",
        "home_country",
        "timezone",
        "segment",
    ),
    key="account",
    null_rule="no limit holds for the row's country, channel, currency and day",
    source="31 CFR 1010.311, 1010.313, 1010.314; Regulation (EU) 2024/1624, Article 80",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
COUNTERPARTY_KPI = Kpi(
    name="thresholds_counterparty",
    number=8,
    title="Compliance threshold violations, seen from the counterparty",
    family="compliance",
    formula="different accounts that deal with one counterparty in one direction within 7 days, each below a limit, "
    "together above it",
    unit="accounts, and x of the limit",
    inputs=(
        "counterparty_id",
        "account_id",
        "booked_at",
        "known_at",
        "direction",
        "amount",
        "amount_base",
        "currency",
        "channel",
    ),
    key="counterparty",
    null_rule="no limit holds for the row, or it names no counterparty",
    source="31 CFR 1010.314",
    settings=Settings,
    columns=counterparty_columns,
    compute=compute_counterparty,
    settings_key="thresholds",
)
