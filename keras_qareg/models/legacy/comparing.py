"""Outputs of a model of Keras 2 and of the one of Keras 3 that was made of it, on the same inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.layers.keras_private import layers_inside

_BATCH = 4
# Sizes that are tried, in this order, for axes of any size.
_SIZES = (16, 32, 64, 128, 256)
# Of low precision, an output is right within this many steps of the coarsest dtype in the model.
_STEPS = 32
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


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
    tolerance = max(tolerance, _low_precision(model))
    for number, (theirs, mine) in enumerate(zip(expected, found, strict=True)):
        if theirs.shape != mine.shape:
            raise ValueError(
                f"Expected output {number} of shape {theirs.shape}, as in Keras 2. Received: "
                f"{mine.shape}."
            )
        difference = _difference(theirs, mine)
        if not difference <= tolerance:
            raise ValueError(
                f"Expected output {number} as in Keras 2, within {tolerance:g} of its largest magnitude "
                f"on random inputs. Received: a difference of {difference:.2g}. If that is as it should "
                "be (random layers, say), pass a larger `tolerance`."
            )


def _low_precision(model: keras.Model) -> float:
    dtypes = {layer.compute_dtype for layer in layers_inside(model)}
    return _STEPS * max((_EPSILON.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
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


def _outputs(model: keras.Model, original: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    failure: Exception | None = None
    for size in _SIZES:
        inputs = _inputs(model, size)
        try:
            with _fresh_states(original):
                expected = original(_as_called(inputs, original), training=False)
        except Exception as error:
            failure = error  # too small for the layers, for one
            continue
        _reset(model)
        found = model(inputs, training=False)
        _reset(model)
        return _arrays(expected), _arrays(found)
    raise ValueError(
        f"Expected '{original.name}' to take random inputs of its own shapes. Received: {failure}"
    )


def _arrays(outputs: Any) -> list[np.ndarray]:
    def array(value: Any) -> np.ndarray:
        if hasattr(value, "numpy") and "tensorflow" in type(value).__module__:
            value = value.numpy()
            return np.asarray(value if value.dtype.name != "bfloat16" else value.astype("float32"))
        if ops.is_tensor(value) and "bfloat16" in str(value.dtype):
            value = ops.cast(value, "float32")
        return np.asarray(ops.convert_to_numpy(value))

    return [array(value) for value in keras.tree.flatten(outputs)]


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


def _inputs(model: keras.Model, size: int) -> Any:
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
