"""LSTM autoencoder: an account's newest transaction is anomalous when its recent sequence can't be written back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperform.detectors.base import Arrays, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray, over_rows
from reperform.detectors.scaling import RobustScaler

LEAST_ERROR = 1e-3


class LstmAutoencoderDetector(Detector):
    """Score: mean squared error of the newest step over its known features, each relative to its usual error.

    A sequence is what arrived last of an account, up to and including the scored row: a row that is booked earlier but
    comes later has no part in it. What lies before an account's first row is masked. Known anomalies take part in no
    training sequence.

    Args:
        length: steps of a sequence.
        hidden_size: units of each LSTM.
        code_size: numbers that a sequence is squeezed into.
        learning_rate: of Adam.
        epochs: passes over the training sequences.
        batch_size: sequences per step of Adam.
        max_sequences: sequences to train on; more are thinned by seed.
        features: names of the columns.
        seed: of weights, thinning and the order of batches.
    """

    leaves_out_anomalies = True
    reads_sequences = True
    limits = {  # noqa: RUF012  # as declared by the base class
        "length": (1, 512),
        "hidden_size": (1, 1024),
        "code_size": (1, 1024),
        "learning_rate": (1e-6, 1),
        "epochs": (1, 1000),
        "batch_size": (1, 65_536),
        "max_sequences": (10, 10_000_000),
    }

    def __init__(
        self,
        *,
        length: int = 16,
        hidden_size: int = 32,
        code_size: int = 12,
        learning_rate: float = 0.005,
        epochs: int = 3,
        batch_size: int = 256,
        max_sequences: int = 20_000,
        features: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        self.length = length
        self.hidden_size = hidden_size
        self.code_size = code_size
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_sequences = max_sequences
        self.features = features
        self.seed = seed

    @property
    def context_rows(self) -> int:  # type: ignore[override]  # it depends on a parameter here
        """Steps of a sequence before the scored one."""
        return self.length - 1

    def _fit(self, x: FloatMatrix, y: LabelArray, groups: GroupArray | None, weight: FloatArray | None) -> None:
        from reperform.detectors import sequence_network as network  # noqa: PLC0415  # costs four seconds

        del weight
        keep = y != 1 if (y != 1).any() else np.ones(len(x), bool)
        rows, accounts = x[keep], _groups_of(x, groups)[keep]
        self.scaler_ = RobustScaler().fit(rows)
        sequences = sequence_rows(accounts, self.length)[self._chosen(len(rows))]
        scaled, known = self._scaled(rows)
        self.weights_ = network.trained(
            *_steps(scaled, known, sequences),
            hidden_size=self.hidden_size,
            code_size=self.code_size,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        self.layers_ = Layers.of(self.weights_)
        errors, seen = self.layers_.errors(scaled, known, sequences), known[sequences[:, -1]].sum(axis=0)
        # A feature that is hard to foresee must not drown the others.
        self.usual_error_ = np.maximum(errors.sum(axis=0, dtype=np.float64) / np.maximum(seen, 1), LEAST_ERROR)

    def _chosen(self, n_rows: int) -> NDArray[np.int64]:
        if n_rows <= self.max_sequences:
            return np.arange(n_rows)
        self.notes_.append(f"trained on {self.max_sequences} of {n_rows} sequences, drawn by seed")
        return np.sort(np.random.default_rng(self.seed).choice(n_rows, self.max_sequences, replace=False))

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        return np.asarray(self.contributions(x, groups=groups, checked=True).sum(axis=1))

    def _score_wanted(self, x: FloatMatrix, groups: GroupArray | None, wanted: NDArray[np.bool_]) -> FloatArray:
        return np.asarray(self._errors(x, sequence_rows(_groups_of(x, groups), self.length)[wanted]).sum(axis=1))

    def contributions(
        self, x: FloatMatrix, *, groups: GroupArray | None = None, checked: bool = False
    ) -> NDArray[np.float64]:
        """What each feature of the newest step adds to the score: shape (n, p); rows sum to `score`."""
        rows = x if checked else self._checked(x)
        return self._errors(rows, sequence_rows(_groups_of(rows, groups), self.length))

    def _errors(self, x: FloatMatrix, sequences: NDArray[np.int32]) -> NDArray[np.float64]:
        """Of each sequence's newest step, by feature: shape (len(sequences), p)."""
        scaled, known = self._scaled(x)
        of_newest = np.maximum(known[sequences[:, -1]].sum(axis=1, keepdims=True), 1)
        return np.asarray(self.layers_.errors(scaled, known, sequences) / self.usual_error_ / of_newest)

    def _scaled(self, x: FloatMatrix) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        scaled = np.empty_like(x)

        def scale(part: slice) -> None:
            scaled[part] = self.scaler_.transform(x[part])

        over_rows(scale, len(x))
        return scaled, ~np.isnan(x)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        learned = {f"network.{name}": array for name, array in self.weights_.items()}
        return {**self.scaler_.arrays(), "usual_error": self.usual_error_, **learned}

    def _restore(self, arrays: Arrays) -> None:
        self.scaler_ = RobustScaler.restored(arrays)
        self.usual_error_ = arrays["usual_error"]
        self.weights_ = {name.removeprefix("network."): a for name, a in arrays.items() if name.startswith("network.")}
        self.layers_ = Layers.of(self.weights_)


