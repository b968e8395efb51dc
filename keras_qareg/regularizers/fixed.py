"""`Sine` and `Cosine`: fixed, evenly spaced basins (arXiv 2602.03614)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_qareg.choices import check_choice, check_pair
from keras_qareg.numerics import penalties
from keras_qareg.numerics.tables import TABLES, evenly_spaced
from keras_qareg.regularizers.base import QuantizationRegularizer, check_zero


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
        check_zero("zero_basin", self.zero_basin, levels, table)
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

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
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

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
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
