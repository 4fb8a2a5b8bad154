"""Does each KPI detect anything? Alone, and by how much a boosted model falls without it.

Everything is fitted on the training window with labels as known when validation begins, and judged on the validation
weeks; the test stands apart, judged by the same fit. Run by hand: `python -m reperform kpi-value`.
"""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reperform import detectors, metrics, params, split, studies, tables
from reperform.detectors import inputs
from reperform.evaluate import truth
from reperform.featurize.kpis import KPIS
from reperform.markup import pipe_table
from reperform.metrics import Bools, Floats
from reperform.params import EvaluateParams, SplitParams

STUDY = "kpi-value"  # the project's own result, which the report shows; the docs keep one per data set
SHARE = 0.005
LEVEL = 0.9
ROUNDS = 300
MOST_NORMAL = 60_000  # training rows without an anomaly; more change little and cost time
LEAST_ANOMALIES = 10  # of a typology in a window, for a recall worth printing
PERIODS = ("validation", "test")
SETTINGS: dict[str, Any] = {
    "n_estimators": 150, "learning_rate": 0.1, "max_depth": 4, "min_child_weight": 2.0, "subsample": 1.0,
    "colsample_bytree": 0.5, "reg_lambda": 5.0, "gamma": 0.0, "tree_method": "hist", "max_bin": 256,
}  # fmt: skip
ELSEWHERE = {
    9: "of filings; see the filings report",
    10: "of filings; see the filings report",
    14: "computed after the models, from KPIs 1 to 13",
    15: "describes explanations, not transactions",
}


@dataclass(frozen=True)
class World:
    """Rows with features, training labels and truth.

    Args:
        x: float32, shape (n, p); NaN is unknown.
        names: of the columns.
        number: the KPI of each column.
        y: training labels: 1, 0, or -1 for rows that are not learned from.
        rows: split, day, is_anomaly (null if unknown), typology per row.
    """

    x: NDArray[np.float32]
    names: list[str]
    number: list[int]
    y: NDArray[np.int8]
    rows: pl.DataFrame

    def columns_of(self, kpi: int) -> list[int]:
        """Positions of a KPI's columns."""
        return [at for at, number in enumerate(self.number) if number == kpi]

    @property
    def kpis(self) -> list[int]:
        """Numbers of KPIs that have a column."""
        return sorted(set(self.number))


@dataclass(frozen=True)
class Window:
    """One period that is judged."""

    at: NDArray[np.int64]
    y: Bools
    day: NDArray[np.int64]
    typology: NDArray[np.object_]
    weights: Floats

    @classmethod
    def of(cls, world: World, name: str, seed: int) -> "Window":
        """The rows of a split whose truth is known."""
        wanted = (world.rows["split"] == name) & world.rows["is_anomaly"].is_not_null()
        part = world.rows.filter(wanted)
        day = (part["day"].rank("dense").cast(pl.Int64) - 1).to_numpy()
        n_days = int(day.max(initial=-1)) + 1
        return cls(
            np.flatnonzero(wanted.to_numpy()), part["is_anomaly"].to_numpy().astype(bool), day,
            part["typology"].to_numpy(), metrics.bootstrap_weights(n_days, ROUNDS, seed),
        )  # fmt: skip

    def precision(self, score: Floats) -> float | None:
        """Average precision."""
        return _plain(metrics.average_precision(metrics.ranking(self.y, score).totals)[0])

    def recall(self, score: Floats, typology: str | None = None) -> float | None:
        """Share of anomalies (of a typology) among the highest-scored 0.5 % of all rows."""
        alert = metrics.top_rows(score, round(SHARE * len(score)), 0)
        mine = self.y if typology is None else self.y & (self.typology == typology)
        return float(alert[mine].mean()) if mine.any() else None

    def fall(self, whole: Floats, less: Floats) -> tuple[float | None, float | None, float | None]:
        """By how much average precision falls, with an interval from whole days that are drawn for both alike."""
        one, other = (metrics.ranking(self.y, s, self.day) for s in (whole, less))
        rounds = [metrics.bootstrapped(metrics.average_precision, r, self.weights) for r in (one, other)]
        difference = rounds[0] - rounds[1]
        known = difference[np.isfinite(difference)]
        if not len(known):
            return None, None, None
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        first, second = (metrics.average_precision(r.totals)[0] for r in (one, other))
        return float(first - second), float(low), float(high)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def training_rows(y: NDArray[np.int8], seed: int) -> NDArray[np.int64]:
    """All anomalies that are learned from, and a random part of the normal rows, in order."""
    bad, normal = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    if len(normal) > MOST_NORMAL:
        normal = np.random.default_rng(seed).choice(normal, MOST_NORMAL, replace=False)
    return np.sort(np.concatenate([bad, normal]))


