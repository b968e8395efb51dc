"""Quantizers with learned levels: weight normalization based quantization, and activations.

A quantizer is a configuration and pure functions of tensors; `layers.WNQDense` and its siblings hold
the basis. With b bits, a basis v of b values spans 2^b levels: all sums of +-v_1 ... +-v_b for
weights, of v_i or nothing for activations. The basis is learned by quantization error minimization
(Zhang et al., "LQ-Nets", ECCV 2018): each value takes its nearest level, and least squares then finds
the basis that fits these choices best. Training moves the basis by a share of the way at each step.

Nothing builds a tensor of weights x levels: levels are told apart by comparisons with their midpoints,
one at a time, and least squares needs no more than the count and the summed error at each level.

Source: Cai, Li, "Weight Normalization based Quantization for Deep Neural Network Compression"
(arXiv 1907.00593), called WNQ.
"""

from __future__ import annotations

import itertools
import math
import operator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qareg.codebook import Codebook

MAX_WEIGHT_BITS, MAX_ACTIVATION_BITS = 4, 8
# Rounds of least squares from where a new basis starts.
ITERATIONS = 20
# The step between evenly spaced levels with the least squared error for values of a normal
# distribution with standard deviation 1 (Max, "Quantizing for minimum distortion", 1960).
_NORMAL_STEP = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.335}
# Above this many levels, bisection is cheaper than one comparison a level.
_COMPARED_LEVELS = 16
# Added to the normal equations: leaves what the values do not determine as it is.
_RIDGE = 1e-6


class _Grid(NamedTuple):
    """The levels of a basis in ascending order, and the signs or bits that make them."""

    levels: Any  # (levels, channels)
    codes: Any  # (levels, channels, bits)

    @property
    def midpoints(self) -> Any:
        return 0.5 * self.levels[:-1] + 0.5 * self.levels[1:]


