"""KPI 6: places that the account could not or would usually not be at."""

from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, Mask, extreme_times, times_seen
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import FOREVER_US, HOUR_US, length_us, where_enough

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG
KM_PER_DEGREE = EARTH_RADIUS_KM * np.pi / 180
LEAST_GAP_US = 60_000_000  # clocks of two terminals differ by less
ROUNDING = 1e-9  # degrees
GRID = 10_000  # ten thousandths of a degree, 11 m: sums of these are exact


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class HighRisk:
    """A country on a list, for a time, and when that was known.

    A listing counts from the day on which it was in force and published; an end counts once it is published, too.

    Args:
        country: ISO 3166 code.
        effective_from: first day.
        citation: the list.
        effective_to: last day, if it has ended.
        published: day on which the listing was published; the first day, if not given.
        end_published: day on which its end was published; the day after the last, if not given.
    """

    country: str
    effective_from: date
    citation: str
    effective_to: date | None = None
    published: date | None = None
    end_published: date | None = None

    @property
    def begin(self) -> date:
        """First day on which the listing may be used."""
        return max(self.effective_from, self.published or self.effective_from)

    @property
    def end(self) -> date | None:
        """First day on which it may no longer be used."""
        if self.effective_to is None:
            return None
        after = self.effective_to + timedelta(days=1)
        return max(after, self.end_published or after)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and limits of KPI 6.

    Args:
        card_present_channels: channels whose place is the customer's place.
        speed_window: a longer gap says nothing of speed.
        flag_above_kmh: faster than an airliner.
        flag_above_km: and farther than errors of position.
        window: history of countries and places.
        prior_weight: weight of the segment's countries, in records.
        score_windows: lengths over which surprisals are averaged.
        least_n: fewer located records give no centre.
        position_error_km: added to the radius of gyration.
        high_risk: countries on lists, each with the days on which the list was in force.
    """

    card_present_channels: list[str] = field(default_factory=lambda: ["card", "pos", "atm", "branch", "cash"])
    speed_window: str = "24h"
    flag_above_kmh: float = 900.0
    flag_above_km: float = 100.0
    window: str = "180d"
    prior_weight: float = 2.0
    score_windows: list[str] = field(default_factory=lambda: ["24h", "7d"])
    least_n: int = 3
    position_error_km: float = 5.0
    high_risk: list[HighRisk] = field(default_factory=list)


def columns(settings: Settings) -> tuple[Column, ...]:
    """Implied speed, surprise of the country, distance from where the account usually is, and lists."""
    w, s = settings.window, settings.speed_window
    unplaced = f"the row is not card-present or has no place, or no earlier one is known within {s}"
    no_country = "the source gives no country for the row"
    return (
        Column(
            "geo_speed", "distance from the latest card-present place / max(time, 60 s)", "km/h", s, null_rule=unplaced
        ),
        Column("geo_distance", "distance from the latest card-present place", "km", s, null_rule=unplaced),
        Column(
            "geo_speed_flag",
            f"1 if faster than {settings.flag_above_kmh:g} km/h over more than {settings.flag_above_km:g} km",
            "0 or 1",
            s,
            is_model_input=False,
            null_rule=unplaced,
        ),
        Column(f"geo_country_surprisal_{w}", "-log2 p(country)", "bits", w, null_rule=no_country),
        *(
            Column(
                f"geo_country_surprisal_mean_{window}",
                "mean surprisal of the account's rows, as scored then, the row included",
                "bits",
                window,
                null_rule="no row with a country in the window",
            )
            for window in settings.score_windows
        ),
        Column(
            f"geo_country_n_{w}",
            "known records with a country",
            "transactions",
            w,
            is_model_input=False,
            null_rule="never",
        ),
        Column(
            f"geo_radius_z_{w}",
            f"distance from the centre of past places / (radius of gyration + {settings.position_error_km:g} km)",
            "x",
            w,
            null_rule=f"the row has no place, or fewer than {settings.least_n} known ones before",
        ),
        Column(
            f"geo_radius_n_{w}",
            "known records with a place",
            "transactions",
            w,
            is_model_input=False,
            null_rule="never",
        ),
        Column(
            "geo_is_abroad",
            "1 if the country is not the account's home country",
            "0 or 1",
            null_rule="the source gives no country for the row or no home country",
        ),
        Column(
            "geo_is_high_risk",
            "1 if the country stood on a list of high risk on the day of the row, as published by then",
            "0 or 1",
            null_rule=no_country,
        ),
        Column(
            "geo_source",
            "1 if the row's place is a card-present terminal, where the customer is; 0 if it is a merchant's seat, a "
            "network address or unknown",
            "0 or 1",
            is_model_input=False,
            null_rule="the row has no place",
        ),
        Column(
            "geo_precision",
            "half a unit of the last decimal of the finer coordinate, at most 4 decimals, on a meridian",
            "km",
            is_model_input=False,
            null_rule="the row has no place",
        ),
    )


def distance_km(latitude: F64, longitude: F64, to_latitude: F64, to_longitude: F64) -> F64:
    """Great-circle distance (haversine) between places in degrees."""
    phi, psi = np.radians(latitude), np.radians(to_latitude)
    half_phi, half_lambda = (psi - phi) / 2, np.radians(to_longitude - longitude) / 2
    h = np.sin(half_phi) ** 2 + np.cos(phi) * np.cos(psi) * np.sin(half_lambda) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0, 1))))


def fit(ledger: Ledger, end_us: int, _settings: Settings) -> dict[str, Any]:
    """Rows per country for each segment, over the rows that may be learned from."""
    rows = pl.DataFrame({"segment": ledger.segment, "country": ledger.transactions["country"]})
    known = rows.filter(ledger.known_before(end_us)).drop_nulls("country").sort("segment", "country")
    counts = known.group_by("segment", "country", maintain_order=True).len()
    out: dict[str, dict[str, int]] = {}
    for segment, country, n in counts.iter_rows():
        out.setdefault(segment, {})[country] = n
    return {"rows_per_country": out, "countries": sorted(known["country"].unique().to_list())}


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Geographic anomalies of the row's own place."""
    latitude = ledger.transactions["latitude"].to_numpy()
    longitude = ledger.transactions["longitude"].to_numpy()
    located = ~(np.isnan(latitude) | np.isnan(longitude))
    return (
        _speed(ledger, latitude, longitude, located, settings)
        | _country(ledger, fitted, settings)
        | _radius(ledger, latitude, longitude, located, settings)
        | position(ledger, latitude, longitude, located, settings)
    )


