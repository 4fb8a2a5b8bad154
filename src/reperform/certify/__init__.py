"""Prove that no KPI looks ahead: change all that comes after a moment, compute again, compare what was before by bits.

A proof that finds nothing proves little, so the same comparison is also run on features that look ahead on purpose, and
must catch each of them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize, tables
from reperform.certify.leaks import HONEST, KEYS, LEAKS, Make, features, ledger_of
from reperform.certify.worlds import (
    BENCH_ROWS,
    Sampled,
    Tables,
    bench,
    changed_after,
    drawn_rows,
    kept_filings,
    kept_rows,
    sample,
    sample_filings,
    with_rows,
)
from reperform.featurize import bridge
from reperform.featurize.filings import filing_bridge, filing_tables
from reperform.params import FeaturizeParams, SplitParams

__all__ = ["BENCH_ROWS", "HONEST", "LEAKS", "Certificate", "Cut", "Tables", "bench", "certify", "changed_after"]

SHORT_CUTS, SHORT_ROWS, SHORT_FACTS = 3, 1_500, 5_000  # what the stage can afford on every run
STATED = (
    "filed",
    "ledger",
    "gap",
    "lines_failed",
)  # of the bridge, known when a filing is; explanations may come later
FILING_TABLES = ("filings", "facts", "messages", "checks")
SAMPLED: tuple[Sampled, ...] = ("account_id", "counterparty_id")


@dataclass(frozen=True)
class Cut:
    """One comparison.

    Args:
        at: everything that happened, arrived or was confirmed later was changed.
        rows_changed: transactions that were changed, dropped or added.
        cells: values that were compared.
        differing: of them, those that are not bit-identical.
        columns: names of columns that differ.
        filings: filings among what was compared.
    """

    at: datetime
    rows_changed: int
    cells: int
    differing: int
    columns: tuple[str, ...]
    filings: int = 0


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
    filings: Mapping[str, pl.DataFrame] | None = None,
    bench_rows: int = BENCH_ROWS,
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
        filings: the tables filings, facts, messages and checks, for KPIs 9 and 10.
        bench_rows: of the slice on which leaks are planted.
    """
    rng = np.random.default_rng(seed)
    whole = Tables(transactions, labels, accounts, **(filings or {}))
    original = Original.of(whole, stage, split)
    done = []
    for moment in moments(whole, cuts, split.fit_end, rng):
        done.append(original.compare(moment, rng))
        say(_told(done[-1]))
    return Certificate(tuple(done), _planted(whole, rng, bench_rows, say))


def _planted(
    whole: Tables, rng: np.random.Generator, bench_rows: int, say: Callable[[str], None] = lambda _text: None
) -> dict[str, bool]:
    leaks = {name: _caught(make, bench(whole, rng, bench_rows), rng) for name, make in LEAKS.items()}
    for name, caught in leaks.items():
        say(f"planted leak {name}: {'caught' if caught else 'MISSED'}")
    return leaks


def _told(cut: Cut) -> str:
    return f"{cut.at:%Y-%m-%d %H:%M}: {cut.rows_changed} rows changed, {cut.cells} cells, {cut.differing} differ"


@dataclass(frozen=True)
class Original:
    """A world with its features, which every other world is compared with."""

    tables: Tables
    stage: FeaturizeParams
    split: SplitParams
    learned: dict[str, Any]
    features: pl.DataFrame
    filings: dict[str, pl.DataFrame]

    @classmethod
    def of(cls, tables: Tables, stage: FeaturizeParams, split: SplitParams) -> "Original":
        """Compute everything once."""
        ledger = ledger_of(tables, stage, split)
        learned = featurize.fit(ledger, stage, split.fit_end)
        made = featurize.compute(ledger, stage, learned)
        return cls(tables, stage, split, learned, made, _filing_results(tables, stage))

    def compare(self, at: datetime, rng: np.random.Generator) -> Cut:
        """Change everything after a moment, and compare what was before it."""
        keep = None if at >= self.split.fit_end else self.learned
        kept = kept_rows(self.tables.transactions, at)
        changed = changed_after(self.tables, kept, at, rng)
        make = partial(features, stage=self.stage, split=self.split, learned=keep)
        cut = _compared(self.tables, self.features, at, make(changed), kept)
        if self.tables.filings.is_empty():
            return cut
        return _with_filings(cut, self.tables, kept, self.filings, _filing_results(changed, self.stage))


def moments(whole: Tables, n: int, fit_end: datetime, rng: np.random.Generator) -> list[datetime]:
    """Moments of records to cut at, in turn after and before `fit_end`; some where several happened at once."""
    times = whole.transactions["booked_at"].sort()
    if times.is_empty():
        times = whole.filings["filed_at"].sort()
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
    return _compared(tables, original, at, make(changed_after(tables, kept, at, rng)), kept)


def _compared(tables: Tables, original: pl.DataFrame, at: datetime, changed: pl.DataFrame, kept: pl.Series) -> Cut:
    ids = tables.transactions.filter(kept).select("transaction_id")
    before = ids.join(original, on="transaction_id", how="left", maintain_order="left")
    after = ids.join(changed, on="transaction_id", how="left", maintain_order="left")
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


