"""Whole-model transforms: wrap, share, strip, compress, and read the codebooks of a model.

Each takes a built model and returns a new one with the same weights and names; the model that was
passed stays as it is. All results can be saved as `.keras` and loaded again, except where a
subclassed model was wrapped or shared: its own code says what it is made of, so save its weights
(`save_weights`), or `strip` it and save that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg import centroids as initial
from keras_qareg import regularizers
from keras_qareg.cloning import (
    clone,
    containers,
    fresh,
    inner_layer,
    leaf_layers,
    own_regularizer,
    own_weights,
)
from keras_qareg.codebook import Codebook
from keras_qareg.layers import KernelWrapper, QuantizationAware, SharedWeights, kernels
from keras_qareg.selection import Layers, check_built, check_choice, select, wrappers

METHODS = ("auto", "trained", "kmeans", "quantile", "uniform")
TRAINABLE = ("centroids", "centroids+rest")


def quantization_aware(
    model: keras.Model, regularizer: Any = None, layers: Layers = "all"
) -> keras.Model:
    """The model with its layers wrapped for quantization-aware training (arXiv 2602.03614).

    Learned centroids start where exact k-means of the present weights puts them, fixed basins at
    the `weight_range` of their regularizer. Train with `callbacks.PenaltySchedule`, which places
    both after its warm-up.

    Args:
        model: A built Sequential, Functional or subclassed model, nested ones included.
        regularizer: One of `keras_qareg.regularizers`, or what its `get()` takes. `None`: each
            layer's own `kernel_regularizer`, where that is one of this package.
        layers: Which layers: `"all"` that have kernels; `"conv"`; `"dense"` (attention included);
            a list of layer names; or a function from a layer to whether it is wanted. A layer with
            no more weights than levels is left out, with a warning.

    Returns:
        A new model with the same weights and layer names, compiled like `model` if that was.

    Raises:
        ValueError: If the model is unbuilt or wrapped already, no layer matches, a name in `layers`
            is unknown, or a kernel has NaN or infinite weights.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> wrapped = quantization_aware(model, regularizers.NearestSquared(levels=4))
    >>> type(wrapped.get_layer("fc")).__name__
    'QuantizationAware'
    """
    check_built(model)
    wrapped_already = [layer.name for layer in wrappers(model)]
    if wrapped_already:
        raise ValueError(
            "Expected a plain model. Received: a model that is wrapped already (layers "
            f"{wrapped_already}). Take keras_qareg.strip(model) first."
        )
    regularizer = regularizers.get(regularizer)
    chosen: dict[int, regularizers.QuantizationRegularizer] = {}
    for layer in select(model, layers):
        own = regularizer or own_regularizer(layer)
        if own is not None and _large_enough(layer, own.levels):
            chosen[id(layer)] = own
    if not chosen:
        own = "" if regularizer else " of its own, and no regularizer was given"
        raise ValueError(
            f"Expected a layer to wrap in model '{model.name}'. Received: layers={layers!r}, of "
            f"which none has a kernel large enough and a regularizer{own}."
        )
    made = []

    def wrap(layer: Layer) -> Layer:
        made.append(
            QuantizationAware(
                fresh(layer, clean=True),
                chosen[id(layer)],
                name=layer.name,
                trainable=layer.trainable,
            )
        )
        return made[-1]

    wrapped = clone(model, lambda layer: wrap if id(layer) in chosen else None)
    for wrapper in made:
        if wrapper.regularizer.learned:
            wrapper.place_centroids()
            wrapper.placed.assign(0.0)  # not yet by a schedule
    return wrapped


def share_weights(
    model: keras.Model,
    levels: int | None = None,
    layers: Layers = "all",
    method: str = "auto",
    zero_centroid: bool = False,
    trainable: str = "centroids",
) -> keras.Model:
    """The model with every kernel reduced to a few shared values, ready for cumulative tuning.

    `compile` and `fit` the result to tune the centroids alone: every weight stays with the centroid
    that it was given, so a kernel never has more than `levels` values.

    Args:
        model: A built model, plain or from `quantization_aware`.
        levels: Integer from 2 to 256, values a kernel; `None`: what each layer's regularizer says.
        layers: Which layers, as in `quantization_aware`; a wrapped layer counts as what it wraps.
        method: `"auto"` takes the trained centroids where a layer has them, each then moved to the
            mean of its members (arXiv 2602.03614), the basins of a `Sine` or `Cosine`, and exact
            k-means elsewhere. `"trained"` is the same, but an error where a layer has no centroids;
            `"kmeans"`, `"quantile"` and `"uniform"` look at the weights alone.
        zero_centroid: Whether one centroid of each kernel is 0 and stays so. Defaults to `False`.
        trainable: `"centroids"`: they alone train, and normalization keeps its statistics;
            `"centroids+rest"`: whatever else was trainable trains with them.

    Returns:
        A new model whose chosen layers are `layers.SharedWeights`; layers that were wrapped but not
        chosen are plain again.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt or shared already, no
            layer matches, or a kernel has NaN or infinite weights.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> shared = share_weights(model, levels=4)
    >>> [book.levels_used for book in codebooks(shared).values()]
    [4]
    """
    check_built(model)
    check_choice("method", method, METHODS)
    check_choice("trainable", trainable, TRAINABLE)
    if levels is not None:
        levels = initial.check_levels(levels)
    if any(isinstance(layer, SharedWeights) for layer in wrappers(model)):
        raise ValueError(
            "Expected a model whose weights are not shared yet. Received: a model from "
            "share_weights. Take keras_qareg.strip(model) first."
        )
    books: dict[int, list[Codebook]] = {}
    sizes: dict[int, int] = {}
    for layer in select(model, layers):
        size = _levels_of(layer, levels)
        if _large_enough(layer, size):
            sizes[id(layer)] = size
            books[id(layer)] = _cluster(layer, size, method, zero_centroid)
    if not books:
        raise ValueError(
            f"Expected a layer to share the weights of in model '{model.name}'. "
            f"Received: layers={layers!r}, of which none has a kernel large enough."
        )
    made = []

    def share(layer: Layer) -> Layer:
        inner = _plain(layer)
        inner.trainable = trainable == "centroids+rest" and layer.trainable
        made.append((layer, SharedWeights(inner, sizes[id(layer)], zero_centroid, name=layer.name)))
        return made[-1][1]

    def leave(layer: Layer) -> Layer:
        copy = _plain(layer)
        copy.trainable = trainable == "centroids+rest" and layer.trainable
        return copy

    shared = clone(model, lambda layer: share if id(layer) in books else leave)
    for layer, wrapper in made:
        wrapper.assign_codebooks(books[id(layer)])
    if trainable == "centroids":
        for layer in containers(shared):
            for weight in own_weights(layer):
                weight.trainable = False
    return shared


def strip(model: keras.Model) -> keras.Model:
    """An ordinary Keras model with the same outputs, the original layer names, and plain kernels.

    Shared kernels are written out as `centroids[indices]`; a `QuantizationAware` layer gives its
    layer as trained. The regularizers of this package are taken off, so that the saved model loads
    where keras_qareg is not installed.

    Args:
        model: A built model, from any transform of this package or none.

    Returns:
        A new model. Where weights were shared, all its layers are trainable; else as they were.

    Raises:
        ValueError: If the model is unbuilt.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> type(strip(share_weights(model, levels=4)).get_layer("fc")).__name__
    'Dense'
    """
    check_built(model)
    thaw = any(isinstance(layer, SharedWeights) for layer in wrappers(model))
    shared = []

    def unwrap(layer: Layer) -> Layer:
        plain = _plain(layer)
        if thaw:
            plain.trainable = True
        if isinstance(layer, SharedWeights):
            shared.append((layer, plain))
        return plain

    stripped = clone(model, lambda layer: unwrap)
    for wrapper, plain in shared:
        for kernel, book in zip(kernels(plain), wrapper.codebooks(), strict=True):
            kernel.assign(book.weights)
    return stripped


def compress(
    model: keras.Model,
    levels: int | None = 16,
    layers: Layers = "all",
    data: tuple[Any, Any] | None = None,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    verbose: str | int = "auto",
) -> keras.Model:
    """Shares the weights of a trained model and tunes the centroids: the whole job in one call.

    Args:
        model: A built, trained model.
        levels: Integer from 2 to 256, values a kernel. Defaults to 16.
        layers: Which layers, as in `quantization_aware`.
        data: `(inputs, targets)` to tune the centroids on; `None`: no tuning.
        epochs: Epochs of tuning. Defaults to 5.
        batch_size: Examples a step of tuning. Defaults to 32.
        learning_rate: Of Adam, for tuning. Defaults to 1e-3.
        verbose: Progress of tuning, as in `keras.Model.fit`.

    Returns:
        An ordinary model (see `strip`) whose chosen kernels have at most `levels` values.

    Raises:
        ValueError: As `share_weights`; or if there are data and the model was never compiled, so
            that its loss is unknown.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> small = compress(model, levels=4)
    >>> len(np.unique(small.get_layer("fc").kernel))
    4
    """
    if data is not None and not getattr(model, "compiled", False):
        raise ValueError(
            "Expected a compiled model, whose loss says what to tune for. Received: model "
            f"'{getattr(model, 'name', model)}' without a loss. Call `model.compile(loss=...)` first."
        )
    shared = share_weights(model, levels, layers)
    if data is not None:
        shared.compile(
            optimizer=keras.optimizers.Adam(learning_rate),
            loss=model.loss,
        )
        inputs, targets = data
        shared.fit(inputs, targets, epochs=epochs, batch_size=batch_size, verbose=verbose)
    return strip(shared)


def codebooks(model: keras.Model) -> dict[str, Codebook]:
    """The codebook of each kernel that has one.

    Args:
        model: A built model. Of a shared model these are its tables and indices; of a
            quantization-aware one, each weight with its nearest centroid as of now; of a plain
            model, the kernels that have at most 256 distinct values.

    Returns:
        Dict from the path of each kernel (the one that it has in the plain model) to its `Codebook`.

    Raises:
        ValueError: If the model is unbuilt.
    """
    return {path: book for path, _, book in kernel_codebooks(model) if book is not None}


def kernel_codebooks(
    model: keras.Model,
) -> Iterator[tuple[str, keras.Variable, Codebook | None]]:
    """Path, variable and codebook (or None) of every kernel of a built model, in order.

    In a shared model the variable holds the weights from before sharing.
    """
    check_built(model)
    for layer in leaf_layers(model):
        if isinstance(layer, KernelWrapper):
            paths, found = layer.kernel_paths, layer.kernels
        else:
            found = kernels(layer)
            paths = [kernel.path for kernel in found]
        yield from zip(paths, found, _layer_codebooks(layer), strict=True)


def _layer_codebooks(layer: Layer) -> list[Codebook | None]:
    if isinstance(layer, SharedWeights):
        return list(layer.codebooks())
    if isinstance(layer, QuantizationAware):
        return [
            Codebook.nearest(ops.convert_to_numpy(kernel), ops.convert_to_numpy(centroids))
            for kernel, centroids in zip(layer.kernels, layer.centroids, strict=True)
        ]
    return [Codebook.exact(ops.convert_to_numpy(kernel)) for kernel in kernels(layer)]


def _plain(layer: Layer) -> Layer:
    return fresh(inner_layer(layer), clean=True)


def _large_enough(layer: Layer, levels: int) -> bool:
    largest = max(int(np.prod(kernel.shape)) for kernel in kernels(inner_layer(layer)))
    if largest <= levels:
        warnings.warn(
            f"Layer '{layer.name}' is left as it is: its largest kernel has {largest} weights, "
            f"no more than levels={levels}.",
            stacklevel=3,
        )
    return largest > levels


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


def _cluster(layer: Layer, levels: int, method: str, zero_centroid: bool) -> list[Codebook]:
    """The codebook of each kernel of a layer."""
    trained: list[Any] = [None] * len(kernels(inner_layer(layer)))
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
    for kernel, centroids in zip(kernels(inner_layer(layer)), trained, strict=True):
        try:
            weights = ops.convert_to_numpy(kernel)
            if centroids is None:
                centroids = _initial(weights, levels, method, zero_centroid)
            elif zero_centroid:
                centroids = _with_zero(centroids)
            initial.check_finite(weights)
        except ValueError as error:
            raise ValueError(f"Kernel '{kernel.path}': {error}") from error
        book = Codebook.nearest(weights, centroids)
        books.append(book.with_member_means(weights, zero_centroid) if means else book)
    return books


def _initial(weights: np.ndarray, levels: int, method: str, zero_centroid: bool) -> np.ndarray:
    if method in ("quantile", "uniform"):
        found = initial.METHODS[method](weights, levels)
        return _with_zero(found) if zero_centroid else found
    return initial.kmeans(weights, levels, zero_centroid)


def _with_zero(centroids: np.ndarray) -> np.ndarray:
    centroids = np.array(centroids, "float32")
    centroids[np.argmin(np.abs(centroids))] = 0.0
    return centroids
