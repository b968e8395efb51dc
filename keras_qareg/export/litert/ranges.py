"""Full-integer files whose activations have the very ranges that a model was trained with.

TensorFlow's converter makes full-integer files of graphs with operators of fake quantization, without
calibration. It gets the ranges as ends, in float32, and divides again: a step may come out one place
beside the model's. So the file is read again, and each tensor gets the step of its range to the bit;
biases follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras.layers import Layer

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import PLACES, operator_name
from keras_qareg.export.litert.forms import KernelForm
from keras_qareg.export.litert.pairing import CASTS, computing, paired
from keras_qareg.export.litert.widening import FIXED_ENDS, WIDE_END, widen
from keras_qareg.export.litert.writer import to_bytes
from keras_qareg.layers import EXTENDED, QUANTIZED, ActivationRange, IntegerKernels, kernels
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.cloning import clone, fresh
from keras_qareg.models.stripping import plain, used_kernels
from keras_qareg.models.walking import leaf_layers

# Steps that the converter could take for one another are this far apart when it gets them.
_APART, _NEAR = 2.0**-18, 2.0**-20
# It takes ranges of less than 1e-6 for nothing.
_LEAST = 2.0**-20
_TOLD = 6
_LARGEST_BIAS = {8: 2**31 - 1, 16: 2**47 - 1}
# Runtimes count the 6 of a ReLU6 in steps of the output, as an integer of 32 bits: with steps of no more
# than this it does not fit, or hardly.
_SMALLEST_STEP = 6 / 2**30


@dataclass(frozen=True)
class Ranges:
    """The ranges of a model.

    Attributes:
        bits: 8 or 16.
        grids: The step, a float32, and the zero point of each layer, by its name.
        names: These names by the identities of the layers.
    """

    bits: int
    grids: dict[str, tuple[np.float32, int]]
    names: dict[int, str]

    @classmethod
    def of(cls, model: keras.Model) -> Ranges | None:
        """Those of a model, or `None` where it has none.

        Raises:
            ValueError: If a range was never placed, or there are several widths.
        """
        names, grids, bits = {}, {}, {}
        for layer in layers_inside(model):
            if not isinstance(layer, ActivationRange):
                continue
            name, count = layer.name, 1
            while name in grids:  # models inside may have layers of the same names
                name, count = f"{layer.name}_{count}", count + 1
            names[id(layer)], bits[name], grids[name] = name, layer.bits, layer.grid()
        if len(set(bits.values())) > 1:
            raise ValueError(
                f"Expected activation ranges of one width for a full-integer file. Received: {bits}"
            )
        return cls(next(iter(bits.values())), grids, names) if bits else None

    def labels(self) -> dict[str, tuple[float, int]]:
        """What the converter gets: steps that differ are far enough apart to tell them again."""
        given: dict[float, float] = {}
        last = 0.0
        for step in sorted({float(step) for step, _ in self.grids.values()}):
            last = given[step] = max(step, _LEAST, last * (1 + _APART))
        # The converter knows 8 bits, with ends that are as far apart.
        wide = 2.0 ** (self.bits - 8)
        return {n: (given[float(step)] * wide, zero) for n, (step, zero) in self.grids.items()}


class _FakeQuantizer(Layer):
    """The operator of TensorFlow that its converter reads a range from."""

    def __init__(self, step: float, zero_point: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.step, self.zero_point = step, zero_point

    def call(self, inputs: Any) -> Any:
        import tensorflow as tf

        low, high = (float(self.step * (code - self.zero_point)) for code in (-128, 127))
        return tf.quantization.fake_quant_with_min_max_args(inputs, low, high, num_bits=8)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class _Dilated(keras.layers.Conv2D):
    """A dilated convolution as one operator: Keras's is three, of which one has no range."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        import tensorflow as tf

        return tf.nn.conv2d(
            inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate
        )


def _is_dilated(layer: Layer) -> bool:
    plain_convolution = type(layer) is keras.layers.Conv2D and layer.data_format == "channels_last"
    return plain_convolution and any(rate > 1 for rate in layer.dilation_rate)


def convertible(model: keras.Model, ranges: Ranges) -> keras.Model:
    """A plain model with the operators of fake quantization that the converter reads.

    Args:
        model: A model with ranges, from any transform of this package.
        ranges: Its ranges.
    """
    labels, pairs = ranges.labels(), []

    def change(layer: Layer) -> Callable[[Layer], Layer] | None:
        ours = isinstance(layer, EXTENDED)
        return successor if ours or _is_dilated(layer) else None

    def successor(layer: Layer) -> Layer:
        if isinstance(layer, ActivationRange):
            return _FakeQuantizer(*labels[ranges.names[id(layer)]], name=layer.name)
        made = plain(layer)
        made = fresh(made, into=_Dilated) if _is_dilated(made) else made
        if isinstance(layer, QUANTIZED):
            pairs.append((layer, made))
        return made

    made = clone(model, change)
    for layer, new in pairs:
        names = getattr(layer, "kernel_names", None)
        for kernel, weights in zip(kernels(new, names), used_kernels(layer), strict=True):
            kernel.assign(weights)
    return made


