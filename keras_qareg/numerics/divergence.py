"""How far the outputs of a network are from those of another, where nobody knows the right ones."""

from __future__ import annotations

import numpy as np

KINDS = ("softmax", "sigmoid", "linear")
_LEAST = 1e-12  # probabilities


def divergence(reference: np.ndarray, outputs: np.ndarray, kind: str) -> float:
    """The mean divergence of outputs from those of a reference.

    Args:
        reference: Array of any shape: the outputs that are right.
        outputs: Array of the same shape.
        kind: What they are. `"softmax"`: probabilities of classes along the last axis: the
            Kullback-Leibler divergence in nats. `"sigmoid"`: a probability each: the same of two
            classes. `"linear"`: any numbers: the mean squared difference, relative to the variance of
            the reference (the mean of that in each place of the last axis).

    Returns:
        A float, 0 where all are equal.

    Example:

    >>> round(divergence(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]]), "softmax"), 4)
    0.1438
    """
    right, got = np.asarray(reference, "float64"), np.asarray(outputs, "float64")
    if kind == "linear":
        right, got = right.reshape(-1, right.shape[-1]), got.reshape(-1, got.shape[-1])
        spread = float(right.var(axis=0).mean())
        return float(np.square(got - right).mean()) / (spread or 1.0)
    right, got = np.clip(right, _LEAST, 1.0), np.clip(got, _LEAST, 1.0)
    if kind == "softmax":
        # Of numbers that do not quite add up to 1; each term is 0 or more.
        return float((right * np.log(right / got) - right + got).sum(axis=-1).mean())
    other, lost = np.clip(1 - right, _LEAST, 1.0), np.clip(1 - got, _LEAST, 1.0)
    return float((right * np.log(right / got) + other * np.log(other / lost)).mean())


def kind_of(outputs: np.ndarray, activation: str | None = None) -> str:
    """What the outputs of a network are, by their values and the name of the activation behind them.

    Numbers that add up to 1 along the last axis, of two or more, are those of a softmax; where the
    activation is a sigmoid, they are probabilities each; else any numbers.
    """
    values = np.asarray(outputs, "float64")
    if values.ndim and values.shape[-1] > 1 and values.min() >= 0:
        sums = values.sum(axis=-1)
        if np.abs(sums - 1).max() < 1e-2:
            return "softmax"
    return "sigmoid" if activation == "sigmoid" else "linear"
