"""What a user chooses, as objects: from a name, a class or a configuration, and as text; and checked."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import keras
import numpy as np


def deserialized(config: dict[str, Any], kinds: dict[str, type]) -> Any:
    """The object of a configuration, which may name one of these classes without its package."""
    classes = {kind.__name__: kind for kind in kinds.values()}
    return keras.saving.deserialize_keras_object(config, custom_objects=classes)


def positive(value: float) -> bool:
    """Whether a number is above 0."""
    return value > 0


def from_zero(value: float) -> bool:
    """Whether a number is 0 or more."""
    return value >= 0


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {choices}. Received: {name}={value!r}")


def check_switch(name: str, value: Any) -> bool | str:
    """`True`, `False` or `"auto"`; raises a `ValueError` unless `value` is one of them."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str) and value == "auto":
        return value
    raise ValueError(f"Expected `{name}` to be True, False or 'auto'. Received: {value!r}")


def check_bits(name: str, bits: SupportsIndex, most: int, least: int = 1) -> int:
    """`bits` as an `int`; raises a `ValueError` unless it is an integer from `least` to `most`."""
    try:
        value = 0 if isinstance(bits, bool) else operator.index(bits)
    except TypeError:
        value = 0
    if not least <= value <= most:
        raise ValueError(
            f"Expected `{name}` to be an integer from {least} to {most}. Received: {name}={bits!r}"
        )
    return value


def find(identifier: Any, base: Any, kinds: dict[str, type], what: str, **defaults: Any) -> Any:
    """An object of this package from `None`, its name, its class, its configuration, or itself.

    Args:
        identifier: What the user passed; a dict may have `"name"` and arguments of the class.
        base: The class, or union of classes, of what may be passed as it is.
        kinds: The classes that a name or a configuration may mean, by name.
        what: What is looked for, as errors say it.
        **defaults: Arguments of a class that was named or passed.

    Returns:
        An instance of `base`, or `None`.

    Raises:
        ValueError: If the identifier is none of these.
    """
    if identifier is None or isinstance(identifier, base):
        return identifier
    classes = {kind.__name__: kind for kind in kinds.values()}
    if isinstance(identifier, dict) and "name" in identifier:
        kind = {**kinds, **classes}.get(identifier["name"])
        if kind is not None:
            return _made(kind, {**defaults, **identifier}, what)
    elif isinstance(identifier, dict):
        if identifier.get("class_name") in classes:
            return deserialized(identifier, kinds)
    elif isinstance(identifier, str):
        kind = {**kinds, **classes}.get(identifier)
        if kind is not None:
            return kind(**defaults)
    elif isinstance(identifier, type) and identifier is not base and issubclass(identifier, base):
        return identifier(**defaults)
    raise ValueError(
        f"Expected a {what} of keras_qareg, its class, None, or one of {sorted(kinds)}. "
        f"Received: {identifier!r}"
    )


def _made(kind: type, named: dict[str, Any], what: str) -> Any:
    """An object of a class with the arguments of a dict, which has its name too."""
    arguments = {key: value for key, value in named.items() if key != "name"}
    known = list(inspect.signature(kind).parameters)
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise ValueError(
            f"Expected arguments of the {what} {kind.__name__}, {known}. Received others: {unknown}"
        )
    return kind(**arguments)


class Described:
    """Shows an object as the call that makes it, from its configuration."""

    def get_config(self) -> dict[str, Any]:
        """The arguments of the object."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(_argument, self.get_config().items()))})"


def _argument(item: tuple[str, Any]) -> str:
    name, value = item
    return f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value!r}"


def check_flag(name: str, value: Any) -> bool:
    """`value` as a `bool`; raises a `ValueError` unless it is one."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"Expected `{name}` to be True or False. Received: {name}={value!r}")
    return bool(value)


def check_count(name: str, value: Any, least: int = 1, besides: str = "") -> int:
    """`value` as an `int`; raises a `ValueError` unless it is an integer, `least` or more.

    `besides` says, as in `" or None"`, what the caller takes besides.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < least:
        what = "a positive integer" if least == 1 else f"an integer, {least} or more"
        raise ValueError(f"Expected `{name}` to be {what}{besides}. Received: {name}={value!r}")
    return operator.index(value)


def check_number(
    name: str,
    value: Any,
    what: str = "a positive number",
    holds: Callable[[float], bool] = positive,
) -> float:
    """`value` as a `float`; raises a `ValueError` that says what unless it is finite, and that holds."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and holds(float(value))):
        raise ValueError(f"Expected `{name}` to be {what}. Received: {name}={value!r}")
    return float(value)


def shown(verbose: Any, auto: bool) -> int:
    """`verbose` as Keras takes it, `"auto"` being what `auto` says; raises a `ValueError` of others."""
    if isinstance(verbose, str) and verbose == "auto":
        return int(auto)
    if not isinstance(verbose, int | np.integer) or verbose not in (0, 1, 2):
        raise ValueError(
            f"Expected `verbose` to be 'auto', 0, 1 or 2. Received: verbose={verbose!r}"
        )
    return int(verbose)


def check_pair(
    name: str, values: Any, what: str, holds: Callable[[float, float], bool]
) -> tuple[float, float]:
    """Two finite floats for which something holds, or a `ValueError` that says what."""
    try:
        one, other = (float(value) for value in values)
        if math.isfinite(one) and math.isfinite(other) and holds(one, other):
            return one, other
    except (TypeError, ValueError):
        pass
    raise ValueError(f"Expected `{name}` to be a pair of {what}. Received: {name}={values!r}")
