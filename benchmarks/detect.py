"""What detectors cost, as ratios in one run on one machine.

    python benchmarks/detect.py train [project]   every detector twice on a project's data, as stage train does; seconds
    python benchmarks/detect.py score [project]   the whole ensemble scores the test days: transactions a second
    python benchmarks/detect.py latency [project] one row that arrives, and batches of 1,000: milliseconds
    python benchmarks/detect.py bare [project]    XGBoost through our contract against the bare library call
    python benchmarks/detect.py spark [project]   XGBoost on two executors of Spark against here: average precision
    python benchmarks/detect.py linear            one-class SVM and isolation forest, 100,000 to 1,000,000 rows

A project is a folder with `params.yaml` and `data/` after `dvc repro` (default: here). Each answer is one JSON line.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from sklearn.metrics import average_precision_score

from reperform import detectors, ensemble, params, paths, schemas, split, tables, train
from reperform.detectors.boosting import BASE_SCORE, THREADS
from reperform.params import EngineParams, EnsembleParams, SplitParams, TrainParams

ALONE, BATCH = 1000, 1000
FEW, MANY, COLUMNS = 100_000, 1_000_000, 30
REPEATS = 3


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fastest_by_turns(*works: Callable[[], Any]) -> list[float]:
    """Shortest of a few calls of each, one after the other: what else the machine does only adds to it."""
    spent = [[seconds(work) for work in works] for _ in range(REPEATS)]
    return [min(of) for of in zip(*spent, strict=True)]


def chosen(name: str) -> dict[str, Any]:
    """Parameters that the project's search found."""
    return dict(tables.read_json(f"tune/{name}", "best")["parameters"])


def train_all() -> dict[str, Any]:
    """Both fits and all scores of every detector, written as the stage writes them, without the start of Python."""
    settings = params.load(TrainParams)
    spent, worked = {}, {}
    for name in settings.detectors:
        start = time.process_time()
        spent[name] = seconds(lambda name=name: train.run(settings, name))
        worked[name] = time.process_time() - start
    return {
        "seconds": {name: round(s, 2) for name, s in spent.items()},
        "processor_seconds": {name: round(s, 2) for name, s in worked.items()},
        "seconds_all": round(sum(spent.values()), 1),
        "processor_seconds_all": round(sum(worked.values()), 1),
    }


def score_all() -> dict[str, Any]:
    """Features of the test days to the ensemble's probabilities, models loaded."""
    calendar = params.load(SplitParams)
    names = params.load(EnsembleParams).members
    document = tables.read_json("ensemble", "model")
    loaded, spent, scores, n = {}, {}, {}, 0
    for name in names:
        loaded[name] = detectors.load(paths.data("train") / name / "model")
        rows = train.read_rows(name, chosen(name), params.load(TrainParams).exclude_features)
        wanted = rows.between(calendar.test_start, calendar.test_end)
        n = int(wanted.sum())
        loaded[name].score(rows.x[:1])  # what is compiled is read from its cache
        start = time.perf_counter()
        scores[name] = train.scored(loaded[name], rows, wanted)
        spent[name] = time.perf_counter() - start
    together = seconds(lambda: ensemble.probabilities(document, ensemble.margins(document, scores)))
    total = sum(spent.values()) + together
    return {
        "rows": n,
        "seconds": {name: round(s, 3) for name, s in spent.items()} | {"ensemble": round(together, 3)},
        "transactions_per_second": round(n / total),
    }


