"""Converting a model to weight normalization based quantization."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg.choices import check_flag
from keras_qareg.layers import (
    WeightNormalized,
    WNQConv2D,
    WNQDense,
    WNQDepthwiseConv2D,
    channel_axes,
)
from keras_qareg.models.cloning import clone, fresh
from keras_qareg.models.configuring import ACTIVATION_BITS, BITS, Setting, resolve
from keras_qareg.models.selection import (
    Layers,
    check_built,
    check_plain,
    select,
    warn_of_constraints,
)
from keras_qareg.models.surroundings import (
    first_layers,
    last_layers,
    may_get_negative_inputs,
)
from keras_qareg.models.walking import held_by_layers
from keras_qareg.numerics.clustering import MAX_LEVELS, dead_channels, many_zeros

_KINDS: dict[type[Layer], type[WeightNormalized]] = {
    kind.base: kind for kind in (WNQConv2D, WNQDepthwiseConv2D, WNQDense)
}
# Why a layer may be none of theirs, as errors say it.
UNABLE = "because WNQ has no layer of their kind"


def wnq(
    model: keras.Model,
    bits: Setting[int] = 2,
    *,
    activation_bits: Setting[int] | None = None,
    signed_activations: bool = False,
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
        bits: Integer from 1 to 4: each channel of a kernel gets 2^bits levels. Defaults to 2. May be a
            setting, as `levels` of `share_weights`; `None` in it leaves a layer as it is.
        activation_bits: Integer from 1 to 8: inputs of these layers are quantized to
            2^activation_bits levels from 0 up. They must not be negative, as after a ReLU; there is a
            warning where they may be. Defaults to `None`: they are not quantized. May be a setting, with
            `None` where nothing matches.
        signed_activations: Whether the levels of inputs lie on both sides of zero, for inputs that may
            be negative. Defaults to `False`.
        layers: Which layers, as in `quantization_aware`. Layers that are made of layers are entered.
            Layers of other kinds, subclasses of these, and layers that other layers hold too, which may
            read their kernels, stay as they are, with a warning.
        skip: Layers to leave out: `"first"` and `"last"`, which papers keep in float, and any layer
            names. The first are those with kernels that no other one stands before, one or more for
            each input; the last those that none stands behind, one or more for each output. Defaults
            to `("first", "last")`; `()` or `None`: none.
        normalize: Whether kernels are divided by `max|w|` first. `False` is LQ-Nets, for comparison.
            Defaults to `True`.
        per_channel: Whether each output channel has levels of its own. Defaults to `True`.
        uniform: Whether levels are evenly spaced, as integer formats hold them. Defaults to `False`.

    Returns:
        A new model with the same weights and layer names, compiled like `model` if that was.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt or has quantized layers
            already, no layer is left to convert, a name in `layers` or `skip` is unknown, a key of a
            setting matches no layer to convert, two keys disagree, or a kernel has NaN or infinite
            weights.

    Example:

    >>> model = keras.Sequential([keras.Input((16,))])
    >>> for name in ("in", "hidden", "out"):
    ...     model.add(keras.layers.Dense(16, name=name))
    >>> quantized = wnq(model, bits=2)
    >>> [type(layer).__name__ for layer in quantized.layers]
    ['Dense', 'WNQDense', 'Dense']

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """
    check_built(model)
    check_plain(model)
    own = {
        "signed_activations": signed_activations,
        "normalize": normalize,
        "per_channel": per_channel,
        "uniform": uniform,
    }
    for name, flag in own.items():
        check_flag(name, flag)
    if signed_activations and activation_bits is None:
        raise ValueError(
            "Expected `activation_bits` with signed_activations=True. Received: activation_bits=None"
        )
    left_out = _skipped(model, skip)
    wanted = [layer for layer in select(model, layers, deep=True) if id(layer) not in left_out]
    wanted = _without_read_ones(model, wanted)
    each = _bits(model, wanted, bits, activation_bits)
    wanted = [layer for layer in wanted if each[id(layer)]["bits"] is not None]
    chosen = {id(layer): _KINDS[type(layer)] for layer in wanted if convertible(layer)}
    _report_others(model, wanted, layers, skip)
    warn_of_constraints(layer for layer in wanted if id(layer) in chosen)
    if not signed_activations:
        _warn_of_negative_inputs(
            model, [x for x in wanted if id(x) in chosen and each[id(x)]["activation_bits"]]
        )
    made: list[Any] = []

    def convert(layer: Layer) -> Layer:
        config = {**layer.get_config(), **own, **each[id(layer)]}
        made.append(fresh(layer, into=chosen[id(layer)], config=config))
        return made[-1]

    _warn_of_lost_zeros([x for x in wanted if id(x) in chosen])
    converted = clone(model, lambda layer: convert if id(layer) in chosen else None, deep=True)
    for layer in made:
        kernel = ops.convert_to_numpy(layer.kernel)
        dead = dead_channels(kernel, channel_axes(layer, layer.kernel))
        if dead.any():
            layer.kernel.assign(np.where(dead, np.float32(0), kernel))
        layer.fit_basis()
    return converted


