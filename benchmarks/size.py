"""Bytes of one model in every form, against the number of levels.

    python -m benchmarks.size --out results

A CNN of 283,000 weights for 28x28 images, its kernels drawn from a Laplace distribution, shared with
each `table`: on a grid (`"even"`), and by k-means, rounded to int8 or not. Compares the float32 file,
the same file gzipped and by zstd (what TensorFlow Model Optimization's clustering comes to), full-
integer int8, our forms, TFLite Micro's, the archive, and the entropy bound: bits a weight by the
frequencies of the levels, and all else as float32.
"""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import keras_qareg as qareg
from benchmarks import results
from keras_qareg.report import summary

BATCH_SAMPLES = 64
FILES = ("float32", "int8", "auto", "smallest", "codebook", "tflm", "tflm int8")


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


def row(model: keras.Model, levels: int, table: str, folder: Path) -> dict[str, Any]:
    """Bytes of all forms of one model."""
    shared = qareg.share_weights(model, levels, table=table)
    images = np.random.default_rng(1).normal(size=(BATCH_SAMPLES, 28, 28, 1)).astype("float32")
    found: dict[str, Any] = {"levels": levels, "table": table}
    for weights in FILES:
        data = images if "int8" in weights else None
        report = qareg.export.litert(shared, folder / "model.tflite", weights.split()[0], data)
        found[weights] = report.bytes
        if weights == "float32":
            found |= {"gzip": report.gzip_bytes, "zstd": report.zstd_bytes}
        if report.time_ratio is not None:
            found[f"{weights} time"] = report.time_ratio
    archive = qareg.export.save_archive(shared, folder / "model.qareg")
    found["archive"] = archive.stat().st_size
    found["bound"] = summary(shared).entropy_bytes
    return found


FORMS = (FILES[0], "gzip", "zstd", *FILES[1:], "archive", "bound")
TIMED = ("auto", "smallest", "codebook", "int8")
HEADER = ("levels", *FORMS, *(f"{form} time" for form in TIMED))


def line_of(found: dict[str, Any]) -> tuple[str, ...]:
    """Bytes of a model, and the time of a run as a share of the float32 file's."""
    name = f"{found['levels']}, {found['table']}"
    name += ", normalized" if found["normalized"] else ""
    times = (f"{found[f'{form} time']:.2f}" for form in TIMED)
    return name, *(f"{found[form]:,}" for form in FORMS), *times


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 16, 64])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for normalized in (False, True):
            model = network(normalized)
            for table in ("even", "int8", "float32"):
                for levels in arguments.levels:
                    found = row(model, levels, table, Path(folder))
                    rows.append({**found, "normalized": normalized})
                    print(json.dumps(rows[-1]), flush=True)
    results.save(arguments.out, "size", rows, HEADER, [line_of(r) for r in rows])
    plain = [r for r in rows if r["table"] == "even" and not r["normalized"]]
    series = {form: [(r["levels"], r[form]) for r in plain] for form in FORMS}
    results.draw(arguments.out, "size", series, "levels", "bytes")


if __name__ == "__main__":
    main()
