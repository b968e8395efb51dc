"""Rewriting a LiteRT file: the operators that make a float32 kernel from few bytes.

Integers before a DEQUANTIZE give `code * step`; indices before a GATHER give any values. A runtime then
multiplies with the kernel that the Keras model has, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_qareg.export.litert.flatbuffer import Chain, Constant, add_graph, quantization
from keras_qareg.export.litert.recognition import Recognized, along
from keras_qareg.export.packing import Grouping

# Kernels that are decoded once are made by this graph, and kept as variables of their names.
DECODING = "decode_kernels"


def quantize(
    model: Any,
    constant: Constant,
    codes: np.ndarray,
    steps: np.ndarray,
    axis: int | None,
    kind: str,
) -> None:
    """Puts integer codes and a DEQUANTIZE operator in the place of a constant.

    Args:
        model: A `ModelT`, which is changed.
        constant: The constant.
        codes: Integer array in its shape.
        steps: Float32 array of shape `(1,)`, or one step for each slice along `axis`.
        axis: The axis of the channels, or `None`.
        kind: `"int8"`, `"int4"` or `"int2"`.
    """
    chain = Chain(model, constant.graph, constant.name)
    stored = chain.constant("codes", codes, kind, steps, axis or 0)
    chain.apply("DEQUANTIZE", [stored], [constant.tensor])
    chain.graph.tensors[constant.tensor].buffer = 0
    chain.place()


def look_up(
    model: Any, constant: Constant, found: Recognized, grouping: Grouping, once: bool
) -> None:
    """Puts packed indices, a table, and the operators that look them up in the place of a constant.

    Args:
        model: A `ModelT`, which is changed.
        constant: The constant.
        found: Its tables and indices.
        grouping: How the indices are packed.
        once: Whether this happens in a graph of its own, before the first run, and the kernel is kept
            as a variable; else it happens in each run.
    """
    graph = _decoding_graph(model) if once else constant.graph
    chain = Chain(model, graph, constant.name)
    kernel = chain.tensor("kernel", found.indices.shape, "float32") if once else constant.tensor
    _decode(chain, found, grouping, kernel)
    if once:
        variable = {"container": b"", "sharedName": constant.name.encode()}
        handle = chain.tensor("handle", (), "resource")
        chain.apply("VAR_HANDLE", [], [handle], **variable)
        chain.apply("ASSIGN_VARIABLE", [handle, kernel], [])
        chain.place()
        chain = Chain(model, constant.graph, constant.name)
        handle = chain.tensor("handle", (), "resource")
        chain.apply("VAR_HANDLE", [], [handle], **variable)
        chain.apply("READ_VARIABLE", [handle], [constant.tensor])
    model.subgraphs[constant.graph].tensors[constant.tensor].buffer = 0
    chain.place()


def call_once(model: Any) -> None:
    """Calls the graph that decodes kernels, if there is one, ahead of all else."""
    if model.subgraphs[-1].name == DECODING.encode():
        chain = Chain(model, 0, DECODING)
        chain.apply("CALL_ONCE", [], [], initSubgraphIndex=len(model.subgraphs) - 1)
        chain.place()


def _decoding_graph(model: Any) -> int:
    if model.subgraphs[-1].name == DECODING.encode():
        return len(model.subgraphs) - 1
    return add_graph(model, DECODING)


def _decode(chain: Chain, found: Recognized, grouping: Grouping, kernel: int) -> None:
    """From packed indices to the kernel: one table and a factor a channel, or a table a channel."""
    levels, channels = found.tables.shape
    rows, shape = grouping.rows(levels), found.indices.shape
    numbers = _numbers(chain, found, grouping)
    parts = found.parts
    if parts is not None:
        values = _looked_up(chain, "values", numbers, parts[0][rows], found)
        factors = along(parts[1], found.axis or 0, len(shape))
        chain.apply("MUL", [values, chain.constant("factors", factors, "float32")], [kernel])
    elif channels == 1:
        _looked_up(chain, "values", numbers, found.tables[:, 0][rows], found, kernel)
    else:
        # The tables stand one behind the other, and an index moves on by those before its own.
        indices = _looked_up(chain, "indices", numbers, rows.astype("int32"), found)
        starts = along(levels * np.arange(channels), found.axis or 0, len(shape))
        places = chain.tensor("places", shape, "int32")
        chain.apply("ADD", [indices, chain.constant("starts", starts, "int32")], [places])
        tables = chain.constant("tables", found.tables.T.reshape(-1), "float32")
        chain.apply("GATHER", [tables, places], [kernel], axis=0)


def _numbers(chain: Chain, found: Recognized, grouping: Grouping) -> int:
    """The packed numbers as an int32 tensor `(numbers,)`."""
    from ai_edge_litert.schema_py_generated import TensorType

    values = grouping.numbers(found.indices, len(found.tables))
    if grouping.bits == 4:
        codes = chain.constant("codes", values.astype("int8") - 8, "int4")
        chain.graph.tensors[codes].quantization = quantization(1.0, zero_point=-8)
        stored, kind = chain.tensor("floats", values.shape, "float32"), TensorType.FLOAT32
        chain.apply("DEQUANTIZE", [codes], [stored])
    else:
        stored, kind = chain.constant("codes", values, "uint8"), TensorType.UINT8
    numbers = chain.tensor("numbers", values.shape, "int32")
    chain.apply("CAST", [stored], [numbers], inDataType=kind, outDataType=TensorType.INT32)
    return numbers


def _looked_up(
    chain: Chain,
    label: str,
    numbers: int,
    rows: np.ndarray,
    found: Recognized,
    output: int | None = None,
) -> int:
    """What the rows of a table are at the numbers, in the shape of the kernel."""
    kind, shape, size = str(rows.dtype), found.indices.shape, found.indices.size
    count, group = -(-size // rows.shape[1]), rows.shape[1]
    table = chain.constant(f"{label}/table", rows, kind)
    looked_up = chain.tensor(f"{label}/rows", (count, group), kind)
    chain.apply("GATHER", [table, numbers], [looked_up], axis=0)
    if size < count * group:  # the last group is not full
        flat = chain.tensor(f"{label}/flat", (count * group,), kind)
        _reshape(chain, looked_up, flat)
        looked_up = chain.tensor(f"{label}/first", (size,), kind)
        begin = chain.constant(f"{label}/begin", np.zeros(1), "int32")
        length = chain.constant(f"{label}/length", np.array([size]), "int32")
        chain.apply("SLICE", [flat, begin, length], [looked_up])
    output = chain.tensor(label, shape, kind) if output is None else output
    _reshape(chain, looked_up, output)
    return output


def _reshape(chain: Chain, tensor: int, output: int) -> None:
    shape = [int(size) for size in chain.graph.tensors[output].shape]
    wanted = chain.constant("shape", np.array(shape), "int32")
    chain.apply("RESHAPE", [tensor, wanted], [output], newShape=shape)
