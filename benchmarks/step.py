"""A training step with each regularizer, with WNQ, and with TensorFlow Model Optimization's clustering.

    python -m benchmarks.step --network vgg16 --out results     # or lenet

Steps of all models run in turn, on a batch of 128 random images, compiled as `fit` compiles them; ratios
are to the plain model's step of the same round. TensorFlow Model Optimization needs tf_keras, and so a
process of its own, where it is compared with the plain tf_keras model in the same way; it is left out
where `keras-qareg[tfmot]` is not installed. Peaks of memory are of processes that make two steps.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_qareg as qareg
from benchmarks import results
from benchmarks.timing import in_subprocess, interleaved, peak_bytes, ratios
from examples.training import NETWORKS, REGULARIZERS
from keras_qareg.models.selection import wrappers
from keras_qareg.report import table

BATCH, LEVELS = 128, 16
BASELINE, TFMOT = "plain", "TFMOT cluster_weights"
SHARING, STRAIGHT = "share_weights", ", straight through"
# What `compress` trains: the teacher is asked once for arrays, and in each step for other data.
TAUGHT = {"compress, arrays": True, "compress, batches": False}


def network(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    return NETWORKS[name](10)


def variants(name: str) -> dict[str, Callable[[], keras.Model]]:
    """Functions that make the models to compare."""

    def regularized(kind: str, straight_through: bool) -> keras.Model:
        regularizer = getattr(qareg.regularizers, kind)(LEVELS)
        model = qareg.quantization_aware(
            network(name), regularizer, straight_through=straight_through
        )
        for layer in wrappers(model):
            layer.place_centroids()
        return model

    def taught(told: bool) -> keras.Model:
        model = qareg.distill(regularized("Sine", True), network(name))
        model.told = told
        return model

    def with_l2() -> keras.Model:
        model = network(name)
        for kernel in qareg.layers.kernels(model):
            kernel.regularizer = keras.regularizers.L2(1e-4)
        return model

    found: dict[str, Callable[[], keras.Model]] = {BASELINE: lambda: network(name), "L2": with_l2}
    for kind in REGULARIZERS:
        found[kind] = lambda kind=kind: regularized(kind, False)
        found[kind + STRAIGHT] = lambda kind=kind: regularized(kind, True)
    found["DKM"] = lambda: regularized("DKM", True)
    found["re-assignment"] = lambda: qareg.share_weights(
        network(name), LEVELS, trainable="assignments"
    )
    found |= {label: lambda told=told: taught(told) for label, told in TAUGHT.items()}
    return {**found, "WNQ, 2 bits": lambda: qareg.wnq(network(name), bits=2)}


def batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, 32, 32, 3)).astype("float32")
    return images, random.integers(0, 10, BATCH)


def stepper(model: keras.Model) -> Callable[[], Any]:
    """One training step, and waiting for it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
    images, labels = batch()
    told = getattr(model, "told", False)
    targets = (labels, (model.teacher.predict(images, verbose=0),)) if told else labels
    return lambda: model.train_on_batch(images, targets)


def measure(name: str, rounds: int, only: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of all variants, or of some: ratio of the time of a step, and of the peak memory."""
    makers = variants(name)
    labels = [BASELINE, *only] if only else list(makers)
    steps = {label: stepper(makers[label]()) for label in labels}
    found = ratios(interleaved(steps, rounds), BASELINE)
    plain = _peak(name, BASELINE)
    rows = [
        {"network": name, "model": label, **ratio, "memory": _peak(name, label) / plain}
        for label, ratio in found.items()
    ]
    if only:
        return rows
    rows.append({"network": name, "model": SHARING, **_sharing(name, steps[BASELINE], rounds)})
    try:
        rows.append({"network": name, "model": TFMOT, **_tfmot(name, rounds)})
    except RuntimeError as error:
        print(f"Left out {TFMOT}: {str(error).strip().splitlines()[-1]}")
    return rows


def _peak(name: str, label: str) -> int:
    found: int = in_subprocess("benchmarks.step", "--network", name, "--memory", label)
    return found


def _sharing(name: str, step: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Sharing all layers, in units of a training step."""
    model = network(name)
    pair = {"step": step, "share": lambda: qareg.share_weights(model, LEVELS)}
    return ratios(interleaved(pair, rounds, warm_up=1), "step")["share"]


def _tfmot(name: str, rounds: int) -> dict[str, float]:
    """The ratios of TensorFlow Model Optimization, from a process that has tf_keras."""
    arguments = ("--network", name, "--rounds", str(rounds))
    peaks = [
        in_subprocess("benchmarks.tfmot_step", *arguments, "--memory", kind)
        for kind in (BASELINE, TFMOT)
    ]
    found: dict[str, float] = in_subprocess("benchmarks.tfmot_step", *arguments)
    return {**found, "memory": peaks[1] / peaks[0]}


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a model."""
    lines = [
        (
            row["model"],
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f}-{row['high']:.3f}",
            f"{row['memory']:.2f}" if "memory" in row else "",
        )
        for row in rows
    ]
    return table(("model", "time of a step", "quartiles", "peak memory"), lines)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--network", choices=("lenet", "vgg16"), default="lenet")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", metavar="MODEL")
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="these and the plain one (default: all)"
    )
    arguments = parser.parse_args()
    name, backend = arguments.network, keras.backend.backend()
    if arguments.memory:
        step = stepper(variants(name)[arguments.memory]())
        step()
        step()
        print(json.dumps(peak_bytes()))
        return
    unknown = set(arguments.models or ()) - set(variants(name))
    if unknown:
        parser.error(f"Expected models of {list(variants(name))}. Received: {sorted(unknown)}")
    began = time.time()
    rows = [
        {"backend": backend, **row} for row in measure(name, arguments.rounds, arguments.models)
    ]
    print(f"{name}, batches of {BATCH}, {backend}; {time.time() - began:.0f} s")
    results.save(arguments.out, f"step_{name}_{backend}", rows, tabulate)
    bars = {row["model"]: row["ratio"] for row in rows}
    results.draw_bars(arguments.out, f"step_{name}_{backend}", bars, "time, of a plain step")


if __name__ == "__main__":
    main()
