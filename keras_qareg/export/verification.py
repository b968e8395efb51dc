"""Whether a file is the model that it is said to be: the proof of an export, run again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qareg.export.archive.container import is_archive
from keras_qareg.export.archive.proof import compare
from keras_qareg.export.archive.reading import read_archive
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.agreement import agreement, inputs_in_range
from keras_qareg.export.litert.flatbuffer import operator_name
from keras_qareg.export.litert.inspection import describe_litert, reading, stored_constants
from keras_qareg.export.litert.micro import expanded
from keras_qareg.export.litert.proof import TOLERANCES, prove
from keras_qareg.export.litert.ranges import Ranges, check_ranges
from keras_qareg.export.litert.recognition import along, is_kernel, is_spoiled
from keras_qareg.export.litert.runtime import input_details, tensor_values
from keras_qareg.export.litert.samples import (
    GIVEN,
    SAMPLES,
    in_batches,
    sample_inputs,
    users_data,
)
from keras_qareg.export.litert.signature import Signature, misplaced
from keras_qareg.models.stripping import unquantized, used_kernels
from keras_qareg.models.walking import leaf_layers

# What a runtime raises where a file is damaged, beside a `ValueError`.
_DAMAGES = (RuntimeError, MemoryError, IndexError, KeyError, TypeError, AttributeError)


def verify(
    model: keras.Model, path: str | os.PathLike[str], representative_data: Any = None
) -> str:
    """Compares a `.tflite` file or an archive with a Keras model.

    An archive must have the very tensors of the plain model, or these rounded or folded where it was
    saved so, its settings, and a network made of it the model's outputs, to 1e-4 of the largest. A
    `.tflite` file must give its outputs, with XNNPACK and without: each to 1e-4 of its largest, to 1e-2
    where weights are float16. Those of int8 must follow the model's, with an error of less than half of
    what these vary by, and how far they are is said. Each kernel that `export.litert` rewrote must be
    one of the model's, in the order of its axes and times a factor a channel. A model that was shared,
    what `strip` makes of it, and that loaded again are all the model of a file.

    Args:
        model: A built model.
        path: The file.
        representative_data: Inputs to run both on, as `model.predict` takes them, of which the first 64
            count; by default eight random ones, which may not reach all that a `.tflite` file computes.

    Returns:
        What was found, as a text.

    Raises:
        ValueError: If the file is another model, or is damaged.
        FileNotFoundError: If there is no such file.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> file = qareg.export.save_archive(model, Path(tempfile.mkdtemp()) / "model.qareg")
    >>> verify(model, file)
    'equal: all 2 tensors, bit for bit'

    See also: https://keras-qareg.github.io/keras-qareg/ci.html#is-it-this-model
    """
    path = Path(path)
    if is_archive(path):
        return _verify_archive(model, path, representative_data)
    describe_litert(path)  # raises where the file is none, or is damaged
    content = path.read_bytes()
    with reading(path):
        runnable = expanded(content)
        precision = _precision(runnable)
    given = input_details(runnable)
    data = users_data(model, representative_data, GIVEN)
    signature = Signature.of(model, data).as_in(given)
    ranges = Ranges.of(model)
    inputs = wide = sample_inputs(model, signature, data)
    if data is not None:
        inputs = wide = signature.named(data)
    if ranges is not None:
        check_ranges(runnable, ranges)
    if precision == "int8" and data is None:  # others are as random inputs are
        wide = inputs_in_range(signature, runnable)
        inputs = {name: array[:SAMPLES] for name, array in wide.items()}
    one = in_batches(signature, {name: array[:1] for name, array in inputs.items()})
    guessed = precision == "int8" and ranges is None and data is None
    with _advice(
        path, " Random inputs may leave the ranges inside: pass some like those in use." * guessed
    ):
        if content != runnable and misplaced(content, [x.name for x in signature.leaves]):
            raise ValueError(
                f"Expected inputs and outputs in the order of model '{model.name}': TFLite Micro has no "
                "names. Received: others first"
            )
        difference, output_range = prove(model, signature, inputs, runnable, precision)
        count = _check_kernels(content, path, model, one)
    if ranges is not None:
        agrees = agreement(model, signature, wide, runnable)
        return (
            f"int8, with all {len(ranges.grids)} ranges of the model: {agrees}; {count} rewritten "
            "kernels"
        )
    same = "equal" if TOLERANCES[precision] is not None else "int8, which rounds"
    return (
        f"{same}: outputs within {difference:.2e} (up to {output_range:.2e}), and "
        f"{count} rewritten kernels"
    )


@contextmanager
def _advice(path: Path, more: str) -> Iterator[None]:
    """Says what to do where a file is another model, or may not be, or is damaged."""
    try:
        yield
    except _DAMAGES as error:
        told = (
            f"Expected a readable .tflite file. Received: {path} ({type(error).__name__}: {error})"
        )
        raise ValueError(f"{told}. Write the file anew.") from error
    except ValueError as error:
        told = str(error).rstrip(".")
        raise ValueError(
            f"{told}. Pass the model that the file was made of, or write the file anew.{more}"
        ) from error


def _precision(content: bytes) -> str:
    """How precise a file computes, by the types of the constants that multiply."""
    model = flatbuffer.read(content)
    # Operators that have no integer form compute in float, with what is rounded around them.
    rounds = any(
        operator_name(model, o) == "QUANTIZE" for g in model.subgraphs for o in g.operators or []
    )
    if rounds or any(c.consumers - {"DEQUANTIZE"} for c in flatbuffer.constants(model, "int8")):
        return "int8"
    kinds = {stored.kind for stored in stored_constants(model) if len(stored.shape) >= 2}
    return "float16" if "float16" in kinds else "float32"


def _check_kernels(
    content: bytes, path: Path, model: keras.Model, inputs: dict[str, np.ndarray]
) -> int:
    """How many kernels of a file were rewritten; all of them must be the model's."""
    kernels = [array for layer in leaf_layers(model) for array in used_kernels(layer)]
    content = expanded(content)
    read = flatbuffer.read(content)
    rewritten = {
        (named.graph, named.tensor): named.name for named in flatbuffer.names(read) if named.form
    }
    constants = {
        (constant.graph, constant.tensor): constant
        for kind in ("float32", "int8")
        for constant in flatbuffer.constants(read, kind)
    }
    values = tensor_values(content, set(rewritten) - set(constants), inputs)
    for key, name in rewritten.items():
        if key in constants:
            found = _holds_kernel(read, constants[key], kernels)
        else:
            found = key in values and is_kernel(values[key], kernels)
        if not found:
            raise ValueError(
                f"Expected '{name}' of {path} to be a kernel of model '{model.name}'. Received: other "
                "values"
            )
    others = (constant.values for key, constant in constants.items() if key not in rewritten)
    for array in others:
        if array.dtype == "float32" and is_spoiled(array, kernels):
            raise ValueError(
                f"Expected the kernels of model '{model.name}' in {path}. Received: constant "
                f"{array.shape} with some of the values of one, and others"
            )
    return len(rewritten)


def _holds_kernel(model: Any, constant: flatbuffer.Constant, kernels: list[np.ndarray]) -> bool:
    """Whether a constant, of float32 or of int8 codes, is a kernel."""
    if constant.values.dtype == "float32":
        return is_kernel(constant.values, kernels)
    details = model.subgraphs[constant.graph].tensors[constant.tensor].quantization
    scales = along(
        np.array(details.scale, "float32"), details.quantizedDimension, constant.values.ndim
    )
    return is_kernel(constant.values * scales, kernels, scales)


def _verify_archive(model: keras.Model, path: Path, representative_data: Any) -> str:
    data = users_data(model, representative_data, SAMPLES)
    with read_archive(path) as archive:
        proof = compare(model, unquantized(model), archive, path, data)
        manifest = archive.manifest
    found = f"equal: all {len(manifest.tensors)} tensors, bit for bit"
    if manifest.float_dtype != "float32":
        found += f", or to the precision of {manifest.float_dtype}"
    if proof.difference is None:
        return f"{found}; outputs were not compared with those of '{model.name}', {proof.reason}"
    if manifest.folded:
        found += (
            f", with normalizations folded: outputs within {proof.difference:.0e} of the largest"
        )
    return found
