"""Small integers as bytes: one, two or four a byte, and groups of indices as one number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The integers of each kind.
CODE_RANGES = {"int2": (-2, 1), "int4": (-8, 7), "int8": (-128, 127)}
_LARGEST_GROUP = 8
# Indices that are spread to bits at a time; a multiple of 8, so that bytes fill up.
_CHUNK = 1 << 16


def bits_of_kind(kind: str) -> int:
    """Bits of a code: 8 of `"int8"`."""
    return int(kind.removeprefix("int"))


def packed(codes: np.ndarray, kind: str) -> np.ndarray:
    """Codes as bytes: one, two or four a byte, the first in the lowest bits.

    Args:
        codes: Integer array of any shape.
        kind: `"int8"`, `"int4"` or `"int2"`.

    Returns:
        Uint8 array.

    Raises:
        ValueError: If a code is out of the range of the kind.

    Example:

    >>> packed(np.array([1, -2, 0]), "int4").tolist()
    [225, 0]
    """
    low, high = CODE_RANGES[kind]
    if codes.min() < low or codes.max() > high:
        raise ValueError(
            f"Expected codes from {low} to {high}. Received: {codes.min()} to {codes.max()}"
        )
    bits = bits_of_kind(kind)
    flat = codes.reshape(-1).astype("int8").view("uint8") & (2**bits - 1)
    each = 8 // bits
    flat = np.pad(flat, (0, -flat.size % each)).reshape(-1, each)
    return (flat << (bits * np.arange(each, dtype="uint8"))).sum(axis=1).astype("uint8")


def unpacked(data: np.ndarray, kind: str, size: int) -> np.ndarray:
    """The inverse of `packed`: int8 array of shape `(size,)`."""
    bits = bits_of_kind(kind)
    each = 8 // bits
    shifts = bits * np.arange(each, dtype="uint8")
    flat = ((data[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:size].astype("int16")
    return np.where(flat >= 2 ** (bits - 1), flat - 2**bits, flat).astype("int8")


def bits_of(levels: int) -> int:
    """Bits of an index below `levels`."""
    return max(0, levels - 1).bit_length()


def packed_bits(indices: np.ndarray, bits: int) -> np.ndarray:
    """Indices as bytes: so many bits each, the most significant first, one behind the other.

    Example:

    >>> packed_bits(np.array([1, 2, 3]), bits=2).tolist()
    [108]
    """
    flat = indices.reshape(-1).astype("uint8")
    parts = [
        np.packbits(np.unpackbits(flat[i : i + _CHUNK, None], axis=1)[:, 8 - bits :])
        for i in range(0, flat.size, _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, "uint8")


def unpacked_bits(data: np.ndarray, bits: int, size: int) -> np.ndarray:
    """The inverse of `packed_bits`: uint8 array of shape `(size,)`."""
    found = np.empty(size, "uint8")
    for i in range(0, size, _CHUNK):
        count = min(_CHUNK, size - i)
        binary = np.unpackbits(data[i * bits // 8 :], count=count * bits).reshape(count, bits)
        found[i : i + count] = np.packbits(np.pad(binary, ((0, 0), (8 - bits, 0))), axis=1)[:, 0]
    return found


class Grouping(NamedTuple):
    """How many indices share one number, and of how many bits it is.

    A number below `levels**group` stands for `group` indices, which are a row of a table. So indices of
    two levels take one bit each, of three levels 1.6, of six 2.7, where whole bits would take more.
    """

    bits: int
    group: int

    def bytes(self, size: int, levels: int) -> int:
        """Bytes of so many indices, with the table of their groups as float32 or int32."""
        numbers = -(-size // self.group)
        return -(-numbers * self.bits // 8) + 4 * self.group * levels**self.group

    def numbers(self, indices: np.ndarray, levels: int) -> np.ndarray:
        """Indices of any shape as uint8 array `(numbers,)`; the last group is filled with zeros."""
        flat = indices.reshape(-1).astype("int64")
        rows = np.pad(flat, (0, -flat.size % self.group)).reshape(-1, self.group)
        return (rows @ self._weights(levels)).astype("uint8")

    def rows(self, levels: int) -> np.ndarray:
        """The indices that each number stands for: array `(levels**group, group)`."""
        return np.arange(levels**self.group)[:, None] // self._weights(levels) % levels

    def _weights(self, levels: int) -> np.ndarray:
        return levels ** np.arange(self.group)[::-1]


def best_grouping(size: int, levels: int, bits: tuple[int, ...] = (4, 8)) -> Grouping:
    """The grouping of the fewest bytes.

    Args:
        size: How many indices there are.
        levels: They are below it.
        bits: The widths to choose from.

    Returns:
        A `Grouping`.

    Example:

    >>> best_grouping(100_000, levels=2), best_grouping(100_000, levels=16)
    (Grouping(bits=4, group=4), Grouping(bits=4, group=1))
    """
    possible = [
        Grouping(width, group)
        for width in bits
        for group in range(1, _LARGEST_GROUP + 1)
        if levels**group <= 2**width
    ]
    return min(possible, key=lambda grouping: grouping.bytes(size, levels))
