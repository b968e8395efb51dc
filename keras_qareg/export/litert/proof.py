"""The proof of an export: the file is run, timed, read again, and compared with Keras."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import zstandard
from keras import ops

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.forms import KernelForm, oldest_runtime
from keras_qareg.export.litert.inspection import stored_constants
from keras_qareg.export.litert.micro import prove_micro
from keras_qareg.export.litert.runtime import delegated, natural, run_litert, signature, time_ratio

# How far outputs may be from Keras's, relative to the largest output; None where the format rounds
# activations, so that only the report can tell. Low-bit forms are as exact as float32.
TOLERANCES: dict[str, float | None] = {"float32": 1e-4, "float16": 1e-2, "int8": None}
SAMPLES = 8


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with Keras.

    Attributes:
        path: The file.
        weights: The form of the weights that was asked for.
        bytes: Size of the file.
        gzip_bytes: Size after gzip at its highest level, which is what a download costs.
        zstd_bytes: Size after zstd at level 19.
        float_bytes: Size of the float32 file of the same model; `None` if this is it.
        max_output_difference: Largest absolute difference of any output from Keras's, on samples,
            with the XNNPACK delegate and without.
        output_range: Largest absolute output of Keras on the same samples.
        distinct_values: From the name of each constant of two or more dimensions in the file to how
            many different values it has.
        batch_size: The number of examples that the file takes at once, or None for any number. Models
            with loops over time (recurrent layers) are written for 1.
        runtime_version: The oldest runtime with all operators of the file: a version of TensorFlow
            Lite, or of LiteRT where it says so.
        kernels: A `KernelForm` for each constant of two or more axes; empty for `"float32"` and
            `"float16"`.
        delegated: Whether the XNNPACK delegate runs what uses it, by the names of these constants.
        time_ratio: Median time of a run with a batch of one to that of the float32 file, run in turn;
            `None` if this is it, and for TFLite Micro.
        micro: What a run in TFLite Micro gave, for `"tflm"`; else an empty text.
    """

    path: Path
    weights: str
    bytes: int
    gzip_bytes: int
    zstd_bytes: int
    max_output_difference: float
    output_range: float
    distinct_values: dict[str, int]
    batch_size: int | None
    runtime_version: str
    float_bytes: int | None = None
    kernels: tuple[KernelForm, ...] = ()
    delegated: dict[str, bool] = field(default_factory=dict)
    time_ratio: float | None = None
    micro: str = ""

    def __str__(self) -> str:
        batches = f"batches of {self.batch_size}" if self.batch_size else "any batch size"
        lines = [
            f"{self.path}: {self.bytes:,} bytes ({self.gzip_bytes:,} gzipped, "
            f"{self.zstd_bytes:,} by zstd), {self.weights}",
            f"  largest difference from Keras: {self.max_output_difference:.2e} "
            f"(outputs up to {self.output_range:.2e})",
        ]
        if self.float_bytes is not None:
            ratio = f"; a run takes {self.time_ratio:.2f} of its time" if self.time_ratio else ""
            lines.append(f"  the float32 file has {self.float_bytes:,} bytes{ratio}")
        for kernel in self.kernels:
            notes = ["exact"] if kernel.exact else []
            if kernel.name in self.delegated:
                notes += ["on XNNPACK"] if self.delegated[kernel.name] else ["not on XNNPACK"]
            notes += [kernel.reason] if kernel.reason else []
            size = f"{kernel.form}, {kernel.levels or 'many'} values, {kernel.bytes:,} bytes"
            said = f" ({'; '.join(notes)})" if notes else ""
            lines.append(f"  {kernel.path or kernel.name}: {size}{said}")
        if not self.kernels:
            values = ", ".join(map(str, self.distinct_values.values()))
            lines.append(f"  distinct values a kernel: {values}")
        if self.micro:
            lines.append(f"  {self.micro}")
        lines.append(f"  runs from runtime version {self.runtime_version} on, with {batches}")
        return "\n".join(lines)


def prove(
    model: keras.Model, draft: Path, weights: str, representative_data: Any
) -> tuple[float, float]:
    """Runs a file with XNNPACK and without, and compares both with Keras.

    Args:
        model: The Keras model.
        draft: The `.tflite` file.
        weights: The form of its weights.
        representative_data: Inputs to run on, or `None` for random ones.

    Returns:
        The largest difference of any output, and the largest output.

    Raises:
        ValueError: If the difference is more than the form explains.
    """
    inputs = _samples(model, draft, representative_data)
    samples: Any = list(inputs.values())
    structure = getattr(model, "input", samples)  # a list, a tuple or a dict
    samples = samples[0] if len(samples) == 1 else keras.tree.pack_sequence_as(structure, samples)
    expected = [
        ops.convert_to_numpy(output)
        for output in keras.tree.flatten(model(samples, training=False))
    ]
    difference = 0.0
    for delegate in (True, False):
        for got, want in zip(run_litert(draft, inputs, delegate), expected, strict=True):
            difference = max(difference, float(np.abs(got - want).max()))
    output_range = max(float(np.abs(want).max()) for want in expected)
    tolerance = TOLERANCES.get(weights, TOLERANCES["float32"])
    if tolerance is not None and not difference <= tolerance * max(output_range, 1e-6):
        raise ValueError(
            f"Expected the outputs of {draft.name} within {tolerance:g} of Keras's, relative to the "
            f"largest. Received: a difference of {difference:.3g} with outputs up to "
            f"{output_range:.3g}."
        )
    return difference, output_range


