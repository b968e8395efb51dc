"""Small integers as bytes: one, two or four a byte, bits on end, and indices as digits of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# The integers of each kind.
CODE_RANGES = {"int2": (-2, 1), "int4": (-8, 7), "int8": (-128, 127)}
# The bytes of the operators that put two digits together, about.
_SPLIT = 500
# The bytes of a second chain of shared operators, about: kernels of few levels join those of more where
# that takes fewer.
CHAIN_BYTES = 1200
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


def indices_a_word(levels: int, bits: int = 32) -> int:
    """How many indices below `levels`, 2 or more, a word of 32 or 8 bits holds: digits of one number.

    So an index of 3 levels takes 1.6 bits, of 6 levels 2.7, of 16 levels 4, where whole bits would take
    more. Each power of the base fits the integers of a runtime.

    Example:

    >>> [indices_a_word(levels) for levels in (2, 3, 4, 16, 64, 256)]
    [31, 20, 16, 8, 5, 4]
    """
    digits = 1
    while levels**digits < 2**31 and levels ** (digits + 1) <= 2**bits:
        digits += 1
    return digits


def lower_base(levels: int, size: int) -> int:
    """What to split indices by, `index // base` and `index % base`, so that words hold most; 1: nothing.

    Words of 32 bits hold 5 indices below 64, which leaves two bits; apart, 16 digits below 4 and 8 below
    16 fill them.

    Example:

    >>> lower_base(64, size=100_000), lower_base(32, size=100_000), lower_base(16, size=100_000)
    (4, 16, 1)
    """
    bases = [base for base in (1, 4, 16) if base < levels]
    return min(bases, key=lambda base: _words_bytes(levels, size, base))


def words_bytes(levels: int, size: int, bits: int = 32) -> int:
    """Bytes of so many indices in words, split where that takes fewer, which bytes are not."""
    if bits == 8:
        return -(-size // indices_a_word(levels, bits))
    return _words_bytes(levels, size, lower_base(levels, size))


def _words_bytes(levels: int, size: int, base: int) -> int:
    parts = [levels] if base == 1 else [base, max(2, -(-levels // base))]
    return sum(4 * -(-size // indices_a_word(part)) for part in parts) + _SPLIT * (len(parts) - 1)


def chains(kernels: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """The places of kernels that are decoded together, by the base of their words.

    Args:
        kernels: The levels of each kernel, and how many weights it has.

    Example:

    >>> chains([(4, 100), (3, 50_000), (4, 50_000)])
    {3: [1], 4: [0, 2]}
    """
    by_levels: dict[int, list[int]] = {}
    for place, (levels, _) in enumerate(kernels):
        by_levels.setdefault(max(2, levels), []).append(place)
    found: dict[int, list[int]] = {}
    waiting: list[int] = []
    bases = sorted(by_levels)
    for levels, following in zip(bases, [*bases[1:], None], strict=False):
        waiting = waiting + by_levels[levels]
        size = sum(kernels[place][1] for place in waiting)
        own, wider = (words_bytes(base, size) for base in (levels, following or levels))
        if following is None or wider - own > CHAIN_BYTES:
            found[levels], waiting = waiting, []
    return found


def packed_words(indices: np.ndarray, levels: int, bits: int = 32) -> np.ndarray:
    """Indices of any shape as int32 or uint8 array `(words,)`; the last word is filled with zeros.

    The first index is the lowest digit. A number from 2**31 on is written less by the number after the
    largest, which changes none of its digits as `//` and `%` give them.
    """
    digits = indices_a_word(levels, bits)
    flat = np.pad(indices.reshape(-1), (0, -indices.size % digits)).reshape(-1, digits)
    numbers = flat.astype("int64") @ levels ** np.arange(digits, dtype="int64")
    if bits == 8:
        return numbers.astype("uint8")
    return np.where(numbers < 2**31, numbers, numbers - levels**digits).astype("int32")


def unpacked_words(words: np.ndarray, levels: int) -> np.ndarray:
    """The indices that each word stands for: uint8 array `(words, indices a word)`."""
    powers = levels ** np.arange(indices_a_word(levels, 8 * words.itemsize), dtype="int64")
    return (words.astype("int64")[:, None] // powers % levels).astype("uint8")
