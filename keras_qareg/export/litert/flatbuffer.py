"""Reading and editing the flatbuffer of a LiteRT file, by `ai_edge_litert`'s schema.

TensorFlow is not needed. Functions that take a `model` take a `ModelT`, the schema's object.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.export.packing import packed

METADATA, IDENTIFIER = b"keras_qareg_kernels", b"TFL3"
# Metadata of TFLite Micro's own compression, under which buffers are shorter.
_COMPRESSION = b"COMPRESSION_METADATA"
# The bits of a number of each type of the schema that has a fixed size.
_BITS = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 9: 8, 10: 64, 12: 64, 15: 32, 16: 16}
_BITS |= {17: 4, 18: 16, 19: 2, 20: 4}


class Places(NamedTuple):
    """Where an operator that multiplies with a kernel has its input, the kernel, and the bias."""

    given: int
    kernel: int
    bias: int


PLACES = {
    "CONV_2D": Places(0, 1, 2),
    "DEPTHWISE_CONV_2D": Places(0, 1, 2),
    "FULLY_CONNECTED": Places(0, 1, 2),
    "TRANSPOSE_CONV": Places(2, 1, 3),
}


class Named(NamedTuple):
    """What the metadata of a file say of a constant of two or more axes, or of what became of it.

    Attributes:
        graph: The place of its graph.
        tensor: Its place among the tensors of the graph.
        name: The path of the Keras kernel that it is, or the name that the converter gave.
        form: The form of `export.litert` that it was rewritten to, or an empty text.
    """

    graph: int
    tensor: int
    name: str
    form: str = ""


@dataclass(frozen=True)
class Constant:
    """A constant that operators take.

    Attributes:
        graph: The place of its graph: the main one is 0, loops have graphs of their own.
        tensor: Its place among the tensors of the graph.
        name: Its name: in files of ours the path of a Keras kernel, or what the converter gave.
        values: Array of float32, or of int8 codes.
        consumers: Names of the operators that take it, for example `CONV_2D`.
    """

    graph: int
    tensor: int
    name: str
    values: np.ndarray
    consumers: frozenset[str]


def ends(content: bytes | bytearray) -> dict[str, tuple[np.ndarray, dict[str, int]]]:
    """The tensors that are the `inputs` and the `outputs` of a file, in its order, and by name.

    Args:
        content: A file with a signature. Of a `bytearray`, what is written to the arrays is written to
            the file.
    """
    from ai_edge_litert.schema_py_generated import Model

    root = Model.GetRootAs(content)
    graph, names, found = root.Subgraphs(0), root.SignatureDefs(0), {}
    for kind in ("Inputs", "Outputs"):
        count, named = getattr(names, f"{kind}Length")(), getattr(names, kind)
        places = {named(i).Name().decode(): named(i).TensorIndex() for i in range(count)}
        found[kind.lower()] = getattr(graph, f"{kind}AsNumpy")(), places
    return found


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
            for place in listed(operator.inputs):
                consumers.setdefault(place, set()).add(operator_name(model, operator))
        for place, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            shape = listed(tensor.shape)
            if data is None or tensor.type != wanted or place not in consumers or len(shape) < axes:
                continue
            values = np.frombuffer(bytes(data), kind).reshape(shape)
            names = frozenset(consumers[place])
            found.append(Constant(number, place, name_of(tensor), values, names))
    return found


def listed(vector: Any) -> list[int]:
    """The numbers of a vector of the schema, which is `None` where there are none."""
    return [] if vector is None else [int(number) for number in vector]


def name_of(tensor: Any) -> str:
    """The name of a tensor, or an empty text."""
    return tensor.name.decode(errors="replace") if tensor.name else ""


def operator_name(model: Any, operator: Any) -> str:
    """For example `CONV_2D`."""
    from ai_edge_litert.tools.flatbuffer_utils import opcode_to_name

    return str(opcode_to_name(model, operator.opcodeIndex))


class Chain:
    """Operators that compute something from constants, ahead of all others in a graph.

    Args:
        model: A `ModelT`, which is changed.
        graph: The place of the graph.
    """

    def __init__(self, model: Any, graph: int):
        self.model, self.graph = model, model.subgraphs[graph]
        self.operators: list[Any] = []

    def constant(self, values: Any, kind: str, scale: Any = None, axis: int = 0) -> int:
        """Adds a constant, quantized with zero points of 0 if there is a scale; returns its place."""
        values = np.asarray(values)
        data = packed(values, kind) if kind in ("int4", "int2") else values.astype(kind)
        place = self.tensor(values.shape, kind)
        tensor = self.graph.tensors[place]
        tensor.buffer = add_buffer(self.model, data)
        if scale is not None:
            tensor.quantization = quantization(scale, axis)
        return place

    def tensor(self, shape: Any, kind: str) -> int:
        """Adds a tensor without content; returns its place."""
        from ai_edge_litert import schema_py_generated as schema

        tensor = schema.TensorT()
        tensor.shape, tensor.hasRank = [int(size) for size in shape], True
        tensor.type = getattr(schema.TensorType, kind.upper())
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def apply(self, name: str, inputs: list[int], outputs: list[int], **options: Any) -> None:
        """Adds an operator by its name in the schema, for example `GATHER`."""
        self.operators.append(operator(self.model, name, inputs, outputs, **options))

    def result(self, name: str, inputs: list[int], shape: Any, kind: str, **options: Any) -> int:
        """Adds an operator and the tensor that it computes; returns the place of the tensor."""
        output = self.tensor(shape, kind)
        self.apply(name, inputs, [output], **options)
        return output

    def cast(self, values: int, shape: Any, kind: str, to: str) -> int:
        """Adds a CAST from one type to another; returns the place of its result."""
        from ai_edge_litert.schema_py_generated import TensorType

        old, new = getattr(TensorType, kind.upper()), getattr(TensorType, to.upper())
        return self.result("CAST", [values], shape, to, inDataType=old, outDataType=new)

    def place(self) -> None:
        """Puts the operators at the beginning of their graph."""
        self.graph.operators = [*self.operators, *(self.graph.operators or [])]


def operator(model: Any, name: str, inputs: list[int], outputs: list[int], **options: Any) -> Any:
    """An `OperatorT` by its name in the schema, whose kind is added to the file if need be."""
    from ai_edge_litert import schema_py_generated as schema

    made = schema.OperatorT()
    made.opcodeIndex = _opcode(model, getattr(schema.BuiltinOperator, name))
    made.inputs, made.outputs = inputs, outputs
    kind = "".join(part.capitalize() for part in name.split("_")) + "Options"
    made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    made.builtinOptions = getattr(schema, f"{kind}T")()
    for key, value in options.items():
        setattr(made.builtinOptions, key, value)
    return made


def quantization(scale: Any, axis: int = 0, zero_point: int = 0) -> Any:
    """The schema's parameters of quantization: one scale, or one for each slice along an axis."""
    from ai_edge_litert import schema_py_generated as schema

    details = schema.QuantizationParametersT()
    details.scale = [float(step) for step in np.atleast_1d(scale)]
    details.zeroPoint = [zero_point] * len(details.scale)
    details.quantizedDimension = axis
    return details


