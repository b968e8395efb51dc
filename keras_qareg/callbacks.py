"""Callbacks: schedules of the penalty and of pruning, frozen statistics, a record of the centroids."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import BatchNormalization

from keras_qareg.choices import check_count, check_number
from keras_qareg.layers import FreezableBatchNormalization, QuantizationAware
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.reading import unique_names
from keras_qareg.models.selection import wrappers
from keras_qareg.numerics.clustering import METHODS
from keras_qareg.pruning import PruningSchedule

__all__ = ["CentroidHistory", "FreezeBatchNormalization", "PenaltySchedule", "PruningSchedule"]

# How often the strength is raised in an epoch, at most.
_UPDATES = 20
# The number of weights for which default strengths were chosen.
_BALANCE = 40_000


def _wrapped_layers(model: keras.Model, callback: str) -> list[QuantizationAware]:
    # The model may be one around these, such as a distiller, which is built by its first batch.
    found = [layer for layer in wrappers(model) if isinstance(layer, QuantizationAware)]
    unbuilt = [layer.name for layer in found if not layer.built]
    if unbuilt:
        raise ValueError(
            f"Expected built QuantizationAware layers for {callback}. Received: {unbuilt} without "
            "weights. Call the model on a batch first."
        )
    if not found:
        raise ValueError(
            f"Expected a model with QuantizationAware layers for {callback}. Received: model "
            f"'{model.name}' without any. Make it with keras_qareg.quantization_aware(model, ...)."
        )
    return found


class PenaltySchedule(keras.callbacks.Callback):
    """Trains without penalty, then places the centroids, then raises the strength to its full value.

    The strength of each `QuantizationAware` layer is 0 for `warmup_epochs`, and rises from there: at
    the end of epoch `e` (from 0) it is `((e - warmup_epochs + 1) / ramp_epochs)^power` of its
    regularizer's, up to all of it, and within an epoch it goes there in up to 20 steps. Small layers
    are ahead of that (`balance`). After the warm-up the centroids are placed from the weights of each
    kernel (and a `Sine` or `Cosine` gets its range from them). The strength depends on the place in
    training alone and the layers remember that their centroids were placed, so training goes on as it
    was under `fit(initial_epoch=...)` and `keras.callbacks.BackupAndRestore`.

    Of layers with `regularizers.DKM`, the strength is how far their temperature has fallen.

    What is validated and saved at the end of an epoch are quantized kernels in the warm-up too, with
    centroids placed for the moment. So `EarlyStopping(restore_best_weights=True)` and
    `ModelCheckpoint(save_best_only=True)` compare networks as they would be shipped, where layers are
    `straight_through`. A warning says where training was stopped before the penalty was at its full
    strength: `EarlyStopping(start_from_epoch=...)` avoids that.

    Args:
        warmup_epochs: Non-negative integer; `None` (default): a third of the epochs of `fit`.
        ramp_epochs: Positive integer; `None` (default): all epochs after the warm-up.
        initialize: How centroids are placed: `"kmeans"` (exact, default), `"quantile"`, `"uniform"`,
            or `None` to leave them where they are.
        power: Positive float. The higher, the longer the weights are free and the faster they settle
            at the end, so that they settle at the low learning rate of the last epochs. Defaults to 6
            (`benchmarks/recipe.py`).
        balance: Positive integer: the penalty of layers with fewer weights than this is multiplied in
            proportion (`QuantizationAware.balance`), and their ramp is faster by the cube root of that
            factor. Each of their weights matters more to the loss, so that with one strength for all,
            large layers settle long before small ones; better is that small layers settle first, while
            the large ones can still make up for it. `None`: one for all. `"auto"` (default): 40,000
            where the regularizer's strength is its default, `None` where it was chosen.

    Raises:
        ValueError: If an argument is out of its range, or the model is unbuilt or has no
            `QuantizationAware` layer.

    Example:

    >>> schedule = PenaltySchedule(warmup_epochs=10, ramp_epochs=14, power=2)
    >>> [round(schedule.ramp(epoch), 2) for epoch in (9, 10, 16, 23, 29)]
    [0.0, 0.01, 0.25, 1.0, 1.0]

    See also: https://keras-qareg.github.io/keras-qareg/method.html#the-schedule
    """

    def __init__(
        self,
        warmup_epochs: int | None = None,
        ramp_epochs: int | None = None,
        *,
        initialize: str | None = "kmeans",
        power: float = 6.0,
        balance: int | str | None = "auto",
    ):
        super().__init__()
        if warmup_epochs is not None:
            check_count("warmup_epochs", warmup_epochs, least=0, besides=", or None")
        if ramp_epochs is not None:
            check_count("ramp_epochs", ramp_epochs, besides=" or None")
        if initialize is not None and initialize not in METHODS:
            raise ValueError(
                "Expected `initialize` to be 'kmeans', 'quantile', 'uniform' or None. "
                f"Received: initialize={initialize!r}"
            )
        check_number("power", power)
        if balance is not None and balance != "auto":
            check_count("balance", balance, besides=", 'auto' or None")
        self.warmup_epochs, self.ramp_epochs = warmup_epochs, ramp_epochs
        self.initialize, self.power, self.balance = initialize, power, balance
        self._epoch, self._training = 0, False

    def __repr__(self) -> str:
        names = ("warmup_epochs", "ramp_epochs", "initialize", "power", "balance")
        return f"PenaltySchedule({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def ramp(self, epoch: float, balance: float = 1.0) -> float:
        """The share of the full strength at the end of an epoch (counted from 0), in [0, 1].

        Args:
            epoch: The epoch; a part of one for a place within.
            balance: `QuantizationAware.balance` of the layer that is asked about. Defaults to 1.
        """
        epochs = (self.params or {}).get("epochs", 1)
        warmup = epochs // 3 if self.warmup_epochs is None else self.warmup_epochs
        length = self.ramp_epochs or max(1, epochs - warmup)
        return min(1.0, math.cbrt(balance) * max(0, epoch - warmup + 1) / length) ** self.power

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch
        for layer in _wrapped_layers(self.model, "PenaltySchedule"):
            layer.balance.assign(self._balance(layer))
            if self.ramp(epoch) == 0.0:
                layer.placed.assign(0.0)
        if self.ramp(epoch) > 0.0:
            self._place()
        self._set_strength(epoch - 1 if self._steps() else epoch)

    def _place(self) -> None:
        """Places the centroids where they are not placed yet."""
        for layer in _wrapped_layers(self.model, "PenaltySchedule"):
            if float(ops.convert_to_numpy(layer.placed)):
                continue
            if self.initialize is None:
                layer.placed.assign(1.0)
            else:
                layer.place_centroids(self.initialize)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        steps = self._steps()
        rises = self.ramp(self._epoch) > self.ramp(self._epoch - 1)
        if rises and steps and not batch % -(-steps // _UPDATES):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()  # during an epoch, Keras keeps the weights elsewhere
            self._set_strength(self._epoch - 1 + (batch + 1) / steps)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._steps() == batch + 1 and self.ramp(self._epoch) == 0.0:
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            # Validated and saved is the network that would be shipped, in the warm-up too: else
            # `EarlyStopping` and `ModelCheckpoint` would choose the float one.
            self._place()

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        if self._training:
            self._place()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._place()
        self._set_strength(epoch)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._training = True
        for layer in _wrapped_layers(self.model, "PenaltySchedule"):
            layer.scheduled = True

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._training = False
        planned = (self.params or {}).get("epochs", 1)
        if (reached := self.ramp(self._epoch)) < 1.0 and (not reached or self._epoch + 1 < planned):
            warnings.warn(
                f"Training ended after epoch {self._epoch + 1} of {planned}, before the penalty had its "
                "full strength. Give `EarlyStopping` a `start_from_epoch`, or shorten the warm-up.",
                stacklevel=2,
            )

    def _steps(self) -> int | None:
        steps: int | None = (self.params or {}).get("steps")
        return steps

    def _set_strength(self, epoch: float) -> None:
        for layer in _wrapped_layers(self.model, "PenaltySchedule"):
            share = self.ramp(epoch, self._balance(layer))
            layer.strength.assign(share * layer.regularizer.strength)

    def _balance(self, layer: QuantizationAware) -> float:
        regularizer, balance = layer.regularizer, self.balance
        if balance == "auto":
            chosen = regularizer.strength != regularizer.default_strength
            balance = None if chosen else _BALANCE
        if balance is None:
            return 1.0
        weights = sum(math.prod(kernel.shape) for kernel in layer.kernels)
        return max(1.0, int(balance) / weights)


class FreezeBatchNormalization(keras.callbacks.Callback):
    """Freezes the statistics of batch normalization in the middle of a training, without a jump.

    Until then training normalizes by the statistics of each batch; from then on by kept ones, as the
    file does, so that kernels and ranges are trained for the network that is shipped. What is kept is
    the average, with equal weights, over the last steps before (`layers.FreezableBatchNormalization`):
    moving averages lag behind weights that still move, and changing to them would be a jump. Scales and
    offsets go on training.

    The layers remember what they are, so training goes on as it was under `fit(initial_epoch=...)` and
    `keras.callbacks.BackupAndRestore`.

    Args:
        after: Float in [0, 1], the share of the training after which they are frozen. Defaults to 0.5.
        steps: Positive integer: how many steps are averaged; no more than a quarter of those before, as
            weights move most at first. Defaults to 50. Where the number of steps of an epoch is
            unknown, the epoch before counts.

    Raises:
        ValueError: If an argument is out of its range, or the model has batch normalization that cannot
            be frozen. Without any, there is nothing to do.

    Example:

    >>> freeze = FreezeBatchNormalization(after=0.5)  # model.fit(..., callbacks=[freeze])
    >>> freeze
    FreezeBatchNormalization(after=0.5, steps=50)

    See also: https://keras-qareg.github.io/keras-qareg/integer.html
    """

    def __init__(self, after: float = 0.5, *, steps: int = 50):
        super().__init__()
        self.after = check_number("after", after, "from 0 to 1", lambda share: 0 <= share <= 1)
        self.steps, self._epoch = check_count("steps", steps), 0
        # Averaging, frozen; `None` where layers differ.
        self._state: tuple[bool, ...] | None = (False, False)

    def __repr__(self) -> str:
        return f"FreezeBatchNormalization(after={self.after}, steps={self.steps})"

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        normalizations = [x for x in layers_inside(self.model) if isinstance(x, BatchNormalization)]
        if normalizations and not self._freezable():
            raise ValueError(
                "Expected a model with batch normalization that can be frozen for "
                f"FreezeBatchNormalization. Received: model '{self.model.name}' with plain ones. Make "
                "it with keras_qareg.quantize_activations(model, data)."
            )
        states = {
            tuple(float(ops.convert_to_numpy(x)) > 0 for x in (layer.counted, layer.frozen))
            for layer in self._freezable()
        }
        self._state = states.pop() if len(states) == 1 else None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch
        if not (self.params or {}).get("steps"):
            at = math.ceil(self.after * self.params.get("epochs", 1))
            self._set(averaging=epoch == at - 1, frozen=epoch >= at)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        steps = (self.params or {}).get("steps")
        if steps:
            now = self._epoch * steps + batch
            at = math.ceil(self.after * steps * self.params.get("epochs", 1))
            # Several steps may be one program, at whose start alone this is called.
            together = int(getattr(self.model, "steps_per_execution", 1) or 1)
            at = -(-at // together) * together
            first = (at - max(1, min(self.steps, at // 4))) // together * together
            self._set(averaging=first <= now < at, frozen=now >= at)

    def _freezable(self) -> list[FreezableBatchNormalization]:
        return [x for x in layers_inside(self.model) if isinstance(x, FreezableBatchNormalization)]

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._set(averaging=False, frozen=self._state is not None and self._state[1])

    def _set(self, averaging: bool, frozen: bool) -> None:
        if (averaging, frozen) == self._state:
            return
        self._state = (averaging, frozen)
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # during an epoch, Keras keeps the weights elsewhere
        for layer in self._freezable():
            layer.counted.assign(float(averaging))
            layer.frozen.assign(float(frozen))


class CentroidHistory(keras.callbacks.Callback):
    """Records the centroids, the strength and the penalty of each kernel after every epoch.

    Args:
        log_dir: Folder for TensorBoard event files, one a training (needs the package `tensorboardX`);
            `None` (default): keep the record in memory alone.

    Attributes:
        epochs: List of the epochs recorded.
        centroids: Dict from kernel path to a list of float32 arrays `(levels,)`, one an epoch.
        penalties: Dict from kernel path to a list of floats, the penalty with its strength.
        strengths: Dict from layer name to a list of floats.

    Raises:
        ImportError: If `log_dir` is given and `tensorboardX` is not installed.
        ValueError: If the model is unbuilt or has no `QuantizationAware` layer.

    Example:

    >>> history = CentroidHistory()  # model.fit(..., callbacks=[schedule, history])
    >>> history.centroids
    {}

    See also: https://keras-qareg.github.io/keras-qareg/loss_rises.html
    """

    def __init__(self, log_dir: str | None = None):
        super().__init__()
        self.epochs: list[int] = []
        self.centroids: dict[str, list[np.ndarray]] = {}
        self.penalties: dict[str, list[float]] = {}
        self.strengths: dict[str, list[float]] = {}
        self._open = None if log_dir is None else functools.partial(_writer_class(), log_dir)
        self._writer: Any = None

    def __repr__(self) -> str:
        return f"<CentroidHistory of {len(self.centroids)} kernels, {len(self.epochs)} epochs>"

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.on_train_end()  # of a training that was interrupted
        if self._open is not None:
            # Files are named by the second: the suffix tells trainings within one apart.
            self._writer = self._open(filename_suffix=f".{len(self.epochs)}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epochs.append(epoch)
        found = _wrapped_layers(self.model, "CentroidHistory")
        names = unique_names(self.model, found, [layer.name for layer in found])
        owners = [layer for layer in found for _ in layer.kernels]
        every_path = [path for layer in found for path in layer.kernel_paths]
        paths = iter(unique_names(self.model, owners, every_path))
        for name, layer in zip(names, found, strict=True):
            strength = float(ops.convert_to_numpy(layer.strength))
            self.strengths.setdefault(name, []).append(strength)
            self._log(f"strength/{name}", strength, epoch)
            for centroids, penalty in zip(layer.centroids, layer.penalties(), strict=True):
                path = next(paths)
                values = ops.convert_to_numpy(centroids).copy()
                self.centroids.setdefault(path, []).append(values)
                self.penalties.setdefault(path, []).append(penalty)
                self._log(f"penalty/{path}", penalty, epoch)
                for place, value in enumerate(np.sort(values)):
                    self._log(f"centroids/{path}/{place}", float(value), epoch)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self._writer is not None:
            self._writer.close()  # events wait in a queue, for which `flush` does not wait
            self._writer = None

    def _log(self, tag: str, value: float, epoch: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, value, epoch)


def _writer_class() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "Writing TensorBoard events needs the package tensorboardX: "
            "pip install 'keras-qareg[tensorboard]'"
        ) from error
    return SummaryWriter
