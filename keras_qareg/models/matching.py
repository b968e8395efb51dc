"""Which kernels of a model a key means: a path, a name, a pattern, a type, or all others."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import keras
from keras.layers import Layer

from keras_qareg.layers.keras_private import children
from keras_qareg.models.accounting import inner_layer, own_weights
from keras_qareg.models.reading import Kernel
from keras_qareg.models.selection import inside_wrappers
from keras_qareg.models.walking import scopes
from keras_qareg.settings import guessed

REST = "*"


class Match(NamedTuple):
    """How a key means a kernel.

    Attributes:
        rank: The lower, the closer.
        key: The key.
        what: The key in words.
        kind: The type of layer that it is, if it is one.
    """

    rank: int
    key: Any
    what: str
    kind: type | None = None


def matches(
    model: keras.Model, kernels: list[Kernel], keys: Iterable[Any], name: str, *, deep: bool
) -> list[dict[Any, Match]]:
    """The keys that mean each kernel, and how.

    Args:
        model: A built model.
        kernels: Its kernels, as `every_kernel` finds them.
        keys: Texts and types.
        name: What they are keys of, as errors say it.
        deep: Whether the kernels are those of a walk that is `deep`.

    Raises:
        ValueError: If a key but `"*"` means no kernel.
    """
    keys = list(keys)
    paths = _paths(model, kernels, deep)
    found = [_matches(keys, kernel, its) for kernel, its in zip(kernels, paths, strict=True)]
    unknown = [key for key in keys if key != REST and not any(key in its for its in found)]
    for key in [key for key in unknown if isinstance(key, str) and "/" in key]:
        for known, its in zip(found, paths, strict=True):
            if any(path.endswith(f"/{key}") for path in its):
                known[key] = Match(0, key, f"path {key!r}")
    unknown = [key for key in unknown if not any(key in its for its in found)]
    if unknown:
        raise _unknown(model, kernels, unknown, name)
    return found


def closest(found: Iterable[Match]) -> list[Match]:
    """Of the matches of a kernel those that count: several of one rank may disagree."""
    first = min((match.rank for match in found), default=0)
    equal = [match for match in found if match.rank == first]
    # A type comes before those that it is made from.
    kinds = [match.kind for match in equal if match.kind is not None]
    return [
        match
        for match in equal
        if not any(k is not match.kind and issubclass(k, match.kind or k) for k in kinds)
    ]


def _paths(model: keras.Model, kernels: list[Kernel], deep: bool) -> list[set[str]]:
    """The paths that each kernel may be called by.

    Keras has names of models and wrappers before the paths of weights, until they are copied or loaded:
    a path of the names of all that the kernel is inside of holds before and after, and so do its ends.
    """
    around = scopes(model, deep)
    layers = {id(kernel.layer): kernel.layer for kernel in kernels}
    inside = {x: _names_inside(inner_layer(layer), layer.name) for x, layer in layers.items()}
    root, found = f"{model.name}/", []
    for kernel in kernels:
        scope, named = around[id(kernel.layer)], inside[id(kernel.layer)][id(kernel.variable)]
        paths = {kernel.path.removeprefix(root), f"{scope}/{named}" if scope else named}
        found.append(paths | {f"{root}{path}" for path in paths})
    return found


def _names_inside(layer: Layer, name: str) -> dict[int, str]:
    """Of each weight of a layer, by its identity, the names of the layers that it is inside of."""
    found: dict[int, str] = {}

    def visit(part: Layer, path: str, above: list[Layer]) -> None:
        for weight in own_weights(part):
            found.setdefault(id(weight), f"{path}/{weight.name}")
        for child in children(part):
            if not any(child is layer for layer in above):
                visit(child, f"{path}/{child.name}", [*above, child])

    visit(layer, name, [layer])
    return found


def _matches(keys: Iterable[Any], kernel: Kernel, paths: set[str]) -> dict[Any, Match]:
    """The keys that mean a kernel, and how."""
    found = {key: _match(key, kernel, paths) for key in keys}
    return {key: match for key, match in found.items() if match is not None}


def _match(key: Any, kernel: Kernel, paths: set[str]) -> Match | None:
    name = kernel.layer.name
    if key in paths:
        return Match(0, key, f"path {key!r}")
    if key == name:
        return Match(1, key, f"name {key!r}")
    if key == REST:
        return Match(4, key, f"{key!r}")
    if isinstance(key, str) and any(map(key.count, "*?[")):
        fits = any(fnmatchcase(text, key) for text in (name, *paths))
        return Match(2, key, f"pattern {key!r}") if fits else None
    for kind in _types(kernel.layer):
        if key is kind or key == kind.__name__:
            return Match(3, key, f"type {kind.__name__}", kind)
    return None


def _types(layer: Layer) -> list[type]:
    """The types that a layer counts as: its own and their bases, and those of what it wraps."""
    return [
        kind for part in inside_wrappers(inner_layer(layer)) for kind in type(part).__mro__[:-1]
    ]


def _unknown(model: keras.Model, kernels: list[Kernel], keys: list[Any], name: str) -> ValueError:
    """The error that keys mean no kernel, with what would."""
    layers = list({id(kernel.layer): kernel.layer for kernel in kernels}.values())
    types = [type(inside_wrappers(inner_layer(layer))[-1]).__name__ for layer in layers]
    listed = [f"'{layer.name}' ({kind})" for layer, kind in zip(layers, types, strict=True)]
    names = [*(layer.name for layer in layers), *(kernel.path for kernel in kernels)]
    texts = [key if isinstance(key, str) else key.__name__ for key in keys]
    return ValueError(
        f"Expected the keys of `{name}` to be names, paths or patterns of layers with kernels in model "
        f"'{model.name}', or their types: {', '.join(listed)}. Received keys that match none: "
        f"{guessed(texts, [*names, *sorted(set(types))])}"
    )
