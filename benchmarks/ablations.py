"""What each part of `compress` is worth: MLPerf Tiny's ResNet8 on CIFAR-10, all layers, one part away.

    python -m benchmarks.ablations --float resnet8_float.keras --data-dir DATA --seeds 0 1 --out results

The steps are those of `compress`, written out, so that each can be left out: kernels train straight
through under a rising penalty, taught by the float network and by labels; weights are shared, batch
normalization is measured anew, and the last tenth of the epochs tunes the centroids. Rows are appended
to `ablations.jsonl`, one a cell; a run that was stopped goes on where it was.
"""

import os
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_qareg as qareg
from benchmarks import results
from benchmarks.compress import Batches, accuracy, add_options, bytes_of, distilled, run
from examples.data import Images, load
from examples.study import Row, mean_and_deviation, written
from keras_qareg.models.selection import wrappers
from keras_qareg.report import table


@dataclass(frozen=True)
class Recipe:
    """How a network is made small.

    Attributes:
        penalty: The factor of the default strength.
        straight_through: Whether the network computes with its quantized kernels.
        schedule: Whether the penalty rises; else it has its full strength from the first step.
        recalibrate: Whether batch normalization is measured anew after sharing.
        teacher: The factor of the divergence from the float network.
        labels: Whether labels count too.
        tune: Whether the last tenth of the epochs tunes centroids; else they train as the others.
        table: What values a kernel may have.
        trained: Whether all weights train; else k-means shares them at once, and centroids train.
        scale: Steps of that k-means.
    """

    penalty: float = 1.0
    straight_through: bool = True
    schedule: bool = True
    recalibrate: bool = True
    teacher: float = 1.0
    labels: bool = True
    tune: bool = True
    table: str = "int8"
    trained: bool = True
    scale: str = "auto"


WHOLE = "all parts"
KMEANS = replace(Recipe(), trained=False)
PARTS = {
    WHOLE: Recipe(),
    "no penalty": Recipe(penalty=0.0),
    "not straight through": Recipe(straight_through=False),
    "no schedule": Recipe(schedule=False),
    "not recalibrated": Recipe(recalibrate=False),
    "no teacher": Recipe(teacher=0.0),
    "no labels": Recipe(labels=False),
    "not tuned": Recipe(tune=False),
    "table='even'": Recipe(table="even"),
    "table='float32'": Recipe(table="float32"),
    "centroids alone": KMEANS,
    "centroids alone, scale='kernel'": replace(KMEANS, scale="kernel"),
}
LEVELS = (4, 16)
CELLS = {f"{k} levels, {name}": (k, its) for k, (name, its) in product(LEVELS, PARTS.items())}
SAMPLES = 4096
FORMS = ("smallest", "archive")


def made(model: keras.Model, levels: int, its: Recipe, data: Images, given: Any) -> keras.Model:
    """The small network of a recipe."""
    tuning = max(1, round(given.epochs / 10)) if its.tune else 0
    # Batch normalization is measured on images like those that it is trained on.
    (some,) = Batches(data, labels=False, seed=0, batch_size=SAMPLES)[0]

    def train(network: keras.Model, rate: float, epochs: int, *callbacks: Any) -> None:
        batches = Batches(data, labels=its.labels, seed=given.seed)
        distilled(network, model, batches, rate, epochs, callbacks, its.teacher)

    if not its.trained:
        shared = qareg.share_weights(model, levels, table=its.table, scale=its.scale, verbose=0)
        qareg.recalibrate(shared, some)
        train(shared, given.rate, given.epochs)
        return shared
    sine = qareg.regularizers.Sine(levels)
    sine.strength *= its.penalty
    student = qareg.quantization_aware(
        model, sine, straight_through=its.straight_through, table=its.table
    )
    for layer in wrappers(student):
        layer.place_centroids()
    qareg.recalibrate(student, some)
    rises = [qareg.callbacks.PenaltySchedule(warmup_epochs=0, power=12)] if its.schedule else []
    train(student, given.rate, given.epochs - tuning, *rises)
    shared = qareg.share_weights(student, table=its.table, verbose=0)
    if its.recalibrate:
        qareg.recalibrate(shared, some)
    if tuning:
        train(shared, given.rate / 10, tuning)
    return shared


def row(name: str, model: keras.Model, parts: tuple[Images, Images], arguments: Any) -> Row:
    """The figures of a cell."""
    keras.utils.set_random_seed(arguments.seed)
    found = made(model, *CELLS[name], parts[0], arguments)
    return {"accuracy": accuracy(found, parts[1]), "bytes": bytes_of(found)}


def tabulate(rows: list[Row]) -> str:
    """A line a part: the mean without it, and how far it is from the mean of the same seeds with all."""
    lines = []
    for levels, name in product(LEVELS, PARTS):
        cell = f"{levels} levels, {name}"
        same, whole = (
            [row for row in rows if row["cell"] == each]
            for each in (cell, f"{levels} levels, {WHOLE}")
        )
        seeds = {row["seed"] for row in same}
        whole = [row for row in whole if row["seed"] in seeds]
        if same:
            means = [mean_and_deviation(few, "accuracy")[0] for few in (same, whole)]
            change = f"{means[0] - means[1]:+.2f}" if whole and name != WHOLE else ""
            sizes = (f"{max(row['bytes'][form] for row in same):,}" for form in FORMS)
            lines.append((cell, written(same, "accuracy"), change, str(len(same)), *sizes))
    return table(("", "test accuracy", "change", "seeds", ".tflite", "archive"), lines)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--float", type=Path, required=True, help="ResNet8, trained on already")
    add_options(parser, CELLS, epochs=5)
    arguments = parser.parse_args()
    parts = load("cifar10", arguments.data_dir)
    run("ablations", arguments.float, parts, arguments, row, tabulate)


if __name__ == "__main__":
    main()
