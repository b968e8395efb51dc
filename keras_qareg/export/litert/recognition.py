"""Which constant of a LiteRT file is which Keras kernel, and what grid its values lie on.

The converter transposes kernels, and folds the scale of a BatchNormalization into the kernel before it:
each output channel is then multiplied by a factor of its own. A constant is recognized by its values,
all of them: it is a Keras kernel with its axes in some order, times one factor, or one a channel.
Nothing is clustered again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import integer_grids
from keras_qareg.numerics.groups import group_size, once

# A folded value is the product of two float32 numbers, rounded once.
ROUNDING = 1e-6
# The share of the weights of a kernel that makes a constant out to be that kernel.
_MOST = 0.5
# So many weights of a channel tell its factor.
_FEW = 4


class Stored(NamedTuple):
    """Tables of channels as a file holds them.

    Attributes:
        tables: Float32 array `(levels, groups)`, what is equal in channels in a row once.
        size: How many channels a group has; the last may have fewer.
        factors: Float32 array `(channels,)`, what tables are multiplied by; `None`: nothing.
    """

    tables: np.ndarray
    size: int
    factors: np.ndarray | None

    @classmethod
    def of(cls, tables: np.ndarray, factors: np.ndarray | None = None) -> Stored:
        """Those of a table for each channel, or one for all, and of factors."""
        return cls(once(tables), group_size(tables), factors)

    @property
    def bytes(self) -> int:
        """Bytes of tables and factors."""
        return self.tables.nbytes + (0 if self.factors is None else self.factors.nbytes)


@dataclass(frozen=True)
class Recognized:
    """A constant of a file that is a Keras kernel.

    Attributes:
        path: The path of the kernel in the Keras model; of the whole one, where it is a part.
        indices: Uint8 array in the shape of the constant: the level of each value.
        tables: Float32 array `(levels, channels)`: what the levels are in the constant, one table or
            one for each slice along `axis`.
        axis: The axis of the constant that counts channels; `None` with one table.
        exact: Whether these are the values of the Keras kernel bit for bit: so wherever nothing was
            folded in.
        centroids: Float32 array `(levels,)` or `(levels, channels)`: the levels of the Keras kernel,
            where each channel has these times a factor of its own; else `None`.
        factors: Float32 array `(channels,)`, these factors; else `None`.
    """

    path: str
    indices: np.ndarray
    tables: np.ndarray
    axis: int | None
    exact: bool
    centroids: np.ndarray | None = None
    factors: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """The constant, float32."""
        return self.looked_up(self.tables)

    def looked_up(self, tables: np.ndarray) -> np.ndarray:
        """What tables have at the indices.

        Args:
            tables: Array `(levels, channels)`, or `(levels, 1)`.

        Returns:
            Array in the shape of the constant.
        """
        if tables.shape[1] == 1:
            return tables[:, 0][self.indices]
        channels = along(np.arange(tables.shape[1]), self.axis or 0, self.indices.ndim)
        return tables[self.indices, channels]

    @cached_property
    def stored(self) -> Stored:
        """The tables in the fewest numbers."""
        if self.axis is None:
            return Stored(self.tables, 1, None)
        options = []
        if self.centroids is not None and self.factors is not None:
            base = self.centroids.reshape(len(self.tables), -1)
            options.append(Stored.of(base, self.factors))
            if base.shape[1] == 1:
                return options[0]
        grid = self.grid()
        if grid is not None:
            options.append(Stored.of(grid[0].astype("float32"), grid[1]))
        return min([*options, Stored.of(self.tables)], key=lambda option: option.bytes)

    def grid(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Integer codes of the levels and a float32 step a channel, whose products are the tables.

        Returns:
            As `grids.integer_grids`.
        """
        return integer_grids(self.tables, self.exact)


def recognize(constant: np.ndarray, books: Iterable[tuple[str, Codebook]]) -> Recognized | None:
    """The Keras kernel that a constant of a file is.

    Args:
        constant: Float32 array.
        books: Paths and codebooks of the kernels of the Keras model.

    Returns:
        A `Recognized`, or `None` where no kernel has these values.
    """
    found = None
    for path, book, order, whole in _arrangements(constant.shape, books):
        found = _as_it_is(path, book, order, constant) or found
        if found is not None and found.exact:
            return found
        if whole:  # nothing is folded into parts, which are in loops
            found = found or _folded(path, book, order, constant)
    return found


