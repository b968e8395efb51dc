"""Compiling a function of `keras.ops` by XLA, whatever the backend does around it.

Keras leaves TensorFlow graphs on CPUs uncompiled: there every operation is a pass over the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that XLA compiles, on its own or within what is compiled around it.

    Args:
        function: Takes tensors and returns tensors, by `keras.ops`. Keep the result: each call of
            `compiled` compiles anew.

    Returns:
        A function that does the same. On TensorFlow it is compiled in graphs alone, as in `fit`; eager
        calls run operation by operation.
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

    return run


def segment_sums(values: Any, places: Any, count: int) -> Any:
    """The sum of the values at each place.

    What `keras.ops.segment_sum` computes; in graphs of TensorFlow on CPUs that is many times slower.

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
    return compiled(functools.partial(ops.segment_sum, num_segments=count))
