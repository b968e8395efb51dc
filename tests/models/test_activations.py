"""Ranges of activations: where they are, that nothing else changes, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import (
    ActivationRange,
    FreezableBatchNormalization,
    IntegerKernels,
    QuantizationAware,
    SharedWeights,
    WNQConv2D,
)
from keras_qareg.regularizers import Sine
from tests.helpers import BACKEND, arrays, compiled, digits, error_of, predict, small_cnn, snapshot
from tests.kinds import outputs_of

RNG = np.random.default_rng(0)


def network():
    """A residual block, branches that are joined, a normalization, and activations of all kinds."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(layers.Dropout(0.5, name="drop")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="deep")(x)
    y = layers.BatchNormalization(name="norm2")(y)
    x = layers.Activation("relu", name="relu2")(layers.Add(name="add")([x, y]))
    left = layers.Conv2D(3, 1, activation="silu", name="left")(x)
    right = layers.Conv2D(3, 1, activation="sigmoid", name="right")(x)
    right = layers.Multiply(name="scaled")([right, right])
    x = layers.Concatenate(name="joined")([x, left, right])
    x = layers.AveragePooling2D(2, name="pool")(layers.ZeroPadding2D(name="pad")(x))
    x = layers.Flatten(name="flat")(layers.Dropout(0.2, name="drop2")(x))
    model = keras.Model(image, layers.Dense(10, "softmax", name="out")(x), name="net")
    for name in ("norm", "norm2"):
        model.get_layer(name).moving_variance.assign(np.linspace(0.5, 2.0, 4))
    return model


def ranges(model):
    return {x.name: x for x in model.layers if isinstance(x, ActivationRange)}


def placements(model):
    """For each range, the operations that it stands behind."""
    return {
        name: [node.input_tensors[0]._keras_history.operation.name for node in layer._inbound_nodes]
        for name, layer in ranges(model).items()
    }


@pytest.mark.one_backend
def test_ranges_are_where_a_file_has_them():
    model = network()
    quantized = qareg.quantize_activations(model)
    assert placements(quantized) == {
        "image_range": ["image"],
        "conv_range": ["relu"],  # behind the normalization and the ReLU
        "deep_range": ["norm2"],
        # One for what is joined, and for the pool behind.
        "add_range": ["relu2", "left_silu", "scaled", "pool"],
        "left_range": ["left"],
        "left_sigmoid_range": ["left_sigmoid"],
        "right_range": ["right"],
        "right_sigmoid_range": ["right_sigmoid"],
        "out_range": ["out"],
        "out_softmax_range": ["out_softmax"],
    }
    fixed = {name: layer.fixed for name, layer in ranges(quantized).items() if layer.fixed}
    assert fixed == dict.fromkeys(
        ("left_sigmoid_range", "right_sigmoid_range", "out_softmax_range"), (1 / 256, -128)
    )
    kinds = [type(quantized.get_layer(name)) for name in ("conv", "deep", "left", "out", "norm")]
    assert kinds == [IntegerKernels] * 4 + [FreezableBatchNormalization]
    assert {x.name for x in model.layers} <= {x.name for x in quantized.layers}


def test_outputs_are_those_of_the_model_but_for_rounding():
    model, (images, _) = network(), digits(64)
    before = snapshot(model.weights)
    quantized = qareg.quantize_activations(model)
    plain = qareg.quantize_activations(model, images)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(arrays(weight)[0], value)
    with pytest.warns(UserWarning, match="Ranges of activations .* are left out: plain layers"):
        stripped = qareg.strip(quantized)
    assert not any(type(x).__module__.startswith("keras_qareg") for x in stripped.layers)
    # Without ranges, the kernels alone are rounded.
    np.testing.assert_allclose(
        predict(stripped, images), np.rint(predict(quantized, images) * 256) / 256, atol=2.1 / 512
    )
    expected, found = predict(model, images), predict(plain, images)
    assert 0 < np.abs(found - expected).max() < 0.02
    np.testing.assert_array_equal(found * 256, np.rint(found * 256))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_ranges_are_calibrated(method):
    inputs = keras.Input((5,), name="x")
    model = keras.Model(inputs, layers.Dense(3, name="fc")(inputs))
    data = RNG.normal(size=(4096, 5)).astype("float32") - 0.5
    data[0, 0] = 20.0
    held = ranges(qareg.quantize_activations(model, data, method=method))["x_range"]
    step, zero_point = held.grid()
    low, high = step * (-128.0 - zero_point), step * (127.0 - zero_point)
    if method == "minmax":
        np.testing.assert_allclose([low, high], [data.min(), 20.0], atol=step)
    elif method == "percentile":
        ends = np.quantile(data, [1e-4, 1 - 1e-4])
        np.testing.assert_allclose([low, high], ends, atol=0.1)
    else:
        quantized = qareg.quantize_activations(model, data)

        def error(step, zero):
            codes = np.clip(np.rint(data / step) + zero, -128, 127)
            return np.square((codes - zero) * step - data).sum()

        widest = error(*ranges(quantized)["x_range"].grid())
        assert error(step, zero_point) < widest and high < 19.9


