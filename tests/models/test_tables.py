"""What values shared kernels may have: tables and scales, from sharing through tuning to files."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import SharedWeights
from keras_qareg.models.selection import wrappers
from keras_qareg.models.surroundings import normalized_layers
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import grid_codes, integer_grid
from keras_qareg.numerics.tables import float_parts, int8_table
from tests.helpers import (
    compiled,
    digits,
    error_of,
    fewer_elsewhere,
    gradients,
    predict,
    small_cnn,
    snapshot,
)

RNG = np.random.default_rng(0)
NORMALIZED = {"conv", "depthwise"}


def net():
    """Layers with a normalization behind them and without; one whose channels are not last."""
    keras.utils.set_random_seed(0)
    stack = [
        keras.Input((8, 8, 1)),
        layers.Conv2D(8, 3, name="conv"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.BatchNormalization(),
        layers.Conv2DTranspose(6, 2, activation="relu", name="transposed"),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dense(10, name="fc"),
    ]
    return keras.Sequential(stack, name="net")


def check(books, levels, table, per_channel):
    """That all values are what a table may hold; `per_channel` says which layers have many steps."""
    for path, book in books.items():
        name = path.split("/")[-2]
        assert len(book.centroids) <= levels and len(np.unique(book.indices)) <= levels
        assert (book.centroids.ndim > 1) == (name in per_channel), path
        tables = book.centroids.reshape(len(book.centroids), -1)
        if table == "float32":
            assert float_parts(tables) is not None, path
            continue
        codes, steps = integer_grid(tables)
        np.testing.assert_array_equal(np.multiply.outer(codes, steps), tables)
        assert np.abs(codes.astype(int)).max() <= 127
        if table == "even":
            np.testing.assert_array_equal(codes, grid_codes(levels))


@pytest.mark.parametrize(
    ("table", "scale"),
    [
        ("int8", "auto"),
        *fewer_elsewhere((table, "channel") for table in ("even", "float32", "int8")),
        *fewer_elsewhere((table, "kernel") for table in ("int8", "float32", "even")),
    ],
)
def test_values_stay_what_the_table_allows(table, scale, tmp_path):
    images, labels = digits(64)
    levels, channel = 4, {"conv", "depthwise", "fc"}
    per_channel = {"kernel": set(), "channel": channel, "auto": NORMALIZED}[scale]
    shared = compiled(qareg.share_weights(net(), levels, table=table, scale=scale))
    before = qareg.codebooks(shared)
    check(before, levels, table, per_channel)
    shared.fit(images, labels, epochs=2, verbose=0)
    after = qareg.codebooks(shared)
    check(after, levels, table, per_channel)
    assert any(not np.array_equal(after[path].centroids, before[path].centroids) for path in after)
    plain = qareg.strip(shared)
    plain.save(tmp_path / "plain.keras")
    shared.save(tmp_path / "shared.keras")
    again = keras.saving.load_model(tmp_path / "shared.keras")
    np.testing.assert_array_equal(predict(again, images), predict(shared, images))
    archive = qareg.export.save_archive(shared, tmp_path / "model.qareg")
    for model in (
        plain,
        keras.saving.load_model(tmp_path / "plain.keras"),
        qareg.export.load_archive(archive),
    ):
        np.testing.assert_allclose(predict(model, images), predict(shared, images), atol=1e-4)
        kernels = qareg.layers.kernels(model)
        for weight, book in zip(kernels, after.values(), strict=True):
            np.testing.assert_array_equal(weight, book.weights)
        found = qareg.codebooks(model)
        for path, book in zip(found, after.values(), strict=True) if table != "float32" else ():
            assert len(found[path].centroids) <= levels
            assert found[path].packed_bytes <= book.packed_bytes


@pytest.mark.parametrize("table", ["int8", "even", "float32"])
@pytest.mark.parametrize("scale", ["kernel", "channel"])
def test_gradients_reach_centroids_and_sizes(table, scale):
    layer = SharedWeights(layers.Dense(5, use_bias=False), 3, table=table, scale=scale)
    layer.build((None, 6))
    indices = RNG.integers(0, 3, (6, 5))
    steps = RNG.uniform(0.5, 2.0, 5 if scale == "channel" else 1).astype("float32")
    tables = np.multiply.outer(np.array([-1, 0, 1], "float32"), steps)
    layer.assign_codebooks([Codebook(tables if scale == "channel" else tables[:, 0], indices)])
    inputs = RNG.normal(size=(4, 6)).astype("float32")

    def loss(*values):
        rest = [v.value for v in layer.non_trainable_variables]
        outputs, _ = layer.stateless_call(list(values), rest, inputs)
        return ops.sum(ops.square(outputs))

    names = [variable.name for variable in layer.trainable_variables]
    values = snapshot(layer.trainable_variables)
    _, found = gradients(loss, *values)
    kernel = layer.codebooks()[0].weights
    upstream = 2 * inputs.T @ (inputs @ kernel)  # by the kernel
    held = dict(zip(names, values, strict=True))
    sizes = held.get("centroid_sizes", held["centroids"] if table == "even" else np.ones(1))
    of_sizes = upstream * kernel / sizes
    of_sizes = of_sizes.sum(0) if scale == "channel" else of_sizes.sum()
    for name, grad in zip(names, found, strict=True):
        wanted = of_sizes
        if name == "centroids" and table != "even":
            wanted = [(upstream * sizes)[indices == j].sum() for j in range(3)]
        np.testing.assert_allclose(grad, np.reshape(wanted, grad.shape), rtol=1e-4, atol=1e-4)


def test_where_steps_cost_nothing():
    model = net()
    found = normalized_layers(model, model.layers)
    assert {layer.name for layer in found} == NORMALIZED  # not `transposed`, which is no such layer

    def last(make):
        inputs = keras.Input((8, 8, 2))
        model = keras.Model(inputs, make(layers.Conv2D(4, 3, name="conv"), inputs))
        return [layer.name for layer in normalized_layers(model, model.layers)]

    norm = layers.BatchNormalization
    assert last(lambda conv, x: norm()(conv(x))) == ["conv"]
    assert last(lambda conv, x: norm(axis=2)(conv(x))) == []
    assert last(lambda conv, x: layers.ReLU()(conv(x))) == []
    assert last(lambda conv, x: [norm()(y := conv(x)), y]) == []
    assert last(lambda conv, x: layers.Add()([norm()(y := conv(x)), y])) == []
    assert last(lambda conv, x: [norm()(conv(x)), norm()(conv(x))]) == []
    active = layers.Conv2D(4, 3, activation="relu")
    assert last(lambda conv, x: norm()(active(conv(x)))) == []
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3, name="a"), norm()])
    outer = keras.Sequential([keras.Input((6, 6, 4)), inner])
    layer = inner.get_layer("a")
    assert normalized_layers(outer, [layer]) == [layer]
    reads_it_too = keras.Model(inner.inputs, [outer(inner.inputs[0]), layer.output])
    assert normalized_layers(reads_it_too, [layer]) == []
    wrapped = qareg.quantization_aware(inner, qareg.regularizers.NearestSquared(4))
    assert normalized_layers(wrapped, wrapped.layers) == [wrapped.get_layer("a")]


@pytest.mark.one_backend
@pytest.mark.parametrize("table", ["even", "float32"])
def test_auto_scales_of_other_tables(table):
    books = qareg.codebooks(qareg.share_weights(net(), 4, table=table))
    check(books, 4, table, {"conv", "depthwise", "fc"} if table == "even" else set())


@pytest.mark.one_backend
def test_a_step_a_channel_is_closer():
    model = keras.Sequential([keras.Input((50,)), layers.Dense(20, name="fc")])
    scales = RNG.lognormal(size=20)
    model.layers[0].kernel.assign(RNG.normal(size=(50, 20)) * scales)
    errors = {
        (table, scale): qareg.report.summary(
            qareg.share_weights(model, 4, table=table, scale=scale)
        )
        .rows[0]
        .relative_error
        for table in ("int8", "even", "float32")
        for scale in ("kernel", "channel")
    }
    for table in ("int8", "even", "float32"):
        assert errors[table, "channel"] < 0.9 * errors[table, "kernel"]
    for scale in ("kernel", "channel"):
        assert errors["int8", scale] < 1.01 * errors["float32", scale]


@pytest.mark.parametrize("table", ["int8", "float32"])
@pytest.mark.parametrize("scale", ["kernel", "channel"])
def test_zeros_and_signs_stay(table, scale):
    model = keras.Sequential([keras.Input((32,)), layers.Dense(20, name="fc")])
    kernel = RNG.normal(size=(32, 20)).astype("float32")
    kernel[:, 7] *= 1e-8
    kernel[np.abs(kernel) < 0.3] = 0
    few = np.abs(np.rint(kernel)).clip(0, 2) / 4  # codes that turned around take fewer bits
    cases = [(kernel, None), (np.abs(kernel), "non_neg"), (few, "non_neg")]
    for values, constraint in cases:
        fc = layers.Dense(20, kernel_constraint=constraint, name="fc")
        model = keras.Sequential([keras.Input((32,)), fc])
        fc.kernel.assign(values)
        shared = qareg.share_weights(model, 6, table=table, scale=scale)
        assert shared.get_layer("fc").zero_centroid
        shared.compile(keras.optimizers.SGD(0.3), "mse")
        shared.fit(np.ones((8, 32)), -9 * np.ones((8, 20)), epochs=3, verbose=0)
        (book,) = qareg.codebooks(shared).values()
        assert not book.weights[values == 0].any() and not book.weights[:, 7].any()
        if constraint:
            assert book.weights.min() >= 0


def test_few_values_stay_to_the_bit():
    def shared(kernel, **settings):
        model = keras.Sequential([keras.Input((len(kernel),)), layers.Dense(kernel.shape[1])])
        model.layers[0].kernel.assign(kernel)
        return next(iter(qareg.codebooks(qareg.share_weights(model, 4, **settings)).values()))

    codes = RNG.choice([-97, -12, 5, 88], (40, 6)).astype("float32")
    steps = RNG.lognormal(size=6).astype("float32")
    for kernel, scales in (
        (codes * np.float32(0.0123), ("kernel", "channel")),
        (codes * steps, ["channel"]),
    ):
        for scale in scales:
            np.testing.assert_array_equal(shared(kernel, scale=scale).weights, kernel)
    others = RNG.choice([-0.71, -0.1234567, 0.0456789, 0.9], (40, 6)).astype("float32")
    for scale in ("kernel", "channel"):
        kept = shared(others, table="float32", scale=scale).weights
        np.testing.assert_array_equal(kept, others)
        rounded = shared(others, scale=scale).weights
        assert 0 < np.abs(rounded - others).max() < 0.5 * 0.9 / 120


def test_the_largest_centroid_can_grow():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, use_bias=False, name="fc")])
    model.layers[0].kernel.assign(RNG.choice([-1.0, 0.5, 1.27], (4, 8)))
    shared = qareg.share_weights(model, 3)
    before = float(qareg.codebooks(shared).popitem()[1].centroids.max())
    shared.compile(keras.optimizers.Adam(0.01), "mse")
    inputs = np.eye(4, dtype="float32")
    target = 3.0 * np.array(model.layers[0].kernel)
    shared.fit(inputs, target, epochs=40, verbose=0)
    book = qareg.codebooks(shared).popitem()[1]
    assert book.centroids.max() > 1.3 * before
    codes, _ = int8_table(book.centroids)
    assert np.abs(codes.astype(int)).max() <= 127


@pytest.mark.parametrize("table", ["int8", "even"])
@pytest.mark.parametrize("name", ["Sine", "NearestSquared"])
def test_sharing_after_training_loses_nothing(table, name):
    images, labels = digits(128)
    regularizer = getattr(qareg.regularizers, name)(4)
    model = qareg.quantization_aware(small_cnn(normalize=True), regularizer, table=table)
    schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=1)
    compiled(model).fit(images, labels, epochs=3, verbose=0, callbacks=[schedule])
    for path, book in qareg.codebooks(model).items():
        codes, step = int8_table(book.centroids)
        np.testing.assert_array_equal(codes.astype("float32") * step, book.centroids, path)
    shared = qareg.share_weights(model, table=table)
    np.testing.assert_allclose(predict(shared, images), predict(model, images), atol=1e-6)
    for path, book in qareg.codebooks(shared).items():
        np.testing.assert_array_equal(book.weights, qareg.codebooks(model)[path].weights)
    again = type(model).from_config(model.get_config())
    assert {layer.table for layer in wrappers(again)} == {table}


def test_compress_and_regularizers_take_tables():
    for table in ("int8", "even", "float32"):
        small = qareg.compress(small_cnn(), levels=4, table=table, scale="kernel")
        grids = {book.grid is not None for book in qareg.codebooks(small).values()}
        assert grids == {table != "float32"}
        assert qareg.regularizers.Cosine(4, table=table).table == table
    basins = qareg.regularizers.Sine(16, weight_range=(-0.3, 0.52), table="int8").basins()
    codes, step = int8_table(basins)
    np.testing.assert_array_equal(codes.astype("float32") * step, basins)
    assert len(set(np.diff(codes))) == 1


@pytest.mark.one_backend
def test_bad_tables():
    one_of = "Expected `{}` to be one of {}. Received: {}='fp8'"
    tables, scales = ("int8", "even", "float32"), ("auto", "kernel", "channel")
    for make in (
        lambda **given: qareg.share_weights(small_cnn(), 4, **given),
        lambda **given: qareg.compress(small_cnn(), levels=4, **given),
        lambda **given: SharedWeights(layers.Dense(3), 4, **given),
        lambda **given: qareg.regularizers.Sine(4, **given),
        lambda **given: qareg.quantization_aware(small_cnn(), "sine", **given),
    ):
        assert error_of(make, table="fp8") == one_of.format("table", tables, "table")
    assert error_of(qareg.share_weights, small_cnn(), 4, scale="fp8") == one_of.format(
        "scale", scales, "scale"
    )
    layer = SharedWeights(layers.Dense(3), 4, table="int8")
    layer.build((None, 4))
    indices = np.zeros((4, 3), "uint8")
    message = error_of(layer.assign_codebooks, [Codebook([-0.5, -0.1234, 0.077], indices)])
    assert message.startswith(
        "Expected centroids that are whole numbers from -127 to 127 times a step. Received: [-0.5, "
    )
    tables = RNG.normal(size=(3, 3))
    assert error_of(layer.assign_codebooks, [Codebook(tables, indices)]) == (
        "Expected centroids of shape (levels,), or (levels, *(1,)). Received: shape=(3, 3)"
    )
    layer = SharedWeights(layers.Dense(3), 4, scale="channel")
    layer.build((None, 4))
    message = error_of(layer.assign_codebooks, [Codebook(tables, indices)])
    assert message.startswith(
        "Expected centroids that are the same in each channel but for a factor."
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("table", ["int8", "even", "float32"])
def test_kernels_of_any_size(table, factor):
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(24)])
    kernel = factor * RNG.normal(size=(40, 24)).astype("float32")
    model.layers[0].kernel.assign(kernel)
    for scale in ("kernel", "channel"):
        shared = qareg.share_weights(model, 16, table=table, scale=scale)
        (book,) = qareg.codebooks(shared).values()
        apart = (book.weights.astype("float64") - kernel) / factor
        assert np.sqrt(np.mean(np.square(apart))) < 0.2


@pytest.mark.one_backend
def test_kernels_of_half_precision_are_refused():
    model = keras.Sequential(
        [keras.Input((40,)), keras.layers.Dense(24, dtype="float16", name="d")]
    )
    assert error_of(lambda: qareg.share_weights(model, 4)) == (
        f"Expected kernels of float32. Received: '{model.name}/d/kernel' of float16, which would round "
        "shared values to others. Make the model anew with the dtype policy 'mixed_float16' or "
        "'float32', and load its weights into it."
    )
