"""Full-integer files with the ranges of a model: to the bit, and computed as the runtimes do."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert import flatbuffer, micro_proof
from keras_qareg.export.litert.ranges import Ranges, check_ranges
from keras_qareg.layers import ActivationRange, IntegerKernels
from tests.export.litert.reference import File
from tests.helpers import error_of, tensorflow_only

litert = pytest.importorskip("ai_edge_litert.interpreter")
pytestmark = [pytest.mark.one_backend, tensorflow_only]
SHAPE = (9, 10, 6)


def ranged(low, high, **options):
    """A range that is placed at once."""
    layer = ActivationRange(**options)
    layer.build()
    if layer.fixed is None:
        layer.place(low, high)
    return layer


def integers(layer):
    return IntegerKernels(layer, name=f"{layer.name}_integers")


def normalized(seed, channels):
    """A BatchNormalization with factors of both signs."""
    random, layer = np.random.default_rng(seed), layers.BatchNormalization()
    layer.build((None, None, None, channels))
    scale = random.normal(size=channels) + 0.2
    values = scale, random.normal(size=channels), random.normal(size=channels)
    for weight, value in zip(
        layer.weights, (*values, random.uniform(0.3, 3, channels)), strict=True
    ):
        weight.assign(value)
    return layer


def operators(bits=8):
    """Each operator behind the range of the input alone: one output each."""
    random = np.random.default_rng(0)
    first, second = keras.Input(SHAPE, name="first"), keras.Input(SHAPE, name="second")

    def behind(low=-2.1, high=1.7, **options):
        return ranged(low, high, bits=bits, **options)

    ends = (1 / 256, -128) if bits == 8 else (1 / 32768, 0)
    a, b = behind(-3, 4)(first), behind(-0.5, 6)(second)
    shared, wide = behind(), behind(-6, 7)
    flat = layers.Flatten()(a)
    outputs = {
        "valid": behind()(integers(layers.Conv2D(5, (3, 2)))(a)),
        "strided": behind()(integers(layers.Conv2D(4, 3, 2, "same", activation="relu"))(a)),
        "dilated": behind()(integers(layers.Conv2D(4, 3, padding="same", dilation_rate=2))(b)),
        "folded": behind(0, 5)(
            layers.ReLU(6)(normalized(1, 4)(integers(layers.Conv2D(4, 3, use_bias=False))(a)))
        ),
        "depthwise": behind()(integers(layers.DepthwiseConv2D(3, 2, "same"))(a)),
        "doubled": wide(
            normalized(2, 12)(integers(layers.DepthwiseConv2D((2, 3), depth_multiplier=2))(b))
        ),
        "dense": behind()(integers(layers.Dense(7))(flat)),
        "sum": behind(-2, 9)(layers.Add()([a, b])),
        "product": behind(-5, 12)(layers.Multiply()([a, b])),
        "joined": layers.Concatenate()(
            [shared(integers(layers.Conv2D(n, 1))(x)) for n, x in ((3, a), (2, b))]
        ),
        "largest": layers.MaxPooling2D(3, 2, "same")(a),
        "average": layers.AveragePooling2D((2, 3), 2, "same")(a),
        "mean": behind(-1, 1.5)(layers.GlobalAveragePooling2D()(a)),
        "sigmoid": behind(fixed=ends)(layers.Activation("sigmoid")(a)),
        "softmax": behind(fixed=ends)(layers.Softmax()(a)),
    }
    model = keras.Model([first, second], outputs)
    for weight in model.weights:
        if weight.path.endswith("bias"):
            weight.assign(random.normal(size=weight.shape) * 0.3)
    return model


def interpreted(content, inputs, kind):
    """What a runtime computes: the interpreter after a run, and the inputs by their places."""
    interpreter = litert.Interpreter(
        model_content=content,
        experimental_op_resolver_type=kind,
        experimental_preserve_all_tensors=True,
    )
    details = interpreter.get_signature_runner().get_input_details()
    places = {details[name]["index"]: array for name, array in inputs.items()}
    for place, array in places.items():
        interpreter.resize_tensor_input(place, array.shape)
    interpreter.allocate_tensors()
    for place, array in places.items():
        interpreter.set_tensor(place, array)
    interpreter.invoke()
    return interpreter, places


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, path = operators(), tmp_path_factory.mktemp("ranges") / "m.tflite"
    return model, qareg.export.litert(model, path, "int8", input_type="int8"), path


def codes(count):
    random = np.random.default_rng(3)
    return {
        name: random.integers(-128, 128, (count, *SHAPE)).astype("int8")
        for name in ("first", "second")
    }


def test_each_operator_computes_as_the_reference_to_the_bit(exported):
    """LiteRT's reference kernels, and TFLite Micro where it is installed."""
    content = exported[2].read_bytes()
    interpreter, inputs = interpreted(content, codes(20), litert.OpResolverType.BUILTIN_REF)
    file, seen = File(content, inputs, once=True), set()
    for name, place in file.run():
        seen.add(name)
        np.testing.assert_array_equal(file.tensors[place], interpreter.get_tensor(place), name)
    assert len(seen) >= 12, seen


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is missing"
)
def test_tflite_micro_computes_as_the_reference_to_the_bit(exported, tmp_path):
    content, one = exported[2].read_bytes(), codes(1)
    (tmp_path / "file").write_bytes(content)
    np.savez(tmp_path / "inputs.npz", *micro_proof._in_order(content, one))
    outputs = list(flatbuffer.read(content).subgraphs[0].outputs)
    (found,), _ = micro_proof._run(tmp_path, [("file", 1 << 22)], len(outputs))
    _, inputs = interpreted(content, one, litert.OpResolverType.BUILTIN_REF)
    file = File(content, inputs)
    list(file.run())
    for place, got in zip(outputs, found, strict=True):
        np.testing.assert_array_equal(file.tensors[int(place)], got)


