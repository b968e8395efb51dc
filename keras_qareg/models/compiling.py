"""Compiling a copy of a model as the model is compiled."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import keras

from keras_qareg.layers.keras_private import compile_arguments, optimizer_like


def compile_like(copied: keras.Model, model: keras.Model, **changes: Any) -> None:
    """Compiles a copy with all that its model was compiled with.

    The optimizer and the metrics are copies, with the learning rate of now; losses, functions and what
    cannot be copied from its configuration are the model's own.

    Args:
        copied: The copy; it stays uncompiled, with a warning, where the class of the model has a
            `compile` with arguments that Keras does not know, or an optimizer that cannot be copied.
        model: A compiled model.
        **changes: Arguments of `compile` that are others.
    """
    try:
        arguments = {**compile_arguments(model), **changes}
        _check_signature(type(copied), arguments)
        optimizer = arguments.pop("optimizer")
        if "optimizer" not in changes:
            optimizer = optimizer_like(optimizer)
        copied.compile(
            optimizer,
            **{name: keras.tree.map_structure(_copied, value) for name, value in arguments.items()},
        )
        if copied.built:
            copied.optimizer.build(copied.trainable_variables)
    except (TypeError, ValueError, NotImplementedError) as error:
        warnings.warn(
            f"The new model is not compiled, because the loss, metrics or optimizer of "
            f"'{model.name}' could not be copied ({error}). Call `compile()` on it.",
            stacklevel=4,
        )


def _check_signature(kind: type[keras.Model], arguments: dict[str, Any]) -> None:
    known = set(inspect.signature(keras.Model.compile).parameters)
    own = inspect.signature(kind.compile).parameters.values()
    foreign = [p.name for p in own if p.name not in known and p.kind is not p.VAR_KEYWORD]
    if foreign:
        raise TypeError(f"`{kind.__name__}.compile` has arguments of its own: {foreign}")


def _copied(part: Any) -> Any:
    """A metric of its own for the copy, where its configuration says enough.

    Losses keep nothing of a model, and the configuration of one may not say all (Keras's `Huber`).
    """
    if not isinstance(part, keras.metrics.Metric):
        return part
    try:
        return type(part).from_config(part.get_config())
    except (TypeError, ValueError, NotImplementedError):
        return part
