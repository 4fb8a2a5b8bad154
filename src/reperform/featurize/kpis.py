"""Every KPI of transactions, in the order of their columns. To add one: docs/how-to/add-a-kpi.md."""

from reperform.featurize import (
    amounts,
    balance,
    benford,
    concentration,
    correlation,
    frequency,
    geography,
    graph,
    handbook,
    information,
    matched,
    network,
    propagation,
    risk,
    spikes,
    streaks,
    structure,
    synchrony,
    thresholds,
    timing,
    velocity,
)
from reperform.featurize.registry import Kpi

KPIS: dict[str, Kpi] = {
    kpi.name: kpi
    for kpi in (
        velocity.KPI,
        amounts.KPI,
        spikes.KPI,
        benford.KPI,
        timing.KPI,
        frequency.KPI,
        frequency.RATE_KPI,
        balance.KPI,
        geography.KPI,
        risk.COUNTERPARTY_RISK,
        risk.ACCOUNT_RISK,
        streaks.COUNTERPARTY_KPI,
        streaks.ACCOUNT_KPI,
        propagation.KPI,
        thresholds.KPI,
        thresholds.COUNTERPARTY_KPI,
        information.KPI,
        concentration.KPI,
        correlation.KPI,
        correlation.PEER_KPI,
        synchrony.KPI,
        network.KPI,
        network.COUNTERPARTY_KPI,
        graph.KPI,
        structure.KPI,
        matched.KPI,
    )
}

BY_NAME: dict[str, Kpi] = {kpi.name: kpi for kpi in (handbook.CUSTOMER_KPI, handbook.TERMINAL_KPI)}
"""Computed where `featurize.kpis` names them; they are not among all."""
