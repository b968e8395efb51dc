"""Which layers of a model are meant: by kind, by name, by a function, or because they are wrapped."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.choices import check_choice
from keras_qareg.layers import (
    EXTENDED,
    KEPT_CONSTRAINTS,
    QUANTIZED,
    KernelWrapper,
    WeightNormalized,
    Weights,
    kernels,
    path_inside,
)
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.accounting import inner_layer, own_weights
from keras_qareg.models.walking import leaf_layers

_RULE = (
    ". A kernel is a weight whose name ends in 'kernel' or 'embeddings'; name others in `weights`, as "
    "weights=['*kernel', 'w']."
)
Layers = str | Iterable[str] | type[Layer] | Callable[[Layer], bool]

_CONVOLUTIONS = tuple(
    getattr(keras.layers, name)
    for name in [
        *(f"Conv{n}D" for n in (1, 2, 3)),
        *(f"Conv{n}DTranspose" for n in (1, 2, 3)),
        *(f"{kind}Conv{n}D" for kind in ("Depthwise", "Separable") for n in (1, 2)),
    ]
)
_DENSE = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)


def wrappers(model: keras.Model) -> list[KernelWrapper]:
    """The layers of a model that wrap another: `QuantizationAware` and `SharedWeights`."""
    return [layer for layer in leaf_layers(model) if isinstance(layer, KernelWrapper)]


def quantized_layers(model: keras.Model) -> list[Layer]:
    """All layers of this package in a model: the wrappers, and those of WNQ."""
    return [layer for layer in leaf_layers(model) if isinstance(layer, QUANTIZED)]


def extended_layers(model: keras.Model) -> list[Layer]:
    """The layers of this package in a model that have weights which a plain model has not."""
    return [layer for layer in leaf_layers(model) if isinstance(layer, EXTENDED)]


def select(
    model: keras.Model, layers: Layers = "all", weights: Weights = None, *, deep: bool = False
) -> list[Layer]:
    """The layers with kernels that `layers` names.

    Args:
        model: A built model.
        layers: As in `quantization_aware`.
        weights: As in `quantization_aware`.
        deep: Whether layers that are made of layers are entered, as in `walking.entered`.

    Returns:
        List of layers, wrapped or not, in the order of the model.

    Raises:
        ValueError: If `layers` is none of what is accepted, a name is unknown, or a layer that is meant
            has low-rank adaptation (LoRA), or is a `SpectralNormalization`.
    """
    chosen = _chosen(model, layers, weights, deep)
    adapted = [
        layer.name
        for layer in chosen
        # Layers of WNQ quantize the sum of their kernel and its adaptation.
        if any(
            getattr(part, "lora_enabled", False) and not isinstance(part, WeightNormalized)
            for part in layers_inside(layer)
        )
    ]
    if adapted:
        raise ValueError(
            "Expected layers without low-rank adaptation, whose kernels are sums. Received: "
            f"{adapted} with `enable_lora`. Make a model without it, and give each kernel the value of "
            "`layer.kernel`, which is the sum; or leave these out by `layers`."
        )
    normalizing = [
        layer.name
        for layer in chosen
        if any(isinstance(p, keras.layers.SpectralNormalization) for p in layers_inside(layer))
    ]
    if normalizing:
        raise ValueError(
            "Expected layers that leave their kernels as they are when they are called. Received: "
            f"{normalizing} of type SpectralNormalization, which divides its kernel in each training "
            "step. Make a model of the layers inside, which have its weights; or leave these out by "
            "`layers`."
        )
    return chosen


def warn_of_constraints(
    layers: Iterable[Layer], weights: Weights = None, stacklevel: int = 3
) -> None:
    """Warns of constraints that hold for float kernels, not for the levels that are computed with."""
    held = [
        f"'{kernel.path}' ({type(kernel.constraint).__name__})"
        for layer in layers
        for kernel in kernels(layer, weights)
        if kernel.constraint is not None and not isinstance(kernel.constraint, KEPT_CONSTRAINTS)
    ]
    if held:
        warnings.warn(
            "Constraints hold for the float kernels, not for the levels nearest to them, which layers "
            f"compute with and `strip` leaves: {', '.join(held)}.",
            stacklevel=stacklevel,
        )


def _chosen(model: keras.Model, layers: Layers, weights: Weights, deep: bool) -> list[Layer]:
    leaves = leaf_layers(model, deep)
    candidates = [layer for layer in leaves if kernels(layer, weights)]
    _check_weights(leaves, weights)
    if isinstance(layers, type):
        return [layer for layer in candidates if isinstance(inner_layer(layer), layers)]
    if callable(layers):
        return [layer for layer in candidates if layers(inner_layer(layer))]
    if isinstance(layers, str):
        check_choice("layers", layers, ("all", "conv", "dense"))
        kinds = {"all": Layer, "conv": _CONVOLUTIONS, "dense": _DENSE}[layers]
        return [layer for layer in candidates if isinstance(inside_wrappers(layer)[-1], kinds)]
    names = list(layers) if isinstance(layers, Iterable) else [layers]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            "Expected `layers` to be 'all', 'conv', 'dense', names of layers, a class of layers, or a "
            f"function of a layer. Received: layers={layers!r}"
        )
    known = [layer.name for layer in candidates]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Expected `layers` to be names of layers with kernels, {known}. "
            f"Received unknown names: {unknown}{_explained(leaves, weights, unknown)}"
        )
    return [layer for layer in candidates if layer.name in names]


def _check_weights(leaves: list[Layer], weights: Weights) -> None:
    """Raises a `ValueError` where one of several names of weights means none."""
    if weights is None or isinstance(weights, str) or callable(weights):
        return
    idle = [name for name in weights if not any(kernels(layer, name) for layer in leaves)]
    if idle and len(idle) < len(list(weights)):
        raise ValueError(
            "Expected each of `weights` to mean a weight of the model. "
            f"Received: {idle}, which mean none"
        )


def names_of_kernels(
    layer: Layer, weights: Weights, levels: Iterable[int | None] = ()
) -> list[str] | None:
    """What a wrapper of a layer is told of its kernels: nothing where their names say it.

    Args:
        layer: The layer, wrapped or not.
        weights: Which weights are kernels.
        levels: Of each of them, where it is not all that are meant; `None`: it is not.

    Returns:
        List of names, or `None`.

    Raises:
        ValueError: If no list of names means these kernels alone.
    """
    found = kernels(layer, weights)
    which = [most is not None for most in levels]
    if all(which):
        if isinstance(layer, KernelWrapper):
            return layer.kernel_names
        return None if weights is None else [path_inside(layer, kernel) for kernel in found]
    inner = inner_layer(layer)
    names = [path_inside(inner, k) for k, is_meant in zip(found, which, strict=True) if is_meant]
    if len(kernels(inner, names)) != len(names):
        raise ValueError(
            f"Expected kernels of layer '{layer.name}' that their names tell apart. Received: {names}, "
            "which others are named too. Give all kernels of the layer levels, or none."
        )
    return names


def warn_of_overlooked(model: keras.Model, layers: Layers, weights: Weights) -> None:
    """Warns of large weights, in layers that somebody wrote, which are not named as kernels are."""
    if weights is None and layers == "all":
        found = [path for layer in leaf_layers(model) for path in overlooked(layer)]
        if found:
            warnings.warn(f"Left as they are: {found}{_RULE}", stacklevel=3)


def overlooked(layer: Layer) -> list[str]:
    """The paths of weights of a layer that may be kernels, but are not named so."""
    if isinstance(layer, QUANTIZED):
        return []
    return [
        weight.path
        for part in layers_inside(layer)
        if not type(part).__module__.startswith("keras.")
        for weight in own_weights(part)
        if len(weight.shape) >= 2
        and weight.trainable
        and not any(weight is k for k in kernels(layer))
    ]


def no_kernel(model: keras.Model, weights: Weights) -> str:
    """Why no layer of a model has a kernel: ends an error message."""
    return _explained(leaf_layers(model), weights, None) or "."


def _explained(leaves: list[Layer], weights: Weights, names: list[str] | None) -> str:
    if weights is not None:
        return f". No weight of theirs is in weights={weights!r}." if names is None else ""
    named = [layer for layer in leaves if names is None or layer.name in names]
    found = [path for layer in named for path in overlooked(layer)]
    return f"{_RULE} There are {found}." if found else ""


def check_built(model: Any) -> None:
    """Raises a `ValueError` unless `model` is a Keras model that has its weights."""
    if isinstance(model, str | os.PathLike):
        raise ValueError(
            f"Expected a keras.Model. Received: the path '{model}'. Open it first: "
            f"keras.saving.load_model('{model}')"
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"Expected a keras.Model. Received: {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"Expected a built model. Received: model '{model.name}' without weights. "
            "Call it on a batch, or begin it with keras.Input."
        )


def check_plain(model: keras.Model, besides: tuple[type[Layer], ...] | type[Layer] = ()) -> None:
    """Raises a `ValueError` where kernels of a model are quantized already, but for those of a kind."""
    names = [layer.name for layer in quantized_layers(model) if not isinstance(layer, besides)]
    if names:
        raise ValueError(
            f"Expected a plain model. Received: a model with quantized layers already ({names}). "
            "Take keras_qareg.strip(model) first."
        )
    check_float(model)


def check_float(model: keras.Model, *modes: str) -> None:
    """Raises a `ValueError` where Keras quantized layers of a model, in some mode or in any."""
    names = [
        layer.name
        for layer in layers_inside(model)
        if isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy)
        and (not modes or layer.dtype_policy.quantization_mode in modes)
    ]
    if names:
        raise ValueError(
            f"Expected a model in floating point. Received: model '{model.name}' with layers that Keras "
            f"quantized ({names}). Transform the model first, take keras_qareg.strip of it, and call "
            "`quantize` on that."
        )


def large_enough(layer: Layer, levels: Iterable[int | None], weights: Weights) -> bool:
    """Whether some kernel of a layer has more weights than its levels; warns if not.

    Args:
        layer: The layer.
        levels: Of each kernel, or `None` for one that is left as it is.
        weights: Which weights are kernels.
    """
    sizes = [
        (math.prod(kernel.shape), most)
        for kernel, most in zip(kernels(layer, weights), levels, strict=True)
        if most is not None
    ]
    if any(size > most for size, most in sizes):
        return True
    largest, most = max(sizes)
    warnings.warn(
        f"Layer '{layer.name}' is left as it is: its largest kernel has {largest} weights, "
        f"no more than levels={most}.",
        stacklevel=3,
    )
    return False


def inside_wrappers(layer: Layer) -> list[Layer]:
    """A layer and what it wraps, from outside: the TimeDistributed and the Dense in it."""
    found = [layer]
    while isinstance(found[-1], keras.layers.Wrapper):
        found.append(found[-1].layer)
    return found
