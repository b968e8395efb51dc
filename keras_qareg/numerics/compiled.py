"""Where backends differ: compiling, gradients of one's own, branches, chunks, and sums at places.

Keras leaves TensorFlow graphs on CPUs uncompiled: there every operation is a pass over the memory. XLA
compiles them here, as it does JAX. PyTorch runs operation by operation: large tensors are taken in
chunks that stay in the cache of a CPU, and nothing asks an accelerator for a value, since the host would
wait.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

# A tensor of the backend in use, or what it makes one of.
Tensor = Any
# Weights that are worked on at a time.
CHUNK = 1 << 17


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that XLA compiles, on its own or within what is compiled around it.

    Args:
        function: Takes tensors and returns tensors, by `keras.ops`. Keep the result: each call of
            `compiled` compiles anew.

    Returns:
        A function that does the same. On TensorFlow it is compiled in graphs alone, as in `fit`; eager
        calls run operation by operation, as all do on PyTorch.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    graph = tf.function(function, jit_compile=True, reduce_retracing=False)

    @functools.wraps(function)
    def run(*tensors: Tensor) -> Any:
        return function(*tensors) if tf.executing_eagerly() else graph(*tensors)

    return run


def custom_gradient(function: Callable[..., tuple[Tensor, Callable[[Tensor], Any]]]) -> Any:
    """A function with a gradient of its own, in one way for all backends.

    Args:
        function: Takes tensors; returns a tensor, and the function from the gradient of that tensor to
            those of what was taken: a tensor, or a tuple of so many.

    Returns:
        A function of tensors or variables that returns the tensor.
    """

    @ops.custom_gradient
    def differentiable(*inputs: Tensor) -> Any:
        value, backwards = function(*inputs)

        def grad(*args: Tensor, upstream: Tensor = None) -> Any:
            return backwards(args[0] if upstream is None else upstream)

        return value, grad

    # Tensors of their own: gradients do not reach a variable that is given.
    return lambda *inputs: differentiable(*map(ops.convert_to_tensor, inputs))


def cond(condition: Tensor, true: Callable[[], Tensor], false: Callable[[], Tensor]) -> Tensor:
    """One of two tensors, by a tensor of one truth value; the other is computed on accelerators alone.

    What `keras.ops.cond` does, which on PyTorch asks the device.
    """
    if keras.backend.backend() != "torch":
        return ops.cond(condition, true, false)
    if condition.device.type == "cpu":
        return true() if condition else false()
    return ops.where(condition, true(), false())


def shortcut(
    possible: Callable[[], Tensor], quick: Callable[[], Any], sure: Callable[[], Any]
) -> Any:
    """What `quick` gives where that is possible, else what `sure` gives, which is right in any case."""
    condition = possible()
    if keras.backend.backend() != "torch":
        return ops.cond(condition, quick, sure)
    return quick() if condition.device.type == "cpu" and condition else sure()


def constant(values: np.ndarray) -> Tensor:
    """A tensor of an array, which PyTorch does not calculate with as it is.

    There it is kept, so that a step copies nothing to the device.
    """
    if keras.backend.backend() != "torch":
        return ops.convert_to_tensor(values)
    device = str(ops.zeros((0,)).device)
    return _kept(values.tobytes(), values.shape, str(values.dtype), device)


@functools.lru_cache
def _kept(content: bytes, shape: tuple[int, ...], dtype: str, device: str) -> Tensor:
    return ops.convert_to_tensor(np.frombuffer(content, dtype).reshape(shape).copy())


def entries(table: Tensor, places: Tensor) -> Tensor:
    """`table[places]`, for places of any shape from 0 up to the length of a table of one axis."""
    if keras.backend.backend() != "torch":
        return ops.take(table, places)
    # Keras looks for negative places first, and makes them 64 bits wide.
    return table.index_select(0, places.reshape(-1)).reshape(places.shape)


def segment_sums(values: Tensor, places: Tensor, count: int) -> Tensor:
    """The sum of the values at each place.

    What `keras.ops.segment_sum` computes; in graphs of TensorFlow on CPUs that is many times slower, and
    on PyTorch it adds whole numbers as float32.

    Args:
        values: Tensor of any shape.
        places: Integer tensor of the same shape, from 0 to `count - 1`.
        count: Number of places.

    Returns:
        A tensor `(count,)` in the dtype of the values.

    Example:

    >>> [float(x) for x in segment_sums(ops.array([1.0, 2.0, 4.0]), ops.array([0, 2, 0]), 3)]
    [5.0, 0.0, 2.0]
    """
    # Reshaped here: in the gradient of `ops.cond`, only operations capture tensors of the forward pass.
    values, places = ops.reshape(values, (-1,)), ops.reshape(places, (-1,))
    if keras.backend.backend() == "torch":
        return values.new_zeros(count).index_add_(0, places, values)
    return _segment_sums(count)(values, places)


@functools.lru_cache
def _segment_sums(count: int) -> Callable[..., Any]:
    return compiled(functools.partial(ops.segment_sum, num_segments=count))


def in_chunks(
    part_of: Callable[[Tensor], tuple[Tensor, ...]],
    weights: Tensor,
    shapes: Sequence[tuple[int, ...]],
) -> tuple[Tensor, ...]:
    """What a function of weights gives for all of them, some at a time.

    Args:
        part_of: Takes weights `(n,)`; returns a value for each, and float32 tensors that are summed.
        weights: Float32 tensor of any shape.
        shapes: The shapes of the tensors that are summed.

    Returns:
        The values in the shape of the weights, and the sums.
    """
    flat = ops.reshape(weights, (-1,))
    loop = _torch_chunks if keras.backend.backend() == "torch" else _xla_chunks
    values, *sums = loop(part_of, flat, shapes)
    return ops.reshape(values, ops.shape(weights)), *sums


def fused(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """An elementwise function that keeps nothing but its results: a sum, and a value for each weight.

    Args:
        function: Takes weights and scalars. XLA makes one pass of it; on PyTorch it runs in chunks.
    """
    if keras.backend.backend() != "torch":
        return compiled(function)

    def run(weights: Tensor, *scalars: Tensor) -> tuple[Tensor, Tensor]:
        def part_of(part: Tensor) -> tuple[Tensor, Tensor]:
            total, values = function(part, *scalars)
            return values, total

        values, total = in_chunks(part_of, weights, [()])
        return total, values

    return run


def _xla_chunks(
    part_of: Callable[[Tensor], tuple[Tensor, ...]], flat: Tensor, shapes: Sequence[tuple[int, ...]]
) -> tuple[Tensor, ...]:
    count, chunk, rest = _chunks(flat.shape[0])
    if count == 1 and not rest:
        return part_of(flat)

    def step(i: Any, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values, *more = part_of(ops.slice(flat, (i * chunk,), (chunk,)))
        sums = (a + b for a, b in zip(carried[1:], more, strict=True))
        return ops.slice_update(carried[0], (i * chunk,), values), *sums

    start = ops.zeros_like(flat), *(ops.zeros(shape, "float32") for shape in shapes)
    found: tuple[Tensor, ...] = ops.fori_loop(0, count, step, start)
    if not rest:
        return found
    values, *more = part_of(flat[count * chunk :])
    sums = (a + b for a, b in zip(found[1:], more, strict=True))
    return ops.slice_update(found[0], (count * chunk,), values), *sums


def _chunks(size: int) -> tuple[int, int, int]:
    """How many chunks of what size, and the rest, which would be compiled once more: 0 if it can be."""
    fewest = -(-size // CHUNK)
    for count in range(max(1, fewest), 2 * fewest):
        if size % count == 0:
            return count, size // count, 0
    return (1, size, 0) if size <= CHUNK else (size // CHUNK, CHUNK, size % CHUNK)


def _torch_chunks(
    part_of: Callable[[Tensor], tuple[Tensor, ...]], flat: Tensor, shapes: Sequence[tuple[int, ...]]
) -> tuple[Tensor, ...]:
    if flat.shape[0] <= CHUNK or flat.device.type != "cpu":
        return part_of(flat)
    values = flat.new_empty(flat.shape)
    totals = [flat.new_zeros(shape) for shape in shapes]
    for part, place in zip(flat.split(CHUNK), values.split(CHUNK), strict=True):
        found, *more = part_of(part)
        place.copy_(found)
        for total, one in zip(totals, more, strict=True):
            total += one
    return values, *totals
