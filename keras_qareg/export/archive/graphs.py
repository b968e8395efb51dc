"""Layers of a configuration without what follows from those before them, and back.

Of a layer in a model, Keras writes its name twice, the layers that it is connected to with their
shapes, and the shape that it was built for. Most of that follows: layers of one class are numbered, most
are connected to the one before, and sizes come from filters, strides and units. What is as expected is
left out. Nothing is lost: where something else is written, it stays.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

Json = Any
_ABSENT: dict[str, Any] = {"": "absent"}
_TENSOR = "__keras_tensor__"
# What Keras writes of each layer of a graph, in this order.
_FIELDS = ("name", "inbound_nodes", "build_config")
# A batch, at least one size of space, and channels.
_SPATIAL = 3


def same(one: Json, other: Json) -> bool:
    """Whether two values are the same JSON; 1, 1.0 and true are not."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# What a configuration says beside how a network computes with its weights.
_BESIDE = {"name", "module", "registered_name", "build_config", "trainable", "dtype", "seed"}
_BESIDE |= {"inbound_nodes", "input_layers", "output_layers", "compile_config", "sparse", "ragged"}
_OF_TRAINING = ("initializer", "regularizer", "constraint")


def settings_apart(one: Json, other: Json, place: str = "") -> list[str]:
    """Where two configurations say that layers compute otherwise: places in them, as `layers.1.rate`."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in one if key in other and key not in _BESIDE]
        keys = [key for key in keys if not key.endswith(_OF_TRAINING)]
        parts = [settings_apart(one[key], other[key], f"{place}.{key}") for key in keys]
        return [found for part in parts for found in part]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        parts = [settings_apart(a, b, f"{place}.{number}") for number, (a, b) in pairs]
        return [found for part in parts for found in part]
    return [] if same(one, other) else [place.removeprefix(".").replace("config.", "")]


def shorten_layers(config: dict[str, Any], graph: bool) -> dict[str, Any]:
    """The configuration of a model without what its layers have as expected.

    Args:
        config: The configuration.
        graph: Whether it is one of a Functional, whose layers say what they are connected to, as is
            expected; where it is not so, the result has `graph`.
    """
    actual = _output_shapes(config["layers"])
    expected = _Expected("input_layers" in config)
    layers = []
    for layer in config["layers"]:
        its, short = layer["config"], {k: v for k, v in layer.items() if k not in _FIELDS}
        named = expected.named(layer["class_name"])
        if same(its.get("name"), named):
            short["config"] = {key: value for key, value in its.items() if key != "name"}
        expected.begin(layer["class_name"], its)
        for key in _FIELDS:
            found, wanted = layer.get(key, _ABSENT), expected.field(key)
            if not same(found, wanted):
                short[key] = expected.shortened(found) if key == "inbound_nodes" else found
            expected.saw(key, found)
        wanted, found = expected.output_shape(), actual.get(expected.name)
        if found is not None and not same(found, wanted):
            short["output"] = found
        expected.end(wanted if found is None else found)
        layers.append(short)
    ends = expected.ends()
    rest = {key: value for key, value in config.items() if not same(value, ends.get(key, _ABSENT))}
    gone = [key for key in ends if key not in config]
    odd = {"graph": expected.graph} if expected.graph != graph else {}
    return {**rest, "layers": layers, **odd, **({"gone": gone} if gone else {})}


def lengthen_layers(short: dict[str, Any], graph: bool) -> dict[str, Any]:
    """The inverse of `shorten_layers`."""
    expected = _Expected(short.get("graph", graph))
    layers = []
    for less in short["layers"]:
        layer = {k: v for k, v in less.items() if k not in ("output", *_FIELDS)}
        its = dict(layer["config"])
        its.setdefault("name", expected.named(layer["class_name"]))
        layer["config"] = its
        expected.begin(layer["class_name"], its)
        for key in _FIELDS:
            found = expected.field(key)
            if key in less:
                found = expected.lengthened(less[key]) if key == "inbound_nodes" else less[key]
            if found != _ABSENT:
                layer[key] = found
            expected.saw(key, found)
        expected.end(less.get("output", expected.output_shape()))
        layers.append(layer)
    ends = {k: v for k, v in expected.ends().items() if k not in short.get("gone", ())}
    rest = {key: value for key, value in short.items() if key not in ("gone", "graph")}
    return {**ends, **rest, "layers": layers}


@dataclass
class _Expected:
    """What is expected of the next layer, after those before it.

    Attributes:
        graph: Whether layers name what they are connected to, as those of a Functional.
    """

    graph: bool
    name: str = ""
    _numbers: dict[str, str] = field(default_factory=dict)
    _outputs: dict[str, tuple[Json, str]] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _class: str = ""
    _config: dict[str, Any] = field(default_factory=dict)
    _inputs: list[Json] = field(default_factory=list)
    _dtype: str = "float32"

    def named(self, kind: str) -> str:
        last = self._numbers.get(kind)
        if last is None:
            words = re.sub(
                r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", kind)
            )
            return words.lower()
        stem, _, number = last.rpartition("_")
        return f"{stem}_{int(number) + 1}" if stem and number.isdecimal() else f"{last}_1"

    def begin(self, kind: str, config: dict[str, Any]) -> None:
        self._class, self._config = kind, config
        self.name = str(config.get("name"))
        self._numbers[kind] = self.name
        before = self._outputs.get(self._names[-1], (None, "")) if self._names else (None, "")
        self._inputs = [before[0]]
        policy = config.get("dtype")
        if isinstance(policy, dict):
            policy = (policy.get("config") or {}).get("name")
        self._dtype = str(policy).removeprefix("mixed_")

    def field(self, key: str) -> Json:
        first = self._class == "InputLayer"
        if key == "build_config":
            if first:
                return _ABSENT
            shapes = self._inputs
            return {"input_shape": shapes[0] if len(shapes) == 1 else shapes}
        if not self.graph:
            return _ABSENT
        if key == "name":
            return self.name
        return [] if first else self.lengthened(self._names[-1] if self._names else [])

    def saw(self, key: str, found: Json) -> None:
        if key == "inbound_nodes" and self.graph and found:
            arguments = found[0]["args"] if isinstance(found[0], dict) else []
            self._inputs = [shape for _, shape, _ in _tensors(arguments)] or [None]

    def end(self, shape: Json) -> None:
        self._outputs[self.name] = shape, self._dtype
        self._names.append(self.name)

    def shortened(self, nodes: Json) -> Json:
        """One name, or a list of names, where a layer is called once on just that."""
        names = [name for name, _, _ in _tensors(nodes)]
        for short in (names[0] if len(names) == 1 else names, names):
            if names and same(self.lengthened(short), nodes):
                return short
        return _mapped(nodes, self._short_tensor)

    def lengthened(self, short: Json) -> Json:
        if isinstance(short, str):
            mask = {"mask": None} if self._class == "BatchNormalization" else {}
            return [{"args": [self._tensor(short)], "kwargs": mask}]
        if isinstance(short, list) and short and all(isinstance(name, str) for name in short):
            return [{"args": [[self._tensor(name) for name in short]], "kwargs": {}}]
        return _mapped(short, self._long_tensor)

    def _tensor(self, name: str) -> Json:
        shape, dtype = self._outputs.get(name, (None, "float32"))
        config = {"shape": shape, "dtype": dtype, "keras_history": [name, 0, 0]}
        return {"class_name": _TENSOR, "config": config}

    def _short_tensor(self, value: dict[str, Any]) -> Json:
        if value.get("class_name") == _TENSOR:
            name = value["config"]["keras_history"][0]
            if same(self._tensor(name), value):
                return {"": "@", "of": name}
        return None

    def _long_tensor(self, value: dict[str, Any]) -> Json:
        return self._tensor(value["of"]) if value.get("") == "@" else None

    def ends(self) -> dict[str, Any]:
        """The first and the last layer of a graph."""
        if not self.graph or not self._names:
            return {}
        places = {"input_layers": self._names[0], "output_layers": self._names[-1]}
        return {key: [name, 0, 0] for key, name in places.items()}

    def output_shape(self) -> Json:
        return _output_shape(self._class, self._config, self._inputs[0])


def _output_shape(kind: str, config: dict[str, Any], shape: Json) -> Json:
    """The shape that a layer is expected to give, of one that it takes; an error in it is no harm."""
    if kind == "InputLayer":
        return config.get("batch_shape")
    if not isinstance(shape, list) or not all(size is None or type(size) is int for size in shape):
        return None
    if kind == "Flatten" and None not in shape[1:]:
        return [shape[0], math.prod(shape[1:])]
    if kind.startswith("Global") and not config.get("keepdims"):
        return [shape[0], shape[-1]]
    window = config.get("kernel_size", config.get("pool_size"))
    strides = config.get("strides") or window
    found = list(shape)
    if isinstance(window, list) and isinstance(strides, list) and len(shape) >= _SPATIAL:
        for axis, (size, step) in enumerate(zip(window, strides, strict=False), start=1):
            if axis < len(found) - 1 and found[axis] is not None and type(step) is int and step > 0:
                whole = found[axis] if config.get("padding") == "same" else found[axis] - size + 1
                found[axis] = -(-whole // step)
    channels = config.get("filters", config.get("units"))
    if channels is not None and found:
        found[-1] = channels
    return found


def _output_shapes(layers: list[Json]) -> dict[str, Json]:
    """The shapes that layers give, as those that take them say."""
    found: dict[str, Json] = {}
    before = None
    for layer in layers:
        for name, shape, place in _tensors(layer.get("inbound_nodes")):
            if place == [0, 0]:
                found.setdefault(name, shape)
        if before is not None and "inbound_nodes" not in layer:
            shape = (layer.get("build_config") or {}).get("input_shape")
            if shape is not None:
                found.setdefault(before, shape)
        before = layer["config"].get("name")
    return found


def _tensors(value: Json) -> list[tuple[str, Json, Json]]:
    """The name of the layer, the shape and the place of each tensor inside, in order."""
    if isinstance(value, list):
        return [one for part in value for one in _tensors(part)]
    if isinstance(value, dict):
        if value.get("class_name") == _TENSOR:
            name, *place = value["config"]["keras_history"]
            return [(name, value["config"]["shape"], place)]
        return [one for part in value.values() for one in _tensors(part)]
    return []


def _mapped(value: Json, change: Any) -> Json:
    """A value in which dicts are replaced by what `change` makes of them, where that is not `None`."""
    if isinstance(value, list):
        return [_mapped(part, change) for part in value]
    if isinstance(value, dict):
        found = change(value)
        return {k: _mapped(v, change) for k, v in value.items()} if found is None else found
    return value
