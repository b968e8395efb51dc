"""One of the processes of test_distribution.py: trains small models for a few steps, and writes them.

    python -m tests.examples.worker DISTRIBUTION FOLDER [regularized] [wnq] [--dies-in EPOCH]

The weights by their paths go to `FOLDER/MODEL/worker-N.npz`; after each epoch the state is kept in
`FOLDER/MODEL/backup-N`, from where the same command goes on after it was killed.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, ops

import keras_qareg as qareg
from examples import distribution
from tests.helpers import digits

EPOCHS, BATCH, IMAGES = 4, 64, 192


def network(kind):
    # A seed with which no activation is so near to a border between levels that rounding decides: how a
    # batch is cut up changes the last bits, on some processors more than on others.
    keras.utils.set_random_seed(3)
    together = distribution.strategy_in_use() is not None
    stack = [
        keras.Input((8, 8, 1)),
        layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv"),
        layers.BatchNormalization(synchronized=together, name="norm"),
        layers.ReLU(name="relu"),
        layers.Conv2D(8, 3, activation="relu", name="second"),
        layers.Flatten(name="flatten"),
        layers.Dense(16, activation="relu", name="fc"),
        layers.Dense(10, name="out"),
    ]
    model = keras.Sequential(stack, name="cnn")
    if kind == "wnq":
        return qareg.wnq(model, bits=2, activation_bits=3)
    return qareg.quantization_aware(model, qareg.regularizers.NearestSquared(4, strength=0.1))


def data():
    images, labels = digits(IMAGES)
    if keras.backend.backend() != "tensorflow":
        return {"x": images, "y": labels, "batch_size": BATCH}
    import tensorflow as tf

    return {"x": tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)}


def split_the_processor():
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


class Dies(keras.callbacks.Callback):
    """Ends the process in the middle of an epoch, with nothing tidied up."""

    def __init__(self, epoch):
        super().__init__()
        self.dying, self.epoch = False, epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.dying = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.dying and batch == 1:
            os._exit(9)


def train(kind, folder, number, dies_in):
    """Trains one model from the start or from its backup, and writes its weights."""
    model = network(kind)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, 0.9), loss, metrics=["accuracy"])
    callbacks = [
        keras.callbacks.BackupAndRestore(str(folder / f"backup-{number}")),
        Dies(dies_in),
    ]
    if kind == "regularized":
        callbacks.append(qareg.callbacks.PenaltySchedule(warmup_epochs=1, power=1))
    source = data()
    distribution.fit(
        model,
        source.pop("x"),
        epochs=EPOCHS,
        verbose=2,
        shuffle=False,
        callbacks=callbacks,
        **source,
    )
    weights = {w.path: np.array(ops.convert_to_numpy(w)) for w in model.weights}
    np.savez(folder / f"worker-{number}.npz", **weights)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("distribution", choices=distribution.KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+", choices=("regularized", "wnq"))
    parser.add_argument("--dies-in", type=int)
    arguments = parser.parse_args()
    number = distribution.worker()
    if arguments.distribution == "mirrored":
        split_the_processor()
    with distribution.distributed(arguments.distribution):
        print(f"{distribution.replicas()} replicas")
        for model in arguments.models:
            folder = arguments.folder / model
            folder.mkdir(exist_ok=True)
            train(model, folder, number, arguments.dies_in)


if __name__ == "__main__":
    main()
