"""The levels that a basis spans, the nearest of them, and the basis that fits best.

A basis of b values spans 2^b levels, one table a channel: all sums of its values, each times one of two
digits (-1 and 1, or 0 and 1). Values are arrays `(n, channels)`, bases `(bits, *channels)`.

Nothing builds a tensor of values x levels: levels are told apart by comparisons with their midpoints,
one at a time, and least squares needs no more than the count and the summed error at each level.

Source: Zhang et al., "LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep Neural
Networks" (ECCV 2018), section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_qareg.numerics.compiled import Tensor, constant, segment_sums, take

# Above this many levels, bisection is cheaper than one comparison a level.
_COMPARED_LEVELS = 16
# Added to the normal equations: leaves what the values do not determine as it is.
_RIDGE = 1e-6


class Grid(NamedTuple):
    """The levels of a basis in ascending order, and the signs or bits that make them."""

    levels: Tensor  # (levels, channels)
    codes: Tensor  # (levels, channels, bits)

    @property
    def midpoints(self) -> Tensor:
        return 0.5 * self.levels[:-1] + 0.5 * self.levels[1:]


def grid_of(basis: Tensor, digits: tuple[float, float]) -> Grid:
    """All levels of a basis `(bits, *channels)`, sorted in each channel."""
    bits = basis.shape[0]
    basis = ops.reshape(ops.cast(basis, "float32"), (bits, -1))
    binary = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    codes = constant(np.array(digits, "float32")[binary], basis)
    # Not a matrix product, which accelerators compute in reduced precision.
    levels = sum(codes[:, i : i + 1] * basis[i] for i in range(bits))
    order = ops.argsort(levels, axis=0)
    return Grid(ops.take_along_axis(levels, order, axis=0), ops.take(codes, order, axis=0))


def nearest(flat: Tensor, midpoints: Tensor, values: Tensor) -> Tensor:
    """Of `values` `(levels, channels)`, those whose levels are nearest to `flat` `(n, channels)`.

    At a tie it is the lower level. Beyond 16 levels there must be one channel.
    """
    count = midpoints.shape[0] + 1
    if count > _COMPARED_LEVELS:
        index = ops.searchsorted(midpoints[:, 0], flat[:, 0], side="left")
        return take(values[:, 0], index)[:, None]
    found = ops.broadcast_to(values[0], ops.shape(flat))
    for j in range(1, count):
        found = ops.where(flat > midpoints[j - 1], values[j], found)
    return found


def best_change(
    flat: Tensor,
    grid: Grid,
    direction: np.ndarray | None = None,
    together: Callable[[Tensor], Tensor] = lambda means: means,
) -> Tensor:
    """What to add to a basis for the least squared error, as long as each value keeps its level.

    Args:
        flat: Values `(n, channels)`.
        grid: The levels of the basis.
        direction: Array `(bits,)` that the change must be a multiple of; by default it need not.
        together: Gives, for means over these values, those over all values there are elsewhere too.

    Returns:
        A tensor `(bits, channels)`; 0 wherever the values do not determine the basis.
    """
    shares, errors = map(together, _members(flat, grid))
    codes = grid.codes
    gram = ops.sum(shares[..., None, None] * codes[..., None] * codes[..., None, :], axis=0)
    force = ops.sum(errors[..., None] * codes, axis=0)
    if direction is None:
        return ops.transpose(_solve(gram, force))
    direction = constant(direction, flat)
    square = ops.sum(gram * (direction[:, None] * direction), axis=(1, 2))
    return direction[:, None] * (ops.sum(force * direction, axis=1) / (square + _RIDGE))


def _members(flat: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """For each level, the share of the values that are nearest to it, and their summed errors.

    Errors are divided by the number of all values. Both have shape `(levels, channels)`.
    """
    midpoints, levels = grid.midpoints, grid.levels.shape[0]
    size = ops.shape(flat)[0]
    # Sums of errors, not of values, which would lose their last digits in the difference.
    errors = flat - nearest(flat, midpoints, grid.levels)
    if levels > _COMPARED_LEVELS:
        index = ops.searchsorted(midpoints[:, 0], flat[:, 0], side="left")
        ones = ops.ones_like(index, dtype="int32")
        counts = segment_sums(ones, index, levels)[:, None]
        sums = segment_sums(errors[:, 0], index, levels)[:, None]
    else:
        above = [flat > midpoints[j] for j in range(levels - 1)]
        # Whole numbers: float32 does not count beyond 2^24.
        counts = _steps([ops.ones_like(flat, "int32"), *(ops.cast(m, "int32") for m in above)])
        sums = _steps([errors, *(ops.where(mask, errors, 0.0) for mask in above)])
    size = ops.cast(size, "float32")
    return ops.cast(counts, "float32") / size, sums / size


def _steps(parts: list[Tensor]) -> Tensor:
    """Sums over the values of each part less those of the next: `(parts, channels)`."""
    sums = [ops.sum(part, axis=0) for part in parts]
    return ops.stack([*(a - b for a, b in itertools.pairwise(sums)), sums[-1]])


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves small symmetric systems `(channels, bits, bits)`, singular ones too.

    What the ridge takes from the solution is given back by solving once more for the residual;
    nothing is given where the matrix is singular, for there the residual is nothing.
    """
    solution = _eliminate(matrix, right)
    residual = right - ops.sum(matrix * solution[:, None, :], axis=-1)
    return solution + _eliminate(matrix, residual)


def _eliminate(matrix: Tensor, right: Tensor) -> Tensor:
    """Gauss-Jordan elimination of a ridge regression.

    Library solvers raise an error on NaN in the middle of training, and are slow at thousands of
    systems of this size.
    """
    bits = matrix.shape[-1]
    identity = constant(np.eye(bits, dtype="float32"), matrix)
    system = ops.concatenate([matrix + _RIDGE * identity, right[..., None]], axis=-1)
    for k in range(bits):
        pivot_row = system[:, k] / system[:, k, k : k + 1]
        factors = system[:, :, k] - identity[k]
        system = system - factors[..., None] * pivot_row[:, None, :]
    return system[..., -1]
