"""What can be set about the demo world: one frozen class per block of `conf/simulate/`, unknown keys refused."""

from datetime import date
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform.params import Count, Positive, Share, SimulateParams, build

_STRICT = ConfigDict(extra="forbid")
Range = tuple[float, float]
Span = tuple[int, int]
Amount = tuple[Positive, Positive]
"""Median in units of the account's currency, and the standard deviation of the logarithm."""
Days = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=_STRICT)
class InstitutionSettings:
    """A reporting bank: the dialect of its raw files, its share of accounts, their currency, its customers' homes."""

    format: str
    share: Positive
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    countries: list[str]


@dataclass(frozen=True, config=_STRICT)
class Walk:
    """An exchange rate: units of base currency per unit on the first day, and the daily sd of its logarithm."""

    first: Positive
    daily_volatility: Rate


@dataclass(frozen=True, config=_STRICT)
class PeopleSettings:
    """Habits of people: shares of people, and payments per person in a half year of 150 rows."""

    earner_share: Share
    employed_here_share: Share
    tenant_share: Share
    rents_here_share: Share
    bills_per_account: Rate
    to_friends: Rate
    to_strangers: Rate
    from_strangers: Rate
    saver_share: Share
    cash_worker_share: Share
    cash_heavy_share: Share


@dataclass(frozen=True, config=_STRICT)
class BusinessSettings:
    """Habits of businesses; deals and payments at night are per month."""

    daily_settlement_share: Share
    cash_till_share: Share
    suppliers_per_business: Rate
    customers_per_business: Rate
    sellers_per_marketplace: Annotated[int, Field(ge=1)]
    deals_per_agent: Rate
    night_payments: Rate


@dataclass(frozen=True, config=_STRICT)
class SpendingSettings:
    """Shopping: who travels, and how much of shopping is online or at cash machines."""

    traveller_share: Share
    online_share: Share
    atm_share: Share


@dataclass(frozen=True, config=_STRICT)
class LookalikeSettings:
    """How many of each innocent habit that resembles a planted typology, in a world of 2,000 accounts."""

    gift_collection: Count
    shared_out: Count
    round_trip: Count
    reactivation: Count
    small_purchases: Count
    big_week: Count
    newcomer: Count
    passed_on: Count


@dataclass(frozen=True, config=_STRICT)
class BackgroundSettings:
    """Ordinary life.

    Args:
        holidays: days on which no business is done.
        rates: exchange rates to the base currency.
        segments: shares of accounts; `business` is one of them.
        trades: shares of businesses.
        monthly_income: median per segment of people and per trade, in units of their currency.
        new_account_share: of accounts that open within the period.
        dormant_share: of people's accounts in which nothing happens by itself.
        overdraft_share: of accounts that may fall below zero.
        people, business, spending, lookalikes: blocks of their own.
    """

    holidays: list[date]
    rates: dict[str, Walk]
    segments: dict[str, Positive]
    trades: dict[str, Positive]
    monthly_income: dict[str, Positive]
    new_account_share: Share
    dormant_share: Share
    overdraft_share: Share
    people: PeopleSettings
    business: BusinessSettings
    spending: SpendingSettings
    lookalikes: LookalikeSettings