def _filing_results(tables: Tables, stage: FeaturizeParams) -> dict[str, pl.DataFrame]:
    """KPIs 9 and 10 per filing, the rules behind them, and the bridge to the ledger."""
    if tables.filings.is_empty():
        return {}
    settings = stage.settings.get(featurize.FILINGS, {})
    given = (tables.filings, tables.facts)
    kpis, rules = filing_tables(*given, tables.checks, tables.transactions, settings=settings, messages=tables.messages)
    return {
        "filing_kpis": kpis,
        "filing_checks": rules,
        "filing_bridge": filing_bridge(*given, tables.transactions, settings=settings),
    }


def _with_filings(
    cut: Cut, tables: Tables, kept: pl.Series, before: Mapping[str, pl.DataFrame], after: Mapping[str, pl.DataFrame]
) -> Cut:
    """The comparison with what is known of filings received by then added to it."""
    old = kept_filings(tables.filings, cut.at)
    settled = _settled(old, tables.transactions.filter(~kept))
    cells, differing, columns = cut.cells, cut.differing, list(cut.columns)
    for name, frame in before.items():
        # An explanation may use what arrived after the filing, and says so; what has yet to arrive changes it.
        for part, only in ((old, STATED), (settled, None)) if name == "filing_bridge" else ((old, None),):
            mine, other = (_of(table, part, only) for table in (frame, after[name]))
            cells += mine.height * mine.width
            for column, n in _differing(mine, other).items():
                differing += n
                columns.append(f"{name}.{column}")
    return replace(cut, cells=cells, differing=differing, columns=tuple(dict.fromkeys(columns)), filings=old.height)


