"""Copying what a model holds, and proving that a copy has all of it.

Weights are paired with their counterparts as they are copied, so that a copy which lost one, made one
anew, or cut a tie is an error and never a result.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import EXTENDED, QUANTIZED, KernelWrapper, SharedWeights, kernels
from keras_qareg.layers.keras_private import (
    attributes,
    children,
    flattened,
    freeze,
    is_graph,
    layers_inside,
    replace_arguments,
    set_trainable_alone,
    unlocked,
    untracked,
)

_SIMPLE = bool | int | float | str | np.ndarray | np.generic
# What is copied in other ways.
_OF_MODELS = Layer | keras.Variable | keras.KerasTensor
Function = TypeVar("Function", bound=Callable[..., Any])
# A weight or state of the model, and what it became.
Counterparts = list[tuple[keras.Variable, keras.Variable]]


def inner_layer(layer: Layer) -> Layer:
    """The layer inside a wrapper of this package, or the layer itself."""
    return layer.layer if isinstance(layer, KernelWrapper) else layer


def own_weights(layer: Layer) -> list[keras.Variable]:
    """The weights of a layer or model itself, less those of the layers inside."""
    inside = {id(weight) for child in children(layer) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in inside]


def copy_contents(old: Layer, new: Layer, is_entered: bool, thaw: bool = False) -> Counterparts:
    """Copies the weights and states of a layer to its copy, and what was set on them.

    Args:
        old: The layer.
        new: Its copy, built; of the same class, or what stands for it.
        is_entered: Whether the layers inside have copies of their own, which are not touched here.
        thaw: Whether weights that were frozen one by one train again.

    Returns:
        Which weight became which.

    Raises:
        ValueError: If the copy has other weights or states.
    """
    if is_entered:
        pairs = own_weights(old), own_weights(new)
    elif type(old) is type(new):
        pairs = old.weights, new.weights
    else:
        pairs = _plain_weights(old), _plain_weights(new)
    counterparts = _paired(old, *pairs)
    parts = [(old, new)]
    if not is_entered:
        parts = [
            *zip(layers_inside(inner_layer(old)), layers_inside(inner_layer(new)), strict=False)
        ]
    for a, b in parts:
        _copy_settings(a, b)
    if not thaw:
        if is_entered:
            set_trainable_alone(new, old.trainable)
        held = new.held_kernels if isinstance(new, SharedWeights) else []
        _copy_flags(parts, counterparts, held)
    states = [found for a, b in parts for found in _paired(old, states_of(a), states_of(b))]
    for a, b in parts:
        seeds = seeds_of(a), seeds_of(b)
        if len(seeds[0]) == len(seeds[1]):  # a layer may make its own at the first call
            states += zip(*seeds, strict=True)
    for before, after in (*counterparts, *states):
        # A copy: JAX gives the memory of a trained model's variables away at each step.
        after.assign(ops.copy(before))
    copy_adapted_state(old, new)
    return counterparts


def copy_resized(old: Layer, new: Layer, values: Mapping[str, np.ndarray]) -> Counterparts:
    """Gives the copy of a plain layer weights of its own shapes, and what was set on the layer's.

    Args:
        old: The layer.
        new: Its copy, built, which may have a weight more.
        values: The weights of the copy by name.

    Returns:
        Which weight became which; a weight that the layer had not is its own counterpart.
    """
    before = {weight.name: weight for weight in old.weights}
    counterparts = [(before.get(weight.name, weight), weight) for weight in new.weights]
    _copy_flags([(old, new)], counterparts, [])
    for weight in new.weights:
        weight.assign(values[weight.name])
    return counterparts


def _paired(layer: Layer, old: list[keras.Variable], new: list[keras.Variable]) -> Counterparts:
    names = [v.name for v in old]
    if len(set(names)) == len(names) and sorted(names) == sorted(v.name for v in new):
        # A layer that Keras quantized makes its weights in another order when it is made again.
        by_name = {v.name: v for v in new}
        new = [by_name[name] for name in names]
    if [tuple(v.shape) for v in old] != [tuple(v.shape) for v in new]:
        raise ValueError(
            f"Expected a copy of layer '{layer.name}' ({type(layer).__name__}) with weights and states "
            f"{_listed(old)}. Received: {_listed(new)}, because its `get_config()` does not say all "
            "that it is made of. Extend it."
        )
    return list(zip(old, new, strict=True))


def _listed(variables: list[keras.Variable]) -> str:
    return ", ".join(f"{v.name} {tuple(v.shape)}" for v in variables) or "none"


def _plain_weights(layer: Layer) -> list[keras.Variable]:
    if not isinstance(layer, EXTENDED):
        return layer.weights
    added = {id(weight) for weight in layer.quantization_weights}
    return [weight for weight in layer.weights if id(weight) not in added]


def states_of(layer: Layer) -> list[keras.Variable]:
    """Variables in the attributes of a layer that are no weights: states of recurrent layers."""
    weights = {id(weight) for weight in layer.weights}
    return [state for state in _held(layer, keras.Variable) if id(state) not in weights]


def seeds_of(layer: Layer) -> list[keras.Variable]:
    """The states of the random numbers that a layer draws: its seed, and how many were drawn."""
    return [generator.state for generator in _held(layer, keras.random.SeedGenerator)]


def _held(layer: Layer, kind: type) -> list[Any]:
    """The objects of a class in the attributes of a layer, each once."""
    parts = flattened(list(attributes(layer).values()))
    return list({id(part): part for part in parts if isinstance(part, kind)}.values())


def remembered(layer: Layer) -> list[keras.Variable]:
    """What a layer remembers from one call to the next."""
    own = layer.non_trainable_variables if getattr(layer, "stateful", False) else []
    return [*own, *states_of(layer), *seeds_of(layer)]


@contextlib.contextmanager
def keeping_states(model: Any) -> Iterator[None]:
    """Leaves what the layers of a model remember as it is."""
    inside = layers_inside(model) if isinstance(model, Layer) else []
    kept = [(state, ops.copy(state)) for layer in inside for state in remembered(layer)]
    try:
        yield
    finally:
        for state, before in kept:
            state.assign(before)


def states_kept(function: Function) -> Function:
    """A function of a model under `keeping_states`."""

    @functools.wraps(function)
    def kept(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        with keeping_states(model):
            return function(model, *args, **kwargs)

    return cast(Function, kept)


def _copy_flags(
    parts: list[tuple[Layer, Layer]], counterparts: Counterparts, held: list[keras.Variable]
) -> None:
    """What was set on parts and weights themselves: whether they train, and their constraints."""
    old, new = parts[0]
    as_it_was = old.trainable == new.trainable  # not where a transform freezes all but centroids
    if not (as_it_was or new.trainable):
        freeze(new)  # with the layers that it made in `build`
    for a, b in parts[1:]:
        if as_it_was and a.trainable != b.trainable:
            b.trainable = a.trainable
    for before, after in counterparts:
        after.constraint = before.constraint
        if as_it_was and not any(after is kernel for kernel in held):
            after.trainable = before.trainable


def _copy_settings(old: Layer, new: Layer) -> None:
    """Numbers, texts and arrays in the attributes of a layer that somebody wrote.

    They may have been set after the layer was made, or its `get_config()` may not say them.
    """
    if type(old) is not type(new) or type(old).__module__.startswith("keras."):
        return
    mine, theirs = attributes(old), attributes(new)
    with unlocked(new):
        for name, value in mine.items():
            parts = flattened(value)
            simple = all(isinstance(part, _SIMPLE) or part is None for part in parts)
            copied_otherwise = any(isinstance(part, _OF_MODELS) for part in parts)
            known = name in theirs
            differs = simple and known and not _equal(value, theirs[name])
            if differs or not (known or copied_otherwise):
                setattr(new, name, untracked(value))


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_equal(value[key], other[key]) for key in value)
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(_equal, value, other))
    return type(value) is type(other) and np.array_equal(value, other)


def copy_adapted_state(old: Layer, new: Layer) -> None:
    """What preprocessing layers learned by `adapt` and keep beside their weights."""
    if type(old) is type(new) and hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    elif hasattr(new, "finalize_state"):
        new.finalize_state()


def account_for(
    model: keras.Model,
    copied: keras.Model,
    counterparts: Counterparts,
    replaced: Iterable[Layer] = (),
) -> None:
    """Proves that a copy has every weight of a model, each once, and none from elsewhere.

    Weights of layers that were `replaced`, which others have as constants, are left out.

    Raises:
        ValueError: If not, with the names of the weights.
    """
    became: dict[int, set[int]] = {}
    for before, after in counterparts:
        became.setdefault(id(before), set()).add(id(after))
    known = {*became, *(identity for found in became.values() for identity in found)}
    for layer in (*layers_inside(model), *layers_inside(copied)):
        if isinstance(layer, EXTENDED):
            known |= {id(weight) for weight in layer.quantization_weights}
    known |= {id(weight) for layer in replaced for weight in layer.weights}
    lost = [weight.path for weight in model.weights if id(weight) not in known]
    new = [weight.path for weight in copied.weights if id(weight) not in known]
    if lost or new:
        raise ValueError(
            f"Expected a copy of model '{model.name}' with all its weights. Received: a copy that lacks "
            f"{lost or 'none'} and made {new or 'none'} anew, because the layers of these are not in "
            "attributes (or lists, tuples and dicts in attributes) that the model has again when it is "
            "made from its `get_config()`. Keep them there."
        )
    several = [weight.path for weight in model.weights if len(became.get(id(weight), ())) > 1]
    if several:
        raise ValueError(
            f"Expected weights of model '{model.name}' that its layers can be copied with. Received: "
            f"{several}, each of which several layers have as their own. Give these layers the layer "
            "that owns the weight as an attribute, and read the weight from there."
        )


def retie(model: keras.Model, copied: keras.Model, counterparts: Counterparts) -> None:
    """Lets operations of a graph that read a weight read that of the copy.

    Raises:
        ValueError: If the copy computes with other values than the weight's.
    """
    became = {id(before): after for before, after in counterparts}
    quantized = {
        id(kernel)
        for layer in layers_inside(copied)
        if isinstance(layer, QUANTIZED)
        for kernel in kernels(layer)
    }

    def counterpart(value: Any) -> Any:
        after = became.get(id(value), value) if isinstance(value, keras.Variable) else value
        if id(after) in quantized:
            raise ValueError(
                f"Expected weights that only their own layers use. Received: '{value.path}' of model "
                f"'{model.name}', which an operation reads too. Leave its layer out (`layers`), or read "
                "it in a layer that has that layer as an attribute."
            )
        return after

    for layer in layers_inside(copied):
        if is_graph(layer):
            replace_arguments(layer, counterpart)


def check_lambdas(model: keras.Model) -> None:
    """Raises a `ValueError` where a Lambda's function reads layers or weights of the model it is in."""
    known = {id(part) for layer in layers_inside(model) for part in (layer, *layer.weights)}
    for layer in layers_inside(model):
        if not (isinstance(layer, keras.layers.Lambda) and inspect.isfunction(layer.function)):
            continue
        found = inspect.getclosurevars(layer.function)
        for name, value in {**found.globals, **found.nonlocals}.items():
            if any(id(part) in known for part in flattened(value)):
                raise ValueError(
                    f"Expected a function in Lambda layer '{layer.name}' that reads its inputs alone. "
                    f"Received: one that reads '{name}', a layer or weight of the model, which a copy "
                    "would read too. Write a layer that has it as an attribute."
                )
