"""What all detectors share: the contract, the checks at their door, and safe files that hold them."""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from reperform import tables
from reperform.errors import ReperformError, nearest

FloatMatrix = NDArray[np.floating[Any]]
FloatArray = NDArray[np.float64]
LabelArray = NDArray[np.int8]
GroupArray = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]
NOT_TUNABLE = ("features", "seed")
ARRAYS_FILE = "arrays.npz"
THREADS = 2
LEAST_SHARED_ROWS = 512  # fewer are scored sooner than a second thread begins
MOST_ROWS_AT_ONCE = 32_768


class Detector(BaseEstimator):
    """One small contract: `fit`, `score`; a higher score is more anomalous.

    A subclass implements `_fit`, `_score`, `_arrays` and `_restore`. Its constructor's arguments are what
    `conf/model/<name>.yaml` may say; `features` (names of the columns, in order) and `seed` come from the pipeline.
    """

    needs_labels: ClassVar[bool] = False
    """True where it learns from labels; the others use them only to leave out known anomalies."""
    reads_sequences: ClassVar[bool] = False
    """True where a row's score depends on rows of its group that arrived before: such rows must be passed along."""
    leaves_out_anomalies: ClassVar[bool] = False
    """True where known anomalies are left out of what it learns from."""
    limits: ClassVar[dict[str, tuple[float, float]]] = {}
    """Lowest and highest allowed value of each numeric parameter."""
    context_rows: int = 0
    """How many rows of its group that arrived before a row's score may depend on."""
    features: Sequence[str]
    seed: int

    @classmethod
    def columns(cls, parameters: Mapping[str, Any], model_inputs: Sequence[str], every: Sequence[str]) -> list[str]:
        """Columns that it reads: the model inputs, unless a subclass names its own among `every` column."""
        del parameters, every
        return list(model_inputs)

    def fit(
        self,
        x: FloatMatrix,
        y: LabelArray | None = None,
        *,
        groups: GroupArray | None = None,
        weight: FloatArray | None = None,
        typologies: Sequence[str | None] | None = None,
    ) -> Self:
        """Learn what is normal, or what tells anomalies from the rest.

        Args:
            x: float, shape (n, p); NaN = unknown. In order of arrival where it reads sequences, else of booking.
            y: shape (n,), 1 = known anomaly, 0 = normal or not known; None = no labels at all.
            groups: shape (n,), the account of each row; None = every row stands alone.
            weight: shape (n,), how many rows each row stands for; None = one.
            typologies: shape (n,), the kind of each known anomaly, None where nobody said; most detectors pass it over.

        Raises:
            ReperformError: for an empty or malformed matrix.
        """
        checked = self._checked(x)
        self.n_features_in_ = checked.shape[1]
        labels = np.zeros(len(checked), np.int8) if y is None else np.asarray(y, np.int8)
        self.rows_ = {"rows": len(checked), "known_anomalies": int(labels.sum())}
        self.notes_: list[str] = []
        self._typologies = typologies
        self._fit(checked, labels, groups, weight)
        del self._typologies
        return self

    def score(
        self, x: FloatMatrix, *, groups: GroupArray | None = None, wanted: NDArray[np.bool_] | None = None
    ) -> FloatArray:
        """The score of each row: shape (n,), finite, higher = more anomalous.

        Args:
            x: float, shape (n, p); NaN = unknown. In order of arrival where it reads sequences.
            groups: shape (n,), the account of each row; None = every row stands alone.
            wanted: shape (n,), rows whose scores are asked for, shape (number of them,); the others only come before
                them. None = all.

        Raises:
            ReperformError: for an empty or malformed matrix, or before `fit`.
        """
        if not hasattr(self, "n_features_in_"):
            raise ReperformError(
                f"{type(self).__name__} was not fitted.", expected="fit or load", got="score", fix="call fit first"
            )
        if wanted is None:
            return self._score(self._checked(x), groups)
        if not self.reads_sequences:
            return self._score(self._checked(x[wanted]), None)
        return self._score_wanted(self._checked(x), groups, wanted)

    def score_arrivals(
        self, x: FloatMatrix, *, groups: GroupArray, past: FloatMatrix, past_groups: GroupArray
    ) -> FloatArray:
        """Scores of rows that have just arrived, equal to what they are among all rows of their accounts.

        Args:
            x: shape (n, p), new rows in order of arrival.
            groups: shape (n,), their accounts.
            past: shape (m, p), what arrived before: the last `context_rows` rows of each of these accounts in order of
                arrival, or more; a detector that reads no sequences asks for none, and passes over what it is given.
            past_groups: shape (m,), their accounts.
        """
        if not self.reads_sequences or not len(past):
            return self.score(x, groups=groups)
        wanted = np.repeat([False, True], [len(past), len(x)])
        return self.score(np.concatenate([past, x]), groups=np.concatenate([past_groups, groups]), wanted=wanted)

    def facts(self) -> dict[str, Any]:
        """What the last fit saw and anything a reader should know, for `fit.json`."""
        return {**self.rows_, "notes": list(self.notes_)}

    def _checked(self, x: FloatMatrix) -> FloatMatrix:
        if x.ndim != 2:  # noqa: PLR2004  # a matrix
            raise ReperformError("Features are no matrix.", expected="shape (rows, columns)", got=str(x.shape))
        wanted = getattr(self, "n_features_in_", len(self.features)) or x.shape[1]
        if len(x) == 0 or x.shape[1] == 0:
            raise ReperformError(
                "There is nothing to learn from or to score.",
                expected="at least one row and one column",
                got=f"{len(x)} rows, {x.shape[1]} columns",
                where=type(self).__name__,
                fix="check split's calendar against the data's dates, and train.exclude_features",
            )
        if x.shape[1] != wanted:
            raise ReperformError(
                "Features have the wrong number of columns.",
                expected=f"{wanted} columns",
                got=str(x.shape[1]),
                where=type(self).__name__,
                fix="pass the columns that fit.json lists, in their order",
            )
        self._refuse_infinite(x)
        # Compiled functions would be compiled again for rows that are laid out otherwise or may not be written.
        return np.require(x, np.float32, ["C", "W"])

    def _refuse_infinite(self, x: FloatMatrix) -> None:
        infinite = np.isinf(x)
        if infinite.any():
            columns = np.flatnonzero(infinite.any(axis=0))
            names = [self.features[c] if len(self.features) else f"column {c}" for c in columns[:5]]
            raise ReperformError(
                "Features hold infinite values.",
                expected="finite numbers, or NaN where a value is unknown",
                got=", ".join(names),
                where=type(self).__name__,
                fix="mend the KPI that divides by zero",
            )

    def _fit(self, x: FloatMatrix, y: LabelArray, groups: GroupArray | None, weight: FloatArray | None) -> None:
        raise NotImplementedError

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        raise NotImplementedError

    def _score_wanted(self, x: FloatMatrix, groups: GroupArray | None, wanted: NDArray[np.bool_]) -> FloatArray:
        return self._score(x, groups)[wanted]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def _restore(self, arrays: Arrays) -> None:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Write what was fitted; plain arrays unless a subclass has a safe format of its own."""
        tables.write_bytes(packed(self._arrays()), folder / ARRAYS_FILE)

    def read(self, folder: Path) -> None:
        """Restore what `write` wrote; nothing in the file is executed."""
        with np.load(folder / ARRAYS_FILE, allow_pickle=False) as arrays:
            self._restore({name: arrays[name] for name in arrays.files})


@runtime_checkable
class TellsTypologies(Protocol):
    """A detector that says of which kind an anomaly would be."""

    def typology_probabilities(self, x: FloatMatrix) -> dict[str, FloatArray]:
        """By typology, the probability that a row is an anomaly of this kind: shape (n,)."""


def over_rows(work: Callable[[slice], None], n_rows: int) -> None:
    """Call `work` for parts that make up all rows, in two threads where there are many."""
    if n_rows < LEAST_SHARED_ROWS:
        work(slice(0, n_rows))
        return
    step = min(-(-n_rows // (2 * THREADS)), MOST_ROWS_AT_ONCE)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, [slice(start, start + step) for start in range(0, n_rows, step)]))


def packed(arrays: Arrays) -> bytes:
    """An `.npz` archive whose bytes depend on the arrays alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            one = io.BytesIO()
            np.lib.format.write_array(one, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, one.getvalue())
    return buffer.getvalue()


def check_parameters(kind: type[Detector], name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse a parameter that a detector does not have, or a number outside its limits.

    Raises:
        ReperformError: naming the nearest parameter, or the limits.
    """
    known = [key for key in kind._get_param_names() if key not in NOT_TUNABLE]  # noqa: SLF001  # scikit-learn's own list
    where = f"conf/model/{name}.yaml"
    for key, value in parameters.items():
        if key not in known:
            raise ReperformError(
                f"Detector {name} has no parameter {key!r}.",
                expected=f"one of {', '.join(known)}",
                got=key,
                where=where,
                fix=f"{nearest(key, known)}; then run `make params`",
            )
        low, high = kind.limits.get(key, (None, None))
        if low is None or high is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ReperformError(
                f"Parameter {key!r} of detector {name} has a wrong value.",
                expected=f"a number from {low:g} to {high:g}",
                got=repr(value),
                where=where,
                fix="change it there and run `make params`",
            )
