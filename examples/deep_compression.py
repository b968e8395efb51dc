"""Deep compression: prune, shrink, train under a regularizer, share by rate and distortion, archive.

    python examples/deep_compression.py                     # scikit-learn's digits: about a minute
    python -m examples.deep_compression --model resnet8.h5 --data-dir DATA --epochs 10     # CIFAR-10
    python -m examples.deep_compression --network lenet --data-dir DATA --epochs 10

After Han, Mao, Dally, "Deep Compression" (ICLR 2016), with the parts of this package:

1. whole channels are pruned in training (`callbacks.PruningSchedule`), and `shrink` removes them;
2. single weights are pruned in training, down to `--sparsity` of zeros;
3. the network trains under a regularizer, with a level at 0 that pruned weights stay at;
4. weights are shared by rate and distortion, and what is left is tuned;
5. the archive codes the indices, of which most are those of the zero; it folds batch normalization.

The float control trains on from the same weights for as many epochs, and teaches all that come after it,
beside the labels (`distill`). Accuracies are of the test images, in the last row those of the file.
A model of a file sees pixels from 0 to 255, as MLPerf Tiny's ResNet8 does, others from 0 to 1.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np
from keras import ops

import keras_qareg as qareg
from examples.architectures import NETWORKS
from examples.data import Images, augmented, evenly, load
from examples.study import at_least, circumstances
from examples.training import digits_network
from keras_qareg.allocation.sensitivity import Probe
from keras_qareg.callbacks import PenaltySchedule, PruningSchedule
from keras_qareg.report import table

Row = dict[str, Any]
TUNING = 0.25  # of the epochs of a training: those of tuning after
SETTINGS = (
    "channels", "sparsity", "levels", "small", "small_levels", "regularizer", "bit",
    "start_epochs", "epochs", "batch_size", "shift", "seed",
)  # fmt: skip
_MEASURED = 4_096  # images that batch normalization is measured on; harm takes some of them


def varied(pixels: np.ndarray, random: np.random.Generator, shift: float) -> np.ndarray:
    """What a network trains on: photographs turned over and moved; gray digits as they are."""
    return pixels if pixels.shape[-1] == 1 else augmented(pixels, random, shift)


class Batches(keras.utils.PyDataset):
    """Shuffled batches; photographs are turned over and moved, in each epoch otherwise."""

    def __init__(self, data: Images, scale: float, seed: int, batch_size: int, shift: float):
        super().__init__()
        self.data, self.scale, self.batch_size, self.shift = data, scale, batch_size, shift
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.data.labels) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        places = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        pixels = self.data.images[places].astype("float32") * self.scale
        return varied(pixels, self.random, self.shift), self.data.labels[places]

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.data.labels))


class Pipeline:
    """The steps, and what the network is after each.

    Args:
        arguments: What `parsed` gives.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.rows = arguments, list[Row]()
        self.teacher: keras.Model | None = None
        self.train, self.test = load(arguments.dataset, arguments.data_dir)
        if arguments.images:
            self.train = self.train.split(arguments.images / len(self.train.labels))[1]
        self.scale = 1.0 if arguments.model else 1.0 / self.train.largest
        self.some = evenly(self.train.images, _MEASURED).astype("float32") * self.scale
        self.random = np.random.default_rng(arguments.seed)
        keras.utils.set_random_seed(arguments.seed)

    def fit(self, model: keras.Model, epochs: int, rate: float, *callbacks: Any) -> keras.Model:
        """Trains with a rate that falls by a cosine."""
        its = self.arguments
        batches = Batches(self.train, self.scale, its.seed, its.batch_size, its.shift)
        decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
        softmax = getattr(model.layers[-1], "activation", None) is keras.activations.softmax
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
        trainer = qareg.distill(model, self.teacher) if self.teacher else model
        trainer.compile(keras.optimizers.Adam(decay), loss)
        trainer.fit(batches, epochs=epochs, verbose=0, callbacks=list(callbacks))
        return model

    def accuracy(self, model: keras.Model) -> float:
        """Percent of the test images that a model tells right."""
        pixels = self.test.images.astype("float32") * self.scale
        scores = model.predict(pixels, batch_size=500, verbose=0)
        return 100.0 * float(np.mean(scores.argmax(axis=-1) == self.test.labels))

    def note(self, step: str, model: keras.Model, file: Path | None = None) -> None:
        """Adds what the network is now to the rows, and prints it: of its file, or one made for this."""
        plain = qareg.strip(model)
        kernels = [ops.convert_to_numpy(w) for w in plain.weights if w.name.endswith("kernel")]
        zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
        with tempfile.TemporaryDirectory() as folder:
            file = file or qareg.export.save_archive(model, Path(folder) / "model.qareg")
            size = file.stat().st_size
        row = {
            "step": step,
            "accuracy": self.accuracy(model),
            "weights": plain.count_params(),
            "zeros": 100.0 * zeros / sum(kernel.size for kernel in kernels),
            "archive": size,
        }
        row["ratio"] = 4 * (self.rows[0]["weights"] if self.rows else row["weights"]) / size
        self.rows.append(row)
        print(f"{step}: {row['accuracy']:.2f} %, {size:,} bytes", flush=True)

    def start(self) -> keras.Model:
        """The float network: the one of a file, or one that is trained now."""
        its = self.arguments
        if its.model is None:
            network = its.network and NETWORKS[its.network](self.train.classes)
            return self.fit(network or digits_network(), its.start_epochs, its.rate)
        if its.model.suffix == ".keras":
            return keras.saving.load_model(its.model)
        return qareg.from_tf_keras(its.model)

    def run(self) -> keras.Model:
        """All steps; the network at the end."""
        its = self.arguments
        model = self.start()
        self.note("float", model)
        tuning = max(1, round(TUNING * its.epochs))
        trainings = 1 + bool(its.channels) + bool(its.sparsity)
        control = self.fit(qareg.strip(model), trainings * its.epochs + tuning, its.rate)
        self.note("float control", control)
        self.teacher = control
        if its.channels:
            pruning = PruningSchedule(its.channels, structure="channels", layers=its.layers)
            self.fit(model, its.epochs, its.rate, pruning)
            model = qareg.shrink(model)
            self.note("channels pruned, shrunk", model)
        if its.sparsity:
            shares = sparsities(model, its.sparsity, self.some)
            weights = PruningSchedule(lambda layer: shares[layer.name] or None)
            self.fit(model, its.epochs, its.rate, weights)
            self.note("weights pruned", model)
        kind = getattr(qareg.regularizers, its.regularizer)

        def levels(layer: Any) -> int:
            return int(
                its.small_levels if math.prod(layer.kernel.shape) < its.small else its.levels
            )

        regularizer = kind(its.levels, zero_basin=True)
        model = qareg.quantization_aware(model, regularizer, levels=levels)
        self.fit(model, its.epochs, its.rate, PenaltySchedule(warmup_epochs=0, power=12))
        self.note(f"trained, {its.levels} levels", model)

        def rate(layer: Any) -> float:
            """What a bit may cost: a share of what a weight that is not 0 is worth."""
            kernel = ops.convert_to_numpy(layer.kernel)
            return its.bit * float(np.square(kernel[kernel != 0]).mean())

        ways = {"method": "rate-distortion", "trainable": "centroids+rest", "verbose": 0}
        # In an archive, unlike in a .tflite, a step a channel would cost bytes.
        model = qareg.share_weights(model, levels, rate=rate, scale="kernel", **ways)
        # Where there is batch normalization: on images like those that it was trained on.
        qareg.recalibrate(model, varied(self.some, self.random, its.shift))
        self.note("shared by rate", model)
        self.note("tuned", self.fit(model, tuning, its.rate / 10))
        return model

    def write(self, model: keras.Model, path: Path) -> None:
        """The archive for inference: what is beside the kernels folded, and in half precision."""
        qareg.export.save_archive(model, path, fold=True, float_dtype="float16")
        self.note("file", qareg.export.load_archive(path), path)


