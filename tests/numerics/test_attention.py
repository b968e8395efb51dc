"""Soft values and their gradients, against an N x k reference in float64."""

import numpy as np
import pytest
from keras import ops

from keras_qareg.numerics import attention, compiled
from keras_qareg.numerics.attention import soft_values
from tests.helpers import gradients

RNG = np.random.default_rng(0)


def reference(weights, centroids, temperature, upstream):
    """Values, and gradients of `sum(upstream * values)`, with tensors of weights x centroids."""
    w, c = weights.reshape(-1, 1).astype("float64"), centroids[None].astype("float64")
    logits = -np.square(w - c) / temperature
    attention = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    values = (attention * c).sum(axis=1, keepdims=True)
    upstream = upstream.reshape(-1, 1)
    # The Jacobian of the softmax: da_j = a_j (dl_j - sum_m a_m dl_m).
    by_logits = upstream * attention * (c - values)
    by_weights = (by_logits * -2 * (w - c) / temperature).sum(axis=1)
    by_centroids = (upstream * attention + by_logits * 2 * (w - c) / temperature).sum(axis=0)
    return values.reshape(weights.shape), by_weights.reshape(weights.shape), by_centroids


@pytest.mark.parametrize("chunk", [None, 64])
@pytest.mark.parametrize("levels", [2, 16, 37, 256])
def test_soft_values_and_gradients_are_those_of_the_formula(levels, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(compiled, "CHUNK", chunk)
        monkeypatch.setattr(attention, "_CHUNK", chunk)
    weights = RNG.normal(size=(10, 21 + bool(chunk))).astype("float32")
    upstream = RNG.normal(size=weights.shape).astype("float32")
    centroids = RNG.permutation(np.linspace(-2, 2, levels)).astype("float32")
    gap = 4 / (levels - 1)
    for share in (1.0, 0.05):
        temperature = np.float32(share * gap**2)

        def total(weights, centroids, temperature=temperature):
            return ops.sum(soft_values(weights, centroids, temperature) * ops.array(upstream))

        value, by_weights, by_centroids = reference(weights, centroids, temperature, upstream)
        found, slopes = gradients(total, weights, centroids, graph=chunk is not None)
        assert found == pytest.approx((value * upstream).sum(), rel=1e-4)
        np.testing.assert_allclose(slopes[0], by_weights, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(slopes[1], by_centroids, rtol=2e-3, atol=2e-3)


def test_the_colder_the_harder():
    weights, centroids = RNG.normal(size=500).astype("float32"), np.float32([1.0, -1.0, 0.25])
    nearest = centroids[np.abs(weights[:, None] - centroids).argmin(axis=1)]
    for temperature in (1e-5, 0.0):
        found = ops.convert_to_numpy(soft_values(weights, centroids, temperature))
        near = np.abs(np.abs(weights[:, None] - centroids)).argsort(axis=1)
        margin = np.abs(weights - centroids[near[:, :2]].mean(axis=1)) > 1e-3
        np.testing.assert_allclose(found[margin], nearest[margin], atol=1e-6)
    warm = ops.convert_to_numpy(soft_values(weights, centroids, 1e6))
    np.testing.assert_allclose(warm, np.full(500, centroids.mean()), atol=1e-4)
