"""Files compute in float32: what becomes of models that compute in half or double precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
from keras.layers import Layer

from keras_qareg.layers.keras_private import layers_inside

# The step from 1 to the next number of each other type; for float64 that of float32, and some rounding.
STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-19}


class _InFloat32(keras.DTypePolicy):
    """Computing in float32 with variables of the type that is its name, which are cast when used."""

    @property
    def compute_dtype(self) -> str:
        return "float32"


def widest_step(model: keras.Model) -> float:
    """The widest of the steps of the types that a model computes in; 0 if it is float32 alone."""
    return max((STEPS[layer.compute_dtype] for layer in _others(model)), default=0.0)


@contextlib.contextmanager
def in_float32(model: keras.Model) -> Iterator[None]:
    """Has the layers of a model compute in float32, with the same weights; a copy could not always.

    Args:
        model: A model, whose layers compute as before when this is left.
    """
    before = [(layer, layer.dtype_policy) for layer in _others(model)]
    try:
        for layer, policy in before:
            layer.dtype_policy = _InFloat32(policy.variable_dtype)
        yield
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy


def _others(model: keras.Model) -> list[Layer]:
    return [
        layer
        for layer in layers_inside(model)
        if layer.compute_dtype in STEPS and layer.dtype_policy.quantization_mode is None
    ]
