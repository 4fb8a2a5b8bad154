"""KPI 13, from the graph as it was known when a day began: cores, egonets, scatter-gather, rank, known bad near by."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.graph import first_known
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import Ledger
from reperform.featurize.motifs import core_numbers, hops, pagerank, scatter_gather, triangles
from reperform.featurize.payments import Moment, PaymentGraph, day_slices, graph_of
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.risk import positive_known
from reperform.featurize.windows import DAY_US, length_us

LEAST_EGONETS = 10  # a line through fewer says nothing


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Window and bounds.

    Args:
        window: age up to which a payment is an edge.
        most_edges: edges of a node that are followed.
        tolerance: share by which what an intermediate passes on may differ from what it received.
        least_intermediates: of a scatter-gather motif.
        damping: of PageRank.
        rank_days: days over which the change of PageRank is taken.
        fit_snapshots: weekly moments before the end of training to which the line of egonets is fitted.
    """

    window: str = "30d"
    most_edges: int = 1000
    tolerance: float = 0.2
    least_intermediates: int = 2
    damping: float = 0.85
    rank_days: int = 7
    fit_snapshots: int = 8


def columns(settings: Settings) -> tuple[Column, ...]:
    """The account's place in the graph, and how far the nearest known anomaly is from either side."""
    w, since = settings.window, "when the row's UTC day began"
    steps = "steps to the nearest account with a known anomaly: 0 (itself), 1, 2, or 3 for farther or unconnected"
    no_labels = "there are no labels"
    return (
        Column(f"network_core_{w}", f"core number of the account {since}", "neighbours", w, null_rule="never"),
        Column(
            f"network_scatter_gather_n_{w}",
            "motifs source - several intermediates - target that the account is part of, each passing on what it "
            f"received within {settings.tolerance:.0%}, {since}",
            "motifs",
            w,
            null_rule="never",
        ),
        Column(
            f"network_scatter_gather_width_{w}",
            "most intermediates in one of them, 0 without one",
            "intermediates",
            w,
            null_rule="never",
        ),
        Column(f"network_bad_distance_{w}", f"{steps}, {since}", "steps", w, null_rule=no_labels),
        Column(
            f"counterparty_bad_distance_{w}",
            f"the same from the counterparty, {since}",
            "steps",
            w,
            null_rule=f"the row names no counterparty, or {no_labels}",
        ),
        Column(
            f"network_egonet_residual_{w}",
            "ln(edges) of the account with its neighbours, less the line on ln(nodes) of training",
            "natural log",
            w,
            null_rule="the account had no neighbour, or training had too few",
        ),
        Column(
            f"network_rank_change_{w}",
            f"ln of PageRank x nodes, less the same {settings.rank_days} days earlier",
            "natural log",
            w,
            null_rule="the account had no edge on one of the two days",
        ),
        Column(
            f"network_structure_n_{w}", f"payments of the account in the graph {since}", "payments", w,
            is_model_input=False, null_rule="never",
        ),
        Column(
            f"network_structure_truncated_{w}",
            f"1 if a search at the account, or one that might have reached either side, stopped after "
            f"{settings.most_edges} edges of a node",
            "0 or 1",
            w,
            is_model_input=False,
            null_rule="never",
        ),
    )  # fmt: skip


def fit(ledger: Ledger, end_us: int, settings: Settings) -> dict[str, Any]:
    """The line of ln(edges) on ln(nodes) over egonets of accounts at weekly moments up to the end of training."""
    graph, window_us = graph_of(ledger), length_us(settings.window)
    last = end_us // DAY_US
    is_account = np.zeros(graph.nodes, np.bool_)
    is_account[graph.account[ledger.known_before(end_us)]] = True
    x, y = [], []
    for weeks in range(settings.fit_snapshots):
        moment = graph.at((last - 7 * weeks) * DAY_US, window_us)
        nodes, edges, _ = _egonets(moment, settings)
        kept = is_account & (nodes > 1)
        x.append(np.log(nodes[kept]))
        y.append(np.log(edges[kept]))
    return _line(np.concatenate([*x, []]), np.concatenate([*y, []]))


def _line(x: F64, y: F64) -> dict[str, Any]:
    """Least squares; nothing where all egonets have one size, or there are too few."""
    if len(x) < LEAST_EGONETS or not np.ptp(x):
        return {"slope": None, "intercept": None, "egonets": len(x)}
    slope = float(np.mean((x - x.mean()) * (y - y.mean())) / np.mean((x - x.mean()) ** 2))
    return {"slope": slope, "intercept": float(y.mean() - slope * x.mean()), "egonets": len(x)}


def _egonets(moment: Moment, settings: Settings) -> tuple[I64, I64, I64]:
    """Nodes and edges of each node with its neighbours, and where the search was cut."""
    degree = np.diff(moment.both.starts)
    among, cut, _ = triangles(moment.both.starts, moment.both.others, settings.most_edges)
    return degree + 1, degree + among, cut


