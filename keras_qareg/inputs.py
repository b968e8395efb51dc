"""Whether arrays are the inputs of a model: their structure, names, shapes and types."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

FORMS = (
    "arrays (a list, tuple or dict of them for several inputs), `(inputs, targets)` or `(inputs, "
    "targets, sample_weight)`, a tf.data.Dataset, a keras.utils.PyDataset, a PyTorch DataLoader, a "
    "generator or a function that returns one, or a list of batches"
)


class Misfit(ValueError):  # noqa: N818
    """Why something cannot be the inputs of a model: ends a sentence."""


def fits(model: keras.Model, inputs: Any) -> bool:
    """Whether something can be the inputs of a model."""
    try:
        standard(model, inputs)
    except Misfit:
        return False
    return True


def standard(model: keras.Model, inputs: Any) -> Any:
    """Inputs as arrays in the model's types and structure; raises a `Misfit` where they do not fit."""
    leaves = keras.tree.flatten(inputs)
    arrays = [is_array(leaf) for leaf in leaves if leaf is not None]  # inputs may be optional
    if not arrays or not all(arrays):
        raise Misfit(f"to be {FORMS}. Received: {described(inputs)}")
    expected = expected_inputs(model)
    if expected is None:
        return keras.tree.map_structure(as_array, inputs)
    specs = keras.tree.flatten(expected)
    if isinstance(inputs, dict):
        inputs = _picked(inputs, expected, specs)
        leaves = keras.tree.flatten(inputs)
    flat = isinstance(inputs, list | tuple) and all(map(is_array, inputs))
    alike = keras.tree.map_structure(lambda _: 0, inputs) == keras.tree.map_structure(
        lambda _: 0, expected
    )
    if len(leaves) != len(specs) or not (alike or flat or len(specs) == 1):
        raise Misfit(
            f"to have {len(specs)} inputs, {[spec.name for spec in specs]}. "
            f"Received: {described(inputs)}"
        )
    found = [_fitted(*pair) for pair in zip(leaves, specs, strict=True)]
    return keras.tree.pack_sequence_as(expected, found)


def _picked(inputs: dict[str, Any], expected: Any, specs: list[Spec]) -> Any:
    """What the model takes of inputs by name; others are left, as Keras does."""
    keys = list(expected) if isinstance(expected, dict) else [spec.name for spec in specs]
    if not isinstance(expected, dict) and len(keys) == len(inputs) == 1:
        return next(iter(inputs.values()))
    lacking = [key for key in keys if key not in inputs]
    if lacking:
        raise Misfit(f"to have inputs of the names {keys}. Received: {list(inputs)}")
    return {k: inputs[k] for k in keys} if isinstance(expected, dict) else [inputs[k] for k in keys]


@dataclass(frozen=True)
class Spec:
    """An input of a model: sizes are None where any will do, the type is None where it is unknown."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str | None


def expected_inputs(model: keras.Model) -> Any:
    """The `Spec` of each input in the structure of the model's inputs; `None` where it is unknown."""
    inputs = getattr(model, "inputs", None)
    if inputs:
        structure = getattr(model, "input", None)
        specs = [Spec(x.name, (None, *x.shape[1:]), str(x.dtype)) for x in inputs]
        if structure is None:  # a Sequential model that was built by a shape
            return specs[0] if len(specs) == 1 else specs
        return keras.tree.pack_sequence_as(structure, specs)
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        return None
    # The shape that a subclassed model was first called with: only the number of its axes is certain.
    count = itertools.count()
    return keras.tree.map_shape_structure(
        lambda shape: Spec(f"input_{next(count)}", (None,) * len(shape), None), shapes
    )


def _fitted(value: Any, spec: Spec) -> Any:
    """An array in the type of an input, and with the axis of size 1 that Keras adds or takes away."""
    if value is None:
        return None
    array, shape = as_array(value), spec.shape
    if array.ndim == len(shape) - 1 and shape[-1] == 1:
        array = array[..., None]
    elif array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    same = len(array.shape) == len(shape)
    if not same or any(n not in (None, m) for m, n in zip(array.shape, shape, strict=True)):
        raise Misfit(
            f"to have inputs of shape {shape} for '{spec.name}'. Received: shape={array.shape}"
        )
    if spec.dtype in (None, "string") or array.dtype == spec.dtype:
        return array
    number = isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
    whole = number and np.issubdtype(spec.dtype, np.integer) and array.dtype.kind == "f"
    if not number or (whole and not np.array_equal(array, np.rint(array))):
        raise Misfit(
            f"to have inputs of type {spec.dtype} for '{spec.name}'. Received: {array.dtype}"
        )
    made = array.astype(spec.dtype)
    if array.dtype.kind in "iu" and not np.array_equal(made, array):
        raise Misfit(
            f"to have inputs of type {spec.dtype} for '{spec.name}'. Received: {array.dtype} from "
            f"{array.min()} to {array.max()}"
        )
    return made


def as_array(value: Any) -> Any:
    """A NumPy array, of 32 bits where Keras computes in 32 and these hold it; texts as a tensor."""
    if hasattr(value, "detach"):  # PyTorch
        value = value.detach().cpu()
    array = np.asarray(value)
    if array.dtype.kind in "OSU":  # texts: `fit` takes them as tensors alone
        return value if value is not array else keras.ops.convert_to_tensor(array)
    if array.dtype == "float64":
        return array.astype("float32")
    if array.dtype == "int64":  # identifiers may be larger, for inputs of 64 bits
        narrow = array.astype("int32")
        return narrow if np.array_equal(narrow, array) else array
    return array


def check_numbers(model: keras.Model, inputs: Any, name: str) -> None:
    """Raises a `ValueError` where inputs have NaN or infinite numbers."""
    specs, leaves = keras.tree.flatten(expected_inputs(model)), keras.tree.flatten(inputs)
    names = [spec.name for spec in specs if spec is not None] or [
        f"input_{i}" for i in range(len(leaves))
    ]
    for label, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind != "f" or np.isfinite(leaf).all():
            continue
        found = "NaN" if np.isnan(leaf).any() else "infinite numbers"
        rows = (~np.isfinite(leaf)).reshape(len(leaf), -1).any(axis=1).sum()
        raise ValueError(
            f"Expected `{name}` without NaN and infinite numbers. Received: {found} in '{label}', in "
            f"{rows} of {len(leaf)} examples."
        )


def is_array(value: Any) -> bool:
    """Whether something is an array or tensor that may hold examples."""
    return hasattr(value, "shape") and len(value.shape) > 0


def described(value: Any) -> str:
    """The form of what was passed, without its numbers."""
    if is_array(value):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return (
            f"a dict of {', '.join(f'{key!r}: {described(part)}' for key, part in value.items())}"
        )
    if isinstance(value, list | tuple) and value:
        parts = [described(part) for part in value[:3]]
        more = [f"and {len(value) - 3} more"] if len(value) > 3 else []
        return f"a {type(value).__name__} of {', '.join(parts + more)}"
    return f"{type(value).__name__} {value!r}"[:80]