def convertible(layer: Layer) -> bool:
    """Whether WNQ has a layer of this kind."""
    return type(layer) in _KINDS


def _bits(
    model: keras.Model,
    wanted: list[Layer],
    bits: Setting[int],
    activation_bits: Setting[int] | None,
) -> dict[int, dict[str, int | None]]:
    """The bits of each layer, by its identity."""
    able = [layer for layer in wanted if convertible(layer)]
    left_out = f"by `layers`, by `skip`, or {UNABLE}"
    found = {BITS.name: resolve(BITS, bits, model, able, deep=True, left_out=left_out)}
    if activation_bits is not None:
        its = resolve(ACTIVATION_BITS, activation_bits, model, able, deep=True, left_out=left_out)
        found[ACTIVATION_BITS.name] = its
    names = (BITS.name, ACTIVATION_BITS.name)
    return {
        id(layer): {name: found[name].value(layer) if name in found else None for name in names}
        for layer in wanted
    }


def _skipped(model: keras.Model, skip: Iterable[str] | None) -> set[int]:
    """The identities of the layers to leave out."""
    weighted = select(model, "all", deep=True)
    if isinstance(skip, str):
        skip = (skip,)
    found: set[int] = set()
    for name in skip or ():
        if name in ("first", "last"):
            same = (first_layers if name == "first" else last_layers)(model, weighted)
        else:
            same = [layer for layer in weighted if layer.name == name]
            if not same:
                raise ValueError(
                    "Expected `skip` to hold 'first', 'last' or names of layers with kernels, "
                    f"{[layer.name for layer in weighted]}. Received: {name!r}"
                )
        found.update(map(id, same))
    return found


def _without_read_ones(model: keras.Model, wanted: list[Layer]) -> list[Layer]:
    """Leaves out what other layers hold too: they may read its kernel, which is the float one."""
    held = held_by_layers(model)
    names = [layer.name for layer in wanted if id(layer) in held]
    if names:
        warnings.warn(
            f"Left as they are, because other layers hold them, and may read their kernels: {names}.",
            stacklevel=3,
        )
    return [layer for layer in wanted if id(layer) not in held]


def _warn_of_negative_inputs(model: keras.Model, layers: list[Layer]) -> None:
    names = [layer.name for layer in may_get_negative_inputs(model, layers)]
    if names:
        warnings.warn(
            f"Layers {names} may get negative inputs, which `activation_bits` makes 0. Pass "
            "signed_activations=True, or leave them out (`skip`), unless you know that they get none.",
            stacklevel=3,
        )


def _warn_of_lost_zeros(layers: list[Layer]) -> None:
    """Warns where kernels were pruned: levels of WNQ are on both sides of 0, and none is 0."""
    names = [x.name for x in layers if many_zeros(ops.convert_to_numpy(x.kernel), MAX_LEVELS)]
    if names:
        warnings.warn(
            f"Kernels of {names} have many zeros, as where they were pruned, of which WNQ has no level. "
            "quantization_aware and share_weights keep them.",
            stacklevel=3,
        )


def _report_others(model: keras.Model, wanted: list[Layer], layers: Layers, skip: Any) -> None:
    """Warns of layers of other kinds; raises where there are no others."""
    others = [
        f"'{layer.name}' ({type(layer).__name__})" for layer in wanted if not convertible(layer)
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
