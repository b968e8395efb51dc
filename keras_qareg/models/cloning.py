"""Rebuilding a model with some of its layers changed: the mechanics below the transforms.

Keras's `clone_model` rebuilds Sequential and Functional models, nested ones too, but copies no
weights and never enters a subclassed model or a layer made of layers. Those are made again from
their configuration, and the layers in their attributes are then replaced.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
from keras import ops
from keras.layers import Layer

from keras_qareg.layers import KernelWrapper
from keras_qareg.layers.keras_private import (
    attributes,
    children,
    flattened,
    is_graph,
    layers_inside,
    track_children,
    unlocked,
    untracked,
)
from keras_qareg.models.accounting import (
    account_for,
    check_lambdas,
    copy_contents,
    copy_resized,
    retie,
)
from keras_qareg.models.compiling import compile_like
from keras_qareg.models.graphs import copy_graph
from keras_qareg.models.saving import copying, guard_configs
from keras_qareg.models.walking import entered

# For a layer, the function that makes its successor; None for an ordinary copy.
Change = Callable[[Layer], Callable[[Layer], Layer] | None]

_PACKAGE = "keras_qareg>"


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

    Raises:
        ValueError: If the layer cannot be made again from its configuration.
    """
    config = config_of(layer) if config is None else config  # `from_config` may take it apart
    config = _without_regularizers(config) if clean else untracked(config)
    if isinstance(layer, keras.layers.Lambda):
        # A Python lambda of a model in memory is no more foreign than the model itself.
        serialized = {"class_name": "Lambda", "module": "keras.layers", "config": config}
        return keras.saving.deserialize_keras_object(serialized, safe_mode=False)
    for name, value in config.items():  # a function that Keras would not find by its name
        function = getattr(layer, name, None)
        if inspect.isfunction(function) and _is_lost(function, value):
            config[name] = function
    try:
        made: Layer = (into or type(layer)).from_config(config)
    except Exception as error:  # whatever the code of its author raises
        raise _no_copy(layer, error) from error
    if made.trainable != layer.trainable:
        made.trainable = layer.trainable
    _rename(layer, made)
    return made


def _is_lost(function: Any, value: Any) -> bool:
    """Whether a configuration does not lead to a function, or by its name to another."""
    if not isinstance(value, str):
        return True
    try:
        return value == function.__name__ and keras.activations.get(value) is not function
    except ValueError:  # none of Keras's: who reads the name knows
        return False


def _rename(layer: Layer, made: Layer) -> None:
    """Gives a copy and what is inside the names that they had: some classes add to these each time."""
    pairs = list(zip(layers_inside(layer), layers_inside(made), strict=False))
    if all(type(old) is type(new) for old, new in pairs[1:]):
        for old, new in pairs:
            if new.name != old.name:
                new.name = old.name


def config_of(layer: Layer) -> dict[str, Any]:
    """The configuration of a layer; raises a `ValueError` in words where it has none."""
    try:
        return dict(layer.get_config())
    except Exception as error:  # whatever the code of its author raises
        raise _no_copy(layer, error) from error


def _no_copy(layer: Layer, error: Exception) -> ValueError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in lines if line.startswith("Exception encountered: ")), None)
    said = (cause or (lines or [""])[0]).removeprefix("Exception encountered: ").rstrip(".")
    advice = (
        "Give the class a `get_config()` with all arguments of its `__init__`, which takes `**kwargs` "
        "as well."
    )
    ours = type(layer).__module__.startswith("keras_qareg.")
    return ValueError(
        f"Expected '{layer.name}' ({type(layer).__name__}) to be made again from its configuration. "
        f"Received: {type(error).__name__}: {said}.{'' if ours else f' {advice}'}"
    )


def own_regularizer(layer: Layer) -> Any:
    """The regularizer of this package that the kernels of a layer have in its configuration, or None.

    Raises:
        ValueError: If kernels have several that differ.
    """
    if isinstance(layer, KernelWrapper):
        return None
    found = [its for key, its in _regularizer_configs(config_of(layer)) if not _is_of_vector(key)]
    made = [keras.saving.deserialize_keras_object(config) for config in found]
    if any(other.get_config() != made[0].get_config() for other in made):
        raise ValueError(
            f"Expected one regularizer of keras_qareg for all kernels of layer '{layer.name}'. "
            f"Received: {made}. Make the model with one, and give kernels other `levels` by their paths."
        )
    return made[0] if made else None


def _is_of_vector(key: str) -> bool:
    """Whether a setting is of a bias and its like, or of outputs, and not of a kernel."""
    return key.startswith(("bias_", "beta_", "gamma_", "activity_"))


def _is_ours(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("registered_name")).startswith(_PACKAGE)


