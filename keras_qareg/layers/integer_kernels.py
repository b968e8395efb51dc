"""The wrapper whose kernels are integers of a few bits, with a step for each output channel."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.choices import check_bits
from keras_qareg.layers.kernel_wrapper import (
    KernelWrapper,
    channel_axes,
    without_gradient_at_zero,
)
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.fake_quantization import fake_quantized_kernel, integer_kernel


@keras.saving.register_keras_serializable(package="keras_qareg")
class IntegerKernels(KernelWrapper):
    """Computes with the kernels that an integer file has: whole numbers times a step a channel.

    Codes are symmetric, of 8 bits from -127 to 127, and the step of an output channel is its largest
    weight over 127, as TensorFlow Lite has it (arXiv 1712.05877). Gradients pass straight through to the
    weights. A BatchNormalization that is folded into the kernel multiplies the step of each channel and
    leaves the codes as they are, so that these are the codes of the file. Weights that are exactly 0, as
    pruned ones are, stay 0 in training.

    For layers whose kernels are not clustered: `QuantizationAware` and `SharedWeights` have codes of
    their own. `keras_qareg.quantize_activations` makes these layers.

    Args:
        layer: A Keras layer that has kernels.
        bits: Integer from 2 to 8. Defaults to 8.
        **kwargs: `name`, `trainable`, `dtype`, as for every Keras layer.

    Call arguments: those of the layer inside.

    Input and output shape: those of the layer inside.

    Raises:
        ValueError: If `bits` is out of its range, or the layer has no kernel.

    Example:

    >>> layer = IntegerKernels(keras.layers.Dense(8))
    >>> layer.build((None, 16))
    >>> codes = layer.codebooks()[0].indices.astype(int) - 127
    >>> [int(code) for code in abs(codes).max(axis=0)]
    [127, 127, 127, 127, 127, 127, 127, 127]

    See also: https://keras-qareg.github.io/keras-qareg/integer.html
    """

    def __init__(self, layer: keras.layers.Layer, bits: int = 8, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.bits = check_bits("bits", bits, most=8, least=2)
        self._largest = 2 ** (self.bits - 1) - 1

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return self._call_with(self.used_kernels(), *args, **kwargs)

    def used_kernels(self) -> list[Any]:
        """The kernels as whole numbers times a step a channel: a list of tensors."""
        return [
            fake_quantized_kernel(
                without_gradient_at_zero(ops.convert_to_tensor(kernel)),
                self._axes(kernel),
                self._largest,
            )
            for kernel in self.kernels
        ]

    def _axes(self, kernel: keras.Variable) -> int:
        return channel_axes(self.layer, kernel)

    def codebooks(self) -> list[Codebook]:
        """The `Codebook` of each kernel, with the same codes in all channels, as of now."""
        found = []
        for kernel in self.kernels:
            pair = integer_kernel(ops.convert_to_tensor(kernel), self._axes(kernel), self._largest)
            codes, steps = (np.asarray(ops.convert_to_numpy(part)) for part in pair)
            values = np.arange(-self._largest, self._largest + 1, dtype="float32")
            table = np.multiply.outer(values, steps.astype("float32"))
            found.append(Codebook(table, (codes + self._largest).astype("uint8")))
        return found

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bits": self.bits}