def check_codes(model: keras.Model, kernels: list[KernelForm]) -> None:
    """Raises a `ValueError` unless a file has the codes of all kernels that a model holds as integers.

    Args:
        model: The model.
        kernels: What became of the kernels.
    """
    kept = {form.path for form in kernels if not form.reason}
    paths = [
        path
        for layer in leaf_layers(model)
        if isinstance(layer, IntegerKernels)
        for path in layer.kernel_paths
    ]
    lost = {path: "" for path in paths if path not in kept}
    if lost:
        lost |= {form.path: form.reason for form in kernels if form.path in lost}
        raise ValueError(
            f"Expected the codes of all integer kernels in the file. Received: other ones of {lost}. "
            "Nothing was written; please report the model."
        )


def check_integer(content: bytes) -> None:
    """Raises a `ValueError` with the operators of a file, as the converter made it, that are float."""
    from ai_edge_litert.schema_py_generated import TensorType

    model, found = flatbuffer.read(content), []
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = operator_name(model, operator)
            places = [*flatbuffer.listed(operator.inputs), *flatbuffer.listed(operator.outputs)]
            kinds = {graph.tensors[place].type for place in places if place >= 0}
            if TensorType.FLOAT32 in kinds and name not in CASTS:
                parts = flatbuffer.name_of(graph.tensors[operator.outputs[0]]).split(";")
                found.append(f"{name} ({next((x for x in parts if '/' in x), parts[0])})")
    if found:
        more = f" and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
        raise ValueError(
            "Expected a model whose operators all have integer forms between activation ranges. "
            f"Received: {', '.join(found[:_TOLD])}{more}, which the converter left in float. Put an "
            "`ActivationRange` behind each layer that computes, or leave such layers out of the model."
        )


def without_fakes(content: bytes) -> bytes:
    """The float file of a model without the pairs of casts that stand for fake quantization."""
    model = flatbuffer.read(content)
    graph = model.subgraphs[0]
    before: dict[int, int] = {}
    for operator in graph.operators:
        if operator_name(model, operator) in CASTS:
            given = int(operator.inputs[0])
            before[int(operator.outputs[0])] = before.get(given, given)
    graph.operators = computing(model)
    for operator in graph.operators:
        operator.inputs = [before.get(place, place) for place in flatbuffer.listed(operator.inputs)]
    ends = flatbuffer.listed(graph.outputs)
    graph.outputs = [before.get(place, place) for place in ends]
    for signature in model.signatureDefs or []:
        for end in signature.outputs:
            end.tensorIndex = before.get(end.tensorIndex, end.tensorIndex)
    return to_bytes(model)


def with_exact_ranges(content: bytes, fake: bytes, ranges: Ranges) -> bytes:
    """A full-integer file with the ranges of a model to the bit, and biases that fit them.

    Args:
        content: A file of the converter, of 8 bits, made of a model of `convertible`.
        fake: The float file of the same model, whose operators of fake quantization are in pairs of
            QUANTIZE and DEQUANTIZE.
        ranges: The ranges.

    Raises:
        ValueError: If the file has other ranges, or a bias does not fit.
    """
    model = flatbuffer.read(content)
    _join_casts(model)
    labels = ranges.labels()
    for tensor, shift in _activations(model):
        details = tensor.quantization
        given = float(details.scale[0]), int(details.zeroPoint[0]) - shift
        known = ranges.bits == 16 and given in FIXED_ENDS
        step, zero_point = (WIDE_END, 0) if known else ranges.grids[_range_of(labels, *given)]
        details.scale, details.zeroPoint = [float(step)], [zero_point + shift]
    _drop_idle_caps(model)
    floating = flatbuffer.read(fake)
    if ranges.bits == 16:
        widen(model, paired(model, floating), floating)
    _fit_biases(model, floating, ranges.bits)
    content = to_bytes(model)
    check_ranges(content, ranges)
    return content


