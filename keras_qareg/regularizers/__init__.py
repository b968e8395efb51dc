"""Quantization-aware regularizers: what pulls the weights of a kernel together.

`Sine` and `Cosine` have fixed, evenly spaced basins: ordinary Keras regularizers. The basins of
`NearestSquared` and `NearestExponential` are learned by backpropagation: `layers.QuantizationAware`
holds them, because a Keras regularizer has nowhere to keep a variable that trains. `DKM` has no penalty:
in training, layers compute with mixtures of centroids, which become ever harder.

Sources: Malchiodi, Ferraretto, Frasca, arXiv 2602.03614; of `DKM`, Cho et al., arXiv 2108.12659.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_qareg.choices import deserialized, find
from keras_qareg.regularizers.base import TWO_ON_A_GRID as TWO_ON_A_GRID
from keras_qareg.regularizers.base import QuantizationRegularizer
from keras_qareg.regularizers.base import check_zero as check_zero
from keras_qareg.regularizers.fixed import Cosine, Sine
from keras_qareg.regularizers.learned import DKM, NearestExponential, NearestSquared

__all__ = [
    "DKM",
    "Cosine",
    "NearestExponential",
    "NearestSquared",
    "QuantizationRegularizer",
    "Sine",
    "deserialize",
    "get",
    "serialize",
]

Identifier = QuantizationRegularizer | type[QuantizationRegularizer] | str | dict[str, Any] | None
_BY_NAME: dict[str, type] = {
    "sine": Sine,
    "cosine": Cosine,
    "nearest_squared": NearestSquared,
    "nearest_exponential": NearestExponential,
    "dkm": DKM,
}


def serialize(regularizer: QuantizationRegularizer) -> dict[str, Any]:
    """The configuration of a regularizer, for `deserialize`.

    Example:

    >>> deserialize(serialize(Sine(4))).levels
    4

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
    """
    return keras.saving.serialize_keras_object(regularizer)


def deserialize(config: dict[str, Any]) -> QuantizationRegularizer:
    """The regularizer of a configuration made by `serialize`.

    Example:

    >>> type(deserialize(serialize(NearestSquared(8)))).__name__
    'NearestSquared'

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
    """
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

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
    """
    return find(identifier, QuantizationRegularizer, _BY_NAME, "regularizer")
