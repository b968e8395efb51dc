"""Outputs of a model of Keras 2 and of the one of Keras 3 that was made of it, on the same inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.trial import SIZES, arrays_of, difference, low_precision, trial_inputs


def check_same(model: keras.Model, original: Any, tolerance: float) -> None:
    """Raises where a model computes something else than the one that it was made of.

    Args:
        model: A model of Keras 3.
        original: The one of tf_keras; its states are as they were afterwards.
        tolerance: The largest difference, relative to the largest magnitude of an output.

    Raises:
        ValueError: If an output differs by more, or no inputs of the shapes of the model work.
    """
    expected, found = _outputs(model, original)
    tolerance = max(tolerance, low_precision(model))
    for number, (theirs, mine) in enumerate(zip(expected, found, strict=True)):
        if theirs.shape != mine.shape:
            raise ValueError(
                f"Expected output {number} of shape {theirs.shape}, as in Keras 2. Received: "
                f"{mine.shape}."
            )
        apart = difference(theirs, mine)
        if not apart <= tolerance:
            raise ValueError(
                f"Expected output {number} as in Keras 2, within {tolerance:g} of its largest magnitude "
                f"on random inputs. Received: a difference of {apart:.2g}. If that is as it should "
                "be (random layers, say), pass a larger `tolerance`."
            )


def _outputs(model: keras.Model, original: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    failure: Exception | None = None
    for size in SIZES:
        inputs = trial_inputs(model, size)
        try:
            with _fresh_states(original):
                expected = original(_as_called(inputs, original), training=False)
        except Exception as error:
            failure = error  # too small for the layers, for one
            continue
        _reset(model)
        found = model(inputs, training=False)
        _reset(model)
        return arrays_of(expected), arrays_of(found)
    raise ValueError(
        f"Expected '{original.name}' to take random inputs of its own shapes. Received: {failure}"
    )


def _as_called(inputs: Any, original: Any) -> Any:
    """Inputs as tensors of TensorFlow, in the structure that Keras 2 was given them in."""
    flat = keras.tree.flatten(inputs)
    if isinstance(original.input, dict):
        return dict(zip(sorted(original.input), flat, strict=True))
    return flat if len(flat) > 1 else flat[0]


@contextlib.contextmanager
def _fresh_states(original: Any) -> Iterator[None]:
    stateful = [layer for layer in original.submodules if getattr(layer, "stateful", False)]
    # Weights too: the wrappers of TFMOT write into theirs whenever they are called.
    held = [part for layer in stateful for part in _states(layer)]
    held += [weight for weight in original.weights if hasattr(weight, "assign")]
    before = [state.numpy() for state in held]
    for layer in stateful:
        if hasattr(layer, "reset_states") and _states(layer):
            layer.reset_states()
    try:
        yield
    finally:
        for state, value in zip(held, before, strict=True):
            if not np.array_equal(state.numpy(), value):
                state.assign(value)


def _states(layer: Any) -> list[Any]:
    states = getattr(layer, "states", None) or []
    return [state for state in keras.tree.flatten(states) if hasattr(state, "assign")]


def _reset(model: keras.Model) -> None:
    for layer in layers_inside(model):
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()
