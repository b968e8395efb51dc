"""Convolutions and dense layers whose kernels are quantized to a few learned levels in training.

Each is its base layer with a quantizer between the kernel and its use.

Source: Cai, Li, "Weight Normalization based Quantization for Deep Neural Network Compression"
(arXiv 1907.00593).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_qareg.layers.weight_normalized import WeightNormalized


@keras.saving.register_keras_serializable(package="keras_qareg")
class WNQDense(WeightNormalized, keras.layers.Dense):
    """`keras.layers.Dense` with a kernel of 2^bits learned levels (WNQ, arXiv 1907.00593).

    Args:
        units: Positive integer, dimensionality of the outputs. This and all arguments up to
            `quantization_config` are those of `keras.layers.Dense`.
        bits: Integer from 1 to 4: the kernel has 2^bits levels. Defaults to 2.
        activation_bits: Integer from 1 to 8: the inputs, which must not be negative, are quantized
            to 2^activation_bits levels. Defaults to `None`: they are not.
        signed_activations: Whether inputs may be negative: their levels then lie evenly on both sides
            of zero, which is none of them. Defaults to `False`.
        normalize: Whether the kernel is divided by `max|w|` first; `False` is LQ-Nets. Defaults to
            `True`.
        per_channel: Whether each output unit has levels of its own. Defaults to `True`.
        uniform: Whether levels are evenly spaced. Defaults to `False`.

    Call arguments: `inputs`, and `training`, whether the levels learn from this call.

    Input and output shape: those of `keras.layers.Dense`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> layer = WNQDense(8, bits=1)
    >>> tuple(layer(np.ones((2, 16), "float32")).shape), tuple(layer.basis.shape)
    ((2, 8), (1, 8))

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """

    base = keras.layers.Dense

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        quantization_config: Any = None,
        *,
        bits: int = 2,
        activation_bits: int | None = None,
        normalize: bool = True,
        per_channel: bool = True,
        uniform: bool = False,
        signed_activations: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            units, activation, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
            bias_regularizer, activity_regularizer, kernel_constraint, bias_constraint, lora_rank,
            lora_alpha, quantization_config, **kwargs,
        )  # fmt: skip
        self._set_quantizers(
            bits, activation_bits, normalize, per_channel, uniform, signed_activations
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        inputs, kernel = self._quantized(inputs, training)
        return self._finished(ops.matmul(inputs, kernel))


@keras.saving.register_keras_serializable(package="keras_qareg")
class WNQConv2D(WeightNormalized, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a kernel of 2^bits learned levels (WNQ, arXiv 1907.00593).

    Args:
        filters: Integer, number of output channels. This and all arguments up to `bias_constraint`
            are those of `keras.layers.Conv2D`.
        bits: Integer from 1 to 4: the kernel has 2^bits levels. Defaults to 2.
        activation_bits: Integer from 1 to 8: the inputs, which must not be negative, are quantized
            to 2^activation_bits levels. Defaults to `None`: they are not.
        signed_activations: Whether inputs may be negative: their levels then lie evenly on both sides
            of zero, which is none of them. Defaults to `False`.
        normalize: Whether the kernel is divided by `max|w|` first; `False` is LQ-Nets. Defaults to
            `True`.
        per_channel: Whether each filter has levels of its own. Defaults to `True`.
        uniform: Whether levels are evenly spaced. Defaults to `False`.

    Call arguments: `inputs`, and `training`, whether the levels learn from this call.

    Input and output shape: those of `keras.layers.Conv2D`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> layer = WNQConv2D(8, 3, bits=2)
    >>> outputs = layer(np.ones((1, 5, 5, 4), "float32"))
    >>> len(np.unique(ops.convert_to_numpy(layer.quantized_kernel)[..., 0]))
    4

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """

    base = keras.layers.Conv2D

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = (1, 1),
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        bits: int = 2,
        activation_bits: int | None = None,
        normalize: bool = True,
        per_channel: bool = True,
        uniform: bool = False,
        signed_activations: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            filters, kernel_size, strides, padding, data_format, dilation_rate, groups, activation,
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
            activity_regularizer, kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip
        self._set_quantizers(
            bits, activation_bits, normalize, per_channel, uniform, signed_activations
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        inputs, kernel = self._quantized(inputs, training)
        return self._finished(self.convolution_op(inputs, kernel))


@keras.saving.register_keras_serializable(package="keras_qareg")
class WNQDepthwiseConv2D(WeightNormalized, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a kernel of 2^bits learned levels (arXiv 1907.00593).

    A channel has few weights here, so levels for each cost more than they save from 3 bits on.

    Args:
        kernel_size: Integer or pair, as all arguments up to `bias_constraint` those of
            `keras.layers.DepthwiseConv2D`.
        bits: Integer from 1 to 4: the kernel has 2^bits levels. Defaults to 2.
        activation_bits: Integer from 1 to 8: the inputs, which must not be negative, are quantized
            to 2^activation_bits levels. Defaults to `None`: they are not.
        signed_activations: Whether inputs may be negative: their levels then lie evenly on both sides
            of zero, which is none of them. Defaults to `False`.
        normalize: Whether the kernel is divided by `max|w|` first; `False` is LQ-Nets. Defaults to
            `True`.
        per_channel: Whether each output channel has levels of its own. Defaults to `True`.
        uniform: Whether levels are evenly spaced. Defaults to `False`.

    Call arguments: `inputs`, and `training`, whether the levels learn from this call.

    Input and output shape: those of `keras.layers.DepthwiseConv2D`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> layer = WNQDepthwiseConv2D(3, bits=1, depth_multiplier=2)
    >>> tuple(layer(np.ones((1, 5, 5, 4), "float32")).shape), tuple(layer.basis.shape)
    ((1, 3, 3, 8), (1, 4, 2))

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """

    base = keras.layers.DepthwiseConv2D
    _channel_axes = 2

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Any = (1, 1),
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        bias_constraint: Any = None,
        *,
        bits: int = 2,
        activation_bits: int | None = None,
        normalize: bool = True,
        per_channel: bool = True,
        uniform: bool = False,
        signed_activations: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            kernel_size, strides, padding, depth_multiplier, data_format, dilation_rate, activation,
            use_bias, depthwise_initializer, bias_initializer, depthwise_regularizer,
            bias_regularizer, activity_regularizer, depthwise_constraint, bias_constraint, **kwargs,
        )  # fmt: skip
        self._set_quantizers(
            bits, activation_bits, normalize, per_channel, uniform, signed_activations
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        inputs, kernel = self._quantized(inputs, training)
        outputs = ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
        )
        return self._finished(outputs)
