"""The low-bit forms of a LiteRT file: which constant gets which, and the proof that they are exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.flatbuffer import Constant
from keras_qareg.export.litert.recognition import Recognized, along, recognize
from keras_qareg.export.litert.rewriting import call_once, look_up, quantize
from keras_qareg.export.litert.runtime import tensor_values
from keras_qareg.export.packing import CODE_RANGES, Grouping, best_grouping, bits_of_kind
from keras_qareg.numerics.codebook import Codebook

LOW_BIT_FORMS = ("auto", "smallest", "int8-exact", "int4-exact", "int2-exact", "codebook")
# The oldest runtime that opens each form, from the newest on.
RUNTIMES = {
    "int2": "LiteRT 2.1.0",
    "int4": "LiteRT 1.0.0",
    "codebook-int4": "LiteRT 1.0.0",
    "int8": "2.14.0",
    "codebook-uint8": "2.14.0",
}
_KINDS = ("int2", "int4", "int8")
# Operators that run at float speed with int8 kernels: XNNPACK unpacks them once, at the start. It leaves
# those with kernels of fewer bits to slower code (checked with LiteRT 2.3).
_AT_FLOAT_SPEED = {"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"}
# What a form adds to a file beside its values: operators, tensors, their names.
_OVERHEAD = {"int": 300, "codebook": 1400}


@dataclass(frozen=True)
class KernelForm:
    """How a file holds one constant.

    Attributes:
        name: The name of the constant in the file.
        path: The path of the Keras kernel that it is, or `None` where it is none.
        form: `"float32"`, `"int8"`, `"int4"`, `"int2"`; `"codebook-int4"` or `"codebook-uint8"`,
            packed indices of this type and a table; `"tflm-3bit"`, indices of so many bits.
        levels: How many different values the Keras kernel has, or `None` where it is none.
        bytes: Bytes of its values, steps and tables.
        exact: Whether the values in the file are the Keras kernel's bit for bit; where a
            BatchNormalization was folded in, they are to rounding.
        reason: Why it is not smaller, or an empty text.
    """

    name: str
    path: str | None
    form: str
    levels: int | None
    bytes: int
    exact: bool
    reason: str = ""

    @classmethod
    def of(
        cls,
        constant: Constant,
        found: Recognized | None,
        form: str,
        size: int,
        exact: bool,
        reason: str,
    ) -> KernelForm:
        """The form of a constant that was recognized as a kernel, or was not."""
        path, levels = None, None
        if found is not None:
            path, levels = found.path, len(np.unique(found.indices))
        return cls(constant.name, path, form, levels, size, exact, reason)


class _Option(NamedTuple):
    """A form that a constant could have."""

    form: str
    bytes: int
    fast: bool
    grid: tuple[np.ndarray, np.ndarray] | None = None
    grouping: Grouping | None = None

    @property
    def added_bytes(self) -> int:
        return self.bytes + _OVERHEAD["int" if self.grouping is None else "codebook"]


def rewrite(
    content: bytes,
    books: Iterable[tuple[str, Codebook]],
    form: str,
    decode_once: bool,
    inputs: dict[str, np.ndarray],
) -> tuple[bytes, list[KernelForm]]:
    """A float32 file with its kernels in a low-bit form.

    Args:
        content: The `.tflite` file.
        books: Paths and codebooks of the kernels of the Keras model.
        form: One of `LOW_BIT_FORMS`.
        decode_once: Whether codebooks are decoded before the first run, not in each.
        inputs: What the new file is run on, by name, to see its kernels.

    Returns:
        The content of the new file, and the form of each constant of two or more axes.
    """
    books = list(books)
    model = flatbuffer.read(content)
    forms, entries, expected = [], [], {}
    for constant in flatbuffer.constants(model):
        found = recognize(constant.values, books)
        option, reason = _choose(constant, found, form, decode_once)
        if found is not None and option is not None:
            if option.grid is not None:
                codes, steps = _upright(found, *option.grid, option.form)
                quantize(model, constant, codes, steps, found.axis, option.form)
            elif option.grouping is not None:
                look_up(model, constant, found, option.grouping, decode_once)
            entries.append(_entry(constant, found, option))
            expected[constant.graph, constant.name] = found
        held, size = "float32", constant.values.nbytes
        if option is not None:
            held, size = option.form, option.bytes
        exact = found is not None and found.exact
        forms.append(KernelForm.of(constant, found, held, size, exact, reason))
    if not entries:
        return content, forms
    call_once(model)
    flatbuffer.add_metadata(model, entries)
    content = flatbuffer.to_bytes(model)
    _prove(content, expected, inputs)
    return content, forms


def _upright(
    found: Recognized, codes: np.ndarray, steps: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """The code of each weight, and steps that are positive where the codes, turned, still fit.

    LiteRT computes with negative steps too, but nothing else makes them: no converter does.
    """
    whole = codes[found.indices]
    low, high = CODE_RANGES[kind]
    if -codes.max() < low or -codes.astype("int16").min() > high:
        return whole, steps
    signs = np.where(steps < 0, -1, 1).astype("int8")
    return whole * along(signs, found.axis or 0, whole.ndim), np.abs(steps)


def _options(constant: Constant, found: Recognized, decode_once: bool) -> list[_Option]:
    """All forms that hold a constant exactly, the fewest bits first."""
    options = []
    grid, size, levels = found.grid(), constant.values.size, len(found.tables)
    if grid is not None:
        low, high = grid[0].min(), grid[0].max()
        for kind in _KINDS:
            if CODE_RANGES[kind][0] <= low and high <= CODE_RANGES[kind][1]:
                fast = kind == "int8" and constant.consumers <= _AT_FLOAT_SPEED
                stored = -(-size * bits_of_kind(kind) // 8) + grid[1].nbytes
                options.append(_Option(kind, stored, fast, grid))
    parts = found.parts
    tables = found.tables.nbytes if parts is None else parts[1].nbytes
    # Numbers of four bits are unpacked by operators that are slow in each run.
    for bits in (4, 8) if decode_once else (8,):
        if levels <= 2**bits:
            grouping = best_grouping(size, levels, (bits,))
            name = "codebook-int4" if bits == 4 else "codebook-uint8"
            stored = grouping.bytes(size, levels) + (0 if tables == 4 * levels else tables)
            options.append(_Option(name, stored, False, None, grouping))
    return options


def _choose(
    constant: Constant, found: Recognized | None, form: str, decode_once: bool
) -> tuple[_Option | None, str]:
    """The form of a constant, or None for float32; and why it is not smaller."""
    if found is None:
        return None, "no kernel with few values"
    options = _options(constant, found, decode_once)
    if form in ("smallest", "codebook"):
        options = [o for o in options if form == "smallest" or o.grouping is not None]
        best = min(options, key=lambda option: option.added_bytes)
        if best.added_bytes < constant.values.nbytes:
            return best, ""
        return None, f"{best.form} would take more bytes"
    options = [option for option in options if option.grid is not None]
    if not options:
        return None, "its values are on no evenly spaced grid"
    if form == "auto":
        fast = [option for option in options if option.fast]
        if not fast:
            return None, f"slower in {', '.join(sorted(constant.consumers))}"
        if fast[0].added_bytes >= constant.values.nbytes:
            return None, f"{fast[0].form} would take more bytes"
        return fast[0], "" if fast[0] is options[0] else f"{options[0].form} would be slower"
    wanted = form.removesuffix("-exact")
    wide = [option for option in options if _KINDS.index(option.form) >= _KINDS.index(wanted)]
    codes = wide[0].grid[0] if wide[0].grid is not None else np.zeros(1)
    reason = f"codes from {codes.min()} to {codes.max()} do not fit {wanted}"
    return wide[0], "" if wide[0].form == wanted else reason


def _entry(constant: Constant, found: Recognized, option: _Option) -> dict[str, Any]:
    """What the metadata of the file says of a kernel."""
    entry = flatbuffer.kernel_entry(constant, found.path, option.form)
    if option.grid is not None:
        codes, steps = option.grid
        entry["codes"] = sorted({int(code) for code in codes})
        entry["step"] = [float(step) for step in steps] if found.axis is None else "per channel"
    return entry


def _prove(
    content: bytes,
    expected: dict[tuple[int, str], Recognized],
    inputs: dict[str, np.ndarray],
) -> None:
    """Runs the new file, and compares each kernel with what it must be."""
    values = tensor_values(content, expected, inputs)
    for key, wanted in expected.items():
        got = values.get(key)
        same = got is not None and np.array_equal(got, wanted.values)
        if not same and (got is None or wanted.exact or not _close(got, wanted.values)):
            raise ValueError(
                f"Expected '{key[1]}' to hold the values of kernel '{wanted.path}'. Received: "
                f"{'none' if got is None else 'other ones'}. Nothing was written; please report "
                "the model."
            )


def _close(values: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(values - wanted).max() <= 2e-6 * np.abs(wanted).max())


def oldest_runtime(float_version: str, forms: Iterable[KernelForm]) -> str:
    """The oldest runtime that opens a file: what its widest step ahead needs."""
    held = {form.form for form in forms}
    if any(form.startswith("tflm") for form in held):
        return "TFLite Micro of 2025"
    return next((version for form, version in RUNTIMES.items() if form in held), float_version)
