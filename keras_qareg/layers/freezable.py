"""Batch normalization whose statistics can be frozen in the middle of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_qareg")
class FreezableBatchNormalization(keras.layers.BatchNormalization):
    """`BatchNormalization` that computes with batch statistics first, and with kept ones later.

    A file folds a normalization with its kept statistics into the layer before. A network that shall
    have ranges for what it then computes must be trained with these at the end (Krishnamoorthi, arXiv
    1806.08342). Whether it is, is a variable, so that it can change within one `fit`.

    The kept statistics must be good when that happens, or the network is another one all at once. Moving
    averages lag behind; so the last steps before it can be averaged with equal weights, from anew
    (`counted`). `callbacks.FreezeBatchNormalization` does both. Scale and offset go on training.

    Args:
        **kwargs: As of `keras.layers.BatchNormalization`, but for `renorm`, which it has not.

    Attributes:
        frozen: Non-trainable flag: whether training computes with the moving mean and variance, and
            leaves these as they are.
        counted: Non-trainable scalar. 0: moving averages move with `momentum`. From 1 on: the number of
            the step in an average with equal weights, which each step raises.

    Call arguments, input and output shape: as of `keras.layers.BatchNormalization`.

    Raises:
        ValueError: If it is to have `renorm`.

    Example:

    >>> layer = FreezableBatchNormalization()
    >>> layer.build((None, 3))
    >>> _ = layer.frozen.assign(1.0)
    >>> round(float(ops.max(layer(np.full((2, 3), 5.0), training=True))), 2)
    5.0

    See also: https://keras-qareg.github.io/keras-qareg/integer.html
    """

    def __init__(self, **kwargs: Any):
        if kwargs.get("renorm"):
            raise ValueError(
                "Expected a BatchNormalization without `renorm`. Received: renorm=True. Make it anew "
                "with renorm=False, and train on."
            )
        super().__init__(**kwargs)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.frozen = self._add_state("frozen")
        self.counted = self._add_state("counted")

    def _add_state(self, name: str) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not (training and self.trainable):
            return super().call(inputs, training=False, mask=mask)
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        moving = [ops.cast(v, x.dtype) for v in (self.moving_mean, self.moving_variance)]
        measured = self._measured(x, mask)
        frozen, counted = map(ops.convert_to_tensor, (self.frozen, self.counted))
        equal = 1.0 / ops.maximum(counted, 1.0)
        rate = ops.where(counted > 0, equal, 1.0 - self.momentum) * (1.0 - frozen)
        used = [ops.where(frozen > 0, old, new) for old, new in zip(moving, measured, strict=True)]
        outputs = ops.batch_normalization(
            x,
            *used,
            axis=self.axis,
            offset=ops.cast(self.beta, x.dtype) if self.center else None,
            scale=ops.cast(self.gamma, x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        # Last: on PyTorch an assignment changes what was read in place.
        self.moving_mean.assign(moving[0] + ops.cast(rate, x.dtype) * (measured[0] - moving[0]))
        self.moving_variance.assign(moving[1] + ops.cast(rate, x.dtype) * (measured[1] - moving[1]))
        self.counted.assign(counted + ops.cast(counted > 0, counted.dtype))
        return ops.cast(outputs, self.compute_dtype)

    def _measured(self, x: Any, mask: Any) -> list[Any]:
        """The mean and the variance of a batch, `(channels,)` each."""
        axes = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        if mask is None:
            return list(ops.moments(x, axes=axes, synchronized=self.synchronized))
        seen = ops.cast(ops.expand_dims(mask, -1), x.dtype) * ops.ones_like(x)
        count = ops.sum(seen, axis=axes) + keras.backend.epsilon()
        mean = ops.sum(x * seen, axis=axes) / count
        return [mean, ops.sum(ops.square(x - mean) * seen, axis=axes) / count]

    @contextlib.contextmanager
    def thawed(self) -> Iterator[None]:
        """Lets the layer measure and keep statistics with its `momentum`, for a while."""
        states = (self.frozen, self.counted)
        before = [float(ops.convert_to_numpy(state)) for state in states]
        try:
            for state in states:
                state.assign(0.0)
            yield
        finally:
            for state, value in zip(states, before, strict=True):
                state.assign(value)

    @property
    def quantization_weights(self) -> list[keras.Variable]:
        """The weights that a plain `BatchNormalization` does not have."""
        return [self.frozen, self.counted]
