"""Tables that integer formats hold in a byte a level: any whole numbers within +-127, times a step.

Rounding the centroids of k-means to such codes raises the squared error by less than half a percent up
to 16 levels, where no outliers make the step coarse. With a step a channel, the weights of all channels
are clustered together, each divided by the scale of its channel.

See also: https://keras-qareg.github.io/keras-qareg/method.html#tables-and-scales
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_qareg.numerics.clustering import dead_channels
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.compiled import Tensor, custom_gradient
from keras_qareg.numerics.grids import grid_codes, integer_grid
from keras_qareg.numerics.rate_distortion import assigned

TABLES = ("int8", "even", "float32")
SCALES = ("auto", "kernel", "channel")
LARGEST_CODE = 127
# Codes that the largest centroid may have: beyond 127 it is clipped, which is best for some outliers.
_REACHES = np.arange(1.0, 192.0, 0.25)
# How often the scales of channels and the table are fitted to each other.
_ROUNDS = 3


def int8_table(
    centroids: np.ndarray, masses: np.ndarray | None = None
) -> tuple[np.ndarray, np.float32]:
    """Whole numbers from -127 to 127 and the step with which they are nearest to some centroids.

    Centroids that are such products already stay what they are, to the bit, and zeros stay zeros.

    Args:
        centroids: Array `(levels,)`, finite.
        masses: How much the squared error of each centroid counts, `(levels,)`: how many weights it
            stands for. `None` (default): all count alike.

    Returns:
        `(codes, step)`: int8 array `(levels,)` and a positive float32 number. The table is
        `codes * step`, each product rounded once.

    Example:

    >>> codes, step = int8_table(np.array([-0.3, 0.0, 0.1, 0.9]))
    >>> codes.tolist(), round(float(step), 6)
    ([-21, 0, 7, 63], 0.014286)
    """
    single = np.asarray(centroids, "float32")
    found = integer_grid(single[:, None])
    if found is not None and np.abs(found[0].astype("int16")).max() <= LARGEST_CODE:
        sign = 1 if found[1][0] > 0 else -1
        return found[0] * np.int8(sign), abs(found[1][0])
    wide = single.astype("float64")
    largest = np.abs(wide).max()
    if not largest:
        return np.zeros(wide.shape, "int8"), np.float32(1.0)
    counts = np.ones(wide.shape) if masses is None else np.asarray(masses, "float64")
    counts = counts if counts.any() else np.ones(wide.shape)
    steps = (largest / _REACHES)[:, None]
    codes = np.rint(wide / steps).clip(-LARGEST_CODE, LARGEST_CODE)
    squares = (counts * codes * codes).sum(axis=1, keepdims=True)
    sums = (counts * codes * wide).sum(axis=1, keepdims=True)
    steps = np.where(squares > 0, sums / np.where(squares > 0, squares, 1), steps)
    errors = (counts * np.square(codes * steps - wide)).sum(axis=1)
    best = errors.argmin()
    return codes[best].astype("int8"), np.float32(steps[best, 0])


def channel_table(
    weights: np.ndarray,
    channel_axes: int,
    cluster: Callable[[np.ndarray, np.ndarray], Codebook],
    rounded: bool,
    rate: float = 0.0,
) -> Codebook:
    """One table for all channels of a kernel, times a scale of each.

    Args:
        weights: Array of any shape, finite. The weights of dead channels have no say, and take the level
            that is nearest to 0: make them zeros, and hold a level at 0.
        channel_axes: How many of the last axes count channels, 1 or more.
        cluster: From weights that are divided by the scales of their channels, and how much the squared
            error of each counts (the square of the scale), to their codebook.
        rounded: Whether the table is whole numbers, as `int8_table`, and the scales its steps; else both
            are any float32 numbers.
        rate: What a bit of the indices costs, in squared weights, as in `rate_distortion`; the zeros of
            dead channels then count among them. Defaults to 0: all weights have their nearest level.

    Returns:
        A `Codebook` of centroids `(levels, *channels)`: the products, each rounded once.
    """
    channels = weights.shape[weights.ndim - channel_axes :]
    columns = np.asarray(weights, "float32").reshape(-1, int(np.prod(channels)))
    alive = ~dead_channels(columns, 1) & columns.any(axis=0)
    if rate and alive.any():
        alive[:] = True
    live = columns[:, alive] if alive.any() else np.ones((1, 1), "float32")
    scales = np.sqrt(np.square(live, dtype="float64").mean(axis=0)).astype("float32")
    scales[scales == 0] = np.median(scales[scales > 0])
    importance = np.square(scales, dtype="float64")
    book = cluster(live / scales, np.broadcast_to(importance, live.shape))
    for _ in range(_ROUNDS):
        table = _fitted_table(live, scales, book)
        scales = _fitted_scales(live, table[book.indices], scales)
        book = _assigned(live, scales, Codebook(table, book.indices), rate)
    if rounded:
        masses = np.broadcast_to(np.square(scales / scales.max()), live.shape).reshape(-1)
        masses = np.bincount(book.indices.reshape(-1), masses, book.centroids.size)
        codes, step = int8_table(book.centroids, masses)
        scales = scales * step
        book = _assigned(live, scales, Codebook(codes, book.indices), rate)
        scales = _fitted_scales(live, book.weights, scales)
    steps = np.full(columns.shape[1], np.median(scales), "float32")
    if alive.any():
        steps[alive] = scales
        book = _assigned(live, scales, book, rate)
    indices = np.full(columns.shape, np.abs(book.centroids).argmin(), "uint8")
    if alive.any():
        indices[:, alive] = book.indices
    tables = np.multiply.outer(book.centroids, steps).reshape(-1, *channels)
    return Codebook(tables, indices.reshape(weights.shape))


def _assigned(weights: np.ndarray, scales: np.ndarray, book: Codebook, rate: float) -> Codebook:
    """The weights of channels with the levels that are nearest to them, or cost least."""
    scaled = weights / scales
    if not rate:
        return Codebook.nearest(scaled, book.centroids)
    return assigned(scaled, book, rate / np.square(scales, dtype="float64"))


def rounded(centroids: Tensor, unit: Tensor) -> Tensor:
    """Centroids as whole numbers from -127 to 127 times a unit, through which gradients pass straight.

    Centroids that are clipped to 127 units get no gradient that would take them farther out.

    Args:
        centroids: Float32 tensor `(levels,)`.
        unit: Float32 scalar, a power of two, so that every backend rounds alike.

    Returns:
        A tensor like `centroids`.

    Example:

    >>> ops.convert_to_numpy(rounded(ops.array([0.3, 0.9, -80.0]), ops.array(0.5))).tolist()
    [0.5, 1.0, -63.5]
    """

    def round_to(centroids: Any, unit: Any) -> Any:
        end = LARGEST_CODE * unit
        value = ops.clip(ops.round(centroids / unit) * unit, -end, end)

        def gradients(upstream: Any) -> tuple[Any, None]:
            outward = ops.logical_or(
                ops.logical_and(centroids > end, upstream < 0),
                ops.logical_and(centroids < -end, upstream > 0),
            )
            return ops.where(outward, ops.zeros_like(upstream), upstream), None

        return value, gradients

    return custom_gradient(round_to)(ops.copy(centroids), ops.copy(unit))


def rounded_freely(centroids: Tensor, table: str) -> Tensor:
    """Centroids as what a table allows that is near, through which gradients pass straight.

    Args:
        centroids: Float32 tensor `(levels,)`, in any order.
        table: `"int8"`: whole numbers times a step, of which the largest centroid has 127; `"even"`:
            `grids.grid_codes` in the order of the centroids times the step with the least squared error.

    Returns:
        A tensor like `centroids`, each product rounded once.

    Example:

    >>> rounded_freely(ops.array([0.9, -2.2, -0.9, 0.2]), "even").tolist()  # doctest: +SKIP
    [1.0, -2.0, -1.0, 0.0]
    """

    def round_to(centroids: Any) -> Any:
        if table == "even":
            grid = grid_codes(centroids.shape[0]).astype("float32")
            ranks = ops.argsort(ops.argsort(centroids))
            codes = ops.take(ops.convert_to_tensor(grid), ranks)
            step = ops.abs(ops.sum(codes * centroids)) / float(np.square(grid).sum())
        else:
            largest = ops.max(ops.abs(centroids))
            step = ops.where(largest > 0, largest, ops.ones_like(largest)) / LARGEST_CODE
            codes = ops.clip(ops.round(centroids / step), -LARGEST_CODE, LARGEST_CODE)
        return codes * step, lambda upstream: (upstream,)

    return custom_gradient(round_to)(ops.copy(centroids))


def evenly_spaced(basins: np.ndarray, table: str) -> np.ndarray:
    """Evenly spaced values as the nearest ones that a table allows.

    Args:
        basins: Float32 array `(levels,)`, ascending.
        table: `"int8"`: whole numbers times a step, evenly spaced still up to 255 levels; `"even"`:
            `grids.grid_codes(levels)` times a step; `"float32"`: as they are.

    Returns:
        Float32 array `(levels,)`; the same, to the bit, where the values are allowed already.
    """
    levels = basins.size
    if table == "float32" or not basins.any():
        return basins
    if table == "even":
        codes = grid_codes(levels).astype("float32")
        return codes * np.float32(abs(codes @ basins / (codes @ codes)))
    found = integer_grid(basins[:, None])
    if found is not None:
        return basins
    wide = basins.astype("float64")
    gap = (wide[-1] - wide[0]) / (levels - 1)
    # So many steps lie between neighbours as leave the outermost within 127 steps of 0.
    parts = int(LARGEST_CODE * gap / np.abs(wide).max() + 1e-6)
    if parts == 0:
        codes, step = int8_table(basins)
        return codes.astype("float32") * step
    first = np.rint(wide[0] / gap * parts).clip(-LARGEST_CODE, LARGEST_CODE - parts * (levels - 1))
    whole = first + parts * np.arange(levels)
    step = np.float32((whole @ wide) / (whole @ whole))
    return whole.astype("float32") * step


def int8_parts(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Centroids that are whole multiples of a unit, sizes, and the unit, whose products are tables.

    The unit is a power of two, with which sizes are about 1, and so small that the largest centroid is
    64 to 127 units.

    Args:
        tables: Float32 array `(levels, channels)`.

    Returns:
        `(centroids, sizes, unit)`: float32 arrays `(levels,)` and `(channels,)`, and a float; `None`
        where the tables are no whole numbers from -127 to 127 times a step a channel.
    """
    if not tables.any():
        return tables[:, 0], np.ones(tables.shape[1], "float32"), 1 / 128
    found = integer_grid(tables)
    if found is None or found[0].min() < -LARGEST_CODE:
        return None
    sign = np.float32(
        -1 if np.median(found[1]) < 0 else 1
    )  # non-negative kernels have both positive
    codes, steps = sign * found[0].astype("float32"), sign * found[1]
    finer = 2.0 ** int(np.log2(LARGEST_CODE / np.abs(codes).max()))
    codes, steps = codes * np.float32(finer), steps / np.float32(finer)
    unit = 2.0 ** int(np.rint(np.log2(np.median(np.abs(steps)))).clip(-100, 100))
    return codes * np.float32(unit), steps / np.float32(unit), unit


