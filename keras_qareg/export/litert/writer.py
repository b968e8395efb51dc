"""A `ModelT` as the bytes of a file: each thing once, and only what a runtime reads.

The converter names every tensor, and writes every shape, option and empty record again where it is used.
In files of small networks that is more than the weights. Here only inputs and outputs keep their names,
and whatever is equal is written once: flatbuffers allow two places to point to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import METADATA, Named

if TYPE_CHECKING:
    from flatbuffers import Builder
else:
    Builder = object  # it comes with TensorFlow, which nothing but this needs

# Buffers begin at multiples of this many bytes, as the schema asks and its Python code forgets.
ALIGNMENT = 16
# The entries of the converter's metadata that a runtime, or we, read again.
_KEPT_METADATA = (b"min_runtime_version", METADATA)


def to_bytes(model: Any) -> bytes:
    """A `ModelT` as the content of a file.

    Args:
        model: A `ModelT`. It is changed: tensors that are neither inputs nor outputs lose their names,
            which `flatbuffer.set_names` keeps where they say something.
    """
    _drop_what_nothing_reads(model)
    _drop_unused_operators(model)
    _drop_unused_contents(model)
    _share_buffers(model)
    builder = sharing_builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=flatbuffer.IDENTIFIER)
    return bytes(builder.Output())


def compacted(content: bytes, kind: str) -> bytes:
    """A file of the converter in fewer bytes; its constants of one type keep their names as metadata."""
    model = flatbuffer.read(content)
    constants = flatbuffer.constants(model, kind)
    flatbuffer.set_names(model, [Named(c.graph, c.tensor, c.name) for c in constants])
    return to_bytes(model)


def _drop_what_nothing_reads(model: Any) -> None:
    model.description = None
    model.metadata = [m for m in model.metadata or [] if m.name in _KEPT_METADATA]
    for place, graph in enumerate(model.subgraphs):
        graph.name = graph.name if place == 0 else None
        ends = {*flatbuffer.listed(graph.inputs), *flatbuffer.listed(graph.outputs)}
        for number, tensor in enumerate(graph.tensors):
            tensor.name = tensor.name if number in ends and place == 0 else None
            details = tensor.quantization
            if details is not None and details.details is None:
                details.min = details.max = None
                if details.scale is None or not len(details.scale):
                    tensor.quantization = None
            signature = tensor.shapeSignature
            if signature is not None and -1 not in np.asarray(signature):
                tensor.shapeSignature = None


def _drop_unused_operators(model: Any) -> None:
    """Rewriting may have taken the last operator of a kind."""
    operators = [operator for graph in model.subgraphs for operator in graph.operators or []]
    used = sorted({operator.opcodeIndex for operator in operators})
    places = {old: new for new, old in enumerate(used)}
    model.operatorCodes = [model.operatorCodes[old] for old in used]
    for operator in operators:
        operator.opcodeIndex = places[operator.opcodeIndex]


def _drop_unused_contents(model: Any) -> None:
    """Of constants that rewriting left without a reader."""
    for graph in model.subgraphs:
        used = set(flatbuffer.listed(graph.outputs))
        for operator in graph.operators or []:
            used.update(flatbuffer.listed(operator.inputs))
        for place, tensor in enumerate(graph.tensors):
            tensor.buffer = tensor.buffer if place in used else 0


def _share_buffers(model: Any) -> None:
    """One buffer for equal contents, the first one for tensors without, and none that is not used."""
    from ai_edge_litert import schema_py_generated as schema

    buffers: list[Any] = [schema.BufferT()]
    places = {b"": 0}

    def place_of(number: int) -> int:
        data = model.buffers[number].data
        content = b"" if data is None else bytes(data)
        if content not in places:
            places[content] = len(buffers)
            buffers.append(_AlignedBuffer(content))
        return places[content]

    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = place_of(tensor.buffer)
    for entry in model.metadata:
        entry.buffer = place_of(entry.buffer)
    model.buffers = buffers


class _AlignedBuffer:
    """What stands for a `BufferT` and writes its content where runtimes can read it at once."""

    def __init__(self, content: bytes):
        self.data = np.frombuffer(content, "uint8")

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        from ai_edge_litert import schema_py_generated as schema

        content = self.data.tobytes()
        builder.StartVector(1, len(content), ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def sharing_builder(size: int) -> Any:
    """A `flatbuffers.Builder` that writes strings, vectors and tables that are equal once."""
    import flatbuffers

    return type("SharingBuilder", (_Sharing, flatbuffers.Builder), {})(size)


class _Sharing(Builder):
    """Writes strings, vectors and tables that are equal once.

    What is there already is taken back: the head returns to where it was, and the caller gets the offset
    of the first one. Tables are compared by their fields, since what they hold of others is shared too.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self._known: dict[Any, int] = {}
        self._fields: list[Any] = []
        self._places: list[int] = []
        self._start, self._kind = 0, (0, 0)

    def _shared(self, key: Any, start: int, end: Callable[[], int]) -> int:
        """The offset of what has this key, which otherwise ends here."""
        if key in self._known:
            self.head = len(self.Bytes) - start
            self.nested = False
            return self._known[key]
        self._known[key] = end()
        return self._known[key]

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803
        self._start, self._kind, self._places = self.Offset(), (elemSize, alignment), []
        return super().StartVector(elemSize, numElems, alignment)

    def EndVector(self, numElems: Any = None) -> int:  # noqa: N802, N803
        count, (width, alignment) = self.vectorNumElems, self._kind
        if self._places:  # offsets are relative to where they stand
            return self._shared(tuple(self._places), self._start, super().EndVector)
        if alignment >= ALIGNMENT:  # contents of buffers, which differ
            return int(super().EndVector())
        raw = bytes(self.Bytes[self.head : self.head + count * width])
        return self._shared((raw, width, alignment), self._start, super().EndVector)

    def CreateString(self, s: Any, encoding: str = "utf-8", errors: str = "strict") -> int:  # noqa: N802
        self._start, self._kind, self._places = self.Offset(), (1, 0), []
        return int(super().CreateString(s, encoding, errors))

    def StartObject(self, numfields: int) -> None:  # noqa: N802
        self._fields = []
        super().StartObject(numfields)

    def PrependSlot(self, flags: Any, o: int, x: Any, d: Any) -> None:  # noqa: N802
        if x != d:
            self._fields.append((o, flags, x))  # 1 and 1.0 are other bytes
        super().PrependSlot(flags, o, x, d)

    def PrependUOffsetTRelativeSlot(self, o: int, x: int, d: Any) -> None:  # noqa: N802
        if x != d:
            self._fields.append((o, "offset", x))
        super().PrependUOffsetTRelativeSlot(o, x, d)

    def PrependUOffsetTRelative(self, off: int) -> None:  # noqa: N802
        self._places.append(off)
        super().PrependUOffsetTRelative(off)

    def EndObject(self) -> int:  # noqa: N802
        return self._shared(("table", *self._fields), self.objectEnd, super().EndObject)
