"""Divergences of outputs, as written in another way."""

import numpy as np
import pytest

from keras_qareg.numerics.divergence import add_up, divergence


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("logits", "kind"), [("logits", "probabilities"), ("logit", "probability")]
)
def test_logits_are_their_probabilities(logits, kind):
    one, other = np.random.default_rng(0).normal(size=(2, 40, 5)) * 3
    powers = [np.exp(x) for x in (one, other)]
    if kind == "probability":
        p, q = (x / (1 + x) for x in powers)
        expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    else:
        p, q = (x / x.sum(-1, keepdims=True) for x in powers)
        expected = (p * np.log(p / q)).sum(-1).mean()
    assert divergence(one, other, logits) == pytest.approx(expected)
    assert divergence(p, q, kind) == pytest.approx(expected)
    assert add_up(p) == (kind == "probabilities") and not add_up(one)


@pytest.mark.one_backend
def test_values_count_by_their_variance():
    one = np.random.default_rng(0).normal(size=(500, 3)) * 7
    assert divergence(one, one + 7, "values") == pytest.approx(49 / one.var(0).mean())
    assert divergence(one, one, "values") == 0
