"""The wrappers: Keras's own conformance test, every kind of layer, and every way to run one."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import QuantizationAware, SharedWeights
from keras_qareg.models.selection import wrappers
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine
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

# Layer, shapes of its inputs, number of kernels.
KINDS = {
    "dense": (lambda: layers.Dense(6), [(2, 5)], 1),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (3, 6)), [(2, 3, 5)], 1),
    "conv1d": (lambda: layers.Conv1D(6, 3), [(2, 7, 4)], 1),
    "conv2d": (lambda: layers.Conv2D(6, 3), [(2, 7, 7, 2)], 1),
    "conv3d": (lambda: layers.Conv3D(4, 2), [(2, 4, 4, 4, 2)], 1),
    "conv2d_transpose": (lambda: layers.Conv2DTranspose(6, 3), [(2, 4, 4, 2)], 1),
    "depthwise": (lambda: layers.DepthwiseConv2D(3), [(2, 7, 7, 4)], 1),
    "separable": (lambda: layers.SeparableConv2D(6, 3), [(2, 7, 7, 4)], 2),
    "lstm": (lambda: layers.LSTM(5), [(2, 4, 3)], 2),
    "gru": (lambda: layers.GRU(5, return_sequences=True), [(2, 4, 3)], 2),
    "simple_rnn": (lambda: layers.SimpleRNN(5), [(2, 4, 3)], 2),
    "bidirectional": (lambda: layers.Bidirectional(layers.GRU(4)), [(2, 4, 3)], 4),
    "time_distributed": (lambda: layers.TimeDistributed(layers.Dense(4)), [(2, 4, 3)], 1),
    "attention": (lambda: layers.MultiHeadAttention(2, 4), [(2, 3, 6), (2, 5, 8)], 4),
    "subclass_of_dense": (lambda: ScaledDense(6), [(2, 5)], 1),
    "layer_of_layers": (lambda: Block(6), [(2, 5)], 1),
    "built_by_its_call": (lambda: Unbuilt(6), [(2, 5), (2, 4)], 2),
}


@keras.saving.register_keras_serializable("tests")
class ScaledDense(layers.Dense):
    def call(self, inputs):
        return 2.0 * super().call(inputs)


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """Dropout, normalization and a dense layer: what behaves differently in training."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dropout = layers.Dropout(0.5, seed=1)
        self.norm = layers.BatchNormalization()
        self.dense = layers.Dense(units)

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.dense.build(input_shape)

    def call(self, inputs, training=None):
        hidden = self.norm(inputs, training=training)
        return self.dense(self.dropout(hidden, training=training))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class Unbuilt(layers.Layer):
    """As most people write a layer: without `build`."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.left, self.right = layers.Dense(units), layers.Dense(units)

    def call(self, left, right):
        return self.left(left) + self.right(right)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def inputs_of(shapes):
    return [RNG.normal(size=shape).astype("float32") for shape in shapes]


def conformance_test(layer_class, arguments, **kwargs):
    from keras.src import testing

    testing.TestCase().run_layer_test(layer_class, arguments, **kwargs)


@pytest.mark.parametrize(
    "regularizer",
    [NearestSquared(4), NearestExponential(4), Sine(4), Cosine(4)],
    ids=lambda r: type(r).__name__,
)
def test_quantization_aware_conforms_to_keras(regularizer):
    conformance_test(
        QuantizationAware,
        {"layer": layers.Dense(3), "regularizer": regularizer},
        input_shape=(2, 5),
        expected_output_shape=(2, 3),
        expected_num_trainable_weights=2 + regularizer.learned,
        expected_num_non_trainable_weights=3 + (not regularizer.learned),
        expected_num_seed_generators=0,
        supports_masking=True,
    )


def test_shared_weights_conform_to_keras():
    conformance_test(
        SharedWeights,
        {"layer": layers.Conv2D(3, 2), "levels": 4},
        input_shape=(2, 5, 5, 2),
        expected_output_shape=(2, 4, 4, 3),
        expected_num_trainable_weights=2,
        expected_num_non_trainable_weights=2,
        expected_num_seed_generators=0,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_with_kernels_can_be_wrapped(kind):
    make, shapes, count = KINDS[kind]
    inputs = inputs_of(shapes)
    wrapped = QuantizationAware(make(), NearestSquared(4))
    outputs = wrapped(*inputs)
    np.testing.assert_array_equal(*arrays(outputs, wrapped.layer(*inputs)))
    assert len(wrapped.kernels) == len(wrapped.centroids) == count
    assert len({variable.name for variable in wrapped.centroids}) == count
    assert all(variable.trainable and variable.shape == (4,) for variable in wrapped.centroids)
    if kind != "built_by_its_call":
        expected = wrapped.compute_output_shape(*(x.shape for x in inputs))
        assert tuple(expected) == tuple(outputs.shape)

    symbolic = QuantizationAware(make(), NearestSquared(4))(
        *(keras.KerasTensor(x.shape) for x in inputs)
    )
    assert symbolic.shape == outputs.shape

    shared = SharedWeights(make(), levels=4)
    shared(*inputs)
    books = [Codebook.nearest(ops.convert_to_numpy(k), [-0.3, 0, 0.1, 0.4]) for k in shared.kernels]
    shared.assign_codebooks(books)
    plain = make()
    plain(*inputs)
    for old, new in zip(shared.layer.weights, plain.weights, strict=True):
        new.assign(old)
    for kernel, book in zip(qareg.layers.kernels(plain), books, strict=True):
        kernel.assign(book.weights)
    np.testing.assert_allclose(*arrays(shared(*inputs), plain(*inputs)), rtol=1e-5, atol=1e-6)


def test_embedding_and_its_mask():
    tokens = np.array([[3, 1, 0], [2, 0, 0]])
    embedding = layers.Embedding(10, 6, mask_zero=True)
    for wrapped in (
        QuantizationAware(embedding, NearestSquared(4)),
        SharedWeights(layers.Embedding(10, 6, mask_zero=True), levels=4),
    ):
        mask = wrapped(tokens)._keras_mask
        np.testing.assert_array_equal(ops.convert_to_numpy(mask), tokens != 0)
    assert tuple(embedding.embeddings.shape) == (10, 6)


def test_masks_and_keyword_inputs_reach_the_layer_inside():
    plain = layers.LSTM(4)
    sequence = inputs_of([(2, 5, 3)])[0]
    mask = np.array([[True] * 5, [True, True, False, False, False]])
    wrapped = QuantizationAware(plain, NearestSquared(4))
    masked = wrapped(sequence, mask=mask)
    np.testing.assert_array_equal(*arrays(masked, plain(sequence, mask=mask)))
    assert not np.allclose(*arrays(masked, plain(sequence)))
    attention = layers.MultiHeadAttention(2, 4)
    query, value = inputs_of([(2, 3, 6), (2, 5, 8)])
    wrapped = QuantizationAware(attention, NearestSquared(4))
    given = {"attention_mask": np.tri(3, 5)[None] > 0, "return_attention_scores": True}
    _, scores = wrapped(query, value, **given)
    assert float(ops.max(scores[0, 0, 0, 1:])) == 0.0


def test_a_regularizer_learns_centroids_and_pulls_the_weights():
    layer = QuantizationAware(layers.Dense(8, use_bias=False), NearestSquared(3, strength=1.0))
    layer.build((None, 16))
    layer.place_centroids()
    model = keras.Sequential([keras.Input((16,)), layer])
    model.compile(keras.optimizers.SGD(0.1), loss=lambda y, p: 0.0 * ops.sum(p))
    before = layer.penalties()[0]
    model.fit(*inputs_of([(32, 16), (32, 8)]), epochs=5, verbose=0)
    assert layer.penalties()[0] < 0.2 * before
    book = Codebook.nearest(ops.convert_to_numpy(layer.kernels[0]), layer.centroids[0])
    assert book.levels_used == 3


def test_the_penalty_is_in_the_training_loss_only():
    model = compiled(qareg.quantization_aware(small_cnn(), NearestSquared(4, strength=10.0)))
    images, labels = digits(32)
    plain = compiled(small_cnn()).evaluate(images, labels, verbose=0)
    assert model.evaluate(images, labels, verbose=0) == pytest.approx(plain, rel=1e-5)
    penalty = sum(sum(layer.penalties()) for layer in wrappers(model))
    trained = model.fit(images, labels, batch_size=32, verbose=0, shuffle=False)
    assert trained.history["loss"][0] == pytest.approx(plain + penalty, rel=1e-4)
    assert penalty > 0.1
    # Once trained, a validation loss is still the loss of the task alone.
    history = model.fit(
        images, labels, batch_size=32, verbose=0, validation_data=(images, labels)
    ).history
    stripped = compiled(qareg.strip(model)).evaluate(images, labels, verbose=0)
    assert history["val_loss"][0] == pytest.approx(stripped, rel=1e-5)
    assert history["loss"][0] > history["val_loss"][0] + 0.1


def test_a_layer_that_is_called_twice_pays_once():
    layer = QuantizationAware(layers.Dense(5), NearestSquared(4, strength=1.0))
    first, second = keras.Input((5,)), keras.Input((5,))
    model = keras.Model([first, second], [layer(first), layer(second)])
    model(inputs_of([(2, 5), (2, 5)]), training=True)
    assert float(sum(model.losses)) == pytest.approx(layer.penalties()[0], rel=1e-5)
    model(inputs_of([(2, 5), (2, 5)]), training=False)
    assert float(sum(model.losses)) == 0.0


def test_the_layers_own_regularizers_still_count():
    inner = layers.Dense(3, kernel_regularizer="l2", activity_regularizer="l1")
    plain = layers.Dense(3, kernel_regularizer="l2", activity_regularizer="l1")
    (inputs,) = inputs_of([(4, 5)])
    layer = QuantizationAware(inner, NearestSquared(4, strength=0.0))
    layer(inputs, training=True)
    plain(inputs, training=True)
    plain.set_weights(inner.get_weights())
    plain(inputs, training=True)
    layer(inputs, training=True)
    assert float(sum(layer.losses)) == pytest.approx(float(sum(plain.losses)), rel=1e-5)
    shared = SharedWeights(layers.Dense(3, activity_regularizer="l1"), levels=2)
    shared(inputs)
    shared.layer.bias.assign([1.0, 1.0, 1.0])
    shared(inputs)
    assert [float(loss) for loss in shared.losses] == pytest.approx([0.01 * 3], rel=1e-5)


def test_a_dynamic_regularizer_on_the_layer_itself_gives_way_to_the_wrapper():
    inner = layers.Dense(3, kernel_regularizer=NearestSquared(8))
    layer = QuantizationAware(inner, NearestSquared(4, strength=1.0))
    layer(np.ones((2, 5)), training=True)
    assert float(sum(layer.losses)) == pytest.approx(layer.penalties()[0], rel=1e-5)


def test_training_mode_passes_through_both_wrappers():
    images = inputs_of([(64, 5)])[0] + 3.0
    for layer in (
        QuantizationAware(Block(4), NearestSquared(4)),
        SharedWeights(Block(4), levels=4),
    ):
        layer.build((None, 5))
        block = layer.layer
        if isinstance(layer, SharedWeights):
            indices = RNG.integers(0, 4, (5, 4))
            layer.assign_codebooks([Codebook(np.linspace(-1, 1, 4), indices)])
        # In inference the same twice; in training dropout draws anew and statistics move.
        np.testing.assert_array_equal(predict(layer, images), predict(layer, images))
        first, second = (ops.convert_to_numpy(layer(images, training=True)) for _ in range(2))
        assert not np.array_equal(first, second)
        assert ops.convert_to_numpy(block.norm.moving_mean).mean() > 0.03


def test_frozen_layers_stay_and_pay_nothing():
    images, labels = digits(64)
    for frozen in ("wrapper", "inner"):
        model = qareg.quantization_aware(small_cnn(), NearestSquared(4, strength=1.0))
        for layer in wrappers(model)[:2]:
            (layer if frozen == "wrapper" else layer.layer).trainable = False
        before = snapshot(model.get_layer("conv").kernels)
        compiled(model).fit(images, labels, verbose=0)
        after = snapshot(model.get_layer("conv").kernels)
        np.testing.assert_array_equal(before, after)
        model(images, training=True)
        penalty = model.get_layer("out").penalties()[0]
        assert float(sum(model.losses)) == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    images, labels = digits(64)
    keras.config.set_dtype_policy(policy)
    try:
        model = qareg.quantization_aware(
            small_cnn(normalize=True), NearestExponential(4, strength=0.1)
        )
        wrapper = model.get_layer("fc")
        assert {keras.backend.standardize_dtype(v.dtype) for v in wrapper.weights} == {"float32"}
        history = compiled(model).fit(images, labels, epochs=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        shared = qareg.share_weights(model)
        compiled(shared).fit(images, labels, epochs=1, verbose=0)
        outputs = shared(images)
        assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
        np.testing.assert_allclose(predict(qareg.strip(shared), images), predict(shared, images))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("options", STEPS, ids=str)
def test_compiled_and_eager_steps_agree(options):
    forget_compiled()
    images, labels = digits(64)
    losses = []
    for chosen in (options, {"jit_compile": False}):
        model = qareg.quantization_aware(small_cnn(), NearestSquared(4, strength=1.0))
        compiled(model, **chosen)
        losses.append(model.fit(images, labels, epochs=2, shuffle=False, verbose=0).history["loss"])
        shared = compiled(qareg.share_weights(model), **chosen)
        losses[-1] += shared.fit(images, labels, epochs=2, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(*losses, rtol=2e-3)


def test_shared_kernels_keep_their_levels_while_tuning():
    images, labels = digits()
    shared = compiled(qareg.share_weights(small_cnn(), levels=3))
    before = snapshot(shared.variables)
    shared.fit(images, labels, epochs=3, verbose=0)
    for old, new in zip(before, shared.variables, strict=True):
        moved = not np.array_equal(old, ops.convert_to_numpy(new))
        assert moved == new.name.startswith(("centroids", "centroid_sizes")), new.path
    books = qareg.codebooks(shared)
    assert all(book.levels_used <= 3 for book in books.values())


def test_a_zero_centroid_stays_zero():
    images, labels = digits()
    shared = compiled(qareg.share_weights(small_cnn(), levels=4, zero_centroid=True))
    zeros = {path: (book.weights == 0).sum() for path, book in qareg.codebooks(shared).items()}
    assert all(zeros.values())
    shared.fit(images, labels, epochs=2, verbose=0)
    for path, book in qareg.codebooks(shared).items():
        assert (book.weights == 0).sum() == zeros[path]


def test_gradient_of_a_shared_layer_is_the_sum_over_the_members():
    (inputs,) = inputs_of([(4, 6)])
    layer = SharedWeights(layers.Dense(5, use_bias=False), levels=3)
    layer.build((None, 6))
    indices = RNG.integers(0, 3, (6, 5))
    layer.assign_codebooks([Codebook(np.array([-1.0, 0.5, 2.0]), indices)])
    kernel = layer.codebooks()[0].weights
    _, (by_kernel,) = gradients(lambda k: ops.sum(ops.square(ops.matmul(inputs, k))), kernel)

    def loss(centroids):
        values = [(v, v.value) for v in layer.variables if v is not layer.centroids[0]]
        with keras.StatelessScope([*values, (layer.centroids[0], centroids)]):
            return ops.sum(ops.square(layer(inputs)))

    _, (by_centroids,) = gradients(loss, np.array([-1.0, 0.5, 2.0], "float32"))
    expected = [by_kernel[indices == j].sum() for j in range(3)]
    np.testing.assert_allclose(by_centroids, expected, rtol=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's")
@pytest.mark.parametrize("normalize", [False, True])
def test_two_replicas_have_the_loss_of_one(normalize):
    import tensorflow as tf

    devices = two_devices()
    images, labels = digits(64)

    def train():
        model = qareg.quantization_aware(small_cnn(normalize), NearestSquared(4, strength=0.5))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=1, ramp_epochs=1)
        history = qareg.callbacks.CentroidHistory()
        trained = model.fit(
            images,
            labels,
            batch_size=64,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[schedule, history],
        )
        assert history.strengths["fc"] == [0.0, 0.5, 0.5]
        return trained.history["loss"]

    single = train()
    names = [device.name for device in devices[:2]]
    # Collectives of two strategies in one process would meet.
    reduction = tf.distribute.ReductionToOneDevice()
    with tf.distribute.MirroredStrategy(names, cross_device_ops=reduction).scope():
        double = train()
    # Batch normalization has its own statistics in each replica, so the losses are only close.
    np.testing.assert_allclose(double, single, rtol=0.1 if normalize else 1e-4)


def test_a_layer_without_kernels_is_refused():
    layer = QuantizationAware(layers.PReLU(), NearestSquared(4))
    with pytest.raises(ValueError) as error:
        layer.build((None, 3))
    assert "Expected a layer with kernels in QuantizationAware. Received: layer" in str(error.value)
    assert "of type PReLU with weights ['alpha']" in str(error.value)
    with pytest.raises(ValueError, match="Expected a regularizer for QuantizationAware"):
        QuantizationAware(layers.Dense(3), None)
    with pytest.raises(ValueError, match="Expected `levels` to be an integer from 2 to 256"):
        SharedWeights(layers.Dense(3), levels=1)


def test_codebooks_that_do_not_fit_are_refused():
    layer = SharedWeights(layers.Dense(3), levels=2)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="Expected codebooks of at most 2 centroids. Received: 3"):
        layer.assign_codebooks([Codebook(np.arange(3.0), np.zeros((4, 3), "uint8"))])


def test_files_of_shared_weights_have_no_float_kernels(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 16)),
            layers.Bidirectional(layers.LSTM(32, return_sequences=True)),
            layers.SeparableConv1D(64, 3),
            layers.Flatten(),
            layers.Dense(50),
        ]
    )
    shared, inputs = qareg.share_weights(model, levels=16), np.ones((2, 6, 16), "float32")
    model.save(tmp_path / "plain.keras")
    shared.save(tmp_path / "shared.keras")
    sizes = [(tmp_path / f"{name}.keras").stat().st_size for name in ("plain", "shared")]
    assert sizes[1] < 0.55 * sizes[0]  # indices take a quarter
    loaded = keras.saving.load_model(tmp_path / "shared.keras")
    for found in (loaded, qareg.strip(loaded)):
        np.testing.assert_array_equal(*arrays(found(inputs), shared(inputs)))
    assert all(row.relative_error is not None for row in qareg.report.summary(shared).rows)
    assert all(row.relative_error is None for row in qareg.report.summary(loaded).rows)
    loaded.save_weights(tmp_path / "shared.weights.h5")
    again = qareg.share_weights(model, levels=16)
    again.load_weights(tmp_path / "shared.weights.h5")
    np.testing.assert_array_equal(*arrays(again(inputs), shared(inputs)))
