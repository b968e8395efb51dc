"""Classes of the rows and columns of a kernel: those whose indices spread alike share frequencies.

The output channels of a kernel are its rows; its input channels, or all its other places, its columns.
Both are sorted by spread, and cut into up to four classes each, so that data and tables together take
the fewest bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from keras_qareg.export.archive.frequencies import COARSENESS

MOST = 4
# Rows of nearly one spread are looked at together.
_GROUPS = 16
# Smaller kernels have nothing to gain: tables and labels cost more.
_SMALLEST = 256
# How often rows and columns move at most, and in a kernel of more weights than are moved so quickly.
_ROUNDS, _FEW_ROUNDS, _LARGE = 8, 2, 1 << 18


@dataclass(frozen=True)
class Axes:
    """How a kernel is a matrix: which of its axes count rows, and which columns; others are free."""

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """All axes: those of rows, free ones, those of columns."""
        taken = {*self.rows, *self.columns}
        free = tuple(axis for axis in range(len(self.shape)) if axis not in taken)
        return (*self.rows, *free, *self.columns)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many rows, free places and columns."""
        rows = math.prod(self.shape[axis] for axis in self.rows)
        columns = math.prod(self.shape[axis] for axis in self.columns)
        return rows, math.prod(self.shape) // max(rows * columns, 1), columns

    def matrix(self, indices: np.ndarray) -> np.ndarray:
        """The indices as array `(rows, free, columns)`."""
        return np.ascontiguousarray(indices.transpose(self.order)).reshape(self.sizes)

    def kernel(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`."""
        shape = [self.shape[axis] for axis in self.order]
        return matrix.reshape(shape).transpose(np.argsort(self.order))


@dataclass(frozen=True)
class Classes:
    """The class of each row and of each column, and a table of counts for each pair of classes."""

    axes: Axes
    rows: np.ndarray
    columns: np.ndarray
    bits: float

    @property
    def numbers(self) -> tuple[int, int]:
        """How many classes of rows, and of columns."""
        return int(self.rows.max()) + 1, int(self.columns.max()) + 1


def blocks(axes: Axes, rows: np.ndarray, columns: np.ndarray, numbers: tuple[int, int]) -> Blocks:
    """Where the pairs of classes are in a matrix whose rows and columns are sorted by class."""
    starts = [
        np.concatenate([[0], np.cumsum(np.bincount(found, minlength=number))])
        for found, number in zip((rows, columns), numbers, strict=True)
    ]
    orders = [np.argsort(found, kind="stable") for found in (rows, columns)]
    return Blocks(orders[0], orders[1], starts[0], starts[1], axes.sizes[1])


@dataclass(frozen=True)
class Blocks:
    """The order of rows and columns by class, and where classes begin."""

    row_order: np.ndarray
    column_order: np.ndarray
    row_starts: np.ndarray
    column_starts: np.ndarray
    free: int

    @property
    def sizes(self) -> np.ndarray:
        """How many indices each pair of classes has: int64 array."""
        found: np.ndarray = np.multiply.outer(np.diff(self.row_starts), np.diff(self.column_starts))
        return found * self.free

    def __iter__(self) -> Iterator[tuple[slice, slice, slice]]:
        for row in range(len(self.row_starts) - 1):
            for column in range(len(self.column_starts) - 1):
                yield (
                    slice(self.row_starts[row], self.row_starts[row + 1]),
                    slice(None),
                    slice(self.column_starts[column], self.column_starts[column + 1]),
                )

    def sorted(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix with its rows and columns by class."""
        return matrix[self.row_order][:, :, self.column_order]

    def restored(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `sorted`."""
        rows, columns = np.argsort(self.row_order), np.argsort(self.column_order)
        return matrix[rows][:, :, columns]


def candidates(shape: tuple[int, ...]) -> list[Axes]:
    """The ways to look at a kernel: output channels by input channels, and by all other places."""
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    if len(wide) < 2:
        return []
    rest = tuple(wide[:-1])
    found = [Axes(shape, (wide[-1],), rest)]
    if len(rest) > 1:
        found.append(Axes(shape, (wide[-1],), rest[-1:]))
    return found


def find_classes(indices: np.ndarray, levels: int) -> Classes | None:
    """The classes by which indices take the fewest bits, by estimate; `None` where none spare any.

    Args:
        indices: Uint8 array in the shape of the kernel.
        levels: How many values they have.
    """
    if indices.size < _SMALLEST:
        return None
    plain = _bits(np.bincount(indices.reshape(-1), minlength=levels)[None])
    found = [_of_axes(axes, indices, levels) for axes in candidates(indices.shape)]
    better = [one for one in found if one.bits < plain]
    return min(better, key=lambda one: one.bits) if better else None


def _of_axes(axes: Axes, indices: np.ndarray, levels: int) -> Classes:
    matrix = axes.matrix(indices)
    middle = (
        float(np.bincount(indices.reshape(-1), minlength=levels) @ np.arange(levels)) / indices.size
    )
    squares = np.square(np.arange(levels, dtype="float32") - np.float32(middle))
    spread = squares[matrix]
    spreads = spread.mean(axis=(1, 2)), spread.mean(axis=(0, 1))
    row_groups, column_groups = map(_grouped, spreads)
    counts = _counts(matrix, row_groups, column_groups, levels)
    sizes = len(row_groups), len(column_groups)
    rows, columns, bits = min(
        (_cut(counts, sizes, start) for start in (1, MOST)), key=lambda found: found[2]
    )
    found = Classes(axes, rows[row_groups], columns[column_groups], bits)
    return min([found, *_refined(found, matrix, levels, spreads)], key=lambda one: one.bits)


def _refined(
    start: Classes, matrix: np.ndarray, levels: int, spreads: tuple[np.ndarray, np.ndarray]
) -> Iterator[Classes]:
    """Moves each row and each column to the class under whose frequencies it takes the fewest bits."""
    quarters = [np.minimum(_grouped(spread) * MOST // _GROUPS, MOST - 1) for spread in spreads]
    for rows, columns in ((start.rows, start.columns), quarters):
        if rows.max() == 0 and columns.max() == 0:
            continue
        for _ in range(_ROUNDS if matrix.size <= _LARGE else _FEW_ROUNDS):
            before = rows, columns
            rows = _moved(_counts(matrix, np.arange(len(rows)), columns, levels), rows)
            other = matrix.transpose(2, 1, 0)
            columns = _moved(_counts(other, np.arange(len(columns)), rows, levels), columns)
            if all(map(np.array_equal, before, (rows, columns))):
                break
        rows, columns = (
            _ranked(found, by) for found, by in zip((rows, columns), spreads, strict=True)
        )
        bits = float(_bits(_counts(matrix, rows, columns, levels), axis=(0, 1, 2)))
        bits += _label_bits(rows, len(rows)) + _label_bits(columns, len(columns))
        yield Classes(start.axes, rows, columns, bits)


def _moved(counts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The best class of each row, by its counts `(rows, classes of columns, levels)`."""
    flat = counts.reshape(len(counts), -1)
    # Sums of loops: threads of a matrix product take longer to start than these small ones.
    tables = np.array([flat[classes == one].sum(axis=0) for one in range(int(classes.max()) + 1)])
    tables = tables.reshape(-1, *counts.shape[1:]) + 0.5
    lengths = -np.log2(tables / tables.sum(axis=-1, keepdims=True)).reshape(len(tables), -1)
    found: np.ndarray = np.einsum("rl,cl->rc", flat, lengths).argmin(axis=1)
    return found


def _ranked(classes: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The same classes, none empty, in the order of their spread."""
    _, places = np.unique(classes, return_inverse=True)
    means = np.bincount(places, weights=spread) / np.bincount(places)
    return np.argsort(np.argsort(means))[places]


def _counts(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray, levels: int) -> np.ndarray:
    """How often each index is in each pair of classes: float64 array `(rows, columns, levels)`."""
    shape = int(rows.max()) + 1, int(columns.max()) + 1, levels
    pairs = ((rows[:, None] * shape[1] + columns[None]) * levels).astype("int32")
    keys = pairs[:, None, :] + matrix
    return np.bincount(keys.reshape(-1), minlength=np.prod(shape)).reshape(shape).astype("float64")


def _grouped(spread: np.ndarray) -> np.ndarray:
    """Up to 16 groups of about as many, by spread; equal spreads are in one group."""
    order = np.argsort(spread, kind="stable")
    groups = np.empty(len(spread), "int64")
    groups[order] = np.arange(len(spread)) * min(_GROUPS, len(spread)) // len(spread)
    return groups


def _cut(
    counts: np.ndarray, sizes: tuple[int, int], start: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Cuts groups into classes, rows and columns in turn: the class of each group, and the bits."""
    columns = np.arange(counts.shape[1]) * min(start, counts.shape[1]) // counts.shape[1]
    rows = np.zeros(len(counts), "int64")
    for _ in range(2):
        rows, _ = _partition(_merged(counts, columns, 1), sizes[0])
        columns, bits = _partition(_merged(counts, rows, 0).swapaxes(0, 1), sizes[1])
    # Labels of rows are not in the last sum.
    return rows, columns, bits + _label_bits(rows, sizes[0])


def _merged(counts: np.ndarray, classes: np.ndarray, axis: int) -> np.ndarray:
    """Counts with the groups of each class together."""
    parts = [
        counts.compress(classes == one, axis).sum(axis) for one in range(int(classes.max()) + 1)
    ]
    return np.stack(parts, axis)


def _partition(counts: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """The best cut of groups in a row into at most four runs, and its bits: dynamic programming.

    Args:
        counts: Float64 array `(groups, classes of the other side, levels)`.
        size: How many rows or columns the groups have together.
    """
    groups = len(counts)
    sums = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])
    costs = np.full((groups, groups + 1), np.inf)
    for first in range(groups):
        costs[first, first + 1 :] = _bits(sums[first + 1 :] - sums[first], axis=(1, 2))
    best = [costs[0]]
    froms: list[np.ndarray] = []
    for _ in range(1, min(MOST, groups)):
        tried = best[-1][:groups, None] + costs
        froms.append(tried.argmin(axis=0))
        best.append(tried.min(axis=0))
    classes = np.arange(1, len(best) + 1)
    totals = np.array([found[groups] for found in best]) + size * np.log2(classes)
    number, end = int(totals.argmin()), groups
    found = np.empty(groups, "int64")
    for place in range(number, 0, -1):
        start = int(froms[place - 1][end])
        found[start:end], end = place, start
    found[:end] = 0
    return found, float(totals[number])


def _label_bits(classes: np.ndarray, size: int) -> float:
    return size * math.log2(int(classes.max()) + 1)


def _bits(counts: np.ndarray, axis: tuple[int, ...] | None = None) -> np.ndarray | float:
    """Bits of symbols with so many counts along the last axis, tables included."""
    sizes = counts.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        data = np.where(counts > 0, counts * np.log2(sizes / counts), 0.0)
    tables = 0.5 * np.log2(1 + counts / COARSENESS) + 0.7
    return (data + tables).sum(axis=axis)
