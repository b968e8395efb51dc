"""Bytes of one model in every form, against the number of levels.

    python -m benchmarks.size --out results
    python -m benchmarks.size --models resnet8.h5 kws.keras --levels 4 16 --wnq --out results

A CNN of 283,000 weights for 28x28 images, its kernels drawn from a Laplace distribution; or trained
models in files of Keras (`size_models.txt`). Kernels are shared with each of `--tables`, and with
`--wnq` by WNQ of 2 bits with uniform levels. Compares the float32 file, the same gzipped and by zstd
(what TensorFlow Model Optimization's clustering comes to), full-integer int8 and what Vela makes of it
where it is installed, our forms, TFLite Micro's, the archive, and the entropy bound: bits a weight by
the frequencies of the levels, and all else as float32. In brackets: the bytes of a file as a multiple
of its limit (`benchmarks.limits`).
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import keras_qareg as qareg
from benchmarks import results
from benchmarks.limits import Limits
from keras_qareg.cli.opening import load_model
from keras_qareg.cli.options import TABLES
from keras_qareg.report import summary, table

SAMPLES = 64
FILES = ("float32", "int8", "auto", "smallest", "codebook", "tflm", "tflm int8")
WNQ = "WNQ"
ACCELERATOR = "ethos-u55-128"


def network(normalize: bool = False) -> keras.Model:
    """Two convolutions and two dense layers: 283,000 weights, with kernels as after training."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((28, 28, 1))]
    for filters in (32, 64):
        stack.append(layers.Conv2D(filters, 3, strides=2, use_bias=not normalize))
        stack += [layers.BatchNormalization()] if normalize else []
        stack.append(layers.ReLU())
    stack += [layers.Flatten(), layers.Dense(114, activation="relu"), layers.Dense(10)]
    model = keras.Sequential(stack, name="size")
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "kernel":
            scale = 1 / math.sqrt(2 * np.prod(weight.shape[:-1]))
            weight.assign(random.laplace(scale=scale, size=weight.shape))
        elif weight.name in ("gamma", "moving_variance"):
            weight.assign(random.uniform(0.5, 2.0, weight.shape))
        else:
            weight.assign(0.05 * random.normal(size=weight.shape))
    return model


def shared_model(model: keras.Model, levels: int, kind: str) -> keras.Model:
    """The model with few values a kernel, or a channel."""
    if kind == WNQ:
        return qareg.wnq(model, int(math.log2(levels)), skip=(), uniform=True)
    return qareg.share_weights(model, levels, table=kind)


def inputs(model: keras.Model) -> np.ndarray:
    """Random inputs of a model; where it takes any size, of 32."""
    shape = tuple(size or 32 for size in model.inputs[0].shape[1:])
    return np.random.default_rng(1).normal(size=(SAMPLES, *shape)).astype("float32")


def row(model: keras.Model, levels: int, kind: str, folder: Path) -> dict[str, Any]:
    """Bytes of all forms of one model, and their limits."""
    shared = shared_model(model, levels, kind)
    data = inputs(model)
    found: dict[str, Any] = {"levels": levels, "kind": kind}
    path, limits = folder / "model.tflite", None
    for form in FILES:
        samples = data if "int8" in form else None
        npu = ACCELERATOR if form == "int8" else None
        report = qareg.export.litert(shared, path, form.split()[0], samples, npu=npu)
        limits = limits or Limits(shared, path.read_bytes())  # the first is the float32 file
        found[form] = report.bytes
        found[f"{form} limit"] = limits.bytes(form, report)
        if form == "float32":
            found |= {"gzip": report.gzip_bytes, "zstd": report.zstd_bytes}
        if form == "int8":
            found["vela"] = report.npu_bytes
        if report.time_ratio is not None:
            found[f"{form} time"] = report.time_ratio
    archive = qareg.export.save_archive(shared, folder / "model.qareg")
    found["archive"] = archive.stat().st_size
    found["bound"] = summary(shared).entropy_bytes
    return found


FORMS = (FILES[0], "gzip", "zstd", "int8", "vela", *FILES[2:], "archive", "bound")
TIMED = ("auto", "smallest", "codebook", "int8")
HEADER = ("model, levels", *FORMS, *(f"{form} time" for form in TIMED))


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a model, kind and number of levels."""
    return table(HEADER, [line_of(row) for row in rows])


def line_of(found: dict[str, Any]) -> tuple[str, ...]:
    """Bytes of a model, and the time of a run as a share of the float32 file's."""
    times = (f"{found[f'{form} time']:.2f}" for form in TIMED)
    name = f"{found['model']}, {found['levels']} {found['kind']}"
    return name, *(_cell(found, form) for form in FORMS), *times


def _cell(found: dict[str, Any], form: str) -> str:
    if found[form] is None:
        return "-"
    limit = found.get(f"{form} limit")
    return f"{found[form]:,}" + (f" ({found[form] / limit:.2f})" if limit else "")


def draw(out: Path, name: str, rows: list[dict[str, Any]], forms: tuple[str, ...] = FORMS) -> None:
    """Writes `name.png`: bytes of the first model and kind against levels, a line a form."""
    first = [r for r in rows if r["kind"] == rows[0]["kind"] and r["model"] == rows[0]["model"]]
    series = {form: [(r["levels"], r[form]) for r in first] for form in forms if first[0][form]}
    results.draw(out, name, series, "levels", "bytes")


def models(files: list[Path]) -> Iterator[tuple[str, keras.Model]]:
    """Names and models: those of files, else our own network, plain and with BatchNormalization."""
    for file in files:
        yield file.stem, load_model(file)
    if not files:
        yield "size", network()
        yield "size, normalized", network(normalize=True)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 16, 64])
    parser.add_argument(
        "--models", type=Path, nargs="+", default=[], metavar="FILE", help="trained .h5 or .keras"
    )
    parser.add_argument("--tables", nargs="+", default=["even", "int8"], choices=TABLES)
    parser.add_argument("--wnq", action="store_true", help="also WNQ of 2 bits, uniform levels")
    arguments = parser.parse_args()
    name = "size_models" if arguments.models else "size"
    settings = [(kind, levels) for kind in arguments.tables for levels in arguments.levels]
    settings += [(WNQ, 4)] if arguments.wnq else []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label, model in models(arguments.models):
            for kind, levels in settings:
                found = {"model": label, **row(model, levels, kind, Path(folder))}
                rows.append(found)
                print(json.dumps(found), flush=True)
    results.save(arguments.out, name, rows, tabulate)
    draw(arguments.out, name, rows)


if __name__ == "__main__":
    main()
