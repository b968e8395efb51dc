"""What `compress` is asked for, checked: an argument that would not count is an error."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import keras

from keras_qareg.allocation.allocating import FORMS
from keras_qareg.choices import check_choice, check_count, check_number, from_zero, shown
from keras_qareg.layers import Weights
from keras_qareg.layers.keras_private import optimizer_like
from keras_qareg.models.configuring import Setting
from keras_qareg.models.distilling import TEMPERATURE
from keras_qareg.models.selection import Layers

_KINDS = ("sine", "cosine", "nearest_squared", "nearest_exponential")
METHODS = ("auto", *_KINDS, "dkm", "wnq", "kmeans")
# What says how to train, and what `wnq` has its own way of.
_OF_TRAINING = (
    "steps", "epochs", "batch_size", "optimizer", "learning_rate", "distillation", "temperature",
)  # fmt: skip
_NOT_OF_WNQ = ("weights", "table", "scale")


@dataclass(frozen=True)
class Options:
    """The arguments of `compress`, beside the model and its data."""

    levels: Setting[int] | None = None
    target_bytes: int | None = None
    target_ratio: float | None = None
    form: str = "auto"
    representative_data: Any = None  # of `allocate`
    layers: Layers = "all"
    weights: Weights = None
    steps: int | None = None
    epochs: int = 10
    batch_size: int = 64
    optimizer: Any = None
    learning_rate: float | None = None
    method: str = "auto"
    distillation: float = 1.0
    temperature: float = TEMPERATURE
    table: Setting[str] = "int8"
    scale: Setting[str] = "auto"
    group_size: Setting[int] | None = None
    seed: int | None = None
    verbose: str | int = "auto"

    def changed(self, names: tuple[str, ...]) -> list[str]:
        """Which of some arguments have another value than their default, as `name=value`."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = {name: getattr(self, name) for name in names}
        return [
            f"{name}={value!r}"
            for name, value in given.items()
            if value is not defaults[name] and value != defaults[name]
        ]


def together(x: Any, y: Any, sample_weight: Any, data: Any, validation_data: Any) -> Any:
    """What is to be trained on, in one; raises a `ValueError` where a part of it would not count."""
    if data is not None:
        given = {"x": x, "y": y, "sample_weight": sample_weight}
        wanted = "`x` and what belongs to it, or `data`, which holds all"
    elif x is None:
        given = {"y": y, "sample_weight": sample_weight, "validation_data": validation_data}
        wanted = "`x` or `data` to train on"
    else:
        given = {"sample_weight": sample_weight if y is None else None}
        wanted = "`y` with `sample_weight`"
    beside = [f"`{name}`" for name, part in given.items() if part is not None]
    if beside:
        found = "`data` and " if data is not None else ""
        raise ValueError(f"Expected {wanted}. Received: {found}{', '.join(beside)}")
    if data is not None or y is None:
        return x if data is None else data
    return (x, y) if sample_weight is None else (x, y, sample_weight)


def check(options: Options, data: Any) -> None:
    """Raises a `ValueError` where arguments are out of range, exclude each other, or would not count."""
    check_choice("method", options.method, METHODS)
    check_choice("form", options.form, FORMS)
    budgets = [options.levels, options.target_bytes, options.target_ratio]
    if sum(given is not None for given in budgets) > 1:
        raise ValueError(
            "Expected one of `levels`, `target_bytes` and `target_ratio`. Received: "
            f"levels={options.levels!r}, target_bytes={options.target_bytes!r}, "
            f"target_ratio={options.target_ratio!r}"
        )
    if data is None:
        _check_without_data(options)
    for name in ("epochs", "batch_size"):
        check_count(name, getattr(options, name))
    if options.learning_rate is not None:
        check_number("learning_rate", options.learning_rate)
    if options.seed is not None:
        check_count("seed", options.seed, least=0, besides=" or None")
    check_number("temperature", options.temperature)
    check_number("distillation", options.distillation, "a number, 0 or more", from_zero)
    shown(options.verbose, auto=True)
    new_optimizer(options.optimizer)
    if options.method == "wnq":
        if budgets[1:] != [None, None]:
            raise ValueError("Expected `levels`, not a budget, with method='wnq'.")
        if others := options.changed(_NOT_OF_WNQ):
            raise ValueError(
                "Expected another method than 'wnq', whose layers have a table a channel of their own "
                f"kernels, with {', '.join(others)}."
            )
    if options.group_size is not None and data is not None and options.method != "kmeans":
        why = f"others train one table a kernel. Received: method={options.method!r}"
        raise ValueError(f"Expected method='kmeans' with `group_size`: {why}")


def _check_without_data(options: Options) -> None:
    """Weights are shared then, without training and without a plan."""
    if options.levels is None and (options.target_bytes, options.target_ratio) != (None, None):
        raise ValueError("Expected inputs with a budget, to measure harm on. Received: x=None")
    idle = options.changed(_OF_TRAINING)
    if options.method not in ("auto", "kmeans"):
        idle.append(f"method={options.method!r}")
    if idle:
        raise ValueError(f"Expected inputs to train on, with {', '.join(idle)}. Received: x=None")


def new_optimizer(optimizer: Any) -> Any:
    """A copy of an optimizer, one of a name, or `None` of `None`; else raises a `ValueError`."""
    if optimizer is None:
        return None
    try:
        return optimizer_like(keras.optimizers.get(optimizer))
    except Exception as error:  # whatever a class of a user's own raises
        raise ValueError(
            "Expected `optimizer` to be a Keras optimizer that its `get_config()` says all of, or the "
            f"name of one. Received: {optimizer!r} ({error})"
        ) from error
