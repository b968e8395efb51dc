"""What stands before and after the layers of a model, as far as its graph tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.layers import FreezableBatchNormalization, KernelWrapper
from keras_qareg.layers.keras_private import graph_parents, is_graph, layers_inside

# Activations and layers whose outputs are never negative.
_NOT_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid", "softmax", "softplus", "exponential")
_OPERATIONS = (
    "relu",
    "relu6",
    "sigmoid",
    "hardsigmoid",
    "softmax",
    "softplus",
    "exp",
    "absolute",
    "abs",
)
# Layers into whose kernels the factors of a batch normalization are folded.
FOLDED_INTO = tuple(
    getattr(keras.layers, name)
    for name in [
        *(f"Conv{n}D" for n in (1, 2, 3)),
        *(f"DepthwiseConv{n}D" for n in (1, 2)),
        "Dense",
    ]
)
_NORMALIZATIONS = (keras.layers.BatchNormalization, FreezableBatchNormalization)
# Layers whose outputs are not negative where their inputs are not.
_KEEPING = tuple(
    getattr(keras.layers, name)
    for name in [
        *(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
        *(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
        *(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for n in (1, 2, 3)),
        *("Flatten", "Reshape", "Permute", "RepeatVector", "Dropout", "SpatialDropout1D"),
        *("SpatialDropout2D", "SpatialDropout3D", "Identity", "Add", "Multiply", "Maximum"),
        *("Minimum", "Average", "Concatenate"),
    ]
)
_KEEPING_OPERATIONS = (
    "add",
    "multiply",
    "maximum",
    "minimum",
    "concatenate",
    "reshape",
    "transpose",
)


def first_layers(model: keras.Model, layers: Iterable[Layer]) -> list[Layer]:
    """Of some layers, those that no other of them stands before: one or more for each input.

    Args:
        model: A built model.
        layers: Layers of it, in order. Of a model without a graph, the first in order is meant.

    Returns:
        List of layers.
    """
    return _ends(model, list(layers), forward=True)


def last_layers(model: keras.Model, layers: Iterable[Layer]) -> list[Layer]:
    """Of some layers, those that no other of them stands behind: one or more for each output."""
    return _ends(model, list(layers), forward=False)


def _ends(model: Layer, layers: list[Layer], forward: bool) -> list[Layer]:
    meant = {id(layer) for layer in layers}
    if id(model) in meant:
        return [model]
    inside = [layer for layer in layers_inside(model) if id(layer) in meant]
    if not is_graph(model):
        in_order = [layer for layer in layers if any(layer is part for part in inside)]
        return in_order[:1] if forward else in_order[-1:]
    parents = graph_parents(model)
    edges = _turned(parents) if forward else parents
    starts = model.inputs if forward else model.outputs
    waiting = [tensor._keras_history.operation for tensor in starts]
    found: dict[int, Layer] = {}
    seen: set[int] = set()
    while waiting:
        operation = waiting.pop(0)
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        ends = _ends(operation, layers, forward) if isinstance(operation, Layer) else []
        found |= {id(layer): layer for layer in ends}
        if not ends:
            waiting += edges.get(operation, [])
    return [layer for layer in layers if id(layer) in found]


def only_behind(model: keras.Model, outputs: Sequence[bool]) -> list[Layer]:
    """The layers that some outputs of a model are computed with, and no others.

    Args:
        model: A built model.
        outputs: Which outputs these are, in the order of `keras.tree.flatten`.

    Returns:
        List of layers, without those made of them; none for a model without a graph.
    """
    if not is_graph(model):
        return []
    pairs = list(zip(model.outputs, outputs, strict=True))
    meant, others = (
        _leading_to([tensor for tensor, is_meant in pairs if is_meant is side])
        for side in (True, False)
    )
    used = {id(weight) for layer in others for weight in layer.weights}
    known = {id(layer) for layer in others}
    return [
        layer
        for layer in meant
        if id(layer) not in known and not any(id(weight) in used for weight in layer.weights)
    ]


def _leading_to(tensors: list[Any]) -> list[Layer]:
    """The layers that symbolic tensors are computed with; of a model inside, its layers."""
    waiting, seen = list(tensors), set()
    found: dict[int, Layer] = {}
    while waiting:
        operation, node, place = waiting.pop()._keras_history
        if (id(operation), node, place) in seen:
            continue
        seen.add((id(operation), node, place))
        waiting += operation._inbound_nodes[node].input_tensors
        if is_graph(operation):
            waiting.append(operation.outputs[place])
        elif isinstance(operation, Layer):
            found[id(operation)] = operation
    return list(found.values())


def _turned(parents: dict[Any, list[Any]]) -> dict[Any, list[Any]]:
    children: dict[Any, list[Any]] = {}
    for operation, before in parents.items():
        for parent in before:
            children.setdefault(parent, []).append(operation)
    return children


def normalized_layers(model: keras.Model, layers: Iterable[Layer]) -> list[Layer]:
    """Of some linear layers, those whose outputs a batch normalization alone reads.

    Converters multiply the kernel of such a layer with what the normalization has for each channel, so
    that a factor of its own in each channel of the kernel costs nothing in a file.

    Args:
        model: A built model.
        layers: Layers of it. Of a model without a graph, none is known to be such.

    Returns:
        List of layers: `Dense`, convolutions and depthwise convolutions.
    """
    found = {id(layer) for layer, _ in _normalized(model)}
    return [layer for layer in layers if id(layer) in found]


def layers_before_normalizations(model: keras.Model) -> dict[int, Layer]:
    """By the identity of a batch normalization, the linear layer of which it alone reads the outputs.

    Normalizations that are called on several layers are not among them.
    """
    pairs = _normalized(model)
    calls = Counter(id(normalization) for _, normalization in pairs)
    return {
        id(normalization): layer
        for layer, normalization in pairs
        if calls[id(normalization)] == 1 and len(normalization._inbound_nodes) == 1
    }


def _normalized(model: keras.Model) -> list[tuple[Layer, Layer]]:
    """Linear layers and the batch normalizations that alone read what they compute."""
    found: dict[int, tuple[Layer, Layer]] = {}
    others: set[int] = set()
    for graph in filter(is_graph, layers_inside(model)):
        if (
            getattr(graph, "_functional", graph) is None
        ):  # a Sequential model that never saw a shape
            continue
        parents = graph_parents(graph)
        children = _turned(parents)
        outputs = {id(tensor._keras_history.operation) for tensor in graph.outputs}
        for operation in parents:
            after = [] if id(operation) in outputs else children.get(operation, [])
            if len(after) == 1 and _normalizes(after[0], operation):
                found[id(operation)] = operation, after[0]
            else:
                others.add(id(operation))
    return [pair for place, pair in found.items() if place not in others]


def _normalizes(operation: Any, before: Any) -> bool:
    """Whether an operation is a batch normalization of the output channels of a layer."""
    inner = before.layer if isinstance(before, KernelWrapper) else before
    # What a subclass computes is its own.
    if type(inner) not in FOLDED_INTO or type(operation) not in _NORMALIZATIONS:
        return False
    rank = len(before.output.shape)
    channels = 1 if getattr(inner, "data_format", None) == "channels_first" else rank - 1
    linear = inner.activation in (None, keras.activations.linear)
    return linear and operation.axis in (channels, channels - rank)


def may_get_negative_inputs(model: keras.Model, layers: Iterable[Layer]) -> list[Layer]:
    """Of some layers, those whose inputs are not known to be 0 or more.

    They are known where an activation such as ReLU makes them, with pooling, reshaping, sums and the
    like between. Nothing is known of the inputs of a model, and inside models without a graph.
    """
    known: set[int] = set()

    def visit(graph: keras.Model, inputs_are: bool) -> bool:
        """Notes the layers of a graph; returns whether its outputs are 0 or more."""
        parents, cache = graph_parents(graph), {}

        def positive(operation: Any) -> bool:
            if operation not in cache:
                cache[operation] = False  # there are no circles
                before = [positive(parent) for parent in parents.get(operation, [])]
                given = all(before) if before else inputs_are
                if before and given:
                    known.add(id(operation))
                cache[operation] = _is_positive(operation, given, visit)
            return cache[operation]

        outputs = [positive(tensor._keras_history.operation) for tensor in graph.outputs]
        return all(outputs)

    if is_graph(model):
        visit(model, False)
    return [layer for layer in layers if id(layer) not in known]


def _is_positive(operation: Any, given: bool, visit: Callable[[keras.Model, bool], bool]) -> bool:
    """Whether outputs are 0 or more, of an operation whose inputs are, or may not be."""
    name = type(operation).__name__.lower()
    if isinstance(operation, keras.layers.InputLayer):
        return given
    if is_graph(operation):
        return visit(operation, given)
    if isinstance(operation, keras.layers.ReLU):
        return not operation.negative_slope
    if isinstance(operation, Layer):
        activation = getattr(getattr(operation, "activation", None), "__name__", None)
        keeps = isinstance(operation, _KEEPING) and given
        return keeps or name == "softmax" or activation in _NOT_NEGATIVE
    return name in _OPERATIONS or (name in _KEEPING_OPERATIONS and given)
