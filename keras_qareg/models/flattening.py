"""A Sequential or Functional model as one list of calls, models inside it taken apart.

What a file holds is one graph, whatever models it was put together from; so what looks for chains of
operations, or puts something between two, works on this list, and a model is made of it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.layers.keras_private import (
    children,
    is_graph,
    layers_inside,
    name_outputs,
    nodes,
    set_trainable_alone,
)
from keras_qareg.models.accounting import inner_layer


@dataclass(eq=False)
class Value:
    """A tensor of a model.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        name: That of the input layer, of inputs of the model.
    """

    shape: tuple[int | None, ...]
    dtype: str
    name: str = ""


@dataclass(eq=False)
class Call:
    """A call of a layer or operation.

    Attributes:
        operation: The layer or operation.
        args, kwargs: What it is called with: each tensor is a `Value`.
        outputs: The tensors that it returns.
        name: What it is called: that of the operation, or where others have it too, one of its own.
        is_new: Whether the operation is none of the model's, so that there is no copy to make of it.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value]
    name: str
    is_new: bool = False

    @property
    def inputs(self) -> list[Value]:
        """The tensors that it is called with."""
        given = keras.tree.flatten((self.args, self.kwargs))
        return [value for value in given if isinstance(value, Value)]


@dataclass(eq=False)
class Flat:
    """A model as a list of calls, each after those that its inputs come from.

    Attributes:
        model: The model.
        inputs: Its inputs.
        outputs: Its outputs.
        calls: The calls.
        replaced: Layers of the model that other calls stand for.
    """

    model: keras.Model
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    replaced: list[Layer] = field(default_factory=list)

    def readers(self) -> dict[Value, list[Call]]:
        """The calls that read each tensor."""
        found: dict[Value, list[Call]] = {}
        for call in self.calls:
            for value in call.inputs:
                found.setdefault(value, []).append(call)
        return found


def flattened_model(model: keras.Model) -> Flat:
    """A built model as one list of calls.

    Raises:
        ValueError: If the model, or one inside it, has no graph, or weights beside its graph.
    """
    _check_graphs(model)
    flat = Flat(model)
    flat.inputs = [
        Value(tuple(x.shape), str(x.dtype), x._keras_history.operation.name) for x in model.inputs
    ]
    # Layers of the model itself keep their names before others.
    called = [node.operation for node in nodes(model)]
    names = {id(operation): operation.name for operation in called if not is_graph(operation)}
    flat.outputs = _expand(flat, model, flat.inputs, {}, names, "")
    return flat


def _check_graphs(model: keras.Model) -> None:
    for layer in layers_inside(model):
        if not isinstance(layer, keras.Model):
            continue
        if not is_graph(layer) or getattr(layer, "_functional", layer) is None:
            raise ValueError(
                "Expected a Sequential or Functional model that begins with keras.Input, and such "
                f"models inside it. Received: '{layer.name}' ({type(layer).__name__}), whose layers no "
                "graph connects. Make one of its layers: keras.Model(inputs, outputs)."
            )
        held = {id(w) for child in children(layer) for w in child.weights}
        own = [weight.path for weight in layer.weights if id(weight) not in held]
        if own:
            raise ValueError(
                f"Expected models whose weights are all in their layers. Received: '{layer.name}' with "
                f"{own}. Put these into a layer of their own."
            )


def _expand(
    flat: Flat,
    graph: keras.Model,
    given: list[Value],
    settings: dict[str, Any],
    names: dict[int, str],
    scope: str,
) -> list[Value]:
    """Adds the calls of a graph; returns its outputs."""
    known = {id(tensor): value for tensor, value in zip(graph.inputs, given, strict=True)}

    def value_of(part: Any) -> Any:
        return known[id(part)] if isinstance(part, keras.KerasTensor) else part

    for node in nodes(graph):
        operation, arguments = node.operation, node.arguments
        args, kwargs = keras.tree.map_structure(value_of, (arguments.args, arguments.kwargs))
        if is_graph(operation):
            inner = {**settings, **{k: v for k, v in kwargs.items() if k == "training"}}
            inputs = _ordered(operation, args[0] if args else kwargs.get("inputs"))
            place = f"{scope}{operation.name}_"
            values = _expand(flat, operation, inputs, inner, names, place)
        else:
            values = [Value(tuple(x.shape), str(x.dtype)) for x in node.outputs]
            more = {k: v for k, v in settings.items() if _takes(operation, k) and k not in kwargs}
            name = _name(operation, names, scope)
            flat.calls.append(Call(operation, tuple(args), {**kwargs, **more}, values, name))
        known |= {id(tensor): value for tensor, value in zip(node.outputs, values, strict=True)}
    return [known[id(tensor)] for tensor in graph.outputs]


def _takes(operation: Any, name: str) -> bool:
    """Whether a layer can be called with an argument such as `training`."""
    signature = getattr(operation, "_call_signature", None)
    return isinstance(operation, Layer) and signature is not None and name in signature.parameters


def _ordered(graph: keras.Model, given: Any) -> list[Value]:
    """The inputs that a model is called with in the order of its own."""
    if isinstance(given, dict):
        keys = (
            list(graph.input) if isinstance(graph.input, dict) else [x.name for x in graph.inputs]
        )
        return [given[key] for key in keys]
    return list(keras.tree.flatten(given))


def _name(operation: Any, names: dict[int, str], scope: str) -> str:
    """The name of an operation in a model in which several may have had the same."""
    if id(operation) not in names:
        taken = set(names.values())
        name = operation.name
        if name in taken:
            name = first = f"{scope}{operation.name}"
            count = 0
            while name in taken:
                count += 1
                name = f"{first}_{count}"
        names[id(operation)] = name
    return names[id(operation)]


def made_of(
    flat: Flat,
    copy: Callable[[Any], Any],
    behind: Callable[[Value, Any], Any],
) -> keras.Model:
    """A Functional model that makes the calls of a list.

    Args:
        flat: The list.
        copy: From a layer or operation to the one that is called in its place.
        behind: From a tensor of the list and what it is in the new model, to what is read in its place.

    Returns:
        A model without the weights of the old one, and not compiled.
    """
    model = flat.model
    graph = getattr(model, "_functional", None) or model  # of a Sequential model
    tensors = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), graph.input
    )
    known = {
        value: behind(value, tensor)
        for value, tensor in zip(flat.inputs, keras.tree.flatten(tensors), strict=True)
    }
    renamed: set[int] = set()
    for call in flat.calls:
        operation = call.operation if call.is_new else copy(call.operation)
        if id(operation) not in renamed and operation.name != call.name:
            operation.name = inner_layer(operation).name = call.name
        renamed.add(id(operation))

        def tensor_of(part: Any) -> Any:
            return known[part] if isinstance(part, Value) else part

        args, kwargs = keras.tree.map_structure(tensor_of, (call.args, call.kwargs))
        outputs = keras.tree.flatten(operation(*args, **kwargs))
        for value, tensor in zip(call.outputs, outputs, strict=True):
            known[value] = behind(value, tensor)
    outputs = keras.tree.pack_sequence_as(graph.output, [known[x] for x in flat.outputs])
    made = keras.Model(tensors, outputs, name=model.name)
    name_outputs(made, graph)
    made.dtype_policy = model.dtype_policy
    set_trainable_alone(made, model.trainable)
    return made
