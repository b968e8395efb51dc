"""Which layer gets which value of an argument: one value for all, or by name, pattern, type, function.

Every argument of a transform that may differ between layers goes through `resolve`. A *setting* is what
the user passed for it: a value, a dict, a function, a plan, or the path of a YAML file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import keras
from keras.layers import Layer

from keras_qareg import regularizers, settings
from keras_qareg.choices import check_choice
from keras_qareg.layers import Weights
from keras_qareg.layers.keras_private import children
from keras_qareg.models.accounting import inner_layer, own_weights
from keras_qareg.models.reading import Kernel, every_kernel
from keras_qareg.models.selection import inside_wrappers
from keras_qareg.models.walking import scopes
from keras_qareg.numerics.clustering import check_levels
from keras_qareg.numerics.tables import SCALES, TABLES
from keras_qareg.quantizers import MAX_ACTIVATION_BITS, MAX_WEIGHT_BITS, check_bits

REST = "*"
T = TypeVar("T")


class Planned(Protocol):
    """A plan: its levels are a dict from the paths of kernels to levels, `None` for float."""

    @property
    def levels(self) -> Mapping[str, int | None]:
        """The levels of each kernel."""


# What an argument may be that differs between layers.
Setting: TypeAlias = (
    T | Mapping[Any, T | str | None] | Callable[[Layer], T | str | None] | Planned | str | PurePath
)


@dataclass(frozen=True)
class Argument:
    """An argument of a transform that may differ between layers.

    Attributes:
        name: Its name.
        check: Makes a value of it what the transform takes; raises a `ValueError` for others.
        default: What layers get that no key names, or that are given `None`. Where this is `None`, they
            are left as they are, and `"float"` says the same.
        is_value: Whether a dict or a function is a value for all layers, and no setting.
    """

    name: str
    check: Callable[[Any], Any]
    default: Any = None
    is_value: Callable[[Any], bool] = lambda _: False


class Choice(NamedTuple):
    """What a kernel gets, and why, in words; with the default `None` it is left as it is."""

    value: Any
    why: str


def _choice(name: str, choices: tuple[str, ...]) -> Argument:
    def check(value: Any) -> Any:
        check_choice(name, value, choices)
        return value

    return Argument(name, check, choices[0])


def _bits(name: str, most: int) -> Argument:
    return Argument(name, lambda bits: check_bits(name, bits, most))


def _is_regularizer(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_name" in value or "name" in value
    return isinstance(value, regularizers.QuantizationRegularizer)


LEVELS = Argument("levels", check_levels)
REGULARIZER = Argument("regularizer", regularizers.get, is_value=_is_regularizer)
TABLE, SCALE = _choice("table", TABLES), _choice("scale", SCALES)
BITS = _bits("bits", MAX_WEIGHT_BITS)
ACTIVATION_BITS = _bits("activation_bits", MAX_ACTIVATION_BITS)
ARGUMENTS = {
    argument.name: argument
    for argument in (LEVELS, REGULARIZER, TABLE, SCALE, BITS, ACTIVATION_BITS)
}


class Resolved:
    """What each layer gets of an argument.

    Args:
        argument: The argument.
        choices: Each kernel with what it gets.
    """

    def __init__(self, argument: Argument, choices: list[tuple[Kernel, Choice]]):
        self.argument, self.choices = argument, choices
        self._by_layer: dict[int, list[tuple[Kernel, Choice]]] = {}
        for found, choice in choices:
            self._by_layer.setdefault(id(found.layer), []).append((found, choice))

    def kernel_values(self, layer: Layer) -> list[Any]:
        """The value of each kernel of a layer, in order."""
        return [choice.value for _, choice in self._by_layer[id(layer)]]

    def of(self, layers: Iterable[Layer]) -> list[tuple[Kernel, Choice]]:
        """The kernels of some layers with what they get."""
        meant = {id(layer) for layer in layers}
        return [(kernel, choice) for kernel, choice in self.choices if id(kernel.layer) in meant]

    def value(self, layer: Layer) -> Any:
        """The value of a layer; raises a `ValueError` where its kernels are given several."""
        first, *others = values = self.kernel_values(layer)
        if not all(_same(first, other) for other in others):
            paths = [found.path for found, _ in self._by_layer[id(layer)]]
            given = ", ".join(f"{v!r} for '{p}'" for p, v in zip(paths, values, strict=True))
            raise ValueError(
                f"Expected one value of `{self.argument.name}` for all kernels of layer "
                f"'{layer.name}'. Received: {given}"
            )
        return first


def check_value(argument: Argument, setting: Any) -> Any:
    """A setting, checked as far as that goes without a model: values, and the keys of files.

    Args:
        argument: The argument that it is for.
        setting: What the user passed.

    Returns:
        A dict from keys to checked values, a function, or a checked value for all layers.

    Raises:
        ValueError: If a value is none of the argument's, or a file cannot be read or has no such key.
    """
    if settings.is_file(setting):
        return _from_file(argument, setting)
    if argument is LEVELS and isinstance(getattr(setting, "levels", None), Mapping):
        setting = setting.levels  # of a plan
    if _is_function(argument, setting):
        return setting
    if not isinstance(setting, Mapping) or argument.is_value(setting):
        return argument.check(setting)
    for key in setting:
        if not isinstance(key, str | type):
            raise ValueError(
                f"Expected the keys of `{argument.name}` to be names, paths or patterns of them, or "
                f"types of layers. Received: {key!r}"
            )
    return {key: _checked(argument, f"Key {_label(key)}", v) for key, v in setting.items()}


def resolve(
    argument: Argument,
    setting: Any,
    model: keras.Model,
    wanted: Iterable[Layer],
    *,
    weights: Weights = None,
    deep: bool = False,
    left_out: str = "by `layers`",
) -> Resolved:
    """What each layer with kernels gets of an argument.

    Args:
        argument: The argument.
        setting: What the user passed for it: a value; a dict from names, paths, patterns (`"block_*"`)
            or types to values, where an exact name or path comes before a pattern, a pattern before a
            type, a type before its bases, and all before `"*"`; a function of the layer; an object whose
            `levels` are such a dict; or the path of a YAML file that has one under the argument's name.
        model: A built model.
        wanted: The layers that the transform is to change; others get what they get, but no key may
            mean them alone.
        weights: Which weights are kernels.
        deep: Whether layers that are made of layers are entered.
        left_out: Why layers are not among `wanted`, as errors say it.

    Returns:
        A `Resolved`.

    Raises:
        ValueError: If a value is none of the argument's, a key matches no layer or only layers that are
            left out, or two keys of the same kind give a layer different values.
    """
    given = check_value(argument, setting)
    kernels = every_kernel(model, weights, deep)
    if isinstance(given, dict) and not argument.is_value(given):
        paths = _paths(model, kernels, deep)
        found = [_matches(given, k, its) for k, its in zip(kernels, paths, strict=True)]
        met = {
            key: [k for k, its in zip(kernels, found, strict=True) if key in its] for key in given
        }
        _check_known(argument, met, model, kernels)
        _check_wanted(argument, given, met, {id(x) for x in wanted}, left_out)
        pairs = zip(kernels, found, strict=True)
        chosen = [_by_keys(argument, given, kernel, list(its.values())) for kernel, its in pairs]
    elif _is_function(argument, given):
        chosen = _by_function(argument, given, kernels)
    else:
        chosen = [Choice(given, "for all")] * len(kernels)
    return Resolved(argument, list(zip(kernels, chosen, strict=True)))


def _from_file(argument: Argument, path: str | PurePath) -> Any:
    config = settings.read(path)
    if argument.name not in config:
        raise ValueError(
            f"Expected a key `{argument.name}` in {path}. Received: {', '.join(config) or 'none'}"
        )
    try:
        return check_value(argument, config[argument.name])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_function(argument: Argument, setting: Any) -> bool:
    return callable(setting) and not isinstance(setting, type) and not argument.is_value(setting)


def _checked(argument: Argument, owner: str, value: Any) -> Any:
    """A value, or the default of the argument where it says none."""
    if value is None or (argument.default is None and isinstance(value, str) and value == "float"):
        return argument.default
    try:
        return argument.check(value)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error


def _by_function(argument: Argument, function: Any, kernels: list[Kernel]) -> list[Choice]:
    known: dict[int, Choice] = {}
    for kernel in kernels:
        layer = kernel.layer
        if id(layer) not in known:
            value = _checked(argument, f"Layer '{layer.name}'", function(inner_layer(layer)))
            known[id(layer)] = Choice(value, "by the function")
    return [known[id(kernel.layer)] for kernel in kernels]


class _Match(NamedTuple):
    rank: int  # the lower, the closer
    key: Any
    what: str
    kind: type | None = None


def _paths(model: keras.Model, kernels: list[Kernel], deep: bool) -> list[set[str]]:
    """The paths that each kernel may be called by.

    Keras has names of models and wrappers before the paths of weights, until they are loaded: a path of
    the names of all that the kernel is inside of holds before and after.
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


