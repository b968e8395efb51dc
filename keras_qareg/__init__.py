"""Quantization-aware regularizers, weight sharing and small files for Keras 3 models."""

from keras_qareg import (
    callbacks,
    centroids,
    export,
    layers,
    optimizers,
    plots,
    quantizers,
    regularizers,
    report,
)
from keras_qareg.codebook import Codebook
from keras_qareg.models import codebooks, compress, quantization_aware, share_weights, strip, wnq

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
    "regularizers",
    "report",
    "share_weights",
    "strip",
    "wnq",
]
