"""One configuration for all transforms: what each layer gets, and why.

Arguments of transforms that may differ between layers take a *setting*: a value for all layers; a dict
from layer names, kernel paths, patterns of either (`"block_*"`) or layer types to values; a function of
the layer; or the path of a YAML file. These arguments are `levels`, `regularizer`, `table`, `scale`,
`group_size`, `bits` and `activation_bits`, and a whole configuration is a dict of them, which `load`
reads from a YAML file:

    levels:
      conv1: float          # a name: left as it is
      "block_*": 4          # a pattern of names, or of paths of kernels
      Dense: 16             # a type, with its subclasses, also inside TimeDistributed and the like
      "*": 8                # the rest, which without this is left as it is
    regularizer: {name: sine, strength: 0.1}
    table: int8

The closest key counts: the path of a kernel before the name of its layer, that before a pattern, a
pattern before a type, a type before what it is a subclass of, and all before `"*"`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import keras

from keras_qareg import settings
from keras_qareg.layers import Weights
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.configuring import (
    ARGUMENTS,
    Choice,
    Planned,
    check_value,
    resolve,
)
from keras_qareg.models.converting import UNABLE, convertible
from keras_qareg.models.reading import Kernel, every_kernel, unique_names
from keras_qareg.models.selection import check_built, inside_wrappers
from keras_qareg.regularizers import QuantizationRegularizer
from keras_qareg.summaries import table

# What `wnq` takes, which enters layers made of layers.
_OF_WNQ = ("bits", "activation_bits")


@dataclass(frozen=True)
class Row:
    """One layer, or one kernel of it where its kernels are given different values.

    Attributes:
        name: The name of the layer, or the path of the kernel.
        kind: The type of the layer, of what it wraps if it does.
        weights: How many weights its kernels have.
        values: By argument what it gets; `None`: it is left as it is.
        reasons: By argument why: which key matched.

    See also: https://keras-qareg.github.io/keras-qareg/models.html#one-configuration
    """

    name: str
    kind: str
    weights: int
    values: dict[str, Any]
    reasons: dict[str, str]

    def cells(self) -> tuple[str, ...]:
        """The row as texts, for the table."""
        cells = [self.name, self.kind, f"{self.weights:,}"]
        for argument, value in self.values.items():
            cells += [_text(value), self.reasons[argument]]
        return tuple(cells)


def _text(value: Any) -> str:
    if isinstance(value, QuantizationRegularizer):
        return f"{type(value).__name__}(levels={value.levels}, strength={value.strength:.3g})"
    return "float" if value is None else str(value)


@dataclass(frozen=True)
class Explanation:
    """What each layer with kernels gets of a configuration; `str()` is a table.

    Attributes:
        arguments: The arguments that the configuration has.
        rows: A `Row` a layer, in the order of the model.

    See also: https://keras-qareg.github.io/keras-qareg/models.html#one-configuration
    """

    arguments: tuple[str, ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        header = ["layer", "type", "weights"]
        for argument in self.arguments:
            header += [argument, "why"]
        return table(tuple(header), [row.cells() for row in self.rows])


def load(path: str | PurePath) -> dict[str, Any]:
    """The configuration in a YAML file, checked as far as that goes without a model.

    Args:
        path: A file whose name ends in `.yaml` or `.yml`.

    Returns:
        Dict from arguments to settings, as the file says them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, a key is there twice, an argument is unknown, or a value is out of
            its range.

    Example:

    >>> file = Path(tempfile.mkdtemp()) / "small.yaml"
    >>> _ = file.write_text("levels: {conv1: float, Dense: 4, '*': 16}")
    >>> load(file)
    {'levels': {'conv1': 'float', 'Dense': 4, '*': 16}}

    See also: https://keras-qareg.github.io/keras-qareg/models.html#one-configuration
    """
    config = settings.read(path)
    for name, setting in config.items():
        try:
            check_value(ARGUMENTS[name], setting)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return config


def explain(
    model: keras.Model,
    config: Mapping[str, Any] | Planned | str | PurePath,
    *,
    weights: Weights = None,
) -> Explanation:
    """What each layer with kernels gets of a configuration, and why.

    Args:
        model: A built model.
        config: A whole configuration: a dict from arguments to settings, the path of a YAML file, or a
            plan.
        weights: Which weights are kernels, as in `quantization_aware`.

    Returns:
        An `Explanation`; print it for a table. Other arguments of a transform, as `layers` and `skip`,
        may leave more layers as they are.

    Raises:
        ValueError: If the model is unbuilt, an argument is unknown, a value is out of its range, a key
            matches no layer, or two of a kind give a layer different values.

    Example:

    >>> model = keras.Sequential([keras.Input((16,))])
    >>> for name in ("first", "block_1", "block_2"):
    ...     model.add(keras.layers.Dense(16, name=name))
    >>> print(explain(model, {"levels": {"first": None, "block_*": 4}}))
    layer     type  weights  levels                why
    -------  -----  -------  ------  -----------------
    first    Dense      256   float       name 'first'
    block_1  Dense      256       4  pattern 'block_*'
    block_2  Dense      256       4  pattern 'block_*'

    See also: https://keras-qareg.github.io/keras-qareg/models.html#one-configuration
    """
    check_built(model)
    found = _checked(config)
    by_kernel = {name: _choices(model, name, found[name], weights) for name in found}
    kernels = every_kernel(model, weights, deep=set(found) <= set(_OF_WNQ))
    layers = list({id(kernel.layer): kernel.layer for kernel in kernels}.values())
    names = unique_names(model, layers, [layer.name for layer in layers])
    rows: list[Row] = []
    for layer, name in zip(layers, names, strict=True):
        rows += _rows(name, [k for k in kernels if k.layer is layer], by_kernel)
    return Explanation(tuple(found), tuple(rows))


def _rows(name: str, kernels: list[Kernel], by_kernel: dict[str, dict[int, Choice]]) -> list[Row]:
    """The row of a layer, or of each kernel where these are given different values."""
    each = [
        {argument: chosen[id(kernel.variable)] for argument, chosen in by_kernel.items()}
        for kernel in kernels
    ]
    parts = [(kernel.path, [kernel]) for kernel in kernels]
    if all(repr(choices) == repr(each[0]) for choices in each):
        parts = [(name, kernels)]
    kind = type(inside_wrappers(inner_layer(kernels[0].layer))[-1]).__name__
    return [
        Row(
            label,
            kind,
            sum(math.prod(kernel.variable.shape) for kernel in members),
            {argument: choice.value for argument, choice in choices.items()},
            {argument: choice.why for argument, choice in choices.items()},
        )
        for (label, members), choices in zip(parts, each, strict=False)
    ]


def _checked(config: Any) -> dict[str, Any]:
    if settings.is_file(config):
        return load(config)
    if isinstance(getattr(config, "levels", None), Mapping):
        return {"levels": config}
    return settings.check_keys(config)


def _choices(model: keras.Model, name: str, setting: Any, weights: Weights) -> dict[int, Choice]:
    """What each kernel gets of an argument, by its identity."""
    argument, kernels = ARGUMENTS[name], every_kernel(model, weights)
    if name not in _OF_WNQ:
        layers = [kernel.layer for kernel in kernels]
        found = resolve(argument, setting, model, layers, weights=weights).choices
        return {id(kernel.variable): choice for kernel, choice in found}
    able = [kernel.layer for kernel in every_kernel(model, deep=True) if convertible(kernel.layer)]
    resolved = resolve(argument, setting, model, able, deep=True, left_out=UNABLE)
    choices = {id(kernel.variable): choice for kernel, choice in resolved.of(able)}
    other = Choice(None, "left as it is: WNQ has no such layer")
    return {id(k.variable): other for k in (*kernels, *every_kernel(model, deep=True))} | choices
