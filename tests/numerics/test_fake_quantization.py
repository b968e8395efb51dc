"""Fake quantization against what it is defined by, and against differences."""

import numpy as np
import pytest
from keras import ops

from keras_qareg.numerics import fake_quantization as fake
from tests.helpers import arrays, error_of, gradients

RNG = np.random.default_rng(0)


def reference(x, step, zero_point, low, high, upstream):
    """Value and gradients, element by element, as LSQ+ (arXiv 2004.09576, equations 4 to 6) has them."""
    values, by_x, by_step, by_zero = np.zeros_like(x), np.zeros_like(x), 0.0, 0.0
    zero = np.rint(zero_point)
    for place, value in np.ndenumerate(x):
        code = np.rint(value / step) + zero
        clipped = min(max(code, low), high)
        values[place] = (clipped - zero) * step
        if code == clipped:
            by_x[place] = upstream[place]
            by_step += upstream[place] * (clipped - zero - value / step)
        else:
            by_step += upstream[place] * (clipped - zero)
            by_zero -= upstream[place] * step
    return values, by_x, by_step, by_zero


@pytest.mark.parametrize(("zero_point", "low", "high"), [(-3.4, -8, 7), (0.0, -128, 127)])
@pytest.mark.parametrize("graph", [False, True])
def test_values_and_gradients_are_those_of_lsq_plus(zero_point, low, high, graph):
    x = RNG.normal(size=(5, 7, 3)).astype("float32")
    upstream = RNG.normal(size=x.shape).astype("float32")
    step = np.float32(0.17 if low == -8 else 0.013)

    def loss(x, step, zero):
        return ops.sum(fake.fake_quantized(x, step, zero, low, high) * ops.array(upstream))

    given = x, step, np.float32(zero_point)
    values, *expected = reference(*given, low, high, upstream)
    assert (np.abs(values) < np.abs(x) - step).any()  # some are clipped
    (found,) = arrays(fake.fake_quantized(*map(ops.convert_to_tensor, given), low, high))
    np.testing.assert_allclose(found, values, atol=1e-7)
    _, slopes = gradients(loss, *given, graph=graph)
    for slope, its in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(slope, its, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_kernel_has_a_step_a_channel_and_passes_gradients_straight(axes):
    kernel = RNG.normal(size=(3, 3, 4, 2)).astype("float32")
    kernel[..., 1, 0] = 0.0
    codes, steps = arrays(*fake.integer_kernel(ops.convert_to_tensor(kernel), axes, 127))
    largest = np.abs(kernel).max(axis=tuple(range(4 - axes)))
    np.testing.assert_allclose(steps, np.where(largest > 0, largest / 127, 1.0), rtol=1e-6)
    assert steps.shape == kernel.shape[4 - axes :] and np.array_equal(codes, np.rint(codes))
    assert np.abs(kernel - codes * steps).max() <= steps.max() / 2 + 1e-7
    (value,) = arrays(fake.fake_quantized_kernel(ops.convert_to_tensor(kernel), axes, 127))
    np.testing.assert_array_equal(value, codes * steps)
    weights = RNG.normal(size=kernel.shape).astype("float32")

    def loss(kernel):
        return ops.sum(fake.fake_quantized_kernel(kernel, axes, 127) * ops.array(weights))

    _, (slope,) = gradients(loss, kernel)
    np.testing.assert_array_equal(slope, weights)


@pytest.mark.one_backend
def test_the_grid_of_a_range():
    assert fake.grid_of(0.0, 2.55, 8, False) == (np.float32(0.01), -128)
    assert fake.grid_of(-2.55, -1.0, 8, False) == (np.float32(0.01), 127)
    assert fake.grid_of(-2.0, 1.0, 16, True) == (np.float32(2 / 32767), 0)
    assert fake.code_range(16) == (-32768, 32767)
    said = "Expected a finite range of activations, which are not all 0. Received: from "
    for low, high in ((0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf")), (2.0, 1.0)):
        assert error_of(fake.grid_of, low, high, 8, False) == f"{said}{low} to {high}"
