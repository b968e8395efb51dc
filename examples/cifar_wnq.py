"""WNQ against LQ-Nets and other quantizers, at a few bits: accuracy, its curve, and errors by layer.

    python -m examples.cifar_wnq --data-dir DATA                    # CIFAR-10, hours on a CPU
    KERAS_BACKEND=jax python -m examples.cifar_wnq --dataset cifar100   # on a GPU, unchanged
    python -m examples.cifar_wnq --width 0.5 --images 25000 --start float --start-epochs 16 --epochs 10 \
        --batch-size 64 --augment --seeds 1 --data-dir DATA

All cells of a seed are trained for the same number of epochs: from scratch, or with `--start float`
from a network that was trained in float before, for `--start-epochs` at `--start-rate`; the float cell
then goes on from there, for as many epochs as the others. Kernels have 1, 2 or 3 bits, with `--inputs`
their inputs too; the first and last layer stay float. The peers DoReFa, TWN and LSQ are those of
`examples/peers.py`.
Accuracies are of the test images, or with `--validation` of training images set aside: after each
epoch, and in the end, when batch normalization was measured anew (`keras_qareg.recalibrate`), in the
float networks too. Cells are appended to a file as they are done, and a run that was killed goes on
where it stopped. On TensorFlow, the 2-bit networks of the first seed are written as `.tflite` in the
end, and their accuracy there is compared with that in Keras.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_qareg as qareg
from examples import peers, training
from examples.study import Row, Study, at_least, circumstances, written
from examples.training import Experiment
from keras_qareg.report import summary, table

FLOAT = "float"
OURS = {
    "LQ-Nets": {"normalize": False},
    "WNQ": {},
    "WNQ uniform": {"uniform": True},
}
PEERS = {"DoReFa": peers.DoReFa, "TWN": peers.TWN, "LSQ": peers.LSQ}
METHODS = (*OURS, *PEERS)
SETTINGS = (*training.SETTINGS, "start", "start_epochs", "start_rate", "learning_rate")
KEYS = (*SETTINGS, "bits", "inputs", "method", "seed")
# What a file holds the levels of a kind of network as.
FORMS = {"WNQ": "codebook", "WNQ uniform": "smallest"}


class Curve(keras.callbacks.Callback):
    """Keeps the accuracy after each epoch."""

    def __init__(self, measure: Callable[[keras.Model], float]):
        super().__init__()
        self.measure, self.accuracies = measure, []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.accuracies.append(self.measure(self.model))


class Quantizers(Experiment):
    """The cells of the study; the network that those of a seed start from is kept in a file."""

    def start(self, seed: int) -> keras.Model:
        """The float network that the cells of a seed start from."""
        keras.utils.set_random_seed(seed)
        model = self.network()
        epochs = self.arguments.start_epochs
        rate = self.arguments.start_rate or self.arguments.learning_rate
        name = (rate, seed, "start")
        if self.arguments.start == "float" and not self.kept(model, *name, epochs=epochs):
            self.fit(model, epochs, rate, seed)
            self.keep(model, *name, epochs=epochs)
        return model

    def network_of(self, cell: Row) -> keras.Model:
        """The network of a cell before it is trained."""
        model, method = self.start(cell["seed"]), cell["method"]
        if method == FLOAT:
            return model
        if method in PEERS:
            pixels = self.some_pixels(256)
            return peers.quantized(model, PEERS[method], cell["bits"], cell["inputs"], pixels)
        return qareg.wnq(model, cell["bits"], activation_bits=cell["inputs"], **OURS[method])

    def name_of(self, cell: Row) -> tuple[Any, ...]:
        return tuple(cell[key] for key in KEYS if key not in training.SETTINGS)

    def cell(self, cell: Row) -> Row:
        """The figures of one cell."""
        model, curve = self.network_of(cell), Curve(self.accuracy)
        rate = self.arguments.learning_rate
        self.fit(model, self.arguments.epochs, rate, cell["seed"] + 1000, curve)
        self.recalibrate(model)
        self.keep(model, *self.name_of(cell))
        figures: Row = {"accuracy": self.accuracy(model), "curve": curve.accuracies}
        if cell["method"] in OURS:
            kind = qareg.layers.WeightNormalized
            names = {layer.name for layer in model.layers if isinstance(layer, kind)}
            figures["errors"] = {
                row.path: row.relative_error
                for row in summary(model).rows
                if row.path.split("/")[-2] in names
            }
            figures["error"] = float(np.mean(list(figures["errors"].values())))
        return figures

    def trained(self, cell: Row) -> keras.Model:
        """The network of a cell that was run."""
        model = self.network_of(cell)
        if not self.kept(model, *self.name_of(cell)):
            raise FileNotFoundError(f"Expected the weights of {cell}, which were deleted.")
        return model


def cells(arguments: argparse.Namespace) -> Iterator[Row]:
    """All cells, seed by seed, the float one first."""
    shared = {key: getattr(arguments, key) for key in SETTINGS}
    widths = [(bits, None) for bits in arguments.bits] + [(bits, bits) for bits in arguments.inputs]
    for seed in range(arguments.seeds):
        yield {**shared, "bits": 32, "inputs": None, "method": FLOAT, "seed": seed}
        for bits, inputs in widths:
            for method in arguments.methods:
                if method in OURS or _has(PEERS[method], bits, inputs):
                    quantized = {"bits": bits, "inputs": inputs, "method": method}
                    yield {**shared, **quantized, "seed": seed}


def _has(kind: type[peers.Peer], bits: int, inputs: int | None) -> bool:
    fits = kind.least_bits <= bits <= kind.most_bits
    return fits and (inputs is None or kind is not peers.TWN)


def label(row: Row) -> str:
    """A cell in words."""
    if row["method"] == FLOAT:
        return FLOAT
    inputs = "" if row["inputs"] is None else f", {row['inputs']}-bit inputs"
    return f"{row['bits']} bit{'s' * (row['bits'] > 1)}{inputs}, {row['method']}"


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of all seeds by the label of their cell."""
    return {name: [r for r in rows if label(r) == name] for name in dict.fromkeys(map(label, rows))}


