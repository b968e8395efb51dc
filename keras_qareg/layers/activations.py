"""Activations that Keras 3 has not."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_qareg")
class HardSigmoid:
    """The hard sigmoid of Keras 1 and 2: `0.2 * x + 0.5`, between 0 and 1.

    Keras 3 has another slope, 1/6. Recurrent layers of old models have this one, and
    `qareg.from_tf_keras` puts it there.

    Example:

    >>> activation = qareg.layers.HardSigmoid()
    >>> [float(value) for value in activation(np.array([-3.0, 0.0, 1.25]))]
    [0.0, 0.5, 0.75]

    See also: https://keras-qareg.github.io/keras-qareg/models.html#from-keras-2-and-tfmot
    """

    def __call__(self, x: Any) -> Any:
        return ops.clip(0.2 * x + 0.5, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Nothing: there is one of it."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HardSigmoid:
        """One of it."""
        return cls(**config)
