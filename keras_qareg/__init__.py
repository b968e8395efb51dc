"""Quantization-aware regularizers, weight sharing and small files for Keras 3 models."""

import importlib
from typing import TYPE_CHECKING, Any

from keras_qareg import (
    callbacks,
    centroids,
    layers,
    optimizers,
    quantizers,
    regularizers,
    report,
)
from keras_qareg.codebook import Codebook
from keras_qareg.models import (
    codebooks,
    compress,
    quantization_aware,
    recalibrate,
    share_weights,
    strip,
    wnq,
)

if TYPE_CHECKING:
    from keras_qareg import export, plots

__version__ = "0.1.0"
__all__ = [
    "Codebook",
    "callbacks",
    "centroids",
    "codebooks",
    "compress",
    "export",
    "layers",
    "optimizers",
    "plots",
    "quantization_aware",
    "quantizers",
    "recalibrate",
    "regularizers",
    "report",
    "share_weights",
    "strip",
    "wnq",
]

_LATER = ("export", "plots")


def __getattr__(name: str) -> Any:
    """Imports what training does not need when it is first used."""
    if name in _LATER:
        return importlib.import_module(f"keras_qareg.{name}")
    raise AttributeError(f"module 'keras_qareg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
