"""Reading archives of any version, without making their models."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import keras
import numpy as np

from keras_qareg.export.archive.container import (
    ArchiveError,
    Sections,
    Source,
    naming,
    opened,
    version_of,
)
from keras_qareg.export.archive.fields import FieldError
from keras_qareg.export.archive.kernels import coding_of, decode_kernel
from keras_qareg.export.archive.manifest import KERNEL, TOGETHER, Manifest
from keras_qareg.export.archive.tensors import decode_tensors, numpy_dtype
from keras_qareg.export.archive.version_1 import Version1
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.summaries import table

# What a file may unfold to: a kernel of one value takes no bytes at all, so a ratio alone is not enough.
_FREE_BYTES, _BYTES_PER_BYTE = 64 << 20, 4096
# Kernels that are coded at a time.
WORKERS = min(8, os.cpu_count() or 1)


class Version2:
    """An archive of version 2: its tensors are read when they are asked for.

    Args:
        file: The file.

    Attributes:
        manifest: What is in it.
        size: Bytes of the file.

    Raises:
        ArchiveError: If it is damaged.
    """

    def __init__(self, file: IO[bytes]):
        self._sections = Sections(file)
        self.size = self._sections.size
        self.manifest = Manifest.from_json(self._sections.manifest)
        tensors = self.manifest.tensors
        own = [place for place, tensor in enumerate(tensors) if tensor.kept != TOGETHER]
        self._section_of = {place: number for number, place in enumerate(own, start=1)}
        self._others = [place for place, tensor in enumerate(tensors) if tensor.kept == TOGETHER]
        if len(self._sections) != 1 + len(own) + len(self.manifest.assets):
            raise FieldError(
                f"Expected a section for each. Received: {len(self._sections)} of them"
            )

    def decoder(self, place: int) -> Callable[[], np.ndarray]:
        """Reads what is in the file of a tensor; the function that makes the tensor of it."""
        tensor = self.manifest.tensors[place]
        if tensor.kept == TOGETHER:
            found = self._together()[self._others.index(place)]
            return lambda: found
        section = self._sections[self._section_of[place]]
        if tensor.kept == KERNEL:
            return lambda: decode_kernel(section, tensor.shape).weights
        return lambda: decode_tensors(section, [tensor], self.manifest.float_dtype)[0]

    def tensor_bytes(self, place: int) -> int | None:
        """How many bytes of the file are for a tensor; `None` where it shares them with others."""
        number = self._section_of.get(place)
        return None if number is None else self._sections.sizes[number]

    def coding(self, place: int) -> str:
        """How a tensor is kept, in a word."""
        kept = self.manifest.tensors[place].kept
        if kept != KERNEL:
            return "raw"
        return coding_of(self._sections[self._section_of[place]])

    @property
    def assets(self) -> list[bytes]:
        """What layers keep beside their weights."""
        return [self._sections[n] for n in range(1 + len(self._section_of), len(self._sections))]

    @property
    def others_bytes(self) -> int:
        """Bytes of the tensors that are kept together."""
        return self._sections.sizes[0]

    def _together(self) -> list[np.ndarray]:
        if not hasattr(self, "_decoded"):
            tensors = [self.manifest.tensors[place] for place in self._others]
            self._decoded = decode_tensors(self._sections[0], tensors, self.manifest.float_dtype)
        return self._decoded


class Entry(NamedTuple):
    """A tensor of an archive.

    Attributes:
        path: Its path in the model.
        values: Its values.
        coding: How it is kept, in a word; `"raw"` for numbers.
        bytes: How many bytes of the file are for it; `None` where it shares them with others.
    """

    path: str
    values: np.ndarray
    coding: str
    bytes: int | None


class Archive:
    """An archive that is open.

    Args:
        content: What is in it.
        source: The file, for messages.
    """

    def __init__(self, content: Version1 | Version2, source: Source):
        self._content, self._source = content, source

    @property
    def manifest(self) -> Manifest:
        """What is in it."""
        return self._content.manifest

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._content.size

    def tensor(self, place: int) -> np.ndarray:
        """One tensor: the others are not read. Raises an `ArchiveError` if it is damaged."""
        with naming(self._source):
            return self._content.decoder(place)()

    def all_tensors(self) -> Iterator[np.ndarray]:
        """The tensors in the order of the model's weights, a few of which are decoded at a time."""
        waiting: deque[Future[np.ndarray]] = deque()
        with naming(self._source), ThreadPoolExecutor(WORKERS) as pool:
            for place in range(len(self.manifest.tensors)):
                # Files are read here, one after the other; threads decode.
                waiting.append(pool.submit(self._content.decoder(place)))
                if len(waiting) > WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def asset(self, place: int) -> bytes:
        """The content of one of the manifest's assets."""
        with naming(self._source):
            return self._content.assets[place]

    @property
    def others_bytes(self) -> int:
        """Bytes of the tensors that are kept together; 0 where each has its own."""
        return self._content.others_bytes if isinstance(self._content, Version2) else 0

    def entries(self) -> Iterator[Entry]:
        """What the file has of each tensor, in the order of the model's weights."""
        content = self._content
        with naming(self._source):
            for place, tensor in enumerate(self.manifest.tensors):
                values, size = content.decoder(place)(), content.tensor_bytes(place)
                yield Entry(tensor.path, values, content.coding(place), size)

    def describe(self) -> str:
        """A table of its tensors."""
        total, lines = 0, list[tuple[str, ...]]()
        for entry in self.entries():
            total += entry.values.nbytes
            shape, distinct = "x".join(map(str, entry.values.shape)), np.unique(entry.values).size
            size = "" if entry.bytes is None else f"{entry.bytes:,}"
            lines.append((entry.path, shape, entry.coding, str(distinct), size))
        if isinstance(self._content, Version2):
            lines.append(("raw tensors together", "", "", "", f"{self.others_bytes:,}"))
        lines.append(("whole file", "", "", "", f"{self.size:,}"))
        lines.append(("tensors in memory", "", "", "", f"{total:,}"))
        return table(("tensor", "shape", "coding", "values", "bytes"), lines)


