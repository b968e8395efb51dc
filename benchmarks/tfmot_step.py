"""The part of `benchmarks.step` that needs tf_keras: TensorFlow Model Optimization's clustering.

Started by it in a process of its own. Prints the ratios, or the peak of memory, as JSON. Imports what
`keras-qareg[tfmot]` installs when it is used, so that `--help` does without.
"""

import argparse
import json
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import interleaved, peak_bytes, ratios

BATCH, LEVELS = 128, 16
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def network(name: str) -> Any:
    """The networks of `examples.architectures`, in tf_keras."""
    from tf_keras import Sequential, layers

    if name == "lenet":
        stack = [layers.InputLayer((32, 32, 3))]
        for filters in (32, 64):
            stack += [layers.Conv2D(filters, 5, padding="same", activation="relu")]
            stack += [layers.MaxPooling2D()]
        stack += [layers.Flatten(), layers.Dense(240, activation="relu"), layers.Dense(10)]
        return Sequential(stack)
    stack = [layers.InputLayer((32, 32, 3))]
    for filters in _VGG16:
        if filters:
            stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False)]
            stack += [layers.BatchNormalization(), layers.ReLU()]
        else:
            stack += [layers.MaxPooling2D()]
    stack += [layers.Flatten(), layers.Dropout(0.5), layers.Dense(512, activation="relu")]
    return Sequential([*stack, layers.Dropout(0.5), layers.Dense(10)])


def clustered(name: str) -> Any:
    import tensorflow_model_optimization as tfmot

    clustering = tfmot.clustering.keras
    start = clustering.CentroidInitialization.KMEANS_PLUS_PLUS
    return clustering.cluster_weights(
        network(name), number_of_clusters=LEVELS, cluster_centroids_init=start
    )


def stepper(model: Any) -> Callable[[], Any]:
    import tf_keras

    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, 32, 32, 3)).astype("float32")
    labels = random.integers(0, 10, BATCH)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    return lambda: model.train_on_batch(images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=("lenet", "vgg16"), default="lenet")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", metavar="MODEL")
    arguments = parser.parse_args()
    makers = {"plain": network, "TFMOT cluster_weights": clustered}
    if arguments.memory:
        step = stepper(makers[arguments.memory](arguments.network))
        step()
        step()
        print(json.dumps(peak_bytes()))
        return
    steps = {label: stepper(make(arguments.network)) for label, make in makers.items()}
    found = ratios(interleaved(steps, arguments.rounds), "plain")
    print(json.dumps(found["TFMOT cluster_weights"]))


if __name__ == "__main__":
    main()
