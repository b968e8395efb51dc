"""Floating point numbers in fewer bytes: their first bits under frequencies, the others as they are.

The symbol of a number is its bits without the sign and without the last `mantissa - more`, less the
smallest of these; `more`, 0 to 4, is what takes the fewest bytes. The sign, where some are negative,
and the last bits follow on end: the tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_qareg.export.archive.ans import Reader, Writer
from keras_qareg.export.archive.fields import Cursor, FieldError
from keras_qareg.export.archive.frequencies import (
    best_slope,
    folded_bits,
    put_folded,
    roots,
    table_differences,
    tables_of,
    take_folded,
)

# Bits of a number, and those of its mantissa.
FORMS = {"float32": (32, 23), "float16": (16, 10), "bfloat16": (16, 7)}
_MORE, _PLAIN = 4, 7
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Floats:
    """Numbers as they are written.

    Attributes:
        head: `more`, 8 if there are signs, 16 times the slope of the table; the smallest symbol in two
            bytes; one less than how many there are. Of numbers as they are, one byte, 7.
        tail: Signs and last bits.
        symbols: The symbols.
        table: Their folded frequencies.
        size: All bytes, about.
    """

    head: bytes
    tail: bytes
    symbols: np.ndarray
    table: np.ndarray
    size: float

    def put(self, writer: Writer) -> None:
        """Adds table and symbols to the stream."""
        if len(self.table) > 1:
            put_folded(writer, self.table, self.head[0] >> 4)
            writer.put(self.symbols, _weights(self.table, self.symbols.size))


def plan_floats(numbers: np.ndarray, dtype: str) -> Floats:
    """The way to write numbers that takes the fewest bytes.

    Args:
        numbers: Array of a dtype of `FORMS`.
        dtype: Its name.
    """
    width, mantissa = FORMS[dtype]
    bits = numbers.reshape(-1).view(f"u{width // 8}").astype("uint32")
    best, least = None, 8.0 + width * bits.size
    signs = int((bits >> (width - 1)).any())
    for more in range(_MORE + 1) if bits.size else ():
        symbols = (bits & ((1 << width - 1) - 1)) >> (mantissa - more)
        lowest, levels = int(symbols.min()), int(symbols.max() - symbols.min()) + 1
        if levels > 256:
            break
        counts = np.bincount(symbols - lowest, minlength=levels)
        table, data = _table(counts) if levels > 1 else (np.zeros(1, "int64"), 0.0)
        slope = best_slope(table)
        cost = data + folded_bits(table, slope) + bits.size * (mantissa - more + signs) + 32
        if cost < least:
            head = [slope << 4 | signs << 3 | more, *lowest.to_bytes(2, "little"), levels - 1]
            best, least = (bytes(head), (symbols - lowest).astype("uint8"), table), cost
    if best is None:
        none = np.zeros(0, "int64")
        raw = bits.astype(f"<u{width // 8}").tobytes()
        return Floats(bytes([_PLAIN]), raw, none, none, least / 8)
    head_, symbols, table = best
    tail = _tail(bits, mantissa - (head_[0] & 7), signs, width)
    return Floats(head_, tail, symbols, table, least / 8)


def read_floats(cursor: Cursor, count: int, dtype: str) -> PlannedFloats:
    """Reads head and tail; `take` then reads the numbers.

    Args:
        cursor: At the head.
        count: How many numbers.
        dtype: A name of `FORMS`.
    """
    width, mantissa = FORMS[dtype]
    first = cursor.byte()
    if first == _PLAIN:
        return PlannedFloats(first, 0, 1, cursor.take(count * width // 8), count, dtype)
    if first & 7 > _MORE:
        raise FieldError(f"Expected up to {_MORE} bits of a mantissa. Received: {first & 7}")
    lowest, levels = int.from_bytes(cursor.take(2), "little"), cursor.byte() + 1
    bits = count * (mantissa - (first & 7) + (first >> 3 & 1))
    return PlannedFloats(first, lowest, levels, cursor.take(-(-bits // 8)), count, dtype)


@dataclass(frozen=True)
class PlannedFloats:
    """Numbers of which head and tail are read."""

    first: int
    lowest: int
    levels: int
    tail: bytes
    count: int
    dtype: str

    def take(self, reader: Reader) -> np.ndarray:
        """The numbers, as unsigned integers of their bits: array of shape `(count,)`."""
        width, mantissa = FORMS[self.dtype]
        if self.first == _PLAIN:
            return np.frombuffer(self.tail, f"<u{width // 8}").astype(f"u{width // 8}")
        symbols = np.zeros(self.count, "uint32")
        if self.levels > 1:
            table = take_folded(reader, self.levels, self.first >> 4)
            symbols += reader.take(self.count, _weights(table, self.count))
        left, signs = mantissa - (self.first & 7), self.first >> 3 & 1
        values = _values(self.tail, left + signs, self.count)
        found = (symbols + self.lowest << left) + (values & ((1 << left) - 1))
        return (found | values >> left << (width - 1)).astype(f"u{width // 8}")


def _table(counts: np.ndarray) -> tuple[np.ndarray, float]:
    """The folded frequencies of symbols, and how many bits the symbols take."""
    found = roots(counts)
    table = table_differences(found[None, None], np.full((1, 1), counts.sum())).reshape(-1)
    weights = np.square(found)
    return table, float((counts * -np.log2(np.maximum(weights, 1) / weights.sum())).sum())


def _weights(table: np.ndarray, count: int) -> np.ndarray:
    found: np.ndarray = np.square(tables_of(table[None, None], np.full((1, 1), count))[0, 0])
    return found


def _tail(bits: np.ndarray, left: int, signs: int, width: int) -> bytes:
    """The last bits of each number, with the sign before them: the most significant first."""
    values = bits & ((1 << left) - 1) | (bits >> (width - 1) << left if signs else 0)
    parts = []
    for start in range(0, len(values), _CHUNK):  # a multiple of 8 numbers fills its bytes
        part = values[start : start + _CHUNK, None].astype(">u4").view("uint8")
        parts.append(np.packbits(np.unpackbits(part, axis=1)[:, 32 - left - signs :]).tobytes())
    return b"".join(parts)


def _values(tail: bytes, bits: int, count: int) -> np.ndarray:
    """The inverse of `_tail`."""
    data, found = np.frombuffer(tail, "uint8"), np.empty(count, "uint32")
    for start in range(0, count, _CHUNK):
        number = min(_CHUNK, count - start)
        spread = np.unpackbits(data[start * bits // 8 :], count=number * bits).reshape(number, bits)
        padded = np.pad(spread, ((0, 0), (32 - bits, 0)))
        found[start : start + number] = np.packbits(padded, axis=1).view(">u4")[:, 0]
    return found
