"""Inputs and outputs of all structures, sizes and types: matched by name, and proved."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.runtime import input_details, run_litert
from keras_qareg.export.litert.signature import Signature, named_outputs
from tests.helpers import BACKEND, error_of

tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)
RNG = np.random.default_rng(0)


def three(structure):
    """Inputs `c`, `a` and `b` in a structure, joined after a layer of their own each."""
    inputs = {name: keras.Input((8,), name=name) for name in "cab"}
    joined = layers.Concatenate()([layers.Dense(12)(x) for x in inputs.values()])
    return keras.tree.map_structure(lambda name: inputs[name], structure), joined


def heads(joined, structure):
    return keras.tree.map_structure(lambda _: layers.Dense(3)(joined), structure)


def some_slow(kinds, *quick):
    """All kinds, of which those that are not named run among the slow tests."""
    return [k if k in quick else pytest.param(k, marks=pytest.mark.slow) for k in kinds]


STRUCTURES = {
    "lists": (["c", "a", "b"], [0, 0]),
    "twelve": (["c", "a", "b"], [0] * 12),
    "tuples": (("b", "c", "a"), (0, 0)),
    "dicts": ({"c": "c", "a": "a", "b": "b"}, {"p10": 0, "p9": 0, "p3": 0}),
    "other_keys": ({"z": "c", "y": "a", "x": "b"}, {"1/out": 0, "an out": 0}),
    "nested": ([{"c": "c", "a": "a"}, ("b",)], {"q": [0, 0], "p": 0}),
    "nested_lists": ([["c", "a"], "b"], [[0, 0], 0]),
}


@keras.saving.register_keras_serializable("tests")
class TwoInputs(keras.Model):
    """A subclassed model that takes two inputs in any structure."""

    def __init__(self, nest=False, **kwargs):
        super().__init__(**kwargs)
        self.nest = nest
        self.first, self.second, self.third = layers.Dense(3), layers.Dense(3), layers.Dense(3)

    def call(self, inputs):
        x, y = keras.tree.flatten(inputs)
        outputs = {"v10": self.first(x), "v9": self.second(y), "v2": self.third(x)}
        return {"all": outputs, "sum": x + y} if self.nest else outputs

    def get_config(self):
        return {**super().get_config(), "nest": self.nest}


def samples(structure, count=12):
    return keras.tree.map_structure(
        lambda _: RNG.normal(size=(count, 8)).astype("float32"), structure
    )


@tensorflow_only
@pytest.mark.filterwarnings("error:The structure of")
@pytest.mark.filterwarnings("ignore:When providing .inputs. as a dict")
@pytest.mark.parametrize("kind", some_slow(STRUCTURES, "dicts", "nested"))
def test_structures_of_inputs_and_outputs(kind, tmp_path):
    keras.utils.set_random_seed(0)
    taken, given = STRUCTURES[kind]
    inputs, joined = three(taken)
    model = keras.Model(inputs, heads(joined, given))
    data = samples(taken)
    named = Signature.of(model).named(data)
    path = tmp_path / "m.tflite"
    for form in ("float32", "auto", "int8"):
        report = qareg.export.litert(model, path, form, data)
        rounding = 0.1 if form == "int8" else 1e-5
        assert report.max_output_difference <= rounding * report.output_range, form
        assert "outputs within" in qareg.export.verify(model, path, data)
    qareg.export.litert(model, path, "float32")
    got = run_litert(path, named)
    want = keras.tree.flatten(model(data))
    if kind != "nested":  # in the order of the sorted names, which is Keras's but for nested ones
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@tensorflow_only
@pytest.mark.parametrize("nest", some_slow([False, True], True))
@pytest.mark.parametrize("structure", [["a", "b"], ("a", "b"), {"k10": "a", "k9": "b"}])
def test_subclassed_models_of_several_inputs(structure, nest, tmp_path):
    keras.utils.set_random_seed(0)
    model = TwoInputs(nest)
    data = samples(structure)
    model(data)
    shared = qareg.share_weights(model, 4)
    path = tmp_path / "m.tflite"
    for form in ("float32", "int8"):
        for given in (None, data):
            report = qareg.export.litert(shared, path, form, given)
            rounding = 0.1 if form == "int8" else 1e-5
            assert report.max_output_difference <= rounding * report.output_range
    names = {"k10", "k9"} if isinstance(structure, dict) else {"args_0", "args_0_1"}
    assert set(input_details(path.read_bytes())) == names


@tensorflow_only
def test_two_inputs_in_a_list_with_loops(tmp_path):
    keras.utils.set_random_seed(0)
    first, second = keras.Input((5, 8)), keras.Input((5, 8))
    joined = layers.Concatenate()([layers.LSTM(16)(second), layers.GRU(12)(first)])
    model = qareg.share_weights(keras.Model([second, first], layers.Dense(4)(joined)), 4)
    for form in ("float32", "smallest", "int8"):
        report = qareg.export.litert(model, tmp_path / "m.tflite", form)
        assert report.max_output_difference <= 1e-3 and report.batch_size == 1


@tensorflow_only
@pytest.mark.filterwarnings("error:The structure of")
def test_names_that_tensorflow_does_not_take(tmp_path):
    inputs = [keras.Input((3,), name="an input"), keras.Input((3,), name="1:0")]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(inputs)))
    qareg.export.litert(model, tmp_path / "m.tflite")
    assert set(input_details((tmp_path / "m.tflite").read_bytes())) == {"an_input", "input_1_0"}


@tensorflow_only
@pytest.mark.filterwarnings("error:The structure of")
def test_one_input_in_a_list_as_models_of_keras_2_have_it(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model([inputs], [layers.Dense(2)(inputs)])
    path = tmp_path / "m.tflite"
    qareg.export.litert(model, path, "int8", np.ones((4, 3), "float32"))
    qareg.export.litert(model, path)
    assert qareg.export.verify(model, path).startswith("equal")
    (outputs,) = run_litert(path, [np.ones((2, 3), "float32")])
    assert outputs.shape == (2, 2)


@tensorflow_only
def test_a_batch_size_of_the_model_is_no_size_of_the_file(tmp_path):
    inputs = keras.Input((3,), batch_size=32)
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    assert qareg.export.litert(model, tmp_path / "m.tflite").batch_size is None


@tensorflow_only
def test_strings_are_refused(tmp_path):
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, layers.Hashing(8)(inputs))
    assert "Expected a model whose inputs are numbers. Received: an input of strings" in error_of(
        qareg.export.litert, model, tmp_path / "m.tflite"
    )


class Boxes(NamedTuple):
    boxes: object
    scores: object


def test_names_of_outputs():
    assert named_outputs(0) == {"output_0": 0}
    assert named_outputs((1, 2)) == {"output_0": 1, "output_1": 2}
    assert list(named_outputs({"p9": 0, "p10": 1}).items()) == [("p10", 1), ("p9", 0)]
    assert list(named_outputs([[1, 2], {"a": 3}])) == ["output_0_0", "output_0_1", "output_1_a"]
    assert named_outputs({"a_0": 1, "a": [2]}) == {"a_0": 2, "a_0_1": 1}
    assert named_outputs(Boxes(1, [2])) == {"boxes": 1, "scores_0": 2}
    assert named_outputs({0: 1, 1: 2}) == {"0": 1, "1": 2}


@tensorflow_only
@pytest.mark.parametrize("kind", ["named", "numbers"])
def test_other_structures_of_outputs(kind, tmp_path):
    class Several(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.Dense(4), layers.Dense(4)

        def call(self, inputs):
            a, b = self.first(inputs), self.second(inputs)
            return Boxes(a, b) if kind == "named" else {1: a, 0: b}

    model = Several()
    model(np.ones((2, 8), "float32"))
    report = qareg.export.litert(model, tmp_path / "m.tflite", "float32")
    assert report.max_output_difference <= 1e-5


@tensorflow_only
def test_inputs_of_a_file_go_by_name(tmp_path):
    inputs, joined = three(["c", "a", "b"])
    path = tmp_path / "m.tflite"
    qareg.export.litert(keras.Model(inputs, heads(joined, 0)), path, "float32")
    arrays = samples(["c", "a", "b"])
    assert "Expected a dict of arrays by the names of the inputs, ['a', 'b', 'c']" in error_of(
        run_litert, path, arrays
    )
    assert "Expected inputs by the names in the file" in error_of(
        run_litert, path, {"a": arrays[0]}
    )


OPEN = {
    "valid": ((None, None, 3), lambda x: layers.Conv2D(2, 3)(layers.MaxPooling2D()(conv(x)))),
    "same": ((None, None, 3), lambda x: layers.Conv2D(2, 3, padding="same")(conv(x))),
    "series": ((None, 4), lambda x: layers.GlobalMaxPooling1D()(layers.Conv1D(8, 5)(x))),
    "large": (
        (None, 4),
        lambda x: layers.Dense(5)(layers.Conv1D(8, 5, strides=5)(layers.MaxPooling1D(12)(x))),
    ),
}


def conv(x):
    return layers.Conv2D(8, 3, activation="relu")(x)


@tensorflow_only
@pytest.mark.parametrize("kind", some_slow(OPEN, "valid", "series"))
def test_open_sizes(kind, tmp_path):
    keras.utils.set_random_seed(0)
    shape, build = OPEN[kind]
    inputs = keras.Input(shape)
    model = qareg.share_weights(keras.Model(inputs, build(inputs)), 4, table="even")
    path, fixed = tmp_path / "m.tflite", tuple(size or 70 for size in shape)
    data = RNG.normal(size=(4, *fixed)).astype("float32")
    for form in ("float32", "auto", "codebook", "int8"):
        for given in (None, data):
            report = qareg.export.litert(model, path, form, given)
            rounding = 0.1 if form == "int8" else 1e-5
            assert report.max_output_difference <= rounding * max(1.0, report.output_range)
            assert report.batch_size is None
            assert "outputs within" in qareg.export.verify(model, path, data)
        (got,) = run_litert(path, data)
        assert np.abs(got - model(data)).max() <= rounding * max(1.0, report.output_range)
    for form in ("float32", "tflm"):
        qareg.export.litert(model, path, form, input_shape=fixed)
        (detail,) = input_details(path.read_bytes()).values()
        assert tuple(detail["shape_signature"][1:]) == fixed
        assert qareg.export.verify(model, path).startswith("equal")
    message = error_of(qareg.export.litert, model, path, "tflm")
    assert message.startswith("Expected fixed sizes for inputs {") and "as `input_shape`" in message


@tensorflow_only
def test_loops_need_their_length(tmp_path):
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(6)(inputs)))
    try:
        report = qareg.export.litert(model, tmp_path / "m.tflite")
        assert report.batch_size == 1
    except ValueError as error:
        assert "Say the sizes as `input_shape`" in str(error)
    report = qareg.export.litert(model, tmp_path / "m.tflite", input_shape=(7, 4))
    assert report.max_output_difference <= 1e-5 and report.batch_size == 1


@tensorflow_only
def test_the_argument_input_shape(tmp_path):
    first, second = keras.Input((None, 4), name="first"), keras.Input((6,), name="second")
    joined = layers.Concatenate()([layers.GlobalAveragePooling1D()(first), second])
    several = keras.Model([first, second], layers.Dense(2)(joined))
    one = keras.Model(first, layers.Dense(2)(first))
    path = tmp_path / "m.tflite"
    for shape in ([(9, 4), (6,)], {"first": (9, 4), "second": (6,)}):
        qareg.export.litert(several, path, input_shape=shape)
        details = input_details(path.read_bytes())
        assert tuple(details["first"]["shape_signature"]) == (-1, 9, 4)
    for model, shape, message in [
        (one, (9, 5), "Expected `input_shape` to agree with the shape (None, 4) of input 'first'"),
        (one, (9,), "Expected `input_shape` to agree with the shape (None, 4) of input 'first'"),
        (one, [(9, 4), (6,)], "Expected `input_shape` for 1 inputs: one shape for one input"),
        (several, (9, 4), "Expected `input_shape` for 2 inputs: one shape for one input"),
        (several, {"third": (9, 4)}, "Expected `input_shape` with the names of the inputs, ['fir"),
        (one, "9", "Expected `input_shape` for 1 inputs: one shape"),
    ]:
        assert error_of(qareg.export.litert, model, path, input_shape=shape).startswith(message)
    data = RNG.normal(size=(4, 8, 4)).astype("float32")
    assert "Expected `representative_data` of shape (None, 9, 4)" in error_of(
        qareg.export.litert, one, path, "auto", data, input_shape=(9, 4)
    )


@tensorflow_only
def test_subclassed_models_take_the_sizes_that_are_asked_for(tmp_path):
    class Pooled(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer, self.pool = layers.Conv2D(4, 3), layers.GlobalMaxPooling2D()

        def call(self, inputs):
            return self.pool(self.layer(inputs))

    model, path = Pooled(), tmp_path / "m.tflite"
    model(np.ones((1, 8, 8, 3), "float32"))
    data = RNG.integers(0, 255, (4, 12, 12, 3)).astype("float32")
    for given, sizes in (((None, None), 8), ((data, None), 12), ((None, (9, 9, 3)), 9)):
        qareg.export.litert(model, path, "auto", given[0], input_shape=given[1])
        (detail,) = input_details(path.read_bytes()).values()
        assert tuple(detail["shape_signature"]) == (-1, sizes, sizes, 3)
        assert "equal" in qareg.export.verify(model, path)


@tensorflow_only
def test_no_size_fits(tmp_path):
    inputs = keras.Input((None, 4))
    fussy = keras.Model(inputs, layers.Reshape((12,))(inputs))
    message = error_of(qareg.export.litert, fussy, tmp_path / "m.tflite")
    assert "can be called with one of the sizes" in message and "`input_shape`" in message
    qareg.export.litert(fussy, tmp_path / "m.tflite", input_shape=(3, 4))


@tensorflow_only
@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"]
)
def test_models_of_other_precision_become_float32_files(policy, tmp_path):
    keras.utils.set_random_seed(0)
    floatx = keras.config.floatx()
    before = keras.config.dtype_policy()
    try:
        if not policy.startswith("mixed"):
            keras.config.set_floatx(policy)
        keras.config.set_dtype_policy(policy)
        inputs = keras.Input((8, 8, 3))
        x = layers.BatchNormalization()(layers.Conv2D(8, 3)(inputs))
        model = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(layers.ReLU()(x))))
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(before)
    path = tmp_path / "m.tflite"
    kinds = [model]
    if policy.startswith("mixed"):
        kinds.append(qareg.share_weights(model, 4, table="even"))
    for kind in kinds:
        types = [layer.compute_dtype for layer in kind.layers]
        assert policy.removeprefix("mixed_") in types
        for form in ("auto", "float32", "codebook", "tflm"):
            report = qareg.export.litert(kind, path, form)
            assert report.max_output_difference <= 1e-4 * report.output_range, form
            assert qareg.export.verify(kind, path).startswith("equal")
        assert [layer.compute_dtype for layer in kind.layers] == types
        (detail,) = input_details(path.read_bytes()).values()
        assert detail["dtype"] == np.float32


@tensorflow_only
def test_what_overflows_in_half_precision(tmp_path):
    inputs = keras.Input((8,))
    wide = layers.Dense(4, kernel_initializer="ones", dtype="mixed_float16")(20000.0 * inputs)
    model = keras.Model(inputs, {"sum": wide, "large": wide > 0})
    data = np.ones((4, 8), "float32")
    message = error_of(qareg.export.litert, model, tmp_path / "m.tflite", "auto", data)
    assert "Expected output 'sum' of model" in message and "(dtype='float32')" in message
    qareg.export.litert(model, tmp_path / "m.tflite", "auto", 0.1 * data)


@tensorflow_only
def test_nan_is_named(tmp_path):
    inputs = keras.Input((8,), name="power")
    model = keras.Model(inputs, {"level": layers.Dense(4)(ops.log(inputs))})
    message = error_of(qareg.export.litert, model, tmp_path / "m.tflite")
    assert "NaN in ['level'] with inputs 'power' of shape (8, 8) from -" in message
    assert message.endswith("Pass inputs that the model is made for as `representative_data`.")
    positive = np.abs(RNG.normal(size=(8, 8))).astype("float32") + 0.1
    qareg.export.litert(model, tmp_path / "m.tflite", "auto", positive)
    infinite = keras.Model(inputs, ops.log(ops.relu(inputs)))
    qareg.export.litert(infinite, tmp_path / "m.tflite")


@tensorflow_only
@pytest.mark.parametrize("kind", some_slow(["uint8", "bool", "int32", "int64"], "uint8", "bool"))
def test_types_of_inputs_and_outputs(kind, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((24,), dtype=kind)
    x = layers.Dense(40)(ops.cast(inputs, "float32"))
    outputs = [layers.Dense(3)(x), ops.cast(3 * x, "int32"), ops.cast(inputs, "uint8"), x > 0]
    model = keras.Model(inputs, outputs)
    data = RNG.integers(0, 2 if kind == "bool" else 100, (40, 24)).astype(kind)
    path = tmp_path / "m.tflite"
    for form in ("auto", "codebook", "int8", "tflm"):
        for given in (data, None):
            report = qareg.export.litert(model, path, form, given)
            (detail,) = input_details(path.read_bytes()).values()
            assert detail["dtype"] == np.dtype(kind)
            if form in ("auto", "codebook"):
                assert "equal" in qareg.export.verify(model, path, given)
            elif form == "tflm" and BACKEND == "tensorflow":
                assert "TFLite Micro" in report.micro


@tensorflow_only
@pytest.mark.parametrize("form", ["int8", "tflm"])
def test_quantized_ends(form, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = layers.Flatten()(layers.Conv2D(16, 3, activation="relu")(inputs))
    model = qareg.share_weights(keras.Model(inputs, layers.Dense(4)(x)), 16, table="even")
    data = RNG.normal(size=(64, 8, 8, 2)).astype("float32")
    path = tmp_path / "m.tflite"
    for kind, number in (("int8", 9), ("uint8", 3), ("float32", 0)):
        report = qareg.export.litert(model, path, form, data, input_type=kind, output_type=kind)
        graph = flatbuffer.read(path.read_bytes()).subgraphs[0]
        assert {graph.tensors[i].type for i in (*graph.inputs, *graph.outputs)} == {number}
        assert report.max_output_difference <= 0.05 * report.output_range
        if form == "int8":
            assert all(kernel.exact for kernel in report.kernels)
            (got,) = run_litert(path, data)
            assert np.abs(got - model(data)).max() <= 0.1 * report.output_range
        assert qareg.export.verify(model, path, data).startswith("int8")
    message = (
        "Expected `input_type` and `output_type` to be 'float32' for files that compute in float"
    )
    assert error_of(qareg.export.litert, model, path, form, input_type="int8").startswith(message)
    assert "Expected `output_type` to be one of" in error_of(
        qareg.export.litert, model, path, form, data, output_type="int16"
    )


@tensorflow_only
def test_states_stay_as_they_are(tmp_path):
    inputs = keras.Input(batch_shape=(2, 5, 4))
    model = keras.Model(inputs, layers.LSTM(6, stateful=True)(inputs))
    states = [np.array(ops.convert_to_numpy(v)) for v in model.layers[1].non_trainable_variables]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = qareg.export.litert(model, tmp_path / "m.tflite", "float32")
    assert report.batch_size == 2 and report.max_output_difference <= 1e-5
    for before, after in zip(states, model.layers[1].non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(after))
