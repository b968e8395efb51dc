"""Reference quantizers to compare WNQ with: DoReFa, ternary weight networks (TWN) and LSQ.

Each is a convolution whose kernel, and inputs where wished, are quantized in the forward pass, with
gradients passed straight through. They are written for comparison alone: short, and of no other layer.
"""

from typing import Any

import keras
import numpy as np
from keras import ops


def straight_through(values: Any, quantized: Any) -> Any:
    """The quantized values, with the gradient of `values`."""
    return ops.stop_gradient(quantized) + (values - ops.stop_gradient(values))


class Peer(keras.layers.Conv2D):
    """A convolution with a quantized kernel.

    Args:
        bits: Of the kernel.
        activation_bits: Of the inputs, which must not be negative; `None`: they are float.
        **kwargs: As for `keras.layers.Conv2D`.
    """

    least_bits, most_bits = 1, 8

    def __init__(self, *args: Any, bits: int, activation_bits: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.bits, self.activation_bits = bits, activation_bits

    def quantized_kernel(self) -> Any:
        raise NotImplementedError

    def quantized_inputs(self, inputs: Any) -> Any:
        raise NotImplementedError

    def start(self) -> None:
        """Called when the kernel has the weights that it starts with."""

    def call(self, inputs: Any) -> Any:
        if self.activation_bits is not None:
            inputs = self.quantized_inputs(inputs)
        outputs = self.convolution_op(inputs, self.quantized_kernel())
        outputs = outputs if self.bias is None else outputs + self.bias
        return self.activation(outputs)


class DoReFa(Peer):
    """Evenly spaced levels of tanh-bounded weights, and of inputs cut at 1 (arXiv 1606.06160, 2.3)."""

    def quantized_kernel(self) -> Any:
        kernel = ops.convert_to_tensor(self.kernel)
        if self.bits == 1:
            sign = ops.where(kernel >= 0, 1.0, -1.0)
            return straight_through(kernel, sign * ops.mean(ops.abs(kernel)))
        bounded = ops.tanh(kernel)
        bounded = bounded / (2 * ops.max(ops.abs(bounded))) + 0.5
        return 2 * _rounded(bounded, self.bits) - 1

    def quantized_inputs(self, inputs: Any) -> Any:
        return _rounded(ops.clip(inputs, 0.0, 1.0), self.activation_bits)


class TWN(Peer):
    """Weights of -a, 0, a: zero below 0.7 of the mean magnitude (arXiv 1605.04711, 2.3)."""

    least_bits = most_bits = 2

    def quantized_kernel(self) -> Any:
        kernel = ops.convert_to_tensor(self.kernel)
        size = ops.abs(kernel)
        large = ops.cast(size > 0.7 * ops.mean(size), kernel.dtype)
        level = ops.sum(large * size) / ops.sum(large)
        return straight_through(kernel, level * large * ops.sign(kernel))

    def quantized_inputs(self, inputs: Any) -> Any:
        raise ValueError("Expected `activation_bits=None`: TWN quantizes weights alone.")


class LSQ(Peer):
    """Integers times a step that is learned by backpropagation (arXiv 1902.08153, 2)."""

    least_bits = 2  # with one bit its levels would be -1 and 0

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.step = self.add_weight(name="step", shape=(), initializer="ones")
        self.input_step = None
        if self.activation_bits is not None:
            self.input_step = self.add_weight(name="input_step", shape=(), initializer="ones")

    def start(self) -> None:
        self.step.assign(_lsq_start(self.kernel, 2 ** (self.bits - 1) - 1))

    def start_inputs(self, inputs: Any) -> None:
        """Sets the step of the inputs by a batch of them."""
        self.input_step.assign(_lsq_start(inputs, 2**self.activation_bits - 1))

    def quantized_kernel(self) -> Any:
        half = 2 ** (self.bits - 1)
        return _stepped(self.kernel, self.step, -half, half - 1, self.kernel.shape)

    def quantized_inputs(self, inputs: Any) -> Any:
        highest = 2**self.activation_bits - 1
        return _stepped(inputs, self.input_step, 0, highest, inputs.shape[1:])


def _rounded(shares: Any, bits: int) -> Any:
    """Values in [0, 1] rounded to 2^bits evenly spaced ones."""
    highest = 2**bits - 1
    return straight_through(shares, ops.round(shares * highest) / highest)


def _lsq_start(values: Any, highest: int) -> Any:
    return 2 * ops.mean(ops.abs(ops.convert_to_tensor(values))) / highest**0.5


def _stepped(values: Any, step: Any, low: int, high: int, shape: Any) -> Any:
    """LSQ's quantizer; the gradient of the step is scaled by 1 / sqrt(values * high)."""
    values, step = ops.convert_to_tensor(values), ops.convert_to_tensor(step)
    scale = float(np.prod(shape) * high) ** -0.5
    step = step * scale + ops.stop_gradient(step * (1 - scale))
    codes = ops.clip(values / step, low, high)
    return straight_through(codes, ops.round(codes)) * step


def quantized(
    model: keras.Model,
    kind: type[Peer],
    bits: int,
    activation_bits: int | None = None,
    images: np.ndarray | None = None,
) -> keras.Model:
    """A copy of a Functional or Sequential model with its inner convolutions quantized.

    Args:
        model: A built model; its first and last layer with a kernel stay as they are.
        kind: `DoReFa`, `TWN` or `LSQ`.
        bits: Of the kernels.
        activation_bits: Of their inputs, or `None`.
        images: A batch of inputs, for the steps of `LSQ` inputs.

    Returns:
        The new model, which starts with the weights of `model`.

    Raises:
        ValueError: If `kind` has no quantizer of so many bits.
    """
    if not kind.least_bits <= bits <= kind.most_bits:
        raise ValueError(
            f"Expected `bits` from {kind.least_bits} to {kind.most_bits} for {kind.__name__}. "
            f"Received: bits={bits!r}"
        )
    weighted = [layer for layer in model.layers if hasattr(layer, "kernel")]
    inner = {id(layer) for layer in weighted[1:-1] if type(layer) is keras.layers.Conv2D}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) in inner:
            return kind(bits=bits, activation_bits=activation_bits, **layer.get_config())
        return type(layer).from_config(layer.get_config())

    made = keras.models.clone_model(model, clone_function=copy)
    for old, new in zip(model.layers, made.layers, strict=True):
        # The weights that a peer adds come last.
        for before, after in zip(old.weights, new.weights, strict=False):
            after.assign(ops.copy(before))
    peers = [layer for layer in made.layers if isinstance(layer, Peer)]
    for layer in peers:
        layer.start()
    if kind is LSQ and activation_bits is not None:
        names = [layer.name for layer in peers]
        inputs = keras.Model(model.inputs, [model.get_layer(name).input for name in names])
        for layer, values in zip(peers, keras.tree.flatten(inputs([images])), strict=True):
            layer.start_inputs(values)
    return made
