"""The whole job in one call: from a trained model and a budget to a small one that does the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg import regularizers
from keras_qareg.choices import check_choice
from keras_qareg.data import Data, read
from keras_qareg.layers import QuantizationAware, Weights
from keras_qareg.models import (
    quantization_aware,
    recalibrate,
    share_weights,
    strip,
    wnq,
)
from keras_qareg.models.compiling import compile_like
from keras_qareg.models.configuring import Setting
from keras_qareg.models.distilling import TEMPERATURE, distill
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
_DEFAULT_METHOD = "nearest_squared"
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
        best = _BestEpoch(self, network)
        trainer.fit(
            **self.data.fit_arguments(self.batch_size),
            epochs=epochs,
            callbacks=[best],
            verbose=self.verbose,
        )
        best.restore()

    def recalibrate(self, network: keras.Model) -> bool:
        """Measures batch normalization anew, where there are inputs enough; says whether."""
        if not self.enough:
            return False
        some = self.data.some(_ENOUGH_INPUTS, _CALIBRATION_BATCH)
        recalibrate(network, (inputs for inputs, _, _ in some.batches(_CALIBRATION_BATCH)))
        return True

    def recalibrated(self, network: keras.Model, name: str) -> Stage:
        """The stage of measuring anew, which is undone where that is worse."""
        judge, kept = self.judge(network), values_of(network)
        before = judge()
        if not self.recalibrate(network):
            return Stage(name, before)
        after = judge()
        if badness(after) <= badness(before):
            return Stage(name, after)
        assign(network, kept)
        return Stage(name, before, kept=False)

    @cached_property
    def enough(self) -> bool:
        """Whether there are inputs enough for statistics."""
        return self.data.has(_FEWEST_INPUTS)

    def adam(self, rate: float, epochs: int) -> keras.optimizers.Optimizer:
        """Adam, whose learning rate falls to nothing by a cosine, where the steps are known."""
        steps = self.data.steps_an_epoch(self.batch_size)
        if steps is None:
            return keras.optimizers.Adam(rate)
        decay = keras.optimizers.schedules.CosineDecay(rate, max(1, epochs * steps))
        return keras.optimizers.Adam(decay)


class _BestEpoch(keras.callbacks.Callback):
    """Keeps the weights of the epoch after which a network was best, its start included."""

    def __init__(self, job: Job, network: keras.Model):
        super().__init__()
        self.job, self.network, self.judge = job, network, job.judge(network)
        self.least = float("inf")
        self.note()

    def note(self) -> None:
        # Averages over steps in which weights jump are not those of the network that is kept.
        self.job.recalibrate(self.network)
        value = badness(self.judge())
        if value < self.least:
            self.least, self.weights = value, values_of(self.network)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.note()

    def restore(self) -> None:
        """Gives the network the weights that it was best with."""
        assign(self.network, self.weights)


def values_of(network: keras.Model) -> list[np.ndarray]:
    """Copies of all weights."""
    return [ops.convert_to_numpy(weight).copy() for weight in network.weights]


def assign(network: keras.Model, values: list[np.ndarray]) -> None:
    """Sets all weights."""
    for weight, value in zip(network.weights, values, strict=True):
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
    levels: Setting[int] = 16,
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
    table: Setting[str] = "int8",
    scale: Setting[str] = "auto",
    seed: int | None = None,
    verbose: str | int = "auto",
) -> keras.Model:
    """TODO"""
    options = Options(
        levels=levels,
        layers=layers,
        weights=weights,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        method=method,
        distillation=distillation,
        temperature=temperature,
        table=table,
        scale=scale,
        seed=seed,
        verbose=verbose,
    )
    data = x if y is None else (x, y) if sample_weight is None else (x, y, sample_weight)
    found = compressed(model, data, validation_data, options)
    if found.stages and verbose != 0:
        print(found)
    return strip(found.model)


@dataclass(frozen=True)
class Options:
    """The arguments of `compress`, beside the model and its data."""

    levels: Setting[int] = 16
    layers: Layers = "all"
    weights: Weights = None
    steps: int | None = None
    epochs: int = 10
    batch_size: int = 64
    optimizer: Any = None
    learning_rate: float = 1e-3
    method: str = "auto"
    distillation: float = 1.0
    temperature: float = TEMPERATURE
    table: Setting[str] = "int8"
    scale: Setting[str] = "auto"
    seed: int | None = None
    verbose: str | int = "auto"


def compressed(
    model: keras.Model, data: Any, validation_data: Any = None, options: Options | None = None
) -> Compressed:
    """What `compress` strips: the shared model, and what each step was worth."""
    options = options or Options()
    check_built(model)
    check_choice("method", options.method, METHODS)
    if options.seed is not None:
        keras.utils.set_random_seed(options.seed)
    if data is None:
        return Compressed(_shared(model, options, options.levels))
    job = _job(model, data, validation_data, options)
    stages = [Stage("float", job.judge(model)())]
    tuning = max(1, round(_TUNING_EPOCHS * options.epochs))
    if options.method == "kmeans":
        network, tuning = _shared(model, options, options.levels), options.epochs
        stages += [Stage("shared", job.judge(network)())]
    else:
        student, tuning = _student(model, options), min(tuning, options.epochs - 1)
        stages += [job.recalibrated(student, "quantized")]
        rate = options.optimizer or job.adam(options.learning_rate, options.epochs - tuning)
        job.train(student, options.epochs - tuning, rate)
        stages += [Stage("trained", job.judge(student)())]
        network = student if options.method == "wnq" else _shared(student, options, None)
    if tuning and options.method != "wnq":
        stages += [job.recalibrated(network, "recalibrated")]
        kmeans = options.method == "kmeans"
        rate = options.learning_rate * (1.0 if kmeans else _TUNING_RATE)
        job.train(network, tuning, job.adam(rate, tuning))
        stages += [Stage("tuned", job.judge(network)())]
    return Compressed(network, tuple(stages))


def _job(model: keras.Model, data: Any, validation_data: Any, options: Options) -> Job:
    given = read(data, model, steps=options.steps, name="x").repeatable()
    judged = given.some(_JUDGED, options.batch_size)
    if validation_data is not None:
        judged = read(validation_data, model, name="validation_data").repeatable()
    return Job(
        model,
        given,
        judged,
        options.batch_size,
        options.temperature,
        options.distillation,
        options.verbose,
    )


def _shared(model: keras.Model, options: Options, levels: Setting[int] | None) -> keras.Model:
    return share_weights(
        model,
        levels,
        options.layers,
        weights=options.weights,
        table=options.table,
        scale=options.scale,
    )


def _student(model: keras.Model, options: Options) -> keras.Model:
    """A copy that computes with its quantized kernels, and trains straight through."""
    if options.method == "wnq":
        return wnq(model, _bits(options.levels), layers=options.layers, skip=())
    kind = _DEFAULT_METHOD if options.method == "auto" else options.method
    student = quantization_aware(
        model,
        type(regularizers.get(kind))(strength=0.0),
        options.layers,
        levels=options.levels,
        weights=options.weights,
        table=options.table,
    )
    for layer in wrappers(student):
        if isinstance(layer, QuantizationAware):
            layer.place_centroids()
    return student


def _bits(levels: Any) -> Any:
    if levels not in (2, 4, 8, 16):
        raise ValueError(
            f"Expected `levels` of 2, 4, 8 or 16 with method='wnq'. Received: levels={levels!r}"
        )
    return int(levels).bit_length() - 1
