"""Forecast daily volumes, values and anomaly rates with intervals. The only module that imports statsforecast."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

from reperform import metrics
from reperform.errors import ReperformError, nearest
from reperform.metrics import Floats
from reperform.params import ForecastParams

BASELINE = "seasonal_naive"
MAX_INSTITUTIONS = 10
RATE_WEEKS = 8
CRPS_PROBABILITIES = tuple(round(step / 20, 2) for step in range(1, 20))


@dataclass(frozen=True)
class Series:
    """One value a day, without gaps.

    Args:
        name: `volume`, `volume:<institution>`, `value`, `alert_rate` or `anomaly_rate`.
        unit: what a value counts.
        first_day: day of the first value.
        y: values, shape (days,).
        exposure: rows behind each value, shape (days,), where the value is a share of rows; else None.
    """

    name: str
    unit: str
    first_day: date
    y: Floats
    exposure: Floats | None = None

    @property
    def last_day(self) -> date:
        """Day of the last value."""
        return self.first_day + timedelta(days=self.y.size - 1)

    def until(self, n: int) -> "Series":
        """The first n days."""
        exposure = None if self.exposure is None else self.exposure[:n]
        return Series(self.name, self.unit, self.first_day, self.y[:n], exposure)


@dataclass(frozen=True)
class Predicted:
    """A forecast: mean, shape (horizon,), and quantiles, shape (horizon, probabilities). Nothing is negative."""

    mean: Floats
    quantiles: Floats


Model = Callable[[Series, int, int, Floats], Predicted]


def daily_series(transactions: pl.DataFrame, alerts: pl.DataFrame, labels: pl.DataFrame) -> list[Series]:
    """The series that are forecast, each from its first to its last day (UTC), days without rows as zero.

    Args:
        transactions: with booked_at, entity_id, amount_base.
        alerts: booked_at, is_alert: the rows that the ensemble scored.
        labels: is_anomaly, confirmed_at.

    Returns:
        Total volume, volume per institution (the ten largest, if there is more than one), value, and the two rates.
        An anomaly counts on the day of its confirmation: that is what was known on the day, at every origin.
    """
    if not transactions.height:
        return []
    first, last = _span(transactions["booked_at"])
    volume = _per_day(transactions["booked_at"], first, last)
    result = [Series("volume", "transactions per day", first, volume)]
    entities = transactions["entity_id"].value_counts().sort(["count", "entity_id"], descending=[True, False])
    if entities.height > 1:
        for entity in entities["entity_id"].head(MAX_INSTITUTIONS).sort():
            booked = transactions.filter(pl.col("entity_id") == entity)["booked_at"]
            result.append(Series(f"volume:{entity}", "transactions per day", first, _per_day(booked, first, last)))
    value = _per_day(transactions["booked_at"], first, last, transactions["amount_base"])
    result.append(Series("value", "base currency per day", first, value))
    return [*result, *_rates(alerts, labels, Series("volume", "", first, volume))]


def seasonal_naive(series: Series, horizon: int, season: int, probabilities: Floats) -> Predicted:
    """The value of one season ago: the baseline that every model has to beat."""
    from statsforecast.models import SeasonalNaive  # noqa: PLC0415  # costs two seconds

    return _by_statsforecast(SeasonalNaive(season_length=season), series, horizon, probabilities)


def auto_ets(series: Series, horizon: int, season: int, probabilities: Floats) -> Predicted:
    """Exponential smoothing, its form chosen by the corrected information criterion (Hyndman et al., 2002)."""
    from statsforecast.models import AutoETS  # noqa: PLC0415  # costs two seconds

    return _by_statsforecast(AutoETS(season_length=season), series, horizon, probabilities)


def auto_theta(series: Series, horizon: int, season: int, probabilities: Floats) -> Predicted:
    """The best of four theta models (Fiorucci et al., 2016)."""
    from statsforecast.models import AutoTheta  # noqa: PLC0415  # costs two seconds

    return _by_statsforecast(AutoTheta(season_length=season), series, horizon, probabilities)


def negative_binomial(series: Series, horizon: int, season: int, probabilities: Floats) -> Predicted:
    """A constant rate over the last eight seasons; counts scatter around it as a negative binomial.

    The variance adds what the counts showed beyond Poisson, and how uncertain the rate itself is. How many rows each
    day ahead will have is the mean of the same weekday in those seasons.

    Raises:
        ReperformError: for a series that is not a share of rows.
    """
    from scipy.stats import nbinom, poisson  # noqa: PLC0415  # costs half a second

    if series.exposure is None:
        raise ReperformError(
            "The negative binomial forecasts shares of rows.",
            expected="a rate",
            got=series.name,
            where="params.yaml:forecast.models",
            fix="list it in forecast.rate_models",
        )
    rows = series.exposure[-RATE_WEEKS * season :]
    counts = np.rint(series.y[-RATE_WEEKS * season :] * rows)
    rate = (counts.sum() + 0.5) / max(rows.sum(), 1.0)
    expected = np.maximum(rate * rows, 1e-9)
    spread = max(1.0, float(np.sum(np.square(counts - expected) / expected)) / max(rows.size - 1, 1))
    ahead = np.maximum(_same_weekday_mean(rows, season, horizon), 1.0)
    mean = rate * ahead
    variance = spread * mean + np.square(mean) * spread / (counts.sum() + 0.5)
    size = np.square(mean) / np.maximum(variance - mean, 1e-9)
    drawn = np.where(
        (variance > mean * (1 + 1e-6))[:, None],
        nbinom.ppf(probabilities, size[:, None], (size / (size + mean))[:, None]),
        poisson.ppf(probabilities, mean[:, None]),
    )
    return Predicted(np.full(horizon, rate), drawn / ahead[:, None])


MODELS: dict[str, Model] = {
    "seasonal_naive": seasonal_naive,
    "auto_ets": auto_ets,
    "auto_theta": auto_theta,
    "negative_binomial": negative_binomial,
}


def probabilities_for(levels: Sequence[int]) -> Floats:
    """Quantile levels: nineteen even ones for the score, and both ends of every interval, in rising order."""
    ends = [round((100 + sign * level) / 200, 4) for level in levels for sign in (-1, 1)]
    return np.array(sorted({*CRPS_PROBABILITIES, *ends}))


def origins(n_days: int, horizon: int, wanted: int, season: int) -> list[int]:
    """Training lengths in days of the rolling origins, oldest first: the last ones that leave two seasons to learn."""
    lengths = [n_days - horizon * back for back in range(wanted, 0, -1)]
    return [length for length in lengths if length > 2 * season]


def forecast_frame(series: Series, model: str, settings: ForecastParams) -> pl.DataFrame:
    """Forecasts of one model from every rolling origin, and from the last day on.

    Args:
        series: daily values.
        model: a name in `MODELS`.
        settings: horizon, origins, season, levels.

    Returns:
        series, model, origin, day, every quantile as `q_<probability>`, mean, actual (null in the future).
    """
    probabilities = probabilities_for(settings.levels)
    cuts = origins(series.y.size, settings.horizon_days, settings.origins, settings.season_days)
    parts = []
    for length in [*cuts, series.y.size]:
        train = series.until(length)
        predicted = MODELS[model](train, settings.horizon_days, settings.season_days, probabilities)
        days = [train.last_day + timedelta(days=step) for step in range(1, settings.horizon_days + 1)]
        actual = series.y[length : length + settings.horizon_days] if length in cuts else None
        columns = {f"q_{p}": predicted.quantiles[:, i] for i, p in enumerate(probabilities)}
        parts.append(
            pl.DataFrame(
                {"day": days, **columns, "mean": predicted.mean},
                schema={"day": pl.Date, **dict.fromkeys(columns, pl.Float64), "mean": pl.Float64},
            ).select(
                pl.lit(series.name).alias("series"),
                pl.lit(model).alias("model"),
                pl.lit(train.last_day).alias("origin"),
                pl.all(),
                pl.Series("actual", actual if actual is not None else [None] * len(days), dtype=pl.Float64),
            )
        )
    return pl.concat(parts)


def scored(frame: pl.DataFrame, series: Series, settings: ForecastParams) -> dict[str, Any]:
    """Errors, score and coverage of one model's forecasts over all rolling origins.

    Args:
        frame: from `forecast_frame`.
        series: the values that it was made from.
        settings: season and levels.

    Returns:
        mase, rmsse, crps, interval_score_<level>, coverage_<level> with its binomial interval, n (days compared).
    """
    past = frame.filter(pl.col("actual").is_not_null())
    actual = past["actual"].to_numpy()
    quantiles = past.select(f"q_{p}" for p in CRPS_PROBABILITIES).to_numpy()
    result: dict[str, Any] = {"crps": _mean(metrics.crps(actual, quantiles, np.array(CRPS_PROBABILITIES)))}
    result |= {name: _scaled(past, series, settings, measure) for name, measure in _SCALED.items()}
    for level in settings.levels:
        low, high = (past[name].to_numpy() for name in _interval_columns(level))
        result[f"interval_score_{level}"] = _mean(metrics.interval_score(actual, low, high, level / 100))
        result[f"coverage_{level}"] = _coverage((actual >= low) & (actual <= high))
    return result | {"n": past.height}


def diebold_mariano(loss: Floats, baseline: Floats, horizon: int) -> float | None:
    """Two-sided p-value that two forecasts lose alike, robust to errors that go together within a horizon.

    Args:
        loss: per day, in order of time, shape (n,).
        baseline: the same for the other forecast.
        horizon: days ahead; autocovariances up to horizon - 1 count, with falling (Bartlett) weights.

    Returns:
        None where the difference never varies.

    Source: Diebold & Mariano (1995); small-sample factor of Harvey, Leybourne & Newbold (1997).
    """
    difference = loss - baseline
    n = difference.size
    lags = min(horizon - 1, n - 1)
    centred = difference - difference.mean() if n else difference
    covariances = [float(centred[lag:] @ centred[: n - lag]) / n for lag in range(lags + 1)] if n else [0.0]
    variance = covariances[0] + 2 * sum((1 - lag / (lags + 1)) * c for lag, c in enumerate(covariances) if lag)
    if variance <= 0:
        return None
    factor = max((n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n, 0)
    statistic = float(difference.mean()) / math.sqrt(variance / n) * math.sqrt(factor)
    return 2 * (1 - NormalDist().cdf(abs(statistic)))


def compared(frames: dict[str, pl.DataFrame], series: Series, settings: ForecastParams) -> dict[str, Any]:
    """Every model's figures beside the baseline's, and which one is best by its score, be it the baseline."""
    results = {name: scored(frame, series, settings) for name, frame in frames.items()}
    base = results.get(BASELINE, {}).get("crps")
    for name, result in results.items():
        skill = None if not base or result["crps"] is None else 1 - result["crps"] / base
        result["skill"] = skill
        result["skill_p_value"] = None
        if name != BASELINE and skill is not None:
            result["skill_p_value"] = diebold_mariano(
                _losses(frames[name]), _losses(frames[BASELINE]), settings.horizon_days
            )
    ranked = sorted((r["crps"], name) for name, r in results.items() if r["crps"] is not None)
    # Where nothing could be compared, the baseline speaks for the series.
    best = ranked[0][1] if ranked else BASELINE
    return {"models": results, "best": best, "beats_baseline": bool(ranked) and ranked[0][0] < (base or 0)}


def surprises(frame: pl.DataFrame, level: int) -> list[dict[str, Any]]:
    """Days that lay outside the interval of the forecast made before them."""
    low, high = _interval_columns(level)
    outside = frame.filter((pl.col("actual") < pl.col(low)) | (pl.col("actual") > pl.col(high)))
    return [
        {"day": str(row["day"]), "actual": row["actual"], "low": row[low], "high": row[high]}
        for row in outside.sort("day").to_dicts()
    ]


def forecast_all(every: Sequence[Series], settings: ForecastParams) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Forecast every series with every model that suits it.

    Returns:
        The forecasts (series, model, origin, day, low_<level>, mean, high_<level>, actual), and a document of figures
        per series; a series that is too short says so in `reason` and has no forecast.
    """
    frames: list[pl.DataFrame] = []
    document: dict[str, Any] = {}
    for series in every:
        summary = _described(series, settings)
        document[series.name] = summary
        if summary["reason"]:
            continue
        of_series = {name: forecast_frame(series, name, settings) for name in _models_for(series, settings)}
        summary |= compared(of_series, series, settings)
        summary["surprises"] = surprises(of_series[summary["best"]], max(settings.levels))
        frames += of_series.values()
        document[series.name] = summary
    table = pl.concat(frames) if frames else empty_frame(settings)
    return _published(table, settings), document


