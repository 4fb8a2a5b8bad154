"""Values of a whole population, as known when a day or a week began: taken once, then looked up by party."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np

from reperform.featurize import correlation, frequency, propagation, structure
from reperform.featurize.engine import Task
from reperform.featurize.graph import first_known
from reperform.featurize.incremental.extract import Extract
from reperform.featurize.incremental.rows import Names
from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import UNKNOWN_TIME_US
from reperform.featurize.motifs import Adjacency
from reperform.featurize.opening import Series
from reperform.featurize.payments import PaymentGraph, graph_of, names_of
from reperform.featurize.rhythm import peer_decoupling
from reperform.featurize.risk import positive_known


@dataclass(frozen=True)
class ByParty:
    """Numbers by party; those who were not there have the default.

    Args:
        values: shape (columns, parties).
        default: of each column.
    """

    values: F64
    default: tuple[float, ...]

    @classmethod
    def of(cls, code: I64, parties: int, columns: list[tuple[F64, float]]) -> "ByParty":
        """Columns given by party, each with its default."""
        values = np.empty((len(columns), parties))
        for row, (column, default) in zip(values, columns, strict=True):
            row[:] = default
            row[code] = column
        return cls(values, tuple(default for _, default in columns))

    def of_many(self, party: I64) -> F64:
        """The columns of some parties, shape (columns, parties)."""
        known = party < self.values.shape[1]
        if known.all():
            return np.asarray(self.values[:, party])
        out = np.repeat(np.array(self.default)[:, None], len(party), axis=1)
        out[:, known] = self.values[:, party[known]]
        return out


@dataclass(frozen=True)
class Nodes:
    """A graph of payments, and one node more that nobody deals with, for all parties that are not in it.

    Args:
        graph: payments.
        place: node of each party; of later ones it is the last.
    """

    graph: PaymentGraph
    place: I64

    @classmethod
    def of(cls, ledger: Extract, parties: Names) -> "Nodes":
        """The graph of a ledger."""
        graph = graph_of(ledger)
        out = _with_one_more(graph.out)
        place = np.full(len(parties), graph.nodes)
        place[parties.encode(names_of(ledger))] = np.arange(graph.nodes)
        return cls(replace(graph, nodes=graph.nodes + 1, out=out), place)

    def nodes(self, party: I64) -> I64:
        """Nodes of parties; -1 for none."""
        out = np.full(len(party), self.graph.nodes - 1)
        known = (party >= 0) & (party < len(self.place))
        out[known] = self.place[party[known]]
        out[party < 0] = -1
        return out


def _with_one_more(adjacency: Adjacency) -> Adjacency:
    return replace(adjacency, starts=np.append(adjacency.starts, adjacency.starts[-1]))


def rates(p: F64, entity: I64, accounts: I64, parties: int) -> ByParty:
    """KPI 4 among all accounts whose day begins at one moment: q-value, and accounts behind it.

    Args:
        p: p-value of each account's day.
        entity: of each account.
        accounts: party of each.
        parties: number of parties.
    """
    usable = ~np.isnan(p)
    _, group = np.unique(entity, return_inverse=True)
    n = np.bincount(group, weights=usable)[group] if len(group) else p
    q = frequency.benjamini_hochberg(p, group, usable)
    return ByParty.of(accounts, parties, [(q, np.nan), (np.where(usable, n, np.nan), np.nan)])


def peers(  # noqa: PLR0917  # of accounts, in their order
    x: F64, alive: I64, first_day: int, group: I64, accounts: I64, parties: int, settings: Any
) -> ByParty:
    """KPI 12 against peers on the last day of some: z, days of the reference window, peers.

    Args:
        x: series of each account, shape (accounts, days).
        alive: first day on which each account was known to exist.
        first_day: of the series.
        group: of each account.
        accounts: party of each.
        parties: number of parties.
        settings: of the KPI.
    """
    n, days = x.shape
    starts = np.arange(n + 1) * days
    of = Series(starts, np.full(n, first_day), alive, np.repeat(np.arange(n), days), x.ravel())
    medians, number = correlation.peer_medians(of, group)
    wanted = np.zeros(x.shape, np.bool_)
    wanted[:, -1] = True
    s = settings
    z, behind = peer_decoupling(
        starts, of.x, medians, wanted.ravel(), alive - first_day, s.days, s.reference_days, s.least_reference_days
    )
    last = starts[1:] - 1
    others = number[last - 2]  # as in the KPI: peers' days are over in every timezone
    return ByParty.of(accounts, parties, [(z[last], np.nan), (behind[last], 0.0), (others.astype(float), 0.0)])


def propagated(ledger: Extract, parties: Names, task: Task, day: int) -> Callable[[I64, I64], F64]:
    """KPI 7's walks: gives, for account and counterparty, their ratios and the seeds behind them.

    Args:
        ledger: payments of the window.
        parties: names.
        task: the KPI.
        day: on which the step begins.
    """
    nodes, folds = Nodes.of(ledger, parties), task.settings.folds
    group = np.append(propagation.groups(ledger, folds), 0)
    ratios, behind = propagation.at_step(nodes.graph, positive_known(ledger), group, day, task.settings)

    def of_rows(account: I64, counterparty: I64) -> F64:
        own = np.array([crc32(str(parties.text[one + 1]).encode()) % folds for one in account.tolist()], np.int64)
        node, other = nodes.nodes(account), nodes.nodes(counterparty)
        towards = np.where(other >= 0, ratios[other, own], np.nan)
        return np.stack([ratios[node, own], towards, behind[own].astype(float)])

    return of_rows


def structured(ledger: Extract, parties: Names, task: Task, day: int) -> Callable[[I64, I64, bool], dict[str, F64]]:
    """KPI 13's graph of a day: gives, for account and counterparty, the KPI's columns.

    Args:
        ledger: payments of the windows, and every anomaly.
        parties: names.
        task: the KPI.
        day: that begins.
    """
    nodes = Nodes.of(ledger, parties)
    known = first_known(nodes.graph.account, nodes.graph.nodes - 1, positive_known(ledger))
    bad_from, ranks = np.append(known, UNKNOWN_TIME_US), structure.Ranks(nodes.graph, task.settings)
    found = structure.at_day(ranks, day, bad_from, task.fitted, task.settings)

    def of_rows(account: I64, counterparty: I64, labelled: bool) -> dict[str, F64]:
        return structure.of_parties(
            found, nodes.nodes(account), nodes.nodes(counterparty), task.settings, labelled=labelled
        )

    return of_rows