@dataclass(frozen=True, config=_STRICT)
class LabelSettings:
    """What case handling finds out, and when.

    Args:
        median_delay_days: from when a row is known to when it is confirmed.
        delay_sigma: sd of the logarithm of that delay.
        event_never_share: of events that no one finds.
        row_missed_share: of rows of events that are found.
        one_leg_share: of transfers between two accounts of which one side's row is not recorded.
        unnamed_share: of cases that are closed without a typology.
        reviewed_normal_share: of rows of innocent lookalikes that somebody looked into.
    """

    median_delay_days: Positive
    delay_sigma: Rate
    event_never_share: Share
    row_missed_share: Share
    one_leg_share: Share
    unnamed_share: Share
    reviewed_normal_share: Share


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class PlantedSettings:
    """What every typology has.

    Args:
        events: how many in a world of 300,000 rows.
        odd_hour_share: of payments at any hour instead of waking ones.
        ring_share: of strangers who belong to a ring that turns up in several events.
    """

    events: Count
    odd_hour_share: Share = 0.15
    ring_share: Share = 0.4


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class StructuringSettings(PlantedSettings):
    """`below`: each deposit as a share of the limit. `limit`: in the account's currency and in base currency."""

    limit: Positive
    deposits: Span
    window_days: Days
    below: tuple[Share, Share]
    wired_on_share: Share


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class SmurfingSettings(PlantedSettings):
    """`senders_here_share`: of senders whose accounts are simulated, so that both sides are seen."""

    senders: Span
    senders_here_share: Share
    window_days: Days
    amount: Amount
    moved_on_share: Share


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class FanOutSettings(PlantedSettings):
    """`within_h`: from the money's arrival to the last payment."""

    receivers: Span
    receivers_here_share: Share
    amount: Amount
    within_h: Range


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class MuleSettings(PlantedSettings):
    """`parts`: payments in which `passed_share` of what came in leaves; `cash_share` of them at a machine."""

    rounds: Span
    rest_days: Span
    parts: Span
    amount: Amount
    median_wait_h: Positive
    passed_share: tuple[Share, Share]
    cash_share: Share


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class CycleSettings(PlantedSettings):
    """`fee`: what each hop keeps, as a share."""

    accounts: Span
    amount: Amount
    fee: tuple[Share, Share]
    median_gap_h: Positive


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class ScatterGatherSettings(PlantedSettings):
    """`middlemen`: accounts between the source and the sink."""

    middlemen: Span
    amount: Amount
    median_wait_h: Positive
    passed_share: tuple[Share, Share]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class TakeoverSettings(PlantedSettings):
    """`channels`: relative use. `weak_shop_share`: of orders at online shops that check little."""

    payments: Span
    within_h: Range
    channels: dict[str, Positive]
    amount: Amount
    weak_shop_share: Share


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class CardTestingSettings(PlantedSettings):
    """`limit`: every trial is below it. `gap_s`: mean seconds between trials. `amount`: of the uses that follow."""

    limit: Positive
    trials: Span
    uses: Span
    gap_s: Range
    trial_amount: Amount
    amount: Amount
    weak_shop_share: Share


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class AwakenedSettings(PlantedSettings):
    """`in_share`: of payments that come in; the others drain the account."""

    payments: Span
    window_days: Days
    in_share: Share
    amount: Amount


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class InsiderSettings(PlantedSettings):
    """`approval_limit`: from there on a payment needs a second signature."""

    payments: Span
    window_days: Days
    night_share: Share
    approval_limit: Positive
    amount: Amount


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class TypologySettings:
    """All ten; one that is left out is not planted."""

    structuring: StructuringSettings | None = None
    smurfing: SmurfingSettings | None = None
    fan_out: FanOutSettings | None = None
    mule_pass_through: MuleSettings | None = None
    cycle: CycleSettings | None = None
    scatter_gather: ScatterGatherSettings | None = None
    account_takeover: TakeoverSettings | None = None
    card_testing: CardTestingSettings | None = None
    dormant_awakened: AwakenedSettings | None = None
    off_hours_insider: InsiderSettings | None = None


@dataclass(frozen=True, config=_STRICT)
class WorldSettings:
    """The blocks of `conf/simulate/` that describe accounts, transactions and labels."""

    institutions: dict[str, InstitutionSettings]
    background: BackgroundSettings
    typologies: TypologySettings
    labels: LabelSettings


def checked(params: SimulateParams) -> WorldSettings:
    """The settings of a world, typed.

    Raises:
        ReperformError: for an unknown key, a missing one or a wrong value, with its place.
    """
    blocks = ("institutions", "background", "typologies", "labels")
    return build(WorldSettings, {name: getattr(params, name) for name in blocks}, where="simulate")