def card_present(ledger: Ledger, settings: Settings) -> Mask:
    """Rows whose place is the customer's place."""
    return ledger.among("channel", settings.card_present_channels)


def position(ledger: Ledger, latitude: F64, longitude: F64, located: Mask, settings: Settings) -> Values:
    """What the row's place is the place of, and how exact it is."""
    source = card_present(ledger, settings).astype(float)
    return {
        "geo_source": np.where(located, source, np.nan),
        "geo_precision": np.where(located, precision_km(latitude, longitude), np.nan),
    }


def precision_km(latitude: F64, longitude: F64) -> F64:
    """Half a unit of the last decimal that a coordinate is given to, in kilometres of latitude; the finer one counts.

    A place is given to so many decimals in both coordinates, and one of them may end with a nought.
    """
    out = np.full(len(latitude), 0.5 * KM_PER_DEGREE / GRID)
    for decimals in (3, 2, 1, 0):
        unit = 10.0**decimals
        coarse = [np.abs(x * unit - np.rint(x * unit)) < ROUNDING * unit for x in (latitude, longitude)]
        out[coarse[0] & coarse[1]] = 0.5 * KM_PER_DEGREE / unit
    return out


def _speed(ledger: Ledger, latitude: F64, longitude: F64, located: Mask, settings: Settings) -> Values:
    placed, history = located & card_present(ledger, settings), ledger.by_account
    events = history.tape_of(np.where(placed, history.codes, -1), history.enter, ledger.time + FOREVER_US)
    _, latest = extreme_times(events, ledger.time, len(ledger))
    gap_us = ledger.time - ledger.time[latest]
    holds = placed & (latest >= 0) & (gap_us <= length_us(settings.speed_window))
    km = np.where(holds, distance_km(latitude, longitude, latitude[latest], longitude[latest]), np.nan)
    speed = km / (np.maximum(gap_us, LEAST_GAP_US) / HOUR_US)
    flag = (speed > settings.flag_above_kmh) & (km > settings.flag_above_km)
    return {"geo_speed": speed, "geo_distance": km, "geo_speed_flag": np.where(holds, flag, np.nan)}


