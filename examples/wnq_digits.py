"""Scikit-learn's digits: weight normalization based quantization (WNQ) against LQ-Nets and float.

    python examples/wnq_digits.py                  # one seed, all but the first and last layer
    python examples/wnq_digits.py --seeds 3 --layers inner all --start scratch float

Every network has the same layers and is trained for the same number of epochs: in float, and with
kernels of 1, 2 and 3 bits (2 bits also with 2-bit activations), with normalization (WNQ) and without
(LQ-Nets). `--start float` lets quantized training go on from the float network, and then trains the
float one for as long again. Results go to `wnq_digits.jsonl` in the output folder, one line a cell as
it is done; the last 2-bit network goes to `wnq_best.tflite`, and its accuracy is compared with Keras.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np

import keras_qareg as qareg
from examples.digits import export_best
from examples.study import Row, Study, at_least, mean_and_deviation
from examples.training import EPOCHS, NORMALIZE, Data, accuracy, digits, digits_network, fit
from keras_qareg.report import summary, table

# Bits of weights and of activations; None is float.
BITS = ((1, None), (2, None), (3, None), (2, 2))
KEYS = ("start", "layers", "bits", "inputs", "method", "seed", "epochs")
SKIP = {"inner": ("first", "last"), "all": ()}


def cells(arguments: argparse.Namespace) -> list[Row]:
    """Every cell of the study; the float one of a seed and start comes first."""
    found = []
    for seed in range(arguments.seeds):
        for start in arguments.start:
            cell = {"seed": seed, "start": start, "epochs": arguments.epochs}
            found.append({**cell, "layers": "none", "method": "float", "bits": 32, "inputs": None})
            for layers in arguments.layers:
                for bits, inputs in BITS:
                    for method in NORMALIZE:
                        quantized = {"method": method, "bits": bits, "inputs": inputs}
                        found.append({**cell, "layers": layers, **quantized})
    return found


def figures_of(model: keras.Model, test: Data) -> dict[str, float]:
    """Test accuracy, and means over the quantized kernels."""
    report = summary(model)
    errors = [row.relative_error for row in report.rows if row.levels is not None]
    error = float(np.mean(errors)) if errors else 0.0
    return {"accuracy": accuracy(model, *test), "error": error, "entropy": report.entropy}


def study(arguments: argparse.Namespace) -> dict[str, keras.Model]:
    """Runs and tabulates every cell; returns the last 2-bit model of each method."""
    data, test = digits()
    kept = {}
    start = None

    def compute(cell: Row) -> Row:
        nonlocal start
        if cell["method"] == "float":
            keras.utils.set_random_seed(cell["seed"])
            start = digits_network()
            if cell["start"] == "float":
                fit(start, data, arguments.epochs, seed=cell["seed"])
            model = keras.models.clone_model(start)
            model.set_weights(start.get_weights())
        else:
            model = qareg.wnq(
                start,
                bits=cell["bits"],
                activation_bits=cell["inputs"],
                skip=SKIP[cell["layers"]],
                normalize=NORMALIZE[cell["method"]],
            )
        fit(model, data, arguments.epochs, seed=cell["seed"])
        if (cell["bits"], cell["inputs"]) == (2, None):
            kept[cell["method"]] = model
        return figures_of(model, test)

    # Models are wanted too: all cells are run.
    rows = Study(arguments.out / "wnq_digits.jsonl", KEYS, anew=True)
    rows.tabulated(cells(arguments), compute, "accuracy", tabulate)
    return kept


def label(cell: Row) -> str:
    """A cell in words."""
    if cell["method"] == "float":
        return f"from {cell['start']}, float"
    inputs = "" if cell["inputs"] is None else f", {cell['inputs']}-bit activations"
    bits = f"{cell['bits']}-bit {cell['method']}{inputs}"
    return f"from {cell['start']}, {cell['layers']} layers, {bits}"


def tabulate(rows: list[Row]) -> str:
    """Means over the seeds, a line a cell; the error's ratio is WNQ's to that of LQ-Nets."""
    header = ("network", "accuracy", "std", "to float", "rel. error", "ratio", "bits/weight")
    lines, reference, lq_error = [], 0.0, 0.0
    for name in dict.fromkeys(map(label, rows)):
        same = [row for row in rows if label(row) == name]
        means = {key: mean_and_deviation(same, key)[0] for key in ("accuracy", "error", "entropy")}
        spread = mean_and_deviation(same, "accuracy")[1]
        method, ratio = same[0]["method"], ""
        if method == "float":
            reference = means["accuracy"]
        elif method == "WNQ":
            ratio = f"{means['error'] / lq_error:.3f}"
        lq_error = means["error"]
        accuracies = (
            f"{means['accuracy']:.2f}",
            f"{spread:.2f}",
            f"{means['accuracy'] - reference:+.2f}",
        )
        lines.append((name, *accuracies, f"{means['error']:.4f}", ratio, f"{means['entropy']:.2f}"))
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seeds", type=at_least(1), default=1, help="how many, from 0 (default: 1)"
    )
    parser.add_argument("--epochs", type=at_least(1), default=EPOCHS, help=f"default: {EPOCHS}")
    parser.add_argument("--layers", nargs="+", choices=SKIP, default=["inner"])
    parser.add_argument("--start", nargs="+", choices=("scratch", "float"), default=["scratch"])
    parser.add_argument("--out", type=Path, default=Path("output"), help="default: output")
    arguments = parser.parse_args()

    kept = study(arguments)
    print(f"Test accuracies are in percent, means of {arguments.seeds} seed(s).\n")
    models = {"WNQ": kept["WNQ"], "LQ-Nets": kept["LQ-Nets"]}
    qareg.plots.weight_histograms(models).savefig(arguments.out / "wnq_histograms.png")
    if keras.backend.backend() == "tensorflow":
        export_best(kept["WNQ"], arguments.out / "wnq_best.tflite")
    print(f"Figures, raw results and the model are in {arguments.out}/")


if __name__ == "__main__":
    main()
