"""LiteRT (`.tflite`) files: converted, run, compared with Keras, and only then put in place.

The one module that imports TensorFlow, and only when it is called: conversion needs the TensorFlow
backend. A model of `share_weights` is stripped first, so the file holds the shared values.
"""

from __future__ import annotations

import gzip
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.export.files import check_target
from keras_qareg.models import quantizes_inputs, strip
from keras_qareg.selection import check_built

# How far outputs may be from Keras's, relative to the largest output; None where the format rounds
# activations, so that only the report can tell.
FORMATS: dict[str, float | None] = {"float32": 1e-4, "float16": 1e-2, "int8": None}
# The smallest form that keeps outputs equal. The low-bit forms are to take this over.
AUTO = "float32"
SAMPLES, CALIBRATION_SAMPLES = 8, 200


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with Keras.

    Attributes:
        path: The file.
        weights: Form of the weights: `"float32"`, `"float16"` or `"int8"`.
        bytes: Size of the file.
        gzip_bytes: Size after gzip at its highest level, which is what a download costs.
        max_output_difference: Largest absolute difference of any output from Keras's, on samples.
        output_range: Largest absolute output of Keras on the same samples.
        distinct_values: From the name of each constant of two or more dimensions in the file to how
            many different values it has.
        batch_size: The number of examples that the file takes at once, or None for any number. Models
            with loops over time (recurrent layers) are written for 1.
        runtime_version: The oldest LiteRT or TensorFlow Lite runtime with all operators of the file.
    """

    path: Path
    weights: str
    bytes: int
    gzip_bytes: int
    max_output_difference: float
    output_range: float
    distinct_values: dict[str, int]
    batch_size: int | None
    runtime_version: str

    def __str__(self) -> str:
        values = ", ".join(map(str, self.distinct_values.values()))
        return "\n".join(
            [
                f"{self.path}: {self.bytes:,} bytes ({self.gzip_bytes:,} gzipped), {self.weights}",
                f"  largest difference from Keras: {self.max_output_difference:.2e} "
                f"(outputs up to {self.output_range:.2e})",
                f"  distinct values a kernel: {values}",
                f"  runs from runtime version {self.runtime_version} on, "
                + (
                    f"with batches of {self.batch_size}"
                    if self.batch_size
                    else "with any batch size"
                ),
            ]
        )


def litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    weights: str = "auto",
    representative_data: Any = None,
) -> ExportReport:
    """Writes a model as a LiteRT file, after running the file and comparing it with Keras.

    The file appears under its name only when it is complete and has passed; a failed export leaves
    nothing behind, and an older file of that name as it was.

    Args:
        model: A built model; wrapped and shared layers are stripped first.
        path: The file to write, ending in `.tflite`, in a folder that exists.
        weights: `"float32"`; `"float16"`; `"int8"` (with `representative_data` full integer inside
            and float at both ends, without it integer weights alone); or `"auto"` (default), which
            keeps the outputs equal: `"float32"`.
        representative_data: Inputs as `model.predict` takes them. They calibrate `"int8"`, and are
            the samples of the comparison; by default random samples are.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt, the folder is missing,
            or the outputs of the file differ from Keras's by more than the format explains.
        RuntimeError: If the Keras backend is not TensorFlow.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> report = litert(model, Path(tempfile.mkdtemp()) / "model.tflite")
    >>> report.max_output_difference < 1e-5
    True
    """
    check_built(model)
    path = check_target(path, ".tflite")
    weights = AUTO if weights == "auto" else weights
    if weights not in FORMATS:
        raise ValueError(
            f"Expected `weights` to be 'auto' or one of {list(FORMATS)}. Received: {weights!r}"
        )
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Expected the TensorFlow backend, which LiteRT conversion needs. Received: "
            f"'{keras.backend.backend()}'. Save the model as .keras and run "
            "`KERAS_BACKEND=tensorflow keras-qareg export MODEL.keras --out FILE.tflite`."
        )
    # Plain layers do not quantize their inputs; those that do are exported as they stand.
    plain = model if quantizes_inputs(model) else strip(model)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        draft = Path(folder) / path.name
        try:
            report = _write(plain, draft, path, weights, representative_data)
        except RuntimeError as error:
            # Loops over time have no built-in operators until the batch size is fixed.
            if "Select TensorFlow op" not in str(error) or not _input_names(plain):
                raise
            report = _write(plain, draft, path, weights, representative_data, batch_size=1)
        draft.replace(path)
    return report


def run_litert(path: str | os.PathLike[str], inputs: Any) -> list[np.ndarray]:
    """Runs a LiteRT file on a batch.

    Args:
        path: The `.tflite` file.
        inputs: An array; or, where the model has several inputs, a dict of arrays by the names in
            the file's signature, which are those of the model's inputs.

    Returns:
        List of output arrays, in the order of the outputs of the Keras model.
    """
    runner = _signature(path)
    details = runner.get_input_details()
    if not isinstance(inputs, dict):
        inputs = dict(zip(sorted(details, key=_natural), keras.tree.flatten(inputs), strict=True))
    outputs = runner(
        **{name: np.asarray(part, details[name]["dtype"]) for name, part in inputs.items()}
    )
    return [outputs[name] for name in sorted(outputs, key=_natural)]


def _write(
    model: keras.Model,
    draft: Path,
    path: Path,
    weights: str,
    representative_data: Any,
    batch_size: int | None = None,
) -> ExportReport:
    """Converts to the draft and proves it; the report is about the file that it will be."""
    options = _converter_options(model, weights, representative_data)
    if batch_size is not None:
        options["input_signature"] = keras.tree.map_structure(
            lambda x: keras.InputSpec(x.dtype, (batch_size, *x.shape[1:]), name=x.name),
            getattr(model, "input", model.inputs),
        )
    model.export(draft, format="litert", verbose=False, **options)
    return _prove(model, draft, path, weights, representative_data)


def _converter_options(
    model: keras.Model, weights: str, representative_data: Any
) -> dict[str, Any]:
    if weights == "float32":
        return {}
    import tensorflow as tf

    options: dict[str, Any] = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if weights == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    elif representative_data is not None:
        options["representative_dataset"] = lambda: _examples(model, representative_data)
    return options


def _examples(model: keras.Model, data: Any) -> Iterator[Any]:
    """One example after the other, as the converter's calibration asks for them."""
    names, parts = _names_and_parts(model, data)
    for i in range(min(CALIBRATION_SAMPLES, len(parts[0]))):
        example = [part[i : i + 1] for part in parts]
        yield dict(zip(names, example, strict=True)) if names else example


