"""Which layer gets which value of an argument: one value for all, or by name, pattern, type, function.

Every argument of a transform that may differ between layers goes through `resolve`. A *setting* is what
the user passed for it: a value, a dict, a function, a plan, or the path of a YAML file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import keras
from keras.layers import Layer

from keras_qareg import regularizers, settings
from keras_qareg.choices import check_bits, check_choice, check_count
from keras_qareg.layers import Weights
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.matching import REST, Match, closest, matches
from keras_qareg.models.reading import Kernel, every_kernel
from keras_qareg.numerics.clustering import check_levels
from keras_qareg.numerics.rate_distortion import check_rate
from keras_qareg.numerics.sparsity import check_sparsity
from keras_qareg.numerics.tables import SCALES, TABLES
from keras_qareg.quantizers import MAX_ACTIVATION_BITS, MAX_WEIGHT_BITS

T = TypeVar("T")
# The group that has all channels, as settings and their explanations say it; in arguments, `None`.
ALL = "all"


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


def _group_size(size: Any) -> Any:
    if size in (None, ALL):
        return ALL
    check_count("group_size", size)
    return int(size)


def _is_regularizer(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "class_name" in value or "name" in value
    # One of Keras would else be taken for a function of the layer: it can be called.
    return isinstance(value, regularizers.QuantizationRegularizer | keras.regularizers.Regularizer)


LEVELS, RATE = Argument("levels", check_levels), Argument("rate", check_rate)
REGULARIZER = Argument("regularizer", regularizers.get, is_value=_is_regularizer)
TABLE, SCALE = _choice("table", TABLES), _choice("scale", SCALES)
GROUP_SIZE = Argument("group_size", _group_size, ALL)
BITS = _bits("bits", MAX_WEIGHT_BITS)
ACTIVATION_BITS = _bits("activation_bits", MAX_ACTIVATION_BITS)
TARGET_SPARSITY = Argument("target_sparsity", check_sparsity)
ARGUMENTS = {
    a.name: a
    for a in (
        *(LEVELS, REGULARIZER, TABLE, SCALE, GROUP_SIZE, BITS, ACTIVATION_BITS),
        TARGET_SPARSITY,
    )
}


def _opened(levels: Any) -> Any:
    """Levels as they are, or those of a YAML file."""
    return settings.read(levels).get(LEVELS.name) if settings.is_file(levels) else levels


def planned_rates(levels: Any) -> dict[str, float]:
    """What a bit of each kernel may cost by a plan for an archive; of any other setting, nothing."""
    levels = _opened(levels)
    rates = getattr(levels, "rates", None) or {}
    shared = [path for path, count in levels.levels.items() if count is not None] if rates else []
    return {path: rates.get(path, 0.0) for path in shared}


def keeps_float(levels: Any) -> bool:
    """Whether this is a plan, or the file of one, that leaves all kernels float: they fit like that."""
    found = _opened(levels)
    of_file = found is not levels and isinstance(found, Mapping)
    planned = found if of_file else getattr(found, "levels", {})
    return bool(planned) and all(its in (None, "float") for its in planned.values())


def warn_of_other_tables(levels: Any, **given: Any) -> None:
    """Warns where a plan, or the file that levels are of, has another table, scale or group size."""
    if settings.is_file(levels):
        planned = settings.read(levels)
    else:
        planned = {name: getattr(levels, name) for name in given if hasattr(levels, name)}
    for name, choices in (("table", TABLES), ("scale", SCALES)):
        if name in planned and not isinstance(planned[name], Mapping):
            check_choice(name, planned[name], choices)
    others = [
        f"{name}={planned[name]!r}"
        for name, value in given.items()
        if name in planned and planned[name] != value and not settings.is_file(value)
    ]
    if others:
        warnings.warn(
            f"`levels` were planned with {', '.join(others)}, and files have other bytes than planned "
            f"without. Pass {', '.join(others)} too.",
            stacklevel=4,
        )


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


def _check_sizes(setting: Any, kernels: list[Kernel]) -> None:
    """Raises a `ValueError` where a plan, or the file of one, is of kernels of other sizes."""
    setting = _opened(setting)
    planned = {row.path: row.weights for row in getattr(setting, "rows", ())}
    planned = planned or getattr(setting, "sizes", {})
    sizes = {kernel.path: math.prod(kernel.variable.shape) for kernel in kernels}
    other = {path: n for path, n in planned.items() if sizes.get(path, n) != n}
    if other:
        path, count = next(iter(other.items()))
        raise ValueError(
            f"Expected the plan of a model with {count:,} weights in '{path}'. Received: a model with "
            f"{sizes[path]:,} there. Plan anew with keras_qareg.allocate."
        )


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
    kernels, meant = every_kernel(model, weights, deep=deep), {id(layer) for layer in wanted}
    _check_sizes(setting, kernels)
    if isinstance(given, dict) and not argument.is_value(given):
        found = matches(model, kernels, given, argument.name, deep=deep)
        pairs = list(zip(kernels, found, strict=True))
        _check_wanted(argument, given, pairs, meant, left_out)
        chosen = [_by_keys(argument, given, *pair, id(pair[0].layer) in meant) for pair in pairs]
    elif _is_function(argument, given):
        chosen = _by_function(argument, given, kernels, meant)
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


def _by_function(
    argument: Argument, function: Any, kernels: list[Kernel], wanted: set[int]
) -> list[Choice]:
    known: dict[int, Choice] = {}
    for layer in (kernel.layer for kernel in kernels):
        if id(layer) not in wanted:
            known[id(layer)] = Choice(argument.default, "left out")
        elif id(layer) not in known:
            value = _checked(argument, f"Layer '{layer.name}'", function(inner_layer(layer)))
            known[id(layer)] = Choice(value, "by the function")
    return [known[id(kernel.layer)] for kernel in kernels]


def _by_keys(
    argument: Argument,
    given: Mapping[Any, Any],
    kernel: Kernel,
    found: dict[Any, Match],
    is_wanted: bool,
) -> Choice:
    """What the closest of the keys that mean a kernel gives it."""
    if not found:
        left = "left as it is" if argument.default is None else "default"
        return Choice(argument.default, f"{left}: nothing matches")
    first, *others = closest(found.values())
    value = given[first.key]
    for other in others:
        if is_wanted and not _same(value, given[other.key]):
            raise ValueError(
                f"Expected one value of `{argument.name}` for layer '{kernel.layer.name}'. Received: "
                f"{value!r} by {first.what}, {given[other.key]!r} by {other.what}. Give the layer a "
                "key of its own: its name."
            )
    return Choice(value, first.what)


def _check_wanted(
    argument: Argument,
    given: Mapping[Any, Any],
    pairs: list[tuple[Kernel, dict[Any, Match]]],
    wanted: set[int],
    left_out: str,
) -> None:
    """Raises a `ValueError` where a key would change layers that are left out, and no others."""
    idle = []
    for key in given:
        met = [kernel.layer for kernel, found in pairs if key in found]
        layers = {id(layer): layer.name for layer in met}
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
        same = type(value) is type(other)
        return same and bool(value.get_config() == other.get_config())
    return bool(value == other)
