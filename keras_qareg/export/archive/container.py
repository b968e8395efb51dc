"""The container of an archive: a header, a manifest, and sections, each with its digest.

Layout, all integers little-endian:

    8 bytes   magic: 89 "KQAREG" 0A
    4         version: 1
    4, 4      bytes of the manifest as stored (zlib) and as JSON
    16        BLAKE2b of the stored manifest
    ...       manifest: {"sections": [[bytes, BLAKE2b], ...], ...}
    ...       the sections, in order, to the end of the file

Everything is checked before it is used: lengths against the file, digests against the bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC, VERSION = b"\x89KQAREG\n", 1
_HEADER = struct.Struct("<8sIII16s")
# Deflate never does better than this.
_DEFLATE_RATIO = 1100


class ArchiveError(ValueError):
    """A file is no archive, is damaged, or is from a later version."""


@dataclass(frozen=True)
class Archive:
    """The parts of a file, their digests checked.

    Attributes:
        manifest: The manifest.
        sections: The bytes of each section.
        size: Bytes of the whole file.
    """

    manifest: dict[str, Any]
    sections: list[bytes] = field(repr=False)
    size: int


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is an archive."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def sealed(manifest: dict[str, Any], sections: list[bytes]) -> bytes:
    """The content of a file with these sections and this manifest, to which their list is added."""
    listed = [[len(section), _digest(section).hex()] for section in sections]
    raw = json.dumps({**manifest, "sections": listed}, separators=(",", ":")).encode()
    stored = zlib.compress(raw, 9)
    header = _HEADER.pack(MAGIC, VERSION, len(stored), len(raw), _digest(stored))
    return b"".join([header, stored, *sections])


def verified(content: bytes) -> Archive:
    """The parts of a file; raises an `ArchiveError` unless lengths and digests are right."""
    if len(content) < _HEADER.size or not content.startswith(MAGIC):
        raise ArchiveError(
            "Expected an archive of keras_qareg. Received: a file that does not begin as one"
        )
    _, version, stored_size, raw_size, digest = _HEADER.unpack_from(content)
    if version != VERSION:
        raise ArchiveError(
            f"Expected an archive of version {VERSION}. Received: version {version}. Use the release "
            "of keras_qareg that wrote it, or a later one"
        )
    start = _HEADER.size + stored_size
    if start > len(content) or raw_size > _DEFLATE_RATIO * stored_size:
        raise ArchiveError("Expected a whole archive. Received: a header that promises more")
    stored = content[_HEADER.size : start]
    if _digest(stored) != digest:
        raise ArchiveError("Expected an undamaged archive. Received: a manifest that was changed")
    manifest = parse(inflate(stored, "manifest", raw_size))
    sections = []
    for place, (size, checksum) in enumerate(manifest["sections"]):
        section = content[start : start + size]
        if size < 0 or len(section) != size:
            raise ArchiveError(f"Expected a whole archive. Received: section {place} cut off")
        if _digest(section).hex() != checksum:
            raise ArchiveError(
                f"Expected an undamaged archive. Received: section {place} was changed"
            )
        sections.append(section)
        start += size
    if start != len(content):
        raise ArchiveError("Expected an archive. Received: more bytes after its end")
    return Archive(manifest, sections, len(content))


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the name of the file to errors; a manifest without sense is one error like any other."""
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{error} (file '{path}')") from error.__cause__
    except (KeyError, TypeError, IndexError, ValueError, RecursionError, OverflowError) as error:
        raise ArchiveError(
            f"Expected an archive of keras_qareg. Received: a damaged manifest ({error!r}) "
            f"(file '{path}')"
        ) from error


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def inflate(stored: bytes, what: str, size: int | None = None) -> bytes:
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


def parse(raw: bytes) -> Any:
    """Decodes JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"Expected JSON. Received: {error}") from error