def _matches(keys: Iterable[Any], kernel: Kernel, paths: set[str]) -> dict[Any, _Match]:
    """The keys that mean a kernel, and how."""
    found = {key: _match(key, kernel, paths) for key in keys}
    return {key: match for key, match in found.items() if match is not None}


def _match(key: Any, kernel: Kernel, paths: set[str]) -> _Match | None:
    name = kernel.layer.name
    if key in paths:
        return _Match(0, key, f"path {key!r}")
    if key == name:
        return _Match(1, key, f"name {key!r}")
    if key == REST:
        return _Match(4, key, f"{key!r}")
    if isinstance(key, str) and any(map(key.count, "*?[")):
        fits = any(fnmatchcase(text, key) for text in (name, *paths))
        return _Match(2, key, f"pattern {key!r}") if fits else None
    for kind in _types(kernel.layer):
        if key is kind or key == kind.__name__:
            return _Match(3, key, f"type {kind.__name__}", kind)
    return None


def _types(layer: Layer) -> list[type]:
    """The types that a layer counts as: its own and their bases, and those of what it wraps."""
    return [
        kind for part in inside_wrappers(inner_layer(layer)) for kind in type(part).__mro__[:-1]
    ]


def _by_keys(
    argument: Argument, given: Mapping[Any, Any], kernel: Kernel, found: list[_Match]
) -> Choice:
    """What the closest of the keys that mean a kernel gives it."""
    if not found:
        left = "left as it is" if argument.default is None else "default"
        return Choice(argument.default, f"{left}: nothing matches")
    closest = min(match.rank for match in found)
    found = [match for match in found if match.rank == closest]
    # A type comes before those that it is made from.
    kinds = [match.kind for match in found if match.kind is not None]
    found = [
        match
        for match in found
        if not any(k is not match.kind and issubclass(k, match.kind or k) for k in kinds)
    ]
    first, *others = found
    value = given[first.key]
    for other in others:
        if not _same(value, given[other.key]):
            raise ValueError(
                f"Expected one value of `{argument.name}` for layer '{kernel.layer.name}'. Received: "
                f"{value!r} by {first.what}, {given[other.key]!r} by {other.what}. Give the layer a "
                "key of its own: its name."
            )
    return Choice(value, first.what)


