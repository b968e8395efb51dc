"""Whether a file is the model that it is said to be: the proof of an export, run again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.export.archive import load_archive
from keras_qareg.export.container import is_archive
from keras_qareg.export.inspection import describe_litert
from keras_qareg.export.lowbit import decoded
from keras_qareg.export.proof import prove
from keras_qareg.export.recognition import recognize
from keras_qareg.models import codebooks, quantizes_inputs, strip


def verify(
    model: keras.Model, path: str | os.PathLike[str], representative_data: Any = None
) -> str:
    """Compares a `.tflite` file or an archive with a Keras model.

    An archive must have the very tensors of the plain model. A `.tflite` file must give its outputs,
    to 1e-4 of the largest, with XNNPACK and without, and each of its rewritten kernels must be one of
    the model's.

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
        return _verify_archive(strip(model), path)
    describe_litert(path)  # raises where the file is none, or is damaged
    plain = model if quantizes_inputs(model) else strip(model)
    difference, output_range = prove(plain, path, "float32", representative_data)
    books = [*codebooks(model).items(), *codebooks(plain).items()]
    kernels = decoded(path.read_bytes())
    for name, values in kernels.items():
        if recognize(values, books) is None:
            raise ValueError(
                f"Expected '{name}' of {path} to be a kernel of model '{model.name}'. Received: "
                "other values"
            )
    return (
        f"equal: outputs within {difference:.2e} (up to {output_range:.2e}), and "
        f"{len(kernels)} rewritten kernels"
    )


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
