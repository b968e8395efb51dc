"""Layers of Keras 3 from configurations of Keras 2."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.layers import HardSigmoid

Config = dict[str, Any]
# What Keras 2 writes and Keras 3 does not take. Whatever these say, the layer computes the same ...
_MEANINGLESS = frozenset(
    {
        "autocast",
        "batch_input_shape",
        "batch_shape",
        "build_input_shape",
        "experimental_run_tf_function",
        "fused",
        "implementation",
        "inputs",
        "input_dim",
        "input_length",
        "input_shape",
        "key_shape",
        "noise_shape",
        "query_shape",
        "rng_type",
        "softmax_robust_masking",
        "trainable",
        "value_shape",
        "vocabulary_size",
        # of separable and depthwise convolutions, which have no such kernel
        "kernel_constraint",
        "kernel_initializer",
        "kernel_regularizer",
    }
)
# ... and only where they say this.
_DEFAULTS: Config = {
    "adjustment": None,
    "dilation_rate": (1, 1, 1),
    "dynamic": False,
    "groups": 1,
    "ragged": False,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "sparse": False,
    "time_major": False,
    "virtual_batch_size": None,
}
_RENAMED = {("LeakyReLU", "alpha"): "negative_slope"}
# What layers find by `adapt`.
_ADAPTED = {
    "StringLookup": "vocabulary",
    "IntegerLookup": "vocabulary",
    "TextVectorization": "vocabulary",
    "Discretization": "bin_boundaries",
}
_SYNCHRONIZED = ("SyncBatchNormalization", "SynchronizedBatchNormalization")
_TFMOT = ("PruneLowMagnitude", "ClusterWeights", "ClusterWeightsMHA")
_MODELS = ("Functional", "Model", "Sequential")


def made(entry: Config, custom: Config, build: Callable[[Config, Config], keras.Model]) -> Layer:
    """The layer that an entry of a configuration is of.

    Args:
        entry: `class_name` and `config`.
        custom: Classes and functions by name.
        build: Makes a model from an entry.

    Raises:
        ValueError: If Keras 3 has no such layer, or it has not what the configuration asks for.
    """
    name, config = class_name(entry), dict(entry["config"] or {})
    kind = _class(entry, custom)
    if kind is None and name in _MODELS:
        return build(entry, custom)
    if kind is not None and issubclass(kind, keras.Model) and "layers" in config:
        return build(entry, custom)
    if kind is None:
        kind = _layer_of_keras(name, config)
        config = _known_only(kind, name, config)
    config = {key: repaired(value, custom, build) for key, value in config.items()}
    if "name" in config:
        config["name"] = layer_name(config["name"])
    if "dtype" in config:
        config["dtype"] = _dtype(config["dtype"])
    with keras.saving.CustomObjectScope(custom):
        layer: Layer = kind.from_config(config)
    return layer


def class_name(entry: Config) -> str:
    """The name of a class, without the package that it was registered in."""
    return str(entry["class_name"]).rpartition(">")[2]


def layer_name(name: str) -> str:
    """The name of a layer in Keras 3, which admits no slash."""
    return name.replace("/", "_")


def repaired(value: Any, custom: Config, build: Callable[[Config, Config], keras.Model]) -> Any:
    """A value of a configuration with the layers in it as Keras 3 writes them."""
    if value == "hard_sigmoid":
        return keras.saving.serialize_keras_object(HardSigmoid())  # in Keras 3 it has another slope
    if isinstance(value, list):
        return [repaired(item, custom, build) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_name" not in value or not isinstance(value.get("config"), dict):
        return {key: repaired(item, custom, build) for key, item in value.items()}
    name = class_name(value)
    kind = _class(value, custom) or getattr(keras.layers, name, None)
    is_layer = inspect.isclass(kind) and issubclass(kind, Layer)
    if is_layer or name in _MODELS:
        return keras.saving.serialize_keras_object(made(value, custom, build))
    return {"class_name": value["class_name"], "config": repaired(value["config"], custom, build)}


def _class(entry: Config, custom: Config) -> Any:
    """The class that the user gave or registered; `None`: it is one of Keras, or unknown."""
    known = {**keras.saving.get_custom_objects(), **custom}
    names = (entry.get("registered_name"), entry["class_name"], class_name(entry))
    return next((known[name] for name in names if name in known), None)


def _layer_of_keras(name: str, config: Config) -> type[Layer]:
    if name in _SYNCHRONIZED:
        config["synchronized"] = True
        return keras.layers.BatchNormalization
    called = config.get("name", name)
    if name == "Lambda":
        raise ValueError(
            f"Expected a model without code in it. Received: Lambda layer '{called}'. Write a layer of "
            "your own in its place in the Keras 2 model, and the same for Keras 3 in `custom_objects`."
        )
    if name.startswith("Quantize") or name in _TFMOT:
        raise ValueError(refusal_of_tfmot(name, called))
    kind = getattr(keras.layers, name, None)
    if kind is None or not issubclass(kind, Layer):
        raise ValueError(
            f"Expected layers that Keras 3 has. Received: '{called}' of class {name}. Pass a class of "
            f"Keras 3 with the same weights as custom_objects={{'{name}': ...}}."
        )
    return kind


def refusal_of_tfmot(name: str, called: str) -> str:
    """Why a layer of TFMOT, or a file with some, is refused."""
    if name in _TFMOT:
        return (
            f"Expected a model without wrappers of TFMOT. Received: {name} '{called}'. Strip it with "
            "tfmot.sparsity.keras.strip_pruning or tfmot.clustering.keras.strip_clustering."
        )
    return (
        f"Expected a float model. Received: '{called}' of class {name}, of TFMOT's quantize_model. "
        "Convert the float model that it was made from, and quantize that here."
    )


def _known_only(kind: type[Layer], name: str, config: Config) -> Config:
    """A configuration without what Keras 3 does not take.

    Raises:
        ValueError: If that says something that changes what the layer computes.
    """
    known = _arguments(kind)
    if name == "BatchNormalization" and isinstance(config.get("axis"), list):
        (config["axis"],) = config["axis"]
    _check_adapted(name, config)
    found: Config = {}
    for key, value in config.items():
        renamed = _RENAMED.get((name, key), key)
        if renamed in known:
            found[renamed] = value
        elif key not in _MEANINGLESS and not _is_default(key, value):
            raise ValueError(
                f"Expected settings that layers of Keras 3 have. Received: {name} "
                f"'{config.get('name')}' with {key}={value!r}."
            )
    return found


def _check_adapted(name: str, config: Config) -> None:
    key = _ADAPTED.get(name)
    if key is not None and not config.get(key):
        raise ValueError(
            f"Expected {name} '{config.get('name')}' with `{key}` in its configuration. Received: none. "
            "Files do not hold there what `adapt` found: convert the tf_keras model itself, or give the "
            f"layer `{key}`."
        )


def _is_default(key: str, value: Any) -> bool:
    if key == "dilation_rate":
        return set(value if isinstance(value, list) else [value]) == {1}
    return key in _DEFAULTS and bool(value == _DEFAULTS[key])


def _arguments(kind: type) -> set[str]:
    """The arguments of a class, those of its bases too as far as it passes them on."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if base is Layer or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    else:
        return names
    if base is Layer:
        names |= {"name", "dtype", "trainable", "activity_regularizer"}
    return names - {"self"}


def _dtype(value: Any) -> Any:
    """A dtype policy by its name, which older versions wrap."""
    if not isinstance(value, dict):
        return None if value == "_infer" else value
    name = value.get("config", {}).get("name")
    return None if name == "_infer" else name
