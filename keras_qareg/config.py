"""Finding a regularizer or a quantizer from what a user may pass for one."""

from __future__ import annotations

from typing import Any

import keras


def deserialized(config: dict[str, Any], kinds: dict[str, type]) -> Any:
    """The object of a configuration, which may name one of these classes without its package."""
    classes = {kind.__name__: kind for kind in kinds.values()}
    return keras.saving.deserialize_keras_object(config, custom_objects=classes)


def find(identifier: Any, base: Any, kinds: dict[str, type], what: str, **defaults: Any) -> Any:
    """An object of this package from `None`, its name, its configuration, or itself.

    Args:
        identifier: What the user passed.
        base: The class, or union of classes, of what may be passed as it is.
        kinds: The classes that a name or a configuration may mean, by name.
        what: What is looked for, as errors say it.
        **defaults: Arguments of a class that was named.

    Returns:
        An instance of `base`, or `None`.

    Raises:
        ValueError: If the identifier is none of these.
    """
    if identifier is None or isinstance(identifier, base):
        return identifier
    if isinstance(identifier, dict):
        if identifier.get("class_name") in {kind.__name__ for kind in kinds.values()}:
            return deserialized(identifier, kinds)
    elif isinstance(identifier, str) and identifier in kinds:
        return kinds[identifier](**defaults)
    raise ValueError(
        f"Expected a {what} of keras_qareg, None, or one of {sorted(kinds)}. "
        f"Received: {identifier!r}"
    )
