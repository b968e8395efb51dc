"""One file for a whole model, near the entropy bound of its shared weights.

An archive holds the configuration of the plain model (JSON), and each of its tensors: as a table of
centroids with entropy-coded indices where it has few values, else as it is. Indices are coded by an
ANS coder (`constriction`) under the frequencies of their own tensor, or packed where that is smaller.
Nothing in it is code: no pickle, and Lambda layers only on request.

`container.py` says how bytes are laid out and verified. What a tensor would need in memory is checked
against what a file of this size may hold.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.export.archive.coding import decode_indices, encode_indices
from keras_qareg.export.archive.container import (
    Archive,
    ArchiveError,
    inflate,
    naming,
    parse,
    sealed,
    verified,
)
from keras_qareg.export.archive.proof import compare
from keras_qareg.export.files import check_target
from keras_qareg.export.packing import bits_of
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models import codebooks, unquantized
from keras_qareg.models.reading import kernel_paths
from keras_qareg.models.selection import check_float
from keras_qareg.numerics.clustering import MAX_LEVELS
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.report import table

# What a file may unfold to: a kernel of one value takes no bytes at all, so a ratio alone is not enough.
_FREE_BYTES, _BYTES_PER_BYTE = 64 << 20, 4096
FLOAT_DTYPES = ("float32", "float16")
_TABLES = ("float32", "grid")
_DTYPES = re.compile("float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool")


def save_archive(
    model: keras.Model, path: str | os.PathLike[str], *, float_dtype: str = "float32"
) -> Path:
    """Writes a model to one small file: the plain model, its shared weights entropy-coded.

    The file appears under its name only when it is complete: when its tensors, read again, are those
    that the model computes with.

    Args:
        model: A built model; what `strip` makes of it is written.
        path: The file to write, in a folder that exists. The usual suffix is `.qareg`.
        float_dtype: How tensors that are not shared are kept: `"float32"` (default) as they are, or
            `"float16"`, at half the size and three digits.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the model is unbuilt, the folder does not exist, `float_dtype` is unknown, or
            a tensor in the file is not the model's.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(64)])
    >>> shared = qareg.share_weights(model, levels=4)
    >>> file = save_archive(shared, Path(tempfile.mkdtemp()) / "model.qareg")
    >>> type(load_archive(file)).__name__
    'Sequential'
    """
    path = check_target(path)
    if float_dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"Expected `float_dtype` to be one of {FLOAT_DTYPES}. Received: {float_dtype!r}"
        )
    check_float(
        model, "float8"
    )  # a model from its configuration has these weights in another order
    content = content_of(unquantized(model), codebooks(model), float_dtype)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        draft = Path(folder) / path.name
        draft.write_bytes(content)
        compare(model, stored_tensors(draft), path, float_dtype)
        draft.replace(path)
    return path


def content_of(
    plain: keras.Model, books: Mapping[str, Codebook], float_dtype: str = "float32"
) -> bytes:
    """The content of an archive, which nobody has read again yet.

    Args:
        plain: A plain, built model.
        books: The codebooks of its kernels by path.
        float_dtype: As in `save_archive`.
    """
    paths = kernel_paths(plain)
    sections: list[bytes] = []
    config = keras.saving.serialize_keras_object(plain)
    config.pop("compile_config", None)
    manifest = {
        "config": _add(sections, zlib.compress(json.dumps(config).encode(), 9)),
        "tensors": [
            {"name": path, **_packed(weight, books.get(path), float_dtype, sections)}
            for weight in plain.weights
            for path in [paths.get(id(weight), weight.path)]
        ],
        "assets": [
            {"layer": place, "name": name, "section": _add(sections, content)}
            for place, name, content in _assets(plain)
        ],
    }
    return sealed(manifest, sections)


def load_archive(
    path: str | os.PathLike[str],
    *,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> keras.Model:
    """Reads a model that `save_archive` wrote; it predicts bit for bit as the plain model did.

    Args:
        path: The file.
        custom_objects: Classes and functions of the model by name, where they are not registered.
        safe_mode: Whether to refuse Lambda layers, as `keras.saving.load_model` does.

    Returns:
        A plain Keras model, not compiled.

    Raises:
        ArchiveError: If the file is no archive, is damaged or truncated, was written by a later
            version, or its model cannot be made again.
        FileNotFoundError: If there is no such file.
    """
    archive = read_archive(path)
    with naming(path):
        return _rebuilt(archive, dict(custom_objects or {}), safe_mode)


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Reads and verifies a file, without making its model.

    Args:
        path: The file.

    Returns:
        An `Archive`.

    Raises:
        ArchiveError: As `load_archive`.
        FileNotFoundError: If there is no such file.
    """
    content = Path(path).read_bytes()
    with naming(path):
        archive = verified(content)
        _check(archive)
    return archive


