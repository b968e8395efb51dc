"""Archives: what comes out is what went in, to the bit; what is damaged is refused."""

import json
import struct
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export import ArchiveError, load_archive, save_archive
from keras_qareg.export.archive import archive, container
from keras_qareg.export.archive.coding import decode_indices, encode_indices
from tests.helpers import digits, small_cnn, snapshot
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
@pytest.mark.parametrize("transform", ["shared", "plain", "regularized", "wnq"])
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


@pytest.mark.one_backend
@pytest.mark.parametrize("levels", [2, 3, 16, 256])
@pytest.mark.parametrize("size", [10_000, 300_000])
def test_indices_are_coded_at_their_entropy(levels, size):
    frequencies = RNG.dirichlet(np.ones(levels))
    indices = RNG.choice(levels, size, p=frequencies).astype("uint8")
    coding, coded = encode_indices(indices, levels)
    counts = np.bincount(indices, minlength=levels) / size
    entropy = -(counts[counts > 0] * np.log2(counts[counts > 0])).sum()
    assert len(coded) <= 1.005 * size * entropy / 8 + (2 if size < 2**16 else 4) * levels + 1
    np.testing.assert_array_equal(decode_indices(coding, coded, levels, size), indices)


@pytest.mark.one_backend
@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 256).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1))))
)
def test_any_indices_come_back(case):
    levels, listed = case
    indices = np.array(listed, "uint8")
    coding, coded = encode_indices(indices, levels)
    assert len(coded) <= np.ceil(len(listed) * max(0, levels - 1).bit_length() / 8)
    decoded = decode_indices(coding, coded, levels, len(listed))
    np.testing.assert_array_equal(decoded, indices)


