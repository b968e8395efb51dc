"""Models of many kinds in every form of a `.tflite`: what is exact, and what falls back and says so."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.runtime import run_litert
from tests.helpers import BACKEND, error_of

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)


def convolved(x, filters, strides=1, kernel=3, activate=True):
    x = layers.Conv2D(filters, kernel, strides, "same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if activate else x


def cnn():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = layers.MaxPooling2D()(layers.Conv2D(24, 3, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))


def resnet(width=8, blocks=1):
    inputs = keras.Input((16, 16, 3))
    x = convolved(inputs, width)
    for stage in range(3):
        for block in range(blocks):
            filters, strides = width * 2**stage, 2 if stage and not block else 1
            shortcut = x if strides == 1 else convolved(x, filters, strides, 1, activate=False)
            x = convolved(convolved(x, filters, strides), filters, activate=False)
            x = layers.ReLU()(layers.Add()([x, shortcut]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mobilenet():
    inputs = keras.Input((16, 16, 3))
    x = convolved(inputs, 16, 2)
    for filters in (16, 24):
        y = convolved(x, 6 * x.shape[-1], kernel=1)
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        y = convolved(y, filters, kernel=1, activate=False)
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def lstm():
    inputs = keras.Input((6, 16))
    return keras.Model(inputs, layers.Dense(8)(layers.LSTM(24)(inputs)))


def transformer():
    inputs = keras.Input((8, 32))
    x = layers.Add()([inputs, layers.MultiHeadAttention(4, 8)(inputs, inputs)])
    x = layers.LayerNormalization()(x)
    y = layers.Dense(32)(layers.Dense(64, activation="gelu")(x))
    return keras.Model(inputs, layers.LayerNormalization()(layers.Add()([x, y])))


def two_by_two():
    image, table = keras.Input((12, 12, 3), name="image"), keras.Input((20,), name="table")
    x = layers.Flatten()(layers.Conv2D(8, 3, 2, activation="relu")(image))
    x = layers.Concatenate()([x, layers.Dense(40, activation="relu")(table)])
    outputs = {"kind": layers.Dense(5, name="kind")(x), "size": layers.Dense(30, name="size")(x)}
    return keras.Model({"image": image, "table": table}, outputs)


def nested():
    inner = cnn()
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, layers.Dense(30)(layers.Dense(40, "relu")(inner(inputs))))


MODELS = {
    "cnn": cnn,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "lstm": lstm,
    "transformer": transformer,
    "two_by_two": two_by_two,
    "nested": nested,
    "resnet20": lambda: resnet(blocks=3),
}
# What is in them is in "nested", "mobilenet" and "two_by_two" too.
SLOW = ["cnn", "resnet", "resnet20"]
# Levels by any method, and on a grid; whether the file must equal Keras.
FORMS = [
    ("codebook", "float32", True),
    ("smallest", "float32", True),
    ("tflm", "float32", True),
    ("int8", "even", False),
    ("auto", "even", True),
    ("int4-exact", "even", True),
    ("tflm int8", "even", False),
]


def prepared(name):
    """The model with statistics as after training, and inputs."""
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(RNG.uniform(0.5, 2.0, weight.shape))
        elif weight.name in ("beta", "moving_mean", "bias"):
            weight.assign(0.1 * RNG.normal(size=weight.shape))
    data = {x.name: RNG.normal(size=(24, *x.shape[1:])).astype("float32") for x in model.inputs}
    return model, data if len(data) > 1 else next(iter(data.values()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]
)
def test_every_form_of(name, tmp_path):
    model, data = prepared(name)
    shared = {table: qareg.share_weights(model, 16, table=table) for table in ("float32", "even")}
    path = tmp_path / "model.tflite"
    for form, table, equal in FORMS:
        samples = None if equal else data
        if name == "lstm" and samples is not None:
            message = error_of(qareg.export.litert, shared[table], path, form.split()[0], samples)
            assert "with 1 of them. Leave out `representative_data`" in message
            continue
        report = qareg.export.litert(shared[table], path, form.split()[0], samples)
        if equal:
            assert report.max_output_difference <= 1e-5 * max(1.0, report.output_range), form
        held = {kernel.path: kernel for kernel in report.kernels if kernel.path}
        kernels = {w.path: w for w in qareg.layers.kernels(model)}
        assert set(held) <= set(kernels) and (set(held) == set(kernels) or not equal), form
        packed = [k for k in held.values() if k.form not in ("float32", "int8")]
        plain = [k for k in held.values() if k.form == "float32"]
        assert all(kernel.reason for kernel in plain), form
        # Tables for each channel outweigh the gain in the small kernels of attention.
        assert packed or form in ("int8", "auto", "tflm int8"), form
        for kernel in held.values():
            assert kernel.levels <= 16 and f"{kernel.path}: {kernel.form}" in str(report)
        if form == "int4-exact":
            assert {kernel.form for kernel in held.values()} == {"int4"}
        if form.startswith("tflm"):
            assert report.batch_size == 1 and "TFLite Micro" in report.micro
        else:
            assert (
                f"{len(held) - len(plain)} rewritten" in qareg.export.verify(shared[table], path)
                or form == "int8"
            )


def test_names_of_inputs_and_outputs_are_kept(tmp_path):
    model, data = prepared("two_by_two")
    shared = qareg.share_weights(model, 4)
    want = shared(data, training=False)
    for form in ("float32", "codebook", "smallest"):
        path = tmp_path / f"{form}.tflite"
        qareg.export.litert(shared, path, form)
        (signature,) = flatbuffer.read(path.read_bytes()).signatureDefs
        assert {entry.name for entry in signature.inputs} == {b"image", b"table"}
        for got, name in zip(run_litert(path, data), ("kind", "size"), strict=True):
            np.testing.assert_allclose(got, want[name], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [4, 16])
def test_resnet20_in_full(levels, tmp_path):
    """270,000 weights, each convolution normalized."""
    MODELS["full"] = lambda: resnet(16, blocks=3)
    shared = qareg.share_weights(prepared("full")[0], levels)
    sizes = {
        form: qareg.export.litert(shared, tmp_path / "m.tflite", form).bytes
        for form in ("float32", "codebook", "tflm")
    }
    assert sizes["codebook"] < 0.3 * sizes["float32"] and sizes["tflm"] < 0.3 * sizes["float32"]
