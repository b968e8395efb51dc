"""Sharing the weights of a model, for cumulative tuning of the centroids."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import keras
from keras.layers import Layer

from keras_qareg.choices import check_choice, check_switch
from keras_qareg.layers import (
    EXTENDED,
    KEPT_CONSTRAINTS,
    IntegerKernels,
    QuantizationAware,
    SharedWeights,
    Weights,
    kernels,
)
from keras_qareg.layers.keras_private import set_trainable_alone
from keras_qareg.models.accounting import own_weights
from keras_qareg.models.cloning import clone, fresh
from keras_qareg.models.clustered import (
    Wanted,
    Way,
    cluster_all,
    has_centroids,
    trained_levels,
)
from keras_qareg.models.clustered_warnings import warn_of_lost_zeros, warn_of_moved
from keras_qareg.models.configuring import (
    ALL,
    GROUP_SIZE,
    LEVELS,
    RATE,
    SCALE,
    TABLE,
    Setting,
    keeps_float,
    planned_rates,
    resolve,
    warn_of_other_tables,
)
from keras_qareg.models.selection import (
    Layers,
    check_built,
    check_float,
    large_enough,
    names_of_kernels,
    no_kernel,
    quantized_layers,
    select,
    warn_of_overlooked,
)
from keras_qareg.models.steps import with_scales
from keras_qareg.models.stripping import plain, strip
from keras_qareg.models.walking import containers
from keras_qareg.numerics.clustering import MAX_LEVELS, MIN_LEVELS
from keras_qareg.numerics.codebook import Codebook

_BY_RATE = "rate-distortion"
METHODS = ("auto", "trained", "kmeans", "quantile", "uniform", _BY_RATE)
TRAINABLE = ("centroids", "centroids+rest", "assignments")
# Training steps after which weights are assigned anew: at each, as rare moves cost accuracy.
_REASSIGN_EVERY = 1


def share_weights(
    model: keras.Model,
    levels: Setting[int] | None = None,
    layers: Layers = "all",
    *,
    weights: Weights = None,
    method: str = "auto",
    rate: Setting[float] | None = None,
    table: Setting[str] = "int8",
    scale: Setting[str] = "auto",
    group_size: Setting[int] | None = None,
    zero_centroid: bool | str = "auto",
    trainable: str = "centroids",
    verbose: str | int = "auto",
) -> keras.Model:
    """The model with every kernel reduced to a few shared values, ready for cumulative tuning.

    `compile` and `fit` the result to tune the centroids alone: every weight stays with the centroid
    that it was given, or moves to another one (`trainable`), so a kernel never has more than `levels`
    values.

    Args:
        model: A built model, plain or from `quantization_aware`; where layers compute with their
            quantized kernels, it is these that are shared.
        levels: Integer from 2 to 256, values a kernel; `None`: what each layer's regularizer says. What
            differs between layers is a setting: a dict from layer names, kernel paths, patterns of
            either (`"block_*"`) or layer types to values, a function of the layer, or the path of a YAML
            file (`config`); `None` in it leaves a layer as it is. `table`, `scale` and `group_size` may
            be settings too, with the defaults where nothing matches.
        layers: Which layers, as in `quantization_aware`; a wrapped layer counts as what it wraps.
        weights: Which weights are kernels, as in `quantization_aware`.
        method: `"auto"` takes the trained centroids where a layer has them, each then moved to the
            mean of its members (arXiv 2602.03614), the basins of a `Sine` or `Cosine`, and exact
            k-means elsewhere, where a few weights then take the level on their other side, so that
            the errors of a channel do not add up (`numerics.balancing`). `"trained"` is the same, but
            an error where a layer has no centroids;
            `"kmeans"`, `"quantile"` and `"uniform"` look at the weights alone. `"rate-distortion"` is
            for archives, whose indices are entropy-coded: least squared error and bits together, with
            as many levels as that takes, at most `levels` (`None`: 256).
        rate: With `"rate-distortion"`, what a bit may cost in squared weights, 0 or more: one number for
            all kernels, or a setting, as `levels`.
            `numerics.rate_distortion.rate_for_bits` finds one. `None` (default) with other methods.
        table: What values a kernel may have. `"int8"` (default): whole numbers from -127 to 127 times a
            step, the nearest to the best centroids: `.tflite` files hold these exactly in a byte a
            weight, which runs at float speed, or as a table with indices. `"even"`: consecutive whole
            numbers times a step, zero among them (-1 and 1 with two levels), which files hold in as
            few bits as the levels need; with methods `"auto"` and `"uniform"` alone. `"float32"`: any.
            They stay so in tuning. Of k-means, few values that are such already stay what they are; few
            that are not are rounded, with a warning. Of more than about a hundred levels, neighbours
            that are closer than a step become one.
        scale: How many steps a kernel has: `"kernel"` one, `"channel"` one for each output channel, so
            that each has up to `levels` values of its own. For the latter, weights are divided by the
            root mean square of their channel, and clustered together, each counting by the square of
            that. `"auto"` (default): `"channel"` where it costs nothing in a file. With `"int8"` that is
            where nothing but a batch normalization reads what the layer computes, whose factors a
            converter multiplies the kernel with anyway; where such layers have half of the weights or
            more, it is all layers, of whose steps the file is a percent larger or two; with `"even"` it
            is everywhere, with `"float32"` nowhere, since files would hold a table for each channel.
            One step is for kernels with trained or fixed centroids, unless `"even"`, and for those
            whose channels are not their last axes (transposed convolutions).
        group_size: Positive integer: so many output channels in a row have `levels` values of their own,
            and with `scale="kernel"` a step of their own: each group is clustered and tuned by itself
            (coremltools' per-grouped-channel palettization). The last group has what is left. Files
            hold a table for each group; docs/method.md says what that costs. `None` (default): all
            channels, as in kernels whose channels are not their last axes. Not for kernels with trained
            or fixed centroids, which are those of whole kernels.
        zero_centroid: Whether one centroid of each table is 0 and stays so. `"auto"` (default): where
            a tenth of its weights or more are exactly 0, as in pruned kernels, or a channel is dead
            (all its weights are below 1e-5 of the kernel's largest, and become 0); not where centroids
            were trained.
        trainable: `"centroids"`: they alone train, and normalization keeps its statistics;
            `"centroids+rest"`: whatever else was trainable trains with them. `"assignments"`: the
            weights too: float kernels from before sharing train straight through, and at each training
            step (`SharedWeights.reassign_every` can make it rarer) each weight goes to the centroid that
            is the nearest then; those of layers that do not train stay with theirs.
        verbose: 1 shows a bar that counts layers, 0 nothing; `"auto"` (default) shows it where the
            model has ten million weights or more.

    Returns:
        A new model whose chosen layers are `layers.SharedWeights`; layers that were wrapped but not
        chosen are plain again. A copy of the plain model, with a warning, where a plan leaves all
        kernels float.

    Raises:
        ValueError: If an argument is out of its range, the model is unbuilt or shared already, no layer
            or key of a setting matches, two keys disagree, or a kernel is of half precision, has NaN or
            infinite weights, or a constraint other than `NonNeg` (which the centroids then have).

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> shared = share_weights(model, levels=4)
    >>> [book.levels_used for book in qareg.codebooks(shared).values()]
    [4]

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#few-values
    """
    if method == "auto" and planned_rates(levels):
        method, rate = _BY_RATE, planned_rates(levels)
    check_sharing(model, method, rate, trainable)
    zero_centroid = check_switch("zero_centroid", zero_centroid)
    chosen = select(model, layers, weights)
    sizes = _levels(model, chosen, levels, weights, method)
    if not sizes:
        return _unshared(model, levels, f"layers={layers!r}", no_kernel(model, weights))
    warn_of_other_tables(levels, table=table, scale=scale, group_size=group_size)
    way = Way(weights, method, zero_centroid)
    wanted = wanted_of(model, chosen, sizes, way, Tables(table, scale, group_size), rate)
    warn_of_overlooked(model, layers, weights)
    found = cluster_all(wanted, way, verbose)
    warn_of_moved(wanted, found, way)
    warn_of_lost_zeros(wanted, found, way)
    made = []

    def leave(layer: Layer) -> Layer:
        # Ranges, and kernels of integers beside them, are not what sharing takes the place of.
        kept = isinstance(layer, EXTENDED) and not isinstance(layer, QuantizationAware)
        return _training(layer, fresh(layer) if kept else plain(layer), trainable)

    def share(layer: Layer) -> Layer:
        wrapper = SharedWeights(
            _training(layer, plain(layer), trainable),
            _held(wanted[layer], found[layer]),
            zero_centroid=zero_centroid is True or any(zero for _, zero in found[layer]),
            table=wanted[layer].table,
            scale=wanted[layer].scale,
            group_size=wanted[layer].group_size,
            reassign_every=_REASSIGN_EVERY if trainable == "assignments" else None,
            kernel_names=names_of_kernels(layer, weights, sizes[layer]),
            name=layer.name,
        )
        made.append((layer, wrapper))
        return wrapper

    shared = clone(model, lambda layer: share if layer in wanted else leave)
    for layer, wrapper in made:
        wrapper.assign_codebooks([book for book, _ in found[layer]])
    _set_trainable(shared, trainable)
    return shared


def _unshared(model: keras.Model, levels: Setting[int] | None, given: str, why: str) -> keras.Model:
    """The plain model, where that is what a plan wants; else a `ValueError`."""
    if not keeps_float(levels):
        raise ValueError(
            f"Expected a layer to share the weights of in model '{model.name}'. "
            f"Received: {given}, of which none has a kernel large enough{why}"
        )
    warnings.warn(
        f"The plan leaves all kernels of model '{model.name}' float, which fit its budget as they "
        "are: no weights are shared. A smaller budget makes the model smaller.",
        stacklevel=3,
    )
    return strip(model)


def check_sharing(
    model: keras.Model,
    method: str,
    rate: Setting[float] | None,
    trainable: str,
) -> None:
    """Raises a `ValueError` where arguments of `share_weights` are out of their range."""
    check_built(model)
    check_float(model)
    check_choice("method", method, METHODS)
    if (rate is not None) != (method == _BY_RATE):
        raise ValueError(
            "Expected `rate` with method='rate-distortion', and with no other. "
            f"Received: method={method!r}, rate={rate!r}"
        )
    check_choice("trainable", trainable, TRAINABLE)
    for layer in quantized_layers(model):
        if not isinstance(layer, QuantizationAware | IntegerKernels):
            raise ValueError(
                "Expected a model whose weights are not shared or quantized yet. Received: a model "
                f"with layer '{layer.name}' of type {type(layer).__name__}. Take "
                "keras_qareg.strip(model) first."
            )


def _check_kernels(chosen: Iterable[Layer], weights: Weights) -> None:
    """Raises a `ValueError` where shared values cannot be what a kernel is held to, or is made of."""
    for layer in chosen:
        for kernel in kernels(layer, weights):
            if kernel.dtype in ("float16", "bfloat16"):
                raise ValueError(
                    f"Expected kernels of float32. Received: '{kernel.path}' of {kernel.dtype}, which "
                    "would round shared values to others. Make the model anew with the dtype policy "
                    f"'mixed_{kernel.dtype}' or 'float32', and load its weights into it."
                )
            held = kernel.constraint
            if held is not None and not isinstance(held, KEPT_CONSTRAINTS):
                raise ValueError(
                    "Expected kernels whose constraint shared values can keep (NonNeg), or without "
                    f"one. Received: '{kernel.path}' with {type(held).__name__}. Leave the layer out "
                    f"(`layers`), or take the constraint off first: layer '{layer.name}' can be made "
                    "again without."
                )


def _training(layer: Layer, copy: Layer, trainable: str) -> Layer:
    """A copy of a layer, which trains where that does and not centroids alone do."""
    copy.trainable = trainable != "centroids" and layer.trainable
    return copy


def _set_trainable(shared: keras.Model, trainable: str) -> None:
    for layer in containers(shared):
        set_trainable_alone(layer, True)  # else Keras trains no centroid in a frozen model
        if trainable == "centroids":
            for weight in own_weights(layer):
                weight.trainable = False


def _levels(
    model: keras.Model,
    chosen: list[Layer],
    levels: Setting[int] | None,
    weights: Weights,
    method: str,
) -> dict[Layer, tuple[int | None, ...]]:
    """The levels of each kernel of the layers that are to be shared."""
    by_rate = method == _BY_RATE
    if by_rate and levels is None:
        levels = MAX_LEVELS
    found: dict[Layer, tuple[int | None, ...]] = {}
    given = None if levels is None else resolve(LEVELS, levels, model, chosen, weights=weights)
    for layer in chosen:
        its = given.kernel_values(layer) if given else _trained_levels(layer, weights)
        # A rate makes no more levels than are of use.
        least = [MIN_LEVELS if by_rate and n is not None else n for n in its]
        if any(n is not None for n in its) and large_enough(layer, least, weights):
            found[layer] = tuple(its)
    return found


class Tables(NamedTuple):
    """What tables were asked for: arguments of `share_weights`, each a setting."""

    table: Setting[str]
    scale: Setting[str]
    group_size: Setting[int] | None


def wanted_of(
    model: keras.Model,
    chosen: list[Layer],
    sizes: dict[Layer, tuple[int | None, ...]],
    way: Way,
    given: Tables,
    rate: Setting[float] | None,
) -> dict[Layer, Wanted]:
    """What the kernels of each layer are to become.

    Args:
        model: A built model.
        chosen: The layers that settings are for.
        sizes: The levels of each kernel of the layers that are shared.
        way: How kernels are clustered.
        given: What tables were asked for.
        rate: As in `share_weights`.

    Raises:
        ValueError: As `share_weights`.
    """
    tables, scales, groups = (
        resolve(argument, setting, model, chosen, weights=way.weights)
        for argument, setting in zip((TABLE, SCALE, GROUP_SIZE), given, strict=True)
    )
    rates = None if rate is None else resolve(RATE, rate, model, chosen, weights=way.weights)
    found = {}
    for layer, its in sizes.items():
        values = () if rates is None else tuple(rates.kernel_values(layer))
        if any(n is not None and r is None for n, r in zip(its, values, strict=False)):
            raise ValueError(
                f"Expected `rate` for each kernel that is shared. Received: none for layer "
                f"'{layer.name}'"
            )
        values = tuple(0.0 if value is None else value for value in values)
        size = None if groups.value(layer) == ALL else groups.value(layer)
        found[layer] = Wanted(its, tables.value(layer), scales.value(layer), values, size)
    _check_tables(found, way)
    _check_kernels(found, way.weights)
    return with_scales(model, found, way)


def _held(wanted: Wanted, found: list[tuple[Codebook, bool]]) -> list[int]:
    """The levels of each kernel that is shared: those found by a rate, or in groups of few weights."""
    if not wanted.rates and wanted.group_size is None:
        return wanted.shared
    return [max(MIN_LEVELS, len(book.centroids)) for book, _ in found]


def _trained_levels(layer: Layer, weights: Weights) -> list[int]:
    levels = trained_levels(layer, weights)
    if not levels:
        raise ValueError(
            f"Expected `levels`, because layer '{layer.name}' has no regularizer of keras_qareg "
            "to take it from. Received: levels=None"
        )
    return levels


def _check_tables(wanted: dict[Layer, Wanted], way: Way) -> None:
    for layer, its in wanted.items():
        if its.table == "even" and way.method not in ("auto", "uniform"):
            raise ValueError(
                "Expected method='auto' or 'uniform' with table='even', which makes centroids evenly "
                f"spaced. Received: method={way.method!r}"
            )
        if its.group_size is None:
            continue
        if its.table == "even" and its.scale == "channel":
            raise ValueError(
                "Expected scale='auto' or 'kernel' with table='even' and `group_size`, which then says "
                f"how many channels have one step. Received: scale='channel' for layer '{layer.name}'"
            )
        if has_centroids(layer, its, way):
            raise ValueError(
                "Expected `group_size` for layers without trained or fixed centroids, which are those "
                f"of whole kernels. Received: group_size={its.group_size} for layer '{layer.name}'. "
                "method='kmeans' looks at the weights alone."
            )