def _regularizer_configs(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    values = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in values:
        if str(key).endswith("regularizer") and _is_ours(value):
            yield str(key), value
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


def clone(
    model: keras.Model,
    change: Change,
    *,
    deep: bool = False,
    thaw: bool = False,
    graph: Callable[[Callable[[Any], Layer]], keras.Model] | None = None,
    replaced: Iterable[Layer] = (),
    resized: Mapping[int, Mapping[str, Any]] | None = None,
) -> keras.Model:
    """A copy of a model, with its weights, in which some layers have a successor.

    Args:
        model: A built model; it stays as it is.
        change: For each leaf layer, the function that makes its successor, or None.
        deep: Whether layers that are made of layers are entered, as in `walking.entered`.
        thaw: Whether weights that were frozen one by one train again.
        graph: Makes the new model, from a function that copies a layer or operation of the old one;
            `None` (default): of the same graph and class.
        replaced: Layers that others stand for in that graph: they have no copy.
        resized: The weights of copies that have other shapes, or one more: arrays by name, for layers
            by their identities.

    Returns:
        A built model with the weights and states of `model`, compiled like it where it was compiled.

    Raises:
        ValueError: If something cannot be copied: it says what, why, and what to do.
    """
    check_lambdas(model)
    copies = _Copies(model, change, deep)
    with copying():
        copied = copies.of(model) if graph is None else copies.put_into(graph, model)
        _complete(copied, model)
    resized = resized or {}
    counterparts = [
        found
        for old, new in copies.pairs
        for found in (
            copy_resized(old, new, resized[id(old)])
            if id(old) in resized
            else copy_contents(old, new, id(old) in copies.inside, thaw)
        )
    ]
    account_for(model, copied, counterparts, replaced)
    retie(model, copied, counterparts)
    _rename_inputs(copied, model)
    guard_configs(copied)
    for old, new in copies.compiled:
        compile_like(new, old)
    return copied


class _Copies:
    """The copies of the layers of a model, each made once, and of which layer each is one.

    Attributes:
        inside: The identities of the layers that are entered.
        pairs: Layers that hold weights, and their copies, without weights yet.
        compiled: Compiled models, and their copies, not compiled yet.
    """

    def __init__(self, model: keras.Model, change: Change, deep: bool):
        self.change, self.inside = change, entered(model, deep)
        self.pairs: list[tuple[Layer, Layer]] = []
        self.compiled: list[tuple[keras.Model, keras.Model]] = []
        self._made: dict[int, Layer] = {}

    def of(self, layer: Layer, spare: Layer | None = None) -> Layer:
        """The copy of a layer of any kind; one that stands in several places stays one.

        `spare` is what the copy of the layer around it has in its place.
        """
        if id(layer) not in self._made:
            graph = is_graph(layer)
            copied = (
                copy_graph(layer, self.of, self._made) if graph else self._of_leaf(layer, spare)
            )
            self._made[id(layer)] = copied
            if getattr(layer, "compiled", False):
                self.compiled.append((layer, copied))
        return self._made[id(layer)]

    def put_into(
        self, graph: Callable[[Callable[[Any], Layer]], keras.Model], model: keras.Model
    ) -> keras.Model:
        """The model that is made of the copies of layers, where it is another graph than theirs."""
        copied = graph(self.of)
        if model.compiled:
            self.compiled.append((model, copied))
        return copied

    def _of_leaf(self, layer: Layer, spare: Layer | None) -> Layer:
        if not isinstance(layer, Layer):  # an operation such as keras.ops.relu
            return type(layer).from_config(layer.get_config())
        make = None if id(layer) in self.inside else self.change(layer)
        successor = make(layer) if make else _made_again(layer, spare)
        self.pairs.append((layer, successor))
        if id(layer) in self.inside:
            _fill(layer, successor, self.of)
        return successor


def _made_again(layer: Layer, spare: Layer | None) -> Layer:
    """A copy from its configuration; where it has none, what the copy around it has in its place."""
    try:
        return fresh(layer)
    except ValueError:
        if type(spare) is not type(layer):
            raise
        return spare


def _fill(old: Layer, new: Layer, copy: Callable[[Layer, Layer], Layer]) -> None:
    """Puts copies of the layers inside `old` into `new`, which makes its own when it is built, maybe."""
    made_later = _layers_made_later(old, new)
    if made_later:
        _build_like(new, old)
    with unlocked(new):
        _replace_children(old, new, copy)
    if made_later and not all(part.built for part in layers_inside(new)):
        _build_like(new, old)  # which is built, and so builds none of its new parts unless called


def _complete(copied: keras.Model, model: keras.Model) -> None:
    """Builds a copy that is not built yet."""
    # A graph was built as it was made, whatever its preprocessing layers say of themselves.
    built = all(layer.built for layer in layers_inside(copied))
    if not built and not (is_graph(copied) and copied.built):
        _build_like(copied, model)


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
    counts = [
        sum(isinstance(part, Layer) for part in flattened(attributes(layer)))
        for layer in (old, new)
    ]
    return counts[0] > counts[1]


def _check_alike(layer: Layer, before: Iterable[Any], after: Iterable[Any]) -> None:
    """Raises a `ValueError` where a list or dict of layers has other places in the copy."""
    places, others = list(before), list(after)
    if set(places) != set(others):
        raise ValueError(
            f"Expected '{layer.name}' ({type(layer).__name__}) to have its lists and dicts of layers "
            f"again when it is made from its `get_config()`. Received: places {others} of {places}. Add "
            "all layers in `__init__` or `build()`."
        )


def _replace_children(old: Layer, new: Layer, copy: Callable[[Layer, Layer], Layer]) -> None:
    """Puts copies of the layers in the attributes of `old` where `new` has its own."""
    tracked, replaced = children(new), {}

    def swap(before: Any, after: Any) -> Any:
        """`after` with its layers replaced; the very same object where it holds none."""
        if isinstance(before, Layer) and isinstance(after, Layer):
            replaced[id(after)] = copy(before, after)
            return replaced[id(after)]
        if not any(isinstance(part, Layer) for part in flattened(before)):
            return after
        if isinstance(before, list | tuple) and isinstance(after, list | tuple):
            _check_alike(old, range(len(before)), range(len(after)))
            swapped = [swap(*pair) for pair in zip(before, after, strict=True)]
            if all(map(operator.is_, swapped, after)):
                return after
            if isinstance(after, list):
                return swapped
            named = hasattr(after, "_fields")
            return after.__class__(*swapped) if named else tuple(swapped)
        if isinstance(before, dict) and isinstance(after, dict):
            _check_alike(old, before, after)
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