def _names_and_parts(model: keras.Model, data: Any) -> tuple[list[str], list[np.ndarray]]:
    """The arrays of the inputs, in the types that a file takes, and their names if known."""
    named = isinstance(data, dict)
    names = list(data) if named else _input_names(model)
    parts = [np.asarray(part) for part in (data.values() if named else keras.tree.flatten(data))]
    return names, [part.astype(_tensor_type(part)) for part in parts]


def _input_names(model: keras.Model) -> list[str]:
    """Names of the inputs, which are those of the file's signature; none of a subclassed model."""
    return [tensor.name for tensor in getattr(model, "inputs", None) or []]


def _tensor_type(array: np.ndarray) -> str:
    return "float32" if np.issubdtype(array.dtype, np.floating) else "int32"


def _prove(
    model: keras.Model, draft: Path, path: Path, weights: str, representative_data: Any
) -> ExportReport:
    inputs = _samples(model, draft, representative_data)
    samples: Any = list(inputs.values())
    structure = getattr(model, "input", samples)  # a list, a tuple or a dict
    samples = samples[0] if len(samples) == 1 else keras.tree.pack_sequence_as(structure, samples)
    expected = [
        ops.convert_to_numpy(output)
        for output in keras.tree.flatten(model(samples, training=False))
    ]
    pairs = list(zip(run_litert(draft, inputs), expected, strict=True))
    difference = max(float(np.abs(got - want).max()) for got, want in pairs)
    output_range = max(float(np.abs(want).max()) for _, want in pairs)
    tolerance = FORMATS[weights]
    if tolerance is not None and not difference <= tolerance * max(output_range, 1e-6):
        raise ValueError(
            f"Expected the outputs of {path.name} within {tolerance:g} of Keras's, relative to the "
            f"largest. Received: a difference of {difference:.3g} with outputs up to "
            f"{output_range:.3g}. Nothing was written; please report the model."
        )
    content = draft.read_bytes()
    return ExportReport(
        path=path,
        weights=weights,
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, 9)),
        max_output_difference=difference,
        output_range=output_range,
        batch_size=_fixed_batch_size(draft),
        **_read_file(draft),
    )


def _samples(model: keras.Model, file: Path, representative_data: Any) -> dict[str, np.ndarray]:
    """A few inputs by the names of the file's signature, in the order of the model's."""
    details = _signature(file).get_input_details()
    names = _input_names(model)
    if set(names) != set(details):
        names = sorted(details, key=_natural)
    if representative_data is None:
        return {name: _random_input(details[name]) for name in names}
    given, parts = _names_and_parts(model, representative_data)
    data = dict(zip(given if set(given) == set(names) else names, parts, strict=True))
    return {name: data[name][: _batch_size(details[name])] for name in names}


def _fixed_batch_size(file: Path) -> int | None:
    sizes = {
        int(detail["shape_signature"][0])
        for detail in _signature(file).get_input_details().values()
        if len(detail["shape_signature"])
    }
    return None if -1 in sizes else max(sizes, default=None)


def _batch_size(detail: dict[str, Any]) -> int:
    first = detail["shape_signature"][0]
    return SAMPLES if first < 0 else int(first)


def _random_input(detail: dict[str, Any]) -> np.ndarray:
    random = np.random.default_rng(0)
    shape = [_batch_size(detail), *(max(size, 1) for size in detail["shape_signature"][1:])]
    if np.issubdtype(detail["dtype"], np.floating):
        return random.normal(size=shape).astype(detail["dtype"])
    return random.integers(0, 2, shape).astype(detail["dtype"])  # within any vocabulary


def _signature(file: str | os.PathLike[str]) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(file)).get_signature_runner()


def _natural(name: str) -> list[Any]:
    """So that `output_10` comes after `output_9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _read_file(path: Path) -> dict[str, Any]:
    """What the flatbuffer says: distinct values of each kernel, and the runtime that it needs."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    numpy_types = {0: "float32", 1: "float16", 9: "int8"}
    distinct = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and len(tensor.shape) >= 2 and tensor.type in numpy_types:
                values = np.frombuffer(bytes(data), numpy_types[tensor.type])
                distinct[tensor.name.decode()] = int(np.unique(values).size)
    version = "unknown"
    for entry in model.metadata or []:
        if entry.name == b"min_runtime_version":
            raw = bytes(model.buffers[entry.buffer].data)
            version = raw.split(b"\0")[0].decode() or version
    return {"distinct_values": distinct, "runtime_version": version}
