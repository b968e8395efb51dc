"""Low-bit LiteRT files: the very values of the Keras kernels, in every kind of layer."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export import packing
from keras_qareg.export.litert import flatbuffer, forms, rewriting
from keras_qareg.export.litert.recognition import recognize
from keras_qareg.export.litert.runtime import input_details, run_litert, tensor_values
from keras_qareg.export.packing import CODE_RANGES
from keras_qareg.numerics.codebook import Codebook
from tests.helpers import BACKEND, predict

tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)


def decoded(content):
    """The rewritten kernels of a file as the runtime makes them, by their paths."""
    names = {n[:2]: n.name for n in flatbuffer.names(flatbuffer.read(content)) if n.form}
    inputs = {
        name: np.zeros(np.maximum(detail["shape"], 1), detail["dtype"])
        for name, detail in input_details(content).items()
    }
    return {names[place]: array for place, array in tensor_values(content, names, inputs).items()}


def to_numpy(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def on_a_grid(model, codes=(-2, -1, 0, 1), seed=0):
    """The model with kernels of these codes times a step of their own, and some statistics."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) >= 2:
            step = np.float32(random.uniform(0.02, 0.1))
            chosen = random.choice(np.array(codes, "float32"), weight.shape)
            weight.assign(chosen * step)
        elif weight.name in ("gamma", "moving_variance"):
            sign = random.choice([-1, 1], weight.shape) if weight.name == "gamma" else 1
            weight.assign(sign * random.uniform(0.5, 2.0, weight.shape))
        elif weight.name in ("beta", "moving_mean", "bias"):
            weight.assign(0.1 * random.normal(size=weight.shape))
    return model


@functools.cache
def model_on_a_grid(kind, codes=(-2, -1, 0, 1)):
    """One of `MODELS`, made once for all forms, so that it is converted once."""
    return on_a_grid(MODELS[kind](), codes)


def sequence(*stack):
    return keras.Sequential([keras.Input(stack[0]), *stack[1:]], name="net")


def conv_net(normalize):
    def block(layer):
        return [layer, *([layers.BatchNormalization()] if normalize else []), layers.ReLU()]

    return sequence(
        (12, 12, 3),
        *block(layers.Conv2D(8, 3, padding="same", name="conv")),
        *block(layers.DepthwiseConv2D(3, name="depthwise")),
        *block(layers.Conv2D(16, 1, name="pointwise")),
        *block(layers.Conv2DTranspose(8, 3, strides=2, name="transposed")),
        layers.Flatten(),
        *block(layers.Dense(24, name="hidden")),
        layers.Dense(20, name="out"),
    )


MODELS = {
    "plain": lambda: conv_net(False),
    "normalized": lambda: conv_net(True),
    "conv1d": lambda: sequence((16, 3), layers.Conv1D(8, 3, name="c"), layers.GlobalMaxPooling1D()),
    "dense_3d": lambda: sequence((6, 8), layers.Dense(12, name="d"), layers.Dense(7, name="e")),
    "embedding": lambda: sequence((5,), layers.Embedding(20, 8, name="words"), layers.Flatten()),
    "separable": lambda: sequence((9, 9, 4), layers.SeparableConv2D(8, 3, name="s")),
    "grouped": lambda: sequence((9, 9, 4), layers.Conv2D(8, 3, groups=2, name="g")),
    "attention": lambda: attention(),
}


def attention():
    inputs = keras.Input((6, 8))
    hidden = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.LayerNormalization()(hidden)))


@tensorflow_only
@pytest.mark.parametrize("form", ["auto", "smallest", "int8-exact", "int4-exact", "int2-exact"])
@pytest.mark.parametrize("kind", MODELS)
def test_kernels_are_exact_in_every_form(kind, form, tmp_path):
    model = model_on_a_grid(kind)
    report = qareg.export.litert(model, tmp_path / "model.tflite", form)
    assert report.max_output_difference <= 1e-5 * max(1.0, report.output_range)
    kernels = {w.path: to_numpy(w) for w in qareg.layers.kernels(model)}
    stored = decoded((tmp_path / "model.tflite").read_bytes())
    forms = {"int8-exact": {"int8"}, "int4-exact": {"int4"}}.get(form, {"int2"})
    for constant in report.kernels:
        if constant.path is None:
            continue
        if form in ("auto", "smallest"):
            assert constant.form in ("float32", "int8", "int2")
            assert constant.form != "float32" or constant.reason
        else:
            assert {constant.form} == forms
        assert constant.levels <= 4
        if constant.form != "float32":
            got, want = np.sort(stored[constant.path].reshape(-1)), kernels[constant.path]
            if constant.exact:
                np.testing.assert_array_equal(got, np.sort(want.reshape(-1)))
    assert {constant.path for constant in report.kernels} >= set(kernels)
    if kind != "normalized":
        assert all(constant.exact for constant in report.kernels if constant.path)
    if form.endswith("exact"):
        float_bytes = sum(array.nbytes for array in kernels.values())
        packed = sum(constant.bytes for constant in report.kernels if constant.path)
        assert packed <= float_bytes / {"int8-exact": 3, "int4-exact": 5}.get(form, 6)
        assert report.bytes < report.float_bytes + 4000


