"""Private parts of Keras that this package cannot do without, all in one place.

Each function says what of Keras it relies on; `tests/layers/test_keras_private.py` fails where Keras
changes it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.layers import BatchNormalization, Layer


def children(layer: Layer) -> list[Layer]:
    """The layers directly inside a layer or model (`Layer._flatten_layers`)."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def layers_inside(layer: Layer) -> list[Layer]:
    """A layer or model and all layers inside, however deep (`Layer._flatten_layers`)."""
    return list(layer._flatten_layers())


def track_children(layer: Layer, tracked: list[Layer]) -> None:
    """Sets what layers are directly inside, and their order (`Layer._layers`).

    Keras goes on tracking a layer whose attribute was assigned anew, and puts the new one last.
    """
    layer._layers[:] = tracked


def attributes(layer: Layer) -> dict[str, Any]:
    """What the author of a layer keeps in its attributes, private ones too, by name.

    On PyTorch the layers among them are its `_modules`.
    """
    found = {**vars(layer), **vars(layer).get("_modules", {})}
    return {name: value for name, value in found.items() if name not in _names_of_keras()}


def flattened(value: Any) -> list[Any]:
    """What lists, tuples and dicts hold, however deep; of anything else, that alone.

    `keras.tree` takes the tuples of an attribute for single objects: TensorFlow wraps them.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flattened(item)]
    return [value]


def untracked(value: Any) -> Any:
    """A copy of lists and dicts, however deep: those of an attribute are tied to its layer."""
    if isinstance(value, dict):
        return {key: untracked(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [untracked(item) for item in value]
        return value.__class__(*items) if hasattr(value, "_fields") else tuple(items)
    return [untracked(item) for item in value] if isinstance(value, list) else value


def set_trainable_alone(layer: Layer, value: bool) -> None:
    """Sets whether a layer trains, and leaves the layers inside as they are (`Layer._trainable`)."""
    layer._trainable = value


def freeze(layer: Layer) -> None:
    """Freezes a layer with all that is inside, which may have been made after it was frozen itself.

    `layer.trainable = False` does nothing where that is so, as TensorFlow leaves out assignments of the
    same value.
    """
    for part in layers_inside(layer):
        set_trainable_alone(part, False)
    for weight in layer.weights:
        weight.trainable = False


@contextlib.contextmanager
def frozen(layers: list[Layer]) -> Iterator[None]:
    """Layers that do not train meanwhile; each layer and weight inside is then as it was."""
    inside = [part for layer in layers for part in layers_inside(layer)]
    before = [(part, part.trainable) for part in inside]
    weights = [(weight, weight.trainable) for layer in layers for weight in layer.variables]
    try:
        for layer in layers:
            freeze(layer)
        yield
    finally:
        for part, value in before:
            set_trainable_alone(part, value)
        for weight, value in weights:
            weight.trainable = value


@functools.lru_cache
def _names_of_keras() -> frozenset[str]:
    """The attributes that a trained model has whoever wrote it."""

    class Bare(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="bare")
            self.inner = keras.layers.Dense(1, kernel_initializer="zeros", name="inner")

        def call(self, inputs: Any) -> Any:
            return self.inner(inputs)

    bare = Bare()
    bare.compile("sgd", "mse")
    bare(keras.ops.zeros((1, 1)))
    graph = keras.Model(inputs := keras.Input((1,)), bare.inner(inputs))
    graphs = {*vars(graph), *vars(keras.Sequential([keras.Input((1,))])), "_functional"}
    # What `fit`, `evaluate` and `predict` leave behind, on any backend.
    used = {"history", "stop_evaluating", "stop_predicting", "_jax_state", "_torch_params"}
    # Methods that `models.saving` and `SharedWeights` put in the way of a class's: of no use to a copy.
    ours = {"get_config", "save_own_variables", "load_own_variables"}
    return frozenset({*vars(bare), *vars(Layer(name="bare")), *graphs, *used, *ours}) - {"inner"}


@contextlib.contextmanager
def unlocked(layer: Layer) -> Iterator[None]:
    """Lets a built layer get other layers in its attributes (`Layer._tracker`)."""
    was_locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if was_locked:
            layer._tracker.lock()


def is_graph(layer: Any) -> bool:
    """Whether `clone_model` knows the layers inside: Sequential and Functional models.

    A Functional model is one that has `_run_through_graph`: Keras has no public name for the class.
    """
    return isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph")


def take_call_signature(wrapper: Layer, layer: Layer) -> None:
    """Lets Keras bind masks, shapes and `training` of a wrapper as those of a layer.

    It looks for them by the names in `Layer._call_signature`.
    """
    wrapper._call_signature = inspect.signature(layer.call)


def uncompiled(model: keras.Model) -> keras.Model:
    """A view of a model, with the same layers and weights, that was never compiled.

    `clone_model` compiles a copy as `Model.compiled` says, and fails where a loss cannot be made from
    its name. The view shares all attributes but this one, so that the model itself is not touched.
    """
    view = object.__new__(type(model))
    vars(view).update(vars(model), compiled=False)
    return view


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """What a model was compiled with, and what was set since (`Model._compile_config`).

    `compile` alone would forget a learning rate or `run_eagerly` that was assigned later. The optimizer
    is the one that was passed: Keras may have put it into one that scales the loss.
    """
    optimizer, scales = model.optimizer, keras.optimizers.LossScaleOptimizer
    scaled = isinstance(optimizer, scales)
    given = model._compile_config.config
    if scaled and not isinstance(given["optimizer"], scales):
        optimizer = optimizer.inner_optimizer
    return {
        **given,
        "optimizer": optimizer,
        "run_eagerly": model.run_eagerly,
        "jit_compile": model.jit_compile,
        "steps_per_execution": model.steps_per_execution,
        "auto_scale_loss": scaled,
    }


def optimizer_like(optimizer: Any) -> Any:
    """A new optimizer of the same settings, with what its configuration leaves out.

    Those are what `exclude_from_weight_decay` was told, kept in `_exclude_from_weight_decay_pattern`
    and, as keys of weights, which a copy has not, in `_exclude_from_weight_decay`.

    Raises:
        ValueError: If single weights were excluded.
    """
    made = type(optimizer).from_config(optimizer.get_config())
    for part, copied in zip(optimizer_parts(optimizer), optimizer_parts(made), strict=True):
        copy_exclusions(part, copied)
    return made


def copy_exclusions(optimizer: Any, other: Any) -> None:
    """Tells another optimizer which weights do not decay, as this one was told."""
    if getattr(optimizer, "_exclude_from_weight_decay", None):
        raise ValueError(
            "weights were excluded from weight decay by `var_list`; `var_names` is copied"
        )
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    if pattern is not None:
        other.exclude_from_weight_decay(var_names=pattern.pattern.split("|"))


def optimizer_parts(optimizer: Any) -> list[Any]:
    """An optimizer, and those that it hands weights on to: one whose loss it scales, those of a map."""
    inside = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    return [optimizer, *(found for part in inside if part for found in optimizer_parts(part))]


def slots(optimizer: Any, weight: keras.Variable) -> list[keras.Variable]:
    """What an optimizer remembers of a weight in its shape: averages of its gradients, or of itself.

    An `Optimizer` keeps lists of variables in its attributes, in the order of `_trainable_variables`.
    """
    found = []
    for part in optimizer_parts(optimizer):
        own, trained = getattr(part, "__dict__", {}), getattr(part, "_trainable_variables", ())
        lists = [x for x in own.values() if isinstance(x, list) and len(x) == len(trained)]
        place = next((i for i, other in enumerate(trained) if other is weight), None)
        found += [its[place] for its in lists if place is not None]
    shape = tuple(weight.shape)
    slotted = [x for x in found if isinstance(x, keras.Variable) and x is not weight]
    return [slot for slot in slotted if tuple(slot.shape) == shape]


def outputs_struct(model: keras.Model) -> Any:
    """The outputs of a model in the structure that it gives them (`Functional._outputs_struct`).

    `None` where it does not know them.
    """
    graph = getattr(model, "_functional", None) or model
    return getattr(graph, "_outputs_struct", None)


def added_losses(model: keras.Model) -> Any:
    """The sum of penalties and of losses that layers added, as `fit` counts them: a scalar.

    `Trainer._aggregate_additional_loss` divides them by the number of replicas.
    """
    return sum(map(model._aggregate_additional_loss, model.losses), keras.ops.zeros(()))


def of_class(bare: keras.Model, model: keras.Model) -> keras.Model:
    """A Sequential or Functional model as one of the class of another, without calling its `__init__`.

    A subclass makes its own layers there; these are made already. `Operation.__new__` keeps the
    arguments of the constructor for `get_config`, which here are those of the other model.
    """
    kind: Any = type(model)
    made: keras.Model = kind.__new__(kind)
    if isinstance(bare, keras.Sequential):
        keras.Sequential.__init__(made, bare._layers, name=bare.name)
    else:
        type(bare).__init__(made, bare.input, bare.output, name=bare.name)
    made._auto_config = model._auto_config
    return made


def graph_parents(model: keras.Model) -> dict[Any, list[Any]]:
    """For each operation of a Sequential or Functional model, those that its inputs come from."""
    graph = getattr(model, "_functional", None) or model  # of a Sequential model
    inside = set(map(id, graph.operations))
    return {
        operation: [
            tensor._keras_history.operation
            for node in operation._inbound_nodes
            for tensor in node.input_tensors
            if id(tensor._keras_history.operation) in inside
        ]
        for operation in graph.operations
    }


def nodes(model: keras.Model) -> list[Any]:
    """The calls in a Sequential or Functional model, each after those that its inputs come from.

    Each has an `operation`, the `arguments` that it was called with, `input_tensors` and `outputs`
    (`Function._nodes_by_depth`).
    """
    graph = getattr(model, "_functional", None) or model  # of a Sequential model
    by_depth = graph._nodes_by_depth
    in_order = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in in_order if node.operation and not node.is_input]


def name_outputs(copied: keras.Model, model: keras.Model) -> None:
    """Lets losses and targets of a copy have the names that they have of a model (`output_names`).

    These are the names of its last operations, behind which the copy may have others.
    """
    if hasattr(model, "output_names"):
        copied.output_names = list(model.output_names)


def has_names_of_its_own(model: keras.Model) -> bool:
    """Whether the outputs of a model have other names than its last operations (`output_names`)."""
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    return getattr(model, "output_names", names) != names


def without(model: keras.Sequential, kind: type[Layer]) -> keras.Sequential:
    """A Sequential model of the layers of another but for those of a kind (`Sequential._layers`)."""
    kept = [layer for layer in model._layers if not isinstance(layer, kind)]
    return keras.Sequential(kept, name=model.name, trainable=model.trainable)


def name_apart(tensors: Any, taken: set[str]) -> None:
    """Renames the operations, layers apart, behind symbolic tensors where others have their names.

    Keras numbers operations by itself, and does not look at the names that a user gave to layers.
    """
    waiting, seen = keras.tree.flatten(tensors), set()
    while waiting:
        operation = waiting.pop()._keras_history.operation
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        waiting += [tensor for node in operation._inbound_nodes for tensor in node.input_tensors]
        if not isinstance(operation, Layer):
            number, name = 0, operation.name
            while operation.name in taken:
                number += 1
                operation.name = f"{name}_op{number}"
            taken.add(operation.name)


def replace_arguments(graph: keras.Model, change: Callable[[Any], Any]) -> None:
    """Changes what the operations of a graph are called with beside its tensors (`Node.arguments`)."""
    graph = getattr(graph, "_functional", None) or graph  # of a Sequential model
    for operation in getattr(graph, "operations", ()):
        for node in operation._inbound_nodes:
            given = node.arguments
            if any(isinstance(part, keras.Variable) for part in given._flat_arguments):
                given.args, given.kwargs = keras.tree.map_structure(
                    change, (given.args, given.kwargs)
                )
                given._flat_arguments = keras.tree.flatten((given.args, given.kwargs))


@contextlib.contextmanager
def normalizing_by_batches(layers: list[BatchNormalization]) -> Iterator[None]:
    """Lets layers normalize by each batch's own statistics and keep their mean, in inference too.

    The mean is over all calls, of which a layer may have several a batch. The instances' `call` is in
    the way of the class's (`Layer.__call__` calls `self.call`), and they are trainable, without which
    `BatchNormalization` learns nothing; flags of their weights stay. All of it is as it was afterwards.
    """
    settings = [(layer, layer.momentum, layer.trainable) for layer in layers]
    try:
        for layer in layers:
            set_trainable_alone(layer, True)
            layer.call = _measuring(layer)
        yield
    finally:
        for layer, momentum, trainable in settings:
            layer.momentum = momentum
            set_trainable_alone(layer, trainable)
            vars(layer).pop("call", None)


def _measuring(layer: BatchNormalization) -> Callable[..., Any]:
    call, seen = layer.call, 0

    def measuring(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        nonlocal seen
        size = inputs.shape[0] or 1
        layer.momentum = seen / (seen + size)
        seen += size
        return call(inputs, training=True, mask=mask)

    return measuring
