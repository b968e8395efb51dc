"""Values that integer formats hold exactly: whole numbers of at most 8 bits times a float32 step.

A grid has one step, or one for each channel, which the last axes of a kernel count. Each value is one
product, rounded once, as runtimes compute it.

See also: https://keras-qareg.github.io/keras-qareg/method.html#tables-and-scales
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_qareg.numerics.clustering import MAX_LEVELS, check_finite, check_levels, flat
from keras_qareg.numerics.groups import group_size, once, repeated

_HISTOGRAM_BINS = 65_536
# Rounds from each start, and from the best of these.
_FIRST_ROUNDS, _ROUNDS = 12, 40
_STARTS = (1.0, 0.7, 0.5, 0.35, 0.25)
# How far from whole multiples of a step values may be before the last bits of the step are looked for.
_ROUNDING = 1e-6
_LARGEST_CODE = 127
# So many weights must agree with a grid; channels that are looked at first.
_AGREEING, _LOOKED_AT = 6, 4


def grid_codes(levels: int) -> np.ndarray:
    """The whole numbers of a grid that integer formats hold: int16 array of shape `(levels,)`.

    From `-(levels // 2)` up, zero among them, as the integers of log2(levels) bits; -1 and 1 for two.

    Example:

    >>> grid_codes(4).tolist(), grid_codes(2).tolist()
    ([-2, -1, 0, 1], [-1, 1])
    """
    if check_levels(levels) == 2:
        return np.array([-1, 1], "int16")
    return np.arange(levels, dtype="int16") - levels // 2


def snapped(weights: ArrayLike, levels: int, channel_axes: int = 0) -> np.ndarray:
    """The steps of the grids with the least squared error that an integer format holds exactly.

    A grid is `grid_codes(levels)` times a step. Steps are found by least squares, nearest code and
    step in turn, from several starts.

    Args:
        weights: Array of any shape, finite.
        levels: Integer from 2 to 256.
        channel_axes: How many of the last axes count channels, each with a step of its own; 0
            (default) for one step.

    Returns:
        Float32 array in the shape of these axes; of shape `(1,)` where there is one step.

    Raises:
        ValueError: If `levels` is out of range, or the weights are empty or not finite.

    Example:

    >>> [round(float(step), 2) for step in snapped([-2.1, -1.0, 0.0, 0.9], levels=4)]
    [1.02]
    """
    codes = grid_codes(levels).astype("float64")
    if not channel_axes:
        values, counts = _histogram(flat(weights))
        steps = _best_steps(values[:, None], counts[:, None], codes)
        return steps.astype("float32")
    weights = np.asarray(weights, "float32")
    check_finite(weights)
    channels = weights.shape[-channel_axes:]
    columns = weights.reshape(-1, int(np.prod(channels)))
    steps = _best_steps(columns, 1, codes).astype("float32")
    alive = columns.any(axis=0)
    if alive.any() and 0 in codes:  # any step will do for zeros: integer formats want no tiny one
        steps[~alive] = np.median(steps[alive])
    return steps.reshape(channels)


def nearest_codes(weights: np.ndarray, steps: np.ndarray, levels: int) -> np.ndarray:
    """The place in `grid_codes(levels)` of the code nearest to each weight: uint8 array."""
    codes = grid_codes(levels)
    if codes.size == 2:
        return (weights > 0).astype("uint8")
    return (np.rint(weights / steps).clip(codes[0], codes[-1]) - codes[0]).astype("uint8")


def integer_grid(tables: np.ndarray, exact: bool = True) -> tuple[np.ndarray, np.ndarray] | None:
    """Integer codes of levels and a step a channel, whose products are the levels.

    Args:
        tables: Float32 array `(levels, channels)`.
        exact: Whether the products must be the levels to the last bit, not just to rounding.

    Returns:
        `(codes, steps)`: int8 array `(levels,)`, the smallest such codes, and float32 array
        `(channels,)`, which has negative steps where channels have their levels turned; or `None`
        where the levels are no whole multiples of a step, or of one too small for int8.
    """
    wide = tables.astype("float64")
    reference = wide[:, np.abs(wide).max(axis=0).argmax()]
    for codes in _whole_numbers(reference):
        steps = ((codes @ wide) / (codes @ codes)).astype("float32")
        if not exact:
            error = np.abs(codes.astype("float32")[:, None] * steps - tables).max()
            if error <= _ROUNDING * np.abs(tables).max():
                return _turned(codes, steps)
            continue
        found, missing = _exact_steps(tables, np.broadcast_to(codes[:, None], tables.shape), steps)
        if not missing.any():
            return _turned(codes, found)
    return None


def integer_grids(tables: np.ndarray, exact: bool = True) -> tuple[np.ndarray, np.ndarray] | None:
    """Integer codes of levels and a step a channel; the codes may differ between channels.

    Args:
        tables: As in `integer_grid`.
        exact: As there.

    Returns:
        As `integer_grid`, but the codes are of shape `(levels, 1)`, or `(levels, channels)` where no
        codes are common to all channels.
    """
    found = integer_grid(tables, exact)
    if found is not None or tables.shape[1] == 1:
        return found if found is None else (found[0][:, None], found[1])
    size, columns = group_size(tables), []
    for column in once(tables).T:
        if not column.any():
            columns.append((np.zeros(column.shape, "int8"), np.ones(1, "float32")))
            continue
        found = integer_grid(column[:, None], exact)
        if found is None:
            return None
        columns.append(found)
    codes, steps = (
        np.stack([c for c, _ in columns], axis=1),
        np.stack([s for _, s in columns], axis=1),
    )
    return repeated(codes, size, tables.shape[1]), repeated(steps, size, tables.shape[1])[0]


def _whole_numbers(values: np.ndarray) -> Iterator[np.ndarray]:
    """Whole numbers of 8 bits in the proportions of some values, to rounding, the smallest first."""
    largest = np.abs(values).max()
    if not 0 < largest < np.inf:
        return
    reaches = np.arange(1, _LARGEST_CODE + 2)[:, None]
    ratios = reaches * (values.astype("float64") / largest)
    codes = np.rint(ratios)
    good = (np.abs(codes - ratios) <= _ROUNDING * reaches).all(axis=1)
    good &= (codes >= -_LARGEST_CODE - 1).all(axis=1) & (codes <= _LARGEST_CODE).all(axis=1)
    yield from codes[good]


def _turned(codes: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and steps, or the negatives of both: the codes of fewer bits, else more positive steps."""

    def cost(codes: np.ndarray, steps: np.ndarray) -> tuple[int, float]:
        reach = max(-codes.min(), codes.max() + 1)
        return int(np.searchsorted([2, 8, 128], reach)), float((steps < 0).mean())

    if cost(-codes, -steps) < cost(codes, steps):
        codes, steps = -codes, -steps
    return codes.astype("int8"), steps


