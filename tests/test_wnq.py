"""WNQ layers and models: Keras's conformance test, every way to run one, conversion and back."""

import inspect
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export.runtime import run_litert
from keras_qareg.layers import WNQConv2D, WNQDense, WNQDepthwiseConv2D
from keras_qareg.selection import quantized_layers
from tests.helpers import BACKEND, compiled, digits, gradients, predict, small_cnn, snapshot
from tests.test_models import MODELS, assert_same_outputs, error_of

RNG = np.random.default_rng(0)

# Layer, its arguments, the shape of its inputs and outputs.
KINDS = {
    "dense": (WNQDense, {"units": 6}, (2, 20), (2, 6)),
    "dense_3d": (WNQDense, {"units": 6, "use_bias": False}, (2, 3, 20), (2, 3, 6)),
    "conv": (
        WNQConv2D,
        {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"},
        (2, 7, 7, 4),
        (2, 4, 4, 6),
    ),
    "grouped": (
        WNQConv2D,
        {"filters": 6, "kernel_size": 3, "groups": 2, "dilation_rate": 2},
        (2, 7, 7, 4),
        (2, 3, 3, 6),
    ),
    "depthwise": (
        WNQDepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "activation": "relu"},
        (2, 7, 7, 4),
        (2, 5, 5, 8),
    ),
}
OWN = [
    {"bits": 1},
    {"bits": 2, "activation_bits": 2},
    {"bits": 2, "normalize": False},
    {"bits": 2, "per_channel": False, "uniform": True},
]


def make(kind, **own):
    """A built layer of a kind, and inputs for it."""
    layer_class, arguments, shape, _ = KINDS[kind]
    keras.utils.set_random_seed(0)
    layer = layer_class(**arguments, **own)
    inputs = np.maximum(RNG.normal(size=shape), 0).astype("float32")
    layer(inputs)
    return layer, inputs


def to_numpy(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def per_channel_values(layer):
    """Distinct values in each output channel of the quantized kernel."""
    kernel = to_numpy(layer.quantized_kernel)
    columns = kernel.reshape(-1, np.prod(kernel.shape[-layer._channel_axes :]))
    return [np.unique(column).size for column in columns.T]


@pytest.mark.parametrize("own", OWN, ids=str)
@pytest.mark.parametrize("kind", ["dense", "conv", "depthwise"])
def test_layers_conform_to_keras(kind, own):
    from keras.src import testing

    layer_class, arguments, shape, expected = KINDS[kind]
    testing.TestCase().run_layer_test(
        layer_class,
        {**arguments, **own},
        input_shape=shape,
        expected_output_shape=expected,
        expected_num_trainable_weights=2,
        expected_num_non_trainable_weights=1 + ("activation_bits" in own),
        expected_num_seed_generators=0,
        supports_masking=kind == "dense" or None,
    )


@pytest.mark.parametrize("kind", [WNQDense, WNQConv2D, WNQDepthwiseConv2D])
def test_the_signature_is_the_base_layers_and_our_arguments(kind):
    ours, base = (inspect.signature(cls).parameters for cls in (kind, kind.base))
    own = {"bits": 2, "activation_bits": None, "normalize": True}
    own |= {"per_channel": True, "uniform": False}
    assert [*ours] == [*list(base)[:-1], *own, "kwargs"]
    for name, parameter in ours.items():
        expected = own[name] if name in own else base[name].default
        assert parameter.default == expected and parameter.kind == base.get(name, parameter).kind
    with pytest.raises((TypeError, ValueError), match="bit_width"):
        kind(3, 3, bit_width=2) if kind is WNQConv2D else kind(3, bit_width=2)


@pytest.mark.parametrize("own", OWN, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_base_layer_with_the_quantized_kernel(kind, own):
    layer, inputs = make(kind, **{**own, "activation_bits": None})
    plain = layer.base.from_config(layer.base_config())
    plain(inputs)
    kernel = to_numpy(layer.quantized_kernel)
    plain.set_weights([kernel, *layer.get_weights()[1 : len(plain.weights)]])
    np.testing.assert_allclose(layer(inputs), plain(inputs), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.codebooks()[0].weights, kernel)
    counts = per_channel_values(layer)
    assert max(counts) <= 2 ** own["bits"]
    if own.get("per_channel", True):
        assert min(counts) >= 2 ** own["bits"] - (kind == "depthwise")
    else:
        assert np.unique(kernel).size <= 2 ** own["bits"]


@pytest.mark.parametrize("kind", ["dense", "conv", "depthwise"])
def test_a_training_step_moves_the_latent_kernel_and_the_basis(kind):
    layer, inputs = make(kind, bits=1, activation_bits=2)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = 3 * RNG.normal(size=predict(model, inputs).shape).astype("float32")
    before = snapshot(layer.weights)
    model.fit(inputs, targets, epochs=2, batch_size=2, verbose=0)
    for old, weight in zip(before, layer.weights, strict=True):
        assert np.abs(old - to_numpy(weight)).max() > 1e-4, weight.name
    assert np.unique(to_numpy(layer.kernel)).size > 10 * 2
    assert max(per_channel_values(layer)) <= 2
    moved = snapshot(layer.weights)
    model.predict(inputs, verbose=0)
    model.evaluate(inputs, targets, verbose=0)
    for old, weight in zip(moved, layer.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))


def test_the_update_in_training_is_the_quantizers():
    layer, inputs = make("conv", bits=2, activation_bits=3)
    basis, activation_basis = snapshot(layer.quantization_weights)
    layer(inputs, training=True)
    expected = layer.quantizer.update(to_numpy(layer.kernel), basis)
    np.testing.assert_allclose(to_numpy(layer.basis), expected, rtol=1e-6)
    expected = layer.activation_quantizer.update(inputs, activation_basis)
    np.testing.assert_allclose(to_numpy(layer.activation_basis), expected, rtol=1e-6)


def test_frozen_layers_learn_nothing():
    layer, inputs = make("dense", activation_bits=2)
    layer.trainable = False
    before = snapshot(layer.weights)
    layer(inputs, training=True)
    for old, weight in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))


