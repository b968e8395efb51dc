"""The ranges of activations, from what a model computes of some inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_qareg.choices import check_choice, check_count
from keras_qareg.data import Data, read
from keras_qareg.layers import ActivationRange
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.selection import check_built
from keras_qareg.numerics.fake_quantization import best_range, cut_range

METHODS = ("minmax", "percentile", "mse")
_BINS = 2048
# What `"percentile"` leaves out at each end.
_CUT = 1e-4


def ranges_of(model: keras.Model) -> list[ActivationRange]:
    """The layers of a model that hold ranges of activations, each once."""
    return [layer for layer in layers_inside(model) if isinstance(layer, ActivationRange)]


def calibrate(
    model: keras.Model,
    data: object,
    *,
    method: str = "minmax",
    batch_size: int = 32,
    steps: int | None = None,
) -> None:
    """Places all ranges of a model by what it computes of some inputs in floating point, in place.

    Arguments as in `quantize_activations`.

    Raises:
        ValueError: If an argument is out of its range, data do not fit the model, or a range is not
            finite or nothing but 0. The ranges then are as they were.
    """
    check_built(model)
    check_choice("method", method, METHODS)
    batch_size = check_count("batch_size", batch_size)
    given = read(data, model, steps=steps)
    given = given if method == "minmax" else given.repeatable()
    wanted = [layer for layer in ranges_of(model) if layer.fixed is None]
    ends = dict.fromkeys(wanted, (np.inf, -np.inf))

    def widen(layer: ActivationRange, values: np.ndarray) -> None:
        low, high = ends[layer]
        ends[layer] = np.minimum(low, values.min()), np.maximum(high, values.max())

    _observe(model, given, batch_size, wanted, widen)
    for layer, (low, high) in ends.items():
        layer.check(low, high)
    if method != "minmax":
        ends = _cut(model, given, batch_size, ends, method)
    for layer, (low, high) in ends.items():
        layer.place(low, high)


def _observe(
    model: keras.Model,
    given: Data,
    batch_size: int,
    layers: list[ActivationRange],
    see: Callable[[ActivationRange, np.ndarray], None],
) -> None:
    """Shows what each layer gets to a function, batch by batch."""

    def observer(layer: ActivationRange) -> Callable[[object], None]:
        return lambda inputs: see(
            layer, np.asarray(ops.convert_to_numpy(ops.cast(inputs, "float32")))
        )

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.observed(observer(layer)))
        for inputs, _, _ in given.batches(batch_size):
            model(inputs, training=False)


def _cut(
    model: keras.Model,
    given: Data,
    batch_size: int,
    ends: dict[ActivationRange, tuple[float, float]],
    method: str,
) -> dict[ActivationRange, tuple[float, float]]:
    """Narrower ranges, from a histogram of what each layer gets."""
    counts = {layer: np.zeros(_BINS) for layer in ends}

    def count(layer: ActivationRange, values: np.ndarray) -> None:
        counts[layer] += np.histogram(values, _BINS, ends[layer])[0]

    _observe(model, given, batch_size, list(ends), count)
    if method == "percentile":
        return {x: cut_range(counts[x], *its, _CUT) for x, its in ends.items()}
    return {
        layer: best_range(counts[layer], *its, layer.bits, layer.symmetric)
        for layer, its in ends.items()
    }
