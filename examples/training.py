"""What experiments on images share: data, networks, training and accuracies.

First what all of them use, then the small network for scikit-learn's digits, then `Experiment`, for any
data set and network. Benchmarks take what they need of the examples from here and from `examples.study`.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import keras_qareg as qareg
from examples import distribution
from examples.architectures import NETWORKS
from examples.data import augmented, batches, load
from examples.study import at_least
from keras_qareg.report import summary

# Ways to few distinct weights: plain training and k-means, or a regularizer of this name.
BASELINE = "k-means"
REGULARIZERS = ("Sine", "Cosine", "NearestSquared", "NearestExponential")
METHODS = (BASELINE, *REGULARIZERS)
# Whether kernels are normalized, by what weight normalization based quantization then is called.
NORMALIZE = {"LQ-Nets": False, "WNQ": True}
# Of the networks for digits.
EPOCHS, TUNING_EPOCHS = 40, 10
LEARNING_RATE, TUNING_RATE = 1e-3, 3e-3
MOMENTUM = 0.9
# What tells the settings of one `Experiment` from those of another, in the rows of its file.
SETTINGS = (
    "dataset",
    "network",
    "width",
    "epochs",
    "batch_size",
    "images",
    "validation",
    "augment",
    "weight_decay",
)
Data = tuple[np.ndarray, np.ndarray]


class FallingRate(keras.callbacks.Callback):
    """Lets each learning rate of the optimizer fall to nothing in the end, in up to 20 steps an epoch.

    Args:
        share: Of the training, in which it falls. Defaults to a third.
    """

    def __init__(self, share: float = 1 / 3):
        super().__init__()
        self.share = share
        self._epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        optimizer = self.model.optimizer
        self.parts = getattr(optimizer, "optimizers", [optimizer])
        self.rates = [float(ops.convert_to_numpy(part.learning_rate)) for part in self.parts]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        steps = self.params["steps"] or 1
        left = 1 - (self._epoch + batch / steps) / self.params["epochs"]
        if left < self.share and not batch % -(-steps // 20):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()  # during an epoch, Keras keeps the rates elsewhere
            for part, rate in zip(self.parts, self.rates, strict=True):
                part.learning_rate = rate * left / self.share


def sgd(rate: Any, decay: float) -> keras.optimizers.Optimizer:
    """SGD with Nesterov's momentum of 0.9, and a decay of kernels as papers give it.

    Theirs is added to the gradient, so that momentum multiplies it by ten; Keras takes it from the
    weights, and it does not.
    """
    found = keras.optimizers.SGD(rate, MOMENTUM, True, weight_decay=decay / (1 - MOMENTUM))
    found.exclude_from_weight_decay(var_names=["gamma", "beta", "bias", "centroids"])
    return found


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Percent of the images that are told right."""
    scores = ops.convert_to_numpy(model(images, training=False))
    return 100.0 * float((scores.argmax(-1) == labels).mean())


def digits(validation: float = 0.0) -> tuple[Data, Data]:
    """Images `(n, 8, 8, 1)` in [0, 1] and labels: three quarters to train, one quarter to test.

    With `validation`, the second part is so large a share of the images to train on, set aside.
    """
    train, test = load("digits")
    if validation:
        train, test = train.split(validation)
    black = np.zeros(1, "float32")
    return (train.pixels(black), train.labels), (test.pixels(black), test.labels)


