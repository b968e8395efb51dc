r"""Full-integer files whose ranges were learned: MLPerf Tiny's ResNet8 on CIFAR-10, all layers.

    python -m benchmarks.integer --float resnet8_float.keras --authors resnet8_int8.tflite \
        --data-dir DATA --out results

Each cell trains the float network on for `--epochs`, taught by it and by labels, with 8-bit activations
and with kernels of 8 bits, or of 16 or 4 values. Beside it stand the file of its calibration alone; the
post-training file of the same kernels trained without ranges; TFMOT's `quantize_model`, trained as long
with labels by tf_keras (extra `tfmot`) in a process of its own; and the file that the authors of the
network made of it, which saw none of our images. LiteRT runs the files on all test images. Rows are
appended to `integer.jsonl`, one a cell; a run that was stopped goes on where it was.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_qareg as qareg
from benchmarks import results
from benchmarks.compress import Batches, accuracy, add_options, distilled, run
from benchmarks.pareto import litert_accuracy, sizes
from benchmarks.pareto_peers import trained_by_tfmot
from examples.data import Images, load
from examples.study import Row, written
from keras_qareg.models.selection import wrappers
from keras_qareg.report import table

# Values a kernel; `None` are 8 bits. What has little to mend trains at less than the rate.
TFMOT, AUTHORS = "TFMOT quantize_model", "the authors' file"
LEVELS: dict[str, int | None] = {"8 bits": None, "16 values": 16, "4 values": 4}
SHARES = {"8 bits": 0.3, "16 values": 0.3}
CELLS = (*LEVELS, TFMOT, AUTHORS)
SAMPLES = 512


def trained(
    student: keras.Model, teacher: keras.Model, data: Images, rate: float, arguments: Any
) -> None:
    """Trains a network on, with all that it has."""
    callbacks: list[keras.callbacks.Callback] = []
    if any(isinstance(layer, qareg.layers.QuantizationAware) for layer in student.layers):
        callbacks.append(qareg.callbacks.PenaltySchedule(warmup_epochs=0, power=12))
    if any(isinstance(layer, qareg.layers.ActivationRange) for layer in student.layers):
        callbacks.append(qareg.callbacks.FreezeBatchNormalization(after=0.8))
    batches = Batches(data, labels=True, seed=arguments.seed)
    distilled(student, teacher, batches, rate, arguments.epochs, callbacks)


def prepared(model: keras.Model, levels: int | None, samples: np.ndarray) -> keras.Model:
    """What trains, before its activations have ranges."""
    if levels is None:
        return qareg.strip(model)
    student = qareg.quantization_aware(model, qareg.regularizers.Sine(levels))
    for layer in wrappers(student):
        layer.place_centroids()
    qareg.recalibrate(student, samples)
    return student


def filed(model: keras.Model, samples: np.ndarray | None, data: Images) -> dict[str, Any]:
    """The full-integer file of a model: its bytes, its accuracy, how it agrees with Keras."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        report = qareg.export.litert(model, path, "int8", samples)
        found = litert_accuracy(path.read_bytes(), data)
    agreement = getattr(report, "agreement", None)
    equal = None if agreement is None else agreement.equal
    return {"accuracy": found, "bytes": report.bytes, "gzip": report.gzip_bytes, "equal": equal}


def row(name: str, model: keras.Model, parts: tuple[Images, Images], arguments: Any) -> Row:
    """The figures of a cell."""
    train, test = parts
    if name == TFMOT:
        return by_tfmot(model, test, arguments)
    if name == AUTHORS:
        return measured(arguments.authors.read_bytes(), test)
    keras.utils.set_random_seed(arguments.seed)
    order = np.random.default_rng(0).permutation(len(train.images))[: 8 * SAMPLES]
    many = train.images[order].astype("float32")
    samples = many[:SAMPLES]
    student = qareg.quantize_activations(prepared(model, LEVELS[name], many), samples)
    rate = SHARES.get(name, 1.0) * arguments.rate
    found: Row = {"learning_rate": rate, "calibrated": filed(student, None, test)}
    trained(student, model, train, rate, arguments)
    found["keras"] = accuracy(student, test)
    found["trained"] = filed(student, None, test)
    found["accuracy"] = found["trained"]["accuracy"]
    plain = prepared(model, LEVELS[name], many)
    if LEVELS[name] is not None:
        trained(plain, model, train, rate, arguments)
        qareg.recalibrate(plain, many)
    found["without ranges"] = {"keras": accuracy(plain, test), **filed(plain, samples, test)}
    return found


def by_tfmot(model: keras.Model, test: Images, arguments: Any) -> Row:
    """The figures of the peer."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("epochs", "rate", "seed")
        settings = {name: getattr(arguments, name) for name in names}
        settings["data-dir"] = arguments.data_dir.resolve()
        found = trained_by_tfmot("tfmot_quantizing", model, Path(folder), settings)
        content = (Path(folder) / "int8.tflite").read_bytes()
    return {"keras": found["keras"], **measured(content, test)}


def measured(content: bytes, test: Images) -> Row:
    """The figures of a file that another tool made."""
    known = litert_accuracy(content, test)
    return {"accuracy": known, "trained": {"accuracy": known, **sizes(content)}}


def tabulate(rows: list[Row]) -> str:
    """A line a cell: means over seeds."""
    lines = []
    for name in CELLS:
        same = [row for row in rows if row["cell"] == name]
        if same:
            others = [
                f"{np.mean([row[way]['accuracy'] for row in same]):.2f}" if way in same[0] else ""
                for way in ("calibrated", "without ranges")
            ]
            size = max(row["trained"]["bytes"] for row in same)
            means = (written(same, "accuracy"), *others)
            before = written(same, "float")
            if name == AUTHORS:  # made after training, of a float network of theirs
                means, before = ("", "", means[0]), ""
            lines.append((name, *means, before, str(len(same)), f"{size:,}"))
    header = ("kernels", "trained", "calibrated alone", "post-training", "float", "seeds", "bytes")
    return table(header, lines)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--float", type=Path, required=True, help="ResNet8, trained on already")
    add_options(parser, CELLS, epochs=5)
    parser.add_argument("--authors", type=Path, help="resnet8_int8.tflite of MLPerf Tiny")
    arguments = parser.parse_args()
    if arguments.authors is None:
        arguments.cells = [cell for cell in arguments.cells if cell != AUTHORS]
    parts = load("cifar10", arguments.data_dir)
    run("integer", arguments.float, parts, arguments, row, tabulate)


if __name__ == "__main__":
    main()