class _LearnedLevels:
    """What both quantizers share: bits, momentum, and least squares."""

    def __init__(self, bits: int, most: int, momentum: float):
        self.bits = _check_bits(bits, most)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"Expected `momentum` in [0, 1). Received: momentum={momentum!r}")
        self.momentum = float(momentum)

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
    >>> kernel = np.array([[-4.0, 0.9], [1.1, 3.8]], "float32")
    >>> basis = quantizer.fit(kernel)
    >>> ops.convert_to_numpy(quantizer(kernel, basis)).round(2).tolist()
    [[-3.9, 1.0], [1.0, 3.9]]
    """

    def __init__(
        self,
        bits: int = 2,
        normalize: bool = True,
        per_channel: bool = True,
        momentum: float = 0.9,
        uniform: bool = False,
    ):
        super().__init__(bits, MAX_WEIGHT_BITS, momentum)
        self.normalize, self.per_channel, self.uniform = normalize, per_channel, uniform
        self._powers = 2.0 ** np.arange(self.bits, dtype="float32")

    def basis_shape(self, shape: Any, channel_axes: int = 1) -> tuple[int, ...]:
        """The shape of the basis of a kernel.

        Args:
            shape: Shape of the kernel.
            channel_axes: How many of the last axes count output channels: 1, or 2 for depthwise
                kernels. Defaults to 1.

        Returns:
            `(bits, *channels)`, or `(bits,)` where there is one basis for the whole kernel.
        """
        return (self.bits, *(tuple(shape)[-channel_axes:] if self.per_channel else ()))

    def normalized(self, weights: Any) -> tuple[Any, Any]:
        """Step 1: the float32 kernel divided by its scale, and the scale (1 for a kernel of zeros)."""
        weights = ops.cast(weights, "float32")
        if not self.normalize:
            return weights, ops.ones((), "float32")
        largest = ops.max(ops.abs(weights))
        scale = ops.where(largest > 0, largest, ops.ones_like(largest))
        return weights / scale, scale

    def __call__(self, weights: Any, basis: Any) -> Any:
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
        midpoints, values = grid.midpoints, self._scaled_levels(grid, basis, scale)

        @ops.custom_gradient
        def quantize(normalized: Any) -> Any:
            def grad(*args: Any, upstream: Any = None) -> Any:
                return scale * (args[0] if upstream is None else upstream)

            return _nearest(normalized, midpoints, values), grad

        flat = ops.reshape(normalized, (-1, grid.levels.shape[1]))
        return ops.reshape(quantize(flat), ops.shape(weights))

    def update(self, weights: Any, basis: Any) -> Any:
        """The basis after one training step: `momentum` of the old, the rest by least squares."""
        flat = self._flat(weights, basis)
        return basis + (1.0 - self.momentum) * self._correction(flat, basis)

    def fit(self, weights: Any, channel_axes: int = 1) -> Any:
        """A basis for a kernel: nearest levels and least squares in turn, 20 times.

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
        basis = 0.5 * _NORMAL_STEP[self.bits] * powers * ops.reshape(spread, shape[1:])
        for _ in range(ITERATIONS):
            basis = basis + self._correction(flat, basis)
        return basis

    def codebook(self, weights: Any, basis: Any) -> Codebook:
        """The levels and indices of the quantized kernel: `codebook(w, v).weights == quantizer(w, v)`.

        Returns:
            A `Codebook` with centroids of shape `(2^bits, *channels)`.
        """
        normalized, scale = self.normalized(weights)
        grid = self._grid(basis)
        flat = ops.reshape(normalized, (-1, grid.levels.shape[1]))
        places = ops.arange(2**self.bits, dtype="int32")[:, None]
        indices = _nearest(flat, grid.midpoints, places)
        levels = ops.reshape(self._scaled_levels(grid, basis, scale), (-1, *basis.shape[1:]))
        return Codebook(
            ops.convert_to_numpy(levels), ops.convert_to_numpy(indices).reshape(weights.shape)
        )

    def get_config(self) -> dict[str, Any]:
        config = {key: getattr(self, key) for key in ("normalize", "per_channel", "uniform")}
        return {**super().get_config(), **config}

    def _flat(self, weights: Any, basis: Any) -> Any:
        normalized, _ = self.normalized(ops.stop_gradient(weights))
        return ops.reshape(normalized, (-1, math.prod(basis.shape[1:])))

    def _grid(self, basis: Any) -> _Grid:
        return _grid(ops.stop_gradient(basis), np.array([-1.0, 1.0], "float32"))

    def _scaled_levels(self, grid: _Grid, basis: Any, scale: Any) -> Any:
        if not self.uniform:
            return scale * grid.levels
        # An odd integer times one step, rounded once, as integer formats compute it.
        step = ops.reshape(scale * basis[0], (1, -1))
        return ops.sum(grid.codes * self._powers, axis=-1) * step

    def _correction(self, flat: Any, basis: Any) -> Any:
        """What least squares adds to the basis, given the nearest level of each weight."""
        grid = self._grid(basis)
        gram, force = _normal_equations(flat, grid)
        if not self.uniform:
            return ops.reshape(ops.transpose(_solve(gram, force)), basis.shape)
        # One unknown, the step: the basis stays 1, 2, 4 ... times it.
        square = ops.sum(gram * (self._powers[:, None] * self._powers), axis=(1, 2))
        change = ops.sum(force * self._powers, axis=1) / (square + _RIDGE)
        return ops.reshape(self._powers[:, None] * change, basis.shape)