def best_column(world: World, columns: Sequence[int], train: NDArray[np.int64]) -> tuple[int, int]:
    """The column, and its sign, with the highest average precision on training rows; unknown counts as lowest."""
    found = []
    for column in columns:
        for sign in (1, -1):
            ranked = metrics.ranking(world.y[train] == 1, single(world.x[train, column], sign)).totals
            found.append((float(np.nan_to_num(metrics.average_precision(ranked)[0])), -column, sign))
    _, column, sign = max(found)
    return -column, sign


def single(values: NDArray[np.float32], sign: int) -> Floats:
    """A column as a score; unknown is below everything known."""
    score = sign * values.astype(np.float64)
    known = score[~np.isnan(score)]
    return np.where(np.isnan(score), known.min(initial=0.0) - 1, score)


def boosted(world: World, columns: Sequence[int], train: NDArray[np.int64], seed: int) -> Callable[[Any], Floats]:
    """A small boosted model on some columns; gives scores of rows."""
    x = world.x[:, columns]
    model = detectors.build("xgboost", SETTINGS, features=[world.names[c] for c in columns], seed=seed)
    model.fit(x[train], world.y[train])
    return lambda at: np.asarray(model.score(x[at]), np.float64)


def value_table(world: World, seed: int = 0, say: Callable[[str], None] = lambda _text: None) -> list[dict[str, Any]]:
    """One record per KPI and period: what it finds alone, and what is lost without it.

    Returns:
        Records with kpi_number, period, n, anomalies, column, column_precision, column_recall, precision, recall (of a
        model on its columns), whole_precision (of all columns), fall, fall_low, fall_high, helps, and `typologies`
        (name to anomalies and recall of the model on its columns).
    """
    train = training_rows(world.y, seed)
    windows = {name: Window.of(world, name, seed) for name in PERIODS}
    if not (world.y == 1).any() or not any(w.y.any() for w in windows.values()):
        return []
    everything = list(range(len(world.names)))
    model = boosted(world, everything, train, seed)
    whole = {name: model(w.at) for name, w in windows.items()}
    out = []
    for kpi in world.kpis:
        own = world.columns_of(kpi)
        column, sign = best_column(world, own, train)
        alone = boosted(world, own, train, seed)
        without = boosted(world, [c for c in everything if c not in own], train, seed)
        for name, w in windows.items():
            one, mine = single(world.x[w.at, column], sign), alone(w.at)
            fall, low, high = w.fall(whole[name], without(w.at))
            out.append({
                "kpi_number": kpi, "period": name, "n": len(w.y), "anomalies": int(w.y.sum()),
                "column": world.names[column] if sign > 0 else f"low {world.names[column]}",
                "column_precision": w.precision(one), "column_recall": w.recall(one),
                "precision": w.precision(mine), "recall": w.recall(mine),
                "whole_precision": w.precision(whole[name]), "whole_recall": w.recall(whole[name]),
                "fall": fall, "fall_low": low, "fall_high": high, "typologies": _typologies(w, mine),
            })  # fmt: skip
        say(f"KPI {kpi}: {out[-2]['precision']}, without it {out[-2]['fall']} less")
    return [record | {"verdict": verdict(record)} for record in out]