def test_each_operator_is_within_one_step_of_keras(exported):
    model, report, path = exported
    assert report.agreement.steps <= 1 and report.agreement.equal > 0.99, report.agreement
    assert report.agreement.requantized == 0 and report.agreement.examples == 64
    assert str(report.agreement) in str(report)
    text = qareg.export.verify(model, path)
    assert text.startswith("int8, with all 15 ranges of the model: 99."), text


def test_ranges_and_kernels_in_the_file_are_the_models(exported):
    model, report, path = exported
    file = flatbuffer.read(path.read_bytes())
    tensors = file.subgraphs[0].tensors
    grids = {
        (np.float32(t.quantization.scale[0]), int(t.quantization.zeroPoint[0]))
        for t in tensors
        if t.quantization is not None and t.type == 9 and len(t.quantization.scale) == 1
    }
    wanted = {x.grid() for x in model.layers if isinstance(x, ActivationRange)}
    assert grids == wanted
    kernels = {
        path: book
        for x in model.layers
        if isinstance(x, IntegerKernels)
        for path, book in zip(x.kernel_paths, x.codebooks(), strict=True)
    }
    assert sorted(form.path for form in report.kernels) == sorted(kernels)
    for constant, form in zip(flatbuffer.constants(file, "int8"), report.kernels, strict=True):
        signed = kernels[form.path].indices.astype("int16") - 127
        # Where a factor is negative, the codes of the channel are turned.
        assert np.array_equal(
            np.sort(np.abs(signed), axis=None), np.sort(np.abs(constant.values), axis=None)
        )
    # Two have the factors of a batch normalization in their steps, which round.
    assert sum(not form.exact for form in report.kernels) <= 2


def test_ranges_that_are_nearly_equal_are_told_apart(tmp_path):
    step = np.float32(0.01)
    given = keras.Input((6,))
    x = ranged(-1, 1, fixed=(float(step), 3))(given)
    for place in range(3):
        step = np.nextafter(step, np.float32(1))
        x = ranged(-1, 1, fixed=(float(step), 3))(layers.Dense(6, name=f"fc{place}")(x))
    model = keras.Model(given, x)
    path = tmp_path / "m.tflite"
    report = qareg.export.litert(model, path, "int8")
    check_ranges(path.read_bytes(), Ranges.of(model))
    assert report.agreement.examples == 64


def test_small_steps_have_a_relu_in_the_place_of_a_relu6(tmp_path):
    # Networks with fresh weights and normalizations have such: 6 is no integer of so many steps.
    given = keras.Input((6,))
    fc = layers.Dense(6, use_bias=False, name="fc")
    x = integers(fc)(ranged(-1, 1)(given))
    model = keras.Model(given, ranged(0, 2e-8)(layers.ReLU(6)(x)))
    fc.kernel.assign(np.random.default_rng(0).normal(0, 1e-8, (6, 6)))
    report = qareg.export.litert(model, tmp_path / "m.tflite", "int8")
    assert report.agreement.steps <= 1


