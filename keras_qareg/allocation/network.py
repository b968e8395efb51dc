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
from keras_qareg.models.clustered import Wanted, Way, cluster_all
from keras_qareg.models.reading import kernel_paths
from keras_qareg.models.selection import Layers, no_kernel, select
from keras_qareg.models.sharing import Tables, check_sharing, wanted_of
from keras_qareg.models.stripping import strip
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.groups import Channels

# Levels at which the harm of a kernel is measured.
PROBES = (2, 4, 8, 16, 64)
# The levels of the first file, which tells what there is beside the kernels.
FIRST = 16
_MOST = 256
_WAY, _BY_RATE = Way(None, "auto", "auto"), Way(None, "rate-distortion", "auto")

# Levels of each kernel, in order; `None` is float.
Levels = Sequence[int | None]


class Network:
    """A model, and a plain copy of it that holds other kernels for a while.

    Args:
        model: The user's model.
        data: Inputs.
        layers: Which layers, as in `share_weights`.
        given: What tables kernels may have, as there.

    Attributes:
        kernels: The kernels that get levels.
        probe: The plain copy.

    Raises:
        ValueError: As `share_weights`, or if data do not fit the model.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        layers: Layers,
        given: Tables,
    ):
        check_sharing(model, "auto", None, "centroids")
        chosen, plain = select(model, layers), strip(model)
        paths = kernel_paths(plain)
        # Of each kernel: the user's layer, its place there, and its twin in the plain model.
        self._homes = [
            (layer, place, variable)
            for layer, twin in zip(chosen, select(plain, layers), strict=True)
            for place, variable in enumerate(kernels(twin))
            if math.prod(variable.shape) > PROBES[0]
        ]
        if not self._homes:
            raise ValueError(
                f"Expected a layer to choose the levels of in model '{model.name}'. Received: "
                f"layers={layers!r}, of which none has a kernel large enough{no_kernel(model, None)}"
            )
        first: dict[Layer, tuple[int | None, ...]] = {}
        for layer, place, variable in self._homes:
            levels = min(FIRST, math.prod(variable.shape) - 1)
            first[layer] = _set(first.get(layer), layer, place, levels)
        self._wanted = wanted_of(model, chosen, first, _WAY, given, None)
        self.kernels = [
            _kernel(paths[id(variable)], layer, variable, self._wanted[layer])
            for layer, _, variable in self._homes
        ]
        self.probe = Probe(plain, {paths[id(v)]: v for _, _, v in self._homes}, data)
        self._books: dict[tuple[int, int], Codebook] = {}

    def most_levels(self, place: int) -> int:
        """The most levels that a kernel may have: fewer than it has weights."""
        return min(_MOST, self.kernels[place].size - 1)

    def books(self, levels: Levels) -> dict[str, Codebook]:
        """The codebook of each kernel by path, for so many levels of each; `None` is float."""
        given = {place: count for place, count in enumerate(levels) if count is not None}
        new = {place: n for place, n in given.items() if (place, n) not in self._books}
        sizes: dict[Layer, tuple[int | None, ...]] = {}
        for place, count in new.items():
            layer, inside, _ = self._homes[place]
            sizes[layer] = _set(sizes.get(layer), layer, inside, count)
        wanted = {x: self._wanted[x]._replace(levels=its) for x, its in sizes.items()}
        made = _clustered(wanted, _WAY)
        for place, count in new.items():
            layer, inside, _ = self._homes[place]
            self._books[place, count] = made[layer][inside]
        return {self.kernels[place].path: self._books[place, n] for place, n in given.items()}

    def rated(self, rates: Sequence[float]) -> dict[str, Codebook]:
        """The codebook of each kernel by path, where a bit may cost so much in each."""
        wanted: dict[Layer, Wanted] = {}
        for place, rate in enumerate(rates):
            layer, inside, _ = self._homes[place]
            its = wanted.get(layer, self._wanted[layer]._replace(levels=()))
            levels = _set(its.levels or None, layer, inside, self.most_levels(place))
            values = [*(its.rates or [0.0] * len(levels))]
            values[inside] = rate
            wanted[layer] = its._replace(levels=levels, rates=tuple(values))
        made = _clustered(wanted, _BY_RATE)
        return {
            self.kernels[place].path: made[layer][inside]
            for place, (layer, inside, _) in enumerate(self._homes)
        }

    def error(self, place: int, book: Codebook) -> float:
        """The squared error of a kernel that becomes so."""
        before = self.probe.weights[self.kernels[place].path].astype("float64")
        return float(np.square(before - book.weights).sum())

    def harm(self, books: Mapping[str, Codebook]) -> float:
        """The measured divergence with such kernels."""
        return self.probe.loss(_weights(books))

    def loss(self, levels: Levels) -> float:
        """The measured divergence with so many levels of each kernel."""
        return self.harm(self.books(levels))

    def uniform(self, levels: int) -> list[int | None]:
        """So many levels for each kernel, or as many as it can have."""
        return [min(levels, self.most_levels(place)) for place in range(len(self.kernels))]

    def losses(self, done: Callable[[], None]) -> list[Mapping[int, float]]:
        """The divergence where one kernel alone has few levels: for each, by its levels.

        Args:
            done: Called after each measurement.
        """
        found: list[Mapping[int, float]] = []
        for place in range(len(self.kernels)):
            row = {}
            for levels in self.probes(place):
                alone: list[int | None] = [None] * len(self.kernels)
                alone[place] = levels
                row[levels] = self.loss(alone)
                done()
            found.append(row)
        return found

    def probes(self, place: int) -> list[int]:
        """The levels at which a kernel is measured: one or more."""
        most = self.most_levels(place)
        return [levels for levels in PROBES if levels <= most]

    def written(self, books: Mapping[str, Codebook], write: Callable[..., Any]) -> Any:
        """What `write` makes of the plain model with such kernels."""
        try:
            self.probe.put(_weights(books))
            return write(self.probe.model, books)
        finally:
            self.probe.restore()


def _weights(books: Mapping[str, Codebook]) -> dict[str, np.ndarray]:
    """What kernels become, by path."""
    return {path: book.weights for path, book in books.items()}


def _set(
    levels: tuple[int | None, ...] | None, layer: Layer, place: int, count: int
) -> tuple[int | None, ...]:
    """The levels of the kernels of a layer, with those of one of them."""
    found: list[int | None] = [None] * len(kernels(layer)) if levels is None else [*levels]
    found[place] = count
    return tuple(found)


def _clustered(wanted: dict[Layer, Wanted], way: Way) -> dict[Layer, dict[int, Codebook]]:
    """The codebooks of the kernels of each layer, by their places in it."""
    if not wanted:
        return {}
    found = cluster_all(wanted, way, 0)
    return {
        layer: {
            place: book
            for place, (book, _) in zip(
                [i for i, count in enumerate(its.levels) if count is not None],
                found[layer],
                strict=True,
            )
        }
        for layer, its in wanted.items()
    }


def _kernel(path: str, layer: Layer, variable: keras.Variable, wanted: Wanted) -> Kernel:
    inner, shape = inner_layer(layer), tuple(variable.shape)
    dense = isinstance(inner, keras.layers.Dense | keras.layers.EinsumDense)
    axes = channel_axes(inner, variable)
    channels = Channels(shape[len(shape) - axes :], wanted.group_size)
    return Kernel(
        path, math.prod(shape), channels.count, dense, wanted.table, groups=channels.groups
    )