def test_it_goes_with_every_other_transform(tmp_path):
    model, images = network(), digits(32)[0]
    ways = {
        QuantizationAware: qareg.quantization_aware(model, Sine(4)),
        SharedWeights: qareg.share_weights(model, 4),
        WNQConv2D: qareg.wnq(model, skip=()),
    }
    for kind, given in ways.items():
        after = qareg.quantize_activations(given, images)
        assert (
            isinstance(after.get_layer("left"), kind)
            and "left_sigmoid" in placements(after)["left_sigmoid_range"]
        )
        for path, book in qareg.codebooks(given).items():
            np.testing.assert_array_equal(qareg.codebooks(after)[path].weights, book.weights)
    quantized = qareg.quantize_activations(model, images)
    grids = {name: layer.grid() for name, layer in ranges(quantized).items()}
    aware = qareg.quantization_aware(quantized, Sine(4))
    shared = qareg.share_weights(aware)
    for later in (aware, shared, qareg.share_weights(quantized, 4, layers=["out"])):
        assert {name: layer.grid() for name, layer in ranges(later).items()} == grids
    assert isinstance(shared.get_layer("conv"), SharedWeights)
    assert [type(later.get_layer(x)).__name__ for x in ("conv", "out", "norm")] == [
        "IntegerKernels",
        "SharedWeights",
        "FreezableBatchNormalization",
    ]
    qareg.recalibrate(quantized, images)
    summary = qareg.report.summary(quantized)
    assert [row.path for row in summary.rows][:2] == ["conv/kernel", "deep/kernel"]
    plain = sum(4 * w.shape[0] for w in model.weights if len(w.shape) == 1)
    assert summary.other_bytes == plain
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, images), predict(quantized, images))
    with pytest.warns(UserWarning, match="left out"):
        path = qareg.export.save_archive(quantized, tmp_path / "model.qareg")
    kernel = qareg.export.load_archive(path).get_layer("out").kernel
    np.testing.assert_array_equal(*arrays(kernel, quantized.get_layer("out").used_kernels()[0]))


def two_models():
    """Two inputs and outputs, a layer and a model that are used twice, and names that are used twice."""
    keras.utils.set_random_seed(1)
    inside = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, name="deep"), layers.BatchNormalization(name="norm")],
        name="inside",
    )
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    shared = layers.Dense(6, activation="tanh", name="shared")
    merged = ops.maximum(shared(inside(left)), shared(inside(right, training=False)))
    first = layers.Dense(4, name="first")(merged)
    second = layers.Dense(2, name="deep")(ops.relu(merged - first[:, :1]))
    return keras.Model({"left": left, "right": right}, [first, second], name="two")


def test_models_inside_are_taken_apart():
    model = two_models()
    model.compile(
        keras.optimizers.Adam(0.125),
        loss={"first": "mse", "deep": "mae"},
        loss_weights={"first": 2.0, "deep": 1.0},
    )
    data = {name: RNG.normal(size=(64, 6)).astype("float32") for name in ("left", "right")}
    quantized = qareg.quantize_activations(model, data)
    assert isinstance(quantized, keras.Model) and quantized.output_names == ["first", "deep"]
    assert {"inside_deep", "norm", "shared", "first", "deep"} <= {x.name for x in quantized.layers}
    held = placements(quantized)
    assert held["inside_deep_range"] == ["norm"] and held["shared_tanh_range"] == ["shared_tanh"]
    assert len(quantized.get_layer("inside_deep")._inbound_nodes) == 2
    for one, two in zip(outputs_of(quantized, data), outputs_of(model, data), strict=True):
        np.testing.assert_allclose(one, two, atol=0.1)
    assert float(quantized.optimizer.learning_rate) == 0.125
    targets = [np.zeros((64, 4)), np.zeros((64, 2))]
    quantized.fit(data, dict(zip(("first", "deep"), targets, strict=True)), verbose=0)
    with pytest.warns(UserWarning, match="left out"):
        assert qareg.strip(quantized).output_names == ["first", "deep"]


