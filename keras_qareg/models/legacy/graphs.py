"""Models of Keras 3 from configurations of Keras 2: the calls of the layers are made again, one by one.

Keras 3 does not read all that Keras 2 writes of a graph: operations of TensorFlow on symbolic tensors,
say. Made again, they are operations of Keras.
"""

from __future__ import annotations

from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.layers.keras_private import name_apart, set_trainable_alone
from keras_qareg.models.legacy.layers import Config, class_name, layer_name, made
from keras_qareg.models.legacy.operations import OPERATIONS, apply

_CONSTANT = "_CONSTANT_VALUE"


class _NotYetError(Exception):
    """A layer is called with what another gives that has not been called."""


def build(entry: Config, custom: Config) -> keras.Model:
    """A model of Keras 3 with new weights.

    Args:
        entry: `class_name` and `config` of a Functional or Sequential model of Keras 2.
        custom: Classes and functions by name.

    Raises:
        ValueError: If Keras 3 cannot make it.
    """
    config = entry["config"]
    if isinstance(config, list):  # as Sequential was written first
        config = {"name": None, "layers": config}
    kind = custom.get(class_name(entry))
    if "input_layers" in config:
        model = _Graph(config, custom).model(kind or keras.Model)
    else:
        model = _sequential(config, custom, kind or keras.Sequential)
    if config.get("trainable") is False:
        set_trainable_alone(model, False)
    return model


def _sequential(config: Config, custom: Config, kind: type[keras.Model]) -> keras.Model:
    entries = config["layers"]
    model = kind(name=_name(config))
    shape = _input_shape(entries, config)
    if shape is not None:
        first = entries[0]["config"] if entries else {}
        own = class_name(entries[0]) == "InputLayer"
        model.add(_input(first if own else {**first, "name": None}, shape))
    for entry in entries:
        if class_name(entry) != "InputLayer":
            model.add(made(entry, custom, build))
    return model


def _input_shape(entries: list[Config], config: Config) -> Any:
    first = entries[0]["config"] if entries else {}
    if isinstance(first, dict):
        for key in ("batch_input_shape", "batch_shape"):
            if first.get(key) is not None:
                return first[key]
    return config.get("build_input_shape")


def _input(config: Config, shape: Any) -> Any:
    if config.get("ragged"):
        raise ValueError(
            f"Expected inputs that Keras 3 has. Received: '{config.get('name')}', which is ragged."
        )
    dtype = config.get("dtype")
    name = config.get("name")
    return keras.Input(
        batch_shape=shape,
        dtype=dtype if isinstance(dtype, str) else None,
        sparse=bool(config.get("sparse")),
        name=None if name is None else layer_name(name),
    )


def _name(config: Config) -> str | None:
    name = config.get("name")
    return None if name is None else layer_name(name)


class _Graph:
    """Calls the layers of a Functional model in an order in which each has its inputs."""

    def __init__(self, config: Config, custom: Config) -> None:
        self.config, self.custom = config, custom
        self.layers: dict[str, Layer] = {}
        self.outputs: dict[tuple[str, int], list[Any]] = {}
        # Calls are counted from 1 where making the model was the first one.
        nodes = [entry["inbound_nodes"] for entry in config["layers"]]
        last = _last_calls([nodes, config["output_layers"]])
        self.first_calls = {
            _key(entry): int(last.get(_key(entry), 0) == max(1, len(entry["inbound_nodes"])))
            for entry in config["layers"]
        }

    def model(self, kind: type[keras.Model]) -> keras.Model:
        waiting = []
        for entry in self.config["layers"]:
            if class_name(entry) == "InputLayer":
                inner = entry["config"]
                shape = inner.get("batch_input_shape", inner.get("batch_shape"))
                self.outputs[_key(entry), 0] = [_input(inner, shape)]
            else:
                waiting += [(entry, number) for number in range(len(entry["inbound_nodes"]))]
        while waiting:
            left = [call for call in waiting if not self._called(*call)]
            if len(left) == len(waiting):
                raise ValueError(
                    "Expected layers that are called with what others give. Received: "
                    f"{sorted({_key(entry) for entry, _ in left})}, called with what none gives."
                )
            waiting = left
        inputs, outputs = (
            _one(self._tensors(_listed(self.config[key])))
            for key in ("input_layers", "output_layers")
        )
        name_apart(outputs, {layer_name(_key(entry)) for entry in self.config["layers"]})
        return kind(inputs, outputs, name=_name(self.config))

    def _called(self, entry: Config, number: int) -> bool:
        """Calls a layer, or returns `False` where its inputs are not there yet."""
        kwargs: Config = {}
        try:
            arguments = self._tensors(entry["inbound_nodes"][number], kwargs)
            kwargs = {key: self._tensors(value) for key, value in kwargs.items()}
        except _NotYetError:
            return False
        if class_name(entry) in OPERATIONS:
            result = apply(entry, arguments, kwargs)
        else:
            if _key(entry) not in self.layers:
                self.layers[_key(entry)] = made(entry, self.custom, build)
            result = _call(self.layers[_key(entry)], _one(arguments), kwargs)
        self.outputs[_key(entry), number] = keras.tree.flatten(result)
        return True

    def _tensors(self, value: Any, kwargs: Config | None = None) -> Any:
        """A structure with symbolic tensors in place of `[layer, call, output]`."""
        if _is_reference(value):
            name, call, output, *more = value
            if kwargs is not None and more:
                kwargs.update(more[0])
            if name == _CONSTANT:
                return output
            found = self.outputs.get((name, call - self.first_calls.get(name, 0)))
            if found is None:
                raise _NotYetError
            return found[output]
        if isinstance(value, list):
            return [self._tensors(item, kwargs) for item in value]
        if isinstance(value, dict):
            return {key: self._tensors(item, kwargs) for key, item in value.items()}
        return value


def _key(entry: Config) -> str:
    return str(entry.get("name", entry["config"].get("name")))


def _is_reference(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and (isinstance(value[2], int) or value[0] == _CONSTANT)
    )


def _last_calls(value: Any, found: dict[str, int] | None = None) -> dict[str, int]:
    """For each layer, the highest number of a call of it that a configuration speaks of."""
    found = {} if found is None else found
    if _is_reference(value):
        found[value[0]] = max(found.get(value[0], 0), value[1])
        value = value[3:]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _last_calls(item, found)
    return found


def _listed(value: Any) -> Any:
    return [value] if _is_reference(value) else value


def _one(value: Any) -> Any:
    """The only item of a list, as Keras 2 puts single tensors into lists."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _call(layer: Layer, inputs: Any, kwargs: Config) -> Any:
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    recurrent = isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional)
    if recurrent and isinstance(inputs, list):  # Keras 2 puts the first states behind the inputs
        inputs, *states = inputs
        # Keras 3 finds the mask of an only tensor.
        kwargs.setdefault("mask", getattr(inputs, "_keras_mask", None))
        kwargs["initial_state"] = _one(states) if _single_state(layer) else states
    return layer(inputs, **kwargs)


def _single_state(layer: Layer) -> bool:
    return not isinstance(layer, keras.layers.Bidirectional) and not isinstance(
        getattr(layer, "state_size", None), list | tuple
    )
