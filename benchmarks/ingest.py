"""Ingest against what others do with the same files, in one run: ratios, so that the machine cancels out.

`csv` holds the whole stage (reading, checking, refusing, each identifier once, rates, writing) against a bare Polars
scan-and-write of the same file, and against the same cleaning in pandas, whose rows must come out the same. `camt` and
`xbrl` are the sections of `ingest_camt.py` and `ingest_xbrl.py`.

    python benchmarks/ingest.py csv [rows, 1,000,000 by default]
    python benchmarks/ingest.py           # all three sections
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

from reperform import ingest, iso_codes, params

BARE_LIMIT, PANDAS_LIMIT = 2.5, 10.0
REPEATS = 5
ROWS_PER_WRITE = 1_000_000
SOURCE = {
    "kind": "table",
    "target": "transactions",
    "files": "bank.csv",
    "columns": {
        "transaction_id": "id",
        "booked_at": "booked_at",
        "known_at": "received_at",
        "account_id": "account",
        "counterparty_id": "counterparty",
        "entity_id": {"constant": "bank"},
        "currency": "currency",
        "channel": "channel",
        "country": "country",
        "latitude": "latitude",
        "longitude": "longitude",
        "balance_after": "balance",
    },
    "amounts": {
        "column": "amount",
        "direction_column": "direction",
        "in_values": ["in"],
        "out_values": ["out"],
    },
}


def rows(first: int, n: int) -> pl.DataFrame:
    """Card and account payments of a bank with 50,000 accounts, as texts."""
    rng = np.random.default_rng(first)
    moment = pl.Series(np.sort(rng.integers(0, 300 * 86_400, n)) + 1_735_689_600)

    def iso(seconds: pl.Series) -> pl.Series:
        return pl.from_epoch(seconds, "s").dt.to_string("%Y-%m-%dT%H:%M:%SZ")

    def one_of(*texts: str) -> pl.Series:
        return pl.Series(texts).gather(rng.integers(0, len(texts), n))

    channel = one_of("card", "transfer", "cash", "online")
    numbers = {"amount": rng.lognormal(4, 1.2, n) + 0.01, "balance": rng.normal(2_000, 3_000, n)}
    places = {"latitude": rng.uniform(35, 60, n), "longitude": rng.uniform(-5, 25, n)}
    return pl.DataFrame(
        {
            "id": pl.Series(np.arange(first, first + n)).cast(pl.String).str.zfill(12),
            "account": rng.integers(0, 50_000, n),
            "counterparty": rng.integers(0, 200_000, n),
            "direction": one_of("in", "out"),
            **{name: np.round(values, 2) for name, values in numbers.items()},
            "currency": pl.repeat("EUR", n, eager=True),
            "booked_at": iso(moment),
            "received_at": iso(moment + pl.Series(rng.integers(0, 3_600, n))),
            "channel": channel,
            "country": one_of("FR", "DE", "NL", "GB", "US", "IT"),
            **{name: np.round(values, 2) for name, values in places.items()},
        }
    ).with_columns(
        pl.format("AC{}", "account").alias("account"),
        pl.format("CP{}", "counterparty").alias("counterparty"),
        pl.when(pl.lit(channel) == "card").then(pl.col(*places)),
    )


def written(path: Path, n: int, *, bad_every: int | None = None) -> Path:
    """A CSV of `n` rows; every `bad_every`-th line is cut short."""
    with path.open("wb") as stream:
        for first in range(0, n, ROWS_PER_WRITE):
            text = rows(first, min(ROWS_PER_WRITE, n - first)).write_csv(include_header=first == 0)
            lines = text.splitlines(keepends=True)
            for place in range(bad_every or len(lines), len(lines), bad_every or len(lines)):
                lines[place] = lines[place].rsplit(",", 3)[0] + "\n"
            stream.write("".join(lines).encode())
    return path


def bare(raw: Path) -> None:
    pl.scan_csv(raw / "bank.csv", truncate_ragged_lines=True).sink_parquet(raw / "bare.parquet")


def ours(raw: Path) -> dict[str, Any]:
    """The whole stage, without anything from a run before."""
    given = params.build(
        params.IngestParams,
        {"raw": str(raw), "sources": {"bank": SOURCE}, "on_unreadable_file": "stop", "processes": 1},
        where="benchmark",
    )
    shutil.rmtree(raw / ".cache", ignore_errors=True)
    got: dict[str, Any] = ingest.run(given)
    return got


def in_pandas(raw: Path) -> tuple[int, int]:
    """The same cleaning as one would write it in pandas; gives rows kept and records refused."""
    text = (raw / "bank.csv").read_text(encoding="utf-8")
    lines = pd.Series(text.split("\n")[:-1], dtype=object)
    header = lines[0].split(",")
    lines = lines[1:]
    whole = lines.str.count(",") == len(header) - 1
    refused = [pd.DataFrame({"record": lines.index[~whole], "rule": "wrong_number_of_fields", "row": lines[~whole]})]
    frame = pd.read_csv(raw / "bank.csv", dtype=str, keep_default_na=False, on_bad_lines="skip", engine="c")
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    frame = frame[whole.reindex(frame.index, fill_value=False)]
    for name in frame.columns:
        stripped = frame[name].str.strip()
        frame[name] = stripped.mask(stripped == "")
    out = pd.DataFrame(index=frame.index)
    for name, raw_name in (("transaction_id", "id"), ("account_id", "account"), ("counterparty_id", "counterparty")):
        out[name] = frame[raw_name]
    for name, raw_name in (("booked_at", "booked_at"), ("known_at", "received_at")):
        out[name] = pd.to_datetime(frame[raw_name], format="%Y-%m-%dT%H:%M:%SZ", utc=True, errors="coerce")
    for name in ("amount", "latitude", "longitude", "balance"):
        number = pd.to_numeric(frame[name], errors="coerce")
        out[name] = number.where(np.isfinite(number))
    out["direction"] = frame["direction"].map({"in": "in", "out": "out"})
    out["currency"] = frame["currency"].where(frame["currency"].isin(iso_codes.CURRENCIES))
    out["channel"], out["country"], out["entity_id"] = frame["channel"], frame["country"], "bank"
    required = ["transaction_id", "account_id", "booked_at", "known_at", "amount", "direction", "currency"]
    given = {"amount": "amount", "latitude": "latitude", "longitude": "longitude", "balance": "balance"}
    wrong = out[required].isna().any(axis=1)
    for name, raw_name in given.items():
        wrong |= out[name].isna() & frame[raw_name].notna()
    refused.append(pd.DataFrame({"record": out.index[wrong], "rule": "bad", "row": lines.reindex(out.index[wrong])}))
    out = out[~wrong]
    again = out["transaction_id"].duplicated()
    refused.append(pd.DataFrame({"record": out.index[again], "rule": "duplicate_id", "row": lines[out.index[again]]}))
    out = out[~again]
    out["amount_base"] = out["amount"].where(out["currency"] == "EUR")
    out["source_file"], out["source_record"] = "bank.csv", out.index
    out.to_parquet(raw / "pandas.parquet", compression="zstd", index=False)
    told = pd.concat(refused)
    told.to_parquet(raw / "refused.parquet", index=False)
    return len(out), len(told)


Spent = tuple[float, float]  # seconds on the clock, and of all processors


def seconds(work: Callable[[Path], Any], raw: Path) -> tuple[Spent, Any]:
    start, cpu_start = time.perf_counter(), time.process_time()
    got = work(raw)
    return (time.perf_counter() - start, time.process_time() - cpu_start), got


def compared(raw: Path) -> tuple[Spent, Spent, Spent]:
    """Best times of the bare scan, of ours and of pandas, taken in turns; rows must be the same."""
    times: dict[str, list[Spent]] = {"bare": [], "ours": [], "pandas": []}
    for turn in range(REPEATS):
        times["bare"].append(seconds(bare, raw)[0])
        spent, receipt = seconds(ours, raw)
        times["ours"].append(spent)
        if turn == 0:
            spent, (kept, refused) = seconds(in_pandas, raw)
            times["pandas"].append(spent)
            counted = receipt["sources"]["bank"]
            assert (counted["rows_out"], sum(counted["quarantined"].values())) == (kept, refused)
    names = ["transaction_id", "booked_at", "amount", "latitude", "direction", "source_record"]
    left = pl.read_parquet(raw / "data" / "ingest" / "transactions.parquet", columns=names)
    right = pl.read_parquet(raw / "pandas.parquet", columns=names).cast(dict(left.schema))
    assert left.equals(right.select(names))
    return min(times["bare"]), min(times["ours"]), min(times["pandas"])


def csv(n: int = 1_000_000) -> bool:
    """CSV to canonical Parquet: a file without fault, and one in which every 10,000th record is cut short."""
    well = True
    print(f"{n:,} rows; load of the machine {os.getloadavg()[0]:.1f}; best of {REPEATS} by turns")
    print("On a busy machine the processor's time is the fairer ratio: a short run finds a free moment more easily.")
    print("| file | MB | bare scan, s | ours, s | ratio | of processor time | pandas, s | ratio | of processor time |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, bad_every in (("clean", None), ("every 10,000th record cut", 10_000)):
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            raw = Path(folder)
            (raw / "dvc.yaml").write_text("stages: {}\n")
            size = written(raw / "bank.csv", n, bad_every=bad_every).stat().st_size / 1e6
            (alone, alone_cpu), (spent, spent_cpu), (pandas, pandas_cpu) = compared(raw)
        ratios = f"{spent / alone:.2f} | {spent_cpu / alone_cpu:.2f} | {pandas:.1f} | {pandas / spent:.1f}"
        ratios += f" | {pandas_cpu / spent_cpu:.1f}"
        print(f"| {name} | {size:.0f} | {alone:.2f} | {spent:.2f} | {ratios} |")
        well &= bad_every is not None or (spent <= BARE_LIMIT * alone and pandas >= PANDAS_LIMIT * spent)
    print(f"limits for a clean file: {BARE_LIMIT} times the bare scan, a {PANDAS_LIMIT:.0f}th of pandas: {well}")
    return well


def camt() -> bool:
    import ingest_camt  # noqa: PLC0415  # each section brings its own libraries

    ratios = [read / alone for _, alone, read, _ in ingest_camt.camt()]
    print(f"camt.053: {max(ratios):.2f} times a bare loop, limit {ingest_camt.LIMIT}")
    return max(ratios) <= ingest_camt.LIMIT


def xbrl() -> bool:
    import ingest_xbrl  # noqa: PLC0415

    return bool(ingest_xbrl.section())


SECTIONS: dict[str, Callable[..., bool]] = {"csv": csv, "camt": camt, "xbrl": xbrl}


def main() -> None:
    name, *rest = sys.argv[1:] or [""]
    results = [section(*map(int, rest)) for key, section in SECTIONS.items() if name in ("", key)]
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
