"""Reads the tensors of an archive: `docs/formats.md` as a program, with NumPy and zstandard alone.

    python -m examples.read_archive model.qareg

Prints what is in the file. Of the package it takes the dictionary for manifests. Kernels of
`effort="best"` are refused. It is slow: one symbol after the other.
"""

import bisect
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import keras_qareg

FOLDER = Path(keras_qareg.__file__).parent / "export" / "archive"
# Bits of a number, and those of its mantissa.
FLOATS = {"float32": (32, 23), "float16": (16, 10), "bfloat16": (16, 7)}
# The name of a tensor after the number of its layer, its shape, dtype and mark.
Listed = tuple[str, tuple[int, ...], str, str]


class Fields:
    """Bytes, one field after the other."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def take(self, size: int) -> bytes:
        self.place += size
        return self.content[self.place - size : self.place]

    def rest(self) -> bytes:
        return self.content[self.place :]

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number, shift = number | (byte & 127) << shift, shift + 7
            if byte < 128:
                return number


class Stream:
    """Symbols under frequencies whose sum is 2^24: asymmetric numeral systems."""

    def __init__(self, content: bytes):
        self.words = np.frombuffer(content + bytes(-len(content) % 4), "<u4").tolist()
        self.state = 0
        while self.words and self.state < 1 << 32:
            self.state = self.state << 32 | self.words.pop()

    def take(self, count: int, weights: Sequence[int] | np.ndarray) -> np.ndarray:
        k, found = len(weights), np.zeros(count, "int64")
        sums = [0, *np.cumsum(weights).tolist()]
        ends = [i + sums[i] * ((1 << 24) - k) // max(sums[k], 1) for i in range(k + 1)]
        for place in range(count if k > 1 else 0):
            low = self.state & 0xFFFFFF
            symbol = bisect.bisect_right(ends, low) - 1
            size = ends[symbol + 1] - ends[symbol]
            self.state = (self.state >> 24) * size + low - ends[symbol]
            if self.state < 1 << 32 and self.words:
                self.state = self.state << 32 | self.words.pop()
            found[place] = symbol
        return found

    def differences(self, count: int, slope: int) -> np.ndarray:
        """Differences from what is expected: 0, -1, 1, -2, 2 are 0, 1, 2, 3, 4."""
        weights = [1 << 20]
        for _ in range(15):
            weights.append(1 + weights[-1] * (2 * slope + 1) // 32)
        folded = self.take(count, weights)
        large = folded == 15
        for power in (1, 256):
            folded[large] += power * self.take(int(large.sum()), [1] * 256)
        return np.where(folded % 2 == 1, -(folded + 1) // 2, folded // 2)


def bits_of(content: bytes, width: int, count: int) -> np.ndarray:
    """Numbers of so many bits each, the most significant first, one behind the other."""
    spread = np.unpackbits(np.frombuffer(content, "uint8"), count=width * count)
    powers = 1 << np.arange(width - 1, -1, -1, dtype="int64")
    return spread.reshape(count, width).astype("int64") @ powers


def read_floats(fields: Fields, count: int, dtype: str) -> Callable[[Stream], np.ndarray]:
    """The function that reads the bits of numbers from a stream, once head and tail are read."""
    width, mantissa = FLOATS[dtype]
    first = fields.take(1)[0]
    if first == 7:
        raw = np.frombuffer(fields.take(count * width // 8), f"<u{width // 8}")
        return lambda stream: raw
    lowest, levels = int.from_bytes(fields.take(2), "little"), fields.take(1)[0] + 1
    left = mantissa - (first & 7)
    each = left + (first >> 3 & 1)
    tail = bits_of(fields.take(-(-count * each // 8)), each, count)

    def take(stream: Stream) -> np.ndarray:
        roots = np.zeros(1, "int64")
        if levels > 1:
            roots = stream.differences(levels, first >> 4).cumsum() + math.isqrt(
                count // (3 * levels)
            )
        symbols = stream.take(count, roots * roots) + lowest
        found = tail >> left << (width - 1) | symbols << left | tail & (1 << left) - 1
        return found.astype(f"<u{width // 8}")

    return take


def read_kernel(section: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a kernel."""
    fields = Fields(section)
    flags, levels, tabled = fields.take(1)[0], fields.take(1)[0] + 1, fields.take(1)[0]
    if flags & 4:
        raise NotImplementedError("Expected effort='fast'. Received: 'best'")
    channels = shape[len(shape) - tabled :]
    codes = np.frombuffer(fields.take(levels if flags & 1 else 0), "i1").astype("float32")
    numbers = (flags >> 4 & 3) + 1, (flags >> 6) + 1
    masks = (0, 0) if numbers == (1, 1) else (fields.take(1)[0], fields.take(1)[0])
    slope = fields.take(1)[0] if levels > 1 and not flags & 2 else 0
    count = math.prod(channels) * (1 if flags & 1 else levels)
    floats, stream = read_floats(fields, count, "float32"), Stream(fields.rest())
    # A matrix of rows, free places and columns, in which rows and columns stand by class.
    axes = [[axis for axis in range(len(shape)) if mask >> axis & 1] for mask in masks]
    free = [axis for axis in range(len(shape)) if axis not in axes[0] + axes[1]]
    sizes = [math.prod(shape[axis] for axis in part) for part in (axes[0], free, axes[1])]
    rows, columns = stream.take(sizes[0], [1] * numbers[0]), stream.take(sizes[2], [1] * numbers[1])
    tables = np.ones((*numbers, levels), "int64")
    if levels > 1 and not flags & 2:
        each = np.outer(
            *(np.bincount(n, minlength=k) for n, k in zip((rows, columns), numbers, strict=True))
        )
        more = stream.differences(math.prod(numbers) * levels, slope).reshape(tables.shape)
        tables = read_roots(more, each * sizes[1]) ** 2
    values = floats(stream).view("<f4")
    matrix = np.zeros(sizes, "int64")
    for row, column in np.ndindex(*numbers):
        where = np.ix_(*np.nonzero(rows == row), range(sizes[1]), *np.nonzero(columns == column))
        part = matrix[where]
        matrix[where] = stream.take(part.size, tables[row, column]).reshape(part.shape)
    order = axes[0] + free + axes[1]
    indices = matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    table = (np.multiply.outer(codes, values) if flags & 1 else values).reshape(levels, -1)
    flat = indices.reshape(-1, table.shape[1])
    return table[flat, np.arange(table.shape[1])].reshape(shape)


