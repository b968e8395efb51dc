"""Indices by adaptive mixing of contexts: a few percent fewer bytes, at a tenth of the speed.

Each index is a few yes-or-no decisions, from its highest bit to its lowest. Some contexts say how likely
each is, by what was seen in them before; a mixer weighs what they say, and learns which to trust. Rows
are output channels, columns input channels, and free places the rest, in which the order is row, free
place, column. All is in whole numbers, so that any machine decodes the same; numba compiles it.

The method is that of lpaq and paq8 (Mahoney, "Adaptive Weighing of Context Models for Lossless Data
Compression", 2005), whose tables for the logistic function these are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

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
    size = _compiled()(matrix.copy(), levels, room, np.zeros(0, "uint8"), *_tables())
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
    used = _compiled()(matrix, levels, np.zeros(0, "uint8"), padded, *_tables())
    if used < len(content):
        raise FieldError("Expected the end of indices. Received: more of them")
    return matrix


@functools.cache
def _compiled() -> Callable[..., Any]:
    try:
        import numba
    except ImportError as error:
        raise ImportError(
            "Expected numba, which effort='best' of archives needs. Received: no such module. Install "
            "it by `pip install keras-qareg[best]`"
        ) from error
    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(_code)
    return compiled


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


def _code(matrix, levels, room, coded, squash, stretch, rates, trust):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Codes a matrix into `room`, or decodes it where there is none; the bytes used, or -1."""
    rows, free, columns = matrix.shape
    decodes = room.size == 0
    bits = 1
    while (1 << bits) < levels:
        bits += 1
    nodes = 1 << bits
    drop = max(bits - 3, 0)
    near = (levels - 1) >> drop
    starts = np.zeros(9, np.int64)
    sizes = (1, rows, columns, free * 2, (near + 1) * (near + 1), 12, 144, 144)
    for place in range(8):
        starts[place + 1] = starts[place] + sizes[place] * nodes
    chances = np.full(starts[8], 32768, np.int32)
    counts = np.zeros(starts[8], np.int16)
    weights = np.zeros((nodes, 8), np.int64)
    for node in range(nodes):
        weights[node, 0] = 65536
        for place in range(1, 8):
            weights[node, place] = 20000
    row_spread, column_spread = np.full(rows, 0, np.int64), np.full(columns, 0, np.int64)
    row_seen, column_seen = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    at, inputs = np.zeros(8, np.int64), np.zeros(8, np.int64)
    low, high, value, used = 0, 0xFFFFFFFF, 0, 0
    if decodes:
        for place in range(4):
            value = value << 8 | int(coded[place])
        used = 4
    for row in range(rows):
        for place in range(free):
            for column in range(columns):
                left = matrix[row, place, column - 1] if column else levels >> 1
                left2 = matrix[row, place, column - 2] if column > 1 else left
                up = matrix[row - 1, place, column] if row else levels >> 1
                up2 = matrix[row - 2, place, column] if row > 1 else up
                before = matrix[row, place - 1, column] if place else up
                sides = (left, left2, up, up2, before, before)
                around = 0
                for side in sides:
                    around += abs(2 * int(side) - levels + 1)
                around = min(11, around * 6 // (3 * levels))
                one = int(row_spread[row]) * 12 // (max(int(row_seen[row]), 1) * levels)
                two = int(column_spread[column]) * 12 // (max(int(column_seen[column]), 1) * levels)
                one, two = min(11, one), min(11, two)
                symbol = int(matrix[row, place, column])
                at[0] = 0
                at[1] = row
                at[2] = column
                at[3] = place * 2 + (1 if around > 5 else 0)
                at[4] = (int(left) >> drop) * (near + 1) + (int(up) >> drop)
                at[5] = around
                at[6] = one * 12 + two
                at[7] = two * 12 + around
                for context in range(8):
                    at[context] = starts[context] + at[context] * nodes
                node = 1
                for bit in range(bits - 1, -1, -1):
                    base = int(stretch[chances[at[0] + node] >> 4])
                    inputs[0] = base
                    total = weights[node, 0] * base
                    for context in range(1, 8):
                        slot = at[context] + node
                        said = int(stretch[chances[slot] >> 4]) - base
                        inputs[context] = said * int(trust[counts[slot]]) >> 16
                        total += weights[node, context] * inputs[context]
                    total >>= 16
                    chance = int(squash[min(max(total, -2047), 2047) + 2047])
                    middle = low + ((high - low) * chance >> 12)
                    yes = symbol >> bit & 1
                    if decodes:
                        yes = 1 if value <= middle else 0
                    if yes:
                        high = middle
                    else:
                        low = middle + 1
                    while (low ^ high) & 0xFF000000 == 0:
                        if decodes:
                            value = (
                                value << 8 | (int(coded[used]) if used < coded.size else 0)
                            ) & 0xFFFFFFFF
                        elif used < room.size:
                            room[used] = high >> 24
                        else:
                            return -1
                        used += 1
                        low, high = low << 8 & 0xFFFFFFFF, (high << 8 & 0xFFFFFFFF) | 255
                    error = ((yes << 12) - chance) * 10
                    for context in range(8):
                        weights[node, context] += (inputs[context] * error + 32768) >> 16
                        slot = at[context] + node
                        count = int(counts[slot])
                        gap = (yes << 16) - yes - int(chances[slot])
                        chances[slot] += gap * int(rates[count]) >> 16
                        if count < 1023:
                            counts[slot] = count + 1
                    node = node << 1 | yes
                symbol = node - nodes
                if symbol >= levels:
                    symbol = 0
                if decodes:
                    matrix[row, place, column] = symbol
                size = abs(2 * symbol - levels + 1)
                row_spread[row] += size
                row_seen[row] += 1
                column_spread[column] += size
                column_seen[column] += 1
    if decodes:
        return used
    # The shortest number between the two ends; zeros behind it need not be written.
    for kept in range(1, 5):
        mask = (0xFFFFFFFF << (32 - 8 * kept)) & 0xFFFFFFFF
        last = high & mask
        if last >= low:
            for place in range(kept):
                if used >= room.size:
                    return -1
                room[used] = last >> (24 - 8 * place) & 255
                used += 1
            return used
    return -1
