"""Where the bytes of a `.tflite` file are: weights, tables, biases, names, and what holds them together.

What a constant is follows from how operators use it, never from its name: most have none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import listed

# Where the operators that multiply with a kernel have it, and the bias that they add.
_KERNELS: dict[str, tuple[int, int | None]] = {
    **{name: (places.kernel, places.bias) for name, places in flatbuffer.PLACES.items()},
    "CONV_3D": (1, 2),
    "CONV_3D_TRANSPOSE": (1, 3),
    "EMBEDDING_LOOKUP": (1, None),
}
_RECURRENT = ("LSTM", "RNN", "SVDF")
# Operators that only move values: which input has them; the others say how.
_MOVING = {"SPLIT": 1} | dict.fromkeys(
    ("RESHAPE", "SLICE", "STRIDED_SLICE", "TRANSPOSE", "SPLIT_V", "EXPAND_DIMS", "TILE"), 0
)
_JOINING = ("CONCATENATION", "PACK")
_ARITHMETIC = ("MUL", "DIV", "ADD", "SUB")
_LEFT_OVER = "constants"
# Where tables of the schema have fields.
_DATA, _SCALE, _ZERO_POINT = 4, 8, 10
_NAME_OF_METADATA, _NAME_OF_END, _KEY_OF_SIGNATURE = 4, 4, 8
_NAME_OF_TENSOR, _NAME_OF_GRAPH = 10, 12
# What has several roles is told of by the first.
_ROLES = ("weights", "biases", "tables", _LEFT_OVER)


@dataclass(frozen=True)
class Sections:
    """The bytes of a file by what they are for; together they are the whole file.

    Attributes:
        weights: Kernels, as numbers or as packed indices.
        tables: The values of codebooks, factors of channels, scales and zero points of constants.
        biases: What is added to each channel.
        constants: All other constants, such as shapes.
        names: Names of tensors, graphs, inputs and outputs.
        metadata: The entries of metadata.
        records: What is left: operators, tensors, their scales, the places of all these, and gaps that
            align constants.
    """

    weights: int
    tables: int
    biases: int
    constants: int
    names: int
    metadata: int
    records: int

    @property
    def total(self) -> int:
        """The size of the file."""
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        shares = {
            field.name: round(100 * getattr(self, field.name) / self.total, 1)
            for field in dataclasses.fields(self)
        }
        parts = [f"{name} {share:.1f} %" for name, share in shares.items() if share]
        return ", ".join(parts)


def sections(content: bytes) -> Sections:
    """Where the bytes of a file are.

    Args:
        content: A `.tflite` file.

    Returns:
        A `Sections`.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    # `flatbuffer.read` gives tensors names that are in the metadata alone.
    model = read_model_from_bytearray(bytearray(content))
    file, length = schema.Model.GetRootAs(bytearray(content), 0), _Lengths()
    found, uses = dict.fromkeys(_ROLES, 0), Uses(model)
    roles: dict[int, str] = {}
    for number, graph in enumerate(model.subgraphs):
        for place, tensor in enumerate(graph.tensors):
            if model.buffers[tensor.buffer].data is None:
                continue
            stored = file.Subgraphs(number).Tensors(place)  # its buffers have numbers of their own
            role, before = uses.role(number, place), roles.get(stored.Buffer(), _LEFT_OVER)
            roles[stored.Buffer()] = min(role, before, key=_ROLES.index)
            details = stored.Quantization()
            if details is not None:
                found["tables"] += length.of(details, _SCALE, 4) + length.of(
                    details, _ZERO_POINT, 8
                )
    for buffer, role in roles.items():
        found[role] += length.of_content(file.Buffers(buffer))
    metadata = sum(
        length.of(entry, _NAME_OF_METADATA, text=True)
        + length.of_content(file.Buffers(entry.Buffer()))
        for entry in map(file.Metadata, range(file.MetadataLength()))
    )
    names = sum(length.of(*name, text=True) for name in _names(file))
    known = sum(found.values()) + names + metadata
    return Sections(**found, names=names, metadata=metadata, records=len(content) - known)


class _Lengths:
    """The bytes of texts and vectors in a file, each of which several tables may have."""

    def __init__(self) -> None:
        self._counted: set[int] = set()

    def of(self, table: Any, field: int, width: int = 1, text: bool = False) -> int:
        """The bytes of a field; 0 if it is empty, or was counted before.

        Args:
            table: A table of the schema.
            field: Where its field is, as the schema's code has it.
            width: The bytes of an element. Defaults to 1.
            text: Whether it is a text, which has its length before it and a zero behind.
        """
        inside = table._tab
        offset = inside.Offset(field)
        if not offset or not self._first(inside.Indirect(offset + inside.Pos)):
            return 0
        return int(inside.VectorLen(offset)) * width + (5 if text else 0)

    def of_content(self, buffer: Any) -> int:
        """The bytes of a buffer; those of very large files stand behind all tables."""
        if buffer.Offset() > 1:
            return int(buffer.Size()) if self._first(buffer.Offset()) else 0
        return self.of(buffer, _DATA)

    def _first(self, place: int) -> bool:
        new = place not in self._counted
        self._counted.add(place)
        return new


