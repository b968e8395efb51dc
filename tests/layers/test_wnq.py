"""WNQ layers and models: Keras's conformance test, every way to run one."""

import inspect
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import WNQConv2D, WNQDense, WNQDepthwiseConv2D
from tests.helpers import (
    BACKEND,
    STEPS,
    arrays,
    compiled,
    digits,
    forget_compiled,
    gradients,
    predict,
    small_cnn,
    snapshot,
    two_devices,
)

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
    own |= {"per_channel": True, "uniform": False, "signed_activations": False}
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
    np.testing.assert_allclose(*arrays(layer(inputs), plain(inputs)), rtol=1e-5, atol=1e-6)
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
    np.testing.assert_allclose(to_numpy(layer.basis), to_numpy(expected), rtol=1e-6)
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


@pytest.mark.parametrize("options", STEPS, ids=str)
def test_compiled_and_eager_steps_agree(options):
    forget_compiled()
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

    devices = two_devices()
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
    for layer in (first, last):
        layer.fit_basis()
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


def test_few_weights_a_channel_warn():
    with pytest.warns(UserWarning) as caught:
        WNQDepthwiseConv2D(3, bits=3, name="few").build((None, 5, 5, 2))
    assert str(caught[0].message) == (
        "Layer 'few' has 9 weights a channel, too few for the 8 levels of each: its table is no "
        "smaller than the kernel. Use fewer bits, or per_channel=False."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        WNQDepthwiseConv2D(3, bits=3, per_channel=False).build((None, 5, 5, 2))
        WNQDepthwiseConv2D(3, bits=2).build((None, 5, 5, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_signed_activations_have_levels_on_both_sides(kind):
    layer, inputs = make(kind, activation_bits=2, signed_activations=True)
    layer(inputs)  # so that it has a basis
    values = RNG.normal(size=inputs.shape).astype("float32")
    for _ in range(20):
        layer(values, training=True)
    values = RNG.normal(size=4000).astype("float32")
    quantized = to_numpy(layer.activation_quantizer(values, layer.activation_basis))
    found = np.unique(quantized)
    assert len(found) == 4
    np.testing.assert_allclose(found, -found[::-1], rtol=1e-6)
    error = np.square(quantized - values).mean() / np.square(values).mean()
    assert error < 0.3  # the best 4 levels of a normal distribution: 0.1175
    again = type(layer).from_config(layer.get_config())
    assert again.activation_quantizer.signed