def large():
    """A CNN of 285,000 weights."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(32, 3, strides=2, activation="relu")]
    stack += [layers.Conv2D(64, 3, strides=2, activation="relu"), layers.Flatten()]
    return keras.Sequential([*stack, layers.Dense(114, activation="relu"), layers.Dense(10)])


@pytest.mark.parametrize("levels", [4, 16])
def test_an_archive_is_near_the_entropy_bound(levels, tmp_path):
    shared = qareg.share_weights(large(), levels=levels)
    size = save_archive(shared, tmp_path / "model.qareg").stat().st_size
    bound = qareg.report.summary(shared).entropy_bytes
    assert bound < size < 1.005 * bound + 2500
    half = save_archive(shared, tmp_path / "half.qareg", float_dtype="float16").stat().st_size
    biases = 32 + 64 + 114 + 10
    assert size - half == pytest.approx(2 * biases, abs=60)
    loaded = load_archive(tmp_path / "half.qareg")
    np.testing.assert_allclose(loaded.layers[0].bias, shared.layers[0].layer.bias, atol=1e-3)
    kernel = qareg.strip(shared).layers[0].kernel
    np.testing.assert_array_equal(loaded.layers[0].kernel, kernel)


def test_a_kernel_of_one_value_and_one_that_is_not_shared(tmp_path):
    model = keras.Sequential([keras.Input((40,)), layers.Dense(50), layers.Dense(30)])
    model.layers[0].kernel.assign(np.full((40, 50), 0.25))
    path = save_archive(model, tmp_path / "model.qareg")
    entries = archive.read_archive(path).manifest["tensors"]
    assert [entry["coding"] for entry in entries] == ["packed", "raw", "raw", "raw"]
    assert path.stat().st_size < 4 * (50 + 50 * 30 + 30) + 1000
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
    one, two = (ops.cast(m(images, training=False), "float32") for m in (model, other))
    np.testing.assert_array_equal(one, two)


def test_lambdas_only_on_request(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: 2 * x), layers.Dense(3)])
    path = save_archive(model, tmp_path / "model.qareg")
    with pytest.raises(ArchiveError, match="Expected a model that can be made again"):
        load_archive(path)
    loaded = load_archive(path, safe_mode=False)
    np.testing.assert_array_equal(loaded(np.ones((1, 4))), model(np.ones((1, 4))))


class Unregistered(layers.Dense):
    """A layer that Keras knows by no name."""


def test_custom_objects(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Unregistered(3)])
    path = save_archive(model, tmp_path / "model.qareg")
    loaded = load_archive(path, custom_objects={"Unregistered": Unregistered})
    np.testing.assert_array_equal(loaded(np.ones((1, 4))), model(np.ones((1, 4))))


def test_a_table_of_what_is_inside(tmp_path):
    path = save_archive(qareg.share_weights(small_cnn(), levels=4), tmp_path / "model.qareg")
    lines = archive.describe(path).splitlines()
    rows = {words[0]: words[1:] for words in map(str.split, lines)}
    assert rows["cnn/fc/kernel"][:3] == ["54x16", "packed", "4"]
    assert rows["cnn/fc/bias"] == ["16", "raw", "1", "64"]
    assert rows["whole"] == ["file", f"{path.stat().st_size:,}"]
    assert rows["tensors"][-1] == f"{4 * small_cnn().count_params():,}"


# Damage.


@pytest.fixture
def whole(tmp_path):
    model = qareg.share_weights(small_cnn(), levels=4)
    return save_archive(model, tmp_path / "model.qareg").read_bytes()


def error_of(content, tmp_path):
    path = tmp_path / "bad.qareg"
    path.write_bytes(content)
    with pytest.raises(ArchiveError) as error:
        load_archive(path)
    assert str(path) in str(error.value) and str(error.value).startswith("Expected")
    return str(error.value)


def rewritten(whole, change):
    """The file with a changed manifest that has sound lengths and digests."""
    stored, _ = struct.unpack_from("<II", whole, 12)
    manifest = json.loads(zlib.decompress(whole[36 : 36 + stored]))
    change(manifest)
    raw = json.dumps(manifest).encode()
    packed = zlib.compress(raw)
    digest = container._digest(packed)
    header = struct.pack("<8sIII16s", container.MAGIC, 1, len(packed), len(raw), digest)
    return header + packed + whole[36 + stored :]


@pytest.mark.one_backend
def test_damaged_files(whole, tmp_path):
    for foreign in (b"", b"PK\x03\x04", b"\x80\x04K\x01.", RNG.bytes(5000), b"\x89KQAREG\n"):
        assert "does not begin as one" in error_of(foreign, tmp_path)
    assert "version 7" in error_of(whole[:8] + struct.pack("<I", 7) + whole[12:], tmp_path)
    assert "cut off" in error_of(whole[:-1], tmp_path)
    assert "more bytes after its end" in error_of(whole + b"\0", tmp_path)
    assert "was changed" in error_of(whole[:-1] + bytes([whole[-1] ^ 1]), tmp_path)
    assert "manifest that was changed" in error_of(
        whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], tmp_path
    )
    with pytest.raises(FileNotFoundError):
        load_archive(tmp_path / "none.qareg")


@pytest.mark.one_backend
def test_bombs(whole, tmp_path):
    """Headers and manifests that promise far more than there is, with sound digests."""
    huge = whole[:12] + struct.pack("<II", 2**32 - 1, 2**32 - 1) + whole[20:]
    assert "a header that promises more" in error_of(huge, tmp_path)
    huge = whole[:16] + struct.pack("<I", 2**32 - 1) + whole[20:]
    assert "a header that promises more" in error_of(huge, tmp_path)
    bomb = zlib.compress(b"0" * 50_000_000, 9)
    lied = struct.pack("<8sIII16s", container.MAGIC, 1, len(bomb), 1000, container._digest(bomb))
    assert "Expected a manifest of 1000 bytes" in error_of(lied + bomb, tmp_path)
    deep = zlib.compress(b"[" * 200_000)
    header = struct.pack(
        "<8sIII16s", container.MAGIC, 1, len(deep), 200_000, container._digest(deep)
    )
    error_of(header + deep, tmp_path)

    def grow(key, value):
        return lambda manifest: manifest["tensors"][0].update({key: value})

    for change in (
        grow("shape", [10**6, 10**6]),
        grow("shape", [2**70]),
        grow("shape", [-3, 3, 1, -6]),
        grow("shape", [3.0, 3, 1, 6]),
        grow("shape", [3, 3, 1, 7]),
        grow("levels", 10**9),
        grow("levels", 3),
        grow("channels", [10**9]),
        grow("dtype", "object"),
        grow("coding", "pickle"),
        grow("indices", 99),
        grow("indices", None),
        lambda manifest: manifest["sections"].append([10**12, "00"]),
        lambda manifest: manifest["sections"].__setitem__(0, [-1, "00"]),
        lambda manifest: manifest.pop("config"),
        lambda manifest: manifest.update(assets=[{"layer": 0}]),
        lambda manifest: manifest.update(tensors=manifest["tensors"][1:]),
        lambda manifest: manifest.update(config=1),
    ):
        error_of(rewritten(whole, change), tmp_path)


@pytest.mark.one_backend
def test_random_damage_never_does_more_than_raise(whole, tmp_path):
    path = tmp_path / "fuzzed.qareg"
    for _ in range(2000):
        content = bytearray(whole)
        kind = RNG.integers(3)
        if kind == 0:
            for place in RNG.integers(0, len(content), RNG.integers(1, 20)):
                content[place] ^= 1 << RNG.integers(8)
        elif kind == 1:
            del content[RNG.integers(0, len(content)) :]
        else:
            start, stop = sorted(RNG.integers(0, len(content), 2))
            content[start:stop] = RNG.bytes(RNG.integers(0, 100))
        if bytes(content) != whole:
            path.write_bytes(content)
            for read in (load_archive, archive.describe):
                with pytest.raises(ArchiveError):
                    read(path)


def test_bad_targets(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Expected a folder that exists"):
        save_archive(small_cnn(), tmp_path / "none" / "model.qareg")
    with pytest.raises(ValueError, match="Expected `float_dtype` to be one of"):
        save_archive(small_cnn(), tmp_path / "model.qareg", float_dtype="int8")
    with pytest.raises(ValueError, match="Expected a built model"):
        save_archive(keras.Sequential([layers.Dense(3)]), tmp_path / "model.qareg")
    monkeypatch.setattr(archive, "_assets", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_archive(small_cnn(), tmp_path / "model.qareg")
    assert not list(tmp_path.iterdir())
