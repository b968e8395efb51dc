"""The experiments of arXiv 2602.03614: which layers, how many levels, which regularizer, which seed.

    python -m examples.cifar10_regularizers --network vgg16 --data-dir DATA      # hours on a CPU
    KERAS_BACKEND=jax python -m examples.cifar10_regularizers --network alexnet  # on a GPU, unchanged
    python -m examples.cifar10_regularizers --width 0.25 --epochs 12 --images 10000 --data-dir DATA

All cells of a seed begin with the same weights: those after three quarters of the epochs without
penalty. From there the float network and each regularized one train on for the last quarter, in which
the penalty rises; then weights are shared, and the centroids tuned alone. In the last third of each of
these trainings the learning rate falls to nothing. k-means shares the float network. *Recalibrated* is
what measuring batch normalization anew makes of the shared network; tuning does not begin with it. With
`--straight-through`, networks compute with their quantized kernels while the penalty rises; these cells
have a file of their own. Accuracies are of the test images; with `--validation`, of so large a share of
the training images, which then are not trained on: choose by these. Cells are appended to a file as
they are done, and a run that was killed goes on where it stopped.
"""

import argparse
import functools
import itertools
import operator
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

import keras_qareg as qareg
from examples import training
from examples.study import Row, Study, at_least, mean_and_deviation, written
from examples.training import BASELINE, METHODS, Experiment
from keras_qareg.report import table

SETTINGS = (*training.SETTINGS, "tuning_epochs", "strength", "power", "balance", "straight_through")
KEYS = (*SETTINGS, "layers", "levels", "method", "seed")
LEARNING_RATE, TUNING_RATE = 1e-3, 1e-3
# Accuracies of a cell, in the order in which they are measured.
FIGURES = ("float", "trained", "shared", "recalibrated", "tuned")
# What `--layers` is called in figures.
NAMES = {"conv": "convolutions", "dense": "dense layers", "all": "all layers"}