def tabulate(rows: list[Row]) -> str:
    """Mean and deviation over the seeds, the distance to float of the same seed, and the error."""
    lines = []
    reference = {row["seed"]: row["accuracy"] for row in rows if row["method"] == FLOAT}
    for name, same in groups(rows).items():
        apart = [{"to float": row["accuracy"] - reference[row["seed"]]} for row in same]
        error = written(same, "error", 4) if "error" in same[0] else ""
        figures = (written(same, "accuracy"), written(apart, "to float"), error)
        lines.append((name, str(len(same)), *figures))
    return table(("network", "seeds", "accuracy", "to float", "relative error"), lines)


def draw_curves(rows: list[Row], file: Path) -> None:
    """Accuracy after each epoch, mean of the seeds, a panel for each number of bits (Figure 5)."""
    from keras_qareg.plots import style

    found = groups(rows)
    bits = _bits(found)
    columns = min(3, len(bits)) or 1
    shared = {"sharex": True, "sharey": True}
    panels = style.axes(-(-len(bits) // columns) or 1, columns, height=2.8, **shared)
    for panel, title in zip(panels.flat, bits, strict=False):
        for name, same in found.items():
            if name == FLOAT or name.rsplit(", ", 1)[0] == title:
                curve = np.mean([row["curve"] for row in same], axis=0)
                method = same[0]["method"]
                # Of one colour in all panels, although not all have each method.
                dashed = {"color": style.INK, "linestyle": "--", "linewidth": 1}
                look = dashed if method == FLOAT else _color(method)
                panel.plot(np.arange(1, len(curve) + 1), curve, label=method, **look)
        style.label(panel, title=title, x="epoch")
        panel.tick_params(labelbottom=True)
    for panel in panels[:, 0]:
        panel.set_ylabel("test accuracy, %", fontsize=style.TEXT)
    for panel in panels.flat[len(bits) :]:
        panel.remove()
    style.legend(panels[0, 0])
    panels[0, 0].figure.savefig(file)


def draw_errors(rows: list[Row], file: Path) -> None:
    """Relative error of each kernel, and the mean error of a network against its accuracy."""
    from keras_qareg.plots import style

    by_layer, against = style.axes(1, 2, height=3.8)[0]
    found = groups(rows)
    markers = dict(zip(_bits(found), style.MARKERS, strict=False))
    for name, same in found.items():
        if "error" in same[0]:
            look = {**_color(same[0]["method"]), "marker": markers[name.rsplit(", ", 1)[0]]}
            errors = np.mean([list(row["errors"].values()) for row in same], axis=0)
            places = np.arange(1, len(errors) + 1)
            by_layer.plot(places, errors, label=name, markersize=4, **look)
            points = [(row["error"], row["accuracy"]) for row in same]
            against.plot(*zip(*points, strict=True), linestyle="none", **look)
    style.baseline(against, float(np.mean([row["accuracy"] for row in found[FLOAT]])))
    style.ticks(by_layer, "y", (0.02, 0.05, 0.1, 0.2, 0.4))
    by_layer.locator_params(axis="x", integer=True)
    style.label(by_layer, x="kernel, from the inputs on", y="relative quantization error")
    style.label(against, x="mean relative quantization error", y="test accuracy, %")
    style.legend(by_layer)
    by_layer.figure.savefig(file)


def _bits(found: dict[str, list[Row]]) -> list[str]:
    """What stands before the method in the names of groups, each once."""
    return list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in found if name != FLOAT))