@keras.saving.register_keras_serializable(package="keras_qareg")
class ActivationQuantizer(_LearnedLevels):
    """Quantizes non-negative activations to 2^bits learned levels: 0 and all sums of `v_1 ... v_b`.

    One basis for the whole tensor (Zhang et al., "LQ-Nets", ECCV 2018, section 3). The gradient is 1
    from 0 to the highest level and 0 beyond; negative inputs become 0. A basis of zeros has seen no
    data: it leaves activations as they are, and its first update starts from their range.

    Args:
        bits: Integer from 1 to 8.
        momentum: Float in [0, 1), the share of the old basis that an update keeps. Defaults to 0.9.

    Raises:
        ValueError: If `bits` or `momentum` is out of its range.

    Example:

    >>> quantizer = ActivationQuantizer(bits=2)
    >>> basis = np.array([1.0, 2.0], "float32")
    >>> ops.convert_to_numpy(quantizer([-1.0, 0.4, 1.6, 9.0], basis)).tolist()
    [0.0, 0.0, 2.0, 3.0]
    """

    def __init__(self, bits: int, momentum: float = 0.9):
        super().__init__(bits, MAX_ACTIVATION_BITS, momentum)

    def basis_shape(self) -> tuple[int]:
        """The shape of the basis: `(bits,)`."""
        return (self.bits,)

    def __call__(self, inputs: Any, basis: Any) -> Any:
        """The quantized activations: a tensor with the shape and dtype of `inputs`."""
        inputs = ops.convert_to_tensor(inputs)
        grid = self._grid(basis)
        midpoints, levels, top = grid.midpoints, grid.levels, grid.levels[-1, 0]

        @ops.custom_gradient
        def quantize(flat: Any) -> Any:
            def grad(*args: Any, upstream: Any = None) -> Any:
                upstream = args[0] if upstream is None else upstream
                inside = ops.logical_and(flat >= 0, flat <= top)
                passes = ops.logical_or(inside, top <= 0)
                return ops.where(passes, upstream, ops.zeros_like(upstream))

            quantized = _nearest(flat, midpoints, levels)
            return ops.where(top > 0, quantized, flat), grad

        flat = ops.reshape(ops.cast(inputs, "float32"), (-1, 1))
        return ops.cast(ops.reshape(quantize(flat), ops.shape(inputs)), inputs.dtype)

    def update(self, inputs: Any, basis: Any) -> Any:
        """The basis after one training step with these activations, of shape `(bits,)`."""
        flat = ops.reshape(ops.cast(ops.stop_gradient(inputs), "float32"), (-1, 1))
        flat = ops.maximum(flat, 0.0)
        unseen = ops.sum(basis) <= 0
        basis = ops.where(unseen, self._start(flat), basis)
        grid = self._grid(basis)
        change = _solve(*_normal_equations(flat, grid))[0]
        return ops.maximum(basis + (1.0 - self.momentum) * change, 0.0)

    def _start(self, flat: Any) -> Any:
        """Evenly spaced levels up to the largest activation, or a few times the typical one."""
        typical = ops.sqrt(ops.mean(ops.square(flat)))
        top = ops.minimum(ops.max(flat), (1.0 + self.bits) * typical)
        powers = 2.0 ** np.arange(self.bits, dtype="float32")
        return top * (powers / powers.sum())

    def _grid(self, basis: Any) -> _Grid:
        return _grid(ops.stop_gradient(basis), np.array([0.0, 1.0], "float32"))


_BY_NAME = {
    "weight_normalization": WeightNormalizationQuantizer,
    "activation": ActivationQuantizer,
}
_BY_CLASS_NAME = {cls.__name__: cls for cls in _BY_NAME.values()}
Quantizer = WeightNormalizationQuantizer | ActivationQuantizer


def serialize(quantizer: Quantizer) -> dict[str, Any]:
    """The configuration of a quantizer, for `deserialize`."""
    return keras.saving.serialize_keras_object(quantizer)


def deserialize(config: dict[str, Any]) -> Quantizer:
    """The quantizer of a configuration made by `serialize`."""
    return keras.saving.deserialize_keras_object(config, custom_objects=_BY_CLASS_NAME)


def get(identifier: Any) -> Quantizer | None:
    """A quantizer from what a user may pass for one.

    Args:
        identifier: `None`; `"weight_normalization"` or `"activation"` (2 bits); a configuration as
            made by `serialize`; or an instance.

    Returns:
        A quantizer, or `None`.

    Raises:
        ValueError: If the identifier is none of these.

    Example:

    >>> get("weight_normalization").bits
    2
    """
    if identifier is None or isinstance(identifier, Quantizer):
        return identifier
    if isinstance(identifier, dict) and identifier.get("class_name") in _BY_CLASS_NAME:
        return deserialize(identifier)
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier](bits=2)
    raise ValueError(
        f"Expected a quantizer of keras_qareg, None, or one of {sorted(_BY_NAME)}. "
        f"Received: {identifier!r}"
    )


def _check_bits(bits: Any, most: int) -> int:
    try:
        value = 0 if isinstance(bits, bool) else operator.index(bits)
    except TypeError:
        value = 0
    if not 1 <= value <= most:
        raise ValueError(
            f"Expected `bits` to be an integer from 1 to {most}. Received: bits={bits!r}"
        )
    return value