def test_the_gradient_of_the_latent_kernel():
    """Through the whole layer: that of the quantized kernel, and more for the largest weight."""
    layer, inputs = make("dense_3d")
    kernel = to_numpy(layer.kernel)
    quantized = to_numpy(layer.quantized_kernel)
    plain = layers.Dense(6, use_bias=False)
    plain.build(inputs.shape)

    def loss_of(layer, others):
        def loss(kernel):
            mapping = [(layer.kernel, kernel), *((v, v.value) for v in others)]
            with keras.StatelessScope(mapping):
                return ops.sum(ops.square(layer(inputs)))

        return loss

    _, (slope,) = gradients(loss_of(layer, [layer.basis]), kernel)
    _, (expected,) = gradients(loss_of(plain, []), quantized)
    largest = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    scale = kernel[largest]
    expected[largest] -= (expected * kernel).sum() / scale
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-3)


def test_the_basis_starts_from_the_kernel_however_the_layer_is_built():
    images, labels = digits(64)
    keras.utils.set_random_seed(0)
    later = keras.Sequential([layers.Flatten(), WNQDense(10, bits=3, name="later")])
    assert not later.built
    compiled(later).fit(images, labels, batch_size=64, verbose=0)
    assert later.layers[1].codebooks()[0].relative_error(later.layers[1].kernel) < 0.08
    keras.utils.set_random_seed(0)
    now = keras.Sequential(
        [keras.Input((8, 8, 1)), *(type(x).from_config(x.get_config()) for x in later.layers)]
    )
    error = now.layers[1].codebooks()[0].relative_error(now.layers[1].kernel)
    assert error < 0.08
    compiled(now).fit(images, labels, batch_size=64, verbose=0, shuffle=False)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips(kind, tmp_path):
    layer, inputs = make(kind, bits=1, activation_bits=2, uniform=True)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    for _ in range(3):
        layer.kernel.assign_add(RNG.normal(size=layer.kernel.shape))
        model(inputs, training=True)
    outputs = predict(model, inputs)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(again, inputs), outputs)
    np.testing.assert_array_equal(again.layers[0].kernel, layer.kernel)  # the latent one
    model.save_weights(tmp_path / "model.weights.h5")
    layer.basis.assign(np.zeros(layer.basis.shape))
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(predict(model, inputs), outputs)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    images, labels = digits(64)
    keras.config.set_dtype_policy(policy)
    try:
        model = qareg.wnq(small_cnn(normalize=True), 2, activation_bits=4, skip=())
        layer = model.get_layer("fc")
        assert {keras.backend.standardize_dtype(v.dtype) for v in layer.weights} == {"float32"}
        history = compiled(model).fit(images, labels, epochs=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        assert keras.backend.standardize_dtype(layer.quantized_kernel.dtype) == "float32"
        assert max(per_channel_values(layer)) <= 4
        outputs = model(images)
        assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_compiled_and_eager_steps_agree(options):
    images, labels = digits(64)
    losses, bases = [], []
    for chosen in (options, {"jit_compile": False}):
        model = compiled(qareg.wnq(small_cnn(), 2, activation_bits=2, skip=("first",)), **chosen)
        losses.append(model.fit(images, labels, epochs=3, shuffle=False, verbose=0).history["loss"])
        bases.append(to_numpy(model.get_layer("fc").basis))
    np.testing.assert_allclose(*losses, rtol=2e-3)
    np.testing.assert_allclose(*bases, atol=2e-3)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's")
def test_two_replicas_train_as_one():
    import tensorflow as tf

    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        pytest.skip("needs two logical CPU devices, which conftest.py sets up")
    images, labels = digits(64)

    def train():
        model = compiled(qareg.wnq(small_cnn(), bits=2, skip=()))
        history = model.fit(images, labels, batch_size=64, epochs=3, shuffle=False, verbose=0)
        return history.history["loss"], to_numpy(model.get_layer("fc").basis)

    single, basis = train()
    names = [device.name for device in devices[:2]]
    reduction = tf.distribute.ReductionToOneDevice()
    with tf.distribute.MirroredStrategy(names, cross_device_ops=reduction).scope():
        double, double_basis = train()
    np.testing.assert_allclose(double, single, rtol=1e-4)
    np.testing.assert_allclose(double_basis, basis, atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow convolves channels first on GPUs only")
def test_channels_first():
    last, inputs = make("conv", activation_bits=None)
    first = WNQConv2D.from_config({**last.get_config(), "data_format": "channels_first"})
    first(inputs.transpose(0, 3, 1, 2))
    first.bias.assign(np.arange(6.0))
    last.bias.assign(np.arange(6.0))
    first.kernel.assign(last.kernel)
    first.fit_basis()
    got = to_numpy(first(inputs.transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, last(inputs), rtol=1e-4, atol=1e-5)


def test_low_rank_adaptation_trains_beside_the_levels(tmp_path):
    layer, inputs = make("dense")
    layer.enable_lora(2)
    model = keras.Sequential([keras.Input((20,)), layer])
    model.compile("sgd", "mse")
    model.fit(inputs, np.ones((2, 6)), epochs=3, verbose=0)
    assert np.abs(to_numpy(layer.lora_kernel_b)).max() > 0
    assert max(per_channel_values(layer)) <= 4
    outputs = predict(model, inputs)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predict(again, inputs), outputs, rtol=1e-5)


# Conversion.


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_is_converted_and_stripped(kind, tmp_path):
    build, inputs, names = MODELS[kind]
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some channels are small here
        quantized = qareg.wnq(model, bits=2, skip=())
    assert type(quantized) is type(model) and quantized.name == model.name
    assert sorted(layer.name for layer in quantized_layers(quantized)) == sorted(names)
    plain = qareg.strip(quantized)
    assert not quantized_layers(plain) and type(plain) is type(model)
    np.testing.assert_allclose(
        *(
            predict(m, inputs) if kind != "functional" else predict_first(m, inputs)
            for m in (plain, quantized)
        ),
        rtol=1e-4,
        atol=1e-5,
    )
    books = qareg.codebooks(quantized)
    assert sorted(books) == sorted(
        path for path in (w.path for w in plain.weights) if path.endswith("kernel")
    )
    for weight in plain.weights:
        if weight.path in books:
            np.testing.assert_array_equal(weight, books[weight.path].weights)
    for old, new in zip(model.weights, latent_weights(quantized), strict=True):
        assert old.path == new.path
        np.testing.assert_array_equal(old, new)
    plain.save_weights(tmp_path / "plain.weights.h5")
    model.load_weights(tmp_path / "plain.weights.h5")
    assert_same_outputs(model, plain, inputs)


def predict_first(model, inputs):
    return np.concatenate(
        [to_numpy(y) for y in model([ops.cast(x, "float32") for x in inputs])], -1
    )


def latent_weights(model):
    return [weight for weight in model.weights if not weight.name.endswith("basis")]


def deep():
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8, 8, 1)), layers.Conv2D(32, 3, name="stem")]
    stack += [layers.DepthwiseConv2D(3, name="depthwise"), layers.Conv2D(16, 1, name="pointwise")]
    stack += [
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(20, name="fc"),
        layers.Dense(10, name="out"),
    ]
    return keras.Sequential(stack)


