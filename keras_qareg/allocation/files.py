"""The bytes of real files: what a plan is held to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from keras_qareg.allocation.costs import FLOAT_BYTES, Costs, Kernel, as_written
from keras_qareg.allocation.network import FIRST, Levels, Network
from keras_qareg.export.archive.archive import coded_bytes, content_of
from keras_qareg.export.litert.convert import draft
from keras_qareg.numerics.codebook import Codebook


class KernelCosts(Protocol):
    """The bytes of kernels, as `costs.Costs` has them for `.tflite` files."""

    form: str
    kernels: list[Kernel]

    def shares(self, kernel: Kernel, levels: int | None) -> bool:
        """Whether a kernel shares operators with others of as many levels."""

    def of(self, kernel: Kernel, levels: int | None) -> int:
        """Bytes of one kernel."""

    def total(self, levels: Sequence[int | None]) -> int:
        """Bytes of all kernels."""


class File(Protocol):
    """Files of a network in one form: what a search for levels asks of them."""

    float_bytes: int

    @property
    def costs(self) -> KernelCosts:
        """The bytes of kernels."""

    def bytes(self, levels: Levels) -> int:
        """Bytes of the file with so many levels of each kernel."""


class TFLite:
    """`.tflite` files of a network in one form.

    Args:
        network: The network.
        form: The form, as in `export.litert`.
        data: Inputs that calibrate full-integer files, of the forms `"int8"` and `"tflm"`; or `None`.

    Attributes:
        costs: The bytes of kernels.
        float_bytes: Bytes of the float32 file.

    Raises:
        RuntimeError: If the Keras backend is not TensorFlow.
    """

    def __init__(self, network: Network, form: str, data: Any):
        self._network, self._form = network, form
        self._data = data
        self._sizes: dict[tuple[int | None, ...], int] = {}
        levels = network.uniform(FIRST)
        first = self._written(levels)
        entry = FLOAT_BYTES if data is None else 1
        kernels = [
            as_written(replace(kernel, entry=entry), form, count or 0, first.kernels)
            for kernel, count in zip(network.kernels, levels, strict=True)
        ]
        self.costs = Costs(form, kernels)
        self.float_bytes = len(first.reference)

    def bytes(self, levels: Levels) -> int:
        """Bytes of the file with so many levels of each kernel, which is written to know."""
        if tuple(levels) not in self._sizes:
            self._written(levels)
        return self._sizes[tuple(levels)]

    def _written(self, levels: Levels) -> Any:
        def write(plain: Any, books: Any) -> Any:
            return draft(plain, list(books.items()), self._form, self._data)

        found = self._network.written(self._network.books(levels), write)
        self._sizes[tuple(levels)] = len(found.content)
        return found


def float_bytes(network: Network) -> int:
    """Bytes of all weights of a network as float32."""
    return FLOAT_BYTES * sum(math.prod(x.shape) for x in network.probe.model.weights)


def archive_bytes(network: Network, books: Mapping[str, Codebook]) -> int:
    """Bytes of the archive of a network with such kernels, which is made to know."""
    return int(network.written(books, lambda plain, found: len(content_of(plain, found))))


class Archive:
    """Archives of a network whose kernels have few levels.

    Args:
        network: The network.

    Attributes:
        costs: The bytes of kernels.
        float_bytes: Bytes of all weights as float32.
    """

    def __init__(self, network: Network):
        self._network = network
        self._sizes: dict[tuple[int | None, ...], int] = {}
        self.costs = _Coded(network)
        self.float_bytes = float_bytes(network)

    def bytes(self, levels: Levels) -> int:
        """Bytes of the archive with so many levels of each kernel, which is made to know."""
        key = tuple(levels)
        if key not in self._sizes:
            self._sizes[key] = archive_bytes(self._network, self._network.books(levels))
        return self._sizes[key]


class _Coded:
    """Bytes of coded kernels: known at a few levels; between them bits grow with their logarithm."""

    form = "archive"

    def __init__(self, network: Network):
        self.kernels = network.kernels
        self._known: dict[str, Mapping[int, int]] = {}
        for place, kernel in enumerate(network.kernels):
            alone: list[int | None] = [None] * len(network.kernels)
            known = {}
            for levels in network.probes(place):
                alone[place] = levels
                known[levels] = coded_bytes(network.books(alone)[kernel.path])
            self._known[kernel.path] = known

    def shares(self, kernel: Kernel, levels: int | None) -> bool:
        """No: there are no operators."""
        return False

    def of(self, kernel: Kernel, levels: int | None) -> int:
        """Bytes of one kernel, about."""
        if levels is None:
            return FLOAT_BYTES * kernel.size
        known = self._known[kernel.path]
        places, bytes_ = np.log2([*known]), np.array([*known.values()], "float64")
        beyond = max(0.0, math.log2(levels) - float(places[-1]))
        return round(float(np.interp(math.log2(levels), places, bytes_)) + beyond * kernel.size / 8)

    def total(self, levels: Sequence[int | None]) -> int:
        """Bytes of all kernels."""
        return sum(self.of(*pair) for pair in zip(self.kernels, levels, strict=True))
