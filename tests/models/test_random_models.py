"""Whatever a model is made of, a copy of it has all of it, and computes the same to the bit."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import ops

import keras_qareg as qareg
from keras_qareg.regularizers import NearestSquared
from tests.helpers import BACKEND, arrays
from tests.models.random_models import VALUES, models

SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],  # shrinking takes minutes
    "suppress_health_check": list(HealthCheck),
}


def outputs(model, inputs):
    return arrays(model(inputs, training=False))[0].copy()


def assert_same(found, expected):
    """To the bit; PyTorch multiplies by other programs where an array lies otherwise in memory."""
    if BACKEND == "torch":
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, expected)


def reset(model):
    """States as in a model that was just loaded."""
    for layer in parts_of(model):
        if hasattr(layer, "reset_state") and getattr(layer, "stateful", False):
            layer.reset_state()


def described(model):
    """Of each weight: name, shape, whether it trains, its constraint and its values."""
    return [
        (
            weight.name,
            tuple(weight.shape),
            weight.trainable,
            type(weight.constraint),
            ops.convert_to_numpy(weight).tolist(),
        )
        for weight in model.weights
    ]


def values(model):
    """Of each weight: name, shape and values; what trains, Keras's files do not say of every part."""
    return [weight[:2] + weight[4:] for weight in described(model)]


def structure(model):
    """Kind, name and flag of every layer with weights; others, inside of Keras's, are numbered anew."""
    return [
        (layer.name, type(layer), layer.trainable) for layer in parts_of(model) if layer.weights
    ]


def parts_of(model):
    return model._flatten_layers()


def loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def check(model, inputs, folder):
    before, kinds = described(model), structure(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kernels that are too small
        copies = [qareg.strip(model)]
        try:
            copies.append(qareg.strip(qareg.quantization_aware(model, NearestSquared(VALUES))))
            shared = qareg.share_weights(model, VALUES, table="float32")
        except ValueError as error:
            assert "Expected a layer to " in str(error)  # no kernel is large enough
            shared = None
    first = [described(copied) for copied in copies]
    expected = outputs(model, inputs)
    for copied, found in zip(copies, first, strict=True):
        assert found == before
        assert structure(copied) == kinds
        assert_same(outputs(copied, inputs), expected)
    if shared is not None:
        stripped = qareg.strip(shared)
        assert values(stripped) == [weight[:2] + weight[4:] for weight in before]
        assert_same(outputs(stripped, inputs), expected)
        # What is looked up may lie in memory otherwise, and be multiplied by another program.
        np.testing.assert_allclose(outputs(shared, inputs), expected, rtol=1e-5, atol=1e-5)
        copies += [stripped, shared]
    check_loaded(model, copies, inputs, folder)


def check_loaded(model, copies, inputs, folder):
    reset(model)
    expected = outputs(model, inputs)
    try:
        np.testing.assert_array_equal(outputs(loaded(model, folder), inputs), expected)
    except (AssertionError, ValueError, KeyError):
        return  # Keras's own fault
    for copied in copies:
        try:
            again = loaded(copied, folder)
        except ValueError as error:
            assert "to have its changed layers in its configuration" in str(error)
            assert any(isinstance(layer, qareg.layers.SharedWeights) for layer in parts_of(copied))
        else:
            np.testing.assert_allclose(outputs(again, inputs), expected, rtol=1e-5, atol=1e-5)
            # Stripped: the float kernels inside shared layers are in no file.
            assert values(qareg.strip(again)) == values(qareg.strip(copied))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=15 if BACKEND == "tensorflow" else 6, **SETTINGS)
@given(pair=models())
def test_copies_of_random_models(pair, tmp_path_factory):
    check(*pair, tmp_path_factory.mktemp("random"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=500, **{**SETTINGS, "derandomize": False})
@given(pair=models())
def test_copies_of_many_random_models(pair, tmp_path_factory):
    check(*pair, tmp_path_factory.mktemp("random"))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=10, **SETTINGS)
@given(pair=models(spellings=st.just("boxed")))
def test_layers_out_of_sight_are_an_error_or_copied(pair):
    """Keras tracks these layers, but a copy finds them in no attribute."""
    model, inputs = pair
    hidden = any(getattr(part, "spelling", "") == "boxed" for part in parts_of(model))
    try:
        copied = qareg.strip(model)
    except ValueError as error:
        assert hidden and "Expected a copy of model" in str(error)
    else:
        assert_same(outputs(copied, inputs), outputs(model, inputs))
