"""Two versions side by side: metrics with paired intervals, alerts gained and lost by typology."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from reperform import metrics, params, paths, tracking
from reperform.errors import ReperformError
from reperform.markup import pipe_table
from reperform.metrics import Bools, Estimate, Floats, Ints
from reperform.params import EvaluateParams, StudiesParams

WORKSPACE = "workspace"
OUTCOMES = tracking.OUTCOMES
COLUMNS = ("transaction_id", "booked_at", "amount_base", "score", "is_alert", "is_anomaly", "typology")
NO_TYPOLOGY = "anomaly"


@dataclass(frozen=True)
class Side:
    """One version's decisions about the test.

    Args:
        name: as asked for.
        told: where they come from, in words.
        outcomes: `data/evaluate/outcomes.parquet` of that version.
        version: in the registry, where it comes from there.
    """

    name: str
    told: str
    outcomes: pl.DataFrame
    version: tracking.Version | None = None


@dataclass(frozen=True)
class Paired:
    """The rows that both versions scored and whose truth is known, in order of time.

    Args:
        y: anomalies, shape (n,).
        day: day number, shape (n,).
        amount: in base currency, shape (n,).
        typology: of the anomalies, null for the others.
        scores: of both, each of shape (n,).
        alerts: of both, each of shape (n,).
        weights: how often each day is drawn in each round: the same for both.
        level: of the intervals.
        only_before: rows that only the first scored.
        only_after: rows that only the second scored.
        other_truth: rows of which the two versions hold different truths; the second's is taken.
    """

    y: Bools
    day: Ints
    amount: Floats
    typology: pl.Series
    scores: tuple[Floats, Floats]
    alerts: tuple[Bools, Bools]
    weights: Floats
    level: float
    only_before: int
    only_after: int
    other_truth: int

    def per_day(self, values: Any) -> Floats:
        """Sum of a value on each day, shape (days,)."""
        times = np.asarray(values, dtype=np.float64)
        return np.bincount(self.day, weights=times, minlength=self.weights.shape[1]).astype(np.float64)


def side(name: str) -> Side:
    """A version by its name: a folder, `workspace`, an MLflow version or alias, or a git revision.

    Raises:
        ReperformError: when the name means nothing, or what it names is not here any more.
    """
    root = paths.project_root()
    if name == WORKSPACE:
        return Side(name, f"{OUTCOMES} as it is now", _read(root / OUTCOMES))
    folder = Path(name)
    for path in (folder / "outcomes.parquet", folder / "evaluate" / "outcomes.parquet", folder / OUTCOMES):
        if path.is_file():
            return Side(name, str(path), _read(path))
    if name in (tracking.FIRST_ALIAS, tracking.NEXT_ALIAS) or name.removeprefix("v").isdigit():
        version = tracking.version(name)
        return Side(name, f"version {version.number} of {tracking.MODEL}", _read(_by_tag(version)), version)
    return Side(name, f"git revision {name}", _read(_by_revision(name, root)))


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise ReperformError(
            "There are no outcomes to compare.",
            expected=OUTCOMES,
            got="no such file",
            where=str(path),
            fix="run `make repro`",
        )
    return pl.read_parquet(path, columns=list(COLUMNS))


def _by_tag(version: tracking.Version) -> Path:
    md5 = version.tags.get(tracking.OUTCOMES_TAG)
    if md5 is None:
        raise ReperformError(
            f"Version {version.number} does not say which outcomes it had.",
            expected=f"a tag {tracking.OUTCOMES_TAG}",
            got="none: it was recorded by an earlier release",
            fix="name the git revision of that run instead, or check it out and run `dvc repro evaluate`",
        )
    return _cached(md5, f"version {version.number}")


def _by_revision(name: str, root: Path) -> Path:
    got = subprocess.run(  # noqa: S603  # nothing after --end-of-options is taken for an option
        ["git", "show", "--end-of-options", f"{name}:dvc.lock"],  # noqa: S607  # the user's own git
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if got.returncode:
        raise ReperformError(
            f"There is no version {name!r}.",
            expected=f"{WORKSPACE}, a folder with outcomes.parquet, champion, challenger, the number of a version, "
            "or a git revision with a dvc.lock",
            got=name,
            where=str(root),
            fix="`make mlflow` shows the versions, `git log` the revisions",
        )
    stages = (yaml.safe_load(got.stdout) or {}).get("stages", {})
    outs = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}
    if not outs.get(OUTCOMES):
        raise ReperformError(
            f"The run at {name} has no outcomes.", expected=OUTCOMES, got="none in its dvc.lock", where="dvc.lock"
        )
    return _cached(str(outs[OUTCOMES]), f"git revision {name}")


def _cached(md5: str, whose: str) -> Path:
    """The file of that content, from the workspace or DVC's cache."""
    workspace = paths.project_root() / OUTCOMES
    if workspace.is_file() and tracking.file_digest(workspace, "md5") == md5:
        return workspace
    path = tracking.cached(md5)
    if path is not None:
        return path
    raise ReperformError(
        f"The outcomes of {whose} are not here any more.",
        expected=f"a file with MD5 {md5} in DVC's cache",
        got="none",
        where=str(tracking.cache_folder() / "files" / "md5"),
        fix="`dvc fetch --all-commits` brings it back from a remote; else check that revision out and run `dvc repro`",
    )


