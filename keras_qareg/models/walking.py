"""The layers of a model that transforms act on, and what they are inside of."""

from __future__ import annotations

from collections import Counter

import keras
from keras.layers import Layer

from keras_qareg.layers import EXTENDED
from keras_qareg.layers.keras_private import children, layers_inside


def leaf_layers(model: Layer, deep: bool = False) -> list[Layer]:
    """The layers that transforms act on, each once: `entered` ones are walked into, others are not."""
    inside = entered(model, deep)
    return [found for found in _walk(model, inside) if id(found) not in inside]


def containers(model: Layer) -> list[Layer]:
    """A model, and all models and layers inside that `leaf_layers` enters."""
    inside = entered(model)
    return [model, *(found for found in _walk(model, inside) if id(found) in inside)]


def entered(model: Layer, deep: bool = False) -> set[int]:
    """The identities of the layers whose parts are layers of the model in their own right.

    Models; what holds layers of this package; and what holds a layer that has another place too, as the
    layer has whose kernel is tied to another's.

    Args:
        model: A model, or a layer made of layers.
        deep: Whether to enter all layers that are made of layers, but for Keras's own.
    """
    found = layers_inside(model)
    places = Counter(id(child) for layer in found for child in children(layer))
    several = {identity for identity, count in places.items() if count > 1}

    def is_entered(layer: Layer) -> bool:
        inner = layers_inside(layer)[1:]
        return not isinstance(layer, EXTENDED) and (
            isinstance(layer, keras.Model)
            or any(isinstance(part, EXTENDED) or id(part) in several for part in inner)
            or (deep and bool(inner) and not type(layer).__module__.startswith("keras."))
        )

    inside_quantized = {
        id(part) for layer in found if isinstance(layer, EXTENDED) for part in layers_inside(layer)
    }
    return {id(layer) for layer in found if is_entered(layer)} - inside_quantized


def held_by_layers(model: Layer) -> set[int]:
    """The identities of layers with several places, one of them in a layer that is no model."""
    found = layers_inside(model)
    parents: dict[int, list[Layer]] = {}
    for layer in found:
        for child in children(layer):
            parents.setdefault(id(child), []).append(layer)
    return {
        identity
        for identity, holders in parents.items()
        if len(holders) > 1 and not all(isinstance(holder, keras.Model) for holder in holders)
    }


def scopes(model: Layer, deep: bool = False) -> dict[int, str]:
    """For each layer that is walked past, by its identity, the names of what it is inside of.

    `""` for layers of the model itself, `"encoder/block"` further inside.
    """
    inside = entered(model, deep)
    found: dict[int, str] = {}

    def visit(layer: Layer, scope: str) -> None:
        for child in children(layer):
            if id(child) not in found:
                found[id(child)] = scope
                if id(child) in inside:
                    visit(child, f"{scope}/{child.name}" if scope else child.name)

    visit(model, "")
    return found


def _walk(model: Layer, inside: set[int]) -> list[Layer]:
    seen: dict[int, Layer] = {}

    def visit(layer: Layer) -> None:
        for child in children(layer):
            if id(child) not in seen:
                seen[id(child)] = child
                if id(child) in inside:
                    visit(child)

    visit(model)
    return list(seen.values())