def recognize_codes(
    codes: np.ndarray, scales: np.ndarray, axis: int, books: Iterable[tuple[str, Codebook]]
) -> Recognized | None:
    """The Keras kernel that int8 codes stand for, where each level became one code a channel.

    Args:
        codes: Int8 array.
        scales: Float32 array `(channels,)` or `(1,)`: what the codes are multiplied by.
        axis: The axis of the channels.
        books: Paths and codebooks of the kernels of the Keras model.

    Returns:
        A `Recognized` whose tables are int8, with the factor that each channel has beside the Keras
        kernel; or `None` where no kernel has these codes.
    """
    for path, book, order, whole in _arrangements(codes.shape, books):
        indices = book.indices.transpose(order).reshape(codes.shape)
        levels, channels = book.centroids.shape[0], scales.size
        base = book.centroids.reshape(levels, -1).astype("float64")
        if base.shape[1] not in (1, channels):
            continue
        cells = _cells(codes, indices, levels, axis, channels)
        if cells is None:
            continue
        tables, used = cells
        values, base = tables * scales.astype("float64"), np.where(used, base, 0.0)
        squares = np.square(base).sum(axis=0)
        factors = (base * values).sum(axis=0) / np.where(squares > 0, squares, 1.0)
        factors = factors if whole else np.ones(channels)
        if (np.abs(base * factors - values) <= scales).all():
            place = axis if channels > 1 else None
            factors = factors.astype("float32")
            return Recognized(path, indices, tables, place, False, book.centroids, factors)
    return None


def is_kernel(
    constant: np.ndarray, kernels: Iterable[np.ndarray], rounding: np.ndarray | float = 0.0
) -> bool:
    """Whether a constant of a file is one of some kernels, or a part of one.

    Args:
        constant: Float32 array.
        kernels: Float32 arrays, with their axes in any order; a channel may have a factor of its own.
        rounding: How far values may be, besides the rounding of float32.
    """
    for kernel in kernels:
        for part, order in _parts(kernel.shape, constant.shape):
            weights = kernel[..., part].transpose(order).reshape(constant.shape)
            allowed = rounding + ROUNDING * np.abs(constant).max()
            if (np.abs(weights - constant) <= allowed).all():
                return True
            if _is_multiple(weights, constant, allowed):
                return True
    return False


def is_spoiled(constant: np.ndarray, kernels: list[np.ndarray]) -> bool:
    """Whether a constant of a file is nearly a kernel, and none: most of its weights are those of one.

    Arguments as in `is_kernel`. What a converter computes of a kernel is either that or nowhere near.
    """
    return not is_kernel(constant, kernels) and any(_is_near(constant, k) for k in kernels)


def _is_near(constant: np.ndarray, kernel: np.ndarray) -> bool:
    if sum(size > 1 for size in constant.shape) < 2:  # a vector, as a bias with axes of one
        return False
    allowed = ROUNDING * np.abs(constant).max(initial=0.0)
    for part, order in _parts(kernel.shape, constant.shape):
        weights = kernel[..., part].transpose(order).reshape(constant.shape)
        counts = (weights != 0) | (constant != 0)  # zeros are alike in any two pruned kernels
        ratios = np.divide(
            constant, weights, out=np.full_like(constant, np.nan), where=weights != 0
        )
        found = [weights]
        for axis in dict.fromkeys((0, constant.ndim - 1)):
            others = tuple(i for i in range(constant.ndim) if i != axis)
            if constant.size < _FEW * constant.shape[axis]:  # a factor would make any others alike
                continue
            kept = np.where(np.isnan(ratios).all(axis=others, keepdims=True), 1.0, ratios)
            found.append(weights * np.nanmedian(kept, axis=others, keepdims=True))
        for near in found:
            same = np.abs(near - constant) <= allowed
            if counts.any() and same[counts].mean() > _MOST:
                return True
    return False


def _is_multiple(weights: np.ndarray, constant: np.ndarray, allowed: np.ndarray | float) -> bool:
    """Whether each channel has a factor with which all its weights are as near as is allowed.

    Each weight leaves an interval for the factor. The factor of least squares may be outside of one,
    where few weights have the largest level and it goes by the others.
    """
    weights, allowed = weights.astype("float64"), np.broadcast_to(allowed, constant.shape)
    zero = weights == 0
    if (np.abs(constant[zero]) > allowed[zero]).any():
        return False
    divisors = np.where(zero, 1.0, weights)
    ends = np.stack([(constant - allowed) / divisors, (constant + allowed) / divisors])
    least = np.where(zero, -np.inf, ends.min(axis=0))
    most = np.where(zero, np.inf, ends.max(axis=0))
    for axis in dict.fromkeys((0, constant.ndim - 1)):
        others = tuple(i for i in range(constant.ndim) if i != axis)
        if (least.max(axis=others) <= most.min(axis=others)).all():
            return True
    return False