def _join_casts(model: Any) -> None:
    """One QUANTIZE where a tensor that changes its range becomes float in between."""
    graph = model.subgraphs[0]
    sources = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in graph.operators
        if operator_name(model, operator) == "DEQUANTIZE"
    }
    read = set(flatbuffer.listed(graph.outputs))
    for operator in graph.operators:
        if operator_name(model, operator) == "QUANTIZE":
            given = int(operator.inputs[0])
            operator.inputs = [sources.get(given, given)]
        read.update(flatbuffer.listed(operator.inputs))
    graph.operators = [
        operator
        for operator in graph.operators
        if operator_name(model, operator) != "DEQUANTIZE" or operator.outputs[0] in read
    ]


def _drop_idle_caps(model: Any) -> None:
    """A ReLU in the place of a ReLU6 whose outputs are so small that 6 is no number of their steps."""
    from ai_edge_litert.schema_py_generated import ActivationFunctionType as Kind

    graph = model.subgraphs[0]
    for operator in graph.operators:
        options = operator.builtinOptions
        if getattr(options, "fusedActivationFunction", None) == Kind.RELU6:
            (step,) = graph.tensors[operator.outputs[0]].quantization.scale
            if step <= _SMALLEST_STEP:
                options.fusedActivationFunction = Kind.RELU


def check_ranges(content: bytes, ranges: Ranges) -> None:
    """Raises a `ValueError` unless a file has all ranges of a model, and no other."""
    model = flatbuffer.read(content)
    found = {
        (np.float32(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]) - shift)
        for tensor, shift in _activations(model)
    }
    lost = [name for name, grid in ranges.grids.items() if grid not in found]
    if lost:
        raise ValueError(
            f"Expected all activation ranges of the model in the file. Received: none of {lost}. Each "
            "must be behind a layer that computes, and be the last one there."
        )
    others = found - set(ranges.grids.values())
    if others:
        step, zero_point = next(iter(others))
        raise _foreign_range(float(step), zero_point)


def _activations(model: Any) -> Iterator[tuple[Any, int]]:
    """The quantized tensors that are computed, and what is added to their zero points: 128 of uint8."""
    from ai_edge_litert.schema_py_generated import TensorType

    shifts = {TensorType.INT8: 0, TensorType.INT16: 0, TensorType.UINT8: 128}
    graph = model.subgraphs[0]
    used = {place for operator in graph.operators for place in flatbuffer.listed(operator.outputs)}
    used.update(flatbuffer.listed(graph.inputs))
    for place in sorted(used):
        tensor = graph.tensors[place]
        if tensor.type in shifts:
            yield tensor, shifts[tensor.type]


def _range_of(labels: dict[str, tuple[float, int]], scale: float, zero_point: int) -> str:
    """The name of the range that the converter made a scale of."""
    near = [
        (abs(step - scale), name)
        for name, (step, zero) in labels.items()
        if zero == zero_point and abs(step - scale) <= _NEAR * scale
    ]
    if not near:
        raise _foreign_range(scale, zero_point)
    return min(near)[1]


def _foreign_range(scale: float, zero_point: int) -> ValueError:
    return ValueError(
        "Expected no ranges in the file but those of the model. Received: one of step "
        f"{scale:.9g} and zero point {zero_point}. Put an `ActivationRange` behind each layer that "
        "computes."
    )


def _fit_biases(model: Any, floating: Any, bits: int) -> None:
    """Writes each bias as whole steps of its input and its kernel, from the float bias."""
    from ai_edge_litert.schema_py_generated import TensorType

    graph, kind = model.subgraphs[0], "int32" if bits == 8 else "int64"
    for operator, other in paired(model, floating):
        where = PLACES.get(operator_name(model, operator))
        if where is None or len(operator.inputs) <= where.bias or operator.inputs[where.bias] < 0:
            continue
        given, kernel, bias = (graph.tensors[operator.inputs[place]] for place in where)
        scales = np.float64(given.quantization.scale[0]) * np.array(kernel.quantization.scale)
        values = np.rint(_bias(floating, other, where.bias, bias.shape[0]) / scales)
        if not np.abs(values).max(initial=0) <= _LARGEST_BIAS[bits]:
            raise ValueError(
                "Expected biases that are so many steps of input and kernel as an integer holds. "
                f"Received: {np.abs(values).max():.3g} of {operator_name(model, operator)}."
            )
        bias.type = getattr(TensorType, kind.upper())
        bias.buffer = flatbuffer.add_buffer(model, values.astype(kind))
        bias.quantization = flatbuffer.quantization(scales.astype("float32"))


def _bias(floating: Any, operator: Any, place: int, size: int) -> np.ndarray:
    if len(operator.inputs) <= place or operator.inputs[place] < 0:
        return np.zeros(size)
    tensor = floating.subgraphs[0].tensors[operator.inputs[place]]
    raw = bytes(floating.buffers[tensor.buffer].data)
    return np.frombuffer(raw, "<f4").astype("float64")
