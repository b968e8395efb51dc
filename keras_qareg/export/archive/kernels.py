"""A kernel of few values as a section of an archive: its table, its classes, its indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from keras_qareg.export.archive.ans import Reader, Writer
from keras_qareg.export.archive.classes import (
    Axes,
    Blocks,
    Classes,
    blocks,
    candidates,
    find_classes,
)
from keras_qareg.export.archive.fields import Cursor, FieldError, varint
from keras_qareg.export.archive.floats import PlannedFloats, plan_floats, read_floats
from keras_qareg.export.archive.frequencies import (
    best_slope,
    put_folded,
    roots,
    table_differences,
    tables_of,
    take_folded,
)
from keras_qareg.export.archive.mixing import decode_mixed, encode_mixed, fits
from keras_qareg.numerics.codebook import Codebook

# Bits of the first byte; numbers of classes, less one, are in bits 4 and 5, and 6 and 7.
_GRID, _EVEN, _MIXED = 1, 2, 4
# A larger kernel is written once: whether classes are worth it is estimated well enough.
_CERTAIN = 1 << 18


EFFORTS = ("fast", "best")


def encode_kernel(book: Codebook, effort: str = "fast") -> bytes:
    """The section of a kernel, in the fewest bytes.

    Args:
        book: Its codebook.
        effort: As in `save_archive`.
    """
    book = _compact(book)
    levels = len(book.centroids)
    classes = find_classes(book.indices, levels) if levels > 1 else None
    tried = [_section(book, classes, even=False)]
    if classes is not None and book.indices.size <= _CERTAIN:
        tried.append(_section(book, None, even=False))
    if book.indices.size <= _CERTAIN:
        tried.append(_section(book, None, even=True))
    sizes = _mixed_axes(book.indices.shape).sizes
    if effort == "best" and levels > 1 and book.indices.size and fits(sizes, levels):
        tried.append(_mixed_section(book))
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
    mixed = bool(flags & _MIXED)
    if tabled > len(shape) or flags & 8 or (mixed and flags & ~_GRID != _MIXED):
        raise FieldError(f"Expected a kernel of shape {shape}. Received: another one")
    channels = shape[len(shape) - tabled :]
    steps = math.prod(channels)
    codes = np.frombuffer(cursor.take(levels if flags & _GRID else 0), "i1")
    numbers = (flags >> 4 & 3) + 1, (flags >> 6) + 1
    axes = _read_axes(cursor, shape) if numbers != (1, 1) else Axes(shape, (), ())
    slope = cursor.byte() if not flags & (_EVEN | _MIXED) and levels > 1 else 0
    floats = read_floats(cursor, steps if flags & _GRID else levels * steps, "float32")
    reader = Reader(cursor.take(cursor.varint()) if mixed else cursor.rest())
    if mixed:
        axes = _mixed_axes(shape)
        matrix = decode_mixed(cursor.rest(), axes.sizes, levels)
        values = _values(reader, floats, codes, flags)
        return Codebook(values.reshape(levels, *channels), axes.kernel(matrix))
    rows, columns = (
        reader.take(size, [1] * n) for size, n in zip(axes.sizes[::2], numbers, strict=True)
    )
    place = blocks(axes, rows, columns, numbers)
    if levels > 1 and not flags & _EVEN:
        folded = take_folded(reader, math.prod(numbers) * levels, slope)
        tables = tables_of(folded.reshape(*numbers, levels), place.sizes)
    else:
        tables = np.ones((*numbers, levels), "int64")
    values = _values(reader, floats, codes, flags)
    matrix = _take_indices(reader, axes, place, tables)
    reader.close()
    return Codebook(values.reshape(levels, *channels), axes.kernel(matrix))


def coding_of(section: bytes) -> str:
    """How a kernel is coded: by one table of frequencies, or by classes of rows and of columns."""
    flags = section[0]
    rows, columns = (flags >> 4 & 3) + 1, (flags >> 6) + 1
    if flags & _MIXED:
        return "mixed"
    return "even" if flags & _EVEN else "ans" if rows * columns == 1 else f"ans {rows}x{columns}"


def _section(book: Codebook, classes: Classes | None, even: bool) -> bytes:
    levels, head = len(book.centroids), _Head(book)
    axes = Axes(book.indices.shape, (), ()) if classes is None else classes.axes
    none = np.zeros(1, "int64")
    rows, columns = (none, none) if classes is None else (classes.rows, classes.columns)
    numbers = (1, 1) if classes is None else classes.numbers
    place = blocks(axes, rows, columns, numbers)
    matrix = place.sorted(axes.matrix(book.indices))
    counts = np.array([np.bincount(matrix[b].reshape(-1), minlength=levels) for b in place])
    tables = roots(counts.reshape(*numbers, levels))
    folded = table_differences(tables, place.sizes).reshape(-1)
    slope = best_slope(folded)
    fields = _axes_field(axes) if numbers != (1, 1) else b""
    fields += bytes([slope]) if levels > 1 and not even else b""
    writer = Writer()
    writer.put(rows, [1] * numbers[0])
    writer.put(columns, [1] * numbers[1])
    if levels > 1 and not even:
        put_folded(writer, folded, slope)
    head.floats.put(writer)
    weights = np.ones_like(tables) if even else np.square(tables)
    for block, table in zip(place, weights.reshape(-1, levels), strict=True):
        writer.put(matrix[block], table)
    flags = even * _EVEN | numbers[0] - 1 << 4 | numbers[1] - 1 << 6
    return head.fields(flags, fields) + writer.finish()


def _mixed_section(book: Codebook) -> bytes:
    head, writer = _Head(book), Writer()
    head.floats.put(writer)
    stream = writer.finish()
    mixed = encode_mixed(_mixed_axes(book.indices.shape).matrix(book.indices), len(book.centroids))
    return head.fields(_MIXED, b"") + varint(len(stream)) + stream + mixed


class _Head:
    """What a section has of the table of a kernel.

    Args:
        book: The codebook of the kernel.
    """

    def __init__(self, book: Codebook):
        self._levels, self._channels = len(book.centroids), book.centroids.ndim - 1
        grid, steps, self._codes = book.grid, book.centroids, b""
        if grid is not None and book.centroids.nbytes > self._levels + grid[1].nbytes:
            self._codes, steps = grid[0].astype("i1").tobytes(), grid[1]
        self.floats = plan_floats(steps.astype("float32"), "float32")

    def fields(self, flags: int, more: bytes) -> bytes:
        """All fields before the stream, with others between codes and floats."""
        flags |= _GRID if self._codes else 0
        first = bytes([flags, self._levels - 1, self._channels])
        return first + self._codes + more + self.floats.head + self.floats.tail


def _mixed_axes(shape: tuple[int, ...]) -> Axes:
    """Output channels by input channels."""
    found = candidates(shape)
    return found[-1] if found else Axes(shape, (), ())


def _values(reader: Reader, floats: PlannedFloats, codes: np.ndarray, flags: int) -> np.ndarray:
    """The centroids, one table or one for each channel, flat."""
    values = floats.take(reader).view("float32")
    return np.multiply.outer(codes.astype("float32"), values) if flags & _GRID else values


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
    """Without the centroids that no weight has, and with equal ones as one: rounding makes such."""
    if not book.indices.size:
        return book
    used = np.flatnonzero(book.counts)
    bits = book.centroids[used].reshape(used.size, -1).view("uint32")
    _, first, same = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    kept = np.sort(first)
    places = np.zeros(len(book.centroids), "uint8")
    places[used] = np.searchsorted(kept, first[same.reshape(-1)])
    return Codebook(book.centroids[used[kept]], places[book.indices])
