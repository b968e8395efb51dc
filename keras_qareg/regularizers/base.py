"""What all quantization-aware regularizers have: a number of levels, a strength, a basin at 0."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_qareg.choices import Described, check_number, check_switch, from_zero
from keras_qareg.numerics import clustering


class QuantizationRegularizer(Described, keras.regularizers.Regularizer):
    """Base of all: a number of levels, a strength, and a penalty over given basins.

    Args:
        levels: Integer from 2 to 256, how many values a kernel may have.
        strength: Non-negative float, what the sum of the penalties is multiplied with; `None` takes
            the default for `levels`. Defaults were chosen with Adam (`benchmarks/recipe.py`), whose
            steps do not grow with the strength; with plain SGD, choose a strength of less than about
            `0.5 / learning_rate` for `NearestSquared`, and less still for the others.
        zero_basin: Whether one basin is exactly 0 and stays there. Inside `layers.QuantizationAware`
            weights that are exactly 0 then stay 0 in training: what was pruned stays so.

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
    """

    learned = False
    # Whether layers compute with `soft_values` of their kernels in training.
    soft = False
    # Default strength at 2, 4, 8 and 16 levels or more; between them it is interpolated (log-log).
    _strengths: tuple[float, float, float, float]

    def __init__(
        self, levels: int = 16, *, strength: float | None = None, zero_basin: bool | str = "auto"
    ):
        self.levels = clustering.check_levels(levels)
        self.zero_basin = check_switch("zero_basin", zero_basin)
        if strength is None:
            strength = self.default_strength
        what = "a number, 0 or more, or None"
        self.strength = check_number("strength", strength, what, from_zero)

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

    def with_zero(self, zero_basin: bool) -> Any:
        """The same with a basin at 0, or without."""
        return type(self).from_config({**self.get_config(), "zero_basin": zero_basin})

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"levels": self.levels, "strength": self.strength}
        return config if self.zero_basin == "auto" else {**config, "zero_basin": self.zero_basin}


TWO_ON_A_GRID = "table='even' with two levels, which are -1 and 1 times a step"


def check_zero(argument: str, wanted: bool | str, levels: int | None, table: str) -> None:
    """Raises a `ValueError` where an argument asks for a value of 0, and a table has none."""
    if wanted is True and table == "even" and levels == 2:
        raise ValueError(
            f"Expected three levels or more with {argument}=True and table='even', whose two levels are "
            "-1 and 1 times a step. Received: levels=2. Take table='int8'."
        )