class Regularizers(Experiment):
    """The cells of the study; what they have in common is trained once and kept in files."""

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(arguments)
        self.rest = max(1, arguments.epochs // 4)
        self.warm_up = arguments.epochs - self.rest
        self.floats: dict[int, tuple[keras.Model, float]] = {}

    def warm(self, seed: int) -> keras.Model:
        """The network after the epochs without penalty."""
        keras.utils.set_random_seed(seed)
        model = self.network()
        if not self.kept(model, seed, "warm"):
            self.fit(model, self.warm_up, LEARNING_RATE, seed)
            self.keep(model, seed, "warm")
        return model

    def float_network(self, seed: int) -> tuple[keras.Model, float]:
        """The network trained to the end without penalty, and its accuracy."""
        if seed not in self.floats:
            model = self.warm(seed)
            if not self.kept(model, seed, "float"):
                self.fit(model, self.rest, LEARNING_RATE, seed + 1000)
                self.keep(model, seed, "float")
            self.floats = {seed: (model, self.accuracy(model))}
        return self.floats[seed]

    def cell(self, cell: Row) -> Row:
        """The figures of one cell."""
        seed, method = cell["seed"], cell["method"]
        plain, float_accuracy = self.float_network(seed)
        model = plain
        if method != BASELINE:
            keras.utils.set_random_seed(seed)
            regularizer = getattr(qareg.regularizers, method)(cell["levels"])
            regularizer.strength *= cell["strength"]
            model = qareg.quantization_aware(
                self.warm(seed),
                regularizer,
                cell["layers"],
                straight_through=cell["straight_through"],
                table="float32",  # any values, as the paper has them
            )
            schedule = qareg.callbacks.PenaltySchedule(
                warmup_epochs=0, power=cell["power"], balance=cell["balance"] or None
            )
            self.fit(model, self.rest, LEARNING_RATE, seed + 1000, schedule)
        figures = {"float": float_accuracy, "trained": self.accuracy(model)}
        shared = qareg.share_weights(model, cell["levels"], layers=cell["layers"], table="float32")
        figures["shared"] = self.accuracy(shared)
        own = shared.get_weights()
        self.recalibrate(shared)
        figures["recalibrated"] = self.accuracy(shared)
        shared.set_weights(own)  # as the paper has it
        tuning = self.arguments.tuning_epochs
        self.fit(shared, tuning, TUNING_RATE, seed + 2000)
        figures["tuned"] = self.accuracy(shared)
        books = [
            book
            for layer in shared.layers
            if isinstance(layer, qareg.layers.SharedWeights)
            for book in layer.codebooks()
        ]
        weights = [book.indices.size for book in books]
        figures["bits"] = float(np.average([book.entropy for book in books], weights=weights))
        with tempfile.TemporaryDirectory() as folder:
            file = qareg.export.save_archive(shared, Path(folder) / "model.qareg")
            figures["archive"] = file.stat().st_size
        return figures


def cells(arguments: argparse.Namespace) -> Iterator[Row]:
    """All cells, seed by seed."""
    shared = {key: getattr(arguments, key) for key in SETTINGS}
    for seed in range(arguments.seeds):
        for layers in arguments.layers:
            for levels in arguments.levels:
                for method in arguments.methods:
                    yield {
                        **shared,
                        "layers": layers,
                        "levels": levels,
                        "method": method,
                        "seed": seed,
                    }


def groups(rows: list[Row]) -> Iterator[tuple[str, int, str, list[Row]]]:
    """Layers, levels, method, and the rows of all seeds."""
    for layers in dict.fromkeys(row["layers"] for row in rows):
        for levels in sorted({row["levels"] for row in rows}):
            for method in METHODS:
                same = [
                    row
                    for row in rows
                    if (row["layers"], row["levels"], row["method"]) == (layers, levels, method)
                ]
                if same:
                    yield layers, levels, method, same


def relative(rows: list[Row]) -> list[Row]:
    """Each row with its accuracies before and after tuning over tuned k-means' of the same seed."""
    cell = operator.itemgetter("layers", "levels", "seed")
    baseline = {cell(row): row["tuned"] for row in rows if row["method"] == BASELINE}
    found = []
    for row in rows:
        tuned = baseline.get(cell(row), np.nan)
        found.append({**row, "before": row["shared"] / tuned, "after": row["tuned"] / tuned})
    return found


def tabulate(rows: list[Row]) -> str:
    """Mean and deviation of each cell over the seeds; the ratio is to k-means of the same seed."""
    lines, known = [], [key for key in FIGURES if all(key in row for row in rows)]
    for layers, levels, method, same in groups(relative(rows)):
        figures = [written(same, key) for key in known]
        bits, size = (mean_and_deviation(same, key)[0] for key in ("bits", "archive"))
        ratio = f"{mean_and_deviation(same, 'after')[0]:.4f}"
        name = f"{layers} {levels} {method}"
        lines.append((name, str(len(same)), *figures, ratio, f"{bits:.3f}", f"{size:,.0f}"))
    header = ("layers, levels, method", "seeds", *known, "ratio", "bits/weight", "archive")
    return table(header, lines)


def draw(rows: list[Row], file: Path) -> None:
    """Accuracy of each method before and after tuning (Figure 3): levels down, layers across."""
    from keras_qareg.plots import style

    found = {
        (layers, levels, method): [mean_and_deviation(same, key)[0] for key in ("shared", "tuned")]
        for layers, levels, method, same in groups(rows)
    }
    across = list(dict.fromkeys(layers for layers, _, _ in found))
    down = sorted({levels for _, levels, _ in found})
    panels = style.axes(len(down), len(across), height=2.2, sharex=True, sharey=True)
    for (i, levels), (j, layers) in itertools.product(enumerate(down), enumerate(across)):
        panel, places = panels[i, j], range(len(METHODS))
        pairs = [found.get((layers, levels, method), [np.nan] * 2) for method in METHODS]
        before, after = zip(*pairs, strict=True)
        style.baseline(panel, mean_and_deviation(rows, "float")[0], along="y")
        ring = {"markerfacecolor": "white", "markersize": 8, "color": style.BLUE}
        panel.plot(before, places, "o", label="before tuning", **ring)
        panel.plot(after, places, "o", markersize=5, color=style.RED, label="after tuning")
        style.label(panel, title=f"{NAMES.get(layers, layers)}, {levels} levels")
        panel.set_yticks(places, METHODS)
    panels[0, 0].set_ylim(len(METHODS) - 0.5, -0.5)  # the first on top
    for panel in panels[-1]:
        panel.set_xlabel("test accuracy, %", fontsize=style.TEXT)
    style.legend(panels[0, 0])
    panels[0, 0].figure.savefig(file)


def parsed() -> argparse.Namespace:
    parser = training.parser(__doc__.split("\n")[0], network="vgg16", epochs=60)
    parser.add_argument("--layers", nargs="+", choices=[*NAMES], default=[*NAMES])
    parser.add_argument("--levels", type=at_least(2), nargs="+", default=[4, 16])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tuning-epochs", type=at_least(0), default=5)
    parser.add_argument("--strength", type=float, default=1.0, help="times the default")
    parser.add_argument(
        "--straight-through",
        action="store_true",
        help="compute with quantized kernels while the penalty rises",
    )
    parser.add_argument("--power", type=float, default=6.0, help="of the ramp of the strength")
    parser.add_argument(
        "--balance", type=at_least(0), default=40_000, help="of PenaltySchedule; 0: none"
    )
    return parser.parse_args()


def main() -> None:
    with training.on_devices(parsed()) as arguments:
        kind = "_straight_through" if arguments.straight_through else ""
        file = arguments.out / f"cifar10_regularizers_{arguments.network}{kind}.jsonl"
        study = Study(file, KEYS)
        # Where all is there, the images are not needed.
        experiment = functools.cache(lambda: Regularizers(arguments))
        rows = study.tabulated(
            cells(arguments),
            lambda cell: experiment().cell(cell),
            "tuned",
            tabulate,
            draw=arguments.draw,
        )
        draw(rows, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
