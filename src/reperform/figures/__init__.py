"""Figures for notebooks and reports: frame in, matplotlib figure out; one module per stage."""

from importlib.resources import as_file, files
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.figure import Figure

from reperform import tables

# Okabe and Ito (2008), "Color Universal Design": told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
DETECTOR_COLOURS = {
    "rules": BLACK,
    "isolation_forest": ORANGE,
    "one_class_svm": GREEN,
    "xgboost": BLUE,
    "random_forest": SKY,
    "lstm_autoencoder": PURPLE,
    "ensemble": VERMILION,
}


def use_style() -> None:
    """Apply the project's matplotlib style: readable sizes, colour-blind-safe cycle, the same bytes on every run."""
    with as_file(files("reperform.figures") / "reperform.mplstyle") as style:
        mpl.style.use(style)


def new(
    width_inch: float = 7.0, height_inch: float = 3.6, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[mpl.axes.Axes]]:
    """A figure in the project's style, without pyplot's global state, and its axes in reading order."""
    use_style()
    figure = Figure(figsize=(width_inch, height_inch), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.ravel())


def save(figure: Figure, target: Path) -> Path:
    """Write a PNG whose bytes depend on the figure alone."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return tables.write_bytes(buffer.getvalue(), target)
