"""Accuracy and bytes of every way to few values a kernel, from one float network, in equal epochs.

    python -m benchmarks.accuracy --out results                                   # scikit-learn's digits
    python -m benchmarks.accuracy --float resnet8_float.keras --data-dir DATA --out results

The float network goes on training in each cell, on the same batches, by Adam whose rate falls to
nothing by a cosine: under a regularizer (the last tenth of the epochs tunes centroids), with assignments
anew, by DKM, as WNQ, with centroids alone, by `compress`; as *float* with no limit; and by
`cluster_weights` of TensorFlow Model Optimization, from a process that has tf_keras
(`benchmarks.tfmot_accuracy`), where `keras-qareg[tfmot]` is installed. Rows are appended to
`accuracy.jsonl`, one a cell; a run that was stopped goes on where it was. With `--validation`, they are
of a share of the training images, set aside: choose by these. Steps are timed beside those of the plain
network, in turn; `--steps` times them and no more, into `accuracy_steps.jsonl`.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_qareg as qareg
from benchmarks import results
from benchmarks.compress import bytes_of
from benchmarks.tfmot_accuracy import STARTS, Order
from benchmarks.timing import interleaved, ratios
from examples.data import Images, augmented, evenly, load
from examples.study import Row, Study, at_least, written
from examples.training import accuracy, digits_network
from examples.training import fit as fit_digits
from keras_qareg.cli.opening import load_model
from keras_qareg.compressing import compressed
from keras_qareg.options import Options
from keras_qareg.report import table

FLOAT, COMPRESS = "float", "compress"
# Its default, and others: with a teacher, unlike the same methods alone.
TAUGHT = {COMPRESS: "auto", "compress, DKM": "dkm", "compress, centroids alone": "kmeans"}
TFMOT = {start: f"TFMOT, {start}" for start in STARTS}
STRAIGHT = ", straight through"
KINDS = ("Sine", "Cosine", "NearestSquared", "NearestExponential")
KEYS = ("data", "cell", "levels", "seed", "epochs", "rate", "validation", "power")
# Of the schedule of the penalty.
POWER = 6.0
NEEDED = ("tf_keras", "tensorflow_model_optimization")


@dataclass(frozen=True)
class Way:
    """A way to few values.

    Attributes:
        start: From the float network and the levels to what trains.
        scheduled: Whether it trains under `PenaltySchedule`.
    """

    start: Callable[[keras.Model, int], keras.Model]
    scheduled: bool = False


def ways() -> dict[str, Way]:
    """All ways of ours but `compress`, which trains by itself."""

    def regularized(kind: str, straight: bool) -> Way:
        def start(model: keras.Model, levels: int) -> keras.Model:
            regularizer = getattr(qareg.regularizers, kind)(levels)
            return qareg.quantization_aware(model, regularizer, straight_through=straight)

        return Way(start, scheduled=True)

    def shared(trainable: str) -> Way:
        return Way(lambda model, k: qareg.share_weights(model, k, trainable=trainable, verbose=0))

    found = {FLOAT: Way(lambda model, levels: qareg.strip(model))}
    for kind in KINDS:
        found[kind] = regularized(kind, False)
        found[kind + STRAIGHT] = regularized(kind, True)
    found["DKM"] = regularized("DKM", True)
    found["re-assignment"] = shared("assignments")
    found["k-means, centroids tuned"] = shared("centroids")
    bits = {2: 1, 4: 2, 8: 3, 16: 4}
    return {**found, "WNQ": Way(lambda model, k: qareg.wnq(model, bits[k], skip=()))}


@dataclass(frozen=True)
class Task:
    """A float network, its data, and how it trains.

    Attributes:
        name: Of the data.
        model: The float network.
        train: Float32 images and labels.
        test: The images and labels that accuracies are of.
        augment: Whether images are turned over and moved.
        logits: Whether the network gives logits.
        batch_size: Examples a step.
    """

    name: str
    model: keras.Model
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    augment: bool
    logits: bool
    batch_size: int

    @property
    def loss(self) -> keras.losses.Loss:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=self.logits)

    def batches(self, seed: int) -> "Batches":
        return Batches(Order(*self.train, self.batch_size, self.augment, seed))

    def accuracy(self, model: keras.Model) -> float:
        """Percent of the test images."""
        parts = np.array_split(np.arange(len(self.test[1])), -(-len(self.test[1]) // 500))
        found = [accuracy(model, self.test[0][part], self.test[1][part]) for part in parts]
        return float(np.average(found, weights=[len(part) for part in parts]))

    def fit(
        self, model: keras.Model, epochs: int, rate: float, batches: "Batches", *callbacks: Any
    ) -> None:
        decay = keras.optimizers.schedules.CosineDecay(rate, max(1, epochs * len(batches)))
        model.compile(keras.optimizers.Adam(decay), self.loss)
        model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


class Batches(keras.utils.PyDataset):
    """What `fit` takes of an `Order`; it goes on with the next epoch where another `fit` stopped."""

    def __init__(self, order: Order):
        super().__init__()
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.order.batch(index)

    def on_epoch_end(self) -> None:
        self.order.shuffle()


def row(task: Task, name: str, levels: int, given: argparse.Namespace) -> Row:
    """The figures of a cell."""
    for start, its_name in TFMOT.items():
        if name == its_name:
            return by_tfmot(task, levels, start, given)
    keras.utils.set_random_seed(given.seed)
    batches = task.batches(given.seed)
    share = step_share(task, name, levels, given.rounds) if given.rounds else None
    if given.steps:
        return {"step": share}
    if name in TAUGHT:
        settings = {"epochs": given.epochs, "learning_rate": given.rate, "seed": given.seed}
        options = Options(levels=levels, method=TAUGHT[name], verbose=0, **settings)
        task.model.compile("sgd", task.loss)
        found = compressed(task.model, batches, options=options).model
    else:
        found = trained(task, ways()[name], levels, batches, given)
    figures = {"accuracy": task.accuracy(found), "step": share}
    return {**figures, "bytes": bytes_of(found) if given.files else None}


def trained(
    task: Task, way: Way, levels: int, batches: Batches, given: argparse.Namespace
) -> keras.Model:
    """What a way makes of the float network."""
    model = way.start(task.model, levels)
    if not way.scheduled:
        task.fit(model, given.epochs, given.rate, batches)
        return model
    tuning = min(given.epochs - 1, max(1, round(given.epochs / 10)))
    schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=0, power=given.power)
    task.fit(model, given.epochs - tuning, given.rate, batches, schedule)
    shared = qareg.share_weights(model, verbose=0)
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in shared.layers):
        # On images like those that it is trained on.
        some = evenly(task.train[0], 4096)
        random = np.random.default_rng(given.seed)
        qareg.recalibrate(shared, augmented(some, random, 1 / 16) if task.augment else some)
    if tuning:
        task.fit(shared, tuning, given.rate / 10, batches)
    return shared


def step_share(task: Task, name: str, levels: int, rounds: int) -> float:
    """A training step in units of the plain network's: the median of ratios of the same round."""
    model = (students() if name in TAUGHT else ways())[name].start(task.model, levels)
    for layer in model.layers:
        if isinstance(layer, qareg.layers.QuantizationAware):
            layer.place_centroids()
    if name in TAUGHT:
        model = qareg.distill(model, task.model)
    batch = task.batches(0)[0]

    def step_of(network: keras.Model) -> Callable[[], Any]:
        network.compile(keras.optimizers.Adam(1e-4), task.loss)
        return lambda: network.train_on_batch(*batch)

    pair = {FLOAT: step_of(qareg.strip(task.model)), name + " ": step_of(model)}
    return ratios(interleaved(pair, rounds, warm_up=5), FLOAT)[name + " "]["ratio"]


