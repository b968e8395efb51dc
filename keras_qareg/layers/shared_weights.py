"""The wrapper whose kernels are looked up in a small table of trainable centroids."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.layers.kernel_wrapper import KernelWrapper, channel_axes
from keras_qareg.numerics.clustering import check_levels
from keras_qareg.numerics.codebook import Codebook, lookup
from keras_qareg.numerics.grids import grid_codes

# Constraints of a kernel that hold where they hold for each of its values.
KEPT_CONSTRAINTS = (keras.constraints.NonNeg,)


@keras.saving.register_keras_serializable(package="keras_qareg")
class SharedWeights(KernelWrapper):
    """A layer whose every kernel is `centroids[indices]`.

    Only the centroids get gradients: each the sum of its members' (Han et al., "Deep Compression",
    ICLR 2016), which is the cumulative tuning of arXiv 2602.03614. The kernels of the layer inside
    keep what they were before sharing, take no part, and are not saved; a `NonNeg` of theirs holds for
    the centroids.
    `keras_qareg.share_weights` makes these layers; made by hand, all indices are 0 until
    `assign_codebooks`.

    Args:
        layer: Any Keras layer that has kernels.
        levels: Integer from 2 to 256, the size of each table.
        zero_centroid: Whether a centroid that is 0 stays 0 in tuning. Defaults to `False`.
        snap: Whether the centroids are `grids.grid_codes(levels)` times a step, one for each output
            channel, so that integer formats hold them exactly. Defaults to `False`.
        **kwargs: `name`, `trainable`, `dtype`, as for every Keras layer.

    Attributes:
        centroids: List of trainable weights of shape `(levels,)`, float32, one for each kernel; with
            `snap` so many steps as the largest power of two in the codes, of shape `(channels,)`, or
            `(1,)` for a transposed convolution.
        indices: List of uint8 weights in the shapes of the kernels.
        remembers: Whether the kernels inside are those from before sharing: not after loading.

    Call arguments: those of the layer inside.

    Input and output shape: those of the layer inside.

    Raises:
        ValueError: If `levels` is out of range, or the layer has no kernel.

    Example:

    >>> layer = SharedWeights(keras.layers.Dense(8), levels=4)
    >>> layer.build((None, 16))
    >>> sorted(v.name for v in layer.trainable_variables)
    ['bias', 'centroids']
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        levels: int,
        *,
        zero_centroid: bool = False,
        snap: bool = False,
        **kwargs: Any,
    ):
        super().__init__(layer, **kwargs)
        self.levels = check_levels(levels)
        self.zero_centroid, self.snap, self.remembers = zero_centroid, snap, True
        # Trained is the size of about the largest level, which takes the learning rate of centroids, not
        # the small step: a power of two apart, so that no product is rounded otherwise.
        codes = grid_codes(levels)
        self._steps = 2.0 ** int(np.log2(np.abs(codes.astype("int64")).max()))
        self._codes = (codes / self._steps).astype("float32")

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        for kernel in self.kernels:
            kernel.trainable = False
        self.centroids = self._add_per_kernel(
            "centroids",
            shape=self._sizes_shape if self.snap else (self.levels,),
            initializer="zeros",
            dtype="float32",
            trainable=True,
        )
        self._keep_constraints()
        self.indices = self._add_per_kernel(
            "indices", initializer="zeros", dtype="uint8", trainable=False
        )
        for part in layers_inside(self.layer):
            if any(weight is kernel for weight in part.weights for kernel in self.kernels):
                self._leave_out_kernels(part)

    def _leave_out_kernels(self, part: keras.layers.Layer) -> None:
        """Keeps the kernels from before sharing out of files, which hold them as tables and indices."""
        save, load = part.save_own_variables, part.load_own_variables

        def entries() -> dict[str, Any]:
            found: dict[str, Any] = {}
            save(found)
            return found

        def save_own_variables(store: Any) -> None:
            for key, value in entries().items():
                if not any(value is kernel for kernel in self.kernels):
                    store[key] = value

        def load_own_variables(store: Any) -> None:
            held = {key: store[key] for key in store.keys()}  # noqa: SIM118 (no mapping)
            lacking = {k: np.asarray(ops.convert_to_numpy(v)) for k, v in entries().items()}
            self.remembers = set(lacking) <= set(held)
            load({**lacking, **held})

        part.save_own_variables, part.load_own_variables = save_own_variables, load_own_variables

    def _keep_constraints(self) -> None:
        for kernel, centroids in zip(self.kernels, self.centroids, strict=True):
            if isinstance(kernel.constraint, KEPT_CONSTRAINTS):
                centroids.constraint = kernel.constraint

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return self._call_with(self.used_kernels(), *args, **kwargs)

    def used_kernels(self) -> list[Any]:
        """The kernels as `centroids[indices]`: a list of tensors, differentiable in the centroids."""
        return [
            self._shared_kernel(centroids, indices)
            for centroids, indices in zip(self.centroids, self.indices, strict=True)
        ]

    def _shared_kernel(self, centroids: keras.Variable, indices: keras.Variable) -> Any:
        table = ops.convert_to_tensor(centroids)
        if self.snap:
            return ops.take(ops.convert_to_tensor(self._codes), ops.cast(indices, "int32")) * table
        if self.zero_centroid:
            # A zero gets no gradient, so that pruned weights stay pruned.
            table = table * ops.stop_gradient(ops.cast(table != 0, table.dtype))
        return lookup(table, indices)

    def assign_codebooks(self, codebooks: list[Codebook]) -> None:
        """Takes over centroids and indices.

        Args:
            codebooks: One `Codebook` for each kernel, in the order of `kernels`, each with at most
                `levels` centroids and the shape of its kernel.

        Raises:
            ValueError: If a codebook has more centroids than `levels`, or is off the grid of `snap`.
        """
        self._keep_constraints()  # one may have been set since
        for book, centroids, indices in zip(codebooks, self.centroids, self.indices, strict=True):
            if len(book.centroids) > self.levels:
                raise ValueError(
                    f"Expected codebooks of at most {self.levels} centroids. "
                    f"Received: {len(book.centroids)}"
                )
            indices.assign(book.indices)
            if self.snap:
                centroids.assign(self._sizes_of(book).reshape(centroids.shape))
                continue
            spare = self.levels - book.centroids.size
            centroids.assign([*book.centroids, *([book.centroids[-1]] * spare)])

    def codebooks(self) -> list[Codebook]:
        """The `Codebook` of each kernel, in the order of `kernels`."""
        return [
            Codebook(self._table(ops.convert_to_numpy(centroids)), ops.convert_to_numpy(indices))
            for centroids, indices in zip(self.centroids, self.indices, strict=True)
        ]

    def _table(self, centroids: np.ndarray) -> np.ndarray:
        """The values of the levels: `(levels,)`, or with a step a channel `(levels, *channels)`."""
        if not self.snap:
            return centroids
        table = np.multiply.outer(self._codes, centroids)
        return table[:, 0] if centroids.shape == (1,) else table

    def _sizes_shape(self, kernel: keras.Variable) -> tuple[int, ...]:
        axes = channel_axes(self.layer, kernel)
        return tuple(kernel.shape[-axes:]) if axes else (1,)

    def _sizes_of(self, book: Codebook) -> np.ndarray:
        """The variable of a codebook on the grid; raises a `ValueError` where it is off the grid."""
        table, codes = book.centroids, grid_codes(self.levels).tolist()
        if len(table) == self.levels:
            sizes = table[codes.index(1)] * np.float32(self._steps)
            if np.array_equal(np.multiply.outer(self._codes, sizes), table):
                return np.atleast_1d(sizes)
        raise ValueError(
            f"Expected centroids that are {codes} times a step. Received: {table.tolist()}"
        )

    def get_config(self) -> dict[str, Any]:
        config = {"levels": self.levels, "zero_centroid": self.zero_centroid, "snap": self.snap}
        return {**super().get_config(), **config}
