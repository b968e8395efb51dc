"""What all replicas of a model found, where `tf.distribute` or PyTorch shares a batch out among them.

On JAX a layer sees the whole batch, whatever devices hold it.

See also: https://keras-qareg.github.io/keras-qareg/scaling.html
"""

from __future__ import annotations

import keras
from keras import ops

from keras_qareg.numerics.compiled import Tensor


def gathered(values: Tensor) -> Tensor:
    """A tensor of all replicas, one after the other: `(replicas, ...)`, the same on all of them.

    Args:
        values: Tensor of the same shape on every replica.
    """
    values = ops.expand_dims(values, 0)
    if keras.backend.backend() == "torch":
        return _gathered_from_processes(values)
    if keras.backend.backend() != "tensorflow":
        return values
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_gather(values, axis=0)


def _gathered_from_processes(values: Tensor) -> Tensor:
    """On PyTorch a replica is a process of a group (`torch.nn.parallel.DistributedDataParallel`)."""
    import torch
    from torch import distributed

    grouped = distributed.is_available() and distributed.is_initialized()
    if not grouped or distributed.get_world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over all replicas, which have equal shares of the batch."""
    return ops.mean(gathered(values), axis=0)