def leaderboard(document: dict[str, Any], levels: Sequence[int]) -> list[dict[str, Any]]:
    """One record for each series and model, for tables."""
    return [
        {
            "series": name,
            "model": model,
            "is_best": model == summary["best"] and result["n"] > 0,
            **{key: result[key] for key in ("mase", "rmsse", "crps", "skill", "skill_p_value")},
            **{f"coverage_{level}": result[f"coverage_{level}"]["estimate"] for level in levels},
            "n": result["n"],
        }
        for name, summary in document.items()
        for model, result in summary.get("models", {}).items()
    ]


def empty_frame(settings: ForecastParams) -> pl.DataFrame:
    """A table of forecasts without rows."""
    quantiles = [f"q_{p}" for p in probabilities_for(settings.levels)]
    return pl.DataFrame(
        schema={
            "series": pl.String,
            "model": pl.String,
            "origin": pl.Date,
            "day": pl.Date,
            **dict.fromkeys([*quantiles, "mean", "actual"], pl.Float64),
        }
    )


def _models_for(series: Series, settings: ForecastParams) -> list[str]:
    names = settings.models if series.exposure is None else settings.rate_models
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise ReperformError(
            f"No forecast model {unknown[0]!r}.",
            expected=f"one of {', '.join(MODELS)}",
            got=unknown[0],
            where="params.yaml:forecast",
            fix=nearest(unknown[0], MODELS),
        )
    return list(dict.fromkeys([BASELINE, *names]))


