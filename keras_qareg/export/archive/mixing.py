"""Indices by adaptive mixing of contexts: a few percent fewer bytes, at a tenth of the speed.

Each index is a few yes-or-no decisions, from its highest bit to its lowest. Some contexts say how likely
each is, by what was seen in them before; a mixer weighs what they say, and learns which to trust. Rows
are output channels, columns input channels, and free places the rest, in which the order is row, free
place, column. All is in whole numbers, so that any machine decodes the same; numba compiles the loops
(`mixing_loops`).

The method is that of lpaq and paq8 (Mahoney, "Adaptive Weighing of Context Models for Lossless Data
Compression", 2005), whose tables for the logistic function these are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from keras_qareg.export.archive.fields import FieldError

# The logistic function at -2048, -1920, … 2048, 256 a unit, times 4096.
_KNOTS = (
    *(1, 2, 3, 6, 10, 16, 27, 45, 73, 120, 194, 310, 488, 747, 1101, 1546, 2047, 2549, 2994, 3348),
    *(3607, 3785, 3901, 3975, 4022, 4050, 4068, 4079, 4085, 4089, 4092, 4093, 4094),
)
_COUNTED = 1023
_FREE_SLOTS, _SLOTS = 1 << 20, 16


def fits(sizes: tuple[int, int, int], levels: int) -> bool:
    """Whether the contexts of a matrix take no more memory than a multiple of the matrix."""
    rows, free, columns = sizes
    size = (rows + columns + 2 * free) << (levels - 1).bit_length()
    return size <= _FREE_SLOTS + _SLOTS * rows * free * columns


def encode_mixed(matrix: np.ndarray, levels: int) -> bytes:
    """The bytes of indices.

    Args:
        matrix: Uint8 array `(rows, free, columns)`.
        levels: How many values they have, from 2.
    """
    room = np.zeros(matrix.size * 2 + 64, "uint8")
    size = _coder()(matrix.copy(), levels, room, np.zeros(0, "uint8"), _tables())
    if size < 0:
        raise FieldError("Expected no more than two bytes an index. Received: more")
    return room[:size].tobytes().rstrip(b"\0")


def decode_mixed(coded: bytes, sizes: tuple[int, int, int], levels: int) -> np.ndarray:
    """The inverse of `encode_mixed`: uint8 array of shape `sizes`."""
    if not fits(sizes, levels):
        raise FieldError(f"Expected a matrix. Received: one of shape {sizes}")
    matrix = np.zeros(sizes, "uint8")
    content = np.frombuffer(coded, "uint8")
    padded = np.concatenate([content, np.zeros(8, "uint8")])
    used = _coder()(matrix, levels, np.zeros(0, "uint8"), padded, _tables())
    if used < len(content):
        raise FieldError("Expected the end of indices. Received: more of them")
    return matrix


def _coder() -> Callable[..., int]:
    from keras_qareg.export.archive import mixing_loops

    if not mixing_loops.COMPILED:
        raise ImportError(
            "Expected numba, which effort='best' of archives needs. Received: no such module. Install "
            "it by `pip install keras-qareg[best]`"
        )
    coder: Callable[..., int] = mixing_loops.code
    return coder


def _squash(place: int) -> int:
    """The logistic function, by straight lines between knots."""
    if place > 2047:
        return 4095
    if place < -2047:
        return 1
    low, part = (place >> 7) + 16, place & 127
    return max(1, (_KNOTS[low] * (128 - part) + _KNOTS[low + 1] * part + 64) >> 7)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The logistic function from -2047 on, its inverse, rates of learning, and trust, by count."""
    squash = np.array([_squash(place) for place in range(-2047, 2048)], "int32")
    stretch, known = np.zeros(4096, "int32"), 0
    for place, value in zip(range(-2047, 2048), squash.tolist(), strict=True):
        stretch[known : value + 1] = place
        known = max(known, value + 1)
    rates = np.array([65536 * 2 // (2 * n + 3) for n in range(_COUNTED + 1)], "int32")
    trust = np.array([65536 * n // (n + 6) for n in range(_COUNTED + 1)], "int32")
    return squash, stretch, rates, trust
