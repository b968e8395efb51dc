"""The smaller model: without the channels that do nothing, and compared with the old one."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from typing import Any

import keras
import numpy as np
from keras.layers import Layer

from keras_qareg.data import samples
from keras_qareg.layers.keras_private import children, is_graph, layers_inside, nodes
from keras_qareg.models.cloning import clone, config_of, fresh
from keras_qareg.models.selection import check_built, check_plain
from keras_qareg.models.shrinking.rules import Mixing, Rule, rule_of, weights_of
from keras_qareg.models.shrinking.tracing import Call, traced
from keras_qareg.models.trial import SIZES, difference, low_precision, outputs_of, trial_inputs

# The share in an output below which a channel is nothing: far below the rounding of float32.
_NOTHING = 2.0**-40
_TOLERANCE = 1e-5
_EXAMPLES = 64


def shrink(model: keras.Model, data: Any = None) -> keras.Model:
    """The model without the channels that do nothing: smaller layers, the same outputs.

    A channel does nothing where the layers after it never read it, or where it is the same number
    everywhere and for all inputs, which then goes into the biases (or means of normalization) of the
    layers that read it. Pruning whole channels leaves such, and so does weight decay: behind a batch
    normalization it takes weights that no loss needs to 1e-30. How much weights matter is counted along
    the whole way from inputs to outputs, so that small ones that a normalization makes large again stay.

    Followed are dense layers, convolutions (transposed, depthwise and separable too), batch
    normalization, elementwise activations, pooling, padding, dropout, `Flatten`, `Reshape` that keeps
    channels last, `Add` and `Concatenate`. Channels that anything else reads or makes stay: inputs and
    outputs of the model and of models inside it, which are made smaller each for itself; channels that
    are not on the last axis; grouped convolutions; layers that are called several times. A constant
    that is not 0 stays where a convolution pads its inputs with zeros, because there it makes a pattern
    at the borders, before dropout, because in training that makes others of it, and before a layer with
    a `bias_constraint`. A warning says what stayed for such reasons.

    Args:
        model: A built, plain model. It stays as it is. Shrink before weights are shared or trained under
            a regularizer of this package: smaller kernels have better tables.
        data: Inputs to compare both models on, in any form that `fit` takes, of which the first 64
            count. `None` (default): random ones. Pass some where inputs are large and nothing
            normalizes them (times in nanoseconds, say): how much a channel does is counted for inputs
            between -1 and 1, and a difference that only others show is not seen.

    Returns:
        A new model of the same layers, compiled like `model` if that was. Each layer has one output
        channel at least.

    Raises:
        ValueError: If the model is unbuilt or has quantized layers, something cannot be copied, or an
            output is not the same within 1e-5 of its largest magnitude.

    Example:

    >>> model = keras.Sequential([keras.Input((16,))])
    >>> model.add(keras.layers.Dense(8, activation="relu"))
    >>> model.add(keras.layers.Dense(4))
    >>> live = [1.0] * 6 + [0.0] * 2  # two units do not look at their inputs
    >>> model.layers[0].set_weights([np.ones((16, 8)) * live, np.zeros(8)])
    >>> [layer.units for layer in shrink(model).layers]
    [6, 4]

    See also: https://keras-qareg.github.io/keras-qareg/method.html#channels-that-do-nothing
    """
    check_built(model)
    check_plain(model)
    inputs, expected = _outputs(model, data)
    away = 0.0
    for least in (_NOTHING, 0.0):
        plan = _Plan(model, least)
        made = clone(model, plan.change, resized=plan.weights)
        found = outputs_of(made, inputs)
        away = max((difference(*pair) for pair in zip(expected, found, strict=True)), default=0.0)
        if away <= max(_TOLERANCE, low_precision(model)):
            plan.warn()
            return made
    raise ValueError(
        f"Expected outputs of '{model.name}' within {_TOLERANCE:g} of their largest magnitude without "
        f"the channels that do nothing. Received: a difference of {away:.2g}, as where numbers are so "
        "large that float32 rounds others away. Pass inputs as in training (`data`)."
    )


def _outputs(model: keras.Model, data: Any) -> tuple[Any, list[np.ndarray]]:
    """A batch of inputs, and what the model makes of it."""
    if data is not None:
        given = [samples(data, model, count=_EXAMPLES)]
    elif is_graph(model) and getattr(model, "_functional", model) is not None:
        given = [functools.partial(trial_inputs, model, size) for size in SIZES]
    else:
        raise ValueError(
            "Expected `data` with a model whose inputs are unknown, to compare the smaller one on. "
            f"Received: '{model.name}' ({type(model).__name__}) and data=None"
        )
    failure: Exception | None = None
    for inputs in given:
        inputs = inputs() if callable(inputs) else inputs
        try:
            return inputs, outputs_of(model, inputs)
        except Exception as error:
            failure = error  # too small for the layers, for one
    raise ValueError(
        f"Expected '{model.name}' to take random inputs of its own shapes. Received: {failure}. Pass "
        "inputs (`data`)."
    )


class _Plan:
    """What becomes of the layers of a model.

    Args:
        model: The model.
        least: The share in an output below which a channel is nothing.

    Attributes:
        weights: The weights by name of each layer that changes, by its identity.
    """

    def __init__(self, model: keras.Model, least: float):
        self.weights: dict[int, dict[str, np.ndarray]] = {}
        self._configs: dict[int, dict[str, Any]] = {}
        self._left: list[str] = []
        graphs = _graphs(model)
        calls = Counter(id(node.operation) for graph in graphs for node in nodes(graph))
        elsewhere = _held_elsewhere(model, graphs) | _read_by_operations(graphs)
        single = {identity for identity, count in calls.items() if count == 1} - elsewhere
        for graph in graphs:
            self._follow(graph, single, least)
        followed = {id(graph) for graph in graphs}
        self._left += [
            f"'{part.name}' ({type(part).__name__}), whose layers are not followed"
            for part in layers_inside(model)
            if isinstance(part, keras.Model) and id(part) not in followed
        ]

    def change(self, layer: Layer) -> Any:
        """Makes the smaller layer, for `clone`; `None` where its configuration stays."""
        config = self._configs.get(id(layer))
        return config and (lambda layer: fresh(layer, config={**config_of(layer), **config}))

    def warn(self) -> None:
        """Says what could have been removed, and was not."""
        if self._left:
            warnings.warn(
                "Left as they are, because what reads them is not followed, adds others to them, pads a "
                f"constant that is not 0, or has a `bias_constraint`: {'; '.join(self._left)}.",
                stacklevel=3,
            )

    def _follow(self, graph: keras.Model, single: set[int], least: float) -> None:
        def rule(node: Any) -> Rule | None:
            found = rule_of(node)
            own = found is not None and (found.axes or found.settings)
            return None if own and id(node.operation) not in single else found

        calls = traced(graph, rule, least)
        for call in calls:
            if call.rule is not None and (call.rule.axes or call.rule.settings):
                self._resize(call, call.rule)
        for call in calls:
            if call.rule is not None and isinstance(call.rule.does, Mixing):
                self._absorb(calls, call)
                self._note(call)

    def _resize(self, call: Call, rule: Rule) -> None:
        """Notes the weights and the configuration of the layer of a call, where they change."""
        (given, *_), (out,) = call.inputs, call.outputs
        if not (given.removed.any() or out.removed.any()):
            return
        between = given.kept[:, None] * rule.between + np.arange(rule.between)
        kept = {"in": given.kept, "out": out.kept, "between": between.reshape(-1)}
        made = weights_of(call.operation)
        for name, axes in rule.axes.items():
            for axis, counts in enumerate(axes if name in made else ()):
                if counts is not None:
                    made[name] = made[name].take(kept[counts], axis=axis)
        self.weights[id(call.operation)] = made
        config: dict[str, Any] = {name: len(out.kept) for name in rule.settings}
        config |= dict.fromkeys(_arrays_to_start_from(call.operation), "zeros")
        if "target_shape" in config:
            shape = call.operation.target_shape
            config["target_shape"] = (*shape[:-1], min(shape[-1], len(out.kept)))
        if config:
            self._configs[id(call.operation)] = config

    def _absorb(self, calls: list[Call], call: Call) -> None:
        """Adds what removed constants did to the outputs of a call that reads them."""
        (given,), (out,) = call.inputs, call.outputs
        does: Any = call.rule and call.rule.does
        gone = given.removed
        added = (given.centre[gone] @ does.sums[gone])[out.kept]
        if not added.any():
            return
        layer, weights = call.operation, self.weights[id(call.operation)]
        behind = _normalization_behind(calls, call)
        if "bias" in weights:
            weights["bias"] = (weights["bias"] + added).astype(weights["bias"].dtype)
        elif behind is not None:
            # In training too it makes no difference: there a constant is no part of what is normalized.
            found = self.weights.setdefault(id(behind), weights_of(behind))
            mean = found["moving_mean"]
            found["moving_mean"] = (mean - added).astype(mean.dtype)
        else:
            # Penalties and constraints of a bias that the layer had not would become real.
            changes = {"use_bias": True, "bias_regularizer": None, "bias_constraint": None}
            self._configs.setdefault(id(layer), {}).update(changes)
            weights["bias"] = added.astype(weights[next(iter(weights))].dtype)

    def _note(self, call: Call) -> None:
        (out,) = call.outputs
        count = int((out.idle & ~out.removed).sum())
        if count and not out.ends and len(out.kept) > 1:
            channels = f"{count} channel" if count == 1 else f"{count} channels"
            self._left.append(f"{channels} of '{call.operation.name}'")


def _graphs(model: keras.Model) -> list[keras.Model]:
    """The graphs in a model whose layers may change: those that are in no layer or class of their own.

    A file says of these what layers they are made of; of others their code does.
    """
    found: dict[int, keras.Model] = {}
    waiting = [model]
    while waiting:
        graph = waiting.pop()
        if id(graph) in found or not is_graph(graph):
            continue
        if getattr(graph, "_functional", graph) is None or "layers" not in config_of(graph):
            continue
        found[id(graph)] = graph
        waiting += [node.operation for node in nodes(graph)]
    return list(found.values())


def _held_elsewhere(model: keras.Model, graphs: list[keras.Model]) -> set[int]:
    """The identities of layers that something else than the graphs which are followed has too."""
    every, followed = (
        Counter(id(child) for holder in holders for child in children(holder))
        for holders in (layers_inside(model), graphs)
    )
    return {identity for identity, count in every.items() if count > followed[identity]}


def _read_by_operations(graphs: list[keras.Model]) -> set[int]:
    """The identities of layers whose weights an operation of a graph reads."""
    read = {
        id(part)
        for graph in graphs
        for node in nodes(graph)
        for part in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if isinstance(part, keras.Variable)
    }
    return {
        id(layer)
        for graph in graphs
        for layer in layers_inside(graph)
        if any(id(weight) in read for weight in layer.weights)
    }


def _arrays_to_start_from(layer: Layer) -> list[str]:
    """The initializers of a layer that are arrays, which have the old shape; the weights are known."""
    names = [name for name in config_of(layer) if name.endswith("_initializer")]
    values = {name: getattr(getattr(layer, name, None), "value", 0.0) for name in names}
    return [name for name, value in values.items() if np.ndim(value)]


def _normalization_behind(calls: list[Call], call: Call) -> Layer | None:
    """The batch normalization that alone reads what a linear layer computes."""
    (out,) = call.outputs
    readers = [other for other in calls if any(given is out for given in other.inputs)]
    linear = call.operation.activation in (None, keras.activations.linear)
    only = readers[0].operation if len(readers) == 1 and not out.held else None
    known = isinstance(only, keras.layers.BatchNormalization) and readers[0].rule is not None
    return only if linear and known else None