def names_of(model):
    return [layer.name for layer in quantized_layers(model)]


def test_what_is_converted():
    model = deep()
    assert names_of(qareg.wnq(model)) == ["depthwise", "pointwise", "fc"]
    assert names_of(qareg.wnq(model, skip="first")) == ["depthwise", "pointwise", "fc", "out"]
    assert (
        len(names_of(qareg.wnq(model, skip=()))) == len(names_of(qareg.wnq(model, skip=None))) == 5
    )
    assert names_of(qareg.wnq(model, layers="conv")) == ["depthwise", "pointwise"]
    assert names_of(qareg.wnq(model, layers="dense")) == ["fc"]
    assert names_of(qareg.wnq(model, layers=["stem", "fc"], skip=())) == ["stem", "fc"]
    assert names_of(qareg.wnq(model, skip=("first", "last", "depthwise"))) == ["pointwise", "fc"]
    quantized = qareg.wnq(
        compiled(model), 1, 3, normalize=False, per_channel=False, uniform=True, layers=["fc"]
    )
    assert quantized.compiled and not names_of(model)
    config = quantized.get_layer("fc").get_config()
    expected = {"bits": 1, "activation_bits": 3, "normalize": False, "per_channel": False}
    assert {**config, **expected, "uniform": True} == config


