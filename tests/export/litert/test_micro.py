"""Files for TFLite Micro: decoded here by the format's description alone, and run in TFLite Micro."""

import functools
import importlib.util

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import keras_qareg as qareg
from keras_qareg.export import packing
from keras_qareg.export.litert import micro
from keras_qareg.export.litert.runtime import run_litert
from tests.helpers import BACKEND, error_of, predict

tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(50, 12, 12, 3)).astype("float32")


@functools.cache
def network(normalize=False):
    """A small network, made once, so that it is converted once."""
    keras.utils.set_random_seed(0)

    def block(layer):
        return [layer, *([layers.BatchNormalization()] if normalize else []), layers.ReLU()]

    stack = [
        *block(layers.Conv2D(24, 3, name="conv")),
        *block(layers.DepthwiseConv2D(5, name="depthwise")),
        layers.Flatten(),
        *block(layers.Dense(30, name="hidden")),
        layers.Dense(10, name="out"),
    ]
    model = keras.Sequential([keras.Input((12, 12, 3)), *stack], name="net")
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(RNG.uniform(0.5, 2.0, weight.shape))
        elif weight.name in ("beta", "moving_mean", "bias"):
            weight.assign(0.1 * RNG.normal(size=weight.shape))
    return model


def expanded_by_the_description(content):
    """Each TFLM_DECODE as the constants that it stands for; and what was found in it."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    seen, graph = [], model.subgraphs[0]
    decoders = [code.customCode == b"TFLM_DECODE" for code in model.operatorCodes]
    operators = list(graph.operators)
    for place, operator in enumerate(operators):
        if not decoders[operator.opcodeIndex]:
            continue
        consumer = operators[place + 1]
        assert len(operator.inputs) == 2 * len(operator.outputs)
        for i, output in enumerate(operator.outputs):
            assert output in consumer.inputs
            assert sum(output in other.inputs for other in operators) == 1
            encoded, ancillary = (
                bytes(model.buffers[graph.tensors[t].buffer].data)
                for t in operator.inputs[2 * i : 2 * i + 2]
            )
            tensor = graph.tensors[output]
            assert model.buffers[tensor.buffer].data is None
            assert [ancillary[0], ancillary[1], ancillary[4]] == [0, 1, 1]
            bits, stride = ancillary[5] & 7, ancillary[6]
            assert set(ancillary[2:4] + ancillary[7:16]) == {0} and 1 <= bits <= 7 <= 128 >= stride
            size = int(np.prod(tensor.shape))
            assert len(encoded) == (size * bits + 7) // 8
            number, total = int.from_bytes(encoded, "big"), 8 * len(encoded)
            assert number & (2 ** (total - size * bits) - 1) == 0
            indices = [(number >> (total - bits * (j + 1))) & (2**bits - 1) for j in range(size)]
            kind = "<f4" if tensor.type == schema.TensorType.FLOAT32 else "i1"
            table = np.frombuffer(ancillary[16:], kind)
            details = tensor.quantization
            scales = 1 if details is None or details.scale is None else len(details.scale)
            assert table.size == scales * stride
            axis = 0 if scales == 1 else details.quantizedDimension
            assert axis in (0, len(tensor.shape) - 1)
            assert ancillary[5] == bits | (15 if scales == 1 else axis) << 4
            per_channel = 1 if axis else size // scales
            channels = [j // per_channel % scales for j in range(size)]
            values = [table[c * stride + index] for c, index in zip(channels, indices, strict=True)]
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.array(values, kind).tobytes(), "uint8")
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
            seen.append((bits, stride, scales, axis))
    graph.operators = [o for o in operators if not decoders[o.opcodeIndex]]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), seen


@tensorflow_only
@pytest.mark.parametrize("integer", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("levels", [pytest.param(2, marks=pytest.mark.slow), 5, 16])
def test_decoded_files_are_the_plain_ones(levels, normalize, integer, tmp_path):
    model = qareg.share_weights(network(normalize), levels)
    data = IMAGES if integer else None
    path, other = tmp_path / "micro.tflite", tmp_path / "decoded.tflite"
    report = qareg.export.litert(model, path, "tflm", data)
    content, seen = expanded_by_the_description(path.read_bytes())
    other.write_bytes(content)
    plain = tmp_path / "plain.tflite"
    qareg.export.litert(model, plain, "int8" if integer else "float32", data)
    got = np.concatenate([run_litert(other, IMAGES[i : i + 1])[0] for i in range(8)])
    want = np.concatenate([run_litert(plain, IMAGES[i : i + 1])[0] for i in range(8)])
    if integer:
        assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()
    else:
        np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())
        np.testing.assert_allclose(got, predict(model, IMAGES[:8]), atol=1e-5)
    held = {form.path.split("/")[1]: form for form in report.kernels}
    bits = max(1, int(np.ceil(np.log2(levels))))
    assert {entry[0] for entry in seen} == {bits}
    assert held["hidden"].form == f"tflm-{bits}bit"
    # Floats have one table, and are multiplied after; integers have one for each channel.
    assert any(entry[2] > 1 for entry in seen) == integer
    if not integer and levels < 16:
        assert all(form.form == f"tflm-{bits}bit" for form in report.kernels)
    assert report.bytes < 0.5 * plain.stat().st_size or levels == 16 or integer
    assert report.bytes < plain.stat().st_size and report.batch_size == 1
    assert report.runtime_version == "TFLite Micro of 2025"
    assert qareg.export.verify(model, path).startswith("int8" if integer else "equal: outputs")
    if importlib.util.find_spec("tflite_micro") is None:
        pytest.skip(
            "the package tflite-micro is for Python 3.11 on Linux alone; all else was compared"
        )
    assert report.micro.startswith("equal in TFLite Micro, to the bit, in an arena of ")
    assert f"{report.arena_bytes:,} bytes" in report.micro and report.micro in str(report)
    assert report.arena_bytes < 200_000


@tensorflow_only
def test_the_last_axis_may_count_channels(tmp_path):
    """A depthwise convolution that was normalized."""
    model = keras.Sequential(
        [keras.Input((12, 12, 64)), layers.DepthwiseConv2D(7), layers.BatchNormalization()]
    )
    model.layers[1].gamma.assign(RNG.uniform(-2.0, 2.0, 64))
    shared = qareg.share_weights(model, 4)
    qareg.export.litert(shared, tmp_path / "m.tflite", "tflm")
    _, seen = expanded_by_the_description((tmp_path / "m.tflite").read_bytes())
    assert seen == [(2, 4, 1, 0)]
    images = RNG.normal(size=(8, 12, 12, 64)).astype("float32")
    qareg.export.litert(shared, tmp_path / "m.tflite", "tflm", images)
    _, seen = expanded_by_the_description((tmp_path / "m.tflite").read_bytes())
    assert seen == [(2, 4, 64, 3)]


@tensorflow_only
def test_factors_are_multiplied_after_whatever_they_are(tmp_path):
    """Negative, zero and tiny ones, a channel of zeros, an activation, and no bias to begin with."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((12, 12, 8))]
    for activation in ("relu6", None):
        stack += [layers.Conv2D(32, 3, use_bias=False), layers.BatchNormalization()]
        stack += [layers.Activation(activation)] if activation else []
    model = keras.Sequential(stack)
    normalizations = [model.layers[1], model.layers[4]]
    for layer in normalizations:
        scales = RNG.uniform(-2.0, 2.0, 32)
        scales[:3] = 0.0, 1e-30, -1e-8
        layer.gamma.assign(scales)
        layer.beta.assign(RNG.normal(size=32))
    kernel = np.array(model.layers[0].kernel)
    kernel[..., 5] = 0
    model.layers[0].kernel.assign(kernel)
    shared = qareg.share_weights(model, 4)
    report = qareg.export.litert(shared, tmp_path / "m.tflite", "tflm")
    assert {kernel.form for kernel in report.kernels} == {"tflm-2bit"}
    _, seen = expanded_by_the_description((tmp_path / "m.tflite").read_bytes())
    assert {entry[2] for entry in seen} == {1}
    assert report.max_output_difference <= 1e-5 * report.output_range
    assert qareg.export.verify(shared, tmp_path / "m.tflite").startswith("equal: outputs")


