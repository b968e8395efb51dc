"""Compiling a function of `keras.ops` by XLA, whatever the backend does around it.

Keras leaves TensorFlow graphs on CPUs uncompiled: there every operation is a pass over the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras


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
