"""Imputation and robust scaling, fitted on training rows and shared by the unsupervised detectors."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperform.detectors.base import Arrays, FloatMatrix

MAX_ROWS = 200_000
IQR_OF_NORMAL = 1.349
LARGEST = np.finfo(np.float32).max
QUARTILES = (25, 50, 75)


class RobustScaler:
    """Centre by the median, divide by the interquartile range, and put unknown values at the median.

    Tails are compressed by asinh: money is heavy-tailed, and without it a single large amount sets the scale of every
    distance. The order of values is kept. Columns whose quartiles coincide (flags, rare counts) are divided by their
    standard deviation instead; constant ones become 0.
    """

    def fit(self, x: FloatMatrix) -> "RobustScaler":
        """Learn centre and scale of each column, from every k-th row where there are more than `MAX_ROWS`."""
        sample = x[:: -(-len(x) // MAX_ROWS)]
        learned = [_centre_and_scale(sample[:, column]) for column in range(x.shape[1])]
        self.centre_ = np.array([centre for centre, _ in learned], np.float32)
        self.scale_ = np.array([scale for _, scale in learned], np.float32)
        return self

    def transform(self, x: FloatMatrix) -> NDArray[np.float32]:
        """The scaled matrix, without NaN."""
        scaled = np.asarray(x, np.float32) - self.centre_
        with np.errstate(over="ignore"):
            scaled /= self.scale_
        np.clip(scaled, -LARGEST, LARGEST, out=scaled)
        np.arcsinh(scaled, out=scaled)
        scaled[np.isnan(scaled)] = 0
        return scaled

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learned, by name."""
        return {"centre": self.centre_, "scale": self.scale_}

    @classmethod
    def restored(cls, arrays: Arrays) -> "RobustScaler":
        """The scaler that `arrays` came from."""
        scaler = cls()
        scaler.centre_, scaler.scale_ = arrays["centre"], arrays["scale"]
        return scaler


def _centre_and_scale(column: NDArray[Any]) -> tuple[float, float]:
    known = column[~np.isnan(column)].astype(np.float64)
    if not known.size:
        return 0.0, 1.0
    low, median, high = np.percentile(known, QUARTILES)
    scale = (high - low) / IQR_OF_NORMAL or known.std()
    return float(median), float(scale) if scale > np.finfo(np.float32).tiny else 1.0
