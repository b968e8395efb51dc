"""The whole job in one call: from a trained model and a budget to a small one that does the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import ops

from keras_qareg.choices import check_choice
from keras_qareg.data import Data, read
from keras_qareg.layers import QuantizationAware, Weights
from keras_qareg.models import quantization_aware, recalibrate, share_weights, strip, wnq
from keras_qareg.models.compiling import compile_like
from keras_qareg.models.distilling import TEMPERATURE, distill
from keras_qareg.models.equalizing import equalize
from keras_qareg.models.selection import Layers, check_built, wrappers
from keras_qareg.report import table as text_table

METHODS = (
    *("auto", "sine", "cosine", "nearest_squared", "nearest_exponential", "wnq"),
    "kmeans",
)
# Inputs without which the statistics of batch normalization are better left as they are, and about so
# many, evenly taken, as are enough for them; and for a choice where there are no validation data.
_FEWEST_INPUTS, _ENOUGH_INPUTS, _JUDGED = 256, 4096, 2048
_CALIBRATION_BATCH = 256
# The share of the epochs that tune centroids at the end, and of the learning rate.
_TUNING_EPOCHS, _TUNING_RATE = 0.2, 0.1


@dataclass(frozen=True)
class Stage:
    """What a network was worth after a step of `compress`.

    Attributes:
        name: The step.
        results: What `evaluate` gave: the divergence from the float model, its loss and metrics.
        kept: Whether the step was kept, because it made the network no worse.
    """

    name: str
    results: dict[str, float]
    kept: bool = True


@dataclass(frozen=True)
class Compressed:
    """A compressed model, and how it came about.

    Attributes:
        model: The shared model, which has tables yet; `strip` makes a plain one.
        stages: What the network was worth after each step. Empty without data.
        plan: The `Plan` that was followed, where there was a budget.
    """

    model: keras.Model
    stages: tuple[Stage, ...] = ()
    plan: Any = None

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for stage in self.stages for name in stage.results))
        rows = [
            (
                stage.name if stage.kept else f"{stage.name} (undone)",
                *(f"{stage.results[n]:.4f}" if n in stage.results else "" for n in names),
            )
            for stage in self.stages
        ]
        return text_table(("step", *names), rows)


@dataclass(frozen=True)
class Job:
    """How a network is trained and judged.

    Attributes:
        teacher: The float model.
        data: What to train on.
        judged: What to judge on, and choose by.
        batch_size: Examples a step.
        temperature: Of the teacher's probabilities.
        distillation: The factor of the divergence from the teacher; 0: labels alone.
        verbose: As in `fit`.
    """

    teacher: keras.Model
    data: Data
    judged: Data
    batch_size: int
    temperature: float
    distillation: float
    verbose: str | int

    @property
    def has_loss(self) -> bool:
        """Whether the model says what its loss is."""
        return bool(getattr(self.teacher, "compiled", False))

    def trainer(self, network: keras.Model, optimizer: Any, labels: bool) -> keras.Model:
        """What trains or judges a network: a distiller, or the network where it trains by itself."""
        if type(self.teacher).train_step is not keras.Model.train_step:
            if not network.compiled:
                compile_like(network, self.teacher, optimizer=optimizer)
            return network
        trainer = distill(
            network, self.teacher, temperature=self.temperature, weight=self.distillation
        )
        if labels:
            compile_like(trainer, self.teacher, optimizer=optimizer)
        else:
            trainer.compile(optimizer)
        return trainer

    def judge(self, network: keras.Model) -> Callable[[], dict[str, float]]:
        """What says, again and again, what a network is worth: results of `evaluate`, by name."""
        labels = self.has_loss and self.judged.has_targets
        trainer = self.trainer(network, "sgd", labels)
        arguments = self.judged.evaluate_arguments(self.batch_size)

        def results() -> dict[str, float]:
            found = trainer.evaluate(**arguments, verbose=0, return_dict=True)
            kept = {name: value for name, value in found.items() if name != "loss" or labels}
            return {name: float(value) for name, value in kept.items()}

        return results

    def train(self, network: keras.Model, epochs: int, optimizer: Any) -> None:
        """Trains a network, and leaves it as it was after its best epoch, or at the start."""
        trainer = self.trainer(network, optimizer, self.has_loss and self.data.has_targets)
        best = _Best(network, self.judge(network))
        trainer.fit(
            **self.data.fit_arguments(self.batch_size),
            epochs=epochs,
            callbacks=[best],
            verbose=self.verbose,
        )
        best.restore()


class _Best(keras.callbacks.Callback):
    """Keeps the weights of the epoch after which a network was best, its start included."""

    def __init__(self, network: keras.Model, judge: Callable[[], dict[str, float]]):
        super().__init__()
        self.network, self.judge = network, judge
        self.least = float("inf")
        self.note()

    def note(self) -> None:
        value = badness(self.judge())
        if value < self.least:
            self.least = value
            self.weights = [ops.convert_to_numpy(w).copy() for w in self.network.weights]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.note()

    def restore(self) -> None:
        for weight, value in zip(self.network.weights, self.weights, strict=True):
            weight.assign(value)


def badness(results: dict[str, float]) -> float:
    """The one number that networks are compared by: NaN is the worst."""
    value = results.get("divergence", results.get("loss", 0.0))
    return value if value == value else float("inf")


def compress(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    validation_data: Any = None,
    *,
    levels: Any = 16,
    layers: Layers = "all",
    weights: Weights = None,
    sample_weight: Any = None,
    steps: int | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    optimizer: Any = None,
    learning_rate: float = 1e-3,
    method: str = "auto",
    distillation: float = 1.0,
    temperature: float = TEMPERATURE,
    table: Any = "int8",
    scale: Any = "auto",
    seed: int | None = None,
    verbose: str | int = "auto",
) -> keras.Model:
    """TODO"""
    found = run(**locals())
    if found.stages and verbose not in (0, "0"):
        print(found)
    return strip(found.model)


def run(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    validation_data: Any = None,
    *,
    levels: Any = 16,
    layers: Layers = "all",
    weights: Weights = None,
    sample_weight: Any = None,
    steps: int | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    optimizer: Any = None,
    learning_rate: float = 1e-3,
    method: str = "auto",
    distillation: float = 1.0,
    temperature: float = TEMPERATURE,
    table: Any = "int8",
    scale: Any = "auto",
    seed: int | None = None,
    verbose: str | int = "auto",
) -> Compressed:
    check_built(model)
    check_choice("method", method, METHODS)
    if seed is not None:
        keras.utils.set_random_seed(seed)
    given = x if y is None else (x, y) if sample_weight is None else (x, y, sample_weight)
    way = {"layers": layers, "weights": weights, "table": table, "levels": levels}
    if given is None:
        return Compressed(share_weights(model, **way, scale=scale, verbose=verbose))
    data = read(given, model, steps=steps, name="x").repeatable()
    judged = (
        data.some(_JUDGED, batch_size)
        if validation_data is None
        else read(validation_data, model, name="validation_data").repeatable()
    )
    job = Job(model, data, judged, batch_size, temperature, distillation, verbose)
    stages = [Stage("float", job.judge(model)())]
    tuning = 0 if method == "wnq" else max(1, round(_TUNING_EPOCHS * epochs))
    tuning = epochs if method == "kmeans" else tuning
    if method == "kmeans":
        shared = share_weights(model, **way, scale=scale)
    else:
        student = _student(model, method, way)
        stages.append(_recalibrated(student, job, "quantized"))
        rate = optimizer or _adam(learning_rate, epochs - tuning, data, batch_size)
        job.train(student, epochs - tuning, rate)
        stages.append(Stage("trained", job.judge(student)()))
        shared = student if method == "wnq" else share_weights(student, scale=scale, table=table)
    if method == "kmeans":
        stages.append(Stage("shared", job.judge(shared)()))
    stages.append(_recalibrated(shared, job, "recalibrated"))
    if tuning:
        rate = _adam(_TUNING_RATE * learning_rate, tuning, data, batch_size)
        job.train(shared, tuning, rate)
        stages.append(Stage("tuned", job.judge(shared)()))
    return Compressed(shared, tuple(stages))


def _student(model: keras.Model, method: str, way: dict[str, Any]) -> keras.Model:
    if method == "wnq":
        bits = int(way["levels"]).bit_length() - 1
        return wnq(model, bits, layers=way["layers"], skip=())
    kind = "nearest_squared" if method == "auto" else method
    regularizer = {"class_name": kind, "config": {"levels": way["levels"], "strength": 0.0}}
    student = quantization_aware(
        model, regularizer, way["layers"], weights=way["weights"], table=way["table"]
    )
    equalize(student)
    for layer in wrappers(student):
        if isinstance(layer, QuantizationAware):
            layer.place_centroids()
    return student


def _adam(rate: float, epochs: int, data: Data, batch_size: int) -> keras.optimizers.Optimizer:
    steps = data.steps_an_epoch(batch_size)
    if steps is None:
        return keras.optimizers.Adam(rate)
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(rate, max(1, epochs * steps))
    )


def _recalibrated(network: keras.Model, job: Job, name: str) -> Stage:
    judge = job.judge(network)
    before = judge()
    if not job.data.has(_FEWEST_INPUTS):
        return Stage(name, before)
    kept = [ops.convert_to_numpy(w).copy() for w in network.weights]
    some = job.data.some(_ENOUGH_INPUTS, _CALIBRATION_BATCH)
    recalibrate(network, (inputs for inputs, _, _ in some.batches(_CALIBRATION_BATCH)))
    after = judge()
    if badness(after) <= badness(before):
        return Stage(name, after)
    for weight, value in zip(network.weights, kept, strict=True):
        weight.assign(value)
    return Stage(name, before, kept=False)
