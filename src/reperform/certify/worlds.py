"""The same world up to a moment, and another one after it."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

import numpy as np
import polars as pl

from reperform import schemas

MOVED_TOGETHER = (
    ("account_id",),
    ("counterparty_id",),
    ("direction",),
    ("amount", "currency", "amount_base"),
    ("channel",),
    ("country",),
    ("latitude", "longitude"),
    ("balance_after",),
)  # columns that are shuffled; those in one group keep together, so that every row still meets its contract
BENCH_ROWS = 20_000
DAY_US = 86_400_000_000
Sampled = Literal["account_id", "counterparty_id"]


@dataclass(frozen=True)
class Tables:
    """What features are made of."""

    transactions: pl.DataFrame
    labels: pl.DataFrame
    accounts: pl.DataFrame
    filings: pl.DataFrame = field(default_factory=partial(schemas.empty, schemas.FILINGS))
    facts: pl.DataFrame = field(default_factory=partial(schemas.empty, schemas.FACTS))
    messages: pl.DataFrame = field(default_factory=partial(schemas.empty, schemas.MESSAGES))
    checks: pl.DataFrame = field(default_factory=partial(schemas.empty, schemas.CHECKS))


def kept_rows(transactions: pl.DataFrame, at: datetime) -> pl.Series:
    """Rows that had happened and were known by a moment; of those that happened at that very moment, one."""
    known = transactions["known_at"] <= at
    tied = (transactions["booked_at"] == at) & known
    return ((transactions["booked_at"] < at) & known) | (tied & (tied.cum_sum() == 1))


def changed_after(tables: Tables, kept: pl.Series, at: datetime, rng: np.random.Generator) -> Tables:
    """The same world up to a moment, and another one after it: rows shuffled, moved, dropped and added; labels too."""
    future = tables.transactions.filter(~kept)
    n = future.height
    for group in MOVED_TOGETHER:
        order = rng.permutation(n)
        future = future.with_columns(future[name].gather(order) for name in group)
    scale = pl.Series(rng.uniform(0.1, 10.0, n))
    delay, wait = (_random_wait(rng, n, 3 * DAY_US) for _ in range(2))
    stays = pl.Series(rng.random(n) < 0.5) & (future["booked_at"] <= at)  # noqa: PLR2004  # half keep their time
    new_party = pl.Series(rng.random(n) < 0.1)  # noqa: PLR2004  # some deal with somebody nobody knew
    future = future.with_columns(
        amount=(future["amount"] * scale).clip(0.01),
        amount_base=(future["amount_base"] * scale).clip(0.01),
        booked_at=pl.select(
            pl.when(stays).then(future["booked_at"]).otherwise(future["booked_at"] + delay)
        ).to_series(),
        known_at=pl.select(
            pl.when(stays).then(future["known_at"]).otherwise(future["known_at"] + delay + wait)
        ).to_series(),
        counterparty_id=pl.select(
            pl.when(new_party).then(pl.lit("!new-") + future["transaction_id"]).otherwise(future["counterparty_id"])
        ).to_series(),
    ).filter(pl.Series(rng.random(n) > 0.1))  # noqa: PLR2004  # some never happen
    added = future.head(future.height // 20).with_columns(transaction_id=pl.lit("!added-") + pl.col("transaction_id"))
    rows = pl.concat([tables.transactions.filter(kept), future, added]).sort("booked_at", "transaction_id")
    changed = replace(tables, transactions=rows, labels=_labels_changed(tables, rows, at, rng))
    return changed if tables.filings.is_empty() else _filings_changed(changed, at, rng)


def _random_wait(rng: np.random.Generator, n: int, most_us: int) -> pl.Series:
    return pl.Series(rng.integers(0, most_us, n)).cast(pl.Duration("us"))


def _labels_changed(tables: Tables, rows: pl.DataFrame, at: datetime, rng: np.random.Generator) -> pl.DataFrame:
    """Labels as confirmed by a moment; afterwards others are confirmed, of rows before and after it."""
    known = tables.labels.filter(pl.col("confirmed_at") <= at)
    free = rows.filter(~pl.col("transaction_id").is_in(known["transaction_id"].implode())).select(
        "transaction_id", "booked_at", "known_at"
    )
    picked = free.filter(pl.Series(rng.random(free.height) < 0.05))  # noqa: PLR2004  # many more than there are
    later = pl.Series(rng.integers(1, 30 * DAY_US, picked.height)).cast(pl.Duration("us"))
    others = picked.select(
        "transaction_id",
        is_anomaly=pl.Series(rng.random(picked.height) < 0.7),  # noqa: PLR2004  # some are cleared
        typology=pl.lit(None, pl.String),
        confirmed_at=pl.max_horizontal("booked_at", "known_at", pl.lit(at)) + later,
    )
    return pl.concat([known, others.cast(known.schema)]).sort("transaction_id")


def kept_filings(filings: pl.DataFrame, at: datetime) -> pl.DataFrame:
    """Filings that had been received before a moment."""
    return filings.filter(pl.col("filed_at") < at)


def _filings_changed(tables: Tables, at: datetime, rng: np.random.Generator) -> Tables:
    """Filings received later come later still, say other things, or never come."""
    before = kept_filings(tables.filings, at)
    after = tables.filings.filter(pl.col("filed_at") >= at)
    n = after.height
    after = after.with_columns(
        filed_at=pl.col("filed_at") + _random_wait(rng, n, 30 * DAY_US),
        due_at=after["due_at"].gather(rng.permutation(n)),
    ).filter(pl.Series(rng.random(n) > 0.1, dtype=pl.Boolean))  # noqa: PLR2004  # some never come
    filings = pl.concat([before, after]).sort("filed_at", "filing_id")
    old, new = (of.select("filing_id") for of in (before, after))
    number = pl.col("value").cast(pl.Float64, strict=False)

    def split(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        one, other = (frame.join(of, on="filing_id", how="semi", maintain_order="left") for of in (old, new))
        return one, other

    facts, later = split(tables.facts)
    said = later.select("value", "is_nil", "unit", "decimals")[rng.permutation(later.height)]
    other_value = pl.coalesce((3 * number).cast(pl.String), "value")
    facts = pl.concat([facts, later.with_columns(said).with_columns(value=other_value)])
    made = {}
    for name in ("messages", "checks"):
        first, last = split(getattr(tables, name))
        made[name] = pl.concat([first, last.filter(pl.Series(rng.random(last.height) > 0.5, dtype=pl.Boolean))])  # noqa: PLR2004  # half of what was found
    return replace(tables, filings=filings, facts=facts, **made)


def sample(tables: Tables, rows: int, key: Sampled, rng: np.random.Generator) -> Tables:
    """Whole histories of keys drawn at random, until there are so many rows: a small world that is complete in itself.

    Args:
        tables: the whole world.
        rows: drawn at least, if there are as many.
        key: whose histories stay whole.
        rng: draws the keys.
    """
    return with_rows(tables, drawn_rows(tables.transactions.lazy(), rows, key, rng))


def drawn_rows(transactions: pl.LazyFrame, rows: int, key: Sampled, rng: np.random.Generator) -> pl.DataFrame:
    """Whole histories of keys drawn at random, read alone; see `sample`."""
    sizes = transactions.group_by(key).len().drop_nulls().sort(key).collect(engine="streaming")
    if sizes["len"].sum() <= rows:
        return transactions.collect()
    drawn = sizes[rng.permutation(sizes.height)]
    enough = drawn.filter(drawn["len"].cum_sum().shift(1, fill_value=0) < rows).select(key)
    picked = transactions.join(enough.lazy(), on=key, how="semi").collect(engine="streaming")
    return picked.sort("booked_at", "transaction_id")


def with_rows(tables: Tables, picked: pl.DataFrame) -> Tables:
    """A world with other transactions, and the labels and accounts that belong to them."""
    ids, names = picked.select("transaction_id"), picked.select("account_id").unique()
    return replace(
        tables,
        transactions=picked,
        labels=tables.labels.join(ids, on="transaction_id", how="semi", maintain_order="left"),
        accounts=tables.accounts.join(names, on="account_id", how="semi", maintain_order="left"),
    )


def sample_filings(tables: Tables, facts: int, rng: np.random.Generator) -> Tables:
    """All filings of entities drawn at random, until there are so many facts; all transactions stay."""
    if tables.facts.height <= facts:
        return tables
    of = tables.facts.join(tables.filings.select("filing_id", "entity_id"), on="filing_id", how="inner")
    sizes = of["entity_id"].value_counts().sort("entity_id")
    drawn = sizes[rng.permutation(sizes.height)]
    enough = drawn.filter(drawn["count"].cum_sum().shift(1, fill_value=0) < facts).select("entity_id")
    filings = tables.filings.join(enough, on="entity_id", how="semi", maintain_order="left")
    ids = filings.select("filing_id")
    others = {
        name: getattr(tables, name).join(ids, on="filing_id", how="semi", maintain_order="left")
        for name in ("facts", "messages", "checks")
    }
    return replace(tables, filings=filings, **others)


def bench(tables: Tables, rng: np.random.Generator, most_rows: int = BENCH_ROWS) -> Tables:
    """A slice on which every kind of leak has something to leak: late records, ties, labels, rates, gaps of its own."""
    rows = tables.transactions.tail(most_rows) if tables.transactions.height else _made_up(rng)
    n = rows.height
    late = np.where(rng.random(n) < 0.3, rng.integers(0, 48 * 3600, n), 0)  # noqa: PLR2004  # as many as make a leak
    hourly_rate = 1 + 0.1 * np.sin(rows["booked_at"].dt.epoch("s").to_numpy() // 3600)
    balance = np.round(rng.normal(500, 800, n), 2)
    rows = rows.with_columns(
        booked_at=pl.col("booked_at").dt.truncate("10m"),
        known_at=pl.col("booked_at") + pl.Series(late * 1_000_000).cast(pl.Duration("us")),
        amount_base=pl.col("amount") * pl.Series(hourly_rate),
        # Data of cards know one direction only, and a leak about both would have nothing to leak.
        direction=pl.Series(np.where(rng.random(n) < 0.5, "in", "out")),  # noqa: PLR2004  # as many in as out
        balance_after=pl.Series(np.where(rng.random(n) < 0.3, np.nan, balance), nan_to_null=True),  # noqa: PLR2004  # gaps to fill
    ).sort("booked_at", "transaction_id")
    days = pl.Series(rng.integers(1, 5 * 24, n)).cast(pl.Int64) * 3_600_000_000
    labels = rows.select(
        "transaction_id", is_anomaly=pl.lit(value=True), typology=pl.lit(None, pl.String),
        confirmed_at=pl.col("known_at") + days.cast(pl.Duration("us")),
    ).filter(pl.Series(rng.random(n) < 0.1))  # noqa: PLR2004  # enough that every cut has some  # fmt: skip
    return Tables(rows, labels, tables.accounts)


def _made_up(rng: np.random.Generator) -> pl.DataFrame:
    """Rows for a run without transactions, so that the comparison itself is still put to the test."""
    n = 2_000
    start = datetime(2025, 1, 1, tzinfo=UTC)
    times = pl.Series(
        [start + timedelta(minutes=int(m)) for m in np.sort(rng.integers(0, 30 * 1440, n))],
        dtype=pl.Datetime("us", "UTC"),
    )
    amount = pl.Series(np.round(rng.lognormal(3, 1, n), 2) + 0.01)
    return pl.DataFrame(
        {
            "transaction_id": [f"t{i:05d}" for i in range(n)],
            "booked_at": times,
            "known_at": times,
            "account_id": [f"a{i}" for i in rng.integers(0, 40, n)],
            "counterparty_id": [f"c{i}" for i in rng.integers(0, 40, n)],
            "entity_id": ["e"] * n,
            "direction": np.where(rng.random(n) < 0.5, "in", "out"),  # noqa: PLR2004  # as many in as out
            "amount": amount,
            "currency": ["EUR"] * n,
            "amount_base": amount,
            "channel": ["card"] * n,
            "country": ["DE"] * n,
            "latitude": [48.0] * n,
            "longitude": [11.0] * n,
            "balance_after": [0.0] * n,
            "source_file": ["made up"] * n,
            "source_record": range(n),
        },
    )
