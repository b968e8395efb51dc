"""Files for TFLite Micro: kernels behind its `TFLM_DECODE` operator, which looks indices up.

LiteRT does not know this operator. `expanded` puts the kernels back, so that LiteRT can run the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import PLACES, Constant, operator_name
from keras_qareg.export.litert.forms import KernelForm
from keras_qareg.export.litert.recognition import Recognized, along, recognize, recognize_codes
from keras_qareg.export.litert.writer import to_bytes
from keras_qareg.export.packing import bits_of, packed_bits, unpacked_bits
from keras_qareg.numerics.codebook import Codebook

OPERATOR = b"TFLM_DECODE"
MAX_LEVELS = 128
HEADER_BYTES = 16
_ONE_TABLE = 15  # in place of an axis
# The bytes of an operator and its tensors, about, and of one that multiplies after it.
DECODING_BYTES, _MULTIPLYING = 200, 130
_NOTHING = 1e-15  # of the largest factor
_FUSED = (0, 1, 2, 3)  # activations that MUL has too: none, ReLU, ReLU from -1 to 1, ReLU6
# The operators that can be multiplied after, and the axis of their kernels that counts outputs.
_CHANNELS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}


def rewrite_micro(
    content: bytes, books: Iterable[tuple[str, Codebook]]
) -> tuple[bytes, list[KernelForm]]:
    """A file, float32 or int8, with its kernels behind `TFLM_DECODE` where that makes it smaller.

    Args:
        content: A `.tflite` file.
        books: Paths and codebooks of the kernels of the Keras model.

    Returns:
        The content of the new file, and the form of each constant of two or more axes.
    """
    books, forms, tables = list(books), [], {}
    model = flatbuffer.read(content)
    for constant in [c for kind in ("float32", "int8") for c in flatbuffer.constants(model, kind)]:
        found = recognized(model, constant, books)
        reason = "no kernel with few values"
        if found is not None:
            factored = _factored(model, constant, found)
            found = factored.found if factored is not None else found
            reason = _obstacle(constant, found, factored is not None)
        size, kind = constant.values.nbytes, str(constant.values.dtype)
        if found is not None and not reason:
            size, kind = _bytes(found), _form(found)
            tables[constant.graph, constant.tensor] = found
            if factored is not None:
                size += factored.factors.nbytes
                _multiply_after(model, constant, factored)
        exact = found is not None and found.exact
        forms.append(KernelForm.of(constant, found, kind, size, exact, reason))
    if tables:
        _insert(model, tables)
    flatbuffer.set_names(model, [form.named(form.place in tables) for form in forms])
    return to_bytes(model), forms


def recognized(
    model: Any, constant: Constant, books: list[tuple[str, Codebook]]
) -> Recognized | None:
    """The Keras kernel that a constant is, of float32 or of int8 codes; else `None`."""
    if constant.values.dtype == "float32":
        return recognize(constant.values, books)
    details = model.subgraphs[constant.graph].tensors[constant.tensor].quantization
    scales = np.array(details.scale, "float32")
    return recognize_codes(constant.values, scales, details.quantizedDimension, books)


class _Factored(NamedTuple):
    """A kernel of one table, and what the channels of its outputs are multiplied by."""

    found: Recognized
    factors: np.ndarray


def _factored(model: Any, constant: Constant, found: Recognized) -> _Factored | None:
    """A float kernel without the factors of its channels, where these can be multiplied later.

    Of tables a channel the runtime would need one each: more bytes than the indices, often.
    """
    if constant.values.dtype != "float32":
        return None
    levels, factors = found.stored.tables, found.stored.factors
    if factors is None or levels.shape[1] > 1:
        return None
    if found.tables.nbytes <= levels.nbytes + factors.nbytes + _MULTIPLYING:
        return None
    # A bias is divided by its factor: one that is too small to count will do for zero.
    least = np.float32(_NOTHING * np.abs(factors).max())
    factors = np.where(np.abs(factors) < least, least, factors)
    for operator in _consumers(model, constant):
        name = operator_name(model, operator)
        if name not in _CHANNELS or operator.inputs[PLACES[name].kernel] != constant.tensor:
            return None
        if _CHANNELS[name] != found.axis or _activation(operator) not in _FUSED:
            return None
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            bias = _bias(model, constant, operator) / factors
        if not np.isfinite(bias).all():
            return None
    return _Factored(Recognized(found.path, found.indices, levels, None, False), factors)


def _consumers(model: Any, constant: Constant) -> list[Any]:
    return [
        operator
        for operator in model.subgraphs[constant.graph].operators
        if constant.tensor in flatbuffer.listed(operator.inputs)
    ]


def _activation(operator: Any) -> int:
    return int(operator.builtinOptions.fusedActivationFunction)


def _bias(model: Any, constant: Constant, operator: Any) -> np.ndarray:
    """The bias of an operator: NaN where it is computed, 0 where there is none."""
    place = PLACES[operator_name(model, operator)].bias
    if place >= len(operator.inputs) or operator.inputs[place] < 0:
        return np.zeros(1, "float32")
    tensor = model.subgraphs[constant.graph].tensors[operator.inputs[place]]
    data = model.buffers[tensor.buffer].data
    return np.full(1, np.nan) if data is None else np.frombuffer(bytes(data), "float32")


def _multiply_after(model: Any, constant: Constant, factored: _Factored) -> None:
    """Puts a MUL behind each operator that takes a kernel, and divides biases by its factors."""
    chain = flatbuffer.Chain(model, constant.graph)
    factors = chain.constant(factored.factors, "float32")
    operators = list(chain.graph.operators)
    for operator in _consumers(model, constant):
        place = PLACES[operator_name(model, operator)].bias
        bias = _bias(model, constant, operator)
        if bias.any():
            operator.inputs = list(operator.inputs)
            operator.inputs[place] = chain.constant(bias / factored.factors, "float32")
        output = int(operator.outputs[0])
        tensor = copy.copy(chain.graph.tensors[output])
        tensor.name = None
        chain.graph.tensors.append(tensor)
        product = len(chain.graph.tensors) - 1
        activation = _activation(operator)
        operator.builtinOptions.fusedActivationFunction = 0
        operator.outputs = [product]
        multiply = flatbuffer.operator(
            model, "MUL", [product, factors], [output], fusedActivationFunction=activation
        )
        operators.insert(operators.index(operator) + 1, multiply)
    chain.graph.operators = operators


def _bits(found: Recognized) -> int:
    return max(1, bits_of(len(found.tables)))


def _form(found: Recognized) -> str:
    return f"tflm-{_bits(found)}bit"


def _bytes(found: Recognized) -> int:
    """Bytes of the indices, the header and the tables."""
    return -(-found.indices.size * _bits(found) // 8) + HEADER_BYTES + found.tables.nbytes


def _obstacle(constant: Constant, found: Recognized, factored: bool) -> str:
    """Why a constant stays as it is, or an empty text."""
    levels = len(found.tables)
    if levels > MAX_LEVELS:
        return f"more than {MAX_LEVELS} values"
    if found.axis not in (None, 0, constant.values.ndim - 1):
        return f"its channels are on axis {found.axis}"
    added = DECODING_BYTES + factored * _MULTIPLYING
    smaller = _bytes(found) + added < constant.values.nbytes
    return "" if smaller else f"{_form(found)} would take more bytes"


def _insert(model: Any, tables: dict[tuple[int, int], Recognized]) -> None:
    """An operator immediately before each that takes such a constant, with outputs of its own."""
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode, code.version = OPERATOR, 1
    model.operatorCodes.append(code)
    encoded: dict[tuple[int, int], list[int]] = {}
    for number, graph in enumerate(model.subgraphs):
        operators = []
        for operator in graph.operators:
            held = [int(i) for i in dict.fromkeys(operator.inputs) if (number, int(i)) in tables]
            if held:
                decode = schema.OperatorT()
                decode.opcodeIndex = len(model.operatorCodes) - 1
                decode.inputs, decode.outputs = [], []
                for place in held:
                    found, key = tables[number, place], (number, place)
                    # The first consumer has the constant's own tensor, each other one a new one.
                    first = key not in encoded
                    encoded[key] = encoded.get(key) or _encoded(model, number, place, found)
                    decode.inputs += encoded[key]
                    decode.outputs.append(place if first else _copy(model, number, place))
                taken = dict(zip(held, decode.outputs, strict=True))
                operator.inputs = [taken.get(int(i), int(i)) for i in operator.inputs]
                operators.append(decode)
            operators.append(operator)
        graph.operators = operators


def _encoded(model: Any, number: int, place: int, found: Recognized) -> list[int]:
    """The indices and the tables of a constant as tensors; the constant is to be decoded into."""
    constant = model.subgraphs[number].tensors[place]
    chain = flatbuffer.Chain(model, number)
    bits, levels = _bits(found), len(found.tables)
    header = np.zeros(HEADER_BYTES, "uint8")
    # Later runtimes read the axis of the channels in the high bits, earlier ones from the tensor.
    axis = _ONE_TABLE if found.tables.shape[1] == 1 else (found.axis or 0)
    header[[1, 4, 5, 6]] = 1, 1, axis << 4 | bits, levels
    tables = np.frombuffer(np.ascontiguousarray(found.tables.T).tobytes(), "uint8")
    constant.buffer = 0
    if found.tables.dtype == "float32" and found.tables.shape[1] > 1:
        # The number of scales tells the runtime how many tables there are; a float has no other use.
        scales = np.ones(found.tables.shape[1])
        constant.quantization = flatbuffer.quantization(scales, found.axis or 0)
    return [
        chain.constant(packed_bits(found.indices, bits), "uint8"),
        chain.constant(np.concatenate([header, tables]), "uint8"),
    ]


def _copy(model: Any, number: int, place: int) -> int:
    """A tensor like another one, which has no content yet."""
    tensors = model.subgraphs[number].tensors
    tensors.append(copy.copy(tensors[place]))
    return len(tensors) - 1


def expanded(content: bytes) -> bytes:
    """The same file without `TFLM_DECODE`: its kernels are constants again.

    Args:
        content: A `.tflite` file; one without this operator is returned as it is.

    Returns:
        A file that LiteRT runs.
    """
    model = flatbuffer.read(content)
    decoding = {i for i, c in enumerate(model.operatorCodes) if c.customCode == OPERATOR}
    if not decoding:
        return content
    for graph in model.subgraphs:
        for operator in graph.operators:
            if operator.opcodeIndex not in decoding:
                continue
            for i, place in enumerate(operator.outputs):
                stored = [graph.tensors[t].buffer for t in operator.inputs[2 * i : 2 * i + 2]]
                indices, tables = (
                    np.frombuffer(bytes(model.buffers[b].data), "uint8") for b in stored
                )
                values = _decoded(graph.tensors[place], indices, tables)
                graph.tensors[place].buffer = flatbuffer.add_buffer(model, values)
        graph.operators = [o for o in graph.operators if o.opcodeIndex not in decoding]
    return to_bytes(model)


def _decoded(tensor: Any, indices: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    from ai_edge_litert.schema_py_generated import TensorType

    kind = "float32" if tensor.type == TensorType.FLOAT32 else "int8"
    shape = tuple(tensor.shape)
    bits, levels = int(encoded[5]) & 7, int(encoded[6])
    tables = np.frombuffer(encoded[HEADER_BYTES:].tobytes(), kind).reshape(-1, levels)
    flat = unpacked_bits(indices, bits, int(np.prod(shape))).reshape(shape)
    if len(tables) == 1:
        return tables[0][flat]
    axis = tensor.quantization.quantizedDimension
    return tables[along(np.arange(len(tables)), axis, len(shape)), flat]
