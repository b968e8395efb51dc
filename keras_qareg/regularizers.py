"""Quantization-aware regularizers: what pulls the weights of a kernel together.

`Sine` and `Cosine` have fixed, evenly spaced basins: ordinary Keras regularizers. The basins of
`NearestSquared` and `NearestExponential` are learned by backpropagation: `layers.QuantizationAware`
holds them, because a Keras regularizer has nowhere to keep a variable that trains. `DKM` has no penalty:
in training, layers compute with mixtures of centroids, which become ever harder.

Sources: Malchiodi, Ferraretto, Frasca, arXiv 2602.03614; of `DKM`, Cho et al., arXiv 2108.12659.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_qareg.choices import Described, check_choice, check_pair, deserialized, find
from keras_qareg.numerics import penalties
from keras_qareg.numerics.attention import soft_values
from keras_qareg.numerics.clustering import check_levels
from keras_qareg.numerics.tables import TABLES, evenly_spaced


class QuantizationRegularizer(Described, keras.regularizers.Regularizer):
    """Base of all: a number of levels, a strength, and a penalty over given basins.

    Args:
        levels: Integer from 2 to 256, how many values a kernel may have.
        strength: Non-negative float, what the sum of the penalties is multiplied with; `None` takes
            the default for `levels`. Defaults were chosen with Adam (`benchmarks/recipe.py`), whose
            steps do not grow with the strength; with plain SGD, choose a strength of less than about
            `0.5 / learning_rate` for `NearestSquared`, and less still for the others.
    """

    learned = False
    # Whether layers compute with `soft_values` of their kernels in training.
    soft = False
    # Default strength at 2, 4, 8 and 16 levels or more; between them it is interpolated (log-log).
    _strengths: tuple[float, float, float, float]

    def __init__(self, levels: int = 16, *, strength: float | None = None):
        self.levels = check_levels(levels)
        if strength is None:
            strength = self.default_strength
        if not np.isfinite(strength) or strength < 0:
            raise ValueError(
                "Expected `strength` to be a non-negative number or None. "
                f"Received: strength={strength!r}"
            )
        self.strength = float(strength)

    @property
    def default_strength(self) -> float:
        """What `strength=None` means at this number of levels."""
        logarithms = np.log(self._strengths)
        return float(np.exp(np.interp(np.log2(self.levels), [1, 2, 3, 4], logarithms)))

    def basins(self) -> np.ndarray:
        """Basins before any weight was seen: float32 array of shape `(levels,)`."""
        raise NotImplementedError

    def fit_basins(self, centroids: ArrayLike) -> np.ndarray:
        """Basins of this kind that fit the centroids found in some weights: `(levels,)`."""
        raise NotImplementedError

    def penalty(self, weights: Any, basins: Any) -> Any:
        """The sum of the penalties of all weights, without the strength: a float32 scalar."""
        raise NotImplementedError

    def with_levels(self, levels: int) -> Any:
        """The same for another number of levels; a default strength becomes that of these."""
        if levels == self.levels:
            return self
        config = {**self.get_config(), "levels": levels}
        if "strength" in config and self.strength == self.default_strength:
            config["strength"] = None
        return type(self).from_config(config)

    def get_config(self) -> dict[str, Any]:
        return {"levels": self.levels, "strength": self.strength}


class _FixedBasins(QuantizationRegularizer):
    def __init__(
        self,
        levels: int = 16,
        weight_range: tuple[float, float] = (-0.5, 0.5),
        *,
        strength: float | None = None,
        outside: str = "linear",
        table: str = "float32",
    ):
        super().__init__(levels, strength=strength)
        check_choice("table", table, TABLES)
        self.table = table
        self.weight_range = check_pair(
            "weight_range",
            weight_range,
            "finite numbers (low, high) with low < high",
            lambda low, high: low < high,
        )
        if outside not in penalties.OUTSIDE:
            raise ValueError(
                f"Expected `outside` to be one of {penalties.OUTSIDE}. Received: {outside!r}"
            )
        self.outside = outside

    def __call__(self, x: Any) -> Any:
        return self.strength * self.penalty(x, self.basins())

    def basins(self) -> np.ndarray:
        low, high = self.weight_range
        return evenly_spaced(self._spread(low, high), self.table)

    def _spread(self, low: float, high: float) -> np.ndarray:
        """The basins of a range."""
        raise NotImplementedError

    def penalty(self, weights: Any, basins: Any) -> Any:
        return penalties.evenly_spaced(
            weights, basins[0], basins[-1], self.levels, outside=self.outside
        )

    def get_config(self) -> dict[str, Any]:
        config = {"weight_range": list(self.weight_range), "outside": self.outside}
        return {**super().get_config(), **config, "table": self.table}


@keras.saving.register_keras_serializable(package="keras_qareg")
class Sine(_FixedBasins):
    """Basins at `levels` evenly spaced values, the ends of the range included.

    On `weight_range = (a, b)` a weight pays `strength |sin(pi (levels - 1) (w - a) / (b - a))|`
    (arXiv 2602.03614): nothing at `a + j (b - a) / (levels - 1)`.

    Args:
        levels: Integer from 2 to 256. Defaults to 16.
        weight_range: Pair of floats `(low, high)`, the outermost basins. Inside
            `layers.QuantizationAware` this is where training starts, and
            `callbacks.PenaltySchedule` fits it to each kernel, unless told `initialize=None`.
            Defaults to `(-0.5, 0.5)`.
        strength: Non-negative float; `None`: a default that depends on `levels`.
        outside: `"linear"` (default) or `"periodic"`, see `penalties.evenly_spaced`.
        table: What values basins may have: `"float32"` (default), any; `"int8"`, whole numbers from
            -127 to 127 times a step, evenly spaced still (256 are not), as near as may be; `"even"`,
            consecutive whole numbers times a step, zero among them (-1 and 1 with two levels). Share
            the weights with the same `table` then.

    Raises:
        ValueError: If `levels`, `weight_range`, `strength`, `outside` or `table` is out of its range.

    Example:

    >>> layer = keras.layers.Dense(8, kernel_regularizer=Sine(levels=4, weight_range=(-0.3, 0.3)))
    """

    _strengths = (1.0, 1.25e-3, 5e-4, 1e-4)

    def _spread(self, low: float, high: float) -> np.ndarray:
        return np.linspace(low, high, self.levels, dtype="float32")

    def fit_basins(self, centroids: ArrayLike) -> np.ndarray:
        return evenly_spaced(self._spread(np.min(centroids), np.max(centroids)), self.table)


@keras.saving.register_keras_serializable(package="keras_qareg")
class Cosine(_FixedBasins):
    """Basins at the middles of `levels` equal cells of the range, its ends not included.

    On `weight_range = (a, b)` a weight pays `strength |cos(pi levels (w - a) / (b - a))|`
    (arXiv 2602.03614): nothing at `a + (j + 1/2) (b - a) / levels`.

    Args:
        levels: Integer from 2 to 256. Defaults to 16.
        weight_range: Pair of floats `(low, high)`, the borders of the outermost cells; see `Sine`.
        strength: Non-negative float; `None`: a default that depends on `levels`.
        outside: `"linear"` (default) or `"periodic"`, see `penalties.evenly_spaced`.
        table: What values basins may have: `"float32"` (default), any; `"int8"`, whole numbers from
            -127 to 127 times a step, evenly spaced still (256 are not), as near as may be; `"even"`,
            consecutive whole numbers times a step, zero among them (-1 and 1 with two levels). Share
            the weights with the same `table` then.

    Raises:
        ValueError: If `levels`, `weight_range`, `strength`, `outside` or `table` is out of its range.

    Example:

    >>> Cosine(levels=2, weight_range=(-1.0, 1.0)).basins().tolist()
    [-0.5, 0.5]
    """

    _strengths = (1.0, 1.25e-3, 5e-4, 1e-4)

    def _spread(self, low: float, high: float) -> np.ndarray:
        middles = (np.arange(self.levels) + 0.5) / self.levels
        return (low + (high - low) * middles).astype("float32")

    def fit_basins(self, centroids: ArrayLike) -> np.ndarray:
        # The range is that of the centroids' own cells, cut into equal cells.
        inner = np.sort(np.asarray(centroids, "float64"))
        gaps = np.diff(inner) if inner.size > 1 else np.zeros(1)
        spread = self._spread(inner[0] - gaps[0] / 2, inner[-1] + gaps[-1] / 2)
        return evenly_spaced(spread, self.table)


class _LearnedBasins(QuantizationRegularizer):
    learned = True

    def basins(self) -> np.ndarray:
        return np.linspace(-0.5, 0.5, self.levels, dtype="float32")

    def fit_basins(self, centroids: ArrayLike) -> np.ndarray:
        centroids = np.asarray(centroids, "float32")
        return np.pad(centroids, (0, self.levels - centroids.size), mode="edge")

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

    Raises:
        ValueError: If `levels` or `strength` is out of its range, or when called outside a wrapper.

    Example:

    >>> NearestSquared(levels=4).levels
    4
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

    Raises:
        ValueError: If an argument is out of its range, or when called outside a wrapper.

    Example:

    >>> get({"class_name": "NearestExponential", "config": {"levels": 4}}).levels
    4
    """

    _strengths = (3.0, 0.2, 2e-2, 5e-3)

    def __init__(self, levels: int = 16, *, strength: float | None = None, sharpness: float = 1.0):
        super().__init__(levels, strength=strength)
        if not (np.isfinite(sharpness) and sharpness > 0):
            raise ValueError(
                f"Expected `sharpness` to be a positive number. Received: sharpness={sharpness!r}"
            )
        self.sharpness = float(sharpness)

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
    squared, and its temperature does not fall. Use it in `layers.QuantizationAware` or
    `quantization_aware`.

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
        progress = ops.power(ops.cast(share, "float32"), 1 / 6)
        fallen = first * ops.exp(math.log(last / first) * progress)
        return soft_values(weights, centroids, fallen * ops.square(width))

    def get_config(self) -> dict[str, Any]:
        return {"levels": self.levels, "temperature": list(self.temperature)}