def paired(before: pl.DataFrame, after: pl.DataFrame, *, rounds: int, level: float, seed: int) -> Paired:
    """Rows that both versions scored, ready to be compared on the same days.

    Args:
        before: outcomes of the first version.
        after: outcomes of the second.
        rounds: of the bootstrap.
        level: of the intervals.
        seed: of the draws.

    Raises:
        ReperformError: when they have no row of known truth in common.
    """
    names = ("score", "is_alert", "is_anomaly")
    other = before.select("transaction_id", *(pl.col(name).alias(f"{name}_before") for name in names))
    both = after.sort("booked_at", "transaction_id").join(
        other, on="transaction_id", how="inner", maintain_order="left"
    )
    changed = (both["is_anomaly"] != both["is_anomaly_before"]).fill_null(value=False)
    known = both.filter(pl.col("is_anomaly").is_not_null())
    if not known.height:
        raise ReperformError(
            "The two versions have no test row of known truth in common.",
            expected="the same test period",
            got=f"{before.height} and {after.height} rows, {both.height} in common",
            fix="run both on the same test: see split.test_from and split.test_days",
        )
    day = known["booked_at"].dt.date().rank("dense").cast(pl.Int64).to_numpy() - 1
    return Paired(
        y=known["is_anomaly"].to_numpy().astype(np.bool_),
        day=day,
        amount=known["amount_base"].to_numpy(),
        typology=known["typology"],
        scores=(known["score_before"].to_numpy(), known["score"].to_numpy()),
        alerts=(
            known["is_alert_before"].fill_null(value=False).to_numpy().astype(np.bool_),
            known["is_alert"].fill_null(value=False).to_numpy().astype(np.bool_),
        ),
        weights=metrics.bootstrap_weights(int(day.max()) + 1, rounds, seed),
        level=level,
        only_before=before.height - both.height,
        only_after=after.height - both.height,
        other_truth=int(changed.sum()),
    )


@dataclass(frozen=True)
class Difference:
    """A metric of both versions, and the second's minus the first's on the same days in every bootstrap round.

    Args:
        name: of the metric.
        before: the first version's.
        after: the second's.
        change: their difference with its paired interval.
        share_above: of the rounds in which the second's is higher.
    """

    name: str
    before: float | None
    after: float | None
    change: Estimate
    share_above: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        return {
            "metric": self.name,
            "before": self.before,
            "after": self.after,
            "change": self.change.estimate,
            "low": self.change.low,
            "high": self.change.high,
            "share_above": self.share_above,
        }


def differences(rows: Paired, alert_shares: list[float]) -> list[Difference]:
    """Metrics of both versions and their differences.

    Returns:
        average_precision, roc_auc, recall_at_alert_share_<s>, and of the versions' own decisions alerts_per_day,
        precision, recall, value_stopped (share of the anomalies' amount that was flagged).
    """
    ranked: dict[str, metrics.Metric] = {
        "average_precision": metrics.average_precision,
        "roc_auc": metrics.roc_auc,
        **{f"recall_at_alert_share_{share:g}": metrics.recall_at_alert_share(share) for share in alert_shares},
    }
    rankings = [metrics.ranking(rows.y, score, rows.day) for score in rows.scores]
    found = []
    for name, metric in ranked.items():
        points = [float(metric(one.totals)[0]) for one in rankings]
        rounds = [metrics.bootstrapped(metric, one, rows.weights) for one in rankings]
        found.append(_difference(rows, name, points, rounds))
    for name, (top, bottom) in _decisions(rows).items():
        sums = [(rows.per_day(top(alert)), rows.per_day(bottom(alert))) for alert in rows.alerts]
        points = [float(metrics.ratio(over.sum(), under.sum())) for over, under in sums]
        rounds = [metrics.ratio(rows.weights @ over, rows.weights @ under) for over, under in sums]
        found.append(_difference(rows, name, points, rounds))
    return found


Rows = Callable[[Bools], Any]


def _decisions(rows: Paired) -> dict[str, tuple[Rows, Rows]]:
    first_of_day = np.diff(rows.day, prepend=-1) != 0
    return {
        "alerts_per_day": (lambda alert: alert, lambda _: first_of_day),
        "precision": (lambda alert: alert & rows.y, lambda alert: alert),
        "recall": (lambda alert: alert & rows.y, lambda _: rows.y),
        "value_stopped": (lambda alert: rows.amount * (alert & rows.y), lambda _: rows.amount * rows.y),
    }


def _difference(rows: Paired, name: str, points: list[float], rounds: list[Floats]) -> Difference:
    gains = rounds[1] - rounds[0]
    usable = gains[np.isfinite(gains)]
    before, after = (point if np.isfinite(point) else None for point in points)
    return Difference(
        name,
        before,
        after,
        metrics.estimate(points[1] - points[0], gains, rows.level, rows.y.size),
        float((usable > 0).mean()) if usable.size else None,
    )