def _typologies(window: Window, score: Floats) -> dict[str, Any]:
    names = [name for name in window.typology[window.y] if name is not None]
    counted = {name: names.count(name) for name in sorted(set(names))}
    return {name: {"n": n, "recall": window.recall(score, name)} for name, n in counted.items()}


def verdict(record: Mapping[str, Any]) -> str:
    """Where a KPI helps: alone, in the model, both, or nowhere.

    Alone: more than three times the average precision of a random order. In the model: the whole interval of the fall
    lies above nothing.
    """
    base = record["anomalies"] / record["n"] if record["n"] else 0
    best = max(record["precision"] or 0, record["column_precision"] or 0)
    alone = best > 3 * base  # three times chance
    inside = record["fall_low"] is not None and record["fall_low"] > 0
    return {(True, True): "alone and in the model", (True, False): "alone", (False, True): "in the model"}.get(
        (alone, inside), "nowhere"
    )


def world_of(
    frames: Mapping[str, pl.DataFrame],
    dictionary: list[dict[str, Any]],
    calendar: SplitParams,
    planted: pl.DataFrame | None,
) -> World:
    """Features, labels and truth as arrays.

    Args:
        frames: transactions (for known_at), features, labels, splits.
        dictionary: of the features.
        calendar: the windows.
        planted: what the simulation planted; None to judge by labels.
    """
    features = frames["features"]
    names = inputs.model_inputs(dictionary, [])
    number = {entry["name"]: entry["kpi_number"] for entry in dictionary}
    first = split.fits(calendar)[0]
    known = split.learning_labels(
        features, frames["labels"], known_by=first.known_by, maturity_days=calendar.label_maturity_days
    )
    learned = (features["booked_at"] >= first.learns_from) & (features["booked_at"] < first.learns_until)
    y = pl.select(pl.when(learned).then(known["y"])).to_series().fill_null(-1).to_numpy().astype(np.int8)
    keys = features.select("transaction_id", "account_id", "booked_at").join(
        frames["splits"], on="transaction_id", how="left", maintain_order="left"
    )
    if planted is not None:
        judged = truth.planted_truth(keys, planted, keys)
    else:
        end = truth.knowledge_end(frames["transactions"], frames["labels"], calendar.test_end)
        judged = truth.label_truth(keys, frames["labels"], known_at=end, maturity_days=calendar.label_maturity_days)
    rows = judged.select("split", pl.col("booked_at").dt.date().alias("day"), "is_anomaly", "typology")
    return World(inputs.matrix(features, names), names, [number[n] for n in names], y, rows)


COLUMNS = {
    "kpi": "KPI", "column": "best column (by training rows)", "column_precision": "its AP",
    "column_recall": "its recall", "precision": "AP, model on the KPI", "recall": "recall",
    "fall": "AP lost without it", "verdict": "helps",
}  # fmt: skip
INTRODUCTION = """# What each KPI is worth

Written by `python -m reperform kpi-value NAME`, which runs by hand: `make repro` neither needs nor changes it.

- **Alone, one column**: the column (high or low) with the best average precision (AP) on training rows.
- **Alone, all its columns**: a small boosted model on them; settings are fixed, nothing is tuned.
- **Lost without it**: by how much the average precision of the same model on all columns falls when the KPI's columns
  are left out, with a 90 % interval from a bootstrap over whole days, drawn for both alike.
- **Recall** is the share of anomalies among the 0.5 % of rows with the highest scores.
- **Helps**: alone, if its average precision is above three times that of a random order; in the model, if the whole
  interval lies above zero; else nowhere. KPIs overlap, so one that is not missed can still be worth having alone.

Models learn from the training window with the labels known when validation begins, and are judged on the validation
weeks. The test is judged by the same models, and stands apart: nothing was chosen by it.
"""


