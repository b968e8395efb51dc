"""The proof of an archive: its tensors are those that the model computes with."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_qareg.layers import kernels
from keras_qareg.models.selection import extended_layers, quantized_layers
from keras_qareg.models.stripping import used_kernels


def plain_weights(model: keras.Model) -> list[tuple[str, np.ndarray]]:
    """The weights of a model as it computes with them, in the order of the plain model.

    What layers of this package add is left out; in the place of a kernel that they quantize stands the
    quantized one.

    Returns:
        List of paths and arrays.
    """
    added, used = set[int](), dict[int, np.ndarray]()
    for layer in extended_layers(model):
        added |= {id(weight) for weight in layer.quantization_weights}
    for layer in quantized_layers(model):
        pairs = zip(kernels(layer), used_kernels(layer), strict=True)
        used |= {id(kernel): array for kernel, array in pairs}
    return [
        (weight.path, used[id(weight)] if id(weight) in used else ops.convert_to_numpy(weight))
        for weight in model.weights
        if id(weight) not in added
    ]


def compare(
    model: keras.Model, tensors: list[np.ndarray], path: Path, float_dtype: str = "float32"
) -> None:
    """Compares the tensors of an archive with the weights that a model computes with, bit for bit.

    Args:
        model: A built model.
        tensors: What was read from the file.
        path: The file, for the message.
        float_dtype: `"float16"` where float32 tensors may be rounded to that.

    Raises:
        ValueError: If tensors differ.
    """
    expected = plain_weights(model)
    other = [
        name
        for (name, array), tensor in zip(expected, tensors, strict=False)
        if not _same(array, tensor, float_dtype)
    ]
    if other or len(expected) != len(tensors):
        raise ValueError(
            f"Expected the {len(expected)} tensors of model '{model.name}' in {path}. Received: "
            f"{len(tensors)}, of which these differ: {other}"
        )


def _same(wanted: np.ndarray, found: np.ndarray, float_dtype: str) -> bool:
    if np.array_equal(wanted, found, equal_nan=wanted.dtype.kind == "f"):
        return True
    if float_dtype == "float32" or wanted.dtype != np.float32:
        return False
    return np.array_equal(wanted.astype(float_dtype).astype("float32"), found, equal_nan=True)