@contextlib.contextmanager
def read_archive(source: Source) -> Iterator[Archive]:
    """Opens and verifies a file, without making its model.

    Args:
        source: The path of the file, or one that was opened to read bytes.

    Yields:
        An `Archive`, whose tensors can be read as long as the file is open.

    Raises:
        ArchiveError: If the file is no archive, is damaged or truncated, or was written by a later
            version.
        FileNotFoundError: If there is no such file.
    """
    with opened(source) as file:
        with naming(source):
            content = (Version1 if version_of(file) == 1 else Version2)(file)
            _check(content)
        yield Archive(content, source)


def describe(path: Source) -> str:
    """A table of the tensors of an archive: shape, coding, distinct values, and bytes.

    Args:
        path: The file.

    Returns:
        Text of several lines.

    Raises:
        ArchiveError: As `load_archive`.
        FileNotFoundError: If there is no such file.
    """
    with read_archive(path) as archive:
        return archive.describe()


def assets_of(model: keras.Model) -> Iterator[tuple[int, str, bytes]]:
    """What preprocessing layers keep beside their weights: place of the layer, file name, content."""
    for place, layer in enumerate(layers_inside(model)):
        if hasattr(layer, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                layer.save_assets(folder)
                for file in sorted(Path(folder).iterdir()):
                    yield place, file.name, file.read_bytes()


def _check(content: Version1 | Version2) -> None:
    """That all tensors together are no more than the file may unfold to."""
    total = 0
    for tensor in content.manifest.tensors:
        total += math.prod(tensor.shape) * numpy_dtype(tensor.dtype).itemsize
        if total > _FREE_BYTES + _BYTES_PER_BYTE * content.size:
            raise ArchiveError(
                f"Expected tensors that a file of {content.size:,} bytes may hold. Received: {total:,} "
                "bytes or more"
            )