def latency() -> dict[str, Any]:
    """Rows of the test days as they arrive, with what arrived of their account before, to the probability."""
    document, members = tables.read_json("ensemble", "model"), []
    for name in params.load(EnsembleParams).members:
        rows = train.read_rows(name, chosen(name), params.load(TrainParams).exclude_features)
        members.append((name, detectors.load(paths.data("train") / name / "model"), rows))
    calendar, rows = params.load(SplitParams), members[0][2]
    order = rows.by_arrival(np.arange(len(rows.x)))
    test = order[rows.between(calendar.test_start, calendar.test_end)[order]]
    most = max(one.context_rows for _, one, _ in members)
    by_account = {int(code): order[rows.groups[order] == code] for code in np.unique(rows.groups[test])}

    def timed(new: Any) -> dict[str, float]:
        before = []
        for code in np.unique(rows.groups[new]):
            own = by_account[int(code)]
            first = int(np.flatnonzero(np.isin(own, new))[0])
            before += own[max(first - most, 0) : first].tolist()
        past, spent, scores = np.array(before, np.int64), {}, {}
        for name, one, own_rows in members:
            given = (own_rows.x[new], own_rows.x[past])
            start = time.perf_counter()
            scores[name] = one.score_arrivals(
                given[0], groups=rows.groups[new], past=given[1], past_groups=rows.groups[past]
            )
            spent[name] = time.perf_counter() - start
        start = time.perf_counter()
        ensemble.probabilities(document, ensemble.margins(document, scores))
        return spent | {"ensemble": time.perf_counter() - start}

    alone = test[:: -(-len(test) // ALONE)]
    batches = [test[start : start + BATCH] for start in range(0, len(test) - BATCH, BATCH)]
    timed(alone[:1])  # what is compiled is read from its cache
    return {"one": told([timed(alone[[k]]) for k in range(len(alone))]), "batch": told([timed(b) for b in batches])}


def told(spent: list[dict[str, float]]) -> dict[str, Any]:
    """Median milliseconds of each part, and median, 99th percentile of them together."""
    parts = {name: round(1000 * float(np.median([one[name] for one in spent])), 3) for name in spent[0]}
    together = [1000 * sum(one.values()) for one in spent]
    return {"n": len(spent), "median_ms": parts, "p50_ms": round(float(np.median(together)), 3),
            "p99_ms": round(float(np.percentile(together, 99)), 3)}  # fmt: skip


def bare_ratio() -> dict[str, Any]:
    """The final fit's rows, the same settings; the library is given the matrix that our contract is given."""
    calendar, given = params.load(SplitParams), chosen("xgboost")
    rows = train.read_rows("xgboost", given, params.load(TrainParams).exclude_features)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    final = split.fits(calendar)[1]
    within = rows.only(rows.between(final.learns_from, final.learns_until))
    known = split.learning_labels(
        within.keys, labels, known_by=final.known_by, maturity_days=calendar.label_maturity_days
    )["y"]
    x, y = within.x, known.fill_null(0).to_numpy().astype(np.int8)
    names = {"n_estimators": "", "parallel_trees": "num_parallel_tree", "classes": ""}
    settings = {names.get(key, key): value for key, value in given.items() if names.get(key, key)}
    settings |= {"objective": "binary:logistic", "base_score": BASE_SCORE, "nthread": THREADS, "seed": 7}

    def bare() -> None:
        xgboost.train(settings, xgboost.DMatrix(x, y, nthread=THREADS), given["n_estimators"])

    def ours() -> None:
        detectors.build("xgboost", given, features=rows.features, seed=7).fit(x, y)

    bare_s, ours_s = fastest_by_turns(bare, ours)
    return {"rows": len(x), "bare_s": round(bare_s, 2), "ours_s": round(ours_s, 2), "ratio": round(ours_s / bare_s, 3)}


def spark_against_local() -> dict[str, Any]:
    """The final fit of the project's XGBoost, here and on Spark; both judged on the test by the labels of today."""
    calendar, given = params.load(SplitParams), chosen("xgboost")
    rows = train.read_rows("xgboost", given, params.load(TrainParams).exclude_features)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    positive = rows.keys["transaction_id"].is_in(labels.filter("is_anomaly")["transaction_id"].implode()).to_numpy()
    wanted, final = rows.between(calendar.test_start, calendar.test_end), split.fits(calendar)[1]
    out: dict[str, Any] = {}
    for name, master in (("local", ""), ("spark", EngineParams().master)):
        start = time.perf_counter()
        one = train.fitted(
            "xgboost", given | {"spark_master": master}, rows, labels,
            fit=final, maturity_days=calendar.label_maturity_days, seed=7,
        ).detector  # fmt: skip
        precision = average_precision_score(positive[wanted], one.score(rows.x[wanted]))
        out[name] = {"seconds": round(time.perf_counter() - start, 1), "average_precision": round(precision, 4)}
    return out | {"difference": round(out["spark"]["average_precision"] - out["local"]["average_precision"], 4)}


def linearity() -> dict[str, Any]:
    """Seconds of fit and score at both sizes; 10 times the rows should take no more than 10 times as long."""
    out: dict[str, Any] = {}
    for name, given in (("one_class_svm", {"max_rows": MANY}), ("isolation_forest", {"max_samples": 1024})):
        spent = []
        for n in (FEW, MANY):
            x = np.random.default_rng(0).normal(size=(n, COLUMNS)).astype(np.float32)

            def work(name: str = name, given: dict[str, Any] = given, x: Any = x) -> None:
                detectors.build(name, given, seed=7).fit(x).score(x)

            spent.append(seconds(work))
        out[name] = {"seconds": [round(s, 2) for s in spent], "ratio": round(spent[1] / spent[0], 2), "linear": 10}
    return out


def main(what: str, project: str = ".") -> None:
    """Run one benchmark and print its answer."""
    os.chdir(Path(project))
    work = {
        "train": train_all,
        "score": score_all,
        "latency": latency,
        "bare": bare_ratio,
        "spark": spark_against_local,
        "linear": linearity,
    }[what]
    print(json.dumps({what: work(), "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
