"""Models of Keras 2: files without tf_keras, and, where it is installed, whatever it makes."""

import json

import h5py
import keras
import numpy as np
import pytest

import keras_qareg as qareg
from keras_qareg.models.legacy import objects
from tests.helpers import predict

RANDOM = np.random.default_rng(0)


def entry(kind, name, *nodes, **config):
    """A layer as Keras 2 writes it: nodes are names, lists of names, or references."""
    inbound = [[[n, 0, 0, {}]] if isinstance(n, str) else n for n in nodes]
    config = {"name": name, "dtype": "float32", **config}
    return {"class_name": kind, "name": name, "config": config, "inbound_nodes": inbound}


def graph(*entries, shape=(None, 4, 4, 2), outputs=None):
    """A Functional model with one input, `x`, as Keras 2 writes it."""
    first = entry("InputLayer", "x", batch_input_shape=list(shape), sparse=False, ragged=False)
    outputs = outputs or [[entries[-1]["name"], 0, 0]]
    config = {"name": "old", "layers": [first, *entries], "input_layers": [["x", 0, 0]]}
    return {"class_name": "Functional", "config": {**config, "output_layers": outputs}}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes an HDF5 file of Keras 2, whose weights are `{layer: {name: values}}`; tf_keras is away."""
    monkeypatch.setattr(objects, "tf_keras", lambda: None)

    def write(config, weights, training=None, **attributes):
        path = tmp_path / "old.h5"
        with h5py.File(path, "w") as file:
            file.attrs.update(keras_version="2.9.0", backend="tensorflow", **attributes)
            file.attrs["model_config"] = json.dumps(config)
            if training is not None:
                file.attrs["training_config"] = json.dumps(training)
            groups = file.create_group("model_weights")
            groups.attrs["layer_names"] = list(weights)
            for name, values in weights.items():
                group = groups.create_group(name)
                group.attrs["weight_names"] = list(values)
                for inner, value in values.items():
                    group[inner] = np.asarray(value, "float32")
        return path

    return write


DEPTHWISE = entry(
    "DepthwiseConv2D", "depth", "x", kernel_size=[1, 1], groups=1, activation="hard_sigmoid"
)
KERNEL, BIAS = RANDOM.normal(size=(1, 1, 2, 1)), RANDOM.normal(size=2)
WEIGHTS = {"depth": {"depth/depthwise_kernel:0": KERNEL, "depth/bias:0": BIAS}}
IMAGES = RANDOM.normal(size=(3, 4, 4, 2)).astype("float32")
TRAINING = {
    "loss": {
        "class_name": "CategoricalCrossentropy",
        "config": {"reduction": "auto", "from_logits": True, "fn": "categorical_crossentropy"},
    },
    "metrics": [
        [
            {
                "class_name": "MeanMetricWrapper",
                "config": {"name": "accuracy", "fn": "categorical_accuracy"},
            }
        ]
    ],
    "optimizer_config": {
        "class_name": "Custom>Adam",
        "config": {"name": "Adam", "lr": 0.25, "decay": 0.0, "jit_compile": True, "clipnorm": None},
    },
}


def test_a_file_without_tf_keras(written, tmp_path):
    """What Keras 3 does not read: `groups`, operations, nested models, activations of other slopes."""
    operation = entry("TFOpLambda", "tf.math.multiply", function="math.multiply")
    operation["inbound_nodes"] = [["depth", 0, 0, {"y": ["x", 0, 0], "name": None}]]
    part = entry("SlicingOpLambda", "part", function="__operators__.getitem")
    every = {"start": None, "stop": None, "step": None}
    spec = {"slice_spec": [every, 1, {"start": None, "stop": None, "step": 2}]}
    part["inbound_nodes"] = [["tf.math.multiply", 0, 0, spec]]
    dense = entry("Dense", "dense", units=2, use_bias=False, batch_input_shape=[None, 2, 2])
    inner = entry("Sequential", "inner", [["part", 0, 0, {}]], layers=[dense])
    twice = [["inner", 1, 0, {}]]  # counted from 1: making it was the first call
    inner["inbound_nodes"].append(twice)
    config = graph(DEPTHWISE, operation, part, inner, outputs=[["inner", 2, 0]])
    kernel = RANDOM.normal(size=(2, 2))
    path = written(config, {**WEIGHTS, "inner": {"dense/kernel:0": kernel}}, TRAINING)
    model = qareg.from_tf_keras(path)
    depth = np.clip(0.2 * (IMAGES * KERNEL[0, 0, :, 0] + BIAS) + 0.5, 0, 1) * IMAGES
    expected = depth[:, 1, ::2] @ kernel @ kernel
    np.testing.assert_allclose(predict(model, IMAGES), expected, rtol=1e-4, atol=1e-6)
    assert model.compiled and float(model.optimizer.learning_rate) == 0.25
    assert model.loss.get_config()["from_logits"] is True
    model.save(tmp_path / "new.keras")
    again = keras.saving.load_model(tmp_path / "new.keras")
    np.testing.assert_array_equal(predict(again, IMAGES), predict(model, IMAGES))
    assert not qareg.from_tf_keras(path, compile=False).compiled


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("package", "custom", "reason"),
    [
        (None, None, "tf_keras is not installed (pip install 'keras-qareg[tf-keras]')"),
        (object(), None, "tf_keras cannot open it (TypeError: groups)"),
        (object(), {"Mine": keras.layers.Identity}, "tf_keras does not know `custom_objects`"),
    ],
)
def test_what_is_not_compared_is_said(written, monkeypatch, package, custom, reason):
    def opened(path):
        raise TypeError("groups\nand more")

    path = written(graph(DEPTHWISE), WEIGHTS)
    monkeypatch.setattr(objects, "tf_keras", lambda: package)
    monkeypatch.setattr(objects, "opened", opened)
    with pytest.warns(UserWarning) as told:
        qareg.from_tf_keras(path, custom_objects=custom)
    assert str(told[0].message) == (
        f"The outputs of the model in {path} are not compared with those in Keras 2, because {reason}. "
        "Compare them where you can."
    )


def refusals():
    """Configurations and weights that are refused, and in which words."""
    x = [["x", 0, 0, {}]]
    yield (
        graph({**DEPTHWISE, "config": {**DEPTHWISE["config"], "groups": 2}}),
        WEIGHTS,
        "Expected settings that layers of Keras 3 have. Received: DepthwiseConv2D 'depth' with "
        "groups=2.",
    )
    yield (
        graph(DEPTHWISE),
        {"depth": {"depth/depthwise_kernel:0": KERNEL}},
        "Expected layer 'depth' (DepthwiseConv2D) with weights ['depth/kernel', 'depth/bias']. "
        "Received: ['depth/depthwise_kernel:0'].",
    )
    yield (
        graph(DEPTHWISE),
        {"depth": {**WEIGHTS["depth"], "depth/bias:0": np.zeros(3)}},
        "Expected shape (2,) for 'depth/bias'. Received: (3,), of 'depth/bias:0'.",
    )
    yield (
        graph(DEPTHWISE),
        {},
        "Expected a value for each weight of the model. Received: none for ['depth/kernel', "
        "'depth/bias'].",
    )
    yield (
        graph(DEPTHWISE),
        {**WEIGHTS, "gone": {"gone/kernel:0": KERNEL}},
        "Expected weights of layers that the model has. Received: ['gone/kernel:0'] of 'gone'.",
    )
    yield (
        graph(entry("Mine", "mine", x)),
        {},
        "Expected layers that Keras 3 has. Received: 'mine' of class Mine. Pass a class of Keras 3 with "
        "the same weights as custom_objects={'Mine': ...}.",
    )
    yield (
        graph(entry("Lambda", "code", x, function=["4wEA", None, None])),
        {},
        "Expected a model without code in it. Received: Lambda layer 'code'. Write a layer of your own "
        "in its place in the Keras 2 model, and the same for Keras 3 in `custom_objects`.",
    )
    yield (
        graph(entry("QuantizeWrapperV2", "quant_conv", x)),
        {},
        "Expected a float model. Received: 'quant_conv' of class QuantizeWrapperV2, of TFMOT's "
        "quantize_model. Convert the float model that it was made from, and quantize that here.",
    )
    yield (
        graph(entry("TFOpLambda", "op", ["x", 0, 0, {}], function="signal.fft")),
        {},
        "Expected operations that Keras 3 has. Received: tf.signal.fft in 'op'. Write a layer of your "
        "own in its place in the Keras 2 model, and the same for Keras 3 in `custom_objects`.",
    )
    yield (
        graph(entry("StringLookup", "words", x, vocabulary=None)),
        {},
        "Expected StringLookup 'words' with `vocabulary` in its configuration. Received: none. Files do "
        "not hold there what `adapt` found: convert the tf_keras model itself, or give the layer "
        "`vocabulary`.",
    )


@pytest.mark.one_backend
@pytest.mark.parametrize(("config", "weights", "said"), refusals(), ids=range(10))
def test_nothing_is_left_out(written, config, weights, said):
    with pytest.raises(ValueError) as error:
        qareg.from_tf_keras(written(config, weights))
    assert str(error.value) == said


@pytest.mark.one_backend
def test_what_is_no_model_of_keras_2(written, tmp_path):
    path = written(graph(DEPTHWISE), WEIGHTS)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "3.1.0"
    said = f"{path}, a file of Keras 3.1.0. Open it with keras.saving.load_model."
    with pytest.raises(ValueError, match=said):
        qareg.from_tf_keras(path)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="Received: Sequential of Keras 3"):
        qareg.from_tf_keras(model)
    (tmp_path / "saved").mkdir()
    with pytest.raises(ValueError, match="a folder without saved_model.pb"):
        qareg.from_tf_keras(tmp_path / "saved")
    (tmp_path / "saved" / "saved_model.pb").touch()
    with pytest.raises(ImportError) as error:
        qareg.from_tf_keras(tmp_path / "saved")
    assert str(error.value) == (
        f"Expected tf_keras, to open {tmp_path}/saved, which Keras 2 wrote. Received: none. Install it "
        "with pip install 'keras-qareg[tf-keras]'."
    )


class Doubled(keras.layers.Layer):
    """A layer of the user."""

    def call(self, inputs):
        return 2 * inputs


@pytest.mark.one_backend
def test_custom_objects_and_a_loss_that_is_unknown(written):
    config = graph(entry("Mine", "mine", [["x", 0, 0, {}]]))
    training = {**TRAINING, "loss": "unheard"}
    path = written(config, {}, training)
    with pytest.warns(
        UserWarning, match="'old' is not compiled, because Keras 3 has not its optimizer"
    ):
        model = qareg.from_tf_keras(path, custom_objects={"Mine": Doubled})
    np.testing.assert_array_equal(predict(model, IMAGES), 2 * IMAGES)
    assert not model.compiled