def integer_weights(weights: np.ndarray, channel_axes: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The codes and steps of a kernel whose channels have whole multiples of a step each.

    Channels have as many codes in common as can be found: a few weights tell the proportions of their
    own codes alone.

    Args:
        weights: Float32 array.
        channel_axes: How many of its last axes count channels.

    Returns:
        Int8 codes in the shape of the weights, and float32 steps in that of the channels; `None` where
        some channel is on no grid, or there are so few weights that any would be.
    """
    channels = weights.shape[weights.ndim - channel_axes :]
    columns = np.asarray(weights, "float32").reshape(-1, int(np.prod(channels)))
    # Three weights a channel say nothing; of more, some agree with a grid by no chance.
    agreeing = int(np.count_nonzero(columns)) - int(columns.any(axis=0).sum())
    if len(columns) < 4 or agreeing < _AGREEING:
        return None
    # A look at some channels spares most kernels the sort.
    if any(_proportions(np.unique(column)) is None for column in columns.T[:_LOOKED_AT]):
        return None
    values = distinct_values(columns)
    steps = None if values is None else _common_steps(values)
    if steps is None:
        return None
    codes = np.rint(columns / steps).astype("int8")
    if not np.array_equal(codes * steps, columns):
        return None
    return codes.reshape(weights.shape), steps.reshape(channels)


def distinct_values(columns: np.ndarray) -> np.ndarray | None:
    """The distinct values of each column, ascending, in `(most, columns)`: where a column has fewer, its
    last stands there again. `None` where one has more than 256."""
    ordered = np.sort(np.ascontiguousarray(columns.T), axis=1)
    differs = ordered[:, 1:] != ordered[:, :-1]
    most = int(differs.sum(axis=1).max()) + 1
    if most > MAX_LEVELS:
        return None
    places = np.zeros(ordered.shape, "int16")
    np.cumsum(differs, axis=1, out=places[:, 1:])
    values = np.repeat(ordered[:, -1:], most, axis=1)
    np.put_along_axis(values, places.astype("int64"), ordered, axis=1)
    return values.T


def _common_steps(values: np.ndarray) -> np.ndarray | None:
    """A step for each channel of distinct values `(most, channels)`, for few codes in all."""
    steps = np.ones(values.shape[1], "float32")
    missing: np.ndarray = np.abs(values).max(axis=0) > 0
    counts = (values[1:] != values[:-1]).sum(axis=0)
    known = np.zeros(0)
    while missing.any():
        # The channel with the most values says most about the codes.
        richest = np.where(missing, counts, -1).argmax()
        codes = _proportions(values[:, richest], known)
        if codes is None:
            return None
        known = np.union1d(known, codes)
        _fit(values, known, steps, missing)
        if missing[richest]:
            return None
    return steps


def _proportions(values: np.ndarray, known: np.ndarray | tuple[()] = ()) -> np.ndarray | None:
    """Whole numbers that are some values to the last bit, by some step: with most known ones, or the
    smallest. Of zeros alone they are zeros; `None` where there are none."""
    if values.size > MAX_LEVELS:
        return None
    if not values.any():
        return np.zeros(values.shape)
    best, most = None, -1
    for codes in _whole_numbers(values):
        steps = np.atleast_1d((codes @ values) / (codes @ codes)).astype("float32")
        if not _exact_steps(values[:, None], codes[:, None], steps)[1].any():
            count = int(np.isin(codes, known).sum())
            if count > most:
                best, most = codes, count
    return best


def _fit(values: np.ndarray, known: np.ndarray, steps: np.ndarray, missing: np.ndarray) -> None:
    """Sets the steps of the missing channels whose values are known codes times a step."""
    is_known = np.zeros(2 * _LARGEST_CODE + 4, "bool")
    middle = _LARGEST_CODE + 2
    is_known[known.astype("int64") + middle] = True
    # The largest value of a channel has some code: mostly the largest one.
    reaches = np.unique(np.abs(known[known != 0]))[::-1]
    for reach in (*reaches, *-reaches):
        places = np.flatnonzero(missing)
        if not places.size:
            return
        columns = values[:, places]
        tried = (np.abs(columns).max(axis=0) / reach).astype("float64")
        ratios = columns / tried
        codes = np.rint(ratios).clip(-middle, middle - 1)
        near = np.abs(codes - ratios) <= _ROUNDING * abs(reach)
        fits = (near & is_known[codes.astype("int64") + middle]).all(axis=0)
        places, columns, codes = places[fits], columns[:, fits], codes[:, fits]
        found, failed = _exact_steps(columns, codes, tried[fits].astype("float32"))
        steps[places[~failed]] = found[~failed]
        missing[places[~failed]] = False


def _exact_steps(
    columns: np.ndarray, codes: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The steps, to the last bit, whose products with the codes are the columns; and which are not."""
    codes = codes.astype("float32")
    found, missing = steps.copy(), np.ones(steps.shape, "bool")
    if not steps.size:
        return found, missing
    largest = np.abs(codes).argmax(axis=0)[None]
    numerators = np.take_along_axis(columns, largest, axis=0)[0]
    divisors = np.take_along_axis(codes, largest, axis=0)[0]
    guess = np.where(divisors != 0, numerators / np.where(divisors != 0, divisors, 1), steps)
    candidates = [steps, guess.astype("float32")]
    for toward in (-np.inf, np.inf):
        value = steps
        for _ in range(4):
            value = np.nextafter(value, np.float32(toward))
            candidates.append(value)
    for candidate in candidates:
        fits = missing & (codes * candidate == columns).all(axis=0)
        found[fits] = candidate[fits]
        missing &= ~fits
        if not missing.any():
            break
    return found, missing


def _histogram(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and how many weights they stand for."""
    if weights.size <= _HISTOGRAM_BINS:
        values, counts = np.unique(weights.astype("float64"), return_counts=True)
        return values, counts
    largest = float(np.abs(weights).max())
    counts, edges = np.histogram(weights, _HISTOGRAM_BINS, range=(-largest, largest))
    used = counts > 0
    return 0.5 * (edges[:-1] + edges[1:])[used], counts[used]


def _best_steps(values: np.ndarray, counts: Any, codes: np.ndarray) -> np.ndarray:
    """The step of each column of values `(n, channels)`, for the least squared error."""
    largest = np.abs(values).max(axis=0)
    # Any step will do for a channel of zeros, but integer formats want no tiny one; where no code is
    # zero, a tiny one makes what is nearest to it.
    least = 1.0 if 0 in codes else np.finfo("float32").tiny * 256
    largest = np.where(largest > 0, largest, least).astype(values.dtype)
    best, best_errors = largest, np.full(largest.shape, np.inf)
    for share in _STARTS:
        start = share * largest / np.abs(codes).max()
        steps, errors = _least_squares(values, counts, codes, start, _FIRST_ROUNDS)
        best = np.where(errors < best_errors, steps, best)
        best_errors = np.minimum(errors, best_errors)
    return _least_squares(values, counts, codes, best, _ROUNDS)[0]


def _least_squares(
    values: np.ndarray, counts: Any, codes: np.ndarray, steps: np.ndarray, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest codes and the best step in turn, from some steps; the steps and their squared errors."""
    for _ in range(rounds):
        chosen = _nearest_code(values / steps, codes)
        squares = (counts * chosen * chosen).sum(axis=0)
        sums = np.abs((counts * chosen * values).sum(axis=0))
        moved = np.where((squares > 0) & (sums > 0), sums / np.maximum(squares, 1e-30), steps)
        if np.array_equal(moved, steps):
            break
        steps = moved
    errors = (counts * np.square(_nearest_code(values / steps, codes) * steps - values)).sum(0)
    return steps, errors


def _nearest_code(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    if codes.size == 2:
        return np.where(values > 0, values.dtype.type(1), values.dtype.type(-1))
    return np.rint(values).clip(codes[0], codes[-1])
