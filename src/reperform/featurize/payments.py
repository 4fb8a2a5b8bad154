"""Accounts and counterparties as one graph of payments, and what of it was known when a day began."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from reperform.featurize.graph import is_edge, nodes_of
from reperform.featurize.kernels import I64, Mask
from reperform.featurize.ledger import Ledger
from reperform.featurize.motifs import Adjacency, either_way, linked
from reperform.featurize.windows import DAY_US


@dataclass(frozen=True)
class Moment:
    """The graph as it was known when a day began.

    Args:
        out: payees by payer.
        both: neighbours, whoever pays.
        count: payments by pair of `out`.
        links: payments by pair of `both`.
        cents: hundredths by pair of `out`.
        earliest: time of the first payment by pair of `out`.
        latest: time of the last one.
    """

    out: Adjacency
    both: Adjacency
    count: I64
    links: I64
    cents: I64
    earliest: I64
    latest: I64


@dataclass(frozen=True)
class PaymentGraph:
    """Every payment between two named parties, once.

    Args:
        nodes: accounts and counterparties together.
        account: node of each row's account.
        counterparty: node of each row's counterparty; -1 where none is named.
        pair: pair of payer and payee by row, as a place in `out`; -1 where the row is no edge.
        out: payees by payer, of all times.
        time: when each row happened.
        known: when each row became known.
        cents: hundredths by row.
    """

    nodes: int
    account: I64
    counterparty: I64
    pair: I64
    out: Adjacency
    time: I64
    known: I64
    cents: I64

    @classmethod
    def of(cls, ledger: Ledger) -> "PaymentGraph":
        """The graph of a ledger; a payment that both its sides report counts once, by the payer's record."""
        payer, payee, nodes = nodes_of(ledger)
        into = ledger.incoming
        account, counterparty = np.where(into, payee, payer), np.where(into, payer, payee)
        edge = is_edge(ledger, payer, payee) & (payer != payee)
        keys, pair = _codes(payer * nodes + payee, edge)
        first, second = (keys // nodes, keys % nodes) if nodes else (keys, keys)
        return cls(
            nodes=nodes,
            account=account,
            counterparty=counterparty,
            pair=pair,
            out=Adjacency.of(first, second, np.arange(len(keys)), nodes),
            time=ledger.time,
            known=ledger.known,
            cents=ledger.cents,
        )

    def at(self, moment_us: int, window_us: int) -> Moment:
        """Payments of [moment - window, moment) that were known by the moment."""
        first, end = np.searchsorted(self.time, [moment_us - window_us, moment_us])
        starts, payees, count, cents, earliest, latest = linked(
            self.pair, self.cents, self.time, self.known, int(first), int(end), moment_us, self.out.starts,
            self.out.others,
        )  # fmt: skip
        both_starts, neighbours, links = either_way(starts, payees, count)
        out = Adjacency(starts, payees, np.arange(len(payees)))
        both = Adjacency(both_starts, neighbours, np.arange(len(neighbours)))
        return Moment(out, both, count, links, cents, earliest, latest)


def graph_of(ledger: Ledger) -> PaymentGraph:
    """The graph of a ledger, made once and kept with it as its own cached values are."""
    kept = vars(ledger)
    if "payment_graph" not in kept:
        kept["payment_graph"] = PaymentGraph.of(ledger)
    made: PaymentGraph = kept["payment_graph"]
    return made


def day_slices(ledger: Ledger, days: int = 1) -> list[tuple[int, int, int]]:
    """Days (since 1970, UTC) on whose start rows look back, and which rows do: day, first row, row after the last.

    Args:
        ledger: rows in order of time.
        days: length of the calendar's step; a step of 7 begins on Mondays.
    """
    monday = 4  # 1970-01-05
    number = (ledger.time // DAY_US - monday) // days * days + monday
    if not len(number):
        return []
    starts = np.flatnonzero(np.diff(number, prepend=number[0] - 1))
    ends = np.append(starts[1:], len(number))
    return [(int(number[begin]), int(begin), int(end)) for begin, end in zip(starts, ends, strict=True)]


def _codes(keys: I64, kept: Mask) -> tuple[I64, I64]:
    """Different keys of the kept rows in order, and each row's place among them; -1 for the others."""
    different, place = np.unique(keys[kept], return_inverse=True)
    out = np.full(len(keys), -1, np.int64)
    out[kept] = place
    return different, out


def names_of(ledger: Ledger) -> pl.Series:
    """Names of the nodes, in the order of their codes."""
    rows = ledger.transactions
    return pl.concat([rows["account_id"], rows["counterparty_id"]]).drop_nulls().unique().sort()