def compute(ledger: Ledger, fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """The values of each day's beginning, for the rows of that day."""
    return values_from(ledger, fitted, settings, 0)


def values_from(ledger: Ledger, fitted: dict[str, Any], settings: Settings, first: int) -> Values:
    """The same for rows from a first one on; those of days that are over before it stay unknown."""
    graph, ranks = graph_of(ledger), Ranks(graph_of(ledger), settings)
    bad_from = first_known(graph.account, graph.nodes, positive_known(ledger))
    out = {column.name: np.full(len(ledger), np.nan) for column in columns(settings)}
    for day, begin, end in [one for one in day_slices(ledger) if one[2] > first]:
        found = at_day(ranks, day, bad_from, fitted, settings)
        node, other = graph.account[begin:end], graph.counterparty[begin:end]
        for name, values in of_parties(found, node, other, settings, labelled=ledger.labels.height > 0).items():
            out[name][begin:end] = values
    return out


def at_day(ranks: "Ranks", day: int, bad_from: I64, fitted: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Values by node as they were known when a day began.

    Args:
        ranks: PageRanks of days, of the graph that is looked at.
        day: since 1970, UTC.
        bad_from: when the first anomaly of each node was known, microseconds.
        fitted: the line of egonets.
        settings: window and bounds.
    """
    graph = ranks.graph
    moment = graph.at(day * DAY_US, length_us(settings.window))
    ranks.keep(day, moment)
    found = _at_nodes(graph, moment, fitted, settings) | {"rank_change": ranks.change(day)}
    steps, cut, _ = hops(moment.both.starts, moment.both.others, bad_from <= day * DAY_US, settings.most_edges)
    found["structure_truncated"] = np.maximum(found["structure_truncated"], cut)
    return found | {"steps": steps, "cut": cut}


def of_parties(found: Mapping[str, Any], node: I64, other: I64, settings: Settings, *, labelled: bool) -> Values:
    """Values of rows, given those by node.

    Args:
        found: by node.
        node: of each row's account.
        other: of each row's counterparty; -1 where none is named.
        settings: window.
        labelled: whether there are any labels; distances are unknown without.
    """
    w, steps, cut = settings.window, found["steps"], found["cut"]
    out = {f"network_{name}_{w}": found[name][node].astype(float) for name in found if name not in {"steps", "cut"}}
    truncated = out[f"network_structure_truncated_{w}"]
    np.maximum(truncated, np.where(other >= 0, cut[other], 0), out=truncated)
    if not labelled:
        return out
    distances = steps[node].astype(float), np.where(other >= 0, steps[other], np.nan)
    return out | {f"network_bad_distance_{w}": distances[0], f"counterparty_bad_distance_{w}": distances[1]}


def _at_nodes(graph: PaymentGraph, moment: Moment, fitted: dict[str, Any], settings: Settings) -> dict[str, Any]:
    nodes, edges, cut = _egonets(moment, settings)
    motifs, width, also_cut, _ = scatter_gather(
        moment.out.starts, moment.out.others, moment.out.pairs, moment.cents, moment.earliest, moment.latest,
        settings.tolerance, settings.least_intermediates, settings.most_edges,
    )  # fmt: skip
    residual = np.full(graph.nodes, np.nan)
    if fitted["slope"] is not None:
        known = nodes > 1
        residual[known] = np.log(edges[known]) - fitted["intercept"] - fitted["slope"] * np.log(nodes[known])
    payments = np.concatenate([[0], np.cumsum(moment.links[moment.both.pairs])])
    return {
        "core": core_numbers(moment.both.starts, moment.both.others),
        "scatter_gather_n": motifs,
        "scatter_gather_width": width,
        "egonet_residual": residual,
        "structure_n": np.diff(payments[moment.both.starts]),
        "structure_truncated": np.maximum(cut, also_cut),
    }


class Ranks:
    """PageRank times nodes by day, as long as later days compare with it."""

    def __init__(self, graph: PaymentGraph, settings: Settings) -> None:
        self.graph, self.settings = graph, settings
        self.by_day: dict[int, F64] = {}

    def keep(self, day: int, moment: Moment) -> None:
        """Remember a day's ranks and forget those that no later day asks for."""
        self.by_day = {kept: ranks for kept, ranks in self.by_day.items() if kept >= day - self.settings.rank_days}
        if day not in self.by_day:
            self.by_day[day] = self._ranks(moment)

    def change(self, day: int) -> F64:
        """Change in natural logs since some days earlier."""
        before = day - self.settings.rank_days
        if before not in self.by_day:
            moment = self.graph.at(before * DAY_US, length_us(self.settings.window))
            self.by_day[before] = self._ranks(moment)
        return self.by_day[day] - self.by_day[before]

    def _ranks(self, moment: Moment) -> F64:
        ranks = pagerank(
            moment.out.starts, moment.out.others, moment.out.pairs, moment.count, self.settings.damping, 1e-6, 100
        )
        return np.asarray(np.log(ranks * np.count_nonzero(~np.isnan(ranks))))


KPI = Kpi(
    name="network_structure",
    number=13,
    title="Network effect indicators of the day",
    family="network",
    formula="on the graph of payments in [d - 30 d, d) known when day d (UTC) began: k-core, scatter-gather motifs, "
    "residual of ln(edges) on ln(nodes) of the egonet, change of PageRank, steps to the nearest known anomaly",
    unit="counts and natural logs",
    inputs=(
        "account_id", "counterparty_id", "booked_at", "known_at", "direction", "amount_base", "is_anomaly",
        "confirmed_at",
    ),
    key="entity",
    null_rule="the account had no edge",
    source="Seidman (1983), doi:10.1016/0378-8733(83)90028-X (k-core); Akoglu, McGlohon and Faloutsos (2010), OddBall; "
    "Suzumura and Kanezashi (2021), IBM AMLSim (scatter-gather); Page et al. (1999), PageRank",
    settings=Settings,
    columns=columns,
    compute=compute,
    fit=fit,
)  # fmt: skip