def by_typology(rows: Paired, seed: int) -> list[dict[str, Any]]:
    """Each typology's recall in both versions, and which alerts were gained and lost.

    Recall is taken at the same number of alerts, the first version's, so that a version cannot win by raising more.

    Returns:
        Per typology n, recall_before, recall_after, change with low and high; gained and lost (anomalies that the
        version's own decision newly flags, or no longer). The last record counts false alarms.
    """
    budget = max(int(rows.alerts[0].sum()), 1)
    tops = [metrics.top_rows(score, budget, seed) for score in rows.scores]
    named = rows.typology.fill_null(NO_TYPOLOGY)
    gained, lost = ~rows.alerts[0] & rows.alerts[1], rows.alerts[0] & ~rows.alerts[1]
    found = []
    for name in named.filter(pl.Series(rows.y)).unique().sort():
        mine = (named == name).to_numpy() & rows.y
        n = rows.per_day(mine)
        sums = [rows.per_day(top & mine) for top in tops]
        gains = metrics.ratio(rows.weights @ (sums[1] - sums[0]), rows.weights @ n)
        point = float(metrics.ratio((sums[1] - sums[0]).sum(), n.sum()))
        change = metrics.estimate(point, gains, rows.level, int(mine.sum()))
        found.append(
            {
                "typology": name,
                "n": int(mine.sum()),
                "recall_before": float(sums[0].sum() / n.sum()),
                "recall_after": float(sums[1].sum() / n.sum()),
                "change": change.estimate,
                "low": change.low,
                "high": change.high,
                "gained": int((gained & mine).sum()),
                "lost": int((lost & mine).sum()),
            }
        )
    quiet = dict.fromkeys(("recall_before", "recall_after", "change", "low", "high"))
    false = {"gained": int((gained & ~rows.y).sum()), "lost": int((lost & ~rows.y).sum())}
    return [*found, {"typology": "no anomaly", "n": int((~rows.y).sum()), **quiet, **false}]


@dataclass(frozen=True)
class Comparison:
    """All that `compare` shows and `promote` judges.

    Args:
        before: the first version.
        after: the second.
        rows: what they were compared on.
        metrics: their differences.
        typologies: see `by_typology`.
    """

    before: Side
    after: Side
    rows: Paired
    metrics: list[Difference]
    typologies: list[dict[str, Any]]

    def metric(self, name: str) -> Difference:
        """The difference in one metric."""
        return next(one for one in self.metrics if one.name == name)


def compared(before: Side, after: Side) -> Comparison:
    """Two versions, by the parameters of the project."""
    evaluation, studies = params.load(EvaluateParams), params.load(StudiesParams)
    rows = paired(
        before.outcomes,
        after.outcomes,
        rounds=studies.promotion.bootstrap_rounds,
        level=evaluation.interval,
        seed=studies.seed,
    )
    found = differences(rows, list(evaluation.alert_shares))
    return Comparison(before, after, rows, found, by_typology(rows, studies.seed))


def lines(found: Comparison) -> list[str]:
    """The comparison as two short tables."""
    rows = found.rows
    common = (
        f"{rows.y.size:,} test rows in common, {int(rows.y.sum()):,} anomalies, {rows.weights.shape[1]} days "
        f"(only before: {rows.only_before:,}; only after: {rows.only_after:,}; truth differs: {rows.other_truth:,})"
    )
    head = [f"before: {found.before.told}", f"after:  {found.after.told}", common]
    shown = [
        {
            "metric": one.name.replace("_", " "),
            "before": one.before,
            "after": one.after,
            "change": _with_interval(one.as_dict()),
            "share_above": one.share_above,
        }
        for one in found.metrics
    ]
    names = {"metric": "metric", "before": "before", "after": "after", "change": f"change ({rows.level:.0%})"}
    names |= {"share_above": "rounds above"}
    kinds = [
        dict(one) | {"change": _with_interval(one), "typology": one["typology"].replace("_", " ")}
        for one in found.typologies
    ]
    columns = {"typology": "typology", "n": "n", "recall_before": "recall before", "recall_after": "recall after"}
    columns |= {"change": "change", "gained": "alerts gained", "lost": "alerts lost"}
    same_effort = (
        f"recall at the {int(rows.alerts[0].sum()):,} alerts that the first raises; gained and lost by own decision"
    )
    return [*head, "", pipe_table(shown, names), "", same_effort, "", pipe_table(kinds, columns)]


def _with_interval(one: Mapping[str, Any]) -> str | None:
    if one["change"] is None:
        return None
    interval = "" if one["low"] is None else f" ({one['low']:+.4f} to {one['high']:+.4f})"
    return f"{one['change']:+.4f}{interval}"


def main(before: str, after: str) -> int:
    """Print two versions side by side."""
    print("\n".join(lines(compared(side(before), side(after)))))
    return 0
