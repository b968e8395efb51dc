"""Bytes by zstd: frames without what the file says already, never larger than they may be."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from keras_qareg.export.archive.fields import FieldError

_DICTIONARY = Path(__file__).parent / "dictionary_1.bin"
_LEVEL = 19


@functools.cache
def _dictionary() -> Any:
    kind = zstandard.DICT_TYPE_RAWCONTENT
    return zstandard.ZstdCompressionDict(_DICTIONARY.read_bytes(), dict_type=kind)


def deflated(content: bytes, shared: bool = False) -> bytes:
    """A frame without magic, size and checksum.

    Args:
        content: What is in it.
        shared: Whether the dictionary of configurations stands before it.
    """
    options = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    dictionary = {"dict_data": _dictionary()} if shared else {}
    packer = zstandard.ZstdCompressor(compression_params=options, **dictionary)
    found: bytes = packer.compress(content)
    return found


def inflated(frame: bytes, size: int, shared: bool = False) -> bytes:
    """The content of a frame, `size` bytes; raises a `FieldError` where it is not just that."""
    dictionary = {"dict_data": _dictionary()} if shared else {}
    unpacker = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS, **dictionary)
    try:
        found: bytes = unpacker.decompress(frame, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise FieldError(f"Expected a frame of {size} bytes. Received: {error}") from error
    if len(found) != size:
        raise FieldError(f"Expected a frame of {size} bytes. Received: {len(found)} bytes")
    return found


def planes(numbers: bytes, width: int) -> bytes:
    """Numbers of `width` bytes: the first byte of each, then the second of each, and so on.

    Example:

    >>> planes(b"abcabc", 3)
    b'aabbcc'
    """
    return np.frombuffer(numbers, "uint8").reshape(-1, width).T.tobytes()


def numbers_of(content: bytes, width: int) -> bytes:
    """The inverse of `planes`."""
    return np.frombuffer(content, "uint8").reshape(width, -1).T.tobytes()
