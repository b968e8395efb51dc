"""What layers with weight normalization based quantization have in common.

The latent float kernel is what is trained and saved; outputs are those of the quantized one, in training
and in inference. The basis of the levels is a non-trainable weight, which every training step moves.

Source: Cai, Li, "Weight Normalization based Quantization for Deep Neural Network Compression"
(arXiv 1907.00593).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
from keras import ops

from keras_qareg.choices import check_bits
from keras_qareg.numerics.clustering import check_finite
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.quantizers import (
    MAX_ACTIVATION_BITS,
    ActivationQuantizer,
    WeightNormalizationQuantizer,
)

_OWN_ARGUMENTS = (
    "bits",
    "activation_bits",
    "signed_activations",
    "normalize",
    "per_channel",
    "uniform",
)


class WeightNormalized(keras.layers.Layer):
    """What the quantized layers add to their base layer.

    Attributes:
        quantizer: The `WeightNormalizationQuantizer` of the kernel.
        activation_quantizer: The `ActivationQuantizer` of the inputs, or `None`.
        basis: Non-trainable float32 weight of shape `(bits, *channels)`, or `(bits,)` with
            `per_channel=False`. It starts from the kernel.
        activation_basis: Non-trainable float32 weight of shape `(activation_bits,)`, or `None`. It
            is learned in training; until then inputs are left as they are.

    Example:

    >>> isinstance(qareg.layers.WNQDense(4), WeightNormalized)
    True

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """

    base: type[keras.layers.Layer]
    # How many of the last axes of the kernel count output channels.
    _channel_axes = 1

    def _set_quantizers(
        self,
        bits: int,
        activation_bits: int | None,
        normalize: bool,
        per_channel: bool,
        uniform: bool,
        signed_activations: bool,
    ) -> None:
        self.quantizer = WeightNormalizationQuantizer(
            bits, normalize=normalize, per_channel=per_channel, uniform=uniform
        )
        self.activation_quantizer = None
        if activation_bits is not None:
            check_bits("activation_bits", activation_bits, MAX_ACTIVATION_BITS)
            self.activation_quantizer = ActivationQuantizer(
                activation_bits, signed=signed_activations
            )

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        # The kernel is quantized in full precision, whatever the layer computes in.
        if kwargs.get("name") == "kernel":
            kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape: Any) -> None:
        # Low-rank adaptation closes the layer to new weights, so it must come last.
        rank, self.lora_rank = getattr(self, "lora_rank", None), None
        super().build(input_shape)
        self._build_bases()
        if rank:
            self.enable_lora(rank, self.lora_alpha)

    def _build_bases(self) -> None:
        shape = self.quantizer.basis_shape(self.kernel.shape, self._channel_axes)
        size = math.prod(self.kernel.shape) // math.prod(shape[1:])
        if self.quantizer.per_channel and size < 2 ** (self.quantizer.bits + 1):
            warnings.warn(
                f"Layer '{self.name}' has {size} weights a channel, too few for the "
                f"{2**self.quantizer.bits} levels of each: its table is no smaller than the kernel. "
                "Use fewer bits, or per_channel=False.",
                stacklevel=2,
            )
        self.basis = self._add_basis("basis", shape, self._first_basis)
        self.activation_basis = None
        if self.activation_quantizer is not None:
            self.activation_basis = self._add_basis(
                "activation_basis", self.activation_quantizer.basis_shape(), "zeros"
            )

    def _add_basis(self, name: str, shape: tuple[int, ...], initializer: Any) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def _first_basis(self, shape: Any, dtype: Any = "float32") -> Any:
        return ops.cast(self.quantizer.start(self.kernel, self._channel_axes), dtype)

    def fit_basis(self) -> None:
        """Finds the best basis for the kernel as it is: after the kernel was set by hand.

        Raises:
            ValueError: If the kernel has NaN or infinite weights.
        """
        try:
            check_finite(ops.convert_to_numpy(self.kernel))
        except ValueError as error:
            raise ValueError(f"Kernel of layer '{self.name}': {error}") from error
        self.basis.assign(self.quantizer.fit(self.kernel, self._channel_axes))

    @property
    def quantized_kernel(self) -> Any:
        """The kernel that outputs are computed with: a float32 tensor in the shape of the kernel."""
        latent = ops.cast(self.kernel, "float32")
        return self.quantizer(latent, ops.convert_to_tensor(self.basis))

    def codebooks(self) -> list[Codebook]:
        """The `Codebook` of the quantized kernel, with centroids `(2^bits, *channels)`, as a list."""
        latent = ops.cast(self.kernel, "float32")
        return [self.quantizer.codebook(latent, ops.convert_to_tensor(self.basis))]

    @property
    def quantization_weights(self) -> list[keras.Variable]:
        """The weights that the base layer does not have."""
        return [basis for basis in (self.basis, self.activation_basis) if basis is not None]

    def base_config(self) -> dict[str, Any]:
        """The configuration of the base layer with the same name and arguments."""
        return {key: v for key, v in self.get_config().items() if key not in _OWN_ARGUMENTS}

    def _quantized(self, inputs: Any, training: bool | None) -> tuple[Any, Any]:
        """Inputs and kernel as they are used; in training, both bases learn from these."""
        kernel = self.quantized_kernel
        learns = bool(training) and self.trainable
        if learns:
            latent = ops.cast(self.kernel, "float32")
            basis = ops.convert_to_tensor(self.basis)
            self.basis.assign(self.quantizer.update(latent, basis))
        if self.activation_quantizer is not None and self.activation_basis is not None:
            basis = ops.convert_to_tensor(self.activation_basis)
            quantized = self.activation_quantizer(inputs, basis)
            if learns:  # last: on PyTorch the assignment changes `basis` in place
                self.activation_basis.assign(self.activation_quantizer.update(inputs, basis))
            inputs = quantized
        return inputs, ops.cast(kernel, self.compute_dtype)

    def _finished(self, outputs: Any) -> Any:
        """Bias and activation."""
        if self.bias is not None:
            shape = [1] * len(outputs.shape)
            first = getattr(self, "data_format", None) == "channels_first"
            shape[1 if first else -1] = -1
            outputs = ops.add(outputs, ops.reshape(self.bias, shape))
        return outputs if self.activation is None else self.activation(outputs)

    def save_own_variables(self, store: Any) -> None:
        # Base layers save a fixed list of variables, which has no basis.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        quantizer, activations = self.quantizer.get_config(), self.activation_quantizer
        own = {key: quantizer[key] for key in _OWN_ARGUMENTS if key in quantizer}
        own["activation_bits"] = None if activations is None else activations.bits
        own["signed_activations"] = activations is not None and activations.signed
        return {**super().get_config(), **own}
