"""Threshold rules, such as a bank has today: the baseline that every model is measured against."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperform.detectors.base import Arrays, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray
from reperform.errors import ReperformError, nearest

BOUNDS = ("at_least", "at_most")
RULE_KEYS = ("when", "weight", "why")


class RulesDetector(Detector):
    """Score: the summed weight of the rules that fired, plus a tie-breaker below 1.

    A rule fires when all of its conditions hold; an unknown value meets no condition. Weights are at least 1, so a
    score of 1 or more means that a rule fired. The tie-breaker ranks what lies between: it rises with every value that
    comes closer to its limit, or goes further beyond it. A rule whose column is missing cannot be evaluated, and is
    reported.

    Args:
        rules: by name: `when` (by column: `at_least` or `at_most`, a number), `weight` and `why`.
        features: names of the columns.
        seed: not used; nothing is drawn.
    """

    def __init__(
        self, *, rules: Mapping[str, Mapping[str, Any]] | None = None, features: tuple[str, ...] = (), seed: int = 0
    ) -> None:
        self.rules = rules
        self.features = features
        self.seed = seed

    @classmethod
    def columns(cls, parameters: Mapping[str, Any], model_inputs: Sequence[str], every: Sequence[str]) -> list[str]:
        """Columns that the rules name, also flags that no model reads."""
        del model_inputs
        named = {column for rule in parameters["rules"].values() for column in rule.get("when") or {}}
        return [column for column in every if column in named]

    def _fit(self, x: FloatMatrix, y: LabelArray, groups: GroupArray | None, weight: FloatArray | None) -> None:
        del y, groups, weight  # rules are written by people, not learned
        self._compile()
        fired = self.fired(x)
        self.rows_["fired"] = int(fired.any(axis=1).sum())
        self.rule_facts_ = {name: int(column.sum()) for name, column in zip(self.names_, fired.T, strict=True)}
        for name, missing in self.not_evaluable_.items():
            self.notes_.append(f"rule {name} cannot be evaluated: no column {', '.join(missing)}")

    def facts(self) -> dict[str, Any]:
        """Rows on which each rule fired, and rules that cannot be evaluated."""
        return super().facts() | {"fired_by_rule": self.rule_facts_, "not_evaluable": self.not_evaluable_}

    def fired(self, x: FloatMatrix) -> NDArray[np.bool_]:
        """Which rules fired: shape (n, number of evaluable rules), in the order of `names_`."""
        columns = [np.logical_and.reduce([_holds(x[:, c], b, t) for c, b, t in rule]) for rule in self.conditions_]
        return np.stack(columns, axis=1) if columns else np.zeros((len(x), 0), bool)

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        del groups
        return np.asarray(self.fired(x) @ self.weights_ + self._closeness(x), np.float64)

    def _closeness(self, x: FloatMatrix) -> FloatArray:
        total, count = np.zeros(len(x)), 0
        for column, bound, limit in (condition for rule in self.conditions_ for condition in rule):
            sign = 1 if bound == "at_least" else -1
            beyond = sign * (x[:, column].astype(np.float64) - limit) / max(abs(limit), 1)
            total += np.nan_to_num((1 + beyond / (1 + np.abs(beyond))) / 2, nan=0.0)
            count += 1
        return total / (count + 1)

    def _compile(self) -> None:
        self.names_: list[str] = []
        self.conditions_: list[list[tuple[int, str, float]]] = []
        self.not_evaluable_: dict[str, list[str]] = {}
        weights = []
        position = {name: index for index, name in enumerate(self.features)}
        for name, rule in (self.rules or {}).items():
            _check_rule(name, rule)
            missing = [column for column in rule["when"] if column not in position]
            if missing:
                self.not_evaluable_[name] = missing
                continue
            self.names_.append(name)
            weights.append(float(rule.get("weight", 1)))
            self.conditions_.append(
                [(position[c], b, float(t)) for c, bounds in rule["when"].items() for b, t in bounds.items()]
            )
        self.weights_ = np.array(weights, np.float64)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _restore(self, arrays: Arrays) -> None:
        del arrays  # the rules are the parameters
        self._compile()


def _holds(values: NDArray[Any], bound: str, limit: float) -> NDArray[np.bool_]:
    return np.asarray(values >= limit if bound == "at_least" else values <= limit)


def _check_rule(name: str, rule: Mapping[str, Any]) -> None:
    where = f"conf/model/rules.yaml:rules.{name}"
    for key in rule:
        if key not in RULE_KEYS:
            raise ReperformError(
                f"Rule {name} has no {key!r}.",
                expected=", ".join(RULE_KEYS),
                got=key,
                where=where,
                fix=nearest(key, RULE_KEYS),
            )
    if not rule.get("when"):
        raise ReperformError(f"Rule {name} has no condition.", expected="when: {column: {at_least: 1}}", where=where)
    if not float(rule.get("weight", 1)) >= 1:
        raise ReperformError(
            f"Rule {name} weighs too little.", expected="1 or more", got=str(rule["weight"]), where=where
        )
    for column, bounds in rule["when"].items():
        unknown = [bound for bound in bounds if bound not in BOUNDS]
        if unknown or not bounds:
            raise ReperformError(
                f"Rule {name} has a condition that nobody can read.",
                expected="at_least or at_most, with a number",
                got=f"{column}: {dict(bounds)}",
                where=where,
                fix=nearest(unknown[0], BOUNDS) if unknown else "give a limit",
            )
