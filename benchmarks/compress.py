"""What `compress` keeps of a trained network: MLPerf Tiny's ResNet8 on CIFAR-10, all layers.

    python -m benchmarks.compress --model resnet8.h5 --data-dir DATA --seeds 2 --out results

The network is trained on for six epochs first, with flips and shifts, because our images are not quite
those that it was trained on; that is *float*. Each cell then gets `--epochs` more, and so does the float
control beside them: levels or a budget, with labels or from inputs alone. Rows are appended to
`compress.jsonl`, one a cell; a run that was stopped goes on where it was.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_qareg as qareg
from benchmarks import results
from examples.data import Images, augmented, load
from examples.study import Row, Study, at_least, written
from keras_qareg.cli.opening import load_model
from keras_qareg.compressing import compressed
from keras_qareg.options import Options
from keras_qareg.report import table

LOSS = "sparse_categorical_crossentropy"
CONTROL, CONTROL_RATE = "float, as many epochs more", 1e-3
CELLS: dict[str, dict[str, Any]] = {
    CONTROL: {},
    "4 levels, inputs alone": {"levels": 4},
    "4 levels": {"levels": 4},
    "16 levels, inputs alone": {"levels": 16},
    "16 levels": {"levels": 16},
    "49 kB .tflite": {"target_bytes": 49_000},
    "30 kB .tflite": {"target_bytes": 30_000},
    "24 kB archive": {"target_bytes": 24_000, "form": "archive"},
}
ALONE = "inputs alone"


class Batches(keras.utils.PyDataset):
    """Shuffled batches of pixels from 0 to 255, turned over and moved at random; with labels or not."""

    def __init__(self, data: Images, labels: bool, seed: int, batch_size: int = 64):
        super().__init__()
        self.data, self.labels, self.batch_size = data, labels, batch_size
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.data.labels) // self.batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        places = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        pixels = augmented(self.data.images[places].astype("float32"), self.random, 1 / 16)
        return (pixels, self.data.labels[places]) if self.labels else (pixels,)

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.data.labels))


def trained(model: keras.Model, data: Images, epochs: int, rate: float, seed: int) -> keras.Model:
    """A copy that was trained on with its labels, as any float network."""
    keras.utils.set_random_seed(seed)
    copied = qareg.strip(model)
    batches = Batches(data, labels=True, seed=seed)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    copied.compile(keras.optimizers.Adam(decay), LOSS, metrics=["accuracy"])
    copied.fit(batches, epochs=epochs, verbose=2)
    return copied


def distilled(
    student: keras.Model,
    teacher: keras.Model,
    batches: Batches,
    rate: float,
    epochs: int,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    weight: float = 1.0,
) -> None:
    """Trains a network on, taught by another (times `weight`), and by labels where batches have them."""
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    distiller = qareg.distill(student, teacher, weight=weight)
    distiller.compile(keras.optimizers.Adam(decay), LOSS if batches.labels else None)
    distiller.fit(batches, epochs=epochs, callbacks=[*callbacks], verbose=2)


def accuracy(model: keras.Model, data: Images) -> float:
    """Percent of the images that a network knows."""
    outputs = model.predict(data.images.astype("float32"), batch_size=500, verbose=0)
    return 100 * float(np.mean(outputs.argmax(axis=1) == data.labels))


def row(name: str, model: keras.Model, parts: tuple[Images, Images], arguments: Any) -> Row:
    """The figures of a cell."""
    train, test = parts
    seed, epochs = arguments.seed, arguments.epochs
    if name == CONTROL:
        found = trained(model, train, epochs, arguments.rate or CONTROL_RATE, seed)
        return {"accuracy": accuracy(found, test)}
    batches = Batches(train, labels=ALONE not in name, seed=seed)
    options = Options(
        **CELLS[name], epochs=epochs, learning_rate=arguments.rate, seed=seed, verbose=2
    )
    done = compressed(model, batches, options=options)
    print(done, flush=True)
    steps = {stage.name: stage.results.get("divergence") for stage in done.stages}
    return {"accuracy": accuracy(done.model, test), "bytes": bytes_of(done.model), "steps": steps}


def bytes_of(model: keras.Model) -> dict[str, int]:
    """Bytes of the smallest `.tflite`, of the same gzipped, and of the archive."""
    with tempfile.TemporaryDirectory() as folder:
        archive = qareg.export.save_archive(model, Path(folder) / "model.qareg")
        found = {"archive": archive.stat().st_size}
        file = Path(folder) / "model.tflite"
        report = qareg.export.litert(model, file, "smallest")
        found |= {"smallest": report.bytes, "gzip": report.gzip_bytes}
    return found


def tabulate(rows: list[Row]) -> str:
    """A line a cell, and number of epochs and first learning rate: means over seeds."""
    lines = []
    keys = dict.fromkeys((row["cell"], row["epochs"], row["rate"]) for row in rows)
    for key in sorted(keys, key=lambda key: [*CELLS].index(key[0])):
        same = [row for row in rows if (row["cell"], row["epochs"], row["rate"]) == key]
        name, epochs, rate = key
        sizes = [row.get("bytes") or {} for row in same]
        bytes_ = [
            f"{max(size[form] for size in sizes):,}" if sizes[0] else ""
            for form in ("smallest", "archive")
        ]
        apart = [{"to float": row["accuracy"] - row["float"]} for row in same]
        figures = (written(same, "accuracy"), written(apart, "to float"))
        settings = (str(epochs), f"{rate:g}" if rate else "", str(len(same)))
        lines.append((name, *settings, *figures, *bytes_))
    header = ("", "epochs", "first rate", "seeds", "test accuracy", "to float")
    return table((*header, ".tflite", "archive"), lines)


def add_options(parser: argparse.ArgumentParser, cells: Iterable[str], epochs: int) -> None:
    """The options of studies that train a network for CIFAR-10 on, in several cells."""
    parser.add_argument("--data-dir", type=Path, required=True, help="cifar10-train.zip, -test.zip")
    parser.add_argument("--epochs", type=at_least(1), default=epochs)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", nargs="+", choices=[*cells], default=[*cells])


def run(
    name: str,
    start: Path,
    parts: tuple[Images, Images],
    arguments: argparse.Namespace,
    row: Callable[..., Row],
    tabulate: Callable[[list[Row]], str],
) -> None:
    """Computes the cells of such a study, each once, from the float network in a file."""
    model = load_model(start)
    model.compile("sgd", LOSS, metrics=["accuracy"])
    known = accuracy(model, parts[1])

    def compute(cell: Row) -> Row:
        settings = argparse.Namespace(**{**vars(arguments), "seed": cell["seed"]})
        return row(cell["cell"], model, parts, settings)

    # Another float network has other cells: its accuracy tells it.
    study = Study(arguments.out / f"{name}.jsonl", ("cell", "seed", "epochs", "rate", "float"))
    common = {"epochs": arguments.epochs, "rate": arguments.rate, "float": known}
    cells = [
        {"cell": cell, "seed": s, **common} for s in arguments.seeds for cell in arguments.cells
    ]
    study.tabulated(cells, compute, "accuracy", tabulate)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="ResNet8 as its authors gave it")
    parser.add_argument("--float", type=Path, help="the same, trained on already; kept there")
    add_options(parser, CELLS, epochs=10)
    parser.set_defaults(rate=None)  # that of `compress`, by levels
    arguments = parser.parse_args()
    parts = load("cifar10", arguments.data_dir)
    start = arguments.float or arguments.out / "resnet8_float.keras"
    if not start.exists():
        trained(load_model(arguments.model), parts[0], 6, 3e-4, seed=0).save(start)
    run("compress", start, parts, arguments, row, tabulate)


if __name__ == "__main__":
    main()
