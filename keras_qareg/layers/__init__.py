"""Layers that hold the variables of quantization."""

from keras_qareg.layers.quantization_aware import QuantizationAware
from keras_qareg.layers.shared_weights import SharedWeights

__all__ = ["QuantizationAware", "SharedWeights"]