@pytest.mark.parametrize("levels", [None, 16])
def test_channels_of_next_to_nothing_are_what_they_are(levels, tmp_path):
    # The converter has no steps below 4e-9, and biases are integers of steps.
    random = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(6, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
        ]
    )
    factors = np.array([1e-32, 1e-9, 1e-6, 0, 1e-18, 1])
    model.get_layer("conv").kernel.assign(random.normal(size=(3, 3, 3, 6)) * factors)
    model.get_layer("norm").beta.assign([0.3, 0.3, 0, 0.3, 0.3, 0])
    model.get_layer("norm").moving_variance.assign([1, 1e-12, 1e-6, 1, 1e-30, 1])
    shared = qareg.share_weights(model, levels, method="kmeans") if levels else model
    quantized = qareg.quantize_activations(shared, random.uniform(-1, 1, (64, 6, 6, 3)))
    report = qareg.export.litert(quantized, tmp_path / "m.tflite", "int8")
    assert report.agreement.steps <= 1 and report.agreement.equal > 0.99, report.agreement


@pytest.mark.parametrize("bits", [8, 16])
def test_activations_of_several_operators_agree(bits, tmp_path):
    images = np.random.default_rng(0).normal(size=(32, 5, 5, 3)).astype("float32")
    keras.utils.set_random_seed(0)
    given = keras.Input((5, 5, 3))
    x = layers.ReLU(6)(layers.Rescaling([0.5, 1.0, 2.0], offset=1.0)(given))
    x = layers.Activation("hard_sigmoid")(layers.Conv2D(4, 3)(x))
    x = keras.ops.silu(layers.Conv2D(4, 1, activation="gelu")(x))
    model = qareg.quantize_activations(keras.Model(given, layers.Flatten()(x)), images, bits=bits)
    report = qareg.export.litert(model, tmp_path / "m.tflite", "int8", images)
    # With 16 bits the runtime interpolates in tables.
    assert report.agreement.steps <= (6 if bits == 8 else 64), report.agreement


