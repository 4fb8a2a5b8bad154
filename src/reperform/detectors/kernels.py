"""Loops over rows that detectors score by, compiled. Of the detectors, the only module that imports numba.

Every function works on one row at a time, in one order of operations: a row's score has the same bits alone, among a
thousand others and on two threads. Compiled code is kept beside the module, so that only the first run waits for it.
"""

# ruff: noqa: PLR0917  # compiled functions take arguments by position

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Flags = NDArray[np.bool_]
F = TypeVar("F", bound=Callable[..., Any])

ROWS_ABREAST = 64  # walked down a tree together, while it is in the cache
# A tree up to this depth is walked level by level, all rows at once, without a branch to be foreseen wrongly; in a
# deeper one most rows end early, and each is walked by itself.
LEVELS_ABREAST = 16

# Numerator and denominator of tanh(x) / x in x², accurate to a few units in the last place of a float32 up to
# TANH_LIMIT, where tanh is 1 to that precision. Source: Eigen, `generic_fast_tanh_float`.
TANH_LIMIT = np.float32(7.905311)
A0, A2, A4 = np.float32(4.89352455891786e-03), np.float32(6.37261928875436e-04), np.float32(1.48572235717979e-05)
A6, A8 = np.float32(5.12229709037114e-08), np.float32(-8.60467152213735e-11)
A10, A12 = np.float32(2.00018790482477e-13), np.float32(-2.76076847742355e-16)
B0, B2 = np.float32(4.89352518554385e-03), np.float32(2.26843463243900e-03)
B4, B6 = np.float32(1.18534705686654e-04), np.float32(1.19825839466702e-06)
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)

# exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, its Taylor series up to r^7; ln(2) in two parts, so that x - n ln(2) loses
# no digit. Source: Cody and Waite (1980), "Software manual for the elementary functions".
LEAST_EXPONENT = np.float32(-87)
PER_OCTAVE, OCTAVE_HIGH, OCTAVE_LOW = (
    np.float32(1.4426950408889634),
    np.float32(0.693359375),
    np.float32(-2.12194440e-4),
)
C2, C3, C4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
C5, C6, C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)
EXPONENT_BIAS, EXPONENT_PLACE = np.int32(127), np.int32(23)

if TYPE_CHECKING:

    def kernel(function: F) -> F:
        """Compile; typed as the plain function."""
        return function

    inlined = kernel
else:
    # Products and sums may be fused, which is a matter of the machine alone; sums are never put into another order.
    kernel = njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
    inlined = njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy", inline="always")


@inlined
def _child(x: F32, row: int, nodes: Any, missing_left: Flags, node: Any) -> Any:
    asked = x[row, nodes[node].feature]
    goes_left = (asked <= nodes[node].threshold) | (np.isnan(asked) & missing_left[node])
    return nodes[node].left if goes_left else nodes[node].right


@kernel
def add_leaf_values(x: F32, nodes: Any, missing_left: Flags, value: F64, roots: I32, depths: I32, total: F64) -> None:
    """Add the value of the leaf that each row ends in, tree after tree.

    Args:
        x: shape (n, p); NaN = unknown.
        nodes: of `trees.NODE`, shape (nodes,): a row goes left with at most the threshold; a leaf is its own child.
        missing_left: whether an unknown value goes left, shape (nodes,).
        value: of each node, shape (nodes,).
        roots: of each tree, shape (trees,).
        depths: of each tree, shape (trees,).
        total: shape (n,), added to.
    """
    at = np.empty(ROWS_ABREAST, np.int32)
    for start in range(0, x.shape[0], ROWS_ABREAST):
        end = min(start + ROWS_ABREAST, x.shape[0])
        for tree in range(len(roots)):
            at[:] = roots[tree]
            if depths[tree] <= LEVELS_ABREAST:
                for _ in range(depths[tree]):
                    for row in range(start, end):
                        at[row - start] = _child(x, row, nodes, missing_left, at[row - start])
            else:
                for row in range(start, end):
                    node = roots[tree]
                    while nodes[node].left != node:
                        node = _child(x, row, nodes, missing_left, node)
                    at[row - start] = node
            for row in range(start, end):
                total[row] += value[at[row - start]]


@kernel
def add_kernel_values(x: F32, landmarks: F32, width: Any, weights: F64, total: F64) -> None:
    """Add the weighted sum of exp(-width d²), d the distance of each row from each landmark.

    Args:
        x: shape (n, p), without NaN.
        landmarks: shape (p, m).
        width: float32.
        weights: of each landmark, shape (m,).
        total: shape (n,), added to.
    """
    m = landmarks.shape[1]
    squared, powers = np.empty(m, np.float32), np.empty(m, np.int32)
    as_floats = powers.view(np.float32)
    for row in range(x.shape[0]):
        squared[:] = ZERO
        for column in range(x.shape[1]):
            value = x[row, column]
            for k in range(m):
                apart = value - landmarks[column, k]
                squared[k] += apart * apart
        for k in range(m):
            exponent = max(-width * squared[k], LEAST_EXPONENT)
            octaves = np.floor(exponent * PER_OCTAVE + HALF)
            powers[k] = (np.int32(octaves) + EXPONENT_BIAS) << EXPONENT_PLACE
            r = exponent - octaves * OCTAVE_HIGH - octaves * OCTAVE_LOW
            squared[k] = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7))))))
        for k in range(m):
            total[row] += weights[k] * (squared[k] * as_floats[k])


