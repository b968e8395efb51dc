"""Accuracy against bytes, ours beside Google's tools, on one float model: MLPerf Tiny's ResNet8.

    python -m benchmarks.pareto --model resnet8_float.keras --data-dir DATA \
        --compressed results/compress.jsonl --out results

`.tflite` files of all are run by LiteRT on the test images; archives, which no runtime reads, by Keras.
Peers that are not installed are said and left out (`benchmarks.pareto_peers`; `pip install
litert-quantizer`, and the extra `tfmot`). Ours: one number of levels, and plans of `allocate`, without
any training, batch normalization measured anew on inputs without labels; and what `benchmarks.compress`
trained, by its rows. Rows are appended to `pareto.jsonl`, one a cell; a run that was stopped goes on
where it was. The figure shows bytes of the files as they are, and gzipped.
"""

import argparse
import gzip
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_qareg as qareg
from benchmarks import pareto_peers, results
from benchmarks.compress import LOSS, accuracy
from examples.data import Images, augmented, load
from examples.study import Row, Study, at_least
from keras_qareg.cli.opening import load_model
from keras_qareg.export.litert.runtime import restored, stored
from keras_qareg.report import table

OURS, TRAINED, ARCHIVE = "keras_qareg", "keras_qareg, trained", "keras_qareg, archive"
BATCH, CALIBRATION, SAMPLES = 500, 2048, 512
UNTRAINED = {"epochs": 0, "rate": 0.0}
LEVELS = (4, 6, 8, 12, 16, 24, 32, 64)
MANY = (64, 256)  # so near to float that measuring normalization anew can only add noise
BUDGETS = (30_000, 35_000, 40_000, 49_000, 60_000, 80_000)
ARCHIVES = (24_000, 30_000, 40_000, 60_000)


