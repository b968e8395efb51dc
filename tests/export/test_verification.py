"""Files are the model's, whichever of its equals is asked: shared, stripped, or loaded again."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export.archive.proof import plain_weights
from keras_qareg.export.archive.reading import Archive
from keras_qareg.export.litert.recognition import is_kernel, recognize
from keras_qareg.numerics.codebook import Codebook
from tests.helpers import BACKEND, error_of, fewer_elsewhere

tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, name="conv")(inputs)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="deep")(x)))
    x = layers.Dense(40, "relu", name="hidden")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(6, name="out")(x))
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(RNG.uniform(0.5, 2.0, weight.shape))
    return model


MADE = {
    "shared": lambda model: qareg.share_weights(model, 16),
    "snapped": lambda model: qareg.share_weights(model, 64, table="even"),
    "wnq": lambda model: qareg.wnq(model, 2),
    "wnq_uniform": lambda model: qareg.wnq(model, 4, uniform=True),
    "aware": lambda model: qareg.quantization_aware(model, qareg.regularizers.NearestSquared(4)),
    "plain": lambda model: model,
}


def equals(model, folder):
    """A model, what `strip` makes of it, and both loaded again."""
    found = [model, qareg.strip(model)]
    for place, one in enumerate(list(found)):
        one.save(folder / f"{place}.keras")
        found.append(keras.saving.load_model(folder / f"{place}.keras", compile=False))
    return found


@tensorflow_only
@pytest.mark.parametrize(
    "kind",
    [kind if kind == "wnq" else pytest.param(kind, marks=pytest.mark.slow) for kind in MADE],
)
def test_equals_are_all_the_model_of_a_file(kind, tmp_path):
    models = equals(MADE[kind](network()), tmp_path)
    data = RNG.normal(size=(20, 8, 8, 3)).astype("float32")
    for form in ("auto", "smallest", "codebook", "tflm", "int8"):
        path = tmp_path / "m.tflite"
        qareg.export.litert(models[0], path, form, data if form == "int8" else None)
        for model in models:
            said = qareg.export.verify(model, path, data)
            assert said.startswith("int8" if form == "int8" else "equal"), form
    path = qareg.export.save_archive(models[0], tmp_path / "m.qareg")
    for model in (*models, qareg.export.load_archive(path)):
        assert qareg.export.verify(model, path).startswith("equal: all ")


@tensorflow_only
def test_another_model_is_refused(tmp_path):
    model = qareg.share_weights(network(), 4)
    path = tmp_path / "m.tflite"
    qareg.export.litert(model, path, "smallest")
    other = qareg.strip(model)
    other.get_layer("hidden").kernel.assign(other.get_layer("hidden").kernel[::-1])
    assert "Expected the outputs of the file within" in error_of(qareg.export.verify, other, path)
    more = keras.Model(model.inputs, {"a": model.outputs[0], "b": model.outputs[0] + 1.0})
    assert "Expected a file with the outputs of model" in error_of(qareg.export.verify, more, path)


@tensorflow_only
def test_inputs_without_names_are_told_apart(tmp_path):
    keras.utils.set_random_seed(0)
    second, first = keras.Input((6,)), keras.Input((6,))
    x = [layers.Dense(3)(first), layers.Dense(4)(second)]
    model = qareg.share_weights(keras.Model([first, second], layers.Concatenate()(x)), 4)
    path = tmp_path / "m.tflite"
    for form in ("auto", "codebook", "tflm"):
        qareg.export.litert(model, path, form)
        for equal in equals(model, tmp_path):
            assert qareg.export.verify(equal, path).startswith("equal")
    one = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    assert "Expected a file with the inputs of the model, {" in error_of(
        qareg.export.verify, one, path
    )


@pytest.mark.parametrize("kind", fewer_elsewhere(MADE))
def test_an_archive_holds_what_the_model_computes_with(kind, tmp_path, monkeypatch):
    model = MADE[kind](network())
    stripped = qareg.strip(model)
    for (path, mine), theirs in zip(plain_weights(model), stripped.weights, strict=True):
        np.testing.assert_array_equal(mine, ops.convert_to_numpy(theirs), err_msg=path)
    for float_dtype in ("float32", "float16"):
        file = qareg.export.save_archive(model, tmp_path / "m.qareg", float_dtype=float_dtype)
        assert qareg.export.verify(model, file).startswith("equal: all ")
    read = Archive.all_tensors
    monkeypatch.setattr(Archive, "all_tensors", lambda self: (t + 1 for t in read(self)))
    message = error_of(qareg.export.save_archive, model, tmp_path / "other.qareg")
    assert message.startswith(f"Expected the {len(stripped.weights)} tensors of model '")
    assert not (tmp_path / "other.qareg").exists()


class Fussy(keras.Model):
    """A model that cannot be made again from its configuration."""

    def __init__(self, secret):
        super().__init__()
        self.secret, self.layer = secret, layers.Dense(4)

    def call(self, inputs):
        return self.secret * self.layer(inputs)

    def get_config(self):
        return {"secret": self.secret}

    @classmethod
    def from_config(cls, config):
        raise RuntimeError("not for copies")


def test_plain_models_are_never_copied(tmp_path):
    model = Fussy(2.0)
    model(np.ones((2, 3), "float32"))
    path = tmp_path / "m.qareg"
    with pytest.warns(UserWarning) as record:
        qareg.export.save_archive(model, path)
    assert str(record[-1].message) == (
        f"{path} has a model that cannot be made again here (not for copies): `load_archive` needs its "
        "classes and functions as `custom_objects`."
    )
    assert qareg.export.verify(model, path) == (
        "equal: all 2 tensors, bit for bit; outputs were not compared with those of 'fussy', which "
        "cannot be made again here (not for copies)"
    )
    if BACKEND == "tensorflow":
        report = qareg.export.litert(model, tmp_path / "m.tflite", "float32")
        assert report.max_output_difference <= 1e-5
        assert qareg.export.verify(model, tmp_path / "m.tflite").startswith("equal")


@pytest.mark.one_backend
def test_parts_of_kernels_are_recognized():
    kernel = RNG.choice([-2.0, -1.0, 0.5, 3.0], (5, 12)).astype("float32")
    book = Codebook.exact(kernel)
    for part in (slice(0, 4), slice(8, 12), slice(0, 8), slice(4, 12)):
        for constant in (kernel[:, part], kernel[:, part].T):
            found = recognize(constant, [("other", Codebook.exact(-kernel)), ("kernel", book)])
            assert found.path == "kernel" and found.exact
            np.testing.assert_array_equal(found.values, constant)
            assert is_kernel(constant, [kernel])
    assert recognize(kernel[:, 1:5], [("kernel", book)]) is None
    assert recognize(2 * kernel[:, :4], [("kernel", book)]) is None
    assert is_kernel(2 * kernel[:, :4], [kernel]) and is_kernel(2 * kernel, [kernel])
    assert not is_kernel(kernel[::-1], [kernel])


@tensorflow_only
@pytest.mark.parametrize("kind", ["gru", "conv"])
def test_layers_that_multiply_with_parts_of_kernels(kind, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 32) if kind == "gru" else (4, 8, 8))
    layer = layers.GRU(48, reset_after=False) if kind == "gru" else layers.ConvLSTM1D(16, 3)
    model = qareg.share_weights(keras.Model(inputs, layer(inputs)), 4, table="even")
    paths = {kernel.path for kernel in qareg.layers.kernels(qareg.strip(model))}
    # The converter leaves what is smaller than 1024 weights in float32.
    for form in ("smallest", "tflm", *(["int8"] if kind == "gru" else [])):
        report = qareg.export.litert(model, tmp_path / "m.tflite", form)
        assert {kernel.path for kernel in report.kernels if kernel.path} == paths
        assert report.bytes < 0.72 * report.float_bytes
        assert "outputs within" in qareg.export.verify(qareg.strip(model), tmp_path / "m.tflite")


@tensorflow_only
def test_branches_of_one_architecture(tmp_path):
    """Nested models of other names, whose layers have the same names."""
    keras.utils.set_random_seed(0)

    def branch(name):
        inner = keras.Input((8,))
        return keras.Model(inner, layers.Dense(64, "relu", name="fc")(inner), name=name)

    inputs = [keras.Input((8,), name="a"), keras.Input((8,), name="b")]
    joined = [branch(name)(x) for name, x in zip(("left", "right"), inputs, strict=True)]
    model = keras.Model(inputs, layers.Dense(3, name="out")(layers.Concatenate()(joined)))
    for form in ("smallest", "codebook", "tflm"):
        report = qareg.export.litert(qareg.share_weights(model, 4), tmp_path / "m.tflite", form)
        assert sum(kernel.path is not None for kernel in report.kernels) == 3


@tensorflow_only
def test_a_file_without_a_signature_is_refused_in_words(tmp_path):
    from keras_qareg.export.litert import flatbuffer, writer

    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    file = tmp_path / "model.tflite"
    qareg.export.litert(model, file, "float32")
    read = flatbuffer.read(file.read_bytes())
    read.signatureDefs = []
    file.write_bytes(writer.to_bytes(read))
    assert error_of(lambda: qareg.export.verify(model, file)) == (
        "Expected a .tflite file with one signature, which names its inputs and outputs, as Keras "
        "writes it. Received: one with 0."
    )


def test_a_kernel_is_known_by_a_factor_that_least_squares_does_not_find():
    step = np.float32(0.16)
    weights = np.full((3, 400), 0.09, "float32")  # channels of which one weight is large
    weights[:, 0] = 20.0
    codes = np.rint(weights / step)
    codes[:, 1:] = 1.0  # the small ones are rounded up
    assert is_kernel(codes * step, [weights], step)
    other = codes.copy()
    other[1, 5] += 4
    assert not is_kernel(other * step, [weights], step)
    weights[0, 1] = 0.0  # a zero has no factor
    codes[0, 1] = 0.0
    assert is_kernel(codes * step, [weights], step)
    codes[0, 1] = 2.0
    assert not is_kernel(codes * step, [weights], step)


@tensorflow_only
def test_another_model_is_not_an_integer_file(tmp_path):
    def net(seed):
        keras.utils.set_random_seed(seed)
        stack = [keras.Input((16,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(4)]
        return keras.Sequential(stack, name="net")

    one, other = net(0), net(1)
    x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
    ranged = qareg.quantize_activations(one, x)
    for model, data in ((one, x), (ranged, None)):
        path = tmp_path / "m.tflite"
        qareg.export.litert(model, path, "int8", data)
        assert qareg.export.verify(model, path) and qareg.export.verify(model, path, x)
        for inputs in (None, x):
            wrong = other if model is one else qareg.quantize_activations(other, x)
            assert error_of(qareg.export.verify, wrong, path, inputs)
    ranged.layers[-2].layer.bias.assign([100.0] * 4)
    assert "follow those of model" in error_of(qareg.export.verify, ranged, path, x)


@tensorflow_only
def test_a_file_that_computes_in_float_between_whole_numbers_is_int8(tmp_path):
    inputs = keras.Input((6, 6, 6, 2))  # LiteRT has no integers for convolutions of three axes
    x = layers.Conv3DTranspose(3, 2)(layers.Conv3D(4, 3, activation="swish")(inputs))
    model = keras.Model(inputs, layers.Flatten()(x))
    images = RNG.normal(size=(16, 6, 6, 6, 2)).astype("float32")
    qareg.export.litert(model, tmp_path / "model.tflite", "int8", images)
    said = qareg.export.verify(model, tmp_path / "model.tflite", images)
    assert said.startswith("int8, which rounds")


@tensorflow_only
def test_open_sizes_that_a_file_loses_are_an_error_with_advice(tmp_path):
    inputs = keras.Input((None, 5))
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(8))(inputs))
    said = error_of(lambda: qareg.export.litert(model, tmp_path / "model.tflite"))
    assert said.startswith("Expected a file with the outputs of model")
    assert said.endswith("Say the sizes as `input_shape`.")
    qareg.export.litert(model, tmp_path / "model.tflite", input_shape=(7, 5))


def changed(model, place, change):
    """The same model with other values of one weight."""
    found, values = keras.models.clone_model(model), [w.copy() for w in model.get_weights()]
    values[place] = change(values[place])
    found.set_weights(values)
    return found


@tensorflow_only
def test_each_output_is_held_to_its_own_largest(tmp_path):
    inputs = keras.Input((6,))
    x = layers.Dense(8, "relu")(inputs)
    large = layers.Rescaling(64e3)(layers.Dense(4, name="large")(x))
    model = keras.Model(inputs, [large, layers.Dense(3, "softmax", name="small")(x)])
    place = [weight.path for weight in model.weights].index("small/kernel")
    path = qareg.export.litert(model, tmp_path / "model.tflite", "float32").path
    assert qareg.export.verify(model, path).startswith("equal")
    message = error_of(qareg.export.verify, changed(model, place, lambda kernel: -kernel), path)
    assert "each relative to its largest. Received: a difference of" in message


@tensorflow_only
def test_whole_numbers_of_integer_files_are_compared(tmp_path):
    inputs, data = keras.Input((6,)), RNG.normal(size=(64, 6)).astype("float32")
    model = keras.Model(inputs, layers.Dense(4)(layers.Dense(8, "relu")(inputs)) > 0)
    path = qareg.export.litert(model, tmp_path / "model.tflite", "int8", data).path
    assert qareg.export.verify(model, path, data).startswith("int8, which rounds")
    other = changed(model, 2, lambda kernel: -kernel)
    assert "more than half of what they vary by" in error_of(qareg.export.verify, other, path, data)


@tensorflow_only
@pytest.mark.parametrize("form", ["float32", "auto", "float16"])
def test_all_rows_of_a_table_are_looked_up(form, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(50, 8),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3),
        ]
    )
    path = qareg.export.litert(model, tmp_path / "model.tflite", form).path
    assert qareg.export.verify(model, path).startswith("equal")
    rest = RNG.normal(size=(48, 8))
    other = changed(model, 0, lambda rows: np.concatenate([rows[:2], rest]))
    assert "Received: a difference of" in error_of(qareg.export.verify, other, path)


@tensorflow_only
def test_later_examples_of_the_users_count(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)])
    weights = model.get_weights()
    weights[0][:, 0], weights[1][0] = 1.0, -9.0  # at work for large inputs alone
    model.set_weights(weights)
    path = qareg.export.litert(model, tmp_path / "model.tflite").path
    data = RNG.normal(size=(30, 6)) * np.where(np.arange(30) < 20, 1, 10)[:, None]
    other = changed(model, 2, lambda kernel: np.concatenate([0 * kernel[:1] + 5, kernel[1:]]))
    assert qareg.export.verify(model, path, data).startswith("equal")
    assert "Received: a difference of" in error_of(qareg.export.verify, other, path, data)
    # Without them, outputs are the same: the kernel tells.
    message = error_of(qareg.export.verify, other, path)
    assert "constant (3, 8) with some of the values of one, and others" in message


@tensorflow_only
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_a_file_begins_with_the_states_of_the_model(kind, tmp_path):
    inputs = keras.Input(batch_shape=(1, 5, 4))
    model = keras.Model(inputs, layers.Dense(2)(kind(4, stateful=True)(inputs)))
    states = model.layers[1].states
    path = qareg.export.litert(model, tmp_path / "model.tflite", "float32").path
    assert qareg.export.verify(model, path).startswith("equal")
    assert not any(np.any(ops.convert_to_numpy(state)) for state in states)


@tensorflow_only
def test_damaged_files_are_refused_in_words(tmp_path):
    from ai_edge_litert.tools import flatbuffer_utils

    from keras_qareg.export.litert import flatbuffer

    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)])
    path = qareg.export.litert(model, tmp_path / "model.tflite").path
    content = path.read_bytes()

    def refused(damage):
        read = flatbuffer.read(content)
        damage(read, read.subgraphs[0])
        path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(read))
        message = error_of(qareg.export.verify, model, path)
        assert message.startswith(f"Expected a readable .tflite file. Received: {path} (")
        return message

    def too_far(read, graph):
        graph.operators[0].inputs[0] = 99

    def without_a_buffer(read, graph):
        graph.tensors[0].buffer = 77

    def of_another_size(read, graph):
        (kernel,) = (b for b in read.buffers if b.data is not None and len(b.data) == 8 * 6 * 4)
        kernel.data = kernel.data[:-4]

    def of_no_code(read, graph):
        graph.operators[0].opcodeIndex = 9

    assert "tensors [99] of" in refused(too_far)
    assert "index 77 is out of bounds" in refused(without_a_buffer)
    assert "188 bytes in the place of 192" in refused(of_another_size)
    assert "list index out of range" in refused(of_no_code)
