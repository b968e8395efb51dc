"""Reads archives of version 1, which `docs/formats.md` describes; nothing writes them."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from keras_qareg.export.archive.container import ArchiveError, digest, parse
from keras_qareg.export.archive.manifest import ALONE, KERNEL, Manifest, Tensor, checked_tensor
from keras_qareg.export.packing import bits_of, unpacked_bits
from keras_qareg.numerics.clustering import MAX_LEVELS
from keras_qareg.numerics.codebook import Codebook

_HEADER = struct.Struct("<8sIII16s")
# Deflate never does better than this.
_DEFLATE_RATIO = 1100
_DIGEST = 16
_TABLES = ("float32", "grid")
_WIDTHS = (1, 2, 4)


class Version1:
    """An archive of version 1, its digests and sizes checked.

    Args:
        file: The file.

    Attributes:
        manifest: What is in it, as in version 2.
        size: Bytes of the file.

    Raises:
        ArchiveError: If it is damaged.
    """

    def __init__(self, file: IO[bytes]):
        file.seek(0)
        content = file.read()
        self.size = len(content)
        read, self._sections = _verified(content)
        config = parse(_inflated(self._sections[read["config"]], "model configuration"))
        self._entries = read["tensors"]
        for entry in self._entries:
            self._check(entry)
        self.assets = [self._sections[_whole(asset["section"])] for asset in read["assets"]]
        stored = {e.get("stored") for e in self._entries if e["dtype"] == "float32"}
        self.manifest = Manifest(
            config,
            tuple(map(_tensor, self._entries)),
            tuple((_whole(asset["layer"]), str(asset["name"])) for asset in read["assets"]),
            "float16" if "float16" in stored else "float32",
        )

    def tensor(self, place: int) -> np.ndarray:
        """A tensor, in its shape and dtype."""
        entry = self._entries[place]
        shape, sections = tuple(entry["shape"]), self._sections
        if entry["coding"] == "raw":
            values = np.frombuffer(sections[entry["section"]], _little(entry["stored"]))
            return values.astype(entry["dtype"]).reshape(shape)
        levels, raw = entry["levels"], sections[entry["centroids"]]
        if entry["table"] == "grid":
            codes = np.frombuffer(raw[:levels], "i1").astype("float32")
            tables = np.multiply.outer(codes, np.frombuffer(raw[levels:], "<f4"))
        else:
            tables = np.frombuffer(raw, "<f4")
        coded = sections[entry["indices"]]
        indices = _indices(entry["coding"], coded, levels, math.prod(shape)).reshape(shape)
        return Codebook(tables.reshape(levels, *entry["channels"]), indices).weights

    def decoder(self, place: int) -> Callable[[], np.ndarray]:
        """The function that makes a tensor."""
        return lambda: self.tensor(place)

    def tensor_bytes(self, place: int) -> int:
        """How many bytes of the file are for a tensor."""
        entry = self._entries[place]
        places = [entry[key] for key in ("section", "centroids", "indices") if key in entry]
        return sum(len(self._sections[place]) for place in places)

    def coding(self, place: int) -> str:
        """How a tensor is kept, in a word."""
        return str(self._entries[place]["coding"])

    def _check(self, entry: dict[str, Any]) -> None:
        checked_tensor("", tuple(entry["shape"]), entry["dtype"], "")
        checked_tensor("", (), entry.get("stored", "float32"), "")
        count, sections = math.prod(_whole(n) for n in entry["shape"]), self._sections
        if entry["coding"] == "raw":
            expected = count * np.dtype(entry["stored"]).itemsize
            found = len(sections[entry["section"]])
        else:
            levels, channels = _whole(entry["levels"]), math.prod(map(_whole, entry["channels"]))
            if not 1 <= levels <= MAX_LEVELS:
                raise ArchiveError(f"Expected 1 to {MAX_LEVELS} levels. Received: {levels}")
            if entry["table"] not in _TABLES:
                raise ArchiveError(f"Expected a table of {_TABLES}. Received: {entry['table']!r}")
            expected = levels + 4 * channels if entry["table"] == "grid" else 4 * levels * channels
            found = len(sections[entry["centroids"]])
            if entry["coding"] == "packed":
                expected += math.ceil(count * bits_of(levels) / 8)
                found += len(sections[entry["indices"]])
        if found != expected:
            raise ArchiveError(
                f"Expected {expected} bytes for a tensor of shape {entry['shape']}. Received: {found}"
            )


def _tensor(entry: dict[str, Any]) -> Tensor:
    kept = ALONE if entry["coding"] == "raw" else KERNEL
    return Tensor(str(entry["name"]), tuple(entry["shape"]), entry["dtype"], kept)


def _verified(content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The manifest and the sections; raises unless lengths and digests are right."""
    if len(content) < _HEADER.size:
        raise ArchiveError("Expected a whole archive. Received: a header cut off")
    _, _, stored_size, raw_size, checksum = _HEADER.unpack_from(content)
    start = _HEADER.size + stored_size
    if start > len(content) or raw_size > _DEFLATE_RATIO * stored_size:
        raise ArchiveError("Expected a whole archive. Received: a header that promises more")
    stored = content[_HEADER.size : start]
    if digest(stored, _DIGEST) != checksum:
        raise ArchiveError("Expected an undamaged archive. Received: a manifest that was changed")
    manifest = parse(_inflated(stored, "manifest", raw_size))
    sections = []
    for place, (size, checksum) in enumerate(manifest["sections"]):
        section = content[start : start + size]
        if size < 0 or len(section) != size:
            raise ArchiveError(f"Expected a whole archive. Received: section {place} cut off")
        if digest(section, _DIGEST).hex() != checksum:
            raise ArchiveError(
                f"Expected an undamaged archive. Received: section {place} was changed"
            )
        sections.append(section)
        start += size
    if start != len(content):
        raise ArchiveError("Expected an archive. Received: more bytes after its end")
    return manifest, sections


def _inflated(stored: bytes, what: str, size: int | None = None) -> bytes:
    """Decompresses, to no more than `size` or what is possible at all."""
    most = _DEFLATE_RATIO * len(stored) if size is None else size
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(stored, most + 1)
    except zlib.error as error:
        raise ArchiveError(f"Expected a compressed {what}. Received: {error}") from error
    if not unpacker.eof or (size is not None and len(raw) != size):
        raise ArchiveError(f"Expected a {what} of {size} bytes. Received: another size")
    return raw


def _indices(coding: str, coded: bytes, levels: int, size: int) -> np.ndarray:
    """Indices: packed bits, or counts and the words of an ANS coder; uint8 array of shape `(size,)`."""
    if coding == "packed":
        return unpacked_bits(np.frombuffer(coded, "uint8"), bits_of(levels), size)
    if coding != "ans" or not coded or coded[0] not in _WIDTHS:
        raise ArchiveError(
            f"Expected coded indices. Received: coding {coding!r}, {len(coded)} bytes"
        )
    width = coded[0]
    start = 1 + levels * width
    counts = np.frombuffer(coded[1:start].ljust(levels * width, b"\0"), f"<u{width}")
    if counts.sum(dtype="uint64") != size:
        raise ArchiveError(f"Expected frequencies of {size} indices. Received: other ones")
    words = coded[start:]
    words += bytes(-len(words) % 4)
    from constriction import stream

    coder = stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype("uint32"))
    frequencies = stream.model.Categorical(counts / size, perfect=False)
    found: np.ndarray = coder.decode(frequencies, size)
    return found.astype("uint8")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArchiveError(f"Expected a size of 0 or more. Received: {value!r}")
    return value


def _little(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    return dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype  # bfloat16 has no order
