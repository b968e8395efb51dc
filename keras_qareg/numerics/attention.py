"""Soft assignment: weights as mixtures of centroids, by how near these are.

The soft value of a weight w among centroids c is `sum_j a_j c_j` with the attention
`a = softmax(-(w - c)^2 / T)`. The colder, the harder: at T = 0 it is the nearest centroid.

Nothing of the size of weights x centroids is kept. The sums over centroids are taken one centroid after
the other, for some weights at a time, and once more for the gradients, which are written out here: what
stays between the two passes is the weights themselves.

Source: Cho et al., "DKM: Differentiable k-Means Clustering Layer for Neural Network Compression"
(arXiv 2108.12659).

See also: https://keras-qareg.github.io/keras-qareg/method.html#weights-that-move-between-centroids
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_qareg.numerics.compiled import Tensor, compiled, custom_gradient, in_chunks, on_torch

# Centroids whose sums are written out one by one in a program; more are taken in rounds of so many.
_ROUND = 16
# Weights at a time: a program keeps a few dozens of numbers for each of them. PyTorch, which goes from
# operation to operation, keeps fewer, and wants them longer.
_CHUNK = 1 << 14


def soft_values(weights: Tensor, centroids: Tensor, temperature: Tensor) -> Tensor:
    """Each weight as the mean of the centroids under `softmax(-(w - c)^2 / temperature)`.

    Args:
        weights: Tensor of any shape.
        centroids: Tensor of shape `(levels,)`, in any order.
        temperature: Positive scalar, in squared weights. It gets no gradient.

    Returns:
        A float32 tensor in the shape of the weights, with its true gradients by weights and centroids.

    Example:

    >>> ops.convert_to_numpy(soft_values([0.0, 0.5, 0.9], [0.0, 1.0], 0.05)).round(3).tolist()
    [0.0, 0.5, 1.0]
    """

    def attend(weights: Any, centroids: Any, temperature: Any) -> Any:
        def grad(upstream: Any) -> Any:
            # Reshaped: in the gradient of `ops.cond`, only operations capture what was there before.
            flat = (ops.reshape(x, (-1,)) for x in (weights, upstream, centroids))
            slopes, sums = _gradients()(*flat, ops.reshape(temperature, ()))
            return ops.reshape(slopes, ops.shape(weights)), sums, None

        return _values()(weights, centroids, temperature), grad

    # Tensors of their own: `custom_gradient` does not reach a variable that it is given.
    given = (
        ops.cast(ops.convert_to_tensor(x), "float32") for x in (weights, centroids, temperature)
    )
    return custom_gradient(attend)(*(ops.copy(x) for x in given))


class _Part(NamedTuple):
    """Some weights against all centroids.

    `shift` is what `-(w - c)^2 / temperature` lacks to the logarithm of the attention; `offset` the
    distance of each weight from its soft value, and `spread` the variance of the centroids there.
    """

    shift: Tensor
    offset: Tensor
    spread: Tensor


def _part_of(part: Tensor, centroids: Tensor, cold: Tensor) -> _Part:
    """What all weights of a part are to the centroids; `cold` is one over the temperature."""

    def closer(centroid: Tensor, nearest: Tensor) -> Tensor:
        return ops.minimum(nearest, ops.square(part - centroid))

    def add(centroid: Tensor, sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        distance = part - centroid
        square = ops.square(distance)
        share = ops.exp((nearest - square) * cold)
        return sums[0] + share, sums[1] + share * distance, sums[2] + share * square

    nearest = _over(centroids, closer, ops.square(part - centroids[0]))
    # Offsets, not values: near a centroid their squares lose nothing to rounding.
    zeros = ops.zeros_like(part)
    total, first, second = _over(centroids, add, (zeros, zeros, zeros))
    offset = first / total
    spread = ops.maximum(second / total - ops.square(offset), 0.0)
    return _Part(nearest * cold - ops.log(total), offset, spread)


def _over(centroids: Tensor, step: Callable[[Tensor, Any], Any], carried: Any) -> Any:
    """A step for each centroid, one after the other: written out for few, in a loop for many."""
    rounds, rest = divmod(centroids.shape[0], _ROUND)
    if rounds > 1:

        def several(i: Any, carried: Any) -> Any:
            some = ops.slice(centroids, (i * _ROUND,), (_ROUND,))
            return functools.reduce(lambda found, j: step(some[j], found), range(_ROUND), carried)

        carried = ops.fori_loop(0, rounds, several, carried)
    else:
        rest += rounds * _ROUND
    last = centroids.shape[0] - rest
    return functools.reduce(
        lambda found, j: step(centroids[j], found), range(last, last + rest), carried
    )


@functools.lru_cache
def _values() -> Callable[..., Any]:
    def values(weights: Tensor, centroids: Tensor, temperature: Tensor) -> Tensor:
        cold = _cold(temperature)
        # One pass where all is written out; between rounds, sums of all weights would lie about.
        fused = centroids.shape[0] < 2 * _ROUND
        return in_chunks(
            lambda part: (part - _part_of(part, centroids, cold).offset, ()),
            weights,
            fused=fused,
            chunk=_chunk(),
        )[0]

    return compiled(values)


@functools.lru_cache
def _gradients() -> Callable[..., Any]:
    def gradients(
        weights: Tensor, upstream: Tensor, centroids: Tensor, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        cold = _cold(temperature)

        def part_of(part: Tensor, slope: Tensor) -> tuple[Tensor, tuple[Tensor]]:
            found = _part_of(part, centroids, cold)
            sums = _sums(part, slope, found, centroids, cold)
            return 2.0 * cold * found.spread * slope, (sums,)

        shapes = (centroids.shape,)
        slopes, (sums,) = in_chunks(part_of, weights, upstream, sums=shapes, chunk=_chunk())
        return slopes, sums

    return compiled(gradients)


def _sums(part: Tensor, slope: Tensor, found: _Part, centroids: Tensor, cold: Tensor) -> Tensor:
    """The gradient of each centroid by some weights."""

    def of(centroid: Tensor) -> Tensor:
        distance = part - centroid
        share = slope * ops.exp(found.shift - ops.square(distance) * cold)
        return ops.sum(share * (1.0 + 2.0 * cold * distance * (found.offset - distance)))

    def several(some: Tensor) -> Tensor:
        return ops.stack([of(some[j]) for j in range(some.shape[0])])

    rounds, rest = divmod(centroids.shape[0], _ROUND)
    if rounds <= 1:
        return several(centroids)

    def step(i: Any, sums: Tensor) -> Tensor:
        some = ops.slice(centroids, (i * _ROUND,), (_ROUND,))
        return ops.slice_update(sums, (i * _ROUND,), several(some))

    sums = ops.fori_loop(0, rounds, step, ops.zeros_like(centroids))
    if not rest:
        return sums
    return ops.slice_update(sums, (rounds * _ROUND,), several(centroids[-rest:]))


def _chunk() -> int | None:
    return None if on_torch() else _CHUNK


def _cold(temperature: Tensor) -> Tensor:
    # Not so cold that squares of weights overflow.
    return 1.0 / ops.maximum(temperature, 1e-30)
