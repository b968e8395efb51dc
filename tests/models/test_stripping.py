"""What `strip` writes into a model that the user made."""

import keras
import numpy as np
import pytest

import keras_qareg as qareg
from tests.helpers import error_of, predict


@pytest.mark.one_backend
def test_strip_into_a_model_that_computes_otherwise_is_refused():
    def net(activation="relu"):
        norm = keras.layers.Normalization()
        stack = [norm, keras.layers.Dense(8, activation), keras.layers.Dense(3)]
        return norm, keras.Sequential([keras.Input((4,)), *stack])

    x = 3 + 5 * np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    norm, model = net()
    norm.adapt(x)
    shared = qareg.share_weights(model, 4)
    again = qareg.strip(shared, into=net()[1])  # which did not adapt
    np.testing.assert_allclose(predict(again, x), predict(qareg.strip(shared), x), atol=1e-5)
    other = net("tanh")[1]
    before = [value.copy() for value in other.get_weights()]
    assert "Expected `into` to be a model of the architecture of" in error_of(
        qareg.strip, shared, into=other
    )
    for value, kept in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)
