"""The proof of an export: the file is run, timed, read again, and compared with Keras."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import zstandard

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.agreement import Agreement, named_as, output_scales
from keras_qareg.export.litert.differences import LayerDifference, layer_differences
from keras_qareg.export.litert.forms import KernelForm, oldest_runtime
from keras_qareg.export.litert.inspection import stored_constants
from keras_qareg.export.litert.micro_proof import prove_micro
from keras_qareg.export.litert.runtime import (
    delegated,
    input_details,
    run_by_name,
    time_ratio,
)
from keras_qareg.export.litert.samples import batch_size, in_batches, in_parts
from keras_qareg.export.litert.sections import Sections, sections
from keras_qareg.export.litert.signature import Signature
from keras_qareg.export.litert.vela import Compiled

# How far outputs may be from Keras's, relative to the largest output; None where the format rounds
# activations, so that the report tells how far. Low-bit forms are as exact as float32.
TOLERANCES: dict[str, float | None] = {"float32": 1e-4, "float16": 1e-2, "int8": None}
# Where it does, the share of what outputs vary by that may be error: another model has all of it. And so
# many steps of 255 in the largest output, for outputs that hardly vary.
_UNEXPLAINED, _STEPS = 0.5, 2.0
_ROUNDING = ("float16", "int8")
# The share of whole numbers that may be others where the form rounds; outputs below this are nothing.
_OVER, _SMALLEST = 0.1, 1e-6
# Layers that the text of a report tells of.
_TOLD = 3


class Draft(NamedTuple):
    """A file before it is put in place.

    Attributes:
        content: The file.
        runnable: The same as LiteRT runs it: another one for TFLite Micro.
        reference: The float32 file of the same model, to compare with; `None` if this is it.
        kernels: The form of each constant that could have a low-bit one.
        rounding: The float file that rounds activations where the model does; `None` where that is
            `reference`.
    """

    content: bytes
    runnable: bytes
    reference: bytes | None = None
    kernels: list[KernelForm] = []  # noqa: RUF012
    rounding: bytes | None = None


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
        arena_bytes: The memory that TFLite Micro used for the tensors of the file, on this machine;
            `None` where it was not run.
        sections: What the bytes of the file are for: a `Sections`.
        differences: How far the file is from Keras behind each layer that it has, the furthest first, a
            `LayerDifference` each; of forms that round, and models whose layers can be told apart.
        npu: What Vela made of the file for the NPU that was asked for, or why it made nothing; an empty
            text where none was asked for.
        npu_bytes: The size of the file that Vela made, which is what such a device holds; else `None`.
        npu_weight_bytes: How many bytes of it are weights; else `None`.
        agreement: For models with activation ranges, an `Agreement`: how many outputs are Keras's, and
            how many steps the others are away; else `None`.

    See also: https://keras-qareg.github.io/keras-qareg/formats.html#what-the-report-says-of-a-file
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
    arena_bytes: int | None = None
    sections: Sections | None = None
    differences: tuple[LayerDifference, ...] = ()
    npu: str = ""
    npu_bytes: int | None = None
    npu_weight_bytes: int | None = None
    agreement: Agreement | None = None

    def __str__(self) -> str:
        batches = f"batches of {self.batch_size}" if self.batch_size else "any batch size"
        lines = [
            f"{self.path}: {self.bytes:,} bytes ({self.gzip_bytes:,} gzipped, "
            f"{self.zstd_bytes:,} by zstd), {self.weights}",
            f"  largest difference from Keras: {self.max_output_difference:.2e} "
            f"(outputs up to {self.output_range:.2e})",
        ]
        if self.agreement is not None:
            lines.append(f"  {self.agreement}")
        if self.differences:
            told = _told(self.differences)
            lines.append(f"  furthest from Keras (signal to noise): {told}")
        if self.float_bytes is not None:
            ratio = f"; a run takes {self.time_ratio:.2f} of its time" if self.time_ratio else ""
            lines.append(f"  the float32 file has {self.float_bytes:,} bytes{ratio}")
        if self.sections is not None:
            lines.append(f"  bytes: {self.sections}")
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
        if self.npu:
            lines.append(f"  {self.npu}")
        lines.append(f"  runs from runtime version {self.runtime_version} on, with {batches}")
        return "\n".join(lines)


def _told(differences: Sequence[LayerDifference]) -> str:
    return ", ".join(map(str, differences[:_TOLD]))


def prove(
    model: keras.Model,
    signature: Signature,
    inputs: dict[str, np.ndarray],
    content: bytes,
    weights: str,
) -> tuple[float, float]:
    """Runs a file with XNNPACK and without, and compares both with Keras.

    Args:
        model: The Keras model.
        signature: Its inputs, as the file takes them.
        inputs: What to run on, by name: on all of them, where the file takes few at once one after the
            other.
        content: The `.tflite` file.
        weights: The form of its weights.

    Returns:
        The largest difference of any output, and the largest output.

    Raises:
        ValueError: If the difference is more than the form explains, or Keras gives NaN.
    """
    tolerance = TOLERANCES.get(weights, TOLERANCES["float32"])
    batches = in_parts(signature, inputs)
    wanted = [signature.call(model, batch) for batch in batches]
    scales = named_as(output_scales(content), wanted[0]) if tolerance is None else {}
    difference, output_range = 0.0, 0.0
    for delegate in (True, False):
        found = [named_as(run_by_name(content, batch, delegate), wanted[0]) for batch in batches]
        if _shapes(found[0]) != _shapes(wanted[0]):
            advice = " Say the sizes as `input_shape`." if signature.open_inputs else ""
            raise ValueError(
                f"Expected a file with the outputs of model '{model.name}', {_shapes(wanted[0])}. "
                f"Received: {_shapes(found[0])}.{advice}"
            )
        for name in wanted[0]:
            want, got = (_joined([part[name] for part in parts]) for parts in (wanted, found))
            apart, reach = _difference(got, want), _reach(want)
            difference, output_range = max(difference, apart), max(output_range, reach)
            received = f"a difference of {apart:.3g} in '{name}' with outputs up to {reach:.3g}"
            if tolerance is None:
                if not _follows(got, want, scales.get(name, 0.0)):
                    raise ValueError(
                        f"Expected outputs of the {weights} file that follow those of model "
                        f"'{model.name}'. Received: {received}, more than half of what they vary by. "
                        "Calibrate with inputs like those in use (`representative_data`)."
                    )
            elif not (
                apart <= tolerance * max(reach, _SMALLEST) or _rounded_over(got, want, tolerance)
            ):
                raise ValueError(
                    f"Expected the outputs of the file within {tolerance:g} of those of model "
                    f"'{model.name}', each relative to its largest. Received: {received}."
                )
    return difference, output_range


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(-1) for part in parts])


def _follows(got: np.ndarray, want: np.ndarray, step: float) -> bool:
    """Whether outputs of a file that rounds to steps are nearer than another model's would be."""
    finite = np.isfinite(want)
    got, want = got[finite].astype("float64"), want[finite]
    # Whole numbers are mostly the same, or as near as others are.
    whole = not np.issubdtype(want.dtype, np.floating)
    if not want.size or (whole and float((got != want).mean()) <= _OVER):
        return True
    error = float(np.mean(np.square(got - want)))
    step = max(step, _reach(want) / 255)
    return error <= _UNEXPLAINED * float(np.var(want, dtype="float64")) + (_STEPS * step) ** 2


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    """The largest; infinite numbers are equal where both are."""
    apart = got != want
    wide = np.abs(got[apart].astype("float64") - want[apart].astype("float64"))
    return float(np.where(np.isnan(wide), np.inf, wide).max(initial=0.0))


