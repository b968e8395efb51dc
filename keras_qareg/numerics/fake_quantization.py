"""Fake quantization: what integers of a few bits can hold, computed and trained in floating point.

A full-integer file holds an activation as `step * (code - zero_point)`, with one step and one zero point
for the tensor, and a kernel as `step * code` with a step for each output channel. In training every
value is moved to the nearest of these, and gradients pass straight through; step and zero point have
gradients of their own.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (arXiv 1712.05877); Esser et al., "Learned Step Size Quantization"
(arXiv 1902.08153); Bhalgat et al., "LSQ+" (arXiv 2004.09576), whose gradients these are.

See also: https://keras-qareg.github.io/keras-qareg/integer.html
"""

from __future__ import annotations

import numpy as np
from keras import ops

from keras_qareg.numerics.compiled import Tensor, custom_gradient

# How often the two ends of a range are fitted to each other.
_ROUNDS = 2


def code_range(bits: int) -> tuple[int, int]:
    """The lowest and the highest code of signed integers: `(-128, 127)` of 8 bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def fake_quantized(x: Tensor, step: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Values as the nearest of those that integers hold: `step * (code - zero_point)`.

    The gradient by `x` is 1 within the range and 0 beyond. That by `step` is `code - zero_point`, less
    `x / step` within the range; that by `zero_point` is 0 within it and `-step` beyond (LSQ+, equations
    4 to 6). The zero point is rounded, which its gradient passes straight through.

    Args:
        x: Float32 tensor of any shape.
        step: Positive float32 scalar.
        zero_point: Float32 scalar, which is used rounded.
        low: The lowest code.
        high: The highest code.

    Returns:
        A tensor like `x`.

    Example:

    >>> values = fake_quantized(ops.array([-9.0, 0.3, 1.0]), ops.array(0.5), ops.array(0.0), -2, 1)
    >>> ops.convert_to_numpy(values).tolist()
    [-1.0, 0.5, 0.5]
    """

    def quantize(x: Tensor, step: Tensor, zero_point: Tensor) -> tuple[Tensor, object]:
        zero = ops.round(zero_point)
        scaled = x / step
        bottom, top = low - zero, high - zero
        codes = ops.clip(ops.round(scaled), bottom, top)

        def gradients(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            # Of codes, not of `x / step`: half a step beyond the end is rounded to it, not clipped.
            rounded = ops.round(scaled)
            inside = ops.logical_and(rounded >= bottom, rounded <= top)
            passed = ops.where(inside, upstream, ops.zeros_like(upstream))
            by_step = ops.sum(upstream * codes) - ops.sum(passed * scaled)
            return passed, by_step, step * (ops.sum(passed) - ops.sum(upstream))

        return codes * step, gradients

    # Copies: a gradient by a variable itself is lost in branches of TensorFlow's graphs.
    return custom_gradient(quantize)(x, ops.copy(step), ops.copy(zero_point))


def grid_of(low: float, high: float, bits: int, symmetric: bool) -> tuple[np.float32, int]:
    """The step and the zero point of integers for values from `low` to `high`, with 0 among them.

    Args:
        low: The lowest value. Above 0, it counts as 0: padding and ReLU need an exact 0.
        high: The highest value; below 0, as 0.
        bits: Bits of a code.
        symmetric: Whether the zero point is 0, and the range as wide on both sides.

    Returns:
        `(step, zero_point)`.

    Raises:
        ValueError: If the range is not finite, or nothing but 0.

    Example:

    >>> step, zero_point = grid_of(-0.5, 2.05, bits=8, symmetric=False)
    >>> round(float(step), 6), zero_point
    (0.01, -78)
    """
    first, last = code_range(bits)
    bottom, top = min(float(low), 0.0), max(float(high), 0.0)
    if not (np.isfinite([low, high]).all() and low <= high and np.float32(top - bottom) > 0):
        raise ValueError(
            "Expected a finite range of activations, which are not all 0. "
            f"Received: from {low} to {high}"
        )
    if symmetric:
        return np.float32(max(-bottom, top) / last), 0
    step = np.float32((top - bottom) / (last - first))
    return step, int(np.clip(np.rint(first - bottom / float(step)), first, last))


def integer_kernel(kernel: Tensor, channel_axes: int, largest: int) -> tuple[Tensor, Tensor]:
    """The codes of a kernel, symmetric, with a step for each output channel: `max|w| / largest`.

    Args:
        kernel: Float32 tensor.
        channel_axes: How many of its last axes count output channels.
        largest: The code of the largest weight of a channel.

    Returns:
        Codes, whole numbers as a float32 tensor like `kernel`, and steps in the shape of the channels.
        A channel of zeros has the step 1.

    Example:

    >>> codes, steps = integer_kernel(ops.array([[0.5, 3.0], [-1.0, 0.0]]), 1, 2)
    >>> ops.convert_to_numpy(codes).tolist(), ops.convert_to_numpy(steps).tolist()
    ([[1.0, 2.0], [-2.0, 0.0]], [0.5, 1.5])
    """
    axes = tuple(range(len(kernel.shape) - channel_axes))
    ends = ops.max(ops.abs(kernel), axis=axes)
    steps = ops.where(ends > 0, ends / largest, ops.ones_like(ends))
    return ops.clip(ops.round(kernel / steps), -largest, largest), steps


def fake_quantized_kernel(kernel: Tensor, channel_axes: int, largest: int) -> Tensor:
    """A kernel as the products of `integer_kernel`; its gradient passes straight through.

    Arguments as there.

    Returns:
        A tensor like `kernel`.
    """

    def quantize(kernel: Tensor) -> tuple[Tensor, object]:
        codes, steps = integer_kernel(kernel, channel_axes, largest)
        return codes * steps, lambda upstream: (upstream,)

    return custom_gradient(quantize)(ops.copy(kernel))


def best_range(
    counts: np.ndarray, low: float, high: float, bits: int, symmetric: bool
) -> tuple[float, float]:
    """The range for which integers are nearest to values, by least squares: the rare ends may be cut.

    Args:
        counts: How many values are in each of some bins of equal width, `(bins,)`.
        low: The lowest value.
        high: The highest.
        bits: Bits of a code.
        symmetric: As in `grid_of`.

    Returns:
        `(low, high)`, no wider than the values.

    Example:

    >>> counts = np.zeros(2048); counts[:20], counts[-1] = 10_000, 1
    >>> [round(end, 2) for end in best_range(counts, 0.0, 100.0, 8, False)]
    [0.0, 76.0]
    """
    width = (high - low) / len(counts)
    centers = low + width * (np.arange(len(counts)) + 0.5)
    first, last = code_range(bits)

    def error(bottom: float, top: float) -> float:
        step, zero = grid_of(bottom, top, bits, symmetric)
        codes = np.clip(np.rint(centers / float(step)), first - zero, last - zero)
        return float((counts * np.square(codes * float(step) - centers)).sum())

    shares = np.linspace(1.0, 0.1, 91).tolist()  # the widest of equals
    bottom, top = low, high
    for _ in range(_ROUNDS):
        if high > 0:
            top = min((share * high for share in shares), key=lambda end: error(bottom, end))
        if low < 0:
            bottom = min((share * low for share in shares), key=lambda end: error(end, top))
    return bottom, top


def cut_range(counts: np.ndarray, low: float, high: float, share: float) -> tuple[float, float]:
    """The range without so large a share of the values at each end.

    Args:
        counts, low, high: As in `best_range`.
        share: The share, from 0 on, less than a half.

    Returns:
        `(low, high)`.

    Example:

    >>> cut_range(np.array([1, 98, 0, 1]), 0.0, 4.0, share=0.01)
    (1.0, 2.0)
    """
    below = np.cumsum(counts) / counts.sum()
    first = int(np.searchsorted(below, share, side="right"))
    last = int(np.searchsorted(below, 1.0 - share, side="left"))
    width = (high - low) / len(counts)
    return low + width * first, low + width * (last + 1)
