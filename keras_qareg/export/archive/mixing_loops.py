"""The loops of `mixing`, compiled by numba where it is installed; all in whole numbers of 64 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from numba import njit
except ImportError:  # `mixing` says so when it is asked to code
    njit = None  # type: ignore[assignment]

COMPILED = njit is not None
CONTEXTS, COUNTED = 8, 1023


def _fast(function: Any) -> Any:
    return function if njit is None else njit(nogil=True, cache=True)(function)


@_fast
def code(matrix, levels, room, coded, tables):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Codes a matrix into `room`, or decodes it where there is none; the bytes used, or -1."""
    rows, free, columns = matrix.shape
    bits = 1
    while (1 << bits) < levels:
        bits += 1
    starts = _starts(rows, free, columns, levels, bits)
    chances = np.full(starts[CONTEXTS], 32768, np.int32)
    counts = np.zeros(starts[CONTEXTS], np.int16)
    weights = np.full((1 << bits, CONTEXTS), 20000, np.int64)
    weights[:, 0] = 65536
    # Sums of sizes, and how many, of each row and each column.
    spreads = np.zeros((2, 2, max(rows, columns)), np.int64)
    at, inputs = np.zeros(CONTEXTS, np.int64), np.zeros(CONTEXTS, np.int64)
    state = _begun(room, coded)
    for row in range(rows):
        for place in range(free):
            for column in range(columns):
                _find(matrix, (row, place, column), levels, bits, spreads, starts, at)
                symbol, node = int(matrix[row, place, column]), 1
                for bit in range(bits - 1, -1, -1):
                    chance = _chance(at, node, chances, counts, weights, inputs, tables)
                    yes = _decide(symbol >> bit & 1, chance, state, room, coded)
                    if yes < 0:
                        return -1
                    _learn(yes, chance, at, node, chances, counts, weights, inputs, tables)
                    node = node << 1 | yes
                symbol = node - (1 << bits)
                if symbol >= levels:
                    symbol = 0
                if room.size == 0:
                    matrix[row, place, column] = symbol
                size = abs(2 * symbol - levels + 1)
                for side, number in ((0, row), (1, column)):
                    spreads[side, 0, number] += size
                    spreads[side, 1, number] += 1
    return state[3] if room.size == 0 else _end(state, room)


@_fast
def _starts(rows, free, columns, levels, bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Where the chances of each context begin, and at last how many there are."""
    near = ((levels - 1) >> max(bits - 3, 0)) + 1
    starts = np.zeros(CONTEXTS + 1, np.int64)
    sizes = (1, rows, columns, free * 2, near * near, 12, 144, 144)
    for place in range(CONTEXTS):
        starts[place + 1] = starts[place] + (sizes[place] << bits)
    return starts


@_fast
def _find(matrix, where, levels, bits, spreads, starts, at):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The contexts of a place, by what stands left of it, above it, and at the free place before."""
    row, place, column = where
    middle = levels >> 1
    left = int(matrix[row, place, column - 1]) if column else middle
    second = int(matrix[row, place, column - 2]) if column > 1 else left
    up = int(matrix[row - 1, place, column]) if row else middle
    upper = int(matrix[row - 2, place, column]) if row > 1 else up
    before = int(matrix[row, place - 1, column]) if place else up
    around = 2 * abs(2 * before - levels + 1)
    for side in (left, second, up, upper):
        around += abs(2 * side - levels + 1)
    around = min(11, around * 6 // (3 * levels))
    one = int(spreads[0, 0, row]) * 12 // (max(int(spreads[0, 1, row]), 1) * levels)
    two = int(spreads[1, 0, column]) * 12 // (max(int(spreads[1, 1, column]), 1) * levels)
    one, two = min(11, one), min(11, two)
    drop = max(bits - 3, 0)
    at[0] = 0
    at[1] = row
    at[2] = column
    at[3] = place * 2 + (1 if around > 5 else 0)
    at[4] = (left >> drop) * (((levels - 1) >> drop) + 1) + (up >> drop)
    at[5] = around
    at[6] = one * 12 + two
    at[7] = two * 12 + around
    for context in range(CONTEXTS):
        at[context] = starts[context] + (at[context] << bits)


@_fast
def _chance(at, node, chances, counts, weights, inputs, tables):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The chance of a yes, of 4096: what contexts say more than the first one, by trust and weight."""
    squash, stretch, _, trust = tables
    base = int(stretch[chances[at[0] + node] >> 4])
    inputs[0] = base
    total = int(weights[node, 0]) * base
    for context in range(1, CONTEXTS):
        slot = at[context] + node
        said = int(stretch[chances[slot] >> 4]) - base
        inputs[context] = said * int(trust[counts[slot]]) >> 16
        total += int(weights[node, context]) * int(inputs[context])
    return int(squash[min(max(total >> 16, -2047), 2047) + 2047])


@_fast
def _learn(yes, chance, at, node, chances, counts, weights, inputs, tables):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Moves chances and weights toward what was decided."""
    rates = tables[2]
    error = ((yes << 12) - chance) * 10
    for context in range(CONTEXTS):
        weights[node, context] += (int(inputs[context]) * error + 32768) >> 16
        slot = at[context] + node
        count = int(counts[slot])
        gap = (yes << 16) - yes - int(chances[slot])
        chances[slot] += gap * int(rates[count]) >> 16
        if count < COUNTED:
            counts[slot] = count + 1


@_fast
def _begun(room, coded):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Both ends of the range, the number that is read, and how many bytes were used."""
    state = np.zeros(4, np.int64)
    state[1] = 0xFFFFFFFF
    if room.size == 0:
        for place in range(4):
            state[2] = int(state[2]) << 8 | int(coded[place])
        state[3] = 4
    return state


@_fast
def _decide(yes, chance, state, room, coded):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Writes a decision, or reads it; -1 where there is no room."""
    low, high, value, used = int(state[0]), int(state[1]), int(state[2]), int(state[3])
    decodes = room.size == 0
    middle = low + ((high - low) * chance >> 12)
    if decodes:
        yes = 1 if value <= middle else 0
    if yes:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) & 0xFF000000 == 0:
        if decodes:
            value = (value << 8 | (int(coded[used]) if used < coded.size else 0)) & 0xFFFFFFFF
        elif used < room.size:
            room[used] = high >> 24
        else:
            return -1
        used += 1
        low, high = low << 8 & 0xFFFFFFFF, (high << 8 & 0xFFFFFFFF) | 255
    state[0], state[1], state[2], state[3] = low, high, value, used
    return yes


@_fast
def _end(state, room):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Writes the shortest number between both ends; zeros behind it are left out."""
    low, high, used = int(state[0]), int(state[1]), int(state[3])
    for kept in range(1, 5):
        last = high & (0xFFFFFFFF << (32 - 8 * kept)) & 0xFFFFFFFF
        if last >= low and used + kept <= room.size:
            for place in range(kept):
                room[used + place] = last >> (24 - 8 * place) & 255
            return used + kept
    return -1
