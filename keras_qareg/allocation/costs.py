"""The bytes of a kernel in a file, for each number of levels that it may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keras_qareg.export.litert.forms import OVERHEAD, KernelForm, integer_overhead, together
from keras_qareg.export.litert.micro import DECODING_BYTES, HEADER_BYTES, MAX_LEVELS
from keras_qareg.export.packing import (
    CHAIN_BYTES,
    CODE_RANGES,
    bits_of,
    bits_of_kind,
    chains,
    indices_a_word,
    words_bytes,
)
from keras_qareg.numerics.grids import grid_codes

FLOAT_BYTES = 4
# Forms of which a kernel is held as packed indices and a table where that is less.
CODED = ("smallest", "codebook")
# What cuts off the end of a last word that is not full, about.
_CUT_BYTES = 300


@dataclass(frozen=True)
class Kernel:
    """What the bytes of a kernel depend on, beside its levels.

    Attributes:
        path: Its path.
        size: How many weights it has.
        channels: How many output channels; 1 where these are not its last axes.
        groups: How many groups of these have a table of their own.
        dense: Whether a dense layer takes it.
        table: What values its table holds, as in `share_weights`.
        tables: How many tables of float32 numbers a file has for it.
        factors: How many float32 factors, one a channel, beside the tables.
        fixed: Whether files hold it as float32 in any case.
        entry: Bytes of a weight, or a number in a table: 1 in full-integer files.
    """

    path: str
    size: int
    channels: int
    dense: bool
    table: str = "int8"
    tables: int = 1
    factors: int = 0
    fixed: bool = False
    entry: int = FLOAT_BYTES
    groups: int = 1

    def table_bytes(self, levels: int) -> int:
        """Bytes of tables and factors."""
        return self.entry * (self.tables * levels + self.factors)


class Costs:
    """The bytes of kernels in a form of `export.litert`.

    Args:
        form: A form.
        kernels: The kernels.
    """

    def __init__(self, form: str, kernels: Sequence[Kernel]):
        self.form, self.kernels = form, list(kernels)
        sharing = [kernel for kernel in kernels if not kernel.fixed]
        places = together([(kernel.size, kernel.dense) for kernel in sharing])
        self._together = {sharing[place].path for place in places} if form in CODED else set()

    def shares(self, kernel: Kernel, levels: int | None) -> bool:
        """Whether a kernel shares operators with others of as many levels."""
        return kernel.path in self._together and self._way(kernel, levels)[0] == "codebook"

    def of(self, kernel: Kernel, levels: int | None) -> int:
        """Bytes of one kernel, if its indices are beside others of as many levels, or alone."""
        return self._way(kernel, levels)[1]

    def total(self, levels: Sequence[int | None]) -> int:
        """Bytes of all kernels, with so many levels each."""
        size, coded = 0, []
        for kernel, count in zip(self.kernels, levels, strict=True):
            best, stored = self._way(kernel, count)
            size += stored
            if count is not None and best == "codebook" and kernel.path in self._together:
                size -= words_bytes(count, kernel.size)
                coded.append((count, kernel.size))
        for base, places in chains(coded).items():
            weights = sum(coded[place][1] for place in places)
            size += words_bytes(base, weights)
            size += _CUT_BYTES * (weights % indices_a_word(base) > 0)
        return size + CHAIN_BYTES * max(0, len(chains(coded)) - 1)

    def _way(self, kernel: Kernel, levels: int | None) -> tuple[str, int]:
        """The way that takes the fewest bytes, and these."""
        options = self._options(kernel, levels)
        best = min(options, key=lambda name: options[name])
        return best, options[best]

    def _options(self, kernel: Kernel, levels: int | None) -> dict[str, int]:
        """Bytes in each way that the form may hold a kernel."""
        whole = kernel.entry * kernel.size
        if self.form == "int8":  # whatever its values are
            return {"int8": kernel.size + FLOAT_BYTES * kernel.channels}
        if levels is None or kernel.fixed:
            return {"float32": whole}
        found = {"float32": whole}
        if self.form == "tflm":
            if levels <= MAX_LEVELS:
                bits = max(1, bits_of(levels))
                stored = -(-kernel.size * bits // 8) + kernel.table_bytes(levels)
                found["tflm"] = stored + HEADER_BYTES + DECODING_BYTES
            return found
        if self.form != "codebook" and kernel.table != "float32":
            kind = self._kind(kernel.table, levels)
            stored = -(-kernel.size * bits_of_kind(kind) // 8)
            scales = kernel.factors or kernel.tables
            found[kind] = stored + FLOAT_BYTES * scales + integer_overhead(scales)
        if self.form in CODED:
            shared = "together" if kernel.path in self._together else "alone"
            stored = words_bytes(levels, kernel.size) + kernel.table_bytes(levels)
            found["codebook"] = stored + OVERHEAD[shared]
        return found

    def _kind(self, table: str, levels: int) -> str:
        """The integers that hold a kernel of so many levels."""
        least = {"auto": 8, "smallest": 2}.get(self.form) or int(self.form[3])
        if table == "even":
            codes = grid_codes(levels)
            for kind, (low, high) in sorted(CODE_RANGES.items()):
                if bits_of_kind(kind) >= least and low <= codes.min() and codes.max() <= high:
                    return kind
        return "int8"


def as_written(kernel: Kernel, form: str, levels: int, forms: Sequence[KernelForm]) -> Kernel:
    """A kernel with what a file that was written tells of it: its tables, and whether it has any.

    Args:
        kernel: The kernel.
        form: The form of the file.
        levels: The levels that it has there.
        forms: The forms of the constants in the file.
    """
    own = [found for found in forms if found.path == kernel.path]
    if not own or (form == "auto" and own[0].form == "float32"):
        return replace(kernel, fixed=True)
    if len(own) > 1 or own[0].levels is None:  # cut in pieces, of which each has a table
        return replace(kernel, tables=len(own))
    held, stored = own[0].form, own[0].bytes
    if held == "codebook":
        stored -= words_bytes(max(2, own[0].levels), kernel.size)
    elif held.startswith("tflm"):
        bits = max(1, bits_of(own[0].levels))
        stored -= -(-kernel.size * bits // 8) + HEADER_BYTES
    elif form == "tflm" and (
        held == "int8" or kernel.groups > 1
    ):  # of so many levels, tables take more
        return replace(kernel, tables=kernel.channels)
    elif held.startswith("int"):
        stored -= -(-kernel.size * bits_of_kind(held) // 8)
        return replace(kernel, factors=stored // FLOAT_BYTES if stored > FLOAT_BYTES else 0)
    else:
        return kernel
    table = own[0].levels
    for tables in (1, kernel.groups):
        if stored == kernel.entry * (tables * table + kernel.channels):
            return replace(kernel, tables=tables, factors=kernel.channels)
    return replace(kernel, tables=max(1, round(stored / (kernel.entry * table))))