def _country(ledger: Ledger, fitted: dict[str, Any], settings: Settings) -> Values:
    w, history, names = settings.window, ledger.by_account, ledger.transactions["country"]
    country = ledger.codes_of("country")
    n_countries = int(country.max(initial=-1)) + 1
    events = history.tape(length_us(w))
    pair = np.where(country < 0, -1, history.codes * n_countries + country)
    here = times_seen(events, pair, pair, history.keys * n_countries, len(ledger))
    (n,) = history.sums(events, country >= 0)
    p = (here + settings.prior_weight * prior_of(ledger, fitted)) / (n + settings.prior_weight)
    missing = country < 0
    abroad = (names != ledger.home_country).cast(pl.Float64).to_numpy()
    surprisal = np.where(missing, np.nan, -np.log2(p))
    means = {f"geo_country_surprisal_mean_{x}": history.mean_scores(x, surprisal) for x in settings.score_windows}
    return {
        f"geo_country_surprisal_{w}": surprisal,
        **means,
        f"geo_country_n_{w}": n.astype(float),
        "geo_is_abroad": abroad,
        "geo_is_high_risk": np.where(missing, np.nan, is_high_risk(ledger, settings)),
    }


def prior_of(ledger: Ledger, fitted: dict[str, Any]) -> F64:
    """p(country | segment), one row added to each country and to all that were never seen together."""
    known = len(fitted["countries"]) + 1

    def p(segment: str, country: str | None) -> float:
        counts = fitted["rows_per_country"].get(segment, {})
        return float((counts.get(country, 0) + 1) / (sum(counts.values()) + known))

    return ledger.looked_up(["segment", "country"], p)


def is_high_risk(ledger: Ledger, settings: Settings) -> Mask:
    """Rows whose country stood on a list on that day, as the list was known then."""
    out = np.zeros(len(ledger), bool)
    for entry in settings.high_risk:
        holds = ledger.among("country", [entry.country])
        holds &= ledger.time >= _day_us(entry.begin)
        if entry.end:
            holds &= ledger.time < _day_us(entry.end)
        out |= holds
    return out


def _day_us(day: date) -> int:
    return int(datetime.combine(day, time(), tzinfo=UTC).timestamp()) * 1_000_000


def _radius(ledger: Ledger, latitude: F64, longitude: F64, located: Mask, settings: Settings) -> Values:
    """Distance from the centre of past places, on the plane that touches the globe at the centre's latitude.

    Places across the date line would be averaged to the wrong side of the globe; customers who live on it are rare.
    """
    w, history = settings.window, ledger.by_account
    y = np.where(located, np.rint(np.nan_to_num(latitude) * GRID), 0).astype(np.int64)
    x = np.where(located, np.rint(np.nan_to_num(longitude) * GRID), 0).astype(np.int64)
    n, *sums = history.sums(history.tape(length_us(w)), located, y, x, y * y, x * x)
    return {
        f"geo_radius_z_{w}": radius_z(n, (sums[0], sums[1], sums[2], sums[3]), latitude, longitude, located, settings),
        f"geo_radius_n_{w}": n.astype(float),
    }


def radius_z(  # noqa: PLR0917  # a sum over places, and the row's own place
    n: I64,
    sums: tuple[I64, I64, I64, I64],
    latitude: F64,
    longitude: F64,
    located: Mask,
    settings: Settings,
) -> F64:
    """Distance from the centre in radii of gyration, from sums over past places in ten thousandths of a degree."""
    sum_y, sum_x, sum_yy, sum_xx = sums
    count = np.maximum(n, 1)
    centre_y, centre_x = sum_y / count, sum_x / count
    shrink = np.cos(np.radians(centre_y / GRID))
    spread = np.maximum(sum_yy / count - centre_y**2, 0) + np.maximum(sum_xx / count - centre_x**2, 0) * shrink**2
    gyration_km = np.sqrt(spread) / GRID * KM_PER_DEGREE
    km = distance_km(latitude, longitude, centre_y / GRID, centre_x / GRID)
    z = km / (gyration_km + settings.position_error_km)
    return where_enough(np.where(located, z, np.nan), n, settings.least_n)


KPI = Kpi(
    name="geography",
    number=6,
    title="Geographic anomalies",
    family="geography",
    formula="implied speed = great-circle distance from the latest card-present place within 24 h / max(time, 60 s); "
    "surprisal of the country as in KPI 3; distance from the centre of past places / (radius of gyration + 5 km)",
    unit="km/h, bits and x",
    inputs=(
        "account_id",
        "booked_at",
        "known_at",
        "channel",
        "country",
        "latitude",
        "longitude",
        "home_country",
        "segment",
    ),
    key="account",
    null_rule="the source gives no place or country for the row",
    source="Gonzalez et al. (2008), doi:10.1038/nature06958 (radius of gyration); FATF lists of high-risk "
    "jurisdictions",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)
