"""How a model of Keras 2 was compiled, for Keras 3."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_qareg.models.legacy.layers import Config, class_name

# Arguments of optimizers that Keras 3 does not have, with what they may say.
_UNUSED: Config = {
    "is_legacy_optimizer": (True, False),
    "jit_compile": (True, False, None),
    "initial_accumulator_value": (0.0, None),
    "momentum": (0.0,),
}
# Metrics that mean what suits the loss and the targets.
_RESOLVED_LATER = ("accuracy", "acc", "crossentropy", "ce")


def compile_as(model: keras.Model, training: Config | None, custom: Config) -> None:
    """Compiles a new model as the old one was; the optimizer's states start anew.

    Where Keras 3 has no such optimizer, loss or metric, the model stays as it is, with a warning.
    """
    if training is None:
        return
    try:
        with keras.saving.CustomObjectScope(custom):
            arguments = _arguments(training)
            model.compile(**arguments)
            model.optimizer.build(model.trainable_variables)
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        _uncompile(model)
        warnings.warn(
            f"'{model.name}' is not compiled, because Keras 3 has not its optimizer, loss or metrics "
            f"({error}). Call `compile()` on it.",
            stacklevel=3,
        )


def _uncompile(model: keras.Model) -> None:
    model.compiled = False


def _arguments(training: Config) -> Config:
    found = {
        "optimizer": _optimizer(training["optimizer_config"]),
        "loss": _converted(training.get("loss"), _loss, _known_loss),
        "loss_weights": training.get("loss_weights"),
    }
    for key in ("metrics", "weighted_metrics"):
        found[key] = _converted(_unwrapped(training.get(key)), _metric, _known_metric)
    for key in ("run_eagerly", "steps_per_execution"):
        if training.get(key):
            found[key] = training[key]
    return found


def _converted(value: Any, convert: Callable[..., Any], known: Callable[..., Any]) -> Any:
    """A structure of losses or metrics with each converted."""
    if isinstance(value, dict):
        if value.get("class_name") == "function":
            return known(value["config"])
        if "class_name" in value:
            return convert(value)
        return {key: _converted(item, convert, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_converted(item, convert, known) for item in value]
    return known(value) if isinstance(value, str) else value


def _known_loss(name: str) -> Any:
    """The name of a loss, or the function of the user that has it; raises where there is none."""
    found = keras.losses.get(name)
    return name if str(getattr(found, "__module__", "")).startswith("keras.") else found


def _known_metric(name: str) -> Any:
    if name in _RESOLVED_LATER:
        return name
    found = keras.metrics.get(name)
    return name if str(getattr(found, "__module__", "")).startswith("keras.") else found


def _unwrapped(metrics: Any) -> Any:
    """Metrics of the one output, which are in a list of their own in HDF5 files."""
    if isinstance(metrics, list) and len(metrics) == 1 and isinstance(metrics[0], list):
        return metrics[0]
    return metrics


def _optimizer(config: Any) -> Any:
    if isinstance(config, str):
        return keras.optimizers.get(config)
    # Keras 3 scales losses where the policy of the model asks for it.
    inner = config["config"].get("inner_optimizer", config["config"].get("optimizer"))
    if inner is not None:
        return _optimizer(inner)
    kind = _class(config, keras.optimizers)
    settings = {key: _plain(value) for key, value in config["config"].items()}
    rate = settings.pop("learning_rate", settings.pop("lr", None))
    decay = settings.pop("decay", None)
    if isinstance(rate, dict):
        schedule = _class(rate, keras.optimizers.schedules)
        rate = schedule(**_accepted(schedule, rate["config"]))
    elif decay:
        rate = keras.optimizers.schedules.InverseTimeDecay(rate, 1, decay)
    if rate is not None:
        settings["learning_rate"] = rate
    return kind(**_accepted(kind, settings))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _loss(config: Config) -> Any:
    settings = dict(config["config"])
    if settings.get("reduction") == "auto":
        settings["reduction"] = "sum_over_batch_size"
    if class_name(config) == "LossFunctionWrapper":
        return _converted(settings["fn"], _loss, _known_loss)
    return _with_function(config, keras.losses, settings)


def _metric(config: Config) -> Any:
    settings = dict(config["config"])
    if class_name(config) in ("MeanMetricWrapper", "SparseMeanMetricWrapper"):
        # "accuracy" is what it was asked for, and the function what that meant; Keras 3 finds it anew.
        name = settings["name"]
        return (
            name if name in _RESOLVED_LATER else _converted(settings["fn"], _metric, _known_metric)
        )
    return _with_function(config, keras.metrics, settings)


def _with_function(config: Config, module: Any, settings: Config) -> Any:
    """An object of a class, whose configuration in Keras 2 may name the function that it is."""
    kind = _class(config, module)
    settings.pop("fn", None)
    policy = settings.get("dtype")
    if isinstance(policy, dict):
        settings["dtype"] = policy["config"]["name"]
    return kind(**_accepted(kind, settings))


def _class(config: Config, module: Any) -> Any:
    name = class_name(config)
    known = keras.saving.get_custom_objects()
    found = known.get(str(config.get("registered_name")), known.get(name))
    found = getattr(module, name, None) if found is None else found
    if found is None:
        raise ValueError(f"it has no {name}")
    return found


def _accepted(kind: type, settings: Config) -> Config:
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            names |= set(inspect.signature(vars(base)["__init__"]).parameters)
    found = {}
    for key, value in settings.items():
        if key in names and not (key == "name" and value is None):
            found[key] = value
        elif value is not None and value not in _UNUSED.get(key, ()):
            raise ValueError(f"its {kind.__name__} has no {key}={value!r}")
    return found
