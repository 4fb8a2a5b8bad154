"""What a KPI is: declared once, and from here come column order, dictionary and tests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reperform import params
from reperform.featurize.kernels import F64
from reperform.featurize.ledger import Ledger

Key = Literal["account", "counterparty", "entity"]
Values = dict[str, F64]


@dataclass(frozen=True)
class Column:
    """One column of features.parquet.

    Args:
        name: unique; says KPI, quantity and window.
        formula: how it is computed, in words.
        unit: of its values.
        window: how far it looks back, such as `24h`; empty where it looks at the row or the whole past.
        is_model_input: False for counts of records and other aids that a reader needs and a model does not.
        null_rule: when it is unknown; the KPI's own rule if empty.
    """

    name: str
    formula: str
    unit: str
    window: str = ""
    is_model_input: bool = True
    null_rule: str = ""


def _learns_nothing(_ledger: Ledger, _end_us: int, _settings: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Kpi:
    """A family of columns that share a key, inputs and a source.

    Args:
        name: its word in `conf/featurize/`.
        number: of the 15 KPIs.
        title: what people call it.
        family: group in which a reader looks for it.
        formula: the definition in words.
        unit: of its main value.
        inputs: canonical columns that it reads.
        key: what its history is kept by; work splits by it, and `entity` looks across keys and is not split.
        null_rule: when its values are unknown.
        source: paper, standard or law.
        settings: frozen dataclass of its settings, checked like all parameters.
        columns: the columns that given settings make, in order.
        compute: ledger, fitted parameters, settings and the columns made so far, to its columns; NaN is unknown.
        fit: parameters from what had happened and was known before a moment (microseconds); plain values for JSON.
        needs: columns of earlier KPIs that it reads, or a function from settings to them; it is given no others.
        settings_key: where its settings stand, if it shares them with another.
    """

    name: str
    number: int
    title: str
    family: str
    formula: str
    unit: str
    inputs: tuple[str, ...]
    key: Key
    null_rule: str
    source: str
    settings: type
    columns: Callable[[Any], tuple[Column, ...]]
    compute: Callable[[Ledger, dict[str, Any], Any, Mapping[str, F64]], Values]
    fit: Callable[[Ledger, int, Any], dict[str, Any]] = _learns_nothing
    needs: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    settings_key: str = ""

    @property
    def learns(self) -> bool:
        """Whether it has parameters that are learned."""
        return self.fit is not _learns_nothing

    def needs_of(self, settings: Any) -> tuple[str, ...]:
        """Columns of earlier KPIs that it reads."""
        return self.needs(settings) if callable(self.needs) else self.needs

    def settings_of(self, given: Mapping[str, Mapping[str, Any]]) -> Any:
        """Its settings out of `featurize.settings`, with defaults for what is not given."""
        key = self.settings_key or self.name
        return params.build(self.settings, dict(given.get(key, {})), where=f"params.yaml:featurize.settings.{key}")