def _settled(filings: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """Filings whose bridge looks at no record that was changed."""
    first = changed.sort("booked_at").group_by("entity_id", maintain_order=True).agg(first=pl.col("booked_at").min())
    end = pl.col("period_end").cast(pl.Datetime("us")).dt.replace_time_zone("UTC") + pl.duration(days=1) + bridge.EDGE
    joined = filings.join(first, on="entity_id", how="left", maintain_order="left")
    return joined.filter(pl.col("first").is_null() | (pl.col("first") >= end)).select(filings.columns)


def _of(frame: pl.DataFrame, filings: pl.DataFrame, only: Sequence[str] | None) -> pl.DataFrame:
    mine = frame.join(filings.select("filing_id"), on="filing_id", how="semi", maintain_order="left")
    if only is None:
        return mine
    # One row per line: the number of explanations may differ.
    return mine.unique(["filing_id", "concept", "dimensions", "unit"], keep="first", maintain_order=True).select(
        "filing_id", "concept", "dimensions", "unit", *only
    )


def _differing(mine: pl.DataFrame, other: pl.DataFrame) -> dict[str, int]:
    """Cells per column that are not the same; all of them where rows came or went."""
    if mine.height != other.height:
        return dict.fromkeys(mine.columns, abs(mine.height - other.height))
    counted = {name: int(mine[name].ne_missing(other[name]).sum()) for name in mine.columns}
    return {name: n for name, n in counted.items() if n}


def _caught(make: Make, tables: Tables, rng: np.random.Generator) -> bool:
    """Whether the comparison finds a difference in features that look ahead, at one of several moments."""
    original = make(tables)
    times = tables.transactions["booked_at"].unique().sort()
    picked = (times[int(len(times) * share)] for share in (0.5, 0.7, 0.9))
    return any(_compare(tables, original, at, make, rng).differing for at in picked)


def short(
    rows: pl.LazyFrame, others: Tables, stage: FeaturizeParams, split: SplitParams, *, seed: int = 0
) -> dict[str, Any]:
    """A certificate that every run can afford: a few cuts through a sample with whole histories, and all leaks.

    Args:
        rows: transactions, of which a sample is read.
        others: all tables but the transactions, whose place is left empty.
        stage: KPIs and settings.
        split: the calendar.
        seed: of everything that is drawn.

    Returns:
        A document for JSON: what was compared, and the outcome.
    """
    rng = np.random.default_rng(seed)
    drawn = sample_filings(with_rows(others, drawn_rows(rows, SHORT_ROWS, "account_id", rng)), SHORT_FACTS, rng)
    made = certify(
        drawn.transactions, drawn.labels, drawn.accounts, stage, split,
        cuts=SHORT_CUTS, seed=seed, bench_rows=SHORT_ROWS,
        filings={name: getattr(drawn, name) for name in FILING_TABLES},
    )  # fmt: skip
    of = rows.select(pl.len()).collect().item()
    return document(made, drawn, rows_of=int(of), filings_of=others.filings.height)


def document(made: Certificate, drawn: Tables, *, rows_of: int, filings_of: int) -> dict[str, Any]:
    """A certificate as plain values.

    Args:
        made: the certificate.
        drawn: the sample that was compared.
        rows_of: transactions that it was drawn from.
        filings_of: filings that it was drawn from.
    """
    return {
        "holds": made.holds,
        "rows": drawn.transactions.height,
        "rows_of": rows_of,
        "filings": drawn.filings.height,
        "filings_of": filings_of,
        "cells_compared": made.cells,
        "cells_differing": made.differing,
        "cuts": [_plain(cut) for cut in made.cuts],
        "leaks_planted": len(made.leaks),
        "leaks_caught": sum(made.leaks.values()),
        "leaks": [
            {"leak": name.replace("_", " "), "what": (LEAKS[name].__doc__ or "").strip(), "caught": caught}
            for name, caught in made.leaks.items()
        ],
    }


def _plain(cut: Cut) -> dict[str, Any]:
    return asdict(cut) | {"at": cut.at.isoformat(), "columns": list(cut.columns)}


def many(
    whole: Tables, stage: FeaturizeParams, split: SplitParams, *,
    cuts: int, rows: int, seed: int, journal: Path, key: str, say: Callable[[str], None],
) -> Certificate:  # fmt: skip
    """Many cuts, each through a sample of its own, in a journal from which an interrupted run goes on.

    Args:
        whole: the data.
        stage: KPIs and settings.
        split: the calendar.
        cuts: number of samples and moments.
        rows: of each sample, at least, if there are as many.
        seed: of everything that is drawn; cut number n does not depend on the others.
        journal: file with a line per cut that is done.
        key: stands for code, data and parameters; lines of another key do not count.
        say: called with a line per comparison.
    """
    whole_lines = _lines_of(journal)
    tables.write_text("".join(line + "\n" for line in whole_lines), journal)
    before = [line for line in map(json.loads, whole_lines) if line["key"] == key]
    done = {line["number"]: _cut_of(line) for line in before}
    for number in range(cuts):
        if number in done:
            continue
        rng = np.random.default_rng([seed, number])
        drawn = sample(whole, rows, SAMPLED[number % len(SAMPLED)], rng)
        # Every fourth of several moments: the sequence of `moments` goes through ties and both sides of `fit_end`.
        picked = moments(drawn, number % 4 + 1, split.fit_end, rng)[-1:]
        for at in picked:
            done[number] = Original.of(drawn, stage, split).compare(at, rng)
            say(f"{number + 1} of {cuts}, {drawn.transactions.height} rows, {_told(done[number])}")
            line = _plain(done[number]) | {"number": number, "key": key}
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    ordered = tuple(done[number] for number in sorted(done) if number < cuts)
    return Certificate(ordered, _planted(whole, np.random.default_rng(seed), BENCH_ROWS, say))


def _lines_of(journal: Path) -> list[str]:
    """Its lines, without one that an interruption cut off."""
    text = journal.read_text(encoding="utf-8") if journal.is_file() else ""
    return [line for line in text.split("\n")[:-1] if line]


def _cut_of(line: Mapping[str, Any]) -> Cut:
    return Cut(
        datetime.fromisoformat(line["at"]), line["rows_changed"], line["cells"], line["differing"],
        tuple(line["columns"]), line["filings"],
    )  # fmt: skip


def _key(settings: Sequence[Any], rows: int, seed: int, data: Path) -> str:
    """A hash of the code of all KPIs and of this proof, of the data and of the parameters."""
    digest = hashlib.sha256(repr((settings, rows, seed)).encode())
    code = [*Path(featurize.__file__).parent.glob("*.py"), *Path(__file__).parent.glob("*.py")]
    for file in (*sorted(code), *sorted(data.glob("*.parquet"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _lines(certificate: Certificate) -> Iterator[str]:
    for cut in certificate.cuts:
        if cut.differing:
            yield f"at {cut.at:%Y-%m-%d %H:%M:%S} these columns look ahead: {', '.join(cut.columns)}"
    yield str(certificate)


def main(cuts: int, seed: int = 0, rows: int | None = None) -> int:
    """Certify the project's own validated tables; 1 if anything looks ahead or a planted leak is missed.

    Args:
        cuts: number of moments.
        seed: of everything that is drawn.
        rows: of the sample that each cut draws anew; the whole table at every cut if not given.
    """
    from reperform import params, paths  # noqa: PLC0415  # only the command reads files

    whole = Tables(**{name: tables.read_table("validate", name) for name in Tables.__dataclass_fields__})
    stage, split = params.load(FeaturizeParams), params.load(SplitParams)
    if rows is None:
        others = {name: getattr(whole, name) for name in FILING_TABLES}
        made = certify(
            whole.transactions, whole.labels, whole.accounts, stage, split,
            cuts=cuts, seed=seed, say=print, filings=others,
        )  # fmt: skip
    else:
        made = many(
            whole, stage, split, cuts=cuts, rows=rows, seed=seed, say=print,
            journal=paths.project_root() / ".cache" / "certify" / "cuts.jsonl",
            key=_key((stage, split), rows, seed, paths.data("validate")),
        )  # fmt: skip
    for line in _lines(made):
        print(line)
    nothing = whole.transactions.is_empty() and whole.filings.is_empty() and all(made.leaks.values())
    return 0 if made.holds or nothing else 1
