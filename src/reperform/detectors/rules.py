"""Threshold rules, such as a bank has today: the baseline that every model is measured against."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperform.detectors.base import Arrays, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray, over_rows
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
        if not self.names_:
            return np.zeros((len(x), 0), bool)
        sign = self.sign_.astype(x.dtype)
        holds = x[:, self.column_] * sign >= self.limit_.astype(x.dtype) * sign
        return np.asarray(np.logical_and.reduceat(holds, self.first_, axis=1))

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        del groups
        score = np.empty(len(x))

        def rate(part: slice) -> None:
            score[part] = self.fired(x[part]) @ self.weights_ + self._closeness(x[part])

        over_rows(rate, len(x))
        return score

    def _closeness(self, x: FloatMatrix) -> FloatArray:
        if not self.names_:
            return np.zeros(len(x))
        beyond = (x[:, self.column_] - self.limit_) * (self.sign_ / np.maximum(np.abs(self.limit_), 1))
        near = np.nan_to_num((1 + beyond / (1 + np.abs(beyond))) / 2, nan=0.0)
        # A running sum adds in one order, however many rows there are.
        return np.asarray(np.cumsum(near, axis=1)[:, -1] / (len(self.column_) + 1))

    def _compile(self) -> None:
        self.names_: list[str] = []
        self.not_evaluable_: dict[str, list[str]] = {}
        weights: list[float] = []
        conditions: list[tuple[int, float, float]] = []
        first: list[int] = []
        position = {name: index for index, name in enumerate(self.features)}
        for name, rule in (self.rules or {}).items():
            _check_rule(name, rule)
            missing = [column for column in rule["when"] if column not in position]
            if missing:
                self.not_evaluable_[name] = missing
                continue
            self.names_.append(name)
            weights.append(float(rule.get("weight", 1)))
            first.append(len(conditions))
            conditions += [
                (position[column], 1 if bound == "at_least" else -1, float(limit))
                for column, bounds in rule["when"].items()
                for bound, limit in bounds.items()
            ]
        self.weights_, self.first_ = np.array(weights, np.float64), np.array(first, np.int64)
        columns = np.array(conditions, np.float64).reshape(-1, 3)
        self.column_, self.sign_, self.limit_ = columns[:, 0].astype(np.int64), columns[:, 1], columns[:, 2]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _restore(self, arrays: Arrays) -> None:
        del arrays  # the rules are the parameters
        self._compile()


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
