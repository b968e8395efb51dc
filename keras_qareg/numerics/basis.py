"""The levels that a basis spans, the nearest of them, and the basis that fits best.

A basis of b values spans 2^b levels, one table a channel: all sums of its values, each times one of two
digits (-1 and 1, or 0 and 1). Values are arrays `(n, channels)`, bases `(bits, *channels)`.

Nothing builds a tensor of values x levels: levels are told apart by comparisons with their midpoints,
one at a time, and least squares needs no more than the count and the summed error at each level.

Training moves a basis from where it is. A new one is looked for from several starts (`best_basis`):
with 3 and 4 bits least squares ends in one of many places, from evenly spaced levels 5 to 40 percent
above the best. Magnitudes are sorted once; a round is then a search for each midpoint, however many
weights there are.

Source: Zhang et al., "LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep Neural
Networks" (ECCV 2018), section 3.

See also: https://keras-qareg.github.io/keras-qareg/method.html#where-a-wnq-basis-starts
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_qareg.numerics.compiled import (
    COMPARED_LEVELS,
    Tensor,
    compared,
    constant,
    segment_sums,
    take,
)

# Added to the normal equations: leaves what the values do not determine as it is.
_RIDGE = 1e-6
# Where a new basis starts, in units of the root mean square of the values, by its bits: first levels
# evenly spaced for a normal distribution (Max, "Quantizing for minimum distortion", 1960), then where
# least squares ended best for normal, Laplace and Student's t distributions and kernels.
_SHAPES = {
    1: [[0.8]],
    2: [[0.5, 1.0], [0.7, 1.9], [0.9, 3.5]],
    3: [[0.29, 0.59, 1.17], [0.47, 0.78, 1.03], [0.6, 1.0, 1.3], [0.9, 2.3, 2.8]],
    4: [
        [0.17, 0.34, 0.67, 1.34],
        [0.29, 0.55, 0.7, 1.12],
        [0.44, 0.72, 0.88, 1.03],
        [0.6, 0.93, 1.15, 1.33],
        [0.37, 0.72, 1.35, 1.5],
        [0.52, 0.85, 1.03, 1.2],
        [0.69, 1.5, 10.0, 11.0],
        [0.41, 0.65, 0.79, 0.92],
    ],
}
# Random starts beside these; after so many rounds so many of the best go on; the last ones are shaken.
_RANDOM, _ROUNDS, _KEPT = 32, (10, 20, 40), (6, 2, 1)
_SHAKES, _SHAKEN, _SPREAD = 2, 12, 0.25
# Values in one block of channels x starts x levels.
_BLOCK = 1 << 17


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
    if values.shape[0] > COMPARED_LEVELS:
        index = ops.searchsorted(midpoints[:, 0], flat[:, 0], side="left")
        return take(values[:, 0], index)[:, None]
    return compared(flat, midpoints, values)


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


def best_basis(values: np.ndarray, bits: int, evenly: bool = False) -> np.ndarray:
    """The basis with the least squared error that is found from several starts, for digits -1 and 1.

    Nearest levels and least squares in turn, from all starts at once, in float64; of these the best of
    each channel goes on, and is shaken by random factors. The same each time.

    Args:
        values: Array `(n, channels)`, finite.
        bits: From 1 to 4.
        evenly: Whether the basis is to be 1, 2, 4 ... times one number. Defaults to `False`.

    Returns:
        Float32 array `(bits, channels)`; zeros for a channel of zeros.

    Example:

    >>> weights = np.array([[-3.0], [-1.0], [1.0], [3.0]])
    >>> best_basis(weights, bits=2).round(3).tolist()
    [[1.0], [2.0]]
    """
    starts = _starts(bits, evenly)
    direction = 2.0 ** np.arange(bits) if evenly else None
    most = max(len(starts), 1 + _SHAKEN)
    block = max(1, _BLOCK // (most * 2**bits))
    found = [
        _best_of_starts(_Sorted.of(values[:, first : first + block]), starts, direction)
        for first in range(0, values.shape[1], block)
    ]
    return np.concatenate(found).T.astype("float32")


def settled(values: np.ndarray, basis: np.ndarray, evenly: bool, rounds: int) -> np.ndarray:
    """A basis after some rounds of nearest levels and least squares, for digits -1 and 1.

    Args:
        values: Array `(n, channels)`, finite.
        basis: Array `(bits, channels)`, where it starts.
        evenly: As in `best_basis`.
        rounds: How many.

    Returns:
        Float32 array `(bits, channels)`.
    """
    magnitudes = _Sorted.of(values)
    start = basis.T[:, None].astype("float64") / magnitudes.largest[..., None]
    direction = 2.0 ** np.arange(len(basis)) if evenly else None
    found = _settled(magnitudes, start, direction, rounds)[:, 0] * magnitudes.largest
    return found.T.astype("float32")


def _starts(bits: int, evenly: bool) -> np.ndarray:
    if evenly:
        return _SHAPES[bits][0][0] * np.outer(
            np.geomspace(0.3, 3.0, _RANDOM), 2.0 ** np.arange(bits)
        )
    random = np.abs(np.random.default_rng(0).normal(size=(_RANDOM, bits)))
    return np.concatenate([_SHAPES[bits], random]) if bits > 1 else np.array(_SHAPES[1])


class _Sorted(NamedTuple):
    """Magnitudes of values in units of the largest of each channel, for sums over ranges of them.

    `keys` `(channels * n,)` ascend: 2 is added to those of one channel after another. `sums` are those
    of the smallest ones, `(channels, n + 1)`.
    """

    keys: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    largest: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> _Sorted:
        ordered = np.sort(np.abs(values).T, axis=1).astype("float64")
        largest = np.where(ordered[:, -1:] > 0, ordered[:, -1:], 1.0)
        ordered /= largest
        sums = np.zeros((len(ordered), ordered.shape[1] + 1))
        np.cumsum(ordered, axis=1, out=sums[:, 1:])
        squares = np.einsum("cn,cn->c", ordered, ordered)
        ordered += 2.0 * np.arange(len(ordered))[:, None]
        return cls(ordered.reshape(-1), sums, squares, largest)


def _best_of_starts(
    magnitudes: _Sorted, starts: np.ndarray, direction: np.ndarray | None
) -> np.ndarray:
    """The best basis of each channel, `(channels, bits)`."""
    channels, size = magnitudes.sums.shape
    spread = np.sqrt(magnitudes.squares / (size - 1))[:, None, None]
    bases = spread * starts
    for rounds, kept in zip(_ROUNDS, _KEPT, strict=True):
        bases = _kept(magnitudes, _settled(magnitudes, bases, direction, rounds), kept)
    random = np.random.default_rng(0)
    free = bases.shape[-1] if direction is None else 1
    for _ in range(_SHAKES if starts.shape[-1] > 1 else 0):
        factors = np.exp(_SPREAD * random.normal(size=(channels, _SHAKEN, free)))
        shaken = np.concatenate([bases, bases * factors], axis=1)
        shaken = _settled(magnitudes, shaken, direction, _ROUNDS[1])
        bases = _kept(magnitudes, shaken, 1)
    bases = _settled(magnitudes, bases, direction, _ROUNDS[2])
    return bases[:, 0] * magnitudes.largest


def _kept(magnitudes: _Sorted, bases: np.ndarray, count: int) -> np.ndarray:
    """Those of some bases `(channels, starts, bits)` that have the least squared errors."""
    levels, _, counts, sums = _shares(magnitudes, bases)
    errors = (levels * (counts * levels - 2 * sums)).sum(axis=-1)
    best = np.argsort(errors, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(bases, best[..., None], axis=1)


def _settled(
    magnitudes: _Sorted, bases: np.ndarray, direction: np.ndarray | None, rounds: int
) -> np.ndarray:
    """Bases after some rounds of nearest levels and least squares."""
    bits = bases.shape[-1]
    ridge = _RIDGE / 10 * magnitudes.sums.shape[1]
    for _ in range(rounds):
        levels, codes, counts, sums = _shares(magnitudes, bases)
        force = ((sums - counts * levels)[..., None, :] @ codes)[..., 0, :]
        gram = np.swapaxes(codes * counts[..., None], -1, -2) @ codes
        if direction is None:
            change = np.linalg.solve(gram + ridge * np.eye(bits), force[..., None])[..., 0]
        else:
            square = direction @ gram @ direction + ridge
            change = (force @ direction / square)[..., None] * direction
        if not np.abs(change).max() > 1e-9:
            break
        bases = bases + change
    return bases


def _shares(
    magnitudes: _Sorted, bases: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Levels above zero of bases `(channels, starts, bits)`, their codes, and the members of each.

    Levels, the counts of the magnitudes nearest to each and their sums are `(channels, starts, levels)`.
    """
    channels, bits = len(bases), bases.shape[-1]
    size = magnitudes.sums.shape[1]
    codes = 2.0 * ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1) - 1.0
    levels = bases @ codes.T
    order = np.argsort(levels, axis=-1)[..., 2 ** (bits - 1) :]
    levels = np.take_along_axis(levels, order, axis=-1)
    first = np.arange(channels)[:, None, None]
    midpoints = (0.5 * (levels[..., :-1] + levels[..., 1:])).clip(0.0, 1.5)
    ends = np.full((*levels.shape[:-1], levels.shape[-1] + 1), size - 1)
    ends[..., 0] = 0
    places = np.searchsorted(magnitudes.keys, midpoints + 2.0 * first, side="right")
    ends[..., 1:-1] = places - (size - 1) * first
    sums = magnitudes.sums.reshape(-1)[ends + size * first]
    return levels, codes[order], np.diff(ends, axis=-1), np.diff(sums, axis=-1)


def _members(flat: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """For each level, the share of the values that are nearest to it, and their summed errors.

    Errors are divided by the number of all values. Both have shape `(levels, channels)`.
    """
    midpoints, levels = grid.midpoints, grid.levels.shape[0]
    size = ops.shape(flat)[0]
    # Sums of errors, not of values, which would lose their last digits in the difference.
    errors = flat - nearest(flat, midpoints, grid.levels)
    if levels > COMPARED_LEVELS:
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
