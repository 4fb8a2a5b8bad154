"""KPI 13, each indicator against accounts of the same segment and a similar number of payments."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.errors import ReperformError, nearest
from reperform.featurize import graph, network, structure
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import Ledger
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.windows import DAY_US, length_us

INDICATORS = (
    "network_in_degree_30d", "network_out_degree_30d", "network_fan_in_30d", "network_fan_out_30d",
    "network_reciprocity_30d", "network_pass_through_72h", "network_dwell_72h", "network_cycle_n_30d",
    "network_core_30d", "network_scatter_gather_n_30d", "network_gather_width_30d", "network_egonet_residual_30d",
    "network_rank_change_30d",
)  # fmt: skip
DEGREE = ("network_in_degree_30d", "network_out_degree_30d")
NORMAL_MAD = 1.4826
"""A normal distribution's standard deviation in units of its median absolute deviation."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """What is compared, and with whom.

    Args:
        indicators: columns of KPI 13.
        fit_days: last days of training from which groups are learned.
        history: days before them that these rows look back over.
        least_n: rows behind a group; smaller ones fall back to the segment, then to all.
        floor: of a standard deviation, in the indicator's unit: many groups do not vary at all.
    """

    indicators: list[str] = field(default_factory=lambda: list(INDICATORS))
    fit_days: int = 28
    history: str = "40d"
    least_n: int = 50
    floor: float = 0.05


def columns(settings: Settings) -> tuple[Column, ...]:
    """A robust z per indicator, and the rows behind the group."""
    zs = [
        Column(
            f"{name}_z",
            f"({name} - median) / (1.4826 MAD + {settings.floor:g}) of training rows of the segment with a like "
            "number of payments (by powers of two)",
            "robust SD",
            is_model_input=False,
        )
        for name in settings.indicators
    ]
    n = Column("network_matched_n", "training rows of the group", "transactions", is_model_input=False)
    return (*zs, n)


def needs(settings: Settings) -> tuple[str, ...]:
    """The indicators, and the degrees that rows are matched by."""
    return tuple(dict.fromkeys([*settings.indicators, *DEGREE]))


def degree_bins(made: Mapping[str, F64]) -> I64:
    """Payments of the window as whole powers of two: 0, 1, 2-3, 4-7, ..."""
    degree = sum((made[name] for name in DEGREE), np.zeros(len(made[DEGREE[0]])))
    return np.floor(np.log2(degree + 1)).astype(np.int64)


def fit(ledger: Ledger, end_us: int, settings: Settings) -> dict[str, Any]:
    """Medians and deviations by segment and degree, from rows of the last days of training as they were scored."""
    first_us = end_us - settings.fit_days * DAY_US
    part = _training(ledger, end_us, first_us - length_us(settings.history))
    made = _indicators(part, int(np.searchsorted(part.time, first_us)), end_us)
    absent = [name for name in (*settings.indicators, *DEGREE) if name not in made]
    if absent:
        raise ReperformError(
            "An indicator to be matched is not made by KPI 13 with its default windows.",
            expected=f"some of {', '.join(made)}",
            got=", ".join(absent),
            where="featurize.settings.network_matched.indicators",
            fix=nearest(absent[0], made),
        )
    table = pl.DataFrame({name: made[name] for name in settings.indicators}, nan_to_null=True)
    table = table.with_columns(
        segment=part.segment.filter(pl.Series(part.time >= first_us)),
        bin=degree_bins(made),
    )
    groups: dict[str, list[str]] = {"": [], "segment": ["segment"], "segment and degree": ["segment", "bin"]}
    return {name: _groups(table, by, settings) for name, by in groups.items()}


def _indicators(part: Ledger, first: int, end_us: int) -> Values:
    """KPI 13 with its default windows, of rows from a first one on: earlier ones are looked back at and do not ask."""
    since, settings = slice(first, None), structure.KPI.settings_of({})
    learned = structure.fit(part, end_us, settings)
    made = network.KPI.compute(part, {}, network.KPI.settings_of({}), {})
    made |= structure.values_from(part, learned, settings, first)
    over_paths = graph.KPI.settings_of({})
    made |= graph.bad_neighbours(part, over_paths.window)
    found = graph.paths(part, over_paths, np.arange(first, len(part)))
    return {name: values[since] for name, values in made.items()} | found


def _training(ledger: Ledger, end_us: int, from_us: int) -> Ledger:
    kept = ledger.known_before(end_us) & (ledger.time >= from_us)
    return replace(ledger, transactions=ledger.transactions.filter(pl.Series(kept)))


def _groups(table: pl.DataFrame, by: list[str], settings: Settings) -> dict[str, Any]:
    """Per group and indicator: median, median absolute deviation and rows, where there are enough."""
    found: dict[str, Any] = {}
    parts = table.partition_by(by, as_dict=True, maintain_order=True) if by else {(): table}
    for key, part in sorted(parts.items(), key=lambda one: str(one[0])):
        columns_ = {name: part[name].drop_nulls() for name in settings.indicators}
        enough = {name: values for name, values in columns_.items() if len(values) >= settings.least_n}
        centre = {name: _median(values) for name, values in enough.items()}
        found["|".join(str(k) for k in key)] = {
            name: [centre[name], _median((values - centre[name]).abs()), len(values)] for name, values in enough.items()
        }
    return found


def _median(values: pl.Series) -> float:
    return float(np.median(values.to_numpy()))


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, made: Mapping[str, F64]) -> Values:
    """The distance of each indicator from its group's median, in the group's standard deviations."""
    segments, bins = ledger.segment, degree_bins(made)
    codes = segments.rank("dense").to_numpy().astype(np.int64) * (bins.max(initial=0) + 1) + bins
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    keys = [(str(segments[int(row)]), int(bins[row])) for row in first]
    known = np.array([groups_of(fitted, segment, bin_, settings) for segment, bin_ in keys])
    return compared(made, known.reshape(-1, len(settings.indicators), 3), group, settings)


def groups_of(fitted: dict[str, Any], segment: str, bin_: int, settings: Settings) -> F64:
    """Median, deviation and rows of the group by which each indicator is judged, shape (indicators, 3)."""
    return np.array([_of(fitted, segment, bin_, name) for name in settings.indicators], np.float64).reshape(-1, 3)


def compared(made: Mapping[str, F64], known: F64, group: I64, settings: Settings) -> Values:
    """The distances of rows' indicators.

    Args:
        made: indicators by row.
        known: what `groups_of` gives for each group, shape (groups, indicators, 3).
        group: of each row.
        settings: of the KPI.
    """
    out, behind = Values(), np.zeros(len(group))
    for place, name in enumerate(settings.indicators):
        centre, deviation, n = known[group, place].T
        out[f"{name}_z"] = (made[name] - centre) / (NORMAL_MAD * deviation + settings.floor)
        behind = np.fmax(behind, n)
    return out | {"network_matched_n": behind}


def _of(fitted: dict[str, Any], segment: str, bin_: int, name: str) -> list[float]:
    """The smallest group that was learned; nothing is known where none was."""
    for level, key in (("segment and degree", f"{segment}|{bin_}"), ("segment", segment), ("", "")):
        if name in fitted[level].get(key, {}):
            found: list[float] = fitted[level][key][name]
            return found
    return [np.nan, np.nan, 0.0]


KPI = Kpi(
    name="network_matched",
    number=13,
    title="Network effect indicators against like accounts",
    family="network",
    formula="(indicator - median) / (1.4826 MAD + 0.05), median and MAD of training rows in the same segment with a "
    "like number of payments in 30 days",
    unit="robust SD",
    inputs=("account_id", "counterparty_id", "booked_at", "known_at", "direction", "amount_base", "segment"),
    key="entity",
    null_rule="the indicator is unknown, or training had too few rows",
    source="Akoglu, McGlohon and Faloutsos (2010), OddBall; Iglewicz and Hoaglin (1993), How to Detect and Handle "
    "Outliers (robust z)",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
    needs=needs,
)
