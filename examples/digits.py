"""Scikit-learn's digits: quantization-aware regularizers against k-means, from training to .tflite.

    python examples/digits.py                                  # the demo: one seed, 4 levels
    python examples/digits.py --seeds 3 --levels 2 4 8         # the study of the README

Every method trains the same small CNN for the same number of epochs, shares its weights, and tunes
the centroids. Results go to `digits.jsonl` in the output folder, one line a cell as it is done; the
best model goes to `best.tflite`, and its accuracy there is compared with Keras.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np
from keras import layers

import keras_qareg as qareg
from examples.data import Images
from examples.data import load as load_images
from examples.study import Row, Study, mean_and_deviation
from examples.training import FallingRate, accuracy
from keras_qareg.report import summary, table

Data = tuple[np.ndarray, np.ndarray]
BASELINE = "k-means"
METHODS = {
    BASELINE: None,
    "Sine": qareg.regularizers.Sine,
    "Cosine": qareg.regularizers.Cosine,
    "NearestSquared": qareg.regularizers.NearestSquared,
    "NearestExponential": qareg.regularizers.NearestExponential,
}
EPOCHS, TUNING_EPOCHS = 40, 10
LEARNING_RATE, TUNING_RATE = 1e-3, 3e-3


def load() -> tuple[Data, Data]:
    """Images `(n, 8, 8, 1)` in [0, 1] and labels: three quarters to train, one quarter to test."""
    train, test = load_images("digits")
    return arrays(train), arrays(test)


def arrays(images: Images) -> Data:
    """The images in [0, 1] and the labels."""
    return images.pixels(np.zeros(1, "float32")), images.labels


def network() -> keras.Model:
    """Two convolutions and two dense layers: about 41,000 weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(60, activation="relu", name="dense"),
            layers.Dense(10, name="logits"),
        ],
        name="digits",
    )