def _described(series: Series, settings: ForecastParams) -> dict[str, Any]:
    n_origins = len(origins(series.y.size, settings.horizon_days, settings.origins, settings.season_days))
    too_short = series.y.size <= 2 * settings.season_days
    return {
        "unit": series.unit,
        "first_day": str(series.first_day),
        "last_day": str(series.last_day),
        "n_days": series.y.size,
        "origins": n_origins,
        "origins_wanted": settings.origins,
        "reason": f"{series.y.size} days are fewer than two seasons and a day" if too_short else None,
    }


def _published(frame: pl.DataFrame, settings: ForecastParams) -> pl.DataFrame:
    ends = {level: _interval_columns(level) for level in sorted(settings.levels, reverse=True)}
    return frame.select(
        "series",
        "model",
        "origin",
        "day",
        *[pl.col(low).alias(f"low_{level}") for level, (low, _) in ends.items()],
        "mean",
        *[pl.col(high).alias(f"high_{level}") for level, (_, high) in reversed(ends.items())],
        "actual",
    )


def _interval_columns(level: int) -> tuple[str, str]:
    return f"q_{round((100 - level) / 200, 4)}", f"q_{round((100 + level) / 200, 4)}"


def _by_statsforecast(model: Any, series: Series, horizon: int, probabilities: Floats) -> Predicted:
    levels = sorted({round(abs(200 * p - 100)) for p in probabilities} - {0})
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # a constant series has no autocorrelation; it is still forecast
        got = model.forecast(y=series.y, h=horizon, level=levels)
    mean = np.maximum(np.asarray(got["mean"], dtype=np.float64), 0)
    columns = [
        got["mean"] if round(200 * p) == 100 else got[f"{'lo' if p < 0.5 else 'hi'}-{round(abs(200 * p - 100))}"]  # noqa: PLR2004  # the median
        for p in probabilities
    ]
    # A theta model draws its intervals: neighbouring quantiles can cross by chance.
    return Predicted(mean, np.maximum(np.sort(np.column_stack(columns).astype(np.float64), axis=1), 0))


