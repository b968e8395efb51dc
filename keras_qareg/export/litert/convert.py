"""LiteRT (`.tflite`) files: converted, run, compared with Keras, and only then put in place.

The one module that imports TensorFlow, and only when it is called: conversion needs the TensorFlow
backend. A model of `share_weights` is stripped first, so the file holds the shared values.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_qareg.export.files import check_target
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.forms import LOW_BIT_FORMS, KernelForm, rewrite
from keras_qareg.export.litert.integer import keep_grids
from keras_qareg.export.litert.micro import expanded, rewrite_micro
from keras_qareg.export.litert.proof import (
    TOLERANCES,
    ExportReport,
    input_names,
    names_and_parts,
    report_on,
)
from keras_qareg.export.litert.runtime import interpreter_of
from keras_qareg.models import codebooks, quantizes_inputs, strip
from keras_qareg.models.selection import check_built, check_choice
from keras_qareg.numerics.codebook import Codebook

WEIGHTS = (*LOW_BIT_FORMS, "tflm", *TOLERANCES)
CALIBRATION_SAMPLES = 200


def litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    weights: str = "auto",
    representative_data: Any = None,
    *,
    decode_once: bool = True,
) -> ExportReport:
    """Writes a model as a LiteRT file, after running the file and comparing it with Keras.

    The file appears under its name only when it is complete and has passed; a failed export leaves
    nothing behind, and an older file of that name as it was.

    Args:
        model: A built model; wrapped and shared layers are stripped first.
        path: The file to write, ending in `.tflite`, in a folder that exists.
        weights: How kernels are held. `"auto"` (default): each in the fewest bytes that are exact
            and run at float speed. Kernels on an evenly spaced grid become integers, int8 in
            convolutions, as few bits as fit in dense layers; others stay float32. `"smallest"`: the
            fewest bytes that are exact, where convolutions of fewer than 8 bits run slower.
            `"int8-exact"`, `"int4-exact"`, `"int2-exact"`: at least so many bits, more where the grid
            needs them. `"codebook"`: any few values, as packed indices and a table; exact and small,
            and slower. `"tflm"`: for TFLite Micro, which looks indices up itself; float32, or full
            integer with `representative_data`. `"int8"`: rounds activations (with
            `representative_data` full integer inside and float at both ends, without it integer
            weights alone); kernels on a grid keep its codes. `"float32"`; `"float16"`.
        representative_data: Inputs as `model.predict` takes them. They calibrate `"int8"` and
            `"tflm"`, and are the samples of the comparison; by default random samples are.
        decode_once: Whether codebooks are decoded once, before the first run, which needs variables;
            else in each run, which is slower and runs on any runtime. Defaults to `True`.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt, the folder is missing,
            the model has loops over time and is to be full integer, or the outputs of the file
            differ from Keras's by more than the format explains.
        RuntimeError: If the Keras backend is not TensorFlow.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> report = litert(model, Path(tempfile.mkdtemp()) / "model.tflite")
    >>> report.max_output_difference < 1e-5
    True
    """
    check_built(model)
    path = check_target(path, ".tflite")
    check_choice("weights", weights, WEIGHTS)
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "Expected the TensorFlow backend, which LiteRT conversion needs. Received: "
            f"'{keras.backend.backend()}'. Save the model as .keras and run "
            "`KERAS_BACKEND=tensorflow keras-qareg export MODEL.keras --out FILE.tflite`."
        )
    # Plain layers do not quantize their inputs; those that do are exported as they stand.
    plain = model if quantizes_inputs(model) else strip(model)
    books = [*codebooks(model).items(), *codebooks(plain).items()]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        draft = Path(folder) / path.name
        written = _write(plain, draft, books, weights, representative_data, decode_once)
        report = report_on(plain, draft, path, weights, representative_data, *written)
        draft.replace(path)
    return report


def _write(
    model: keras.Model,
    draft: Path,
    books: list[tuple[str, Codebook]],
    weights: str,
    representative_data: Any,
    decode_once: bool,
) -> tuple[Path, Path | None, list[KernelForm]]:
    """Writes the file, and the same as float32; returns what LiteRT runs, that, and the forms."""
    micro, reference = weights == "tflm", draft.with_name("float32.tflite")
    _convert(model, reference, {}, micro)
    if weights == "float32":
        reference.rename(draft)
        return draft, None, []
    if weights in LOW_BIT_FORMS:
        content, kernels = rewrite(reference, books, weights, decode_once)
        draft.write_bytes(content)
        return draft, reference, kernels
    if micro and representative_data is None:
        content, kernels = reference.read_bytes(), []
    else:
        options = _quantizer_options(model, reference, weights, representative_data)
        _convert(model, draft, options, micro)
        content, kernels = keep_grids(draft.read_bytes(), books)
    if micro:
        content, kernels = rewrite_micro(content, books)
    draft.write_bytes(content)
    runnable = draft.with_suffix(".expanded.tflite") if micro else draft
    if micro:
        runnable.write_bytes(expanded(content))
    return runnable, reference, kernels


def _convert(model: keras.Model, file: Path, options: dict[str, Any], one: bool) -> None:
    options = dict(options)
    if one and input_names(model):
        # Microcontrollers run one example at a time, and need to know it: they do not resize.
        options["input_signature"] = _batches_of_one(model)
    try:
        _export(model, file, options)
    except RuntimeError as error:
        # Loops over time have no built-in operators until the batch size is fixed.
        if "Select TensorFlow op" not in str(error) or not input_names(model):
            raise
        _export(model, file, {**options, "input_signature": _batches_of_one(model)})


def _export(model: keras.Model, file: Path, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        # The converter calibrates with an interpreter that it says is deprecated.
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        model.export(file, format="litert", verbose=False, **options)
    interpreter_of(file)


def _batches_of_one(model: keras.Model) -> Any:
    return keras.tree.map_structure(
        lambda x: keras.InputSpec(x.dtype, (1, *x.shape[1:]), name=x.name),
        getattr(model, "input", model.inputs),
    )


def _quantizer_options(
    model: keras.Model, reference: Path, weights: str, representative_data: Any
) -> dict[str, Any]:
    import tensorflow as tf

    options: dict[str, Any] = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if weights == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    elif representative_data is not None:
        loops = len(flatbuffer.read(reference.read_bytes()).subgraphs) // 2
        if loops:  # calibration inside them ends the process
            raise ValueError(
                "Expected a model without loops over time to make full integer. Received: model "
                f"'{model.name}' with {loops} of them. Leave out `representative_data`, or unroll the "
                "recurrent layers (unroll=True)."
            )
        options["representative_dataset"] = lambda: _examples(model, representative_data)
    return options


def _examples(model: keras.Model, data: Any) -> Iterator[Any]:
    """One example after the other, as the converter's calibration asks for them."""
    names, parts = names_and_parts(model, data)
    for i in range(min(CALIBRATION_SAMPLES, len(parts[0]))):
        example = [part[i : i + 1] for part in parts]
        yield dict(zip(names, example, strict=True)) if names else example
