"""Tensors that are no kernels of few values: numbers of one kind together, in the fewest bytes.

Biases of all layers, say, have exponents of one kind, and so have the factors of normalizations: tensors
whose names end alike are one group. A tensor of one value counts as a single number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from keras_qareg.export.archive.ans import Reader, Writer
from keras_qareg.export.archive.fields import Cursor, FieldError, varint
from keras_qareg.export.archive.floats import FORMS, Floats, PlannedFloats, plan_floats, read_floats
from keras_qareg.export.archive.manifest import Tensor
from keras_qareg.export.archive.zipping import deflated, inflated, numbers_of, planes

# How a group is written: as it is, by zstd, or as `floats`.
_RAW, _ZIPPED, _FLOATS = 0, 1, 2
_BFLOAT_SHIFT = 16


def encode_tensors(
    tensors: Sequence[Tensor], arrays: Sequence[np.ndarray], float_dtype: str
) -> bytes:
    """The section of some tensors.

    Args:
        tensors: What the manifest says of them.
        arrays: Their values.
        float_dtype: How float32 numbers are kept.
    """
    numbers = [_kept(array, float_dtype) for array in arrays]
    single = [n.size > 1 and bool((n == n[:1]).all()) for n in numbers]
    numbers = [n[:1] if one else n for n, one in zip(numbers, single, strict=True)]
    heads, writer = [np.packbits(np.array(single, bool)).tobytes()], Writer()
    for (_, dtype), places in _groups(tensors, float_dtype).items():
        together = np.concatenate([numbers[place] for place in places])
        if together.size:
            head, floats = _group(together, dtype)
            heads.append(head)
            if floats is not None:
                floats.put(writer)
    return b"".join([*heads, writer.finish()])


def decode_tensors(section: bytes, tensors: Sequence[Tensor], float_dtype: str) -> list[np.ndarray]:
    """The tensors of a section; raises a `ValueError` where it is none of such tensors."""
    cursor = Cursor(section)
    bits = np.frombuffer(cursor.take(-(-len(tensors) // 8)), "uint8")
    single = np.unpackbits(bits, count=len(tensors))
    counts = [math.prod(tensor.shape) for tensor in tensors]
    held = [1 if one else count for one, count in zip(single, counts, strict=True)]
    if any(one and count < 2 for one, count in zip(single, counts, strict=True)):
        raise FieldError("Expected tensors of more than one number. Received: smaller ones")
    groups: dict[tuple[str, tuple[int, ...]], bytes | PlannedFloats] = {}
    for (_, dtype), places in _groups(tensors, float_dtype).items():
        count = sum(held[place] for place in places)
        groups[dtype, tuple(places)] = _read_group(cursor, count, dtype) if count else b""
    reader = Reader(cursor.rest())
    found: list[np.ndarray] = [np.empty(0)] * len(tensors)
    for (dtype, members), read in groups.items():
        numbers = read.take(reader) if isinstance(read, PlannedFloats) else _numbers(read, dtype)
        ends = np.cumsum([held[place] for place in members])
        for place, part in zip(members, np.split(numbers, ends[:-1]), strict=True):
            whole = np.repeat(part, counts[place]) if single[place] else part
            found[place] = _restored(whole, dtype, tensors[place])
    reader.close()
    return found


def rounded(array: np.ndarray, float_dtype: str) -> np.ndarray:
    """A float32 array as it comes back where it is kept as `float_dtype`."""
    tensor = Tensor("", array.shape, "float32", "")
    return _restored(_kept(array, float_dtype), float_dtype, tensor)


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of a name, which for bfloat16 is not one of NumPy."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _groups(tensors: Sequence[Tensor], float_dtype: str) -> dict[tuple[str, str], list[int]]:
    """The places of the tensors of each group, by the end of their names and the dtype kept."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, tensor in enumerate(tensors):
        dtype = float_dtype if tensor.dtype == "float32" else tensor.dtype
        found.setdefault((tensor.path.rpartition("/")[2], dtype), []).append(place)
    return found


def _group(numbers: np.ndarray, dtype: str) -> tuple[bytes, Floats | None]:
    width = numbers.itemsize
    raw = numbers.astype(f"<u{width}").tobytes()
    zipped = deflated(planes(raw, width))
    ways: list[tuple[float, bytes, Floats | None]] = [
        (1.0 + len(raw), bytes([_RAW]) + raw, None),
        (2.0 + len(zipped), bytes([_ZIPPED]) + varint(len(zipped)) + zipped, None),
    ]
    if dtype in FORMS:
        floats = plan_floats(numbers, dtype)
        ways.append((1 + floats.size, bytes([_FLOATS]) + floats.head + floats.tail, floats))
    _, head, floats_ = min(ways, key=lambda way: way[0])
    return head, floats_


def _read_group(cursor: Cursor, count: int, dtype: str) -> bytes | PlannedFloats:
    way, width = cursor.byte(), numpy_dtype(dtype).itemsize
    if way == _RAW:
        return cursor.take(count * width)
    if way == _ZIPPED:
        return numbers_of(inflated(cursor.take(cursor.varint()), count * width), width)
    if way != _FLOATS or dtype not in FORMS:
        raise FieldError(f"Expected a way to write {dtype}. Received: {way}")
    return read_floats(cursor, count, dtype)


def _numbers(raw: bytes, dtype: str) -> np.ndarray:
    width = numpy_dtype(dtype).itemsize
    return np.frombuffer(raw, f"<u{width}").astype(f"u{width}")


def _kept(array: np.ndarray, float_dtype: str) -> np.ndarray:
    """The bits of numbers as they are kept, one after the other, as unsigned integers."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype == np.float32 and float_dtype == "bfloat16":
        bits = flat.view("uint32")
        # To the nearest, at a tie the even one; what is not a number stays so.
        nearest = bits + (0x7FFF + (bits >> _BFLOAT_SHIFT & 1)).astype("uint32")
        kept = np.where(np.isnan(flat), bits | 0x400000, nearest) >> _BFLOAT_SHIFT
        return kept.astype("uint16")
    if flat.dtype == np.float32:
        flat = flat.astype(float_dtype)
    return flat.view(f"u{flat.dtype.itemsize}")


def _restored(bits: np.ndarray, dtype: str, tensor: Tensor) -> np.ndarray:
    if dtype == "bfloat16" and tensor.dtype == "float32":
        values = (bits.astype("uint32") << _BFLOAT_SHIFT).view("float32")
    else:
        values = bits.view(numpy_dtype(dtype))
        if dtype == "bool" and (bits > 1).any():
            raise FieldError("Expected truth values. Received: other bytes")
    return values.astype(numpy_dtype(tensor.dtype)).reshape(tensor.shape)
