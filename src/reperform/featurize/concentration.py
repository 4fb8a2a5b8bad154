"""KPI 11: how far an account's risk-weighted amounts sit on few counterparties or countries."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from reperform.featurize.kernels import F64, I64
from reperform.featurize.ledger import Ledger, pair_codes
from reperform.featurize.registry import Column, Kpi, Values
from reperform.featurize.shares import shares
from reperform.featurize.windows import length_us, where_enough

RISK_STEPS = 10_000  # risk in ten thousandths, so that exposures are whole numbers


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Windows and groups of KPI 11.

    Args:
        window: exposures that count.
        least_n: fewer records give no index.
        most_n: of more records, the latest so many count.
        groups: by what exposures are grouped.
        risk: column that weights an amount, as scored when it happened; 1 where it is unknown.
    """

    window: str = "30d"
    least_n: int = 20
    most_n: int = 2000
    groups: list[Literal["counterparty", "country", "channel"]] = field(
        default_factory=lambda: ["counterparty", "country"]
    )
    risk: str = "counterparty_risk_180d"


def columns(settings: Settings) -> tuple[Column, ...]:
    """Normalised index and effective number of groups, for each grouping."""
    w = settings.window
    out: list[Column] = []
    for g in settings.groups:
        rule = f"fewer than {settings.least_n} known records with a {g} in {w}"
        out += [
            Column(
                f"concentration_{g}_{w}", "(HHI - 1/K) / (1 - 1/K), K groups; 1 for K = 1", "0 to 1", w, null_rule=rule
            ),
            Column(
                f"concentration_{g}_effective_{w}",
                "1 / HHI, the effective number of groups",
                "groups",
                w,
                null_rule=rule,
            ),
            Column(
                f"concentration_{g}_unbiased_{w}",
                "HHI - (1 - HHI) / (e - 1), e = 1 / sum of the records' own squared shares",
                "0 to 1",
                w,
                is_model_input=False,
                null_rule=f"{rule}, or one record outweighs all others",
            ),
            Column(
                f"concentration_{g}_z_{w}",
                "(HHI - mean) / standard deviation, both over all ways to deal the records' exposures to the records",
                "z",
                w,
                null_rule=f"{rule}, or all ways give the same HHI",
            ),
            Column(
                f"concentration_{g}_n_{w}",
                f"records behind it, the latest {settings.most_n:,} at most",
                "transactions",
                w,
                is_model_input=False,
                null_rule="never",
            ),
        ]
    return tuple(out)


def exposure(ledger: Ledger, risk: F64 | None) -> I64:
    """Amount times risk as scored when it happened, in whole ten thousandths of a hundredth."""
    return weighted(ledger.cents, risk)


def weighted(cents: I64, risk: F64 | None) -> I64:
    """The same of amounts in hundredths."""
    weight = np.ones(len(cents)) if risk is None else np.where(np.isnan(risk), 1.0, risk)
    return np.maximum(np.rint(cents * np.rint(weight * RISK_STEPS)), 1).astype(np.int64)


def compute(ledger: Ledger, _fitted: dict[str, Any], settings: Settings, made: Mapping[str, F64]) -> Values:
    """Concentration of the account's exposures before the row."""
    w, history, out = settings.window, ledger.by_account, Values()
    events = history.tape(length_us(w))
    weights = exposure(ledger, made.get(settings.risk))
    for group in settings.groups:
        name = f"{group}_id" if group == "counterparty" else group
        item = pair_codes(ledger.account, ledger.codes_of(name))
        n_items = int(item.max(initial=-1)) + 1
        n, groups, hhi, unbiased, z = shares(
            events, item, weights, n_items, settings.least_n, settings.most_n, len(ledger)
        )
        out |= columns_of(group, settings, n, groups, hhi, unbiased, z)
    return out


def columns_of(  # noqa: PLR0917  # what the kernel returns, in its order
    group: str, settings: Settings, n: I64, groups: I64, hhi: F64, unbiased: F64, z: F64
) -> Values:
    """Columns of one grouping from what the kernel found."""
    w, least = settings.window, settings.least_n
    normal = np.where(groups > 1, (hhi - 1 / np.maximum(groups, 1)) / (1 - 1 / np.maximum(groups, 2)), 1.0)
    return {
        f"concentration_{group}_{w}": where_enough(np.clip(normal, 0, 1), n, least),
        f"concentration_{group}_effective_{w}": where_enough(1 / hhi, n, least),
        f"concentration_{group}_unbiased_{w}": unbiased,
        f"concentration_{group}_z_{w}": z,
        f"concentration_{group}_n_{w}": n.astype(float),
    }


KPI = Kpi(
    name="concentration",
    number=11,
    title="Risk concentration index",
    family="concentration",
    formula="HHI = sum of squared shares of E_k = sum of amount x risk as scored then, per counterparty or country; "
    "HHI* = (HHI - 1/K) / (1 - 1/K); z against exposures dealt anew to the same records",
    unit="0 to 1",
    inputs=("account_id", "booked_at", "known_at", "amount_base", "counterparty_id", "country"),
    key="account",
    null_rule="too few known records in the window",
    source="Herfindahl (1950); Hirschman (1964), The Paternity of an Index; effective number: Adelman (1969); "
    "moments under shuffling: Mantel (1967)",
    settings=Settings,
    columns=columns,
    compute=compute,
    needs=lambda settings: (settings.risk,),
)
