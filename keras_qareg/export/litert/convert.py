"""LiteRT (`.tflite`) files: converted, run, compared with Keras, and only then put in place.

The one module that imports TensorFlow, and only when it is called: conversion needs the TensorFlow
backend. A model of `share_weights` is stripped first, so the file holds the shared values.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_qareg.choices import check_flag
from keras_qareg.export.litert.agreement import agreement, inputs_in_range
from keras_qareg.export.litert.converter import Source
from keras_qareg.export.litert.forms import CALIBRATED, LOW_BIT_FORMS, rewrite
from keras_qareg.export.litert.integer import keep_grids
from keras_qareg.export.litert.micro import expanded, rewrite_micro
from keras_qareg.export.litert.precision import in_float32
from keras_qareg.export.litert.proof import TOLERANCES, Draft, ExportReport, report_on
from keras_qareg.export.litert.ranges import (
    Ranges,
    check_codes,
    check_integer,
    convertible,
    with_exact_ranges,
    without_fakes,
)
from keras_qareg.export.litert.samples import SAMPLES, sample_inputs, users_data
from keras_qareg.export.litert.signature import Signature
from keras_qareg.export.litert.vela import ACCELERATORS, compiled
from keras_qareg.export.litert.writer import compacted
from keras_qareg.files import check_target
from keras_qareg.models import kernel_codebooks, quantizes_inputs, unquantized
from keras_qareg.models.accounting import states_kept
from keras_qareg.models.selection import check_built, check_choice
from keras_qareg.numerics.codebook import Codebook

WEIGHTS = (*LOW_BIT_FORMS, "tflm", *TOLERANCES)
END_TYPES = ("float32", "int8", "uint8")
_WIDE_END_TYPES = ("float32", "int16")
# Forms whose kernels no operator of the file makes from tables.
_UNDECODED = (*CALIBRATED, "float16", "float32")
CALIBRATION_SAMPLES = 200


@states_kept
def litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    weights: str = "auto",
    representative_data: Any = None,
    *,
    decode_once: bool = True,
    input_shape: Any = None,
    input_type: str = "float32",
    output_type: str = "float32",
    npu: str | None = None,
) -> ExportReport:
    """Writes a model as a LiteRT file, after running the file and comparing it with Keras.

    The file appears under its name only when it is complete and has passed; a failed export leaves
    nothing behind, and an older file of that name as it was.

    Args:
        model: A built model; wrapped and shared layers are stripped first.
        path: The file to write, ending in `.tflite`, in a folder that exists.
        weights: How kernels are held. `"auto"` (default): exact, and at float speed: kernels on an
            evenly spaced grid become int8 in dense layers and convolutions, others stay float32.
            `"smallest"`: the fewest bytes that are exact; fewer than 8 bits run slower.
            `"int8-exact"`, `"int4-exact"`, `"int2-exact"`: at least so many bits, more where the grid
            needs them. `"codebook"`: any few values, as packed indices and a table; exact and small,
            and slower. `"tflm"`: for TFLite Micro, which looks indices up itself; float32, or full
            integer with `representative_data`. `"int8"`: rounds activations (with
            `representative_data` full integer inside and float at both ends, without it integer
            weights alone); kernels on a grid keep its codes. `"float32"`; `"float16"`. A model of
            `quantize_activations` has its own ranges, and becomes `"int8"` or `"tflm"`.
        representative_data: Inputs as `model.predict` takes them. They calibrate `"int8"` and
            `"tflm"`, unless the model has ranges, and are the samples of the comparison; by default
            random samples are.
        decode_once: Whether codebooks are decoded once, before the first run, which needs variables;
            else in each run, which is slower and runs on any runtime. Defaults to `True`.
        input_shape: Sizes for axes that are open (None) in the model, such as the height and width of
            images: the shape of the input without the batch axis, or a list or dict of shapes for
            several inputs. By default they stay open in the file, but for TFLite Micro.
        input_type: `"int8"` or `"uint8"` for files whose inputs are quantized too, as accelerators
            and microcontrollers want them: for `"int8"` and `"tflm"` with `representative_data`. The
            file says the scale. `"int16"` where activations have 16 bits. Defaults to `"float32"`.
        output_type: The same for the outputs.
        npu: An accelerator such as `"ethos-u55-128"`: the report then says what Arm's compiler Vela,
            where it is installed, makes of the file. For `"int8"` with `representative_data`. By
            default there is no such compilation.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt, the folder is missing,
            the model has loops over time and is to be full integer, cannot be written with open
            sizes, gives NaN, or the outputs of the file differ from Keras's by more than the format
            explains; if it has ranges that were never placed, or operators between them that have no
            integer form.
        RuntimeError: If the Keras backend is not TensorFlow.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> report = litert(model, Path(tempfile.mkdtemp()) / "model.tflite")
    >>> report.max_output_difference < 1e-5
    True

    See also: https://keras-qareg.github.io/keras-qareg/formats.html#tflite-with-exact-small-integers
    """
    check_built(model)
    path = check_target(path, ".tflite")
    check_choice("weights", weights, WEIGHTS)
    if not check_flag("decode_once", decode_once) and weights in _UNDECODED:
        raise ValueError(
            "Expected a form whose kernels may be tables, as 'smallest', with decode_once=False. "
            f"Received: weights={weights!r}"
        )
    _check_backend()
    ranges = Ranges.of(model)
    integer = weights in CALIBRATED and (representative_data is not None or ranges is not None)
    _check_ranges(ranges, weights)
    _check_types(ranges, integer, weights, input_type, output_type)
    _check_npu(npu, integer, weights)
    plain = _plain(model, ranges)
    data = users_data(model, representative_data, CALIBRATION_SAMPLES)
    signature = Signature.of(plain, data, input_shape)
    inputs = sample_inputs(model, signature, data)
    holders = (model, plain) if ranges is None else (model,)
    books = [(path, book) for m in holders for path, _, book in kernel_codebooks(m) if book]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        with in_float32(plain):
            source = Source.of(plain, signature, inputs, Path(folder), one=weights == "tflm")
            calibration = None if data is None else signature.named(data)
            options = {"data": calibration, "input_type": input_type, "output_type": output_type}
            if ranges is not None:
                draft = _ranged(model, source, books, weights, options, ranges)
            else:
                draft = _written(source, books, weights, options, decode_once)
        precision = weights
        if weights == "tflm":
            precision = "int8" if integer else "float32"
        found = None if npu is None else compiled(draft.content, npu)
        agrees = None
        if ranges is not None:
            wide = calibration or inputs_in_range(signature, draft.runnable)
            agrees = agreement(model, signature, wide, draft.runnable)
            inputs = {name: array[:SAMPLES] for name, array in wide.items()}
        report = report_on(model, signature, inputs, draft, path, weights, precision, found, agrees)
        complete = Path(folder) / path.name
        complete.write_bytes(draft.content)
        complete.replace(path)
    return report


def draft(
    plain: keras.Model,
    books: list[tuple[str, Codebook]],
    weights: str,
    representative_data: Any = None,
) -> Draft:
    """The file that `litert` would write, which nobody has run yet: to know its bytes.

    Args:
        plain: A plain, built model.
        books: Paths and codebooks of its kernels.
        weights: As in `litert`.
        representative_data: As in `litert`.

    Raises:
        ValueError: As `litert`.
        RuntimeError: If the Keras backend is not TensorFlow.
    """
    _check_backend()
    data = users_data(plain, representative_data, CALIBRATION_SAMPLES)
    signature = Signature.of(plain, data, None)
    inputs = sample_inputs(plain, signature, data)
    with tempfile.TemporaryDirectory() as folder, in_float32(plain):
        source = Source.of(plain, signature, inputs, Path(folder), one=weights == "tflm")
        calibration = None if data is None else signature.named(data)
        options = {"data": calibration, "input_type": "float32", "output_type": "float32"}
        return _written(source, books, weights, options, True)


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Expected the TensorFlow backend, which LiteRT conversion needs. Received: "
            f"'{keras.backend.backend()}'. Save the model as .keras and run "
            "`KERAS_BACKEND=tensorflow keras-qareg export MODEL.keras --out FILE.tflite`."
        )


def _plain(model: keras.Model, ranges: Ranges | None) -> keras.Model:
    """What is converted: plain layers, with operators of fake quantization where there are ranges.

    Plain layers do not quantize their inputs; those that do are exported as they stand.
    """
    if ranges is not None:
        return convertible(model, ranges)
    return model if quantizes_inputs(model) else unquantized(model)


def _check_ranges(ranges: Ranges | None, weights: str) -> None:
    if ranges is not None and weights not in CALIBRATED:
        raise ValueError(
            "Expected weights='int8' or 'tflm' for a model with activation ranges, which full-integer "
            f"files have. Received: weights={weights!r}. For other files, `strip` the model first."
        )


def _check_types(
    ranges: Ranges | None, integer: bool, weights: str, input_type: str, output_type: str
) -> None:
    wide = ranges is not None and ranges.bits == 16
    check_choice("input_type", input_type, _WIDE_END_TYPES if wide else END_TYPES)
    check_choice("output_type", output_type, _WIDE_END_TYPES if wide else END_TYPES)
    if not integer and (input_type, output_type) != ("float32", "float32"):
        raise ValueError(
            "Expected `input_type` and `output_type` to be 'float32' for files that compute in float. "
            f"Received: input_type={input_type!r}, output_type={output_type!r} with "
            f"weights={weights!r}. Use weights='int8' or 'tflm' with `representative_data`."
        )


def _check_npu(npu: str | None, integer: bool, weights: str) -> None:
    if npu is None:
        return
    check_choice("npu", npu, ACCELERATORS)
    if weights != "int8" or not integer:
        raise ValueError(
            "Expected a full-integer file for an NPU: weights='int8' with `representative_data`. "
            f"Received: npu={npu!r} with weights={weights!r}"
            f"{'' if integer else ' without data'}."
        )


def _written(
    source: Source,
    books: list[tuple[str, Codebook]],
    weights: str,
    options: dict[str, Any],
    decode_once: bool,
) -> Draft:
    """The file, what LiteRT runs, the same as float32, and the forms of its kernels."""
    micro, reference = weights == "tflm", source.float32
    if weights == "float32":
        return Draft(reference, reference)
    if weights in LOW_BIT_FORMS:
        content, kernels = rewrite(reference, books, weights, decode_once, source.inputs)
        return Draft(content, content, reference, kernels)
    if micro and options["data"] is None:
        content = reference
    elif weights == "float16":
        content = compacted(source.float16(), "float16")
    else:
        content, kernels = keep_grids(source.int8(**options), books)
    if not micro:
        return Draft(content, content, reference, [] if weights == "float16" else kernels)
    content, kernels = rewrite_micro(content, books)
    return Draft(content, expanded(content), reference, kernels)


def _ranged(
    model: keras.Model,
    source: Source,
    books: list[tuple[str, Codebook]],
    weights: str,
    options: dict[str, Any],
    ranges: Ranges,
) -> Draft:
    """The full-integer file of a model with ranges."""
    content = source.with_ranges(options["input_type"], options["output_type"])
    check_integer(content)
    content, kernels = keep_grids(content, books, source.float32)
    check_codes(model, kernels)
    content = with_exact_ranges(content, source.float32, ranges)
    runnable = content
    if weights == "tflm":
        content, kernels = rewrite_micro(content, books)
        runnable = expanded(content)
    return Draft(content, runnable, without_fakes(source.float32), kernels, source.float32)
