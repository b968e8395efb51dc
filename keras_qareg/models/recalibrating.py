"""The statistics of batch normalization, measured anew for a model whose kernels have changed."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import BatchNormalization

from keras_qareg.choices import check_count
from keras_qareg.data import read
from keras_qareg.layers import FreezableBatchNormalization
from keras_qareg.layers.keras_private import layers_inside, normalizing_by_batches
from keras_qareg.models.accounting import keeping_states
from keras_qareg.models.selection import check_built


def recalibrate(
    model: keras.Model, data: Any, *, batch_size: int = 256, steps: int | None = None
) -> None:
    """Measures the moving means and variances of all `BatchNormalization` layers anew, in place.

    In training these are averages over the last steps, in which weights of few levels still jump
    from one to the other; and after `share_weights` they are those of the kernels before. In both
    cases the statistics are not those of the network that is kept, and a few batches of inputs mend
    that, without labels (Nagel et al., "Overcoming Oscillations in Quantization-Aware Training",
    arXiv 2203.11086, section 4; Wu, Johnson, arXiv 2105.07576, section 3). Each layer normalizes a
    batch by the batch's own statistics, and keeps their mean over all batches, and over all calls in a
    batch where there are several. Everything else runs as in inference, and no other weight or state
    changes.

    Args:
        model: A built model. Its `BatchNormalization` layers may be frozen; without any, it stays as
            it is.
        data: Inputs in any form that `fit` takes, with targets or without, which do not count: arrays,
            a `tf.data.Dataset`, `PyDataset`, `DataLoader`, generator, or list of batches. A thousand
            images or more, augmented as those that the model was trained on: its weights belong to
            statistics of these (docs/method.md has what it is worth).
        batch_size: Positive integer, for arrays. Small batches give poor variances. Defaults to 256.
        steps: Positive integer: how many batches to take, which endless data need. `None`: all.

    Raises:
        ValueError: If the model is unbuilt, `batch_size` is not positive, data do not fit the model
            (no inputs, other shapes or names, NaN), or statistics become infinite. The model then is
            as it was.

    Example:

    >>> normalization = keras.layers.BatchNormalization()
    >>> model = keras.Sequential([keras.Input((3,)), normalization])
    >>> recalibrate(model, np.full((8, 3), 5.0, "float32"))
    >>> ops.convert_to_numpy(normalization.moving_mean).tolist()
    [5.0, 5.0, 5.0]

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#recalibration
    """
    check_built(model)
    batch_size = check_count("batch_size", batch_size)
    given = read(data, model, steps=steps)
    found = [layer for layer in layers_inside(model) if isinstance(layer, BatchNormalization)]
    if not found:
        return
    statistics = [v for layer in found for v in (layer.moving_mean, layer.moving_variance)]
    before = [ops.convert_to_numpy(v).copy() for v in statistics]
    try:
        with contextlib.ExitStack() as stack:
            for layer in found:
                if isinstance(layer, FreezableBatchNormalization):
                    stack.enter_context(layer.thawed())
            stack.enter_context(normalizing_by_batches(found))
            stack.enter_context(keeping_states(model))
            for inputs, _, _ in given.batches(batch_size):
                model(inputs, training=False)
        if not all(np.isfinite(ops.convert_to_numpy(v)).all() for v in statistics):
            raise ValueError(
                "Expected inputs with finite statistics. Received NaN or infinite ones."
            )
    except BaseException:
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)
        raise
