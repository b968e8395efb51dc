"""What quantization made of each kernel, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_qareg.layers import Weights, kernels
from keras_qareg.models import kernel_codebooks
from keras_qareg.models.reading import every_kernel
from keras_qareg.models.selection import extended_layers, overlooked, quantized_layers
from keras_qareg.models.walking import leaf_layers
from keras_qareg.numerics.codebook import Codebook

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Row:
    """One kernel.

    Attributes:
        path: The path of the kernel in the plain model.
        shape: Its shape.
        levels: Distinct values that it has (the channel with most, where each has its own), or None
            where it is not quantized.
        group_size: How many output channels have values of their own together: 1 where each has, `None`
            where all have the same.
        on_grid: Whether the values are whole multiples of a step, which integer formats hold exactly.
        entropy: Bits a weight that an entropy coder needs; 32 where it is not quantized.
        relative_error: `||w - w_q||^2 / ||w||^2` against the weights before quantization; None where
            these are unknown.
        float_bytes: Bytes as float32.
        packed_bytes: Bytes as indices of a whole number of bits, with the table: float32, or codes of a
            byte and steps.
        entropy_bytes: Bytes as an ideal entropy coder's output, with the table.

    See also: https://keras-qareg.github.io/keras-qareg/report.html#what-is-on-the-page
    """

    path: str
    shape: tuple[int, ...]
    levels: int | None
    group_size: int | None
    on_grid: bool
    entropy: float
    relative_error: float | None
    float_bytes: int
    packed_bytes: int
    entropy_bytes: int

    @property
    def counted_levels(self) -> str:
        """The levels, and of what they are."""
        if self.group_size is None:
            return str(self.levels)
        group = "channel" if self.group_size == 1 else f"group of {self.group_size}"
        return f"{self.levels} a {group}"

    def cells(self) -> tuple[str, ...]:
        """The row as texts, for the table."""
        levels, grid = "-", "-"
        if self.levels is not None:
            levels = self.counted_levels
            grid = "yes" if self.on_grid else "no"
        return (
            self.path,
            "x".join(map(str, self.shape)),
            levels,
            grid,
            f"{self.entropy:.2f}",
            "-" if self.relative_error is None else f"{self.relative_error:.2e}",
            f"{self.float_bytes:,}",
            f"{self.packed_bytes:,}",
        )


class Looked(NamedTuple):
    """A kernel and what is known of it.

    Attributes:
        row: What `summary` says of it.
        variable: The kernel.
        before: Its weights before quantization, or `None` where these are unknown.
        book: Its codebook, or `None` where it is not quantized.
    """

    row: Row
    variable: keras.Variable
    before: np.ndarray | None
    book: Codebook | None


@dataclass(frozen=True)
class Summary:
    """The kernels of a model and what they add up to; `str()` is a table.

    Attributes:
        rows: A `Row` a kernel, in the order of the model.
        other_bytes: Bytes of all other weights (biases, normalization), kept as float32.
        left_out: Paths of weights among these that may be kernels, but are not named as such are: name
            them in `weights`, of `share_weights` and the like too.

    See also: https://keras-qareg.github.io/keras-qareg/report.html#what-is-on-the-page
    """

    rows: tuple[Row, ...]
    other_bytes: int
    left_out: tuple[str, ...] = ()

    @property
    def float_bytes(self) -> int:
        """Bytes of the whole model as float32."""
        return self.other_bytes + sum(row.float_bytes for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the whole model with packed indices."""
        return self.other_bytes + sum(row.packed_bytes for row in self.rows)

    @property
    def entropy_bytes(self) -> int:
        """Bytes of the whole model with ideally coded indices."""
        return self.other_bytes + sum(row.entropy_bytes for row in self.rows)

    @property
    def entropy(self) -> float:
        """Mean entropy of the quantized kernels in bits a weight; 32 where there are none."""
        quantized = [row for row in self.rows if row.levels is not None]
        sizes = [math.prod(row.shape) for row in quantized]
        bits = sum(row.entropy * size for row, size in zip(quantized, sizes, strict=True))
        return bits / sum(sizes) if sizes else 8.0 * FLOAT_BYTES

    def __str__(self) -> str:
        header = (
            *("kernel", "shape", "levels", "grid", "bits/weight"),
            *("rel. error", "float32", "packed"),
        )
        lines: list[tuple[str, ...]] = [row.cells() for row in self.rows]
        lines.append(("other weights", *[""] * 5, *[f"{self.other_bytes:,}"] * 2))
        sums = [f"{size:,}" for size in (self.float_bytes, self.packed_bytes)]
        lines.append(("total", "", "", "", f"{self.entropy:.2f}", "", *sums))
        text = table(header, lines)
        if self.left_out:
            text += f"\nnot named as kernels are (`weights`): {', '.join(self.left_out)}"
        return text


