"""What a choice of levels costs in the outputs of a network, measured without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import BatchNormalization

from keras_qareg.data import read
from keras_qareg.layers.keras_private import layers_inside, normalizing_by_batches
from keras_qareg.models.distilling import kinds_of_outputs
from keras_qareg.numerics.divergence import add_up, divergence

# Inputs that are looked at, and so many at a time, whose statistics normalize them.
INPUTS, BATCH = 512, 256


class Probe:
    """A copy of a float network, into which other kernels are put, and what that does to its outputs.

    Batch normalization takes the statistics of each batch, with the float kernels and with others: what
    is left between the two is what `recalibrate` does not repair.

    Args:
        model: A plain, built model of the user's network, which is changed and belongs to the probe.
        kernels: The variables of its kernels by path.
        data: Inputs in any form; targets do not count.

    Raises:
        ValueError: If data do not fit the model.
    """

    def __init__(self, model: keras.Model, kernels: Mapping[str, keras.Variable], data: Any):
        self.model, self.kernels = model, kernels
        self.weights = {path: ops.convert_to_numpy(k).copy() for path, k in kernels.items()}
        some = read(data, model).some(INPUTS, BATCH)
        self.batches = [inputs for inputs, _, _ in some.batches(BATCH)]
        self._normalizations = [
            layer for layer in layers_inside(model) if isinstance(layer, BatchNormalization)
        ]
        statistics = [(x.moving_mean, x.moving_variance) for x in self._normalizations]
        self._statistics = [v for pair in statistics for v in pair]
        self._before = [ops.convert_to_numpy(v).copy() for v in self._statistics]
        self._reference: list[np.ndarray] | None = None
        self._kinds: list[str] = []

    def loss(self, weights: Mapping[str, np.ndarray]) -> float:
        """The divergence of the outputs from the float model's, with other kernels in their places.

        Args:
            weights: What some kernels become, by path.

        Returns:
            A float: the mean over the outputs of the model, of what `numerics.divergence` says.
        """
        if self._reference is None:
            self._reference = self._outputs()
            kinds = kinds_of_outputs(self.model)
            if len(kinds) != len(self._reference):  # a model without a graph
                kinds = ["values"] * len(self._reference)
            self._kinds = [
                "probabilities" if kind == "values" and add_up(output) else kind
                for kind, output in zip(kinds, self._reference, strict=True)
            ]
        try:
            self.put(weights)
            outputs = self._outputs()
        finally:
            self.restore()
        found = [
            divergence(*pair) for pair in zip(self._reference, outputs, self._kinds, strict=True)
        ]
        return float(np.mean(found))

    def put(self, weights: Mapping[str, np.ndarray]) -> None:
        """Gives kernels other values, by path."""
        for path, values in weights.items():
            self.kernels[path].assign(values)

    def restore(self) -> None:
        """Makes the network what it was."""
        for path, kernel in self.kernels.items():
            kernel.assign(self.weights[path])
        for variable, value in zip(self._statistics, self._before, strict=True):
            variable.assign(value)

    def _outputs(self) -> list[np.ndarray]:
        """The outputs of the network for all inputs, float32."""
        found: list[Sequence[Any]] = []
        # The program that Keras makes of it at the first batch keeps what layers do now.
        with normalizing_by_batches(self._normalizations):
            for batch in self.batches:
                outputs = keras.tree.flatten(self.model.predict_on_batch(batch))
                found.append([np.asarray(output, "float32") for output in outputs])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def interpolated(levels: np.ndarray, probes: Sequence[int], losses: Sequence[float]) -> np.ndarray:
    """Losses at all levels from those at a few: straight lines between the logarithms of both.

    Beyond the last one goes on as between the last two. A loss that rises with the levels, which is
    noise, counts as that before it.

    Args:
        levels: Integer array `(n,)`.
        probes: Ascending levels, one or more; from one alone, losses fall with the square of the levels.
        losses: The loss at each.

    Returns:
        Array `(n,)`, not rising.
    """
    known = np.log(np.maximum(np.minimum.accumulate(np.asarray(losses, "float64")), 1e-12))
    places, wanted = np.log(np.asarray(probes, "float64")), np.log(np.asarray(levels, "float64"))
    found = np.interp(wanted, places, known)
    slope = -2.0
    if len(known) > 1:
        slope = min(0.0, (known[-1] - known[-2]) / (places[-1] - places[-2]))
    beyond = np.maximum(wanted - places[-1], 0.0)
    return np.exp(found + slope * beyond)
