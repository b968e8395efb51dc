"""The whole job in one call: share the weights of a trained model, and tune the centroids."""

from __future__ import annotations

from typing import Any

import keras

from keras_qareg.data import read
from keras_qareg.layers import Weights
from keras_qareg.models.compiling import compile_like
from keras_qareg.models.configuring import Setting
from keras_qareg.models.recalibrating import recalibrate
from keras_qareg.models.selection import Layers, check_built
from keras_qareg.models.sharing import share_weights
from keras_qareg.models.stripping import strip

# Inputs without which the statistics of batch normalization are better left as they are, and about so
# many, evenly taken, as are enough for them.
_FEWEST_INPUTS, _ENOUGH_INPUTS = 256, 4096
_CALIBRATION_BATCH = 256


def compress(
    model: keras.Model,
    levels: Setting[int] | None = 16,
    layers: Layers = "all",
    *,
    weights: Weights = None,
    data: Any = None,
    epochs: int = 5,
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    table: Setting[str] = "int8",
    scale: Setting[str] = "auto",
    verbose: str | int = "auto",
) -> keras.Model:
    """Shares the weights of a trained model and tunes the centroids: the whole job in one call.

    Between the two, where there are 256 inputs or more, batch normalization is measured anew on some
    of them (`recalibrate`).

    Args:
        model: A built, trained model.
        levels: Integer from 2 to 256, values a kernel, or a setting, as in `share_weights`. Defaults to
            16.
        layers: Which layers, as in `quantization_aware`.
        weights: Which weights are kernels, as in `quantization_aware`.
        data: What to tune the centroids on, in any form that `fit` takes: `(inputs, targets)` or
            `(inputs, targets, sample_weight)`, a `tf.data.Dataset`, `PyDataset`, `DataLoader`,
            generator, or list of such batches. `None`: no tuning, and statistics of batch
            normalization as they were.
        epochs: Epochs of tuning. Defaults to 5.
        steps: Batches an epoch, which endless data need. `None`: all.
        batch_size: Examples a step of tuning. Defaults to 32.
        learning_rate: Of Adam, for tuning. Defaults to 1e-3.
        table: What values a kernel may have, as in `share_weights`. Defaults to `"int8"`.
        scale: Whether kernels have one step, or one a channel, as in `share_weights`. Defaults to
            `"auto"`.
        verbose: Progress of tuning, as in `keras.Model.fit`; where that draws a bar, one counts the
            layers of large models before. Defaults to `"auto"`.

    Returns:
        An ordinary model (see `strip`) whose chosen kernels have at most `levels` values.

    Raises:
        ValueError: As `share_weights`; if data do not fit the model; or if there are data and the
            model was never compiled, so that its loss is unknown.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> small = compress(model, levels=4)
    >>> len(np.unique(small.get_layer("fc").kernel))
    4
    """
    return strip(
        share_and_tune(
            model,
            levels,
            layers,
            weights=weights,
            data=data,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            table=table,
            scale=scale,
            verbose=verbose,
        )
    )


def share_and_tune(
    model: keras.Model,
    levels: Setting[int] | None = 16,
    layers: Layers = "all",
    *,
    weights: Weights = None,
    data: Any = None,
    epochs: int = 5,
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    table: Setting[str] = "int8",
    scale: Setting[str] = "auto",
    verbose: str | int = "auto",
) -> keras.Model:
    """The shared model that `compress` strips, which still has its tables; arguments as there."""
    check_built(model)
    if data is not None and not getattr(model, "compiled", False):
        raise ValueError(
            "Expected a compiled model, whose loss says what to tune for. Received: model "
            f"'{getattr(model, 'name', model)}' without a loss. Call `model.compile(loss=...)` first."
        )
    given = None if data is None else read(data, model, steps=steps).repeatable()
    # A model without a loss by `compile` adds its own, which may need no targets.
    if given is not None and model.loss is not None and not given.has_targets:
        raise ValueError(
            "Expected `data` with targets to tune the centroids on. Received: inputs alone."
        )
    bar = 0 if verbose in (0, 2) else "auto"
    shared = share_weights(
        model, levels, layers, weights=weights, table=table, scale=scale, verbose=bar
    )
    if given is None:
        return shared
    compile_like(shared, model, optimizer=keras.optimizers.Adam(learning_rate))
    if not shared.compiled:
        raise ValueError(
            f"Expected a model with the `compile` of keras.Model. Received: {type(model).__name__}, "
            "which has another. Use share_weights(), compile and fit its result, and strip() that."
        )
    if given.has(_FEWEST_INPUTS):
        recalibrate(shared, given.some(_ENOUGH_INPUTS, _CALIBRATION_BATCH))
    shared.fit(**given.fit_arguments(batch_size), epochs=epochs, verbose=verbose)
    return shared
