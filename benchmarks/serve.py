"""What the scoring service does under load: this process sends, over loopback, to a real server with its PostgreSQL.

    python benchmarks/serve.py latency [project]    single transactions of accounts with 1,000 rows, 20 a second
    python benchmarks/serve.py batches [project]    requests of 1,000 transactions, until they stand in PostgreSQL
    python benchmarks/serve.py replay [project]     the whole test period in order; scores against the pipeline's own
    python benchmarks/serve.py soak [project] --minutes 60    half of the peak for long: memory of every process, errors

A project is a folder with `params.yaml` and `data/` after `dvc repro` (default: here); it is only read. The server runs
in a folder of its own with an empty database and the state of the day on which the test period begins. Each answer is
one JSON line, with the load average beside it. Latency is counted from the moment at which a request was due (open
loop), so that a slow answer is not hidden by requests that waited for it.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import yaml

from reperform.params import SplitParams

PAST_ROWS, ACCOUNTS = 1_000, 10
PER_SECOND = 20.0
BATCH = 1_000
CLIENTS = 4
DETECT = "/api/v1/detect-anomalies"
FIELDS = (
    "transaction_id", "booked_at", "known_at", "account_id", "counterparty_id", "entity_id", "direction", "amount",
    "currency", "amount_base", "channel", "country", "latitude", "longitude", "balance_after",
)  # fmt: skip
REGISTERED = """
import yaml
from reperform import params, tables, tracking
from reperform.evaluate import bundle
bundle.write()
found = tracking.outputs(params.load(params.TrainParams).detectors)
tracking.record(tables.read_json("evaluate", "metrics"), yaml.safe_load(open("params.yaml")), found)
"""
Row = dict[str, Any]


# The server


def scratch_of(project: Path, serve: Mapping[str, Any]) -> Path:
    """A project beside the given one: its data and models, a registry and a database of its own."""
    folder = Path(tempfile.mkdtemp(prefix="reperform-serve-"))
    for name in ("conf", "tools", "dvc.yaml", "dvc.lock"):
        if (project / name).exists():
            (folder / name).symlink_to((project / name).resolve())
    (folder / "data" / "audit").mkdir(parents=True)
    for path in sorted((project / "data").iterdir()):
        if path.name == "evaluate":
            shutil.copytree(path, folder / "data" / path.name)
        elif path.name != "audit":
            (folder / "data" / path.name).symlink_to(path.resolve())
    given = yaml.safe_load((project / "params.yaml").read_text())
    given["serve"] = {
        **(given.get("serve") or {}),
        "history_until": "test_start",
        **serve,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    subprocess.run([sys.executable, "-c", REGISTERED], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    return folder


@dataclass
class Server:
    """A running server and a key for it."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"
    secret: str
    errors: list[str] = field(default_factory=list)
    local: threading.local = field(default_factory=threading.local)

    def call(self, method: str, path: str, payload: Any = None) -> tuple[int, Any]:
        """One request, on this thread's connection. A reading one is sent again where the server had closed it."""
        try:
            return self._called(method, path, payload)
        except (OSError, http.client.HTTPException):
            if method != "GET":
                raise
            return self._called(method, path, payload)

    def _called(self, method: str, path: str, payload: Any) -> tuple[int, Any]:
        body = None if payload is None else json.dumps(payload).encode()
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            self.local.connection.connect()
            self.local.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.local.connection.request(method, path, body, headers)
            answer = self.local.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.local.connection.close()
            del self.local.connection
            raise

    def posted(self, path: str, payload: Any) -> Any:
        """The answer to a request that must be answered."""
        status, text = self.call("POST", path, payload)
        if status != 200:
            lines = (self.folder / "server.log").read_text().splitlines()
            told = [line for line in lines if '"event": "request"' not in line or '"status": 500' in line]
            raise SystemExit("\n".join([f"{path}: {status} {text[:1500]!r}", *told[-5:]]))
        return json.loads(text)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The API's and PostgreSQL's."""
        own = psutil.Process(self.process.pid)
        api = [own, *own.children(recursive=True)]
        lock = self.folder / ".pgdata" / "cluster" / "postmaster.pid"
        postmaster = psutil.Process(int(lock.read_text().split("\n", 1)[0]))
        database = [postmaster, *postmaster.children(recursive=True)]
        known = {one.pid for one in database}
        return {"api": [one for one in api if one.pid not in known], "postgresql": database}

    def memory_mb(self) -> dict[str, float]:
        """Memory of each group, shared pages counted once."""
        found = {}
        for name, group in self.processes().items():
            total = 0
            for one in group:
                with suppress(psutil.Error):
                    total += one.memory_full_info().pss
            found[name] = round(total / 2**20)
        return found

    def parts(self) -> dict[str, tuple[float, float]]:
        """Seconds and requests of each part so far."""
        text = self.call("GET", "/metrics")[1].decode()
        found = re.findall(r'^reperform_part_seconds_(sum|count)\{part="(\w+)"\} (\S+)$', text, flags=re.MULTILINE)
        both: dict[str, dict[str, float]] = {}
        for kind, part, value in found:
            both.setdefault(part, {})[kind] = float(value)
        return {part: (one["sum"], one["count"]) for part, one in both.items()}

    def rows_in_database(self) -> int:
        """Answers that stand in PostgreSQL."""
        asked = "SELECT count(*) FROM service.answers WHERE role = 'champion'"
        command = [sys.executable, "-m", "reperform", "database", "--", "psql", "-XAtc", asked]
        return int(subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout)


@contextmanager
def serving(project: Path, *, keep: bool, **serve: Any) -> Iterator[Server]:
    """Start the server, wait until it is ready, and end it with the block."""
    folder = scratch_of(project, serve)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "REPERFORM_DATABASE_URL"}
    log = (folder / "server.log").open("wb")
    command = [sys.executable, "-m", "reperform", "serve", "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Server(folder, port, process, "")
        _wait_until_ready(server)
        ready_s = time.perf_counter() - began
        create = [sys.executable, "-m", "reperform", "keys", "create", "benchmark", "--per-minute", "1000000"]
        made = subprocess.run(
            create,
            cwd=folder, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        found = re.search(r"rpf_\S+", made.stdout)
        server.secret = found[0] if found else ""
        tell(what="start", ready_s=round(ready_s, 1), memory_mb=server.memory_mb())
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()
        if keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        with suppress(OSError, http.client.HTTPException):
            if server.call("GET", "/ready")[0] == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the server did not become ready:\n" + (server.folder / "server.log").read_text()[-3000:])


# What is sent


def test_rows(project: Path) -> tuple[pl.DataFrame, datetime]:
    """Transactions of the test period in the order in which they became known, and when the period begins."""
    split = SplitParams(**yaml.safe_load((project / "params.yaml").read_text())["split"])
    rows = pl.read_parquet(project / "data" / "validate" / "transactions.parquet")
    wanted = (pl.col("known_at") >= split.test_start) & (pl.col("booked_at") < split.test_end)
    return rows.filter(wanted).sort("known_at", "booked_at", "transaction_id"), split.test_start


def past_rows(project: Path, until: datetime) -> pl.DataFrame:
    """Transactions that the server begins with."""
    rows = pl.read_parquet(project / "data" / "validate" / "transactions.parquet")
    return rows.filter(pl.col("known_at") < until).sort("known_at", "booked_at", "transaction_id")


def payload(rows: pl.DataFrame) -> list[Row]:
    """Rows as the API takes them."""
    times = [pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ") for name in ("booked_at", "known_at")]
    return [
        {name: value for name, value in row.items() if value is not None}
        for row in rows.select(FIELDS).with_columns(times).to_dicts()
    ]


def filled_up(past: pl.DataFrame, coming: pl.DataFrame, until: datetime) -> tuple[pl.DataFrame, list[str]]:
    """More rows for some accounts, so that each has `PAST_ROWS` at `until`: copies of its own, spread over the time.

    Returns:
        The coming rows before `until` with those added, in order; the accounts.
    """
    before = coming.filter(pl.col("known_at") < until)
    all_rows = pl.concat([past, before])
    counts = all_rows.group_by("account_id").len().sort("len", "account_id", descending=True)
    chosen = counts["account_id"].head(ACCOUNTS).to_list()
    added, rng = [before], np.random.default_rng(0)
    start = coming["known_at"].min()
    for account in chosen:
        own = all_rows.filter(pl.col("account_id") == account)
        missing = max(0, PAST_ROWS - own.height)
        places = np.sort(rng.random(missing)) * (until - start).total_seconds()
        at = pl.Series("at", [start + timedelta(seconds=float(one)) for one in places], own.schema["known_at"])
        copies = own[rng.integers(0, own.height, missing).tolist()]
        added.append(_again(copies, at, f"more-{account}"))
    return pl.concat(added).sort("known_at", "booked_at", "transaction_id"), chosen


def _again(rows: pl.DataFrame, at: pl.Series, prefix: str) -> pl.DataFrame:
    ids = pl.Series("transaction_id", [f"{prefix}-{number}" for number in range(rows.height)])
    return rows.with_columns(ids, at.alias("booked_at"), at.alias("known_at"))


def fed(server: Server, rows: pl.DataFrame) -> float:
    """Send rows in requests of 1,000; seconds."""
    bodies = [payload(rows[start : start + BATCH]) for start in range(0, rows.height, BATCH)]
    began = time.perf_counter()
    for body in bodies:
        server.posted(f"{DETECT}?reasons=none", {"transactions": body})
    return time.perf_counter() - began


def open_loop(
    server: Server, bodies: Sequence[Any], per_second: float, path: str = DETECT
) -> tuple[list[float], dict[int, int]]:
    """Send requests when they are due, whether or not earlier ones were answered.

    Returns:
        Milliseconds from due to answered, of each request; requests by status (0: no answer).
    """
    began = time.perf_counter() + 0.2
    took: list[float] = [0.0] * len(bodies)
    statuses: list[int] = [0] * len(bodies)

    def send(number: int) -> None:
        due = began + number / per_second
        time.sleep(max(0.0, due - time.perf_counter()))
        with suppress(OSError, http.client.HTTPException):
            statuses[number] = server.call("POST", path, bodies[number])[0]
        took[number] = 1000 * (time.perf_counter() - due)

    # One thread takes one request at a time, in the order in which they are due.
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(send, range(len(bodies))))
    return took, {status: statuses.count(status) for status in sorted(set(statuses))}


# The benchmarks


def latency(project: Path, options: argparse.Namespace) -> None:
    """One transaction of an account with 1,000 past ones, at a fixed rate."""
    coming, start = test_rows(project)
    until = start + timedelta(days=options.days)
    rows, accounts = filled_up(past_rows(project, start), coming, until)
    with serving(project, keep=options.keep) as server:
        seconds = fed(server, rows)
        tell(what="prepared", rows=rows.height, transactions_per_second=round(rows.height / seconds))
        moment = until
        for reasons in ("none", "alerts", "all"):
            rate = options.per_second
            n = int(options.seconds * rate)
            warm, moment = ones(rows, accounts, moment, n=40, per_second=rate, prefix=f"warm-{reasons}")
            open_loop(server, warm, options.per_second, f"{DETECT}?reasons={reasons}")
            bodies, moment = ones(rows, accounts, moment, n=n, per_second=rate, prefix=f"timed-{reasons}")
            before = server.parts()
            took, statuses = open_loop(server, bodies, options.per_second, f"{DETECT}?reasons={reasons}")
            parts = {part: both[0] - before.get(part, (0, 0))[0] for part, both in server.parts().items()}
            tell(
                what="latency", reasons=reasons, requests=n, per_second=options.per_second, statuses=statuses,
                **percentiles(took), mean_ms=round(float(np.mean(took)), 2),
                parts_ms={part: round(1000 * spent / n, 2) for part, spent in parts.items()},
                share={part: round(spent / max(1e-9, sum(parts.values())), 3) for part, spent in parts.items()},
            )  # fmt: skip


def ones(
    rows: pl.DataFrame, accounts: Sequence[str], moment: datetime, *, n: int, per_second: float, prefix: str
) -> tuple[list[Any], datetime]:
    """Requests with one transaction each, of the accounts by turns, and when they end."""
    rng = np.random.default_rng(1)
    own = {account: rows.filter(pl.col("account_id") == account) for account in accounts}
    picked = [own[accounts[k % len(accounts)]] for k in range(n)]
    copies = pl.concat([one[int(rng.integers(0, one.height))] for one in picked])
    at = pl.Series("at", [moment + timedelta(seconds=(k + 1) / per_second) for k in range(n)], rows.schema["known_at"])
    bodies = [{"transactions": [one]} for one in payload(_again(copies, at, prefix))]
    return bodies, moment + timedelta(seconds=(n + 1) / per_second)


def percentiles(took_ms: Sequence[float]) -> dict[str, float]:
    """Median, 95 %, 99 % and the longest."""
    return {
        name: round(float(np.quantile(took_ms, share)), 2)
        for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99), ("max_ms", 1.0))
    }


def batches(project: Path, options: argparse.Namespace) -> None:
    """The test period in requests of 1,000, from the first byte sent until all stands in the database."""
    rows, _ = test_rows(project)
    with serving(project, keep=options.keep) as server:
        bodies = [json.dumps({"transactions": payload(rows[at : at + BATCH])}) for at in range(0, rows.height, BATCH)]
        for reasons, half in (("none", bodies[: len(bodies) // 2]), ("alerts", bodies[len(bodies) // 2 :])):
            n = min(rows.height, len(half) * BATCH)
            took, before = [], server.parts()
            began = time.perf_counter()
            for body in half:
                sent = time.perf_counter()
                server.posted(f"{DETECT}?reasons={reasons}", json.loads(body))
                took.append(1000 * (time.perf_counter() - sent))
            seconds = time.perf_counter() - began
            parts = {part: both[0] - before.get(part, (0, 0))[0] for part, both in server.parts().items()}
            tell(
                what="batches", reasons=reasons, transactions=n, seconds=round(seconds, 2),
                transactions_per_second=round(n / seconds), **percentiles(took),
                parts_ms={part: round(1000 * spent / len(half), 1) for part, spent in parts.items()},
            )  # fmt: skip
        tell(what="written", rows_in_database=server.rows_in_database(), sent=rows.height, memory_mb=server.memory_mb())


def replay(project: Path, options: argparse.Namespace) -> None:
    """Every transaction of the test period as it came, labels as they were confirmed; scores against the pipeline's."""
    rows, start = test_rows(project)
    labels = pl.read_parquet(project / "data" / "validate" / "labels.parquet")
    labels = labels.filter(pl.col("confirmed_at") >= start).sort("confirmed_at", "transaction_id")
    end = rows["known_at"].max()
    labels = labels.filter(pl.col("confirmed_at") <= end)
    scored: list[Row] = []
    with serving(project, keep=options.keep) as server:
        began = time.perf_counter()
        for kind, part in _in_order(rows, labels):
            if kind == "labels":
                server.posted("/api/v1/feedback", {"labels": _label_payload(part)})
            else:
                answer = server.posted(f"{DETECT}?reasons=none", {"transactions": payload(part)})
                scored += answer["answers"]
        seconds = time.perf_counter() - began
    columns = ("transaction_id", "score", "probability", "is_alert")
    online = pl.DataFrame([{name: one[name] for name in columns} for one in scored], infer_schema_length=None)
    tell(what="replay", seconds=round(seconds, 1), labels=labels.height, **compared(online, project))


