"""The bytes of real files: what a plan is held to."""

from __future__ import annotations

from typing import Any

from keras_qareg.allocation.costs import Costs, as_written
from keras_qareg.allocation.network import FIRST, Levels, Network
from keras_qareg.export.litert.convert import draft


class TFLite:
    """`.tflite` files of a network in one form.

    Args:
        network: The network.
        form: The form, as in `export.litert`.
        data: Inputs; they calibrate `"int8"`.

    Attributes:
        costs: The bytes of kernels.
        float_bytes: Bytes of the float32 file.

    Raises:
        RuntimeError: If the Keras backend is not TensorFlow.
    """

    def __init__(self, network: Network, form: str, data: Any):
        self._network, self._form = network, form
        self._data = data if form == "int8" else None
        self._sizes: dict[tuple[int | None, ...], int] = {}
        levels = network.uniform(FIRST)
        first = self._written(levels)
        kernels = [
            as_written(kernel, form, count or 0, first.kernels)
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
