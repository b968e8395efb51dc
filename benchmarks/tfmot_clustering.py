"""The part of `benchmarks.pareto` that needs tf_keras: clustering by TensorFlow Model Optimization.

Started by it in a process of its own. Makes MLPerf Tiny's ResNet8 in tf_keras, gives it the weights of
the float model, clusters all convolutions and dense layers, trains them as `benchmarks.compress` trains
the float control (flips and shifts, Adam, a rate that falls by a cosine, labels), strips them, and
writes what TensorFlow's converter makes of them; `done.json` last.
"""

import argparse
import json
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.data import Images, augmented, load

BATCH, CALIBRATION = 64, 512
FORMS = ("float32", "dynamic", "int8")


def network() -> Any:
    """ResNet8 of MLPerf Tiny, its layers named as in the file that its authors gave."""
    from tf_keras import Input, Model, layers

    counts: dict[str, int] = {}

    def named(kind: Any, name: str, *arguments: Any, **settings: Any) -> Any:
        number = counts.get(name, 0)
        counts[name] = number + 1
        return kind(*arguments, name=f"{name}_{number}" if number else name, **settings)

    def convolved(inputs: Any, filters: int, size: int, strides: int = 1) -> Any:
        settings = {"strides": strides, "padding": "same"}
        return named(layers.Conv2D, "conv2d", filters, size, **settings)(inputs)

    def normalized(inputs: Any) -> Any:
        return named(layers.BatchNormalization, "batch_normalization")(inputs)

    inputs = Input((32, 32, 3))
    values = layers.ReLU()(normalized(convolved(inputs, 16, 3)))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        inner = layers.ReLU()(normalized(convolved(values, filters, 3, strides)))
        inner = convolved(inner, filters, 3)
        if strides > 1:
            values = convolved(values, filters, 1, strides)
        values = layers.ReLU()(layers.Add()([values, normalized(inner)]))
    values = layers.Flatten()(layers.AveragePooling2D(8)(values))
    return Model(inputs, named(layers.Dense, "dense", 10, activation="softmax")(values))


def with_weights(weights: dict[str, np.ndarray]) -> Any:
    """The network with the weights of these paths, such as `conv2d/kernel`.

    Raises:
        ValueError: If one is missing, or too many, or of another shape.
    """
    model = network()
    found = {weight.name.split(":")[0]: weight for weight in model.weights}
    if set(found) != set(weights):
        raise ValueError(
            "Expected the weights of MLPerf Tiny's ResNet8. Received: "
            f"{sorted(set(weights) ^ set(found))[:4]}, which are in one of the two only."
        )
    for name, weight in found.items():
        weight.assign(weights[name])
    return model


def epochs_of(data: Images, epochs: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches as those of `benchmarks.compress`: shuffled, turned over and moved at random."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(data.labels))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            places = order[start : start + BATCH]
            yield augmented(data.images[places].astype("float32"), random), data.labels[places]


def clustered(model: Any, data: Images, levels: int, epochs: int, rate: float, seed: int) -> Any:
    """The model after clustering, training, and stripping."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    clustering = tfmot.clustering.keras
    start = clustering.CentroidInitialization.KMEANS_PLUS_PLUS
    wrapped = clustering.cluster_weights(
        model, number_of_clusters=levels, cluster_centroids_init=start
    )
    steps = len(data.labels) // BATCH
    decay = tf_keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    wrapped.compile(
        tf_keras.optimizers.Adam(decay), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    if epochs:
        batches = epochs_of(data, epochs, seed)
        wrapped.fit(batches, epochs=epochs, steps_per_epoch=steps, verbose=2)
    return clustering.strip_clustering(wrapped)


def converted(model: Any, form: str, samples: np.ndarray) -> bytes:
    """A `.tflite` in float32, with int8 weights, or full integer inside: by samples, or as learned."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if form != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "int8":
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    content: bytes = converter.convert()
    return content


def settings(description: str | None) -> argparse.ArgumentParser:
    """The options of the programs that train ResNet8 by TFMOT."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help=".npz of the float model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the files")
    return parser


def start(given: argparse.Namespace) -> tuple[Any, Images, Images]:
    """The float model, and the images to train on and to test with."""
    import tf_keras

    tf_keras.utils.set_random_seed(given.seed)
    train, test = load("cifar10", given.data_dir)
    with np.load(given.weights) as arrays:
        return with_weights(dict(arrays)), train, test


def known(model: Any, data: Images) -> float:
    """Percent of the images that a network knows."""
    images = data.images.astype("float32")
    found = model.predict(images, batch_size=500, verbose=0).argmax(axis=1)
    return 100 * float(np.mean(found == data.labels))


def main() -> None:
    parser = settings(__doc__)
    parser.add_argument("--levels", type=int, required=True)
    given = parser.parse_args()
    model, train, test = start(given)
    before = known(model, test)
    done = clustered(model, train, given.levels, given.epochs, given.rate, given.seed)
    # Folders of classes are read one after the other: the first images are of one class.
    places = np.random.default_rng(0).permutation(len(train.labels))[:CALIBRATION]
    samples = train.images[places].astype("float32")
    for form in FORMS:
        (given.out / f"{form}.tflite").write_bytes(converted(done, form, samples))
    kernels = [weight.numpy() for weight in done.weights if "kernel" in weight.name]
    values = max(len(np.unique(kernel)) for kernel in kernels)
    found = {"float": before, "keras": known(done, test), "values": values}
    (given.out / "done.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
