"""Rebuilding a model with some of its layers changed: the mechanics below the transforms.

Keras's `clone_model` rebuilds Sequential and Functional models, nested ones too, but copies no
weights and never enters a subclassed model or a layer made of layers. Those are made again from
their configuration, and the layers in their attributes are then replaced.
"""

from __future__ import annotations

import inspect
import operator
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import QUANTIZED, KernelWrapper
from keras_qareg.layers.keras_private import (
    attributes,
    children,
    is_graph,
    layers_inside,
    track_children,
    unlocked,
)
from keras_qareg.models.compiling import compile_like
from keras_qareg.models.graphs import copy_graph

# For a layer, the function that makes its successor; None for an ordinary copy.
Change = Callable[[Layer], Callable[[Layer], Layer] | None]

_PACKAGE = "keras_qareg>"


def leaf_layers(layer: Layer) -> list[Layer]:
    """The layers that transforms act on, each once: models are entered, other layers are not.

    A layer that holds layers of this package is entered too.
    """
    return [found for found in _walk(layer) if not _is_entered(found)]


def containers(layer: Layer) -> list[Layer]:
    """A model, and all models and layers inside that `leaf_layers` enters."""
    return [layer, *(found for found in _walk(layer) if _is_entered(found))]


def _walk(layer: Layer) -> list[Layer]:
    seen: dict[int, Layer] = {}

    def visit(layer: Layer) -> None:
        for child in children(layer):
            if id(child) not in seen:
                seen[id(child)] = child
                if _is_entered(child):
                    visit(child)

    visit(layer)
    return list(seen.values())


def _is_entered(layer: Layer) -> bool:
    if isinstance(layer, QUANTIZED):
        return False
    return isinstance(layer, keras.Model) or any(
        isinstance(inner, QUANTIZED) for inner in layers_inside(layer)
    )


def fresh(
    layer: Layer,
    clean: bool = False,
    into: type[Layer] | None = None,
    config: dict[str, Any] | None = None,
) -> Layer:
    """A copy of a layer without its weights.

    Args:
        layer: The layer to copy.
        clean: Whether to leave out this package's regularizers.
        into: The class of the copy; by default that of `layer`.
        config: The configuration of the copy; by default that of `layer`.

    Returns:
        An unbuilt layer.
    """
    config = layer.get_config() if config is None else config
    config = _without_regularizers(config) if clean else config
    if isinstance(layer, keras.layers.Lambda):
        # A Python lambda of a model in memory is no more foreign than the model itself.
        serialized = {"class_name": "Lambda", "module": "keras.layers", "config": config}
        return keras.saving.deserialize_keras_object(serialized, safe_mode=False)
    for name, value in config.items():  # a function that Keras could not find by its name
        if not isinstance(value, str) and inspect.isfunction(getattr(layer, name, None)):
            config[name] = getattr(layer, name)
    return (into or type(layer)).from_config(config)


def own_regularizer(layer: Layer) -> Any:
    """The first regularizer of this package in a layer's configuration, or None."""
    if isinstance(layer, KernelWrapper):
        return None
    config = next(_regularizer_configs(layer.get_config()), None)
    return None if config is None else keras.saving.deserialize_keras_object(config)


def _is_ours(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("registered_name")).startswith(_PACKAGE)


def _regularizer_configs(config: Any) -> Iterator[dict[str, Any]]:
    values = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in values:
        if str(key).endswith("regularizer") and _is_ours(value):
            yield value
        elif isinstance(value, dict | list | tuple):
            yield from _regularizer_configs(value)


