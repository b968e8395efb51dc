"""Export: the file is run and compared; what fails leaves nothing behind."""

import gzip
import importlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export import litert as export_litert
from keras_qareg.export.litert.runtime import run_litert
from keras_qareg.regularizers import NearestSquared
from tests.helpers import BACKEND, digits, predict, small_cnn

tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)


@tensorflow_only
@pytest.mark.parametrize("weights", ["auto", "float32", "float16", "int8"])
def test_a_shared_model_becomes_a_file_that_runs(tmp_path, weights):
    images, _ = digits(64)
    shared = qareg.share_weights(small_cnn(), levels=4)
    path = tmp_path / "model.tflite"
    report = qareg.export.litert(shared, path, weights=weights, representative_data=images)
    content = path.read_bytes()
    assert report.path == path and report.bytes == len(content)
    assert report.gzip_bytes == len(gzip.compress(content, 9)) < report.bytes
    (outputs,) = run_litert(path, images)
    expected = predict(shared, images)
    allowed = {"float16": 1e-3, "int8": 0.1}.get(weights, 1e-5) * np.abs(expected).max()
    np.testing.assert_allclose(outputs, expected, atol=allowed)
    assert report.max_output_difference <= allowed
    assert report.output_range == pytest.approx(np.abs(predict(shared, images[:8])).max(), rel=1e-5)
    assert len(report.distinct_values) == 3
    if weights != "int8":  # per channel, so that more codes than levels are used
        assert set(report.distinct_values.values()) == {4}
    assert tuple(map(int, report.runtime_version.split("."))) >= (1, 5)
    assert f"{report.bytes:,} bytes" in str(report)
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


@tensorflow_only
def test_int8_without_data_keeps_activations_in_float(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(128), layers.Dense(10)])
    sizes = [
        qareg.export.litert(model, tmp_path / f"{w}.tflite", weights=w).bytes
        for w in ("float32", "float16", "int8")
    ]
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * sizes[2]


@tensorflow_only
def test_several_inputs_outputs_and_integers(tmp_path):
    keras.utils.set_random_seed(0)
    tokens, extra = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((3,), name="extra")
    embedded = layers.Embedding(20, 8)(tokens)
    hidden = layers.Concatenate()([layers.Flatten()(embedded), extra])
    outputs = [layers.Dense(4)(hidden), layers.Dense(2)(hidden)]
    model = keras.Model([tokens, extra], outputs)
    shared = qareg.share_weights(model, levels=4)
    report = qareg.export.litert(shared, tmp_path / "model.tflite")
    assert report.max_output_difference <= 1e-5
    random = np.random.default_rng(0)
    data = [random.integers(0, 20, (6, 5)), random.normal(size=(6, 3)).astype("float32")]
    report = qareg.export.litert(shared, tmp_path / "model.tflite", representative_data=data)
    assert report.max_output_difference <= 1e-5
    integer = qareg.export.litert(
        shared, tmp_path / "int8.tflite", "int8", representative_data=data
    )
    assert integer.max_output_difference <= 0.1 * integer.output_range
    named = {"tokens": data[0], "extra": data[1]}
    for got, want in zip(run_litert(report.path, named), shared(data), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@tensorflow_only
def test_data_in_any_form(tmp_path):
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    images = np.random.default_rng(0).normal(size=(300, 8)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((images, np.zeros(300))).batch(8)
    forms = [
        images,
        dataset,
        dataset.repeat(),
        lambda: ([row[None]] for row in images),
        [images[i : i + 1] for i in range(200)],
    ]
    found = set()
    for data in forms:
        report = qareg.export.litert(model, tmp_path / "m.tflite", "int8", data)
        found.add(report.max_output_difference)
    assert len(found) == 1  # all are the same first 200
    for data, message in [
        (images[:0], "Expected `representative_data` with inputs. Received: none."),
        (images[:, :5], "Expected `representative_data` to have inputs of shape (None, 8)"),
    ]:
        with pytest.raises(ValueError) as error:
            qareg.export.litert(model, tmp_path / "m.tflite", "int8", data)
        assert str(error.value).startswith(message)


@tensorflow_only
def test_inputs_by_name(tmp_path):
    keras.utils.set_random_seed(0)
    first, second = keras.Input((3,), name="zeta"), keras.Input((5,), name="alpha")
    hidden = layers.Concatenate()([first, layers.Dense(4)(second)])
    model = keras.Model({"zeta": first, "alpha": second}, layers.Dense(2)(hidden))
    random = np.random.default_rng(0)
    data = {"zeta": random.normal(size=(6, 3)), "alpha": random.normal(size=(6, 5))}
    for given in (None, data):
        report = qareg.export.litert(model, tmp_path / "m.tflite", representative_data=given)
        assert report.max_output_difference <= 1e-5 and report.batch_size is None
    report = qareg.export.litert(model, tmp_path / "m.tflite", "int8", representative_data=data)
    assert report.max_output_difference <= 0.1 * report.output_range


@tensorflow_only
def test_recurrent_models_are_written_for_single_examples(tmp_path):
    keras.utils.set_random_seed(0)
    stack = [
        keras.Input((7, 3), name="series"),
        layers.Bidirectional(layers.LSTM(5)),
        layers.Dense(2),
    ]
    shared = qareg.share_weights(keras.Sequential(stack), levels=4)
    series = np.random.default_rng(0).normal(size=(6, 7, 3)).astype("float32")
    for given in (None, series):
        report = qareg.export.litert(shared, tmp_path / "m.tflite", representative_data=given)
        assert report.max_output_difference <= 1e-5
        assert report.batch_size == 1 and "with batches of 1" in str(report)
    (outputs,) = run_litert(tmp_path / "m.tflite", {"series": series[:1]})
    np.testing.assert_allclose(outputs, predict(shared, series[:1]), atol=1e-5)


@tensorflow_only
def test_subclassed_models_export_too(tmp_path):
    from tests.kinds import subclassed

    shared = qareg.share_weights(subclassed(), levels=4)
    report = qareg.export.litert(shared, tmp_path / "model.tflite")
    assert report.max_output_difference <= 1e-5


@tensorflow_only
def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"older")
    model = qareg.quantization_aware(small_cnn(), NearestSquared(4))
    module = importlib.import_module("keras_qareg.export.litert.proof")
    wrong = {"output_0": np.full((8, 10), 9.0)}
    monkeypatch.setattr(module, "run_by_name", lambda *_: wrong)
    with pytest.raises(ValueError, match="Expected the outputs of the file within 0.0001 of"):
        qareg.export.litert(model, path)
    monkeypatch.setattr(keras.Model, "export", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        qareg.export.litert(model, path)
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


def test_bad_targets(tmp_path):
    model = small_cnn()
    for arguments, message in [
        ((tmp_path / "none" / "m.tflite",), f"Expected a folder that exists. Received: {tmp_path}"),
        ((tmp_path / "m.lite",), "Expected a file name that ends in '.tflite'. Received: "),
        ((tmp_path / "m.tflite", "int3"), "Expected `weights` to be one of ('auto', 'smallest', "),
    ]:
        with pytest.raises(ValueError) as error:
            export_litert(model, *arguments)
        assert str(error.value).startswith(message)
    with pytest.raises(ValueError, match="Expected a built model"):
        export_litert(keras.Sequential([layers.Dense(3)]), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(BACKEND == "tensorflow", reason="the message is for other backends")
def test_other_backends_are_told_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match="Expected the TensorFlow backend"):
        qareg.export.litert(small_cnn(), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
