"""How tables of frequencies are written: roots of counts, as differences from what one expects.

A count `c` is held as `r`, the whole number nearest to `sqrt(c / 3)`, and stands for `r * r`: a table
that is just precise enough, since a finer one would take more bytes than it spares.
"""

from __future__ import annotations

import math

import numpy as np

from keras_qareg.export.archive.ans import Reader, StreamError, Writer

COARSENESS = 3
# Differences from this on are written as this, and what is more in two bytes.
ESCAPE = 15
SLOPES = 16
_BYTES = np.ones(256, "int64")
_MOST = (1 << 16) - 1


def roots(counts: np.ndarray) -> np.ndarray:
    """The roots of counts; 0 for no others than 0."""
    found = np.rint(np.sqrt(np.asarray(counts, "float64") / COARSENESS)).astype("int64")
    return np.where(counts > 0, np.maximum(found, 1), 0)


def slope_weights(slope: int) -> np.ndarray:
    """Weights of the differences 0 to 15, folded: each is `(2 slope + 1) / 32` of the one before."""
    weights = [1 << 20]
    for _ in range(ESCAPE):
        weights.append(1 + weights[-1] * (2 * slope + 1) // 32)
    return np.array(weights, "int64")


def best_slope(folded: np.ndarray) -> int:
    """The slope by which folded differences take the fewest bits."""
    counts = np.bincount(np.minimum(folded, ESCAPE), minlength=ESCAPE + 1)
    return int(np.argmin(_SLOPE_BITS @ counts))


def put_folded(writer: Writer, folded: np.ndarray, slope: int) -> None:
    """Writes folded differences."""
    writer.put(np.minimum(folded, ESCAPE), slope_weights(slope))
    more = folded[folded >= ESCAPE] - ESCAPE
    if more.size and more.max() > _MOST:
        raise StreamError(f"Expected differences below 2^16. Received: {more.max()}")
    writer.put(more & 255, _BYTES)
    writer.put(more >> 8, _BYTES)


def take_folded(reader: Reader, count: int, slope: int) -> np.ndarray:
    """Reads folded differences: int64 array of shape `(count,)`."""
    found = reader.take(count, slope_weights(slope)).astype("int64")
    more = int((found == ESCAPE).sum())
    low, high = reader.take(more, _BYTES), reader.take(more, _BYTES)
    found[found == ESCAPE] += low.astype("int64") + 256 * high.astype("int64")
    return found


def fold(differences: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2 as 0, 1, 2, 3, 4."""
    return np.where(differences < 0, -2 * differences - 1, 2 * differences)


def unfold(folded: np.ndarray) -> np.ndarray:
    """The inverse of `fold`."""
    return np.where(folded % 2 == 1, -(folded + 1) // 2, folded // 2)


def table_differences(tables: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The folded differences of tables from what is expected of them.

    Args:
        tables: Roots, int64 array of shape `(rows, columns, levels)`.
        sizes: How many symbols each table is for, `(rows, columns)`.

    Returns:
        Int64 array in the shape of `tables`.
    """
    found = np.empty_like(tables)
    for place in np.ndindex(*sizes.shape):
        if place == (0, 0):
            first = _first(int(sizes[0, 0]), tables.shape[-1])
            found[place] = np.diff(tables[place], prepend=first)
        else:
            found[place] = tables[place] - expected(tables, sizes, *place)
    return fold(found)


def tables_of(folded: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The inverse of `table_differences`; raises a `StreamError` where a root is not from 0 to 65535."""
    differences, tables = unfold(folded), np.zeros_like(folded)
    for place in np.ndindex(*sizes.shape):
        if place == (0, 0):
            tables[place] = _first(int(sizes[0, 0]), folded.shape[-1])
            tables[place] += np.cumsum(differences[place])
        else:
            tables[place] = differences[place] + expected(tables, sizes, *place)
        if tables[place].min() < 0 or tables[place].max() > _MOST:
            raise StreamError("Expected frequencies. Received: negative ones, or too large ones")
    return tables


def _first(size: int, levels: int) -> int:
    return math.isqrt(size // (COARSENESS * levels))


def expected(tables: np.ndarray, sizes: np.ndarray, row: int, column: int) -> np.ndarray:
    """What is expected of a table by those before it: of the first row or column, the one before it in
    proportion; of others, as the one above is to its left neighbor."""
    if row and column:
        above, left = tables[row - 1, column], tables[row, column - 1]
        return np.minimum(above * left // np.maximum(tables[row - 1, column - 1], 1), _MOST)
    before = (row - 1, 0) if row else (0, column - 1)
    ratio = (int(sizes[row, column]) << 16) // max(int(sizes[before]), 1)
    return np.minimum(tables[before] * math.isqrt(ratio) >> 8, _MOST)


_SLOPE_BITS = np.array(
    [-np.log2(slope_weights(slope) / slope_weights(slope).sum()) for slope in range(SLOPES)]
)
_SLOPE_BITS[:, ESCAPE] += 16


def folded_bits(folded: np.ndarray, slope: int) -> float:
    """The bits that `put_folded` takes, about."""
    counts = np.bincount(np.minimum(folded, ESCAPE), minlength=ESCAPE + 1)
    return float(_SLOPE_BITS[slope] @ counts)