@dataclass(frozen=True)
class Layers:
    """The network's weights as compiled functions read them; scoring needs no PyTorch.

    Args:
        of_value: of the encoder for values, shape (p, 4 h).
        of_known: of the encoder for their being known, shape (p, 4 h).
        all_known: of the encoder where every value is known, bias included, shape (4 h,).
        bias: of the encoder, shape (4 h,).
        rest: the other arguments of `kernels.newest_step_errors`, from `recurrent` on, in order.
    """

    of_value: NDArray[np.float32]
    of_known: NDArray[np.float32]
    all_known: NDArray[np.float32]
    bias: NDArray[np.float32]
    rest: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(cls, weights: Arrays) -> "Layers":
        """Layers from weights by PyTorch's names; gates stand in its order: input, forget, new, output."""

        def turned(name: str) -> NDArray[np.float32]:
            return np.ascontiguousarray(weights[name].T, np.float32)

        def bias(part: str) -> NDArray[np.float32]:
            return np.asarray(weights[f"{part}.bias_ih_l0"] + weights[f"{part}.bias_hh_l0"], np.float32)

        of_value, of_known = np.split(turned("encoder.weight_ih_l0"), 2)
        code = (turned("code.weight"), weights["code.bias"])
        decoder = (turned("decoder.weight_ih_l0"), bias("decoder"))
        output = (turned("output.weight"), weights["output.bias"])
        rest = (turned("encoder.weight_hh_l0"), *code, *decoder, *output)
        all_known = bias("encoder") + of_known.sum(axis=0)
        return cls(of_value, of_known, all_known, bias("encoder"), rest)

    def errors(
        self, scaled: NDArray[np.float32], known: NDArray[np.bool_], sequences: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Squared error of each known value of each sequence's newest step: shape (len(sequences), p)."""
        from reperform.detectors import kernels  # noqa: PLC0415  # numba costs half a second

        gates = np.empty((len(scaled), len(self.bias)), np.float32)
        found = np.empty((len(sequences), scaled.shape[1]), np.float32)

        def project(part: slice) -> None:
            kernels.project(scaled[part], known[part], self.of_value, self.of_known, self.all_known, gates[part])

        def write_back(part: slice) -> None:
            kernels.newest_step_errors(scaled, known, gates, sequences[part], found[part], self.bias, *self.rest)

        over_rows(project, len(scaled))
        over_rows(write_back, len(sequences))
        return found


def _steps(
    scaled: NDArray[np.float32], known: NDArray[np.bool_], sequences: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Values and masks of sequences, each of shape (len(sequences), length, p); zero where there is no row."""
    nothing = np.zeros((1, scaled.shape[1]), np.float32)  # comes last, where -1 points
    values, mask = np.concatenate([scaled, nothing]), np.concatenate([known.astype(np.float32), nothing])
    return values[sequences], mask[sequences]


def sequence_rows(groups: GroupArray, length: int) -> NDArray[np.int32]:
    """Rows that make up the sequence which ends with each row.

    Args:
        groups: shape (n,), the account of each row, rows in order of arrival.
        length: steps of a sequence.

    Returns:
        Shape (n, length), oldest first, the row itself last; -1 where no row of the account came before.
    """
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    is_first = np.ones(len(groups), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(groups)), 0))
    order = order.astype(np.int32)
    wanted = np.arange(len(groups), dtype=np.int32)[:, None] + np.arange(1 - length, 1, dtype=np.int32)
    rows = np.where(wanted >= first[:, None], order[np.maximum(wanted, 0)], np.int32(-1))
    result = np.empty_like(rows)
    result[order] = rows
    return result


def _groups_of(x: FloatMatrix, groups: GroupArray | None) -> GroupArray:
    return np.arange(len(x)) if groups is None else np.asarray(groups, np.int64)
