"""Rewriting a LiteRT file: float32 kernels become small integers before a DEQUANTIZE operator.

A runtime computes `code * step` in float32, so the kernel that it multiplies with is the one that the
Keras model has, to the bit. Files are read and written by `ai_edge_litert`'s schema; TensorFlow is not
needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_qareg.export.recognition import CODE_RANGES

# Buffers begin at multiples of this many bytes, as the schema asks and its Python code forgets.
ALIGNMENT = 16
METADATA = "keras_qareg_grids"


@dataclass(frozen=True)
class Constant:
    """A float32 constant of the main graph.

    Attributes:
        tensor: Its place among the tensors.
        name: Its name.
        values: Float32 array.
        consumers: Names of the operators that take it, for example `CONV_2D`.
    """

    tensor: int
    name: str
    values: np.ndarray
    consumers: frozenset[str]


def constants(model: Any) -> list[Constant]:
    """The float32 constants of two or more axes that the operators of the main graph take.

    Args:
        model: A `ModelT` of `ai_edge_litert`.

    Returns:
        List of `Constant`, in the order of the tensors.
    """
    from ai_edge_litert.tools.flatbuffer_utils import opcode_to_name

    graph = model.subgraphs[0]
    consumers: dict[int, set[str]] = {}
    for operator in graph.operators:
        for tensor in operator.inputs:
            name = opcode_to_name(model, operator.opcodeIndex)
            consumers.setdefault(int(tensor), set()).add(str(name))
    found = []
    for place, tensor in enumerate(graph.tensors):
        data = model.buffers[tensor.buffer].data
        if data is None or tensor.type != 0 or len(tensor.shape) < 2 or place not in consumers:
            continue
        values = np.frombuffer(bytes(data), "<f4").reshape(tensor.shape)
        names = frozenset(consumers[place])
        found.append(Constant(place, tensor.name.decode(), values, names))
    return found


def quantize(
    model: Any, tensor: int, codes: np.ndarray, steps: np.ndarray, axis: int | None, kind: str
) -> None:
    """Puts integer codes and a DEQUANTIZE operator in the place of a constant.

    Args:
        model: A `ModelT`, which is changed.
        tensor: The place of the constant in the main graph.
        codes: Integer array in the shape of the constant.
        steps: Float32 array of shape `(1,)`, or one step for each slice along `axis`.
        axis: The axis of the channels, or `None`.
        kind: `"int8"`, `"int4"` or `"int2"`.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    constant = graph.tensors[tensor]
    details = schema.QuantizationParametersT()
    details.scale = [float(step) for step in steps]
    details.zeroPoint = [0] * len(steps)
    details.quantizedDimension = axis or 0
    stored = schema.TensorT()
    stored.name = constant.name + b"/codes"
    stored.shape, stored.hasRank = list(constant.shape), True
    stored.type = getattr(schema.TensorType, kind.upper())
    stored.buffer = _add_buffer(model, packed(codes, kind))
    stored.quantization = details
    graph.tensors.append(stored)
    constant.buffer = 0
    operator = schema.OperatorT()
    operator.opcodeIndex = _opcode(model, schema.BuiltinOperator.DEQUANTIZE)
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [tensor]
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    graph.operators.insert(0, operator)


def bits_of_kind(kind: str) -> int:
    """Bits of a code: 8 of `"int8"`."""
    return int(kind.removeprefix("int"))


def packed(codes: np.ndarray, kind: str) -> np.ndarray:
    """Codes as bytes: one, two or four a byte, the first in the lowest bits.

    Args:
        codes: Integer array of any shape.
        kind: `"int8"`, `"int4"` or `"int2"`.

    Returns:
        Uint8 array.

    Raises:
        ValueError: If a code is out of the range of the kind.

    Example:

    >>> packed(np.array([1, -2, 0]), "int4").tolist()
    [225, 0]
    """
    low, high = CODE_RANGES[kind]
    if codes.min() < low or codes.max() > high:
        raise ValueError(
            f"Expected codes from {low} to {high}. Received: {codes.min()} to {codes.max()}"
        )
    bits = bits_of_kind(kind)
    flat = codes.reshape(-1).astype("int8").view("uint8") & (2**bits - 1)
    each = 8 // bits
    flat = np.pad(flat, (0, -flat.size % each)).reshape(-1, each)
    return (flat << (bits * np.arange(each, dtype="uint8"))).sum(axis=1).astype("uint8")


def unpacked(data: np.ndarray, kind: str, size: int) -> np.ndarray:
    """The inverse of `packed`: int8 array of shape `(size,)`."""
    bits = bits_of_kind(kind)
    each = 8 // bits
    shifts = bits * np.arange(each, dtype="uint8")
    flat = ((data[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:size].astype("int16")
    return np.where(flat >= 2 ** (bits - 1), flat - 2**bits, flat).astype("int8")


def add_metadata(model: Any, content: Any) -> None:
    """Adds an entry of JSON to the metadata of a file."""
    from ai_edge_litert import schema_py_generated as schema

    entry = schema.MetadataT()
    entry.name = METADATA.encode()
    raw = json.dumps(content, separators=(",", ":")).encode()
    entry.buffer = _add_buffer(model, np.frombuffer(raw, "uint8"))
    model.metadata = [*(model.metadata or []), entry]


def to_bytes(model: Any) -> bytes:
    """A `ModelT` as the content of a file, its buffers aligned and none left over."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}

    class Aligned(schema.BufferT):
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            vector = None
            if self.data is not None:
                content = bytes(self.data)
                builder.StartVector(1, len(content), ALIGNMENT)
                builder.head -= len(content)
                builder.Bytes[builder.head : builder.head + len(content)] = content
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if vector is not None:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    buffers = model.buffers
    model.buffers = []
    for place, buffer in enumerate(buffers):
        aligned = Aligned()
        aligned.data = buffer.data if place in used else None
        model.buffers.append(aligned)
    try:
        return bytes(convert_object_to_bytearray(model))
    finally:
        model.buffers = buffers


def _add_buffer(model: Any, data: np.ndarray) -> int:
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.ascontiguousarray(data)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _opcode(model: Any, builtin: int) -> int:
    """The place of an operator among those of the file, where it is added if need be."""
    from ai_edge_litert import schema_py_generated as schema

    for place, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            return place
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = builtin, 1
    code.deprecatedBuiltinCode = min(builtin, 127)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