def sparsities(model: keras.Model, share: float, pixels: np.ndarray) -> dict[str, float]:
    """The share of zeros by layer, `share` of all: those weights go whose loss harms least.

    The harm of a weight is its square, times what each squared weight of its kernel is worth: the
    divergence of the outputs where the least ones of this kernel alone are zero, `share` of them.
    """
    plain = qareg.strip(model)
    kernels = {x.name: x.kernel for x in plain.layers if qareg.layers.kernels(x)}
    probe = Probe(plain, kernels, pixels)
    harms = {}
    for name, kernel in probe.weights.items():
        gone = np.abs(kernel) <= np.quantile(np.abs(kernel), share)
        loss = probe.loss({name: np.where(gone, 0.0, kernel)})
        energy = np.square(kernel[gone]).sum() or 1.0  # 0 where they are zero already
        harms[name] = np.square(kernel) * loss / energy
    line = np.quantile(np.concatenate([harm.ravel() for harm in harms.values()]), share)
    return {name: float((harm <= line).mean()) for name, harm in harms.items()}


def tabulate(rows: list[Row]) -> str:
    """A line a step."""
    header = ("step", "accuracy", "weights", "zeros %", "archive bytes", "float32 bytes over it")
    lines = [
        (
            row["step"],
            f"{row['accuracy']:.2f}",
            f"{row['weights']:,}",
            f"{row['zeros']:.1f}",
            f"{row['archive']:,}",
            f"{row['ratio']:.1f}",
        )
        for row in rows
    ]
    return table(header, lines)


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a trained network, .keras or .h5")
    parser.add_argument("--network", choices=list(NETWORKS), help="or one that is trained first")
    parser.add_argument(
        "--data-dir", type=Path, help="cifar10-train.zip, -test.zip (examples/data)"
    )
    parser.add_argument(
        "--images", type=at_least(1), help="so many images to train on; default: all"
    )
    parser.add_argument("--channels", type=float, default=0.25, help="share of channels that go")
    parser.add_argument("--layers", default="all", help="whose channels: all, conv or dense")
    parser.add_argument("--sparsity", type=float, default=0.8, help="share of zeros after that")
    parser.add_argument("--levels", type=at_least(2), default=8)
    parser.add_argument(
        "--small-levels", type=at_least(2), help="of small kernels; default: as many"
    )
    parser.add_argument(
        "--small", type=at_least(0), default=5_000, help="fewer weights are small (5000)"
    )
    parser.add_argument("--regularizer", default="Sine", help="default: Sine")
    parser.add_argument("--bit", type=float, default=0.02, help="what a bit may cost (0.02)")
    parser.add_argument("--epochs", type=at_least(1), default=15, help="of each training (15)")
    parser.add_argument(
        "--start-epochs", type=at_least(1), help="of the float network (2 * --epochs)"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--shift", type=float, default=1 / 8, help="photographs move by so much")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("output"), help="default: output")
    arguments = parser.parse_args()
    arguments.name = arguments.model.stem if arguments.model else arguments.network or "digits"
    arguments.small_levels = arguments.small_levels or arguments.levels
    if arguments.model and arguments.start_epochs:
        parser.error("--start-epochs is of a float network that is trained, not of --model")
    if arguments.start_epochs is None:
        arguments.start_epochs = 0 if arguments.model else 2 * arguments.epochs
    arguments.dataset = "digits" if arguments.name == "digits" else "cifar10"
    return arguments


def main() -> None:
    arguments = parsed()
    pipeline = Pipeline(arguments)
    model = pipeline.run()
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = arguments.out / f"deep_compression_{arguments.name}"
    pipeline.write(model, name.with_suffix(".qareg"))
    settings = {key: getattr(arguments, key) for key in SETTINGS} | circumstances()
    lines = [json.dumps({**row, **settings}) for row in pipeline.rows]
    name.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    text = tabulate(pipeline.rows)
    name.with_suffix(".txt").write_text(text + "\n")
    print(f"\n{text}\n\n{name}.qareg")


if __name__ == "__main__":
    main()
