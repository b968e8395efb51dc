"""Quantization-aware regularizers: what pulls the weights of a kernel together.

`Sine` and `Cosine` have fixed, evenly spaced basins: ordinary Keras regularizers. The basins of
`NearestSquared` and `NearestExponential` are learned by backpropagation: `layers.QuantizationAware`
holds them, because a Keras regularizer has nowhere to keep a variable that trains.

Source: Malchiodi, Ferraretto, Frasca, arXiv 2602.03614.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_qareg.choices import Described, check_choice, deserialized, find
from keras_qareg.numerics import clustering, penalties
from keras_qareg.numerics.tables import TABLES, evenly_spaced


class QuantizationRegularizer(Described, keras.regularizers.Regularizer):
    """Base of the four: a number of levels, a strength, and a penalty over given basins.

    Args:
        levels: Integer from 2 to 256, how many values a kernel may have.
        strength: Non-negative float, what the sum of the penalties is multiplied with; `None` takes
            the default for `levels`. Defaults were chosen with Adam (`benchmarks/recipe.py`), whose
            steps do not grow with the strength; with plain SGD, choose a strength of less than about
            `0.5 / learning_rate` for `NearestSquared`, and less still for the others.
        zero_basin: Whether one basin is exactly 0 and stays there. Inside `layers.QuantizationAware`
            weights that are exactly 0 then stay 0 in training: what was pruned stays so.
    """

    learned = False
    # Default strength at 2, 4, 8 and 16 levels or more; between them it is interpolated (log-log).
    _strengths: tuple[float, float, float, float]

    def __init__(
        self, levels: int = 16, *, strength: float | None = None, zero_basin: bool | str = "auto"
    ):
        self.levels = clustering.check_levels(levels)
        if zero_basin not in (True, False, "auto"):
            raise ValueError(
                f"Expected `zero_basin` to be True, False or 'auto'. Received: {zero_basin!r}"
            )
        self.zero_basin = zero_basin
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
        if self.strength == self.default_strength:
            config["strength"] = None
        return type(self).from_config(config)

    def with_zero(self, zero_basin: bool) -> Any:
        """The same with a basin at 0, or without."""
        return type(self).from_config({**self.get_config(), "zero_basin": zero_basin})

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"levels": self.levels, "strength": self.strength}
        return config if self.zero_basin == "auto" else {**config, "zero_basin": self.zero_basin}


class _FixedBasins(QuantizationRegularizer):
    def __init__(
        self,
        levels: int = 16,
        weight_range: tuple[float, float] = (-0.5, 0.5),
        *,
        strength: float | None = None,
        outside: str = "linear",
        table: str = "float32",
        zero_basin: bool | str = "auto",
    ):
        super().__init__(levels, strength=strength, zero_basin=zero_basin)
        check_choice("table", table, TABLES)
        self.table = table
        check_zero(self, table)
        self.weight_range = _check_range(weight_range)
        if outside not in penalties.OUTSIDE:
            raise ValueError(
                f"Expected `outside` to be one of {penalties.OUTSIDE}. Received: {outside!r}"
            )
        self.outside = outside

    def __call__(self, x: Any) -> Any:
        return self.strength * self.penalty(x, self.basins())

    def basins(self) -> np.ndarray:
        return self._allowed(self._spread(*self.weight_range))

    def _allowed(self, spread: np.ndarray) -> np.ndarray:
        """Basins moved to what the table allows, and one of them to 0 where one is to be 0."""
        if self.zero_basin is True and self.table != "even":  # which has one
            step = np.float32((spread[-1] - spread[0]) / (self.levels - 1))
            nearest = np.argmin(np.abs(spread))
            spread = (np.arange(self.levels) - nearest).astype("float32") * step
        return evenly_spaced(spread, self.table)

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
        zero_basin: Whether one basin is exactly 0 and stays there; all are moved by up to half of
            the distance between two for it, and weights that are 0 stay so in training. Defaults
            to `"auto"`: `quantization_aware` says so of kernels of which a tenth or more is exactly
            0, as of pruned ones, and nothing else does.

    Raises:
        ValueError: If an argument is out of its range, or a basin is to be 0 and `"even"` of two levels
            has none.

    Example:

    >>> layer = keras.layers.Dense(8, kernel_regularizer=Sine(levels=4, weight_range=(-0.3, 0.3)))
    """

    _strengths = (1.0, 1.25e-3, 5e-4, 1e-4)

    def _spread(self, low: float, high: float) -> np.ndarray:
        return np.linspace(low, high, self.levels, dtype="float32")

    def fit_basins(self, centroids: ArrayLike) -> np.ndarray:
        return self._allowed(self._spread(np.min(centroids), np.max(centroids)))


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
        zero_basin: Whether one basin is exactly 0 and stays there; all are moved by up to half of
            the distance between two for it, and weights that are 0 stay so in training. Defaults
            to `"auto"`: `quantization_aware` says so of kernels of which a tenth or more is exactly
            0, as of pruned ones, and nothing else does.

    Raises:
        ValueError: If an argument is out of its range, or a basin is to be 0 and `"even"` of two levels
            has none.

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
        return self._allowed(self._spread(inner[0] - gaps[0] / 2, inner[-1] + gaps[-1] / 2))


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

    >>> get({"class_name": "NearestExponential", "config": {"levels": 4}}).levels
    4
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
        if not (np.isfinite(sharpness) and sharpness > 0):
            raise ValueError(
                f"Expected `sharpness` to be a positive number. Received: sharpness={sharpness!r}"
            )
        self.sharpness = float(sharpness)

    def penalty(self, weights: Any, basins: Any) -> Any:
        return penalties.nearest_exponential(weights, basins, self.sharpness)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sharpness": self.sharpness}


Identifier = QuantizationRegularizer | type[QuantizationRegularizer] | str | dict[str, Any] | None
_BY_NAME: dict[str, type] = {
    "sine": Sine,
    "cosine": Cosine,
    "nearest_squared": NearestSquared,
    "nearest_exponential": NearestExponential,
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


def check_zero(regularizer: QuantizationRegularizer, table: str) -> None:
    """Raises a `ValueError` where a basin is to be 0, and a table has no zero."""
    if regularizer.zero_basin is True and table == "even" and regularizer.levels == 2:
        raise ValueError(
            "Expected three levels or more with zero_basin=True and table='even', whose two levels are "
            "-1 and 1 times a step. Received: levels=2. Take table='int8'."
        )


def _check_range(weight_range: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in weight_range)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(
            "Expected `weight_range` to be a pair of finite numbers (low, high) with low < high. "
            f"Received: weight_range={weight_range!r}"
        )
    return low, high