@dataclass(frozen=True)
class Ours:
    """The float model, and the inputs that it is recalibrated on; `data` are never labels."""

    model: keras.Model
    data: np.ndarray
    samples: np.ndarray

    def shared(self, levels: Any) -> keras.Model:
        """With few values a kernel, and batch normalization measured anew."""
        made = qareg.strip(qareg.share_weights(self.model, levels, verbose=0))
        qareg.recalibrate(made, self.data)
        return made

    def planned(self, target: int, weights: str) -> keras.Model:
        plan = qareg.allocate(
            self.model, target_bytes=target, weights=weights, data=self.data, verbose=0
        )
        return self.shared(plan)

    def file(self, model: keras.Model, weights: str) -> bytes:
        """A `.tflite`, checked."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            samples = self.samples if weights == "int8" else None
            qareg.export.litert(model, path, weights, samples)
            return path.read_bytes()

    def file_of(self, levels: int, weights: str) -> bytes:
        """A `.tflite` with one number of levels for all kernels."""
        return self.file(self.shared(levels), weights)

    def as_normalized(self, levels: int) -> bytes:
        """The same in the least bytes, with the statistics that the float model has."""
        shared = qareg.share_weights(self.model, levels, verbose=0)
        return self.file(qareg.strip(shared), "smallest")

    def file_in(self, target: int, weights: str) -> bytes:
        """A `.tflite` of so many bytes."""
        return self.file(self.planned(target, weights), weights)

    def on_grid(self) -> bytes:
        """A float32 file with kernels of 15 evenly spaced values, which int4 holds exactly."""
        made = qareg.strip(qareg.share_weights(self.model, 15, table="even", verbose=0))
        qareg.recalibrate(made, self.data)
        return self.file(made, "float32")

    def archive(self, target: int) -> tuple[keras.Model, bytes]:
        """A model, and its archive."""
        model = self.planned(target, "archive")
        with tempfile.TemporaryDirectory() as folder:
            return model, qareg.export.save_archive(model, Path(folder) / "a.qareg").read_bytes()

    def files(self) -> dict[str, Callable[[], bytes]]:
        """What makes each `.tflite`."""
        found = {
            "full int8": partial(self.file, self.model, "int8"),
            "256 levels": partial(self.file_of, 256, "auto"),
            "float16": partial(self.file, self.model, "float16"),
            "float32": partial(self.file, self.model, "float32"),
        }
        for levels in MANY:
            found[f"{levels} levels, not recalibrated"] = partial(self.as_normalized, levels)
        for levels in LEVELS:
            found[f"{levels} levels"] = partial(self.file_of, levels, "smallest")
        found["16 levels, full int8"] = partial(self.file_of, 16, "int8")
        found["16 levels, float32"] = partial(self.file_of, 16, "float32")
        for target in BUDGETS:
            found[f"plan for {target:,}"] = partial(self.file_in, target, "smallest")
        return {f"{OURS}, {name}": make for name, make in found.items()}


def litert_accuracy(content: bytes, data: Images) -> float:
    """Percent of the images that LiteRT knows with a file, whatever wrote it."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content)
    (given,), (output,) = runner.get_input_details(), runner.get_output_details()
    runner.resize_tensor_input(given["index"], (BATCH, *given["shape"][1:]))
    runner.allocate_tensors()
    images = data.images.astype("float32")
    right = 0
    for start in range(0, len(images) // BATCH * BATCH, BATCH):
        runner.set_tensor(given["index"], stored(images[start : start + BATCH], given))
        runner.invoke()
        found = restored(runner.get_tensor(output["index"]), output)
        right += int((found.argmax(axis=1) == data.labels[start : start + BATCH]).sum())
    return 100 * right / (len(images) // BATCH * BATCH)


def sizes(content: bytes) -> Row:
    return {"bytes": len(content), "gzip": len(gzip.compress(content, 9))}


def cells_of(ours: Ours, context: pareto_peers.Context, test: Images) -> dict[str, Any]:
    """From the name of a cell to its series and what computes its figures."""

    def measured(make: Callable[[], bytes]) -> Callable[[], Row]:
        def compute() -> Row:
            content = make()
            return {**sizes(content), "accuracy": litert_accuracy(content, test)}

        return compute

    def archived(target: int) -> Row:
        model, content = ours.archive(target)
        return {**sizes(content), "accuracy": accuracy(model, test)}

    found: dict[str, Any] = {}
    for name, (series, maker) in pareto_peers.peers().items():
        found[name] = (series, measured(partial(maker, context)))
    for name, make in ours.files().items():
        found[name] = (OURS, measured(make))
    for target in ARCHIVES:
        found[f"{ARCHIVE} of {target:,}"] = (ARCHIVE, partial(archived, target))
    return found


def compressed_rows(path: Path | None) -> list[Row]:
    """The points of `benchmarks.compress`: the smallest `.tflite` and the archive of each cell."""
    if path is None or not path.exists():
        return []
    found = []
    for row in map(json.loads, path.read_text().splitlines()):
        size = row.get("bytes")
        if not size:
            continue
        common = {"accuracy": row["accuracy"], "epochs": row["epochs"]}
        name = f"{row['cell']}, seed {row['seed']}"
        if not row["cell"].endswith("archive"):
            file = {"bytes": size["smallest"], "gzip": size.get("gzip")}
            found.append({"cell": f"{TRAINED}, {name}", "series": TRAINED, **common, **file})
        pair = {"bytes": size["archive"], "gzip": size["archive"]}
        archived = {"cell": f"{ARCHIVE}, trained, {name}", "series": f"{ARCHIVE}, trained"}
        found.append({**archived, **common, **pair})
    return found


def best_of_ours(rows: list[Row], peer: Row, figure: str) -> float | None:
    """The best accuracy of ours in as many bytes, trained only if the peer is.

    Files as they are go against files; gzipped ones against ours gzipped and our archives, since neither
    can be run as it stands.
    """
    fitting = [
        row["accuracy"]
        for row in rows
        if row["series"] in (OURS, TRAINED, *([ARCHIVE] if figure == "gzip" else []))
        and bool(row["epochs"]) <= bool(peer["epochs"])
        and (row.get(figure) or np.inf) <= (peer.get(figure) or 0)
    ]
    return max(fitting, default=None)


def tabulate(rows: list[Row]) -> str:
    """A line a file, the smallest of each series first."""
    lines = []
    order = list(dict.fromkeys(row["series"] for row in rows))
    for row in sorted(rows, key=lambda row: (order.index(row["series"]), row.get("bytes") or 0)):
        if row.get("error"):
            lines.append((row["cell"], "", "", "", "cannot be made", ""))
            continue
        peer = row["series"] in pareto_peers.PACKAGES
        against = [_against(rows, row, figure) if peer else "" for figure in ("bytes", "gzip")]
        size = [f"{row[f]:,}" if row.get(f) else "-" for f in ("bytes", "gzip")]
        epochs = str(row["epochs"]) if row["epochs"] else ""
        lines.append((row["cell"], epochs, f"{row['accuracy']:.2f}", *size, *against))
    header = ("", "epochs", "accuracy", "bytes", "gzip", "ours in the bytes", "ours in the gzip")
    width = len(header)
    return table(header, [(*line, *[""] * (width - len(line))) for line in lines])


def _against(rows: list[Row], peer: Row, figure: str) -> str:
    best = best_of_ours(rows, peer, figure)
    return "none" if best is None else f"{best:.2f} ({best - peer['accuracy']:+.2f})"


def draw(out: Path, rows: list[Row], least: float = 60.0) -> None:
    """Writes `pareto.png`: files as they are, and gzipped; of those below `least` it says how many."""
    from keras_qareg.plots import style

    panels = style.axes(2, height=3.7, sharey=True)[:, 0]
    looks = dict(zip(dict.fromkeys(row["series"] for row in rows), _looks(), strict=False))
    float32 = [row["accuracy"] for row in rows if row["cell"].endswith("converter, float32")]
    for panel, key in zip(panels, ("bytes", "gzip"), strict=True):
        shown = [row for row in rows if row.get(key)]
        left_out = sum(row["accuracy"] < least for row in shown)
        for name, look in looks.items():
            pairs = [
                (row[key], row["accuracy"])
                for row in shown
                if row["series"] == name and row["accuracy"] >= least
            ]
            if pairs:
                ours = name.startswith(OURS)
                panel.plot(*zip(*pairs, strict=True), label=name, zorder=3 if ours else 2, **look)
        if float32:
            style.baseline(panel, float32[0])
        style.sizes(panel)
        title = "Files as they are" if key == "bytes" else "Gzipped"
        style.label(panel, title=title, x="size", y="test accuracy, %")
        if left_out:
            text = f"{left_out} files below {least:g} % are not shown"
            place = {"transform": panel.transAxes, "ha": "right", "color": style.INK}
            panel.text(0.99, 0.03, text, fontsize=style.SMALL, **place)
    style.legend(panels[0])
    out.mkdir(parents=True, exist_ok=True)
    panels[0].figure.savefig(out / "pareto.png")


def _looks() -> Iterator[dict[str, Any]]:
    """Marks of the series, in their order: the tools of others first."""
    from keras_qareg.plots import style

    colors = (style.GREY, style.SKY, style.GREEN, style.BLUE, style.RED, style.PURPLE, style.ORANGE)
    for color, marker in zip(colors, "sDP^oX*", strict=True):
        size = 9 if marker == "*" else 7
        yield {"color": color, "marker": marker, "markersize": size, "linestyle": "none"}


def inputs(train: Images) -> tuple[np.ndarray, np.ndarray]:
    """What batch normalization is measured on, augmented as in training; and plain samples."""
    # Folders of classes are read one after the other: the first images are of one class.
    places = np.random.default_rng(0).permutation(len(train.labels))[:CALIBRATION]
    pixels = train.images[places].astype("float32")
    return augmented(pixels, np.random.default_rng(0)), pixels[:SAMPLES]


def parsed() -> argparse.Namespace:
    parser = results.parser(__doc__ or "")
    parser.add_argument("--model", type=Path, required=True, help="the float ResNet8")
    parser.add_argument("--data-dir", type=Path, required=True, help="cifar10-train.zip, -test.zip")
    parser.add_argument("--compressed", type=Path, help="rows of benchmarks.compress")
    parser.add_argument("--epochs", type=at_least(1), default=10, help="of TFMOT's training (10)")
    parser.add_argument("--rate", type=float, default=1e-3, help="its first learning rate")
    parser.add_argument("--kept", type=Path, default=Path("output"), help="for what TFMOT trains")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cells with one of these in them")
    parser.add_argument("--draw", action="store_true", help="the table and figure of kept rows")
    found: argparse.Namespace = parser.parse_args()
    return found


def wanted(cells: dict[str, Any], only: list[str] | None) -> Iterator[str]:
    """Names of cells; those of which the name has one of the texts."""
    for name in cells:
        if only is None or any(text in name for text in only):
            yield name


def main() -> None:
    given = parsed()
    study = Study(given.out / "pareto.jsonl", ("cell", "epochs", "rate", "float"))
    if not given.draw:
        train, test = load("cifar10", given.data_dir)
        model = load_model(given.model)
        model.compile("sgd", LOSS, metrics=["accuracy"])
        ours = Ours(model, *inputs(train))
        known = accuracy(model, test)  # another float network has other cells
        context = pareto_peers.Context(
            model, ours.samples, ours.on_grid, given.kept, given.data_dir, given.epochs, given.rate
        )
        makers = cells_of(ours, context, test)

        def compute(cell: Row) -> Row:
            try:
                found: Row = makers[cell["cell"]][1]()
            # Whatever a tool of others stumbles on is a result, and the other cells go on.
            except Exception as error:
                if cell["series"] not in pareto_peers.PACKAGES:
                    raise
                return pareto_peers.unsupported(error)
            return found

        cells = []
        for name in wanted(makers, given.only):
            series = makers[name][0]
            theirs = series == pareto_peers.TFMOT
            training = {"epochs": given.epochs, "rate": given.rate} if theirs else UNTRAINED
            cells.append({"cell": name, "series": series, **training, "float": known})
        study.run(cells, compute, "accuracy")
        study.rows = [row for row in study.rows if row["float"] == known]
    rows = [*study.rows, *compressed_rows(given.compressed)]
    text = tabulate(rows)
    (given.out / "pareto.txt").write_text(text + "\n")
    print(f"\n{text}")
    draw(given.out, rows)


if __name__ == "__main__":
    main()
