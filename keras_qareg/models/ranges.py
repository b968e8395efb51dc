"""Where a full-integer file has a range, and which tensors share one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import keras
from keras.layers import Layer

from keras_qareg.models import operators
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.flattening import Call, Flat, Value
from keras_qareg.models.operators import NoIntegerForm, activation_of, kind_of

_LONE = "Put it behind a convolution or dense layer without activation, which nothing else reads."

_MIXED = (
    "All that it joins must have one range, and the runtime prescribes that of a softmax, sigmoid or "
    "tanh among them. Give these as outputs of their own, or join what they are of."
)


@dataclass(eq=False)
class Range:
    """A range of one tensor or of several.

    Attributes:
        name: What the layer that holds it is called.
        fixed: The step and the zero point that the runtime prescribes, or `None`.
        joined: The range that it has become one with, or `None`.
    """

    name: str
    fixed: tuple[float, int] | None = None
    joined: Range | None = None

    @property
    def own(self) -> Range:
        """The range that it is now."""
        return self if self.joined is None else self.joined.own


@dataclass
class Placement:
    """Where ranges belong.

    Attributes:
        behind: For a tensor, the range to put behind it.
        folded: The batch normalizations that are part of the layer before them.
    """

    behind: dict[Value, Range] = field(default_factory=dict)
    folded: list[Layer] = field(default_factory=list)


def placed(flat: Flat, bits: int) -> Placement:
    """Where a full-integer file of a model has ranges.

    Outputs of layers with kernels and of sums have theirs behind the batch normalization and the ReLU
    that become part of the same operator. What only moves, picks or pads values has none of its own, and
    pooling that averages rounds to the range of its inputs. The inputs of a concatenation share one.

    Args:
        flat: The model, without activations that are no operator of a file.
        bits: Bits of activations.

    Raises:
        ValueError: If operations have no integer form, with the names of all.
    """
    return _Placer(flat, bits).placement


class _Placer:
    """Goes through the calls of a model in order."""

    def __init__(self, flat: Flat, bits: int):
        self.flat, self.bits, self.placement = flat, bits, Placement()
        self.readers = flat.readers()
        self.kinds = _kinds(flat)
        self.ends = set(flat.outputs)
        self.makers = {value: call for call in flat.calls for value in call.outputs}
        # The range of each tensor that has one, and the calls that are part of the one before.
        self.ranges: dict[Value, Range] = {}
        self.parts: set[Call] = set()
        self.refused: list[str] = []
        for value in flat.inputs:
            self._place(value, Range(value.name))
        for call in flat.calls:
            if call not in self.parts:
                self._visit(call, self.kinds[call])
        _refuse(self.refused)

    def _place(self, value: Value, its: Range) -> None:
        self.placement.behind[value] = self.ranges[value] = its

    def _visit(self, call: Call, kind: str) -> None:
        if kind in (operators.KERNEL, operators.FUSING, operators.SCALED):
            self._place(self._end_of(call, kind), Range(call.name))
        elif kind == operators.FIXED:
            self._place(call.outputs[0], Range(call.name, operators.prescribed(call, self.bits)))
        elif kind == operators.JOINED:
            self.ranges[call.outputs[0]] = self._joined(call)
        elif (kind == operators.RELU and not self._follows_pooling(call)) or kind == operators.OWN:
            problem = self._unwritten(call, kind)
            self.refused += [_said(call, problem)] if problem else []
            self._place(call.outputs[0], Range(call.name))
        elif kind == operators.NORM:
            self.refused.append(_said(call, _LONE))
            self._pass_on(call, rounded=False)
        else:
            self._pass_on(call, rounded=kind in (operators.ROUNDED, operators.RELU))

    def _pass_on(self, call: Call, rounded: bool) -> None:
        its = self.ranges[call.inputs[0]]
        for value in call.outputs:
            self.ranges[value] = its
            if rounded:
                self.placement.behind[value] = its

    def _end_of(self, call: Call, kind: str) -> Value:
        """The last tensor of the chain of operations that a file has as one operator."""
        end, parts = call.outputs[0], []
        for part in _chain(call, kind, self):
            parts.append(part)
            if self.kinds[part] != operators.THROUGH:
                end = part.outputs[0]
                self.parts.update(parts)
                if self.kinds[part] == operators.NORM:
                    self.placement.folded.append(part.operation)
        return end

    def _unwritten(self, call: Call, kind: str) -> str | None:
        """What to do instead where TensorFlow Lite cannot write an operation, or not run it."""
        if self.bits == 16 and operators.is_hard_silu(call):
            return "It takes activations of 8 bits alone: use silu, or bits=8."
        value = call.inputs[0]
        maker = self.makers.get(value)
        if kind == operators.RELU and maker is not None and not self.alone(value):
            layer = inner_layer(maker.operation) if isinstance(maker.operation, Layer) else None
            if isinstance(layer, keras.layers.Dense):
                return (
                    "Let nothing else read the dense layer before it, which is written twice then."
                )
        return None

    def _follows_pooling(self, call: Call) -> bool:
        value = call.inputs[0]
        maker = self.makers.get(value)
        return maker is not None and operators.pools(maker) and self.alone(value)

    def alone(self, value: Value) -> bool:
        """Whether one call alone reads a tensor."""
        return value not in self.ends and len(self.readers.get(value, ())) == 1

    def _joined(self, call: Call) -> Range:
        its = {value: self.ranges[value].own for value in call.inputs}
        one, *others = its.values()
        if len({found.fixed for found in its.values()}) > 1:
            self.refused.append(_said(call, _MIXED))
        for found in others:
            if one.fixed is None and found.own is not one:
                found.joined = one
        return one


def _chain(call: Call, kind: str, placer: _Placer) -> Iterator[Call]:
    """The calls behind one that may be parts of it: each reads the one before, and alone."""
    value = call.outputs[0]
    layer = inner_layer(call.operation) if isinstance(call.operation, Layer) else call.operation
    linear = kind != operators.KERNEL or activation_of(layer) == "linear"
    takes_norm = kind == operators.KERNEL and linear
    while linear and placer.alone(value):
        (part,) = placer.readers[value]
        its = placer.kinds[part]
        if its == operators.NORM:
            if not (takes_norm and operators.folds(part.operation, layer, len(value.shape))):
                return
            takes_norm = False
        elif its == operators.RELU:
            yield part
            return
        elif its != operators.THROUGH:
            return
        yield part
        value = part.outputs[0]


def _kinds(flat: Flat) -> dict[Call, str]:
    """What each call is; raises a `ValueError` that names all that have no integer form."""
    found: dict[Call, str] = {}
    problems = []
    for value in flat.inputs:
        if not keras.backend.is_float_dtype(value.dtype):
            problems.append(
                f"input '{value.name}' of {value.dtype}. Give the model floating-point numbers."
            )
    for call in flat.calls:
        try:
            found[call] = kind_of(call)
        except NoIntegerForm as problem:
            problems.append(_said(call, str(problem)))
    _refuse(problems)
    return found


def _said(call: Call, problem: str) -> str:
    return f"'{call.name}' ({type(call.operation).__name__}). {problem}"


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError(
            "Expected a model whose every operation has an integer form in TensorFlow Lite. Received: "
            f"{' '.join(problems)}"
        )
