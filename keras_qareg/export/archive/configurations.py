"""The configuration of a model in few bytes: without defaults, and by a shared dictionary.

`templates_1.json` has the configuration of each class of Keras with its defaults, as of the version with
which the file was made: what is left out is taken from there, not from the Keras that reads. With
`dictionary_1.bin` zstd compresses what is left. Both belong to version 2 of archives and never change;
`python -m benchmarks.configurations` made them.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

from keras_qareg.export.archive.graphs import Json, lengthen_layers, same, shorten_layers

FOLDER = Path(__file__).parent
_OBJECT = ("module", "class_name", "config", "registered_name")
# Keys of a shortened object: its class, keys of its template that it does not have, other fields.
_CLASS, _WITHOUT, _MORE, _AS_IT_IS = "", "=-", "=x", "=v"


@functools.cache
def templates() -> dict[str, tuple[Json, Json, dict[str, Json]]]:
    """Module, registered name and default configuration of each known class."""
    known: dict[str, tuple[Json, Json, dict[str, Json]]] = {}
    # Later ones hold earlier ones, which they name.
    for name, (module, registered, config) in json.loads(
        (FOLDER / "templates_1.json").read_bytes()
    ).items():
        known[name] = module, registered, _long(config, known)
    return known


def shorten(config: Json) -> Json:
    """A configuration without defaults, as JSON; `lengthen` gives it back.

    Example:

    >>> flatten = keras.saving.serialize_keras_object(keras.layers.Flatten(name="flat"))
    >>> shorten(flatten)
    {'': 'Flatten', 'name': 'flat'}
    """
    try:
        short = _short(config, templates())
        if same(lengthen(short), config):
            return short
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        pass  # a configuration of another form than Keras writes
    return {_CLASS: None, _AS_IT_IS: config}


def lengthen(short: Json) -> Json:
    """The configuration that `shorten` made short."""
    return _long(short, templates())


def without_defaults(config: Json, known: dict[str, Any]) -> Json:
    """A part of a configuration without the defaults of some classes."""
    return _short(config, known)


def _short(value: Json, known: dict[str, Any]) -> Json:
    if isinstance(value, list):
        return [_short(part, known) for part in value]
    if not isinstance(value, dict):
        return value
    if not all(key in value for key in _OBJECT) or not isinstance(value["config"], dict):
        if _CLASS in value and value[_CLASS] not in ("@", "absent"):
            return {_CLASS: None, _AS_IT_IS: value}
        return {key: _short(part, known) for key, part in value.items()}
    module, registered, defaults = known.get(value["class_name"], (None, None, {}))
    name: Json = value["class_name"]
    if name not in known or not same(
        [module, registered], [value["module"], value["registered_name"]]
    ):
        name, defaults = [value["module"], name, value["registered_name"]], {}
    config = value["config"]
    if isinstance(config.get("layers"), list):
        config = shorten_layers(config, value["class_name"] != "Sequential")
    changed = {k: v for k, v in config.items() if k not in defaults or not same(v, defaults[k])}
    if any(key in (_CLASS, _WITHOUT, _MORE) for key in config):
        return {_CLASS: None, _AS_IT_IS: value}
    without = [key for key in defaults if key not in config]
    more = {key: part for key, part in value.items() if key not in _OBJECT}
    return {
        _CLASS: name,
        **{key: _short(part, known) for key, part in changed.items()},
        **({_WITHOUT: without} if without else {}),
        **({_MORE: _short(more, known)} if more else {}),
    }


def _long(value: Json, known: dict[str, Any]) -> Json:
    if isinstance(value, list):
        return [_long(part, known) for part in value]
    if not isinstance(value, dict):
        return value
    if _CLASS not in value or value[_CLASS] in ("@", "absent"):
        return {key: _long(part, known) for key, part in value.items()}
    name = value[_CLASS]
    if name is None:
        return value[_AS_IT_IS]
    if isinstance(name, str):
        module, registered, defaults = known[name]
    else:
        (module, name, registered), defaults = name, {}
    config = copy.deepcopy(defaults)
    for key in value.get(_WITHOUT, ()):
        del config[key]
    changed = {k: v for k, v in value.items() if k not in (_CLASS, _WITHOUT, _MORE)}
    config |= {key: _long(part, known) for key, part in changed.items()}
    if isinstance(config.get("layers"), list):
        config = lengthen_layers(config, name != "Sequential")
    more = _long(value.get(_MORE, {}), known)
    return {
        **{"module": module, "class_name": name, "config": config, "registered_name": registered},
        **more,
    }
