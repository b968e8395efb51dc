"""Whether a file is the model that it is said to be: the proof of an export, run again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.export.archive.archive import load_archive
from keras_qareg.export.archive.container import is_archive
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.inspection import describe_litert, stored_constants
from keras_qareg.export.litert.micro import expanded, recognized
from keras_qareg.export.litert.proof import TOLERANCES, prove
from keras_qareg.export.litert.recognition import recognize
from keras_qareg.export.litert.runtime import input_details, tensor_values
from keras_qareg.export.litert.samples import SAMPLES, sample_inputs, users_data
from keras_qareg.export.litert.signature import Signature
from keras_qareg.models import codebooks, quantizes_inputs, unquantized
from keras_qareg.numerics.codebook import Codebook


def verify(
    model: keras.Model, path: str | os.PathLike[str], representative_data: Any = None
) -> str:
    """Compares a `.tflite` file or an archive with a Keras model.

    An archive must have the very tensors of the plain model. A `.tflite` file must give its outputs,
    with XNNPACK and without: to 1e-4 of the largest, to 1e-2 where weights are float16; for int8 the
    difference is said. Each kernel that `export.litert` rewrote must be one of the model's.

    Args:
        model: A built model.
        path: The file.
        representative_data: Inputs to run a `.tflite` on, as `model.predict` takes them; by default
            random ones.

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
    """
    path = Path(path)
    if is_archive(path):
        return _verify_archive(unquantized(model), path)
    describe_litert(path)  # raises where the file is none, or is damaged
    content = path.read_bytes()
    runnable = expanded(content)
    precision = _precision(runnable)
    data = users_data(model, representative_data, SAMPLES)
    signature = Signature.of(model, data).as_in(input_details(runnable))
    inputs = sample_inputs(model, signature, data)
    difference, output_range = prove(model, signature, inputs, runnable, precision)
    plain = model if quantizes_inputs(model) else unquantized(model)
    books = [*codebooks(model).items(), *codebooks(plain).items()]
    count = _check_kernels(content, path, model.name, books, inputs)
    same = "equal" if TOLERANCES[precision] is not None else "int8, which rounds"
    return (
        f"{same}: outputs within {difference:.2e} (up to {output_range:.2e}), and "
        f"{count} rewritten kernels"
    )


def _precision(content: bytes) -> str:
    """How precise a file computes, by the types of the constants that multiply."""
    model = flatbuffer.read(content)
    if any(c.consumers - {"DEQUANTIZE"} for c in flatbuffer.constants(model, "int8")):
        return "int8"
    kinds = {stored.kind for stored in stored_constants(model) if len(stored.shape) >= 2}
    return "float16" if "float16" in kinds else "float32"


def _check_kernels(
    content: bytes,
    path: Path,
    name: str,
    books: list[tuple[str, Codebook]],
    inputs: dict[str, np.ndarray],
) -> int:
    """How many kernels of a file were rewritten; all of them must be the model's."""
    entries = flatbuffer.kernel_entries(flatbuffer.read(content))
    content = expanded(content)
    model = flatbuffer.read(content)
    constants = {
        (constant.graph, constant.name.removesuffix("/decoded")): constant
        for kind in ("float32", "int8")
        for constant in flatbuffer.constants(model, kind)
    }
    computed = [(int(entry["graph"]), str(entry["tensor"])) for entry in entries]
    values = tensor_values(content, set(computed) - set(constants), inputs)
    for key in computed:
        if key in constants:
            found = recognized(model, constants[key], books)
        else:
            found = recognize(values[key], books) if key in values else None
        if found is None:
            raise ValueError(
                f"Expected '{key[1]}' of {path} to be a kernel of model '{name}'. Received: other "
                "values"
            )
    return len(computed)


def _verify_archive(plain: keras.Model, path: Path) -> str:
    loaded = load_archive(path)
    pairs = [
        (ours.path, ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))
        for ours, theirs in zip(plain.weights, loaded.weights, strict=False)
    ]
    other = [name for name, ours, theirs in pairs if not np.array_equal(ours, theirs)]
    if other or len(plain.weights) != len(loaded.weights):
        raise ValueError(
            f"Expected the {len(plain.weights)} tensors of model '{plain.name}' in {path}. Received: "
            f"{len(loaded.weights)}, of which these differ: {other}"
        )
    return f"equal: all {len(pairs)} tensors, bit for bit"
