"""KPI 14, predictive risk: the probability that an account shows a confirmed anomaly in the days ahead.

A snapshot is an account at a midnight (UTC), described by what was known then: the KPIs of its last known transaction,
how long ago that was, and its confirmed anomalies. The model is a logistic regression on ranks, calibrated on later
snapshots than it was fitted on. A short horizon is fitted, because a long one and the time that labels take leave too
little to learn from; longer ones follow from a constant hazard, so that risk never falls with the horizon. Whether
that holds is measured on the long horizon.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform import metrics, schemas
from reperform.metrics import Bools, Floats
from reperform.params import ForecastParams

DELAY_PROBABILITY = 0.95
HISTORY_DAYS = 28
STEP_DAYS = 7
EXPOSURE_DAYS = 30
RANKS = 64
SHRINKAGE = 0.1
MIN_ANOMALIES = 20
ISOTONIC_FROM = 1000
TOP = 20
OWN_COLUMNS = ("days_since_last", "confirmed_n", "days_since_confirmed")


@dataclass(frozen=True)
class RiskModel:
    """A fitted and calibrated model.

    Args:
        names: columns that it reads, in order.
        edges: training quantiles per column.
        coefficients: shape (columns,).
        intercept: of the log odds.
        calibrate: from log odds to a probability.
        facts: what it was fitted and calibrated on.
    """

    names: Sequence[str]
    edges: Sequence[Floats]
    coefficients: Floats
    intercept: float
    calibrate: Any
    facts: Mapping[str, Any]

    def probability(self, rows: pl.DataFrame) -> Floats:
        """Probability of an anomaly within the fitted horizon, shape (rows,)."""
        margin = _ranked(rows, self.names, self.edges) @ self.coefficients + self.intercept
        return np.asarray(self.calibrate(margin))


def midnights(first: datetime, last: datetime) -> list[datetime]:
    """Weekly moments that end with `last`, the earliest one four weeks after `first`."""
    result = []
    moment = last
    while moment >= first + timedelta(days=HISTORY_DAYS):
        result.append(moment)
        moment -= timedelta(days=STEP_DAYS)
    return result[::-1]


def snapshots(features: pl.DataFrame, anomalies: pl.DataFrame, at: Sequence[datetime]) -> pl.DataFrame:
    """Every account at every moment, by what was known strictly before it; accounts without a transaction are absent.

    Args:
        features: account_id, known_at, and any number of numeric columns; one row per transaction.
        anomalies: account_id, booked_at, confirmed_at of confirmed anomalies.
        at: moments.

    Returns:
        account_id, at, the columns of the last known transaction, days_since_last, confirmed_n, days_since_confirmed.
    """
    rows = features.sort("known_at", maintain_order=True)
    accounts = rows.select("account_id").unique(maintain_order=True).sort("account_id")
    moments = pl.DataFrame({"at": list(at)}, schema={"at": schemas.UTC_US}).sort("at")
    grid = moments.join(accounts, how="cross", maintain_order="left_right")
    last = rows.select("account_id", "known_at").with_row_index("row")
    found = _as_of(grid, last, "known_at").drop_nulls("row")
    values = rows[found["row"].to_numpy()].drop("account_id", "known_at")
    confirmed = anomalies.sort("confirmed_at", "booked_at").select(
        "account_id", "confirmed_at", confirmed_n=pl.int_range(1, pl.len() + 1).over("account_id")
    )
    history = _as_of(found.select("account_id", "at"), confirmed, "confirmed_at")
    own = pl.DataFrame(
        {
            "days_since_last": _days(found["at"] - found["known_at"]),
            "confirmed_n": history["confirmed_n"].fill_null(0).cast(pl.Float64),
            "days_since_confirmed": _days(found["at"] - history["confirmed_at"]),
        }
    )
    return pl.concat([found.select("account_id", "at"), values, own], how="horizontal")


def outcomes(rows: pl.DataFrame, anomalies: pl.DataFrame, horizon_days: float, known_by: datetime) -> Bools:
    """Whether an account has an anomaly within the horizon after its snapshot, as known at one moment.

    Args:
        rows: account_id, at.
        anomalies: account_id, booked_at, confirmed_at.
        horizon_days: days ahead; the first moment is inside, the last one is not.
        known_by: anomalies confirmed at or after this moment are unknown.

    Returns:
        Shape (rows,).
    """
    known = anomalies.filter(pl.col("confirmed_at") < pl.lit(known_by, schemas.UTC_US)).sort("booked_at")
    numbered = rows.select("account_id", "at").with_row_index("row").sort("at", maintain_order=True)
    ahead = numbered.join_asof(
        known.select("account_id", "booked_at"),
        left_on="at",
        right_on="booked_at",
        by="account_id",
        strategy="forward",
        check_sortedness=False,
    ).sort("row")
    within = ahead["booked_at"] - ahead["at"] < timedelta(days=horizon_days)
    return within.fill_null(value=False).to_numpy().astype(np.bool_)


def label_delay_days(anomalies: pl.DataFrame, known_by: datetime) -> int:
    """The 95th percentile of the time from an anomaly to its label, in whole days, by labels known at that moment."""
    known = anomalies.filter(pl.col("confirmed_at") < pl.lit(known_by, schemas.UTC_US))
    days = _days(known["confirmed_at"] - known["booked_at"])
    value = days.quantile(DELAY_PROBABILITY, "higher")
    return 0 if value is None else math.ceil(value)


def fitted(
    features: pl.DataFrame, anomalies: pl.DataFrame, *, known_by: datetime, horizon_days: int
) -> RiskModel | str:
    """A model by what was known at one moment, or the reason why there is none.

    A snapshot is learned from only when its whole horizon, and the time that labels take, had passed by then. The last
    third of those snapshots calibrates; snapshots whose horizon reaches into it are left out of the fit.

    Args:
        features: as for `snapshots`.
        anomalies: as for `snapshots`.
        known_by: the moment.
        horizon_days: days ahead.
    """
    first: Any = features["known_at"].min()
    delay = label_delay_days(anomalies, known_by)
    moments = midnights(first, known_by - timedelta(days=horizon_days + delay))
    held_back = moments[len(moments) - max(len(moments) // 3, 1) :]
    learned = [moment for moment in moments if held_back and moment + timedelta(days=horizon_days) <= held_back[0]]
    if not learned:
        return "the data are too short for a horizon, its labels and a later window to calibrate on"
    known = anomalies.filter(pl.col("confirmed_at") < pl.lit(known_by, schemas.UTC_US))
    rows, later = (snapshots(features, known, some) for some in (learned, held_back))
    y, y_later = (outcomes(part, known, horizon_days, known_by) for part in (rows, later))
    if min(y.sum(), y_later.sum()) < MIN_ANOMALIES:
        return f"{int(y.sum())} and {int(y_later.sum())} accounts with an anomaly are too few to fit and calibrate on"
    facts = {
        "known_by": str(known_by.date()),
        "label_delay_days": delay,
        "maturity": maturity(len(moments), len(midnights(first, known_by))),
        "fit": {"snapshots": len(learned), "rows": rows.height, "anomalous": int(y.sum())},
        "calibration": {"snapshots": len(held_back), "rows": later.height, "anomalous": int(y_later.sum())},
    }
    return _fit(rows, y, later, y_later, facts)


def maturity(mature: int, snapshots: int) -> dict[str, Any]:
    """How many weekly snapshots there are, and which share of them is old enough to be learned from.

    What was booked lately and is not confirmed yet says nothing: those snapshots are waited for, not taken as normal.
    """
    return {"snapshots": snapshots, "mature": mature, "share": mature / snapshots if snapshots else None}


def over_horizon(probability: Floats, fitted_days: float, wanted_days: float) -> Floats:
    """The probability for another horizon when the hazard stays as it is: 1 - (1 - p)^(wanted / fitted)."""
    return np.asarray(-np.expm1(np.log1p(-np.minimum(probability, 1 - 1e-12)) * wanted_days / fitted_days))


def judged(y: Bools, probability: Floats, settings: ForecastParams) -> dict[str, Any]:
    """How well probabilities rank accounts and can be taken at their word; intervals from a bootstrap of accounts."""
    accounts = np.arange(y.size)
    weights = metrics.bootstrap_weights(max(y.size, 1), settings.bootstrap_rounds, settings.seed)
    ranked = metrics.ranking(y, probability, accounts)
    wanted = {
        "prevalence": metrics.prevalence,
        "average_precision": metrics.average_precision,
        "roc_auc": metrics.roc_auc,
    }
    found = {name: metrics.with_interval(m, ranked, weights, 0.95).as_dict() for name, m in wanted.items()}
    share = float(y.mean()) if y.size else 0.0
    skill = 1 - float(metrics.brier(y, probability).mean()) / (share * (1 - share)) if 0 < share < 1 else None
    error = metrics.calibration_error(y, probability, accounts, weights, level=0.95, bins=10)
    return found | {
        "brier_skill": skill,
        "calibration_error": error.as_dict(),
        "reliability": metrics.reliability(y, probability, bins=10),
    }


def account_risk(
    features: pl.DataFrame, anomalies: pl.DataFrame, transactions: pl.DataFrame, end: datetime, settings: ForecastParams
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The risk of every account at the end of the data, its course over the last weeks, and how good such risks were.

    A first model knows only what was known when the last horizon with mature labels began. It is judged on that
    horizon, and gives the course since then. A second one knows everything, and gives the risk from the end on.

    Args:
        features: account_id, known_at, numeric columns; one row per transaction.
        anomalies: account_id, booked_at, confirmed_at.
        transactions: account_id, known_at, booked_at, direction, amount_base: for the exposure.
        end: first midnight after the data.
        settings: horizons, seed.

    Returns:
        account_id, snapshot, model (`past` or `final`), horizon_days, probability, expected_loss; and a document.
    """
    horizon, fitted_days = settings.risk_horizon_days, settings.risk_fit_days
    if not features.height:
        return empty_risk(), {"reason": "no transactions"}
    origin = end - timedelta(days=horizon + label_delay_days(anomalies, end))
    models = {
        name: fitted(features, anomalies, known_by=moment, horizon_days=fitted_days)
        for name, moment in (("past", origin), ("final", end))
    }
    document: dict[str, Any] = {"horizon_days": horizon, "fitted_days": fitted_days, "models": {}, "judged": None}
    parts = [empty_risk()]
    for name, model in models.items():
        if isinstance(model, str):
            document["models"][name] = {"reason": model}
            continue
        document["models"][name] = {**model.facts, "reason": None}
        moments = [end] if name == "final" else _weekly(origin, end)
        known = anomalies.filter(pl.col("confirmed_at") < pl.lit(end, schemas.UTC_US))
        rows = snapshots(features, known, moments)
        probability = model.probability(rows)
        if name == "past":
            first = (rows["at"] == origin).to_numpy()
            y = outcomes(rows.filter(pl.Series(first)), known, horizon, end)
            about = {"snapshot": str(origin.date()), "n": int(y.size), "anomalous": int(y.sum())}
            ahead = over_horizon(probability[first], fitted_days, horizon)
            document["judged"] = about | judged(y, ahead, settings)
        parts.append(_published(rows, probability, transactions, name, settings))
    table = pl.concat(parts)
    reasons = [model for model in models.values() if isinstance(model, str)]
    return table, document | {"highest": _highest(table, horizon), "reason": "; ".join(dict.fromkeys(reasons)) or None}


