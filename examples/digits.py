"""Scikit-learn's digits: quantization-aware regularizers against k-means, from training to .tflite.

    python examples/digits.py                                  # the demo: one seed, 4 levels
    python examples/digits.py --seeds 3 --levels 2 4 8         # the study of docs/evidence.md

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

import keras_qareg as qareg
from examples.study import Row, Study, at_least, mean_and_deviation
from examples.training import (
    BASELINE,
    EPOCHS,
    METHODS,
    TUNING_EPOCHS,
    accuracy,
    digits,
    share_and_tune,
    train,
)
from keras_qareg.report import table

KEYS = ("method", "levels", "seed", "epochs", "tuning_epochs")


def cells(arguments: argparse.Namespace) -> Iterator[Row]:
    """All cells, seed by seed."""
    epochs = {"epochs": arguments.epochs, "tuning_epochs": arguments.tuning_epochs}
    for seed, levels, method in product(range(arguments.seeds), arguments.levels, METHODS):
        yield {"method": method, "levels": levels, "seed": seed, **epochs}


def study(arguments: argparse.Namespace) -> keras.Model:
    """Runs and tabulates every cell; returns the best tuned model of the fewest levels."""
    train_data, test = digits()
    plain: dict[int, keras.Model] = {}  # the baseline of a seed is trained once
    best: tuple[float, Any] = (-1.0, None)

    def compute(cell: Row) -> Row:
        nonlocal best
        seed, levels, method = cell["seed"], cell["levels"], cell["method"]
        print(f"{method}, {levels} levels, seed {seed}: {arguments.epochs} epochs", flush=True)
        if method != BASELINE:
            regularizer = getattr(qareg.regularizers, method)(levels)
            model = train(train_data, seed, regularizer, arguments.epochs)
        else:
            if seed not in plain:
                plain[seed] = train(train_data, seed, epochs=arguments.epochs)
            model = plain[seed]
        tuning = arguments.tuning_epochs
        shared, figures = share_and_tune(model, levels, train_data, test, tuning)
        if levels == min(arguments.levels) and figures["tuned"] > best[0]:
            best = (figures["tuned"], shared)
        return {**figures, **file_sizes(shared, arguments.out)}

    # The best model is wanted too: all cells are run.
    rows = Study(arguments.out / "digits.jsonl", KEYS, anew=True)
    rows.tabulated(cells(arguments), compute, "tuned", tabulate)
    return best[1]


def file_sizes(model: keras.Model, folder: Path) -> dict[str, int]:
    """Bytes of the model as .tflite and gzipped, where the backend can export it."""
    if keras.backend.backend() != "tensorflow":
        return {}
    report = qareg.export.litert(model, folder / "cell.tflite")
    report.path.unlink()
    return {"tflite": report.bytes, "gzip": report.gzip_bytes}


def tabulate(rows: list[Row]) -> str:
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


def export_best(model: keras.Model, path: Path) -> None:
    """Writes the best model as `.tflite`, and compares its accuracy in LiteRT with that in Keras."""
    from keras_qareg.export.litert.runtime import run_litert

    _, (images, labels) = digits()
    print(qareg.export.litert(model, path, representative_data=images))
    (scores,) = run_litert(path, images)
    in_litert = 100.0 * float((scores.argmax(-1) == labels).mean())
    in_keras = accuracy(model, images, labels)
    print(f"  accuracy: {in_litert:.2f} in LiteRT, {in_keras:.2f} in Keras")
    if in_litert != in_keras:
        raise SystemExit("The exported file does not have the accuracy of the model.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seeds", type=at_least(1), default=1, help="how many, from 0 (default: 1)"
    )
    parser.add_argument("--levels", type=at_least(2), nargs="+", default=[4], help="default: 4")
    parser.add_argument("--epochs", type=at_least(1), default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--tuning-epochs", type=at_least(0), default=TUNING_EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("output"), help="default: output")
    arguments = parser.parse_args()

    best = study(arguments)
    print(f"Test accuracies are in percent, means of {arguments.seeds} seed(s).\n")
    qareg.plots.weight_histograms(best).savefig(arguments.out / "histograms.png")
    qareg.plots.penalty_curves().savefig(arguments.out / "penalties.png")
    if keras.backend.backend() == "tensorflow":
        export_best(best, arguments.out / "best.tflite")
    print(f"Figures, raw results and the model are in {arguments.out}/")


if __name__ == "__main__":
    main()
