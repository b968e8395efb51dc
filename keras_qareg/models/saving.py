"""Models whose own code says what they are made of, and so cannot say that layers were changed.

A class with a `get_config` of its own makes plain layers when its file is loaded. Keras then takes none
of the weights, or leaves them as they were initialized; so that such a model is not saved as a whole.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
from keras.layers import Layer

from keras_qareg.layers import EXTENDED
from keras_qareg.layers.keras_private import children, layers_inside

_copying: ContextVar[bool] = ContextVar("copying", default=False)


@contextlib.contextmanager
def copying() -> Iterator[None]:
    """Lets layers give configurations without their changed layers: a copy gets these otherwise."""
    token = _copying.set(True)
    try:
        yield
    finally:
        _copying.reset(token)


def guard_configs(model: keras.Model) -> None:
    """Makes `get_config` of what holds changed layers raise where the configuration lacks these."""
    for layer in layers_inside(model):
        inside = layers_inside(layer)[1:]
        ours = isinstance(layer, EXTENDED) or type(layer).__module__.startswith("keras.")
        if not ours and any(isinstance(part, EXTENDED) for part in inside):
            vars(layer)["get_config"] = functools.partial(_full_config, layer)


def _full_config(layer: Layer) -> dict[str, Any]:
    """The configuration of a layer; raises a `ValueError` where a changed layer is not in it."""
    config: dict[str, Any] = type(layer).get_config(layer)
    if not _copying.get():
        known = _names_of_ours(config)
        lost = [part.name for part in _changed(layer) if part.name not in known]
        if lost:
            raise ValueError(
                f"Expected '{layer.name}' ({type(layer).__name__}) to have its changed layers in its "
                f"configuration, so that a saved model can be loaded. Received: one without {lost}, "
                "because its own `get_config()` makes the layers. Save its weights (`save_weights`), "
                "or the plain model that keras_qareg.strip makes of it."
            )
    return config


def _changed(layer: Layer) -> list[Layer]:
    """The layers of this package in a layer, but not those inside them."""
    found: list[Layer] = []
    for child in children(layer):
        found += [child] if isinstance(child, EXTENDED) else _changed(child)
    return found


def _names_of_ours(config: Any) -> set[str]:
    if isinstance(config, dict):
        inner = config.get("config")
        ours = str(config.get("registered_name")).startswith("keras_qareg>")
        named = {str(inner.get("name"))} if ours and isinstance(inner, dict) else set()
        return named.union(*map(_names_of_ours, config.values()))
    if isinstance(config, list | tuple):
        return set().union(*map(_names_of_ours, config))
    return set()
