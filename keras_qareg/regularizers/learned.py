"""Learned basins: `NearestSquared`, `NearestExponential` (arXiv 2602.03614); `DKM` (2108.12659)."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_qareg.choices import check_number, check_pair
from keras_qareg.numerics import clustering, penalties
from keras_qareg.numerics.attention import soft_values
from keras_qareg.regularizers.base import QuantizationRegularizer

# The least width between centroids, relative to the largest of them.
_NARROW = 1e-3


class _LearnedBasins(QuantizationRegularizer):
    learned = True

    def basins(self) -> np.ndarray:
        return self._with_zero(np.linspace(-0.5, 0.5, self.levels, dtype="float32"))

    def fit_basins(self, centroids: ArrayLike) -> np.ndarray:
        centroids = np.asarray(centroids, "float32")
        return self._with_zero(np.pad(centroids, (0, self.levels - centroids.size), mode="edge"))

    def _with_zero(self, centroids: np.ndarray) -> np.ndarray:
        return clustering.with_zero(centroids) if self.zero_basin is True else centroids

    def __call__(self, x: Any) -> Any:
        name = type(self).__name__
        raise ValueError(
            f"{name} learns its centroids, and a `kernel_regularizer` has nowhere to keep them. "
            f"Wrap the layer, `keras_qareg.layers.QuantizationAware(layer, {name}(...))`, or the "
            "whole model, `keras_qareg.quantization_aware(model)`, which moves the regularizer "
            "into a wrapper."
        )


@keras.saving.register_keras_serializable(package="keras_qareg")
class NearestSquared(_LearnedBasins):
    """Squared distance to the nearest of `levels` learned centroids: `strength min_j (w - c_j)^2`.

    Use it in `layers.QuantizationAware` or `keras_qareg.quantization_aware`, which hold the
    centroids (arXiv 2602.03614).

    Args:
        levels: Integer from 2 to 256. Defaults to 16.
        strength: Non-negative float; `None`: a default that depends on `levels`.
        zero_basin: Whether one basin is exactly 0 and stays there; weights that are 0 stay so in
            training. Defaults to
            `"auto"`: `quantization_aware` says so of kernels of which a tenth or more is exactly 0, as
            of pruned ones, and nothing else does.

    Raises:
        ValueError: If `levels` or `strength` is out of its range, or when called outside a wrapper.

    Example:

    >>> NearestSquared(levels=4).levels
    4

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
    """

    _strengths = (30.0, 1.0, 0.05, 0.01)

    def penalty(self, weights: Any, basins: Any) -> Any:
        return penalties.nearest_squared(weights, basins)


@keras.saving.register_keras_serializable(package="keras_qareg")
class NearestExponential(_LearnedBasins):
    """Saturating distance to the nearest learned centroid: `1 - exp(-sharpness min_j |w - c_j|)`.

    Far weights pay hardly more than near ones, so that none is dragged from where the task needs
    it (arXiv 2602.03614). Use it in `layers.QuantizationAware` or `keras_qareg.quantization_aware`.

    Args:
        levels: Integer from 2 to 256. Defaults to 16.
        strength: Non-negative float; `None`: a default that depends on `levels`.
        sharpness: Positive float, how fast the penalty saturates. Defaults to 1.
        zero_basin: Whether one basin is exactly 0 and stays there; weights that are 0 stay so in
            training. Defaults to
            `"auto"`: `quantization_aware` says so of kernels of which a tenth or more is exactly 0, as
            of pruned ones, and nothing else does.

    Raises:
        ValueError: If an argument is out of its range, or when called outside a wrapper.

    Example:

    >>> qareg.regularizers.get({"class_name": "NearestExponential", "config": {"levels": 4}}).levels
    4

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
    """

    _strengths = (3.0, 0.2, 2e-2, 5e-3)

    def __init__(
        self,
        levels: int = 16,
        *,
        strength: float | None = None,
        sharpness: float = 1.0,
        zero_basin: bool | str = "auto",
    ):
        super().__init__(levels, strength=strength, zero_basin=zero_basin)
        self.sharpness = check_number("sharpness", sharpness)

    def penalty(self, weights: Any, basins: Any) -> Any:
        return penalties.nearest_exponential(weights, basins, self.sharpness)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sharpness": self.sharpness}


@keras.saving.register_keras_serializable(package="keras_qareg")
class DKM(_LearnedBasins):
    """Differentiable k-means: weights as mixtures of learned centroids, ever less mixed.

    In training, a layer computes with `sum_j a_j c_j` for a weight w, where the attention
    `a = softmax(-(w - c)^2 / (temperature width^2))` and `width` is the mean distance between
    neighbouring centroids (Cho et al., arXiv 2108.12659). `callbacks.PenaltySchedule` lets the
    temperature fall: with the share s of the full strength it is `first^(1 - t) last^t` with
    `t = s^(1/6)`, so that by the schedule's default power it falls evenly. In inference each weight is
    its nearest centroid. There is no penalty; no tensor of weights x centroids is kept.

    In the paper centroids are means of the weights under the attention, iterated at each step; here
    they start from k-means and train, with their gradients through the attention. Its distance is not
    squared, and its temperature does not fall. Weights that were pruned do not stay 0. Use it in
    `layers.QuantizationAware` or `quantization_aware`.

    Args:
        levels: Integer from 2 to 256. A step takes time in proportion. Defaults to 16.
        temperature: Pair of positive floats, the first temperature and the last, which is not higher.
            About 0.5 leaves weights between centroids what they are, 0.01 is hard. Defaults to
            `(0.5, 0.01)`.

    Raises:
        ValueError: If an argument is out of its range, or when called outside a wrapper.

    Example:

    >>> soft, hard = (DKM(levels=2).soft_values([0.1, 0.4], [0.0, 1.0], share) for share in (0.0, 1.0))
    >>> [round(float(x), 2) for x in soft], [round(float(x), 2) for x in hard]
    ([0.17, 0.4], [0.0, 0.0])

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weights-that-move-between-centroids
    """

    soft = True
    _strengths = (1.0, 1.0, 1.0, 1.0)

    def __init__(self, levels: int = 16, *, temperature: tuple[float, float] = (0.5, 0.01)):
        super().__init__(levels)
        self.temperature = check_pair(
            "temperature",
            temperature,
            "finite numbers (first, last) with 0 < last <= first",
            lambda first, last: 0 < last <= first,
        )

    def penalty(self, weights: Any, basins: Any) -> Any:
        return 0.0 * ops.sum(ops.convert_to_tensor(basins))  # so that they have a gradient always

    def soft_values(self, weights: Any, centroids: Any, share: Any) -> Any:
        """What a layer computes with in the place of weights: a float32 tensor in their shape.

        Args:
            weights: Tensor of any shape.
            centroids: Tensor of shape `(levels,)`.
            share: Scalar in [0, 1], the share of the full strength.
        """
        first, last = self.temperature
        centroids = ops.convert_to_tensor(centroids)
        width = (ops.max(centroids) - ops.min(centroids)) / (centroids.shape[0] - 1)
        # Of a constant kernel they are all the same; differences are then of rounding alone.
        width = ops.maximum(width, _NARROW * ops.max(ops.abs(centroids)))
        progress = ops.power(ops.cast(share, "float32"), 1 / 6)
        fallen = first * ops.exp(math.log(last / first) * progress)
        return soft_values(weights, centroids, fallen * ops.square(width))

    def get_config(self) -> dict[str, Any]:
        return {"levels": self.levels, "temperature": list(self.temperature)}
