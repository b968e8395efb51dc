"""What quantization made of each kernel, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from keras_qareg.models import kernel_codebooks
from keras_qareg.models.selection import quantized_layers
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
        entropy: Bits a weight that an entropy coder needs; 32 where it is not quantized.
        relative_error: `||w - w_q||^2 / ||w||^2` against the weights before quantization; 0 if unknown.
        float_bytes: Bytes as float32.
        packed_bytes: Bytes as indices of a whole number of bits, with the float32 table, or steps.
        entropy_bytes: Bytes as an ideal entropy coder's output, with the float32 table.
    """

    path: str
    shape: tuple[int, ...]
    levels: int | None
    entropy: float
    relative_error: float
    float_bytes: int
    packed_bytes: int
    entropy_bytes: int


@dataclass(frozen=True)
class Summary:
    """The kernels of a model and what they add up to; `str()` is a table.

    Attributes:
        rows: A `Row` a kernel, in the order of the model.
        other_bytes: Bytes of all other weights (biases, normalization), kept as float32.
    """

    rows: tuple[Row, ...]
    other_bytes: int

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
        header = ("kernel", "shape", "levels", "bits/weight", "rel. error", "float32", "packed")
        lines: list[tuple[str, ...]] = [
            (
                row.path,
                "x".join(map(str, row.shape)),
                "-" if row.levels is None else str(row.levels),
                f"{row.entropy:.2f}",
                f"{row.relative_error:.2e}",
                f"{row.float_bytes:,}",
                f"{row.packed_bytes:,}",
            )
            for row in self.rows
        ]
        lines.append(("other weights", *[""] * 4, *[f"{self.other_bytes:,}"] * 2))
        sums = [f"{size:,}" for size in (self.float_bytes, self.packed_bytes)]
        lines.append(("total", "", "", f"{self.entropy:.2f}", "", *sums))
        return table(header, lines)


def table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A text table: the first column left, the others right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: tuple[str, ...]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()

    return "\n".join([text(header), "  ".join("-" * width for width in widths), *map(text, lines)])


def summary(model: keras.Model) -> Summary:
    """Levels, entropy, relative quantization error and bytes of each kernel of a model.

    Args:
        model: A built model: plain, quantization-aware, shared, or with WNQ layers.

    Returns:
        A `Summary`; print it for a table. Bytes count weights alone, no file format.

    Raises:
        ValueError: If the model is unbuilt.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
    >>> summary(model).float_bytes
    544
    """
    found = list(kernel_codebooks(model))
    rows = tuple(_row(path, kernel, book) for path, kernel, book in found)
    counted = {id(kernel) for _, kernel, _ in found}
    for layer in quantized_layers(model):
        counted |= {id(weight) for weight in layer.quantization_weights}
    other = [weight for weight in model.weights if id(weight) not in counted]
    return Summary(rows, sum(FLOAT_BYTES * math.prod(weight.shape) for weight in other))


def _row(path: str, kernel: keras.Variable, book: Codebook | None) -> Row:
    size = int(np.prod(kernel.shape))
    if book is None:
        return Row(path, tuple(kernel.shape), None, 32.0, 0.0, *[FLOAT_BYTES * size] * 3)
    levels = book.levels_used
    several = book.centroids.ndim > 1
    table_bytes = book.table_bytes if several else FLOAT_BYTES * levels
    bits = math.ceil(math.log2(levels)) if levels > 1 else 0
    return Row(
        path,
        tuple(kernel.shape),
        levels,
        book.entropy,
        book.relative_error(ops.convert_to_numpy(kernel)),
        FLOAT_BYTES * size,
        math.ceil(size * bits / 8) + table_bytes,
        math.ceil(size * book.entropy / 8) + table_bytes,
    )
