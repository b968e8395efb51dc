"""Int8 files whose kernels keep the integers of their grid.

The converter maps the largest weight of a channel to 127 and rounds all others, so that a grid of
seven steps becomes 127, 109, 91, 73, ...: neither evenly spaced nor exact. Here its codes are those of
the grid times a power of two, which loses nothing; scales and biases follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import PLACES, Constant, operator_name
from keras_qareg.export.litert.forms import KernelForm
from keras_qareg.export.litert.pairing import float_kernels
from keras_qareg.export.litert.recognition import (
    ROUNDING,
    Recognized,
    along,
    best_factors,
    recognize_codes,
)
from keras_qareg.export.litert.writer import to_bytes
from keras_qareg.numerics.codebook import Codebook

# Half of what 32 bits hold: steps of inputs are made exact afterwards.
_LARGEST, _LARGEST_BIAS = 127, 2**30


def keep_grids(
    content: bytes, books: Iterable[tuple[str, Codebook]], floating: bytes | None = None
) -> tuple[bytes, list[KernelForm]]:
    """An int8 file with the exact codes of each kernel that is on an evenly spaced grid.

    Args:
        content: A `.tflite` file with int8 kernels.
        books: Paths and codebooks of the kernels of the Keras model.
        floating: The float file of the same operators, if there is one. The converter has no steps
            below 4e-9, so that small channels come out right with it alone.

    Returns:
        The content of the new file, and the form of each int8 constant of two or more axes.
    """
    books, forms, expected = list(books), [], {}
    model = flatbuffer.read(content)
    kernels = {} if floating is None else float_kernels(model, flatbuffer.read(floating))
    for constant in flatbuffer.constants(model, "int8"):
        details = model.subgraphs[constant.graph].tensors[constant.tensor].quantization
        scales = np.array(details.scale, "float32")
        found = recognize_codes(constant.values, scales, details.quantizedDimension, books)
        grid, exact, reason = None, False, "no kernel with few values"
        if found is not None:
            kernel = kernels.get(constant.tensor) if constant.graph == 0 else None
            grid, reason = _grid(constant, found, scales, _least(model, constant), kernel)
        if found is not None and grid is not None:
            _replace(model, constant, found, *grid)
            tables = grid[0].astype("float32") * grid[1]
            exact = np.array_equal(found.looked_up(tables), found.looked_up(_tables(found)))
            expected[constant.graph, constant.tensor] = found, scales, exact
        size = constant.values.nbytes + scales.nbytes
        forms.append(KernelForm.of(constant, found, "int8", size, exact, reason))
    flatbuffer.set_names(model, [form.named(form.place in expected) for form in forms])
    content = to_bytes(model)
    _prove(content, expected)
    return content, forms


def _grid(
    constant: Constant,
    found: Recognized,
    scales: np.ndarray,
    least: np.ndarray,
    kernel: np.ndarray | None,
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Codes `(levels, channels)` and scales `(channels,)`, or why there are none."""
    others = constant.consumers - set(PLACES)
    if others:
        return None, f"rounded: used by {', '.join(sorted(others))}"
    base = _tables(found)
    grid = Recognized(found.path, found.indices, base, found.axis, True).grid()
    if grid is None:
        return None, "rounded: its values are on no evenly spaced grid"
    codes, steps = grid
    multiple = 2 ** int(np.log2(_LARGEST / np.abs(codes.astype("int64")).max()))
    if kernel is not None:
        factors = _float_factors(found, base, kernel)
    else:
        factors = _code_factors(found, base, scales)
    if factors is None:
        return None, "rounded: the largest weight is not at 127"
    factors = np.where(np.abs(np.abs(factors) - 1) < 1e-5, np.sign(factors), factors)
    steps = steps.astype("float64") * factors
    exact = np.abs(steps) / multiple
    # A step below all float32 numbers, or one of which a bias is more than 32 bits hold, becomes a
    # longer one. A channel of zeros keeps the one that its bias has.
    longer = np.maximum(exact, np.maximum(least, np.finfo("float32").tiny))
    new = np.where(steps != 0, np.where(longer > exact, longer, exact), scales)
    signed = np.rint(codes.astype("float64") * steps / new)
    return (signed.astype("int8"), new.astype("float32")), ""


def _float_factors(found: Recognized, base: np.ndarray, kernel: np.ndarray) -> np.ndarray | None:
    """What BatchNormalization made of each channel, from the float kernel; `None` if it is another."""
    factors, error = best_factors(found.looked_up(base), kernel, found.axis)
    return factors if error.max() <= ROUNDING * np.abs(kernel).max() else None


