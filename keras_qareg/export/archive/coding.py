"""Indices as bytes: entropy-coded, or packed."""

from __future__ import annotations

import numpy as np

from keras_qareg.export.packing import bits_of, packed_bits, unpacked_bits

_WIDTHS = (1, 2, 4)


def encode_indices(indices: np.ndarray, levels: int) -> tuple[str, bytes]:
    """Indices in the fewest bytes: ANS-coded under their own frequencies, or as packed bits.

    Args:
        indices: Integer array of any shape, from 0 to `levels - 1`.
        levels: Integer from 1 to 256.

    Returns:
        `("ans", bytes)` or `("packed", bytes)`. ANS-coded bytes are: the width of a count in bytes;
        the count of each level; the words of the coder (uint32) less the zeros at the end. Packed ones
        have `ceil(log2(levels))` bits an index, the most significant first.

    Example:

    >>> encode_indices(np.array([0, 1, 2, 3]), levels=4)
    ('packed', b'\\x1b')
    """
    flat, bits = indices.reshape(-1), bits_of(levels)
    if levels < 2 or not 0 < flat.size < 1 << 32:
        return "packed", packed_bits(flat, bits).tobytes()
    counts = np.bincount(flat, minlength=levels)
    width = next(width for width in _WIDTHS if counts.max() < 256**width)
    table = counts.astype(f"<u{width}").tobytes()
    from constriction import stream

    coder = stream.stack.AnsCoder()
    frequencies = stream.model.Categorical(counts / flat.size, perfect=False)
    coder.encode_reverse(flat.astype("int32"), frequencies)
    words = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    coded = bytes([width]) + table + words
    if len(coded) < -(-flat.size * bits // 8):
        return "ans", coded
    return "packed", packed_bits(flat, bits).tobytes()


def decode_indices(coding: str, coded: bytes, levels: int, size: int) -> np.ndarray:
    """The indices that `encode_indices` coded.

    Args:
        coding: `"ans"` or `"packed"`.
        coded: The bytes.
        levels: Integer from 1 to 256.
        size: How many indices.

    Returns:
        Uint8 array of shape `(size,)`.

    Raises:
        ValueError: If the coding is unknown, or the bytes are none of this coding.
    """
    if coding == "packed":
        bits = bits_of(levels)
        if len(coded) != -(-size * bits // 8):
            raise ValueError(f"Expected {size} packed indices. Received: {len(coded)} bytes")
        return unpacked_bits(np.frombuffer(coded, "uint8"), bits, size)
    if coding != "ans" or not coded or coded[0] not in _WIDTHS:
        raise ValueError(f"Expected coded indices. Received: coding {coding!r}, {len(coded)} bytes")
    width = coded[0]
    start = 1 + levels * width
    counts = np.frombuffer(coded[1:start].ljust(levels * width, b"\0"), f"<u{width}")
    if counts.sum(dtype="uint64") != size:
        raise ValueError(f"Expected frequencies of {size} indices. Received: other ones")
    words = coded[start:]
    words += bytes(-len(words) % 4)
    from constriction import stream

    coder = stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype("uint32"))
    frequencies = stream.model.Categorical(counts / size, perfect=False)
    return coder.decode(frequencies, size).astype("uint8")