def empty_risk() -> pl.DataFrame:
    """A table of risks without rows."""
    return pl.DataFrame(
        schema={
            "account_id": pl.String,
            "snapshot": pl.Date,
            "model": pl.String,
            "horizon_days": pl.Int64,
            "probability": pl.Float64,
            "expected_loss": pl.Float64,
        }
    )


def _as_of(left: pl.DataFrame, right: pl.DataFrame, key: str) -> pl.DataFrame:
    """The last row of `right` strictly before `at`, per account; nulls where there is none."""
    return left.join_asof(
        right,
        left_on="at",
        right_on=key,
        by="account_id",
        strategy="backward",
        allow_exact_matches=False,
        coalesce=False,
        check_sortedness=False,
    )


def _days(span: pl.Series) -> pl.Series:
    return span.dt.total_seconds() / 86_400


def _weekly(start: datetime, end: datetime) -> list[datetime]:
    weeks = (end - start).days // STEP_DAYS
    return [start + timedelta(days=STEP_DAYS * week) for week in range(weeks + 1)]


def _matrix(rows: pl.DataFrame, names: Sequence[str]) -> Floats:
    return rows.select(pl.col(name).cast(pl.Float64).fill_null(float("nan")) for name in names).to_numpy()


def _ranked(rows: pl.DataFrame, names: Sequence[str], edges: Sequence[Floats]) -> Floats:
    """Each value's share of training values below it, less a half; 0 where it is unknown."""
    values = _matrix(rows, names)
    columns = [
        np.where(np.isnan(column), 0.0, np.searchsorted(edge, column) / max(edge.size, 1) - 0.5)
        for column, edge in zip(values.T, edges, strict=True)
    ]
    return np.column_stack(columns)