def fit(model: keras.Model, data: Data, epochs: int, optimizer: Any, *callbacks: Any) -> None:
    """Trains with a learning rate that falls in the end."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callbacks = (FallingRate(), *callbacks)
    model.fit(*data, epochs=epochs, batch_size=32, verbose=0, callbacks=list(callbacks))


def train(
    data: Data,
    seed: int,
    regularizer: Any = None,
    epochs: int = EPOCHS,
    schedule: Any = None,
    centroid_rate: float = 1.0,
    straight_through: bool = True,
) -> keras.Model:
    """The network trained from a seed, with a regularizer or without; by default, all defaults.

    `centroid_rate` multiplies the learning rate of the centroids.
    """
    keras.utils.set_random_seed(seed)
    model, optimizer = network(), keras.optimizers.Adam(LEARNING_RATE)
    if regularizer is None:
        fit(model, data, epochs, optimizer)
        return model
    if centroid_rate != 1.0:
        rate = centroid_rate * LEARNING_RATE
        optimizer = qareg.optimizers.with_centroid_optimizer(optimizer, rate)
    model = qareg.quantization_aware(model, regularizer, straight_through=straight_through)
    fit(model, data, epochs, optimizer, schedule or qareg.callbacks.PenaltySchedule())
    return model


def share_and_tune(
    model: keras.Model, levels: int, data: Data, test: Data, tuning_epochs: int = TUNING_EPOCHS
) -> tuple[keras.Model, dict[str, Any]]:
    """The shared and tuned model, and its accuracies before and after tuning."""
    shared = qareg.share_weights(model, levels)
    figures = {"float": accuracy(model, *test), "shared": accuracy(shared, *test)}
    fit(shared, data, tuning_epochs, keras.optimizers.Adam(TUNING_RATE))
    figures |= {"tuned": accuracy(shared, *test), "entropy": summary(shared).entropy}
    return shared, figures


def cells(arguments: argparse.Namespace) -> Iterator[Row]:
    """All cells, seed by seed."""
    for seed, levels, method in product(range(arguments.seeds), arguments.levels, METHODS):
        yield {"method": method, "levels": levels, "seed": seed}


def study(arguments: argparse.Namespace) -> tuple[list[Row], keras.Model]:
    """Runs every cell; returns their figures and the best tuned model of the fewest levels."""
    train_data, test = load()
    plain: dict[int, keras.Model] = {}  # the baseline of a seed is trained once
    best: tuple[float, Any] = (-1.0, None)

    def compute(cell: Row) -> Row:
        nonlocal best
        seed, levels, kind = cell["seed"], cell["levels"], METHODS[cell["method"]]
        if kind is not None:
            model = train(train_data, seed, kind(levels), arguments.epochs)
        else:
            if seed not in plain:
                plain[seed] = train(train_data, seed, epochs=arguments.epochs)
            model = plain[seed]
        tuning = arguments.tuning_epochs
        shared, figures = share_and_tune(model, levels, train_data, test, tuning)
        if levels == min(arguments.levels) and figures["tuned"] > best[0]:
            best = (figures["tuned"], shared)
        return {**figures, **file_sizes(shared, arguments.out)}

    path = arguments.out / "digits.jsonl"
    path.unlink(missing_ok=True)  # the best model is wanted too: all cells are run
    rows = Study(path, ("method", "levels", "seed")).run(cells(arguments), compute, "tuned")
    return rows, best[1]


def file_sizes(model: keras.Model, folder: Path) -> dict[str, int]:
    """Bytes of the model as .tflite and gzipped, where the backend can export it."""
    if keras.backend.backend() != "tensorflow":
        return {}
    report = qareg.export.litert(model, folder / "cell.tflite")
    report.path.unlink()
    return {"tflite": report.bytes, "gzip": report.gzip_bytes}


def results_table(rows: list[Row]) -> str:
    """Means over the seeds, a line a cell."""
    header = (
        "levels, method",
        "float",
        "shared",
        "tuned",
        "ratio",
        "bits/weight",
        "tflite",
        "gzip",
    )
    lines = []
    for levels in sorted({row["levels"] for row in rows}):
        baseline = 0.0
        for method in METHODS:
            same = [r for r in rows if r["levels"] == levels and r["method"] == method]
            mean = {key: mean_and_deviation(same, key)[0] for key in _AVERAGED}
            baseline = mean["tuned"] if method == BASELINE else baseline
            figures = [f"{mean[key]:.2f}" for key in ("float", "shared", "tuned")]
            ratio = f"{mean['tuned'] / baseline:.4f}"
            sizes = [f"{mean[key]:,.0f}" for key in ("tflite", "gzip")]
            lines.append((f"{levels} {method}", *figures, ratio, f"{mean['entropy']:.3f}", *sizes))
    return table(header, lines)


_AVERAGED = ("float", "shared", "tuned", "entropy", "tflite", "gzip")


def export_best(model: keras.Model, out: Path) -> None:
    """Writes the best model, and compares its accuracy in LiteRT with that in Keras."""
    from keras_qareg.export.litert.runtime import run_litert

    _, (images, labels) = load()
    print(qareg.export.litert(model, out / "best.tflite", representative_data=images))
    (scores,) = run_litert(out / "best.tflite", images)
    in_litert = 100.0 * float((scores.argmax(-1) == labels).mean())
    in_keras = accuracy(model, images, labels)
    print(f"  accuracy: {in_litert:.2f} in LiteRT, {in_keras:.2f} in Keras")
    if in_litert != in_keras:
        raise SystemExit("The exported file does not have the accuracy of the model.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 (default: 1)")
    parser.add_argument("--levels", type=int, nargs="+", default=[4], help="default: 4")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--tuning-epochs", type=int, default=TUNING_EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("output"), help="default: output")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    rows, best = study(arguments)
    text = results_table(rows)
    (arguments.out / "digits.txt").write_text(text + "\n")
    print(f"\nTest accuracy in percent, means of {arguments.seeds} seed(s)\n\n{text}\n")
    qareg.plots.weight_histograms(best).savefig(arguments.out / "histograms.png", dpi=120)
    qareg.plots.penalty_curves().savefig(arguments.out / "penalties.png", dpi=120)
    if keras.backend.backend() == "tensorflow":
        export_best(best, arguments.out)
    print(f"Figures, raw results and the model are in {arguments.out}/")


if __name__ == "__main__":
    main()
