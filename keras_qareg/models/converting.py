"""Converting a model to weight normalization based quantization."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import (
    WeightNormalized,
    WNQConv2D,
    WNQDense,
    WNQDepthwiseConv2D,
    channel_axes,
)
from keras_qareg.models.cloning import clone, fresh
from keras_qareg.models.selection import Layers, check_built, check_plain, select
from keras_qareg.numerics.clustering import dead_channels
from keras_qareg.quantizers import MAX_ACTIVATION_BITS, MAX_WEIGHT_BITS, check_bits

_KINDS: dict[type[Layer], type[WeightNormalized]] = {
    kind.base: kind for kind in (WNQConv2D, WNQDepthwiseConv2D, WNQDense)
}


def wnq(
    model: keras.Model,
    bits: int = 2,
    *,
    activation_bits: int | None = None,
    layers: Layers = "all",
    skip: Iterable[str] | None = ("first", "last"),
    normalize: bool = True,
    per_channel: bool = True,
    uniform: bool = False,
) -> keras.Model:
    """The model with weight normalization based quantization (WNQ, arXiv 1907.00593).

    Conv2D, DepthwiseConv2D and Dense layers become `layers.WNQConv2D`, `WNQDepthwiseConv2D` and
    `WNQDense`, which go on from the weights that they had, with levels fitted to these. `compile`
    and `fit` the result; `strip` gives a plain model with the quantized kernels.

    Args:
        model: A built model, best a trained one.
        bits: Integer from 1 to 4: each channel of a kernel gets 2^bits levels. Defaults to 2.
        activation_bits: Integer from 1 to 8: inputs of these layers are quantized to
            2^activation_bits levels from 0 up. They must not be negative, as after a ReLU. Defaults
            to `None`: they are not quantized.
        layers: Which layers, as in `quantization_aware`. Layers of other kinds, and subclasses of
            these, stay as they are, with a warning.
        skip: Layers to leave out: `"first"` and `"last"`, those of all layers with kernels, which
            papers keep in float, and any layer names. Defaults to `("first", "last")`; `()` or
            `None`: none.
        normalize: Whether kernels are divided by `max|w|` first. `False` is LQ-Nets, for comparison.
            Defaults to `True`.
        per_channel: Whether each output channel has levels of its own. Defaults to `True`.
        uniform: Whether levels are evenly spaced, as integer formats hold them. Defaults to `False`.

    Returns:
        A new model with the same weights and layer names, compiled like `model` if that was.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt or has quantized layers
            already, no layer is left to convert, a name in `layers` or `skip` is unknown, or a kernel
            has NaN or infinite weights.

    Example:

    >>> model = keras.Sequential([keras.Input((16,))])
    >>> for name in ("in", "hidden", "out"):
    ...     model.add(keras.layers.Dense(16, name=name))
    >>> quantized = wnq(model, bits=2)
    >>> [type(layer).__name__ for layer in quantized.layers]
    ['Dense', 'WNQDense', 'Dense']
    """
    check_built(model)
    check_plain(model)
    check_bits("bits", bits, MAX_WEIGHT_BITS)
    if activation_bits is not None:
        check_bits("activation_bits", activation_bits, MAX_ACTIVATION_BITS)
    own = {
        "bits": bits,
        "activation_bits": activation_bits,
        "normalize": normalize,
        "per_channel": per_channel,
        "uniform": uniform,
    }
    left_out = _skipped(model, skip)
    wanted = [layer for layer in select(model, layers) if id(layer) not in left_out]
    chosen = {id(layer): _KINDS[type(layer)] for layer in wanted if type(layer) in _KINDS}
    _report_others(model, wanted, layers, skip)
    made: list[Any] = []

    def convert(layer: Layer) -> Layer:
        config = {**layer.get_config(), **own}
        made.append(fresh(layer, into=chosen[id(layer)], config=config))
        return made[-1]

    converted = clone(model, lambda layer: convert if id(layer) in chosen else None)
    for layer in made:
        dead = dead_channels(ops.convert_to_numpy(layer.kernel), channel_axes(layer, layer.kernel))
        if dead.any():
            layer.kernel.assign(ops.where(dead, 0.0, layer.kernel))
        layer.fit_basis()
    return converted


def _skipped(model: keras.Model, skip: Iterable[str] | None) -> set[int]:
    """The identities of the layers to leave out."""
    weighted = select(model, "all")
    if isinstance(skip, str):
        skip = (skip,)
    found: set[int] = set()
    for name in skip or ():
        if name in ("first", "last"):
            same = weighted[:1] if name == "first" else weighted[-1:]
        else:
            same = [layer for layer in weighted if layer.name == name]
            if not same:
                raise ValueError(
                    "Expected `skip` to hold 'first', 'last' or names of layers with kernels, "
                    f"{[layer.name for layer in weighted]}. Received: {name!r}"
                )
        found.update(map(id, same))
    return found


def _report_others(model: keras.Model, wanted: list[Layer], layers: Layers, skip: Any) -> None:
    """Warns of layers of other kinds; raises where there are no others."""
    others = [
        f"'{layer.name}' ({type(layer).__name__})" for layer in wanted if type(layer) not in _KINDS
    ]
    if len(others) == len(wanted):
        kinds = ", ".join(kind.__name__ for kind in _KINDS)
        raise ValueError(
            f"Expected a layer to convert in model '{model.name}', one of {kinds}. "
            f"Received: layers={layers!r} and skip={skip!r}, which leave "
            f"{', '.join(others) or 'none'}."
        )
    if others:
        warnings.warn(
            f"Left as they are, because WNQ has no layer of their kind: {', '.join(others)}.",
            stacklevel=3,
        )