Identifier = QuantizationRegularizer | type[QuantizationRegularizer] | str | dict[str, Any] | None
_BY_NAME: dict[str, type] = {
    "sine": Sine,
    "cosine": Cosine,
    "nearest_squared": NearestSquared,
    "nearest_exponential": NearestExponential,
    "dkm": DKM,
}


def serialize(regularizer: QuantizationRegularizer) -> dict[str, Any]:
    """The configuration of a regularizer, for `deserialize`."""
    return keras.saving.serialize_keras_object(regularizer)


def deserialize(config: dict[str, Any]) -> QuantizationRegularizer:
    """The regularizer of a configuration made by `serialize`."""
    return deserialized(config, _BY_NAME)


def get(identifier: Identifier) -> QuantizationRegularizer | None:
    """A regularizer from what a user may pass for one.

    Args:
        identifier: `None`; a class of this module or its name, as `"Sine"` or `"sine"` (16 levels); a
            dict of its name and arguments, as `{"name": "sine", "strength": 0.1}`; a configuration as
            made by `serialize`; or an instance.

    Returns:
        A `QuantizationRegularizer`, or `None`.

    Raises:
        ValueError: If the identifier is none of these.

    Example:

    >>> get("Sine").levels, get(NearestSquared).levels
    (16, 16)
    """
    return find(identifier, QuantizationRegularizer, _BY_NAME, "regularizer")
