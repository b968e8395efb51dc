"""Models made again from an archive, and whether all of their objects are those of the first one."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.layers import Layer

from keras_qareg.export.archive.container import ArchiveError
from keras_qareg.export.archive.reading import Archive
from keras_qareg.layers.keras_private import attributes, flattened, layers_inside

# Where Keras looks for functions, of which a configuration has only the name.
_MODULES = ("activations", "constraints", "initializers", "losses", "metrics", "regularizers")


def rebuilt(archive: Archive, custom_objects: Mapping[str, Any], safe_mode: bool) -> keras.Model:
    """The model of an archive, without its weights.

    Args:
        archive: An open archive.
        custom_objects: As in `load_archive`.
        safe_mode: As there.

    Raises:
        ArchiveError: If it cannot be made.
    """
    manifest = archive.manifest
    contents = [archive.asset(place) for place in range(len(manifest.assets))]
    try:
        with keras.saving.custom_object_scope(dict(custom_objects)):
            model = keras.saving.deserialize_keras_object(manifest.config, safe_mode=safe_mode)
        layers = layers_inside(model)
        for (place, name), content in zip(manifest.assets, contents, strict=True):
            _load_asset(layers[place], name, content)
    except Exception as error:
        raise ArchiveError(
            f"Expected a model that can be made again. Received: {type(error).__name__}: {error}"
        ) from error
    shapes = [tuple(weight.shape) for weight in model.weights]
    expected = [tensor.shape for tensor in manifest.tensors]
    if shapes != expected:
        raise ArchiveError(
            f"Expected a model with tensors of shapes {expected}. Received: {shapes}. "
            "A subclassed model must build all its layers from its configuration."
        )
    return model


def fill(
    model: keras.Model, arrays: Iterable[np.ndarray], done: Callable[[int], object] = bool
) -> None:
    """Gives a model its weights.

    Args:
        model: What `rebuilt` made.
        arrays: Its weights, in order.
        done: Called with the number of those that it has so far.
    """
    for count, (weight, array) in enumerate(zip(model.weights, arrays, strict=True), start=1):
        weight.assign(array)
        done(count)
    for layer in layers_inside(model):
        if hasattr(layer, "finalize_state"):  # Normalization computes with copies of its weights
            layer.finalize_state()


def own_objects(model: keras.Model) -> dict[str, Any]:
    """Classes and functions of a model that are not Keras's and not registered, by their names.

    Functions with the name of one of Keras's are not among them: a name leads to Keras's.
    """
    found = {}
    for layer in layers_inside(model):
        for part in (layer, *(part for _, part in _objects(layer))):
            kind = part if inspect.isfunction(part) else type(part)
            name = keras.saving.get_registered_name(kind)
            taken = keras.saving.get_registered_object(name) is not None
            ours = kind.__module__.partition(".")[0] == "keras"
            if not (taken or ours or (kind is part and _is_keras_name(name))):
                found[name] = kind
    return found


def check_objects(model: keras.Model, again: keras.Model) -> None:
    """That layers, and the functions and objects in them, are of the same making in both models.

    A configuration has the names of functions and classes alone, which may lead to others.

    Args:
        model: A plain model.
        again: The one that its configuration made.

    Raises:
        ValueError: If something is another thing.
    """
    for old, new in zip(layers_inside(model), layers_inside(again), strict=False):
        theirs = dict(_objects(new))
        pairs = [("", old, new)] if type(old) is not type(new) else []
        pairs += [(name, mine, theirs.get(name)) for name, mine in _objects(old)]
        for name, mine, other in pairs:
            if _maker(mine) != _maker(other):
                what = f"`{name}` of layer '{old.name}'" if name else f"layer '{old.name}'"
                raise ValueError(
                    f"Expected a model whose configuration leads to its own functions and classes. "
                    f"Received: {what} is {_said(mine)}, and made again it is {_said(other)}. Give "
                    "yours a name that no other has."
                )


def _objects(layer: Layer) -> list[tuple[str, Any]]:
    """The functions and objects with a configuration in a layer, by their places."""
    held = {**attributes(layer), "activity_regularizer": layer.activity_regularizer}
    found = []
    for name, value in held.items():
        parts = flattened(value)
        for place, part in enumerate(parts):
            configured = hasattr(part, "get_config") and not isinstance(part, Layer | type)
            if configured or inspect.isfunction(part):
                found.append((name if len(parts) == 1 else f"{name}[{place}]", part))
    return found


def _maker(part: Any) -> Any:
    """What tells a function or an object of another class from this one."""
    if not inspect.isfunction(part):
        return type(part)
    if part.__name__ == "<lambda>":  # made again from its code
        return part.__code__.co_code
    return part.__module__, part.__qualname__


def _said(part: Any) -> str:
    if part is None:
        return "nothing"
    kind = part if inspect.isfunction(part) else type(part)
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_keras_name(name: str) -> bool:
    return any(hasattr(getattr(keras, module), name) for module in _MODULES)


def _load_asset(layer: Layer, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The name alone: an archive must not write elsewhere.
        (Path(folder) / Path(name).name).write_bytes(content)
        layer.load_assets(folder)
