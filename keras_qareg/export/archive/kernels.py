"""A kernel of few values as a section of an archive: its table, its classes, its indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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
from keras_qareg.export.archive.floats import plan_floats, read_floats
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
from keras_qareg.numerics.groups import group_size, once, repeated

# Bits of the first byte; numbers of classes, less one, are in bits 4 and 5, and 6 and 7.
_GRID, _EVEN, _MIXED, _GROUPED = 1, 2, 4, 8
# Tables that are held once may unfold to so many times the weights.
_WIDEST = 4
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
    if tabled > len(shape) or (mixed and flags & ~(_GRID | _GROUPED) != _MIXED):
        raise FieldError(f"Expected a kernel of shape {shape}. Received: another one")
    table = _Table.read(cursor, flags, levels, shape[len(shape) - tabled :], math.prod(shape))
    numbers = (flags >> 4 & 3) + 1, (flags >> 6) + 1
    axes = _read_axes(cursor, shape) if numbers != (1, 1) else Axes(shape, (), ())
    slope = cursor.byte() if not flags & (_EVEN | _MIXED) and levels > 1 else 0
    floats = read_floats(cursor, table.floats, "float32")
    reader = Reader(cursor.take(cursor.varint()) if mixed else cursor.rest())
    if mixed:
        axes = _mixed_axes(shape)
        matrix = decode_mixed(cursor.rest(), axes.sizes, levels)
        values = table.values(floats.take(reader).view("float32"))
        return Codebook(values, axes.kernel(matrix))
    rows, columns = (
        reader.take(size, [1] * n) for size, n in zip(axes.sizes[::2], numbers, strict=True)
    )
    place = blocks(axes, rows, columns, numbers)
    if levels > 1 and not flags & _EVEN:
        folded = take_folded(reader, math.prod(numbers) * levels, slope)
        tables = tables_of(folded.reshape(*numbers, levels), place.sizes)
    else:
        tables = np.ones((*numbers, levels), "int64")
    values = table.values(floats.take(reader).view("float32"))
    matrix = _take_indices(reader, axes, place, tables)
    reader.close()
    return Codebook(values, axes.kernel(matrix))


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
        channels = book.centroids.shape[1:]
        self._table, floats = _Table.of(book)
        self._first = bytes([len(book.centroids) - 1, len(channels)]) + self._table.fields
        self.floats = plan_floats(floats.astype("float32").reshape(-1), "float32")

    def fields(self, flags: int, more: bytes) -> bytes:
        """All fields before the stream, with others between codes and floats."""
        first = bytes([flags | self._table.flags]) + self._first
        return first + more + self.floats.head + self.floats.tail


class _Table(NamedTuple):
    """How a table is kept: as floats, or as codes times steps; what is equal in channels in a row once.

    Attributes:
        levels: How many levels there are.
        channels: The sizes of the last axes of the kernel, if these have a table for each place.
        each: Channels that have one step, or one table of floats.
        alike: Channels that have the same codes.
        codes: Int8 array `(levels, groups)`, or `None`.
    """

    levels: int
    channels: tuple[int, ...]
    each: int
    alike: int
    codes: np.ndarray | None

    @classmethod
    def of(cls, book: Codebook) -> tuple[_Table, np.ndarray]:
        """That of a codebook, and its floats."""
        channels, grid, floats = book.centroids.shape[1:], book.grid, once(book.tables)
        each, alike, codes = book.group_size, math.prod(channels), None
        if _too_wide(len(floats), alike, book.indices.size):
            floats, each, grid = book.tables, 1, None
        if grid is not None:
            steps = once(grid[1][None])
            if floats.nbytes > once(grid[0]).nbytes + steps.nbytes:
                codes, floats, each = once(grid[0]), steps, group_size(grid[1][None])
                alike = group_size(grid[0]) if codes.shape[1] > 1 else alike
        return cls(len(book.centroids), channels, each, alike, codes), floats

    @classmethod
    def read(
        cls, cursor: Cursor, flags: int, levels: int, channels: tuple[int, ...], size: int
    ) -> _Table:
        """That of a section, of a kernel of so many weights."""
        each, alike, count = 1, math.prod(channels), math.prod(channels)
        if flags & _GROUPED:
            each = cursor.varint()
            alike = cursor.varint() if flags & _GRID else count
            if not 0 < min(each, alike) <= max(each, alike) <= count or _too_wide(
                levels, count, size
            ):
                raise FieldError(f"Expected groups of {count} channels. Received: other ones")
        codes = None
        if flags & _GRID:
            raw = cursor.take(levels * -(-count // max(1, alike)))
            codes = np.frombuffer(raw, "i1").reshape(levels, -1)
        return cls(levels, channels, each, alike, codes)

    @property
    def flags(self) -> int:
        """Bits of the first byte."""
        return (self.codes is not None) * _GRID | self._grouped * _GROUPED

    @property
    def _grouped(self) -> bool:
        several = self.codes is not None and self.codes.shape[1] > 1
        return several or (bool(self.channels) and self.each > 1)

    @property
    def fields(self) -> bytes:
        """The sizes of groups, and the codes."""
        coded = b"" if self.codes is None else varint(self.alike)
        sizes = varint(self.each) + coded if self._grouped else b""
        return sizes if self.codes is None else sizes + self.codes.astype("i1").tobytes()

    @property
    def floats(self) -> int:
        """How many floats there are."""
        groups = -(-math.prod(self.channels) // self.each)
        return groups if self.codes is not None else self.levels * groups

    def values(self, floats: np.ndarray) -> np.ndarray:
        """The centroids, one table or one for each channel."""
        count = math.prod(self.channels)
        if self.codes is None:
            found = repeated(floats.reshape(self.levels, -1), self.each, count)
        else:
            codes = repeated(self.codes.astype("float32"), max(1, self.alike), count)
            found = codes * repeated(floats[None], self.each, count)
        return found.reshape(self.levels, *self.channels)


def _too_wide(levels: int, channels: int, size: int) -> bool:
    """Whether a table for each channel takes more than a file may unfold to."""
    return levels * channels > _WIDEST * max(size, 1 << 20)


def _mixed_axes(shape: tuple[int, ...]) -> Axes:
    """Output channels by input channels."""
    found = candidates(shape)
    return found[-1] if found else Axes(shape, (), ())


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