def _fit(rows: pl.DataFrame, y: Bools, later: pl.DataFrame, y_later: Bools, facts: Mapping[str, Any]) -> RiskModel:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  # costs half a second

    names = [name for name in rows.columns if name not in ("account_id", "at")]
    edges = []
    for column in _matrix(rows, names).T:
        known = column[~np.isnan(column)]
        edges.append(np.quantile(known, np.arange(1, RANKS) / RANKS) if known.size else np.empty(0))
    model = LogisticRegression(C=SHRINKAGE, max_iter=500).fit(_ranked(rows, names, edges), y)
    coefficients, intercept = model.coef_[0], float(model.intercept_[0])
    margin = _ranked(later, names, edges) @ coefficients + intercept
    method, calibrate = _calibrated(margin, y_later)
    return RiskModel(names, edges, coefficients, intercept, calibrate, {**facts, "method": method})


def _calibrated(margin: Floats, y: Bools) -> tuple[str, Any]:
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415  # costs half a second
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    if y.sum() >= ISOTONIC_FROM:
        steps = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip").fit(margin, y)
        return "isotonic", steps.predict
    line = LogisticRegression(C=np.inf).fit(margin[:, None], y)
    return "sigmoid", lambda values: line.predict_proba(values[:, None])[:, 1]