def test_a_sequential_model_trains_on_with_its_ranges():
    images, labels = digits(64)
    model = compiled(small_cnn(), jit_compile=False)
    quantized = qareg.quantize_activations(model, images)
    before = {name: layer.grid() for name, layer in ranges(quantized).items()}
    quantized.fit(images, labels, verbose=0, batch_size=16)
    after = {name: layer.grid() for name, layer in ranges(quantized).items()}
    assert all(after[name] != grid for name, grid in before.items())
    frozen = qareg.quantize_activations(model, images, trainable=False, bits=16)
    assert not any(layer.trainable for layer in ranges(frozen).values())
    assert {layer.grid()[1] for layer in ranges(frozen).values()} == {0}


@pytest.mark.parametrize("invert", [False, True])
def test_what_a_file_has_as_several_operators_becomes_these(invert):
    data = RNG.normal(2.0, 3.0, size=(512, 6)).astype("float32")
    normalization = layers.Normalization(invert=invert, name="normal")
    normalization.adapt(data)
    stack = [
        normalization,
        layers.Rescaling(0.5, offset=1.0, name="rescaled"),
        layers.Activation("silu", name="silu"),
        layers.Dense(4, activation="hard_sigmoid", name="fc"),
    ]
    model = keras.Sequential([keras.Input((6,), name="x"), *stack])
    quantized = qareg.quantize_activations(model, data, bits=16)
    names = ["x", "normal", "rescaled_scaled", "rescaled", "silu_sigmoid", "silu", "fc"]
    names += ["normal_scaled" if invert else "normal_moved", "fc_moved", "fc_hard_sigmoid"]
    assert set(placements(quantized)) == {f"{name}_range" for name in names}
    np.testing.assert_allclose(predict(quantized, data), predict(model, data), atol=0.02)
    again = keras.models.model_from_json(quantized.to_json())
    again.set_weights(quantized.get_weights())
    np.testing.assert_array_equal(predict(again, data), predict(quantized, data))


def test_a_normalization_that_saw_no_data_does_nothing():
    data = RNG.normal(size=(64, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Normalization(name="n"), layers.Dense(4)])
    quantized = qareg.quantize_activations(model, data)
    plain = qareg.strip(quantized)
    np.testing.assert_allclose(predict(plain, data), predict(model, data), atol=0.05)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_ranges_and_statistics_train_in_a_distribution():
    import tensorflow as tf

    images, labels = digits(32)
    model = network()
    reduction = (
        tf.distribute.ReductionToOneDevice()
    )  # collective ones wait for those of other tests
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction).scope():
        copied = keras.models.clone_model(model)
        copied.set_weights(model.get_weights())
        quantized = qareg.quantize_activations(copied)
        for layer in ranges(quantized).values():
            layer.place(-1.0, 3.0)
        quantized.compile("sgd", "sparse_categorical_crossentropy")
    freeze = qareg.callbacks.FreezeBatchNormalization(steps=2)
    quantized.fit(images, labels, batch_size=8, epochs=1, verbose=0, callbacks=[freeze])
    norm = quantized.get_layer("norm")
    assert float(ops.convert_to_numpy(norm.frozen)) == 1.0
    assert quantized.get_layer("conv_range").grid()[0] != np.float32(4 / 255)


def refusal(*stack, shape=(8, 4)):
    model = keras.Sequential([keras.Input(shape, name="x"), *stack], name="odd")
    said = error_of(qareg.quantize_activations, model)
    start = (
        "Expected a model whose every operation has an integer form in TensorFlow Lite. Received: "
    )
    assert said.startswith(start)
    return said.removeprefix(start)


