"""Each private part of Keras that the package uses: these fail where Keras changes it."""

import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import keras_private
from tests.helpers import compiled, digits, predict, small_cnn
from tests.kinds import Subclassed, functional, subclassed

PACKAGE = Path(qareg.layers.__file__).parent.parent


def test_children_and_layers_inside():
    model = functional()
    inside = model.get_layer("inside")
    assert inside in keras_private.children(model)
    assert inside.get_layer("deep") not in keras_private.children(model)
    assert inside.get_layer("deep") in keras_private.layers_inside(model)
    assert model in keras_private.layers_inside(model)


def test_children_are_tracked_as_they_are_set():
    model = Subclassed()
    old, order = model.entry, [layer.name for layer in model.layers]
    model.entry = layers.Dense(10, name="entry")
    keras_private.track_children(
        model, [model.entry, *(layer for layer in model.layers if layer.name != "entry")]
    )
    assert [layer.name for layer in model.layers] == order
    model(np.ones((1, 8), "float32"))
    assert old not in model.layers and model.entry in model.layers
    assert not old.built and model.entry.built


def test_graphs_are_told_from_other_models():
    assert keras_private.is_graph(small_cnn()) and keras_private.is_graph(functional())
    assert not keras_private.is_graph(subclassed())
    assert not keras_private.is_graph(layers.Dense(3))


def test_a_wrapper_takes_the_call_signature():
    """Without it Keras does not pass a mask on, nor `training`."""
    seen = {}

    class Masked(layers.Dense):
        def call(self, inputs, training=None, mask=None):
            seen.update(training=training, mask=mask)
            return super().call(inputs)

    wrapped = qareg.layers.SharedWeights(Masked(3), 4)
    wrapped(layers.Masking()(np.ones((2, 4, 5), "float32")), training=True)
    assert seen["training"] is True and tuple(seen["mask"].shape) == (2, 4)


@pytest.mark.parametrize("make", [small_cnn, functional])
def test_a_view_is_not_compiled_and_the_model_stays_so(make):
    model = make()
    model.compile("sgd", "mse")
    view = keras_private.uncompiled(model)
    assert model.compiled and not view.compiled
    assert isinstance(view, type(model)) and view.layers == model.layers
    assert not keras.models.clone_model(view).compiled


def test_threads_leave_a_compiled_model_as_it_was():
    model = compiled(small_cnn())
    results, errors = [], []

    def share():
        try:
            results.append(qareg.share_weights(model, 4))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=share) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and model.compiled
    assert all(shared.compiled for shared in results) and len(results) == 6
    images = digits(8)[0]
    for shared in results[1:]:
        np.testing.assert_array_equal(predict(shared, images), predict(results[0], images))


def test_normalization_by_batches_and_back():
    """The patched `call`, `trainable` and `momentum` are as they were, also after an error."""
    layer = layers.BatchNormalization(trainable=False, momentum=0.9)
    layer.build((None, 2))
    data = np.array([[1.0, 5.0], [3.0, 5.0]], "float32")
    with pytest.raises(KeyError), keras_private.normalizing_by_batches([layer]):
        layer.momentum = 0.0
        layer(data, training=False)
        raise KeyError
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_mean), [2.0, 5.0])
    assert (layer.momentum, layer.trainable, "call" in vars(layer)) == (0.9, False, False)


def test_frozen_layers_train_again_where_they_did():
    model = small_cnn(normalize=True)
    model.get_layer("norm").gamma.trainable = model.get_layer("fc").trainable = False
    before = [weight.path for weight in model.trainable_variables]
    with keras_private.frozen(model.layers[:3]):
        assert {weight.path.split("/")[-2] for weight in model.trainable_variables} == {"out"}
        assert not model.get_layer("norm").trainable
    assert [weight.path for weight in model.trainable_variables] == before
    assert model.get_layer("norm").trainable and not model.get_layer("fc").trainable


def test_operations_get_names_that_layers_have_not():
    inputs = keras.Input((2,))
    added = ops.square(inputs) + 1.0
    outputs = layers.Dense(1, name=added._keras_history.operation.name)(added)
    with pytest.raises(ValueError, match="All operation names should be unique"):
        keras.Model(inputs, outputs)
    taken = added._keras_history.operation.name
    keras_private.name_apart(outputs, {taken})
    names = {operation.name for operation in keras.Model(inputs, outputs).operations}
    assert {taken, f"{taken}_op1"} <= names


@pytest.mark.one_backend
def test_private_names_are_used_in_this_module_alone():
    private = ("._flatten_layers", "._layers", "_run_through_graph", "._call_signature", ".call = ")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "keras_private.py":
            text = path.read_text()
            assert not [name for name in private if name in text], path.name