@tensorflow_only
def test_auto_keeps_what_would_be_slower(tmp_path):
    report = qareg.export.litert(on_a_grid(conv_net(False)), tmp_path / "model.tflite")
    forms = {constant.path.split("/")[-2]: constant for constant in report.kernels if constant.path}
    assert {name: constant.form for name, constant in forms.items()} == {
        "conv": "int8",
        "depthwise": "int8",
        "pointwise": "int8",
        "transposed": "float32",
        "hidden": "int8",
        "out": "int8",
    }
    assert forms["conv"].reason == forms["hidden"].reason == "int2 would be slower"
    assert forms["transposed"].reason == "slower in TRANSPOSE_CONV"
    assert report.runtime_version == "2.14.0" and report.time_ratio > 0
    assert all(report.delegated[forms[name].name] for name in ("conv", "pointwise", "hidden"))
    for text in ("exact; on XNNPACK; int2 would be slower", "a run takes"):
        assert text in str(report)


@tensorflow_only
def test_other_grids(tmp_path):
    """Without a zero level, too wide for few bits, and no grid at all."""
    model = sequence((40,), layers.Dense(50, name="a"), layers.Dense(30, name="b"))
    two = qareg.export.litert(on_a_grid(model, (-1, 1)), tmp_path / "m.tflite", "smallest")
    assert [constant.form for constant in two.kernels] == ["int2", "int2"]
    odd = qareg.export.litert(on_a_grid(model, (-3, -1, 1, 3)), tmp_path / "m.tflite", "int2-exact")
    assert [constant.form for constant in odd.kernels] == ["int4", "int4"]
    assert odd.kernels[0].reason == "codes from -3 to 3 do not fit int2"
    wide = qareg.export.litert(
        on_a_grid(model, range(-100, 100)), tmp_path / "m.tflite", "smallest"
    )
    assert [constant.form for constant in wide.kernels] == ["int8", "int8"]
    model = sequence((40,), layers.Dense(50, name="a"))
    clustered = qareg.share_weights(model, levels=16, table="float32")
    none = qareg.export.litert(clustered, tmp_path / "m.tflite")
    assert [constant.form for constant in none.kernels] == ["float32"]
    assert none.kernels[0].reason == "its values are on no evenly spaced grid"
    assert none.bytes < none.float_bytes  # by the names
    free = qareg.export.litert(sequence((40,), layers.Dense(50)), tmp_path / "m.tflite")
    assert free.kernels[0].reason == "no kernel with few values"


@tensorflow_only
@pytest.mark.parametrize(
    ("per_channel", "normalize"),
    [
        (False, False),
        (True, True),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in ((False, True), (True, False))),
    ],
)
def test_uniform_wnq_is_held_exactly(per_channel, normalize, tmp_path):
    """Odd codes, and a step for each channel."""
    keras.utils.set_random_seed(0)
    model = qareg.wnq(conv_net(normalize), 2, skip=(), uniform=True, per_channel=per_channel)
    report = qareg.export.litert(model, tmp_path / "model.tflite", "int4-exact")
    found = {c.path.split("/")[-2]: c for c in report.kernels if c.path}
    converted = {"conv", "depthwise", "pointwise", "hidden", "out"}
    assert {name for name, constant in found.items() if constant.form == "int4"} == converted
    stored = decoded((tmp_path / "model.tflite").read_bytes())
    for name in converted:
        assert np.unique(stored[found[name].path][0]).size <= 4 * (
            64 if name == "depthwise" and per_channel else 1
        )
        assert found[name].exact or normalize
    images = RNG.normal(size=(4, 12, 12, 3)).astype("float32")
    (outputs,) = run_litert(tmp_path / "model.tflite", images)
    np.testing.assert_allclose(outputs, predict(model, images), atol=1e-5)


