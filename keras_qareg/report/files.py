"""What a `.tflite` file or an archive tells of itself, on the page, without its model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.export.archive.reading import Archive, read_archive
from keras_qareg.export.archive.tensors import numpy_dtype
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.inspection import litert_content, reading, stored_constants
from keras_qareg.export.litert.sections import Uses, sections
from keras_qareg.numerics.clustering import MAX_LEVELS
from keras_qareg.report.exported import shares_of
from keras_qareg.report.figures import distribution
from keras_qareg.report.markup import TIMES, Markup, number, tag
from keras_qareg.report.parts import (
    Cell,
    Column,
    Line,
    bars,
    decimal,
    facts,
    folded,
    percent,
    plain_table,
    said,
    section,
    shares,
    sortable,
    whole,
    word,
)


class Content(NamedTuple):
    """A page without its frame: what it is of, the first things to know, and its sections."""

    kind: str
    headline: list[tuple[str, Any]]
    sections: list[Markup]


class _Numbers(NamedTuple):
    """The numbers of a constant or a tensor, and their bytes in the file, if these are its own."""

    title: str
    shape: tuple[int, ...]
    values: np.ndarray | None
    bytes: int | None
    said: list[tuple[str, Any]]


_CONSTANTS = (
    Column("Constant", number=False),
    Column("Role", number=False, wide=True),
    Column("Type", number=False),
    Column("Shape", wide=True),
    Column("Values"),
    Column("Bytes"),
)
_TENSORS = (
    Column("Tensor", number=False),
    Column("Coding", number=False),
    Column("Bits a value", wide=True),
    Column("Shape", wide=True),
    Column("Values"),
    Column("Bytes"),
)


def of_litert(path: Path) -> Content:
    """A `.tflite` file.

    Raises:
        ValueError: If it is none, or is damaged.
    """
    content = litert_content(path)
    with reading(path):
        model, parts = flatbuffer.read(content), sections(content)
        read = list(_constants(model))
        operators = Counter(
            flatbuffer.operator_name(model, operator)
            for graph in model.subgraphs
            for operator in graph.operators or []
        )
    found, lines = _shown(read, 2)
    counted = plain_table(
        "The operators of the file", ("operator", "times"), sorted(operators.items())
    )
    headline = [
        ("file", f"{len(content):,} bytes"),
        ("weights", f"{parts.weights:,} bytes, {percent(parts.weights, len(content))}"),
        ("constants", f"{len(found):,}"),
        ("operators", f"{sum(operators.values()):,} of {len(operators):,} kinds"),
    ]
    constants = sum(one.bytes or 0 for one in found)
    heading = tag("h3", f"Constants: {constants:,} bytes")
    return Content(
        "LiteRT file",
        headline,
        [
            section("bytes", "Where the bytes are", shares_of(parts), heading, _bars(found, None)),
            section("constants", "Constants", _table("constant", _CONSTANTS, lines)),
            section("runs", "What runs", counted),
        ],
    )


def of_archive(path: Path) -> Content:
    """An archive.

    Raises:
        ArchiveError: If it is none, or is damaged.
    """
    with read_archive(path) as archive:
        size, together = archive.size, archive.others_bytes
        found, lines = _shown(_tensors(archive), 1)
        dtypes = [numpy_dtype(tensor.dtype) for tensor in archive.manifest.tensors]
    kernels, alone = (
        sum(one.bytes or 0 for one in found if (one.said[0][1] == "raw") is raw)
        for raw in (False, True)
    )
    memory = sum(
        math.prod(one.shape) * dtype.itemsize for one, dtype in zip(found, dtypes, strict=True)
    )
    parts = [
        ("kernels", "of few values, entropy-coded, with tables", kernels),
        ("tensors alone", "numbers in a section of their own", alone),
        ("tensors together", "numbers in one section", together),
        ("the rest", "configuration, paths, index and assets", size - kernels - alone - together),
    ]
    headline = [
        ("file", f"{size:,} bytes"),
        ("tensors in memory", f"{memory:,} bytes"),
        ("share of the tensors in memory", percent(size, memory)),
        ("tensors", f"{len(found):,}"),
    ]
    rest = ("tensors together", together) if together else None
    heading = tag("h3", f"Tensors: {kernels + alone + together:,} bytes")
    return Content(
        "archive",
        headline,
        [
            section("bytes", "Where the bytes are", shares(parts), heading, _bars(found, rest)),
            section("tensors", "Tensors", _table("tensor", _TENSORS, lines)),
        ],
    )


def _bars(found: list[_Numbers], rest: tuple[str, int] | None) -> Markup:
    sizes = [
        (one.title, one.bytes, f"one-{place}")
        for place, one in enumerate(found, 1)
        if one.bytes is not None
    ]
    return bars(sizes, rest)


def _table(kind: str, columns: tuple[Column, ...], lines: list[Line]) -> Markup:
    return sortable(kind, f"Each {kind}, in the order of the file", columns, lines)


def _shown(numbers: Iterable[_Numbers], words: int) -> tuple[list[_Numbers], list[Line]]:
    """Lines, and what they are of without its values, which may be many."""
    found, lines = [], []
    for place, one in enumerate(numbers, 1):
        lines.append(_line(one, f"one-{place}", words))
        found.append(one._replace(values=None))
    return found, lines


def _tensors(archive: Archive) -> Iterator[_Numbers]:
    for entry in archive.entries():
        kept = "together" if entry.bytes is None else entry.coding
        known = [("coding", kept), ("entropy, bits a value", _entropy(entry.values))]
        yield _Numbers(entry.path, entry.values.shape, entry.values, entry.bytes, known)


def _constants(model: Any) -> Iterator[_Numbers]:
    uses, seen = Uses(model), set[int]()
    for stored in stored_constants(model):
        role, scale = uses.role(*stored.place), None
        tensor = model.subgraphs[stored.place[0]].tensors[stored.place[1]]
        steps = [] if tensor.quantization is None else tensor.quantization.scale
        if steps is not None and len(steps):
            scale = f"{number(min(steps))} to {number(max(steps))}"
            scale = f"{len(steps):,}, {scale}" if len(steps) > 1 else number(steps[0])
        # Words that hold several indices are no numbers to look at.
        packed = role == "weights" and stored.kind in ("int32", "uint8")
        values = None if packed else stored.values
        known = [("role", role), ("type", stored.kind), ("steps", scale)]
        if packed:
            known.append(("values", "indices in words, looked up where the file runs"))
        # Several constants may have their numbers in one place.
        size = None if tensor.buffer in seen else stored.bytes
        seen.add(tensor.buffer)
        yield _Numbers(stored.name, stored.shape, values, size, known)


def _line(one: _Numbers, place: str, words: int) -> Line:
    """A constant or a tensor as a line: what is known of it in words, then in numbers."""
    distinct = None if one.values is None else np.unique(one.values)
    shape = TIMES.join(map(str, one.shape)) or "scalar"
    cells = [
        word(one.title),
        *(said(value) for _, value in one.said[:words]),
        *(decimal(value) for _, value in one.said[words:2]),
        Cell(shape, math.prod(one.shape)),
        whole(None if distinct is None else int(distinct.size)),
        whole(one.bytes),
    ]
    known = [(term, number(v) if isinstance(v, float) else v) for term, v in one.said]
    known += [("shape", shape), ("values", None if distinct is None else f"{distinct.size:,}")]
    known.append(("bytes", "with others" if one.bytes is None else f"{one.bytes:,}"))
    told = tag("div", facts(known), _values(one))
    return Line(cells, tag("div", _picture(one), told, class_="panel"), place)


def _picture(one: _Numbers) -> Markup | None:
    if one.values is None or one.values.dtype == bool:
        return None
    label = f"Distribution of the {one.values.size:,} numbers of {one.title}"
    picture = distribution(one.values.astype("float32"), None, label, "numbers")
    return None if picture is None else tag("figure", picture)


def _values(one: _Numbers) -> Markup | None:
    if one.values is None:
        return None
    values, counts = np.unique(one.values, return_counts=True)
    if not 0 < values.size <= min(MAX_LEVELS, one.values.size // 2):
        return None
    lines = [
        (number(float(value), 6), f"{count:,}", percent(count, counts.sum()))
        for value, count in zip(values, counts, strict=True)
    ]
    table = plain_table("How many numbers have each", ("value", "numbers", "share"), lines)
    return folded(f"The {values.size:,} values", table)


def _entropy(values: np.ndarray) -> float | None:
    """Bits a value that an entropy coder needs."""
    _, counts = np.unique(values, return_counts=True)
    if not counts.size:
        return None
    shares = counts / counts.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))
