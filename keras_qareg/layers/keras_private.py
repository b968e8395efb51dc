"""Private parts of Keras that this package cannot do without, all in one place.

Each function says what of Keras it relies on; `tests/layers/test_keras_private.py` fails where Keras
changes it.
"""

from __future__ import annotations

import contextlib
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
    """The attributes of a layer by name; on PyTorch the layers among them are its `_modules`."""
    return {**vars(layer), **vars(layer).get("_modules", {})}


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


@contextlib.contextmanager
def normalizing_by_batches(layers: list[BatchNormalization]) -> Iterator[None]:
    """Lets layers normalize by each batch's own statistics and learn these, whatever `training` says.

    The instances' `call` is in the way of the class's (`Layer.__call__` calls `self.call`), and they are
    trainable, without which `BatchNormalization` learns nothing. `momentum` may be set meanwhile. All of
    it is as it was afterwards.
    """
    settings = [(layer, layer.momentum, layer.trainable) for layer in layers]
    try:
        for layer in layers:
            layer.trainable, layer.call = True, _as_in_training(layer.call)
        yield
    finally:
        for layer, momentum, trainable in settings:
            layer.momentum, layer.trainable = momentum, trainable
            vars(layer).pop("call", None)


def _as_in_training(call: Callable[..., Any]) -> Callable[..., Any]:
    def measuring(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return call(inputs, training=True, mask=mask)

    return measuring
