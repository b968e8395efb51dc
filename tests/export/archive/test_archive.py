"""Archives: what comes out is what went in, to the bit; what is damaged is refused."""

import io
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export import ArchiveError, load_archive, save_archive
from keras_qareg.export.archive import archive, configurations, manifest
from keras_qareg.export.archive.reading import describe, read_archive
from tests.helpers import (
    ROOT,
    arrays,
    digits,
    error_of,
    fewer_elsewhere,
    predict,
    small_cnn,
    snapshot,
)
from tests.kinds import MODELS, assert_same_outputs

RNG = np.random.default_rng(0)


def tied(transform):
    """Some ways to make a model small."""
    return {
        "shared": lambda model: qareg.share_weights(model, levels=4),
        "plain": lambda model: model,
        "regularized": lambda model: qareg.quantization_aware(model, "sine"),
        "wnq": lambda model: qareg.wnq(model, bits=1, skip=()),
    }[transform]


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
@pytest.mark.parametrize("transform", fewer_elsewhere(["shared", "plain", "regularized", "wnq"]))
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_comes_back(kind, transform, tmp_path):
    make, inputs, _ = MODELS[kind]
    model = tied(transform)(make())
    path = save_archive(model, tmp_path / "model.qareg")
    plain, loaded = qareg.strip(model), load_archive(path)
    assert type(loaded) is type(plain)
    assert_same_outputs(loaded, plain, inputs)
    for old, new in zip(snapshot(plain.weights), loaded.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in plain.layers]
    assert [file.name for file in tmp_path.iterdir()] == ["model.qareg"]
    assert b"keras_qareg" not in path.read_bytes()


