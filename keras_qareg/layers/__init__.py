"""Layers that hold the variables of quantization.

What belongs here: one layer at a time: its variables, its build, its call, its configuration. What does
not: the formulas (`numerics`), what a user chooses (`regularizers`, `quantizers`), and anything that
walks through a model (`models`).
"""

from keras_qareg.layers.activation_range import ActivationRange
from keras_qareg.layers.activations import HardSigmoid
from keras_qareg.layers.freezable import FreezableBatchNormalization
from keras_qareg.layers.integer_kernels import IntegerKernels
from keras_qareg.layers.kernel_wrapper import (
    KernelWrapper,
    Weights,
    channel_axes,
    kernels,
    path_inside,
)
from keras_qareg.layers.quantization_aware import QuantizationAware
from keras_qareg.layers.shared_weights import KEPT_CONSTRAINTS, SharedWeights
from keras_qareg.layers.weight_normalized import WeightNormalized
from keras_qareg.layers.wnq import WNQConv2D, WNQDense, WNQDepthwiseConv2D

# Layers of this package that stand for a plain one; `quantization_weights` is what they add to it.
QUANTIZED = (KernelWrapper, WeightNormalized)
# All that have weights which no plain model has: `quantization_weights`.
EXTENDED = (*QUANTIZED, ActivationRange, FreezableBatchNormalization)

__all__ = [
    "EXTENDED",
    "KEPT_CONSTRAINTS",
    "QUANTIZED",
    "ActivationRange",
    "FreezableBatchNormalization",
    "HardSigmoid",
    "IntegerKernels",
    "KernelWrapper",
    "QuantizationAware",
    "SharedWeights",
    "WNQConv2D",
    "WNQDense",
    "WNQDepthwiseConv2D",
    "WeightNormalized",
    "Weights",
    "channel_axes",
    "kernels",
    "path_inside",
]
