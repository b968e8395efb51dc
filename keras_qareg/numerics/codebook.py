"""Codebook: the few values of a tensor, and which of them each weight takes.

See also: https://keras-qareg.github.io/keras-qareg/concepts.html#few-values
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_qareg.numerics.clustering import MAX_LEVELS
from keras_qareg.numerics.compiled import Tensor, compiled, custom_gradient, segment_sums, take
from keras_qareg.numerics.grids import integer_grids, integer_weights
from keras_qareg.numerics.groups import group_size, groups_of, once, repeated

# Fewer borders than this are compared with, one after the other; so many weights at a time.
_COMPARED, _CHUNK = 32, 1 << 15
# The share of the bytes of one table from which on tables of channels are worth their trouble.
_WORTH = 0.75
# Channels that are looked at before all of them are.
_LOOKED_AT = 4


@dataclass(frozen=True, eq=False)
class Codebook:
    """Centroids and indices of one tensor: `weights = centroids[indices]`.

    A tensor may have one table, or one for each of its channels, which its last axes count. Channels in
    a row may have equal tables (`group_size`), which count once.

    Attributes:
        centroids: Float32 array of shape `(levels,)`, at most 256 values; or `(levels, *channels)`,
            where `channels` are the last sizes in the shape of the tensor.
        indices: Uint8 array in the shape of the tensor.

    Raises:
        ValueError: If there are no centroids or more than 256, their channels are not those of the
            tensor, or an index has no centroid.

    Example:

    >>> book = Codebook.nearest([[0.1, 0.9], [1.2, -0.1]], centroids=[0.0, 1.0])
    >>> book.indices.tolist(), book.entropy
    ([[0, 1], [1, 0]], 1.0)

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#few-values
    """

    centroids: np.ndarray
    indices: np.ndarray

    def __post_init__(self) -> None:
        # A copy: an array of a JAX variable is a view of memory that training reuses.
        centroids = np.array(self.centroids, "float32")
        indices = np.asarray(self.indices)
        levels, *channels = centroids.shape or (0,)
        if not 1 <= levels <= MAX_LEVELS or indices.shape[indices.ndim - len(channels) :] != (
            *channels,
        ):
            raise ValueError(
                f"Expected `centroids` of shape (levels,) or (levels, *channels) with 1 to "
                f"{MAX_LEVELS} levels and the last sizes of indices of shape {indices.shape}. "
                f"Received: shape={centroids.shape}"
            )
        if indices.size and (indices.min() < 0 or indices.max() >= levels):
            raise ValueError(
                f"Expected `indices` from 0 to {levels - 1}. "
                f"Received: indices from {indices.min()} to {indices.max()}"
            )
        object.__setattr__(self, "centroids", centroids)
        object.__setattr__(self, "indices", indices.astype("uint8"))

    @classmethod
    def nearest(cls, weights: ArrayLike, centroids: ArrayLike) -> Codebook:
        """Each weight with its nearest centroid (at a tie, the lower one); centroids are sorted.

        Args:
            weights: Array of any shape.
            centroids: Array of at most 256 values, in any order; equal values become one.

        Returns:
            A `Codebook`.
        """
        weights = np.asarray(weights, "float32")
        centroids = np.unique(np.asarray(centroids, "float32"))
        midpoints = 0.5 * centroids[:-1] + 0.5 * centroids[1:]
        return cls(centroids, places_of(weights, midpoints))

    @classmethod
    def exact(cls, weights: ArrayLike, channel_axes: int = 0) -> Codebook | None:
        """The codebook of a tensor that has few distinct values already, else None.

        Args:
            weights: Array of any shape.
            channel_axes: How many of its last axes count channels: then a tensor that has whole
                multiples of a step in each channel, or few values in each or in groups of them, has a
                table for each. Defaults to 0.

        Returns:
            The `Codebook` of the fewest bytes: one table, where at most 256 values are in all channels,
            or one for each channel or group of channels; or `None`.
        """
        weights = np.asarray(weights, "float32")
        whole = cls._of_values(weights)
        if not channel_axes or (whole is not None and not cls._may_be_less(whole, channel_axes)):
            return whole
        best, found = whole, integer_weights(weights, channel_axes)
        if found is not None:
            codes = np.unique(found[0])
            table = np.multiply.outer(codes.astype("float32"), found[1])
            book = cls(table, np.searchsorted(codes, found[0]))
            best = book if best is None or book.packed_bytes < best.packed_bytes else best
        if best is None or cls._may_be_less(best, channel_axes):
            for find in (cls._of_channels, cls._of_groups):
                tables = find(weights, channel_axes)
                if tables and (not best or tables.packed_bytes < _WORTH * best.packed_bytes):
                    best = tables
        return best

    @classmethod
    def _may_be_less(cls, whole: Codebook, channel_axes: int) -> bool:
        """Whether channels may have so few values that their indices take fewer bits."""
        columns = whole.indices.reshape(-1, math.prod(whole.indices.shape[-channel_axes:]))
        some = max(np.unique(column).size for column in columns.T[:_LOOKED_AT])
        return (some - 1).bit_length() < (len(whole.centroids) - 1).bit_length()

    @classmethod
    def _of_channels(cls, weights: np.ndarray, channel_axes: int) -> Codebook | None:
        """A table for each channel, where the channels have half as many values as weights or fewer."""
        channels = weights.shape[weights.ndim - channel_axes :]
        columns = weights.reshape(-1, math.prod(channels))
        most = min(len(columns) // 2, MAX_LEVELS)
        # A look at some channels spares most tensors the sort.
        if any(np.unique(column).size > most for column in columns.T[:_LOOKED_AT]):
            return None
        order = np.argsort(columns, axis=0, kind="stable")
        ordered = np.take_along_axis(columns, order, axis=0)
        places = np.cumsum(np.diff(ordered, axis=0, prepend=ordered[:1]) != 0, axis=0)
        levels = int(places.max()) + 1
        if levels > most:
            return None
        table = np.repeat(ordered[-1:], levels, axis=0)
        np.put_along_axis(table, places, ordered, axis=0)
        indices = np.empty(columns.shape, "uint8")
        np.put_along_axis(indices, order, places.astype("uint8"), axis=0)
        return cls(table.reshape(levels, *channels), indices.reshape(weights.shape))

    @classmethod
    def _of_groups(cls, weights: np.ndarray, channel_axes: int) -> Codebook | None:
        """A table for each group of channels, where groups have few values."""
        channels = weights.shape[weights.ndim - channel_axes :]
        count = math.prod(channels)
        found = groups_of(weights.reshape(-1, count))
        if found is None:
            return None
        tables = repeated(found.tables, found.size, count).reshape(-1, *channels)
        return cls(tables, found.indices.reshape(weights.shape))

    @classmethod
    def joined(
        cls, books: Sequence[Codebook], shape: tuple[int, ...], channel_axes: int
    ) -> Codebook:
        """The codebook of a tensor from those of its groups of channels.

        Args:
            books: The codebook of each group, of weights `(n, channels of the group)`, in order.
            shape: The shape of the tensor.
            channel_axes: How many of its last axes count channels.

        Returns:
            A `Codebook` with a table for each channel; tables with fewer levels than others have their
            last one again.
        """
        levels, columns = max(len(book.centroids) for book in books), []
        for book in books:
            own = book.centroids.reshape(len(book.centroids), -1)
            own = np.broadcast_to(own, (len(own), book.indices.shape[1]))
            columns.append(np.concatenate([own, np.repeat(own[-1:], levels - len(own), axis=0)]))
        tables = np.concatenate(columns, axis=1).reshape(
            levels, *shape[len(shape) - channel_axes :]
        )
        return cls(tables, np.concatenate([b.indices for b in books], axis=1).reshape(shape))

    @classmethod
    def _of_values(cls, weights: np.ndarray) -> Codebook | None:
        # A look at a few thousand weights spares most tensors the sort.
        if np.unique(weights.reshape(-1)[: 16 * MAX_LEVELS]).size > MAX_LEVELS:
            return None
        centroids, indices = np.unique(weights, return_inverse=True)
        if not 1 <= centroids.size <= MAX_LEVELS:
            return None
        return cls(centroids, indices.reshape(weights.shape))

    def with_member_means(self, weights: ArrayLike, keep_zero: bool = False) -> Codebook:
        """The same indices, each centroid the mean of the weights that it stands for.

        Args:
            weights: Array in the shape of `indices`.
            keep_zero: Whether a centroid that is exactly 0 stays so.

        Returns:
            A `Codebook`; a centroid without members stays where it is.

        Raises:
            ValueError: If there is a table for each channel.
        """
        if self.centroids.ndim != 1:
            raise ValueError(
                f"Expected one table of shape (levels,). Received: shape={self.centroids.shape}"
            )
        sums = np.bincount(
            self.indices.reshape(-1),
            weights=np.asarray(weights, "float64").reshape(-1),
            minlength=self.centroids.size,
        )
        counts = self.counts
        means = np.where(counts > 0, sums / np.maximum(counts, 1), self.centroids)
        if keep_zero:
            means[self.centroids == 0] = 0.0
        return Codebook(means, self.indices)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.indices.shape))
        size, channels = self.group_size, self.centroids[0].size
        tables = f", a table for each of {channels} channels"
        if size > 1:
            tables = f", a table for each of {-(-channels // size)} groups of {size} channels"
        return (
            f"<Codebook of {shape} weights: {len(self.centroids)} levels"
            f"{tables if self.centroids.ndim > 1 else ''}, {self.entropy:.2f} bits a weight>"
        )

    @property
    def weights(self) -> np.ndarray:
        """The tensor itself, float32: `centroids[indices]`, or so in each channel."""
        if self.centroids.ndim == 1:
            return self.centroids[self.indices]
        indices = self.indices.reshape(-1, self.tables.shape[1])
        return np.take_along_axis(self.tables, indices, axis=0).reshape(self.indices.shape)

    @property
    def counts(self) -> np.ndarray:
        """How many weights each centroid stands for, over all channels; shape `(levels,)`."""
        return np.bincount(self.indices.reshape(-1), minlength=self.centroids.shape[0])

    @property
    def levels_used(self) -> int:
        """How many distinct values the tensor has, or the channel that has most."""
        if self.centroids.ndim == 1:
            return int(np.unique(self.centroids[self.counts > 0]).size)
        ordered = np.sort(self.weights.reshape(-1, self.centroids[0].size), axis=0)
        return int(1 + (ordered[1:] != ordered[:-1]).sum(axis=0).max())

    @property
    def tables(self) -> np.ndarray:
        """The centroids as `(levels, channels)`; `(levels, 1)` where there is one table."""
        return self.centroids.reshape(len(self.centroids), -1)

    @property
    def group_size(self) -> int:
        """How many channels in a row have one table, at most; the last group may have fewer."""
        return group_size(self.tables)

    @property
    def grid(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Int8 codes and a float32 step a channel whose products are the centroids.

        The codes are of shape `(levels, 1)`, or `(levels, channels)` where they differ between channels.
        One step where there is one table; `None` where the centroids are no whole multiples of a step.
        """
        return integer_grids(self.tables)

    @property
    def table_bytes(self) -> int:
        """Bytes of the centroids, each table once: as float32, or codes and steps where that is less."""
        size, grid = once(self.tables).nbytes, self.grid
        if grid is None:
            return size
        return min(size, once(grid[0]).nbytes + once(grid[1][None]).nbytes)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the indices, in a whole number of bits each, and of the centroids."""
        bits = max(0, len(self.centroids) - 1).bit_length()
        return -(-self.indices.size * bits // 8) + self.table_bytes

    @property
    def entropy(self) -> float:
        """Zeroth-order entropy of the indices in bits a weight: what an entropy coder needs."""
        counts = self.counts[self.counts > 0]
        probabilities = counts / counts.sum()
        return float(max(0.0, -(probabilities * np.log2(probabilities)).sum()))

    def relative_error(self, weights: ArrayLike) -> float:
        """Relative quantization error `||w - w_q||^2 / ||w||^2` (WNQ, arXiv 1907.00593).

        Args:
            weights: The tensor before quantization, in the shape of `indices`.

        Returns:
            A float; 0 where all weights are 0 and stay so.
        """
        weights = np.asarray(weights, "float64")
        error = float(np.square(weights - self.weights).sum())
        return error / (float(np.square(weights).sum()) or 1.0)


def places_of(weights: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Between which borders each weight lies: how many are below it.

    Args:
        weights: Array of any shape.
        borders: At most 255 numbers of the dtype of the weights, ascending; a weight that is equal to
            one lies below it.

    Returns:
        Uint8 array in the shape of the weights.
    """
    flat, places = weights.reshape(-1), np.zeros(weights.size, "uint8")
    for start in range(0, flat.size, _CHUNK):
        part, place = flat[start : start + _CHUNK], places[start : start + _CHUNK]
        if borders.size >= _COMPARED:
            place[:] = np.searchsorted(borders, part, side="left")
            continue
        # Few comparisons of weights that stay in the cache beat a search.
        for border in borders:
            place += part > border
    return places.reshape(weights.shape)


def lookup(centroids: Tensor, indices: Tensor) -> Tensor:
    """`centroids[indices]`, differentiable in the centroids.

    The gradient of a centroid is the sum of the gradients of its members (Han et al., "Deep
    Compression", ICLR 2016), computed as a segment sum.

    Args:
        centroids: Tensor of shape `(levels,)`.
        indices: Integer tensor of any shape.

    Returns:
        A tensor in the shape of `indices` and the dtype of `centroids`.
    """
    # Copies: `custom_gradient` does not differentiate through a variable, or want to know of it.
    levels, indices = centroids.shape[0], ops.copy(indices)

    def look_up(centroids: Any) -> Any:
        values = _taken()(centroids, indices)
        return values, lambda upstream: (segment_sums(upstream, indices, levels),)

    return custom_gradient(look_up)(ops.copy(centroids))


@functools.lru_cache
def _taken() -> Callable[..., Any]:
    # Compiled, it has a tenth of the time in graphs of TensorFlow.
    return compiled(lambda table, places: take(table, ops.cast(places, "int32")))
