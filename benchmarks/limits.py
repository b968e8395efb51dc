"""The fewest bytes that a `.tflite` of a form could have, which files of `benchmarks.size` are held to.

Packed indices: as many whole bits a weight as the levels need; of integer forms those that the form has.
Tables; one factor a channel where a BatchNormalization was folded into a kernel that has one table;
biases and other constants; and the structure of the converter's float file: what is left of that without
its constants, its names and its metadata.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras.layers import BatchNormalization

import keras_qareg as qareg
from keras_qareg.export.litert.sections import sections
from keras_qareg.layers.keras_private import graph_parents, layers_inside
from keras_qareg.layers.kernel_wrapper import channel_axes
from keras_qareg.models import kernel_codebooks

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Kernel:
    """What counts of a kernel: its weights, levels and channels, and the bytes of what is beside them.

    Attributes:
        path: Its path.
        size: How many weights it has.
        levels: How many levels, or `None` where it has no codebook.
        table_bytes: Bytes of its tables.
        channels: How many output channels it has.
        normalized: Whether a BatchNormalization stands behind it.
        per_channel: Whether each channel has a step or a table of its own.
    """

    path: str
    size: int
    levels: int | None
    table_bytes: int
    channels: int
    normalized: bool
    per_channel: bool

    def bytes(self, form: str) -> int:
        """The fewest bytes of the kernel in a form of `export.litert`, or of one that it chose."""
        factors = FLOAT_BYTES * self.channels
        if form == "float32" or self.levels is None:
            return FLOAT_BYTES * self.size
        if form.startswith("int"):  # scales stand in for steps and factors
            wide = self.per_channel or self.normalized or form == "int8 arithmetic"
            return _packed(self.size, int(form[3])) + (factors if wide else FLOAT_BYTES)
        packed = _packed(self.size, max(1, math.ceil(math.log2(self.levels))))
        if form == "tflm int8":
            return packed + self.levels + factors
        return packed + self.table_bytes + factors * (self.normalized and not self.per_channel)


class Limits:
    """The limits of a model.

    Args:
        model: The model as it is exported: shared, or with WNQ layers.
        content: The converter's float32 file of it.
    """

    def __init__(self, model: keras.Model, content: bytes):
        plain = qareg.strip(model)
        owners, normalized = _owners(plain), _normalized(plain)
        self.kernels = []
        pairs = zip(kernel_codebooks(model), kernel_codebooks(plain), strict=True)
        for (path, _, book), (_, kernel, _) in pairs:
            shape = tuple(kernel.shape)
            axes = channel_axes(owners[id(kernel)], kernel)
            self.kernels.append(
                Kernel(
                    path,
                    math.prod(shape),
                    None if book is None else book.levels_used,
                    0 if book is None else book.table_bytes,
                    math.prod(shape[len(shape) - axes :]),
                    id(kernel) in normalized,
                    book is not None and book.centroids.ndim > 1,
                )
            )
        found = sections(content)
        self.others = found.biases + found.constants + found.tables
        self.structure = found.records

    def bytes(self, form: str, report: Any) -> int:
        """The limit of a form; a report of `export.litert` says what it chose for each kernel."""
        chosen = {kernel.path: kernel.form.split("-")[0] for kernel in report.kernels}
        forms = {"auto": chosen, "smallest": chosen, "int8": {}}.get(form)
        default = "int8 arithmetic" if form == "int8" else "float32"
        return (
            sum(
                kernel.bytes(form if forms is None else forms.get(kernel.path, default))
                for kernel in self.kernels
            )
            + self.others
            + self.structure
        )


def _packed(size: int, bits: int) -> int:
    return -(-size * bits // 8)


def _owners(model: keras.Model) -> dict[int, keras.layers.Layer]:
    """The innermost layer of each weight."""
    owners = {}
    for layer in layers_inside(model):
        owners.update({id(weight): layer for weight in layer.weights})
    return owners


def _normalized(model: keras.Model) -> set[int]:
    """The weights of the layers that a BatchNormalization follows."""
    return {
        id(weight)
        for operation, parents in graph_parents(model).items()
        if isinstance(operation, BatchNormalization)
        for parent in parents
        if isinstance(parent, keras.layers.Layer)
        for weight in parent.weights
    }
