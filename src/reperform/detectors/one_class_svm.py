"""One-class support vector machine, linear in rows: Nyström features and stochastic gradient descent."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM

from reperform.detectors.base import Arrays, Detector, FloatArray, FloatMatrix, GroupArray, LabelArray, over_rows
from reperform.detectors.scaling import RobustScaler


class OneClassSvmDetector(Detector):
    """Score: minus the signed distance to the boundary that holds most of the training rows.

    Args:
        nu: share of training rows that may lie outside.
        gamma: width of the radial kernel, times the number of columns: kernel exp(-gamma d^2 / p).
        n_components: landmarks of the Nyström approximation.
        max_rows: rows to learn from; more are thinned by seed.
        features: names of the columns.
        seed: of the landmarks, the thinning and the descent.

    Source: Schölkopf et al. (2001), "Estimating the support of a high-dimensional distribution"; Williams and Seeger
        (2001), "Using the Nyström method to speed up kernel machines".
    """

    leaves_out_anomalies = True
    limits = {  # noqa: RUF012  # as declared by the base class
        "nu": (1e-4, 0.9),
        "gamma": (1e-4, 100),
        "n_components": (2, 2000),
        "max_rows": (10, 10_000_000),
    }

    def __init__(
        self,
        *,
        nu: float = 0.05,
        gamma: float = 0.5,
        n_components: int = 100,
        max_rows: int = 100_000,
        features: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        self.nu = nu
        self.gamma = gamma
        self.n_components = n_components
        self.max_rows = max_rows
        self.features = features
        self.seed = seed

    def _fit(self, x: FloatMatrix, y: LabelArray, groups: GroupArray | None, weight: FloatArray | None) -> None:
        del groups, weight
        rows = x[y != 1]
        rows = rows if len(rows) else x
        if len(rows) > self.max_rows:
            self.notes_.append(f"learned from {self.max_rows} of {len(rows)} rows, drawn by seed")
            chosen = np.random.default_rng(self.seed).choice(len(rows), self.max_rows, replace=False)
            rows = rows[np.sort(chosen)]
        self.scaler_ = RobustScaler().fit(rows)
        scaled = self.scaler_.transform(rows)
        self.width_ = self.gamma / x.shape[1]
        kernel = Nystroem(
            gamma=self.width_, n_components=min(self.n_components, len(rows)), random_state=self.seed
        ).fit(scaled)
        machine = SGDOneClassSVM(nu=self.nu, random_state=self.seed).fit(kernel.transform(scaled))
        self.landmarks_ = np.asarray(kernel.components_, np.float32)
        # Landmarks' own weights: the same function as transform, then decision_function, in one product instead of two.
        self.weights_ = np.asarray(kernel.normalization_.T @ machine.coef_.ravel(), np.float64)
        self.offset_ = float(np.ravel(machine.offset_)[0])

    def _score(self, x: FloatMatrix, groups: GroupArray | None) -> FloatArray:
        from reperform.detectors import kernels  # noqa: PLC0415  # numba costs half a second

        del groups
        inside, columns = np.zeros(len(x)), np.ascontiguousarray(self.landmarks_.T)

        def add(part: slice) -> None:
            scaled = self.scaler_.transform(x[part])
            kernels.add_kernel_values(scaled, columns, np.float32(self.width_), self.weights_, inside[part])

        over_rows(add, len(x))
        return self.offset_ - inside

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            **self.scaler_.arrays(),
            "landmarks": self.landmarks_,
            "weights": self.weights_,
            "offset": np.array([self.offset_]),
            "width": np.array([self.width_]),
        }

    def _restore(self, arrays: Arrays) -> None:
        self.scaler_ = RobustScaler.restored(arrays)
        self.landmarks_, self.weights_ = arrays["landmarks"], arrays["weights"]
        self.offset_, self.width_ = float(arrays["offset"][0]), float(arrays["width"][0])
