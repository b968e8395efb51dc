"""The page: one file of HTML with all that is known of a model or of a file."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import keras

from keras_qareg import __version__
from keras_qareg.export.archive.container import is_archive
from keras_qareg.export.litert.inspection import is_litert
from keras_qareg.export.litert.proof import ExportReport
from keras_qareg.files import check_target
from keras_qareg.layers import Weights
from keras_qareg.models.reading import every_kernel
from keras_qareg.models.selection import check_built
from keras_qareg.plans import Plan
from keras_qareg.report.exported import differences_section, headline, runs_section, shares_of
from keras_qareg.report.files import Content, of_archive, of_litert
from keras_qareg.report.kernels import (
    Elsewhere,
    bytes_of_kernels,
    kernel_line,
    kernels_section,
)
from keras_qareg.report.markup import Markup, escaped, joined, name, number, tag
from keras_qareg.report.parts import Line, facts, percent, section
from keras_qareg.report.planned import plan_section
from keras_qareg.settings import write
from keras_qareg.summaries import Row, Summary, looked_at, summed

_FOLDER = Path(__file__).parent
_WORDS = (
    (
        "level",
        "A value that weights of a kernel have. With 16 levels an index of 4 bits says which.",
    ),
    (
        "packed",
        "Indices of a whole number of bits, and the table of the values that they stand for.",
    ),
    ("grid", "The values are whole multiples of a step, which integer formats hold exactly."),
    ("entropy", "Bits a weight of an ideal entropy coder; 32 where a kernel is not quantized."),
    ("relative error", "Squares of what quantization changed, over those of the weights before."),
)
_POLICY = "default-src 'none'; img-src data:; style-src {style}; script-src {script}"


def html(
    model: keras.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    reference: keras.Model | None = None,
    *,
    export_report: ExportReport | None = None,
    plan: Plan | None = None,
    weights: Weights = None,
) -> Path:
    """Writes a page that shows where the bytes of a model are, and what quantization made of it.

    The page is one file, which loads nothing else, and is the same for the same model. It has a table of
    the kernels, which can be sorted, the distribution of the weights of each and its values, and what a
    plan and an export say.

    Args:
        model: A built model, as in `summary`; or the path of a `.tflite` file or of an archive, of which
            the page shows the constants or tensors.
        path: The file to write, ending in `.html`, in a folder that exists. It is replaced.
        reference: The model before, with the same layers, whose weights and errors are shown. `None`
            (default): what the layers remember.
        export_report: What `export.litert` returned for this model: the page then shows the bytes of
            the file, what runs where, and how far the file is from Keras behind each layer.
        plan: What `allocate` returned for this model, or one with the same kernels: its curve, and the
            sensitivity of each kernel.
        weights: Which weights of plain layers are kernels, as in `codebooks`.

    Returns:
        The path of the page.

    Raises:
        ValueError: If `path` has another ending or no folder; `model` is unbuilt, has no kernels or is a
            file of another kind, or one that is damaged; `reference` has other kernels;
            `export_report` or `plan` are of another model, or come with a file.
        FileNotFoundError: If `model` is the path of no file.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
    >>> shared = qareg.share_weights(model, levels=4)
    >>> page = html(shared, Path(tempfile.mkdtemp()) / "report.html", model)
    >>> "Kernels" in page.read_text(encoding="utf-8")
    True

    See also: https://keras-qareg.github.io/keras-qareg/report.html
    """
    path = check_target(path, ".html")
    if isinstance(model, keras.Model):
        title = model.name
        content = _of_model(model, reference, export_report, plan, weights)
    else:
        title = Path(model).name
        beside = {"reference": reference, "export_report": export_report, "plan": plan}
        content = _of_file(Path(model), [key for key, value in beside.items() if value is not None])
    text = _framed(title, content)
    write(path, text)
    return path


def _of_file(path: Path, beside: Sequence[str]) -> Content:
    if beside:
        raise ValueError(
            f"Expected `{beside[0]}` with a Keras model. Received: `{beside[0]}` with the file {path}"
        )
    if is_archive(path):
        return of_archive(path)
    if is_litert(path):
        return of_litert(path)
    raise ValueError(
        f"Expected a Keras model, a .tflite file or an archive of keras_qareg. Received: {path}, which "
        "is none of these files. Open a model with keras.saving.load_model first."
    )


def _of_model(
    model: keras.Model,
    reference: keras.Model | None,
    export_report: ExportReport | None,
    plan: Plan | None,
    weights: Weights,
) -> Content:
    check_built(model)
    paths = [path for path, *_ in every_kernel(model, weights, left=True)]
    if not paths:
        raise ValueError(
            f"Expected a model with kernels. Received: model '{model.name}', which has none. Kernels "
            "with names of their own go into `weights`."
        )
    rated = {} if plan is None else {row.path: row for row in plan.rows}
    held = {} if export_report is None else {form.path: form for form in export_report.kernels}
    planned = _matched("plan", rated, paths, model)
    forms = _matched("export_report", {p: f for p, f in held.items() if p}, paths, model)
    rows: list[Row] = []
    lines: list[Line] = []
    places = [f"kernel-of-{number}" for number in range(1, len(paths) + 1)]
    for kernel, place in zip(looked_at(model, reference, weights), places, strict=True):
        elsewhere = Elsewhere(planned.get(kernel.row.path), forms.get(kernel.row.path))
        _check_size(kernel.row, elsewhere)
        lines.append(kernel_line(kernel, elsewhere, plan is not None, place))
        rows.append(kernel.row)
    summary = summed(model, tuple(rows), weights)
    parts = (
        _bytes_section(summary, places, export_report),
        kernels_section(lines, plan is not None),
        None if plan is None else plan_section(plan),
        None if export_report is None else differences_section(export_report),
        None if export_report is None else runs_section(export_report),
    )
    shown = [*(part for part in parts if part is not None), _words()]
    kind = "Keras model" if export_report is None else f"Keras model, {export_report.path.name}"
    return Content(kind, _headline(summary, export_report, plan), shown)


def _matched(
    argument: str, found: Mapping[Any, Any], paths: Sequence[str], model: keras.Model
) -> dict[str, Any]:
    """What is known of kernels by the paths that they have in this model.

    Keras leaves the name of the model out of them where a Sequential one was loaded.
    """
    matched = {}
    for known, value in found.items():
        same = [path for path in paths if path == known] or [
            path for path in paths if known.endswith(f"/{path}") or path.endswith(f"/{known}")
        ]
        if len(same) != 1 or same[0] in matched:
            raise ValueError(
                f"Expected `{argument}` of model '{model.name}', with kernels among {list(paths)}. "
                f"Received: one with '{known}'"
            )
        matched[same[0]] = value
    return matched


def _check_size(row: Row, elsewhere: Elsewhere) -> None:
    planned, size = elsewhere.planned, math.prod(row.shape)
    if planned is not None and planned.weights != size:
        raise ValueError(
            f"Expected `plan` of this model, with {size:,} weights in '{row.path}'. Received: "
            f"{planned.weights:,}"
        )


def _headline(
    summary: Summary, export_report: ExportReport | None, plan: Plan | None
) -> list[tuple[str, Any]]:
    share = percent(summary.packed_bytes, summary.float_bytes)
    first = [] if export_report is None else headline(export_report)
    last = [] if plan is None else [("loss of the plan", number(plan.loss, 2))]
    return [
        *first,
        ("weights packed", f"{summary.packed_bytes:,} bytes, {share} of float32"),
        ("weights by an entropy coder", f"{summary.entropy_bytes:,} bytes"),
        ("quantized kernels", f"{summary.entropy:.2f} bits a weight"),
        *last,
    ]


def _bytes_section(
    summary: Summary, places: list[str], export_report: ExportReport | None
) -> Markup:
    parts: list[Any] = [bytes_of_kernels(summary, places)]
    if export_report is not None and export_report.sections is not None:
        parts = [
            shares_of(export_report.sections),
            tag("h3", "Weights of the model"),
            *parts,
        ]
    return section("bytes", "Where the bytes are", *parts)


def _words() -> Markup:
    return section("words", "Words", facts(_WORDS, kind="words"))


def _framed(title: str, content: Content) -> str:
    style, script = (
        (_FOLDER / file).read_text(encoding="utf-8").strip() for file in ("page.css", "page.js")
    )
    links = [
        tag("li", tag("a", heading, href=f"#{place}"))
        for place, heading in (_place_of(part) for part in content.sections)
    ]
    frame = Template((_FOLDER / "page.html").read_text(encoding="utf-8"))
    return frame.substitute(
        title=escaped(title),
        name=name(title),
        kind=escaped(content.kind),
        policy=_POLICY.format(style=_hash(style), script=_hash(script)),
        style=style,
        script=script,
        links=joined(*links),
        headline=facts(content.headline, kind="tiles"),
        sections=joined(*content.sections),
        version=escaped(__version__),
    )


def _place_of(part: Markup) -> tuple[str, Markup]:
    """The place and the heading of a section."""
    place = part.split('id="', 1)[1].split('"', 1)[0]
    return place, Markup(part.split("</h2>", 1)[0].rsplit(">", 1)[1])


def _hash(text: str) -> str:
    """What a policy calls a script or a style: nothing else may run, whatever a name holds."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
