"""Rounding errors that do not add up: weights between two levels take the one that evens out a channel.

A layer multiplies a channel's errors by inputs of mean m and variance v, so that the square of what its
output is off by is about `v sum(e^2) + m^2 sum(e)^2`. Nearest levels make the first sum least alone.
The second can be larger, where inputs are positive and levels are few: of four even levels, -2 to 1
times a step, the upper one cuts positive weights off, and the errors of a channel of 576 normal weights
add up to four times what they would at random. A few weights near the middle of two levels can make
up for that.

See also: https://keras-qareg.github.io/keras-qareg/method.html#the-schedule
"""

from __future__ import annotations

import math

import numpy as np

from keras_qareg.numerics.codebook import Codebook

# m^2 / v of what comes out of a ReLU that gets a normal distribution of mean 0: 0.47.
_MEAN_SHARE = 0.47
# Weights at a time.
_BLOCK = 1 << 18


def balanced(weights: np.ndarray, book: Codebook, channel_axes: int) -> Codebook:
    """A codebook in which some weights take the level on the other side, where that helps their channel.

    In each channel the harm `sum(e^2) + 0.47 sum(e)^2` falls with each of them. Weights that are a level
    already stay.

    Args:
        weights: Float32 array in the shape of the indices.
        book: Their `Codebook`, each weight with its nearest level; tables are ascending.
        channel_axes: How many of the last axes count channels.

    Returns:
        A `Codebook` with the same tables.

    Example:

    >>> weights = np.array([[0.4], [0.45], [0.3], [0.0], [1.0]])
    >>> balanced(weights, Codebook.nearest(weights, [0.0, 1.0]), 1).indices.ravel().tolist()
    [0, 1, 0, 0, 1]
    """
    channels = math.prod(weights.shape[weights.ndim - channel_axes :])
    rows = np.ascontiguousarray(weights.reshape(-1, channels).T)
    indices = np.ascontiguousarray(book.indices.reshape(-1, channels).T)
    tables = book.centroids.reshape(len(book.centroids), -1).T
    tables = np.broadcast_to(tables, (channels, len(book.centroids)))
    block = max(1, _BLOCK // max(1, rows.shape[1]))
    for first in range(0, channels, block):
        part = slice(first, first + block)
        indices[part] = _balanced(rows[part], tables[part], indices[part])
    return Codebook(book.centroids, indices.T.reshape(weights.shape))


def _balanced(rows: np.ndarray, tables: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Indices `(channels, n)` of weights, some of them moved, by tables `(channels, levels)`."""
    errors = np.take_along_axis(tables, indices.astype("int64"), axis=1) - rows
    total = errors.sum(axis=1, keepdims=True, dtype="float64")
    toward = np.where(total > 0, -1, 1)
    others = (indices + toward).clip(0, tables.shape[1] - 1)
    moves = np.take_along_axis(tables, others, axis=1) - rows - errors
    free = (errors != 0) & (moves != 0)
    # What a move adds to the squared errors, for each unit that it takes from their sum.
    prices = np.where(
        free, np.abs(moves) + 2 * errors * toward.astype("float32"), np.float32(np.inf)
    )
    order = np.argsort(prices, axis=1)
    moves, prices = (np.take_along_axis(each, order, axis=1) for each in (moves, prices))
    moves = np.where(np.isfinite(prices), moves, 0.0).astype("float64")
    costs = np.cumsum(np.where(np.isfinite(prices), prices, 0.0) * np.abs(moves), axis=1)
    sums = np.cumsum(moves, axis=1) + total
    harms = costs + _MEAN_SHARE * (np.square(sums) - np.square(total))
    best = harms.argmin(axis=1)[:, None]
    count = np.where(np.take_along_axis(harms, best, axis=1) < 0, best + 1, 0)
    moved = np.zeros(indices.shape, "bool")
    np.put_along_axis(moved, order, np.arange(order.shape[1]) < count, axis=1)
    return np.where(moved & free, others, indices).astype("uint8")
