"""Copying Sequential and Functional models, and subclasses of these.

Keras's `clone_model` copies the graph alone: a subclass becomes a bare Functional, which has none of its
methods and whose file cannot be loaded, and what the model's author keeps in its attributes is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.layers.keras_private import (
    attributes,
    has_names_of_its_own,
    layers_inside,
    name_outputs,
    of_class,
    set_trainable_alone,
    uncompiled,
    without,
)


class Passed(Layer):
    """Stands for a layer that a copy of a graph leaves out: what reads it reads what it would read."""

    def call(self, inputs: Any) -> Any:
        """Its inputs: where no graph is copied, this is what the layer does."""
        return inputs


def copy_graph(
    graph: keras.Model, copy: Callable[[Layer], Layer], copies: dict[int, Layer]
) -> keras.Model:
    """A copy of a Sequential or Functional model, of the same class and with its attributes.

    Args:
        graph: The model.
        copy: Makes the copy of a layer, or returns the one that it made before.
        copies: The copies that were made, by the identity of what they are copies of.

    Returns:
        A model without the weights of `graph`, and not compiled.

    Raises:
        ValueError: If an attribute is a symbolic tensor that the copy has not.
    """
    bare = _bare_copy(uncompiled(graph), copy)
    copied = bare if type(bare) is type(graph) else of_class(bare, graph)
    copied.dtype_policy = graph.dtype_policy
    set_trainable_alone(copied, graph.trainable)
    mine, theirs = attributes(graph), attributes(copied)
    for name, value in mine.items():
        if name not in theirs:
            setattr(copied, name, _counterpart(value, f"{graph.name}.{name}", copy, copies))
    return copied


def _bare_copy(graph: keras.Model, copy: Callable[[Layer], Layer]) -> keras.Model:
    """A copy without what the author of the model added to it."""

    def call(layer: Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if isinstance(layer, Passed) else layer(*args, **kwargs)

    if isinstance(graph, keras.Sequential):
        bare = keras.models.clone_model(graph, clone_function=copy)
        passed = any(isinstance(layer, Passed) for layer in bare.layers)
        return without(bare, Passed) if passed else bare
    bare = keras.models.clone_model(graph, clone_function=copy, call_function=call)
    if has_names_of_its_own(graph):
        name_outputs(bare, graph)
    return bare


def _counterpart(
    value: Any, name: str, copy: Callable[[Layer], Layer], copies: dict[int, Layer]
) -> Any:
    """What an attribute is in a copy: its layers and symbolic tensors are those of the copy."""

    def part(value: Any) -> Any:
        if isinstance(value, keras.KerasTensor):
            return _tensor(value, name, copies)
        if isinstance(value, Layer):
            # A tokenizer, say, has nothing that training changes; its vocabulary is in no configuration.
            known = id(value) in copies or any(inner.weights for inner in layers_inside(value))
            return copy(value) if known else value
        if isinstance(value, list | tuple):
            parts = [part(item) for item in value]
            if isinstance(value, list):
                return parts
            # Its `__class__`: TensorFlow wraps tuples in attributes in a type of its own.
            return value.__class__(*parts) if hasattr(value, "_fields") else tuple(parts)
        if isinstance(value, dict):
            return {key: part(item) for key, item in value.items()}
        return value

    return part(value)


def _tensor(tensor: keras.KerasTensor, name: str, copies: dict[int, Layer]) -> keras.KerasTensor:
    """The output of the copy of the operation that a symbolic tensor is an output of."""
    operation, node, place = tensor._keras_history
    copied = copies.get(id(operation))
    nodes = [] if copied is None else copied._inbound_nodes
    if len(nodes) != len(operation._inbound_nodes):
        raise ValueError(
            f"Expected attribute '{name}' to be a tensor inside the model, which its copy has too. "
            f"Received: {tensor}. Delete the attribute, and make it anew from the new model's layers."
        )
    return nodes[node].output_tensors[place]
