"""The low-bit forms of a LiteRT file: which constant gets which, and the proof that they are exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.decoding import decode
from keras_qareg.export.litert.flatbuffer import Constant, Named
from keras_qareg.export.litert.recognition import Recognized, along, recognize
from keras_qareg.export.litert.rewriting import quantize
from keras_qareg.export.litert.runtime import tensor_values
from keras_qareg.export.litert.writer import to_bytes
from keras_qareg.export.packing import CODE_RANGES, bits_of_kind, words_bytes
from keras_qareg.numerics.codebook import Codebook

LOW_BIT_FORMS = ("auto", "smallest", "int8-exact", "int4-exact", "int2-exact", "codebook")
# Forms of file whose activations may be whole numbers, by examples.
CALIBRATED = ("int8", "tflm")
# The oldest runtime that opens each form, from the newest on.
RUNTIMES = {
    "int2": "LiteRT 2.1.0",
    "int4": "LiteRT 1.0.0",
    "int8": "2.14.0",
    "codebook": "2.14.0",
}
_KINDS = ("int2", "int4", "int8")
# Operators that run at float speed with int8 kernels: XNNPACK unpacks them once, at the start. It leaves
# those with kernels of fewer bits to slower code (checked with LiteRT 2.3).
_AT_FLOAT_SPEED = {"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"}
# What a form adds to a file beside its values, about: operators and tensors, of codebooks that are
# decoded alone, or with others.
OVERHEAD = {"int": 190, "alone": 700, "together": 130}
# Kernels are decoded together up to so many weights, one and all: each takes some 60 bytes meanwhile.
# They are copied apart in each run, which takes time where each weight is used once, as in dense layers.
_SMALL, _SMALL_DENSE, _TOGETHER = 1 << 17, 1 << 13, 1 << 19


def integer_overhead(steps: int) -> int:
    """What integers of so many steps add to a file: each step has a zero beside it, of 64 bits."""
    return OVERHEAD["int"] + 8 * steps


@dataclass(frozen=True)
class KernelForm:
    """How a file holds one constant.

    Attributes:
        name: The name that the converter gave the constant.
        path: The path of the Keras kernel that it is, or `None` where it is none.
        form: `"float32"`, `"int8"`, `"int4"`, `"int2"`; `"codebook"`, packed indices and a table;
            `"tflm-3bit"`, indices of so many bits.
        levels: How many different values the Keras kernel has, or `None` where it is none.
        bytes: Bytes of its values, steps and tables.
        exact: Whether the values in the file are the Keras kernel's bit for bit; where a
            BatchNormalization was folded in, they are to rounding.
        reason: Why it is not smaller, or an empty text.
        place: The places of its graph and of its tensor in the file.
    """

    name: str
    path: str | None
    form: str
    levels: int | None
    bytes: int
    exact: bool
    reason: str = ""
    place: tuple[int, int] = (0, 0)

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
        place = constant.graph, constant.tensor
        return cls(constant.name, path, form, levels, size, exact, reason, place)

    def named(self, rewritten: bool) -> Named:
        """What the metadata of the file say of it."""
        return Named(*self.place, self.path or self.name, self.form if rewritten else "")


class _Option(NamedTuple):
    """A form that a constant could have."""

    form: str
    bytes: int
    fast: bool
    grid: tuple[np.ndarray, np.ndarray] | None = None

    def added_bytes(self, together: bool) -> int:
        """Bytes in a file where codebooks are decoded together, or each alone."""
        if self.grid is not None:
            return self.bytes + integer_overhead(self.grid[1].size)
        return self.bytes + OVERHEAD["together" if together else "alone"]


class _Choice(NamedTuple):
    """A constant, what it was recognized as, its form or None for float32, and why it is not smaller."""

    constant: Constant
    found: Recognized | None
    option: _Option | None
    reason: str

    @property
    def kernel_form(self) -> KernelForm:
        held, size = "float32", self.constant.values.nbytes
        if self.option is not None:
            held, size = self.option.form, self.option.bytes
        exact = self.found is not None and self.found.exact
        return KernelForm.of(self.constant, self.found, held, size, exact, self.reason)


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
    recognized = []
    for constant in flatbuffer.constants(flatbuffer.read(content)):
        found = recognize(constant.values, books)
        options = [] if found is None else _options(constant, found, decode_once)
        recognized.append((constant, found, options))
    # Codebooks alone may be smaller than with small integers beside them, which share no operators.
    tried = ("smallest", "codebook") if form == "smallest" else (form,)
    drafts = [
        (_written(content, choices, shared, decode_once), choices)
        for kind in tried
        for choices, shared in _plans(recognized, kind, decode_once)
    ]
    written, choices = min(drafts, key=lambda draft: len(draft[0]))
    expected = {
        (choice.constant.graph, choice.constant.tensor): choice.found
        for choice in choices
        if choice.option is not None and choice.found is not None
    }
    if expected:
        _prove(written, expected, inputs)
    return written, [choice.kernel_form for choice in choices]


def _plans(
    recognized: Sequence[tuple[Constant, Recognized | None, list[_Option]]], form: str, once: bool
) -> list[tuple[list[_Choice], set[tuple[int, int]]]]:
    """What to try: forms of all constants, and the places of the codebooks that are decoded together.

    In each run that takes twice the time, so they are decoded together once only.
    """
    plans: list[tuple[list[_Choice], set[tuple[int, int]]]] = []
    for together in (True, False) if once else (False,):
        choices = [
            _Choice(constant, found, *_choose(constant, options, form, together))
            for constant, found, options in recognized
        ]
        plans.append((choices, _shared(choices) if together else set()))
    if len(plans) > 1 and not plans[0][1]:  # no codebook is small
        return plans[1:]
    return plans


def _shared(choices: Sequence[_Choice]) -> set[tuple[int, int]]:
    coded = [
        choice.constant
        for choice in choices
        if choice.option is not None and choice.option.grid is None and choice.constant.graph == 0
    ]
    found = together([(c.values.size, "FULLY_CONNECTED" in c.consumers) for c in coded])
    return {(coded[place].graph, coded[place].tensor) for place in found}


def together(kernels: Sequence[tuple[int, bool]]) -> set[int]:
    """The places of the codebooks that are decoded together, once.

    Args:
        kernels: How many weights each has, and whether a dense layer takes it.
    """
    places, weights = set(), 0
    for place, (size, dense) in sorted(enumerate(kernels), key=lambda kernel: kernel[1][0]):
        if size <= (_SMALL_DENSE if dense else _SMALL) and weights + size <= _TOGETHER:
            places.add(place)
            weights += size
    return places


def _written(
    content: bytes, choices: Sequence[_Choice], shared: set[tuple[int, int]], once: bool
) -> bytes:
    model = flatbuffer.read(content)
    alone, together = [], []
    for constant, found, option, _ in choices:
        if found is None or option is None:
            continue
        if option.grid is not None:
            codes, steps = _upright(found, *option.grid, option.form)
            quantize(model, constant, codes, steps, found.axis, option.form)
        elif (constant.graph, constant.tensor) in shared:
            together.append((constant, found))
        else:
            alone.append((constant, found))
    decode(model, alone, together, once)
    flatbuffer.set_names(
        model, [choice.kernel_form.named(choice.option is not None) for choice in choices]
    )
    return to_bytes(model)


def _upright(
    found: Recognized, codes: np.ndarray, steps: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """The code of each weight, and steps that are positive where the codes, turned, still fit.

    LiteRT computes with negative steps too, but nothing else makes them: no converter does.
    """
    whole = found.looked_up(codes)
    low, high = CODE_RANGES[kind]
    if -codes.max() < low or -codes.astype("int16").min() > high:
        return whole, steps
    signs = np.where(steps < 0, -1, 1).astype("int8")
    return whole * along(signs, found.axis or 0, whole.ndim), np.abs(steps)


def _options(constant: Constant, found: Recognized, once: bool) -> list[_Option]:
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
    stored = words_bytes(max(2, levels), size, 32 if once else 8) + found.stored.bytes
    return [*options, _Option("codebook", stored, False)]


def _choose(
    constant: Constant, options: list[_Option], form: str, together: bool
) -> tuple[_Option | None, str]:
    """The form of a constant, or None for float32; and why it is not smaller."""
    if not options:
        return None, "no kernel with few values"
    if form in ("smallest", "codebook"):
        options = [o for o in options if form == "smallest" or o.grid is None]
        best = min(options, key=lambda option: option.added_bytes(together))
        if best.added_bytes(together) < constant.values.nbytes:
            return best, ""
        return None, f"{best.form} would take more bytes"
    options = [option for option in options if option.grid is not None]
    if not options:
        return None, "its values are on no evenly spaced grid"
    if form == "auto":
        fast = [option for option in options if option.fast]
        if not fast:
            return None, f"slower in {', '.join(sorted(constant.consumers))}"
        if fast[0].added_bytes(together) >= constant.values.nbytes:
            return None, f"{fast[0].form} would take more bytes"
        return fast[0], "" if fast[0] is options[0] else f"{options[0].form} would be slower"
    wanted = form.removesuffix("-exact")
    wide = [option for option in options if _KINDS.index(option.form) >= _KINDS.index(wanted)]
    codes = wide[0].grid[0] if wide[0].grid is not None else np.zeros(1)
    reason = f"codes from {codes.min()} to {codes.max()} do not fit {wanted}"
    return wide[0], "" if wide[0].form == wanted else reason


def _prove(
    content: bytes,
    expected: dict[tuple[int, int], Recognized],
    inputs: dict[str, np.ndarray],
) -> None:
    """Runs the new file, and compares each kernel with what it must be."""
    values = tensor_values(content, expected, inputs)
    for key, wanted in expected.items():
        got = values.get(key)
        same = got is not None and np.array_equal(got, wanted.values)
        if not same and (got is None or wanted.exact or not _close(got, wanted.values)):
            raise ValueError(
                f"Expected a tensor with the values of kernel '{wanted.path}' in the file. Received: "
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
