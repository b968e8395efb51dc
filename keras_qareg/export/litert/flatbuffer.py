"""Reading and editing the flatbuffer of a LiteRT file, by `ai_edge_litert`'s schema.

TensorFlow is not needed. Functions that take a `model` take a `ModelT`, the schema's object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_qareg.export.packing import packed

# Buffers begin at multiples of this many bytes, as the schema asks and its Python code forgets.
ALIGNMENT = 16
METADATA = "keras_qareg_kernels"


@dataclass(frozen=True)
class Constant:
    """A constant that operators take.

    Attributes:
        graph: The place of its graph: the main one is 0, loops have graphs of their own.
        tensor: Its place among the tensors of the graph.
        name: Its name.
        values: Array of float32, or of int8 codes.
        consumers: Names of the operators that take it, for example `CONV_2D`.
    """

    graph: int
    tensor: int
    name: str
    values: np.ndarray
    consumers: frozenset[str]


def constants(model: Any, kind: str = "float32", axes: int = 2) -> list[Constant]:
    """The constants of one type that have so many axes or more, and that operators take.

    Args:
        model: A `ModelT`.
        kind: `"float32"` or `"int8"`.
        axes: The fewest axes.

    Returns:
        List of `Constant`, in the order of the graphs and of their tensors.
    """
    from ai_edge_litert.schema_py_generated import TensorType

    wanted = getattr(TensorType, kind.upper())
    found = []
    for number, graph in enumerate(model.subgraphs):
        consumers: dict[int, set[str]] = {}
        for operator in graph.operators or []:
            for place in operator.inputs if operator.inputs is not None else ():
                consumers.setdefault(int(place), set()).add(operator_name(model, operator))
        for place, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            shape = [] if tensor.shape is None else tensor.shape
            if data is None or tensor.type != wanted or place not in consumers or len(shape) < axes:
                continue
            values = np.frombuffer(bytes(data), kind).reshape(shape)
            names = frozenset(consumers[place])
            found.append(Constant(number, place, tensor.name.decode(), values, names))
    return found


def operator_name(model: Any, operator: Any) -> str:
    """For example `CONV_2D`."""
    from ai_edge_litert.tools.flatbuffer_utils import opcode_to_name

    return str(opcode_to_name(model, operator.opcodeIndex))


class Chain:
    """Operators that compute something from constants, ahead of all others in a graph.

    Args:
        model: A `ModelT`, which is changed.
        graph: The place of the graph.
        name: What the names of new tensors begin with.
    """

    def __init__(self, model: Any, graph: int, name: str):
        self.model, self.graph, self.name = model, model.subgraphs[graph], name
        self.operators: list[Any] = []

    def constant(
        self, label: str, values: np.ndarray, kind: str, scale: Any = None, axis: int = 0
    ) -> int:
        """Adds a constant, quantized with zero points of 0 if there is a scale; returns its place."""
        small = kind in ("int4", "int2")
        data = packed(values, kind) if small else values.astype(kind)
        tensor = self.graph.tensors[self.tensor(label, values.shape, kind)]
        tensor.buffer = add_buffer(self.model, data)
        if scale is not None:
            tensor.quantization = quantization(scale, axis)
        return len(self.graph.tensors) - 1

    def tensor(self, label: str, shape: Any, kind: str) -> int:
        """Adds a tensor without content; returns its place."""
        from ai_edge_litert import schema_py_generated as schema

        tensor = schema.TensorT()
        tensor.name = f"{self.name}/{label}".encode()
        tensor.shape, tensor.hasRank = [int(size) for size in shape], True
        tensor.type = getattr(schema.TensorType, kind.upper())
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def apply(self, name: str, inputs: list[int], outputs: list[int], **options: Any) -> None:
        """Adds an operator by its name in the schema, for example `GATHER`."""
        from ai_edge_litert import schema_py_generated as schema

        operator = schema.OperatorT()
        operator.opcodeIndex = _opcode(self.model, getattr(schema.BuiltinOperator, name))
        operator.inputs, operator.outputs = inputs, outputs
        kind = "".join(part.capitalize() for part in name.split("_")) + "Options"
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(schema, f"{kind}T")()
        for key, value in options.items():
            setattr(operator.builtinOptions, key, value)
        self.operators.append(operator)

    def place(self) -> None:
        """Puts the operators at the beginning of their graph."""
        self.graph.operators = [*self.operators, *(self.graph.operators or [])]


def quantization(scale: Any, axis: int = 0, zero_point: int = 0) -> Any:
    """The schema's parameters of quantization: one scale, or one for each slice along an axis."""
    from ai_edge_litert import schema_py_generated as schema

    details = schema.QuantizationParametersT()
    details.scale = [float(step) for step in np.atleast_1d(scale)]
    details.zeroPoint = [zero_point] * len(details.scale)
    details.quantizedDimension = axis
    return details


def add_graph(model: Any, name: str) -> int:
    """Adds a graph without inputs and outputs; returns its place."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.SubGraphT()
    graph.name = name.encode()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], []
    model.subgraphs.append(graph)
    return len(model.subgraphs) - 1


def add_buffer(model: Any, data: np.ndarray) -> int:
    """Adds content; returns its place."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), "uint8")
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def add_metadata(model: Any, content: Any) -> None:
    """Adds an entry of JSON to the metadata of a file."""
    from ai_edge_litert import schema_py_generated as schema

    entry = schema.MetadataT()
    entry.name = METADATA.encode()
    raw = json.dumps(content, separators=(",", ":")).encode()
    entry.buffer = add_buffer(model, np.frombuffer(raw, "uint8"))
    model.metadata = [*(model.metadata or []), entry]


def metadata(model: Any, name: str) -> Iterator[bytes]:
    """The entries of a name in the metadata of a file."""
    for entry in model.metadata or []:
        if entry.name == name.encode():
            yield bytes(model.buffers[entry.buffer].data)


def kernel_entry(constant: Constant, path: str, form: str) -> dict[str, Any]:
    """What the metadata of a file say of a rewritten kernel."""
    return {"graph": constant.graph, "tensor": constant.name, "kernel": path, "form": form}


def kernel_entries(model: Any) -> list[dict[str, Any]]:
    """The entry of each rewritten kernel in the metadata of a file."""
    return [entry for raw in metadata(model, METADATA) for entry in json.loads(raw)]


def read(content: bytes) -> Any:
    """A `ModelT` of the content of a file."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(bytearray(content))


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
