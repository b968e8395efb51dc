"""Which channels of a graph do nothing: followed from the inputs to the outputs, and back.

Of each channel three numbers are known. Its *centre* and *reach*: with inputs between -1 and 1, or as
far as a batch normalization of the inputs has seen, it is within `reach` of `centre` everywhere. And
its *gain*: if it moves by d, no output moves by more than `gain` d of what it can be moved by at all.
`reach` times `gain` is the share that it may have in an output, whatever the scales of the weights
between are; a channel whose share is nothing is a constant to the outputs. Reach and gain are bounds
with a factor for each layer, and so kept as logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_qareg.layers.keras_private import nodes
from keras_qareg.models.shrinking.rules import Mixing, Rule, weights_of

_NEVER = -np.inf
# Of inputs that are normalized, how many standard deviations they may be from their mean.
_DEVIATIONS = 10.0


@dataclass(eq=False)
class Channels:
    """The channels of a tensor.

    Attributes:
        centre, reach, gain: As above, the last two as logarithms.
        meets_padding: How far the outputs move, as a logarithm, where zeros beside the tensor are taken
            for what the channel is elsewhere.
        held: Whether all must stay.
        ends: Whether they are an output of the graph.
        idle: Which of them leave the outputs as they are.
        removed: Which of them are removed.
    """

    centre: np.ndarray
    reach: np.ndarray
    gain: np.ndarray
    meets_padding: np.ndarray
    held: bool = False
    ends: bool = False
    idle: np.ndarray = field(default_factory=lambda: np.zeros(0, "bool"))
    removed: np.ndarray = field(default_factory=lambda: np.zeros(0, "bool"))

    @classmethod
    def of(cls, centre: np.ndarray, reach: np.ndarray) -> Channels:
        """Channels of which nothing reads yet."""
        nothing = np.full(centre.shape, _NEVER)
        return cls(centre, reach, nothing.copy(), nothing.copy())

    @classmethod
    def unknown(cls, tensor: Any) -> Channels:
        """The channels of a tensor that is not followed back."""
        count = tensor.shape[-1] if len(tensor.shape) > 1 and tensor.shape[-1] else 0
        found = cls.of(np.zeros(count), np.zeros(count))
        found.held = True
        return found

    @property
    def kept(self) -> np.ndarray:
        """The places of the channels that stay."""
        return np.flatnonzero(~self.removed)


@dataclass(eq=False)
class Call:
    """A call in a graph, with the channels that go in and come out.

    Attributes:
        operation: What is called.
        rule: What it does, `None` where it is not followed.
        inputs, outputs: The channels.
        before: Of what is done before an activation that mixes channels, the reach.
    """

    operation: Any
    rule: Rule | None
    inputs: list[Channels]
    outputs: list[Channels]
    before: np.ndarray | None = None


def traced(graph: keras.Model, rule_of: Callable[[Any], Rule | None], least: float) -> list[Call]:
    """The calls of a graph, each with what is removed of its channels.

    Args:
        graph: A Sequential or Functional model.
        rule_of: The rule of a call; `None` where it is not followed.
        least: The share in an output below which a channel is nothing; 0: exactly nothing.

    Returns:
        The calls, each after those that its inputs come from.
    """
    known = _given(graph)
    calls = []
    for node in nodes(graph):
        inputs = [known[id(tensor)] for tensor in node.input_tensors]
        call = _forward(node, rule_of(node), inputs)
        known |= {id(x): channels for x, channels in zip(node.outputs, call.outputs, strict=True)}
        calls.append(call)
    for tensor in graph.outputs:
        _hold(known[id(tensor)])
        known[id(tensor)].ends = True
    for call in reversed(calls):
        _backward(call)
    with np.errstate(divide="ignore"):
        _mark(list(known.values()), float(np.log(least)))
    _settle(calls)
    return calls


def _given(graph: keras.Model) -> dict[int, Channels]:
    """The inputs of a graph: between -1 and 1, or as far as a normalization of them has seen."""
    known = {id(tensor): Channels.unknown(tensor) for tensor in graph.inputs}
    for node in nodes(graph):
        given = known.get(id(node.input_tensors[0])) if node.input_tensors else None
        if given is not None and isinstance(node.operation, keras.layers.BatchNormalization):
            found = weights_of(node.operation)
            seen = abs(found["moving_mean"]) + _DEVIATIONS * np.sqrt(found["moving_variance"])
            if seen.shape == given.reach.shape:
                given.reach = np.maximum(given.reach, _logarithm(seen))
    return known


def _logarithm(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.abs(values))


def _times(matrix: np.ndarray, logarithms: np.ndarray) -> np.ndarray:
    """The logarithm of a matrix of non-negative numbers times a vector of logarithms."""
    most = logarithms.max(initial=_NEVER)
    if most == _NEVER:
        return np.full(len(matrix), _NEVER)
    return _logarithm(matrix @ np.exp(logarithms - most)) + most


def _forward(node: Any, rule: Rule | None, inputs: list[Channels]) -> Call:
    if rule is None:
        outputs = [Channels.unknown(tensor) for tensor in node.outputs]
        return Call(node.operation, None, inputs, outputs)
    does = rule.does
    if isinstance(does, Mixing):
        (given,) = inputs
        reach = _times(does.sizes.T, _with_padding(given, does.pads))
        centre = does.offset + given.centre @ does.sums
        if does.activation is None:
            made = Channels.of(np.zeros_like(centre), np.zeros_like(reach))
            made.held = True
            return Call(node.operation, rule, inputs, [made], before=reach)
        return Call(node.operation, rule, inputs, [Channels.of(does.activation(centre), reach)])
    centre, reach = np.zeros_like(does.offset), np.full(does.offset.shape, _NEVER)
    for given, places in zip(inputs, does.places, strict=True):
        centre[places] += given.centre[:, None]
        reach[places] = np.logaddexp(reach[places], _with_padding(given, does.pads)[:, None])
    centre = does.activation(does.scale * centre + does.offset)
    return Call(node.operation, rule, inputs, [Channels.of(centre, reach + _logarithm(does.size))])


def _with_padding(given: Channels, pads: bool) -> np.ndarray:
    """How far channels are from their centres, padding counted where there is some."""
    return np.logaddexp(given.reach, _logarithm(given.centre)) if pads else given.reach


def _hold(channels: Channels) -> None:
    """All of these stay, and what moves them counts against what moves them at most."""
    channels.held = True
    _add_gain(channels, _of_an_end(channels.reach))


def _of_an_end(reach: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(reach), -reach, 0.0)


def _add_gain(channels: Channels, gain: np.ndarray) -> None:
    channels.gain = np.logaddexp(channels.gain, gain)


def _backward(call: Call) -> None:
    if call.rule is None:
        for channels in call.inputs:
            _hold(channels)
        return
    does, (out,) = call.rule.does, call.outputs
    if isinstance(does, Mixing):
        (given,) = call.inputs
        gain = _times(does.sizes, out.gain if call.before is None else _of_an_end(call.before))
        _add_gain(given, gain)
        if does.pads:
            moved = gain + _logarithm(given.centre)
            given.meets_padding = np.logaddexp(given.meets_padding, moved)
        return
    gain = out.gain + _logarithm(does.size)
    for given, places in zip(call.inputs, does.places, strict=True):
        _add_gain(given, np.logaddexp.reduce(gain[places], axis=1))


def _mark(found: Sequence[Channels], least: float) -> None:
    """Notes which channels do nothing, and which of these may be removed by what reads them."""
    for channels in found:
        channels.idle = channels.reach + channels.gain <= least
        able = channels.idle & (channels.meets_padding <= least)
        channels.removed = np.zeros_like(able) if channels.held else able


def _settle(calls: list[Call]) -> None:
    """Keeps what cannot go alone: channels that a call keeps apart go together, and one always stays."""
    changed = True
    while changed:
        changed = False
        for call in [*calls, *reversed(calls)]:
            changed |= _agree(call)
        for call in calls:
            for channels in call.outputs:
                if channels.removed.size and channels.removed.all():
                    channels.removed[0], changed = False, True


def _agree(call: Call) -> bool:
    """Keeps channels on one side of a call that stay on the other; returns whether there were any."""
    if call.rule is None or isinstance(call.rule.does, Mixing):
        return False
    (out,) = call.outputs
    before = out.removed.sum() + sum(given.removed.sum() for given in call.inputs)
    for given, places in zip(call.inputs, call.rule.does.places, strict=True):
        out.removed[places] &= given.removed[:, None]
    for given, places in zip(call.inputs, call.rule.does.places, strict=True):
        given.removed &= out.removed[places].all(axis=1)
    return bool(before > out.removed.sum() + sum(given.removed.sum() for given in call.inputs))
