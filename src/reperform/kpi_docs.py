"""The reference of all KPIs, docs/kpis.md: written from their declarations, with distributions of one data set.

Run by hand where a declaration has changed: `python -m reperform kpi-docs`. A test says when that is.
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from reperform import params, tables
from reperform.featurize.kpis import KPIS
from reperform.featurize.provenance import longest_window_us, scope_of
from reperform.featurize.registry import Column, Kpi
from reperform.featurize.windows import FOREVER_US
from reperform.markup import formatted, literal
from reperform.params import FeaturizeParams

PAGE = "kpis.md"
SHOWN = ("0.05", "0.5", "0.95")
HEADINGS = ("column", "formula", "unit", "window", "unknown when", "model", "unknown", "5 %", "median", "95 %")
DISTRIBUTION = 4  # of them, the last ones
INTRODUCTION = """# The KPIs

Written by `python -m reperform kpi-docs` from the declarations in `src/reperform/featurize/`. The last four columns of
each table are the share of unknown values and quantiles on the demo data, as of the last run of the command.

Each KPI is known as of its row's moment: from records that had arrived and labels that were confirmed. When the newest
of them arrived is in `data/featurize/provenance.parquet`, one column `<kpi>_as_of` per KPI. Where a definition leaves a
choice, [decision 4](decisions/0004-kpi-definitions.md) says which was taken; [what each is worth](kpi-value.md) was
measured. Add one: [how-to](how-to/add-a-kpi.md).
"""
ELSEWHERE = """## Not per transaction

| KPI | where | formula |
|:---|:---|:---|
| 9 reporting completeness | `data/featurize/filing_kpis.parquet` | required facts that are present, valid and in the right context, weighted, over all required ones; days after the due time apart |
| 10 cross-reference consistency | `filing_kpis.parquet`, `filing_checks.parquet`, `filing_bridge.parquet` | rules that hold within the accuracy of what was reported, over all rules that can be evaluated; with coverage, gap and severity |
| 14 predictive risk | `data/forecast` | probability of a confirmed anomaly of the account in the next days, calibrated |
| 15 explainability index | `data/explain/quality.json` | geometric mean of faithfulness, stability, agreement, sparsity and confidence; 0 where additivity fails |
"""  # noqa: E501  # table rows are lines
Distribution = Callable[[str], tuple[str, ...]]


def page(stage: FeaturizeParams, distribution: Distribution) -> str:
    """The whole page.

    Args:
        stage: settings, which decide on windows and columns.
        distribution: gives the last cells of a column's row by its name.
    """
    ordered = sorted(KPIS.values(), key=lambda kpi: kpi.number)
    return "\n".join([INTRODUCTION, *(_section(kpi, stage, distribution) for kpi in ordered), ELSEWHERE])


def _section(kpi: Kpi, stage: FeaturizeParams, distribution: Distribution) -> str:
    settings = kpi.settings_of(stage.settings)
    back = longest_window_us(kpi, settings)
    facts = {
        "Formula": kpi.formula,
        "Unit": kpi.unit,
        "Inputs": ", ".join(f"`{name}`" for name in kpi.inputs),
        "Key": kpi.key,
        "Records": f"of {_WHOSE[scope_of(kpi)]}, {'whole past' if back >= FOREVER_US else 'of the longest window'}",
        "Unknown when": kpi.null_rule,
        "Source": kpi.source,
        "Learned before `fit_end`": "yes, see `fitted.json`" if kpi.learns else "nothing",
        "Settings": f"`featurize.settings.{kpi.settings_key or kpi.name}`: "
        + ", ".join(f"`{field.name}`" for field in fields(settings)),
    }
    said = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    rows = "\n".join(_row(column, distribution(column.name)) for column in kpi.columns(settings))
    head = f"| {' | '.join(HEADINGS)} |\n|{':---|' * (len(HEADINGS) - DISTRIBUTION)}{'---:|' * DISTRIBUTION}"
    return f"## {kpi.number} {kpi.title} (`{kpi.name}`)\n\n{said}\n\n{head}\n{rows}\n"


_WHOSE = {"account": "the account", "counterparty": "the counterparty", "entity": "the entity", "all": "everybody"}


def _row(column: Column, distribution: tuple[str, ...]) -> str:
    cells = (
        f"`{column.name}`", literal(column.formula), literal(column.unit), column.window, literal(column.null_rule),
        "yes" if column.is_model_input else "no", *distribution,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def from_dictionary(entries: list[dict[str, Any]]) -> Distribution:
    """Distributions out of `data/featurize/dictionary.json`."""
    known = {entry["name"]: entry for entry in entries}

    def cells(name: str) -> tuple[str, ...]:
        entry = known.get(name)
        if entry is None or entry["null_share"] is None:
            return ("",) * DISTRIBUTION
        return f"{100 * entry['null_share']:.1f} %", *(_cell(entry["quantiles"][q]) for q in SHOWN)

    return cells


def from_page(text: str) -> Distribution:
    """Distributions out of a page that was written before."""
    lines = (line for line in text.splitlines() if line.startswith("| `"))
    split = (line.removesuffix(" |").split(" | ") for line in lines)
    rows = {c[0].split("`")[1]: tuple(cell.strip() for cell in c[-DISTRIBUTION:]) for c in split}
    return lambda name: rows.get(name, ("",) * DISTRIBUTION)


def _cell(value: float | None) -> str:
    return "" if value is None else formatted(value)


def main(target: Path) -> int:
    """Write the page from the project's parameters and feature dictionary."""
    stage = params.load(FeaturizeParams)
    tables.write_text(page(stage, from_dictionary(tables.read_json("featurize", "dictionary"))), target / PAGE)
    return 0
