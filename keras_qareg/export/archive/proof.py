"""The proof of an archive: it has the tensors that the model computes with, and gives its outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qareg.export.archive.configurations import same
from keras_qareg.export.archive.container import ArchiveError
from keras_qareg.export.archive.folding import folded, held_books, weight_names
from keras_qareg.export.archive.graphs import settings_apart
from keras_qareg.export.archive.manifest import configuration_of
from keras_qareg.export.archive.reading import Archive
from keras_qareg.export.archive.rebuilding import check_objects, fill, own_objects, rebuilt
from keras_qareg.export.archive.tensors import rounded
from keras_qareg.layers import ActivationRange, kernels
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models import codebooks
from keras_qareg.models.selection import extended_layers, quantized_layers
from keras_qareg.models.stripping import quantizes_inputs, used_kernels
from keras_qareg.models.trial import (
    SIZES,
    difference,
    is_random,
    low_precision,
    outputs_of,
    states_inside,
    trial_inputs,
)

# How far outputs may be from the model's, relative to the largest, as `export.litert` has it of float32.
TOLERANCE = 1e-4
# How Keras begins what an error was that it met, and how much of it is said.
_INNER, _LONGEST = "Exception encountered: ", 200
# So many settings are named.
_LISTED = 5


class Proof(NamedTuple):
    """What was found of an archive.

    Attributes:
        difference: The largest of any output of the network that was made of the archive, relative to
            the largest of the model's; `None` where outputs were not compared.
        reason: Why not.
        failed: Why no model can be made of the archive here.
    """

    difference: float | None
    reason: str = ""
    failed: str = ""


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
    model: keras.Model,
    plain: keras.Model,
    archive: Archive,
    path: str | os.PathLike[str],
    data: Any = None,
) -> Proof:
    """Compares an archive with a model: its tensors, bit for bit, its objects, and its outputs.

    Where normalizations were folded, they are folded in the weights of the model too. Tensors of the
    file must be those, or these rounded; and a network made of the file must have the outputs of the
    model with those, so that it does not rest on the folding being right.

    Args:
        model: A built model.
        plain: What `unquantized` makes of it.
        archive: What was read from the file.
        path: The file, for the message.
        data: Inputs to compare outputs on, as the model is called; `None`: random ones.

    Raises:
        ValueError: If something differs, or outputs cannot be compared where normalizations were folded.
    """
    weights, manifest = plain_weights(model), archive.manifest
    arrays = [np.asarray(array) for _, array in weights]
    if manifest.folded:
        arrays = _folded(model, plain, arrays)
    pairs = zip(weights, arrays, archive.all_tensors(), strict=False)
    other = [
        name for (name, _), array, tensor in pairs if not _same(array, tensor, manifest.float_dtype)
    ]
    if other or len(weights) != len(manifest.tensors):
        raise ValueError(
            f"Expected the {len(weights)} tensors of model '{model.name}' in {path}. Received: "
            f"{len(manifest.tensors)}, of which these differ: {other}"
        )
    if not manifest.folded:
        apart = settings_apart(manifest.config, configuration_of(plain))
        if apart:
            raise ValueError(
                f"Expected the settings of model '{model.name}' in {path}. Received: others, in "
                f"{apart[:_LISTED]}. Pass the model that the file was made of, or write the file anew."
            )
    proof = _prove_outputs(model, plain, archive, arrays, data)
    if manifest.folded and proof.difference is None:
        raise ValueError(
            "Expected a model whose outputs can be compared, to prove folded normalizations. Received: "
            f"'{model.name}', {proof.reason}. Leave out `fold=True`."
        )
    return proof


def _prove_outputs(
    model: keras.Model,
    plain: keras.Model,
    archive: Archive,
    arrays: Sequence[np.ndarray],
    data: Any,
) -> Proof:
    # Code in a configuration runs only where it is the model's own.
    own = same(archive.manifest.config, configuration_of(plain))
    try:
        again = rebuilt(archive, own_objects(plain), safe_mode=not own)
    except ArchiveError as error:
        said = [line.strip() for line in str(error.__cause__ or error).splitlines()]
        inner = [line for line in said if line.startswith(_INNER)]
        cause = [*said, *inner][-1 if inner else 0].removeprefix(_INNER)[:_LONGEST]
        return Proof(None, f"which cannot be made again here ({cause})", cause)
    check_objects(plain, again)
    fill(again, arrays)
    # Plain layers do not quantize what goes through them, of which `strip` warns.
    ranges = any(isinstance(layer, ActivationRange) for layer in layers_inside(model))
    first = plain if ranges or quantizes_inputs(model) else model
    states = _states(plain, again)
    problem: object = None
    for size in SIZES:
        try:
            inputs = trial_inputs(model, size) if data is None else data
            expected = outputs_of(first, inputs)
        # A model may raise whatever it likes about inputs that it is not made for.
        except Exception as error:
            problem = problem or f"{type(error).__name__}: {error}"
            continue
        found = outputs_of(again, inputs, states)
        alike = len(expected) == len(found)
        apart = max(map(difference, expected, found), default=0.0) if alike else float("inf")
        most = max(TOLERANCE, low_precision(model))
        if apart <= most:
            return Proof(apart)
        if is_random(first, inputs):
            return Proof(None, "whose outputs are random")
        raise ValueError(
            f"Expected a network with the outputs of model '{model.name}', within {most:g} of the "
            f"largest. Received: a difference of {apart:.3g}. {_remedy(archive.manifest.folded)}"
        )
    return Proof(None, f"which takes no random inputs ({problem})")


def _remedy(is_folded: bool) -> str:
    if is_folded:
        return "Leave out `fold=True`."
    return "Layers must compute by nothing but their weights and what `get_config()` says."


def _states(plain: keras.Model, again: keras.Model) -> list[Any] | None:
    """Values of states and seeds for the model that was made again."""
    mine, theirs = states_inside(plain), states_inside(again)
    if [tuple(v.shape) for v in mine] != [tuple(v.shape) for v in theirs]:
        return None
    return [state.value for state in mine]


def _folded(
    model: keras.Model, plain: keras.Model, arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    books = held_books(weight_names(plain), arrays, codebooks(model))
    return folded(plain, arrays, books)[0]


def _same(wanted: np.ndarray, found: np.ndarray, float_dtype: str) -> bool:
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
