"""The wrapper that trains a layer under a quantization-aware regularizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg import regularizers
from keras_qareg.choices import check_choice, check_flag
from keras_qareg.layers.kernel_wrapper import KernelWrapper
from keras_qareg.numerics import assignment, clustering
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.compiled import cond
from keras_qareg.numerics.tables import TABLES, evenly_spaced, rounded_freely

_UNSCHEDULED = (
    "QuantizationAware layers are trained without a schedule: {}. Pass "
    "`callbacks=[keras_qareg.callbacks.PenaltySchedule()]` to `fit`, or call `place_centroids()` on "
    "each layer."
)
_FULL_STRENGTH = (
    "the penalty has its full strength from the first step, with centroids that were not placed for "
    "it, which costs accuracy"
)
_NOT_PLACED = (
    "they compute with their float kernels, as their centroids were not placed, and learn nothing of "
    "few values"
)


@keras.saving.register_keras_serializable(package="keras_qareg")
class QuantizationAware(KernelWrapper):
    """Trains a layer whose kernels are pulled towards a few values (arXiv 2602.03614).

    The outputs are those of the layer inside; once the centroids are placed, and with
    `straight_through`, those that it has with the nearest centroid of each weight. In training, each
    kernel adds `balance * strength * regularizer.penalty(kernel, centroids)` to the loss. For
    `NearestSquared` and `NearestExponential` the centroids are trained with the kernels; for `Sine` and
    `Cosine` they are the fixed basins. `callbacks.PenaltySchedule` places them, sets the balance, and
    raises the strength.

    With `DKM` there is no penalty: in training the layer computes with mixtures of the centroids, of
    which a higher `strength` makes harder ones, and in inference with the nearest centroids; with float
    kernels before centroids are placed.

    Args:
        layer: Any Keras layer that has kernels: dense, convolutional (transposed, depthwise and
            separable too), embedding, recurrent, attention, or a layer or model made of such.
        regularizer: One of `keras_qareg.regularizers`, or what its `get()` takes.
        straight_through: Whether the layer computes with its quantized kernels from when the centroids
            are placed. The loss is then that of the network which will be shipped; its gradient is
            passed straight through to the weights, as WNQ does (arXiv 1907.00593), and each learned
            centroid gets the sum over its members too. `DKM` is not without it. Defaults to `True`.
        table: What values quantized kernels may have, as in `share_weights`: `"int8"` (default), whole
            numbers from -127 to 127 times a step that follows the largest centroid; `"even"`,
            consecutive whole numbers times a step; `"float32"`, any. Learned centroids are rounded
            where the layer computes with them, gradients passing straight through, and the penalty
            knows nothing of it; fixed basins are moved to such values when they are placed.
        levels: Integers from 2 to 256, one for each kernel, where these are not the regularizer's; its
            default strength is then that of each. Defaults to `None`.
        **kwargs: `name`, `trainable`, `dtype`, as for every Keras layer.

    Attributes:
        centroids: List of weights of shape `(levels,)`, float32, one for each kernel.
        kernel_regularizers: List of the regularizers of the kernels, which differ in their levels.
        strength: Non-trainable float32 scalar, what the penalty is multiplied with now.
        balance: Non-trainable float32 scalar, a second factor: more than 1 where a schedule balances
            small layers against large ones.
        scheduled: Whether training was begun by a schedule or `place_centroids`. Training without, there
            is a warning: the penalty would be on from the first step, with centroids anywhere.
        placed: Non-trainable flag, whether the centroids were placed from the kernels.

    Call arguments: those of the layer inside.

    Input and output shape: those of the layer inside.

    Raises:
        ValueError: If there is no regularizer, `table` is unknown, `DKM` is not to compute with
            quantized kernels, or the layer has no kernel, or not so many as `levels`.

    Example:

    >>> layer = QuantizationAware(keras.layers.Dense(8), regularizers.NearestSquared(levels=4))
    >>> tuple(layer(np.ones((2, 16))).shape), tuple(layer.centroids[0].shape)
    ((2, 8), (4,))

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#straight-through
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        regularizer: regularizers.Identifier,
        *,
        straight_through: bool = True,
        table: str = "int8",
        levels: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(layer, **kwargs)
        found = regularizers.get(regularizer)
        if found is None:
            raise ValueError(
                "Expected a regularizer for QuantizationAware, for example "
                "keras_qareg.regularizers.NearestExponential(levels=4). Received: None"
            )
        self.regularizer: regularizers.QuantizationRegularizer = found
        if found.soft and not straight_through:
            raise ValueError(
                f"Expected `straight_through=True` with {type(found).__name__}, which is what layers "
                "compute with. Received: straight_through=False"
            )
        check_choice("table", table, TABLES)
        for count in levels or [found.levels]:
            regularizers.check_zero("zero_basin", found.zero_basin, count, table)
        self.straight_through = check_flag("straight_through", straight_through)
        self.table = table
        self.levels = None if levels is None else [clustering.check_levels(n) for n in levels]
        self._in_training = False
        # Whether a schedule, or `place_centroids`, has begun what training needs.
        self.scheduled = False

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self._check_count(self.levels)
        self.kernel_regularizers = [self.regularizer] * len(self.kernels)
        if self.levels is not None:
            self.kernel_regularizers = [self.regularizer.with_levels(n) for n in self.levels]

        def start(shape: tuple[int, ...], dtype: Any = None) -> Any:
            basins = self.regularizer.with_levels(shape[0]).basins()
            return ops.convert_to_tensor(self._allowed(basins), dtype)

        self.centroids = self._add_per_kernel(
            "centroids",
            shape=lambda kernel: (self.kernel_regularizers[self.place_of(kernel)].levels,),
            initializer=start,
            dtype="float32",
            trainable=self.regularizer.learned,
        )
        self.strength = self._add_state("strength", self.regularizer.strength)
        self.balance = self._add_state("balance", 1.0)
        self.placed = self._add_state("placed", 0.0)
        for place, kernel in enumerate(self.kernels):
            kernel.regularizer = _KernelPenalty(self, place, kernel.regularizer)

    def _add_state(self, name: str, value: float) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=False,
        )

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        # Keras says False where it evaluates; a training loop that says nothing trains.
        self._in_training = training is not False
        if training and not self.scheduled and self.regularizer.strength > 0:
            what = _NOT_PLACED if self.regularizer.soft else _FULL_STRENGTH
            warnings.warn(_UNSCHEDULED.format(what), stacklevel=2)
        if not self.straight_through:
            if not self.keeps_zeros:
                return self.layer(*args, **kwargs)
            return self._call_with(self.used_kernels(), *args, **kwargs)
        soft = bool(training) and self.regularizer.soft
        used = self._with_levels(self._soft if soft else _nearest)
        return self._call_with(used, *args, **kwargs)

    def used_kernels(self) -> list[Any]:
        """The kernels, quantized where the layer computes with quantized ones: a list of tensors."""
        if not self.straight_through:
            return [self._latent(kernel) for kernel in self.kernels]
        return self._with_levels(_nearest)

    def _with_levels(self, function: Callable[[Any, Any], Any]) -> list[Any]:
        """What a function makes of each kernel and its levels, where these are placed."""
        placed = ops.convert_to_tensor(self.placed) > 0
        found = []
        for kernel, centroids in zip(self.kernels, self.centroids, strict=True):
            latent = self._latent(kernel)
            levels = self._levels(ops.convert_to_tensor(centroids))
            found.append(cond(placed, partial(function, latent, levels), partial(_itself, latent)))
        return found

    def _soft(self, latent: Any, levels: Any) -> Any:
        share = ops.convert_to_tensor(self.strength)
        return ops.cast(self.regularizer.soft_values(latent, levels, share), latent.dtype)

    @property
    def keeps_zeros(self) -> bool:  # type: ignore[override]
        """Whether a level is 0, and weights that are exactly 0 stay so, as their gradient is 0 too."""
        return self.regularizer.zero_basin is True

    def _centred(self, centroids: Any) -> Any:
        """Learned centroids, of which the nearest to 0 is 0 where one has to be."""
        if not (self.keeps_zeros and self.regularizer.learned):
            return centroids
        distance = ops.abs(centroids)
        return ops.where(distance <= ops.min(distance), ops.zeros_like(centroids), centroids)

    def _levels(self, centroids: Any) -> Any:
        """The levels that are computed with: a tensor like some centroids."""
        centroids = self._centred(centroids)
        if not self.regularizer.learned or self.table == "float32":
            return centroids
        return rounded_freely(centroids, self.table)

    def _allowed(self, basins: np.ndarray) -> np.ndarray:
        """Basins as they are kept: fixed ones are moved to what the table allows."""
        return basins if self.regularizer.learned else evenly_spaced(basins, self.table)

    def tables(self) -> list[np.ndarray]:
        """The levels of each kernel as of now, as the layer computes with them: `(levels,)`."""
        return [
            np.asarray(ops.convert_to_numpy(self._levels(ops.convert_to_tensor(centroids))))
            for centroids in self.centroids
        ]

    @property
    def quantizes(self) -> bool:
        """Whether outputs are those of the quantized kernels now."""
        return self.straight_through and bool(ops.convert_to_numpy(self.placed) > 0)

    def codebooks(self) -> list[Codebook]:
        """The `Codebook` of each kernel: its weights with their nearest centroids as of now."""
        kernels = [ops.convert_to_numpy(kernel) for kernel in self.kernels]
        pairs = zip(kernels, self.tables(), strict=True)
        return [Codebook.nearest(kernel, table) for kernel, table in pairs]

    def place_centroids(self, method: str = "kmeans") -> None:
        """Moves the centroids to where the kernels are now; fixed basins fit their range to them.

        Args:
            method: `"kmeans"` (exact, default), `"quantile"` or `"uniform"`.

        Raises:
            ValueError: If the method is unknown, or a kernel has NaN or infinite weights.
        """
        if method not in clustering.METHODS:
            raise ValueError(
                f"Expected `method` to be one of {sorted(clustering.METHODS)}. "
                f"Received: method={method!r}"
            )
        for place, (path, regularizer) in enumerate(
            zip(self.kernel_paths, self.kernel_regularizers, strict=True)
        ):
            weights = ops.convert_to_numpy(self.kernels[place])
            try:
                found = self._initial(weights, method, regularizer.levels)
            except ValueError as error:
                raise ValueError(f"Kernel '{path}': {error}") from error
            self.centroids[place].assign(self._allowed(regularizer.fit_basins(found)))
        self.placed.assign(1.0)
        self.scheduled = True

    def _initial(self, weights: np.ndarray, method: str, levels: int) -> np.ndarray:
        if not self.keeps_zeros:
            return clustering.METHODS[method](weights, levels)
        if method == "kmeans":
            return clustering.kmeans(weights, levels, zero_centroid=True)
        return clustering.with_zero(clustering.METHODS[method](weights, levels))

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self.scheduled = bool(ops.convert_to_numpy(self.placed) > 0)

    def penalties(self) -> list[float]:
        """The penalty of each kernel now, with its factors: a list of floats, for logging."""
        return [
            float(ops.convert_to_numpy(self._penalty(place, kernel)))
            for place, kernel in enumerate(self.kernels)
        ]

    def _penalty(self, place: int, kernel: Any) -> Any:
        """The penalty of a kernel now, with its factors."""
        regularizer, strength = self.kernel_regularizers[place], self.regularizer.strength
        factor = ops.convert_to_tensor(self.balance) * ops.convert_to_tensor(self.strength)
        if self.levels is not None and strength:  # the strength of this kernel against the layer's
            factor = factor * (regularizer.strength / strength)
        centroids = self._centred(ops.convert_to_tensor(self.centroids[place]))
        return factor * regularizer.penalty(self._latent(kernel), centroids)

    def get_config(self) -> dict[str, Any]:
        config = {
            "regularizer": regularizers.serialize(self.regularizer),
            "straight_through": self.straight_through,
            "table": self.table,
        }
        given: dict[str, Any] = {} if self.levels is None else {"levels": list(self.levels)}
        return {**super().get_config(), **config, **given}


def _itself(latent: Any) -> Any:
    return latent


def _nearest(latent: Any, levels: Any) -> Any:
    """The kernel with each weight in the place of its level."""
    return ops.cast(assignment.nearest(latent, levels), latent.dtype)


class _KernelPenalty:
    """The `regularizer` of one kernel inside a wrapper.

    Keras asks a variable's regularizer once a step, however often its layer was called, and leaves
    out frozen variables; losses that are added in `call` would be counted at every call.
    """

    def __init__(self, wrapper: QuantizationAware, place: int, own: Any):
        self.wrapper, self.place = wrapper, place
        # The wrapper takes the place of a regularizer of this package on the layer itself.
        self.own = None if isinstance(own, regularizers.QuantizationRegularizer) else own

    def __call__(self, kernel: Any) -> Any:
        loss = (
            ops.zeros((), "float32")
            if self.own is None
            else ops.cast(self.own(self.wrapper._latent(kernel)), "float32")
        )
        if self.wrapper._in_training:
            loss = loss + self.wrapper._penalty(self.place, kernel)
        return loss