def _without_regularizers(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: None
            if str(key).endswith("regularizer") and _is_ours(value)
            else _without_regularizers(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_without_regularizers(value) for value in config)
    return config


def clone(model: keras.Model, change: Change) -> keras.Model:
    """A copy of a model, with its weights, in which some layers have a successor.

    Args:
        model: A built model; it stays as it is.
        change: For each leaf layer, the function that makes its successor, or None.

    Returns:
        A built model with the weights of `model`, compiled like it where it was compiled.
    """
    pairs: list[tuple[Layer, Layer]] = []
    compiled: list[tuple[keras.Model, keras.Model]] = []
    cache: dict[int, Layer] = {}

    def copy(layer: Layer) -> Layer:
        """A sublayer of any kind; one that stands in several places stays one."""
        if id(layer) not in cache:
            cache[id(layer)] = copy_model(layer) if is_graph(layer) else copy_leaf(layer)
        return cache[id(layer)]

    def copy_model(graph: keras.Model) -> keras.Model:
        copied = copy_graph(graph, copy, cache)
        if graph.compiled:
            compiled.append((graph, copied))
        return copied

    def copy_leaf(layer: Layer) -> Layer:
        if not isinstance(layer, Layer):  # an operation such as keras.ops.relu
            return type(layer).from_config(layer.get_config())
        make = None if _is_entered(layer) else change(layer)
        successor = make(layer) if make else fresh(layer)
        pairs.append((layer, successor))
        if _is_entered(layer):
            if _layers_made_later(layer, successor):
                _build_like(successor, layer)
            with unlocked(successor):
                _replace_children(layer, successor, copy)
        if getattr(layer, "compiled", False):
            compiled.append((layer, successor))
        return successor

    copied = copy(model)
    if not all(layer.built for layer in layers_inside(copied)):
        _build_like(copied, model)
    counterparts = [found for pair in pairs for found in _copy_weights(*pair)]
    for old, new in pairs:
        _copy_adapted_state(old, new)
    _account_for(model, copied, counterparts)
    _rename_inputs(copied, model)
    for old, new in compiled:
        compile_like(new, old)
    return copied


def _rename_inputs(copied: Layer, model: Layer) -> None:
    """Gives input layers their names back: `clone_model` names them after their tensors."""
    names = {
        layer.output.name: layer.name
        for layer in layers_inside(model)
        if isinstance(layer, keras.layers.InputLayer)
    }
    for layer in layers_inside(copied):
        if isinstance(layer, keras.layers.InputLayer):
            layer.name = names.get(layer.output.name, layer.name)


def _build_like(copied: keras.Model, model: keras.Model) -> None:
    """Builds a subclassed model by a call, as Keras asks for before an export."""
    config = model.get_build_config() or {}
    if "input_shape" in config:
        copied(
            keras.tree.map_shape_structure(
                lambda shape: ops.zeros([size or 1 for size in shape]), config["input_shape"]
            )
        )
    else:
        copied.build_from_config(config)
        copied.built = True


def _layers_made_later(old: Layer, new: Layer) -> bool:
    """Whether a layer holds layers that it makes when it is built, and its unbuilt copy does not yet."""
    theirs = attributes(new)
    made = {name: value for name, value in attributes(old).items() if name not in theirs}
    return any(isinstance(part, Layer) for part in keras.tree.flatten(made))


def _replace_children(old: Layer, new: Layer, copy: Callable[[Layer], Layer]) -> None:
    """Puts copies of the layers in the attributes of `old` where `new` has its own."""
    tracked, replaced = children(new), {}

    def swap(before: Any, after: Any) -> Any:
        """`after` with its layers replaced; the very same object where it holds none."""
        if isinstance(before, Layer) and isinstance(after, Layer):
            replaced[id(after)] = copy(before)
            return replaced[id(after)]
        if isinstance(before, list | tuple) and isinstance(after, list | tuple):
            swapped = [swap(*pair) for pair in zip(before, after, strict=True)]
            if all(map(operator.is_, swapped, after)):
                return after
            if isinstance(after, list):
                return swapped
            named = hasattr(after, "_fields")
            return type(after)(*swapped) if named else tuple(swapped)
        if isinstance(before, dict) and isinstance(after, dict):
            by_key = {key: swap(before[key], after[key]) for key in before}
            return after if all(by_key[key] is after[key] for key in after) else by_key
        return after

    mine, theirs = attributes(old), attributes(new)
    for name in [name for name in mine if name in theirs]:
        after = getattr(new, name)
        swapped = swap(getattr(old, name), after)
        if swapped is not after:
            setattr(new, name, swapped)
    track_children(new, [replaced.get(id(layer), layer) for layer in tracked])


def _copy_weights(old: Layer, new: Layer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Copies the weights of a layer to its copy; returns which became which."""
    if _is_entered(old):
        pairs = own_weights(old), own_weights(new)
    elif type(old) is type(new):
        pairs = old.weights, new.weights
    else:
        pairs = _plain_weights(old), _plain_weights(new)
    counterparts = list(zip(*pairs, strict=True))
    for before, after in counterparts:
        # A copy: JAX gives the memory of a trained model's variables away at each step.
        after.assign(ops.copy(before))
    return counterparts


def _account_for(
    model: keras.Model,
    copied: keras.Model,
    counterparts: list[tuple[keras.Variable, keras.Variable]],
) -> None:
    """Raises a `ValueError` unless every weight of a model was copied, and none came from elsewhere."""
    known = {id(weight) for pair in counterparts for weight in pair}
    for layer in (*layers_inside(model), *layers_inside(copied)):
        if isinstance(layer, QUANTIZED):
            known |= {id(weight) for weight in layer.quantization_weights}
    lost = [weight.path for weight in model.weights if id(weight) not in known]
    new = [weight.path for weight in copied.weights if id(weight) not in known]
    if lost or new:
        raise ValueError(
            f"Expected a copy of model '{model.name}' with all its weights. Received: a copy that lacks "
            f"{lost or 'none'} and made {new or 'none'} anew, because the layers of these are not in "
            "attributes (or lists, tuples and dicts in attributes) that the model has again when it is "
            "made from its `get_config()`. Keep them there."
        )


def _plain_weights(layer: Layer) -> list[keras.Variable]:
    if not isinstance(layer, QUANTIZED):
        return layer.weights
    added = {id(weight) for weight in layer.quantization_weights}
    return [weight for weight in layer.weights if id(weight) not in added]


def _copy_adapted_state(old: Layer, new: Layer) -> None:
    """What preprocessing layers learned by `adapt` and keep beside their weights."""
    if type(old) is type(new) and hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    elif hasattr(new, "finalize_state"):
        new.finalize_state()


def inner_layer(layer: Layer) -> Layer:
    """The layer inside a wrapper of this package, or the layer itself."""
    return layer.layer if isinstance(layer, KernelWrapper) else layer


def own_weights(layer: Layer) -> list[keras.Variable]:
    """The weights of a layer or model itself, less those of the layers inside."""
    inside = {id(weight) for child in children(layer) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inside]
