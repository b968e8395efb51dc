"""Operations that are compiled, against NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_qareg.numerics.compiled import segment_sums
from tests.helpers import gradients

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("shape", [(1,), (4, 5), (3, 3, 8, 16)])
def test_segment_sums_adds_what_lies_at_each_place(shape, dtype):
    values = np.asarray(RNG.integers(-50, 50, shape), dtype)
    places = RNG.integers(0, 5, shape).astype("int32")
    sums = segment_sums(ops.array(values), ops.array(places), 7)
    expected = np.bincount(places.ravel(), values.ravel(), minlength=7)
    assert sums.dtype == ops.array(values).dtype
    np.testing.assert_array_equal(ops.convert_to_numpy(sums), expected)


def test_segment_sums_are_the_same_in_a_graph():
    """There they are compiled on TensorFlow; the gradient of each value is that of its sum."""
    values = RNG.normal(size=(4, 50)).astype("float32")
    places = RNG.integers(0, 6, values.shape).astype("int32")
    factors = np.arange(1, 7, dtype="float32")

    def weighted(values):
        return ops.sum(ops.multiply(segment_sums(values, ops.array(places), 6), factors))

    value, (gradient,) = gradients(weighted, values, graph=True)
    np.testing.assert_allclose(value, (values * factors[places]).sum(), rtol=1e-4)
    np.testing.assert_array_equal(gradient, factors[places])