@pytest.mark.one_backend
def test_what_has_no_integer_form_is_named_with_what_to_do():
    general = (
        "Quantize what is before and behind it as models of their own, or leave activations in floating "
        "point: export.litert does so without ranges."
    )
    assert refusal(layers.LSTM(3, name="lstm"), layers.LayerNormalization(name="norm")) == (
        f"'lstm' (LSTM). {general} 'norm' (LayerNormalization). {general}"
    )
    assert refusal(layers.BatchNormalization(name="norm")) == (
        "'norm' (BatchNormalization). Put it behind a convolution or dense layer without activation, "
        "which nothing else reads."
    )
    assert refusal(layers.Dense(3, activation="softplus", name="fc")) == (
        "'fc_softplus' (Activation). Use one of gelu, hard_sigmoid, hard_silu, leaky_relu, relu, "
        "relu6, sigmoid, silu, softmax, tanh."
    )
    assert refusal(layers.SeparableConv2D(3, 2, name="c"), shape=(4, 4, 2)) == (
        "'c' (SeparableConv2D). Write it as a DepthwiseConv2D and a Conv2D of kernel size 1."
    )
    assert refusal(layers.ReLU(3.0, name="r")) == (
        "'r' (ReLU). Use one with max_value=6 or without, and with threshold=0."
    )
    hard = keras.Sequential([keras.Input((4,)), layers.Activation("hard_silu", name="hard")])
    assert (
        "'hard' (Activation). It takes activations of 8 bits alone: use silu, or bits=8."
        in error_of(qareg.quantize_activations, hard, bits=16)
    )
    assert refusal(layers.Embedding(4, 3, name="words"), shape=(5,)).startswith(
        f"'words' (Embedding). {general}"
    )
    given = keras.Input((4,), name="x")
    read = layers.Dense(3, name="read")(given)
    clipped = layers.ReLU(name="clipped")(read)
    assert error_of(qareg.quantize_activations, keras.Model(given, [clipped, read])).endswith(
        "Received: 'clipped' (ReLU). Let nothing else read the dense layer before it, which is written "
        "twice then."
    )
    words = keras.Input((5,), dtype="int32", name="words")
    model = keras.Model(words, layers.Flatten(name="flat")(words))
    assert "Received: input 'words' of int32. Give the model floating-point numbers." in error_of(
        qareg.quantize_activations, model
    )


@pytest.mark.one_backend
def test_what_the_runtime_gives_a_range_cannot_be_joined_with_others():
    given = keras.Input((6,), name="x")
    parts = [layers.Dense(4, activation=name)(given) for name in ("relu", "sigmoid")]
    joined = keras.Model(given, layers.Concatenate(name="joined")(parts))
    assert error_of(qareg.quantize_activations, joined).endswith(
        "Received: 'joined' (Concatenate). All that it joins must have one range, and the runtime "
        "prescribes that of a softmax, sigmoid or tanh among them. Give these as outputs of their own, "
        "or join what they are of."
    )


def test_bad_arguments():
    model = small_cnn()
    said = "Expected `bits` of activations to be 8, or 16 beside kernels of 8. Received: bits=4"
    assert error_of(qareg.quantize_activations, model, bits=4) == said
    images = digits(8)[0]
    assert error_of(qareg.quantize_activations, model, images, method="mean").startswith(
        "Expected `method` to be one of"
    )
    assert error_of(qareg.quantize_activations, model, images, batch_size=0) == (
        "Expected `batch_size` to be a positive integer. Received: batch_size=0"
    )
    assert error_of(qareg.quantize_activations, model, np.zeros_like(images)) == (
        "Layer 'input_layer_range': Expected a finite range of activations, which are not all 0. "
        "Received: from 0.0 to 0.0"
    ).replace("input_layer", model.inputs[0]._keras_history.operation.name)
    assert error_of(qareg.quantize_activations, model, np.full_like(images, np.inf)).startswith(
        "Expected `data` without NaN and infinite numbers. Received: infinite numbers in"
    )
    once = qareg.quantize_activations(model)
    assert error_of(qareg.quantize_activations, once) == (
        f"Expected a model without ranges of activations. Received: 'cnn' with {list(ranges(once))}. "
        "Take keras_qareg.strip(model) first."
    )
    inputs = qareg.wnq(model, activation_bits=3, signed_activations=True, skip=())
    assert (
        "'conv' (WNQConv2D). It quantizes its inputs itself: make it with activation_bits=None."
        in (error_of(qareg.quantize_activations, inputs))
    )


@pytest.mark.one_backend
def test_a_number_has_no_integer_form():
    inputs = keras.Input((16,))
    hidden = ops.maximum(keras.layers.Dense(8)(inputs), 0.1)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    assert "Join tensors of the model alone, without constants." in error_of(
        qareg.quantize_activations, model, np.ones((4, 16), "float32")
    )
