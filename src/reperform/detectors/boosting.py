"""Gradient-boosted trees on labels. The only module that imports XGBoost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from reperform import tables
from reperform.detectors.base import THREADS, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray, over_rows
from reperform.errors import ReperformError, nearest

MODEL_FILE = "booster.ubj"
BINARY, TYPOLOGIES = "binary", "typologies"
NAMES = "typologies"  # attribute of the booster that holds the names of its classes
OTHER = "other"  # anomalies of a typology that is too rare to be learned, or that nobody named
LEAST_OF_TYPOLOGY = 5
# XGBoost's automatic base score and its 256 bins lose much average precision at 1 % prevalence. A start at even odds
# and 4,096 bins rank as the exact method does (handbook test week: 0.740 against 0.741), in a tenth of its time.
BASE_SCORE = 0.5


class BoostingDetector(Detector):
    """Score: the log odds of an anomaly; with two classes the margin, which SHAP values of trees add up to.

    Classes are neither resampled nor reweighted, so that the margin keeps the prevalence; unknown values take the
    branch that suits the training rows (native NaN).

    Args:
        n_estimators: boosting rounds.
        learning_rate: shrinkage of each round.
        max_depth: of each tree.
        min_child_weight: least sum of second derivatives in a leaf.
        subsample: share of rows drawn for each round.
        colsample_bytree: share of columns drawn for each round.
        reg_lambda: L2 penalty on leaf values.
        gamma: least gain of a split.
        tree_method: `hist`, `approx` or `exact`.
        max_bin: bins of each column; no effect with `exact`.
        parallel_trees: trees grown in each round, each on its own draw of rows and columns, and averaged.
        classes: `binary`, or `typologies`: normal and each typology are classes of their own, so that it says of which
            kind an anomaly would be.
        only: columns that it reads, out of the model inputs; none named = all of them.
        spark_master: of the Spark cluster that grows the trees, as Spark writes it; empty = this machine.
        features: names of the columns.
        seed: of the draws.

    Source: Chen and Guestrin (2016), "XGBoost: a scalable tree boosting system", KDD.
    """

    needs_labels = True
    limits = {  # noqa: RUF012  # as declared by the base class
        "n_estimators": (1, 10_000),
        "learning_rate": (1e-4, 1),
        "max_depth": (1, 16),
        "min_child_weight": (0, 1e6),
        "subsample": (0.05, 1),
        "colsample_bytree": (0.05, 1),
        "reg_lambda": (0, 1e6),
        "gamma": (0, 1e6),
        "max_bin": (2, 65_536),
        "parallel_trees": (1, 100),
    }

    def __init__(
        self,
        *,
        n_estimators: int = 150,
        learning_rate: float = 0.1,
        max_depth: int = 4,
        min_child_weight: float = 1.0,
        subsample: float = 1.0,
        colsample_bytree: float = 1.0,
        reg_lambda: float = 1.0,
        gamma: float = 0.0,
        tree_method: str = "hist",
        max_bin: int = 4096,
        parallel_trees: int = 1,
        classes: str = BINARY,
        only: Sequence[str] = (),
        spark_master: str = "",
        features: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.min_child_weight = min_child_weight
        self.subsample = subsample
        self.colsample_bytree = colsample_bytree
        self.reg_lambda = reg_lambda
        self.gamma = gamma
        self.tree_method = tree_method
        self.max_bin = max_bin
        self.parallel_trees = parallel_trees
        self.classes = classes
        self.only = only
        self.spark_master = spark_master
        self.features = features
        self.seed = seed

    @classmethod
    def columns(cls, parameters: Mapping[str, Any], model_inputs: Sequence[str], every: Sequence[str]) -> list[str]:
        """The model inputs, or those that `only` names, in their own order.

        Raises:
            ReperformError: for a name that is no model input, naming the nearest.
        """
        del every
        only = parameters.get("only") or ()
        for name in only:
            if name not in model_inputs:
                raise ReperformError(
                    f"XGBoost cannot read {name!r}: it is no model input.",
                    expected="names of columns that data/featurize/dictionary.json marks as model inputs",
                    got=name,
                    where="conf/model/xgboost.yaml:only",
                    fix=f"{nearest(name, model_inputs)}, or remove it; then run `make params`",
                )
        return [name for name in model_inputs if not only or name in only]

    def _fit(self, x: FloatMatrix, y: LabelArray, groups: GroupArray | None, weight: FloatArray | None) -> None:
        del groups
        xgboost = _library()
        rounds = self.n_estimators
        if not 0 < self.rows_["known_anomalies"] < len(y):
            rounds = 0
            self.notes_.append("labels of one kind only: every row gets the same score")
        target, self.typologies_ = self._target(y)
        names = list(self.features)
        if self.spark_master and rounds:
            from reperform.detectors import boosting_spark as on_spark  # noqa: PLC0415  # needs the extra [spark]

            self.booster_ = on_spark.trained(
                x, target, weight, rounds=rounds, settings=self._settings(), features=names, master=self.spark_master
            )
        else:
            data = xgboost.DMatrix(x, target, weight=weight, feature_names=names or None, nthread=THREADS)
            self.booster_ = xgboost.train(self._settings(), data, rounds)
        if self.typologies_:
            self.booster_.set_attr(**{NAMES: json.dumps(self.typologies_)})
        self._ready()

    def _ready(self) -> None:
        """A copy that predicts on the caller's thread: for a few rows, waking others costs more than they save."""
        self.on_one_thread_ = _library().Booster({"nthread": 1})
        self.on_one_thread_.load_model(self.booster_.save_raw("ubj"))

    def _target(self, y: LabelArray) -> tuple[NDArray[Any], list[str]]:
        """What the trees learn, and names of the classes 1, 2, … when there is one for each typology."""
        if self.classes == BINARY:
            return y, []
        if self.classes != TYPOLOGIES:
            raise ReperformError(
                "XGBoost knows no such classes.",
                expected=f"{BINARY} or {TYPOLOGIES}",
                got=repr(self.classes),
                where="conf/model/xgboost.yaml:classes",
                fix="change it there and run `make params`",
            )
        return classes_of(y, self._typologies)

    def _settings(self) -> dict[str, object]:
        settings: dict[str, object] = {
            "objective": "multi:softprob" if self.typologies_ else "binary:logistic",
            "base_score": BASE_SCORE,
            "learning_rate": self.learning_rate,
            "max_depth": self.max_depth,
            "min_child_weight": self.min_child_weight,
            "subsample": self.subsample,
            "colsample_bytree": self.colsample_bytree,
            "reg_lambda": self.reg_lambda,
            "gamma": self.gamma,
            "tree_method": self.tree_method,
            "num_parallel_tree": self.parallel_trees,
            "seed": self.seed,
            "nthread": THREADS,
        }
        if self.typologies_:
            settings["num_class"] = len(self.typologies_) + 1
        return settings if self.tree_method == "exact" else settings | {"max_bin": self.max_bin}

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        del groups
        margin = self._margin(x)
        if not self.typologies_:
            return np.asarray(margin, np.float64)
        return np.asarray(logsumexp(margin[:, 1:], axis=1) - margin[:, 0], np.float64)

    def _margin(self, x: FloatMatrix) -> NDArray[Any]:
        margin = np.empty((len(x), len(self.typologies_) + 1) if self.typologies_ else len(x))

        def predict(part: slice) -> None:
            margin[part] = self.on_one_thread_.inplace_predict(x[part], predict_type="margin", validate_features=False)

        over_rows(predict, len(x))
        return margin

    def contributions(self, x: FloatMatrix) -> NDArray[np.float64]:
        """What each feature adds to the margin, exact: shape (n, p + 1), last what every row has; rows sum to it.

        With two classes alone: with a class for each typology, no sum over features gives the score.

        Source: Lundberg et al. (2020), conditioned on the paths that training rows took.
        """
        data = _library().DMatrix(self._checked(x), nthread=1)
        return np.asarray(self.on_one_thread_.predict(data, pred_contribs=True, validate_features=False), np.float64)

    def typology_probabilities(self, x: FloatMatrix) -> dict[str, FloatArray]:
        """For each typology that was learned, the probability that a row is an anomaly of this kind: shape (n,).

        Empty with two classes. Together with the probability of being normal they sum to 1.
        """
        if not self.typologies_:
            return {}
        shares = softmax(self._margin(self._checked(x)), axis=1)
        return {name: shares[:, number] for number, name in enumerate(self.typologies_, start=1)}

    def write(self, folder: Path) -> None:
        """Write the trees in XGBoost's own binary JSON."""
        tables.write_bytes(bytes(self.booster_.save_raw("ubj")), folder / MODEL_FILE)

    def read(self, folder: Path) -> None:
        """Restore the trees."""
        self.booster_ = _library().Booster({"nthread": THREADS}, model_file=str(folder / MODEL_FILE))
        self.typologies_ = json.loads(self.booster_.attr(NAMES) or "[]")
        self._ready()


def classes_of(y: LabelArray, typologies: Sequence[str | None] | None) -> tuple[NDArray[np.int64], list[str]]:
    """Class of each row, 0 where it is normal, and names of the classes from 1 on.

    Args:
        y: shape (n,), 1 or 0.
        typologies: shape (n,), kind of each known anomaly; None = nobody named any.
    """
    named = np.array([None] * len(y) if typologies is None else list(typologies), object)
    anomalies = np.flatnonzero(y == 1)
    kinds, counts = np.unique([name for name in named[anomalies] if name is not None], return_counts=True)
    names = [str(name) for name, n in zip(kinds, counts, strict=True) if n >= LEAST_OF_TYPOLOGY and name != OTHER]
    number = {name: at for at, name in enumerate(names, start=1)}
    target = np.zeros(len(y), np.int64)
    target[anomalies] = [number.get(named[row], len(names) + 1) for row in anomalies]
    return target, [*names, OTHER]


def _library() -> Any:
    import xgboost  # noqa: PLC0415  # costs a second, and the other detectors do without

    return xgboost