def float_parts(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """As `int8_parts`, of any centroids, whose products are the tables to rounding; the unit is 1."""
    if tables.shape[1] == 1:
        return tables[:, 0], np.ones(1, "float32"), 1.0
    wide = tables.astype("float64")
    reference = wide[:, np.abs(wide).max(axis=0).argmax()]
    sizes = (reference @ wide) / (reference @ reference or 1.0)
    middle = float(np.median(np.abs(sizes))) or 1.0
    centroids, sizes = (reference * middle).astype("float32"), (sizes / middle).astype("float32")
    error = np.abs(np.multiply.outer(centroids, sizes) - tables).max(axis=0)
    return (centroids, sizes, 1.0) if (error <= 1e-6 * np.abs(tables).max(axis=0)).all() else None


def _fitted_table(weights: np.ndarray, scales: np.ndarray, book: Codebook) -> np.ndarray:
    """The table with the least squared error for some scales; its zeros stay."""
    # Squares of large weights do not fit float32.
    places, table, scales = book.indices.reshape(-1), book.centroids, scales.astype("float64")
    sums = np.bincount(places, (weights * scales).reshape(-1), table.size)
    squares = np.broadcast_to(np.square(scales), weights.shape).reshape(-1)
    squares = np.bincount(places, squares, table.size)
    fitted = np.where(squares > 0, sums / np.where(squares > 0, squares, 1), table)
    fitted[table == 0] = 0.0
    return fitted.astype("float32")


def _fitted_scales(weights: np.ndarray, levels: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The scales with the least squared error, where each weight has some level of the table."""
    sums = (weights * levels).sum(axis=0, dtype="float64")
    squares = np.square(levels).sum(axis=0, dtype="float64")
    good = (sums > 0) & (squares > 0)
    return np.where(good, sums / np.where(good, squares, 1), scales).astype("float32")
