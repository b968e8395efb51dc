"""Layers that hold the variables of quantization."""

from keras_qareg.layers.kernel_wrapper import KernelWrapper, channel_axes, kernels
from keras_qareg.layers.quantization_aware import QuantizationAware
from keras_qareg.layers.shared_weights import SharedWeights
from keras_qareg.layers.wnq import WeightNormalized, WNQConv2D, WNQDense, WNQDepthwiseConv2D

# Layers of this package that stand for a plain one; `quantization_weights` is what they add to it.
QUANTIZED = (KernelWrapper, WeightNormalized)

__all__ = [
    "QUANTIZED",
    "KernelWrapper",
    "QuantizationAware",
    "SharedWeights",
    "WNQConv2D",
    "WNQDense",
    "WNQDepthwiseConv2D",
    "WeightNormalized",
    "channel_axes",
    "kernels",
]