@tensorflow_only
def test_a_shared_kernel_is_decoded_before_each_use(tmp_path):
    inputs = keras.Input((40,))
    layer = layers.Dense(40, name="twice")
    model = keras.Model(inputs, layer(layers.ReLU()(layer(inputs))))
    qareg.export.litert(qareg.share_weights(model, 4), tmp_path / "m.tflite", "tflm")
    _, seen = expanded_by_the_description((tmp_path / "m.tflite").read_bytes())
    assert seen == [(2, 4, 1, 0)] * 2


@tensorflow_only
def test_what_stays_and_what_is_said(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    model = keras.Sequential([keras.Input((300,)), layers.Dense(200), layers.Dense(3)])
    report = qareg.export.litert(qareg.share_weights(model, 200), path, "tflm")
    assert [form.reason for form in report.kernels] == [
        "tflm-8bit would take more bytes",
        "more than 128 values",
    ] or [form.reason for form in report.kernels] == ["more than 128 values"] * 2
    report = qareg.export.litert(qareg.share_weights(model, 128), path, "tflm")
    assert "tflm-7bit" in {form.form for form in report.kernels}
    free = qareg.export.litert(model, path, "tflm")
    assert {form.reason for form in free.kernels} == {"no kernel with few values"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = qareg.export.litert(qareg.share_weights(model, 4), path, "tflm")
    assert report.micro.startswith("not run in TFLite Micro")


@tensorflow_only
def test_a_wrong_table_leaves_no_file(tmp_path, monkeypatch):
    model = qareg.share_weights(network(), 4)
    right = packing.packed_bits
    monkeypatch.setattr(micro, "packed_bits", lambda indices, bits: right(indices, bits) ^ 1)
    message = error_of(qareg.export.litert, model, tmp_path / "m.tflite", "tflm")
    assert message.startswith("Expected the outputs of the file within 0.0001 of those of")
    assert not list(tmp_path.iterdir())


@pytest.mark.one_backend
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(0, 127), min_size=1, max_size=60))
def test_bits_are_reversible(bits, numbers):
    indices = np.array(numbers, "uint8") % 2**bits
    packed = packing.packed_bits(indices, bits)
    text = "".join(f"{index:0{bits}b}" for index in indices)
    text += "0" * (-len(text) % 8)
    assert packed.tolist() == [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
    np.testing.assert_array_equal(packing.unpacked_bits(packed, bits, indices.size), indices)


@tensorflow_only
def test_a_file_of_one_number_is_judged_by_several_examples(tmp_path):
    model = keras.Sequential([keras.Input((16,)), layers.Dense(1, activation="sigmoid")])
    kernel = np.random.default_rng(1).normal(size=(16, 1))
    model.layers[0].kernel.assign(8 * kernel)  # most outputs are near 0 or 1
    images = np.random.default_rng(0).normal(size=(80, 16)).astype("float32")
    outputs = model.predict(images, verbose=0)[:, 0]
    images = images[np.argsort(outputs)]  # what comes first varies least
    path = tmp_path / "model.tflite"
    qareg.export.litert(model, path, "tflm", images)
    qareg.export.verify(model, path, images)
    qareg.export.verify(model, path)
    model.layers[0].kernel.assign(-8 * kernel)
    said = error_of(lambda: qareg.export.verify(model, path, images[::10]))
    assert said.startswith("Expected outputs of the int8 file that follow those of model")


@tensorflow_only
def test_inputs_and_outputs_are_in_the_order_of_the_model(tmp_path):
    from ai_edge_litert.tools import flatbuffer_utils

    inputs = [keras.Input((size,), name=f"x{size}") for size in (3, 12, 7)]
    heads = [layers.Dense(size + 1)(x) for size, x in zip((3, 12, 7), inputs, strict=True)]
    model = qareg.share_weights(keras.Model(inputs, heads[::-1]), 4)
    path = tmp_path / "model.tflite"
    for form in ("tflm", "auto"):
        qareg.export.litert(model, path, form)
        content = flatbuffer_utils.read_model(str(path))
        graph = content.subgraphs[0]
        ends = [[int(graph.tensors[i].shape[-1]) for i in x] for x in (graph.inputs, graph.outputs)]
        assert ends == [[3, 12, 7], [8, 13, 4]]
    qareg.export.litert(model, path, "tflm")
    content = flatbuffer_utils.read_model(str(path))
    content.subgraphs[0].outputs = content.subgraphs[0].outputs[::-1]
    flatbuffer_utils.write_model(content, str(path))
    assert error_of(lambda: qareg.export.verify(model, path)).startswith(
        f"Expected inputs and outputs in the order of model '{model.name}': TFLite Micro has no names."
    )