def test_files_of_other_ranges_are_refused(exported):
    model, _, path = exported
    ranges, content = Ranges.of(model), path.read_bytes()
    check_ranges(content, ranges)
    more = Ranges(8, {**ranges.grids, "other": (np.float32(0.5), 1)}, {})
    assert error_of(check_ranges, content, more) == (
        "Expected all activation ranges of the model in the file. Received: none of ['other']. Each "
        "must be behind a layer that computes, and be the last one there."
    )
    name, (step, zero_point) = next(iter(ranges.grids.items()))
    fewer = Ranges(8, {key: grid for key, grid in ranges.grids.items() if key != name}, {})
    assert error_of(check_ranges, content, fewer) == (
        "Expected no ranges in the file but those of the model. Received: one of step "
        f"{step:.9g} and zero point {zero_point}. Put an `ActivationRange` behind each layer that "
        "computes."
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_large_networks_keep_all_ranges_and_kernels(name, tmp_path):
    keras.utils.set_random_seed(0)
    size = {"alpha": 0.35} if name == "MobileNetV2" else {}
    model = getattr(keras.applications, name)(
        input_shape=(32, 32, 3), weights=None, classes=10, **size
    )
    data = np.random.default_rng(0).uniform(0, 255, (16, 32, 32, 3)).astype("float32")
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.adapt(data)
    model = qareg.quantize_activations(model, data)
    report = qareg.export.litert(model, tmp_path / "m.tflite", "int8", data)
    assert {form.reason for form in report.kernels} == {""}
    assert report.agreement.examples == 16 and report.agreement.requantized == 0


def trained(levels, seed=0):
    """Two inputs, a concatenation, a residual sum, normalizations; kernels with tables, or integers."""
    keras.utils.set_random_seed(seed)
    first, second = keras.Input((8, 8, 3), name="first"), keras.Input((8, 8, 2), name="second")
    x = layers.Concatenate()([first, second])
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = normalized(4, 8)(x)
    kept = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(kept)
    x = layers.ReLU(6)(normalized(5, 8)(x))
    x = normalized(6, 8)(layers.Conv2D(8, 1, use_bias=False, name="pointwise")(x))
    x = layers.ReLU()(layers.Add()([x, kept]))
    x = layers.Flatten()(layers.AveragePooling2D(4)(x))
    model = keras.Model([first, second], layers.Dense(5, "softmax", name="out")(x))
    if levels:
        return qareg.share_weights(model, levels, method="kmeans")
    return model


@pytest.mark.parametrize(("levels", "weights"), [(None, "int8"), (16, "int8"), (16, "tflm")])
def test_networks_keep_their_tables_and_agree(levels, weights, tmp_path):
    random = np.random.default_rng(0)
    data = {
        name: random.normal(size=(32, 8, 8, n)).astype("float32")
        for name, n in (("first", 3), ("second", 2))
    }
    model = qareg.quantize_activations(trained(levels), data)
    path = tmp_path / "m.tflite"
    report = qareg.export.litert(model, path, weights, data, input_type="int8", output_type="int8")
    assert report.agreement.examples == 32
    assert report.agreement.steps <= 6 and report.agreement.equal > 0.8, report.agreement
    assert all(
        form.reason in ("", "more than 128 values") or "would take more bytes" in form.reason
        for form in report.kernels
    )
    books = qareg.codebooks(model)
    content = path.read_bytes()
    if weights == "int8":
        for constant, form in zip(
            flatbuffer.constants(flatbuffer.read(content), "int8"), report.kernels, strict=True
        ):
            most = 2 * (levels or 255)  # where factors are negative, codes are turned
            assert np.unique(constant.values).size <= most, form
            assert form.levels == np.unique(books[form.path].indices).size
        assert report.delegated and all(report.delegated.values())
    else:
        assert report.micro.startswith(("equal in TFLite Micro", "not run")), report.micro
    assert qareg.export.verify(model, path, data).startswith("int8, with all ")


def test_bad_models_are_refused_with_what_to_do(tmp_path):
    path = tmp_path / "m.tflite"

    def error(model, weights="int8", **options):
        text = error_of(qareg.export.litert, model, path, weights, **options)
        assert not list(tmp_path.iterdir())
        return text

    given = keras.Input((4, 4, 2), name="given")
    conv = layers.Conv2D(2, 1, name="conv")
    model = keras.Model(given, ranged(-1, 1, name="last")(conv(ranged(-1, 1, name="first")(given))))
    assert error(model, "auto") == (
        "Expected weights='int8' or 'tflm' for a model with activation ranges, which full-integer files "
        "have. Received: weights='auto'. For other files, `strip` the model first."
    )
    unplaced = keras.Model(given, ActivationRange(name="last")(conv(ranged(-1, 1)(given))))
    assert error(unplaced) == (
        "Expected layer 'last' to have a range. Received: one that was never placed. Pass `data` to "
        "keras_qareg.quantize_activations, or load trained weights."
    )
    mixed = keras.Model(given, ranged(-1, 1, bits=16, name="wide")(model(given)))
    assert error(mixed) == (
        "Expected activation ranges of one width for a full-integer file. Received: "
        "{'last': 8, 'first': 8, 'wide': 16}"
    )
    bare = keras.Model(given, layers.Conv2D(2, 1, name="bare")(model(given)))
    text = error(bare)
    assert text.startswith(
        "Expected a model whose operators all have integer forms between activation ranges. Received: "
        "CONV_2D ("
    )
    assert text.endswith(
        "), which the converter left in float. Put an `ActivationRange` behind each layer that "
        "computes, or leave such layers out of the model."
    )
    twice = keras.Model(given, ranged(-1, 2, name="behind")(ranged(-1, 3, name="before")(given)))
    report = qareg.export.litert(twice, path, "int8")
    assert report.agreement.requantized == 1 and "; 1 tensors change their range" in str(report)


def test_files_hold_16_bit_activations(tmp_path):
    model, path = operators(16), tmp_path / "m.tflite"
    report = qareg.export.litert(model, path, "int8", input_type="int16")
    # Of the steps of 16 bits, which the runtime's factors of 16 bits do not reach.
    assert report.agreement.steps <= 3 and report.agreement.requantized == 0, report.agreement
    content, random = path.read_bytes(), np.random.default_rng(0)
    inputs = {
        name: random.integers(-32768, 32768, (3, *SHAPE)).astype("int16")
        for name in ("first", "second")
    }
    interpreter, places = interpreted(content, inputs, litert.OpResolverType.BUILTIN_REF)
    file = File(content, places, once=True)
    for name, place in file.run(but=("LOGISTIC", "SOFTMAX")):
        np.testing.assert_array_equal(file.tensors[place], interpreter.get_tensor(place), name)
    assert error_of(qareg.export.litert, model, path, "int8", input_type="int8") == (
        "Expected `input_type` to be one of ('float32', 'int16'). Received: input_type='int8'"
    )