def _in_order(rows: pl.DataFrame, labels: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Labels before the first row that becomes known after them; never more than 1,000 at once."""
    known, confirmed = rows["known_at"].to_numpy(), labels["confirmed_at"].to_numpy()
    cuts = np.searchsorted(known, confirmed, side="left")  # rows before each label
    done = 0
    for cut in sorted({*cuts.tolist(), rows.height}):
        for at in range(done, cut, BATCH):
            yield "transactions", rows[at : min(cut, at + BATCH)]
        done = cut
        due = labels.filter(pl.Series(cuts == cut))
        for at in range(0, due.height, BATCH):
            yield "labels", due[at : at + BATCH]


def _label_payload(labels: pl.DataFrame) -> list[Row]:
    time_text = pl.col("confirmed_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    return [
        {name: value for name, value in row.items() if value is not None}
        for row in labels.with_columns(time_text).to_dicts()
    ]


def compared(online: pl.DataFrame, project: Path) -> dict[str, Any]:
    """How far the answers are from what the pipeline wrote."""
    offline = pl.read_parquet(project / "data" / "ensemble" / "scores.parquet").filter(pl.col("detector") == "ensemble")
    both = online.join(
        offline.select("transaction_id", "score", "probability", "is_alert"),
        on="transaction_id", how="inner", suffix="_offline",
    )  # fmt: skip
    differs = (both["score"] - both["score_offline"]).abs()
    return {
        "answered": online.height,
        "compared": both.height,
        "equal_to_the_last_bit": int((differs == 0).sum()),
        "largest_difference_of_scores": float(differs.max() or 0.0),
        "largest_difference_of_probabilities": float(
            (both["probability"] - both["probability_offline"]).abs().max() or 0.0
        ),
        "alerts_that_differ": int((both["is_alert"] != both["is_alert_offline"]).sum()),
    }


def soak(project: Path, options: argparse.Namespace) -> None:
    """Half of the rate at which requests of one transaction are answered at most, for long."""
    rows, start = test_rows(project)
    period = timedelta(days=(rows["known_at"].max() - start).days + 1)
    # A day of the data passes in a minute, so clients that overtake each other are hours apart.
    with serving(project, keep=options.keep, clock_skew_s=86_400) as server:
        source = _for_ever(rows, period)
        peak = peak_rate(server, source, options.seconds)
        rate = peak / 2
        tell(what="peak", requests_per_second=round(peak, 1), clients=CLIENTS)
        per_minute, minutes = int(rate * 60), []
        first = server.memory_mb()
        for minute in range(1, options.minutes + 1):
            bodies = [{"transactions": [next(source)]} for _ in range(per_minute)]
            took, statuses = open_loop(server, bodies, rate)
            wrong = sum(n for status, n in statuses.items() if status != 200)
            minutes.append({"minute": minute, "errors": wrong, **server.memory_mb(), **percentiles(took)})
            tell(what="minute", statuses=statuses, **minutes[-1])
        last, half = minutes[-1], minutes[len(minutes) // 2]
        tell(
            what="soak", minutes=options.minutes, requests_per_second=round(rate, 1),
            requests=per_minute * options.minutes, errors=sum(one["errors"] for one in minutes),
            memory_mb_before=first, memory_mb_half={k: half[k] for k in first},
            memory_mb_after={k: last[k] for k in first},
            p99_ms_of_minutes=[min(one["p99_ms"] for one in minutes), max(one["p99_ms"] for one in minutes)],
        )  # fmt: skip


def _for_ever(rows: pl.DataFrame, period: timedelta) -> Iterator[Row]:
    """The test period again and again, each time later and under new ids."""
    turn = 0
    while True:
        shift = period * turn
        for at in range(0, rows.height, BATCH):
            part = rows[at : at + BATCH].with_columns(
                pl.col("booked_at") + shift, pl.col("known_at") + shift, pl.col("transaction_id") + f"~{turn}"
            )
            yield from payload(part)
        turn += 1


def peak_rate(server: Server, source: Iterator[Row], seconds: float) -> float:
    """Requests of one transaction a second, from clients that send the next one as soon as they may."""
    lock, ending = threading.Lock(), time.perf_counter() + seconds
    counts = [0] * CLIENTS

    def client(number: int) -> None:
        while time.perf_counter() < ending:
            with lock:
                body = {"transactions": [next(source)]}
            server.posted(DETECT, body)
            counts[number] += 1

    with ThreadPoolExecutor(max_workers=CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return sum(counts) / seconds


def tell(**facts: Any) -> None:
    """One JSON line."""
    print(json.dumps({**facts, "load": round(os.getloadavg()[0], 1)}), flush=True)


BENCHMARKS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "latency": latency, "batches": batches, "replay": replay, "soak": soak,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("project", nargs="?", default=".", type=Path)
    parser.add_argument("--minutes", type=int, default=60, help="of soak (default: 60)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of each measurement of latency or peak (default: 30)"
    )
    parser.add_argument("--per-second", type=float, default=PER_SECOND, help="requests of latency (default: 20)")
    parser.add_argument("--days", type=int, default=25, help="of the test period that come before latency (25)")
    parser.add_argument("--keep", action="store_true", help="keep the server's folder")
    options = parser.parse_args(arguments)
    BENCHMARKS[options.what](options.project.resolve(), options)


if __name__ == "__main__":
    main()