class Uses:
    """What the constants of a file are for.

    Args:
        model: A `ModelT`.
    """

    def __init__(self, model: Any):
        self.model = model
        self._consumers: dict[tuple[int, int], list[tuple[Any, int]]] = {}
        self._fixed: set[tuple[int, int]] = set()
        self._read: dict[bytes, list[tuple[int, int]]] = {}
        handles: dict[tuple[int, int], bytes] = {}
        for number, graph in enumerate(model.subgraphs):
            for place, tensor in enumerate(graph.tensors):
                if model.buffers[tensor.buffer].data is not None:
                    self._fixed.add((number, place))
            for operator in graph.operators or []:
                self._note(number, operator, handles)
        self._handles = handles
        self._seen: dict[tuple[int, int], str] = {}

    def _note(self, number: int, operator: Any, handles: dict[tuple[int, int], bytes]) -> None:
        name = flatbuffer.operator_name(self.model, operator)
        inputs = listed(operator.inputs)
        outputs = [(number, place) for place in listed(operator.outputs)]
        for position, place in enumerate(inputs):
            self._consumers.setdefault((number, place), []).append((operator, position))
        if all(place < 0 or (number, place) in self._fixed for place in inputs):
            self._fixed.update(outputs)
        if name == "VAR_HANDLE":
            handles[outputs[0]] = bytes(operator.builtinOptions.sharedName or b"")
        elif name == "READ_VARIABLE":
            variable = handles.get((number, inputs[0]), b"")
            self._read.setdefault(variable, []).extend(outputs)

    def role(self, graph: int, tensor: int) -> str:
        """What a tensor is for: `"weights"`, `"tables"`, `"biases"` or `"constants"`."""
        key = (graph, tensor)
        if key not in self._seen:
            self._seen[key] = _LEFT_OVER  # for circles, which loops have
            roles = [self._used(graph, *use) for use in self._consumers.get(key, [])]
            self._seen[key] = self._best(roles)
        return self._seen[key]

    def _used(self, graph: int, operator: Any, position: int) -> str:
        name = flatbuffer.operator_name(self.model, operator)
        inputs = listed(operator.inputs)
        outputs = listed(operator.outputs)
        rank = len(listed(self.model.subgraphs[graph].tensors[inputs[position]].shape))
        if name in _KERNELS:
            kernel, bias = _KERNELS[name]
            if position == kernel:
                return "weights"
            return "biases" if position == bias else _LEFT_OVER
        if name == "BATCH_MATMUL":
            return "weights"
        if name.endswith(_RECURRENT):
            return "weights" if rank > 1 else "biases"
        if name == "CUSTOM":
            return self._custom(operator, position)
        if name in ("WHILE", "IF", "CALL", "STABLEHLO_WHILE"):
            return self._inside(name, operator, position)
        if name == "ASSIGN_VARIABLE":
            variable = self._handles.get((graph, inputs[0]), b"")
            return self._best([self.role(*place) for place in self._read.get(variable, [])])
        fixed = [place < 0 or (graph, place) in self._fixed for place in inputs]
        if name == "GATHER":
            return self._gathered(graph, position, fixed, outputs)
        if all(fixed):
            return self._computed(graph, name, position, inputs, outputs)
        vector = _size(self.model.subgraphs[graph].tensors[inputs[position]]) > 1
        if name in _ARITHMETIC and vector:
            return "tables" if name in ("MUL", "DIV") else "biases"
        return _LEFT_OVER

    def _gathered(self, graph: int, position: int, fixed: list[bool], outputs: list[int]) -> str:
        """A codebook looks up rows of a table by numbers of the file; an embedding by an input."""
        if all(fixed[:2]):
            if position == 1:
                return self._best([self.role(graph, place) for place in outputs])
            return "tables" if position == 0 else _LEFT_OVER
        return "weights" if position == 0 and fixed[0] else _LEFT_OVER

    def _computed(
        self, graph: int, name: str, position: int, inputs: list[int], outputs: list[int]
    ) -> str:
        """What goes into a computation of constants alone: its largest inputs are what others change."""
        tensors = self.model.subgraphs[graph].tensors
        role = self._best([self.role(graph, place) for place in outputs])
        if name in _MOVING:
            return role if position == _MOVING[name] else _LEFT_OVER
        # Indices may be the sum of two halves, both as large.
        large = _size(tensors[inputs[position]]) == max(_size(tensors[i]) for i in inputs)
        return role if role == _LEFT_OVER or name in _JOINING or large else "tables"

    def _custom(self, operator: Any, position: int) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex].customCode
        if code == b"TFLM_DECODE":
            return "tables" if position % 2 else "weights"
        return "weights" if code == b"ethos-u" and position < 2 else _LEFT_OVER

    def _inside(self, name: str, operator: Any, position: int) -> str:
        """What a graph makes of an input that is handed to it."""
        options = operator.builtinOptions
        if name == "IF":
            graphs, place = [options.thenSubgraphIndex, options.elseSubgraphIndex], position - 1
        elif name == "CALL":
            graphs, place = [options.subgraph], position
        else:
            graphs, place = [options.condSubgraphIndex, options.bodySubgraphIndex], position
        found = []
        for graph in graphs:
            taken = listed(self.model.subgraphs[graph].inputs)
            if 0 <= place < len(taken):
                found.append(self.role(graph, taken[place]))
        return self._best(found)

    @staticmethod
    def _best(roles: list[str]) -> str:
        return next((role for role in _ROLES if role in roles), _LEFT_OVER)


def _names(file: Any) -> Iterator[tuple[Any, int]]:
    """Tables with names of a tensor, a graph, an input or an output, and where these have them."""
    for graph in map(file.Subgraphs, range(file.SubgraphsLength())):
        yield graph, _NAME_OF_GRAPH
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            yield tensor, _NAME_OF_TENSOR
    for signature in map(file.SignatureDefs, range(file.SignatureDefsLength())):
        yield signature, _KEY_OF_SIGNATURE
        for end in map(signature.Inputs, range(signature.InputsLength())):
            yield end, _NAME_OF_END
        for end in map(signature.Outputs, range(signature.OutputsLength())):
            yield end, _NAME_OF_END


def _size(tensor: Any) -> int:
    size = 1
    for axis in listed(tensor.shape):
        size *= abs(axis)
    return size