def add_graph(model: Any) -> int:
    """Adds a graph without inputs and outputs; returns its place."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.SubGraphT()
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


def set_names(model: Any, names: Iterable[Named]) -> None:
    """Writes names into the metadata of a file: JSON, compressed by zlib.

    Tensors inside a file have none of their own, since names are most of what small files hold.
    """
    from ai_edge_litert import schema_py_generated as schema

    raw = json.dumps([list(name) for name in names], separators=(",", ":")).encode()
    entry = schema.MetadataT()
    entry.name = METADATA
    entry.buffer = add_buffer(model, np.frombuffer(zlib.compress(raw, 9), "uint8"))
    others = [other for other in model.metadata or [] if other.name != METADATA]
    model.metadata = [*others, entry]


def names(model: Any) -> list[Named]:
    """The names in the metadata of a file of ours; none in others."""
    raw = [zlib.decompress(entry) for entry in metadata(model, METADATA)]
    return [Named(*entry) for part in raw for entry in json.loads(part)]


def metadata(model: Any, name: bytes) -> Iterator[bytes]:
    """The entries of a name in the metadata of a file."""
    for entry in model.metadata or []:
        if entry.name == name:
            yield bytes(model.buffers[entry.buffer].data)


def read(content: bytes) -> Any:
    """A `ModelT` of the content of a file, with the names that its metadata keep.

    What a DEQUANTIZE makes a kernel of is its `codes`.
    """
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(content))
    for named in names(model):
        tensor = model.subgraphs[named.graph].tensors[named.tensor]
        tensor.name = tensor.name or named.name.encode()
    for graph in model.subgraphs:
        for made in graph.operators or []:
            if operator_name(model, made) == "DEQUANTIZE":
                codes, kernel = graph.tensors[made.inputs[0]], graph.tensors[made.outputs[0]]
                codes.name = codes.name or (kernel.name and kernel.name + b"/codes")
    return model


def check_structure(model: Any) -> None:
    """Raises a `ValueError` where tensors are not there, or short: a runtime may crash then."""
    whole = not any(entry.name == _COMPRESSION for entry in model.metadata or [])
    for graph in model.subgraphs:
        count, operators = len(graph.tensors or []), graph.operators or []
        inputs = [place for o in operators for place in listed(o.inputs) if place != -1]  # -1: none
        outputs = [place for o in operators for place in listed(o.outputs)]
        others = [
            place
            for place in (*inputs, *outputs, *listed(graph.inputs), *listed(graph.outputs))
            if not 0 <= place < count
        ]
        if others:
            raise ValueError(f"tensors {others} of {count}")
        for tensor in graph.tensors or []:
            _check_buffer(model, tensor, whole)


def _check_buffer(model: Any, tensor: Any, whole: bool) -> None:
    data, bits = model.buffers[tensor.buffer].data, _BITS.get(tensor.type)
    if not whole or data is None or not len(data) or bits is None or tensor.sparsity is not None:
        return
    wanted = -(-math.prod(listed(tensor.shape)) * bits // 8)
    if len(data) != wanted:
        raise ValueError(
            f"{len(data)} bytes in the place of {wanted} in tensor '{name_of(tensor)}'"
        )


def _opcode(model: Any, builtin: int) -> int:
    """The place of an operator among those of the file, where it is added if need be."""
    from ai_edge_litert import schema_py_generated as schema

    for place, code in enumerate(model.operatorCodes):
        if code.customCode is None and max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            return place
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = builtin, 1
    code.deprecatedBuiltinCode = min(builtin, 127)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
