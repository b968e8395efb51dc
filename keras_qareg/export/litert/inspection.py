"""What is in a `.tflite` file, without running it."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.sections import sections
from keras_qareg.export.packing import unpacked
from keras_qareg.summaries import table

_NUMPY_TYPES = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT32": "<i4", "INT64": "<i8", "INT8": "i1"}
_NUMPY_TYPES |= {"UINT8": "u1", "INT16": "<i2", "BOOL": "?", "FLOAT64": "<f8"}


def is_litert(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is a `.tflite`."""
    with Path(path).open("rb") as file:
        return file.read(8)[4:] == flatbuffer.IDENTIFIER


def litert_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file; raises a `ValueError` if it does not say that it is a `.tflite`."""
    content = Path(path).read_bytes()
    if content[4:8] != flatbuffer.IDENTIFIER:
        raise ValueError(f"Expected a .tflite file. Received: {path}, which does not begin as one")
    return content


def describe_litert(path: str | os.PathLike[str]) -> str:
    """A table of the constants of a `.tflite` file: shape, type, distinct values, and bytes.

    The first line says what the bytes of the file are for.

    Args:
        path: The file.

    Returns:
        Text of several lines.

    Raises:
        ValueError: If the file is no `.tflite`, or is damaged.
        FileNotFoundError: If there is no such file.
    """
    content = litert_content(path)
    with reading(path):
        flatbuffer.check_structure(flatbuffer.read(content))
        lines, parts = _lines(content), sections(content)
    lines.append(("whole file", "", "", "", f"{len(content):,}"))
    text = table(("tensor", "shape", "type", "values", "bytes"), lines)
    return f"bytes: {parts}\n{text}"


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises a `ValueError` where a file cannot be read, whatever its reader stumbles on."""
    try:
        yield
    # The flatbuffer is untrusted.
    except Exception as error:
        raise ValueError(
            f"Expected a readable .tflite file. Received: {path} ({type(error).__name__}: {error})"
        ) from error


class Stored(NamedTuple):
    """A constant as a file holds it; `values` are `None` in types that NumPy does not have.

    Most have no name in files of ours: `name` then is the path of the Keras kernel, or a number. `place`
    is that of its graph, and that of its tensor there.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    values: Any
    bytes: int
    place: tuple[int, int]


def stored_constants(model: Any) -> Iterator[Stored]:
    """All constants of a `ModelT`, in the order of its graphs."""
    from ai_edge_litert.tools import flatbuffer_utils

    names = {
        value: name
        for name, value in vars(flatbuffer_utils.TensorType).items()
        if isinstance(value, int)
    }
    for number, graph in enumerate(model.subgraphs):
        for place, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is None:
                continue
            raw, kind = np.frombuffer(bytes(data), "uint8"), names[tensor.type]
            shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
            values = _values(raw, kind, math.prod(shape))
            name = flatbuffer.name_of(tensor) or f"constant {number}:{place}"
            yield Stored(name, shape, kind.lower(), values, raw.size, (number, place))


def _lines(content: bytes) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for stored in stored_constants(flatbuffer.read(content)):
        distinct = "-" if stored.values is None else str(np.unique(stored.values).size)
        shape = "x".join(map(str, stored.shape)) or "scalar"
        lines.append((stored.name, shape, stored.kind, distinct, f"{stored.bytes:,}"))
    return lines


def _values(raw: np.ndarray, kind: str, size: int) -> Any:
    if kind in ("INT4", "INT2"):
        return unpacked(raw, kind.lower(), size)
    return np.frombuffer(raw.tobytes(), _NUMPY_TYPES[kind]) if kind in _NUMPY_TYPES else None
