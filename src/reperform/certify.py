"""Prove that no KPI looks ahead: change all that comes after a moment, compute again, compare what was before by bits.

A proof that finds nothing proves little, so the same comparison is also run on features that look ahead on purpose, and
must catch each of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize
from reperform.featurize.ledger import Ledger
from reperform.params import FeaturizeParams, SplitParams

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
KEYS = featurize.IDENTITY


@dataclass(frozen=True)
class Tables:
    """What features are made of."""

    transactions: pl.DataFrame
    labels: pl.DataFrame
    accounts: pl.DataFrame


@dataclass(frozen=True)
class Cut:
    """One comparison.

    Args:
        at: everything that happened, arrived or was confirmed later was changed.
        rows_changed: transactions that were changed, dropped or added.
        cells: values that were compared.
        differing: of them, those that are not bit-identical.
        columns: names of columns that differ.
    """

    at: datetime
    rows_changed: int
    cells: int
    differing: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """The outcome: comparisons of the real features, and which planted leaks were caught."""

    cuts: tuple[Cut, ...]
    leaks: dict[str, bool]

    @property
    def cells(self) -> int:
        """Values that were compared."""
        return sum(cut.cells for cut in self.cuts)

    @property
    def differing(self) -> int:
        """Values that changed although nothing before them did."""
        return sum(cut.differing for cut in self.cuts)

    @property
    def holds(self) -> bool:
        """Whether nothing differs, something was compared, and every planted leak was caught."""
        return self.differing == 0 and self.cells > 0 and all(self.leaks.values())

    def __str__(self) -> str:
        return (
            f"cells compared: {self.cells}, differing: {self.differing}; "
            f"planted leaks: {len(self.leaks)}, caught: {sum(self.leaks.values())}"
        )


Make = Callable[[Tables], pl.DataFrame]


def certify(
    transactions: pl.DataFrame,
    labels: pl.DataFrame,
    accounts: pl.DataFrame,
    stage: FeaturizeParams,
    split: SplitParams,
    *,
    cuts: int = 3,
    seed: int = 0,
    say: Callable[[str], None] = lambda _text: None,
) -> Certificate:
    """Compare features before some moments with features of a world in which everything after them is different.

    Args:
        transactions: as `schemas.TRANSACTIONS`, in order.
        labels: as `schemas.LABELS`.
        accounts: as `schemas.ACCOUNTS`.
        stage: KPIs and settings.
        split: the calendar. Parameters are fitted again where the moment lies after `fit_end`, else kept.
        cuts: number of moments.
        seed: of moments and changes.
        say: called with a line per comparison.
    """
    rng = np.random.default_rng(seed)
    whole = Tables(transactions, labels, accounts)
    ledger = _ledger(whole, stage, split)
    learned = featurize.fit(ledger, stage, split.fit_end)
    original = featurize.compute(ledger, stage, learned)
    done = []
    for moment in moments(transactions, cuts, split.fit_end, rng):
        keep = None if moment >= split.fit_end else learned
        made = _compare(whole, original, moment, partial(_features, stage=stage, split=split, learned=keep), rng)
        done.append(made)
        say(f"{moment:%Y-%m-%d %H:%M}: {made.rows_changed} rows changed, {made.cells} cells, {made.differing} differ")
    leaks = {name: _caught(make, bench(whole, rng), rng) for name, make in LEAKS.items()}
    for name, caught in leaks.items():
        say(f"planted leak {name}: {'caught' if caught else 'MISSED'}")
    return Certificate(tuple(done), leaks)


def _ledger(tables: Tables, stage: FeaturizeParams, split: SplitParams) -> Ledger:
    return featurize.ledger_of(tables.transactions, tables.accounts, tables.labels, stage, split)


def _features(
    tables: Tables, stage: FeaturizeParams, split: SplitParams, learned: dict[str, Any] | None
) -> pl.DataFrame:
    ledger = _ledger(tables, stage, split)
    return featurize.compute(ledger, stage, learned or featurize.fit(ledger, stage, split.fit_end))


def moments(transactions: pl.DataFrame, n: int, fit_end: datetime, rng: np.random.Generator) -> list[datetime]:
    """Moments of transactions to cut at, in turn after and before `fit_end`; some where several happened at once."""
    times = transactions["booked_at"].sort()
    if times.is_empty():
        return []
    shared = times.filter(times.is_duplicated())
    late, early = (t.unique().sort() for t in (times.filter(times >= fit_end), times.filter(times < fit_end)))
    picked = []
    for number in range(n):
        pool = (late, early)[number % 2]
        pool = pool if len(pool) else times
        tied = pool.filter(pool.is_in(shared.implode()))
        pool = tied if len(tied) and number % 4 < 2 else pool  # noqa: PLR2004  # two of four cut through a tie
        picked.append(pool[int(rng.integers(len(pool) // 4, len(pool)))])
    return picked


def _compare(tables: Tables, original: pl.DataFrame, at: datetime, make: Make, rng: np.random.Generator) -> Cut:
    kept = kept_rows(tables.transactions, at)
    changed = changed_after(tables, kept, at, rng)
    ids = tables.transactions.filter(kept).select("transaction_id")
    before = ids.join(original, on="transaction_id", how="left", maintain_order="left")
    after = ids.join(make(changed), on="transaction_id", how="left", maintain_order="left")
    names = [name for name in original.columns if name not in KEYS]
    differing = {name: different(before[name], after[name]) for name in names}
    return Cut(
        at=at,
        rows_changed=int((~kept).sum()),
        cells=len(names) * ids.height,
        differing=sum(differing.values()),
        columns=tuple(name for name, n in differing.items() if n),
    )


def different(left: pl.Series, right: pl.Series) -> int:
    """Values that are not the same bits; null equals null alone."""
    a, b = (s.cast(pl.Float64).fill_null(np.nan).to_numpy().view(np.uint64) for s in (left, right))
    return int(((a != b) | (left.is_null() != right.is_null()).to_numpy()).sum())


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
    delay, wait = (pl.Series(rng.integers(0, most, n)).cast(pl.Duration("us")) for most in (3 * 86_400_000_000,) * 2)
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
    return Tables(rows, _labels_changed(tables, rows, at, rng), tables.accounts)


def _labels_changed(tables: Tables, rows: pl.DataFrame, at: datetime, rng: np.random.Generator) -> pl.DataFrame:
    """Labels as confirmed by a moment; afterwards others are confirmed, of rows before and after it."""
    known = tables.labels.filter(pl.col("confirmed_at") <= at)
    free = rows.filter(~pl.col("transaction_id").is_in(known["transaction_id"].implode())).select(
        "transaction_id", "booked_at", "known_at"
    )
    picked = free.filter(pl.Series(rng.random(free.height) < 0.05))  # noqa: PLR2004  # many more than there are
    later = pl.Series(rng.integers(1, 30 * 86_400_000_000, picked.height)).cast(pl.Duration("us"))
    others = picked.select(
        "transaction_id",
        is_anomaly=pl.Series(rng.random(picked.height) < 0.7),  # noqa: PLR2004  # some are cleared
        typology=pl.lit(None, pl.String),
        confirmed_at=pl.max_horizontal("booked_at", "known_at", pl.lit(at)) + later,
    )
    return pl.concat([known, others.cast(known.schema)]).sort("transaction_id")


def bench(tables: Tables, rng: np.random.Generator) -> Tables:
    """A slice on which every kind of leak has something to leak: with late records, ties and labels of its own."""
    rows = tables.transactions.tail(BENCH_ROWS) if tables.transactions.height else _made_up(rng)
    n = rows.height
    late = np.where(rng.random(n) < 0.3, rng.integers(0, 48 * 3600, n), 0)  # noqa: PLR2004  # as many as make a leak
    rows = rows.with_columns(
        booked_at=pl.col("booked_at").dt.truncate("10m"),
        known_at=pl.col("booked_at") + pl.Series(late * 1_000_000).cast(pl.Duration("us")),
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


def _caught(make: Make, tables: Tables, rng: np.random.Generator) -> bool:
    """Whether the comparison finds a difference in features that look ahead, at one of several moments."""
    original = make(tables)
    times = tables.transactions["booked_at"].unique().sort()
    picked = (times[int(len(times) * share)] for share in (0.5, 0.7, 0.9))
    return any(_compare(tables, original, at, make, rng).differing for at in picked)


# Planted leaks. Each is a fault that has been made in earnest; the honest line is the one that it is not.


def _one_column(rows: pl.DataFrame, values: pl.Expr) -> pl.DataFrame:
    return rows.select(*KEYS, leak=values.cast(pl.Float64))


def _count(rows: pl.DataFrame, period: str, offset: str, closed: Any) -> pl.Series:
    counted = rows.with_row_index("at").sort("account_id", "booked_at", "at")
    window = counted.rolling("booked_at", period=period, offset=offset, closed=closed, group_by="account_id").agg(
        n=pl.len()
    )
    return counted.select("at").with_columns(window["n"]).sort("at")["n"]


def window_closed_on_the_wrong_side(tables: Tables) -> pl.DataFrame:
    """Counts the day after the row instead of the day before it."""
    n = _count(tables.transactions, "24h", "0h", "right")
    return _one_column(tables.transactions.with_columns(n=n), pl.col("n"))


def centred_window(tables: Tables) -> pl.DataFrame:
    """Counts half a day to either side, as `rolling(center=True)` does."""
    n = _count(tables.transactions, "24h", "-12h", "both")
    return _one_column(tables.transactions.with_columns(n=n), pl.col("n"))


def row_of_the_same_time(tables: Tables) -> pl.DataFrame:
    """Sums rows up to and including the moment: of rows at one moment each sees the others."""
    rows = tables.transactions.with_row_index("at").sort("account_id", "booked_at", "at")
    total = rows.rolling("booked_at", period="24h", closed="both", group_by="account_id").agg(
        s=pl.col("amount_base").sum()
    )
    return _one_column(rows.with_columns(total["s"]).sort("at"), pl.col("s"))


def late_record_used_early(tables: Tables) -> pl.DataFrame:
    """Takes every record as known when it happened."""
    return _velocity(Tables(tables.transactions.with_columns(known_at="booked_at"), tables.labels, tables.accounts))


def label_before_confirmation(tables: Tables) -> pl.DataFrame:
    """Takes labels as known with the transaction."""
    moments_ = tables.transactions.select("transaction_id", "known_at")
    early = tables.labels.join(moments_, on="transaction_id", how="inner", maintain_order="left")
    labels = early.with_columns(confirmed_at="known_at").drop("known_at")
    return _risk(Tables(tables.transactions, labels, tables.accounts))


def resolved_by_what_came_later(tables: Tables) -> pl.DataFrame:
    """Leaves out of the mature rows those that turn out to be anomalies only later."""
    later = tables.transactions["transaction_id"].is_in(tables.labels.filter("is_anomaly")["transaction_id"].implode())
    rows = tables.transactions.with_columns(normal=~later).sort("account_id", "booked_at", "transaction_id")
    clean = rows.with_columns(n=pl.col("normal").cast(pl.Int64).cum_sum().shift(1).over("account_id"))
    return _one_column(clean, pl.col("n"))


def global_scaler(tables: Tables) -> pl.DataFrame:
    """Standardises amounts with the mean and deviation of the whole table."""
    x = pl.col("amount_base")
    return _one_column(tables.transactions, (x - x.mean()) / x.std())


def future_counterparty(tables: Tables) -> pl.DataFrame:
    """Counts all accounts that the counterparty ever deals with."""
    rows = tables.transactions.sort("counterparty_id", "booked_at", "transaction_id")
    return _one_column(rows, pl.col("account_id").n_unique().over("counterparty_id"))


def time_until_the_next(tables: Tables) -> pl.DataFrame:
    """Measures the gap after the row instead of the gap before it."""
    rows = tables.transactions.sort("account_id", "booked_at", "transaction_id")
    gap = (pl.col("booked_at").shift(-1).over("account_id") - pl.col("booked_at")).dt.total_seconds()
    return _one_column(rows, gap)


def _small(name: str) -> FeaturizeParams:
    return FeaturizeParams(kpis=[name], settings={})


def _calendar(tables: Tables) -> SplitParams:
    """A calendar whose training window ends before the slice, so that nothing is learned from it."""
    first = tables.transactions["booked_at"].min()
    day = first.date() - timedelta(days=2) if isinstance(first, datetime) else datetime(2025, 1, 1, tzinfo=UTC).date()
    return SplitParams(
        train_days=2, train_until=day, label_delay_days=0, label_maturity_days=2, validation_days=1,
        test_from=day + timedelta(days=1), test_days=1, drop_known_compromised=False,
    )  # fmt: skip


def _velocity(tables: Tables) -> pl.DataFrame:
    return _features(tables, _small("velocity"), _calendar(tables), None)


def _risk(tables: Tables) -> pl.DataFrame:
    return _features(tables, _small("account_risk"), _calendar(tables), {"account_risk": {"rate": 0.01}})


HONEST: dict[str, Make] = {"velocity": _velocity, "account_risk": _risk}
LEAKS: dict[str, Make] = {
    make.__name__: make
    for make in (
        window_closed_on_the_wrong_side,
        centred_window,
        row_of_the_same_time,
        late_record_used_early,
        label_before_confirmation,
        resolved_by_what_came_later,
        global_scaler,
        future_counterparty,
        time_until_the_next,
    )
}


def _lines(certificate: Certificate) -> Iterator[str]:
    for cut in certificate.cuts:
        if cut.differing:
            yield f"at {cut.at:%Y-%m-%d %H:%M:%S} these columns look ahead: {', '.join(cut.columns)}"
    yield str(certificate)


def main(cuts: int, seed: int = 0) -> int:
    """Certify the project's own validated tables; 1 if anything looks ahead or a planted leak is missed."""
    from reperform import params, tables  # noqa: PLC0415  # only the command reads files

    frames = {name: tables.read_table("validate", name) for name in ("transactions", "labels", "accounts")}
    stage, split = params.load(FeaturizeParams), params.load(SplitParams)
    certificate = certify(**frames, stage=stage, split=split, cuts=cuts, seed=seed, say=print)
    for line in _lines(certificate):
        print(line)
    empty = frames["transactions"].is_empty() and all(certificate.leaks.values())
    return 0 if certificate.holds or empty else 1
