"""The low-bit forms of a LiteRT file: which constant gets which, and the proof that they are exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_qareg.codebook import Codebook
from keras_qareg.export.recognition import CODE_RANGES, Recognized, along, recognize
from keras_qareg.export.rewriting import (
    Constant,
    add_metadata,
    bits_of_kind,
    constants,
    quantize,
    to_bytes,
    unpacked,
)

# The oldest runtime that opens each kind.
RUNTIMES = {"int8": "2.14.0", "int4": "LiteRT 1.0.0", "int2": "LiteRT 2.1.0"}
_KINDS = ("int2", "int4", "int8")
# Operators that run at float speed with these kinds: XNNPACK unpacks them once, at the start.
_AT_FLOAT_SPEED = {
    "FULLY_CONNECTED": _KINDS,
    "CONV_2D": ("int8",),
    "DEPTHWISE_CONV_2D": ("int8",),
}
LOW_BIT_FORMS = ("auto", "smallest", "int8-exact", "int4-exact", "int2-exact")


@dataclass(frozen=True)
class KernelForm:
    """How a file holds one constant.

    Attributes:
        name: The name of the constant in the file.
        path: The path of the Keras kernel that it is, or `None` where it is none.
        form: `"float32"`, `"int8"`, `"int4"` or `"int2"`.
        levels: How many different values the Keras kernel has, or `None` where it is none.
        bytes: Bytes of its values, and of its steps.
        exact: Whether the values in the file are the Keras kernel's bit for bit; where a
            BatchNormalization was folded in, they are to rounding.
        reason: Why it is not smaller, or an empty text.
    """

    name: str
    path: str | None
    form: str
    levels: int | None
    bytes: int
    exact: bool
    reason: str = ""


def rewrite(
    file: Path, books: Iterable[tuple[str, Codebook]], form: str
) -> tuple[bytes, list[KernelForm]]:
    """A float32 file with its kernels in a low-bit form.

    Args:
        file: The `.tflite` file.
        books: Paths and codebooks of the kernels of the Keras model.
        form: One of `LOW_BIT_FORMS`.

    Returns:
        The content of the new file, and the form of each constant of two or more axes.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model, books = flatbuffer_utils.read_model(str(file)), list(books)
    forms, grids, expected = [], {}, {}
    for constant in constants(model):
        found = recognize(constant.values, books)
        grid = None if found is None else found.grid()
        kind, reason = _kind(constant, found, grid, form)
        size = constant.values.nbytes
        if found is not None and grid is not None and kind is not None:
            codes, steps = grid
            quantize(model, constant.tensor, codes[found.indices], steps, found.axis, kind)
            size = -(-constant.values.size * bits_of_kind(kind) // 8) + steps.nbytes
            grids[constant.name] = {
                "kernel": found.path,
                "codes": sorted({int(code) for code in codes}),
                "step": [float(step) for step in steps] if found.axis is None else "per channel",
            }
            expected[constant.name] = found
        forms.append(
            KernelForm(
                name=constant.name,
                path=None if found is None else found.path,
                form=kind or "float32",
                levels=None if found is None else len(np.unique(found.indices)),
                bytes=size,
                exact=found is not None and found.exact,
                reason=reason,
            )
        )
    if not grids:
        return file.read_bytes(), forms
    add_metadata(model, grids)
    content = to_bytes(model)
    _prove(content, expected)
    return content, forms


def _kind(
    constant: Constant,
    found: Recognized | None,
    grid: tuple[np.ndarray, np.ndarray] | None,
    form: str,
) -> tuple[str | None, str]:
    """The kind of integers for a constant, or None for float32; and why it is not smaller."""
    if found is None:
        return None, "no kernel with few values"
    if grid is None:
        return None, "its values are on no evenly spaced grid"
    low, high = int(grid[0].min()), int(grid[0].max())
    fitting = [k for k in _KINDS if CODE_RANGES[k][0] <= low and high <= CODE_RANGES[k][1]]
    if form == "auto":
        fast: set[str] = set(_KINDS)
        for consumer in constant.consumers:
            fast &= set(_AT_FLOAT_SPEED.get(consumer, ()))
        kinds = [kind for kind in fitting if kind in fast]
        if not kinds:
            return None, f"slower in {', '.join(sorted(constant.consumers))}"
        return kinds[0], "" if kinds[0] == fitting[0] else f"{fitting[0]} would be slower"
    wanted = "int2" if form == "smallest" else form.removesuffix("-exact")
    kinds = [kind for kind in fitting if _KINDS.index(kind) >= _KINDS.index(wanted)]
    fell_back = form != "smallest" and kinds[0] != wanted
    return kinds[0], f"codes from {low} to {high} do not fit {wanted}" if fell_back else ""


def _prove(content: bytes, expected: dict[str, Recognized]) -> None:
    """Reads the new file as a runtime does, and compares each kernel with what it must be."""
    for name, values in dequantized(content).items():
        if name in expected:
            wanted = expected.pop(name)
            same = np.array_equal(values, wanted.values)
            if not same and (wanted.exact or not _close(values, wanted.values)):
                raise ValueError(
                    f"Expected '{name}' to hold the values of kernel '{wanted.path}'. Received: "
                    "other ones. Nothing was written; please report the model."
                )
    if expected:
        raise ValueError(f"Expected all kernels in the file. Received: none of {list(expected)}")


def _close(values: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(values - wanted).max() <= 2e-6 * np.abs(wanted).max())


def dequantized(content: bytes) -> dict[str, np.ndarray]:
    """What the DEQUANTIZE operators of a file make of its integer constants.

    Args:
        content: A `.tflite` file.

    Returns:
        Float32 arrays by the names of their tensors: `float32(code) * step`.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(content)
    graph = model.subgraphs[0]
    types = {flatbuffer_utils.TensorType.__dict__[kind.upper()]: kind for kind in _KINDS}
    found = {}
    for operator in graph.operators:
        if flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) != "DEQUANTIZE":
            continue
        stored = graph.tensors[operator.inputs[0]]
        data = model.buffers[stored.buffer].data
        if data is None or stored.type not in types:
            continue
        shape = tuple(stored.shape)
        raw = np.frombuffer(bytes(data), "uint8")
        codes = unpacked(raw, types[stored.type], int(np.prod(shape))).reshape(shape)
        steps = np.array(stored.quantization.scale, "float32")
        if steps.size > 1:
            steps = along(steps, stored.quantization.quantizedDimension, len(shape))
        name = graph.tensors[operator.outputs[0]].name.decode()
        found[name] = codes.astype("float32") * steps
    return found


def oldest_runtime(float_version: str, forms: Iterable[KernelForm]) -> str:
    """The oldest runtime that opens a file: what its widest step ahead needs."""
    kinds = {form.form for form in forms}
    for kind in _KINDS:
        if kind in kinds:
            return RUNTIMES[kind]
    return float_version


def interpreter_of(path: Path) -> Any:
    """What runs a file; raises a `RuntimeError` where it needs operators that are not built in."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    return interpreter


def delegated(file: Path, forms: Iterable[KernelForm]) -> dict[str, bool]:
    """Which constants are used by an operator that the XNNPACK delegate runs.

    Args:
        file: The `.tflite` file.
        forms: The form of each constant.

    Returns:
        Whether it is so, by the names of the constants.
    """
    interpreter = interpreter_of(file)
    names = {detail["index"]: detail["name"] for detail in interpreter.get_tensor_details()}
    operators: list[Any] = interpreter._get_ops_details()
    inside: set[str] = set()
    for operator in operators:
        if operator["op_name"] == "DELEGATE":
            taken = {names.get(int(i), "") for i in operator["inputs"]}
            given = {names.get(int(i), "") for i in operator["outputs"]}
            inside |= {name.removesuffix("/codes") for name in taken} - given
    return {form.name: form.name in inside for form in forms}
