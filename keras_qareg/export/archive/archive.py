"""One file for a whole model, near what its shared weights can be coded in.

An archive holds the configuration of the plain model without defaults, and each of its tensors: one of
few values as a table with entropy-coded indices (`kernels`), others together (`tensors`). Nothing in it
is code: no pickle, and Lambda layers only on request.

`container.py` says how bytes are laid out and verified. What a tensor would need in memory is checked
against what a file of this size may hold.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.choices import check_choice, check_count, check_flag, shown
from keras_qareg.export.archive.container import Source, naming, sealed
from keras_qareg.export.archive.fields import varint
from keras_qareg.export.archive.fitting import fitted
from keras_qareg.export.archive.folding import folded, held_books, weight_names
from keras_qareg.export.archive.kernels import EFFORTS, encode_kernel
from keras_qareg.export.archive.manifest import (
    ALONE,
    FLOAT_DTYPES,
    KERNEL,
    TOGETHER,
    Manifest,
    Tensor,
    configuration_of,
)
from keras_qareg.export.archive.proof import compare
from keras_qareg.export.archive.reading import WORKERS, assets_of, read_archive
from keras_qareg.export.archive.rebuilding import fill, rebuilt
from keras_qareg.export.archive.tensors import encode_tensors
from keras_qareg.files import check_target
from keras_qareg.models import codebooks, unquantized
from keras_qareg.models.selection import check_float
from keras_qareg.numerics.codebook import Codebook

# Larger tensors have a section of their own, and are read alone; larger models show a bar.
_LARGE, _MANY = 1 << 16, 10_000_000
# From where to where the largest number of a tensor has its digits, and what to take beyond.
_RANGES = {"float16": (2.0**-14, 65504.0, "bfloat16"), "bfloat16": (0.0, 3.389e38, "float32")}


def save_archive(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    float_dtype: str = "float32",
    fold: bool = False,
    effort: str = "fast",
    target_bytes: int | None = None,
) -> Path:
    """Writes a model to one small file: the plain model, its shared weights entropy-coded.

    The file appears under its name only when it is complete: when its tensors, read again, are those
    that the model computes with.

    Args:
        model: A built model; what `strip` makes of it is written.
        path: The file to write, in a folder that exists. The usual suffix is `.qareg`.
        float_dtype: How tensors that are not shared are kept: `"float32"` (default) as they are, or
            `"float16"` or `"bfloat16"`, at half the size and three or two digits.
        fold: Whether each `BatchNormalization` with scale and center is kept as one factor and one
            offset a channel, for inference: its mean becomes 0, its variance 1 less epsilon. Where it
            alone reads what a linear layer computes, the bias of that layer and the steps of its kernel
            are in them too: the kernel has whole numbers. Outputs are the same but for rounding;
            training goes on from other numbers. Defaults to False: all tensors are kept to the bit.
        effort: `"fast"` (default), or `"best"`, which mixes contexts: up to a tenth fewer bytes where
            rows and columns of kernels differ, and both ends take about ten times as long; needs
            `pip install keras-qareg[best]`, to read too.
        target_bytes: Positive integer: the most bytes of the file. Where it would have more, its kernels
            are clustered for least squared error and bits together (`numerics.rate_distortion`), by the
            lowest rate at which it is small enough. Of each kernel the error counts relative to the sum
            of its squares. That is another network, which nobody has looked at: `allocate` and
            `compress` do less harm, where there are inputs. `None` (default): the model as it is.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the model is unbuilt, the folder does not exist, an option is out of its range,
            the budget cannot be met (it says the least), a function or class of the model has the name
            of another, or the file does not have the tensors of the model or give its outputs.
        ImportError: If `effort="best"` and numba is missing.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(64)])
    >>> shared = qareg.share_weights(model, levels=4)
    >>> file = save_archive(shared, Path(tempfile.mkdtemp()) / "model.qareg")
    >>> type(load_archive(file)).__name__
    'Sequential'

    See also: https://keras-qareg.github.io/keras-qareg/formats.html#qareg-archives
    """
    path = check_target(path)
    check_choice("float_dtype", float_dtype, FLOAT_DTYPES)
    check_choice("effort", effort, EFFORTS)
    check_flag("fold", fold)
    # A model from its configuration has these weights in another order.
    check_float(model, "float8")
    if target_bytes is not None:
        check_count("target_bytes", target_bytes, besides=" or None")
        size = functools.partial(size_of, float_dtype=float_dtype, fold=fold, effort=effort)
        # Steps of channels are in a folded normalization, and else take bytes.
        model = fitted(model, target_bytes, size, "auto" if fold else "kernel")
    plain = unquantized(model)
    content = content_of(plain, codebooks(model), float_dtype, fold, effort)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        draft = Path(folder) / path.name
        draft.write_bytes(content)
        with read_archive(draft) as archive:
            proof = compare(model, plain, archive, path)
        draft.replace(path)
    if proof.failed:
        warnings.warn(
            f"{path} has a model that cannot be made again here ({proof.failed}): `load_archive` needs "
            "its classes and functions as `custom_objects`.",
            stacklevel=2,
        )
    return path


def content_of(
    plain: keras.Model,
    books: Mapping[str, Codebook],
    float_dtype: str = "float32",
    fold: bool = False,
    effort: str = "fast",
) -> bytes:
    """The content of an archive, which nobody has read again yet.

    Args:
        plain: A plain, built model.
        books: The codebooks of its kernels by path.
        float_dtype: As in `save_archive`.
        fold: As there.
        effort: As there.
    """
    names = weight_names(plain)
    arrays = [np.asarray(ops.convert_to_numpy(weight)) for weight in plain.weights]
    held = held_books(names, arrays, books)
    if fold:
        arrays, held = folded(plain, arrays, held)

    def made(place: int) -> tuple[bytes | None, Tensor]:
        tensor = Tensor(names[place], arrays[place].shape, str(arrays[place].dtype), TOGETHER)
        return _section(tensor, arrays[place], held.get(place), float_dtype, effort)

    with ThreadPoolExecutor(WORKERS) as pool:
        coded = list(pool.map(made, range(len(names))))
    kept = [tensor for _, tensor in coded]
    sections = [section for section, _ in coded if section is not None]
    together = [place for place, tensor in enumerate(kept) if tensor.kept == TOGETHER]
    others = encode_tensors([kept[p] for p in together], [arrays[p] for p in together], float_dtype)
    assets = list(assets_of(plain))
    manifest = Manifest(
        configuration_of(plain),
        tuple(kept),
        tuple((place, name) for place, name, _ in assets),
        float_dtype,
        fold,
    )
    return sealed(manifest.to_json(), [others, *sections, *(content for *_, content in assets)])


def size_of(
    model: keras.Model, float_dtype: str = "float32", fold: bool = False, effort: str = "fast"
) -> int:
    """The bytes of the archive of a model; options as in `save_archive`."""
    return len(content_of(unquantized(model), codebooks(model), float_dtype, fold, effort))


def load_archive(
    path: Source,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
    verbose: str | int = "auto",
) -> keras.Model:
    """Reads a model that `save_archive` wrote; it predicts bit for bit as the plain model did.

    One saved with `fold=True` predicts the same but for rounding. Tensors are read one at a time.

    Args:
        path: The file, or one that was opened to read bytes.
        custom_objects: Classes and functions of the model by name, where they are not registered.
        safe_mode: Whether to refuse Lambda layers, as `keras.saving.load_model` does.
        verbose: 1 shows a bar that counts tensors, 0 nothing; `"auto"` (default) shows it where the
            model has ten million weights or more.

    Returns:
        A plain Keras model, not compiled.

    Raises:
        ArchiveError: If the file is no archive, is damaged or truncated, was written by a later
            version, or its model cannot be made again.
        FileNotFoundError: If there is no such file.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = qareg.export.save_archive(model, Path(folder) / "model.qareg")
    ...     loaded = load_archive(path)
    >>> np.array_equal(loaded.get_weights()[0], model.get_weights()[0])
    True

    See also: https://keras-qareg.github.io/keras-qareg/formats.html#qareg-archives
    """
    with read_archive(path) as archive, naming(path):
        model = rebuilt(archive, custom_objects or {}, safe_mode)
        tensors = archive.manifest.tensors
        many = sum(math.prod(tensor.shape) for tensor in tensors) >= _MANY
        verbose = shown(verbose, auto=many)
        bar = keras.utils.Progbar(len(tensors), verbose=verbose, unit_name="tensor")
        fill(model, archive.all_tensors(), bar.update)
    return model


def _section(
    tensor: Tensor, array: np.ndarray, book: Codebook | None, float_dtype: str, effort: str
) -> tuple[bytes | None, Tensor]:
    """The section of a tensor, unless it is small and no kernel; and what the manifest says of it."""
    if book is not None:
        section = encode_kernel(book, effort)
        each = 4 if float_dtype == "float32" else 2
        if len(section) < array.size * each:
            return section, Tensor(tensor.path, tensor.shape, tensor.dtype, KERNEL)
    _check_range(tensor, array, float_dtype)
    if array.size < _LARGE:
        return None, tensor
    alone = Tensor(tensor.path, tensor.shape, tensor.dtype, ALONE)
    return encode_tensors([alone], [array], float_dtype), alone


def _check_range(tensor: Tensor, array: np.ndarray, float_dtype: str) -> None:
    if array.dtype != np.float32 or float_dtype not in _RANGES:
        return
    least, most, other = _RANGES[float_dtype]
    largest = float(np.abs(np.where(np.isfinite(array), array, 0)).max(initial=0))
    if largest and not least <= largest <= most:
        raise ValueError(
            f"Expected tensors whose largest number {float_dtype} holds to its precision, from "
            f"{least:.3g} to {most:.3g}. Received: {largest:.3g} in '{tensor.path}'. Take "
            f"float_dtype={other!r}."
        )


def coded_bytes(book: Codebook, effort: str = "fast") -> int:
    """The bytes of a kernel in an archive: its section, and what the index has of it."""
    size = len(encode_kernel(book, effort))
    return size + len(varint(size)) + 4
