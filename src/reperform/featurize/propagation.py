"""KPI 7, propagation: how near account and counterparty are to known anomalies, by random walks over payments."""

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64, Mask
from reperform.featurize.ledger import Ledger
from reperform.featurize.motifs import personalised_ranks
from reperform.featurize.payments import Moment, PaymentGraph, day_slices, graph_of, names_of
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.risk import positive_known
from reperform.featurize.windows import DAY_US, length_us, ratio


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Walks.

    Args:
        window: age up to which a payment is an edge, and an anomaly makes its account a seed.
        damping: probability of walking on.
        every_days: length of the calendar's step; 7 begins on Mondays.
        folds: groups of accounts; a row's seeds are those of the other groups, so that no account is its own seed.
        tolerance: the iteration ends when no distribution moves by more than this in sum.
        most_iterations: and at the latest after so many.
    """

    window: str = "90d"
    damping: float = 0.85
    every_days: int = 7
    folds: int = 4
    tolerance: float = 1e-4
    most_iterations: int = 100


def columns(settings: Settings) -> tuple[Column, ...]:
    """The ratio for either side, and the seeds behind it."""
    w = settings.window
    walk = "personalised PageRank from accounts with a known anomaly, those of the row's own group left out, / PageRank"
    return (
        Column(f"account_propagated_risk_{w}", f"{walk}, of the account", "x", w),
        Column(
            f"counterparty_propagated_risk_{w}",
            f"{walk}, of the counterparty",
            "x",
            w,
            null_rule="no counterparty is named, it had no edge, or no account outside the group was known as bad",
        ),
        Column(
            f"propagated_risk_n_{w}",
            "accounts with a known anomaly from which the walks start",
            "accounts",
            w,
            is_model_input=False,
            null_rule="there are no labels",
        ),
    )


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, _made: Mapping[str, F64]) -> Values:
    """The ratios of each step's beginning, for the rows of that step."""
    graph, w = graph_of(ledger), settings.window
    known = positive_known(ledger)
    group = groups(ledger, settings.folds)
    account, counterparty, n = (np.full(len(ledger), np.nan) for _ in range(3))
    for day, begin, end in day_slices(ledger, settings.every_days) if ledger.labels.height else []:
        ratios, behind = at_step(graph, known, group, day, settings)
        node, other = graph.account[begin:end], graph.counterparty[begin:end]
        own = group[node]
        account[begin:end], n[begin:end] = ratios[node, own], behind[own]
        counterparty[begin:end] = np.where(other >= 0, ratios[other, own], np.nan)
    return {
        f"account_propagated_risk_{w}": account,
        f"counterparty_propagated_risk_{w}": counterparty,
        f"propagated_risk_n_{w}": n,
    }


def at_step(graph: PaymentGraph, known: I64, group: I64, day: int, settings: Settings) -> tuple[F64, I64]:
    """Ratios by node and group of the asking account, and seeds by group, as known when a step began.

    Args:
        graph: payments.
        known: when each row is known to be an anomaly, microseconds.
        group: of each node.
        day: on which the step begins, since 1970, UTC.
        settings: walks.
    """
    moment = graph.at(day * DAY_US, length_us(settings.window))
    seeds = _seeds(graph, known, day * DAY_US, length_us(settings.window)) & (np.diff(moment.both.starts) > 0)
    return _ratios(moment, seeds, group, settings)


def groups(ledger: Ledger, folds: int) -> I64:
    """Group of each node by a checksum of its name: it does not depend on what else is in the table."""
    return np.array([crc32(name.encode()) % folds for name in names_of(ledger)], np.int64)


def _seeds(graph: PaymentGraph, known: I64, moment_us: int, window_us: int) -> Mask:
    """Accounts of anomalies that happened in the window and were known by the moment."""
    first, end = np.searchsorted(graph.time, [moment_us - window_us, moment_us])
    bad = np.zeros(graph.nodes, np.bool_)
    bad[graph.account[first:end][known[first:end] <= moment_us]] = True
    return bad


def _ratios(moment: Moment, seeds: Mask, group: I64, settings: Settings) -> tuple[F64, I64]:
    """Personalised over plain PageRank by node and group of the asking account, and seeds by group."""
    starts = moment.both.starts
    linked = np.diff(starts) > 0
    from_others = np.stack([seeds & (group != fold) for fold in range(settings.folds)], axis=1)
    behind = from_others.sum(axis=0)
    wanted = np.concatenate([linked[:, None], from_others], axis=1).astype(float)
    teleport = np.ascontiguousarray(wanted / np.maximum(wanted.sum(axis=0), 1))
    ranks = personalised_ranks(
        starts, moment.both.others, moment.links[moment.both.pairs].astype(float), teleport,
        settings.damping, settings.tolerance, settings.most_iterations,
    )  # fmt: skip
    plain = np.where(linked, ranks[:, 0], np.nan)
    found = [
        ratio(ranks[:, 1 + fold], plain) if behind[fold] else np.full(len(plain), np.nan)
        for fold in range(settings.folds)
    ]
    return np.stack(found, axis=1), behind.astype(np.int64)


KPI = Kpi(
    name="propagated_risk",
    number=7,
    title="Propagated risk of account and counterparty",
    family="risk",
    formula="personalised PageRank (damping 0.85) from accounts with an anomaly known by the beginning of the week, "
    "over payments of the 90 days before it, divided by PageRank of the same graph; seeds of the account's own group "
    "are left out",
    unit="x",
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
    null_rule="the account had no edge, or no account outside its group was known as bad",
    source="Gyongyi, Garcia-Molina and Pedersen (2004), Combating Web Spam with TrustRank; Haveliwala (2002), "
    "Topic-Sensitive PageRank",
    settings=Settings,
    columns=columns,
    compute=compute,
)