def test_a_report_and_a_round_trip_of_a_converted_model(tmp_path):
    images, labels = digits(128)
    model = qareg.wnq(deep(), bits=2)
    compiled(model).fit(images, labels, epochs=2, verbose=0)
    summary = qareg.report.summary(model)
    rows = {row.path.split("/")[-2]: row for row in summary.rows}
    assert [rows[name].levels for name in ("depthwise", "pointwise", "fc")] == [4, 4, 4]
    assert rows["stem"].levels is None and rows["stem"].entropy == 32.0
    for name in ("depthwise", "pointwise", "fc"):
        assert 1.0 < rows[name].entropy <= 2.0 and 0.0 < rows[name].relative_error < 0.3
    size = np.prod(rows["fc"].shape)
    assert rows["fc"].packed_bytes == size * 2 // 8 + 4 * 4 * 20
    plain = qareg.strip(model)
    assert summary.float_bytes == 4 * plain.count_params()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(again, images), predict(model, images))
    for row, other in zip(summary.rows, qareg.report.summary(again).rows, strict=True):
        assert (row.levels, row.entropy, row.relative_error) == (
            other.levels,
            other.entropy,
            other.relative_error,
        )
    np.testing.assert_allclose(predict(plain, images), predict(model, images), rtol=1e-4, atol=1e-5)
    plain.save(tmp_path / "plain.keras")
    assert b"keras_qareg" not in (tmp_path / "plain.keras").read_bytes()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT export needs TensorFlow")