def _check_known(
    argument: Argument, met: dict[Any, list[Kernel]], model: keras.Model, kernels: list[Kernel]
) -> None:
    """Raises a `ValueError` where a key means no kernel."""
    unknown = [key for key, found in met.items() if not found and key != REST]
    if not unknown:
        return
    layers = list({id(kernel.layer): kernel.layer for kernel in kernels}.values())
    types = [type(inside_wrappers(inner_layer(layer))[-1]).__name__ for layer in layers]
    listed = [f"'{layer.name}' ({kind})" for layer, kind in zip(layers, types, strict=True)]
    names = [*(layer.name for layer in layers), *(kernel.path for kernel in kernels)]
    texts = [key if isinstance(key, str) else key.__name__ for key in unknown]
    raise ValueError(
        f"Expected the keys of `{argument.name}` to be names, paths or patterns of layers with "
        f"kernels in model '{model.name}', or their types: {', '.join(listed)}. Received keys that "
        f"match none: {settings.guessed(texts, [*names, *sorted(set(types))])}"
    )


def _check_wanted(
    argument: Argument,
    given: Mapping[Any, Any],
    met: dict[Any, list[Kernel]],
    wanted: set[int],
    left_out: str,
) -> None:
    """Raises a `ValueError` where a key would change layers that are left out, and no others."""
    idle = []
    for key, found in met.items():
        layers = {id(kernel.layer): kernel.layer.name for kernel in found}
        if key != REST and given[key] is not None and not wanted & layers.keys():
            idle.append(f"{_label(key)} ({', '.join(map(repr, layers.values()))})")
    if idle:
        instead = "Give these None, or take" if argument.default is None else "Take"
        raise ValueError(
            f"Expected the keys of `{argument.name}` to match layers that are to be changed. Received "
            f"keys that match only layers left out {left_out}: {', '.join(idle)}. {instead} them out "
            "of the configuration."
        )


def _label(key: Any) -> str:
    return repr(key) if isinstance(key, str) else key.__name__


def _same(value: Any, other: Any) -> bool:
    """Whether two values are the same; of regularizers, whether their arguments are."""
    if isinstance(value, regularizers.QuantizationRegularizer):
        return repr(value) == repr(other)
    return bool(value == other)