def report_on(
    model: keras.Model,
    draft: Path,
    path: Path,
    weights: str,
    representative_data: Any,
    runnable: Path,
    reference: Path | None,
    kernels: list[KernelForm],
) -> ExportReport:
    """Proves a file, and says what there is to say about it.

    Args:
        model: The Keras model.
        draft: The `.tflite` file.
        path: Where it is going to be.
        weights: The form of its weights.
        representative_data: Inputs to run on, or `None` for random ones.
        runnable: The file as LiteRT runs it: the same one, but for TFLite Micro.
        reference: The float32 file of the same model, to time against; `None` if this is it.
        kernels: The form of each constant that could have a low-bit one.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: As `prove`.
    """
    micro = weights == "tflm"
    precision = weights if not micro else "float32" if representative_data is None else "int8"
    difference, output_range = prove(model, runnable, precision, representative_data)
    content = draft.read_bytes()
    found = _read_file(content)
    found["runtime_version"] = oldest_runtime(found["runtime_version"], kernels)
    ratio = None if reference is None or micro else time_ratio(draft, reference)
    inside = {} if micro or not kernels else _delegated_kernels(draft, kernels)
    return ExportReport(
        path=path,
        weights=weights,
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, 9)),
        zstd_bytes=len(zstandard.compress(content, 19)),
        max_output_difference=difference,
        output_range=output_range,
        batch_size=_fixed_batch_size(runnable),
        float_bytes=None if reference is None else reference.stat().st_size,
        kernels=tuple(kernels),
        delegated=inside,
        time_ratio=ratio,
        micro=prove_micro(content) if micro else "",
        **found,
    )


def _delegated_kernels(file: Path, kernels: list[KernelForm]) -> dict[str, bool]:
    inside = delegated(file)
    return {kernel.name: kernel.name in inside for kernel in kernels}


def _samples(model: keras.Model, file: Path, representative_data: Any) -> dict[str, np.ndarray]:
    """A few inputs by the names of the file's signature, in the order of the model's."""
    details = signature(file).get_input_details()
    names = input_names(model)
    if set(names) != set(details):
        names = sorted(details, key=natural)
    if representative_data is None:
        return {name: _random_input(details[name]) for name in names}
    given, parts = names_and_parts(model, representative_data)
    data = dict(zip(given if set(given) == set(names) else names, parts, strict=True))
    return {name: data[name][: _batch_size(details[name])] for name in names}


def _fixed_batch_size(file: Path) -> int | None:
    sizes = {
        int(detail["shape_signature"][0])
        for detail in signature(file).get_input_details().values()
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


def _read_file(content: bytes) -> dict[str, Any]:
    """What the flatbuffer says: distinct values of each kernel, and the runtime that it needs."""
    model = flatbuffer.read(content)
    distinct = {
        stored.name: int(np.unique(stored.values).size)
        for stored in stored_constants(model)
        if len(stored.shape) >= 2 and stored.kind in ("float32", "float16", "int8")
    }
    version = "unknown"
    for raw in flatbuffer.metadata(model, "min_runtime_version"):
        version = raw.split(b"\0")[0].decode() or version
    return {"distinct_values": distinct, "runtime_version": version}


def names_and_parts(model: keras.Model, data: Any) -> tuple[list[str], list[np.ndarray]]:
    """The arrays of the inputs, in the types that a file takes, and their names if known."""
    named = isinstance(data, dict)
    names = list(data) if named else input_names(model)
    parts = [np.asarray(part) for part in (data.values() if named else keras.tree.flatten(data))]
    known = {tensor.name: tensor.dtype for tensor in getattr(model, "inputs", None) or []}
    order = names if len(names) == len(parts) else [""] * len(parts)
    types = [known.get(name) or _tensor_type(part) for name, part in zip(order, parts, strict=True)]
    return names, [part.astype(kind) for part, kind in zip(parts, types, strict=True)]


def input_names(model: keras.Model) -> list[str]:
    """Names of the inputs, which are those of the file's signature; none of a subclassed model."""
    return [tensor.name for tensor in getattr(model, "inputs", None) or []]


def _tensor_type(array: np.ndarray) -> str:
    return "float32" if np.issubdtype(array.dtype, np.floating) else "int32"