def digits_network() -> keras.Model:
    """Two convolutions and two dense layers: about 41,000 weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(60, activation="relu", name="dense"),
            layers.Dense(10, name="logits"),
        ],
        name="digits",
    )


def fit(
    model: keras.Model,
    data: Data,
    epochs: int,
    *callbacks: Any,
    optimizer: Any = None,
    seed: int | None = None,
) -> None:
    """Trains with a learning rate that falls in the end.

    `optimizer` is Adam by default; `seed`, where given, sets the order of the images.
    """
    if seed is not None:
        keras.utils.set_random_seed(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(LEARNING_RATE), loss)
    callbacks = (FallingRate(), *callbacks)
    model.fit(*data, epochs=epochs, batch_size=32, verbose=0, callbacks=list(callbacks))


def train(
    data: Data,
    seed: int,
    regularizer: Any = None,
    epochs: int = EPOCHS,
    schedule: Any = None,
    centroid_rate: float = 1.0,
    straight_through: bool = True,
) -> keras.Model:
    """The network for digits trained from a seed, with a regularizer or without.

    `centroid_rate` multiplies the learning rate of the centroids.
    """
    keras.utils.set_random_seed(seed)
    model, optimizer = digits_network(), keras.optimizers.Adam(LEARNING_RATE)
    if regularizer is None:
        fit(model, data, epochs, optimizer=optimizer)
        return model
    if centroid_rate != 1.0:
        rate = centroid_rate * LEARNING_RATE
        optimizer = qareg.optimizers.with_centroid_optimizer(optimizer, rate)
    model = qareg.quantization_aware(model, regularizer, straight_through=straight_through)
    schedule = schedule or qareg.callbacks.PenaltySchedule()
    fit(model, data, epochs, schedule, optimizer=optimizer)
    return model


def share_and_tune(
    model: keras.Model, levels: int, data: Data, test: Data, tuning_epochs: int = TUNING_EPOCHS
) -> tuple[keras.Model, dict[str, Any]]:
    """The shared and tuned model, and its accuracies before and after tuning."""
    shared = qareg.share_weights(model, levels=levels)
    figures = {"float": accuracy(model, *test), "shared": accuracy(shared, *test)}
    fit(shared, data, tuning_epochs, optimizer=keras.optimizers.Adam(TUNING_RATE))
    figures |= {"tuned": accuracy(shared, *test), "entropy": summary(shared).entropy}
    return shared, figures


class Experiment:
    """Data and training of a study.

    Attributes:
        arguments: What `parser` parsed.
        train: The images to train on.
        test: The images that accuracies are of: with `--validation`, training images set aside.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        train, test = load(arguments.dataset, arguments.data_dir)
        if arguments.images:
            train = train.split(arguments.images / len(train.labels))[1]
        if arguments.validation:
            train, test = train.split(arguments.validation)
        self.train, self.test, self.mean = train, test, train.mean

    def network(self) -> keras.Model:
        """The network of the arguments, untrained."""
        make: Any = NETWORKS[self.arguments.network]
        return make(self.train.classes, width=self.arguments.width)

    def fit(
        self,
        model: keras.Model,
        epochs: int,
        rate: float,
        seed: int,
        *callbacks: Any,
    ) -> None:
        """Trains by Adam, or with `--weight-decay` by SGD; the rate falls in the last third."""
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        decay = self.arguments.weight_decay
        model.compile(sgd(rate, decay) if decay else keras.optimizers.Adam(rate), loss)
        source = batches(
            self.train,
            self.mean,
            self.arguments.batch_size,
            self.arguments.augment,
            seed,
            drop_remainder=distribution.replicas() > 1,
        )
        callbacks = (FallingRate(), *callbacks)
        settings = {"verbose": self.arguments.verbose, "callbacks": list(callbacks)}
        distribution.fit(model, source, epochs=epochs, shuffle=False, **settings)

    def accuracy(self, model: keras.Model) -> float:
        """Percent of the test images that are told right."""
        count = len(self.test.labels)
        right = 0.0
        for part in np.array_split(np.arange(count), -(-count // 500)):
            images = self.test.take(part)
            right += accuracy(model, images.pixels(self.mean), images.labels) * len(part)
        return right / count

    def some_pixels(self, count: int) -> np.ndarray:
        """Pixels of training images, as many of them at most."""
        places = np.random.default_rng(0).permutation(len(self.train.labels))[:count]
        return self.train.take(places).pixels(self.mean)

    def recalibrate(self, model: keras.Model) -> None:
        """Measures batch normalization anew, on images like those that the network was trained on."""
        pixels = self.some_pixels(5_000)
        if self.arguments.augment:
            pixels = augmented(pixels, np.random.default_rng(0))
        qareg.recalibrate(model, pixels)

    def kept(self, model: keras.Model, *name: Any, **settings: Any) -> bool:
        """Whether the weights were kept under a name; the model then has them.

        The settings of the arguments belong to the name, or those given in their place.
        """
        file = self._file(*name, **settings)
        if file.exists():
            model.load_weights(file)
        return file.exists()

    def keep(self, model: keras.Model, *name: Any, **settings: Any) -> None:
        """Keeps the weights of a model under a name, as `kept` takes it: whole, or not at all."""
        file = self._file(*name, **settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            draft = Path(folder) / file.name
            model.save_weights(draft)
            draft.replace(file)

    def _file(self, *name: Any, **settings: Any) -> Path:
        found = {**vars(self.arguments), **settings}
        parts = map(str, (*(found[key] for key in SETTINGS), *name))
        return self.arguments.out / "weights" / f"{'_'.join(parts)}.weights.h5"


def parser(description: str, network: str, epochs: int) -> argparse.ArgumentParser:
    """The arguments that all experiments have, with their defaults."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--network", choices=NETWORKS, default=network)
    found.add_argument("--width", type=float, default=1.0, help="of all layers (default: 1)")
    found.add_argument("--dataset", default="cifar10")
    found.add_argument("--data-dir", type=Path, help="zips or folders of class folders")
    found.add_argument("--images", type=at_least(0), default=0, help="to train on (default: all)")
    found.add_argument("--validation", type=float, default=0.0, help="share of training images")
    found.add_argument("--augment", action="store_true", help="turn images over, move them")
    found.add_argument("--seeds", type=at_least(1), default=3)
    found.add_argument("--epochs", type=at_least(1), default=epochs)
    found.add_argument("--batch-size", type=at_least(1), default=128)
    found.add_argument("--weight-decay", type=float, help="trains by SGD with it, not by Adam")
    found.add_argument("--verbose", type=int, default=0, help="of fit")
    found.add_argument("--distribute", choices=distribution.KINDS, default="none")
    found.add_argument("--out", type=Path, default=Path("output"))
    found.add_argument(
        "--draw", action="store_true", help="table and figures of what was run; no more"
    )
    return found


@contextlib.contextmanager
def on_devices(arguments: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Arguments with an `out` for each worker; within it, all is done on `--distribute`'s devices."""
    with distribution.distributed(arguments.distribute):
        if distribution.worker():
            arguments.out /= f"worker-{distribution.worker()}"
        yield arguments