def table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A text table: the first column left, the others right.

    Args:
        header: The names of the columns.
        lines: The cells of each line.

    Returns:
        The lines of the table, below its header and a rule.

    Example:

    >>> print(table(("kernel", "levels"), [("fc/kernel", "4")]))
    kernel     levels
    ---------  ------
    fc/kernel       4

    See also: https://keras-qareg.github.io/keras-qareg/report.html#what-is-on-the-page
    """
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: tuple[str, ...]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()

    return "\n".join([text(header), "  ".join("-" * width for width in widths), *map(text, lines)])


def summary(
    model: keras.Model, reference: keras.Model | None = None, *, weights: Weights = None
) -> Summary:
    """Levels, entropy, relative quantization error and bytes of each kernel of a model.

    Args:
        model: A built model: plain, quantization-aware, shared, or with WNQ layers.
        reference: The model before, with the same layers, whose kernels the errors are against.
            `None`: what the layers remember; a plain model, or a shared one that was loaded, knows
            no weights from before.
        weights: Which weights of plain layers are kernels, as in `codebooks`.

    Returns:
        A `Summary`; print it for a table. Bytes count weights alone, no file format.

    Raises:
        ValueError: If a model is unbuilt, or `reference` has other kernels.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
    >>> summary(model).float_bytes
    544

    See also: https://keras-qareg.github.io/keras-qareg/report.html#what-is-on-the-page
    """
    rows = tuple(kernel.row for kernel in looked_at(model, reference, weights))
    return summed(model, rows, weights)


def looked_at(
    model: keras.Model, reference: keras.Model | None = None, weights: Weights = None
) -> Iterator[Looked]:
    """Each kernel of a model, one after the other, with what `summary` says of it.

    Args:
        model: As in `summary`.
        reference: As in `summary`.
        weights: As in `summary`.

    Raises:
        ValueError: As `summary`.
    """
    found = list(kernel_codebooks(model, weights))
    layers = quantized_layers(model)
    latent = {id(kernel) for layer in layers for kernel in kernels(layer)}
    forgotten = {
        id(kernel)
        for layer in layers
        if not getattr(layer, "remembers", True)
        for kernel in kernels(layer)
    }
    befores = [None] * len(found) if reference is None else _weights_of(reference, weights, found)
    for (path, kernel, book), before in zip(found, befores, strict=True):
        if id(kernel) in latent - forgotten and before is None:
            before = ops.convert_to_numpy(kernel)
        row = _row(path, tuple(kernel.shape), book, before)
        if id(kernel) not in latent and row.packed_bytes >= row.float_bytes:
            # Not quantized, but so small that all its weights are few.
            row, book = _row(path, tuple(kernel.shape), None, None), None
        yield Looked(row, kernel, before, book)


def summed(model: keras.Model, rows: tuple[Row, ...], weights: Weights = None) -> Summary:
    """The `Summary` of a model from the rows of all its kernels.

    Args:
        model: The model.
        rows: Its rows.
        weights: As in `summary`.
    """
    counted = {id(w) for layer in extended_layers(model) for w in layer.quantization_weights}
    counted |= {id(kernel.variable) for kernel in every_kernel(model, weights, left=True)}
    other = [weight for weight in model.weights if id(weight) not in counted]
    other_bytes = sum(FLOAT_BYTES * math.prod(weight.shape) for weight in other)
    named = weights is None
    left_out = [path for x in leaf_layers(model) for path in overlooked(x)] if named else []
    return Summary(rows, other_bytes, tuple(left_out))


def _weights_of(reference: keras.Model, weights: Weights, found: list[Any]) -> list[np.ndarray]:
    """The kernels of a model, in order: paths differ where a model was loaded."""
    by_path = {path: kernel for path, kernel, _ in kernel_codebooks(reference, weights)}
    paths = [path for path, _, _ in found]
    if set(paths) <= set(by_path):  # it may have more: kernels that sharing left as they were
        by_path = {path: by_path[path] for path in paths}
    kernels = [ops.convert_to_numpy(kernel) for kernel in by_path.values()]
    expected = [tuple(kernel.shape) for _, kernel, _ in found]
    shapes = [kernel.shape for kernel in kernels]
    if shapes != expected:
        raise ValueError(
            f"Expected `reference` with kernels of shapes {expected}. Received: {shapes}"
        )
    return kernels


def _row(
    path: str, shape: tuple[int, ...], book: Codebook | None, before: np.ndarray | None
) -> Row:
    size = math.prod(shape)
    if book is None:
        return Row(path, shape, None, None, False, 32.0, None, *[FLOAT_BYTES * size] * 3)
    levels = book.levels_used
    one = book.centroids.ndim == 1
    groups = None if one or book.group_size == book.tables.shape[1] else book.group_size
    table_bytes, on_grid = book.table_bytes, book.grid is not None
    if one:  # the values that some weight has
        table_bytes = FLOAT_BYTES * levels
        table_bytes = min(table_bytes, levels + FLOAT_BYTES) if on_grid else table_bytes
    bits = math.ceil(math.log2(levels)) if levels > 1 else 0
    return Row(
        path,
        shape,
        levels,
        groups,
        on_grid,
        book.entropy,
        None if before is None else book.relative_error(before),
        FLOAT_BYTES * size,
        math.ceil(size * bits / 8) + table_bytes,
        math.ceil(size * book.entropy / 8) + table_bytes,
    )