def students() -> dict[str, Way]:
    """What `compress` trains, for the time of its steps."""
    of, names = ways(), ("Sine" + STRAIGHT, "DKM", "k-means, centroids tuned")
    return {name: of[its] for name, its in zip(TAUGHT, names, strict=True)}


def by_tfmot(task: Task, levels: int, start: str, given: argparse.Namespace) -> Row:
    """The figures of a cell of TensorFlow Model Optimization, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        weights = {weight.path: np.asarray(weight) for weight in task.model.weights}
        np.savez(Path(folder) / "weights.npz", **weights)
        arrays = dict(zip(("x", "y", "test_x", "test_y"), (*task.train, *task.test), strict=True))
        np.savez(Path(folder) / "data.npz", **arrays)
        settings = {
            "levels": levels, "seed": given.seed, "rate": given.rate,
            "epochs": 0 if given.steps else given.epochs,
            "rounds": given.rounds, "batch_size": task.batch_size, "augment": task.augment,
            "logits": task.logits, "start": start,
        }  # fmt: skip
        (Path(folder) / "settings.json").write_text(json.dumps(settings))
        words = [sys.executable, "-m", "benchmarks.tfmot_accuracy", folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
        found: Row = json.loads((Path(folder) / "done.json").read_text())
    return found


def digits_task(given: argparse.Namespace) -> Task:
    """The network of `examples.digits`, trained for 40 epochs; kept in the folder of the rows."""
    parts = load("digits")
    if given.validation:
        parts = parts[0].split(given.validation)
    black = np.zeros(1, "float32")
    train, test = ((part.pixels(black), part.labels) for part in parts)
    file = given.out / f"accuracy_digits_{given.validation:g}.keras"
    if not file.exists():
        keras.utils.set_random_seed(0)
        model = digits_network()
        fit_digits(model, train, 40)
        file.parent.mkdir(parents=True, exist_ok=True)
        model.save(file)
    return Task("digits", keras.models.load_model(file), train, test, False, True, 32)


def file_task(given: argparse.Namespace) -> Task:
    """A float network for CIFAR-10's pixels from 0 to 255 that gives probabilities."""
    parts: tuple[Images, Images] = load("cifar10", given.data_dir)
    if given.validation:
        parts = parts[0].split(given.validation)
    train, test = ((part.images.astype("float32"), part.labels) for part in parts)
    model = load_model(given.float)
    return Task(given.float.stem, model, train, test, True, False, 64)


