"""A trained model as the layers that get levels: their kernels, their codebooks, what these do to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras.layers import Layer

from keras_qareg.allocation.costs import Kernel
from keras_qareg.allocation.sensitivity import Probe
from keras_qareg.layers import channel_axes, kernels
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.clustered import Way, cluster_all
from keras_qareg.models.reading import kernel_paths
from keras_qareg.models.selection import Layers, no_kernel, select
from keras_qareg.models.sharing import check_sharing, scales_of
from keras_qareg.models.stripping import strip
from keras_qareg.numerics.codebook import Codebook

# Levels at which the harm of a layer is measured.
PROBES = (2, 4, 8, 16, 64)
_MOST = 256


class Network:
    """A model, and a plain copy of it that holds other kernels for a while.

    Args:
        model: The user's model.
        data: Inputs.
        layers: Which layers, as in `share_weights`.
        table: As there.
        scale: As there.

    Attributes:
        layers: The layers that get levels, those of the user's model.
        kernels: The kernels of each.
        probe: The plain copy.

    Raises:
        ValueError: As `share_weights`, or if data do not fit the model.
    """

    def __init__(self, model: keras.Model, data: Any, layers: Layers, table: str, scale: str):
        check_sharing(model, "auto", "centroids", table, scale, "auto")
        self.table = table
        found = [x for x in select(model, layers) if _largest(x) > PROBES[0]]
        if not found:
            raise ValueError(
                f"Expected a layer to choose the levels of in model '{model.name}'. Received: "
                f"layers={layers!r}, of which none has a kernel large enough{no_kernel(model, None)}"
            )
        self.layers = found
        plain = strip(model)
        twins = [x for x in select(plain, layers) if _largest(x) > PROBES[0]]
        paths = kernel_paths(plain)
        self.kernels = [_kernels_of(layer, paths) for layer in twins]
        variables = {paths[id(k)]: k for layer in twins for k in kernels(layer)}
        self.probe = Probe(plain, variables, data)
        levels = {layer: min(16, _largest(layer) - 1) for layer in found}
        self._scales = scales_of(model, levels, None, "auto", table, scale)
        self._books: dict[tuple[int, int], list[Codebook]] = {}

    @property
    def all_kernels(self) -> list[Kernel]:
        """The kernels of all layers, in order."""
        return [kernel for group in self.kernels for kernel in group]

    def most_levels(self, place: int) -> int:
        """The most levels that a layer may have: fewer than it has weights."""
        return min(_MOST, max(kernel.size for kernel in self.kernels[place]) - 1)

    def books(self, levels: Sequence[int | None]) -> dict[str, Codebook]:
        """The codebook of each kernel by path, for so many levels of each layer; `None` is float."""
        wanted = {
            place: count
            for place, count in enumerate(levels)
            if count is not None and (place, count) not in self._books
        }
        if wanted:
            way = Way(None, "auto", self.table, "auto")
            sizes = {self.layers[place]: count for place, count in wanted.items()}
            made = cluster_all(sizes, self._scales, way, 0)
            for place, count in wanted.items():
                found = made[self.layers[place]]
                self._books[place, count] = [book for book, _ in found]
        return {
            kernel.path: book
            for place, count in enumerate(levels)
            if count is not None
            for kernel, book in zip(self.kernels[place], self._books[place, count], strict=True)
        }

    def loss(self, levels: Sequence[int | None]) -> float:
        """The measured divergence with so many levels of each layer."""
        return self.probe.loss(self.books(levels))

    def uniform(self, levels: int) -> list[int | None]:
        """So many levels for each layer, or as many as it can have."""
        return [min(levels, self.most_levels(place)) for place in range(len(self.layers))]

    def losses(self, done: Callable[[], None]) -> list[Mapping[int, float]]:
        """The divergence where one layer alone has few levels: for each layer, by its levels.

        Args:
            done: Called after each measurement.
        """
        found: list[Mapping[int, float]] = []
        for place in range(len(self.layers)):
            row = {}
            for levels in self.probes(place):
                alone: list[int | None] = [None] * len(self.layers)
                alone[place] = levels
                row[levels] = self.loss(alone)
                done()
            found.append(row)
        return found

    def probes(self, place: int) -> list[int]:
        """The levels at which a layer is measured: two or more."""
        most = self.most_levels(place)
        return [levels for levels in PROBES if levels <= most] or [most]

    def written(self, levels: Sequence[int | None], write: Callable[..., Any]) -> Any:
        """What `write` makes of the plain model with such kernels, and the paths and codebooks of these."""
        books = self.books(levels)
        try:
            self.probe.put(books)
            return write(self.probe.model, list(books.items()))
        finally:
            self.probe.restore()


def _largest(layer: Layer) -> int:
    return max(math.prod(kernel.shape) for kernel in kernels(layer))


def _kernels_of(layer: Layer, paths: Mapping[int, str]) -> list[Kernel]:
    dense = isinstance(inner_layer(layer), keras.layers.Dense | keras.layers.EinsumDense)
    found = []
    for kernel in kernels(layer):
        shape = tuple(kernel.shape)
        axes = channel_axes(inner_layer(layer), kernel)
        channels = int(np.prod(shape[len(shape) - axes :])) if axes else 1
        found.append(Kernel(paths[id(kernel)], math.prod(shape), channels, dense))
    return found
