"""Which operator of a full-integer file is which of the float file of the same model."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_qareg.export.litert.flatbuffer import PLACES, operator_name

CASTS = ("QUANTIZE", "DEQUANTIZE")
# Between casts a RESHAPE stays that is otherwise a part of a dense layer.
_SHAPES = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")


def computing(model: Any) -> list[Any]:
    """The operators of the main graph of a file that are no casts."""
    return [o for o in model.subgraphs[0].operators if operator_name(model, o) not in CASTS]


def paired(model: Any, floating: Any) -> list[tuple[Any, Any]]:
    """The operators of a file and of the float file of the same model, but for casts and shapes.

    Args:
        model: A `ModelT`.
        floating: The `ModelT` of the float file.

    Raises:
        ValueError: If they are others.
    """
    files = [
        [o for o in computing(read) if operator_name(read, o) not in _SHAPES]
        for read in (model, floating)
    ]
    names = [
        [operator_name(read, o) for o in operators]
        for read, operators in zip((model, floating), files, strict=True)
    ]
    if names[0] != names[1]:
        raise ValueError(
            f"Expected the operators of the float file, {names[1]}. Received: {names[0]}. Nothing was "
            "written; please report the model."
        )
    return list(zip(*files, strict=True))


def float_kernels(model: Any, floating: Any) -> dict[int, np.ndarray]:
    """The float32 kernels that were quantized, by the places of their tensors in the main graph.

    Args:
        model: A `ModelT`.
        floating: The `ModelT` of the float file.

    Raises:
        ValueError: If the files have other operators.
    """
    found, graph = {}, floating.subgraphs[0]
    for operator, other in paired(model, floating):
        where = PLACES.get(operator_name(model, operator))
        if where is None:
            continue
        tensor = graph.tensors[other.inputs[where.kernel]]
        data = floating.buffers[tensor.buffer].data
        if data is not None:
            values = np.frombuffer(bytes(data), "<f4").reshape(tensor.shape)
            found[int(operator.inputs[where.kernel])] = values
    return found