def _published(
    rows: pl.DataFrame, probability: Floats, transactions: pl.DataFrame, model: str, settings: ForecastParams
) -> pl.DataFrame:
    base = rows.select("account_id", "at").with_columns(p=pl.Series(probability, dtype=pl.Float64))
    exposed = [_exposure(transactions, moment) for moment in base["at"].unique(maintain_order=True)]
    base = base.join(pl.concat(exposed), on=["account_id", "at"], how="left", maintain_order="left")
    parts = []
    for days in sorted(settings.risk_shown_days):
        shown = over_horizon(base["p"].to_numpy(), settings.risk_fit_days, days)
        parts.append(
            base.select(
                "account_id",
                pl.col("at").dt.date().alias("snapshot"),
                pl.lit(model).alias("model"),
                pl.lit(days, pl.Int64).alias("horizon_days"),
                pl.Series("probability", shown, dtype=pl.Float64),
                expected_loss=pl.Series(shown, dtype=pl.Float64) * pl.col("exposure").fill_null(0.0),
            )
        )
    return pl.concat(parts)


def _exposure(transactions: pl.DataFrame, at: datetime) -> pl.DataFrame:
    """What each account paid out in the thirty days before a moment, as known then: what there is to lose."""
    moment = pl.lit(at, schemas.UTC_US)
    recent = transactions.filter(
        (pl.col("direction") == "out")
        & (pl.col("known_at") < moment)
        & (pl.col("booked_at") >= moment - timedelta(days=EXPOSURE_DAYS))
    )
    return (
        recent.sort("account_id", maintain_order=True)
        .group_by("account_id", maintain_order=True)
        .agg(pl.col("amount_base").sum().alias("exposure"))
        .with_columns(at=moment)
    )


def _highest(table: pl.DataFrame, horizon: int) -> list[dict[str, Any]]:
    final = table.filter((pl.col("model") == "final") & (pl.col("horizon_days") == horizon))
    ranked = final.sort(["probability", "account_id"], descending=[True, False]).head(TOP)
    return ranked.select("account_id", "probability", "expected_loss").to_dicts()
