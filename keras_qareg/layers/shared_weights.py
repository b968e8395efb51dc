"""The wrapper whose kernels are looked up in a small table of trainable centroids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.choices import check_choice, check_count, check_flag
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.layers.kernel_wrapper import KernelWrapper, channel_axes, leave_out_of_files
from keras_qareg.numerics.assignment import assigned, stand_ins
from keras_qareg.numerics.clustering import check_levels
from keras_qareg.numerics.codebook import Codebook, lookup
from keras_qareg.numerics.compiled import cond
from keras_qareg.numerics.grids import grid_codes
from keras_qareg.numerics.groups import Channels
from keras_qareg.numerics.tables import (
    LARGEST_CODE,
    TABLES,
    float_parts,
    int8_parts,
    rounded,
)

# Constraints of a kernel that hold where they hold for each of its values.
KEPT_CONSTRAINTS = (keras.constraints.NonNeg,)


@keras.saving.register_keras_serializable(package="keras_qareg")
class SharedWeights(KernelWrapper):
    """A layer whose every kernel is `centroids[indices]`, or that times a size a channel.

    With `group_size`, so many output channels in a row have a table of their own.

    Only the centroids get gradients: each the sum of its members' (Han et al., "Deep Compression",
    ICLR 2016), which is the cumulative tuning of arXiv 2602.03614. The kernels of the layer inside
    keep what they were before sharing, take no part, and are not saved; a `NonNeg` of theirs holds for
    the centroids.

    With `reassign_every`, the kernels inside train too, straight through: their gradient is that of the
    shared values. Every so many training steps each weight then goes to the centroid that is the
    nearest now (TensorFlow Model Optimization's `cluster_weights` does so at each step, which is best:
    docs/method.md). They are saved, so that training can go on.
    `keras_qareg.share_weights` makes these layers; made by hand, all indices are 0 until
    `assign_codebooks`.

    Args:
        layer: Any Keras layer that has kernels.
        levels: Integer from 2 to 256, the size of each table; or one for each kernel.
        zero_centroid: Whether a centroid that is 0 stays 0 in tuning. Defaults to `False`.
        table: What values a table may hold. `"int8"`: whole numbers from -127 to 127 times a step, to
            which centroids are rounded, gradients passing straight through; `"even"`:
            `grids.grid_codes(levels)` times a step; `"float32"` (default): any.
        scale: `"kernel"` (default): one step a table; `"channel"`: one for each output channel, where
            these are the last axes of the kernel.
        group_size: Positive integer: how many output channels in a row have one table, where these are
            the last axes of the kernel; the last group may have fewer. `None` (default): all.
        reassign_every: Positive integer: after how many calls in training each weight goes to its
            nearest centroid anew; may be set before the model is compiled. `None` (default): each stays
            with its centroid.
        **kwargs: `name`, `trainable`, `dtype`, as for every Keras layer.

    Attributes:
        levels: What was given: an int, or a list where kernels differ.
        centroids: List of trainable weights of shape `(levels,)`, or `(levels, groups)`, float32, one
            for each kernel. Where the table is `"even"`, they are the sizes below.
        centroid_sizes: List of trainable weights, what tables are multiplied by: of shape
            `(channels,)`, or `(groups,)`, or `(1,)` where there is one. With whole numbers it is a power
            of two times the step, so that no product is rounded twice. Empty where there are none.
        centroid_units: List of weights of shape `()`, or `(groups,)`, not trainable: with `"int8"` the
            power of two that centroids are whole multiples of. Empty else.
        indices: List of uint8 weights in the shapes of the kernels.
        steps: Integer scalar, calls in training since weights were assigned; `None` where they stay.
        remembers: Whether the kernels inside are those from before sharing: not after loading.

    Call arguments: those of the layer inside.

    Input and output shape: those of the layer inside.

    Raises:
        ValueError: If an argument is out of its range, or the layer has no kernel, or not so many as
            `levels`.

    Example:

    >>> layer = SharedWeights(keras.layers.Dense(8), levels=4)
    >>> layer.build((None, 16))
    >>> sorted(v.name for v in layer.trainable_variables)
    ['bias', 'centroids']

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#tables-and-scales
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        levels: int | Sequence[int],
        *,
        zero_centroid: bool = False,
        table: str = "float32",
        scale: str = "kernel",
        group_size: int | None = None,
        reassign_every: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(layer, **kwargs)
        for name, size in (("reassign_every", reassign_every), ("group_size", group_size)):
            if size is not None:
                check_count(name, size)
        self.group_size, self.reassign_every = group_size, reassign_every
        sizes = [check_levels(n) for n in (levels if isinstance(levels, Sequence) else [levels])]
        self.levels = sizes if len(set(sizes)) > 1 else sizes[0]
        check_choice("table", table, TABLES)
        check_choice("scale", scale, ("kernel", "channel"))
        self.table, self.table_scale, self.remembers = table, scale, True
        self.zero_centroid = check_flag("zero_centroid", zero_centroid)

    keeps_zeros = property(lambda self: self.zero_centroid)

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self._check_count(self.levels)
        for kernel in self.held_kernels:
            kernel.trainable = False
        self._keep_zeros_under_regularizers()
        even, add = self.table == "even", self._add_per_kernel
        floats: dict[str, Any] = {"initializer": "zeros", "dtype": "float32"}
        shape = self._sizes_shape if even else self._table_shape
        self.centroids = add("centroids", shape=shape, trainable=True, **floats)
        self.centroid_sizes = self.centroids if even else []
        self.centroid_units: list[keras.Variable] = []
        floats["initializer"] = "ones"
        if not even and (self.table == "int8" or self.table_scale == "channel"):
            shape = self._sizes_shape
            self.centroid_sizes = add("centroid_sizes", shape=shape, trainable=True, **floats)
        if self.table == "int8":
            floats["shape"] = self._units_shape
            self.centroid_units = add("centroid_units", trainable=False, **floats)
        self._keep_constraints()
        whole: dict[str, Any] = {"initializer": "zeros", "trainable": False}
        whole["aggregation"] = "only_first_replica"  # all replicas find the same
        self.indices = add("indices", dtype="uint8", **whole)
        self.steps = None
        if self.reassign_every is not None:
            self.steps = self.add_weight(name="steps", shape=(), dtype="int32", **whole)
        for part in layers_inside(self.layer):
            if any(weight is kernel for weight in part.weights for kernel in self.held_kernels):
                leave_out_of_files(part, self.kernels, self._remember)

    @property
    def held_kernels(self) -> list[keras.Variable]:
        """The kernels that take no part: all, or none where weights are assigned anew."""
        return self.kernels if self.reassign_every is None else []

    def _remember(self, complete: bool) -> None:
        self.remembers = complete

    def _keep_constraints(self) -> None:
        for place, kernel in enumerate(self.kernels):
            if isinstance(kernel.constraint, KEPT_CONSTRAINTS):
                for trained in (self.centroids, self.centroid_sizes):
                    if trained:
                        trained[place].constraint = kernel.constraint

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        anew = training and self.steps is not None
        kernels = self._reassigned(self.steps) if anew else self.used_kernels()
        return self._call_with(kernels, *args, **kwargs)

    def used_kernels(self) -> list[Any]:
        """The kernels as `centroids[indices]`: a list of tensors, differentiable in what trains."""
        shared = [self._shared_kernel(place) for place in range(len(self.kernels))]
        return shared if self.reassign_every is None else self._straight_through(shared)

    def _straight_through(self, shared: list[Any]) -> list[Any]:
        kernels = [self._latent(kernel) for kernel in self.kernels]
        pairs = zip(kernels, shared, strict=True)
        return [stand_ins(latent, ops.cast(values, latent.dtype)) for latent, values in pairs]

    def _reassigned(self, counter: keras.Variable) -> list[Any]:
        """Counts a training step; the kernels, where each weight that trains was assigned when due."""
        trained = {id(weight) for weight in self.layer.trainable_variables}
        steps, shared = (ops.convert_to_tensor(counter) + 1) % self.reassign_every, []
        for place, kernel in enumerate(self.kernels):
            values = None
            if id(kernel) in trained:
                # Assigned in any case: replicas cannot meet inside a branch.
                if self.reassign_every == 1:
                    values, indices = self._assigned(place)
                else:
                    held = ops.convert_to_tensor(self.indices[place])
                    due = partial(self.nearest, place), partial(ops.copy, held)
                    indices = cond(steps == 0, *due)
                self.indices[place].assign(indices)
            shared.append(self._shared_kernel(place) if values is None else values)
        counter.assign(steps)
        return self._straight_through(shared)

    def nearest(self, place: int) -> Any:
        """The indices of the centroids that are nearest to the kernel inside."""
        return self._assigned(place)[1]

    def _assigned(self, place: int) -> tuple[Any, Any]:
        """A kernel as its nearest centroids, and their indices."""
        latent, (table, sizes) = ops.cast(self.kernels[place], "float32"), self._tables_of(place)
        if sizes is not None:
            latent = latent / ops.where(sizes == 0, ops.ones_like(sizes), sizes)
        if len(table.shape) == 1:
            values, indices = assigned(latent, table)
        else:
            channels = self._channels(place)
            parts = channels.cut(ops.reshape(latent, (-1, channels.count)))
            pairs = [assigned(part, table[:, group]) for group, part in enumerate(parts)]
            both = [ops.concatenate(found, axis=1) for found in zip(*pairs, strict=True)]
            values, indices = (ops.reshape(found, latent.shape) for found in both)
        return values if sizes is None else values * sizes, indices

    def _shared_kernel(self, place: int) -> Any:
        indices, (table, sizes) = self.indices[place], self._tables_of(place)
        if len(table.shape) > 1:
            starts = table.shape[0] * self._channels(place).places
            table = ops.reshape(ops.transpose(table), (-1,))  # one behind the other
            indices = ops.cast(indices, "int32") + ops.convert_to_tensor(starts)
        values = lookup(table, indices)
        return values if sizes is None else values * sizes

    def _tables_of(self, place: int) -> tuple[Any, Any]:
        """Tables `(levels,)` or `(levels, groups)`, and what each channel's values are multiplied by."""
        table, sizes = self._factors_of(place)
        if sizes is None:
            return table, None
        if tuple(sizes.shape) in ((1,), tuple(table.shape[1:])):
            return table * sizes, None  # so many products as levels, not as weights
        channels = self._channels(place)
        if channels.groups == 1 or self._by_channel(channels):
            return table, sizes
        return table, ops.take(sizes, channels.places)

    def _factors_of(self, place: int) -> tuple[Any, Any]:
        """The levels and the sizes that they are multiplied by, or `None`: tensors."""
        sizes = ops.convert_to_tensor(self.centroid_sizes[place]) if self.centroid_sizes else None
        if self.table == "even":
            return ops.convert_to_tensor(self._grid(place)), sizes
        table = ops.convert_to_tensor(self.centroids[place])
        if self.zero_centroid:
            # A zero gets no gradient, so that pruned weights stay pruned.
            table = table * ops.stop_gradient(ops.cast(table != 0, table.dtype))
        if self.table == "int8":
            table = rounded(table, ops.convert_to_tensor(self.centroid_units[place]))
        return table, sizes

    def assign_codebooks(self, codebooks: list[Codebook]) -> None:
        """Takes over centroids and indices.

        Args:
            codebooks: One `Codebook` for each kernel, in the order of `kernels`, each with at most
                `levels` centroids and the shape of its kernel. With groups there is a table a channel,
                equal in those of a group; with the scale `"channel"` multiples of each other.

        Raises:
            ValueError: If a codebook has more centroids than `levels`, or other values than `table`,
                `scale` and `group_size` allow.
        """
        self._keep_constraints()  # one may have been set since
        for place, book in enumerate(codebooks):
            levels = self.kernel_levels[place]
            if len(book.centroids) > levels:
                raise ValueError(
                    f"Expected codebooks of at most {levels} centroids. "
                    f"Received: {len(book.centroids)}"
                )
            centroids, sizes, units = self._parts_of(place, book)
            self.indices[place].assign(book.indices)
            if self.centroid_units:
                self.centroid_units[place].assign(units)
            if self.centroid_sizes:
                held = self.centroid_sizes[place]
                held.assign(sizes.reshape(held.shape))
            if self.table != "even":
                spare = np.repeat(centroids[-1:], levels - len(centroids), axis=0)
                self.centroids[place].assign(np.concatenate([centroids, spare]))

    def codebooks(self) -> list[Codebook]:
        """The `Codebook` of each kernel, in the order of `kernels`."""
        return [
            Codebook(self._table(place), ops.convert_to_numpy(indices))
            for place, indices in enumerate(self.indices)
        ]

    def _table(self, place: int) -> np.ndarray:
        """The values of the levels: `(levels,)`; with several tables or sizes `(levels, *channels)`."""
        if self.table == "even":
            table = self._grid(place)
        else:
            table = ops.convert_to_numpy(self.centroids[place])
        if self.table == "int8":
            unit = ops.convert_to_numpy(self.centroid_units[place])
            table = np.rint(table / unit).clip(-LARGEST_CODE, LARGEST_CODE) * unit
        sizes = np.ones(1, "float32")
        if self.centroid_sizes:
            sizes = ops.convert_to_numpy(self.centroid_sizes[place])
        return self._channels(place).tables(table.reshape(len(table), -1), sizes)

    def _unit(self, place: int) -> float:
        """The power of two that is a step in an even table, before sizes."""
        # Trained is the size of about the largest level, which takes the learning rate of centroids, not
        # the small step: a power of two apart, so that no product is rounded otherwise.
        return float(2 ** int(np.log2(np.abs(self._codes(place)).max())))

    @property
    def kernel_levels(self) -> list[int]:
        """The size of the table of each kernel, in the order of `kernels`."""
        return self.levels if isinstance(self.levels, list) else [self.levels] * len(self.kernels)

    def _codes(self, place: int) -> np.ndarray:
        """The whole numbers of an even table."""
        return grid_codes(self.kernel_levels[place]).astype("float32")

    def _grid(self, place: int) -> np.ndarray:
        """An even table before sizes."""
        return self._codes(place) / np.float32(self._unit(place))

    def _table_shape(self, kernel: keras.Variable) -> tuple[int, ...]:
        place = self.place_of(kernel)
        return (self.kernel_levels[place], *self._units_shape(kernel))

    def _sizes_shape(self, kernel: keras.Variable) -> tuple[int, ...]:
        channels = self._channels(self.place_of(kernel))
        return channels.shape if self._by_channel(channels) else (channels.groups,)

    def _units_shape(self, kernel: keras.Variable) -> tuple[int, ...]:
        groups = self._channels(self.place_of(kernel)).groups
        return (groups,) if groups > 1 else ()

    def _channels(self, place: int) -> Channels:
        kernel = self.kernels[place]
        axes = channel_axes(self.layer, kernel)
        return Channels(tuple(kernel.shape[len(kernel.shape) - axes :]), self.group_size)

    def _by_channel(self, channels: Channels) -> bool:
        """Whether each channel has a size of its own."""
        return self.table_scale == "channel" and bool(channels.shape)

    def _parts_of(self, place: int, book: Codebook) -> tuple[np.ndarray, np.ndarray, Any]:
        """Centroids, sizes and units of a codebook; raises a `ValueError` where it has none."""
        channels = self._channels(place)
        by_channel = self._by_channel(channels)
        shape = channels.shape if by_channel or channels.groups > 1 else (1,)
        if book.centroids.shape[1:] not in ((), shape):
            raise ValueError(
                f"Expected centroids of shape (levels,), or (levels, *{shape}). "
                f"Received: shape={book.centroids.shape}"
            )
        parts = channels.split(book.tables, by_channel) or []
        found = [factors for part in parts if (factors := self._factors(place, part)) is not None]
        if len(found) < channels.groups:
            wanted = {
                "int8": "whole numbers from -127 to 127 times a step",
                "even": f"{grid_codes(self.kernel_levels[place]).tolist()} times a step",
                "float32": "the same in each channel but for a factor",
            }[self.table]
            wanted += f", the same in {channels.size} channels each" * (channels.groups > 1)
            raise ValueError(
                f"Expected centroids that are {wanted}. Received: {book.centroids.tolist()}"
            )
        sizes = np.concatenate([sizes for _, sizes, _ in found])
        if channels.groups == 1:
            return found[0][0], sizes, found[0][2]
        centroids, units = (np.stack([parts[i] for parts in found], axis=-1) for i in (0, 2))
        return centroids, sizes, units

    def _factors(
        self, place: int, tables: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Centroids, a size a channel, and the unit, whose products are tables `(levels, channels)`."""
        if self.table == "int8":
            return int8_parts(tables)
        if self.table == "float32":
            return float_parts(tables)
        if len(tables) < self.kernel_levels[place]:
            return None
        unit = np.float32(self._unit(place))
        codes, sizes = self._grid(place), tables[self._codes(place) == 1][0] * unit
        return (codes, sizes, 1.0) if np.array_equal(np.outer(codes, sizes), tables) else None

    def get_config(self) -> dict[str, Any]:
        levels = list(self.levels) if isinstance(self.levels, list) else self.levels
        config: dict[str, Any] = {"levels": levels, "zero_centroid": self.zero_centroid}
        config |= {"table": self.table, "scale": self.table_scale, "group_size": self.group_size}
        return {**super().get_config(), **config, "reassign_every": self.reassign_every}