def read_roots(differences: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Roots of frequencies by class of row and column: what is expected, and a difference."""
    roots = differences.copy()
    for row, column in np.ndindex(*sizes.shape):
        if row and column:
            corner = np.maximum(roots[row - 1, column - 1], 1)
            wanted = roots[row - 1, column] * roots[row, column - 1] // corner
        elif row or column:
            before = (row - 1, 0) if row else (0, column - 1)
            ratio = (int(sizes[row, column]) << 16) // max(int(sizes[before]), 1)
            wanted = roots[before] * math.isqrt(ratio) >> 8
        else:
            first = math.isqrt(int(sizes[0, 0]) // (3 * roots.shape[-1]))
            roots[0, 0] = first + differences[0, 0].cumsum()
            continue
        roots[row, column] += np.minimum(wanted, 65535)
    return roots


def read_others(section: bytes, tensors: list[Listed], kept: str) -> list[np.ndarray]:
    """Tensors that are together in one section."""
    fields = Fields(section)
    single = bits_of(fields.take(-(-len(tensors) // 8)), 1, len(tensors))
    counts = [math.prod(shape) for _, shape, _, _ in tensors]
    held = [1 if one else count for one, count in zip(single, counts, strict=True)]
    groups: dict[tuple[str, str], list[int]] = {}
    for place, (name, _, dtype, _) in enumerate(tensors):
        stored = kept if dtype == "float32" else dtype
        groups.setdefault((name.rpartition("/")[2], stored), []).append(place)
    read = {}
    for (name, dtype), places in groups.items():
        if count := sum(held[place] for place in places):
            read[name, dtype] = read_group(fields, count, dtype)
    stream, found = Stream(fields.rest()), [np.zeros(0, "float32")] * len(tensors)
    for key, take in read.items():
        numbers = unpacked(take(stream), key[1])
        for place in groups[key]:
            part, numbers = numbers[: held[place]], numbers[held[place] :]
            whole = np.repeat(part, counts[place]) if single[place] else part
            found[place] = whole.reshape(tensors[place][1])
    return found


def read_group(fields: Fields, count: int, dtype: str) -> Callable[[Stream], np.ndarray]:
    """The function that reads the bits of a group."""
    way = fields.take(1)[0]
    if way == 2:
        return read_floats(fields, count, dtype)
    width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    raw = fields.take(count * width) if way == 0 else inflated(fields.take(fields.varint()))
    if way == 1:  # the first byte of all numbers, then the second of all
        raw = np.frombuffer(raw, "uint8").reshape(width, count).T.tobytes()
    numbers = np.frombuffer(raw, f"<u{width}")
    return lambda stream: numbers


def unpacked(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers that bits stand for."""
    if dtype == "bfloat16":
        return (bits.astype("uint32") << 16).view("float32")
    return bits.view(np.dtype(dtype))


def inflated(frame: bytes, **options: Any) -> bytes:
    """The content of a frame without a magic number."""
    unpacker = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS, **options)
    found: bytes = unpacker.decompressobj().decompress(frame)
    return found


