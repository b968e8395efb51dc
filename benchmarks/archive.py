"""How near archives are to the entropy of their indices and below it, and how fast they are.

    python -m benchmarks.archive --out results
    python -m benchmarks.archive --models resnet8.h5 ad01.h5 vww_96.h5 mobilenet --levels 4 16 64 \
        --data-dir DATA --out results

Kernels of one table are shared by k-means: those of trained models in files of Keras, or of `mobilenet`
(that of `keras.applications`, half as wide, trained here on CIFAR-10's images), in `archive_models`;
and, to time, one of independent normal weights and one whose rows and columns differ in spread
(`archive`). Of each, the bytes of its indices with `effort="fast"` and `"best"` (without the table of
values) over their zeroth-order entropy. Whole files are also written with `fold=True`, and are compared
with zstd -19 and gzip -9 of all weights. Times are of one core, in megabytes of float32 weights a
second, and relative to zstd -19 and gzip -9 of the same float32 values in the same rounds, which is what
a compressed download of a plain file costs.
"""

import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import zstandard

import keras_qareg as qareg
from benchmarks import results
from examples.data import load
from keras_qareg.cli.opening import load_model
from keras_qareg.export.archive.kernels import EFFORTS, decode_kernel, encode_kernel
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.report import table

KINDS = ("normal", "spread")
EPOCHS = 6


def seconds(function: Callable[[], Any]) -> float:
    began = time.process_time()  # of one core, whatever else runs
    function()
    return time.process_time() - began


def weights_of(kind: str, size: int) -> np.ndarray:
    """A square kernel."""
    random = np.random.default_rng(0)
    side = int(size**0.5)
    weights = random.normal(size=(side, side)).astype("float32")
    if kind == "spread":
        rows, columns = random.lognormal(0, 0.5, (2, side)).astype("float32")
        weights *= rows[:, None] * columns
    return weights


def indices_bytes(book: Codebook, effort: str) -> int:
    """The bytes of a kernel without its table of values, which is not what is measured."""
    return len(encode_kernel(book, effort)) - book.table_bytes


def timed(kind: str, levels: int, size: int, rounds: int) -> dict[str, Any]:
    """Sizes and times of one kernel."""
    weights = weights_of(kind, size)
    book = Codebook.nearest(weights, kmeans(weights, levels))
    raw = book.weights.tobytes()
    ways: dict[str, tuple[Callable[[], bytes], Callable[[bytes], Any]]] = {
        effort: (
            lambda effort=effort: encode_kernel(book, effort),
            lambda section: decode_kernel(section, book.indices.shape).weights,
        )
        for effort in EFFORTS
    }
    ways["zstd -19"] = (lambda: zstandard.compress(raw, 19), zstandard.decompress)
    ways["gzip -9"] = (lambda: gzip.compress(raw, 9), gzip.decompress)
    small = Codebook(book.centroids, book.indices[:64, :64])
    decode_kernel(encode_kernel(small, "best"), (64, 64))  # numba compiles
    found: dict[str, Any] = {"kind": kind, "levels": levels, "weights": weights.size}
    for name, (encode, _) in ways.items():
        coded = encode()
        found[name] = {"bytes": len(coded), "encode_s": seconds(encode), "coded": coded}
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (_, decode) in ways.items():
            times[name].append(seconds(lambda d=decode, n=name: d(found[n]["coded"])))
    for name in ways:
        found[name]["decode_s"] = float(np.median(times[name]))
        if name in EFFORTS:
            decoded = ways[name][1](found[name]["coded"])
            if not np.array_equal(decoded, book.weights):
                raise RuntimeError("The decoded weights are other ones")
            found[name]["to_entropy"] = (
                indices_bytes(book, name) * 8 / (book.indices.size * book.entropy)
            )
        del found[name]["coded"]
    return found


