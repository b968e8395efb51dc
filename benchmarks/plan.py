"""Levels by budget against one number of levels for all kernels, at equal bytes.

    python -m benchmarks.plan --out results
    python -m benchmarks.plan --model resnet8.keras --data train.npz --test test.npz --out results

For each number of levels, a model is shared with it and measured: bytes of its file, divergence of its
outputs from those of the float model, recalibrated too, on inputs that the plan never saw, and accuracy.
Then `allocate` chooses for so many bytes, and its plan is measured the same way. All are recalibrated
on the same inputs. With `--epochs`, both are trained by `compress` instead, from the inputs alone.
Without `--model`, a network for digits is trained first.
"""

import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

import keras_qareg as qareg
from benchmarks import results
from examples import training
from keras_qareg.cli.opening import load_model
from keras_qareg.export.litert.convert import draft
from keras_qareg.numerics.divergence import add_up, divergence
from keras_qareg.report import table

CALIBRATION, TEST = 2048, 10_000
Data = tuple[np.ndarray, np.ndarray | None]


def outputs(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """What a model says of inputs."""
    return np.asarray(model.predict(inputs, batch_size=256, verbose=0))


def measured(
    model: keras.Model, levels: Any, form: str, data: np.ndarray, test: Data, epochs: int
) -> dict[str, Any]:
    """A row: what a model is worth that was shared and recalibrated, or trained."""
    reference = qareg.strip(model)
    qareg.recalibrate(reference, data[:CALIBRATION])
    if epochs:
        kept = shared = qareg.compress(model, data, levels=levels, epochs=epochs, seed=0, verbose=0)
    else:
        kept = qareg.share_weights(model, levels)
        shared = qareg.strip(kept)
        qareg.recalibrate(shared, data[:CALIBRATION])
    books = [pair for each in (kept, shared) for pair in qareg.codebooks(each).items()]
    size = len(draft(shared, books, form).content)
    right, got = outputs(reference, test[0]), outputs(shared, test[0])
    found = {
        "bytes": size,
        "divergence": divergence(right, got, "probabilities" if add_up(right) else "values"),
    }
    if test[1] is not None:
        found["accuracy"] = 100 * float((got.argmax(-1) == test[1]).mean())
    return found


def digits() -> tuple[keras.Model, Data, Data]:
    """A network for digits with probabilities as outputs, and its data."""
    train, test = training.digits()
    logits = training.digits_network()
    training.fit(logits, train, training.EPOCHS, seed=0)
    model = keras.Sequential([*logits.layers, keras.layers.Softmax()], name="digits")
    model.build((None, *train[0].shape[1:]))
    return model, train, test


def opened(path: Path | None) -> Data | None:
    """Inputs, and labels where there are any, of a `.npz`."""
    if path is None:
        return None
    arrays = np.load(path)
    inputs = arrays["x"][:TEST].astype("float32")
    return inputs, arrays["y"][:TEST].reshape(-1) if "y" in arrays else None


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a plan, and one a number of levels beside it."""
    lines = [
        (
            row["levels"],
            f"{row['bytes']:,}",
            f"{row['divergence']:.4f}",
            f"{row['accuracy']:.2f}" if "accuracy" in row else "-",
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    return table(("levels", "bytes", "divergence", "accuracy", "s"), lines)


def main() -> None:
    parser = results.parser(__doc__ or "")
    parser.add_argument("--model", type=Path, help="a .keras or .h5 file; default: digits")
    parser.add_argument("--data", type=Path, help="a .npz with x: inputs to plan with")
    parser.add_argument("--test", type=Path, help="a .npz with x and perhaps y, to measure on")
    parser.add_argument("--levels", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--form", default="smallest")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of compress; default: none")
    given = parser.parse_args()
    data, test = opened(given.data), opened(given.test)
    if given.model is None:
        model, data, test = digits()
    else:
        model = load_model(given.model)
    if data is None or test is None:
        parser.error("Expected --data and --test with --model.")
    rows, name = [], f"plan_{model.name}" + (f"_{given.epochs}_epochs" if given.epochs else "")
    for levels in given.levels:
        uniform = measured(model, levels, given.form, data[0], test, given.epochs)
        rows.append({"levels": str(levels), **uniform, "seconds": 0.0})
        began = time.perf_counter()
        plan = qareg.allocate(
            model, target_bytes=uniform["bytes"], weights=given.form, data=data[0], verbose=0
        )
        took = time.perf_counter() - began
        row = measured(model, plan, given.form, data[0], test, given.epochs)
        rows.append({"levels": f"plan at {levels}", **row, "seconds": took})
        print(rows[-2:], plan, sep="\n", flush=True)
        given.out.mkdir(parents=True, exist_ok=True)
        plan.plot().savefig(given.out / f"{name}_{levels}.png")
    results.save(given.out, name, rows, tabulate)


if __name__ == "__main__":
    main()
