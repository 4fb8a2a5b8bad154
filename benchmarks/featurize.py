"""What features cost, as ratios to what others need for the same or less, in one run on one machine.

    python benchmarks/featurize.py windows [rows]    counts and sums over four windows: pandas, DuckDB, Polars
    python benchmarks/featurize.py scale ROWS ...    every KPI against Polars: read, sort by account and time, write
    python benchmarks/featurize.py network [rows]    network indicators against the other KPIs
    python benchmarks/featurize.py hub               a counterparty with 1,000, 10,000 and 100,000 accounts
    python benchmarks/featurize.py incremental [past] a row of an account with 1,000 past ones; batches
    python benchmarks/featurize.py hundred [folder]  100 million rows, bucketed; takes an hour or two and 250 GB of disk

Peers give the same numbers, and that is checked before anything is timed. Memory is the peak of a process of its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize, params, schemas
from reperform.featurize import buckets, engine, incremental
from reperform.featurize.windows import History, length_us
from reperform.params import EngineParams, FeaturizeParams, SplitParams

WINDOWS = ("1h", "24h", "7d", "30d")
ROOT = Path(__file__).parents[1]
START = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 183
ROWS_PER_ACCOUNT, ROWS_PER_COUNTERPARTY = 260, 130  # as in the Fraud Detection Handbook
CHUNK = 5_000_000  # rows that are made at once


# Tables


def make(rows: int, folder: Path, *, hub: int = 0, seed: int = 0) -> Path:
    """A table as `validate` writes it, every column filled, with late records, two directions and labels.

    Args:
        rows: their number; accounts and counterparties grow with it.
        folder: for the three tables.
        hub: so many rows deal with counterparty `hub`, each of another account.
        seed: of the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    n_accounts, n_parties = max(rows // ROWS_PER_ACCOUNT, 10), max(rows // ROWS_PER_COUNTERPARTY, 10)
    n_accounts = 100_000 if hub else n_accounts
    parts, done = [], 0
    while done < rows:
        n, share = min(CHUNK, rows - done), (done / rows, min(CHUNK, rows - done) / rows)
        parts.append(folder / f"part-{len(parts):03d}.parquet")
        _rows(rng, n, first=done, share=share, n_accounts=n_accounts, n_parties=n_parties).write_parquet(parts[-1])
        done += n
    table = pl.scan_parquet(parts)
    if hub:
        number, every = pl.int_range(pl.len()), rows // hub
        is_hub = number % every == 0
        account = "A" + (number // every % n_accounts).cast(pl.String).str.zfill(8)
        table = table.with_columns(
            counterparty_id=pl.when(is_hub).then(pl.lit("hub")).otherwise("counterparty_id"),
            account_id=pl.when(is_hub).then(account).otherwise("account_id"),
        )
    table.sink_parquet(folder / "transactions.parquet", row_group_size=250_000, maintain_order=True)
    for part in parts:
        part.unlink()
    picked = np.sort(rng.choice(rows, rows // 200, replace=False))
    days = rng.integers(1, 15, len(picked))
    labels = pl.DataFrame(
        {
            "transaction_id": [f"t{k:010d}" for k in picked],
            "is_anomaly": rng.random(len(picked)) < 0.6,
            "typology": None,
            "confirmed_at": [
                START + timedelta(days=float(k / rows * DAYS + d)) for k, d in zip(picked, days, strict=True)
            ],
        },
        schema=schemas.polars_schema(schemas.LABELS),
    )
    labels.write_parquet(folder / "labels.parquet")
    _accounts(n_accounts).write_parquet(folder / "accounts.parquet")
    return folder


def _accounts(n: int) -> pl.DataFrame:
    zones, segments = ["Europe/Berlin", "Europe/London", "America/New_York"], ["retail", "business", "student"]
    return pl.DataFrame(
        {
            "account_id": [f"A{k:08d}" for k in range(n)],
            "entity_id": "bank",
            "opened_at": [START - timedelta(days=k % 400) for k in range(n)],
            "timezone": [zones[k % 3] for k in range(n)],
            "segment": [segments[k % 3] for k in range(n)],
            "home_country": "DE",
        },
        schema=schemas.polars_schema(schemas.ACCOUNTS),
    )


def _rows(
    rng: np.random.Generator, n: int, *, first: int, share: tuple[float, float], n_accounts: int, n_parties: int
) -> pl.DataFrame:
    second = np.sort((share[0] + share[1] * rng.random(n)) * DAYS * 86_400).astype(np.int64)
    late = np.where(rng.random(n) < 0.05, rng.integers(0, 2 * 86_400, n), 0)
    account = rng.integers(0, n_accounts, n)
    # Most payments go to one of 50 counterparties of the account, as customers of the Handbook have terminals nearby.
    near = (account * 13 + np.minimum(rng.geometric(0.05, n), 50)) % n_parties
    party = np.where(rng.random(n) < 0.9, near, rng.integers(0, n_parties, n))
    cents = np.maximum(np.rint(rng.lognormal(8, 1.2, n)), 1)
    base = pl.DataFrame(
        {
            "second": second,
            "late": late,
            "account": account,
            "party": party,
            "amount": cents / 100,
        }
    ).with_row_index("number", first)
    at = pl.lit(START).cast(schemas.UTC_US)
    channels, countries = pl.Series(["card", "instant", "cash"]), pl.Series(["DE", "DE", "DE", "FR", "US"])
    return base.select(
        transaction_id="t" + pl.col("number").cast(pl.String).str.zfill(10),
        booked_at=at + pl.duration(seconds="second"),
        known_at=at + pl.duration(seconds=pl.col("second") + pl.col("late")),
        account_id="A" + pl.col("account").cast(pl.String).str.zfill(8),
        counterparty_id="P" + pl.col("party").cast(pl.String).str.zfill(8),
        entity_id=pl.lit("bank"),
        direction=pl.when(pl.Series(rng.random(n) < 0.3)).then(pl.lit("in")).otherwise(pl.lit("out")),
        amount="amount",
        currency=pl.lit("EUR"),
        amount_base="amount",
        channel=channels.gather(rng.integers(0, 3, n)),
        country=countries.gather(rng.integers(0, 5, n)),
        latitude=pl.Series(np.round(rng.normal(50, 1, n), 4)),
        longitude=pl.Series(np.round(rng.normal(9, 1, n), 4)),
        balance_after=pl.Series(np.round(rng.normal(3000, 1500, n), 2)),
        source_file=pl.lit("made"),
        source_record=pl.col("number").cast(pl.Int64),
    )


def calendar() -> SplitParams:
    return SplitParams(
        train_days=90, train_until=(START + timedelta(days=120)).date(), label_delay_days=7, label_maturity_days=7,
        validation_days=7, test_from=(START + timedelta(days=128)).date(), test_days=30, drop_known_compromised=False,
    )  # fmt: skip


def stage() -> FeaturizeParams:
    return params.load(FeaturizeParams, ROOT / "params.yaml")


def tables(folder: Path) -> tuple[pl.LazyFrame, pl.DataFrame, pl.DataFrame]:
    return (
        pl.scan_parquet(folder / "transactions.parquet"),
        pl.read_parquet(folder / "accounts.parquet"),
        pl.read_parquet(folder / "labels.parquet"),
    )


# Measuring


def timed(call: Callable[[], object], times: int = 3) -> float:
    """Best of some, so that a neighbour's load counts least."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def alone(*arguments: object) -> dict[str, float]:
    """Run a part of this file in a process of its own: seconds, processor seconds and peak memory."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def say(start: tuple[float, float], **more: float) -> None:
    seconds, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "processor": processor, "peak_gib": peak, **more}))


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def sort_with_polars(folder: Path) -> None:
    """The yardstick: read, sort by account and time, write."""
    start = clocks()
    table = pl.read_parquet(folder / "transactions.parquet")
    table.sort("account_id", "booked_at").write_parquet(folder / "sorted.parquet", compression="zstd")
    say(start)
    (folder / "sorted.parquet").unlink()


def every_kpi(folder: Path, name: str, kpis: list[str]) -> None:
    """Read, learn, compute, write; compiled functions are loaded before the clock starts."""
    rows, accounts, labels = tables(folder)
    chosen = FeaturizeParams(kpis=kpis, settings=stage().settings)
    few = rows.head(3000).collect()
    featurize.featurize(few, accounts.head(50), labels, chosen, calendar())
    start = clocks()
    if name == "local":
        how = EngineParams()
        made = featurize.featurize(rows.collect(), accounts, labels, chosen, calendar(), how=how)
        made.table.write_parquet(folder / "features.parquet", compression="zstd")
    else:
        how = EngineParams(name="bucketed" if name == "bucketed" else "spark")
        featurize.featurize_files(
            rows, accounts, labels, chosen, calendar(), how=how, target=folder, scratch=folder / "scratch"
        )
    say(start, columns=len(pl.read_parquet_schema(folder / "features.parquet")) - len(featurize.IDENTITY))
    (folder / "features.parquet").unlink()


# Comparisons


def window_table(rows: int) -> pl.DataFrame:
    """Rows in order of time, one moment per row of an account, so that ties do not divide the peers."""
    rng = np.random.default_rng(0)
    accounts = max(rows // ROWS_PER_ACCOUNT, 10)
    seconds = np.sort(rng.choice(DAYS * 86_400, rows, replace=rows > DAYS * 86_400 // 2))
    frame = pl.DataFrame(
        {"account": rng.integers(0, accounts, rows), "us": seconds * 1_000_000, "cents": rng.integers(1, 100_000, rows)}
    )
    frame = frame.unique(["account", "us"], maintain_order=True)
    return frame.with_columns(at=pl.col("us").cast(pl.Datetime("us"))).with_row_index("row")


def ours(frame: pl.DataFrame, delay_us: int = 0) -> dict[str, np.ndarray]:
    """As the engine does it: buckets of whole accounts, in two threads."""
    us, cents, account = (frame[name].to_numpy() for name in ("us", "cents", "account"))
    out = {w: np.empty((len(us), 2), np.int64) for w in WINDOWS}

    def work(rows: np.ndarray) -> None:
        own = account[rows]
        codes = np.cumsum(np.diff(own, prepend=own[:1]) != 0)
        history = History.of(codes, int(codes[-1]) + 1, us[rows], us[rows] + delay_us)
        ones, amounts = np.ones(len(rows), np.int64), cents[rows]
        for w in WINDOWS:
            n, total = history.window_sums(length_us(w), ones, amounts)
            out[w][rows, 0], out[w][rows, 1] = n, total

    buckets.each(work, buckets.cut(account, EngineParams().bucket_rows), EngineParams().threads)
    return out


def polars_rolling(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    ordered = frame.sort("account", "at")
    out = {}
    for window in WINDOWS:
        rolled = ordered.rolling("at", period=window, group_by="account", closed="left").agg(
            n=pl.len(), cents=pl.col("cents").sum()
        )
        both = ordered.select("row").with_columns(rolled.select("n", "cents")).sort("row")
        out[window] = both.select("n", "cents").to_numpy()
    return out


def pandas_rolling(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """As it is usually written: a rolling window per account, then back into the table's order."""
    table = frame.select("row", "account", "at", "cents").to_pandas()
    out = {}
    for window in WINDOWS:
        groups = table.set_index("at").groupby("account")["cents"]
        rolled = groups.rolling(window, closed="left")
        by_account = table.sort_values(["account", "at"], kind="stable")["row"].to_numpy()
        n, cents = np.empty(len(table)), np.empty(len(table))
        n[by_account], cents[by_account] = rolled.count().fillna(0).to_numpy(), rolled.sum().fillna(0).to_numpy()
        out[window] = np.rint(np.stack([n, cents], axis=1)).astype(np.int64)
    return out


def duckdb_range(frame: pl.DataFrame) -> dict[str, np.ndarray]:
    import duckdb  # noqa: PLC0415  # a peer of this comparison alone

    con = duckdb.connect(config={"threads": 2})
    con.register("t", frame.select("row", "account", "us", "cents").to_arrow())
    out = {}
    for window in WINDOWS:
        over = f"(partition by account order by us range between {length_us(window)} preceding and 1 preceding)"
        got = con.sql(f"select row, count(*) over {over} n, coalesce(sum(cents) over {over}, 0)::bigint c from t").pl()
        out[window] = got.sort("row").select("n", "c").to_numpy()
    return out


def windows(rows: int) -> None:
    frame = window_table(rows)
    expected = ours(frame)
    columns = 2 * len(WINDOWS)
    for peer, times in ((pandas_rolling, 1), (duckdb_range, 3), (polars_rolling, 3)):
        got = peer(frame)
        for window in WINDOWS:
            assert (got[window] == expected[window]).all(), (peer.__name__, window)
        a, b = timed(lambda: ours(frame)), timed(lambda peer=peer: peer(frame), times)
        print(
            f"{peer.__name__}: ratio {b / a:.1f} per column "
            f"(ours {a / columns:.4f} s, peer {b / columns:.4f} s, {columns} columns, {frame.height:,} rows)"
        )
    a, b = timed(lambda: ours(frame, 7 * 3_600_000_000)), timed(lambda: ours(frame))
    print(f"late records: ratio {a / b:.2f} to none")


def every_kpi_per_column(rows: int) -> None:
    """What one column costs on average when all are made, against pandas for one column of the same rows."""
    frame = window_table(rows)
    peer = timed(lambda: pandas_rolling(frame), 1) / (2 * len(WINDOWS))
    with tempfile.TemporaryDirectory() as name:
        got = alone("_ours", make(rows, Path(name)), "local")
    mine = got["seconds"] / got["columns"]
    print(
        f"all {got['columns']:.0f} columns: ratio {peer / mine:.1f} (ours {mine:.4f} s per column, pandas {peer:.4f} s)"
    )


def scale(sizes: list[int]) -> None:
    """Ratios to Polars, peak memory, and growth from the first size to each."""
    first = None
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = make(rows, Path(name))
            peer = min((alone("_polars", folder) for _ in range(2)), key=lambda found: found["seconds"])
            mine = alone("_ours", folder, "bucketed")
        first = first or (rows, mine)
        growth = mine["seconds"] / first[1]["seconds"] / (rows / first[0])
        print(
            f"{rows:,} rows, {mine['columns']:.0f} columns: ratio {mine['seconds'] / peer['seconds']:.1f} "
            f"(ours {mine['seconds']:.1f} s, {mine['processor']:.1f} processor s, peak {mine['peak_gib']:.1f} GiB; "
            f"Polars {peer['seconds']:.1f} s, {peer['processor']:.1f} processor s, peak {peer['peak_gib']:.1f} GiB); "
            f"per row {growth:.2f} of {first[0]:,}",
            flush=True,
        )


def network(rows: int) -> None:
    """Families of KPI 13 and 7's propagation against all others, one after the other on one table."""
    with tempfile.TemporaryDirectory() as name:
        found = alone("_network", make(rows, Path(name)))
    print(f"network: ratio {found['network'] / found['others']:.2f} to the others (network {found['network']:.1f} s, "
          f"others {found['others']:.1f} s, {rows:,} rows)")  # fmt: skip


def network_and_others(folder: Path) -> None:
    rows, accounts, labels = tables(folder)
    table = rows.collect()
    for _ in range(2):  # the first loads compiled functions
        ledger = featurize.ledger_of(table, accounts, labels, stage(), calendar())
        todo = engine.tasks(engine.selected([]), stage(), featurize.fit(ledger, stage(), calendar().fit_end))
        start, spent, made = clocks(), {"network": 0.0, "others": 0.0}, dict[str, Any]()
        for phase in engine.phases(todo):
            for task in phase.tasks:
                before = time.perf_counter()
                made |= engine.run_phase(ledger, engine.Phase(phase.key, (task,)), made, EngineParams())
                is_network = task.kpi.number == 13 or task.kpi.name == "propagated_risk"
                spent["network" if is_network else "others"] += time.perf_counter() - before
    say(start, **spent)


def hub() -> None:
    """Time per row of the KPIs of counterparties and of the graph, where one deals with ever more of 100,000 accounts.

    KPIs by day are left out: their time goes with accounts times days, whoever they deal with.
    """
    kpis = ["counterparty_risk", "thresholds_counterparty", "network", "network_counterparty", "network_graph"]
    for accounts in (1_000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as name:
            found = alone("_ours", make(400_000, Path(name), hub=accounts), "local", *kpis, "network_structure")
        print(f"hub with {accounts:,} accounts: {found['seconds'] / 400_000 * 1e6:.1f} µs per row", flush=True)


def incremental_scores(past: int) -> None:
    """Every KPI of one new row of an account with many past ones: median over rows, all of them on one account."""
    with tempfile.TemporaryDirectory() as name:
        found = alone("_incremental", make(200_000, Path(name)), past)
    print(
        f"one new row of an account with {past:,} past ones: median {found['median_ms']:.1f} ms, fastest "
        f"{found['least_ms']:.1f} ms, processor {found['processor_ms']:.1f} ms; first row of a day at most "
        f"{found['most_ms']:.0f} ms, or {found['prepare_ms']:.0f} ms ahead of it\n"
        f"batches of 1,000 new rows of many accounts: median {found['batch_rows_per_s']:,.0f} rows/s, per second of "
        f"processor {found['batch_rows_per_processor_s']:,.0f}\n"
        f"rows that were scored elsewhere, taken in by 1,000: {found['others_rows_per_s']:,.0f} rows/s\n"
        f"state of {found['rows']:,.0f} rows: {found['state_mib']:.0f} MiB, made in {found['state_s']:.1f} s"
    )


def score_rows(folder: Path, past: int) -> None:
    rows, accounts, labels = tables(folder)
    table, new = rows.collect(), 300
    one = pl.int_range(pl.len()) % (table.height // (past + new)) == 0
    table = table.with_columns(account_id=pl.when(one).then(pl.lit("A00000000")).otherwise("account_id"))
    mine = table.filter(account_id="A00000000")
    coming = mine.tail(mine.height - past).head(new)
    ledger = featurize.ledger_of(table, accounts, labels, stage(), calendar())
    fitted = featurize.fit(ledger, stage(), calendar().fit_end)
    held = table.filter(~pl.col("transaction_id").is_in(coming["transaction_id"].implode()))
    before = held.filter(pl.col("booked_at") < coming["booked_at"].min())
    began = time.perf_counter()
    state = incremental.state_of(before, accounts, labels, stage(), calendar(), fitted=fitted)
    state_s = time.perf_counter() - began
    taken, processor, latest = list[float](), list[float](), before["booked_at"].max()
    start = clocks()
    for number in range(coming.height):
        row = coming.slice(number, 1)
        between = held.filter(pl.col("booked_at").is_between(latest, row["booked_at"].item(), closed="right"))
        state.add(between)
        latest = row["booked_at"].item()
        clock = clocks()
        incremental.features_of(state, row)
        taken.append(time.perf_counter() - clock[0])
        processor.append(time.process_time() - clock[1])
    state_mib, rows_held = state.bytes / 2**20, len(state)
    began = time.perf_counter()
    state.prepare(latest + timedelta(days=1))
    prepare_ms = 1e3 * (time.perf_counter() - began)
    rest = held.filter(pl.col("booked_at") > latest).head(8_000)
    other = incremental.state_of(
        table.filter(pl.col("booked_at") <= latest), accounts, labels, stage(), calendar(), fitted=fitted
    )
    batches, processors, others = list[float](), list[float](), list[float]()
    for number in range(0, rest.height - 999, 1000):
        rows_of, clock = rest.slice(number, 1000), clocks()
        scored = incremental.features_of(state, rows_of)
        batches.append(1000 / (time.perf_counter() - clock[0]))
        processors.append(1000 / (time.process_time() - clock[1]))
        began = time.perf_counter()
        other.add(rows_of, features=scored)
        others.append(1000 / (time.perf_counter() - began))
    say(start, median_ms=1e3 * float(np.median(taken[20:])), least_ms=1e3 * min(taken), most_ms=1e3 * max(taken[20:]),
        processor_ms=1e3 * float(np.median(processor[20:])), state_mib=state_mib, rows=rows_held, state_s=state_s,
        prepare_ms=prepare_ms, batch_rows_per_s=float(np.median(batches)),
        batch_rows_per_processor_s=float(np.median(processors)),
        others_rows_per_s=float(np.median(others)))  # fmt: skip


def hundred(folder: Path) -> None:
    """100 million rows; the table stays in the folder, so that a second run need not make it again."""
    if not (folder / "accounts.parquet").exists():
        make(100_000_000, folder)
    found = alone("_ours", folder, "bucketed")
    print(f"100 million rows: {found['seconds'] / 60:.0f} minutes, peak {found['peak_gib']:.1f} GiB")


def main(arguments: list[str]) -> None:  # noqa: C901  # a case for each word
    what, rest = arguments[0], arguments[1:]
    match what:
        case "windows":
            windows(int(rest[0]) if rest else 1_000_000)
        case "columns":
            every_kpi_per_column(int(rest[0]) if rest else 1_000_000)
        case "scale":
            scale([int(rows) for rows in rest])
        case "network":
            network(int(rest[0]) if rest else 1_000_000)
        case "hub":
            hub()
        case "hundred":
            hundred(Path(rest[0]) if rest else ROOT / ".cache" / "hundred")
        case "incremental":
            incremental_scores(int(rest[0]) if rest else 1000)
        case "_incremental":
            score_rows(Path(rest[0]), int(rest[1]))
        case "_polars":
            sort_with_polars(Path(rest[0]))
        case "_ours":
            every_kpi(Path(rest[0]), rest[1], rest[2:])
        case "_network":
            network_and_others(Path(rest[0]))
        case _:
            print(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:] or ["help"])