def mobilenet(data_dir: Path | None) -> keras.Model:
    """A MobileNet of half the width, trained on CIFAR-10: flips, no more than a few epochs."""
    keras.utils.set_random_seed(0)
    train, _ = load("cifar10", data_dir)
    turned = keras.layers.RandomFlip("horizontal")
    body = keras.applications.MobileNet((32, 32, 3), alpha=0.5, weights=None, classes=10)
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, body(turned(inputs)))
    steps = EPOCHS * -(-len(train.labels) // 128)
    decay = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(decay), "sparse_categorical_crossentropy")
    pixels = train.images.astype("float32") / 127.5 - 1.0
    model.fit(pixels, train.labels, batch_size=128, epochs=EPOCHS, verbose=2)
    return keras.Model(body.inputs, body.outputs)


def whole(name: str, model: keras.Model, levels: int) -> dict[str, Any]:
    """A trained model with one table a kernel: its indices, and its files."""
    shared = qareg.share_weights(model, levels, scale="kernel", verbose=0)
    books = qareg.codebooks(shared).values()
    entropy = sum(book.indices.size * book.entropy / 8 for book in books)
    found: dict[str, Any] = {"model": name, "levels": levels, "entropy_bytes": entropy}
    raw = b"".join(np.asarray(weight).tobytes() for weight in qareg.strip(shared).weights)
    found |= {"zstd -19": len(zstandard.compress(raw, 19)), "gzip -9": len(gzip.compress(raw, 9))}
    with tempfile.TemporaryDirectory() as folder:
        for effort in EFFORTS:
            found[effort] = sum(indices_bytes(book, effort) for book in books) / entropy
            for fold in (False, True):
                file = qareg.export.save_archive(
                    shared, Path(folder) / "model.qareg", effort=effort, fold=fold
                )
                found[f"{effort} file{', folded' * fold}"] = size = file.stat().st_size
                if effort == EFFORTS[0] and not fold:
                    found["file/zstd"], found["file/gzip"] = (
                        size / found[peer] for peer in ("zstd -19", "gzip -9")
                    )
    return found


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a kernel and effort."""
    lines = [_line(row, effort) for row in rows for effort in EFFORTS]
    header = ("kernel", "levels", "effort", "bytes/entropy", "/zstd -19", "/gzip -9", "encode MB/s")
    more = ("decode MB/s", "encode time/zstd -19", "decode time/zstd", "decode time/gzip")
    return table(header + more, lines)


def tabulate_models(rows: list[dict[str, Any]]) -> str:
    """A line a model and number of levels."""
    header = [name for name in rows[0] if name not in results.ORIGIN]
    return table(header, [tuple(_shown(row[name]) for name in header) for row in rows])


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 16, 64, 256])
    parser.add_argument("--weights", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--data-dir", type=Path, help="cifar10-train.zip, -test.zip, for mobilenet")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.models:
        for name in arguments.models:
            model = mobilenet(arguments.data_dir) if name == "mobilenet" else load_model(Path(name))
            for levels in arguments.levels:
                rows.append(whole(Path(name).stem, model, levels))
                print(json.dumps(rows[-1]), flush=True)
        results.save(arguments.out, "archive_models", rows, tabulate_models)
        return
    for kind in KINDS:
        for levels in arguments.levels:
            rows.append(timed(kind, levels, arguments.weights, arguments.rounds))
            print(json.dumps(rows[-1]), flush=True)
    results.save(arguments.out, "archive", rows, tabulate)


def _line(row: dict[str, Any], effort: str) -> tuple[str, ...]:
    its, peers, size = row[effort], (row["zstd -19"], row["gzip -9"]), 4e-6 * row["weights"]
    return (
        row["kind"],
        str(row["levels"]),
        effort,
        f"{its['to_entropy']:.4f}",
        *(f"{its['bytes'] / peer['bytes']:.3f}" for peer in peers),
        *(f"{size / its[key]:.0f}" for key in ("encode_s", "decode_s")),
        f"{its['encode_s'] / peers[0]['encode_s']:.3f}",
        *(f"{its['decode_s'] / peer['decode_s']:.2f}" for peer in peers),
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value < 2 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