@inlined
def _tanh(x: Any) -> Any:
    x = min(max(x, -TANH_LIMIT), TANH_LIMIT)
    y = x * x
    above = A0 + y * (A2 + y * (A4 + y * (A6 + y * (A8 + y * (A10 + y * A12)))))
    return x * above / (B0 + y * (B2 + y * (B4 + y * B6)))


@inlined
def _step(gates: F32, cell: F32, hidden: F32) -> None:
    """One step of an LSTM whose gates (input, forget, new, output) have been summed up."""
    size = len(cell)
    for k in range(2 * size):
        gates[k] = HALF * _tanh(HALF * gates[k]) + HALF
    for k in range(2 * size, 3 * size):
        gates[k] = _tanh(gates[k])
    for k in range(3 * size, 4 * size):
        gates[k] = HALF * _tanh(HALF * gates[k]) + HALF
    for k in range(size):
        cell[k] = gates[size + k] * cell[k] + gates[k] * gates[2 * size + k]
    for k in range(size):
        hidden[k] = gates[3 * size + k] * _tanh(cell[k])


@inlined
def _add_product(out: F32, values: F32, matrix: F32) -> None:
    """Add values @ matrix, in the order of the values; four at a time, so that sums stay in the processor."""
    n, m = matrix.shape
    whole = n - n % 4
    for j in range(0, whole, 4):
        v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
        for k in range(m):
            out[k] = (((out[k] + v0 * matrix[j, k]) + v1 * matrix[j + 1, k]) + v2 * matrix[j + 2, k]) + v3 * matrix[
                j + 3, k
            ]
    for j in range(whole, n):
        for k in range(m):
            out[k] += values[j] * matrix[j, k]


@kernel
def project(x: F32, known: Flags, of_value: F32, of_known: F32, all_known: F32, gates: F32) -> None:
    """What each row adds to the gates of the encoder, which is the same at every place of a sequence.

    Args:
        x: scaled values, shape (n, p); 0 where unknown.
        known: which of them are known.
        of_value: weights of values, shape (p, 4 h).
        of_known: weights of being known, shape (p, 4 h).
        all_known: bias and all of these weights together, shape (4 h,).
        gates: shape (n, 4 h), written.
    """
    for row in range(x.shape[0]):
        out = gates[row]
        out[:] = all_known
        for column in range(x.shape[1]):
            if not known[row, column]:
                for k in range(len(out)):
                    out[k] -= of_known[column, k]
        _add_product(out, x[row], of_value)


@kernel
def newest_step_errors(
    x: F32,
    known: Flags,
    gates: F32,
    sequences: I32,
    errors: F32,
    bias: F32,
    recurrent: F32,
    code_weight: F32,
    code_bias: F32,
    decoder: F32,
    decoder_bias: F32,
    output: F32,
    output_bias: F32,
) -> None:
    """Squared error of each known value of the newest step of each sequence, as written back from its code.

    Args:
        x: scaled values, shape (n, p).
        known: which of them are known.
        gates: from `project`, shape (n, 4 h).
        sequences: rows of each sequence, oldest first, -1 = empty, shape (m, length).
        errors: shape (m, p), written; 0 where unknown.
        bias: what an empty step adds to the gates, shape (4 h,).
        recurrent: shape (h, 4 h).
        code_weight: shape (h, c).
        code_bias: shape (c,).
        decoder: shape (c, 4 h); its recurrent weights play no part in its first step.
        decoder_bias: shape (4 h,).
        output: shape (h, p).
        output_bias: shape (p,).
    """
    size, width = recurrent.shape[0], x.shape[1]
    summed, code, written = np.empty(4 * size, np.float32), np.empty_like(code_bias), np.empty(width, np.float32)
    cell, hidden = np.empty(size, np.float32), np.empty(size, np.float32)
    for number in range(sequences.shape[0]):
        cell[:], hidden[:] = ZERO, ZERO
        for place in range(sequences.shape[1]):
            row = sequences[number, place]
            summed[:] = gates[row] if row >= 0 else bias
            _add_product(summed, hidden, recurrent)
            _step(summed, cell, hidden)
        code[:] = code_bias
        _add_product(code, hidden, code_weight)
        for j in range(len(code)):
            code[j] = _tanh(code[j])
        summed[:] = decoder_bias
        _add_product(summed, code, decoder)
        cell[:] = ZERO
        _step(summed, cell, hidden)
        written[:] = output_bias
        _add_product(written, hidden, output)
        newest = sequences[number, -1]
        for k in range(width):
            missed = written[k] - x[newest, k]
            errors[number, k] = missed * missed if known[newest, k] else ZERO
