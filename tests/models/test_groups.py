"""Grouped codebooks: a table for so many output channels, from sharing through tuning to files."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import integer_grids
from keras_qareg.numerics.groups import group_size, groups_of
from tests.helpers import compiled, digits, error_of, predict, small_cnn, tensorflow_only

RNG = np.random.default_rng(0)
SIZE = 8


def net():
    """Channels that groups do not divide; depthwise ones; some that are not last."""
    keras.utils.set_random_seed(0)
    stack = [
        keras.Input((8, 8, 1)),
        layers.Conv2D(20, 3, name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
        layers.Conv2DTranspose(4, 2, name="transposed"),
        layers.Flatten(),
        layers.Dense(10, name="fc"),
    ]
    model = keras.Sequential(stack, name="net")
    model.get_layer("norm").moving_variance.assign(RNG.uniform(0.5, 2.0, 20))
    return model


def by_layer(model):
    return {path.split("/")[-2]: book for path, book in qareg.codebooks(model).items()}


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("method", "table", "scale"),
    [
        ("auto", "int8", "kernel"),
        ("auto", "int8", "channel"),
        ("kmeans", "float32", "channel"),
        ("auto", "even", "auto"),
        ("quantile", "int8", "kernel"),
        ("rate-distortion", "int8", "kernel"),
    ],
)
def test_each_group_is_clustered_by_itself(method, table, scale):
    model, settings = net(), {"method": method, "table": table, "scale": scale}
    settings |= {"rate": 1e-4} if method == "rate-distortion" else {}
    found = by_layer(qareg.share_weights(model, 4, group_size=SIZE, **settings))
    for name in ("conv", "depthwise", "fc"):
        kernel = np.asarray(qareg.layers.kernels(model.get_layer(name))[0])
        channels = 2 * 20 if name == "depthwise" else kernel.shape[-1]
        columns = kernel.reshape(-1, channels)
        for start in range(0, channels, SIZE):
            part = columns[:, start : start + SIZE]
            alone = keras.Sequential([keras.Input((len(part),)), layers.Dense(part.shape[1])])
            alone.layers[0].kernel.assign(part)
            # One step for "auto" of an even table, which in a kernel of its own is one a channel.
            own = {**settings, "scale": "kernel"} if table == "even" else settings
            expected = next(iter(qareg.codebooks(qareg.share_weights(alone, 4, **own)).values()))
            got = found[name].weights.reshape(-1, channels)[:, start : start + SIZE]
            np.testing.assert_allclose(got, expected.weights, rtol=1e-6, atol=1e-9)
    assert found["transposed"].centroids.ndim == 1


@pytest.mark.parametrize(
    ("table", "scale", "trainable"),
    [
        ("int8", "kernel", "centroids"),
        ("int8", "channel", "centroids+rest"),
        ("even", "auto", "centroids"),
        ("float32", "kernel", "assignments"),
    ],
)
def test_groups_stay_in_tuning_and_in_files(table, scale, trainable, tmp_path):
    images, labels = digits(64)
    settings = {"table": table, "scale": scale, "trainable": trainable, "group_size": SIZE}
    shared = compiled(qareg.share_weights(net(), 4, **settings))
    before = by_layer(shared)
    said = "4 a channel" if scale == "channel" else f"4 a group of {SIZE}"
    assert said in str(qareg.report.summary(shared))
    shared.fit(images, labels, epochs=2, verbose=0)
    after = by_layer(shared)
    for name, book in after.items():
        assert not np.array_equal(book.centroids, before[name].centroids), name
        if scale != "channel":
            assert group_size(book.tables) in (SIZE, 1)  # 1: one table
        if table != "float32":
            codes, _ = integer_grids(book.tables)
            assert group_size(codes) % SIZE == 0 or codes.shape[1] == 1, name
    shared.save(tmp_path / "shared.keras")
    again = keras.saving.load_model(tmp_path / "shared.keras")
    assert again.get_layer("conv").group_size == SIZE
    np.testing.assert_array_equal(predict(again, images), predict(shared, images))
    archive = qareg.export.save_archive(shared, tmp_path / "model.qareg")
    plain = qareg.strip(shared)
    assert qareg.export.verify(plain, archive).startswith("equal: all")
    for path, book in qareg.codebooks(qareg.export.load_archive(archive)).items():
        own = after[path.split("/")[-2]]
        np.testing.assert_array_equal(book.weights, own.weights)
        if scale != "channel":  # groups are found again, where they have a step each
            assert book.packed_bytes <= 1.35 * own.packed_bytes, path


@tensorflow_only
@pytest.mark.parametrize("form", ["codebook", "auto", "tflm", "int8"])
def test_files_hold_groups(form, tmp_path):
    model, images = net(), digits(32)[0]
    given = images if form == "int8" else None
    sizes = {}
    for size in (None, SIZE) if form == "codebook" else (SIZE,):
        shared = qareg.share_weights(model, 4, group_size=size, scale="kernel")
        report = qareg.export.litert(shared, tmp_path / "model.tflite", form, given)
        held = {kernel.form.split("-")[0] for kernel in report.kernels}
        wanted = {"codebook": {"codebook"}, "auto": {"int8", "float32"}, "tflm": {"tflm"}}
        assert held <= wanted.get(form, {"int8", "codebook"}) | {"float32"}
        assert form != "int8" or all(kernel.reason == "" for kernel in report.kernels)
        one = qareg.strip(shared) if form == "codebook" else shared
        assert "rewritten kernels" in qareg.export.verify(one, tmp_path / "model.tflite")
        sizes[size] = report.bytes
    books = by_layer(shared)
    tables = sum(4 * book.tables[:, ::SIZE].size for book in books.values())
    # A table a group in a codebook; a table a channel in `tflm`, which takes more.
    assert form != "codebook" or sizes[SIZE] - sizes[None] < tables + 600


@tensorflow_only
@pytest.mark.parametrize("form", ["codebook", "archive"])
def test_plans_have_the_bytes_of_the_file(form, tmp_path):
    images = digits(64)[0].reshape(-1, 64)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(20), layers.Dense(10)])
    options = {"weights": form, "group_size": SIZE, "data": images, "verbose": 0}
    if form == "archive":
        plan = qareg.allocate(model, target_ratio=0.3, method="kmeans", **options)
    else:
        plan = qareg.allocate(model, target_ratio=0.7, **options)
    assert qareg.plans.Plan.load(plan.save(tmp_path / "plan.yaml")).group_size == SIZE
    shared = qareg.share_weights(model, plan, group_size=plan.group_size)
    if form == "archive":
        archive = qareg.export.save_archive(shared, tmp_path / "model.qareg")
        assert archive.stat().st_size == plan.bytes
    else:
        report = qareg.export.litert(shared, tmp_path / "model.tflite", form)
        assert report.bytes == pytest.approx(plan.bytes, abs=64)  # names, alignment


@pytest.mark.one_backend
def test_groups_of_a_plain_kernel_are_found():
    for channels, size in ((10, 4), (12, 3), (64, 8)):
        tables = np.sort(RNG.normal(size=(5, -(-channels // size))).astype("float32"), axis=0)
        indices = RNG.integers(0, 5, (90, channels))
        columns = np.repeat(tables, size, axis=1)[:, :channels]
        weights = np.take_along_axis(columns, indices, axis=0)
        found = groups_of(weights)
        assert found.size == size
        np.testing.assert_array_equal(found.tables, tables)
        np.testing.assert_array_equal(found.indices, indices)
    book = Codebook.exact(weights, 1)
    assert book.table_bytes == tables.nbytes and "8 groups of 8 channels" in repr(book)
    assert groups_of(RNG.normal(size=(90, 64))) is None


def test_what_groups_are_not_for():
    model, images = small_cnn(), digits(32)[0]
    aware = qareg.quantization_aware(model, qareg.regularizers.NearestSquared(4))
    cases = {
        "Expected `group_size` to be a positive integer. Received: group_size=0": lambda: (
            qareg.share_weights(model, 4, group_size=0)
        ),
        "Expected scale='auto' or 'kernel' with table='even' and `group_size`, which then says how "
        "many channels have one step. Received: scale='channel' for layer 'conv'": (
            lambda: qareg.share_weights(model, 4, table="even", scale="channel", group_size=2)
        ),
        "Expected `group_size` for layers without trained or fixed centroids, which are those of "
        "whole kernels. Received: group_size=2 for layer 'conv'. method='kmeans' looks at the "
        "weights alone.": lambda: qareg.share_weights(aware, group_size=2),
        "Expected method='kmeans' with `group_size`: others train one table a kernel. Received: "
        "method='auto'": lambda: qareg.compress(model, images, levels=4, group_size=2),
    }
    for message, call in cases.items():
        assert error_of(call) == message
    layer = qareg.layers.SharedWeights(layers.Dense(4), 2, group_size=2)
    layer.build((None, 3))
    other = Codebook(RNG.normal(size=(2, 4)), np.zeros((3, 4), "uint8"))
    assert error_of(lambda: layer.assign_codebooks([other])) == (
        "Expected centroids that are the same in each channel but for a factor, the same in 2 channels "
        f"each. Received: {other.centroids.tolist()}"
    )
    settings = {"conv": 2, "*": None}
    found = by_layer(qareg.share_weights(model, 4, group_size=settings, scale="kernel"))
    assert found["conv"].group_size == 2 and found["fc"].centroids.ndim == 1
    table = str(qareg.config.explain(model, {"group_size": settings}))
    assert "all" in table and "name 'conv'" in table


@pytest.mark.parametrize("size", [None, 4, 1])
def test_zeros_of_a_pruned_kernel_stay_in_each_group(size):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(16)])
    kernel = RNG.normal(size=(64, 16)) * np.exp(RNG.normal(size=16))  # channels of other sizes
    kernel[abs(kernel) < np.quantile(abs(kernel), 0.2)] = 0
    model.layers[0].kernel.assign(kernel)
    (book,) = qareg.codebooks(qareg.share_weights(model, 8, group_size=size)).values()
    assert not book.weights[kernel == 0].any()
