"""Where the bytes of a `.tflite` file are: weights, tables, biases, names, and what holds them together.

What a constant is follows from how operators use it, never from its name: most have none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras_qareg.export.litert import flatbuffer

# Where the operators that multiply with a kernel have it, and the bias that they add.
_KERNELS = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "CONV_3D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
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
        parts = [
            f"{field.name} {100 * getattr(self, field.name) / self.total:.1f} %"
            for field in dataclasses.fields(self)
            if getattr(self, field.name)
        ]
        return ", ".join(parts)


def sections(content: bytes) -> Sections:
    """Where the bytes of a file are.

    Args:
        content: A `.tflite` file.

    Returns:
        A `Sections`.
    """
    model = flatbuffer.read(content)
    found = dict.fromkeys(_ROLES, 0)
    roles: dict[int, str] = {}
    uses = Uses(model)
    for number, graph in enumerate(model.subgraphs):
        for place, tensor in enumerate(graph.tensors):
            if model.buffers[tensor.buffer].data is None:
                continue
            role, before = uses.role(number, place), roles.get(tensor.buffer, _LEFT_OVER)
            roles[tensor.buffer] = min(role, before, key=_ROLES.index)
            details = tensor.quantization
            if details is not None:
                found["tables"] += 4 * _length(details.scale) + 8 * _length(details.zeroPoint)
    for buffer, role in roles.items():
        found[role] += len(model.buffers[buffer].data)
    # A text has its length before it and a zero behind.
    names = sum(len(name) + 5 for name in _names(model) if name is not None)
    metadata = sum(
        len(entry.name) + 5 + _length(model.buffers[entry.buffer].data)
        for entry in model.metadata or []
    )
    known = sum(found.values()) + names + metadata
    return Sections(**found, names=names, metadata=metadata, records=len(content) - known)


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
        inputs = [int(i) for i in _listed(operator.inputs)]
        outputs = [(number, int(i)) for i in _listed(operator.outputs)]
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
        inputs = [int(i) for i in _listed(operator.inputs)]
        outputs = [int(i) for i in _listed(operator.outputs)]
        rank = len(_listed(self.model.subgraphs[graph].tensors[inputs[position]].shape))
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
        """What goes into a computation of constants alone: its largest input is what others change."""
        tensors = self.model.subgraphs[graph].tensors
        role = self._best([self.role(graph, place) for place in outputs])
        if name in _MOVING:
            return role if position == _MOVING[name] else _LEFT_OVER
        largest = max(range(len(inputs)), key=lambda i: _size(tensors[inputs[i]]))
        return role if role == _LEFT_OVER or name in _JOINING or position == largest else "tables"

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
            taken = _listed(self.model.subgraphs[graph].inputs)
            if 0 <= place < len(taken):
                found.append(self.role(graph, int(taken[place])))
        return self._best(found)

    @staticmethod
    def _best(roles: list[str]) -> str:
        return next((role for role in _ROLES if role in roles), _LEFT_OVER)


def _names(model: Any) -> Iterator[bytes | None]:
    for graph in model.subgraphs:
        yield graph.name
        yield from (tensor.name for tensor in graph.tensors)
    for signature in model.signatureDefs or []:
        yield signature.signatureKey
        yield from (part.name for part in [*_listed(signature.inputs), *_listed(signature.outputs)])


def _listed(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _length(values: Any) -> int:
    return 0 if values is None else len(values)


def _size(tensor: Any) -> int:
    size = 1
    for axis in _listed(tensor.shape):
        size *= abs(int(axis))
    return size
