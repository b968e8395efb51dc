"""Training on several devices or machines, chosen by one word.

`"mirrored"`: all devices of this machine, `tf.distribute.MirroredStrategy`. `"workers"`: one process on
each machine that the environment's `TF_CONFIG` names, `tf.distribute.MultiWorkerMirroredStrategy`.
`"data-parallel"`: all devices that JAX sees, `keras.distribution.DataParallel`. `docs/scaling.md` says
how to start them, and what was tested.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import keras

KINDS = ("none", "mirrored", "workers", "data-parallel")


@contextlib.contextmanager
def distributed(kind: str) -> Iterator[None]:
    """Within it, models are made for the devices of a kind, and trained on all of them.

    Args:
        kind: One of `KINDS`.

    Raises:
        ValueError: If the backend has no such kind, or `TF_CONFIG` is missing for `"workers"`.
    """
    backend = "jax" if kind == "data-parallel" else "tensorflow"
    if kind != "none" and keras.backend.backend() != backend:
        raise ValueError(
            f"Expected KERAS_BACKEND={backend} for distribution '{kind}'. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    if kind == "none":
        yield
    elif kind == "data-parallel":
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)
    else:
        with _strategy(kind).scope():
            yield


def _strategy(kind: str) -> Any:
    import tensorflow as tf

    if kind == "mirrored":
        devices = [device.name for device in tf.config.list_logical_devices()]
        accelerators = [name for name in devices if "CPU" not in name]
        return tf.distribute.MirroredStrategy(accelerators or devices)
    if "TF_CONFIG" not in os.environ:
        raise ValueError(
            "Expected the environment variable TF_CONFIG, which names all workers and which of them "
            "this process is (docs/scaling.md has an example). Received: none."
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def strategy_in_use() -> Any:
    """The strategy of TensorFlow that `distributed` set, or `None`."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def replicas() -> int:
    """How many parts a batch is cut into; all batches must be a multiple of it."""
    if strategy := strategy_in_use():
        count: int = strategy.num_replicas_in_sync
        return count
    parallel = keras.distribution.distribution()
    return 1 if parallel is None else parallel.device_mesh.devices.size


def worker() -> int:
    """The number of this process among the workers: 0 where there is one. Only 0 should write files."""
    task: int = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    return task


def fit(model: keras.Model, data: Any, **arguments: Any) -> keras.callbacks.History:
    """`model.fit`, on several machines too, where Keras 3 fails by itself (its issue 20585).

    There it takes a distributed batch for one tensor: before the first step, to build what is not
    built, and after each step, to reduce what all workers found. So all is built here, from a batch of
    this worker's, and the model is given steps that reduce numbers.

    Args:
        model: A compiled model, made within `distributed`.
        data: What `fit` takes. Where there are several workers, a `tf.data.Dataset` in the same order
            on all of them, of batches that they share: each reads some of its files, or takes its
            share of each batch where it is not read from files.
        **arguments: Those of `fit`.
    """
    strategy = strategy_in_use()
    if strategy is not None and _is_of_workers(strategy):
        model._symbolic_build(data_batch=next(iter(data)))
        model._maybe_symbolic_build = lambda **_: None
        model.train_function = _reducing(strategy, model.train_step)
        model.test_function = _reducing(strategy, model.test_step)
    return model.fit(data, **arguments)


def _is_of_workers(strategy: Any) -> bool:
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _reducing(strategy: Any, step: Any) -> Any:
    import tensorflow as tf

    @tf.function
    def run(iterator: Any) -> Any:
        found = strategy.run(step, args=(next(iterator),))
        return tf.nest.map_structure(lambda x: strategy.reduce("MEAN", x, axis=None), found)

    return run
