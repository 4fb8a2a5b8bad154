"""KPI 13, over accounts and counterparties together: money that returns in a circle, links to known anomalies."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, Mask, distinct, returning_paths, times_seen
from reperform.featurize.ledger import UNKNOWN_TIME_US, Ledger, codes, pair_codes
from reperform.featurize.motifs import gathering
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.risk import positive_known
from reperform.featurize.windows import History, Rows, length_us


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Bounds of the search.

    Args:
        window: age up to which a payment is an edge of the graph.
        longest: payments in a circle, at most.
        tolerance: amounts of one path differ from the row's by at most this share.
        most_edges: edges that are looked at for one row; beyond them the search stops and says so.
    """

    window: str = "30d"
    longest: int = 5
    tolerance: float = 0.2
    most_edges: int = 1000


def columns(settings: Settings) -> tuple[Column, ...]:
    """Circles and chains that end in the row, and links to accounts and counterparties with known anomalies."""
    w, most = settings.window, settings.longest
    near = f"payments of increasing time and amounts within {settings.tolerance:.0%} of the row's"
    no_party = "the row names no counterparty"
    return (
        Column(
            f"network_cycle_n_{w}",
            f"circles of 2 to {most} {near} that the row closes",
            "circles",
            w,
            null_rule=no_party,
        ),
        Column(
            f"network_cycle_longest_{w}",
            "payments in the longest of them, 0 without one",
            "payments",
            w,
            null_rule=no_party,
        ),
        Column(
            f"network_chain_{w}",
            f"longest path of up to {most} {near} that ends in the row",
            "payments",
            w,
            null_rule=no_party,
        ),
        Column(
            f"network_gather_width_{w}",
            "payers of the payee, the row's included, that each passed on what one and the same source had paid them, "
            f"within {settings.tolerance:.0%}; 0 if the row's is alone",
            "payers",
            w,
            null_rule=no_party,
        ),
        Column(
            f"network_truncated_{w}",
            f"1 if the search stopped after {settings.most_edges} edges",
            "0 or 1",
            w,
            is_model_input=False,
            null_rule=no_party,
        ),
        Column(
            f"network_bad_accounts_{w}",
            "other accounts with a known anomaly that dealt with the counterparty",
            "accounts",
            w,
            null_rule=no_party,
        ),
        Column(
            f"network_bad_counterparties_{w}",
            "counterparties with a known anomaly that the account dealt with",
            "counterparties",
            w,
            null_rule="never",
        ),
    )


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """Paths and links as known at each row."""
    return paths(ledger, settings) | bad_neighbours(ledger, settings.window)


def paths(ledger: Ledger, settings: Settings, asks: I64 | None = None) -> Values:
    """Circles, chains and gathered money that end in rows: in all of them, or in those that ask."""
    payer, payee, keys = nodes_of(ledger)
    edges = Rows.ordered(np.where(is_edge(ledger, payer, payee), payee, -1), ledger.time, keys)
    enter = np.maximum(ledger.known, ledger.time + 1)
    named = (payer >= 0) & (payee >= 0)
    return paths_to(edges, ledger.time, enter, ledger.cents, np.where(named, payer, -1), payee, settings, asks)


def paths_to(  # noqa: PLR0917  # the arrays that compiled functions take by position
    edges: Rows,
    time: I64,
    enter: I64,
    cents: I64,
    payer: I64,
    payee: I64,
    settings: Settings,
    asks: I64 | None = None,
) -> Values:
    """Circles, chains and gathered money that end in rows.

    Args:
        edges: rows per payee, in order of time.
        time: microseconds.
        enter: first moment at which others can see each row.
        cents: amounts.
        payer: node that pays; -1 where a side is not named.
        payee: node that is paid.
        settings: bounds of the search.
        asks: rows to compute; all of them if not given.
    """
    walked = (edges.starts, edges.rows, time, enter, cents, payer, payee, length_us(settings.window))
    cycles, longest, chain, truncated = returning_paths(
        *walked, settings.longest, settings.tolerance, settings.most_edges, asks
    )
    width, cut, _ = gathering(*walked, settings.tolerance, settings.most_edges, asks)
    truncated = np.maximum(truncated, cut)
    w, named = settings.window, (payer if asks is None else payer[asks]) >= 0
    found = {"gather_width": width, "cycle_n": cycles, "cycle_longest": longest, "chain": chain, "truncated": truncated}
    return {f"network_{name}_{w}": np.where(named, values, np.nan) for name, values in found.items()}


