"""Make the demo world: accounts, transactions, filings, planted anomalies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from reperform import paths, schemas
from reperform.errors import ReperformError
from reperform.params import SimulateParams
from reperform.simulate import business, deliveries, labels, ledger, lookalikes, people, spending, typologies
from reperform.simulate.arrival import STATEMENTS, known_s
from reperform.simulate.draws import CENTS, Ints
from reperform.simulate.filings import TRUTH_SCHEMA as FILING_TRUTH_SCHEMA
from reperform.simulate.filings import write_filings
from reperform.simulate.identifiers import references
from reperform.simulate.places import ZONES
from reperform.simulate.rates import rate_at
from reperform.simulate.settings import BackgroundSettings, checked
from reperform.simulate.world import World, build
from reperform.tables import write_table

TRUTH_SCHEMA = {
    "transaction_id": pl.String,
    "typology": pl.String,
    "event_id": pl.String,
    "is_anomaly": pl.Boolean,
}
PLANTED_SHARE = 0.005
LEAST_SHOPPING_SHARE = 0.15
# Only what happens at a place has coordinates.
PLACED_CHANNELS = ("card", "atm", "cash")


@dataclass(frozen=True)
class Simulated:
    """A whole world in canonical form.

    Args:
        transactions: as in `schemas.TRANSACTIONS`, by booked_at and transaction_id.
        accounts: as in `schemas.ACCOUNTS`.
        labels: as in `schemas.LABELS`: what case handling has confirmed.
        truth: transaction_id, typology, event_id, is_anomaly, of planted rows alone.
        rates: currency, rate_to_base, published_s.
        world: who is there.
    """

    transactions: pl.DataFrame
    accounts: pl.DataFrame
    labels: pl.DataFrame
    truth: pl.DataFrame
    rates: pl.DataFrame
    world: World


def simulate(params: SimulateParams) -> Simulated:
    """The world as it truly is, without any file.

    Raises:
        ReperformError: when the asked number of transactions leaves no room for shopping.
    """
    settings = checked(params)
    world = build(params, settings)
    background = _background(world, params, settings.background)
    opening = ledger.opening_cents(background, world, settings.background.overdraft_share)
    planted = ledger.possible(
        typologies.plant(world, ledger.history(background, opening), settings.typologies, params.transactions), world
    )
    planted_rows = ledger.legs(planted, world, world.rng("references", "planted"))
    # Payment numbers of planted rows continue those of the background.
    planted_rows = planted_rows.with_columns(pl.col("pair") + background["pair"].max() + 1)
    rows = pl.concat([background, ledger.beside(planted_rows, background)])
    rows = _named(ledger.rolled_balances(rows, opening), world)
    return Simulated(
        transactions=schemas.checked(_transactions(rows, world), schemas.TRANSACTIONS),
        accounts=schemas.checked(_accounts(world), schemas.ACCOUNTS),
        labels=schemas.checked(_times(labels.confirmed(rows, settings.labels, params.seed)), schemas.LABELS),
        truth=_truth(rows),
        rates=world.rates,
        world=world,
    )


def deliver(made: Simulated, params: SimulateParams, raw: Path) -> pl.DataFrame:
    """Write everything that a reader of the world may see below the raw folder; give back the truth about filings."""
    for institution in made.world.institutions:
        own = pl.col("entity_id") == institution.name
        deliveries.write_institution(institution, made.transactions.filter(own), made.accounts.filter(own), raw)
    deliveries.write_labels(made.labels, raw)
    deliveries.write_rates(made.rates, raw)
    return write_filings(
        made.transactions,
        params.filings,
        raw=raw,
        seed=params.seed,
        start=params.start,
        days=params.days,
        entities=[i.name for i in made.world.institutions],
    )


def _background(world: World, params: SimulateParams, settings: BackgroundSettings) -> pl.DataFrame:
    """Account rows of ordinary life; shopping fills what regular payments leave of the asked number."""
    regular = ledger.possible(
        ledger.together(
            [
                people.habits(world, settings.people),
                business.habits(world, settings.business),
                lookalikes.habits(world, settings.lookalikes),
            ]
        ),
        world,
    )
    wanted = round(params.transactions * (1 - PLANTED_SHARE))
    left = wanted - int(ledger.rows_per_payment(regular, world).sum())
    if left < LEAST_SHOPPING_SHARE * wanted:
        raise ReperformError(
            "Too few transactions for so many accounts.",
            expected=f"at least {round((wanted - left) / (1 - LEAST_SHOPPING_SHARE - PLANTED_SHARE)):,}",
            got=f"{params.transactions:,}",
            where="simulate.transactions",
            fix="ask for more transactions or fewer accounts",
        )
    away = spending.journeys(world, settings.spending)
    shopping = spending.purchases(world, away, settings.spending, rows=round(left * 1.02) + 10)
    shopping = ledger.possible(shopping, world)
    kept = np.sort(world.rng("spending", "kept").permutation(shopping.height)[:left])
    shopping = shopping[kept]
    rows = ledger.legs(ledger.together([regular, shopping]), world, world.rng("references", "background"))
    return ledger.without_ties(rows)


def _named(rows: pl.DataFrame, world: World) -> pl.DataFrame:
    """Rows with their reference and the time that they could be known."""
    rows = rows.sort("pair", "sign")
    institution = world.accounts.institution[rows["account"].to_numpy()]
    names = [i.name for i in world.institutions]
    return rows.with_columns(
        transaction_id=pl.Series(references(names, institution, rows["number"].to_numpy())),
        known_s=pl.Series(known_s(rows, world, world.rng("arrival"))),
    )


def _transactions(rows: pl.DataFrame, world: World) -> pl.DataFrame:
    account, party = rows["account"].to_numpy(), rows["party"].to_numpy()
    parties, currency = world.parties, world.currency[account]
    units = rows["cents"].to_numpy() / CENTS
    # Statements in ISO 20022 have no field for the place of a purchase.
    has_places = np.array([not i.format.startswith(STATEMENTS) for i in world.institutions])
    placed = rows["channel"].is_in(PLACED_CHANNELS).to_numpy() & has_places[world.accounts.institution[account]]
    frame = rows.select(
        "transaction_id",
        _utc("at_s").alias("booked_at"),
        _utc("known_s").alias("known_at"),
        pl.Series("account_id", parties.identifier[account].tolist()),
        pl.Series("counterparty_id", _known(parties.identifier, party), dtype=pl.String),
        pl.Series(
            "entity_id", np.array([i.name for i in world.institutions])[world.accounts.institution[account]].tolist()
        ),
        pl.when(pl.col("sign") > 0).then(pl.lit("in")).otherwise(pl.lit("out")).alias("direction"),
        pl.Series("amount", units),
        pl.Series("currency", currency.tolist()),
        pl.Series("amount_base", units * _rates(world, currency, rows["known_s"].to_numpy())),
        "channel",
        pl.Series("country", _known(parties.country, party), dtype=pl.String),
        pl.Series("latitude", np.where(placed, parties.latitude[party], np.nan)).fill_nan(None),
        pl.Series("longitude", np.where(placed, parties.longitude[party], np.nan)).fill_nan(None),
        pl.Series("balance_after", rows["balance"].to_numpy() / CENTS),
        pl.lit("").alias("source_file"),
        pl.lit(0, pl.Int64).alias("source_record"),
    )
    return frame.sort("booked_at", "transaction_id")


def _known(names: np.ndarray, party: Ints) -> list[str | None]:
    listed = names.tolist()
    return [listed[p] if p >= 0 else None for p in party.tolist()]


def _rates(world: World, currency: np.ndarray, at_s: Ints) -> np.ndarray:
    factor = np.ones(at_s.size)
    for code in np.unique(currency):
        own = currency == code
        factor[own] = rate_at(world.rates, str(code), at_s[own])
    return factor


def _accounts(world: World) -> pl.DataFrame:
    accounts = world.accounts
    names = np.array([i.name for i in world.institutions])
    return pl.DataFrame(
        {
            "account_id": world.parties.identifier[: accounts.number].tolist(),
            "entity_id": names[accounts.institution].tolist(),
            "opened_at": world.calendar.start_s + accounts.opened * 86_400,
            "timezone": [ZONES[z] for z in accounts.zone.tolist()],
            "segment": accounts.segment.tolist(),
            "home_country": world.parties.country[: accounts.number].tolist(),
        }
    ).with_columns(opened_at=_utc("opened_at"))


def _times(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(confirmed_at=_utc("confirmed_s")).drop("confirmed_s")


def _utc(seconds: str) -> pl.Expr:
    return (pl.col(seconds) * 1_000_000).cast(pl.Datetime("us", "UTC"))


def _truth(rows: pl.DataFrame) -> pl.DataFrame:
    return (
        rows.filter(pl.col("event").is_not_null())
        .sort("at_s", "transaction_id")
        .select(
            "transaction_id",
            pl.col("event").str.replace(r"-\d+$", "").alias("typology"),
            pl.col("event").alias("event_id"),
            pl.lit(value=True).alias("is_anomaly"),
        )
        .cast(TRUTH_SCHEMA)  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Summary:
    """What a run made.

    Args:
        transactions: rows in all institutions' files.
        accounts: how many.
        planted: anomalous rows.
        events: planted events.
        labels: rows that case handling has confirmed, innocent ones included.
        misstated: filings that are misstated, late or restated.
    """

    transactions: int = 0
    accounts: int = 0
    planted: int = 0
    events: int = 0
    labels: int = 0
    misstated: int = 0


def run(params: SimulateParams) -> Summary:
    """Write the raw folder, and the truth beside it."""
    raw = paths.data("simulate") / "raw"
    if params.world == "none":
        deliveries.write_nothing(raw)
        write_table(pl.DataFrame(schema=TRUTH_SCHEMA), "simulate", "truth")
        write_table(pl.DataFrame(schema=FILING_TRUTH_SCHEMA), "simulate", "filing_truth")
        return Summary()
    made = simulate(params)
    filing_truth = deliver(made, params, deliveries.emptied(raw))
    write_table(made.truth, "simulate", "truth")
    write_table(filing_truth, "simulate", "filing_truth")
    return Summary(
        transactions=made.transactions.height,
        accounts=made.accounts.height,
        planted=made.truth.height,
        events=made.truth["event_id"].n_unique(),
        labels=made.labels.height,
        misstated=filing_truth.height,
    )
