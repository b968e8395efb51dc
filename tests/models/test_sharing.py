"""Weights shared on a grid: whole numbers times one step, before and after tuning."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.layers import SharedWeights
from keras_qareg.models import kernel_codebooks
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import grid_codes
from keras_qareg.numerics.rate_distortion import rate_for_bits
from tests.helpers import BACKEND, compiled, digits, error_of, predict, small_cnn


def assert_on_grid(books, levels):
    codes = grid_codes(levels).astype("float32")
    for path, book in books.items():
        steps = book.centroids[codes == 1][0]
        assert steps.shape == book.indices.shape[-1:]
        wanted = np.multiply.outer(codes, steps)
        np.testing.assert_array_equal(book.centroids, wanted, err_msg=path)


@pytest.mark.parametrize("levels", [2, 16])
def test_tuning_stays_on_the_grid(levels, tmp_path):
    images, labels = digits(128)
    shared = compiled(qareg.share_weights(small_cnn(), levels, table="even"))
    before = qareg.codebooks(shared)
    assert_on_grid(before, levels)
    losses = shared.fit(images, labels, epochs=4, verbose=0).history["loss"]
    after = qareg.codebooks(shared)
    assert_on_grid(after, levels)
    assert losses[-1] < losses[0]
    for path, book in after.items():
        np.testing.assert_array_equal(book.indices, before[path].indices)
        assert not np.array_equal(book.centroids, before[path].centroids)
    plain = qareg.strip(shared)
    for weight in qareg.layers.kernels(plain):
        np.testing.assert_array_equal(weight, after[weight.path].weights)
    np.testing.assert_allclose(predict(plain, images), predict(shared, images), atol=1e-5)
    shared.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(again, images), predict(shared, images))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT export needs TensorFlow")
def test_a_tuned_grid_becomes_small_integers(tmp_path):
    images, labels = digits(128)
    shared = compiled(qareg.share_weights(small_cnn(normalize=True), 4, table="even"))
    shared.fit(images, labels, epochs=2, verbose=0)
    for model in (shared, qareg.strip(shared)):
        report = qareg.export.litert(model, tmp_path / "model.tflite", "int2-exact")
        assert {kernel.form for kernel in report.kernels} == {"int2"}
        assert report.max_output_difference < 1e-5 * max(1.0, report.output_range)


def test_sine_trained_on_a_grid_is_shared_on_it():
    images, labels = digits(128)
    model = qareg.quantization_aware(small_cnn(), qareg.regularizers.Sine(4, table="even"))
    compiled(model).fit(
        images, labels, epochs=6, verbose=0, callbacks=[qareg.callbacks.PenaltySchedule()]
    )
    trained = np.array(model.get_layer("fc").centroids[0])
    shared = qareg.share_weights(model, table="even")
    assert_on_grid(qareg.codebooks(shared), 4)
    found = shared.get_layer("fc").codebooks()[0].centroids
    np.testing.assert_allclose(found.mean(axis=1), trained, rtol=0.35, atol=1e-6)


def test_bad_grids():
    assert error_of(qareg.share_weights, small_cnn(), 4, method="kmeans", table="even") == (
        "Expected method='auto' or 'uniform' with table='even', which makes centroids evenly spaced. "
        "Received: method='kmeans'"
    )
    layer = SharedWeights(layers.Dense(3), levels=4, table="even")
    layer.build((None, 4))
    book = Codebook([-0.5, -0.2, 0.0, 0.2], np.zeros((4, 3), "uint8"))
    assert "Expected centroids that are [-2, -1, 0, 1] times a step. Received: [-0.5" in error_of(
        layer.assign_codebooks, [book]
    )


def test_stripped_models_keep_grids_and_tables_of_channels():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(16, 3),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(32, 1),
            layers.Flatten(),
            layers.Dense(20),
        ]
    )
    for quantized in (
        qareg.share_weights(model, 16, table="even"),
        qareg.share_weights(model, 4, table="even"),
        qareg.wnq(model, 2, skip=()),
        qareg.wnq(model, 2, skip=(), uniform=True),
    ):
        before, after = qareg.codebooks(quantized), qareg.codebooks(qareg.strip(quantized))
        assert [*before] == [*after]
        for path, book in before.items():
            assert after[path].packed_bytes <= 1.25 * book.packed_bytes
            np.testing.assert_array_equal(after[path].weights, book.weights)


def test_zeros_of_pruned_kernels_and_dead_channels_stay():
    model = keras.Sequential([keras.Input((32,)), layers.Dense(20, name="fc")], name="net")
    kernel = np.random.default_rng(0).normal(size=(32, 20)).astype("float32")
    pruned, dead = kernel.copy(), kernel.copy()
    pruned[np.abs(pruned) < 0.5] = 0
    dead[:, 7] *= 1e-8
    for values, zeros in ((pruned, pruned == 0), (dead, np.arange(20)[None] == 7)):
        model.get_layer("fc").kernel.assign(values)
        for method, table in (
            *[(method, "float32") for method in ("kmeans", "quantile", "uniform")],
            ("auto", "even"),
        ):
            shared = qareg.share_weights(model, 6, method=method, table=table)
            shared.compile("sgd", "mse")
            shared.fit(np.ones((8, 32)), np.ones((8, 20)), verbose=0)
            (book,) = qareg.codebooks(shared).values()
            assert not book.weights[np.broadcast_to(zeros, kernel.shape)].any(), method
            assert shared.get_layer("fc").zero_centroid
    shared = qareg.share_weights(model, 6, zero_centroid=False)
    assert not shared.get_layer("fc").zero_centroid
    model.get_layer("fc").kernel.assign(kernel)
    assert not qareg.share_weights(model, 6).get_layer("fc").zero_centroid
    assert error_of(lambda: qareg.share_weights(model, 6, zero_centroid="yes")) == (
        "Expected `zero_centroid` to be True, False or 'auto'. Received: 'yes'"
    )


def test_constraints_are_kept_or_refused():
    def net(constraint):
        fc = layers.Dense(16, kernel_constraint=constraint, name="fc")
        model = keras.Sequential([keras.Input((32,)), fc, layers.Dense(2, name="out")], name="net")
        fc.kernel.assign(np.random.default_rng(0).uniform(0.0, 0.01, (32, 16)))
        return model

    shared = qareg.share_weights(net("non_neg"), 4)
    shared.compile(keras.optimizers.SGD(1.0), "mse")
    shared.fit(np.ones((8, 32)), -9 * np.ones((8, 2)), epochs=3, verbose=0)
    for model in (shared, qareg.strip(shared)):
        assert next(iter(qareg.codebooks(model).values())).weights.min() >= 0
    for name in ("max_norm", "unit_norm"):
        model = net(name)
        kind = type(model.get_layer("fc").kernel_constraint).__name__
        assert error_of(lambda model=model: qareg.share_weights(model, 4)) == (
            "Expected kernels whose constraint shared values can keep (NonNeg), or without one. "
            f"Received: '{model.get_layer('fc').kernel.path}' with {kind}. Leave the layer out "
            "(`layers`), or take the constraint off first: layer 'fc' can be made again without."
        )
        assert list(qareg.codebooks(qareg.share_weights(model, 4, ["out"])))


@pytest.mark.one_backend
@pytest.mark.parametrize("table, scale", [("int8", "auto"), ("float32", "kernel")])
def test_a_rate_makes_archives_smaller_at_equal_error(table, scale):
    model = small_cnn()
    model.get_layer("fc").kernel.assign(np.random.default_rng(0).standard_t(3, (54, 16)) * 0.05)
    kernels = {path: w for path, w, _ in kernel_codebooks(model)}
    given = {"method": "rate-distortion", "table": table, "scale": scale}
    by_means = qareg.codebooks(qareg.share_weights(model, 8, table=table, scale=scale))
    rates = {
        path: rate_for_bits(kernel, by_means[path].entropy) for path, kernel in kernels.items()
    }
    shared = qareg.share_weights(model, rate=rates, **given)
    books = qareg.codebooks(shared)
    for path, kernel in kernels.items():
        assert books[path].entropy < by_means[path].entropy + 0.02
        if path.startswith("fc"):
            error = books[path].relative_error(kernel)
            assert error < 0.9 * by_means[path].relative_error(kernel)
    one = qareg.codebooks(qareg.share_weights(model, rate=1e9, **given))
    assert all(book.entropy == 0 for book in one.values())
    some = qareg.share_weights(model, 3, rate=1e-5, **given)
    assert all(len(book.centroids) <= 3 for book in qareg.codebooks(some).values())


@pytest.mark.one_backend
def test_bad_rates():
    model = small_cnn()
    words = r"Expected `rate` with method='rate-distortion', and with no other\. Received: method="
    with pytest.raises(ValueError, match=words + r"'kmeans', rate=0\.1"):
        qareg.share_weights(model, 4, method="kmeans", rate=0.1)
    with pytest.raises(ValueError, match=words + "'rate-distortion', rate=None"):
        qareg.share_weights(model, method="rate-distortion")
    words = "Expected `rate` for each kernel that is shared. Received: none for layer 'conv'"
    with pytest.raises(ValueError, match=words):
        qareg.share_weights(model, method="rate-distortion", rate={"fc/kernel": 0.1})
    with pytest.raises(ValueError, match=r"Expected `rate` to be a number, 0 or more"):
        qareg.share_weights(model, method="rate-distortion", rate=-1.0)


@pytest.mark.one_backend
@pytest.mark.parametrize("table", ["int8", "float32"])
def test_few_values_stay_or_there_is_a_warning(table):
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((60,)), layers.Dense(10, name="d")])
    for values in ([0.3], [-0.3, 0.0, 0.7], [0.1, 0.2, 0.3, 0.7]):  # whole numbers times a step
        kernel = random.choice(np.array(values, "float32"), (60, 10))
        model.get_layer("d").kernel.assign(kernel)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            shared = qareg.share_weights(model, 16, table=table)
        (book,) = qareg.codebooks(shared).values()
        np.testing.assert_array_equal(book.weights, kernel)
    kernel = random.choice(random.normal(size=200).astype("float32"), (60, 10))
    model.get_layer("d").kernel.assign(kernel)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        shared = qareg.share_weights(model, 200, table=table)
    found = next(iter(qareg.codebooks(shared).values())).weights
    if table == "float32":
        assert not told
        np.testing.assert_array_equal(found, kernel)
        return
    moved = np.abs(found - kernel).max() / np.abs(kernel).max()
    path, before, after = (
        model.get_layer("d").kernel.path,
        len(np.unique(kernel)),
        len(np.unique(found)),
    )
    assert str(told[-1].message) == (
        "Kernels that had no more values than `levels` already are rounded by table='int8': to whole "
        f"numbers of 8 bits times a step, by up to {moved:.2%} of their largest value: "
        f"'{path}' ({before} values, {after} of them are left). "
        "table='float32' keeps them as they are."
    )


def pruned(share):
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(16, name="fc")])
    kernel = np.random.default_rng(0).normal(size=(32, 16))
    kernel[abs(kernel) < np.quantile(abs(kernel), share)] = 0
    model.layers[0].kernel.assign(kernel)
    return model


@pytest.mark.one_backend
@pytest.mark.parametrize("arguments", [{}, {"table": "even"}, {"group_size": 4}])
def test_zeros_that_two_levels_lose_are_said(arguments):
    with pytest.warns(UserWarning, match="Kernels have many zeros.*fc/kernel' \\(.* of 205\\)"):
        qareg.share_weights(pruned(0.4), 2, **arguments)
    with pytest.warns(UserWarning, match="They are lost under two levels, unless half of them are"):
        qareg.quantization_aware(pruned(0.4), "sine", levels=2)


@pytest.mark.one_backend
@pytest.mark.filterwarnings("error::UserWarning")
def test_who_says_that_zeros_may_go_is_not_warned():
    qareg.share_weights(pruned(0.4), 2, zero_centroid=False)
    shared = qareg.share_weights(pruned(0.4), 2, zero_centroid=True)
    (book,) = qareg.codebooks(shared).values()
    assert (book.weights == 0).mean() >= 0.4


@pytest.mark.one_backend
@pytest.mark.parametrize("scale", ["kernel", "channel"])
def test_a_zero_that_was_asked_for_is_in_the_table(scale):
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(32)])
    few = np.random.default_rng(0).choice([-0.2, -0.1, 0.1, 0.2], (16, 32))
    model.layers[0].kernel.assign(few)
    shared = qareg.share_weights(model, 5, zero_centroid=True, scale=scale)
    (book,) = qareg.codebooks(shared).values()
    assert (book.centroids == 0).any(axis=0).all()
