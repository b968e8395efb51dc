"""The proof of an archive: its tensors are those that the model computes with."""

from __future__ import annotations

import os

import keras
import numpy as np
from keras import ops

from keras_qareg.export.archive.folding import folded, held_books, weight_names
from keras_qareg.export.archive.reading import Archive
from keras_qareg.export.archive.tensors import rounded
from keras_qareg.layers import kernels
from keras_qareg.models import codebooks, unquantized
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


def compare(model: keras.Model, archive: Archive, path: str | os.PathLike[str]) -> None:
    """Compares the tensors of an archive with the weights that a model computes with, bit for bit.

    Where floats were rounded, or normalizations folded, the same is done to the weights of the model.

    Args:
        model: A built model.
        archive: What was read from the file.
        path: The file, for the message.

    Raises:
        ValueError: If tensors differ.
    """
    expected, manifest = plain_weights(model), archive.manifest
    if manifest.folded:
        expected = _folded(model, expected)
    other = [
        name
        for (name, array), tensor in zip(expected, archive.all_tensors(), strict=False)
        if not _same(array, tensor, manifest.float_dtype)
    ]
    if other or len(expected) != len(manifest.tensors):
        raise ValueError(
            f"Expected the {len(expected)} tensors of model '{model.name}' in {path}. Received: "
            f"{len(manifest.tensors)}, of which these differ: {other}"
        )


def _folded(
    model: keras.Model, weights: list[tuple[str, np.ndarray]]
) -> list[tuple[str, np.ndarray]]:
    plain, arrays = unquantized(model), [np.asarray(array) for _, array in weights]
    books = held_books(weight_names(plain), arrays, codebooks(model))
    arrays, _ = folded(plain, arrays, books)
    return [(name, array) for (name, _), array in zip(weights, arrays, strict=True)]


def _same(wanted: np.ndarray, found: np.ndarray, float_dtype: str) -> bool:
    wanted = np.asarray(wanted)
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    # To the bit: a negative zero is no zero, and what is not a number stays what it is.
    if np.ascontiguousarray(wanted).tobytes() == np.ascontiguousarray(found).tobytes():
        return True
    if np.array_equal(wanted, found, equal_nan=wanted.dtype.kind == "f"):
        return True
    if float_dtype == "float32" or wanted.dtype != np.float32:
        return False
    return np.array_equal(rounded(wanted, float_dtype), found, equal_nan=True)