def _arrangements(
    shape: tuple[int, ...], books: Iterable[tuple[str, Codebook]]
) -> Iterator[tuple[str, Codebook, tuple[int, ...], bool]]:
    """The kernels, and parts of kernels, that have this shape with their axes in some order; the
    orders, and whether they are whole.
    """
    for path, book in books:
        for part, order in _parts(book.indices.shape, shape):
            centroids = book.centroids if book.centroids.ndim == 1 else book.centroids[..., part]
            whole = part == slice(0, book.indices.shape[-1])
            taken = book if whole else Codebook(centroids, book.indices[..., part])
            yield path, taken, order, whole


def _parts(
    kernel: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """Which parts along the last axis of a kernel have a shape, and the orders of the axes.

    Recurrent layers multiply with some of their gates apart: with equal parts, or with the last one.
    """
    others, size = math.prod(kernel[:-1]), math.prod(shape)
    if not kernel or not others or not size or size % others or size // others > kernel[-1]:
        return
    width = size // others
    for start in sorted({*range(0, kernel[-1] - width + 1, width), kernel[-1] - width}):
        part = (*kernel[:-1], width)
        for order in itertools.permutations(range(len(part))):
            if _same_shape([part[i] for i in order], shape):
                yield slice(start, start + width), order


def _same_shape(shape: list[int], other: Any) -> bool:
    """Whether one is the other but for axes of size 1 and joined neighbours."""
    left = [n for n in shape if n > 1]
    for size in (n for n in other if n > 1):
        joined = 1
        while left and joined < size:
            joined *= left.pop(0)
        if joined != size:
            return False
    return not left


def _as_it_is(
    path: str, book: Codebook, order: tuple[int, ...], constant: np.ndarray
) -> Recognized | None:
    weights = book.weights.transpose(order).reshape(constant.shape)
    if not np.array_equal(weights, constant):
        return None
    indices = book.indices.transpose(order).reshape(constant.shape)
    if book.centroids.ndim == 1:
        return Recognized(path, indices, book.centroids[:, None], None, True)
    tables = book.tables
    for axis, size in enumerate(constant.shape):
        if size % tables.shape[1]:
            continue
        # Axes before the channels may have been joined with them, as those of attention heads are.
        repeated = np.tile(tables, size // tables.shape[1])
        candidate = Recognized(path, indices, repeated, axis, True)
        if np.array_equal(candidate.values, constant):
            return candidate
    return None


def _folded(
    path: str, book: Codebook, order: tuple[int, ...], constant: np.ndarray
) -> Recognized | None:
    """Whether each channel of the constant is a multiple of the kernel's."""
    weights = book.weights.transpose(order).reshape(constant.shape)
    indices = book.indices.transpose(order).reshape(constant.shape)
    tolerance = ROUNDING * np.abs(constant).max()
    for axis, factors, error in _factors(weights, constant):
        if error.max() > tolerance:
            continue
        tables = book.tables
        cells = _cells(constant, indices, len(tables), axis, factors.size)
        if tables.shape[1] not in (1, factors.size) or cells is None:
            continue
        tables = np.where(cells[1], cells[0], (tables * factors).astype("float32"))
        found = factors.astype("float32")
        return Recognized(path, indices, tables, axis, False, book.centroids, found)
    return None


def _factors(
    weights: np.ndarray, constant: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Axes that may count channels, the best factor of each channel, and what is left of the values."""
    for axis in dict.fromkeys((0, constant.ndim - 1)):
        yield axis, *best_factors(weights, constant, axis)


def best_factors(
    weights: np.ndarray, constant: np.ndarray, axis: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a constant is beside weights of the same shape: factors of least squares.

    Args:
        weights: Float32 array.
        constant: Float32 array.
        axis: The axis that counts channels; `None`: all have one factor.

    Returns:
        Float64 array `(channels,)` or `(1,)`, and how far each scaled weight is from its value.
    """
    weights = weights.astype("float64")
    others = tuple(i for i in range(constant.ndim) if i != axis)
    squares = np.square(weights).sum(axis=others)
    factors = np.atleast_1d((weights * constant).sum(axis=others))
    factors = factors / np.where(squares > 0, squares, 1.0)
    scaled = weights * (factors if axis is None else along(factors, axis, constant.ndim))
    return factors, np.abs(scaled - constant)


def _cells(
    values: np.ndarray, indices: np.ndarray, levels: int, axis: int, channels: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The value of each level in each channel, and which there are; None where one has several."""
    keys = indices.astype("int32")
    if channels > 1:
        keys = keys * channels + along(np.arange(channels), axis, values.ndim)
    tables, used = np.zeros(levels * channels, values.dtype), np.zeros(levels * channels, "bool")
    tables[keys], used[keys] = values, True
    if not np.array_equal(tables[keys], values):
        return None
    return tables.reshape(levels, channels), used.reshape(levels, channels)


def along(values: np.ndarray, axis: int, axes: int) -> np.ndarray:
    """A vector shaped so that it broadcasts along one of so many axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(axes)])
