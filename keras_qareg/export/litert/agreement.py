"""How far a full-integer file is from a model with activation ranges, in steps of its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import operator_name
from keras_qareg.export.litert.runtime import input_details, run_by_name
from keras_qareg.export.litert.samples import SAMPLES, in_parts, random_inputs
from keras_qareg.export.litert.signature import Signature

# So many inputs are drawn, of large ones as many as have so many numbers.
_EXAMPLES, _NUMBERS = 64, 1 << 20


@dataclass(frozen=True)
class Agreement:
    """The outputs of a file beside those of the Keras model whose ranges it has.

    Attributes:
        steps: The largest difference, in steps of the output: with XNNPACK or without, whichever is
            further.
        equal: The share of the outputs that are equal; of both, the smaller one.
        examples: How many inputs were compared.
        requantized: How many operators only change the range of a tensor: each rounds once more.
    """

    steps: int
    equal: float
    examples: int
    requantized: int

    def __str__(self) -> str:
        extra = f"; {self.requantized} tensors change their range" if self.requantized else ""
        return (
            f"{100 * self.equal:.2f} % of the outputs equal Keras's, the others within {self.steps} "
            f"steps ({self.examples} examples){extra}"
        )


def agreement(
    model: keras.Model, signature: Signature, inputs: dict[str, np.ndarray], content: bytes
) -> Agreement:
    """Compares a file with a model.

    Args:
        model: A model with activation ranges.
        signature: Its inputs.
        inputs: What to run on, by name.
        content: The file.
    """
    signature = signature.as_in(input_details(content))
    names = [spec.name for spec in signature.leaves]
    inputs = dict(zip(names, inputs.values(), strict=True))
    count = len(next(iter(inputs.values())))
    size = signature.leaves[0].shape[0] or count
    batches = in_parts(signature, inputs)
    expected = [signature.call(model, batch) for batch in batches]
    furthest, equal = 0.0, 1.0
    scales = named_as(output_scales(content), expected[0])
    for delegate in (True, False):
        same, total = 0, 0
        for place, (batch, wanted) in enumerate(zip(batches, expected, strict=True)):
            got = named_as(run_by_name(content, batch, delegate), wanted)
            for name, want in wanted.items():
                apart = np.abs(got[name].astype("float64") - want) / scales.get(name, 1.0)
                apart = np.rint(apart[: count - place * size])
                furthest = max(furthest, float(apart.max(initial=0)))
                same, total = same + int((apart == 0).sum()), total + apart.size
        equal = min(equal, same / max(total, 1))
    return Agreement(int(furthest), equal, count, _requantized(content))


def named_as(got: dict[str, Any], expected: dict[str, np.ndarray]) -> dict[str, Any]:
    """What there is of the outputs of a file, by the model's names: a single one may have another."""
    if set(got) != set(expected) and len(got) == len(expected) == 1:
        return dict(zip(expected, got.values(), strict=True))
    return got


def inputs_in_range(model_signature: Signature, content: bytes) -> dict[str, np.ndarray]:
    """Inputs by name that fill the ranges of the inputs of a file; random ones where it has none.

    Args:
        model_signature: The inputs of the model.
        content: The file.
    """
    named = model_signature.as_in(input_details(content))
    _, places = flatbuffer.ends(content)["inputs"]
    read, random = flatbuffer.read(content), np.random.default_rng(0)
    graph, found = read.subgraphs[0], {}
    fallback = random_inputs(named)
    largest = max(array[0].size for array in fallback.values())
    count = int(np.clip(_NUMBERS // largest, SAMPLES, _EXAMPLES))
    for own, spec in zip(model_signature.leaves, named.leaves, strict=True):
        tensor = _quantized(read, graph, places[spec.name])
        if tensor is None:
            found[own.name] = np.resize(fallback[spec.name], (count, *spec.shape[1:]))
            continue
        step, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
        low, high = _codes(tensor)
        shape = (count, *fallback[spec.name].shape[1:])
        values = random.uniform((low - zero) * step, (high - zero) * step, shape)
        found[own.name] = values.astype(own.dtype)
    return found


def _codes(tensor: Any) -> tuple[int, int]:
    from ai_edge_litert.schema_py_generated import TensorType

    kinds = {TensorType.INT8: "int8", TensorType.UINT8: "uint8", TensorType.INT16: "int16"}
    limits = np.iinfo(kinds[tensor.type])
    return int(limits.min), int(limits.max)


def _quantized(model: Any, graph: Any, place: int) -> Any:
    """The tensor with the range of an input: itself, or what a QUANTIZE makes of it."""
    if _scale(graph.tensors[place]) is not None:
        return graph.tensors[place]
    for operator in graph.operators:
        if operator_name(model, operator) == "QUANTIZE" and operator.inputs[0] == place:
            return graph.tensors[operator.outputs[0]]
    return None


def output_scales(content: bytes) -> dict[str, float]:
    """The steps of the outputs of a file by name, of those that are quantized inside."""
    model, found = flatbuffer.read(content), {}
    graph = model.subgraphs[0]
    for name, place in flatbuffer.ends(content)["outputs"][1].items():
        scale = _scale(graph.tensors[place])
        for operator in graph.operators:
            if operator_name(model, operator) == "DEQUANTIZE" and operator.outputs[0] == place:
                scale = _scale(graph.tensors[operator.inputs[0]])
        if scale is not None:
            found[name] = scale
    return found


def _scale(tensor: Any) -> float | None:
    details = tensor.quantization
    if details is None or details.scale is None or not len(details.scale):
        return None
    return float(details.scale[0])


def _requantized(content: bytes) -> int:
    """QUANTIZE operators inside: those at the ends change the type too."""
    model = flatbuffer.read(content)
    graph = model.subgraphs[0]
    casts = [o for o in graph.operators if operator_name(model, o) == "QUANTIZE"]
    return sum(graph.tensors[o.inputs[0]].type == graph.tensors[o.outputs[0]].type for o in casts)
