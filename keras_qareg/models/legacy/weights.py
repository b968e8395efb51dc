"""Weights of a model of Keras 2 into one of Keras 3: each by its name, and all of them."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.legacy.source import Source, Weights

_NUMBERED = re.compile(r"_\d+$")


def assign(model: keras.Model, layers: dict[str, Layer], source: Source) -> None:
    """Sets all weights of a model.

    Args:
        model: The new model.
        layers: Its layers, by the names that they have in the source.
        source: Where the weights are from.

    Raises:
        ValueError: If a weight of either has no counterpart of its shape in the other.
    """
    left = {id(weight): weight for weight in model.weights}
    for name, values in source.weights.items():
        layer = layers.get(name)
        if layer is None:
            if values:
                raise ValueError(
                    "Expected weights of layers that the model has. Received: "
                    f"{[path for path, _ in values]} of '{name}'."
                )
            continue
        for weight, value in matched(name, layer, values):
            weight.assign(value)
            left.pop(id(weight), None)
    if left:
        names = [weight.path for weight in left.values()]
        raise ValueError(
            f"Expected a value for each weight of the model. Received: none for {names}."
        )
    for layer in layers_inside(model):
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()  # computes with a copy of its weights


def matched(name: str, layer: Layer, values: Weights) -> list[tuple[Any, Any]]:
    """Weights of a layer or model, each with its value.

    Names decide, with as many of their last parts as it takes to tell them apart. Where names do not
    tell, the order does among those of one name, which is the same in both versions of Keras: first
    those that train.

    Raises:
        ValueError: If names, numbers or shapes are others.
    """
    weights = _ordered(layer)
    if isinstance(layer, keras.layers.Discretization):
        values = []  # what `adapt` counted; the layer has the boundaries that came of it
    theirs = [_parts(path) for path, _ in values]
    mine = [_parts(weight.path) for weight in weights]
    places = _by_endings(mine, _renamed(theirs)) or _by_endings(mine, theirs)
    if places is None and _is_foreign(layer, mine, theirs):
        places = list(range(len(weights)))
    if places is None:
        raise ValueError(
            f"Expected layer '{name}' ({type(layer).__name__}) with weights "
            f"{[weight.path for weight in weights]}. Received: {[path for path, _ in values]}."
        )
    pairs = [(weight, values[place]) for weight, place in zip(weights, places, strict=True)]
    for weight, (path, value) in pairs:
        if tuple(weight.shape) != value.shape:
            raise ValueError(
                f"Expected shape {tuple(weight.shape)} for '{weight.path}'. Received: "
                f"{value.shape}, of '{path}'."
            )
    return [(weight, value) for weight, (_, value) in pairs]


def _ordered(layer: Layer) -> list[Any]:
    """The weights as HDF5 files have them, each once."""
    found = [*layer.trainable_weights, *layer.non_trainable_weights]
    return list({id(weight): weight for weight in found}.values())


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.partition(":")[0].split("/"))


def _renamed(theirs: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The names of Keras 3: the kernel of a depthwise convolution that is not a separable one's."""
    separable = {parts[:-1] for parts in theirs if parts[-1] == "pointwise_kernel"}
    return [
        (*parts[:-1], "kernel")
        if parts[-1] == "depthwise_kernel" and parts[:-1] not in separable
        else parts
        for parts in theirs
    ]


def _by_endings(mine: list[tuple[str, ...]], theirs: list[tuple[str, ...]]) -> list[int] | None:
    """For each of `mine`, the place of its counterpart."""
    for length in (2, 3, 1):
        ours, others = ([_ending(parts, length) for parts in each] for each in (mine, theirs))
        if len(set(ours)) == len(ours) and sorted(ours) == sorted(others):
            return [others.index(ending) for ending in ours]
    places = defaultdict(list)
    for place, parts in enumerate(theirs):
        places[_NUMBERED.sub("", parts[-1])].append(place)
    if sorted(_NUMBERED.sub("", parts[-1]) for parts in mine) != sorted(
        name for name, found in places.items() for _ in found
    ):
        return None
    return [places[_NUMBERED.sub("", parts[-1])].pop(0) for parts in mine]


def _ending(parts: tuple[str, ...], length: int) -> tuple[str, ...]:
    return parts[-length:]


def _is_foreign(layer: Layer, mine: list[Any], theirs: list[Any]) -> bool:
    """Whether a layer is the user's own, whose weights may have other names in Keras 3."""
    return not type(layer).__module__.startswith("keras.") and len(mine) == len(theirs)
