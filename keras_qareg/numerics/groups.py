"""Groups of channels: so many in a row, of which the last group may have fewer, that share a table.

Where the package has a table for each channel, those of a group are equal; files hold each once.

See also: https://keras-qareg.github.io/keras-qareg/method.html#groups-of-channels
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.numerics.clustering import MAX_LEVELS

# A group has at least so many weights for each of its values.
_SHARING = 2
# Larger tables of which channel has which value are not looked at; nor more rows at first. Where all
# sizes of groups would take longer, powers of two are tried.
_MOST_CELLS, _LOOKED_AT = 1 << 26, 4096


class Grouped(NamedTuple):
    """The tables of the groups of a kernel.

    Attributes:
        tables: Float32 array `(levels, groups)`, ascending; where a group has fewer values, its last
            stands there again.
        size: Channels a group.
        indices: Uint8 array `(weights, channels)`: which value of its table each weight has.
    """

    tables: np.ndarray
    size: int
    indices: np.ndarray


def group_size(tables: np.ndarray) -> int:
    """How many channels in a row have one table, at most.

    Args:
        tables: Array `(levels, channels)`.

    Returns:
        Integer from 1 to the number of channels; the last group may have fewer.

    Example:

    >>> group_size(np.array([[1, 1, 2, 2, 3]]))
    2
    """
    borders = np.flatnonzero((tables[:, 1:] != tables[:, :-1]).any(axis=0)) + 1
    return int(np.gcd.reduce(borders)) if borders.size else max(1, tables.shape[1])


def once(tables: np.ndarray) -> np.ndarray:
    """The table of each group, once: `(levels, groups)` of `(levels, channels)`."""
    return tables[:, :: group_size(tables)]


def repeated(tables: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The table of each channel: `(levels, channels)` of `(levels, groups)`."""
    return np.repeat(tables, size, axis=1)[:, :channels]


def groups_of(columns: np.ndarray) -> Grouped | None:
    """The groups of channels with which weights of few values take the fewest bytes.

    Args:
        columns: Float32 array `(weights, channels)`.

    Returns:
        The `Grouped`; `None` where groups of two channels or more have too many values.

    Example:

    >>> found = groups_of(np.repeat([[1.0, 1.0, 5.0, 5.0], [2.0, 2.0, 6.0, 6.0]], 3, axis=0))
    >>> found.size, found.tables.tolist()
    (2, [[1.0, 5.0], [2.0, 6.0]])
    """
    rows, channels = columns.shape
    # A look at two channels spares most kernels the sort.
    some = columns[:_LOOKED_AT, :2]
    if channels < 4 or _SHARING * np.unique(some).size > some.size:
        return None
    values, places = np.unique(columns, return_inverse=True)
    if values.size * channels > _MOST_CELLS:
        return None
    places, has = places.reshape(columns.shape), np.zeros((channels, values.size), "bool")
    has[np.arange(channels), places] = True
    best, least = 0, math.inf
    few = has.size * channels <= _MOST_CELLS
    for size in range(2, channels // 2 + 1):
        if not few and size & (size - 1):  # no power of two
            continue
        counts = np.logical_or.reduceat(has, range(0, channels, size), axis=0).sum(axis=1)
        levels = int(counts.max())
        if levels > MAX_LEVELS or _SHARING * levels > rows * size:
            continue
        taken = (levels - 1).bit_length() * columns.size / 8 + 4 * levels * counts.size
        best, least = (size, taken) if taken < least else (best, least)
    if not best:
        return None
    held = np.logical_or.reduceat(has, range(0, channels, best), axis=0)
    ranks = held.cumsum(axis=1) - 1
    last = np.where(held, np.arange(values.size), 0).max(axis=1)
    tables = np.repeat(values[last][None], held.sum(axis=1).max(), axis=0)
    group, place = np.nonzero(held)
    tables[ranks[group, place], group] = values[place]
    indices = ranks[np.arange(channels) // best, places]
    return Grouped(tables, best, indices.astype("uint8"))


@dataclass(frozen=True)
class Channels:
    """The output channels of a kernel, so many of which in a row have one table.

    Attributes:
        shape: Their axes, the last ones of the kernel; empty where they are not last: one table.
        most: Channels a group; `None`: all.
    """

    shape: tuple[int, ...]
    most: int | None

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Channels a group."""
        return self.count if self.most is None else min(self.most, self.count)

    @property
    def groups(self) -> int:
        """How many tables there are; the last group may have fewer channels."""
        return -(-self.count // self.size)

    @property
    def places(self) -> np.ndarray:
        """Which group each channel is in: int32 array in the shape of the channels."""
        return (np.arange(self.count, dtype="int32") // self.size).reshape(self.shape)

    def cut(self, columns: Any) -> list[Any]:
        """The columns of each group, of a matrix that has one for each channel."""
        return [columns[:, start : start + self.size] for start in range(0, self.count, self.size)]

    def split(self, tables: np.ndarray, by_channel: bool) -> list[np.ndarray] | None:
        """The tables of each group, one or one for each of its channels.

        Args:
            tables: Array `(levels, channels)`, or `(levels, 1)`.
            by_channel: Whether channels of a group may have different ones.

        Returns:
            Arrays `(levels, channels of the group)` or `(levels, 1)`; `None` where there are different
            ones that may not be.
        """
        parts = self.cut(np.broadcast_to(tables, (len(tables), self.count)))
        if by_channel:
            return parts
        alike = all((part == part[:, :1]).all() for part in parts)
        return [part[:, :1] for part in parts] if alike else None

    def tables(self, tables: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The table of each channel.

        Args:
            tables: Array `(levels, groups)`, or `(levels, 1)`.
            sizes: What they are multiplied by: an array in the shape of the channels, `(groups,)` or
                `(1,)`.

        Returns:
            Array `(levels, *channels)`; `(levels,)` where there are one table and one size.
        """
        if self.groups == sizes.size == 1:
            return (tables * sizes)[:, 0]
        if sizes.shape != self.shape:
            tables, sizes = tables * sizes, np.ones(1, sizes.dtype)
        columns = np.broadcast_to(tables, (len(tables), self.groups))[:, self.places.reshape(-1)]
        return (columns * sizes.reshape(-1)).reshape(len(tables), *self.shape)
