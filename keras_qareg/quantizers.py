"""Quantizers with learned levels: weight normalization based quantization, and activations.

A quantizer is a configuration and pure functions of tensors; `layers.WNQDense` and its siblings hold
the basis. With b bits, a basis v of b values spans 2^b levels: all sums of +-v_1 ... +-v_b for
weights, of v_i or nothing for activations. The basis is learned by quantization error minimization
(Zhang et al., "LQ-Nets", ECCV 2018): each value takes its nearest level, and least squares then finds
the basis that fits these choices best. Training moves the basis by a share of the way at each step.

`numerics/basis.py` has the arithmetic: nothing there builds a tensor of weights x levels.

Source: Cai, Li, "Weight Normalization based Quantization for Deep Neural Network Compression"
(arXiv 1907.00593), called WNQ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.choices import Described, check_bits, check_flag, check_number, deserialized, find
from keras_qareg.numerics import replicas
from keras_qareg.numerics.basis import (
    Grid,
    best_basis,
    best_change,
    grid_of,
    nearest,
    settled,
)
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.compiled import Tensor, constant, custom_gradient, known

__all__ = ["ActivationQuantizer", "WeightNormalizationQuantizer", "deserialize", "get", "serialize"]

MAX_WEIGHT_BITS, MAX_ACTIVATION_BITS = 4, 8
# Rounds of least squares from where a new basis starts.
ITERATIONS = 20
# The step between evenly spaced levels with the least squared error for values of a normal
# distribution with standard deviation 1 (Max, "Quantizing for minimum distortion", 1960).
_NORMAL_STEP = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.335}


class _LearnedLevels(Described):
    """What both quantizers share: bits, momentum, and least squares."""

    def __init__(self, bits: int, most: int, momentum: float):
        self.bits = check_bits("bits", bits, most)
        what = "a number from 0 to below 1"
        self.momentum = check_number("momentum", momentum, what, lambda share: 0 <= share < 1)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits, "momentum": self.momentum}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_qareg")
class WeightNormalizationQuantizer(_LearnedLevels):
    """Quantizes a kernel to 2^bits learned levels after dividing it by its largest magnitude.

    The three steps of WNQ (arXiv 1907.00593): `w' = w / s` with `s = max|w|` of the whole kernel;
    `w'_q`, the nearest of the levels `+-v_1 ... +-v_b`; `w_q = s w'_q`. Backwards, the second step
    is passed straight through, the first has its true gradient, and the third has none for `s`: so
    the largest weight is held back by all others, and long tails shrink.

    Args:
        bits: Integer from 1 to 4. Defaults to 2.
        normalize: Whether to divide by `max|w|`; `False` is LQ-Nets. Defaults to `True`.
        per_channel: Whether each output channel has a basis of its own. Defaults to `True`.
        momentum: Float in [0, 1), the share of the old basis that an update keeps. Defaults to 0.9.
        uniform: Whether levels are evenly spaced: odd multiples of one learned step, which integer
            formats hold exactly. Defaults to `False`.

    Raises:
        ValueError: If `bits` or `momentum` is out of its range.

    Example:

    >>> quantizer = WeightNormalizationQuantizer(bits=2, per_channel=False)
    >>> kernel = np.array([[-4.0, 0.75], [1.25, 4.0]], "float32")
    >>> basis = quantizer.fit(kernel)
    >>> ops.convert_to_numpy(quantizer(kernel, basis)).round(2).tolist()
    [[-4.0, 1.0], [1.0, 4.0]]

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """

    def __init__(
        self,
        bits: int = 2,
        *,
        normalize: bool = True,
        per_channel: bool = True,
        momentum: float = 0.9,
        uniform: bool = False,
    ):
        super().__init__(bits, MAX_WEIGHT_BITS, momentum)
        self.normalize = check_flag("normalize", normalize)
        self.per_channel = check_flag("per_channel", per_channel)
        self.uniform = check_flag("uniform", uniform)
        self._powers = 2.0 ** np.arange(self.bits, dtype="float32")

    def basis_shape(self, shape: Sequence[int], channel_axes: int = 1) -> tuple[int, ...]:
        """The shape of the basis of a kernel.

        Args:
            shape: Shape of the kernel.
            channel_axes: How many of the last axes count output channels: 1, or 2 for depthwise
                kernels. Defaults to 1.

        Returns:
            `(bits, *channels)`, or `(bits,)` where there is one basis for the whole kernel.
        """
        return (self.bits, *(tuple(shape)[-channel_axes:] if self.per_channel else ()))

    def normalized(self, weights: Tensor) -> tuple[Any, Any]:
        """Step 1: the float32 kernel divided by its scale, and the scale (1 for a kernel of zeros)."""
        weights = ops.cast(weights, "float32")
        if not self.normalize:
            return weights, ops.ones((), "float32")
        largest = ops.max(ops.abs(weights))
        scale = ops.where(largest > 0, largest, ops.ones_like(largest))
        return weights / scale, scale

    def __call__(self, weights: Tensor, basis: Tensor) -> Tensor:
        """The quantized kernel.

        Args:
            weights: Tensor, the latent kernel.
            basis: Tensor of the shape `basis_shape(weights.shape)`, of the normalized weights.

        Returns:
            A float32 tensor in the shape of `weights`, differentiable in `weights` as said above.
        """
        normalized, scale = self.normalized(weights)
        scale = ops.stop_gradient(scale)
        grid = self._grid(basis)
        # The levels lie evenly on both sides of zero, so only those of magnitudes are compared.
        midpoints, values = grid.midpoints, self._scaled_levels(grid, basis, scale)

        def quantize(normalized: Tensor) -> Any:
            found = nearest(ops.abs(normalized), midpoints, values)
            found = ops.where(normalized > 0, found, -found)
            return found, lambda upstream: (scale * upstream,)

        flat = ops.reshape(normalized, (-1, grid.levels.shape[1]))
        return ops.reshape(custom_gradient(quantize)(flat), ops.shape(weights))

    def update(self, weights: Tensor, basis: Tensor) -> Tensor:
        """The basis after one training step: `momentum` of the old, the rest by least squares."""
        basis = ops.convert_to_tensor(basis)
        flat = self._flat(weights, basis)
        return basis + (1.0 - self.momentum) * self._correction(flat, basis)

    def start(self, weights: Tensor, channel_axes: int = 1) -> Tensor:
        """A basis for a new kernel: from evenly spaced levels, nearest ones and least squares, 20 times.

        Layers may be built in the middle of a program, where kernels have no values yet.

        Args:
            weights: Tensor, the latent kernel.
            channel_axes: As in `basis_shape`.

        Returns:
            A float32 tensor of the shape `basis_shape(weights.shape, channel_axes)`.
        """
        shape = self.basis_shape(weights.shape, channel_axes)
        powers = np.reshape(self._powers, (-1, *[1] * (len(shape) - 1)))
        normalized, _ = self.normalized(weights)
        flat = ops.reshape(normalized, (-1, math.prod(shape[1:])))
        spread = ops.sqrt(ops.mean(ops.square(flat), axis=0))
        powers = constant(0.5 * _NORMAL_STEP[self.bits] * powers, spread)
        basis = powers * ops.reshape(spread, shape[1:])
        values, start = known(flat), known(basis)
        if values is not None and start is not None:
            start = start.reshape(self.bits, -1)
            found = settled(values, start, self.uniform, ITERATIONS).reshape(shape)
            return ops.convert_to_tensor(found)
        return ops.fori_loop(
            0, ITERATIONS, lambda _, basis: basis + self._correction(flat, basis), basis
        )

    def fit(self, weights: Tensor, channel_axes: int = 1) -> Tensor:
        """The basis for a trained kernel, by least squares from several starts (`basis.best_basis`).

        Args:
            weights: Array or tensor, the latent kernel.
            channel_axes: As in `basis_shape`.

        Returns:
            A float32 tensor of the shape `basis_shape(weights.shape, channel_axes)`.
        """
        shape = self.basis_shape(weights.shape, channel_axes)
        normalized = ops.convert_to_numpy(self.normalized(weights)[0])
        flat = normalized.reshape(-1, math.prod(shape[1:]))
        return ops.convert_to_tensor(best_basis(flat, self.bits, self.uniform).reshape(shape))

    def codebook(self, weights: Tensor, basis: Tensor) -> Codebook:
        """The levels and indices of the quantized kernel: `codebook(w, v).weights == quantizer(w, v)`.

        Returns:
            A `Codebook` with centroids of shape `(2^bits, *channels)`.
        """
        normalized, scale = self.normalized(weights)
        grid = self._grid(basis)
        flat = ops.reshape(normalized, (-1, grid.levels.shape[1]))
        half = grid.levels.shape[0]
        places = ops.arange(half, dtype="int32")[:, None]
        places = nearest(ops.abs(flat), grid.midpoints, places)
        indices = ops.where(flat > 0, half + places, half - 1 - places)
        above = ops.convert_to_numpy(self._scaled_levels(grid, basis, scale))
        centroids = np.concatenate([-above[::-1], above]).reshape(-1, *basis.shape[1:])
        return Codebook(centroids, ops.convert_to_numpy(indices).reshape(weights.shape))

    def get_config(self) -> dict[str, Any]:
        config = {key: getattr(self, key) for key in ("normalize", "per_channel", "uniform")}
        return {**super().get_config(), **config}

    def _flat(self, weights: Tensor, basis: Tensor) -> Tensor:
        normalized, _ = self.normalized(ops.stop_gradient(ops.convert_to_tensor(weights)))
        return ops.reshape(normalized, (-1, math.prod(basis.shape[1:])))

    def _grid(self, basis: Tensor) -> Grid:
        """The levels above zero."""
        levels, codes = grid_of(ops.stop_gradient(ops.convert_to_tensor(basis)), (-1.0, 1.0))
        half = 2 ** (self.bits - 1)
        return Grid(levels[half:], codes[half:])

    def _scaled_levels(self, grid: Grid, basis: Tensor, scale: Any) -> Tensor:
        if not self.uniform:
            return scale * grid.levels
        # An odd integer times one step, rounded once, as integer formats compute it.
        step = ops.reshape(scale * basis[0], (1, -1))
        powers = constant(self._powers, grid.codes)
        return ops.sum(grid.codes * powers, axis=-1) * step

    def _correction(self, flat: Tensor, basis: Tensor) -> Tensor:
        """What least squares adds to the basis, given the nearest level of each weight."""
        # An evenly spaced basis stays 1, 2, 4 ... times its step.
        direction = self._powers if self.uniform else None
        change = best_change(ops.abs(flat), self._grid(basis), direction)
        return ops.reshape(change, basis.shape)


@keras.saving.register_keras_serializable(package="keras_qareg")
class ActivationQuantizer(_LearnedLevels):
    """Quantizes non-negative activations to 2^bits learned levels: 0 and all sums of `v_1 ... v_b`.

    One basis for the whole tensor (Zhang et al., "LQ-Nets", ECCV 2018, section 3). The gradient is 1
    from the lowest level to the highest and 0 beyond; negative inputs become 0. A basis of zeros has
    seen no data: it leaves activations as they are, and its first update starts from their range.

    Args:
        bits: Integer from 1 to 8.
        signed: Whether activations may be negative: the levels are then all sums of `+-v_1 ... +-v_b`,
            evenly on both sides of zero, which is none of them. Defaults to `False`.
        momentum: Float in [0, 1), the share of the old basis that an update keeps. Defaults to 0.9.

    Raises:
        ValueError: If `bits` or `momentum` is out of its range.

    Example:

    >>> quantizer = ActivationQuantizer(bits=2)
    >>> basis = np.array([1.0, 2.0], "float32")
    >>> ops.convert_to_numpy(quantizer([-1.0, 0.4, 1.6, 9.0], basis)).tolist()
    [0.0, 0.0, 2.0, 3.0]

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """

    def __init__(self, bits: int, *, signed: bool = False, momentum: float = 0.9):
        super().__init__(bits, MAX_ACTIVATION_BITS, momentum)
        self.signed = check_flag("signed", signed)

    def basis_shape(self) -> tuple[int]:
        """The shape of the basis: `(bits,)`."""
        return (self.bits,)

    def __call__(self, inputs: Tensor, basis: Tensor) -> Tensor:
        """The quantized activations: a tensor with the shape and dtype of `inputs`."""
        inputs = ops.convert_to_tensor(inputs)
        grid = self._grid(basis)
        midpoints, levels = grid.midpoints, grid.levels
        bottom, top = grid.levels[0, 0], grid.levels[-1, 0]

        def quantize(flat: Tensor) -> Any:
            def grad(upstream: Tensor) -> Any:
                inside = ops.logical_and(flat >= bottom, flat <= top)
                passes = ops.logical_or(inside, top <= 0)
                return (ops.where(passes, upstream, ops.zeros_like(upstream)),)

            quantized = nearest(flat, midpoints, levels)
            return ops.where(top > 0, quantized, flat), grad

        flat = ops.reshape(ops.cast(inputs, "float32"), (-1, 1))
        found = ops.reshape(custom_gradient(quantize)(flat), ops.shape(inputs))
        return ops.cast(found, inputs.dtype)

    def update(self, inputs: Tensor, basis: Tensor) -> Tensor:
        """The basis after one training step with these activations, of shape `(bits,)`.

        Where `tf.distribute` shares the batch out, it learns from the activations of all replicas.
        """
        flat = ops.reshape(
            ops.cast(ops.stop_gradient(ops.convert_to_tensor(inputs)), "float32"), (-1, 1)
        )
        flat = flat if self.signed else ops.maximum(flat, 0.0)
        unseen = ops.sum(basis) <= 0
        basis = ops.where(unseen, self._start(ops.abs(flat)), basis)
        change = best_change(flat, self._grid(basis), together=replicas.mean)[:, 0]
        return ops.maximum(basis + (1.0 - self.momentum) * change, 0.0)

    def _start(self, flat: Tensor) -> Tensor:
        """Evenly spaced levels up to the largest activation, or a few times the typical one."""
        typical = ops.sqrt(replicas.mean(ops.mean(ops.square(flat))))
        largest = ops.max(replicas.gathered(ops.max(flat)))
        top = ops.minimum(largest, (1.0 + self.bits) * typical)
        powers = 2.0 ** np.arange(self.bits, dtype="float32")
        return top * constant(powers / powers.sum(), top)

    def _grid(self, basis: Tensor) -> Grid:
        digits = (-1.0, 1.0) if self.signed else (0.0, 1.0)
        return grid_of(ops.stop_gradient(ops.convert_to_tensor(basis)), digits)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "signed": True} if self.signed else config


_BY_NAME: dict[str, type] = {
    "weight_normalization": WeightNormalizationQuantizer,
    "activation": ActivationQuantizer,
}
Quantizer = WeightNormalizationQuantizer | ActivationQuantizer
Identifier = Quantizer | type[Quantizer] | str | dict[str, Any] | None


def serialize(quantizer: Quantizer) -> dict[str, Any]:
    """The configuration of a quantizer, for `deserialize`.

    Example:

    >>> deserialize(serialize(WeightNormalizationQuantizer(3))).bits
    3

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """
    return keras.saving.serialize_keras_object(quantizer)


def deserialize(config: dict[str, Any]) -> Quantizer:
    """The quantizer of a configuration made by `serialize`.

    Example:

    >>> deserialize(serialize(ActivationQuantizer(2))).bits
    2

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """
    return deserialized(config, _BY_NAME)


def get(identifier: Identifier) -> Quantizer | None:
    """A quantizer from what a user may pass for one.

    Args:
        identifier: `None`; a class of this module, its name, `"weight_normalization"` or
            `"activation"` (2 bits); a configuration as made by `serialize`; or an instance.

    Returns:
        A quantizer, or `None`.

    Raises:
        ValueError: If the identifier is none of these.

    Example:

    >>> get("weight_normalization").bits
    2

    See also: https://keras-qareg.github.io/keras-qareg/method.html#weight-normalization-based-quantization
    """
    return find(identifier, Quantizer, _BY_NAME, "quantizer", bits=2)