def page(stored: Mapping[str, Mapping[str, Any]], titles: Mapping[int, str]) -> str:
    """The document of all data sets that were measured.

    Args:
        stored: per data set `command`, `date`, `commit`, `records`.
        titles: of KPIs by number.
    """
    parts = [INTRODUCTION]
    for name, one in stored.items():
        parts.append(f"## {name.capitalize()}\n\n`{one['command']}`, {one['date']}, code {one['commit']}.\n")
        for period in PERIODS:
            records = [r for r in one["records"] if r["period"] == period]
            parts.append(_section(records, period, titles))
    elsewhere = "\n".join(f"- KPI {number}: {why}." for number, why in ELSEWHERE.items())
    return "\n".join([*parts, f"## Not in these tables\n\n{elsewhere}\n"])


def _section(records: Sequence[Mapping[str, Any]], period: str, titles: Mapping[int, str]) -> str:
    if not records:
        return f"### {period.capitalize()}\n\nNo anomalies are known in this window.\n"
    first = records[0]
    rows = [
        {
            "kpi": f"{r['kpi_number']} {titles[r['kpi_number']]}",
            "column": f"`{r['column']}`" if " " not in r["column"] else r["column"],
            **{key: _number(r[key]) for key in ("column_precision", "column_recall", "precision", "recall")},
            "fall": f"{_number(r['fall'])} ({_number(r['fall_low'])} to {_number(r['fall_high'])})",
            "verdict": r["verdict"],
        }
        for r in records
    ]  # fmt: skip
    nowhere = [row["kpi"] for row in rows if row["verdict"] == "nowhere"]
    said = f"\n\nHelps nowhere in this window: {', '.join(nowhere)}." if nowhere else ""
    text = (
        f"### {period.capitalize()}\n\n{first['n']:,} rows, {first['anomalies']} anomalies; a random order has an "
        f"average precision of {first['anomalies'] / first['n']:.4f}. All columns together: "
        f"{_number(first['whole_precision'])}, recall {_number(first['whole_recall'])}."
        f"\n\n{pipe_table(rows, COLUMNS)}{said}\n"
    )
    kinds = [name for name, of in first["typologies"].items() if of["n"] >= LEAST_ANOMALIES]
    if not kinds:
        return text
    names = {"kpi": "KPI"} | {kind: f"{kind.replace('_', ' ')} ({first['typologies'][kind]['n']})" for kind in kinds}
    per_kind = [
        {"kpi": row["kpi"]} | {kind: _number(record["typologies"][kind]["recall"]) for kind in kinds}
        for row, record in zip(rows, records, strict=True)
    ]
    few = len(first["typologies"]) - len(kinds)
    more = f" {few} with fewer than {LEAST_ANOMALIES} are left out." if few else ""
    said = f"Recall per typology (number of anomalies), model on the KPI alone.{more}"
    return f"{text}\n{said}\n\n{pipe_table(per_kind, names)}\n"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def main(name: str, target: Path) -> int:
    """Measure the project's own features, and add the outcome to `kpi-value.json` and `kpi-value.md` in a folder."""
    frames = {"features": tables.read_table("featurize", "features"), "splits": tables.read_table("split", "splits")}
    frames |= {n: tables.read_table("validate", n) for n in ("transactions", "labels")}
    calendar, settings = params.load(SplitParams), params.load(EvaluateParams)
    dictionary = tables.read_json("featurize", "dictionary")
    planted = tables.read_table("simulate", "truth") if settings.truth == "planted" else None
    world = world_of(frames, dictionary, calendar, planted)
    records = value_table(world, settings.seed, print)
    studies.write(STUDY, {"name": name, "records": records}, [])
    store = target / "kpi-value.json"
    stored = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    stored[name] = {
        "command": f"python -m reperform kpi-value {name}", "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(), "records": records,
    }  # fmt: skip
    stored = dict(sorted(stored.items()))
    tables.write_text(json.dumps(stored, indent=1) + "\n", store)
    tables.write_text(page(stored, titles()), target / "kpi-value.md")
    return 0


def titles() -> dict[int, str]:
    """What people call each KPI; the first of several families names it."""
    out: dict[int, str] = {}
    for kpi in KPIS.values():
        out.setdefault(kpi.number, kpi.title)
    return out


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607  # whatever git the user has
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return asked.stdout.strip() or "without git"