def stored_tensors(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """The tensors of an archive in the order of the model's weights; raises as `load_archive`."""
    archive = read_archive(path)
    with naming(path):
        return [unpack_tensor(entry, archive.sections) for entry in archive.manifest["tensors"]]


def _rebuilt(archive: Archive, custom_objects: dict[str, Any], safe_mode: bool) -> keras.Model:
    entries = archive.manifest["tensors"]
    config = parse(inflate(archive.sections[archive.manifest["config"]], "model configuration"))
    try:
        with keras.saving.custom_object_scope(custom_objects):
            model = keras.saving.deserialize_keras_object(config, safe_mode=safe_mode)
        layers = layers_inside(model)
        for entry in archive.manifest["assets"]:
            _load_asset(layers[entry["layer"]], entry["name"], archive.sections[entry["section"]])
    except Exception as error:
        raise ArchiveError(
            f"Expected a model that can be made again. Received: {type(error).__name__}: {error}"
        ) from error
    shapes = [tuple(weight.shape) for weight in model.weights]
    expected = [tuple(entry["shape"]) for entry in entries]
    if shapes != expected:
        raise ArchiveError(
            f"Expected a model with tensors of shapes {expected}. Received: {shapes}. "
            "A subclassed model must build all its layers from its configuration."
        )
    for weight, entry in zip(model.weights, entries, strict=True):
        weight.assign(unpack_tensor(entry, archive.sections))
    for layer in layers:
        if hasattr(layer, "finalize_state"):  # Normalization computes with copies of its weights
            layer.finalize_state()
    return model


def _check(archive: Archive) -> None:
    """That sizes agree, and that all tensors together are no more than the file may unfold to."""
    entries, sections, size = archive.manifest["tensors"], archive.sections, archive.size
    for asset in archive.manifest["assets"]:
        sections[_whole(asset["section"])]
    sections[_whole(archive.manifest["config"])]
    total = 0
    for entry in entries:
        for name in (entry["dtype"], entry.get("stored", "float32")):
            if not _DTYPES.fullmatch(name):
                raise ArchiveError(f"Expected a type of numbers. Received: {name!r}")
        count = math.prod(_whole(n) for n in entry["shape"])
        total += count * np.dtype(entry["dtype"]).itemsize
        if total > _FREE_BYTES + _BYTES_PER_BYTE * size:
            raise ArchiveError(
                f"Expected tensors that a file of {size:,} bytes may hold. Received: {total:,} bytes "
                "or more"
            )
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


def _packed(
    weight: keras.Variable, book: Codebook | None, float_dtype: str, sections: list[bytes]
) -> dict[str, Any]:
    """Adds the sections of a tensor; returns what the manifest says of it."""
    values = np.asarray(ops.convert_to_numpy(weight))
    entry: dict[str, Any] = {"shape": list(values.shape), "dtype": str(values.dtype)}
    stored = float_dtype if values.dtype == np.float32 else str(values.dtype)
    if values.dtype == np.float32 and values.ndim > 1:
        if book is None or not np.array_equal(book.weights, values):
            book = Codebook.exact(values)
        if book is not None:
            book, coding, indices, table, raw = _coded(book)
            if len(indices) + len(raw) < values.size * np.dtype(stored).itemsize:
                return {
                    **entry,
                    "coding": coding,
                    "levels": book.centroids.shape[0],
                    "channels": list(book.centroids.shape[1:]),
                    "table": table,
                    "centroids": _add(sections, raw),
                    "indices": _add(sections, indices),
                }
    section = _add(sections, values.astype(_little_dtype(stored)).tobytes())
    return {**entry, "coding": "raw", "stored": stored, "section": section}


def unpack_tensor(entry: dict[str, Any], sections: list[bytes]) -> np.ndarray:
    """A tensor of an archive.

    Args:
        entry: What the manifest says of it.
        sections: The sections of the archive.

    Returns:
        An array of the shape and dtype in the entry.

    Raises:
        ArchiveError: If its indices do not make sense.
    """
    shape = tuple(entry["shape"])
    if entry["coding"] == "raw":
        values = np.frombuffer(sections[entry["section"]], _little_dtype(entry["stored"]))
        return values.astype(entry["dtype"]).reshape(shape)
    levels = entry["levels"]
    raw = sections[entry["centroids"]]
    if entry["table"] == "grid":
        codes = np.frombuffer(raw[:levels], "i1").astype("float32")
        tables = np.multiply.outer(codes, np.frombuffer(raw[levels:], "<f4"))
    else:
        tables = np.frombuffer(raw, "<f4")
    coded = sections[entry["indices"]]
    try:
        indices = decode_indices(entry["coding"], coded, levels, math.prod(shape)).reshape(shape)
        return Codebook(tables.reshape(levels, *entry["channels"]), indices).weights
    except ValueError as error:
        raise ArchiveError(f"Expected a sound table. Received: {error}") from error


def _packed_table(book: Codebook) -> tuple[str, bytes]:
    """Centroids as float32; or, where that is less, as int8 codes and a float32 step for each table."""
    if book.table_bytes == book.centroids.nbytes or book.grid is None:
        return "float32", book.centroids.astype("<f4").tobytes()
    codes, steps = book.grid
    return "grid", codes.tobytes() + steps.astype("<f4").tobytes()


def _coded(book: Codebook) -> tuple[Codebook, str, bytes, str, bytes]:
    """A codebook as it is held: without what no weight has; coding and bytes of indices and table."""
    if book.centroids.ndim == 1:
        book = _compact(book)
    return book, *encode_indices(book.indices, len(book.centroids)), *_packed_table(book)


def coded_bytes(book: Codebook) -> int:
    """The bytes of a kernel in an archive: its indices and its table."""
    _, _, indices, _, raw = _coded(book)
    return len(indices) + len(raw)


def _compact(book: Codebook) -> Codebook:
    """Without the centroids that no weight has."""
    used = book.counts > 0
    places = np.cumsum(used) - 1
    return Codebook(book.centroids[used], places[book.indices])


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArchiveError(f"Expected a size of 0 or more. Received: {value!r}")
    return value


def _add(sections: list[bytes], section: bytes) -> int:
    sections.append(section)
    return len(sections) - 1


def _little_dtype(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    return dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype  # bfloat16 has no order


def _assets(model: keras.Model) -> Iterator[tuple[int, str, bytes]]:
    """What preprocessing layers keep beside their weights: place of the layer, file name, content."""
    for place, layer in enumerate(layers_inside(model)):
        if hasattr(layer, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                layer.save_assets(folder)
                for file in sorted(Path(folder).iterdir()):
                    yield place, file.name, file.read_bytes()


def _load_asset(layer: keras.layers.Layer, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The name alone: an archive must not write elsewhere.
        (Path(folder) / Path(name).name).write_bytes(content)
        layer.load_assets(folder)


def describe(path: str | os.PathLike[str]) -> str:
    """A table of the tensors of an archive: shape, coding, distinct values, and bytes.

    Args:
        path: The file.

    Returns:
        Text of several lines.

    Raises:
        ArchiveError: As `load_archive`.
        FileNotFoundError: If there is no such file.
    """
    archive = read_archive(path)
    total = 0
    lines: list[tuple[str, ...]] = []
    with naming(path):
        for entry in archive.manifest["tensors"]:
            places = [entry[key] for key in ("section", "centroids", "indices") if key in entry]
            size = sum(len(archive.sections[place]) for place in places)
            values = unpack_tensor(entry, archive.sections)
            total += values.nbytes
            shape = "x".join(map(str, entry["shape"]))
            distinct = str(np.unique(values).size)
            lines.append((str(entry["name"]), shape, entry["coding"], distinct, f"{size:,}"))
    lines.append(("whole file", "", "", "", f"{archive.size:,}"))
    lines.append(("tensors in memory", "", "", "", f"{total:,}"))
    return table(("tensor", "shape", "coding", "values", "bytes"), lines)