def large():
    """A CNN of 285,000 weights."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(32, 3, strides=2, activation="relu")]
    stack += [layers.Conv2D(64, 3, strides=2, activation="relu"), layers.Flatten()]
    model = keras.Sequential([*stack, layers.Dense(114, activation="relu"), layers.Dense(10)])
    for layer in model.layers[:2] + model.layers[3:]:
        layer.bias.assign(0.1 * RNG.normal(size=layer.bias.shape))
    return model


@pytest.mark.parametrize("levels", [4, 16])
def test_an_archive_is_near_the_entropy_bound(levels, tmp_path):
    shared = qareg.share_weights(large(), levels=levels)
    size = save_archive(shared, tmp_path / "model.qareg").stat().st_size
    bound = qareg.report.summary(shared).entropy_bytes
    # The biases, which the bound has as float32, are about seven eighths.
    assert 0.99 * bound < size < 1.005 * bound + 300
    half = save_archive(shared, tmp_path / "half.qareg", float_dtype="float16").stat().st_size
    biases = 32 + 64 + 114 + 10
    assert size - half == pytest.approx(2 * biases, abs=140)
    loaded = load_archive(tmp_path / "half.qareg")
    np.testing.assert_allclose(loaded.layers[0].bias, shared.layers[0].layer.bias, atol=1e-3)
    kernel = qareg.strip(shared).layers[0].kernel
    np.testing.assert_array_equal(loaded.layers[0].kernel, kernel)


def test_a_kernel_of_one_value_and_one_that_is_not_shared(tmp_path):
    model = keras.Sequential([keras.Input((40,)), layers.Dense(50), layers.Dense(30)])
    model.layers[0].kernel.assign(np.full((40, 50), 0.25))
    path = save_archive(model, tmp_path / "model.qareg")
    with read_archive(path) as read:
        assert [tensor.kept for tensor in read.manifest.tensors] == ["*", "", "", ""]
    assert path.stat().st_size < 4 * 50 * 30
    for old, new in zip(model.weights, load_archive(path).weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_preprocessing_learned_comes_too(tmp_path):
    pytest.importorskip("tensorflow", reason="Keras looks strings up in TensorFlow alone")
    normalization, lookup = layers.Normalization(), layers.StringLookup()
    normalization.adapt(RNG.normal(3.0, 2.0, (50, 4)))
    lookup.adapt(["phone", "watch", "phone"])
    numbers, words = keras.Input((4,)), keras.Input((2,), dtype="string")
    hidden = layers.Embedding(9, 3)(lookup(words))
    model = keras.Model([numbers, words], [normalization(numbers), hidden])
    loaded = load_archive(save_archive(model, tmp_path / "model.qareg"))
    again = next(x for x in loaded.layers if isinstance(x, layers.StringLookup))
    assert again.get_vocabulary() == lookup.get_vocabulary() == ["[UNK]", "phone", "watch"]
    mean = next(x for x in loaded.layers if isinstance(x, layers.Normalization)).mean
    np.testing.assert_allclose(mean, normalization.mean)


def test_mixed_precision_and_integer_weights(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_cnn(normalize=True)
        loaded = load_archive(save_archive(model, tmp_path / "model.qareg"))
        assert_same_outputs_in_float(model, loaded)
    finally:
        keras.config.set_dtype_policy("float32")


def assert_same_outputs_in_float(model, other):
    images, _ = digits(8)
    outputs = (ops.cast(m(images, training=False), "float32") for m in (model, other))
    np.testing.assert_array_equal(*arrays(*outputs))


def test_lambdas_only_on_request(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: 2 * x), layers.Dense(3)])
    path = save_archive(model, tmp_path / "model.qareg")
    with pytest.raises(ArchiveError, match="Expected a model that can be made again"):
        load_archive(path)
    loaded = load_archive(path, safe_mode=False)
    assert_same_outputs(loaded, model, np.ones((1, 4)))


class Unregistered(layers.Dense):
    """A layer that Keras knows by no name."""


def test_custom_objects(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Unregistered(3)])
    path = save_archive(model, tmp_path / "model.qareg")
    loaded = load_archive(path, custom_objects={"Unregistered": Unregistered})
    assert_same_outputs(loaded, model, np.ones((1, 4)))


def test_a_table_of_what_is_inside(tmp_path):
    path = save_archive(qareg.share_weights(small_cnn(), levels=4), tmp_path / "model.qareg")
    rows = {words[0]: words[1:] for words in map(str.split, describe(path).splitlines())}
    assert rows["cnn/fc/kernel"][:3] == ["54x16", "even", "4"]
    assert rows["cnn/fc/bias"] == ["16", "raw", "1"]
    assert rows["raw"][:2] == ["tensors", "together"]
    assert rows["whole"] == ["file", f"{path.stat().st_size:,}"]
    assert rows["tensors"][-1] == f"{4 * small_cnn().count_params():,}"


@pytest.mark.parametrize("name", ["version_1", "version_1_float16"])
def test_files_of_version_1_still_load(name):
    file = ROOT / "tests" / "data" / f"{name}.qareg"
    wanted = np.load(ROOT / "tests" / "data" / "version_1.npz")
    with file.open("rb") as opened:
        loaded = load_archive(opened)
    for key, weight in zip(wanted.files, loaded.weights, strict=True):
        rounded = (
            wanted[key].astype("float16") if "16" in name and wanted[key].ndim == 1 else wanted[key]
        )
        np.testing.assert_array_equal(rounded, weight)
    assert "fc/kernel" in describe(file)


def folded_model():
    """Normalizations behind layers with a bias, behind an addition, and without a center."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(12, 3, name="conv")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(layers.ReLU()(x))
    x = layers.BatchNormalization(name="norm_1")(x)
    x = layers.BatchNormalization(center=False, name="norm_2")(layers.Add()([x, x]))
    x = layers.Dense(30, name="dense")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.BatchNormalization(name="norm_3", epsilon=0.01)(x))
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(RNG.uniform(0.5, 2.0, weight.shape))
    return model


