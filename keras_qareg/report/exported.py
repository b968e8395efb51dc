"""What an `ExportReport` says of a `.tflite` file, on the page."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras_qareg.export.litert.forms import KernelForm
from keras_qareg.export.litert.proof import ExportReport
from keras_qareg.export.litert.sections import Sections
from keras_qareg.report.figures import bar
from keras_qareg.report.markup import DASH, Markup, number, tag
from keras_qareg.report.parts import (
    Cell,
    Column,
    Line,
    facts,
    said,
    section,
    shares,
    sortable,
    whole,
    word,
)

_MEANING = {
    "weights": "kernels, as numbers or packed indices",
    "tables": "values of codebooks, factors and steps",
    "biases": "what is added to each channel",
    "constants": "others, such as shapes",
    "names": "of inputs, outputs and tensors",
    "metadata": "entries of metadata",
    "records": "operators, tensors and their places",
}
# Decibels at which a bar is full; 20 more are a tenth of the difference.
_FULL = 100.0
_FORMS = (
    Column("Constant", number=False),
    Column("Form", number=False),
    Column("Values", wide=True),
    Column("Bytes"),
    Column("Exact", number=False, wide=True),
    Column("XNNPACK", number=False),
    Column("Why not smaller", number=False, wide=True),
)


def shares_of(sections: Sections) -> Markup:
    """Where the bytes of a `.tflite` are."""
    sizes = dataclasses.asdict(sections)
    return shares([(title, _MEANING[title], size) for title, size in sizes.items()])


def headline(report: ExportReport) -> list[tuple[str, Any]]:
    """The first things to know of a file."""
    size = f"{report.bytes:,} bytes"
    if report.float_bytes is not None:
        size += f", {report.bytes / report.float_bytes:.3f} of the float32 file"
    found: list[tuple[str, Any]] = [
        (f"file, {report.weights}", size),
        (
            "largest difference from Keras",
            f"{number(report.max_output_difference)}, of outputs up to {number(report.output_range)}",
        ),
    ]
    if report.time_ratio is not None:
        found.append(("time of a run", f"{report.time_ratio:.2f} of the float32 file's"))
    return found


def runs_section(report: ExportReport) -> Markup:
    """What runs where."""
    batches = "any" if report.batch_size is None else str(report.batch_size)
    known = [
        ("runs from runtime version", report.runtime_version),
        ("examples at once", batches),
        ("after gzip", f"{report.gzip_bytes:,} bytes"),
        ("after zstd", f"{report.zstd_bytes:,} bytes"),
        ("outputs", None if report.agreement is None else str(report.agreement)),
        ("TFLite Micro", report.micro or None),
        ("arena", None if report.arena_bytes is None else f"{report.arena_bytes:,} bytes"),
        ("NPU", report.npu or None),
    ]
    lines = [
        Line(
            [
                word(kernel.path or kernel.name),
                said(kernel.form),
                Cell("many") if kernel.levels is None else whole(kernel.levels),
                whole(kernel.bytes),
                said(_exact(kernel)),
                said(_runs(report, kernel.name)),
                said(kernel.reason or DASH),
            ]
        )
        for kernel in report.kernels
    ]
    if not lines:
        lines = [
            Line([word(title), said(report.weights), whole(values), Cell(DASH), *[Cell(DASH)] * 3])
            for title, values in report.distinct_values.items()
        ]
    table = sortable("form", "Each constant of two or more axes in the file", _FORMS, lines)
    return section("runs", "What runs where", facts(known), table)


def differences_section(report: ExportReport) -> Markup | None:
    """How far the file is from Keras behind each layer; `None` where that is not known."""
    if not report.differences:
        return None
    columns = (
        Column("Layer", number=False),
        Column("Decibels"),
        Column("Difference", number=False),
    )
    lines = [
        Line(
            [
                word(part.layer),
                Cell("equal", math.inf)
                if math.isinf(part.decibels)
                else Cell(f"{part.decibels:.1f}", round(part.decibels, 6)),
                # A long bar is a large difference: what is equal has none.
                Cell(bar(max(0.0, _FULL - part.decibels), _FULL), -part.decibels),
            ]
        )
        for part in report.differences
    ]
    told = (
        "The signal-to-noise ratio behind each layer that the file has, on a few samples: 20 decibels "
        f"more are a tenth of the difference. The longer a bar, the further from Keras; {_FULL:g} "
        "decibels have none."
    )
    table = sortable("layer", "Each layer, the furthest from Keras first", columns, lines)
    return section("differences", "Differences by layer", tag("p", told), table)


def _exact(kernel: KernelForm) -> str:
    if kernel.exact or kernel.path is None:
        return "yes" if kernel.exact else DASH
    return "no" if kernel.reason.startswith("rounded") else "to rounding"


def _runs(report: ExportReport, title: str) -> str:
    inside = report.delegated.get(title)
    return DASH if inside is None else "yes" if inside else "no"
