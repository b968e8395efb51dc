"""Inputs to try a model on, and how far two outputs are from each other."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.layers.keras_private import layers_inside

_BATCH = 4
# Sizes that are tried, in this order, for axes of any size.
SIZES = (16, 32, 64, 128, 256)
# Of low precision, an output is right within this many steps of the coarsest dtype in the model.
_STEPS = 32
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def low_precision(model: keras.Model) -> float:
    """How far outputs may be from each other because a model computes in half precision."""
    dtypes = {layer.compute_dtype for layer in layers_inside(model)}
    return _STEPS * max((_EPSILON.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of two outputs, relative to the largest magnitude."""
    if expected.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    expected, found = expected.astype("float64"), found.astype("float64")
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(found[finite]).all():
        return float("inf")
    distance = np.abs(expected - found)[finite].max(initial=0.0)
    scale = np.abs(expected)[finite].max(initial=0.0)
    return float(distance / scale) if scale else float(distance)


def arrays(outputs: Any) -> list[np.ndarray]:
    """Outputs of a model of any backend, or of Keras 2, as a list of arrays."""

    def array(value: Any) -> np.ndarray:
        if hasattr(value, "numpy") and "tensorflow" in type(value).__module__:
            value = value.numpy()
            return np.asarray(value if value.dtype.name != "bfloat16" else value.astype("float32"))
        if ops.is_tensor(value) and "bfloat16" in str(value.dtype):
            value = ops.cast(value, "float32")
        return np.asarray(ops.convert_to_numpy(value))

    return [array(value) for value in keras.tree.flatten(outputs)]


def reset(model: keras.Model) -> None:
    """States of recurrent layers as in a model that was just made."""
    for layer in layers_inside(model):
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()


def random_inputs(model: keras.Model, size: int) -> Any:
    """A batch for a model with a graph, as it is called; axes of any size get the one given."""
    generator = np.random.default_rng(0)
    words = _vocabulary(model)
    tokens = _fewest(model)
    masked = [
        layer.mask_value
        for layer in layers_inside(model)
        if isinstance(layer, keras.layers.Masking)
    ]

    def drawn(tensor: keras.KerasTensor) -> np.ndarray:
        batch, *inner = tensor.shape
        shape = (batch or _BATCH, *(axis or size for axis in inner))
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype == "string":
            return generator.choice(np.asarray(words, dtype=object), shape)
        if dtype == "bool":
            return generator.integers(0, 2, shape).astype(bool)
        if "int" in dtype or (tokens is not None and not _is_image(tensor)):
            return _ended(generator.integers(0, tokens or 100, shape).astype(dtype), 0)
        values = generator.normal(size=shape).astype("float32")
        return (_ended(values, masked[0]) if masked and len(shape) > 2 else values).astype(dtype)

    sequential = isinstance(model, keras.Sequential)
    return keras.tree.map_structure(drawn, model.inputs[0] if sequential else model.input)


def _ended(values: np.ndarray, filler: float) -> np.ndarray:
    """Sequences of different lengths, filled up with what masks leave out."""
    if values.ndim < 2:
        return values
    for place, row in enumerate(values):
        if place:
            row[len(row) - place * len(row) // (2 * len(values)) :] = filler
    return values


def _is_image(tensor: keras.KerasTensor) -> bool:
    return len(tensor.shape) > 2


def _fewest(model: keras.Model) -> int | None:
    """The size of the smallest table that inputs are looked up in."""
    sizes: list[int] = []
    for layer in layers_inside(model):
        if isinstance(layer, keras.layers.Embedding):
            sizes.append(layer.input_dim)
        elif isinstance(layer, keras.layers.CategoryEncoding):
            sizes.append(layer.num_tokens)
    return min(sizes, default=None)


def _vocabulary(model: keras.Model) -> list[str]:
    known = ["", "unheard of"]
    for layer in layers_inside(model):
        if isinstance(layer, keras.layers.StringLookup | keras.layers.TextVectorization):
            known += [str(word) for word in layer.get_vocabulary()]
    return known