@pytest.mark.parametrize("options", [{"scale": "channel"}, {"table": "float32"}])
def test_folded_files_compute_the_same(options, tmp_path):
    shared = qareg.share_weights(folded_model(), levels=4, **options)
    whole = save_archive(shared, tmp_path / "whole.qareg")
    file = save_archive(shared, tmp_path / "folded.qareg", fold=True)
    saved = 12 * 4 * 3 + 24 * 4 * 3 + 30 * 4 * 3
    assert file.stat().st_size < whole.stat().st_size - 0.6 * saved
    plain, loaded = qareg.strip(shared), load_archive(file)
    again = type(plain).from_config(plain.get_config())
    assert manifest.configuration_of(loaded) == manifest.configuration_of(again)
    images = RNG.normal(size=(16, 8, 8, 3)).astype("float32")
    one, other = predict(plain, images), predict(loaded, images)
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())
    assert np.unique(loaded.get_layer("norm_1").moving_mean).tolist() == [0.0]
    if "scale" in options:
        kernel = np.asarray(ops.convert_to_numpy(loaded.get_layer("conv").kernel))
        np.testing.assert_array_equal(kernel, np.rint(kernel))
    for kept in ("gamma", "moving_mean", "moving_variance"):
        mine, theirs = (getattr(m.get_layer("norm_2"), kept) for m in (plain, loaded))
        np.testing.assert_array_equal(*arrays(mine, theirs))
    said = qareg.export.verify(shared, file)
    wanted = (
        r"equal: all 21 tensors, bit for bit, with normalizations folded: outputs within .e-0[678]"
    )
    assert re.match(wanted, said)


def test_best_and_bfloat16(tmp_path):
    pytest.importorskip("numba")
    shared = qareg.share_weights(folded_model(), levels=8)
    options = {"effort": "best", "float_dtype": "bfloat16"}
    file = save_archive(shared, tmp_path / "best.qareg", **options)
    said = "equal: all 21 tensors, bit for bit, or to the precision of bfloat16"
    assert qareg.export.verify(shared, file) == said
    loaded, plain = load_archive(file), qareg.strip(shared)
    for mine, theirs in zip(plain.weights, loaded.weights, strict=True):
        mine, theirs = arrays(mine, theirs)
        np.testing.assert_allclose(mine, theirs, rtol=2**-8 if mine.ndim == 1 else 0)


class Stream(io.RawIOBase):
    """Bytes that can be read once, as from a network."""

    def __init__(self, content):
        self.content = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.content.readinto(buffer)


def test_one_tensor_or_all_from_an_open_file(tmp_path, capsys):
    model = qareg.share_weights(small_cnn(normalize=True), levels=4)
    content = save_archive(model, tmp_path / "model.qareg").read_bytes()
    loaded = load_archive(Stream(content), verbose=1)
    assert "10/10" in capsys.readouterr().out
    with read_archive(io.BytesIO(content)) as read:
        place = [tensor.path for tensor in read.manifest.tensors].index("cnn/out/kernel")
        kernel = read.tensor(place)
    for other in (loaded, qareg.strip(model)):
        np.testing.assert_array_equal(kernel, other.get_layer("out").kernel)


@pytest.mark.one_backend
def test_what_is_no_file_is_an_error_that_says_what_to_pass(tmp_path):
    expected = (
        "Expected the path of a file, or a file that was opened to read bytes (io.BytesIO of bytes). "
        "Received: "
    )
    assert error_of(load_archive, b"QRG") == f"{expected}an object of bytes"
    assert error_of(load_archive, tmp_path) == f"{expected}{tmp_path}, which is a folder"
    folder = "Expected the name of a file. Received: "
    assert error_of(save_archive, small_cnn(), tmp_path).startswith(folder)


@pytest.mark.parametrize("kind", MODELS)
def test_configurations_come_back(kind):
    make, _, _ = MODELS[kind]
    config = manifest.configuration_of(make())
    short = configurations.shorten(config)
    assert configurations.same(configurations.lengthen(short), config)
    assert configurations.shorten({"": 1, "layers": 3}) == {"": None, "=v": {"": 1, "layers": 3}}


def test_configurations_are_short():
    """A graph with a branch, and what is not a default."""
    config = manifest.configuration_of(folded_model())
    short = configurations.shorten(config)
    assert short["layers"][1:3] == [
        {"": "Conv2D", "name": "conv", "filters": 12, "kernel_size": [3, 3]},
        {"": "BatchNormalization", "name": "norm"},
    ]


