"""Every KPI of transactions, in the order of their columns. To add one: docs/how-to/add-a-kpi.md."""

from reperform.featurize import (
    amounts,
    balance,
    concentration,
    correlation,
    frequency,
    geography,
    graph,
    network,
    risk,
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
        timing.KPI,
        frequency.KPI,
        balance.KPI,
        geography.KPI,
        risk.COUNTERPARTY_RISK,
        risk.ACCOUNT_RISK,
        thresholds.KPI,
        thresholds.COUNTERPARTY_KPI,
        concentration.KPI,
        correlation.KPI,
        network.KPI,
        network.COUNTERPARTY_KPI,
        graph.KPI,
    )
}
