"""How far the outputs of a network are from those of another, where nobody knows the right ones.

See also: https://keras-qareg.github.io/keras-qareg/glossary.html#divergence
"""

from __future__ import annotations

import numpy as np

KINDS = ("probabilities", "logits", "probability", "logit", "values")
_LEAST = 1e-12  # probabilities


def divergence(reference: np.ndarray, outputs: np.ndarray, kind: str) -> float:
    """The mean divergence of outputs from those of a reference.

    Args:
        reference: Array of any shape: the outputs that are right.
        outputs: Array of the same shape.
        kind: What they are. `"probabilities"` of classes along the last axis, or their `"logits"`: the
            Kullback-Leibler divergence in nats. A `"probability"` each, or its `"logit"`: the same of
            two classes. `"values"`: any numbers: the mean squared difference, relative to the variance
            of the reference (the mean of that in each place of the last axis).

    Returns:
        A float, 0 where all are equal.

    Example:

    >>> round(divergence(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]]), "probabilities"), 4)
    0.1438
    """
    right, got = np.asarray(reference, "float64"), np.asarray(outputs, "float64")
    if kind == "values":
        right, got = right.reshape(-1, right.shape[-1]), got.reshape(-1, got.shape[-1])
        spread = float(right.var(axis=0).mean())
        return float(np.square(got - right).mean()) / (spread or 1.0)
    if kind in ("logits", "logit"):
        right, got = (_probabilities(outputs, kind) for outputs in (right, got))
    right, got = np.clip(right, _LEAST, 1.0), np.clip(got, _LEAST, 1.0)
    if kind in ("probabilities", "logits"):
        # Of numbers that do not quite add up to 1; each term is 0 or more.
        return float((right * np.log(right / got) - right + got).sum(axis=-1).mean())
    other, lost = np.clip(1 - right, _LEAST, 1.0), np.clip(1 - got, _LEAST, 1.0)
    return float((right * np.log(right / got) + other * np.log(other / lost)).mean())


def _probabilities(logits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "logit":
        return np.asarray(np.tanh(logits / 2) / 2 + 0.5)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def add_up(outputs: np.ndarray) -> bool:
    """Whether outputs are probabilities of classes, as far as numbers tell: their sums are 1."""
    values = np.asarray(outputs, "float64")
    if not values.ndim or values.shape[-1] < 2 or values.min() < 0:
        return False
    return bool(np.abs(values.sum(axis=-1) - 1).max() < 1e-2)
