"""Full-integer files of 16-bit activations out of those of 8 bits: kernels keep their 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import PLACES, operator_name

_LARGEST = 2**15 - 1
# The ranges of 8 bits that the converter has for what a sigmoid, a softmax or a tanh gives, and the step
# that all these have of 16 bits.
FIXED_ENDS, WIDE_END = ((1 / 256, -128), (1 / 128, 0)), np.float32(1 / 32768)


def widen(model: Any, pairs: list[tuple[Any, Any]], floating: Any) -> None:
    """Makes the activations of a file int16: they have their ranges already.

    Args:
        model: A `ModelT` of 8-bit activations, which is changed. Its biases are left as they are.
        pairs: Its operators, but for casts, and those of the float file.
        floating: The `ModelT` of the float file, which tells other constants.
    """
    from ai_edge_litert.schema_py_generated import TensorType

    graph, other = model.subgraphs[0], floating.subgraphs[0]
    for operator, exact in pairs:
        where = PLACES.get(operator_name(model, operator))
        for number, place in enumerate(flatbuffer.listed(operator.inputs)):
            if place < 0 or (where is not None and number in (where.kernel, where.bias)):
                continue
            tensor = graph.tensors[place]
            data = model.buffers[tensor.buffer].data
            if tensor.type != TensorType.INT8 or data is None:
                continue
            source = other.tensors[flatbuffer.listed(exact.inputs)[number]]
            raw = bytes(floating.buffers[source.buffer].data)
            values = np.frombuffer(raw, "<f4").astype("float64")
            step = np.float32(
                max(np.abs(values).max(initial=0) / _LARGEST, np.finfo("float32").tiny)
            )
            tensor.buffer = flatbuffer.add_buffer(model, np.rint(values / step).astype("<i2"))
            tensor.quantization, tensor.type = flatbuffer.quantization(step), TensorType.INT16
    _drop_identities(model, graph)
    computed = {place for o in graph.operators for place in flatbuffer.listed(o.outputs)}
    for place in computed | set(flatbuffer.listed(graph.inputs)):
        if graph.tensors[place].type == TensorType.INT8:
            graph.tensors[place].type = TensorType.INT16


def _drop_identities(model: Any, graph: Any) -> None:
    """Operators that change a range into the same: those of 8 bits were not."""
    same: dict[int, int] = {}
    kept = []
    for operator in graph.operators:
        operator.inputs = [same.get(place, place) for place in flatbuffer.listed(operator.inputs)]
        given, output = int(operator.inputs[0]), int(operator.outputs[0])
        if operator_name(model, operator) == "QUANTIZE" and _equal(graph, given, output):
            same[output] = given
        else:
            kept.append(operator)
    graph.operators = kept
    graph.outputs = [same.get(place, place) for place in flatbuffer.listed(graph.outputs)]
    for signature in model.signatureDefs or []:
        for end in signature.outputs:
            end.tensorIndex = same.get(end.tensorIndex, end.tensorIndex)


def _equal(graph: Any, one: int, other: int) -> bool:
    """Whether two tensors have one type and one range."""
    kinds = [graph.tensors[place].type for place in (one, other)]
    details = [graph.tensors[place].quantization for place in (one, other)]
    if kinds[0] != kinds[1] or None in details or any(part.scale is None for part in details):
        return False
    grids = [(float(part.scale[0]), int(part.zeroPoint[0])) for part in details]
    return grids[0] == grids[1]