def _color(method: str) -> dict[str, Any]:
    from keras_qareg.plots import style

    return {"color": style.COLORS[METHODS.index(method)]}


def exported(experiment: Quantizers, cell: Row, folder: Path) -> Row:
    """Bytes of a network as a file against float32, and its accuracy there and in Keras."""
    from keras_qareg.export.litert.runtime import run_litert

    model = qareg.strip(experiment.trained(cell))
    path = folder / f"{cell['method'].replace(' ', '_')}_{cell['bits']}_bits.tflite"
    report = qareg.export.litert(model, path, weights=FORMS[cell["method"]])
    plain = qareg.export.litert(model, folder / "plain.tflite", weights="float32")
    plain.path.unlink()
    images = experiment.test.pixels(experiment.mean)
    parts = np.array_split(images, -(-len(images) // 500))
    places = np.concatenate([run_litert(path, part)[0].argmax(-1) for part in parts])
    return {
        **{key: cell[key] for key in KEYS},
        "form": FORMS[cell["method"]],
        "bytes": report.bytes,
        "float_bytes": plain.bytes,
        # Rounded, because a mean of parts and a mean of all differ in the last bit.
        "keras": round(experiment.accuracy(model), 6),
        "litert": round(100.0 * float((places == experiment.test.labels).mean()), 6),
    }


def export_best(experiment: Quantizers, rows: list[Row], out: Path) -> None:
    """Writes the 2-bit networks of the first seed; raises where accuracy is not that in Keras."""
    found = []
    for row in rows:
        if row["method"] in FORMS and (row["bits"], row["inputs"], row["seed"]) == (2, None, 0):
            found.append(exported(experiment, row, out))
            print(
                "{method}, 2 bits, {form}: {bytes:,} bytes of {float_bytes:,}, accuracy {litert:.2f} "
                "in LiteRT, {keras:.2f} in Keras".format(**found[-1])
            )
    text = "".join(json.dumps({**row, **circumstances()}) + "\n" for row in found)
    (out / "cifar_wnq_export.jsonl").write_text(text)
    if any(row["keras"] != row["litert"] for row in found):
        raise SystemExit("An exported file does not have the accuracy of its model.")


def draw_histograms(experiment: Quantizers, rows: list[Row], file: Path) -> None:
    """Weights and levels of the first seed's kernels, WNQ above LQ-Nets (Figure 3's form)."""
    bits = min((row["bits"] for row in rows if row["method"] == "WNQ"), default=None)
    wanted = {
        row["method"]: row
        for row in rows
        if (row["bits"], row["inputs"], row["seed"]) == (bits, None, 0)
        and row["method"] in ("WNQ", "LQ-Nets")
    }
    if len(wanted) == 2:
        models = {name: experiment.trained(wanted[name]) for name in ("WNQ", "LQ-Nets")}
        qareg.plots.weight_histograms(models, max_kernels=6).savefig(file)


def parsed() -> argparse.Namespace:
    parser = training.parser(__doc__.split("\n")[0], network="resnet20", epochs=160)
    parser.add_argument("--start", choices=("scratch", "float"), default="scratch")
    parser.add_argument(
        "--start-epochs", type=at_least(1), help="of `--start float` (default: --epochs)"
    )
    parser.add_argument("--start-rate", type=float, help="of that (default: --learning-rate)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="(default: 3e-3)")
    parser.add_argument("--bits", type=at_least(1), nargs="*", default=[1, 2, 3])
    parser.add_argument("--inputs", type=at_least(1), nargs="*", default=[], help="bits of both")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    if arguments.start == "scratch":
        arguments.start_epochs = 0
    elif arguments.start_epochs is None:
        arguments.start_epochs = arguments.epochs
    return arguments


def main() -> None:
    with training.on_devices(parsed()) as arguments:
        study, experiment = Study(arguments.out / "cifar_wnq.jsonl", KEYS), Quantizers(arguments)
        rows = study.tabulated(
            cells(arguments), experiment.cell, "accuracy", tabulate, draw=arguments.draw
        )
        draw_curves(rows, arguments.out / "cifar_wnq_curves.png")
        draw_errors(rows, arguments.out / "cifar_wnq_errors.png")
        draw_histograms(experiment, rows, arguments.out / "cifar_wnq_histograms.png")
        if keras.backend.backend() == "tensorflow":
            export_best(experiment, rows, arguments.out)


if __name__ == "__main__":
    main()