@pytest.mark.parametrize("activation_bits", [None, 2])
def test_a_trained_model_is_the_same_in_litert(activation_bits, tmp_path):
    images, labels = digits(128)
    model = qareg.wnq(deep(), bits=2, activation_bits=activation_bits)
    compiled(model).fit(images, labels, epochs=2, verbose=0)
    report = qareg.export.litert(model, tmp_path / "model.tflite", representative_data=images)
    assert report.max_output_difference < 1e-3
    (outputs,) = run_litert(tmp_path / "model.tflite", images)
    np.testing.assert_allclose(outputs, predict(model, images), rtol=1e-3, atol=1e-3)


def test_strip_warns_of_quantized_activations():
    model = qareg.wnq(deep(), bits=2, activation_bits=2, layers=["fc"])
    with pytest.warns(UserWarning) as caught:
        qareg.strip(model)
    assert [str(warning.message) for warning in caught] == [
        "Layers ['fc'] quantize their inputs; the plain layers do not, so that outputs differ."
    ]


def test_few_weights_a_channel_warn():
    with pytest.warns(UserWarning) as caught:
        WNQDepthwiseConv2D(3, bits=3, name="few").build((None, 5, 5, 2))
    assert str(caught[0].message) == (
        "Layer 'few' has 9 weights a channel, too few for the 8 levels of each: its table is no "
        "smaller than the kernel. Use fewer bits, or per_channel=False."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WNQDepthwiseConv2D(3, bits=3, per_channel=False).build((None, 5, 5, 2))
        WNQDepthwiseConv2D(3, bits=2).build((None, 5, 5, 2))


def test_other_layers_stay_with_a_warning():
    model = keras.Sequential(
        [keras.Input((9, 12)), layers.Conv1D(8, 3, name="c1"), layers.Flatten()]
    )
    model.add(layers.Dense(16, name="fc"))
    with pytest.warns(
        UserWarning, match="Left as they are, because WNQ has no layer of their kind"
    ):
        quantized = qareg.wnq(model, skip=())
    assert names_of(quantized) == ["fc"]
    assert error_of(qareg.wnq, model, skip=(), layers="conv") == (
        f"Expected a layer to convert in model '{model.name}', one of Conv2D, DepthwiseConv2D, "
        "Dense. Received: layers='conv' and skip=(), which leave 'c1' (Conv1D)."
    )
    assert "which leave none." in error_of(qareg.wnq, model)


def test_bad_input():
    model = small_cnn()
    for bits in (0, 5, 2.5):
        assert error_of(qareg.wnq, model, bits) == (
            f"Expected `bits` to be an integer from 1 to 4. Received: bits={bits!r}"
        )
    for bits in (0, 9):
        assert error_of(qareg.wnq, model, 2, activation_bits=bits) == (
            f"Expected `activation_bits` to be an integer from 1 to 8. Received: activation_bits={bits}"
        )
    assert error_of(qareg.wnq, keras.Sequential([layers.Dense(3)], name="later")) == (
        "Expected a built model. Received: model 'later' without weights. "
        "Call it on a batch, or begin it with keras.Input."
    )
    converted = qareg.wnq(model, skip=())
    for transform in (
        qareg.wnq,
        lambda m: qareg.quantization_aware(m, "sine"),
    ):
        assert error_of(transform, converted) == (
            "Expected a plain model. Received: a model with quantized layers already (['conv', "
            "'fc', 'out']). Take keras_qareg.strip(model) first."
        )
    assert "with layer 'conv' of type WNQConv2D" in error_of(qareg.share_weights, converted, 4)
    assert error_of(qareg.wnq, model, skip=("fc", "head")) == (
        "Expected `skip` to hold 'first', 'last' or names of layers with kernels, "
        "['conv', 'fc', 'out']. Received: 'head'"
    )
    model.get_layer("fc").kernel.assign(np.full(model.get_layer("fc").kernel.shape, np.nan))
    assert error_of(qareg.wnq, model) == (
        "Kernel of layer 'fc': Expected finite weights. Received: an array with NaN or infinite "
        "values. Train again with a lower learning rate, or restore an earlier checkpoint."
    )
