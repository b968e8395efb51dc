"""Whole-model transforms on every kind of model."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import QuantizationAware, SharedWeights
from keras_qareg.models.selection import select, wrappers
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine
from tests.helpers import BACKEND, compiled, digits, predict, small_cnn, snapshot
from tests.kinds import MODELS, Subclassed, assert_same_outputs


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_goes_all_the_way(kind, tmp_path):
    make, inputs, names = MODELS[kind]
    model = make()
    before = snapshot(model.weights)

    wrapped = qareg.quantization_aware(model, NearestSquared(4))
    assert type(wrapped) is type(model) and wrapped.name == model.name
    assert sorted(layer.name for layer in wrappers(wrapped)) == sorted(names)
    assert_same_outputs(wrapped, model, inputs)

    def wrap_again():
        return qareg.quantization_aware(make(), NearestSquared(4))

    loaded = save_and_load(wrapped, tmp_path, wrap_again)
    assert_same_outputs(loaded, wrapped, inputs)
    for one, two in zip(wrapped.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, two)

    shared = qareg.share_weights(wrapped)
    assert {type(layer) for layer in wrappers(shared)} == {SharedWeights}
    books = qareg.codebooks(shared)
    assert len(books) == len(names) and all(book.levels_used <= 4 for book in books.values())
    assert sorted(path.split("/")[-2] for path in books) == sorted(names)
    loaded = save_and_load(shared, tmp_path, lambda: qareg.share_weights(wrap_again()))
    assert_same_outputs(loaded, shared, inputs)
    assert {variable.name for variable in loaded.trainable_variables} == {
        "centroids",
        "centroid_sizes",
    }

    plain = qareg.strip(shared)
    assert not wrappers(plain) and type(plain) is type(model)
    assert [w.path.split("/")[-2:] for w in plain.weights] == [
        w.path.split("/")[-2:] for w in model.weights
    ]
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    assert_same_outputs(plain, shared, inputs)
    for path, book in qareg.codebooks(plain).items():
        np.testing.assert_array_equal(book.weights, books[path].weights)
    assert_same_outputs(qareg.strip(wrapped), model, inputs)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)  # the model that was passed stays as it is


def save_and_load(model, folder, again):
    """The model from its file; where code says what it is made of, from code and its weights."""
    if any(isinstance(layer, Subclassed) for layer in [model, *model.layers]):
        model.save_weights(folder / "model.weights.h5")
        loaded = again()
        loaded.load_weights(folder / "model.weights.h5")
        return loaded
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_transformed_models_train(kind):
    make, inputs, _ = MODELS[kind]
    labels = np.arange(len(inputs)) % 3
    model = qareg.quantization_aware(make(), NearestExponential(4))
    compiled(model).fit(
        inputs, labels, epochs=3, verbose=0, callbacks=[qareg.callbacks.PenaltySchedule()]
    )
    shared = compiled(qareg.share_weights(model))
    assert {v.name for v in shared.trainable_variables} == {"centroids", "centroid_sizes"}
    shared.fit(inputs, labels, epochs=2, verbose=0)
    assert all(book.levels_used <= 4 for book in qareg.codebooks(shared).values())


def test_centroids_and_the_rest_can_be_tuned_together():
    images, labels = digits()
    model = small_cnn(normalize=True)
    model.get_layer("out").trainable = False
    shared = compiled(qareg.share_weights(model, levels=4, trainable="centroids+rest"))
    names = {v.path.split("/")[-1] for v in shared.trainable_variables}
    assert names == {"centroids", "centroid_sizes", "bias", "gamma", "beta"}
    moving, bias = snapshot(
        [shared.get_layer("norm").moving_mean, shared.get_layer("out").layer.bias]
    )
    shared.fit(images, labels, verbose=0)
    assert not np.array_equal(moving, shared.get_layer("norm").moving_mean)
    np.testing.assert_array_equal(bias, shared.get_layer("out").layer.bias)
    assert all(book.levels_used <= 4 for book in qareg.codebooks(shared).values())
    assert all(layer.trainable for layer in qareg.strip(shared).layers)


def test_selecting_layers():
    model = small_cnn()

    def wrapped(layers):
        return [
            x.name for x in wrappers(qareg.quantization_aware(model, NearestSquared(4), layers))
        ]

    assert wrapped("all") == ["conv", "fc", "out"]
    assert wrapped("conv") == ["conv"]
    assert wrapped("dense") == ["fc", "out"]
    assert wrapped(["out", "conv"]) == ["conv", "out"]
    assert wrapped(lambda layer: layer.name.startswith("f")) == ["fc"]
    aware = qareg.quantization_aware(model, NearestSquared(4), ["fc"])
    assert [layer.name for layer in select(aware, "dense")] == ["fc", "out"]
    shared = qareg.share_weights(aware, levels=4, layers="conv")
    assert [(layer.name, type(layer)) for layer in shared.layers if "flat" not in layer.name] == [
        ("conv", SharedWeights),
        ("fc", layers.Dense),
        ("out", layers.Dense),
    ]


def test_layers_inside_wrappers_of_keras_count_as_what_they_wrap():
    model = keras.Sequential(
        [
            keras.Input((4, 6)),
            layers.TimeDistributed(layers.Dense(5), name="each"),
            layers.Bidirectional(layers.LSTM(3), name="both"),
        ]
    )
    shared = qareg.share_weights(model, levels=4, layers="dense")
    assert [layer.name for layer in wrappers(shared)] == ["each"]
    assert len(qareg.codebooks(qareg.share_weights(model, levels=4))) == 5


def test_wrappers_written_by_hand_inside_other_layers_are_found():
    inner = QuantizationAware(layers.Dense(5, name="fc"), NearestSquared(4))
    model = keras.Sequential([keras.Input((4, 6)), layers.TimeDistributed(inner, name="each")])
    inputs = np.random.default_rng(0).normal(size=(2, 4, 6))
    assert [type(layer) for layer in wrappers(model)] == [QuantizationAware]
    shared = qareg.share_weights(model)
    assert [type(layer) for layer in wrappers(shared)] == [SharedWeights]
    plain = qareg.strip(shared)
    assert type(plain.layers[0].layer) is layers.Dense
    assert_same_outputs(plain, shared, inputs)


def test_a_dynamic_regularizer_on_a_layer_moves_into_a_wrapper():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(9, kernel_regularizer=NearestSquared(4, strength=0.5), name="learned"),
            layers.Dense(9, kernel_regularizer=Sine(4), name="fixed"),
            layers.Dense(9, kernel_regularizer="l2", name="other"),
        ]
    )
    with pytest.raises(ValueError) as error:
        _ = model.losses
    assert str(error.value) == (
        "NearestSquared learns its centroids, and a `kernel_regularizer` has nowhere to keep them. "
        "Wrap the layer, `keras_qareg.layers.QuantizationAware(layer, NearestSquared(...))`, or the "
        "whole model, `keras_qareg.quantization_aware(model)`, which moves the regularizer into a "
        "wrapper."
    )
    wrapped = qareg.quantization_aware(model)
    assert [layer.name for layer in wrappers(wrapped)] == ["learned", "fixed"]
    assert wrapped.get_layer("learned").regularizer.strength == 0.5
    assert wrapped.get_layer("learned").layer.kernel_regularizer is None
    assert wrapped.get_layer("other").kernel_regularizer is not None
    assert len(wrapped.losses) == 3
    assert qareg.strip(wrapped).get_layer("fixed").kernel_regularizer is None


def test_auto_takes_what_each_layer_has():
    weights = np.random.default_rng(0).normal(scale=0.3, size=(20, 10)).astype("float32")

    def shared_kernel(model, **kwargs):
        shared = qareg.share_weights(model, table="float32", **kwargs)
        return next(iter(qareg.codebooks(shared).values()))

    def dense(regularizer=None):
        model = keras.Sequential(
            [keras.Input((20,)), layers.Dense(10, kernel_regularizer=regularizer)]
        )
        model.layers[0].kernel.assign(weights)
        return model

    best = qareg.Codebook.nearest(weights, kmeans(weights, 4))
    found = shared_kernel(dense(), levels=4, method="kmeans").relative_error(weights)
    assert found == pytest.approx(best.relative_error(weights), rel=1e-6)
    # By default the errors of a channel do not add up.
    found = shared_kernel(dense(), levels=4)
    np.testing.assert_allclose(found.centroids, best.centroids, rtol=1e-6)
    assert found.relative_error(weights) < 1.1 * best.relative_error(weights)
    sums = [np.square((b.weights - weights).sum(axis=0)).sum() for b in (found, best)]
    assert sums[0] < 0.3 * sums[1]
    for kind in (Sine, Cosine):
        basins = kind(4).basins()
        np.testing.assert_array_equal(shared_kernel(dense(kind(4))).centroids, basins)
        aware = qareg.quantization_aware(dense(), kind(4))
        np.testing.assert_array_equal(shared_kernel(aware).centroids, aware.layers[0].centroids[0])
    aware = qareg.quantization_aware(dense(), NearestSquared(4))
    aware.layers[0].centroids[0].assign([0.5, -0.5, 0.1, -0.1])
    book = shared_kernel(aware, method="trained")
    nearest = qareg.Codebook.nearest(weights, [0.5, -0.5, 0.1, -0.1])
    np.testing.assert_array_equal(book.indices, nearest.indices)
    members = [weights[nearest.indices == j].mean() for j in range(4)]
    np.testing.assert_allclose(book.centroids, members, rtol=1e-5)
    # Asked for another number of levels, the trained ones do not help.
    assert shared_kernel(aware, levels=8).levels_used == 8
    uniform = shared_kernel(dense(), levels=4, method="uniform")
    np.testing.assert_allclose(np.diff(uniform.centroids), np.ptp(weights) / 3, rtol=1e-5)
    # A grid stays even where the layer has learned centroids too.
    uniform = shared_kernel(aware, levels=4, method="uniform")
    np.testing.assert_allclose(np.diff(uniform.centroids), np.ptp(weights) / 3, rtol=1e-5)
    for method in ("auto", "quantile", "uniform"):
        for model in (dense(), aware):
            assert (
                0.0 in shared_kernel(model, levels=4, method=method, zero_centroid=True).centroids
            )


def unregistered(x):
    return x * ops.sigmoid(x)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_functions_of_any_kind_are_copied():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(9, activation=lambda x: ops.relu(x) + 1),
            layers.Activation(unregistered),
            layers.Lambda(lambda x: 2 * x, output_shape=(9,), name="double"),
            layers.Dense(3),
        ]
    )
    wrapped = qareg.quantization_aware(model, NearestSquared(4))
    assert_same_outputs(wrapped, model, np.eye(8))
    shared = qareg.share_weights(wrapped)
    assert_same_outputs(qareg.strip(shared), shared, np.eye(8))


def test_adapted_normalization_is_kept():
    data = np.random.default_rng(0).normal(5.0, 3.0, (100, 8)).astype("float32")
    scaling = layers.Normalization()
    scaling.adapt(data)
    model = keras.Sequential([keras.Input((8,)), scaling, layers.Dense(9, name="fc")])
    shared = qareg.share_weights(model, levels=4)
    np.testing.assert_allclose(shared.layers[0](data), scaling(data), rtol=1e-6)
    assert_same_outputs(qareg.strip(shared), shared, data)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras looks strings up in TensorFlow alone")
def test_adapted_vocabularies_are_kept():
    words = layers.StringLookup()
    words.adapt(["one", "two", "three", "two"])
    inputs = keras.Input((2,), dtype="string")
    model = keras.Model(inputs, layers.Embedding(4, 8, name="table")(words(inputs)))
    data = ops.convert_to_tensor([["two", "one"], ["three", "none"]])
    np.testing.assert_array_equal(qareg.strip(model)(data), model(data))


def test_where_the_centroids_start():
    model = small_cnn()
    fixed = qareg.quantization_aware(model, Sine(4, weight_range=(-1.0, 2.0)))
    np.testing.assert_array_equal(fixed.get_layer("fc").centroids[0], [-1, 0, 1, 2])
    learned = qareg.quantization_aware(model, NearestSquared(4))
    found = kmeans(ops.convert_to_numpy(model.get_layer("fc").kernel), 4)
    np.testing.assert_array_equal(learned.get_layer("fc").centroids[0], found)


@keras.saving.register_keras_serializable("tests")
class WrittenWithWrappers(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fc = QuantizationAware(layers.Dense(6, name="fc"), NearestSquared(4))
        self.out = SharedWeights(layers.Dense(3, name="out"), levels=4)

    def call(self, inputs):
        return self.out(self.fc(inputs))


def test_subclassed_models_written_with_the_wrappers(tmp_path):
    model = compiled(WrittenWithWrappers())
    schedule = qareg.callbacks.PenaltySchedule(0, 1)
    if BACKEND == "tensorflow":  # JAX builds a model before its callbacks begin
        with pytest.raises(ValueError, match="Expected built QuantizationAware layers"):
            model.fit(np.eye(8), np.arange(8) % 3, verbose=0, callbacks=[schedule])
    model(np.eye(8))
    model.fit(np.eye(8), np.arange(8) % 3, verbose=0, callbacks=[schedule])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_outputs(loaded, model, np.eye(8))
    assert_same_outputs(qareg.strip(model), model, np.eye(8))


def test_a_layer_too_small_is_left_alone_with_a_warning():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, name="tiny"), layers.Dense(40, name="large")]
    )
    message = (
        "Layer 'tiny' is left as it is: its largest kernel has 8 weights, no more than levels=16."
    )
    with pytest.warns(UserWarning, match=message):
        wrapped = qareg.quantization_aware(model, NearestSquared(16))
    assert [layer.name for layer in wrappers(wrapped)] == ["large"]
    with pytest.warns(UserWarning, match=message):
        assert len(qareg.codebooks(qareg.share_weights(model, levels=16))) == 2  # tiny has 8 values


def test_compress_does_the_whole_job():
    images, labels = digits()
    model = compiled(small_cnn())
    model.fit(images, labels, epochs=15, verbose=0)
    untuned = qareg.compress(model, levels=4)
    tuned = qareg.compress(model, images, labels, levels=4, epochs=3, verbose=0)
    for small in (untuned, tuned):
        assert all(book.levels_used <= 4 for book in qareg.codebooks(small).values())
        compiled(small)
    assert tuned.evaluate(images, labels, verbose=0) < untuned.evaluate(images, labels, verbose=0)


@pytest.mark.one_backend
def test_a_stripped_model_loads_without_this_package(tmp_path):
    model = small_cnn(normalize=True)
    model.get_layer("fc").kernel_regularizer = Sine(4)
    shared = qareg.share_weights(qareg.quantization_aware(model, NearestSquared(4)))
    qareg.strip(shared).save(tmp_path / "plain.keras")
    images, _ = digits(4)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "outputs.npy", predict(shared, images))
    program = """
        import sys
        sys.modules["keras_qareg"] = None
        import keras, numpy as np
        model = keras.saving.load_model("plain.keras")
        outputs = model(np.load("images.npy"), training=False)
        assert np.array_equal(keras.ops.convert_to_numpy(outputs), np.load("outputs.npy"))
        print([layer.name for layer in model.layers])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['conv', 'norm', 'flatten', 'fc', 'out']", done.stderr


