"""Wrapping a model for quantization-aware training."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import keras
from keras import ops
from keras.layers import Layer

from keras_qareg import regularizers
from keras_qareg.choices import check_flag
from keras_qareg.layers import IntegerKernels, QuantizationAware, Weights, kernels
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.cloning import clone, fresh, own_regularizer
from keras_qareg.models.configuring import (
    LEVELS,
    REGULARIZER,
    TABLE,
    Resolved,
    Setting,
    keeps_float,
    planned_rates,
    resolve,
)
from keras_qareg.models.selection import (
    Layers,
    check_built,
    check_plain,
    large_enough,
    names_of_kernels,
    no_kernel,
    select,
    warn_of_constraints,
    warn_of_overlooked,
)
from keras_qareg.numerics.clustering import MAX_LEVELS, many_zeros


def quantization_aware(
    model: keras.Model,
    regularizer: Setting[regularizers.Identifier] = None,
    layers: Layers = "all",
    *,
    levels: Setting[int] | None = None,
    weights: Weights = None,
    straight_through: bool = True,
    table: Setting[str] = "int8",
) -> keras.Model:
    """The model with its layers wrapped for quantization-aware training (arXiv 2602.03614).

    Learned centroids start where exact k-means of the present weights puts them, fixed basins at
    the `weight_range` of their regularizer. Train with `callbacks.PenaltySchedule`, which places
    both after its warm-up. Where a tenth of a kernel or more is exactly 0, as where it was pruned, one
    level is 0 and these weights stay 0 (`zero_basin` of regularizers).

    Args:
        model: A built Sequential, Functional or subclassed model, nested ones included.
        regularizer: One of `keras_qareg.regularizers`, or what its `get()` takes. `None`: each
            layer's own `kernel_regularizer`, where that is one of this package. May be a setting, as
            `levels` of `share_weights`; `None` in it leaves a layer as it is.
        layers: Which layers: `"all"` that have kernels; `"conv"`; `"dense"` (attention included);
            a list of layer names; a class of layers; or a function from a layer to whether it is wanted.
            A layer with no more weights than levels is left out, with a warning.
        levels: Integer from 2 to 256, in the place of what the regularizer says, or a setting; `None` in
            it leaves a layer as it is. `None` (default): what the regularizer says.
        weights: Which weights are kernels: a name, a name pattern (`"mixer_*"`) or path pattern inside
            the layer, several of these, or a function of the layer and the weight. `None` (default):
            those whose name ends in `kernel` or `embeddings`; there is a warning where a layer that is
            none of Keras's has others of two axes or more.
        straight_through: Whether the layers compute with their quantized kernels from when the
            centroids are placed by a schedule, and pass gradients straight through to the weights
            (`layers.QuantizationAware`). `False` is the paper's way: the layers compute with their
            float kernels to the end. Defaults to `True`.
        table: What values quantized kernels may have, `"int8"` (default), `"even"` or `"float32"`, as in
            `share_weights`: it loses nothing then that was trained for. May be a setting.

    Returns:
        A new model with the same weights and layer names, compiled like `model` if that was.

    Raises:
        ValueError: If the model is unbuilt or wrapped already, no layer matches, a name in `layers`
            or `table` is unknown, `levels` is a plan of rates, a key of a setting matches none, two
            keys disagree, or a kernel has NaN or infinite weights.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> wrapped = quantization_aware(model, qareg.regularizers.NearestSquared(levels=4))
    >>> type(wrapped.get_layer("fc")).__name__
    'QuantizationAware'

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#straight-through
    """
    check_built(model)
    check_plain(model, besides=IntegerKernels)
    if planned_rates(levels):
        raise ValueError(
            "Expected a plan of levels to train under. Received: a plan of rates, which are for weights "
            "that stay where they are. allocate(weights='archive', method='kmeans') plans levels."
        )
    check_flag("straight_through", straight_through)
    candidates = select(model, layers, weights)
    tables = resolve(TABLE, table, model, candidates, weights=weights)
    chosen = _wanted(model, candidates, regularizer, levels, weights, tables)
    if not chosen:
        own = " of its own, and no regularizer was given" if regularizer is None else ""
        own += ": the plan leaves all kernels float" if keeps_float(levels) else ""
        raise ValueError(
            f"Expected a layer to wrap in model '{model.name}'. Received: layers={layers!r}, of "
            f"which none has a kernel large enough and a regularizer{own}{no_kernel(model, weights)}"
        )
    warn_of_overlooked(model, layers, weights)
    made = []

    def wrap(layer: Layer) -> Layer:
        its = chosen[layer]
        levels = [n for n in its.levels if n is not None]
        made.append(
            QuantizationAware(
                fresh(inner_layer(layer), clean=True),
                its.regularizer,
                straight_through=straight_through,
                table=tables.value(layer),
                levels=levels if len(set(levels)) > 1 else None,
                kernel_names=names_of_kernels(layer, weights, its.levels),
                name=layer.name,
                trainable=layer.trainable,
            )
        )
        return made[-1]

    wrapped = clone(model, lambda layer: wrap if layer in chosen else None)
    for wrapper in made:
        if wrapper.regularizer.learned:
            wrapper.place_centroids()
            wrapper.placed.assign(0.0)  # not yet by a schedule
            wrapper.scheduled = False
    return wrapped


class _Wrap(NamedTuple):
    regularizer: regularizers.QuantizationRegularizer
    levels: list[int | None]


def _wanted(
    model: keras.Model,
    candidates: list[Layer],
    regularizer: Setting[regularizers.Identifier],
    levels: Setting[int] | None,
    weights: Weights,
    tables: Resolved,
) -> dict[Layer, _Wrap]:
    """What the layers are wrapped with."""
    given = sizes = None
    if regularizer is not None:
        given = resolve(REGULARIZER, regularizer, model, candidates, weights=weights)
    if levels is not None:
        sizes = resolve(LEVELS, levels, model, candidates, weights=weights)
    found: dict[Layer, _Wrap] = {}
    for layer in candidates:
        own = own_regularizer(inner_layer(layer)) if given is None else given.value(layer)
        if own is None:
            continue
        its = sizes.kernel_values(layer) if sizes else [own.levels] * len(kernels(layer, weights))
        several = {n for n in its if n is not None}
        if several and large_enough(layer, its, weights):
            own = own.with_levels(*several) if len(several) == 1 else own
            found[layer] = _with_zero(_Wrap(own, its), layer, tables.value(layer), weights)
    warn_of_constraints(found, weights, stacklevel=4)
    return found


def _with_zero(its: _Wrap, layer: Layer, table: str, weights: Weights) -> _Wrap:
    """The same, by a regularizer with a basin at 0 where a kernel has many exact zeros."""
    if its.regularizer.zero_basin != "auto":
        return its
    pairs = [
        (ops.convert_to_numpy(kernel), levels)
        for kernel, levels in zip(kernels(layer, weights), its.levels, strict=True)
        if levels
    ]
    if not any(many_zeros(kernel, MAX_LEVELS) for kernel, _ in pairs):
        return its
    cause = None
    if its.regularizer.soft:
        cause = f"{type(its.regularizer).__name__}, whose weights are mixtures. Others keep them"
    elif table == "even" and 2 in its.levels:
        cause = f"{regularizers.TWO_ON_A_GRID}. Others keep them"
    elif not any(many_zeros(kernel, levels) for kernel, levels in pairs):
        cause = "two levels, unless half of them are. A regularizer with zero_basin=True keeps them"
    if cause is None:
        return its._replace(regularizer=its.regularizer.with_zero(True))
    warnings.warn(
        f"Kernels of layer '{layer.name}' have many zeros, as where they were pruned. They are lost "
        f"under {cause}.",
        stacklevel=5,
    )
    return its