def _same_weekday_mean(rows: Floats, season: int, horizon: int) -> Floats:
    whole = rows[rows.size % season :].reshape(-1, season) if rows.size >= season else rows[None, :]
    return np.resize(whole.mean(axis=0), horizon)


def _span(when: pl.Series) -> tuple[date, date]:
    first: Any = when.dt.date().min()
    last: Any = when.dt.date().max()
    return first, last


def _per_day(when: pl.Series, first: date, last: date, weight: pl.Series | None = None) -> Floats:
    """Rows, or the sum of a weight, on every day from first to last; rows of other days are left out."""
    day = (when.dt.date() - first).dt.total_days().to_numpy().astype(np.int64)
    n_days = (last - first).days + 1
    inside = (day >= 0) & (day < n_days)
    times = None if weight is None else weight.to_numpy()[inside]
    return np.bincount(day[inside], weights=times, minlength=n_days).astype(np.float64)


def _rates(alerts: pl.DataFrame, labels: pl.DataFrame, volume: Series) -> list[Series]:
    result = []
    if alerts.height:
        first, last = _span(alerts["booked_at"])
        rows = _per_day(alerts["booked_at"], first, last)
        flagged = _per_day(alerts.filter("is_alert")["booked_at"], first, last)
        result.append(Series("alert_rate", "alerts per transaction", first, _shares(flagged, rows), rows))
    confirmed = labels.filter("is_anomaly")["confirmed_at"]
    inside = confirmed.filter(confirmed.dt.date().is_between(volume.first_day, volume.last_day))
    if inside.len():
        # Before the first confirmation nobody was looking yet.
        first, _ = _span(inside)
        rows = volume.y[(first - volume.first_day).days :]
        share = _shares(_per_day(inside, first, volume.last_day), rows)
        result.append(Series("anomaly_rate", "confirmed anomalies per transaction", first, share, rows))
    return result


