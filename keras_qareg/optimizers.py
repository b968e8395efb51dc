"""Optimizers: centroids with a learning rate of their own."""

from __future__ import annotations

import keras

from keras_qareg.layers.keras_private import copy_exclusions

# The last part of the path of every centroid weight, alone or after the name of its kernel; and of the
# sizes that centroids are multiplied by.
CENTROIDS = r"(.*[/_])?centroid(s|_sizes)(_\d+)?"


def with_centroid_optimizer(
    optimizer: keras.optimizers.Optimizer | str,
    centroid_optimizer: keras.optimizers.Optimizer | str | float,
) -> keras.optimizers.Optimizer:
    """An optimizer that trains the centroids with one rule and all other weights with another.

    A centroid's gradient is a sum over its members, thousands of times that of a weight, so with
    plain SGD it wants a smaller learning rate. Adam is blind to the scale, and the rate of the weights
    is a good one there; ten times that ruined networks of two levels (`benchmarks/recipe.py`).

    Args:
        optimizer: What trains all other weights: a Keras optimizer or its name.
        centroid_optimizer: What trains the centroids: a Keras optimizer, its name, or a float, the
            learning rate of an optimizer that is otherwise like `optimizer`.

    Returns:
        A `keras.optimizers.MultiOptimizer`. Learning-rate callbacks do not reach it: give each part
        a `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: If an optimizer is unknown or the learning rate is not positive.

    Example:

    >>> optimizer = with_centroid_optimizer("adam", 1e-4)
    >>> [round(float(part.learning_rate), 4) for part in optimizer.optimizers]
    [0.0001, 0.001]

    See also: https://keras-qareg.github.io/keras-qareg/glossary.html#centroid
    """
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(centroid_optimizer, int | float):
        if not centroid_optimizer > 0:
            raise ValueError(
                "Expected a positive learning rate for the centroids. "
                f"Received: {centroid_optimizer!r}"
            )
        config = {**optimizer.get_config(), "learning_rate": float(centroid_optimizer)}
        config["name"] = f"{optimizer.name}_centroids"
        made = type(optimizer).from_config(config)
        copy_exclusions(optimizer, made)
        centroid_optimizer = made
    parts = keras.optimizers.OptimizerMap(optimizer)
    parts[CENTROIDS] = keras.optimizers.get(centroid_optimizer)
    return keras.optimizers.MultiOptimizer(parts)
