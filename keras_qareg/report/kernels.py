"""The kernels of a model on the page: a table, and the distribution and the values of each."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_qareg.numerics.codebook import Codebook
from keras_qareg.plans import PlannedKernel
from keras_qareg.report.figures import distribution
from keras_qareg.report.markup import DASH, TIMES, Markup, joined, name, number, tag
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
    sortable,
    whole,
    word,
)
from keras_qareg.summaries import Looked, Row, Summary

_COLUMNS = (
    Column("Kernel", number=False),
    Column("Shape", wide=True),
    Column("Weights", wide=True),
    Column("Levels"),
    Column("Grid", number=False, wide=True),
    Column("Bits a weight"),
    Column("Relative error", wide=True),
    Column("Bytes as float32", wide=True),
    Column("Bytes packed"),
)
_LOSS = Column("Loss", wide=True)


class Elsewhere(NamedTuple):
    """What a plan and a file say of a kernel; `None` where there is none, or it has no such kernel."""

    planned: PlannedKernel | None = None
    form: Any = None


def kernel_line(kernel: Looked, elsewhere: Elsewhere, planned: bool, place: str) -> Line:
    """A kernel as a line of the table.

    Args:
        kernel: The kernel.
        elsewhere: What else is known of it.
        planned: Whether there is a column of losses.
        place: What links to it are to.
    """
    row = kernel.row
    levels = Cell(DASH if row.levels is None else row.counted_levels, row.levels)
    cells = [
        word(row.path),
        Cell(_shape(row), _weights(row)),
        whole(_weights(row)),
        levels,
        said(DASH if row.levels is None else "yes" if row.on_grid else "no"),
        Cell(f"{row.entropy:.2f}", row.entropy),
        decimal(row.relative_error),
        whole(row.float_bytes),
        whole(row.packed_bytes),
    ]
    if planned:
        cells.append(decimal(None if elsewhere.planned is None else elsewhere.planned.loss, 2))
    return Line(cells, _more(kernel, elsewhere), place)


def kernels_section(lines: list[Line], planned: bool) -> Markup:
    """The table of all kernels."""
    columns = [*_COLUMNS, *([_LOSS] if planned else [])]
    table = sortable("kernel", "Each kernel, in the order of the model", columns, lines)
    return section("kernels", "Kernels", table)


def bytes_of_kernels(summary: Summary, places: list[str]) -> Markup:
    """Where the bytes of a model are."""
    sizes = [
        (row.path, row.packed_bytes, place) for row, place in zip(summary.rows, places, strict=True)
    ]
    left_out = None
    if summary.left_out:
        names = [part for path in summary.left_out for part in (", ", name(path))][1:]
        left_out = tag("p", "Not named as kernels are (", tag("code", "weights"), "): ", *names)
    rest = ("other weights: biases and normalization", summary.other_bytes)
    return joined(
        tag(
            "p",
            f"All weights take {summary.packed_bytes:,} bytes as packed indices with tables: "
            f"{percent(summary.packed_bytes, summary.float_bytes)} of the {summary.float_bytes:,} "
            "bytes as float32.",
        ),
        bars(sizes, rest if summary.other_bytes else None),
        left_out,
    )


def _more(kernel: Looked, elsewhere: Elsewhere) -> Markup:
    row, book = kernel.row, kernel.book
    before, after = kernel.before, None if book is None else book.weights
    if before is None and after is None:
        before = np.asarray(ops.convert_to_numpy(ops.cast(kernel.variable, "float32")))
    picture = distribution(before, after, _description(row, before, book))
    values = None if book is None else _values(book)
    return tag(
        "div",
        tag("figure", picture) if picture is not None else None,
        tag("div", facts(_facts(row, elsewhere)), values),
        class_="panel",
    )


def _facts(row: Row, elsewhere: Elsewhere) -> list[tuple[str, Any]]:
    planned, form = elsewhere
    known: list[tuple[str, Any]] = [
        ("shape", _shape(row)),
        ("weights", f"{_weights(row):,}"),
        ("levels", "float" if row.levels is None else row.counted_levels),
        ("whole multiples of a step", None if row.levels is None else _yes(row.on_grid)),
        ("entropy", f"{row.entropy:.2f} bits a weight"),
        (
            "relative error",
            None if row.relative_error is None else number(row.relative_error),
        ),
        ("bytes as float32", f"{row.float_bytes:,}"),
        ("bytes packed", f"{row.packed_bytes:,}"),
        ("bytes by an entropy coder", f"{row.entropy_bytes:,}"),
    ]
    if planned is not None:
        levels = "float" if planned.levels is None else planned.levels
        known.append(("levels in the plan", levels))
        known.append(("loss that it causes", number(planned.loss, 2)))
    if form is not None:
        known.append(("in the file", f"{form.form}, {form.bytes:,} bytes"))
    return known


def _values(book: Codebook) -> Markup:
    """The table of a codebook."""
    if book.centroids.ndim == 1:
        values, counts = np.unique(book.weights, return_counts=True)
        title, head = f"The {values.size} values", "value"
        shown = [number(value, 6) for value in values]
    elif book.grid is not None and book.grid[0].shape[1] == 1:
        codes, steps = book.grid
        counts, shown = book.counts, [str(code) for code in codes[:, 0]]
        ends = (
            f"{number(np.abs(steps).min(initial=np.inf))} to {number(np.abs(steps).max(initial=0))}"
        )
        title, head = f"The {codes.size} whole numbers, times steps from {ends}", "whole number"
    else:
        channels, size = book.tables.shape[1], book.group_size
        each = f"Each of {channels:,} channels"
        if size > 1:
            each = f"Each of {-(-channels // size):,} groups of {size:,} channels"
        return tag("p", f"{each} has a table of its own.", class_="quiet")
    lines = [
        (value, f"{count:,}", percent(count, counts.sum()))
        for value, count in zip(shown, counts, strict=True)
    ]
    return folded(
        title, plain_table("How many weights have each", (head, "weights", "share"), lines)
    )


def _description(row: Row, before: np.ndarray | None, book: Codebook | None) -> str:
    """What the figure shows, in words."""
    said = f"Distribution of the {_weights(row):,} weights of {row.path}"
    if before is not None and before.size:
        said += f", from {number(float(before.min()))} to {number(float(before.max()))}"
    if book is None:
        return said
    values, counts = np.unique(book.weights, return_counts=True)
    most = int(counts.argmax())
    after = f"{values.size:,} different values from {number(float(values[0]))} to "
    after += f"{number(float(values[-1]))}, most often {number(float(values[most]))}"
    return f"{said}{' before; after, ' if before is not None else ', '}{after}"


def _weights(row: Row) -> int:
    return math.prod(row.shape)


def _shape(row: Row) -> str:
    return TIMES.join(map(str, row.shape))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
