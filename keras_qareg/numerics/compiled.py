"""Where backends differ: compiling, gradients of one's own, branches, chunks, and sums by place.

On TensorFlow and JAX, XLA makes one program of a function, whatever the backend does around it: Keras
leaves TensorFlow graphs on CPUs uncompiled, where every operation is a pass over the memory. PyTorch
runs operation by operation: there it counts how many passes there are, and how much each has to move.

See also: https://keras-qareg.github.io/keras-qareg/architecture.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

# A tensor of the backend in use; where it is taken, also a variable, or what a tensor is made of.
Tensor = Any
# Elements that are worked on at a time: what lies between the operations stays in the cache.
CHUNK = 1 << 17
# Up to so many levels, XLA compares with each in less time than it takes to search.
COMPARED_LEVELS = 16


def on_torch() -> bool:
    """Whether PyTorch is the backend."""
    return keras.backend.backend() == "torch"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that XLA compiles, on its own or within what is compiled around it.

    Args:
        function: Takes tensors and returns tensors, by `keras.ops`. Keep the result: each call of
            `compiled` compiles anew.

    Returns:
        A function that does the same. On TensorFlow it is compiled in graphs alone, as in `fit`; eager
        calls, and those of PyTorch, run operation by operation.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    graph = tf.function(function, jit_compile=True, reduce_retracing=False)

    @functools.wraps(function)
    def run(*tensors: Any) -> Any:
        return function(*tensors) if tf.executing_eagerly() else graph(*tensors)

    # It holds nothing that AutoGraph would have to see, and a warning each time that it looks.
    return tf.autograph.experimental.do_not_convert(run)


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that brings its own gradient.

    Args:
        function: Takes tensors; returns a tensor, and a function from the gradient by that tensor to a
            tuple of the gradients by all that it took, with `None` for a gradient of zero.

    Returns:
        A function that takes the same tensors and returns the first of the two. It cannot be
        differentiated twice: gradients may be constants that were computed with the value.

    Example:

    >>> double = custom_gradient(lambda x: (2.0 * x, lambda upstream: (2.0 * upstream,)))
    >>> float(double(ops.array(1.5)))
    3.0
    """
    if on_torch():
        return functools.partial(_torch_function().apply, function)

    @ops.custom_gradient
    def differentiable(*inputs: Any) -> Any:
        value, gradients = function(*inputs)

        def grad(upstream: Any) -> Any:
            pairs = zip(gradients(upstream), inputs, strict=True)
            found = tuple(ops.zeros_like(x) if slope is None else slope for slope, x in pairs)
            return found if len(found) > 1 else found[0]

        return value, grad

    return differentiable


@functools.lru_cache
def _torch_function() -> Any:
    # That of Keras runs a function that raised an error once more, and knows no gradient of zero.
    from torch.autograd import Function
    from torch.autograd.function import once_differentiable

    class Differentiable(Function):
        @staticmethod
        def forward(ctx: Any, function: Callable[..., Any], *inputs: Any) -> Any:
            value, ctx.gradients = function(*inputs)
            return value

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, upstream: Any) -> Any:
            return None, *ctx.gradients(upstream)

    return Differentiable


def constant(values: np.ndarray, like: Any) -> Any:
    """A small array for computing with a tensor: on PyTorch a tensor, where that one is.

    Args:
        values: Array.
        like: Tensor.
    """
    if not on_torch():
        return values
    import torch

    if torch.compiler.is_compiling():
        return torch.as_tensor(values, device=like.device)
    return _torch_constant(values.tobytes(), values.dtype.str, values.shape, like.device)


@functools.lru_cache(maxsize=256)
def _torch_constant(values: bytes, dtype: str, shape: tuple[int, ...], device: Any) -> Any:
    import torch

    # Kept, so that training steps copy nothing to the device.
    return torch.tensor(np.frombuffer(values, dtype).reshape(shape), device=device)