def _rounded_over(got: np.ndarray, want: np.ndarray, tolerance: float) -> bool:
    """Whether the differences of whole numbers are so few that they come from rounding before them.

    A number may fall on the other side of a threshold then, as in a mask, and be off by a whole class.
    """
    if np.issubdtype(want.dtype, np.floating):
        return False
    return float((got != want).mean()) <= 10 * tolerance


def _reach(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)].astype("float64")
    return float(np.abs(finite).max(initial=0.0))


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(int, array.shape)) for name, array in arrays.items()}


def report_on(
    model: keras.Model,
    signature: Signature,
    inputs: dict[str, np.ndarray],
    draft: Draft,
    path: Path,
    weights: str,
    precision: str,
    npu: Compiled | None = None,
    agrees: Agreement | None = None,
) -> ExportReport:
    """Proves a file, and says what there is to say about it.

    Args:
        model: The Keras model.
        signature: Its inputs.
        inputs: What to run on, by name.
        draft: The file.
        path: Where it is going to be.
        weights: The form of its weights.
        precision: The form of the weights that says how precise it computes.
        npu: What Vela made of it, where that was asked for.
        agrees: How far it is from Keras in steps, where the model has activation ranges.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: As `prove`.
    """
    micro = weights == "tflm"
    content, runnable, reference, kernels, rounding = draft
    furthest: tuple[LayerDifference, ...] = ()
    if reference is not None and precision in _ROUNDING:
        furthest = layer_differences(model, signature, inputs, runnable, rounding or reference)
    signature = signature.as_in(input_details(runnable))
    try:
        difference, output_range = prove(model, signature, inputs, runnable, precision)
    except ValueError as error:
        if not furthest:
            raise
        raise ValueError(
            f"{error} Furthest from Keras (signal to noise): {_told(furthest)}."
        ) from error
    inputs = in_batches(signature, inputs)
    one = {name: array[:1] for name, array in inputs.items()}
    found = _read_file(content)
    found["runtime_version"] = oldest_runtime(found["runtime_version"], kernels)
    inside = {(0, i) for i in ([] if micro or not kernels else delegated(content, inputs))}
    proved, arena = prove_micro(content, one) if micro else ("", None)
    return ExportReport(
        path=path,
        weights=weights,
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, 9)),
        zstd_bytes=len(zstandard.compress(content, 19)),
        max_output_difference=difference,
        output_range=output_range,
        batch_size=batch_size(runnable),
        float_bytes=None if reference is None else len(reference),
        kernels=tuple(kernels),
        delegated={k.name: k.place in inside for k in kernels} if not micro else {},
        time_ratio=None if micro or reference is None else time_ratio(content, reference, one),
        micro=proved,
        arena_bytes=arena,
        sections=sections(content),
        differences=furthest,
        npu=npu.said if npu else "",
        npu_bytes=npu.bytes if npu else None,
        npu_weight_bytes=npu.weight_bytes if npu else None,
        agreement=agrees,
        **found,
    )


def _read_file(content: bytes) -> dict[str, Any]:
    """What the flatbuffer says: distinct values of each kernel, and the runtime that it needs."""
    model = flatbuffer.read(content)
    distinct = {
        stored.name: int(np.unique(stored.values).size)
        for stored in stored_constants(model)
        if len(stored.shape) >= 2 and stored.kind in ("float32", "float16", "int8")
    }
    version = "unknown"
    for raw in flatbuffer.metadata(model, b"min_runtime_version"):
        version = raw.split(b"\0")[0].decode() or version
    return {"distinct_values": distinct, "runtime_version": version}
