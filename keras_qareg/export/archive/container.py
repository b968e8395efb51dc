"""The container of an archive: what stands where, with digests.

Layout of version 2, where `varint` is a whole number of seven bits a byte, the lowest first:

    8 bytes   magic: 89 "KQAREG" 0A
    4         version: 2, little-endian
    8         BLAKE2b of the index
    varint    bytes of the index
    ...       index: three varints, the bytes of the manifest as stored and as it is and the number of
              sections; the size of each, a varint; BLAKE2b of each, 4 bytes; the manifest, by zstd
    ...       the sections, in order, to the end of the file

Everything is checked before it is used: lengths against the file, digests against the bytes. Sections
are read one at a time. `version_1` reads files of version 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from keras_qareg.export.archive.ans import StreamError
from keras_qareg.export.archive.fields import Cursor, FieldError, varint
from keras_qareg.export.archive.zipping import deflated, inflated

MAGIC, VERSION = b"\x89KQAREG\n", 2
_START = struct.Struct("<8sI8s")
_DIGEST, _SECTION_DIGEST, _LONGEST = 8, 4, 9
# What a manifest may unfold to.
_FREE_BYTES, _BYTES_PER_BYTE = 1 << 16, 4096

Source = str | os.PathLike[str] | IO[bytes]


class ArchiveError(ValueError):
    """A file is no archive, is damaged, or is from a later version.

    See also: https://keras-qareg.github.io/keras-qareg/formats.html#qareg-archives
    """


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is an archive."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def sealed(manifest: str, sections: list[bytes]) -> bytes:
    """The content of a file with this manifest and these sections."""
    raw = manifest.encode()
    stored = deflated(raw, shared=True)
    numbers = [len(stored), len(raw), len(sections), *map(len, sections)]
    digests = [digest(section, _SECTION_DIGEST) for section in sections]
    index = b"".join([*map(varint, numbers), *digests, stored])
    start = _START.pack(MAGIC, VERSION, digest(index, _DIGEST))
    return b"".join([start, varint(len(index)), index, *sections])


class Sections:
    """The index of a file, and its sections, which are read when they are asked for.

    Args:
        file: A file of version 2 that can be sought in, at its begin.

    Attributes:
        manifest: The manifest, JSON.
        sizes: Bytes of each section.
        size: Bytes of the file.

    Raises:
        ArchiveError: If lengths or the digest of the index are wrong.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(_START.size)
        head = file.read(_LONGEST)
        cursor = Cursor(head)
        length = cursor.varint()
        start = _START.size + len(varint(length))
        if start + length > self.size:
            raise ArchiveError("Expected a whole archive. Received: a header that promises more")
        file.seek(0)
        whole = file.read(start + length)
        if digest(whole[start:], _DIGEST) != _START.unpack_from(whole)[2]:
            raise ArchiveError("Expected an undamaged archive. Received: an index that was changed")
        index = Cursor(whole[start:])
        stored, raw, count = index.varint(), index.varint(), index.varint()
        if raw > _FREE_BYTES + _BYTES_PER_BYTE * stored or count > length:
            raise ArchiveError("Expected a whole archive. Received: an index that promises more")
        self.sizes = [index.varint() for _ in range(count)]
        self._digests = [index.take(_SECTION_DIGEST) for _ in range(count)]
        frame = index.rest()
        if len(frame) != stored:
            raise ArchiveError("Expected a manifest. Received: one of another size")
        self.manifest = inflated(frame, raw, shared=True)
        self._starts = [start + length]
        for size in self.sizes:
            self._starts.append(self._starts[-1] + size)
        if self._starts[-1] > self.size:
            raise ArchiveError("Expected a whole archive. Received: sections cut off")
        if self._starts[-1] < self.size:
            raise ArchiveError("Expected an archive. Received: more bytes after its end")

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, place: int) -> bytes:
        """The bytes of a section; raises an `ArchiveError` where they were changed."""
        self._file.seek(self._starts[place])
        section = self._file.read(self.sizes[place])
        if digest(section, _SECTION_DIGEST) != self._digests[place]:
            raise ArchiveError(
                f"Expected an undamaged archive. Received: section {place} was changed"
            )
        return section


def version_of(file: IO[bytes]) -> int:
    """The version that a file says it is of; raises an `ArchiveError` where it is no archive."""
    file.seek(0)
    start = file.read(_START.size)
    if len(start) < _START.size or not start.startswith(MAGIC):
        raise ArchiveError(
            "Expected an archive of keras_qareg. Received: a file that does not begin as one"
        )
    version: int = _START.unpack(start)[1]
    if not 1 <= version <= VERSION:
        raise ArchiveError(
            f"Expected an archive of version {VERSION} or before. Received: version {version}. Use the "
            "release of keras_qareg that wrote it, or a later one"
        )
    return version


@contextlib.contextmanager
def opened(source: Source) -> Iterator[IO[bytes]]:
    """A file that can be sought in: the one of a path, which is closed again, or the one that is given.

    One that cannot be sought in, such as a download, is read first.

    Raises:
        ValueError: If it is neither, or a folder.
    """
    folder = isinstance(source, str | os.PathLike) and Path(source).is_dir()
    if folder or not (isinstance(source, str | os.PathLike) or hasattr(source, "read")):
        found = (
            f"{source}, which is a folder" if folder else f"an object of {type(source).__name__}"
        )
        raise ValueError(
            "Expected the path of a file, or a file that was opened to read bytes (io.BytesIO of "
            f"bytes). Received: {found}"
        )
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            yield file
    elif source.seekable():
        yield source
    else:
        yield io.BytesIO(source.read())


@contextlib.contextmanager
def naming(source: Source) -> Iterator[None]:
    """Adds the name of the file to errors; a manifest without sense is one error like any other."""
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "a stream")
    try:
        yield
    except ArchiveError as error:
        if str(error).endswith(f"(file '{name}')"):
            raise
        raise ArchiveError(f"{error} (file '{name}')") from error.__cause__
    except (FieldError, StreamError) as error:
        raise ArchiveError(
            f"Expected an archive of keras_qareg. Received: a damaged one: {error} (file '{name}')"
        ) from error
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(error, name) from error
    except (OverflowError, AssertionError, MemoryError) as error:
        raise _damaged(error, name) from error


def _damaged(error: Exception, name: Any) -> ArchiveError:
    return ArchiveError(
        f"Expected an archive of keras_qareg. Received: a damaged manifest ({error!r}) (file '{name}')"
    )


def digest(content: bytes, size: int) -> bytes:
    """BLAKE2b."""
    return hashlib.blake2b(content, digest_size=size).digest()


def parse(raw: bytes) -> Any:
    """Decodes JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"Expected JSON. Received: {error}") from error