def _grid(basis: Any, digits: np.ndarray) -> _Grid:
    """All levels of a basis `(bits, *channels)`, sorted in each channel."""
    bits = basis.shape[0]
    basis = ops.reshape(ops.cast(basis, "float32"), (bits, -1))
    binary = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    codes = digits[binary]
    # Not a matrix product, which accelerators compute in reduced precision.
    levels = sum(codes[:, i : i + 1] * basis[i] for i in range(bits))
    order = ops.argsort(levels, axis=0)
    return _Grid(ops.take_along_axis(levels, order, axis=0), ops.take(codes, order, axis=0))


def _nearest(flat: Any, midpoints: Any, values: Any) -> Any:
    """Of `values` `(levels, channels)`, those whose levels are nearest to `flat` `(n, channels)`.

    At a tie it is the lower level. Beyond 16 levels there must be one channel.
    """
    count = midpoints.shape[0] + 1
    if count > _COMPARED_LEVELS:
        index = ops.searchsorted(midpoints[:, 0], flat[:, 0], side="left")
        return ops.take(values, index, axis=0)
    found = ops.broadcast_to(values[0], ops.shape(flat))
    for j in range(1, count):
        found = ops.where(flat > midpoints[j - 1], values[j], found)
    return found


def _normal_equations(flat: Any, grid: _Grid) -> tuple[Any, Any]:
    """The matrix `(channels, bits, bits)` and right side `(channels, bits)` for a change of basis."""
    shares, errors = _members(flat, grid)
    codes = grid.codes
    gram = ops.sum(shares[..., None, None] * codes[..., None] * codes[..., None, :], axis=0)
    return gram, ops.sum(errors[..., None] * codes, axis=0)


def _members(flat: Any, grid: _Grid) -> tuple[Any, Any]:
    """For each level, the share of the values that are nearest to it, and their summed errors.

    Errors are divided by the number of all values. Both have shape `(levels, channels)`.
    """
    midpoints, levels = grid.midpoints, grid.levels.shape[0]
    size = ops.shape(flat)[0]
    # Sums of errors, not of values, which would lose their last digits in the difference.
    errors = flat - _nearest(flat, midpoints, grid.levels)
    if levels > _COMPARED_LEVELS:
        index = ops.searchsorted(midpoints[:, 0], flat[:, 0], side="left")
        ones = ops.ones_like(index, dtype="int32")
        counts = ops.segment_sum(ones, index, num_segments=levels)[:, None]
        sums = ops.segment_sum(errors[:, 0], index, num_segments=levels)[:, None]
    else:
        above = [flat > midpoint for midpoint in ops.unstack(midpoints)]
        # Whole numbers: float32 does not count beyond 2^24.
        counts = _steps([ops.ones_like(flat, "int32"), *(ops.cast(m, "int32") for m in above)])
        sums = _steps([errors, *(ops.where(mask, errors, 0.0) for mask in above)])
    size = ops.cast(size, "float32")
    return ops.cast(counts, "float32") / size, sums / size


def _steps(parts: list[Any]) -> Any:
    """Sums over the values of each part less those of the next: `(parts, channels)`."""
    sums = [ops.sum(part, axis=0) for part in parts]
    return ops.stack([*(a - b for a, b in itertools.pairwise(sums)), sums[-1]])


def _solve(matrix: Any, right: Any) -> Any:
    """Solves small symmetric systems `(channels, bits, bits)`, singular ones too.

    What the ridge takes from the solution is given back by solving once more for the residual;
    nothing is given where the matrix is singular, for there the residual is nothing.
    """
    solution = _eliminate(matrix, right)
    residual = right - ops.sum(matrix * solution[:, None, :], axis=-1)
    return solution + _eliminate(matrix, residual)


def _eliminate(matrix: Any, right: Any) -> Any:
    """Gauss-Jordan elimination of a ridge regression.

    Library solvers raise an error on NaN in the middle of training, and are slow at thousands of
    systems of this size.
    """
    bits = matrix.shape[-1]
    identity = np.eye(bits, dtype="float32")
    system = ops.concatenate([matrix + _RIDGE * identity, right[..., None]], axis=-1)
    for k in range(bits):
        pivot_row = system[:, k] / system[:, k, k : k + 1]
        factors = system[:, :, k] - identity[k]
        system = system - factors[..., None] * pivot_row[:, None, :]
    return system[..., -1]
