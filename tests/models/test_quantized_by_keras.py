"""`keras.Model.quantize`, before and after the transforms of this package."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.regularizers import NearestSquared
from tests.helpers import BACKEND, error_of, predict

pytestmark = pytest.mark.one_backend

INPUTS = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
TRANSFORMS = {
    "share_weights": lambda model: qareg.share_weights(model, levels=3),
    "quantization_aware": lambda model: qareg.quantization_aware(model, NearestSquared(3)),
    "wnq": lambda model: qareg.wnq(model, skip=()),
}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, "relu", name="a"), layers.Dense(4, name="b")],
        name="net",
    )


@transforms
def test_what_keras_quantized_is_not_transformed(transform):
    model = net()
    model.get_layer("b").quantize("int8")
    assert error_of(lambda: transform(model)) == (
        "Expected a model in floating point. Received: model 'net' with layers that Keras quantized "
        "(['b']). Transform the model first, take keras_qareg.strip of it, and call `quantize` on that."
    )


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_what_keras_quantized_is_copied(mode):
    model = net()
    model.quantize(mode)
    np.testing.assert_array_equal(predict(qareg.strip(model), INPUTS), predict(model, INPUTS))


@pytest.mark.parametrize("name", ["share_weights", "quantization_aware"])
def test_what_is_wrapped_is_not_quantized_by_keras(name):
    changed = TRANSFORMS[name](net())
    expected = predict(changed, INPUTS)
    kind = type(changed.get_layer("a")).__name__
    assert error_of(lambda: changed.quantize("int8")) == (
        f"Expected a plain layer to quantize with Keras. Received: layer 'a' of type {kind}. Take "
        "keras_qareg.strip(model) first, and quantize what it returns."
    )
    np.testing.assert_array_equal(predict(changed, INPUTS), expected)
    plain = qareg.strip(changed)
    plain.quantize("int8")
    np.testing.assert_allclose(predict(plain, INPUTS), expected, atol=0.05)


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_files_of_what_keras_quantized_are_written_or_refused_in_words(mode, tmp_path):
    model = net()
    model.quantize(mode)
    message = (
        "Expected a model in floating point. Received: model 'net' with layers that Keras quantized"
    )
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match=message):
            qareg.export.litert(model, tmp_path / "model.tflite")
    if mode == "float8":
        with pytest.raises(ValueError, match=message):
            qareg.export.save_archive(model, tmp_path / "model.qareg")
    else:
        file = qareg.export.save_archive(model, tmp_path / "model.qareg")
        assert qareg.export.verify(model, file).startswith("equal")
    assert not list(tmp_path.glob("*.tflite"))