def listed(text: str) -> Iterator[Listed]:
    """Name after the number of the layer, shape, dtype and mark of each tensor."""
    layer, last = -1, -1
    for word in text.split():
        if word.startswith("@"):
            continue
        found = re.fullmatch(r"(\d*)/([^:*+]*)(?::([\d,]*))?(?::(\w+))?([*+]?)", word)
        if found is None:
            raise ValueError(f"Expected a tensor. Received: {word}")
        skip, name, sizes, dtype, mark = found.groups()
        layer += int(skip or 0)
        shape = (last,) if sizes is None else tuple(map(int, filter(None, sizes.split(","))))
        last = shape[-1] if shape else -1
        yield f"{layer}/{name}", shape, dtype or "float32", mark


def read(content: bytes) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """The manifest of an archive, and the names and values of its tensors."""
    if content[:12] != b"\x89KQAREG\n\x02\0\0\0":
        raise ValueError("Expected an archive of version 2. Received: another file")
    fields = Fields(content[20:])
    index = Fields(fields.take(fields.varint()))
    stored, _, count = index.varint(), index.varint(), index.varint()
    sizes = [index.varint() for _ in range(count)]
    digests = [index.take(4) for _ in range(count)]
    shared = (FOLDER / "dictionary_1.bin").read_bytes()
    kind = zstandard.DICT_TYPE_RAWCONTENT
    dictionary = zstandard.ZstdCompressionDict(shared, dict_type=kind)
    manifest = json.loads(inflated(index.take(stored), dict_data=dictionary))
    sections = [fields.take(size) for size in sizes]
    found = [hashlib.blake2b(section, digest_size=4).digest() for section in sections]
    if hashlib.blake2b(index.content, digest_size=8).digest() != content[12:20] or found != digests:
        raise ValueError("Expected an undamaged file. Received: one that was changed")
    tensors, kept = list(listed(manifest["tensors"])), manifest.get("float", "float32")
    others = iter(read_others(sections[0], [tensor for tensor in tensors if not tensor[3]], kept))
    own, values = iter(sections[1:]), []
    for tensor in tensors:
        if tensor[3] == "*":
            values.append(read_kernel(next(own), tensor[1]))
        else:
            values.append(read_others(next(own), [tensor], kept)[0] if tensor[3] else next(others))
    return manifest, [(tensor[0], value) for tensor, value in zip(tensors, values, strict=True)]


def main() -> None:
    manifest, tensors = read(Path(sys.argv[1]).read_bytes())
    print(json.dumps(manifest["config"]))
    for name, values in tensors:
        print(name, values.dtype, values.shape, *values.reshape(-1)[:4])


if __name__ == "__main__":
    main()
