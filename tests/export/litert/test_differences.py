"""Where files that round are furthest from Keras."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert import differences, proof
from keras_qareg.export.litert.differences import LayerDifference, layer_differences
from keras_qareg.export.litert.signature import Signature
from tests.export.litert.test_micro import IMAGES, network
from tests.helpers import error_of, tensorflow_only


@pytest.mark.one_backend
def test_decibels():
    want = np.array([3.0, 4.0])
    assert differences._decibels(want, np.array([3.0, 4.5])) == pytest.approx(20)
    assert differences._decibels(want, want) == differences._decibels(0 * want, want) == np.inf
    assert str(LayerDifference("a/b", 20.04)) == "a/b 20.0 dB"


@tensorflow_only
def test_layers_of_forms_that_round(tmp_path):
    model, path = network(normalize=True), tmp_path / "m.tflite"
    for weights, data in (("int8", IMAGES), ("float16", None)):
        report = qareg.export.litert(model, path, weights, data)
        found = report.differences
        assert len(found) > 3
        assert list(found) == sorted(found, key=lambda part: part.decibels)
        low, high = (45, 90) if weights == "float16" else (10, 45)
        assert all(low < part.decibels < high for part in found), weights
        assert {part.layer for part in found} <= {layer.name for layer in model.layers}
        assert f"(signal to noise): {found[0]}, {found[1]}, {found[2]}\n" in str(report)
    for weights in ("auto", "tflm"):
        report = qareg.export.litert(model, path, weights)
        assert report.differences == () and "furthest" not in str(report)


@tensorflow_only
def test_models_inside_and_the_layer_that_is_to_blame(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(12, activation="relu", name="first")], name="inner"
    )
    inputs = keras.Input((6,), name="x")
    # One range for both: what is small is lost where they come together.
    small, wide = layers.Dropout(0.5)(inner(inputs)), layers.Dense(1, name="wide")(inputs)
    both = layers.Concatenate(name="both")([small, wide])
    model = keras.Model(inputs, layers.Dense(5, name="last")(both))
    model.get_layer("wide").kernel.assign(1e3 * np.ones((6, 1)))
    kernel = model.get_layer("last").kernel
    kernel.assign(np.concatenate([kernel[:12], 0 * kernel[12:]]))
    data = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    message = error_of(qareg.export.litert, model, tmp_path / "m.tflite", "int8", data)
    told = message.partition("Furthest from Keras (signal to noise): ")[2].split(", ")
    assert {part.split(" ")[0] for part in told[:2]} == {"last", "inner/first"}
    assert "more than half of what they vary by" in message and not [*tmp_path.iterdir()]
    monkeypatch.setattr(proof, "_UNEXPLAINED", np.inf)
    report = qareg.export.litert(model, tmp_path / "m.tflite", "int8", data)
    found = {part.layer: part.decibels for part in report.differences}
    # Dropout gives what the layer before it gives, and is not told of.
    assert set(found) == {"last", "inner/first", "wide", "both"}
    assert found.pop("last") < 5 and found.pop("inner/first") < 5
    assert min(found.values()) > 25


@tensorflow_only
def test_no_export_fails_for_it(tmp_path, monkeypatch):
    class Sub(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Sub()
    x = np.ones((4, 6), "float32")
    model(x)
    assert qareg.export.litert(model, tmp_path / "m.tflite", "float16").differences == ()
    whole = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    found = layer_differences(whole, Signature.of(whole), {"x": x}, b"no file", b"no file")
    assert found == ()


@tensorflow_only
def test_where_operators_are_in_another_order_values_decide(tmp_path, monkeypatch):
    model, path = network(normalize=True), tmp_path / "m.tflite"
    want = qareg.export.litert(model, path, "int8", IMAGES).differences
    real = differences._places

    def renamed(read):
        places = real(read)
        return [(f"{read.subgraphs[0].tensors[0].type}{name}", place) for name, place in places]

    monkeypatch.setattr(differences, "_places", renamed)
    monkeypatch.setattr(differences, "_CASTS", ())
    got = qareg.export.litert(model, path, "int8", IMAGES).differences
    assert [part.layer for part in got] == [part.layer for part in want]
