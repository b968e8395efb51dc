"""How a network is trained, and judged, on the way from a float model to a small one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg.data import Batch, Data
from keras_qareg.layers import QuantizationAware, Weights, kernels
from keras_qareg.layers.keras_private import frozen, layers_inside
from keras_qareg.models.compiling import compile_like
from keras_qareg.models.configuring import LEVELS, Setting, resolve
from keras_qareg.models.distilling import (
    Distiller,
    distill,
    losses_of_outputs,
    shares_of_outputs,
)
from keras_qareg.models.reading import every_kernel
from keras_qareg.models.recalibrating import recalibrate
from keras_qareg.models.selection import Layers, quantized_layers, select, wrappers
from keras_qareg.models.surroundings import only_behind
from keras_qareg.models.teaching import known_outputs
from keras_qareg.numerics.clustering import MAX_LEVELS, many_zeros

# Inputs without which the statistics of batch normalization are better left as they are, and about so
# many, evenly taken, as are enough for them.
_FEWEST_INPUTS, _ENOUGH_INPUTS, _CALIBRATION_BATCH = 256, 4096, 256

# The learning rates that suit 4 levels and fewer, and 16 and more (docs/method.md).
_RATES = {2.0: 1e-3, 4.0: 3e-4}

Judge = Callable[[], dict[str, float]]


def usual_rate(network: keras.Model) -> float:
    """The learning rate that suits the levels of a network: few must be found, many hardly moved.

    It falls with the bits of an index, in the mean over the weights that train under a regularizer;
    where none does, it is that of few.
    """
    found = [
        (math.log2(regularizer.levels), math.prod(kernel.shape))
        for layer in wrappers(network)
        if isinstance(layer, QuantizationAware)
        for kernel, regularizer in zip(layer.kernels, layer.kernel_regularizers, strict=True)
    ]
    if not found:
        return max(_RATES.values())
    bits, sizes = zip(*found, strict=True)
    mean = float(np.average(bits, weights=sizes))
    return float(np.exp(np.interp(mean, [*_RATES], np.log([*_RATES.values()]))))


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
    # What judges each network, by its identity: compiled once.
    _judges: dict[int, Judge] = field(default_factory=dict, init=False, repr=False)
    # What the teacher gives for the data, by their names, where that is computed once.
    _taught: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        plain = type(self.teacher).compute_loss is keras.Model.compute_loss and not self._by_itself
        if plain and getattr(self.teacher, "loss", None) is not None:
            for data in (self.data, self.judged):
                batch = next(data.batches(fixed_batch(self.teacher) or 1))
                check_targets(self.teacher, batch, f"`{data.name}`")

    @property
    def has_loss(self) -> bool:
        """Whether the model says what its loss is."""
        return bool(getattr(self.teacher, "compiled", False))

    @property
    def _by_itself(self) -> bool:
        """Whether the model has a step of its own to train by."""
        return type(self.teacher).train_step is not keras.Model.train_step

    @property
    def _evaluates(self) -> bool:
        """Whether `evaluate` can tell what such a model is worth."""
        own = type(self.teacher).test_step is not keras.Model.test_step
        return own or getattr(self.teacher, "loss", None) is not None

    def untrained(self, network: keras.Model) -> list[Layer]:
        """The layers that no loss is at work in: behind outputs that do not count, and inside these."""
        count = len(getattr(network, "outputs", None) or [])
        if self._by_itself or type(self.teacher).compute_loss is not keras.Model.compute_loss:
            return []  # it may look at what it likes
        shares, losses = (f(self.teacher, count) for f in (shares_of_outputs, losses_of_outputs))
        taught = self.distillation > 0
        idle = [
            not share or not (taught or loss) for share, loss in zip(shares, losses, strict=False)
        ]
        found = [] if all(idle) else only_behind(network, idle)
        return [part for layer in found for part in layers_inside(layer)]

    def levels_of_untrained(
        self, student: keras.Model, levels: Setting[int], layers: Layers, weights: Weights
    ) -> dict[str, int]:
        """By paths, the levels of all kernels that are to be shared, where some were not trained.

        Args:
            student: The trained network, in which those are plain.
            levels: As in `share_weights`, for the float model.
            layers: As there.
            weights: As there.

        Returns:
            Dict, empty where all were trained.
        """
        still = {id(layer) for layer in self.untrained(student)}
        if not still:
            return {}
        chosen = select(self.teacher, layers, weights)
        given = resolve(LEVELS, levels, self.teacher, chosen, weights=weights).of(chosen)
        wanted = {kernel.path: choice.value for kernel, choice in given}
        shared = still | {id(layer) for layer in wrappers(student)}
        paths = [k.path for k in every_kernel(student, weights) if id(k.layer) in shared]
        return {path: wanted[path] for path in paths if wanted.get(path) is not None}

    def trainer(self, network: keras.Model, optimizer: Any, labels: bool) -> keras.Model:
        """What trains a network, or, without an optimizer, judges it: a distiller, or itself."""
        if self._by_itself:
            if optimizer is not None or not network.compiled:
                compile_like(network, self.teacher, optimizer=optimizer or "sgd")
            if not network.compiled:
                raise ValueError(
                    "Expected a model with the `compile` of keras.Model. Received: "
                    f"{type(self.teacher).__name__}, which has another. Use share_weights(), compile "
                    "and fit its result, and strip() that."
                )
            return network
        trainer = distill(
            network, self.teacher, temperature=self.temperature, weight=self.distillation
        )
        if labels:
            compile_like(trainer, self.teacher, optimizer=optimizer or "sgd")
        else:
            trainer.compile(optimizer or "sgd")
        return trainer

    def told(
        self, trainer: keras.Model, arguments: dict[str, Any], data: Data, name: str
    ) -> dict[str, Any]:
        """Arguments of `fit` or `evaluate`; a distiller is told what the teacher gives, where known."""
        if not isinstance(trainer, Distiller):
            return arguments
        if name not in self._taught:
            self._taught[name] = known_outputs(self.teacher, data, self.batch_size)
        outputs = self._taught[name]
        if outputs is None:
            return arguments
        trainer.told = True
        labels = arguments["y"]
        return {**arguments, "y": (outputs,) if labels is None else (labels, outputs)}

    def judge(self, network: keras.Model) -> Judge:
        """What says, again and again, what a network is worth: results of `evaluate`, by name."""
        if id(network) not in self._judges:
            self._judges[id(network)] = self._new_judge(network)
        return self._judges[id(network)]

    def _new_judge(self, network: keras.Model) -> Judge:
        labels = self.has_loss and self.judged.has_targets
        if self._by_itself and not self._evaluates:  # only its step knows what its loss is
            labels = False
            trainer: keras.Model = distill(network, self.teacher, temperature=self.temperature)
            trainer.compile("sgd")
        else:
            trainer = self.trainer(network, None, labels)
        arguments = self.judged.evaluate_arguments(self.batch_size)
        arguments = self.told(trainer, arguments, self.judged, "judged")

        def results() -> dict[str, float]:
            found = trainer.evaluate(**arguments, verbose=0, return_dict=True)
            kept = {name: value for name, value in found.items() if name != "loss" or labels}
            return {name: float(value) for name, value in kept.items()}

        return results

    def trained(
        self,
        network: keras.Model,
        name: str,
        epochs: int,
        optimizer: Any,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> Stage:
        """The stage of training a network, which is left as after its best epoch, or as at the start."""
        best = _BestEpoch(self, network)
        # Where no loss is at work, penalties alone would move the weights.
        with frozen(self.untrained(network)):
            trainer = self.trainer(network, optimizer, self.has_loss and self.data.has_targets)
            arguments = self.data.fit_arguments(self.batch_size)
            trainer.fit(
                **self.told(trainer, arguments, self.data, "trained on"),
                epochs=epochs,
                callbacks=[_KeptZeros(network), *callbacks, best],
                verbose=self.verbose,
            )
        best.restore()
        return Stage(name, best.results, kept=best.epoch is not None)

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


class _KeptZeros(keras.callbacks.Callback):
    """Keeps the zeros of pruned weights that train in float, where no level holds them."""

    def __init__(self, network: keras.Model):
        super().__init__()
        layers = quantized_layers(network)
        held = {id(w) for x in layers for w in (*kernels(x), *x.quantization_weights)}
        self._masked = []
        for weight in network.trainable_weights:
            values = ops.convert_to_numpy(weight)
            is_pruned = values.ndim > 1 and values.any() and many_zeros(values, MAX_LEVELS)
            if is_pruned and id(weight) not in held:
                self._masked.append((weight, ops.convert_to_tensor(values != 0)))

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._masked and keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # during an epoch, Keras keeps the weights elsewhere
        for weight, mask in self._masked:
            value = ops.convert_to_tensor(weight)
            weight.assign(ops.where(mask, value, ops.zeros_like(value)))


class _BestEpoch(keras.callbacks.Callback):
    """Keeps the weights of the epoch after which a network was best, its start included.

    The start is judged as it is: `Job.recalibrated` goes before.
    """

    def __init__(self, job: Job, network: keras.Model):
        super().__init__()
        self.job, self.network, self.judge = job, network, job.judge(network)
        self.epoch: int | None = None
        self.results, self.weights = self.judge(), values_of(network)

    def _keep(self, epoch: int) -> None:
        results = self.judge()
        if badness(results) < badness(self.results):
            self.results, self.epoch, self.weights = results, epoch, values_of(self.network)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        # Averages over steps in which weights jump are not those of the network that is kept; but few
        # inputs may not be enough for better ones.
        self._keep(epoch)
        if self.job.recalibrate(self.network):
            self._keep(epoch)

    def restore(self) -> None:
        """Gives the network the weights that it was best with."""
        assign(self.network, self.weights)


def check_targets(model: keras.Model, batch: Batch, name: str) -> None:
    """Raises a `ValueError` unless a compiled model has a loss for the targets of a batch, if any."""
    some = fixed_batch(model) or 1
    inputs, targets, weights = keras.tree.map_structure(
        lambda array: None if array is None else array[:some], batch
    )
    if targets is None:
        return
    outputs = model(inputs, training=False)
    # Keras and each backend have errors of their own for what does not fit.
    try:
        model.compute_loss(x=inputs, y=targets, y_pred=outputs, sample_weight=weights)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"Expected targets in {name} that fit the model's loss and its outputs of "
            f"{shapes_of(outputs)}. Received: {shapes_of(targets)} ({reason})"
        ) from error


def fixed_batch(model: keras.Model) -> int | None:
    """How many examples a model takes at once; `None`: any number."""
    return next((x.shape[0] for x in getattr(model, "inputs", None) or [] if x.shape), None)


def shapes_of(values: Any) -> str:
    """The shapes of arrays, as errors say them."""
    shapes = [str((None, *leaf.shape[1:])) for leaf in keras.tree.flatten(values)]
    return f"shape{'s' * (len(shapes) > 1)} {', '.join(shapes)}"


def values_of(network: keras.Model) -> list[np.ndarray]:
    """Copies of all weights."""
    return [ops.convert_to_numpy(weight).copy() for weight in network.weights]


def assign(network: keras.Model, values: list[np.ndarray]) -> None:
    """Sets all weights."""
    for weight, value in zip(network.weights, values, strict=True):
        weight.assign(value)


def badness(results: dict[str, float]) -> float:
    """The one number that networks are compared by, which they are trained for; NaN is the worst."""
    value = results.get("loss", results.get("divergence", 0.0))
    return value if value == value else float("inf")
