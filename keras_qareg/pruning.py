"""The callback that prunes while a model trains."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg.choices import check_count, check_number
from keras_qareg.layers import (
    QUANTIZED,
    IntegerKernels,
    QuantizationAware,
    SharedWeights,
    Weights,
    channel_axes,
    kernels,
)
from keras_qareg.layers.keras_private import (
    children,
    is_graph,
    layers_inside,
    optimizer_parts,
    slots,
)
from keras_qareg.layers.kernel_wrapper import output_axes
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.configuring import TARGET_SPARSITY, Setting, resolve
from keras_qareg.models.selection import Layers, no_kernel, select
from keras_qareg.models.surroundings import FOLDED_INTO, last_layers, layers_before_normalizations
from keras_qareg.numerics.sparsity import (
    Structure,
    check_sparsity,
    check_structure,
    fits,
    kept,
    limit,
    polynomial,
)

# How often weights are pruned between begin and end, where nothing is said.
_UPDATES = 30


class PruningSchedule(keras.callbacks.Callback):
    """Prunes the smallest weights of each kernel while a model trains, more and more of them.

    From `begin` to `end` of the training the share of zeros rises to `target_sparsity` as
    `1 - (1 - progress)^3` (Zhu, Gupta, arXiv 1710.01878), fast at first, when others can make up for
    what goes. Pruned weights are exact zeros after each step of `fit`. What was zero before the training
    stays so as well, and counts: so training goes on as it was under `fit(initial_epoch=...)` and
    `keras.callbacks.BackupAndRestore`, and a schedule with `target_sparsity=0.0` keeps what was pruned
    elsewhere. Where several steps are one program (`steps_per_execution`), zeros are set at its end.
    A warning says where training ended before `end`, or weights of before were restored. Pass callbacks
    that set weights, `EarlyStopping(restore_best_weights=True)` and `SwapEMAWeights`, before this one.

    The zeros of a kernel are its mask; there is nothing else to keep. `quantization_aware` and
    `share_weights` give kernels of which a tenth or more is zero (half, with two levels) a level at 0,
    which holds them through training, tuning and files. At the end the momentum of pruned weights is
    taken out of the optimizer, so that such training may go on with it. A plain model that trains on
    without a schedule loses its zeros, and so does any under an optimizer that mixes the gradients of
    weights (Muon): train on with `PruningSchedule(0.0)`.

    Args:
        target_sparsity: From 0 to below 1, the share of zeros of each kernel at the end. May be a
            setting, as `levels` of `share_weights`; `None` in it leaves a layer as it is. Defaults to
            0.5.
        begin: Float from 0 to 1, the share of the training after which pruning begins. Defaults to 0.
        end: Float from `begin` to 1, the share after which it ends: the rest of the training makes up
            for it. Defaults to 0.5.
        frequency: Positive integer, the steps from one pruning to the next. `None` (default): a
            thirtieth of those from begin to end. Where the number of steps of an epoch is unknown, each
            epoch prunes once.
        structure: What is pruned together. `"weights"` (default): each for itself. `(rows, columns)`:
            blocks of so many inputs and outputs, by their mean magnitude. `"2:4"`: of each four inputs
            of an output two stay (or others, as `"1:4"`), for which `target_sparsity` must be what that
            makes; kernels whose inputs are not just before their outputs, as of most heads of
            attention, are left. `"channels"`: whole output channels of dense layers, convolutions and
            depthwise ones, with their biases, and the scales and offsets of batch normalization behind;
            `shrink` then removes them. The last layers stay whole; where the graph of a model is
            unknown, `layers` has to say which are others.
        layers: Which layers, as in `quantization_aware`.
        weights: Which weights are kernels, as in `quantization_aware`.

    Raises:
        ValueError: If an argument is out of its range; or, in `fit`, if no kernel is left to prune,
            a layer that is to have zeros holds its kernels at values that 0 is not among, or channels
            are to go and nothing says which layers make outputs.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile("adam", "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 8))
    >>> schedule = PruningSchedule(0.75, end=0.5)
    >>> history = model.fit(x, x[:, :4], epochs=4, callbacks=[schedule], verbose=0)
    >>> int((ops.convert_to_numpy(model.layers[0].kernel) == 0).sum())
    24

    See also: https://keras-qareg.github.io/keras-qareg/method.html#pruning
    """

    def __init__(
        self,
        target_sparsity: Setting[float] = 0.5,
        begin: float = 0.0,
        end: float = 0.5,
        frequency: int | None = None,
        *,
        structure: Structure = "weights",
        layers: Layers = "all",
        weights: Weights = None,
    ):
        super().__init__()
        what = "a share of the training, from 0 to 1"
        for name, share in (("begin", begin), ("end", end)):
            check_number(name, share, what, lambda share: 0 <= share <= 1)
        if begin > end:
            raise ValueError(
                f"Expected 0 <= begin <= end <= 1. Received: begin={begin!r}, end={end!r}"
            )
        if frequency is not None:
            check_count("frequency", frequency, besides=" or None")
        self.structure = check_structure(structure)
        if isinstance(target_sparsity, numbers.Real):
            target_sparsity = _limited(check_sparsity(target_sparsity), self.structure)
        self.target_sparsity, self.begin, self.end = target_sparsity, begin, end
        self.frequency, self.layers, self.weights = frequency, layers, weights
        self._kernels: list[_Pruned] = []
        self._epoch, self._at, self._progress = 0, -1.0, 0.0

    def __repr__(self) -> str:
        names = ("target_sparsity", "begin", "end", "frequency", "structure")
        return f"PruningSchedule({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def sparsity(self) -> dict[str, float]:
        """The share of zeros of each kernel as of now, by its path."""
        return {
            found.kernel.path: float(np.mean(ops.convert_to_numpy(found.kernel) == 0))
            for found in self._kernels
        }

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._at, self._progress = -1.0, 0.0
        self._kernels = _to_prune(
            self.model, self.target_sparsity, self.structure, self.layers, self.weights
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        steps = (self.params or {}).get("steps")
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # during an epoch, Keras keeps the weights elsewhere
        if steps:
            # Several steps that are one program may be more than are left of an epoch.
            now = self._epoch * steps + min(batch + 1, steps)
            self._prune(now, steps * self.params.get("epochs", 1))
        self._keep()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if not (self.params or {}).get("steps"):
            self._prune(epoch + 1, self.params.get("epochs", 1))
        self._keep()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        optimizer = getattr(self.model, "optimizer", None)
        if any(getattr(part, "use_ema", False) for part in optimizer_parts(optimizer)):
            self._keep()  # the optimizer may have put averages in the place of weights
        for found in self._kernels:
            found.forget(optimizer)
        lost = [found.kernel.path for found in self._kernels if not found.is_pruned()]
        if lost or self._progress < 1.0:
            what = f"restored weights of before in {lost}" if lost else "ended before `end`"
            warnings.warn(
                f"Training {what}: kernels have fewer zeros than `target_sparsity`. Give "
                "`EarlyStopping` a `start_from_epoch` behind the end of pruning.",
                stacklevel=2,
            )

    def _prune(self, now: int, total: int) -> None:
        """Prunes where it is time to, after so many steps, or epochs, of the training."""
        first, last = self.begin * total, self.end * total
        every = self.frequency or max(1, math.ceil((last - first) / _UPDATES))
        if now < first:
            return
        at = last if now >= last else first + (now - first) // every * every
        if at > self._at:
            self._at = at
            self._progress = 1.0 if at >= last else (at - first) / (last - first)
            for found in self._kernels:
                found.prune(polynomial(self._progress, found.target), self.structure)

    def _keep(self) -> None:
        for found in self._kernels:
            found.keep()


class _Pruned:
    """A kernel that is pruned, and what is pruned with its channels.

    Args:
        layer: The layer that it is of.
        kernel: The kernel.
        target: The share of zeros at the end.
        others: Weights of one number a channel, which are 0 where the channel is.
    """

    def __init__(
        self, layer: Layer, kernel: keras.Variable, target: float, others: list[keras.Variable]
    ):
        self.layer, self.kernel, self.target, self.others = layer, kernel, target, others
        self._axes = channel_axes(inner_layer(layer), kernel)
        mask = ops.convert_to_numpy(kernel) != 0
        if not mask.any():  # a kernel of zeros alone was never trained
            mask = np.ones_like(mask)
        # Channels that are a constant other than 0 stay so.
        live = [ops.convert_to_numpy(other).reshape(-1) != 0 for other in others]
        self._constant = ~self._by_channel(mask) & np.any(live, axis=0)
        self._set(mask)

    def prune(self, sparsity: float, structure: Structure) -> None:
        """Finds what stays of the kernel as it is."""
        weights = np.where(self._mask, ops.convert_to_numpy(self.kernel), 0.0)
        self._set(kept(weights, sparsity, structure, self._axes))

    def is_pruned(self) -> bool:
        """Whether the zeros are where the mask has them."""
        return not ops.convert_to_numpy(self.kernel)[~self._mask].any()

    def _set(self, mask: np.ndarray) -> None:
        self._mask, self._is_new = mask, True
        live = self._by_channel(mask) | self._constant if self.others else None
        self._tensors = [ops.convert_to_tensor(m) for m in (mask, live) if m is not None]

    def _by_channel(self, mask: np.ndarray) -> np.ndarray:
        """Which output channels have a weight that stays."""
        return mask.any(axis=tuple(range(mask.ndim - self._axes))).reshape(-1)

    def keep(self) -> None:
        """Sets zeros where the mask has them."""
        for variable, mask in self._masked():
            self._zero(variable, mask)
        if self._is_new and isinstance(self.layer, SharedWeights):
            # Weights that are assigned anew go to the centroid at 0 at once, not when they are due.
            place = self.layer.place_of(self.kernel)
            kernel, held = ops.convert_to_tensor(self.kernel), self.layer.indices[place]
            found, indices = self.layer.nearest(place), ops.convert_to_tensor(held)
            held.assign(ops.where(kernel == 0, ops.cast(found, indices.dtype), indices))
        self._is_new = False

    def forget(self, optimizer: Any) -> None:
        """Takes out of an optimizer what would move zeros, where training goes on with it."""
        for variable, mask in self._masked():
            for slot in slots(optimizer, variable):
                self._zero(slot, mask)

    def _masked(self) -> list[tuple[keras.Variable, Any]]:
        others = [(other, self._tensors[1]) for other in self.others]
        return [(self.kernel, self._tensors[0]), *others]

    def _zero(self, variable: keras.Variable, mask: Any) -> None:
        value = ops.convert_to_tensor(variable)
        variable.assign(ops.where(mask, value, ops.zeros_like(value)))


def _to_prune(
    model: keras.Model,
    target_sparsity: Setting[float],
    structure: Structure,
    layers: Layers,
    weights: Weights,
) -> list[_Pruned]:
    every = select(model, layers, weights)
    chosen = [x for x in every if x.trainable and any(k.trainable for k in kernels(x, weights))]
    whole = structure == "channels"
    last = _last(model, chosen, layers, weights) if whole and chosen else set()
    still = "; all that they choose are frozen" if every and not chosen else ""
    if chosen and last.issuperset(map(id, chosen)):
        still = "; all that they choose are last layers, which stay whole"
    chosen = [layer for layer in chosen if id(layer) not in last]
    given = resolve(TARGET_SPARSITY, target_sparsity, model, chosen, weights=weights)
    behind = _normalizations(model) if whole else {}
    found, unfit = [], []
    for layer in chosen:
        inner = inner_layer(layer)
        its = zip(kernels(layer, weights), given.kernel_values(layer), strict=True)
        pairs = [(k, target) for k, target in its if target is not None and k.trainable]
        for kernel, target in pairs:
            if not _computes_with_zeros(layer, kernel, target > 0):
                continue
            target = _limited(target, structure)
            able = not whole or type(inner) in FOLDED_INTO
            if able and fits(structure, tuple(kernel.shape), output_axes(inner, kernel)):
                others = _of_channels(inner, behind.get(id(layer))) if whole else []
                found.append(_Pruned(layer, kernel, target, others))
            else:
                unfit.append(f"'{kernel.path}' {tuple(kernel.shape)}")
    if not found:
        raise ValueError(
            f"Expected a kernel to prune in model '{model.name}'. Received: layers={layers!r} and "
            f"structure={structure!r}, which leave {unfit or 'none'}{still}{no_kernel(model, weights)}"
        )
    if unfit:
        warnings.warn(
            f"Left as they are, because structure={structure!r} does not fit: {', '.join(unfit)}.",
            stacklevel=3,
        )
    return found


def _last(model: keras.Model, chosen: list[Layer], layers: Layers, weights: Weights) -> set[int]:
    """The identities of the layers that make outputs of a model.

    Raises:
        ValueError: If these are unknown, and `layers` does not say which are no such.
    """
    model = _with_all(model, chosen)
    if not is_graph(model):
        if not isinstance(layers, str):
            return set()
        raise ValueError(
            "Expected `layers` to be names or a function, without those that make outputs, to prune "
            f"channels of a model whose graph is unknown. Received: layers={layers!r} for "
            f"'{model.name}' of type {type(model).__name__}"
        )
    found = {id(layer) for layer in last_layers(model, select(model, weights=weights))}
    for part in layers_inside(model):
        if isinstance(part, keras.Model) and not is_graph(part):
            inside = {id(layer) for layer in layers_inside(part)}
            found |= inside if inside & found else set()
    return found


def _with_all(model: keras.Model, layers: list[Layer]) -> keras.Model:
    """The model that some layers are of, where another has it inside, as one that trains it has."""
    inside = [] if is_graph(model) else children(model)
    for part in [part for part in inside if isinstance(part, keras.Model)]:
        if {id(layer) for layer in layers_inside(part)}.issuperset(map(id, layers)):
            return _with_all(part, layers)
    return model


def _limited(target: float, structure: Structure) -> float:
    """A share of zeros that a structure such as `"2:4"` can have; else raises a `ValueError`."""
    only = limit(structure)
    if only is None or not target:
        return float(target)
    if not math.isclose(target, only, rel_tol=1e-6):
        raise ValueError(
            f"Expected target_sparsity={only:g} with structure={structure!r}. "
            f"Received: target_sparsity={target!r}"
        )
    return only


def _computes_with_zeros(layer: Layer, kernel: keras.Variable, is_pruned: bool) -> bool:
    """Whether a layer computes with the zeros of a kernel; an error where it is to have more."""
    if not isinstance(layer, QUANTIZED) or isinstance(layer, IntegerKernels):
        return True
    wanted, zeros = "a plain layer", np.array(False)
    if isinstance(layer, QuantizationAware):
        wanted, zeros = "a regularizer with zero_basin=True", np.array(layer.keeps_zeros)
    elif getattr(layer, "reassign_every", None):
        wanted = "share_weights with zero_centroid=True"
        if layer.keeps_zeros:  # of its tables, some may have no 0
            zeros = (layer.codebooks()[layer.place_of(kernel)].centroids == 0).any(axis=0)
    if is_pruned and not zeros.all():
        raise ValueError(
            f"Expected {wanted}, to prune '{kernel.name}' of layer '{layer.name}'. Received: "
            f"{type(layer).__name__}, which computes with other values than 0. Prune first, then "
            "quantize or share."
        )
    return bool(zeros.any())


def _normalizations(model: keras.Model) -> dict[int, Layer]:
    """By the identity of a layer, the batch normalization that alone reads what it computes."""
    by_identity = {id(layer): layer for layer in layers_inside(model)}
    return {
        id(before): by_identity[normalization]
        for normalization, before in layers_before_normalizations(model).items()
    }


def _of_channels(layer: Layer, normalization: Layer | None) -> list[keras.Variable]:
    """Weights of one number for each output channel of a layer: with these at 0 a channel is 0."""
    found = [layer.bias]
    if normalization is not None:
        found += [normalization.gamma, normalization.beta]
        if normalization.gamma is None:  # else 0 times anything
            found.append(normalization.moving_mean)
    return [weight for weight in found if weight is not None]
