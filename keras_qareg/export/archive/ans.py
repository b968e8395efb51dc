"""Numbers of small alphabets as one stream of bytes: asymmetric numeral systems, in whole numbers.

Arrays of symbols are put one behind the other, each under frequencies of its own, and are read in the
same order. Frequencies are whole numbers whose sum is 2^24; `constriction` codes, and is given
probabilities that it turns into just these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PRECISION = 24
_WORD = 4


class StreamError(ValueError):
    """A stream that no writer made."""


def frequencies(weights: np.ndarray) -> np.ndarray:
    """Whole numbers of at least 1 whose sum is 2^24, nearly in proportion to weights.

    With `s_i` the sum of the first `i` of `k` weights and `s_k` of all, a frequency is
    `1 + s_{i+1} (2^24 - k) // s_k - s_i (2^24 - k) // s_k`.

    Args:
        weights: Whole numbers of 0 or more, at most 256, whose sum is from 1 to 2^39.

    Returns:
        Int64 array in the shape of `weights`.

    Raises:
        StreamError: If the sum is another.

    Example:

    >>> frequencies(np.array([1, 0, 3])).tolist()
    [4194304, 1, 12582911]
    """
    sums = np.concatenate([[0], np.cumsum(weights.astype("int64"))])
    if not 0 < sums[-1] <= 1 << 39:
        raise StreamError(f"Expected weights with a sum from 1 to 2^39. Received: {sums[-1]}")
    scaled = sums * ((1 << PRECISION) - len(weights)) // sums[-1]
    return 1 + np.diff(scaled)


class Writer:
    """Collects arrays of symbols, and makes bytes of them."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def put(self, symbols: np.ndarray, weights: np.ndarray | Sequence[int]) -> None:
        """Adds symbols, whole numbers below the number of weights; of one weight, nothing."""
        weights = np.asarray(weights)
        if symbols.size and len(weights) > 1:
            self._parts.append((symbols.reshape(-1), frequencies(weights)))

    def finish(self) -> bytes:
        """The bytes of all symbols: little-endian words less the zeros at the end."""
        from constriction import stream

        coder = stream.stack.AnsCoder()
        for symbols, table in reversed(self._parts):
            coder.encode_reverse(symbols.astype("int32"), _model(table))
        words: bytes = coder.get_compressed().astype("<u4").tobytes()
        return words.rstrip(b"\0")


class Reader:
    """Gives symbols back in the order in which they were put.

    Args:
        content: What `Writer.finish` made.
    """

    def __init__(self, content: bytes):
        from constriction import stream

        padded = content + bytes(-len(content) % _WORD)
        self._coder = stream.stack.AnsCoder(np.frombuffer(padded, "<u4").astype("uint32"))

    def take(self, count: int, weights: np.ndarray | Sequence[int]) -> np.ndarray:
        """The next symbols: uint8 array of shape `(count,)`."""
        weights = np.asarray(weights)
        if not count or len(weights) < 2:
            return np.zeros(count, "uint8")
        found: np.ndarray = self._coder.decode(_model(frequencies(weights)), count)
        return found.astype("uint8")

    def close(self) -> None:
        """Raises a `StreamError` where more was written than was read."""
        if not self._coder.is_empty():
            raise StreamError("Expected the end of a stream. Received: more of it")


def _model(table: np.ndarray) -> object:
    from constriction import stream

    # Each symbol gets 1, and the rest by probability: just these numbers, without a rounding.
    return stream.model.Categorical((table - 1).astype("float64"), perfect=False)