def cells(name: str, given: argparse.Namespace) -> Iterator[Row]:
    """All cells, those of the float network once."""
    common = {"data": name, "epochs": given.epochs, "rate": given.rate}
    common["validation"] = given.validation
    if given.power != POWER:  # rows of the default do not say so
        common["power"] = given.power
    for seed in given.seeds:
        for levels in given.levels:
            for cell in given.cells:
                if cell != FLOAT or levels == given.levels[0]:
                    its = 0 if cell == FLOAT else levels
                    yield {**common, "cell": cell, "levels": its, "seed": seed}


def tabulate(rows: list[Row]) -> str:
    """A line a cell, the float network and the most levels first: means over seeds."""
    lines, order = [], [*ways(), *TAUGHT, *TFMOT.values()]
    keys = {(row["data"], row["levels"], row["cell"]) for row in rows}
    for key in sorted(keys, key=lambda key: (key[0], -(key[1] or 999), order.index(key[2]))):
        same = [row for row in rows if (row["data"], row["levels"], row["cell"]) == key]
        sizes = [row.get("bytes") or {} for row in same]
        bytes_ = [
            f"{max(size[form] for size in sizes):,}" if all(form in size for size in sizes) else ""
            for form in ("smallest", "gzip", "archive")
        ]
        steps = [row["step"] for row in same if row.get("step")]  # not measured with `--rounds 0`
        step = f"{np.mean(steps):.2f}" if steps else ""
        name = f"{key[0]}, {key[1] or 'all'} levels, {key[2]}"
        lines.append((name, written(same, "accuracy"), str(len(same)), *bytes_, step))
    return table(("", "accuracy", "seeds", ".tflite", "gzipped", "archive", "step"), lines)


def tabulate_steps(rows: list[Row]) -> str:
    """A line a cell: means over seeds, and over numbers of levels."""
    lines = []
    for data, name in dict.fromkeys((row["data"], row["cell"]) for row in rows):
        same = [row for row in rows if (row["data"], row["cell"]) == (data, name)]
        lines.append((f"{data}, {name}", written(same, "step"), str(len(same))))
    return table(("", "time of a step", "rows"), lines)


def parsed(names: list[str]) -> argparse.Namespace:
    parser = results.parser(__doc__ or "")
    parser.add_argument(
        "--float", type=Path, help="a float network for CIFAR-10 (default: digits), told by name"
    )
    parser.add_argument("--data-dir", type=Path, help="cifar10-train.zip, cifar10-test.zip")
    parser.add_argument("--levels", type=at_least(2), nargs="+", default=[16, 8, 4, 2])
    parser.add_argument("--epochs", type=at_least(1), default=10)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--power", type=float, default=POWER, help="of the schedule")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", nargs="+", choices=names, default=names)
    parser.add_argument("--validation", type=float, default=0.0, help="share of training images")
    parser.add_argument(
        "--rounds", type=at_least(0), default=15, help="steps that are timed; 0: none"
    )
    parser.add_argument("--steps", action="store_true", help="time steps, and train nothing")
    parser.add_argument("--no-files", dest="files", action="store_false")
    found: argparse.Namespace = parser.parse_args()
    if found.steps and not found.rounds:
        parser.error("Expected --rounds of at least 1 with --steps. Received: --rounds 0")
    return found


def main() -> None:
    names = [*ways(), *TAUGHT]
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"Left out TFMOT: {', '.join(missing)} is not installed.", flush=True)
    else:
        names += TFMOT.values()
    given = parsed(names)
    task = file_task(given) if given.float else digits_task(given)
    name, say, text = "accuracy", "accuracy", tabulate
    if given.steps:
        name, say, text = "accuracy_steps", "step", tabulate_steps
    study = Study(given.out / f"{name}.jsonl", KEYS)

    def compute(cell: Row) -> Row:
        settings = argparse.Namespace(**{**vars(given), "seed": cell["seed"]})
        found = row(task, cell["cell"], cell["levels"], settings)
        keras.backend.clear_session()
        return found

    study.tabulated(cells(task.name, given), compute, say, text)


if __name__ == "__main__":
    main()