@tensorflow_only
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("levels", [pytest.param(2, marks=pytest.mark.slow), 5, 40])
@pytest.mark.parametrize("kind", ["plain", "normalized", "attention", "separable"])
def test_codebooks_are_looked_up_exactly(kind, levels, once, tmp_path):
    """Groups of indices that do not fill up, a factor for each channel, and values on no grid."""
    levels_of_all = np.sort(np.random.default_rng(levels).normal(size=levels))
    model = model_on_a_grid(kind, tuple(levels_of_all))
    path = tmp_path / "model.tflite"
    report = qareg.export.litert(model, path, "codebook", decode_once=once)
    assert report.max_output_difference <= 1e-5 * max(1.0, report.output_range)
    kernels = {w.path: to_numpy(w) for w in qareg.layers.kernels(model)}
    stored, packed = decoded(path.read_bytes()), 0
    for constant in report.kernels:
        assert constant.path or constant.form == "float32"
        if constant.form == "float32":
            assert constant.path is None or "would take more bytes" in constant.reason
            continue
        packed += 1
        assert constant.form == "codebook"
        assert constant.levels <= levels
        got, want = np.sort(stored[constant.path].reshape(-1)), kernels[constant.path]
        if constant.exact:
            np.testing.assert_array_equal(got, np.sort(want.reshape(-1)))
    assert packed == len(stored) and (packed or kind in ("attention", "separable"))
    assert f"and {packed} rewritten kernels" in qareg.export.verify(model, path)


@tensorflow_only
@pytest.mark.parametrize("normalize", [False, True])
def test_learned_levels_of_wnq_become_a_table_for_each_channel(normalize, tmp_path):
    keras.utils.set_random_seed(0)
    model = qareg.wnq(
        sequence(
            (12, 12, 3),
            layers.Conv2D(32, 3, name="conv"),
            *([layers.BatchNormalization()] if normalize else []),
            layers.Flatten(),
            layers.Dense(24, name="hidden"),
        ),
        bits=2,
        skip=(),
    )
    if normalize:
        model.layers[1].gamma.assign(RNG.uniform(0.5, 2.0, 32))
    path = tmp_path / "model.tflite"
    report = qareg.export.litert(model, path, "codebook")
    forms = {constant.path.split("/")[-2]: constant for constant in report.kernels}
    assert forms["hidden"].form == "codebook" and forms["hidden"].exact
    assert forms["hidden"].bytes < 0.09 * 4 * to_numpy(model.get_layer("hidden").kernel).size
    images = RNG.normal(size=(4, 12, 12, 3)).astype("float32")
    (outputs,) = run_litert(path, images)
    np.testing.assert_allclose(outputs, predict(model, images), rtol=1e-5, atol=1e-5)


@tensorflow_only
def test_recurrent_kernels_are_found_inside_their_loops(tmp_path):
    model = sequence((5,), layers.Embedding(90, 24), layers.LSTM(32), layers.Dense(3))
    shared = qareg.share_weights(model, 4)
    words = RNG.integers(0, 90, (1, 5))
    for weights, once in (("codebook", True), ("codebook", False), ("smallest", True)):
        path = tmp_path / "model.tflite"
        report = qareg.export.litert(shared, path, weights, decode_once=once)
        packed = {c.path.split("/")[-1] for c in report.kernels if c.form.startswith("codebook")}
        assert packed == {"embeddings", "kernel", "recurrent_kernel"}
        assert report.bytes < report.float_bytes - 10_000
        np.testing.assert_allclose(run_litert(path, words)[0], predict(shared, words), atol=1e-5)
    exact = qareg.share_weights(model, 4, table="even")
    report = qareg.export.litert(exact, path, "int2-exact")
    assert [constant.form for constant in report.kernels if constant.path] == ["int2"] * 4


@tensorflow_only
def test_a_wrong_rewrite_leaves_no_file(tmp_path, monkeypatch):
    model = on_a_grid(sequence((40,), layers.Dense(50, name="a")))
    right = flatbuffer.packed

    def wrong(codes, kind):
        data = right(codes, kind)
        return data ^ 1

    monkeypatch.setattr(flatbuffer, "packed", wrong)
    with pytest.raises(
        ValueError, match="with the values of kernel 'net/a/kernel' in the file. Received: o"
    ):
        qareg.export.litert(model, tmp_path / "model.tflite", "int4-exact")
    monkeypatch.setattr(flatbuffer, "packed", right)
    monkeypatch.setattr(forms, "_prove", lambda *_: None)
    monkeypatch.setattr(
        forms,
        "quantize",
        lambda model, constant, codes, steps, axis, kind: rewriting.quantize(
            model, constant, codes, 2 * steps, axis, kind
        ),
    )
    with pytest.raises(ValueError, match="Expected the outputs of the file within 0.0001"):
        qareg.export.litert(model, tmp_path / "model.tflite", "int8-exact")
    assert not list(tmp_path.iterdir())