def _code_factors(found: Recognized, base: np.ndarray, scales: np.ndarray) -> np.ndarray | None:
    """The same from the largest weight of each channel, which the converter puts at 127.

    Its scale is that weight over 127, which is more exact than its other codes. Some channels become
    zeros.
    """
    largest = np.abs(found.tables.astype("int64")).argmax(axis=0)
    channels = np.arange(scales.size)
    reached = found.tables[largest, channels].astype("int64")
    if not np.isin(np.abs(reached), (0, _LARGEST)).all():
        return None
    weights = np.broadcast_to(base, found.tables.shape)[largest, channels].astype("float64")
    factors: np.ndarray = reached * scales.astype("float64") / np.where(reached != 0, weights, 1.0)
    return factors


def _replace(
    model: Any, constant: Constant, found: Recognized, codes: np.ndarray, scales: np.ndarray
) -> None:
    """Puts codes and scales in the place of a kernel's, and scales its biases to match."""
    tensor = model.subgraphs[constant.graph].tensors[constant.tensor]
    tensor.buffer = flatbuffer.add_buffer(model, found.looked_up(codes))
    for bias, values, steps in _biases(model, constant, scales):
        bias.buffer = flatbuffer.add_buffer(model, values.astype("<i4"))
        bias.quantization.scale = [float(np.float32(step)) for step in steps]
    tensor.quantization.scale = [float(scale) for scale in scales]


def _biases(
    model: Any, constant: Constant, scales: np.ndarray
) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """The biases beside a kernel as they are with other scales: the tensor, its codes, its steps."""
    before = np.array(
        model.subgraphs[constant.graph].tensors[constant.tensor].quantization.scale, "float64"
    )
    return [
        (bias, np.rint(codes * (before / scales)), step * scales.astype("float64"))
        for bias, codes, step in _integer_biases(model, constant)
    ]


def _least(model: Any, constant: Constant) -> np.ndarray:
    """The shortest steps of a kernel with which the biases beside it are integers of 32 bits."""
    scales = model.subgraphs[constant.graph].tensors[constant.tensor].quantization.scale
    codes = [np.abs(codes) for _, codes, _ in _integer_biases(model, constant)]
    found: np.ndarray = np.max([np.zeros(len(scales)), *codes], axis=0)
    return found * np.array(scales, "float64") / _LARGEST_BIAS


def _integer_biases(model: Any, constant: Constant) -> Iterator[tuple[Any, np.ndarray, float]]:
    """The biases beside a kernel that are integers: the tensor, its codes, the step of the input."""
    graph = model.subgraphs[constant.graph]
    for operator in graph.operators:
        where = PLACES.get(operator_name(model, operator))
        if where is None or operator.inputs[where.kernel] != constant.tensor:
            continue
        given, bias = (
            graph.tensors[operator.inputs[i]] if i < len(operator.inputs) else None
            for i in (where.given, where.bias)
        )
        if given is None or bias is None or operator.inputs[where.bias] < 0:
            continue
        data = model.buffers[bias.buffer].data
        if data is None or bias.quantization is None or bias.quantization.scale is None:
            continue  # float, beside int8 kernels: only weights are quantized
        codes = np.frombuffer(bytes(data), "<i4").astype("float64")
        yield bias, codes, float(given.quantization.scale[0])


def _prove(
    content: bytes, expected: dict[tuple[int, int], tuple[Recognized, np.ndarray, bool]]
) -> None:
    """Reads the new file: its kernels are the grids, and less than a code from the converter's."""
    model = flatbuffer.read(content)
    for constant in flatbuffer.constants(model, "int8"):
        found, before, exact = expected.pop((constant.graph, constant.tensor), (None, None, False))
        if found is None or before is None:
            continue
        details = model.subgraphs[constant.graph].tensors[constant.tensor].quantization
        now, old = (
            along(np.array(scales, "float32"), details.quantizedDimension, constant.values.ndim)
            for scales in (details.scale, before)
        )
        values = constant.values.astype("float32") * now
        kernel = found.looked_up(_tables(found))
        rounded = (np.abs(values - found.values * old) > old).any()
        if rounded or (exact and not np.array_equal(values, kernel)):
            raise ValueError(
                f"Expected '{constant.name}' to hold the grid of kernel '{found.path}'. Received: "
                "other values. Nothing was written; please report the model."
            )
    if expected:
        raise ValueError(f"Expected all kernels in the file. Received: none of {list(expected)}")


def _tables(found: Recognized) -> np.ndarray:
    """The levels of the Keras kernel: `(levels, 1)`, or a column for each channel."""
    return np.asarray(found.centroids).reshape(len(found.tables), -1)
