"""Search a detector's parameters on time-ordered folds. The only module that imports Optuna."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from reperform import detectors, params, paths, schemas, split, tables, train
from reperform.detectors import inputs
from reperform.errors import ReperformError
from reperform.params import SplitParams, TrainParams, TuneParams

STARTUP_TRIALS = 4
FAILURES = (ReperformError, ValueError, ArithmeticError, RuntimeError)  # a trial ends with one; a search goes on
RECORD = "record"  # attribute of a trial that holds what is told of it
STUDY_VARIABLE = "REPERFORM_STUDY_URL"
RANGE_KEYS = ("low", "high", "log", "choices")
OBJECTIVE = (
    "mean average precision over the folds, by labels known when the first fit begins; detectors that learn without "
    "labels are chosen by it, too"
)


@dataclass(frozen=True)
class Window:
    """Days of one fold: fitted on `learns_from` to `learns_until`, judged on `judged_from` to `judged_until`."""

    learns_from: datetime
    learns_until: datetime
    judged_from: datetime
    judged_until: datetime


@dataclass(frozen=True)
class Fold:
    """One fold, ready for every trial.

    Args:
        learned: row numbers to fit on.
        y: their labels as known when the judged days begin.
        weight: how many rows each stands for.
        judged: which rows of all are judged.
        truth: their labels, 1 or 0, as known when the first fit begins.
    """

    learned: NDArray[np.int64]
    y: NDArray[np.int8]
    weight: NDArray[np.float64]
    judged: NDArray[np.bool_]
    truth: NDArray[np.int8]


def windows(calendar: SplitParams, *, folds: int, fold_days: int) -> list[Window]:
    """Folds inside the first fit's training window, oldest first, each a label delay after what it learned from."""
    result = []
    for number in range(folds, 0, -1):
        judged_until = calendar.fit_end - timedelta(days=fold_days * (number - 1))
        judged_from = judged_until - timedelta(days=fold_days)
        learns_until = judged_from - timedelta(days=calendar.label_delay_days)
        if learns_until > calendar.train_start:
            result.append(Window(calendar.train_start, learns_until, judged_from, judged_until))
    return result


def prepared(
    rows: train.Rows, labels: pl.DataFrame, window: Window, calendar: SplitParams, *, max_rows: int, seed: int
) -> Fold | None:
    """A fold, or None when no anomaly is known on either side of it.

    Here a transaction without a label counts as normal once the label delay is over: with the full maturity, a short
    training window has no normal rows left. The fits themselves wait for the full maturity.
    """
    delay = calendar.label_delay_days
    arrived = (rows.keys[inputs.ARRIVAL] < window.judged_from).to_numpy()
    learned = np.flatnonzero(rows.between(window.learns_from, window.learns_until) & arrived)
    known = split.learning_labels(rows.keys[learned], labels, known_by=window.judged_from, maturity_days=delay)["y"]
    learned, y = learned[known.is_not_null().to_numpy()], known.drop_nulls().to_numpy()
    judged = np.flatnonzero(rows.between(window.judged_from, window.judged_until))
    truth = split.learning_labels(rows.keys[judged], labels, known_by=calendar.validation_start, maturity_days=delay)[
        "y"
    ]
    settled = np.zeros(len(rows.x), bool)
    settled[judged[truth.is_not_null().to_numpy()]] = True
    if not (y == 1).any() or not (truth == 1).any():
        return None
    chosen, weight = thinned(y, max_rows=max_rows, seed=seed)
    return Fold(learned[chosen], y[chosen].astype(np.int8), weight, settled, truth.drop_nulls().to_numpy())


