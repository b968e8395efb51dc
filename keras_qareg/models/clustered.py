"""From kernels to codebooks: the values that the weights of a layer are to share, and who has which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg import regularizers
from keras_qareg.choices import shown
from keras_qareg.layers import QuantizationAware, Weights, channel_axes, kernels
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.cloning import own_regularizer
from keras_qareg.models.stripping import used_kernels
from keras_qareg.numerics import clustering, grids, tables
from keras_qareg.numerics.balancing import balanced
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.groups import Channels
from keras_qareg.numerics.rate_distortion import assigned, rate_distortion

# From so many weights on a bar is shown; and layers that are clustered at a time.
_MANY_WEIGHTS, _WORKERS = 10_000_000, min(4, os.cpu_count() or 1)
# What archives hold of a level beside its indices: its value, and its count in two bytes.
_LEVEL_BITS = {"int8": 24, "float32": 48}


class Way(NamedTuple):
    """How all kernels are clustered: the arguments of `share_weights` that say it."""

    weights: Weights
    method: str
    zero_centroid: bool | str


class Wanted(NamedTuple):
    """What the kernels of one layer are to become.

    Attributes:
        levels: Of each kernel; `None` for one that stays as it is.
        table: As in `share_weights`.
        scale: `"kernel"` or `"channel"`.
        rates: What a bit may cost in each kernel, for `"rate-distortion"`; empty for other methods.
        group_size: How many channels have one table; `None`: all.
    """

    levels: tuple[int | None, ...]
    table: str
    scale: str
    rates: tuple[float, ...] = ()
    group_size: int | None = None

    @property
    def shared(self) -> list[int]:
        """The levels of the kernels that are shared."""
        return [levels for levels in self.levels if levels is not None]

    @property
    def shown(self) -> int | list[int]:
        """The levels in errors: one number where they are the same."""
        return self.shared[0] if len(set(self.shared)) == 1 else self.shared


def cluster_all(
    wanted: dict[Layer, Wanted], way: Way, verbose: str | int
) -> dict[Layer, list[tuple[Codebook, bool]]]:
    """The codebooks of all layers, some at a time: NumPy sorts and counts without Python's lock.

    Args:
        wanted: What each layer is to become.
        way: How.
        verbose: As in `share_weights`.

    Returns:
        For each layer the codebook of each kernel that is shared, and whether it has a zero that is to
        stay.

    Raises:
        ValueError: If a layer has no trained centroids where they are asked for, or a kernel has NaN.
    """
    many = sum(layer.count_params() for layer in wanted) >= _MANY_WEIGHTS
    verbose = shown(verbose, auto=many)
    bar = keras.utils.Progbar(len(wanted), verbose=verbose, unit_name="layer")
    books = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        jobs = [pool.submit(_cluster, layer, its, way) for layer, its in wanted.items()]
        try:
            for layer, job in zip(wanted, jobs, strict=True):
                books[layer] = job.result()
                bar.update(len(books))
        finally:
            pool.shutdown(cancel_futures=True)
    return books


def regularizer_of(layer: Layer) -> regularizers.QuantizationRegularizer | None:
    """The regularizer of this package that a layer was trained under, if there is one."""
    if isinstance(layer, QuantizationAware):
        return layer.regularizer
    return own_regularizer(layer)


def trained_levels(layer: Layer, weights: Weights) -> list[int]:
    """How many values the regularizer of each kernel is for; none where a layer was trained without."""
    if isinstance(layer, QuantizationAware):
        return [regularizer.levels for regularizer in layer.kernel_regularizers]
    regularizer = own_regularizer(layer)
    return [] if regularizer is None else [regularizer.levels] * len(kernels(layer, weights))


def has_centroids(layer: Layer, wanted: Wanted, way: Way) -> bool:
    """Whether a layer has so many trained or fixed centroids, and the method takes them."""
    levels, regularizer = trained_levels(layer, way.weights), regularizer_of(layer)
    if way.method not in ("auto", "trained") or regularizer is None:
        return False
    if any(n not in (None, own) for n, own in zip(wanted.levels, levels, strict=True)):
        return False
    return isinstance(layer, QuantizationAware) or not regularizer.learned


class _Kernel(NamedTuple):
    """How one kernel is clustered, or a group of its channels.

    Attributes:
        levels: At most so many values.
        centroids: The trained or fixed ones, or `None`.
        means: Whether these then move to the means of their members.
        zero: Whether one is a zero that stays.
        rate: What a bit may cost.
        wanted: What the kernels of its layer become.
        way: How all are clustered.
    """

    levels: int
    centroids: np.ndarray | None
    means: bool
    zero: bool
    rate: float
    wanted: Wanted
    way: Way


def _cluster(layer: Layer, wanted: Wanted, way: Way) -> list[tuple[Codebook, bool]]:
    """The codebook of each shared kernel of a layer, and whether it has a zero that is to stay."""
    found = kernels(layer, way.weights)
    trained, regularizer = _trained(layer, wanted, way), regularizer_of(layer)
    means = regularizer is not None and regularizer.learned
    pinned = regularizer is not None and regularizer.zero_basin is True
    books = []
    rates = wanted.rates or [0.0] * len(found)
    for kernel, levels, values, centroids, rate in zip(
        found, wanted.levels, used_kernels(layer, way.weights), trained, rates, strict=True
    ):
        if levels is None:
            continue
        axes = channel_axes(inner_layer(layer), kernel)
        try:
            clustering.check_finite(ops.convert_to_numpy(kernel))
            if centroids is None:
                values, has_zeros = _with_exact_zeros(values, levels, axes)
            zero = pinned if centroids is not None else has_zeros
            zero = zero if way.zero_centroid == "auto" else bool(way.zero_centroid)
            its = _Kernel(levels, centroids, means, zero, rate, wanted, way)
            books.append(_in_groups(values, axes, its))
        except ValueError as error:
            raise ValueError(f"Kernel '{kernel.path}': {error}") from error
    return books


def _in_groups(values: np.ndarray, axes: int, its: _Kernel) -> tuple[Codebook, bool]:
    """The codebook of a kernel, each group of its channels by itself; and whether it keeps a zero."""
    channels = Channels(values.shape[values.ndim - axes :], its.wanted.group_size)
    if channels.groups == 1:
        return _book(values, axes, its)
    parts = channels.cut(values.reshape(-1, channels.count))
    # A group without zeros needs no level for them.
    zeros = [its.zero and (its.way.zero_centroid is True or not part.all()) for part in parts]
    books, kept = zip(
        *(_book(part, 1, its._replace(zero=z)) for part, z in zip(parts, zeros, strict=True)),
        strict=True,
    )
    return Codebook.joined(books, values.shape, axes), any(kept)


def _book(values: np.ndarray, axes: int, its: _Kernel) -> tuple[Codebook, bool]:
    """The codebook of a kernel or a group of channels, and whether it has a zero that is to stay."""
    levels, centroids, zero, (wanted, way) = its.levels, its.centroids, its.zero, its[-2:]
    if centroids is not None and zero:
        centroids = clustering.with_zero(centroids)
    scaled = axes if wanted.scale == "channel" else 0
    if wanted.table == "even":
        if zero:
            regularizers.check_zero("zero_centroid", way.zero_centroid, levels, wanted.table)
        book = _on_grid(values, levels, scaled, centroids)
        zero = zero and levels > 2  # a grid of two has no 0
    elif centroids is not None:
        book = _of_centroids(values, centroids, its.means, zero, wanted.table)
    else:
        book = _found(values, levels, scaled, zero, way.method, wanted.table, its.rate)
    if axes and centroids is None and way.method == "auto":
        book = balanced(values, book, axes)
    return book, zero


def _trained(layer: Layer, wanted: Wanted, way: Way) -> Sequence[np.ndarray | None]:
    """The trained or fixed centroids of each kernel of a layer, `None` where it has none."""
    found: Sequence[np.ndarray | None] = [None] * len(kernels(layer, way.weights))
    regularizer = regularizer_of(layer)
    if regularizer is not None and has_centroids(layer, wanted, way):
        if isinstance(layer, QuantizationAware):
            found = layer.tables()
        else:
            found = [regularizer.basins() for _ in found]
    if way.method == "trained" and found[0] is None:
        raise ValueError(
            f"Expected trained centroids for levels={wanted.shown} with method='trained'. Received: "
            f"layer '{layer.name}' without them. Train it with keras_qareg.quantization_aware, or use "
            "method='auto'."
        )
    return found


def _with_exact_zeros(values: np.ndarray, levels: int, axes: int) -> tuple[np.ndarray, bool]:
    """A kernel whose dead channels are 0, and whether its zeros are worth a centroid."""
    dead = clustering.dead_channels(values, axes).any()
    values = _without_dead(values, axes)
    return values, (levels > 2 and bool(dead)) or clustering.many_zeros(values, levels)


def _without_dead(values: np.ndarray, axes: int) -> np.ndarray:
    dead = clustering.dead_channels(values, axes)
    return np.where(dead, np.float32(0), values) if dead.any() else values


def _on_grid(weights: np.ndarray, levels: int, axes: int, centroids: np.ndarray | None) -> Codebook:
    """The codebook of a kernel on grids, one for each channel in its last axes, or one in all."""
    codes = grids.grid_codes(levels).astype("float32")
    found = None if centroids is None else grids.integer_grid(np.sort(centroids)[:, None])
    if found is not None and np.array_equal(found[0], codes):
        steps = np.full(weights.shape[weights.ndim - axes :] if axes else (1,), found[1][0])
    else:
        steps = grids.snapped(weights, levels, axes)
    table = np.multiply.outer(codes, steps)
    # One channel has a table without channel axes; so has a kernel whose channels are not last.
    table = table if axes else table[:, 0]
    return Codebook(table, grids.nearest_codes(weights, steps, levels))


def _of_centroids(
    values: np.ndarray, centroids: np.ndarray, means: bool, zero: bool, table: str
) -> Codebook:
    """The codebook of a kernel by the centroids that it has, each moved to the mean of its members."""
    book = Codebook.nearest(values, centroids)
    book = book.with_member_means(values, zero) if means else book
    return _rounded(values, book) if table == "int8" else book


def _found(
    values: np.ndarray,
    levels: int,
    axes: int,
    zero: bool,
    method: str,
    table: str,
    rate: float,
) -> Codebook:
    """The codebook of a kernel by its weights alone, with a scale for each channel in its last axes."""
    cluster = partial(
        _initial, levels=levels, method=method, table=table, zero_centroid=zero, rate=rate
    )
    if axes:
        kept = _kept(values, levels, axes, table, zero) if method in ("auto", "kmeans") else None
        return kept or tables.channel_table(values, axes, cluster, table == "int8", rate)
    book = cluster(values)
    return _rounded(values, book, rate) if table == "int8" else book


def _kept(values: np.ndarray, levels: int, axes: int, table: str, zero: bool) -> Codebook | None:
    """The codebook of a kernel that has few values already, which stay what they are."""
    if zero and values.all():
        return None  # a level at 0 is another
    channels = values.shape[values.ndim - axes :]
    book = Codebook.exact(values)
    if book is not None and len(book.centroids) <= levels:
        book = _rounded(values, book) if table == "int8" else book
        return Codebook(np.multiply.outer(book.centroids, np.ones(channels)), book.indices)
    found = grids.integer_weights(values, axes)
    if found is None:
        return None
    codes = np.unique(found[0])
    if len(codes) > levels or codes[0] < -tables.LARGEST_CODE:
        return None
    centroids = np.multiply.outer(codes.astype("float32"), found[1])
    return Codebook(centroids, np.searchsorted(codes, found[0]))


def _rounded(values: np.ndarray, book: Codebook, rate: float = 0.0) -> Codebook:
    """A codebook whose centroids are whole numbers times a step; the same where they are already."""
    codes, step = tables.int8_table(book.centroids, book.counts)
    table = codes.astype("float32") * step
    if np.array_equal(table, book.centroids):
        return book
    return (
        assigned(values, Codebook(table, book.indices), rate)
        if rate
        else Codebook.nearest(values, table)
    )


def _initial(
    weights: np.ndarray,
    importance: np.ndarray | None = None,
    *,
    levels: int,
    method: str,
    table: str,
    zero_centroid: bool,
    rate: float,
) -> Codebook:
    method = "kmeans" if method == "auto" else method
    if method == "rate-distortion":
        return rate_distortion(
            weights,
            rate,
            levels=levels,
            zero_centroid=zero_centroid,
            importance=importance,
            level_bits=_LEVEL_BITS[table],
        )
    if method == "kmeans":
        found = clustering.kmeans(
            weights, levels, zero_centroid=zero_centroid, importance=importance
        )
    else:
        found = clustering.METHODS[method](weights, levels)
        found = clustering.with_zero(found) if zero_centroid else found
    return Codebook.nearest(weights, found)
