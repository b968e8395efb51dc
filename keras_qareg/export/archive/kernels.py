"""A kernel of few values as a section of an archive: its table, its classes, its indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from keras_qareg.export.archive.ans import Reader, Writer
from keras_qareg.export.archive.classes import Axes, Blocks, Classes, blocks, find_classes
from keras_qareg.export.archive.fields import Cursor, FieldError
from keras_qareg.export.archive.floats import plan_floats, read_floats
from keras_qareg.export.archive.frequencies import (
    best_slope,
    put_folded,
    roots,
    table_differences,
    tables_of,
    take_folded,
)
from keras_qareg.numerics.codebook import Codebook

# Bits of the first byte; numbers of classes, less one, are in bits 4 and 5, and 6 and 7.
_GRID, _EVEN, _BEST = 1, 2, 4
# A larger kernel is written once: whether classes are worth it is estimated well enough.
_CERTAIN = 1 << 18


EFFORTS = ("fast", "best")


def encode_kernel(book: Codebook, effort: str = "fast") -> bytes:
    """The section of a kernel, in the fewest bytes.

    Args:
        book: Its codebook.
        effort: As in `save_archive`.
    """
    if book.centroids.ndim == 1:
        book = _compact(book)
    levels = len(book.centroids)
    classes = find_classes(book.indices, levels) if levels > 1 else None
    tried = [_section(book, classes, even=False)]
    if classes is not None and book.indices.size <= _CERTAIN:
        tried.append(_section(book, None, even=False))
    if book.indices.size <= _CERTAIN:
        tried.append(_section(book, None, even=True))
    return min(tried, key=len)


def decode_kernel(section: bytes, shape: Sequence[int]) -> Codebook:
    """The codebook of a kernel.

    Args:
        section: What `encode_kernel` made.
        shape: The shape of the kernel.

    Raises:
        ValueError: If the section is none of such a kernel.
    """
    shape, cursor = tuple(shape), Cursor(section)
    flags, levels, tabled = cursor.byte(), cursor.byte() + 1, cursor.byte()
    if tabled > len(shape) or flags & 12:
        raise FieldError(f"Expected a kernel of shape {shape}. Received: another one")
    channels = shape[len(shape) - tabled :]
    steps = math.prod(channels)
    codes = np.frombuffer(cursor.take(levels if flags & _GRID else 0), "i1")
    numbers = (flags >> 4 & 3) + 1, (flags >> 6) + 1
    axes = _read_axes(cursor, shape) if numbers != (1, 1) else Axes(shape, (), ())
    slope = cursor.byte() if not flags & _EVEN and levels > 1 else 0
    floats = read_floats(cursor, steps if flags & _GRID else levels * steps, "float32")
    reader = Reader(cursor.rest())
    rows, columns = (
        reader.take(size, [1] * n) for size, n in zip(axes.sizes[::2], numbers, strict=True)
    )
    place = blocks(axes, rows, columns, numbers)
    if levels > 1 and not flags & _EVEN:
        folded = take_folded(reader, math.prod(numbers) * levels, slope)
        tables = tables_of(folded.reshape(*numbers, levels), place.sizes)
    else:
        tables = np.ones((*numbers, levels), "int64")
    values = floats.take(reader).view("float32")
    if flags & _GRID:
        values = np.multiply.outer(codes.astype("float32"), values)
    matrix = _take_indices(reader, axes, place, tables)
    reader.close()
    return Codebook(values.reshape(levels, *channels), axes.kernel(matrix))


def coding_of(section: bytes) -> str:
    """How a kernel is coded: by one table of frequencies, or by classes of rows and of columns."""
    flags = section[0]
    rows, columns = (flags >> 4 & 3) + 1, (flags >> 6) + 1
    return "even" if flags & _EVEN else "ans" if rows * columns == 1 else f"ans {rows}x{columns}"


def _section(book: Codebook, classes: Classes | None, even: bool) -> bytes:
    levels, channels = len(book.centroids), book.centroids.ndim - 1
    grid = book.grid
    steps = book.centroids if grid is None else grid[1]
    if grid is not None and book.centroids.nbytes <= levels + steps.nbytes:
        grid, steps = None, book.centroids
    axes = Axes(book.indices.shape, (), ()) if classes is None else classes.axes
    none = np.zeros(1, "int64")
    rows, columns = (none, none) if classes is None else (classes.rows, classes.columns)
    numbers = (1, 1) if classes is None else classes.numbers
    place = blocks(axes, rows, columns, numbers)
    matrix = place.sorted(axes.matrix(book.indices))
    counts = np.array([np.bincount(matrix[b].reshape(-1), minlength=levels) for b in place])
    tables = roots(counts.reshape(*numbers, levels))
    folded = table_differences(tables, place.sizes).reshape(-1)
    slope, floats = best_slope(folded), plan_floats(steps.astype("float32"), "float32")
    flags = (grid is not None) * _GRID | even * _EVEN | numbers[0] - 1 << 4 | numbers[1] - 1 << 6
    head = bytes([flags, levels - 1, channels])
    head += grid[0].astype("i1").tobytes() if grid is not None else b""
    head += _axes_field(axes) if numbers != (1, 1) else b""
    head += bytes([slope]) if levels > 1 and not even else b""
    writer = Writer()
    writer.put(rows, [1] * numbers[0])
    writer.put(columns, [1] * numbers[1])
    if levels > 1 and not even:
        put_folded(writer, folded, slope)
    floats.put(writer)
    weights = np.ones_like(tables) if even else np.square(tables)
    for block, table in zip(place, weights.reshape(-1, levels), strict=True):
        writer.put(matrix[block], table)
    return head + floats.head + floats.tail + writer.finish()


def _take_indices(reader: Reader, axes: Axes, place: Blocks, tables: np.ndarray) -> np.ndarray:
    matrix = np.empty(axes.sizes, "uint8")
    weights = np.square(tables).reshape(-1, tables.shape[-1])
    for block, table in zip(place, weights, strict=True):
        part = matrix[block]
        part[...] = reader.take(part.size, table).reshape(part.shape)
    return place.restored(matrix)


def _axes_field(axes: Axes) -> bytes:
    return bytes([sum(1 << axis for axis in found) for found in (axes.rows, axes.columns)])


def _read_axes(cursor: Cursor, shape: tuple[int, ...]) -> Axes:
    masks = cursor.byte(), cursor.byte()
    if masks[0] & masks[1] or max(masks) >> len(shape):
        raise FieldError(f"Expected axes of a kernel of shape {shape}. Received: other ones")
    rows, columns = (
        tuple(axis for axis in range(len(shape)) if mask >> axis & 1) for mask in masks
    )
    return Axes(shape, rows, columns)


def _compact(book: Codebook) -> Codebook:
    """Without the centroids that no weight has."""
    used = book.counts > 0
    places = np.cumsum(used) - 1
    return Codebook(book.centroids[used], places[book.indices])