def thinned(y: NDArray[Any], *, max_rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All anomalies and a draw of the rest, weighted so that the prevalence stays what it was.

    Args:
        y: shape (n,), 1 or 0.
        max_rows: rows to keep, or the number of anomalies if that is more.
        seed: of the draw.

    Returns:
        Row numbers in order, and their weights, which sum to n.
    """
    anomalies, normal = np.flatnonzero(y == 1), np.flatnonzero(y != 1)
    room = max(max_rows - len(anomalies), 1)
    thin = len(normal) > room
    kept = np.random.default_rng(seed).choice(normal, room, replace=False) if thin else normal
    chosen = np.sort(np.concatenate([anomalies, kept]))
    return chosen, np.where(y[chosen] == 1, 1.0, len(normal) / max(len(kept), 1))


def suggested(trial: Any, ranges: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A value for each range: whole numbers where both ends are whole, one of `choices` where these are given."""
    values: dict[str, Any] = {}
    for name, span in ranges.items():
        if "choices" in span:
            values[name] = trial.suggest_categorical(name, span["choices"])
        elif isinstance(span["low"], int) and isinstance(span["high"], int):
            values[name] = trial.suggest_int(name, span["low"], span["high"], log=bool(span.get("log")))
        else:
            values[name] = trial.suggest_float(name, span["low"], span["high"], log=bool(span.get("log")))
    return values


def check_ranges(detector: str, plain: Mapping[str, Any], ranges: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a range that names no parameter, or that nobody can search."""
    detectors.build(detector, plain)
    for name, span in ranges.items():
        where = f"conf/model/{detector}.yaml:search.{name}"
        unknown = sorted(set(span) - set(RANGE_KEYS))
        if unknown or not ("choices" in span or {"low", "high"} <= set(span)):
            raise ReperformError(
                f"The range of {name!r} cannot be searched.",
                expected="low and high (and log: true), or choices",
                got=str(dict(span)),
                where=where,
                fix=f"remove {unknown[0]}" if unknown else "give both ends",
            )
        if name not in plain:
            raise ReperformError(
                f"Parameter {name!r} has a range, but no plain value.",
                expected=f"{name}: … beside search",
                got=", ".join(plain),
                where=where,
                fix="add the value that is used when nothing is searched",
            )
        for value in span.get("choices", [span.get("low"), span.get("high")]):
            detectors.build(detector, {**plain, name: value})
        inside = plain[name] in span["choices"] if "choices" in span else span["low"] <= plain[name] <= span["high"]
        if not inside:
            raise ReperformError(
                f"The plain value of {name!r} lies outside of its range.",
                expected=str(dict(span)),
                got=repr(plain[name]),
                where=where,
                fix="widen the range: the first trial is the plain values",
            )


Objective = Callable[[Mapping[str, Any], int], float]


@dataclass(frozen=True)
class Study:
    """Where a search is kept, so that several machines can share it.

    Args:
        url: of a database, as SQLAlchemy reads it; it may hold a password, so it is never printed or saved.
        name: of the study; equal data, parameters and code share one.
    """

    url: str
    name: str


def search(
    objective: Objective,
    plain: Mapping[str, Any],
    ranges: Mapping[str, Mapping[str, Any]],
    *,
    folds: int,
    trials: int,
    seed: int,
    shared: Study | None = None,
) -> list[dict[str, Any]]:
    """Every trial, also those that were pruned or failed; the first one is the plain values.

    Each trial draws from the seed and the number of trials before it, so that a search that goes on after a kill tries
    what it would have tried. Machines that share a study see each other's trials; which of them is first decides what
    comes next.

    Args:
        objective: parameters and the number of a fold, to its average precision.
        plain: values of all parameters when nothing is searched.
        ranges: what to search.
        folds: how many there are; a trial below the median of the earlier ones is given up after its first folds.
        trials: how many to run.
        seed: of the sampler.
        shared: study in a database; in memory if None.
    """
    import optuna  # noqa: PLC0415  # not needed when there is nothing to search

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
        storage=None if shared is None else _storage(shared.url),
        study_name=None if shared is None else shared.name,
        load_if_exists=True,
    )

    def attempt(trial: Any) -> float:
        record: dict[str, Any] = {"values": [], "reason": None}
        record["parameters"] = {**plain, **suggested(trial, ranges)}
        try:
            for fold in range(folds):
                record["values"].append(objective(record["parameters"], fold))
                trial.report(float(np.mean(record["values"])), fold)
                if fold + 1 < folds and trial.should_prune():
                    trial.set_user_attr(RECORD, record)
                    raise optuna.TrialPruned
        except FAILURES as error:
            trial.set_user_attr(RECORD, {**record, "reason": f"{type(error).__name__}: {error}"})
            raise
        trial.set_user_attr(RECORD, record)
        return float(np.mean(record["values"]))

    while (done := len(_told(study))) < trials:
        # Machines that start a trial at the same moment must not draw the same values.
        drawn = done if shared is None else len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + drawn, n_startup_trials=STARTUP_TRIALS, constant_liar=shared is not None
        )
        if not done:
            study.enqueue_trial({name: plain[name] for name in ranges})
        study.optimize(attempt, n_trials=1, n_jobs=1, catch=FAILURES)
    return _told(study)[:trials]


def _storage(url: str) -> Any:
    """A database that other machines reach, too.

    Raises:
        ReperformError: when it can't be reached. The address is not repeated: it may hold a password.
    """
    import optuna  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        return optuna.storages.RDBStorage(url)
    except (SQLAlchemyError, ImportError) as error:
        raise ReperformError(
            "The database of the study cannot be reached.",
            expected="an address as SQLAlchemy reads it, such as postgresql+psycopg://user:password@host/database",
            got=type(error).__name__,
            where=f"the environment variable {STUDY_VARIABLE}",
            fix=f"mend it, or unset {STUDY_VARIABLE} to search on this machine alone",
        ) from None


def _told(study: Any) -> list[dict[str, Any]]:
    """Records of the finished trials. One that a kill cut off is none, and is tried again."""
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    ended = [t for t in study.get_trials(deepcopy=False) if t.state.name in states and RECORD in t.user_attrs]
    told = []
    for number, trial in enumerate(ended):
        record, state = trial.user_attrs[RECORD], states[trial.state.name]
        value = float(np.mean(record["values"])) if state == "complete" else None
        told.append({"number": number, **record, "state": state, "value": value})
    return told


def best_of(told: list[dict[str, Any]], plain: Mapping[str, Any], why_plain: str = "") -> dict[str, Any]:
    """The best complete trial, the earliest of equals; the plain values when there is none."""
    complete = [record for record in told if record["state"] == "complete"]
    counts = {state: sum(r["state"] == state for r in told) for state in ("complete", "pruned", "failed")}
    if not complete:
        reason = why_plain or "no trial was completed"
        return {"parameters": dict(plain), "chosen_from": f"plain values: {reason}", "value": None, "trials": counts}
    best = max(complete, key=lambda record: (record["value"], -record["number"]))
    return {
        "parameters": best["parameters"],
        "chosen_from": f"trial {best['number']}" + (", the plain values" if best["number"] == 0 else ""),
        "value": best["value"],
        "trials": counts,
    }


@dataclass
class Memo:
    """Results of an unfinished search, so that a killed one goes on where it was.

    The sampler is replayed from its seed, and a fold that was judged before is looked up: the same trials come out.
    Once the search is finished the file is gone, so that a second run truly searches again.

    Args:
        path: one JSON line per result.
    """

    path: Path

    def __post_init__(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self._known: dict[str, float] = {}
        for line in lines:
            try:
                self._known |= json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the search was killed
                continue

    def __call__(self, objective: Objective) -> Objective:
        """The same objective, which looks a result up before it computes it."""

        def looked_up(parameters: Mapping[str, Any], fold: int) -> float:
            key = json.dumps([parameters, fold], sort_keys=True)
            if key not in self._known:
                self._known[key] = objective(parameters, fold)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({key: self._known[key]}) + "\n")
            return self._known[key]

        return looked_up

    def forget(self) -> None:
        """The search is finished."""
        self.path.unlink(missing_ok=True)


def average_precision(detector: str, rows: train.Rows, folds: list[Fold], *, seed: int) -> Objective:
    """What a search maximises: fit on a fold's rows, judge on all rows of its later days, at their true prevalence."""

    def objective(parameters: Mapping[str, Any], number: int) -> float:
        fold = folds[number]
        one = detectors.build(detector, parameters, features=rows.features, seed=seed)
        weight = fold.weight if one.needs_labels else None
        learned, y = fold.learned, fold.y
        if one.reads_sequences:  # which carry no weights: they are thinned by the detector itself
            order = rows.by_arrival(learned)
            learned, y = learned[order], y[order]
        one.fit(rows.x[learned], y, groups=rows.groups[learned], weight=weight)
        return float(average_precision_score(fold.truth, train.scored(one, rows, fold.judged)))

    return objective


def run(settings: TuneParams, detector: str) -> dict[str, Any]:
    """Write `data/tune/<detector>/{best.json,trials.json}`; returns what best.json says."""
    given = params.model(detector)
    ranges = given.get("search") or {}
    plain = {name: value for name, value in given.items() if name != "search"}
    check_ranges(detector, plain, ranges)
    trials = settings.trials.get(detector, 0) if ranges else 0
    told: list[dict[str, Any]] = []
    why_plain = "nothing to search"
    judged: list[dict[str, Any]] = []
    if trials:
        told, why_plain, judged = _searched(settings, detector, plain, ranges, trials)
    best = {"detector": detector, "objective": OBJECTIVE, "folds": judged, **best_of(told, plain, why_plain)}
    tables.write_json(told, f"tune/{detector}", "trials")
    tables.write_json(best, f"tune/{detector}", "best")
    return best


def _searched(
    settings: TuneParams, detector: str, plain: dict[str, Any], ranges: dict[str, Any], trials: int
) -> tuple[list[dict[str, Any]], str, list[dict[str, Any]]]:
    calendar, training = params.load(SplitParams), params.load(TrainParams)
    labels = schemas.checked(tables.read_table("validate", "labels"), schemas.LABELS)
    rows = train.read_rows(detector, plain, training.exclude_features)
    rows = rows.only(rows.between(calendar.train_start, calendar.fit_end))
    asked = windows(calendar, folds=settings.folds, fold_days=settings.fold_days)
    made = [
        (window, prepared(rows, labels, window, calendar, max_rows=_room(settings, detector), seed=settings.seed))
        for window in asked
    ]
    folds = [fold for _, fold in made if fold is not None]
    judged = [_described(window, fold) for window, fold in made if fold is not None]
    if not folds:
        return [], "no fold has known anomalies to learn from and to judge by", judged
    key = _key([settings.seed, training.seed, plain, ranges, rows.features], folds, rows)
    memo = Memo(paths.project_root() / ".cache" / "tune" / f"{detector}-{key}.jsonl")
    objective = memo(average_precision(detector, rows, folds, seed=training.seed))
    url = os.environ.get(STUDY_VARIABLE, "").strip()
    shared = Study(url, f"{detector}-{key}") if url else None
    told = search(objective, plain, ranges, folds=len(folds), trials=trials, seed=settings.seed, shared=shared)
    memo.forget()
    return told, "", judged


def _room(settings: TuneParams, detector: str) -> int:
    # Thinning would tear sequences apart; a detector of sequences thins them itself.
    return np.iinfo(np.int64).max if detectors.kind_of(detector).reads_sequences else settings.max_rows


def _described(window: Window, fold: Fold) -> dict[str, Any]:
    return {
        "learns_from": f"{window.learns_from:%Y-%m-%d}",
        "learns_until": f"{window.learns_until:%Y-%m-%d}",
        "judged_from": f"{window.judged_from:%Y-%m-%d}",
        "judged_until": f"{window.judged_until:%Y-%m-%d}",
        "rows": len(fold.learned),
        "rows_stand_for": round(float(fold.weight.sum())),
        "known_anomalies": int(fold.y.sum()),
        "judged_rows": len(fold.truth),
        "judged_anomalies": int(fold.truth.sum()),
    }


def _key(given: list[Any], folds: list[Fold], rows: train.Rows) -> str:
    """Data, parameters and code of a search, as one hash: results of another search are never looked up."""
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    for path in sorted(Path(detectors.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for fold in folds:
        digest.update(rows.by_arrival(np.arange(len(rows.x))).tobytes())
        for array in (rows.x[fold.learned], rows.x[fold.judged], fold.y, fold.weight, fold.truth):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
