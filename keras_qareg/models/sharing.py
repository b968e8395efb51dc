"""Sharing the weights of a model, for cumulative tuning of the centroids."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg import regularizers
from keras_qareg.layers import (
    KEPT_CONSTRAINTS,
    QuantizationAware,
    SharedWeights,
    Weights,
    channel_axes,
    kernels,
)
from keras_qareg.layers.keras_private import set_trainable_alone
from keras_qareg.models.accounting import inner_layer, own_weights
from keras_qareg.models.cloning import clone, own_regularizer
from keras_qareg.models.selection import (
    Layers,
    check_built,
    check_choice,
    check_float,
    large_enough,
    names_of_kernels,
    no_kernel,
    quantized_layers,
    select,
    warn_of_overlooked,
)
from keras_qareg.models.stripping import plain, used_kernels
from keras_qareg.models.walking import containers
from keras_qareg.numerics import clustering, grids
from keras_qareg.numerics.codebook import Codebook

# From so many weights on a bar is shown; and layers that are clustered at a time.
_MANY_WEIGHTS, _WORKERS = 10_000_000, min(4, os.cpu_count() or 1)
# The share of exact zeros from which on they stay zeros.
_MANY_ZEROS = 0.1
METHODS = ("auto", "trained", "kmeans", "quantile", "uniform")
TRAINABLE = ("centroids", "centroids+rest")


def share_weights(
    model: keras.Model,
    levels: int | None = None,
    layers: Layers = "all",
    *,
    weights: Weights = None,
    method: str = "auto",
    zero_centroid: bool | str = "auto",
    trainable: str = "centroids",
    snap: bool = False,
    verbose: str | int = "auto",
) -> keras.Model:
    """The model with every kernel reduced to a few shared values, ready for cumulative tuning.

    `compile` and `fit` the result to tune the centroids alone: every weight stays with the centroid
    that it was given, so a kernel never has more than `levels` values.

    Args:
        model: A built model, plain or from `quantization_aware`; where layers compute with their
            quantized kernels, it is these that are shared.
        levels: Integer from 2 to 256, values a kernel; `None`: what each layer's regularizer says.
        layers: Which layers, as in `quantization_aware`; a wrapped layer counts as what it wraps.
        weights: Which weights are kernels, as in `quantization_aware`.
        method: `"auto"` takes the trained centroids where a layer has them, each then moved to the
            mean of its members (arXiv 2602.03614), the basins of a `Sine` or `Cosine`, and exact
            k-means elsewhere. `"trained"` is the same, but an error where a layer has no centroids;
            `"kmeans"`, `"quantile"` and `"uniform"` look at the weights alone.
        zero_centroid: Whether one centroid of each kernel is 0 and stays so. `"auto"` (default): where
            a tenth of its weights or more are exactly 0, as in pruned kernels, or a channel is dead
            (all its weights are below 1e-5 of the kernel's largest, and become 0); not where centroids
            were trained.
        trainable: `"centroids"`: they alone train, and normalization keeps its statistics;
            `"centroids+rest"`: whatever else was trainable trains with them.
        snap: Whether centroids are whole numbers times a step, zero among them (-1 and 1 with two
            levels), and stay so in tuning; each output channel has a step of its own, the best for
            its weights, and so up to `levels` values of its own. `.tflite` files hold these exactly,
            in as few bits as the levels need. With methods `"auto"` and `"uniform"` alone. Defaults
            to `False`.
        verbose: 1 shows a bar that counts layers, 0 nothing; `"auto"` (default) shows it where the
            model has ten million weights or more.

    Returns:
        A new model whose chosen layers are `layers.SharedWeights`; layers that were wrapped but not
        chosen are plain again.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt or shared already, no
            layer matches, or a kernel has NaN or infinite weights, or a constraint other than `NonNeg`
            (which the centroids then have).

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> shared = share_weights(model, levels=4)
    >>> [book.levels_used for book in qareg.codebooks(shared).values()]
    [4]
    """
    levels = None if levels is None else clustering.check_levels(levels)
    _check_arguments(model, method, trainable, snap, zero_centroid)
    sizes = {layer: _levels_of(layer, levels) for layer in select(model, layers, weights)}
    sizes = {layer: size for layer, size in sizes.items() if large_enough(layer, size, weights)}
    if not sizes:
        raise ValueError(
            f"Expected a layer to share the weights of in model '{model.name}'. "
            f"Received: layers={layers!r}, of which none has a kernel large enough"
            f"{no_kernel(model, weights)}"
        )
    warn_of_overlooked(model, layers, weights)
    _check_constraints(sizes, weights)
    found = _cluster_all(sizes, weights, "snap" if snap else method, zero_centroid, verbose)
    books = {layer: [book for book, _ in pairs] for layer, pairs in found.items()}
    zeros = {layer: any(zero for _, zero in pairs) for layer, pairs in found.items()}
    made = []

    def share(layer: Layer) -> Layer:
        inner = plain(layer)
        inner.trainable = trainable == "centroids+rest" and layer.trainable
        wrapper = SharedWeights(
            inner,
            sizes[layer],
            zero_centroid=zero_centroid is True or zeros[layer],
            snap=snap,
            kernel_names=names_of_kernels(layer, weights),
            name=layer.name,
        )
        made.append((layer, wrapper))
        return wrapper

    def leave(layer: Layer) -> Layer:
        copy = plain(layer)
        copy.trainable = trainable == "centroids+rest" and layer.trainable
        return copy

    shared = clone(model, lambda layer: share if layer in sizes else leave)
    for layer, wrapper in made:
        wrapper.assign_codebooks(books[layer])
    for layer in containers(shared):
        set_trainable_alone(layer, True)  # else Keras trains no centroid in a frozen model
        if trainable == "centroids":
            for weight in own_weights(layer):
                weight.trainable = False
    return shared


def _check_arguments(
    model: keras.Model, method: str, trainable: str, snap: bool, zero_centroid: bool | str
) -> None:
    check_built(model)
    if zero_centroid not in (True, False, "auto"):
        raise ValueError(
            f"Expected `zero_centroid` to be True, False or 'auto'. Received: {zero_centroid!r}"
        )
    check_float(model)
    check_choice("method", method, METHODS)
    check_choice("trainable", trainable, TRAINABLE)
    if snap and method not in ("auto", "uniform"):
        raise ValueError(
            "Expected method='auto' or 'uniform' with snap=True, which makes centroids evenly "
            f"spaced. Received: method={method!r}"
        )
    for layer in quantized_layers(model):
        if not isinstance(layer, QuantizationAware):
            raise ValueError(
                "Expected a model whose weights are not shared or quantized yet. Received: a model "
                f"with layer '{layer.name}' of type {type(layer).__name__}. Take "
                "keras_qareg.strip(model) first."
            )


def _check_constraints(chosen: Iterable[Layer], weights: Weights) -> None:
    """Raises a `ValueError` where shared values cannot keep what a kernel is held to."""
    for layer in chosen:
        for kernel in kernels(layer, weights):
            held = kernel.constraint
            if held is not None and not isinstance(held, KEPT_CONSTRAINTS):
                raise ValueError(
                    "Expected kernels whose constraint shared values can keep (NonNeg), or without "
                    f"one. Received: '{kernel.path}' with {type(held).__name__}. Leave the layer out "
                    f"(`layers`), or take the constraint off first: layer '{layer.name}' can be made "
                    "again without."
                )


def _levels_of(layer: Layer, levels: int | None) -> int:
    if levels is not None:
        return levels
    regularizer = _regularizer_of(layer)
    if regularizer is None:
        raise ValueError(
            f"Expected `levels`, because layer '{layer.name}' has no regularizer of keras_qareg "
            "to take it from. Received: levels=None"
        )
    return regularizer.levels


def _regularizer_of(layer: Layer) -> regularizers.QuantizationRegularizer | None:
    if isinstance(layer, QuantizationAware):
        return layer.regularizer
    return own_regularizer(layer)


def _cluster_all(
    sizes: dict[Layer, int],
    weights: Weights,
    method: str,
    zero_centroid: bool | str,
    verbose: str | int,
) -> dict[Layer, list[tuple[Codebook, bool]]]:
    """The codebooks of all layers, some at a time: NumPy sorts and counts without Python's lock."""
    if verbose == "auto":
        verbose = int(sum(layer.count_params() for layer in sizes) >= _MANY_WEIGHTS)
    bar = keras.utils.Progbar(len(sizes), verbose=verbose, unit_name="layer")
    books = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        jobs = [
            pool.submit(_cluster, *pair, weights, method, zero_centroid) for pair in sizes.items()
        ]
        try:
            for layer, job in zip(sizes, jobs, strict=True):
                books[layer] = job.result()
                bar.update(len(books))
        finally:
            pool.shutdown(cancel_futures=True)
    return books


def _cluster(
    layer: Layer, levels: int, weights: Weights, method: str, zero_centroid: bool | str
) -> list[tuple[Codebook, bool]]:
    """The codebook of each kernel of a layer, and whether it has a zero that is to stay."""
    found = kernels(layer, weights)
    trained: list[Any] = [None] * len(found)
    regularizer = _regularizer_of(layer)
    if method in ("auto", "trained") and regularizer and regularizer.levels == levels:
        if isinstance(layer, QuantizationAware):
            trained = [ops.convert_to_numpy(centroids) for centroids in layer.centroids]
        elif not regularizer.learned:
            trained = [regularizer.basins()] * len(trained)
    if method == "trained" and trained[0] is None:
        raise ValueError(
            f"Expected trained centroids for levels={levels} with method='trained'. Received: layer "
            f"'{layer.name}' without them. Train it with keras_qareg.quantization_aware, or use "
            "method='auto'."
        )
    means = trained[0] is not None and regularizer is not None and regularizer.learned
    books = []
    for kernel, values, centroids in zip(found, used_kernels(layer, weights), trained, strict=True):
        axes = channel_axes(inner_layer(layer), kernel)
        zero = zero_centroid is True
        try:
            clustering.check_finite(ops.convert_to_numpy(kernel))
            if centroids is None:
                values, has_zeros = _with_exact_zeros(values, levels, axes)
                zero = has_zeros if zero_centroid == "auto" else zero
            if method == "snap":
                books.append((_on_grid(values, levels, axes), False))
                continue
            if centroids is None:
                centroids = _initial(values, levels, method, zero)
            elif zero:
                centroids = _with_zero(centroids)
        except ValueError as error:
            raise ValueError(f"Kernel '{kernel.path}': {error}") from error
        book = Codebook.nearest(values, centroids)
        books.append((book.with_member_means(values, zero) if means else book, zero))
    return books


def _with_exact_zeros(values: np.ndarray, levels: int, axes: int) -> tuple[np.ndarray, bool]:
    """A kernel whose dead channels are 0, and whether its zeros are worth a centroid."""
    dead = clustering.dead_channels(values, axes)
    values = np.where(dead, np.float32(0), values) if dead.any() else values
    share = float(np.mean(values == 0))
    # Of two values, one is too much for a few zeros.
    return values, share >= 0.5 if levels == 2 else bool(dead.any()) or share >= _MANY_ZEROS


def _on_grid(weights: np.ndarray, levels: int, axes: int) -> Codebook:
    """The codebook of a kernel on grids, one for each channel in its last axes, or one in all."""
    steps = grids.snapped(weights, levels, axes)
    table = np.multiply.outer(grids.grid_codes(levels).astype("float32"), steps)
    # One channel has a table without channel axes; so has a kernel whose channels are not last.
    table = table if axes else table[:, 0]
    return Codebook(table, grids.nearest_codes(weights, steps, levels))


def _initial(weights: np.ndarray, levels: int, method: str, zero_centroid: bool) -> np.ndarray:
    if method in ("quantile", "uniform"):
        found = clustering.METHODS[method](weights, levels)
        return _with_zero(found) if zero_centroid else found
    return clustering.kmeans(weights, levels, zero_centroid=zero_centroid)


def _with_zero(centroids: np.ndarray) -> np.ndarray:
    centroids = np.array(centroids, "float32")
    centroids[np.argmin(np.abs(centroids))] = 0.0
    return centroids