def _shares(flagged: Floats, rows: Floats) -> Floats:
    result: Floats = np.divide(flagged, rows, out=np.zeros_like(rows), where=rows > 0)
    return result


def _scaled(past: pl.DataFrame, series: Series, settings: ForecastParams, measure: Any) -> float | None:
    values = []
    for origin in past["origin"].unique(maintain_order=True):
        part = past.filter(pl.col("origin") == origin)
        train = series.y[: (origin - series.first_day).days + 1]
        values.append(measure(part["actual"].to_numpy(), part["mean"].to_numpy(), train, settings.season_days))
    return _mean(np.array(values))


_SCALED = {"mase": metrics.mase, "rmsse": metrics.rmsse}


def _losses(frame: pl.DataFrame) -> Floats:
    past = frame.filter(pl.col("actual").is_not_null()).sort("origin", "day")
    quantiles = past.select(f"q_{p}" for p in CRPS_PROBABILITIES).to_numpy()
    return metrics.crps(past["actual"].to_numpy(), quantiles, np.array(CRPS_PROBABILITIES))


def _coverage(inside: metrics.Bools) -> dict[str, Any]:
    if not inside.size:
        return metrics.Estimate(None, None, None, 0).as_dict()
    low, high = metrics.wilson(int(inside.sum()), inside.size)
    return metrics.Estimate(float(inside.mean()), low, high, inside.size).as_dict()


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size and np.isfinite(values).all() else None