def cond(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`yes()` where the condition holds, else `no()`: tensors of one shape, differentiable.

    Args:
        condition: Boolean scalar tensor. PyTorch looks at it on CPUs alone: elsewhere it would wait for
            the device, so that there both are computed.
        yes: Returns a tensor.
        no: Returns a tensor.
    """
    if _is_far(condition):
        return ops.where(condition, yes(), no())
    return ops.cond(condition, yes, no)


def quick_or_sure(condition: Any, quick: Callable[[], Any], sure: Callable[[], Any]) -> Any:
    """`quick()`, which is right where the condition holds, or `sure()`, which always is.

    Arguments as in `cond`; where PyTorch does not look at the condition, it is `sure()`.
    """
    return sure() if _is_far(condition) else ops.cond(condition, quick, sure)


def _is_far(tensor: Any) -> bool:
    """Whether a look at a tensor's value would hold up the program: PyTorch's on an accelerator."""
    return on_torch() and tensor.device.type not in ("cpu", "meta")


def known(tensor: Any) -> np.ndarray | None:
    """The values of a tensor; `None` while the backend makes a program, in which it has none yet."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        concrete = tf.executing_eagerly() and not tf.is_symbolic_tensor(tensor)
    elif keras.backend.backend() == "jax":
        import jax

        concrete = not isinstance(tensor, jax.core.Tracer)
    else:
        import torch

        concrete = tensor.device.type != "meta" and not torch.compiler.is_compiling()
    return np.asarray(ops.convert_to_numpy(tensor)) if concrete else None


def compared(values: Any, midpoints: Any, table: Any) -> Any:
    """Of a table, what stands at the number of midpoints that a value is above.

    It compares with each midpoint: up to `COMPARED_LEVELS` of them that takes XLA less time than a
    search, or a look-up of what a search found.

    Args:
        values: Tensor of any shape.
        midpoints: Ascending tensor `(count,)`, or one whose other axes are the last ones of the values.
        table: Tensor or array of `count + 1`, with the same other axes.

    Returns:
        A tensor in the shape of the values and the dtype of the table.
    """
    found = ops.broadcast_to(table[0], ops.shape(values))
    for j in range(midpoints.shape[0]):
        found = ops.where(values > midpoints[j], table[j + 1], found)
    return found


def take(table: Any, places: Any) -> Any:
    """`table[places]` of a vector, for places within it: `keras.ops.take`, in one pass on PyTorch."""
    if not on_torch():
        return ops.take(table, places)
    return table.index_select(0, places.reshape(-1)).reshape(places.shape)


def segment_sums(values: Any, places: Any, count: int) -> Any:
    """The sum of the values at each place.

    What `keras.ops.segment_sum` computes; in graphs of TensorFlow on CPUs and on PyTorch that is many
    times slower.

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
    return _segment_sums(count)(ops.reshape(values, (-1,)), ops.reshape(places, (-1,)))


@functools.lru_cache
def _segment_sums(count: int) -> Callable[..., Any]:
    def summed(values: Any, places: Any) -> Any:
        places = ops.cast(places, "int32")
        if on_torch():
            return values.new_zeros(count).index_add(0, places, values)
        return ops.segment_sum(values, places, num_segments=count)

    return compiled(summed)


def in_chunks(
    function: Callable[..., Any],
    *tensors: Any,
    sums: tuple[Any, ...] = (),
    fused: bool = False,
    chunk: int | None = None,
) -> Any:
    """What a function finds for each weight, and in all, computed for some weights at a time.

    Args:
        function: From a vector of weights, and of what else there is of each, to a vector of as many
            elements, and a tuple of tensors that are summed up.
        *tensors: The weights, and what else there is of each: tensors of one shape.
        sums: The shapes of what is summed up.
        fused: Whether XLA makes one pass of the function, so that there it needs no chunks. Otherwise
            what it finds must be float32.
        chunk: How many weights at a time, where the function needs much memory for each. `None`
            (default): `CHUNK`.

    Returns:
        A tensor in the shape of the weights, and the tuple of the sums.
    """
    flat = [ops.reshape(tensor, (-1,)) for tensor in tensors]
    # Accelerators have no cache to stay in, and XLA has done what there is to do.
    whole = _is_far(flat[0]) if on_torch() else fused
    chunk = chunk or CHUNK
    if whole or flat[0].shape[0] <= chunk:
        each, found = function(*flat)
    elif on_torch():
        cut = zip(*(vector.split(chunk) for vector in flat), strict=True)
        parts = [function(*part) for part in cut]
        each = ops.concatenate([part for part, _ in parts])
        found = tuple(map(sum, zip(*(more for _, more in parts), strict=True)))
    else:
        start = ops.zeros_like(flat[0]), tuple(ops.zeros(shape, "float32") for shape in sums)
        each, found = _in_a_loop(function, flat, start, chunk)
    return ops.reshape(each, ops.shape(tensors[0])), found


def _in_a_loop(function: Callable[..., Any], flat: list[Any], start: Any, most: int) -> Any:
    """Chunk by chunk in a loop of the backend, which is compiled as one."""
    count, chunk, rest = chunks(flat[0].shape[0], most)

    def add(carried: Any, begin: Any, part: list[Any]) -> Any:
        each, found = function(*part)
        sums = tuple(a + b for a, b in zip(carried[1], found, strict=True))
        return ops.slice_update(carried[0], (begin,), each), sums

    def step(i: Any, carried: Any) -> Any:
        part = [ops.slice(vector, (i * chunk,), (chunk,)) for vector in flat]
        return add(carried, i * chunk, part)

    carried = ops.fori_loop(0, count, step, start)
    last = [vector[count * chunk :] for vector in flat]
    return add(carried, count * chunk, last) if rest else carried


def chunks(size: int, most: int | None = None) -> tuple[int, int, int]:
    """How many chunks of what size, and the rest, which would be compiled once more: 0 if it can be."""
    most = most or CHUNK
    fewest = -(-size // most)
    for count in range(max(1, fewest), 2 * fewest):
        if size % count == 0:
            return count, size // count, 0
    return (1, size, 0) if size <= most else (size // most, most, size % most)
