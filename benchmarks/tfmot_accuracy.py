"""The part of `benchmarks.accuracy` that needs tf_keras: clustering by TensorFlow Model Optimization.

Started by it in a process of its own, with a folder: the weights of the float network, its data, and
`settings.json`. Clusters all convolutions and dense layers, trains all weights on the same batches,
strips them, and writes accuracy, bytes and the time of a step to `done.json`; for no epochs, the
time alone. `Order` is what both train on.
"""

import argparse
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.data import augmented

# What `cluster_weights` starts from.
STARTS = ("KMEANS_PLUS_PLUS", "LINEAR")


class Order:
    """Batches in an order that a seed tells; a new one for each epoch."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, batch_size: int, augment: bool, seed: int
    ):
        self.images, self.labels, self.batch_size, self.augment = (
            images,
            labels,
            batch_size,
            augment,
        )
        self.random = np.random.default_rng(seed)
        self.shuffle()

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def shuffle(self) -> None:
        """The next epoch."""
        self.order = self.random.permutation(len(self.labels))

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        places = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[places]
        return augmented(images, self.random, 1 / 16) if self.augment else images, self.labels[
            places
        ]

    def epochs(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All batches of so many epochs."""
        for _ in range(count):
            yield from (self.batch(index) for index in range(len(self)))
            self.shuffle()


def digits_network() -> Any:
    """The network of `examples.training`, its layers named so, in tf_keras."""
    from tf_keras import Input, Sequential, layers

    convolution = {"padding": "same", "activation": "relu"}
    return Sequential(
        [
            Input((8, 8, 1)),
            layers.Conv2D(32, 3, name="conv_1", **convolution),
            layers.Conv2D(32, 3, name="conv_2", **convolution),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(60, activation="relu", name="dense"),
            layers.Dense(10, name="logits"),
        ]
    )


def with_weights(arrays: dict[str, np.ndarray]) -> Any:
    """The network that has weights of these paths, with them: for digits, or ResNet8."""
    from benchmarks import tfmot_clustering

    if not any(path.startswith("conv_1/") for path in arrays):
        return tfmot_clustering.with_weights(arrays)
    model = digits_network()
    for weight in model.weights:
        weight.assign(arrays[weight.name.split(":")[0]])
    return model


def clustered(model: Any, levels: int, start: str) -> Any:
    import tensorflow_model_optimization as tfmot

    clustering = tfmot.clustering.keras
    found = getattr(clustering.CentroidInitialization, start)
    return clustering.cluster_weights(
        model, number_of_clusters=levels, cluster_centroids_init=found
    )


def compile_model(model: Any, rate: Any, logits: bool) -> None:
    import tf_keras

    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(tf_keras.optimizers.Adam(rate), loss)


def step_share(make: Callable[[], Any], wanted: dict[str, Any], batch: Any) -> float:
    """A step of the clustered network in units of the plain one's."""
    from benchmarks.timing import interleaved, ratios

    models = {"plain": make(), "clustered": clustered(make(), wanted["levels"], wanted["start"])}
    for model in models.values():
        compile_model(model, 1e-4, wanted["logits"])
    steps = {name: lambda m=model: m.train_on_batch(*batch) for name, model in models.items()}
    return ratios(interleaved(steps, wanted["rounds"], warm_up=5), "plain")["clustered"]["ratio"]


def measured(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The figures of a cell."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from benchmarks.tfmot_clustering import converted

    tf_keras.utils.set_random_seed(wanted["seed"])
    weights, data = (dict(np.load(folder / f"{name}.npz")) for name in ("weights", "data"))
    order = Order(data["x"], data["y"], wanted["batch_size"], wanted["augment"], wanted["seed"])
    step = None
    if wanted["rounds"]:
        step = step_share(lambda: with_weights(weights), wanted, order.batch(0))
    if not wanted["epochs"]:
        return {"step": step}
    model = clustered(with_weights(weights), wanted["levels"], wanted["start"])
    steps = wanted["epochs"] * len(order)
    decay = tf_keras.optimizers.schedules.CosineDecay(wanted["rate"], steps)
    compile_model(model, decay, wanted["logits"])
    batches = order.epochs(wanted["epochs"])
    model.fit(batches, epochs=wanted["epochs"], steps_per_epoch=len(order), verbose=0)
    model = tfmot.clustering.keras.strip_clustering(model)
    right = (
        model.predict(data["test_x"], batch_size=500, verbose=0).argmax(axis=1) == data["test_y"]
    )
    file = converted(model, "float32", data["x"])
    kernels = [weight.numpy() for weight in model.weights if "kernel" in weight.name]
    return {
        "accuracy": 100 * float(np.mean(right)),
        "step": step,
        "values": max(len(np.unique(kernel)) for kernel in kernels),
        "bytes": {"smallest": len(file), "gzip": len(gzip.compress(file, 9))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    wanted = json.loads((folder / "settings.json").read_text())
    (folder / "done.json").write_text(json.dumps(measured(folder, wanted)))


if __name__ == "__main__":
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