def test_bad_targets(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Expected a folder that exists"):
        save_archive(small_cnn(), tmp_path / "none" / "model.qareg")
    with pytest.raises(ValueError, match="Expected `float_dtype` to be one of"):
        save_archive(small_cnn(), tmp_path / "model.qareg", float_dtype="int8")
    with pytest.raises(ValueError, match="Expected `effort` to be one of"):
        save_archive(small_cnn(), tmp_path / "model.qareg", effort="most")
    with pytest.raises(ValueError, match="Expected a built model"):
        save_archive(keras.Sequential([layers.Dense(3)]), tmp_path / "model.qareg")
    monkeypatch.setattr(archive, "assets_of", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_archive(small_cnn(), tmp_path / "model.qareg")
    assert not list(tmp_path.iterdir())


class _Doubled(layers.Conv2D):
    """A convolution that computes something else of what it holds."""

    def call(self, inputs):
        return ops.relu(super().call(inputs))


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "make", [lambda: _Doubled(4, 3), lambda: layers.Conv2D(4, 3, activation=layers.ReLU())]
)
def test_a_bias_is_not_folded_past_what_is_not_linear(make, tmp_path):
    normal = layers.BatchNormalization()
    model = keras.Sequential([keras.Input((6, 6, 2)), make(), normal])
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.uniform(0.5, 2.0, weight.shape) * random.choice([-1, 1], weight.shape))
    normal.moving_variance.assign([0.5, 1.0, 2.0, 4.0])
    path = qareg.export.save_archive(model, tmp_path / "m.qareg", fold=True)
    loaded = qareg.export.load_archive(path, custom_objects={"_Doubled": _Doubled})
    inputs = random.normal(size=(4, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(predict(loaded, inputs), predict(model, inputs), atol=1e-4)


@pytest.mark.one_backend
def test_numbers_that_float16_does_not_hold_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="fc")])
    model.get_layer("fc").bias.assign([7e4, 1.0])
    path = tmp_path / "m.qareg"
    assert error_of(qareg.export.save_archive, model, path, float_dtype="float16") == (
        "Expected tensors whose largest number float16 holds to its precision, from 6.1e-05 to "
        f"6.55e+04. Received: 7e+04 in '{model.get_layer('fc').bias.path}'. Take float_dtype='bfloat16'."
    )
    assert not path.exists()
    qareg.export.save_archive(model, path, float_dtype="bfloat16")
    model.get_layer("fc").bias.assign([1e-8, 1e-9])  # all of it would be 0
    assert "Received: 1e-08" in error_of(
        qareg.export.save_archive, model, path, float_dtype="float16"
    )
    model.get_layer("fc").bias.assign([3.4e38, 1.0])  # infinite
    assert "Take float_dtype='float32'" in error_of(
        qareg.export.save_archive, model, path, float_dtype="bfloat16"
    )


def fitted_model():
    """A normalization, and most of the weights in one kernel."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    stack = [keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.BatchNormalization()]
    model = keras.Sequential([*stack, layers.Flatten(), layers.Dense(6, name="fc")])
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(random.uniform(0.5, 2.0, weight.shape))
    return model


@pytest.mark.one_backend
@pytest.mark.parametrize("options", [{}, {"fold": True, "float_dtype": "float16"}])
def test_a_number_of_bytes_for_the_whole_file(options, tmp_path):
    model, path = fitted_model(), tmp_path / "m.qareg"
    whole = save_archive(model, path, **options).stat().st_size
    assert save_archive(model, path, target_bytes=whole, **options).stat().st_size == whole
    books = {}
    for most in (whole // 3, whole // 6):
        size = save_archive(model, path, target_bytes=most, **options).stat().st_size
        assert 0.8 * most < size <= most  # near one value a kernel, sizes fall in jumps
        loaded = load_archive(path)
        books[most] = qareg.codebooks(loaded)["fc/kernel"]
        if not options:
            for old, new in zip(model.weights, loaded.weights, strict=True):
                if old.ndim == 1:  # the others are what they were
                    np.testing.assert_array_equal(*arrays(old, new))
    kernel = model.get_layer("fc").kernel
    errors = [book.relative_error(kernel) for book in books.values()]
    assert "fold" in options or 1e-6 < errors[0] < errors[1] < 1
    message = error_of(save_archive, model, path, target_bytes=100, **options)
    least = int(re.search("of at least ([0-9,]+), which", message)[1].replace(",", ""))
    assert message == (
        f"Expected target_bytes of at least {least:,}, which the archive of model '{model.name}' takes "
        "with one value a kernel. Received: 100 bytes."
    )
    assert save_archive(model, path, target_bytes=least, **options).stat().st_size == least
    with pytest.raises(ValueError, match="Expected `target_bytes` to be"):
        save_archive(model, path, target_bytes=0)