@pytest.mark.one_backend
@settings(max_examples=100, deadline=None)
@given(st.integers(2, 256), st.integers(1, 400), st.sampled_from([8, 32]))
def test_indices_are_digits_of_words(levels, size, bits):
    indices = np.random.default_rng(size).integers(0, levels, size).astype("uint8")
    words = packing.packed_words(indices, levels, bits)
    digits = packing.indices_a_word(levels, bits)
    assert words.dtype == ("int32" if bits == 32 else "uint8") and words.size == -(-size // digits)
    back = packing.unpacked_words(words, levels)
    np.testing.assert_array_equal(back.reshape(-1)[:size], indices)
    assert not back.reshape(-1)[size:].any()
    # As runtimes take them apart, in integers of 32 bits.
    powers = np.array([levels**place for place in range(digits)], "int32")
    np.testing.assert_array_equal(words.astype("int32")[:, None] // powers % levels, back)


@pytest.mark.one_backend
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(CODE_RANGES)), st.data())
def test_packing_is_reversible(kind, data):
    low, high = CODE_RANGES[kind]
    codes = np.array(data.draw(st.lists(st.integers(low, high), min_size=1, max_size=50)), "int8")
    raw = packing.packed(codes, kind)
    assert raw.size == -(-codes.size * int(kind[3:]) // 8)
    np.testing.assert_array_equal(packing.unpacked(raw, kind, codes.size), codes)
    with pytest.raises(ValueError, match=f"Expected codes from {low} to {high}. Received"):
        packing.packed(np.append(codes, high + 1).astype("int16"), kind)


@pytest.mark.one_backend
def test_constants_are_recognized_by_all_their_values():
    codes = RNG.integers(-2, 2, (3, 3, 4, 6))
    kernel = (codes * np.float32(0.1)).astype("float32")
    books = [("other", Codebook.exact(kernel + 1)), ("right", Codebook.exact(kernel))]
    constant = kernel.transpose(3, 0, 1, 2)
    found = recognize(constant, books)
    assert (found.path, found.exact, found.axis) == ("right", True, None)
    np.testing.assert_array_equal(found.values, constant)
    folded = constant * RNG.uniform(0.5, 2.0, (6, 1, 1, 1)).astype("float32")
    found = recognize(folded, books)
    assert (found.path, found.exact, found.axis) == ("right", False, 0)
    np.testing.assert_allclose(found.values, folded, rtol=1e-6)
    codes, steps = found.grid()
    np.testing.assert_allclose(
        found.looked_up(codes) * steps.reshape(-1, 1, 1, 1), folded, rtol=1e-5
    )
    changed = constant.copy()
    changed[0, 0, 0, 0] += 0.1
    assert recognize(changed, books) is None
    assert recognize(np.zeros((2, 3), "float32"), books) is None


@tensorflow_only
@pytest.mark.parametrize("rounds", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_inspection_of_files_and_of_damaged_ones(rounds, tmp_path, capsys):
    from keras_qareg.cli import main
    from keras_qareg.export.litert.inspection import describe_litert

    model = on_a_grid(sequence((40,), layers.Dense(50, name="a"), layers.Dense(30, name="b")))
    path = tmp_path / "model.tflite"
    qareg.export.litert(model, path, "int2-exact")
    lines = [line.split() for line in describe_litert(path).splitlines()]
    assert [line[1:] for line in lines if line[0].endswith("/codes")] == [
        ["30x50", "int2", "4", "375"],
        ["50x40", "int2", "4", "500"],
    ]
    assert lines[-1] == ["whole", "file", f"{path.stat().st_size:,}"]
    assert main(["inspect", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == lines[-1]
    whole, damaged = path.read_bytes(), tmp_path / "damaged.tflite"
    refused = 0
    for _ in range(rounds):
        content = bytearray(whole)
        for place in RNG.integers(8, len(content), RNG.integers(1, 20)):
            content[place] ^= 1 << RNG.integers(8)
        if RNG.integers(3) == 0:
            del content[RNG.integers(8, len(content)) :]
        damaged.write_bytes(content)
        try:
            describe_litert(damaged)
        except ValueError as error:
            refused += str(error).startswith("Expected a readable .tflite file. Received: ")
    assert refused > rounds // 4
    damaged.write_bytes(b"PK" + whole[2:4] + b"TFL2" + whole[8:])
    with pytest.raises(ValueError, match="which does not begin as one"):
        describe_litert(damaged)
