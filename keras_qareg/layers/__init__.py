"""Layers that hold the variables of quantization."""

from keras_qareg.layers.kernel_wrapper import KernelWrapper, kernels
from keras_qareg.layers.quantization_aware import QuantizationAware
from keras_qareg.layers.shared_weights import SharedWeights

__all__ = ["KernelWrapper", "QuantizationAware", "SharedWeights", "kernels"]
