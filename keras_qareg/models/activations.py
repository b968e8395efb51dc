"""Putting ranges of activations into a model, where a full-integer file has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras.layers import BatchNormalization, Layer

from keras_qareg.choices import check_choice, check_count, check_flag
from keras_qareg.layers import (
    QUANTIZED,
    ActivationRange,
    FreezableBatchNormalization,
    IntegerKernels,
    kernels,
)
from keras_qareg.layers.activation_range import check_width
from keras_qareg.models.calibrating import METHODS, calibrate, ranges_of
from keras_qareg.models.cloning import clone, config_of, fresh
from keras_qareg.models.flattening import Flat, Value, flattened_model, made_of
from keras_qareg.models.ranges import Placement, Range, placed
from keras_qareg.models.selection import check_built, check_float
from keras_qareg.models.splitting import split


def quantize_activations(
    model: keras.Model,
    data: Any = None,
    *,
    bits: int = 8,
    method: str = "minmax",
    trainable: bool = True,
    batch_size: int = 32,
    steps: int | None = None,
) -> keras.Model:
    """The model with the ranges of activations that a full-integer file has, to be trained.

    A `layers.ActivationRange` is put wherever TensorFlow Lite has a tensor of its own: behind inputs;
    behind convolutions and dense layers with the batch normalization and the ReLU that become part of
    them; behind sums, products, means, and activations. Tensors that must have one range, as the inputs
    of a concatenation, share a layer, and the ranges of softmax, sigmoid and tanh are those that the
    runtime prescribes. Kernels that are not clustered become integers too (`layers.IntegerKernels`);
    those of `QuantizationAware`, `SharedWeights` and WNQ layers keep their values. So outputs are those
    of the full-integer file, but for rounding.

    Ranges start from what the model computes of `data`, and train with the weights
    (arXiv 1902.08153). `compile` and `fit` the result, best with
    `callbacks.FreezeBatchNormalization`, and `export.litert(model, path, "int8")` writes a file with
    these very ranges. docs/integer.md has more.

    Args:
        model: A built Sequential or Functional model, plain or from any transform of this package, best
            a trained one. Models inside it are taken apart: the result is one graph. Their layers keep
            their names; where two have the same, the inner one gets the name of its model before it.
        data: Inputs in any form that `fit` takes, with targets or without, which do not count: some
            hundred examples as those that will come. `None` (default): ranges are not placed, and pass
            on their inputs as they are; for weights that are loaded then.
        bits: Bits of activations: 8 (default), or 16, with the zero point 0, beside kernels of 8.
        method: How a range is placed: from the lowest to the highest value (`"minmax"`, default);
            without a ten-thousandth of the values at each end (`"percentile"`); or where rounding and
            clipping have the least squared error (`"mse"`).
        trainable: Whether ranges are learned. Defaults to `True`.
        batch_size: Positive integer, for arrays. Defaults to 32.
        steps: Positive integer: how many batches to take, which endless data need. `None`: all.

    Returns:
        A new Functional model with the same weights and layer names, compiled like `model` if that was.

    Raises:
        ValueError: If an argument is out of its range; the model is unbuilt, no graph, or has ranges
            already; an operation has no integer form (recurrent and attention layers, normalizations
            behind no convolution, and others: the error names all, with what to do); data do not fit the
            model, or a range is not finite or nothing but 0.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, "relu", name="fc")])
    >>> quantized = quantize_activations(model, np.eye(16))
    >>> [layer.name for layer in quantized.layers][2:], quantized.get_layer("fc_range").grid()[1]
    (['fc', 'fc_range'], -128)

    See also: https://keras-qareg.github.io/keras-qareg/integer.html
    """
    check_built(model)
    check_float(model)
    check_width(bits)
    _check_calibration(data, method, batch_size, steps)
    _check_without_ranges(model)
    flat = flattened_model(model)
    if not type(model).__module__.startswith("keras."):
        warnings.warn(
            f"Model '{model.name}' is a {type(model).__name__}; the new one is a keras.Model of its "
            "graph, without the methods and attributes that the class adds.",
            stacklevel=2,
        )
    linear = split(flat)
    placement = placed(flat, bits)
    made = _Ranges(flat, placement, bits, check_flag("trainable", trainable))
    folded = {id(layer) for layer in placement.folded}

    def change(layer: Layer) -> Callable[[Layer], Layer] | None:
        if id(layer) in folded and type(layer) is BatchNormalization:
            return lambda layer: fresh(layer, into=FreezableBatchNormalization)
        plain = not isinstance(layer, QUANTIZED) and bool(kernels(layer))
        if not plain and id(layer) not in linear:
            return None
        return lambda layer: _with_integers(layer, plain, id(layer) in linear)

    quantized = clone(
        model,
        change,
        graph=lambda copy: made_of(flat, copy, made.behind),
        replaced=flat.replaced,
    )
    if data is not None:
        calibrate(quantized, data, method=method, batch_size=batch_size, steps=steps)
    return quantized


def _check_calibration(data: Any, method: str, batch_size: int, steps: int | None) -> None:
    check_choice("method", method, METHODS)
    check_count("batch_size", batch_size)
    if steps is not None:
        check_count("steps", steps, besides=" or None")
    if data is None and (method, batch_size, steps) != ("minmax", 32, None):
        raise ValueError(
            "Expected `data` to place ranges by. Received: data=None and "
            f"method={method!r}, batch_size={batch_size!r}, steps={steps!r}"
        )


def _check_without_ranges(model: keras.Model) -> None:
    names = [layer.name for layer in ranges_of(model)]
    if names:
        raise ValueError(
            f"Expected a model without ranges of activations. Received: '{model.name}' with {names}. "
            "Take keras_qareg.strip(model) first."
        )


def _with_integers(layer: Layer, plain: bool, linear: bool) -> Layer:
    """The successor of a layer with a kernel."""
    config = _linear(config_of(layer)) if linear else None
    made = fresh(layer, config=config)
    return IntegerKernels(made, name=layer.name, trainable=layer.trainable) if plain else made


def _linear(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a layer, wrapped or not, without its activation."""
    if "activation" in config:
        return {**config, "activation": "linear"}
    inner = config["layer"]
    return {**config, "layer": {**inner, "config": _linear(inner["config"])}}


class _Ranges:
    """The layers that hold the ranges of a model, each made when it is first called."""

    def __init__(self, flat: Flat, placement: Placement, bits: int, trainable: bool):
        self.placement, self.bits, self.trainable = placement, bits, trainable
        self.taken = {call.name for call in flat.calls}
        self.layers: dict[Range, ActivationRange] = {}

    def behind(self, value: Value, tensor: Any) -> Any:
        """What is read in the place of a tensor."""
        its = self.placement.behind.get(value)
        return tensor if its is None else self._of(its, tensor)(tensor)

    def _of(self, its: Range, tensor: Any) -> ActivationRange:
        its = its.own
        if its not in self.layers:
            name = first = f"{its.name}_range"
            count = 0
            while name in self.taken:
                count += 1
                name = f"{first}_{count}"
            self.taken.add(name)
            self.layers[its] = ActivationRange(
                self.bits, fixed=its.fixed, name=name, trainable=self.trainable, dtype=tensor.dtype
            )
        return self.layers[its]