def test_learned_codebooks_of_a_quantization_aware_model():
    wrapped = qareg.quantization_aware(small_cnn(), NearestSquared(4))
    books = qareg.codebooks(wrapped)
    assert list(books) == ["cnn/conv/kernel", "cnn/fc/kernel", "cnn/out/kernel"]
    assert qareg.codebooks(small_cnn()).keys() == {"cnn/conv/kernel", "cnn/out/kernel"}


def test_kernels_of_one_path_are_told_apart():
    def branch(name):
        inputs = keras.Input((8,))
        return keras.Model(inputs, layers.Dense(16, name="fc")(inputs), name=name)

    a, b = keras.Input((8,)), keras.Input((8,))
    both = layers.Concatenate()([branch("left")(a), branch("right")(b)])
    model = keras.Model([a, b], layers.Dense(3, name="out")(both))
    paths = ["left/fc/kernel", "right/fc/kernel", "out/kernel"]
    shared = qareg.share_weights(model, levels=4, method="kmeans")
    for transformed in (shared, qareg.strip(shared)):
        books = qareg.codebooks(transformed)
        assert [*books] == paths
    kernels = [layer.kernels[0] for layer in wrappers(shared)]
    for book, kernel in zip(books.values(), kernels, strict=True):
        assert np.abs(book.weights - ops.convert_to_numpy(kernel)).max() < 0.2
    assert [row.path for row in qareg.report.summary(shared).rows] == paths
    history = qareg.callbacks.CentroidHistory()
    trained = compiled(qareg.quantization_aware(model, NearestSquared(4)))
    inputs = [np.ones((4, 8), "float32")] * 2
    schedule = qareg.callbacks.PenaltySchedule(0)
    trained.fit(inputs, np.zeros(4), verbose=0, callbacks=[schedule, history])
    assert [*history.centroids] == paths and [*history.strengths] == ["left/fc", "right/fc", "out"]
