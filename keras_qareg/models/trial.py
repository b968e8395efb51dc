"""Trying models: random inputs of their shapes, and how far apart two outputs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.accounting import states_of

_BATCH = 4
# Sizes that are tried, in this order, for axes of any size.
SIZES = (16, 32, 64, 128, 256)
# Of low precision, an output is right within this many steps of the coarsest dtype in the model.
_STEPS = 32
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def trial_inputs(model: keras.Model, size: int) -> Any:
    """Random inputs of a model, in the structure that it is called with.

    Texts are words that its layers know, whole numbers are in their tables, and sequences end before
    what masks leave out.

    Args:
        model: A built model.
        size: What axes of any size get.

    Raises:
        ValueError: If the model does not know the shapes of its inputs.
    """
    generator = np.random.default_rng(0)
    words = _vocabulary(model)
    tokens = fewest(model)
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

    return keras.tree.map_structure(drawn, _inputs(model))


def outputs_of(
    model: keras.Model, inputs: Any, states: Sequence[Any] | None = None
) -> list[np.ndarray]:
    """The outputs of a model, in inference; nothing in it changes.

    Args:
        model: A built model.
        inputs: What it is called with.
        states: The values of `states_inside`; `None`: what they are.
    """
    return arrays_of(_called(model, inputs, states)[0])


def is_random(model: keras.Model, inputs: Any) -> bool:
    """Whether a model that is called again, in the state that a call leaves, has other outputs."""
    first, after = _called(model, inputs, None)
    again, _ = _called(model, inputs, after)
    return any(difference(*pair) for pair in zip(arrays_of(first), arrays_of(again), strict=True))


def states_inside(model: keras.Model) -> list[keras.Variable]:
    """Variables of a model that are no weights: states of recurrent layers, and seeds."""
    weights = {id(weight) for weight in model.weights}
    found = [*model.variables, *(v for layer in layers_inside(model) for v in states_of(layer))]
    return list({id(v): v for v in found if id(v) not in weights}.values())


def _called(model: keras.Model, inputs: Any, states: Sequence[Any] | None) -> tuple[Any, list[Any]]:
    """Outputs, and what states are afterwards."""
    variables = states_inside(model)
    given = [] if states is None else list(zip(variables, states, strict=True))
    with keras.StatelessScope(state_mapping=given) as scope:
        outputs = model(inputs, training=False)
    after = [scope.get_current_value(variable) for variable in variables]
    pairs = zip(variables, after, strict=True)
    return outputs, [variable.value if value is None else value for variable, value in pairs]


def arrays_of(outputs: Any) -> list[np.ndarray]:
    """Outputs as arrays; those of bfloat16 as float32."""

    def array(value: Any) -> np.ndarray:
        if hasattr(value, "numpy") and "tensorflow" in type(value).__module__:
            value = value.numpy()
            return np.asarray(value if value.dtype.name != "bfloat16" else value.astype("float32"))
        if ops.is_tensor(value) and "bfloat16" in str(value.dtype):
            value = ops.cast(value, "float32")
        return np.asarray(ops.convert_to_numpy(value))

    return [array(value) for value in keras.tree.flatten(outputs)]


def low_precision(model: keras.Model) -> float:
    """How far outputs may be apart, relative to the largest, where layers compute in half precision."""
    dtypes = {layer.compute_dtype for layer in layers_inside(model)}
    return _STEPS * max((_EPSILON.get(dtype, 0.0) for dtype in dtypes), default=0.0)


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of two outputs, relative to the largest magnitude that is expected."""
    if expected.shape != found.shape:
        return float("inf")
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


def _inputs(model: keras.Model) -> Any:
    """A tensor for each input, of a subclassed model as it was first called."""
    if getattr(model, "inputs", None):
        return model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            "Expected a model that knows the shapes of its inputs. Received: model "
            f"'{model.name}', which was never called. Call it once on a batch of inputs."
        )
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor(shape, model.input_dtype), shapes
    )


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


def fewest(model: keras.Model) -> int | None:
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