def nodes_of(ledger: Ledger) -> tuple[I64, I64, int]:
    """Who pays and who is paid in each row, in codes that accounts and counterparties share; -1 where not named."""
    rows = ledger.transactions
    both = codes(pl.concat([rows["account_id"], rows["counterparty_id"]]))
    account, other = both[: len(ledger)], both[len(ledger) :]
    into = ledger.incoming
    return np.where(into, other, account), np.where(into, account, other), int(both.max(initial=-1)) + 1


def is_edge(ledger: Ledger, payer: I64, payee: I64) -> Mask:
    """Rows between two named parties, without those that the payer's own record tells already.

    Where the payer is an account of ours, its own row is the edge: a payment must not count twice.
    """
    ours = ledger.transactions["counterparty_id"].is_in(ledger.accounts["account_id"].implode())
    told = ledger.incoming & ours.fill_null(value=False).to_numpy()
    return np.asarray((payer >= 0) & (payee >= 0) & ~told)


def bad_neighbours(ledger: Ledger, window: str) -> Values:
    """Parties that have a known anomaly by then, seen from the counterparty and from the account."""
    positive, leave = positive_known(ledger), ledger.time + length_us(window)
    by_party, by_account = ledger.by_counterparty, ledger.by_account
    bad_account = first_known(ledger.account, by_account.keys, positive)[ledger.account]
    dealt = pair_codes(ledger.counterparty, ledger.account)
    accounts, own = _bad(by_party, dealt, bad_account, leave)
    first = first_known(ledger.counterparty, by_party.keys, positive)
    bad_party = (
        np.where(ledger.counterparty < 0, UNKNOWN_TIME_US, first[ledger.counterparty]) if by_party.keys else positive
    )
    parties, _ = _bad(by_account, ledger.pair, bad_party, leave)
    return {
        f"network_bad_accounts_{window}": np.where(ledger.counterparty < 0, np.nan, accounts - own),
        f"network_bad_counterparties_{window}": parties.astype(float),
    }


def first_known(key: I64, keys: int, positive: I64) -> I64:
    """When the first anomaly of each key was known."""
    first = np.full(keys, UNKNOWN_TIME_US)
    named = key >= 0
    np.minimum.at(first, key[named], positive[named])
    return first


def _bad(history: History, items: I64, bad_from: I64, leave: I64) -> tuple[I64, I64]:
    """Different items that are seen and bad by then, and 1 where the row's own item is among them."""
    enter = np.maximum(history.enter, bad_from)
    events = history.tape_of(np.where(bad_from < UNKNOWN_TIME_US, history.codes, -1), enter, leave)
    n_items, rows = int(items.max(initial=-1)) + 1, len(history)
    own = times_seen(events, items, items, n_items, rows)
    return distinct(events, items, n_items, rows), np.minimum(own, 1)


KPI = Kpi(
    name="network_graph",
    number=13,
    title="Network effect indicators over paths",
    family="network",
    formula="circles of at most 5 payments with strictly increasing times and amounts within 20 %, closed by the "
    "row; chains that end in it; payments by which several intermediates gather what one source scattered; "
    "two-step links to accounts and counterparties with known anomalies",
    unit="counts",
    inputs=(
        "account_id",
        "counterparty_id",
        "booked_at",
        "known_at",
        "direction",
        "amount_base",
        "is_anomaly",
        "confirmed_at",
    ),
    key="entity",
    null_rule="the row names no counterparty",
    source="Suzumura and Kanezashi (2021), IBM AMLSim (cycle typology); Paranjape et al. (2017), "
    "doi:10.1145/3018661.3018731 (temporal motifs)",
    settings=Settings,
    columns=columns,
    compute=compute,
)
