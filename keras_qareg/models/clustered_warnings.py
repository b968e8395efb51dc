"""Warnings of sharing: kernels whose few values move, or whose zeros go."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from keras.layers import Layer

from keras_qareg.layers import kernels
from keras_qareg.models.clustered import Wanted, Way, has_centroids
from keras_qareg.models.stripping import used_kernels
from keras_qareg.numerics.clustering import MAX_LEVELS, many_zeros
from keras_qareg.numerics.codebook import Codebook

# For each layer the codebook of each kernel that is shared, and whether it has a zero that is to stay.
_Found = Mapping[Layer, list[tuple[Codebook, bool]]]


def warn_of_moved(wanted: Mapping[Layer, Wanted], found: _Found, way: Way) -> None:
    """Warns where kernels had few values already, and a table of whole numbers cannot hold these."""
    moved, most = [], 0.0
    for layer, its in wanted.items():
        if its.table != "int8" or way.method not in ("auto", "kmeans"):
            continue
        if has_centroids(layer, its, way):
            continue
        for path, levels, values, book in _before_and_after(layer, its, found, way):
            own = Codebook.exact(values)
            # As many values as weights are not few.
            if own is None or 2 * len(own.centroids) > values.size:
                continue
            distance = float(np.abs(book.weights - values).max())
            if len(own.centroids) <= levels and distance:
                left = np.unique(book.weights).size
                moved.append(f"'{path}' ({len(own.centroids)} values, {left} of them are left)")
                most = max(most, distance / float(np.abs(values).max()))
    if moved:
        warnings.warn(
            "Kernels that had no more values than `levels` already are rounded by table='int8': to "
            f"whole numbers of 8 bits times a step, by up to {most:.2%} of their largest value: "
            f"{', '.join(moved)}. table='float32' keeps them as they are.",
            stacklevel=3,
        )


def warn_of_lost_zeros(wanted: Mapping[Layer, Wanted], found: _Found, way: Way) -> None:
    """Warns where kernels that were pruned lose their zeros, unless `zero_centroid=False` says so."""
    lost = []
    for layer, its in wanted.items() if way.zero_centroid else ():
        for path, _, values, book in _before_and_after(layer, its, found, way):
            if not many_zeros(values, MAX_LEVELS):
                continue
            zeros = values == 0
            if count := int((book.weights[zeros] != 0).sum()):
                lost.append(f"'{path}' ({count:,} of {int(zeros.sum()):,})")
    if lost:
        warnings.warn(
            f"Kernels have many zeros, as where they were pruned, and lose them: {', '.join(lost)}. "
            "Pass zero_centroid=True, and three levels or more where table='even'.",
            stacklevel=3,
        )


def _before_and_after(
    layer: Layer, its: Wanted, found: _Found, way: Way
) -> Iterator[tuple[str, int, np.ndarray, Codebook]]:
    """The path, the levels, the values and the codebook of each kernel of a layer that is shared."""
    books = iter(found[layer])
    for kernel, levels, values in zip(
        kernels(layer, way.weights), its.levels, used_kernels(layer, way.weights), strict=True
    ):
        if levels is not None:
            yield kernel.path, levels, values, next(books)[0]
