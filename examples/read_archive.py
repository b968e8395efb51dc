"""Reads the tensors of an archive: `docs/formats.md` as a program, with NumPy and zstandard alone.

    python -m examples.read_archive model.qareg

Prints what is in the file. Of the package it takes the dictionary for manifests. Kernels of
`effort="best"` are refused. It is slow: one symbol after the other.
"""

import argparse
import bisect
import json
import math
import re
from hashlib import blake2b
from importlib.resources import files
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard

DICTIONARY = files("keras_qareg") / "export" / "archive" / "dictionary_1.bin"
FLOATS = {"float32": (32, 23), "float16": (16, 10), "bfloat16": (16, 7)}  # bits, mantissa
WORD = r"(\d*)/([^:*+]*)(?::([\d,]*))?(?::(\w+))?([*+]?)"  # layers on, name, shape, dtype, mark
FRAME = zstandard.FORMAT_ZSTD1_MAGICLESS


class Stream:
    """Symbols under frequencies whose sum is 2^24: asymmetric numeral systems."""

    def __init__(self, content: bytes):
        self.words = np.frombuffer(content + bytes(-len(content) % 4), "<u4").tolist()
        self.state = 0
        while self.words and self.state < 1 << 32:
            self.state = self.state << 32 | self.words.pop()

    def take(self, count: int, weights: Any) -> np.ndarray:
        k, found = len(weights), np.zeros(count, "int64")
        sums = [0, *np.cumsum(weights).tolist()]
        ends = [i + sums[i] * ((1 << 24) - k) // max(sums[k], 1) for i in range(k + 1)]
        for place in range(count if k > 1 else 0):
            low = self.state & 0xFFFFFF
            symbol = bisect.bisect_right(ends, low) - 1
            self.state = (self.state >> 24) * (ends[symbol + 1] - ends[symbol]) + low - ends[symbol]
            if self.state < 1 << 32 and self.words:
                self.state = self.state << 32 | self.words.pop()
            found[place] = symbol
        return found

    def roots(self, sizes: np.ndarray, levels: int, slope: int) -> np.ndarray:
        """Tables by class of row and column: of each root, the difference from what is expected."""
        rates = [2 * slope + 1] * 15
        weights = [*accumulate(rates, lambda w, rate: 1 + w * rate // 32, initial=1 << 20)]
        folded = self.take(sizes.size * levels, weights)
        large = folded == 15
        for power in (1, 256):
            folded[large] += power * self.take(int(large.sum()), [1] * 256)
        roots = np.where(folded % 2, -(folded + 1) // 2, folded // 2).reshape(*sizes.shape, levels)
        for row, column in np.ndindex(*sizes.shape):
            above, left = roots[row - 1, column], roots[row, column - 1]
            if row and column:
                wanted = above * left // np.maximum(roots[row - 1, column - 1], 1)
            elif row or column:
                before = sizes[row - 1, column] if row else sizes[row, column - 1]
                ratio = math.isqrt((int(sizes[row, column]) << 16) // max(int(before), 1))
                wanted = (above if row else left) * ratio >> 8
            else:
                roots[0, 0] = roots[0, 0].cumsum()
                wanted = math.isqrt(int(sizes[0, 0]) // (3 * levels))
            roots[row, column] += np.minimum(wanted, 65535)
        return roots


def varint(file: BinaryIO) -> int:
    byte = file.read(1)[0]
    return byte if byte < 128 else byte - 128 + 128 * varint(file)


def read_numbers(file: BinaryIO, count: int, dtype: str, way: int = 2) -> Any:
    """The function that reads the bits of numbers from a stream, once all before it is read."""
    width, mantissa = FLOATS.get(dtype) or (8 * np.dtype(dtype).itemsize, 0)
    first, kind = file.read(1)[0] if way == 2 else 7, f"<u{width // 8}"
    if first == 7:
        raw = file.read(varint(file) if way == 1 else count * width // 8)
        if way == 1:  # the first byte of all numbers, then the second of all
            raw = zstandard.ZstdDecompressor(format=FRAME).decompressobj().decompress(raw)
            raw = np.frombuffer(raw, "uint8").reshape(-1, count).T.tobytes()
        return lambda stream: np.frombuffer(raw, kind)
    lowest, levels = int.from_bytes(file.read(2), "little"), file.read(1)[0] + 1
    left, each = mantissa - (first & 7), mantissa - (first & 7) + (first >> 3 & 1)
    packed = np.frombuffer(file.read(-(-count * each // 8)), "uint8")
    places = 1 << np.arange(each, dtype="int64")[::-1]
    tail = np.unpackbits(packed, count=count * each).reshape(count, each) @ places

    def take(stream: Stream) -> np.ndarray:
        sizes = np.full((1, 1), count)
        roots = stream.roots(sizes, levels, first >> 4)[0, 0] if levels > 1 else np.ones(1, int)
        symbols = stream.take(count, roots * roots) + lowest
        return (tail >> left << (width - 1) | symbols << left | tail & (1 << left) - 1).astype(kind)

    return take


def read_kernel(section: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a kernel."""
    file = BytesIO(section)
    flags, levels, tabled = file.read(3)
    levels += 1
    if flags & 4:
        raise NotImplementedError("Expected effort='fast'. Received: 'best'")
    channels = math.prod(shape[len(shape) - tabled :])
    # Channels that have one step, or one table of floats; and channels that have the same codes.
    group, alike = 1, max(1, channels)
    if flags & 8:
        group = varint(file)
        alike = varint(file) if flags & 1 else alike
    codes = np.ones((levels, 1), "float32")
    if flags & 1:
        raw = file.read(levels * -(-channels // alike))
        codes = np.frombuffer(raw, "i1").astype("float32").reshape(levels, -1)
        codes = np.repeat(codes, alike, axis=1)[:, :channels]
    numbers = (flags >> 4 & 3) + 1, (flags >> 6) + 1
    masks = file.read(0 if numbers == (1, 1) else 2) or b"\0\0"
    tables, coded = np.ones((*numbers, levels), "int64"), levels > 1 and not flags & 2
    slope = file.read(1)[0] if coded else 0
    count = -(-channels // group) * (1 if flags & 1 else levels)
    floats, stream = read_numbers(file, count, "float32"), Stream(file.read())
    # A matrix of rows, free places and columns, in which rows and columns stand by class.
    rows, columns = ([axis for axis in range(len(shape)) if mask >> axis & 1] for mask in masks)
    free = [axis for axis in range(len(shape)) if axis not in rows + columns]
    sizes = [math.prod(shape[axis] for axis in part) for part in (rows, free, columns)]
    classes = [stream.take(sizes[i], [1] * n) for i, n in zip((0, 2), numbers, strict=True)]
    if coded:
        each = [np.bincount(c, minlength=n) for c, n in zip(classes, numbers, strict=True)]
        tables = stream.roots(np.outer(*each) * sizes[1], levels, slope) ** 2
    values, matrix = floats(stream).view("<f4"), np.zeros(sizes, "int64")
    for row, column in np.ndindex(*numbers):
        where = np.ix_(classes[0] == row, np.ones(sizes[1], bool), classes[1] == column)
        part = matrix[where]
        matrix[where] = stream.take(part.size, tables[row, column]).reshape(part.shape)
    order = rows + free + columns
    indices = matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    held = values.reshape(1 if flags & 1 else levels, -1)
    table = codes * np.repeat(held, group, axis=1)[:, :channels]
    flat = indices.reshape(-1, table.shape[1])
    return table[flat, np.arange(table.shape[1])].reshape(shape)


def read_others(section: bytes, tensors: list[Any], kept: str) -> list[np.ndarray]:
    """Tensors that are together in one section."""
    file, groups, read = BytesIO(section), dict[tuple[str, str], list[int]](), {}
    single = np.unpackbits(np.frombuffer(file.read(-(-len(tensors) // 8)), "uint8"))
    held = [1 if one else math.prod(t[1]) for one, t in zip(single, tensors, strict=False)]
    for place, (name, _, dtype, _) in enumerate(tensors):
        key = name.rpartition("/")[2], kept if dtype == "float32" else dtype
        groups.setdefault(key, []).append(place)
    for key, places in groups.items():
        if count := sum(held[place] for place in places):
            read[key] = read_numbers(file, count, key[1], way=file.read(1)[0])
    stream, found = Stream(file.read()), [np.zeros(shape) for _, shape, _, _ in tensors]
    for key, take in read.items():
        bits, numpys = take(stream), key[1] != "bfloat16"
        numbers = bits.view(key[1]) if numpys else (bits.astype("uint32") << 16).view("float32")
        for place in groups[key]:
            part, numbers = numbers[: held[place]], numbers[held[place] :]
            found[place] = np.resize(part, tensors[place][1])
    return found


def read(content: bytes) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """The manifest of an archive, and the names and values of its tensors."""
    file = BytesIO(content[20:])
    index = file.read(varint(file))
    head, start = BytesIO(index), b"\x89KQAREG\n\x02\0\0\0" + blake2b(index, digest_size=8).digest()
    stored, _, count = varint(head), varint(head), varint(head)
    sections = [file.read(size) for size in [varint(head) for _ in range(count)]]
    digests = b"".join(blake2b(section, digest_size=4).digest() for section in sections)
    if content[:20] != start or head.read(4 * count) != digests:
        raise ValueError("Expected an archive of version 2. Received: another, or a damaged file")
    shared = zstandard.ZstdCompressionDict(DICTIONARY.read_bytes(), zstandard.DICT_TYPE_RAWCONTENT)
    unpacker = zstandard.ZstdDecompressor(shared, format=FRAME).decompressobj()
    manifest = json.loads(unpacker.decompress(head.read(stored)))
    tensors, layer, last = [], -1, -1
    for word in manifest["tensors"].split():
        if word[0] != "@":  # what stands before the names of layers that are inside of others
            skip, name, sizes, dtype, mark = re.fullmatch(WORD, word).groups()
            layer += int(skip or 0)
            shape = (last,) if sizes is None else tuple(map(int, filter(None, sizes.split(","))))
            last = shape[-1] if shape else -1
            tensors.append((f"{layer}/{name}", shape, dtype or "float32", mark))
    kept, own = manifest.get("float", "float32"), iter(sections[1:])
    others = iter(read_others(sections[0], [tensor for tensor in tensors if not tensor[3]], kept))
    ways = {
        "*": lambda tensor: read_kernel(next(own), tensor[1]),
        "+": lambda tensor: read_others(next(own), [tensor], kept)[0],
        "": lambda tensor: next(others),
    }
    return manifest, [(tensor[0], ways[tensor[3]](tensor)) for tensor in tensors]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="a .qareg archive")
    manifest, tensors = read(parser.parse_args().file.read_bytes())
    print(json.dumps(manifest["config"]))
    for name, values in tensors:
        print(name, values.dtype, values.shape, *values.reshape(-1)[:4])


if __name__ == "__main__":
    main()
