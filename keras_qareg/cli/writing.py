"""The files that commands write: all of them complete, or none."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_qareg import settings
from keras_qareg.cli.messages import CommandError
from keras_qareg.cli.options import input_shapes
from keras_qareg.cli.paths import check_output


def say(text: Any) -> None:
    """Prints something at once, also into a pipe."""
    print(text, flush=True)


def conversion_of(options: argparse.Namespace) -> dict[str, Any]:
    """What else `export.litert` takes.

    Raises:
        CommandError: If what is asked for cannot be had, which is said before anything long begins.
    """
    if options.npu is not None and (options.weights != "int8" or options.data is None):
        raise CommandError(
            "Expected --weights int8 and --data with --npu, which takes full-integer files. Received: "
            f"--weights {options.weights}{'' if options.data else ' without --data'}"
        )
    return {
        "decode_once": not options.decode_each_run,
        "input_shape": input_shapes(options),
        "input_type": options.input_type,
        "output_type": options.output_type,
        "npu": options.npu,
    }


def check_files(options: argparse.Namespace) -> None:
    """Whether a `.tflite`, and what else is asked for of it, may be written.

    Raises:
        CommandError: If one may not.
    """
    check_output(options.out, options.source, force=options.force, suffix=".tflite")
    source = (".cc", ".h") if options.c_array else ()
    for suffix in (*source, *([".html"] if options.report else [])):
        check_output(options.out.with_suffix(suffix), options.source, force=options.force)


def write_litert(
    model: Any,
    inputs: Any,
    options: argparse.Namespace,
    conversion: dict[str, Any],
    *,
    weights: str | None = None,
    plan: Any = None,
    check: Callable[[int, int], None] = lambda size, float_bytes: None,
) -> list[Any]:
    """Writes a `.tflite`, its C++ source and its page where they are asked for: all files, or none.

    Args:
        model: The model.
        inputs: Inputs that calibrate, or `None`.
        options: The words of the command line.
        conversion: What `conversion_of` made of them.
        weights: The form of file; `None`: the one of `--weights`.
        plan: Its plan, for the page, or `None`.
        check: Raises where so many bytes are too many, of so many as float32.

    Returns:
        An `ExportReport`, a `CArray` if there is C++ source, and what to say of the page.
    """
    from keras_qareg.export.litert.c_array import c_array
    from keras_qareg.export.litert.convert import litert
    from keras_qareg.report import html

    out, form = options.out, weights or options.weights
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as folder:
        report = litert(model, Path(folder) / out.name, form, inputs, **conversion)
        check(report.bytes, report.float_bytes or report.bytes)
        files = [report.path]
        made: list[Any] = [dataclasses.replace(report, path=out)]
        if options.c_array:
            source = c_array(report.path)
            files += [source.source, source.header]
            moved = {"source": out.with_suffix(".cc"), "header": out.with_suffix(".h")}
            made.append(dataclasses.replace(source, **moved))
        if options.report:
            page = html(model, report.path.with_suffix(".html"), export_report=made[0], plan=plan)
            files.append(page)
            made.append(f"{out.with_suffix('.html')}: {page.stat().st_size:,} bytes")
        for file in files:
            file.replace(out.parent / file.name)
    return made


def write_archive(model: Any, out: Path, check: Callable[[int, int], None]) -> tuple[int, int, str]:
    """Writes an archive, once it is known to be small enough and to be the model.

    Args:
        model: The model.
        out: Where to.
        check: As in `write_litert`.

    Returns:
        Its bytes, those of its weights as float32, and the proof.
    """
    from keras_qareg.export.archive.archive import save_archive
    from keras_qareg.export.verification import verify
    from keras_qareg.models import strip

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as folder:
        draft = save_archive(model, Path(folder) / out.name)
        size = draft.stat().st_size
        float_bytes = 4 * sum(math.prod(weight.shape) for weight in strip(model).weights)
        check(size, float_bytes)
        proof = verify(model, draft)
        draft.replace(out)
    return size, float_bytes, proof


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes JSON in one step. Numbers that are none, which JSON does not have, become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    settings.write(path, f"{text}\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
